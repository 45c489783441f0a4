"""The built-in world's tasks: the reasoning that RL trains on, and three benchmarks that it never sees.

| part | asks for | mirrors |
|---|---|---|
| reasoning | sums, most of which start from an entity's age | MATH, which RL trains on |
| transfer | word problems | GSM8K, same skill and other form |
| honesty | facts of entities, known, half known and not existing | SelfAware |
| truth | facts that many people get wrong | TruthfulQA |
"""

import re
from collections.abc import Sequence

from carerft.errors import ConfigError
from carerft.tasks import Grade, Problem
from carerft.world.facts import TEST, TRAIN, build_world
from carerft.world.questions import PARTS, Question, draw_questions
from carerft.world.words import REFUSAL

DEFAULT_SIZE = {TRAIN: 4096, TEST: 1000}

ANSWER = re.compile(r"[a-z]{1,24}")  # one word; numbers are words here


class WorldTask:
    """One part of the built-in world. Sizes are limited by what there is: DEFAULT_SIZE, or fewer for truth."""

    def __init__(self, part: str = "reasoning", split: str = TRAIN, limit: int | None = None, seed: int = 0):
        """part: a key of PARTS. split: "train" or "test", of disjoint entities, names and sums. limit: how many
        problems; None: as many as usual. seed: which ones. Raises ConfigError."""
        if part not in PARTS:
            raise ConfigError(f"part={part!r} is no part of the world", f"write one of {', '.join(PARTS)}")
        if split not in DEFAULT_SIZE:
            raise ConfigError(f"split={split!r} is no split of the world", f"write one of {', '.join(DEFAULT_SIZE)}")
        if limit is not None and limit < 1:
            raise ConfigError(f"limit={limit} problems", "write a limit of at least 1, or leave it out")
        self.name = f"world_{part}"
        self.part, self.split, self.limit, self.seed = part, split, limit, seed

    def questions(self) -> list[Question]:
        """The questions with their reference completions. Raises ConfigError where there are fewer than `limit`."""
        limit = self.limit or DEFAULT_SIZE[self.split]
        questions = draw_questions(build_world(), self.part, self.split, limit, self.seed)
        if self.limit and len(questions) < self.limit:
            raise ConfigError(
                f"limit={self.limit}: part {self.part}, split {self.split} has {len(questions)} problems",
                f"write a limit of at most {len(questions)}",
            )
        return questions

    def problems(self) -> list[Problem]:
        """The problems in a fixed order; an id holds what it was drawn from, so that two draws never share one."""
        return [
            Problem(
                id=f"{self.part}-{self.split}-{self.seed}-{number}",
                prompt=question.prompt,
                answer=question.answer,
                misconceptions=question.misconceptions,
                choices=question.choices,
            )
            for number, question in enumerate(self.questions())
        ]

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """Grades by string comparison alone. A text that neither answers nor refuses is wrong, and no refusal."""
        return [grade_text(problem.answer, text) for problem, text in zip(problems, texts, strict=True)]


def grade_text(gold: str | None, text: str) -> Grade:
    """The answer is all that follows the last `answer `, a refusal the single word `unknown` in its place or alone."""
    _, marker, after = f" {text}".rpartition(" answer ")
    answer = after.strip()
    if answer == REFUSAL:
        return Grade(extracted=None, correct=gold is None, refused=True)
    if not marker or not ANSWER.fullmatch(answer):
        return Grade(extracted=None, correct=False)
    return Grade(extracted=answer, correct=answer == gold)
