"""The learner: one optimizer step on one minibatch of rollouts.

`Learner.step` is objective + beta * regularizer, differentiated over microbatches. What it is given is plain data
(rollouts, advantages); what it returns is plain numbers. It knows nothing of tasks, rewards or files.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm
from transformers import PreTrainedModel

from carerft.algorithms import Algorithm
from carerft.errors import NonFiniteError
from carerft.head import TokenStatistics, token_statistics
from carerft.regularizers import Regularizer
from carerft.rollout import Rollouts
from carerft.states import attends_to_everything, separate_states, shared_states


@dataclass(frozen=True)
class Optimization:
    """How the weights are updated; the fields of `conf/learner/` that the learner needs."""

    learning_rate: float
    steps: int
    schedule: str = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    max_grad_norm: float = 1.0
    tokens_per_microbatch: int = 16384
    precision: str = "float32"
    share_prompts: bool = True
    monitor_reference: bool = True


def learning_rate_factor(step: int, optimization: Optimization) -> float:
    """What the learning rate is multiplied by at a step: linear warm-up, then constant, linear or cosine decay to 0."""
    warmup, total = optimization.warmup_steps, optimization.steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if optimization.schedule == "linear":
        return 1.0 - progress
    if optimization.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


def microbatches(lengths: Tensor, token_budget: int) -> Iterator[Tensor]:
    """Indices of sequences that share a forward pass: longest first, as many as fit the budget once padded.

    lengths: (S,). A sequence longer than the budget goes alone. Sorting keeps padding small.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    start = 0
    while start < len(order):
        width = int(lengths[order[start]])
        count = max(1, token_budget // max(1, width))
        yield order[start : start + count]
        start += count


class Learner:
    """A policy, its frozen reference, and the optimizer that moves the one away from the other."""

    def __init__(
        self,
        policy: PreTrainedModel,
        algorithm: Algorithm,
        regularizer: Regularizer,
        optimization: Optimization,
    ):
        """policy: in float32 on its device; the reference is a frozen copy of it as it is now."""
        self.policy, self.algorithm, self.regularizer, self.optimization = policy, algorithm, regularizer, optimization
        policy.train()
        self.reference: PreTrainedModel | None = None
        if regularizer.needs_reference or optimization.monitor_reference:
            self.reference = copy.deepcopy(policy).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=optimization.learning_rate,
            betas=(optimization.adam_beta1, optimization.adam_beta2),
            eps=optimization.adam_eps,
            weight_decay=optimization.weight_decay,
            fused=True,
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, optimization)
        )

    def step(self, rollouts: Rollouts, advantages: Tensor) -> dict[str, float]:
        """One optimizer step. advantages: (S,). Returns metrics by their names in metrics.jsonl.

        Raises NonFiniteError where the loss or its gradient is not finite; the weights and the optimizer's state are
        then as they were before.
        """
        metrics = self.gradient(rollouts, advantages)
        parameters = [p for p in self.policy.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters])
        if not (math.isfinite(metrics["loss/total"]) and torch.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(
                f"the loss is {metrics['loss/total']}, the norm of its gradient {float(norm)}; the step was not taken",
                "lower learner.learning_rate or learner.max_grad_norm, or use learner.precision=float32",
            )
        clip_grad_norm_(parameters, self.optimization.max_grad_norm)
        metrics["learner/grad_norm"] = float(norm)
        metrics["learner/learning_rate"] = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return metrics

    def gradient(self, rollouts: Rollouts, advantages: Tensor) -> dict[str, float]:
        """Add the loss's gradient to the parameters', microbatch by microbatch, and return the metrics."""
        mask = rollouts.mask()
        weights = self.algorithm.weights(mask)
        total = int(mask.sum())
        prompt_lengths = rollouts.prompt_lengths.repeat_interleave(rollouts.group_size)
        sums: dict[str, float] = defaultdict(float)
        for index in microbatches(prompt_lengths + rollouts.lengths, self.optimization.tokens_per_microbatch):
            self._microbatch(rollouts, index, advantages[index], weights[index], mask[index], sums)
        maxima = {key: sums.pop(key) for key in list(sums) if key.endswith("_max")}
        losses = {key: sums.pop(key) for key in list(sums) if key.startswith("loss/")}
        return {**losses, **{key: value / total for key, value in sums.items()}, **maxima}

    def _microbatch(
        self,
        rollouts: Rollouts,
        index: Tensor,
        advantages: Tensor,
        weights: Tensor,
        mask: Tensor,
        sums: dict[str, float],
    ) -> None:
        """Backward through the sequences `index` (b,), adding to `sums`: losses weighted, the rest over tokens."""
        device = self.policy.device
        width = int(rollouts.lengths[index].max())
        mask, weights = mask[:, :width].to(device), weights[:, :width].to(device)
        log_old, advantages = rollouts.log_probs[index, :width].to(device), advantages.to(device)
        statistics = self.score(rollouts, index)

        def padded(values: Tensor) -> Tensor:  # (N,) -> (b, width)
            return torch.zeros(mask.shape, dtype=values.dtype, device=device).masked_scatter(mask, values)

        log_pi = padded(statistics.log_prob)
        policy_loss, ratio = self.algorithm.loss(log_pi, log_old, advantages, mask)
        loss_policy = (weights * policy_loss).sum()
        loss_regularizer, penalty = torch.zeros((), device=device), None
        if self.regularizer.needs_reference:
            if statistics.divergence is not None:
                penalty = padded(statistics.divergence)
            else:
                penalty = self.regularizer.estimate(log_pi, padded(_present(statistics.ref_log_prob)), log_old)
            loss_regularizer = self.regularizer.beta * (weights * penalty).sum()
        (loss_policy + loss_regularizer).backward()

        with torch.no_grad():
            sums["loss/policy"] += float(loss_policy)
            sums["loss/regularizer"] += float(loss_regularizer)
            sums["loss/total"] += float(loss_policy + loss_regularizer)
            sums["regularizer/value"] += float(penalty[mask].sum()) if penalty is not None else 0.0
            sums["policy/entropy"] += float(statistics.entropy.sum())
            sums["policy/clip_fraction"] += float(self.algorithm.clipped(ratio, advantages)[mask].sum())
            sums["policy/ratio_max"] = max(sums["policy/ratio_max"], float(ratio[mask].max()))
            # At a batch's first step, where weights are equal, this is the sampler against the learner.
            drift = (log_pi - log_old)[mask].abs()
            sums["rollout/mismatch_mean"] += float(drift.sum())
            sums["rollout/mismatch_max"] = max(sums["rollout/mismatch_max"], float(drift.max()))
            sums["rollout/mismatch_outside"] += float((((log_pi - log_old).exp() - 1).abs() > 0.1)[mask].sum())
            if statistics.ref_kl is not None:
                sums["policy/kl_to_reference"] += float(statistics.ref_kl.sum())

    def score(self, rollouts: Rollouts, index: Tensor) -> TokenStatistics:
        """Statistics of the completion tokens of the sequences `index` (b,), one after another: N tokens in all."""
        share = self.optimization.share_prompts and not self.policy.is_gradient_checkpointing
        states = shared_states if share and attends_to_everything(self.policy) else separate_states
        width = int(rollouts.lengths[index].max())
        targets = rollouts.tokens[index, :width][rollouts.mask()[index, :width]].to(self.policy.device)
        with self._autocast():
            ref_hidden = ref_weight = None
            if self.reference is not None:
                with torch.no_grad():
                    ref_hidden = states(self.reference, rollouts, index)
                ref_weight = self.reference.get_output_embeddings().weight
            return token_statistics(
                states(self.policy, rollouts, index),
                self.policy.get_output_embeddings().weight,
                targets,
                ref_hidden,
                ref_weight,
                self.regularizer.divergence if self.regularizer.needs_reference and self.regularizer.exact else None,
            )

    def _autocast(self) -> torch.autocast:
        bfloat16 = self.optimization.precision == "bfloat16"
        return torch.autocast(self.policy.device.type, dtype=torch.bfloat16, enabled=bfloat16)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside the weights."""
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


def _present(value: Tensor | None) -> Tensor:
    assert value is not None, "a sampled estimator needs the reference's log-probabilities"
    return value
