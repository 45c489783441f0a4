"""What the model reads: problems' prompts in its chat template, and as token ids."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from carerft.errors import DataError
from carerft.tasks import Grade, Problem, Task
from carerft.tasks.dataset import DatasetTask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChatTask:
    """A task in the model's chat template: the prompt with its few-shot examples is one turn of the user, without a
    system message of ours, and the completion is the assistant's turn. The prompt `instruction` is taken, where a
    dataset has it and no other was chosen.

    A choice that is scored by likelihood is then the assistant's whole turn, so it loses the space that separates it
    from a plain prompt (lm-evaluation-harness does the same). Published MC1 and MC2 of base models are without a
    template.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        if isinstance(self.task, DatasetTask):
            self.task.use_chat_prompt()

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def until(self) -> str | None:
        return getattr(self.task, "until", None)

    @property
    def prompt(self) -> str | None:
        return getattr(self.task, "prompt", None)

    def problems(self) -> list[Problem]:
        return [
            replace(
                problem,
                prompt=self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": problem.prompt}], tokenize=False, add_generation_prompt=True
                ),
                choices=tuple((text.lstrip(), true) for text, true in problem.choices),
            )
            for problem in self.task.problems()
        ]

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        return self.task.grade(problems, texts)


def prompt_tokens(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, max_tokens: int, context: int
) -> list[list[int]]:
    """Each problem's prompt as token ids.

    Raises DataError if there are no problems, if a prompt is empty, or if a prompt and `max_tokens` of completion
    exceed the model's context (in tokens). The error names the problem.
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
    """Each text as token ids. A tokenizer that begins every text with tokens of its own (Llama's with a
    beginning-of-text token, GLM's with two, Qwen's with none) does so here too, unless the text, such as that of a chat
    template, already begins with them."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    prefix = text_prefix(tokenizer)
    return [tokens if tokens[: len(prefix)] == prefix else [*prefix, *tokens] for tokens in encoded]


def text_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that a tokenizer puts before every text."""
    if not hasattr(tokenizer, "num_special_tokens_to_add"):
        return []
    full, plain = (list(tokenizer("a", add_special_tokens=added)["input_ids"]) for added in (True, False))
    starts = range(len(full) - len(plain) + 1)
    return next((full[:start] for start in starts if full[start : start + len(plain)] == plain), [])


def show_prompt(name: str, problem: Problem, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Log exactly what the model reads for a problem, special tokens included. name: of the task or benchmark."""
    text = tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    log.info("%s, prompt of problem %s (%d tokens):\n%s", name, problem.id, len(tokens), text)
