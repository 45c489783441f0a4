"""Rows of the report: the runs of one configuration over its seeds, under one label."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from carerft.config.identity import REPLICATE_KEYS, decisive, flatten
from carerft.config.settings import defaults
from carerft.metrics.intervals import over_seeds, pooled_spread
from carerft.metrics.names import METRICS, Metric
from carerft.metrics.statistics import Interval
from carerft.runs.labels import algorithm_name, family, run_label, section
from carerft.runs.reading import BenchmarkResult, Run
from carerft.text import line, number

Quantity = tuple[str, str]
"""(benchmark, metric)"""
FAMILIES = ("base", "none", "rkl", "srkl")
# The label already says these, or they differ between machines.
HIDDEN_IN_LABELS = {*REPLICATE_KEYS, "model.path", "regularizer._target_"}


CONFIDENCE = "@confidence"
"""The end of `Row.model` where the model is asked for confidences."""


@dataclass(frozen=True)
class Row:
    """Runs that differ only in their seed, ordered by seed. Only the `evaluated` ones give numbers.

    family: "base" for a model evaluated without training, else the regularizer's name.
    model: where the starting weights come from, with the revision, and whether it is asked for confidences.
    superseded: runs of a seed that a later run has replaced.
    scores: means over seeds with their intervals; a metric that no seed has is absent.
    """

    label: str
    family: str
    model: str
    runs: tuple[Run, ...]
    superseded: tuple[Run, ...] = ()
    scores: dict[Quantity, Interval] = field(default_factory=dict)

    @property
    def evaluated(self) -> list[Run]:
        return [run for run in self.runs if run.has_results]

    @property
    def seeds(self) -> str:
        """How many runs give numbers: "3", or "2 of 3" where some are missing."""
        done, total = len(self.evaluated), len(self.runs)
        return str(done) if done == total else f"{done} of {total}"

    @cached_property
    def settings(self) -> Mapping[str, object]:
        """The whole configuration with dotted keys, defaults included."""
        return defaults() | flatten(dict(self.runs[0].config))

    def results(self, benchmark: str) -> list[BenchmarkResult]:
        """This benchmark's results, one per evaluated seed that has them."""
        return [run.benchmarks[benchmark] for run in self.evaluated if benchmark in run.benchmarks]

    def per_seed(self, benchmark: str, metric: str) -> list[Interval]:
        """One interval over questions for each seed in which the metric is defined."""
        return [result.metrics[metric] for result in self.results(benchmark) if metric in result.metrics]


def make_rows(runs: Sequence[Run]) -> list[Row]:
    """Group readable runs into rows: the base model first, then no penalty, RKL, SRKL and others, weak to strong.

    Trained rows and base models each share a spread between seeds.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.status != "unreadable":
            groups.setdefault(run.command + _identity(run), []).append(run)
    first = [group[0] for group in groups.values()]
    rows = [
        Row(label, family(run.command, run.config), _model(run), *_newest(group))
        for label, run, group in zip(_labels(first), first, groups.values(), strict=True)
    ]
    for is_base in (True, False):
        _score([row for row in rows if (row.family == "base") == is_base], level(runs))
    return sorted(rows, key=_order)


def quantities(rows: Sequence[Row]) -> list[Quantity]:
    """Every benchmark and metric that any of the rows has, by name."""
    return sorted({quantity for row in rows for quantity in row.scores})


def describe(metric: str) -> Metric:
    """A metric's title, direction and meaning; one that this version does not know has only its name."""
    return METRICS.get(metric) or Metric("", line(metric, 40).replace("_", " "), 0, "")


def base_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The evaluation of the model that a trained row started from; None if it is missing, or the row is a base."""
    bases = [other for other in rows if other.family == "base" and other.model == row.model and other.evaluated]
    return bases[0] if bases and row.family != "base" else None


def run_value(run: Run, quantity: Quantity) -> float | None:
    """A metric of one run; None where it is undefined."""
    benchmark, metric = quantity
    interval = run.benchmarks[benchmark].metrics.get(metric) if benchmark in run.benchmarks else None
    return None if interval is None else interval.value


def level(runs: Sequence[Run]) -> float:
    """The confidence level of the runs' intervals (the lowest, where they differ)."""
    return min((run.level for run in runs if run.has_results), default=0.95)


def _score(rows: Sequence[Row], level: float) -> None:
    """Fill in the scores of these rows, whose intervals share one spread between seeds."""
    results = [item for row in rows for run in row.evaluated for item in run.benchmarks.items()]
    for name, metric in sorted({(name, metric) for name, result in results for metric in result.metrics}):
        seeds = [row.per_seed(name, metric) for row in rows]
        spread = pooled_spread([[interval.value for interval in intervals] for intervals in seeds])
        for row, intervals in zip(rows, seeds, strict=True):
            if intervals:
                row.scores[name, metric] = over_seeds(intervals, spread, level, describe(metric).bounds)


def _identity(run: Run) -> str:
    shared = {key: value for key, value in decisive(dict(run.config)).items() if key not in REPLICATE_KEYS}
    return json.dumps(shared, sort_keys=True, default=str)


def _newest(group: list[Run]) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """The run that stands for each replicate (done before unfinished, then the last by path), and all others."""
    newest: dict[tuple[str, ...], Run] = {}
    superseded = []
    for run in sorted(group, key=lambda run: (run.has_results, run.directory.parts)):
        flat = decisive(dict(run.config))
        replicate = tuple(str(flat.get(key, run.seed if key == "seed" else None)) for key in REPLICATE_KEYS)
        if replicate in newest:
            superseded.append(newest[replicate])
        newest[replicate] = run
    ordered = sorted(newest.values(), key=lambda run: (run.seed is None, run.seed or 0, run.directory.parts))
    return tuple(ordered), tuple(superseded)


def _model(run: Run) -> str:
    model = section(run.config, "model")
    asked = CONFIDENCE if model.get("confidence") else ""  # the built-in one is then another model
    return f"{model.get('path', model.get('name'))}@{model.get('revision')}{asked}"


def _labels(runs: Sequence[Run]) -> list[str]:
    """Short labels; where two agree, the settings (at most three) in which their configurations differ follow."""
    trained = [run for run in runs if run.command == "train"]
    models, algorithms = ({name(run) for run in trained} for name in (_model, lambda run: algorithm_name(run.config)))
    short = [run_label(run.command, run.config) for run in runs]
    for index, run in enumerate(runs):
        if run.command != "train" and _model(run) in models:
            short[index] = "base model, with confidences" if _model(run).endswith(CONFIDENCE) else "base model"
        elif run.command == "train" and len(algorithms) > 1:
            short[index] = f"{algorithm_name(run.config)}, {short[index]}"
    settings = [decisive(dict(run.config)) for run in runs]
    labels = []
    for label, own, run in zip(short, settings, runs, strict=True):
        twins = [other for twin, other in zip(short, settings, strict=True) if twin == label]
        differ = {key for twin in twins for key in twin | own if twin.get(key) != own.get(key)}
        implied = {key for key in differ if f"{key.rsplit('.', 1)[0]}.name" in differ and not key.endswith(".name")}
        shown = sorted(differ - implied - HIDDEN_IN_LABELS, key=lambda key: (not key.endswith(".name"), key))[:3]
        values = defaults() | flatten(dict(run.config))
        labels.append(", ".join([label, *(_setting(key, values.get(key)) for key in shown)]))
    return [
        label if labels.count(label) == 1 else f"{label} ({run.config_hash or run.name})"
        for label, run in zip(labels, runs, strict=True)
    ]


def _setting(key: str, value: Any) -> str:
    return line(value, 40) if key.endswith(".name") else f"{key.removeprefix('regularizer.')}={line(value, 40)}"


def _order(row: Row) -> tuple[Any, ...]:
    config = row.runs[0].config
    regularizer = section(config, "regularizer")
    position = FAMILIES.index(row.family) if row.family in FAMILIES else len(FAMILIES)
    algorithm = "" if row.family == "base" else algorithm_name(config)
    matched = float(regularizer.get("match") == "local")
    strength = [number(regularizer.get("alpha")) or 0.0, matched, number(regularizer.get("beta")) or 0.0]
    return row.family != "base", algorithm, position, row.family, strength, row.label
