"""Launch a run in the cloud, find it from any computer, follow, stop and fetch it.

    launched = Cloud(app, volume, train, prepare).launch(config, run="first")

Exported from chapters/20_meter.py; edit it there.
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

from slm.cloud import price
from slm.cloud.cost import Estimate, cost_table
from slm.errors import SlmError
from slm.files import check_run_name, make_run_name, write_text, writing
from slm.training.config import RunConfig, load_config
from slm.training.folder import RunFolder, parse_attempts, read_launched, report

# The launch

# what `status` leaves on the volume
LARGE = ("checkpoints", "wandb", "samples", "model")


class NothingYet(SlmError):
    """The volume holds nothing of the run."""


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


def live_apps() -> list[modal.App]:
    """The apps of the workspace that have not ended."""
    return modal.Environment.from_context().apps.list()


# Find


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
        machine = _machine(
            config, secrets(config), price.most_attempts(config, expected)
        )
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

    def _begin(
        self, begun: list[Any], run: str, train: Any, sent: tuple[Any, ...]
    ) -> None:
        """Rent, put what is known of it into the list, say it and note it."""
        try:
            call = train.spawn(*sent)
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
