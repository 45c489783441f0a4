"""Between text and tokens: problems' prompts as token ids, completions as text, and the order of the prompts.

For a chat model, a problem's prompt is the user's turn, and the completion the assistant's (`ChatTask`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from carerft.errors import DataError
from carerft.rollout import Rollouts
from carerft.tasks import Grade, Problem, Task

log = logging.getLogger(__name__)


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
    encoded = encode([p.prompt for p in problems], tokenizer)
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


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Each text as token ids, after the beginning-of-text token where the tokenizer itself puts one before a text
    (Llama's does, Qwen's doesn't) and the text, such as that of a chat template, doesn't already begin with it."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    beginning = getattr(tokenizer, "bos_token_id", None)
    if beginning is None or tokenizer("a")["input_ids"][0] != beginning:
        return encoded
    return [tokens if tokens[:1] == [beginning] else [beginning, *tokens] for tokens in encoded]


@dataclass(frozen=True)
class ChatTask:
    """A task asked in the model's chat template: the whole prompt, few-shot examples included, is one user's turn,
    without a system message of ours, and the completion is the assistant's.

    Choices that are scored by likelihood are then the assistant's whole turn, so they lose the space that separates
    them from the prompt elsewhere (lm-evaluation-harness does the same). Published MC1 and MC2 of base models are
    without a template.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def until(self) -> str | None:
        return getattr(self.task, "until", None)

    def problems(self) -> list[Problem]:
        """The task's problems, as the model will read them."""
        return [
            replace(
                problem,
                prompt=self._turn(problem.prompt),
                choices=tuple((text.lstrip(), true) for text, true in problem.choices),
            )
            for problem in self.task.problems()
        ]

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """As the task grades."""
        return self.task.grade(problems, texts)

    def _turn(self, prompt: str) -> str:
        message = [{"role": "user", "content": prompt}]
        return self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def show_prompt(name: str, problem: Problem, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Log exactly what the model reads for a problem, special tokens included. name: the task's or benchmark's."""
    text = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    log.info("%s, prompt of problem %s (%d tokens):\n%s", name, problem.id, len(tokens), text)


def completion_texts(rollouts: Rollouts, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The S completions as text, without special tokens."""
    tokens = [row[:n] for row, n in zip(rollouts.tokens.tolist(), rollouts.lengths.tolist(), strict=True)]
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)
