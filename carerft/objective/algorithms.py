"""Policy-gradient objectives over groups of completions: advantages, importance ratios, clipping, aggregation.

Pure functions of tensors, and `Algorithm`, which is one choice of each. GRPO, DAPO, GSPO, Dr. GRPO and RLOO are such
choices (`conf/algorithm/`); one that is not overrides a method. S = P * G completions of T tokens (padded); a mask
(S, T) is True on the tokens that count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from carerft.objective.settings import AlgorithmSettings


def group_advantages(rewards: Tensor, baseline: str, std: str, eps: float) -> Tensor:
    """A_i = (r_i - baseline) / (std + eps) within each group (DeepSeekMath, section 4.1.2).

    rewards: (P, G); NaN marks a completion without a verdict, which gets advantage 0 and doesn't move the others'.
    baseline: the group's "mean", or "leave_one_out", the mean of the others (RLOO). std: "sample" (n - 1),
    "population" (n), or "none" (no division). Returns (P, G); a group of equal rewards has advantage exactly 0.
    """
    valid = ~rewards.isnan()
    count = valid.sum(-1, keepdim=True)
    filled = rewards.nan_to_num(0.0)
    mean = filled.sum(-1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(valid, filled - mean, 0.0)
    # A mean of equal numbers can differ from them in the last digit, and so small a std would blow that up.
    centred = torch.where(informative(rewards)[:, None], centred, 0.0)
    # r_i - (n mean - r_i) / (n - 1) = (r_i - mean) n / (n - 1)
    advantages = centred * count / (count - 1).clamp(min=1) if baseline == "leave_one_out" else centred
    if std == "none":
        return advantages
    freedom = count - 1 if std == "sample" else count
    variance = centred.square().sum(-1, keepdim=True) / freedom.clamp(min=1)
    return torch.where(centred == 0, 0.0, advantages / (variance.sqrt() + eps))


def informative(rewards: Tensor) -> Tensor:
    """(P, G) -> (P,) bool: groups in which two verdicts differ. The others have advantage 0 (DAPO drops them)."""
    valid = ~rewards.isnan()
    highest = torch.where(valid, rewards, -torch.inf).amax(-1)
    return highest > torch.where(valid, rewards, torch.inf).amin(-1)


def overlong_penalty(lengths: Tensor, limit: int, buffer: float, penalty: float) -> Tensor:
    """What long completions lose: 0 up to limit - buffer tokens, then linear, `penalty` at the limit (DAPO, eq. 13).

    lengths: (S,) tokens. buffer: tokens. Returns (S,), 0 or above.
    """
    return penalty * ((lengths - (limit - buffer)) / buffer).clamp(0.0, 1.0)


def importance_ratio(log_pi: Tensor, log_old: Tensor, mask: Tensor, level: str) -> Tensor:
    """pi / pi_old, (S, T). level "token": of each token (PPO). "sequence": the geometric mean over the completion's
    tokens, the same on each of them (GSPO, arXiv 2507.18071, equation 7)."""
    log_ratio = torch.where(mask, log_pi - log_old, 0.0)
    if level == "sequence":
        log_ratio = (log_ratio.sum(-1) / mask.sum(-1).clamp(min=1))[:, None].expand_as(log_pi)
    return log_ratio.exp()


def clipped_loss(ratio: Tensor, advantages: Tensor, low: float | None, high: float | None) -> Tensor:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A) (PPO, equation 7). ratio: (S, T); advantages: (S,) -> (S, T).

    A bound that is None is not applied.
    """
    advantage = advantages[:, None]
    return -torch.minimum(ratio * advantage, _clip(ratio, low, high) * advantage)


def _clip(ratio: Tensor, low: float | None, high: float | None) -> Tensor:
    if low is None and high is None:
        return ratio
    return ratio.clamp(None if low is None else 1 - low, None if high is None else 1 + high)


def token_weights(mask: Tensor, aggregation: str, constant: float = 1.0) -> Tensor:
    """(S, T) weights, 0 outside the mask: how a per-token loss becomes one number.

    "sequence": mean over each completion's tokens, then over completions (GRPO). "token": one mean over all tokens
    (DAPO). "constant": sum over each completion's tokens divided by `constant`, then mean over completions (Dr. GRPO).
    Computed once for the whole batch, so that cutting it into microbatches, or sharing it out over processes, cannot
    change the loss.
    """
    if aggregation == "sequence":
        weights = mask / mask.sum(-1, keepdim=True).clamp(min=1) / mask.shape[0]
    elif aggregation == "token":
        weights = mask / mask.sum().clamp(min=1)
    elif aggregation == "constant":
        weights = mask / (constant * mask.shape[0])
    else:
        raise ValueError(f"unknown aggregation {aggregation!r}")
    return weights.to(torch.float32)


@dataclass(frozen=True)
class Algorithm(AlgorithmSettings):
    """One choice of each of the functions above."""

    def advantages(self, rewards: Tensor) -> Tensor:
        """(P, G) -> (P, G). With polarity "positive" or "negative" the others' are 0 (CARE-RFT, figure 2)."""
        advantages = group_advantages(rewards, self.advantage_baseline, self.advantage_std, self.advantage_eps)
        if self.polarity == "positive":
            return advantages.clamp(min=0.0)
        return advantages.clamp(max=0.0) if self.polarity == "negative" else advantages

    def penalties(self, lengths: Tensor, limit: int) -> Tensor:
        """(S,) lengths in tokens, of at most `limit` -> (S,): what is taken off the rewards."""
        if self.overlong_buffer == 0.0:
            return torch.zeros(lengths.shape)
        return overlong_penalty(lengths, limit, self.overlong_buffer * limit, self.overlong_penalty)

    def weights(self, mask: Tensor) -> Tensor:
        """(S, T) -> (S, T), for the policy's loss and the regularizer alike."""
        return token_weights(mask, self.aggregation, self.aggregation_constant)

    def loss(self, log_pi: Tensor, log_old: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Per-token policy loss (S, T), and the importance ratio (S, T) that it used."""
        ratio = importance_ratio(log_pi, log_old, mask, self.ratio)
        return clipped_loss(ratio, advantages, self.clip_low, self.clip_high), ratio

    def clipped(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        """(S, T) bool: where clipping has cut the gradient."""
        cut = _clip(ratio, self.clip_low, self.clip_high)
        return torch.where(advantages[:, None] > 0, ratio > cut, (ratio < cut) & (advantages[:, None] < 0))
