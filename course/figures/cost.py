"""Figures and measurements of the chapter on cost: what this machine reaches, hours against dollars, loss against dollars."""

import itertools
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

from course.plots import COLORS, INK
from slm.cloud.cost import OVERHEAD, START_UP, estimate, estimate_all
from slm.gpus import MODAL
from slm.model.config import GPTConfig, count_parameters
from slm.model.gpt import GPT
from slm.training.config import RunConfig

SMALL_BATCH = 4  # rows in the steps that are timed


LABELS = {
    "H200": (-6, 3),
    "RTX-PRO-6000": (-6, 1),
    "A100-80GB": (-6, 5),
    "A100-40GB": (7, 0),
    "L40S": (4, -12),
}
"""Where a GPU's name stands beside its point, in points, if not to its lower right."""


def hours_and_dollars(configs: Sequence[RunConfig]) -> Figure:
    """Each config on each GPU: hours to the right, dollars upwards, a bar from the fast to the slow end."""
    figure, ax = plt.subplots(figsize=(8.5, 5.4), layout="constrained")
    for config, color in zip(configs, COLORS, strict=False):
        for found in estimate_all(config):
            middle = (sum(found.hours) / 2, sum(found.dollars) / 2)
            ax.plot(
                found.hours,
                found.dollars,
                color=color,
                alpha=0.35,
                linewidth=3,
                solid_capstyle="round",
            )
            ax.plot(
                *middle, "o" if found.fits_memory else "x", color=color, markersize=5
            )
            offset = LABELS.get(found.gpu, (5, -9))
            side = "right" if offset[0] < 0 else "left"
            ax.annotate(
                found.gpu,
                middle,
                xytext=offset,
                textcoords="offset points",
                fontsize=8.5,
                color=color,
                ha=side,
            )
        ax.plot(
            [],
            [],
            "o",
            color=color,
            label=f"{config.name}, {config.training.max_steps:,} steps",
        )
    ax.plot([], [], "x", color=INK, label="micro-batch does not fit into memory")
    ax.axhline(
        MODAL.free_dollars_per_month,
        color=INK,
        linestyle=":",
        label=f"free each month: ${MODAL.free_dollars_per_month:g}",
    )
    ax.set(xscale="log", yscale="log", xlabel="hours", ylabel="dollars")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter("${x:g}")
    ax.legend(loc="lower right", title=f"prices of {MODAL.date}", fontsize=8.5)
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
    figure, ax = plt.subplots(figsize=(8.5, 4.4), layout="constrained")
    highest = 2 * max(
        operation.flops / operation.size for operation in operations.values()
    )
    corners = [0.2, machine.flops_per_second / machine.bytes_per_second, highest]
    ax.plot(
        corners,
        [
            min(machine.flops_per_second, x * machine.bytes_per_second) / 1e9
            for x in corners
        ],
        color=INK,
    )
    for (name, operation), took, color in zip(
        operations.items(), seconds, 2 * COLORS, strict=False
    ):
        reached = operation.flops / took / 1e9
        single = "one token" in name
        label = f"{name}: {reached:.0f} GFLOP/s"
        ax.plot(
            operation.flops / operation.size,
            reached,
            "D" if single else "o",
            color=color,
            fillstyle="none" if single else "full",
            label=label,
        )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="FLOPs per byte that must be read or written",
        ylabel="GFLOP/s",
    )
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside right center", fontsize=8.5)
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
    figure, ax = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
    fitted = len(sizes) - 1
    ends = [0.7 * sizes[0], 1.4 * sizes[-1]]
    ax.plot(
        ends, [law(n) - E for n in ends], color=INK, label=f"$a\\,N^{{-{law.b:.2f}}}$"
    )
    for part, color, label in (
        (slice(fitted), COLORS[0], "fitted"),
        (slice(fitted, None), COLORS[1], "not fitted"),
    ):
        ax.plot(
            sizes[part],
            [loss - E for loss in losses[part]],
            "o",
            color=color,
            label=label,
        )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="parameters $N$",
        ylabel="loss above the floor, nats per token",
    )
    ax.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
    ax.set_yticks([0.1, 0.2, 0.5, 1, 2, 5], minor=False)
    ax.minorticks_off()
    ax.yaxis.set_major_formatter("{x:g}")
    ax.legend()
    plt.close(figure)
    return figure


GPUS_OF_DOLLARS = (
    "T4",
    "L4",
    "A100-40GB",
    "H100",
    "B200",
)  # dearest work first; the last one's line has the labels


def loss_for_dollars(
    configs: Sequence[RunConfig], law: Callable[[float, float], float]
) -> Figure:
    """Predicted loss of the best of some models against dollars, a line for each of a few GPUs, at the slow end."""
    figure, ax = plt.subplots(figsize=(8.5, 4.2), layout="constrained")
    budgets = [10 ** (i / 40) for i in range(-12, 109)]  # dollars, from 0.5 to 500
    for gpu, color in zip(GPUS_OF_DOLLARS, COLORS, strict=False):
        rows = [(config, estimate(config, gpu=gpu)) for config in configs]
        rows = [(config, row) for config, row in rows if row.largest_batch]
        points: list[tuple[float, float, str]] = []
        for dollars in budgets:
            found = []
            for config, row in rows:
                seconds = (3600 * dollars / row.dollars_per_hour - START_UP[1]) / (
                    1 + OVERHEAD
                )
                if seconds > 0:
                    tokens = seconds * row.tokens_per_second[1]
                    found.append(
                        (law(count_parameters(config.model), tokens), config.name)
                    )
            if found:
                points.append((dollars, *min(found)))
        ax.plot(
            [dollars for dollars, _, _ in points],
            [loss for _, loss, _ in points],
            color=color,
            label=gpu,
        )
        for (_, _, before), (dollars, loss, name) in itertools.pairwise(points):
            if name != before:
                ax.plot(dollars, loss, "o", color=color, markersize=5)
                if gpu == GPUS_OF_DOLLARS[-1]:
                    label = f"from here {name}"
                    ax.annotate(
                        label,
                        (dollars, loss),
                        (0, -11),
                        textcoords="offset points",
                        fontsize=8.5,
                        ha="right",
                    )
    ax.set(
        xscale="log",
        xlabel="dollars",
        ylabel="predicted loss, nats per token",
        xlim=(0.5, 500),
        ylim=(2.5, 5),
    )
    ax.xaxis.set_major_formatter("${x:g}")
    ax.legend(title=f"prices of {MODAL.date}")
    plt.close(figure)
    return figure
