"""What can be configured: a dataclass per verb and per group of `conf/`, registered with Hydra as the verb's schema.

Hydra refuses a key that a schema doesn't have and a value of the wrong type. An algorithm, a regularizer and a rollout
take theirs by `defaults: [/schema/regularizer@_here_]`; one of your own, with parameters of its own, needs none and is
then held to the keys that its file lists, as tasks and benchmarks are.
"""

from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class Model:
    """A causal language model in Hugging Face format."""

    name: str = MISSING  # what tables and run names call it
    path: str = MISSING  # hub name or local directory; "world" is the built-in tiny base model
    revision: str | None = None  # hub revision; a branch, a tag or a commit
    base: int = 0  # of the built-in model: which pretraining seed (0 is shipped, others are built once and cached)
    attention: str = "sdpa"  # transformers' attention implementation
    chat: bool | None = None  # put prompts into the model's chat template; null: if its own configuration ends a
    # generation with the token with which the template ends a turn (a base model's doesn't, though it has a template)
    learning_rate: float = MISSING  # a learning rate that suits a model of this size
    adapter: str | None = None  # train: "lora" trains a low-rank adapter beside frozen weights, by peft. The base model
    # is then the policy without it, and needs no second copy. learning_rate stays the one above; for large models,
    # whose is small, ten times as much is usual
    lora_rank: int = 32
    lora_alpha: int = 64  # the adapter's product is multiplied by lora_alpha / lora_rank. There is no dropout: the
    # importance ratio and the penalty would compare other policies than the one that sampled
    lora_targets: Any = "all-linear"  # all linear layers but the head, or some by name: [q_proj,v_proj]


@dataclass
class Algorithm:
    """A policy-gradient objective over groups of completions."""

    name: str = MISSING
    _target_: str = "carerft.objective.algorithms.Algorithm"
    group_size: int = MISSING  # completions per prompt, G
    clip_low: float | None = MISSING  # the importance ratio is clipped to [1 - clip_low, 1 + clip_high]; null: it isn't
    clip_high: float | None = MISSING
    ratio: str = MISSING  # importance ratio per "token" or per "sequence" (the geometric mean of its tokens')
    aggregation: str = MISSING  # "sequence": mean per completion, then over them; "token": one mean over all tokens;
    # "constant": sum per completion divided by aggregation_constant, then mean over them
    aggregation_constant: float = 1.0
    advantage_baseline: str = "mean"  # what a reward is compared with: its group's "mean", or "leave_one_out"
    advantage_std: str = MISSING  # divide advantages by the group's "sample" or "population" std, or "none"
    advantage_eps: float = 1e-6  # added to that std
    polarity: str = "both"  # learn from advantages above 0 ("positive"), below 0 ("negative"), or "both"
    dynamic_sampling: bool = False  # replace groups of equal rewards by those of further prompts
    dynamic_rounds: int = 10  # rounds of sampling for one batch, at most
    dynamic_shortage: str = "error"  # what then: "error", or "smaller" batches
    overlong_buffer: float = 0.0  # share of rollout.max_tokens, at its end, in which a completion loses reward
    overlong_penalty: float = 0.0  # how much it loses at the limit, linearly less before


@dataclass
class Regularizer:
    """A penalty on the distance between the policy and the base model, added to the loss as beta * penalty."""

    name: str = MISSING
    _target_: str = MISSING
    beta: float = MISSING
    estimator: str = MISSING  # "exact" (sum over the vocabulary), or from the sampled token: "unbiased", "k2", "k3"
    match: str = "none"  # "local": divide beta by the divergence's strength near the base, relative to reverse KL's
    beta_schedule: str = "constant"  # "linear" or "cosine": from beta at the first step to beta_end at the last
    beta_end: float | None = None
    entropy_bonus: float = 0.0  # weight of the policy's entropy in the loss (subtracted)


@dataclass
class SkewRegularizer(Regularizer):
    alpha: float = MISSING  # how far the reference is moved towards the policy: 0 is reverse KL; must be below 1
    alpha_schedule: str = "constant"  # as beta's
    alpha_end: float | None = None


@dataclass
class Rollout:
    """What samples completions. A rollout file takes these keys by `defaults: [/schema/rollout@_here_]`."""

    name: str = MISSING
    prompts_per_batch: int = MISSING  # prompts sampled at once, each with algorithm.group_size completions
    max_tokens: int | None = MISSING  # a completion is cut after this many tokens
    batch_size: int = MISSING  # sequences decoded side by side
    lookahead: int = 0  # 1: sample the next batch while the learner works on this one, with weights one batch old
    importance_correction: str = "auto"  # truncated importance sampling per "token" or "sequence", or "none", for
    # samplers whose probabilities are not quite the learner's. "auto": per token with lookahead, else none
    importance_cap: float = 2.0  # the weights' upper bound
    temperature: float = 1.0  # training needs 1.0: anything else is another policy than the one that learns
    top_p: float = 1.0
    allow_biased_sampling: bool = False  # train with another temperature or top_p all the same


@dataclass
class VllmRollout(Rollout):
    """What samples completions with vLLM; the device's kind (GPU or CPU) is the installed package's."""

    placement: str = MISSING  # "colocated": in the learner's process, on its device; "dedicated": in processes of
    # their own. There, the engines take the first engines * tensor_parallel_size GPUs, and the learner needs another:
    # learner.device=cuda:2, for two engines
    engines: int = 1  # dedicated: how many share a batch's prompts
    tensor_parallel_size: int = 1  # devices that share an engine's weights
    max_model_len: int | None = None  # tokens of prompt and completion together; null: the model's context
    gpu_memory_utilization: float = MISSING  # share of a device's memory for an engine's weights and cache together
    kv_cache_gib: float | None = None  # GiB of keys and values, whatever that share; null on a CPU: 1
    enforce_eager: bool | None = None  # no compilation, no CUDA graphs; null: only on a CPU
    weight_transfer: str = "reload"  # how weights come to the engines: "reload", through the learner's memory, or, for
    # dedicated engines on GPUs, "nccl", from GPU to GPU (not yet run on GPUs)
    verify_sync: bool = False  # prove after every weight sync, not only the first, that the engine's log-probabilities
    # are the policy's
    timeout_s: float = MISSING  # dedicated: an engine that takes longer for a request counts as hung
    max_restarts: int = MISSING  # dedicated: lost engines replaced during one request, at most


@dataclass
class Learner:
    """How the weights are updated."""

    learning_rate: float = MISSING
    schedule: str = MISSING  # "constant", "linear" or "cosine" decay after the warm-up
    warmup_steps: int = MISSING
    weight_decay: float = MISSING
    optimizer: str = "adamw"  # "adamw", or "adamw_8bit": its two moments in a byte each, by torchao
    adam_beta1: float = MISSING
    adam_beta2: float = MISSING
    adam_eps: float = MISSING
    max_grad_norm: float = MISSING
    updates_per_batch: int = MISSING  # optimizer steps that share out one rollout batch's prompts
    epochs: int = MISSING  # times that a rollout batch is gone through
    tokens_per_microbatch: int = MISSING  # tokens packed into one forward pass; never changes the loss
    precision: str = MISSING  # "float32", or "bfloat16": autocast over float32 master weights
    gradient_checkpointing: bool = MISSING  # less memory, more time
    compile: bool = False  # fuse what lies between the matrix products, by torch.compile: a minute at the start, and
    # less memory traffic at each step (not yet run on a GPU)
    share_prompts: bool = MISSING  # read a prompt once for its completions in a microbatch
    device: str = MISSING  # "auto": cuda where there is one
    monitor_reference: bool = MISSING  # also measure the divergence from the base where the regularizer needs none
    checkpoint_every: int = MISSING  # steps between checkpoints
    keep_checkpoints: int = MISSING
    async_checkpoints: bool = False  # learn on while a checkpoint is written, from a copy in the CPU's memory
    processes: int = 1  # on this machine, one for each GPU, that share out weights and work (FSDP2; not yet run on
    # GPUs); torchrun, where it starts the run, says itself how many
    reference_offload: bool = False  # several processes: keep their parts of the reference in the CPU's memory
    timeout_s: float = 600.0  # several processes: how long one waits for another before the run fails
    max_restarts: int = (
        0  # several processes: how often they are started again, from the last checkpoint, after one died
    )


@dataclass
class Tracker:
    """Where metrics are shown, beside metrics.jsonl, which is always written."""

    name: str = MISSING  # "none", "wandb" or "tensorboard"
    project: str = "carerft"  # of W&B
    entity: str | None = None  # W&B's user or team; null: the key's own
    mode: str = "offline"  # of W&B: "online" sends as it happens; "disabled" is none


@dataclass
class Data:
    """Where local data lies."""

    path: str | None = None  # the file to train on (train) or to measure on (evaluate)
    test_path: str | None = None  # train: the file that the evaluation measures on


@dataclass
class Evaluation:
    """How a model is measured."""

    limit: int | None = None  # questions per benchmark; null is all of them
    temperature: float = 1.0
    top_p: float = 1.0
    bootstrap: int = 1000  # resamples behind each interval
    level: float = 0.95
    self_report: bool = False  # also ask the model whether each majority answer is true, P(True): one more forward pass
    # per question. Not for the built-in world, whose words do not hold the question


@dataclass
class Train:
    """`carerft train`: finetune, then evaluate."""

    name: str = "train"
    seed: int = 0
    steps: int = 100  # optimizer steps
    samples: int = 8  # completions per question in the evaluation that follows
    model: Model = field(default_factory=Model)
    algorithm: Any = MISSING
    regularizer: Any = MISSING
    rollout: Any = MISSING
    learner: Learner = field(default_factory=Learner)
    task: Any = MISSING
    data: Data = field(default_factory=Data)
    benchmark: dict[str, Any] = field(default_factory=dict)
    evaluation: Evaluation = field(default_factory=Evaluation)
    tracker: Tracker = field(default_factory=Tracker)


@dataclass
class Evaluate:
    """`carerft evaluate`: measure a model as it is."""

    name: str = "evaluate"
    seed: int = 0
    samples: int = 8
    device: str = "auto"
    precision: str = "float32"
    model: Model = field(default_factory=Model)
    rollout: Any = MISSING
    data: Data = field(default_factory=Data)
    benchmark: dict[str, Any] = field(default_factory=dict)
    evaluation: Evaluation = field(default_factory=Evaluation)
    tracker: Tracker = field(default_factory=Tracker)


@cache
def defaults() -> dict[str, Any]:
    """The dotted keys of a training or an evaluation that have a default here, and its value."""
    groups = {
        "": (Evaluate, Train),
        "model.": (Model,),
        "algorithm.": (Algorithm,),
        "regularizer.": (SkewRegularizer,),
        "rollout.": (VllmRollout,),
        "learner.": (Learner,),
        "data.": (Data,),
        "evaluation.": (Evaluation,),
    }
    return {
        prefix + entry.name: entry.default
        for prefix, schemas in groups.items()
        for schema in schemas
        for entry in fields(schema)
        if entry.default not in (MISSING, NO_DEFAULT)
    }


def register() -> None:
    """Put every schema where the YAML files look for it."""
    store = ConfigStore.instance()
    for name, schema in {"train": Train, "evaluate": Evaluate}.items():
        store.store(group="schema", name=name, node=schema)
    parts = {
        "algorithm": Algorithm,
        "regularizer": Regularizer,
        "skew_regularizer": SkewRegularizer,
        "rollout": Rollout,
        "vllm_rollout": VllmRollout,
    }
    for name, schema in parts.items():
        store.store(group="schema", name=name, node=schema)
