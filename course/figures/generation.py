"""Figures of generation: the next token's probabilities, the time per token with and without a cache."""

import statistics
import time

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from course.plots import COLORS, SMALL, WIDTH, name_points
from slm.data.tokenizer import Tokenizer
from slm.generation import Sampling, generate_tokens, next_token_probabilities
from slm.model.gpt import GPT


def next_token_bars(
    logits: Tensor,
    tokenizer: Tokenizer,
    temperatures: tuple[float, ...] = (0.5, 1.0, 2.0),
    top_p: float = 0.9,
    shown: int = 12,
) -> Figure:
    """The likeliest next tokens of logits `(V,)`: temperatures from left to right, all tokens above, top-p below."""
    order = logits.argsort(descending=True)[:shown]  # (shown,)
    names = [
        repr(tokenizer.decode([token]))[1:-1].replace(" ", "␣")
        for token in order.tolist()
    ]
    figure, axes = plt.subplots(
        2,
        len(temperatures),
        figsize=(WIDTH, 5.4),
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for column, temperature in enumerate(temperatures):
        everything = next_token_probabilities(logits[None], temperature)[0]  # (V,)
        nucleus = next_token_probabilities(logits[None], temperature, top_p=top_p)[
            0
        ]  # (V,)
        for row, (p, color) in enumerate(
            ((everything, COLORS[0]), (nucleus, COLORS[1]))
        ):
            ax = axes[row, column]
            if row:
                before = ax.barh(names, everything[order], facecolor="none")
                plt.setp(before, edgecolor=COLORS[7], linewidth=0.8)
            ax.barh(names, p[order], color=color, height=0.6 if row else 0.8)
            rest = max(0.0, float(p.sum() - p[order].sum()))
            number = int((p > 0).sum())
            corner = {"transform": ax.transAxes, "ha": "right", "fontsize": SMALL}
            ax.text(0.97, 0.13, f"{number:,} tokens", **corner)
            ax.text(0.97, 0.05, f"not shown: {rest:.1%}", **corner)
            ax.grid(axis="y", visible=False)
        axes[0, column].set_title(f"temperature {temperature:g}")
    axes[0, 0].set_ylabel("all tokens")
    axes[1, 0].set_ylabel(f"top-p {top_p:g}")
    axes[0, 0].invert_yaxis()
    for ax in axes[1]:
        ax.set_xlabel("probability")
    plt.close(figure)
    return figure


def _seconds_per_token(
    model: GPT, start: int, steps: int, use_cache: bool
) -> list[float]:
    """Processor seconds between one token and the next."""
    times = [time.process_time()]
    sampling = Sampling(max_tokens=steps, use_cache=use_cache)
    for _ in generate_tokens(model, [[start]], sampling):
        times.append(time.process_time())
    return [after - before for before, after in zip(times, times[1:], strict=False)]


def time_per_token(model: GPT, start: int, repeats: int = 5) -> tuple[Figure, float]:
    """Milliseconds per token as a text grows to the full context; also how many times faster the whole text is.

    With cache and without take turns, so that a busy moment hits both; each point is the median of `repeats` texts.
    """
    steps = model.config.context_length
    runs: dict[bool, list[list[float]]] = {True: [], False: []}
    with torch.inference_mode():
        for _ in range(repeats):
            for use_cache, seconds in runs.items():
                seconds.append(_seconds_per_token(model, start, steps, use_cache))
    medians = {
        use_cache: [statistics.median(s) for s in zip(*seconds, strict=True)]
        for use_cache, seconds in runs.items()
    }
    figure, ax = plt.subplots(layout="constrained")
    named = []
    for use_cache, name in ((False, "without cache"), (True, "with cache")):
        milliseconds = [1000 * s for s in medians[use_cache]]
        color = COLORS[0 if use_cache else 1]
        ax.plot(range(1, steps + 1), milliseconds, color=color, linewidth=1)
        middle = statistics.median(milliseconds[-steps // 8 :])
        named.append((steps, middle, name, color))
    highest = max(
        statistics.quantiles(seconds, n=50)[-1] for seconds in medians.values()
    )
    ax.set(
        xlabel="tokens in the text",
        ylabel="milliseconds per token",
        ylim=(0, 1.2e3 * highest),
    )
    name_points(ax, named)
    plt.close(figure)
    return figure, sum(medians[False]) / sum(medians[True])
