"""What tasks share: a prompt template and a limit and, over published datasets, the pass over the rows."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from carerft.config.constraints import check_constraints
from carerft.errors import DataError
from carerft.tasks import Problem
from carerft.tasks.confidence import Reader, without_confidence
from carerft.tasks.files import Published, Row, load_rows
from carerft.tasks.templates import AUTO, PROMPTS, Template, load_template


class Templated:
    """What a task has of its prompt template."""

    template: Template

    @property
    def until(self) -> str | None:
        """A reply ends where the model writes this."""
        return self.template.until

    @property
    def without_confidence(self) -> Reader | None:
        """What takes stated confidences out of a reply; None where the prompt asks for none."""
        return without_confidence if self.template.confidence else None


@dataclass(kw_only=True, eq=False)
class PromptedTask(Templated):
    """A task whose questions stand in one of its dataset's prompt templates. Raises ConfigError."""

    name: ClassVar[str]

    # The name or the file of a template (see `load_template`); auto: `instruction` in a chat, else `zero_shot`.
    prompt: str = AUTO
    limit: int | None = field(default=None, metadata={"least": 1})  # only the first so many problems

    def __post_init__(self) -> None:
        check_constraints(self)
        self._chosen = self.prompt != AUTO
        self.prompt = self.prompt if self._chosen else "zero_shot"
        self.template = load_template(self.name, self.prompt)

    def use_chat_prompt(self) -> None:
        """Take the prompt for chat models, unless one was chosen or there is none for this dataset."""
        if not self._chosen and (PROMPTS / self.name / "instruction.yaml").exists():
            self.prompt = "instruction"
            self.template = load_template(self.name, self.prompt)

    def ask_confidence(self) -> None:
        """Take the prompt that asks for a confidence, unless another was chosen or there is none for this dataset."""
        if not self._chosen and (PROMPTS / self.name / "confidence.yaml").exists():
            self.prompt, self._chosen = "confidence", True
            self.template = load_template(self.name, self.prompt)

    def problems(self) -> list[Problem]:
        """The first `limit` problems, in a fixed order; <name>/.../17 is row 17, counted from 0. Raises DataError."""
        return self.all_problems()[: self.limit]

    def all_problems(self) -> list[Problem]:
        """The problems without a limit."""
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class DatasetTask(PromptedTask):
    """A task over the rows of a published dataset, or of a file of the same format. Raises ConfigError."""

    question_fields: ClassVar[tuple[str, ...]] = ("question", "problem")

    path: str | None = None  # a file in place of the published one

    def rows(self, published: Published) -> Iterator[tuple[Row, str]]:
        """Each row with its question. Raises DataError on an empty question and on a repeated one."""
        first: dict[str, str] = {}
        for row in load_rows(published, self.path):
            question = row.text(*self.question_fields).strip()
            if not question:
                raise DataError(f"{row.location}: the problem is empty", "leave the line out")
            if question in first:
                raise DataError(f"{row.location}: the same problem as {first[question]}", "leave one of them out")
            first[question] = row.location
            yield row, question
