"""A run goes on with another number of processes: the same rows in each step, the same validation."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import slm.hardware
from slm.data.batches import share_rows
from slm.training.checkpoint import load_checkpoint, load_latest, trainer_mismatch
from slm.training.folder import list_checkpoints
from slm.training.run import load_run, train


@pytest.mark.parametrize(
    ("rows", "processes", "most", "shares"),
    [
        (16, 8, 2, (2, 1)),
        (16, 4, 2, (2, 2)),
        (16, 1, 2, (2, 8)),
        (4, 4, 4, (1, 1)),
        (12, 2, 4, (3, 2)),
        (14, 2, 4, (1, 7)),
        (16, 3, 2, None),
        (2, 4, 2, None),
    ],
)
def test_rows_are_shared_in_the_largest_batches_that_fit(rows, processes, most, shares):
    assert share_rows(rows, processes, most) == shares


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("began", "parts"), [(8, 1), (4, 3), (1, 2), (2, 6)])
@pytest.mark.parametrize("now", [1, 2, 4])
def test_every_step_keeps_its_rows(loader_of, shuffle, began, parts, now):
    size = 4

    def rows(world_size, size, parts, step):
        loaders = [
            loader_of(size, rank=rank, world_size=world_size, shuffle=shuffle)
            for rank in range(world_size)
        ]
        return [
            row
            for part in range(step * parts, (step + 1) * parts)
            for loader in loaders
            for row in loader.indices(part).tolist()
        ]

    shared = share_rows(size * parts * began, now, size)
    for step in (0, 1, 7):
        assert rows(now, *shared, step) == rows(began, size, parts, step)


def test_the_validation_keeps_its_rows(loader_of):
    """Those of the first so many rows over all processes, however they are shared."""

    def targets(size, world_size, most):
        found = [
            row
            for rank in range(world_size)
            for _, y in loader_of(
                size, rank=rank, world_size=world_size, shuffle=False
            ).epoch_batches(most)
            for row in y.tolist()
        ]
        return sorted(found)

    whole = targets(3, 1, None)
    assert len(targets(3, 4, 17)) == 17 < len(whole)
    assert targets(3, 4, 17) == targets(2, 1, 17) == targets(5, 2, 17)
    assert targets(3, 4, 10**6) == whole


def pretend(monkeypatch, processes):
    """As one of several processes that exchange nothing."""
    monkeypatch.setattr("slm.training.trainer.world_size", lambda: processes)
    monkeypatch.setattr("slm.training.checkpoint.world_size", lambda: processes)


def test_what_cannot_be_shared_is_refused(tmp_path, config, interrupted, monkeypatch):
    interrupted(config(batch_size=2), tmp_path / "run")
    path, state = load_latest(tmp_path / "run/checkpoints")
    assert state["trainer"]["processes"] == 1
    parts = SimpleNamespace(gradient_accumulation_steps=1)
    loader = load_run  # anything that is no TokenLoader
    trainer = SimpleNamespace(
        dtype=torch.float32, train_loader=loader, val_loader=None, batch_size=None
    )
    trainer.training = parts
    assert trainer_mismatch(state["trainer"], trainer) == ""
    pretend(monkeypatch, 4)
    told = trainer_mismatch(state["trainer"], trainer)
    assert told.startswith("was begun by 1 processes; only a TokenLoader's")


JOB = """
import sys
from slm.hardware import rank
from slm.training.config import load_config
from slm.training.run import train
from slm.training.trainer import Trainer

config, folder, last = load_config(sys.argv[1]), sys.argv[2], int(sys.argv[3])
plain = Trainer.train_step


def train_step(self, batches, stop=False):
    return plain(self, batches, stop or self.step + 1 == last)


Trainer.train_step = train_step
train(config, run_dir=folder)
"""


@pytest.fixture
def job(tmp_path):
    """Runs a config with some processes, up to a step."""
    (tmp_path / "job.py").write_text(JOB)

    def start(c, folder, processes, last=-1):
        (tmp_path / "quick.yaml").write_text(c.to_yaml())
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc-per-node={processes}"]
        arguments = ["job.py", "quick.yaml", folder, str(last)]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        environment["PYTHONPATH"] = os.getcwd()
        return subprocess.run(
            command + arguments,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    return start


def test_two_that_come_back_as_one_and_go_on_as_four(tmp_path, config, job, losses):
    """Without dropout, the losses are those of a run that was left alone."""
    c = config(model={"dropout": 0.0}, batch_size=3, gradient_accumulation_steps=2)
    quiet = config(model={"dropout": 0.0}, batch_size=6, gradient_accumulation_steps=2)
    alone = train(quiet, run_dir=tmp_path / "alone", verbose=False)
    for processes, last in ((2, 4), (1, 8), (4, -1)):
        done = job(c, "run", processes, last)
        assert done.returncode == 0, done.stderr
        assert "12 steps of 384 tokens" in done.stdout
        told = "each step keeps its rows, but sums are rounded in another order"
        assert done.stdout.count(told) == (processes != 2)
    run = load_run(tmp_path / "run")
    assert run.finished
    for key in ("train/loss", "val/loss"):
        ours, theirs = (losses(each.metrics, key) for each in (run, alone))
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert [row["train/tokens_seen"] for row in run.metrics] == [
        row["train/tokens_seen"] for row in alone.metrics
    ]
    newest = load_checkpoint(list_checkpoints(tmp_path / "run/checkpoints")[0])
    assert newest["trainer"]["processes"] == 2
    assert len(newest["trainer"]["rng_state"]) == 4


def test_a_number_that_does_not_divide_the_rows_is_refused(
    tmp_path, config, interrupted, job
):
    c = config(batch_size=2)
    interrupted(c, tmp_path / "run")
    done = job(c, "run", 3)
    assert done.returncode != 0
    told = "was begun by 1 processes, whose steps have 2 rows; 3 can't share them"
    assert told in done.stderr + done.stdout
    assert train(c, run_dir=tmp_path / "run", verbose=False).finished


def test_a_checkpoint_of_an_earlier_version_knows_its_processes_by_their_numbers(
    trainer_of, monkeypatch
):
    trainer = trainer_of(batch_size=2)
    state = trainer.state_dict()
    assert state.pop("processes") == 1
    state["rng_state"] = [slm.hardware.rng_state(trainer.device)] * 4
    trainer.load_state_dict(state)
    assert (trainer.parts, trainer.began_with) == (4, 4)
    assert trainer.train_loader.batch_size == 2
    with pytest.raises(ValueError, match="3 processes can't share 8 rows"):
        monkeypatch.setattr("slm.training.trainer.world_size", lambda: 3)
        trainer.load_state_dict(state)
