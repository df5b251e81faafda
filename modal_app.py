"""Train on rented GPUs: `modal run modal_app.py --config configs/gpt_124m.yaml`.

Checks the config and its cost on this computer, then trains in a container on the GPU that the config names, with
checkpoints on a volume. Also `modal run modal_app.py::status`, `::stop`, `::fetch` and `::generate`, each with
`--run NAME`.

Exported from chapters/09_modal.py; edit it there.
"""

import contextlib
import glob
import inspect
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
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

TICK = 30.0  # seconds between two looks at the meter: what an attempt that is killed can cost unnoticed

PATIENCE = 10  # ticks that a run whose budget is spent has to finish its step and save


def checkpoints(run_dir: str | Path) -> list[str]:
    """Names of the finished checkpoints in a run folder."""
    found = Path(run_dir, "checkpoints").glob("step_*.pt")
    return sorted(path.name for path in found if re.fullmatch(r"step_\d+", path.stem))


class Meter:
    """What a run has cost over all its attempts, kept in its folder as `attempts.json`, one entry each.

    Args:
        run_dir: The run's folder.
        dollars_per_hour: The price of the machine.
        budget: Dollars over all attempts; None for no limit.
        max_steps: Of the run; one that has come so far may save its model, whatever it has cost.
        call: The id of the call that this attempt belongs to.
        secure: Called after each writing, to keep the file beyond this machine.
    """

    def __init__(
        self,
        run_dir: str | Path,
        dollars_per_hour: float,
        budget: float | None = None,
        max_steps: int = 0,
        call: str = "",
        secure: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self.secure = Path(run_dir) / "attempts.json", secure
        self.dollars_per_hour, self.budget, self.last = dollars_per_hour, budget, f"step_{max_steps:08d}.pt"
        self.earlier: list[dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else []
        self.entry: dict[str, Any] = {"call": call, "app": app.app_id or "", "budget": budget, "problem": ""}
        self.entry |= {"error": "", "interrupted": False, "from": checkpoints(run_dir)[-1:], "to": []}
        self.started, self.interrupted, self._lock = time.monotonic(), False, threading.Lock()

    def save(self) -> dict[str, float]:
        """Write the count down and secure it; returns attempts, seconds and dollars so far."""
        with self._lock:
            seconds = time.monotonic() - self.started
            dollars = seconds * self.dollars_per_hour / 3600
            self.entry |= {"seconds": seconds, "dollars": dollars, "to": checkpoints(self.path.parent)[-1:]}
            attempts = [*self.earlier, self.entry]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(attempts))
            temporary.replace(self.path)  # a killed attempt leaves the old count or the new one, never half a file
            self.secure()
        total = {key: sum(attempt[key] for attempt in attempts) for key in ("seconds", "dollars")}
        return {"attempts": len(attempts), **total}

    def is_spent(self, dollars: float) -> bool:
        """Whether the budget is used up and the run is not done."""
        folder = self.path.parent
        done = self.last in checkpoints(folder) or (folder / "model").is_dir()
        return self.budget is not None and dollars >= self.budget and not done

    def before(self) -> float:
        """Dollars that the attempts before this one have cost."""
        return sum(attempt["dollars"] for attempt in self.earlier)

    def at_the_end(self) -> float:
        """Dollars that the whole run will have cost, if its other steps take as long as those of this attempt."""
        first, now, last = (
            int(Path(name).stem[5:]) for name in (*(self.entry["from"] or ["step_0"]), *self.entry["to"], self.last)
        )
        each = self.entry["dollars"] / max(1, now - first)
        return self.before() + self.entry["dollars"] + each * (last - now)

    def in_vain(self) -> str:
        """Why no further attempt of this call would help: the last ones ended where they began. Empty if one may."""
        mine = [attempt for attempt in self.earlier if self.entry["call"] and attempt.get("call") == self.entry["call"]]
        if self.entry["error"]:
            mine.append(self.entry)
        idle = list(itertools.takewhile(lambda attempt: attempt["from"] == attempt["to"], reversed(mine)))
        idle = [attempt for attempt in idle if not attempt.get("interrupted")]  # nobody's fault: a machine taken away
        if len(idle) > 1 and idle[0]["error"] and idle[1]["error"]:
            return f"two attempts in a row came to no new checkpoint; the last one ended with {idle[0]['error']}"
        if len(idle) > 2:
            cure = "set a longer modal.timeout, a smaller training.checkpoint_every, or more modal.memory_mib"
            return f"three attempts in a row came to no new checkpoint; {cure}"
        return ""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While inside, save every `TICK` seconds, and interrupt the main thread when the budget is spent."""
        ended, main = threading.Event(), threading.main_thread()

        def watch() -> None:
            late = 0
            while not ended.wait(TICK):
                try:
                    spent = self.save()
                except Exception as error:  # no network for a moment; the next tick tries again
                    print(f"the meter could not be secured: {type(error).__name__}: {error}")
                    continue
                if not self.is_spent(spent["dollars"]):
                    continue
                self.interrupted, late = True, late + 1
                if late == 1:
                    signal.pthread_kill(main.ident or 0, signal.SIGINT)
                elif late > PATIENCE:
                    os._exit(1)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


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


@contextlib.contextmanager
def told_apart() -> Iterator[None]:
    """Raise errors of disk, network and Modal as RuntimeErrors: in an answer they would look like a failed question."""
    try:
        yield
    except (modal.exception.Error, OSError) as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


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
        budget: Dollars, over all attempts, after which the run saves and stops; None for no limit.
        rate: Dollars an hour; unless said, the price of the config's GPU on Modal, and nothing elsewhere.

    Returns:
        What `report` says of the run.
    """
    from slm.config import load_config
    from slm.cost import dollars_per_hour

    config = load_config(unpack(config_text, Path(run_dir).name))
    here = modal.is_local()  # your own computer is not for rent, and has no volume
    if rate is None:
        rate = 0.0 if here else dollars_per_hour(config)
    call = modal.current_function_call_id() or ""
    meter = Meter(run_dir, rate, budget, config.training.max_steps, call, (lambda: None) if here else volume.commit)
    problem = meter.in_vain()
    with told_apart():
        try:
            if not problem:
                problem = attempt(config, run_dir, meter)
                if not problem and not report(run_dir)["finished"]:  # a normal return would count as finished
                    raise KeyboardInterrupt(f"{run_dir} was interrupted and saved")
        except Exception as error:
            meter.entry["error"] = f"{type(error).__name__}: {error}"
            problem = meter.in_vain()
            if not problem:
                raise
        except KeyboardInterrupt:  # Modal's, for the machine or the time limit; `attempt` keeps the meter's to itself
            meter.entry["interrupted"] = time.monotonic() - meter.started < config.modal.timeout - TICK
            raise
        finally:
            meter.entry["problem"] = problem
            meter.save()
    if problem:
        print(f"{run_dir} stops: {problem}")
    return report(run_dir)


def attempt(config: "RunConfig", run_dir: str, meter: Meter) -> str:
    """One attempt to train to the end; returns what no further attempt can solve, or an empty string."""
    import torch

    from slm.checkpoint import CheckpointError
    from slm.trainer import TrainingDiverged
    from slm.trainer import train as train_here

    def stop_if_spent(dollars: float) -> None:
        if meter.is_spent(dollars):
            raise BudgetSpent(f"it has cost ${dollars:.2f} of ${meter.budget:.2f}; a larger budget goes on from here")

    def checkpoint_written() -> None:
        spent = meter.save()  # what was on this machine's disk is now on the volume, too
        if not modal.is_local():
            so_far = f"{spent['seconds'] / 3600:.2f} h and ${spent['dollars']:.2f} so far"
            print(f"checkpoint on the volume; {so_far}, about ${meter.at_the_end():.2f} at the end")
        stop_if_spent(spent["dollars"])

    try:
        meter.save()
        stop_if_spent(meter.before())
        with meter.watching():
            if config.modal.gpu_count > 1 and not modal.is_local():
                train_on_ranks(config, run_dir, checkpoint_written)
            else:
                train_here(
                    config, run_dir=run_dir, on_checkpoint=checkpoint_written, dollars_per_hour=meter.dollars_per_hour
                )
        if meter.interrupted:
            stop_if_spent(meter.save()["dollars"])
    except torch.OutOfMemoryError:
        return OUT_OF_MEMORY
    except (BudgetSpent, TrainingDiverged, ValueError, CheckpointError) as error:
        if isinstance(error, CheckpointError) and isinstance(error.__cause__, OSError):
            raise  # the disk was full or not writable, which another machine's may not be
        return str(error)  # another attempt would end so too
    except KeyboardInterrupt:
        if not meter.interrupted:
            raise
        return f"it has cost ${meter.save()['dollars']:.2f} of ${meter.budget:.2f}; a larger budget goes on from here"
    return ""


def train_on_ranks(config: "RunConfig", run_dir: str, on_checkpoint: Callable[[], None]) -> None:
    """Train with one process for each GPU, and call `on_checkpoint` when a checkpoint has been written.

    Raises:
        ValueError: a rank ended with a mistake that another attempt would repeat, or with a full memory.
        RuntimeError: it ended in any other way than with success.
    """
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={config.modal.gpu_count}",
    ]
    command = [*torchrun, "-m", "slm", "train", str(unpack(as_text(config), config.name)), "--run-dir", run_dir]
    patient = {**os.environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300"}  # seconds to save in; torchrun allows 30
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", env=patient)
    known, final = checkpoints(run_dir), []

    def listen() -> None:
        for line in process.stderr or ():
            print(line, end="", file=sys.stderr, flush=True)
            if line.startswith("slm: ") and "was not saved" not in line:  # a full disk may be tried again
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


def report(run_dir: str | Path) -> dict[str, Any]:
    """What a run came to: how far it is, the problem that ended it, if any, how good it is, and what it cost so far.

    "step" is the last one in the metrics. A run goes on from "checkpoint", which may be behind.
    """
    folder = Path(run_dir)
    metrics, meter = folder / "metrics.jsonl", folder / "attempts.json"
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []  # a last line may be half written
    rows = [json.loads(line) for line in lines]
    attempts = json.loads(meter.read_text()) if meter.exists() else []
    last = attempts[-1] if attempts else {}
    saved = checkpoints(folder)[-1:] or last.get("to", [])  # a copy of the folder may be without them
    losses = [row["val/loss"] for row in rows if row.get("val/loss") is not None]
    return {
        "run": folder.name,
        "finished": (folder / "model").is_dir(),
        "problem": last.get("problem", ""),
        "step": rows[-1]["step"] if rows else 0,
        "checkpoint": int(Path(saved[0]).stem[5:]) if saved else 0,
        "val_loss": losses[-1] if losses else None,
        "mfu": next((row["perf/mfu"] for row in reversed(rows) if row.get("perf/mfu") is not None), None),
        "attempts": len(attempts),
        "seconds": sum(attempt["seconds"] for attempt in attempts),
        "dollars": sum(attempt["dollars"] for attempt in attempts),
        "budget": last.get("budget"),
    }


FEW_FILES = 8  # a corpus of fewer is prepared in one container

MOST_PARTS = 16  # containers at once

CORES, HOURS, RETRIES = 4.0, 6, 2  # of each of them

ON_CORES: dict[str, Any] = {
    "image": image,
    "volumes": {DATA: volume},
    "timeout": HOURS * 60 * 60,
    "startup_timeout": 20 * 60,
    "cpu": CORES,
    "retries": modal.Retries(max_retries=RETRIES, initial_delay=0.0),
}


@app.function(**ON_CORES)
def prepare_part(k: int, n: int, split: str, config_text: str) -> str:
    """Tokenise the k-th of n parts of a split into the volume; returns what is wrong with its text, or nothing."""
    from slm.config import load_config
    from slm.data import prepare_tokens
    from slm.tokenizer import TokenizerUnavailable

    data = load_config(unpack(config_text, "prepare")).data
    text = (data.dataset, split, data.tokenizer, data.cache_dir, data.text_column)
    try:
        prepare_tokens(*text, val_fraction=data.val_fraction, part=(k, n))
    except (ValueError, TokenizerUnavailable) as error:
        return str(error)
    finally:
        volume.commit()
    return ""


@app.function(**ON_CORES)
def prepare(config_text: str) -> str:
    """Tokenise the config's training and validation text into the volume; returns what is wrong with it, or nothing."""
    from slm.config import load_config
    from slm.data import count_shards, join_tokens, prepare_tokens
    from slm.tokenizer import TokenizerUnavailable

    data = load_config(unpack(config_text, "prepare")).data
    try:
        for split in (data.train_split, data.val_split):
            text = (data.dataset, split, data.tokenizer, data.cache_dir, data.text_column)
            shards = 1 if modal.is_local() else count_shards(*text, data.max_documents, data.val_fraction)
            if shards < FEW_FILES:
                prepare_tokens(*text, data.max_documents, data.val_fraction, data.streaming)
                continue
            n = min(shards, MOST_PARTS)
            print(f"{data.dataset}, {split}: {shards} files in {n} parts, each in a container of its own")
            made = prepare_part.map(range(n), kwargs={"n": n, "split": split, "config_text": config_text})
            if problems := list(filter(None, made)):  # after all have ended, so that none runs on unseen
                return str(problems[0])
            volume.reload()  # what the other containers have committed
            join_tokens(n, *text, data.val_fraction)
    except (ValueError, TokenizerUnavailable) as error:  # it says in one sentence what is wrong
        return str(error)
    finally:
        volume.commit()
    return ""


@app.function(image=image, volumes={DATA: volume}, timeout=20 * 60, cpu=2.0)
def generate(run: str, prompt: str = "Once upon a time", max_tokens: int = 200, seed: int = 0) -> str:
    """Continue `prompt` with the trained model of a run on the volume; prints and returns the text."""
    from slm.generation import generate as continue_text
    from slm.trainer import load_run

    found = load_run(Path(DATA, "runs", run))  # finished or not: the newest weights there are
    text = continue_text(found.model, found.tokenizer, prompt, max_tokens, seed=seed)
    assert isinstance(text, str)  # one prompt, one text
    print(text)
    return text


class Refused(ValueError):
    """Why a launch is refused, in one sentence that also says what would help."""


class NothingYet(Refused):
    """The volume holds nothing of the run."""


def how_to_upload(value: str, key: str) -> str:
    """The command that uploads a file, a folder, or the folder of a pattern, and what the config must say then."""
    parts = Path(value).parts
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    source = Path(*fixed).expanduser()
    target = Path("text", source.resolve().name)  # `put` takes one path, and a pattern is for the shell
    command = shlex.join(["modal", "volume", "put", "slm-data", str(source), f"/{target}"])
    return (
        f"upload it with `{command}` (before the first upload, `modal volume create slm-data`), "
        f"and write data.{key}: {Path(DATA, target, *parts[len(fixed) :])}"
    )


def check(config: "RunConfig", yes_spend: bool = False) -> "Estimate":
    """What a run will need on the GPU that its config asks for.

    Raises:
        Refused: if it may cost more than `modal.max_dollars` and not `yes_spend`, or cannot work at all.
    """
    from slm.cost import estimate, verdict

    expected, limit = estimate(config), config.modal.max_dollars
    for key, value in (("dataset", config.data.dataset), ("tokenizer", config.data.tokenizer)):
        a_file = value.startswith((".", "~", "/")) or value.endswith((".txt", ".jsonl", ".parquet", ".tiktoken"))
        here = a_file or glob.has_magic(value) or Path(value).exists()
        if here and value not in ("stories", "gpt2") and not value.startswith(f"{DATA}/"):
            raise Refused(f"data.{key} is {value!r}, which lies on this computer; {how_to_upload(value, key)}")
    if not expected.fits_memory:
        raise Refused(verdict(config)[1])
    if expected.dollars[1] > limit and not yes_spend:
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


ENDED = (  # what Modal says of a call that has ended without a result
    modal.exception.RemoteError,  # cancelled or killed
    modal.exception.FunctionTimeoutError,
    modal.exception.InternalFailure,
    modal.exception.ExecutionError,  # it failed with an error that this computer does not know
    modal.exception.OutputExpiredError,
    modal.exception.NotFoundError,
)

UNANSWERED = (modal.exception.Error, OSError)  # all others: no network, no valid token, a server in trouble


def not_told(run: str, error: Exception) -> Refused:
    """What to say when Modal does not answer."""
    why = " ".join(f"{type(error).__name__}: {error}".split())
    return Refused(f"Modal cannot be asked about {run}, which may be running ({why}); ask again")


@dataclass(frozen=True)
class Launched:
    """A call in the cloud: enough to find it again from any computer."""

    app_id: str
    call_id: str
    run: str
    result: dict[str, Any] | None = None  # what `train` returned, if it was waited for

    @property
    def call(self) -> modal.FunctionCall:
        """The call itself: `get(timeout=…)` waits for its result, `cancel()` stops it."""
        return modal.FunctionCall.from_id(self.call_id)

    def is_running(self) -> bool:
        """Whether the call is waiting for a machine, or running, or about to be tried again.

        Raises:
            Refused: if Modal cannot be asked.
        """
        try:
            self.call.get(timeout=0)
        except TimeoutError:
            return True
        except ENDED:
            return False
        except UNANSWERED as error:
            raise not_told(self.run, error) from None
        except Exception:  # the function's own
            return False
        return False

    def __str__(self) -> str:
        return (
            f"call    {self.call_id}\n"
            f"follow  modal app logs {self.app_id}   or   modal run modal_app.py::status --run {self.run}\n"
            f"stop    modal run modal_app.py::stop --run {self.run}   or   modal app stop {self.app_id}\n"
            f"fetch   modal run modal_app.py::fetch --run {self.run}"
        )


def launches(run: str) -> list[Launched]:
    """A run's launches that can be known here, newest last: the one noted on this computer, and the last that began.

    Raises:
        Refused: if Modal cannot be asked.
    """
    note = Path("runs/modal", run, "launched.json")
    noted = [Launched(**json.loads(note.read_text()))] if note.exists() else []
    try:
        attempts = json.loads(b"".join(volume.read_file(f"runs/{run}/attempts.json")))
    except (FileNotFoundError, modal.exception.NotFoundError):
        attempts = []
    except UNANSWERED as error:
        raise not_told(run, error) from None
    begun = [Launched(each.get("app", ""), each["call"], run) for each in attempts if each.get("call")]
    waits = noted and noted[0].call_id not in [each.call_id for each in begun]  # or has ended before it began
    both = begun[-1:] + noted if waits else noted + begun[-1:]
    return list({each.call_id: each for each in both}.values())


def find(run: str) -> Launched | None:
    """The launch of a run that is running, or else the last one.

    Raises:
        Refused: if Modal cannot be asked.
    """
    known = launches(run)
    return next((each for each in known if each.is_running()), known[-1] if known else None)


def launch(config: "RunConfig", run: str = "", yes_spend: bool = False, wait: bool = True) -> Launched:
    """Train a config on Modal, in `/data/runs/RUN` on the volume; a run of that name goes on where it stopped.

    Args:
        config: What to train, and in its `modal` section on what.
        run: The run's name; the config's, if empty.
        yes_spend: Go beyond `modal.max_dollars`, as far as the slow end of the prediction and no further.
        wait: Show the logs until the run has ended, and compare its cost with the prediction.

    Raises:
        Refused: before anything is built or rented, with the reason.
    """
    from slm.cost import cost_table

    print(cost_table(config))
    expected, run = check(config, yes_spend), run or config.name
    options: dict[str, Any] = {"gpu": config.modal.gpu, "timeout": config.modal.timeout, "secrets": secrets(config)}
    options |= {"cpu": config.modal.cpu, "memory": config.modal.memory_mib}
    text = as_text(config, cache_dir=f"{DATA}/tokens")
    budget = max(config.modal.max_dollars, expected.dollars[1]) if yes_spend else config.modal.max_dollars
    if (before := find(run)) and before.is_running():
        raise Refused(f"{run} is being trained already; twice would cost twice. To follow, stop or fetch it:\n{before}")
    launched, left = None, ""
    with app.run(detach=True):
        if config.data.dataset != "stories":  # the grammar needs seconds, and nothing is downloaded
            preparing = prepare.spawn(text)
            print(f"preparing tokens on CPU cores, which goes on if you leave\nfollow  modal app logs {app.app_id}")
            print(f"stop    modal app stop {app.app_id}", flush=True)
            left = f"; the preparation goes on, and `modal app stop {app.app_id}` ends it"
            if problem := preparing.get():
                raise Refused(problem)
            left = ""
        call = train.with_options(**options).spawn(text, f"{DATA}/runs/{run}", budget)
        launched = Launched(str(app.app_id), call.object_id, run)
        note = Path("runs/modal", run, "launched.json")
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(asdict(launched)))
        print(launched)
        if wait:
            print("Interrupting now stops the watching, not the training.")
            launched = replace(launched, result=call.get())
    if launched is None:  # an interrupt ends the block without a word
        raise Refused(f"interrupted before a GPU was rented{left}; the same command begins again")
    if launched.result:
        print(reconcile(expected, launched.result))
    elif wait:
        print(
            "Only the watching has stopped. The run goes on, and so does its bill: see above how to follow or stop it."
        )
    return launched


def reconcile(expected: "Estimate", result: dict[str, Any]) -> str:
    """Prediction and outcome, side by side."""
    state = "finished" if result["finished"] else "not finished"
    problem = f": {result['problem']}" if result.get("problem") else ""
    spent, attempts = result["seconds"] / 3600, result["attempts"]
    hours, dollars = (f"{fast:.3g} to {slow:.3g}" for fast, slow in (expected.hours, expected.dollars))
    reached = "" if result["mfu"] is None else f", {result['mfu']:.0%} MFU"
    return (
        f"{result['run']}: {state} at step {result['step']}, validation loss {result['val_loss']}{problem}\n"
        f"{'':<10}{'hours':>22}{'dollars':>22}\n"
        f"{'predicted':<10}{hours:>22}{dollars:>22}   on {expected.name}\n"
        f"{'actual':<10}{spent:>22.3g}{result['dollars']:>22.3g}   in {attempts} attempt{'s' * (attempts > 1)}{reached}"
    )


launcher = modal.App("slm-launcher")


def give_up(error: Exception) -> NoReturn:
    """Say in one sentence why nothing was done, and end with the exit code for bad input."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


@launcher.local_entrypoint()
def main(config: str, run: str = "", yes_spend: bool = False) -> None:
    """Train a config file on Modal; `--yes-spend` raises its modal.max_dollars to the slow end of the prediction."""
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
        NothingYet: if the volume has no such run.
        Refused: if a file cannot be had or written.
    """
    source = f"runs/{run}"
    try:
        entries = volume.listdir(source)
    except modal.exception.NotFoundError:
        raise NothingYet(
            f"the volume slm-data has no run {run!r} yet; `modal volume ls slm-data runs` lists them"
        ) from None
    except UNANSWERED as error:
        raise not_told(run, error) from None
    try:
        Path(to).mkdir(parents=True, exist_ok=True)
        while entries:
            entry = entries.pop()
            target = Path(to) / Path(entry.path.lstrip("/")).relative_to(source)
            if entry.type == modal.volume.FileEntryType.FILE and target.name != ".lock":
                part = target.with_name(target.name + ".part")
                with part.open("wb") as file:
                    file.writelines(volume.read_file(entry.path))
                part.replace(target)
            elif entry.type == modal.volume.FileEntryType.DIRECTORY:
                target.mkdir(exist_ok=True)
                entries += [] if target.name in skip else volume.listdir(entry.path)
    except UNANSWERED as error:
        raise Refused(f"{run} was not copied whole ({type(error).__name__}: {error}); ask again") from None
    return Path(to)


LARGE = ("checkpoints", "wandb", "samples", "model")  # what `status` leaves on the volume


def show_status(run: str) -> None:
    """Print how far a run is, what it has cost, and whether it is running."""
    try:
        running = any(each.is_running() for each in launches(run))
    except Refused as error:
        give_up(error)
    with tempfile.TemporaryDirectory() as folder:
        try:
            download(run, Path(folder, run), skip=LARGE)
        except NothingYet as error:
            if not running:  # one that runs has perhaps not begun
                give_up(error)
        except Refused as error:
            give_up(error)
        print(json.dumps({**report(Path(folder, run)), "running": running}, indent=2))


def stop_run(run: str) -> None:
    """Cancel a run; what it did since its last checkpoint is lost, and the same command goes on from there."""
    try:
        running = [each for each in launches(run) if each.is_running()]
        for each in running:
            each.call.cancel()
    except UNANSWERED as error:
        give_up(not_told(run, error))
    except Refused as error:
        give_up(error)
    if not running:
        give_up(Refused(f"{run} is not running"))
    print(f"{run} is stopped; the command that launched it goes on from its last checkpoint")


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


status, stop, fetch = command(show_status), command(stop_run), command(fetch_run)
