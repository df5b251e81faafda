"""One look for all figures: readable on a light and on a dark page, sharp at any size.

A notebook holds each figure as a PNG on white paper, which shows wherever notebooks are shown. For the book a chapter is run
with `BOOK` set in the environment and draws an SVG, too, whose colours the page's theme replaces (`course.drawings`).
"""

import math
import os
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.rcsetup import cycler
from matplotlib_inline.backend_inline import set_matplotlib_formats

from course import BOOK

COLORS = (
    "#2563eb",  # blue
    "#c2540a",  # orange
    "#047857",  # green
    "#9333ea",  # purple
    "#be185d",  # red
    "#857000",  # olive
    "#0e7490",  # cyan
    "#6b7280",  # grey
)
"""Eight colours that text may have on the paper, and that the paper's colour may have as text on them."""

INK = "#1f2937"
"""Text, axes and ticks; also readable on a `TINT` of any colour."""

PAPER = "#ffffff"

TINT = 0.45
"""How opaque a field of one of the colours is at most when ink stands on it."""

SMALL = 9.0
"""The smallest type, in points: 12 pixels in the book. What is written in a figure has 10, unless it says `SMALL`."""

WIDTH = 7.5
"""The widest figure, in inches: 720 pixels, as wide as the book's column. A narrower page scrolls it."""


def style() -> None:
    """Set matplotlib's defaults: ink on paper, no box, a faint grid, text that stays text, the same bytes at every run."""
    formats = ("svg", "retina") if BOOK in os.environ else ("retina",)
    nameless = {"Date": None, "Creator": None}
    set_matplotlib_formats(*formats, metadata=nameless, pad_inches=0.04)
    mpl.rcParams.update(
        {
            "svg.hashsalt": "slm",
            "svg.fonttype": "none",
            "figure.facecolor": PAPER,
            "figure.figsize": (7.0, 3.2),
            "figure.dpi": 96,
            "axes.facecolor": "none",
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "axes.titlesize": "medium",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(color=COLORS),
            "grid.color": INK,
            "grid.alpha": 0.2,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.frameon": False,
            "font.size": 10,
            "font.sans-serif": ["DejaVu Sans"],
            "font.monospace": ["DejaVu Sans Mono"],
            "lines.linewidth": 1.8,
        }
    )


def by_powers(*axes: Axis) -> None:
    """Label logarithmic axes with powers of ten; matplotlib would set the exponents too small to read."""

    def label(value: float, _: float) -> str:
        exponent = str(round(math.log10(value)))
        return "10" + exponent.translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))

    for axis in axes:
        axis.set_major_formatter(label)


def name_points(
    axes: Axes,
    points: Sequence[tuple[float, float, str, str]],
    away: float = 8,
    size: float = 10,
) -> None:
    """Write a name to the right of each point, moved up or down so that no two names lie on each other.

    It stands where a legend would have to be looked up. Call it last: it needs the limits of the axes.

    Args:
        points: x, y, name and colour of each, in the units of the axes.
        away: From the point to its name, in typographic points, as is `size`.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    to_points = 72 / figure.dpi
    heights = [axes.transData.transform((x, y))[1] * to_points for x, y, _, _ in points]
    gap = 1.3 * size
    order = sorted(range(len(points)), key=heights.__getitem__)
    blocks: list[list[float]] = []  # of names that touch: each one's height at n = 0
    for n, k in enumerate(order):
        block = [heights[k] - n * gap]
        while blocks and fmean(blocks[-1]) > fmean(block):
            block = blocks.pop() + block
        blocks.append(block)
    moved = [fmean(block) for block in blocks for _ in block]
    for n, (k, height) in enumerate(zip(order, moved, strict=True)):
        x, y, name, color = points[k]
        line: dict[str, Any] = {"arrowstyle": "-", "color": color, "linewidth": 0.7}
        line |= {"relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 3}
        up = height + n * gap - heights[k]
        axes.annotate(
            name,
            (x, y),
            (away, up),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=size,
            arrowprops=line if max(abs(up), away - 12) > 3 else None,
            annotation_clip=False,
        )
