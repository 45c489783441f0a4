"""While it learned: what a policy answered to the same question at several steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from carerft.report.columns import benchmark_title
from carerft.report.rows import Row
from carerft.runs.reading import read_lines, validations
from carerft.text import visible

QUESTIONS, MOMENTS, SEARCHED, MOST = 1, 5, 200, 12
"""Questions shown of each row and benchmark, steps of each, questions looked through, and questions shown in all."""
PROMPT = 700


@dataclass(frozen=True)
class Moment:
    """An answer after so many steps. verdict: "right", "wrong" or ""."""

    step: int
    text: str
    verdict: str


@dataclass(frozen=True)
class Learned:
    """One question, and what one row answered over the steps."""

    label: str
    where: str
    prompt: str
    gold: str
    moments: list[Moment]


def learned(rows: Sequence[Row], limit: int) -> list[Learned]:
    """Of each row's first run: questions whose first sample changed its verdict or else its words, from the
    measurements while it learned, or training's own samples where there are none. limit: characters of an answer."""
    found = (entry for row in rows for run in row.runs[:1] for entry in _of_run(row.label, run.directory, limit))
    return list(islice(found, MOST))


def _of_run(label: str, run: Path, limit: int) -> Iterator[Learned]:
    places = {step: path.parent for step, path in validations(run).items()}
    names = sorted({path.name for place in places.values() for path in place.glob("*.problems.jsonl")})
    for name in names:
        problems = {
            record.get("problem_id"): record for record in islice(read_lines(_last(places) / name, []), SEARCHED)
        }
        answers: dict[Any, dict[int, dict[str, Any]]] = {}
        for step, place in places.items():
            for record in read_lines(place / name.replace(".problems", ""), []):
                if record.get("sample") == 0 and record.get("problem_id") in problems:
                    answers.setdefault(record["problem_id"], {})[step] = record
        yield from _chosen(label, benchmark_title(name.partition(".")[0]), problems, answers, limit)
    if not names:
        answers, problems = {}, {}
        for file in run.glob("samples/step_*.jsonl"):
            for record in read_lines(file, []):
                if record.get("sample") == 0 and file.stem[5:].isdigit():
                    problems[record.get("problem_id")] = record
                    answers.setdefault(record.get("problem_id"), {})[int(file.stem[5:])] = record
        yield from _chosen(label, "training", problems, answers, limit)


def _last(places: dict[int, Path]) -> Path:
    return places[max(places)]


def _chosen(
    label: str,
    where: str,
    problems: dict[Any, dict[str, Any]],
    answers: dict[Any, dict[int, dict[str, Any]]],
    limit: int,
) -> Iterator[Learned]:
    """The questions that changed most: their verdict first, then their words; in the order of the data."""
    several = [(problem, dict(sorted(steps.items()))) for problem, steps in answers.items() if len(steps) > 1]

    def changes(entry: tuple[Any, dict[int, dict[str, Any]]]) -> tuple[bool, bool]:
        records = list(entry[1].values())
        return records[0].get("correct") == records[-1].get("correct"), len({r.get("text") for r in records}) == 1

    for problem, steps in sorted(several, key=changes)[:QUESTIONS]:
        shown = sorted(steps)
        if len(shown) > MOMENTS:  # the first, the last, and evenly between
            shown = [shown[round(i * (len(shown) - 1) / (MOMENTS - 1))] for i in range(MOMENTS)]
        verdicts = {True: "right", False: "wrong"}
        moments = [
            Moment(step, visible(steps[step].get("text", ""), limit), verdicts.get(steps[step].get("correct"), ""))  # type: ignore[arg-type]
            for step in shown
        ]
        gold = problems[problem].get("answer")
        yield Learned(
            label,
            where,
            visible(problems[problem].get("prompt", ""), PROMPT),
            "" if gold is None else visible(gold, 120),
            moments,
        )
