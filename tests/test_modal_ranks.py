"""Several GPUs: what is started for them, what ends them, and how their launcher learns what went wrong."""

import json
import math
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import yaml

import modal_app
from slm.cloud import budget
from slm.cloud.budget import Meter
from slm.errors import SlmError
from slm.training.config import load_config

TINY = {
    "model": {
        "vocab_size": 1024,
        "context_length": 32,
        "n_layers": 1,
        "n_heads": 2,
        "d_model": 16,
        "d_ff": 32,
    },
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
    merged = {
        name: {**TINY.get(name, {}), **sections.get(name, {})}
        for name in {**TINY, **sections}
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(merged))
    return path


@pytest.fixture
def ranks(monkeypatch, tmp_path):
    """Lets a small script stand in for torchrun: it writes one checkpoint, then does what it is told."""

    real = subprocess.Popen

    def install(then):
        first = f"pathlib.Path(r'{tmp_path}/checkpoints/step_00000001.pt').touch()"
        code = "import pathlib, time\nlimit = time.monotonic() + 300\n"
        code += f"{first}\n{then}"
        started = []

        def popen(command, **options):
            started.append((command, real([sys.executable, "-c", code], **options)))
            return started[-1][1]

        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        monkeypatch.setattr(modal_app.subprocess, "Popen", popen)
        return started

    return install


def test_ranks_are_started_with_the_command_that_one_would_type(ranks, tmp_path):
    written, seen = [], tmp_path / "seen"
    unseen = f"not pathlib.Path(r'{seen}').exists()"
    until_seen = f"while {unseen} and time.monotonic() < limit: time.sleep(0.01)"
    started = ranks(until_seen)
    config = load_config(tiny(tmp_path, modal={"gpu": "H100:8"}))
    modal_app.train_on_ranks(
        config, str(tmp_path), lambda: [written.append(1), seen.touch()], 31.6
    )
    *command, priced, price = started[0][0]
    assert (priced, price) == ("--dollars-per-hour", "31.6")
    assert command[1:-3] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=8"),
        *("-m", "slm", "train"),
    ]
    assert load_config(command[-3]) == config and command[-2:] == [
        "--run-dir",
        str(tmp_path),
    ]
    assert written == [1]


def test_spent_budget_stops_the_ranks(ranks, tmp_path):
    started = ranks("time.sleep(300)")

    def spent():
        raise SlmError("spent")

    with pytest.raises(SlmError, match="spent"):
        modal_app.train_on_ranks(load_config(tiny(tmp_path)), str(tmp_path), spent, 0.0)
    assert started[0][1].returncode is not None and started[0][1].returncode != 0


def test_meter_stops_the_ranks_before_their_first_checkpoint(
    ranks, tmp_path, monkeypatch
):
    monkeypatch.setattr(budget, "TICK", 0.05)
    monkeypatch.setattr(budget, "PATIENCE", math.inf)
    seconds = [0.0]

    def sleep(duration):  # no time passes for the meter but where ranks are waited for
        seconds[0] += duration
        time.sleep(300)

    monkeypatch.setattr(modal_app, "time", SimpleNamespace(sleep=sleep))
    clock = SimpleNamespace(monotonic=lambda: seconds[0])
    monkeypatch.setattr(budget, "time", clock)
    started = ranks("time.sleep(300)")
    meter = Meter(tmp_path, 3.6, budget=0.001)
    with pytest.raises(KeyboardInterrupt), meter.watching():
        modal_app.train_on_ranks(
            load_config(tiny(tmp_path)), str(tmp_path), lambda: None, 0.0
        )
    assert (
        meter.interrupted and started[0][1].returncode
    )  # they were asked to finish, and waited for


def test_failed_ranks_are_an_error(ranks, tmp_path):
    ranks("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="exit code 3"):
        modal_app.train_on_ranks(
            load_config(tiny(tmp_path)), str(tmp_path), lambda: None, 0.0
        )


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        ({"error": "the loss became nan at step 3", "retry": False}, SlmError),
        ({"error": "step 4 was not saved: No space left", "retry": True}, SlmError),
        (None, RuntimeError),
    ],
    ids=["mistake", "full disk", "killed"],
)
def test_failure_of_a_rank_is_read_and_not_guessed(ranks, tmp_path, failure, kind):
    """What a rank prints decides nothing; what it writes where its launcher says does."""
    written = (
        f"open(os.environ['SLM_FAILURE_FILE'], 'w').write({json.dumps(failure)!r})"
    )
    loud = "print('slm: OutOfMemoryError, step 4 was not saved', file=sys.stderr)"
    ranks(f"import os, sys; {loud}; {written if failure else 'pass'}; sys.exit(1)")
    with pytest.raises(kind) as raised:
        modal_app.train_on_ranks(
            load_config(tiny(tmp_path)), str(tmp_path), lambda: None, 0.0
        )
    if failure:
        assert str(raised.value) == failure["error"]
        assert raised.value.retry is failure["retry"]
    else:
        assert "exit code 1" in str(raised.value)


@pytest.mark.parametrize("retry", [False, True])
def test_failure_of_a_rank_ends_the_call_or_is_tried_again(
    ranks, tmp_path, monkeypatch, retry
):
    failure = json.dumps({"error": "it went wrong", "retry": retry})
    ranks(
        f"import os; open(os.environ['SLM_FAILURE_FILE'], 'w').write({failure!r}); 1/0"
    )
    monkeypatch.setattr(modal_app.modal, "is_local", lambda: False)
    config = load_config(tiny(tmp_path, modal={"gpu": "H100:2"}))
    meter = Meter(tmp_path, 3.6, max_steps=12)
    if retry:
        with pytest.raises(SlmError, match="it went wrong"):
            modal_app.attempt(config, str(tmp_path), meter)
    else:
        assert modal_app.attempt(config, str(tmp_path), meter) == "it went wrong"


def test_failure_of_an_attempt_before_is_not_read_again(ranks, tmp_path, monkeypatch):
    """The file lies in a folder of this attempt's own, on the machine's own disk."""
    failure = '{"error": "old", "retry": false}'
    ranks(
        f"import os, sys; open(os.environ['SLM_FAILURE_FILE'], 'w').write({failure!r})"
    )
    config = load_config(tiny(tmp_path))
    modal_app.train_on_ranks(config, str(tmp_path), lambda: None, 0.0)  # exit code 0
    shutil.rmtree(tmp_path / "checkpoints")
    ranks("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="exit code 3"):
        modal_app.train_on_ranks(config, str(tmp_path), lambda: None, 0.0)


def test_mistake_of_real_ranks_is_a_mistake(tmp_path):
    path = tiny(
        tmp_path, model={**TINY["model"], "vocab_size": 300}, modal={"gpu": "H100:2"}
    )
    with pytest.raises(SlmError, match="vocab_size = 300 is too small") as raised:
        modal_app.train_on_ranks(
            load_config(path), str(tmp_path / "run"), lambda: None, 0.0
        )
    assert raised.value.retry is False
