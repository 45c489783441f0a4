"""The tokens of a microbatch where the configuration leaves them open: as many as there is room for, up to a limit."""

from dataclasses import replace
from typing import TYPE_CHECKING

from carerft.config.settings import MOST_TOKENS, TrainSettings
from carerft.planning.assumptions import load, machine_memory
from carerft.planning.job import Job, job
from carerft.planning.memory import learning, resident
from carerft.planning.shapes import Shape, shape_of_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LEAST_TOKENS = 256
SHARE = 0.5
"""The share of a machine's memory that learning may take; sampling, other programs and what the model of memory leaves
out have the rest."""


def fitted(wanted: Job, shape: Shape, memory: float) -> Job:
    """The job on a CPU with its microbatch, if that is open: MOST_TOKENS halved until learning fits into its share.

    memory: bytes that the processes of the job have together.
    """
    if wanted.learner.tokens_per_microbatch is not None:
        return wanted
    tokens, without_texts = MOST_TOKENS, replace(wanted, task=replace(wanted.task, prompt=0, max_tokens=0))
    while tokens > LEAST_TOKENS:
        tried = without_texts.with_settings({"learner.tokens_per_microbatch": tokens})
        need = sum(resident(tried, shape).values()) + sum(learning(tried, shape).values())
        if need * tried.learner.processes <= SHARE * memory:
            break
        tokens //= 2
    return wanted.with_settings({"learner.tokens_per_microbatch": tokens})


def tokens_per_microbatch(settings: TrainSettings, policy: "PreTrainedModel", device: "torch.device") -> int:
    """`learner.tokens_per_microbatch` of a run on this machine. device: where the policy learns."""
    if settings.learner.tokens_per_microbatch is not None or device.type != "cpu":
        return settings.learner.tokens_per_microbatch or MOST_TOKENS
    found = fitted(job(settings, load()), shape_of_model(policy), machine_memory())
    return found.learner.tokens_per_microbatch or MOST_TOKENS
