"""Accuracy against honesty, truthfulness or calibration: the trade that the report is about."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from carerft.metrics.names import FLOORS
from carerft.report.columns import Column
from carerft.report.figures.labels import label_points
from carerft.report.figures.style import (
    MUTED,
    Look,
    error_bars,
    legend,
    new_axes,
    point_of,
    quality_title,
    up_is_better,
)
from carerft.report.rows import Row, base_of, describe, run_value
from carerft.text import greek


def tradeoff(rows: Sequence[Row], x: Column, y: Column, looks: Mapping[str, Look]) -> Figure:
    """Accuracy against another metric: means with intervals, single seeds as faint points, arrows from the base.

    Where several rows share a colour, points carry their row's number in the table.
    """
    figure, axes = new_axes(4.6, 4.3)
    numbered = len({row.family for row in rows}) < len(rows)
    numbers: list[tuple[str, float, float]] = []
    for position, row in enumerate(rows, start=1):
        if not (point := point_of(row, x, y)):
            continue
        (a, b), look = point, looks[row.label]
        base = base_of(row, rows)
        if base and (start := point_of(base, x, y)):
            arrow = {"arrowstyle": "-|>", "color": look.colour, "alpha": 0.45, "linewidth": 1.1, "mutation_scale": 9}
            arrow |= {"shrinkA": 5, "shrinkB": 6}
            ends = (a.value, b.value), (start[0].value, start[1].value)
            axes.annotate("", *ends, arrowprops=arrow, zorder=2)
        pairs = [[run_value(run, column.quantity) for column in (x, y)] for run in row.evaluated]
        seeds = [pair for pair in pairs if None not in pair]
        if len(seeds) > 1:
            axes.plot(*zip(*seeds, strict=True), look.marker, color=look.colour, ms=4, alpha=0.45, mew=0, zorder=3)
        bars = {"xerr": error_bars([a]), "yerr": error_bars([b]), "elinewidth": 1.3, "linestyle": "none", "zorder": 4}
        axes.errorbar(a.value, b.value, color=look.colour, **bars)
        label = f"{position}  {greek(row.label)}" if numbered else greek(row.label)
        axes.plot(a.value, b.value, **look.points(7.5, 1.2), linestyle="none", zorder=5, label=label)
        numbers.append((str(position), a.value, b.value))
    axes.margins(0.14)
    axes.set(xlabel=f"{x.title} accuracy  →", title=quality_title(axis_title(y), y.direction))
    up_is_better(axes, x.direction, y.direction)
    style = {"ha": "right", "va": "top", "color": MUTED, "fontsize": 8.5}
    axes.annotate("better ↗", (1, 1), (-4, -4), xycoords="axes fraction", textcoords="offset points", **style)
    if numbered:
        label_points(axes, numbers, size=8)
    legend(figure, axes)
    return figure


def axis_title(column: Column) -> str:
    """A column's benchmark and metric."""
    benchmark = column.title.removesuffix(", answered") if column.metric in FLOORS else column.group
    return f"{benchmark}: {describe(column.metric).title}"
