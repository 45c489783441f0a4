"""Where a run is shown: metrics.jsonl and a progress bar always, W&B or TensorBoard on request.

Every tracker gets the same, and metrics.jsonl, evaluation/ and evaluation.json hold all of it: no result depends on a
tracker.
"""

from carerft.trackers.metrics_file import MetricsFile
from carerft.trackers.progress import ProgressTracker
from carerft.trackers.tracker import Tracker, Trackers

__all__ = ["MetricsFile", "ProgressTracker", "Tracker", "Trackers"]
