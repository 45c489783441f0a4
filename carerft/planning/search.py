"""The settings with which a run that is too large would fit into memory: the fewest, and of these the cheapest."""

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any

from carerft.config.settings import MOST_TOKENS, OWN_SEQUENCES
from carerft.planning.job import Job

Changes = dict[str, Any]  # values of settings, by dotted key
MOST_CHANGES = 5


def search(
    jobs: Sequence[Job], fits: Callable[[Job], bool], cost: Callable[[Job], float]
) -> dict[str, tuple[Changes, float]]:
    """Changes of settings with which all jobs fit, and what the first job then costs, by their effect: "the same
    result", "other rounding", "another method". An effect that is worse than another is listed only if it costs less.
    Empty if no changes of up to five settings help."""
    solutions: dict[str, tuple[Changes, float]] = {}
    axes: list[list[Changes]] = []
    least = float("inf")
    for effect, settings in _axes(jobs[0]).items():
        axes += settings
        for changes in _fewest(axes, lambda changes: all(fits(job.with_settings(changes)) for job in jobs)):
            if (price := cost(jobs[0].with_settings(changes))) < least:
                solutions[effect], least = (changes, price), price
    return solutions


def _fewest(axes: list[list[Changes]], fits: Callable[[Changes], bool]) -> list[Changes]:
    """Every combination of the fewest axes with which the runs fit."""
    for count in range(1, MOST_CHANGES + 1):
        choices = (choice for subset in combinations(axes, count) for choice in product(*subset))
        combined = ({key: value for part in choice for key, value in part.items()} for choice in choices)
        if fitting := [changes for changes in combined if fits(changes)]:
            return fitting
    return []


def _axes(job: Job) -> dict[str, list[list[Changes]]]:
    """The values that may replace each setting's, by the effect on the result. Settings that depend on each other share
    an axis; one without an effect on memory is never part of the fewest."""
    learner = job.learner
    if job.engine:
        apart = {"rollout.placement": "dedicated", "rollout.gpu_memory_utilization": 0.9}
        same: list[list[Changes]] = [
            [{"rollout.gpu_memory_utilization": x} for x in (0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.3, 0.25, 0.2, 0.15)],
            [{"rollout.max_model_len": job.longest}],
            [apart | {"rollout.tensor_parallel_size": n, "learner.device": f"cuda:{n}"} for n in (1, 2, 4)],
        ]
    else:
        usual = job.rollout.batch_size or OWN_SEQUENCES
        same = [[{"rollout.batch_size": n} for n in (128, 64, 32, 16) if n < usual]]
    microbatches = [(learner.tokens_per_microbatch or MOST_TOKENS) // n for n in (2, 4, 8, 16)]
    same += [
        [{"learner.gradient_checkpointing": True}],
        [{"learner.tokens_per_microbatch": n} for n in microbatches if n >= job.task.prompt + job.task.max_tokens],
        [{"learner.monitor_reference": False}],
        [{"learner.reference_offload": True}],
        [{"learner.processes": n} for n in (2, 4, 8)],
    ]
    vllm = [{"rollout": "vllm", "rollout.gpu_memory_utilization": x} for x in (0.35, 0.5, 0.7) if not job.engine]
    rounding: list[list[Changes]] = [[{"learner.optimizer": "adamw_8bit"}], [{"learner.precision": "bfloat16"}], vllm]
    return {"the same result": same, "other rounding": rounding, "another method": [[{"model.adapter": "lora"}]]}
