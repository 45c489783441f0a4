"""From (gold answer, given answer) to a verdict: spelling and exact numbers first, then guards, then math-verify."""

from collections.abc import Sequence
from dataclasses import dataclass

from carerft.grading.guards import MAX_LENGTH, hazard
from carerft.grading.mathematics import canonical, quick_verdict
from carerft.grading.notation import clean
from carerft.grading.pool import Pool, shared_pool


@dataclass(frozen=True)
class Verdict:
    """The verdict on one answer.

    correct: None is no verdict: the gold answer can't be read, or the grader failed. An answer that can't be read is
        wrong.
    why: how it was decided, or what prevented a decision.
    vote: the answer's canonical form, by which equal answers vote together; None without an answer. A correct answer
        votes as the gold answer, however it is written; two wrong ones of equal value may differ (see `canonical`).
    """

    correct: bool | None
    why: str
    vote: str | None

    @property
    def name(self) -> str:
        return {True: "correct", False: "wrong", None: "none"}[self.correct]


def grade_answers(pairs: Sequence[tuple[str, str | None]], pool: Pool | None = None) -> list[Verdict]:
    """A verdict for each (gold, answer), in order. answer None: the text gives no answer, which is wrong.

    Equal pairs are graded once. The pool is used (and started) only for pairs that need algebra.
    """
    verdicts: dict[tuple[str, str | None], Verdict] = {}
    hard: list[tuple[str, str]] = []
    for pair in dict.fromkeys(pairs):
        gold, answer = pair
        if verdict := _without_algebra(gold, answer):
            verdicts[pair] = verdict
        elif answer is not None:  # without an answer there is always a verdict
            hard.append((gold, answer))
    hard.sort()  # pairs with the same gold answer are adjacent: it is parsed once
    outcomes = (pool or shared_pool()).compare([(clean(gold), clean(answer)) for gold, answer in hard])
    for (gold, answer), (correct, why) in zip(hard, outcomes, strict=True):
        verdicts[gold, answer] = Verdict(correct, why, canonical(gold if correct else answer))
    return [verdicts[pair] for pair in pairs]


def _without_algebra(gold: str, answer: str | None) -> Verdict | None:
    if answer is None:
        return Verdict(False, "no answer found", None)
    correct = quick_verdict(gold, answer)
    if correct is not None:
        why = "the same in spelling or as a number" if correct else "different in spelling or as a number"
    elif reason := hazard(clean(gold), clean(gold)):
        why = f"refused: the gold answer: {reason}"
    elif reason := hazard(clean(answer), clean(gold)):
        correct, why = False, f"refused: {reason}"
    else:
        return None
    return Verdict(correct, why, canonical(gold if correct else answer)[:MAX_LENGTH])
