"""The tables of an experiment's report in each format: ours beside the paper's, the claims, and the differences."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from carerft.metrics.intervals import Interval
from carerft.report.experiment import Findings
from carerft.report.tables import escape, interval_text, markdown_grid
from carerft.text import signed


@dataclass(frozen=True)
class Grid:
    """A table as text: a header, and rows of as many cells. numbers: the same unrounded, tidy, its header first."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[Sequence[object]]

    def markdown(self) -> str:
        return markdown_grid(self.header, self.rows)

    def latex(self) -> str:
        """A booktabs tabular. Needs \\usepackage{booktabs}."""
        lines = [" & ".join(map(escape, row)) + r" \\" for row in (self.header, *self.rows)]
        begin = rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}"
        return "\n".join([begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}", ""])

    def csv(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(["" if v is None else v for v in row] for row in self.numbers)
        return text.getvalue()


def grids(findings: Findings) -> dict[str, Grid]:
    """By name: `beside`, and `claims` and `compared` where there are any."""
    found = {"beside": _beside(findings), "claims": _claims(findings), "compared": _compared(findings)}
    return {name: grid for name, grid in found.items() if grid.rows}


def _beside(findings: Findings) -> Grid:
    """Each row's value with its interval, and the paper's in parentheses where it is known."""
    names = findings.paper.columns
    rows, numbers = [], [["row", "column", "ours", "low", "high", "paper"]]
    for row in findings.beside:
        values = list(zip(names, row.ours, row.theirs, strict=True))
        shown = [interval_text(ours) + (f" ({theirs:.3f})" if theirs is not None else "") for _, ours, theirs in values]
        rows.append([row.label, row.seeds, *shown])
        numbers += [[row.label, name, *_parts(ours), theirs] for name, ours, theirs in values]
    return Grid(["", "seeds", *(f"{name} (paper)" for name in names)], rows, numbers)


def _claims(findings: Findings) -> Grid:
    """A line for each claim and row."""
    rows, numbers = [], [["claim", "column", "row", "against", "difference", "low", "high", "verdict"]]
    for j in findings.judged:
        changes = "; ".join(map(change_text, j.differences)) or "-"
        rows.append([j.claim.says, ", ".join(j.claim.columns), j.row or "-", j.against or "-", changes, j.verdict])
        for column, change in zip(j.claim.columns, j.differences or [None] * len(j.claim.columns), strict=True):
            numbers.append([j.claim.says, column, j.row, j.against, *_parts(change), j.verdict])
    return Grid(["claim", "column", "row", "against", "difference", "verdict"], rows, numbers)


def _compared(findings: Findings) -> Grid:
    names = findings.paper.columns
    rows, numbers = [], [["row", "less", "column", "difference", "low", "high"]]
    for c in findings.compared:
        rows.append([c.row, c.against, *map(change_text, c.differences)])
        numbers += [[c.row, c.against, name, *_parts(d)] for name, d in zip(names, c.differences, strict=True)]
    return Grid(["row", "less", *names], rows, numbers)


def print_claims(file: Path, console: Console) -> None:
    """Print how often each claim holds, from `claims.csv`."""
    verdicts: dict[str, dict[tuple[str, str], str]] = {}
    with open(file, encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            verdicts.setdefault(line["claim"], {})[line["row"], line["against"]] = line["verdict"]
    table = Table("the paper's claims", "verdicts, by row", box=box.SIMPLE_HEAD, pad_edge=False)
    for claim, found in verdicts.items():
        counts = Counter(found.values())
        table.add_row(Text(claim), ", ".join(f"{verdict}: {count}" for verdict, count in counts.items()))
    console.print(table)


def _parts(value: Interval | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if value is None else (value.value, value.low, value.high)


def change_text(change: Interval | None) -> str:
    """+0.010* [+0.002, +0.018]; the star where the interval excludes 0."""
    if change is None:
        return "-"
    if change.low is None or change.high is None:
        return signed(change.value)
    star = "*" if change.excludes_zero else ""
    return f"{signed(change.value)}{star} [{signed(change.low)}, {signed(change.high)}]"
