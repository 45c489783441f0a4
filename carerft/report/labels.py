"""Short texts beside the points of a figure, where they cover neither each other nor a point."""

import itertools
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from carerft.report.style import INK, PAPER

Box = tuple[float, float, float, float]  # left, bottom, right, top; points of 1/72 inch
MARKER = 3.5  # half the width that a marker takes
ANGLES = (45, 0, -45, 90, -90, 135, 180, -135)  # above and to the right first
DISTANCES = (7.0, 13.0, 19.0)


def label_points(axes: Axes, labels: Sequence[tuple[str, float, float]], size: float, all_of_them: bool = True) -> None:
    """Write (text, x, y) beside (x, y), after everything else has been drawn: where that is free, or else covers least.
    Without `all_of_them` only close to the points, and where no place is free, nothing."""
    axes.autoscale_view()
    scale = 72 / axes.figure.dpi
    points = [tuple(axes.transData.transform((x, y)) * scale) for _, x, y in labels]
    distances = DISTANCES if all_of_them else DISTANCES[:1]
    taken: list[Box] = [_around(*point, MARKER, MARKER) for point in points]
    for (text, *place), point in zip(labels, points, strict=True):
        width, height = 0.32 * size * len(text), 0.5 * size
        offsets = [
            ((distance + width) * math.cos(math.radians(angle)), (distance + height) * math.sin(math.radians(angle)))
            for distance, angle in itertools.product(distances, ANGLES)
        ]
        boxes = [_around(point[0] + dx, point[1] + dy, width, height) for dx, dy in offsets]
        covered = [sum(_shared(box, other) for other in taken) for box in boxes]
        best = covered.index(min(covered))
        if covered[best] and not all_of_them:
            continue
        taken.append(boxes[best])
        axes.annotate(
            text, place, offsets[best], textcoords="offset points", ha="center", va="center", fontsize=size, color=INK,
            path_effects=[withStroke(linewidth=2, foreground=PAPER)], zorder=6,
        )  # fmt: skip


def _around(x: float, y: float, width: float, height: float) -> Box:
    return x - width, y - height, x + width, y + height


def _shared(a: Box, b: Box) -> float:
    """The area of both."""
    across, up = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    return max(0.0, across) * max(0.0, up)
