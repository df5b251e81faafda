"""Figures of blocks: the wiring of a block, its bend, and what other wirings do."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from course.figures.sheet import arrow, cell, sheet
from course.plots import COLORS, INK, PAPER, by_powers


def block_diagram() -> Figure:
    """One pre-norm block: the residual stream from left to right, two branches that read from it and add to it."""
    figure, axes = sheet(516, 132)
    stream = 92.0
    parts = (
        (36.0, "attention", "gathers from earlier tokens", COLORS[0]),
        (280.0, "feed-forward", "works on each token alone", COLORS[1]),
    )
    arrow(axes, (0, stream), (516, stream))
    for x, part, does, color in parts:
        plus = x + 186
        axes.plot([x, x, x + 14], [stream, 40, 40], color=color)
        cell(axes, (x + 14, 26, 48, 28), "norm", (color, 0.4), color)
        arrow(axes, (x + 62, 40), (x + 80, 40), color)
        cell(axes, (x + 80, 26, 78, 28), part, (color, 0.4), color)
        axes.plot([x + 158, plus, plus], [40, 40, stream - 16], color=color)
        arrow(axes, (plus, stream - 24), (plus, stream - 8), color)
        axes.plot(plus, stream, "o", color=PAPER, mec=INK, markersize=15)
        axes.plot(plus, stream, "+", color=INK, markersize=9)
        axes.text(x + 14, 10, does, color=color, va="center")
    told = "residual stream (B, T, D): read from, added to, never overwritten"
    axes.text(0, 120, told, va="center")
    return figure


Results = Mapping[
    str, Mapping[str, Sequence[float]]
]  # wiring → what → by block or step


def gelu_figure() -> Figure:
    """The GELU beside the ReLU, with their slopes."""
    x = torch.linspace(-4, 4, 401, requires_grad=True)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(7.5, 2.8), layout="constrained", sharex=True
    )
    bends = {"GELU": F.gelu(x, approximate="tanh"), "ReLU": F.relu(x)}
    for (name, y), color, style in zip(bends.items(), COLORS, ("-", ":"), strict=False):
        (slope,) = torch.autograd.grad(y.sum(), x)
        left.plot(x.detach(), y.detach(), style, color=color, label=name)
        right.plot(x.detach(), slope, style, color=color)
    left.set(xlabel="what comes in", ylabel="what goes out")
    right.set(xlabel="what comes in", ylabel="slope")
    left.legend()
    plt.close(figure)
    return figure


def bend_milliseconds(
    bends: Mapping[str, Callable[[Tensor], Tensor]],
    dtype: torch.dtype,
    repeats: int = 9,
    warm_up: int = 6,
) -> dict[str, float]:
    """Median processor time of each bend, forward and backward, taken in turns, for 2,048 tokens of 1,536 numbers.

    Each bend is given a tensor of its own, which it may overwrite. The first turns find memory that is not yet mapped.
    """
    x = torch.randn(2048, 1536).to(dtype).requires_grad_()
    grad = torch.randn_like(x)
    times: dict[str, list[float]] = {name: [] for name in bends}
    for turn in range(warm_up + repeats):
        for name, bend in bends.items():
            own = x * 1
            start = time.process_time()
            torch.autograd.grad(bend(own), own, grad)
            if turn >= warm_up:
                times[name].append(1000 * (time.process_time() - start))
    return {name: statistics.median(taken) for name, taken in times.items()}


def similarity_figure(results: Results) -> Figure:
    """Before training, after each block: how alike the tokens are."""
    figure, ax = _by_block(results, "similarity")
    ax.set(xlabel="after block", ylabel="similarity of two tokens", ylim=(0, 1.03))
    return figure


def gradient_figure(results: Results) -> Figure:
    """Before training, in each block: the gradient of the feed-forward weights, and of queries and keys."""
    figure, ax = _by_block(results, "feed-forward", "queries and keys")
    ax.set(xlabel="block", ylabel="norm of the gradient", yscale="log")
    by_powers(ax.yaxis)
    return figure


def _by_block(results: Results, what: str, dotted: str = "") -> tuple[Figure, Axes]:
    figure, ax = plt.subplots(figsize=(7, 2.9), layout="constrained")
    for (wiring, found), color in zip(results.items(), COLORS, strict=False):
        if "gently" in wiring:  # the same network before training
            continue
        blocks = range(1, 1 + len(found[what]))
        ax.plot(blocks, found[what], color=color, label=wiring)
        if dotted:
            ax.plot(blocks, found[dotted], ":", color=color)
    figure.legend(loc="outside right upper", frameon=False)
    plt.close(figure)
    return figure, ax


def loss_figure(results: Results, letter_entropy: float) -> Figure:
    """The loss by step, with the line of who knows the letters' frequencies only."""
    figure, ax = plt.subplots(figsize=(7, 2.9), layout="constrained")
    for (wiring, found), color in zip(results.items(), COLORS, strict=False):
        ax.plot(found["loss"], color=color, label=wiring)
    grey = COLORS[7]
    ax.axhline(letter_entropy, color=grey, ls=":", label="letter frequencies")
    ax.set(xlabel="training step", ylabel="loss (nats per letter)", ylim=(0, None))
    figure.legend(loc="outside right upper", frameon=False)
    plt.close(figure)
    return figure
