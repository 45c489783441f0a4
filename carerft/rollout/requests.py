"""What every rollout worker does with a request before its engine sees it: refuses what cannot work, and seeds it."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from carerft.errors import ConfigError, DataError
from carerft.rollout import Sampling


def completion_seeds(prompts: Sequence[Sequence[int]], n: int, seed: int) -> list[list[int]]:
    """For each prompt, the seeds of its n completions: integers below 2**64.

    They depend on the prompt's tokens, not on its place among others: a prompt has the same samples in any batch, on
    any number of engines, and at any n. Equal prompts of one call are told apart by counting them.
    """
    seen: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for prompt in prompts:
        key = tuple(map(int, prompt))
        seeds.append([_digest(seed, seen[key], sample, *key) for sample in range(n)])
        seen[key] += 1
    return seeds


def _digest(*numbers: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big")


def check_sampling(prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, context: int) -> None:
    """Raises ConfigError for sampling out of range, and what `check_context` raises. context: tokens of the model."""
    if n < 1:
        raise ConfigError(f"{n} samples per prompt", "ask for at least one")
    if sampling.max_tokens < 1:
        raise ConfigError(f"max_tokens={sampling.max_tokens}", "write a positive number of tokens")
    if not sampling.temperature > 0:
        raise ConfigError(f"temperature={sampling.temperature}", "write a positive number; 0.01 is all but greedy")
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
    """Raises DataError: no prompts, an empty one, or one that doesn't fit. more: tokens that follow each prompt."""
    if not prompts:
        raise DataError("there are no prompts to sample from or score", "give at least one")
    for index, (prompt, extra) in enumerate(zip(prompts, more, strict=True)):
        if not len(prompt):
            raise DataError(f"prompt {index} (counted from 0) has no tokens", "leave it out, or mend its text")
        if len(prompt) + extra > context - (extra == 0):
            raise DataError(
                f"prompt {index} (counted from 0) is too long: {len(prompt) + extra} tokens, with its continuation "
                f"if it has one, for a context of {context}",
                "leave it out, shorten it, or choose a model with a longer context",
            )
