"""The HTML page: one file, nothing loaded from anywhere, readable without JavaScript.

The template escapes everything by default; only this package's own style sheet, script and figures are marked safe. A
content security policy allows that one script and no request, whatever a model wrote.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from carerft.metrics.intervals import Interval
from carerft.report.cells import Cell, Scores
from carerft.report.columns import (
    METRICS,
    MainTable,
    benchmark_title,
    floors,
    metric_title,
    refusal_floors,
    samples_text,
)
from carerft.report.drawings import MOST_DIAGRAMS, Drawing
from carerft.report.experiment import Findings, meaning
from carerft.report.grids import change_text
from carerft.report.notes import few_verdicts
from carerft.report.questions import Chosen
from carerft.report.style import Look
from carerft.report.summary import caveat, findings, headline, strength_note
from carerft.report.tables import interval_text, seeds_text
from carerft.runs.reading import Run
from carerft.text import decimal, duration, greek, line, visible

HERE = Path(__file__).parent
GLYPHS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "h": "⬢"}
ALARMS = {"unparsable": 0.05, "truncated": 0.05, "no_verdict": 0.01}  # shares above which a reader is warned


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    runs: Sequence[Run]
    main: MainTable
    scores: Scores
    benchmarks: Sequence[str]
    level: float
    looks: Mapping[str, Look]
    drawings: Sequence[Drawing]
    chosen: Sequence[Chosen]
    troubles: Sequence[str]
    findings: Findings | None = None


def render(report: Report) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "decimal": decimal, "greek": greek, "duration": duration, "line": line, "visible": visible,
        "benchmark": benchmark_title, "metric": metric_title, "interval": interval_text, "faint": faint_intervals,
        "figure": lambda label: _marked(label, report.looks), "change": change_text,
    }  # fmt: skip
    script = (HERE / "page.js").read_text(encoding="utf-8")
    cells = report.main.cells
    return environment.get_template("page.html.j2").render(
        report=report,
        cells=cells,
        title=_title(report),
        facts=_facts(report),
        software=software,
        # An experiment's claims are judged by paired differences, which know more than these sentences.
        findings=[] if report.findings else findings(report.main),
        asked=report.findings,
        meaning=meaning(report.findings) if report.findings else "",
        caveat=caveat(cells),
        strength=strength_note(cells),
        groups=[(name, len(list(columns))) for name, columns in groupby(report.main.columns, key=lambda c: c.group)],
        starts=_group_starts(report.main),
        drawings={name: [(group, [Markup(d.svg) for d in members]) for group, members in groupby(
            [d for d in report.drawings if d.section == name], key=lambda d: d.group)]
            for name in ("experiment", "tradeoff", "reliability", "curves")},
        diagrams=MOST_DIAGRAMS // max(1, len(report.benchmarks)),
        floors=floors(report.scores, report.main.columns),
        refusal_floors=refusal_floors(report.scores),
        one_seed=all(len(cell.evaluated) < 2 for cell in cells if cell.family != "base"),
        full=_full_tables(report),
        directions={name: direction for name, (_, direction) in METRICS.items()},
        alarms=_alarms(report),
        missing=[(run, label) for run, label in _labelled(report) if not run.counts],
        provenance=_labelled(report),
        environments=_environments(report.runs),
        seeds_text=seeds_text,
        run_samples=lambda run: "/".join(sorted({str(b.k) for b in run.benchmarks.values() if b.k is not None})) or "–",
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def _title(report: Report) -> str:
    if not report.main.cells:
        return "No readable runs"
    name = f"{report.findings.name}: " if report.findings else ""
    return name + headline(report.main.cells)


def _marked(label: str, looks: Mapping[str, Look]) -> Markup:
    """A row's label behind its mark, in the colour and shape that it has in the figures. The mark keeps to its word."""
    first, _, rest = greek(label).partition(" ")
    look = looks.get(label)
    if look is None:
        return escape(greek(label))
    mark = Markup('<span class="mark" style="color: var({})" aria-hidden="true">{}</span>')
    return Markup('<span class="row"><span class="lead">{}{}</span>{}</span>').format(
        mark.format(look.variable, GLYPHS[look.marker]), first, f" {rest}" if rest else ""
    )


def faint_intervals(sentence: str) -> Markup:
    """A sentence whose [low, high] intervals are set apart, so that it reads without them."""
    return Markup(re.sub(r"\[[^\[\]]{1,40}\]", r'<span class="interval">\g<0></span>', str(escape(sentence))))


def _facts(report: Report) -> list[tuple[str, str]]:
    """What all rows share, or how it varies: (name, value) pairs for the head of the page."""
    runs = [run for cell in report.main.cells for run in cell.runs]
    trained = [run for run in runs if run.command == "train"]

    def values(runs: Sequence[Run], *keys: str) -> str:
        found = []
        for run in runs:
            value: Any = run.config
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None and line(value) not in found:
                found.append(line(value))
        return ", ".join(sorted(found)[:6])

    seeds = sorted({run.seed for run in trained if run.seed is not None})
    asked = {name: [b.n for cell in report.main.cells for b in cell.of(name)] for name in report.benchmarks}
    sizes = [f"{benchmark_title(name)} {_range(counts)}" for name, counts in asked.items()]
    facts = [
        ("Model", values(runs, "model", "name")),
        ("Trained on", values(trained, "task", "name")),
        ("Algorithm", values(trained, "algorithm", "name").upper()),
        ("Steps", values(trained, "steps")),
        ("Seeds", ", ".join(map(str, seeds))),
        ("Samples per question", samples_text(report.main.cells, report.benchmarks)),
        ("Questions", ", ".join(sizes)),
    ]
    return [(name, value) for name, value in facts if value]


def _range(sizes: Sequence[int | None]) -> str:
    known = sorted({size for size in sizes if size is not None})
    return "?" if not known else f"{known[0]:,}" if len(known) == 1 else f"{known[0]:,} to {known[-1]:,}"


def _group_starts(main: MainTable) -> list[bool]:
    """Whether each column is the first of its group."""
    return [i == 0 or main.columns[i - 1].group != column.group for i, column in enumerate(main.columns)]


def _full_tables(report: Report) -> list[tuple[str, list[tuple[str, Sequence[Interval | None]]]]]:
    """Per benchmark, every metric with one value per row, in the order of METRICS."""
    order = list(METRICS)
    tables = []
    for benchmark in report.benchmarks:
        metrics = [metric for name, metric in report.scores if name == benchmark]
        metrics.sort(key=lambda metric: (order.index(metric) if metric in order else len(order), metric))
        tables.append((benchmark, [(metric, report.scores[benchmark, metric]) for metric in metrics]))
    return tables


def _alarms(report: Report) -> list[str]:
    """Where answers that never counted as one are many enough to mislead: a line for each row and reason."""
    found = few_verdicts(report.main.cells, report.scores, report.main.columns)
    for index, cell in enumerate(report.main.cells):
        for metric, most in ALARMS.items():
            shares = [
                (name, report.scores[name, metric][index])
                for name in report.benchmarks
                if (name, metric) in report.scores
            ]
            high = [f"{benchmark_title(n)} {100 * s.value:.0f}%" for n, s in shares if s is not None and s.value > most]
            if high:
                found.append(f"{greek(cell.label)}: answers {metric_title(metric)}: {', '.join(high)}")
    return found


def _labelled(report: Report) -> list[tuple[Run, str]]:
    """Every run with the label of its row: rows in order, then repetitions, then what couldn't be read."""

    def members(cell: Cell) -> list[tuple[Run, str]]:
        return [(run, cell.label) for run in cell.runs] + [(run, f"{cell.label} (replaced)") for run in cell.superseded]

    known = [pair for cell in report.main.cells for pair in members(cell)]
    return known + [(run, "unreadable") for run in report.runs if run.status == "unreadable"]


def _environments(runs: Sequence[Run]) -> list[str]:
    """The distinct sets of package versions and hardware."""
    return sorted({software(run) for run in runs if run.status != "unreadable"})


def software(run: Run) -> str:
    """Package versions and hardware of a run, on one line."""
    return "; ".join(filter(None, [", ".join(f"{name} {value}" for name, value in run.versions.items()), run.hardware]))
