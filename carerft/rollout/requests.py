"""What rollout workers do with a request: refuse what cannot work, derive seeds, check the result, and divide it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from carerft.errors import ConfigError, DataError, NonFiniteError
from carerft.rollout import Rollouts, RolloutWorker, Sampling


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
    check_context(prompts, [[]] * len(prompts), context)
    longest = max(len(prompt) for prompt in prompts)
    if longest + sampling.max_tokens > context:
        raise ConfigError(
            f"max_tokens={sampling.max_tokens} after a prompt of {longest} tokens exceeds the model's context, in "
            f"tokens: {context}",
            f"write max_tokens={context - longest} or less, or leave out the longest prompts",
        )


def check_context(prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], context: int) -> None:
    """Raises DataError: no prompts, an empty one, or one that with its continuation does not fit."""
    if not prompts:
        raise DataError("there are no prompts to sample from or score", "give at least one")
    for index, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        length = len(prompt) + len(continuation)
        if not len(prompt):
            raise DataError(f"prompt {index} (counted from 0) has no tokens", "leave it out, or correct its text")
        if length > context - (len(continuation) == 0):
            raise DataError(
                f"prompt {index} (counted from 0) is too long: {length} tokens, including any continuation, for a "
                f"context of {context}",
                "leave it out, shorten it, or choose a model with a longer context",
            )


def check_finite(log_probs: Tensor) -> None:
    """Raises NonFiniteError if not all log-probabilities of sampled tokens are finite numbers."""
    if not log_probs.isfinite().all():
        raise NonFiniteError(
            "sampling met probabilities that are not finite numbers: the policy's weights have diverged",
            "go back to an earlier checkpoint, and continue with a lower learning rate",
        )


class SharingWorker(RolloutWorker):
    """Divides the prompts of each request among several workers, whose number does not change a prompt's samples.

    call: (method, arguments) calls a method of workers at the same time, arguments[i] of worker i, and returns their
    answers.
    """

    def __init__(self, call: Callable[[str, Sequence[tuple]], list[Any]], workers: int, context: int):
        self.call, self.workers, self.context = call, workers, context

    def sample(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> Rollouts:
        check_sampling(prompts, n, sampling, self.context)
        shares = self._shares(prompts)
        parts = self.call("sample", [([prompts[i] for i in share], n, sampling, seed) for share in shares])
        return Rollouts.concatenate(parts).prompts(torch.tensor(list(chain(*shares))).argsort())

    def log_likelihood(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[float]:
        check_context(prompts, continuations, self.context)
        shares = self._shares(prompts)
        arguments = [([prompts[i] for i in share], [continuations[i] for i in share]) for share in shares]
        totals = dict(zip(chain(*shares), chain(*self.call("log_likelihood", arguments)), strict=True))
        return [totals[i] for i in range(len(prompts))]

    def _shares(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The indices of each worker's prompts; fewer shares than workers if prompts are few.

        Equal prompts go to one worker, which makes their samples differ and computes their keys and values once.
        """
        numbers: dict[tuple[int, ...], int] = {}
        shares: list[list[int]] = [[] for _ in range(self.workers)]
        for i, prompt in enumerate(prompts):
            shares[numbers.setdefault(tuple(prompt), len(numbers)) % self.workers].append(i)
        return [share for share in shares if share]
