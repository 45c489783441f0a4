"""metrics.jsonl: every run has one."""

import json
import math
from pathlib import Path
from typing import ClassVar

from carerft.runs.directory import write_atomically
from carerft.trackers.tracker import Outcome


class MetricsFile:
    """metrics.jsonl: one JSON object per learner step. A number that isn't finite is written as null."""

    essential: ClassVar = True

    def __init__(self, path: Path, step: int):
        """Keeps the lines up to `step`: a continued run repeats the steps after its last checkpoint."""
        write_atomically(path, "".join(_lines_up_to(path, step) if path.exists() else []))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def log(self, metrics: dict[str, float]) -> None:
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()

    def show(self, outcome: Outcome) -> None:
        """Nothing: evaluation.json holds it."""

    def finish(self, failed: bool) -> None:
        self._file.close()


def _lines_up_to(path: Path, step: int) -> list[str]:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] > step or not line.endswith("\n"):
                break
        except (ValueError, KeyError):  # the half line that a kill left
            break
        lines.append(line)
    return lines
