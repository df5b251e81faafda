"""What a run tells while it goes: rows of numbers, for a file and for Weights & Biases.

    Trainer(model, loader, None, config, observers=[MetricsFile(Path("rows.jsonl"))])

Exported from chapters/10_settings.py; edit it there.
"""

import functools
import importlib.util
import json
import math
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slm.errors import SlmError
from slm.files import force, has_kinds, make_folder, naming
from slm.training.config import RunConfig

# Observers


class Observer:
    """Somebody who is told how a run goes; a subclass overrides what it needs."""

    def on_start(self, trainer: Any) -> None:
        """`Trainer.train` begins, anew or from a checkpoint."""

    def on_row(self, row: dict[str, Any]) -> None:
        """A row of metrics is there; what is added, later observers see too."""

    def on_validation(self, trainer: Any) -> None:
        """The validation loss is new, in `trainer.val_loss`."""

    def on_step(self, trainer: Any) -> None:
        """A step is done, with its row and validation if they were due."""

    def on_end(self) -> None:
        """Training has come to its end, or was asked to stop."""

    def recovery(self) -> str:
        """What a run that failed can go on from, in words; "" if nothing is known."""
        return ""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold, so that a resumed run tells the same."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


# Rows that survive a kill


class MetricsFile(Observer):
    """Every row as a line of JSON, appended to a file; its folder is made."""

    def __init__(self, path: Path) -> None:
        self.path, self.step = path, 0

    def on_step(self, trainer: Any) -> None:
        self.step = trainer.step

    def on_row(self, row: dict[str, Any]) -> None:
        make_folder(self.path.parent)
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """The file's length; so much of it is then safe from a power failure."""
        if not self.path.exists():
            return {"bytes": 0, "step": self.step}
        force(self.path)
        force(self.path.parent)  # the file's name, too
        return {"bytes": self.path.stat().st_size, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut off the rows of steps that will be done again."""
        if not (has_kinds(state, {"bytes": int, "step": int}) and state["bytes"] >= 0):
            raise ValueError("the length of the metrics is no number")
        content = self.path.read_bytes() if self.path.exists() else b""
        kept = content[: state["bytes"]]
        if len(kept) < state["bytes"]:
            missing = f"rows before step {state['step']:,} are missing"
            print(f"{self.path} is shorter than it was; {missing}")
        if content:
            os.truncate(self.path, kept.rfind(b"\n") + 1)  # whole rows only


class Dollars(Observer):
    """Adds to each row what the run has cost so far, `cost/usd`."""

    def __init__(self, per_hour: float) -> None:
        if not 0 <= per_hour < float("inf"):
            allowed = "allowed is a finite number from 0 on"
            raise SlmError(f"{per_hour} dollars per hour are no price; {allowed}")
        self.per_hour = per_hour

    def on_row(self, row: dict[str, Any]) -> None:
        row["cost/usd"] = self.per_hour * row["seconds"] / 3600


# Weights & Biases


def gradient_histograms(model: Any) -> dict[str, Any]:
    """For each parameter, 32 equal bins from its gradient's least to largest entry."""
    import torch

    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    limits = torch.stack([torch.stack(grad.aminmax()) for grad in named.values()])
    row: dict[str, Any] = {}
    for (name, grad), (low, high) in zip(named.items(), limits.tolist(), strict=True):
        entries = grad.float().flatten()
        if not math.isfinite(high - low):  # a float16 step has overflowed
            entries = entries[entries.isfinite()]
            if not len(entries):
                continue
            low, high = (limit.item() for limit in entries.aminmax())
        # float32, in which histc counts, goes no further than 2**24
        parts = entries.split(2**24)
        counts = sum(part.histc(32, low, high).long() for part in parts)
        row[f"gradients/{name}"] = {"low": low, "high": high, "counts": counts}
    if row:
        counted = torch.stack([histogram["counts"] for histogram in row.values()])
        for histogram, counts in zip(row.values(), counted.tolist(), strict=True):
            histogram["counts"] = counts
    return row


def wants_wandb(config: RunConfig) -> bool:
    """Whether to log to Weights & Biases, as config, WANDB_MODE or a login says.

    Raises:
        SlmError: It is asked for, and not installed or without a login.
    """
    mode, enabled = os.environ.get("WANDB_MODE"), config.wandb.enabled
    if enabled is False or mode == "disabled":
        return False
    wanted = "wandb.enabled is true" if enabled is True else ""
    if mode and not wanted:
        wanted = f"WANDB_MODE is {mode}"
    if importlib.util.find_spec("wandb") is None:
        if wanted:
            raise SlmError(f"{wanted}, but wandb is not installed: pip install wandb")
        return False
    if mode in ("offline", "dryrun"):
        return True
    import wandb

    logged_in = bool(wandb.login(prompt=False, verify=False))
    if wanted and not logged_in:
        cure = "run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline"
        raise SlmError(f"{wanted}, but there is no login: {cure}")
    return logged_in


class WandbLogger(Observer):
    """Every row at Weights & Biases, against the tokens seen.

    Args:
        config: The run; its section `wandb` says under which project and name.
        folder: Where the client keeps its files; its own choice if not said.
    """

    def __init__(self, config: RunConfig, folder: Path | None = None) -> None:
        self.config, self.folder = config, folder
        self.id, self.known = uuid.uuid4().hex[:8], False
        self.run: Any = None

    def state_dict(self) -> dict[str, Any]:
        return {"id": self.id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.id, self.known = state.get("id", self.id), True

    def on_start(self, trainer: Any) -> None:
        """Open the run, a new one or the one that the checkpoint names."""
        import wandb

        section = self.config.wandb
        begin = functools.partial(
            wandb.init,
            project=section.project,
            entity=section.entity,
            name=section.name or self.config.name,
            tags=section.tags,
            resume="allow",
            config=self.config.as_dict(),
            dir=self.folder,
            settings=wandb.Settings(init_timeout=30),
        )
        self.run = self._opened(begin)
        self.run.define_metric("*", step_metric="train/tokens_seen")

    def on_row(self, row: dict[str, Any]) -> None:
        if self.run is not None:
            shown = {key: _for_wandb(value) for key, value in row.items()}
            self.run.log(shown, step=row["step"])

    def on_end(self) -> None:
        if self.run is not None:
            self.run.finish()

    def _opened(self, begin: Callable[..., Any]) -> Any:
        """The run at the server; a new one where it was deleted there; else offline."""
        import wandb

        why, new = "", uuid.uuid4().hex[:8]
        for name in [self.id, new] if self.known else [self.id]:
            try:
                run = begin(id=name)
            except wandb.errors.Error as error:  # no training is worth less than a log
                why = str(error).splitlines()[0]
                wandb.teardown()  # it would say that the id is in use
                continue
            if name != self.id:
                now = f"the run goes on there as a new one, {name}"
                print(f"Weights & Biases did not take {self.id} again ({why}); {now}")
                self.id = name
            return run
        later = "it is logged offline: `wandb sync` sends it later"
        print(f"Weights & Biases did not take the run ({why}); {later}")
        return begin(id=self.id, mode="offline")


def _for_wandb(value: Any) -> Any:
    """A histogram as Weights & Biases draws it; everything else as it is."""
    if not isinstance(value, dict):
        return value
    import numpy as np
    import wandb

    edges = np.linspace(value["low"], value["high"], len(value["counts"]) + 1)
    return wandb.Histogram(np_histogram=(np.array(value["counts"]), edges))
