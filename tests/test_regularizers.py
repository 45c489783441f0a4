"""The regularizers against autograd of the full sum, finite differences, closed forms and hand-computed numbers."""

import math

import pytest
import torch

from carerft.errors import ConfigError
from carerft.regularizers import Regularizer, ReverseKL, SkewReverseKL, log_mixture, sampled_estimate, skew_reverse_kl

ALPHAS = [0.0, 0.3, 0.8, 0.95]


def distributions(seed: int, vocabulary: int = 7, drift: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a policy and of a reference, float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(vocabulary, generator=generator, dtype=torch.float64)
    reference = logits + drift * torch.randn(vocabulary, generator=generator, dtype=torch.float64)
    return logits, reference


def exact_gradient(logits: torch.Tensor, log_ref: torch.Tensor, alpha: float) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(skew_reverse_kl(logits.log_softmax(-1), log_ref, alpha), logits)
    return gradient


def expected_gradient(
    logits: torch.Tensor, log_ref: torch.Tensor, log_old: torch.Tensor, alpha: float, estimator: str
) -> torch.Tensor:
    """The gradient of the per-token term, averaged over every token that the behaviour policy could have sampled."""
    logits = logits.clone().requires_grad_()
    log_pi = logits.log_softmax(-1)
    terms = sampled_estimate(log_pi, log_mixture(log_pi, log_ref, alpha), log_old, estimator)
    (gradient,) = torch.autograd.grad((log_old.exp() * terms).sum(), logits)
    return gradient


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def test_value_by_hand():
    # pi = (1/2, 1/2), ref = (1/4, 3/4), alpha = 1/2: m = (3/8, 5/8).
    # D = 1/2 log(4/3) + 1/2 log(4/5) = 1/2 log(16/15) = 0.0322693
    pi, ref = torch.tensor([0.5, 0.5]).double(), torch.tensor([0.25, 0.75]).double()
    assert skew_reverse_kl(pi.log(), ref.log(), 0.5).item() == pytest.approx(0.5 * math.log(16 / 15), abs=1e-12)
    # alpha = 0: 1/2 log 2 + 1/2 log(2/3) = 1/2 log(4/3)
    assert skew_reverse_kl(pi.log(), ref.log(), 0.0).item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-12)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("drift", [0.1, 3.0, 60.0])
def test_between_zero_and_its_bound(alpha: float, drift: float):
    for seed in range(20):
        logits, reference = distributions(seed, drift=drift)
        value = skew_reverse_kl(logits.log_softmax(-1), reference.log_softmax(-1), alpha).item()
        assert -1e-12 <= value <= math.log(1 / alpha) + 1e-12


def test_the_bound_is_reached_by_disjoint_distributions():
    pi, ref = torch.tensor([0.0, -1e4]).double(), torch.tensor([-1e4, 0.0]).double()
    assert skew_reverse_kl(pi, ref, 0.8).item() == pytest.approx(math.log(1 / 0.8), abs=1e-12)


@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_near_the_reference_it_is_a_fraction_of_reverse_kl(alpha: float):
    logits, direction = distributions(0)
    previous = math.inf
    for size in (1e-1, 1e-2, 1e-3):  # the ratio approaches (1 - alpha)^2, its error in proportion to the distance
        log_pi, log_ref = logits.log_softmax(-1), (logits + size * (direction - logits)).log_softmax(-1)
        ratio = (skew_reverse_kl(log_pi, log_ref, alpha) / skew_reverse_kl(log_pi, log_ref, 0.0)).item()
        error = abs(ratio - (1 - alpha) ** 2)
        assert error < previous / 5
        previous = error
    assert previous < 1e-4


def test_small_alpha_approaches_reverse_kl():
    logits, reference = distributions(1)
    log_pi, log_ref = logits.log_softmax(-1), reference.log_softmax(-1)
    reverse = (log_pi.exp() * (log_pi - log_ref)).sum().item()
    assert skew_reverse_kl(log_pi, log_ref, 0.0).item() == pytest.approx(reverse, abs=1e-15)
    assert skew_reverse_kl(log_pi, log_ref, 1e-13).item() == pytest.approx(reverse, rel=1e-11)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradient_by_finite_differences(alpha: float):
    logits, reference = distributions(2)
    log_ref = reference.log_softmax(-1)
    gradient = exact_gradient(logits, log_ref, alpha)
    for i in range(len(logits)):
        step = torch.zeros_like(logits)
        step[i] = 1e-6
        up = skew_reverse_kl((logits + step).log_softmax(-1), log_ref, alpha)
        down = skew_reverse_kl((logits - step).log_softmax(-1), log_ref, alpha)
        assert ((up - down) / 2e-6).item() == pytest.approx(gradient[i].item(), abs=1e-9)


@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_the_asymmetry_that_is_the_method(alpha: float):
    """grad D = E[c(pi/ref) grad log pi], c = log(pi/m) - alpha (pi/m - 1): bounded above, unbounded below, 0 at 1."""

    def coefficient(log_ratio: float) -> float:
        log_pi, log_ref = torch.tensor(0.0).double(), torch.tensor(-log_ratio).double()
        log_share = (log_pi - log_mixture(log_pi, log_ref, alpha)).item()
        return log_share - alpha * math.expm1(log_share)

    values = [coefficient(r) for r in (-40.0, -10.0, -1.0, 0.0, 1.0, 10.0, 40.0)]
    assert values == sorted(values) and coefficient(0.0) == pytest.approx(0.0, abs=1e-15)
    assert coefficient(40.0) == pytest.approx(math.log(1 / alpha) - 1 + alpha, abs=1e-9)
    assert coefficient(-80.0) < coefficient(-40.0) - 39

    # and that coefficient is what autograd of the sum gives
    logits, reference = distributions(3, drift=2.0)
    log_pi, log_ref = logits.log_softmax(-1), reference.log_softmax(-1)
    share = (log_pi - log_mixture(log_pi, log_ref, alpha)).exp()
    c = share.log() - alpha * (share - 1)
    pi = log_pi.exp()
    by_formula = pi * (c - (pi * c).sum())  # E[c grad log pi] for softmax logits
    assert torch.allclose(by_formula, exact_gradient(logits, log_ref, alpha), atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("off_policy", [False, True])
def test_unbiased_has_the_exact_gradient_on_and_off_policy(alpha: float, seed: int, off_policy: bool):
    logits, reference = distributions(seed, drift=2.0)
    log_ref = reference.log_softmax(-1)
    behaviour = logits + 0.7 * torch.randn(7, generator=torch.Generator().manual_seed(seed + 99)).double() * off_policy
    gradient = expected_gradient(logits, log_ref, behaviour.log_softmax(-1), alpha, "unbiased")
    assert torch.allclose(gradient, exact_gradient(logits, log_ref, alpha), atol=1e-12)


def test_k2_is_exact_for_reverse_kl_only():
    logits, reference = distributions(4, drift=2.0)
    log_ref, log_old = reference.log_softmax(-1), logits.log_softmax(-1)
    reverse = expected_gradient(logits, log_ref, log_old, 0.0, "k2")
    assert torch.allclose(reverse, exact_gradient(logits, log_ref, 0.0), atol=1e-12)
    skewed = expected_gradient(logits, log_ref, log_old, 0.8, "k2")
    assert not torch.allclose(skewed, exact_gradient(logits, log_ref, 0.8), rtol=0.02)
    assert cosine(skewed, exact_gradient(logits, log_ref, 0.8)) > 0.95


def test_k3_differentiated_is_the_forward_kl():
    logits, reference = distributions(5, drift=2.0)
    log_ref, log_pi = reference.log_softmax(-1), logits.log_softmax(-1)
    k3 = expected_gradient(logits, log_ref, log_pi, 0.0, "k3")
    forward = log_pi.exp() - log_ref.exp()  # gradient of KL(ref || pi) with respect to pi's logits
    assert torch.allclose(k3, forward, atol=1e-12)
    assert not torch.allclose(k3, exact_gradient(logits, log_ref, 0.0), atol=1e-2)


def test_k1_is_no_loss():
    logits, reference = distributions(6, drift=0.3)
    log_ref, log_old = reference.log_softmax(-1), logits.log_softmax(-1)
    assert expected_gradient(logits, log_ref, log_old, 0.0, "k1").abs().max() < 1e-12
    skewed = expected_gradient(logits, log_ref, log_old, 0.8, "k1")
    assert cosine(skewed, exact_gradient(logits, log_ref, 0.8)) < -0.9


@pytest.mark.parametrize("estimator", ["k1", "k3", "unbiased"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_estimates_average_to_the_divergence(estimator: str, alpha: float):
    logits, reference = distributions(7, drift=1.5)
    log_pi, log_ref = logits.log_softmax(-1), reference.log_softmax(-1)
    terms = sampled_estimate(log_pi, log_mixture(log_pi, log_ref, alpha), log_pi, estimator)
    assert (log_pi.exp() * terms).sum().item() == pytest.approx(
        skew_reverse_kl(log_pi, log_ref, alpha).item(), abs=1e-12
    )


@pytest.mark.parametrize("log_ratio", [-80.0, 80.0])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("estimator", ["k2", "k3", "unbiased"])
def test_extreme_log_ratios_stay_finite(log_ratio: float, alpha: float, estimator: str):
    log_pi = torch.tensor([-0.1 + min(log_ratio, 0.0)], requires_grad=True)
    log_ref = torch.tensor([-0.1 - max(log_ratio, 0.0)])
    value = sampled_estimate(log_pi, log_mixture(log_pi, log_ref, alpha), log_pi.detach(), estimator)
    value.backward()
    assert torch.isfinite(value).all() and torch.isfinite(log_pi.grad).all()


def test_a_reference_that_excludes_a_token():
    """log ref = -inf: reverse KL is infinite, the skewed one is not, and neither is NaN."""
    log_pi, log_ref = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]).log()
    assert skew_reverse_kl(log_pi, log_ref, 0.0).item() == math.inf
    # m = (0.6, 0.4): 1/2 log(5/6) + 1/2 log(5/4) = 1/2 log(25/24)
    assert skew_reverse_kl(log_pi, log_ref, 0.8).item() == pytest.approx(0.5 * math.log(25 / 24), abs=1e-6)


def test_the_classes_are_the_functions():
    logits, reference = distributions(8)
    log_pi, log_ref = logits.log_softmax(-1), reference.log_softmax(-1)
    skew = SkewReverseKL(beta=0.04, estimator="k3", alpha=0.8)
    assert torch.equal(skew.divergence(log_pi, log_ref), skew_reverse_kl(log_pi, log_ref, 0.8))
    assert torch.equal(
        skew.estimate(log_pi, log_ref, log_pi),
        sampled_estimate(log_pi, log_mixture(log_pi, log_ref, 0.8), log_pi, "k3"),
    )
    reverse = ReverseKL(beta=0.04)
    assert torch.equal(reverse.divergence(log_pi, log_ref), skew_reverse_kl(log_pi, log_ref, 0.0))
    assert torch.equal(reverse.log_target(log_pi, log_ref), log_ref)


def test_an_estimator_that_a_divergence_does_not_have_is_named():
    class OnlyExact(Regularizer):
        def divergence(self, log_pi, log_ref):
            return (log_pi - log_ref).square().sum(-1)

    log_pi = torch.tensor([0.5, 0.5]).log()
    assert OnlyExact(beta=1.0).divergence(log_pi, log_pi) == 0
    with pytest.raises(ConfigError, match=r"regularizer.estimator=k3: OnlyExact has no sampled estimator"):
        OnlyExact(beta=1.0, estimator="k3").estimate(log_pi, log_pi, log_pi)
