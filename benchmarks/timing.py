"""Time contenders in turns, so that a busy moment of the machine hits all of them."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Seconds = dict[str, list[float]]


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    of_processor: bool = False,
) -> Seconds:
    """Seconds of every call: in each round every contender is called once, from another one on each time.

    Those of the processor, where other work takes its share of the machine.
    """
    seconds: Seconds = {name: [] for name in contenders}
    names = list(contenders)
    for round_ in range(-warmup, rounds):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            clock = time.process_time if of_processor else time.perf_counter
            start = clock()
            contenders[name]()
            if round_ >= 0:
                seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: Seconds, slow: str, fast: str) -> float:
    """How many times as fast `fast` is: the median over rounds of the two times of one round."""
    return statistics.median(
        s / f for s, f in zip(seconds[slow], seconds[fast], strict=True)
    )


def machine() -> str:
    """One line that says on what was measured."""
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines()
        if Path("/proc/cpuinfo").exists()
        else []
    )
    names = [
        line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
    ]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    extras = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} {' '.join(extras)}; {torch.get_num_threads()} threads; torch {torch.__version__}"


def bar(text: str, reached: float, wanted: float, at_most: bool = False) -> str:
    """One line: what was wanted, what was reached."""
    met = reached <= wanted if at_most else reached >= wanted
    return f"{'met   ' if met else 'MISSED'}  {text}: {reached:.2f} ({'at most' if at_most else 'at least'} {wanted:g})"


def not_measured(text: str, why: str) -> str:
    """One line for a bar that this machine cannot answer: neither met nor missed."""
    return f"not measured  {text}: {why}"
