"""Where a run is shown: metrics.jsonl and a progress bar always, W&B or TensorBoard on request.

Every tracker gets the same, and metrics.jsonl, evaluation/ and evaluation.json hold all of it: no result depends on a
tracker.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from carerft.config.settings import TrackerSettings
from carerft.trackers.metrics_file import MetricsFile
from carerft.trackers.progress import ProgressTracker
from carerft.trackers.tracker import Tracker, Trackers

__all__ = ["MetricsFile", "ProgressTracker", "Trackers", "named_tracker"]


def named_tracker(
    settings: TrackerSettings, directory: Path, description: Callable[[], dict[str, Any]], step: int = 0
) -> list[Tracker]:
    """The tracker that `tracker` names: one, or none.

    directory: where it writes. description: returns what `wandb.init` takes of the run. step: the last finished step of
    a continued run. Raises CareError if W&B can't start.
    """
    if settings.name == "wandb":
        from carerft.trackers.weights_and_biases import WandbTracker

        return [WandbTracker(directory, settings.project, settings.entity, settings.mode, description(), step)]
    if settings.name == "tensorboard":
        from carerft.trackers.tensorboard import TensorboardTracker

        return [TensorboardTracker(directory, step)]
    return []
