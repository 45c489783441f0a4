"""Means over seeds, and their intervals.

Two things make a row's number uncertain: which questions were asked (each run's bootstrap interval says how much) and
which seed trained it. Two or three seeds say too little about their own spread, so the spread is pooled over the rows
of one kind, as in a one-way analysis of variance, which assumes it equal in all of them. The two parts are joined by
the method of variance estimates recovery (MOVER): Zou and Donner, Statistics in Medicine 27 (2008), 1693-1702.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

from carerft.metrics.statistics import Interval


@dataclass(frozen=True)
class Spread:
    """A standard deviation between seeds, and the degrees of freedom that it was estimated with."""

    deviation: float
    freedom: int

    def half_width(self, seeds: int, level: float) -> float:
        """Half of the Student's t interval of a mean over so many seeds."""
        return float(student_t.ppf((1 + level) / 2, self.freedom) * self.deviation / math.sqrt(seeds))


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
    bounds: the metric's lowest and highest possible value.
    """
    mean = sum(run.value for run in runs) / len(runs)
    sides = [run.sides for run in runs if run.sides is not None]
    if len(sides) < len(runs):
        return Interval(mean)
    half = spread.half_width(len(runs), level) if spread else 0.0
    below, above = (math.hypot(half, sum(side[end] for side in sides) / len(runs)) for end in (0, 1))
    return Interval(mean, max(mean - below, bounds[0]), min(mean + above, bounds[1]))


def clear_best(values: Sequence[Interval | None], direction: int) -> int | None:
    """The index of the best value, if its interval touches no other's; None otherwise.

    direction: +1 if higher is better, -1 if lower is. A value without an interval is beaten by none and beats none.
    """
    oriented = {i: value if direction > 0 else -value for i, value in enumerate(values) if value is not None}
    if direction == 0 or len(oriented) < 2:
        return None
    best = max(oriented, key=lambda i: (oriented[i].value, i))
    low = oriented.pop(best).low
    highs = [other.high for other in oriented.values()]
    return best if low is not None and all(high is not None and high < low for high in highs) else None
