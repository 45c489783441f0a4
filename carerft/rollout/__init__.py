"""Rollouts: completions sampled from the policy, and the workers that sample them.

A worker holds (or shares) a copy of the policy's weights, takes prompts as token ids, and returns `Rollouts`: plain
tensors on the CPU, the same from every engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PADDED = {"prompt_tokens": "prompt_lengths", "tokens": "lengths", "log_probs": "lengths"}
"""Which fields of `Rollouts` have padding, and where it begins in each row."""


@dataclass
class Rollouts:
    """P prompts with G completions each: S = P * G sequences, in which the G completions of a prompt are neighbours.

    Tensors are on the CPU and padded with zeros on the right.

    prompt_tokens:  (P, T_prompt) int64
    prompt_lengths: (P,) int64
    tokens:         (S, T) int64, each completion, including the end-of-sequence token if it ended with one
    lengths:        (S,) int64, tokens of each completion (end-of-sequence included)
    log_probs:      (S, T) float32, natural log of the sampler's probability of each sampled token, at the temperature
                    and top_p that it was sampled with
    finished:       (S,) bool, ended by an end-of-sequence token or a stop string; False: cut at the length limit
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

    def mask(self, index: Tensor | None = None) -> Tensor:
        """(S, T) bool: True on the tokens of each completion, its end-of-sequence token included. index: (b,), of these
        completions alone, as far as the longest of them."""
        lengths = self.lengths if index is None else self.lengths[index]
        return _filled(lengths, self.tokens.shape[1] if index is None else int(lengths.max()))

    def prompts(self, index: Tensor | slice) -> "Rollouts":
        """The rollouts of some of the prompts, each with all of its completions. index: into (P,)."""
        rows = torch.arange(self.prompt_tokens.shape[0])[index]
        sequences = (rows[:, None] * self.group_size + torch.arange(self.group_size)[None, :]).flatten()
        index_of = {name: rows if name.startswith("prompt_") else sequences for name in vars(self)}
        return Rollouts(**{name: tensor[index_of[name]] for name, tensor in vars(self).items()})

    @staticmethod
    def from_rows(
        prompts: Sequence[Sequence[int]], tokens: Sequence[Tensor], log_probs: Sequence[Tensor], finished: Tensor
    ) -> "Rollouts":
        """Pads P prompts, and S completions' tokens and log-probabilities, each of its own length. finished: (S,)."""
        return Rollouts(
            prompt_tokens=pad_sequence([torch.tensor(p, dtype=torch.int64) for p in prompts], batch_first=True),
            prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
            tokens=pad_sequence(list(tokens), batch_first=True),
            lengths=torch.tensor([len(row) for row in tokens]),
            log_probs=pad_sequence(list(log_probs), batch_first=True),
            finished=finished,
        )

    @staticmethod
    def concatenate(parts: Sequence["Rollouts"]) -> "Rollouts":
        """The rollouts of different prompts, padded to the longest. All must have the same group size."""

        def join(tensors: list[Tensor]) -> Tensor:
            if tensors[0].ndim == 1:
                return torch.cat(tensors)
            return pad_sequence([row for tensor in tensors for row in tensor], batch_first=True)

        return Rollouts(**{name: join([getattr(part, name) for part in parts]) for name in vars(parts[0])})

    def state(self) -> dict[str, Any]:
        """For a checkpoint: tensors without padding (`without_padding`)."""
        rows = {name: without_padding(getattr(self, name), getattr(self, PADDED[name])) for name in PADDED}
        return vars(self) | rows

    @staticmethod
    def from_state(state: dict[str, Any]) -> "Rollouts":
        """From `state()`, or from the tensors themselves, as earlier versions stored them."""
        return Rollouts(**state | {name: with_padding(state[name], state[PADDED[name]]) for name in PADDED})


def _filled(lengths: Tensor, width: int) -> Tensor:
    """(R, width) bool: the first lengths[r] places of each row."""
    return torch.arange(width)[None, :] < lengths[:, None]


def without_padding(rows: Tensor, lengths: Tensor) -> tuple[Tensor, int]:
    """(R, T) -> (N,), what each row holds up to its length, one row after another; and T."""
    return rows[_filled(lengths, rows.shape[1])], rows.shape[1]


def with_padding(stored: tuple[Tensor, int] | Tensor, lengths: Tensor) -> Tensor:
    """The rows (R, T) that `without_padding` had, padded with zeros; rows themselves as they are."""
    if isinstance(stored, Tensor):
        return stored
    mask = _filled(lengths, stored[1])
    return stored[0].new_zeros(mask.shape).masked_scatter(mask, stored[0])


@dataclass(frozen=True)
class Sampling:
    """How to sample. Training keeps the default temperature and top_p: others make it sample from another policy.

    stop: strings that end a completion, as an end-of-sequence token does. The token that completes one is the last and
        is kept in full. They are looked for in the completion's text, without special tokens and without the prompt.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()


class RolloutWorker(Protocol):
    """Samples completions from the policy, and scores given text under it.

    context: the most tokens of prompt and completion together. runner: which of its model runners vLLM has chosen, "V1"
    or "V2"; None without vLLM.
    """

    context: int
    runner: str | None = None

    def sample(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> Rollouts:
        """n completions of each prompt (token ids). The same weights, arguments and seed give the same samples.

        A prompt's samples depend neither on the prompts beside it nor, the first of them, on n; only float rounding,
        which follows the shape of a batch, can in rare cases change a token. Raises DataError (no prompts, an empty
        one, one longer than the context), ConfigError (sampling out of range, max_tokens beyond the context, stop
        strings without a tokenizer) and NonFiniteError (the model's probabilities are not finite numbers).
        """
        ...

    def log_likelihood(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[float]:
        """Sum of log-probabilities (nats) of each continuation's tokens given its prompt, at temperature 1.

        Raises DataError: no prompts, an empty one, or one that with its continuation exceeds the context.
        """
        ...

    def sync(self, policy: torch.nn.Module) -> None:
        """Copy the policy's weights: from now on, sample from them. Raises CareError if the copy differs."""
        ...

    def sleep(self) -> None:
        """Give memory to the learner, if there is any to give. Only the next `sync` makes the worker usable again."""

    def reset(self) -> None:
        """Prepare for another run, whose first `sync` is then checked like that of a new worker."""

    def close(self) -> None:
        """End the engine and all of its processes, if there are any. May be repeated; nothing else may follow."""


def completion_texts(rollouts: Rollouts, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The S completions as text, without special tokens."""
    tokens = [row[:n] for row, n in zip(rollouts.tokens.tolist(), rollouts.lengths.tolist(), strict=True)]
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


def mixed_seed(seed: int, counter: int) -> int:
    """A seed for the counter-th use of a stream, far from those of its neighbours."""
    return (seed * 0x9E3779B97F4A7C15 + counter * 0xBF58476D1CE4E5B9 + 1) % 2**63
