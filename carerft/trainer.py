"""The trainer: the only place that knows the order in which a run samples, grades, learns and saves.

Everything random in it is a function of the seed and a counter (which prompts, which samples), so that what a resumed
run needs beside weights and optimizer is three counters and the rollout batch in hand.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from carerft import checkpoint
from carerft.errors import DataError, NonFiniteError
from carerft.learner import Learner
from carerft.rollout import Rollouts, RolloutWorker, Sampling
from carerft.run_directory import write_atomically
from carerft.tasks import Grade, Problem, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """How much of what; the fields of the configuration that the trainer needs."""

    steps: int
    seed: int
    prompts_per_batch: int
    max_tokens: int
    updates_per_batch: int
    epochs: int
    checkpoint_every: int
    keep_checkpoints: int


@dataclass
class Batch:
    """One rollout batch, which feeds `updates_per_batch * epochs` optimizer steps.

    advantages: (P * G,). problem_ids: P. metrics: those of its sampling and grading, shown at each of its steps.
    """

    rollouts: Rollouts
    advantages: Tensor
    problem_ids: list[str]
    metrics: dict[str, float]

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_state(state: dict[str, Any]) -> "Batch":
        return Batch(**{**state, "rollouts": Rollouts(**state["rollouts"])})


@dataclass
class Progress:
    """Where a run is. step: optimizer steps done; batches: rollout batches drawn; used: updates made from `batch`."""

    step: int = 0
    batches: int = 0
    used: int = 0
    batch: Batch | None = None


def prompt_order(problems: int, seed: int, start: int, count: int) -> list[int]:
    """Which problems the positions start..start+count-1 of an endless sequence of shuffled passes hold."""
    order: list[int] = []
    while len(order) < count:
        epoch, offset = divmod(start + len(order), problems)
        shuffled = torch.randperm(problems, generator=torch.Generator().manual_seed(_mix(seed, epoch)))
        order += shuffled[offset : offset + count - len(order)].tolist()
    return order


def _mix(seed: int, counter: int) -> int:
    """A seed for the counter-th use of a stream, far from its neighbours'."""
    return (seed * 0x9E3779B97F4A7C15 + counter * 0xBF58476D1CE4E5B9 + 1) % 2**63


def prompt_tokens(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, max_tokens: int, context: int
) -> list[list[int]]:
    """Each problem's prompt as token ids.

    Raises DataError where there is no problem at all, or where a prompt and `max_tokens` of completion don't fit the
    model's context (naming the problem).
    """
    if not problems:
        raise DataError("the task has no problems", "check data.path and task.split")
    encoded = tokenizer([p.prompt for p in problems], add_special_tokens=False)["input_ids"]
    for problem, tokens in zip(problems, encoded, strict=True):
        if len(tokens) + max_tokens > context:
            raise DataError(
                f"the prompt of problem {problem.id} has {len(tokens)} tokens, which with {max_tokens} tokens of "
                f"completion exceeds the model's context of {context}",
                "lower rollout.max_tokens (or the benchmark's max_tokens), or leave the problem out of the data",
            )
        if not tokens:
            raise DataError(f"the prompt of problem {problem.id} is empty", "leave the problem out of the data")
    return encoded


@dataclass
class Trainer:
    """Samples, grades, learns and saves until `schedule.steps` optimizer steps are done.

    directory: the run's. context: tokens that the model can hold. on_step: called with each step's metrics.
    should_stop: asked after each step; True ends the run early, with a checkpoint.
    """

    learner: Learner
    worker: RolloutWorker
    task: Task
    tokenizer: PreTrainedTokenizerBase
    schedule: Schedule
    directory: Path
    context: int
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.problems = self.task.problems()
        self.prompts = prompt_tokens(self.problems, self.tokenizer, self.schedule.max_tokens, self.context)

    def resume(self) -> int:
        """Continue from the newest intact checkpoint, if there is one. Returns the step that the run is at."""
        state = checkpoint.load_latest(self.directory / "checkpoints", self.learner.policy)
        if state is not None:
            self.learner.load_state(state["learner"])
            batch = state["progress"].pop("batch")
            self.progress = Progress(**state["progress"], batch=batch and Batch.from_state(batch))
        return self.progress.step

    def run(self, on_step: Callable[[dict[str, float]], None], should_stop: Callable[[], bool]) -> bool:
        """Train to the end. Returns whether it got there (False: should_stop).

        Raises NonFiniteError (the batch is written to `nonfinite/` and the weights before it are checkpointed) and
        RunDirectoryError (a checkpoint can't be written).
        """
        while self.progress.step < self.schedule.steps:
            on_step(self._step())
            stopping = should_stop()
            due = self.progress.step % self.schedule.checkpoint_every == 0
            if due or stopping or self.progress.step == self.schedule.steps:
                self.save()
            if stopping:
                return False
        return True

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        batch = self.progress.batch
        counters = {"step": self.progress.step, "batches": self.progress.batches, "used": self.progress.used}
        state = {"learner": self.learner.state(), "progress": {**counters, "batch": batch and batch.state()}}
        directory = self.directory / "checkpoints"
        checkpoint.save(directory, self.progress.step, self.learner.policy, state, self.schedule.keep_checkpoints)

    def _step(self) -> dict[str, float]:
        """One optimizer step, on a new rollout batch where the last one is used up. Returns its metrics."""
        now, plan = self.progress, self.schedule
        fresh = now.batch is None or now.used == plan.updates_per_batch * plan.epochs
        if fresh:
            now.batch, now.used = self._collect(now.batches), 0
            now.batches += 1
        batch = now.batch
        assert batch is not None
        size = plan.prompts_per_batch // plan.updates_per_batch
        start = (now.used % plan.updates_per_batch) * size
        part = slice(start, start + size)
        rollouts = batch.rollouts.prompts(part)
        advantages = batch.advantages.view(plan.prompts_per_batch, -1)[part].flatten()

        began = time.perf_counter()
        try:
            metrics = self.learner.step(rollouts, advantages)
        except NonFiniteError as error:
            raise self._record_nonfinite(error, rollouts, advantages, batch.problem_ids[part]) from error
        seconds = time.perf_counter() - began
        now.used += 1
        now.step += 1
        if now.used == 1:  # only at a batch's first step are the sampler's and the learner's weights equal
            batch.metrics |= {key: value for key, value in metrics.items() if key.startswith("rollout/")}
        learned = int(rollouts.lengths.sum())
        times = {"time/learn_s": seconds, "throughput/learned_tokens_per_s": learned / seconds}
        idle = {} if fresh else {"time/rollout_s": 0.0, "time/sync_s": 0.0, "time/grade_s": 0.0}
        return {"step": now.step, **metrics, **batch.metrics, **idle, **times}

    def _collect(self, number: int) -> Batch:
        """Sample and grade the number-th rollout batch."""
        plan, group = self.schedule, self.learner.algorithm.group_size
        order = prompt_order(len(self.prompts), plan.seed, number * plan.prompts_per_batch, plan.prompts_per_batch)
        problems = [self.problems[i] for i in order]
        began = time.perf_counter()
        self.worker.sync(self.learner.policy)
        synced = time.perf_counter()
        rollouts = self.worker.sample(
            [self.prompts[i] for i in order], group, Sampling(plan.max_tokens), _mix(plan.seed + 1, number)
        )
        sampled = time.perf_counter()
        texts = completion_texts(rollouts, self.tokenizer)
        grades = self.task.grade([p for p in problems for _ in range(group)], texts)
        rewards = torch.tensor([float("nan") if g.correct is None else float(g.correct) for g in grades])
        generated = int(rollouts.lengths.sum())
        metrics = {
            **reward_metrics(rewards, grades, rollouts),
            "time/sync_s": synced - began,
            "time/rollout_s": sampled - synced,
            "time/grade_s": time.perf_counter() - sampled,
            "throughput/generated_tokens_per_s": generated / (sampled - synced),
        }
        advantages = self.learner.algorithm.advantages(rewards.view(-1, group)).flatten()
        return Batch(rollouts, advantages, [p.id for p in problems], metrics)

    def _record_nonfinite(
        self, error: NonFiniteError, rollouts: Rollouts, advantages: Tensor, problem_ids: list[str]
    ) -> NonFiniteError:
        """Write down what the failed step was given, save the good weights, and say where both are."""
        place = self.directory / "nonfinite" / f"step_{self.progress.step + 1}"
        place.parent.mkdir(parents=True, exist_ok=True)
        texts = completion_texts(rollouts, self.tokenizer)
        group = rollouts.group_size
        lines = "".join(
            f"{problem}\t{float(advantages[i * group + j]):+.4f}\t{texts[i * group + j]!r}\n"
            for i, problem in enumerate(problem_ids)
            for j in range(group)
        )
        write_atomically(place.with_suffix(".tsv"), "problem\tadvantage\tcompletion\n" + lines)
        torch.save({"rollouts": asdict(rollouts), "advantages": advantages}, place.with_suffix(".pt"))
        self.save()
        return NonFiniteError(
            f"step {self.progress.step + 1}: {error.what}. Its prompts were {', '.join(problem_ids[:5])}"
            + (f" and {len(problem_ids) - 5} more" if len(problem_ids) > 5 else "")
            + f"; they, and the completions, are in {place.with_suffix('.tsv')}",
            f"the weights before it are saved; {error.remedy}",
        )


def completion_texts(rollouts: Rollouts, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The S completions as text, without special tokens."""
    tokens = [row[:n] for row, n in zip(rollouts.tokens.tolist(), rollouts.lengths.tolist(), strict=True)]
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


def reward_metrics(rewards: Tensor, grades: Sequence[Grade], rollouts: Rollouts) -> dict[str, float]:
    """What a rollout batch was like. rewards: (S,), NaN where there was no verdict."""
    known = rewards[~rewards.isnan()]
    groups = rewards.view(-1, rollouts.group_size)
    answered = [g for g in grades if not g.refused]
    return {
        "reward/mean": float(known.mean()) if len(known) else 0.0,
        "reward/std": float(known.std()) if len(known) > 1 else 0.0,
        "reward/no_verdict": float(rewards.isnan().float().mean()),
        "reward/equal_groups": float((groups == groups[:, :1]).all(-1).float().mean()),
        "rollout/refused": 1.0 - len(answered) / len(grades),
        "rollout/unparsable": sum(g.extracted is None for g in answered) / len(grades),
        "rollout/truncated": float((~rollouts.finished).float().mean()),
        "rollout/length_mean": float(rollouts.lengths.float().mean()),
    }
