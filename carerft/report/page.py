"""The pages: HTML for every report and, for an experiment's, Markdown.

The HTML page is one file; it loads nothing from anywhere and is readable without JavaScript. The template escapes
everything by default; only this package's own style sheet, script and figures are marked safe. A content security
policy allows that one script and no request, whatever a model wrote.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from carerft.metrics.names import METRICS
from carerft.metrics.statistics import Interval
from carerft.report.columns import (
    MainTable,
    arrow,
    benchmark_title,
    few_verdicts,
    floors,
    ordered,
    refusal_floors,
    samples_text,
)
from carerft.report.figures.drawings import Drawing
from carerft.report.figures.style import Look, make_looks
from carerft.report.findings import Findings
from carerft.report.questions import Questions
from carerft.report.rows import Row, describe, quantities
from carerft.report.tables import Grid, change_text
from carerft.report.tables import markdown as main_markdown
from carerft.runs.reading import Run
from carerft.text import decimal, duration, greek, line, visible

HERE = Path(__file__).parent
GLYPHS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "h": "⬢"}
ALARMS = {"unparsable": 0.05, "truncated": 0.05, "no_verdict": 0.01}
"""Shares of samples above which the page warns: a broken format can look like dishonesty or ignorance."""


@dataclass(frozen=True)
class Report:
    """Everything that the pages show.

    title: the heading. notes: beneath the main table. troubles: what could not be read. grids: an experiment's tables.
    """

    title: str
    runs: Sequence[Run]
    main: MainTable
    notes: Sequence[str]
    benchmarks: Sequence[str]
    level: float
    drawings: Sequence[Drawing]
    questions: Sequence[Questions]
    troubles: Sequence[str]
    findings: Findings | None
    grids: Mapping[str, Grid]


def html(report: Report) -> str:
    """The page in HTML."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    looks = make_looks(report.main.rows)
    environment.filters |= {
        "decimal": decimal, "duration": duration, "line": line, "visible": visible, "arrow": arrow, "greek": greek,
        "benchmark": benchmark_title, "change": _change,
        "metric": lambda metric: describe(metric).title,
        "figure": lambda label: _marked(label, looks),
    }  # fmt: skip
    script = (HERE / "page.js").read_text(encoding="utf-8")
    main = report.main
    labelled = [(run, row.label) for row in main.rows for run in row.runs]
    labelled += [(run, f"{row.label} (replaced)") for row in main.rows for run in row.superseded]
    labelled += [(run, "unreadable") for run in report.runs if run.status == "unreadable"]
    return environment.get_template("page.html.j2").render(
        report=report,
        rows=main.rows,
        findings=report.findings,
        facts=_facts(report),
        groups=[(name, len(list(columns))) for name, columns in groupby(main.columns, key=lambda c: c.group)],
        starts=[i == 0 or main.columns[i - 1].group != column.group for i, column in enumerate(main.columns)],
        drawings={name: [(d.benchmark, Markup(d.svg)) for d in report.drawings if d.section == name]
                  for name in ("experiment", "tradeoff", "reliability", "curves")},
        glossary={metric.title: metric.meaning for c in main.columns if (metric := METRICS.get(c.metric))},
        floors=floors(main.rows, main.columns),
        refusal_floors=refusal_floors(main.rows),
        one_seed=all(len(row.evaluated) < 2 for row in main.rows if row.family != "base"),
        all_metrics=_all_metrics(report),
        alarms=_alarms(report),
        missing=[(run, label) for run, label in labelled if not run.has_results],
        labelled=labelled,
        environments=sorted({software(run) for run in report.runs if run.status != "unreadable"}),
        software=software,
        samples=lambda run: "/".join(sorted({str(b.k) for b in run.benchmarks.values() if b.k is not None})) or "–",
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def markdown(report: Report) -> str:
    """An experiment's report in Markdown: tables, claims, figures and provenance.

    It shows the figures that paper.yaml names, or else the first two: `publish` copies their files.
    """
    findings, runs = report.findings, report.runs
    assert findings is not None
    paper = findings.paper
    best = ", ".join(f"{name} {value:g}" for name, value in paper.best.items())
    figures = [d for d in report.drawings if d.file in paper.figures] if paper.figures else report.drawings[:2]

    def table(name: str, otherwise: str) -> str:
        return report.grids[name].markdown() if name in report.grids else otherwise

    parts = [
        f"# {findings.name}: {paper.asks}",
        f"{paper.source}.",
        f"{sum(run.has_results for run in runs)} of {len(runs)} runs give numbers. "
        f"Intervals: {100 * report.level:g}%, over questions and seeds.",
        f"The columns here: {findings.meaning}.",
        "## Ours, and the paper's",
        table("beside", "No rows yet."),
        f"The paper's best figures: {best}." if best else "",
        "## The paper's claims, checked",
        table("claims", "None is known to us."),
        "## Differences, paired by question and seed",
        table("compared", "No two rows to compare yet."),
        "## Every main metric",
        main_markdown(report.main),
        *report.notes,
        "## Figures" if figures else "",
        *(f"![{drawing.label}](figures/{drawing.file}.png)" for drawing in figures),
        "## Runs",
        Grid(
            ["run", "status", "took", "configuration", "source"],
            [[run.name, run.status, duration(run.elapsed), run.config_hash, run.git[:10]] for run in runs],
        ).markdown(),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _marked(label: str, looks: Mapping[str, Look]) -> Markup:
    """A row's label behind its mark, in the figures' colour and shape. A line never breaks after the mark."""
    first, _, rest = greek(label).partition(" ")
    if label not in looks:
        return escape(greek(label))
    look = looks[label]
    mark = Markup('<span class="mark" style="color: var({})" aria-hidden="true">{}</span>')
    return Markup('<span class="row"><span class="lead">{}{}</span>{}</span>').format(
        mark.format(look.variable, GLYPHS[look.marker]), first, f" {rest}" if rest else ""
    )


def _change(change: Interval | None) -> Markup:
    """A change with its interval set apart."""
    value, bracket, interval = change_text(change).partition(" [")
    return Markup('{} <span class="interval">[{}</span>').format(value, interval) if bracket else Markup(value)


def _facts(report: Report) -> list[tuple[str, str]]:
    """What all rows share, or how it varies: (name, value) pairs for the head of the page."""
    rows = report.main.rows
    trained = [row for row in rows if row.family != "base"]

    def values(rows: Sequence[Row], key: str) -> str:
        return ", ".join(sorted({line(value) for row in rows if (value := row.settings.get(key)) is not None})[:6])

    sizes = []
    for name in report.benchmarks:
        counts = sorted({b.n for row in rows for b in row.results(name) if b.n is not None})
        ends = [f"{n:,}" for n in dict.fromkeys(counts[:1] + counts[-1:])]
        sizes.append(f"{benchmark_title(name)} {' to '.join(ends)}")
    seeds = sorted({run.seed for row in trained for run in row.runs if run.seed is not None})
    facts = [
        ("Model", values(rows, "model.name")),
        ("Trained on", values(trained, "task.name")),
        ("Algorithm", values(trained, "algorithm.name").upper()),
        ("Steps", values(trained, "steps")),
        ("Seeds", ", ".join(map(str, seeds))),
        ("Samples per question", samples_text(rows, report.benchmarks)),
        ("Questions", ", ".join(sizes)),
    ]
    return [(name, value) for name, value in facts if value]


def _all_metrics(report: Report) -> list[tuple[str, list[tuple[str, Sequence[Interval | None]]]]]:
    """Per benchmark, every metric with one value per row."""
    rows = report.main.rows
    return [
        (benchmark, [(metric, [row.scores.get((benchmark, metric)) for row in rows])
                     for metric in ordered([m for name, m in quantities(rows) if name == benchmark], METRICS)])
        for benchmark in report.benchmarks
    ]  # fmt: skip


def _alarms(report: Report) -> list[str]:
    """A warning for each row and reason for which too many answers could not be used."""
    alarms = few_verdicts(report.main.rows, report.main.columns)
    for row in report.main.rows:
        for metric, most in ALARMS.items():
            shares = [(name, row.scores.get((name, metric))) for name in report.benchmarks]
            high = [f"{benchmark_title(name)} {100 * s.value:.0f}%" for name, s in shares if s and s.value > most]
            if high:
                alarms.append(f"{greek(row.label)}: answers {describe(metric).title}: {', '.join(high)}")
    return alarms


def software(run: Run) -> str:
    """Package versions and hardware of a run, on one line."""
    return "; ".join(filter(None, [", ".join(f"{name} {value}" for name, value in run.versions.items()), run.hardware]))
