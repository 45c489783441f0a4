"""Statistics over questions: voting, pass@k, and bootstrap intervals. Pure functions of arrays.

The unit is the question: its k samples are not independent of each other, so intervals resample questions, never
samples. A resample is a row of counts (how often each question was drawn), because every metric of this project is a
function of weighted sums over questions: a thousand resamples are then a few matrix products, and metrics computed from
the same counts are resampled together.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

UNPARSABLE = -1
"""The code of a sample from which no answer could be read. It agrees with nothing, not even another such sample."""


class Interval(NamedTuple):
    """A value, NaN where undefined, and the ends of the interval around it, None where no interval is known."""

    value: float
    low: float | None = None
    high: float | None = None

    def __neg__(self) -> "Interval":
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return Interval(-self.value, low, high)

    @property
    def sides(self) -> tuple[float, float] | None:
        """Distances from the value down to the low end and up to the high end, never negative."""
        if self.low is None or self.high is None:
            return None
        return max(self.value - self.low, 0.0), max(self.high - self.value, 0.0)

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def agreement(answers: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(..., k, k) whether two samples of a question give the same answer; an unparsable one agrees with itself alone.

    answers: (..., k) integer codes, equal where the answers are equivalent, `UNPARSABLE` where there is none.
    """
    same = (answers[..., :, None] == answers[..., None, :]) & (answers != UNPARSABLE)[..., None]
    return same | np.eye(answers.shape[-1], dtype=bool)


def _classes(answers: NDArray[np.integer]) -> tuple[NDArray[np.integer], int]:
    """(questions, k) the class of each sample, and a bound of their numbers: equal exactly where the answers of one
    question are, so that samples can be counted without comparing every two. Unparsable ones make one class."""
    rows = answers.reshape(-1, answers.shape[-1])
    code = rows - rows.min(initial=0)
    if code.max(initial=0) > 2 * rows.shape[1]:  # then the first sample with the same answer is the smaller number
        code = (rows[:, :, None] == rows[:, None, :]).argmax(-1)
    width = int(code.max(initial=0)) + 1
    return code + width * np.arange(len(rows))[:, None], width * len(rows)


def vote_counts(answers: NDArray[np.integer]) -> NDArray[np.integer]:
    """(..., k) how many of a question's k samples give the same answer as this one, itself included."""
    classes, most = _classes(answers)
    counts = np.bincount(classes.ravel(), minlength=most)[classes].reshape(answers.shape)
    return np.where(answers == UNPARSABLE, 1, counts)


def majority(answers: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(..., k) True at the one sample of each question that stands for the answer with most votes.

    Ties go to the answer that was sampled first: samples are exchangeable, so this is a fair coin that does not look
    at correctness and gives the same result twice. An unparsable sample wins only where all k are unparsable.
    """
    counted = np.where(answers == UNPARSABLE, 0, vote_counts(answers))
    return np.arange(answers.shape[-1]) == counted.argmax(-1)[..., None]


def distinct(answers: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(..., k) True at the first sample of each different answer of a question; never at an unparsable one."""
    classes, most = _classes(answers)
    sample, first = np.tile(np.arange(answers.shape[-1]), len(classes)), np.full(most, answers.shape[-1])
    np.minimum.at(first, classes.ravel(), sample)
    return (first[classes.ravel()] == sample).reshape(answers.shape) & (answers != UNPARSABLE)


def pass_at_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> NDArray[np.float64]:
    """The chance that k of n samples, c of which are correct, hold a correct one: 1 - C(n-c, k) / C(n, k).

    The unbiased estimator of Chen et al. 2021 (arXiv 2107.03374, equation 1), as the product over the k draws of the
    chance that each misses. The arguments broadcast. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    n, c, k = np.broadcast_arrays(n, c, k)
    if not ((c >= 0) & (c <= n) & (k >= 1) & (k <= n)).all():
        raise ValueError("pass@k needs 0 <= c <= n and 1 <= k <= n")
    draw = np.arange(k.max(initial=1)).reshape(-1, *[1] * k.ndim)
    miss = np.clip(n - c - draw, 0, None) / np.clip(n - draw, 1, None)
    return 1 - np.where(draw < k, miss, 1).prod(0)


def resample(n: int, resamples: int = 1000, seed: int = 0, rows: int = 64) -> Iterator[NDArray[np.float64]]:
    """How often each of n questions is drawn, (resamples + 1, n) in blocks of so many rows. Row 0 is the data: every
    question once. With a multiple of 8 rows, products of the blocks have the bits of one product (on one thread)."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples + 1, rows):
        size = min(rows, resamples + 1 - start)
        drawn = random.integers(n, size=(size - (start == 0), n))
        drawn += n * np.arange(start == 0, size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(float)
        counts[: start == 0] = 1
        yield counts


def over_resamples(
    measure: Callable[[NDArray[np.float64]], Mapping[str, NDArray]], n: int, resamples: int = 1000, seed: int = 0
) -> dict[str, NDArray]:
    """What `measure` makes of `resample`'s counts (rows, n), with a row for each of theirs: joined from all blocks. All
    counts at once would take 8 KB a question, and more to draw them."""
    blocks = [measure(counts) for counts in resample(n, resamples, seed)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> NDArray[np.float64]:
    """numerator / denominator, NaN (without a warning) where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0)


def interval(replicates: NDArray[np.float64], level: float = 0.95) -> Interval:
    """The percentile interval (Efron & Tibshirani 1993, chapter 13) of a statistic computed on each row of `resample`.

    replicates: (resamples + 1,). Resamples in which the statistic is undefined (NaN) are left out. The interval is
    unknown where the statistic is undefined on the data themselves or on every resample.
    """
    value, rest = replicates[0], replicates[1:][~np.isnan(replicates[1:])]
    if np.isnan(value) or not len(rest):
        return Interval(float(value))
    low, high = np.quantile(rest, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))
