"""slm.training.folder: one rule for what a checkpoint is, rows, and what a run came to."""

import json
import math
import subprocess
import sys

import pytest

from slm.errors import SlmError
from slm.training.folder import (
    RunFolder,
    checkpoint_path,
    list_checkpoints,
    read_attempts,
    read_launched,
    read_metrics,
    read_tokenizer,
    report,
    step_of,
)


def test_a_checkpoint_is_counted_in_plain_digits(tmp_path):
    for name in ("step_00000007.pt", "step_٠٠٠٠٠٠٠٩.pt", "step_0000008.pt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000007.pt"]


def test_a_torn_last_line_of_metrics_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "tra')
    assert read_metrics(tmp_path) == [{"step": 1}]
    assert read_metrics(tmp_path / "none") == []


def test_a_damaged_row_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\ngarbage\n{"step": 3}\n')
    with pytest.raises(SlmError, match="metrics.jsonl, line 2 is not a row of metrics"):
        read_metrics(tmp_path)


NO_NUMBERS = ['"x"', "true", "[1]", "{}", "1" + 400 * "0"]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: value[:4])
@pytest.mark.parametrize("key", ["step", "val/loss", "perf/mfu", "cost/usd", "seconds"])
def test_a_row_whose_number_is_none_is_named(key, value, tmp_path):
    row = f'{{"step": 1, "{key}": {value}}}'
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 0}}\n{row}\n')
    with pytest.raises(SlmError, match="metrics.jsonl, line 2 is not a row of metrics"):
        read_metrics(tmp_path)


def test_what_observers_add_to_a_row_may_be_anything(tmp_path):
    row = {"step": 1, "note": "x", "gradients/w": {"low": 0.0}, "val/loss": math.inf}
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(row)}\n")
    assert read_metrics(tmp_path) == [row]


def test_what_is_nested_too_deeply_is_damaged(tmp_path):
    for name in ("metrics.jsonl", "attempts.json", "launched.json", "environment.json"):
        (tmp_path / name).write_text(f"{100_000 * '['}\n")
    for read in (read_metrics, read_attempts, read_launched):
        with pytest.raises(SlmError, match="mend or remove it|remove it"):
            read(tmp_path)
    assert read_tokenizer(tmp_path) is None


NO_ATTEMPTS = ["5", '{"dollars": null}', '{"seconds": "x", "dollars": 1}']
NO_ATTEMPTS += ['{"seconds": true}', '{"dollars": -1e9}', '{"dollars": NaN}']
NO_ATTEMPTS += ['{"budget": true}', '{"budget": "5"}', '{"call": 5}', '{"error": null}']
NO_ATTEMPTS += ['{"from": 5}', '{"to": ["latest"]}', '{"to": [7]}']
NO_ATTEMPTS += [f'{{"from": ["step_{5000 * "1"}.pt"]}}']


def test_an_attempt_or_a_note_of_another_kind_is_damaged(tmp_path):
    for attempt in NO_ATTEMPTS:
        (tmp_path / "attempts.json").write_text(f"[{attempt}]")
        with pytest.raises(SlmError, match="attempts.json is not whole"):
            read_attempts(tmp_path)
    note = {"app_id": "a", "call_id": "b", "run": "c", "result": None}
    (tmp_path / "launched.json").write_text(json.dumps(note))
    assert read_launched(tmp_path) == [note]
    for wrong in ('{"app_id": "a"}', json.dumps(note | {"call_id": 5})):
        (tmp_path / "launched.json").write_text(wrong)
        with pytest.raises(SlmError, match="launched.json is damaged: remove it"):
            read_launched(tmp_path)


def test_checkpoints_are_sorted_by_step_and_other_names_are_left_out(tmp_path):
    for step in (7, 123_456_789, 50):
        checkpoint_path(tmp_path, step).touch()
    others = ["step_5.pt", "step_best.pt", "step_00000007_mine.pt", "step_00000009.tmp"]
    for name in others:
        (tmp_path / name).touch()
    found = list_checkpoints(tmp_path)
    assert [step_of(path) for path in found] == [123_456_789, 50, 7]
    assert [step_of(path.name) for path in found] == [123_456_789, 50, 7]
    assert list_checkpoints(tmp_path / "none") == []


def test_the_names_in_a_run_folder(tmp_path):
    folder = RunFolder(tmp_path)
    names = {
        "config": "config.yaml",
        "metrics": "metrics.jsonl",
        "checkpoints": "checkpoints",
        "samples": "samples",
        "environment": "environment.json",
        "model": "model",
        "attempts": "attempts.json",
        "launched": "launched.json",
        "lock": ".lock",
    }
    for attribute, name in names.items():
        assert getattr(folder, attribute) == tmp_path / name
    assert not folder.finished
    folder.model.mkdir()
    assert folder.finished


def test_a_report_of_nothing(tmp_path):
    found = report(tmp_path / "none")
    assert found["run"] == "none" and not found["finished"]
    assert (found["step"], found["checkpoint"], found["val_loss"]) == (0, 0, None)


def test_a_report_sums_up_rows_checkpoints_and_attempts(tmp_path):
    rows = [
        {"step": 2, "val/loss": 3.0, "perf/mfu": 0.2},
        {"step": 3, "val/loss": None},
        {"step": 4, "train/loss": 2.0, "perf/mfu": 0.3},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 5')
    attempts = [
        {"seconds": 10.0, "dollars": 1.0, "to": ["step_00000002.pt"]},
        {"seconds": 5.0, "dollars": 0.5, "to": ["step_00000003.pt"], "budget": 4.0}
        | {"problem": "it is over"},
    ]
    (tmp_path / "attempts.json").write_text(json.dumps(attempts))
    found = report(tmp_path)
    assert found["step"] == 4 and found["val_loss"] == 3.0 and found["mfu"] == 0.3
    assert found["checkpoint"] == 3  # as the last attempt says: no folder came along
    assert (found["seconds"], found["dollars"], found["attempts"]) == (15.0, 1.5, 2)
    assert (found["budget"], found["problem"]) == (4.0, "it is over")
    (tmp_path / "checkpoints").mkdir()
    for step in (2, 4):
        checkpoint_path(tmp_path / "checkpoints", step).touch()
    assert report(tmp_path)["checkpoint"] == 4


@pytest.mark.parametrize(
    "text", ["", '[{"seconds": 1.0}, {"sec', "\0" * 20, b"\xff", "5", "[5]", "{}"]
)
def test_attempts_that_are_half_read_are_one_sentence(tmp_path, text):
    path = RunFolder(tmp_path).attempts
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(
        SlmError, match="attempts.json is not whole: .*ask for it again"
    ):
        report(tmp_path)


def test_rows_are_moved_aside_under_a_free_name(tmp_path):
    folder = RunFolder(tmp_path)
    names = [folder.earlier_metrics.name]
    for _ in range(2):
        folder.earlier_metrics.touch()
        names.append(folder.earlier_metrics.name)
    before = "metrics.before"
    assert names == [f"{before}.jsonl", f"{before}.2.jsonl", f"{before}.3.jsonl"]


def test_a_folder_is_read_without_pytorch():
    code = "import sys, slm.training.folder; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, text=True).strip() == "False"
