"""What a tracker shows of an evaluation or of a report: numbers, tables and figures, read from the files on disk.

Whatever a model wrote is hostile input: it leaves here cut, with hidden characters spelled out, and as plain text.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

from carerft.runs.reading import Run, load_run, read_lines
from carerft.text import number, visible

QUESTIONS, SAMPLES = 20, 4  # of each benchmark: its first questions, and the first samples of each
LONG_TEXT, SHORT_TEXT = 1000, 120  # characters shown of a prompt or a sample, and of an answer
COLUMNS = (
    *("question", "prompt", "answer", "sample", "text", "extracted", "correct", "refused", "truncated"),
    *("log_probability", "tokens"),
)
Value = str | float | bool | None


class Table(NamedTuple):
    """The columns' names, and rows that are as long."""

    columns: list[str]
    rows: list[list[Value]]


@dataclass(frozen=True)
class EvaluationOutcome:
    """The finished evaluation of a run directory: `evaluation.json` and `evaluation/` are written."""

    directory: Path

    def numbers(self) -> dict[str, float]:
        """`benchmark/metric` with the ends of its interval as `.._low` and `.._high`; `benchmark/n` and `/k`.

        A metric that the evaluation leaves undefined is absent.
        """
        numbers: dict[str, float | None] = {}
        for name, result in self._run.benchmarks.items():
            numbers |= {f"{name}/n": result.n, f"{name}/k": result.k}
            for metric, interval in result.metrics.items():
                key = f"{name}/{metric}"
                numbers |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
        return {key: value for key, value in numbers.items() if value is not None}

    def tables(self) -> dict[str, Table]:
        """`samples/benchmark`: one row of COLUMNS per sample, the first SAMPLES of the first QUESTIONS questions."""
        answers = {name: list(_answers(self.directory / "evaluation", name)) for name in self._run.benchmarks}
        return {f"samples/{name}": Table(list(COLUMNS), rows) for name, rows in answers.items()}

    def figures(self) -> dict[str, bytes]:
        """`reliability/benchmark`: a reliability diagram as PNG; benchmarks without bins have none."""
        from carerft.report.figures.reliability import reliability
        from carerft.report.figures.style import make_looks, png, styled
        from carerft.report.rows import make_rows

        rows = make_rows([self._run])
        looks = make_looks(rows)
        with styled():
            drawn = {name: reliability(rows, name, looks) for name in self._run.benchmarks}
            return {f"reliability/{name}": png(figure) for name, figure in drawn.items() if figure}

    @cached_property
    def _run(self) -> Run:
        # The evaluation is finished, although its run is marked as done only after the trackers have seen it.
        return replace(load_run(self.directory, self.directory), status="done")


@dataclass(frozen=True)
class ReportOutcome:
    """A report, as `carerft report` wrote it: every number in its table of rows, benchmarks and metrics."""

    directory: Path

    def numbers(self) -> dict[str, float]:
        return {}

    def tables(self) -> dict[str, Table]:
        with open(self.directory / "table.csv", encoding="utf-8", newline="") as lines:
            header, *rows = csv.reader(lines)
        numeric = [name in ("value", "low", "high") for name in header]
        values = [[(float(v) if v else None) if n else v for v, n in zip(row, numeric, strict=True)] for row in rows]
        return {"report/table": Table(header, values)}

    def figures(self) -> dict[str, bytes]:
        return {f"report/{path.stem}": path.read_bytes() for path in sorted(self.directory.glob("figures/*.png"))}


SAMPLES_SHOWN = ("question", "prompt", "sample", "text", "extracted", "correct", "reward", "advantage", "truncated")


def samples_table(file: Path) -> Table:
    """`samples/step_<n>.jsonl` of a run: one row for each completion."""
    rows = []
    for record in read_lines(file, []):
        values = record | {"question": record.get("problem_id"), "reward": (record.get("rewards") or {}).get("total")}
        rows.append([_cell(values, column) for column in SAMPLES_SHOWN])
    return Table(list(SAMPLES_SHOWN), rows)


def _answers(folder: Path, benchmark: str) -> Iterator[list[Value]]:
    first = islice(read_lines(folder / f"{benchmark}.problems.jsonl", []), QUESTIONS)
    problems = {str(problem.get("problem_id")): problem for problem in first}
    samples = read_lines(folder / f"{benchmark}.jsonl", [])  # in the order of the problems
    for sample in takewhile(lambda sample: str(sample.get("problem_id")) in problems, samples):
        index, problem = number(sample.get("sample")), problems[str(sample.get("problem_id"))]
        if index is not None and index < SAMPLES:
            values = sample | {"question": sample.get("problem_id")}
            values |= {"prompt": problem.get("prompt", ""), "answer": problem.get("answer")}
            yield [int(index) if column == "sample" else _cell(values, column) for column in COLUMNS]


def _cell(values: Mapping[str, Any], column: str) -> Value:
    """A value as it is shown; None in place of what is not of its column's kind."""
    value = values.get(column)
    if column in ("prompt", "text"):
        return visible(values.get(column, ""), LONG_TEXT)
    if column in ("question", "answer", "extracted"):
        return None if value is None else visible(value, SHORT_TEXT)
    if column in ("correct", "refused", "truncated"):
        return value if isinstance(value, bool) else None
    return number(value)
