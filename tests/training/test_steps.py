"""A run that is asked to stop after a step: its own first steps, from which it goes on as if it had not been stopped."""

import pytest

from slm import cli
from slm.errors import SlmError
from slm.training.folder import RunFolder, report, speeds
from slm.training.run import train


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint_every": 3, "log_every": 5},
        {"dtype": "bfloat16", "gradient_accumulation_steps": 2},
        {"optimizer": "muon", "eval_every": 5},
    ],
)
def test_stopped_after_steps_and_continued_it_is_the_same_run(
    options, tmp_path, config, equal_runs
):
    c = config(**options)
    whole = train(c, run_dir=tmp_path / "whole", verbose=False)
    for steps in (1, 7, 8):  # before, between and at a checkpoint of its own
        part = train(c, run_dir=tmp_path / "parts", verbose=False, steps=steps)
        assert not part.finished
        assert RunFolder(tmp_path / "parts").steps_done == steps
    end = train(c, run_dir=tmp_path / "parts", verbose=False)
    assert end.finished
    equal_runs(end, whole)
    weights = "model/model.safetensors"
    assert (tmp_path / "parts" / weights).read_bytes() == (
        tmp_path / "whole" / weights
    ).read_bytes()


def test_schedule_is_that_of_the_whole_run(tmp_path, config, losses):
    c = config()
    part = train(c, run_dir=tmp_path / "part", verbose=False, steps=6)
    whole = train(c, run_dir=tmp_path / "whole", verbose=False)
    rates = losses(whole.metrics, "train/lr")
    assert losses(part.metrics, "train/lr") == rates[:6] and rates[5] > rates[6] > 0


def test_all_steps_are_the_whole_run(tmp_path, config):
    assert train(config(), run_dir=tmp_path / "all", verbose=False, steps=12).finished
    # and whoever asks for a finished run gets it
    assert train(config(), run_dir=tmp_path / "all", verbose=False, steps=3).finished


def test_a_signal_ends_it_before_its_steps(tmp_path, config, interrupted):
    c = config()
    interrupted(c, tmp_path / "run", at=2)
    assert RunFolder(tmp_path / "run").steps_done == 3
    train(c, run_dir=tmp_path / "run", verbose=False, steps=5)
    assert RunFolder(tmp_path / "run").steps_done == 5


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        (0, "--steps is 0: allowed is a number from 6 to 12, "),
        (-3, "--steps is -3: allowed is a number from 6 to 12, "),
        (5, "; 5 steps are done"),
        (4, "; 5 steps are done"),
        (13, "--steps is 13: allowed is a number from 6 to 12, training.max_steps"),
    ],
)
def test_steps_that_are_none_of_those_left_are_refused(tmp_path, config, steps, told):
    c, folder = config(), RunFolder(tmp_path / "run")
    train(c, run_dir=folder.path, verbose=False, steps=5)
    before = folder.metrics.read_bytes()
    with pytest.raises(SlmError) as refused:
        train(c, run_dir=folder.path, verbose=False, steps=steps)
    assert told in str(refused.value) and "\n" not in str(refused.value)
    assert (folder.metrics.read_bytes(), folder.steps_done) == (before, 5)
    with pytest.raises(SlmError, match="from 1 to 12, training.max_steps$"):
        train(c, run_dir=tmp_path / "new", verbose=False, steps=99)
    assert not (tmp_path / "new").exists()


def test_run_of_all_steps_whose_model_is_missing_writes_it(tmp_path, config):
    train(config(), run_dir=tmp_path / "run", verbose=False)
    folder = RunFolder(tmp_path / "run")
    folder.model.rename(tmp_path / "taken")
    assert train(config(), run_dir=folder.path, verbose=False, steps=12).finished


@pytest.fixture
def file(tmp_path, config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(config().to_yaml())
    return str(path)


def test_the_command_stops_says_how_to_go_on_and_goes_on(file, capsys):
    assert cli.main(["train", file, "--steps", "7"]) == 0
    said = "stopped after step 7; the same command without --steps goes on from there"
    assert said in capsys.readouterr().out
    assert cli.main(["train", file, "--steps", "7"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["train", file]) == 0
    assert "going on after step 7" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", file, "--steps", "many"])
    assert stop.value.code == 2 and "many" in capsys.readouterr().err


def rows(*found):
    return [{"step": n, "perf/tokens_per_s": each} for n, each in enumerate(found, 1)]


def test_speed_is_that_of_the_rows_without_the_first_and_the_outermost():
    assert speeds(rows(1.0, *range(100, 140))) == (102, 137)
    assert speeds(rows(1.0, 5.0, 7.0, 6.0)) == (5.0, 7.0)
    assert speeds(rows(9.0, 8.0, 7.0)) is None and speeds([]) is None
    assert speeds([{"step": 1, "val/loss": 1.0}, *rows(1, 2, 3, 4)]) == (2, 4)


def test_report_tells_the_speed_of_the_last_attempt_that_came_forward(
    tmp_path, monkeypatch
):
    folder, times = RunFolder(tmp_path), ["step_00000004.pt", "step_00000008.pt"]
    attempts = [
        {"from": [], "to": times[:1]},
        {"from": times[:1], "to": times[1:]},
        {"from": times[1:], "to": times[1:], "error": "boom"},
    ]
    monkeypatch.setattr("slm.training.folder.read_attempts", lambda _: attempts)
    found = rows(100, 10, 10, 10, 1, 20, 21, 22)
    monkeypatch.setattr("slm.training.folder.read_metrics", lambda _: found)
    assert report(folder.path)["tokens_per_s"] == (20, 22)
    attempts[1:] = []
    assert report(folder.path)["tokens_per_s"] == (1, 22)
    attempts.clear()  # not in the cloud
    assert report(folder.path)["tokens_per_s"] == (1, 22)
