"""The trainer: a run from its config, which can be killed at any moment and goes on exactly where it was.

Exported from chapters/06_trainer.py; edit it there.
"""

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

    def finish_saving(self) -> None:
        """Wait for the checkpoint that is being written, if one is.

        Raises:
            CheckpointError: It could not be written, because the disk is full or not writable.
        """
        if self._writing is not None:
            wait_for([self._writing])  # interrupted here, it still knows that there is something to wait for
            written, self._writing = self._writing, None
            written.result()

    def _end_saving(self) -> None:
        """Wait for the writing, and say what went wrong with it where another error is on its way already."""
        if self._writing is not None and (error := self._writing.exception()) is not None:
            print(error)

    def resume(self) -> Path | None:
        """Continue from the newest checkpoint of this run that can be used; its path, or None if there is none at all.

        Raises:
            CheckpointError: There are checkpoints, but all are damaged, or of another config, precision or text.
        """
        if self.run_dir is None:
            return None
        metrics, found = self.run_dir / "metrics.jsonl", load_latest(self.run_dir / "checkpoints", self._unfit)
        if found is None:
            if (
                self.rank == 0 and metrics.exists()
            ):  # rows of a start without a checkpoint, or whose checkpoints are moved
                os.replace(metrics, self.run_dir / "metrics.before.jsonl")
            return None
        path, state = found
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(copy_to_cpu(saved))  # it keeps what it is given, and the file may go
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{path} does not fit this model and optimizer: {str(error).splitlines()[0]}"
            ) from error
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

    def _data(self) -> str | None:
        """A hash of the training tokens, where they come from a token file."""
        dataset = getattr(self.train_loader, "dataset", None)
        return dataset.about["tokens_sha256"][:16] if isinstance(dataset, TokenDataset) else None

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

    def _diverged(self, what: str, step: int) -> TrainingDiverged:
        """The error that ends a run; it names the last good checkpoint, once that one is written."""
        if self._writing is not None:
            wait_for([self._writing])
        cure = "another run with a lower training.learning_rate or a longer warm-up is the usual cure"
        rate = learning_rate(min(step, self.training.max_steps - 1), self.training)
        return TrainingDiverged(f"{what} at step {step} (learning rate {rate:.2g}); {_last_good(self.run_dir)}; {cure}")

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

    def _tick(self) -> None:
        """Add the time since the last tick to the run's seconds. Work that a kill undoes is not counted."""
        now = time.perf_counter()
        self.seconds += now - self._clock
        self._clock = now

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


def choose_device() -> torch.device:
    """This process's CUDA device, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


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


def _for_wandb(value: Any) -> Any:
    """A histogram as Weights & Biases draws it; everything else as it is."""
    if not isinstance(value, dict):
        return value
    import numpy as np
    import wandb

    edges = np.linspace(value["low"], value["high"], len(value["counts"]) + 1)
    return wandb.Histogram(np_histogram=(np.array(value["counts"]), edges))


def _last_good(run_dir: Path | None) -> str:
    """Which checkpoint a run that has failed can go on from, for its error message."""
    for path in [] if run_dir is None else list_checkpoints(run_dir / "checkpoints"):
        with contextlib.suppress(CheckpointError, OSError):  # a damaged one
            load_checkpoint(path)
            return f"the last good checkpoint is {path}"
    return "there is no checkpoint yet"


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


def _endless(loader: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's batches, started again whenever they end."""
    while True:
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise ValueError("the train_loader is empty; it must give at least one batch (x, y)")


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
