"""Figures of blocks: the wiring of a block, its bend, and what other wirings do."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from course.plots import COLORS


def block_diagram() -> HTML:
    """One pre-norm block: the residual stream from left to right, two branches that read from it and add to it."""
    blue, orange = COLORS[0], COLORS[1]

    def box(x: int, y: int, width: int, text: str, color: str) -> str:
        return (
            f'<rect x="{x}" y="{y}" width="{width}" height="34" rx="6" fill="{color}" fill-opacity=".14" stroke="{color}"/>'
            f'<text x="{x + width / 2}" y="{y + 22}" text-anchor="middle" fill="currentColor">{text}</text>'
        )

    def branch(x: int, part: str, width: int, color: str) -> str:
        plus = x + 130 + width + 40
        return (
            f'<path d="M{x} 130 V57 H{x + 22}" fill="none" stroke="{color}" stroke-width="1.6"/>'
            + box(x + 22, 40, 74, "norm", color)
            + f'<path d="M{x + 96} 57 H{x + 118}" stroke="{color}" stroke-width="1.6"/>'
            + box(x + 118, 40, width, part, color)
            + f'<path d="M{x + 118 + width} 57 H{plus} V117" fill="none" stroke="{color}" stroke-width="1.6" marker-end="url(#tip)"/>'
            + f'<circle cx="{plus}" cy="130" r="11" fill="none" stroke="currentColor" stroke-width="1.6"/>'
            + f'<path d="M{plus - 6} 130 h12 M{plus} 124 v12" stroke="currentColor" stroke-width="1.6"/>'
        )

    return HTML(
        '<svg viewBox="0 0 760 175" role="img" aria-label="A pre-norm block" '
        'style="width:100%;max-width:760px;color:inherit;font-family:inherit;font-size:14px">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="currentColor"/></marker></defs>'
        '<path d="M20 130 H735" stroke="currentColor" stroke-width="3" stroke-opacity=".45" marker-end="url(#tip)"/>'
        + branch(70, "attention", 100, blue)
        + branch(400, "feed-forward", 110, orange)
        + '<text x="20" y="160" fill="currentColor">residual stream (B, T, D): read from, added to, never overwritten</text>'
        f'<text x="190" y="28" fill="{blue}">gathers from earlier tokens</text>'
        f'<text x="530" y="28" fill="{orange}">works on each token alone</text></svg>'
    )


Results = Mapping[
    str, Mapping[str, Sequence[float]]
]  # wiring → what → by block or step


def gelu_figure() -> Figure:
    """The GELU beside the ReLU, with their slopes."""
    x = torch.linspace(-4, 4, 401, requires_grad=True)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8, 2.8), layout="constrained", sharex=True
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


def similarity_figure(results: Results) -> Figure:
    """Before training, after each block: how alike the tokens are."""
    figure, ax = _by_block(results, "similarity")
    ax.set(xlabel="after block", ylabel="similarity of two tokens", ylim=(0, 1.03))
    return figure


def gradient_figure(results: Results) -> Figure:
    """Before training, in each block: the gradient of the feed-forward weights, and of queries and keys."""
    figure, ax = _by_block(results, "feed-forward", "queries and keys")
    ax.set(xlabel="block", ylabel="norm of the gradient", yscale="log")
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
