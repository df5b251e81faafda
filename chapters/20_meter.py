# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/cloud/budget.py
#     - slm/cloud/price.py
#     - slm/cloud/launch.py
# ---

# %% [markdown]
# # The meter
#
# *An engine room: it can be skipped at first reading.* A rented machine costs money
# while it works, while it hangs, and while nobody looks. You build the meter that
# counts what a run has cost over all its attempts and ends it in time
# (`slm/cloud/budget.py`), the price of a launch and the most that it can cost
# (`slm/cloud/price.py`), and the launch that finds a run again from any computer and
# does not pay for one run twice (`slm/cloud/launch.py`).

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% [markdown]
# ## The idea
#
# A container in the cloud can disappear at any time. The provider may need the machine
# for someone else (*preemption*), the time limit may pass, the process may crash. Then
# the function is started again: a further *attempt*, which goes on from the last
# checkpoint. The bill goes on too. So the count of what was spent must live where the
# checkpoints live, in the run's folder on the volume, one entry for each attempt.
#
# When should it be written? At every checkpoint is not enough: ten attempts that are
# killed before their first one would each look free. So a thread writes it at every
# *tick*, half a minute here. What a kill can hide is then one tick and the time that
# securing takes, as long as the volume can be reached. {numref}`fig-ticks` shows it:

# %% mystnb={"code_prompt_show": "Draw what is paid and what the meter has written", "figure": {"caption": "Dollars that are paid (the line) and dollars that the meter has written (the steps), over two attempts. The first is killed between two ticks; what it cost since the last one is never counted.", "name": "fig-ticks"}, "image": {"alt": "A rising line and a staircase below it that touches the line at each tick. At the kill the line is above the staircase by less than one step; the second attempt goes on from the staircase."}} tags=["hide-input"]
from course.figures.meter import ticks

ticks(tick=30, killed_at=105, until=200)

# %% [markdown]
# The same entries answer a second question: is a further attempt worth its money? And a
# third one, from any computer: is this run being trained already?

# %% tags=["hide-input"]
#| export
"""What a run has cost over all its attempts, and whether it may go on.

    meter = Meter("runs/x", dollars_per_hour=3.60, budget=5.0)
    with meter.watching():
        ...
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

# %% [markdown]
# ## Count
#
# An entry holds which call the attempt belongs to, the newest checkpoint when it began
# and when the entry was written last (`from` and `to`), its seconds and dollars, and
# how it ended. `count` reads the clock and nothing else; `save` writes all entries; the
# file is whole or the old one ([files and errors](#files/published-file-or-folder)),
# and `secure` is what keeps it beyond this machine: on the volume nothing is safe
# before it is committed.


# %%
#| export
# Seconds between two looks. What a killed attempt can cost unnoticed is one tick and
# the time that securing takes.
TICK = 30.0
PATIENCE = 10  # ticks that a run has to finish its step and save, once it must end

# %% [markdown]
# A meter begins with what the earlier attempts left, and opens an entry of its own.
# Nothing is written yet: an attempt that fails before its first `save` leaves no trace.


# %%
#| export
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


# %% [markdown]
# Counting and writing. Seconds are those of a clock that only goes forward, so that a
# computer that sets its time cannot lose or win money. A lock lets one writer in at a
# time, since a thread ticks beside the training.


# %%
#| export
@course.add_to(Meter)
def count(self) -> dict[str, float]:
    """Attempts, seconds and dollars so far."""
    seconds = time.monotonic() - self.started
    dollars = seconds * self.dollars_per_hour / 3600
    self.entry |= {"seconds": seconds, "dollars": dollars}
    attempts = [*self.earlier, self.entry]
    seconds, dollars = (sum(a[key] for a in attempts) for key in ("seconds", "dollars"))
    return {"attempts": len(attempts), "seconds": seconds, "dollars": dollars}


@course.add_to(Meter)
def save(self) -> dict[str, float]:
    """Count, write it down and secure it; returns what was counted."""
    with self._lock:
        counted, self.entry["to"] = self.count(), self._newest()
        attempts = [*self.earlier, self.entry]
        write_text(self.folder.attempts, json.dumps(attempts))
        self.secure()
    return counted


@course.add_to(Meter)
def _newest(self) -> list[str]:
    """The name of the newest checkpoint, or nothing."""
    found = list_checkpoints(self.folder.checkpoints)
    return [path.name for path in found[:1]]


# %% [markdown]
# Two attempts at 3.60 dollars an hour, which is a tenth of a cent for each second:

# %% tags=["nbval-check-output"]
import shutil

shutil.rmtree("runs/meter", ignore_errors=True)
for _ in range(2):
    meter = Meter("runs/meter", dollars_per_hour=3.60)
    time.sleep(0.5)
    spent = meter.save()
print(f"{spent['attempts']} attempts, ${spent['dollars']:.3f}")

# %% [markdown]
# ## Decide
#
# Three questions to the count. Is the budget spent? A run that has done its last step
# may still save its model, whatever it has cost: the money is gone, the model need not
# be. How much will the whole run have cost? And is a further attempt of this call worth
# it?
#
# Starting again mends a machine that broke. It does not mend a bug, a time limit too
# short for one checkpoint, or a container that is killed for its memory each time. In
# all three, attempt after attempt ends where it began. An error that comes twice
# without a new checkpoint is enough to stop; three attempts that were ended from
# outside without one are, too. A machine that was taken away is nobody's fault: such an
# attempt is marked as interrupted, and does not count against the run. But if it had
# come to a new checkpoint, that counts *for* it, and ends the row of those in vain.


# %%
#| export
@course.add_to(Meter)
def is_spent(self, dollars: float) -> bool:
    """Whether the budget is used up and the run is not done."""
    if self.budget is None or dollars < self.budget:
        return False
    steps = [step_of(path) for path in list_checkpoints(self.folder.checkpoints)]
    return self.max_steps not in steps and not self.folder.finished


@course.add_to(Meter)
def spent_reason(self, dollars: float) -> str:
    """What to say of a budget that is used up."""
    used = f"it has cost ${dollars:.2f} of ${self.budget:.2f}"
    return f"{used}; a larger budget goes on from here"


@course.add_to(Meter)
def refuse_if_spent(self, dollars: float) -> None:
    """Let the run go no further if its budget is used up.

    Raises:
        SlmError: It is; another attempt would end so, too.
    """
    if self.is_spent(dollars):
        raise SlmError(self.spent_reason(dollars))


# %% [markdown]
# How much will it have cost? What was spent before, what this attempt has spent, and
# for each step that is left what a step has cost in this attempt, counted from the
# checkpoint that it began with.


# %%
#| export
@course.add_to(Meter)
def dollars_before(self) -> float:
    """What the attempts before this one have cost."""
    return sum(attempt["dollars"] for attempt in self.earlier)


@course.add_to(Meter)
def projected_dollars(self) -> float:
    """What the run will have cost, if all steps take as long as in this attempt."""
    # a name of a checkpoint, or none
    first, now = (sum(map(step_of, self.entry[key])) for key in ("from", "to"))
    each = self.entry["dollars"] / max(1, now - first)
    left = each * (self.max_steps - now)
    return self.dollars_before() + self.entry["dollars"] + left


# %% [markdown]
# And is a further attempt worth it? Only attempts of this call are looked at, from the
# newest back to the last that came to a new checkpoint; those that were interrupted are
# left out of the row.


# %%
#| export
@course.add_to(Meter)
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


# %% [markdown]
# All of this rests on the entries. Where `end` cannot write one down, because the
# volume is full, say, the next attempt would not know what this one has cost, nor why
# it failed. So none may begin, and the reason goes back with the result.


# %%
#| export
@course.add_to(Meter)
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


# %% [markdown]
# Histories of one call, and what the meter says before the next attempt begins:


# %% tags=["nbval-check-output"]
def history(*ends: str) -> list[dict]:
    """Entries from words: vain, new (a checkpoint), error, taken (away)."""
    entry = {"call": "fc-1", "from": [], "to": [], "error": "", "seconds": 1.0}
    entry |= {"dollars": 0.0}
    kinds = {"vain": {}, "new": {"to": ["step_00000010.pt"]}}
    kinds |= {"error": {"error": "KeyError: 'x'"}, "taken": {"interrupted": True}}
    return [entry | kinds[end] for end in ends]


for ends in (
    ("error",),
    ("error", "error"),
    ("vain", "vain"),
    ("vain", "vain", "vain"),
    ("taken", "taken", "taken"),
    ("vain", "vain", "taken", "vain"),
    ("vain", "vain", "new", "vain"),
):
    write_text(RunFolder(Path("runs/meter")).attempts, json.dumps(history(*ends)))
    reason = Meter("runs/meter", 3.60, call="fc-1").stall_reason()
    print(f"{' '.join(ends):<24} {reason.partition(';')[0] or 'go on'}")

# %% [markdown]
# ## Watch
#
# One thread writes at each tick. A volume that cannot be reached for a moment ends
# nothing: the next tick tries again. A second thread looks at the budget, because a run
# that comes to no checkpoint would otherwise never ask. It is a thread of its own,
# because to secure may fail, or take long, or hang, and the clock runs on: so it asks
# the clock and writes nothing, and it is the last to stop. When the money is gone it
# interrupts the main thread, exactly as Ctrl-C would: [the trainer](#trainer) finishes
# its step and saves. A process that has not ended `PATIENCE` looks later hangs, and is
# ended by force; the attempt after it finds the budget spent and does nothing.


# %%
#| export
@course.add_to(Meter)
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


# %% [markdown]
# The experiment that {numref}`fig-ticks` promised. A process starts an attempt, with
# ten ticks a second, and is killed in its sleep after a second. `kill -9` leaves it no
# time for anything: no `finally`, no `except`. What is on disk was there before.

# %%
import subprocess
import sys

from slm.training.folder import report

shutil.rmtree("runs/meter", ignore_errors=True)
victim = """
import os, signal, threading, time
from slm.cloud import budget
budget.TICK = 0.1
meter = budget.Meter("runs/meter", dollars_per_hour=3.60)
with meter.watching():
    time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)
"""
ended = subprocess.run([sys.executable, "-c", victim]).returncode
counted = report("runs/meter")["seconds"]
print(f"ended by signal {-ended} after 1.0 s; the meter has counted {counted:.2f} s")

# %% [markdown]
# And a budget that is spent while nothing comes to a checkpoint. The sleep stands for
# whatever does not end: a download, a dataset that is too large, a deadlock.

# %% tags=["nbval-check-output"]
shutil.rmtree("runs/meter", ignore_errors=True)
from slm.cloud import budget as package

package.TICK, kept = 0.25, package.TICK
meter = package.Meter("runs/meter", 3.60, budget=0.0005)  # half a second
try:
    with meter.watching():
        time.sleep(30)
except KeyboardInterrupt:
    print(f"interrupted by the meter: {meter.interrupted}")
package.TICK = kept

# %% [markdown]
# ## The price of a launch
#
# The other half is on your computer's side: what it takes to let a launch go. Three
# questions come before a machine is rented. Can it work at all? What will it cost? And
# what is the *most* that it can cost, if everything goes wrong that may?
#
# First, what cannot work: text or a tokenizer that lies on a computer which the
# container will never see. The refusal says which command uploads it.

# %% tags=["hide-input"]
#| export cloud/price
"""What a launch will cost, the most that it can cost, and what is refused before it.

    check(load_config("configs/gpt_124m.yaml")).dollars
"""

import glob
import itertools
import math
import shlex
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

from slm.cloud.budget import PATIENCE, TICK
from slm.cloud.cost import (
    OVERHEAD,
    START_UP,
    Estimate,
    estimate,
    run_dtype,
    tokens_per_step,
    verdict,
)
from slm.errors import SlmError
from slm.files import user_path
from slm.gpus import MODAL
from slm.training.config import RunConfig, changed_keys, check_steps

# %%
#| export cloud/price
DATA = "/data"  # where the volume lies in a container
VOLUME = "slm-data"
TEXT_FILES = (".txt", ".jsonl", ".parquet", ".tiktoken")


def how_to_upload(value: str, key: str) -> str:
    """The command that uploads a file, a folder or a pattern's folder, and what then.

    `put` takes one path, and a pattern is for the shell: so the folder before the first
    sign of a pattern is uploaded, and the pattern stays in the config.
    """
    parts = Path(value).parts
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    source = user_path(Path(*fixed))
    target = Path("text", source.resolve().name)
    put = ["modal", "volume", "put", VOLUME, str(source), f"/{target}"]
    there = Path(DATA, target, *parts[len(fixed) :])
    return (
        f"upload it with `{shlex.join(put)}` (before the first upload, "
        f"`modal volume create {VOLUME}`), and write data.{key}: {there}"
    )


def refuse_unseen(config: RunConfig) -> None:
    """Refuse text or a tokenizer that lies on this computer only.

    Raises:
        SlmError: With the command that uploads it.
    """
    for key in ("dataset", "tokenizer"):
        value = getattr(config.data, key)
        looks_so = value.startswith((".", "~", "/")) or value.endswith(TEXT_FILES)
        here = looks_so or glob.has_magic(value) or Path(value).exists()
        known = value in ("stories", "gpt2") or value.startswith(f"{DATA}/")
        if here and not known:
            told = f"data.{key} is {value!r}, which lies on this computer"
            raise SlmError(f"{told}; {how_to_upload(value, key)}")


# %% [markdown]
# Then the prediction. [The cost](#cost/the-estimate) of a whole new run is known. But a
# launch may begin in the middle of a run, and it may end there: with `steps` it stops
# after that step of the *same* run, which a later launch goes on with. That makes the
# cheapest first launch: the first few hundred steps of the real thing, on its GPU. They
# tell its real speed, and from then on the prediction rests on that.
#
# `before` is what [`report`](#checkpoints/reading-a-run-without-pytorch) says of the
# run so far. Its own speed replaces the expected one; the share for evaluation and
# checkpoints, and the start-up, stay as they were assumed.


# %%
#| export cloud/price
# what is known of a run that has not begun
NEW: dict[str, Any] = {"checkpoint": 0, "attempts": 0, "seconds": 0.0, "dollars": 0.0}
NEW |= {"tokens_per_s": None}


def remaining(
    config: RunConfig, before: dict[str, Any] = NEW, steps: int | None = None
) -> Estimate:
    """The prediction for the steps of a launch, start-up included.

    Args:
        config: What is trained.
        before: What `report` says of the run so far.
        steps: The step after which the launch stops; the last one, if None.
    """
    found = estimate(config)
    fast, slow = found.tokens_per_second
    if before["tokens_per_s"]:
        slow, fast = before["tokens_per_s"]
    left = (steps or config.training.max_steps) - before["checkpoint"]
    tokens = left * tokens_per_step(config) * (1 + OVERHEAD)
    hours = (START_UP[0] + tokens / fast) / 3600, (START_UP[1] + tokens / slow) / 3600
    rate, flops = found.dollars_per_hour, found.mfu[0] / found.tokens_per_second[0]
    return replace(
        found,
        evidence="measured" if before["tokens_per_s"] else found.evidence,
        mfu=(fast * flops, slow * flops),
        tokens_per_second=(fast, slow),
        hours=hours,
        dollars=(hours[0] * rate, hours[1] * rate),
    )


def measured(config: RunConfig, before: dict[str, Any]) -> str:
    """What a run's own speed says of the steps that are left; empty if unknown."""
    if not before["tokens_per_s"]:
        return ""
    slow, fast = before["tokens_per_s"]
    rest, spent = remaining(config, before), before["dollars"]
    both = rest.hours, rest.dollars
    hours, dollars = (f"{low:.2f} to {high:.2f}" for low, high in both)
    first, last = before["checkpoint"] + 1, config.training.max_steps
    whole = f"{spent + rest.dollars[0]:.2f} to {spent + rest.dollars[1]:.2f}"
    told = f"measured  {slow:,.0f} to {fast:,.0f} tokens/s on {rest.name}, so steps "
    told += f"{first:,} to {last:,} take {hours} h and {dollars} dollars; with the "
    told += f"${spent:.2f} spent, the whole run {whole} dollars"
    return textwrap.fill(told, 88, subsequent_indent=" " * 10)


# %% [markdown]
# `check` refuses a launch that cannot keep what the config promises: whatever fails is
# said with what would cure it. What was spent on the run before counts, because
# `max_dollars` is for all its launches. And `budget` is the sum at which the meter will
# end it. A launch of a few steps gets less than the config allows: the slow end of its
# own prediction.


# %%
#| export cloud/price
def check(
    config: RunConfig,
    yes_spend: bool = False,
    before: dict[str, Any] = NEW,
    steps: int | None = None,
) -> Estimate:
    """What a launch will need on the GPU that its config asks for.

    Raises:
        SlmError: The run may cost more than `modal.max_dollars` and not `yes_spend`, or
            the launch cannot work at all.
    """
    refuse_unseen(config)
    check_steps(steps, before["checkpoint"], config)
    expected = remaining(config, before, steps)
    if not expected.fits_memory:
        raise SlmError(verdict(config)[1])
    most, allowed = before["dollars"] + expected.dollars[1], config.modal.max_dollars
    if most > allowed and not yes_spend:
        needs = verdict(config)[1]
        if steps or before["checkpoint"]:
            spent = f"${before['dollars']:.2f} spent; the config allows ${allowed:.2f}."
            needs = f"Needs up to ${expected.dollars[1]:.2f} on {expected.name}, after "
            needs += spent
        all_the_same = f"To spend up to ${most:.2f} all the same, say --yes-spend."
        raise SlmError(f"{needs} {all_the_same}")
    return expected


def budget(
    config: RunConfig,
    expected: Estimate,
    yes_spend: bool = False,
    before: dict[str, Any] = NEW,
    steps: int | None = None,
) -> float:
    """Dollars over all launches of a run, at which the meter ends this one."""
    limit, slow = config.modal.max_dollars, before["dollars"] + expected.dollars[1]
    if yes_spend:
        limit = max(limit, slow)
    return min(limit, slow) if steps else limit


# %% [markdown]
# ## The most that it can cost
#
# The budget is not all. The meter runs from the first line of the function to its last.
# The bill also has what comes before and after:
#
# - Each attempt has a *start-up*, from the container's start to the first line. It
#   takes a minute or two; `STARTUP` ends one that hangs. How many attempts? As many as
#   the time limit makes necessary, and `SPARE` more. Those are for accidents, and the
#   fourth of them is the one in which the meter says that three were in vain.
# - The *overshoot*: a spent budget is noticed within a tick, what does not end by
#   itself is ended `PATIENCE` ticks later, and a kill hides up to a tick of an attempt.
# - The *preparation* of text, on CPU cores. It has a time limit and retries, goes on
#   where it was, and may have many containers at once.
# - The *volume*, where the first TiB is free (2026-07-01).
#
# Each is a product of numbers that we choose, so the sum can be worked out before
# anything is rented. Two things cannot. One is how often a machine is taken away, or
# crashes as it starts: Modal starts the call again without using up a retry, so each
# time adds one start-up. The other is what a container uses of cores and memory above
# what it has reserved; it is billed, and small beside a GPU.


# %%
#| export cloud/price
STARTUP = 10 * 60  # seconds in which a container has to start
SPARE = 4  # attempts beyond those that the time limit makes necessary
CORES, RETRIES = 4.0, 2  # of a container that prepares text
# seconds of an attempt: of the one that prepares a whole corpus, or joins the parts
# that others have prepared, and of each of those, at most so many for a split
WHOLE, PART, CONTAINERS = 2 * 60 * 60, 10 * 60, 16
TEXT_SPEED = 20e6  # bytes a second: benchmarks/results/prepare_tokens.md


def most_attempts(config: RunConfig, expected: Estimate) -> int:
    """How often a launch may begin; Modal allows eleven times."""
    needed = math.ceil(3600 * expected.hours[1] / config.modal.timeout)
    return min(needed + SPARE, 11)


def most_dollars(
    config: RunConfig, expected: Estimate, limit: float
) -> dict[str, float]:
    """The most that a launch can cost, by what for; a machine taken away adds to it.

    Args:
        config: What is trained.
        expected: What `check` said of the launch.
        limit: What is left of the budget that the meter keeps.
    """
    rate, n = expected.dollars_per_hour / 3600, most_attempts(config, expected)
    parts = {
        "until the budget is spent": limit,
        "until the meter has ended it": (PATIENCE + n) * TICK * rate,
        f"for {n} start-ups of {STARTUP // 60} minutes": n * STARTUP * rate,
        "for a volume of up to 1 TiB": 0.0,
    }
    if config.data.dataset != "stories":
        second = (1 + RETRIES) * CORES * MODAL.dollars_per_core_second
        one, part = second * (WHOLE + STARTUP), second * (PART + STARTUP)
        what = f"to prepare text in {1 + CONTAINERS} containers (${one:.2f} in one)"
        parts[what] = one + 2 * CONTAINERS * part  # for training and for validation
    return parts


# %% [markdown]
# Two lines say it: what to expect, and the sum with its parts. If the run has measured
# its speed, a line before them tells that.


# %%
#| export cloud/price
def terms(
    config: RunConfig, expected: Estimate, limit: float, before: dict[str, Any] = NEW
) -> str:
    """What a launch will cost, and the most that it can.

    Args:
        config: What is trained.
        expected: What `check` said of the launch.
        limit: What `budget` said of it.
        before: What `report` says of the run so far.
    """
    low, high = expected.dollars
    will = f"expected  ${low:.2f} to ${high:.2f} on {expected.name}, with start-up"
    if config.data.dataset != "stories":
        a_gigabyte = 1e9 / TEXT_SPEED * CORES * MODAL.dollars_per_core_second
        will += f"; to prepare text ${a_gigabyte:.3f} a gigabyte"
    parts = most_dollars(config, expected, limit - before["dollars"])
    told = " + ".join(f"${dollars:.2f} {what}" for what, dollars in parts.items())
    again = STARTUP / 3600 * expected.dollars_per_hour
    most = f"at most   ${sum(parts.values()):.2f}: {told}; each time the machine is "
    most += f"taken away, ${again:.2f} more"
    lines = [textwrap.fill(one, 88, subsequent_indent=" " * 10) for one in (will, most)]
    return "\n".join(filter(None, [measured(config, before), *lines]))


# %% [markdown]
# For the 124M model: its first 600 steps, and the whole run. In both the budget is the
# smaller part of the worst case:

# %% tags=["nbval-check-output"]
from slm.training.config import load_config

config = load_config("configs/gpt_124m.yaml")
for steps in (600, None):
    expected = check(config, steps=steps)
    print(terms(config, expected, budget(config, expected, steps=steps)))

# %% [markdown]
# The worst case is not what to expect: it is every container hanging until its limit,
# in every attempt. What the preparation *will* take can be said from
# `benchmarks/results/prepare_tokens.md`, where one process prepares files. With the
# download and the container's start it is minutes and a cent:

# %% tags=["nbval-check-output"]
import re

from slm.gpus import MODAL

table = Path("benchmarks/results/prepare_tokens.md").read_text(encoding="utf-8")
speed = float(re.search(r"[.]parquet \| ([0-9.]+)", table)[1])
seconds = 4 * config.training.max_steps * 32 * 1024 / (1e6 * speed)  # 4 bytes a token
dollars = seconds * CORES * MODAL.dollars_per_core_second
print(
    f"TinyStories at {speed} MB/s: {seconds:.0f} s on {CORES:g} cores, ${dollars:.3f}"
)

# %% [markdown]
# And what a run says of itself, once it has come to a checkpoint. The figures here are
# made up: 600 steps in four minutes, for 30 cents.

# %% tags=["nbval-check-output"]
so_far = {"checkpoint": 600, "attempts": 1, "seconds": 240.0, "dollars": 0.30}
print(measured(config, so_far | {"tokens_per_s": (431_000.0, 438_000.0)}))

# %% [markdown]
# Each refusal is one line, and costs nothing:

# %% tags=["nbval-check-output"]
import textwrap


def refusal(change: str) -> str:
    """What is said to configs/gpt_124m.yaml with one change."""
    try:
        check(load_config("configs/gpt_124m.yaml", [change]))
    except SlmError as error:
        return str(error)
    return "nothing"


for change in ("modal.gpu=H1000", "modal.max_dollars=1", "data.dataset=texts/*.txt"):
    print(change)
    print(textwrap.indent(textwrap.fill(refusal(change), 84), "    "))

# %% [markdown]
# At the end the bill is held against the prediction: four lines of text, what was
# expected above and what it came to below. What earlier launches cost is taken off.


# %%
#| export cloud/price
def reconcile(
    expected: Estimate, result: dict[str, Any], before: dict[str, Any] = NEW
) -> str:
    """Prediction and outcome of a launch, side by side.

    Args:
        expected: What `check` said of it.
        result: What `report` says of the run after it.
        before: What `report` said of the run before it.
    """
    state = "finished" if result["finished"] else "not finished"
    problem = f": {result['problem']}" if result.get("problem") else ""
    loss = "none" if result["val_loss"] is None else f"{result['val_loss']:.4f}"
    told = f"{state} at step {result['step']}, validation loss {loss}"
    both = expected.hours, expected.dollars
    hours, dollars = (f"{fast:.3g} to {slow:.3g}" for fast, slow in both)
    keys = ("seconds", "dollars", "attempts")
    seconds, spent, n = (max(0, result[key] - before[key]) for key in keys)
    tries = f"in {n} attempt{'s' * (n > 1)}"
    reached = "" if result["mfu"] is None else f", {result['mfu']:.0%} MFU"
    return (
        f"{result['run']}: {told}{problem}\n"
        f"{'':<10}{'hours':>18}{'dollars':>18}\n"
        f"{'predicted':<10}{hours:>18}{dollars:>18}   on {expected.name}\n"
        f"{'actual':<10}{seconds / 3600:>18.3g}{spent:>18.3g}   {tries}{reached}"
    )


# %% [markdown]
# ## Another GPU, another run
#
# A run that lies on the volume is gone on with only under the config that it was begun
# with, and in the precision that it was computed in. The container would refuse
# anything else; but then the GPU is rented already. Both configs are known before: one
# is in your file, the other in the run's folder. So they are compared here. A change of
# `gpu` alone is fine as long as both compute in the same type: a T4 has no bfloat16.


# %%
#| export cloud/price
def refuse_other(run: str, begun: RunConfig, config: RunConfig, steps: int) -> None:
    """Refuse a config that is not the one that a run was begun with.

    Args:
        run: The run's name.
        begun: The config in its folder, in which it has taken so many `steps`.
        config: The one to go on with.

    Raises:
        SlmError: Settings differ that would make another run, or the precision does.
    """
    changed = changed_keys(begun.as_dict(), config.as_dict())
    old, new = (run_dtype(c, MODAL.find(c.modal.gpu_name)) for c in (begun, config))
    if steps and old != new:
        gpus = f"{begun.modal.gpu} computes in {old} and {config.modal.gpu} in {new}"
        changed.append(f"the precision changes, because {gpus}")
    if changed:
        told = f"the run {run} on the volume was begun with another config"
        another = "--run NAME trains this one as another run"
        raise SlmError(f"{told}: {'; '.join(changed)}. {another}")


# %% tags=["nbval-check-output"]
begun = load_config("configs/gpt_124m.yaml")
for change in ("modal.gpu=H100", "modal.gpu=T4", "training.batch_size=16"):
    try:
        refuse_other(
            "first", begun, load_config("configs/gpt_124m.yaml", [change]), 600
        )
        print(f"{change}: goes on")
    except SlmError as error:
        course.show(f"{change}: {error}")

# %% [markdown]
# ## The launch
#
# What is left needs Modal. Its module begins with what it is handed and what it finds.
# `NothingYet` has a class of its own because `status` catches it: a run that still
# waits for its machine has nothing on the volume, and that is no failure.

# %% tags=["hide-input"]
#| export cloud/launch
"""Launch a run in the cloud, find it from any computer, follow, stop and fetch it.

    launched = Cloud(app, volume, train, prepare).launch(config, run="first")
"""

import json
import shlex
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import modal

from slm.training.folder import RunFolder, parse_attempts, read_launched, report
from slm.cloud.cost import Estimate, cost_table
from slm.cloud import price
from slm.training.config import RunConfig, load_config
from slm.errors import SlmError
from slm.files import check_run_name, make_run_name, write_text, writing

# %%
#| export cloud/launch
# what `status` leaves on the volume
LARGE = ("checkpoints", "wandb", "samples", "model")


class NothingYet(SlmError):
    """The volume holds nothing of the run."""


# %% [markdown]
# The key of Weights & Biases is asked for only if the config says so, and before
# anything is rented: Modal is made to look whether it is there (`hydrate`).


# %%
#| export cloud/launch
def secrets(config: RunConfig) -> list[modal.Secret]:
    """The secret with the Weights & Biases key, if the config asks for it.

    Raises:
        SlmError: It does, and the workspace has no such secret, or cannot be asked.
    """
    if config.wandb.enabled is not True:
        return []
    secret = modal.Secret.from_name("wandb", required_keys=["WANDB_API_KEY"])
    try:
        secret.hydrate()
    except modal.exception.NotFoundError as error:
        made = "Create it with `modal secret create wandb WANDB_API_KEY=…`"
        told = f"the config asks for Weights & Biases, but: {error}. {made}"
        raise SlmError(f"{told}, or set wandb.enabled: false") from None
    except UNANSWERED as error:
        raise no_answer("the secret wandb", error) from None
    return [secret]


# %% [markdown]
# ## No answer is no answer
#
# A call in the cloud has an id, and whoever knows it can ask how the call is. There are
# three kinds of answer. It runs (the question times out). It has ended, with a result
# or with an error of its own. Or there is *no* answer: no network, a token that is no
# longer valid, a server in trouble. The third must not be taken for the second. Whoever
# believes that a run has died, and starts the same command again, pays twice for one
# run.


# %%
#| export cloud/launch
ENDED = (  # what Modal says of a call that has ended without a result
    modal.exception.RemoteError,  # cancelled or killed
    modal.exception.FunctionTimeoutError,
    modal.exception.InternalFailure,
    modal.exception.ExecutionError,  # with an error that this computer does not know
    modal.exception.OutputExpiredError,
    modal.exception.NotFoundError,
)
# all others: no network, no valid token, a server in trouble
UNANSWERED = (modal.exception.Error, OSError)


def no_answer(what: str, error: Exception) -> SlmError:
    """What to say when Modal does not answer."""
    why = " ".join(f"{type(error).__name__}: {error}".split())
    told = f"Modal cannot be asked about {what} ({why}); ask again"
    return SlmError(told, retry=True)


def unknown(run: str, error: Exception) -> SlmError:
    """What to say when Modal does not answer a question about a run."""
    return no_answer(f"{run}, which may be running", error)


# %% [markdown]
# `Launched` is what one keeps of a call. `is_running` sorts the answers into the three
# kinds: a time-out means that it runs; what stands in `ENDED`, or an error of the
# function's own, that it has ended; anything else is no answer, and raised as that.


# %%
#| export cloud/launch
@dataclass(frozen=True)
class Launched:
    """A call in the cloud: enough to find it again from any computer.

    `call_id` is empty as long as only the app is known that is about to make the call.
    `result` is what the training function returned, if it was waited for.
    """

    app_id: str
    call_id: str
    run: str
    result: dict[str, Any] | None = None

    @property
    def call(self) -> modal.FunctionCall:
        """The call: `get(timeout=…)` waits for its result, `cancel()` stops it.

        Raises:
            SlmError: Nothing but its app is known yet.
        """
        if not self.call_id:
            told = f"{self.run} has not begun to run, or its call is not known here yet"
            raise SlmError(f"{told}; ask again", retry=True)
        return modal.FunctionCall.from_id(self.call_id)

    def is_running(self) -> bool:
        """Whether the call waits for a machine, or runs, or will be tried again.

        Raises:
            SlmError: Modal cannot be asked.
        """
        if not self.call_id:  # of an app that was alive when it was found
            return True
        try:
            self.call.get(timeout=0)
        except TimeoutError:
            return True
        except Exception as error:  # it has ended, with the function's own, if not so
            if isinstance(error, UNANSWERED) and not isinstance(error, ENDED):
                raise unknown(self.run, error) from None
        return False

    def __str__(self) -> str:
        ours = f"modal run modal_app.py::{{}} --run {shlex.quote(self.run)}"
        logs, stop = f"modal app logs {self.app_id}", f"modal app stop {self.app_id}"
        return (
            f"call    {self.call_id or 'not known yet'}\n"
            f"follow  {logs}   or   {ours.format('status')}\n"
            f"stop    {ours.format('stop')}   or   {stop}\n"
            f"fetch   {ours.format('fetch')}"
        )


# %% [markdown]
# A call becomes a note in a file and a few lines to read; at the end its cost stands
# beside the prediction.


# %%
#| export cloud/launch
def _machine(config: RunConfig, keys: list[modal.Secret], tries: int) -> dict[str, Any]:
    """What the training function is to run on, and how often it may be tried."""
    machine = config.modal
    return {
        "retries": modal.Retries(max_retries=tries - 1, initial_delay=0.0),
        "gpu": machine.gpu,
        "timeout": machine.timeout,
        "secrets": keys,
        "cpu": machine.cpu,
        "memory": machine.memory_mib,
    }


def _note(launched: Launched) -> None:
    """Say how to find a call again, and write it down."""
    print(launched)
    note = RunFolder(Path("runs/modal", launched.run)).launched
    try:
        write_text(note, json.dumps(asdict(launched)))
    except OSError as error:  # what is rented is not to be lost for it
        print(f"{note} could not be written: {error}")


def _tell_end(
    config: RunConfig, expected: Estimate, launched: Launched, before: dict[str, Any]
) -> None:
    """Say what a launch that was waited for came to, and what is left to do."""
    if result := launched.result:
        print(price.reconcile(expected, result, before))
        if not result["finished"] and result["checkpoint"]:
            print(price.measured(config, result) or "too few steps to measure a speed")
    else:
        print(f"Only the watching has stopped; the run and its bill go on:\n{launched}")


# %%
#| export cloud/launch
def live_apps() -> list[modal.App]:
    """The apps of the workspace that have not ended."""
    return modal.Environment.from_context().apps.list()


# %% [markdown]
# ## Find
#
# Where is the id written down? In two places. The launch leaves a note on the computer
# that it came from. And the attempt itself writes its call into the meter's file on the
# volume, which every computer can read. Both have a hole: a launch from another
# computer that still prepares its text or waits for its GPU has left nothing here, and
# has written nothing there.
#
# So a third is asked, Modal itself. Each launch is an app, and its app bears the run's
# name from before anything is rented until its last call has ended. An app of that name
# that is alive, and none of whose calls is known here, is a launch that is about to
# rent or waits. To look first and to begin then is not enough, since two computers may
# look at the same moment. So each looks *again* after its own app is there: whoever was
# second sees the first, and if both see each other, both withdraw.
#
# All of this needs four things of the app: itself, its volume, and the functions that
# train and prepare; and of Modal the list of apps. They are handed in, so that this
# module can be tried without an app, as it is below.


# %%
#| export cloud/launch
@dataclass(frozen=True)
class Cloud:
    """Launches of an app.

    Args:
        app: The app that the functions belong to.
        volume: The folder that outlives every container, mounted at `price.DATA`.
        train: The function that trains: config text, run folder, budget, price of an
            hour, and the step after which it stops.
        prepare: The function that tokenises: config text; it returns what is wrong.
        apps: Gives the apps that have not ended.
    """

    app: modal.App
    volume: modal.Volume
    train: modal.Function
    prepare: modal.Function
    apps: Callable[[], list[modal.App]] = live_apps

    def app_name(self, run: str) -> str:
        """Under which name Modal shows the apps that launch a run."""
        return f"{self.app.name}-{run}"

    def live(self, run: str) -> list[modal.App]:
        """The apps that launch a run and have not ended.

        Raises:
            SlmError: Modal cannot be asked.
        """
        try:
            apps, name = self.apps(), self.app_name(run)
        except UNANSWERED as error:
            raise unknown(run, error) from None
        return [each for each in apps if each.description == name]


# %% [markdown]
# Both answers and the app's together are what is known of a run:


# %%
#| export cloud/launch
@course.add_to(Cloud)
def launches(self, run: str) -> list[Launched]:
    """The launches of a run that can be known here, newest last.

    Raises:
        SlmError: Modal cannot be asked, or the name cannot be a run's.
    """
    here = read_launched(Path("runs/modal", check_run_name(run)))
    noted = [Launched(**each) for each in here]
    written = RunFolder(Path("runs", run)).attempts.as_posix()
    try:
        attempts = parse_attempts(b"".join(self.volume.read_file(written)), written)
    except (FileNotFoundError, modal.exception.NotFoundError):
        attempts = []
    except (*UNANSWERED, ValueError) as error:  # or it is replaced as we read
        raise unknown(run, error) from None
    called = [each for each in attempts if each.get("call")]
    begun = [Launched(each.get("app", ""), each["call"], run) for each in called]
    # a note of which no attempt has begun is the newest: it waits, or has ended so
    waits = noted and noted[0].call_id not in [each.call_id for each in begun]
    both = begun[-1:] + noted if waits else noted + begun[-1:]
    known = [each.app_id for each in begun + noted]
    apps = [str(each.app_id) for each in self.live(run)]
    others = [Launched(each, "", run) for each in apps if each not in known]
    return [*{each.call_id: each for each in both}.values(), *others]


# %% [markdown]
# `find` takes the one that is running, or else the last. `refuse_twice` takes any that
# is running and is not our own app, and says how to follow, stop or fetch it.


# %%
#| export cloud/launch
@course.add_to(Cloud)
def find(self, run: str) -> Launched | None:
    """The launch of a run that is running, or else the last one.

    Raises:
        SlmError: Modal cannot be asked, or the name cannot be a run's.
    """
    known = self.launches(run)
    last = known[-1] if known else None
    return next((each for each in known if each.is_running()), last)


@course.add_to(Cloud)
def refuse_twice(self, run: str, own: str | None = None) -> None:
    """Refuse a run that is being launched or trained by another app than `own`.

    Raises:
        SlmError: It is, or Modal cannot be asked.
    """
    others = [each for each in self.launches(run) if each.app_id != own]
    if running := [each for each in others if each.is_running()]:
        twice = f"{run} is being trained already; twice would cost twice"
        raise SlmError(f"{twice}. To follow, stop or fetch it:\n{running[0]}")


# %% [markdown]
# ## Launch
#
# `train.with_options(…)` returns a variant of the function with the config's GPU and
# time limit, and with as many retries as it may need. `spawn` starts the call and
# returns its id at once; `get` waits for the result. (`remote` does both, but gives up
# after 24 hours, and leaves you without the id.) `app.run(detach=True)` keeps the app
# alive when this process ends, so a closed laptop or a lost connection stops nothing.
# The price of that: an interrupt here does not stop the training either, so the
# commands that do are printed, and the call's id is noted, before anything is waited
# for. An interrupt between the renting and the note would lose the id. So both are done
# in a thread, and the thread is waited for: an interrupt ends the waiting when the id
# is there, and not before.
#
# The config travels as text: the file may lie on your computer only. What is replaced
# in it is the folder of the token files, which lies on the volume. Text that has to be
# prepared is prepared first, on CPU cores, before a GPU is asked for.
#
# Before all of this the volume is asked what it has of the run. A finished run needs no
# GPU, one of another config must not get one, and one that has come to a checkpoint
# tells the speed of its GPU, unless that has been changed.


# %%
#| export cloud/launch
@course.add_to(Cloud)
def so_far(self, run: str, config: RunConfig) -> dict[str, Any]:
    """What `report` says of the run that a launch goes on with; `NEW` without.

    Raises:
        SlmError: It is finished, or was begun with another config.
    """
    with tempfile.TemporaryDirectory() as home:
        folder = RunFolder(Path(home, run))
        try:
            self.download(run, folder.path, skip=LARGE)
        except NothingYet:
            return price.NEW
        if folder.finished:
            fetch = f"`modal run modal_app.py::fetch --run {run}` brings it here"
            another = "--run NAME trains this config as another run"
            raise SlmError(f"{run} is finished: {fetch}, and {another}")
        found = report(folder.path)
        if folder.config.is_file():
            begun = load_config(folder.config)
            price.refuse_other(run, begun, config, found["checkpoint"])
            if begun.modal.gpu != config.modal.gpu:
                found["tokens_per_s"] = None
        return found


@course.add_to(Cloud)
def quote(
    self, config: RunConfig, run: str, yes_spend: bool, steps: int | None
) -> tuple[Estimate, float, dict[str, Any]]:
    """Refuse what cannot work, and print what a launch will cost, and the most.

    Returns:
        What to expect, the dollars at which the meter ends it, and the run so far.

    Raises:
        SlmError: With the reason for the refusal.
    """
    price.refuse_unseen(config)
    self.refuse_twice(run)
    before = self.so_far(run, config)
    print(cost_table(config))
    expected = price.check(config, yes_spend, before, steps)
    limit = price.budget(config, expected, yes_spend, before, steps)
    print(price.terms(config, expected, limit, before), flush=True)
    return expected, limit, before


# %% [markdown]
# With that known, the launch itself, in order: the quote, the machine with its secrets
# and retries, the text that travels; then, inside the app, the second look for another
# launch, the preparation, the renting in its thread, and the waiting; and last what it
# came to.


# %%
#| export cloud/launch
@course.add_to(Cloud)
def launch(
    self,
    config: RunConfig,
    run: str = "",
    yes_spend: bool = False,
    wait: bool = True,
    steps: int | None = None,
) -> Launched:
    """Train a config in `/data/runs/RUN`; a run of that name goes on from there.

    Args:
        config: What to train, and in its `modal` section on what.
        run: The run's name; the config's, if empty.
        yes_spend: Go beyond `modal.max_dollars`, as far as the slow end of the
            prediction and no further.
        wait: Show the logs until the run has ended; then reconcile its cost.
        steps: Stop after this step of the run, and save; the next launch goes on.

    Raises:
        SlmError: Before anything is built or rented, with the reason.
    """
    run = check_run_name(run) if run else _name_of(config)
    expected, limit, before = self.quote(config, run, yes_spend, steps)
    machine = _machine(config, secrets(config), price.most_attempts(config, expected))
    data = replace(config.data, cache_dir=f"{price.DATA}/tokens")
    text = replace(config, data=data).to_yaml()
    sent = (text, f"{price.DATA}/runs/{run}", limit, None, steps)
    begun: list[tuple[Launched, modal.FunctionCall]] = []
    prepared, result = config.data.dataset == "stories", None  # it takes seconds
    with self.app.run(name=self.app_name(run), detach=True):
        self.refuse_twice(run, own=str(self.app.app_id))
        if not prepared:
            prepared = self._prepare(text)
        train = self.train.with_options(**machine)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(int).result()  # it runs before there is something to lose
            thread.submit(self._begin, begun, run, train, sent).result()
        if wait:
            leaving = "Interrupting now stops the watching, not the training."
            print(leaving, flush=True)
            result = _watch(*begun[0])
    if not begun:  # an interrupt ends the block without a word
        raise _interrupted(str(self.app.app_id), prepared)
    launched = replace(begun[0][0], result=result)
    if wait:
        _tell_end(config, expected, launched, before)
    return launched


# %% [markdown]
# What happens inside, one step each. Whatever is rented is said first and noted then,
# and a note that cannot be written ends nothing. While the result is waited for, the
# call may be stopped from elsewhere, or Modal may be out of reach: two sentences, and
# only the first says that the run has ended.


# %%
#| export cloud/launch
@course.add_to(Cloud)
def _begin(self, begun: list[Any], run: str, train: Any, sent: tuple[Any, ...]) -> None:
    """Rent, put what is known of it into the list, say it and note it."""
    try:
        call = train.spawn(*sent)
    except UNANSWERED as error:
        raise unknown(run, error) from None
    launched = Launched(str(self.app.app_id), call.object_id, run)
    begun.append((launched, call))
    _note(launched)


def _watch(launched: Launched, call: modal.FunctionCall) -> Any:
    """Wait for the result of a call."""
    try:
        return call.get()
    except ENDED as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        told = f"{launched.run} was stopped, or ended without a result ({why})"
        raise SlmError(f"{told}; the same command goes on from there") from None
    except UNANSWERED as error:
        raise unknown(launched.run, error) from None


# %% [markdown]
# The preparation is waited for, and the commands that follow and stop it are printed
# first. The last two say what to do after an interrupt, and how a run is called that
# was given no name.


# %%
#| export cloud/launch
@course.add_to(Cloud)
def _prepare(self, text: str) -> bool:
    """Wait until the text is tokenised; an error says what is wrong with it."""
    preparing, app_id = self.prepare.spawn(text), self.app.app_id
    print("preparing tokens on CPU cores, which goes on if you leave")
    print(f"follow  modal app logs {app_id}")
    print(f"stop    modal app stop {app_id}", flush=True)
    if problem := preparing.get():
        raise SlmError(problem)
    return True


def _interrupted(app_id: str, prepared: bool) -> SlmError:
    """What to say when nothing has been rented."""
    stop = f"`modal app stop {app_id}` ends it"
    left = ";" if prepared else f"; the preparation goes on, and {stop}; after it"
    told = f"interrupted before a GPU was rented{left}"
    return SlmError(f"{told} the same command begins again")


def _name_of(config: RunConfig) -> str:
    """The run's name if none was given: the config's, or one made of it."""
    if (name := make_run_name(config.name)) != config.name:
        print(f"{config.name!r} cannot name a run, so it is called {name}")
    return name


# %% [markdown]
# ## Follow, stop, fetch
#
# Each of these can be asked from any computer, at any time. `download` writes each file
# whole, so that a connection that breaks leaves the copy of the last time; a lock,
# which says that a process on *this* machine trains, is not copied. `status` asks first
# whether the run is running and then looks at the volume: the other way round, a run
# that ends in between would be told as one that died. And nothing is reported from half
# of a run's files.


# %%
#| export cloud/launch
@course.add_to(Cloud)
def download(
    self, run: str, to: str | Path, skip: tuple[str, ...] = ("checkpoints", "wandb")
) -> Path:
    """Copy a run from the volume to a folder; the folders in `skip` stay empty.

    Raises:
        NothingYet: The volume has no such run.
        SlmError: A file cannot be had or written, or the name cannot be a run's.
    """
    source, to = f"runs/{check_run_name(run)}", Path(to)
    try:
        entries = self.volume.listdir(source)
    except modal.exception.NotFoundError:
        listed = f"`modal volume ls {price.VOLUME} runs` lists them"
        told = f"the volume {price.VOLUME} has no run {run!r} yet; {listed}"
        raise NothingYet(told) from None
    except UNANSWERED as error:
        raise unknown(run, error) from None
    kinds, lock = modal.volume.FileEntryType, RunFolder(to).lock.name
    try:
        to.mkdir(parents=True, exist_ok=True)
        while entries:
            entry = entries.pop()
            target = to / Path(entry.path.lstrip("/")).relative_to(source)
            if entry.type == kinds.DIRECTORY:
                target.mkdir(exist_ok=True)
                skipped = target.name in skip
                entries += [] if skipped else self.volume.listdir(entry.path)
            elif entry.type == kinds.FILE and target.name != lock:
                with writing(target) as part, part.open("wb") as file:
                    file.writelines(self.volume.read_file(entry.path))
    except UNANSWERED as error:
        why = f"{type(error).__name__}: {error}"
        told = f"{run} was not copied whole ({why}); ask again"
        raise SlmError(told, retry=True) from None
    return to


# %% [markdown]
# The other two are short. `status` copies the small files and reports on them; that
# there are none is no mistake as long as the run is running. `stop` cancels the call,
# or, where none is known yet, the app that was about to make it.


# %%
#| export cloud/launch
@course.add_to(Cloud)
def status(self, run: str, folder: str | Path) -> dict[str, Any]:
    """How far a run is, what it has cost, and whether it is running.

    Args:
        run: Its name.
        folder: An empty folder for the small files that tell it.

    Raises:
        SlmError: Modal cannot be asked, or knows nothing of the run.
    """
    running = any(each.is_running() for each in self.launches(run))
    here = Path(folder, run)
    try:
        self.download(run, here, skip=LARGE)
    except NothingYet:
        if not running:  # one that runs has perhaps not begun
            raise
    return {**report(here), "running": running}


@course.add_to(Cloud)
def stop(self, run: str) -> None:
    """Cancel a run; what it did since its last checkpoint is lost.

    Raises:
        SlmError: It is not running, or Modal cannot be asked.
    """
    running = [each for each in self.launches(run) if each.is_running()]
    without_call = [each.app_id for each in running if not each.call_id]
    try:
        for each in running:
            if each.call_id:
                each.call.cancel()
        for app in self.live(run):
            if app.app_id in without_call:  # it prepares, or has just begun
                app.stop()
    except UNANSWERED as error:
        raise unknown(run, error) from None
    if not running:
        raise SlmError(f"{run} is not running")


# %% [markdown]
# ## Use it, without a cloud
#
# Everything that the launch asks of the cloud fits into a few lines, so a stand-in is
# quickly made: a volume that is a folder, a function that gives its call an id, and
# calls that run until they are cancelled.


# %%
import contextlib
from types import SimpleNamespace


class Volume:
    """A folder that answers like a volume."""

    def read_file(self, path: str):
        yield Path("runs/volume", path).read_bytes()

    def listdir(self, path: str):
        raise modal.exception.NotFoundError(path)


class Call:
    """A call that runs until it is cancelled; it may be out of reach."""

    running, reachable = True, True

    def get(self, timeout: float) -> None:
        if not self.reachable:
            raise modal.exception.ConnectionError("no network")
        if self.running:
            raise TimeoutError

    def cancel(self) -> None:
        self.running = False


function = SimpleNamespace(
    with_options=lambda **options: function,
    spawn=lambda *arguments: SimpleNamespace(object_id="fc-1"),
)
nothing = contextlib.nullcontext()
app = SimpleNamespace(name="slm", app_id="ap-1", run=lambda name, detach: nothing)
alive: list[SimpleNamespace] = []  # the apps that have not ended
stand_in, call = Cloud(app, Volume(), function, function, lambda: alive), Call()
modal.FunctionCall.from_id, real = lambda call_id: call, modal.FunctionCall.from_id

# %% [markdown]
# A launch, the same launch again, and once more with the network gone. Then the run is
# stopped, and may be launched anew.

# %% tags=["nbval-check-output"]
import io

shutil.rmtree("runs/modal/meter", ignore_errors=True)
little = load_config("configs/stories_cpu.yaml")


def try_to(what, *arguments, **options) -> None:
    """Do it quietly, and say in a line how it went."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            what(*arguments, **options)
        print("done")
    except SlmError as error:
        print(textwrap.shorten(str(error).splitlines()[0], 88))


try_to(stand_in.launch, little, run="meter", wait=False)
try_to(stand_in.launch, little, run="meter", wait=False)
call.reachable = False
try_to(stand_in.launch, little, run="meter", wait=False)
call.reachable = True
try_to(stand_in.stop, "meter")
try_to(stand_in.stop, "meter")
try_to(stand_in.download, "meter", "runs/modal/meter")
try_to(stand_in.launch, little, run="meter", wait=False)
try_to(stand_in.find, "../meter")

# %% [markdown]
# And a launch from another computer, while the first waits for its GPU. There is no
# note here and nothing on the volume; only Modal knows an app of that name:

# %% tags=["nbval-check-output"]
shutil.rmtree("runs/modal/meter")
try_to(stand_in.find, "meter")
alive.append(SimpleNamespace(app_id="ap-0", description="slm-meter"))
try_to(stand_in.launch, little, run="meter", wait=False)

# %% mystnb={"code_prompt_show": "Put everything back"} tags=["hide-input"]
modal.FunctionCall.from_id = real
shutil.rmtree("runs/modal/meter", ignore_errors=True)

# %% [markdown]
# ## Is it right?
#
# The claims that carry money: the counts of attempts add up; a spent budget stops a run
# that is not done, and no run that is; and no part needs PyTorch, the first two not
# even Modal.

# %% tags=["nbval-check-output"]
shutil.rmtree("runs/meter", ignore_errors=True)
write_text(RunFolder(Path("runs/meter")).attempts, json.dumps(history("new", "vain")))
meter = Meter("runs/meter", 3600.0, budget=1.0, max_steps=20, call="fc-1")
total = meter.save()
print(
    f"{total['attempts']} attempts, the first two of {history('new')[0]['seconds']} s"
)
off = abs(total["seconds"] - 2 - meter.entry["seconds"])
print("all seconds and those of the attempts, equal within 1e-9:", off < 1e-9)
print(f"spent at $2 of $1: {meter.is_spent(2.0)}, at $0.50: {meter.is_spent(0.5)}")
RunFolder(Path("runs/meter")).checkpoints.mkdir()
Path("runs/meter/checkpoints/step_00000020.pt").touch()
print(f"spent at $2 of $1, all steps done: {meter.is_spent(2.0)}")
both = "torch modal"
for module, heavy in (("budget", both), ("price", both), ("launch", "torch")):
    loaded = f"[name for name in {heavy.split()} if name in sys.modules]"
    probe = f"import sys, slm.cloud.{module}; print({loaded})"
    command = [sys.executable, "-c", probe]
    found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    print(f"slm.cloud.{module} loads of {heavy}: {found}")

# %% [markdown]
# ## Exercises
#
# **1. The most it can cost.** A time limit is for one attempt. What is the most that a
# call can cost, if each attempt runs into its limit and no machine is taken away?

# %% tags=["exercise"]
from course import check as exercises


def my_most_dollars(timeout: int, retries: int, dollars_per_hour: float) -> float:
    """Dollars, for a timeout in seconds and a number of retries."""
    raise NotImplementedError("your turn")


exercises.most_dollars(my_most_dollars)

# %% [markdown]
# What the check says to a typical wrong answer, one that takes the limit for the
# call's:

# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input"]
exercises.most_dollars(lambda timeout, retries, rate: timeout / 3600 * rate)

# %% [markdown]
# <details><summary>Solution: <code>my_most_dollars</code></summary>
#
# ```python
# def my_most_dollars(timeout, retries, dollars_per_hour):
#     return (1 + retries) * timeout / 3600 * dollars_per_hour
# ```
# With ten retries that is eleven times what the time limit suggests: the reason for a
# budget that the run itself keeps, and for giving up on attempts in vain.
# </details>
#
# **2. Once more?** Decide whether a further attempt may begin. Each earlier attempt is
# `(first, last, taken)`: the step of the newest checkpoint when it began and when it
# ended, and whether the machine was taken away. No, if the last three that count came
# to no new checkpoint. One whose machine was taken away does not count; but if it came
# to a new checkpoint, those before it count no more, as after any other.


# %% tags=["exercise"]
def my_once_more(attempts: list[tuple[int, int, bool]]) -> bool:
    """Whether a further attempt may begin."""
    raise NotImplementedError("your turn")


exercises.once_more(my_once_more)

# %% [markdown]
# What the check says to a typical wrong answer, one that leaves out whatever was taken
# away, a new checkpoint included:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input"]
def without_the_taken(attempts):
    last_three = [a for a in attempts if not a[2]][-3:]
    return len(last_three) < 3 or any(last > first for first, last, _ in last_three)


exercises.once_more(without_the_taken)

# %% [markdown]
# <details><summary>Solution: <code>my_once_more</code></summary>
#
# ```python
# def my_once_more(attempts):
#     in_vain = 0
#     for first, last, taken in attempts:
#         if last > first:
#             in_vain = 0  # whoever it was, it came forward
#         elif not taken:
#             in_vain += 1
#     return in_vain < 3
# ```
# </details>
#
# ## What you have now
#
# A count of which a kill can hide one tick, a budget that ends what does not end by
# itself, and a launch that does not pay for one run twice. [The launch](#launch) puts
# an image, a volume and a GPU behind it.

# %%
course.summary("slm/cloud/budget.py", "slm/cloud/price.py", "slm/cloud/launch.py")
