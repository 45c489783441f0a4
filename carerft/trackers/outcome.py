"""What a tracker shows of an evaluation: its numbers, some of its answers, and its reliability diagrams.

Read from the run directory, as a report is, so that a tracker shows what is written there and nothing else. Whatever
a model wrote is hostile input: it leaves here cut, with hidden characters spelled out, and as plain text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # drawing takes a second to import, which a run without trackers need not spend
    from carerft.report.runs import Run

QUESTIONS, SAMPLES = 20, 4  # of each benchmark: its first questions, and the first samples of each
LONG_TEXT, SHORT_TEXT = 1000, 120  # characters kept of a prompt or a sample, and of an answer
COLUMNS = (
    *("question", "prompt", "answer", "sample", "text", "extracted", "correct", "refused", "truncated"),
    *("log_probability", "tokens"),
)
Row = list[str | float | bool | None]


@dataclass(frozen=True)
class Outcome:
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

    def answers(self) -> dict[str, list[Row]]:
        """By benchmark, one row of COLUMNS per sample: the first SAMPLES of the first QUESTIONS questions."""
        return {name: list(_answers(self.directory / "evaluation", name)) for name in self._run().benchmarks}

    def figures(self) -> dict[str, bytes]:
        """By benchmark, a reliability diagram as a PNG image; benchmarks without bins have none."""
        from carerft.report.cells import make_cells
        from carerft.report.reliability import Diagram, largest_share, reliability
        from carerft.report.style import looks, png, styled
        from carerft.report.text import greek

        run = self._run()
        (cell,) = make_cells([run])
        drawn = {}
        with styled():
            for name, benchmark in run.benchmarks.items():
                if benchmark.reliability is not None:
                    colour, ece = looks([cell])[cell.label].colour, benchmark.metrics.get("ece")
                    panel = Diagram(greek(cell.label), colour, benchmark.reliability, ece)
                    drawn[name] = png(reliability([panel], largest_share([panel])))
        return drawn

    def _run(self) -> "Run":
        from carerft.report.runs import load_run

        return load_run(self.directory, self.directory)


def _answers(place: Path, benchmark: str) -> Iterator[Row]:
    from carerft.report.runs import read_lines
    from carerft.report.text import number, visible

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
