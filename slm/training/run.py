"""A run from its config: started, continued, or returned as it is.

    run = train(load_config("configs/stories_cpu.yaml"))

Exported from chapters/13_runs.py; edit it there.
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
from slm.data.tokenizer import Tokenizer, get_tokenizer
from slm.errors import SlmError
from slm.files import make_folder, make_run_name, publish, user_path, write_text
from slm.hardware import (
    gather_from_ranks,
    process_group,
    rank,
    room,
    room_for_run,
    world_size,
)
from slm.model.config import GPTConfig, count_parameters
from slm.model.gpt import GPT, sample_tokens
from slm.model.pretrained import known_tokenizer
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

# Reading a run


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


# One run, one folder, one process


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


# Stopping: Ctrl-C and SIGTERM


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


# Failing


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


# What the folder says of itself


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


# Putting it together


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


def finished_run(folder: RunFolder, tells: bool) -> Run:
    """What `train` gives for a run that is finished already."""
    if tells:
        print(f"{folder.path} is finished; its model is used as it is")
    return load_run(folder.path)


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
