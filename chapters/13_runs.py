# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/training/run.py
# ---

# %% [markdown]
# # Runs
#
# *An engine room: it can be skipped at first reading.* One call that starts a run,
# resumes one that was stopped, or returns one that is finished. You put together what
# the last chapters built, kill it while it works, and export `train`, `load_run`, which
# reads a run folder, and `Run`, what both return.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% tags=["hide-input"]
#| export
"""A run from its config: started, continued, or returned as it is.

    run = train(load_config("configs/stories_cpu.yaml"))
"""

import contextlib
import dataclasses
import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch

from slm.data.batches import TokenLoader
from slm.data.dataset import make_loaders
from slm.errors import SlmError
from slm.files import make_folder, make_run_name, publish, user_path, write_text
from slm.model.gpt import GPT, sample_tokens
from slm.model.pretrained import known_tokenizer
from slm.model.config import GPTConfig, count_parameters
from slm.hardware import (
    gather_from_ranks,
    process_group,
    rank,
    room,
    room_for_run,
    world_size,
)
from slm.data.tokenizer import Tokenizer, get_tokenizer
from slm.training.checkpoint import (
    Checkpointer,
    config_mismatch,
    data_mismatch,
    load_latest,
    misfit,
)
from slm.training.config import RunConfig, changed_keys, check_steps, load_config
from slm.training.folder import (
    RunFolder,
    code_fingerprint,
    list_checkpoints,
    read_metrics,
    read_tokenizer,
)
from slm.training.metrics import (
    Dollars,
    MetricsFile,
    Observer,
    WandbLogger,
    wants_wandb,
)
from slm.training.trainer import Trainer, evaluating

# %% [markdown]
# ## What a run has to survive
#
# A training of some hours will be interrupted. A laptop is closed, a power cord is
# pulled, a cloud takes its machine back with half a minute's notice, somebody presses
# Ctrl-C. So the same command does three things: it starts a run, it *resumes training*
# where one was stopped, and it returns one that is finished. Whoever is interrupted
# gives the command again and need not know where it stood.
#
# {numref}`fig-run` is a run that was killed twice. After each start it goes back to the
# newest checkpoint and does the steps since then again. It loses that time, and nothing
# else: the weights at the end are those of a run that was left alone, on the same
# machine with the same number of threads, to the last bit.

# %% mystnb={"code_prompt_show": "Draw a run that is killed twice", "figure": {"caption": "A run that is killed twice. Each start goes on from the newest checkpoint (dotted); the steps since then are done again (the thick lines), and give the same numbers.", "name": "fig-run"}, "image": {"alt": "Steps against time: a line rises, with a checkpoint at every 20 steps. A kill cuts it off between two checkpoints, and it starts again from the lower one; a second kill does the same further up; then it reaches the end at 100."}} tags=["hide-input"]
from course.figures.runs import killed_twice

killed_twice()

# %% [markdown]
# All parts are there: [the trainer](#trainer) hands out its state, the
# [checkpointer](#checkpoints/saving-beside-the-training) writes it,
# [observers](#settings/observers) keep the rows. What is left is the order in which
# they are put together, and a few refusals.
#
# ## Reading a run
#
# A run folder is read in two cases. The finished one has a folder `model`, in the
# format that other libraries open. An unfinished one has checkpoints, of which the
# newest is taken, and it is enough to write a text with while training still goes on in
# another process. `empty_model` makes the model without drawing its first weights,
# which would be overwritten at once: on the device "meta" a tensor has a shape and no
# numbers. The weights alone must fit into memory, and `room` sees to that first.


# %%
#| export
@dataclass(frozen=True)
class Run:
    """A run folder, read: model with its newest weights, tokenizer, metrics, config."""

    run_dir: Path
    model: GPT
    tokenizer: Tokenizer
    metrics: list[dict[str, Any]]
    config: RunConfig
    finished: bool

    @property
    def val_loss(self) -> float | None:
        """The last validation loss in nats per token; None if there was none."""
        losses = [row["val/loss"] for row in self.metrics if "val/loss" in row]
        return losses[-1] if losses else None


# %% [markdown]
# `load_run` asks in order: is there a run, is its config in order, is its tokenizer the
# one that it was trained with, is there room for the weights? Then it reads them, from
# the one place or the other.


# %%
#| export
def load_run(run_dir: str | Path) -> Run:
    """Read a run folder; of an unfinished run, the newest checkpoint.

    Raises:
        FileNotFoundError: The folder holds no run, or no weights yet.
        SlmError: Its config or its checkpoints cannot be used, its tokenizer was
            replaced, or the memory does not hold its weights.
    """
    folder = RunFolder(user_path(run_dir))
    if not folder.config.is_file():
        none = f"{run_dir} holds no run (no {folder.config.name})"
        raise FileNotFoundError(f"{none}; `slm train CONFIG` makes one in runs/")
    config = dataclasses.replace(load_config(folder.config), name=folder.path.name)
    place = str(folder.model) if folder.finished else config.data.tokenizer
    tokenizer = fitting_tokenizer(place, config, folder)
    weights = 4 * count_parameters(config.model)  # bytes
    smaller = "free some, or take a smaller model"
    with room(torch.device("cpu"), weights, f"the model in {run_dir}", smaller):
        if folder.finished:
            model = GPT.from_pretrained(folder.model)
        else:
            model = _unfinished_model(folder, config, tokenizer)
    rows = read_metrics(folder.path)
    return Run(folder.path, model.eval(), tokenizer, rows, config, folder.finished)


# %% [markdown]
# A tokenizer that was put in the place of another is the one change that nothing else
# would show: ids that were learned as one text and are written as another give garbage,
# and no error. And its ids index the model's tables: one beyond the last row would fail
# at the first batch that happens to hold it.


# %%
#| export
def fitting_tokenizer(place: str, config: RunConfig, folder: RunFolder) -> Tokenizer:
    """The tokenizer at a place, if its ids are those of the run's model.

    Raises:
        SlmError: It cannot be had, the run was trained with another one, or the model's
            tables do not hold its ids.
    """
    tokenizer = get_tokenizer(place)
    now, n_ids = tokenizer.fingerprint, tokenizer.n_vocab
    for before in (read_tokenizer(folder.path), known_tokenizer(folder.model)):
        if before not in (None, now):
            trained = f"{folder.path} was trained with the tokenizer {before}"
            cure = "put that one back, or choose another folder"
            raise SlmError(f"{trained}, but {place} is now {now}: {cure}")
    if n_ids > config.model.vocab_size:
        small = f"model.vocab_size = {config.model.vocab_size} is too small"
        raise SlmError(f"{small} for tokenizer {place!r}, which has {n_ids} ids")
    return tokenizer


# %% [markdown]
# Of an unfinished run the newest checkpoint is read, if it belongs to this config and
# this tokenizer: the same rule by which a run goes on.


# %%
#| export
def _unfinished_model(
    folder: RunFolder, config: RunConfig, tokenizer: Tokenizer
) -> GPT:
    model, here = empty_model(config.model), {"tokenizer": tokenizer.fingerprint}

    def mismatch(state: dict[str, Any]) -> str:
        foreign = config_mismatch(state, config)
        foreign = foreign or data_mismatch(state["trainer"], here)
        return foreign or misfit(model.load_state_dict, state["trainer"]["model"])

    if load_latest(folder.checkpoints, mismatch) is None:
        first = f"the first is written at step {config.training.checkpoint_every}"
        raise FileNotFoundError(f"{folder.path} has no checkpoint yet; {first}")
    return model


def empty_model(config: GPTConfig) -> GPT:
    """A model for weights that are read next: to draw its own would take longer."""
    with torch.device("meta"):
        model = GPT(config)
    return model.to_empty(device="cpu")


# %% [markdown]
# ## One run, one folder, one process
#
# Three ways to spoil a folder, and three refusals. Going on under a changed config
# would give neither the old run nor a new one: all changed keys are named, with both
# values. A folder that has rows or samples but no config is nobody's run, and perhaps
# somebody's work: it is left alone. And two processes that write into one folder would
# mix their rows and delete each other's checkpoints.
#
# The last needs a lock, and a file that merely *exists* would be a bad one: a killed
# process leaves it behind, and the run is locked for ever. The lock here is the
# operating system's, on an open file. It ends with the process that holds it, however
# that ends. What was looked at before the lock is looked at again when it is held: the
# process that had it may have finished the run in between.


# %%
#| export
def refuse_changes(config: RunConfig, folder: RunFolder) -> None:
    """Refuse a folder of other settings, or one that holds what is not a run's.

    Raises:
        SlmError: It does; the message names the settings or the files.
    """
    if folder.config.is_file():
        before, now = load_config(folder.config).as_dict(), config.as_dict()
        if changed := "; ".join(changed_keys(before, now)):
            what = f"{folder.path} holds a run with another config: {changed}"
            raise SlmError(f"{what}. Choose another --run-dir, or move it away")
        return
    known = (folder.metrics, folder.environment, folder.samples, folder.model)
    strangers = ", ".join(path.name for path in known if path.exists())
    if strangers and not list_checkpoints(folder.checkpoints):
        what = f"holds {strangers} but no {folder.config.name}, so no run"
        raise SlmError(f"{folder.path} {what}: choose another --run-dir")


@contextlib.contextmanager
def only_process(run_dir: Path) -> Iterator[None]:
    """Refuse a second training process on the same run folder.

    Raises:
        SlmError: Another process is training there.
    """
    make_folder(run_dir)
    try:
        held = filelock.FileLock(RunFolder(run_dir).lock).acquire(timeout=0)
    except filelock.Timeout:
        busy = f"another process is training in {run_dir}"
        raise SlmError(f"{busy}; wait for it, or choose another --run-dir") from None
    with held:
        yield


# %% [markdown]
# In a second process the lock is held; here it is asked for, and then once more after a
# kill:

# %%
from course.figures.runs import locked_by_another

locked_by_another()

# %% [markdown]
# ## Stopping: Ctrl-C and SIGTERM
#
# Ctrl-C sends the signal SIGINT, and a cloud that takes a machine away sends SIGTERM
# first. Both would end the process in the middle of a step. So they are only *noted*
# while training: the trainer asks before each step whether there is a note, finishes
# the step, and stops; the checkpointer sees that it stops and saves. With several
# processes, the note travels with the counts of the step, and all stop after the same.
#
# A second Ctrl-C means that somebody will not wait: then the process ends at once,
# except for a checkpoint that is being written. `torchrun` complicates this. When the
# terminal sends SIGINT to every process, `torchrun` hands its own on to them, so each
# gets two at nearly the same moment; only one that comes more than a second later is
# meant. And only the main thread of a process can be told of signals, so in any other
# thread nothing is changed.


# %%
#| export
@contextlib.contextmanager
def stop_signals(verbose: bool = False) -> Iterator[list[float]]:
    """While inside, SIGINT and SIGTERM are noted in the list, and end nothing.

    A later SIGINT interrupts. One that follows within a second does not: a launcher
    hands on to its processes what the terminal sent them already.
    """
    caught: list[float] = []

    def note(number: int, frame: object) -> None:
        now = time.monotonic()
        if caught and number == signal.SIGINT and now - caught[0] > 1:
            raise KeyboardInterrupt
        if verbose and not caught:
            told = "stopping after this step, and saving it; Ctrl-C again does not wait"
            os.write(2, f"\n{told}\n".encode())  # print() may not interrupt itself
        caught.append(now)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    both = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in both}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not Python's


# %% tags=["nbval-check-output"]
with stop_signals() as signals:
    os.kill(os.getpid(), signal.SIGTERM)
    print(f"still here; {len(signals)} signal noted")

# %% [markdown]
# ## Failing
#
# Some failures are final. A loss that became infinite will do so again, and a model
# that does not fit into the memory will not fit the next time; to try again on a rented
# GPU would buy the same failure twice. Others may be cured by another attempt, on
# another machine: a full disk, a lost connection.
#
# A launcher that starts several processes sees only that one of them ended badly, and a
# text on the screen. To search that text for words is a trap: whoever rewords a message
# changes what is paid for. So a failing process writes down what the launcher needs, a
# sentence and whether to try again, in a file that the launcher has named. It lies on
# the machine's own disk, since the run's disk may be what is full. When one process
# fails, the others soon fail too, because they wait for it in vain. The file is made by
# the first, in the one act that only one process can win; and where it cannot be
# written, the error that was to be told goes its way all the same.


# %%
#| export
@contextlib.contextmanager
def failure_file() -> Iterator[None]:
    """Write an error to the file that SLM_FAILURE_FILE names, for a launcher.

    It holds `{"error": a sentence, "retry": whether another attempt may succeed}`. Of
    several processes, the first that fails is the cause, and the others its victims.
    """
    try:
        yield
    except Exception as error:
        known = isinstance(error, SlmError | OSError)
        told = str(error) if known else f"{type(error).__name__}: {error}"
        retry = error.retry if isinstance(error, SlmError) else True
        # of several processes one makes the file; what fails here hides no cause
        with contextlib.suppress(KeyError, OSError):
            with open(os.environ["SLM_FAILURE_FILE"], "x", encoding="utf-8") as file:
                file.write(json.dumps({"error": told, "retry": retry}))
        raise


# %% tags=["nbval-check-output"]
import tempfile

with tempfile.TemporaryDirectory() as folder:
    os.environ["SLM_FAILURE_FILE"] = f"{folder}/failure.json"
    for sentence in ("step 80 was not saved: the disk is full", "a victim of that"):
        with contextlib.suppress(SlmError), failure_file():
            raise SlmError(sentence, retry=True)
    print(Path(folder, "failure.json").read_text())
del os.environ["SLM_FAILURE_FILE"]

# %% [markdown]
# ## What the folder says of itself
#
# A year later you find a folder with a good model in it. What made it? `config.yaml`
# has every setting, also those that were defaults then and may have other values now.
# `environment.json` has the versions, the device, the type of the numbers, and a hash
# of the code. It tells of the last start only: a run that went on elsewhere keeps no
# trace there of where it began. The hash of the code is [the last
# chapter's](#checkpoints/reading-a-run-without-pytorch). The tokenizer's fingerprint is
# what `load_run` and `train` compare.
#
# `Samples` is the last observer: after each validation it lets the model write a text,
# always from random numbers of its own, so that looking does not change the run.


# %%
#| export
def describe(folder: RunFolder, trainer: Trainer, tokenizer: Tokenizer) -> None:
    """Write config and environment, so that the folder explains itself."""
    device = trainer.device.type
    if device == "cuda":
        device = torch.cuda.get_device_name(trainer.device)
    environment = {
        "code": code_fingerprint(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "dtype": str(trainer.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "tokenizer": tokenizer.fingerprint,
    }
    write_text(folder.config, trainer.config.to_yaml())
    write_text(folder.environment, json.dumps(environment, indent=2) + "\n")


class Samples(Observer):
    """After each validation, a text that the model writes from nothing, in a file."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.folder, self.tokenizer, self.max_tokens = folder, tokenizer, max_tokens

    def on_validation(self, trainer: Any) -> None:
        end, ids = self.tokenizer.eot_token, self.tokenizer.n_vocab
        with evaluating(trainer.model):
            tokens = sample_tokens(
                trainer.model, [end], self.max_tokens, trainer.step, end, ids
            )
        text = self.tokenizer.decode(tokens) + "\n"
        write_text(self.folder / f"step_{trainer.step:08d}.txt", text)


# %% [markdown]
# ## Putting it together
#
# Here is the whole of it without any of what this chapter is about: no refusals, no
# lock, no signals, one process. It trains from nothing or from the newest checkpoint,
# and leaves a model:

# %%
TINY = """
model: {vocab_size: 1024, context_length: 32, n_layers: 1, n_heads: 2, d_model: 16,
  d_ff: 32}
training: {batch_size: 2, max_steps: 20, warmup_steps: 2, checkpoint_every: 5,
  eval_every: 100, eval_batches: 2, sample_tokens: 8, dtype: float32, threads: 1}
data: {dataset: stories, tokenizer: stories, max_documents: 200}
wandb: {enabled: false}
"""


def train_plainly(config: RunConfig, folder: RunFolder) -> GPT:
    """Start or continue a run, in fifteen lines."""
    tokenizer, t = get_tokenizer(config.data.tokenizer), config.training
    order = (t.batch_size, t.seed, 0, 1)  # one process, the first of one
    length = config.model.context_length
    loaders = make_loaders(config.data, tokenizer, length, *order)
    torch.manual_seed(t.seed)
    model = GPT(config.model)
    with Checkpointer(folder.checkpoints, config) as checkpointer:
        told = [MetricsFile(folder.metrics), checkpointer]
        trainer = Trainer(model, *loaders, config, observers=told, verbose=False)
        checkpointer.resume(trainer)
        trainer.train()
    model.save_pretrained(folder.model)
    tokenizer.save(folder.model)
    return model


with tempfile.TemporaryDirectory() as home:
    path, folder = Path(home, "tiny.yaml"), RunFolder(Path(home, "run"))
    path.write_text(TINY, encoding="utf-8")
    train_plainly(load_config(path), folder)
    print("left in the folder:", *sorted(each.name for each in folder.path.iterdir()))

# %% [markdown]
# What follows is these lines, each made to hold when something goes wrong.
#
# Before anything is built: [is there room](#trainer/is-there-room) for the run? A text
# that took an hour to prepare is a high price for the news that the first step fails.
# And does the tokenizer fit? Then the batches of both texts. With several processes,
# whichever comes first prepares the tokens and the others wait; that happens *before*
# they join hands, because a process that waits in an exchange gives up after a while,
# and a large corpus takes longer.
#
# The order of the observers matters. The price is added to a row first; the file and
# the service then see it; the checkpointer comes last, because what it saves of the
# others must be what they know after this step.


# %%
#| export
def make_observers(
    config: RunConfig,
    folder: RunFolder,
    tokenizer: Tokenizer,
    dollars_per_hour: float | None,
) -> list[Observer]:
    """Who is told on the first process: the price, the rows, W&B, the samples."""
    observers: list[Observer] = []
    if dollars_per_hour is not None:  # adds to each row, so the others come after it
        observers.append(Dollars(dollars_per_hour))
    observers.append(MetricsFile(folder.metrics))
    if wants_wandb(config):
        observers.append(WandbLogger(config, folder.path))
    if tokens := config.training.sample_tokens:
        observers.append(Samples(folder.samples, tokenizer, tokens))
    return observers


# %% [markdown]
# The seeds. Every process starts from the same weights, so the first seed is the same
# everywhere; then each gets one of its own, or all would drop the same channels. A run
# that goes on needs neither: its random numbers stand in the checkpoint.
#
# At the end the model folder is written under another name and renamed, like a
# checkpoint, because a folder `model` *means* that the run is finished. A kill between
# the last checkpoint and the renaming leaves an unfinished run, whose next start finds
# nothing to train and writes the model.


# %%
#| export
def make_trainer(
    config: RunConfig,
    folder: RunFolder,
    loaders: tuple[TokenLoader, TokenLoader],
    observers: list[Observer],
    verbose: bool,
) -> Trainer:
    """A trainer of a new model, or of an empty one where there are checkpoints."""
    seed = config.training.seed
    torch.manual_seed(seed)
    continuing = bool(list_checkpoints(folder.checkpoints))
    model = empty_model(config.model) if continuing else GPT(config.model)
    if world_size() > 1:  # every process drops channels of its own
        torch.manual_seed(seed + 1 + rank())
    trainer = Trainer(model, *loaders, config, observers=observers, verbose=verbose)
    if trainer.verbose:
        begun = "continuing" if continuing else "starting"
        precision = str(trainer.dtype).removeprefix("torch.")
        what = f"{model.count_parameters():,} parameters on {trainer.device}"
        print(f"{begun} {folder.path}: {what} in {precision}")
    return trainer


# %% [markdown]
# The other half, in order: resume, write down what the run is computed with, tell,
# train until the end or a signal, publish the model. Only the first process writes; the
# others wait for it at the end, so that none ends before the model is there.
#
# `steps` ends it like a signal that comes in that step: the same checkpoint, the same
# way to go on. The schedule stays that of the whole run, so the first steps of a dear
# run can be tried alone, and nothing of them is lost.


# %%
#| export
def train_and_save(
    trainer: Trainer,
    folder: RunFolder,
    tokenizer: Tokenizer,
    checkpointer: Checkpointer,
    steps: int | None,
) -> Run:
    """Resume if possible, train to the end, to `steps` or a signal, save the model."""
    resumed, first = checkpointer.resume(trainer), rank() == 0
    if first and resumed is not None:
        trainer.metrics = read_metrics(folder.path)
    elif first and folder.metrics.exists():
        # rows of a start without a checkpoint, or whose checkpoints were moved away
        folder.metrics.replace(folder.earlier_metrics)
    if first:
        describe(folder, trainer, tokenizer)
    if trainer.verbose and resumed is not None:
        print(f"going on after step {trainer.step:,}, from {resumed}")
    if trainer.verbose:
        t, T = trainer.training, trainer.config.model.context_length
        rows = trainer.batch_size * t.gradient_accumulation_steps * trainer.began_with
        print(f"{t.max_steps:,} steps of {rows * T:,} tokens; Ctrl-C stops and saves")
    with stop_signals(trainer.verbose) as signals, checkpointer:
        trainer.train(stop=lambda: bool(signals) or trainer.step + 1 == steps)
    config, model = trainer.config, trainer.model
    finished = trainer.step >= config.training.max_steps
    if first and finished:
        model.save_pretrained(folder.unfinished_model, tokenizer)
        publish(folder.unfinished_model, folder.model)
        if checkpointer.on_checkpoint:
            checkpointer.on_checkpoint()
    gather_from_ranks(finished)  # so that no process ends before the model is there
    if trainer.verbose:
        same = "the same command" + " without --steps" * (trainer.step == steps)
        stopped = f"stopped after step {trainer.step:,}; {same} goes on from there"
        print(f"{folder.path} is finished" if finished else stopped)
    return Run(folder.path, model.eval(), tokenizer, trainer.metrics, config, finished)


# %% [markdown]
# A run that is finished already is read and returned, whoever asks for it again:


# %%
#| export
def finished_run(folder: RunFolder, tells: bool) -> Run:
    """What `train` gives for a run that is finished already."""
    if tells:
        print(f"{folder.path} is finished; its model is used as it is")
    return load_run(folder.path)


# %% [markdown]
# Now `train` itself. Read it from top to bottom: it refuses, it returns what is
# finished, it asks for room, it prepares, locks, joins the other processes, trains.
# Everything that must be undone stands in a `with`, so it is undone in the reverse
# order whatever happens. The folder is made with the lock, after all that can be
# refused: a refused start leaves nothing behind.


# %%
#| export
def train(
    config: RunConfig,
    run_dir: str | Path | None = None,
    on_checkpoint: Callable[[], None] | None = None,
    dollars_per_hour: float | None = None,
    verbose: bool = True,
    steps: int | None = None,
) -> Run:
    """A whole run from its config: start it, continue it, or, if finished, return it.

    Args:
        config: What `load_config` gives.
        run_dir: The run folder; `runs/<config.name>` if not said.
        on_checkpoint: Called after each checkpoint, and once the finished model, is
            safely on disk; while training goes on, from another thread.
        dollars_per_hour: Price of the machine, for the metric `cost/usd`.
        verbose: Say what happens, and show progress.
        steps: Stop after this step of the run, and save, as a signal would have it.

    Returns:
        The run; its `finished` is False if it was stopped, by a signal or by `steps`.

    Raises:
        SlmError: The folder holds a run with another config or is in use, `steps` are
            done already or more than the run has, tokenizer and model do not fit, the
            text cannot be had, the loss became nan or infinite, the memory does not
            suffice, or a checkpoint could not be read or written.
    """
    if run_dir == "":
        cure = "name the run's folder, or leave it out for runs/<name of the config>"
        raise SlmError(f"--run-dir is empty; {cure}")
    name = make_run_name(config.name)
    folder = RunFolder(Path("runs", name) if run_dir is None else user_path(run_dir))
    first, tells = rank() == 0, verbose and rank() == 0
    if tells and run_dir is None and name != config.name:
        print(f"{config.name!r} cannot name a run, so it is called {name}")
    with failure_file():
        refuse_changes(config, folder)
        if folder.finished:
            return finished_run(folder, tells)
        check_steps(steps, folder.steps_done, config)
        if config.training.threads is not None:
            torch.set_num_threads(config.training.threads)
        enough = room_for_run(config)  # refuses what the memory cannot hold
        tokenizer = fitting_tokenizer(config.data.tokenizer, config, folder)
        # whichever process comes first tokenises, the others wait for it
        t, context_length = config.training, config.model.context_length
        order = (t.batch_size, t.seed, rank(), world_size())
        loaders = make_loaders(config.data, tokenizer, context_length, *order)
        told = (config, folder, tokenizer, dollars_per_hour)
        observers = make_observers(*told) if first else []
        # what can be refused has been; only now is something made in the folder
        lock = only_process(folder.path) if first else contextlib.nullcontext()
        with enough, lock:
            refuse_changes(config, folder)  # again: from here on nobody else writes
            checkpointer = Checkpointer(folder.checkpoints, config, on_checkpoint)
            with process_group():
                if any(gather_from_ranks(folder.finished)):  # by a process before
                    return finished_run(folder, tells)
                observers.append(checkpointer)
                trainer = make_trainer(config, folder, loaders, observers, verbose)
                return train_and_save(trainer, folder, tokenizer, checkpointer, steps)


# %% [markdown]
# ## Kill it
#
# The promise was that a run survives a kill at any moment. Here a small run with
# dropout is killed twice, a random while after a checkpoint, by a signal that no
# process can catch, and the same command is given again each time. Next to it the same
# run goes in one go. Not "about the same": on the same machine with the same number of
# threads every weight is equal to the last bit.

# %%
from course.figures.runs import shot_and_resumed

shot_and_resumed()

# %% [markdown]
# ## Is it right?
#
# A run that is stopped by a signal, continued, and then asked for once more. The third
# call finds the model and trains nothing. Another run of the same config stops after
# its seventh step, because it was asked to, and goes on to the same weights. A changed
# setting is refused, and so is a folder that is nobody's run.


# %% tags=["nbval-check-output"]
def stop_here() -> None:
    """A signal, as soon as the first checkpoint is on disk."""
    if not stopped:
        stopped.append(os.kill(os.getpid(), signal.SIGTERM))


with tempfile.TemporaryDirectory() as home:
    stopped, path = [], Path(home) / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    config, folder = load_config(path), Path(home) / "run"
    torn = train(config, folder, on_checkpoint=stop_here, verbose=False)
    done = train(config, folder, verbose=False)
    again = train(config, folder, verbose=False)
    first = train(config, Path(home) / "first", verbose=False, steps=7)
    parts = train(config, Path(home) / "first", verbose=False)
    other = load_config(path, ["training.learning_rate=1.0"])
    try:
        train(other, folder, verbose=False)
    except SlmError as error:
        course.show(str(error).replace(f"{home}/", ""))
    stray = Path(home) / "stray"
    stray.mkdir()
    (stray / "metrics.jsonl").touch()
    try:
        train(config, stray, verbose=False)
    except SlmError as error:
        course.show(str(error).replace(f"{home}/", ""))
print(
    f"finished after the signal: {torn.finished}, after a second call: {done.finished}"
)
for name, run in (("a third", again), ("one stopped at step 7", parts)):
    pairs = zip(done.model.parameters(), run.model.parameters(), strict=True)
    same = all(torch.equal(a, b) for a, b in pairs)
    print(f"weights of the second call and of {name}, equal to the last bit: {same}")

# %% [markdown]
# ## Exercise: a loop that goes on
#
# The heart of all this in ten lines of plain Python, without any model. A job consists
# of steps 1 to `steps`. `load()` gives the step of the newest checkpoint, or None;
# `do(step)` does a step; `save(step)` makes a checkpoint that says so many steps are
# done, and may never say more than that. Save after every `every` steps and after the
# last, once each. The job may be killed anywhere and is then called again: no step may
# be missing, and none may be done again that a checkpoint has seen. Where a checkpoint
# says that all is done, there is nothing to do or to save.

# %% tags=["exercise"]
from course import check


def my_job(steps: int, every: int, load, do, save) -> None:
    """Do the steps that are left, and save on the way."""
    raise NotImplementedError("your turn")


check.job(my_job)

# %% [markdown]
# What the check says to a typical wrong answer, here one that starts from the beginning
# each time:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def forgets(steps: int, every: int, load, do, save) -> None:
    for step in range(1, steps + 1):
        do(step)
        if step % every == 0 or step == steps:
            save(step)


check.job(forgets)

# %% [markdown]
# <details><summary>Solution: <code>my_job</code></summary>
#
# ```python
# def my_job(steps, every, load, do, save):
#     for step in range((load() or 0) + 1, steps + 1):
#         do(step)
#         if step % every == 0 or step == steps:
#             save(step)
# ```
# </details>
#
# ## What you have now
#
# `train(load_config(…))`, which the command line, the other chapters and the cloud
# call, and a folder that explains itself: `config.yaml`, `metrics.jsonl`, `samples/`,
# `checkpoints/`, `environment.json`, and `model/`, which other libraries open. Next,
# [generation](#generation) makes the model write faster, and as you ask.

# %%
course.summary("slm/training/run.py")
