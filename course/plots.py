"""One look for all figures, on a light and on a dark page, sharp at any size."""

import matplotlib as mpl
from matplotlib.rcsetup import cycler
from matplotlib_inline.backend_inline import set_matplotlib_formats

COLORS = (
    "#3b82f6",
    "#f97316",
    "#10b981",
    "#a855f7",
    "#ef4444",
    "#eab308",
    "#06b6d4",
    "#8b8b8b",
)
"""Eight colours that keep their contrast on white and on near black."""

INK = "#808890"
"""Text, axes and ticks: a grey between the two pages."""


def style() -> None:
    """Set matplotlib's defaults: transparent SVG, grey ink, no box, a faint grid, reproducible ids."""
    set_matplotlib_formats(
        "svg", metadata={"Date": None, "Creator": None}
    )  # the same bytes at every run
    mpl.rcParams.update(
        {
            "svg.hashsalt": "slm",
            "svg.fonttype": "path",
            "savefig.transparent": True,
            "figure.facecolor": "none",
            "figure.figsize": (7.0, 3.2),
            "axes.facecolor": "none",
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "axes.titlesize": "medium",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.prop_cycle": cycler(color=COLORS),
            "grid.color": INK,
            "grid.alpha": 0.2,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.frameon": False,
            "font.size": 10,
            "lines.linewidth": 1.8,
        }
    )
