"""What an experiment's runs say of its paper: its numbers beside ours, its claims checked, and paired differences.

The verdict on a claim follows from the interval of the paired difference alone. "above" holds where the whole interval
lies above 0, fails where it lies below, and can't be decided where it contains 0; "not below" with a margin m holds
where the whole interval lies above -m, and fails where it lies below -m. The others are their mirror images. A lack of
evidence thus never counts as equivalence. One seed decides nothing: its interval does not cover the luck of training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from carerft.metrics.statistics import Interval
from carerft.report.columns import Column, benchmark_title
from carerft.report.paired import Paired, matches, nearest, partners, seed_pairs
from carerft.report.paper import Claim, Comparison, Paper
from carerft.report.rows import Quantity, Row, describe

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


@dataclass(frozen=True)
class Findings:
    """What is known of one experiment.

    columns: by the paper's name of each, the column under that name; None where these runs don't have it.
    beside: each row with (our value, the paper's value) of each of the paper's columns.
    compared: the labels of two rows, and the difference of the first from the second in each of the paper's columns.
    """

    name: str
    paper: Paper
    columns: dict[str, Column | None]
    beside: list[tuple[Row, list[tuple[Interval | None, float | None]]]]
    judgements: list[Judgement]
    compared: list[tuple[str, str, list[Interval | None]]]

    @property
    def shown(self) -> list[Column]:
        """The columns that the paper's table shows and these runs have."""
        return [column for name in self.paper.columns if (column := self.columns[name])]

    @property
    def meaning(self) -> str:
        """What each of the paper's columns is here, in words."""
        return "; ".join(f"{c.group}: {c.title}, {describe(c.metric).title}" for c in self.shown)


def find(name: str, paper: Paper, rows: Sequence[Row], level: float) -> Findings:
    """Compare these rows with the experiment's paper, at this confidence level."""
    located = {column: locate(paper, column, rows) for column in paper.candidates}
    columns = {column: Column(*where, column, benchmark_title(where[0])) if where else None
               for column, where in located.items()}  # fmt: skip
    metrics: dict[str, list[str]] = {}
    for column in (*paper.columns, *(column for claim in paper.claims for column in claim.columns)):
        if quantity := located[column]:
            metrics.setdefault(quantity[0], []).append(quantity[1])
    paired = Paired(rows, metrics, level)
    quantities = [located[column] for column in paper.columns]
    beside = []
    for row in rows:
        ours = [row.scores.get(quantity) if quantity else None for quantity in quantities]
        theirs = [numbers for selector, numbers in paper.numbers if matches(row, selector)] or [{}]
        beside.append((row, list(zip(ours, map(theirs[-1].get, paper.columns), strict=True))))
    compared = []
    for comparison in paper.compare:
        for row, others in comparable(rows, comparison):
            if matches(row, comparison.against):
                continue
            other = nearest(row, others)[0]
            changes = [paired.difference(row, other, quantity) if quantity else None for quantity in quantities]
            if any(changes):
                compared.append((row.label, other.label, changes))
    return Findings(name, paper, columns, beside, judge(paper, rows, paired), compared)


def locate(paper: Paper, column: str, rows: Sequence[Row]) -> Quantity | None:
    """The benchmark and metric that these runs have for one of the paper's columns, or None."""
    return next((q for q in paper.candidates[column] if any(q in row.scores for row in rows)), None)


def comparable(rows: Sequence[Row], pair: Claim | Comparison) -> Iterator[tuple[Row, list[Row]]]:
    """Each row that `pair.rows` names, with the rows that `pair.against` names to compare it with, if there are any."""
    evaluated = [row for row in rows if row.evaluated]
    for row in evaluated:
        if matches(row, pair.rows) and (others := partners(row, evaluated, pair.rows, pair.against)):
            yield row, others


def judge(paper: Paper, rows: Sequence[Row], paired: Paired) -> list[Judgement]:
    """Every claim on every row that it is about; one NO_RUNS for a claim that no runs can decide."""
    judgements = []
    for claim in paper.claims:
        quantities = [quantity for column in claim.columns if (quantity := locate(paper, column, rows))]
        pairs = comparable(rows, claim) if len(quantities) == len(claim.columns) else ()
        about = [judgement for row, others in pairs for judgement in _judge_row(claim, row, others, quantities, paired)]
        judgements += about or [Judgement(claim, "", "", (), NO_RUNS)]
    return judgements


def _judge_row(
    claim: Claim, row: Row, others: Sequence[Row], quantities: Sequence[Quantity], paired: Paired
) -> list[Judgement]:
    """One claim on one row: against the nearest others or, where it is undominated, over all others.

    The latter has the differences from the other row that comes nearest to dominating it, above 0 where it is better.
    """
    undominated = claim.expect == "undominated"
    judgements = []
    for other in others if undominated else nearest(row, others):
        changes = [change for quantity in quantities if (change := paired.difference(row, other, quantity))]
        if len(changes) < len(quantities):
            continue
        if undominated:
            better = zip(changes, quantities, strict=True)
            changes = [-change if describe(metric).direction < 0 else change for change, (_, metric) in better]
        outcome = dominance(changes, claim.margin) if undominated else verdict(claim, changes[0])
        outcome = outcome if len(seed_pairs(row, other)) > 1 else ONE_SEED
        judgements.append(Judgement(claim, row.label, other.label, tuple(changes), outcome))
    if not undominated:
        return judgements
    severity = (FAILS, ONE_SEED, UNCLEAR, HOLDS)  # one other row that dominates decides; else one that might
    judgements.sort(key=lambda j: (severity.index(j.verdict), sum(change.value for change in j.differences)))
    return judgements[:1] or [Judgement(claim, row.label, "", (), NO_RUNS)]


def verdict(claim: Claim, change: Interval) -> str:
    """The verdict on a claim "above", "below", "not above" or "not below" from a paired difference."""
    if change.low is None or change.high is None:
        return UNCLEAR
    low, high = (change.low, change.high) if claim.expect in ("above", "not below") else (-change.high, -change.low)
    bound = -claim.margin if claim.expect.startswith("not") else claim.margin
    return HOLDS if low > bound else FAILS if high < bound else UNCLEAR


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
