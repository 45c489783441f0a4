"""A setting that an experiment varies: the paper's columns over it, and two columns against each other along it."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from carerft.metrics.intervals import Interval
from carerft.report.cells import Cell, Scores, family_title
from carerft.report.columns import Column
from carerft.report.labels import label_points
from carerft.report.paired import settings
from carerft.report.style import PAPER, Look, legend, new_figure, quiet
from carerft.text import decimal, greek, line

Family = tuple[str, list[tuple[object, Cell]]]


def families(cells: Sequence[Cell], key: str) -> list[Family]:
    """Rows that differ in `key` alone, or in nothing but the regularizer's beta and alpha, by the value of the key:
    a name and (value, row) pairs. Base models belong to none."""
    found: dict[str, list[tuple[object, Cell]]] = {}
    for cell in cells:
        if cell.family == "base" or not cell.evaluated:
            continue
        own = settings(cell)
        name = family_name(cell)
        found.setdefault(name, []).append((own.get(key), cell))
    return [(name, sorted(members, key=lambda m: _order(m[0]))) for name, members in found.items()]


def family_name(cell: Cell) -> str:
    """A row's algorithm and penalty, without the values of its settings."""
    own = settings(cell)
    parts = [line(own.get("algorithm.name"), 30).upper(), family_title(cell.family)]
    parts += ["matched"] if own.get("regularizer.match") == "local" else []
    return " ".join(parts)


def _order(value: object) -> tuple[bool, float, str]:
    return (value is None, float(value), "") if isinstance(value, int | float) else (True, 0.0, str(value))


def along(cells: Sequence[Cell], scores: Scores, key: str, column: Column, look: dict[str, Look]) -> Figure:
    """One column over a setting, with intervals: a line for each family of rows, dashed levels for those without the
    setting (the base model, no penalty). Values are placed evenly: they are often powers or shares near 1."""
    figure = new_figure(4.6, 3.6)
    axes = figure.add_subplot()
    quiet(axes)
    found = families(cells, key)
    lines = [(name, members) for name, members in found if len(members) > 1]
    ticks = sorted({value for _, members in lines for value, _ in members}, key=_order)
    row = scores[column.benchmark, column.metric]
    value_of = {cell.label: row[index] for index, cell in enumerate(cells)}
    for number, (name, members) in enumerate(lines):
        style = look[members[0][1].label]
        points = [(ticks.index(value), value_of[cell.label]) for value, cell in members if value_of[cell.label]]
        xs = [x + 0.06 * (number - (len(lines) - 1) / 2) for x, _ in points]
        ys = [y.value for _, y in points if y]
        axes.plot(xs, ys, style.marker, linestyle=_dash(name), color=style.colour, ms=6, mec=PAPER, mew=0.8, label=name)
        axes.vlines(xs, *_ends([y for _, y in points if y]), color=style.colour, linewidth=1.1, alpha=0.6)
    levels = [cell for cell in cells if cell.family == "base"]
    levels += [members[0][1] for _, members in found if len(members) == 1]
    for cell in levels:
        if value_of[cell.label]:
            style = look[cell.label]
            axes.axhline(value_of[cell.label].value, color=style.colour, linewidth=1.2, linestyle=(0, (1.5, 1.5)),
                         label=greek(cell.label))  # fmt: skip
    axes.set_xticks(range(len(ticks)), [f"{tick:g}" if isinstance(tick, int | float) else str(tick) for tick in ticks])
    axes.set_xlabel(key.removeprefix("regularizer."))
    axes.set_title(f"{column.group} {'(lower is better)' if column.direction < 0 else ''}".strip())
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    legend(figure, axes)
    return figure


def frontier(cells: Sequence[Cell], scores: Scores, key: str, x: Column, y: Column, look: dict[str, Look]) -> Figure:
    """One column against another, the rows of a family joined in the order of `key`; up and right is better."""
    figure = new_figure(4.8, 4.4)
    axes = figure.add_subplot()
    quiet(axes)
    across, up = scores[x.benchmark, x.metric], scores[y.benchmark, y.metric]
    place = {cell.label: (across[i], up[i]) for i, cell in enumerate(cells) if across[i] and up[i]}
    labels: list[tuple[str, float, float]] = []
    bases = [("base model", [(None, cell)]) for cell in cells if cell.family == "base" and cell.label in place]
    for name, members in [*bases, *families(cells, key)]:
        points = [(value, place[cell.label]) for value, cell in members if cell.label in place]
        if not points:
            continue
        style = look[members[0][1].label]
        xs, ys = ([pair[axis].value for _, pair in points] for axis in (0, 1))
        axes.errorbar(xs, ys, xerr=_errors([p[0] for _, p in points]), yerr=_errors([p[1] for _, p in points]),
                      color=style.colour, linestyle="none", elinewidth=0.8, alpha=0.4)  # fmt: skip
        axes.plot(xs, ys, style.marker, linestyle=_dash(name), color=style.colour, ms=6.5, mec=PAPER, mew=1,
                  label=greek(name))  # fmt: skip
        if len(points) > 1:
            labels += [(f"{v:g}" if isinstance(v, int | float) else str(v), a.value, b.value) for v, (a, b) in points]
    axes.margins(0.12)
    axes.set_xlabel(f"{x.group}{'  (lower is better)' if x.direction < 0 else ''}  →")
    axes.set_title(f"{y.group} {'(lower is better)' if y.direction < 0 else ''}".strip())
    for column, turn in ((x, axes.invert_xaxis), (y, axes.invert_yaxis)):
        if column.direction < 0:
            turn()
    label_points(axes, labels, size=7, all_of_them=False)
    legend(figure, axes)
    return figure


def _dash(name: str) -> object:
    return (0, (4, 1.5)) if "matched" in name else "-"


def _ends(values: Sequence[Interval]) -> tuple[list[float], list[float]]:
    lows = [v.value if v.low is None else v.low for v in values]
    return lows, [v.value if v.high is None else v.high for v in values]


def _errors(values: Sequence[Interval]) -> list[list[float]]:
    sides = [value.sides or (0.0, 0.0) for value in values]
    return [[side[end] for side in sides] for end in (0, 1)]


def in_words(cells: Sequence[Cell], scores: Scores, shown: Sequence[Column]) -> str:
    """The figure's points, for those who can't see it."""
    rows = []
    for index, cell in enumerate(cells):
        values = [scores[column.benchmark, column.metric][index] for column in shown]
        if all(values):
            rows.append(f"{greek(cell.label)} " + ", ".join(decimal(v.value) for v in values if v))
    return f"{' against '.join(column.group for column in shown)}. {'; '.join(rows)}."
