# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/cloud/budget.py
#     - slm/cloud/launch.py
# ---

# %% [markdown]
# # The meter
#
# A rented machine costs money while it works, while it hangs, and while nobody looks.
# You build the meter that counts what a run has cost over all its attempts and ends it
# in time (`slm/cloud/budget.py`), and the launch that refuses what cannot work, finds a
# run again from any computer, and does not pay for one run twice
# (`slm/cloud/launch.py`).
#
# *An engine room: it can be skipped at first reading.*

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

# %% mystnb={"figure": {"caption": "Dollars that are paid (the line) and dollars that the meter has written (the steps), over two attempts. The first is killed between two ticks; what it cost since the last one is never counted.", "name": "fig-ticks"}, "image": {"alt": "A rising line and a staircase below it that touches the line at each tick. At the kill the line is above the staircase by less than one step; the second attempt goes on from the staircase."}} tags=["hide-input"]
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
    seconds, dollars = (
        sum(attempt[key] for attempt in attempts) for key in ("seconds", "dollars")
    )
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
    first, now = (
        step_of(names[0]) if names else 0
        for names in (self.entry["from"], self.entry["to"])
    )
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
    row = itertools.takewhile(lambda each: each["from"] == each["to"], reversed(mine))
    # a machine that was taken away is nobody's fault
    idle = [each for each in row if not each.get("interrupted")]
    if len(idle) > 1 and idle[0]["error"] and idle[1]["error"]:
        told = "two attempts in a row came to no new checkpoint"
        return f"{told}; the last one ended with {idle[0]['error']}"
    if len(idle) > 2:
        told = "three attempts in a row came to no new checkpoint"
        cure = "set a longer modal.timeout, a smaller training.checkpoint_every"
        errors = [f"; an error was {each['error']}" for each in idle if each["error"]]
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
# ## The launch: refuse before anything costs money
#
# The other half is on your computer's side. Everything that can be known before a
# machine is rented is looked at first: whether the prediction ([the
# cost](#cost/is-the-config-honest)) is above `modal.max_dollars`, whether the model
# fits the GPU's memory, whether the text or the tokenizer lies on a computer that the
# container will never see, whether the key for Weights & Biases is there.
#
# `NothingYet` has a class of its own because `status` catches it: a run that still
# waits for its machine has nothing on the volume, and that is no failure.

# %% tags=["hide-input"]
#| export cloud/launch
"""Launch a run in the cloud, find it from any computer, follow, stop and fetch it.

    launched = Cloud(app, volume, train, prepare).launch(config, run="first")
"""

import dataclasses
import glob
import itertools
import json
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import modal

from slm.training.folder import RunFolder, parse_attempts, read_launched, report
from slm.cloud.cost import Estimate, cost_table, estimate, verdict
from slm.training.config import RunConfig
from slm.errors import SlmError
from slm.files import check_run_name, make_run_name, user_path, write_text, writing

# %%
#| export cloud/launch
DATA = "/data"  # where the volume lies in a container
VOLUME = "slm-data"
TEXT_FILES = (".txt", ".jsonl", ".parquet", ".tiktoken")
# what `status` leaves on the volume
LARGE = ("checkpoints", "wandb", "samples", "model")


class NothingYet(SlmError):
    """The volume holds nothing of the run."""


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


# %% [markdown]
# `check` is the question before all others: does the config name something that lies
# only on this computer? Does the memory suffice? Is it within the budget, at the slow
# end? Whatever fails is said with what would cure it.


# %%
#| export cloud/launch
def check(config: RunConfig, yes_spend: bool = False) -> Estimate:
    """What a run will need on the GPU that its config asks for.

    Raises:
        SlmError: It may cost more than `modal.max_dollars` and not `yes_spend`, or it
            cannot work at all.
    """
    for key in ("dataset", "tokenizer"):
        value = getattr(config.data, key)
        looks_so = value.startswith((".", "~", "/")) or value.endswith(TEXT_FILES)
        here = looks_so or glob.has_magic(value) or Path(value).exists()
        known = value in ("stories", "gpt2") or value.startswith(f"{DATA}/")
        if here and not known:
            told = f"data.{key} is {value!r}, which lies on this computer"
            raise SlmError(f"{told}; {how_to_upload(value, key)}")
    expected = estimate(config)
    if not expected.fits_memory:
        raise SlmError(verdict(config)[1])
    most = expected.dollars[1]
    if most > config.modal.max_dollars and not yes_spend:
        all_the_same = f"To spend up to ${most:.2f} all the same, say --yes-spend."
        raise SlmError(f"{verdict(config)[1]} {all_the_same}")
    return expected


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
        raise SlmError(
            f"the config asks for Weights & Biases, but: {error}. Create it with "
            "`modal secret create wandb WANDB_API_KEY=…`, or set wandb.enabled: false"
        ) from None
    except UNANSWERED as error:
        raise no_answer("the secret wandb", error) from None
    return [secret]


# %% [markdown]
# Each refusal is one line, and costs nothing:

# %% tags=["nbval-check-output"]
import textwrap

from slm.training.config import load_config


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
        except ENDED:
            return False
        except UNANSWERED as error:
            raise unknown(self.run, error) from None
        except Exception:  # the function's own
            return False
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
def _machine(config: RunConfig, keys: list[modal.Secret]) -> dict[str, Any]:
    """What the training function is to run on."""
    machine = config.modal
    return {
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


def _tell_end(expected: Estimate, launched: Launched, wait: bool) -> None:
    if launched.result:
        print(reconcile(expected, launched.result))
    elif wait:
        print(f"Only the watching has stopped; the run and its bill go on:\n{launched}")


# %% [markdown]
# The comparison at the end is four lines of text, the prediction above and what it came
# to below.


# %%
#| export cloud/launch
def live_apps() -> list[modal.App]:
    """The apps of the workspace that have not ended."""
    return modal.Environment.from_context().apps.list()


def reconcile(expected: Estimate, result: dict[str, Any]) -> str:
    """Prediction and outcome, side by side."""
    state = "finished" if result["finished"] else "not finished"
    problem = f": {result['problem']}" if result.get("problem") else ""
    told = f"{state} at step {result['step']}, validation loss {result['val_loss']}"
    hours, dollars = (
        f"{fast:.3g} to {slow:.3g}" for fast, slow in (expected.hours, expected.dollars)
    )
    spent, attempts = result["seconds"] / 3600, result["attempts"]
    tries = f"in {attempts} attempt{'s' * (attempts > 1)}"
    reached = "" if result["mfu"] is None else f", {result['mfu']:.0%} MFU"
    return (
        f"{result['run']}: {told}{problem}\n"
        f"{'':<10}{'hours':>18}{'dollars':>18}\n"
        f"{'predicted':<10}{hours:>18}{dollars:>18}   on {expected.name}\n"
        f"{'actual':<10}{spent:>18.3g}{result['dollars']:>18.3g}   {tries}{reached}"
    )


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
        volume: The folder that outlives every container, mounted at DATA.
        train: The function that trains: config text, run folder, budget.
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
    begun = [
        Launched(each.get("app", ""), each["call"], run)
        for each in attempts
        if each.get("call")
    ]
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
# time limit. `spawn` starts the call and returns its id at once; `get` waits for the
# result. (`remote` does both, but gives up after 24 hours, and leaves you without the
# id.) `app.run(detach=True)` keeps the app alive when this process ends, so a closed
# laptop or a lost connection stops nothing. The price of that: an interrupt here does
# not stop the training either, so the commands that do are printed, and the call's id
# is noted, before anything is waited for. An interrupt between the renting and the note
# would lose the id. So both are done in a thread, and the thread is waited for: an
# interrupt ends the waiting when the id is there, and not before.
#
# The config travels as text: the file may lie on your computer only. What is replaced
# in it is the folder of the token files, which lies on the volume. Text that has to be
# prepared is prepared first, on CPU cores, before a GPU is asked for.


# %%
#| export cloud/launch
@course.add_to(Cloud)
def launch(
    self, config: RunConfig, run: str = "", yes_spend: bool = False, wait: bool = True
) -> Launched:
    """Train a config in `/data/runs/RUN`; a run of that name goes on from there.

    Args:
        config: What to train, and in its `modal` section on what.
        run: The run's name; the config's, if empty.
        yes_spend: Go beyond `modal.max_dollars`, as far as the slow end of the
            prediction and no further.
        wait: Show the logs until the run has ended; then reconcile its cost.

    Raises:
        SlmError: Before anything is built or rented, with the reason.
    """
    run = check_run_name(run) if run else _name_of(config)
    print(cost_table(config))
    expected, budget = check(config, yes_spend), config.modal.max_dollars
    machine = _machine(config, secrets(config))
    self.refuse_twice(run)
    if yes_spend:
        budget = max(budget, expected.dollars[1])
    data = dataclasses.replace(config.data, cache_dir=f"{DATA}/tokens")
    text = dataclasses.replace(config, data=data).to_yaml()
    begun: list[tuple[Launched, modal.FunctionCall]] = []
    prepared, result = config.data.dataset == "stories", None  # it takes seconds
    with self.app.run(name=self.app_name(run), detach=True):
        self.refuse_twice(run, own=str(self.app.app_id))
        if not prepared:
            prepared = self._prepare(text)
        train = self.train.with_options(**machine)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(int).result()  # it runs before there is something to lose
            thread.submit(self._begin, begun, run, train, text, budget).result()
        if wait:
            leaving = "Interrupting now stops the watching, not the training."
            print(leaving, flush=True)
            result = _watch(*begun[0])
    if not begun:  # an interrupt ends the block without a word
        raise _interrupted(str(self.app.app_id), prepared)
    launched = dataclasses.replace(begun[0][0], result=result)
    _tell_end(expected, launched, wait)
    return launched


# %% [markdown]
# What happens inside, one step each. Whatever is rented is said first and noted then,
# and a note that cannot be written ends nothing. While the result is waited for, the
# call may be stopped from elsewhere, or Modal may be out of reach: two sentences, and
# only the first says that the run has ended.


# %%
#| export cloud/launch
@course.add_to(Cloud)
def _begin(self, begun: list[Any], run: str, train: Any, *sent: Any) -> None:
    """Rent, put what is known of it into the list, say it and note it."""
    text, budget = sent
    try:
        call = train.spawn(text, f"{DATA}/runs/{run}", budget)
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
        listed = f"`modal volume ls {VOLUME} runs` lists them"
        told = f"the volume {VOLUME} has no run {run!r} yet; {listed}"
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
# that is not done, and no run that is; and neither half needs PyTorch, the first not
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
for module, heavy in (("budget", "torch modal"), ("launch", "torch")):
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
# A count that a kill cannot erase, a budget that ends what does not end by itself, and
# a launch that does not pay for one run twice. [The launch](#launch) puts an image, a
# volume and a GPU behind it.

# %%
course.summary("slm/cloud/budget.py", "slm/cloud/launch.py")
