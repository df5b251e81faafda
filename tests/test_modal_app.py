"""modal_app.py, as far as it can be seen without Modal: what is refused, what is asked for, and the launch in this process."""

import contextlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import modal
import pytest
import torch
import yaml

import modal_app
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
    config = load_config("configs/gpt_124m.yaml", ["modal.max_dollars=1"])
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
    with pytest.raises(modal_app.Refused, match=r"data\.dataset.*modal volume create slm-data.*modal volume put"):
        modal_app.check(load_config(tiny(tmp_path, data={"dataset": str(text)})))


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
def asked(monkeypatch):
    """Everything that `launch` asks Modal for, in order."""
    log = []
    running = SimpleNamespace(app_id="ap-1", run=lambda detach: log.append(("run", detach)) or contextlib.nullcontext())
    monkeypatch.setattr(modal_app, "app", running)
    monkeypatch.setattr(modal_app, "train", Recorder(log, "train"))
    monkeypatch.setattr(modal_app, "prepare", Recorder(log, "prepare"))
    monkeypatch.setattr(modal_app.modal.Secret, "hydrate", lambda self: self)
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


def test_yes_spend_lifts_the_limit_during_the_run_too(tmp_path, asked):
    modal_app.launch(load_config(tiny(tmp_path)), run="other", yes_spend=True)
    assert asked[-1][1][1:] == ("/data/runs/other", None)


def test_downloads_are_prepared_before_a_gpu_is_asked_for(tmp_path, asked):
    modal_app.launch(load_config(tiny(tmp_path, data={"dataset": "roneneldan/TinyStories"})))
    assert [name for name, _ in asked] == ["run", "prepare", "train with", "train"]


def test_refused_launch_asks_for_nothing(tmp_path, asked):
    with pytest.raises(modal_app.Refused):
        modal_app.launch(load_config("configs/gpt_124m.yaml", ["modal.max_dollars=1"]))
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
        steps.append(part["step"])
        if part["finished"]:
            break
    assert part["finished"] and len(steps) > 1 and steps == sorted(set(steps))
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
    ],
    ids=["memory", "mistake"],
)
def test_failure_that_would_repeat_ends_the_call(tmp_path, monkeypatch, error, words):
    training_that(monkeypatch, error)
    result = modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))  # an exception would be retried
    assert words in result["problem"] and not result["finished"] and result["attempts"] == 1


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
    (tmp_path / "metrics.jsonl").unlink()
    assert modal_app.report(tmp_path)["step"] == 0


def test_interrupted_run_does_not_count_as_done(tmp_path, monkeypatch):
    monkeypatch.setattr("slm.trainer.train", lambda config, run_dir, **rest: SimpleNamespace(finished=False))
    with pytest.raises(KeyboardInterrupt):
        modal_app.train.local(text_of(tmp_path), str(tmp_path / "run"))
    assert modal_app.report(tmp_path / "run")["attempts"] == 1  # it cost something all the same


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
    modal_app.train_on_ranks(8, Path("x.yaml"), str(tmp_path), lambda: written.append(1))
    assert started[0][0][1:] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=8"),
        *("-m", "slm", "train", "x.yaml", "--run-dir", str(tmp_path)),
    ]
    assert written == [1]


def test_spent_budget_stops_the_ranks(ranks, tmp_path):
    started = ranks("time.sleep(60)")

    def spent():
        raise modal_app.BudgetSpent

    with pytest.raises(modal_app.BudgetSpent):
        modal_app.train_on_ranks(2, Path("x.yaml"), str(tmp_path), spent)
    assert started[0][1].returncode is not None and started[0][1].returncode != 0


def test_failed_ranks_are_an_error(ranks, tmp_path):
    ranks("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="exit code 3"):
        modal_app.train_on_ranks(2, Path("x.yaml"), str(tmp_path), lambda: None)


@pytest.mark.parametrize(
    ("line", "words"),
    [("slm: the loss became nan at step 3", "^the loss became nan"), ("torch.OutOfMemoryError: CUDA", "batch_size")],
)
def test_failure_of_a_rank_that_would_repeat_is_told_apart(ranks, tmp_path, capsys, line, words):
    ranks(f"import sys; print({line!r}, file=sys.stderr); sys.exit(1)")
    with pytest.raises(ValueError, match=words):
        modal_app.train_on_ranks(2, Path("x.yaml"), str(tmp_path), lambda: None)
    assert line in capsys.readouterr().err  # it is in the log all the same


def test_mistake_of_real_ranks_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="vocab_size = 300 is too small"):
        path = tiny(tmp_path, model={**TINY["model"], "vocab_size": 300})
        modal_app.train_on_ranks(2, path, str(tmp_path / "run"), lambda: None)


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
        yield (self.folder / path).read_bytes()


@pytest.fixture
def volume(tmp_path, monkeypatch):
    run = tmp_path / "volume" / "runs" / "x"
    for name in ("checkpoints/step_00000004.pt", "model/model.safetensors", "samples/step_4.txt", "wandb/debug.log"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    (run / "metrics.jsonl").write_text('{"step": 2, "val/loss": 3.5}\n{"step": 4}\n')
    (run / "attempts.json").write_text('[{"seconds": 10.0, "dollars": 0.5}]')
    monkeypatch.setattr(modal_app, "volume", Volume(tmp_path / "volume"))


def test_fetch_brings_everything_but_checkpoints(volume, tmp_path, capsys):
    modal_app.fetch_run("x", str(tmp_path / "here"))
    found = {
        path.relative_to(tmp_path / "here").as_posix() for path in (tmp_path / "here").rglob("*") if path.is_file()
    }
    assert found == {"model/model.safetensors", "samples/step_4.txt", "metrics.jsonl", "attempts.json"}


def test_status_reports_from_the_volume(volume, capsys):
    modal_app.show_status("x")
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "run": "x",
        "finished": True,
        "step": 4,
        "val_loss": 3.5,
        "attempts": 1,
        "seconds": 10.0,
        "dollars": 0.5,
    }


def test_unknown_run_is_one_sentence(volume, capsys):
    with pytest.raises(SystemExit) as stop:
        modal_app.show_status("nope")
    assert stop.value.code == 2
    assert "no run 'nope'" in capsys.readouterr().err
