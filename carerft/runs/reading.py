"""Run directories as plain data. Files that can't be read are named in a run's `troubles` and left out."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carerft.errors import DataError
from carerft.metrics.calibration import Reliability
from carerft.metrics.statistics import Interval
from carerft.text import line, number

NOT_SEARCHED = {"checkpoints", "model", "wandb", ".hydra", ".git"}
LARGEST_FILE = 1 << 28  # bytes of a manifest.json or evaluation.json; a real one has thousands


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
    curves: metrics.jsonl by column, each of shape (steps,), with NaN where a value is absent.
    troubles: what could not be read, in words.
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
    troubles: tuple[str, ...] = ()

    @property
    def has_results(self) -> bool:
        """Whether its evaluation belongs in the tables. A run that failed may still hold an older evaluation."""
        return self.status == "done" and bool(self.benchmarks)

    @property
    def model_name(self) -> str:
        model = self.config.get("model")
        return line((model.get("name") if isinstance(model, dict) else model) or "", 100)

    @property
    def why_no_results(self) -> str:
        """Why it gives no numbers, in a few words; empty if it gives some."""
        if self.has_results:
            return ""
        words = {"done": "no evaluation yet", "running": "still running, or killed", "unreadable": "unreadable"}
        return words.get(self.status, self.status)


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
        for parent, below, files in os.walk(Path(directory).resolve()):
            below[:] = sorted(name for name in below if name not in NOT_SEARCHED)
            links = [Path(parent, name) for name in below if Path(parent, name).is_symlink()]
            here = [Path(parent)] if "manifest.json" in files else []
            for path in [*here, *(link for link in links if (link / "manifest.json").is_file())]:
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
    evaluation = _read_object(directory / "evaluation.json", troubles, absent_is_fine=True)
    curves = _read_curves(directory / "metrics.jsonl", troubles)
    resampling = evaluation.get("bootstrap")
    level = number(resampling.get("level")) if isinstance(resampling, dict) else None
    seed = number(manifest.get("seed"))
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
        seed=int(seed) if seed is not None else None,
        elapsed=_elapsed(manifest.get("started"), manifest.get("ended")),
        error=str(manifest.get("error") or ""),
        level=level if level is not None and 0 < level < 1 else 0.95,
        benchmarks=_benchmarks(evaluation.get("benchmarks"), troubles),
        curves=curves,
        troubles=tuple(troubles),
    )


def read_lines(path: Path, troubles: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines. Unreadable lines are skipped and counted in `troubles`."""
    broken, last_broken, total = 0, 0, 0
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for total, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                value = _parsed(text)
                if isinstance(value, dict):
                    yield value
                else:
                    broken, last_broken = broken + 1, total
    except OSError as error:
        troubles.append(f"{path.name}: {line(error.strerror or error)}")
    if broken == 1 and last_broken == total:
        troubles.append(f"{path.name}: its last line is incomplete and was left out")
    elif broken:
        troubles.append(f"{path.name}: {broken} of {total} lines are unreadable and were left out")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_object(path: Path, troubles: list[str], absent_is_fine: bool = False) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_FILE:
            troubles.append(f"{path.name} is too large to be one")
            return {}
        value = _parsed(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        if not absent_is_fine:
            troubles.append(f"{path.name} is missing")
        return {}
    except OSError as error:
        troubles.append(f"{path.name}: {line(error.strerror or error)}")
        return {}
    if not isinstance(value, dict):
        troubles.append(f"{path.name} is not readable JSON")
        return {}
    return value


def _read_curves(path: Path, troubles: list[str]) -> dict[str, NDArray[np.float64]]:
    """Columns by step, ascending; where a step occurs twice, its later line counts."""
    if not path.exists():
        return {}
    rows = {step: row for row in read_lines(path, troubles) if (step := number(row.get("step"))) is not None}
    ordered = [rows[step] for step in sorted(rows)]
    names = sorted({name for row in ordered for name in row})
    columns = {name: [number(row.get(name)) for row in ordered] for name in names}
    return {
        name: np.array([math.nan if value is None else value for value in values])
        for name, values in columns.items()
        if any(value is not None for value in values)
    }


def _benchmarks(entries: Any, troubles: list[str]) -> dict[str, BenchmarkResult]:
    benchmarks = {}
    for name, content in entries.items() if isinstance(entries, dict) else ():
        if not isinstance(content, dict) or not isinstance(content.get("metrics"), dict):
            troubles.append(f"evaluation.json: {line(name)} holds no metrics")
            continue
        intervals = {str(key): _interval(value) for key, value in content["metrics"].items()}
        counts = [number(content.get(key)) for key in ("n", "k")]
        n, k = (None if count is None else int(count) for count in counts)
        known = {key: value for key, value in intervals.items() if value is not None}
        benchmarks[str(name)] = BenchmarkResult(n, k, known, _reliability(content.get("reliability")))
    return benchmarks


def _interval(value: Any) -> Interval | None:
    """None where the metric is undefined: null, or an object whose value is."""
    parts = value if isinstance(value, dict) else {"value": value}
    middle, low, high = (number(parts.get(key)) for key in ("value", "low", "high"))
    return None if middle is None else Interval(middle, low, high) if None not in (low, high) else Interval(middle)


def _reliability(entry: Any) -> Reliability | None:
    if not isinstance(entry, dict):
        return None
    entries = (entry.get(key) for key in ("edges", "count", "confidence", "accuracy"))
    columns = [column for column in entries if isinstance(column, list)]
    if len(columns) < 4:
        return None
    edges, count, confidence, accuracy = (
        np.array([math.nan if (x := number(value)) is None else x for value in column], dtype=np.float64)
        for column in columns
    )
    fits = 0 < len(count) == len(confidence) == len(accuracy) == len(edges) - 1
    if not fits or np.isnan(edges).any() or np.isnan(count).any() or (count < 0).any() or (np.diff(edges) <= 0).any():
        return None
    return Reliability(edges, count, confidence, accuracy)


def _texts(content: Any) -> dict[str, str]:
    """The entries of a manifest's section that are set, as text on one line."""
    items = content.items() if isinstance(content, dict) else ()
    return {
        line(key, 40): line(", ".join(map(str, value)) if isinstance(value, list) else value)
        for key, value in items
        if value
    }


def _elapsed(started: Any, ended: Any) -> float | None:
    """Seconds between two times, each in ISO 8601 or in seconds since the epoch."""

    def moment(value: Any) -> float | None:
        if isinstance(value, str):
            try:
                return datetime.fromisoformat(value).timestamp()
            except (ValueError, OverflowError):
                return None
        return number(value)

    start, end = moment(started), moment(ended)
    return None if start is None or end is None else end - start
