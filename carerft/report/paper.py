"""What an experiment asks, what the paper reports of it, and its claims as checks that can fail: `paper.yaml`.

    asks: a question                        source: where the numbers are from
    columns: [MATH, ..]                     names that experiments/columns.yaml explains
    numbers: [{row: SELECTOR, MATH: 0.41}]  the paper's cells; those that are not known are left out
    best: {MATH: 0.776}                     its best figures, where the rows that they belong to are not known
    claims: [{says, column, rows: SELECTOR, expect, against: SELECTOR, margin}]
    compare: [{rows: SELECTOR, against: SELECTOR}]   differences to show; by default against no penalty and reverse KL
    along: regularizer.alpha                a setting to draw the columns over
    frontiers: [[MATH, ECE], ..]            columns to draw against each other, a line for each family of rows
    figures: [along-MATH, ..]               the figures that the Markdown page shows, by file name; default: the first two

A SELECTOR is {base: true}, or keys of the configuration with the values that a row must have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from carerft.errors import DataError
from carerft.sweeps.folders import PAPER, Experiment, experiments_directory

Selector = Mapping[str, Any]
EXPECTATIONS = ("above", "below", "not above", "not below", "undominated")
HELP = "see the top of carerft/report/paper.py"
COMPARISONS = tuple({"rows": {}, "against": {"regularizer.name": name}} for name in ("none", "rkl"))


@dataclass(frozen=True)
class Claim:
    """rows are `expect` against: "above" or "below" by more than nothing, "not above" or "not below" by more than
    `margin`, or "undominated": nothing in `against` is clearly better in one of `columns` and, but for `margin`, as
    good in all others."""

    says: str
    rows: Selector
    expect: str
    against: Selector
    columns: tuple[str, ...]
    margin: float = 0.0


@dataclass(frozen=True)
class Comparison:
    rows: Selector
    against: Selector


@dataclass(frozen=True)
class Paper:
    """One `paper.yaml`; see the top of this file. places: for each column, (benchmark, metric) pairs to look for."""

    asks: str
    source: str
    columns: tuple[str, ...]
    places: Mapping[str, tuple[tuple[str, str], ...]]
    numbers: tuple[tuple[Selector, Mapping[str, float]], ...] = ()
    best: Mapping[str, float] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    compare: tuple[Comparison, ...] = ()
    along: str | None = None
    frontiers: tuple[tuple[str, str], ...] = ()
    figures: tuple[str, ...] = ()


def paper(experiment: Experiment) -> Paper:
    """Read an experiment's `paper.yaml`. Raises DataError that names the file and what is wrong in it."""
    file = experiment.folder / PAPER
    raw = _mapping(file)
    places = {
        name: tuple(tuple(text.split("/", 1)) for text in entries)
        for name, entries in _mapping(experiments_directory() / "columns.yaml").items()
    }
    try:
        found = Paper(
            asks=raw["asks"],
            source=raw["source"],
            columns=tuple(raw["columns"]),
            places=places,
            numbers=tuple(_numbers(entry) for entry in raw.get("numbers", ())),
            best=raw.get("best", {}),
            claims=tuple(_claim(entry) for entry in raw.get("claims", ())),
            compare=tuple(Comparison(**entry) for entry in raw.get("compare", COMPARISONS)),
            along=raw.get("along"),
            frontiers=tuple((x, y) for x, y in raw.get("frontiers", ())),
            figures=tuple(raw.get("figures", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: {type(error).__name__}: {error}", HELP) from error
    unknown = {*raw} - {field for field in Paper.__dataclass_fields__ if field != "places"}
    named = [*found.columns, *(c for claim in found.claims for c in claim.columns), *sum(found.frontiers, ())]
    named += [*found.best, *(name for _, values in found.numbers for name in values)]
    unknown |= {name for name in named if name not in places}
    if unknown:
        raise DataError(f"{file}: {sorted(unknown)[0]!r} is not known", f"columns: {', '.join(places)}")
    return found


def _mapping(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing", "an experiment's folder holds one") from error
    except yaml.YAMLError as error:
        raise DataError(f"{file} is not valid YAML: {error}", "mend it") from error
    if not isinstance(found, dict):
        raise DataError(f"{file} holds no mapping", HELP)
    return found


def _numbers(entry: Mapping[str, Any]) -> tuple[Selector, Mapping[str, float]]:
    return entry["row"], {name: float(value) for name, value in entry.items() if name != "row"}


def _claim(entry: Mapping[str, Any]) -> Claim:
    if entry["expect"] not in EXPECTATIONS:
        raise ValueError(f"expect: {entry['expect']!r} is none of {', '.join(EXPECTATIONS)}")
    columns = tuple(entry["columns"]) if "columns" in entry else (entry["column"],)
    rest = {key: value for key, value in entry.items() if key not in ("column", "columns")}
    return Claim(columns=columns, **rest)
