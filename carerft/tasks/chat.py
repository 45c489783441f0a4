"""A task with its prompts in the model's chat template."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from carerft.tasks import Grade, Problem, Task


@dataclass(frozen=True)
class ChatTask:
    """A task in the model's chat template: the prompt with its few-shot examples is one turn of the user, without a
    system message of ours, and the completion is the assistant's turn.

    A choice that is scored by likelihood is then the assistant's whole turn, so it loses the space that separates it
    from a plain prompt (lm-evaluation-harness does the same). Published MC1 and MC2 of base models are without a
    template.
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
