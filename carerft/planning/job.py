"""A training to be planned: its settings and the sizes of its datasets. No other file of this room reads a
configuration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from carerft.config.settings import (
    MOST_TOKENS,
    OWN_SEQUENCES,
    LearnerSettings,
    ModelSettings,
    RolloutSettings,
    TaskSettings,
    TrainSettings,
    VllmSettings,
)
from carerft.planning.assumptions import Assumptions, Dataset, Device
from carerft.planning.shapes import Shape


@dataclass(frozen=True)
class Measured:
    """How much is asked of a model `times` times in a run: these benchmarks' questions, `samples` times each."""

    benchmarks: Sequence[Dataset] = ()
    samples: int = 1
    times: int = 1


@dataclass(frozen=True)
class Job:
    """A training and the evaluation that follows. validation: what is measured while it learns.

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
    model: ModelSettings
    learner: LearnerSettings
    rollout: RolloutSettings
    task: Dataset
    benchmarks: list[Dataset]
    validation: Measured = Measured()

    @property
    def engine(self) -> VllmSettings | None:
        """The settings of vLLM's engines; None if the policy itself samples."""
        return self.rollout if isinstance(self.rollout, VllmSettings) else None

    @property
    def dedicated(self) -> VllmSettings | None:
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
        return max(self.learner.tokens_per_microbatch or MOST_TOKENS, self.task.prompt + self.task.max_tokens)

    @property
    def longest(self) -> int:
        """Tokens of a sequence that a prompt of usual length begins, in whole thousands (1,024): an engine's context
        where rollout.max_model_len is null. The run itself takes that of the longest prompt."""
        return 1024 * math.ceil(max(data.prompt + data.max_tokens for data in (self.task, *self.benchmarks)) / 1024)

    def context(self, shape: Shape) -> int:
        """The longest sequence that an engine must hold."""
        return (self.engine and self.engine.max_model_len) or min(self.longest, shape.context)

    def side_by_side(self, device: Device) -> int:
        """Sequences decoded together, at most."""
        return self.rollout.batch_size or (device.engine_sequences if self.engine else OWN_SEQUENCES)

    def with_settings(self, changes: dict[str, Any]) -> "Job":
        """This job with other values of settings, by keys such as learner.processes; rollout: vllm."""
        groups = {"model": self.model, "learner": self.learner, "rollout": self.rollout}
        for key, value in changes.items():
            group, _, name = key.partition(".")
            own = groups[group]
            groups[group] = replace(own, **{name: value}) if name else VllmSettings(**{**vars(own), "name": value})
        return replace(self, **groups)


def file_of(entry: TaskSettings) -> str | None:
    """What tells files of questions, and the rows taken from them, apart; None for other tasks."""
    if not entry._target_.endswith(".QuestionsTask") or getattr(entry, "path", None) is None:
        return None
    return " ".join(str(getattr(entry, key, None)) for key in ("path", "where", "limit"))


def job(settings: TrainSettings, assumptions: Assumptions) -> Job:
    """The job of a training. Of files of questions assumptions.texts may hold an entry by `file_of`."""
    rollout, penalty, texts = settings.rollout, settings.regularizer, assumptions.texts
    penalized = not penalty._target_.endswith(".NoRegularizer")
    dynamic = assumptions.dynamic if settings.algorithm.dynamic_sampling else {"groups": 1, "rounds": 1}

    def dataset(name: str, entry: TaskSettings, max_tokens: int, limit: int | None = None) -> Dataset:
        """limit: of the evaluation; a benchmark may have a smaller one of its own."""
        known = texts.get(file_of(entry) or name, texts.get(name, texts["other"]))
        own = getattr(entry, "limit", None)  # of a task of one's own it may be anything
        questions = min(filter(None, (known.questions, limit, own if isinstance(own, int) else None)))
        return replace(known, questions=questions, completion=min(known.completion, max_tokens), max_tokens=max_tokens)

    def benchmarks(limit: int | None) -> list[Dataset]:
        return [dataset(name, entry, entry.max_tokens, limit) for name, entry in settings.benchmark.items()]

    how = settings.evaluation
    limit, samples = how.during.limit or how.limit, how.during.samples or settings.samples
    times = 1 + settings.steps // how.every if how.every else 0  # before the first step, and after every so many
    return Job(
        steps=settings.steps,
        samples=settings.samples,
        group_size=settings.algorithm.group_size,
        penalized=penalized,
        exact=penalized and penalty.estimator == "exact",
        groups=dynamic["groups"],
        rounds=dynamic["rounds"],
        model=settings.model,
        learner=settings.learner,
        rollout=rollout,
        task=dataset(settings.task.name, settings.task, rollout.max_tokens or 0),
        benchmarks=benchmarks(how.limit),
        validation=Measured(benchmarks(limit), samples, times),
    )
