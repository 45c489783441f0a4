"""The seconds of each stage of a run, from its arithmetic and the speed of its devices; finished runs correct them.

The product of n weights with the state of one token is 2 n floating-point operations; its backward pass is two such
products. The shares of the peak in conf/plan.yaml account for all other operations (norms, softmax, elementwise).
Grading, the optimizer's update and the transfer of weights within a process are left out: a few percent each at most.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from carerft.evaluation import QUESTIONS_AT_ONCE
from carerft.objective import lm_head
from carerft.planning.assumptions import Assumptions, Dataset, Device, Hardware
from carerft.planning.job import Job, Measured, job
from carerft.planning.memory import WIDTH, trained
from carerft.planning.shapes import Shape, forward
from carerft.runs.directory import manifests
from carerft.runs.reading import read_lines

KERNELS = 20
"""Operations that the host starts to decode one token in one layer."""
NEWEST = 6
"""Runs that correct an estimate: earlier ones may have used another version, or a busier machine."""
TIMES = {"sampling": ("rollout", "grade", "sync", "score"), "learning": ("learn",)}
"""The times of metrics.jsonl that belong to each stage; all other seconds of a run are the rest."""


@dataclass(frozen=True)
class Seconds:
    """sampling: of one rollout batch; learning: of one optimizer step; rest: of start, saving and evaluation. batches,
    steps: their numbers. overlap: whether sampling and learning run at the same time."""

    sampling: float
    learning: float
    rest: float
    batches: float
    steps: int
    overlap: bool = False

    @property
    def stages(self) -> dict[str, float]:
        """The seconds of the whole run, by stage."""
        return {"sampling": self.batches * self.sampling, "learning": self.steps * self.learning, "rest": self.rest}

    @property
    def training(self) -> float:
        sampling, learning, _ = self.stages.values()
        return max(sampling, learning) if self.overlap else sampling + learning

    @property
    def total(self) -> float:
        return self.training + self.rest

    def corrected(self, factors: dict[str, float]) -> "Seconds":
        """Each stage times its factor."""
        return replace(self, **{stage: getattr(self, stage) * factor for stage, factor in factors.items()})


def seconds(job: Job, shape: Shape, device: Device, assumptions: Assumptions) -> Seconds:
    """Without any correction by finished runs."""
    rest = assumptions.start_s["vllm" if job.engine else "transformers"]
    for measured in (Measured(job.benchmarks, job.samples), job.validation):
        rest += measured.times * measuring(job, shape, device, measured)
    # A round of dynamic sampling takes as long as its longest completion.
    prompts = job.rollout.prompts_per_batch * job.groups / job.rounds
    sampling = job.rounds * decoding(job, shape, device, job.task, prompts, job.group_size)
    if job.dedicated and job.dedicated.weight_transfer == "reload":
        sampling += shape.parameters * WIDTH[job.learner.precision] / (assumptions.transfer * 1e9)
    found = Seconds(
        sampling=sampling,
        learning=learning(job, shape, device),
        rest=rest,
        batches=job.steps / (job.learner.updates_per_batch * job.learner.epochs),
        steps=job.steps,
        overlap=bool(job.rollout.lookahead),
    )
    # A checkpoint holds the weights that learn and their moments; the trained model is written at the end.
    every, minutes = job.learner.checkpoint_every, job.learner.checkpoint_minutes
    checkpoints = math.ceil(job.steps / every) if every else 1 + found.training // (60 * minutes)
    saved = 12 * checkpoints * trained(job, shape) + 4 * shape.parameters
    return replace(found, rest=rest + saved / (assumptions.disk * 1e9))


def learning_flops(job: Job, shape: Shape) -> float:
    """Floating-point operations of one optimizer step.

    The body: once forward, twice backward, once again with gradient checkpointing, once for the reference. The head,
    for completion tokens only: once forward, twice backward, once for the reference, and once again for each of the
    two whose logits are not kept (lm_head). With an adapter, the backward pass goes through frozen matrices and the
    head once, and the adapter's own matrices are computed as the body is, without a reference.
    """
    adapter, checkpointing = bool(job.model.adapter), job.learner.gradient_checkpointing
    body = forward(shape, job.input_tokens, job.task.prompt + job.task.completion) * (3 + checkpointing + job.reference)
    if adapter:
        body += job.input_tokens * 2 * (trained(job, shape) * (3 + checkpointing) - shape.layers * shape.layer)
    again = job.microbatch_tokens * shape.vocabulary > lm_head.CHUNK_ELEMENTS
    products = 3 + job.reference + again + (again and job.exact) - adapter
    return body + 2 * shape.head * job.prompts * job.group_size * job.task.completion * products


def learning(job: Job, shape: Shape, device: Device) -> float:
    """Seconds of one optimizer step."""
    speed = device.peak[job.learner.precision] * 1e12 * device.learn_share * job.learner.processes
    return learning_flops(job, shape) / speed


def decoding(job: Job, shape: Shape, device: Device, data: Dataset, prompts: float, group: int) -> float:
    """Seconds in which `group` completions of each prompt are sampled by all engines, or all processes of the learner.

    A decoding step samples one token of every sequence: it reads all weights and takes the host a fixed time. Each
    token takes its products, and reading the keys and values of the tokens before it. transformers decodes a batch
    until its longest completion ends. vLLM replaces a sequence that has ended: it takes as many steps as the tokens
    need, and at the end those from the mean length to the longest.
    """
    prompts /= job.dedicated.engines if job.dedicated else job.learner.processes
    batches = max(1.0, prompts * group / job.side_by_side(device))
    cached = WIDTH[job.learner.precision]  # bytes of a key's or a value's number
    if job.engine:
        devices, width, host = job.engine.tensor_parallel_size, cached, device.engine_step_ms * 1e-3
        steps = batches * data.completion + data.max_tokens - data.completion
    else:
        devices, width, host = 1, 4, shape.layers * KERNELS * device.kernel_us * 1e-6
        steps = math.ceil(batches) * data.max_tokens
    speed = device.peak[job.learner.precision] * 1e12 * device.decode_share * devices
    bandwidth = device.bandwidth * 1e9 * device.bandwidth_share * devices
    context = data.prompt + data.completion / 2
    products = 2 * shape.head + forward(shape, 1, 2 * context)
    token = products / speed + shape.cache_bytes(cached) * context / bandwidth
    tokens = prompts * (data.prompt + group * data.completion)
    return steps * (host + width * shape.parameters / bandwidth) + tokens * token


def measuring(job: Job, shape: Shape, device: Device, measured: Measured) -> float:
    """Seconds in which all questions are answered once over, and the likelihoods of their choices computed.

    vLLM reads a prompt again for each of its choices, and computes the probability of every token. transformers reads a
    prompt once, without the beginning that all share, and computes the probabilities of the choices' tokens alone.
    """
    total = 0.0
    speed = device.peak[job.learner.precision] * 1e12 * device.learn_share
    for data in measured.benchmarks:
        questions = min(QUESTIONS_AT_ONCE["vllm" if job.engine else "transformers"], data.questions)
        if data.max_tokens:
            batches = data.questions / questions
            total += batches * decoding(job, shape, device, data, questions, measured.samples)
        if data.choices:
            scored = data.choices * (data.choice + (data.prompt if job.engine else 0))
            read = scored + (0 if job.engine else data.prompt - data.shared)
            flops = forward(shape, read, data.prompt + data.choice) + 2 * shape.head * scored
            total += data.questions * flops / speed
    return total


def newest(directories: Iterable[Path], hardware: Hardware, model: str, most: int = NEWEST) -> list[Path]:
    """The newest finished trainings of this model (its path) on such hardware."""
    runs = [
        (manifest["ended"], directory)
        for directory, manifest in manifests({directory.resolve() for directory in directories})
        if manifest.get("status") == "done" and manifest.get("seconds") and "learner" in manifest["config"]
        if manifest["config"]["model"]["path"] == model and _similar(manifest["hardware"], hardware)
    ]
    return [directory for _, directory in sorted(runs, reverse=True)[:most]]


def _similar(recorded: dict[str, Any], hardware: Hardware) -> bool:
    if hardware.cpu:
        return hardware.here and not recorded["gpus"] and recorded["cores"] == os.cpu_count()
    return any(name.removeprefix("NVIDIA ") in hardware.device.names for name in recorded["gpus"])


def correction(runs: Sequence[Path], shape: Shape, hardware: Hardware, assumptions: Assumptions) -> dict[str, float]:
    """For each stage the measured seconds of these runs over the computed ones; 1 where nothing was measured."""
    from carerft.config.composition import train_settings  # here: benchmarks/gpu.sh may lack OmegaConf

    measured, computed = Counter[str](), Counter[str]()
    for directory, manifest in manifests(runs):
        device = hardware.device.times(manifest["hardware"]["threads"] if hardware.cpu else 1)
        settings = train_settings(manifest["config"])
        computed.update(seconds(job(settings, assumptions), shape, device, assumptions).stages)
        measured["rest"] += manifest["seconds"]
        for line in read_lines(directory / "metrics.jsonl", []):
            for stage, keys in TIMES.items():
                spent = sum(line.get(f"time/{key}_s", 0.0) for key in keys)
                measured[stage] += spent
                measured["rest"] -= spent
    return {stage: measured[stage] / total if total and measured[stage] else 1.0 for stage, total in computed.items()}
