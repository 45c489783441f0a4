"""The same question answered by each row: majority answers, and which questions to show.

Questions are selected by rule, never by hand: those on which the rows' majority answers differ in kind, clear
majorities first. They show how rows differ, not how often; `Questions.differing` of `Questions.total` says that.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from carerft.report.columns import benchmark_title
from carerft.report.rows import Row
from carerft.runs.reading import Run, numbered_lines
from carerft.text import visible

PER_CATEGORY = 2
SHORT, PROMPT = 120, 2000  # characters shown of an answer, of a prompt
Key = tuple[str, ...]  # REFUSAL, NO_ANSWER, or ("answer", canonical form)
REFUSAL: Key = ("refusal",)
NO_ANSWER: Key = ("no answer",)
WORDS = {REFUSAL: "declines to answer", NO_ANSWER: "no answer found"}
Tally = dict[Key, list[bool | None]]
"""One run's answers to one question: of each answer, the verdicts on the samples that gave it."""


@dataclass
class Answer:
    """One row's majority answer. kind: correct, wrong, misconception, refusal, no answer, or no verdict.

    text: the first sample that gave this answer.
    """

    label: str
    key: Key
    kind: str
    votes: int
    total: int
    text: str = ""

    @property
    def answer(self) -> str:
        return visible(self.key[1], SHORT) if len(self.key) > 1 else WORDS[self.key]


@dataclass(frozen=True)
class Question:
    """One question with one answer per row; `missing` names the rows that did not answer it."""

    category: str
    id: str
    prompt: str
    gold: str
    unanswerable: bool
    misconceptions: list[str]
    answers: list[Answer]
    missing: list[str]

    def right(self, answer: Answer) -> str:
        """ "right", "wrong" or, without a verdict, "": a refusal is right exactly where no answer exists."""
        if answer.kind == "refusal":
            return "right" if self.unanswerable else ""
        return {"correct": "right", "no verdict": ""}.get(answer.kind, "wrong")

    @property
    def differs(self) -> bool:
        return len({answer.key for answer in self.answers}) > 1


@dataclass(frozen=True)
class Questions:
    """One benchmark's questions to show, and on how many of all questions the rows' majority answers differ."""

    benchmark: str
    questions: list[Question]
    differing: int
    total: int


Firsts = dict[tuple[str, Key], int]
"""Of each problem id and answer, the line of the first sample that gave it."""
Tallies = Sequence[tuple[str, Run, dict[str, Tally], Firsts]]
"""Of each row: its label, its first evaluated run, that run's tallies by problem id, and where their samples are."""


def select_questions(
    rows: Sequence[Row], benchmarks: Iterable[str], text_limit: int, troubles: list[str]
) -> list[Questions]:
    """The questions to show of each benchmark for which some row has samples. Unreadable files go into `troubles`.

    text_limit: characters shown of a sampled text.
    """
    selected = []
    for name in benchmarks:
        written = [(row.label, [run for run in row.evaluated if not run.recorded]) for row in rows]
        runs = [(label, next((run for run in own if name in run.benchmarks), None)) for label, own in written]
        read = [(label, run, *_read_tallies(run, name, troubles)) for label, run in runs if run]
        tallies = [each for each in read if each[2]]
        files = ([line for _, line in _lines(run, f"{name}.problems.jsonl", troubles)] for _, run, *_ in tallies)
        problems = next(filter(None, files), [])
        questions = [q for problem in problems if (q := _question(name, problem, tallies)).answers]
        if questions:
            shown = _most_informative(questions)
            _add_texts(shown, name, tallies, text_limit)
            selected.append(Questions(name, shown, sum(q.differs for q in questions), len(questions)))
    return selected


def _lines(run: Run, file: str, troubles: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    unreadable: list[str] = []
    yield from numbered_lines(run.directory / "evaluation" / file, unreadable)
    troubles += [f"{run.name}/evaluation/{trouble}" for trouble in unreadable]


def _read_tallies(run: Run, benchmark: str, troubles: list[str]) -> tuple[dict[str, Tally], Firsts]:
    """Tallies by problem id and the lines of their first samples, without the texts: a file of samples may be large."""
    tallies: dict[str, Tally] = {}
    firsts: Firsts = {}
    for number, sample in _lines(run, f"{benchmark}.jsonl", troubles):
        correct, problem, key = sample.get("correct"), str(sample.get("problem_id")), _key(sample)
        tallies.setdefault(problem, {}).setdefault(key, []).append(correct if isinstance(correct, bool) else None)
        firsts.setdefault((problem, key), number)
    return tallies, firsts


def _majority(tally: Tally) -> Key:
    """The answer with most votes, the first sampled of equals; "no answer" wins only if there is no other.

    As in `carerft.metrics.votes`, which refuses the incomplete files that a report must still show.
    """
    return max(tally, key=lambda key: 0 if key == NO_ANSWER else len(tally[key]))


def _key(sample: dict[str, Any]) -> Key:
    if sample.get("refused") is True:
        return REFUSAL
    if sample.get("extracted") is None:
        return NO_ANSWER
    return "answer", str(sample["extracted"])


def _question(benchmark: str, problem: dict[str, Any], tallies: Tallies) -> Question:
    id_ = str(problem.get("problem_id"))
    listed, gold = problem.get("misconceptions"), problem.get("answer")
    misconceptions = [str(m) for m in listed[:5]] if isinstance(listed, list) else []
    lure = ": no answer exists" if gold is None else ": a misconception lures" if misconceptions else ""
    answers = []
    for label, _, by_problem, _ in tallies:
        if tally := by_problem.get(id_):
            key = _majority(tally)
            kind = _kind(key, tally[key], misconceptions)
            answers.append(Answer(label, key, kind, len(tally[key]), sum(map(len, tally.values()))))
    return Question(
        category=benchmark_title(benchmark) + lure,
        id=id_,
        prompt=visible(problem.get("prompt", ""), PROMPT),
        gold=visible("" if gold is None else gold, SHORT),
        unanswerable=gold is None,
        misconceptions=[visible(m, SHORT) for m in misconceptions],
        answers=answers,
        missing=[label for label, _, by_problem, _ in tallies if id_ not in by_problem],
    )


def _kind(key: Key, verdicts: list[bool | None], misconceptions: list[str]) -> str:
    if len(key) == 1:
        return key[0]
    if key[1].casefold() in {m.casefold() for m in misconceptions}:
        return "misconception"
    correct = next((verdict for verdict in verdicts if verdict is not None), None)
    return "no verdict" if correct is None else "correct" if correct else "wrong"


def _most_informative(questions: list[Question]) -> list[Question]:
    """PER_CATEGORY questions of each category: most kinds of answer first, then complete ones with clear majorities."""

    def order(question: Question) -> tuple[Any, ...]:
        kinds = {answer.kind for answer in question.answers}
        clarity = sum(answer.votes / answer.total for answer in question.answers)
        return not question.differs, len(question.missing), -len(kinds), -round(clarity, 9), question.id

    ordered = sorted(questions, key=lambda question: (question.category, *order(question)))
    categories = groupby(ordered, key=lambda question: question.category)
    return [question for _, members in categories for question in islice(members, PER_CATEGORY)]


def _add_texts(questions: list[Question], benchmark: str, tallies: Tallies, limit: int) -> None:
    """Give each answer its text: the first sample that gave the row's majority answer."""
    for label, run, _, firsts in tallies:
        own = {firsts[q.id, answer.key]: answer for q in questions for answer in q.answers if answer.label == label}
        for number, sample in numbered_lines(run.directory / "evaluation" / f"{benchmark}.jsonl", [], wanted=own):
            own[number].text = visible(sample.get("text", ""), limit)
