"""Means over seeds, differences between rows, and their intervals.

Two things make a row's number uncertain: which questions were asked (each run's bootstrap interval says how much) and
which seed trained it. Two or three seeds say too little about their own spread, so the spread is pooled over the rows
of one kind, as in a one-way analysis of variance: that takes it to be alike in all of them. The two parts are joined
by the method of variance estimates recovery (MOVER): Zou and Donner, Statistics in Medicine 27 (2008), 1693-1702.

Left out: tests paired by question. Rows answer the same questions, so a difference is known at least as well as
`difference` says: its intervals err on the wide side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t


@dataclass(frozen=True)
class Interval:
    """A value and the interval around it; low and high are None where no interval is known."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def below(self) -> float | None:
        """Distance from the value down to the interval's end, never negative."""
        return None if self.low is None else max(self.value - self.low, 0.0)

    @property
    def above(self) -> float | None:
        return None if self.high is None else max(self.high - self.value, 0.0)

    def __neg__(self) -> "Interval":
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return Interval(-self.value, low, high)

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Spread:
    """The standard deviation between seeds, and the degrees of freedom it was estimated with."""

    deviation: float
    freedom: int


def pooled_spread(rows: Sequence[Sequence[float]]) -> Spread | None:
    """Within-row standard deviation over rows of seed values; None where no row has two seeds."""
    freedom = sum(len(row) - 1 for row in rows if row)
    if freedom <= 0:
        return None
    squares = sum((value - sum(row) / len(row)) ** 2 for row in rows if row for value in row)
    return Spread(math.sqrt(squares / freedom), freedom)


def over_seeds(
    runs: Sequence[Interval], spread: Spread | None, level: float = 0.95, bounds: tuple[float, float] = (0.0, 1.0)
) -> Interval:
    """Mean over a row's seeds, with an interval over questions and, where the spread is known, over seeds.

    runs: one interval over questions per seed, at least one. The seeds answered the same questions, so averaging over
    them does not shrink that part; the spread between seeds contains some of it again, which widens the interval.
    bounds: what the metric cannot leave.
    """
    mean = sum(run.value for run in runs) / len(runs)
    half = 0.0
    if spread:
        half = float(student_t.ppf((1 + level) / 2, spread.freedom) * spread.deviation / math.sqrt(len(runs)))
    if any(run.below is None or run.above is None for run in runs):
        return Interval(mean)
    below = math.hypot(half, sum(run.below for run in runs) / len(runs))  # type: ignore[misc]
    above = math.hypot(half, sum(run.above for run in runs) / len(runs))  # type: ignore[misc]
    return Interval(mean, max(mean - below, bounds[0]), min(mean + above, bounds[1]))


def difference(a: Interval, b: Interval) -> Interval:
    """a - b, by MOVER, as if the two were independent."""
    value = a.value - b.value
    if a.below is None or a.above is None or b.below is None or b.above is None:
        return Interval(value)
    return Interval(value, value - math.hypot(a.below, b.above), value + math.hypot(a.above, b.below))


def clear_best(values: Sequence[Interval | None], direction: int) -> int | None:
    """The index of the best value, if its interval touches no other's; None otherwise.

    direction: +1 if higher is better, -1 if lower is. A value without an interval is beaten by none and beats none.
    """
    known = [(value.value * direction, index) for index, value in enumerate(values) if value is not None]
    if direction == 0 or len(known) < 2:
        return None
    best = max(known)[1]
    first = values[best]
    for _, index in known:
        other = values[index]
        if index == best or other is None or first is None:
            continue
        near, far = (first.low, other.high) if direction > 0 else (other.low, first.high)
        if near is None or far is None or near <= far:
            return None
    return best
