"""What a run needs on each GPU, in hours, dollars and memory, before it starts.

    print(cost_table(load_config("configs/gpt_124m.yaml")))

Exported from chapters/18_cost.py; edit it there.
"""

import bisect
import dataclasses
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slm.gpus import GPU, MODAL, STEPS, Prices, TrainingStep
from slm.model.config import (
    GPTConfig,
    Memory,
    count_flops_per_token,
    count_memory,
    count_parameters,
)
from slm.training.config import RunConfig

# How busy is a GPU kept?

MEASURED = GPTConfig(50257, 1024, n_layers=12, n_heads=12, d_model=768, d_ff=3072)
"""GPT-2 small, the model of all measured steps."""


def work(step: TrainingStep) -> float:
    """Seconds that a measured step would take at the speed of bare products."""
    tokens = step.rows * MEASURED.context_length
    products = 1e12 * MODAL.find(step.gpu).product_tflops
    return tokens * count_flops_per_token(MEASURED) / products


def fit_step(steps: Sequence[TrainingStep] = STEPS) -> tuple[float, float]:
    """Fit the time of a micro-batch: a fixed part, and one that grows with the work.

    Only steps of this package count, compiled.

    Returns:
        Seconds that a layer takes however few the rows, and the share of a bare
        product's speed at which the work is done.
    """
    ours = [step for step in steps if step.code == "slm" and step.compiled]
    seconds = [step.milliseconds / 1000 for step in ours]
    line = statistics.linear_regression([work(step) for step in ours], seconds)
    return line.intercept / MEASURED.n_layers, 1 / line.slope


LAUNCH, SHARE = fit_step()
UNCOMPILED = 0.5  # of the share is left without torch.compile

SPREAD = {"measured": 0.10, "published": 0.35, "assumed": 0.45}  # of the speed


def evidence(config: RunConfig, gpu: GPU) -> str:
    """What the speed of a config on that GPU rests on: a key of SPREAD.

    It is `measured` if steps of this package were timed on the chip, `published` if
    others' were, with no more than twice the work of a micro-batch of the config.
    """
    if not config.training.compile or not _in_matrix_units(config, gpu):
        return "assumed"
    model, chip = config.model, gpu.name.partition("-")[0]  # A100-40GB and A100-80GB
    row = MEASURED.context_length * count_flops_per_token(MEASURED)
    tokens = config.training.batch_size * model.context_length
    rows = tokens * count_flops_per_token(model) / row  # of the same work
    compiled = [step for step in STEPS if step.compiled and step.rows <= 2 * rows]
    codes = {step.code for step in compiled if step.gpu.partition("-")[0] == chip}
    return "measured" if "slm" in codes else "published" if codes else "assumed"


# The estimate

# Pairs are fast end and slow end.
START_UP = (60.0, 300.0)  # seconds: container, imports, compilation
OVERHEAD = 0.10  # of the training time: evaluation, checkpoints
HEADROOM = 0.10  # of the memory: the device's own context, workspaces, fragmentation
LARGEST_BATCH = 2**16 - 1  # where the search for the largest batch ends


@dataclass(frozen=True)
class Estimate:
    """What a run would need on one kind of GPU; pairs are (fast end, slow end).

    Args:
        gpu: Its name in the price table.
        count: How many of them.
        dtype: The type of the matrix products.
        memory_gb: What a step needs on each.
        capacity_gb: What each has.
        largest_batch: Rows in the largest micro-batch that fits, up to LARGEST_BATCH.
        evidence: What the speed rests on: measured, published or assumed.
        mfu: The share of the peak that is reached.
        tokens_per_second: Of all GPUs together.
        hours: Of the whole run, start-up included.
        dollars_per_hour: For GPUs, CPU cores and memory.
        dollars: Of the whole run.
    """

    gpu: str
    count: int
    dtype: str
    memory_gb: float
    capacity_gb: float
    largest_batch: int
    evidence: str
    mfu: tuple[float, float]
    tokens_per_second: tuple[float, float]
    hours: tuple[float, float]
    dollars_per_hour: float
    dollars: tuple[float, float]

    @property
    def name(self) -> str:
        """As in a config: `H100` or `H100:8`."""
        return self.gpu if self.count == 1 else f"{self.gpu}:{self.count}"

    @property
    def fits_memory(self) -> bool:
        """Whether the config's micro-batch fits, with headroom."""
        return self.memory_gb <= (1 - HEADROOM) * self.capacity_gb


def dollars_per_hour(
    config: RunConfig, prices: Prices = MODAL, gpu: str | None = None
) -> float:
    """Dollars for an hour of the config's GPUs (or another kind), cores and memory."""
    machine = config.modal
    each = prices.find(gpu or machine.gpu_name).dollars_per_second
    cores = machine.cpu * prices.dollars_per_core_second
    memory = machine.memory_mib / 1024 * prices.dollars_per_gib_second
    return 3600 * (machine.gpu_count * each + (cores + memory))


def tokens_per_step(config: RunConfig) -> int:
    """Tokens that one optimizer step sees, on all GPUs together."""
    training = config.training
    rows = training.batch_size * training.gradient_accumulation_steps
    return rows * config.modal.gpu_count * config.model.context_length


def run_dtype(config: RunConfig, gpu: GPU) -> str:
    """The type of the matrix products on that GPU, as the trainer chooses it."""
    if not config.training.use_amp:
        return "float32"
    if config.training.dtype != "auto":
        return config.training.dtype
    return "bfloat16" if gpu.bfloat16 else "float16"


def step_memory(config: RunConfig, gpu: GPU, batch_size: int | None = None) -> Memory:
    """What a step of the config, or one with another micro-batch, holds on that GPU."""
    training = config.training
    return count_memory(
        config.model,
        batch_size or training.batch_size,
        run_dtype(config, gpu),
        "cuda",
        training.gradient_accumulation_steps > 1,
        training.optimizer,
    )


def _in_matrix_units(config: RunConfig, gpu: GPU) -> bool:
    dtype = run_dtype(config, gpu)
    return dtype == "float16" or (dtype == "bfloat16" and gpu.bfloat16)


def micro_batch_seconds(config: RunConfig, gpu: GPU) -> float:
    """Seconds that a micro-batch is expected to take on that GPU."""
    fast = _in_matrix_units(config, gpu)
    speed = 1e12 * SHARE * (gpu.product_tflops if fast else gpu.float32_tflops)
    if not config.training.compile:
        speed *= UNCOMPILED
    tokens = config.training.batch_size * config.model.context_length
    flops = tokens * count_flops_per_token(config.model)
    return config.model.n_layers * LAUNCH + flops / speed


def seconds_per_step(config: RunConfig, gpu: GPU) -> tuple[float, float]:
    """Seconds of an optimizer step on that GPU, at the fast and at the slow end."""
    spread = SPREAD[evidence(config, gpu)]
    micro_batches = config.training.gradient_accumulation_steps
    expected = micro_batches * micro_batch_seconds(config, gpu)
    return expected / (1 + spread), expected / (1 - spread)


def estimate(
    config: RunConfig, prices: Prices = MODAL, gpu: str | None = None
) -> Estimate:
    """Memory, speed, hours and dollars of a config on its own GPU, or on another kind.

    Raises:
        SlmError: The GPU is not in the price table.
    """
    row = prices.find(gpu or config.modal.gpu_name)
    steps, tokens = seconds_per_step(config, row), tokens_per_step(config)
    training = [config.training.max_steps * step * (1 + OVERHEAD) for step in steps]
    both = zip(START_UP, training, strict=True)
    fast, slow = ((start_up + seconds) / 3600 for start_up, seconds in both)
    rate = dollars_per_hour(config, prices, row.name)
    peak = row.peak_tflops if _in_matrix_units(config, row) else row.float32_tflops
    flops = tokens * count_flops_per_token(config.model) / config.modal.gpu_count
    quick, slack = (flops / step / (1e12 * peak) for step in steps)
    room = (1 - HEADROOM) * row.memory_gb * 1e9  # bytes
    largest = bisect.bisect_right(
        range(1, LARGEST_BATCH + 1),
        room,
        key=lambda rows: step_memory(config, row, rows).peak,
    )
    return Estimate(
        gpu=row.name,
        count=config.modal.gpu_count,
        dtype=run_dtype(config, row),
        memory_gb=step_memory(config, row).peak / 1e9,
        capacity_gb=row.memory_gb,
        largest_batch=largest,
        evidence=evidence(config, row),
        mfu=(quick, slack),
        tokens_per_second=(tokens / steps[0], tokens / steps[1]),
        hours=(fast, slow),
        dollars_per_hour=rate,
        dollars=(fast * rate, slow * rate),
    )


def estimate_all(config: RunConfig, prices: Prices = MODAL) -> list[Estimate]:
    """An `estimate` for each kind of GPU of which the config's number can be rented."""
    enough = [gpu for gpu in prices.gpus if config.modal.gpu_count <= gpu.limit]
    return [estimate(config, prices, gpu.name) for gpu in enough]


def _with(config: RunConfig, **training: Any) -> RunConfig:
    """The config with other values in its section `training`."""
    changed = dataclasses.replace(config.training, **training)
    return dataclasses.replace(config, training=changed)


def cheapest_batch(
    config: RunConfig, prices: Prices = MODAL, gpu: str | None = None
) -> RunConfig:
    """The config with the micro-batch that is cheapest within memory.

    Its steps see the same rows: what `batch_size` gains, `gradient_accumulation_steps`
    loses. The config itself, if its micro-batch is the one, or does not fit.
    """
    row, training = prices.find(gpu or config.modal.gpu_name), config.training
    rows = training.batch_size * training.gradient_accumulation_steps
    for size in range(rows, training.batch_size, -1):
        if rows % size == 0:
            parts = rows // size
            other = _with(config, batch_size=size, gradient_accumulation_steps=parts)
            if step_memory(other, row).peak <= (1 - HEADROOM) * row.memory_gb * 1e9:
                return other
    return config


# Is the config honest?


def _fits(config: RunConfig, found: Estimate) -> bool:
    """Whether the slow end keeps all that the config promises."""
    in_time = 3600 * found.hours[1] <= config.modal.timeout
    in_money = found.dollars[1] <= config.modal.max_dollars
    return found.fits_memory and in_time and in_money


def max_steps_that_fit(config: RunConfig, prices: Prices = MODAL) -> int:
    """The most steps within `timeout` and `max_dollars`, at the slow end."""
    found, limits = estimate(config, prices), config.modal
    affordable = limits.max_dollars / found.dollars_per_hour * 3600  # seconds
    seconds = min(limits.timeout, affordable) - START_UP[1]
    each = (3600 * found.hours[1] - START_UP[1]) / config.training.max_steps
    return max(0, int(seconds / each))


def _remedy(config: RunConfig, prices: Prices) -> str:
    """The batch size and the steps with which a config would fit its own GPU, checked.

    Empty if there are none.
    """
    found = estimate(config, prices)
    changes: dict[str, Any] = {}
    if not found.fits_memory:
        changes["batch_size"] = found.largest_batch
    if not all(changes.values()):
        return ""
    smaller = _with(config, **changes)
    if not _fits(smaller, estimate(smaller, prices)):
        changes["max_steps"] = max_steps_that_fit(smaller, prices)
        if changes["max_steps"] <= config.training.warmup_steps:
            return ""
        smaller = _with(config, **changes)
    if not _fits(smaller, estimate(smaller, prices)):
        return ""
    return " and ".join(f"{name} ≤ {value:,}" for name, value in changes.items())


def verdict(config: RunConfig, prices: Prices = MODAL) -> tuple[bool, str]:
    """Whether a config keeps its promises of time, money and memory on its own GPU.

    Returns:
        That, and a sentence: what it needs, and what would fit or would be cheaper.
    """
    found, hours = estimate(config, prices), config.modal.timeout / 3600
    fitting = [row for row in estimate_all(config, prices) if _fits(config, row)]
    best = min(fitting, key=lambda row: row.dollars[1], default=None)
    there = best and f"{best.name} ({best.hours[1]:.2f} h, ${best.dollars[1]:.2f})"
    if not _fits(config, found):
        return False, _refusal(config, prices, found, there or "")
    told = f"Fits: at most {found.hours[1]:.2f} h of {hours:.1f} h"
    told += f" and ${found.dollars[1]:.2f} on {found.name}."
    other = cheapest_batch(config, prices)
    less = 1 - estimate(other, prices).dollars[1] / found.dollars[1]
    if less > 0.01:
        times = other.training.gradient_accumulation_steps
        told += f" {less:.0%} less with training.batch_size={other.training.batch_size}"
        told += f" training.gradient_accumulation_steps={times}, the same rows a step."
    if best and best.dollars[1] < found.dollars[1]:
        told += f" Cheapest: {there}."
    return True, told


def _refusal(config: RunConfig, prices: Prices, found: Estimate, there: str) -> str:
    """What a config lacks, and the checked ways in which it would fit."""
    modal, remedy = config.modal, _remedy(config, prices)
    if found.fits_memory:
        need = f"up to {found.hours[1]:.1f} h and ${found.dollars[1]:.2f}"
        told = f"Needs {need} on {found.name}"
    else:
        told = f"Needs {found.memory_gb:.1f} GB, and {found.name} has "
        told += f"{found.capacity_gb:g} GB, a tenth to be left free"
    allowed = f"{modal.timeout / 3600:.1f} h and ${modal.max_dollars:.2f}"
    told += f"; the config allows {allowed}."
    if not found.fits_memory and found.largest_batch and not remedy:
        told += f" The memory holds batch_size ≤ {found.largest_batch}, "
        told += "but then time or dollars do not suffice."
    ways = [way for way in (remedy, f"on {there}" if there else "") if way]
    if not ways:
        return f"{told} It fits on no other GPU either."
    return f"{told} Fits if {', or '.join(ways)}."


# The table

COLUMNS = "GPU|type|speed|MFU, %|memory, GB|batch|tokens/s|hours|dollars".split("|")
_LINE = "{:<15} {:<5}{:<10}{:>6}{:>13}{:>8}{:>10}{:>10}{:>10}"
_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def _span(low: float, high: float, digits: int = 2) -> str:
    """Two ends, with decimals only where they tell something."""
    digits = digits if high < 10 else min(digits, 1) if high < 100 else 0
    return f"{low:.{digits}f}-{high:.{digits}f}"


def table_row(row: Estimate, own: bool) -> list[str]:
    """What the table says of a kind of GPU, an entry for each of its `COLUMNS`."""
    high, low = (100 * share for share in row.mfu)
    mark = " " if row.fits_memory else "!"
    digits = 1 if row.memory_gb < 100 else 0
    memory = f"{row.memory_gb:.{digits}f}{mark} of {row.capacity_gb:3g}"
    most = "≥" if row.largest_batch == LARGEST_BATCH else ""
    batch = f"{most}{row.largest_batch:,}"
    fast, slow = (tokens / 1000 for tokens in row.tokens_per_second)
    speed = f"{_span(slow, fast, 0)}k"
    if fast >= 1_000:
        speed = f"{_span(slow / 1000, fast / 1000, 1)}M"
    cells = [f"{'*' if own else ' '}{row.name}", _SHORT[row.dtype], row.evidence]
    cells += [_span(low, high, 0), memory, batch, speed]
    return [*cells, _span(*row.hours), _span(*row.dollars)]


def cost_table(configs: RunConfig | Sequence[RunConfig], prices: Prices = MODAL) -> str:
    """A table of one or more runs on every GPU, each with its verdict, as text."""
    lines = [_LINE.format(*COLUMNS)]
    for config in [configs] if isinstance(configs, RunConfig) else configs:
        step, flops = tokens_per_step(config), count_flops_per_token(config.model)
        steps, own = config.training.max_steps, prices.find(config.modal.gpu_name).name
        title = (
            f"{config.name}: {count_parameters(config.model):,} parameters, "
            f"{steps:,} steps of {step:,} tokens, {flops / 1e9:.3f} GFLOPs per token, "
            f"{steps * step * flops:.2e} in all"
        )
        rows = estimate_all(config, prices)
        lines += ["", textwrap.fill(title, 88)]
        lines += [_LINE.format(*table_row(row, row.gpu == own)) for row in rows]
        lines += [textwrap.fill(verdict(config, prices)[1], 88)]
    return "\n".join(lines)


ASSUMPTIONS = textwrap.fill(
    "* the config's GPU; ! does not fit into memory. Hours and dollars from the fast "
    "to the slow end. Speed: measured with this package, published by others for such "
    "a model on the card, or assumed, with what bare products reach there; "
    + ", ".join(f"{name} ± {spread:.0%}" for name, spread in SPREAD.items())
    + f". Includes {START_UP[0] / 60:g}-{START_UP[1] / 60:g} minutes of start-up, "
    f"{OVERHEAD:.0%} for evaluation and checkpoints, and the container's CPU cores and "
    "memory. Not counted: the work of muon (much with small batches), and what several "
    "GPUs send each other, all gradients in each step, 4 bytes for every parameter.",
    88,
)


def report(config: RunConfig, prices: Prices = MODAL) -> dict[str, object]:
    """All that is known about a config's cost, ready for JSON."""
    fits, sentence = verdict(config, prices)
    gpu = prices.find(config.modal.gpu_name)
    steps = config.training.max_steps
    return {
        "config": config.name,
        "parameters": count_parameters(config.model),
        "steps": steps,
        "tokens": steps * tokens_per_step(config),
        "flops_per_token": count_flops_per_token(config.model),
        "prices": {"date": str(prices.date), "source": prices.source},
        "free_dollars_per_month": prices.free_dollars_per_month,
        "gpu": estimate(config, prices).name,
        "memory_bytes": asdict(step_memory(config, gpu)),
        "fits": fits,
        "verdict": sentence,
        "max_steps_that_fit": max_steps_that_fit(config, prices),
        "estimates": [asdict(row) for row in estimate_all(config, prices)],
    }
