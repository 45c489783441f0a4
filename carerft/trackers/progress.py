"""The progress bar of a training."""

from rich.console import Console

from carerft.terminal import Bar
from carerft.trackers.tracker import Tracker

SHOWN = {"reward": "reward/mean", "entropy": "policy/entropy", "kl": "policy/kl_to_reference"}


class ProgressTracker(Tracker):
    """A bar with the reward, the entropy and the divergence of the last step."""

    def __init__(self, console: Console, description: str, step: int, steps: int):
        self._bar = Bar(console, "steps")
        self._bar.start()
        self._task, self._steps = self._bar.add_task(description, total=steps, completed=step, shown=""), steps

    def log(self, metrics: dict[str, float]) -> None:
        shown = " ".join(f"{name} {metrics[key]:.3f}" for name, key in SHOWN.items() if key in metrics)
        self._bar.update(self._task, completed=metrics["step"], shown=shown)
        if metrics["step"] == self._steps:  # leaves the screen to the evaluation's bar
            self._bar.stop()

    def finish(self, failed: bool) -> None:
        self._bar.stop()
