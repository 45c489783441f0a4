"""Advantages, ratios, clipping and aggregation against numbers computed by hand."""

import math

import pytest
import torch

from carerft.algorithms import Algorithm, clipped_loss, group_advantages, importance_ratio, token_weights

GRPO = Algorithm("grpo", 4, 0.2, 0.2, "token", "sequence", "population", 0.0)


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
    assert token_weights(mask, "token").tolist() == [[0.25, 0.25, 0.25], [0.25, 0.0, 0.0]]
    expected = torch.tensor([[1 / 6] * 3, [0.5, 0.0, 0.0]])
    assert torch.allclose(token_weights(mask, "sequence"), expected)


def test_sequence_ratio_is_the_geometric_mean():
    log_pi = torch.tensor([[math.log(2.0), math.log(8.0), 5.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    ratio = importance_ratio(log_pi, torch.zeros(1, 3), mask, "sequence")
    assert torch.allclose(ratio[mask], torch.tensor([4.0, 4.0]))  # sqrt(2 * 8)
    ratio[0, 0].backward()  # d s / d log pi_t = s / |o| for every token of the sequence
    assert torch.allclose(log_pi.grad, torch.tensor([[2.0, 2.0, 0.0]]))


def test_clip_higher_is_asymmetric():
    ratio = torch.tensor([[1.25, 1.35, 0.7]])
    assert torch.allclose(clipped_loss(ratio, torch.tensor([1.0]), 0.2, 0.28), -torch.tensor([[1.25, 1.28, 0.7]]))
    assert torch.allclose(clipped_loss(ratio, torch.tensor([-1.0]), 0.2, 0.28), torch.tensor([[1.25, 1.35, 0.8]]))
