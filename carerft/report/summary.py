"""The headline and what the numbers say in a few sentences: changes with their intervals, and no claim beyond them.

A difference is stated as one only where its interval excludes zero; otherwise the text says that it can't be told from
none. Left out: any verdict on which row is best. That is a matter of what a reader wants.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from carerft.metrics.intervals import Interval
from carerft.report.cells import Cell, base_of, family_title
from carerft.report.columns import CALIBRATION, Column, MainTable
from carerft.text import decimal, greek, listing, number, signed

NARRATED = 4  # trained rows that the sentences speak of; the table has them all


def headline(cells: Sequence[Cell]) -> str:
    """What was compared, as a title."""
    trained = [greek(cell.label) for cell in cells if cell.family != "base"]
    if not trained:
        return _capital(f"{listing([cell.label for cell in cells][:NARRATED])}: accuracy, honesty and calibration")
    families = [cell.family for cell in cells if cell.family != "base"]
    if len(set(families)) == len(families):
        trained = [family_title(family) for family in families]
    names = listing(trained) if len(trained) <= 4 else f"{len(trained)} ways of finetuning"
    base = any(cell.family == "base" for cell in cells)
    alone = ": accuracy, honesty and calibration" if len(trained) == 1 else ""
    return _capital(names + (" against the base model" if base else alone))


@dataclass(frozen=True)
class Finding:
    """A sentence whose subject is `label`, compared with the row `against` (or alone, where that is None)."""

    label: str
    against: str | None
    predicate: str


def findings(table: MainTable) -> list[Finding]:
    """The unpenalized row against its base model, penalized rows against it, SRKL against RKL; others alone."""
    columns = telling_columns(table)
    evaluated = [cell for cell in table.cells if cell.evaluated]
    pairs = comparisons(evaluated)
    found = [
        Finding(cell.label, other.label, text)
        for cell, other in pairs
        if (text := _compared(table, columns, cell, other))
    ]
    told = {cell.label for cell, _ in pairs} | {other.label for _, other in pairs}
    alone = [cell for cell in evaluated if cell.label not in told]
    room = max(NARRATED - len(told), 0)
    return found + [Finding(c.label, None, text) for c in alone[:room] if (text := _alone(table, columns, c))]


def comparisons(cells: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """(row, the row to compare it with) pairs, at most NARRATED of them and one of SRKL with RKL."""
    trained = [cell for cell in cells if cell.family != "base"][:NARRATED]
    pairs = []
    for cell in trained:
        free = [other for other in trained if other.family == "none" and _setting(other) == _setting(cell)]
        other = free[0] if free and cell is not free[0] else base_of(cell, cells)
        if other is not None:
            pairs.append((cell, other))
    reverse, skewed = ([cell for cell in trained if cell.family == family] for family in ("rkl", "srkl"))
    if len(reverse) == len(skewed) == 1 and _setting(reverse[0]) == _setting(skewed[0]):
        pairs.append((skewed[0], reverse[0]))
    return pairs


def telling_columns(table: MainTable) -> list[Column]:
    """The columns that the sentences speak of: the first of accuracy, honesty and truthfulness, the last ECE."""
    first = {}
    for column in table.columns:
        first.setdefault("truth" if column.metric in ("truthful", "mc1", "mc2") else column.metric, column)
    calibration = [column for column in table.columns if column.metric in CALIBRATION]
    wanted = [first.get("accuracy"), first.get("refusal_f1"), first.get("truth"), *calibration[-1:]]
    return [column for column in wanted if column is not None]


def strength_note(cells: Sequence[Cell]) -> str:
    """A warning where RKL and SRKL occur at equal beta: near the base that is not equal strength (method.md, 1)."""
    penalties = [cell.runs[0].config.get("regularizer") for cell in cells if cell.family in ("rkl", "srkl")]
    named = [p for p in penalties if isinstance(p, dict)]
    reverse = {number(p.get("beta")) for p in named if p.get("name") == "rkl"}
    unmatched = [p for p in named if p.get("name") == "srkl" and p.get("match") != "local"]
    skewed = {(number(p.get("alpha")), number(p.get("beta"))) for p in unmatched}
    shared = sorted(alpha for alpha, beta in skewed if alpha is not None and alpha < 1 and beta in reverse and beta)
    if not shared:
        return ""
    return (
        f"Equal β is not equal strength: near the base model SRKL behaves as (1 − α)² RKL, so at α={shared[0]:g} "
        f"it pulls {1 / (1 - shared[0]) ** 2:.3g} times more weakly than RKL at the same β."
    )


def _name(column: Column) -> str:
    world = column.benchmark.startswith("world_")
    place = column.title.removesuffix(", answered")
    if column.metric == "accuracy":
        return f"{place.lower() if world else place} accuracy"
    if column.metric in CALIBRATION:
        kind = "answered " if column.metric == "ece_answered" else ""
        return f"ECE on {kind}{place.lower() if world else place} questions"
    return column.title if world else f"{column.group} {column.title}"


def _compared(table: MainTable, columns: Sequence[Column], cell: Cell, other: Cell) -> str:
    """What differs between two rows, and what can't be told apart; empty if they share no number."""
    rows = [list(table.cells).index(c) for c in (cell, other)]
    raised, lowered, unclear = [], [], []
    for column in columns:
        a, b = (table.values[table.columns.index(column)][row] for row in rows)
        if a is None or b is None:
            continue
        change = Interval(a.value - b.value)
        if not change.excludes_zero:
            unclear.append(f"{_name(column)} ({_signed(change)})")
        elif change.value > 0:
            raised.append(f"{_name(column)} by {_size(change)}")
        else:
            lowered.append(f"{_name(column)} by {_size(-change)}")
    verbs = [("raises", raised), ("lowers", lowered), ("shows no clear change in", unclear)]
    parts = [f"{verb} {listing(names)}" for verb, names in verbs if names]
    if not parts:
        return ""
    return ", and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) + "."


def _size(change: Interval) -> str:
    assert change.low is not None and change.high is not None
    return f"{decimal(change.value)} [{decimal(change.low)}, {decimal(change.high)}]"


def _signed(change: Interval) -> str:
    if change.low is None or change.high is None:
        return signed(change.value)
    return f"{signed(change.value)} [{signed(change.low)}, {signed(change.high)}]"


def _alone(table: MainTable, columns: Sequence[Column], cell: Cell) -> str:
    row = list(table.cells).index(cell)
    values = [(column, table.values[table.columns.index(column)][row]) for column in columns]
    told = [f"{_name(column)} {decimal(value.value)}" for column, value in values if value is not None]
    return f"has {listing(told)}." if told else ""


def _setting(cell: Cell) -> tuple[str, str]:
    """What two rows must share for their comparison to be about the penalty."""
    return cell.model, str(cell.runs[0].config.get("algorithm"))


def caveat(cells: Sequence[Cell]) -> str:
    """What the intervals leave out; that nothing can be compared, where it can't."""
    if not any(cell.evaluated for cell in cells):
        return "No evaluation is finished yet, so there is nothing to compare."
    trained = [cell for cell in cells if cell.family != "base"] or list(cells)
    rest = f"Only the first {NARRATED} trained rows are put in words. " if len(trained) > NARRATED else ""
    if max(len(cell.evaluated) for cell in trained) < 2:
        return rest + (
            "With one seed per row, the intervals cover the choice of questions but not the luck of training: "
            "another seed may differ by more."
        )
    return rest + "Intervals cover the choice of questions and the spread between seeds."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
