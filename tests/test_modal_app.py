"""modal_app.py, as far as it can be seen without Modal: what is refused, what is asked for, and the launch in this process."""

import contextlib
import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import modal
import pytest
import torch
import yaml

import modal_app
from slm import trainer
from slm.checkpoint import CheckpointError
from slm.config import load_config

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "model": {"vocab_size": 1024, "context_length": 32, "n_layers": 1, "n_heads": 2, "d_model": 16, "d_ff": 32},
    "training": {
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "max_steps": 12,
        "checkpoint_every": 4,
        "eval_every": 12,
        "threads": 1,
    },
    "data": {"dataset": "stories", "tokenizer": "stories", "max_documents": 200},
    "modal": {"gpu": "T4", "timeout": 600, "max_dollars": 1.0},
    "wandb": {"enabled": False},
}


def tiny(folder, **sections):
    """A config file with some keys of its sections replaced."""
    merged = {name: {**TINY.get(name, {}), **sections.get(name, {})} for name in {**TINY, **sections}}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(merged))
    return path


def python(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


# --- the client


def test_import_is_light():
    heavy = "[name for name in sys.modules if name in ('torch', 'datasets', 'wandb') or name.startswith('slm.')]"
    assert python(f"import modal_app, sys; print({heavy})") == "[]\n"


def test_config_is_checked_and_priced_without_torch():
    steps = "c = load_config('configs/gpt_124m.yaml'); check(c); cost_table(c); as_text(c)"
    imports = (
        "from modal_app import check, as_text; from slm.config import load_config; from slm.cost import cost_table"
    )
    assert python(f"import sys; {imports}; {steps}; print('torch' in sys.modules)") == "False\n"


def test_import_costs_little_beside_modal():
    code = "import time as t; a = t.perf_counter(); import modal; b = t.perf_counter(); import modal_app; print((t.perf_counter() - b) / (b - a))"
    assert min(float(python(code)) for _ in range(3)) < 0.5


def test_image_has_the_versions_that_are_tested():
    installed = {pin: importlib.metadata.version(pin.split("==")[0]).split("+")[0] for pin in modal_app.PACKAGES}
    assert {pin: pin.split("==")[1] for pin in modal_app.PACKAGES} == installed


def test_image_has_everything_that_training_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {re.split(r"[<>=]", line)[0] for line in [*project["dependencies"], *extras["data"], *extras["train"]]}
    assert needed == {pin.split("==")[0] for pin in modal_app.PACKAGES}


# --- what is refused, before anything is built


def test_expensive_run_is_refused(tmp_path):
    config = load_config(ROOT / "configs/gpt_124m.yaml", ["modal.max_dollars=1"])
    with pytest.raises(modal_app.Refused, match=r"Needs up to .* \$.*--yes-spend"):
        modal_app.check(config)
    assert modal_app.check(config, yes_spend=True).dollars[1] > 1


def test_budget_of_exactly_the_prediction_is_enough():
    config = load_config("configs/gpt_124m.yaml")
    dollars = modal_app.check(config, yes_spend=True).dollars[1]
    assert (
        modal_app.check(load_config("configs/gpt_124m.yaml", [f"modal.max_dollars={dollars!r}"])).dollars[1] == dollars
    )


def test_model_that_does_not_fit_is_refused_whatever_one_would_spend():
    config = load_config("configs/gpt_774m.yaml", ["modal.gpu=T4", "modal.max_dollars=1000"])
    with pytest.raises(modal_app.Refused, match="GB"):
        modal_app.check(config, yes_spend=True)


def test_text_on_this_computer_is_refused(tmp_path):
    text = tmp_path / "own.txt"
    text.write_text("Once.")
    with pytest.raises(modal_app.Refused, match=r"data\.dataset.*modal volume put.*modal volume create slm-data"):
        modal_app.check(load_config(tiny(tmp_path, data={"dataset": str(text)})))


@pytest.mark.parametrize("value", ["texts/*.txt", "texts", "texts/a b.txt", "./texts/**/*.txt", "*.jsonl"])
def test_printed_upload_works_and_the_config_finds_it(tmp_path, monkeypatch, value):
    here, data = tmp_path / "here", tmp_path / "data"
    for name in ("texts/a b.txt", "texts/deep/c.txt", "d.jsonl"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("Once.")
    monkeypatch.chdir(here)
    with pytest.raises(modal_app.Refused) as refused:
        modal_app.check(load_config(tiny(tmp_path, data={"dataset": value})))
    command, path = re.search(r"upload it with `(.+?)` .*write data\.dataset: (.+)$", str(refused.value)).groups()
    *put, source, target = shlex.split(command)  # one path, which no shell expands
    assert put == ["modal", "volume", "put", "slm-data"]
    copy = shutil.copytree if Path(source).is_dir() else shutil.copy
    (data / target[1:]).parent.mkdir(parents=True)
    copy(source, data / target[1:])
    modal_app.check(load_config(tiny(tmp_path, data={"dataset": path})))

    def names(pattern, root):
        return sorted(found.relative_to(root) for found in Path(root).glob(pattern))

    written = Path(path).relative_to("/data").as_posix()
    base = f"text/{Path(source).resolve().name}"
    if "*" in value:
        assert (
            [found.relative_to(base) for found in names(written, data)]
            == [found.relative_to(source) for found in names(Path(value).as_posix(), ".")]
            != []
        )
    else:
        assert (data / written).exists()


def test_tokenizer_on_this_computer_is_refused(tmp_path):
    saved = tmp_path / "own.tiktoken"
    saved.touch()
    with pytest.raises(modal_app.Refused, match=r"data\.tokenizer.*modal volume put"):
        modal_app.check(load_config(tiny(tmp_path, data={"tokenizer": str(saved)})))
    modal_app.check(load_config(tiny(tmp_path, data={"tokenizer": "/data/text/own.tiktoken"})))


@pytest.mark.parametrize(
    ("section", "words"),
    [({"gpu": "H1000"}, "gpu"), ({"timeout": 90000}, "timeout"), ({"gpu": "H100:9"}, "gpu"), ({"budget": 1}, "budget")],
)
def test_wrong_config_is_one_sentence_and_exit_code_2(tmp_path, capsys, section, words):
    with pytest.raises(SystemExit) as stop:
        modal_app.main(str(tiny(tmp_path, modal=section)))
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in said and said.startswith("error: ") and said.count("\n") == 1


def test_missing_config_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        modal_app.main(str(tmp_path / "nowhere.yaml"))
    assert stop.value.code == 2
    assert "nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["texts/*.txt", "missing.jsonl", "./texts", "~/texts", "/elsewhere/texts"])
def test_path_that_no_container_can_see_is_refused(tmp_path, name):
    with pytest.raises(modal_app.Refused, match=r"data\.dataset.*modal volume put"):
        modal_app.check(load_config(tiny(tmp_path, data={"dataset": name})))
    modal_app.check(load_config(tiny(tmp_path, data={"dataset": "/data/text/*.txt"})))


def test_shipped_configs_would_be_launched():
    for name in ("gpt_124m", "gpt_350m", "gpt_774m"):
        assert modal_app.check(load_config(f"configs/{name}.yaml")).fits_memory, name


# --- what is asked for


class Recorder:
    """Stands in for a Modal function: remembers what it was asked."""

    def __init__(self, log, name):
        self.log, self.name, self.object_id = log, name, f"fc-{name}"

    def with_options(self, **options):
        self.log.append((f"{self.name} with", options))
        return self

    def spawn(self, *arguments):
        self.log.append((self.name, arguments))
        return self

    def get(self):
        return None


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Everything that `launch` asks Modal for, in order."""
    log = []
    running = SimpleNamespace(app_id="ap-1", run=lambda detach: log.append(("run", detach)) or contextlib.nullcontext())
    monkeypatch.setattr(modal_app, "app", running)
    monkeypatch.setattr(modal_app, "train", Recorder(log, "train"))
    monkeypatch.setattr(modal_app, "prepare", Recorder(log, "prepare"))
    monkeypatch.setattr(modal_app.modal.Secret, "hydrate", lambda self: self)
    monkeypatch.setattr(modal_app, "volume", Volume(tmp_path / "volume"))
    monkeypatch.chdir(tmp_path)
    return log


def test_config_decides_gpu_time_and_machine(tmp_path, asked, capsys):
    path = tiny(tmp_path, modal={"gpu": "H100:2", "timeout": 7200, "max_dollars": 3.0, "cpu": 4, "memory_mib": 4096})
    launched = modal_app.launch(load_config(path))
    (_, detached), (_, options), (_, (text, run_dir, budget)) = asked
    assert detached is True
    assert options == {"gpu": "H100:2", "timeout": 7200, "secrets": [], "cpu": 4, "memory": 4096}
    assert (run_dir, budget) == ("/data/runs/tiny", 3.0)
    sent = load_config(modal_app.unpack(text, "tiny"))
    assert sent.data.cache_dir == "/data/tokens"
    assert (sent.model, sent.training, sent.modal) == (
        load_config(path).model,
        load_config(path).training,
        load_config(path).modal,
    )
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("fc-train", "modal app stop ap-1", "::fetch --run tiny", "T4"))
    assert launched == modal_app.Launched("ap-1", "fc-train", "tiny")


def test_yes_spend_lifts_the_limit_to_what_was_predicted_and_no_further(tmp_path, asked):
    config = load_config(tiny(tmp_path, modal={**TINY["modal"], "max_dollars": 0.01}))
    modal_app.launch(config, run="other", yes_spend=True)
    predicted = modal_app.check(config, yes_spend=True).dollars[1]
    assert predicted > 0.01 and asked[-1][1][1:] == ("/data/runs/other", predicted)
    modal_app.launch(load_config(tiny(tmp_path)), run="another", yes_spend=True)
    assert asked[-1][1][1:] == ("/data/runs/another", 1.0)


def test_downloads_are_prepared_before_a_gpu_is_asked_for(tmp_path, asked):
    modal_app.launch(load_config(tiny(tmp_path, data={"dataset": "roneneldan/TinyStories"})))
    assert [name for name, _ in asked] == ["run", "prepare", "train with", "train"]


def test_refused_launch_asks_for_nothing(tmp_path, asked):
    with pytest.raises(modal_app.Refused):
        modal_app.launch(load_config(ROOT / "configs/gpt_124m.yaml", ["modal.max_dollars=1"]))
    assert asked == []


def test_interrupt_before_the_gpu_is_told(tmp_path, asked, monkeypatch):
    @contextlib.contextmanager
    def run(detach):
        with contextlib.suppress(KeyboardInterrupt):  # as Modal does with a detached app
            yield

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(modal_app.app, "run", run)
    monkeypatch.setattr(modal_app.train, "spawn", interrupted)
    with pytest.raises(modal_app.Refused, match="before a GPU was rented"):
        modal_app.launch(load_config(tiny(tmp_path)))


def test_preparation_can_be_followed_and_stopped_while_it_is_waited_for(tmp_path, asked, monkeypatch, capsys):
    @contextlib.contextmanager
    def run(detach):
        with contextlib.suppress(KeyboardInterrupt):
            yield

    def wait(self):
        said = capsys.readouterr().out
        assert "modal app logs ap-1" in said and "modal app stop ap-1" in said
        raise KeyboardInterrupt

    monkeypatch.setattr(modal_app.app, "run", run)
    monkeypatch.setattr(Recorder, "get", wait)
    with pytest.raises(modal_app.Refused, match="the preparation goes on, and `modal app stop ap-1` ends it"):
        modal_app.launch(load_config(tiny(tmp_path, data={"dataset": "roneneldan/TinyStories"})))


def test_secret_only_if_the_config_asks_for_it(tmp_path, asked):
    modal_app.launch(load_config(tiny(tmp_path, wandb={"enabled": True})))
    (secret,) = asked[1][1]["secrets"]
    assert isinstance(secret, modal.Secret)


def test_missing_secret_is_refused_in_one_sentence(tmp_path, asked, monkeypatch):
    def missing(self):
        raise modal.exception.NotFoundError("Secret 'wandb' not found")

    monkeypatch.setattr(modal_app.modal.Secret, "hydrate", missing)
    with pytest.raises(modal_app.Refused, match="modal secret create wandb"):
        modal_app.launch(load_config(tiny(tmp_path, wandb={"enabled": True})))
    assert asked == []


# --- the run, in this process


def text_of(folder, **sections):
    return modal_app.as_text(load_config(tiny(folder, **sections)), cache_dir=str(folder / "tokens"))


def test_config_survives_the_journey(tmp_path):
    config = load_config(tiny(tmp_path))
    assert load_config(modal_app.unpack(modal_app.as_text(config), "tiny")) == config


def test_local_run_finishes_and_is_not_trained_twice(tmp_path):
    result = modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    assert (result["run"], result["finished"], result["step"], result["attempts"]) == ("run", True, 12, 1)
    assert result["dollars"] == 0 and result["seconds"] > 0
    written = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))["attempts"] == 2
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == written


def test_run_that_stops_at_its_budget_goes_on_to_the_same_end(tmp_path):
    whole = modal_app.train.local(text_of(tmp_path), str(tmp_path / "whole"))
    steps = []
    part = {"dollars": 0.0}
    for _ in range(4):
        more = part["dollars"] + 1e-9
        part = modal_app.train.local(text_of(tmp_path), str(tmp_path / "parts"), budget=more, rate=3.60)
        steps.append(modal_app.checkpoints(tmp_path / "parts")[-1])
        if part["finished"]:
            break
    assert part["finished"] and steps == ["step_00000004.pt", "step_00000008.pt", "step_00000012.pt"]
    assert part["val_loss"] == whole["val_loss"]


def training_that(monkeypatch, error):
    """Lets training fail at once; returns the list of the attempts to train."""
    tried = []

    def fail(config, run_dir, **rest):
        tried.append(run_dir)
        raise error

    monkeypatch.setattr("slm.trainer.train", fail)
    return tried


def test_attempt_does_not_begin_when_the_budget_is_spent(tmp_path, monkeypatch):
    tried = training_that(monkeypatch, RuntimeError("boom"))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="boom"):
            modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"), budget=1.0, rate=0.0)
    (tmp_path / "run" / "attempts.json").write_text('[{"seconds": 10.0, "dollars": 1.0}]')
    result = modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"), budget=1.0, rate=0.0)
    assert "$1.00 of $1.00; a larger budget" in result["problem"] and not result["finished"]
    assert len(tried) == 3


def test_finished_run_is_returned_though_its_budget_is_spent(tmp_path):
    modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    (tmp_path / "run" / "attempts.json").write_text('[{"seconds": 10.0, "dollars": 5.0}]')
    result = modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"), budget=1.0)
    assert result["finished"] and result["problem"] == ""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "lower training.batch_size"),
        (ValueError("no such key"), "no such"),
        (trainer.TrainingDiverged("the loss became nan at step 3"), "became nan"),
        (CheckpointError("none of the 2 checkpoints can be used"), "none of the 2"),
    ],
    ids=["memory", "mistake", "divergence", "checkpoints"],
)
def test_failure_that_would_repeat_ends_the_call(tmp_path, monkeypatch, error, words):
    training_that(monkeypatch, error)
    result = modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))  # an exception would be retried
    assert words in result["problem"] and not result["finished"] and result["attempts"] == 1


def test_checkpoints_of_another_precision_end_the_call(tmp_path):
    training = TINY["training"]
    modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"), budget=1e-9, rate=3.6)
    path = tmp_path / "run" / "checkpoints" / "step_00000004.pt"
    state = trainer.load_latest(path.parent)[1]
    trainer.save_checkpoint(path, {**state, "dtype": "torch.float16" if "float16" != state["dtype"] else ""})
    result = modal_app.train.local(text_of(tmp_path, training=training), str(tmp_path / "run"))
    assert "another precision" in result["problem"] and not result["finished"]


def test_full_disk_may_be_tried_again(tmp_path, monkeypatch):
    def full(path, state):
        raise OSError("No space left on device")

    monkeypatch.setattr(trainer, "save_checkpoint", full)
    with pytest.raises(CheckpointError, match="was not saved"):
        modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    assert "was not saved" in json.loads((tmp_path / "run" / "attempts.json").read_text())[0]["error"]


@pytest.mark.parametrize("error", [OSError("disk"), TimeoutError("slow"), modal.exception.ServiceError("commit")])
def test_own_error_does_not_look_like_a_failed_question(tmp_path, monkeypatch, error):
    training_that(monkeypatch, error)
    with pytest.raises(RuntimeError, match=f"{type(error).__name__}: {error}"):
        modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))


def test_meter_is_written_before_training_begins(tmp_path, monkeypatch):
    seen = []

    def look(config, run_dir, **rest):
        seen.append(modal_app.report(run_dir)["attempts"])
        return SimpleNamespace(finished=False)

    monkeypatch.setattr("slm.trainer.train", look)
    with pytest.raises(KeyboardInterrupt):
        modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    assert seen == [1]


def test_report_of_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4, "train/lo')
    found = modal_app.report(tmp_path)
    assert (found["finished"], found["step"], found["attempts"], found["dollars"]) == (False, 2, 0, 0)
    assert (found["checkpoint"], found["budget"], found["problem"]) == (0, None, "")
    (tmp_path / "metrics.jsonl").unlink()
    assert modal_app.report(tmp_path)["step"] == 0


def test_report_tells_checkpoint_budget_and_problem(tmp_path):
    """Also in a copy of the folder without its checkpoints, and no longer once a further attempt has begun."""
    modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"), budget=1e-9, rate=3.60)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7}\n')  # as of a run that was killed later
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy, ignore=shutil.ignore_patterns("*.pt"))
    for folder in (tmp_path / "run", copy):
        found = modal_app.report(folder)
        assert (found["step"], found["checkpoint"], found["budget"]) == (7, 4, 1e-9)
        assert "a larger budget goes on" in found["problem"]
    modal_app.Meter(tmp_path / "run", 3.6, budget=2.0).save()
    found = modal_app.report(tmp_path / "run")
    assert (found["budget"], found["problem"]) == (2.0, "")


def test_interrupted_run_does_not_count_as_done(tmp_path, monkeypatch):
    monkeypatch.setattr("slm.trainer.train", lambda config, run_dir, **rest: SimpleNamespace(finished=False))
    with pytest.raises(KeyboardInterrupt):
        modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    assert modal_app.report(tmp_path / "run")["attempts"] == 1  # it cost something all the same


def interrupted_training(config, run_dir, **rest):
    raise KeyboardInterrupt


def test_interrupt_of_the_time_limit_is_an_attempt_in_vain(tmp_path, monkeypatch):
    monkeypatch.setattr(modal_app.modal, "current_function_call_id", lambda: "fc-1")
    monkeypatch.setattr("slm.trainer.train", interrupted_training)
    text = text_of(tmp_path, modal={**TINY["modal"], "timeout": int(modal_app.TICK)})
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            modal_app.train.local(text, str(tmp_path / "run"))
    try:
        result = modal_app.train.local(text, str(tmp_path / "run"))
    except KeyboardInterrupt:
        pytest.fail("a fourth attempt began")
    assert "modal.timeout" in result["problem"]


@pytest.mark.parametrize(
    "train",
    [interrupted_training, lambda config, run_dir, **rest: SimpleNamespace(finished=False)],
    ids=["at once", "saved"],
)
def test_machines_taken_away_do_not_end_a_run(tmp_path, monkeypatch, train):
    monkeypatch.setattr(modal_app.modal, "current_function_call_id", lambda: "fc-1")
    with monkeypatch.context() as patch:
        patch.setattr("slm.trainer.train", train)
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    assert modal_app.report(tmp_path / "run")["problem"] == ""
    assert modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))["finished"]


def slow_training(monkeypatch, seconds=30.0):
    """Training that never comes to a checkpoint, and that Ctrl-C stops as it stops the trainer."""

    def train(config, run_dir, **rest):
        with trainer._stop_signals() as signals:
            until = time.monotonic() + seconds
            while not signals and time.monotonic() < until:
                time.sleep(0.01)
        return SimpleNamespace(finished=False)

    monkeypatch.setattr("slm.trainer.train", train)


def test_meter_is_written_while_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(modal_app, "TICK", 0.05)
    slow_training(monkeypatch, seconds=0.5)
    secured = []
    meter = modal_app.Meter(tmp_path, 3.6, secure=lambda: secured.append(modal_app.report(tmp_path)["seconds"]))
    assert modal_app.attempt(load_config(tiny(tmp_path)), str(tmp_path), meter) == ""
    assert len(secured) > 4 and secured == sorted(secured) and secured[-1] > 0.3


def test_meter_goes_on_when_it_could_not_be_secured_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(modal_app, "TICK", 0.05)
    calls = []

    def secure():
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("no network")

    with modal_app.Meter(tmp_path, 3.6, secure=secure).watching():
        time.sleep(0.4)
    assert len(calls) > 2 and "ConnectionError: no network" in capsys.readouterr().out


def test_run_that_comes_to_no_checkpoint_stops_at_its_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(modal_app, "TICK", 0.1)
    slow_training(monkeypatch)
    began = time.monotonic()
    result = modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"), budget=0.0005, rate=3.6)  # half a second
    assert time.monotonic() - began < 10
    assert "of $0.00; a larger budget goes on" in result["problem"] and not result["finished"]
    assert 0.0005 <= result["dollars"] < 0.002


def test_budget_stops_what_is_no_training_step(tmp_path, monkeypatch):
    """A download, say: there Ctrl-C is an exception."""
    monkeypatch.setattr(modal_app, "TICK", 0.1)
    monkeypatch.setattr("slm.trainer.train", lambda config, run_dir, **rest: time.sleep(30))
    result = modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"), budget=0.0005, rate=3.6)
    assert "a larger budget goes on" in result["problem"]


def test_process_that_hangs_is_ended(tmp_path):
    code = f"""
import signal, time, modal_app
signal.signal(signal.SIGINT, signal.SIG_IGN)
modal_app.TICK, modal_app.PATIENCE = 0.05, 3
with modal_app.Meter({str(tmp_path)!r}, 3.6, budget=1e-9).watching():
    time.sleep(30)
"""
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 1
    assert time.monotonic() - began < 20 and modal_app.report(tmp_path)["dollars"] > 0


def test_finished_training_may_save_whatever_it_has_cost(tmp_path):
    meter = modal_app.Meter(tmp_path, 3.6, budget=1.0, max_steps=12)
    assert meter.is_spent(2.0) and not meter.is_spent(0.5)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000012.pt").touch()
    assert not meter.is_spent(2.0)


@pytest.mark.parametrize(
    ("begun", "now", "expected"), [([], 3, 0.5 + 1.0 + 9 / 3), (["step_00000003.pt"], 6, 0.5 + 1.0 + 6 / 3)]
)
def test_cost_at_the_end_follows_from_the_steps_of_this_attempt(tmp_path, begun, now, expected):
    (tmp_path / "attempts.json").write_text('[{"seconds": 10.0, "dollars": 0.5}]')
    meter = modal_app.Meter(tmp_path, 2.0, max_steps=12)
    meter.entry |= {"from": begun, "to": [f"step_{now:08d}.pt"], "dollars": 1.0}
    assert meter.at_the_end() == pytest.approx(expected)


def test_reconciliation_names_prediction_cost_and_mfu(tmp_path):
    expected = modal_app.check(load_config(tiny(tmp_path)))
    result = modal_app.report(tmp_path / "none") | {"seconds": 7200.0, "dollars": 1.25, "attempts": 2, "mfu": 0.371}
    first, _, predicted, actual = modal_app.reconcile(expected, result).splitlines()
    assert "not finished at step 0" in first and predicted.endswith("on T4")
    assert actual.split() == ["actual", "2", "1.25", "in", "2", "attempts,", "37%", "MFU"]


A = {"call": "fc-1", "from": [], "to": [], "error": "", "seconds": 1.0, "dollars": 0.0}
IN_VAIN = {
    "one error": ([A | {"error": "KeyError: 1"}], ""),
    "two errors": ([A | {"error": "KeyError: 1"}, A | {"error": "KeyError: 2"}], "ended with KeyError: 2"),
    "two errors with progress": ([A | {"error": "KeyError: 1"}, A | {"error": "KeyError: 2", "to": ["x"]}], ""),
    "two errors of two calls": ([A | {"error": "KeyError: 1", "call": "fc-0"}, A | {"error": "KeyError: 2"}], ""),
    "two time-outs": ([A, A], ""),
    "three time-outs": ([A, A, A], "modal.timeout"),
    "three time-outs with progress": ([A, A, A | {"to": ["x"]}], ""),
    "three machines taken away": ([A | {"interrupted": True}] * 3, ""),
    "three time-outs and a machine taken away": ([A, A, A | {"interrupted": True}, A], "modal.timeout"),
    "progress before a machine is taken away": ([A, A, A | {"interrupted": True, "to": ["x"]}, A], ""),
    "three of a count without calls": ([{"seconds": 1.0, "dollars": 0.0}] * 3, ""),
}


@pytest.mark.parametrize("case", IN_VAIN)
def test_attempts_in_vain_are_told(tmp_path, case):
    attempts, words = IN_VAIN[case]
    (tmp_path / "attempts.json").write_text(json.dumps(attempts))
    found = modal_app.Meter(tmp_path, 1.0, call="fc-1").in_vain()
    assert words in found and bool(words) == bool(found)
    assert modal_app.Meter(tmp_path, 1.0, call="fc-2").in_vain() == ""  # a new launch has its own attempts
    assert modal_app.Meter(tmp_path, 1.0).in_vain() == ""


def test_unknown_error_is_tried_again_once(tmp_path, monkeypatch):
    tried = training_that(monkeypatch, RuntimeError("boom"))
    monkeypatch.setattr(modal_app.modal, "current_function_call_id", lambda: "fc-1")
    with pytest.raises(RuntimeError, match="boom"):
        modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    result = modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))  # the second ends the call
    assert "two attempts in a row" in result["problem"] and "RuntimeError: boom" in result["problem"]
    assert len(tried) == 2


def test_meter_adds_up_over_attempts(tmp_path, monkeypatch):
    clock = iter([0.0, 1800.0, 10_000.0, 13_600.0])
    monkeypatch.setattr(modal_app.time, "monotonic", lambda: next(clock))
    modal_app.Meter(tmp_path, 2.0).save()
    assert modal_app.Meter(tmp_path, 4.0).save() == {"attempts": 2, "seconds": 5400.0, "dollars": 5.0}
    assert [path.name for path in tmp_path.iterdir()] == ["attempts.json"]


# --- several ranks


@pytest.fixture
def ranks(monkeypatch, tmp_path):
    """Lets a small script stand in for torchrun: it writes one checkpoint, then does what it is told."""

    def install(then):
        code = f"import pathlib, time; pathlib.Path(r'{tmp_path}/checkpoints/step_1.pt').touch(); {then}"
        real, started = subprocess.Popen, []

        def popen(command, **options):
            started.append((command, real([sys.executable, "-c", code], **options)))
            return started[-1][1]

        (tmp_path / "checkpoints").mkdir()
        monkeypatch.setattr(modal_app.subprocess, "Popen", popen)
        return started

    return install


def test_ranks_are_started_with_the_command_that_one_would_type(ranks, tmp_path):
    started, written = ranks("time.sleep(2)"), []
    config = load_config(tiny(tmp_path, modal={"gpu": "H100:8"}))
    modal_app.train_on_ranks(config, str(tmp_path), lambda: written.append(1))
    command = started[0][0]
    assert command[1:-3] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=8"),
        *("-m", "slm", "train"),
    ]
    assert load_config(command[-3]) == config and command[-2:] == ["--run-dir", str(tmp_path)]
    assert written == [1]


def test_spent_budget_stops_the_ranks(ranks, tmp_path):
    started = ranks("time.sleep(60)")

    def spent():
        raise modal_app.BudgetSpent

    with pytest.raises(modal_app.BudgetSpent):
        modal_app.train_on_ranks(load_config(tiny(tmp_path)), str(tmp_path), spent)
    assert started[0][1].returncode is not None and started[0][1].returncode != 0


def test_meter_stops_the_ranks_before_their_first_checkpoint(ranks, tmp_path, monkeypatch):
    monkeypatch.setattr(modal_app, "TICK", 0.1)
    started = ranks("time.sleep(60)")
    meter = modal_app.Meter(tmp_path, 3.6, budget=0.001)
    with pytest.raises(KeyboardInterrupt), meter.watching():
        modal_app.train_on_ranks(load_config(tiny(tmp_path)), str(tmp_path), lambda: None)
    assert meter.interrupted and started[0][1].returncode  # they were asked to finish, and waited for


def test_failed_ranks_are_an_error(ranks, tmp_path):
    ranks("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="exit code 3"):
        modal_app.train_on_ranks(load_config(tiny(tmp_path)), str(tmp_path), lambda: None)


@pytest.mark.parametrize(
    ("line", "words"),
    [("slm: the loss became nan at step 3", "^the loss became nan"), ("torch.OutOfMemoryError: CUDA", "batch_size")],
)
def test_failure_of_a_rank_that_would_repeat_is_told_apart(ranks, tmp_path, capsys, line, words):
    ranks(f"import sys; print({line!r}, file=sys.stderr); sys.exit(1)")
    with pytest.raises(ValueError, match=words):
        modal_app.train_on_ranks(load_config(tiny(tmp_path)), str(tmp_path), lambda: None)
    assert line in capsys.readouterr().err  # it is in the log all the same


def test_full_disk_of_a_rank_may_be_tried_again(ranks, tmp_path):
    line = "slm: step 4 was not saved: No space left on device"
    ranks(f"import sys; print({line!r}, file=sys.stderr); sys.exit(1)")
    with pytest.raises(RuntimeError, match="exit code 1"):
        modal_app.train_on_ranks(load_config(tiny(tmp_path)), str(tmp_path), lambda: None)


def test_mistake_of_real_ranks_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="vocab_size = 300 is too small"):
        path = tiny(tmp_path, model={**TINY["model"], "vocab_size": 300}, modal={"gpu": "H100:2"})
        modal_app.train_on_ranks(load_config(path), str(tmp_path / "run"), lambda: None)


# --- back from the volume


class Volume:
    """A folder that answers like a Modal volume."""

    def __init__(self, folder):
        self.folder = folder

    def listdir(self, path):
        if not (self.folder / path).is_dir():
            raise modal.exception.NotFoundError(path)
        kinds = modal.volume.FileEntryType
        return [
            SimpleNamespace(
                path=found.relative_to(self.folder).as_posix(), type=kinds.DIRECTORY if found.is_dir() else kinds.FILE
            )
            for found in sorted((self.folder / path).iterdir())
        ]

    def read_file(self, path):
        yield (self.folder / path).read_bytes()  # FileNotFoundError, as Modal's


@pytest.fixture
def volume(tmp_path, monkeypatch):
    run = tmp_path / "volume" / "runs" / "x"
    for name in ("checkpoints/step_00000004.pt", "model/model.safetensors", "samples/step_4.txt", "wandb/debug.log"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    (run / "metrics.jsonl").write_text('{"step": 2, "val/loss": 3.5}\n{"step": 4}\n')
    (run / "attempts.json").write_text('[{"seconds": 10.0, "dollars": 0.5}]')
    (run / ".lock").touch()
    monkeypatch.setattr(modal_app, "volume", Volume(tmp_path / "volume"))
    monkeypatch.chdir(tmp_path)


def test_a_copy_under_another_name_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("step_00000004.pt", "step_best.pt", "step_00000004_mine.pt", "step_00000012.pt"):
        (tmp_path / "checkpoints" / name).touch()
    assert modal_app.checkpoints(tmp_path) == ["step_00000004.pt", "step_00000012.pt"]
    assert modal_app.report(tmp_path)["checkpoint"] == 12


def test_fetch_brings_everything_but_checkpoints(volume, tmp_path, capsys):
    modal_app.fetch_run("x", str(tmp_path / "here"))
    found = {
        path.relative_to(tmp_path / "here").as_posix() for path in (tmp_path / "here").rglob("*") if path.is_file()
    }
    assert found == {"model/model.safetensors", "samples/step_4.txt", "metrics.jsonl", "attempts.json"}


@pytest.mark.parametrize("lost_at", ["the list", "a file", "a chunk", "a folder"])
def test_connection_lost_while_copying_is_one_sentence_and_leaves_what_was_there(
    volume, call, tmp_path, capsys, monkeypatch, lost_at
):
    here = tmp_path / "here"
    here.mkdir()
    (here / "metrics.jsonl").write_text("from the last fetch")
    listdir, read_file = modal_app.volume.listdir, modal_app.volume.read_file

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

    monkeypatch.setattr(modal_app.volume, "listdir", lost_list)
    monkeypatch.setattr(modal_app.volume, "read_file", lost_file)
    note_of(tmp_path, "fc-on")  # a run that is running is not reported from half of its files either
    for command in [lambda: modal_app.fetch_run("x", str(here))] + [lambda: modal_app.show_status("x")] * (
        lost_at != "a folder"
    ):
        with pytest.raises(SystemExit) as stop:
            command()
        said = capsys.readouterr()
        assert stop.value.code == 2 and said.err.count("\n") == 1 and said.out == ""
        assert ("may be running" if lost_at == "the list" else "was not copied whole") in said.err
    if lost_at != "a folder":
        assert (here / "metrics.jsonl").read_text() == "from the last fetch"


def test_status_reports_from_the_volume(volume, capsys):
    modal_app.show_status("x")
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "run": "x",
        "finished": True,
        "problem": "",
        "step": 4,
        "checkpoint": 0,
        "val_loss": 3.5,
        "mfu": None,
        "attempts": 1,
        "seconds": 10.0,
        "dollars": 0.5,
        "budget": None,
        "running": False,
    }


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


@pytest.fixture
def call(monkeypatch):
    calls = {"fc-on": Call(True), "fc-off": Call(False)}
    monkeypatch.setattr(modal_app.modal.FunctionCall, "from_id", calls.get)
    return calls


def test_run_is_found_again_from_any_computer(volume, call, tmp_path):
    assert modal_app.find("x") is None  # its only attempt does not know its call
    (tmp_path / "volume/runs/x/attempts.json").write_text('[{"call": "fc-0"}, {"call": "fc-on", "app": "ap-1"}]')
    assert modal_app.find("x") == modal_app.Launched("ap-1", "fc-on", "x")
    assert modal_app.find("y") is None


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
def test_note_and_volume_are_both_asked(volume, call, tmp_path, noted, begun, found):
    call["fc-gone"] = Call(False)
    (tmp_path / "volume/runs/x/attempts.json").write_text(json.dumps([{"call": each} for each in begun]))
    note_of(tmp_path, noted)
    assert modal_app.find("x").call_id == found


def test_run_launched_elsewhere_is_not_launched_twice(tmp_path, asked, call):
    (tmp_path / "volume/runs/tiny").mkdir(parents=True)
    (tmp_path / "volume/runs/tiny/attempts.json").write_text('[{"call": "fc-off"}, {"call": "fc-on"}]')
    note_of(tmp_path, "fc-off", "tiny")
    with pytest.raises(modal_app.Refused, match="already.*\n.*fc-on"):
        modal_app.launch(load_config(tiny(tmp_path)))
    assert asked == []


def test_stop_reaches_every_call_that_runs(volume, call, tmp_path):
    call["fc-too"] = Call(True)
    (tmp_path / "volume/runs/x/attempts.json").write_text('[{"call": "fc-on"}]')
    note_of(tmp_path, "fc-too")
    modal_app.stop_run("x")
    assert call["fc-on"].cancelled and call["fc-too"].cancelled


E = modal.exception
ANSWERS = [
    *(RuntimeError("boom"), torch.OutOfMemoryError("full"), modal_app.BudgetSpent("it has cost")),
    *(E.RemoteError("cancelled"), E.FunctionTimeoutError("late"), E.OutputExpiredError(), E.NotFoundError("no call")),
    *(E.InternalFailure("lost"), E.ExecutionError("an error of a module that is not here")),
]
NO_ANSWERS = [
    *(E.ConnectionError("no network"), E.ServiceError("down"), E.AuthError("Token missing"), E.InternalError("oops")),
    *(E.PermissionDeniedError("not yours"), E.ResourceExhaustedError("too often"), E.ClientClosed("closed")),
    *(ConnectionResetError("by peer"), OSError("name or service\nnot known"), E.TimeoutError("no answer in time")),
]


@pytest.mark.parametrize("error", ANSWERS, ids=lambda error: type(error).__name__)
def test_call_that_has_ended_is_not_running(call, error):
    call["fc-1"] = Call(False, error)
    assert modal_app.Launched("ap-1", "fc-1", "x").is_running() is False


@pytest.mark.parametrize("error", NO_ANSWERS, ids=lambda error: type(error).__name__)
def test_modal_that_does_not_answer_does_not_mean_that_nothing_runs(
    volume, asked, call, tmp_path, capsys, monkeypatch, error
):
    call["fc-1"] = Call(False, error)
    note_of(tmp_path, "fc-1")
    for command in (modal_app.stop_run, modal_app.show_status):
        with pytest.raises(SystemExit) as stop:
            command("x")
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.count("\n") == 1, said
        assert "Modal cannot be asked about x, which may be running" in said and type(error).__name__ in said
    with pytest.raises(modal_app.Refused, match="cannot be asked"):
        modal_app.launch(load_config(tiny(tmp_path)), run="x")
    assert asked == []


def test_volume_that_cannot_be_read_does_not_mean_that_nothing_runs(volume, asked, tmp_path, monkeypatch, capsys):
    def lost(path):
        raise E.ConnectionError("no network")

    monkeypatch.setattr(modal_app.volume, "read_file", lost)
    with pytest.raises(modal_app.Refused, match=r"cannot be asked about x.*\(ConnectionError: no network\)"):
        modal_app.launch(load_config(tiny(tmp_path)), run="x")
    assert asked == []


def test_cancel_that_does_not_arrive_is_told(volume, call, tmp_path, capsys, monkeypatch):
    def lost(self):
        raise E.ServiceError("down")

    monkeypatch.setattr(Call, "cancel", lost)
    note_of(tmp_path, "fc-on")
    with pytest.raises(SystemExit):
        modal_app.stop_run("x")
    said = capsys.readouterr()
    assert "may be running (ServiceError: down)" in said.err and "is stopped" not in said.out


def test_launch_leaves_a_note_that_finds_the_call(tmp_path, asked, call):
    call["fc-train"] = Call(True)
    launched = modal_app.launch(load_config(tiny(tmp_path)), wait=False)
    assert modal_app.find("tiny") == launched


def test_run_that_is_running_is_not_launched_twice(tmp_path, asked, call):
    (tmp_path / "runs/modal/tiny").mkdir(parents=True)
    note = tmp_path / "runs/modal/tiny/launched.json"
    for found, refused in (("fc-on", True), ("fc-off", False)):
        note.write_text(json.dumps({"app_id": "ap-1", "call_id": found, "run": "tiny"}))
        with pytest.raises(modal_app.Refused, match="already.*\n.*fc-on") if refused else contextlib.nullcontext():
            modal_app.launch(load_config(tiny(tmp_path)))
        assert ("train" in [name for name, _ in asked]) is not refused


def test_stop_cancels_what_runs(volume, call, tmp_path, capsys):
    path = tmp_path / "volume/runs/x/attempts.json"
    path.write_text('[{"call": "fc-on"}]')
    modal_app.stop_run("x")
    assert call["fc-on"].cancelled and "goes on from its last checkpoint" in capsys.readouterr().out
    path.write_text('[{"call": "fc-off"}]')
    with pytest.raises(SystemExit):
        modal_app.stop_run("x")
    assert "x is not running" in capsys.readouterr().err


def test_status_of_a_run_that_waits_for_a_machine(volume, call, tmp_path, capsys):
    (tmp_path / "runs/modal/new").mkdir(parents=True)
    (tmp_path / "runs/modal/new/launched.json").write_text('{"app_id": "ap-1", "call_id": "fc-on", "run": "new"}')
    modal_app.show_status("new")
    said = json.loads(capsys.readouterr().out)
    assert (said["running"], said["step"], said["finished"]) == (True, 0, False)


def test_text_that_cannot_be_prepared_is_refused_before_a_gpu_is_asked_for(tmp_path, asked, monkeypatch):
    monkeypatch.setattr(Recorder, "get", lambda self: "no such data set" if self.name == "prepare" else None)
    with pytest.raises(modal_app.Refused, match="no such data set"):
        modal_app.launch(load_config(tiny(tmp_path, data={"dataset": "nobody/nothing"})))
    assert "train" not in [name for name, _ in asked]


def test_prepare_says_what_is_wrong_with_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(modal_app.volume, "commit", lambda: None)
    text = text_of(tmp_path, data={"dataset": str(tmp_path / "missing.txt")})
    assert modal_app.prepare.local(text) == f"{tmp_path}/missing.txt does not exist."
    assert modal_app.prepare.local(text_of(tmp_path)) == ""
    assert len(list((tmp_path / "tokens").glob("*.tokens"))) == 2


@pytest.fixture
def containers(monkeypatch):
    """`prepare` as in a container, its parts one after the other; returns what was asked of `prepare_part.map`."""
    asked, part = [], modal_app.prepare_part

    def run(ks, kwargs):
        asked.append((len(ks), kwargs["split"]))
        return (part.local(k, **kwargs) for k in ks)

    monkeypatch.setattr(modal_app, "prepare_part", SimpleNamespace(map=run))
    monkeypatch.setattr(modal_app, "volume", SimpleNamespace(commit=lambda: None, reload=lambda: None))
    monkeypatch.setattr(modal_app.modal, "is_local", lambda: False)
    return asked


def folder_of(tmp_path, files):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(files):
        (folder / f"{i:02}.txt").write_text(f"Mia has {i} kites and a boat. " * 20)
    return str(folder)


@pytest.mark.parametrize(("files", "parts"), [(7, None), (8, 8), (20, 16)])
def test_many_files_are_prepared_in_parts_and_a_few_are_not(tmp_path, containers, files, parts):
    text = text_of(tmp_path, data={"dataset": folder_of(tmp_path, files), "max_documents": None})
    assert modal_app.prepare.local(text) == ""
    assert containers == ([(parts, "train"), (parts, "validation")] if parts else [])
    assert len(list((tmp_path / "tokens").glob("*.tokens"))) == 2
    assert modal_app.prepare.local(text) == "" and len(containers) == (2 if parts else 0)  # it is there


def test_a_limit_on_documents_is_not_divided(tmp_path, containers):
    text = text_of(tmp_path, data={"dataset": folder_of(tmp_path, 12), "max_documents": 5})
    assert modal_app.prepare.local(text) == "" and containers == []


def test_what_is_wrong_with_a_part_is_said_before_anything_is_joined(tmp_path, containers):
    folder = folder_of(tmp_path, 10)
    (Path(folder) / "03.txt").write_bytes(b"\xff" * 200)
    said = modal_app.prepare.local(text_of(tmp_path, data={"dataset": folder, "max_documents": None}))
    assert "03.txt is not UTF-8 text" in said and "\n" not in said
    assert not [file for file in (tmp_path / "tokens").glob("*.tokens") if ".part-" not in file.name]


def test_unknown_run_is_one_sentence(volume, capsys):
    with pytest.raises(SystemExit) as stop:
        modal_app.show_status("nope")
    assert stop.value.code == 2
    assert "no run 'nope'" in capsys.readouterr().err
