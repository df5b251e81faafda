"""Checkpointer: saving beside the training, what is kept, what can be continued."""

import json
import math
import os
import threading
from concurrent.futures import Future
from concurrent.futures import wait as wait_for

import pytest
import torch

import slm.training.checkpoint
from slm.errors import SlmError
from slm.training.checkpoint import (
    Checkpointer,
    CheckpointError,
    load_checkpoint,
    load_latest,
    save_checkpoint,
)
from slm.training.metrics import Observer
from slm.training.run import load_run, train
from slm.training.trainer import Trainer


def test_only_the_newest_checkpoints_and_the_best_are_kept(cache, config):
    train(
        config(keep_checkpoints=1, checkpoint_every=2, eval_every=2),
        run_dir=cache / "kept",
        verbose=False,
    )
    rows = [
        json.loads(line)
        for line in (cache / "kept/metrics.jsonl").read_text().splitlines()
    ]
    best = min((row["val/loss"], row["step"]) for row in rows if "val/loss" in row)[1]
    assert {path.name for path in (cache / "kept/checkpoints").iterdir()} == {
        f"step_{step:08d}.pt" for step in (best, 12)
    }


def test_the_best_is_the_best_of_those_that_were_saved(tmp_path, monkeypatch, config):
    validation = {3: 1.0, 4: 2.0, 6: 1.5, 8: 3.0, 9: 0.5, 12: 4.0}
    monkeypatch.setattr(Trainer, "validate", lambda self: validation[self.step])
    train(
        config(keep_checkpoints=1, checkpoint_every=4, eval_every=3),
        run_dir=tmp_path / "run",
        verbose=False,
    )
    left = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert left == {"step_00000004.pt", "step_00000012.pt"}


class Tally(Observer):
    """Counts something, from where it is told to begin."""

    def __init__(self, count):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_observers_of_one_class_keep_a_state_each(tmp_path, config, trainer_of):
    def checkpointer():
        return Checkpointer(tmp_path, config())

    tallies = [Tally(3), Tally(5), Tally(7)]
    first = trainer_of(observers=[*tallies, own := checkpointer()])
    with own:
        own.save(first)
    again = [Tally(0), Tally(0), Tally(0)]
    assert checkpointer().resume(trainer_of(observers=again))
    assert [tally.count for tally in again] == [3, 5, 7]


def validation_of(monkeypatch, values):
    """Validation losses by step, whatever the model."""
    monkeypatch.setattr(Trainer, "validate", lambda self: values[self.step])


def test_the_best_is_known_after_a_resume(tmp_path, monkeypatch, config, interrupted):
    validation_of(
        monkeypatch,
        {4: 1.0, 5: 4.0, 6: 4.0, 8: 2.0, 12: 3.0} | dict.fromkeys((7, 9, 10, 11), 4.0),
    )
    c = config(keep_checkpoints=1, eval_every=100)
    interrupted(c, tmp_path / "run")
    assert train(c, run_dir=tmp_path / "run", verbose=False).finished
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == [
        "step_00000004.pt",
        "step_00000012.pt",
    ]


def test_the_resumed_run_keeps_its_own_although_foreign_ones_are_newer(
    tmp_path, config, interrupted
):
    c = config(keep_checkpoints=2)
    interrupted(c, tmp_path / "run")
    for step in (24, 28):
        (tmp_path / f"run/checkpoints/step_{step:08d}.pt").write_bytes(b"damaged")
    train(c, run_dir=tmp_path / "run", verbose=False)
    names = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert {
        "step_00000008.pt",
        "step_00000012.pt",
        "step_00000024.pt",
        "step_00000028.pt",
    } <= names


def test_the_metrics_are_on_disk_before_the_checkpoint_that_counts_on_them(
    tmp_path, monkeypatch, config
):
    done, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        done.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def named(source, target):
        done.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    train(config(), run_dir=tmp_path / "run", verbose=False)
    metrics = (tmp_path / "run/metrics.jsonl").stat().st_ino
    names = [
        name
        for name in done
        if name in (metrics, "step_00000004.pt", "step_00000008.pt", "step_00000012.pt")
    ]
    assert names == [
        metrics,
        "step_00000004.pt",
        metrics,
        "step_00000008.pt",
        metrics,
        "step_00000012.pt",
    ]


def test_a_last_checkpoint_that_fails_is_told(
    tmp_path, monkeypatch, config, failing_save
):
    failing_save(at=12)
    with pytest.raises(CheckpointError, match="step 12 was not saved"):
        train(config(), run_dir=tmp_path / "run", verbose=False)
    assert not (tmp_path / "run/model").exists()


def test_a_checkpoint_that_fails_is_told_soon(
    tmp_path, monkeypatch, config, failing_save
):
    """Not only when the next one is due: it fails while step 5 is made, and step 6 does not begin."""
    failing_save(at=4)
    original, save = Trainer.train_step, slm.training.checkpoint.save_checkpoint
    reached, begun = [], threading.Event()

    def late(path, state):
        assert begun.wait(timeout=300)
        save(path, state)

    def watched(self, batches, stop=False):
        reached.append(self.step)
        if self.step == 4:
            begun.set()
            wait_for([self.observers[-1]._writing])
        return original(self, batches, stop)

    monkeypatch.setattr(slm.training.checkpoint, "save_checkpoint", late)
    monkeypatch.setattr(Trainer, "train_step", watched)
    with pytest.raises(CheckpointError, match="step 4 was not saved"):
        train(config(), run_dir=tmp_path / "run", verbose=False)
    assert max(reached) == 4


def test_the_one_before_stays_until_the_new_one_is_whole(
    tmp_path, config, failing_save
):
    failing_save(at=8)
    with pytest.raises(CheckpointError, match="step 8 was not saved") as caught:
        train(config(keep_checkpoints=1), run_dir=tmp_path / "run", verbose=False)
    assert caught.value.retry  # another machine's disk may have room
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [
        "step_00000004.pt"
    ]


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path, monkeypatch, slow_disk, config, equal_states
):
    """Steps 5 to 8 are done before step 4 is on disk, and the file holds the state after step 4 all the same."""
    original, there = Trainer.train_step, []

    def watched(self, batches, stop=False):
        there.append(
            (
                self.step,
                sorted(path.name for path in tmp_path.glob("run/checkpoints/*")),
            )
        )
        if self.step == 7:
            slow_disk.set()
        return original(self, batches, stop)

    monkeypatch.setattr(Trainer, "train_step", watched)
    run = train(config(keep_checkpoints=9), run_dir=tmp_path / "run", verbose=False)
    assert [names for step, names in there if step <= 7] == [[]] * 8 and run.finished
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 3
    monkeypatch.undo()
    train(config(keep_checkpoints=9), run_dir=tmp_path / "plain", verbose=False)
    for step in (4, 8, 12):
        late, plain = (
            load_checkpoint(tmp_path / run / f"checkpoints/step_{step:08d}.pt")
            for run in ("run", "plain")
        )
        assert equal_states(late, plain)


@pytest.fixture
def disk_that_is_waited_for(monkeypatch, slow_disk):
    """Checkpoints are written only when somebody waits for one."""

    def waits(futures):
        slow_disk.set()
        return wait_for(futures)

    monkeypatch.setattr(slm.training.checkpoint, "wait_for", waits)
    return slow_disk


def test_at_most_one_checkpoint_waits_to_be_written(
    tmp_path, monkeypatch, disk_that_is_waited_for, config
):
    original, reached = Trainer.train_step, []

    def watched(self, batches, stop=False):
        if not disk_that_is_waited_for.is_set():
            reached.append(self.step)
        return original(self, batches, stop)

    monkeypatch.setattr(Trainer, "train_step", watched)
    assert train(config(), run_dir=tmp_path / "run", verbose=False).finished
    assert max(reached) == 7  # the checkpoint of step 8 waits for that of step 4


def test_a_better_one_that_is_not_yet_written_replaces_nothing(
    tmp_path, monkeypatch, slow_disk, config
):
    """At step 12 the best moves from 4 to 12, while 8 is still being written: 4 must stay until 12 is on disk."""
    seen, values = [], {4: 1.0, 8: 2.0, 12: 0.5}

    def validate(self):
        if self.step == 8:
            slow_disk.set()
            self.observers[-1]._writing.result()
            slow_disk.clear()
        return values[self.step]

    original = Checkpointer.save

    def save(self, trainer):
        if trainer.step == 12:  # self.best has moved
            assert self.best == (0.5, 12)
            slow_disk.set()
            wait_for([self._writing])
            seen.extend(sorted(path.name for path in self.folder.iterdir()))
        original(self, trainer)

    monkeypatch.setattr(Trainer, "validate", validate)
    monkeypatch.setattr(Checkpointer, "save", save)
    train(
        config(keep_checkpoints=1, eval_every=100),
        run_dir=tmp_path / "run",
        verbose=False,
    )
    assert seen == ["step_00000004.pt", "step_00000008.pt"]


def test_a_run_that_diverges_names_the_checkpoint_that_was_being_written(
    tmp_path, monkeypatch, disk_that_is_waited_for, config
):
    original = Trainer.train_step

    def poisoned(self, batches, stop=False):
        if self.step == 6:
            assert not disk_that_is_waited_for.is_set()
            self.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
        return original(self, batches, stop)

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    with pytest.raises(
        SlmError, match=r"at step 6 .* last good checkpoint is .*step_00000004.pt"
    ):
        train(config(), run_dir=tmp_path / "run", verbose=False)


def test_an_interrupt_while_waiting_leaves_nobody_writing(
    tmp_path, monkeypatch, slow_disk, config, interrupted
):
    """The second Ctrl-C: the run ends only when the thread is done, so that the folder is free for the next one."""
    original, waits = slm.training.checkpoint.wait_for, []

    def interrupted(futures):
        waits.append(1)
        if len(waits) == 1:
            threading.Timer(0.5, slow_disk.set).start()
            raise KeyboardInterrupt
        return original(futures)

    monkeypatch.setattr(slm.training.checkpoint, "wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config(), run_dir=tmp_path / "run", verbose=False)
    assert slow_disk.is_set() and [
        path.name for path in (tmp_path / "run/checkpoints").iterdir()
    ] == ["step_00000004.pt"]


def test_both_errors_are_told_when_training_and_writing_fail(
    tmp_path, monkeypatch, slow_disk, capsys, config, failing_save
):
    failing_save(at=4)
    original = Trainer.train_step

    def failing(self, batches, stop=False):
        if self.step == 6:
            raise RuntimeError("a fault of the GPU")
        return original(self, batches, stop)

    monkeypatch.setattr(Trainer, "train_step", failing)
    monkeypatch.setattr(
        Future, "done", lambda self: False
    )  # the writing ends only after the fault
    with pytest.raises(RuntimeError, match="a fault of the GPU"):
        train(config(), run_dir=tmp_path / "run", verbose=False)
    assert "step 4 was not saved" in capsys.readouterr().out


def test_an_old_checkpoint_that_can_t_be_deleted_is_told_and_does_not_end_the_run(
    tmp_path, capsys, config, interrupted
):
    c = config(keep_checkpoints=1)
    interrupted(c, tmp_path / "run")
    (
        tmp_path / "run/checkpoints/step_00000001.pt"
    ).mkdir()  # can be unlinked as little as a protected file
    assert train(c, run_dir=tmp_path / "run", verbose=False).finished
    printed = capsys.readouterr().out
    assert (
        "step 12 is saved, but an older checkpoint could not be deleted: " in printed
        and "step_00000001.pt" in printed
    )


@pytest.mark.parametrize("how", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_fails_still_finishes_the_checkpoint_that_it_was_writing(
    tmp_path, monkeypatch, slow_disk, how, config
):
    original = Trainer.train_step

    def failing(self, batches, stop=False):
        if self.step == 6:
            threading.Timer(0.3, slow_disk.set).start()
            raise how
        return original(self, batches, stop)

    monkeypatch.setattr(Trainer, "train_step", failing)
    with pytest.raises(how):
        train(config(), run_dir=tmp_path / "run", verbose=False)
    assert load_latest(tmp_path / "run/checkpoints")[1]["trainer"]["step"] == 4


def test_a_full_disk_is_told_in_one_sentence_with_the_last_good_checkpoint(
    tmp_path, monkeypatch, config, equal_runs
):
    original = os.fsync

    def full(descriptor):
        if list(tmp_path.glob("run/checkpoints/step_00000008.pt.*.tmp")):
            raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    last = r"step 8 was not saved: \[Errno 28\] No space left on device: .*step_00000008.pt.; the last good checkpoint is .*step_00000004.pt$"
    with pytest.raises(CheckpointError, match=last):
        train(config(), run_dir=tmp_path / "run", verbose=False)
    monkeypatch.undo()
    equal_runs(
        train(config(), run_dir=tmp_path / "run", verbose=False),
        train(config(), run_dir=tmp_path / "whole", verbose=False),
    )


def test_a_copy_under_another_name_is_no_checkpoint(tmp_path, config, interrupted):
    c, folder = config(keep_checkpoints=1), tmp_path / "run/checkpoints"
    interrupted(c, tmp_path / "run")
    kept = [folder / "step_best.pt", folder / "step_00000004_mine.pt"]
    for copy in kept:
        copy.write_bytes((folder / "step_00000004.pt").read_bytes())
    assert load_latest(folder)[0].name == "step_00000005.pt"
    assert train(c, run_dir=tmp_path / "run", verbose=False).finished
    assert all(copy.exists() for copy in kept)


def test_a_foreign_checkpoint_is_named_and_passed_over(
    tmp_path, capsys, config, interrupted, equal_runs, shape
):
    """A file of another config that lies among the run's own, and is newer: the run's newest good one is used."""
    c = config()
    whole = train(c, run_dir=tmp_path / "whole", verbose=False)
    interrupted(c, tmp_path / "run")
    for name, other in {
        "rate": {"learning_rate": 0.1},
        "shape": {"model": {"n_layers": 1}},
    }.items():
        train(config(**other), run_dir=tmp_path / name, verbose=False)
    folder = tmp_path / "run/checkpoints"
    (tmp_path / "rate/checkpoints/step_00000012.pt").rename(folder / "step_00000012.pt")
    (tmp_path / "shape/checkpoints/step_00000012.pt").rename(
        folder / "step_00000011.pt"
    )
    capsys.readouterr()
    equal_runs(train(c, run_dir=tmp_path / "run"), whole)
    printed = capsys.readouterr().out
    changed = "step_00000012.pt belongs to a run with another config: training.learning_rate was 0.1 and is now 0.003; "
    assert (
        changed in printed
        and "model.n_layers was 1 and is now 2; trying the one before" in printed
    )
    assert "going on after step" in printed


def test_a_foreign_checkpoint_is_not_read_as_a_run_s_own(
    tmp_path, capsys, config, interrupted
):
    interrupted(config(), tmp_path / "run")
    own = load_run(tmp_path / "run").model
    train(config(learning_rate=0.1), run_dir=tmp_path / "rate", verbose=False)
    folder = tmp_path / "run/checkpoints"
    (tmp_path / "rate/checkpoints/step_00000012.pt").rename(folder / "step_00000012.pt")
    save_checkpoint(folder / "step_00000099.pt", {"step": 99})
    found = load_run(tmp_path / "run").model
    assert all(
        torch.equal(a, b)
        for a, b in zip(own.parameters(), found.parameters(), strict=True)
    )
    printed = capsys.readouterr().out
    assert (
        "step_00000099.pt was not written by a trainer; trying the one before"
        in printed
    )
    assert "step_00000012.pt belongs to a run with another config" in printed


def test_the_last_good_checkpoint_is_not_a_damaged_one(
    tmp_path, monkeypatch, config, interrupted
):
    interrupted(config(), tmp_path / "run")
    (tmp_path / "run/checkpoints/step_00000099.pt").write_bytes(b"damaged")
    (tmp_path / "run/checkpoints/step_00000098.pt").symlink_to(tmp_path / "gone.pt")
    monkeypatch.setattr(
        Trainer,
        "finite_losses",
        lambda self: (_ for _ in ()).throw(self.diverged("it", self.step)),
    )
    with pytest.raises(
        SlmError, match=r"the last good checkpoint is .*step_0000000\d\.pt"
    ):
        train(config(), run_dir=tmp_path / "run", verbose=False)
