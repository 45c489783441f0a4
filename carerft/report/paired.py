"""Differences between rows that answered the same questions, paired by question and by seed.

For each seed, the two runs' metrics are computed on the same resamples of the questions, so that the difficulty of a
question cancels. The mean of these differences over seeds has an interval over questions; their spread between seeds
has Student's t. The two are joined as in `carerft.metrics.intervals`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carerft.config.identity import REPLICATE_KEYS, decisive
from carerft.errors import DataError
from carerft.metrics import scores, statistics
from carerft.metrics.intervals import Spread, pooled_spread
from carerft.metrics.statistics import Interval
from carerft.report.paper import Selector
from carerft.report.rows import Quantity, Row, base_of, run_value
from carerft.runs.labels import section
from carerft.runs.reading import Run, read_lines


def seed_pairs(a: Row, b: Row) -> list[tuple[Run, Run]]:
    """A run of each row with the same seed and base model; a base model's only evaluation serves every seed."""
    pairs = []
    for run in a.evaluated:
        same = [other for other in b.evaluated if _base(other) == _base(run)]
        exact = [other for other in same if other.seed == run.seed]
        if exact or (same and "base" in (a.family, b.family)):
            pairs.append((run, (exact or same)[0]))
    return pairs


def _base(run: Run) -> Any:
    """The pretraining seed of the run's base model."""
    return section(run.config, "model").get("base", 0)


class Paired:
    """Differences between rows, each with its interval.

    The spread of a difference between seeds comes from all trained rows, as in an analysis of variance with the seeds
    as blocks: what remains of a metric after an effect is fitted to each row and to each seed of a base model.
    Differences from a base model share its luck, so that their spread has no more degrees of freedom than there are
    seeds, less one.
    """

    def __init__(self, rows: Sequence[Row], metrics: Mapping[str, Sequence[str]], level: float = 0.95):
        """metrics: by benchmark, those whose differences will be requested: a run's samples are read once for all."""
        self._rows, self._metrics, self._level = rows, metrics, level
        self._replicates: dict[tuple[Path, str], tuple[list[str], dict[str, NDArray]]] = {}

    def difference(self, a: Row, b: Row, quantity: Quantity) -> Interval | None:
        """a - b; None where no two of their runs answered the same questions of that benchmark."""
        differences = []
        for pair in seed_pairs(a, b):
            (questions, first), (others, second) = (self._read(run, quantity[0]) for run in pair)
            if questions == others and quantity[1] in first and quantity[1] in second:
                difference = first[quantity[1]] - second[quantity[1]]
                if np.isfinite(difference[0]):  # each run has the metric
                    differences.append(difference)
        if not differences:
            return None
        spread = self._from_base(quantity) if "base" in (a.family, b.family) else self._between_rows(quantity)
        interval = statistics.interval(np.mean(differences, axis=0), self._level)
        if interval.sides is None:
            return Interval(interval.value)
        half = spread.half_width(len(differences), self._level) if spread else 0.0
        below, above = (math.hypot(side, half) for side in interval.sides)
        return Interval(interval.value, interval.value - below, interval.value + above)

    def _read(self, run: Run, benchmark: str) -> tuple[list[str], dict[str, NDArray]]:
        """The problems' ids, and (resamples + 1,) of each metric; empty where the samples can't be read or scored."""
        key = (run.directory, benchmark)
        if key not in self._replicates:
            stem = run.directory / "evaluation" / benchmark
            problems, samples = (list(read_lines(Path(f"{stem}{end}"), [])) for end in (".problems.jsonl", ".jsonl"))
            try:
                replicates = scores.replicates(problems, samples, self._metrics[benchmark])
                self._replicates[key] = [str(problem["problem_id"]) for problem in problems], replicates
            except (DataError, KeyError, TypeError, ValueError):
                self._replicates[key] = [], {}
        return self._replicates[key]

    def _between_rows(self, quantity: Quantity) -> Spread | None:
        by_seed = [
            {
                (row.model, run.seed or 0, _base(run)): value
                for run in row.evaluated
                if (value := run_value(run, quantity)) is not None
            }
            for row in self._rows
            if row.family != "base"
        ]
        return block_spread(by_seed)

    def _from_base(self, quantity: Quantity) -> Spread | None:
        differences = []
        for row in self._rows:
            base = base_of(row, self._rows)
            pairs = seed_pairs(row, base) if base else []
            values = [(run_value(a, quantity), run_value(b, quantity)) for a, b in pairs]
            differences.append([x - y for x, y in values if x is not None and y is not None])
        spread = pooled_spread(differences)
        return Spread(spread.deviation, max(map(len, differences)) - 1) if spread else None


def block_spread(rows: Sequence[Mapping[Any, float]]) -> Spread | None:
    """The standard deviation between seeds of the difference of two rows, from a table of rows by blocks.

    rows: each row's value by block, which is what shares its luck: a seed of a base model. A row may lack some. A
    least-squares fit gives each row and each block an effect, and what remains is the spread. None where nothing can
    remain: no two rows share two blocks.
    """
    cells = [(row, block, value) for row, values in enumerate(rows) for block, value in values.items()]
    blocks = list(dict.fromkeys(block for _, block, _ in cells))
    design, values = np.zeros((len(cells), len(rows) + len(blocks))), np.array([value for *_, value in cells])
    for cell, (row, block, _) in enumerate(cells):
        design[cell, [row, len(rows) + blocks.index(block)]] = 1.0
    effects, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(cells) - int(rank)
    if freedom <= 0:
        return None
    return Spread(math.sqrt(2 * float(((values - design @ effects) ** 2).sum()) / freedom), freedom)


def matches(row: Row, selector: Selector) -> bool:
    """Whether a selector names this row. It never names a base model unless it says `base: true`."""
    if selector.get("base"):
        return row.family == "base"
    return row.family != "base" and all(row.settings.get(key) == value for key, value in selector.items())


def partners(row: Row, rows: Sequence[Row], selector: Selector, against: Selector) -> list[Row]:
    """The rows that `against` names which differ from `row` in nothing but the settings that the selectors name.

    A base model's partner is the one that the row started from. Where a selector names a regularizer, the regularizer's
    other settings may differ too.
    """
    if against.get("base"):
        base = base_of(row, rows)
        return [base] if base else []
    named = {*selector, *against}
    own = decisive(dict(row.runs[0].config))

    def agrees(other: Row) -> bool:
        theirs = decisive(dict(other.runs[0].config))
        differ = {key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key)}
        differ -= named | set(REPLICATE_KEYS)
        return all("regularizer.name" in named and key.startswith("regularizer.") for key in differ)

    return [other for other in rows if other is not row and matches(other, against) and agrees(other)]


def nearest(row: Row, others: Sequence[Row]) -> list[Row]:
    """The partners with the row's own beta; all of them if none has it."""
    beta = row.settings.get("regularizer.beta")
    return [other for other in others if other.settings.get("regularizer.beta") == beta] or list(others)
