"""Questions of a user's own, from a file or a dataset of the hub, with columns and a grader that are named.

| grader | a reply is right if |
|---|---|
| `exact` | it is the answer, up to white space |
| `number` | the number that it ends with, or has in its last box, equals the answer (as for GSM8K) |
| `math` | its last box or "answer is" is equal to the answer by algebra (as for MATH) |
| `choice` | it names the letter that the answer is |
| `contains` | the answer's words occur in it, in order, as whole words, without case and punctuation |
| `regex` | the answer, a regular expression, matches somewhere in it; no verdict after a second |
| `none` | never known: a reward of one's own decides |
| `FILE.py:NAME` | this function of `completion`, `answer` and the row's columns returns True; None: no verdict |

Nor is there a verdict where such a function raises, hangs or ends its process. An answer of null means that refusing is
right. What counts as a refusal: `carerft.tasks.refusals`, and there what a function of one's own calls right.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NoReturn

import regex

from carerft.config.constraints import check_constraints
from carerft.config.functions import is_reference
from carerft.errors import ConfigError, DataError, UserCodeError
from carerft.grading.grader import grade_answers
from carerft.grading.mathematics import canonical, final_answer, normalise, number
from carerft.processes.functions import FunctionFault, OwnFunctions
from carerft.tasks import Grade, LazyProblems, Problem
from carerft.tasks.dataset import Templated
from carerft.tasks.files import Row
from carerft.tasks.gsm8k import extracted_number
from carerft.tasks.letters import named_letter
from carerft.tasks.refusals import refuses
from carerft.tasks.replies import LONGEST_VOTE, free_text, reply, text_vote, words
from carerft.tasks.tables import Rows, file_rows, hub_rows, is_separated
from carerft.tasks.templates import fill, load_template

log = logging.getLogger(__name__)

GRADERS = ("exact", "number", "math", "choice", "contains", "regex", "none")
REGEX_SECONDS = 1.0
MOST_FAULTS = 8
"""Completions one after another on which a function of the user's own may fail: then it is not the completions."""
ROLES = ("system", "user", "assistant")

Judgement = tuple[str | None, bool | None]
"""What votes, and whether it is right."""


@dataclass(kw_only=True, eq=False)
class QuestionsTask(Templated):
    """Questions with answers. Raises ConfigError."""

    # A file of JSON lines, a JSON list, CSV, TSV or Parquet.
    path: str | None = None
    # In its place: a dataset on the hub.
    dataset: str | None = None
    # Of a dataset on the hub: its configuration.
    subset: str | None = None
    # Of a dataset on the hub: its split.
    split: str = "train"
    # Of a dataset on the hub: a branch, a tag or a commit.
    revision: str | None = None
    # The column with the question: a text, or a conversation ([{role, content}, ...]) for the model's chat template.
    question: str = "question"
    # The column with the answer; null: there is none (grader=none).
    answer: str | None = "answer"
    # The column with a list of options, which are shown below the question with letters. For grader=choice.
    choices: str | None = None
    # How a reply is graded: exact, number, math, choice, contains, regex, none, or a function of your own,
    # mine.py:grade.
    grader: str | None = None
    # A function of your own that takes longer for a completion counts as hung: it is ended, and there is no verdict.
    timeout_s: float = field(default=60.0, metadata={"above": 0})
    # The name or the file of a template: plain is the question alone, qa puts "Question:" and "Answer:" around it.
    prompt: str = "plain"
    # A system message, for the model's chat template.
    system: str | None = None
    # Only rows with this in a column: level:3, or several conditions, [level:3,subject:algebra].
    where: Any = None
    # Only the first so many of these rows.
    limit: int | None = field(default=None, metadata={"least": 1})

    def __post_init__(self) -> None:
        check_constraints(self)
        if (self.path is None) == (self.dataset is None):
            both = "both" if self.path else "neither of them"
            raise ConfigError(
                f"questions come from a file (path) or from the hub (dataset), and {both} is given",
                "write task.path=mine.jsonl, or task.dataset=org/name task.split=train (of a benchmark: "
                "benchmark.questions.path=...)",
            )
        if self.grader is None or not (self.grader in GRADERS or is_reference(self.grader)):
            raise ConfigError(
                f"grader={'null' if self.grader is None else self.grader}: how is a reply graded?",
                f"write one of {', '.join(GRADERS)}, or FILE.py:FUNCTION, as in task.grader=number (of a benchmark: "
                "benchmark.questions.grader=number)",
            )
        if self.answer is None and self.grader in GRADERS[:-1]:
            raise ConfigError(
                f"answer=null with grader={self.grader}: there is nothing to compare a reply with",
                "name the column with the answer, or write grader=none and a reward of your own",
            )
        one = isinstance(self.where, str | int | float)
        conditions = [self.where] if one else self.where or []
        self._where = [str(condition).partition(":")[::2] for condition in conditions]
        if wrong := [condition for condition in conditions if ":" not in str(condition)]:
            raise ConfigError(f"where={wrong[0]}: no condition", "write COLUMN:VALUE, such as where=level:3")
        self.template = load_template("questions", self.prompt)
        self._function = OwnFunctions([self.grader], "grader") if is_reference(self.grader) else None
        self._in_a_row = 0  # completions on which it has failed
        self._rows: Rows | None = None

    @property
    def name(self) -> str:
        """The file's name without its ending, or the dataset's."""
        return Path(self.path).stem if self.path else str(self.dataset).rpartition("/")[2]

    def problems(self) -> LazyProblems:
        """In the order of the rows; <name>/17 is row 17 of the data, counted from 0. Raises DataError."""
        if self._rows is None:
            self._rows = Rows(self._source, self._checked())
        rows = self._rows
        return LazyProblems(len(rows), lambda position: self.problem(rows[position]))

    @property
    def _source(self) -> str:
        return str(Path(self.path).expanduser()) if self.path else f"{self.dataset} {self.split}"

    def _checked(self) -> Iterator[Row]:
        """The rows that are wanted. Each has become a problem once: whatever is wrong with one is raised here."""
        rows = (
            file_rows(self.path) if self.path else hub_rows(str(self.dataset), self.subset, self.split, self.revision)
        )
        taken = seen = 0
        for row in rows:
            seen += 1
            if all(_shown(present(row, column)) == value for column, value in self._where):
                self.problem(row)
                yield row
                taken += 1
                if taken == self.limit:
                    return
        if not taken and seen:
            raise DataError(f"{self._source}: of {seen:,} rows none has {self.where}", "correct task.where")
        if not taken:
            raise DataError(f"{self._source} is empty", "give it a row for each question")

    def problem(self, row: Row) -> Problem:
        """Raises DataError, which names file, line and column."""
        value = present(row, self.question)
        if isinstance(value, list):
            turns = _turns(row, self.question, value)
        else:
            turns = ({"role": "user", "content": "" if value is None else row.text(self.question)},)
        text = turns[-1]["content"]
        if not text.strip():
            raise DataError(f"{row.location}: the column {self.question!r} is empty", "leave the row out")
        options = self._options(row)
        shown = "\n".join(f"({letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False))
        prompt = fill(self.template.prompt, question=f"{text}\n{shown}" if shown else text)
        turns = (*turns[:-1], {"role": "user", "content": prompt})
        if self.system is not None:
            if turns[0]["role"] == "system":
                raise DataError(
                    f"{row.location}: the column {self.question!r} begins with a system message, and task.system gives "
                    "another",
                    "leave one of them out",
                )
            turns = ({"role": "system", "content": self.system}, *turns)
        messages = turns if isinstance(value, list) or self.system is not None else ()
        return Problem(f"{self.name}/{row.index}", prompt, self.gold(row), messages=messages, columns=row.fields)

    def _options(self, row: Row) -> list[str]:
        if self.choices is None:
            return []
        options = present(row, self.choices)
        if not isinstance(options, list) or not 2 <= len(options) <= 26 or not all(isinstance(o, str) for o in options):
            raise DataError(
                f"{row.location}: the column {self.choices!r} is no list of 2 to 26 texts but {options!r:.200}",
                'write ["the first", "the second"]',
            )
        return options

    def gold(self, row: Row) -> str | None:
        """The row's answer, in the form that the grader compares with. Raises DataError."""
        value = None if self.answer is None else present(row, self.answer)
        if self.answer is None or value is None or (value == "null" and is_separated(self.path)):
            return None
        if isinstance(value, list | dict | bool) or value != value:  # NaN: how some writers store what is missing
            raise DataError(
                f"{row.location}: the column {self.answer!r} is no text but {value!r:.200}",
                "write one answer, as a text or a number; a column of another kind may be read by a grader of your own "
                "(grader=mine.py:grade answer=null)",
            )
        text = row.text(self.answer).strip()
        wrong, remedy = "", "correct the row"
        if not text and self.grader != "none":
            wrong, remedy = "is empty", "write the answer, or null where refusing is right"
        elif self.grader == "number":
            text = text.rpartition("####")[2].strip()
            wrong = "" if number(normalise(text)) is not None else f"is no number but {text[:60]!r}"
        elif self.grader == "choice":
            options = self._options(row)
            letters = ascii_uppercase[: len(options) or 26]
            if isinstance(value, int) and 0 <= value < len(options):
                text = letters[value]
            elif text in options:
                text = letters[options.index(text)]
            text = text.strip("() .").upper()
            if len(text) != 1 or text not in letters:
                wrong, remedy = (
                    f"is no letter but {row.text(self.answer)[:60]!r}",
                    f"write one of {letters[0]} to {letters[-1]}",
                )
        elif self.grader == "contains" and not words(text):
            wrong = f"has no words: {text[:60]!r}"
        elif self.grader == "regex":
            try:
                regex.compile(text)
            except regex.error as error:
                wrong = f"is no regular expression ({error})"
        if wrong:
            raise DataError(f"{row.location}: the column {self.answer!r} {wrong}", remedy)
        return text

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """As the table at the top of this file says. A right reply is no refusal, whatever its words, unless its row's
        answer is null: what a function of the user's own calls right there is one.

        Raises UserCodeError.
        """
        replies = [reply(text, self.until) for text in texts]
        if self.grader == "math":
            verdicts = grade_answers(
                [(p.answer or "", final_answer(text)) for p, text in zip(problems, replies, strict=True)]
            )
            judgements: list[Judgement] = [(verdict.vote, verdict.correct) for verdict in verdicts]
        elif self._function is not None:
            judgements = self._by_function(self._function, problems, replies)
        else:
            judgements = [self._judged(problem, text) for problem, text in zip(problems, replies, strict=True)]
        return [
            self._grade(problem, text, *judgement)
            for problem, text, judgement in zip(problems, replies, judgements, strict=True)
        ]

    def _grade(self, problem: Problem, text: str, vote: str | None, correct: bool | None) -> Grade:
        refused = correct is not True and refuses(text.strip())
        if self.answer is None:  # no row says whether it has an answer
            return Grade(vote, correct, refused_in_any_words=refused)
        if correct and problem.answer is None and self._function is not None:
            return Grade(None, True, refused=True, refused_in_any_words=refuses(text.strip()))
        if refused:
            return Grade(None, problem.answer is None, refused=True, refused_in_any_words=True)
        return Grade(vote, correct if problem.answer is not None else False, refused_in_any_words=False)

    def _judged(self, problem: Problem, text: str) -> Judgement:
        """By a grader that compares texts."""
        answer, free = problem.answer or "", free_text(text, None)
        vote = text_vote(free)
        match self.grader:
            case "exact":
                given = " ".join(free.split())
                return given[:LONGEST_VOTE] or None, given == " ".join(answer.split())
            case "number":
                given = extracted_number(text)
                return given, given == canonical(answer)
            case "choice":
                options = len(problem.columns.get(self.choices or "", ())) or max(4, ord(answer or "A") - ord("A") + 1)
                given = named_letter(free, options)
                return given, given == answer
            case "contains":
                right = bool(answer) and f" {words(answer)} " in f" {words(free)} "
                return answer if right else vote, right
            case "regex":
                try:
                    right = bool(answer) and regex.search(answer, free, timeout=REGEX_SECONDS) is not None
                except TimeoutError:
                    return vote, None
                return answer if right else vote, right
        return vote, None

    def _by_function(
        self, function: OwnFunctions, problems: Sequence[Problem], replies: Sequence[str]
    ) -> list[Judgement]:
        """By a function of the user's own. Where it fails there is no verdict, of which a warning says how often. What
        it has failed on is not tried again: a group's completions can be equal, and each would hang."""
        judgements: list[Judgement] = []
        failed: dict[tuple[str, str], str] = {}
        for problem, text in zip(problems, replies, strict=True):
            given = {**problem.columns, "completion": text, "answer": problem.answer}
            where, verdict = f"on problem {problem.id} and the completion {text[:200]!r}", None
            if (problem.id, text) not in failed:
                try:
                    verdict, _ = function.call(0, given, self.timeout_s)
                    self._in_a_row = 0
                except FunctionFault as fault:
                    failed[problem.id, text] = f"{fault}, {where}"
                    self._in_a_row += 1
                if self._in_a_row == MOST_FAULTS:
                    self._in_a_row = 0
                    self._stop(f"failed on {MOST_FAULTS} completions one after another: {failed[problem.id, text]}")
            if verdict not in (None, True, False):
                self._stop(f"returned {verdict!r:.100}, which is neither True nor False nor None, {where}")
            judgements.append((text_vote(free_text(text, None)), None if verdict is None else bool(verdict)))
        if failed:
            count = sum((problem.id, text) in failed for problem, text in zip(problems, replies, strict=True))
            log.warning(
                "grader=%s failed on %d of %d completions, which have no verdict. The first: %s",
                self.grader, count, len(replies), next(iter(failed.values())),
            )  # fmt: skip
        return judgements

    def _stop(self, fault: str) -> NoReturn:
        raise UserCodeError(f"grader={self.grader} {fault}", "correct the function; the same command goes on from here")


def present(row: Row, column: str) -> Any:
    """A column's value. Raises DataError, which lists the columns that there are."""
    if column not in row.fields:
        present = ", ".join(repr(name) for name in list(row.fields)[:20]) or "none"
        raise DataError(
            f"{row.location}: there is no column {column!r}; there are {present}",
            "name one of them: task.question=..., task.answer=..., task.choices=..., task.where=... (of a benchmark: "
            "benchmark.NAME.question=...; carerft grade: id=..., gold=..., text=...)",
        )
    return row.fields[column]


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _turns(row: Row, column: str, value: list[Any]) -> tuple[dict[str, str], ...]:
    """The turns of a conversation that waits for the model's. Raises DataError."""
    right = all(
        isinstance(turn, dict) and turn.get("role") in ROLES and isinstance(turn.get("content"), str) for turn in value
    )
    if not right or not value:
        raise DataError(
            f"{row.location}: the column {column!r} is no conversation but {value!r:.200}",
            'write a text, or [{"role": "user", "content": "..."}], with the roles system, user and assistant',
        )
    if value[-1]["role"] != "user":
        raise DataError(
            f"{row.location}: the conversation in {column!r} ends with a turn of the {value[-1]['role']}",
            "let it end with the user's turn, which the model is to answer",
        )
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in value)
