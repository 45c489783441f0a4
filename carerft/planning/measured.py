"""What finished runs measured: seconds of their stages, and the lengths of their texts."""

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from carerft.planning.assumptions import Hardware
from carerft.runs.directory import read_manifest
from carerft.runs.reading import read_lines

NEWEST = 6
"""Runs that an estimate goes by: those before them may have met another version, or a busier machine."""


@dataclass(frozen=True)
class Measured:
    """Of one run. sampling, learning: seconds of all of its rollout batches and optimizer steps; rest: of everything
    else: start, evaluation, saving. cores: threads that it had.

    completion: mean tokens while training, groups and rounds: sampled for each kept group, and for each batch (None in
    an evaluation alone); answers: mean tokens by benchmark; questions: their numbers.
    """

    config: dict[str, Any]
    cores: int
    sampling: float
    learning: float
    rest: float
    completion: float | None = None
    groups: float = 1.0
    rounds: float = 1.0
    answers: dict[str, float] = field(default_factory=dict)
    questions: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return self.sampling + self.learning + self.rest


def finished(directories: Iterable[Path], hardware: Hardware, model: str) -> list[Path]:
    """The newest of these run directories that are done, of this model (its path), on such hardware; newest first."""
    found = {}
    for directory in {place.resolve() for place in directories}:
        manifest = read_manifest(directory) or {}
        done = manifest.get("status") == "done" and manifest.get("seconds")
        if done and manifest["config"]["model"]["path"] == model and _like(manifest["hardware"], hardware):
            found[directory] = manifest["ended"]
    return sorted(found, key=lambda place: (found[place], place), reverse=True)


def _like(seen: dict[str, Any], hardware: Hardware) -> bool:
    if hardware.kind == "cpu":
        return hardware.here and not seen["gpus"] and seen["cores"] == os.cpu_count()
    return any(hardware.kind in name.lower() for name in seen["gpus"])


def read(directory: Path) -> Measured:
    """What a finished run's files say. A run that was continued counts the steps that it kept."""
    manifest = read_manifest(directory) or {}
    config, answers, questions = manifest["config"], {}, {}
    for name in config["benchmark"]:
        tokens = [line["tokens"] for line in read_lines(directory / "evaluation" / f"{name}.jsonl", [])]
        if tokens:
            answers[name], questions[name] = sum(tokens) / len(tokens), len(tokens) // config["samples"]
    steps = list(read_lines(directory / "metrics.jsonl", []))
    spent = {
        stage: sum(line.get(f"time/{key}_s", 0.0) for line in steps for key in keys)
        for stage, keys in {"sampling": ("rollout", "grade", "sync", "score"), "learning": ("learn",)}.items()
    }
    one = Measured(config, manifest["hardware"]["threads"], **spent, rest=manifest["seconds"] - sum(spent.values()))
    texts = {"answers": answers, "questions": questions}
    if steps:
        kept = 1 - _mean(steps, "reward/equal_groups")
        dynamic = config["algorithm"]["dynamic_sampling"] and kept > 0
        texts |= {"completion": _mean(steps, "rollout/length_mean"), "rounds": _mean(steps, "rollout/rounds")}
        texts |= {"groups": 1 / kept if dynamic else 1.0}
    return Measured(**{**vars(one), **texts})


def with_lengths(stated: dict[str, Any], measured: Sequence[Measured]) -> dict[str, Any]:
    """The assumptions, with the lengths of texts replaced by those that were measured: means over the runs."""
    stated = copy.deepcopy(stated)
    for one in measured:
        task = one.config.get("task", {}).get("name")
        for name in {*one.answers, *([task] if task and one.completion else [])}:
            stated["texts"].setdefault(name, dict(stated["texts"]["other"]))
    for name, entry in stated["texts"].items():
        answers = [one.answers[name] for one in measured if name in one.answers]
        trained = [one.completion for one in measured if one.completion and one.config["task"]["name"] == name]
        if answers or trained:
            entry["completion"] = sum(answers or trained) / len(answers or trained)
        if numbers := [one.questions[name] for one in measured if one.questions.get(name)]:
            entry["questions"] = max(numbers)
    if dynamic := [one for one in measured if one.completion and one.config["algorithm"]["dynamic_sampling"]]:
        stated["dynamic"] = {key: sum(getattr(one, key) for one in dynamic) / len(dynamic) for key in stated["dynamic"]}
    return stated


def _mean(lines: Sequence[dict[str, Any]], key: str) -> float:
    return sum(line.get(key, 0.0) for line in lines) / len(lines)
