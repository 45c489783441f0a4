"""From the recorded samples of one benchmark to votes: which answers agree, which win, and whether they are right.

A benchmark has n problems with k samples each. Samples of a problem with equal `extracted` vote together; all refusals
are one group, "refused"; a sample without a readable answer is alone, and wins only if all of its problem's are such.
Ties go to the answer that was sampled first. The confidence of a group is its share of all k samples. Its verdict is
that of its first sample that has one: where the grader could not tell (`correct` is null), nothing is counted as wrong.

Beside the share of votes, two more confidences in the answer that won the vote: its share of the likelihood
(`Ballots.likelihood`) and what the model says of it when asked (`carerft.evaluation.self_report`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carerft.errors import DataError
from carerft.metrics.statistics import UNPARSABLE, majority, votes

Record = Mapping[str, Any]
REFUSED = 0
"""The code of the group of refusals; answers are 1, 2, .. in the order in which a problem's samples brought them up."""


@dataclass(frozen=True)
class Ballots:
    """The samples of n problems, k each, in the order of the problems and of the sample numbers.

    rows: n lists of k sample records. answers: (n, k) codes. verdict: (n, k) 1.0 right, 0.0 wrong, NaN unknown.
    """

    rows: list[list[Record]]
    answers: NDArray[np.int64]
    verdict: NDArray[np.float64]

    def column(self, key: str) -> NDArray[np.float64]:
        """(n, k) a number or truth value of each sample, NaN where it is absent or null."""
        return np.array([[np.nan if r.get(key) is None else float(r[key]) for r in row] for row in self.rows])

    def group_verdict(self) -> NDArray[np.float64]:
        """(n, k) each sample's verdict, or where it has none, that of the first sample of its group that has one."""
        judge = (self._same() & ~np.isnan(self.verdict)[:, None, :]).argmax(-1)
        return np.where(np.isnan(self.verdict), np.take_along_axis(self.verdict, judge, 1), self.verdict)

    def likelihood(self, per_token: bool = False) -> NDArray[np.float64]:
        """(n, k) each sample's answer's share of the probability of its problem's different completions.

        p(answer) = sum of p(s) over the different completions s that give it / the same sum over all of them, where
        p(s) is the sampler's own probability of the completion, at the temperature and top_p that it was sampled
        with. Completions of equal text count once: how often they were drawn is what votes count. This is the
        probability of a meaning of Kuhn et al. 2023 (arXiv 2302.09664, section 4), with the grader's equivalence for
        theirs, normalised over what was sampled. per_token: p(s) is the geometric mean of its tokens' probabilities
        (Malinin & Gales 2021, arXiv 2002.07650), so that a short chain of thought does not outweigh all longer ones.
        Refusals are one answer, an unreadable completion is one by itself.
        """
        score = self.column("log_probability")
        score = score / np.maximum(self.column("tokens"), 1) if per_token else score
        texts = [[r["text"] for r in row] for row in self.rows]
        first = np.array([[row.index(text) == i for i, text in enumerate(row)] for row in texts])
        mass = np.where(first, np.exp(score - score.max(1, keepdims=True)), 0)
        return np.minimum((self._same() * mass[:, None, :]).sum(-1) / mass.sum(1, keepdims=True), 1)

    def _same(self) -> NDArray[np.bool_]:
        """(n, k, k) whether two samples of a problem give the same answer; an unreadable one is like itself alone."""
        same = (self.answers[:, :, None] == self.answers[:, None, :]) & (self.answers != UNPARSABLE)[:, :, None]
        return same | np.eye(self.answers.shape[1], dtype=bool)


def answered(answers: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(..., k) as `majority`, but only where the majority is an answer."""
    return majority(answers) & (answers != REFUSED) & (answers != UNPARSABLE)


def ballots(samples: Sequence[Record], problem_ids: Sequence[str] | None = None) -> Ballots:
    """The samples by problem, in the given order of problems (or that of their first samples).

    Raises DataError where there are none, a sample occurs twice or belongs to no problem, a problem occurs twice, or
    problems have different numbers of samples.
    """
    expected = list(problem_ids or ())
    rows: dict[str, dict[int, Record]] = {problem: {} for problem in expected}
    if len(rows) < len(expected):
        twice = next(p for i, p in enumerate(expected) if p in expected[:i])
        raise DataError(f"problem {twice!r} occurs twice", "Problem ids must be unique within a benchmark.")
    for record in samples:
        problem, number = record["problem_id"], record["sample"]
        row = rows.setdefault(problem, {}) if problem_ids is None else rows.get(problem)
        if row is None:
            raise DataError(f"sample {number} belongs to problem {problem!r}, which is not among the problems")
        if number in row:
            raise DataError(f"sample {number} of problem {problem!r} occurs twice", "Delete one of the two lines.")
        row[number] = record
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
    return Ballots(ordered, np.array([_codes(row) for row in ordered]), np.array([_verdicts(row) for row in ordered]))


def _codes(row: Sequence[Record]) -> list[int]:
    seen: dict[str, int] = {}
    return [
        REFUSED if r["refused"]
        else UNPARSABLE if r["extracted"] is None
        else seen.setdefault(r["extracted"], len(seen) + 1)
        for r in row
    ]  # fmt: skip


def _verdicts(row: Sequence[Record]) -> list[float]:
    return [math.nan if r["correct"] is None else float(r["correct"]) for r in row]


def confidence_and_correctness(samples: Sequence[Record]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) share of the majority's votes and (n,) 1.0 or 0.0, over the problems whose majority has a verdict."""
    cast = ballots(samples)
    _, confidence, correct = predictions(cast, majority(cast.answers))
    return confidence, correct


def predictions(
    cast: Ballots, chosen: NDArray[np.bool_], confidence: NDArray[np.float64] | None = None
) -> tuple[NDArray, NDArray, NDArray]:
    """(problem, confidence, correct) of the chosen samples' groups, those without a verdict or a confidence left out.

    confidence: (n, k); None: the groups' shares of the votes.
    """
    verdict = cast.group_verdict()
    confidence = votes(cast.answers) / cast.answers.shape[1] if confidence is None else confidence
    chosen = chosen & ~np.isnan(verdict) & ~np.isnan(confidence)
    return np.nonzero(chosen)[0], confidence[chosen], verdict[chosen]
