# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/hardware.py
#     - slm/training/optim.py
#     - slm/training/trainer.py
# ---

# %% [markdown]
# # The trainer
#
# From four lines of PyTorch to a trainer whose loop you can read on one screen. You
# earn each addition by measuring what it does, then train a model until its loss is
# close to the floor, and export `Trainer`, `Muon` and what a device can do.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% mystnb={"code_prompt_show": "Imports"} tags=["hide-input"]
#| export
"""What this process runs on: device, type of numbers, and its rank among others.

    device = choose_device()
    dtype = choose_dtype(device)  # torch.bfloat16 where the hardware is made for it
"""

import bisect
import contextlib
import dataclasses
import datetime
import functools
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slm.errors import SlmError
from slm.gpus import peak_tflops
from slm.model.config import count_memory
from slm.training.config import RunConfig

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

# %% tags=["hide-input"]
#| export training/optim
"""Optimizers and the learning rate's way through a run.

    optimizers = make_optimizers(model, TrainingConfig(optimizer="muon"))
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from slm.hardware import choose_dtype
from slm.training.config import TrainingConfig

# %% tags=["hide-input"]
#| export training/trainer
"""The trainer: batches and a model in, a trained model and its metrics out.

    Trainer(model, train_loader, val_loader, {"training": {"max_steps": 100}}).train()
"""

import contextlib
import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from slm.data.batches import TokenLoader, fill_batch, share_rows
from slm.model.config import IGNORE
from slm.errors import SlmError
from slm.model.gpt import GPT
from slm.model.config import count_flops_per_token
from slm.hardware import (
    choose_device,
    choose_dtype,
    gather_from_ranks,
    peak_flops,
    rank,
    rng_state,
    set_rng_state,
    sum_over_ranks,
    world_size,
)
from slm.training.config import RunConfig, make_config
from slm.training.metrics import Observer, WandbLogger, gradient_histograms
from slm.training.optim import learning_rate, make_optimizers

# %% [markdown]
# ## The idea
#
# Training repeats four lines: compute the loss, compute gradients, step, clear.
# Everything else in this chapter is there because those four lines alone are slow, or
# unstable, or blind. (That a run is also lost when the power fails is the subject of
# two later chapters, [checkpoints](#checkpoints) and [runs](#runs).) Here they are, on
# the stories, with nothing else:

# %%
import itertools
import re

from IPython.display import Markdown, display

from slm.data import floor, stories
from slm.data.dataset import create_dataloader
from slm.model.config import GPTConfig
from slm.model.gpt import GPT
from slm.data.tokenizer import get_tokenizer

tokenizer = get_tokenizer("stories")
loader = create_dataloader(
    "stories",
    batch_size=8,
    context_length=128,
    tokenizer=tokenizer,
    packing="documents",
)
SMALL = GPTConfig(
    vocab_size=tokenizer.n_vocab,
    context_length=128,
    n_layers=2,
    n_heads=2,
    d_model=64,
    d_ff=256,
)

torch.manual_seed(0)
model = GPT(SMALL)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step, (x, y) in zip(range(61), loader, strict=False):  # x, y: (B, T)
    loss = model.loss(x, y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 20 == 0:
        print(f"step {step:3}: loss {loss.item():.3f}")

# %% [markdown]
# It learns. How well could it do? The chapter on [the floor](#floor) computed that
# exactly: below the *floor* no model can go, and the *bigram* line is the best that can
# be done by looking one token back.

# %% tags=["nbval-check-output"]
lines = floor.reference_lines(tokenizer)
{
    name: round(getattr(lines, name), 3)
    for name in ("uniform", "unigram", "bigram", "floor")
}

# %% [markdown]
# {numref}`fig-step` shows the step that these four lines grow into. Nothing in it is
# new in kind: there is still a loss, a gradient and a move. Each box that was added
# answers a question.

# %% mystnb={"code_prompt_show": "Draw one step, with its batch in parts", "figure": {"caption": "One step. The batch comes in parts; each part's loss is weighted by its share of the targets, and the gradients add up. Then the sum is clipped, and the optimizer moves the weights as far as the schedule says.", "name": "fig-step"}, "image": {"alt": "A chain of boxes: batch, parts, loss times share, backward, with an arrow back from backward to parts that reads once per part; then clip, optimizer, clear, with an arrow from schedule into optimizer."}} tags=["hide-input"]
from course.figures.trainer import step_figure

step_figure()

# %% [markdown]
# What is missing in the four lines? Four questions lead through the chapter, each with
# an experiment.
#
# 1. *Does a step mean what it says?* A batch that does not fit into memory has to be
#    cut, and the pieces must add up to the step that was meant.
# 2. *How far should a step go, and when?* The rate of learning has to rise, and to
#    fall.
# 3. *In which numbers?* Half as many bits can be several times as fast, or several
#    times as slow.
# 4. *In which direction?* The gradient alone is a poor guide; two optimizers make more
#    of it.
#
# Then they are put together into a class, and the class is put to work.
#
# ## Accumulation: a step that means what it says
#
# A batch too large for memory can be split: run the parts one by one, add their
# gradients, then step (`backward` adds to what is in `.grad` already). The sum must be
# the gradient of the *whole* batch's mean. Our rows are padded with targets that do not
# count. With what weight must each part's loss go into the sum?
#
# ## Exercise 1: accumulate
#
# Every parameter's `.grad` is empty. Leave in it the gradient of the mean loss over the
# *whole* batch, but never have more than `rows` texts in memory at once, from their
# forward pass to their backward pass. Targets that are `IGNORE` (-100) do not count,
# and parts may hold different numbers of those that do, even none: `model.loss` is 0
# then.


# %% tags=["exercise"]
def my_accumulate(model: GPT, x: Tensor, y: Tensor, rows: int) -> None:
    """Gradients of model.loss(x, y), `rows` texts at a time; the loss is a mean."""
    raise NotImplementedError("your turn")


# %%
from course import check

check.accumulate(my_accumulate)

# %% [markdown]
# The first answer that comes to mind, and it is right for parts that are equally full:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def mean_of_parts(model: GPT, x: Tensor, y: Tensor, rows: int) -> None:
    parts = list(zip(x.split(rows), y.split(rows), strict=True))
    for part_x, part_y in parts:
        (model.loss(part_x, part_y) / len(parts)).backward()


check.accumulate(mean_of_parts)

# %% [markdown]
# <details><summary>Solution: <code>my_accumulate</code></summary>
#
# ```python
# def my_accumulate(model, x, y, rows):
#     total = (y != IGNORE).sum()
#     for part_x, part_y in zip(x.split(rows), y.split(rows)):
#         share = (part_y != IGNORE).sum() / total
#         (model.loss(part_x, part_y) * share).backward()
# ```
# </details>
#
# ## The weight of a part
#
# Dividing each part's loss by the number of parts is right only if all parts hold
# equally many targets. The right weight is each part's share of the targets:
#
# $$\nabla L = \sum_{i=1}^{n} \frac{c_i}{\sum_j c_j}\, \nabla L_i$$
#
# with $L_i$ the mean loss of part $i$ and $c_i$ the number of its targets that count.
# Below, the first batch as it comes, and the same batch with short rows in its first
# half, which bring the mistake to light:

# %%
from slm.model.config import IGNORE

model = GPT(SMALL)


def gradient(parts: list[tuple[Tensor, Tensor, float]]) -> Tensor:
    """All gradients in one vector, accumulated over parts (x, y, weight)."""
    model.zero_grad()
    for part_x, part_y, weight in parts:
        (model.loss(part_x, part_y) * weight).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


for name, longest in (("as it comes", 128), ("short rows", 20)):
    x, y = loader.batch(0)  # (B, T) each
    y[:4, longest:] = IGNORE
    halves = (x[:4], y[:4]), (x[4:], y[4:])
    counts = [int((half_y != IGNORE).sum()) for _, half_y in halves]
    whole = gradient([(x, y, 1.0)])
    shares = [count / sum(counts) for count in counts]
    by_targets = gradient([(*half, s) for half, s in zip(halves, shares, strict=True)])
    by_parts = gradient([(*half, 0.5) for half in halves])
    off = [(found - whole).norm() / whole.norm() for found in (by_targets, by_parts)]
    print(f"{name}, targets {counts}: off by {off[0]:.0e} of the norm if weighted by")
    print(f"    targets, by {off[1]:.1%} if every part counts the same")

# %% [markdown]
# ## The learning rate, and clipping
#
# The optimizer here, AdamW, moves a weight by about the rate, however large or small
# its gradient is ([its own section](#trainer/optimizers), below, says how). So the rate
# alone decides how far a step goes. The first steps start from random weights and go
# where one or two batches point: let the rate rise along a line, the *warm-up*. At the
# end, steps of constant size only circle the minimum: let the rate fall along a cosine,
# to zero (Loshchilov and Hutter 2017). **Clipping** (Pascanu et al. 2013) scales a
# gradient whose norm, its length, exceeds a limit down to it, so that one odd batch
# cannot undo the work of many. What are they worth? {numref}`fig-recipe` is the same
# run with a high learning rate, each time with one part taken away:


# %%
def short_run(
    warmup: int = 20, falls: bool = True, clip: float = 1.0
) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of a short run, always with the same batches."""
    peak, steps = 1e-2, 180
    torch.manual_seed(0)
    model = GPT(SMALL)
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.95), weight_decay=0.1
    )
    losses, norms = [], []
    for step in range(steps):
        x, y = loader.batch(step)  # (B, T) each
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        progress = max(0, step - warmup) / (steps - 1 - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * progress)) if falls else 1.0
        optimizer.param_groups[0]["lr"] = peak * rise * cosine
        loss = model.loss(x, y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        norms.append(norm.item())  # before it was clipped
    return losses, norms


runs = {
    "all three": short_run(),
    "no warm-up": short_run(warmup=0),
    "no fall": short_run(falls=False),
    "no clipping": short_run(clip=0.0),
}

# %% mystnb={"code_prompt_show": "Draw the run with all three parts and the runs that lack one", "figure": {"caption": "One run with all three parts, and three runs that lack one each. Left, the losses, each with the mean of its last ten. Right, the norms of the gradients before clipping: without warm-up, and without clipping, one step stands far above all others.", "name": "fig-recipe"}, "image": {"alt": "Two panels over 180 steps of four short runs. Left, losses: without warm-up the loss leaps up after a few steps and stays far above the others; without clipping it ends in between; with all three parts and without the fall it ends lowest. Right, gradient norms, logarithmic: early on the run without warm-up and that without clipping leap far above all other norms."}} tags=["hide-input"]
from course.figures.trainer import recipe_figure

recipe_figure(runs)

# %% [markdown]
# Without warm-up the loss leaps up after a few steps, and this run does not recover.
# Without clipping one gradient is many times the limit. AdamW does not step further for
# it, but it remembers gradients for some steps, and for that long the odd one sets the
# direction. Without the fall this run even ends lower: it is so short that large steps
# still help at its end. The longer runs below will show what the fall is for.
#
# Why does a run without warm-up not simply recover? A likely reason: its first steps
# are as long as any, and they go where one or two batches point. The weights may be
# thrown to a place where many units of the feed-forward networks answer hardly
# anything, and where gradients are small: the way back is longer than the way there.
#
# Learning rates are easiest to get wrong at their ends. So the schedule is one function
# that a test can hold to account: the first step already moves, the last step of the
# warm-up has the full rate, the last step of all has the least.


# %%
#| export training/optim
def learning_rate(step: int, training: TrainingConfig) -> float:
    """The rate of step 0, 1, …, max_steps - 1.

    A line up to the peak at the last warm-up step, then a cosine down.

    Source: Loshchilov and Hutter 2017 (SGDR), without restarts.
    """
    peak, least = training.learning_rate, training.min_learning_rate
    warmup, steps = training.warmup_steps, training.max_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if steps == 1:
        return peak
    way = steps - 1 - warmup  # steps from the peak to the minimum
    progress = min(1.0, (step - warmup) / way) if way else 1.0
    return least + 0.5 * (peak - least) * (1 + math.cos(math.pi * progress))


# %% tags=["nbval-check-output"]
from slm.training.config import TrainingConfig

ten = TrainingConfig(learning_rate=1.0, warmup_steps=4, max_steps=10)
print(" ".join(f"{learning_rate(step, ten):.2f}" for step in range(10)))

# %% [markdown]
# ## Precision
#
# A 16-bit number takes half the memory of a float32 and, on hardware made for it, a
# fraction of the time. There are two kinds. What does each make of a number with many
# digits, of a large one, and of a small one?

# %% tags=["nbval-check-output"]
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    numbers = torch.tensor([1.1, 70_000.0, 1e-8], dtype=dtype)
    print(f"{str(dtype):15}", *(f"{number:>14.8g}" for number in numbers.tolist()))

# %% [markdown]
# `bfloat16` keeps float32's range and loses digits. `float16` keeps more digits and
# loses range: 70,000 overflows to infinity, and 1e-8 becomes 0. Gradients are often as
# small as that. So with float16 the *loss* is multiplied by a large factor before the
# backward pass, which makes every gradient larger by as much; the gradients are divided
# by it before the step, and a step whose gradients overflowed is skipped. That is *loss
# scaling* (Micikevicius et al. 2018), and PyTorch's `GradScaler` does it. bfloat16
# needs none of it.
#
# Only the matrix products are done in 16 bits, since they take most of the time. Within
# `torch.autocast` PyTorch sees to that; weights, optimizer and residual stream stay in
# float32, and on a GPU so do softmax, sums and norms.
#
# **Which type?** A T4 has no bfloat16, many CPUs only emulate it, which is far slower
# than float32, and some have units for it that are slower than float32's. So the device
# is asked, and where it is a CPU, it is measured.
#
# **How fast could it be?** A device's *peak* is the most operations per second that it
# can do in products of that type. For GPUs it stands in [a
# table](#settings/one-table-of-gpus); a CPU is measured (two $n \times n$ matrices take
# $2n^3$ operations). The share of the peak that a run reaches is its *MFU*, model FLOPs
# utilization (Chowdhery et al. 2022); the log will tell it.


# %%
#| export
def choose_dtype(
    device: torch.device, wanted: str = "auto", use_amp: bool = True
) -> torch.dtype:
    """The type for matrix products: what was asked for, or the fastest safe one.

    "auto" is bfloat16 where the hardware multiplies it faster than float32, float16 on
    CUDA devices without bfloat16 (T4), else float32.
    """
    if not use_amp or wanted == "float32":
        return torch.float32
    if wanted != "auto":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    native = device.type == "cpu" and _cpu_multiplies_bfloat16()
    return torch.bfloat16 if native else torch.float32


# %% [markdown]
# The measurement multiplies two matrices in each type, a few times, and takes the best.
# bfloat16 must be faster by a good part, since between the products something has to be
# converted. The peak of a CPU is the same measurement.


# %%
#| export
@functools.cache
def _cpu_multiplies_bfloat16() -> bool:
    """Whether products in bfloat16 pay on this CPU, measured.

    The first question overlooks what ONEDNN_MAX_CPU_ISA forbids, the second says yes to
    a CPU that only emulates, and some CPUs have units that are slower than float32's.
    """
    units = torch.cpu._is_avx512_bf16_supported()
    if not (units and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    return _product_flops(torch.bfloat16) > 1.4 * _product_flops(torch.float32)


def _product_flops(dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product in this type on the CPU, the best of four."""
    n, best = 768, math.inf
    a, b = torch.ones(2, n, n, dtype=dtype)
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s that the device can reach in this type.

    From a table for known GPUs, measured on a CPU, else None.
    """
    if device.type == "cuda":
        peak = peak_tflops(torch.cuda.get_device_name(device))
        return peak * 1e12 if peak and dtype != torch.float32 else None
    return _product_flops(dtype) if device.type == "cpu" else None


# %%
WIDE = GPTConfig(tokenizer.n_vocab, 128, n_layers=2, n_heads=4, d_model=256, d_ff=1024)
cpu = torch.device("cpu")
for dtype in (torch.float32, torch.bfloat16):
    torch.manual_seed(0)
    model = GPT(WIDE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    started = time.process_time()
    for step in range(15):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model.loss(*loader.batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    milliseconds = (time.process_time() - started) / 15 * 1e3
    peak = peak_flops(cpu, dtype) / 1e9
    print(f"{str(dtype):15} loss {loss.item():.3f} after 15 steps of", end=" ")
    print(f"{milliseconds:.0f} ms; peak {peak:.0f} GFLOP/s")
print(f"auto picks {choose_dtype(cpu)} here")

# %% [markdown]
# The losses agree to the digits that matter, whatever the time says on your machine.
#
# **Compiling.** The last lever is `torch.compile`, which writes kernels for this very
# model. A GPU gains far more than a CPU (the chapter on [cost](#cost) plans with twice
# the speed), so `compile: true` is the default there. On a CPU it needs a C++ compiler,
# which you may not have, so here is what `benchmarks/trainer_overhead.py --compile`
# printed on the machine that its first line names:

# %%
from pathlib import Path

recorded = Path("benchmarks/results/trainer_overhead.md").read_text(encoding="utf-8")
display(Markdown(recorded.split("largest")[0].replace("\n", "\n\n", 1)))


def recorded_ms(contender: str) -> float:
    """Milliseconds of a step in that table."""
    return float(re.search(rf"\| {contender} \| ([\d.]+)", recorded)[1])


saved = recorded_ms("bare loop") - recorded_ms("bare loop, compiled")
took = int(re.search(r"steps took (\d+) s", recorded)[1])
print(f"paid back after {took / saved * 1e3:,.0f} steps")

# %% [markdown]
# A run of a few thousand steps ends about where that begins to pay, so on a CPU the
# trainer does not compile. The same table answers another question: what the trainer
# below adds to the bare loop, with all its logging, is lost in the noise.
#
# ## Optimizers
#
# **AdamW** (Kingma and Ba 2015; Loshchilov and Hutter 2019) keeps two running averages
# for every weight $w$ with gradient $g$ at step $t$: of the gradient, $m$, and of its
# square, $v$. Both start at zero: after $t$ steps the shares of what they have seen add
# up to only $1 - \beta^t$, so dividing by that gives true averages, $\hat m$ and $\hat
# v$. If all gradients were alike, $\hat m$ and $\sqrt{\hat v}$ would be of one size,
# and the weight would move by the learning rate $\eta$, whatever that size is. If their
# signs change, $\hat m$ is smaller and so is the step: $\eta$ at first, soon a fraction
# of it.
#
# $$\begin{gathered}
# m \leftarrow \beta_1 m + (1 - \beta_1)\, g \qquad
# v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2 \\
# \hat m = \frac{m}{1 - \beta_1^t} \qquad \hat v = \frac{v}{1 - \beta_2^t} \qquad
# w \leftarrow (1 - \eta \lambda)\, w
# - \eta\, \frac{\hat m}{\sqrt{\hat v} + \varepsilon}
# \end{gathered}$$
#
# The tiny $\varepsilon$ keeps the quotient finite where all gradients were zero. The
# factor $1 - \eta \lambda$ is the *weight decay* of strength $\lambda$: a weight whose
# gradients do not hold against it shrinks. It applies to everything with two axes,
# matrices and embeddings. Biases and the norms' weights are spared, because a norm
# weight pulled to zero would switch its channel off.
#
# **Muon** (Jordan et al. 2024) treats each matrix of the blocks as a whole. It keeps a
# running average of the gradients (*momentum*). Any matrix can be written as $U S
# V^\top$, its *singular value decomposition*: it turns ($V^\top$), stretches each
# direction by its own factor (the diagonal $S$), and turns again ($U$). In an average
# of gradients the factors say how often and how hard each direction was asked for, and
# a few are far larger than the rest. Muon steps along $U V^\top$, all factors set to
# one, so rare directions move as far as frequent ones. The library can do just that:

# %% tags=["nbval-check-output"]
asked = torch.tensor([[3.0, 0.0], [0.1, 0.2]])  # the first direction far more often
U, S, Vt = torch.linalg.svd(asked)
print("factors", [round(s, 2) for s in S.tolist()], "of the average")
print("step", [[round(x, 2) for x in row] for row in (U @ Vt).tolist()])

# %% [markdown]
# But a decomposition is slow on a GPU, which is made for products. How can a matrix be
# changed *by products* so that its directions stay and only its factors change?
# Multiply it by products of itself: with $X = U S V^\top$, $X X^\top X = U S^3 V^\top$,
# because the turns in between cancel. So a polynomial of odd powers acts on each factor
# alone. Muon's is $3.4445\,s - 4.7750\,s^3 + 2.0315\,s^5$, steep at zero (a small
# factor grows 3.4-fold per step), and it keeps what lies between about 0.7 and 1.2 in
# that range. It is applied five times (a *Newton-Schulz iteration*). First divide by
# the norm, so that no factor is larger than one. Here are the three factors of a 3 × 3
# matrix on their way, one of them a hundred times smaller than the largest:

# %% tags=["nbval-check-output"]
# a matrix that only turns
turn = torch.linalg.qr(torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 10]]))[0]
factors = torch.tensor([1.0, 0.3, 0.01])
X = turn @ torch.diag(factors / factors.norm()) @ turn.T  # (3, 3)
for step in range(6):
    print(f"after {step} steps:", " ".join(f"{s:.3f}" for s in torch.linalg.svdvals(X)))
    square = X @ X.T
    X = 3.4445 * X + (-4.7750 * square + 2.0315 * square @ square) @ X

# %% [markdown]
# The factors do not settle at one, they stay around it: the coefficients are chosen for
# speed, and a factor of 0.7 or 1.2 does no harm. Each step is three products of
# matrices, so the type matters: in 16 bits they are fastest on a GPU, and on a CPU
# without units for 16 bits, which has to emulate them, they took longer than all the
# rest of the step. So `Muon` computes in the type that the device is good at, like the
# model's own products.
#
# How long is such a step? An orthogonal $m \times n$ matrix, all factors one, has
# entries of about $1 / \sqrt{\max(m, n)}$. Multiplied by $0.2 \sqrt{\max(m, n)}$ they
# are about 0.2, the size that AdamW's steps have, and one learning rate serves both.


# %%
#| export training/optim
def orthogonalize(gradient: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix with all its singular values brought near one, computed in `dtype`.

    Five Newton-Schulz steps. Source: Jordan et al. 2024, with their coefficients, which
    leave values between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = gradient.size(0) <= gradient.size(1)
    x = gradient if wide else gradient.T  # (m, n), m <= n: products below are (m, m)
    # no singular value exceeds the norm, so all are now at most one
    x = (x / x.norm().clamp(min=1e-7)).to(dtype)
    for _ in range(5):
        square = x @ x.T  # (m, m)
        # b square + c square², rounded once
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        # a x + factor x: a singular value s becomes a s + b s³ + c s⁵
        x = torch.addmm(x, factor, x, beta=a)
    return x if wide else x.T


# %% [markdown]
# The optimizer keeps one matrix for each weight, the mean of its gradients. A step
# moves that mean, looks ahead by one more gradient, makes the result orthogonal and
# scales it; the weight decays as with AdamW.


# %%
#| export training/optim
class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalized: every direction moves equally far.

    Args:
        params: Matrices, parameters with two axes.
        lr: Learning rate; a step has the size of one of AdamW, so AdamW's rates fit.
        weight_decay: Share of the weights, times `lr`, that each step takes away.
        momentum: Memory of the mean gradient; the step looks ahead by one more of it
            (Nesterov).
        dtype: In which the products are computed; PyTorch's own Muon always takes
            bfloat16, which is slow where the device has no units for it.

    Source: Jordan et al. 2024; the size of the step as in Liu et al. 2025.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, defaults)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            momentum, lr = group["momentum"], group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
                mean = self.state[p]["momentum_buffer"]
                mean.lerp_(p.grad, 1 - momentum)
                update = orthogonalize(p.grad.lerp(mean, momentum), self.dtype)
                # entries of about 0.2, as AdamW's steps have
                size = 0.2 * math.sqrt(max(p.shape))
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * size)


# %% [markdown]
# Which parameter belongs to whom? A model says itself which of them are *tables*, whose
# rows are looked up one by one (`tables()`; the token table is the output matrix too);
# in practice they do better with AdamW. Every other parameter with two axes is a
# matrix. Biases and norms have one axis, and stay with AdamW as well. So the rule needs
# no names of layers, and holds for any model that keeps to it.


# %%
#| export training/optim
def make_optimizers(
    model: nn.Module, training: TrainingConfig
) -> list[torch.optim.Optimizer]:
    """The optimizers of a run: AdamW alone, or Muon for matrices beside it.

    Matrices and embeddings are decayed, biases and norms are not. The rates are set at
    every step by the trainer.

    Args:
        model: One whose `tables()` names its embeddings.
        training: Which optimizer, and its settings.

    Source: Loshchilov and Hutter 2019 (AdamW); Jordan et al. 2024 (Muon), with the
    update scaled to the size of AdamW's as in Liu et al. 2025, so that one rate governs
    both groups.
    """
    tables: list[Tensor] = model.tables()  # type: ignore[operator]
    known = {id(table) for table in tables}
    others = [p for p in model.parameters() if id(p) not in known]
    matrices = [p for p in others if p.dim() == 2]
    vectors = [p for p in others if p.dim() < 2]
    muon, decay = training.optimizer == "muon", training.weight_decay
    device = vectors[0].device
    adamw = torch.optim.AdamW(
        [
            {"params": tables if muon else tables + matrices, "weight_decay": decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_eps,
        fused=device.type in ("cpu", "cuda"),
    )
    if not muon:
        return [adamw]
    dtype = choose_dtype(device, training.dtype, training.use_amp)
    return [adamw, Muon(matrices, training.learning_rate, decay, dtype=dtype)]


# %% [markdown]
# The same model and batches, both optimizers at three rates, and to be fair the same
# *seconds* for each, since a step of Muon takes longer. The schedule follows the clock:

# %%
from course.tables import Table

rows = []
for name, rate in itertools.product(("adamw", "muon"), (1e-2, 2e-2, 4e-2)):
    torch.manual_seed(0)
    model, seconds, losses = GPT(SMALL), 4.0, []
    optimizers = make_optimizers(model, TrainingConfig(optimizer=name))
    groups = [group for each in optimizers for group in each.param_groups]
    started = time.process_time()
    while (share := (time.process_time() - started) / seconds) < 1:
        cosine = 0.5 * (1 + math.cos(math.pi * share))
        for group in groups:
            group["lr"] = rate * min(1.0, share / 0.1) * cosine
        loss = model.loss(*loader.batch(len(losses)))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    end = sum(losses[-20:]) / 20
    rows.append((name, f"{rate}", f"{len(losses)}", f"{end:.2f}"))
header = ("optimizer", "rate", "steps", "loss")
Table(
    header, rows, f"{seconds:g} seconds each; the loss is the mean of the last 20 steps"
)


# %% [markdown]
# Each has a rate of its own, so compare the best of each. Muon gets further, and does
# well even at a rate that is far too high for AdamW. That is why the config below has
# Muon (and, for a run thirty times as long, half of the lowest of these). It gets there
# in fewer steps: its extra products cost the same whatever the batch, so they weigh
# most here, with a thousand tokens to a step, and with half a million are less than a
# percent of the arithmetic (Jordan et al. 2024).
#
# ## Several processes that make one step
#
# On one device you can skip this section. On several (multi-GPU training), `torchrun`
# starts one process for each GPU, and tells every process by environment variables how
# many there are (the *world size*) and which of them it is (its *rank*). Every process
# has the whole model and its own share of each batch. *DistributedDataParallel* (DDP;
# Li et al. 2020) starts all from the same weights and replaces each gradient by its
# mean over the processes as soon as backward has made it, so that all make the same
# step and stay equal. Where processes need a common number, `all_reduce` adds up their
# tensors.
#
# What the processes say to each other is said by these functions; only DDP itself is
# put around the model further down, where the trainer is made.


# %%
#| export
def rank() -> int:
    """Which of the processes that torchrun started this one is; 0 if it is alone."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def choose_device() -> torch.device:
    """This process's CUDA device, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


# %% [markdown]
# `process_group` joins the processes for as long as it is open, and `gather_from_ranks`
# gives each of them every process's value. With a single process, the sum over all is
# the number itself, and the code does nothing.


# %%
#| export
@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """While inside, belong to the processes that torchrun started, if it did."""
    if world_size() == 1:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(choose_device())
    # the others wait while the first one evaluates, saves and logs
    patience = datetime.timedelta(minutes=30)
    # numbers on the CPU are added up there, and the GPUs need not wait for it
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, timeout=patience)
    try:
        yield
    finally:
        dist.destroy_process_group()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of all processes' tensors, in place; every process must call it."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather_from_ranks(value: Any) -> list[Any]:
    """Every process's value, in the order of ranks; every process must call it."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


# %% [markdown]
# Last, where this process's random numbers stand, on the CPU and on its device, and how
# they are put there again:


# %%
#| export
def rng_state(device: torch.device) -> dict[str, Any]:
    """Where the random numbers of this process stand, on the CPU and on its device."""
    on_device = None
    if device.type != "cpu":
        on_device = torch.get_device_module(device).get_rng_state()
    return {"cpu": torch.get_rng_state(), "device": on_device}


def set_rng_state(device: torch.device, state: dict[str, Any]) -> None:
    """Let the random numbers go on from where `rng_state` saw them."""
    torch.set_rng_state(state["cpu"])
    if state["device"] is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"])


# %% [markdown]
# ## Is there room?
#
# You can skip this section, too, at a first reading: it refuses a run that does not fit
# into memory, before it begins.
#
# [The GPT](#gpt/what-a-training-step-holds-in-memory) knows what a step holds in
# memory. A run that needs more than there is runs out of memory late, after its text is
# prepared and its model is drawn, and it may take other programs down with it: an
# operating system promises memory that it does not have, and ends some process when too
# many promises are kept. So a run asks first.
#
# What a process can have is the least of several limits. The machine has so much
# memory; a container's *control group* may allow less; `ulimit -v` limits the addresses
# that the process uses, whether there is memory behind them or not. Each is compared
# with what it counts: the first two with the memory that this process holds, the last
# with its addresses. What *other* programs hold is not taken off, since nobody knows
# how long they keep it. A GPU says itself what is free.
#
# What fits must never be refused. So the need is counted low: a compiled model may
# compute again what it does not keep, and before the first step's end the optimizer has
# no averages. One thing that is no part of a step is certain: on a CPU every run ends
# with a checkpoint, which is copied before it is written. For a model with many weights
# and a small batch that moment, with weights and averages twice, is the peak. A run
# that goes on from a checkpoint needs no more than one that starts: the file is mapped,
# and its numbers are read into tensors that are there already.
#
# The count also leaves out what single operations need for a moment, and what Python,
# libraries and threads need besides. So a batch size is *proposed* only if it leaves
# them something, and memory can still run out. A GPU's allocator has an error class for
# that, the CPU's raises a `RuntimeError` as many other things do. Then it is asked once
# more, for twice as many bytes as the work needs (some were given back on the way): if
# it refuses these too, the memory is full; if it grants them, it was another error.


# %%
#| export
PROC, CGROUPS = Path("/proc/self"), Path("/sys/fs/cgroup")


def _read(path: Path) -> str:
    """A file's text; empty where it cannot be read, as on other systems."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _cgroup_limits() -> Iterator[int]:
    """The limits, in bytes, of this process's control groups and those above them."""
    for line in _read(PROC / "cgroup").splitlines():
        _, kinds, path = line.split(":", 2)  # version 2 names no kinds
        if kinds and "memory" not in kinds.split(","):
            continue
        root = CGROUPS / "memory" if kinds else CGROUPS
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            name = "memory.limit_in_bytes" if kinds else "memory.max"
            limit = _read(folder / name)
            if limit.isdecimal():  # not "max"
                yield int(limit)


# %% [markdown]
# `free_memory` collects the limits that can be found, takes off each what it counts,
# and returns the least. Where a system tells none of them, the answer is None, and
# nothing is refused.


# %%
#| export
def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still have on a device; None where nobody says.

    On CUDA what is free, and what PyTorch holds in reserve. Elsewhere the least of
    physical memory and control group, less what is resident, and `ulimit -v`, less the
    addresses in use.
    """
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device)
        unused = reserved - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    page, limits = 4096, list(_cgroup_limits())
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not everywhere
        page = os.sysconf("SC_PAGE_SIZE")
        limits.append(os.sysconf("SC_PHYS_PAGES") * page)
    # pages of addresses and of memory; on other systems nothing is taken off
    pages = (_read(PROC / "statm") or "0 0").split()
    rooms = [limit - int(pages[1]) * page for limit in limits]
    if resource is not None:
        addresses = resource.getrlimit(resource.RLIMIT_AS)[0]
        if addresses != resource.RLIM_INFINITY:
            rooms.append(addresses - int(pages[0]) * page)
    return max(0, min(rooms)) if rooms else None


# %% [markdown]
# `room` is asked before work that needs so much memory, and then stands around it: it
# refuses at once, and turns an allocation that fails all the same into a sentence.
# `room_for_run` asks for a run, and finds the largest batch that fits.


# %%
#| export
def in_words(size: int) -> str:
    """A number of bytes: 12 MB, 3.40 GB, 2e+10 GB."""
    if size < 10**9:
        return f"{size / 1e6:.0f} MB"
    return f"{size / 1e9:,.2f} GB" if size < 10**15 else f"{size / 1e9:.0e} GB"


def room(
    device: torch.device, need: int, what: str, cure: str
) -> contextlib.AbstractContextManager[None]:
    """Refuse work that needs more memory than there is, at the call.

    Args:
        device: Where the work is done.
        need: Bytes that it needs at least.
        what: What needs them, in words.
        cure: What to do, in words.

    Returns:
        A context for the work: if the memory ends inside, it raises an SlmError, too.

    Raises:
        SlmError: The memory does not suffice.
    """
    have, needs = free_memory(device), f"{what} needs at least {in_words(need)}"
    if have is not None and need > have:
        there = f"{in_words(have)} of memory can be had on {device}"
        raise SlmError(f"{needs}, and {there}: {cure}")
    return _full_memory_told(device, need, f"the memory is full; {needs}: {cure}")


# %% [markdown]
# What runs out inside is told with the same words. `_refuses` is the question to the
# allocator; the memory is asked for and not touched, so asking costs nothing.


# %%
#| export
@contextlib.contextmanager
def _full_memory_told(device: torch.device, need: int, sentence: str) -> Iterator[None]:
    """Raise the sentence as an SlmError if an allocation fails inside."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # the error's frames still hold most of what was there; some is given back
        full = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not full and type(error) is RuntimeError and device.type != "cuda":
            full = _refuses(device, 2 * need)
        if not full:
            raise
        raise SlmError(sentence) from error


def _refuses(device: torch.device, size: int) -> bool:
    """Whether the allocator refuses so many bytes now; they are not touched."""
    try:
        torch.empty(size, dtype=torch.uint8, device=device)
    except (RuntimeError, TypeError):  # TypeError: more than any machine can address
        return True
    return False


# %% [markdown]
# For a run there is one more question, which batch would fit. The largest is searched
# by halving, since the need grows with the batch; and among the numbers that divide the
# step's rows, the largest that makes the same step from more micro-batches.


# %%
#| export
def run_memory(
    config: RunConfig, device: torch.device, batch_size: int, accumulate: bool
) -> int:
    """Bytes that a run with micro-batches of this size needs on a device, at least."""
    t = config.training
    dtype = str(choose_dtype(device, t.dtype, t.use_amp)).removeprefix("torch.")
    where = (dtype, device.type, accumulate, t.optimizer)
    step = count_memory(config.model, batch_size, *where)
    saved = 0  # by the first process, from a copy on the CPU
    if device.type != "cuda" and rank() == 0:
        saved = 2 * (step.weights + step.optimizer)
    if t.max_steps == 1:
        step = dataclasses.replace(step, optimizer=0)
    if t.compile and device.type == "cuda":
        step = dataclasses.replace(step, activations=step.activations // 2)
    return max(step.peak, saved)


# %% [markdown]
# `largest` is the search, used twice: among all sizes, and among those that divide the
# rows of a step. With several micro-batches, gradients of the earlier ones are in
# memory too, so the second search counts them.


# %%
#| export
def _smaller_batch(config: RunConfig, device: torch.device, have: int) -> str:
    """The largest batch that fits, and the largest that makes the same step, told."""
    t = config.training
    rows = t.batch_size * t.gradient_accumulation_steps
    spare = have - max(have // 10, 2**28)  # leaves something for what is not counted

    def largest(sizes: Sequence[int], accumulate: bool) -> int:
        needs = functools.partial(run_memory, config, device, accumulate=accumulate)
        if not sizes or needs(sizes[0]) > have:
            return 0
        return sizes[max(0, bisect.bisect_right(sizes, spare, key=needs) - 1)]

    fits = largest(range(1, t.batch_size), t.gradient_accumulation_steps > 1)
    if not fits:
        row = f"row of model.context_length = {config.model.context_length} tokens"
        return f"not even one {row} fits; {SMALLER_MODEL}"
    divide = [n for n in range(1, fits + 1) if rows % n == 0 and rows // n <= PARTS]
    told = f"the largest training.batch_size that fits is {fits}"
    if same := largest(divide, True):
        parts = f"with training.gradient_accumulation_steps = {rows // same}"
        told += f"; {same} {parts} makes the same step"
    return told


# %% [markdown]
# And the question itself: the need of a step, and if it is more than there is, the
# proposal.


# %%
#| export
PARTS = 100_000  # micro-batches a step that a config may ask for
SMALLER_BATCH = "lower training.batch_size, raise training.gradient_accumulation_steps "
SMALLER_BATCH += "by the same factor, and start it as another run (--run-dir, on Modal "
SMALLER_BATCH += "--run)"
SMALLER_MODEL = "choose a smaller model"


def room_for_run(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """Refuse a run that the device cannot hold; as `room`."""
    device, t = choose_device(), config.training
    cure = SMALLER_BATCH if t.batch_size > 1 else SMALLER_MODEL
    need = run_memory(config, device, t.batch_size, t.gradient_accumulation_steps > 1)
    have = free_memory(device)
    if have is not None and need > have:
        cure = _smaller_batch(config, device, have)
    return room(device, need, "this run", cure)


# %% [markdown]
# ## The trainer
#
# The class comes in six pieces: what it holds, then a step, validation, the loop, rows,
# and the state. `@add_to(Trainer)` puts the later ones into the class (small helpers
# are folded away beside them), and in `slm/training/trainer.py` all stand together.
# First what it holds: a model, its batches, the optimizers, and where it stands. It
# writes no file; of checkpoints it knows only when one is due, so that a validation
# loss comes with it. Whoever wants to know how it goes is an
# [observer](#settings/observers); what a run needs to go on, `state_dict` hands out.
#
# DDP sees only calls of a module's `forward`; we call `model.loss`, so the small module
# `LossModule` makes a `forward` of it. `torch.compile` takes it too.


# %%
#| export training/trainer
class LossModule(nn.Module):
    """A model's loss as a module's forward, as DDP and torch.compile take it."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.model.loss(x, y)


# %% [markdown]
# What the trainer holds, in three groups. What was handed in: config, model, batches,
# observers. What follows from the device: the type, the peak, optimizers, loss scaling,
# and the loss, compiled and put into DDP where that is due. And where the run stands:
# steps, tokens, seconds, the rows so far, and the losses that no row has told yet.


# %%
#| export training/trainer
HISTOGRAMS_EVERY = 100  # steps
GIVEN = {"dataset": "given as loaders"}  # where there is no section `data`


class Trainer:
    """Trains a model: schedule, precision, accumulation, validation, metrics.

    Args:
        model: The model; its weights are changed in place.
        train_loader: Batches `(x, y)` of token ids, `(B, T)` int64 each, from
            `create_dataloader`. Any iterable of such batches will do; it is started
            again when it ends, but only a `TokenLoader` resumes at the exact batch.
        val_loader: The same, of held-out text, or None to skip validation.
        config: What `load_config` gives, or a dictionary of the same sections
            (`{"training": {"max_steps": 100}}`).
        device: Where to train; CUDA, then MPS, then CPU if not said.
        use_wandb: Also log to Weights & Biases.
        observers: Told after each step, on every process, in this order.
        verbose: Show the progress bar, or lines where there is no terminal.

    Raises:
        SlmError: `config` is a dictionary and something in it is wrong.
    """

    def __init__(
        self,
        model: GPT,
        train_loader: Iterable[tuple[Tensor, Tensor]],
        val_loader: Iterable[tuple[Tensor, Tensor]] | None,
        config: RunConfig | Mapping[str, Any],
        device: str | torch.device | None = None,
        use_wandb: bool = False,
        observers: Sequence[Observer] = (),
        verbose: bool = True,
    ) -> None:
        if not isinstance(config, RunConfig):
            known = {"model": dataclasses.asdict(model.config), "data": GIVEN}
            config = make_config({**known, **config})
        self.config, self.training = config, config.training
        self.device = choose_device() if device is None else torch.device(device)
        self.model = model.to(self.device)
        self.train_loader, self.val_loader = train_loader, val_loader
        self.observers, self.verbose = list(observers), verbose and rank() == 0
        if use_wandb and rank() == 0:
            self.observers.append(WandbLogger(config))

        t, kind = self.training, self.device.type
        self.dtype = choose_dtype(self.device, t.dtype, t.use_amp)
        self.peak_flops = peak_flops(self.device, self.dtype) if rank() == 0 else None
        self.optimizers = make_optimizers(model, t)
        self.scaler = torch.amp.GradScaler(kind, enabled=self.dtype == torch.float16)
        self.loss: Any = LossModule(model)
        self.compiled = t.compile and kind == "cuda"
        if self.compiled:
            self.loss.compile()
        if world_size() > 1:
            ids = [self.device.index] if kind == "cuda" else None
            self.loss = DistributedDataParallel(self.loss, device_ids=ids)

        self.batch_size = getattr(train_loader, "batch_size", 0)
        self.share(world_size())
        # steps are skipped by float16, because a gradient overflowed
        self.step, self.tokens_seen, self.seconds, self.skipped_steps = 0, 0, 0.0, 0
        self.val_loss: float | None = None  # the last one
        self.metrics: list[dict[str, Any]] = []
        self.pending: list[Tensor] = []  # loss and gradient norm since the last row
        # whether a process was asked to stop; when the last seconds were counted
        self.stopping, self._clock = False, time.perf_counter()


# %% [markdown]
# ## One step
#
# This is the heart. The parts of the batch, its *micro-batches*, run one after the
# other, each weighted by its share of the targets *over all processes*; then clip and
# step. DDP takes the mean of the processes' gradients, a sum divided by their number,
# and with such weights they must be *added*: so the loss is multiplied by that number
# first. One exchange carries three counts at once: targets, tokens, requests to stop
# (all processes must stop after the same step, or one would wait for ever).
#
# A GPU works through a queue, and `.item()` must wait until all of it is done. So loss
# and norm stay tensors, kept in `pending`, and are looked at only when a row is due or
# a state is saved.


# %%
#| export training/trainer
@course.add_to(Trainer)
def train_step(
    self, batches: Iterator[tuple[Tensor, Tensor]], stop: bool = False
) -> None:
    """Take the next batch and move the weights once.

    Args:
        batches: Where the micro-batches come from, `(B, T)` each.
        stop: Whether this process was asked to stop; then all do, after this step.
    """
    rate = learning_rate(self.step, self.training)
    for optimizer in self.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
    n = self.parts
    parts = [next(batches) for _ in range(n)]
    counts = [int((y != IGNORE).sum()) for _, y in parts]
    totals = [sum(counts), sum(x.numel() for x, _ in parts), int(stop)]
    summed = sum_over_ranks(torch.tensor(totals, dtype=torch.float64))
    targets, tokens, stops = summed.tolist()
    self.tokens_seen += int(tokens)
    loss = torch.zeros((), device=self.device)
    for i, ((x, y), count) in enumerate(zip(parts, counts, strict=True)):
        part = self.forward(x, y, last=i == n - 1) * (count / max(1.0, targets))
        self.scaler.scale(part * world_size()).backward()
        loss += part.detach()
    norm = self.update_weights()
    self.pending.append(torch.stack([sum_over_ranks(loss), norm]).detach())
    self.step += 1
    self.stopping = stops > 0


# %% [markdown]
# `forward` computes one part's loss in the chosen type. All parts but the last run
# under `no_sync`, so that gradients travel between the processes once per step and not
# once per part. `update_weights` divides the gradient by the loss scale (1 unless the
# type is float16), clips it and steps; if a float16 gradient overflowed, *no* optimizer
# steps, or one would step on what clipping made of the rest.


# %%
#| export training/trainer
@course.add_to(Trainer)
def forward(self, x: Tensor, y: Tensor, last: bool) -> Tensor:
    """The mean loss of a micro-batch; after the last, gradients travel."""
    x, y = (part.to(self.device, non_blocking=True) for part in (x, y))
    alone, half = last or world_size() == 1, self.dtype != torch.float32
    sync = contextlib.nullcontext() if alone else self.loss.no_sync()
    with sync, torch.autocast(self.device.type, self.dtype, enabled=half):
        loss: Tensor = self.loss(x, y)
    return loss


@course.add_to(Trainer)
def update_weights(self) -> Tensor:
    """Clip the gradient, step, clear it; returns its norm before the clipping.

    If it overflowed float16, nothing moves, and the norm is told as 0.
    """
    for optimizer in self.optimizers:
        self.scaler.unscale_(optimizer)
    if self.step % HISTOGRAMS_EVERY == 0 and rank() == 0:
        self.log(gradient_histograms(self.model))
    limit = self.training.grad_clip or math.inf
    norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
    overflow = self.scaler.is_enabled() and not bool(norm.isfinite())
    # the scale is halved at every overflow, from 65,536
    if overflow and self.scaler.get_scale() < 1:
        what = "the gradient overflows float16 whatever the loss scale"
        raise self.diverged(what, self.step)
    for optimizer in self.optimizers:
        if not overflow:
            self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    self.scaler.update()
    self.skipped_steps += overflow
    return torch.zeros_like(norm) if overflow else norm


# %% [markdown]
# Read the step once more from its end. The weights move once, by a gradient that is
# that of the whole batch, on all devices, in float32, no longer than the limit. It took
# `n` forward and backward passes to get it, none of which held more than a part of the
# batch. Nothing was printed. On one device nothing waited for it, unless the type is
# float16, where whether to step depends on the gradient itself; several processes wait
# for each other's counts, which go from CPU to CPU while the GPUs work. At every
# hundredth step (`HISTOGRAMS_EVERY`) all wait longer: `gradient_histograms` counts how
# large the entries of each gradient are, before the clipping, and the metrics get a row
# of it.
#
# Two details are easy to get wrong. The rate is set *before* the step, for the step
# that is about to be made: step 0 has the first rate. And the gradients are cleared
# *after* it by throwing the tensors away (`set_to_none`), so that between two steps
# their memory is free.
#
# ## Validation
#
# Held-out text, all of it or the first `eval_batches`, is scored in evaluation mode,
# without dropout. The mean is over *targets*, not over batches, for the same reason as
# above: batches hold different numbers of them. The last batch may also hold fewer
# rows. `torch.compile` makes kernels for one shape, and for another one it would spend
# half a minute on new ones; so there the batch is filled up with rows that hold no
# target. `evaluating` puts the model back into the mode in which it came, so looking at
# a model never changes a run.


# %%
#| export training/trainer
@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While inside, the model is in evaluation mode and keeps no graph."""
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(mode)


@course.add_to(Trainer)
def validate(self) -> float:
    """Mean loss in nats over the validation targets.

    All of them, or those of the first `eval_batches` batches.
    """
    if self.val_loader is None:
        needed = "validate() needs a val_loader; this trainer was given None"
        raise ValueError(needed)
    most = self.training.eval_batches
    batches: Iterator[Any] = itertools.islice(self.val_loader, most)
    if isinstance(self.val_loader, TokenLoader):
        rows = self.val_loader.batch_size * self.began_with
        batches = self.val_loader.epoch_batches(most and most * rows)
    totals = torch.zeros(2, device=self.device)  # sum of losses, number of targets
    rows = 0
    with evaluating(self.model):
        for x, y in batches:
            count, rows = int((y != IGNORE).sum()), max(rows, len(x))
            if self.compiled and len(x) < rows:
                x, y = fill_batch(x, y, rows)
            totals[0] += self.forward(x, y, last=True) * count
            totals[1] += count
    loss_sum, targets = sum_over_ranks(totals)
    if not targets:
        needed = "it must give batches (x, y) at every validation"
        raise ValueError(f"the val_loader gave no targets; {needed}")
    return (loss_sum / targets).item()


# %% [markdown]
# ## The loop
#
# Everything is in place, and `train` says in which order: a step, then a row if one is
# due, then validation if that is due, then the observers. `stop` is asked before every
# step; a run that must be able to stop hands in [a look at the
# signals](#runs/stopping-ctrl-c-and-sigterm).
#
# A bar shows the speed. It is measured over the steps between two rows; the time for
# validation, checkpoints and samples is left out, so the number says what the hardware
# does while it trains. `seconds` in a row counts all work, validation included.


# %%
#| export training/trainer
@course.add_to(Trainer)
def train(self, stop: Callable[[], bool] = lambda: False) -> list[dict[str, Any]]:
    """Train to `max_steps`, or until `stop()` says so on any process.

    Returns:
        The metrics, one dictionary per row; losses in nats per token.

    Raises:
        SlmError: The loss became nan or infinite.
    """
    t, hidden = self.training, None if self.verbose else True
    self.stopping, self._clock = False, time.perf_counter()
    self.tell("on_start", self)
    if self.step == 0:
        self.log({"model/parameters": self.model.count_parameters()})
    batches = self.batches()
    self.model.train()
    bar = tqdm(total=t.max_steps, initial=self.step, unit="step", disable=hidden)
    since, seen = time.perf_counter(), self.tokens_seen
    while self.step < t.max_steps and not self.stopping:
        self.train_step(batches, stop())
        bar.update()
        due = self.is_due(t.log_every, t.eval_every, t.checkpoint_every)
        if due:
            self.log_training(bar, since, seen)
        validates = self.is_due(t.eval_every, t.checkpoint_every)
        if validates and self.val_loader is not None:
            self.log_validation(bar)
        self.tell("on_step", self)
        if due:
            since, seen = time.perf_counter(), self.tokens_seen
    bar.close()
    self.tell("on_end")
    return self.metrics


# %% [markdown]
# Due is what falls on a multiple, and everything at the last step. The batches begin
# where the run stands, a loader of ours at the exact one, and begin again when they
# end.


# %%
#| export training/trainer
@course.add_to(Trainer)
def is_due(self, *every: int) -> bool:
    """Whether what is done every so many steps, and at the end, is due."""
    last = self.step == self.training.max_steps
    return last or any(self.step % n == 0 for n in every)


@course.add_to(Trainer)
def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
    """The training batches from this step on, started again whenever they end."""
    if isinstance(self.train_loader, TokenLoader):
        done = self.step * self.parts
        state = {"seed": self.train_loader.seed, "step": done}
        self.train_loader.load_state_dict(state)
    while True:
        batch = None
        for batch in self.train_loader:
            yield batch
        if batch is None:
            needed = "it must give at least one batch (x, y)"
            raise ValueError(f"the train_loader is empty; {needed}")


# %% [markdown]
# Which order within a step? The row first, because reading its losses is what finds a
# number that is no longer finite; then validation; then the observers, among them the
# one that saves. `state_dict` looks at the losses once more. So the observer that saves
# never gets a state that is worthless, and a checkpoint that is due comes with the
# validation loss of its own step. At the last step everything is due.
#
# A run asks `stop()` once per step and not in between. That bounds how long somebody
# has to wait who stops it: one step and what is due after it.
#
# ## Rows
#
# What the loop tells, and how. A training row has the *mean* loss since the last one;
# the noise of a single batch would hide the trend. Reading the pending losses is also
# the moment at which a loss that is `nan` or infinite is found, always before a
# checkpoint could be written: their order names the step at which it happened.
#
# `shown` picks from a row what the bar has room for. The MFU is the share of the
# hardware's peak that was used: tokens per second times the FLOPs of a token, [counted
# by hand](#gpt/what-a-token-costs), divided by the peak of all devices.


# %%
#| export training/trainer
@course.add_to(Trainer)
def tell(self, moment: str, *arguments: Any) -> None:
    """Call this method of every observer."""
    for observer in self.observers:
        getattr(observer, moment)(*arguments)


@course.add_to(Trainer)
def log(self, row: dict[str, Any]) -> None:
    """Add a row to the metrics, and tell the observers."""
    now = {"step": self.step, "seconds": round(self.seconds, 3)}
    row = {**now, **row, "train/tokens_seen": self.tokens_seen}
    self.tell("on_row", row)
    self.metrics.append(row)


# %% [markdown]
# The row of the training since the last one. Its losses are read here, all at once,
# which is where the program waits for the device; the speed is counted over the same
# steps.


# %%
#| export training/trainer
@course.add_to(Trainer)
def log_training(self, bar: tqdm, since: float, seen: int) -> None:
    """A row of the training since the last one, and the bar."""
    losses, norms = zip(*self.finite_losses(), strict=True)  # waits for the device
    speed = (self.tokens_seen - seen) / (time.perf_counter() - since)
    self.pending.clear()
    self.count_seconds()
    row = {
        "train/loss": sum(losses) / len(losses),
        "train/lr": learning_rate(self.step - 1, self.training),
        "train/grad_norm": norms[-1],
        "perf/tokens_per_s": speed,
    }
    if self.peak_flops is not None:
        flops = count_flops_per_token(self.model.config)
        row["perf/mfu"] = speed * flops / (self.peak_flops * world_size())
    if self.scaler.is_enabled():
        row["train/loss_scale"] = self.scaler.get_scale()
        row["train/skipped_steps"] = self.skipped_steps
    self.log(row)
    bar.set_postfix(shown(self.metrics[-1]), refresh=False)


# %% [markdown]
# Validation has a row of its own, and where there is no progress bar, a printed line.


# %%
#| export training/trainer
@course.add_to(Trainer)
def log_validation(self, bar: tqdm) -> None:
    """Validate, add a row, and tell the observers."""
    loss = self.validate()
    if not math.isfinite(loss):
        raise self.diverged(f"the validation loss became {loss}", self.step)
    self.val_loss = loss
    self.count_seconds()
    self.log({"val/loss": loss})
    if self.verbose and bar.disable:
        done = f"step {self.step:,} of {self.training.max_steps:,}"
        found = f"validation loss {loss:.4f} nats per token, {self.seconds:.0f} s"
        print(f"{done}: {found}")
    self.tell("on_validation", self)


def shown(row: Mapping[str, Any]) -> dict[str, str]:
    """What the progress bar shows of a training row."""
    formats = {"train/loss": ".3f", "perf/tokens_per_s": ",.0f", "perf/mfu": ".0%"}
    formats["cost/usd"] = ".2f"
    names = ("loss", "tokens/s", "MFU", "$")
    pairs = zip(names, formats.items(), strict=True)
    return {name: f"{row[key]:{form}}" for name, (key, form) in pairs if key in row}


# %% mystnb={"code_prompt_show": "Three helpers: losses that are finite, the error if not, the clock (33 lines)"} tags=["hide-input"]
#| export training/trainer
@course.add_to(Trainer)
def finite_losses(self) -> list[list[float]]:
    """Loss and gradient norm of each step since the last training row.

    Raises:
        SlmError: One of them is not finite.
    """
    pairs: list[list[float]] = []
    if self.pending:
        pairs = torch.stack(self.pending).tolist()
    for step, pair in enumerate(pairs, self.step - len(pairs)):
        for what, number in zip(("loss", "gradient's norm"), pair, strict=True):
            if not math.isfinite(number):
                raise self.diverged(f"the {what} became {number}", step)
    return pairs


@course.add_to(Trainer)
def diverged(self, what: str, step: int) -> SlmError:
    """The error that ends a run; observers say what it can go on from."""
    rate = learning_rate(min(step, self.training.max_steps - 1), self.training)
    told = [f"{what} at step {step} (learning rate {rate:.2g})"]
    told += filter(None, (observer.recovery() for observer in self.observers))
    cure = "another run with a lower training.learning_rate or a longer warm-up"
    return SlmError("; ".join([*told, f"{cure} is the usual cure"]))


@course.add_to(Trainer)
def count_seconds(self) -> None:
    """Add the time since the last call to the run's seconds."""
    now = time.perf_counter()
    self.seconds += now - self._clock
    self._clock = now


# %% [markdown]
# A row is a dictionary with names such as `train/loss`; the part before the slash is a
# group, by which the services that draw curves sort them. `seconds` counts the work of
# the run and not the time of day: what a kill undoes is not counted, and a run that was
# continued three times has one clock.
#
# ## What a run needs to go on
#
# Weights alone do not continue a run: without the averages of the optimizers, the place
# in the data and the state of the random numbers (dropout draws a new mask at each
# step!), a resumed run is another run. `state_dict` is everything that the following
# steps and rows depend on; the seed of the loader's order is kept by the config. The
# losses since the last row belong to it, because the next row is their mean. Each
# process has random numbers of its own: `rng_state` says where they stand,
# `gather_from_ranks` collects that from all, and `set_rng_state` lets each go on from
# there.


# %%
#| export training/trainer
@course.add_to(Trainer)
def state_dict(self) -> dict[str, Any]:
    """What the next steps and rows depend on, besides the config and the text.

    Its tensors are those of model and optimizers: copy what has to stay.
    With several processes, all must call it: each has random numbers of its own.

    Raises:
        SlmError: A loss since the last row is not finite; the state is worthless.
    """
    pending = self.finite_losses()
    self.count_seconds()
    return {
        "step": self.step,
        "tokens_seen": self.tokens_seen,
        "seconds": self.seconds,
        "skipped_steps": self.skipped_steps,
        "model": self.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        "scaler": self.scaler.state_dict(),
        "rng_state": gather_from_ranks(rng_state(self.device)),
        "pending": pending,
        "dtype": str(self.dtype),
        "processes": self.began_with,
    }


# %% [markdown]
# Going back is the same list, read in the other direction. One thing is copied: an
# optimizer keeps the tensors that it is given, and they may be mapped from a
# checkpoint's file.


# %%
#| export training/trainer
@course.add_to(Trainer)
def load_state_dict(self, state: Mapping[str, Any]) -> None:
    """Go to where the trainer stood that gave this state.

    Raises:
        RuntimeError, ValueError, KeyError: It does not fit model and optimizers.
    """
    self.model.load_state_dict(state["model"])
    for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
        # it keeps the tensors that it is given, and they may be mapped from a file
        optimizer.load_state_dict(copy.deepcopy(saved))
    self.scaler.load_state_dict(state["scaler"])
    self.step, self.tokens_seen = state["step"], state["tokens_seen"]
    self.seconds, self.skipped_steps = state["seconds"], state["skipped_steps"]
    pairs = state["pending"]
    self.pending = [torch.tensor(pair, device=self.device) for pair in pairs]
    self.share(state.get("processes", len(state["rng_state"])))
    if rank() < len(state["rng_state"]):
        set_rng_state(self.device, state["rng_state"][rank()])


# %% [markdown]
# The number of processes may have changed, since a machine with eight GPUs comes back
# as one with four. `share` keeps the rows of each step, and those that the validation
# takes, as they were when the run began. What cannot stay is the last bit: sums are
# rounded in another order, and of random numbers there are fewer or new ones.


# %%
#| export training/trainer
@course.add_to(Trainer)
def share(self, processes: int) -> None:
    """Divide the rows of a step of so many processes among those that are here."""
    self.began_with = processes
    self.parts = self.training.gradient_accumulation_steps  # of a step, in each
    if isinstance(self.train_loader, TokenLoader):
        rows = self.batch_size * self.parts * processes
        shares = share_rows(rows, world_size(), self.batch_size)
        if shares is None:
            few = f"{world_size()} processes can't share {rows} rows equally"
            raise ValueError(f"began with {processes} processes; {few}")
        self.train_loader.batch_size, self.parts = shares


# %% [markdown]
# The class is complete. Here it is at work for six steps, with an observer of two
# methods that says what it is told:

# %%
from slm.training.metrics import Observer


class Teller(Observer):
    """Prints each row's loss, and each step."""

    def on_row(self, row: dict[str, Any]) -> None:
        if "train/loss" in row:
            print(f"   row: loss {row['train/loss']:.3f} at rate {row['train/lr']:.5f}")

    def on_step(self, trainer: Any) -> None:
        print(f"step {trainer.step} done, {trainer.tokens_seen:,} tokens seen")


torch.manual_seed(0)
six = {"max_steps": 6, "warmup_steps": 2, "log_every": 3, "dtype": "float32"}
told = [Teller()]
options = {"training": six}
Trainer(GPT(SMALL), loader, None, options, "cpu", False, told, verbose=False).train()
print("the rate of each step:", end=" ")
schedule = TrainingConfig(max_steps=6, warmup_steps=2)
print(" ".join(f"{learning_rate(step, schedule):.5f}" for step in range(6)))

# %% [markdown]
# The rows come after steps 3 and 6, with the mean of three losses each and the rate of
# the last step; the rate rises over two steps and falls to zero at the last. That is
# all a trainer does. It can be used as it stands, in a notebook, on any batches.
#
# ## Train
#
# A model of some use is trained by `train`, which keeps the run in a folder and goes on
# where it was stopped. It is built two chapters further on, in [runs](#runs); here the
# chapter looks ahead, because the model belongs here. All that it adds to the class
# above is the folder.
#
# Everything is in the config; what it does not list, such as clipping and the end of
# the learning rate at zero, has its default.

# %%
print(Path("configs/stories_cpu.yaml").read_text(encoding="utf-8"))

# %% [markdown]
# While it learns, a second process on the second core trains other models, and once the
# same one, from the same config, each for a sixth of the steps or so, with a schedule
# of its own that ends at zero: without attention and positions, without attention, with
# one layer, with two. First it repeats the full run's first 150 steps, to keep the
# model as it was then.

# %%
from course.figures.trainer import SmallerModels, excess_strip, staircase_figure
from slm.training.config import load_config
from slm.training.run import train

smaller = SmallerModels(steps=150)
config = load_config("configs/stories_cpu.yaml")
run = train(config)
stairs, early = smaller.wait(like=run.model)

# %% mystnb={"code_prompt_show": "Draw the staircase", "figure": {"caption": "The staircase to the floor. Each model ends near what its parts allow: one token, one token and its place, and with attention all that came before; the long run ends at the floor. Dots: its loss on validation text.", "name": "fig-staircase"}, "image": {"alt": "Loss against seconds on logarithmic axes for five runs. Without attention and positions the loss ends just above the bigram line, with positions below it; the models with attention pass that line, and the long run of two layers reaches the floor."}} tags=["hide-input"]
staircase_figure(stairs, run.metrics, lines)

# %% [markdown]
# The losses at the end of {numref}`fig-staircase` go down a staircase, and each large
# step of it has a reason. A model with neither attention nor positions knows only its
# own token, and ends just above the *bigram* line, the best that this allows. Positions
# take it below, since in texts this short the place alone says a good deal. With
# attention, a model walks through that line without noticing, because it can look back.
# A second layer can look for something that the first has found. In these stories the
# word to repeat can mostly be found by what it is (a name, a colour, an animal), and
# for that one look suffices: in so few steps the second layer gains little. What it is
# good for shows further down.
#
# The two runs with two layers are the same model. When the short one ends, it is far
# ahead of the long one at that moment, because its learning rate has come down to zero.
# That drop is what the fall is for; the long run takes it later, from a better place.
#
# {numref}`fig-excess` is the same in one story. The more a token is tinted, the further
# the model's surprise is above the *true* surprise, the one that the grammar gives.
# What is free to choose costs even a perfect model nats; that share shows no colour.

# %% mystnb={"code_prompt_show": "Draw one story, early and at the end", "figure": {"caption": "One story as two states of the model read it. Tinted are the tokens that surprise the model more than they have to; the number below says by how many nats, where it is more than one.", "name": "fig-excess"}, "image": {"alt": "The same story twice. For the model after 150 steps many tokens are tinted, among them words that were told before, such as the animal and the colour of the hat; the most strongly tinted have a number. For the model at the end hardly any token is tinted, and none has a number."}} tags=["hide-input"]
story = stories.sample(10**9 + 1)
models = {"after 150 steps": early, "at the end": run.model}
excess_strip(models, tokenizer, story)

# %% [markdown]
# Early on two kinds of token are tinted: words that must repeat what was said before,
# such as the name, the colour or the animal, which only attention can supply; and words
# and phrases that the model has not met often enough. The rest of the training is for
# both.

# %%
from slm.data.corpus import StorySource

first, many = StorySource.VALIDATION_SEED, StorySource.VALIDATION
held_out = [stories.sample(first + i) for i in range(many)]
# with each story's end
tokens = sum(len(tokenizer.encode(story)) + 1 for story in held_out)
own_floor = -sum(map(floor.logprob, held_out)) / tokens
last = next(row for row in reversed(run.metrics) if "train/loss" in row)
print(f"validation loss {run.val_loss:.4f} nats per token;", end=" ")
print(f"the floor is {lines.floor:.4f}, that of this text {own_floor:.4f}")
print(f"bits per byte: {lines.bits_per_byte(run.val_loss):.4f}, floor", end=" ")
print(f"{lines.bits_per_byte(lines.floor):.4f}")
print("\n".join(f"{key}: {value:.6g}" for key, value in last.items()))

# %% [markdown]
# Validation text is a sample of a thousand stories, so what is needed for it differs a
# little from the floor. The lines from `step` on are the last training row. In a
# healthy run `train/grad_norm` stays below the limit of clipping most of the time,
# tokens per second do not sink, and the loss falls.
#
# And what does it write? `sample_tokens`, [the plain sampler](#gpt/let-it-write),
# begins with nothing but end-of-text. Three stories as they come, then thirty put
# before the grammar, which knows exactly what a story is: one wrong name in eighty
# words, and it refuses the whole. What the loss promises can be computed: a model that
# needs, on average over the grammar's stories, $d$ nats too many writes valid ones with
# a probability of at least $e^{-d}$ (the mean of a logarithm is at most the logarithm
# of the mean).

# %%
import textwrap

from slm.model.gpt import sample_tokens

end = tokenizer.eot_token
drawn = [sample_tokens(run.model, [end], 160, seed, end) for seed in range(30)]
told = [tokenizer.decode(ids) for ids in drawn]
print("\n\n".join(textwrap.fill(story, 86) for story in told[:3]), end="\n\n")
accepted = sum(map(floor.accepts, told))
excess = (run.val_loss - own_floor) * tokens / len(held_out)
print(f"{accepted} of {len(told)} are stories of the grammar;", end=" ")
print(f"{len(set(told))} are different")
print(f"promised by the loss: {excess:.2f} nats too many per story,", end=" ")
print(f"so at least {math.exp(-excess):.0%}")

# %% [markdown]
# ## What is missing?
#
# The nats that the model still needs too many are of two kinds, and the grammar can
# tell them apart. Most tokens are *certain*, given what stands before them: "gave away
# her top for a kite. But at home she missed the …" leaves one word. There a perfect
# model needs nothing at all. The others are *chosen*, and of these a perfect model
# knows the odds. `benchmarks/stories.py` trained three recipes, with two seeds each,
# and counted both kinds. {numref}`fig-missing` shows its results above those of the
# model that this chapter has just trained; its committed table follows.

# %% mystnb={"code_prompt_show": "Draw what is missing, by kind of token", "figure": {"caption": "What is missing, in two parts. A second layer takes away most of what the certain tokens cost; without weight decay and in larger batches most of the rest goes, and much of what the chosen ones cost.", "name": "fig-missing"}, "image": {"alt": "Four horizontal bars in two parts each, certain and chosen tokens, in thousandths of a nat per token above the true surprise. Their lengths fall from one layer over two layers with weight decay to the shipped recipe; this chapter's run is about as long as the shipped one. The part of the certain tokens shrinks most."}} tags=["hide-input"]
from course.figures.trainer import excess_by_kind, kinds_figure

recorded = Path("benchmarks/results/stories.md").read_text(encoding="utf-8")
counted = re.findall(r"^\| ([a-z, ]+) \| ([-\d.]+) \| ([-\d.]+) \|$", recorded, re.M)
missing = {name: (float(certain), float(rest)) for name, certain, rest in counted}
missing["this run"] = excess_by_kind(run.model, tokenizer)
kinds_figure(missing)

# %%
table = recorded.split("| thousandths above the true")[0]
display(Markdown(table.replace("\n", "\n\n", 1)))
late = [row["train/loss"] for row in run.metrics if "train/loss" in row]
late = late[-len(late) // 10 :]
print(f"last tenth of the steps: {sum(late) / len(late) - lines.floor:+.4f}", end=" ")
print(f"nats per token, held-out text {run.val_loss - own_floor:+.4f}")

# %% [markdown]
# What limits a run? *Depth*, first. The toy that was given away has to be looked up by
# what stood *beside* the word. A first layer can write into each token what stands
# before it, and a second can look for that; one layer has a single look back for both,
# and a wider feed-forward network does not make up for it.
#
# Then *weight decay*. It takes a share of every weight at every step, but a token is
# certain only if its logit stands far above all others, and that takes large weights.
# Decay is meant against learning a text by heart. Here the losses of the last steps and
# of held-out text lie about equally high above their floors: nothing is learnt by
# heart, so there is nothing to guard against, and the shipped recipe has none.
#
# Last, *noise*. Odds are counted from stories, and eight of them are a noisy count. The
# shipped recipe takes larger batches and fewer steps, which also saves Muon's work on
# each step. What is left is mostly chosen tokens.
#
# And a warning. The two runs of one layer differ from each other, by their seed alone,
# by as much as many a change that one would like to call an improvement. A single run
# with a single seed proves nothing.
#
# ## Is it right?
#
# The trainer against four lines of PyTorch: the same model, the same batches, the
# schedule written out by hand. And against itself: a batch of eight in one part, and in
# four parts of two, whose numbers of targets differ, so that a wrong weight would show.
# Then the properties that hold for any trainer, and the ones that this run has to have.

# %%
TEN = TrainingConfig(max_steps=10, warmup_steps=2, learning_rate=1e-3, weight_decay=0.0)
plain_loader = create_dataloader(
    "stories",
    batch_size=8,
    context_length=128,
    tokenizer=tokenizer,
    packing="documents",
    seed=1,
)


def trained(rows: int, parts: int) -> GPT:
    """The small model after ten steps of the trainer, on eight rows each."""
    torch.manual_seed(0)
    options = {"batch_size": rows, "gradient_accumulation_steps": parts}
    t = dataclasses.asdict(TEN) | options | {"dtype": "float32", "grad_clip": 0.0}
    split = (pair for x, y in plain_loader_batches() for pair in halves_of(x, y, rows))
    model = GPT(SMALL)
    Trainer(model, list(split), None, {"training": t}, "cpu", verbose=False).train()
    return model


def plain_loader_batches() -> list[tuple[Tensor, Tensor]]:
    """Ten batches of eight rows."""
    return [plain_loader.batch(step) for step in range(10)]


def halves_of(x: Tensor, y: Tensor, rows: int) -> list[tuple[Tensor, Tensor]]:
    """A batch in parts of so many rows."""
    return list(zip(x.split(rows), y.split(rows), strict=True))


# %% [markdown]
# By hand: the four lines of a step, with the schedule of two steps up and eight down.

# %%
torch.manual_seed(0)
by_hand = GPT(SMALL)
optimizer = torch.optim.AdamW(by_hand.parameters(), betas=(0.9, 0.95), weight_decay=0)
for step, (x, y) in enumerate(plain_loader_batches()):
    rate = (
        (step + 1) / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 7))
    )
    optimizer.param_groups[0]["lr"] = 1e-3 * rate
    by_hand.loss(x, y).backward()
    optimizer.step()
    optimizer.zero_grad()


# %% tags=["nbval-check-output"]
def weights(model: GPT) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


whole = trained(8, 1)
for claim, other in (("four lines", by_hand), ("parts of two", trained(2, 4))):
    off = (weights(whole) - weights(other)).abs().max().item()
    print(f"{'equal' if off < 1e-4 else 'DIFFERENT'} to {claim} (within 1e-4)")

# %% tags=["nbval-check-output"]
rates = [learning_rate(n, config.training) for n in range(config.training.max_steps)]
optimizers = make_optimizers(run.model, config.training)
groups = [group for each in optimizers for group in each.param_groups]
decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
two_axes = {id(p) for p in run.model.parameters() if p.dim() == 2}
enough, top = math.exp(-excess) - 0.25, config.training.warmup_steps - 1
gap = run.val_loss - own_floor
claims = {
    "the validation loss is at most 0.05 nats per token above the floor": gap < 0.05,
    "and at most 0.001 below it": gap > -0.001,
    "as many are stories as the loss promises (less a quarter)": accepted > 30 * enough,
    "the first step moves": rates[0] > 0,
    "the rate peaks at the last step of the warm-up": max(rates) == rates[top],
    "the last rate is the least": rates[-1] == min(rates) == 0,
    "decayed are matrices and embeddings, and nothing else": decayed == two_axes,
}
for claim, holds in claims.items():
    print(f"{'holds' if holds else 'FAILS'}  {claim}")

# %% [markdown]
# Thirty stories are a small sample: hence the tolerance of a quarter. A loss clearly
# *below* the floor would not be good news: no honest model can get there, so it means a
# leak, a mask the wrong way round, or validation text in the training set.
#
# ## Exercise 2: another schedule
#
# Many labs hold the rate at its peak and let it fall only at the end, so that a run can
# be prolonged from any checkpoint before the fall. Three straight parts: up, in
# `warmup` equal rises, so that step 0 has `peak / warmup` and step `warmup - 1` the
# peak; level; down, over the last `fall` steps, so that step `steps - 1 - fall` still
# has the peak and step `steps - 1` has 0.


# %% tags=["exercise"]
def my_schedule(step: int, peak: float, warmup: int, fall: int, steps: int) -> float:
    """The learning rate of step 0, 1, …, steps - 1."""
    raise NotImplementedError("your turn")


# %%
check.schedule(my_schedule)

# %% [markdown]
# What the check says to a typical wrong answer:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def one_late(step: int, peak: float, warmup: int, fall: int, steps: int) -> float:
    return peak * min(1, (step + 1) / warmup, (steps - step) / fall)


check.schedule(one_late)

# %% [markdown]
# <details><summary>Solution: <code>my_schedule</code></summary>
#
# ```python
# def my_schedule(step, peak, warmup, fall, steps):
#     return peak * min(1, (step + 1) / warmup, (steps - 1 - step) / fall)
# ```
# </details>
#
# ## Exercise 3: AdamW
#
# One step for one tensor, in place. `m` and `v` are the running averages so far, `t`
# counts steps from 1.


# %% tags=["exercise"]
def my_adamw_step(p, grad, m, v, t, lr, beta1, beta2, eps, decay) -> None:
    """Update the tensors p, m and v in place."""
    raise NotImplementedError("your turn")


# %%
check.adamw(my_adamw_step)

# %% [markdown]
# With the decay where Adam has it, in the gradient, the step is another one:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def decay_in_gradient(p, grad, m, v, t, lr, beta1, beta2, eps, decay) -> None:
    grad = grad + decay * p
    m.mul_(beta1).add_(grad, alpha=1 - beta1)
    v.mul_(beta2).add_(grad * grad, alpha=1 - beta2)
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    p.sub_(lr * m_hat / (v_hat.sqrt() + eps))


check.adamw(decay_in_gradient)

# %% [markdown]
# <details><summary>Solution: <code>my_adamw_step</code></summary>
#
# ```python
# def my_adamw_step(p, grad, m, v, t, lr, beta1, beta2, eps, decay):
#     p.mul_(1 - lr * decay)
#     m.mul_(beta1).add_(grad, alpha=1 - beta1)
#     v.mul_(beta2).add_(grad * grad, alpha=1 - beta2)
#     m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
#     p.sub_(lr * m_hat / (v_hat.sqrt() + eps))
# ```
# </details>
#
# ## What you have now
#
# A trainer whose step and loop fit on a screen each, and a trained model in
# `runs/stories_cpu`. It tells its observers how it goes and hands out its state. What
# has to happen so that this state survives the power failure is the subject of the next
# chapter, [checkpoints](#checkpoints).

# %%
course.summary("slm/hardware.py", "slm/training/optim.py", "slm/training/trainer.py")
