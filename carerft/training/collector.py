"""From problems to a rollout batch: sampled, graded, and with its advantages.

With dynamic sampling (DAPO, section 3.2) groups whose rewards are all equal, which teach nothing, are replaced by those
of further prompts.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from carerft.config.settings import RolloutSettings
from carerft.errors import ShortageError
from carerft.objective.algorithms import Algorithm, importance_ratio, informative
from carerft.rollout import Rollouts, RolloutWorker, Sampling, completion_texts, mixed_seed
from carerft.tasks import Grade, Task
from carerft.tasks.encoding import prompt_tokens
from carerft.training.learner import Correction, Learner

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """How far the endless sequence of prompts, and that of sampling seeds, have been used."""

    prompts: int = 0
    rounds: int = 0


@dataclass
class Batch:
    """One rollout batch, which feeds several optimizer steps.

    advantages: (P * G,). problem_ids: P. metrics: those of its sampling and grading, shown at each of its steps.
    """

    rollouts: Rollouts
    advantages: Tensor
    problem_ids: list[str]
    metrics: dict[str, float]
    correction: Correction | None = None

    def parts(self, count: int) -> list[slice]:
        """Its prompts shared out over `count` optimizer steps, or fewer where there are fewer prompts."""
        prompts = len(self.problem_ids)
        count = min(count, prompts)
        return [slice(i * prompts // count, (i + 1) * prompts // count) for i in range(count)]

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_state(state: dict[str, Any]) -> "Batch":
        correction = state["correction"] and Correction(**state["correction"])
        return Batch(**{**state, "rollouts": Rollouts(**state["rollouts"]), "correction": correction})


@dataclass
class _Round:
    """One call of the sampler, graded. rewards: (P, G), NaN where there is no verdict; seconds of each stage."""

    rollouts: Rollouts
    rewards: Tensor
    grades: list[Grade]
    problem_ids: list[str]
    sampling: float
    grading: float


@dataclass
class Collector:
    """Makes rollout batches. context: tokens that the model can hold."""

    worker: RolloutWorker
    task: Task
    tokenizer: PreTrainedTokenizerBase
    algorithm: Algorithm
    settings: RolloutSettings
    seed: int
    context: int
    drawn: Drawn = field(default_factory=Drawn)

    @property
    def _max_tokens(self) -> int:
        assert self.settings.max_tokens is not None, "check_train refuses a training without it"
        return self.settings.max_tokens

    def __post_init__(self) -> None:
        self.problems = self.task.problems()
        self.prompts = prompt_tokens(self.problems, self.tokenizer, self._max_tokens, self.context)

    def next(self, learner: Learner, last: bool) -> Batch:
        """The next batch, sampled from the learner's policy as it is now. last: probably no other will be asked for.

        Raises ShortageError where dynamic sampling finds too few groups (`algorithm.dynamic_shortage`).
        """
        synced = self.sync(learner)
        batch = self.sample()
        self.worker.sleep()  # the learner may have its memory until the next sync
        batch.metrics |= {"time/sync_s": synced, "rollout/staleness": 0.0}
        self.correct(batch, learner)
        return batch

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return asdict(self.drawn)

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.drawn = Drawn(**state)

    def sync(self, learner: Learner) -> float:
        """Sample from the learner's policy as it is now, from now on. Returns the seconds that this took."""
        began = time.perf_counter()
        self.worker.sync(learner.policy)
        return time.perf_counter() - began

    def sample(self) -> Batch:
        """The next batch, sampled with the weights of the last `sync`; not corrected. Raises ShortageError."""
        rounds = [self._round(self.settings.prompts_per_batch)]
        while self.algorithm.dynamic_sampling and (missing := self._missing(rounds)) > 0:
            if len(rounds) == self.algorithm.dynamic_rounds:
                self._accept_shortage(rounds)
                break
            rounds.append(self._round(self._promising(rounds, missing)))
        return self._batch(rounds)

    def _round(self, count: int) -> _Round:
        settings, group, drawn = self.settings, self.algorithm.group_size, self.drawn
        order = prompt_order(len(self.prompts), self.seed, drawn.prompts, count)
        problems = [self.problems[i] for i in order]
        began = time.perf_counter()
        sampling = Sampling(self._max_tokens, settings.temperature, settings.top_p)
        rollouts = self.worker.sample(
            [self.prompts[i] for i in order], group, sampling, mixed_seed(self.seed + 1, drawn.rounds)
        )
        sampled = time.perf_counter()
        texts = completion_texts(rollouts, self.tokenizer)
        grades = self.task.grade([p for p in problems for _ in range(group)], texts)
        rewards = torch.tensor([math.nan if g.correct is None else float(g.correct) for g in grades]).view(-1, group)
        self.drawn = Drawn(drawn.prompts + count, drawn.rounds + 1)
        ids = [p.id for p in problems]
        return _Round(rollouts, rewards, grades, ids, sampled - began, time.perf_counter() - sampled)

    def _missing(self, rounds: Sequence[_Round]) -> int:
        return self.settings.prompts_per_batch - _kept(rounds)

    def _promising(self, rounds: Sequence[_Round], missing: int) -> int:
        """How many prompts probably hold the missing groups, judged by those so far."""
        tried = sum(len(r.problem_ids) for r in rounds)
        return min(self.settings.prompts_per_batch, math.ceil(missing * tried / max(1, _kept(rounds))))

    def _accept_shortage(self, rounds: Sequence[_Round]) -> None:
        kept, wanted = _kept(rounds), self.settings.prompts_per_batch
        tried = sum(len(r.problem_ids) for r in rounds)
        what = (
            f"dynamic sampling found {kept} of the {wanted} prompts of a batch in {len(rounds)} rounds: "
            f"of {tried} prompts, the others' completions were all right, all wrong, or without a verdict"
        )
        if kept == 0 or self.algorithm.dynamic_shortage == "error":
            raise ShortageError(
                what,
                "the same command goes on with further prompts; a new run may have a larger algorithm.dynamic_rounds "
                "or algorithm.group_size, easier or harder problems, or smaller batches (never empty ones) with "
                "algorithm.dynamic_shortage=smaller",
            )
        log.warning("%s; this batch is smaller", what)

    def _batch(self, rounds: Sequence[_Round]) -> Batch:
        algorithm, settings = self.algorithm, self.settings
        rollouts = Rollouts.concatenate([r.rollouts for r in rounds])
        rewards = torch.cat([r.rewards for r in rounds])
        ids = [problem for r in rounds for problem in r.problem_ids]
        generated, sampling = int(rollouts.lengths.sum()), sum(r.sampling for r in rounds)
        penalties = algorithm.penalties(rollouts.lengths, self._max_tokens)
        metrics = {
            **reward_metrics(rewards, [g for r in rounds for g in r.grades], rollouts),
            "reward/overlong_penalty": float(penalties.mean()),
            "rollout/rounds": float(len(rounds)),
            "time/rollout_s": sampling,
            "time/grade_s": sum(r.grading for r in rounds),
            "throughput/generated_tokens_per_s": generated / sampling,
        }
        advantages = algorithm.advantages(rewards - penalties.view(rewards.shape))
        if algorithm.dynamic_sampling:
            chosen = torch.nonzero(informative(rewards)).flatten()[: settings.prompts_per_batch]
            rollouts, advantages, ids = rollouts.prompts(chosen), advantages[chosen], [ids[i] for i in chosen.tolist()]
        return Batch(rollouts, advantages.flatten(), ids, metrics)

    def correct(self, batch: Batch, learner: Learner) -> None:
        """Truncated importance sampling: the learner's own probability over the sampler's, at most `importance_cap`."""
        level, cap = self.settings.correction, self.settings.importance_cap
        if level == "none":
            return
        began = time.perf_counter()
        mask, log_probs = batch.rollouts.mask(), learner.log_probs(batch.rollouts)
        ratio = importance_ratio(log_probs, batch.rollouts.log_probs, mask, level)
        weights = ratio.clamp(max=cap)
        batch.metrics["rollout/importance_mean"] = float(weights[mask].mean())
        batch.metrics["rollout/importance_clipped"] = float((ratio > cap)[mask].float().mean())
        batch.metrics["time/score_s"] = time.perf_counter() - began
        batch.correction = Correction(log_probs, weights)


def prompt_order(problems: int, seed: int, start: int, count: int) -> list[int]:
    """Which problems the positions start..start+count-1 of an endless sequence of shuffled passes hold."""
    order: list[int] = []
    while len(order) < count:
        epoch, offset = divmod(start + len(order), problems)
        shuffled = torch.randperm(problems, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))
        order += shuffled[offset : offset + count - len(order)].tolist()
    return order


def _kept(rounds: Sequence[_Round]) -> int:
    return sum(int(informative(r.rewards).sum()) for r in rounds)


def reward_metrics(rewards: Tensor, grades: Sequence[Grade], rollouts: Rollouts) -> dict[str, float]:
    """What was sampled for a batch, groups that dynamic sampling drops included. rewards: (P, G), unshaped."""
    known = rewards[~rewards.isnan()]
    answered = [g for g in grades if not g.refused]
    return {
        "reward/mean": float(known.mean()) if len(known) else 0.0,
        "reward/std": float(known.std()) if len(known) > 1 else 0.0,
        "reward/no_verdict": float(rewards.isnan().float().mean()),
        "reward/equal_groups": float((~informative(rewards)).float().mean()),
        "rollout/refused": 1.0 - len(answered) / len(grades),
        "rollout/unparsable": sum(g.extracted is None for g in answered) / len(grades),
        "rollout/truncated": float((~rollouts.finished).float().mean()),
        "rollout/length_mean": float(rollouts.lengths.float().mean()),
    }
