"""slm.cloud.launch: nobody pays twice, and no call is lost, whoever looks, asks or interrupts when."""

import contextlib
import json
import os
import shlex
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import modal
import pytest

from slm.cloud import launch as module
from slm.cloud.launch import Launched
from slm.errors import SlmError
from slm.training.config import load_config

E = modal.exception


class App:
    """An app that Modal says has not ended."""

    def __init__(self, app_id, run="tiny"):
        self.app_id, self.description = app_id, f"slm-training-{run}"
        self.stopped = False

    def stop(self):
        self.stopped = True


class Ended:
    """A call that has ended."""

    def get(self, timeout):
        return {}


def note_of(app, call, run="tiny"):
    path = Path("runs/modal", run, "launched.json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"app_id": app, "call_id": call, "run": run}))


def rented(asked):
    return "train" in [name for name, _ in asked]


# --- two computers


def test_launch_of_a_run_that_waits_for_its_gpu_elsewhere_is_refused(
    tiny, cloud, alive, asked
):
    """Nothing is noted here, and nothing lies on the volume."""
    alive += [App("ap-9", "other"), App("ap-0")]
    with pytest.raises(SlmError, match="trained already(.|\n)*modal app stop ap-0"):
        cloud.launch(load_config(tiny()))
    assert asked == []
    cloud.launch(load_config(tiny()), run="another")
    assert rented(asked)


@pytest.mark.parametrize("others", [True, False])
def test_of_two_launches_at_the_same_moment_one_at_most_rents(
    tiny, cloud, alive, asked, monkeypatch, others
):
    """Neither is there when the other looks first; each sees itself, too."""

    def run(name, detach):
        alive.append(SimpleNamespace(app_id="ap-1", description=name))
        alive.extend([App("ap-0")] if others else [])
        return contextlib.nullcontext()

    monkeypatch.setattr(cloud.app, "run", run)
    with pytest.raises(SlmError, match="ap-0") if others else contextlib.nullcontext():
        cloud.launch(load_config(tiny()))
    assert rented(asked) is not others


@pytest.mark.parametrize("known", ["here", "on the volume"])
def test_an_app_whose_call_has_ended_does_not_stand_in_the_way(
    tiny, cloud, alive, asked, monkeypatch, tmp_path, known
):
    """A detached app stays for some seconds; the same command goes on at once."""
    monkeypatch.setattr(modal.FunctionCall, "from_id", lambda call_id: Ended())
    alive.append(App("ap-0"))
    if known == "here":
        note_of("ap-0", "fc-0")
    else:
        (tmp_path / "volume/runs/tiny").mkdir(parents=True)
        (tmp_path / "volume/runs/tiny/attempts.json").write_text(
            '[{"call": "fc-0", "app": "ap-0"}, {"call": "fc-2", "app": "ap-2"}]'
        )
    cloud.launch(load_config(tiny()))
    assert rented(asked)


def test_attempts_that_know_no_app_are_asked_all_the_same(
    tiny, cloud, asked, monkeypatch, tmp_path
):
    class Running:
        def get(self, timeout):
            raise TimeoutError

    monkeypatch.setattr(modal.FunctionCall, "from_id", lambda call_id: Running())
    (tmp_path / "volume/runs/tiny").mkdir(parents=True)
    (tmp_path / "volume/runs/tiny/attempts.json").write_text('[{"call": "fc-0"}]')
    with pytest.raises(SlmError, match="trained already"):
        cloud.launch(load_config(tiny()))
    assert asked == []


def test_a_launch_that_prepares_or_waits_is_running_and_can_be_stopped(
    cloud, alive, tmp_path
):
    mine, other = App("ap-0"), App("ap-9", "other")
    alive += [mine, other]
    said = cloud.status("tiny", tmp_path / "status")
    assert said["running"] and not said["finished"]
    found = cloud.find("tiny")
    assert found == Launched("ap-0", "", "tiny") and "modal app stop ap-0" in str(found)
    with pytest.raises(SlmError, match="not known here yet"):
        found.call.cancel()
    cloud.stop("tiny")
    assert (mine.stopped, other.stopped) == (True, False)


@pytest.mark.parametrize("error", [E.ConnectionError("gone"), OSError("no network")])
def test_list_of_apps_that_cannot_be_had_does_not_mean_that_nothing_runs(
    tiny, cloud, asked, monkeypatch, error
):
    def lost():
        raise error

    object.__setattr__(cloud, "apps", lost)
    for command in (
        lambda: cloud.launch(load_config(tiny())),
        lambda: cloud.stop("tiny"),
        lambda: cloud.status("tiny", "here"),
    ):
        with pytest.raises(SlmError, match="tiny, which may be running") as unanswered:
            command()
        assert unanswered.value.retry
    assert asked == []


# --- a call is not lost


@contextlib.contextmanager
def swallowing_run(name, detach):
    """As Modal does with a detached app that is interrupted."""
    with contextlib.suppress(KeyboardInterrupt):
        yield


@pytest.fixture
def interrupted(monkeypatch):
    """Lets Ctrl-C come while something is done, which goes on as it does in the cloud."""
    come = threading.Event()

    def interrupt(*_):
        come.set()
        raise KeyboardInterrupt

    def install(place, name):
        real = getattr(place, name)

        def slowly(*values, **options):
            done = real(*values, **options)  # Modal has it, and has not answered yet
            os.kill(os.getpid(), signal.SIGINT)
            assert come.wait(300)
            return done

        monkeypatch.setattr(place, name, slowly)

    before = signal.signal(signal.SIGINT, interrupt)
    yield install
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("when", ["spawn", "note"])
def test_interrupt_between_the_renting_and_the_note_loses_nothing(
    tiny, cloud, asked, monkeypatch, capsys, interrupted, when
):
    monkeypatch.setattr(cloud.app, "run", swallowing_run)
    interrupted(*{"spawn": (cloud.train, "spawn"), "note": (module, "_note")}[when])
    launched = cloud.launch(load_config(tiny()))
    assert rented(asked) and launched == Launched("ap-1", "fc-train", "tiny")
    said = capsys.readouterr().out
    assert "Only the watching has stopped; the run and its bill go on" in said
    assert "::stop --run tiny" in said.partition("Only the watching")[2]
    noted = json.loads(Path("runs/modal/tiny/launched.json").read_text())
    assert noted["call_id"] == "fc-train"


def test_interrupt_before_the_gpu_is_told_and_rents_nothing(
    tiny, cloud, asked, monkeypatch, interrupted
):
    monkeypatch.setattr(cloud.app, "run", swallowing_run)
    interrupted(cloud.train, "with_options")
    with pytest.raises(SlmError, match="before a GPU was rented; the same command"):
        cloud.launch(load_config(tiny()))
    assert not rented(asked)


def test_note_that_cannot_be_written_ends_nothing(tiny, cloud, asked, capsys):
    Path("runs").write_text("a file")
    assert cloud.launch(load_config(tiny())).call_id == "fc-train"
    said = capsys.readouterr().out
    assert "call    fc-train" in said and "launched.json could not be written" in said


@pytest.mark.parametrize("error", [E.ConnectionError("gone"), OSError("by peer")])
def test_answer_that_is_lost_after_the_renting_is_told(tiny, cloud, monkeypatch, error):
    """Modal ends a detached block without a word when the connection is lost."""

    def lost(*arguments):
        raise error

    @contextlib.contextmanager
    def run(name, detach):
        with contextlib.suppress(E.ConnectionError):
            yield

    monkeypatch.setattr(cloud.app, "run", run)
    monkeypatch.setattr(cloud.train, "spawn", lost)
    with pytest.raises(SlmError, match="tiny, which may be running .*; ask again"):
        cloud.launch(load_config(tiny()))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (E.RemoteError("cancelled"), "stopped, or ended without a result .*cancelled"),
        (E.FunctionTimeoutError("late"), "stopped, or ended without a result .*late"),
        (
            E.ServiceError("down"),
            "which may be running .ServiceError: down.; ask again",
        ),
    ],
)
def test_watching_ends_with_a_sentence(tiny, cloud, monkeypatch, error, told):
    def get():
        raise error

    monkeypatch.setattr(cloud.train, "get", get)
    with pytest.raises(SlmError, match=told):
        cloud.launch(load_config(tiny()))


# --- names, commands, keys


def test_a_config_whose_file_cannot_name_a_run_gets_a_name_that_is_said(
    tiny, cloud, asked, capsys
):
    odd = tiny().rename("a&b c.yaml")
    launched = cloud.launch(load_config(odd), wait=False)
    assert launched.run == "a-b-c" and asked[-1][1][1] == "/data/runs/a-b-c"
    said = capsys.readouterr().out
    assert "'a&b c' cannot name a run, so it is called a-b-c\n" in said
    assert "a&b" not in said.partition("call ")[2]
    with pytest.raises(SlmError, match="'a&b c' cannot name a run; allowed"):
        cloud.launch(load_config(odd), run="a&b c")


@pytest.mark.parametrize("run", ["tiny", "a&b", "two words", "$(x)", "a;b", "'"])
def test_printed_commands_can_be_pasted(run):
    for line in str(Launched("ap-1", "fc-1", run)).splitlines()[1:]:
        for command in line.split(maxsplit=1)[1].split("   or   "):
            words = shlex.split(command)
            assert words[:1] == ["modal"] and words[-1] in (run, "ap-1")
            assert f"--run {shlex.quote(run)}" in command or words[-1] == "ap-1"


@pytest.mark.parametrize(
    "error",
    [E.AuthError("Token missing"), E.ConnectionError("no\nnetwork"), OSError("x")],
)
def test_secret_that_cannot_be_asked_for_is_one_sentence(
    tiny, cloud, asked, monkeypatch, error
):
    def lost(self):
        raise error

    monkeypatch.setattr(modal.Secret, "hydrate", lost)
    told = "Modal cannot be asked about the secret wandb"
    with pytest.raises(SlmError, match=told) as unanswered:
        cloud.launch(load_config(tiny(wandb={"enabled": True})))
    assert unanswered.value.retry and "\n" not in str(unanswered.value)
    assert asked == []
