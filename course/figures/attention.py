"""Figures of attention: what a head looks at, what the scale does, which kernel is faster."""

import math
import statistics
import time
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from course.figures.sheet import cell, scale, sheet
from course.plots import COLORS, SMALL, by_powers

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention_table(tokens: Sequence[str], weights: Tensor) -> Figure:
    """A `(T, T)` table of attention weights: each row is what one token looks at."""
    longest = 5.8 * max(map(len, tokens))
    left, top, width, height = longest + 24, 40.0, max(30.0, longest + 8), 24.0
    T = len(tokens)
    figure, axes = sheet(left + T * width, top + T * height + 34)
    axes.text(left + T * width / 2, 8, "looks at", ha="center", va="center")
    axes.text(6, top + T * height / 2, "token", ha="center", va="center", rotation=90)
    for t, row in enumerate(weights.tolist()):
        y = top + t * height
        axes.text(left - 6, y + height / 2, tokens[t], ha="right", va="center")
        x = left + t * width
        axes.text(x + width / 2, top - 12, tokens[t], ha="center", va="center")
        for s, weight in enumerate(row[: t + 1]):
            place = left + s * width, y, width, height
            number = f"{weight:.2f}"
            cell(axes, place, number, (COLORS[0], weight), fontsize=SMALL)
    scale(axes, left, top + T * height + 18, COLORS[0], ("weight 0", "1"))
    return figure


def scale_figure(T: int = 64) -> Figure:
    """Largest weight of a row, and norm of its gradient, against head size K: with the scale and without."""
    sizes = [4, 8, 16, 32, 64, 128, 256, 512]
    curves: dict[str, list[tuple[float, float]]] = {
        "divided by √K": [],
        "as they are": [],
    }
    for K in sizes:
        q, k = torch.randn(2, 64, T, K)  # 64 heads of (T, K)
        signal = torch.randn(
            64, T, T
        )  # what comes back from above, the same at every K
        for label, points in curves.items():
            scores = (
                q
                @ k.transpose(-2, -1)
                / (math.sqrt(K) if label == "divided by √K" else 1.0)
            ).requires_grad_()
            weights = scores.softmax(-1)  # (64, T, T)
            (gradient,) = torch.autograd.grad((weights * signal).sum(), scores)
            points.append(
                (
                    weights.max(-1).values.mean().item(),
                    gradient.norm(dim=-1).median().item(),
                )
            )
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.9), layout="constrained")
    for (label, points), color in zip(curves.items(), COLORS, strict=False):
        largest, gradient_norm = zip(*points, strict=True)
        left.plot(sizes, largest, "o-", color=color, label=label)
        right.plot(sizes, gradient_norm, "o-", color=color)
    left.set(
        xscale="log",
        xlabel="head size K",
        ylabel="largest weight of a row",
        ylim=(0, 1),
    )
    right.set(
        xscale="log",
        yscale="log",
        xlabel="head size K",
        ylabel="gradient of a row (median)",
    )
    left.legend()
    by_powers(left.xaxis, right.xaxis, right.yaxis)
    plt.close(figure)
    return figure


def kernel_ratio(
    explicit: Attention, dtype: torch.dtype, T: int, backward: bool, repeats: int = 7
) -> float:
    """Median of (fused time / explicit time), taken in turns, for 2,048 tokens in texts of T, 6 heads of 64."""
    leaves = [
        part.to(dtype).requires_grad_(backward)
        for part in torch.randn(3, 2048 // T, 6, T, 64)
    ]
    kernels: list[Attention] = [
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        explicit,
    ]
    ratios = []
    for _ in range(repeats):
        seconds = []
        for kernel in kernels:
            start = time.perf_counter()
            out = kernel(*leaves)
            if backward:
                torch.autograd.grad(out.sum(), leaves)
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)
