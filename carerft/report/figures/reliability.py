"""Reliability diagrams: how often answers of a given confidence are right, and how confident answers are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from carerft.metrics.calibration import Reliability
from carerft.metrics.statistics import Interval
from carerft.report.figures.style import INK, MUTED, PAPER, Look, new_figure
from carerft.report.rows import Row, Scores
from carerft.text import decimal, greek

PANEL_WIDTH, PANEL_HEIGHT, SIDE = 2.55, 3.5, 1.95  # inches: one panel's share of the figure, and its square


def pooled_reliability(row: Row, benchmark: str) -> Reliability | None:
    """The bins of all of a row's seeds as one; None where there are none, or seeds were binned differently."""
    parts = [result.reliability for result in row.results(benchmark) if result.reliability is not None]
    if not parts or any(not np.array_equal(part.edges, parts[0].edges) for part in parts):
        return None
    count = sum((part.count for part in parts), np.zeros_like(parts[0].count))

    def mean(name: str) -> NDArray[np.float64]:
        total = sum((np.nan_to_num(getattr(part, name)) * part.count for part in parts), np.zeros_like(count))
        return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)

    return Reliability(parts[0].edges, count, mean("confidence"), mean("accuracy"))


@dataclass(frozen=True)
class Diagram:
    """One row's reliability on one benchmark. floor: the ECE of perfect calibration at this k."""

    label: str
    colour: str
    bins: Reliability
    ece: Interval | None
    floor: Interval | None

    @property
    def shares(self) -> NDArray[np.float64]:
        """(bins,) of questions."""
        return self.bins.count / max(self.bins.count.sum(), 1)


def reliability(
    rows: Sequence[Row], scores: Scores, benchmark: str, looks: Mapping[str, Look], title: str = ""
) -> Figure | None:
    """The rows' reliability diagrams on a benchmark, at most four side by side, each above a histogram of confidences.

    None where no row has bins. title: the benchmark's, for a figure that stands alone. Positions are fixed, in inches,
    so that squares stay square.
    """
    eces, floors = (scores.get((benchmark, name), [None] * len(rows)) for name in ("ece", "ece_floor"))
    panels = [
        Diagram(greek(row.label), looks[row.label].colour, bins, ece, floor)
        for row, ece, floor in zip(rows, eces, floors, strict=True)
        if (bins := pooled_reliability(row, benchmark)) is not None
    ]
    if not panels:
        return None
    columns = min(len(panels), 4)
    top = 0.35 if title else 0.0
    width, height = PANEL_WIDTH * columns, PANEL_HEIGHT * -(-len(panels) // columns) + top
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    tallest = max(float(panel.shares.max()) for panel in panels)  # the histograms share their scale
    for index, panel in enumerate(panels):
        line, column = divmod(index, columns)
        left, floor = column * PANEL_WIDTH + 0.5, height - top - (line + 1) * PANEL_HEIGHT
        boxes = [(left, floor + 1.13, SIDE, SIDE), (left, floor + 0.45, SIDE, 0.55)]
        upper, lower = (figure.add_axes((x / width, y / height, w / width, h / height)) for x, y, w, h in boxes)
        _diagram(upper, lower, panel, tallest)
    if title:
        heading = {"va": "top", "color": INK, "fontweight": "bold", "fontsize": 11}
        figure.text(0.5 / width, 1 - 0.12 / height, f"Reliability on {title}", **heading)
    return figure


def _diagram(upper: Axes, lower: Axes, panel: Diagram, tallest: float) -> None:
    """Accuracy by confidence, the gap to the diagonal shaded, the area of a dot its bin's share; shares beneath."""
    bins, share = panel.bins, panel.shares
    filled = bins.count > 0
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
    x, y, sizes = bins.confidence[filled], bins.accuracy[filled], 14 + 130 * share[filled]
    upper.vlines(x, x, y, color=panel.colour, alpha=0.28, linewidth=5)
    upper.plot(x, y, color=panel.colour, linewidth=1, alpha=0.6)
    upper.scatter(x, y, s=sizes, color=panel.colour, edgecolor=PAPER, linewidth=0.8, zorder=3, clip_on=False)
    upper.set(xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1], ylabel="accuracy")
    upper.tick_params(length=0, labelbottom=False)
    upper.set_title(panel.label, fontsize=min(9.5, 9.5 * 21 / len(panel.label)))  # as long as a panel is wide
    if panel.ece is not None:
        floor = f"\n({decimal(panel.floor.value)} if calibrated)" if panel.floor is not None else ""
        upper.text(0.05, 0.95, f"ECE {decimal(panel.ece.value)}{floor}", va="top", fontsize=8.5, color=INK)
    widths = np.diff(bins.edges)
    lower.bar(bins.edges[:-1] + widths / 2, share, width=widths * 0.86, color=panel.colour, alpha=0.75)
    highest = np.ceil(max(tallest, 0.05) * 10) / 10
    lower.set(xlim=(0, 1), ylim=(0, highest), xlabel="confidence", ylabel="share")
    lower.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    upper.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    lower.set_yticks([0, highest], ["0", f"{100 * highest:.0f}%"])
    lower.grid(visible=False, axis="x")
    for axes in (upper, lower):
        axes.yaxis.set_label_coords(-0.17, 0.5)
    lower.tick_params(length=0)
