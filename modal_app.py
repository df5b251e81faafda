"""Train on rented GPUs: `modal run modal_app.py --config configs/gpt_124m.yaml`.

    modal run modal_app.py::status --run gpt_124m

Checks the config and its cost on this computer, then trains in a container on the GPU
that the config names, with checkpoints on a volume. Also `::stop`, `::fetch` and
`::generate`, each with `--run NAME`.

Exported from chapters/21_launch.py; edit it there.
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

# The image

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

# One attempt


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


# Several GPUs


def unpack(config_text: str, name: str) -> Path:
    """Write a config that travelled as text to `NAME.yaml` in a folder of its own."""
    path = Path(tempfile.mkdtemp(), f"{name}.yaml")
    path.write_text(config_text, encoding="utf-8")
    return path


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


# The function that trains


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


# Data off the GPU's clock

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


@app.function(**{**ON_CORES, "timeout": price.PART})
@problem_of
def prepare_part(k: int, n: int, split: str, config_text: str) -> None:
    """Tokenise the k-th of n parts of a split; returns what is wrong with its text."""
    from slm.data.prepare import prepare_tokens
    from slm.data.tokenizer import get_tokenizer

    data = load_config(unpack(config_text, "prepare")).data
    prepare_tokens(data, split, get_tokenizer(data.tokenizer), part=(k, n))


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


# The commands

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
