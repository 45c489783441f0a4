"""The paper's claims, checked on these runs: each holds, does not hold, or can't be decided, row by row.

The verdict follows from the interval of the paired difference alone. "above" holds where the whole interval lies above
0, fails where it lies below, and can't be decided where it contains 0; "not below" with a margin m holds where the
whole interval lies above -m, and fails where it lies below -m. The others are their mirror images. A lack of evidence
thus never counts as equivalence. One seed decides nothing: its interval does not cover the luck of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from carerft.metrics.names import METRICS
from carerft.metrics.statistics import Interval
from carerft.report.paired import Paired, matches, nearest, partners, seed_pairs
from carerft.report.paper import Claim, Paper, Quantity
from carerft.report.rows import Row

HOLDS, FAILS, UNCLEAR, NO_RUNS = "holds", "does not hold", "cannot tell", "no runs"
ONE_SEED = "cannot tell (one seed)"


@dataclass(frozen=True)
class Judgement:
    """One claim about one pair of rows (their labels), the differences by column, and the verdict."""

    claim: Claim
    row: str
    against: str
    differences: tuple[Interval, ...]
    verdict: str


def locate(paper: Paper, column: str, rows: Sequence[Row]) -> Quantity | None:
    """The benchmark and metric that these runs have for one of the paper's columns, or None."""
    for benchmark, metric in paper.candidates[column]:
        if any(metric in result.metrics for row in rows for result in row.results(benchmark)):
            return benchmark, metric
    return None


def judge(paper: Paper, rows: Sequence[Row], paired: Paired) -> list[Judgement]:
    """Every claim on every row that it is about; one NO_RUNS for a claim that no runs can decide."""
    judgements = []
    for claim in paper.claims:
        subjects = [row for row in rows if matches(row, claim.rows) and row.evaluated]
        about = [judgement for row in subjects for judgement in _judge_row(claim, paper, row, rows, paired)]
        judgements += about or [Judgement(claim, "", "", (), NO_RUNS)]
    return judgements


def _judge_row(claim: Claim, paper: Paper, row: Row, rows: Sequence[Row], paired: Paired) -> list[Judgement]:
    others = [other for other in partners(row, rows, claim.rows, claim.against) if other.evaluated]
    quantities = [quantity for column in claim.columns if (quantity := locate(paper, column, rows))]
    if not others or len(quantities) < len(claim.columns):
        return []
    if claim.expect == "undominated":
        return [_undominated(claim, row, others, quantities, paired)]
    judgements = []
    for other in nearest(row, others):
        change = paired.difference(row, other, quantities[0])
        if change is not None:
            outcome = verdict(claim, change) if len(seed_pairs(row, other)) > 1 else ONE_SEED
            judgements.append(Judgement(claim, row.label, other.label, (change,), outcome))
    return judgements


def verdict(claim: Claim, change: Interval) -> str:
    """The verdict on a claim "above", "below", "not above" or "not below" from a paired difference."""
    if change.low is None or change.high is None:
        return UNCLEAR
    low, high = (change.low, change.high) if claim.expect in ("above", "not below") else (-change.high, -change.low)
    bound = -claim.margin if claim.expect.startswith("not") else claim.margin
    return HOLDS if low > bound else FAILS if high < bound else UNCLEAR


def _undominated(
    claim: Claim, row: Row, others: Sequence[Row], quantities: Sequence[Quantity], paired: Paired
) -> Judgement:
    """The verdict over all others, with the differences from the one that comes nearest to dominating the row."""
    judgements = []
    for other in others:
        changes = []
        for quantity in quantities:
            change = paired.difference(row, other, quantity)
            lower_is_better = quantity[1] in METRICS and METRICS[quantity[1]].direction < 0
            changes.append(-change if change is not None and lower_is_better else change)  # above 0 is better
        known = [change for change in changes if change is not None]
        if len(known) == len(quantities):
            outcome = dominance(known, claim.margin) if len(seed_pairs(row, other)) > 1 else ONE_SEED
            judgements.append(Judgement(claim, row.label, other.label, tuple(known), outcome))
    severity = (FAILS, ONE_SEED, UNCLEAR, HOLDS)  # one other row that dominates decides; else one that might
    return min(
        judgements,
        key=lambda j: (severity.index(j.verdict), sum(change.value for change in j.differences)),
        default=Judgement(claim, row.label, "", (), NO_RUNS),
    )


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
