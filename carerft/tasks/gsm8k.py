"""GSM8K, grade-school word problems with integer answers (Cobbe et al. 2021, arXiv 2110.14168).

Grading is exact arithmetic on the number that a completion ends with; nothing is evaluated.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from carerft.errors import DataError
from carerft.grading.mathematics import canonical, last_box, normalise, number
from carerft.tasks import Grade, Problem
from carerft.tasks.dataset import DatasetTask
from carerft.tasks.files import Published, Row
from carerft.tasks.replies import text_before
from carerft.tasks.templates import fill

_HUB = {"hub": "openai/gsm8k", "configs": ("main",), "revision": "740312add88f781978c0658806c59bc2815b9866"}
SPLITS = {
    "train": Published(
        file="gsm8k/train.jsonl", rows=7473, split="train",
        sha256="17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465", **_HUB,
    ),
    "test": Published(
        file="gsm8k/test.jsonl", rows=1319, split="test",
        sha256="3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14", **_HUB,
    ),
}  # fmt: skip
EXTRACTIONS = ("flexible", "strict")

_NUMBER = re.compile(r"(?<![0-9.)])-?\$?-?[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+")
_MARKED = re.compile(r"####\s*(-?\s?\$?\s?-?[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)")
_TAIL = 10_000
"""Characters at the end of a completion in which the answer is looked for."""


@dataclass(eq=False)
class Gsm8kTask(DatasetTask):
    """GSM8K's train or test split, or JSON lines of the same form (question, answer ending in "#### 42")."""

    name = "gsm8k"

    split: str = field(default="train", metadata={"choices": tuple(SPLITS)})
    # strict: the last "#### 42" of a completion only; flexible: its last box, else that, else its last number.
    extraction: str = field(default="flexible", metadata={"choices": EXTRACTIONS})

    def all_problems(self) -> list[Problem]:
        return [
            Problem(f"gsm8k/{self.split}/{row.index}", fill(self.template.prompt, question=question), gold_answer(row))
            for row, question in self.rows(SPLITS[self.split])
        ]

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """By the exact value of the extracted number; a completion without a number is wrong."""
        strict = self.extraction == "strict"
        answers = [extracted_number(text_before(text, self.until), strict) for text in texts]
        return [
            Grade(extracted=answer, correct=answer is not None and answer == canonical(problem.answer or ""))
            for problem, answer in zip(problems, answers, strict=True)
        ]


def gold_answer(row: Row) -> str:
    """What follows the last "####", without commas ("#### -1,080" is "-1080"), or a bare number. Raises DataError."""
    answer = row.text("answer").rpartition("####")[2].strip()
    if number(normalise(answer)) is None:
        raise DataError(
            f"{row.location}: the answer does not end in '#### <number>' but in {answer[-60:]!r}",
            'end it with "#### 42", or give the number alone',
        )
    return answer.replace(",", "")


def extracted_number(text: str, strict: bool = False) -> str | None:
    """The number that a completion gives as its answer, in canonical form ("$1,234.00" is "1234"); None without one.

    A number of more than 60 characters is not read. Only the last 10,000 characters of the text count.
    """
    tail = text[-_TAIL:].replace("\u2212", "-")
    marked = _MARKED.findall(tail)
    box = None if strict else last_box(text)
    if box is not None and number(normalise(box)) is not None:
        return canonical(box)
    candidates = marked if strict or (box is None and marked) else _NUMBER.findall(tail if box is None else box)
    if not candidates:
        return None
    plain = re.sub(r"[\s$]", "", candidates[-1]).rstrip(",")
    return canonical(plain) if number(normalise(plain)) is not None else None
