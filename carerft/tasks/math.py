r"""MATH, competition mathematics (Hendrycks et al. 2021, arXiv 2103.03874), and files of the same kind.

Splits: `train` (7,500), `test` (5,000), `math500` (the 500 of test chosen by Lightman et al. 2023, arXiv 2305.20050)
and `train12000`: train and the other 4,500 of test, to be evaluated on math500 only.

A training split leaves out the problems that are also tested on, compared without white space: two of the published
train split are, and a file of one's own may hold more. Rows whose answer is empty (two of train) are left out too, and
those that the prompt itself shows as examples.
"""

import hashlib
import logging
import re
from collections.abc import Sequence

from carerft.errors import ConfigError, DataError
from carerft.grading.grader import grade_answers
from carerft.grading.mathematics import final_answer, last_box
from carerft.grading.pool import shared_pool
from carerft.tasks import Grade, Problem
from carerft.tasks.files import Published, Row, check_limit, distinct, load_rows, local_file
from carerft.tasks.replies import before
from carerft.tasks.templates import filled, load_template

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
TRAINING_SPLITS = ("train", "train12000")

IN_BOTH_TRAIN_AND_TEST = frozenset({"4328802e750374c6", "779ae121626bedc5"})
"""`fingerprint` of the problems that the published train and test splits share."""

EXTRACTIONS = ("flexible", "boxed")


class MathTask:
    """A split of MATH, or JSON lines with `problem` and `answer` (or a `solution` that ends in a box)."""

    name = "math"

    def __init__(
        self,
        split: str = "train",
        path: str | None = None,
        prompt: str = "zero_shot",
        limit: int | None = None,
        extraction: str = "flexible",
        workers: int | None = None,
    ):
        r"""split: a key of SPLITS. path: a file in place of the published one. prompt: see `load_template`. limit: only
        the first so many problems. extraction: where the answer is looked for in a completion: "boxed" in its last
        \boxed{} only, "flexible" also after its last "answer is". workers: grading processes; None: one per core.
        Raises ConfigError."""
        if split not in SPLITS:
            raise ConfigError(f"split={split!r} is no split of MATH", f"write one of {', '.join(SPLITS)}")
        if extraction not in EXTRACTIONS:
            raise ConfigError(f"extraction={extraction!r} is unknown", f"write one of {', '.join(EXTRACTIONS)}")
        check_limit(limit)
        self.split, self.path, self.limit, self.extraction, self.workers = split, path, limit, extraction, workers
        self.template = load_template("math", prompt)
        self.until = self.template.until

    def problems(self) -> list[Problem]:
        """The problems in the file's order; math/test/17 is row 17, counted from 0. Raises DataError."""
        parts = (SPLITS[self.split][0],) if self.path else SPLITS[self.split]
        examples = self._examples()
        left_out = self._tested_on() | set(self.template.examples)
        problems: list[Problem] = []
        empty, shared = 0, 0
        for part in parts:
            name = self.split if self.path or len(parts) == 1 else part.split
            for row, question in distinct(load_rows(part, self.path), lambda row: row.text("problem", "question")):
                answer = gold_answer(row)
                if not answer:
                    empty += 1
                elif left_out and fingerprint(question) in left_out:
                    shared += 1
                else:
                    prompt = filled(self.template.prompt, examples=examples, question=question)
                    problems.append(Problem(f"math/{name}/{row.index}", prompt, answer))
            left_out |= IN_BOTH_TRAIN_AND_TEST if len(parts) > 1 else frozenset()  # in the train part already
        if empty or shared:
            log.warning(
                "%s: left out %d without an answer, %d that are tested on, shown as an example, or occur twice",
                self.split,
                empty,
                shared,
            )
        if not problems:
            raise DataError(f"no problem of split {self.split} is left", "check data.path and the file's answers")
        return problems[: self.limit]

    def _tested_on(self) -> frozenset[str]:
        """Fingerprints of the problems that this split must not train on."""
        if self.split not in TRAINING_SPLITS:
            return frozenset()
        tested = MATH500 if self.split == "train12000" else TEST
        if tested is MATH500 or local_file(tested):
            return frozenset(fingerprint(row.text("problem")) for row in load_rows(tested))
        return IN_BOTH_TRAIN_AND_TEST

    def _examples(self) -> str:
        """The prompt's examples, drawn from the train split. Raises DataError, ConfigError where one isn't there."""
        if not self.template.examples:
            return ""
        rows = {fingerprint(row.text("problem")): row for row in load_rows(TRAIN)}
        if absent := set(self.template.examples) - rows.keys():
            raise ConfigError(
                f"the prompt's example {min(absent)} is no row of MATH's train split",
                "list the fingerprints (carerft.tasks.math.fingerprint) of problems of that split",
            )
        return "\n\n".join(
            filled(
                self.template.example or "",
                question=row.text("problem"),
                solution=row.text("solution"),
                answer=gold_answer(row),
            )
            for row in map(rows.__getitem__, self.template.examples)
        )

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """By spelling, exact arithmetic and math-verify, in processes of their own (see `carerft.grading`).

        A completion without an answer is wrong; one that the grader cannot judge has no verdict (`correct=None`).
        """
        replies = [before(text, self.until) for text in texts]
        answers = [final_answer(said, boxed_only=self.extraction == "boxed") for said in replies]
        pairs = [(problem.answer or "", answer) for problem, answer in zip(problems, answers, strict=True)]
        verdicts = grade_answers(pairs, shared_pool(self.workers))
        return [Grade(extracted=verdict.vote, correct=verdict.correct) for verdict in verdicts]


def gold_answer(row: Row) -> str:
    r"""The field `answer` (or what its box holds), else the solution's last box. May be empty. Raises DataError."""
    if row.fields.get("answer") is not None or "solution" not in row.fields:
        answer = row.text("answer")
        box = last_box(answer)
        return (answer if box is None else box).strip()
    box = last_box(row.text("solution"))
    if box is None:
        raise DataError(f"{row.place}: the solution has no \\boxed{{}}", "give the line a field 'answer'")
    return box.strip()


def fingerprint(problem: str) -> str:
    """16 hexadecimal digits of the SHA-256 of the problem without white space."""
    return hashlib.sha256(re.sub(r"\s", "", problem).encode()).hexdigest()[:16]
