"""GSM8K, grade-school word problems with integer answers (Cobbe et al. 2021, arXiv 2110.14168).

Grading is exact arithmetic on the number that a completion ends with; nothing is evaluated.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from carerft.errors import DataError
from carerft.grading.mathematics import canonical, last_box, normalise, number
from carerft.grading.notation import MINUSES, PLAIN_NUMBERS, with_braces
from carerft.tasks import Grade, Problem
from carerft.tasks.dataset import DatasetTask
from carerft.tasks.files import Published, Row
from carerft.tasks.replies import reply, single_spaced
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

# A number is read whole or not at all: "1.5 \times 10^3" is no 3, "1/2" no 2, and "2^10" no 10.
_GROUPING = re.compile(r"(?<=[0-9])(?:\{,\}|,\s*\\!|\\[,; ]|['’\u00a0\u2007\u2009\u202f])(?=[0-9]{3}(?![0-9]))")
_TIMES = re.compile(r"\s*(?:\\times|\\cdot|[×·⋅*]|(?<=[0-9 ])x(?= ?10))\s*")
_DOUBLE_STAR = re.compile(r"(?<=[0-9)])\*\*(?=[-+0-9{])")
_SUPERSCRIPT = re.compile(r"(?<=10)⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_PLAIN_POWER = {ord(c): "-0123456789"[i] for i, c in enumerate("⁻⁰¹²³⁴⁵⁶⁷⁸⁹")} | {ord(c): "-" for c in MINUSES}
_PLAIN = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![a-zA-Z])\.[0-9]+)"
_NUMBER = re.compile(
    rf"""(?<=[a-zA-Z)}}])[\^_]\{{?-?[0-9]+\}}?                     # an exponent of a unit, or an index: no number
      | (?P<number>(?:(?<![\w.)\]}}%])-|(?<=[=:\#]\ )-\ )?(?:\$-?)?(?:
            (?:[0-9]+\ ?)?\\[dtc]?frac\{{{_PLAIN}\}}\{{{_PLAIN}\}}
          | (?:[0-9]+\ )?{_PLAIN}\ ?/\ ?{_PLAIN}
          | (?:{_PLAIN}\*)?10\^(?:\{{[-+]?[0-9]+\}}|[-+]?[0-9]+)
          | {_PLAIN}(?:[eE][-+]?[0-9]+)?
        ))(?P<more>
            (?:\.[0-9]|,[0-9]|\^|!(?=\s*[-+*/=^])|\ ?[:/*]\ ?(?=[0-9])|\ x\ (?=[0-9])|\\(?:pi|sqrt)|[π√]
            |[xyz](?![a-zA-Z]))[^\s=]*)?
      | (?P<other>(?:\\(?:[dtc]?frac|sqrt|[dt]?binom)(?:\s*\{{[^{{}}]*\}})+|√\s*[0-9])[^\s=]*)""",
    re.VERBOSE,
)
_SIGNS = re.compile(r"\$|(?<=-) ")
_FACTORIAL = re.compile(r"[0-9]\s*!")
_TAIL = 10_000
"""Characters at the end of a completion in which the answer is looked for."""


@dataclass(eq=False)
class Gsm8kTask(DatasetTask):
    """GSM8K's train or test split, or JSON lines of the same form (question, answer ending in "#### 42")."""

    name = "gsm8k"

    # train or test.
    split: str = field(default="train", metadata={"choices": tuple(SPLITS)})
    # strict: the last "#### 42" of a completion only; flexible: its last box, else that, else its last number.
    extraction: str = field(default="flexible", metadata={"choices": EXTRACTIONS})

    def all_problems(self) -> list[Problem]:
        return [
            Problem(
                f"gsm8k/{self.split}/{row.index}",
                fill(self.template.prompt, question=question),
                gold_answer(row),
                columns=row.fields,
            )
            for row, question in self.rows(SPLITS[self.split])
        ]

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        return grade_numbers(problems, [reply(text, self.until) for text in texts], self.extraction == "strict")


def grade_numbers(problems: Sequence[Problem], replies: Sequence[str], strict: bool = False) -> list[Grade]:
    """By the exact value of the extracted number; a reply without a number is wrong."""
    answers = [extracted_number(text, strict) for text in replies]
    return [
        Grade(extracted=answer, correct=answer == canonical(problem.answer or ""))
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
    box = None if strict else last_box(text)
    if box is not None:
        if number(normalise(box)) is not None:
            return canonical(box)
        numbers = _numbers(box.rpartition("=")[2])
        return None if len(numbers) > 1 or _FACTORIAL.search(box) else _value(numbers)
    tail = text[-_TAIL:]
    marked = [numbers for part in tail.split("####")[1:] if (numbers := _numbers(part, first=True))]
    if marked:
        return _value(marked[-1])
    return None if strict else _value(_numbers(tail))


def _numbers(text: str, first: bool = False) -> list[re.Match[str]]:
    """Where the numbers of a text stand, in plain spelling. first: only one with which the text begins."""
    text = with_braces(single_spaced(text).translate(PLAIN_NUMBERS))
    text = _SUPERSCRIPT.sub(lambda power: "^" + power.group().translate(_PLAIN_POWER), text)
    text = _TIMES.sub(
        "*", _DOUBLE_STAR.sub("^", _GROUPING.sub("", text).translate(dict.fromkeys(map(ord, MINUSES), "-")))
    )
    text = text.replace("\\$", "$")
    begin = len(text) - len(text.lstrip())
    matches = filter(None, [_NUMBER.match(text, begin)]) if first else _NUMBER.finditer(text)
    return [match for match in matches if match["number"] or match["other"]]


def _value(numbers: list[re.Match[str]]) -> str | None:
    """The last number in canonical form; None if there is none, or if it is part of a larger expression."""
    if not numbers or not numbers[-1]["number"] or numbers[-1]["more"]:
        return None
    plain = _SIGNS.sub("", numbers[-1]["number"])
    return canonical(plain) if number(normalise(plain)) is not None else None
