"""The tracker that a configuration's `tracker` names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from carerft.config.settings import TrackerSettings
from carerft.trackers.tracker import Tracker


def named_tracker(
    settings: TrackerSettings, directory: Path, description: Callable[[], dict[str, Any]], step: int = 0
) -> list[Tracker]:
    """One tracker, or none.

    directory: where it writes. description: returns what `wandb.init` takes of the run. step: the last finished step of
    a continued run. Raises CareError if W&B can't start.
    """
    if settings.name == "wandb":
        from carerft.trackers.weights_and_biases import WandbTracker

        target = settings.project, settings.entity, settings.mode
        return [WandbTracker(directory, *target, description(), step)]
    if settings.name == "tensorboard":
        from carerft.trackers.tensorboard import TensorboardTracker

        return [TensorboardTracker(directory, step)]
    return []
