"""Short texts beside the points of a figure, at positions where they cover neither each other nor a point."""

import itertools
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from carerft.report.figures.style import INK, PAPER

Box = tuple[float, float, float, float]  # left, bottom, right, top; points of 1/72 inch
MARKER = 3.5  # half the width of a marker
ANGLES = (45, 0, -45, 90, -90, 135, 180, -135)  # above and to the right first
DISTANCES = (7.0, 13.0, 19.0)


def label_points(axes: Axes, labels: Sequence[tuple[str, float, float]], size: float, all_of_them: bool = True) -> None:
    """Write each (text, x, y) beside (x, y), at the nearest free position, or else where it covers least.

    Call it after everything else has been drawn. Without `all_of_them`, only positions close to the points count, and a
    text without a free one is left out.
    """
    axes.autoscale_view()
    scale = 72 / axes.figure.dpi
    points = [axes.transData.transform((x, y)) * scale for _, x, y in labels]
    distances = DISTANCES if all_of_them else DISTANCES[:1]
    occupied: list[Box] = [_around(x, y, MARKER, MARKER) for x, y in points]
    for (text, *at), (x, y) in zip(labels, points, strict=True):
        width, height = 0.32 * size * len(text), 0.5 * size
        offsets = [
            ((distance + width) * math.cos(math.radians(angle)), (distance + height) * math.sin(math.radians(angle)))
            for distance, angle in itertools.product(distances, ANGLES)
        ]
        boxes = [_around(x + dx, y + dy, width, height) for dx, dy in offsets]
        covered = [sum(_overlap(box, other) for other in occupied) for box in boxes]
        best = covered.index(min(covered))
        if covered[best] and not all_of_them:
            continue
        occupied.append(boxes[best])
        style = {"ha": "center", "va": "center", "fontsize": size, "color": INK, "zorder": 6}
        halo = [withStroke(linewidth=2, foreground=PAPER)]
        axes.annotate(text, (at[0], at[1]), offsets[best], textcoords="offset points", path_effects=halo, **style)


def _around(x: float, y: float, width: float, height: float) -> Box:
    return x - width, y - height, x + width, y + height


def _overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    across, up = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    return max(0.0, across) * max(0.0, up)
