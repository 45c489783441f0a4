"""Checks that an engine samples from the policy, by comparing the log-probabilities that both assign to its samples.

A sync that lost, renamed or misplaced a weight, or a kernel that computes something else, does not fail by itself: the
run would continue, learning from the samples of another model.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from carerft.errors import CareError
from carerft.model.modes import evaluating
from carerft.model.sharding import reshard
from carerft.rollout import Rollouts, Sampling
from carerft.rollout.engine import EngineOptions

# By how many nats the two log-probabilities of a token may differ: in float32, where they agree to 1e-5 on a CPU, at
# most; in bfloat16, which keeps 8 bits of every number, on average, because rounding alone moves single tokens far.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
PROMPTS, PROMPT_TOKENS, TOKENS = 4, 8, 16


def teacher_forced(policy: torch.nn.Module, prompts: Tensor, tokens: Tensor, dtype: str) -> Tensor:
    """(R, T) log-probabilities of tokens (R, T) after prompts (R, T_prompt), by one forward pass in dtype.

    All prompts have the same length. If the policy is sharded, all processes must call this.
    """
    device = next(policy.parameters()).device
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    try:
        with evaluating(policy), autocast:
            logits = policy(torch.cat([prompts, tokens], dim=1).to(device), use_cache=False).logits.float()
    finally:
        reshard(policy)
    log_probs = logits[:, prompts.shape[1] - 1 : -1].log_softmax(-1)
    return log_probs.gather(2, tokens.to(device)[:, :, None])[:, :, 0].cpu()


def check_sync(
    sample: Callable[[list[list[int]], int, Sampling, int], Rollouts],
    policy: Any,  # PreTrainedModel
    options: EngineOptions,
    score: Callable[..., Tensor] = teacher_forced,
) -> None:
    """Compares the log-probabilities of some completions of random prompts.

    sample: `RolloutWorker.sample` of the engine with these options. score: `teacher_forced`, or a function that calls
    it in all processes. Raises CareError if they differ by more than rounding explains.
    """
    vocabulary = policy.get_input_embeddings().weight.shape[0]
    context, tolerance = options.max_model_len, TOLERANCE[options.dtype]
    length = max(1, min(PROMPT_TOKENS, context - TOKENS))
    prompts = torch.randint(vocabulary, (PROMPTS, length), generator=torch.Generator().manual_seed(0))
    rollouts = sample(prompts.tolist(), 1, Sampling(min(TOKENS, context - length), ignore_eos=True), 0)
    expected = score(policy, rollouts.prompt_tokens, rollouts.tokens, options.dtype)
    differences = (rollouts.log_probs - expected).abs()
    rounds = options.dtype == "bfloat16"
    how, difference = ("a mean of", differences.mean()) if rounds else ("up to", differences.max())
    if not difference <= tolerance:
        raise CareError(
            f"after a weight sync the engine's log-probabilities differ from the policy's by {how} {difference:.3g} "
            f"nats (in {options.dtype}, {how} {tolerance} is rounding): it would sample from another model",
            "use rollout=transformers, and report the model and the versions: this should not happen",
        )
