"""Bytes on each device, by component, while sampling and while learning.

The learner holds policy, reference and optimizer throughout. A colocated engine has its memory while it samples, and
sleeps while the learner works; gradients, activations and the head's blocks are there while the learner works.
"""

from dataclasses import dataclass

from carerft.planning.assumptions import GIB, Hardware
from carerft.planning.job import Job
from carerft.planning.shapes import Shape
from carerft.training.adamw_8bit_shapes import BLOCK, is_blocked

CHUNK = 2**26  # logits of a chunk, and of a tile: carerft.objective.lm_head, which takes seconds to import
TILE = 2**23
WIDTH = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes of one device by component, in each phase; phases that this device doesn't have are empty.

    wanting: what an engine lacks inside the share of memory that it may take, or 0.
    """

    device: str
    limit: float
    phases: dict[str, dict[str, float]]
    wanting: float = 0.0

    @property
    def peak(self) -> float:
        return max(sum(parts.values()) for parts in self.phases.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.limit and not self.wanting


def memory(job: Job, shape: Shape, hardware: Hardware, cores: int = 1) -> list[Memory]:
    """Of the learner's device (one of them), and of an engine's where it has its own. cores: of a CPU, for this run."""
    limit = hardware.memory * cores
    found = []
    if job.steps or not job.dedicated:
        state, reserved = resident(job, shape), {"context, fragmentation": hardware.reserved}
        phases = {}
        if job.vllm and not job.dedicated:
            phases["sampling"] = state | engine(job, shape, limit) | reserved
        elif not job.vllm:
            phases["sampling"] = state | own_sampler(job, shape) | reserved
        if job.steps:
            # A GPU's is copied into the CPU's memory, which is not planned.
            copied = {"copy to be written": _written(job, shape)} if job.aside and hardware.kind == "cpu" else {}
            phases["learning"] = state | learning(job, shape) | copied | reserved
        lacking = 0.0 if job.dedicated or not job.vllm else wanting(job, shape, limit)
        found.append(Memory("learner", limit, phases, lacking))
    if job.dedicated:
        parts = engine(job, shape, limit) | {"context, fragmentation": hardware.reserved}
        found.append(Memory("engine", limit, {"sampling": parts}, wanting(job, shape, limit)))
    return found


def resident(job: Job, shape: Shape) -> dict[str, float]:
    """What the learner holds all the time: 4 bytes a weight for the float32 master, Adam's two moments, and the
    reference. Shared out evenly over the learner's processes; rollout=transformers, which else samples from the
    learner's weights, then has a copy of all in each. With an adapter, moments are of its weights alone, and the
    reference is the policy without it, held in bfloat16 where that is as exact (as for Qwen2.5's own files)."""
    share = 4 * shape.parameters / job.processes
    if not job.steps:  # an evaluation with an engine leaves its own copy of the weights on the CPU
        return {} if job.vllm else {"weights, float32": share}
    frozen = job.rank and in_half(job)
    weights = {"weights, mostly bfloat16": mostly_half(shape)} if frozen else {"weights, float32": share}
    adapter = {"adapter, float32": 4 * trained(job, shape) / job.processes} if job.rank else {}
    reference = reference_copy(job, shape) if job.reference and not job.rank else {}
    kept = {name: size / job.processes for name, size in moments(job, shape).items()}
    copied = {"sampler's weights, float32": 4 * shape.parameters} if job.processes > 1 and not job.vllm else {}
    return {**weights, **adapter, **kept, **reference, **copied}


def reference_copy(job: Job, shape: Shape) -> dict[str, float]:
    """A frozen copy of all weights."""
    if in_half(job):
        return {"reference, mostly bfloat16": mostly_half(shape)}
    return {"reference, float32": 4 * shape.parameters / job.processes}


def in_half(job: Job) -> bool:
    """Whether frozen weights are held in bfloat16: carerft.model.loading.round_matrices."""
    return job.precision == "bfloat16" and job.processes == 1


def mostly_half(shape: Shape) -> float:
    """2 bytes for each weight in a matrix, but for a head that is the embedding; 4 for each other."""
    return 4 * shape.parameters - 2 * (shape.layers * shape.layer + (0 if shape.tied else shape.head))


def moments(job: Job, shape: Shape) -> dict[str, float]:
    """Adam's two of each weight that learns, in all processes together: in float32 8 bytes. In 8 bits a byte each, and
    4 for each block of each; norms, biases and matrices whose rows are not whole blocks stay float32.
    """
    if job.optimizer == "adamw":
        return {"Adam's moments, float32": 8 * trained(job, shape)}
    blocked = sum(count * rows * width for count, (rows, width) in _learning(job, shape) if is_blocked((rows, width)))
    return {"Adam's moments, 8 bits": 2 * (1 + 4 / BLOCK) * blocked + 8 * (trained(job, shape) - blocked)}


def _learning(job: Job, shape: Shape) -> list[tuple[int, tuple[int, int]]]:
    """The matrices that learn: how many of (rows, width) there are."""
    if job.rank:
        thin = [pair for inward, outward in adapted(job, shape) for pair in ((job.rank, inward), (outward, job.rank))]
        return [(shape.layers, pair) for pair in thin]
    layers = [(shape.layers, (outward, inward)) for inward, outward in shape.matrices.values()]
    return [*layers, (1 if shape.tied else 2, (shape.vocabulary, shape.hidden))]


def _written(job: Job, shape: Shape) -> float:
    """Bytes of a checkpoint's tensors, in each process: the weights that learn, and moments."""
    return (4 * trained(job, shape) + sum(moments(job, shape).values())) / job.processes


def trained(job: Job, shape: Shape) -> int:
    """Weights that learn: all, or an adapter's, rank times the widths of each matrix that has one."""
    if not job.rank:
        return shape.parameters
    return shape.layers * job.rank * sum(inward + outward for inward, outward in adapted(job, shape))


def adapted(job: Job, shape: Shape) -> list[tuple[int, int]]:
    """The widths of those matrices of a layer that have an adapter."""
    chosen = job.targets or tuple(shape.matrices)
    return [widths for name, widths in shape.matrices.items() if job.rank and name in chosen]


def learning(job: Job, shape: Shape) -> dict[str, float]:
    """What comes and goes with an optimizer step."""
    parts = {"gradients, float32": 4 * trained(job, shape) / job.processes}
    if job.precision == "bfloat16" and not (job.rank and in_half(job)):
        # Autocast keeps a copy of each weight until the pass ends, unless it is in bfloat16 already. Of a layer at a
        # time where weights are sharded (the head's lie whole, too), or layers are gone through again.
        if job.processes > 1:
            copied = shape.layer + shape.head
        elif job.checkpointing:
            copied = shape.layer
        else:
            copied = shape.parameters
        parts["weights, bfloat16 copies"] = 2 * copied
    return parts | {"activations": activations(job, shape), "logits and head": head(job, shape)}


def activations(job: Job, shape: Shape) -> float:
    """Bytes that autograd keeps of one microbatch's body.

    Of each token and layer, with H hidden, Q query and K key widths, I intermediate, counted over transformers' Qwen2
    and checked against what autograd really saves (tests/test_plan.py). The residual stream is float32 in both
    precisions. Per norm: its input and the normalised input, 8 H. In float32, attention: input 4 H; queries, keys and
    values of all heads, output 16 Q; MLP: input 4 H, gate, its SiLU, up, their product 16 I. In bfloat16: a copy of the
    input for each projection 5 x 2 H; 10 Q; 8 I.
    With gradient checkpointing: each layer's input, 4 H, and one layer whole. With an adapter: the normalised inputs
    not, 2 x 4 H, but A's output in each matrix that has one.
    """
    hidden, queries, intermediate = shape.hidden, shape.queries, shape.intermediate
    if job.precision == "bfloat16":
        layer = 26 * hidden + 10 * queries + 8 * intermediate
    else:
        layer = 24 * hidden + 16 * queries + 16 * intermediate
    if job.rank:
        layer += WIDTH[job.precision] * job.rank * len(adapted(job, shape)) - 8 * hidden
    if job.checkpointing:
        return job.together * (4 * hidden * shape.layers + layer)
    return job.together * layer * shape.layers


def head(job: Job, shape: Shape) -> float:
    """Bytes of the LM head at its peak: a chunk of float32 logits of policy and reference each, that chunk in the
    precision of the products, four tiles, and the float32 gradient of a head that learns; in bfloat16 also copies of
    both heads.
    """
    chunk, width = min(CHUNK, job.together * shape.vocabulary), WIDTH[job.precision]
    logits = 4 * chunk * (2 if job.reference else 1) + (width * chunk if width < 4 else 0)
    held = in_half(job) and not shape.tied  # in bfloat16 already, where it is frozen
    copies = 2 * shape.head * (int(not (held and job.rank)) + int(job.reference and not held)) if width < 4 else 0
    gradient = 0 if job.rank else 4 * shape.head
    return logits + 4 * 4 * min(TILE, chunk) + gradient + copies


def own_sampler(job: Job, shape: Shape) -> dict[str, float]:
    """Of rollout=transformers: keys and values of the sequences decoded together, in the room that is made for them,
    three float32 arrays of their logits, and their cumulative sum in float64."""
    rows = min(job.sequences, max(job.prompts * job.group, 64 * job.samples))
    room = max([job.prompt + job.longest, *(b.prompt + b.longest for b in job.benchmarks)])
    cache = rows * max(room, 256) * shape.cache_bytes(WIDTH[job.precision])
    return {"keys and values": cache, "logits": rows * shape.vocabulary * (3 * 4 + 8)}


def engine(job: Job, shape: Shape, limit: float) -> dict[str, float]:
    """Of vLLM: its weights, and what remains of its share of the device (or what it was told) for keys and values."""
    weights = engine_weights(job, shape)
    if job.cache_gib is not None:
        return {"engine's weights": weights, "engine's keys and values": job.cache_gib * GIB}
    return {"engine's weights": weights, "engine's keys and values": max(0.0, job.utilization * limit - weights)}


def engine_weights(job: Job, shape: Shape) -> float:
    return shape.parameters * WIDTH[job.precision] / job.tensor_parallel


def wanting(job: Job, shape: Shape, limit: float) -> float:
    """Bytes that an engine lacks: vLLM starts only if its cache holds one sequence of the whole context."""
    needed = (job.context or shape.context) * shape.cache_bytes(WIDTH[job.precision]) / job.tensor_parallel
    if job.cache_gib is not None:
        return max(0.0, needed - job.cache_gib * GIB)
    return max(0.0, engine_weights(job, shape) + needed - job.utilization * limit)
