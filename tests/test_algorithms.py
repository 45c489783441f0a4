"""Advantages, ratios, clipping and aggregation against numbers computed by hand."""

import math
from dataclasses import replace

import pytest
import torch

from carerft.objective.algorithms import (
    Algorithm,
    group_advantages,
    importance_ratio,
    informative,
)

GRPO = Algorithm("grpo", 4, 0.2, 0.2, "token", "sequence", "population", 0.0)
DAPO = Algorithm("dapo", 4, 0.2, 0.28, "token", "token", "population", 0.0, overlong_buffer=0.2, overlong_penalty=0.5)
GSPO = Algorithm("gspo", 4, 3e-4, 4e-4, "sequence", "sequence", "population", 0.0)
DR_GRPO = Algorithm("dr_grpo", 4, 0.2, 0.2, "token", "constant", "none", aggregation_constant=10)
RLOO = Algorithm(
    "rloo", 4, None, None, "token", "constant", "none", advantage_baseline="leave_one_out", aggregation_constant=1
)


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    # group 1: mean 1/2, population std 1/2: +-1. group 2: mean 1/4, variance 3/16, std sqrt(3)/4: 3/4 / that = sqrt(3)
    expected = torch.tensor([[1.0, -1.0, -1.0, 1.0], [3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)]])
    assert torch.allclose(group_advantages(rewards, "mean", "population", 0.0), expected)
    # sample std: the variance of group 1 is 1/3, of group 2 is 1/4
    sample = group_advantages(rewards, "mean", "sample", 0.0)
    assert sample[0, 0].item() == pytest.approx(0.5 * 3**0.5) and sample[1, 0].item() == pytest.approx(1.5)
    assert torch.allclose(group_advantages(rewards, "mean", "none", 0.0)[1], torch.tensor([0.75, -0.25, -0.25, -0.25]))


@pytest.mark.parametrize("std", ["sample", "population", "none"])
def test_equal_rewards_have_advantage_exactly_zero(std: str):
    rewards = torch.full((2, 7), 0.1)  # 0.1 * 7 / 7 is not 0.1 in float32
    assert torch.equal(group_advantages(rewards, "mean", std, 1e-6), torch.zeros(2, 7))


def test_a_completion_without_verdict_neither_learns_nor_counts():
    nan = float("nan")
    with_gap = group_advantages(torch.tensor([[1.0, 0.0, nan, 1.0]]), "mean", "sample", 1e-6)
    without = group_advantages(torch.tensor([[1.0, 0.0, 1.0]]), "mean", "sample", 1e-6)
    assert with_gap[0, 2] == 0 and torch.allclose(with_gap[0, [0, 1, 3]], without[0])
    assert torch.equal(group_advantages(torch.full((1, 4), nan), "mean", "sample", 1e-6), torch.zeros(1, 4))
    assert torch.equal(group_advantages(torch.tensor([[1.0, nan, nan]]), "mean", "sample", 1e-6), torch.zeros(1, 3))


def test_grpo_loss_by_hand():
    # Two completions: lengths 2 and 1, advantages +1 and -1. Ratios: (1.5, 0.5) and 0.5.
    log_pi = torch.tensor([[1.5, 0.5], [0.5, 1.0]]).log().requires_grad_()
    log_old, mask = torch.zeros(2, 2), torch.tensor([[True, True], [True, False]])
    advantages = torch.tensor([1.0, -1.0])
    loss, ratio = GRPO.loss(log_pi, log_old, advantages, mask)
    # A = +1: -min(1.5, 1.2) = -1.2 and -min(0.5, 0.8) = -0.5. A = -1: -min(-0.5, -0.8) = 0.8.
    assert torch.allclose(loss[mask], torch.tensor([-1.2, -0.5, 0.8]))
    # mean over tokens, then over completions: ((-1.2 - 0.5) / 2 + 0.8) / 2 = -0.025
    total = (GRPO.weights(mask) * loss).sum()
    assert total.item() == pytest.approx(-0.025, abs=1e-6)
    # Gradient: 0 where clipped (1.5 with A > 0; 0.5 with A < 0), else -A ratio weight = -0.5 / 4.
    total.backward()
    assert torch.allclose(log_pi.grad, torch.tensor([[0.0, -0.125], [0.0, 0.0]]), atol=1e-7)
    assert GRPO.clipped(ratio, advantages)[mask].tolist() == [True, False, True]


def test_token_mean_by_hand():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert Algorithm(aggregation="token").weights(mask).tolist() == [[0.25, 0.25, 0.25], [0.25, 0.0, 0.0]]
    expected = torch.tensor([[1 / 6] * 3, [0.5, 0.0, 0.0]])
    assert torch.allclose(Algorithm(aggregation="sequence").weights(mask), expected)


def test_sequence_ratio_is_the_geometric_mean():
    log_pi = torch.tensor([[math.log(2.0), math.log(8.0), 5.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    ratio = importance_ratio(log_pi, torch.zeros(1, 3), mask, "sequence")
    assert torch.allclose(ratio[mask], torch.tensor([4.0, 4.0]))  # sqrt(2 * 8)
    ratio[0, 0].backward()  # d s / d log pi_t = s / |o| for every token of the sequence
    assert torch.allclose(log_pi.grad, torch.tensor([[2.0, 2.0, 0.0]]))


def test_clip_higher_is_asymmetric():
    log_ratio, mask = torch.tensor([[1.25, 1.35, 0.7]]).log(), torch.ones(1, 3, dtype=torch.bool)
    up, down = (DAPO.loss(log_ratio, torch.zeros(1, 3), torch.tensor([sign]), mask)[0] for sign in (1.0, -1.0))
    assert torch.allclose(up, -torch.tensor([[1.25, 1.28, 0.7]]))
    assert torch.allclose(down, torch.tensor([[1.25, 1.35, 0.8]]))


def test_leave_one_out_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    # group 1: 1 - (0 + 0 + 1) / 3 = 2/3 and 0 - 2/3. group 2: 1 - 0 and 0 - 1/3
    expected = torch.tensor([[2 / 3, -2 / 3, -2 / 3, 2 / 3], [1.0, -1 / 3, -1 / 3, -1 / 3]])
    assert torch.allclose(group_advantages(rewards, "leave_one_out", "none", 0.0), expected)
    gap = torch.tensor([[1.0, float("nan"), 0.0, 0.0]])  # no verdict: neither counts nor learns
    assert torch.allclose(group_advantages(gap, "leave_one_out", "none", 0.0), torch.tensor([[1.0, 0.0, -0.5, -0.5]]))


def test_informative_groups_have_two_verdicts_that_differ():
    nan = float("nan")
    rewards = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 0], [nan, 1, 0], [nan, 1, 1], [nan, nan, 0], [nan, nan, nan]])
    assert informative(rewards).tolist() == [True, False, False, True, False, False, False]


def test_overlong_penalty_by_hand():
    # DAPO's own numbers, equation 13: L_max = 20480, L_cache = 4096
    lengths = torch.tensor([1, 16384, 17408, 18432, 20480])
    found = replace(DAPO, overlong_penalty=1.0).penalties(lengths, 20480)
    assert found.tolist() == [0.0, 0.0, 0.25, 0.5, 1.0]
    assert torch.allclose(DAPO.penalties(lengths, 20480), found / 2)  # its share of 0.2 is the same buffer
    assert torch.equal(GRPO.penalties(lengths, 20480), torch.zeros(5))


# Two completions of lengths 2 and 1 with advantages +1 and -1, log pi_old = 0, ratios (1.5, 0.5) and 0.5: the losses of
# each algorithm on one batch. GRPO's are in test_grpo_loss_by_hand.
RATIOS = torch.tensor([[1.5, 0.5], [0.5, 1.0]])
MASK = torch.tensor([[True, True], [True, False]])


def loss_and_gradient(algorithm: Algorithm, ratios: torch.Tensor) -> tuple[float, list[list[float]]]:
    log_pi = ratios.log().requires_grad_()
    loss, _ = algorithm.loss(log_pi, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), MASK)
    total = (algorithm.weights(MASK) * loss).sum()
    total.backward()
    return total.item(), log_pi.grad.tolist()


def test_dapo_loss_by_hand():
    # A = +1: -min(1.5, 1.28) = -1.28 and -min(0.5, 0.8) = -0.5. A = -1: -min(-0.5, -0.8) = 0.8.
    # One mean over the three tokens: (-1.28 - 0.5 + 0.8) / 3 = -0.98 / 3
    total, gradient = loss_and_gradient(DAPO, RATIOS)
    assert total == pytest.approx(-0.98 / 3, abs=1e-6)
    # Only the second token is not clipped: -A ratio / 3 = -0.5 / 3
    assert gradient == [pytest.approx([0.0, -0.5 / 3], abs=1e-7), [0.0, 0.0]]


def test_gspo_loss_by_hand():
    # Geometric means: sqrt(1.5 * 0.5) = sqrt(0.75), below 1 - 3e-4; A = +1 takes the smaller: -sqrt(0.75), unclipped.
    # 0.5 with A = -1: -min(-0.5, -(1 - 3e-4)) = 0.9997, clipped. Mean over completions: (0.9997 - sqrt(0.75)) / 2.
    total, gradient = loss_and_gradient(GSPO, RATIOS)
    assert total == pytest.approx((0.9997 - math.sqrt(0.75)) / 2, abs=1e-6)
    # d s / d log pi_t = s / 2 for each of the two tokens; a completion's weights sum to 1/2
    assert gradient == [pytest.approx([-math.sqrt(0.75) / 4] * 2, abs=1e-7), [0.0, 0.0]]
    # and above the range: sqrt(1.5 * 1.5) with A = +1 is cut to 1.0004, without gradient
    total, gradient = loss_and_gradient(GSPO, torch.tensor([[1.5, 1.5], [1.0, 1.0]]))
    assert total == pytest.approx((1.0 - 1.0004) / 2, abs=1e-6)
    assert gradient == [[0.0, 0.0], pytest.approx([0.5, 0.0])]


def test_dr_grpo_loss_by_hand():
    # The tokens' losses are GRPO's: -1.2, -0.5, 0.8; summed, over 10 tokens of budget and 2 completions.
    total, gradient = loss_and_gradient(DR_GRPO, RATIOS)
    assert total == pytest.approx(-0.9 / 20, abs=1e-6)
    assert gradient == [pytest.approx([0.0, -0.5 / 20], abs=1e-7), [0.0, 0.0]]


def test_rloo_loss_by_hand():
    # Nothing is clipped: -1.5 - 0.5 + 0.5 = -1.5, summed over tokens, over 2 completions.
    total, gradient = loss_and_gradient(RLOO, RATIOS)
    assert total == pytest.approx(-0.75, abs=1e-6)
    assert gradient == [pytest.approx([-0.75, -0.25], abs=1e-7), pytest.approx([0.25, 0.0], abs=1e-7)]
    assert not RLOO.clipped(RATIOS, torch.tensor([1.0, -1.0])).any()


@pytest.mark.parametrize(
    ("polarity", "expected"),
    [("both", [1.0, -1.0, -1.0, 1.0]), ("positive", [1.0, 0.0, 0.0, 1.0]), ("negative", [0.0, -1.0, -1.0, 0.0])],
)
def test_polarity_by_hand(polarity: str, expected: list[float]):
    algorithm = replace(GRPO, polarity=polarity)
    assert algorithm.advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]])).tolist() == [expected]


def test_constant_aggregation_by_hand():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    weights = Algorithm(aggregation="constant", aggregation_constant=5.0).weights(mask)
    assert weights.tolist() == [pytest.approx([0.1] * 3), pytest.approx([0.1, 0.0, 0.0])]
