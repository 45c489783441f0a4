"""Seconds of each stage of a run, from its arithmetic and the hardware's speed.

A product of n weights with a token's state is 2 n floating-point operations; its backward pass is two such products.
What is neither a product nor reading weights (norms, softmax, elementwise passes) is part of the shares of the peak
that are reached. Seconds add up: nothing is assumed to overlap but `rollout.lookahead`.
"""

import math
from dataclasses import dataclass

from carerft.planning.assumptions import Hardware
from carerft.planning.job import Job
from carerft.planning.memory import CHUNK, WIDTH, engine_weights, trained
from carerft.planning.shapes import Shape, forward

KERNELS = {"step": 20, "learn": 120}
"""Operations of one layer that the host starts: to decode a token; to learn, forward, backward and the reference."""
OPTIMIZER_BYTES = 40
"""A weight's traffic in a step of AdamW: gradient read thrice (norm, clipping, update) and written once, weight and two
moments read and written: 10 float32."""


@dataclass(frozen=True)
class Seconds:
    """sampling: of one rollout batch, grading and the sync of weights included; learning: of one optimizer step;
    evaluating: of all benchmarks; fixed: start, checkpoints and export. batches, steps: how many of each."""

    sampling: float
    learning: float
    evaluating: float
    fixed: float
    batches: float
    steps: int
    overlap: bool = False

    @property
    def training(self) -> float:
        """Without start and evaluation. With lookahead, sampling and learning run side by side."""
        sampling, learning = self.batches * self.sampling, self.steps * self.learning
        return max(sampling, learning) if self.overlap else sampling + learning

    @property
    def rest(self) -> float:
        return self.evaluating + self.fixed

    @property
    def total(self) -> float:
        return self.training + self.rest


def seconds(job: Job, shape: Shape, hardware: Hardware, cores: int, start: float, disk: float) -> Seconds:
    """cores: devices of a CPU that this run has (1 on GPUs). start: seconds; disk: bytes/s."""
    # Weights that learn and their moments; the model at the end.
    saved = 12 * job.checkpoints * trained(job, shape) + 4 * shape.parameters if job.steps else 0
    return Seconds(
        sampling=_batch(job, shape, hardware, cores) if job.steps else 0.0,
        learning=learning(job, shape, hardware, cores) if job.steps else 0.0,
        evaluating=sum(_benchmarks(job, shape, hardware, cores)),
        fixed=start + saved / disk,
        batches=job.batches,
        steps=job.steps,
        overlap=job.lookahead,
    )


def learning_flops(job: Job, shape: Shape) -> float:
    """Of one optimizer step: the body once forward, twice backward, once again with gradient checkpointing, and once
    for the reference. The head, for completion tokens only: once forward, twice backward, and once for the reference;
    once again for each whose logits are not kept (lm_head). With an adapter, frozen matrices and the head are gone
    through backward once, and the adapter's as the body without a reference."""
    body = forward(shape, job.read, job.prompt + job.completion) * (3 + job.checkpointing + job.reference)
    if job.rank:
        adapter = 2 * trained(job, shape) * (3 + job.checkpointing)
        body += job.read * (adapter - 2 * shape.layers * shape.layer)
    again = job.together * shape.vocabulary > CHUNK
    products = 3 + job.reference + again + (again and job.exact) - bool(job.rank)
    return body + 2 * shape.head * job.tokens * products


def learning(job: Job, shape: Shape, hardware: Hardware, cores: int = 1) -> float:
    """Of one optimizer step."""
    speed = hardware.peak[job.precision] * hardware.learn_share * cores * job.processes
    microbatches = math.ceil(job.read / job.microbatch / job.processes)
    host = microbatches * shape.layers * KERNELS["learn"] * hardware.kernel_s
    optimizer = OPTIMIZER_BYTES * trained(job, shape) / job.processes / _bandwidth(hardware, cores)
    return learning_flops(job, shape) / speed + host + optimizer


def decoding(
    job: Job,
    shape: Shape,
    hardware: Hardware,
    cores: int,
    prompts: float,
    group: int,
    prompt: float,
    completion: float,
    longest: int,
) -> float:
    """Of sampling `group` completions of each prompt: the prompts are read once each; a step for one token of all
    sequences side by side reads all weights and costs the host a fixed time; each token costs its products and the
    reading of the keys and values before it.

    Steps: transformers' batches each last as long as their longest completion. vLLM fills up what has ended: as many as
    the tokens need, and a tail from the mean to the longest at the end.
    """
    share = job.engines if job.dedicated else 1
    total = prompts * group / share
    if not total:
        return 0.0
    together = min(total, job.sequences)
    steps = total / together * completion + longest - completion if job.vllm else math.ceil(total / together) * longest
    speed = hardware.peak[job.precision] * hardware.decode_share * cores
    speed *= job.tensor_parallel
    bandwidth = _bandwidth(hardware, cores)
    host = hardware.engine_step_s if job.vllm else shape.layers * KERNELS["step"] * hardware.kernel_s
    weights = engine_weights(job, shape) if job.vllm else 4 * shape.parameters
    cached = shape.cache_bytes(WIDTH[job.precision]) * (prompt + completion / 2) / job.tensor_parallel
    token = (2 * shape.head + forward(shape, 1, 2 * prompt + completion)) / speed + cached / bandwidth
    reading = forward(shape, prompts / share * prompt, prompt) / speed
    return reading + steps * (host + weights / bandwidth) + total * completion * token


def _batch(job: Job, shape: Shape, hardware: Hardware, cores: int) -> float:
    """Of one rollout batch. Dynamic sampling's rounds are each as long as their longest completion."""
    prompts = job.prompts * job.groups / job.rounds
    text = (job.prompt, job.completion, job.longest)
    sampled = job.rounds * decoding(job, shape, hardware, cores, prompts, job.group, *text)
    graded = job.prompts * job.groups * job.group * job.grading_s / _graders(hardware)
    synced = shape.parameters * WIDTH[job.precision] / TRANSFER if job.vllm else 0.0
    return sampled + graded + synced


TRANSFER = 1e10
"""Bytes/s at which weights come to an engine, through the host's memory."""
AT_ONCE = 64
"""Questions that an evaluation samples together: carerft.evaluation.evaluate.Protocol."""


def _benchmarks(job: Job, shape: Shape, hardware: Hardware, cores: int) -> list[float]:
    """Of each benchmark: pieces of 64 questions, each sampled, graded and written before the next; choices are read."""
    found = []
    for b in job.benchmarks:
        piece = min(AT_ONCE, b.questions)
        text = (b.prompt, b.completion, b.longest)
        sampled = b.questions / piece * decoding(job, shape, hardware, cores, piece, job.samples, *text)
        graded = b.questions * job.samples * b.grading_s / _graders(hardware)
        speed = hardware.peak[job.precision] * hardware.decode_share * cores
        scored = forward(shape, b.questions * (b.prompt + b.choices), b.prompt) / speed if b.choices else 0.0
        found.append(sampled + graded + scored)
    return found


def _bandwidth(hardware: Hardware, cores: int) -> float:
    return hardware.bandwidth * hardware.bandwidth_share * cores


def _graders(hardware: Hardware) -> int:
    """Processes that grade: one for each core. Beside a GPU, eight are counted on."""
    return hardware.count if hardware.kind == "cpu" else 8 * hardware.count
