"""What the tasks over published datasets share: their settings, their prompt template, and the pass over the rows."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from carerft.errors import ConfigError, DataError
from carerft.tasks import Problem
from carerft.tasks.files import Published, Row, load_rows
from carerft.tasks.templates import load_template


@dataclass(kw_only=True, eq=False)
class DatasetTask:
    """A task over the rows of a published dataset, or of a file of the same format. Raises ConfigError."""

    name: ClassVar[str]
    options: ClassVar[dict[str, Collection[str]]] = {}
    """The allowed values of settings that have a fixed set of them."""
    question_fields: ClassVar[tuple[str, ...]] = ("question", "problem")

    path: str | None = None  # a file in place of the published one
    prompt: str = "zero_shot"  # the name or the file of a template: see `load_template`
    limit: int | None = None  # only the first so many problems

    def __post_init__(self) -> None:
        check_settings(self, self.options)
        self.template = load_template(self.name, self.prompt)

    @property
    def until(self) -> str | None:
        """A reply ends where the model writes this."""
        return self.template.until

    def problems(self) -> list[Problem]:
        """The first `limit` problems, in a fixed order; <name>/.../17 is row 17, counted from 0. Raises DataError."""
        return self.all_problems()[: self.limit]

    def all_problems(self) -> list[Problem]:
        """The problems without a limit."""
        raise NotImplementedError

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


def check_settings(task: Any, options: dict[str, Collection[str]]) -> None:
    """Check `limit` and the settings that have a fixed set of values. Raises ConfigError."""
    for key, values in options.items():
        if getattr(task, key) not in values:
            raise ConfigError(f"{key}={getattr(task, key)!r} is unknown", f"write one of {', '.join(values)}")
    if task.limit is not None and task.limit < 1:
        raise ConfigError(f"limit={task.limit} problems", "write a limit of at least 1, or leave it out")
