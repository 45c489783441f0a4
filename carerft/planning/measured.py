"""Finished runs, whose measured seconds correct the arithmetic."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from carerft.config.composition import train_settings
from carerft.planning.assumptions import Assumptions, Hardware
from carerft.planning.job import job
from carerft.planning.seconds import seconds
from carerft.planning.shapes import Shape
from carerft.runs.directory import manifests
from carerft.runs.reading import read_lines

NEWEST = 6
"""Runs that correct an estimate: earlier ones may have used another version, or a busier machine."""
TIMES = {"sampling": ("rollout", "grade", "sync", "score"), "learning": ("learn",)}
"""The times of metrics.jsonl that belong to each stage; all other seconds of a run are the rest."""


def newest(directories: Iterable[Path], hardware: Hardware, model: str, most: int = NEWEST) -> list[Path]:
    """The newest finished trainings of this model (its path) on such hardware."""
    runs = [
        (manifest["ended"], directory)
        for directory, manifest in manifests({directory.resolve() for directory in directories})
        if manifest.get("status") == "done" and manifest.get("seconds") and "learner" in manifest["config"]
        if manifest["config"]["model"]["path"] == model and _similar(manifest["hardware"], hardware)
    ]
    return [directory for _, directory in sorted(runs, reverse=True)[:most]]


def _similar(recorded: dict[str, Any], hardware: Hardware) -> bool:
    if hardware.kind == "cpu":
        return hardware.here and not recorded["gpus"] and recorded["cores"] == os.cpu_count()
    return any(hardware.kind in name.lower() for name in recorded["gpus"])


def correction(runs: Sequence[Path], shape: Shape, hardware: Hardware, assumptions: Assumptions) -> dict[str, float]:
    """For each stage the measured seconds of these runs over the computed ones; 1 where nothing was measured."""
    measured, computed = Counter[str](), Counter[str]()
    for directory, manifest in manifests(runs):
        device = hardware.device.times(manifest["hardware"]["threads"] if hardware.kind == "cpu" else 1)
        settings = train_settings(manifest["config"])
        computed.update(seconds(job(settings, assumptions), shape, device, assumptions).stages)
        measured["rest"] += manifest["seconds"]
        for line in read_lines(directory / "metrics.jsonl", []):
            for stage, keys in TIMES.items():
                spent = sum(line.get(f"time/{key}_s", 0.0) for key in keys)
                measured[stage] += spent
                measured["rest"] -= spent
    return {stage: measured[stage] / total if total and measured[stage] else 1.0 for stage, total in computed.items()}
