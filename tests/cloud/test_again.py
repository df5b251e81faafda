"""slm.cloud.launch: a run that lies on the volume already, and what is rented for it."""

import json
from pathlib import Path

import modal
import pytest

from slm.cloud.price import NEW, check
from slm.errors import SlmError
from slm.training.config import load_config

TRAINING = {"batch_size": 4, "warmup_steps": 2, "max_steps": 12, "log_every": 1}


@pytest.fixture
def config(tiny):
    """The config of a tiny run; keywords change its sections."""

    def make(training=None, **sections):
        return load_config(tiny(training={**TRAINING, **(training or {})}, **sections))

    return make


@pytest.fixture
def begun(tmp_path, config):
    """A run of eight steps on the volume, at 100 to 104 tokens a second, for 25 cents."""
    folder = tmp_path / "volume" / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config().to_yaml())
    rows = [{"step": n, "perf/tokens_per_s": 96 + n} for n in range(1, 9)]
    rows[0]["perf/tokens_per_s"] = 1
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)
    entry = {"seconds": 60.0, "dollars": 0.25, "from": [], "to": ["step_00000008.pt"]}
    (folder / "attempts.json").write_text(json.dumps([entry]))
    return folder


def test_run_that_is_not_there_is_new(cloud, config, asked):
    assert cloud.so_far("tiny", config()) == NEW
    cloud.launch(config(), steps=5)
    expected = check(config(), steps=5)
    # the budget of a few steps is their prediction's slow end
    assert asked[-1][1][1:] == ("/data/runs/tiny", expected.dollars[1], None, 5)


def test_launch_goes_on_with_what_the_run_has_measured(
    begun, cloud, config, asked, capsys
):
    found = cloud.so_far("tiny", config())
    assert (found["checkpoint"], found["dollars"]) == (8, 0.25)
    assert found["tokens_per_s"] == (98, 104)
    cloud.launch(config())
    before, _, _ = capsys.readouterr().out.partition("call    fc-train")
    told = " ".join(before.split())
    assert "measured 98 to 104 tokens/s on T4, so steps 9 to 12 take" in told
    assert "with the $0.25 spent" in told
    assert "$0.75 until the budget is spent" in told  # of one dollar
    assert asked[-1][1][1:] == ("/data/runs/tiny", 1.0, None, None)


def test_another_gpu_has_another_speed(begun, cloud, config, capsys):
    other = config(modal={"gpu": "T4:2"})
    assert cloud.so_far("tiny", other)["tokens_per_s"] is None
    cloud.launch(other)
    assert "measured  " not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"modal": {"gpu": "H100"}}, "T4 computes in float16 and H100 in bfloat16"),
        ({"training": {"batch_size": 8}}, "training.batch_size was 4 and is now 8"),
    ],
)
def test_another_config_rents_nothing(begun, cloud, config, asked, changes, told):
    with pytest.raises(SlmError) as refused:
        cloud.launch(config(**changes))
    said = str(refused.value)
    assert told in said and "--run NAME" in said and "\n" not in said
    assert asked == []
    cloud.launch(config(**changes), run="other")
    assert asked[-1][1][1] == "/data/runs/other"


@pytest.mark.parametrize("changes", [{}, {"modal": {"gpu": "H100"}}])
def test_finished_run_rents_nothing(begun, cloud, config, asked, changes):
    (begun / "model").mkdir()
    with pytest.raises(SlmError, match=r"tiny is finished.*::fetch.*--run NAME") as end:
        cloud.launch(config(**changes))
    assert "\n" not in str(end.value) and asked == []


@pytest.mark.parametrize("steps", [0, 8, 13])
def test_steps_that_are_none_of_those_left_rent_nothing(
    begun, cloud, config, asked, steps
):
    with pytest.raises(SlmError, match="allowed is a number from 9 to 12"):
        cloud.launch(config(), steps=steps)
    assert asked == []


def test_volume_that_does_not_answer_rents_nothing(
    begun, cloud, config, asked, monkeypatch
):
    def lost(path):
        raise modal.exception.ConnectionError("no network")

    monkeypatch.setattr(cloud.volume, "listdir", lost)
    with pytest.raises(SlmError, match="cannot be asked about tiny"):
        cloud.launch(config())
    assert asked == []


def test_end_of_a_part_tells_what_is_left(begun, cloud, config, capsys):
    result = {**cloud.so_far("tiny", config()), "problem": "", "checkpoint": 10}
    cloud.train.result = {**result, "dollars": 0.30, "seconds": 70.0, "attempts": 2}
    cloud.launch(config(), steps=10)
    _, _, end = capsys.readouterr().out.partition("Interrupting now")
    told = " ".join(end.split())
    assert "actual 0.00278 0.05 in 1 attempt" in told
    assert "so steps 11 to 12 take" in told and "with the $0.30 spent" in told
    Path("runs/modal/tiny/launched.json").unlink()  # as on another computer
    cloud.train.result["tokens_per_s"] = None
    cloud.launch(config(), steps=10)
    assert "too few steps to measure a speed" in capsys.readouterr().out
