"""One look for every figure: a colour-blind-safe palette, quiet axes, and SVG that suits light and dark pages.

Colours are Okabe and Ito's (jfly.uni-koeln.de/color, 2008), with ink in place of black for the base model; markers and
dashes tell rows apart without colour. Figures are drawn on `Figure` objects, so that no global state of matplotlib,
and no display, is involved.
"""

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image  # which matplotlib needs too

from carerft.report.rows import Row
from carerft.text import greek

PAPER, INK, MUTED, RULE = "#fffffe", "#1d2126", "#5c6571", "#d9dde2"
FAMILIES = {"base": (INK, "o"), "none": ("#d55e00", "s"), "rkl": ("#0072b2", "^"), "srkl": ("#009e73", "D")}
OTHERS = (("#cc79a7", "v"), ("#e69f00", "P"), ("#56b4e9", "X"), ("#8c6d31", "h"))
MOST_NAMES, MOST_LINES = 12, 4
"""Of a legend: one with more of both would be as high as its figure."""
DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.4, 1.2, 1.4)))
# On the page these colours become CSS variables, which the dark theme brightens.
VARIABLES = {
    PAPER: "paper", INK: "ink", MUTED: "muted", RULE: "rule", "#d55e00": "vermillion", "#0072b2": "blue",
    "#009e73": "green", "#cc79a7": "purple", "#e69f00": "orange", "#56b4e9": "sky", "#8c6d31": "brown",
}  # fmt: skip
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Look:
    """How a row is drawn in every figure. number: its place in the table, by which figures name it."""

    colour: str
    marker: str
    dash: str | tuple[int, tuple[float, ...]]
    number: int

    @property
    def stroke(self) -> str:
        """The dash of a line that is two pixels wide, as SVG has it."""
        return " ".join(f"{2 * length:g}" for length in self.dash[1]) if isinstance(self.dash, tuple) else "none"

    def line(self, width: float, label: str) -> dict[str, Any]:
        """Arguments of `Axes.plot` for a line of this width, named in the legend."""
        name = f"{self.number}  {greek(label)}"
        return {"color": self.colour, "linestyle": self.dash, "linewidth": width, "label": name}

    def points(self, size: float, edge: float) -> dict[str, Any]:
        """Arguments of `Axes.plot` for markers of this size, with a pale edge."""
        return {"marker": self.marker, "color": self.colour, "ms": size, "mec": PAPER, "mew": edge}


def make_looks(rows: Sequence[Row]) -> dict[str, Look]:
    """A look for each row's label: the colour and marker of its family; dashes tell a family's rows apart."""
    others = sorted({row.family for row in rows} - FAMILIES.keys())
    families = FAMILIES | dict(zip(others, cycle(OTHERS), strict=False))
    dashes = {family: cycle(DASHES) for family in families}
    return {
        row.label: Look(*families[row.family], next(dashes[row.family]), number) for number, row in enumerate(rows, 1)
    }


def styled() -> AbstractContextManager[None]:
    """A context in which matplotlib draws in this style, whatever the user's settings, which it then restores."""
    return matplotlib.style.context(Path(__file__).with_name("carerft.mplstyle"), after_reset=True)


def new_figure(width: float, height: float, count: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure, in inches, with so many pairs of axes side by side, without tick marks: the grid shows where the labels
    belong."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = [figure.add_subplot(1, count, number) for number in range(1, count + 1)]
    for axes in panels:
        axes.tick_params(length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    return figure, panels


def arrange(figure: Figure) -> None:
    """Add the legend, and place a figure's parts once, so that each format is drawn without placing them again."""
    legend(figure)
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine("none")


def legend(figure: Figure) -> None:
    """Names beneath the axes, in as many columns as fit; a list makes the figure taller, and a long one is left out."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    characters = 13.3 * figure.get_figwidth()  # of the legend's size, on one line
    columns = min(max(int(characters // (max(map(len, handles)) + 6)), 1), len(handles))
    lines = -(-len(handles) // columns)
    if len(handles) > MOST_NAMES and lines > MOST_LINES:
        figure.supxlabel("numbers: rows of the table, from its top", x=0, ha="left", fontsize=8, color=MUTED)
    else:
        figure.set_figheight(figure.get_figheight() + 0.165 * max(0, lines - 2))
        place = {"loc": "outside lower left", "ncols": columns, "handletextpad": 0.5, "columnspacing": 1.6}
        figure.legend(handles.values(), handles, **place)


def without_legend(text: str, figure: Figure) -> str:
    """A figure's `svg` without the legend at its foot, and as much lower: the page has one for several figures."""
    if not figure.legends:
        return text
    foot = figure.legends[0].get_window_extent().y1 * 72 / figure.dpi
    text = re.sub(r'\n( *)<g id="legend_1">.*?\n\1</g>', "", text, flags=re.DOTALL)
    return re.sub(r'(viewBox="0 0 \S+) (\S+)"', lambda box: f'{box[1]} {float(box[2]) - foot:.2f}"', text)


def svg(figure: Figure) -> str:
    """The figure as SVG text, the same for the same figure, with generic fonts."""
    text = io.StringIO()
    nameless = {"Date": None, "Creator": None, "Format": None, "Type": None}
    FigureCanvasSVG(figure).print_svg(text, metadata=nameless)  # `savefig` would draw everything twice
    return text.getvalue().replace("'DejaVu Sans', sans-serif", FONTS).replace("'DejaVu Sans'", FONTS)


def png(figure: Figure) -> bytes:
    """The figure as a PNG image of at most 256 colours, a third as large as one of all colours."""
    data = io.BytesIO()
    figure.set_dpi(180)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize().save(data, "PNG", optimize=True)
    return data.getvalue()


def inline_svg(text: str, name: str, label: str) -> str:
    """`svg` text as an element of the page, with unique ids and with CSS variables for colours.

    name: a prefix for ids, unique on the page. label: what it shows, in words, for readers who can't see it.
    """
    body = text[text.index("<svg") :]
    body = re.sub(r"\s*<metadata>.*?</metadata>|\s*<!--.*?-->", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = body.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    body = re.sub(r' (?:d|x|y|x1|x2|y1|y2|width|height|transform)="[^"]*"', _shortened, body)
    body = re.sub(r"\n\s*", "\n", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    head, rest = body.split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', head)
    assert box is not None
    width = float(box[1].split()[2])
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box[1]}"'
    return f'{opening} role="img" aria-label="{escape(label)}" style="--width: {width * 4 / 3:.0f}px">{rest}'


def _shortened(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point: less than can be seen, in half the bytes."""
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute[0]).replace(" \n", " ")
