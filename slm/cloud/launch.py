"""Launch a run in the cloud, find it from any computer, follow, stop and fetch it.

    launched = Cloud(app, volume, train, prepare).launch(config, run="first")

Exported from chapters/20_meter.py; edit it there.
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

from slm.cloud.cost import Estimate, cost_table, estimate, verdict
from slm.errors import SlmError
from slm.files import check_run_name, make_run_name, user_path, write_text, writing
from slm.training.config import RunConfig
from slm.training.folder import RunFolder, parse_attempts, read_launched, report

# The launch: refuse before anything costs money

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


# No answer is no answer

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


# Find


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

    def find(self, run: str) -> Launched | None:
        """The launch of a run that is running, or else the last one.

        Raises:
            SlmError: Modal cannot be asked, or the name cannot be a run's.
        """
        known = self.launches(run)
        last = known[-1] if known else None
        return next((each for each in known if each.is_running()), last)

    def refuse_twice(self, run: str, own: str | None = None) -> None:
        """Refuse a run that is being launched or trained by another app than `own`.

        Raises:
            SlmError: It is, or Modal cannot be asked.
        """
        others = [each for each in self.launches(run) if each.app_id != own]
        if running := [each for each in others if each.is_running()]:
            twice = f"{run} is being trained already; twice would cost twice"
            raise SlmError(f"{twice}. To follow, stop or fetch it:\n{running[0]}")

    def launch(
        self,
        config: RunConfig,
        run: str = "",
        yes_spend: bool = False,
        wait: bool = True,
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

    def _prepare(self, text: str) -> bool:
        """Wait until the text is tokenised; an error says what is wrong with it."""
        preparing, app_id = self.prepare.spawn(text), self.app.app_id
        print("preparing tokens on CPU cores, which goes on if you leave")
        print(f"follow  modal app logs {app_id}")
        print(f"stop    modal app stop {app_id}", flush=True)
        if problem := preparing.get():
            raise SlmError(problem)
        return True

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


# Launch


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
