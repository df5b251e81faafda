"""What a run has cost over all its attempts, and whether it may go on.

    meter = Meter("runs/x", dollars_per_hour=3.60, budget=5.0)
    with meter.watching():
        ...

Exported from chapters/20_meter.py; edit it there.
"""

import contextlib
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from slm.errors import SlmError
from slm.files import write_text
from slm.training.folder import RunFolder, list_checkpoints, read_attempts, step_of

# Count

# Seconds between two looks. What a killed attempt can cost unnoticed is one tick and
# the time that securing takes.
TICK = 30.0
PATIENCE = 10  # ticks that a run has to finish its step and save, once it must end


class Meter:
    """What a run has cost over all its attempts, kept in its folder, an entry each.

    Args:
        run_dir: The run's folder.
        dollars_per_hour: The price of the machine.
        budget: Dollars over all attempts; None for no limit.
        max_steps: Of the run; one that has come so far may save its model.
        call: The id of the call that this attempt belongs to.
        app: The id of the app that the call belongs to.
        secure: Called after each writing, to keep the file beyond this machine.

    Raises:
        SlmError: The folder has entries that cannot be read.
    """

    def __init__(
        self,
        run_dir: str | Path,
        dollars_per_hour: float,
        budget: float | None = None,
        max_steps: int = 0,
        call: str = "",
        app: str = "",
        secure: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.secure = RunFolder(Path(run_dir)), secure
        self.dollars_per_hour, self.budget = dollars_per_hour, budget
        self.max_steps = max_steps
        self.earlier = read_attempts(run_dir)
        self.entry: dict[str, Any] = {"call": call, "app": app, "budget": budget}
        self.entry |= {"problem": "", "error": "", "interrupted": False}
        self.entry |= {"seconds": 0.0, "dollars": 0.0}
        self.entry |= {"from": self._newest(), "to": []}
        self.started = time.monotonic()
        self.interrupted = False  # by this meter, because the budget is spent
        self._lock = threading.Lock()

    def count(self) -> dict[str, float]:
        """Attempts, seconds and dollars so far."""
        seconds = time.monotonic() - self.started
        dollars = seconds * self.dollars_per_hour / 3600
        self.entry |= {"seconds": seconds, "dollars": dollars}
        attempts = [*self.earlier, self.entry]
        seconds, dollars = (
            sum(a[key] for a in attempts) for key in ("seconds", "dollars")
        )
        return {"attempts": len(attempts), "seconds": seconds, "dollars": dollars}

    def save(self) -> dict[str, float]:
        """Count, write it down and secure it; returns what was counted."""
        with self._lock:
            counted, self.entry["to"] = self.count(), self._newest()
            attempts = [*self.earlier, self.entry]
            write_text(self.folder.attempts, json.dumps(attempts))
            self.secure()
        return counted

    def _newest(self) -> list[str]:
        """The name of the newest checkpoint, or nothing."""
        found = list_checkpoints(self.folder.checkpoints)
        return [path.name for path in found[:1]]

    def is_spent(self, dollars: float) -> bool:
        """Whether the budget is used up and the run is not done."""
        if self.budget is None or dollars < self.budget:
            return False
        steps = [step_of(path) for path in list_checkpoints(self.folder.checkpoints)]
        return self.max_steps not in steps and not self.folder.finished

    def spent_reason(self, dollars: float) -> str:
        """What to say of a budget that is used up."""
        used = f"it has cost ${dollars:.2f} of ${self.budget:.2f}"
        return f"{used}; a larger budget goes on from here"

    def refuse_if_spent(self, dollars: float) -> None:
        """Let the run go no further if its budget is used up.

        Raises:
            SlmError: It is; another attempt would end so, too.
        """
        if self.is_spent(dollars):
            raise SlmError(self.spent_reason(dollars))

    def dollars_before(self) -> float:
        """What the attempts before this one have cost."""
        return sum(attempt["dollars"] for attempt in self.earlier)

    def projected_dollars(self) -> float:
        """What the run will have cost, if all steps take as long as in this attempt."""
        # a name of a checkpoint, or none
        first, now = (sum(map(step_of, self.entry[key])) for key in ("from", "to"))
        each = self.entry["dollars"] / max(1, now - first)
        left = each * (self.max_steps - now)
        return self.dollars_before() + self.entry["dollars"] + left

    def stall_reason(self) -> str:
        """Why no further attempt of this call would help; empty if one may."""
        call = self.entry["call"]
        mine = [each for each in self.earlier if call and each.get("call") == call]
        if self.entry["error"]:
            mine.append(self.entry)
        row = itertools.takewhile(lambda a: a["from"] == a["to"], reversed(mine))
        # a machine that was taken away is nobody's fault
        idle = [each for each in row if not each.get("interrupted")]
        if len(idle) > 1 and idle[0]["error"] and idle[1]["error"]:
            told = "two attempts in a row came to no new checkpoint"
            return f"{told}; the last one ended with {idle[0]['error']}"
        if len(idle) > 2:
            told = "three attempts in a row came to no new checkpoint"
            cure = "set a longer modal.timeout, a smaller training.checkpoint_every"
            errors = [f"; an error was {a['error']}" for a in idle if a["error"]]
            return f"{told}; {cure}, or more modal.memory_mib{''.join(errors[:1])}"
        return ""

    def end(self, problem: str) -> str:
        """Write down how the attempt ended, and why no other can mend it, if so.

        Returns:
            That; and where it could not be written down, what came of it: another
            attempt would not know what this one has cost, nor how it ended.
        """
        self.entry["problem"] = problem
        try:
            self.save()
        except Exception as error:
            kept = f"the count could not be kept ({type(error).__name__}: {error})"
            told = [problem or self.entry["error"], kept]
            self.entry["problem"] = "; ".join(filter(None, told))
        return str(self.entry["problem"])

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While inside, save at each TICK, and end what has spent its budget."""
        ended, kept = threading.Event(), threading.Event()
        main = threading.main_thread().ident or 0

        def keep() -> None:
            while not ended.wait(TICK):
                try:
                    self.save()
                except Exception as error:
                    told = f"{type(error).__name__}: {error}"
                    print(f"the meter could not be secured: {told}")

        def watch() -> None:
            late = 0
            while not kept.wait(TICK):
                if not self.is_spent(self.count()["dollars"]):
                    continue
                self.interrupted, late = True, late + 1
                if late == 1:
                    signal.pthread_kill(main, signal.SIGINT)
                elif late > PATIENCE:
                    os._exit(1)

        threads = [threading.Thread(target=work, daemon=True) for work in (keep, watch)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for event, thread in zip((ended, kept), threads, strict=True):
                event.set()
                thread.join()
