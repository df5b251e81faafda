# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,kernelspec,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   slm:
#     exports:
#     - slm/trainer.py
#     - slm/config.py
#     - slm/checkpoint.py
# ---

# %% [markdown]
# # The trainer
#
# From four lines of PyTorch to a run that you could leave alone overnight. You earn each addition by measuring what it does, then train a model to within a whisker of the floor that chapter 4 computed, and export `load_config`, `save_checkpoint`, `Trainer` and `train`.
#
# *Runs in about 200 seconds on two cores.*

# %%
import course

course.start()

# %% tags=["hide-input"]
#| export
"""The trainer: a run from its config, which can be killed at any moment and goes on exactly where it was."""

import contextlib
import datetime
import functools
import hashlib
import importlib.util
import inspect
import json
import math
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from slm.checkpoint import (
    CheckpointError,
    copy_to_cpu,
    list_checkpoints,
    load_checkpoint,
    load_latest,
    prune_checkpoints,
    save_checkpoint,
    sync,
)
from slm.config import ConfigError, RunConfig, TrainingConfig, load_config, make_config
from slm.data import TokenDataset, TokenLoader, create_dataloader
from slm.gpt import GPT, GPTConfig
from slm.tokenizer import Tokenizer, get_tokenizer

# %% tags=["hide-input"]
#| export config
"""Configs: YAML files, checked as a whole before anything is built."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from slm.gpt_config import GPTConfig

# %% tags=["hide-input"]
#| export checkpoint
"""Checkpoints that are whole or not there, and that are checked before they are used."""

import os
import pickle
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

_FORMAT = "slm checkpoint 2"  # stands in every file; another layout of the state gets another number

# %% [markdown]
# ## The idea
#
# Training repeats four lines: compute the loss, compute gradients, step, clear. Everything else in this chapter is there because those four lines alone are slow, or unstable, or lost when the power fails. Here they are, on the stories, with nothing else:

# %%
import itertools
import textwrap

from IPython.display import Markdown, display

from slm import stories

tokenizer = get_tokenizer("stories")
loader = create_dataloader("stories", batch_size=8, context_length=128, tokenizer=tokenizer, packing="documents")
SMALL = GPTConfig(vocab_size=tokenizer.n_vocab, context_length=128, n_layers=2, n_heads=2, d_model=64, d_ff=256)

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
# It learns. How well could it do? Chapter 4 computed that exactly: below the *floor* no model can go, and the *bigram* line is the best that can be done by looking one token back.

# %% tags=["nbval-check-output"]
lines = stories.reference_lines(tokenizer)
{name: round(getattr(lines, name), 3) for name in ("uniform", "unigram", "bigram", "floor")}

# %% [markdown]
# ## A step that means what it says
#
# **Accumulation.** A batch too large for memory can be split: run the parts one by one, add their gradients, then step. The sum must be the gradient of the *whole* batch's mean. Dividing each part's loss by the number of parts does that only if all parts hold equally many targets. Our rows are padded with targets that do not count, so they hold different numbers. The right weight is each part's share of the targets. Below, the first
# batch as it comes, and the same batch with short rows in its first half, which bring the mistake to light:

# %%
model = GPT(SMALL)


def gradient(parts: list[tuple[Tensor, Tensor, float]]) -> Tensor:
    """All gradients in one vector, accumulated over parts (x, y, weight)."""
    model.zero_grad()
    for part_x, part_y, weight in parts:
        (model.loss(part_x, part_y) * weight).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


for name, longest in (("as it comes", 128), ("short rows", 20)):
    x, y = loader.batch(0)  # (B, T) each
    y[:4, longest:] = -100
    counts = [int((half != -100).sum()) for half in (y[:4], y[4:])]
    whole = gradient([(x, y, 1.0)])
    by_targets = gradient([(x[:4], y[:4], counts[0] / sum(counts)), (x[4:], y[4:], counts[1] / sum(counts))])
    by_parts = gradient([(x[:4], y[:4], 0.5), (x[4:], y[4:], 0.5)])
    errors = [(found - whole).norm() / whole.norm() for found in (by_targets, by_parts)]
    print(f"{name}, targets {counts}: by targets off by {errors[0]:.0e} of the norm, by halves {errors[1]:.1%}")

# %% [markdown]
# **Learning rate.** AdamW's steps (more on it below) have about the same size whatever the size of the gradient, and the first follow averages over only a few batches: so warm up linearly. At the end, steps of constant size only circle the minimum: let a cosine take the rate to zero. **Clipping** scales a gradient whose norm exceeds a limit down to it, so that one odd batch cannot undo the work of many. What are they worth? The same run
# with a high learning rate, each time with one part taken away:


# %%
def short_run(warmup: int = 20, decay: bool = True, clip: float = 1.0) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of a short run on the stories; the same model and the same batches each time."""
    peak, steps = 1e-2, 180
    torch.manual_seed(0)
    model = GPT(SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    losses, norms = [], []
    for step in range(steps):
        x, y = loader.batch(step)  # (B, T) each
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        progress = max(0, step - warmup) / (steps - 1 - warmup)
        fall = 0.5 * (1 + math.cos(math.pi * progress)) if decay else 1.0
        optimizer.param_groups[0]["lr"] = peak * rise * fall
        loss = model.loss(x, y)
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf).item())  # before it is clipped
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms


runs = {
    "all three": short_run(),
    "no warm-up": short_run(warmup=0),
    "no decay": short_run(decay=False),
    "no clipping": short_run(clip=0.0),
}

# %% tags=["hide-input"]
from course.figures.chapter_06 import recipe_figure

recipe_figure(runs)

# %% [markdown]
# The legend has the mean of the last ten losses, and the largest norm that a gradient had. Without warm-up the loss leaps up after a few steps, and the run never recovers. Without clipping one gradient is many times the limit. AdamW does not step further for it, but it outweighs all others in the mean gradient, so for some ten steps it sets the direction; and its square, which is remembered longer, shortens the steps after that. Without
# the decay this run even ends lower: it is so short that large steps still help at its end. The longer runs below will show what the decay is for.
#
# Learning rates are easiest to get wrong at their ends. Below, `learning_rate` is therefore one function that a test can hold to account: the first step already moves, the last step of the warm-up has the full rate, the last step of all has the least (0 here: it moves nothing).
#
# **Precision.** A 16-bit number takes half the memory and, on hardware made for it, a fraction of the time. `bfloat16` keeps float32's range with fewer digits. `float16` has more digits but less range: large numbers overflow, and small gradients become 0. So the loss is multiplied by a large factor before the backward pass, the gradients are divided by it after, and a step whose gradients overflowed is skipped (`GradScaler`). Weights and
# optimizer stay in float32: within `torch.autocast`, matrix products are done in 16 bits; the residual stream stays in float32, and on a GPU so do softmax, sums and norms. A T4 has no bfloat16, many CPUs only emulate it, and some have it but slower than float32, so ask the device, and where it is a CPU, measure. Ask also for its peak speed in products, which is in a table for GPUs and measured on a CPU (two $n \times n$ matrices take $2n^3$ operations): the log will say what share of it a run reaches, the
# *MFU* (model FLOPs utilization) of chapter 8.


# %%
#| export
def choose_dtype(device: torch.device, wanted: str = "auto", use_amp: bool = True) -> torch.dtype:
    """The type for matrix products: what was asked for, or the fastest safe one of this device.

    "auto" is bfloat16 where the hardware multiplies it faster than float32, float16 on CUDA devices without bfloat16
    (T4), else float32.
    """
    if not use_amp or wanted == "float32":
        return torch.float32
    if wanted != "auto":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    native = device.type == "cpu" and _cpu_multiplies_bfloat16()
    return torch.bfloat16 if native else torch.float32


@functools.cache
def _cpu_multiplies_bfloat16() -> bool:
    """Whether products in bfloat16 pay on this CPU: it has units for them, PyTorch uses them, and they are faster.

    Emulated, the type is 15 to 20 times slower than float32. The first question overlooks what ONEDNN_MAX_CPU_ISA
    forbids, the second says yes to a CPU that only emulates, and some CPUs have units that are slower than float32's.
    """
    has_units = torch.cpu._is_avx512_bf16_supported() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return has_units and _product_flops(torch.bfloat16) > 1.4 * _product_flops(torch.float32)


def _product_flops(dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product in this type on the CPU, measured; the best of four."""
    n, best = 768, math.inf
    a, b = torch.ones(2, n, n, dtype=dtype)
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


# dense peak in FLOP/s of 16-bit products, from NVIDIA's data sheets
_PEAK_FLOPS = {
    "T4": 65e12, "L4": 121e12, "A10": 125e12, "A10G": 70e12, "L40S": 362e12, "A100": 312e12,
    "H100": 989e12, "H200": 989e12, "B200": 2250e12,
}  # fmt: skip


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s that the device can reach in this type: from a table for known GPUs, measured on a CPU, else None."""
    if device.type == "cuda":
        words = torch.cuda.get_device_name(device).replace("-", " ").split()
        known = [peak for name, peak in _PEAK_FLOPS.items() if name in words]
        return known[0] if known and dtype != torch.float32 else None
    return _product_flops(dtype) if device.type == "cpu" else None


# %%
cpu = torch.device("cpu")
for dtype in (torch.float32, torch.bfloat16):
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.n_vocab, context_length=128, n_layers=2, n_heads=4, d_model=256, d_ff=1024))
    optimizer, started = torch.optim.AdamW(model.parameters(), lr=1e-3), time.process_time()
    for step in range(15):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model.loss(*loader.batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    milliseconds = (time.process_time() - started) / 15 * 1e3
    peak = peak_flops(cpu, dtype) / 1e9
    print(f"{str(dtype):15} loss {loss.item():.3f} after 15 steps of {milliseconds:.0f} ms; peak {peak:.0f} GFLOP/s")
print(f"auto picks {choose_dtype(cpu)} here")

# %% [markdown]
# The losses agree to the digits that matter, whatever the time says on your machine.
#
# **Compiling.** The last lever is `torch.compile`, which writes kernels for this very model. A GPU gains far more than a CPU (chapter 8 plans with twice the speed), so `compile: true` is the default there. On a CPU it needs a C++ compiler, which you may not have, so here is what `benchmarks/trainer_overhead.py --compile` printed on the machine that its first line names:

# %%
recorded = Path("benchmarks/results/trainer_overhead.md").read_text(encoding="utf-8")
display(Markdown(recorded.split("largest")[0].replace("\n", "\n\n", 1)))
step, compiled = (
    float(re.search(rf"\| {name} \| ([\d.]+)", recorded)[1]) for name in ("bare loop", "bare loop, compiled")
)
took = int(re.search(r"steps took (\d+) s", recorded)[1])
print(f"paid back after {took / (step - compiled) * 1e3:,.0f} steps")

# %% [markdown]
# A run of a few thousand steps ends about where that begins to pay, so on a CPU the trainer does not compile. The same table answers another question: what the trainer below adds to the bare loop, with all its logging, is lost in the noise.
#
# ## A checkpoint that survives the power failure
#
# `torch.save(model.state_dict(), path)` has two faults. A process that is killed while it writes leaves half a file under the good name, in place of the last whole one. And weights alone do not continue a run: without Adam's averages, the position in the data and the state of the random numbers (dropout!), a resumed run is another run.
#
# So everything goes into one file, written under a temporary name, forced to disk, and only then renamed, which the operating system does entirely or not at all. Disks and cables also change a bit now and then, and a run that goes on from such a file is wrong without a sign of it. So the last four bytes are a checksum (CRC-32) of all before them, which `torch.load` ignores and `load_checkpoint` verifies first.
#
# Writing a gigabyte takes seconds in which a rented GPU would stand still. So the trainer below waits only for a *copy* in memory, `copy_to_cpu`, and another thread writes that while the next steps change the original. Reading, after one pass for the checksum, only maps the file into memory: the numbers then go straight from it into the model, without a copy in between.


# %%
#| export checkpoint
class CheckpointError(RuntimeError):
    """A checkpoint is damaged or of another kind; the message names the file."""


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint so that a reader sees the old file or the whole new one, whatever happens on the way.

    Args:
        path: Where it should be; its folder is made.
        state: Tensors, numbers, strings, and dictionaries and lists of them.

    Raises:
        OSError: The disk is full or not writable; the file that was at `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        torch.save({"format": _FORMAT, "state": dict(state)}, part)
        with open(part, "r+b") as file:
            file.write(_checksum(file, part.stat().st_size))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync(path.parent, files=False)  # the new entry, too, must be on disk before an older file is deleted
    except RuntimeError as error:  # how torch reports a write that failed
        free, why = shutil.disk_usage(path.parent).free, str(error).splitlines()[0]
        raise OSError(f"{path} could not be written; {free:,} bytes of the disk are free ({why})") from error
    finally:
        part.unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, after a look at its checksum; nothing in the file can run code.

    Returns:
        What was saved. Its tensors are on the CPU and are mapped from the file: copy those that you keep.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is empty, cut short, altered, or not a checkpoint of ours.
    """
    path = Path(path)
    with open(path, "rb") as file:
        size = path.stat().st_size
        if size <= 4 or _checksum(file, size - 4) != file.read():
            raise CheckpointError(f"{path} is cut short, altered or not a checkpoint: the checksum at its end is wrong")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds something besides tensors, numbers and texts; it is not loaded") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path} was not written by this version of slm")
    state: dict[str, Any] = content["state"]
    return state


def _checksum(file: BinaryIO, size: int) -> bytes:
    """The CRC-32 of a file's first `size` bytes; its position is then behind them."""
    checksum = 0
    file.seek(0)
    for start in range(0, size, 1 << 22):
        checksum = zlib.crc32(file.read(min(1 << 22, size - start)), checksum)
    return checksum.to_bytes(4, "little")


def copy_to_cpu(state: Any) -> Any:
    """The same dictionaries and lists with a copy of every tensor, on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: copy_to_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copy_to_cpu(value) for value in state)
    return state


def sync(folder: Path, files: bool = True) -> None:
    """Force a folder's entries to disk, and before them the files in it."""
    for path in folder.iterdir() if files else ():
        with open(path, "r+b") as file:
            os.fsync(file.fileno())
    if os.name == "posix":  # elsewhere a folder can't be opened
        entries = os.open(folder, os.O_RDONLY)
        os.fsync(entries)
        os.close(entries)


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a folder, newest first: `step_` and at least eight digits; other names are the user's own."""
    found = [path for path in Path(folder).glob("step_*.pt") if re.fullmatch(r"step_\d{8,}", path.stem)]
    return sorted(found, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def load_latest(
    folder: str | Path, unfit: Callable[[dict[str, Any]], str] = lambda state: ""
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that can be used, with its path; None if there are none at all.

    One that can't is named on standard output, and the one before it is tried.

    Args:
        folder: Where the checkpoints are.
        unfit: Says why a checkpoint that can be read can't be used, in words that follow its name; "" if it can.

    Raises:
        CheckpointError: There are checkpoints and none of them can be used; with the reason for the newest.
    """
    problems: list[str] = []
    for path in list_checkpoints(folder):
        try:
            state = load_checkpoint(path)
        except FileNotFoundError:
            if not path.is_symlink():  # a run that is going on has just replaced it by a newer one
                return load_latest(folder, unfit)
            problems.append(f"{path} is a link to a file that is not there")
        except OSError as error:
            problems.append(f"{path} can't be read: {error.strerror}")
        except CheckpointError as error:
            problems.append(str(error))
        else:
            if not (problem := unfit(state)):
                return path, state
            problems.append(f"{path} {problem}")
        print(f"{problems[-1]}; trying the one before")
    if problems:
        found = f"none of the {len(problems)} checkpoints in {folder} can be used ({problems[0]})"
        raise CheckpointError(f"{found}; move them away to start again")
    return None


def prune_checkpoints(folder: str | Path, keep: int, step: int, best_step: int | None) -> None:
    """Of the checkpoints up to `step`, delete all but the newest `keep` and that of `best_step`.

    Later ones are left alone: a run that has come to `step` has passed them over, or its user put them there.
    """
    so_far = [path for path in list_checkpoints(folder) if _step_of(path) <= step]
    for path in so_far[keep:]:
        if _step_of(path) != best_step:
            path.unlink()


# %% [markdown]
# Kill it while it writes: processes that do nothing but save are killed at random moments, by a signal that no process can catch. The plain way leaves ruins; ours never does. (A kill tests the renaming. Forcing the bytes to disk is for the power failure, which cannot be staged here.)

# %%
from course.figures.chapter_06 import killed_while_saving

print(killed_while_saving("torch.save"))
print(killed_while_saving("save_checkpoint"))

# %% [markdown]
# ## A config that cannot be misread
#
# A run is described by a file, and a file has typos. An option that is silently ignored because its name is misspelt costs a day and is found by luck. So the whole file is checked before anything is built, and all that is wrong is said at once: where, what was given, what is allowed.
#
# One trap is the parser's own. PyYAML follows an old rule of YAML 1.1 by which `3e-4`, written as everybody writes it, is not a number:

# %% tags=["nbval-check-output"]
yaml.safe_load("{plain: 3e-4, with a dot: 3.0e-4}")


# %% [markdown]
# Our reader knows that a number is a number. The next two cells are long and hold no idea that you need now: they list every key with its unit and default, and turn mistakes into sentences. Open them when you write a config of your own.

# %% tags=["hide-input"]
#| export config
GPU_LIMITS = {
    "T4": 8, "L4": 8, "A10": 4, "L40S": 8, "A100": 8, "A100-40GB": 8, "A100-80GB": 8, "RTX-PRO-6000": 8,
    "H100": 8, "H100!": 8, "H200": 8, "B200": 8, "B200+": 8,
}  # fmt: skip


class ConfigError(ValueError):
    """All that is wrong with a config, one line per problem: file, key, what was given, what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _ModelSection(_Section):
    """`model:`, the shape; all but dropout must be given."""

    vocab_size: int = Field(ge=1, description="ids that the tables hold (V); at least the tokenizer's")
    context_length: int = Field(ge=1, description="tokens that the model can look back on (T)")
    n_layers: int = Field(ge=1, description="blocks")
    n_heads: int = Field(ge=1, description="attention heads of each block (H); divides d_model")
    d_model: int = Field(ge=1, description="channels of the residual stream (D)")
    d_ff: int = Field(ge=1, description="channels inside the feed-forward network")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of channels and attention weights that is dropped")

    @model_validator(mode="after")
    def _fits_together(self) -> "_ModelSection":
        GPTConfig(**self.model_dump())
        return self


class TrainingConfig(_Section):
    """`training:`, how the weights are found. A step is one update of the weights."""

    batch_size: int = Field(16, ge=1, description="sequences per micro-batch and process")
    gradient_accumulation_steps: int = Field(1, ge=1, description="micro-batches per step")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the blocks' matrices, AdamW for the rest"
    )
    learning_rate: float = Field(6e-4, gt=0, description="the peak, reached after the warm-up")
    min_learning_rate: float = Field(0.0, ge=0, description="where the cosine ends")
    warmup_steps: int = Field(100, ge=0, description="steps in which the rate rises from near zero to its peak")
    max_steps: int = Field(1000, ge=1, description="steps of the whole run, warm-up included")
    weight_decay: float = Field(0.1, ge=0, description="on matrices and embeddings only")
    grad_clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0 does not clip")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="memory of the mean gradient")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="memory of the mean squared gradient")
    adam_eps: float = Field(1e-8, gt=0, description="added to the root of the mean squared gradient")
    use_amp: bool = Field(True, description="16-bit matrix products where the device is good at them; false: float32")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="type of the matrix products")
    compile: bool = Field(True, description="torch.compile on CUDA, single or distributed; elsewhere it does not pay")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; null leaves PyTorch's choice")
    log_every: int = Field(10, ge=1, description="steps from one training row to the next")
    eval_every: int = Field(250, ge=1, description="steps between evaluations; each checkpoint is evaluated too")
    eval_batches: int | None = Field(100, ge=1, description="validation batches, the same each time; null takes all")
    checkpoint_every: int = Field(250, ge=1, description="steps from one checkpoint to the next")
    keep_checkpoints: int = Field(2, ge=1, description="newest ones to keep; the best is kept besides")
    sample_tokens: int = Field(120, ge=0, description="tokens of generated text at each evaluation; 0: none")
    seed: int = Field(0, ge=0, description="of the first weights, the order of the text, and dropout")

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainingConfig":
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate = {self.min_learning_rate} exceeds learning_rate = {self.learning_rate}"
            )
        if self.warmup_steps >= self.max_steps:
            raise ValueError(f"warmup_steps = {self.warmup_steps} must be below max_steps = {self.max_steps}")
        return self


class DataConfig(_Section):
    """`data:`, what is read; `dataset` must be given."""

    dataset: str = Field(min_length=1, description="'stories', a Hugging Face hub name, or a path")
    train_split: str = Field("train", description="name of the part to train on")
    val_split: str = Field("validation", description="name of the part that is held out")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="held out where the source has no validation split")
    text_column: str = Field("text", description="column of the source that holds a document")
    tokenizer: str = Field("gpt2", description="'gpt2', 'stories', or the path of a saved one")
    packing: Literal["stream", "documents"] = Field(
        "stream", description="'documents': each row starts with a document"
    )
    max_documents: int | None = Field(None, ge=1, description="per split; null takes all")
    streaming: bool | None = Field(None, description="read a hub data set without storing it; null: decide by size")
    cache_dir: str = Field("data", description="where token files are kept")
    num_workers: int = Field(0, ge=0, le=256, description="threads that prepare batches ahead")


class WandbConfig(_Section):
    """`wandb:`, Weights & Biases. 'auto' uses it where there is a login or WANDB_MODE says so, and never prompts."""

    enabled: Literal[True, False, "auto"] = Field("auto", description="true without a login is an error")
    project: str = Field("slm", description="project that the run appears in")
    entity: str | None = Field(None, description="user or team; null takes the login's own")
    name: str | None = Field(None, description="name of the run; null takes that of the config file")
    tags: list[str] = Field(default_factory=list, description="labels to find the run by")


class ModalConfig(_Section):
    """`modal:`, the rented machine (chapter 9)."""

    gpu: str = Field("T4", description="a GPU that Modal rents, or several of one kind: 'H100:8'")
    timeout: int = Field(14_400, ge=1, le=86_400, description="seconds per attempt")
    max_dollars: float = Field(
        10.0, gt=0, description="refuse to launch above this estimate, and stop when it is spent"
    )
    cpu: float = Field(2.0, gt=0, le=64, description="cores of the machine beside the GPU")
    memory_mib: int = Field(8_192, ge=1_024, le=344_064, description="MiB of its memory, not the GPU's")

    @field_validator("gpu")
    @classmethod
    def _is_rented(cls, gpu: str) -> str:
        name, _, count = gpu.partition(":")
        if name not in GPU_LIMITS:
            raise ValueError(f"allowed are {', '.join(GPU_LIMITS)}, with ':n' for several")
        if ":" in gpu and not (count.isdigit() and 1 <= int(count) <= GPU_LIMITS[name]):
            raise ValueError(f"of {name}, 1 to {GPU_LIMITS[name]} can be had")
        return gpu

    @property
    def gpu_name(self) -> str:
        """The kind of GPU without its number."""
        return self.gpu.partition(":")[0]

    @property
    def gpu_count(self) -> int:
        """How many GPUs of the kind."""
        return int(self.gpu.partition(":")[2] or 1)


class _File(_Section):
    model: _ModelSection
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    wandb: WandbConfig = WandbConfig()
    modal: ModalConfig = ModalConfig()


@dataclass(frozen=True)
class RunConfig:
    """A whole, valid run: what a config file says, with every default filled in. `name` names the run folder."""

    name: str
    model: GPTConfig
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    wandb: WandbConfig = WandbConfig()
    modal: ModalConfig = ModalConfig()

    def as_dict(self) -> dict[str, Any]:
        """The sections as plain dictionaries, as `make_config` takes them."""
        sections = {name: getattr(self, name).model_dump() for name in ("training", "data", "wandb", "modal")}
        return {"model": asdict(self.model), **sections}

    def to_yaml(self) -> str:
        """The text of a config file that gives this config again."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False)


# %% [markdown]
# Then the reader: YAML with the number rule mended, overrides such as `training.max_steps=200`, and pydantic's findings turned into sentences. The closest known name is found by `difflib`.


# %% tags=["hide-input"]
#| export config
class _Loader(yaml.SafeLoader):
    """YAML with the numbers of YAML 1.2 (3e-4 is one; 010, 1:30 and dates are texts); a key given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_OLD = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] not in _OLD] for first, rules in _Loader.yaml_implicit_resolvers.items()
}
_DIGITS = list("-+.0123456789")
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][\d_]*)$"), _DIGITS)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(((\d[\d_]*\.\d*|\.\d+)([eE][-+]?\d+)?)|\d[\d_]*[eE][-+]?\d+|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
    ),
    _DIGITS,
)


def _problem(error: Any, source: str) -> str:
    """One of pydantic's findings as a line: where, what was given, what is allowed."""
    path, given, kind = [str(part) for part in error["loc"]], error["input"], error["type"]
    sections: dict[str, type[BaseModel]] = {name: f.annotation for name, f in _File.model_fields.items()}  # type: ignore[misc]
    known = list(sections if len(path) < 2 else sections[path[0]].model_fields)
    where = f"{source}: {'.'.join(path[:2])}"
    if kind == "invalid_key":
        return f"{where} is not a key; keys are texts"
    if kind == "extra_forbidden":
        elsewhere = {key: f"{name}.{key}" for name, section in sections.items() for key in section.model_fields}
        near = [] if path[-1] in elsewhere else difflib.get_close_matches(path[-1], known, 1)
        near = near or [elsewhere[key] for key in difflib.get_close_matches(path[-1], elsewhere, 1)]
        hint = f"did you mean {near[0]!r}?" if near else f"allowed here are {', '.join(known)}"
        return f"{where} is not a key; {hint}"
    if kind == "missing":
        return f"{where} is missing; it has no default"
    if kind == "value_error":
        shown = "" if isinstance(given, Mapping | BaseModel) else f" = {given!r}"
        return f"{where}{shown}: {error['ctx']['error']}"
    allowed = error["msg"].removeprefix("Input should be ").removesuffix(" or null")
    allowed = allowed.replace("String should have at least 1 character", "a text that is not empty")
    if path == ["model"] or kind in ("model_type", "dict_type"):
        allowed = "a section with keys of its own"
    return f"{where} = {given!r} is not allowed; it must be {allowed}"


def make_config(sections: Mapping[str, Any], name: str = "run", source: str = "config") -> RunConfig:
    """A `RunConfig` from plain dictionaries, one per section.

    Raises:
        ConfigError: With a line for every problem found.
    """
    try:
        parsed = _File.model_validate(dict(sections))
    except ValidationError as error:
        lines = dict.fromkeys(_problem(found, source) for found in error.errors(include_url=False))
        raise ConfigError("\n".join(lines)) from None
    return RunConfig(
        name=name,
        model=GPTConfig(**parsed.model.model_dump()),
        data=parsed.data,
        training=parsed.training,
        wandb=parsed.wandb,
        modal=parsed.modal,
    )


def _read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}:{line} is not YAML: {getattr(error, 'problem', None) or error}") from None
    except ValueError as error:  # a value with a tag, such as !!int, that it does not fit
        raise ConfigError(f"{source}: holds a value that cannot be read: {error}") from None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a config file.

    Args:
        path: A YAML file with the sections model, data, and, where the defaults do not fit, training, wandb, modal.
        overrides: "section.key=value" each, as on the command line; the value is read as YAML.

    Raises:
        ConfigError: With a line for every problem found: file, key, what was given, what is allowed, nearest known key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; the shipped ones are in configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from None
    sections = _read_yaml(text, str(path))
    if not isinstance(sections, dict):
        expected = ", ".join(_File.model_fields)
        raise ConfigError(f"{path}: holds {type(sections).__name__}; sections are expected: {expected}")
    for override in overrides:
        key, equals, value = override.partition("=")
        section, dot, name = key.partition(".")
        sections[section] = {} if sections.get(section) is None else sections[section]
        if not equals or not dot or not isinstance(sections[section], dict):
            raise ConfigError(f"override {override!r} is not understood; write it like training.max_steps=200")
        sections[section][name] = _read_yaml(value, f"override {override!r}")
    return make_config(sections, name=path.stem, source=str(path))


# %% [markdown]
# A config with five mistakes, as it would come from a file:

# %% tags=["nbval-check-output"]
bad = {
    "model": {"vocab_size": 1024, "context_length": 128, "n_layers": 3, "n_heads": 3, "d_model": 128, "d_ff": 512},
    "training": {"learning_rate": "fast", "max_step": 200, "dtype": "fp16"},
    "data": {"dataset": "stories"},
    "modal": {"gpu": "H1000"},
}
try:
    make_config(bad, source="bad.yaml")
except ConfigError as error:
    print(error)

# %% [markdown]
# ## Optimizers
#
# **AdamW** keeps two running averages for every weight $w$ with gradient $g$ at step $t$: of the gradient, $m$, and of its square, $v$. Both start at zero: after $t$ steps the shares of what they have seen add up to only $1 - \beta^t$, so dividing by that gives true averages, $\hat m$ and $\hat v$. If all gradients were alike, $\hat m$ and $\sqrt{\hat v}$ would be of one size, and the weight would move by the learning rate $\eta$,
# whatever that size is. If their signs change, $\hat m$ is smaller and so is the step: $\eta$ at first, soon a fraction of it.
#
# $$\begin{gathered} m \leftarrow \beta_1 m + (1 - \beta_1)\, g \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2 \\ \hat m = \frac{m}{1 - \beta_1^t} \qquad \hat v = \frac{v}{1 - \beta_2^t} \qquad w \leftarrow (1 - \eta \lambda)\, w - \eta\, \frac{\hat m}{\sqrt{\hat v} + \varepsilon} \end{gathered}$$
#
# The tiny $\varepsilon$ keeps the quotient finite where all gradients were zero. The factor $1 - \eta \lambda$ is the *weight decay* of strength $\lambda$: a weight whose gradients do not hold against it shrinks. It applies to everything with two axes, matrices and embeddings. Biases and the norms' weights are spared, because a norm weight pulled to zero would switch its channel off.
#
# **Muon** (Jordan et al. 2024) treats each matrix of the blocks as a whole. It keeps a running average of the gradients (*momentum*). Any matrix can be written as $U S V^\top$, its *singular value decomposition*: it turns ($V^\top$), stretches each direction by its own factor (the diagonal $S$), and turns again ($U$). In an average of gradients the factors say how often and how hard each direction was asked for, and a few are far larger
# than the rest. Muon steps along $U V^\top$, all factors set to one, so rare directions move as far as frequent ones.
#
# How can a matrix be changed so that its directions stay and only its factors change? Multiply it by products of itself: with $X = U S V^\top$, $X X^\top X = U S^3 V^\top$, because the turns in between cancel. So a polynomial of odd powers acts on each factor alone. Muon's is $3.4445\,s - 4.7750\,s^3 + 2.0315\,s^5$, steep at zero and flat around one, applied five times (a *Newton-Schulz iteration*). First divide by the norm, so that no factor is larger than one. Here are the three factors of a 3 × 3
# matrix on their way, one of them a hundred times smaller than the largest:

# %% tags=["nbval-check-output"]
turn = torch.linalg.qr(torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 10]]))[0]  # a matrix that only turns
factors = torch.tensor([1.0, 0.3, 0.01])
X = turn @ torch.diag(factors / factors.norm()) @ turn.T  # (3, 3)
for step in range(6):
    print(f"after {step} steps:", " ".join(f"{s:.3f}" for s in torch.linalg.svdvals(X)))
    square = X @ X.T
    X = 3.4445 * X + (-4.7750 * square + 2.0315 * square @ square) @ X

# %% [markdown]
# The factors do not settle at one, they stay around it: the coefficients are chosen for speed, and a factor of 0.7 or 1.2 does no harm. All three are products of matrices, so the type matters: in 16 bits they are fastest on a GPU, and on a CPU without units for 16 bits, which has to emulate them, they took longer than all the rest of the step. So `Muon` computes in the type that the device is good at, like the model's own products.
#
# Embeddings are tables whose rows are looked up one by one (the token table is the output matrix too); in practice they do better with AdamW, and biases and norms, which are no matrices, stay with it as
# well.


# %%
#| export
def orthogonalize(gradient: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix with all of its singular values brought near one: five Newton-Schulz steps, computed in `dtype`.

    Source: Jordan et al. 2024, with their coefficients, which leave values between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = gradient.size(0) <= gradient.size(1)
    x = gradient if wide else gradient.T  # (m, n), m <= n: the products below are (m, m)
    x = (x / x.norm().clamp(min=1e-7)).to(dtype)  # no singular value exceeds the norm, so all are now at most one
    for _ in range(5):
        square = x @ x.T  # (m, m)
        factor = torch.addmm(square, square, square, beta=b, alpha=c)  # b square + c square², rounded once
        x = torch.addmm(x, factor, x, beta=a)  # a x + factor x: a singular value s becomes a s + b s³ + c s⁵
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalized: every direction moves equally far.

    Args:
        params: Matrices, parameters with two axes.
        lr: Learning rate; a step has the size of one of AdamW, so AdamW's rates fit.
        weight_decay: Share of the weights, times `lr`, that each step takes away.
        momentum: Memory of the mean gradient; the step looks ahead by one more of it (Nesterov).
        dtype: In which the products are computed; PyTorch's own Muon always takes bfloat16, which is slow where the
            device has no units for it.

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
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
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
                size = 0.2 * math.sqrt(max(p.shape))  # entries of about 0.2, as AdamW's steps have
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * size)


# %%
#| export
def make_optimizers(model: GPT, training: TrainingConfig) -> list[torch.optim.Optimizer]:
    """The optimizers of a run: AdamW for all, or Muon for the blocks' matrices and AdamW for the rest.

    Matrices and embeddings are decayed, biases and norms are not. The rates are set at every step by the trainer.

    Source: Loshchilov and Hutter 2019 (AdamW); Jordan et al. 2024 (Muon), with the update scaled to the size of AdamW's
    as in Liu et al. 2025, so that one rate governs both groups.
    """
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    embeddings = [model.token_embedding.weight, model.position_embedding.weight]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    muon = training.optimizer == "muon"
    adamw = torch.optim.AdamW(
        [
            {"params": embeddings if muon else embeddings + matrices, "weight_decay": training.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_eps,
        fused=model.device.type in ("cpu", "cuda"),
    )
    if not muon:
        return [adamw]
    dtype = choose_dtype(model.device, training.dtype, training.use_amp)
    return [adamw, Muon(matrices, training.learning_rate, training.weight_decay, dtype=dtype)]


def learning_rate(step: int, training: TrainingConfig) -> float:
    """The rate of step 0, 1, …, max_steps - 1: a line up to the peak at the last warm-up step, then a cosine down.

    Source: Loshchilov and Hutter 2017 (SGDR), without restarts.
    """
    peak, least = training.learning_rate, training.min_learning_rate
    if step < training.warmup_steps:
        return peak * (step + 1) / training.warmup_steps
    if training.max_steps == 1:
        return peak
    way = training.max_steps - 1 - training.warmup_steps  # steps from the peak to the minimum
    progress = min(1.0, (step - training.warmup_steps) / way) if way else 1.0
    return least + 0.5 * (peak - least) * (1 + math.cos(math.pi * progress))


# %% [markdown]
# The same model and batches, both optimizers at three rates, and to be fair the same *seconds* for each, since a step of Muon takes longer. The schedule follows the clock:

# %%
for name, rate in itertools.product(("adamw", "muon"), (1e-2, 2e-2, 4e-2)):
    torch.manual_seed(0)
    model, seconds = GPT(SMALL), 4.0
    optimizers, started, losses = make_optimizers(model, TrainingConfig(optimizer=name)), time.process_time(), []
    while (share := (time.process_time() - started) / seconds) < 1:
        for group in [group for optimizer in optimizers for group in optimizer.param_groups]:
            group["lr"] = rate * min(1.0, share / 0.1) * 0.5 * (1 + math.cos(math.pi * share))
        loss = model.loss(*loader.batch(len(losses)))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    print(f"{name:5} at {rate}: {sum(losses[-20:]) / 20:.2f} over the last 20 of {len(losses)} steps")


# %% [markdown]
# Each has a rate of its own, so compare the best of each. Muon gets further, and does well even at a rate that is far too high for AdamW. That is why the config below has Muon (and, for a run thirty times as long, a rate in the middle of these). It gets there in fewer steps: its extra products cost the same whatever the batch, so they weigh most here, with a thousand tokens to a step, and next to nothing on a GPU with half a million.
#
# ## The trainer, method by method
#
# The class is long, so it comes in pieces; `@add_to(Trainer)` puts each into the class, and in `slm/trainer.py` they stand together. Read `update`, `save`, `resume` and `train` closely: the rest, some of it folded, serves them. First what it holds.
#
# On one device `world` is 1, and you can pass over every line that asks for it. On several GPUs, `torchrun` starts `world` processes, one for each; this one is number `rank`. Every process has the whole model and its own share of each batch, and *DistributedDataParallel* (DDP) starts all from the same weights and replaces each gradient by its mean over the processes as soon as backward has made it, so that all make the same step and stay
# equal. DDP sees only calls of a module's `forward`; we call `model.loss`, so the small module `_Loss` makes a `forward` of it. Where processes need a common number, `all_reduce` adds up their tensors.


# %%
#| export
class _Loss(nn.Module):
    """A model's loss as a module's forward, the form that DistributedDataParallel and torch.compile take."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.model.loss(x, y)


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number; the message names the step and the last good checkpoint."""


class Trainer:
    """Trains a model: optimizer, schedule, precision, accumulation, evaluation, samples, checkpoints, metrics.

    Args:
        model: The model; its weights are changed in place.
        train_loader: Batches `(x, y)` of token ids, `(B, T)` int64 each, from `create_dataloader`. Any iterable of such
            batches will do; it is started again when it ends, but only a `TokenLoader` resumes at the exact batch.
        val_loader: The same, of held-out text, or None to skip evaluation.
        config: What `load_config` gives, or a dictionary of the same sections (`{"training": {"max_steps": 100}}`).
        device: Where to train; CUDA, then MPS, then CPU if not said.
        use_wandb: Also log to Weights & Biases.
        run_dir: Folder for metrics, checkpoints and samples; None writes nothing.
        on_checkpoint: Called after each checkpoint is safely on disk, from the thread that wrote it.
        dollars_per_hour: Price of the machine, to log `cost/usd`.
        verbose: Show the progress bar, or lines where there is no terminal.

    Raises:
        ConfigError: `config` is a dictionary and something in it is wrong.
    """

    def __init__(
        self,
        model: GPT,
        train_loader: Iterable[tuple[Tensor, Tensor]],
        val_loader: Iterable[tuple[Tensor, Tensor]] | None,
        config: RunConfig | Mapping[str, Any],
        device: str | torch.device | None = None,
        use_wandb: bool = False,
        run_dir: str | Path | None = None,
        on_checkpoint: Callable[[], None] | None = None,
        dollars_per_hour: float | None = None,
        verbose: bool = True,
    ) -> None:
        if not isinstance(config, RunConfig):
            known = {"model": asdict(model.config), "data": {"dataset": "given as loaders"}}
            config = make_config({**known, **config})
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = choose_device() if device is None else torch.device(device)
        self.model = model.to(self.device)
        self.train_loader, self.val_loader = train_loader, val_loader
        self.config, self.training = config, config.training
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.on_checkpoint, self.dollars_per_hour = on_checkpoint, dollars_per_hour
        self.verbose = verbose and self.rank == 0
        self.dtype = choose_dtype(self.device, self.training.dtype, self.training.use_amp)
        self.peak_flops = peak_flops(self.device, self.dtype) if self.rank == 0 else None
        self.optimizers = make_optimizers(model, self.training)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.use_wandb, self.wandb_id = use_wandb and self.rank == 0, uuid.uuid4().hex[:8]
        self.wandb_run: Any = None
        self.step, self.tokens_seen, self.seconds = 0, 0, 0.0
        self.skipped = 0  # steps that float16 skipped because a gradient overflowed
        self.best: tuple[float, int] | None = None  # validation loss and step of the best checkpoint
        self.metrics: list[dict[str, Any]] = []
        self._pending: list[Tensor] = []  # loss and gradient norm of each step since the last training row
        self._writer = ThreadPoolExecutor(1)  # the thread that writes checkpoints
        self._writing: Future[None] | None = None  # the checkpoint that it is at
        self._clock = time.perf_counter()

        loss: nn.Module = _Loss(model)
        if self.training.compile and self.device.type == "cuda":
            loss.compile()
        if self.world > 1:
            loss = DistributedDataParallel(loss, device_ids=[self.device.index] if self.device.type == "cuda" else None)
        self.loss: Any = loss

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the training text, if its loader knows it."""
        return getattr(self.train_loader, "tokenizer", None)


def choose_device() -> torch.device:
    """This process's CUDA device, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


# %% [markdown]
# One step: the parts of the batch, its *micro-batches*, one after the other, each weighted by its share of the targets *over all processes*; then unscale, clip, step. With such weights the processes' gradients must be *added*; DDP takes their mean, a sum divided by `world`, so the loss is multiplied by `world` first. All parts but the last run under `no_sync`, so that the gradients travel between the processes once per step and not once
# per part. `totals` carries three counts through one exchange: targets, requests to stop, tokens.


# %%
#| export
@course.add_to(Trainer)
def update(self, batches: Iterator[tuple[Tensor, Tensor]], stop: bool = False) -> bool:
    """Make one step of the optimizers, and keep its loss and gradient norm for the next look.

    Args:
        batches: Where the micro-batches come from.
        stop: Whether this process was asked to stop.

    Returns:
        Whether any process was asked to stop.
    """
    rate = learning_rate(self.step, self.training)
    for optimizer in self.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
    parts = [next(batches) for _ in range(self.training.gradient_accumulation_steps)]
    shares = [int((y != -100).sum()) for _, y in parts]
    totals = torch.tensor([sum(shares), int(stop), sum(x.numel() for x, _ in parts)], dtype=torch.float64)
    if self.world > 1:
        totals = totals.to(self.device)
        dist.all_reduce(totals)
    targets, stops, seen = totals.tolist()
    self.tokens_seen += int(seen)
    total = torch.zeros((), device=self.device)
    for i, (x, y) in enumerate(parts):
        x, y = (part.to(self.device, non_blocking=True) for part in (x, y))
        last = i == len(parts) - 1
        waits = contextlib.nullcontext() if last or self.world == 1 else self.loss.no_sync()
        with waits, torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.loss(x, y) * (shares[i] / max(1.0, targets))
        self.scaler.scale(loss * self.world).backward()
        total += loss.detach()
    for optimizer in self.optimizers:
        self.scaler.unscale_(optimizer)
    self._log_gradients()
    norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.training.grad_clip or math.inf)
    overflow = self.scaler.is_enabled() and not norm.isfinite()  # such a float16 step is skipped whole
    self.skipped += bool(overflow)
    if overflow and self.scaler.get_scale() < 1:  # it is halved at every overflow, from 65,536
        raise self._diverged("the gradient overflows float16 whatever the loss scale", self.step)
    for optimizer in self.optimizers:
        if not overflow:
            self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    self.scaler.update()
    if self.world > 1:
        dist.all_reduce(total)
    self._pending.append(torch.stack([total, torch.zeros_like(norm) if overflow else norm]).detach())
    self.step += 1
    return stops > 0


# %% [markdown]
# Evaluation scores held-out text, all of it or the first `eval_batches`, in evaluation mode; a sample shows what a number cannot. The sampling loop is the simplest that works (chapter 7 makes it fast) and has random numbers of its own, so that looking at the model does not change the run.


# %%
#| export
@course.add_to(Trainer)
@torch.no_grad()
def evaluate(self) -> float:
    """Mean loss over the validation targets (the first `eval_batches` batches, or all), in nats per token."""
    if self.val_loader is None:
        raise ValueError("evaluate() needs a val_loader; this trainer was given None")
    mode = self.model.training
    self.model.eval()
    whole = self.val_loader.epoch_batches() if isinstance(self.val_loader, TokenLoader) else iter(self.val_loader)
    totals = torch.zeros(2, device=self.device)  # sum of losses, number of targets
    for i, (x, y) in enumerate(whole):
        if i == self.training.eval_batches:
            break
        count = int((y != -100).sum())
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            totals[0] += self.model.loss(x.to(self.device), y.to(self.device)) * count
        totals[1] += count
    if self.world > 1:
        dist.all_reduce(totals)
    self.model.train(mode)
    if not totals[1]:
        raise ValueError("the val_loader gave no targets; it must give batches (x, y) at every evaluation")
    return (totals[0] / totals[1]).item()


@course.add_to(Trainer)
@torch.no_grad()
def sample(self, max_tokens: int, seed: int = 0) -> str:
    """Text that the model writes from nothing: token by token, until end-of-text or `max_tokens`."""
    if self.tokenizer is None:
        raise ValueError("sample() needs a train_loader that knows its tokenizer")
    mode = self.model.training
    self.model.eval()
    generator = torch.Generator().manual_seed(seed)
    tokens = [self.tokenizer.eot_token]
    for _ in range(max_tokens):
        window = torch.tensor([tokens[-self.model.config.context_length :]], device=self.device)
        logits = self.model(window)[
            0, -1, : self.tokenizer.n_vocab
        ]  # (V,); a model may have more ids than its tokenizer
        probabilities = logits.float().softmax(-1).cpu()
        token = int(torch.multinomial(probabilities, 1, generator=generator))
        if token == self.tokenizer.eot_token:
            break
        tokens.append(token)
    self.model.train(mode)
    return self.tokenizer.decode(tokens[1:])


# %% [markdown]
# What goes into a checkpoint is whatever the next step depends on. It holds the length of the metrics file, too: on resume the file is cut back to that, so steps that are done twice do not stand there twice. At most one checkpoint is being written at a time; what goes wrong in the thread is raised in the loop, at the first step after it, at the latest when the next checkpoint is due.


# %%
#| export
@course.add_to(Trainer)
def save(self) -> None:
    """Copy this step's state, and let a thread write it to a checkpoint and delete those that are no longer kept.

    Raises:
        TrainingDiverged: A loss or gradient since the last one is not finite, so this one would be worthless.
        CheckpointError: The one before could not be written; earlier checkpoints are as they were.
    """
    pending = self._finite()
    on_device = None if self.device.type == "cpu" else torch.get_device_module(self.device).get_rng_state()
    random = {"cpu": torch.get_rng_state(), "device": on_device}
    randoms: list[Any] = [random]
    if self.world > 1:
        randoms = [None] * self.world
        dist.all_gather_object(randoms, random)
    if self.run_dir is None or self.rank != 0:
        return
    self.finish_saving()
    metrics = self.run_dir / "metrics.jsonl"
    state = {
        "step": self.step,
        "tokens_seen": self.tokens_seen,
        "seconds": self.seconds,
        "skipped": self.skipped,
        "best": self.best and list(self.best),
        "model": self.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        "scaler": self.scaler.state_dict(),
        "random": randoms,
        "pending": pending,
        "dtype": str(self.dtype),
        "data": self._data(),
        "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0,
        "wandb_id": self.wandb_id,
        "config": self.config.as_dict(),
    }
    self._writing = self._writer.submit(self._write, self.run_dir, copy_to_cpu(state))


@course.add_to(Trainer)
def _write(self, run_dir: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, delete those that are no longer kept, and tell. Runs beside the training."""
    metrics, folder = run_dir / "metrics.jsonl", run_dir / "checkpoints"
    try:
        if metrics.exists():
            with open(metrics, "r+b") as file:
                os.fsync(file.fileno())  # no checkpoint may count on rows that a power failure would take
        save_checkpoint(folder / f"step_{state['step']:08d}.pt", state)
    except OSError as error:
        raise CheckpointError(f"step {state['step']} was not saved: {error}; {_last_good(run_dir)}") from error
    best_step = None if state["best"] is None else state["best"][1]
    try:
        prune_checkpoints(folder, self.training.keep_checkpoints, state["step"], best_step)
    except OSError as error:
        print(f"step {state['step']:,} is saved, but an older checkpoint could not be deleted: {error}")
    if self.on_checkpoint:
        self.on_checkpoint()


@course.add_to(Trainer)
def finish_saving(self) -> None:
    """Wait for the checkpoint that is being written, if one is.

    Raises:
        CheckpointError: It could not be written, because the disk is full or not writable.
    """
    if self._writing is not None:
        wait_for([self._writing])  # interrupted here, it still knows that there is something to wait for
        written, self._writing = self._writing, None
        written.result()


@course.add_to(Trainer)
def _end_saving(self) -> None:
    """Wait for the writing, and say what went wrong with it where another error is on its way already."""
    if self._writing is not None and (error := self._writing.exception()) is not None:
        print(error)


@course.add_to(Trainer)
def resume(self) -> Path | None:
    """Continue from the newest checkpoint of this run that can be used; its path, or None if there is none at all.

    Raises:
        CheckpointError: There are checkpoints, but all are damaged, or of another config, precision or text.
    """
    if self.run_dir is None:
        return None
    metrics, found = self.run_dir / "metrics.jsonl", load_latest(self.run_dir / "checkpoints", self._unfit)
    if found is None:
        if self.rank == 0 and metrics.exists():  # rows of a start without a checkpoint, or whose checkpoints are moved
            os.replace(metrics, self.run_dir / "metrics.before.jsonl")
        return None
    path, state = found
    try:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(copy_to_cpu(saved))  # it keeps what it is given, and the file may go
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} does not fit this model and optimizer: {str(error).splitlines()[0]}") from error
    self.scaler.load_state_dict(state["scaler"])
    self.step, self.tokens_seen, self.seconds = state["step"], state["tokens_seen"], state["seconds"]
    self.skipped, self.wandb_id = state["skipped"], state["wandb_id"]
    self.best = state["best"] and tuple(state["best"])
    self._pending = [torch.tensor(pair, device=self.device) for pair in state["pending"]]
    random = state["random"][self.rank]
    torch.set_rng_state(random["cpu"])
    if random["device"] is not None and self.device.type != "cpu":
        torch.get_device_module(self.device).set_rng_state(random["device"])
    if self.rank == 0:
        for part in (self.run_dir / "checkpoints").glob("*.part"):  # what a killed process left half written
            part.unlink()
    if self.rank == 0:
        kept = metrics.read_bytes()[: state["metrics_bytes"]] if metrics.exists() else b""
        if len(kept) < state["metrics_bytes"]:
            print(f"{metrics} is shorter than it was; rows before step {self.step:,} are missing")
        if metrics.exists():
            os.truncate(metrics, kept.rfind(b"\n") + 1)  # whole rows only
        self.metrics = read_metrics(self.run_dir)
    return path


@course.add_to(Trainer)
def _unfit(self, state: dict[str, Any]) -> str:
    """Why a checkpoint is not one of this run; "" if it is."""
    if foreign := _foreign(state, self.config):
        return foreign
    if (before := state["dtype"]) != str(self.dtype):
        cure = f"training.dtype={before.removeprefix('torch.')} goes on with it"
        return f"belongs to a run with another precision ({before}, here {self.dtype}; {cure})"
    if state["data"] != self._data():
        return f"belongs to a run with another text ({state['data']}, here {self._data()})"
    if (processes := len(state["random"])) != self.world:
        return f"was written by {processes} processes; it can't go on with {self.world}"
    return ""


@course.add_to(Trainer)
def _data(self) -> str | None:
    """A hash of the training tokens, where they come from a token file."""
    dataset = getattr(self.train_loader, "dataset", None)
    return dataset.about["tokens_sha256"][:16] if isinstance(dataset, TokenDataset) else None


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The rows of a run folder's `metrics.jsonl`, oldest first; none if there is no such file.

    A last line that is still being written, or that a crash cut short, is left out.

    Raises:
        CheckpointError: Another line is damaged.
    """
    path = Path(run_dir) / "metrics.jsonl"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise CheckpointError(f"{path}, line {number} is not a row of metrics: mend or remove it") from None
    return rows


# %% [markdown]
# A GPU works through a queue, and `.item()` must wait until all of it is done. So losses and gradient norms are kept as tensors (`_pending`) and looked at only every `log_every` steps. That is also when a number that is no longer finite is found, always before a checkpoint is written; their order names the step at which it happened. At every hundredth step a row of its own holds a histogram of each gradient.


# %%
#| export
@course.add_to(Trainer)
def _log(self, row: dict[str, Any]) -> None:
    """Add a row to the metrics, in memory, on disk and at Weights & Biases."""
    row = {"step": self.step, "seconds": round(self.seconds, 3), **row, "train/tokens_seen": self.tokens_seen}
    if self.dollars_per_hour is not None:
        row["cost/usd"] = self.dollars_per_hour * self.seconds / 3600
    self.metrics.append(row)
    if self.run_dir is not None and self.rank == 0:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with open(self.run_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    if self.wandb_run is not None:
        self.wandb_run.log({key: _for_wandb(value) for key, value in row.items()}, step=self.step)


# %% tags=["hide-input"]
#| export
def _for_wandb(value: Any) -> Any:
    """A histogram as Weights & Biases draws it; everything else as it is."""
    if not isinstance(value, dict):
        return value
    import numpy as np
    import wandb

    edges = np.linspace(value["low"], value["high"], len(value["counts"]) + 1)
    return wandb.Histogram(np_histogram=(np.array(value["counts"]), edges))


@course.add_to(Trainer)
def _log_gradients(self) -> None:
    """Every 100 steps, each gradient's histogram: 32 equal bins from its least to its largest entry."""
    if self.step % 100 or self.rank != 0:
        return
    row: dict[str, Any] = {}
    for name, parameter in self.model.named_parameters():
        entries = parameter.grad.float() if parameter.grad is not None else torch.empty(0)
        entries = entries[entries.isfinite()]  # a float16 step may overflow
        if entries.numel():
            low, high = (limit.item() for limit in entries.aminmax())
            parts = entries.split(2**24)  # float32, in which histc counts, goes no further
            counts = sum(part.histc(32, low, high).long() for part in parts)
            row[f"gradients/{name}"] = {"low": low, "high": high, "counts": counts.tolist()}
    self._log(row)


@course.add_to(Trainer)
def _finite(self) -> list[list[float]]:
    """Loss and gradient norm of each step since the last training row.

    Raises:
        TrainingDiverged: One of them is not finite.
    """
    pairs: list[list[float]] = torch.stack(self._pending).tolist() if self._pending else []
    for i, (loss, norm) in enumerate(pairs):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"gradient's norm became {norm}" if math.isfinite(loss) else f"loss became {loss}"
            raise self._diverged(f"the {what}", self.step - len(pairs) + i)
    return pairs


@course.add_to(Trainer)
def _diverged(self, what: str, step: int) -> TrainingDiverged:
    """The error that ends a run; it names the last good checkpoint, once that one is written."""
    if self._writing is not None:
        wait_for([self._writing])
    cure = "another run with a lower training.learning_rate or a longer warm-up is the usual cure"
    rate = learning_rate(min(step, self.training.max_steps - 1), self.training)
    return TrainingDiverged(f"{what} at step {step} (learning rate {rate:.2g}); {_last_good(self.run_dir)}; {cure}")


def _last_good(run_dir: Path | None) -> str:
    """Which checkpoint a run that has failed can go on from, for its error message."""
    for path in [] if run_dir is None else list_checkpoints(run_dir / "checkpoints"):
        with contextlib.suppress(CheckpointError, OSError):  # a damaged one
            load_checkpoint(path)
            return f"the last good checkpoint is {path}"
    return "there is no checkpoint yet"


# %% [markdown]
# And the loop. A request to stop (Ctrl-C, or the signal that a cloud sends before it takes a machine away) is noted and obeyed after the step; a second Ctrl-C does not wait for the step, only for a checkpoint that is being written.


# %%
#| export
@contextlib.contextmanager
def _stop_signals(verbose: bool = False) -> Iterator[list[float]]:
    """While inside, SIGINT and SIGTERM are noted in the list instead of ending the process; a later SIGINT interrupts.

    One that follows within a second does not: a launcher hands on to its processes what the terminal sent them already.
    """
    caught: list[float] = []

    def note(number: int, frame: object) -> None:
        now = time.monotonic()
        if caught and number == signal.SIGINT and now - caught[0] > 1:
            raise KeyboardInterrupt
        if verbose and not caught:  # print() is not allowed to interrupt itself
            os.write(2, b"\nstopping after this step, and saving it; Ctrl-C again does not wait for that\n")
        caught.append(now)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@course.add_to(Trainer)
def train(self) -> list[dict[str, Any]]:
    """Train to `max_steps`, or until SIGINT or SIGTERM; from the run folder's newest checkpoint, if there is one.

    Returns:
        The metrics, one dictionary per row; losses in nats per token.

    Raises:
        TrainingDiverged: The loss became nan or infinite.
        CheckpointError: The run folder's checkpoints cannot be read, or a new one not be written.
    """
    t = self.training
    if self.run_dir is not None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
    resumed = self.resume()
    if self.run_dir is not None and self.rank == 0:
        _describe(self.run_dir, self.config, self)
    self._start_wandb()
    if resumed is not None and self.verbose:
        print(f"going on after step {self.step:,}, from {resumed}")
    if resumed is None:
        self._log({"model/parameters": self.model.count_parameters()})
    if isinstance(self.train_loader, TokenLoader):
        done = self.step * t.gradient_accumulation_steps
        self.train_loader.load_state_dict({"seed": self.train_loader.seed, "step": done})
    batches = _endless(self.train_loader)
    self.model.train()
    bar = tqdm(total=t.max_steps, initial=self.step, unit="step", disable=None if self.verbose else True)
    stop, seen, since = False, self.tokens_seen, time.perf_counter()
    self._clock = since
    with _stop_signals(self.verbose) as signals, contextlib.ExitStack() as at_end:
        at_end.callback(self._end_saving)  # also after an error
        while self.step < t.max_steps and not stop:
            if self._writing is not None and self._writing.done():
                self.finish_saving()
            stop = self.update(batches, stop=bool(signals))
            bar.update()
            every = (t.log_every, t.eval_every, t.checkpoint_every)
            due = [self.step % n == 0 or self.step == t.max_steps for n in every]
            if any(due):
                self._report(bar, (self.tokens_seen - seen) / (time.perf_counter() - since))
                if (due[1] or due[2]) and self.val_loader is not None:
                    self._look(bar, saved=due[2])
            if due[2] or stop:
                self._tick()
                self.save()
            if any(due):
                seen, since = self.tokens_seen, time.perf_counter()
        self.finish_saving()
    bar.close()
    if self.wandb_run is not None:
        self.wandb_run.finish()
    return self.metrics


@course.add_to(Trainer)
def _report(self, bar: tqdm, tokens_per_s: float) -> None:
    """Log a training row, the mean loss since the last one, and show it on the progress bar."""
    losses, norms = zip(*self._finite(), strict=True)
    loss = sum(losses) / len(losses)
    self._pending.clear()
    self._tick()
    rate = learning_rate(self.step - 1, self.training)
    row = {"train/loss": loss, "train/lr": rate, "train/grad_norm": norms[-1], "perf/tokens_per_s": tokens_per_s}
    shown = {"loss": f"{loss:.3f}", "tokens/s": f"{tokens_per_s:,.0f}"}
    if self.peak_flops is not None:
        c = self.model.config
        matrices = sum(p.numel() for p in self.model.parameters() if p.dim() == 2)
        products = matrices - c.context_length * c.d_model  # positions are added, not multiplied
        flops = 6 * products + 12 * c.n_layers * c.d_model * c.context_length  # per token, both ways (chapter 8)
        row["perf/mfu"] = tokens_per_s * flops / (self.peak_flops * self.world)
        shown["MFU"] = f"{row['perf/mfu']:.0%}"
    if self.scaler.is_enabled():
        row |= {"train/loss_scale": self.scaler.get_scale(), "train/skipped_steps": self.skipped}
    if self.dollars_per_hour is not None:
        shown["$"] = f"{self.dollars_per_hour * self.seconds / 3600:.2f}"
    self._log(row)
    bar.set_postfix(shown, refresh=False)


@course.add_to(Trainer)
def _tick(self) -> None:
    """Add the time since the last tick to the run's seconds. Work that a kill undoes is not counted."""
    now = time.perf_counter()
    self.seconds += now - self._clock
    self._clock = now


@course.add_to(Trainer)
def _look(self, bar: tqdm, saved: bool) -> None:
    """Evaluate, remember the best step that has a checkpoint, write a sample."""
    loss = self.evaluate()
    if not math.isfinite(loss):
        raise self._diverged(f"the validation loss became {loss}", self.step)
    if saved and (self.best is None or loss < self.best[0]):
        self.best = loss, self.step
    self._tick()
    self._log({"val/loss": loss})
    if self.verbose and bar.disable:
        done = f"step {self.step:,} of {self.training.max_steps:,}"
        print(f"{done}: validation loss {loss:.4f} nats per token, {self.seconds:.0f} s")
    if self.rank == 0 and self.run_dir is not None and self.tokenizer is not None and self.training.sample_tokens:
        folder = self.run_dir / "samples"
        folder.mkdir(exist_ok=True)
        text = self.sample(self.training.sample_tokens, seed=self.step)
        (folder / f"step_{self.step:08d}.txt").write_text(text + "\n", encoding="utf-8")


def _endless(loader: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's batches, started again whenever they end."""
    while True:
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise ValueError("the train_loader is empty; it must give at least one batch (x, y)")


# %% tags=["hide-input"]
#| export
@course.add_to(Trainer)
def _start_wandb(self) -> None:
    """Open the Weights & Biases run, a new one or the one that the checkpoint names."""
    if not self.use_wandb:
        return
    import wandb

    w = self.config.wandb
    begin = functools.partial(
        wandb.init,
        project=w.project,
        entity=w.entity,
        name=w.name or self.config.name,
        tags=w.tags,
        id=self.wandb_id,
        resume="allow",
        config=self.config.as_dict(),
        dir=self.run_dir,
        settings=wandb.Settings(init_timeout=30),
    )
    try:
        self.wandb_run = begin()
    except wandb.errors.Error as error:  # no training is worth less than its log
        why = str(error).splitlines()[0]
        print(f"Weights & Biases cannot be reached ({why}); it is logged offline: `wandb sync` sends it later")
        wandb.teardown()  # it would say that the id is in use
        self.wandb_run = begin(mode="offline")
    self.wandb_run.define_metric("*", step_metric="train/tokens_seen")


# %% [markdown]
# ## A run from its config
#
# `train` is what the command line, the other chapters and the cloud call. The same call starts a run, continues one that was stopped, or returns one that is finished. It refuses to continue under a changed config, because that would be neither the old run nor a new one, and it lets no second process write into the same folder. What it uses for that is folded.


# %% tags=["hide-input"]
#| export
@dataclass(frozen=True)
class Run:
    """A run folder, read: the model with its newest weights, the tokenizer, the metrics and the config."""

    run_dir: Path
    model: GPT
    tokenizer: Tokenizer
    metrics: list[dict[str, Any]]
    config: RunConfig
    finished: bool

    @property
    def val_loss(self) -> float | None:
        """The last validation loss in nats per token; None if there was no evaluation."""
        return next((row["val/loss"] for row in reversed(self.metrics) if "val/loss" in row), None)


def empty_model(config: GPTConfig) -> GPT:
    """A model for weights that are read next: its own are whatever the memory held, since drawing them takes longer."""
    with torch.device("meta"):
        model = GPT(config)
    return model.to_empty(device="cpu")


def load_run(run_dir: str | Path) -> Run:
    """Read a run folder; of an unfinished run, the newest checkpoint.

    Raises:
        FileNotFoundError: The folder holds no run, or no weights yet.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").is_file():
        raise FileNotFoundError(f"{run_dir} holds no run (no config.yaml); `slm train CONFIG` makes one in runs/")
    config = replace(load_config(run_dir / "config.yaml"), name=run_dir.name)
    finished = (run_dir / "model").is_dir()
    if finished:
        model = GPT.from_pretrained(run_dir / "model")
    else:
        found = load_latest(run_dir / "checkpoints", lambda state: _foreign(state, config))
        if found is None:
            first = config.training.checkpoint_every
            raise FileNotFoundError(f"{run_dir} has no checkpoint yet; the first is written at step {first}")
        model = empty_model(config.model)
        model.load_state_dict(found[1]["model"])
    tokenizer = get_tokenizer(run_dir / "model") if finished else get_tokenizer(config.data.tokenizer)
    return Run(run_dir, model.eval(), tokenizer, read_metrics(run_dir), config, finished)


def code_fingerprint() -> str:
    """A hash over the modules that decide what a run computes; it is kept in the run folder's environment.json."""
    names = "attention blocks gpt gpt_config stories tokenizer data config checkpoint trainer".split()
    sources = [(Path(inspect.getfile(GPT)).parent / f"{name}.py").read_bytes() for name in names]
    return hashlib.sha256(b"".join(sources)).hexdigest()[:16]


def _changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ between two configs and would make another run, each with both values."""
    free = {"log_every", "eval_every", "eval_batches", "checkpoint_every", "keep_checkpoints", "sample_tokens"}
    free |= {"threads", "num_workers", "cache_dir"}
    return [
        f"{section}.{key} was {before[section][key]!r} and is now {value!r}"
        for section in ("model", "training", "data")
        for key, value in now[section].items()
        if key not in free and before[section].get(key, value) != value
        if key != "dtype" or "auto" not in (before[section]["dtype"], value)  # see Trainer._unfit
    ]


def _foreign(state: Mapping[str, Any], config: RunConfig) -> str:
    """Why a checkpoint's state is not one of a run with this config; "" if it is."""
    if "config" not in state:
        return "was not written by a trainer"
    changed = _changed_keys(state["config"], config.as_dict())
    return f"belongs to a run with another config: {'; '.join(changed)}" if changed else ""


def _refuse_changes(config: RunConfig, run_dir: Path) -> None:
    """Raise ConfigError if the run folder was made with other settings that matter, or holds what is not a run's."""
    if not (run_dir / "config.yaml").is_file():
        names = ("metrics.jsonl", "environment.json", "samples", "model")
        strangers = [name for name in names if (run_dir / name).exists()]
        if strangers and not list_checkpoints(run_dir / "checkpoints"):
            raise ConfigError(
                f"{run_dir} holds {', '.join(strangers)} but no config.yaml, so no run: choose another --run-dir"
            )
        return
    if changed := _changed_keys(load_config(run_dir / "config.yaml").as_dict(), config.as_dict()):
        what = f"{run_dir} holds a run with another config: {'; '.join(changed)}"
        raise ConfigError(f"{what}. Choose another --run-dir, or move that folder away")


@contextlib.contextmanager
def only_process(run_dir: Path) -> Iterator[None]:
    """Refuse a second training process on the same run folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(run_dir / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        busy = f"another process is training in {run_dir}"
        raise ConfigError(f"{busy}; wait for it, or choose another --run-dir") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _process_group() -> Iterator[None]:
    """While inside, belong to the processes that torchrun started, if it did."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(choose_device())
    patience = datetime.timedelta(minutes=30)  # the others wait while the first one evaluates, saves and logs
    dist.init_process_group("nccl" if cuda else "gloo", timeout=patience)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _wants_wandb(config: RunConfig) -> bool:
    """Whether to log to Weights & Biases: as the config says; with 'auto', if WANDB_MODE or a login says so."""
    mode = os.environ.get("WANDB_MODE")
    if config.wandb.enabled is False or mode == "disabled":
        return False
    wanted = "wandb.enabled is true" if config.wandb.enabled is True else f"WANDB_MODE is {mode}" if mode else ""
    if importlib.util.find_spec("wandb") is None:
        if wanted:
            raise ConfigError(f"{wanted}, but wandb is not installed: pip install 'slm[train]'")
        return False
    if mode in ("offline", "dryrun"):
        return True
    import wandb

    logged_in = bool(wandb.login(prompt=False, verify=False))
    if wanted and not logged_in:
        raise ConfigError(
            f"{wanted}, but there is no login: run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline"
        )
    return logged_in


# %%
#| export
def train(
    config: RunConfig,
    run_dir: str | Path | None = None,
    on_checkpoint: Callable[[], None] | None = None,
    dollars_per_hour: float | None = None,
    verbose: bool = True,
) -> Run:
    """A whole run from its config: start it, continue it, or, if it is finished, return it.

    Args:
        config: What `load_config` gives.
        run_dir: The run folder; `runs/<config.name>` if not said.
        on_checkpoint: Called after each checkpoint, and once the finished model, is safely on disk; while training goes
            on, from another thread.
        dollars_per_hour: Price of the machine, for the metric `cost/usd`.
        verbose: Say what happens, and show progress.

    Returns:
        The run; its `finished` is False if it was stopped by SIGINT or SIGTERM.

    Raises:
        ConfigError: The folder holds a run with another config, is in use, or tokenizer and model do not fit.
        DataError, TokenizerUnavailable: The text or its tokenizer cannot be had.
        TrainingDiverged, CheckpointError: See `Trainer.train`.
    """
    if run_dir == "":
        raise ConfigError("--run-dir is empty; name the run's folder, or leave it out for runs/<name of the config>")
    run_dir = Path("runs") / config.name if run_dir is None else Path(run_dir)
    say = print if verbose and int(os.environ.get("RANK", 0)) == 0 else lambda *_: None
    _refuse_changes(config, run_dir)
    if (run_dir / "model").is_dir():
        say(f"{run_dir} is finished; its model is used as it is")
        return load_run(run_dir)
    t, d = config.training, config.data
    if t.threads is not None:
        torch.set_num_threads(t.threads)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    tokenizer = get_tokenizer(d.tokenizer)
    if tokenizer.n_vocab > config.model.vocab_size:
        small = f"model.vocab_size = {config.model.vocab_size} is too small"
        raise ConfigError(f"{small} for tokenizer {d.tokenizer!r}, which has {tokenizer.n_vocab} ids")
    with only_process(run_dir) if rank == 0 else contextlib.nullcontext(), contextlib.ExitStack() as group:

        def loader(split: str, shuffle: bool) -> TokenLoader:
            return create_dataloader(
                d.dataset,
                split=split,
                shuffle=shuffle,
                batch_size=t.batch_size,
                context_length=config.model.context_length,
                tokenizer=tokenizer,
                packing=d.packing,
                seed=t.seed,
                rank=rank,
                world_size=world_size,
                num_workers=d.num_workers,
                cache_dir=d.cache_dir,
                text_column=d.text_column,
                max_documents=d.max_documents,
                val_fraction=d.val_fraction,
                streaming=d.streaming,
            )

        loaders = (
            loader(d.train_split, True),
            loader(d.val_split, False),
        )  # one process tokenises, the others wait for it
        group.enter_context(_process_group())
        torch.manual_seed(t.seed)
        continuing = bool(list_checkpoints(run_dir / "checkpoints"))
        model = empty_model(config.model) if continuing else GPT(config.model)
        if dist.is_initialized():
            torch.manual_seed(t.seed + 1 + dist.get_rank())  # every process drops channels of its own
        trainer = Trainer(
            model, *loaders, config, None, _wants_wandb(config), run_dir, on_checkpoint, dollars_per_hour, verbose
        )
        tokens = loaders[0].tokens_per_batch * t.gradient_accumulation_steps * trainer.world
        precision = str(trainer.dtype).removeprefix("torch.")
        begun = "continuing" if continuing else "starting"
        say(f"{begun} {run_dir}: {model.count_parameters():,} parameters on {trainer.device} in {precision}")
        say(f"{t.max_steps:,} steps of {tokens:,} tokens; Ctrl-C stops and saves")
        trainer.train()
        finished = trainer.step >= t.max_steps
        if rank == 0 and finished:
            model.save_pretrained(run_dir / "model.part")
            tokenizer.save(run_dir / "model.part")
            sync(run_dir / "model.part")  # a folder of this name counts as a finished run, also after a power failure
            os.replace(run_dir / "model.part", run_dir / "model")
            if on_checkpoint:
                on_checkpoint()
        if dist.is_initialized():
            dist.barrier()
        stopped = f"stopped after step {trainer.step:,}; the same command goes on from there"
        say(f"{run_dir} is finished" if finished else stopped)
    return Run(run_dir, model.eval(), tokenizer, trainer.metrics, config, finished)


def _describe(run_dir: Path, config: RunConfig, trainer: Trainer) -> None:
    """Write config.yaml and environment.json, so that the folder explains itself."""
    run_dir.mkdir(parents=True, exist_ok=True)
    environment = {
        "code": code_fingerprint(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else trainer.device.type,
        "dtype": str(trainer.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processes": trainer.world,
    }
    texts = {"config.yaml": config.to_yaml(), "environment.json": json.dumps(environment, indent=2) + "\n"}
    for name, text in texts.items():
        part = run_dir / f"{name}.part"
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, run_dir / name)
    sync(run_dir, files=False)


# %% [markdown]
# ## Train
#
# Everything is in the config; what it does not list, such as clipping and the end of the learning rate at zero, has its default.

# %%
print(Path("configs/stories_cpu.yaml").read_text())

# %% [markdown]
# While it learns, a second process on the second core trains other models, and once the same one, from the same config, each for an eighth of the steps or so, with a schedule of its own that ends at zero: without attention and positions, without attention, with one layer, with two. First it repeats the full run's first 150 steps, to keep the model as it was then.

# %%
from course.figures.chapter_06 import SmallerModels, excess_strip, shot_and_resumed, staircase_figure

smaller = SmallerModels(steps=150)
config = load_config("configs/stories_cpu.yaml")
run = train(config)
stairs, early = smaller.wait(like=run.model)

# %% tags=["hide-input"]
staircase_figure(stairs, run.metrics, lines)

# %% [markdown]
# The losses at the end go down a staircase, and each large step of it has a reason. A model with neither attention nor positions knows only its own token, and ends just above the *bigram* line, the best that this allows. Positions take it below, since in texts this short the place alone says a good deal. With attention, a model walks through that line without noticing, because it can look back. A second layer could look for something
# that the first has found; in these stories the word to repeat can mostly be found by what it is (a name, a colour, an animal) and where it stands, so one look nearly suffices: after as many steps two layers are no further, and have taken longer. So the shipped model has one layer and many steps.
#
# The two runs with one layer are the same model. When the short one ends, it is far ahead of the long one at that moment, because its learning rate has come down to zero. That drop is what the decay is for; the long run takes it later, from a better place.
#
# The same in one story. The more a token is tinted, the further the model's surprise is above the *true* surprise, the one that the grammar gives (hover for both). What is free to choose costs even a perfect model nats; that share shows no colour:

# %% tags=["hide-input"]
excess_strip({"after 150 steps": early, "at the end": run.model}, tokenizer, stories.sample(10**9 + 1))

# %% [markdown]
# Early on two kinds of token are tinted: words that must repeat what was said before, such as the name, the colour or the animal, which only attention can supply; and words and phrases that the model has not met often enough. The rest of the training is for both.

# %%
from slm.data import StorySource

held_out = [stories.sample(StorySource.VALIDATION_SEED + i) for i in range(StorySource.VALIDATION)]
tokens = sum(len(tokenizer.encode(story)) + 1 for story in held_out)  # with each story's end
own_floor = -sum(map(stories.logprob, held_out)) / tokens
last = next(row for row in reversed(run.metrics) if "train/loss" in row)
print(
    f"validation loss {run.val_loss:.4f} nats per token; the floor is {lines.floor:.4f}, that of this text {own_floor:.4f}"
)
print(f"bits per byte: {lines.bits_per_byte(run.val_loss):.4f}, floor {lines.bits_per_byte(lines.floor):.4f}")
print("\n".join(f"{key}: {value:.6g}" for key, value in last.items()))

# %% [markdown]
# Validation text is a sample of a thousand stories, so what is needed for it differs a little from the floor. The lines from `step` on are the last training row of `metrics.jsonl`. In a healthy run `train/grad_norm` stays below the limit of clipping most of the time, tokens per second do not sink, and the loss falls.
#
# And what does it write? Three stories as they come, then thirty put before the grammar, which knows exactly what a story is: one wrong name in eighty words, and it refuses the whole. What the loss promises can be computed: a model that needs, on average over the grammar's stories, $d$ nats too many writes valid ones with a probability of at least $e^{-d}$ (the mean of a logarithm is at most the logarithm of the mean).

# %%
writer = Trainer(run.model, loader, None, config, device="cpu", verbose=False)
told = [writer.sample(160, seed=seed) for seed in range(30)]
print("\n\n".join(textwrap.fill(story, 96) for story in told[:3]), end="\n\n")
accepted = sum(map(stories.accepts, told))
excess = (run.val_loss - own_floor) * tokens / len(held_out)
print(f"{accepted} of {len(told)} are stories of the grammar; {len(set(told))} are different")
print(f"promised by the loss: {excess:.2f} nats too many per story, so at least {math.exp(-excess):.0%}")

# %% [markdown]
# ## Pull the plug
#
# The promise was that a run survives a kill at any moment. Here a small run with dropout is killed twice, a random while after a checkpoint, by a signal that cannot be caught, and the same command is given again each time. Next to it the same run goes in one go. Not "about the same": every weight is equal to the last bit.

# %%
shot_and_resumed()

# %% [markdown]
# ## Is it right?

# %% tags=["nbval-check-output"]
rates = [learning_rate(step, config.training) for step in range(config.training.max_steps)]
groups = [group for optimizer in make_optimizers(run.model, config.training) for group in optimizer.param_groups]
decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
{
    "within 0.05 nats per token of the floor": run.val_loss - own_floor < 0.05,
    "not below the floor": run.val_loss > own_floor - 0.001,
    "nearly as many are stories as the loss promises": accepted / len(told) > math.exp(-excess) - 0.25,
    "the first step moves": rates[0] > 0,
    "the rate peaks at the last warm-up step": rates.index(max(rates)) == config.training.warmup_steps - 1,
    "the last rate is the least": rates[-1] == min(rates) == config.training.min_learning_rate,
    "decayed: matrices and embeddings, nothing else": all(
        (id(p) in decayed) == (p.dim() == 2) for p in run.model.parameters()
    ),
}

# %% [markdown]
# Thirty stories are a small sample: hence the tolerance of a quarter. A loss clearly *below* the floor would not be good news: no honest model can get there, so it means a leak, a mask the wrong way round, or validation text in the training set.
#
# ## Exercises
#
# **1. Another schedule.** Many labs hold the rate at its peak and let it fall only at the end, so that a run can be prolonged from any checkpoint before the fall. Three straight parts: up, in `warmup` equal rises, so that step 0 has `peak / warmup` and step `warmup - 1` the peak; level; down, over the last `fall` steps, so that step `steps - 1 - fall` still has the peak and step `steps - 1` has 0.

# %% tags=["exercise"]
from course import check


def my_schedule(step: int, peak: float, warmup: int, fall: int, steps: int) -> float:
    """The learning rate of step 0, 1, …, steps - 1."""
    raise NotImplementedError("your turn")


check.schedule(my_schedule)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_schedule(step, peak, warmup, fall, steps):
#     return peak * min(1, (step + 1) / warmup, (steps - 1 - step) / fall)
# ```
# </details>
#
# **2. AdamW.** One step for one tensor, in place. `m` and `v` are the running averages so far, `t` counts steps from 1.


# %% tags=["exercise"]
def my_adamw_step(p, grad, m, v, t: int, lr: float, beta1: float, beta2: float, eps: float, decay: float) -> None:
    """Update the tensors p, m and v in place."""
    raise NotImplementedError("your turn")


check.adamw(my_adamw_step)

# %% [markdown]
# <details><summary>Solution</summary>
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
# **3. Accumulate.** Every parameter's `.grad` is empty. Leave in it the gradient of the mean loss over the *whole* batch, but never compute more than `rows` texts at once. Targets of -100 do not count, and parts may hold different numbers of them.


# %% tags=["exercise"]
def my_accumulate(model: GPT, x: Tensor, y: Tensor, rows: int) -> None:
    """Gradients of model.loss(x, y), computed `rows` texts at a time; model.loss is a mean over counted targets."""
    raise NotImplementedError("your turn")


check.accumulate(my_accumulate)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_accumulate(model, x, y, rows):
#     total = (y != -100).sum()
#     for part_x, part_y in zip(x.split(rows), y.split(rows)):
#         share = (part_y != -100).sum() / total
#         (model.loss(part_x, part_y) * share).backward()
# ```
# </details>
#
# **4. Resume.** A run, with dropout, goes on in another process as if it had never stopped. What must `my_save` put into its dictionary? It is used later, when the run that it was taken from has moved on.


# %% tags=["exercise"]
def my_save(model: GPT, optimizer: torch.optim.Optimizer, step: int) -> dict:
    """Everything that the next step depends on, as it is now."""
    raise NotImplementedError("your turn")


def my_load(state: dict, model: GPT, optimizer: torch.optim.Optimizer) -> int:
    """Put it into a fresh model and optimizer; returns the number of steps done."""
    raise NotImplementedError("your turn")


check.resume(my_save, my_load)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_save(model, optimizer, step):
#     state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
#     return copy_to_cpu(state | {"random": torch.get_rng_state(), "step": step})
#
# def my_load(state, model, optimizer):
#     model.load_state_dict(state["model"])
#     optimizer.load_state_dict(state["optimizer"])
#     torch.set_rng_state(state["random"])
#     return state["step"]
# ```
# </details>
#
# ## What you have now
#
# A trainer, a trained model in `runs/stories_cpu`, and a folder that explains itself: `config.yaml`, `metrics.jsonl`, `samples/`, `checkpoints/`, `environment.json`, and `model/`, which `transformers` opens. The next chapter makes it write faster, and as you ask.

# %%
course.summary("slm/config.py", "slm/checkpoint.py", "slm/trainer.py")
