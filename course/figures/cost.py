"""Figures and measurements of the chapter on cost: what this machine reaches, hours against dollars, loss against dollars."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from course.plots import COLORS, INK, TINT, WIDTH, name_points
from slm.cloud.cost import estimate_all
from slm.gpus import MODAL
from slm.model.config import GPTConfig
from slm.model.gpt import GPT
from slm.training.config import RunConfig

SMALL_BATCH = 4  # rows in the steps that are timed


def hours_and_dollars(configs: Sequence[RunConfig]) -> Figure:
    """A row a GPU, from the cheapest hour to the dearest: hours at the left, dollars at the right, a bar a config."""
    figure, panels = plt.subplots(
        1, 2, figsize=(WIDTH, 4.4), sharey=True, layout="constrained"
    )
    found = [estimate_all(config) for config in configs]
    rows = range(len(found[0]))  # in the order of the price of an hour
    for n, (config, estimates) in enumerate(zip(configs, found, strict=True)):
        color, up = COLORS[n], 9 + 13 * (n % 2)
        for axes, what in zip(panels, ("hours", "dollars"), strict=True):
            for row, one in enumerate(estimates):
                ends: tuple[float, float] = getattr(one, what)
                mark = "o" if one.fits_memory else "x"
                axes.plot(ends, [row, row], color=color, alpha=TINT, linewidth=6)
                axes.plot(sum(ends) / 2, row, mark, color=color, markersize=6)
            middle = sum(getattr(estimates[-1], what)) / 2
            axes.annotate(
                config.name.removeprefix("gpt_"),
                (middle, rows[-1]),
                (0, up),
                textcoords="offset points",
                ha="center",
                color=color,
            )
            axes.set(xscale="log", xlabel=what, ylim=(-0.6, len(rows) + 0.3))
            axes.minorticks_off()
    hours, dollars = panels
    dollars.set_xlabel(f"dollars, at prices of {MODAL.date}")
    names = [f"{one.gpu}, ${one.dollars_per_hour:.2f}" for one in found[0]]
    hours.set_yticks(rows, [name.replace("$", "\\$") for name in names])
    hours.set_ylabel("GPU, and what an hour of it costs")
    hours.set_xticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
    free = MODAL.free_dollars_per_month
    ticks = {1: "\\$1", 3: "\\$3", 10: "\\$10", free: f"\\${free:g}\nfree each month"}
    dollars.set_xticks(list(ticks), list(ticks.values()))
    dollars.axvline(free, color=INK, linestyle=":", linewidth=1.2)
    plt.close(figure)
    return figure


def training_step(config: GPTConfig) -> Callable[[], None]:
    """A whole training step of a fresh model (float32, AdamW), ready to be called again and again."""
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(
        config.vocab_size, (SMALL_BATCH, config.context_length)
    )  # (B, T)

    def step() -> None:
        model.loss(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def median_seconds(
    functions: Sequence[Callable[[], object]], repeats: int = 30, warm_up: int = 3
) -> list[float]:
    """Median processor seconds of a call of each function; they take turns, so that a slow moment hits all of them."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(warm_up + repeats):
        for function, times in zip(functions, seconds, strict=True):
            began = time.process_time()
            function()
            if turn >= warm_up:
                times.append(time.process_time() - began)
    return [statistics.median(times) for times in seconds]


@dataclass(frozen=True)
class Machine:
    """The two numbers of a roofline."""

    flops_per_second: float
    bytes_per_second: float


def measure_machine(n: int = 768, megabytes: int = 128) -> Machine:
    """Peak of an (n, n) float32 matrix product, and bandwidth of a copy that no cache can hold."""
    a, b, c = torch.randn(3, n, n)
    source = torch.zeros(megabytes * 2**20 // 4)
    target = torch.empty_like(source)
    product, copy = median_seconds(
        [lambda: torch.mm(a, b, out=c), lambda: target.copy_(source)], repeats=15
    )
    return Machine(
        flops_per_second=2 * n**3 / product, bytes_per_second=2 * source.nbytes / copy
    )


@dataclass(frozen=True)
class Operation:
    """Something to time: its FLOPs, and the bytes that it must at least read and write."""

    run: Callable[[], object]
    flops: int
    size: int


def _product(a: Tensor, b: Tensor) -> Operation:
    rows, inner, columns = a.size(0), b.size(0), b.size(1)
    return Operation(
        lambda: a @ b,
        2 * rows * inner * columns,
        4 * (rows * inner + inner * columns + rows * columns),
    )


def _operations(config: GPTConfig, tokens: int) -> dict[str, Operation]:
    """The parts of a model at so many tokens, and the products that generation makes for a single one."""
    D, H, F_ = config.d_model, config.n_heads, config.d_ff
    x, hidden = torch.randn(tokens, D), torch.randn(tokens, F_)  # (B·T, D), (B·T, F)
    qkv, up, down, output = (
        torch.randn(D, 3 * D),
        torch.randn(D, F_),
        torch.randn(F_, D),
        torch.randn(D, config.vocab_size),
    )
    q, k, v = torch.randn(3, 1, H, tokens, D // H)  # (B, H, T, K) each
    weight = torch.ones(D)
    attention = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
    return {
        "queries, keys, values": _product(x, qkv),
        "feed-forward up": _product(x, up),
        "feed-forward down": _product(hidden, down),
        "logits": _product(x, output),
        "attention, fused": Operation(
            attention, 4 * tokens * tokens * D, 16 * tokens * D
        ),
        "GELU": Operation(
            lambda: F.gelu(hidden, approximate="tanh"),
            10 * hidden.numel(),
            8 * hidden.numel(),
        ),
        "layer norm": Operation(
            lambda: F.layer_norm(x, (D,), weight, weight), 8 * x.numel(), 8 * x.numel()
        ),
        "up, one token": _product(x[:1], up),
        "logits, one token": _product(x[:1], output),
    }


def roofline(machine: Machine, config: GPTConfig, tokens: int = 256) -> Figure:
    """FLOP/s against FLOPs per byte: the roof of this machine, and what the parts of a model reach under it."""
    operations = _operations(config, tokens)
    seconds = median_seconds(
        [operation.run for operation in operations.values()], repeats=7, warm_up=2
    )
    figure, ax = plt.subplots(figsize=(WIDTH, 4.4), layout="constrained")
    peak, bandwidth = machine.flops_per_second, machine.bytes_per_second
    ridge = peak / bandwidth
    right = 1.3 * max(part.flops / part.size for part in operations.values())
    roof = [min(peak, x * bandwidth) / 1e9 for x in (0.2, ridge, right)]
    ax.plot([0.2, ridge, right], roof, color=INK)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="FLOPs per byte that must be read or written",
        ylabel="GFLOP/s",
        xlim=(0.2, 20 * right),
        ylim=(0.2 * bandwidth / 1e9, 2 * peak / 1e9),
    )
    ax.set_xticks([1, 10, 100], ["1", "10", "100"])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter("{x:g}")
    places = []
    for (name, operation), took in zip(operations.items(), seconds, strict=True):
        x, reached = operation.flops / operation.size, operation.flops / took / 1e9
        color = COLORS[1] if "one token" in name else COLORS[0]
        ax.plot(x, reached, "o", color=color)
        places.append((x, reached, f"{name}: {reached:.0f}", color))
    for x, text in ((2, "bandwidth"), (ridge, "peak")):
        y = min(peak, x * bandwidth) / 1e9
        ax.annotate(text, (x, y), (0, 6), textcoords="offset points", ha="right")
    low, high = (
        [p for p in places if (p[0] > ridge) == side] for side in (False, True)
    )
    name_points(ax, low)
    name_points(ax, high, away=32)
    plt.close(figure)
    return figure


@dataclass(frozen=True)
class PowerLaw:
    """L(N) = E + a N^-b."""

    E: float
    a: float
    b: float

    def __call__(self, n: float) -> float:
        return self.E + self.a * n**-self.b


def fit_power_law(sizes: Sequence[int], losses: Sequence[float], E: float) -> PowerLaw:
    """The power law with a known E: a straight line through the logarithms, by least squares."""
    x, y = [math.log(n) for n in sizes], [math.log(loss - E) for loss in losses]
    slope, intercept = statistics.linear_regression(x, y)
    return PowerLaw(E, math.exp(intercept), -slope)


def scaling(
    sizes: Sequence[int], losses: Sequence[float], E: float, law: PowerLaw
) -> Figure:
    """Excess loss against parameters, both logarithmic: the fitted points, the last one, and the law."""
    figure, ax = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    ends = [0.7 * sizes[0], 1.4 * sizes[-1]]
    ax.plot(ends, [law(n) - E for n in ends], color=INK)
    excess = [loss - E for loss in losses]
    ax.plot(sizes[:-1], excess[:-1], "o", color=COLORS[0])
    ax.plot(sizes[-1], excess[-1], "o", color=COLORS[1])
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="parameters N",
        ylabel="loss above the floor, nats per token",
    )
    ax.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
    ax.set_yticks([0.1, 0.2, 0.5, 1, 2, 5], minor=False)
    ax.minorticks_off()
    ax.yaxis.set_major_formatter("{x:g}")
    told = "the line is fitted to these four"
    between = (sizes[2] * sizes[3]) ** 0.5
    line = (between, law(between) - E, f"b = {law.b:.2f}", INK)
    first = (sizes[1], excess[1], told, COLORS[0])
    last = (sizes[-1], excess[-1], "not fitted", COLORS[1])
    name_points(ax, [line, first, last], away=12)
    plt.close(figure)
    return figure


def compare_models(
    configs: Sequence[RunConfig],
    loss: Callable[[RunConfig, float], float],
    crossings: Sequence[tuple[float, float]],
) -> Figure:
    """Predicted loss of each config's model against dollars, with a marker where two neighbours cross."""
    figure, ax = plt.subplots(figsize=(WIDTH, 4.2), layout="constrained")
    budgets = [10 ** (i / 100) for i in range(271)]  # dollars, from 1 to 500
    ends: list[tuple[float, float, str, str]] = []
    for config, color in zip(configs, COLORS, strict=False):
        line = [loss(config, dollars) for dollars in budgets]
        ax.plot(budgets, line, color=color)
        ends.append((budgets[-1], line[-1], config.name, color))
    for dollars, y in crossings:
        ax.plot(dollars, y, "o", color=INK, markersize=6)
        label = f"from \\${dollars:.0f} on"
        ax.annotate(
            label, (dollars, y), (-8, -14), textcoords="offset points", ha="right"
        )
    ax.set(
        xscale="log",
        xlabel=f"dollars, at prices of {MODAL.date}",
        ylabel="predicted loss, nats per token",
        xlim=(1, 500),
        ylim=(2.4, 5),
    )
    ax.xaxis.set_major_formatter("\\${x:g}")
    name_points(ax, ends)
    plt.close(figure)
    return figure
