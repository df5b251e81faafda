"""The names inside a run folder, and what can be read there without PyTorch.

    report("runs/stories_cpu")["val_loss"]

Exported from chapters/12_checkpoints.py; edit it there.
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

# A folder that explains itself


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


# Reading a run without PyTorch

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
