"""metrics.jsonl: every run has one."""

import json
import math
from itertools import takewhile
from pathlib import Path

from carerft.runs.directory import write_atomically
from carerft.runs.reading import read_lines
from carerft.trackers.tracker import Tracker


class MetricsFile(Tracker):
    """metrics.jsonl: one JSON object per learner step. A number that isn't finite is written as null."""

    essential = True

    def __init__(self, path: Path, step: int):
        """Keeps the lines up to `step`: a continued run repeats the steps after its last checkpoint."""
        kept = takewhile(lambda metrics: metrics["step"] <= step, read_lines(path, []))
        write_atomically(path, "".join(json.dumps(metrics) + "\n" for metrics in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def log(self, metrics: dict[str, float]) -> None:
        if not metrics["step"]:  # a measurement before the first step: it has a file of its own
            return
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()

    def finish(self, failed: bool) -> None:
        self._file.close()
