"""The progress bar of a training."""

from typing import ClassVar

from rich.console import Console

from carerft.terminal import progress_bar
from carerft.trackers.tracker import Outcome


class ProgressTracker:
    """A bar with the reward, the entropy and the divergence of the last step."""

    essential: ClassVar = False
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

    def show(self, outcome: Outcome) -> None:
        """Nothing: the command line prints the table."""

    def finish(self, failed: bool) -> None:
        self._bar.stop()
