"""Differences between rows that answered the same questions, paired by question and by seed.

For each seed, the two runs' metrics are computed on the same resamples of the questions, so that what makes a question
hard cancels. The mean of these differences over seeds has an interval over questions; their spread between seeds has
Student's t. The two are joined as in `carerft.metrics.intervals`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from carerft.config.identity import decisive, flatten
from carerft.config.settings import defaults
from carerft.errors import DataError
from carerft.metrics import scores, statistics
from carerft.metrics.intervals import Interval, Spread, pooled_spread
from carerft.report.cells import REPLICATE_KEYS, Cell, base_of
from carerft.report.paper import Selector
from carerft.runs.reading import Run, read_lines

Place = tuple[str, str]
"""(benchmark, metric)"""


class Replicates:
    """The metrics of runs on resamples of the questions. Each run's samples are read once, for all `metrics` of a
    benchmark."""

    def __init__(self, metrics: Mapping[str, Sequence[str]]):
        """metrics: by benchmark, those that will be asked for."""
        self._metrics = metrics
        self._known: dict[tuple[Path, str], tuple[tuple[str, ...], dict[str, NDArray]]] = {}

    def of(self, run: Run, benchmark: str) -> tuple[tuple[str, ...], dict[str, NDArray]]:
        """The problems' ids, and (resamples + 1,) of each metric; empty where the samples can't be read or scored."""
        key = (run.directory, benchmark)
        if key not in self._known:
            self._known[key] = self._read(run, benchmark)
        return self._known[key]

    def _read(self, run: Run, benchmark: str) -> tuple[tuple[str, ...], dict[str, NDArray]]:
        troubles: list[str] = []
        place = run.directory / "evaluation"
        problems = list(read_lines(place / f"{benchmark}.problems.jsonl", troubles))
        samples = list(read_lines(place / f"{benchmark}.jsonl", troubles))
        try:
            found = scores.replicates(problems, samples, self._metrics[benchmark])
        except (DataError, KeyError, TypeError, ValueError):
            return (), {}
        return tuple(str(problem["problem_id"]) for problem in problems), found

    def difference(self, a: Run, b: Run, place: Place) -> NDArray | None:
        """(resamples + 1,) of a - b; None where the two did not answer the same questions."""
        (asked, first), (also, second) = self.of(a, place[0]), self.of(b, place[0])
        if asked != also or place[1] not in first or place[1] not in second:
            return None
        return first[place[1]] - second[place[1]]


def seed_pairs(a: Cell, b: Cell) -> list[tuple[Run, Run]]:
    """A run of each row with the same seed and base model; a base model's only evaluation serves every seed."""

    def start(run: Run) -> object:
        return flatten(dict(run.config)).get("model.base", 0)

    pairs = []
    for run in a.evaluated:
        same = [other for other in b.evaluated if start(other) == start(run)]
        exact = [other for other in same if other.seed == run.seed]
        if exact or (same and "base" in (a.family, b.family)):
            pairs.append((run, (exact or same)[0]))
    return pairs


class Paired:
    """Differences between rows, each with its interval.

    The spread of a difference between seeds comes from all trained rows, as in an analysis of variance with the seeds
    as blocks: what is left of a metric once each row's and each seed's mean is taken out. Differences from a base model
    share its luck, so that theirs has no more degrees of freedom than there are seeds, less one.
    """

    def __init__(self, cells: Sequence[Cell], metrics: Mapping[str, Sequence[str]], level: float = 0.95):
        """metrics: by benchmark, those that will be asked for."""
        self._cells, self._replicates, self._level = cells, Replicates(metrics), level

    def difference(self, a: Cell, b: Cell, place: Place) -> Interval | None:
        """a - b; None where no two of their runs answered the same questions of that benchmark."""
        drawn = [self._replicates.difference(*runs, place) for runs in seed_pairs(a, b)]
        known = [d for d in drawn if d is not None]
        if not known:
            return None
        spread = self._from_base(place) if "base" in (a.family, b.family) else self._between_rows(place)
        return _joined(known, spread, self._level)

    def _between_rows(self, place: Place) -> Spread | None:
        return block_spread([values for values in self._values(place) if values])

    def _from_base(self, place: Place) -> Spread | None:
        rows = []
        for cell in self._cells:
            base = base_of(cell, self._cells)
            pairs = seed_pairs(cell, base) if base else []
            values = [(_value(a, place), _value(b, place)) for a, b in pairs]
            rows.append([x - y for x, y in values if x is not None and y is not None])
        spread = pooled_spread(rows)
        return Spread(spread.deviation, max(map(len, rows)) - 1) if spread else None

    def _values(self, place: Place) -> list[dict[int, float]]:
        """By trained row, the metric by seed."""
        return [
            {run.seed or 0: value for run in cell.evaluated if (value := _value(run, place)) is not None}
            for cell in self._cells
            if cell.family != "base"
        ]


def block_spread(rows: Sequence[Mapping[int, float]]) -> Spread | None:
    """The standard deviation between seeds of the difference of two rows, from a table of rows by seeds.

    rows: each row's value by seed. Only the seeds that all rows have count; None where fewer than two rows share two.
    """
    seeds = sorted(set.intersection(*(set(row) for row in rows))) if rows else []
    if len(rows) < 2 or len(seeds) < 2:
        return None
    table = np.array([[row[seed] for seed in seeds] for row in rows])
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    freedom = (len(rows) - 1) * (len(seeds) - 1)
    return Spread(math.sqrt(2 * float((rest**2).sum()) / freedom), freedom)


def _value(run: Run, place: Place) -> float | None:
    benchmark, metric = place
    found = run.benchmarks[benchmark].metrics.get(metric) if benchmark in run.benchmarks else None
    return None if found is None else found.value


def _joined(row: Sequence[NDArray], spread: Spread | None, level: float) -> Interval:
    questions = statistics.interval(np.mean(row, axis=0), level)
    if not math.isfinite(questions.value) or not math.isfinite(questions.low):
        return Interval(questions.value)
    half = 0.0
    if spread:
        half = float(student_t.ppf((1 + level) / 2, spread.freedom) * spread.deviation / math.sqrt(len(row)))
    below, above = max(questions.value - questions.low, 0.0), max(questions.high - questions.value, 0.0)
    low, high = questions.value - math.hypot(below, half), questions.value + math.hypot(above, half)
    return Interval(questions.value, low, high)


def settings(cell: Cell) -> dict[str, object]:
    """A row's whole configuration with dotted keys, defaults included."""
    return defaults() | flatten(dict(cell.runs[0].config))


def matches(cell: Cell, selector: Selector) -> bool:
    """Whether a row is what a selector names. Rows other than base models are meant unless it says `base: true`."""
    if selector.get("base"):
        return cell.family == "base"
    own = settings(cell)
    return cell.family != "base" and all(own.get(key) == value for key, value in selector.items())


def partners(cell: Cell, cells: Sequence[Cell], rows: Selector, against: Selector) -> list[Cell]:
    """The rows that `against` names which differ from `cell` in nothing else than what the selectors name.

    A base model is the one that the row started from. Where one of the selectors names a regularizer, the regularizer's
    other keys may differ too.
    """
    if against.get("base"):
        base = base_of(cell, cells)
        return [base] if base else []
    named = {*rows, *against}
    own = decisive(dict(cell.runs[0].config))

    def agrees(other: Cell) -> bool:
        theirs = decisive(dict(other.runs[0].config))
        differ = {key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key)}
        differ -= named | set(REPLICATE_KEYS)
        return all("regularizer.name" in named and key.startswith("regularizer.") for key in differ)

    return [other for other in cells if other is not cell and matches(other, against) and agrees(other)]


def nearest(cell: Cell, found: Sequence[Cell]) -> list[Cell]:
    """Of several partners, those with the row's own beta, if there are any."""
    beta = settings(cell).get("regularizer.beta")
    return [other for other in found if settings(other).get("regularizer.beta") == beta] or list(found)
