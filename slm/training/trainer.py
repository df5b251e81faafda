"""The trainer: batches and a model in, a trained model and its metrics out.

    Trainer(model, train_loader, val_loader, {"training": {"max_steps": 100}}).train()

Exported from chapters/11_trainer.py; edit it there.
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
from slm.errors import SlmError
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
from slm.model.config import IGNORE, count_flops_per_token
from slm.model.gpt import GPT
from slm.training.config import RunConfig, make_config
from slm.training.metrics import Observer, WandbLogger, gradient_histograms
from slm.training.optim import learning_rate, make_optimizers

# The trainer


class LossModule(nn.Module):
    """A model's loss as a module's forward, as DDP and torch.compile take it."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.model.loss(x, y)


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

    def forward(self, x: Tensor, y: Tensor, last: bool) -> Tensor:
        """The mean loss of a micro-batch; after the last, gradients travel."""
        x, y = (part.to(self.device, non_blocking=True) for part in (x, y))
        alone, half = last or world_size() == 1, self.dtype != torch.float32
        sync = contextlib.nullcontext() if alone else self.loss.no_sync()
        with sync, torch.autocast(self.device.type, self.dtype, enabled=half):
            loss: Tensor = self.loss(x, y)
        return loss

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

    def is_due(self, *every: int) -> bool:
        """Whether what is done every so many steps, and at the end, is due."""
        last = self.step == self.training.max_steps
        return last or any(self.step % n == 0 for n in every)

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

    def tell(self, moment: str, *arguments: Any) -> None:
        """Call this method of every observer."""
        for observer in self.observers:
            getattr(observer, moment)(*arguments)

    def log(self, row: dict[str, Any]) -> None:
        """Add a row to the metrics, and tell the observers."""
        now = {"step": self.step, "seconds": round(self.seconds, 3)}
        row = {**now, **row, "train/tokens_seen": self.tokens_seen}
        self.tell("on_row", row)
        self.metrics.append(row)

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

    def diverged(self, what: str, step: int) -> SlmError:
        """The error that ends a run; observers say what it can go on from."""
        rate = learning_rate(min(step, self.training.max_steps - 1), self.training)
        told = [f"{what} at step {step} (learning rate {rate:.2g})"]
        told += filter(None, (observer.recovery() for observer in self.observers))
        cure = "another run with a lower training.learning_rate or a longer warm-up"
        return SlmError("; ".join([*told, f"{cure} is the usual cure"]))

    def count_seconds(self) -> None:
        """Add the time since the last call to the run's seconds."""
        now = time.perf_counter()
        self.seconds += now - self._clock
        self._clock = now

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


# Validation


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


# Rows


def shown(row: Mapping[str, Any]) -> dict[str, str]:
    """What the progress bar shows of a training row."""
    formats = {"train/loss": ".3f", "perf/tokens_per_s": ",.0f", "perf/mfu": ".0%"}
    formats["cost/usd"] = ".2f"
    names = ("loss", "tokens/s", "MFU", "$")
    pairs = zip(names, formats.items(), strict=True)
    return {name: f"{row[key]:{form}}" for name, (key, form) in pairs if key in row}
