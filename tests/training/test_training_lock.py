"""slm.training.run: one process a folder, and what is looked at again when it has the lock."""

import os
import subprocess
import sys

import pytest

import slm.training.run
from slm.errors import SlmError
from slm.training.folder import RunFolder
from slm.training.run import train


def test_a_second_process_on_the_same_folder_is_refused(tmp_path, config):
    c, refusals = config(), []

    def intrude():
        with pytest.raises(SlmError, match="another process is training") as caught:
            train(c, run_dir=tmp_path / "run", verbose=False)
        refusals.append(caught.value)

    train(
        c,
        run_dir=tmp_path / "run",
        on_checkpoint=lambda: None if refusals else intrude(),
        verbose=False,
    )
    assert refusals


def test_a_run_that_another_process_has_just_finished_is_returned(
    tmp_path, config, monkeypatch
):
    """It held the lock when this one looked whether the run was finished."""
    c, real = config(), slm.training.run.only_process
    theirs = []

    def late(run_dir):
        if not theirs:
            theirs.append(None)
            theirs.append(train(c, run_dir=run_dir, verbose=False))
        return real(run_dir)

    monkeypatch.setattr(slm.training.run, "only_process", late)
    ours = train(c, run_dir=tmp_path / "run", verbose=False)
    assert ours.finished and ours.metrics == theirs[1].metrics
    assert not (tmp_path / "run/model.part").exists()


def test_settings_are_compared_again_when_the_lock_is_held(
    tmp_path, config, monkeypatch
):
    real, other = slm.training.run.only_process, config(learning_rate=1e-4)

    def late(run_dir):
        RunFolder(run_dir).path.mkdir()
        RunFolder(run_dir).config.write_text(other.to_yaml())
        return real(run_dir)

    monkeypatch.setattr(slm.training.run, "only_process", late)
    with pytest.raises(SlmError, match="learning_rate was 0.0001"):
        train(config(), run_dir=tmp_path / "run", verbose=False)
    assert RunFolder(tmp_path / "run").config.read_text() == other.to_yaml()


def test_a_second_process_with_another_folder_for_temporary_files_is_refused_too(
    tmp_path, config
):
    c = config()
    code = "import sys; from slm.training.run import only_process; from pathlib import Path\n"
    code += f"with only_process(Path({str(tmp_path / 'run')!r})): print('in', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(SlmError, match="another process is training"):
            train(c, run_dir=tmp_path / "run", verbose=False)
        other.stdin.close()
