"""Every figure of a report, as an element of the page and as files."""

import gc
import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from carerft.report.columns import Column, MainTable, benchmark_title, tradeoff_columns
from carerft.report.figures.curves import CURVES, curves, over_steps, path, paths
from carerft.report.figures.points import along, frontier, tradeoff
from carerft.report.figures.reliability import reliability
from carerft.report.figures.style import arrange, inline_svg, make_looks, png, styled, svg, without_legend
from carerft.report.findings import Findings
from carerft.report.rows import Row
from carerft.text import decimal, greek

MOST_PANELS = 24
"""Pairs of axes of a figure that is written as PNG too: that of a larger one would take as long as all others."""


@dataclass(frozen=True)
class Drawing:
    """A figure's inline SVG, the section of the page it belongs to, what it shows in words, and its files' name.

    file: the figure is `figures/<file>.svg` and, up to MOST_PANELS, `figures/<file>.png`. benchmark: of reliability
        diagrams.
    """

    section: str
    svg: str
    label: str
    file: str
    benchmark: str = ""


def draw(
    main: MainTable, benchmarks: Sequence[str], findings: Findings | None
) -> tuple[list[Drawing], dict[str, str | bytes]]:
    """The drawings of the page in its order, and the content of each file by its path below the report."""
    drawings: list[Drawing] = []
    files: dict[str, str | bytes] = {}
    rows, looks = main.rows, make_looks(main.rows)

    def add(section: str, name: str, figure: Figure, label: str, benchmark: str = "") -> None:
        stem = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")
        while f"figures/{stem}.svg" in files:
            stem += "-"
        arrange(figure)
        text = svg(figure)
        files[f"figures/{stem}.svg"] = text
        shown = text if section == "experiment" else without_legend(text, figure)
        if len(figure.axes) <= MOST_PANELS:
            files[f"figures/{stem}.png"] = png(figure)
        drawings.append(Drawing(section, inline_svg(shown, f"f{len(drawings)}", label), label, stem, benchmark))

    with styled():
        if findings:
            paper = findings.paper
            key = paper.along or "regularizer.beta"
            for pair in paper.frontiers:
                x, y = (findings.columns[name] for name in pair)
                if x and y:
                    label = _in_words(f"{x.group} against {y.group}", rows, [x, y])
                    add("experiment", f"frontier-{x.group}-{y.group}", frontier(rows, key, x, y, looks), label)
            panels = [column for name in paper.panels if (column := findings.columns[name])]
            if len(panels) > 1:
                x, *ys = panels
                label = " ".join(_in_words(f"{x.group} against {y.group}", rows, [x, y]) for y in ys)
                add("experiment", f"panels-{x.group}", tradeoff(rows, x, ys, looks), label)
            for column in findings.shown if paper.along else ():
                label = _in_words(f"Over {key}: {column.group}", rows, [column])
                add("experiment", f"along-{column.group}", along(rows, key, column, looks), label)
        columns = tradeoff_columns(main)
        for y in columns[1:] if columns and columns[0].metric == "accuracy" else ():
            x = columns[0]
            label = _in_words(f"{x.title} accuracy against {y.caption}", rows, [x, y])
            add("tradeoff", f"tradeoff-{y.benchmark}-{y.metric}", tradeoff(rows, x, [y], looks), label)
        for y in columns[1:] if columns and columns[0].metric == "accuracy" else ():
            if moved := paths(rows, (x := columns[0], y)):
                label = f"The path through {x.title} accuracy and {y.caption}, step by step, from the base"
                add("path", f"path-{y.benchmark}-{y.metric}", path(moved, x, y, looks), label)
        for column in columns:
            if moved := paths(rows, (column,)):
                label = f"{column.caption} of the policy while it learned, by row"
                add("path", f"steps-{column.benchmark}-{column.metric}", over_steps(moved, column, looks), label)
        for name in benchmarks:
            title = benchmark_title(name)
            if figure := reliability(rows, name, looks, title):
                add("reliability", f"reliability-{name}", figure, f"Reliability diagrams on {title}", name)
                del figure
                gc.collect()  # it is large, with axes for every row; `build` lets nothing else be collected
        for metric, (title, _) in CURVES.items():
            if any(metric in run.curves for row in rows for run in row.runs):
                add("curves", f"curve-{metric}", curves(rows, metric, looks), f"{title} over training, by row")
    return drawings, files


def _in_words(title: str, rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A figure's points as text, for readers who can't see it."""
    texts = []
    for row in rows:
        values = [row.scores.get(column.quantity) for column in columns]
        if all(values):
            texts.append(f"{greek(row.label)} {', '.join(decimal(value.value) for value in values if value)}")
    return f"{title}. {'; '.join(texts)}."
