"""The same question answered by each row: majority votes, and which questions to show.

Questions are picked by rule, never by hand: those on which the rows' majority answers differ in kind, clear majorities
first. They show how rows differ, not how often; `Chosen.differing` of `Chosen.total` says that.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from carerft.report.cells import Cell
from carerft.report.columns import benchmark_title
from carerft.runs.reading import Run, read_lines
from carerft.text import visible

PER_CATEGORY = 2
SMALL_TEXT, PROMPT = 120, 2000  # characters kept of an answer, of a prompt
Key = tuple[str, ...]  # REFUSAL, NO_ANSWER, or ("answer", canonical form as shown, digest of a long one)
REFUSAL: Key = ("refusal",)
NO_ANSWER: Key = ("no answer",)
WORDS = {REFUSAL: "declines to answer", NO_ANSWER: "no answer found"}


@dataclass
class Votes:
    """The answers of one run to one question: votes by answer, and each answer's verdict."""

    counts: Counter[Key] = field(default_factory=Counter)
    correct: dict[Key, bool | None] = field(default_factory=dict)

    @property
    def majority(self) -> Key:
        """The group with most votes, among equals the one sampled first; unreadable samples win only if all are such.

        As in `carerft.metrics.votes`, so that the page shows the answers that the metrics counted.
        """
        return max(self.counts, key=lambda key: 0 if key == NO_ANSWER else self.counts[key])


@dataclass(frozen=True)
class Answer:
    """What the page shows of one row. kind: correct, wrong, misconception, refusal, no answer, or no verdict."""

    label: str
    family: str
    seed: int | None
    key: Key
    kind: str
    votes: int
    total: int
    text: str = ""

    @property
    def answer(self) -> str:
        return self.key[1] if len(self.key) > 1 else WORDS[self.key]

    @property
    def verdict(self) -> str:
        """Its kind, where the answer itself doesn't say it."""
        return self.kind if len(self.key) > 1 else ""


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
        """ "right", "wrong" or, without a verdict, "": declining is right exactly where no answer exists."""
        if answer.kind == "refusal":
            return "right" if self.unanswerable else ""
        return {"correct": "right", "no verdict": ""}.get(answer.kind, "wrong")

    @property
    def differs(self) -> bool:
        return len({answer.key for answer in self.answers}) > 1


Row = tuple[Cell, Run, dict[str, Votes]]  # a row, the run that speaks for it, and its votes by problem id


@dataclass(frozen=True)
class Chosen:
    """Of one benchmark: the questions to show, and on how many of all the rows' majority answers differ."""

    benchmark: str
    questions: list[Question]
    differing: int
    total: int


def choose(cells: Sequence[Cell], benchmarks: Iterable[str], text_limit: int, troubles: list[str]) -> list[Chosen]:
    """Questions of each benchmark that at least one row has samples for. Unreadable files go into `troubles`.

    Each row is spoken for by its first seed. text_limit: characters kept of a sampled text.
    """
    chosen = []
    for name in benchmarks:
        rows = []
        for cell in cells:
            run = next((run for run in cell.evaluated if name in run.benchmarks), None)
            votes = _read_votes(run, name, troubles) if run else {}
            if run and votes:
                rows.append((cell, run, votes))
        problems: dict[str, dict[str, Any]] = {}
        for _, run, _ in rows:
            lines = [] if problems else _lines(run, f"{name}.problems.jsonl", troubles)
            problems |= {str(problem.get("problem_id")): problem for problem in lines}
        asked = {id_ for _, _, votes in rows for id_ in votes}
        found = [_question(name, problem, rows) for id_, problem in problems.items() if id_ in asked]
        if found:
            shown = _with_texts(_select(found), name, rows, text_limit)
            differing = sum(question.differs for question in found)
            chosen.append(Chosen(name, shown, differing, len(found)))
    return chosen


def _lines(run: Run, file: str, troubles: list[str]) -> Iterator[dict[str, Any]]:
    own: list[str] = []
    yield from read_lines(run.directory / "evaluation" / file, own)
    troubles += [f"{run.place}/evaluation/{trouble}" for trouble in own]


def _read_votes(run: Run, benchmark: str, troubles: list[str]) -> dict[str, Votes]:
    """Votes by problem id, without the texts: a file of samples may be large."""
    votes: dict[str, Votes] = {}
    for row in _lines(run, f"{benchmark}.jsonl", troubles):
        tally, key, correct = votes.setdefault(str(row.get("problem_id")), Votes()), _key(row), row.get("correct")
        tally.counts[key] += 1
        if tally.correct.get(key) is None:
            tally.correct[key] = correct if isinstance(correct, bool) else None
    return votes


def _key(row: dict[str, Any]) -> Key:
    if row.get("refused") is True:
        return REFUSAL
    if row.get("extracted") is None:
        return NO_ANSWER
    full = str(row["extracted"])
    digest = hashlib.sha256(full.encode(errors="replace")).hexdigest() if len(full) > SMALL_TEXT else ""
    return "answer", visible(full, SMALL_TEXT), digest


def _question(benchmark: str, problem: dict[str, Any], rows: Sequence[Row]) -> Question:
    id_ = str(problem.get("problem_id"))
    found, gold = problem.get("misconceptions"), problem.get("answer")
    misconceptions = [visible(m, SMALL_TEXT) for m in found[:5]] if isinstance(found, list) else []
    lure = ": no answer exists" if gold is None else ": a misconception lures" if misconceptions else ""
    answers = []
    for cell, run, votes in rows:
        if id_ in votes:
            tally = votes[id_]
            key = tally.majority
            kind = _kind(key, tally.correct[key], misconceptions)
            answers.append(
                Answer(cell.label, cell.family, run.seed, key, kind, tally.counts[key], tally.counts.total())
            )
    return Question(
        category=benchmark_title(benchmark) + lure,
        id=id_,
        prompt=visible(problem.get("prompt", ""), PROMPT),
        gold=visible("" if gold is None else gold, SMALL_TEXT),
        unanswerable=gold is None,
        misconceptions=misconceptions,
        answers=answers,
        missing=[cell.label for cell, _, votes in rows if id_ not in votes],
    )


def _with_texts(questions: list[Question], benchmark: str, rows: Sequence[Row], limit: int) -> list[Question]:
    """The questions with one sampled text for each row: the first that gave the row's majority answer."""
    texts: dict[tuple[str, str], str] = {}
    for cell, run, _ in rows:
        keys = {q.id: answer.key for q in questions for answer in q.answers if answer.label == cell.label}
        for sample in _lines(run, f"{benchmark}.jsonl", []):
            id_ = str(sample.get("problem_id"))
            if keys.get(id_) == _key(sample) and (cell.label, id_) not in texts:
                texts[cell.label, id_] = visible(sample.get("text", ""), limit)
    return [replace(q, answers=[replace(a, text=texts.get((a.label, q.id), "")) for a in q.answers]) for q in questions]


def _kind(key: Key, correct: bool | None, misconceptions: list[str]) -> str:
    if len(key) == 1:
        return key[0]
    if key[1].casefold() in {m.casefold() for m in misconceptions}:
        return "misconception"
    return "no verdict" if correct is None else "correct" if correct else "wrong"


def _select(questions: list[Question]) -> list[Question]:
    """PER_CATEGORY questions of each category: most kinds of answer first, then complete ones with clear majorities."""
    categories: dict[str, list[Question]] = {}
    for question in questions:
        categories.setdefault(question.category, []).append(question)

    def informative(question: Question) -> tuple[Any, ...]:
        kinds = {answer.kind for answer in question.answers}
        clarity = sum(answer.votes / answer.total for answer in question.answers)
        return not question.differs, len(question.missing), -len(kinds), -round(clarity, 9), question.id

    return [q for name in sorted(categories) for q in sorted(categories[name], key=informative)[:PER_CATEGORY]]
