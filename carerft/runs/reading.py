"""Run directories as plain data. Files that can't be read are named in a run's `troubles` and left out."""

import json
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carerft.errors import ConfigError, DataError
from carerft.metrics.calibration import Reliability
from carerft.metrics.names import METRICS, OF_SOME_ANSWERS
from carerft.metrics.statistics import Interval
from carerft.runs.labels import section
from carerft.text import line, number

NOT_SEARCHED = {"checkpoints", "model", "wandb", ".hydra", ".git"}


@dataclass(frozen=True)
class BenchmarkResult:
    """One benchmark's entry of evaluation.json: n questions, k samples each, metrics with intervals."""

    n: int | None
    k: int | None
    metrics: dict[str, Interval]
    reliability: Reliability | None


@dataclass(frozen=True)
class Run:
    """One run directory.

    name: its path below the directory that all runs share, for display.
    status: "running", "done", "failed", "interrupted", or "unreadable" if its manifest is.
    validations: by the steps done, what was measured while it learned.
    curves: metrics.jsonl by column, each of shape (steps,), with NaN where a value is absent.
    troubles: what could not be read, in words.
    recorded: whether it comes from a record, which has no texts (`carerft.report.record`).
    """

    directory: Path
    name: str
    status: str
    command: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    config_hash: str = ""
    git: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: str = ""
    seed: int | None = None
    elapsed: float | None = None
    error: str = ""
    level: float = 0.95
    benchmarks: Mapping[str, BenchmarkResult] = field(default_factory=dict)
    curves: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    validations: Mapping[int, Mapping[str, BenchmarkResult]] = field(default_factory=dict)
    troubles: tuple[str, ...] = ()
    recorded: bool = False

    @property
    def has_results(self) -> bool:
        """Whether its evaluation belongs in the tables. A run that failed may still hold an older evaluation."""
        return self.status == "done" and bool(self.benchmarks)

    @property
    def model_name(self) -> str:
        return line(section(self.config, "model").get("name") or "", 100)

    @property
    def why_no_results(self) -> str:
        """Why it gives no numbers, in a few words; empty if it gives some."""
        if self.has_results:
            return ""
        words = {"done": "no evaluation yet", "running": "still running, or killed", "unreadable": "unreadable"}
        return words.get(self.status, self.status)


def steps_of(checkpoints: Path) -> list[int]:
    """The steps that have a checkpoint in a run's directory of them, ascending."""
    names = (path.name.removeprefix("step_") for path in checkpoints.glob("step_*"))
    return sorted(int(name) for name in names if name.isdigit())


def validations(run: Path) -> dict[int, Path]:
    """The evaluation.json of each measurement of a run while it learned, by the steps done, in their order."""
    files = run.glob("evaluation/step_*/evaluation.json")
    found = {int(step): path for path in files if (step := path.parent.name[5:]).isdigit()}
    return dict(sorted(found.items()))


def best_step(run: Path, metric: str) -> int | None:
    """The first step after which a metric, written BENCHMARK.METRIC, was best; None if it was never known.

    Raises ConfigError if the benchmark has no such metric, whatever a model answers.
    """
    benchmark, _, name = metric.partition(".")
    values: dict[int, float] = {}
    measured: dict[str, Any] = {}
    for step, path in validations(run).items():
        measured |= (found := json.loads(path.read_text(encoding="utf-8"))["benchmarks"][benchmark]["metrics"])
        if name in found and found[name]["value"] is not None:
            values[step] = METRICS[name].direction * found[name]["value"]
    if measured and name not in measured and name not in OF_SOME_ANSWERS:
        better = (each for each in measured if METRICS[each].direction and METRICS[each].in_terminal)
        raise ConfigError(
            f"keep_best={metric}: {benchmark} has no {name}", f"write {benchmark}. and one of {', '.join(better)}"
        )
    return max(values, key=values.__getitem__, default=None)


def common_directory(directories: Sequence[Path]) -> Path:
    """The deepest directory that holds all of these."""
    return Path(os.path.commonpath([str(Path(d).resolve()) for d in directories]))


def load_runs(directories: Sequence[Path], model: str | None = None) -> list[Run]:
    """Every run at or below these directories, in the order of their paths. A run that several links
    point to is read once. model: only runs of the model of this name.

    Raises DataError if a directory doesn't exist, or none of them holds a run.
    """
    if not directories:
        raise DataError("no directory was given to report on", "name one or more: carerft report outputs/demo")
    for directory in directories:
        if not Path(directory).is_dir():
            raise DataError(f"{directory} is not a directory", "name directories that hold runs (a manifest.json each)")
    paths: dict[Path, Path] = {}  # from a run's real path to the path to show: the same, or else the first link to it
    for directory in directories:
        for parent, below, _ in os.walk(Path(directory).resolve()):
            below[:] = sorted(name for name in below if name not in NOT_SEARCHED)
            links = [Path(parent, name) for name in below if Path(parent, name).is_symlink()]
            for path in [path for path in (Path(parent), *links) if (path / "manifest.json").is_file()]:
                if path.resolve() not in paths or not path.is_symlink():
                    paths[path.resolve()] = path
    if not paths:
        raise DataError(
            f"no runs (directories with a manifest.json) in {', '.join(str(d) for d in directories)}",
            "make some: carerft train -m regularizer=none,rkl,srkl, then carerft report outputs/train",
        )
    root = common_directory(directories)
    runs = [load_run(path, root) for path in sorted(paths.values(), key=lambda path: path.parts)]
    if model is None:
        return runs
    names = {run.model_name for run in runs}
    if model not in names:
        raise DataError(f"no run of model {model!r}", f"models of these runs: {', '.join(sorted(names))}")
    return [run for run in runs if run.model_name == model]


def load_run(directory: Path, root: Path) -> Run:
    """One run directory, as much of it as can be read."""
    name = line(directory.relative_to(root).as_posix() if directory != root else directory.name, 200)
    troubles: list[str] = []
    manifest = _read_object(directory / "manifest.json", troubles)
    if not isinstance(manifest.get("config"), dict):
        troubles = troubles or ["manifest.json holds no configuration"]
        return Run(directory, name, "unreadable", troubles=tuple(troubles))
    evaluation = _read_object(directory / "evaluation.json", troubles)
    curves = _read_curves(directory / "metrics.jsonl", troubles)
    return Run(
        directory=directory,
        name=name,
        status=line(manifest.get("status"), 20),
        command=line(manifest.get("command", ""), 20),
        config=manifest["config"],
        config_hash=line(manifest.get("config_hash") or "", 64),
        git=line(manifest.get("git") or "", 64),
        versions=_texts(manifest.get("versions")),
        hardware=", ".join(f"{key} {value}" for key, value in _texts(manifest.get("hardware")).items()),
        seed=seed if isinstance(seed := manifest.get("seed"), int) else None,
        elapsed=_elapsed(manifest.get("started"), manifest.get("ended")),
        error=str(manifest.get("error") or ""),
        level=section(evaluation, "bootstrap").get("level", 0.95),
        benchmarks=_benchmarks(evaluation.get("benchmarks"), troubles),
        curves=curves,
        validations={
            step: _benchmarks(_read_object(path, troubles).get("benchmarks"), troubles)
            for step, path in validations(directory).items()
        },
        troubles=tuple(troubles),
        recorded=manifest.get("recorded") is True,
    )


def read_lines(path: Path, troubles: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines. Unreadable lines are skipped and counted in `troubles`."""
    return (value for _, value in numbered_lines(path, troubles))


def numbered_lines(
    path: Path, troubles: list[str], wanted: Container[int] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `read_lines`, each with the number of its line. wanted: only these lines are parsed; by default all."""
    broken, total = [], 0
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for total, text in enumerate(file, start=1):
                if wanted is not None and total not in wanted:
                    continue
                value = _parsed(text)
                if isinstance(value, dict):
                    yield total, value
                elif text.strip():
                    broken.append(total)
    except OSError as error:
        troubles.append(f"{path.name}: {line(error.strerror or error)}")
    if broken == [total]:
        troubles.append(f"{path.name}: its last line is incomplete and was left out")
    elif broken:
        troubles.append(f"{path.name}: {len(broken)} of {total} lines are unreadable and were left out")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_object(path: Path, troubles: list[str]) -> dict[str, Any]:
    """The JSON object in a file; empty where the file is absent or can't be read."""
    try:
        value = _parsed(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        troubles.append(f"{path.name}: {line(error.strerror or error)}")
        return {}
    if isinstance(value, dict):
        return value
    troubles.append(f"{path.name} is not readable JSON")
    return {}


def _read_curves(path: Path, troubles: list[str]) -> dict[str, NDArray[np.float64]]:
    """Columns by step, ascending; where a step occurs twice, its later line counts."""
    if not path.exists():
        return {}
    rows = {step: row for row in read_lines(path, troubles) if (step := number(row.get("step"))) is not None}
    ordered = [rows[step] for step in sorted(rows)]
    names = sorted({name for row in ordered for name in row})
    columns = {name: np.array([number(row.get(name)) for row in ordered], dtype=float) for name in names}
    return {name: column for name, column in columns.items() if not np.isnan(column).all()}


def _benchmarks(entries: Any, troubles: list[str]) -> dict[str, BenchmarkResult]:
    benchmarks = {}
    for name, content in entries.items() if isinstance(entries, dict) else ():
        if not isinstance(content, dict) or not isinstance(content.get("metrics"), dict):
            troubles.append(f"evaluation.json: {line(name)} holds no metrics")
            continue
        intervals = {key: _interval(value) for key, value in content["metrics"].items()}
        known = {key: value for key, value in intervals.items() if value is not None}
        n, k = (None if (count := number(content.get(key))) is None else int(count) for key in ("n", "k"))
        benchmarks[name] = BenchmarkResult(n, k, known, _reliability(content.get("reliability")))
    return benchmarks


def _interval(entry: Any) -> Interval | None:
    """None where the metric is undefined: null, or an object whose value is."""
    if not isinstance(entry, dict) or (value := number(entry.get("value"))) is None:
        return None
    low, high = number(entry.get("low")), number(entry.get("high"))
    return Interval(value) if low is None or high is None else Interval(value, low, high)


def _reliability(entry: Any) -> Reliability | None:
    """None where the lists don't make a diagram. null, in place of the accuracy of an empty bin, is NaN."""
    try:
        diagram = Reliability(*(np.array(entry[key], dtype=float) for key in Reliability._fields))
    except (KeyError, TypeError, ValueError):
        return None
    edges, count, confidence, accuracy = diagram
    fits = 0 < len(count) == len(confidence) == len(accuracy) == len(edges) - 1
    return diagram if fits and (count >= 0).all() and (np.diff(edges) > 0).all() else None


def _texts(content: Any) -> dict[str, str]:
    """The entries of a manifest's section that are set, as text on one line."""
    items = content.items() if isinstance(content, dict) else ()
    return {
        line(key, 40): line(", ".join(map(str, value)) if isinstance(value, list) else value)
        for key, value in items
        if value
    }


def _elapsed(started: Any, ended: Any) -> float | None:
    """Seconds between two times in ISO 8601; None where one is absent."""
    try:
        return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
    except (TypeError, ValueError):
        return None
