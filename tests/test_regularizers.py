"""The regularizers against autograd of the full sum, finite differences, closed forms and hand-computed numbers."""

import math
from itertools import pairwise

import pytest
import torch

from carerft.errors import ConfigError
from carerft.objective.regularizers import (
    ForwardKL,
    JensenShannon,
    NoRegularizer,
    Regularizer,
    ReverseKL,
    SkewReverseKL,
    log_mixture,
    sampled_estimate,
)

ALPHAS = [0.0, 0.3, 0.8, 0.95]
DIVERGENCES = [*(SkewReverseKL(alpha=alpha) for alpha in ALPHAS), ReverseKL(), ForwardKL(), JensenShannon()]
each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: f"{type(d).__name__}{alpha_of(d)}")


def alpha_of(regularizer: Regularizer) -> str:
    return str(getattr(regularizer, "alpha", ""))


def distributions(seed: int, vocabulary: int = 7, drift: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a policy and of a reference, float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(vocabulary, generator=generator, dtype=torch.float64)
    reference = logits + drift * torch.randn(vocabulary, generator=generator, dtype=torch.float64)
    return logits, reference


def exact_gradient(logits: torch.Tensor, log_ref: torch.Tensor, divergence: Regularizer) -> torch.Tensor:
    """Of the full sum, with respect to the logits, by autograd."""
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(divergence.divergence(logits.log_softmax(-1), log_ref), logits)[0]


def expected_gradient(
    logits: torch.Tensor, log_ref: torch.Tensor, log_old: torch.Tensor, regularizer: Regularizer
) -> torch.Tensor:
    """The gradient of the per-token term, averaged over every token that the behaviour policy could have sampled."""
    logits = logits.clone().requires_grad_()
    terms = regularizer.estimate(logits.log_softmax(-1), log_ref, log_old)
    return torch.autograd.grad((log_old.exp() * terms).sum(), logits)[0]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


# Values


def test_values_by_hand():
    pi, ref = torch.tensor([0.5, 0.5]).double().log(), torch.tensor([0.25, 0.75]).double().log()
    # alpha = 1/2: m = (3/8, 5/8), 1/2 log(4/3) + 1/2 log(4/5) = 1/2 log(16/15)
    assert SkewReverseKL(alpha=0.5).divergence(pi, ref).item() == pytest.approx(0.5 * math.log(16 / 15), abs=1e-15)
    # alpha = 0: 1/2 log 2 + 1/2 log(2/3) = 1/2 log(4/3)
    assert SkewReverseKL(alpha=0.0).divergence(pi, ref).item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-15)
    assert ReverseKL().divergence(pi, ref).item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-15)
    # 1/4 log(1/2) + 3/4 log(3/2) = log(3^(3/4) / 2)
    assert ForwardKL().divergence(pi, ref).item() == pytest.approx(0.75 * math.log(3) - math.log(2), abs=1e-15)
    # the mean of 1/2 log(16/15) and of 1/4 log(2/3) + 3/4 log(6/5)
    by_hand = 0.25 * math.log(16 / 15) + 0.125 * math.log(2 / 3) + 0.375 * math.log(6 / 5)
    assert JensenShannon().divergence(pi, ref).item() == pytest.approx(by_hand, abs=1e-15)


@pytest.mark.parametrize("drift", [0.1, 3.0, 60.0])
@pytest.mark.parametrize(
    ("divergence", "bound"),
    [*((SkewReverseKL(alpha=a), math.log(1 / a)) for a in (0.1, 0.5, 0.8, 0.99)), (JensenShannon(), math.log(2))],
    ids=str,
)
def test_between_zero_and_its_bound(divergence: Regularizer, bound: float, drift: float):
    for seed in range(20):
        log_pi, log_ref = (x.log_softmax(-1) for x in distributions(seed, drift=drift))
        assert -1e-12 <= divergence.divergence(log_pi, log_ref).item() <= bound + 1e-12
    disjoint = torch.tensor([0.0, -1e4]).double(), torch.tensor([-1e4, 0.0]).double()
    assert divergence.divergence(*disjoint).item() == pytest.approx(bound, abs=1e-12)  # the bound is reached


@each_divergence
def test_near_the_reference_it_is_its_local_strength_times_reverse_kl(divergence: Regularizer):
    strength = (1 - divergence.alpha) ** 2 if isinstance(divergence, SkewReverseKL) else divergence.local_strength
    logits, direction = distributions(0)
    errors = []
    for size in (1e-1, 1e-2, 1e-3):  # the error falls in proportion to the distance
        log_pi, log_ref = logits.log_softmax(-1), (logits + size * (direction - logits)).log_softmax(-1)
        ratio = divergence.divergence(log_pi, log_ref) / ReverseKL().divergence(log_pi, log_ref)
        errors.append(abs(ratio.item() - strength))
    assert errors[2] < 2e-3 and all(later <= earlier / 5 + 1e-9 for earlier, later in pairwise(errors))
    matched = type(divergence)(**{**vars(divergence), "beta": 0.04, "match": "local"})
    assert matched.weight * strength == pytest.approx(0.04)
    assert type(divergence)(**{**vars(divergence), "beta": 0.04}).weight == 0.04


def test_small_alpha_approaches_reverse_kl():
    log_pi, log_ref = (x.log_softmax(-1) for x in distributions(1))
    reverse = (log_pi.exp() * (log_pi - log_ref)).sum().item()
    assert SkewReverseKL(alpha=0.0).divergence(log_pi, log_ref).item() == pytest.approx(reverse, abs=1e-15)
    assert SkewReverseKL(alpha=1e-13).divergence(log_pi, log_ref).item() == pytest.approx(reverse, rel=1e-11)


# Gradients


@each_divergence
def test_gradient_by_finite_differences(divergence: Regularizer):
    logits, reference = distributions(2)
    log_ref = reference.log_softmax(-1)
    gradient = exact_gradient(logits, log_ref, divergence)
    for i in range(len(logits)):
        step = torch.zeros_like(logits)
        step[i] = 1e-6
        up = divergence.divergence((logits + step).log_softmax(-1), log_ref)
        down = divergence.divergence((logits - step).log_softmax(-1), log_ref)
        assert ((up - down) / 2e-6).item() == pytest.approx(gradient[i].item(), abs=1e-9)


@each_divergence
def test_the_slope_formulas_are_the_derivatives_of_the_summands(divergence: Regularizer):
    log_pi, log_ref = (x.log_softmax(-1) for x in distributions(3, vocabulary=50, drift=3.0))
    by_formula = divergence.summand_and_slope(log_pi, log_ref)
    by_autograd = Regularizer.summand_and_slope(divergence, log_pi, log_ref)
    for found, expected in zip(by_formula, by_autograd, strict=True):
        assert torch.allclose(found, expected, rtol=1e-13, atol=1e-15)


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
    assert torch.allclose(by_formula, exact_gradient(logits, log_ref, SkewReverseKL(alpha=alpha)), atol=1e-12)


# Estimators


def estimated(divergence: Regularizer, estimator: str) -> Regularizer:
    return type(divergence)(**{**vars(divergence), "estimator": estimator})


@each_divergence
def test_the_generator_is_never_negative_and_averages_to_the_divergence(divergence: Regularizer):
    for seed in range(10):
        log_pi, log_ref = (x.log_softmax(-1) for x in distributions(seed, drift=1.5))
        generator = divergence.generator(log_pi, log_ref)
        assert (generator >= -1e-15).all()
        mean = (log_pi.exp() * generator).sum().item()
        assert mean == pytest.approx(divergence.divergence(log_pi, log_ref).item(), abs=1e-12)
        assert divergence.generator(log_pi, log_pi).abs().max() < 1e-15


@each_divergence
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("off_policy", [False, True])
def test_unbiased_has_the_exact_gradient_on_and_off_policy(divergence: Regularizer, seed: int, off_policy: bool):
    logits, reference = distributions(seed, drift=2.0)
    log_ref = reference.log_softmax(-1)
    behaviour = logits + 0.7 * torch.randn(7, generator=torch.Generator().manual_seed(seed + 99)).double() * off_policy
    gradient = expected_gradient(logits, log_ref, behaviour.log_softmax(-1), estimated(divergence, "unbiased"))
    assert torch.allclose(gradient, exact_gradient(logits, log_ref, divergence), atol=1e-12)


def test_k2_is_exact_for_reverse_kl_only():
    logits, reference = distributions(4, drift=2.0)
    log_ref, log_old = reference.log_softmax(-1), logits.log_softmax(-1)
    reverse = expected_gradient(logits, log_ref, log_old, ReverseKL(estimator="k2"))
    assert torch.allclose(reverse, exact_gradient(logits, log_ref, ReverseKL()), atol=1e-12)
    skewed = expected_gradient(logits, log_ref, log_old, SkewReverseKL(estimator="k2"))
    exact = exact_gradient(logits, log_ref, SkewReverseKL())
    assert not torch.allclose(skewed, exact, rtol=0.02) and cosine(skewed, exact) > 0.95


def test_k3_of_reverse_kl_has_the_gradient_of_the_forward_kl():
    logits, reference = distributions(5, drift=2.0)
    log_ref, log_pi = reference.log_softmax(-1), logits.log_softmax(-1)
    k3 = expected_gradient(logits, log_ref, log_pi, ReverseKL(estimator="k3"))
    assert torch.allclose(k3, log_pi.exp() - log_ref.exp(), atol=1e-12)  # of KL(ref || pi), with respect to pi's logits
    assert torch.allclose(k3, exact_gradient(logits, log_ref, ForwardKL()), atol=1e-12)
    assert not torch.allclose(k3, exact_gradient(logits, log_ref, ReverseKL()), atol=1e-2)


@pytest.mark.parametrize("divergence", [SkewReverseKL(), ForwardKL(), JensenShannon()], ids=lambda d: type(d).__name__)
def test_k3_is_biased_far_from_the_reference(divergence: Regularizer):
    logits, reference = distributions(5, drift=3.0)
    log_ref, log_pi = reference.log_softmax(-1), logits.log_softmax(-1)
    k3 = expected_gradient(logits, log_ref, log_pi, estimated(divergence, "k3"))
    assert not torch.allclose(k3, exact_gradient(logits, log_ref, divergence), rtol=0.05)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_k1_is_no_loss(alpha: float):
    """Near the reference its expected gradient is -alpha / (1 - alpha) times the exact one: zero, or the wrong way."""
    logits, reference = distributions(6, drift=1e-4)
    log_ref = reference.log_softmax(-1)
    leaf = logits.clone().requires_grad_()
    log_pi = leaf.log_softmax(-1)
    terms = sampled_estimate(log_mixture(log_pi, log_ref, alpha) - log_pi, "k1")
    (gradient,) = torch.autograd.grad((log_pi.detach().exp() * terms).sum(), leaf)
    exact = exact_gradient(logits, log_ref, SkewReverseKL(alpha=alpha))
    assert torch.allclose(gradient, -alpha / (1 - alpha) * exact, rtol=1e-3, atol=1e-3 * float(exact.norm()))
    # Its value is right, which is why it is there to be watched.
    assert (log_pi.exp() * terms).sum().item() == pytest.approx(
        SkewReverseKL(alpha=alpha).divergence(log_pi, log_ref).item()
    )
    with pytest.raises(ConfigError, match=r"regularizer.estimator=k1: SkewReverseKL has exact, unbiased, k2, k3"):
        SkewReverseKL(alpha=alpha, estimator="k1")


@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_a_detached_mixture_would_be_too_strong(alpha: float):
    """What a mixture without gradient would do near the reference: 1 / (1 - alpha) times the exact gradient."""
    logits, reference = distributions(6, drift=1e-4)
    log_ref = reference.log_softmax(-1)
    leaf = logits.clone().requires_grad_()
    log_pi = leaf.log_softmax(-1)
    wrong = (log_pi.exp() * (log_pi - log_mixture(log_pi, log_ref, alpha).detach())).sum()
    exact = exact_gradient(logits, log_ref, SkewReverseKL(alpha=alpha))
    factor = float(torch.autograd.grad(wrong, leaf)[0].norm() / exact.norm())
    assert factor == pytest.approx(1 / (1 - alpha), rel=1e-3)


# Extreme input


@pytest.mark.parametrize("log_ratio", [-80.0, 80.0])
@each_divergence
def test_extreme_log_ratios_stay_finite(log_ratio: float, divergence: Regularizer):
    """log(pi / ref) of +-80 in float32: every estimator's value and gradient."""
    for estimator in set(divergence.ESTIMATORS) - {"exact"}:
        log_pi = torch.tensor([-0.1 + min(log_ratio, 0.0)], requires_grad=True)
        log_ref = torch.tensor([-0.1 - max(log_ratio, 0.0)])
        value = estimated(divergence, estimator).estimate(log_pi, log_ref, log_pi.detach())
        value.backward()
        assert torch.isfinite(value).all() and torch.isfinite(log_pi.grad).all(), estimator
    logits, reference = torch.tensor([80.0, 0.0, 1.0]), torch.tensor([0.0, 80.0, 1.0])
    gradient = exact_gradient(logits, reference.log_softmax(-1), divergence)
    in_double = exact_gradient(logits.double(), reference.double().log_softmax(-1), divergence)
    assert torch.isfinite(gradient).all() and torch.allclose(gradient.double(), in_double, rtol=1e-4, atol=1e-6)


def test_a_reference_that_excludes_a_token():
    """log ref = -inf: reverse KL is infinite; the others are not, and neither is NaN."""
    log_pi, log_ref = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]).log()
    assert ReverseKL().divergence(log_pi, log_ref).item() == math.inf
    # m = (0.6, 0.4): 1/2 log(5/6) + 1/2 log(5/4) = 1/2 log(25/24)
    assert SkewReverseKL().divergence(log_pi, log_ref).item() == pytest.approx(0.5 * math.log(25 / 24), abs=1e-6)
    assert ForwardKL().divergence(log_pi, log_ref).item() == pytest.approx(math.log(2), abs=1e-6)
    # m = (3/4, 1/4): half of 1/2 log(2/3) + 1/2 log 2, and half of log(4/3)
    by_hand = 0.25 * math.log(4 / 3) + 0.5 * math.log(4 / 3)
    assert JensenShannon().divergence(log_pi, log_ref).item() == pytest.approx(by_hand, abs=1e-6)
    for divergence in (SkewReverseKL(), ForwardKL(), JensenShannon()):
        assert torch.isfinite(exact_gradient(log_pi, log_ref, divergence)).all(), divergence
        for estimator in set(divergence.ESTIMATORS) - {"exact"}:
            gradient = expected_gradient(log_pi, log_ref, log_pi, estimated(divergence, estimator))
            assert torch.isfinite(gradient).all(), (divergence, estimator)


@each_divergence
def test_a_policy_that_excludes_a_token(divergence: Regularizer):
    """log pi = -inf, and the reference too: the token counts for nothing."""
    short = tuple(x.log_softmax(-1) for x in distributions(9))
    none = torch.tensor([-torch.inf]).double()
    longer = tuple(torch.cat([x, none]) for x in short)
    assert divergence.divergence(*longer).item() == pytest.approx(divergence.divergence(*short).item(), abs=1e-15)
    for found, expected in zip(
        divergence.summand_and_slope(*longer), divergence.summand_and_slope(*short), strict=True
    ):
        assert torch.equal(found, torch.cat([expected, torch.zeros(1).double()]))


@each_divergence
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_the_value_of_their_rounded_selves(divergence: Regularizer, dtype: torch.dtype):
    logits, reference = (x.to(dtype) for x in distributions(10, vocabulary=100, drift=2.0))
    found = divergence.divergence(logits.float().log_softmax(-1), reference.float().log_softmax(-1))
    exact = divergence.divergence(logits.double().log_softmax(-1), reference.double().log_softmax(-1))
    assert found.item() == pytest.approx(exact.item(), abs=2e-6)


# What a regularizer does not have


def test_an_estimator_that_a_divergence_does_not_have_is_named():
    with pytest.raises(ConfigError, match=r"regularizer.estimator=k2: ForwardKL has exact, unbiased, k3"):
        ForwardKL(estimator="k2")

    class OnlyExact(Regularizer):
        def summand(self, log_pi: torch.Tensor, log_ref: torch.Tensor) -> torch.Tensor:
            return (log_pi - log_ref).square()

    assert OnlyExact().divergence(torch.zeros(2), torch.zeros(2)) == 0
    with pytest.raises(ConfigError, match=r"regularizer.estimator=k3: OnlyExact has exact"):
        OnlyExact(estimator="k3")
    assert not NoRegularizer(estimator="k3").needs_reference  # so that one sweep over estimators holds "none" as well
