# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/training/folder.py
#     - slm/training/checkpoint.py
# ---

# %% [markdown]
# # Checkpoints
#
# *An engine room: it can be skipped at first reading.* A file that holds a whole run,
# is there entirely or not at all, and is checked before it is used. You kill processes
# while they write, damage files by a bit, and export the names inside a run folder,
# `save_checkpoint`, `load_latest` and `Checkpointer`.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% tags=["hide-input"]
#| export
"""The names inside a run folder, and what can be read there without PyTorch.

    report("runs/stories_cpu")["val_loss"]
"""

import ast
import contextlib
import hashlib
import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any

from slm.errors import SlmError
from slm.files import has_kinds, json_object

# %% tags=["hide-input"]
#| export training/checkpoint
"""Checkpoints that are whole or not there, and that are checked before they are used.

    path, state = load_latest("runs/stories_cpu/checkpoints")
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

# %% [markdown]
# ## A folder that explains itself
#
# A run leaves a folder. Whoever opens it later, a person, the command line, or a
# program in the cloud that has no PyTorch, must find the same things under the same
# names. So the names stand in one class and nowhere else. One of them changes: rows of
# a start that came to no checkpoint are moved aside, each time under a name that is
# free, since nobody can make them again. Whether a run is finished is a question to the
# folder, too: it is, when there is a `model/`.


# %% mystnb={"code_prompt_show": "RunFolder: a name for each file and folder of a run (33 lines)"} tags=["hide-input"]
#| export
class RunFolder:
    """Where things lie in the folder of a run; none of them need be there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"  # the whole config, with every default
        self.metrics = path / "metrics.jsonl"  # a row for each look at the run
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"  # texts that the model wrote on its way
        self.environment = path / "environment.json"  # what it was computed with
        self.model = path / "model"  # of a finished run; there is none before
        self.unfinished_model = path / "model.part"  # while it is written
        self.attempts = path / "attempts.json"  # what each in the cloud cost
        self.launched = path / "launched.json"  # enough to find it in the cloud
        self.lock = path / ".lock"  # held by the process that trains here

    @property
    def earlier_metrics(self) -> Path:
        """A free name for the rows of a start that left no checkpoint."""
        first = ["metrics.before.jsonl"]
        later = (f"metrics.before.{n}.jsonl" for n in itertools.count(2))
        names = map(self.path.joinpath, itertools.chain(first, later))
        return next(path for path in names if not path.exists())

    @property
    def steps_done(self) -> int:
        """The step of the newest checkpoint, from which a run goes on; 0 if none."""
        return max(map(step_of, list_checkpoints(self.checkpoints)), default=0)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.model.is_dir()


# %% [markdown]
# A checkpoint's name is its step, in at least eight digits, so that a listing shows
# them in order for a long while; the code compares numbers. Anything else in the folder
# belongs to its user. Two programs that answer "which is the newest?" by two rules
# would one day name different ones; there is one rule:


# %%
#| export
CHECKPOINT = re.compile(r"step_[0-9]{8,18}\.pt")


def checkpoint_path(folder: str | Path, step: int) -> Path:
    """Where the checkpoint of a step lies in a folder of checkpoints."""
    return Path(folder) / f"step_{step:08d}.pt"


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a folder, newest first; other names are the user's own."""
    found = [p for p in Path(folder).glob("step_*.pt") if CHECKPOINT.fullmatch(p.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: str | Path) -> int:
    """The step that a checkpoint's name tells."""
    return int(Path(checkpoint).stem.removeprefix("step_"))


# %% tags=["nbval-check-output"]
import tempfile
from pathlib import Path

from slm.training.folder import list_checkpoints

with tempfile.TemporaryDirectory() as folder:
    for name in ("step_00000800.pt", "step_123456789.pt", "step_5.pt", "best.pt"):
        Path(folder, name).touch()
    print([path.name for path in list_checkpoints(folder)])


# %% [markdown]
# ## Reading a run without PyTorch
#
# Rows are appended, so a crash can cut the last one short: it is left out. A damaged
# line in the middle cannot come from a crash, so it is reported as an error.


# %%
#| export
# what holds a number in a row
NUMBERS = ("step", "train/", "val/", "perf/", "cost/", "model/", "seconds")


def is_number(value: Any) -> bool:
    """Whether what was read from JSON is a number that can be computed with."""
    return type(value) is float or type(value) is int and abs(value) < 2**63


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The rows of a run folder's metrics, oldest first; none if there is no such file.

    A last line that is still being written, or that a crash cut short, is left out.

    Raises:
        SlmError: Another line is damaged.
    """
    path = RunFolder(Path(run_dir)).metrics
    if not path.exists():
        return []
    rows: list[Any] = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        row = json_object(line, {"step": int})
        values = [v for k, v in (row or {}).items() if k.startswith(NUMBERS)]
        if row is None or not all(v is None or is_number(v) for v in values):
            damaged = "is not a row of metrics: mend or remove it"
            raise SlmError(f"{path}, line {number} {damaged}")
        rows.append(row)
    return rows


# %% [markdown]
# A row that can be read may still be wrong: somebody has edited the file, or two runs
# wrote into one. Whoever draws a curve or sends a report would fail on it later, with a
# traceback and far from the cause. So it is asked once, at the reading, that numbers
# are numbers.
#
# A run in the cloud keeps a second file, what each of its attempts cost, and a note of
# where it was launched. Each is written as a whole, so nothing of it may be damaged;
# what is usually wrong is that a copy was cut short.


# %%
#| export
def read_attempts(run_dir: str | Path) -> list[dict[str, Any]]:
    """What each attempt in the cloud cost, oldest first; none if there is no such file.

    Raises:
        SlmError: The file is damaged, or a copy that was not read whole.
    """
    path = RunFolder(Path(run_dir)).attempts
    return parse_attempts(path.read_bytes(), path) if path.exists() else []


def read_launched(run_dir: str | Path) -> list[dict[str, Any]]:
    """What is noted here of a run's launch in the cloud, if anything.

    Raises:
        SlmError: The note is damaged.
    """
    note, told = RunFolder(Path(run_dir)).launched, ("app_id", "call_id", "run")
    if not note.exists():
        return []
    found = json_object(note.read_bytes(), dict.fromkeys(told, str))
    if found is None or not found.keys() <= {*told, "result"}:
        raise SlmError(f"{note} is damaged: remove it")
    return [found]


def parse_attempts(content: bytes, source: object) -> list[dict[str, Any]]:
    """The attempts that a file holds; the errors of `read_attempts`."""
    attempts: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        attempts = json.loads(content)
    if not isinstance(attempts, list) or not all(map(_is_attempt, attempts)):
        cure = "if it is a copy, ask for it again; else mend or remove it"
        raise SlmError(f"{source} is not whole: {cure}")
    return attempts


# what a meter notes of an attempt; what an earlier version did not note is left out
_NOTED: dict[str, Any] = dict.fromkeys(("call", "app", "problem", "error"), str)
_NOTED |= {"seconds": int | float, "dollars": int | float, "from": list, "to": list}
_NOTED |= {"budget": int | float | None}


def _is_attempt(attempt: Any) -> bool:
    """Whether this is what a meter notes of an attempt."""
    known = isinstance(attempt, dict) and {k: _NOTED[k] for k in _NOTED if k in attempt}
    if known is False or not has_kinds(attempt, known):
        return False
    spent = [attempt.get(key) or 0 for key in ("seconds", "dollars", "budget")]
    names = [*attempt.get("from", []), *attempt.get("to", [])]
    named = all(CHECKPOINT.fullmatch(str(name)) for name in names)
    return named and all(0 <= n < 2**63 for n in spent)  # nan is not


# %% [markdown]
# `report` sums a folder up, for somebody who asks how a run is doing; the cloud sends
# its answer over the network. Each figure is the newest that was written: the last row
# may be one of training, which has no validation loss.
#
# How fast was it? The rows of the last attempt that came forward say it, but not its
# first one, in which the model was compiled. The slowest and the fastest twentieth of
# the others are left out; what lies between is what to expect of the steps to come.


# %%
#| export
def speeds(rows: list[dict[str, Any]]) -> tuple[float, float] | None:
    """Tokens per second, slow and fast end, of training rows; None of fewer than four.

    The first row, in which the model was compiled, does not count, nor do the slowest
    and the fastest twentieth of the others.
    """
    found = [row["perf/tokens_per_s"] for row in rows if row.get("perf/tokens_per_s")]
    ordered = sorted(found[1:])
    cut = len(ordered) // 20
    return (ordered[cut], ordered[-1 - cut]) if len(ordered) > 2 else None


def report(run_dir: str | Path) -> dict[str, Any]:
    """What a run came to: how far it is, what ended it, how good it is, what it cost.

    "step" is the last one in the metrics. A run goes on from "checkpoint", which may be
    behind.
    """
    folder, rows = RunFolder(Path(run_dir)), read_metrics(run_dir)
    attempts = read_attempts(run_dir)
    last = attempts[-1] if attempts else {}
    # a copy of the folder may be without its checkpoints
    saved = [*list_checkpoints(folder.checkpoints)[:1], *last.get("to", [])]
    forward = [each for each in attempts if each.get("from") != each.get("to")]
    begun = [step_of(name) for each in forward[-1:] for name in each.get("from", [])]
    last_rows = [row for row in rows if row["step"] > sum(begun)]

    def newest(key: str) -> Any:
        values = [row[key] for row in rows if row.get(key) is not None]
        return values[-1] if values else None

    return {
        "run": folder.path.name,
        "finished": folder.finished,
        "problem": last.get("problem", ""),
        "step": rows[-1]["step"] if rows else 0,
        "checkpoint": step_of(saved[0]) if saved else 0,
        "val_loss": newest("val/loss"),
        "mfu": newest("perf/mfu"),
        "tokens_per_s": speeds(last_rows),
        "attempts": len(attempts),
        "seconds": sum(attempt.get("seconds", 0) for attempt in attempts),
        "dollars": sum(attempt.get("dollars", 0) for attempt in attempts),
        "budget": last.get("budget"),
    }


# %% [markdown]
# What made the model? Two hashes answer. One is of the code, and not of the whole
# package: a new line in a help text changes no run. What counts is the module that
# trains and all that it imports, directly or through others, and that is read from the
# import lines themselves; a list kept by hand would miss the next module. The other is
# of the tokenizer, whose ids mean nothing without it.


# %%
#| export
def modules_of_a_run() -> dict[str, bytes]:
    """The package's modules that decide what a run computes, with their source.

    `train`'s own, and all that it imports, directly or through others.
    """
    root = SlmError.__module__.partition(".")[0]
    pending, sources = [f"{root}.training.run"], {}
    while pending:
        name = pending.pop()
        spec = None
        with contextlib.suppress(ModuleNotFoundError):  # a name inside a module
            spec = importlib.util.find_spec(name)
        if name in sources or spec is None or spec.origin is None:
            continue
        sources[name] = Path(spec.origin).read_bytes()
        for node in ast.walk(ast.parse(sources[name])):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(root):
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                pending += [str(node.module), *inside]
    return sources


def code_fingerprint() -> str:
    """A hash over the code of a run; the run folder keeps it."""
    ordered = [source for _, source in sorted(modules_of_a_run().items())]
    return hashlib.sha256(b"".join(ordered)).hexdigest()[:16]


def read_tokenizer(run_dir: str | Path) -> str | None:
    """The fingerprint of the tokenizer that a run's model has learned; None if unknown.

    Folders of earlier versions don't tell.
    """
    path = RunFolder(Path(run_dir)).environment
    content = path.read_bytes() if path.is_file() else b""
    return (json_object(content, {"tokenizer": str}) or {}).get("tokenizer")


# %% tags=["nbval-check-output"]
from slm.training.folder import modules_of_a_run

known = modules_of_a_run()
for name in ("slm.training.optim", "slm.cli"):
    print(f"{name}: {'decides' if name in known else 'does not decide'} what a run is")

# %% [markdown]
# ## Saving in fifteen lines
#
# Before the hardening, the idea, in the plainest form that it has: save now and then,
# and begin with what was saved. A small model with dropout learns the digits of a
# periodic text, once in one go and once with a stop after half of the steps. Predict:
# will the losses be the same?

# %%
import torch

from slm.model.config import GPTConfig
from slm.model.gpt import GPT

digits = torch.arange(33)[None] % 10  # (B, T + 1), B = 1


def learn(path: Path, stop: int) -> list[float]:
    """Go on from `path` to step `stop`; the loss of each step that was done."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(10, 32, 1, 2, 16, 32, dropout=0.2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    losses, done = [], 0
    if path.exists():
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        done = saved["step"]
    for _ in range(done, stop):
        loss = model.loss(digits[:, :-1], digits[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(loss.item(), 2))
    torch.save({"model": model.state_dict(), "step": stop}, path)
    return losses


with tempfile.TemporaryDirectory() as folder:
    print("in one go:", learn(Path(folder, "whole.pt"), stop=12))
    first = learn(Path(folder, "torn.pt"), stop=6)
    print("stopped:  ", first + learn(Path(folder, "torn.pt"), stop=12))

# %% [markdown]
# It goes on, and not as if it had never stopped: behind the sixth step the losses are
# others. The weights came back, but a step depends on more than on weights. What else
# it depends on is [the exercise](#checkpoints/exercise-resume) at the end of this page;
# in the trainer, [`state_dict`](#trainer/what-a-run-needs-to-go-on) collects it. And
# there are questions that a file of fifteen lines does not ask. What if the process is
# killed while it writes? If a bit of the file changes? If the file belongs to another
# run? Who waits while a gigabyte is written? The rest of the page answers them, one by
# one.
#
# ## A file that survives the power failure
#
# A process that is killed while `torch.save` writes leaves half a file under the good
# name, in place of the last whole one.
#
# So the file is written under a temporary name, forced to disk, and only then renamed,
# which the operating system does entirely or not at all
# ([`writing`](#files/published-file-or-folder) does the three). What does a kill leave,
# at each moment?
#
# | killed | under the good name | besides |
# |---|---|---|
# | before the writing | the old file | nothing |
# | while writing, while forcing to disk | the old file | half a file of another name |
# | between forcing and renaming | the old file | a whole file of another name |
# | after renaming | the new file | nothing |
#
# Without the forcing (`fsync`), a *power failure* could break that: the rename may
# reach the disk before the bytes do, and the good name then stands on an empty file.
#
# Disks and cables also change a bit now and then, and a run that goes on from such a
# file is wrong without a sign of it. So the last four bytes are a checksum (CRC-32) of
# all before them, which `torch.load` ignores and `load_checkpoint` verifies first. And
# it reads with `weights_only=True`: a pickle can run code, and a checkpoint that
# somebody sent you should not.

# %%
#| export training/checkpoint
# It stands in every file; another layout of the state gets another number.
FORMAT = "slm checkpoint 3"


# what PyTorch raises when it reads, or is given, another thing than it expects
MISFITS: tuple[type[Exception], ...] = (RuntimeError, ValueError, KeyError, TypeError)
MISFITS += (AttributeError, IndexError, EOFError)


class CheckpointError(SlmError):
    """A checkpoint is damaged or of another kind; the message names the file."""


# %% [markdown]
# Saving is two steps inside one `with`: PyTorch writes the state, and the checksum of
# all that it wrote goes behind it. `writing` forces both to disk and renames. The
# checksum is computed block by block, so that a large file is never in memory as a
# whole.


# %%
#| export training/checkpoint
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


# %% [markdown]
# Loading asks four questions, in this order, and each has an error of its own: is the
# file whole (the checksum)? Does it hold nothing but tensors, numbers and texts? Is it
# of this format? Does it hold a state? The tensors stay in the file until somebody
# reads them (`mmap`), so looking into a checkpoint costs little.


# %%
#| export training/checkpoint
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


# %% [markdown]
# Kill it while it writes: processes that do nothing but save are killed at random
# moments, by a signal that no process can catch. The plain way leaves ruins; ours never
# does. (A kill tests the renaming. Forcing the bytes to disk is for the power failure,
# which cannot be staged here.)

# %%
from course.figures.checkpoints import killed_while_saving

print(killed_while_saving("torch.save"))
print(killed_while_saving("save_checkpoint"))

# %% [markdown]
# Now damage one: a single bit of 64,000 weights is turned over. The plain reader takes
# the file as it is and hands out a wrong weight. Ours refuses it by name.

# %% tags=["nbval-check-output"]
from slm.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "step_00000001.pt"
    save_checkpoint(path, {"weights": torch.ones(64_000)})
    content = bytearray(path.read_bytes())
    weights = content.index(torch.ones(100).numpy().tobytes())
    content[weights + 2] ^= 0b0100_0000  # of the first of them
    path.write_bytes(content)
    wrong = torch.load(path, weights_only=True)["state"]["weights"]
    print("plain reader: weights from", wrong.min().item(), "to", wrong.max().item())
    try:
        load_checkpoint(path)
    except CheckpointError as error:
        course.show(str(error).replace(f"{folder}/", ""))

# %% [markdown]
# ## The newest that can be used
#
# A corrupt checkpoint is no reason to lose a run: the one before is a few minutes
# older. So reading goes from the newest to the oldest, names each that cannot be used,
# and takes the first that can. "Can be used" is more than "can be read": a file may lie
# there that belongs to another run, and to go on with it would be worse than to stop.


# %%
#| export training/checkpoint
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


# %% tags=["nbval-check-output"]
import io

from slm.training.checkpoint import load_latest

with tempfile.TemporaryDirectory() as folder:
    for step in (100, 200, 300):
        save_checkpoint(Path(folder) / f"step_{step:08d}.pt", {"step": step})
    newest = list_checkpoints(folder)[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    with contextlib.redirect_stdout(io.StringIO()) as told:
        path, state = load_latest(folder)
    course.show(told.getvalue().replace(f"{folder}/", ""))
print(f"{path.name} is used, of step {state['step']}")

# %% [markdown]
# A checksum proves that a file holds what was written, and not that it is of use: a
# script that edits checkpoints puts a right checksum on a wrong state. So the state is
# looked at, too: each part must be there and of its kind, and every number finite. What
# even that lets through, say a weight of another shape, shows when it is taken over,
# and then the one before is tried as well. Only a fault of the device is no fault of
# the file.


# %%
#| export training/checkpoint
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


# %% [markdown]
# A state that is sound can still be that of another run, or one that this trainer
# cannot continue. Tokenizer and texts are compared by the hashes that the token files
# keep of themselves, the precision by its name, the number of processes by whether they
# can share a step's rows.


# %%
#| export training/checkpoint
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


# %% [markdown]
# `trainer_mismatch` puts them together, the cheapest question first, and says with each
# refusal how the run could go on after all.


# %%
#| export training/checkpoint
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


# %% [markdown]
# And it must belong to this run. A run that went on in another precision, with another
# tokenizer or with another text would look healthy and be another run; and with another
# *validation* text, its "best" checkpoint would be the best of two measures. Another
# number of processes is no reason to refuse, as long as they can share the rows of a
# step equally: the [trainer](#trainer/what-a-run-needs-to-go-on) divides them anew. But
# it is said, since the run is then no longer equal to an undisturbed one in its last
# bits. What an earlier version did not write down is not compared.


# %%
#| export training/checkpoint
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


# %% [markdown]
# ## Saving beside the training
#
# Writing a gigabyte takes seconds in which a rented GPU would stand still. So training
# waits only for a *copy* in memory, and a thread writes that while the next steps
# change the original. Reading, after one pass for the checksum, only maps the file into
# memory: the numbers then go straight from it into the model, without a copy in
# between.
#
# The `Checkpointer` is an [observer](#settings/observers) of the trainer. After a step
# at which a checkpoint is due, or after which the run stops, it collects the state of
# the trainer *and of every observer* into one dictionary: each part says itself what it
# needs to go on exactly. Several processes agree on it (each has random numbers of its
# own), and the first one writes.
#
# {numref}`fig-beside` shows who waits for whom. Three rules follow from it:
#
# - At most one checkpoint is being written; the next one waits for it. Two would want
#   twice the memory.
# - What goes wrong in the thread is raised in the loop, after the first step that ends
#   when the thread has failed. A disk that is full at midnight must not be found in the
#   morning.
# - Old checkpoints are deleted by the same thread, after the new one is on disk and not
#   before. The last few are kept, and the one with the best validation loss.
#
# A failure to write is the one mistake here that another attempt may cure, on another
# machine or with more room: its error says `retry=True`, and a launcher in the cloud
# goes by that.

# %% mystnb={"code_prompt_show": "Draw training, and the thread that saves beside it", "figure": {"caption": "Training waits for a copy in memory; a thread writes it while the next steps go on. The next checkpoint comes only when the one before is on disk.", "name": "fig-beside"}, "image": {"alt": "Two rows over time. In the upper one groups of four steps, each followed by a short copy; in the lower one a long bar of writing begins after each copy and runs beside the next steps."}} tags=["hide-input"]
from course.figures.checkpoints import beside_training

beside_training()


# %%
#| export training/checkpoint
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


# %% [markdown]
# The checkpointer is an observer: the trainer calls it after each step. It first asks
# whether the thread has come to an error with the checkpoint before, and raises that;
# then it notes whether this step is the best so far; and it saves when a checkpoint is
# due, or when the run is about to stop. What it remembers of the best is its own state.


# %%
#| export training/checkpoint
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


# %% [markdown]
# Saving. Everything up to the copy happens in the loop, and on every process; the
# writing in the thread, on the first. A run can diverge in the very step after which it
# is stopped. Then there is nothing to save, and above all nothing old to delete.


# %%
#| export training/checkpoint
@course.add_to(Checkpointer)
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


# %% [markdown]
# What the thread does: look whether the numbers are finite, write, and delete what is
# too old. An older checkpoint that cannot be deleted is told and no more, since the new
# one is safe. `finish` waits for the thread and raises what it raised; `on_end`, which
# the trainer calls after the last step, does just that.


# %%
#| export training/checkpoint
@course.add_to(Checkpointer)
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


@course.add_to(Checkpointer)
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


@course.add_to(Checkpointer)
def on_end(self) -> None:
    self.finish()


# %% [markdown]
# The end of a run has two ways. A run that comes to its end, or is asked to stop, waits
# for the last checkpoint and raises what went wrong with it. A run that *fails* has an
# error on its way already; it waits too, because a half-written file helps nobody, and
# what went wrong with the writing is printed beside. A run that diverged names the last
# good checkpoint, for which it has to wait just the same.
#
# What an optimizer is given it takes without a look, and PyTorch's kernels trust what
# they are given: an average that is missing is a traceback at the next step, one of
# another shape is read beyond its end, and a weight without any begins anew in silence.
# So we look: each weight must have the averages that its optimizer keeps, in its shape.
# A checkpoint that fails is named like any other, and the one before it is tried.


# %%
#| export training/checkpoint
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


# %%
#| export training/checkpoint
@course.add_to(Checkpointer)
def __enter__(self) -> "Checkpointer":
    return self


@course.add_to(Checkpointer)
def __exit__(self, *error: object) -> None:
    """Wait; another error is on its way already, so what went wrong is printed."""
    if self._writing is not None and (failure := self._writing.exception()):
        print(failure)
    self._writer.shutdown()


@course.add_to(Checkpointer)
def recovery(self) -> str:
    if self._writing is not None:
        wait_for([self._writing])
    return self.last_good()


@course.add_to(Checkpointer)
def last_good(self) -> str:
    """Which checkpoint a run that has failed can go on from, in words."""
    for path in list_checkpoints(self.folder):
        with contextlib.suppress(CheckpointError, OSError):  # a damaged one
            if not config_mismatch(load_checkpoint(path), self.config):
                return f"the last good checkpoint is {path}"
    return "there is no checkpoint yet"


# %% [markdown]
# Going on is the reverse of saving: find the newest that fits, clear away the
# unfinished checkpoints of killed processes (and no other file: the rest is the
# user's), and give the trainer and every observer what is theirs. Processes that read
# different checkpoints stop here: they would train a mixture. An observer's state is
# found by the name of its class; a second one of the same class has its number behind
# the name.


# %%
#| export training/checkpoint
@course.add_to(Checkpointer)
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
        same = "each step keeps its rows, but sums are rounded in another order, and"
        other = f"{same} dropout, if any, draws others: not equal to the last bit"
        print(f"{path} was written by {before} processes, here are {now}; {other}")
    return path


# %% [markdown]
# Taking over is the last test of a state. PyTorch's optimizers accept averages of any
# shape and would read beyond their end at the next step, so the shapes are compared
# here; the error that this raises is what `misfit` turns into a sentence.


# %%
#| export training/checkpoint
@course.add_to(Checkpointer)
def _take_over(self, state: dict[str, Any], trainer: Trainer) -> None:
    """Give trainer and observers what is theirs."""
    trainer.load_state_dict(state["trainer"])
    for optimizer in trainer.optimizers:
        check_averages(optimizer, trainer.step > trainer.skipped_steps)
    for name, observer in named_observers(trainer.observers).items():
        if name in state["observers"]:
            observer.load_state_dict(state["observers"][name])


# %% [markdown]
# ## Is it right?
#
# A trainer is stopped in the middle and its checkpoint handed to another, which has
# other weights and other random numbers; the two then do the same steps. Besides,
# pruning keeps what it should.

# %%
from slm.data.batches import TextDataset, TokenLoader
from slm.data.stories import sample
from slm.data.tokenizer import get_tokenizer
from slm.training.checkpoint import Checkpointer, prune_checkpoints
from slm.training.config import make_config
from slm.training.trainer import Trainer

tokenizer = get_tokenizer("stories")
rows = TextDataset([sample(seed) for seed in range(40)], tokenizer, 32)
shape = GPTConfig(tokenizer.n_vocab, 32, 1, 2, 16, 32, dropout=0.1)
steps = {"max_steps": 12, "warmup_steps": 2, "checkpoint_every": 6, "dtype": "float32"}
sections = {"model": {}, "data": {"dataset": "given"}, "training": steps}
sections["model"] = {name: getattr(shape, name) for name in shape.__annotations__}
config = make_config(sections)


def run_in(folder: Path, seed: int, stop_at: int | None = None) -> torch.Tensor:
    """Train in a folder of checkpoints, from the newest; returns all weights."""
    torch.manual_seed(seed)
    with Checkpointer(folder, config) as checkpointer:
        loader, told = TokenLoader(rows, batch_size=2), [checkpointer]
        trainer = Trainer(GPT(shape), loader, None, config, "cpu", False, told, False)
        checkpointer.resume(trainer)
        trainer.train(stop=lambda: stop_at is not None and trainer.step + 1 >= stop_at)
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


# %% [markdown]
# One run of twelve steps; one that is stopped after the eighth and goes on from other
# weights, drawn from another seed; and all weights of both, compared bit by bit:

# %% tags=["nbval-check-output"]
with tempfile.TemporaryDirectory() as home:
    whole = run_in(Path(home) / "whole", seed=0)
    run_in(Path(home) / "torn", seed=0, stop_at=8)
    names = [path.name for path in list_checkpoints(Path(home) / "torn")]
    torn = run_in(Path(home) / "torn", seed=77)
    print("stopped after step 8, saved:", *names)
    print("the same weights to the last bit:", torch.equal(whole, torn))

    folder = Path(home) / "pruned"
    for step in range(1, 7):
        save_checkpoint(folder / f"step_{step:08d}.pt", {"step": step})
    prune_checkpoints(folder, keep=2, step=5, best_step=1)
    left = [load_checkpoint(path)["step"] for path in list_checkpoints(folder)]
    print("of six, at step 5, with the best at 1, there are left:", *left)

# %% [markdown]
# ## Exercise: resume
#
# A run, with dropout, goes on in another process as if it had never stopped. What must
# `my_save` put into its dictionary? It is used later, when the run that it was taken
# from has moved on, and it goes into a file: tensors, numbers and texts may stand in
# it, in dictionaries and lists, and no whole model. Dropout draws from PyTorch's random
# numbers; where those stand, `torch.get_rng_state()` tells as a tensor, and
# `torch.set_rng_state(…)` puts them there again.


# %% tags=["exercise"]
from course import check


def my_save(model: GPT, optimizer: torch.optim.Optimizer, step: int) -> dict:
    """Everything that the next step depends on, as it is now."""
    raise NotImplementedError("your turn")


def my_load(state: dict, model: GPT, optimizer: torch.optim.Optimizer) -> int:
    """Put it into a fresh model and optimizer; returns the number of steps done."""
    raise NotImplementedError("your turn")


check.resume(my_save, my_load)

# %% [markdown]
# What the check says to a typical wrong answer, which forgets that `state_dict` hands
# out the live tensors:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def live(model: GPT, optimizer: torch.optim.Optimizer, step: int) -> dict:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    return state | {"rng_state": torch.get_rng_state(), "step": step}


def load(state: dict, model: GPT, optimizer: torch.optim.Optimizer) -> int:
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng_state"])
    return state["step"]


check.resume(live, load)

# %% [markdown]
# <details><summary>Solution: <code>my_save</code></summary>
#
# ```python
# def my_save(model, optimizer, step):
#     state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
#     return copy_to_cpu(state | {"rng_state": torch.get_rng_state(), "step": step})
#
# def my_load(state, model, optimizer):
#     model.load_state_dict(state["model"])
#     optimizer.load_state_dict(state["optimizer"])
#     torch.set_rng_state(state["rng_state"])
#     return state["step"]
# ```
# </details>
#
# ## What you have now
#
# Names for everything in a run folder, a file that is whole or not there and that knows
# when it was damaged, and a `Checkpointer` that saves beside the training. One thing is
# missing: the command that finds such a folder and goes on. That is [the next
# chapter](#runs).

# %%
course.summary("slm/training/folder.py", "slm/training/checkpoint.py")
