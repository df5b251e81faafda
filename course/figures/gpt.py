"""Figures of GPT: the whole model, where its parameters and FLOPs sit, what each depth would answer, memory at its peak."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from course.figures.sheet import arrow, cell, scale, sheet
from course.plots import COLORS, PAPER, SMALL
from slm.model.config import GPTConfig, count_forward_flops
from slm.model.gpt import GPT


def model_diagram() -> Figure:
    """From ids to logits, from the bottom to the top, with the shape after each step."""
    steps = [
        ("token ids", "(B, T)", COLORS[7]),
        ("token row + position row", "(B, T, D)", COLORS[2]),
        ("block 1 … block L", "(B, T, D)", COLORS[0]),
        ("norm", "(B, T, D)", COLORS[7]),
        ("times the token table, transposed", "(B, T, V)", COLORS[2]),
        ("softmax", "how likely each token comes next", COLORS[1]),
    ]
    step, height = 46.0, 26.0
    figure, axes = sheet(300, step * len(steps))
    for n, (name, shape, color) in enumerate(reversed(steps)):
        y = n * step + 20
        cell(axes, (0, y, 200, height), name, (color, 0.4), color)
        axes.text(110, y - 10, shape, va="center")
        tip = (100, y - 20 if n else 0)
        arrow(axes, (100, y), tip)
    return figure


def parameter_map(model: GPT) -> Figure:
    """Areas in proportion to the parameters: embeddings on the left, every block with its two parts."""

    def size(module: Any) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    total, n_layers = model.count_parameters(), model.config.n_layers
    width, height, top = 530.0, 230.0, 18.0
    figure, axes = sheet(width, top + height)

    def area(
        x: float, y: float, w: float, h: float, color: str, text: str = ""
    ) -> None:
        """All in shares of the map."""
        place = (x * width, top + y * height, w * width, h * height)
        cell(axes, place, text, (color, 0.7), color, fontsize=SMALL)

    tokens, positions = size(model.token_embedding), size(model.position_embedding)
    told = f"token embedding,\nalso the output\n{tokens / total:.1%}"
    area(0, 0, tokens / total, 1, COLORS[2], told)
    area(tokens / total, 0, positions / total, 1, COLORS[5])
    x = (tokens + positions / 2) / total * width
    told = f"positions {positions / total:.1%}"
    axes.text(x, 8, told, ha="center", va="center", fontsize=SMALL)
    left, columns = (tokens + positions) / total, 6
    rows = -(-n_layers // columns)
    w, h = (1 - left) / columns, 1 / rows
    for i, block in enumerate(model.blocks):
        x, y = left + (i % columns) * w, i // columns * h
        share = size(block.attention) / size(block)
        attention, forward = "attention", f"feed-\nforward\nof block {i + 1}"
        if i == 0:
            attention += f"\n{size(block.attention) / total:.1%}"
            forward += f"\n{size(block.feed_forward) / total:.1%}"
        area(x, y, w, h * share, COLORS[0], attention)
        area(x, y + h * share, w, h * (1 - share), COLORS[1], forward)
    return figure


def depth_table(model: GPT, text: bytes) -> Figure:
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
        return "␣" if code == 32 else chr(code) if 32 < code < 127 else "·"

    left, size = 92.0, 18.0
    letters: dict[str, Any] = {"family": "monospace"}
    figure, axes = sheet(left + size * len(text), size * (len(answers) + 1) + 48)
    for depth, (likely, codes) in enumerate(reversed(answers)):
        above = len(answers) - 1 - depth
        name = f"after block {above}" if above else "embedding"
        axes.text(left - 8, size * (depth + 0.5), name, ha="right", va="center")
        for t, (p, code) in enumerate(
            zip(likely.tolist(), codes.tolist(), strict=True)
        ):
            place = (left + size * t, size * depth, size, size)
            cell(axes, place, show(code), (COLORS[0], p), **letters)
    y = size * (len(answers) + 1)
    axes.text(left - 8, y, "reads", ha="right", va="center")
    for t, code in enumerate(text):
        x = left + size * (t + 0.5)
        axes.text(x, y, show(code), ha="center", va="center", **letters)
    scale(axes, left, y + 28, COLORS[0], ("probability 0", "1"))
    return figure


def flops_by_part(shapes: Mapping[str, GPTConfig]) -> Figure:
    """One bar per model: the share of each part in the forward FLOPs of a token."""
    height = 0.55 * len(shapes) + 1.2
    figure, axes = plt.subplots(figsize=(7.5, height), layout="constrained")
    for row, config in enumerate(shapes.values()):
        parts, left = count_forward_flops(config), 0.0
        for (name, flops), color in zip(parts.items(), COLORS, strict=False):
            share = flops / sum(parts.values())
            label = name if row == 0 else None
            axes.barh(row, share, left=left, color=color, label=label)
            if share > 0.05:
                axes.text(
                    left + share / 2,
                    row,
                    f"{share:.0%}",
                    ha="center",
                    va="center",
                    fontsize=SMALL,
                    color=PAPER,
                )
            left += share
    axes.set_yticks(range(len(shapes)), list(shapes))
    axes.set(xlim=(0, 1), xticks=[])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, fontsize=SMALL)
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
