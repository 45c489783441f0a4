"""From the recorded samples of one benchmark to votes: which answers agree, which win, and whether they are right.

A benchmark has n problems with k samples each. Samples of a problem with equal `extracted` vote together; all refusals
vote together; a sample without a readable answer votes alone, and wins only if none of its problem's has one. Ties go
to the answer that was sampled first. The confidence of an answer is its share of all k samples. Its verdict is that of
the first of its samples with a verdict: where the grader could not decide (`correct` is null), nothing counts as wrong.

Besides the share of votes, there are three more confidences in a majority answer: its share of the likelihood
(`Votes.likelihood`), the model's own report (`carerft.evaluation.self_report`), and the confidence that the first
sample with this answer states (`carerft.tasks.confidence`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carerft.errors import DataError
from carerft.metrics.statistics import UNPARSABLE, agreement, majority, vote_counts

Record = Mapping[str, Any]
REFUSED = 0
"""The code of a refusal. A problem's answers are coded 1, 2, .. in the order in which they were first sampled."""


@dataclass(frozen=True)
class Votes:
    """The samples of n problems, k each, in the order of the problems and of the sample numbers.

    rows: n lists of k sample records. answers: (n, k) codes.
    """

    rows: list[list[Record]]
    answers: NDArray[np.int64]

    @cached_property
    def verdict(self) -> NDArray[np.float64]:
        """(n, k) 1.0 right, 0.0 wrong, NaN unknown."""
        return self.column("correct")

    def column(self, key: str) -> NDArray[np.float64]:
        """(n, k) this number or truth value of each sample, NaN where it is absent or null."""
        return np.array([[np.nan if r.get(key) is None else float(r[key]) for r in row] for row in self.rows])

    def answer_verdict(self) -> NDArray[np.float64]:
        """(n, k) each sample's verdict; without one, that of the first judged sample with the same answer."""
        judge = (agreement(self.answers) & ~np.isnan(self.verdict)[:, None, :]).argmax(-1)
        return np.where(np.isnan(self.verdict), np.take_along_axis(self.verdict, judge, 1), self.verdict)

    def likelihood(self, per_token: bool = False) -> NDArray[np.float64]:
        """(n, k) the share of its problem's probability that goes to each sample's answer.

        p(answer) = sum of p(s) over the different completions s that give this answer / the same sum over all
        completions, where p(s) is the model's probability of the completion at temperature 1. Completions of equal
        text count once: votes already count how often they were drawn. This is the probability of a meaning of Kuhn et
        al. 2023 (arXiv 2302.09664, section 4), with the grader's equivalence in place of theirs, normalised over the
        sampled completions. per_token: p(s) is the geometric mean of its tokens' probabilities (Malinin & Gales 2021,
        arXiv 2002.07650), so that a short chain of thought does not outweigh all longer ones. Refusals are one answer;
        each unreadable completion is an answer by itself.
        """
        score = self.column("log_probability")
        score = score / np.maximum(self.column("tokens"), 1) if per_token else score
        texts = [[r["text"] for r in row] for row in self.rows]
        first = np.array([[row.index(text) == i for i, text in enumerate(row)] for row in texts])
        mass = np.where(first, np.exp(score - score.max(1, keepdims=True)), 0)
        return np.minimum((agreement(self.answers) * mass[:, None, :]).sum(-1) / mass.sum(1, keepdims=True), 1)


def answered(answers: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(..., k) as `majority`, but only where the majority is an answer."""
    return majority(answers) & (answers != REFUSED) & (answers != UNPARSABLE)


def collect_votes(samples: Sequence[Record], problem_ids: Sequence[str]) -> Votes:
    """The samples by problem. Raises DataError where they don't fit the problems, or problems differ in their number of
    samples."""
    rows: dict[str, dict[int, Record]] = {problem: {} for problem in problem_ids}
    if len(rows) < len(problem_ids):
        twice = next(p for p in problem_ids if list(problem_ids).count(p) > 1)
        raise DataError(f"problem {twice!r} occurs twice", "Problem ids must be unique within a benchmark.")
    for record in samples:
        problem, number = record["problem_id"], record["sample"]
        if problem not in rows:
            raise DataError(f"sample {number} belongs to problem {problem!r}, which is not among the problems")
        if number in rows[problem]:
            raise DataError(f"sample {number} of problem {problem!r} occurs twice", "Delete one of the two lines.")
        rows[problem][number] = record
    if not samples:
        raise DataError("no samples to score", "Run the evaluation first; it needs at least one sample per problem.")
    most, fewest = max(rows, key=lambda p: len(rows[p])), min(rows, key=lambda p: len(rows[p]))
    if len(rows[most]) != len(rows[fewest]):
        raise DataError(
            f"problem {fewest!r} has {len(rows[fewest])} samples and {most!r} has {len(rows[most])}: "
            "the evaluation was interrupted, and confidences by voting need equally many",
            "Run the same evaluation again: it goes on where it was cut.",
        )
    ordered = [[row[number] for number in sorted(row)] for row in rows.values()]
    return Votes(ordered, np.array([_codes(row) for row in ordered]))


def _codes(row: Sequence[Record]) -> list[int]:
    seen: dict[str, int] = {}
    return [
        REFUSED if r["refused"]
        else UNPARSABLE if r["extracted"] is None
        else seen.setdefault(r["extracted"], len(seen) + 1)
        for r in row
    ]  # fmt: skip


def predictions(
    votes: Votes, selected: NDArray[np.bool_], confidence: NDArray[np.float64] | None = None
) -> tuple[NDArray, NDArray, NDArray]:
    """(problem, confidence, correct), each (m,), of the selected samples' answers that have a verdict and a confidence.

    selected: (n, k). confidence: (n, k); None: each answer's share of the votes.
    """
    verdict = votes.answer_verdict()
    if confidence is None:
        confidence = np.asarray(vote_counts(votes.answers) / votes.answers.shape[1])
    selected = selected & ~np.isnan(verdict) & ~np.isnan(confidence)
    return np.nonzero(selected)[0], confidence[selected], verdict[selected]
