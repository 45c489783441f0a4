"""The trainer: the only place that knows the order in which a run samples, grades, learns and saves.

Everything random in it is a function of the seed and a counter (which prompts, which samples), so that what a resumed
run needs beside weights and optimizer is a few counters and the rollout batch in hand.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from carerft.config.settings import LearnerSettings
from carerft.errors import EngineError, NonFiniteError, ShortageError
from carerft.rollout import Rollouts, completion_texts
from carerft.runs.directory import write_atomically
from carerft.training.checkpoint import Checkpoints
from carerft.training.collector import Batch
from carerft.training.learner import Learner


@dataclass
class Progress:
    """Where a run is. step: optimizer steps done; used: updates made from `batch`."""

    step: int = 0
    used: int = 0
    batch: Batch | None = None


class BatchSupply(Protocol):
    """Where rollout batches come from: `Collector`, or `Lookahead`."""

    def next(self, learner: Learner, last: bool) -> Batch: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


@dataclass
class Trainer:
    """Samples, grades, learns and saves until `steps` optimizer steps are done.

    directory: the run's. on_step: called with each step's metrics.
    should_stop: asked after each step; True ends the run early, with a checkpoint.
    """

    learner: Learner
    supply: BatchSupply
    tokenizer: PreTrainedTokenizerBase
    settings: LearnerSettings
    steps: int
    directory: Path
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self._checkpoints = Checkpoints(self.directory / "checkpoints", self.learner, self.settings.async_checkpoints)

    def resume(self) -> int:
        """Continue from the newest intact checkpoint, if there is one. Returns the step that the run is at."""
        state = self._checkpoints.load_latest()
        if state is not None:
            self.learner.load_state(state["learner"])
            batch = state["batch"]
            self.progress = Progress(state["step"], state["used"], batch and Batch.from_state(batch))
            self.supply.load_state(state["supply"])
        return self.progress.step

    def run(self, on_step: Callable[[dict[str, float]], None], should_stop: Callable[[], bool]) -> bool:
        """Train to the end. Returns whether it got there (False: should_stop).

        Raises NonFiniteError (the batch is written to `nonfinite/` and the weights before it are checkpointed, beside
        all earlier checkpoints), ShortageError (the same command goes on with further prompts), EngineError (the
        same command goes on) and RunDirectoryError (a checkpoint can't be written). All checkpoints are there when it
        ends, however it does.
        """
        try:
            while self.progress.step < self.steps:
                on_step(self._step())
                stopping = should_stop()
                due = self.progress.step % self.settings.checkpoint_every == 0
                if due or stopping or self.progress.step == self.steps:
                    self.save()
                if stopping:
                    return False
        finally:
            self._checkpoints.wait()
        return True

    def save(self, keep_all: bool = False) -> None:
        """Write a checkpoint of this moment, or, with async_checkpoints, begin to."""
        now = self.progress
        state = {
            "learner": self.learner.state(),
            "supply": self.supply.state(),
            "step": now.step,
            "used": now.used,
            "batch": now.batch and now.batch.state(),
        }
        self._checkpoints.save(now.step, state, None if keep_all else self.settings.keep_checkpoints)

    def _step(self) -> dict[str, float]:
        """One optimizer step, on a new rollout batch where the last one is used up. Returns its metrics."""
        now, settings = self.progress, self.settings
        fresh = now.batch is None or now.used == len(now.batch.parts(settings.updates_per_batch)) * settings.epochs
        if fresh:
            now.batch, now.used = self._collect(), 0
        batch = now.batch
        assert batch is not None
        parts = batch.parts(settings.updates_per_batch)
        part = parts[now.used % len(parts)]
        rollouts = batch.rollouts.prompts(part)
        group = rollouts.group_size
        advantages = batch.advantages[part.start * group : part.stop * group]
        correction = batch.correction and batch.correction.prompts(part, group)

        began = time.perf_counter()
        try:
            metrics = self.learner.step(rollouts, advantages, correction)
        except NonFiniteError as error:
            raise self._record_nonfinite(error, rollouts, advantages, batch.problem_ids[part]) from error
        seconds = time.perf_counter() - began
        now.used += 1
        now.step += 1
        if now.used == 1:  # only at a batch's first step are the sampler's and the learner's weights equal
            batch.metrics |= {key: value for key, value in metrics.items() if key.startswith("rollout/")}
        learned = int(rollouts.lengths.sum())
        times = {"time/learn_s": seconds, "throughput/learned_tokens_per_s": learned / seconds}
        idle = {} if fresh else {key: 0.0 for key in batch.metrics if key.startswith("time/")}
        return {"step": now.step, **metrics, **batch.metrics, **idle, **times}

    def _collect(self) -> Batch:
        try:
            updates = self.settings.updates_per_batch * self.settings.epochs
            return self.supply.next(self.learner, last=self.progress.step + updates >= self.steps)
        except (ShortageError, EngineError):
            self.save()  # with what has been drawn, so that the run goes on, after a shortage with other prompts
            raise

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
        self.save(keep_all=True)  # what makes a loss infinite may be these very weights
        return NonFiniteError(
            f"step {self.progress.step + 1}: {error.what}. Its prompts were {', '.join(problem_ids[:5])}"
            + (f" and {len(problem_ids) - 5} more" if len(problem_ids) > 5 else "")
            + f"; they, and the completions, are in {place.with_suffix('.tsv')}",
            f"the weights before it are saved; {error.remedy}",
        )
