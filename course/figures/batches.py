"""Figures of the batches: the strip of inputs and targets, and how batches tile a corpus."""

import html
from collections.abc import Iterable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import tiktoken
from IPython.display import HTML
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course.plots import COLORS

TINTS = ("59,130,246", "249,115,22", "16,185,129", "168,85,247", "6,182,212")
IGNORED = -100


def _shown(token: int, tokenizer: tiktoken.Encoding) -> str:
    """A token as a table shows it: its space visible, end-of-text as a sign."""
    if token == IGNORED:
        return "–"
    if token == tokenizer.eot_token:
        return "■"
    return html.escape(tokenizer.decode([token])).replace(" ", "␣").replace("\n", "↵")


def strip(rows: Iterable[tuple[Any, Any]], tokenizer: tiktoken.Encoding) -> HTML:
    """A table with two lines for each row `(x, y)`: inputs, and under each its target. One colour for each document."""
    border = "border:1px solid rgba(128,128,128,.3);padding:.15em .35em;text-align:center;white-space:pre"
    lines, document, place = [], -1, 0
    for number, (x, y) in enumerate(rows):
        inputs, targets = [], []
        for token, target in zip(map(int, x), map(int, y), strict=True):
            used = target != IGNORED
            document += used and token == tokenizer.eot_token
            of_target = document + (target == tokenizer.eot_token)
            tint, tint_target = (
                f"rgba({TINTS[d % len(TINTS)]},.28)"
                if used
                else "rgba(128,128,128,.10)"
                for d in (document, of_target)
            )
            title = (
                f"token {place} of the strip; its target is token {place + 1}"
                if used
                else "filling: does not count"
            )
            inputs.append(
                f'<td title="{title}" style="{border};background:{tint}">{_shown(token, tokenizer)}</td>'
            )
            targets.append(
                f'<td title="{title}" style="{border};background:{tint_target};opacity:.75">{_shown(target, tokenizer)}</td>'
            )
            place += used
        for name, cells in (("x", inputs), ("y", targets)):
            label = f'<th style="font-weight:normal;text-align:right;padding:0 .6em"><i>{name}</i><sub>{number}</sub></th>'
            lines.append(f'<tr style="background:none">{label}{"".join(cells)}</tr>')
        lines.append('<tr style="background:none;height:.5em"></tr>')
    table = f'<table class="strip" style="border-collapse:collapse;color:inherit;font-size:.85em;margin:1em 0">{"".join(lines)}</table>'
    legend = '<p style="font-size:.8em;opacity:.7;margin:0">■ end-of-text, ␣ space, – no target</p>'
    return HTML(f'<div style="overflow-x:auto">{table}{legend}</div>')


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
    figure, axes = plt.subplots(figsize=(8, 0.5 + 0.45 * epochs), layout="constrained")
    axes.imshow(
        batch_of % len(COLORS),
        cmap=ListedColormap(COLORS),
        aspect="auto",
        alpha=0.75,
        interpolation="nearest",
    )
    for epoch, row in zip(*np.nonzero(batch_of == marked), strict=True):
        axes.add_patch(
            Rectangle(
                (row - 0.5, epoch - 0.5),
                1,
                1,
                fill=False,
                edgecolor="#f8fafc",
                linewidth=2,
            )
        )
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
