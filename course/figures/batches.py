"""Figures of the batches: the strip of inputs and targets, and how batches tile a corpus."""

from collections.abc import Iterable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import tiktoken
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course.figures.sheet import ADVANCE, cell, sheet
from course.plots import COLORS, INK, SMALL

SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
IGNORED = -100


def _shown(token: int, tokenizer: tiktoken.Encoding) -> str:
    """A token as a table shows it: its space visible, end-of-text as a sign."""
    if token == IGNORED:
        return "–"
    if token == tokenizer.eot_token:
        return "■"
    return tokenizer.decode([token]).replace(" ", "␣").replace("\n", "↵")


def strip(rows: Iterable[tuple[Any, Any]], tokenizer: tiktoken.Encoding) -> Figure:
    """Two lines for each row `(x, y)`: inputs, and under each its target. One colour for each document."""
    given = [(list(map(int, x)), list(map(int, y))) for x, y in rows]
    columns = zip(*[line for row in given for line in row], strict=True)
    longest = [max(len(_shown(t, tokenizer)) for t in column) for column in columns]
    widths = [max(16.0, ADVANCE * SMALL * n + 6) for n in longest]
    left, line, gap, document = 26.0, 17.0, 8.0, -1
    bottom = len(given) * (2 * line + gap)
    figure, axes = sheet(left + sum(widths), bottom + 16)
    for number, (inputs, targets) in enumerate(given):
        x, y = left, number * (2 * line + gap)
        for name, middle in (("x", y + line / 2), ("y", y + 1.5 * line)):
            told = f"{name}{number}".translate(SUBSCRIPTS)
            axes.text(left - 6, middle, told, ha="right", va="center")
        for token, target, width in zip(inputs, targets, widths, strict=True):
            used = target != IGNORED
            document += used and token == tokenizer.eot_token
            of_target = document + (target == tokenizer.eot_token)
            for top, t, of in ((y, token, document), (y + line, target, of_target)):
                tint = (COLORS[of % 5], 0.6) if used else (COLORS[7], 0.2)
                looks: dict[str, Any] = {"family": "monospace", "fontsize": SMALL}
                cell(axes, (x, top, width, line), _shown(t, tokenizer), tint, **looks)
            x += width
    legend = "■ end-of-text   ␣ space   – no target"
    axes.text(left, bottom + 8, legend, fontsize=SMALL, va="center")
    return figure


def tiles(loader: Any, epochs: int, marked: int) -> Figure:
    """Which batch each row of a corpus is dealt out in, one line for each epoch, with the batch number `marked` outlined."""
    n_rows, size = len(loader.dataset), loader.batch_size
    steps = -(-epochs * n_rows // size)
    dealt = np.concatenate([loader.indices(step) for step in range(steps)])[
        : epochs * n_rows
    ].reshape(epochs, n_rows)
    batch_of = np.empty(
        (epochs, n_rows), dtype=int
    )  # (epoch, row) → number of its batch within the epoch
    for epoch, order in enumerate(dealt):
        batch_of[epoch, order] = (
            np.arange(n_rows) + epoch * n_rows
        ) // size - epoch * n_rows // size
    figure, axes = plt.subplots(
        figsize=(7.5, 0.5 + 0.45 * epochs), layout="constrained"
    )
    for (epoch, row), batch in np.ndenumerate(batch_of):
        color = COLORS[batch % len(COLORS)]
        axes.add_patch(
            Rectangle((row - 0.5, epoch - 0.5), 1, 1, color=color, alpha=0.6, lw=0)
        )
    for epoch, row in zip(*np.nonzero(batch_of == marked), strict=True):
        outline = Rectangle((row - 0.5, epoch - 0.5), 1, 1, fill=False)
        outline.set(edgecolor=INK, linewidth=2)
        axes.add_patch(outline)
    axes.set(xlim=(-1, n_rows), ylim=(epochs - 0.45, -0.55))
    axes.set(
        xlabel="row of the corpus",
        yticks=range(epochs),
        yticklabels=[f"epoch {epoch}" for epoch in range(epochs)],
    )
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False)
    plt.close(figure)
    return figure
