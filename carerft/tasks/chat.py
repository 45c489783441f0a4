"""A task with its prompts in the model's chat template."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from carerft.tasks import Grade, Problem, Task


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
