"""slm.cloud.launch against a stand-in for Modal: what is refused, what is asked for, found, stopped and fetched."""

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import modal
import pytest
import torch

from slm.cloud.launch import Launched, NothingYet
from slm.cloud.price import check
from slm.errors import SlmError
from slm.training.config import load_config

ROOT = Path(__file__).resolve().parents[2]


def read(text, folder):
    """The config that travelled as text."""
    path = folder / "sent.yaml"
    path.write_text(text)
    return load_config(path)


class Call:
    """A call in the cloud that runs for ever, has ended, or answers with an error."""

    def __init__(self, running, error=None):
        self.running, self.error, self.cancelled = running, error, False

    def get(self, timeout):
        if self.error:
            raise self.error
        if self.running:
            raise TimeoutError

    def cancel(self):
        self.cancelled = True


@contextlib.contextmanager
def swallowing_run(name, detach):
    """As Modal does with a detached app that is interrupted."""
    with contextlib.suppress(KeyboardInterrupt):
        yield


# --- what is refused, before anything is built


def test_expensive_run_is_refused():
    config = load_config(ROOT / "configs/gpt_124m.yaml", ["modal.max_dollars=1"])
    with pytest.raises(SlmError, match=r"Needs up to .* \$.*--yes-spend"):
        check(config)
    assert check(config, yes_spend=True).dollars[1] > 1


def test_budget_of_exactly_the_prediction_is_enough():
    config = load_config("configs/gpt_124m.yaml")
    dollars = check(config, yes_spend=True).dollars[1]
    assert (
        check(
            load_config("configs/gpt_124m.yaml", [f"modal.max_dollars={dollars!r}"])
        ).dollars[1]
        == dollars
    )


def test_model_that_does_not_fit_is_refused_whatever_one_would_spend():
    config = load_config(
        "configs/gpt_774m.yaml", ["modal.gpu=T4", "modal.max_dollars=1000"]
    )
    with pytest.raises(SlmError, match="GB"):
        check(config, yes_spend=True)


def test_text_on_this_computer_is_refused(tiny, tmp_path):
    text = tmp_path / "own.txt"
    text.write_text("Once.")
    with pytest.raises(
        SlmError, match=r"data\.dataset.*modal volume put.*modal volume create slm-data"
    ):
        check(load_config(tiny(data={"dataset": str(text)})))


@pytest.mark.parametrize(
    "value", ["texts/*.txt", "texts", "texts/a b.txt", "./texts/**/*.txt", "*.jsonl"]
)
def test_printed_upload_works_and_the_config_finds_it(
    tiny, tmp_path, monkeypatch, value
):
    here, data = tmp_path / "here", tmp_path / "data"
    for name in ("texts/a b.txt", "texts/deep/c.txt", "d.jsonl"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("Once.")
    monkeypatch.chdir(here)
    with pytest.raises(SlmError) as refused:
        check(load_config(tiny(data={"dataset": value})))
    command, path = re.search(
        r"upload it with `(.+?)` .*write data\.dataset: (.+)$", str(refused.value)
    ).groups()
    *put, source, target = shlex.split(command)  # one path, which no shell expands
    assert put == ["modal", "volume", "put", "slm-data"]
    copy = shutil.copytree if Path(source).is_dir() else shutil.copy
    (data / target[1:]).parent.mkdir(parents=True)
    copy(source, data / target[1:])
    check(load_config(tiny(data={"dataset": path})))

    def names(pattern, root):
        return sorted(found.relative_to(root) for found in Path(root).glob(pattern))

    written = Path(path).relative_to("/data").as_posix()
    base = f"text/{Path(source).resolve().name}"
    if "*" in value:
        assert (
            [found.relative_to(base) for found in names(written, data)]
            == [
                found.relative_to(source)
                for found in names(Path(value).as_posix(), ".")
            ]
            != []
        )
    else:
        assert (data / written).exists()


def test_tokenizer_on_this_computer_is_refused(tiny, tmp_path):
    saved = tmp_path / "own.tiktoken"
    saved.touch()
    with pytest.raises(SlmError, match=r"data\.tokenizer.*modal volume put"):
        check(load_config(tiny(data={"tokenizer": str(saved)})))
    check(load_config(tiny(data={"tokenizer": "/data/text/own.tiktoken"})))


@pytest.mark.parametrize(
    "name", ["texts/*.txt", "missing.jsonl", "./texts", "~/texts", "/elsewhere/texts"]
)
def test_path_that_no_container_can_see_is_refused(tiny, name):
    with pytest.raises(SlmError, match=r"data\.dataset.*modal volume put"):
        check(load_config(tiny(data={"dataset": name})))
    check(load_config(tiny(data={"dataset": "/data/text/*.txt"})))


def test_shipped_configs_would_be_launched():
    for name in ("gpt_124m", "gpt_350m", "gpt_774m"):
        assert check(load_config(f"configs/{name}.yaml")).fits_memory, name


# --- what is asked for


def test_config_decides_gpu_time_and_machine(tiny, cloud, tmp_path, asked, capsys):
    path = tiny(
        modal={
            "gpu": "H100:2",
            "timeout": 7200,
            "max_dollars": 3.0,
            "cpu": 4,
            "memory_mib": 4096,
        }
    )
    launched = cloud.launch(load_config(path))
    (_, detached), (_, options), (_, (text, run_dir, budget, *rest)) = asked
    assert detached is True and rest == [None, None]  # Modal's price, all steps
    retries = options.pop("retries")
    assert (retries.max_retries, retries.initial_delay.seconds) == (4, 0)
    assert options == {
        "gpu": "H100:2",
        "timeout": 7200,
        "secrets": [],
        "cpu": 4,
        "memory": 4096,
    }
    assert (run_dir, budget) == ("/data/runs/tiny", 3.0)
    sent = read(text, tmp_path)
    assert sent.data.cache_dir == "/data/tokens"
    assert (sent.model, sent.training, sent.modal) == (
        load_config(path).model,
        load_config(path).training,
        load_config(path).modal,
    )
    printed = capsys.readouterr().out
    assert all(
        words in printed
        for words in ("fc-train", "modal app stop ap-1", "::fetch --run tiny", "T4")
    )
    assert launched == Launched("ap-1", "fc-train", "tiny")


def test_yes_spend_lifts_the_limit_to_what_was_predicted_and_no_further(
    tiny, cloud, asked
):
    config = load_config(tiny(modal={"max_dollars": 0.01}))
    cloud.launch(config, run="other", yes_spend=True)
    predicted = check(config, yes_spend=True).dollars[1]
    assert predicted > 0.01 and asked[-1][1][1:3] == ("/data/runs/other", predicted)
    cloud.launch(load_config(tiny()), run="another", yes_spend=True)
    assert asked[-1][1][1:3] == ("/data/runs/another", 1.0)


def test_downloads_are_prepared_before_a_gpu_is_asked_for(tiny, cloud, asked):
    cloud.launch(load_config(tiny(data={"dataset": "roneneldan/TinyStories"})))
    assert [name for name, _ in asked] == ["run", "prepare", "train with", "train"]


def test_refused_launch_asks_for_nothing(cloud, asked):
    with pytest.raises(SlmError):
        cloud.launch(
            load_config(ROOT / "configs/gpt_124m.yaml", ["modal.max_dollars=1"])
        )
    assert asked == []


def test_secret_only_if_the_config_asks_for_it(tiny, cloud, asked):
    cloud.launch(load_config(tiny(wandb={"enabled": True})))
    (secret,) = asked[1][1]["secrets"]
    assert isinstance(secret, modal.Secret)


def test_missing_secret_is_refused_in_one_sentence(tiny, cloud, asked, monkeypatch):
    def missing(self):
        raise modal.exception.NotFoundError("Secret 'wandb' not found")

    monkeypatch.setattr(modal.Secret, "hydrate", missing)
    with pytest.raises(SlmError, match="modal secret create wandb"):
        cloud.launch(load_config(tiny(wandb={"enabled": True})))
    assert asked == []


# --- found again


@pytest.fixture
def call(monkeypatch):
    calls = {"fc-on": Call(True), "fc-off": Call(False)}
    monkeypatch.setattr(modal.FunctionCall, "from_id", calls.get)
    return calls


def test_run_is_found_again_from_any_computer(cloud, a_run, call, tmp_path):
    assert cloud.find("x") is None  # its only attempt does not know its call
    (tmp_path / "volume/runs/x/attempts.json").write_text(
        '[{"call": "fc-0"}, {"call": "fc-on", "app": "ap-1"}]'
    )
    assert cloud.find("x") == Launched("ap-1", "fc-on", "x")
    assert cloud.find("y") is None


def note_of(tmp_path, call, run="x"):
    """What a launch from this computer leaves here."""
    path = tmp_path / "runs" / "modal" / run / "launched.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"app_id": "ap-1", "call_id": call, "run": run}))


@pytest.mark.parametrize(
    ("noted", "begun", "found"),
    [
        ("fc-off", ["fc-on"], "fc-on"),  # launched anew elsewhere
        ("fc-on", ["fc-off"], "fc-on"),  # launched here, and waiting for its GPU
        ("fc-off", ["fc-off", "fc-gone"], "fc-gone"),  # none is running: the later one
        ("fc-gone", ["fc-off"], "fc-gone"),
        ("fc-on", ["fc-on", "fc-off"], "fc-on"),
    ],
)
def test_note_and_volume_are_both_asked(
    cloud, a_run, call, tmp_path, noted, begun, found
):
    call["fc-gone"] = Call(False)
    (tmp_path / "volume/runs/x/attempts.json").write_text(
        json.dumps([{"call": each} for each in begun])
    )
    note_of(tmp_path, noted)
    assert cloud.find("x").call_id == found


def test_run_launched_elsewhere_is_not_launched_twice(
    tiny, cloud, tmp_path, asked, call
):
    (tmp_path / "volume/runs/tiny").mkdir(parents=True)
    (tmp_path / "volume/runs/tiny/attempts.json").write_text(
        '[{"call": "fc-off"}, {"call": "fc-on"}]'
    )
    note_of(tmp_path, "fc-off", "tiny")
    with pytest.raises(SlmError, match="already.*\n.*fc-on"):
        cloud.launch(load_config(tiny()))
    assert asked == []


def test_stop_reaches_every_call_that_runs(cloud, a_run, call, tmp_path):
    call["fc-too"] = Call(True)
    (tmp_path / "volume/runs/x/attempts.json").write_text('[{"call": "fc-on"}]')
    note_of(tmp_path, "fc-too")
    cloud.stop("x")
    assert call["fc-on"].cancelled and call["fc-too"].cancelled


E = modal.exception


ANSWERS = [
    *(RuntimeError("boom"), torch.OutOfMemoryError("full"), SlmError("it has cost")),
    *(
        E.RemoteError("cancelled"),
        E.FunctionTimeoutError("late"),
        E.OutputExpiredError(),
        E.NotFoundError("no call"),
    ),
    *(
        E.InternalFailure("lost"),
        E.ExecutionError("an error of a module that is not here"),
    ),
]


NO_ANSWERS = [
    *(
        E.ConnectionError("no network"),
        E.ServiceError("down"),
        E.AuthError("Token missing"),
        E.InternalError("oops"),
    ),
    *(
        E.PermissionDeniedError("not yours"),
        E.ResourceExhaustedError("too often"),
        E.ClientClosed("closed"),
    ),
    *(
        ConnectionResetError("by peer"),
        OSError("name or service\nnot known"),
        E.TimeoutError("no answer in time"),
    ),
]


@pytest.mark.parametrize("error", ANSWERS, ids=lambda error: type(error).__name__)
def test_call_that_has_ended_is_not_running(call, error):
    call["fc-1"] = Call(False, error)
    assert Launched("ap-1", "fc-1", "x").is_running() is False


def test_launch_leaves_a_note_that_finds_the_call(tiny, cloud, call):
    call["fc-train"] = Call(True)
    launched = cloud.launch(load_config(tiny()), wait=False)
    assert cloud.find("tiny") == launched


def test_run_that_is_running_is_not_launched_twice(tiny, cloud, tmp_path, asked, call):
    (tmp_path / "runs/modal/tiny").mkdir(parents=True)
    note = tmp_path / "runs/modal/tiny/launched.json"
    for found, refused in (("fc-on", True), ("fc-off", False)):
        note.write_text(json.dumps({"app_id": "ap-1", "call_id": found, "run": "tiny"}))
        twice = pytest.raises(SlmError, match="already.*\n.*fc-on")
        with twice if refused else contextlib.nullcontext():
            cloud.launch(load_config(tiny()))
        assert ("train" in [name for name, _ in asked]) is not refused


def test_interrupt_before_the_gpu_is_told(tiny, cloud, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cloud.app, "run", swallowing_run)
    monkeypatch.setattr(cloud.train, "spawn", interrupted)
    with pytest.raises(SlmError, match="before a GPU was rented"):
        cloud.launch(load_config(tiny()))


def test_preparation_can_be_followed_and_stopped_while_it_is_waited_for(
    tiny, cloud, monkeypatch, capsys
):
    def wait():
        said = capsys.readouterr().out
        assert "modal app logs ap-1" in said and "modal app stop ap-1" in said
        raise KeyboardInterrupt

    monkeypatch.setattr(cloud.app, "run", swallowing_run)
    monkeypatch.setattr(cloud.prepare, "get", wait)
    left = "the preparation goes on, and `modal app stop ap-1` ends it"
    with pytest.raises(SlmError, match=left):
        cloud.launch(load_config(tiny(data={"dataset": "roneneldan/TinyStories"})))


def test_interrupt_while_the_run_is_watched_leaves_it_running(
    tiny, cloud, monkeypatch, capsys
):
    def wait():
        raise KeyboardInterrupt

    monkeypatch.setattr(cloud.app, "run", swallowing_run)
    monkeypatch.setattr(cloud.train, "get", wait)
    launched = cloud.launch(load_config(tiny()))
    assert launched.call_id == "fc-train" and launched.result is None
    assert "Only the watching has stopped" in capsys.readouterr().out


def test_text_that_cannot_be_prepared_is_refused_before_a_gpu_is_asked_for(
    tiny, cloud, asked
):
    cloud.prepare.problem = "no such data set"
    with pytest.raises(SlmError, match="no such data set"):
        cloud.launch(load_config(tiny(data={"dataset": "nobody/nothing"})))
    assert "train" not in [name for name, _ in asked]


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "a b", "x" * 65])
def test_name_that_cannot_be_a_runs_is_refused_everywhere(
    tiny, cloud, asked, capsys, name
):
    for command in (
        lambda: cloud.launch(load_config(tiny()), run=name),
        lambda: cloud.find(name),
        lambda: cloud.stop(name),
        lambda: cloud.status(name, "here"),
        lambda: cloud.download(name, "here"),
    ):
        with pytest.raises(SlmError, match="cannot name a run"):
            command()
    assert asked == [] and capsys.readouterr().out == ""
    assert sorted(Path().iterdir()) == [Path("tiny.yaml")]


def test_import_needs_no_torch(cloud):
    code = "import slm.cloud.launch, sys; print([name for name in ('torch', 'wandb', 'datasets') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert found.stdout.decode().strip() == "[]", found.stderr


# --- back from the volume


def test_fetch_brings_everything_but_checkpoints(a_run, cloud):
    assert cloud.download("x", "here") == Path("here")
    found = {
        path.relative_to("here").as_posix()
        for path in Path("here").rglob("*")
        if path.is_file()
    }
    assert found == {
        "model/model.safetensors",
        "samples/step_4.txt",
        "metrics.jsonl",
        "attempts.json",
    }


@pytest.mark.parametrize("lost_at", ["the list", "a file", "a chunk", "a folder"])
def test_connection_lost_while_copying_leaves_what_was_there(
    a_run, cloud, call, tmp_path, monkeypatch, lost_at
):
    here = tmp_path / "here"
    here.mkdir()
    (here / "metrics.jsonl").write_text("from the last fetch")
    listdir, read_file = cloud.volume.listdir, cloud.volume.read_file

    def lost_list(path):
        if path == {"the list": "runs/x", "a folder": "runs/x/model"}.get(lost_at):
            raise E.ConnectionError("no network")
        return listdir(path)

    def lost_file(path):
        if not path.endswith("metrics.jsonl") or lost_at == "a folder":
            yield from read_file(path)
        elif lost_at == "a file":
            raise ConnectionResetError("by peer")
        else:
            yield b"half"
            raise E.ServiceError("down")

    monkeypatch.setattr(cloud.volume, "listdir", lost_list)
    monkeypatch.setattr(cloud.volume, "read_file", lost_file)
    # a run that is running is not reported from half of its files either
    note_of(tmp_path, "fc-on")
    told = "may be running" if lost_at == "the list" else "was not copied whole"
    commands = [lambda: cloud.download("x", here)]
    if lost_at != "a folder":
        commands.append(lambda: cloud.status("x", tmp_path / "status"))
    for command in commands:
        with pytest.raises(SlmError, match=told) as lost:
            command()
        assert lost.value.retry and "\n" not in str(lost.value)
        assert not isinstance(lost.value, NothingYet)
    if lost_at != "a folder":
        assert not list(here.glob("*.tmp"))
        assert (here / "metrics.jsonl").read_text() == "from the last fetch"


def test_status_reports_from_the_volume(a_run, cloud, tmp_path):
    assert cloud.status("x", tmp_path / "status") == {
        "run": "x",
        "finished": True,
        "problem": "",
        "step": 4,
        "checkpoint": 0,
        "val_loss": 3.5,
        "mfu": None,
        "tokens_per_s": None,
        "attempts": 1,
        "seconds": 10.0,
        "dollars": 0.5,
        "budget": None,
        "running": False,
    }


def test_status_of_a_run_that_waits_for_a_machine(cloud, call, tmp_path):
    note_of(tmp_path, "fc-on", "new")
    said = cloud.status("new", tmp_path / "status")
    assert (said["running"], said["step"], said["finished"]) == (True, 0, False)


def test_unknown_run_is_nothing_yet(cloud, tmp_path):
    with pytest.raises(NothingYet, match="no run 'nope'"):
        cloud.status("nope", tmp_path / "status")
    with pytest.raises(NothingYet, match="no run 'nope'"):
        cloud.download("nope", "here")


@pytest.mark.parametrize("error", NO_ANSWERS, ids=lambda error: type(error).__name__)
def test_modal_that_does_not_answer_does_not_mean_that_nothing_runs(
    a_run, cloud, asked, call, tiny, tmp_path, error
):
    call["fc-1"] = Call(False, error)
    note_of(tmp_path, "fc-1")
    for command in (
        lambda: cloud.stop("x"),
        lambda: cloud.status("x", tmp_path / "status"),
        lambda: cloud.launch(load_config(tiny()), run="x"),
    ):
        told = "Modal cannot be asked about x, which may be running"
        with pytest.raises(SlmError, match=told) as unanswered:
            command()
        said = str(unanswered.value)
        assert type(error).__name__ in said and "\n" not in said
        assert unanswered.value.retry
    assert asked == []


def test_count_that_is_half_read_does_not_mean_that_nothing_runs(a_run, cloud):
    (a_run / "attempts.json").write_text('[{"call": "fc-on", "sec')
    with pytest.raises(SlmError, match="may be running .*is not whole") as half:
        cloud.find("x")
    assert half.value.retry


def test_volume_that_cannot_be_read_does_not_mean_that_nothing_runs(
    tiny, cloud, asked, monkeypatch
):
    def lost(path):
        raise E.ConnectionError("no network")

    monkeypatch.setattr(cloud.volume, "read_file", lost)
    told = r"cannot be asked about x.*\(ConnectionError: no network\)"
    with pytest.raises(SlmError, match=told):
        cloud.launch(load_config(tiny()), run="x")
    assert asked == []


def test_cancel_that_does_not_arrive_is_told(cloud, call, tmp_path, monkeypatch):
    def lost(self):
        raise E.ServiceError("down")

    monkeypatch.setattr(Call, "cancel", lost)
    note_of(tmp_path, "fc-on")
    with pytest.raises(SlmError, match=r"may be running \(ServiceError: down\)"):
        cloud.stop("x")


def test_stop_cancels_what_runs(a_run, cloud, call):
    (a_run / "attempts.json").write_text('[{"call": "fc-on"}]')
    cloud.stop("x")
    assert call["fc-on"].cancelled
    (a_run / "attempts.json").write_text('[{"call": "fc-off"}]')
    with pytest.raises(SlmError, match="x is not running"):
        cloud.stop("x")
