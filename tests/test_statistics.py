"""Voting, pass@k and bootstrap intervals, against hand counts and closed forms."""

from itertools import combinations

import numpy as np
import pytest

from carerft.metrics.statistics import (
    UNPARSABLE,
    Interval,
    agreement,
    distinct,
    interval,
    majority,
    over_resamples,
    pass_at_k,
    ratio,
    resample,
    vote_counts,
)

ANSWERS = np.array(
    [
        [1, 2, 2, 3],  # 2 wins with two votes
        [1, 2, 2, 1],  # a tie: 1 was sampled first
        [UNPARSABLE, UNPARSABLE, UNPARSABLE, 5],  # three unparsable samples do not agree with each other
        [UNPARSABLE, UNPARSABLE, UNPARSABLE, UNPARSABLE],  # nothing else there: the first stands for the question
    ]
)


def drawn(n: int, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    return np.concatenate(list(resample(n, resamples, seed)))


def test_votes_count_the_samples_that_agree():
    assert vote_counts(ANSWERS).tolist() == [[1, 2, 2, 1], [2, 2, 2, 2], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_majority_breaks_ties_by_the_first_sampled_and_passes_over_the_unparsable():
    assert majority(ANSWERS).argmax(1).tolist() == [1, 0, 3, 0]
    assert majority(ANSWERS).sum(1).tolist() == [1, 1, 1, 1]


def test_distinct_marks_each_answer_once():
    assert distinct(ANSWERS).astype(int).tolist() == [[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("largest", [1, 4, 9, 10**15])
def test_counting_classes_is_comparing_every_two_samples(largest: int):
    random = np.random.default_rng(largest)
    for shape in ((1, 1), (5,), (40, 7), (3, 4, 6), (0, 3)):
        answers = random.integers(UNPARSABLE, largest, shape)
        same = agreement(answers)
        assert vote_counts(answers).tolist() == same.sum(-1).tolist()
        first = (same.argmax(-1) == np.arange(shape[-1])) & (answers != UNPARSABLE)
        assert distinct(answers).tolist() == first.tolist()


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample():
    for n, c in ((1, 0), (1, 1), (5, 0), (5, 2), (6, 1), (6, 6)):
        samples = [1] * c + [0] * (n - c)
        for k in range(1, n + 1):
            subsets = list(combinations(samples, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_broadcasts_and_stays_exact_for_many_samples():
    assert pass_at_k(4, [0, 1, 4], [2, 2, 1]).tolist() == pytest.approx([0, 0.5, 1])  # 1 - C(3,2)/C(4,2) = 1/2
    assert pass_at_k(100_000, 1, 10) == pytest.approx(1e-4, rel=1e-9)  # k/n, where factorials would overflow


@pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="pass@k"):
        pass_at_k(n, c, k)


def test_resample_draws_n_questions_per_row_after_the_data_themselves():
    counts = drawn(7, resamples=500, seed=1)
    assert counts.shape == (501, 7)
    assert (counts[0] == 1).all()
    assert (counts.sum(1) == 7).all()
    assert (counts == drawn(7, resamples=500, seed=1)).all()
    assert (counts != drawn(7, resamples=500, seed=2)).any()


@pytest.mark.parametrize("resamples", [1, 63, 64, 65, 200])
def test_resamples_are_those_of_one_draw_whatever_their_blocks(resamples: int):
    whole = np.random.default_rng(5).integers(9, size=(resamples, 9))
    expected = [[1] * 9, *(np.bincount(row, minlength=9).tolist() for row in whole)]
    assert drawn(9, resamples, seed=5).tolist() == expected
    assert {len(block) for block in resample(9, resamples, seed=5)} <= {64, (resamples + 1) % 64}
    sums = over_resamples(lambda counts: {"sum": counts @ np.arange(9)}, 9, resamples, seed=5)["sum"]
    assert sums.tolist() == [sum(map(np.multiply, row, range(9))) for row in expected]


def test_bootstrap_interval_of_a_mean_has_the_normal_width():
    # 400 questions, half of them 1: standard error sqrt(.25/400) = 0.025, so 0.5 +- 1.96 * 0.025 = (0.451, 0.549).
    # A percentile of 4,000 resamples is itself known to about 0.001.
    value, low, high = interval(drawn(400, resamples=4000) @ ([0.0, 1.0] * 200) / 400)
    assert value == 0.5
    assert (low, high) == (pytest.approx(0.451, abs=0.005), pytest.approx(0.549, abs=0.005))


def test_bootstrap_intervals_cover_the_truth_as_often_as_they_say():
    # 1,000 evaluations of 100 questions of mean difficulty 0.6, eight samples each, which are not independent: a 90%
    # interval over questions covers 0.6 in about 900 of them (standard error 10); one over samples in about 700.
    rng = np.random.default_rng(0)
    accuracy = rng.binomial(8, rng.beta(1.5, 1, (1000, 100))) / 8
    intervals = [interval(drawn(100, 200, seed=i) @ a / 100, level=0.9) for i, a in enumerate(accuracy)]
    assert 860 <= sum(i.low <= 0.6 <= i.high for i in intervals) <= 940


def test_bootstrap_takes_any_weighted_statistic_of_question_rows():
    rows = np.array([[1.0, 2.0], [3.0, 4.0], [2.0, 6.0]])
    weights = drawn(3)
    result = interval(ratio(weights @ rows[:, 0], weights @ rows[:, 1]))
    assert result.value == pytest.approx(6 / 12)
    assert 2 / 6 <= result.low < 0.5 < result.high <= 3 / 4  # no resample can leave the single ratios' range


def test_interval_is_the_percentiles_of_the_defined_resamples():
    replicates = np.concatenate([[7.0], np.arange(101.0), [np.nan] * 50])
    assert interval(replicates, level=0.9) == pytest.approx((7, 5, 95))
    undefined = interval(np.array([np.nan, 1.0, 2.0]))
    assert np.isnan(undefined.value) and undefined.low is None and undefined.high is None
    assert interval(np.array([3.0, np.nan])) == Interval(3.0)
