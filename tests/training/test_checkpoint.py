"""slm.training.checkpoint: whole or not at all, damage is noticed and named, and it never half exists."""

import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
import zlib

import pytest
import torch

from slm.training.checkpoint import (
    CheckpointError,
    copy_to_cpu,
    load_checkpoint,
    load_latest,
    prune_checkpoints,
    save_checkpoint,
)
from slm.training.folder import list_checkpoints

STATE = {
    "step": 3,
    "weights": torch.arange(1000.0),
    "nested": [{"a": torch.ones(2, dtype=torch.bfloat16)}, None, "text"],
}


def test_what_is_saved_comes_back(tmp_path):
    save_checkpoint(tmp_path / "deep/er/step_00000003.pt", STATE)
    back = load_checkpoint(tmp_path / "deep/er/step_00000003.pt")
    assert back["step"] == 3 and torch.equal(back["weights"], STATE["weights"])
    assert torch.equal(back["nested"][0]["a"], STATE["nested"][0]["a"]) and back[
        "nested"
    ][1:] == [None, "text"]
    assert [path.name for path in (tmp_path / "deep/er").iterdir()] == [
        "step_00000003.pt"
    ]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_cut_short_is_named(tmp_path, share):
    path = tmp_path / "step_00000001.pt"
    save_checkpoint(path, STATE)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        load_checkpoint(path)


def test_one_flipped_bit_in_the_weights_is_named(tmp_path):
    path = tmp_path / "step_00000001.pt"
    save_checkpoint(path, STATE)
    content = bytearray(path.read_bytes())
    at = content.find(torch.arange(500.0, 501.0).numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="altered"):
        load_checkpoint(path)


def test_a_flipped_bit_anywhere_is_named(tmp_path):
    """Also where a checksum of the archive's parts would not see it: in names, sizes, offsets and attributes."""
    path = tmp_path / "step_00000001.pt"
    save_checkpoint(path, {"step": 3, "weights": torch.arange(4.0)})
    content = path.read_bytes()
    for at in range(0, len(content), 3):
        path.write_bytes(
            content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
        )
        with pytest.raises(
            CheckpointError,
            match=f"^{re.escape(str(path))} is cut short, altered or not a checkpoint",
        ):
            load_checkpoint(path)


def test_what_was_read_is_its_own(tmp_path):
    """The tensors are mapped from the file: writing into them must not reach it, and deleting it must not reach them."""
    path = tmp_path / "step_00000001.pt"
    save_checkpoint(path, STATE)
    before = path.read_bytes()
    first = load_checkpoint(path)
    weights = first["weights"]
    expected = weights.clone()
    weights.add_(1)
    assert path.read_bytes() == before
    path.unlink()
    assert torch.equal(weights, expected + 1)


def test_a_copy_shares_nothing_and_loses_nothing():
    state = {
        "a": torch.arange(3.0, requires_grad=True),
        "b": [(torch.ones(2), 1)],
        "c": None,
        "d": {"e": "text"},
    }
    copy = copy_to_cpu(state)
    with torch.no_grad():
        state["a"] += 1
        state["b"][0][0].zero_()
    assert torch.equal(copy["a"], torch.arange(3.0)) and not copy["a"].requires_grad
    assert (
        torch.equal(copy["b"][0][0], torch.ones(2))
        and isinstance(copy["b"][0], tuple)
        and copy["b"][0][1] == 1
    )
    assert copy["c"] is None and copy["d"] == {"e": "text"}


def sealed(path, content):
    """A file of PyTorch's with a right checksum at its end, whatever it holds."""
    torch.save(content, path)
    path.write_bytes(
        path.read_bytes() + zlib.crc32(path.read_bytes()).to_bytes(4, "little")
    )


def test_foreign_files_and_code_are_refused_in_one_sentence(tmp_path):
    path = tmp_path / "step_00000001.pt"
    path.write_text("not a checkpoint, but long enough to hold a checksum at its end")
    with pytest.raises(
        CheckpointError, match="not a checkpoint: the checksum"
    ) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint: the checksum"):
        load_checkpoint(path)
    sealed(path, {"function": os.system})
    with pytest.raises(
        CheckpointError, match="something besides tensors, numbers and texts"
    ) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    for content in (
        torch.ones(2),
        {"step": 3},
        {"format": "slm checkpoint 0", "state": {}},
    ):
        sealed(path, content)
        with pytest.raises(CheckpointError, match="not written by this version of slm"):
            load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.pt")


def test_the_newest_good_one_is_used(tmp_path, capsys):
    assert load_latest(tmp_path) is None
    for step in (1, 2, 30):
        save_checkpoint(tmp_path / f"step_{step:08d}.pt", {"step": step})
    os.truncate(tmp_path / "step_00000030.pt", 50)
    path, state = load_latest(tmp_path)
    assert state["step"] == 2 and path.name == "step_00000002.pt"
    assert "step_00000030.pt is cut short" in capsys.readouterr().out
    for path in list_checkpoints(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 3"):
        load_latest(tmp_path)


def test_what_can_t_be_opened_is_named_and_passed_over(tmp_path, capsys):
    (tmp_path / "step_00000003.pt").symlink_to(tmp_path / "gone.pt")
    with pytest.raises(
        CheckpointError,
        match=r"none of the 1 .*step_00000003.pt is a link to a file that is not there",
    ):
        load_latest(tmp_path)
    (tmp_path / "step_00000002.pt").mkdir()
    save_checkpoint(tmp_path / "step_00000001.pt", {"step": 1})
    assert load_latest(tmp_path)[1] == {"step": 1}
    printed = capsys.readouterr().out
    assert (
        "step_00000003.pt is a link" in printed
        and "step_00000002.pt can't be read: Is a directory; trying" in printed
    )


@pytest.mark.parametrize(
    ("step", "best", "left"),
    [
        (5, None, [4, 5]),
        (5, 2, [2, 4, 5]),
        (5, 5, [4, 5]),
        (5, 9, [4, 5]),
        (3, None, [2, 3, 4, 5]),
        (3, 1, [1, 2, 3, 4, 5]),
    ],
)
def test_pruning_keeps_the_newest_and_the_best_and_leaves_later_ones_alone(
    tmp_path, step, best, left
):
    for number in (1, 2, 3, 4, 5):
        save_checkpoint(tmp_path / f"step_{number:08d}.pt", {"step": number})
    prune_checkpoints(tmp_path, keep=2, step=step, best_step=best)
    assert [path.name for path in reversed(list_checkpoints(tmp_path))] == [
        f"step_{number:08d}.pt" for number in left
    ]


def test_a_checkpoint_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    """A reader beside a run that goes on: what it was about to open is gone, and a newer one is there."""
    save_checkpoint(tmp_path / "step_00000001.pt", {"step": 1})
    original = torch.load

    def late(path, **options):
        if path.name == "step_00000001.pt":
            path.unlink()
            save_checkpoint(tmp_path / "step_00000002.pt", {"step": 2})
        return original(path, **options)

    monkeypatch.setattr(torch, "load", late)
    path, state = load_latest(tmp_path)
    assert state == {"step": 2} and path.name == "step_00000002.pt"


def test_the_disk_has_the_file_before_its_name_and_the_name_before_save_returns(
    tmp_path, monkeypatch
):
    done, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(
        os, "replace", lambda a, b: (done.append("named"), replace(a, b))
    )
    save_checkpoint(tmp_path / "step_00000001.pt", STATE)
    assert done == ["file", "named", "folder"]


def test_a_failing_disk_leaves_the_last_good_one(tmp_path, monkeypatch):
    path = tmp_path / "step_00000001.pt"
    save_checkpoint(path, {"step": 1})

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


FULL_DISK = """
import resource, signal, sys, torch
from slm.training.checkpoint import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # writes beyond a megabyte fail, as on a full disk
try:
    save_checkpoint(sys.argv[1], {"step": 2, "weights": torch.ones(1_000_000)})
except OSError as error:
    print(type(error).__name__, error)
"""


def test_a_disk_that_fills_up_while_writing_leaves_the_last_good_one(tmp_path):
    path = tmp_path / "step_00000001.pt"
    save_checkpoint(path, {"step": 1})
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("OSError"), (
        done.stdout + done.stderr
    )
    assert load_checkpoint(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


SAVER = """
import sys, torch
from slm.training.checkpoint import save_checkpoint
n = 0
while True:
    n += 1
    save_checkpoint(sys.argv[1], {"step": n, "weights": torch.full((2_000_000,), float(n))})
    print(n, flush=True)
"""


def test_a_process_killed_while_saving_leaves_a_whole_file(tmp_path):
    chance, path = random.Random(0), tmp_path / "step_00000001.pt"
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(path)], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        state = load_checkpoint(path)
        assert torch.equal(
            state["weights"], torch.full((2_000_000,), float(state["step"]))
        )
