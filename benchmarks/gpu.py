"""Every promise that concerns a GPU, measured on one, in at most seven minutes and without a network.

    python benchmarks/gpu.py [--minutes 7] [--only PART] [--folder benchmarks/results] [--tiny]

GPT-2 small (124M, context 1,024), as the trainer trains it, beside a plain GPT that is written here: logits made as a
whole, PyTorch's cross entropy, the vocabulary filled up to a multiple of 128, compiled. Each part of the table below
runs only if the minutes suffice for what it usually takes; what is left out is told. The table is written anew after
each part, so that an interruption leaves what was found, as gpu-CARD.md, and with `--only` as gpu-CARD-PART.md.

Left out, to keep to seven minutes: other batches than 8 and 32, other contexts, larger models, float32 (TF32 is not
used: who asks for float32 gets it), CUDA graphs, and several GPUs. `--tiny` runs every line on a CPU, with a model that
says nothing about speed and without a compiler, and writes nothing.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from timing import interleave, machine, ratio
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel

import slm.model.config
import slm.model.gpt
from slm.cloud.cost import seconds_per_step, step_memory
from slm.generation import Sampling, generate_tokens
from slm.gpus import MODAL, peak_tflops
from slm.model.config import GPTConfig, count_flops_per_token
from slm.model.gpt import GPT
from slm.training.checkpoint import Checkpointer, copy_to_cpu
from slm.training.config import RunConfig, TrainingConfig, make_config
from slm.training.folder import read_metrics
from slm.training.metrics import Observer, gradient_histograms
from slm.training.optim import make_optimizers
from slm.training.run import train
from slm.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Scale:
    """What is measured: GPT-2 small on a GPU, or next to nothing, to run every line."""

    device: torch.device
    model: GPTConfig
    batches: tuple[int, int]
    blocks: tuple[int, ...]  # bytes of logits that the loss holds at once
    steps: int  # in one timing
    rounds: int
    tokens: int  # written after a prompt of 32
    run_steps: int  # of the run that is killed

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


GPT2 = GPTConfig(50257, 1024, n_layers=12, n_heads=12, d_model=768, d_ff=3072)
BLOCKS = (2**28, 2**29, 2**30, 2**31, 2**32)
FULL = Scale(torch.device("cuda", 0), GPT2, (8, 32), BLOCKS, 8, 3, 128, 1200)
SMALL = GPTConfig(257, 64, n_layers=1, n_heads=2, d_model=32, d_ff=64)
TINY = Scale(torch.device("cpu"), SMALL, (2, 4), (2**16,), 1, 1, 2, 30)


class Report:
    """The table, printed row by row, and written after each part."""

    def __init__(self, scale: Scale, path: Path | None) -> None:
        self.scale, self.path = scale, path
        self.lines, self.notes = (
            ["| part | what | found | wanted | |", "|" + "---|" * 5],
            [""],
        )
        self.part, self.failed = "", False

    def row(self, what: str, found: str, wanted: str = "", verdict: str = "") -> None:
        self.lines.append(f"| {self.part} | {what} | {found} | {wanted} | {verdict} |")
        print(self.lines[-1], flush=True)

    def bar(
        self,
        what: str,
        found: float | None,
        wanted: float,
        at_most: bool = False,
        form: str = ".2f",
    ) -> None:
        """A row with a promise; a CPU, or None for what was found, measures none."""
        limit = f"{'at most' if at_most else 'at least'} {wanted:{form}}"
        if found is None:
            return self.row(what, "", limit, "not measured")
        met = found <= wanted if at_most else found >= wanted
        verdict = "met" if met else "MISSED"
        if not self.scale.cuda:
            verdict = "not measured"
        return self.row(what, f"{found:{form}}", limit, verdict)

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(text, flush=True)

    def write(self, head: str) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = [head, "", *self.lines, *self.notes]
            self.path.write_text("\n".join(text) + "\n", encoding="utf-8")


class PlainGPT(nn.Module):
    """A GPT-2 as it is usually written: whole logits, a vocabulary that is filled up."""

    def __init__(self, c: GPTConfig) -> None:
        super().__init__()
        self.heads, D, V = c.n_heads, c.d_model, 128 * -(-c.vocab_size // 128)
        self.token, self.place = nn.Embedding(V, D), nn.Embedding(c.context_length, D)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm_1": nn.LayerNorm(D),
                    "qkv": nn.Linear(D, 3 * D),
                    "out": nn.Linear(D, D),
                    "norm_2": nn.LayerNorm(D),
                    "up": nn.Linear(D, c.d_ff),
                    "down": nn.Linear(c.d_ff, D),
                }
            )
            for _ in range(c.n_layers)
        )
        self.norm = nn.LayerNorm(D)
        for table in (self.token, self.place):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        B, T = x.shape
        h = self.token(x) + self.place(torch.arange(T, device=x.device))  # (B, T, D)
        for layer in self.layers:
            heads = layer["qkv"](layer["norm_1"](h)).view(B, T, 3, self.heads, -1)
            q, k, v = heads.permute(2, 0, 3, 1, 4)  # (B, H, T, K) each
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + layer["out"](mixed.transpose(1, 2).reshape(B, T, -1))
            up = F.gelu(layer["up"](layer["norm_2"](h)), approximate="tanh")
            h = h + layer["down"](up)
        logits = F.linear(self.norm(h), self.token.weight)  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())


# What is run


def synchronize(scale: Scale) -> None:
    if scale.cuda:
        torch.cuda.synchronize()


def held(scale: Scale) -> int:
    """Bytes that are allocated on the device now."""
    return torch.cuda.memory_allocated() if scale.cuda else 0


def peak_of(scale: Scale, call: Callable[[], object]) -> int:
    """The most bytes that were allocated while something ran."""
    synchronize(scale)
    if scale.cuda:
        torch.cuda.reset_peak_memory_stats()
    call()
    synchronize(scale)
    return torch.cuda.max_memory_allocated() if scale.cuda else 0


def empty(scale: Scale) -> None:
    """Give back what an earlier part has left, compiled code included."""
    torch._dynamo.reset()
    gc.collect()
    if scale.cuda:
        torch.cuda.empty_cache()


def dtype_of(scale: Scale) -> str:
    """bfloat16 where the device has it, as the trainer chooses."""
    native = scale.cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if native or not scale.cuda else "float16"


def config_of(scale: Scale, rows: int, **training: Any) -> RunConfig:
    """A run of the measured model on this card, with so many rows in a step."""
    settings = {"batch_size": rows, "max_steps": 10**6, "warmup_steps": 10}
    settings |= {"dtype": dtype_of(scale), **training}
    sections = {"model": dataclasses.asdict(scale.model), "training": settings}
    return make_config(
        {**sections, "data": {"dataset": "random"}, "modal": {"gpu": card_of(scale)}}
    )


def card_of(scale: Scale) -> str:
    """The name of the card in the price table; that of an H200 where it has none."""
    name = torch.cuda.get_device_name() if scale.cuda else ""
    words = set(name.replace("-", " ").split())
    known = [gpu.name for gpu in MODAL.gpus if set(gpu.name.split("-")) <= words]
    return known[0] if known else "H200"


def batches_of(scale: Scale, rows: int) -> list[tuple[Tensor, Tensor]]:
    """Two batches of random tokens, in page-locked memory."""
    model, generator = scale.model, torch.Generator().manual_seed(0)
    size = (2, 2, rows, model.context_length)
    tokens = torch.randint(model.vocab_size, size, generator=generator)
    return [
        tuple(part.pin_memory() if scale.cuda else part for part in pair)
        for pair in tokens
    ]


def trainer_of(scale: Scale, rows: int, compiled: bool, **training: Any) -> Trainer:
    torch.manual_seed(0)
    config = config_of(scale, rows, compile=compiled, **training)
    batches = batches_of(scale, rows)
    held_out = [batches[0]] * 4 + [tuple(part[: rows // 2] for part in batches[1])]
    made = Trainer(
        GPT(scale.model), batches, held_out, config, scale.device, verbose=False
    )
    if compiled and not made.compiled:  # on a CPU: without a compiler of C++
        made.loss.compile(backend="eager")
        made.compiled = True
    return made


def our_step(scale: Scale, trainer: Trainer) -> Callable[..., None]:
    batches = trainer.batches()

    def run(steps: int = scale.steps) -> None:
        for _ in range(steps):
            trainer.train_step(batches)
        synchronize(scale)

    return run


def plain_step(scale: Scale, rows: int, compiled: bool) -> Callable[..., None]:
    """The same work by hand: forward, backward, clipping, fused AdamW."""
    torch.manual_seed(0)
    model, batches = PlainGPT(scale.model).to(scale.device), batches_of(scale, rows)
    loss_of: Any = model
    if compiled:
        loss_of = torch.compile(model, backend="inductor" if scale.cuda else "eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, fused=True)
    half = getattr(torch, dtype_of(scale))
    scaler = torch.amp.GradScaler(scale.device.type, enabled=half == torch.float16)

    def run(steps: int = scale.steps) -> None:
        for step in range(steps):
            x, y = (
                part.to(scale.device, non_blocking=True) for part in batches[step % 2]
            )
            with torch.autocast(scale.device.type, half):
                loss = loss_of(x, y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        synchronize(scale)

    return run


def once(scale: Scale, call: Callable[[], object]) -> float:
    """Seconds of one call, the device's work included."""
    synchronize(scale)
    started = time.perf_counter()
    call()
    synchronize(scale)
    return time.perf_counter() - started


# The parts


def step_part(report: Report, rows: int, compiled: bool) -> None:
    """A step of both at one batch: speed, memory, and what was predicted."""
    scale = report.scale
    empty(scale)
    base, name = held(scale), f"{'compiled' if compiled else 'eager'}, batch {rows}"
    trainer = trainer_of(scale, rows, compiled)
    ours = our_step(scale, trainer)
    first = once(scale, lambda: ours(3))  # the first step counts histograms
    memory = peak_of(scale, ours) - base
    base = held(scale)
    plain = plain_step(scale, rows, compiled)
    plain_first = once(scale, lambda: plain(3))
    plain_memory = peak_of(scale, plain) - base
    seconds = interleave({"ours": ours, "plain": plain}, scale.rounds, warmup=0)
    step = statistics.median(seconds["ours"]) / scale.steps
    speeds(report, name, rows, step, statistics.median(seconds["plain"]) / scale.steps)
    faster = ratio(seconds, "plain", "ours")
    report.bar(f"{name}: speed against the plain GPT", faster, 1.0)
    if compiled:
        report.bar(f"{name}: the same, the aim", faster, 1.2)
        report.row(
            f"{name}: seconds of the first 3 steps",
            f"{first:.0f}, plain {plain_first:.0f}",
        )
    found = f"{memory / GIB:.2f} GiB, plain {plain_memory / GIB:.2f}"
    report.row(f"{name}: peak memory", found)
    share = memory / plain_memory if plain_memory else None
    report.bar(f"{name}: peak memory against the plain GPT", share, 1.0, at_most=True)
    predictions(report, name, trainer.config, step, memory)
    if compiled and rows == max(scale.batches):
        report.note("\n" + profile(scale, lambda: ours(1)))
    if compiled and rows == min(scale.batches):
        validations(report, trainer)
        report.bar(
            "synchronisations in a step", synchronizations(scale, ours), 0, True, ".0f"
        )


def step_32_part(report: Report) -> None:
    step_part(report, max(report.scale.batches), compiled=True)


def step_8_part(report: Report) -> None:
    step_part(report, min(report.scale.batches), compiled=True)


def eager_part(report: Report) -> None:
    for rows in report.scale.batches:
        step_part(report, rows, compiled=False)


def speeds(report: Report, name: str, rows: int, step: float, plain: float) -> None:
    model, scale = report.scale.model, report.scale
    tokens = rows * model.context_length
    found = f"{tokens / step:,.0f} tokens/s, plain {tokens / plain:,.0f}"
    report.row(f"{name}: speed", found)
    peak = peak_tflops(torch.cuda.get_device_name()) if scale.cuda else None
    mfu = peak and tokens * count_flops_per_token(model) / step / (1e12 * peak)
    if name == f"compiled, batch {max(scale.batches)}":
        report.bar(f"{name}: MFU", mfu, 0.45)
    else:
        report.row(f"{name}: MFU", f"{mfu:.2f}" if mfu else "")


def predictions(
    report: Report, name: str, config: RunConfig, step: float, memory: int
) -> None:
    """`slm cost` against what was measured."""
    gpu = MODAL.find(config.modal.gpu_name)
    fast, slow = seconds_per_step(config, gpu)
    expected = 2 / (1 / fast + 1 / slow)  # its ends are as far from it, as speeds
    told = f"{1e3 * expected:.1f} ms ({1e3 * fast:.1f} to {1e3 * slow:.1f}), measured {1e3 * step:.1f}"
    report.row(f"{name}: step predicted", told)
    known = report.scale.cuda and peak_tflops(torch.cuda.get_device_name())
    off = abs(expected / step - 1) if known else None
    report.bar(f"{name}: error of that", off, 0.15, at_most=True)
    counted = step_memory(config, gpu).peak
    report.row(f"{name}: memory predicted", f"{counted / GIB:.2f} GiB")
    off = abs(counted / memory - 1) if memory else None
    report.bar(f"{name}: error of that", off, 0.10, at_most=True)


def profile(scale: Scale, step: Callable[[], object]) -> str:
    """Where a step's time goes: the twelve kernels that take most of it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if scale.cuda else []
    with torch.profiler.profile(activities=activities) as found:
        step()
    kind = DeviceType.CUDA if scale.cuda else DeviceType.CPU
    key = "self_device_time_total" if scale.cuda else "self_cpu_time_total"
    events = [event for event in found.key_averages() if event.device_type == kind]
    events.sort(key=lambda event: -getattr(event, key))
    whole = sum(getattr(event, key) for event in events) or 1.0
    lines = [
        "Kernels of one compiled step of ours, batch 32:",
        "",
        "| kernel | calls | ms | share |",
    ]
    lines += ["|---|---|---|---|"]
    for event in events[:12]:
        time_ = getattr(event, key)
        shown = event.key.replace("|", " ")[:90]
        lines.append(
            f"| `{shown}` | {event.count} | {time_ / 1e3:.2f} | {time_ / whole:.0%} |"
        )
    return "\n".join(lines)


def synchronizations(scale: Scale, step: Callable[..., None]) -> float | None:
    """How often the host waited for the device inside one step; its end is not counted."""
    if not scale.cuda:
        step(1)
        return None
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step(1)
    torch.cuda.set_sync_debug_mode("default")
    told = [str(each.message) for each in caught]
    return sum("synchronizing CUDA" in message for message in told)


def validations(report: Report, trainer: Trainer) -> None:
    """Compiled once, also for the last batch, which is shorter."""
    scale = report.scale
    first = once(scale, trainer.validate)
    second = once(scale, trainer.validate)
    rows = sum(len(x) for x, _ in trainer.val_loader or [])
    found = f"{1e3 * second:.1f} ms for {rows} rows; the first {first:.0f} s"
    report.row("validation, compiled", found)
    compiles = torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)
    report.bar(
        "graphs of ours and of the plain GPT together", float(compiles), 3, True, ".0f"
    )


def attention_part(report: Report) -> None:
    """Raises inside PyTorch where neither kernel takes this model's queries and keys."""
    scale = report.scale
    trainer = trainer_of(scale, min(scale.batches), compiled=False)
    step = our_step(scale, trainer)
    try:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
            step(1)
        taken = 1.0
    except RuntimeError as error:
        taken = 0.0
        report.row("why not", str(error).splitlines()[0])
    report.bar("a kernel of the flash kind takes the attention", taken, 1.0, form=".0f")


def blocks_part(report: Report) -> None:
    """The loss alone, from the stream to both gradients, for each size of block."""
    scale, rows = report.scale, max(report.scale.batches)
    model, half = scale.model, getattr(torch, dtype_of(scale))
    N, V, D = rows * model.context_length, model.vocab_size, model.d_model
    h = torch.randn(N, D, device=scale.device, requires_grad=True)
    W = (0.02 * torch.randn(V, D, device=scale.device)).requires_grad_()
    y = torch.randint(V, (N,), device=scale.device)

    def chunked() -> Tensor:
        return slm.model.gpt._ChunkedCrossEntropy.apply(h, W, y, True)

    def whole() -> Tensor:
        table = F.pad(W, (0, 0, 0, -V % 128))
        return F.cross_entropy(F.linear(h, table).float(), y)

    def measure(name: str, function: Callable[[], Tensor], compiled: bool) -> None:
        h.grad = W.grad = None
        empty(scale)
        base, backend = held(scale), "inductor" if scale.cuda else "eager"
        call = torch.compile(function, backend=backend) if compiled else function

        def run() -> None:
            h.grad = W.grad = None
            with torch.autocast(scale.device.type, half):
                loss = call()
            loss.backward()

        run()
        memory = peak_of(scale, run) - base
        times = [once(scale, run) for _ in range(2 + scale.rounds)]
        found = f"{1e3 * statistics.median(times):.2f} ms, {memory / GIB:.2f} GiB"
        report.row(f"loss alone, {rows} rows, {name}", found)

    measure("whole logits, compiled", whole, True)
    for size in scale.blocks:
        with mock.patch.object(
            slm.model.config, "_loss_bytes", lambda _, n=size: (n, 2**28)
        ):
            measure(f"blocks of {size / GIB:g} GiB, compiled", chunked, True)
    with mock.patch.object(slm.model.gpt, "logit_columns", lambda V, _: V):
        measure("blocks as shipped but not aligned, compiled", chunked, True)
    for copies in (2**25, 2**28):
        with mock.patch.object(
            slm.model.config, "_loss_bytes", lambda _, n=copies: (2**30, n)
        ):
            measure(f"eager, 32-bit copies of {copies / 2**20:g} MiB", chunked, False)


def muon_part(report: Report) -> None:
    """The optimizers' own time, with gradients that are there already."""
    scale, times = report.scale, {}
    for name in ("adamw", "muon"):
        model = GPT(scale.model).to(scale.device)
        settings = TrainingConfig(optimizer=name, dtype=dtype_of(scale))
        optimizers = make_optimizers(model, settings)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)

        def step(optimizers: list[torch.optim.Optimizer] = optimizers) -> None:
            for optimizer in optimizers:
                optimizer.step()

        step()
        times[name] = statistics.median(
            once(scale, step) for _ in range(2 + scale.rounds)
        )
    found = f"AdamW {1e3 * times['adamw']:.2f} ms, Muon and AdamW {1e3 * times['muon']:.2f} ms"
    report.row("optimizer of a step", found)


def generation_part(report: Report) -> None:
    """Tokens after a prompt of 32, with the cache, by weights of two types."""
    scale = report.scale
    for dtype in (torch.float32, torch.bfloat16):
        model = GPT(scale.model).to(scale.device, dtype).eval()
        for B in (1, 32):
            prompts = [[i % scale.model.vocab_size] * 32 for i in range(B)]
            sampling = Sampling(scale.tokens, temperature=0)

            def write(
                model: GPT = model, prompts: Any = prompts, how: Any = sampling
            ) -> None:
                for _ in generate_tokens(model, prompts, how):
                    pass

            write()
            seconds = once(scale, write)
            found = f"{B * scale.tokens / seconds:,.0f} tokens/s"
            report.row(f"writing, batch {B}, weights in {str(dtype)[6:]}", found)


def checkpoint_part(report: Report) -> None:
    """How long training stands still, and the least that two other ways would take."""
    scale = report.scale
    trainer = trainer_of(scale, min(scale.batches), compiled=False)
    our_step(scale, trainer)(1)
    state = trainer.state_dict()
    tensors = [
        each
        for part in (state["model"], *state["optimizers"])
        for each in tensors_of(part)
    ]
    size = sum(each.nbytes for each in tensors)
    pinned = [
        torch.empty(t.shape, dtype=t.dtype, pin_memory=scale.cuda) for t in tensors
    ]

    def to_pinned() -> None:
        for tensor, place in zip(tensors, pinned, strict=True):
            place.copy_(tensor, non_blocking=True)

    with tempfile.TemporaryDirectory() as folder:
        with Checkpointer(Path(folder), trainer.config) as checkpointer:
            stalls = []
            for _ in range(2):
                stalls.append(once(scale, lambda: checkpointer.save(trainer)))
                checkpointer.finish()
    report.row(
        f"training stands still for a checkpoint of {size / GIB:.2f} GiB",
        f"{stalls[-1]:.2f} s",
    )
    ways = {
        "as it is copied": lambda: copy_to_cpu(tensors),
        "into page-locked memory": to_pinned,
    }
    ways["on the device"] = lambda: [tensor.clone() for tensor in tensors]
    for name, way in ways.items():
        times = [once(scale, way) for _ in range(2)]
        report.row(f"the bare copy, {name}", f"{times[-1]:.3f} s")


def tensors_of(state: Any) -> Iterator[Tensor]:
    """All tensors in dictionaries and lists."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for part in state.values() if isinstance(state, dict) else state:
            yield from tensors_of(part)


def histograms_part(report: Report) -> None:
    scale = report.scale
    model = GPT(scale.model).to(scale.device)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    times = [
        once(scale, lambda: gradient_histograms(model)) for _ in range(2 + scale.rounds)
    ]
    found = f"{1e3 * statistics.median(times):.1f} ms, once in 100 steps"
    report.row("histograms of all gradients", found)


def float16_part(report: Report) -> None:
    """Loss scaling, the T4's path: what it costs, and that the model learns its two batches."""
    scale, rows, steps = (
        report.scale,
        min(report.scale.batches),
        40 if report.scale.cuda else 4,
    )
    trainer = trainer_of(scale, rows, compiled=False, dtype="float16")
    step = our_step(scale, trainer)
    seconds = once(scale, lambda: step(steps)) / steps
    losses = [loss for loss, _ in trainer.finite_losses()]
    tokens = rows * scale.model.context_length
    told = f"{tokens / seconds:,.0f} tokens/s, eager; {trainer.skipped_steps} of {steps} steps skipped"
    report.row(
        f"float16, batch {rows}",
        f"{told}, loss scale {trainer.scaler.get_scale():,.0f}",
    )
    report.bar(
        "loss of the last step against the first", losses[-1] / losses[0], 0.98, True
    )


def determinism_part(report: Report) -> None:
    """The price of the flags under which a resumed run is equal to the last bit."""
    scale, rows = report.scale, min(report.scale.batches)
    step = our_step(scale, trainer_of(scale, rows, compiled=False))
    step(2)
    times = {}
    for flag in (False, True):
        torch.use_deterministic_algorithms(flag, warn_only=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step(1)
            times[flag] = statistics.median(
                once(scale, step) for _ in range(scale.rounds)
            )
    torch.use_deterministic_algorithms(False)
    found = f"{times[True] / times[False]:.2f} times the seconds, eager, batch {rows}"
    report.row("deterministic algorithms", found)


def resume_part(report: Report) -> None:
    """A run on stories that is killed and goes on, against one that is not, all in processes of their own."""
    scale = report.scale
    with tempfile.TemporaryDirectory() as folder:
        cache = str(Path(folder, "cache"))
        whole, killed = str(Path(folder, "whole")), str(Path(folder, "killed"))
        first = child(scale, whole, cache, 0)
        if first.wait():
            raise RuntimeError("the run that is not killed has failed")
        dies = child(scale, killed, cache, scale.run_steps * 2 // 3)
        if dies.wait() != -signal.SIGKILL:
            raise RuntimeError("the run that is killed has ended in another way")
        again = child(scale, killed, cache, 0)
        if again.wait():
            raise RuntimeError("the run that goes on has failed")
        weights = [
            Path(run, "model/model.safetensors").read_bytes() for run in (whole, killed)
        ]
        rows = [
            [row for row in read_metrics(run) if "train/loss" in row]
            for run in (whole, killed)
        ]
    losses = [[(row["step"], row["train/loss"]) for row in each] for each in rows]
    flags = "use_deterministic_algorithms(True, warn_only=True), CUBLAS_WORKSPACE_CONFIG=:4096:8"
    report.row("flags of the runs", flags)
    report.bar(
        "weights after the kill are the same bytes",
        float(weights[0] == weights[1]),
        1,
        form=".0f",
    )
    report.bar("and all losses", float(losses[0] == losses[1]), 1, form=".0f")


def child(
    scale: Scale, folder: str, cache: str, dies_at: int
) -> "subprocess.Popen[bytes]":
    """A process that trains in that folder and, if told so, kills itself at a step."""
    task = json.dumps([folder, cache, scale.run_steps, dies_at])
    command = [sys.executable, __file__, "--child", task]
    set_here = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "WANDB_MODE": "disabled"}
    set_here["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), os.environ.get("PYTHONPATH", "")]
    )
    return subprocess.Popen(
        command, env=os.environ | set_here, stdout=subprocess.DEVNULL
    )


class Kill(Observer):
    """Ends its own process at a step as a power failure would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Any) -> None:
        if trainer.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run_child(folder: str, cache: str, steps: int, dies_at: int) -> None:
    """A short run on stories, compiled on a GPU, a checkpoint at every fifth of it."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    warnings.filterwarnings("ignore")
    often, cuda = steps // 5, torch.cuda.is_available()
    settings = {"batch_size": 16 if cuda else 2, "max_steps": steps, "threads": 1}
    settings["warmup_steps"] = 5
    settings |= dict.fromkeys(("eval_every", "checkpoint_every"), often)
    settings |= {"eval_batches": 2, "sample_tokens": 0}
    data = {
        "dataset": "stories",
        "tokenizer": "stories",
        "cache_dir": cache,
        "max_documents": 400,
    }
    width = 128 if cuda else 16
    shape = dict(vocab_size=1024, context_length=128, n_layers=2, n_heads=2)
    shape |= dict(d_model=width, d_ff=4 * width)
    config = make_config({"model": shape, "training": settings, "data": data})
    made = slm.training.run.make_observers
    with mock.patch.object(
        slm.training.run, "make_observers", lambda *told: [*made(*told), Kill(dies_at)]
    ):
        train(config, folder, verbose=False)


# Name, seconds that it usually takes on an H200, and what it runs
PARTS: dict[str, tuple[int, Callable[[Report], None]]] = {
    "step-32": (140, step_32_part),
    "step-8": (100, step_8_part),
    "eager": (12, eager_part),
    "attention": (3, attention_part),
    "float16": (6, float16_part),
    "muon": (4, muon_part),
    "histograms": (3, histograms_part),
    "generation": (10, generation_part),
    "checkpoint": (20, checkpoint_part),
    "determinism": (6, determinism_part),
    "blocks": (50, blocks_part),
    "resume": (60, resume_part),
}


@contextlib.contextmanager
def recorded(report: Report) -> Iterator[None]:
    """What goes wrong in one part is told and costs no other; the script then fails at its end."""
    try:
        yield
    except torch.OutOfMemoryError:
        report.row("the rest", "", "", "not measured: it does not fit into the memory")
    except Exception as error:
        traceback.print_exc()
        report.failed = True
        report.row(
            "the rest", f"{type(error).__name__}: {error}".splitlines()[0], "", "FAILED"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=7.0, help="what would last longer is left out"
    )
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--tiny", action="store_true", help="every line, on a CPU")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    started = time.perf_counter()
    if arguments.child:
        return run_child(*json.loads(arguments.child))
    if not arguments.tiny and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here; --tiny runs every line on a CPU.")
    scale = TINY if arguments.tiny else FULL
    name = torch.cuda.get_device_name() if scale.cuda else "CPU, tiny"
    head = f"{name}; {machine()}; {dtype_of(scale)}"
    only = f"-{arguments.only}" if arguments.only else ""
    card = name.removeprefix("NVIDIA ").replace(" ", "-")
    path = arguments.folder / f"gpu-{card}{only}.md" if scale.cuda else None
    report = Report(scale, path)
    print(head + "\n\n" + "\n".join(report.lines), flush=True)
    for part, (usual, run) in PARTS.items():
        if arguments.only not in (None, part):
            continue
        report.part, before = part, time.perf_counter()
        left = 60 * arguments.minutes - (before - started)
        if scale.cuda and left < usual:
            report.row(
                "all of it", "", "", f"not measured: {left:.0f} s left of {usual}"
            )
            continue
        empty(scale)
        torch._dynamo.utils.counters.clear()
        with recorded(report):
            run(report)
        report.row("seconds of this part", f"{time.perf_counter() - before:.0f}")
        report.write(head)
    report.part = "ranks"
    alone = "not measured: two processes on one GPU share it, and NCCL is not used between them"
    report.row("several GPUs", "", "", alone)
    report.note(f"\n{time.perf_counter() - started:.0f} s in all, imports left out.")
    report.write(head)
    if report.failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
