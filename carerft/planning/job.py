"""What one run asks of a machine: the numbers of its configuration that memory and time follow from, and its texts'."""

import math
from dataclasses import dataclass
from typing import Any

from carerft.planning.assumptions import text


@dataclass(frozen=True)
class Benchmark:
    """questions, of which each has `choices` tokens to score; tokens of prompt and completion, on average; the longest
    completion; seconds of one core to grade one."""

    name: str
    questions: int
    prompt: float
    completion: float
    longest: int
    choices: float
    grading_s: float


@dataclass(frozen=True)
class Job:
    """One run. steps: optimizer steps, 0 in an evaluation alone; updates: into which a batch is cut.

    groups: sampled for each one kept; rounds: in which a batch is sampled. checkpoints: how many are written; aside:
    while the run goes on. processes: that share the learner's state and work. rank: of an adapter, 0 without one;
    targets: the matrices that have it, () for all.
    """

    steps: int
    updates: int
    epochs: int
    prompts: int
    group: int
    prompt: float
    completion: float
    longest: int
    grading_s: float
    groups: float
    rounds: float
    samples: int
    benchmarks: tuple[Benchmark, ...]
    precision: str
    optimizer: str
    microbatch: int
    checkpointing: bool
    shared: bool
    reference: bool
    exact: bool
    checkpoints: int
    aside: bool
    processes: int
    vllm: bool
    sequences: int
    dedicated: bool
    engines: int
    tensor_parallel: int
    utilization: float
    cache_gib: float | None
    context: int | None
    lookahead: bool
    rank: int = 0
    targets: tuple[str, ...] = ()

    @property
    def devices(self) -> int:
        """That it takes at least: the learner's processes, and dedicated engines beside them."""
        learner = self.processes if self.steps else 0
        return learner + self.engines * self.tensor_parallel if self.dedicated else max(1, learner)

    @property
    def tokens(self) -> float:
        """Of completions, in an optimizer step."""
        return self.prompts / self.updates * self.group * self.completion

    @property
    def read(self) -> float:
        """Tokens that the policy reads in an optimizer step: completions but their last token, and each prompt once or
        with each of them."""
        prompts = self.prompts / self.updates
        return prompts * self.group * (self.completion - 1) + prompts * self.prompt * (1 if self.shared else self.group)

    @property
    def together(self) -> float:
        """Tokens of the largest microbatch: a sequence that is longer goes alone."""
        return max(self.microbatch, self.prompt + self.longest)

    @property
    def batches(self) -> float:
        """Of rollouts, each of which is gone through `epochs` times."""
        return self.steps / (self.updates * self.epochs)


def job(config: dict[str, Any], stated: dict[str, Any]) -> Job:
    """Of a resolved configuration of a training or an evaluation. stated: of `assumptions`."""
    learner, rollout, algorithm = config.get("learner", {}), config["rollout"], config.get("algorithm", {})
    penalty, dynamic = config.get("regularizer", {}), algorithm.get("dynamic_sampling", False)
    needed = bool(penalty) and not penalty["_target_"].endswith(".NoRegularizer")
    task = text(config["task"]["name"], stated) if "task" in config else {"prompt": 0, "completion": 0, "grading_s": 0}
    longest, steps = rollout["max_tokens"] or 0, config.get("steps", 0)
    model = config["model"]
    named = model["lora_targets"] if isinstance(model["lora_targets"], list) else ()  # a pattern counts as all
    return Job(
        steps=steps,
        updates=learner.get("updates_per_batch", 1),
        epochs=learner.get("epochs", 1),
        prompts=rollout["prompts_per_batch"],
        group=algorithm.get("group_size", 1),
        prompt=task["prompt"],
        completion=min(task["completion"], longest),
        longest=longest,
        grading_s=task["grading_s"],
        groups=stated["dynamic"]["groups"] if dynamic else 1,
        rounds=stated["dynamic"]["rounds"] if dynamic else 1,
        samples=config["samples"],
        benchmarks=tuple(_benchmark(name, entry, config, stated) for name, entry in config["benchmark"].items()),
        precision=learner.get("precision") or config["precision"],
        optimizer=learner.get("optimizer", "adamw"),
        microbatch=learner.get("tokens_per_microbatch", 0),
        checkpointing=learner.get("gradient_checkpointing", False),
        shared=learner.get("share_prompts", False),
        reference=needed or learner.get("monitor_reference", False),
        exact=needed and penalty.get("estimator") == "exact",
        checkpoints=math.ceil(steps / learner.get("checkpoint_every", 1)),
        aside=learner.get("async_checkpoints", False),
        processes=learner.get("processes", 1) or 1,
        vllm=rollout["name"] == "vllm",
        sequences=rollout["batch_size"],
        dedicated=rollout.get("placement") == "dedicated",
        engines=rollout.get("engines", 1),
        tensor_parallel=rollout.get("tensor_parallel_size", 1),
        utilization=rollout.get("gpu_memory_utilization", 0.0),
        cache_gib=rollout.get("kv_cache_gib"),
        context=rollout.get("max_model_len"),
        lookahead=bool(rollout["lookahead"]),
        rank=model["lora_rank"] if model["adapter"] else 0,
        targets=tuple(named),
    )


def _benchmark(name: str, entry: dict[str, Any], config: dict[str, Any], stated: dict[str, Any]) -> Benchmark:
    known = text(name, stated)
    questions = min(int(known["questions"]), config["evaluation"]["limit"] or int(known["questions"]))
    longest = entry["max_tokens"]
    completion = min(known["completion"], longest)
    return Benchmark(name, questions, known["prompt"], completion, longest, known["choices"], known["grading_s"])
