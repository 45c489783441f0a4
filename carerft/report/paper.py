"""An experiment's question, the paper's numbers for it, and its claims as checks that can fail: `paper.yaml`.

    asks: a question                        source: where the numbers are from
    columns: [MATH, ..]                     names that experiments/columns.yaml explains
    numbers: [{row: SELECTOR, MATH: 0.41}]  the paper's numbers by row; unknown ones are left out
    best: {MATH: 0.776}                     the paper's best numbers, where their rows are not known
    claims: [{says, column, rows: SELECTOR, expect, against: SELECTOR, margin}]
    compare: [{rows: SELECTOR, against: SELECTOR}]   differences to show; default: from no penalty and from reverse KL
    along: regularizer.alpha                a setting to draw the columns over
    frontiers: [[MATH, ECE], ..]            columns to draw against each other, a line for each family of rows
    panels: [MATH, ECE, ..]                 one figure: the first column against each other one, a point for each row
    figures: [along-MATH, ..]               the figures of the Markdown page, by file name; default: the first two

A SELECTOR is {base: true}, or keys of the configuration with the values that a row must have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from carerft.config.composition import data_directory
from carerft.errors import DataError
from carerft.report.rows import Quantity
from carerft.sweeps.folders import PAPER, Experiment

Selector = Mapping[str, Any]
EXPECTATIONS = ("above", "below", "not above", "not below", "undominated")
HELP = "the docstring of carerft/report/paper.py explains the format"


@dataclass(frozen=True)
class Claim:
    """rows are `expect` against: "above" or "below", by any difference; "not above" or "not below", by no more than
    `margin`; or "undominated": nothing in `against` is clearly better in one of `columns` and, within `margin`, as
    good in all others."""

    says: str
    rows: Selector
    expect: str
    against: Selector
    columns: tuple[str, ...]
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.expect not in EXPECTATIONS:
            raise ValueError(f"expect: {self.expect!r} is none of {', '.join(EXPECTATIONS)}")
        if self.expect != "undominated" and len(self.columns) != 1:
            raise ValueError("columns: only an undominated row is judged by more than one column")


@dataclass(frozen=True)
class Comparison:
    rows: Selector
    against: Selector


@dataclass(frozen=True)
class Paper:
    """One `paper.yaml`. candidates: for each column, the quantities that it may be; the first that runs have counts."""

    asks: str
    source: str
    columns: tuple[str, ...]
    candidates: Mapping[str, tuple[Quantity, ...]]
    numbers: tuple[tuple[Selector, Mapping[str, float]], ...] = ()
    best: Mapping[str, float] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    compare: tuple[Comparison, ...] = tuple(Comparison({}, {"regularizer.name": name}) for name in ("none", "rkl"))
    along: str | None = None
    frontiers: tuple[tuple[str, str], ...] = ()
    panels: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()


def read_paper(experiment: Experiment) -> Paper:
    """Read an experiment's `paper.yaml`. Raises DataError naming the file and what is wrong in it."""
    file = experiment.folder / PAPER
    raw = _mapping(file)
    candidates = {
        name: tuple(tuple(text.split("/", 1)) for text in entries)
        for name, entries in _mapping(data_directory("experiments") / "columns.yaml").items()
    }
    if unknown := sorted({*raw} - {entry.name for entry in fields(Paper)} | {*raw} & {"candidates"}):
        raise DataError(f"{file}: {unknown[0]!r} is not known", HELP)
    kinds = {"columns": str, "numbers": _numbers, "claims": _claim, "compare": lambda entry: Comparison(**entry)}
    kinds |= {"frontiers": _pair, "panels": str, "figures": str}
    try:
        if text := next((key for key in kinds if isinstance(raw.get(key), str)), None):
            raise ValueError(f"{text} is a text and not a list")
        values: dict[str, Any] = {key: tuple(map(kind, raw[key])) for key, kind in kinds.items() if key in raw}
        paper = Paper(candidates=candidates, **(raw | values))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: {type(error).__name__}: {error}", HELP) from error
    names = [*paper.columns, *(c for claim in paper.claims for c in claim.columns), *sum(paper.frontiers, ())]
    names += [*paper.panels, *paper.best, *(name for _, values in paper.numbers for name in values)]
    unknown = sorted({name for name in names if name not in candidates})
    if unknown:
        raise DataError(f"{file}: {unknown[0]!r} is not known", f"columns: {', '.join(candidates)}")
    return paper


def _mapping(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing", "every experiment's folder needs one") from error
    except yaml.YAMLError as error:
        raise DataError(f"{file} is not valid YAML: {error}", "correct it") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds no mapping", HELP)
    return content


def _numbers(entry: Mapping[str, Any]) -> tuple[Selector, Mapping[str, float]]:
    return entry["row"], {name: float(value) for name, value in entry.items() if name != "row"}


def _pair(names: Any) -> tuple[str, str]:
    first, second = names
    return first, second


def _claim(entry: Mapping[str, Any]) -> Claim:
    if "column" in entry and "columns" in entry:
        raise ValueError("a claim has a column or columns, not both")
    columns = tuple(entry["columns"]) if "columns" in entry else (entry["column"],)
    return Claim(columns=columns, **{key: value for key, value in entry.items() if key not in ("column", "columns")})
