"""Figures of attention: what a head looks at, what the scale does, which kernel is faster."""

import html
import math
import statistics
import time
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from IPython.display import HTML
from matplotlib.figure import Figure
from torch import Tensor

from course.plots import COLORS

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention_table(tokens: Sequence[str], weights: Tensor) -> HTML:
    """A `(T, T)` table of attention weights with the weight on hover; needs neither script nor network."""
    names = [html.escape(token) for token in tokens]
    cell = "width:2.4em;height:2.1em;padding:0;border:1px solid rgba(128,128,128,.25);text-align:center"
    head = "".join(
        f'<th style="font-weight:normal;padding:.2em .4em;text-align:center">{name}</th>'
        for name in names
    )
    rows = []
    for t, (name, row) in enumerate(zip(names, weights.tolist(), strict=True)):
        cells = "".join(
            f'<td title="{name} looks at {names[s]}: {weight:.3f}" style="{cell};background:rgba(37,99,235,{weight:.3f})"></td>'
            if s <= t
            else f'<td title="{names[s]} comes after {name}" style="{cell};border-color:transparent"></td>'
            for s, weight in enumerate(row)
        )
        rows.append(
            f'<tr style="background:none"><th style="font-weight:normal;text-align:right;padding:.2em .6em">{name}</th>{cells}</tr>'
        )
    return HTML(
        f'<table class="attention" style="border-collapse:collapse;font-size:.85em;margin:1em 0">'
        f'<tr style="background:none"><th style="font-weight:normal;opacity:.6">looks at</th>{head}</tr>{"".join(rows)}</table>'
    )


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
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.9), layout="constrained")
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
    plt.close(figure)
    return figure


def kernel_ratio(
    explicit: Attention, dtype: torch.dtype, T: int, backward: bool, repeats: int = 3
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
