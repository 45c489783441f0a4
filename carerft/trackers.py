"""Where the metrics of a run go: always metrics.jsonl and a progress bar, and W&B when asked."""

import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from carerft.run_directory import write_atomically

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes the metrics of each step, and a summary at the end."""

    def log(self, metrics: dict[str, float]) -> None:
        """One step's metrics, flat `group/name` keys and `step`."""
        ...

    def finish(self, summary: dict[str, Any]) -> None:
        """The run is over; `summary` may be empty. Called also when it failed."""
        ...


class MetricsFile:
    """metrics.jsonl: one JSON object per learner step. A number that isn't finite is written as null."""

    def __init__(self, path: Path, step: int):
        """Keeps the lines up to `step`: what a killed process wrote after its last checkpoint is done again."""
        write_atomically(path, "".join(_lines_up_to(path, step) if path.exists() else []))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def log(self, metrics: dict[str, float]) -> None:
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        self._file.close()


def _lines_up_to(path: Path, step: int) -> list[str]:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] > step or not line.endswith("\n"):
                break
        except (ValueError, KeyError):  # the half line that a kill left
            break
        kept.append(line)
    return kept


def progress_bar(console: Console, unit: str) -> Progress:
    """The one look of every progress bar."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
        console=console,
    )


class ProgressTracker:
    """A bar with the numbers that one watches."""

    SHOWN: ClassVar = {"reward": "reward/mean", "entropy": "policy/entropy", "kl": "policy/kl_to_reference"}

    def __init__(self, console: Console, description: str, step: int, steps: int):
        self._bar = progress_bar(console, "steps")
        self._bar.start()
        self._task, self._steps = self._bar.add_task(description, total=steps, completed=step, shown=""), steps

    def log(self, metrics: dict[str, float]) -> None:
        shown = " ".join(f"{name} {metrics[key]:.3f}" for name, key in self.SHOWN.items() if key in metrics)
        self._bar.update(self._task, completed=metrics["step"], shown=shown)
        if metrics["step"] == self._steps:  # leaves the screen to the evaluation's bar
            self._bar.stop()

    def finish(self, summary: dict[str, Any]) -> None:
        self._bar.stop()


class WandbTracker:
    """Weights & Biases, offline unless told otherwise. Each run is its own, also within one process."""

    def __init__(self, directory: Path, project: str, entity: str | None, mode: str, run: dict[str, Any]):
        """run: what `wandb.init` takes of the run itself: id, name, group, job_type, tags, config."""
        import wandb

        # A run is resumed under its id; "create_new" keeps two runs of one process apart.
        self._run = wandb.init(
            dir=str(directory),
            project=project,
            entity=entity,
            mode=mode,
            reinit="create_new",
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
            **run,
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: dict[str, float]) -> None:
        self._run.log(metrics)

    def finish(self, summary: dict[str, Any]) -> None:
        self._run.summary.update(summary)
        self._run.finish()


class Trackers:
    """Several trackers as one. finish() reaches each of them, whatever happens to another."""

    def __init__(self, trackers: Iterable[Tracker]):
        self._trackers = list(trackers)

    def log(self, metrics: dict[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(metrics)

    def finish(self, summary: dict[str, Any]) -> None:
        for tracker in self._trackers:
            try:
                tracker.finish(summary)
            except Exception:
                log.exception("%s could not be finished", type(tracker).__name__)
