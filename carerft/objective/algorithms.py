"""Policy-gradient objectives over groups of completions: advantages, importance ratios, clipping, aggregation.

Pure functions of tensors, and `Algorithm`, which combines one choice of each. GRPO, DAPO, GSPO, Dr. GRPO and RLOO are
such combinations (`conf/algorithm/`); an objective of another form is a subclass that overrides a method. There are P
prompts with G completions each, S = P * G completions of T tokens (padded); a mask (S, T) is True on real tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from carerft.objective.settings import AlgorithmSettings


def group_advantages(rewards: Tensor, baseline: str, std: str, eps: float) -> Tensor:
    """A_i = (r_i - baseline) / (std + eps) within each group (DeepSeekMath, section 4.1.2).

    rewards: (P, G); NaN marks a completion without a verdict: its advantage is 0, and the others' do not depend on it.
    baseline: the group's "mean", or "leave_one_out", the mean of the others (RLOO). std: "sample" (n - 1),
    "population" (n), or "none" (no division). Returns (P, G); a group of equal rewards has advantage exactly 0.
    """
    valid = ~rewards.isnan()
    count = valid.sum(-1, keepdim=True)
    filled = rewards.nan_to_num(0.0)
    mean = filled.sum(-1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(valid, filled - mean, 0.0)
    # A mean of equal numbers can differ from them in the last digit, which dividing by a tiny std would blow up.
    centred = torch.where(informative(rewards)[:, None], centred, 0.0)
    # r_i - (n mean - r_i) / (n - 1) = (r_i - mean) n / (n - 1)
    advantages = centred * count / (count - 1).clamp(min=1) if baseline == "leave_one_out" else centred
    if std == "none":
        return advantages
    freedom = count - 1 if std == "sample" else count
    variance = centred.square().sum(-1, keepdim=True) / freedom.clamp(min=1)
    return torch.where(centred == 0, 0.0, advantages / (variance.sqrt() + eps))


def informative(rewards: Tensor) -> Tensor:
    """(P, G) -> (P,) bool: groups in which two rewards differ. The others have advantage 0 (DAPO drops them)."""
    valid = ~rewards.isnan()
    highest = torch.where(valid, rewards, -torch.inf).amax(-1)
    return highest > torch.where(valid, rewards, torch.inf).amin(-1)


def importance_ratio(log_pi: Tensor, log_old: Tensor, mask: Tensor, level: str) -> Tensor:
    """pi / pi_old, (S, T). level: "token" (PPO), or "sequence", the geometric mean over the completion's tokens, which
    is then the ratio of each of them (GSPO, arXiv 2507.18071, equation 7)."""
    log_ratio = torch.where(mask, log_pi - log_old, 0.0)
    if level == "sequence":
        log_ratio = (log_ratio.sum(-1) / mask.sum(-1).clamp(min=1))[:, None].expand_as(log_pi)
    return log_ratio.exp()


@dataclass(frozen=True)
class Algorithm(AlgorithmSettings):
    """One choice of each of the functions above, of clipping, of a penalty for long completions, and of weights."""

    def advantages(self, rewards: Tensor) -> Tensor:
        """Rewards (P, G) -> advantages (P, G). polarity "positive" and "negative" set those of the other sign to 0
        (CARE-RFT, figure 2)."""
        advantages = group_advantages(rewards, self.advantage_baseline, self.advantage_std, self.advantage_eps)
        if self.polarity == "positive":
            return advantages.clamp(min=0.0)
        return advantages.clamp(max=0.0) if self.polarity == "negative" else advantages

    def penalties(self, lengths: Tensor, limit: int) -> Tensor:
        """What is subtracted from the rewards of long completions, (S,), 0 or above: 0 up to limit - buffer tokens,
        then linearly up to `overlong_penalty` at the limit (DAPO, equation 13). lengths: (S,) tokens, at most `limit`.
        """
        if self.overlong_buffer == 0.0:
            return torch.zeros(lengths.shape)
        buffer = self.overlong_buffer * limit  # tokens
        return self.overlong_penalty * ((lengths - (limit - buffer)) / buffer).clamp(0.0, 1.0)

    def weights(self, mask: Tensor) -> Tensor:
        """Mask (S, T) -> weights (S, T), both for the policy's loss and for the regularizer, 0 outside the mask; the
        loss is the weighted sum of the per-token losses.

        "sequence": mean over each completion's tokens, then over completions (GRPO). "token": one mean over all tokens
        (DAPO). "constant": sum over each completion's tokens divided by a constant, then mean over completions (Dr.
        GRPO). They are computed once for the whole batch, so that the loss does not depend on how it is cut into
        microbatches or divided among processes.
        """
        if self.aggregation == "sequence":
            weights = mask / mask.sum(-1, keepdim=True).clamp(min=1) / mask.shape[0]
        elif self.aggregation == "token":
            weights = mask / mask.sum().clamp(min=1)
        elif self.aggregation == "constant":
            weights = mask / (self.aggregation_constant * mask.shape[0])
        else:
            raise ValueError(f"unknown aggregation {self.aggregation!r}")
        return weights.to(torch.float32)

    def loss(self, log_pi: Tensor, log_old: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The policy loss of each token (S, T), and its importance ratio (S, T).

        The loss is -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) (PPO, equation 7). advantages: (S,).
        """
        ratio, advantage = importance_ratio(log_pi, log_old, mask, self.ratio), advantages[:, None]
        return -torch.minimum(ratio * advantage, self._clip(ratio) * advantage), ratio

    def clipped(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        """(S, T) bool: where clipping sets the gradient to zero."""
        cut = self._clip(ratio)
        return torch.where(advantages[:, None] > 0, ratio > cut, (ratio < cut) & (advantages[:, None] < 0))

    def _clip(self, ratio: Tensor) -> Tensor:
        low, high = self.clip_low, self.clip_high  # None removes the bound
        if low is None and high is None:
            return ratio
        return ratio.clamp(None if low is None else 1 - low, None if high is None else 1 + high)
