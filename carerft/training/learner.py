"""The learner: one optimizer step on one minibatch of rollouts.

`Learner.step` differentiates objective + beta * regularizer over microbatches. It takes plain data (rollouts,
advantages) and returns plain numbers. The learner knows nothing of tasks or rewards.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import PreTrainedModel

from carerft.config.settings import MOST_TOKENS, LearnerSettings
from carerft.errors import CareError, DataError, NonFiniteError
from carerft.model.casts import share_casts
from carerft.model.loading import context_length, decoder, described, round_matrices
from carerft.model.lora import adapter_off, adapter_weights, frozen_reference, gather_weights
from carerft.model.modes import silence
from carerft.model.sharding import as_forward, full_tensor, reshard, shard
from carerft.objective.algorithms import Algorithm
from carerft.objective.lm_head import TokenStatistics, token_statistics
from carerft.objective.regularizers import NoRegularizer, Regularizer, sampled_estimate
from carerft.rollout import Rollouts
from carerft.training.attention import use_own_attention
from carerft.training.checkpoint_tensors import CheckpointTensors
from carerft.training.hidden_states import best_layout, completion_states
from carerft.training.optimizer import learning_rate_factor, make_optimizer
from carerft.training.packing import Layout, microbatches

Result = TypeVar("Result")


@dataclass
class TruncatedImportance:
    """For rollouts from a sampler that differs from the policy (method.md, section 3).

    log_probs: (S, T), log-probabilities of the tokens under the learner's weights when learning from the batch began;
    the denominator of the objective's ratio. None: those of this step's own forward pass, because the weights are still
    the same; the ratio is then exactly 1. weights: (S, T), these probabilities over the sampler's own, truncated;
    factors of the objective, but not of the regularizer. None: all are 1.
    """

    log_probs: Tensor | None
    weights: Tensor | None

    def with_rows(self, of: Callable[[Any], Any]) -> "TruncatedImportance":
        """With `of` called on each of the two, where there is one."""
        return TruncatedImportance(*(rows if rows is None else of(rows) for rows in (self.log_probs, self.weights)))


class Learner:
    """A policy, its frozen reference, and the policy's optimizer. steps_done: optimizer steps, also those before a
    resumption."""

    def __init__(
        self,
        policy: PreTrainedModel,
        algorithm: Algorithm,
        regularizer: Regularizer,
        settings: LearnerSettings,
        steps: int,
        mesh: DeviceMesh | None = None,
        reference: PreTrainedModel | None = None,
    ):
        """policy: in float32 on its device. reference: another model of the same type and size, like the policy; None:
        the policy's current state (`frozen_reference`).

        steps: optimizer steps of the whole run, which schedules need.

        mesh: processes that divide the microbatches of each batch among them, and weights, gradients and optimizer
        state. All must be given the same policy and make the same calls, with undivided batches. None: one process.
        """
        self.policy, self.algorithm, self.regularizer = policy, algorithm, regularizer
        tokens = agreed(lambda: settings.tokens_per_microbatch or MOST_TOKENS, mesh)
        self.settings = replace(settings, tokens_per_microbatch=tokens)
        self.steps, self.steps_done, self.mesh = steps, 0, mesh
        silence(policy)
        self.layout: Layout = agreed(lambda: best_layout(policy, settings.share_prompts), mesh)
        if self.layout == "padded":  # as the first process found, the only one that need have weights
            use_own_attention(policy)
        if reference is not None:
            reference.requires_grad_(False)
            reference.set_attn_implementation(policy.config.get_text_config()._attn_implementation or "sdpa")
        elif regularizer.needs_reference or settings.monitor_reference:
            reference = frozen_reference(policy)
        self.reference = reference
        models = [policy] if reference is None or reference is policy else [policy, reference]
        for model in models:
            if settings.compile:  # before sharding; equal layers share one compilation
                for layer in cast(nn.ModuleList, decoder(model).layers):
                    layer.compile(dynamic=True)  # no two microbatches have the same number of tokens
            if mesh is not None:
                shard(model, mesh, settings.precision, settings.reference_offload and model is not policy)
        if mesh is None and settings.precision == "bfloat16":  # the policy exactly: it is exported with its adapter
            round_matrices(models[-1], exactly=models[-1] is policy)
            for model in [] if settings.compile else models:
                share_casts(model)
        self.optimizer = make_optimizer([p for p in policy.parameters() if p.requires_grad], settings)
        tensors = CheckpointTensors(policy, self.optimizer, mesh is not None)
        self.save, self.finish_saving, self.load = tensors.save, tensors.finish_saving, tensors.load

    def step(
        self, rollouts: Rollouts, advantages: Tensor, correction: TruncatedImportance | None = None
    ) -> dict[str, float]:
        """One optimizer step. advantages: (S,). Returns metrics by their names in metrics.jsonl.

        Raises NonFiniteError if the loss or its gradient is not finite; weights and optimizer state are then unchanged.
        """
        metrics = self.gradient(rollouts, advantages, correction)
        norm = full_tensor(get_total_norm([p.grad for p in self.policy.parameters() if p.grad is not None]))
        if not (math.isfinite(metrics["loss/total"]) and torch.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(
                f"the loss is {metrics['loss/total']}, the norm of its gradient {float(norm)}; the step was not taken",
                "lower learner.learning_rate or learner.max_grad_norm, or use learner.precision=float32",
            )
        clip_grads_with_norm_(self.policy.parameters(), self.settings.max_grad_norm, norm)
        rate = self.settings.learning_rate * learning_rate_factor(self.steps_done, self.settings, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        return {**metrics, "learner/grad_norm": float(norm), "learner/learning_rate": rate}

    def gradient(
        self, rollouts: Rollouts, advantages: Tensor, correction: TruncatedImportance | None = None
    ) -> dict[str, float]:
        """Set the parameters' gradients to the loss's, microbatch by microbatch, and return the metrics."""
        silence(self.policy)  # whatever mode others have left it in
        self.optimizer.zero_grad(set_to_none=True)
        progress = min(1.0, self.steps_done / max(1, self.steps - 1))  # 0 at the first optimizer step, 1 at the last
        mask, regularizer = rollouts.mask(), self.regularizer.at(progress)
        weights, parts = self.algorithm.weights(mask), []
        # Backward passes run in this thread: layers that are recomputed in a GPU's own would be compiled a second time.
        with torch.autograd.set_multithreading_enabled(False):
            for index, is_real in self._microbatches(rollouts):
                if is_real:
                    parts.append(self._backward(rollouts, advantages, weights, correction, regularizer, index))
                else:
                    (0.0 * self.score(rollouts, index, regularizer).log_prob.sum()).backward()
        if self.reference is not None:
            reshard(self.reference)
        totals = _combined(parts)
        if self.mesh is not None:
            gathered: list[Any] = [None] * self.mesh.size()
            dist.all_gather_object(gathered, totals, group=self.mesh.get_group())
            totals = dict(sorted(_combined(gathered).items()))
        tokens = int(mask.sum())
        losses = {key: total for key, total in totals.items() if key.startswith("loss/")}
        maxima = {key: total for key, total in totals.items() if key.endswith("_max")}
        means = {key: total / tokens for key, total in totals.items() if key not in losses and key not in maxima}
        return {**losses, **means, **maxima, **regularizer.parameters()}

    def _microbatches(self, rollouts: Rollouts) -> list[tuple[Tensor, bool]]:
        """(sequences, is_real) of each microbatch of this rank. Ranks with fewer microbatches get a dummy, because
        collective operations must match."""
        self._check_lengths(rollouts)
        rank, count = (0, 1) if self.mesh is None else (self.mesh.get_rank(), self.mesh.size())
        cut = microbatches(rollouts, self.settings.tokens_per_microbatch or MOST_TOKENS, self.layout, count)
        return [(index, True) if len(index) else (torch.tensor([0]), False) for index in cut[rank::count]]

    def _check_lengths(self, rollouts: Rollouts) -> None:
        """Raises DataError for a sequence beyond the length at which the model begins to read it differently in a batch
        and alone. Samplers refuse such a length before."""
        context = context_length(self.policy)
        longest = int((rollouts.prompt_lengths.repeat_interleave(rollouts.group_size) + rollouts.lengths).max())
        if context.why and longest > context:
            raise DataError(
                f"a sequence has {longest} tokens, more than {described(self.policy)} can learn from: {context}",
                "lower rollout.max_tokens, or leave the longest prompts out",
            )

    def _backward(
        self,
        rollouts: Rollouts,
        advantages: Tensor,
        weights: Tensor,
        correction: TruncatedImportance | None,
        regularizer: Regularizer,
        index: Tensor,
    ) -> dict[str, float]:
        """Add the gradient of the sequences `index` (b,). Returns their part of the metrics (`_combined`).

        advantages: (S,); weights: (S, T), of the tokens of the whole batch.
        """
        device = self.policy.device
        width = int(rollouts.lengths[index].max())

        def part(tensor: Tensor) -> Tensor:  # (S, T) -> (b, width)
            return tensor[index, :width].to(device)

        mask, weights, advantages = rollouts.mask(index).to(device), part(weights), advantages[index].to(device)
        log_sampler = part(rollouts.log_probs)
        statistics = self.score(rollouts, index, regularizer)

        def padded(values: Tensor) -> Tensor:  # (N,) -> (b, width)
            return torch.zeros(mask.shape, dtype=values.dtype, device=device).masked_scatter(mask, values)

        log_pi, log_old = padded(statistics.log_prob), log_sampler
        if correction:
            log_old = log_pi.detach() if correction.log_probs is None else part(correction.log_probs)
        policy_loss, ratio = self.algorithm.loss(log_pi, log_old, advantages, mask)
        if correction and correction.weights is not None:
            policy_loss = policy_loss * part(correction.weights)
        loss_policy = (weights * policy_loss).sum()
        penalty = torch.zeros_like(log_pi)
        if statistics.divergence is not None:
            penalty = padded(statistics.divergence)
        elif regularizer.needs_reference:
            assert statistics.ref_log_prob is not None, "an estimator needs the reference's log-probabilities"
            penalty = regularizer.estimate(log_pi, padded(statistics.ref_log_prob), log_sampler)
        weight = regularizer.weight if regularizer.needs_reference else 0.0  # an idle one may be infinite
        loss_regularizer = weight * (weights * penalty).sum()
        if regularizer.entropy_bonus:
            entropy = padded(statistics.entropy)
            loss_regularizer = loss_regularizer - regularizer.entropy_bonus * (weights * entropy).sum()
        (loss_policy + loss_regularizer).backward()

        with torch.no_grad():
            # At a batch's first step, when the weights are equal, this compares the sampler with the learner.
            drift = (log_pi - log_sampler)[mask]
            metrics = {
                "loss/policy": float(loss_policy),
                "loss/regularizer": float(loss_regularizer),
                "loss/total": float(loss_policy + loss_regularizer),
                "regularizer/value": float(penalty[mask].sum()),
                "policy/entropy": float(statistics.entropy.sum()),
                "policy/clip_fraction": float(self.algorithm.clipped(ratio, advantages)[mask].sum()),
                "policy/ratio_max": float(ratio[mask].max()),
                "rollout/mismatch_mean": float(drift.abs().sum()),
                "rollout/mismatch_max": float(drift.abs().max()),
                "rollout/mismatch_outside": float((torch.expm1(drift).abs() > 0.1).sum()),
            }
            if statistics.ref_kl is not None and statistics.ref_log_prob is not None:
                metrics["policy/kl_to_reference"] = max(0.0, float(statistics.ref_kl.sum()))  # but for rounding
                target = regularizer.log_target(statistics.log_prob, statistics.ref_log_prob)
                if target is not None:  # for monitoring only: as a loss it is wrong (sampled_estimate)
                    metrics["regularizer/k1"] = float(sampled_estimate(target - statistics.log_prob, "k1").sum())
        return metrics

    @torch.no_grad()
    def log_probs(self, rollouts: Rollouts, of_reference: bool = False) -> Tensor:
        """(S, T) float32 log-probability of each sampled token under the current policy, or the reference; 0 outside
        the mask."""
        plain = NoRegularizer() if of_reference else None
        silence(self.policy)
        mask, log_probs = rollouts.mask(), torch.zeros(rollouts.tokens.shape)
        for index, is_real in self._microbatches(rollouts):
            statistics = self.score(rollouts, index, plain)
            found = statistics.ref_log_prob if of_reference else statistics.log_prob
            assert found is not None, "only asked for where there is a reference"
            scored = found.float().cpu()
            if is_real:
                log_probs[index] = torch.zeros_like(log_probs[index]).masked_scatter(mask[index], scored)
        reshard(self.policy)
        if self.mesh is not None:
            dist.all_reduce(log_probs, group=self.mesh.get_group())
        return log_probs

    def score(self, rollouts: Rollouts, index: Tensor, regularizer: Regularizer | None = None) -> TokenStatistics:
        """Statistics of the N completion tokens of the sequences `index` (b,), one sequence after another.

        Without a regularizer they are of the policy alone.
        """
        width = int(rollouts.lengths[index].max())
        targets = rollouts.tokens[index, :width][rollouts.mask(index)].to(self.policy.device)
        exact = regularizer if regularizer is not None and regularizer.needs_reference and regularizer.exact else None

        def states_and_head(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
            head = model.get_output_embeddings()
            assert head is not None  # load_model refuses models without one
            return completion_states(model, rollouts, index, self.layout), head.weight

        bfloat16 = self.settings.precision == "bfloat16"
        # The cache keeps rounded copies of all weights until the pass ends, which is not worth their memory if gradient
        # checkpointing runs the layers again afterwards.
        cache = not self.policy.is_gradient_checkpointing
        with torch.autocast(self.policy.device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=cache):
            reference: tuple[Tensor | None, Tensor | None] = (None, None)
            if self.reference is not None and regularizer is not None:
                with torch.no_grad(), adapter_off(self.reference):
                    reference = as_forward(self.reference, states_and_head)
            fused = self.settings.compile

            def statistics(policy: PreTrainedModel) -> TokenStatistics:
                return token_statistics(*states_and_head(policy), targets, *reference, exact, fused=fused)

            return as_forward(self.policy, statistics)

    def weights(self, precision: torch.dtype | None = None) -> dict[str, Tensor]:
        """The policy's weights by their names in a checkpoint, full and merged (`gather_weights`)."""
        return gather_weights(self.policy, self.mesh, precision)

    def adapter(self) -> dict[str, Tensor]:
        """The weights of the policy's adapter by their names in peft's files (`adapter_weights`)."""
        return adapter_weights(self.policy, self.mesh)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside weights and optimizer state. The keys are those of a torch scheduler, which
        earlier versions used."""
        return {"scheduler": {"last_epoch": self.steps_done}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.steps_done = state["scheduler"]["last_epoch"]


class FirstProcessError(CareError):
    """The first of several processes has met an error, and says so. Raised in the others."""


def agreed(decide: Callable[[], Result], mesh: DeviceMesh | None) -> Result:
    """What the first process decides, in every process. All of them decide. Raises the first one's CareError there, and
    FirstProcessError in the others."""
    try:
        outcome: list[Any] = [decide(), None]
    except CareError as error:
        outcome = [None, error]
    if mesh is not None:
        dist.broadcast_object_list(outcome, group=mesh.get_group(), group_src=0)
    if (error := outcome[1]) is not None:
        raise error if mesh is None or mesh.get_rank() == 0 else FirstProcessError(error.what, error.remedy)
    return outcome[0]


def _combined(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    """Metrics of several microbatches, or processes, as one: sums, or maxima of those whose name ends in `_max`."""
    totals: dict[str, float] = {}
    for part in parts:
        for key, value in part.items():
            total = totals.get(key, 0.0)
            totals[key] = max(total, value) if key.endswith("_max") else total + value
    return totals
