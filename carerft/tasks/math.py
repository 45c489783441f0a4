r"""MATH, competition mathematics (Hendrycks et al. 2021, arXiv 2103.03874), and files of the same kind.

Splits: `train` (7,500), `test` (5,000), `math500` (the 500 of test chosen by Lightman et al. 2023, arXiv 2305.20050)
and `train12000`: train and the other 4,500 of test, to be evaluated on math500 only.

A training split leaves out the problems that occur in its test split, compared without white space (two of the
published train split do), rows whose answer is empty (two of train), and the prompt's own examples.
"""

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from carerft.errors import ConfigError, DataError
from carerft.grading.grader import grade_answers
from carerft.grading.mathematics import final_answer, last_box
from carerft.tasks import Grade, Problem
from carerft.tasks.dataset import DatasetTask
from carerft.tasks.files import Published, Row, load_rows, local_file
from carerft.tasks.replies import reply
from carerft.tasks.templates import fill

log = logging.getLogger(__name__)

_SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip
_HUB = {
    "hub": "EleutherAI/hendrycks_math", "configs": _SUBJECTS, "revision": "21a5633873b6a120296cce3e2df9d5550074f4a3",
}  # fmt: skip
TRAIN = Published(
    file="math/train.jsonl", rows=7500, split="train",
    sha256="29c9a076be0f4da5e63c6cd2733af2ae13c321e3a926d27d0e9fd090ed629d7d", **_HUB,
)  # fmt: skip
TEST = Published(
    file="math/test.jsonl", rows=5000, split="test",
    sha256="3371949f33dd702d04b43fddd7d53a028de0aaca0e76abb1b875a050297b3aa4", **_HUB,
)  # fmt: skip
MATH500 = Published(
    file="math500/test.jsonl", rows=500, split="test",
    sha256="35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
    hub="HuggingFaceH4/MATH-500", configs=("default",), revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
)  # fmt: skip
SPLITS = {"train": (TRAIN,), "test": (TEST,), "math500": (MATH500,), "train12000": (TRAIN, TEST)}
TESTED_ON = {"train": TEST, "train12000": MATH500}
"""The split whose problems a training split leaves out."""

IN_BOTH_TRAIN_AND_TEST = frozenset({"4328802e750374c6", "779ae121626bedc5"})
"""`fingerprint` of the problems that the published train and test splits share."""

EXTRACTIONS = ("flexible", "boxed")


@dataclass(eq=False)
class MathTask(DatasetTask):
    """A split of MATH, or JSON lines with `problem` and `answer` (or a `solution` that ends in a box)."""

    name = "math"
    question_fields = ("problem", "question")

    # See the top of this file: train12000 is to be evaluated on math500 alone.
    split: str = field(default="train", metadata={"choices": tuple(SPLITS)})
    # boxed: the last \boxed{} of a completion only; flexible: or its last "answer is"
    extraction: str = field(default="flexible", metadata={"choices": EXTRACTIONS})

    def all_problems(self) -> list[Problem]:
        parts = SPLITS[self.split][:1] if self.path else SPLITS[self.split]
        examples = self._examples()
        excluded = self._test_fingerprints() | set(self.template.examples)
        problems: list[Problem] = []
        without_answer, overlapping = 0, 0
        for part in parts:
            split = part.split if len(parts) > 1 else self.split
            for row, question in self.rows(part):
                answer = gold_answer(row)
                if not answer:
                    without_answer += 1
                elif excluded and fingerprint(question) in excluded:
                    overlapping += 1
                else:
                    prompt = fill(self.template.prompt, examples=examples, question=question)
                    problems.append(Problem(f"math/{split}/{row.index}", prompt, answer, columns=row.fields))
            if len(parts) > 1:
                excluded |= IN_BOTH_TRAIN_AND_TEST  # the train part has them already
        if without_answer or overlapping:
            log.warning(
                "%s: left out %d without an answer, %d that are tested on, shown as an example, or occur twice",
                self.split, without_answer, overlapping,
            )  # fmt: skip
        if not problems:
            raise DataError(f"no problem of split {self.split} is left", "check the path and the file's answers")
        return problems

    def _test_fingerprints(self) -> set[str]:
        """Fingerprints of the problems that this split must not train on."""
        test = TESTED_ON.get(self.split)
        if test is None:
            return set()
        if test is TEST and not local_file(test):
            return set(IN_BOTH_TRAIN_AND_TEST)
        return {fingerprint(row.text("problem")) for row in load_rows(test)}

    def _examples(self) -> str:
        """The prompt's examples, from the train split. Raises DataError; ConfigError for one that is not there."""
        if not self.template.examples:
            return ""
        rows = {fingerprint(row.text("problem")): row for row in load_rows(TRAIN)}
        if absent := set(self.template.examples) - rows.keys():
            raise ConfigError(
                f"the prompt's example {min(absent)} is no row of MATH's train split",
                "list the fingerprints (carerft.tasks.math.fingerprint) of problems of that split",
            )
        form = self.template.example or ""
        return "\n\n".join(
            fill(form, question=row.text("problem"), solution=row.text("solution"), answer=gold_answer(row))
            for row in map(rows.__getitem__, self.template.examples)
        )

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """By spelling, exact arithmetic and math-verify, in separate processes (see `carerft.grading`).

        A completion without an answer is wrong; one that the grader cannot judge has no verdict (`correct=None`).
        """
        boxed_only = self.extraction == "boxed"
        answers = [final_answer(reply(text, self.until), boxed_only) for text in texts]
        pairs = [(problem.answer or "", answer) for problem, answer in zip(problems, answers, strict=True)]
        verdicts = grade_answers(pairs)
        return [Grade(extracted=verdict.vote, correct=verdict.correct) for verdict in verdicts]


def gold_answer(row: Row) -> str:
    r"""The field `answer` (or what its box holds), else the solution's last box. May be empty. Raises DataError."""
    from_solution = row.fields.get("answer") is None and "solution" in row.fields
    text = row.text("solution" if from_solution else "answer")
    box = last_box(text)
    if box is None and from_solution:
        raise DataError(f"{row.location}: the solution has no \\boxed{{}}", "give the line a field 'answer'")
    return (text if box is None else box).strip()


def fingerprint(problem: str) -> str:
    """16 hexadecimal digits of the SHA-256 of the problem without white space."""
    return hashlib.sha256(re.sub(r"\s", "", problem).encode()).hexdigest()[:16]
