"""Policy-gradient objectives over groups of completions: advantages, importance ratios, clipping, aggregation.

Pure functions of tensors, and `Algorithm`, which is one choice of each. GRPO, and its successors, are such choices.
S = P * G completions of T tokens (padded); a mask (S, T) is True on the tokens that count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, std: str, eps: float) -> Tensor:
    """A_i = (r_i - mean) / (std + eps) within each group (DeepSeekMath, section 4.1.2).

    rewards: (P, G); NaN marks a completion without a verdict, which gets advantage 0 and doesn't move the others'.
    std: "sample" (n - 1), "population" (n), or "none" (no division). Returns (P, G); a group of equal rewards has
    advantage exactly 0.
    """
    valid = ~rewards.isnan()
    count = valid.sum(-1, keepdim=True)
    filled = rewards.nan_to_num(0.0)
    mean = filled.sum(-1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(valid, filled - mean, 0.0)
    # A mean of equal numbers can differ from them in the last digit, and so small a std would blow that up.
    equal = torch.where(valid, rewards, -torch.inf).amax(-1) == torch.where(valid, rewards, torch.inf).amin(-1)
    centred = torch.where(equal[:, None], 0.0, centred)
    if std == "none":
        return centred
    freedom = count - 1 if std == "sample" else count
    variance = centred.square().sum(-1, keepdim=True) / freedom.clamp(min=1)
    return centred / (variance.sqrt() + eps)


def importance_ratio(log_pi: Tensor, log_old: Tensor, mask: Tensor, level: str) -> Tensor:
    """pi / pi_old, (S, T). level "token": of each token (PPO). "sequence": the geometric mean over the completion's
    tokens, the same on each of them (GSPO, arXiv 2507.18071, equation 7)."""
    log_ratio = torch.where(mask, log_pi - log_old, 0.0)
    if level == "sequence":
        log_ratio = (log_ratio.sum(-1) / mask.sum(-1).clamp(min=1))[:, None].expand_as(log_pi)
    return log_ratio.exp()


def clipped_loss(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A) (PPO, equation 7). ratio: (S, T); advantages: (S,) -> (S, T)."""
    advantage = advantages[:, None]
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def token_weights(mask: Tensor, aggregation: str) -> Tensor:
    """(S, T) weights that sum to 1 over the batch, 0 outside the mask: how a per-token loss becomes one number.

    "sequence": mean over each completion's tokens, then over completions (GRPO). "token": one mean over all tokens
    (DAPO). Computed once for the whole batch, so that cutting it into microbatches cannot change the loss.
    """
    if aggregation == "sequence":
        weights = mask / mask.sum(-1, keepdim=True).clamp(min=1) / mask.shape[0]
    elif aggregation == "token":
        weights = mask / mask.sum().clamp(min=1)
    else:
        raise ValueError(f"unknown aggregation {aggregation!r}")
    return weights.to(torch.float32)


@dataclass(frozen=True)
class Algorithm:
    """One choice of each of the functions above; the fields are those of `conf/algorithm/`."""

    name: str
    group_size: int
    clip_low: float
    clip_high: float
    ratio: str
    aggregation: str
    advantage_std: str
    advantage_eps: float

    def advantages(self, rewards: Tensor) -> Tensor:
        """(P, G) -> (P, G)."""
        return group_advantages(rewards, self.advantage_std, self.advantage_eps)

    def weights(self, mask: Tensor) -> Tensor:
        """(S, T) -> (S, T), for the policy's loss and the regularizer alike."""
        return token_weights(mask, self.aggregation)

    def loss(self, log_pi: Tensor, log_old: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Per-token policy loss (S, T), and the importance ratio (S, T) that it used."""
        ratio = importance_ratio(log_pi, log_old, mask, self.ratio)
        return clipped_loss(ratio, advantages, self.clip_low, self.clip_high), ratio

    def clipped(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        """(S, T) bool: where clipping has cut the gradient."""
        up, down = advantages[:, None] > 0, advantages[:, None] < 0
        return (up & (ratio > 1 + self.clip_high)) | (down & (ratio < 1 - self.clip_low))
