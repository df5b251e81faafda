"""Figures of GPT: the whole model, where its parameters and FLOPs sit, what each depth would answer, memory at its peak."""

import html
import os
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import torch
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from course.plots import COLORS
from slm.model.config import GPTConfig, count_forward_flops
from slm.model.gpt import GPT


def model_diagram() -> HTML:
    """From ids to logits, left to right, with the shape after each step."""
    steps = [
        ("token ids", "(B, T)", COLORS[7]),
        ("token row + position row", "(B, T, D)", COLORS[2]),
        ("block 1 … block L", "(B, T, D)", COLORS[0]),
        ("norm", "(B, T, D)", COLORS[7]),
        ("times token tableᵀ", "(B, T, V)", COLORS[2]),
        ("softmax", "p(next token)", COLORS[1]),
    ]
    arrow = '<div style="align-self:center;opacity:.6">→</div>'
    boxes = [
        f'<div style="text-align:center"><div style="border:1px solid {color};background:{color}22;border-radius:6px;padding:.45em .8em">{name}</div>'
        f'<div style="font-size:.85em;opacity:.7;margin-top:.25em">{shape}</div></div>'
        for name, shape, color in steps
    ]
    return HTML(
        f'<div style="display:flex;flex-wrap:wrap;gap:.5em;align-items:flex-start;margin:1em 0">{arrow.join(boxes)}</div>'
    )


def parameter_map(model: GPT) -> Figure:
    """Areas in proportion to the parameters: embeddings on the left, every block with its two parts."""

    def size(module: Any) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    total, n_layers = model.count_parameters(), model.config.n_layers
    figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")

    def area(
        x: float,
        y: float,
        width: float,
        height: float,
        color: str,
        text: str = "",
        alpha: float = 0.55,
    ) -> None:
        axes.add_patch(
            Rectangle(
                (x, y), width, height, facecolor=color, alpha=alpha, edgecolor="none"
            )
        )
        axes.add_patch(
            Rectangle((x, y), width, height, fill=False, edgecolor=color, linewidth=0.8)
        )
        if text:
            axes.text(
                x + width / 2,
                y + height / 2,
                text,
                ha="center",
                va="center",
                fontsize=8.5,
                rotation=90 if width < 0.03 < height else 0,
            )

    tokens, positions = size(model.token_embedding), size(model.position_embedding)
    area(
        0,
        0,
        tokens / total,
        1,
        COLORS[2],
        f"token embedding,\nalso the output\n{tokens / total:.1%}",
    )
    area(tokens / total, 0, positions / total, 1, COLORS[5])
    axes.annotate(
        f"positions {positions / total:.1%}",
        ((tokens + positions / 2) / total, 1),
        xytext=(-4, 8),
        textcoords="offset points",
        ha="center",
        fontsize=8.5,
        annotation_clip=False,
    )
    left, columns = (tokens + positions) / total, 6
    rows = -(-n_layers // columns)
    width, height = (1 - left) / columns, 1 / rows
    for i, block in enumerate(model.blocks):
        x, y = left + (i % columns) * width, 1 - (i // columns + 1) * height
        share = size(block.attention) / size(block)
        area(
            x,
            y + height * (1 - share),
            width,
            height * share,
            COLORS[0],
            "attention" if i else f"attention\n{size(block.attention) / total:.1%}",
        )
        area(
            x,
            y,
            width,
            height * (1 - share),
            COLORS[1],
            f"feed-forward\nof block {i + 1}"
            + ("" if i else f"\n{size(block.feed_forward) / total:.1%}"),
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.08))
    axes.axis("off")
    plt.close(figure)
    return figure


def depth_table(model: GPT, text: bytes) -> HTML:
    """What the model would answer at each position if it stopped after each depth; byte tokens."""
    tokens = torch.tensor(list(text), device=model.device)[None]  # (1, T)
    streams: list[Tensor] = []
    handles = [
        model.blocks[0].register_forward_pre_hook(
            lambda module, inputs: streams.append(inputs[0])
        )
    ]
    handles += [
        block.register_forward_hook(
            lambda module, inputs, output: streams.append(output)
        )
        for block in model.blocks
    ]
    with torch.no_grad():
        model(tokens)
        answers = [
            (model.norm(stream) @ model.token_embedding.weight.T).softmax(-1)[0].max(-1)
            for stream in streams
        ]
    for handle in handles:
        handle.remove()

    def show(code: int) -> str:
        return "␣" if code == 32 else html.escape(chr(code)) if 32 < code < 127 else "·"

    cell = "width:1.7em;height:1.7em;padding:0;text-align:center;border:1px solid rgba(128,128,128,.2)"
    rows = []
    for depth in reversed(range(len(answers))):
        cells = "".join(
            f'<td title="after {depth} blocks: {show(code)} with p = {p:.3f}" style="{cell};background:rgba(37,99,235,{0.75 * p:.3f})">{show(code)}</td>'
            for p, code in zip(
                answers[depth].values.tolist(),
                answers[depth].indices.tolist(),
                strict=True,
            )
        )
        name = "embedding" if depth == 0 else f"after block {depth}"
        rows.append(
            f'<tr style="background:none"><th style="font-weight:normal;text-align:right;padding-right:.6em;white-space:nowrap">{name}</th>{cells}</tr>'
        )
    inputs = "".join(
        f'<td style="{cell};opacity:.7">{show(code)}</td>' for code in text
    )
    rows.append(
        f'<tr style="background:none"><th style="font-weight:normal;text-align:right;padding-right:.6em;opacity:.7">reads</th>{inputs}</tr>'
    )
    return HTML(
        f'<div style="overflow-x:auto"><table style="border-collapse:collapse;font-family:monospace;font-size:.85em;margin:1em 0">{"".join(rows)}</table></div>'
    )


def flops_by_part(shapes: Mapping[str, GPTConfig]) -> Figure:
    """One bar per model: the share of each part in the forward FLOPs of a token."""
    height = 0.55 * len(shapes) + 1.2
    figure, axes = plt.subplots(figsize=(8.5, height), layout="constrained")
    for row, config in enumerate(shapes.values()):
        parts, left = count_forward_flops(config), 0.0
        for (name, flops), color in zip(parts.items(), COLORS, strict=False):
            share = flops / sum(parts.values())
            label = name if row == 0 else None
            axes.barh(row, share, left=left, color=color, alpha=0.8, label=label)
            if share > 0.04:
                axes.text(
                    left + share / 2,
                    row,
                    f"{share:.0%}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="#ffffff",
                )
            left += share
    axes.set_yticks(range(len(shapes)), list(shapes))
    axes.set(xlim=(0, 1), xticks=[])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=5, fontsize=8)
    plt.close(figure)
    return figure


def peak_megabytes(loss: Callable[[], Tensor]) -> float:
    """Most memory held at once during forward and backward, over what was held before; in MB."""
    return _peak_bytes(lambda: loss().backward()) / 1e6


def peak_of_training_step(config: GPTConfig, batch_size: int) -> int:
    """Bytes alive at the worst moment of a float32 training step on the CPU: what lives throughout, and what comes and goes."""
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(
        config.vocab_size, (batch_size, config.context_length)
    )  # (B, T)

    def step() -> None:
        model.loss(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes the optimizer's state, which then stays
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    held = sum(tensor.nbytes for tensor in [*states, *model.parameters()])
    return held + _peak_bytes(step)


def _peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that some work holds at once, over what was held before."""
    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "5"
    )  # or the profiler prints when it starts and stops
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    held = peak = 0
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [
        event
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
