"""What this process runs on: device, type of numbers, and its rank among others.

    device = choose_device()
    dtype = choose_dtype(device)  # torch.bfloat16 where the hardware is made for it

Exported from chapters/11_trainer.py; edit it there.
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

# Precision


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


@functools.cache
def _cpu_multiplies_bfloat16() -> bool:
    """Whether products in bfloat16 pay on this CPU, measured.

    The first question overlooks what ONEDNN_MAX_CPU_ISA forbids, the second says yes to
    a CPU that only emulates, and some CPUs have units that are slower than float32's.
    """
    if not torch.cpu._is_avx512_bf16_supported():
        return False
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
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


# Several processes that make one step


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


# Is there room?

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
