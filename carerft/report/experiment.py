"""What a report says beyond its runs when they are those of an experiment: the paper's numbers beside ours, its claims
checked, and differences with what each row is to be compared with."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from carerft.metrics.intervals import Interval
from carerft.report.cells import Cell, Scores
from carerft.report.claims import Judged, judge, place_of
from carerft.report.columns import METRICS, Column, benchmark_title, metric_title
from carerft.report.paired import Paired, Place, matches, nearest, partners
from carerft.report.paper import Claim, Paper
from carerft.report.tables import seeds_text


@dataclass(frozen=True)
class Beside:
    """One row: its label, how many seeds it has, and by column ours and the paper's."""

    label: str
    seeds: str
    ours: tuple[Interval | None, ...]
    theirs: tuple[float | None, ...]


@dataclass(frozen=True)
class Compared:
    """Differences of one row from another, by column."""

    row: str
    against: str
    differences: tuple[Interval | None, ...]


@dataclass(frozen=True)
class Findings:
    """All of it. places: where the paper's columns are in these runs; None where they aren't."""

    name: str
    paper: Paper
    places: tuple[Place | None, ...]
    beside: tuple[Beside, ...]
    judged: tuple[Judged, ...]
    compared: tuple[Compared, ...]

    @property
    def tally(self) -> list[tuple[Claim, list[Judged]]]:
        """The judged claims by claim."""
        return [(claim, [j for j in self.judged if j.claim is claim]) for claim in self.paper.claims]


def findings(name: str, paper: Paper, cells: Sequence[Cell], scores: Scores, level: float) -> Findings:
    """What these rows say to an experiment's questions."""
    places = tuple(place_of(paper, column, cells) for column in paper.columns)
    asked = [place for place in places if place]
    asked += [p for claim in paper.claims for c in claim.columns if (p := place_of(paper, c, cells))]
    paired = Paired(cells, _by_benchmark(asked), level)
    return Findings(
        name,
        paper,
        places,
        tuple(_beside(paper, cells, scores, places)),
        tuple(judge(paper, cells, paired)),
        tuple(_compared(paper, cells, paired, places)),
    )


def _by_benchmark(places: Iterable[Place]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for benchmark, metric in dict.fromkeys(places):
        found.setdefault(benchmark, []).append(metric)
    return found


def _beside(paper: Paper, cells: Sequence[Cell], scores: Scores, places: Sequence[Place | None]) -> Iterable[Beside]:
    for index, cell in enumerate(cells):
        theirs: Mapping[str, float] = {}
        for selector, numbers in paper.numbers:
            if matches(cell, selector):
                theirs = numbers
        ours = tuple(scores[place][index] if place else None for place in places)
        yield Beside(cell.label, seeds_text(cell), ours, tuple(theirs.get(column) for column in paper.columns))


def _compared(
    paper: Paper, cells: Sequence[Cell], paired: Paired, places: Sequence[Place | None]
) -> Iterable[Compared]:
    for comparison in paper.compare:
        for cell in cells:
            if not cell.evaluated or not matches(cell, comparison.rows) or matches(cell, comparison.against):
                continue
            others = [c for c in partners(cell, cells, comparison.rows, comparison.against) if c.evaluated]
            for other in nearest(cell, others)[:1]:
                changes = tuple(paired.difference(cell, other, place) if place else None for place in places)
                if any(change is not None for change in changes):
                    yield Compared(cell.label, other.label, changes)


def columns(findings: Findings) -> list[Column]:
    """The paper's columns as columns of our tables, those that these runs have."""
    return [
        as_column(name, place) for name, place in zip(findings.paper.columns, findings.places, strict=True) if place
    ]


def as_column(name: str, place: Place) -> Column:
    """A paper's column under its own name."""
    benchmark, metric = place
    return Column(benchmark, metric, name, benchmark_title(benchmark), METRICS.get(metric, ("", 0))[1])


def meaning(findings: Findings) -> str:
    """What each of the paper's columns is here, in words."""
    parts = [
        f"{name}: {benchmark_title(place[0])}, {metric_title(place[1])}"
        for name, place in zip(findings.paper.columns, findings.places, strict=True)
        if place
    ]
    return "; ".join(parts)
