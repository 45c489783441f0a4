"""Offline W&B runs, read back with W&B's own tool."""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 20
"""Seconds for W&B's own process, on a busy machine, to write the end of a run. A run that was killed has no end."""


@dataclass
class OfflineRun:
    """One `wandb/offline-run-*` directory."""

    directory: Path
    records: list[dict[str, Any]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record[kind] for record in self.records if record["type"] == kind]

    @property
    def run(self) -> dict[str, Any]:
        """The run itself: run_id, run_group, job_type, tags, display_name, config."""
        return self.of("run")[0]

    @property
    def history(self) -> list[dict[str, Any]]:
        """Each row that was logged, without W&B's own columns."""
        rows = [record["item"] for record in self.of("history")]
        return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The rows of learner steps: all but the one that shows the evaluation."""
        return [row for row in self.history if "loss/total" in row]

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for record in self.of("summary"):
            found |= record["update"]
        return found


def offline_runs(directory: Path) -> list[OfflineRun]:
    """The offline runs of one run directory, in the order of their start."""
    from wandb.util import get_core_path

    found = []
    for place in sorted(directory.glob("wandb/offline-run-*")):
        (file,) = place.glob("*.wandb")
        # What `wandb leet inspect` runs.
        command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", file, place]
        deadline = time.monotonic() + PATIENCE
        while True:
            printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
            run = OfflineRun(place, [json.loads(line) for line in printed.splitlines() if line.startswith("{")])
            if run.of("exit") or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        found.append(run)
    return found


def offline_run(directory: Path) -> OfflineRun:
    (found,) = offline_runs(directory)
    return found
