"""modal_app.py, as far as it can be seen without Modal: the image, the commands, and the launch in this process."""

import contextlib
import importlib.metadata
import itertools
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import modal
import pytest
import torch
import yaml

import modal_app
from slm.cloud import budget
from slm.cloud.budget import Meter
from slm.errors import SlmError
from slm.training.checkpoint import CheckpointError, load_latest, save_checkpoint
from slm.training.config import load_config
from slm.training.folder import list_checkpoints, report
from slm.training.run import stop_signals
from slm.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent


TINY = yaml.safe_load("""
model: {vocab_size: 1024, context_length: 32, n_layers: 1, n_heads: 2, d_model: 16, d_ff: 32}
training: {batch_size: 4, learning_rate: 0.01, warmup_steps: 2, max_steps: 12, checkpoint_every: 4, eval_every: 12, threads: 1}
data: {dataset: stories, tokenizer: stories, max_documents: 200}
modal: {gpu: T4, timeout: 600, max_dollars: 1.0}
wandb: {enabled: false}
""")


def tiny(folder, **sections):
    """A config file with some keys of its sections replaced."""
    merged = {
        name: {**TINY.get(name, {}), **sections.get(name, {})}
        for name in {**TINY, **sections}
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(merged))
    return path


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


# --- the client


def test_import_is_light():
    heavy = "[name for name in ('torch', 'datasets', 'wandb', 'tiktoken') if name in sys.modules]"
    assert python(f"import modal_app, sys; print({heavy})") == "[]\n"


def test_import_costs_little_beside_modal():
    code = "from time import process_time as t; a = t(); import modal; b = t(); import modal_app; print((t() - b) / (b - a))"
    assert min(float(python(code)) for _ in range(3)) < 0.75  # pydantic is most of it


def test_image_has_the_versions_that_are_tested():
    installed = {
        pin: importlib.metadata.version(pin.split("==")[0]).split("+")[0]
        for pin in modal_app.PACKAGES
    }
    assert {pin: pin.split("==")[1] for pin in modal_app.PACKAGES} == installed


def test_image_has_everything_that_training_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {
        re.split(r"[<>=]", line)[0]
        for line in [*project["dependencies"], *extras["data"], *extras["train"]]
    }
    assert needed == {pin.split("==")[0] for pin in modal_app.PACKAGES}


# --- the commands


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"gpu": "H1000"}, "gpu"),
        ({"timeout": 90000}, "timeout"),
        ({"gpu": "H100:9"}, "gpu"),
        ({"budget": 1}, "budget"),
    ],
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


class OneRun:
    """Stands in for the launches of an app, of which one run, x, is known."""

    def status(self, run, folder):
        if run != "x":
            raise SlmError(f"the volume has no run {run!r} yet")
        return {"run": run, "running": True}

    def stop(self, run):
        self.status(run, "")

    def download(self, run, to):
        self.status(run, to)
        return to


def test_commands_say_what_they_did_or_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(modal_app, "cloud", OneRun())
    modal_app.show_status("x")
    assert json.loads(capsys.readouterr().out) == {"run": "x", "running": True}
    modal_app.stop_run("x")
    assert "x is stopped" in capsys.readouterr().out
    modal_app.fetch_run("x")
    assert "x is in runs/modal/x" in capsys.readouterr().out
    for function in (modal_app.show_status, modal_app.stop_run, modal_app.fetch_run):
        with pytest.raises(SystemExit) as stop:
            modal_app.in_a_sentence(function)("nope")
        said = capsys.readouterr()
        assert stop.value.code == 2 and said.out == ""
        assert said.err == "error: the volume has no run 'nope' yet\n"


@pytest.mark.parametrize(
    "result, steps, code",
    [
        ({"finished": False, "checkpoint": 7}, None, 1),
        ({"finished": False, "checkpoint": 7}, 8, 1),
        ({"finished": False, "checkpoint": 8}, 8, None),
        (None, 8, 130),
        ({"finished": True}, None, None),
    ],
)
def test_exit_code_says_whether_the_run_finished_or_is_only_no_longer_watched(
    tmp_path, monkeypatch, result, steps, code
):
    asked = []

    def launch(config, run, yes_spend, steps):
        asked.append(steps)
        return SimpleNamespace(result=result)

    monkeypatch.setattr(modal_app, "cloud", SimpleNamespace(launch=launch))
    exits = contextlib.nullcontext() if code is None else pytest.raises(SystemExit)
    with exits as stop:
        modal_app.main(str(tiny(tmp_path)), steps=steps)
    assert code is None or stop.value.code == code
    assert asked == [steps]


@pytest.mark.parametrize("name", ["a b", ".hidden", "x" * 65, "x" * 300, ".."])
def test_container_refuses_a_name_that_cannot_be_a_runs(tmp_path, name):
    result = modal_app.train.local(text_of(tmp_path), f"{tmp_path}/new/{name}")
    assert "cannot name a run" in result["problem"] and not result["finished"]
    assert not (tmp_path / "new").exists()
    with pytest.raises(SlmError, match="cannot name a run"):
        modal_app.generate.local(name)


# --- the run, in this process


def text_of(folder, **sections):
    data = {**sections.get("data", {}), "cache_dir": str(folder / "tokens")}
    return load_config(tiny(folder, **{**sections, "data": data})).to_yaml()


def test_config_survives_the_journey(tmp_path):
    config = load_config(tiny(tmp_path))
    assert load_config(modal_app.unpack(config.to_yaml(), "tiny")) == config


def test_local_run_finishes_and_is_not_trained_twice(tmp_path):
    result = modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    found = [result[key] for key in ("run", "finished", "step", "attempts")]
    assert found == ["run", True, 12, 1]
    assert result["dollars"] == 0 and result["seconds"] > 0
    written = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert (
        modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))["attempts"] == 2
    )
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == written


def test_run_that_stops_at_its_budget_goes_on_to_the_same_end(tmp_path):
    whole = modal_app.train.local(text_of(tmp_path), str(tmp_path / "whole"))
    steps = []
    part = {"dollars": 0.0}
    for _ in range(4):
        more = part["dollars"] + 1e-9
        part = modal_app.train.local(
            text_of(tmp_path), str(tmp_path / "parts"), budget=more, rate=3.60
        )
        steps.append(list_checkpoints(tmp_path / "parts/checkpoints")[0].name)
        if part["finished"]:
            break
    assert part["finished"]
    assert steps == [f"step_{step:08d}.pt" for step in (4, 8, 12)]
    assert part["val_loss"] == whole["val_loss"]


def training_that(monkeypatch, error):
    """Lets training fail at once; returns the list of the attempts to train."""
    tried = []

    def fail(config, run_dir, **rest):
        tried.append(run_dir)
        raise error

    monkeypatch.setattr("slm.training.run.train", fail)
    return tried


def test_attempt_does_not_begin_when_the_budget_is_spent(tmp_path, monkeypatch):
    tried = training_that(monkeypatch, RuntimeError("boom"))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="boom"):
            modal_app.train.local(
                text_of(tmp_path), str(tmp_path / "run"), budget=1.0, rate=0.0
            )
    (tmp_path / "run" / "attempts.json").write_text(
        '[{"seconds": 10.0, "dollars": 1.0}]'
    )
    result = modal_app.train.local(
        text_of(tmp_path), str(tmp_path / "run"), budget=1.0, rate=0.0
    )
    assert (
        "$1.00 of $1.00; a larger budget" in result["problem"]
        and not result["finished"]
    )
    assert len(tried) == 3


def test_finished_run_is_returned_though_its_budget_is_spent(tmp_path):
    modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    (tmp_path / "run" / "attempts.json").write_text(
        '[{"seconds": 10.0, "dollars": 5.0}]'
    )
    result = modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"), budget=1.0)
    assert result["finished"] and result["problem"] == ""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SlmError("no such key"), "no such"),
        (SlmError("the loss became nan at step 3"), "became nan"),
        (CheckpointError("none of the 2 checkpoints can be used"), "none of the 2"),
    ],
    ids=["mistake", "divergence", "checkpoints"],
)
def test_failure_that_would_repeat_ends_the_call(tmp_path, monkeypatch, error, words):
    training_that(monkeypatch, error)
    result = modal_app.train.local(
        text_of(tmp_path), str(tmp_path / "run")
    )  # an exception would be retried
    assert words in result["problem"] and not result["finished"]
    assert result["attempts"] == 1


def test_checkpoints_of_another_precision_end_the_call(tmp_path):
    training = TINY["training"]
    modal_app.train.local(
        text_of(tmp_path), str(tmp_path / "run"), budget=1e-9, rate=3.6
    )
    path = tmp_path / "run" / "checkpoints" / "step_00000004.pt"
    state = load_latest(path.parent)[1]
    assert state["trainer"]["dtype"] != "torch.float16"
    other = {**state["trainer"], "dtype": "torch.float16"}
    save_checkpoint(path, {**state, "trainer": other})
    result = modal_app.train.local(
        text_of(tmp_path, training=training), str(tmp_path / "run")
    )
    assert "another precision" in result["problem"] and not result["finished"]


def test_full_disk_may_be_tried_again(tmp_path, monkeypatch):
    def full(path, state):
        raise OSError("No space left on device")

    monkeypatch.setattr("slm.training.checkpoint.save_checkpoint", full)
    with pytest.raises(CheckpointError, match="was not saved"):
        modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    assert (
        "was not saved"
        in json.loads((tmp_path / "run" / "attempts.json").read_text())[0]["error"]
    )


@pytest.mark.parametrize(
    "error",
    [OSError("disk"), TimeoutError("slow"), modal.exception.ServiceError("commit")],
)
def test_own_error_does_not_look_like_a_failed_question(tmp_path, monkeypatch, error):
    training_that(monkeypatch, error)
    with pytest.raises(RuntimeError, match=f"{type(error).__name__}: {error}"):
        modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))


def test_meter_is_written_before_training_begins(tmp_path, monkeypatch):
    seen = []

    def look(config, run_dir, **rest):
        seen.append(report(run_dir)["attempts"])
        return SimpleNamespace(finished=False)

    monkeypatch.setattr("slm.training.run.train", look)
    with pytest.raises(KeyboardInterrupt):
        modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    assert seen == [1]


def test_report_tells_checkpoint_budget_and_problem(tmp_path):
    """Also in a copy of the folder without its checkpoints, and no longer once a further attempt has begun."""
    modal_app.train.local(
        text_of(tmp_path), str(tmp_path / "run"), budget=1e-9, rate=3.60
    )
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7}\n')  # as of a run that was killed later
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy, ignore=shutil.ignore_patterns("*.pt"))
    for folder in (tmp_path / "run", copy):
        found = report(folder)
        assert (found["step"], found["checkpoint"], found["budget"]) == (7, 4, 1e-9)
        assert "a larger budget goes on" in found["problem"]
    Meter(tmp_path / "run", 3.6, budget=2.0).save()
    found = report(tmp_path / "run")
    assert (found["budget"], found["problem"]) == (2.0, "")


def test_interrupted_run_does_not_count_as_done(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "slm.training.run.train",
        lambda config, run_dir, **rest: SimpleNamespace(finished=False),
    )
    with pytest.raises(KeyboardInterrupt):
        modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    assert report(tmp_path / "run")["attempts"] == 1  # it cost something all the same


def interrupted_training(config, run_dir, **rest):
    raise KeyboardInterrupt


def test_interrupt_of_the_time_limit_is_an_attempt_in_vain(tmp_path, monkeypatch):
    monkeypatch.setattr(modal_app.modal, "current_function_call_id", lambda: "fc-1")
    monkeypatch.setattr("slm.training.run.train", interrupted_training)
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
    [
        interrupted_training,
        lambda config, run_dir, **rest: SimpleNamespace(finished=False),
    ],
    ids=["at once", "saved"],
)
def test_machines_taken_away_do_not_end_a_run(tmp_path, monkeypatch, train):
    monkeypatch.setattr(modal_app.modal, "current_function_call_id", lambda: "fc-1")
    with monkeypatch.context() as patch:
        patch.setattr("slm.training.run.train", train)
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    assert report(tmp_path / "run")["problem"] == ""
    assert modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))["finished"]


def slow_training(monkeypatch, enough=lambda: False):
    """Training that comes to no checkpoint until it is `enough`, and that Ctrl-C stops as it stops the trainer."""

    def train(config, run_dir, **rest):
        with stop_signals() as signals:
            until = time.monotonic() + 300
            while not signals and not enough() and time.monotonic() < until:
                time.sleep(0.01)
        return SimpleNamespace(finished=False)

    monkeypatch.setattr("slm.training.run.train", train)


@pytest.fixture
def quick_meter(monkeypatch):
    """A meter that looks often, and leaves it to the tests to end their process."""
    monkeypatch.setattr(budget, "TICK", 0.05)
    monkeypatch.setattr(budget, "PATIENCE", math.inf)


def test_meter_is_written_while_training_goes_on(tmp_path, monkeypatch, quick_meter):
    secured, waits = [], []

    class Ticks(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return super().wait(timeout)

    watched = SimpleNamespace(**{**vars(threading), "Event": Ticks})
    monkeypatch.setattr(budget, "threading", watched)
    # one before the training, and seven ticks
    slow_training(monkeypatch, enough=lambda: len(secured) > 7)
    meter = Meter(
        tmp_path, 3.6, secure=lambda: secured.append(report(tmp_path)["seconds"])
    )
    assert modal_app.attempt(load_config(tiny(tmp_path)), str(tmp_path), meter) == ""
    assert len(secured) > 4 and secured == sorted(secured) and secured[-1] > 0.3
    assert set(waits) == {budget.TICK}


def test_run_that_comes_to_no_checkpoint_stops_at_its_budget(
    tmp_path, monkeypatch, quick_meter
):
    """Of $0.0005, half a second: it goes on at a look that finds less, and is told to stop by the first that finds it."""
    told, looks, kill = [], [], signal.pthread_kill
    seconds = itertools.chain((0.0, 0.2, 0.4), itertools.repeat(0.6))

    def tell(*arguments):
        told.append(looks[-1])
        kill(*arguments)

    def look():
        looks.append(next(seconds))
        return looks[-1]

    clock = SimpleNamespace(monotonic=look)
    monkeypatch.setattr(budget, "time", clock)  # and nobody else's
    there = SimpleNamespace(**{**vars(signal), "pthread_kill": tell})
    monkeypatch.setattr(budget, "signal", there)
    slow_training(monkeypatch)
    result = modal_app.train.local(
        text_of(tmp_path), str(tmp_path / "run"), budget=0.0005, rate=3.6
    )
    assert told == [0.6]
    assert (
        "of $0.00; a larger budget goes on" in result["problem"]
        and not result["finished"]
    )
    assert result["dollars"] == pytest.approx(0.0006)


def test_budget_stops_what_is_no_training_step(tmp_path, monkeypatch, quick_meter):
    """A download, say: there Ctrl-C is an exception."""
    monkeypatch.setattr(
        "slm.training.run.train", lambda config, run_dir, **rest: time.sleep(300)
    )
    result = modal_app.train.local(
        text_of(tmp_path), str(tmp_path / "run"), budget=0.0005, rate=3.6
    )
    assert "a larger budget goes on" in result["problem"]


def test_unknown_error_is_tried_again_once(tmp_path, monkeypatch):
    tried = training_that(monkeypatch, RuntimeError("boom"))
    monkeypatch.setattr(modal_app.modal, "current_function_call_id", lambda: "fc-1")
    with pytest.raises(RuntimeError, match="boom"):
        modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    result = modal_app.train.local(
        text_of(tmp_path), str(tmp_path / "run")
    )  # the second ends the call
    assert (
        "two attempts in a row" in result["problem"]
        and "RuntimeError: boom" in result["problem"]
    )
    assert len(tried) == 2


def test_errors_of_training_are_sorted_by_class_not_by_words(tmp_path, monkeypatch):
    training_that(monkeypatch, ValueError("slm: was not saved, OutOfMemoryError"))
    with pytest.raises(ValueError, match="was not saved"):  # a bug: one more attempt
        modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    training_that(monkeypatch, SlmError("the server does not answer", retry=True))
    with pytest.raises(SlmError, match="does not answer"):
        modal_app.train.local(text_of(tmp_path), str(tmp_path / "other"))


def test_full_memory_ends_the_call_with_what_to_change(tmp_path, monkeypatch):
    def full(self, stop):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "train", full)
    result = modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    assert "lower training.batch_size" in result["problem"]
    assert not result["finished"] and result["attempts"] == 1


# --- preparation


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
    monkeypatch.setattr(
        modal_app, "volume", SimpleNamespace(commit=lambda: None, reload=lambda: None)
    )
    monkeypatch.setattr(modal_app.modal, "is_local", lambda: False)
    return asked


def folder_of(tmp_path, files):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(files):
        (folder / f"{i:02}.txt").write_text(f"Mia has {i} kites and a boat. " * 20)
    return str(folder)


@pytest.mark.parametrize(("files", "parts"), [(7, None), (8, 8), (20, 16)])
def test_many_files_are_prepared_in_parts_and_a_few_are_not(
    tmp_path, containers, files, parts
):
    text = text_of(
        tmp_path, data={"dataset": folder_of(tmp_path, files), "max_documents": None}
    )
    assert modal_app.prepare.local(text) == ""
    assert containers == ([(parts, "train"), (parts, "validation")] if parts else [])
    assert len(list((tmp_path / "tokens").glob("*.tokens"))) == 2
    assert modal_app.prepare.local(text) == "" and len(containers) == (
        2 if parts else 0
    )  # it is there


def test_a_limit_on_documents_is_not_divided(tmp_path, containers):
    text = text_of(
        tmp_path, data={"dataset": folder_of(tmp_path, 12), "max_documents": 5}
    )
    assert modal_app.prepare.local(text) == "" and containers == []


def test_what_is_wrong_with_a_part_is_said_before_anything_is_joined(
    tmp_path, containers
):
    folder = folder_of(tmp_path, 10)
    (Path(folder) / "03.txt").write_bytes(b"\xff" * 200)
    said = modal_app.prepare.local(
        text_of(tmp_path, data={"dataset": folder, "max_documents": None})
    )
    assert "03.txt is not UTF-8 text" in said and "\n" not in said
    assert not [
        file
        for file in (tmp_path / "tokens").glob("*.tokens")
        if ".part-" not in file.name
    ]
