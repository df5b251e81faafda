"""One look for all figures: readable on a light and on a dark page, sharp at any size.

A notebook holds each figure as a PNG on white paper, which shows wherever notebooks are shown. For the book a chapter is run
with `BOOK` set in the environment and draws an SVG, too, whose colours the page's theme replaces (`course.drawings`).
"""

import math
import os

import matplotlib as mpl
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
