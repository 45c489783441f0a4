"""What the model reads: problems' prompts in its chat template, and as token ids."""

import logging
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from carerft.errors import DataError, reason
from carerft.tasks import Grade, LazyProblems, Problem, Task
from carerft.tasks.dataset import PromptedTask

log = logging.getLogger(__name__)

AT_ONCE = 1024
"""Prompts that are tokenised together: their tokens are lists for a moment, of 8 times the memory."""


@dataclass(frozen=True)
class ChatTask:
    """A task in the model's chat template: the prompt with its few-shot examples is one turn of the user, without a
    system message of ours, or the conversation that the data holds, and the completion is the assistant's turn. The
    prompt `instruction` is taken, where a dataset has it and no other was chosen.

    A choice that is scored by likelihood is then the assistant's whole turn, so it loses the space that separates it
    from a plain prompt (lm-evaluation-harness does the same). Published MC1 and MC2 of base models are without a
    template.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        if isinstance(self.task, PromptedTask):
            self.task.use_chat_prompt()

    @property
    def name(self) -> str:
        return self.task.name

    def __getattr__(self, name: str) -> Any:
        """What else the task has: `until`, `without_confidence`, `prompt`."""
        if name.startswith("_"):  # a copy is asked for its methods before it has a task
            raise AttributeError(name)
        return getattr(self.task, name)

    def problems(self) -> Sequence[Problem]:
        """Raises DataError, for a list at once, else where a problem is used: the template refuses a conversation."""
        problems = self.task.problems()
        if isinstance(problems, list):
            return [self.templated(problem) for problem in problems]
        return LazyProblems(len(problems), lambda position: self.templated(problems[position]))

    def templated(self, problem: Problem) -> Problem:
        turns = [dict(turn) for turn in problem.messages] or [{"role": "user", "content": problem.prompt}]
        try:
            prompt = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # the template is a program of the model's authors
            roles = ", ".join(turn["role"] for turn in turns)
            raise DataError(
                f"problem {problem.id}: the model's chat template refuses a conversation of {roles} ({reason(error)})",
                "leave out task.system and system messages, if the model knows none, or write model.chat=false",
            ) from error
        choices = tuple((text.lstrip(), true) for text, true in problem.choices)
        return replace(problem, prompt=str(prompt), untemplated=problem.prompt, choices=choices)

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        return self.task.grade(problems, texts)


class Prompts:
    """The prompts of problems as token ids: each is tokenised when `prepare` or an index first asks for it.

    max_tokens: of a completion. context: the most tokens of prompt and completion together. All tokens are in one
    array, 4 bytes each; a problem takes another 12.
    """

    def __init__(self, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, max_tokens: int, context: int):
        """Raises DataError if there are no problems."""
        if not problems:
            raise DataError("the task has no problems", "check its path and split")
        self.problems, self.tokenizer, self.max_tokens, self.context = problems, tokenizer, max_tokens, context
        self._tokens = array("i")
        self._starts, self._lengths = np.zeros(len(problems), np.int64), np.full(len(problems), -1, np.int32)

    def __len__(self) -> int:
        return len(self.problems)

    def __iter__(self) -> Iterator[list[int]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> list[int]:
        self.prepare([index])
        start = self._starts[index]
        return self._tokens[start : start + self._lengths[index]].tolist()

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt among those that are tokenised."""
        return int(self._lengths.max())

    def prepare(self, indices: Iterable[int]) -> None:
        """Tokenise the prompts of these problems.

        Raises DataError, which names the problem, if a prompt is empty, or exceeds the context with `max_tokens` of
        completion.
        """
        missing = [i for i in dict.fromkeys(indices) if self._lengths[i] < 0]
        for first in range(0, len(missing), AT_ONCE):
            chunk = missing[first : first + AT_ONCE]
            encoded = encode([self.problems[i].prompt for i in chunk], self.tokenizer)
            for i, tokens in zip(chunk, encoded, strict=True):
                self._check(self.problems[i], len(tokens))
                self._starts[i], self._lengths[i] = len(self._tokens), len(tokens)
                self._tokens.extend(tokens)

    def _check(self, problem: Problem, length: int) -> None:
        if length + self.max_tokens > self.context:
            lower = "lower rollout.max_tokens (or the benchmark's max_tokens), or " if length < self.context else ""
            raise DataError(
                f"the prompt of problem {problem.id} has {length} tokens, which with {self.max_tokens} tokens of "
                f"completion exceeds the context of {self.context}",
                f"{lower}leave the problem out of the data; if the model has a longer context, write "
                "rollout.max_model_len",
            )
        if not length:
            raise DataError(f"the prompt of problem {problem.id} is empty", "leave the problem out of the data")


def prompt_tokens(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, max_tokens: int, context: int
) -> Prompts:
    """The prompts of all these problems, tokenised. Raises DataError, as `Prompts` and its `prepare` do."""
    prompts = Prompts(problems, tokenizer, max_tokens, context)
    prompts.prepare(range(len(problems)))
    return prompts


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Each text as token ids. A tokenizer that begins every text with tokens of its own (Llama's with a
    beginning-of-text token, GLM's with two, Qwen's with none) does so here too, unless the text, such as that of a chat
    template, already begins with them."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    prefix = text_prefix(tokenizer)
    return [tokens if tokens[: len(prefix)] == prefix else [*prefix, *tokens] for tokens in encoded]


def text_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that a tokenizer puts before every text."""
    full, plain = (list(tokenizer("a", add_special_tokens=added)["input_ids"]) for added in (True, False))
    starts = range(len(full) - len(plain) + 1)
    return next((full[:start] for start in starts if full[start : start + len(plain)] == plain), [])


def show_prompt(name: str, problem: Problem, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Log exactly what the model reads for a problem, special tokens included. name: of the task or benchmark."""
    text = tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    log.info("%s, prompt of problem %s (%d tokens):\n%s", name, problem.id, len(tokens), text)
