"""Calibration measures against hand-computed numbers, closed forms, scikit-learn and torchmetrics."""

from itertools import permutations

import numpy as np
import pytest
import torch

from carerft.metrics import calibration
from carerft.metrics.calibration import (
    aurc,
    auroc,
    bin_index,
    brier,
    brier_debiased,
    brier_decomposition,
    ece,
    ece_equal_mass,
    ece_floor,
    ece_floor_stated,
    negative_log_likelihood,
    reliability,
    smooth_ece,
)
from carerft.metrics.statistics import UNPARSABLE, distinct, majority

# Six predictions: two at 0.2 (one right), three at 0.6 (two right), one at 1.0 (right).
CONFIDENCE = [0.2, 0.6, 1.0, 0.6, 0.2, 0.6]
CORRECT = [1, 0, 1, 1, 0, 1]
MEASURES = [ece, ece_equal_mass, smooth_ece, brier, auroc, aurc]


def continuous(n, seed=0):
    """Overconfident predictions without ties or edges: right with probability c^2."""
    rng = np.random.default_rng(seed)
    confidence = rng.random(n)
    return confidence, (rng.random(n) < confidence**2).astype(float)


@pytest.mark.parametrize("k", [3, 4, 5, 7, 10, 16, 20, 32, 64])
@pytest.mark.parametrize("bins", [5, 10, 15, 20])
def test_votes_on_a_bin_edge_belong_to_the_bin_below_in_exact_arithmetic(k, bins):
    j = np.arange(k + 1)
    exact = np.maximum(-(-j * bins // k) - 1, 0)  # ceil(j * bins / k) - 1 in whole numbers
    assert bin_index(j / k, bins).tolist() == exact.tolist()
    assert bin_index(np.array([sum([1 / k] * i) for i in j]), bins).tolist() == exact.tolist()  # 0.1 + 0.1 + 0.1


def test_reliability_by_hand():
    r = reliability([0.0, 0.1, 0.15, 0.3, 0.7, 0.95, 1.0], [0, 1, 0, 1, 1, 1, 0], bins=10)
    assert r.edges.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])
    assert r.count.tolist() == [2, 1, 1, 0, 0, 0, 1, 0, 0, 2]  # 0 and 0.1 | 0.15 | 0.3 | 0.7 | 0.95 and 1
    nan = np.nan
    assert r.confidence.tolist() == pytest.approx([0.05, 0.15, 0.3, nan, nan, nan, 0.7, nan, nan, 0.975], nan_ok=True)
    assert r.accuracy.tolist() == pytest.approx([0.5, 0, 1, nan, nan, nan, 1, nan, nan, 0.5], nan_ok=True)


def test_ece_by_hand():
    # Bins of 0.2, 0.6 and 1.0: 2/6 * |0.5 - 0.2| + 3/6 * |2/3 - 0.6| + 1/6 * 0 = 0.1 + 1/30
    assert ece(CONFIDENCE, CORRECT) == pytest.approx(0.1 + 1 / 30)
    # One bin: mean confidence 3.2/6, accuracy 4/6
    assert ece(CONFIDENCE, CORRECT, bins=1) == pytest.approx(0.8 / 6)


@pytest.mark.parametrize("bins", [5, 10, 15])
def test_ece_agrees_with_torchmetrics_away_from_edges(bins):
    confidence, correct = continuous(2000)
    from torchmetrics.functional.classification import binary_calibration_error

    theirs = binary_calibration_error(torch.tensor(confidence), torch.tensor(correct).long(), n_bins=bins, norm="l1")
    assert ece(confidence, correct, bins) == pytest.approx(theirs.item(), abs=1e-6)


def test_equal_mass_ece_is_that_of_equal_slices_of_the_sorted_predictions():
    confidence, correct = continuous(1000)
    slices = np.array_split(np.argsort(confidence), 10)
    expected = sum(abs((correct[s] - confidence[s]).sum()) for s in slices) / 1000
    assert ece_equal_mass(confidence, correct, bins=10) == pytest.approx(expected, abs=1e-12)


def test_equal_mass_ece_never_splits_ties():
    # Two bins; middle ranks 1/6, 3.5/6, 5.5/6: 0.2 | 0.6 and 1.0, gaps |1 - 0.4| and |3 - 2.8|
    assert ece_equal_mass(CONFIDENCE, CORRECT, bins=2) == pytest.approx(0.8 / 6)
    # One level: one bin, whatever the order in which right and wrong come
    assert ece_equal_mass([0.5] * 4, [1, 1, 0, 0], bins=4) == pytest.approx(0)


def reflected_gaussian_error(confidence, correct, width):
    """smECE at a width, from its definition: a sum over mirror images, integrated on a fine grid."""
    t = (np.arange(2000) + 0.5)[:, None] / 2000
    centres = [2 * m + sign * confidence for m in range(-4, 5) for sign in (1, -1)]
    kernel = sum(np.exp(-(((t - c) / width) ** 2) / 2) for c in centres) / (width * np.sqrt(2 * np.pi))
    return np.abs(kernel @ (correct - confidence) / len(confidence)).mean()


@pytest.mark.parametrize("confidence, correct", [continuous(300), (np.array(CONFIDENCE), np.array(CORRECT))])
def test_smooth_ece_is_the_fixed_point_of_its_definition(confidence, correct):
    value = smooth_ece(confidence, correct)
    assert reflected_gaussian_error(confidence, correct, value) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(
    "right, inwards, relplot",  # the chance of being right, how far votes are moved off 0 and 1, relplot's value
    [
        (lambda c: c**2, None, 0.14977),
        (lambda c: c, None, 0.02978),
        (np.sqrt, None, 0.17415),
        (lambda c: c**2, 0.001, 0.14832),
    ],
)
def test_smooth_ece_agrees_with_relplot(right, inwards, relplot):
    # relplot 1.0.3 gives these in benchmarks/method/smooth_ece.py, which says how to run it and why its votes must be
    # moved off 0 and 1; it searches the width in steps of 1/1024.
    rng = np.random.default_rng(0)
    confidence, luck = rng.random(1000), rng.random(1000)
    if inwards:
        confidence = np.round(confidence * 8) / 8
    correct = (luck < right(confidence)).astype(float)
    confidence = confidence.clip(inwards or 0, 1 - (inwards or 0))
    assert smooth_ece(confidence, correct) == pytest.approx(relplot, abs=1e-3)


def test_smooth_ece_closed_forms():
    assert smooth_ece([1.0, 0.0], [1, 0]) == 0
    # All residuals of one sign integrate to the mean gap at any width: 0.4 sure, always right
    assert smooth_ece([0.4] * 5, [1] * 5) == pytest.approx(0.6, abs=1e-4)


def test_brier_by_hand_and_by_scikit_learn():
    from sklearn.metrics import brier_score_loss

    # (0.64 + 0.04) + (0.16 + 0.16 + 0.36) + 0 = 1.36
    assert brier(CONFIDENCE, CORRECT) == pytest.approx(1.36 / 6)
    confidence, correct = continuous(500)
    assert brier(confidence, correct) == pytest.approx(brier_score_loss(correct, confidence))


def test_brier_decomposition_by_hand_and_as_an_identity():
    # Rates 1/2, 2/3, 1 at 0.2, 0.6, 1.0; base 2/3
    parts = brier_decomposition(CONFIDENCE, CORRECT)
    assert parts.reliability == pytest.approx((2 * 0.3**2 + 3 * (2 / 3 - 0.6) ** 2) / 6)
    assert parts.resolution == pytest.approx((2 * (1 / 6) ** 2 + 0 + (1 / 3) ** 2) / 6)
    assert parts.uncertainty == pytest.approx(2 / 9)
    confidence, correct = continuous(500)
    votes = np.round(confidence * 16) / 16
    parts = brier_decomposition(votes, correct)
    assert parts.reliability - parts.resolution + parts.uncertainty == pytest.approx(brier(votes, correct), abs=1e-12)


@pytest.mark.parametrize("k", [2, 4, 16])
def test_debiased_brier_recovers_the_score_of_the_true_probabilities(k):
    # p uniform, y drawn with p: the true Brier score is E[p(1-p)] = 1/6; votes of k draws add 1/(6k).
    # 200,000 questions: standard error below 0.001.
    rng = np.random.default_rng(k)
    p = rng.random(200_000)
    share, correct = rng.binomial(k, p) / k, rng.random(200_000) < p
    assert brier(share, correct) == pytest.approx(1 / 6 + 1 / (6 * k), abs=0.003)
    assert brier_debiased(share, correct, k) == pytest.approx(1 / 6, abs=0.003)


def test_negative_log_likelihood_clips_and_agrees_with_scikit_learn():
    from sklearn.metrics import log_loss

    # A unanimous wrong vote of 4 counts as 1 - 1/8: -log(1/8)
    assert negative_log_likelihood([1.0], [0], clip=1 / 8) == pytest.approx(np.log(8))
    assert negative_log_likelihood([1.0, 0.5], [1, 0], clip=1 / 8) == pytest.approx((np.log(8 / 7) + np.log(2)) / 2)
    confidence, correct = continuous(500)
    assert negative_log_likelihood(confidence, correct, clip=1e-12) == pytest.approx(log_loss(correct, confidence))


def test_auroc_by_hand_and_by_scikit_learn():
    from sklearn.metrics import roc_auc_score

    # Right {0.2, 0.6, 0.6, 1} against wrong 0.2: tie, win, win, win = 3.5; against wrong 0.6: loss, tie, tie, win = 2
    assert auroc(CONFIDENCE, CORRECT) == pytest.approx(5.5 / 8)
    confidence, correct = continuous(500)
    for c in (confidence, np.round(confidence, 1)):
        assert auroc(c, correct) == pytest.approx(roc_auc_score(correct, c))


def test_aurc_without_ties_by_hand():
    # Most confident first: right, wrong, right: risks 0, 1/2, 1/3
    assert aurc([0.9, 0.5, 0.1], [1, 0, 1]) == pytest.approx((1 / 2 + 1 / 3) / 3)


def test_aurc_with_ties_is_the_mean_over_all_orders():
    areas = []
    for low in permutations([1, 0]):
        for middle in permutations([0, 1, 1]):
            wrong = 1 - np.array([1, *middle, *low])
            areas.append((wrong.cumsum() / np.arange(1, 7)).mean())
    assert aurc(CONFIDENCE, CORRECT) == pytest.approx(np.mean(areas))


@pytest.mark.parametrize("measure", MEASURES)
def test_weights_are_repetitions(measure):
    weight = np.array([[1, 1, 1, 1, 1, 1], [3, 0, 2, 1, 2, 1], [2, 2, 2, 2, 2, 2]])
    results = measure(CONFIDENCE, CORRECT, weight=weight)
    assert results.shape == (3,)
    for w, result in zip(weight, results, strict=True):
        assert result == pytest.approx(measure(np.repeat(CONFIDENCE, w), np.repeat(CORRECT, w)), abs=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
def test_order_does_not_matter(measure):
    reordered = [5, 3, 1, 0, 4, 2]
    expected = measure(CONFIDENCE, CORRECT)
    assert measure(np.take(CONFIDENCE, reordered), np.take(CORRECT, reordered)) == pytest.approx(expected)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.filterwarnings("error")
def test_undefined_is_nan_without_a_warning(measure):
    assert np.isnan(measure([], []))
    assert np.isnan(measure([0.5], [1], weight=[[0.0]])).all()
    assert np.isnan(auroc([0.5, 0.6], [1, 1]))
    assert np.isnan(brier_debiased([1.0], [1], k=1))


@pytest.mark.parametrize(
    "confidence, correct, weight, message",
    [
        ([1.1], [1], None, "lie in"),
        ([np.nan], [1], None, "lie in"),
        ([0.5], [0.5], None, "0 or 1"),
        ([0.5, 0.5], [1], None, r"\(n,\)"),
        ([0.5], [1], [1.0, 1.0], r"\(n,\)"),
    ],
)
def test_bad_input_is_refused(confidence, correct, weight, message):
    with pytest.raises(ValueError, match=message):
        ece(confidence, correct, weight=weight)


def test_aurc_refuses_weights_that_are_no_counts():
    with pytest.raises(ValueError, match="whole numbers"):
        aurc([0.5], [1], weight=[0.5])


def calibrated(concentration, kinds, n, k, seed, truths=20):
    """n questions of a calibrated sampler: k answers, and possible truths, from one Dirichlet distribution each."""
    rng = np.random.default_rng(seed)
    cumulative = rng.dirichlet([concentration] * kinds, size=n).cumsum(1)
    draws = (rng.random((n, k + truths, 1)) > cumulative[:, None, :-1]).sum(-1)
    return draws[:, :k], draws[:, k:]


def majority_ece(answers, truth):
    winner = np.take_along_axis(answers, calibration.majority(answers).argmax(1)[:, None], 1)
    return np.mean([ece((answers == winner).mean(1), (winner == truth)[:, t]) for t in range(truth.shape[1])])


def test_floor_is_exact_for_two_votes():
    # Fair coins. Two votes: both alike half the time, then confidence 1 and right half the time: a gap of 1/2; else
    # confidence 1/2 and right half the time: no gap. Floor 1/4. 20,000 questions: standard error 0.003.
    coins, _ = calibrated(1e6, 2, 20_000, 2, seed=0)
    assert ece_floor(coins, simulations=20).mean() == pytest.approx(1 / 4, abs=0.015)


@pytest.mark.parametrize("k", [4, 8, 16])
@pytest.mark.parametrize("concentration, kinds", [(0.3, 5), (1, 4), (0.05, 20)])
def test_floor_is_what_a_calibrated_sampler_shows(k, concentration, kinds):
    # One ECE of 4,000 questions varies by 0.008, the mean over 20 truths by 0.002
    answers, truth = calibrated(concentration, kinds, 4000, k, seed=1)
    assert ece_floor(answers, simulations=20).mean() == pytest.approx(majority_ece(answers, truth), rel=0.2, abs=0.008)


def test_floor_falls_with_k_and_an_overconfident_sampler_lies_above_it():
    floors = []
    for k in (4, 8, 16, 32):
        answers, truth = calibrated(0.3, 5, 1000, k, seed=2)
        floors.append(ece_floor(answers, simulations=20))
        half_wrong = np.where(np.arange(1000)[:, None] % 2, truth, UNPARSABLE)
        assert majority_ece(answers, half_wrong) > floors[-1].max()
    assert np.all(np.diff([f.mean() for f in floors]) < 0)


def test_floor_of_a_sampler_without_doubt_is_zero_and_needs_two_samples():
    assert (ece_floor(np.ones((50, 4), int), simulations=5) == 0).all()
    assert np.isnan(ece_floor(np.ones((50, 1), int), simulations=5)).all()


def test_floor_of_all_answers_and_of_unparsable_ones():
    # Three samples, each different: hold one out, two answers of one vote each remain, share 1/2, none the truth:
    # ECE 1/2, times (k-1)/k = 2/3. The same if one of three is unparsable and nothing agrees.
    assert ece_floor(np.array([[1, 2, 3]] * 20), distinct, simulations=3) == pytest.approx([1 / 3] * 3)
    assert ece_floor(np.full((20, 3), UNPARSABLE), simulations=3) == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("select", [majority, distinct])
def test_floor_is_the_ece_of_votes_counted_one_by_one(select):
    random, simulations = np.random.default_rng(7), 5
    for n, k in ((1, 2), (12, 3), (30, 7)):
        answers = random.integers(UNPARSABLE, 4, (n, k))
        held = np.random.default_rng(1).integers(k, size=(simulations, n))
        weight = np.zeros((simulations, 2 * k))
        for simulation, question in np.ndindex(simulations, n):
            rest = answers[question].tolist()
            truth = rest.pop(held[simulation, question])
            counts = [1 if answer == UNPARSABLE else rest.count(answer) for answer in rest]
            if select is majority:
                votes = [0 if answer == UNPARSABLE else rest.count(answer) for answer in rest]
                chosen = [votes.index(max(votes))]
            else:
                chosen = [i for i, answer in enumerate(rest) if answer != UNPARSABLE and rest.index(answer) == i]
            for i in chosen:
                weight[simulation, 2 * counts[i] + (rest[i] == truth != UNPARSABLE)] += 1
        kind = np.arange(2 * k)
        expected = (k - 1) / k * ece(kind // 2 / (k - 1), kind % 2, weight=weight)
        assert ece_floor(answers, select, simulations=simulations, seed=1).tobytes() == expected.tobytes()


def test_floor_is_reproducible():
    answers, _ = calibrated(1, 4, 100, 4, seed=3)
    assert (ece_floor(answers, seed=5) == ece_floor(answers, seed=5)).all()
    assert (ece_floor(answers, seed=5) != ece_floor(answers, seed=6)).any()


def test_floor_of_stated_confidences_by_hand():
    # One bin of one prediction: |y - c| is 0.3 with chance 0.7 and 0.7 with chance 0.3: 0.42 on average; standard
    # error 0.18 / sqrt(4000) = 0.003
    floor = ece_floor_stated([0.7], simulations=4000)
    assert set(np.round(floor, 9)) == {0.3, 0.7}
    assert floor.mean() == pytest.approx(0.42, abs=0.012)
    assert (ece_floor_stated([0.0, 1.0]) == 0).all()  # no doubt, no noise
    assert np.isnan(ece_floor_stated([])).all()


def test_floor_of_stated_confidences_is_what_calibrated_ones_show():
    rng = np.random.default_rng(0)
    confidence = rng.random(500)
    shown = [ece(confidence, rng.random(500) < confidence) for _ in range(200)]
    # Standard deviation of one ECE 0.008, of the difference of two means over 200 below 0.001
    assert ece_floor_stated(confidence).mean() == pytest.approx(np.mean(shown), abs=0.003)
