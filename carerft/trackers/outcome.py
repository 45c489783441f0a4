"""What a tracker shows of an evaluation, or of a report: numbers, tables and figures.

Read from the files that were written, so that a tracker shows what is in them and nothing else. Whatever a model wrote
is hostile input: it leaves here cut, with hidden characters spelled out, and as plain text.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # drawing takes a second to import, which a run without trackers need not spend
    from carerft.runs.reading import Run

QUESTIONS, SAMPLES = 20, 4  # of each benchmark: its first questions, and the first samples of each
LONG_TEXT, SHORT_TEXT = 1000, 120  # characters kept of a prompt or a sample, and of an answer
COLUMNS = (
    *("question", "prompt", "answer", "sample", "text", "extracted", "correct", "refused", "truncated"),
    *("log_probability", "tokens"),
)
Value = str | float | bool | None


class Outcome(Protocol):
    """What there is to show. The names of tables and figures are of the form `group/name`."""

    def numbers(self) -> dict[str, float]: ...

    def tables(self) -> dict[str, "Table"]: ...

    def figures(self) -> dict[str, bytes]:
        """PNG images."""
        ...


@dataclass(frozen=True)
class Table:
    """columns: their names. rows: each as long as `columns`."""

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
        found: dict[str, float | None] = {}
        for name, benchmark in self._run().benchmarks.items():
            found |= {f"{name}/n": benchmark.n, f"{name}/k": benchmark.k}
            for metric, interval in benchmark.metrics.items():
                key = f"{name}/{metric}"
                found |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
        return {key: value for key, value in found.items() if value is not None}

    def tables(self) -> dict[str, Table]:
        """`samples/benchmark`: one row of COLUMNS per sample, the first SAMPLES of the first QUESTIONS questions."""
        place = self.directory / "evaluation"
        return {f"samples/{name}": Table(list(COLUMNS), list(_answers(place, name))) for name in self._run().benchmarks}

    def figures(self) -> dict[str, bytes]:
        """`reliability/benchmark`: a reliability diagram; benchmarks without bins have none."""
        from carerft.report.cells import make_cells, scores
        from carerft.report.reliability import diagrams, largest_share, reliability
        from carerft.report.style import looks, png, styled

        run = self._run()
        cells = make_cells([run])
        found, look = scores(cells, run.level), looks(cells)
        with styled():
            return {
                f"reliability/{name}": png(reliability(panels, largest_share(panels)))
                for name in run.benchmarks
                if (panels := diagrams(cells, found, name, look))
            }

    def _run(self) -> "Run":
        from carerft.runs.reading import load_run

        # The evaluation is finished although its run isn't marked as done before trackers have seen it.
        return replace(load_run(self.directory, self.directory), status="done")


@dataclass(frozen=True)
class ReportOutcome:
    """A report, as `carerft report` wrote it: every number in its table of rows, benchmarks and metrics."""

    directory: Path

    def numbers(self) -> dict[str, float]:
        return {}

    def tables(self) -> dict[str, Table]:
        header, *rows = csv.reader(io.StringIO((self.directory / "table.csv").read_text(encoding="utf-8")))
        numeric = [name in ("value", "low", "high") for name in header]
        return {
            "report/table": Table(
                header,
                [[(float(v) if v else None) if n else v for v, n in zip(row, numeric, strict=True)] for row in rows],
            )
        }

    def figures(self) -> dict[str, bytes]:
        return {f"report/{path.stem}": path.read_bytes() for path in sorted(self.directory.glob("figures/*.png"))}


def _answers(place: Path, benchmark: str) -> Iterator[list[Value]]:
    from carerft.runs.reading import read_lines
    from carerft.text import number, visible

    def short(value: Any) -> str | None:
        return None if value is None else visible(value, SHORT_TEXT)

    def flag(value: Any) -> bool | None:
        return value if isinstance(value, bool) else None

    first = islice(read_lines(place / f"{benchmark}.problems.jsonl", []), QUESTIONS)
    problems = {problem.get("problem_id"): problem for problem in first}
    samples = read_lines(place / f"{benchmark}.jsonl", [])
    for sample in takewhile(lambda sample: sample.get("problem_id") in problems, samples):  # as ordered as the problems
        index, problem = number(sample.get("sample")), problems[sample.get("problem_id")]
        if index is None or index >= SAMPLES:
            continue
        yield [
            short(sample["problem_id"]),
            visible(problem.get("prompt", ""), LONG_TEXT),
            short(problem.get("answer")),
            int(index),
            visible(sample.get("text", ""), LONG_TEXT),
            short(sample.get("extracted")),
            *(flag(sample.get(key)) for key in ("correct", "refused", "truncated")),
            *(number(sample.get(key)) for key in ("log_probability", "tokens")),
        ]
