# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/cloud/cost.py
#     - slm/cloud/plan.py
# ---

# %% [markdown]
# # Cost
#
# What a training run costs, known before it starts: you measure what your own computer
# does with the operations that you have counted, turn counts into hours and dollars on
# every GPU that Modal rents, and dollars into the loss that they buy, and export
# `estimate`, `verdict`, `max_steps_that_fit`, `cost_table` and `report`, and `plan`,
# which turns a budget into a config.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% tags=["hide-input"]
#| export
"""What a run needs on each GPU, in hours, dollars and memory, before it starts.

    print(cost_table(load_config("configs/gpt_124m.yaml")))
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

# %% [markdown]
# ## The idea
#
# A training run is a known number of multiplications. A GPU does a known number of them
# per second, of which a program reaches a part, and it has a price per second. The rest
# is division:
#
# $$\text{hours} =
# \frac{\text{tokens} \times \text{FLOPs per token}}
# {3600 \times \text{peak FLOP/s} \times \text{utilisation}}$$
#
# $$\text{dollars} = \text{hours} \times \text{price per hour}$$
#
# {numref}`fig-hours-dollars` is where that leads: the three GPT configs of this course
# on every GPU in the table. Both scales are logarithmic, and further left is better.

# %% mystnb={"code_prompt_show": "Draw hours and dollars of three models on every GPU", "figure": {"caption": "Three models on every GPU of the table, the dearest hour at the top. Up there a run takes least time, and costs least. A bar goes from the fast to the slow end of the prediction; a cross says that the micro-batch does not fit into the memory.", "name": "fig-hours-dollars"}, "image": {"alt": "Two panels with a row for each of ten GPUs, from the B200 with the dearest hour at the top to the T4 with the cheapest at the bottom; left hours, right dollars, both logarithmic, with a bar for each of three models. Going up, the hours fall steeply, and the dollars fall, too. The bar of the H200 is much shorter than all others. The larger models do not fit into the smaller cards."}} tags=["hide-input"]
from pathlib import Path

import torch

from course.figures.cost import hours_and_dollars
from slm.model.config import GPTConfig
from slm.training.config import load_config

gpt_configs = [load_config(path) for path in sorted(Path("configs").glob("gpt_*.yaml"))]
hours_and_dollars(gpt_configs)

# %% [markdown]
# Follow one colour upwards. If you paid for speed, the dollars would go right while the
# hours go left: less time, more money. With steps back here and there, both go left,
# though an hour costs ever more. The rest of the chapter builds the numbers behind this
# figure, one at a time, and checks each.
#
# ## One bill, by hand
#
# Three numbers have been counted before: the parameters of a model, the FLOPs of a
# token, and the bytes that a step needs ([the GPT](#gpt/what-a-token-costs)). Two more
# stand in the table of GPUs ([the settings](#settings/one-table-of-gpus)): the peak and
# the price. The last one is the share of the peak that training code reaches, the
# *model FLOPs utilisation* (MFU). For the smallest of the configs on its own GPU, with
# a share that a good program reaches and one that a fair one does:

# %% tags=["nbval-check-output"]
small = gpt_configs[0]
own = MODAL.find(small.modal.gpu)
flops_per_token = count_flops_per_token(small.model)
rows = small.training.batch_size * small.training.gradient_accumulation_steps
tokens = small.training.max_steps * rows * small.model.context_length
print(f"{tokens / 1e6:,.0f} million tokens of {flops_per_token / 1e6:,.0f} MFLOPs")
for share in (0.45, 0.30):
    seconds = tokens * flops_per_token / (1e12 * own.peak_tflops * share)
    price = seconds * own.dollars_per_second
    told = f"{seconds / 3600:.2f} hours, ${price:.2f} for the GPU"
    print(f"{share:.0%} of {own.name}'s {own.peak_tflops:g} TFLOP/s: {told}")

# %% [markdown]
# That is nearly all there is to it. What is missing: the processor cores and the memory
# beside the GPU, which are on the bill too; the minutes before the first step;
# evaluations and checkpoints; and small models, which cannot keep a GPU busy. And one
# question stands before the others: where does a share like 30 % come from?
#
# ## From FLOPs to seconds, on your machine
#
# How fast is the machine in front of you? One number is its **peak**: FLOP/s in a large
# matrix product. The other is its **bandwidth**: bytes per second when it only moves
# numbers. An operation that does few FLOPs per byte waits for memory, however fast the
# processor is. The roof (Williams et al. 2009) in {numref}`fig-roofline` is what the
# two numbers allow, and the points are what the parts of GPT-2 reach, with 256 tokens,
# and two of them with one.

# %% mystnb={"code_prompt_show": "Draw this machine's roof, and GPT-2's parts below it", "figure": {"caption": "The roof that peak and bandwidth of this machine allow, and what the parts of GPT-2 reach below it, in GFLOP/s. Few FLOPs per byte, at the left, means waiting for memory; two of the products stand there when they are done for one token (orange).", "name": "fig-roofline"}, "image": {"alt": "GFLOP/s against FLOPs per byte, both logarithmic: a roof that rises and then is flat; matrix products of many tokens at the right, close to its flat part; layer norm, GELU and products of one token low at the left, where it rises."}} tags=["hide-input"]
from course.figures.cost import measure_machine, roofline

machine = measure_machine()
peak, bandwidth = machine.flops_per_second / 1e9, machine.bytes_per_second / 1e9
print(f"peak {peak:.0f} GFLOP/s, bandwidth {bandwidth:.0f} GB/s (float32, one thread)")
roofline(machine, small.model)

# %% [markdown]
# Products of many tokens stand on the right, close to the roof. (The slope was measured
# by copying; what only reads may stand a little above it.) Norms and GELU sit far left,
# bound by memory: they are hardly in the count, and yet they take time. And the product
# for *one* token, which is what generation does, reads a whole matrix to use each
# number once. This is why no program reaches the peak. The share that it does reach,
#
# $$\text{MFU} =
# \frac{\text{tokens per second} \times \text{FLOPs per token}}{\text{peak FLOP/s}}$$
#
# is what is left of the peak after all that. Small models and small batches leave less.
#
# ### Predict, then run
#
# A prediction is worth something if it is made before. Time a model of two layers and a
# model of four, a few steps each: half the difference is a layer, the rest is
# everything else. From these, predict the seconds of 200 steps of deeper models. Then
# run them. All times are processor time of the one thread, so that other programs on
# your machine do not count.

# %%
from course.figures.cost import median_seconds, training_step


def shape(n_layers: int, d_model: int) -> GPTConfig:
    return GPTConfig(512, 64, n_layers, n_heads=2, d_model=d_model, d_ff=4 * d_model)


sizes, steps = [(6, 48), (5, 64), (6, 96)], 200
predictions = []
for n_layers, d_model in sizes:
    shallow = [training_step(shape(n, d_model)) for n in (2, 4)]
    two, four = median_seconds(shallow)
    predictions.append(steps * (two + (n_layers - 2) * (four - two) / 2))
print("predicted seconds:", [round(p, 2) for p in predictions])

# %%
import time

for (n_layers, d_model), predicted in zip(sizes, predictions, strict=True):
    config = shape(n_layers, d_model)
    step = training_step(config)  # on 4 rows of 64 tokens
    step()  # the first one allocates
    began = time.process_time()
    for _ in range(steps):
        step()
    seconds = time.process_time() - began
    flops = steps * 4 * 64 * count_flops_per_token(config)
    mfu = flops / seconds / machine.flops_per_second
    told = f"predicted {predicted:.2f} s, took {seconds:.2f} s, error"
    error = predicted / seconds - 1
    print(f"{n_layers} layers of {d_model}: {told} {error:+.0%}, MFU {mfu:.0%}")

# %% [markdown]
# The errors above are what to expect, either way: a layer among many is not exactly as
# fast as one among few, and no two minutes of a shared machine are alike. The method is
# the same everywhere. On a GPU it costs cents: rent it for two minutes, time twenty
# steps, and you know the hours. What you can know without renting is what others have
# timed.
#
# ## Prices
#
# Prices change, so they carry their date and source, and `slm cost --prices FILE`
# replaces them. Modal bills by the second: the GPU, plus the CPU cores and the memory
# that you reserve (or use, if that is more).

# %% tags=["nbval-check-output"]
from course.tables import Table

rows = []
for gpu in MODAL.gpus:
    speed = (f"{gpu.peak_tflops:,.0f}", f"{gpu.memory_gb:.0f}")
    rows.append((gpu.name, f"{3600 * gpu.dollars_per_second:.2f}", *speed))
header = ("GPU", "dollars an hour", "peak, TFLOP/s", "memory, GB")
Table(header, rows, f"Prices of {MODAL.date}, {MODAL.source}")

# %% [markdown]
# ## How busy is a GPU kept?
#
# A few steps have been timed on rented GPUs, and stand in a table with their sources
# ([the settings](#settings/one-table-of-gpus)). Take the two compiled ones of this
# course's own model, on an H200. Four times the rows take less than three times as
# long:

# %% tags=["nbval-check-output"]
few, many = (step for step in STEPS if step.code == "slm" and step.compiled)
each = (many.milliseconds - few.milliseconds) / (many.rows - few.rows)
fixed = few.milliseconds - few.rows * each
reached = 1024 * flops_per_token / (each / 1000) / 1e12
product = MODAL.find(few.gpu).product_tflops
for step in (few, many):
    print(f"{step.rows:2} rows of 1,024 tokens: {step.milliseconds:.1f} ms")
print(f"one row more: {each:.2f} ms, so {reached:.0f} TFLOP/s")
print(f"    {reached / product:.0%} of the {product:g} that bare products reach")
print(f"no row at all: {fixed:.1f} ms, {fixed / small.model.n_layers:.2f} a layer")

# %% [markdown]
# So a step has two parts. One grows with the work, at a share of the speed that bare
# products reach. The other is there however few the rows: each of a layer's many
# operations must be started, the weights must be read once and updated once.
#
# $$t = \underbrace{n_\text{layers} \times \text{LAUNCH}}_\text{fixed} +
# \frac{\text{FLOPs}}{\text{SHARE} \times \text{product FLOP/s}}$$
#
# Two measurements carry two parameters and no more. `fit_step` is this calculation as a
# straight line through as many steps as there are.


# %%
#| export
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

# %% [markdown]
# The other steps were not asked: other programs, other cards, no compilation. How well
# are they predicted?

# %% tags=["nbval-check-output"]
print(f"a layer {1000 * LAUNCH:.2f} ms, {SHARE:.0%} of a product's speed")
rows = []
for step in STEPS:
    share = SHARE * (1 if step.compiled else UNCOMPILED)
    predicted = 1000 * (MEASURED.n_layers * LAUNCH + work(step) / share)
    error = round(predicted / step.milliseconds - 1, 2) + 0.0  # no -0
    how = "compiled" if step.compiled else "eager"
    times = (f"{step.milliseconds:.1f}", f"{predicted:.1f}", f"{error:+.0%}")
    rows.append((step.gpu, step.code, how, f"{step.rows}", *times))
header = ("GPU", "code", "", "rows", "measured, ms", "predicted, ms", "error")
Table(header, rows, "Measured steps, and what the fit says of them")

# %% [markdown]
# The first two were fitted, so they say nothing. Our own eager step and llm.c's on an
# H100 come out right. On the A100, which has another share of its own, nanoGPT is
# slower than predicted and llm.c, which is written in CUDA, faster: a third, either
# way. That is what it means to predict a card that nobody has measured with this code,
# and it makes the width of the range: a tenth where this package was timed, a third
# where only others were, and more where nobody was. A float32 step, one without
# `torch.compile`, and one with far less work than the steps that were timed count as
# not measured. (`benchmarks/cost_prediction.py` leaves out one card at a time. Without
# our own steps, those of other programs miss the H200 widely.)


# %%
#| export
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


# %% [markdown]
# ## Does it fit? One small model, in bytes
#
# The other number of an estimate is the memory of a step. It has been
# [counted](#gpt/what-a-training-step-holds-in-memory) by a formula with a dozen terms.
# Take a model small enough to follow: 2 layers of 128 channels, and 4 rows of 64
# tokens. At the fullest moment of a step, when the loss is computed, this lies in the
# memory of a GPU:

# %% tags=["nbval-check-output"]
from course.tables import Table

tiny = GPTConfig(1000, 64, n_layers=2, n_heads=2, d_model=128, d_ff=512)
L, H, D, F = tiny.n_layers, tiny.n_heads, tiny.d_model, tiny.d_ff
V, n, P = tiny.vocab_size, 4 * tiny.context_length, count_parameters(tiny)  # n tokens
M = L * (4 * D * D + 2 * D * F)  # numbers in the blocks' matrices
terms = [
    ("weights", "4 P", 4 * P),
    ("AdamW's averages", "8 P", 8 * P),
    ("matrices, 16 bits", "2 M", 2 * M),
    ("stream before norms", "8 n L D", 8 * n * L * D),
    ("what norms hand on", "4 n L D", 4 * n * L * D),
    ("queries, keys, values", "6 n L D", 6 * n * L * D),
    ("what heads hand on", "2 n L D", 2 * n * L * D),
    ("around GELU", "4 n L F", 4 * n * L * F),
    ("sums of softmax", "4 n L H", 4 * n * L * H),
    ("mean and spread", "16 n L", 16 * n * L),
    ("the last stream", "4 n D", 4 * n * D),
    ("last norm, gradient", "8 n D", 8 * n * D),
    ("output matrix, gradient", "6 V D", 6 * V * D),
    ("logits, 16 bits", "2 n V", 2 * n * V),
    ("logits, 32 bits", "4 n V", 4 * n * V),
]
by_hand, counted = sum(term[2] for term in terms), count_memory(tiny, batch_size=4)
rows = [(what, formula, f"{size:,}") for what, formula, size in terms]
rows.append(("together", "", f"{by_hand:,}"))
told = f"{P:,} parameters, {n} tokens. Counted: {counted.peak:,} bytes"
Table(("what", "formula", "bytes"), rows, f"A training step in bfloat16: {told}")

# %% [markdown]
# `count_memory` says the same to a byte. $P$ is the parameters, $M$ those in the
# blocks' matrices, $n$ the tokens; the rows with $L$ are paid in each layer. There, two
# norms keep the stream in 32 bits and hand on 16, every product keeps its input, and
# softmax and the norms keep a few sums of each token. The loss holds what the last norm
# hands on and the gradient of that, and for the output matrix a 16-bit copy and the
# gradient.
#
# What does not happen here has no row: masks of dropout, gradients of earlier
# micro-batches, and logits so long that they are computed in [blocks of a fixed
# size](#gpt/the-loss-without-the-logits). And after the backward pass all gradients lie
# beside weights and averages, which is more than this only where weights are many and
# tokens few. A formula that agrees with itself proves little, so here is what a GPU
# said: GPT-2 small with 8 rows, on an H200 (2026-11-27, PyTorch 2.11).

# %% tags=["nbval-check-output"]
predicted = count_memory(small.model, batch_size=8).peak / 2**30
rows = []
for how, measured in (("eager", 5.1), ("compiled", 5.6)):
    error = f"{predicted / measured - 1:+.0%}"
    rows.append((how, f"{predicted:.1f}", f"{measured:.1f}", error))
Table(("step", "predicted, GiB", "measured, GiB", "error"), rows, "Peak on an H200")

# %% [markdown]
# The count follows the code of the eager step. The compiler fuses and keeps in its own
# way, and needs more. And what was measured then held blocks of logits half as large as
# the loss makes them on a GPU today, which nobody has measured yet. For such gaps a
# plan leaves a tenth of the memory free.
#
# ## The estimate
#
# Everything comes together in `estimate`: one config, one GPU. Each number has a fast
# and a slow end. The other assumptions stand in capitals, so that you can see and
# change them.

# %%
#| export
# Pairs are fast end and slow end.
START_UP = (60.0, 300.0)  # seconds: container, imports, compilation
OVERHEAD = 0.10  # of the training time: evaluation, checkpoints
HEADROOM = 0.10  # of the memory: the device's own context, workspaces, fragmentation
LARGEST_BATCH = 2**16 - 1  # where the search for the largest batch ends

# %% [markdown]
# What comes out is a row of numbers, so it is a dataclass. Two things follow from them:
# what a config would call this machine, and whether the memory suffices with the
# headroom left free.


# %%
#| export
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


# %% [markdown]
# Four questions to a config, each answered by a few lines. What does an hour cost? How
# many tokens does a step see? In which type are the products computed: the trainer's
# own rule, asked before there is a device? And what must the memory hold? On a T4,
# which has no bfloat16, the trainer takes float16 with loss scaling, in which its peak
# is given. A plan leaves a tenth of the memory free for what is not counted. [The
# trainer](#trainer/is-there-room) asks the device itself before a run starts and leaves
# out that tenth: it must not refuse what might fit.


# %%
#| export
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


# %% [markdown]
# The seconds of a step are the formula [above](#cost/how-busy-is-a-gpu-kept) for each
# of its micro-batches. A GPU has two speeds: one for 16-bit products in its matrix
# units, and a far smaller one for float32.


# %%
#| export
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


# %% [markdown]
# `estimate` multiplies: seconds of a step times steps, with the overhead and the
# start-up; hours times the machine's rate. The largest batch that fits is found by
# bisection, since a step's memory only grows with its rows. `estimate_all` asks the
# same for every kind of GPU that can be rented in the config's number.


# %%
#| export
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


# %% [markdown]
# What the fixed part does to a small model: the story model on an H100, without it and
# with it, at the fast end.

# %% tags=["nbval-check-output"]
little, h100 = load_config("configs/stories_cpu.yaml"), MODAL.find("H100")
reached = 1e12 * h100.product_tflops * SHARE
unbounded = reached / count_flops_per_token(little.model) / 1e6
bounded = estimate(little, gpu="H100").tokens_per_second[0] / 1e6
print(f"{little.name} on {h100.name}, million tokens per second:")
print(f"{unbounded:.0f} by its FLOPs alone, {bounded:.1f} with LAUNCH")

# %% [markdown]
# And what it does to a large one: accumulation pays it once for each micro-batch. Rows
# are rows, whether they come in four small batches or in one ([the trainer](#trainer)
# proves that the steps are the same), so the largest micro-batch that the memory holds
# is the cheapest.


# %%
#| export
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


# %% tags=["nbval-check-output"]
rows = {"batch_size": 8, "gradient_accumulation_steps": 4}
eights = dataclasses.replace(
    small, training=dataclasses.replace(small.training, **rows)
)
for config in (eights, cheapest_batch(eights, gpu="H200")):
    found, training = estimate(config, gpu="H200"), config.training
    speed = sum(found.tokens_per_second) / 2000
    dollars = sum(found.dollars) / 2
    batch = f"{training.gradient_accumulation_steps} x {training.batch_size:2} rows"
    print(f"{batch} on {found.name}: {speed:.0f} k tokens/s, ${dollars:.2f}")

# %% [markdown]
# What the estimate leaves out. Several GPUs exchange their gradients in every step, and
# that is costed as if it were free. And the optimizer's own work is not counted. For
# AdamW that is a few operations per parameter. Muon, however, multiplies each matrix of
# the blocks with itself a few times over. PyTorch's counter says how much that is for
# the story model, beside the products that are counted:

# %% tags=["nbval-check-output"]
from torch.utils.flop_counter import FlopCounterMode

from slm.model.gpt import GPT
from slm.training.optim import make_optimizers

model = GPT(little.model)
for parameter in model.parameters():
    parameter.grad = torch.ones_like(parameter)
optimizers = make_optimizers(model, little.training)
for optimizer in optimizers:
    optimizer.step()  # the first one also tries which type is fastest here
with FlopCounterMode(display=False) as counter:
    for optimizer in optimizers:
        optimizer.step()
step = tokens_per_step(little)
share = counter.get_total_flops() / (step * count_flops_per_token(little.model))
print(f"{little.training.optimizer}: {share:.0%} on top of a step of {step:,} tokens")

# %% [markdown]
# It is work per step, not per token: with large batches the share becomes small.
#
# ## Is the config honest?
#
# A config promises things: so many steps, within a `timeout`, for no more than
# `max_dollars`, on this GPU. The promise can be checked before anything is rented, and
# it should hold at the *slow* end of the range. If it does not, say what would, and say
# "fits if" only of a change that has been through the same check. Steps that all belong
# to the warm-up are no remedy: no config may have them.


# %%
#| export
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


# %% [markdown]
# A remedy is found in two moves. If the memory does not suffice, take the largest batch
# that fits; if time or money still do not, take the most steps that do. After each move
# the changed config goes through `_fits`, and if it fails the last time there is no
# remedy to tell.


# %%
#| export
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


# %%
#| export
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


# %% [markdown]
# A refusal says what is lacking, memory before money, and ends with the ways that have
# been checked: fewer steps or a smaller batch on the same GPU, or the same run on
# another one.


# %%
#| export
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


# %% [markdown]
# What a wish looks like that cannot come true: 50,000 steps of the first config, in
# half an hour.

# %% tags=["nbval-check-output"]
changes = ["training.max_steps=50000", "modal.timeout=1800"]
wish = load_config("configs/gpt_124m.yaml", changes)
print(textwrap.fill(verdict(wish)[1], 88))

# %% [markdown]
# ## The table
#
# What `slm cost` prints: one row for each GPU, the verdict below it, and the
# assumptions once at the end.


# %%
#| export
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


# %% [markdown]
# The table is the header, and for each config a line that says what is trained, a row
# for each GPU, and the verdict. `ASSUMPTIONS` belongs below it, once.


# %%
#| export
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


# %% [markdown]
# On a page the same rows make a real table; `*` is the config's own GPU.

# %% tags=["nbval-check-output"]
from course.tables import Table
from IPython.display import display

for config in gpt_configs:
    rows = [table_row(row, row.gpu == config.modal.gpu) for row in estimate_all(config)]
    display(Table(COLUMNS, rows, f"{config.name}. {verdict(config)[1]}"))
course.show(ASSUMPTIONS)

# %% [markdown]
# Read the dollars from top to bottom. The price per second rises tenfold, and the
# dollars *fall*, with steps back where the price rises more than the speed. A newer
# GPU's speed grows faster than its price, and the CPU cores and memory beside it are
# paid for a shorter time. Then look at the ends. Where nobody has measured, the slow
# end is dear, so the GPU with the best promise need not be the one that promises the
# least risk:

# %% tags=["nbval-check-output"]
for config in [little, *gpt_configs]:
    at_best, at_worst = (
        min(estimate_all(config), key=lambda found: found.dollars[end])
        for end in (0, 1)
    )
    told = f"cheapest at best on {at_best.name} for ${at_best.dollars[0]:.2f}"
    print(f"{config.name}: {told},")
    print(f"    at worst on {at_worst.name} for ${at_worst.dollars[1]:.2f}")

# %% [markdown]
# That is why the three GPT configs name an H200: what it will cost is known best there.
# The rule that the fast GPU is the cheap one ends where the model is too small to keep
# it busy, as the story model shows.
#
# For machines the same numbers as JSON:


# %%
#| export
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


# %% [markdown]
# ## What size buys
#
# So far a run is hours and dollars. What you want is a low loss. It falls with the
# number of parameters $N$ as a power (Kaplan et al. 2020), once what no model can
# predict is taken off, the entropy $E$ of the text (Hoffmann et al. 2022). Such a
# formula, fitted to small runs and read off for larger ones, is a *scaling law*:
#
# $$L(N) = E + a\,N^{-b}$$
#
# For natural language nobody knows it, and it has to be fitted along with $a$ and $b$.
# Here the grammar gives it exactly ([the floor](#floor/counting-visits)). So train five
# sizes on the same batches, subtract $E$, and a power law must be a straight line on
# logarithmic axes. In {numref}`fig-scaling` the line is fitted to the *first four*, and
# the fifth tests it.

# %%
from slm.data.floor import reference_lines
from slm.data.dataset import create_dataloader
from slm.data.tokenizer import get_tokenizer
from slm.training.trainer import Trainer

floor = reference_lines(get_tokenizer("stories")).floor  # E, in nats per token
source = {"batch_size": 8, "context_length": 128}
source |= {"tokenizer": "stories", "packing": "documents"}
text = [
    create_dataloader("stories", split=split, **source)
    for split in ("train", "validation")
]
schedule = {"batch_size": 8, "optimizer": "muon", "learning_rate": 2e-2}
schedule |= {"warmup_steps": 30, "eval_batches": 40, "use_amp": False}
schedule |= {"log_every": 300, "eval_every": 1000, "checkpoint_every": 1000}


def final_loss(model: GPTConfig, steps: int) -> float:
    """Validation loss after so many steps, in nats per token."""
    torch.manual_seed(0)
    training = {"training": {**schedule, "max_steps": steps}}
    trainer = Trainer(GPT(model), *text, training, device="cpu", verbose=False)
    return trainer.train()[-1]["val/loss"]


def of_width(d: int) -> GPTConfig:
    return GPTConfig(1024, 128, n_layers=2, n_heads=1, d_model=d, d_ff=4 * d)


models = [of_width(d) for d in (4, 8, 16, 32, 64)]
sizes = [count_parameters(model) for model in models]
losses = [final_loss(model, 300) for model in models]
targets = sum(int((text[0].batch(step)[1] != -100).sum()) for step in range(300))
longer = final_loss(models[-1], 600)

# %% mystnb={"code_prompt_show": "Fit a line to four sizes, and draw all five", "figure": {"caption": "Loss above the floor for five sizes. The line is fitted to the first four; the fifth, which saw too few tokens for its size, leaves it upwards.", "name": "fig-scaling"}, "image": {"alt": "Loss above the floor against the number of parameters, both logarithmic: four points lie close to a straight line that falls, and a fifth, of the largest model, above it."}} tags=["hide-input"]
from course.figures.cost import fit_power_law, scaling

law = fit_power_law(sizes[:4], losses[:4], floor)
scaling(sizes, losses, floor, law)

# %%
rows = []
tokens = [targets] * len(sizes) + [2 * targets]
for n, seen, loss in zip([*sizes, sizes[-1]], tokens, [*losses, longer], strict=True):
    excess = (loss - floor) / (law(n) - floor) - 1
    each = (f"{seen / n:.1f}", f"{loss:.3f}", f"{law(n):.3f}", f"{excess:+.0%}")
    rows.append((f"{n:,}", *each))
span = (losses[0] - floor) / (losses[3] - floor)
header = ("parameters", "tokens for each", "loss", "law", "excess over the law's")
fitted = f"L(N) = {floor:.3f} + {law.a:.3g} N^-{law.b:.2f}, fitted to the first four"
Table(header, rows, f"{fitted}, which span a factor of {span:.0f} in excess loss")

# %% [markdown]
# Four points lie near a line over the range of excess loss that the table names, though
# not on it: they bend. The fifth leaves it upwards. All five saw the same few tokens,
# and the second column shows how many that is for each parameter. Is the largest model
# too large for the text, or undertrained? The last line tells: with twice the steps,
# and the slower fall of the rate that goes with them, it ends below the law's
# prediction. The exponent is large, too; for natural language it is about 0.35 (the
# next section). A grammar has few rules, and a model that knows them all has nothing
# left to gain, where language always has rarer things to learn. So this is the form of
# a law, not a law to take away. One in $N$ alone holds only where the tokens do not run
# out first; the rule of thumb for language is twenty per parameter (Hoffmann et al.
# 2022). At the other end the law fails, too: towards no parameters at all it goes to
# infinity, where the loss of a model that knows nothing is $\ln V$.
#
# ## What a dollar buys
#
# Money buys parameters and tokens, so the law must know both, $N$ and $D$. Hoffmann et
# al. (2022) fitted one to over 400 models on web text. Besiroglu et al. (2024) read
# their points off the published figure, found that the fit had stopped too early, and
# fitted again:
#
# $$L(N, D) = E + \frac{A}{N^{\alpha}} + \frac{B}{D^{\beta}}$$
#
# The first term is what no model can know, the second what a small model lacks, the
# third what too little text leaves out. By resampling the points they found how far
# each number can be trusted. Two standard errors, 0.04 for either exponent, look
# harmless, but powers of billions are sensitive to them. What the points do know is the
# loss in their own middle. We put that at a billion parameters and twenty billion
# tokens, and let a wrong exponent turn its term around it: the further away, the wider.
# That is our reading of their errors, since how these go together was not published.


# %%
#| export cloud/plan
"""Which model for which money: the config that a budget is best spent on.

    print(plan(5.0).report())
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from slm.cloud.cost import (
    Estimate,
    cheapest_batch,
    estimate,
    max_steps_that_fit,
    tokens_per_step,
)
from slm.errors import SlmError
from slm.files import user_path
from slm.gpus import MODAL, Prices
from slm.model.config import GPTConfig, count_parameters
from slm.training.config import ModalConfig, RunConfig, make_config

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
ERRORS = (0.03, 0.02, 0.02)  # standard errors of E, ALPHA and BETA
MIDDLE = (1e9, 2e10)  # parameters and tokens in the middle of the fitted runs


def predicted_loss(parameters: float, tokens: float) -> tuple[float, float]:
    """The loss after so many tokens, each seen once, by a law for web text.

    Besiroglu et al. 2024 fitted it to runs of Hoffmann et al. 2022. On another text,
    or in other tokens, only the order of two runs may carry over.

    Returns:
        Nats per token, and two standard errors of them.
    """
    size, text = A / parameters**ALPHA, B / tokens**BETA
    turned = size * ERRORS[1] * math.log(MIDDLE[0] / parameters)
    bent = text * ERRORS[2] * math.log(MIDDLE[1] / tokens)
    return E + size + text, 2 * math.hypot(ERRORS[0], turned, bent)


# %% [markdown]
# How should a number of FLOPs be split? Six for each parameter and token leave one
# choice, and the smallest loss along it is found by trying:

# %% tags=["nbval-check-output"]
import numpy as np


def best_split(flops: float, alpha: float = ALPHA, beta: float = BETA) -> float:
    """Tokens for each parameter at the smallest loss that so many FLOPs can reach."""
    n = np.geomspace(1e6, 1e12, 6001)
    d = flops / (6 * n)
    size = A / MIDDLE[0] ** ALPHA * (MIDDLE[0] / n) ** alpha
    text = B / MIDDLE[1] ** BETA * (MIDDLE[1] / d) ** beta
    best = (size + text).argmin()
    return d[best] / n[best]


for flops in (1e18, 1e20, 1e22):
    ends = [best_split(flops, ALPHA + e, BETA - e) for e in (-0.04, 0.04)]
    told = f"{best_split(flops):.0f} tokens for each parameter"
    print(f"{flops:.0e} FLOPs: {told}, {min(ends):.0f} to {max(ends):.0f}")

# %% [markdown]
# About twenty, at any size: the rule of thumb. The range is what two standard errors of
# both exponents leave open. It is narrow where the fitted runs lie and wide for small
# budgets, far from them. What do the three configs give their models?

# %% tags=["nbval-check-output"]
rows = []
for config in gpt_configs:
    parameters = count_parameters(config.model)
    tokens = config.training.max_steps * tokens_per_step(config)
    loss, error = predicted_loss(parameters, tokens)
    dollars = estimate(config).dollars[1]
    told = (f"{tokens / 1e6:,.0f}", f"{tokens / parameters:.2f}", f"{dollars:.2f}")
    rows.append((config.name, f"{parameters:,}", *told, f"{loss:.2f} ± {error:.2f}"))
header = ("config", "parameters", "million tokens", "each", "dollars", "loss")
Table(header, rows, "One pass over TinyStories, and the loss of so much web text")

# %% [markdown]
# All three are far below twenty, the large ones the furthest. So are they the best use
# of their dollars? {numref}`fig-loss-for-dollars` asks the law: each model on the GPU
# of its config, trained on fresh text until the money is gone, at the slow end.


# %% tags=["nbval-check-output"]
import itertools


def loss_for_dollars(config: RunConfig, dollars: float) -> float:
    """Nats per token that a config's model reaches if its run may cost so much."""
    found = estimate(config)
    seconds = (3600 * dollars / found.dollars_per_hour - START_UP[1]) / (1 + OVERHEAD)
    tokens = max(1e6, seconds * found.tokens_per_second[1])
    return predicted_loss(count_parameters(config.model), tokens)[0]


crossings = []
for smaller, larger in itertools.pairwise(gpt_configs):
    pairs = (
        (d, loss_for_dollars(smaller, d), loss_for_dollars(larger, d))
        for d in range(1, 1000)
    )
    crossings.append(next((d, loss) for d, other, loss in pairs if loss <= other))
    print(f"{larger.name} is the better buy from ${crossings[-1][0]} on")


# %% mystnb={"code_prompt_show": "Draw the loss that a budget buys with each model", "figure": {"caption": "The loss that a budget buys with each of the three models. A marker stands where the next larger model becomes the better buy.", "name": "fig-loss-for-dollars"}, "image": {"alt": "Predicted loss against dollars, from 1 to 500, for three models. At the left the smallest model is far below the others; its line flattens first. The medium one crosses it first, and the large one crosses that at several times as many dollars."}} tags=["hide-input"]
from course.figures.cost import compare_models

compare_models(gpt_configs, loss_for_dollars, crossings)

# %% [markdown]
# Below the first of these prices the small model is better, though the others *could*
# learn more: they have seen too little. So why does the course ship three configs with
# the same text? Because one pass over TinyStories is all that it has to give, about
# half a billion GPT-2 tokens. Text that is seen again is worth nearly as much as new
# text for about four passes, and little after that (Muennighoff et al. 2023). The three
# are a comparison of sizes on the same tokens, each for the least money that shows it
# whole. They are not the best use of their dollars, and their comments say so. A larger
# model asks for another corpus.
#
# And read differences off this figure, not values. The law holds for the text and the
# tokens of its runs, which were web pages and books, in a vocabulary of 32,000.
# Children's stories are far easier than the web, so the loss that you will see is far
# lower, and how much a larger model gains is another number too. What carries over is
# the shape: too little text for a model wastes money, and so does too small a model for
# its text.
#
# ## A budget becomes a config
#
# Now turn the question round. You have so many dollars: which run gets the lowest loss?
# First what may be chosen. Models grow in depth and width together, with heads of 64
# and a feed-forward network four times as wide. Large ones want larger steps and lower
# rates. The rates follow the published ones of GPT-3 (Brown et al. 2020); the steps are
# many times smaller than there, to suit small budgets, and nobody has tuned one to the
# other here. The corpus is the smallest that is seen at most four times.


# %%
#| export cloud/plan
class Shape(NamedTuple):
    """A model to choose, and how it is trained."""

    n_layers: int
    d_model: int
    rows: int  # in a step, of CONTEXT tokens
    learning_rate: float


SHAPES = (
    Shape(4, 256, 32, 1e-3),
    Shape(6, 384, 32, 1e-3),
    Shape(8, 512, 32, 8e-4),
    Shape(10, 640, 32, 7e-4),
    Shape(12, 768, 32, 6e-4),
    Shape(16, 896, 32, 5e-4),
    Shape(24, 1024, 64, 3e-4),
    Shape(36, 1280, 128, 2.5e-4),
    Shape(48, 1600, 256, 2e-4),
    Shape(32, 2560, 256, 1.6e-4),
)
VOCABULARY, CONTEXT = 50_257, 1024  # of GPT-2
CORPORA = {  # tokens in one pass, the smallest first
    "roneneldan/TinyStories": 0.47e9,
    "HuggingFaceFW/fineweb-edu:sample-10BT": 1e10,
}
PASSES = 4  # over a corpus at most
LEAST_STEPS = 200  # fewer are no training
DAY = 86_400  # seconds, the longest that an attempt may take
MOST_DOLLARS = 100_000


# %% [markdown]
# Then a shape becomes a config for one machine: the rows of a step shared among its
# GPUs, one core pair and enough memory for each, and a budget. How many GPUs? An
# attempt may last a day. So twice as many come into question only where a day of fewer
# would not use the money up.


# %%
#| export cloud/plan
def _draft(shape: Shape, gpu: str, dollars: float) -> RunConfig:
    """The shortest run of a shape on that machine, with micro-batches of one row."""
    count = ModalConfig(gpu=gpu).gpu_count
    layers, width, rows, rate = shape
    model = GPTConfig(VOCABULARY, CONTEXT, layers, width // 64, width, 4 * width)
    parameters = count_parameters(model)
    memory = 4096 * count + 12 * parameters // 2**20  # MiB; a checkpoint is on its way
    sections = {
        "model": dataclasses.asdict(model),
        "training": {
            "batch_size": 1,
            "gradient_accumulation_steps": rows // count,
            "learning_rate": rate,
            "min_learning_rate": rate / 10,
            "warmup_steps": LEAST_STEPS // 20,
            "max_steps": LEAST_STEPS,
            "eval_every": 500,
            "checkpoint_every": 500,
        },
        "data": {"dataset": next(iter(CORPORA)), "num_workers": 2},
        "modal": {
            "gpu": gpu,
            "timeout": DAY,
            "max_dollars": max(0.01, int(100 * dollars + 1e-6) / 100),
            "cpu": 2.0 * count,
            "memory_mib": 4096 * max(2, math.ceil(memory / 4096)),
        },
    }
    return make_config(sections, f"gpt_{parameters / 1e6:.0f}m")


def _drafts(dollars: float, gpu: str | None, prices: Prices) -> Iterator[RunConfig]:
    """All shapes on all machines that so much money might need."""
    for kind in [row.name for row in prices.gpus] if gpu is None else [gpu]:
        row = prices.find(kind.partition(":")[0])
        day = DAY * row.dollars_per_second
        needed = [n for n in (2, 4, 8) if n <= row.limit and dollars > n / 2 * day]
        several = [] if ":" in kind else [f"{kind}:{n}" for n in needed]
        for machine in [kind, *several]:
            for shape in SHAPES:
                config = cheapest_batch(_draft(shape, machine, dollars), prices)
                if estimate(config, prices).fits_memory:
                    yield config


# %% [markdown]
# Each gets the cheapest micro-batch and then as many steps as the budget holds at the
# slow end. That is where the promise of the [verdict](#cost/is-the-config-honest) is
# held, so a plan always fits. What does not change with the budget is what makes plans
# comparable: with more dollars, every choice that there was is still there and can go
# on for longer. So the best of them can only get better.


# %%
#| export cloud/plan
@dataclass(frozen=True)
class Plan:
    """The run that a budget buys, and what is expected of it.

    Args:
        dollars: The budget.
        config: The run.
        estimate: Its hours and dollars.
        tokens: Seen in all, repeated ones included.
        loss: Predicted, in nats per token of web text.
        error: Two standard errors of it.
    """

    dollars: float
    config: RunConfig
    estimate: Estimate
    tokens: int
    loss: float
    error: float

    def report(self) -> str:
        """What is proposed and why, in lines of at most 88 characters."""
        model, training, found = self.config.model, self.config.training, self.estimate
        parameters = count_parameters(model)
        (fast, slow), (low, high) = found.hours, found.dollars
        corpus, step = self.config.data.dataset, tokens_per_step(self.config)
        spent = f"{low:.2f}-{high:.2f}, of {self.dollars:.2f}"
        if high < 0.9 * self.dollars:
            spent += "; no attempt may be longer, no text seen more often"
        each, times = training.batch_size, training.gradient_accumulation_steps
        lines = {
            "model": f"{model.n_layers} layers of {model.d_model}, heads of 64; "
            f"{parameters:,} parameters",
            "tokens": f"{self.tokens:,}, {self.tokens / parameters:.1f} for each "
            "parameter",
            "text": f"{corpus}, {self.tokens / CORPORA[corpus]:.2g} passes",
            "steps": f"{training.max_steps:,} of {step:,} tokens",
            "batch": f"{times} x {each} rows of {model.context_length:,} tokens a GPU",
            "GPU": f"{found.name}, its speed {found.evidence}",
            "hours": f"{fast:.2f}-{slow:.2f}",
            "dollars": spent,
            "loss": f"{self.loss:.2f} ± {self.error:.2f} nats per token, if this were "
            "web text",
        }
        return "\n".join(f"{name:<9}{what}" for name, what in lines.items())

    def write(self, path: str | Path) -> None:
        """Write the config as YAML.

        Raises:
            SlmError: There is such a file already.
        """
        text = f"# What `slm plan {self.dollars:g}` proposes.\n{self.config.to_yaml()}"
        try:
            with open(user_path(path), "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise SlmError(
                f"{path} is there already, and is not overwritten."
            ) from None


# %% [markdown]
# A draft is turned into a plan by spending: as many steps as the money holds, though
# never more text than there is; the smallest corpus for so many tokens; a warm-up of a
# twentieth.


# %%
#| export cloud/plan
def _spend(config: RunConfig, dollars: float, prices: Prices) -> Plan | None:
    """A draft with all steps that its budget holds; None if these are too few."""
    step = tokens_per_step(config)
    most = int(PASSES * max(CORPORA.values()) / step)
    steps = min(max_steps_that_fit(config, prices), most)
    if steps < LEAST_STEPS:
        return None
    tokens = steps * step
    corpus = next(name for name, n in CORPORA.items() if tokens <= PASSES * n)
    warmup = min(500, steps // 20)
    training = dataclasses.replace(
        config.training, max_steps=steps, warmup_steps=warmup
    )
    data = dataclasses.replace(config.data, dataset=corpus, val_fraction=0.01)
    config = dataclasses.replace(config, training=training, data=data)
    loss = predicted_loss(count_parameters(config.model), tokens)
    return Plan(dollars, config, estimate(config, prices), tokens, *loss)


# %% [markdown]
# And `plan` takes the best of all, the cheaper of two that are equal. If the money is
# too little for any, it says how much the least would be.


# %%
#| export cloud/plan
def plan(dollars: float, gpu: str | None = None, prices: Prices = MODAL) -> Plan:
    """The run with the lowest predicted loss for so many dollars.

    Args:
        dollars: To be spent at most, at the slow end of the estimate.
        gpu: A kind of GPU, or several as in "H100:8"; None for the best of all.
        prices: The price table.

    Raises:
        SlmError: The budget is no such number or too small for any run, or there is no
            such GPU.
    """
    if not 0 < dollars <= MOST_DOLLARS:  # also false for nan
        allowed = f"allowed is a budget above 0 and up to {MOST_DOLLARS:,}"
        raise SlmError(f"{dollars:.10g} dollars cannot be planned for; {allowed}.")
    drafts = list(_drafts(dollars, gpu, prices))
    plans = [found for draft in drafts if (found := _spend(draft, dollars, prices))]
    if plans:
        return min(plans, key=lambda found: (found.loss, found.estimate.dollars[1]))
    if not drafts:
        raise SlmError(f"No model is small enough for {gpu or 'these GPUs'}.")
    costs = (estimate(draft, prices) for draft in drafts)
    least = min(costs, key=lambda row: row.dollars[1])
    cents = math.ceil(100 * least.dollars[1])
    few = f"{LEAST_STEPS} steps of the smallest model cost up to ${cents / 100:.2f}"
    raise SlmError(f"${dollars:g} is too little: {few} on {least.name}.")


# %% [markdown]
# So what should five dollars buy, and what fifty?

# %% tags=["nbval-check-output"]
for dollars in (5, 50):
    print(plan(dollars).report(), end="\n\n")

# %% [markdown]
# And as a table, from a cup of coffee to a small grant:

# %% tags=["nbval-check-output"]
rows = []
for dollars in (0.5, 2, 5, 10, 20, 50, 100, 200, 500, 1000):
    found = plan(dollars)
    parameters = count_parameters(found.config.model)
    size = (f"{parameters / 1e6:,.0f}", f"{found.tokens / 1e9:.2f}")
    each, loss = f"{found.tokens / parameters:.0f}", f"{found.loss:.2f}"
    spent = f"{found.estimate.dollars[1]:.2f}"
    told = (*size, each, found.estimate.name, spent, f"{loss} ± {found.error:.2f}")
    rows.append((f"${dollars:g}", *told))
header = ("budget", "million parameters", "billion tokens", "each", "GPU", "dollars")
Table((*header, "loss"), rows, "What slm plan proposes")

# %% [markdown]
# Each size begins with few tokens for each parameter and ends with many, and around
# twenty the next one takes over; the steps between the largest sizes are coarse.
# Several GPUs come in where a day of one would leave money over. What the plan does not
# know: preparing the text, which is done once before the GPU is rented, how long
# several GPUs talk to each other, and what your own text is like. `slm plan 5 --out
# run.yaml` writes the config, and `slm cost run.yaml` checks it like any other.
#
# ## Is it right?
#
# The estimate against arithmetic that uses none of its functions, and the promises of
# the shipped configs.

# %% tags=["nbval-check-output"]
found, mib = estimate(small, gpu="T4"), 8192
by_hand = 3600 * (0.000164 + 2 * 0.0000131 + mib / 1024 * 0.00000222)
fast, slow = found.tokens_per_second
most = max_steps_that_fit(wish)
fewer = load_config(
    "configs/gpt_124m.yaml", [f"training.max_steps={most}", "modal.timeout=1800"]
)
print(f"an hour of a T4, 2 cores, 8 GiB: ${found.dollars_per_hour:.4f}")
print(f"    by hand ${by_hand:.4f}")
wide = SPREAD[found.evidence]
print(f"speed at the ends {fast / slow:.4f}, by hand {(1 + wide) / (1 - wide):.4f}")
print(f"the wish fits: {verdict(wish)[0]}, with {most:,} steps: {verdict(fewer)[0]}")
for config in gpt_configs:
    print(f"{config.name} keeps its promises: {verdict(config)[0]}")

# %% [markdown]
# ## Exercises
#
# **1. The bill.** A run of so many FLOPs on a GPU: how many hours, how many dollars?
# The GPU's price is per second. A core costs `core` dollars per second, a GiB of memory
# `gib`, and both are billed as long as the GPU is.

# %% tags=["exercise"]
from course import check


def my_bill(
    flops: float,
    peak_tflops: float,
    mfu: float,
    gpu: float,
    cores: float,
    core: float,
    gibs: float,
    gib: float,
) -> tuple[float, float]:
    """Hours and dollars of a run."""
    raise NotImplementedError("your turn")


check.bill(my_bill)

# %% [markdown]
# What the check says to a typical wrong answer, one that forgets who else is on the
# bill:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input"]
def only_the_gpu(flops, peak_tflops, mfu, gpu, cores, core, gibs, gib):
    seconds = flops / (peak_tflops * 1e12 * mfu)
    return seconds / 3600, seconds * gpu


check.bill(only_the_gpu)

# %% [markdown]
# <details><summary>Solution: <code>my_bill</code></summary>
#
# ```python
# def my_bill(flops, peak_tflops, mfu, gpu, cores, core, gibs, gib):
#     seconds = flops / (peak_tflops * 1e12 * mfu)
#     return seconds / 3600, seconds * (gpu + cores * core + gibs * gib)
# ```
# </details>
#
# **2. A budget that refuses.** How many whole steps can be promised, with `timeout`
# seconds and `dollars` to spend, if a step takes between `fast` and `slow` seconds?
# Predict first: with two hours, one dollar and $0.90 an hour, which of the two ends the
# run?


# %% tags=["exercise"]
def my_steps(
    timeout: float, dollars: float, fast: float, slow: float, dollars_per_hour: float
) -> int:
    """The most steps that keep both limits, whatever happens."""
    raise NotImplementedError("your turn")


check.steps_within(my_steps)

# %% [markdown]
# Dollars by dollars per hour are hours, and the other limit is in seconds. What the
# check says to one who compares the two:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input"]
def hours_and_seconds(timeout, dollars, fast, slow, dollars_per_hour):
    return int(min(timeout, dollars / dollars_per_hour) / slow)


check.steps_within(hours_and_seconds)

# %% [markdown]
# <details><summary>Solution: <code>my_steps</code></summary>
#
# ```python
# def my_steps(timeout, dollars, fast, slow, dollars_per_hour):
#     affordable = dollars / dollars_per_hour * 3600  # seconds that the money lasts
#     return int(min(timeout, affordable) / slow)  # a promise is kept at the slow end
# ```
# </details>
#
# **3. The best buy.** Which model, on which GPU, gives the lowest predicted loss for a
# budget? A model is its parameters and its training FLOPs per token; a GPU is the
# FLOP/s that it reaches, and its dollars per hour. Leave start-up out; `law(parameters,
# tokens)` gives the loss. Predict first: with a thousand times the dollars, does the
# best GPU change? Does the best model?


# %% tags=["exercise"]
def my_best_buy(
    models: dict[str, tuple[float, float]],
    gpus: dict[str, tuple[float, float]],
    dollars: float,
    law,
) -> tuple[str, str]:
    """The names of the model and of the GPU."""
    raise NotImplementedError("your turn")


check.best_buy(my_best_buy)

# %% [markdown]
# The check watches what `law` is asked. What it says to an answer that names the right
# model and the right GPU, but counts six FLOPs for each parameter and token:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input"]
def six_per_parameter(models, gpus, dollars, law):
    def loss(pair):
        (parameters, _), (speed, price) = models[pair[0]], gpus[pair[1]]
        return law(parameters, dollars / price * 3600 * speed / (6 * parameters))

    return min(((model, gpu) for model in models for gpu in gpus), key=loss)


check.best_buy(six_per_parameter)

# %% [markdown]
# <details><summary>Solution: <code>my_best_buy</code></summary>
#
# ```python
# def my_best_buy(models, gpus, dollars, law):
#     def loss(pair):
#         parameters, flops_per_token = models[pair[0]]
#         flops_per_second, dollars_per_hour = gpus[pair[1]]
#         seconds = dollars / dollars_per_hour * 3600
#         return law(parameters, seconds * flops_per_second / flops_per_token)
#
#     return min(((model, gpu) for model in models for gpu in gpus), key=loss)
# ```
# </details>
#
# ## What you have now
#
# The cost of any config before it starts, with every assumption on the table. [The
# door](#door/several-files-and-some-settings) makes it a command, and [the
# launch](#launch) asks it before anything is rented.

# %%
course.summary("slm/cloud/cost.py", "slm/cloud/plan.py")
