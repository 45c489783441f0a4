"""The pages: HTML for every report and, for an experiment's, Markdown.

The HTML page is one file; it loads nothing from anywhere and is readable without JavaScript. The template escapes
everything by default; only this package's own style sheet, script and figures are marked safe. A content security
policy allows that one script and no request, whatever a model wrote.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from carerft.report import columns
from carerft.report.figures.style import VARIABLES, make_looks
from carerft.report.rows import Row, describe
from carerft.report.tables import change_text
from carerft.runs.reading import Run
from carerft.text import decimal, duration, greek, line, visible

HERE = Path(__file__).parent
ALARMS = {"unparsable": 0.05, "truncated": 0.05, "no_verdict": 0.01}
"""Shares of samples above which the page warns: a broken format can look like dishonesty or ignorance."""


def render(template: str, content: Mapping[str, Any]) -> str:
    """Fill `page.html.j2` or `report.md.j2`. content: their variables, as `carerft.report.build` collects them."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    runs, rows, shown = content["runs"], content["rows"], content["main"].columns
    texts = (decimal, duration, line, visible, greek, columns.arrow)
    environment.filters |= {function.__name__: function for function in texts}
    environment.filters |= {"benchmark": columns.benchmark_title, "change": change_text}
    environment.filters["metric"] = lambda metric: describe(metric).title
    script = (HERE / "page.js").read_text(encoding="utf-8")
    labelled = [(run, row.label) for row in rows for run in row.runs]
    labelled += [(run, f"{row.label} (replaced)") for row in rows for run in row.superseded]
    labelled += [(run, "unreadable") for run in runs if run.status == "unreadable"]
    measured = columns.metrics_by_benchmark(rows)
    return environment.get_template(template).render(
        content,
        facts=_facts(rows, content["benchmarks"]),
        key_figures=columns.key_figures(content["main"]),
        glossary=columns.glossary(shown),
        floors=columns.floors(rows, shown),
        refusals=columns.refusal_floors(rows),
        one_seed=all(len(row.evaluated) < 2 for row in rows if row.family != "base"),
        all_metrics={name: measured.get(name, []) for name in content["benchmarks"]},
        alarms=_alarms(rows, shown, content["benchmarks"]),
        labelled=labelled,
        looks=make_looks(rows),
        variables=VARIABLES,
        environments=sorted({software(run) for run in runs if run.status != "unreadable"}),
        software=software,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _facts(rows: Sequence[Row], benchmarks: Sequence[str]) -> list[tuple[str, str]]:
    """What all rows share, or how it varies: (name, value) pairs for the head of the page."""
    trained = [row for row in rows if row.family != "base"]

    def values(rows: Sequence[Row], key: str) -> str:
        return ", ".join(sorted({line(value) for row in rows if (value := row.settings.get(key)) is not None})[:6])

    sizes = []
    for name in benchmarks:
        counts = sorted({b.n for row in rows for b in row.results(name) if b.n is not None})
        ends = [f"{n:,}" for n in dict.fromkeys(counts[:1] + counts[-1:])]
        sizes.append(f"{columns.benchmark_title(name)} {' to '.join(ends)}")
    seeds = sorted({run.seed for row in trained for run in row.runs if run.seed is not None})
    facts = [
        ("Model", values(rows, "model.name")),
        ("Trained on", values(trained, "task.name")),
        ("Algorithm", values(trained, "algorithm.name").upper()),
        ("Steps", values(trained, "steps")),
        ("Seeds", ", ".join(map(str, seeds))),
        ("Samples per question", columns.samples_text(rows, benchmarks)),
        ("Questions", ", ".join(sizes)),
    ]
    return [(name, value) for name, value in facts if value]


def _alarms(rows: Sequence[Row], shown: Sequence[columns.Column], benchmarks: Sequence[str]) -> list[str]:
    """A warning for each row and reason for which too many answers could not be used."""
    alarms = columns.few_verdicts(rows, shown)
    for row in rows:
        for metric, most in ALARMS.items():
            shares = [(name, row.scores.get((name, metric))) for name in benchmarks]
            high = [
                f"{columns.benchmark_title(name)} {100 * s.value:.0f}%" for name, s in shares if s and s.value > most
            ]
            if high:
                alarms.append(f"{greek(row.label)}: answers {describe(metric).title}: {', '.join(high)}")
    return alarms


def software(run: Run) -> str:
    """Package versions and hardware of a run, on one line."""
    return "; ".join(filter(None, [", ".join(f"{name} {value}" for name, value in run.versions.items()), run.hardware]))
