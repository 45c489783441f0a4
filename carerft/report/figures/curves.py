"""While a policy learned: what was logged of it and how it was measured, by learner step and against each other."""

from collections.abc import Mapping, Sequence
from functools import reduce
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from carerft.metrics.statistics import ratio
from carerft.report.columns import Column, benchmark_title
from carerft.report.figures.points import LINE, label_points, mark_better, name_axes
from carerft.report.figures.style import INK, Look, new_figure
from carerft.report.rows import Row

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and values, each of shape (steps,)."""
Path = tuple[list[int], NDArray[np.float64]]
"""Steps, and the columns' values after each of them, (steps, columns)."""
CURVES = {
    "reward/mean": ("Reward", "mean reward"),
    "policy/kl_to_reference": ("Divergence from the base", "KL to the base, nats/token"),
    "policy/entropy": ("Token entropy", "nats/token"),
    "rollout/refused": ("Refusals in training", "share of samples"),
}
MOST_POINTS = 8000
"""Points of a figure; longer curves are thinned by averaging neighbours."""


def curves(rows: Sequence[Row], metric: str, looks: Mapping[str, Look]) -> Figure:
    """One quantity over training: raw values pale, each seed's smoothed line thin, the row's mean over seeds bold."""
    figure, (axes,) = new_figure(5.4, 3.4)
    ends = []
    most = max(MOST_POINTS // sum(2 * len(row.runs) + 1 for row in rows), 50)
    for row in rows:
        look = looks[row.label]
        seeds = [(run, (run.curves["step"], run.curves[metric])) for run in row.runs if metric in run.curves]
        if not seeds:
            continue
        for _, (steps, values) in seeds:
            axes.plot(*_thinned(steps, values, most), color=look.colour, alpha=0.16, linewidth=0.7)
            if len(seeds) > 1:
                axes.plot(*_thinned(steps, smooth(values), most), color=look.colour, alpha=0.45, linewidth=0.8)
        steps, mean = _mean([curve for run, curve in seeds if run.has_results] or [curve for _, curve in seeds])
        steps, mean = _thinned(steps, smooth(mean), most)
        axes.plot(steps, mean, **look.line(2, row.label))
        if known := np.flatnonzero(~np.isnan(mean)).tolist():
            ends.append((str(look.number), steps[known[-1]], mean[known[-1]]))
    title, unit = CURVES[metric]
    axes.set(title=title, ylabel=unit, xlabel="learner step")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.margins(x=0.05)
    label_points(axes, ends, size=8.5)
    return figure


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(steps,) centred moving average over a twelfth of the curve, over fewer points at the ends. NaN is left out."""
    half = max(1, len(values) // 24)
    known = ~np.isnan(values)
    kernel = np.ones(2 * half + 1)
    sums = np.convolve(np.where(known, values, 0.0), kernel)[half : half + len(values)]
    counts = np.convolve(known.astype(float), kernel)[half : half + len(values)]
    return ratio(sums, counts)


def _mean(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds at the steps that all of them have."""
    shared = reduce(np.intersect1d, [steps for steps, _ in curves])
    return shared, np.mean([values[np.isin(steps, shared)] for steps, values in curves], axis=0)


def _thinned(steps: NDArray[np.float64], values: NDArray[np.float64], most: int) -> Curve:
    """At most so many points, each the mean of neighbours."""
    stride = -(-len(steps) // most)
    if stride <= 1:
        return steps, values
    edges = np.arange(0, len(steps), stride)
    sizes = np.diff(np.append(edges, len(steps)))
    return np.add.reduceat(steps, edges) / sizes, np.add.reduceat(values, edges) / sizes


def measured(row: Row, columns: Sequence[Column]) -> Path | None:
    """The means over a row's seeds at the steps at which every seed was measured while it learned; None if at none."""
    runs = []
    for run in row.runs:
        found = {}
        for step, results in run.validations.items():
            values = [results[c.benchmark].metrics.get(c.metric) if c.benchmark in results else None for c in columns]
            if all(values):
                found[step] = [value.value for value in values if value]
        if found:
            runs.append(found)
    steps = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    if not steps:
        return None
    return steps, np.mean([[run[step] for step in steps] for run in runs], axis=0)


def paths(rows: Sequence[Row], columns: Sequence[Column]) -> list[tuple[Row, Path]]:
    """What was measured of each row in these columns; empty where no row was measured at two steps or more."""
    found = [(row, path) for row in rows if (path := measured(row, columns))]
    return found if any(len(steps) > 1 for _, (steps, _) in found) else []


def path(paths: Sequence[tuple[Row, Path]], x: Column, y: Column, looks: Mapping[str, Look]) -> Figure:
    """The rows' paths through accuracy against another metric. A path begins at its base; at its end stands its row's
    number in the table."""
    figure, (axes,) = new_figure(4.1, 3.9)
    ends: list[tuple[str, float, float]] = []
    for row, (steps, values) in paths:
        look = looks[row.label]
        axes.plot(values[:, 0], values[:, 1], marker=look.marker, ms=4, alpha=0.85, **look.line(1.3, row.label))
        axes.plot(*values[-1], **look.points(7.5, 1.2), linestyle="none", zorder=5)
        ends.append((str(look.number), *values[-1]))
        if steps[0] == 0:
            axes.plot(*values[0], "o", color=INK, ms=7, zorder=6)
            ends.append(("base", *values[0]))
    name_axes(axes, x, y, f"{benchmark_title(x.benchmark)} accuracy", y.caption)
    mark_better(axes)
    label_points(axes, list(dict.fromkeys(ends)), size=8.5)
    return figure


def over_steps(paths: Sequence[tuple[Row, Path]], column: Column, looks: Mapping[str, Look]) -> Figure:
    """One metric of the policy over steps, with its base at step 0."""
    figure, (axes,) = new_figure(4.1, 3.1)
    ends = []
    for row, (steps, values) in paths:
        look = looks[row.label]
        axes.plot(steps, values[:, 0], marker=look.marker, ms=4, **look.line(1.6, row.label))
        ends.append((str(look.number), steps[-1], values[-1, 0]))
    axes.set(title=fill(column.caption, LINE), xlabel="learner step")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.margins(x=0.05)
    label_points(axes, ends, size=8.5)
    return figure
