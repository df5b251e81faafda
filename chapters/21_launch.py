# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - modal_app.py
# ---

# %% [markdown]
# # Launch
#
# Rent a GPU by the second and train the package that you have built on it, knowing the
# cost before, capping it during, and reconciling it after. You write `modal_app.py`,
# piece by piece: `modal run modal_app.py --config configs/gpt_124m.yaml` is all that is
# left to type.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% [markdown]
# [Modal](https://modal.com) runs Python functions on machines that exist only while the
# function runs. You decorate a function, call it, and Modal builds an image with the
# packages you name, starts a container on the GPU you ask for, runs the function, and
# stops the clock. Nothing in this chapter needs an account: without one, the same
# function runs in this notebook, on your CPU. It is the same object, called as
# `train.local(…)` in place of `train.spawn(…)`.
#
# One thing to know before you trust it with money: this launch was tried with Modal's
# own client, but against a stand-in for Modal's servers, whose containers are processes
# on one computer. It was not tried on Modal itself. Make your first launch [a cheap
# one](#launch/three-commands), and look at the bill.
#
# ## The idea
#
# Between the command and the first training step, three parties work one after the
# other. {numref}`fig-timeline` shows them. What your computer and the container do can
# be measured here, so it is: a fresh Python process does each step and reads the clock.
# What Modal does is described, and not measured: it has no length in this figure.

# %% mystnb={"code_prompt_show": "Draw the time from the command to the first step", "figure": {"caption": "From the command to the first training step. What your computer and the container do was measured here; what Modal does in between is dotted and has no length. You pay from the red line on.", "name": "fig-timeline"}, "image": {"alt": "Three lanes: your computer reads the app, checks the config and works out the cost; Modal builds the image, uploads, finds a GPU and starts a container; the container imports, opens the tokens, builds the model and takes the first step. The GPU's clock starts with the container; importing takes most of the time that was measured."}} tags=["hide-input"]
from course.figures.launch import measure, timeline

timeline(measure())

# %% [markdown]
# The words that follow:
#
# - A *run* is a folder on the volume with a name. You may launch it several times, and
#   each *launch* is one *call* of the function `train`.
# - A call has *attempts*: when one breaks off, Modal starts the function again. Each
#   attempt has a *container*, a rented machine with your image in it.
# - To *commit* is to secure on the volume what a container has written. What is not
#   committed may be lost with the container.
# - A *local entrypoint* is a function that `modal run` calls on your computer.
# - A launch that is *detached* goes on in the cloud when your computer's part ends.
#
# Two things to take from the figure. Your computer's part needs no PyTorch: a mistake
# in a config shows at once, before anything is built or rented. And the clock that you
# pay for starts with the container, so whatever can happen before (checking,
# tokenising) should.
#
# What is left for this file is little. What a run costs stands in [the cost](#cost);
# counting what it has cost, and finding, stopping and fetching it in [the
# meter](#meter). Here are the image, the functions that run in containers, and the
# commands.
#
# ## The image
#
# A container starts from an *image*: a frozen file system with Python and packages. Its
# definition is a chain of layers, and Modal rebuilds from the first layer that changed.
# So what never changes comes first, and your own files last: they are not built into
# the image at all, but laid over it when a container starts. Editing `slm` costs no
# rebuild.
#
# Python, the installer and the packages that `slm` imports are pinned; what those
# packages pull in is not. So an image built next year has the same PyTorch, and may
# have a newer version of something below it. The list is written out and not read from
# the packages installed here, because this file is imported in the container too, and a
# definition must say the same in both places.

# %% mystnb={"code_prompt_show": "The docstring of modal_app.py, and its imports"} tags=["hide-input"]
#| export
"""Train on rented GPUs: `modal run modal_app.py --config configs/gpt_124m.yaml`.

    modal run modal_app.py::status --run gpt_124m

Checks the config and its cost on this computer, then trains in a container on the GPU
that the config names, with checkpoints on a volume. Also `::stop`, `::fetch` and
`::generate`, each with `--run NAME`.
"""

import contextlib
import functools
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import modal

import slm
from slm.cloud import cost, price
from slm.cloud.budget import TICK, Meter
from slm.cloud.launch import Cloud
from slm.errors import SlmError
from slm.files import check_run_name
from slm.training.config import RunConfig, load_config
from slm.training.folder import RunFolder, list_checkpoints, report

# %% [markdown]
# No `torch` among the imports: this file is read by your computer, which only asks for
# work to be done. The functions that do the work import what they need when they run.

# %%
#| export
PACKAGES = [
    "torch==2.13.0",
    "numpy==2.4.6",
    "tiktoken==0.14.0",
    "pydantic==2.14.3",
    "pyyaml==6.0.3",
    "tqdm==4.70.1",
    "safetensors==0.8.0",
    "filelock==4.2.12",
    "regex==2026.11.15",
    "datasets==5.2.0",
    "wandb==0.31.0",
]
# where slm/ and configs/ lie, here and in a container
HERE = Path(inspect.getfile(slm)).parents[1]

image = (
    modal.Image.debian_slim(python_version="3.11")
    .uv_pip_install(*PACKAGES, uv_version="0.13.9")
    .env({"PYTHONUNBUFFERED": "1", "WANDB_DIR": "/tmp"})
    .env({"TIKTOKEN_CACHE_DIR": f"{price.DATA}/tiktoken"})
    .add_local_python_source("slm")
    .add_local_dir(HERE / "configs", "/root/configs")
)
volume = modal.Volume.from_name(price.VOLUME, create_if_missing=True)
app = modal.App("slm-training")

# %% [markdown]
# Three names are all that the cloud knows of you: the *app*, under which runs are
# listed, each launch with the run's name behind it; the *volume*, a folder that
# outlives every container, mounted at `/data`; and later a *secret*, for those who use
# Weights & Biases.
#
# ## One attempt
#
# Before the function itself, its inside: one attempt to train to the end. It asks the
# meter first, trains under its watch, and secures each checkpoint. Then it sorts what
# can end it, and here the classes of [files and errors](#files/one-kind-of-error) earn
# their keep.
#
# What another attempt cannot mend is returned as a sentence, and ends the call: an
# `SlmError`, such as a folder that holds a run with another config, a loss that is no
# longer a number, a batch that does not fit the memory, checkpoints that do not fit the
# run; and a spent budget. Where another attempt may succeed (a full disk, a server that
# does not answer) the error says `retry`, and is raised again. So is every error that
# we do not know: it is tried once more, and if that attempt, too, comes to no new
# checkpoint, it was no accident.


# %%
#| export
def is_done(folder: RunFolder, steps: int | None) -> bool:
    """Whether a launch that stops after `steps`, or at the end, has come so far."""
    return folder.finished or steps is not None and folder.steps_done >= steps


def attempt(
    config: RunConfig, run_dir: str, meter: Meter, steps: int | None = None
) -> str:
    """One attempt to train to the end, or to the step after which the launch stops.

    Returns:
        What no further attempt can solve, or an empty string.
    """
    from slm.training.run import train as train_here

    def on_checkpoint() -> None:
        spent = meter.save()  # what was on this machine's disk is on the volume, too
        if not modal.is_local():
            hours, end = spent["seconds"] / 3600, meter.projected_dollars()
            told = f"{hours:.2f} h and ${spent['dollars']:.2f} so far"
            print(f"checkpoint on the volume; {told}, about ${end:.2f} at the end")
        meter.refuse_if_spent(spent["dollars"])

    try:
        meter.save()
        meter.refuse_if_spent(meter.dollars_before())
        if is_done(meter.folder, steps):  # an attempt before was lost as it ended
            return ""
        with meter.watching():
            several = config.modal.gpu_count > 1 and not modal.is_local()
            work = train_on_ranks if several else train_here
            rest: dict[str, Any] = {"on_checkpoint": on_checkpoint, "steps": steps}
            work(config, run_dir, dollars_per_hour=meter.dollars_per_hour, **rest)
        if meter.interrupted:
            meter.refuse_if_spent(meter.save()["dollars"])
    except SlmError as error:
        if error.retry:
            raise
        return str(error)
    except KeyboardInterrupt:
        if not meter.interrupted:
            raise
        return meter.spent_reason(meter.save()["dollars"])
    return ""


# %% [markdown]
# ## Several GPUs
#
# `gpu: "H100:8"` rents eight in one machine. Then the container starts `torchrun`,
# which starts one process for each, with the same command that you would type. This
# process only watches: it commits when a checkpoint has appeared, and passes an
# interruption on, so that the ranks can save.
#
# How does it learn what went wrong? `torchrun` ends with exit code 1 whatever happened
# to its ranks. So it names a file, on the machine's own disk (the volume may be what is
# full), to which a rank that fails writes what [the run](#runs/failing) knows of its
# error: the sentence, and whether another attempt may mend it. Where no rank could
# write, because it was killed for its memory, say, another attempt is made. The price
# goes the other way, as an option of the command, so that the ranks can write down what
# they cost.


# %%
#| export
def unpack(config_text: str, name: str) -> Path:
    """Write a config that travelled as text to `NAME.yaml` in a folder of its own."""
    path = Path(tempfile.mkdtemp(), f"{name}.yaml")
    path.write_text(config_text, encoding="utf-8")
    return path


# %% [markdown]
# What happens in it, in order: the config is written to a file for the ranks, an old
# failure file is removed, `torchrun` is started, and once a second this process looks
# whether there is a new checkpoint. However the loop ends, the ranks are told to save
# and waited for. Then the exit code decides, and the failure file says why.


# %%
#| export
def train_on_ranks(
    config: RunConfig,
    run_dir: str,
    on_checkpoint: Callable[[], None],
    dollars_per_hour: float,
    steps: int | None = None,
) -> None:
    """Train with one process for each GPU.

    Args:
        config: What to train, and how many GPUs there are.
        run_dir: The run's folder.
        on_checkpoint: Called when a checkpoint has been written.
        dollars_per_hour: Price of the machine, for the metric `cost/usd`.
        steps: Stop after this step; the whole run, if None.

    Raises:
        SlmError: A rank failed, with what it said.
        RuntimeError: `torchrun` ended in another way than with success.
    """
    path = unpack(config.to_yaml(), config.name)
    failure = path.with_name("failure.json")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ranks = f"--nproc_per_node={config.modal.gpu_count}"
    train = ["-m", "slm", "train", str(path), "--run-dir", run_dir]
    train += ["--dollars-per-hour", str(dollars_per_hour)]
    train += [] if steps is None else ["--steps", str(steps)]
    environment = {
        "SLM_FAILURE_FILE": str(failure),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300",  # seconds to save in; else it is 30
    }
    folder = RunFolder(Path(run_dir)).checkpoints
    known = list_checkpoints(folder)
    process = subprocess.Popen([*torchrun, ranks, *train], env=os.environ | environment)
    try:
        while process.poll() is None:
            time.sleep(1)
            if (now := list_checkpoints(folder)) != known:
                known = now
                on_checkpoint()
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun hands it to every rank: they save
            process.wait()
    found = None
    with contextlib.suppress(OSError, ValueError):  # none, or killed while writing it
        found = json.loads(failure.read_text(encoding="utf-8"))
    if process.returncode and found:
        raise SlmError(found["error"], found["retry"])
    if process.returncode:
        told = f"torchrun ended with exit code {process.returncode}"
        raise RuntimeError(f"{told}; what went wrong is in its output above")


# %% [markdown]
# Each GPU takes a batch of its own. So eight of them do not make a run shorter: they
# make each step eight times as large, at eight times the price. For the same number of
# tokens, divide `max_steps`:

# %% tags=["nbval-check-output"]
from slm.cloud.cost import estimate, tokens_per_step
from slm.gpus import MODAL
from slm.training.config import load_config

steps = load_config("configs/gpt_124m.yaml").training.max_steps
for changes in (
    ["modal.gpu=H200"],
    ["modal.gpu=H200:8"],
    ["modal.gpu=H200:8", f"training.max_steps={steps // 8}"],
):
    larger = load_config("configs/gpt_124m.yaml", changes)
    found, n = estimate(larger), larger.training.max_steps
    tokens = f"{n:>6,} steps, {n * tokens_per_step(larger) / 1e6:>5,.0f} million tokens"
    most = f"at most {found.hours[1]:.2f} h and ${found.dollars[1]:.2f}"
    print(f"{found.name:<7}{tokens}: {most}")

# %% [markdown]
# The last row assumes that the GPUs talk to each other for nothing, and that batches
# eight times as large learn as well per token. Neither is quite true.
#
# ## The function that trains
#
# The decorator says where the function would run. What each line is for:
#
# - `image`, `volumes`: the file system it finds.
# - No `gpu`: the config names one, and the launch adds it.
# - `timeout` is for one *attempt*; the config replaces it. `startup_timeout` is for
#   what comes before: pulling gigabytes of PyTorch may take minutes.
# - `retries`: after a crash or a time-out the same call starts again, at once. The
#   launch sets the number; the meter gives up sooner. A preemption uses none of them.
# - `single_use_containers`: each attempt gets a fresh process, not the one in which
#   CUDA has just failed.
#
# The config travels as text, not as a path: the file may lie on your computer only. And
# the caller names the run folder. Were it named by the function (by date, say), each
# attempt would begin a new one and nothing could ever resume.
#
# An `OSError` (disk, network) or an error of Modal's own classes is raised as a
# RuntimeError: in the answer to a question about the call it would look like a question
# that failed, and a run that has ended would seem to be out of reach. All others are
# raised as they are. What no further attempt can mend is never raised, since Modal
# would start the function again: it goes back with the result. That begins with the
# name and the config, which are checked here once more, and ends with a count that
# could not be kept, as on a full volume.


# %%
#| export
@contextlib.contextmanager
def wrapped_errors() -> Iterator[None]:
    """Raise errors of disk, network and Modal as RuntimeErrors."""
    try:
        yield
    except (modal.exception.Error, OSError) as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def outcome(run_dir: str | Path, name: str, problem: str = "") -> dict[str, Any]:
    """What `report` says of a run, with what no further attempt can mend."""
    try:
        return {**report(run_dir), "run": name, "problem": problem}
    except SlmError as error:  # what is there cannot be read: a report of nothing
        return outcome(tempfile.mkdtemp(), name, problem or str(error))


# %% [markdown]
# Now the function. First it looks at what it was given, and begins the meter; what is
# wrong there goes back with the result. Then the attempt, and three ways out of it. A
# return means that the run is finished, or cannot be mended. An error is noted in the
# meter's entry, and raised again unless the meter sees a row of attempts in vain. An
# interrupt is noted too, and raised again.


# %%
#| export
@app.function(
    image=image,
    volumes={price.DATA: volume},
    timeout=60 * 60,
    startup_timeout=price.STARTUP,
    retries=modal.Retries(max_retries=10, initial_delay=0.0),
    single_use_containers=True,
)
@wrapped_errors()
def train(
    config_text: str,
    run_dir: str,
    budget: float | None = None,
    rate: float | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Train in `run_dir`, from its last checkpoint if there is one.

    Args:
        config_text: A config as YAML.
        run_dir: The run's folder, named by the caller, the same for every attempt.
        budget: Dollars, over all attempts, after which the run saves and stops.
        rate: Dollars an hour; unless said, the price of the config's GPU on Modal, and
            nothing elsewhere.
        steps: Stop after this step of the run; a call without it goes on from there.

    Returns:
        What `report` says of the run; its "problem" is what no attempt can mend.
    """
    here, folder = modal.is_local(), RunFolder(Path(run_dir))
    try:
        name = check_run_name(folder.path.name)
        if not here and folder.path.parent != Path(price.DATA, "runs"):
            raise SlmError(f"{run_dir} is not {price.DATA}/runs/{name}")
        config = load_config(unpack(config_text, name))
        if rate is None:  # your own computer is not for rent, and has no volume
            rate = 0.0 if here else cost.dollars_per_hour(config)
        secure = (lambda: None) if here else volume.commit
        ids = modal.current_function_call_id() or "", app.app_id or ""
        meter = Meter(run_dir, rate, budget, config.training.max_steps, *ids, secure)
    except SlmError as error:
        print(f"{run_dir} cannot be trained: {error}")
        return outcome(tempfile.mkdtemp(), folder.path.name, str(error))
    try:
        problem = meter.stall_reason() or attempt(config, run_dir, meter, steps)
        if not problem and not is_done(folder, steps):
            # a normal return would count as finished
            raise KeyboardInterrupt(f"{run_dir} was interrupted and saved")
        problem = meter.end(problem)
    except Exception as error:
        meter.entry["error"] = f"{type(error).__name__}: {error}"
        if not (problem := meter.end(meter.stall_reason())):
            raise
    except KeyboardInterrupt:  # Modal's; `attempt` keeps the meter's to itself
        early = time.monotonic() - meter.started < config.modal.timeout - TICK
        meter.entry["interrupted"] = early
        meter.end("")
        raise
    if problem:
        print(f"{run_dir} stops: {problem}")
    return outcome(run_dir, name, problem)


# %% [markdown]
# The lines with KeyboardInterrupt matter more than they seem. When Modal takes a
# machine away it interrupts the process, and our trainer does the decent thing: it
# finishes its step, saves, and returns. But to Modal a function that *returns* is done,
# and a half-trained model would be reported as the result. So an interrupted run ends
# in an interrupt, and the call is started again elsewhere. The time limit, too, shows
# as an interrupt; one that comes within a `TICK` of the limit is the limit's, and
# counts as an attempt in vain if it came to no checkpoint.
#
# What may you change in the config of a run that has begun? What decides when and where
# it computes: `timeout`, `max_dollars`, `cpu`, `memory_mib`, `checkpoint_every`,
# `keep_checkpoints`, `sample_tokens`, `threads`, `num_workers`, the `log_` and `eval_`
# keys, the whole `wandb` section, and a `gpu` that computes in the same precision (a T4
# has no bfloat16). What decides what it computes stays: model, text, `batch_size`,
# `max_steps`, the learning rate and its schedule, the precision, the number of GPUs. A
# change of those is refused, by the launch before it rents and by the container once
# more: it makes another run, which needs another name.
#
# ## Data off the GPU's clock
#
# Tokenising a corpus needs no GPU, and downloading one needs nothing at all, so neither
# should happen on a machine that costs dollars an hour. `prepare` does both in a CPU
# container, into the volume; the trainer then finds the finished token files. Called
# again, it returns at once.
#
# A corpus of many files goes to many containers. `prepare_part.map(range(n))` is a loop
# whose rounds run at the same time, each in a container of its own, and sixteen
# containers for an hour cost what one costs for sixteen, but for their starts. Each
# makes one part, `prepare` joins them
# ([preparing](#prepare/a-corpus-for-many-machines)), and a part that is there when the
# command is typed again is not made again. A few files are not worth the container
# starts, and a limit on the number of documents cannot be divided: both stay in one
# container.
#
# Preparation is cheap, but it is rented, too, and `max_dollars` does not count it. What
# ends it are the time limit and the retries of the decorator.


# %%
#| export
FEW_FILES = 8  # a corpus of fewer is prepared in one container
ON_CORES: dict[str, Any] = {
    "image": image,
    "volumes": {price.DATA: volume},
    "timeout": price.WHOLE,
    "startup_timeout": price.STARTUP,
    "cpu": price.CORES,
    "retries": modal.Retries(max_retries=price.RETRIES, initial_delay=0.0),
}


def problem_of(work: Callable[..., None]) -> Callable[..., str]:
    """Return as a sentence what no further attempt can mend; raise the rest."""

    @functools.wraps(work)
    @wrapped_errors()
    def told(*values: Any, **options: Any) -> str:
        try:
            work(*values, **options)
        except SlmError as error:
            if error.retry:
                raise
            return str(error)
        finally:
            volume.commit()
        return ""

    return told


# %% [markdown]
# One part of one split, the smallest piece of work, with a time limit of its own: an
# attempt that meets it is gone on with by the next. `problem_of` is between it and
# Modal: what no further attempt can mend comes back as a sentence, and what was written
# is committed whatever happens.


# %%
#| export
@app.function(**{**ON_CORES, "timeout": price.PART})
@problem_of
def prepare_part(k: int, n: int, split: str, config_text: str) -> None:
    """Tokenise the k-th of n parts of a split; returns what is wrong with its text."""
    from slm.data.prepare import prepare_tokens
    from slm.data.tokenizer import get_tokenizer

    data = load_config(unpack(config_text, "prepare")).data
    prepare_tokens(data, split, get_tokenizer(data.tokenizer), part=(k, n))


# %% [markdown]
# And the whole: for each split, count the files; few are prepared here, many in parts,
# each in its container. It asks for the parts, waits for all, and joins them. A part
# that has failed in all its attempts ends it, or the retries here would multiply those.


# %%
#| export
@app.function(**ON_CORES)
@problem_of
def prepare(config_text: str) -> None:
    """Tokenise a config's text into the volume; returns what is wrong with it."""
    from slm.data.prepare import count_shards, join_tokens, prepare_tokens
    from slm.data.tokenizer import get_tokenizer

    data = load_config(unpack(config_text, "prepare")).data
    tokenizer = get_tokenizer(data.tokenizer)
    for split in (data.train_split, data.val_split):
        shards = 1 if modal.is_local() else count_shards(data, split, tokenizer)
        if shards < FEW_FILES:
            prepare_tokens(data, split, tokenizer)
            continue
        n = min(shards, price.CONTAINERS)
        told = f"{shards} files in {n} parts, each in a container of its own"
        print(f"{data.dataset}, {split}: {told}")
        rest = {"n": n, "split": split, "config_text": config_text}
        made = prepare_part.map(range(n), kwargs=rest)
        try:  # a list waits for all of them, so that none runs on unseen
            problems = list(filter(None, made))
        except Exception as error:  # each part was tried often enough
            told = f"a part of {split} was not prepared"
            why = f"{type(error).__name__}: {error}"
            again = "the same command goes on from there"
            raise SlmError(f"{told} ({why}); {again}") from None
        if problems:
            raise SlmError(str(problems[0]))
        volume.reload()  # what the other containers have committed
        join_tokens(data, split, tokenizer, n)


# %% tags=["nbval-check-output"]
second = (1 + price.RETRIES) * price.CORES * MODAL.dollars_per_core_second
one = second * (price.WHOLE + price.STARTUP)
part = second * (price.PART + price.STARTUP)
print(f"one container at its limits in every attempt: ${one:.2f}")
both = one + 2 * price.CONTAINERS * part  # the splits for training and for validation
print(f"and {price.CONTAINERS} more with a part each, for two splits: ${both:.2f}")

# %% [markdown]
# That is for a preparation in which everything hangs, and for the cores; the memory
# that it uses comes on top. To be able to end it sooner, the launch prints `modal app
# stop ap-…` before it waits for it. Ctrl-C does not end it. It goes on, and the same
# command is refused until it is done.
#
# `generate` is the other end: it loads a trained model from the volume and writes. A
# container that has served one call waits a while for the next, and still sees the
# volume as it was; `reload` shows what has been committed since. Both are ordinary
# functions that happen to have a decorator.


# %%
#| export
@app.function(image=image, volumes={price.DATA: volume}, timeout=20 * 60, cpu=2.0)
def generate(
    run: str, prompt: str = "Once upon a time", max_tokens: int = 200, seed: int = 0
) -> str:
    """Continue `prompt` with a run's newest weights; prints and returns the text."""
    from slm.generation import generate as continue_text
    from slm.training.run import load_run

    name = check_run_name(run)
    if not modal.is_local():
        volume.reload()  # this container may be older than what is on the volume
    found = load_run(Path(price.DATA, "runs", name))
    text = continue_text(found.model, found.tokenizer, prompt, max_tokens, seed=seed)
    assert isinstance(text, str)  # one prompt, one text
    print(text)
    return text


# %% [markdown]
# ## What `max_dollars` means
#
# Two things: a launch whose prediction is above it is refused, and a run is stopped
# when it has cost so much, over all launches under one `--run`. What it does not see,
# and what the line `at most` adds to it as far as it has a limit:
#
# - the start-up of each attempt, before the function begins: the meter runs from its
#   first line to its last, the bill from the container's start;
# - preparation and `generate`;
# - cores and memory that a container uses above what `cpu` and `memory_mib` reserve;
# - prices newer than the table, which has a date. `modal billing rates` shows today's.
#
# And it stops no run on the cent. A spent budget is noticed within one `TICK`, the
# trainer finishes its step and saves, and what has not ended `PATIENCE` ticks later is
# ended by force. As long as the volume can be reached, that is at most this much more:

# %% tags=["nbval-check-output"]
from slm.cloud.budget import PATIENCE

for gpu in ("T4", "H200", "H200:8"):
    found = estimate(load_config("configs/gpt_124m.yaml", [f"modal.gpu={gpu}"]))
    print(f"{gpu:<7}${(1 + PATIENCE) * TICK / 3600 * found.dollars_per_hour:.2f}")

# %% [markdown]
# ## The commands
#
# What you type. `main` belongs to an app of its own, with no functions in it, so that
# `modal run` has nothing to build before `main` has looked at the config. The helpers
# are made in the same way: in `modal run modal_app.py::status`, `status` is the name of
# an app in this file, and Modal calls the one local entrypoint that it has. A mistake
# is told in one sentence, with the exit code for bad input, as at [the
# door](#door/the-one-place-where-errors-are-told). And as there, 130 says that somebody
# stopped it: here the watching, and nothing else.


# %%
#| export
cloud = Cloud(app, volume, train, prepare)
launcher = modal.App("slm-launcher")


def in_a_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command say an SlmError in one sentence, and end with exit code 2."""

    @functools.wraps(command)
    def told(*values: Any, **options: Any) -> None:
        try:
            command(*values, **options)
        except SlmError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("Stopped.", file=sys.stderr)
            sys.exit(130)

    return told


@launcher.local_entrypoint()
@in_a_sentence
def main(
    config: str, run: str = "", yes_spend: bool = False, steps: int | None = None
) -> None:
    """Train a config file on Modal.

    `--steps N` stops after step N, and the same command without it goes on from there;
    `--yes-spend` goes beyond the config's modal.max_dollars.
    """
    launched = cloud.launch(load_config(config), run, yes_spend, steps=steps)
    if (result := launched.result) is None:  # only the watching has ended
        sys.exit(130)
    if not (result["finished"] or steps and result["checkpoint"] >= steps):
        sys.exit(1)


# %% [markdown]
# The three helpers are a line or two each, since [the meter](#meter)'s `Cloud` does the
# work; `command` makes an app of each.


# %%
#| export
def show_status(run: str) -> None:
    """Print how far a run is, what it has cost, and whether it is running."""
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(cloud.status(run, folder), indent=2))


def stop_run(run: str) -> None:
    """Cancel a run; the command that launched it goes on from its last checkpoint."""
    cloud.stop(run)
    again = "the command that launched it goes on from its last checkpoint"
    print(f"{run} is stopped; {again}")


def fetch_run(run: str, to: str = "") -> None:
    """Copy a run's model, metrics and samples to this computer."""
    print(f"{run} is in {cloud.download(run, to or f'runs/modal/{run}')}")


def command(function: Callable[..., None]) -> modal.App:
    """An app for `modal run modal_app.py::NAME`, with nothing to build or to rent."""
    commands = modal.App(f"slm-{function.__name__}")
    commands.local_entrypoint()(in_a_sentence(function))
    return commands


status, stop, fetch = command(show_status), command(stop_run), command(fetch_run)


# %% [markdown]
# The rehearsal that costs nothing and needs no account is `slm cost
# configs/gpt_124m.yaml`: it prints the same table, and names a mistake in the config.
# (`modal run` without a token stops before it has looked at your config. This page
# writes `slm` and `modal`. Outside the environment that `make` has set up, the one is
# `.venv/bin/slm`, and the other `.venv/bin/python -m modal`.)
#
# ## Before the first launch
#
# `modal setup` puts a token on this computer, once. Then, before anything is rented,
# put up the outer fence: a [budget for the
# workspace](https://modal.com/docs/guide/budgets), in Modal's settings. It counts
# everything, with Modal's own clock, and holds where our code has a mistake. Inside it
# stands `max_dollars`, and inside that the line `at most` which each launch prints
# ([the meter](#meter/the-most-that-it-can-cost)).
#
# What has been spent, `modal billing report --for today -r h` tells, for each app and
# hour. It counts hours that are over, and what it knows is minutes old, at times more:
# look when the next hour has begun. `modal billing summary` tells the month's sum,
# `modal billing rates` the prices of today.
#
# Modal's Starter plan gives some compute a month for nothing and lends ten GPUs at once
# (2026-07-01). How far does that go? For each config the slow end of what to expect,
# and the most that it can cost:

# %% tags=["nbval-check-output"]
from slm.cloud.price import budget, check, most_dollars, terms

free, sums = MODAL.free_dollars_per_month, [0.0, 0.0]
for name in ("stories_cpu", "gpt_124m", "gpt_350m", "gpt_774m"):
    config = load_config(f"configs/{name}.yaml")
    expected = check(config)
    worst = sum(most_dollars(config, expected, config.modal.max_dollars).values())
    sums = [sums[0] + expected.dollars[1], sums[1] + worst]
    print(f"{name:<12} up to ${expected.dollars[1]:>5.2f}, at most ${worst:>5.2f}")
print(f"{'all four':<12} up to ${sums[0]:>5.2f}, at most ${sums[1]:>5.2f}")
print(f"{'free':<12} ${free:.2f} a month")

# %% [markdown]
# By what to expect, all of them fit into one month. By the worst case, in which every
# container hangs as often as it may, each fits alone, and all together do not: that is
# what the budget of the workspace is for.
#
# ## Three commands
#
# The first launch should be the cheapest that tells something. So there are three.
#
# **The stories, on the smallest GPU.** It goes through all the parts (image, volume,
# checkpoints, the model that comes back), and what is wrong with an account or a
# network shows here.
#
# **The first 600 steps of the model that you want, on its GPU.** `--steps 600` stops
# the run after them, with a checkpoint. The schedule is that of the whole run: these
# *are* its first steps. They measure the one thing in the prediction that nobody knows
# for sure, the speed. At the end the command prints it, with the hours and dollars of
# all that is left, an interval from its slow rows to its fast ones. The budget of this
# launch is the slow end of its own prediction, and not all of `max_dollars`.
#
# **The same without `--steps`.** It finds the checkpoint on the volume and goes on, to
# the same weights as if it had never stopped. What it prints before it rents is now
# computed from the speed that was measured.

# %% tags=["nbval-check-output"]
first = {"checkpoint": 0, "dollars": 0.0, "tokens_per_s": None}
for name, steps, done in (
    ("stories_cpu", None, 0),
    ("gpt_124m", 600, 0),
    ("gpt_124m", None, 600),
):
    config, so_far = load_config(f"configs/{name}.yaml"), {**first, "checkpoint": done}
    expected = check(config, before=so_far, steps=steps)
    stop = f" --steps {steps}" if steps else ""
    limit = budget(config, expected, steps=steps)
    print(f"modal run modal_app.py --config configs/{name}.yaml{stop}")
    print(terms(config, expected, limit, so_far), end="\n\n")

# %% [markdown]
# `slm train configs/gpt_124m.yaml --steps 600` does the same on a computer of your own.
# And for another run of the same config, on another GPU, say, give it a name: `--run
# NAME`. A launch asks the volume first. Of a run that is finished, or was begun with
# settings that make another run, it says so in a sentence, and rents nothing.
#
# ## Use it
#
# From here on the notebook uses the file that it has just written, as you would from a
# script. Two conditions decide where the training happens: a token on this computer
# (`modal setup` puts one there, once), and your word. Leave `LAUNCH` as it is, and the
# same function runs here.

# %%
import shutil
import warnings

from modal.config import config as modal_settings

import modal_app
from slm.cloud.cost import cost_table
from slm.cloud.launch import LARGE
from slm.cloud.price import reconcile

# without the volume: that is as it should be
warnings.filterwarnings("ignore", "The train function is executing locally")
LAUNCH = False  # True rents a GPU, for what the prediction below says
ON_MODAL = LAUNCH and modal_settings.get("token_id") is not None
print(f"{modal_app.app.name}: trains {'on Modal' if ON_MODAL else 'in this notebook'}")

# %% [markdown]
# The config is that of [the trainer](#trainer/train), cut to a short run. First the
# bill:

# %%
short = ["training.max_steps=60", "training.warmup_steps=10"]
short += ["training.checkpoint_every=20", "training.eval_every=30"]
short += ["training.eval_batches=10", "training.sample_tokens=0"]
short += ["data.max_documents=2000"]
config = load_config("configs/stories_cpu.yaml", short)
print(cost_table(config))
expected = check(config)

# %% [markdown]
# On a rented GPU the next cell returns as soon as the call has an id. The first time
# that takes minutes, in which Modal builds the image and a notebook shows nothing;
# `with modal.enable_output():` around the launch shows it. At home the cell returns
# when the training is over.

# %%
if ON_MODAL:
    modal_app.cloud.launch(config, run="launch", wait=False)
else:
    shutil.rmtree("runs/launch", ignore_errors=True)
    modal_app.train.local(config.to_yaml(), "runs/launch")

# %% [markdown]
# ### Follow
#
# The call has a life of its own. Interrupt this notebook, restart the kernel, open it
# on another computer: `find` looks up the call's id, in a note on this computer or in
# the run's folder on the volume, and Modal knows the call by its id. So following is
# reading: wait for the result with a short patience, and draw what lies on the volume
# while it is not there: {numref}`fig-followed`. The next cell needs only the cells
# above it that import and define, not the launch.

# %% mystnb={"figure": {"caption": "The run that was launched, as far as it has come: the loss of its training steps, and that on text which it does not train on.", "name": "fig-followed"}, "image": {"alt": "Two falling lines over the steps of the run. The training loss begins near the value of a model that knows nothing, and falls fast, then ever more slowly; the validation loss goes along with it."}}
from IPython.display import clear_output, display

from course.figures.launch import loss_curve

folder = Path("runs/modal/launch" if ON_MODAL else "runs/launch")
try:
    while ON_MODAL and (call := modal_app.cloud.find("launch")):
        try:
            call.call.get(timeout=10)
            break
        except TimeoutError:
            clear_output(wait=True)
            print(f"{call.call_id} is waiting or running")
            with contextlib.suppress(SlmError):  # nothing is there yet, or no answer
                modal_app.cloud.download("launch", folder, skip=LARGE)
                print(report(folder))
                display(loss_curve(folder))
except KeyboardInterrupt:
    print("Only the watching has stopped. The run goes on, and so does its bill:")
    print("run this cell again, or the next one.")
if ON_MODAL:
    modal_app.cloud.download("launch", folder)
loss_curve(folder)

# %% [markdown]
# ### Stop
#
# Interrupting the kernel never stops a detached run; this does. What was trained since
# the last checkpoint is lost, the rest is on the volume, and the launch cell goes on
# from there: from `checkpoint` in the report, which may be behind `step`. The budget
# stops more gently: the trainer finishes its step and saves.

# %%
STOP = False  # True ends the run, finished or not
if ON_MODAL and STOP:
    modal_app.cloud.stop("launch")

# %% [markdown]
# ### Fetch and generate
#
# The model came back with the run's folder, and loads like any other. After 60 steps it
# has many of the words, and no story yet.

# %%
from slm.generation import generate as continue_text
from slm.training.run import load_run

trained = load_run(folder)
course.show(continue_text(trained.model, trained.tokenizer, "Once upon a time", 60))

# %% [markdown]
# ### Reconcile
#
# And the bill, against the prediction. At home an hour costs nothing.

# %%
print(reconcile(expected, report(folder)))

# %% [markdown]
# ## Is it right?
#
# The claim that carries everything is that a run that was stopped goes on as if nothing
# had happened. [The runs](#runs/kill-it) show it for a process that is killed. Here it
# is shown for the launch, with stops in one process. The run has twenty steps. First it
# trains in one go. Then it trains again, and pays for each second; its budget is always
# a billionth of a dollar above what it has cost so far. So each attempt stops soon
# after its first checkpoint, and the next one goes on from there:

# %%
twenty = ["training.max_steps=20", "training.warmup_steps=2"]
twenty += ["training.checkpoint_every=5", "training.eval_every=20"]
text = load_config("configs/stories_cpu.yaml", [*short, *twenty]).to_yaml()
for name in ("whole", "parts"):
    shutil.rmtree(f"runs/launch_{name}", ignore_errors=True)

whole = modal_app.train.local(text, "runs/launch_whole")
parts = {"finished": False, "dollars": 0.0}
for _ in range(20):  # attempts, of which a step apiece would do
    if not parts["finished"]:
        more = parts["dollars"] + 1e-9
        parts = modal_app.train.local(text, "runs/launch_parts", budget=more, rate=3.60)
assert parts["finished"], parts["problem"]

# %% tags=["nbval-check-output"]
sent = modal_app.unpack(config.to_yaml(), config.name)
probe = "import sys, modal_app, slm.training.config as c; from slm.cloud import price; "
probe += "price.check(c.load_config('configs/stories_cpu.yaml')); "
probe += "print('torch' in sys.modules)"
asked = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
print(f"attempts: {whole['attempts']} for the whole, {parts['attempts']} for the parts")
weights = [
    Path("runs", run, "model/model.safetensors").read_bytes()
    for run in ("launch_whole", "launch_parts")
]
print(f"the same weights, to the last bit: {weights[0] == weights[1]}")
print(f"the config arrives as it was sent: {load_config(sent) == config}")
print(f"asking loads torch: {asked.stdout.strip()}")

# %% [markdown]
# Equal to the last bit: the checkpoint has the random state and the place in the data
# beside the weights.
#
# ## What goes wrong
#
# What can be wrong with a config shows before anything is built, in one sentence that
# costs nothing ([the meter](#meter/the-price-of-a-launch) shows some). The rest happens
# far away. What it looks like, and what to do about it:
#
# - **Preemption**: the machine is needed elsewhere. The log says `stopped after step
#   …`, then `continuing`, with no more than a new container's start between them. Do
#   nothing; no retry is used up.
# - **The time limit** passes. The attempt is shown as timed out, and the log says
#   `continuing` at the last checkpoint; one retry fewer. Do nothing, if a checkpoint is
#   written more often than every `modal.timeout` seconds; otherwise it starts at the
#   same step each time.
# - **The time limit is too short** for a single checkpoint, or the container is killed
#   for its memory. Three attempts in a row end where they began, and then a result says
#   so. Set a longer `modal.timeout`, a smaller `training.checkpoint_every`, or more
#   `modal.memory_mib`.
# - **An error nobody foresaw.** A traceback, one more attempt, and, if that comes no
#   further, the end of the call with the error's name. Read the traceback; the same
#   command goes on from the last checkpoint.
# - **The secret is missing.** One line says how to create it, before anything is built.
#   Create it, or set `wandb.enabled: false`.
# - **Detach was forgotten**, in a launch of your own: `with app.run():` around a
#   `spawn`. The block ends at once and takes the app with it; the call shows as
#   cancelled, the volume is empty. Write `app.run(detach=True)`, as in `launch`.
# - **Data on the GPU's clock.** A progress bar of a download stands in the log of a
#   function that has a GPU. Fill the volume first, as `prepare` does.
# - **The memory is full.** The log says `the GPU's memory is full`, and what to change;
#   the call ends, with no retry. Change it, and launch under another `--run`.
# - **Launched twice.** The second launch is refused, from any computer, and names the
#   call that is running, or the app that is about to make it. Follow it, or stop it.
# - **The run is there already.** It is finished, or was begun with another config or in
#   another precision. The launch says so and rents nothing. Fetch it, or launch under
#   another `--run`.
# - **No answer** from Modal: no network, or a token that is no longer valid. `status`,
#   `stop` and a launch say `Modal cannot be asked about …`. Ask again; the run may be
#   running, and be paid for.
# - **The disk is full.** The log says `was not saved`; one more attempt follows, on
#   another machine. If it is the volume that is full, the call ends at once, and the
#   result says so. Set a smaller `training.keep_checkpoints`, and make room.
# - **The budget is spent**, at a checkpoint or anywhere else. It is noticed within one
#   `TICK`, and the run saves and stops; the log says what it has cost, and `a larger
#   budget goes on from here`. Look at the loss; then raise `modal.max_dollars` and
#   start the same command, or fetch what is there.
# - **The package changed** in a running notebook. The container gets the new `slm`, the
#   notebook still has the old one. Restart the kernel.
#
# The invoice, which `modal billing report` shows, has in it what the meter does not
# see: of a long run a little, of the tiny run above most. Its prediction is nearly all
# start-up, which the meter does not count; so its last table shows less than was
# predicted, and less than is paid.
#
# ## Leave nothing behind
#
# - Does anything still run? `modal app list` shows the apps, `modal container list` the
#   machines that you are paying for at this moment.
# - `modal run modal_app.py::stop --run NAME` ends the calls of one run, or the launch
#   that still prepares its text. `modal app stop ap-…` ends everything in an app.
# - What lies on the volume? `modal volume ls slm-data`, and `modal volume ls slm-data
#   /runs`. One TiB is free (2026-07-01); beyond that Modal charges for storage, also
#   while nothing runs.
# - `modal volume rm -r slm-data /runs/NAME` deletes a run with its checkpoints. Fetch
#   it before. After that, and after `rm -r runs/modal/NAME` on your computer, a launch
#   under the same name begins at step 0.
# - The tokens are under `/tokens`, your own files under `/text`; they can go the same
#   way, and `modal volume delete slm-data` takes all of it.
# - `modal secret delete wandb` takes the key back that you lent.
#
# ## Exercises
#
# **1. A budget that refuses.** Among the GPUs that need at most `max_hours` for the
# run, choose the one on which it costs least. If it costs more than `max_dollars`,
# raise a ValueError that says what it costs, even if one that takes too long is
# cheaper. If no GPU is in time, raise a ValueError, too.

# %% tags=["exercise"]
from course import check as exercises


def my_choose_gpu(
    gpus: dict[str, tuple[float, float]], max_dollars: float, max_hours: float
) -> str:
    """The name of the best choice; `gpus` gives hours and dollars per hour of each."""
    raise NotImplementedError("your turn")


exercises.choose_gpu(my_choose_gpu)

# %% [markdown]
# What the check says to a typical wrong answer, one that looks at the price of an hour:

# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input"]
exercises.choose_gpu(lambda gpus, dollars, hours: min(gpus, key=lambda n: gpus[n][1]))

# %% [markdown]
# <details><summary>Solution: <code>my_choose_gpu</code></summary>
#
# ```python
# def my_choose_gpu(gpus, max_dollars, max_hours):
#     in_time = {
#         name: hours * price
#         for name, (hours, price) in gpus.items()
#         if hours <= max_hours
#     }
#     if not in_time:
#         raise ValueError(f"no GPU is done within {max_hours} hours")
#     best = min(in_time, key=in_time.get)
#     if in_time[best] > max_dollars:
#         raise ValueError(f"{best} costs ${in_time[best]}, above ${max_dollars}")
#     return best
# ```
# </details>
#
# **2. Survive.** Write one attempt of a run: call `work(0)`, `work(1)`, … up to
# `work(steps - 1)`, and return `steps`. The container may be taken away during any
# step: sometimes `work` raises a KeyboardInterrupt first, sometimes nothing in it runs
# any more. Then all is lost that is in `folder` and that `commit()` has not secured.
# Here a step is dear and a commit costs nothing: whenever a step begins, all before it
# must be secured, and the next attempt begins with the one that was lost.


# %% tags=["exercise"]
def my_attempt(
    folder: Path, steps: int, work: Callable[[int], None], commit: Callable[[], None]
) -> int:
    """Do what is left of `steps` steps, keeping count in `folder`; returns `steps`."""
    raise NotImplementedError("your turn")


exercises.attempt(my_attempt)

# %% [markdown]
# What the check says to a typical wrong answer, one that tidies up in a `finally`:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input"]
def tidies_up(folder, steps, work, commit):
    saved = folder / "step.txt"
    try:
        for step in range(int(saved.read_text()) if saved.exists() else 0, steps):
            work(step)
            saved.write_text(str(step + 1))
    finally:
        commit()
    return steps


exercises.attempt(tidies_up)

# %% [markdown]
# <details><summary>Solution: <code>my_attempt</code></summary>
#
# ```python
# def my_attempt(folder, steps, work, commit):
#     saved = folder / "step.txt"
#     for step in range(int(saved.read_text()) if saved.exists() else 0, steps):
#         work(step)
#         saved.write_text(str(step + 1))
#         commit()
#     return steps
# ```
# There is no `except`: an interruption that is caught and not raised again looks like
# success. And no `finally`: a process that is killed does not come to it.
# </details>
#
# ## What you have now
#
# A language model, from attention written as two loops to a run on rented hardware that
# knows its price. `modal setup` once, and `modal run modal_app.py --config
# configs/gpt_124m.yaml` trains [the GPT](#gpt) at its full size.

# %%
course.summary("modal_app.py")
