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
    files = sorted({path.name for place in places.values() for path in place.glob("*.problems.jsonl")})
    for name in (file.removesuffix(".problems.jsonl") for file in files):
        asked = islice(read_lines(places[max(places)] / f"{name}.problems.jsonl", []), SEARCHED)
        problems = {str(record.get("problem_id")): record for record in asked}
        samples = {step: place / f"{name}.jsonl" for step, place in places.items()}
        yield from _chosen(label, benchmark_title(name), problems, samples, limit)
    if not files:
        samples = {int(file.stem[5:]): file for file in run.glob("samples/step_*.jsonl") if file.stem[5:].isdigit()}
        yield from _chosen(label, "training", None, dict(sorted(samples.items())), limit)


def _chosen(
    label: str, where: str, problems: dict[Any, dict[str, Any]] | None, samples: dict[int, Path], limit: int
) -> Iterator[Learned]:
    """The questions that changed most: their verdict first, then their words; in the order of the data.

    problems: by id; None of training, whose samples say what was asked. samples: the file of each step.
    """
    answers: dict[Any, dict[int, dict[str, Any]]] = {}
    for step, file in samples.items():
        for record in read_lines(file, []):
            problem = str(record.get("problem_id"))
            if record.get("sample") == 0 and (problems is None or problem in problems):
                answers.setdefault(problem, {})[step] = record
    several = [(problem, sorted(steps.items())) for problem, steps in answers.items() if len(steps) > 1]

    def changes(entry: tuple[Any, list[tuple[int, dict[str, Any]]]]) -> tuple[bool, bool]:
        records = [record for _, record in entry[1]]
        return records[0].get("correct") == records[-1].get("correct"), len({r.get("text") for r in records}) == 1

    for problem, steps in sorted(several, key=changes)[:QUESTIONS]:
        if len(steps) > MOMENTS:  # the first, the last, and evenly between
            steps = [steps[round(i * (len(steps) - 1) / (MOMENTS - 1))] for i in range(MOMENTS)]
        verdicts = {True: "right", False: "wrong"}
        moments = [
            Moment(step, visible(record.get("text", ""), limit), verdicts.get(record.get("correct"), ""))  # type: ignore[arg-type]
            for step, record in steps
        ]
        asked = steps[-1][1] if problems is None else problems[problem]
        gold = "" if asked.get("answer") is None else visible(asked["answer"], 120)
        yield Learned(label, where, visible(asked.get("prompt", ""), PROMPT), gold, moments)
