"""Accuracy against honesty, truthfulness or calibration: the trade that the report is about."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from carerft.metrics.intervals import Interval
from carerft.report.cells import Cell, Scores, base_of
from carerft.report.columns import CALIBRATION, METRICS, Column
from carerft.report.labels import label_points
from carerft.report.style import MUTED, PAPER, Look, legend, new_figure, quiet
from carerft.text import decimal, greek


def tradeoff(cells: Sequence[Cell], scores: Scores, x: Column, y: Column, look: dict[str, Look]) -> Figure:
    """Accuracy against another metric: means with intervals, single seeds as faint points, arrows from the base.

    Where several rows share a colour, points carry their row's number in the table.
    """
    figure = new_figure(4.6, 4.3)
    axes = figure.add_subplot()
    quiet(axes)
    points: dict[str, tuple[Interval, Interval]] = {}
    for index, cell in enumerate(cells):
        a, b = scores[x.benchmark, x.metric][index], scores[y.benchmark, y.metric][index]
        if a is not None and b is not None:
            points[cell.label] = (a, b)
    numbers: list[tuple[str, float, float]] = []
    numbered = len({cell.family for cell in cells}) < len(cells)
    for position, cell in enumerate(cells, start=1):
        if cell.label not in points:
            continue
        (a, b), style = points[cell.label], look[cell.label]
        base = base_of(cell, cells)
        if base is not None and base.label in points:
            start = tuple(part.value for part in points[base.label])
            arrow = {"arrowstyle": "-|>", "color": style.colour, "alpha": 0.45, "linewidth": 1.1, "mutation_scale": 9}
            axes.annotate("", (a.value, b.value), start, arrowprops=arrow | {"shrinkA": 5, "shrinkB": 6}, zorder=2)
        pairs = [
            (run.benchmarks[x.benchmark].metrics[x.metric].value, run.benchmarks[y.benchmark].metrics[y.metric].value)
            for run in cell.evaluated
            if all(c.benchmark in run.benchmarks and c.metric in run.benchmarks[c.benchmark].metrics for c in (x, y))
        ]
        if len(pairs) > 1:
            axes.plot(*zip(*pairs, strict=True), style.marker, color=style.colour, ms=4, alpha=0.45, mew=0, zorder=3)
        bars = {"xerr": _error(a), "yerr": _error(b), "elinewidth": 1.3, "linestyle": "none", "zorder": 4}
        axes.errorbar(a.value, b.value, color=style.colour, **bars)
        name = f"{position}  {greek(cell.label)}" if numbered else greek(cell.label)
        dot = {"ms": 7.5, "mec": PAPER, "mew": 1.2, "linestyle": "none", "zorder": 5, "label": name}
        axes.plot(a.value, b.value, style.marker, color=style.colour, **dot)
        numbers.append((str(position), a.value, b.value))
    axes.margins(0.14)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel(f"{x.title} accuracy  →")
    axes.set_title(f"{_axis_name(y)} {'(lower is better)' if y.direction < 0 else ''}".strip())
    if y.direction < 0:
        axes.invert_yaxis()
    axes.annotate(
        "better ↗", (1, 1), (-4, -4), xycoords="axes fraction", textcoords="offset points", ha="right", va="top",
        color=MUTED, fontsize=8.5,
    )  # fmt: skip
    if numbered:
        label_points(axes, numbers, size=8)
    legend(figure, axes)
    return figure


def _error(value: Interval) -> list[list[float]] | None:
    return None if value.sides is None else [[side] for side in value.sides]


def _axis_name(column: Column) -> str:
    name = METRICS[column.metric][0]
    place = column.title.removesuffix(", answered") if column.metric in CALIBRATION else column.group
    return f"{place}: {name}"


def in_words(cells: Sequence[Cell], scores: Scores, x: Column, y: Column) -> str:
    """What the figure shows, for those who can't see it."""
    pairs = zip(cells, scores[x.benchmark, x.metric], scores[y.benchmark, y.metric], strict=True)
    points = [
        f"{greek(cell.label)} {decimal(a.value)}, {decimal(b.value)}"
        for cell, a, b in pairs
        if a is not None and b is not None
    ]
    return f"{x.title} accuracy against {_axis_name(y)}. {'; '.join(points)}."
