"""Rows of the report: runs of one configuration, over its seeds, with a name and a place in the order."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from carerft.config.identity import decisive, flatten
from carerft.config.settings import defaults
from carerft.metrics.intervals import Interval, over_seeds, pooled_spread
from carerft.runs.reading import Benchmark, Run
from carerft.text import line, number

# What tells the replicates of one cell apart: the seed, and which pretrained base model it started from.
REPLICATE_KEYS = ("seed", "model.base")
FAMILIES = ("base", "none", "rkl", "srkl")
# Said elsewhere in the label, or different on every machine.
HIDDEN_IN_LABELS = {*REPLICATE_KEYS, "model.path", "regularizer._target_"}
# What a metric can't leave; [0, 1] for those not named here.
BOUNDS = {"entropy": (0.0, math.inf), "nll": (0.0, math.inf), "brier_debiased": (-math.inf, math.inf)}


@dataclass(frozen=True)
class Cell:
    """One row: runs that differ only in their seed, by seed. Only `evaluated` ones give numbers.

    family: "base" for a model as it is, else the regularizer's name; decides colour and order.
    model: where the starting weights come from, with the revision.
    superseded: repetitions of a seed that a later run has replaced.
    """

    label: str
    family: str
    model: str
    runs: tuple[Run, ...]
    superseded: tuple[Run, ...] = ()

    @property
    def evaluated(self) -> list[Run]:
        return [run for run in self.runs if run.counts]

    @property
    def missing(self) -> list[Run]:
        return [run for run in self.runs if not run.counts]

    def of(self, benchmark: str) -> list[Benchmark]:
        """This benchmark's results, one per evaluated seed that has them."""
        return [run.benchmarks[benchmark] for run in self.evaluated if benchmark in run.benchmarks]

    def seeds(self, benchmark: str, metric: str) -> list[Interval]:
        """One interval over questions per seed for which the metric is defined."""
        return [found.metrics[metric] for found in self.of(benchmark) if metric in found.metrics]


Scores = Mapping[tuple[str, str], Sequence[Interval | None]]  # by benchmark and metric, one entry per cell


def make_cells(runs: Sequence[Run]) -> list[Cell]:
    """Group readable runs into cells: the base model first, then no penalty, RKL, SRKL and others, weak to strong."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.status != "unreadable":
            groups.setdefault(run.command + _identity(run.config), []).append(run)
    labels = _labels([group[0] for group in groups.values()])
    cells = [
        Cell(label, _family(group[0]), _model(group[0]), *_newest(group))
        for label, group in zip(labels, groups.values(), strict=True)
    ]
    return sorted(cells, key=_order)


def base_of(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """The evaluation of the model that a trained cell started from; None where there is none, or it is one itself."""
    bases = [other for other in cells if other.family == "base" and other.model == cell.model and other.evaluated]
    return bases[0] if bases and cell.family != "base" else None


def scores(cells: Sequence[Cell], level: float) -> Scores:
    """For each (benchmark, metric), one interval per cell; None where no seed of the cell has it."""
    found = [item for cell in cells for run in cell.evaluated for item in run.benchmarks.items()]
    table: dict[tuple[str, str], list[Interval | None]] = {}
    for name, metric in sorted({(name, metric) for name, benchmark in found for metric in benchmark.metrics}):
        rows = [(cell.family == "base", cell.seeds(name, metric)) for cell in cells]
        spreads = {base: pooled_spread([_values(row) for kind, row in rows if kind == base]) for base in (True, False)}
        bounds = BOUNDS.get(metric, (0.0, 1.0))
        table[name, metric] = [over_seeds(row, spreads[base], level, bounds) if row else None for base, row in rows]
    return table


def _values(row: Sequence[Interval]) -> list[float]:
    return [interval.value for interval in row]


def _identity(config: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in decisive(dict(config)).items() if key not in REPLICATE_KEYS}
    return json.dumps(kept, sort_keys=True, default=str)


def _newest(group: list[Run]) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """The runs that stand for each seed (done before unfinished, then the last by path), and the others."""
    chosen: dict[tuple[str, ...], Run] = {}
    others = []
    for run in sorted(group, key=lambda run: (run.counts, run.directory.parts)):
        flat = decisive(dict(run.config))
        replicate = tuple(str(flat.get(key, run.seed if key == "seed" else None)) for key in REPLICATE_KEYS)
        if replicate in chosen:
            others.append(chosen[replicate])
        chosen[replicate] = run
    kept = sorted(chosen.values(), key=lambda run: (run.seed is None, run.seed or 0, run.directory.parts))
    return tuple(kept), tuple(others)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {"name": found} if found is not None else {}


def _model(run: Run) -> str:
    model = _section(run.config, "model")
    return f"{model.get('path', model.get('name'))}@{model.get('revision')}"


def _family(run: Run) -> str:
    name = _section(run.config, "regularizer").get("name", "none")
    return line(name, 30).lower() if run.command == "train" else "base"


def family_title(family: str) -> str:
    """What a family of rows is called: its penalty."""
    return {"none": "no penalty", "forward_kl": "FORWARD KL"}.get(family, family.upper())


def _own_label(run: Run, trained_models: set[str]) -> str:
    family = _family(run)
    if family == "base":
        name = line(_section(run.config, "model").get("name", "?"), 60)
        return "base model" if _model(run) in trained_models else f"{name}, as it is"
    regularizer = _section(run.config, "regularizer")
    bonus = number(regularizer.get("entropy_bonus"))
    entropy = [f"entropy bonus={bonus:g}"] if bonus else []
    if family in ("none", "entropy"):
        return ", ".join(entropy or ["no penalty"])
    given = [(key, number(regularizer.get(key))) for key in ("alpha", "beta")]
    matched = ["matched"] if regularizer.get("match") == "local" else []
    penalty = " ".join(
        [family_title(family), *(f"{key}={value:g}" for key, value in given if value is not None), *matched]
    )
    return ", ".join([penalty, *entropy])


def _labels(runs: Sequence[Run]) -> list[str]:
    """Short labels; where two agree, the settings (at most three) in which their configurations differ follow."""
    trained = [run for run in runs if run.command == "train"]
    several = len({_algorithm(run) for run in trained}) > 1
    short = [_own_label(run, {_model(other) for other in trained}) for run in runs]
    short = [
        f"{_algorithm(run)}, {label}" if several and run.command == "train" else label
        for label, run in zip(short, runs, strict=True)
    ]
    settings = [decisive(dict(run.config)) for run in runs]
    labels = []
    for label, own, run in zip(short, settings, runs, strict=True):
        twins = [other for twin, other in zip(short, settings, strict=True) if twin == label]
        differ = {key for twin in twins for key in twin | own if twin.get(key) != own.get(key)}
        implied = {key for key in differ if f"{key.rsplit('.', 1)[0]}.name" in differ and not key.endswith(".name")}
        told = sorted(differ - implied - HIDDEN_IN_LABELS, key=lambda key: (not key.endswith(".name"), key))[:3]
        every = defaults() | flatten(dict(run.config))
        labels.append(", ".join([label, *(_setting(key, every.get(key)) for key in told)]))
    return [
        label if labels.count(label) == 1 else f"{label} ({run.config_hash or run.place})"
        for label, run in zip(labels, runs, strict=True)
    ]


def _setting(key: str, value: Any) -> str:
    return line(value, 40) if key.endswith(".name") else f"{key.removeprefix('regularizer.')}={line(value, 40)}"


def _algorithm(run: Run) -> str:
    return line(_section(run.config, "algorithm").get("name", "?"), 30).upper()


def _order(cell: Cell) -> tuple[Any, ...]:
    regularizer = _section(cell.runs[0].config, "regularizer")
    family = FAMILIES.index(cell.family) if cell.family in FAMILIES else len(FAMILIES)
    algorithm = "" if cell.family == "base" else _algorithm(cell.runs[0])
    matched = float(regularizer.get("match") == "local")
    strength = [number(regularizer.get("alpha")) or 0.0, matched, number(regularizer.get("beta")) or 0.0]
    return cell.family != "base", algorithm, family, cell.family, strength, cell.label
