"""The trainer: the order in which a run samples, grades, learns and saves.

Everything random (which prompts, which samples) is a function of the seed and a counter. Beside weights and optimizer
state, a resumed run therefore needs a few counters and the current rollout batch.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from carerft.config.settings import KeepSettings, LearnerSettings
from carerft.errors import EngineError, NonFiniteError, ShortageError, UserCodeError
from carerft.rollout import completion_texts
from carerft.runs.directory import write_atomically
from carerft.training.checkpoint import Checkpoints
from carerft.training.collector import Batch, Collector, warn_of_mismatch
from carerft.training.learner import Learner
from carerft.training.lookahead import Lookahead
from carerft.training.samples import chosen, write_samples

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run is. step: optimizer steps done; used: those made from `batch`.

    unlogged: metrics of the last step, if the policy is yet to be measured after it.
    """

    step: int = 0
    used: int = 0
    batch: Batch | None = None
    unlogged: dict[str, float] | None = None


@dataclass
class Trainer:
    """Samples, grades, learns and saves until `steps` optimizer steps are done. directory: the run's.

    validate: measures the policy after this many steps, and returns metrics; called before the first step and after
    every `validate_every` ones. on_samples: told of each file of samples, and of the step that comes next.
    """

    learner: Learner
    source: Collector | Lookahead
    tokenizer: PreTrainedTokenizerBase
    settings: LearnerSettings
    steps: int
    directory: Path
    validate: Callable[[int], dict[str, float]] | None = None
    validate_every: int | None = None
    keep_samples: KeepSettings = field(default_factory=KeepSettings)
    on_samples: Callable[[int, Path], None] | None = None
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        aside = self.settings.async_checkpoints
        aside = self.learner.policy.device.type != "cpu" if aside is None else aside
        self._checkpoints = Checkpoints(self.directory / "checkpoints", self.learner, aside)
        self._saved = time.monotonic()

    def resume(self) -> int:
        """Continue from the newest intact checkpoint, if there is one. Returns the number of steps whose metrics were
        logged."""
        state = self._checkpoints.load_latest()
        if state is not None:
            self.learner.load_state(state["learner"])
            batch = state["batch"] and Batch.from_state(state["batch"])
            self.progress = Progress(state["step"], state["used"], batch, state.get("unlogged"))
            self.source.load_state(state["supply"])
        return self.progress.step - (self.progress.unlogged is not None)

    def run(self, on_step: Callable[[dict[str, float]], None], should_stop: Callable[[], bool]) -> bool:
        """Train to the end. Returns whether the run is complete; False if it was stopped.

        on_step: called with each step's metrics. should_stop: called after each step; True stops the run, with a
        checkpoint.

        Raises NonFiniteError (the batch is written to `nonfinite/`; the weights before it are checkpointed, and no
        earlier checkpoint is deleted), ShortageError, EngineError and UserCodeError (the same command continues) and
        RunDirectoryError (a checkpoint cannot be written). All checkpoints are complete when this returns or raises.
        """
        try:
            progress = self.progress
            if self.validate and self.validate_every and progress.step == 0:
                on_step({"step": 0} | self._validation())
            if progress.unlogged:
                on_step(progress.unlogged | self._validation())
                progress.unlogged = None
            while progress.step < self.steps:
                metrics = self._step()
                validates = self.validate_every is not None and progress.step % self.validate_every == 0
                if validates:  # a process that is killed while it measures goes on with these very weights
                    progress.unlogged = metrics
                    self.save()
                    metrics = metrics | self._validation()
                    progress.unlogged = None
                on_step(metrics)
                stopping = should_stop()
                if not validates and (self._due() or stopping or progress.step == self.steps):
                    self.save()
                if stopping:
                    return False
        finally:
            self._checkpoints.wait()
        return True

    def _due(self) -> bool:
        """Whether enough steps, or minutes, have passed since the last checkpoint or the start."""
        if self.settings.checkpoint_every:
            return self.progress.step % self.settings.checkpoint_every == 0
        return time.monotonic() - self._saved >= 60 * self.settings.checkpoint_minutes

    def save(self, keep_all: bool = False) -> None:
        """Write a checkpoint or, with async_checkpoints, begin to write it. keep_all: delete no earlier one."""
        step, batch = self.progress.step, self.progress.batch
        state = {"learner": self.learner.state(), "supply": self.source.state(), **vars(self.progress)}
        state["batch"] = batch and batch.state()
        self._checkpoints.save(step, state, None if keep_all else self.settings.keep_checkpoints)
        self._saved = time.monotonic()

    def _validation(self) -> dict[str, float]:
        assert self.validate is not None, "validate_every comes with it"
        self._checkpoints.wait()
        self.source.wait()
        start = time.perf_counter()
        metrics = self.validate(self.progress.step)
        return metrics | {"time/evaluate_s": time.perf_counter() - start}

    def _step(self) -> dict[str, float]:
        """One optimizer step, on a new rollout batch if the last one is used up. Returns its metrics."""
        progress, settings, batch = self.progress, self.settings, self.progress.batch
        fresh = batch is None or progress.used == len(batch.parts(settings.updates_per_batch)) * settings.epochs
        if batch is None or fresh:
            batch = progress.batch = self._next_batch()
            progress.used = 0
        parts = batch.parts(settings.updates_per_batch)
        part = batch.prompts(parts[progress.used % len(parts)])

        start = time.perf_counter()
        try:
            correction = part.correction
            if correction and progress.used == 0:  # the weights are still those that the ratio is to
                correction = replace(correction, log_probs=None)
            metrics = self.learner.step(part.rollouts, part.advantages, correction)
        except NonFiniteError as error:
            raise self._record_nonfinite(error, part) from error
        seconds = time.perf_counter() - start
        progress.used += 1
        progress.step += 1
        if progress.used == 1:  # the sampler's and the learner's weights are equal only at a batch's first step
            batch.metrics |= {key: value for key, value in metrics.items() if key.startswith("rollout/")}
        if progress.step == 1:
            warn_of_mismatch(metrics, self.learner, batch.correction)
        tokens = int(part.rollouts.lengths.sum())
        times = {} if fresh else {key: 0.0 for key in batch.metrics if key.startswith("time/")}
        times |= {"time/learn_s": seconds, "throughput/learned_tokens_per_s": tokens / seconds}
        return {"step": progress.step, **metrics, **batch.metrics, **times}

    def _next_batch(self) -> Batch:
        updates = self.settings.updates_per_batch * self.settings.epochs
        try:
            batch = self.source.next(self.learner, last=self.progress.step + updates >= self.steps)
            steps = range(self.progress.step + 1, self.progress.step + updates + 1)
            every = self.keep_samples.every
            if every and (steps.start == 1 or any(step % every == 0 for step in steps)):
                self._keep_samples(batch)
            return batch
        except (ShortageError, EngineError, UserCodeError):
            self.save()  # with the source's state, so that the run continues, after a shortage with other prompts
            raise

    def _keep_samples(self, batch: Batch) -> None:
        """Write some prompts' completions; a disk that is full costs the samples, and not the run."""
        if batch.judged is None:  # of a run that was stopped while it sampled ahead
            return
        kept = batch.prompts(torch.tensor(chosen(batch.problem_ids, self.keep_samples.prompts)))
        reference = self.learner.log_probs(kept.rollouts, True) if self.learner.reference is not None else None
        path = self.directory / "samples" / f"step_{self.progress.step + 1}.jsonl"
        try:
            write_samples(path, kept, reference, self.tokenizer)
        except OSError as error:
            log.warning("%s could not be written (%s): the run goes on without it", path, error.strerror)
            return
        if self.on_samples:
            self.on_samples(self.progress.step + 1, path)

    def _record_nonfinite(self, error: NonFiniteError, part: Batch) -> NonFiniteError:
        """Write the failed step's inputs and a checkpoint of the weights before it. Returns the error to raise."""
        path = self.directory / "nonfinite" / f"step_{self.progress.step + 1}"
        path.parent.mkdir(parents=True, exist_ok=True)
        problems = [problem for problem in part.problem_ids for _ in range(part.rollouts.group_size)]
        rows = zip(problems, part.advantages, completion_texts(part.rollouts, self.tokenizer), strict=True)
        lines = "".join(f"{problem}\t{float(advantage):+.4f}\t{text!r}\n" for problem, advantage, text in rows)
        write_atomically(path.with_suffix(".tsv"), "problem\tadvantage\tcompletion\n" + lines)
        torch.save({"rollouts": asdict(part.rollouts), "advantages": part.advantages}, path.with_suffix(".pt"))
        self.save(keep_all=True)  # the cause may lie in these weights, so earlier ones are kept
        return NonFiniteError(
            f"step {self.progress.step + 1}: {error.what}. Its prompts are {', '.join(part.problem_ids[:5])}"
            + (f" and {len(part.problem_ids) - 5} more" if len(part.problem_ids) > 5 else "")
            + f"; they and the completions are in {path.with_suffix('.tsv')}",
            f"the weights before it are saved; {error.remedy}",
        )
