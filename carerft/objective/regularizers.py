"""Penalties on the distance between the policy `pi` and the frozen base model `ref`, per state.

Pure functions of log-probabilities (nats). A regularizer is one class of elementwise functions: `summand`, whose sum
over all actions is the divergence, and for estimates from the sampled action alone `generator` (the same divergence as
a mean over pi of something that is never negative). docs/method.md has the equations and measures the estimators.

Left out, as usual for estimators of this kind: the gradient through the states that the policy visits later (the
sequence-level gradient).
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from carerft.errors import ConfigError
from carerft.objective.schedules import scheduled
from carerft.objective.settings import ESTIMATORS, RegularizerSettings, SkewSettings


def log_mixture(log_pi: Tensor, log_ref: Tensor, alpha: float) -> Tensor:
    """log(alpha pi + (1 - alpha) ref), elementwise, without leaving the log domain."""
    if alpha == 0.0:
        return log_ref
    return torch.logaddexp(log_pi + math.log(alpha), log_ref + math.log1p(-alpha))


def expectation(log_p: Tensor, value: Tensor) -> Tensor:
    """p * value, elementwise; an action of probability 0 contributes 0, although its value is then -inf or NaN."""
    return log_p.exp() * torch.nan_to_num(value, nan=0.0, posinf=math.inf, neginf=0.0)


def sampled_estimate(log_u: Tensor, estimator: str) -> Tensor:
    """An estimate of KL(pi || target) from each sampled token. log_u: (...) log(target / pi) of the token.

    k1: -log u, k2: (log u)^2 / 2, k3: u - 1 - log u. On-policy, the mean of k1 and of k3 is the divergence. As
    losses: k1 is wrong (its expected gradient is zero for reverse KL and points the opposite way for the skewed one),
    k2 is exact for reverse KL and nearly so for the skewed one, k3 has the forward KL's gradient at alpha = 0.
    """
    if estimator == "k1":
        return -log_u
    if estimator == "k2":
        return 0.5 * log_u.square()
    if estimator == "k3":
        return torch.expm1(log_u) - log_u
    raise ValueError(f"unknown estimator {estimator!r}")


@dataclass(frozen=True)
class Regularizer(RegularizerSettings):
    """What every penalty has."""

    ESTIMATORS: ClassVar[tuple[str, ...]] = ("exact",)
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.estimator not in self.ESTIMATORS:
            raise ConfigError(
                f"regularizer.estimator={self.estimator}: {type(self).__name__} has {', '.join(self.ESTIMATORS)}",
                f"write regularizer.estimator={self.ESTIMATORS[0]}",
            )

    @property
    def exact(self) -> bool:
        return self.estimator == "exact"

    @property
    def local_strength(self) -> float:
        """The divergence over reverse KL, in the limit of pi = ref."""
        return 1.0

    @property
    def weight(self) -> float:
        """The factor of the penalty in the loss."""
        return self.beta / self.local_strength if self.match == "local" else self.beta

    def at(self, progress: float) -> "Regularizer":
        """This regularizer with its scheduled parameters at `progress`: 0 at the first step, 1 at the last."""
        return dataclasses.replace(self, beta=scheduled(self.beta_schedule, self.beta, self.beta_end, progress))

    def parameters(self) -> dict[str, float]:
        """The current parameters, by their names in metrics.jsonl."""
        return {"regularizer/beta": self.weight}

    def summand(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        """Elementwise, (...) -> (...): summed over all actions of a state, the divergence."""
        raise NotImplementedError(f"{type(self).__name__} has no summand")

    def summand_and_slope(self, log_pi: Tensor, log_ref: Tensor) -> tuple[Tensor, Tensor]:
        """The summand, and its slope d summand / d log_pi, elementwise. This default differentiates automatically; an
        override with a formula is faster."""
        with torch.enable_grad():
            leaf = log_pi.detach().requires_grad_()
            summand = self.summand(leaf, log_ref)
            return summand.detach(), torch.autograd.grad(summand.sum(), leaf)[0]

    def divergence(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        """(..., V), (..., V) normalised log-probabilities -> (...): the exact divergence of each state."""
        return self.summand(log_pi, log_ref).sum(-1)

    def generator(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        """Elementwise g >= 0 with g = 0 at pi = ref, whose mean over the policy's actions is the divergence."""
        raise NotImplementedError(f"{type(self).__name__} has no generator")

    def log_target(self, log_pi: Tensor, log_ref: Tensor) -> Tensor | None:
        """Elementwise log-probability of the target if the divergence is a KL(pi || target), else None."""
        return None

    def estimate(self, log_pi: Tensor, log_ref: Tensor, log_old: Tensor) -> Tensor:
        """A differentiable estimate of each state's divergence from its sampled token alone.

        log_pi, log_ref, log_old: (...) of the sampled token under policy, reference, and the behaviour policy that
        sampled it. unbiased: w g with the differentiable w = pi/old; its expected gradient is the exact one, on- and
        off-policy. k3: g. k2: (log pi - log target)^2 / 2. (g: `generator`.)
        """
        if self.estimator == "unbiased":
            return torch.exp(log_pi - log_old.detach()) * self.generator(log_pi, log_ref)
        if self.estimator == "k3":
            return self.generator(log_pi, log_ref)
        target = self.log_target(log_pi, log_ref)
        assert target is not None and self.estimator == "k2"
        return sampled_estimate(target - log_pi, "k2")


@dataclass(frozen=True)
class NoRegularizer(Regularizer):
    """No penalty, whatever the estimator; entropy_bonus still applies."""

    ESTIMATORS: ClassVar[tuple[str, ...]] = ESTIMATORS["NoRegularizer"]
    needs_reference: ClassVar[bool] = False


@dataclass(frozen=True)
class ReverseKL(Regularizer):
    """KL(pi || ref)."""

    ESTIMATORS: ClassVar[tuple[str, ...]] = ESTIMATORS["ReverseKL"]

    def log_target(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        return log_ref

    def summand(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        return expectation(log_pi, log_pi - self.log_target(log_pi, log_ref))

    def summand_and_slope(self, log_pi: Tensor, log_ref: Tensor) -> tuple[Tensor, Tensor]:
        summand = self.summand(log_pi, log_ref)
        return summand, summand + log_pi.exp()

    def generator(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        return sampled_estimate(self.log_target(log_pi, log_ref) - log_pi, "k3")


@dataclass(frozen=True)
class SkewReverseKL(SkewSettings, ReverseKL):
    """CARE-RFT's penalty, KL(pi || m) with m = alpha pi + (1 - alpha) ref, between 0 and log(1 / alpha).

    alpha: in [0, 1), scheduled as beta is; alpha = 0 is reverse KL.
    """

    @property
    def local_strength(self) -> float:
        return (1 - self.alpha) ** 2

    def at(self, progress: float) -> "Regularizer":
        alpha = scheduled(self.alpha_schedule, self.alpha, self.alpha_end, progress)
        return dataclasses.replace(super().at(progress), alpha=alpha)

    def parameters(self) -> dict[str, float]:
        return {**super().parameters(), "regularizer/alpha": self.alpha}

    def log_target(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        return log_mixture(log_pi, log_ref, self.alpha)

    def summand_and_slope(self, log_pi: Tensor, log_ref: Tensor) -> tuple[Tensor, Tensor]:
        log_share = log_pi - log_mixture(log_pi, log_ref, self.alpha)  # log(pi / m); d m / d log pi = alpha pi
        summand = expectation(log_pi, log_share)
        return summand, summand + expectation(log_pi, 1 - self.alpha * log_share.exp())


@dataclass(frozen=True)
class ForwardKL(Regularizer):
    """KL(ref || pi), which keeps the reference's actions possible."""

    ESTIMATORS: ClassVar[tuple[str, ...]] = ESTIMATORS["ForwardKL"]

    def summand(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        return expectation(log_ref, log_ref - log_pi)

    def summand_and_slope(self, log_pi: Tensor, log_ref: Tensor) -> tuple[Tensor, Tensor]:
        return self.summand(log_pi, log_ref), -log_ref.exp()

    def generator(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        log_u = log_ref - log_pi
        return expectation(log_u, log_u) - torch.expm1(log_u)  # u log u - u + 1


@dataclass(frozen=True)
class JensenShannon(Regularizer):
    """(KL(pi || m) + KL(ref || m)) / 2 with m = (pi + ref) / 2; between 0 and log 2."""

    ESTIMATORS: ClassVar[tuple[str, ...]] = ESTIMATORS["JensenShannon"]

    @property
    def local_strength(self) -> float:
        return 0.25

    def summand(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        log_m = log_mixture(log_pi, log_ref, 0.5)
        return 0.5 * (expectation(log_pi, log_pi - log_m) + expectation(log_ref, log_ref - log_m))

    def summand_and_slope(self, log_pi: Tensor, log_ref: Tensor) -> tuple[Tensor, Tensor]:
        log_m = log_mixture(log_pi, log_ref, 0.5)
        slope = 0.5 * expectation(log_pi, log_pi - log_m)
        return slope + 0.5 * expectation(log_ref, log_ref - log_m), slope

    def generator(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        log_m = log_mixture(log_pi, log_ref, 0.5)
        return 0.5 * (log_pi - log_m + expectation(log_ref - log_pi, log_ref - log_m))
