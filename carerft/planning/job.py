"""A training to be planned: its settings and the sizes of its datasets. No other file of this room reads a
configuration."""

from dataclasses import dataclass, fields, replace
from typing import Any

from carerft.config.settings import Learner, Model, Rollout, VllmRollout
from carerft.planning.assumptions import Assumptions, Dataset


@dataclass(frozen=True)
class Job:
    """A training and the evaluation that follows.

    penalized: whether the loss has a penalty, which needs the reference; exact: whether the penalty sums over the
    vocabulary. groups: sampled for each group of a batch; rounds: of sampling for each batch (dynamic sampling).
    """

    steps: int
    samples: int
    group_size: int
    penalized: bool
    exact: bool
    groups: float
    rounds: float
    model: Model
    learner: Learner
    rollout: Rollout
    task: Dataset
    benchmarks: list[Dataset]

    @property
    def engine(self) -> VllmRollout | None:
        """The settings of vLLM's engines; None if the policy itself samples."""
        return self.rollout if isinstance(self.rollout, VllmRollout) else None

    @property
    def dedicated(self) -> VllmRollout | None:
        """The settings of engines on devices of their own."""
        return self.engine if self.engine and self.engine.placement == "dedicated" else None

    @property
    def devices(self) -> int:
        """The number of GPUs: one for each process of the learner, and those of dedicated engines."""
        engines = self.dedicated.engines * self.dedicated.tensor_parallel_size if self.dedicated else 0
        return self.learner.processes + engines

    @property
    def reference(self) -> bool:
        """Whether a reference policy is held."""
        return self.penalized or self.learner.monitor_reference

    @property
    def prompts(self) -> float:
        """Prompts of an optimizer step."""
        return self.rollout.prompts_per_batch / self.learner.updates_per_batch

    @property
    def input_tokens(self) -> float:
        """Tokens that the policy reads in an optimizer step: every completion except its last token, and each prompt
        once or with each of its completions."""
        copies = 1 if self.learner.share_prompts else self.group_size
        return self.prompts * (self.group_size * (self.task.completion - 1) + copies * self.task.prompt)

    @property
    def microbatch_tokens(self) -> float:
        """Tokens of the largest microbatch. A sequence longer than `tokens_per_microbatch` is a microbatch alone."""
        return max(self.learner.tokens_per_microbatch, self.task.prompt + self.task.max_tokens)

    def with_settings(self, changes: dict[str, Any]) -> "Job":
        """This job with other values of settings, by keys such as learner.processes."""
        groups = {"model": self.model, "learner": self.learner, "rollout": self.rollout}
        for key, value in changes.items():
            group, _, name = key.partition(".")
            groups[group] = replace(groups[group], **{name: value})
        return replace(self, **groups)


def job(config: dict[str, Any], assumptions: Assumptions) -> Job:
    """The job of a training's resolved configuration."""
    rollout, penalty, texts = config["rollout"], config["regularizer"], assumptions.texts
    penalized = not penalty["_target_"].endswith(".NoRegularizer")
    dynamic = assumptions.dynamic if config["algorithm"].get("dynamic_sampling") else {"groups": 1, "rounds": 1}

    def dataset(name: str, max_tokens: int, limit: int | None = None) -> Dataset:
        known = texts.get(name, texts["other"])
        questions, completion = min(known.questions, limit or known.questions), min(known.completion, max_tokens)
        return replace(known, questions=questions, completion=completion, max_tokens=max_tokens)

    limit = config["evaluation"]["limit"]
    return Job(
        steps=config["steps"],
        samples=config["samples"],
        group_size=config["algorithm"]["group_size"],
        penalized=penalized,
        exact=penalized and penalty.get("estimator") == "exact",
        groups=dynamic["groups"],
        rounds=dynamic["rounds"],
        model=_typed(Model, config["model"]),
        learner=_typed(Learner, config["learner"]),
        rollout=_typed(VllmRollout if rollout["name"] == "vllm" else Rollout, rollout),
        task=dataset(config["task"]["name"], rollout["max_tokens"]),
        benchmarks=[dataset(name, entry["max_tokens"], limit) for name, entry in config["benchmark"].items()],
    )


def _typed(schema: type, values: dict[str, Any]) -> Any:
    known = {entry.name for entry in fields(schema)}
    return schema(**{key: value for key, value in values.items() if key in known})
