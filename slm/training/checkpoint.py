"""Checkpoints that are whole or not there, and that are checked before they are used.

    path, state = load_latest("runs/stories_cpu/checkpoints")

Exported from chapters/12_checkpoints.py; edit it there.
"""

import contextlib
import pickle
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any, BinaryIO

import torch

from slm.data.batches import TokenLoader
from slm.errors import SlmError
from slm.files import has_kinds, writing
from slm.hardware import gather_from_ranks, rank, world_size
from slm.training.config import RunConfig, changed_keys
from slm.training.folder import checkpoint_path, list_checkpoints, step_of
from slm.training.metrics import Observer
from slm.training.trainer import Trainer

# A file that survives the power failure

# It stands in every file; another layout of the state gets another number.
FORMAT = "slm checkpoint 3"


# what PyTorch raises when it reads, or is given, another thing than it expects
MISFITS: tuple[type[Exception], ...] = (RuntimeError, ValueError, KeyError, TypeError)
MISFITS += (AttributeError, IndexError, EOFError)


class CheckpointError(SlmError):
    """A checkpoint is damaged or of another kind; the message names the file."""


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint: a reader sees the old file or the whole new one.

    Args:
        path: Where it should be; its folder is made.
        state: Tensors, numbers, strings, and dictionaries and lists of them.

    Raises:
        OSError: The disk is full or not writable; the file at `path` is as it was.
    """
    path = Path(path)
    with writing(path) as part:
        try:
            torch.save({"format": FORMAT, "state": dict(state)}, part)
        except RuntimeError as error:  # how torch reports a write that failed
            free = shutil.disk_usage(path.parent).free
            why = f"{free:,} bytes of the disk are free"  # its own words say less
            raise OSError(f"{path} could not be written; {why}") from error
        with open(part, "r+b") as file:
            file.write(_checksum(file, part.stat().st_size))


def _checksum(file: BinaryIO, size: int) -> bytes:
    """The CRC-32 of a file's first `size` bytes; its position is then behind them."""
    checksum, block = 0, 1 << 22
    file.seek(0)
    for start in range(0, size, block):
        checksum = zlib.crc32(file.read(min(block, size - start)), checksum)
    return checksum.to_bytes(4, "little")


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, after a look at its checksum; nothing in it can run code.

    Returns:
        What was saved. Its tensors are on the CPU and are mapped from the file: copy
        those that you keep.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is empty, cut short, altered, or not a checkpoint of ours.
    """
    path = Path(path)
    with open(path, "rb") as file:
        size = path.stat().st_size
        if size <= 4 or _checksum(file, size - 4) != file.read():
            wrong = "is cut short, altered or not a checkpoint"
            raise CheckpointError(f"{path} {wrong}: the checksum at its end is wrong")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        what = "something besides tensors, numbers and texts; it is not loaded"
        raise CheckpointError(f"{path} holds {what}") from error
    except MISFITS as error:  # another format of PyTorch's, or none
        raise CheckpointError(f"{path} is not a checkpoint of ours") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        old = f" ({found}, not {FORMAT})" if found else ""
        cure = "go on with the version that wrote it, or start again in another folder"
        told = f"{path} was not written by this version of slm{old}; {cure}"
        raise CheckpointError(told)
    state: dict[str, Any] = content.get("state")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is not a checkpoint of ours: it has no state")
    return state


# The newest that can be used


def load_latest(
    folder: str | Path, mismatch: Callable[[dict[str, Any]], str] = lambda state: ""
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that can be used, with its path; None if there are none.

    One that can't is named on standard output, and the one before it is tried.

    Args:
        folder: Where the checkpoints are.
        mismatch: Says why a checkpoint that can be read can't be used, in words that
            follow its name; "" if it can. It may use it, to find out.

    Raises:
        CheckpointError: There are checkpoints and none of them can be used; with the
            reason for the newest.
    """
    problems: list[str] = []
    for path in list_checkpoints(folder):
        try:
            state = load_checkpoint(path)
        except FileNotFoundError:
            if not path.is_symlink():  # a run that goes on has just replaced it
                return load_latest(folder, mismatch)
            problems.append(f"{path} is a link to a file that is not there")
        except OSError as error:
            problems.append(f"{path} can't be read: {error.strerror}")
        except CheckpointError as error:
            problems.append(str(error))
        else:
            if not (problem := mismatch(state)):
                return path, state
            problems.append(f"{path} {problem}")
        print(f"{problems[-1]}; trying the one before")
    if problems:
        count = f"none of the {len(problems)} checkpoints in {folder} can be used"
        cure = "move them away to start again"
        raise CheckpointError(f"{count} ({problems[0]}); {cure}")
    return None


PARTS: dict[str, Any] = {"config": dict, "trainer": dict, "observers": dict}
TRAINER: dict[str, Any] = {"step": int, "tokens_seen": int, "seconds": float}
TRAINER |= {"skipped_steps": int, "model": dict, "optimizers": list, "scaler": dict}
TRAINER |= {"rng_state": list, "pending": list, "dtype": str, "data": dict | str | None}


def misfit(take_over: Callable[..., object], *state: Any) -> str:
    """Why a state that is taken over doesn't fit, in words; "" if it does."""
    try:
        take_over(*state)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # the device's fault, not the file's
    except MISFITS as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        return f"does not fit this model and optimizer: {why}"
    return ""


def is_finite(state: Any) -> bool:
    """Whether all numbers in the tensors of dictionaries and lists are finite."""
    if isinstance(state, torch.Tensor):
        return bool(state.isfinite().all())
    if isinstance(state, Mapping):
        return all(map(is_finite, state.values()))
    return not isinstance(state, list | tuple) or all(map(is_finite, state))


def data_mismatch(state: Mapping[str, Any], here: Mapping[str, str]) -> str:
    """Whether a trainer's state was reached with another tokenizer or text, in words.

    What only one of the two knows is not compared.
    """
    data = state["data"]
    if isinstance(data, str):  # of an earlier version
        data = {"training text": data}
    for name, before in (data or {}).items():
        if (now := here.get(name, before)) != before:
            return f"belongs to a run with another {name} ({before}, here {now})"
    return ""


def data_fingerprints(trainer: Trainer) -> dict[str, str]:
    """Hashes of tokenizer and texts, where the batches come from token files."""
    found, names = {}, ("training text", "validation text")
    loaders = trainer.train_loader, trainer.val_loader
    for name, loader in zip(names, loaders, strict=True):
        if about := getattr(getattr(loader, "dataset", None), "about", None):
            found["tokenizer"] = about["tokenizer"]["fingerprint"]
            found[name] = about["tokens_sha256"][:16]
    return found


def trainer_mismatch(state: Mapping[str, Any], trainer: Trainer) -> str:
    """Why a trainer's state can't be continued by this one, in words; "" if it can."""
    if (before := state["dtype"]) != str(trainer.dtype):
        both = f"{before}, here {trainer.dtype}"
        cure = f"training.dtype={before.removeprefix('torch.')} goes on with it"
        return f"belongs to a run with another precision ({both}; {cure})"
    if other := data_mismatch(state, data_fingerprints(trainer)):
        return other
    began, here = state.get("processes", len(state["rng_state"])), world_size()
    if began == here:
        return ""
    if not isinstance(trainer.train_loader, TokenLoader):
        only = f"only a TokenLoader's batches can be shared by {here}"
        return f"was begun by {began} processes; {only}"
    rows = trainer.batch_size * trainer.training.gradient_accumulation_steps * began
    few = f"was begun by {began} processes, whose steps have {rows} rows"
    return f"{few}; {here} can't share them equally" if rows % here else ""


def config_mismatch(state: Mapping[str, Any], config: RunConfig) -> str:
    """Why a checkpoint's state is not one of a run with this config; "" if it is."""
    if not (has_kinds(state, PARTS) and has_kinds(state["trainer"], TRAINER)):
        return "was not written by a trainer"
    try:
        changed = "; ".join(changed_keys(state["config"], config.as_dict()))
    except MISFITS:
        return "holds a config that is none"
    if changed:
        return f"belongs to a run with another config: {changed}"
    trainer, last = state["trainer"], config.training.max_steps
    counts = [trainer[key] for key in ("tokens_seen", "seconds", "skipped_steps")]
    sound = all(0 <= n < float("inf") for n in counts) and 0 <= trainer["step"] <= last
    sound = sound and trainer.get("processes", 1) in range(1, 10**6)
    weights = trainer["model"].values()
    sound = sound and all(torch.is_tensor(w) and w.is_floating_point() for w in weights)
    if not (sound and trainer["rng_state"] and is_finite(trainer)):
        return "holds numbers that are not finite, or not those of a trainer"
    return ""


# Saving beside the training


def named_observers(observers: Iterable[Observer]) -> dict[str, Observer]:
    """Observers by the names of their states: the class's, from the second numbered."""
    named: dict[str, Observer] = {}
    seen: Counter[str] = Counter()
    for observer in observers:
        name = type(observer).__name__
        seen[name] += 1
        named[name if seen[name] == 1 else f"{name} {seen[name]}"] = observer
    return named


def copy_to_cpu(state: Any) -> Any:
    """The same dictionaries and lists with a copy of every tensor, on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: copy_to_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copy_to_cpu(value) for value in state)
    return state


def prune_checkpoints(
    folder: str | Path, keep: int, step: int, best_step: int | None
) -> None:
    """Of the checkpoints up to `step`, delete all but the newest `keep` and the best.

    Later ones are left alone: a run that has come to `step` has passed them over, or
    its user put them there.
    """
    so_far = [path for path in list_checkpoints(folder) if step_of(path) <= step]
    for path in so_far[keep:]:
        if step_of(path) != best_step:
            path.unlink()


class Checkpointer(Observer):
    """Saves a run every `checkpoint_every` steps and when it stops, from a thread.

    Use it in a `with` block: at its end, whatever ended it, nobody is writing.

    Args:
        folder: Where the checkpoints are.
        config: The run; it is kept in each of them.
        on_checkpoint: Called when one is safely on disk, from the thread that wrote it.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        on_checkpoint: Callable[[], None] | None = None,
    ) -> None:
        self.folder, self.config, self.on_checkpoint = folder, config, on_checkpoint
        self.best: tuple[float, int] | None = None  # validation loss and step
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None  # the checkpoint that it is at

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best and list(self.best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        best = state["best"]
        if best and not has_kinds(dict(enumerate(best)), {0: float, 1: int}):
            raise ValueError("its best loss and step are no numbers")
        self.best = best and (best[0], best[1])

    def on_step(self, trainer: Any) -> None:
        """Save if it is time, and raise what went wrong with the one before."""
        if self._writing is not None and self._writing.done():
            self.finish()
        due = trainer.is_due(self.config.training.checkpoint_every)
        loss = trainer.val_loss  # of this step if it is due: a checkpoint is validated
        if due and loss is not None and (self.best is None or loss < self.best[0]):
            self.best = loss, trainer.step
        if due or trainer.stopping:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Copy the state of this step; a thread writes it, and deletes older ones.

        Raises:
            SlmError: A loss is not finite, so this state would be worthless.
            CheckpointError: The one before could not be written.
        """
        observers = named_observers(trainer.observers).items()
        told = {name: each.state_dict() for name, each in observers}
        state = {
            "config": self.config.as_dict(),
            "trainer": trainer.state_dict() | {"data": data_fingerprints(trainer)},
            "observers": told,
        }
        if rank() != 0:
            return
        self.finish()
        self._writing = self._writer.submit(self._write, copy_to_cpu(state), self.best)

    def _write(self, state: dict[str, Any], best: tuple[float, int] | None) -> None:
        step = state["trainer"]["step"]
        if not is_finite(state["trainer"]):  # the step before the stop has diverged
            told = f"step {step} was not saved: its numbers are not finite"
            raise CheckpointError(f"{told}; {self.last_good()}")
        try:
            save_checkpoint(checkpoint_path(self.folder, step), state)
        except OSError as error:
            told = f"step {step} was not saved: {error}; {self.last_good()}"
            raise CheckpointError(told, retry=True) from error
        keep = self.config.training.keep_checkpoints
        try:
            prune_checkpoints(self.folder, keep, step, best[1] if best else None)
        except OSError as error:
            kept = "but an older checkpoint could not be deleted"
            print(f"step {step:,} is saved, {kept}: {error}")
        if self.on_checkpoint:
            self.on_checkpoint()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if one is.

        Raises:
            CheckpointError: It could not be written.
        """
        if self._writing is not None:
            # interrupted here, it still knows that there is something to wait for
            wait_for([self._writing])
            written, self._writing = self._writing, None
            written.result()

    def on_end(self) -> None:
        self.finish()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *error: object) -> None:
        """Wait; another error is on its way already, so what went wrong is printed."""
        if self._writing is not None and (failure := self._writing.exception()):
            print(failure)
        self._writer.shutdown()

    def recovery(self) -> str:
        if self._writing is not None:
            wait_for([self._writing])
        return self.last_good()

    def last_good(self) -> str:
        """Which checkpoint a run that has failed can go on from, in words."""
        for path in list_checkpoints(self.folder):
            with contextlib.suppress(CheckpointError, OSError):  # a damaged one
                if not config_mismatch(load_checkpoint(path), self.config):
                    return f"the last good checkpoint is {path}"
        return "there is no checkpoint yet"

    def resume(self, trainer: Trainer) -> Path | None:
        """Go on from the newest checkpoint of this run; None if there is none at all.

        Raises:
            CheckpointError: There are checkpoints, but all are damaged, or of another
                config, precision or text.
        """

        def mismatch(state: dict[str, Any]) -> str:
            foreign = config_mismatch(state, self.config)
            foreign = foreign or trainer_mismatch(state["trainer"], trainer)
            return foreign or misfit(self._take_over, state, trainer)

        found = load_latest(self.folder, mismatch)
        steps = gather_from_ranks(found and trainer.step)
        if len(set(steps)) > 1:
            read = ", ".join(map(str, steps))
            raise CheckpointError(f"the processes read checkpoints of steps {read}")
        if rank() == 0:  # what a killed process left
            for part in self.folder.glob("step_[0-9]*.pt.[0-9]*.tmp"):
                part.unlink()
        if found is None:
            return None
        path, state = found
        before, now = len(state["trainer"]["rng_state"]), world_size()
        if before != now and trainer.verbose:
            same = (
                "each step keeps its rows, but sums are rounded in another order, and"
            )
            other = f"{same} dropout, if any, draws others: not equal to the last bit"
            print(f"{path} was written by {before} processes, here are {now}; {other}")
        return path

    def _take_over(self, state: dict[str, Any], trainer: Trainer) -> None:
        """Give trainer and observers what is theirs."""
        trainer.load_state_dict(state["trainer"])
        for optimizer in trainer.optimizers:
            check_averages(optimizer, trainer.step > trainer.skipped_steps)
        for name, observer in named_observers(trainer.observers).items():
            if name in state["observers"]:
                observer.load_state_dict(state["observers"][name])


# what each optimizer keeps of a weight: a count of steps, and averages in its shape
AVERAGES = {"AdamW": ("step", "exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}


def check_averages(optimizer: torch.optim.Optimizer, begun: bool) -> None:
    """Refuse averages that an optimizer would not have made of its weights itself.

    Args:
        optimizer: One that a state was loaded into.
        begun: Whether it has taken a step; before that it has none.

    Raises:
        ValueError: Some are missing, are others, or have another shape.
    """
    known = AVERAGES[type(optimizer).__name__] if begun else ()
    settings = optimizer.defaults.keys() - {"differentiable"}  # PyTorch adds it itself
    for group in optimizer.param_groups:
        if missing := settings - group.keys():
            raise ValueError(f"a group of weights has no {min(missing)}")
        for weight in group["params"]:
            kept = optimizer.state.get(weight, {})
            found = {name: getattr(each, "shape", None) for name, each in kept.items()}
            shapes = {name: () if name == "step" else weight.shape for name in known}
            if found != shapes:
                raise ValueError(f"the averages of a weight are {found}, not {shapes}")
