"""The report of an experiment: the paper's numbers beside ours, its claims checked, and paired differences of rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from carerft.metrics.statistics import Interval
from carerft.report.claims import Judgement, judge, locate
from carerft.report.columns import Column, benchmark_title, metric_title
from carerft.report.paired import Paired, matches, nearest, partners
from carerft.report.paper import Claim, Paper, Quantity
from carerft.report.rows import Row, Scores


@dataclass(frozen=True)
class BesidePaper:
    """One row: by column of the paper, our value and the paper's."""

    label: str
    seeds: str
    ours: tuple[Interval | None, ...]
    theirs: tuple[float | None, ...]


@dataclass(frozen=True)
class Difference:
    """Differences of one row from another, by column of the paper."""

    row: str
    against: str
    differences: tuple[Interval | None, ...]


@dataclass(frozen=True)
class Findings:
    """quantities: the benchmark and metric of each of the paper's columns in these runs, None where they have none."""

    name: str
    paper: Paper
    quantities: tuple[Quantity | None, ...]
    beside: tuple[BesidePaper, ...]
    judgements: tuple[Judgement, ...]
    compared: tuple[Difference, ...]

    @property
    def by_claim(self) -> list[tuple[Claim, list[Judgement]]]:
        return [(claim, [j for j in self.judgements if j.claim is claim]) for claim in self.paper.claims]

    @property
    def columns(self) -> list[Column]:
        """The paper's columns, under their own names, that these runs have."""
        columns = map(paper_column, self.paper.columns, self.quantities)
        return [column for column in columns if column]

    @property
    def meaning(self) -> str:
        """What each of the paper's columns is here, in words."""
        return "; ".join(f"{c.group}: {c.title}, {metric_title(c.metric)}" for c in self.columns)


def paper_column(name: str, quantity: Quantity | None) -> Column | None:
    """A paper's column under its own name; None where these runs don't have it."""
    return Column(*quantity, name, benchmark_title(quantity[0])) if quantity else None


def find(name: str, paper: Paper, rows: Sequence[Row], scores: Scores, level: float) -> Findings:
    """Compare these rows with the experiment's paper, at this confidence level."""
    quantities = tuple(locate(paper, column, rows) for column in paper.columns)
    needed = [*quantities, *(locate(paper, column, rows) for claim in paper.claims for column in claim.columns)]
    metrics: dict[str, list[str]] = {}
    for benchmark, metric in dict.fromkeys(quantity for quantity in needed if quantity):
        metrics.setdefault(benchmark, []).append(metric)
    paired = Paired(rows, metrics, level)
    beside = []
    for index, row in enumerate(rows):
        theirs = [numbers for selector, numbers in paper.numbers if matches(row, selector)]
        ours = tuple(scores[quantity][index] if quantity else None for quantity in quantities)
        beside.append(
            BesidePaper(row.label, row.seeds, ours, tuple((theirs or [{}])[-1].get(c) for c in paper.columns))
        )
    compared = tuple(_differences(paper, rows, paired, quantities))
    return Findings(name, paper, quantities, tuple(beside), tuple(judge(paper, rows, paired)), compared)


def _differences(
    paper: Paper, rows: Sequence[Row], paired: Paired, quantities: Sequence[Quantity | None]
) -> Iterable[Difference]:
    for comparison in paper.compare:
        for row in rows:
            if not row.evaluated or not matches(row, comparison.rows) or matches(row, comparison.against):
                continue
            others = [other for other in partners(row, rows, comparison.rows, comparison.against) if other.evaluated]
            for other in nearest(row, others)[:1]:
                changes = tuple(
                    paired.difference(row, other, quantity) if quantity else None for quantity in quantities
                )
                if any(change is not None for change in changes):
                    yield Difference(row.label, other.label, changes)
