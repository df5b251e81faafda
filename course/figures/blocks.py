"""Figures of blocks: the wiring of a block, and what other wirings do."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from IPython.display import HTML
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


def wiring_figure(
    results: Mapping[str, Mapping[str, Sequence[float]]], letter_entropy: float
) -> Figure:
    """Before training, by depth: similarity of tokens, gradient norms. Then the loss by step, with the letters' entropy."""
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(10.5, 3.2), layout="constrained"
    )
    depths = range(1, 1 + len(next(iter(results.values()))["similarity"]))
    for (wiring, found), color in zip(results.items(), COLORS, strict=False):
        right.plot(found["loss"], color=color, label=wiring)
        if "gently" not in wiring:  # the same network before training
            left.plot(depths, found["similarity"], color=color)
            middle.plot(depths, found["feed-forward"], color=color)
            middle.plot(depths, found["queries and keys"], color=color, linestyle=":")
    right.axhline(
        letter_entropy, color=COLORS[7], linestyle=":", label="letter frequencies"
    )
    left.set(
        xlabel="after block", ylabel="mean similarity of two tokens", ylim=(0, 1.03)
    )
    middle.set(xlabel="block", ylabel="norm of the gradient", yscale="log")
    right.set(xlabel="training step", ylabel="loss (nats per letter)", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    plt.close(figure)
    return figure
