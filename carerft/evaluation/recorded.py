"""Answers that another program wrote: lm-evaluation-harness (`--log_samples`), a batch of OpenAI's API, or plain lines.

A line belongs to the problem whose id it names or whose question it holds. A file without ids must hold the question
itself, as lm-evaluation-harness's `doc` does.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from carerft.errors import DataError
from carerft.evaluation.answers import Answer, of_choice
from carerft.rollout import Sampling
from carerft.tasks import Problem
from carerft.tasks.files import Row, read_rows
from carerft.tasks.tables import is_separated
from carerft.text import number

log = logging.getLogger(__name__)

IDS = ("problem_id", "id", "custom_id")
QUESTIONS = ("question", "problem", "prompt", "input", "query")
TEXTS = ("text", "completion", "response", "output", "generated_text")
LISTS = ("completions", "responses", "outputs", "texts", "generations")
EXAMPLE = '{"id": "...", "text": "..."} or {"question": "...", "completions": ["...", "..."]}'


@dataclass(frozen=True)
class Recorded:
    """The answers of a file to a benchmark's questions. questions: those that it answers. k: answers to each."""

    questions: Sequence[Problem]
    answers_of: dict[str, list[Answer]] = field(repr=False)
    k: int

    @staticmethod
    def read(path: Path, problems: Sequence[Problem]) -> "Recorded":
        """Read and match the file. Raises DataError: it is malformed, no line belongs to a problem, or problems differ
        in their number of answers."""
        if is_separated(str(path)):
            raise DataError(f"{path} is a table, and samples are JSON lines", f"write {EXAMPLE}")
        rows = _one_filter(read_rows(path))
        by_id = {problem.id: problem for problem in problems}
        by_text = _by_text(problems)
        found: dict[str, list[Answer]] = {}
        strangers: list[Row] = []
        for row in rows:
            named = [str(row.fields[name]) for name in IDS if row.fields.get(name) is not None]
            problem = next((by_id[name] for name in named if name in by_id), None)
            problem = problem or next((by_text[text] for text in map(_bare, _texts(row)) if text in by_text), None)
            answers = _answers(row)
            if problem:
                found.setdefault(problem.id, []).extend(answers)
            else:
                strangers.append(row)
        if not found:
            raise DataError(
                f"{rows[0].location}: no line of the file belongs to a question of this benchmark "
                f"(the first question is {problems[0].id}: {problems[0].prompt[:80]!r})",
                f"write {EXAMPLE}, with the benchmark's ids or questions; if the benchmark has a limit, leave it out "
                "(it takes other questions than the file's, and those without an answer are left out anyway)",
            )
        counts = {name: len(answers) for name, answers in found.items()}
        most, fewest = max(counts, key=lambda n: counts[n]), min(counts, key=lambda n: counts[n])
        if counts[most] != counts[fewest]:
            raise DataError(
                f"{path}: {most} has {counts[most]} answers and {fewest} has {counts[fewest]}, and confidences by "
                "voting need equally many",
                "give every question the same number of samples",
            )
        answered = [problem for problem in problems if problem.id in found]
        if strangers:
            where = strangers[0].location
            log.warning("%d of %d lines belong to no question of this benchmark: %s", len(strangers), len(rows), where)
        if len(answered) < len(problems):
            missing = next(problem.id for problem in problems if problem.id not in found)
            log.warning(
                "%d of %d questions have answers, and those alone are scored; %s has none",
                len(answered), len(problems), missing,
            )  # fmt: skip
        _warn_of_votes(path, rows, found)
        return Recorded(answered, found, counts[most])

    def answers(self, problems: Sequence[Problem], k: int, sampling: Sampling, seed: int) -> list[list[Answer]]:
        """As of `Server`: the k answers that the file holds of each problem, however they were sampled."""
        return [self.answers_of[problem.id] for problem in problems]


def _one_filter(rows: list[Row]) -> list[Row]:
    """Of lm-evaluation-harness, which repeats every answer for each of its filters, the lines of one filter."""
    filters = [row.fields.get("filter") for row in rows if "resps" in row.fields]
    return [row for row in rows if "resps" not in row.fields or row.fields.get("filter") == filters[0]]


def _warn_of_votes(path: Path, rows: Sequence[Row], found: dict[str, list[Answer]]) -> None:
    """Say what makes confidences by voting meaningless: votes that cannot differ, or that count twice."""
    k = len(next(iter(found.values())))
    if k == 1:
        log.warning("%s has one answer to each question: by voting every confidence is 1", path)
    elif all(len({answer.text for answer in answers}) == 1 for answers in found.values()):
        log.warning(
            "%s: the %d answers to each question are the same, as without sampling, and then no vote shows a "
            "confidence. lm-evaluation-harness needs a temperature beside do_sample: true", path, k,
        )  # fmt: skip
    sampled = [json.dumps(row.fields, sort_keys=True) for row in rows if "resps" in row.fields]
    if sampled and 2 * len(set(sampled)) <= len(sampled):
        log.warning("%s holds every line twice or more, and every answer counts as often", path)


def _by_text(problems: Sequence[Problem]) -> dict[str, Problem]:
    """Problems by their question or prompt. A text that several share names none of them."""
    found: dict[str, Problem | None] = {}
    for problem in problems:
        columns = [problem.columns.get(name) for name in QUESTIONS]
        for text in {_bare(t) for t in (problem.prompt, problem.untemplated, *columns) if isinstance(t, str) and t}:
            found[text] = None if text in found else problem
    return {text: problem for text, problem in found.items() if problem is not None}


def _bare(text: str) -> str:
    return " ".join(text.split())


def _texts(row: Row) -> list[str]:
    """What may be the question of a line: its own fields, those of lm-evaluation-harness's doc and prompt, and the last
    turn of a conversation."""
    doc, arguments, messages = (row.fields.get(name) for name in ("doc", "arguments", "messages"))
    found = [place.get(name) for place in (row.fields, doc) if isinstance(place, dict) for name in QUESTIONS]
    if isinstance(arguments, dict):
        found += [part.get("arg_0") for part in arguments.values() if isinstance(part, dict)]
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        found.append(messages[-1].get("content"))
    return [text for text in found if isinstance(text, str)]


def _answers(row: Row) -> list[Answer]:
    """The answers that a line holds, at least one. Raises DataError."""
    fields = row.fields
    if "resps" in fields:
        if not isinstance(fields["resps"], list) or not fields["resps"] or [] in fields["resps"]:
            raise DataError(
                f"{row.location}: its resps hold no answer",
                "write the samples again with --log_samples, or drop the line",
            )
        texts = [text for part in fields["resps"] for text in (part if isinstance(part, list) else [part])]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"{row.location}: its resps are likelihoods of given choices, and no text that the model wrote",
                "give samples of a generating task (output_type: generate_until)",
            )
        return [Answer(text) for text in texts]
    if fields.get("error"):
        raise DataError(f"{row.location}: the request failed: {str(fields['error'])[:200]}", "ask it again")
    response = fields.get("response")
    body = response.get("body") if isinstance(response, dict) else fields
    choices = body.get("choices") if isinstance(body, dict) else None
    choices = choices if isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices) else []
    # Of an API; `choices` beside a text may also be a question's options.
    if choices and all("finish_reason" in choice or isinstance(choice.get("message"), dict) for choice in choices):
        return [of_choice(choice) for choice in choices]
    for name in LISTS:
        if isinstance(fields.get(name), list) and fields[name] and all(isinstance(t, str) for t in fields[name]):
            return [Answer(text) for text in fields[name]]
    for name in TEXTS:
        if isinstance(fields.get(name), str):
            cut, tokens, likelihood = (fields.get(key) for key in ("truncated", "tokens", "log_probability"))
            known = {"truncated": isinstance(cut, bool)}
            known |= {"tokens": number(tokens) is not None, "log_probability": number(likelihood) is not None}
            if wrong := [key for key, right in known.items() if not right and fields.get(key) is not None]:
                raise DataError(
                    f"{row.location}: {wrong[0]} is {json.dumps(fields[wrong[0]])[:80]}",
                    "truncated is true or false, tokens their number, log_probability a number, of all of them: "
                    f"write {wrong[0]} so, or leave it out",
                )
            return [Answer(fields[name], None if cut is None else not cut, likelihood, tokens)]
    if choices:
        return [of_choice(choice) for choice in choices]
    raise DataError(
        f"{row.location}: no field holds what a model wrote (its fields: {', '.join(list(fields)[:8])})",
        f"write {EXAMPLE}",
    )
