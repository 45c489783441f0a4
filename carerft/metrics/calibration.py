"""Calibration of confidences in [0, 1] against outcomes that are right or wrong. Pure functions of arrays.

Every measure takes `confidence` (n,) in [0, 1], `correct` (n,) of 0 and 1, and optionally `weight` (..., n), how often
each prediction counts; the result has the shape (...). With weights a thousand bootstrap resamples are one call.
Undefined values (no predictions, one class only) are NaN. Bad input raises ValueError.

Confidences by voting take only the values j/k, so ties and bin edges are the rule, not the exception: each measure says
what it does with them, and none depends on the order of the predictions.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carerft.metrics.statistics import UNPARSABLE, majority, ratio, vote_counts

Array = NDArray[np.float64]
ROUNDING = 1e-9
"""Far above the rounding error of j/k times the number of bins, far below the distance of any two votes."""


class Reliability(NamedTuple):
    """A reliability diagram of M bins: edges (M + 1,); count, mean confidence, accuracy (..., M), NaN where empty."""

    edges: Array
    count: Array
    confidence: Array
    accuracy: Array


class BrierDecomposition(NamedTuple):
    """Brier score = reliability - resolution + uncertainty (each of shape (...))."""

    reliability: Array
    resolution: Array
    uncertainty: Array


def _checked(confidence: ArrayLike, correct: ArrayLike, weight: ArrayLike | None) -> tuple[Array, Array, Array]:
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    weight = np.ones(confidence.shape) if weight is None else np.asarray(weight, float)
    if confidence.ndim != 1 or correct.shape != confidence.shape or weight.shape[-1:] != confidence.shape:
        shapes = f"confidence {confidence.shape}, correct {correct.shape}, weight {weight.shape}"
        raise ValueError(f"need confidence (n,), correct (n,), weight (..., n), not {shapes}")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("confidence must lie in [0, 1]")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError("correct must be 0 or 1")
    return confidence, correct, weight


def _levels(confidence: Array, *weighted: Array) -> tuple[Array, ...]:
    """The L different confidences, ascending, and the sums (..., L) of each of the others over equal confidences."""
    order = np.argsort(confidence, kind="stable")
    level, start = np.unique(confidence[order], return_index=True)
    return level, *(np.add.reduceat(w[..., order], start, axis=-1) if len(level) else w for w in weighted)


def bin_index(confidence: ArrayLike, bins: int = 10) -> NDArray[np.int64]:
    """The equal-width bin of each confidence: bin m of M holds (m/M, (m+1)/M], and 0 belongs to the first.

    So a confidence on an edge belongs to the bin below it, as in Guo et al. 2017 (arXiv 1706.04599, section 2), and
    1.0 shares a bin with 0.95. "On" an edge means within 1e-9 of it: 0.7 * 10 is 7.000000000000001 in floating point.
    (torchmetrics puts edges into the bin above and 1.0 into an eleventh.)
    """
    index = np.ceil(np.asarray(confidence, float) * bins - ROUNDING).astype(int) - 1
    return np.clip(index, 0, bins - 1)


def reliability(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 10, weight: ArrayLike | None = None
) -> Reliability:
    """Count, mean confidence and accuracy of each equal-width bin (edge rule: `bin_index`)."""
    confidence, correct, weight = _checked(confidence, correct, weight)
    member = (bin_index(confidence, bins)[:, None] == np.arange(bins)).astype(float)
    count, sure, right = ((weight * v) @ member for v in (np.ones_like(confidence), confidence, correct))
    return Reliability(np.arange(bins + 1) / bins, count, ratio(sure, count), ratio(right, count))


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = 10, weight: ArrayLike | None = None) -> Array:
    """Expected calibration error, sum_b n_b/n * |accuracy_b - confidence_b|, over equal-width bins (`bin_index`)."""
    r = reliability(confidence, correct, bins, weight)
    return ratio(np.nansum(r.count * np.abs(r.accuracy - r.confidence), -1), r.count.sum(-1))


def ece_equal_mass(confidence: ArrayLike, correct: ArrayLike, bins: int = 10, weight: ArrayLike | None = None) -> Array:
    """Expected calibration error over bins that hold equally many predictions (Nixon et al. 2019, arXiv 1904.01685).

    Equal confidences are never split: a tied block goes as one into the bin where its middle rank falls. Bins of votes
    are therefore uneven, and may be fewer than `bins`; without ties they are n/bins predictions each.
    """
    confidence, correct, weight = _checked(confidence, correct, weight)
    _, mass, gap = _levels(confidence, weight, weight * (correct - confidence))
    middle = ratio(mass.cumsum(-1) - mass / 2, mass.sum(-1, keepdims=True))
    index = np.minimum(np.floor(middle * bins + ROUNDING), bins - 1)
    gaps = sum(np.abs(np.where(index == b, gap, 0).sum(-1)) for b in range(bins))
    return ratio(gaps, mass.sum(-1))


def smooth_ece(confidence: ArrayLike, correct: ArrayLike, weight: ArrayLike | None = None, grid: int = 128) -> Array:
    """Smooth ECE (Blasiok & Nakkiran 2023, arXiv 2309.12236): no bins, and a consistent measure of calibration.

    smECE_s = integral over t in [0, 1] of |mean_i (correct_i - confidence_i) K_s(t, confidence_i)|, with K_s the
    Gaussian of width s reflected at 0 and 1; the result is the s at which smECE_s = s, by bisection (smECE_s falls in
    s). The reflected Gaussian is the heat kernel of the interval, 1 + 2 sum_j exp(-(pi j s)^2 / 2) cos(pi j t)
    cos(pi j c), so smoothing is damping the cosine coefficients of the residuals. `grid` terms and points resolve
    widths down to about 1/grid.
    """
    confidence, correct, weight = _checked(confidence, correct, weight)
    level, residual = _levels(confidence, weight * (correct - confidence))
    frequency = np.pi * np.arange(grid)
    points = (np.arange(grid) + 0.5) / grid
    total = weight.sum(-1)
    coefficient = ratio(residual @ np.cos(np.outer(level, frequency)), total[..., None])
    synthesis = np.cos(np.outer(frequency, points)) * np.where(frequency > 0, 2, 1)[:, None]
    low, high = np.zeros_like(total), np.ones_like(total)
    for _ in range(20):
        width = (low + high) / 2
        smoothed = (coefficient * np.exp(-((frequency * width[..., None]) ** 2) / 2)) @ synthesis
        above = np.abs(smoothed).mean(-1) > width
        low, high = np.where(above, width, low), np.where(above, high, width)
    return np.where(total > 0, low, np.nan)


def brier(confidence: ArrayLike, correct: ArrayLike, weight: ArrayLike | None = None) -> Array:
    """The mean of (confidence - correct)^2 (Brier 1950)."""
    confidence, correct, weight = _checked(confidence, correct, weight)
    return ratio(weight @ (confidence - correct) ** 2, weight.sum(-1))


def brier_debiased(confidence: ArrayLike, correct: ArrayLike, k: int, weight: ArrayLike | None = None) -> Array:
    """The Brier score that the sampler's own probabilities would have, from shares of k votes; NaN at k = 1.

    A share c of k draws with probability p has E[c^2] = p^2 + p(1-p)/k, and E[c(1-c)/(k-1)] = p(1-p)/k, hence
    mean((c - y)^2 - c(1-c)/(k-1)). Unbiased for a fixed answer; choosing the majority's leaves a bias of its own.
    """
    confidence, correct, weight = _checked(confidence, correct, weight)
    noise = ratio(weight @ (confidence * (1 - confidence)), (k - 1) * weight.sum(-1))
    return brier(confidence, correct, weight) - noise


def brier_decomposition(
    confidence: ArrayLike, correct: ArrayLike, weight: ArrayLike | None = None
) -> BrierDecomposition:
    """Murphy's 1973 partition of the Brier score over equal confidences, for which it is an exact identity.

    With n_u predictions of confidence u, of which a share o_u is right, and o the share overall: reliability is the
    mean of (u - o_u)^2, resolution that of (o_u - o)^2, uncertainty o(1 - o). Round continuous confidences first.
    """
    confidence, correct, weight = _checked(confidence, correct, weight)
    level, mass, right = _levels(confidence, weight, weight * correct)
    total = mass.sum(-1)
    base, rate = ratio(right.sum(-1), total), ratio(right, mass)
    miscalibration = np.nansum(mass * (level - rate) ** 2, -1)
    spread = np.nansum(mass * (rate - base[..., None]) ** 2, -1)
    return BrierDecomposition(ratio(miscalibration, total), ratio(spread, total), base * (1 - base))


def negative_log_likelihood(
    confidence: ArrayLike, correct: ArrayLike, clip: float, weight: ArrayLike | None = None
) -> Array:
    """The mean of -log(confidence) where correct and -log(1 - confidence) where not, in nats.

    Confidences are first clipped to [clip, 1 - clip], as one unanimous wrong vote would cost an infinity; the result
    depends on `clip`, so compare only at equal ones. For k votes half a vote, 1/(2k), is the natural choice.
    """
    confidence, correct, weight = _checked(confidence, correct, weight)
    confidence = np.clip(confidence, clip, 1 - clip)
    return ratio(weight @ -np.log(np.where(correct == 1, confidence, 1 - confidence)), weight.sum(-1))


def auroc(confidence: ArrayLike, correct: ArrayLike, weight: ArrayLike | None = None) -> Array:
    """The chance that a right prediction has more confidence than a wrong one, ties counting a half.

    The area under the ROC curve (Mann-Whitney). NaN where all are right or all are wrong.
    """
    confidence, correct, weight = _checked(confidence, correct, weight)
    _, right, wrong = _levels(confidence, weight * correct, weight * (1 - correct))
    below = wrong.cumsum(-1) - wrong / 2
    return ratio((right * below).sum(-1), right.sum(-1) * wrong.sum(-1))


def aurc(confidence: ArrayLike, correct: ArrayLike, weight: ArrayLike | None = None) -> Array:
    """Area under the risk-coverage curve: the mean over i of the share of errors among the i most confident.

    (Geifman & El-Yaniv 2017, arXiv 1705.08500.) Within a tied block the order is arbitrary, so the value is the
    expectation over all orders: after x of a block of n with e errors, E0 + x e/n errors among N0 + x. Summed over x
    that is r n + (E0 - N0 r) (H(N0 + n) - H(N0)), with r = e/n and H the harmonic numbers. Weights are counts.
    """
    confidence, correct, weight = _checked(confidence, correct, weight)
    if (weight != np.round(weight)).any():
        raise ValueError("the risk-coverage area needs whole numbers as weights")
    _, mass, wrong = _levels(-confidence, weight, weight * (1 - correct))
    covered, errors = mass.cumsum(-1).astype(int), wrong.cumsum(-1)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, covered.max(initial=0) + 1))])
    before = covered - mass.astype(int)
    rate = wrong / np.maximum(mass, 1)
    area = wrong + (errors - wrong - before * rate) * (harmonic[covered] - harmonic[before])
    return ratio(area.sum(-1), mass.sum(-1))


def ece_floor(
    answers: NDArray[np.integer],
    select: Callable[[NDArray[np.integer]], NDArray[np.bool_]] = majority,
    bins: int = 10,
    simulations: int = 200,
    seed: int = 0,
) -> Array:
    """(simulations,) the ECE that this sampler's votes would show if it were perfectly calibrated.

    answers: (n, k) integer codes as in `statistics.vote_counts`; select: which samples stand for a prediction.

    The share of a majority among k samples exceeds the chance of its answer, since it was chosen for its votes; so
    even a perfect sampler looks overconfident, the more so the smaller k. A sampler is perfectly calibrated when the
    truth is distributed as its answers are, that is, like one more sample. So no model of the answers is needed: hold
    one random sample of each question out as the truth, let the other k-1 vote, and take the ECE. That is an exact
    simulation of k-1 voters. The excess falls as 1/k, so it is scaled by (k-1)/k. For the majority this is exact at
    k = 2; over nine families of answer distributions, k from 3 to 32 and 500 or 5,000 questions it lay within 20% of
    the true floor (0.80 at worst, 0.95 in the median). NaN at k = 1, where nothing can be held out. The questions are
    not resampled: the spread of the result is that of the truth only.
    """
    n, k = answers.shape
    if k < 2:
        return np.full(simulations, np.nan)
    held = np.random.default_rng(seed).integers(k, size=(simulations, n))
    outcome = np.arange(2 * k)  # 2 * votes + (is it the truth?): all the different predictions there can be
    weight = np.zeros((simulations, 2 * k))
    for out in range(k):
        rest, truth = np.delete(answers, out, axis=1), answers[:, out : out + 1]
        made = 2 * vote_counts(rest) + ((rest == truth) & (truth != UNPARSABLE)) + 2 * k * np.arange(n)[:, None]
        tally = np.bincount(made[select(rest)], minlength=n * 2 * k).reshape(n, 2 * k)
        weight += (held == out).astype(np.float32) @ tally.astype(np.float32)
    return (k - 1) / k * ece(outcome // 2 / (k - 1), outcome % 2, bins, weight)


def ece_floor_stated(confidence: ArrayLike, bins: int = 10, simulations: int = 200, seed: int = 0) -> Array:
    """(simulations,) the ECE that these confidences (n,) would show if each were the very chance of being right.

    The outcomes are drawn with the confidences themselves: consistency resampling (Broecker & Smith 2007, Weather and
    Forecasting 22, section 3). For confidences that a model states; votes are a noisy count, and have `ece_floor`.
    """
    confidence, *_ = _checked(confidence, np.zeros(np.shape(confidence)), None)
    random, outcome, rows = np.random.default_rng(seed), np.repeat([1.0, 0.0], len(confidence)), 40
    floors = []
    for start in range(0, simulations, rows):  # all at once would take 3 KB a confidence
        right = random.random((min(rows, simulations - start), len(confidence))) < confidence
        floors.append(ece(np.tile(confidence, 2), outcome, bins, np.concatenate([right, ~right], axis=1)))
    return np.concatenate(floors)
