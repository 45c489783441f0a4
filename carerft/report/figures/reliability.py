"""Reliability diagrams: how often answers of a given confidence are right, and how confident answers are."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from carerft.metrics.calibration import Reliability
from carerft.metrics.statistics import ratio
from carerft.report.figures.style import INK, MUTED, PAPER, Look
from carerft.report.rows import Row, describe
from carerft.text import decimal, greek

PANEL_WIDTH, PANEL_HEIGHT, SIDE = 2.55, 3.5, 1.95  # inches: one panel's share of the figure, and its square


def pooled_reliability(row: Row, benchmark: str) -> Reliability | None:
    """The bins of all of a row's seeds as one; None where there are none, or seeds were binned differently."""
    parts = [result.reliability for result in row.results(benchmark) if result.reliability is not None]
    if not parts or any(not np.array_equal(part.edges, parts[0].edges) for part in parts):
        return None
    counts = np.array([part.count for part in parts])  # (seeds, bins)
    values = (np.nan_to_num([getattr(part, name) for part in parts]) for name in ("confidence", "accuracy"))
    return Reliability(parts[0].edges, counts.sum(0), *(ratio((counts * v).sum(0), counts.sum(0)) for v in values))


def reliability(rows: Sequence[Row], benchmark: str, looks: Mapping[str, Look], title: str = "") -> Figure | None:
    """The rows' reliability diagrams on a benchmark, at most four side by side, each above a histogram of confidences.

    None where no row has bins. title: the benchmark's, for a figure that stands alone. Positions are fixed, in inches,
    so that squares stay square.
    """
    panels = [(row, bins) for row in rows if (bins := pooled_reliability(row, benchmark))]
    if not panels:
        return None
    columns = min(len(panels), 4)
    top = 0.35 if title else 0.0
    width, height = PANEL_WIDTH * columns, PANEL_HEIGHT * -(-len(panels) // columns) + top
    figure = Figure(figsize=(width, height))
    shares = [bins.count / max(bins.count.sum(), 1) for _, bins in panels]  # (bins,) of a row's questions
    tallest = max(float(share.max()) for share in shares)  # the histograms share their scale
    for index, ((row, bins), share) in enumerate(zip(panels, shares, strict=True)):
        line, column = divmod(index, columns)
        left, floor = column * PANEL_WIDTH + 0.5, height - top - (line + 1) * PANEL_HEIGHT
        boxes = [(left, floor + 1.13, SIDE, SIDE), (left, floor + 0.45, SIDE, 0.55)]
        upper, lower = (figure.add_axes((x / width, y / height, w / width, h / height)) for x, y, w, h in boxes)
        _diagram(upper, bins, share, looks[row.label].colour)
        _histogram(lower, bins, share, looks[row.label].colour, tallest)
        label = f"{looks[row.label].number}  {greek(row.label)}"
        upper.set_title(label, fontsize=min(9.5, 9.5 * 21 / len(label)))  # as long as a panel is wide
        if ece := row.scores.get((benchmark, "ece")):
            calibrated = row.scores.get((benchmark, "ece_floor"))
            text = f"\n({decimal(calibrated.value)} if calibrated)" if calibrated else ""
            named = describe("ece").title.replace(", ", ",\n")
            upper.text(0.05, 0.95, f"{named}: {decimal(ece.value)}{text}", va="top", fontsize=8, color=INK)
    if title:
        heading = {"va": "top", "color": INK, "fontweight": "bold", "fontsize": 11}
        figure.text(0.5 / width, 1 - 0.12 / height, f"Reliability on {title}", **heading)
    return figure


def _diagram(axes: Axes, bins: Reliability, share: NDArray[np.float64], colour: str) -> None:
    """Accuracy by confidence, the gap to the diagonal shaded; the area of a dot is its bin's share."""
    filled = bins.count > 0
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
    x, y, sizes = bins.confidence[filled], bins.accuracy[filled], 14 + 130 * share[filled]
    axes.vlines(x, x, y, color=colour, alpha=0.28, linewidth=5)
    axes.plot(x, y, color=colour, linewidth=1, alpha=0.6)
    axes.scatter(x, y, s=sizes, color=colour, edgecolor=PAPER, linewidth=0.8, zorder=3, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1], ylabel="accuracy")
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.tick_params(length=0, labelbottom=False)
    axes.yaxis.set_label_coords(-0.17, 0.5)


def _histogram(axes: Axes, bins: Reliability, share: NDArray[np.float64], colour: str, tallest: float) -> None:
    """The share of questions in each bin."""
    widths = np.diff(bins.edges)
    axes.bar(bins.edges[:-1] + widths / 2, share, width=widths * 0.86, color=colour, alpha=0.75)
    highest = np.ceil(max(tallest, 0.05) * 10) / 10
    axes.set(xlim=(0, 1), ylim=(0, highest), xlabel="confidence", ylabel="share")
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, highest], ["0", f"{100 * highest:.0f}%"])
    axes.grid(visible=False, axis="x")
    axes.tick_params(length=0)
    axes.yaxis.set_label_coords(-0.17, 0.5)
