"""Rollout batches: completions of prompts, sampled, graded, and with their advantages.

With dynamic sampling (DAPO, section 3.2) groups of equal rewards, which have no advantage to learn from, are replaced
by groups of further prompts.
"""

import copy
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from carerft.config.settings import RolloutSettings, TrainSettings
from carerft.errors import EngineError, ShortageError, UserCodeError
from carerft.objective.algorithms import Algorithm, importance_ratio, informative
from carerft.rollout import (
    Rollouts,
    RolloutWorker,
    Sampling,
    completion_texts,
    mixed_seed,
    with_padding,
    without_padding,
)
from carerft.rollout.prompt_check import PROMPTS, warn_of_absurd_loss
from carerft.tasks import Grade, Problem, Task
from carerft.tasks.encoding import Prompts
from carerft.tasks.replies import grade_completions
from carerft.training.learner import Learner, TruncatedImportance
from carerft.training.rewards import Rewards, Scored

log = logging.getLogger(__name__)

CLIPPED = 0.01
"""The share of tokens that clipping may drop at a run's first step. All ratios are 1 there but for the sampler's error,
so this is that error beside the algorithm's own bounds."""
MISMATCH = {"float32": 1e-3, "bfloat16": 0.05}
"""Mean difference, in nats, of a token's log-probabilities that rounding explains: a hundred times what float32 shows,
and in bfloat16, which shows 0.001 to 0.03, a quarter of the usual bound for clipping, 0.2."""


@dataclass(frozen=True)
class SamplerState:
    """How many prompts of the endless sequence have been used, and how many rounds, each with a seed of its own."""

    prompts: int = 0
    rounds: int = 0


@dataclass
class Judged:
    """What became of a batch's completions, S in the order of the rollouts.

    problems: of each prompt. grades: S. rewards: (S,) each, by name; "total" is their weighted sum.
    """

    problems: list[Problem]
    grades: list[Grade]
    rewards: dict[str, Tensor]


@dataclass
class Batch:
    """A rollout batch of P prompts with G completions each, for one or more optimizer steps.

    advantages: (P * G,). problem_ids: P of them. metrics: of sampling and grading, logged at each of its steps. judged:
    what was said of its completions; not part of its state.
    """

    rollouts: Rollouts
    advantages: Tensor
    problem_ids: list[str]
    metrics: dict[str, float]
    correction: TruncatedImportance | None = None
    judged: Judged | None = None

    def parts(self, count: int) -> list[slice]:
        """Its prompts divided among `count` optimizer steps, or as many as there are prompts."""
        prompts = len(self.problem_ids)
        count = min(count, prompts)
        return [slice(i * prompts // count, (i + 1) * prompts // count) for i in range(count)]

    def prompts(self, index: Tensor | slice) -> "Batch":
        """The part of some of the prompts, each with all of its completions. index: into (P,)."""
        chosen, group = torch.arange(len(self.problem_ids))[index].tolist(), self.rollouts.group_size
        members = [i * group + k for i in chosen for k in range(group)]
        judged = self.judged
        if judged:
            rewards = {name: values[members] for name, values in judged.rewards.items()}
            judged = Judged([judged.problems[i] for i in chosen], [judged.grades[i] for i in members], rewards)
        return Batch(
            self.rollouts.prompts(index),
            self.advantages[members],
            [self.problem_ids[i] for i in chosen],
            self.metrics,
            self.correction and self.correction.with_rows(lambda rows: rows[members]),
            judged,
        )

    def state(self) -> dict[str, Any]:
        """The batch as plain containers and tensors, without padding."""
        correction, lengths = self.correction, self.rollouts.lengths
        correction = correction and vars(correction.with_rows(lambda rows: without_padding(rows, lengths)))
        state = {name: value for name, value in vars(self).items() if name != "judged"}
        return copy.deepcopy(state | {"rollouts": self.rollouts.state(), "correction": correction})

    @staticmethod
    def from_state(state: dict[str, Any]) -> "Batch":
        """From `state()`, or from one of an earlier version, with padding."""
        rollouts, correction = Rollouts.from_state(state["rollouts"]), state["correction"]
        if correction:
            correction = TruncatedImportance(**correction).with_rows(lambda rows: with_padding(rows, rollouts.lengths))
        return Batch(**state | {"rollouts": rollouts, "correction": correction})


@dataclass
class _Round:
    """One graded call of the sampler. scored, grades: of P * G completions. problems: P."""

    rollouts: Rollouts
    scored: Scored
    grades: list[Grade]
    problems: list[Problem]
    sampling_s: float
    grading_s: float


@dataclass
class Collector:
    """A rollout source that samples when a batch is needed. prompts: of the task's problems.

    check_prompts: warn if the model's loss on the first prompts is absurd.
    """

    worker: RolloutWorker
    task: Task
    tokenizer: PreTrainedTokenizerBase
    algorithm: Algorithm
    settings: RolloutSettings
    seed: int
    prompts: Prompts
    rewards: Rewards
    steps: int = 0
    sampler_state: SamplerState = field(default_factory=SamplerState)
    check_prompts: bool = True

    def __post_init__(self) -> None:
        settings = self.settings
        assert settings.max_tokens is not None, "check_train refuses a training without it"
        self.synced_at = 0  # the optimizer steps that the learner had done at the last sync
        self.sampling = Sampling(settings.max_tokens, settings.temperature, settings.top_p)
        self.problems = self.prompts.problems

    def next(self, learner: Learner, last: bool) -> Batch:
        """The next batch, sampled from the learner's current policy. last: probably the last call; not used here.

        Raises ShortageError if dynamic sampling finds too few groups (`algorithm.dynamic_shortage`).
        """
        sync_s = self.sync(learner)
        batch = self.sample()
        self.worker.sleep()  # frees its memory for the learner until the next sync
        batch.metrics |= {"time/sync_s": sync_s, "rollout/staleness": 0.0}
        self.correct(batch, learner)
        return batch

    def wait(self) -> None:
        """As of `Lookahead`: nothing is sampled between calls."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return asdict(self.sampler_state)

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.sampler_state = SamplerState(**state)

    def sync(self, learner: Learner) -> float:
        """Give the worker the learner's current weights. Returns the seconds that this took."""
        start = time.perf_counter()
        self.synced_at = learner.steps_done
        self.worker.sync(learner.policy)
        return time.perf_counter() - start

    def sample(self) -> Batch:
        """The next batch, sampled with the weights of the last `sync`, not yet corrected. Raises ShortageError."""
        wanted = self.settings.prompts_per_batch
        if self.check_prompts and self.sampler_state.rounds == 0:
            first = prompt_order(len(self.prompts), self.seed, 0, PROMPTS)
            warn_of_absurd_loss(self.worker, [self.prompts[i] for i in first], self.tokenizer)
        before = self.sampler_state
        try:
            return self._batch(self._rounds(wanted))
        except (EngineError, UserCodeError):
            self.sampler_state = before  # a run that goes on from here samples the whole batch again
            raise

    def _rounds(self, wanted: int) -> list[_Round]:
        """One round, or as many as dynamic sampling needs. Raises ShortageError."""
        rounds, group = [self._round(wanted)], self.algorithm.group_size
        while self.algorithm.dynamic_sampling:
            groups = sum(int(informative(r.scored.total.view(-1, group)).sum()) for r in rounds)
            tried = sum(len(r.problems) for r in rounds)
            if groups >= wanted:
                break
            if len(rounds) == self.algorithm.dynamic_rounds:
                self._accept_shortage(groups, tried)
                break
            # As many prompts as will probably yield the missing groups, at the rate so far.
            rounds.append(self._round(min(wanted, math.ceil((wanted - groups) * tried / max(1, groups)))))
        return rounds

    def _round(self, count: int) -> _Round:
        group, state = self.algorithm.group_size, self.sampler_state
        order = prompt_order(len(self.prompts), self.seed, state.prompts, count)
        problems = [self.problems[i] for i in order]
        self.prompts.prepare(order)
        start = time.perf_counter()
        seed = mixed_seed(self.seed + 1, state.rounds)
        rollouts = self.worker.sample([self.prompts[i] for i in order], group, self.sampling, seed)
        sampled = time.perf_counter()
        texts = completion_texts(rollouts, self.tokenizer)
        asked, finished = [p for p in problems for _ in range(group)], rollouts.finished.tolist()
        grades = grade_completions(self.task, asked, texts, finished, self.settings.reward_truncated)
        ids = [row[:length] for row, length in zip(rollouts.tokens.tolist(), rollouts.lengths.tolist(), strict=True)]
        progress = {"global_step": self.synced_at, "max_steps": self.steps}
        scored = self.rewards(asked, texts, ids, grades, progress, getattr(self.task, "until", None))
        self.sampler_state = SamplerState(state.prompts + count, state.rounds + 1)
        times = sampled - start, time.perf_counter() - sampled
        return _Round(rollouts, scored, grades, problems, *times)

    def _accept_shortage(self, groups: int, tried: int) -> None:
        """Warn of a batch with too few groups, or raise ShortageError."""
        what = (
            f"dynamic sampling found {groups} of the {self.settings.prompts_per_batch} prompts of a batch in "
            f"{self.algorithm.dynamic_rounds} rounds: of {tried} prompts, the others' completions were all right, all "
            "wrong, or without a verdict"
        )
        if groups == 0 or self.algorithm.dynamic_shortage == "error":
            raise ShortageError(
                what,
                "the same command goes on with further prompts; a new run may have a larger algorithm.dynamic_rounds "
                "or algorithm.group_size, easier or harder problems, or smaller batches (never empty ones) with "
                "algorithm.dynamic_shortage=smaller",
            )
        log.warning("%s; this batch is smaller", what)

    def _batch(self, rounds: Sequence[_Round]) -> Batch:
        algorithm = self.algorithm
        rollouts = Rollouts.concatenate([r.rollouts for r in rounds])
        rewards = torch.cat([r.scored.total for r in rounds]).view(-1, algorithm.group_size)
        problems = [problem for r in rounds for problem in r.problems]
        grades = [grade for r in rounds for grade in r.grades]
        parts = {"total": rewards.flatten()}
        parts |= {name: torch.cat([r.scored.parts[name] for r in rounds]) for name in rounds[0].scored.parts}
        sampling_s = sum(r.sampling_s for r in rounds)
        if rewards.isnan().all():
            log.warning("no completion of this batch has a reward (reward/no_verdict): nothing is learned from it")
        penalties = algorithm.penalties(rollouts.lengths, self.sampling.max_tokens)
        metrics = {
            **reward_metrics(rewards, grades, rollouts),
            **part_metrics([r.scored for r in rounds], parts),
            "reward/overlong_penalty": float(penalties.mean()),
            "rollout/rounds": float(len(rounds)),
            "time/rollout_s": sampling_s,
            "time/grade_s": sum(r.grading_s for r in rounds),
            "throughput/generated_tokens_per_s": int(rollouts.lengths.sum()) / sampling_s,
        }
        advantages = algorithm.advantages(rewards - penalties.view(rewards.shape))
        ids, judged = [problem.id for problem in problems], Judged(problems, grades, parts)
        batch = Batch(rollouts, advantages.flatten(), ids, metrics, judged=judged)
        if not algorithm.dynamic_sampling:
            return batch
        return batch.prompts(torch.nonzero(informative(rewards)).flatten()[: self.settings.prompts_per_batch])

    def correct(self, batch: Batch, learner: Learner) -> None:
        """Add to a batch what `rollout.importance_correction` says: truncated importance sampling, or the start of the
        ratio alone."""
        settings, level = self.settings, self.settings.correction
        rounds_sequences = self.algorithm.ratio == "sequence" and learner.settings.precision == "bfloat16"
        start = time.perf_counter()
        if level != "none":
            mask, log_probs = batch.rollouts.mask(), learner.log_probs(batch.rollouts)
            ratio = importance_ratio(log_probs, batch.rollouts.log_probs, mask, level)
            weights = ratio.clamp(max=settings.importance_cap)
            batch.metrics["rollout/importance_mean"] = float(weights[mask].mean())
            batch.metrics["rollout/importance_clipped"] = float((ratio > settings.importance_cap)[mask].float().mean())
            batch.correction = TruncatedImportance(log_probs, weights)
        elif settings.importance_correction == "auto" and rounds_sequences:
            batch.correction = TruncatedImportance(_log_probs_of_later_steps(batch, learner), None)
        else:
            return
        batch.metrics["time/score_s"] = time.perf_counter() - start


def _log_probs_of_later_steps(batch: Batch, learner: Learner) -> Tensor:
    """(S, T) log-probabilities under the learner's weights, in the microbatches in which they will be learned from, so
    that rounding is the same; 0 where only the first step needs them, which computes them itself."""
    parts, group = batch.parts(learner.settings.updates_per_batch), batch.rollouts.group_size
    log_probs = torch.zeros(batch.rollouts.tokens.shape)
    for part in parts if learner.settings.epochs > 1 else parts[1:]:
        scored = learner.log_probs(batch.rollouts.prompts(part))
        log_probs[part.start * group : part.stop * group] = scored
    return log_probs


def warn_of_mismatch(metrics: Mapping[str, float], learner: Learner, correction: TruncatedImportance | None) -> None:
    """Warn if sampler and learner, with equal weights, differ by more than learning bears without a correction.

    metrics: of a run's first step. Bounds: `CLIPPED` and `MISMATCH`.
    """
    clipped, mean = metrics["policy/clip_fraction"], metrics["rollout/mismatch_mean"]
    corrected = correction is not None and correction.weights is not None
    if corrected or (clipped <= CLIPPED and mean <= MISMATCH[learner.settings.precision]):
        return
    log.warning(
        "with equal weights, the log-probabilities of sampler and learner differ by %.2g nats a token on average "
        "(rollout/mismatch_mean; up to %g is rounding in %s), and clipping drops %.1f%% of the tokens for it "
        "(policy/clip_fraction): rollout.importance_correction=%s weighs them by the ratio of the two, and lets the "
        "objective's own ratio start at 1",
        mean, MISMATCH[learner.settings.precision], learner.settings.precision, 100 * clipped, learner.algorithm.ratio,
    )  # fmt: skip


def planned_prompts(settings: TrainSettings, problems: int) -> list[int]:
    """The problems that a training asks, at most and in their order: fewer if its dynamic sampling succeeds early, more
    only if it makes smaller batches, or goes on after a shortage."""
    steps_per_batch = settings.learner.updates_per_batch * settings.learner.epochs
    rounds = settings.algorithm.dynamic_rounds if settings.algorithm.dynamic_sampling else 1
    count = max(1, -(-settings.steps // steps_per_batch)) * rounds * settings.rollout.prompts_per_batch
    return prompt_order(problems, settings.seed, 0, min(count, problems))


def prompt_order(problems: int, seed: int, start: int, count: int) -> list[int]:
    """The problems at the positions start..start+count-1 of an endless sequence of shuffled passes over all."""
    order: list[int] = []
    while len(order) < count:
        epoch, offset = divmod(start + len(order), problems)
        shuffled = torch.randperm(problems, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))
        order += shuffled[offset : offset + count - len(order)].tolist()
    return order


def part_metrics(scored: Sequence[Scored], parts: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean and standard deviation of each reward function, where there are others than the grader's verdict, and what
    they have logged, on average over the completions of the rounds in which they did. parts: of all rounds, by name."""
    metrics: dict[str, float] = {}
    if scored[0].parts.keys() != {"correctness"}:
        for name in scored[0].parts:
            metrics |= _spread(f"reward/{name}", parts[name])
    for name in dict.fromkeys(name for s in scored for name in s.logged):
        rounds = [(s.logged[name], len(s.total)) for s in scored if name in s.logged]
        metrics[f"reward/{name}"] = sum(value * count for value, count in rounds) / sum(count for _, count in rounds)
    return metrics


def _spread(name: str, rewards: Tensor) -> dict[str, float]:
    """Mean and standard deviation of the rewards that are known; NaN where there are too few."""
    known = rewards[~rewards.isnan()]
    return {
        f"{name}/mean": float(known.mean()),
        f"{name}/std": float(known.std()) if len(known) > 1 else math.nan,
    }


def reward_metrics(rewards: Tensor, grades: Sequence[Grade], rollouts: Rollouts) -> dict[str, float]:
    """Metrics of all completions sampled for a batch, with the groups that dynamic sampling drops. rewards: (P, G),
    without penalties."""
    answered = [g for g in grades if not g.refused]
    return {
        **_spread("reward", rewards),
        "reward/no_verdict": float(rewards.isnan().float().mean()),
        "reward/equal_groups": float((~informative(rewards)).float().mean()),
        "rollout/refused": 1.0 - len(answered) / len(grades),
        "rollout/unparsable": sum(g.extracted is None for g in answered) / len(grades),
        "rollout/truncated": float((~rollouts.finished).float().mean()),
        "rollout/length_mean": float(rollouts.lengths.float().mean()),
    }
