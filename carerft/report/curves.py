"""Training curves: what happened to a quantity from step to step, by row and seed."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from carerft.report.cells import Cell
from carerft.report.style import Look, legend, new_figure, quiet
from carerft.runs.reading import Run
from carerft.text import greek

Line = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps and values, each of shape (steps,)
CURVES = {
    "reward/mean": ("Reward", "mean reward"),
    "policy/kl_to_reference": ("Divergence from the base", "KL to the base, nats/token"),
    "policy/entropy": ("Token entropy", "nats/token"),
    "rollout/refused": ("Refusals in training", "share of samples"),
}
MOST_POINTS = 8000  # of a figure; curves are thinned to fit, by averaging neighbours


def curves(cells: Sequence[Cell], metric: str, look: dict[str, Look]) -> Figure:
    """One quantity over training: raw values pale, each seed's smoothed line thin, the row's mean over seeds bold."""
    figure = new_figure(5.4, 3.4)
    axes = figure.add_subplot()
    quiet(axes)
    drawn = sum(2 * len(cell.runs) + 1 for cell in cells)
    most = max(MOST_POINTS // drawn, 50)
    for cell in cells:
        style = look[cell.label]
        lines = [line for run in cell.runs if (line := _curve(run, metric)) is not None]
        if not lines:
            continue
        for steps, values in lines:
            axes.plot(*_thinned(steps, values, most), color=style.colour, alpha=0.16, linewidth=0.7)
            if len(lines) > 1:
                axes.plot(*_thinned(steps, smooth(values), most), color=style.colour, alpha=0.45, linewidth=0.8)
        steps, mean = _mean_curve([line for run in cell.runs if run.counts and (line := _curve(run, metric))] or lines)
        axes.plot(
            *_thinned(steps, smooth(mean), most),
            color=style.colour,
            linestyle=style.dash,
            linewidth=2,
            label=greek(cell.label),
        )
    axes.set_title(CURVES[metric][0])
    axes.set_ylabel(CURVES[metric][1])
    axes.set_xlabel("learner step")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.margins(x=0.02)
    legend(figure, axes)
    return figure


def curve_metrics(cells: Sequence[Cell]) -> list[str]:
    """Which of the curves any run has."""
    return [name for name in CURVES if any(_curve(run, name) is not None for cell in cells for run in cell.runs)]


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(steps,) centred moving average over a twelfth of the curve; at the ends over what there is. NaN counts not."""
    half = max(1, len(values) // 24)
    known = ~np.isnan(values)
    kernel = np.ones(2 * half + 1)
    sums = np.convolve(np.where(known, values, 0.0), kernel)[half : half + len(values)]
    counts = np.convolve(known.astype(float), kernel)[half : half + len(values)]
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def _curve(run: Run, metric: str) -> Line | None:
    values = run.curves.get(metric)
    return None if values is None else (run.curves["step"], values)


def _mean_curve(lines: Sequence[Line]) -> Line:
    """The mean over seeds at the steps that all of them have."""
    shared = lines[0][0]
    for steps, _ in lines[1:]:
        shared = np.intersect1d(shared, steps)
    return shared, np.mean([values[np.isin(steps, shared)] for steps, values in lines], axis=0)


def _thinned(steps: NDArray[np.float64], values: NDArray[np.float64], most: int) -> Line:
    """At most so many points, each the mean of neighbours."""
    stride = -(-len(steps) // most)
    if stride <= 1:
        return steps, values
    edges = np.arange(0, len(steps), stride)
    sizes = np.diff(np.append(edges, len(steps)))
    return np.add.reduceat(steps, edges) / sizes, np.add.reduceat(values, edges) / sizes
