"""Figures of the floor: what each character of a story costs, and the lines to read a loss against."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from course.figures.sheet import coloured_text
from course.plots import COLORS, INK
from slm.data.floor import ReferenceLines


def surprisal_strip(text: str, nats: Sequence[float], full: float = 2.5) -> Figure:
    """A text whose characters are coloured by their surprisal; `full` nats get full colour."""
    behind = [
        (COLORS[1], round(min(value, full) / full, 2)) if value > 0.01 else None
        for value in nats
    ]
    free = sum(value < 0.01 for value in nats) / max(len(text), 1)
    note = f"{sum(nats):.1f} nats in {len(text)} characters; {free:.0%} of the characters cost nothing."
    ends = "0 nats", f"{full} or more"
    return coloured_text(text, behind, note, (COLORS[1], ends))


def lines_figure(lines: ReferenceLines) -> Figure:
    """The four lines as bars, from who knows nothing to who knows the grammar."""
    names = ["uniform", "unigram", "bigram", "floor"]
    values = [getattr(lines, name) for name in names]
    figure, axes = plt.subplots(figsize=(7, 2.4), layout="constrained")
    bars = axes.barh(names, values, color=[COLORS[7]] * 3 + [COLORS[1]], height=0.62)
    axes.bar_label(bars, fmt="%.2f", padding=4, color=INK)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="nats per token", xlim=(0, max(values) * 1.1))
    plt.close(figure)
    return figure
