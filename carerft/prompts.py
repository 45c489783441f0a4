"""Between text and tokens: problems' prompts as token ids, completions as text, and the order of the prompts."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from carerft.errors import DataError
from carerft.rollout import Rollouts
from carerft.tasks import Problem


def prompt_order(problems: int, seed: int, start: int, count: int) -> list[int]:
    """Which problems the positions start..start+count-1 of an endless sequence of shuffled passes hold."""
    order: list[int] = []
    while len(order) < count:
        epoch, offset = divmod(start + len(order), problems)
        shuffled = torch.randperm(problems, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))
        order += shuffled[offset : offset + count - len(order)].tolist()
    return order


def mixed_seed(seed: int, counter: int) -> int:
    """A seed for the counter-th use of a stream, far from its neighbours'."""
    return (seed * 0x9E3779B97F4A7C15 + counter * 0xBF58476D1CE4E5B9 + 1) % 2**63


def prompt_tokens(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, max_tokens: int, context: int
) -> list[list[int]]:
    """Each problem's prompt as token ids.

    Raises DataError where there is no problem at all, or where a prompt and `max_tokens` of completion don't fit the
    model's context (naming the problem).
    """
    if not problems:
        raise DataError("the task has no problems", "check data.path and task.split")
    encoded = tokenizer([p.prompt for p in problems], add_special_tokens=False)["input_ids"]
    for problem, tokens in zip(problems, encoded, strict=True):
        if len(tokens) + max_tokens > context:
            raise DataError(
                f"the prompt of problem {problem.id} has {len(tokens)} tokens, which with {max_tokens} tokens of "
                f"completion exceeds the model's context of {context}",
                "lower rollout.max_tokens (or the benchmark's max_tokens), or leave the problem out of the data",
            )
        if not tokens:
            raise DataError(f"the prompt of problem {problem.id} is empty", "leave the problem out of the data")
    return encoded


def completion_texts(rollouts: Rollouts, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The S completions as text, without special tokens."""
    tokens = [row[:n] for row, n in zip(rollouts.tokens.tolist(), rollouts.lengths.tolist(), strict=True)]
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)
