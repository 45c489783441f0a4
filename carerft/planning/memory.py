"""Bytes on each device, by component, while sampling and while learning.

The learner holds the policy, the reference and the optimizer's state throughout. A colocated engine holds its memory
while it samples and sleeps while the learner works; gradients, activations and logits exist while the learner works.
An evaluation of a base model needs less than the training that starts from it.
"""

from dataclasses import dataclass

from carerft.objective.lm_head import CHUNK_ELEMENTS, TILE_ELEMENTS
from carerft.planning.assumptions import GIB, Device
from carerft.planning.job import Job
from carerft.planning.shapes import Shape
from carerft.training.adamw_8bit_shapes import BLOCK

WIDTH = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes of one device by component, for each use of a device: such as "learner, sampling".

    limit: of each device. shortage: what an engine lacks within the share of its device that it may use, or 0.
    """

    limit: float
    uses: dict[str, dict[str, float]]
    shortage: float

    @property
    def peak(self) -> float:
        return max(sum(parts.values()) for parts in self.uses.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.limit and not self.shortage


def memory(job: Job, shape: Shape, device: Device) -> Memory:
    """The memory of one of the learner's devices and, if engines are dedicated, of one of theirs."""
    limit, reserved = device.memory_gib * GIB, {"context, fragmentation": device.reserved_gib * GIB}
    sampling, shortage = _engine(job, shape, device) if job.engine else (_own_sampler(job, shape, device), 0.0)
    state = resident(job, shape)
    uses = {"learner, learning": state | learning(job, shape) | reserved}
    if job.dedicated:
        return Memory(limit, uses | {"engine, sampling": sampling | reserved}, shortage)
    return Memory(limit, {"learner, sampling": state | sampling | reserved} | uses, shortage)


def resident(job: Job, shape: Shape) -> dict[str, float]:
    """What the learner holds throughout: float32 weights, Adam's two moments, and the reference.

    The learner's processes share all of it equally; with rollout=transformers each has a copy of all weights besides,
    to sample from. 8-bit moments are a byte each, and 4 for the scale of each block. With LoRA the moments are those of
    the adapter, in float32; the reference is the policy without its adapter; and frozen matrices are in bfloat16 where
    that is exact, as for Qwen2.5's own files.
    """
    processes, weights = job.learner.processes, 4 * shape.parameters
    rounded = weights - 2 * (shape.layers * shape.layer + (0 if shape.tied else shape.head))  # a tied head stays
    parts: dict[str, float] = {"weights, float32": weights / processes}
    if job.model.adapter:
        if rounds_frozen(job):
            parts = {"weights, mostly bfloat16": rounded}
        parts["adapter, float32"] = 4 * trained(job, shape) / processes
    elif job.reference and rounds_frozen(job):
        parts["reference, mostly bfloat16"] = rounded
    elif job.reference and not (job.learner.reference_offload and processes > 1):
        parts["reference, float32"] = weights / processes
    if job.learner.optimizer == "adamw_8bit" and not job.model.adapter:
        parts["Adam's moments, 8 bits"] = 2 * (1 + 4 / BLOCK) * shape.parameters / processes
    else:
        parts["Adam's moments, float32"] = 8 * trained(job, shape) / processes
    if processes > 1 and not job.engine:
        parts["sampler's weights, float32"] = weights
    return parts


def rounds_frozen(job: Job) -> bool:
    """Whether frozen matrices are held in bfloat16: see carerft.model.loading.round_matrices."""
    return job.learner.precision == "bfloat16" and job.learner.processes == 1


def trained(job: Job, shape: Shape) -> int:
    """The number of weights that learn: all, or those of an adapter in every matrix of the layers."""
    if not job.model.adapter:
        return shape.parameters
    return shape.layers * job.model.lora_rank * sum(map(sum, shape.matrices))


def learning(job: Job, shape: Shape) -> dict[str, float]:
    """What exists during an optimizer step only."""
    parts: dict[str, float] = {"gradients, float32": 4 * trained(job, shape) / job.learner.processes}
    if job.learner.precision == "bfloat16" and not (job.model.adapter and rounds_frozen(job)):
        # Autocast keeps a copy of each float32 weight until the pass ends: of one layer at a time where weights are
        # sharded (beside the head, which is gathered as well), or where layers are computed again.
        if job.learner.processes > 1:
            copied = shape.layer + shape.head
        else:
            copied = shape.layer if job.learner.gradient_checkpointing else shape.parameters
        parts["weights, bfloat16 copies"] = 2 * copied
    return parts | {"activations": activations(job, shape), "logits and head": head(job, shape)}


def activations(job: Job, shape: Shape) -> float:
    """Bytes that autograd keeps of one microbatch in the body.

    For each token and layer, with H hidden, Q query and I intermediate width, counted over transformers' Qwen2 and
    checked against what autograd saves (tests/test_plan_numbers.py). The residual stream is float32 in both. Each
    norm: its input and the normalised input, 8 H. In float32, attention: input 4 H; queries, keys and values of all
    heads, output 16 Q; MLP: input 4 H; gate, its SiLU, up, their product 16 I. In bfloat16: a copy of both inputs
    (carerft.model.casts) 2 x 2 H; 10 Q; 8 I.
    Gradient checkpointing: the input of each layer, 4 H, and one complete layer. An adapter: no normalised inputs,
    2 x 4 H less, and A's output for each matrix.
    """
    hidden, queries, intermediate = shape.hidden, shape.queries, shape.intermediate
    if job.learner.precision == "bfloat16":
        layer = 20 * hidden + 10 * queries + 8 * intermediate
    else:
        layer = 24 * hidden + 16 * queries + 16 * intermediate
    if job.model.adapter:
        layer += WIDTH[job.learner.precision] * job.model.lora_rank * len(shape.matrices) - 8 * hidden
    if job.learner.gradient_checkpointing:
        return job.microbatch_tokens * (4 * hidden * shape.layers + layer)
    return job.microbatch_tokens * layer * shape.layers


def head(job: Job, shape: Shape) -> float:
    """Bytes of the LM head at its peak: one chunk of float32 logits of the policy and one of the reference, the chunk
    in the precision of the products, four tiles, and the float32 gradient of a head that learns; in bfloat16 also
    copies of both heads."""
    half, adapter = job.learner.precision == "bfloat16", bool(job.model.adapter)
    chunk = min(CHUNK_ELEMENTS, job.microbatch_tokens * shape.vocabulary)
    logits = chunk * (4 + 4 * job.reference + 2 * half) + 4 * 4 * min(TILE_ELEMENTS["cuda"], chunk)
    rounded = rounds_frozen(job) and not shape.tied  # a frozen head is in bfloat16 already
    copies = 2 * half * (int(not (rounded and adapter)) + int(job.reference and not rounded))
    return logits + shape.head * (copies + 4 * (not adapter))


def _own_sampler(job: Job, shape: Shape, device: Device) -> dict[str, float]:
    """rollout=transformers: the keys and values of all sequences decoded together, in the space that is reserved for
    them, three float32 arrays of their logits, and the cumulative sum of these in float64; in bfloat16, autocast's
    copy of each float32 matrix."""
    sequences = min(job.side_by_side(device), max(job.rollout.prompts_per_batch * job.group_size, 64 * job.samples))
    space = max(256, *(data.prompt + data.max_tokens for data in (job.task, *job.benchmarks)))
    cache = sequences * space * shape.cache_bytes(WIDTH[job.learner.precision])
    parts = {"keys and values": cache, "logits": sequences * shape.vocabulary * (3 * 4 + 8)}
    if job.learner.precision == "bfloat16":
        rounded = job.model.adapter and rounds_frozen(job)  # all but a tied head: see `resident`
        layers = 0 if rounded else shape.layers * shape.layer
        parts["weights, bfloat16 copies"] = 2 * (layers + (0 if rounded and not shape.tied else shape.head))
    return parts


def _engine(job: Job, shape: Shape, device: Device) -> tuple[dict[str, float], float]:
    """vLLM's weights, the most that a forward pass of its takes, and the rest of its share of the device (or
    rollout.kv_cache_gib) for keys and values; and the bytes that this lacks: vLLM starts only if its cache can hold one
    sequence of the full context."""
    engine, width = job.engine, WIDTH[job.learner.precision]
    assert engine is not None
    weights, needed = shape.parameters * width / engine.tensor_parallel_size, profile(job, shape, device)
    cache = engine.gpu_memory_utilization * device.memory_gib * GIB - weights - needed
    if engine.kv_cache_gib is not None:
        cache = engine.kv_cache_gib * GIB
    sequence = job.context(shape) * shape.cache_bytes(width) / engine.tensor_parallel_size
    parts = {"engine's weights": weights, "engine's forward pass": needed, "engine's keys and values": max(0.0, cache)}
    return parts, max(0.0, sequence - cache)


def profile(job: Job, shape: Shape, device: Device) -> float:
    """Bytes of the forward pass that vLLM tries at its start, with as many tokens as it will ever read at once, and
    sets aside. For each token: the residual stream and its norm, 2 H; gate and up, and their product, 3 I, which are
    shared out with the weights. After these layers, float32 logits of every sequence."""
    assert job.engine is not None
    numbers = 2 * shape.hidden + 3 * shape.intermediate / job.engine.tensor_parallel_size
    layer = device.engine_tokens * numbers * WIDTH[job.learner.precision]
    return max(layer, job.side_by_side(device) * shape.vocabulary * 4)
