"""Rows as points: a trade of accuracy against another metric, and a setting that an experiment varies."""

from collections.abc import Mapping, Sequence
from itertools import product
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from carerft.metrics.statistics import Interval
from carerft.report.columns import Column, benchmark_title
from carerft.report.figures.style import INK, MUTED, PAPER, Look, new_figure
from carerft.report.rows import Row, base_of, run_value
from carerft.runs.labels import family_title
from carerft.text import greek, line

Family = tuple[str, list[tuple[object, Row]]]
MARKER = 3.5  # half the width of a marker, in points of 1/72 inch
ANGLES = (45, 0, -45, 90, -90, 135, 180, -135)  # of a label from its point: above and to the right first
DISTANCES = (7.0, 13.0, 19.0, 26.0, 33.0)
CLEAR = 14.0  # points between a label and the points of others
UNCLEAR = 0.5  # what less costs, in square points that are covered
LINE, LINE_OF_PANEL = 44, 36  # characters of a title on one line


def tradeoff(rows: Sequence[Row], x: Column, ys: Sequence[Column], looks: Mapping[str, Look]) -> Figure:
    """Accuracy against other metrics, a panel each: means with intervals, single seeds as faint points, arrows from
    the base.

    Points carry their row's number in the table.
    """
    figure, panels = new_figure(4.1 if len(ys) == 1 else 3.6 * len(ys), 3.9, len(ys))
    for axes, y in zip(panels, ys, strict=True):
        _tradeoff(axes, rows, x, y, looks)
    return figure


def _tradeoff(axes: Axes, rows: Sequence[Row], x: Column, y: Column, looks: Mapping[str, Look]) -> None:
    numbers: list[tuple[str, float, float]] = []
    for row in rows:
        if not (point := _point(row, x, y)):
            continue
        (a, b), look = point, looks[row.label]
        base = base_of(row, rows)
        if base and (start := _point(base, x, y)):
            arrow = {"arrowstyle": "-|>", "color": look.colour, "alpha": 0.45, "linewidth": 1.1, "mutation_scale": 9}
            arrow |= {"shrinkA": 5, "shrinkB": 6}
            ends = (a.value, b.value), (start[0].value, start[1].value)
            axes.annotate("", *ends, arrowprops=arrow, zorder=2)
        pairs = [[run_value(run, column.quantity) for column in (x, y)] for run in row.evaluated]
        seeds = [pair for pair in pairs if None not in pair]
        if len(seeds) > 1:
            axes.plot(*zip(*seeds, strict=True), look.marker, color=look.colour, ms=4, alpha=0.45, mew=0, zorder=3)
        _bars(axes, [a], [b], color=look.colour, elinewidth=1, alpha=0.35, zorder=1)
        label = f"{look.number}  {greek(row.label)}"
        axes.plot(a.value, b.value, **look.points(7.5, 1.2), linestyle="none", zorder=5, label=label)
        numbers.append((str(look.number), a.value, b.value))
    name_axes(axes, x, y, f"{benchmark_title(x.benchmark)} accuracy", y.caption)
    mark_better(axes)
    label_points(axes, numbers, size=9)


def mark_better(axes: Axes) -> None:
    """Say in the corner where better rows lie."""
    style = {"ha": "right", "va": "top", "color": MUTED, "fontsize": 8.5}
    axes.annotate("better ↗", (1, 1), (-4, -4), xycoords="axes fraction", textcoords="offset points", **style)
    axes.margins(0.14)


def frontier(rows: Sequence[Row], key: str, x: Column, y: Column, looks: Mapping[str, Look]) -> Figure:
    """One column against another, the rows of a family joined in the order of `key`; up and right is better."""
    figure, (axes,) = new_figure(4.8, 4.4)
    labels: list[tuple[str, float, float]] = []
    bases: list[Family] = [("base model", [(None, row)]) for row in rows if row.family == "base"]
    for name, members in [*bases, *_families(rows, key)]:
        known = [(setting, *point) for setting, row in members if (point := _point(row, x, y))]
        if not known:
            continue
        look = looks[members[0][1].label]
        _, across, up = zip(*known, strict=True)
        _bars(axes, across, up, color=look.colour, alpha=0.4, elinewidth=0.8)
        style = look.points(6.5, 1) | {"linestyle": _dash(name), "label": greek(name)}
        axes.plot([value.value for value in across], [value.value for value in up], **style)
        if len(known) > 1:
            labels += [(_text(setting), a.value, b.value) for setting, a, b in known]
    axes.margins(0.12)
    name_axes(axes, x, y, _quality(x.group, x), y.group)
    label_points(axes, labels, size=7, all_of_them=False)
    return figure


def along(rows: Sequence[Row], key: str, column: Column, looks: Mapping[str, Look]) -> Figure:
    """One column over a setting, with intervals: a line for each family, dashed levels for rows without the setting.

    Values stand at even distances: they are often powers, or shares near 1.
    """
    figure, (axes,) = new_figure(4.6, 3.6)
    grouped = _families(rows, key)
    lines = [(name, members) for name, members in grouped if len(members) > 1]
    ticks = sorted({setting for _, members in lines for setting, _ in members}, key=_order)
    for number, (name, members) in enumerate(lines):
        known = [(setting, value) for setting, row in members if (value := row.scores.get(column.quantity))]
        aside, look = 0.06 * (number - (len(lines) - 1) / 2), looks[members[0][1].label]
        xs, values = [Interval(ticks.index(setting) + aside) for setting, _ in known], [value for _, value in known]
        style = look.points(6, 0.8) | {"linestyle": _dash(name), "label": name}
        axes.plot([x.value for x in xs], [value.value for value in values], **style)
        _bars(axes, xs, values, color=look.colour, alpha=0.6, elinewidth=1.1)
    levels = [row for row in rows if row.family == "base"]
    levels += [members[0][1] for _, members in grouped if len(members) == 1]
    for row in levels:
        if value := row.scores.get(column.quantity):
            style = {"color": looks[row.label].colour, "linewidth": 1.2, "linestyle": (0, (1.5, 1.5))}
            axes.axhline(value.value, label=greek(row.label), **style)
    axes.set_xticks(range(len(ticks)), [_text(tick) for tick in ticks])
    axes.set(xlabel=key.removeprefix("regularizer."), title=_quality(column.group, column))
    return figure


def label_points(axes: Axes, labels: Sequence[tuple[str, float, float]], size: float, all_of_them: bool = True) -> None:
    """Write each (text, x, y) beside (x, y), at the nearest free position, or else where it covers least. Where another
    point is near, it stands farther off, and a line leads to its own.

    Call it after everything else has been drawn. Without `all_of_them`, only positions close to the points count, and a
    text without a free one is left out.
    """
    axes.autoscale_view()
    places = [axes.transData.transform(place) * 72 / axes.figure.dpi for _, *place in labels]
    occupied = [(*(place - MARKER), *(place + MARKER)) for place in places]  # left, bottom, right, top
    for own, ((text, x, y), place) in enumerate(zip(labels, places, strict=True)):
        half = size * np.array([0.32 * len(text), 0.5])
        offsets = [
            (distance + half) * (np.cos(angle), np.sin(angle))
            for distance, angle in product(DISTANCES if all_of_them else DISTANCES[:1], np.radians(ANGLES))
        ]
        boxes = np.array([(*(place + offset - half), *(place + offset + half)) for offset in offsets])[:, None]
        others = np.array(occupied)
        sides = np.minimum(boxes, others)[..., 2:] - np.maximum(boxes, others)[..., :2]  # (offsets, occupied, 2)
        covered = np.clip(sides, 0, None).prod(-1).cumsum(-1)[:, -1]
        strangers = np.array([other for index, other in enumerate(places) if index != own]).reshape(-1, 1, 2)
        distances = np.hypot(*np.moveaxis(place + np.array(offsets) - strangers, -1, 0))  # (others, offsets)
        unclear = distances < np.minimum(1.3 * np.hypot(*np.transpose(offsets)), CLEAR)
        covered += UNCLEAR * unclear.any(0) * all_of_them
        best = int(covered.argmin())
        if covered[best] and not all_of_them:
            continue
        occupied.append(tuple(boxes[best, 0]))
        style = {"ha": "center", "va": "center", "fontsize": size, "color": INK, "zorder": 6}
        style["path_effects"] = [withStroke(linewidth=2, foreground=PAPER)]
        if best >= len(ANGLES):
            style["arrowprops"] = {"arrowstyle": "-", "color": INK, "linewidth": 0.7, "shrinkA": 1, "shrinkB": MARKER}
        axes.annotate(text, (x, y), tuple(offsets[best]), textcoords="offset points", **style)


def _families(rows: Sequence[Row], key: str) -> list[Family]:
    """Trained rows of one algorithm and penalty, with the value of the setting `key`, in the order of that value."""
    members: dict[str, list[tuple[object, Row]]] = {}
    for row in rows:
        if row.family != "base" and row.evaluated:
            algorithm = line(row.settings.get("algorithm.name"), 30).upper()
            matched = " matched" if row.settings.get("regularizer.match") == "local" else ""
            name = f"{algorithm} {family_title(row.family)}{matched}"
            members.setdefault(name, []).append((row.settings.get(key), row))
    return [(name, sorted(family, key=lambda member: _order(member[0]))) for name, family in members.items()]


def _point(row: Row, x: Column, y: Column) -> tuple[Interval, Interval] | None:
    """A row's values in two columns, if it has both."""
    a, b = (row.scores.get(column.quantity) for column in (x, y))
    return (a, b) if a and b else None


def _bars(axes: Axes, xs: Sequence[Interval], ys: Sequence[Interval], **style: object) -> None:
    """The intervals of points, as bars in both directions; none where an interval is unknown."""
    across, up = (np.transpose([value.sides or (0.0, 0.0) for value in values]) for values in (xs, ys))
    xerr = across if across.any() else None
    axes.errorbar([x.value for x in xs], [y.value for y in ys], up, xerr, linestyle="none", **style)  # type: ignore[arg-type]


def name_axes(axes: Axes, x: Column, y: Column, x_title: str, y_title: str) -> None:
    """Name the axes, and turn over those of errors: up and right is then better everywhere."""
    beside = len(axes.figure.axes) > 1  # other panels, and so less room
    axes.set(xlabel=f"{x_title}  →", title=fill(_quality(y_title, y), LINE_OF_PANEL if beside else LINE))
    if x.direction < 0:
        axes.invert_xaxis()
    if y.direction < 0:
        axes.invert_yaxis()


def _quality(title: str, column: Column) -> str:
    return f"{title} (lower is better)" if column.direction < 0 else title


def _order(setting: object) -> tuple[bool, float, str]:
    known = isinstance(setting, int | float)
    return (False, float(setting), "") if known else (True, 0.0, str(setting))


def _text(setting: object) -> str:
    return f"{setting:g}" if isinstance(setting, int | float) else str(setting)


def _dash(name: str) -> object:
    return (0, (4, 1.5)) if "matched" in name else "-"
