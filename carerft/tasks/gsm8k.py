"""GSM8K, grade-school word problems with integer answers (Cobbe et al. 2021, arXiv 2110.14168).

Grading is exact arithmetic on the number that a completion ends with; nothing is evaluated.
"""

import re
from collections.abc import Sequence

from carerft.errors import ConfigError, DataError
from carerft.grading.mathematics import canonical, last_box, normalise, number
from carerft.tasks import Grade, Problem
from carerft.tasks.files import Published, Row, check_limit, distinct, load_rows
from carerft.tasks.replies import before
from carerft.tasks.templates import filled, load_template

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


class Gsm8kTask:
    """GSM8K's train or test split, or JSON lines of the same form (question, answer ending in "#### 42")."""

    name = "gsm8k"

    def __init__(
        self,
        split: str = "train",
        path: str | None = None,
        prompt: str = "zero_shot",
        limit: int | None = None,
        extraction: str = "flexible",
    ):
        """split: "train" or "test". path: a file in place of the published one. prompt: see `load_template`.
        limit: only the first so many problems. extraction: where the answer is looked for in a completion: "strict"
        reads the last "#### 42" only; "flexible" the last box, else that, else the last number. Raises ConfigError."""
        if split not in SPLITS:
            raise ConfigError(f"split={split!r} is no split of GSM8K", f"write one of {', '.join(SPLITS)}")
        if extraction not in EXTRACTIONS:
            raise ConfigError(f"extraction={extraction!r} is unknown", f"write one of {', '.join(EXTRACTIONS)}")
        check_limit(limit)
        self.split, self.path, self.limit, self.extraction = split, path, limit, extraction
        self.template = load_template("gsm8k", prompt)
        self.until = self.template.until

    def problems(self) -> list[Problem]:
        """The problems in the file's order; gsm8k/test/17 is row 17, counted from 0. Raises DataError."""
        rows, prompt = load_rows(SPLITS[self.split], self.path), self.template.prompt
        problems = [
            Problem(f"gsm8k/{self.split}/{row.index}", filled(prompt, question=question), gold_answer(row))
            for row, question in distinct(rows, lambda row: row.text("question", "problem"))
        ]
        return problems[: self.limit]

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """By the exact value of the extracted number; a completion without a number is wrong."""
        replies = [before(text, self.until) for text in texts]
        return [self._grade(problem.answer, said) for problem, said in zip(problems, replies, strict=True)]

    def _grade(self, gold: str | None, text: str) -> Grade:
        answer = extracted_number(text, strict=self.extraction == "strict")
        if answer is None:
            return Grade(extracted=None, correct=False)
        return Grade(extracted=answer, correct=gold is not None and answer == canonical(gold))


def gold_answer(row: Row) -> str:
    """What follows the last "####", without commas ("#### -1,080" is "-1080"); a bare number is one too."""
    answer = row.text("answer").rpartition("####")[2].strip()
    if number(normalise(answer)) is None:
        raise DataError(
            f"{row.place}: the answer does not end in '#### <number>' but in {answer[-60:]!r}",
            'end it with "#### 42", or give the number alone',
        )
    return answer.replace(",", "")


def extracted_number(text: str, strict: bool = False) -> str | None:
    """The number that a completion gives as its answer, in canonical form ("$1,234.00" is "1234"); None without one.

    A number of more than 60 characters is not read. Only the last 10,000 characters of the text count.
    """
    tail = text[-_TAIL:].replace("\u2212", "-")
    marked = _MARKED.findall(tail)
    if strict:
        return _canonical_number(marked[-1]) if marked else None
    box = last_box(text)
    if box is not None and number(normalise(box)) is not None:
        return canonical(box)
    if box is None and marked:
        return _canonical_number(marked[-1])
    numbers = _NUMBER.findall(tail if box is None else box)
    return _canonical_number(numbers[-1]) if numbers else None


def _canonical_number(text: str) -> str | None:
    plain = re.sub(r"[\s$]", "", text).rstrip(",")
    return canonical(plain) if number(normalise(plain)) is not None else None
