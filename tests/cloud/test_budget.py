"""slm.cloud.budget: the count that survives a kill, the budget, and when another attempt is in vain."""

import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from slm.cloud import budget
from slm.cloud.budget import Meter
from slm.errors import SlmError
from slm.training.folder import report

ROOT = Path(__file__).resolve().parents[2]


def test_report_of_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4, "train/lo')
    found = report(tmp_path)
    assert (found["finished"], found["step"], found["attempts"], found["dollars"]) == (
        False,
        2,
        0,
        0,
    )
    assert (found["checkpoint"], found["budget"], found["problem"]) == (0, None, "")
    (tmp_path / "metrics.jsonl").unlink()
    assert report(tmp_path)["step"] == 0


def test_a_copy_under_another_name_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in (
        "step_00000004.pt",
        "step_best.pt",
        "step_00000004_mine.pt",
        "step_00000012.pt",
    ):
        (tmp_path / "checkpoints" / name).touch()
    meter = Meter(tmp_path, 1.0)
    assert meter.entry["from"] == ["step_00000012.pt"]
    assert report(tmp_path)["checkpoint"] == 12


def test_meter_goes_on_when_it_could_not_be_secured_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(budget, "TICK", 0.05)
    monkeypatch.setattr(budget, "PATIENCE", math.inf)
    calls, third = [], threading.Event()

    def secure():
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("no network")
        if len(calls) == 3:
            third.set()

    with Meter(tmp_path, 3.6, secure=secure).watching():
        assert third.wait(timeout=300)
    assert "ConnectionError: no network" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["raises", "hangs"])
def test_budget_is_looked_at_whatever_securing_does(tmp_path, monkeypatch, way):
    """A volume that is out of reach does not stop the clock."""
    monkeypatch.setattr(budget, "TICK", 0.05)
    monkeypatch.setattr(budget, "PATIENCE", math.inf)
    over = threading.Event()

    def secure():
        if way == "raises":
            raise ConnectionError("no network")
        over.wait(300)

    meter = Meter(tmp_path, 3.6, secure=secure)
    with pytest.raises(KeyboardInterrupt), meter.watching():
        try:
            meter.budget = 1e-9  # from here on, where the interrupt is waited for
            time.sleep(300)
        finally:
            over.set()
    assert meter.interrupted


def test_process_that_hangs_while_it_secures_is_ended(tmp_path):
    code = f"""
import time
from slm.cloud import budget
budget.TICK, budget.PATIENCE = 0.05, 3
meter = budget.Meter({str(tmp_path)!r}, 3.6)

def secure():
    meter.budget = 1e-9
    time.sleep(300)

meter.secure = secure
try:
    with meter.watching():
        time.sleep(300)
except KeyboardInterrupt:
    meter.save()
"""
    # it would be 0 after both have slept
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stderr) == (1, b"")


def test_process_that_hangs_is_ended(tmp_path):
    code = f"""
import signal, time
from slm.cloud import budget
signal.signal(signal.SIGINT, signal.SIG_IGN)
budget.TICK, budget.PATIENCE = 0.05, 3
meter = budget.Meter({str(tmp_path)!r}, 3.6)

def secure():  # the first count is on the disk
    meter.budget = 1e-9

meter.secure = secure
with meter.watching():
    time.sleep(300)
"""
    # it would be 0 after the sleep
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stderr) == (1, b"")
    assert report(tmp_path)["dollars"] > 0


def test_finished_training_may_save_whatever_it_has_cost(tmp_path):
    meter = Meter(tmp_path, 3.6, budget=1.0, max_steps=12)
    assert meter.is_spent(2.0) and not meter.is_spent(0.5)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000012.pt").touch()
    assert not meter.is_spent(2.0)


@pytest.mark.parametrize(
    ("begun", "now", "expected"),
    [([], 3, 0.5 + 1.0 + 9 / 3), (["step_00000003.pt"], 6, 0.5 + 1.0 + 6 / 3)],
)
def test_cost_at_the_end_follows_from_the_steps_of_this_attempt(
    tmp_path, begun, now, expected
):
    (tmp_path / "attempts.json").write_text('[{"seconds": 10.0, "dollars": 0.5}]')
    meter = Meter(tmp_path, 2.0, max_steps=12)
    meter.entry |= {"from": begun, "to": [f"step_{now:08d}.pt"], "dollars": 1.0}
    assert meter.projected_dollars() == pytest.approx(expected)


A = {"call": "fc-1", "from": [], "to": [], "error": "", "seconds": 1.0, "dollars": 0.0}


IN_VAIN = {
    "one error": ([A | {"error": "KeyError: 1"}], ""),
    "two errors": (
        [A | {"error": "KeyError: 1"}, A | {"error": "KeyError: 2"}],
        "ended with KeyError: 2",
    ),
    "two errors with progress": (
        [
            A | {"error": "KeyError: 1"},
            A | {"error": "KeyError: 2", "to": ["step_00000001.pt"]},
        ],
        "",
    ),
    "two errors of two calls": (
        [A | {"error": "KeyError: 1", "call": "fc-0"}, A | {"error": "KeyError: 2"}],
        "",
    ),
    "two time-outs": ([A, A], ""),
    "three time-outs": ([A, A, A], "modal.timeout"),
    "three time-outs with progress": ([A, A, A | {"to": ["step_00000001.pt"]}], ""),
    "three machines taken away": ([A | {"interrupted": True}] * 3, ""),
    "three time-outs and a machine taken away": (
        [A, A, A | {"interrupted": True}, A],
        "modal.timeout",
    ),
    "progress before a machine is taken away": (
        [A, A, A | {"interrupted": True, "to": ["step_00000001.pt"]}, A],
        "",
    ),
    "three of a count without calls": ([{"seconds": 1.0, "dollars": 0.0}] * 3, ""),
}


@pytest.mark.parametrize("case", IN_VAIN)
def test_attempts_in_vain_are_told(tmp_path, case):
    attempts, words = IN_VAIN[case]
    (tmp_path / "attempts.json").write_text(json.dumps(attempts))
    found = Meter(tmp_path, 1.0, call="fc-1").stall_reason()
    assert words in found and bool(words) == bool(found)
    assert (
        Meter(tmp_path, 1.0, call="fc-2").stall_reason() == ""
    )  # a new launch has its own attempts
    assert Meter(tmp_path, 1.0).stall_reason() == ""


def test_last_error_of_attempts_in_vain_is_told(tmp_path):
    attempts = [A | {"error": "KeyError: 1"}, A, A | {"error": "OSError: 2"}, A]
    (tmp_path / "attempts.json").write_text(json.dumps(attempts))
    found = Meter(tmp_path, 1.0, call="fc-1").stall_reason()
    assert "modal.timeout" in found and "an error was OSError: 2" in found


def test_end_is_written_down_with_its_reason(tmp_path):
    assert Meter(tmp_path, 1.0).end("") == ""
    assert Meter(tmp_path, 1.0).end("it diverged") == "it diverged"
    assert report(tmp_path)["problem"] == "it diverged"


@pytest.mark.parametrize("problem", ["", "it diverged"])
@pytest.mark.parametrize("error", ["", "OSError: the cause"])
def test_end_that_cannot_be_kept_is_a_reason_to_try_no_more(tmp_path, problem, error):
    """The next attempt would know neither what was spent nor why it ended."""

    def secure():
        raise RuntimeError("the volume is full")

    meter = Meter(tmp_path, 1.0, secure=secure)
    meter.entry["error"] = error
    found = meter.end(problem)
    assert found.endswith("count could not be kept (RuntimeError: the volume is full)")
    assert (problem or error) in found


def test_damaged_count_is_an_error_that_no_attempt_mends(tmp_path):
    (tmp_path / "attempts.json").write_text('[{"call": "fc-1", "sec')
    with pytest.raises(SlmError, match="attempts.json is not whole") as damaged:
        Meter(tmp_path, 1.0)
    assert damaged.value.retry is False


def test_meter_adds_up_over_attempts(tmp_path, monkeypatch):
    seconds = iter([0.0, 1800.0, 10_000.0, 13_600.0])
    clock = SimpleNamespace(monotonic=seconds.__next__)
    monkeypatch.setattr(budget, "time", clock)  # and nobody else's
    Meter(tmp_path, 2.0).save()
    assert Meter(tmp_path, 4.0).save() == {
        "attempts": 2,
        "seconds": 5400.0,
        "dollars": 5.0,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["attempts.json"]


def test_import_needs_neither_torch_nor_modal():
    heavy = "[name for name in ('torch', 'modal', 'wandb', 'datasets') if name in sys.modules]"
    code = f"import slm.cloud.budget, sys; print({heavy})"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert found.stdout.decode().strip() == "[]", found.stderr


def test_killed_attempt_is_counted_up_to_its_last_tick(tmp_path):
    code = f"""
import os, signal, time
from slm.cloud import budget
budget.TICK, looks = 0.1, []
meter = budget.Meter({str(tmp_path)!r}, 3.6, call="fc-1", app="ap-1")
meter.secure = lambda: looks.append(1)
with meter.watching():
    while len(looks) < 5:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, timeout=300).returncode == -9
    (entry,) = json.loads((tmp_path / "attempts.json").read_text())
    assert entry["seconds"] >= 0.5  # five ticks
    assert (entry["call"], entry["app"], entry["error"]) == ("fc-1", "ap-1", "")
    assert report(tmp_path)["attempts"] == 1


def test_spent_budget_is_an_error_that_no_attempt_mends(tmp_path):
    meter = Meter(tmp_path, 3.6, budget=1.0, max_steps=12)
    meter.refuse_if_spent(0.99)
    with pytest.raises(SlmError, match=r"\$1.50 of \$1.00; a larger budget") as spent:
        meter.refuse_if_spent(1.5)
    assert spent.value.retry is False
    Meter(tmp_path, 3.6).refuse_if_spent(1e9)  # without a budget nothing is spent


def test_interrupt_comes_from_the_meter_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "TICK", 0.05)
    monkeypatch.setattr(budget, "PATIENCE", math.inf)
    meter = Meter(tmp_path, 3.6)
    with pytest.raises(KeyboardInterrupt), meter.watching():
        meter.budget = 1e-9  # from here on, where the interrupt is waited for
        time.sleep(300)
    assert meter.interrupted
