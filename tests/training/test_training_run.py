"""slm.training.run: start, stop, go on, refuse; killed at random it ends as if nothing had happened."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import slm.training.run
import slm.training.trainer
from slm.data import stories
from slm.errors import SlmError
from slm.training.checkpoint import CheckpointError, load_latest
from slm.training.folder import RunFolder, modules_of_a_run, read_metrics
from slm.training.run import (
    Samples,
    code_fingerprint,
    failure_file,
    load_run,
    stop_signals,
    train,
)
from slm.training.trainer import Trainer


def test_a_finished_run_folder_explains_itself(cache, capsys, config, losses):
    c = config()
    run = train(c, run_dir=cache / "finished", dollars_per_hour=3600.0)
    folder = cache / "finished"
    assert run.finished and run.val_loss == losses(run.metrics, "val/loss")[-1]
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "samples",
        "model",
    }
    rows = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows == run.metrics
    named = {key for row in rows for key in row}
    assert named >= {
        "step",
        "seconds",
        "train/loss",
        "train/lr",
        "train/tokens_seen",
        "val/loss",
        "model/parameters",
    }
    assert named >= {"perf/tokens_per_s", "perf/mfu", "cost/usd"}
    assert rows[-1]["cost/usd"] == pytest.approx(rows[-1]["seconds"], abs=0.01)
    assert rows[-1]["train/tokens_seen"] == 12 * 2 * 32
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        f"step_{step:08d}.txt" for step in (4, 6, 8, 12)
    ]
    environment = json.loads((folder / "environment.json").read_text())
    assert (
        environment["torch"] == torch.__version__ and environment["dtype"] == "float32"
    )

    again = train(c, run_dir=folder)
    assert "is finished; its model is used as it is" in capsys.readouterr().out
    for a, b, d in zip(
        run.model.parameters(),
        again.model.parameters(),
        load_run(folder).model.parameters(),
        strict=True,
    ):
        assert torch.equal(a, b) and torch.equal(a, d)
    assert again.tokenizer.encode("Once upon a time") == run.tokenizer.encode(
        "Once upon a time"
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "bfloat16", "gradient_accumulation_steps": 2},
        {"optimizer": "muon", "log_every": 5},
    ],
)
def test_stopped_by_a_signal_and_continued_is_the_same_run(
    options, tmp_path, config, equal_runs
):
    c = config(checkpoint_every=3, **options)
    whole = train(c, run_dir=tmp_path / "whole", verbose=False)
    saves = []

    def stop_soon():
        saves.append(1)
        if len(saves) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    first = train(c, run_dir=tmp_path / "torn", on_checkpoint=stop_soon, verbose=False)
    assert not first.finished and first.metrics[-1]["step"] < 12
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    equal_runs(train(c, run_dir=tmp_path / "torn", verbose=False), whole)


def test_continuing_from_an_older_checkpoint_repeats_the_lost_steps_exactly(
    tmp_path, capsys, config, equal_runs
):
    c = config(data={"num_workers": 2})
    whole = train(c, run_dir=tmp_path / "whole", verbose=False)
    train(c, run_dir=tmp_path / "torn", verbose=False)
    checkpoints = sorted((tmp_path / "torn/checkpoints").iterdir())
    os.truncate(checkpoints[-1], 1000)
    for file in (tmp_path / "torn/model").iterdir():
        file.unlink()
    (tmp_path / "torn/model").rmdir()
    equal_runs(train(c, run_dir=tmp_path / "torn"), whole)
    printed = capsys.readouterr().out
    assert "step_00000012.pt is cut short" in printed and "continuing" in printed
    assert "going on after step 8, from" in printed


def test_what_a_callback_raises_ends_the_run(tmp_path, config):
    def refuse():
        raise ValueError("the budget is spent")

    with pytest.raises(ValueError, match="the budget is spent"):
        train(config(), run_dir=tmp_path / "run", on_checkpoint=refuse, verbose=False)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [
        "step_00000004.pt"
    ]


def test_an_unfinished_run_can_be_read(tmp_path, config, interrupted):
    interrupted(config(), tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert not run.finished and run.tokenizer.n_vocab == 1024
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_run(tmp_path)


def test_a_run_killed_before_its_first_checkpoint_starts_its_metrics_anew(
    tmp_path, config
):
    c, rows = (
        config(),
        '{"step": 0}\n{"step": 1, "train/loss": 7.0}\n{"step": 2, "tra',
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(c.to_yaml())
    (tmp_path / "run/metrics.jsonl").write_text(rows)
    run = train(c, run_dir=tmp_path / "run", verbose=False)
    assert [row["step"] for row in run.metrics if "train/loss" in row] == list(
        range(1, 13)
    )
    assert (tmp_path / "run/metrics.before.jsonl").read_text() == rows


def test_each_start_without_a_checkpoint_keeps_its_rows(tmp_path, config):
    c, folder = config(), RunFolder(tmp_path / "run")
    for start in range(3):
        folder.path.mkdir(exist_ok=True)
        folder.config.write_text(c.to_yaml())
        folder.metrics.write_text(f'{{"step": {start}}}\n')
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        shutil.rmtree(folder.model, ignore_errors=True)
        train(c, run_dir=folder.path, verbose=False)
    kept = {path.name: path.read_text() for path in folder.path.glob("metrics.before*")}
    names = [f"metrics.before{number}.jsonl" for number in ("", ".2", ".3")]
    rows = [f'{{"step": {start}}}\n' for start in range(3)]
    assert kept == dict(zip(names, rows, strict=True))


def test_a_folder_with_files_of_such_names_that_is_no_run_is_left_alone(
    tmp_path, monkeypatch, config
):
    (tmp_path / "metrics.jsonl").write_text("mine")
    (tmp_path / "environment.json").write_text("mine")
    with pytest.raises(
        SlmError,
        match=r"holds metrics.jsonl, environment.json but no config.yaml, so no run",
    ):
        train(config(), run_dir=tmp_path, verbose=False)
    assert {
        path.name: path.read_text() for path in tmp_path.iterdir()
    } == dict.fromkeys(("metrics.jsonl", "environment.json"), "mine")
    with pytest.raises(SlmError, match="--run-dir is empty"):
        train(config(), run_dir="", verbose=False)


def test_a_refused_start_leaves_the_folder_as_it_was(tmp_path, config, interrupted):
    """The checkpoints say what run it is, although its config.yaml is gone."""
    c, run = config(), tmp_path / "run"
    interrupted(c, run)
    (run / "config.yaml").unlink()
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(
        CheckpointError, match=r"training.learning_rate was 0.003 and is now 0.1"
    ):
        train(config(learning_rate=0.1), run_dir=run, verbose=False)
    assert {
        path.name: path.read_bytes() for path in run.iterdir() if path.is_file()
    } == before
    assert (
        train(c, run_dir=run, verbose=False).finished and (run / "config.yaml").exists()
    )


def test_a_damaged_row_of_metrics_is_named_and_missing_rows_are_told(
    tmp_path, capsys, config, interrupted
):
    c, metrics = config(), tmp_path / "run/metrics.jsonl"
    interrupted(c, tmp_path / "run")
    good = metrics.read_text()
    rows = good.splitlines(keepends=True)
    metrics.write_text("".join([*rows[:2], "garbage\n", *rows[3:]]))
    with pytest.raises(
        SlmError,
        match=r"metrics.jsonl, line 3 is not a row of metrics: mend or remove it",
    ):
        train(c, run_dir=tmp_path / "run", verbose=False)
    for row in ("5", "[1]", "null", '"a"', '{"a": 1}', '{"step": "x"}'):
        metrics.write_text("".join([*rows[:2], f"{row}\n", *rows[3:]]))
        with pytest.raises(SlmError, match="metrics.jsonl, line 3 is not a row"):
            load_run(tmp_path / "run")
    metrics.write_text("".join(rows[:2]))
    assert train(c, run_dir=tmp_path / "run", verbose=False).finished
    assert (
        "metrics.jsonl is shorter than it was; rows before step 5 are missing"
        in capsys.readouterr().out
    )


def test_a_run_whose_type_was_found_by_itself_goes_on_in_it_when_told_so(
    tmp_path, monkeypatch, config, interrupted
):
    """On another machine 'auto' may come to another type; the message says what to ask for."""
    original = slm.training.trainer.choose_dtype
    monkeypatch.setattr(slm.training.trainer, "choose_dtype", lambda *_: torch.bfloat16)
    interrupted(config(dtype="auto"), tmp_path / "run")
    monkeypatch.setattr(slm.training.trainer, "choose_dtype", lambda *_: torch.float32)
    with pytest.raises(
        CheckpointError, match="training.dtype=bfloat16 goes on with it"
    ):
        train(config(dtype="auto"), run_dir=tmp_path / "run", verbose=False)
    monkeypatch.setattr(slm.training.trainer, "choose_dtype", original)
    assert train(
        config(dtype="bfloat16"), run_dir=tmp_path / "run", verbose=False
    ).finished


def second_signal(monkeypatch, number, pause):
    """Two signals that come `pause` seconds apart by the clock that the handler reads."""
    clock = SimpleNamespace(monotonic=iter([100.0, 100.0 + pause]).__next__)
    with monkeypatch.context() as patch, stop_signals(verbose=False) as signals:
        patch.setattr(slm.training.run, "time", clock)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(number)
        return len(signals)


def test_a_second_signal_interrupts_if_it_is_meant(monkeypatch, capfd):
    assert second_signal(monkeypatch, signal.SIGINT, 0.9) == 2
    assert second_signal(monkeypatch, signal.SIGTERM, 1.1) == 2
    with pytest.raises(KeyboardInterrupt):
        second_signal(monkeypatch, signal.SIGINT, 1.1)
    assert capfd.readouterr().err == ""
    with stop_signals(verbose=True):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err.count("stopping after this step, and saving it") == 1


@pytest.mark.parametrize("handler", [None, signal.SIG_IGN, signal.default_int_handler])
def test_handlers_of_signals_are_put_back(monkeypatch, handler):
    """None stands for one that Python did not install, and cannot be put back."""
    put = []

    def install(number, new):
        put.append(new)
        return handler

    monkeypatch.setattr(
        slm.training.run,
        "signal",
        SimpleNamespace(**{**vars(signal), "signal": install}),
    )
    with stop_signals():
        pass
    assert put[2:] == [signal.SIG_DFL if handler is None else handler] * 2


def test_a_checkpoint_of_another_precision_or_text_is_refused(
    tmp_path, monkeypatch, config, interrupted
):
    automatic = config(dtype="auto")  # picks another type on another machine
    for dtype in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(
            slm.training.trainer, "choose_dtype", lambda *_, dtype=dtype: dtype
        )
        if dtype == torch.bfloat16:
            interrupted(automatic, tmp_path / "precision")
    with pytest.raises(
        CheckpointError,
        match=r"another precision \(torch.bfloat16, here torch.float32;",
    ):
        train(automatic, run_dir=tmp_path / "precision", verbose=False)
    monkeypatch.undo()

    (tmp_path / "own.txt").write_text(
        "\n\n".join(stories.sample(seed) for seed in range(300))
    )
    own = config(
        data={
            "dataset": str(tmp_path / "own.txt"),
            "max_documents": None,
            "packing": "stream",
        }
    )
    interrupted(own, tmp_path / "text")
    (tmp_path / "own.txt").write_text(
        "\n\n".join(stories.sample(seed) for seed in range(400, 700))
    )
    with pytest.raises(CheckpointError, match="another training text"):
        train(own, run_dir=tmp_path / "text", verbose=False)


def test_what_a_kill_left_behind_is_cleared_away(tmp_path, config, interrupted):
    """A half-written checkpoint of a step that is never saved again, and metrics that lost their end."""
    c = config()
    whole = train(c, run_dir=tmp_path / "whole", verbose=False)
    interrupted(c, tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    mine = ["notes.tmp", "step_00000004.txt.7.tmp", "step_best.pt.7.tmp"]
    for name in ["step_00000099.pt.123.tmp", *mine]:
        (folder / name).write_bytes(b"half")
    metrics = tmp_path / "run/metrics.jsonl"
    os.truncate(metrics, metrics.stat().st_size - 20)
    again = train(c, run_dir=tmp_path / "run", verbose=False)
    assert sorted(path.name for path in folder.glob("*.tmp")) == mine
    assert read_metrics(tmp_path / "run") == again.metrics and again.finished
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True)
    )


def test_what_a_kill_left_before_the_first_checkpoint_is_cleared_away(tmp_path, config):
    left = tmp_path / "run/checkpoints/step_00000004.pt.123.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    train(config(max_steps=3), run_dir=tmp_path / "run", verbose=False)
    assert not left.exists()


def test_seconds_count_the_work_before_a_stop(tmp_path, config):
    c = config(log_every=12, eval_every=12, checkpoint_every=12)
    original = Trainer.train_step

    def slow_then_stop(self, batches, stop=False):
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM) if self.step == 2 else None
        return original(self, batches, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", slow_then_stop)
        train(c, run_dir=tmp_path / "run", verbose=False)
    saved = load_latest(tmp_path / "run/checkpoints")
    assert saved is not None and saved[1]["trainer"]["seconds"] > 0.3


def test_a_changed_config_is_refused_with_the_keys(tmp_path, config):
    train(config(), run_dir=tmp_path, verbose=False)
    with pytest.raises(
        SlmError,
        match=r"training.learning_rate was 0.003 and is now 0.1; training.seed was 0 and is now 1",
    ):
        train(config(learning_rate=0.1, seed=1), run_dir=tmp_path, verbose=False)
    assert train(config(log_every=3), run_dir=tmp_path, verbose=False).finished


def test_a_config_whose_file_cannot_name_a_run_gets_a_name_that_is_said(
    tmp_path, config, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    run = train(dataclasses.replace(config(), name="a&b c"))
    assert run.run_dir == Path("runs/a-b-c")
    assert (
        "'a&b c' cannot name a run, so it is called a-b-c\n" in capsys.readouterr().out
    )


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path, config):
    with pytest.raises(
        SlmError,
        match="vocab_size = 1000 is too small for tokenizer 'stories', which has 1024",
    ):
        train(
            config(model={"vocab_size": 1000}), run_dir=tmp_path / "run", verbose=False
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"dataset": "no/such/folder/"}},
        {"data": {"dataset": "{tmp}/empty.txt"}},
        {"data": {"dataset": "{tmp}/short.txt", "packing": "stream"}},
        {"data": {"val_split": "none"}},
        {"data": {"cache_dir": "{tmp}/empty.txt"}},
        {"data": {"tokenizer": "{tmp}/empty.txt"}},
        {"model": {"context_length": 10**6}, "data": {"packing": "stream"}},
        {"wandb": True},
    ],
    ids=lambda changes: "-".join(str(part) for part in changes.values()),
)
def test_a_refused_start_makes_nothing(tmp_path, config, monkeypatch, changes):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("too short for a row")
    if changes.pop("wandb", None):
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setattr(slm.training.run, "wants_wandb", refuse_wandb)
    filled = {
        name: {
            k: str(v).format(tmp=tmp_path) if k != "context_length" else v
            for k, v in part.items()
        }
        for name, part in changes.items()
    }
    before = sorted(tmp_path.iterdir())
    with pytest.raises((SlmError, OSError)):
        train(config(**filled), run_dir=tmp_path / "deep/run", verbose=False)
    assert sorted(tmp_path.iterdir()) == before


def refuse_wandb(config):
    raise SlmError("wandb.enabled is true, but there is no login")


# ------------------------------------------------------------------ what a launcher and a reader are told


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SlmError("it diverged"), {"error": "it diverged", "retry": False}),
        (CheckpointError("full", retry=True), {"error": "full", "retry": True}),
        (OSError("no disk"), {"error": "no disk", "retry": True}),
        (RuntimeError("odd"), {"error": "RuntimeError: odd", "retry": True}),
    ],
    ids=lambda part: type(part).__name__,
)
def test_a_failure_is_told_to_the_launcher(tmp_path, monkeypatch, error, told):
    path = tmp_path / "failure.json"
    monkeypatch.setenv("SLM_FAILURE_FILE", str(path))
    with pytest.raises(type(error)), failure_file():
        raise error
    assert json.loads(path.read_text()) == told


def test_of_several_failures_the_first_is_told(tmp_path, monkeypatch):
    path = tmp_path / "failure.json"
    monkeypatch.setenv("SLM_FAILURE_FILE", str(path))
    for sentence in ("the cause", "its victim"):
        with pytest.raises(SlmError), failure_file():
            raise SlmError(sentence)
    assert json.loads(path.read_text())["error"] == "the cause"


def test_of_failures_at_the_same_moment_one_is_told(tmp_path, monkeypatch):
    """Another process makes the file, if it still can, while this one finds its words."""
    path, others = tmp_path / "failure.json", []
    monkeypatch.setenv("SLM_FAILURE_FILE", str(path))

    def dumps(told):
        with contextlib.suppress(FileExistsError), open(path, "x") as file:
            others.append(file.write('"the other"'))
        return '"this one"'

    monkeypatch.setattr(slm.training.run, "json", SimpleNamespace(dumps=dumps))
    with pytest.raises(SlmError), failure_file():
        raise SlmError("it diverged")
    assert path.read_text() == ('"the other"' if others else '"this one"')


def test_a_failure_that_cannot_be_told_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLM_FAILURE_FILE", str(tmp_path / "file/failure.json"))
    with pytest.raises(SlmError, match="the cause"), failure_file():
        raise SlmError("the cause")


def test_a_run_without_a_failure_or_a_launcher_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_FAILURE_FILE", str(tmp_path / "failure.json"))
    with failure_file():
        pass
    with pytest.raises(KeyboardInterrupt), failure_file():
        raise KeyboardInterrupt  # stopped, and not failed
    monkeypatch.delenv("SLM_FAILURE_FILE")
    with pytest.raises(SlmError), failure_file():
        raise SlmError("nobody asks")
    assert not list(tmp_path.iterdir())


def test_a_refused_run_is_told_to_the_launcher(tmp_path, monkeypatch, config):
    monkeypatch.setenv("SLM_FAILURE_FILE", str(tmp_path / "failure.json"))
    with pytest.raises(SlmError):
        train(config(model={"vocab_size": 1000}), run_dir=tmp_path / "run")
    told = json.loads((tmp_path / "failure.json").read_text())
    assert "vocab_size = 1000 is too small" in told["error"] and not told["retry"]


def test_every_module_that_a_run_imports_is_hashed():
    """Asked from Python itself, in a process that has imported nothing else."""
    code = "import sys, slm.training.run; print(*sorted(sys.modules))"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    loaded = subprocess.check_output(command, text=True, env=environment).split()
    packages = {"slm", "slm.data", "slm.model", "slm.training"}
    expected = {name for name in loaded if name.startswith("slm")} - packages
    assert expected <= set(modules_of_a_run())
    assert {"slm.training.trainer", "slm.model.attention"} <= expected or (
        "slm.model.attention" in expected
    )
    assert len(code_fingerprint()) == 16


def test_a_sample_is_the_same_each_time_and_changes_nothing(tmp_path, trainer_of):
    trainer = trainer_of()
    samples = Samples(tmp_path / "samples", trainer.train_loader.tokenizer, 20)
    before = torch.get_rng_state()
    texts = set()
    for _ in range(2):
        samples.on_validation(trainer)
        texts.add((tmp_path / "samples/step_00000000.txt").read_text())
    assert len(texts) == 1 and trainer.model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_may_have_more_ids_than_its_tokenizer(tmp_path, trainer_of, model_of):
    trainer = trainer_of(model_of(vocab_size=4096))
    samples = Samples(tmp_path, trainer.train_loader.tokenizer, 10)
    for trainer.step in range(5):
        samples.on_validation(trainer)
    assert len(list(tmp_path.iterdir())) == 5


def test_a_checkpoint_of_an_earlier_version_is_refused_with_the_way_out(
    tmp_path, config, interrupted, monkeypatch
):
    monkeypatch.setattr("slm.training.checkpoint.FORMAT", "slm checkpoint 2")
    interrupted(config(), tmp_path / "run")
    monkeypatch.undo()
    told = (
        r"not written by this version of slm \(slm checkpoint 2, not .*\); go on with"
    )
    for read in (
        lambda: train(config(), run_dir=tmp_path / "run", verbose=False),
        lambda: load_run(tmp_path / "run"),
    ):
        with pytest.raises(CheckpointError, match=told) as caught:
            read()
        assert "\n" not in str(caught.value)
