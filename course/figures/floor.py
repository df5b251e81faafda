"""Figures of the floor: what each character of a story costs, and the lines to read a loss against."""

import html
from collections.abc import Sequence

import matplotlib.pyplot as plt
from IPython.display import HTML
from matplotlib.figure import Figure

from course.plots import COLORS, INK
from slm.data.floor import ReferenceLines


def surprisal_strip(text: str, nats: Sequence[float], full: float = 2.5) -> HTML:
    """A text whose characters are coloured by their surprisal, with the value on hover; `full` nats get full colour."""
    spans = []
    for character, value in zip(text, nats, strict=True):
        shade = 0.85 * min(value, full) / full if value > 1e-9 else 0.0
        style = f"background:rgba(249,115,22,{shade:.2f})" if shade > 0.005 else ""
        name = html.escape(character, quote=True)
        spans.append(
            f'<span title="{name}: {abs(value):.2f} nats" style="{style}">{name}</span>'
        )
    free = sum(value < 0.01 for value in nats) / max(len(text), 1)
    caption = f"{sum(nats):.1f} nats in {len(text)} characters; {free:.0%} of the characters cost nothing."
    return HTML(
        '<div style="font-family:monospace;line-height:1.9;max-width:46em;white-space:pre-wrap;color:currentColor">'
        f'{"".join(spans)}</div><div style="font-size:.85em;opacity:.75;margin-top:.6em">{caption}</div>'
    )


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
