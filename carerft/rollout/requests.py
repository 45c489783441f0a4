"""What every rollout worker does with a request: refuses what cannot work, derives seeds, and checks the result."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from carerft.errors import ConfigError, DataError, NonFiniteError
from carerft.rollout import Sampling


def completion_seeds(prompts: Sequence[Sequence[int]], n: int, seed: int) -> list[list[int]]:
    """For each prompt, the seeds of its n completions: integers below 2**64.

    They depend on the prompt's tokens, not on its position: a prompt has the same samples in any batch, on any number
    of engines, and for any n. Equal prompts of one call are numbered, so that their samples differ.
    """
    seen: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for prompt in prompts:
        tokens = tuple(map(int, prompt))
        seeds.append([_digest(seed, seen[tokens], sample, *tokens) for sample in range(n)])
        seen[tokens] += 1
    return seeds


def _digest(*numbers: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big")


def check_sampling(prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, context: int) -> None:
    """Raises ConfigError for sampling out of range, and all that `check_context` raises. context: in tokens."""
    if n < 1:
        raise ConfigError(f"{n} samples per prompt", "ask for at least one")
    if sampling.max_tokens < 1:
        raise ConfigError(f"max_tokens={sampling.max_tokens}", "write a positive number of tokens")
    if not sampling.temperature > 0:
        raise ConfigError(f"temperature={sampling.temperature}", "write a positive number; 0.01 is nearly greedy")
    if not 0 < sampling.top_p <= 1:
        raise ConfigError(f"top_p={sampling.top_p}", "write a number above 0 and at most 1; 1 leaves nothing out")
    if "" in sampling.stop:
        raise ConfigError("a stop string is empty", "leave it out")
    check_context(prompts, [0] * len(prompts), context)
    longest = max(len(prompt) for prompt in prompts)
    if longest + sampling.max_tokens > context:
        raise ConfigError(
            f"max_tokens={sampling.max_tokens} after a prompt of {longest} tokens exceeds the model's context of "
            f"{context} tokens",
            f"write max_tokens={context - longest} or less, or leave out the longest prompts",
        )


def check_context(prompts: Sequence[Sequence[int]], more: Sequence[int], context: int) -> None:
    """Raises DataError: no prompts, an empty one, or one that does not fit. more: tokens that follow each prompt."""
    if not prompts:
        raise DataError("there are no prompts to sample from or score", "give at least one")
    for index, (prompt, extra) in enumerate(zip(prompts, more, strict=True)):
        if not len(prompt):
            raise DataError(f"prompt {index} (counted from 0) has no tokens", "leave it out, or correct its text")
        if len(prompt) + extra > context - (extra == 0):
            raise DataError(
                f"prompt {index} (counted from 0) is too long: {len(prompt) + extra} tokens, including any "
                f"continuation, for a context of {context}",
                "leave it out, shorten it, or choose a model with a longer context",
            )


def check_finite(log_probs: Tensor) -> None:
    """Raises NonFiniteError if not all log-probabilities of sampled tokens are finite numbers."""
    if not log_probs.isfinite().all():
        raise NonFiniteError(
            "sampling met probabilities that are not finite numbers: the policy's weights have diverged",
            "go back to an earlier checkpoint, and continue with a lower learning rate",
        )
