"""Train on rented GPUs: `modal run modal_app.py --config configs/gpt_124m.yaml`.

Checks the config and its cost on this computer, then trains in a container on the GPU that the config names, with
checkpoints on a volume. Also `modal run modal_app.py::status`, `::fetch` and `::generate`, each with `--run NAME`.

Exported from chapters/09_modal.py; edit it there.
"""

import inspect
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import modal

import slm

if TYPE_CHECKING:
    from slm.config import RunConfig
    from slm.cost import Estimate

PACKAGES = [
    "torch==2.13.0",
    "numpy==2.4.6",
    "tiktoken==0.14.0",
    "pydantic==2.14.3",
    "pyyaml==6.0.3",
    "tqdm==4.70.1",
    "safetensors==0.8.0",
    "filelock==4.2.12",
    "requests==2.34.2",
    "regex==2026.11.15",
    "datasets==5.2.0",
    "wandb==0.31.0",
]

DATA = "/data"

HERE = Path(inspect.getfile(slm)).parents[1]  # where slm/ and configs/ lie, here and there


image = (
    modal.Image.debian_slim(python_version="3.11")
    .uv_pip_install(*PACKAGES, uv_version="0.13.9")
    .env({"PYTHONUNBUFFERED": "1", "WANDB_DIR": "/tmp", "TIKTOKEN_CACHE_DIR": f"{DATA}/tiktoken"})
    .add_local_python_source("slm")
    .add_local_dir(HERE / "configs", "/root/configs")
)

volume = modal.Volume.from_name("slm-data", create_if_missing=True)

app = modal.App("slm-training")


class Meter:
    """Seconds and dollars that a run has cost over all its attempts, kept in its folder as `attempts.json`."""

    def __init__(self, run_dir: str | Path, dollars_per_hour: float) -> None:
        self.path = Path(run_dir) / "attempts.json"
        self.dollars_per_hour = dollars_per_hour
        self.earlier: list[dict[str, float]] = json.loads(self.path.read_text()) if self.path.exists() else []
        self.started = time.monotonic()

    def save(self) -> dict[str, float]:
        """Write the count down; returns attempts, seconds and dollars so far."""
        seconds = time.monotonic() - self.started
        attempts = [*self.earlier, {"seconds": seconds, "dollars": seconds * self.dollars_per_hour / 3600}]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(attempts))
        temporary.replace(self.path)  # a killed attempt leaves the old count or the new one, never half a file
        total = {key: sum(attempt[key] for attempt in attempts) for key in ("seconds", "dollars")}
        return {"attempts": len(attempts), **total}

    def before(self) -> float:
        """Dollars that the attempts before this one have cost."""
        return sum(attempt["dollars"] for attempt in self.earlier)


class BudgetSpent(Exception):
    """The run has cost as much as it may; what there is can go on from its last checkpoint."""


OUT_OF_MEMORY = (
    "the GPU's memory is full; lower training.batch_size, raise training.gradient_accumulation_steps by the same "
    "factor, and launch it under another --run"
)


def unpack(config_text: str, name: str) -> Path:
    """Write a config that travelled as text to a file `NAME.yaml` in a folder of its own."""
    path = Path(tempfile.mkdtemp()) / f"{name}.yaml"
    path.write_text(config_text)
    return path


@app.function(
    image=image,
    volumes={DATA: volume},
    timeout=60 * 60,
    startup_timeout=20 * 60,
    retries=modal.Retries(max_retries=10, initial_delay=0.0),
    single_use_containers=True,
)
def train(config_text: str, run_dir: str, budget: float | None = None, rate: float | None = None) -> dict[str, Any]:
    """Train in `run_dir`, from its last checkpoint if there is one.

    Args:
        config_text: A config as YAML.
        run_dir: The run's folder, named by the caller, so that every attempt finds the same one.
        budget: Dollars, over all attempts, after which the run stops at its next checkpoint; None for no limit.
        rate: Dollars an hour; unless said, the price of the config's GPU on Modal, and nothing elsewhere.

    Returns:
        What `report` says of the run, and the "problem" that ended it, if one did that no further attempt can solve.
    """
    import torch

    from slm.config import load_config
    from slm.cost import dollars_per_hour
    from slm.trainer import TrainingDiverged
    from slm.trainer import train as train_here

    path = unpack(config_text, Path(run_dir).name)
    config = load_config(path)
    if rate is None:
        rate = 0.0 if modal.is_local() else dollars_per_hour(config)  # your own computer is not for rent
    meter, problem = Meter(run_dir, rate), ""

    def save(what: str) -> dict[str, float]:
        spent = meter.save()
        if not modal.is_local():
            volume.commit()  # until here a file is safe from this process; from here on, from this machine
            print(f"{what} on the volume; {spent['seconds'] / 3600:.2f} h and ${spent['dollars']:.2f} so far")
        return spent

    def stop_if_spent(dollars: float) -> None:
        done = f"step_{config.training.max_steps:08d}.pt" in checkpoints(run_dir) or Path(run_dir, "model").is_dir()
        if budget is not None and dollars >= budget and not done:
            raise BudgetSpent(f"it has cost ${dollars:.2f} of ${budget:.2f}; a larger budget goes on from here")

    def checkpoint_written() -> None:
        stop_if_spent(save("checkpoint")["dollars"])

    try:
        save("meter")
        stop_if_spent(meter.before())
        if config.modal.gpu_count > 1 and not modal.is_local():
            train_on_ranks(config.modal.gpu_count, path, run_dir, checkpoint_written)
        else:
            train_here(config, run_dir=run_dir, on_checkpoint=checkpoint_written, dollars_per_hour=rate)
    except (BudgetSpent, TrainingDiverged, ValueError, torch.OutOfMemoryError) as error:  # another attempt would too
        problem = OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else str(error)
        print(f"{run_dir} stops: {problem}")
    finally:
        meter.save()
        if not modal.is_local():
            volume.commit()
    result = {**report(run_dir), "problem": problem}
    if not result["finished"] and not problem:
        raise KeyboardInterrupt(f"{run_dir} was interrupted and saved")  # a normal return would count as finished
    return result


def train_on_ranks(ranks: int, config_path: Path, run_dir: str, on_checkpoint: Callable[[], None]) -> None:
    """Train with one process for each GPU, and call `on_checkpoint` when a checkpoint has been written.

    Raises:
        ValueError: a rank ended with a mistake that another attempt would repeat, or with a full memory.
        RuntimeError: it ended in any other way than with success.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [*torchrun, "-m", "slm", "train", str(config_path), "--run-dir", run_dir]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
    known, final = checkpoints(run_dir), []

    def listen() -> None:
        for line in process.stderr or ():
            print(line, end="", file=sys.stderr, flush=True)
            if line.startswith("slm: "):
                final.append(line.removeprefix("slm: ").strip())
            elif "OutOfMemoryError" in line:
                final.append(OUT_OF_MEMORY)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        while process.poll() is None:
            time.sleep(1)
            if (now := checkpoints(run_dir)) != known:
                known = now
                on_checkpoint()
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun hands it to every rank: they finish the step and save
            process.wait()
        listener.join(timeout=10)
    if process.returncode and final:
        raise ValueError(final[0])
    if process.returncode:
        raise RuntimeError(
            f"torchrun ended with exit code {process.returncode}; what went wrong is in its output above"
        )


def checkpoints(run_dir: str | Path) -> list[str]:
    """Names of the finished checkpoints in a run folder."""
    return sorted(path.name for path in Path(run_dir, "checkpoints").glob("step_*.pt"))


def report(run_dir: str | Path) -> dict[str, Any]:
    """What a run came to: name, whether it is finished, step, validation loss, and what it cost so far."""
    folder = Path(run_dir)
    metrics, meter = folder / "metrics.jsonl", folder / "attempts.json"
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []  # a last line may be half written
    rows = [json.loads(line) for line in lines]
    attempts = json.loads(meter.read_text()) if meter.exists() else []
    losses = [row["val/loss"] for row in rows if row.get("val/loss") is not None]
    return {
        "run": folder.name,
        "finished": (folder / "model").is_dir(),
        "step": rows[-1]["step"] if rows else 0,
        "val_loss": losses[-1] if losses else None,
        "attempts": len(attempts),
        "seconds": sum(attempt["seconds"] for attempt in attempts),
        "dollars": sum(attempt["dollars"] for attempt in attempts),
    }


@app.function(image=image, volumes={DATA: volume}, timeout=6 * 60 * 60, startup_timeout=20 * 60, cpu=4.0)
def prepare(config_text: str) -> list[str]:
    """Tokenise the config's training and validation text into the volume; returns the token files."""
    from slm.config import load_config
    from slm.data import prepare_tokens

    data = load_config(unpack(config_text, "prepare")).data
    limits = (data.text_column, data.max_documents, data.val_fraction, data.streaming)
    splits = (data.train_split, data.val_split)
    paths = [prepare_tokens(data.dataset, split, data.tokenizer, data.cache_dir, *limits) for split in splits]
    volume.commit()
    return [str(path) for path in paths]


@app.function(image=image, volumes={DATA: volume}, timeout=20 * 60, cpu=2.0)
def generate(run: str, prompt: str = "Once upon a time", max_tokens: int = 200, seed: int = 0) -> str:
    """Continue `prompt` with the trained model of a run on the volume; prints and returns the text."""
    from slm.generation import generate as continue_text
    from slm.gpt import GPT
    from slm.tokenizer import get_tokenizer

    folder = Path(DATA, "runs", run, "model")
    text = continue_text(GPT.from_pretrained(folder), get_tokenizer(folder), prompt, max_tokens, seed=seed)
    assert isinstance(text, str)  # one prompt, one text
    print(text)
    return text


class Refused(ValueError):
    """Why a launch is refused, in one sentence that also says what would help."""


def check(config: "RunConfig", yes_spend: bool = False) -> "Estimate":
    """What a run will need on the GPU that its config asks for.

    Raises:
        Refused: if it may cost more than `modal.max_dollars` and not `yes_spend`, or cannot work at all.
    """
    from slm.cost import estimate, verdict

    expected, limit = estimate(config), config.modal.max_dollars
    for key, value in (("dataset", config.data.dataset), ("tokenizer", config.data.tokenizer)):
        if value not in ("stories", "gpt2") and Path(value).exists():
            raise Refused(
                f"data.{key} is {value!r}, which lies on this computer; upload it (`modal volume create slm-data` "
                f"once, then `modal volume put slm-data {value} text/`) and give its path below {DATA}/text"
            )
    if not expected.fits_memory:
        raise Refused(verdict(config)[1])
    if limit is not None and expected.dollars[1] > limit and not yes_spend:
        raise Refused(f"{verdict(config)[1]} To spend up to ${expected.dollars[1]:.2f} all the same, say --yes-spend.")
    return expected


def as_text(config: "RunConfig", **data: str) -> str:
    """A config as YAML that `load_config` reads back, with some keys of its data section replaced."""
    import yaml

    sections = config.as_dict()
    return yaml.safe_dump({**sections, "data": {**sections["data"], **data}}, sort_keys=False)


def secrets(config: "RunConfig") -> list[modal.Secret]:
    """The secret that holds the Weights & Biases key, if the config asks for Weights & Biases.

    Raises:
        Refused: if it does and the workspace has no such secret.
    """
    if config.wandb.enabled is not True:
        return []
    secret = modal.Secret.from_name("wandb", required_keys=["WANDB_API_KEY"])
    try:
        secret.hydrate()
    except modal.exception.NotFoundError as error:
        raise Refused(
            f"the config asks for Weights & Biases, but: {error}. Create it with "
            "`modal secret create wandb WANDB_API_KEY=…`, or set wandb.enabled: false"
        ) from None
    return [secret]


@dataclass(frozen=True)
class Launched:
    """A call in the cloud: enough to find it again from any computer."""

    app_id: str
    call_id: str
    run: str
    result: dict[str, Any] | None = None  # what `train` returned, if it was waited for

    def __str__(self) -> str:
        return (
            f"call    {self.call_id}\n"
            f"follow  modal app logs {self.app_id}   or   modal run modal_app.py::status --run {self.run}\n"
            f"stop    modal app stop {self.app_id}\n"
            f"fetch   modal run modal_app.py::fetch --run {self.run}"
        )


def launch(config: "RunConfig", run: str = "", yes_spend: bool = False, wait: bool = True) -> Launched:
    """Train a config on Modal, in `/data/runs/RUN` on the volume; a run of that name goes on where it stopped.

    Args:
        config: What to train, and in its `modal` section on what.
        run: The run's name; the config's, if empty.
        yes_spend: Go beyond `modal.max_dollars`, both in the prediction and during the run.
        wait: Show the logs until the run has ended, and compare its cost with the prediction.

    Raises:
        Refused: before anything is built or rented, with the reason.
    """
    from slm.cost import cost_table

    print(cost_table(config))
    expected = check(config, yes_spend)
    options: dict[str, Any] = {"gpu": config.modal.gpu, "timeout": config.modal.timeout, "secrets": secrets(config)}
    options |= {"cpu": config.modal.cpu, "memory": config.modal.memory_mib}
    text = as_text(config, cache_dir=f"{DATA}/tokens")
    run_dir = f"{DATA}/runs/{run or config.name}"
    budget = None if yes_spend else config.modal.max_dollars
    launched = None
    with app.run(detach=True):
        if config.data.dataset != "stories":  # the grammar needs seconds, and nothing is downloaded
            print("Preparing tokens on a CPU; if you leave before a GPU is rented, the same command goes on from here.")
            prepare.spawn(text).get()
        call = train.with_options(**options).spawn(text, run_dir, budget)
        launched = Launched(str(app.app_id), call.object_id, Path(run_dir).name)
        print(launched)
        if wait:
            print("Interrupting now stops the watching, not the training.")
            launched = replace(launched, result=call.get())
    if launched is None:  # an interrupt ends the block without a word
        raise Refused("interrupted before a GPU was rented; the same command begins again")
    if launched.result:
        print(reconcile(expected, launched.result))
    return launched


def reconcile(expected: "Estimate", result: dict[str, Any]) -> str:
    """Prediction and outcome, side by side."""
    state = "finished" if result["finished"] else "not finished"
    problem = f": {result['problem']}" if result.get("problem") else ""
    spent, attempts = result["seconds"] / 3600, result["attempts"]
    hours, dollars = (f"{fast:.3g} to {slow:.3g}" for fast, slow in (expected.hours, expected.dollars))
    return (
        f"{result['run']}: {state} at step {result['step']}, validation loss {result['val_loss']}{problem}\n"
        f"{'':<10}{'hours':>22}{'dollars':>22}\n"
        f"{'predicted':<10}{hours:>22}{dollars:>22}   on {expected.name}\n"
        f"{'actual':<10}{spent:>22.3g}{result['dollars']:>22.3g}   in {attempts} attempt{'s' * (attempts > 1)}"
    )


launcher = modal.App("slm-launcher")


def give_up(error: Exception) -> NoReturn:
    """Say in one sentence why nothing was done, and end with the exit code for bad input."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


@launcher.local_entrypoint()
def main(config: str, run: str = "", yes_spend: bool = False) -> None:
    """Train a config file on Modal; `--yes-spend` goes beyond its modal.max_dollars."""
    from slm.config import ConfigError, load_config

    try:
        launched = launch(load_config(config), run, yes_spend)
    except (ConfigError, Refused) as error:
        give_up(error)
    if launched.result and not launched.result["finished"]:
        sys.exit(1)


def download(run: str, to: str | Path, skip: tuple[str, ...] = ("checkpoints", "wandb")) -> Path:
    """Copy a run from the volume into the folder `to`; the folders in `skip` stay empty.

    Raises:
        Refused: if the volume has no such run.
    """
    source = f"runs/{run}"
    try:
        entries = volume.listdir(source)
    except modal.exception.NotFoundError:
        raise Refused(
            f"the volume slm-data has no run {run!r} yet; `modal volume ls slm-data runs` lists them"
        ) from None
    Path(to).mkdir(parents=True, exist_ok=True)
    while entries:
        entry = entries.pop()
        target = Path(to) / Path(entry.path.lstrip("/")).relative_to(source)
        if entry.type == modal.volume.FileEntryType.FILE:
            with target.open("wb") as file:
                file.writelines(volume.read_file(entry.path))
        elif entry.type == modal.volume.FileEntryType.DIRECTORY:
            target.mkdir(exist_ok=True)
            entries += [] if target.name in skip else volume.listdir(entry.path)
    return Path(to)


def show_status(run: str) -> None:
    """Print how far a run is and what it has cost."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            downloaded = download(run, Path(folder, run), skip=("checkpoints", "wandb", "samples", "model"))
            print(json.dumps(report(downloaded), indent=2))
        except Refused as error:
            give_up(error)


def fetch_run(run: str, to: str = "") -> None:
    """Copy a run's model, metrics and samples to this computer, into `runs/modal/RUN` unless said."""
    try:
        print(f"{run} is in {download(run, to or f'runs/modal/{run}')}")
    except Refused as error:
        give_up(error)


def command(function: Callable[..., None]) -> modal.App:
    """Let `modal run modal_app.py::NAME` run a function here, in an app of its own with nothing to build or to rent."""
    commands = modal.App(f"slm-{function.__name__}")
    commands.local_entrypoint()(function)
    return commands


status, fetch = command(show_status), command(fetch_run)
