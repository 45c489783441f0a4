"""The paper's claims, checked on these runs: each holds, does not hold or can't be told, row by row.

The verdict follows from the interval of the paired difference alone. "above" holds where the whole interval lies above
0, fails where it lies below, and can't be told where it contains 0; "not below" with a margin m holds where the whole
interval lies above -m, fails where it lies below -m. The others are their mirror images. An equivalence is thus never
claimed from a lack of evidence. Nor can one seed tell anything: its interval does not know the luck of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from carerft.metrics.intervals import Interval
from carerft.report.cells import Cell
from carerft.report.columns import METRICS
from carerft.report.paired import Paired, Place, matches, nearest, partners, seed_pairs
from carerft.report.paper import Claim, Paper

HOLDS, FAILS, UNCLEAR, NO_RUNS = "holds", "does not hold", "cannot tell", "no runs"
ONE_SEED = "cannot tell (one seed)"


@dataclass(frozen=True)
class Judged:
    """One claim about one pair of rows: labels, the differences by column, and the verdict."""

    claim: Claim
    row: str
    against: str
    differences: tuple[Interval, ...]
    verdict: str


def place_of(paper: Paper, column: str, cells: Sequence[Cell]) -> Place | None:
    """Where these runs have one of the paper's columns; None where no run has it."""
    for benchmark, metric in paper.places[column]:
        if any(metric in found.metrics for cell in cells for found in cell.of(benchmark)):
            return benchmark, metric
    return None


def judge(paper: Paper, cells: Sequence[Cell], paired: Paired) -> list[Judged]:
    """Every claim on every row that it is about; a claim that no runs can speak to once, with the verdict NO_RUNS."""
    judged = []
    for claim in paper.claims:
        rows = [cell for cell in cells if matches(cell, claim.rows) and cell.evaluated]
        found = [verdict for cell in rows for verdict in _about(claim, paper, cell, cells, paired)]
        judged += found or [Judged(claim, "", "", (), NO_RUNS)]
    return judged


def _about(claim: Claim, paper: Paper, cell: Cell, cells: Sequence[Cell], paired: Paired) -> list[Judged]:
    others = [other for other in partners(cell, cells, claim.rows, claim.against) if other.evaluated]
    places = [place_of(paper, column, cells) for column in claim.columns]
    if not others or None in places:
        return []
    if claim.expect == "undominated":
        return [_undominated(claim, cell, others, [p for p in places if p], paired)]
    judged = []
    (place,) = (p for p in places if p)
    for other in nearest(cell, others):
        change = paired.difference(cell, other, place)
        if change is not None:
            told = verdict(claim, change) if len(seed_pairs(cell, other)) > 1 else ONE_SEED
            judged.append(Judged(claim, cell.label, other.label, (change,), told))
    return judged


def verdict(claim: Claim, change: Interval) -> str:
    """What a difference says of a claim "above", "below", "not above" or "not below"."""
    if change.low is None or change.high is None:
        return UNCLEAR
    turned = change if claim.expect in ("above", "not below") else -change
    bound = -claim.margin if claim.expect.startswith("not") else claim.margin
    return HOLDS if turned.low > bound else FAILS if turned.high < bound else UNCLEAR


def _undominated(claim: Claim, cell: Cell, others: Sequence[Cell], places: Sequence[Place], paired: Paired) -> Judged:
    """The verdict over all others, with the differences from the one that comes nearest to dominating the row."""
    judged = []
    for other in others:
        changes = []
        for place in places:
            change = paired.difference(cell, other, place)
            direction = METRICS.get(place[1], ("", 1))[1]
            changes.append(-change if change is not None and direction < 0 else change)  # above 0 is better
        known = [change for change in changes if change is not None]
        if len(known) == len(places):
            told = dominance(known, claim.margin) if len(seed_pairs(cell, other)) > 1 else ONE_SEED
            judged.append((told, other, tuple(known)))
    if not judged:
        return Judged(claim, cell.label, "", (), NO_RUNS)
    for outcome in (FAILS, ONE_SEED, UNCLEAR, HOLDS):  # one that dominates decides; else one that might
        if found := [entry for entry in judged if entry[0] == outcome]:
            worst = min(found, key=lambda entry: sum(change.value for change in entry[2]))
            return Judged(claim, cell.label, worst[1].label, worst[2], outcome)
    raise AssertionError


def dominance(changes: Sequence[Interval], margin: float) -> str:
    """Whether a row is undominated by another. changes: row - other in each column, above 0 where the row is better.

    HOLDS: the row is clearly better, by more than the margin, in some column. FAILS: the other is clearly better in
    some column, and in every one the row is clearly not better by more than the margin. Else UNCLEAR.
    """
    if any(change.low is not None and change.low > margin for change in changes):
        return HOLDS
    clearly = any(change.high is not None and change.high < 0 for change in changes)
    within = all(change.high is not None and change.high < margin for change in changes)
    return FAILS if clearly and within else UNCLEAR
