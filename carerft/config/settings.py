"""What can be set: a dataclass per command and per group of `conf/`.

A setting is declared once, as a field: its type, its default, its constraint (the metadata, see
`carerft.config.constraints`), and the comment above it, which says what it means. YAML files hold only what differs.
Hydra takes the classes for its schemas, and refuses a key that a schema doesn't have and a value of the wrong type.

A YAML file of an algorithm, a regularizer, a rollout or a task takes its schema by
`defaults: [/schema/regularizer@_here_]`. A class of your own with parameters of its own needs no schema: its YAML file
then lists the keys that it may be given.
"""

from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from carerft.objective import settings as objective
from carerft.objective.schedules import SCHEDULES

MISSING: Any = "???"  # OmegaConf's, of a key that must be given. A machine that only learns needs neither it nor Hydra.
PRECISIONS = {"choices": ("float32", "bfloat16")}
MOST_TOKENS = 16384  # of learner.tokens_per_microbatch, where it is null
OWN_SEQUENCES = 256  # of rollout.batch_size, where it is null, with rollout=transformers
SEEDS = {"least": 0, "most": 2**32 - 1}  # what NumPy's random generators take


@dataclass
class ModelSettings:
    """A causal language model in Hugging Face format."""

    # What tables and run names call it.
    name: str = MISSING
    # Hub name or local directory; "world" is the built-in tiny base model.
    path: str = MISSING
    # Hub revision: a branch, a tag or a commit.
    revision: str | None = None
    # Of the built-in model: the seed of its pretraining. 0 is shipped, others are built once and cached.
    base: int = field(default=0, metadata=SEEDS)
    # transformers' attention implementation; "eager" for models without torch's (gpt-oss, Bloom, MPT).
    attention: str = "sdpa"
    # Put prompts into the model's chat template. null: if the model's own configuration ends a generation with the
    # token with which the template ends a turn (a base model's doesn't, though it has a template).
    chat: bool | None = None
    # Ask for a confidence after each answer: take the prompt `confidence` of tasks that have it, unless another was
    # chosen, and of the built-in model the base that states confidences.
    confidence: bool = False
    # A learning rate that suits a model of this size.
    learning_rate: float = MISSING
    # train: "lora" trains a low-rank adapter beside frozen weights, by peft. The base model is then the policy without
    # its adapter, and needs no second copy. learning_rate stays the one above; for large models, whose learning rate is
    # small, ten times as much is usual.
    adapter: str | None = field(default=None, metadata={"choices": ("lora",), "why": "must be lora or null"})
    # The rank of the adapter's products.
    lora_rank: int = field(default=32, metadata={"least": 1})
    # The adapter's product is multiplied by lora_alpha / lora_rank. There is no dropout: the importance ratio and the
    # penalty would then compare other policies than the one that sampled.
    lora_alpha: int = field(default=64, metadata={"least": 1})
    # All linear layers but the head, or some by name: [q_proj,v_proj].
    lora_targets: Any = "all-linear"


@dataclass(frozen=True)
class AlgorithmSettings(objective.AlgorithmSettings):
    """An algorithm, and the class that implements it."""

    _target_: str = "carerft.objective.algorithms.Algorithm"


@dataclass(frozen=True)
class RegularizerSettings(objective.RegularizerSettings):
    """A regularizer, and the class that implements it."""

    _target_: str = MISSING


@dataclass(frozen=True)
class SkewRegularizerSettings(objective.SkewSettings):
    """As RegularizerSettings, with a mixture for its reference."""

    _target_: str = MISSING


@dataclass
class RewardSettings:
    """What a completion earns."""

    # Functions whose weighted sum is the reward: "correctness" (the grader's verdict as 1 or 0), "ternary",
    # "calibrated", or functions of your own, mine.py:score, with the signature of TRL's GRPOTrainer.
    functions: list[str] = field(default_factory=lambda: ["correctness"])
    # One number for each function; null: 1 for each.
    weights: list[float] | None = None
    # A function of your own that takes longer for a batch counts as hung.
    timeout_s: float = field(default=600.0, metadata={"above": 0})
    # ternary: of a right answer, and of refusing a question that has none.
    right: float = 1.0
    # ternary: of refusing a question that has an answer.
    refused: float = 0.0
    # ternary: of a wrong answer.
    wrong: float = -1.0
    # calibrated: the proper score that the stated confidence adds to 1 or 0 for the answer. Each lies between -1, which
    # is also that of no readable confidence, and 0.
    score: str = field(default="brier", metadata={"choices": ("brier", "log", "spherical")})
    # calibrated, score=log: confidences are clipped to [log_clip, 1 - log_clip].
    log_clip: float = field(default=0.01, metadata={"above": 0, "below": 0.5})


@dataclass
class KeepSettings:
    """What is kept of the completions that a training samples: samples/step_<n>.jsonl. The group is also called
    `samples`: samples.every=10, or in a file `samples: {every: 10}`."""

    # Steps between the batches of which some are kept; null: none. Also written samples.every=10. A batch that several
    # steps learn from has the number of the first of them: samples.every=10 may leave step_9.jsonl.
    every: int | None = field(default=None, metadata={"least": 1})
    # Prompts of such a batch, each with all of its completions.
    prompts: int = field(default=8, metadata={"least": 1})


@dataclass
class RolloutSettings:
    """What samples completions."""

    # What tables call it.
    name: str = MISSING
    # Prompts sampled at once, each with algorithm.group_size completions.
    prompts_per_batch: int = field(default=32, metadata={"least": 1})
    # A completion is cut after this many tokens.
    max_tokens: int | None = field(default=None, metadata={"least": 1})
    # Whether a completion that was cut can earn a reward, for a number that it happens to hold.
    reward_truncated: bool = False
    # Sequences decoded side by side; null: 256 or, with vLLM, its own default, 1,024 on most GPUs of 70 GiB or more.
    batch_size: int | None = field(default=None, metadata={"least": 1})
    # 1: sample the next batch while the learner works on this one, with weights one batch old.
    lookahead: int = field(
        default=0,
        metadata={
            "choices": (0, 1),
            "why": "must be 0 or 1",
            "remedy": "write rollout.lookahead=0 or 1: batches sampled earlier would be staler than is corrected for",
        },
    )
    # Truncated importance sampling, for samplers whose probabilities are not quite the learner's: the objective's ratio
    # is then to the learner's own probabilities at the batch's start, and a weight corrects for the sampler. "none":
    # the ratio is to the sampler's probabilities. "auto": per token with lookahead, else none; but for a ratio per
    # sequence (GSPO) in bfloat16, whose bounds are narrower than rounding, the ratio is to the learner's own, too,
    # without weights. This costs a forward pass over what later steps learn from the batch.
    importance_correction: str = field(default="auto", metadata={"choices": ("auto", "none", "token", "sequence")})
    # The upper bound of its weights.
    importance_cap: float = field(default=2.0, metadata={"above": 0, "remedy": "2 is usual"})
    # Training needs 1.0: with any other value, the policy that samples is not the policy that learns.
    temperature: float = field(default=1.0, metadata={"above": 0, "remedy": "1 is the policy itself"})
    # Sample from the likeliest tokens alone that have this probability together; 1 is all.
    top_p: float = field(
        default=1.0, metadata={"above": 0, "most": 1, "remedy": "give a number of at most 1; 1 is the policy itself"}
    )
    # Train with another temperature or top_p all the same.
    allow_biased_sampling: bool = False

    @property
    def correction(self) -> str:
        """importance_correction with "auto" resolved."""
        if self.importance_correction != "auto":
            return self.importance_correction
        return "token" if self.lookahead else "none"


@dataclass
class VllmSettings(RolloutSettings):
    """vLLM samples completions, on the device (GPU or CPU) that the installed package is built for."""

    # "colocated": in the learner's process, on its device. "dedicated": in processes of their own; the engines take the
    # first engines * tensor_parallel_size GPUs, and the learner needs another: learner.device=cuda:2, for two engines.
    placement: str = field(default="colocated", metadata={"choices": ("colocated", "dedicated")})
    # dedicated: how many engines share a batch's prompts.
    engines: int = field(default=1, metadata={"least": 1})
    # Devices that share an engine's weights.
    tensor_parallel_size: int = field(default=1, metadata={"least": 1})
    # Tokens of prompt and completion together; null: as many as the longest prompt of task and benchmarks needs.
    max_model_len: int | None = field(default=None, metadata={"least": 1})
    # Share of a device's memory for an engine's weights and cache together. 0.35 fits beside a 3B learner on 80 GB; 0.9
    # suits an engine that has its device alone.
    gpu_memory_utilization: float = field(
        default=0.35, metadata={"above": 0, "most": 1, "why": "it is a share of the device's memory"}
    )
    # GiB of keys and values, whatever that share; null on a CPU: 1.
    kv_cache_gib: float | None = field(default=None, metadata={"above": 0})
    # No compilation, no CUDA graphs; null: only on a CPU.
    enforce_eager: bool | None = None
    # How weights come to the engines: "reload", through the learner's memory, or, for dedicated engines on GPUs,
    # "nccl", from GPU to GPU (not yet run on GPUs).
    weight_transfer: str = field(default="reload", metadata={"choices": ("reload", "nccl")})
    # Compare log-probabilities of engine and policy after every weight sync, not only after the first.
    verify_sync: bool = False
    # dedicated: an engine that takes longer for a request counts as hung.
    timeout_s: float = field(default=1800.0, metadata={"above": 0})
    # dedicated: lost engines replaced during one request, at most.
    max_restarts: int = field(default=2, metadata={"least": 0})


@dataclass
class OpenaiSettings(RolloutSettings):
    """`carerft evaluate`: a server with OpenAI's API answers; no model is loaded."""

    # The server's address, up to and including its /v1.
    url: str = "http://localhost:8000/v1"
    # What the server calls the model; null: the only one that it serves.
    model: str | None = None
    # Ask in a chat; false: complete the prompt's text, for base models.
    chat: bool = True
    # A request that takes longer has failed.
    timeout_s: float = field(default=600.0, metadata={"above": 0})


@dataclass
class RecordedSettings(RolloutSettings):
    """`carerft score`: the answers stand in a file already."""

    # Samples of lm-evaluation-harness, of a batch of OpenAI's API, or plain JSON lines.
    path: str = MISSING


@dataclass
class LearnerSettings:
    """How the weights are updated."""

    # At the first steps after the warm-up. conf/learner takes it from the model's file.
    learning_rate: float = field(default=MISSING, metadata={"least": 0})
    # How the learning rate decays to 0 after the warm-up.
    schedule: str = field(default="constant", metadata={"choices": SCHEDULES})
    # Steps in which the learning rate grows from 0.
    warmup_steps: int = field(default=0, metadata={"least": 0})
    # Of AdamW, decoupled.
    weight_decay: float = field(default=0.0, metadata={"least": 0})
    # "adamw", or "adamw_8bit": its two moments in a byte each, by torchao.
    optimizer: str = field(default="adamw", metadata={"choices": ("adamw", "adamw_8bit")})
    # Decay of the mean of the gradients.
    adam_beta1: float = field(default=0.9, metadata={"above": 0, "below": 1})
    # Decay of the mean of their squares.
    adam_beta2: float = field(default=0.999, metadata={"above": 0, "below": 1})
    # Added to the root of the latter.
    adam_eps: float = field(default=1e-8, metadata={"least": 0})
    # The gradient is scaled down to this norm.
    max_grad_norm: float = field(
        default=1.0, metadata={"above": 0, "remedy": "use a large number, such as 1e9, for no clipping"}
    )
    # Optimizer steps that share out one rollout batch's prompts.
    updates_per_batch: int = field(default=2, metadata={"least": 1})
    # Passes over a rollout batch.
    epochs: int = field(default=1, metadata={"least": 1})
    # Tokens packed into one forward pass; never changes the loss. null: 16384 or, on a CPU, a half, a quarter, ... of
    # it, so many that learning needs no more than half of the machine's memory. The manifest holds what was taken.
    tokens_per_microbatch: int | None = field(default=None, metadata={"least": 1})
    # "bfloat16": autocast over float32 master weights. conf/learner takes it on a GPU that has it (compute capability
    # 8.0 or higher), but for the built-in model.
    precision: str = field(default="float32", metadata=PRECISIONS)
    # Less memory, more time. conf/learner takes it on a GPU, but for the built-in model.
    gradient_checkpointing: bool = False
    # Fuse what lies between the matrix products, by torch.compile: a minute at the start, and less memory traffic at
    # each step (not yet run on a GPU).
    compile: bool = False
    # Read a prompt once for its completions in a microbatch.
    share_prompts: bool = True
    # "auto": cuda where there is one.
    device: str = "auto"
    # Also measure the divergence from the base model where the regularizer needs none.
    monitor_reference: bool = True
    # Steps between checkpoints; null: checkpoint_minutes decides. The last step always has one.
    checkpoint_every: int | None = field(default=None, metadata={"least": 1})
    # Minutes between checkpoints, at least.
    checkpoint_minutes: float = field(default=10.0, metadata={"above": 0})
    # Checkpoints that are kept, the newest ones.
    keep_checkpoints: int = field(default=2, metadata={"least": 1})
    # Learn on while a checkpoint is written, from a copy in the CPU's memory: 12 bytes a trained weight. null: on a
    # GPU.
    async_checkpoints: bool | None = None
    # Processes on this machine, one for each GPU, that share out weights and work (FSDP2; not yet run on GPUs). Where
    # torchrun starts the run, torchrun's number counts.
    processes: int = field(default=1, metadata={"least": 1})
    # Several processes: keep their parts of the reference in the CPU's memory.
    reference_offload: bool = False
    # Several processes: how long one waits for another within a step before the run fails (an hour, at the start of the
    # run).
    timeout_s: float = field(default=600.0, metadata={"least": 1})
    # Several processes: how often they are started again, from the last checkpoint, after one died.
    max_restarts: int = field(default=0, metadata={"least": 0})


@dataclass
class TaskSettings:
    """A task or a benchmark, and the class that implements it, which takes the file's other keys as its arguments."""

    name: str = MISSING
    _target_: str = MISSING
    # A completion is cut after this many tokens. Of a benchmark with choices, 0: none is sampled (MC1 and MC2 alone).
    max_tokens: int = MISSING


@dataclass
class TrackerSettings:
    """Where metrics are shown, beside metrics.jsonl, which is always written."""

    # What shows them.
    name: str = field(default="none", metadata={"choices": ("none", "wandb", "tensorboard")})
    # W&B's project.
    project: str = "carerft"
    # W&B's user or team; null: the key's own.
    entity: str | None = None
    # Of W&B: "online" sends as it happens; "disabled" is none.
    mode: str = field(default="offline", metadata={"choices": ("offline", "online", "disabled")})


@dataclass
class DuringSettings:
    """What differs while training; null: as after it."""

    # Questions per benchmark, the first ones.
    limit: int | None = field(default=None, metadata={"least": 1})
    # Completions per question.
    samples: int | None = field(default=None, metadata={"least": 1})


@dataclass
class EvaluationSettings:
    """How a model is measured."""

    # train: also measure before the first step and after every so many; null: only after the last.
    every: int | None = field(default=None, metadata={"least": 1})
    during: DuringSettings = field(default_factory=DuringSettings)

    # Questions per benchmark, the first ones; null: all.
    limit: int | None = field(default=None, metadata={"least": 1})
    # Of the samples; 0, the likeliest token alone, is for a served model.
    temperature: float = field(default=1.0, metadata={"least": 0})
    # The likeliest tokens that have this probability together; 1 is all.
    top_p: float = field(default=1.0, metadata={"above": 0, "most": 1})
    # Whether a completion that was cut can be right, as in lm-evaluation-harness.
    count_truncated: bool = True
    # Resamples behind each interval.
    bootstrap: int = field(default=1000, metadata={"least": 1})
    # Coverage of each interval.
    level: float = field(default=0.95, metadata={"above": 0, "below": 1})
    # Benchmarks whose questions also give one calibration error together, as "combined"; null: none.
    combine: list[str] | None = None
    # Also ask the model whether each majority answer is true, P(True): one more forward pass per question. Not for the
    # built-in world, whose words do not hold the question.
    self_report: bool = False


ROLLOUTS = (RolloutSettings, VllmSettings, OpenaiSettings, RecordedSettings)

if TYPE_CHECKING:
    AnyAlgorithm: TypeAlias = AlgorithmSettings
    AnyRegularizer: TypeAlias = RegularizerSettings | SkewRegularizerSettings
    AnyRollout: TypeAlias = RolloutSettings
    AnyTask: TypeAlias = TaskSettings
else:  # Hydra must let a class of a user's own have keys that no class here declares
    AnyAlgorithm = AnyRegularizer = AnyRollout = AnyTask = Any


@dataclass
class RunSettings:
    """What a training and an evaluation have in common."""

    # Runs of one name share a directory, outputs/<name>/.
    name: str = MISSING
    # Of everything random: prompts' order, samples, adapters.
    seed: int = field(default=0, metadata=SEEDS)
    # Completions per question of a benchmark.
    samples: int = field(default=8, metadata={"least": 1})
    model: ModelSettings = field(default_factory=ModelSettings)
    rollout: AnyRollout = MISSING
    benchmark: dict[str, AnyTask] = field(default_factory=dict)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    tracker: TrackerSettings = field(default_factory=TrackerSettings)


@dataclass
class TrainSettings(RunSettings):
    """`carerft train`: finetune, then evaluate."""

    # Runs of one name share a directory, outputs/<name>/.
    name: str = "train"
    # Optimizer steps.
    steps: int = field(default=100, metadata={"least": 0})
    algorithm: AnyAlgorithm = MISSING
    regularizer: AnyRegularizer = MISSING
    reward: RewardSettings = field(default_factory=RewardSettings)
    # The model that the penalty holds the policy near: a directory or a hub name; null: the policy as it is before the
    # training. For a model that was finetuned before, its original.
    reference: str | None = None
    keep_samples: KeepSettings = field(default_factory=KeepSettings)
    # With evaluation.every: keep the policy that was best by a benchmark's metric as model_best/, such as
    # math.accuracy.
    keep_best: str | None = None
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    task: AnyTask = MISSING

    @property
    def precision(self) -> str:
        """The precision of the model's matrix products."""
        return self.learner.precision


@dataclass
class EvaluateSettings(RunSettings):
    """`carerft evaluate`: measure a model without training it."""

    name: str = "evaluate"
    # "auto": cuda where there is one.
    device: str = "auto"
    # Of the weights.
    precision: str = field(default="float32", metadata=PRECISIONS)


@cache
def defaults() -> dict[str, Any]:
    """The dotted keys of a training or an evaluation that have a default here, and its value."""
    groups = {
        "": (EvaluateSettings, TrainSettings),
        "model.": (ModelSettings,),
        "algorithm.": (AlgorithmSettings,),
        "regularizer.": (SkewRegularizerSettings,),
        "rollout.": (VllmSettings,),
        "learner.": (LearnerSettings,),
        "reward.": (RewardSettings,),
        "evaluation.": (EvaluationSettings,),
    }
    return {
        prefix + entry.name: entry.default if entry.default_factory is NO_DEFAULT else entry.default_factory()
        for prefix, schemas in groups.items()
        for schema in schemas
        for entry in fields(schema)
        if entry.default not in (MISSING, NO_DEFAULT) or (prefix == "reward." and entry.name == "functions")
    }


task_defaults: dict[str, dict[str, Any]] = {}
"""Of each registered class of a task, by its name: the defaults of its settings."""


def register_task(name: str, kind: type) -> None:
    """Let YAML files take the settings of a task's dataclass by `defaults: [/schema/<name>@_here_]`."""
    from hydra.core.config_store import ConfigStore

    own = [(f.name, f.type, field(default=f.default)) for f in fields(kind)]
    target = ("_target_", str, field(default=f"{kind.__module__}.{kind.__name__}"))
    schema = make_dataclass(kind.__name__, [*own, target], bases=(TaskSettings,))
    ConfigStore.instance().store(group="schema", name=name, node=schema)
    task_defaults[kind.__name__] = {f.name: f.default for f in fields(kind)}


def register() -> None:
    """Put every schema where the YAML files look for it."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    schemas = {
        "train": TrainSettings,
        "evaluate": EvaluateSettings,
        "reward": RewardSettings,
        "algorithm": _changeable(AlgorithmSettings),
        "regularizer": _changeable(RegularizerSettings),
        "skew_regularizer": _changeable(SkewRegularizerSettings),
        "rollout": RolloutSettings,
        "vllm_rollout": VllmSettings,
        "openai_rollout": OpenaiSettings,
        "recorded_rollout": RecordedSettings,
    }
    for name, schema in schemas.items():
        store.store(group="schema", name=name, node=schema)


def _changeable(kind: type) -> type:
    """The same fields as a dataclass that is not frozen: of a frozen one, Hydra could override nothing."""
    return make_dataclass(kind.__name__, [(f.name, f.type, field(default=f.default)) for f in fields(kind)])
