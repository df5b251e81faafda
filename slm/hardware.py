"""What this process runs on: device, type of numbers, and its rank among others.

    device = choose_device()
    dtype = choose_dtype(device)  # torch.bfloat16 where the hardware is made for it

Exported from chapters/11_trainer.py; edit it there.
"""

import contextlib
import datetime
import functools
import math
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slm.gpus import peak_tflops

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
    dist.init_process_group("nccl" if cuda else "gloo", timeout=patience)
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
