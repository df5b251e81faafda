"""Checkpoints that are whole or not there, and that are checked before they are used.

Exported from chapters/06_trainer.py; edit it there.
"""

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
