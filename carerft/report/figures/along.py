"""A setting that an experiment varies: the paper's columns over it, and two columns against each other along it."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from carerft.report.columns import Column
from carerft.report.figures.labels import label_points
from carerft.report.figures.style import Look, error_bars, legend, new_axes, point_of, quality_title, up_is_better
from carerft.report.rows import Row
from carerft.runs.labels import family_title
from carerft.text import greek, line

Family = tuple[str, list[tuple[object, Row]]]


def families(rows: Sequence[Row], key: str) -> list[Family]:
    """Trained rows of one algorithm and penalty, with the value of the setting `key`, in the order of that value."""
    members: dict[str, list[tuple[object, Row]]] = {}
    for row in rows:
        if row.family != "base" and row.evaluated:
            algorithm = line(row.settings.get("algorithm.name"), 30).upper()
            matched = " matched" if row.settings.get("regularizer.match") == "local" else ""
            name = f"{algorithm} {family_title(row.family)}{matched}"
            members.setdefault(name, []).append((row.settings.get(key), row))
    return [(name, sorted(family, key=lambda member: _order(member[0]))) for name, family in members.items()]


def along(rows: Sequence[Row], key: str, column: Column, looks: Mapping[str, Look]) -> Figure:
    """One column over a setting, with intervals: a line for each family, dashed levels for rows without the setting.

    Values stand at even distances: they are often powers, or shares near 1.
    """
    figure, axes = new_axes(4.6, 3.6)
    grouped = families(rows, key)
    lines = [(name, members) for name, members in grouped if len(members) > 1]
    ticks = sorted({setting for _, members in lines for setting, _ in members}, key=_order)
    for number, (name, members) in enumerate(lines):
        look = looks[members[0][1].label]
        points = [
            (ticks.index(setting), value) for setting, row in members if (value := row.scores.get(column.quantity))
        ]
        xs = [x + 0.06 * (number - (len(lines) - 1) / 2) for x, _ in points]
        style = look.points(6, 0.8) | {"linestyle": _dash(name), "label": name}
        axes.plot(xs, [value.value for _, value in points], **style)
        bars = error_bars([value for _, value in points])
        axes.errorbar(xs, [value.value for _, value in points], yerr=bars, color=look.colour, linestyle="none",
                      elinewidth=1.1, alpha=0.6)  # fmt: skip
    levels = [row for row in rows if row.family == "base"]
    levels += [members[0][1] for _, members in grouped if len(members) == 1]
    for row in levels:
        if value := row.scores.get(column.quantity):
            style = {"color": looks[row.label].colour, "linewidth": 1.2, "linestyle": (0, (1.5, 1.5))}
            axes.axhline(value.value, label=greek(row.label), **style)
    axes.set_xticks(range(len(ticks)), [_text(tick) for tick in ticks])
    axes.set(xlabel=key.removeprefix("regularizer."), title=quality_title(column.group, column.direction))
    legend(figure, axes)
    return figure


def frontier(rows: Sequence[Row], key: str, x: Column, y: Column, looks: Mapping[str, Look]) -> Figure:
    """One column against another, the rows of a family joined in the order of `key`; up and right is better."""
    figure, axes = new_axes(4.8, 4.4)
    labels: list[tuple[str, float, float]] = []
    bases: list[Family] = [("base model", [(None, row)]) for row in rows if row.family == "base"]
    for name, members in [*bases, *families(rows, key)]:
        known = [(setting, *point) for setting, row in members if (point := point_of(row, x, y))]
        if not known:
            continue
        look = looks[members[0][1].label]
        _, across, up = zip(*known, strict=True)
        xs, ys = [value.value for value in across], [value.value for value in up]
        bars = {"xerr": error_bars(across), "yerr": error_bars(up), "linestyle": "none", "elinewidth": 0.8}
        axes.errorbar(xs, ys, color=look.colour, alpha=0.4, **bars)
        axes.plot(xs, ys, **look.points(6.5, 1), linestyle=_dash(name), label=greek(name))
        if len(known) > 1:
            labels += [(_text(setting), a.value, b.value) for setting, a, b in known]
    axes.margins(0.12)
    axes.set_xlabel(f"{quality_title(x.group, x.direction)}  →")
    axes.set_title(quality_title(y.group, y.direction))
    up_is_better(axes, x.direction, y.direction)
    label_points(axes, labels, size=7, all_of_them=False)
    legend(figure, axes)
    return figure


def _order(setting: object) -> tuple[bool, float, str]:
    known = isinstance(setting, int | float)
    return (False, float(setting), "") if known else (True, 0.0, str(setting))


def _text(setting: object) -> str:
    return f"{setting:g}" if isinstance(setting, int | float) else str(setting)


def _dash(name: str) -> object:
    return (0, (4, 1.5)) if "matched" in name else "-"
