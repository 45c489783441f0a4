"""Every figure of a report: as an element of the page, and as files of its own."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from carerft.report import along, curves, reliability, tradeoff
from carerft.report.cells import Scores
from carerft.report.claims import place_of
from carerft.report.columns import MainTable, benchmark_title
from carerft.report.experiment import Findings, as_column, columns
from carerft.report.style import Look, arrange, inline_svg, png, styled, svg
from carerft.report.summary import telling_columns
from carerft.report.tables import interval_text

MOST_DIAGRAMS = 120  # reliability diagrams on the page; the files have all


@dataclass(frozen=True)
class Drawing:
    """An inline SVG, the section of the page that it belongs to, its group (a benchmark) there, and what it shows in
    words. file: the figure's own file, `figures/<file>.svg`; empty where it is a part of another's."""

    section: str
    group: str
    svg: str
    label: str
    file: str = ""


class _Board:
    """Collects drawings for the page, and files."""

    def __init__(self) -> None:
        self.drawings: list[Drawing] = []
        self.files: dict[str, str | bytes] = {}

    def save(self, name: str, figure: Figure) -> tuple[str, str]:
        """The figure's SVG text, and the name of its files without what follows the dot."""
        stem = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")
        while f"figures/{stem}.svg" in self.files:
            stem += "-"
        arrange(figure)
        text = svg(figure)
        self.files[f"figures/{stem}.svg"], self.files[f"figures/{stem}.png"] = text, png(figure)
        return text, stem

    def show(self, section: str, text: str, label: str, group: str = "", file: str = "") -> None:
        element = inline_svg(text, f"f{len(self.drawings)}", label)
        self.drawings.append(Drawing(section, group, element, label, file))

    def add(self, section: str, name: str, figure: Figure, label: str) -> None:
        text, stem = self.save(name, figure)
        self.show(section, text, label, file=stem)


def draw(
    main: MainTable, table: Scores, benchmarks: Sequence[str], look: Mapping[str, Look], found: Findings | None = None
) -> tuple[list[Drawing], dict[str, str | bytes]]:
    """The drawings of the page in its order, and the content of each file by its path below the report."""
    board = _Board()
    with styled():
        if found:
            _of_experiment(board, main, table, look, found)
        _tradeoffs(board, main, table, look)
        _reliability(board, main, table, benchmarks, look)
        for metric in curves.curve_metrics(main.cells):
            label = f"{curves.CURVES[metric][0]} over training, by row"
            board.add("curves", f"curve-{metric}", curves.curves(main.cells, metric, look), label)
    return board.drawings, board.files


def _of_experiment(board: _Board, main: MainTable, table: Scores, look: Mapping[str, Look], found: Findings) -> None:
    """What the experiment varies, and the columns that it sets against each other."""
    cells, paper = main.cells, found.paper
    key = paper.along or "regularizer.beta"
    for pair in paper.frontiers:
        shown = [as_column(name, place) for name in pair if (place := place_of(paper, name, cells))]
        if len(shown) == 2:
            figure = along.frontier(cells, table, key, *shown, look)
            board.add("experiment", f"frontier-{pair[0]}-{pair[1]}", figure, along.in_words(cells, table, shown))
    if paper.along:
        for column in columns(found):
            figure = along.along(cells, table, key, column, look)
            label = f"Over {key}: {along.in_words(cells, table, [column])}"
            board.add("experiment", f"along-{column.group}", figure, label)


def _tradeoffs(board: _Board, main: MainTable, table: Scores, look: Mapping[str, Look]) -> None:
    telling = telling_columns(main)
    if telling and telling[0].metric == "accuracy":
        for column in telling[1:]:
            figure = tradeoff.tradeoff(main.cells, table, telling[0], column, look)
            label = tradeoff.in_words(main.cells, table, telling[0], column)
            board.add("tradeoff", f"tradeoff-{column.benchmark}-{column.metric}", figure, label)


def _reliability(
    board: _Board, main: MainTable, table: Scores, benchmarks: Sequence[str], look: Mapping[str, Look]
) -> None:
    for name in benchmarks:
        panels = reliability.diagrams(main.cells, table, name, look)
        tallest = reliability.largest_share(panels) if panels else 0.0
        stem = board.save(f"reliability-{name}", reliability.reliability(panels, tallest, name))[1] if panels else ""
        for number, panel in enumerate(panels[: MOST_DIAGRAMS // len(benchmarks)]):
            ece = f", ECE {interval_text(panel.ece)}" if panel.ece else ""
            label = f"Reliability diagram of {panel.label} on {benchmark_title(name)}{ece}"
            text = svg(reliability.reliability([panel], tallest))
            board.show("reliability", text, label, name, "" if number else stem)
