"""Rollout workers: what samples completions from the policy.

A worker holds (or shares) a copy of the policy's weights, takes prompts as token ids, and returns `Rollouts`: plain
tensors on the CPU, whichever engine made them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass
class Rollouts:
    """P prompts with G completions each: S = P * G sequences, the G completions of a prompt being neighbours.

    Tensors live on the CPU; padding is zero and lies to the right.

    prompt_tokens:  (P, T_prompt) int64
    prompt_lengths: (P,) int64
    tokens:         (S, T) int64, the completion, with its end-of-sequence token where it has one
    lengths:        (S,) int64, tokens of the completion that count (end-of-sequence included)
    log_probs:      (S, T) float32, natural log of the sampler's own probability of each sampled token, at the
                    temperature that it was sampled with
    finished:       (S,) bool, ended by an end-of-sequence token or a stop string; False: cut by the length limit
    """

    prompt_tokens: Tensor
    prompt_lengths: Tensor
    tokens: Tensor
    lengths: Tensor
    log_probs: Tensor
    finished: Tensor

    @property
    def group_size(self) -> int:
        return self.tokens.shape[0] // self.prompt_tokens.shape[0]

    def mask(self) -> Tensor:
        """(S, T) bool: True on the tokens of each completion, its end-of-sequence token included."""
        return torch.arange(self.tokens.shape[1])[None, :] < self.lengths[:, None]

    def prompts(self, index: Tensor | slice) -> "Rollouts":
        """The rollouts of some of the prompts, each with all of its completions. index selects from (P,)."""
        chosen = torch.arange(self.prompt_tokens.shape[0])[index]
        members = (chosen[:, None] * self.group_size + torch.arange(self.group_size)[None, :]).flatten()
        per_prompt = {"prompt_tokens", "prompt_lengths"}
        return Rollouts(
            **{f.name: getattr(self, f.name)[chosen if f.name in per_prompt else members] for f in fields(self)}
        )

    @staticmethod
    def concatenate(parts: Sequence["Rollouts"]) -> "Rollouts":
        """Rollouts of different prompts as one, padded to the longest. All must have the same group size."""

        def join(tensors: list[Tensor]) -> Tensor:
            if tensors[0].ndim == 1:
                return torch.cat(tensors)
            width = max(t.shape[1] for t in tensors)
            return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in tensors])

        return Rollouts(**{f.name: join([getattr(p, f.name) for p in parts]) for f in fields(Rollouts)})


@dataclass(frozen=True)
class Sampling:
    """How to sample. Training uses the defaults of temperature and top_p: anything else is another policy.

    stop: strings that end a completion, as an end-of-sequence token does: the token that completes one is the last,
    and is kept whole. They are looked for in the completion's text, without special tokens and without the prompt.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()


class RolloutWorker(Protocol):
    """An engine that samples from the current policy and scores given text under it."""

    def sample(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> Rollouts:
        """n completions for each prompt (token ids). The same weights, arguments and seed give the same samples."""
        ...

    def log_likelihood(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[float]:
        """Sum of log-probabilities (nats) of each continuation's tokens given its prompt."""
        ...

    def sync(self, policy: torch.nn.Module) -> None:
        """Sample from these weights from now on."""
        ...

    def sleep(self) -> None:
        """Nothing is asked of the worker before the next `sync`: it may give its memory to the learner."""
        ...

    def close(self) -> None:
        """End the engine, if there is one, and all of its processes. Nothing is asked of the worker afterwards."""
        ...


def completion_texts(rollouts: Rollouts, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The S completions as text, without special tokens."""
    tokens = [row[:n] for row, n in zip(rollouts.tokens.tolist(), rollouts.lengths.tolist(), strict=True)]
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


def mixed_seed(seed: int, counter: int) -> int:
    """A seed for the counter-th use of a stream, far from its neighbours'."""
    return (seed * 0x9E3779B97F4A7C15 + counter * 0xBF58476D1CE4E5B9 + 1) % 2**63
