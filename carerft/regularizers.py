"""Penalties on the distance between the policy `pi` and the frozen base model `ref`, per state.

Pure functions of log-probabilities (nats). A regularizer is one class: `divergence` is the full-vocabulary sum over
actions, `log_target` is what the sampled estimators compare `log pi` with. Left out, as in every estimator of this
kind: the divergence's effect on which later states are visited (the sequence-level gradient).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from carerft.errors import ConfigError


def skew_reverse_kl(log_pi: Tensor, log_ref: Tensor, alpha: float) -> Tensor:
    """KL(pi || alpha pi + (1 - alpha) ref), CARE-RFT's equation; alpha = 0 is reverse KL.

    log_pi, log_ref: (..., V) normalised log-probabilities. Returns (...), between 0 and log(1/alpha).
    """
    difference = log_pi - log_mixture(log_pi, log_ref, alpha)
    # An action of probability 0 contributes 0, although its log-ratio may be infinite.
    return torch.where(log_pi > -torch.inf, log_pi.exp() * difference, 0.0).sum(-1)


def log_mixture(log_pi: Tensor, log_ref: Tensor, alpha: float) -> Tensor:
    """log(alpha pi + (1 - alpha) ref), elementwise, without leaving the log domain."""
    if alpha == 0.0:
        return log_ref
    return torch.logaddexp(log_pi + math.log(alpha), log_ref + math.log1p(-alpha))


def sampled_estimate(log_pi: Tensor, log_target: Tensor, log_old: Tensor, estimator: str) -> Tensor:
    """A per-token estimate of KL(pi || target) from the sampled tokens alone, to be differentiated.

    log_pi, log_target, log_old: (...) of the sampled token under the policy, under what it is compared with, and
    under the behaviour policy that sampled it. With u = target/pi:

    unbiased: w (u - 1 - log u) with the differentiable w = pi/old: its expected gradient is the exact one.
    k3: u - 1 - log u, GRPO's habit. At alpha = 0 its gradient is the forward KL's.
    k2: (log u)^2 / 2. Exact for reverse KL, nearly so for the skewed one.
    k1: -log u. A value to watch, never a loss: its gradient is zero for reverse KL and points the wrong way for the
        skewed one, so it is not among the estimators that a regularizer accepts.
    """
    log_u = log_target - log_pi
    if estimator == "k1":
        return -log_u
    if estimator == "k2":
        return 0.5 * log_u.square()
    k3 = torch.expm1(log_u) - log_u
    if estimator == "k3":
        return k3
    if estimator == "unbiased":
        return torch.exp(log_pi - log_old.detach()) * k3
    raise ValueError(f"unknown estimator {estimator!r}")


@dataclass(frozen=True)
class Regularizer:
    """beta: weight of the penalty in the loss. estimator: "exact" (full vocabulary) or a sampled one."""

    beta: float
    estimator: str = "exact"
    name: str = ""

    needs_reference = True

    @property
    def exact(self) -> bool:
        return self.estimator == "exact"

    def divergence(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        """(..., V), (..., V) -> (...): the exact divergence of each state."""
        raise self._undefined("divergence over the vocabulary")

    def log_target(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        """Elementwise log-probability of what the policy is compared with."""
        raise self._undefined("sampled estimator")

    def _undefined(self, what: str) -> ConfigError:
        name = type(self).__name__
        return ConfigError(f"regularizer.estimator={self.estimator}: {name} has no {what}", "choose another estimator")

    def estimate(self, log_pi: Tensor, log_ref: Tensor, log_old: Tensor) -> Tensor:
        """(...) of the sampled tokens -> (...): the sampled estimate of each state's divergence."""
        return sampled_estimate(log_pi, self.log_target(log_pi, log_ref), log_old, self.estimator)


@dataclass(frozen=True)
class NoRegularizer(Regularizer):
    """No penalty."""

    needs_reference = False


@dataclass(frozen=True)
class SkewReverseKL(Regularizer):
    """CARE-RFT's penalty. alpha in [0, 1)."""

    alpha: float = 0.8

    def divergence(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        return skew_reverse_kl(log_pi, log_ref, self.alpha)

    def log_target(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        return log_mixture(log_pi, log_ref, self.alpha)


@dataclass(frozen=True)
class ReverseKL(Regularizer):
    """KL(pi || ref)."""

    def divergence(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        return skew_reverse_kl(log_pi, log_ref, 0.0)

    def log_target(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        return log_ref
