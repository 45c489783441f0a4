"""Every figure of a report, as an element of the page and as files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from carerft.report.claims import locate
from carerft.report.columns import Column, MainTable, benchmark_title, tradeoff_columns
from carerft.report.experiment import Findings, paper_column
from carerft.report.figures.along import along, frontier
from carerft.report.figures.curves import CURVES, curve_metrics, curves
from carerft.report.figures.reliability import reliability
from carerft.report.figures.style import Look, arrange, inline_svg, png, styled, svg
from carerft.report.figures.tradeoff import axis_title, tradeoff
from carerft.report.rows import Row, Scores
from carerft.text import decimal, greek


@dataclass(frozen=True)
class Drawing:
    """A figure's inline SVG, the section of the page it belongs to, what it shows in words, and its files' name.

    file: the figure is `figures/<file>.svg` and `figures/<file>.png`. benchmark: of reliability diagrams.
    """

    section: str
    svg: str
    label: str
    file: str
    benchmark: str = ""


def draw(
    main: MainTable,
    scores: Scores,
    benchmarks: Sequence[str],
    looks: Mapping[str, Look],
    findings: Findings | None = None,
) -> tuple[list[Drawing], dict[str, str | bytes]]:
    """The drawings of the page in its order, and the content of each file by its path below the report."""
    drawings: list[Drawing] = []
    files: dict[str, str | bytes] = {}
    rows = main.rows

    def add(section: str, name: str, figure: Figure, label: str, benchmark: str = "") -> None:
        stem = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")
        while f"figures/{stem}.svg" in files:
            stem += "-"
        arrange(figure)
        text = svg(figure)
        files[f"figures/{stem}.svg"], files[f"figures/{stem}.png"] = text, png(figure)
        drawings.append(Drawing(section, inline_svg(text, f"f{len(drawings)}", label), label, stem, benchmark))

    with styled():
        if findings:
            paper = findings.paper
            key = paper.along or "regularizer.beta"
            for pair in paper.frontiers:
                x, y = (paper_column(name, locate(paper, name, rows)) for name in pair)
                if x and y:
                    label = _in_words(f"{x.group} against {y.group}", rows, scores, [x, y])
                    figure = frontier(rows, scores, key, x, y, looks)
                    add("experiment", f"frontier-{pair[0]}-{pair[1]}", figure, label)
            for column in findings.columns if paper.along else ():
                label = _in_words(f"Over {key}: {column.group}", rows, scores, [column])
                figure = along(rows, scores, key, column, looks)
                add("experiment", f"along-{column.group}", figure, label)
        columns = tradeoff_columns(main)
        for y in columns[1:] if columns and columns[0].metric == "accuracy" else ():
            x = columns[0]
            label = _in_words(f"{x.title} accuracy against {axis_title(y)}", rows, scores, [x, y])
            figure = tradeoff(rows, scores, x, y, looks)
            add("tradeoff", f"tradeoff-{y.benchmark}-{y.metric}", figure, label)
        for name in benchmarks:
            title = benchmark_title(name)
            if figure := reliability(rows, scores, name, looks, title):
                add("reliability", f"reliability-{name}", figure, f"Reliability diagrams on {title}", name)
        for metric in curve_metrics(rows):
            label = f"{CURVES[metric][0]} over training, by row"
            add("curves", f"curve-{metric}", curves(rows, metric, looks), label)
    return drawings, files


def _in_words(title: str, rows: Sequence[Row], scores: Scores, columns: Sequence[Column]) -> str:
    """A figure's points as text, for readers who can't see it."""
    texts = []
    for index, row in enumerate(rows):
        values = [scores[column.benchmark, column.metric][index] for column in columns]
        if all(values):
            texts.append(f"{greek(row.label)} {', '.join(decimal(value.value) for value in values if value)}")
    return f"{title}. {'; '.join(texts)}."
