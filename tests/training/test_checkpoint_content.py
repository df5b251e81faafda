"""A checkpoint whose checksum is right and whose content is not: the one before is used, and nothing is a traceback."""

import shutil
import zlib
from pathlib import Path

import pytest
import torch

from slm.cli import main
from slm.errors import SlmError
from slm.training.checkpoint import CheckpointError, load_checkpoint
from slm.training.folder import list_checkpoints
from slm.training.run import load_run, train
from slm.training.trainer import Trainer

MISSING = object()
NAN, INF = float("nan"), float("inf")


def seal(path, content, **options):
    """A file of PyTorch's with a right checksum at its end, whatever it holds."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path, **options)
    path.write_bytes(
        path.read_bytes() + zlib.crc32(path.read_bytes()).to_bytes(4, "little")
    )


def change(path, keys, value):
    """Another value at a place inside a checkpoint."""
    content = torch.load(path, weights_only=True)
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[keys[-1]]
    elif isinstance(inner, torch.Tensor):
        inner.view(-1)[keys[-1]] = value
    else:
        inner[keys[-1]] = value
    seal(path, content)


WEIGHT = ("model", "token_embedding.weight")
AVERAGE = ("optimizers", 0, "state", 0, "exp_avg")
BAD_RNG = {"cpu": torch.zeros(3, dtype=torch.uint8), "device": None}
IN_THE_TRAINER = [
    *[
        ((key,), MISSING)
        for key in (
            "step",
            "tokens_seen",
            "seconds",
            "skipped_steps",
            "model",
            "optimizers",
            "scaler",
            "rng_state",
            "pending",
            "dtype",
            "data",
        )
    ],
    (("step",), "x"),
    (("step",), -3),
    (("seconds",), None),
    (("model",), 5),
    (("model",), {}),
    (WEIGHT, torch.zeros(3, 3)),
    ((*WEIGHT, 0), NAN),
    ((*WEIGHT, 7), -INF),
    (WEIGHT, torch.ones(1024, 16, dtype=torch.int32)),
    (AVERAGE, torch.zeros(3, 3)),
    (AVERAGE, MISSING),
    (AVERAGE, "x"),
    ((*AVERAGE[:-1], "step"), torch.ones(1024, 16)),
    (AVERAGE[:-1], MISSING),
    (AVERAGE[:-2], {}),
    (("optimizers", 0, "param_groups", 0, "betas"), MISSING),
    (("optimizers",), []),
    (("optimizers",), [{}]),
    (("optimizers",), [5]),
    ((*AVERAGE, 0), NAN),
    (("rng_state",), []),
    (("rng_state",), [5]),
    (("rng_state",), [BAD_RNG]),
    (("pending",), [["a", "b"]]),
    (("dtype",), 5),
    (("data",), 7),
    (("data",), ["x"]),
    (("processes",), 0),
    (("processes",), "two"),
    *[((key,), True) for key in ("step", "tokens_seen", "skipped_steps")],
    (("seconds",), 5),
    (("seconds",), NAN),
    (("tokens_seen",), -1),
    (("step",), 10**30),
]
OUTSIDE = [
    (("state",), MISSING),
    (("state",), None),
    (("state",), [1]),
    (("state", "config"), MISSING),
    (("state", "config"), 5),
    (("state", "config"), {}),
    (("state", "config"), {"model": 3}),
    (("state", "trainer"), MISSING),
    (("state", "trainer"), None),
    (("state", "observers"), MISSING),
    (("state", "observers"), {"MetricsFile": {}}),
    (("state", "observers"), {"MetricsFile": 5}),
    (("state", "observers"), {"Checkpointer": {"best": 7}}),
    (("state", "observers"), {"Checkpointer": {"best": [1.0, True]}}),
    (("state", "observers"), {"Checkpointer": {"best": ["1.0", "2"]}}),
    (("state", "observers"), {"MetricsFile": {"bytes": True, "step": 5}}),
    (("state", "observers"), {"MetricsFile": {"bytes": -40, "step": 5}}),
]


@pytest.fixture
def short(config):
    """The config of the run below: two steps more than it made."""
    return config(max_steps=6)


TORN: list[Path] = []


@pytest.fixture
def torn(tmp_path, tmp_path_factory, short, interrupted):
    """A run that stopped after step 5; it has checkpoints of steps 4 and 5. Trained once, and copied for each test."""
    if not TORN:
        folder = tmp_path_factory.mktemp("torn") / "run"
        interrupted(short, folder)
        TORN.append(folder)
    return shutil.copytree(TORN[0], tmp_path / "run")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        *OUTSIDE,
        *((("state", "trainer", *keys), value) for keys, value in IN_THE_TRAINER),
    ],
    ids=lambda part: ".".join(map(str, part)) if isinstance(part, tuple) else None,
)
def test_a_wrong_content_is_told_and_the_one_before_is_used(
    torn, short, capsys, keys, value
):
    newest = list_checkpoints(torn / "checkpoints")[0]
    change(newest, keys, value)
    assert train(short, run_dir=torn).finished
    printed = capsys.readouterr().out
    assert f"{newest} " in printed and "; trying the one before\n" in printed
    assert "going on after step 4, from" in printed


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ({"format": "slm checkpoint 3", "state": {}}, {}),
        ({"state": 1}, {"_use_new_zipfile_serialization": False}),
        (b"garbage that is long enough", {}),
        (b"PK\x03\x04 an archive that is none", {}),
    ],
    ids=["empty", "old pickle", "garbage", "archive"],
)
def test_another_file_is_told_and_the_one_before_is_used(
    torn, short, capsys, content, options
):
    newest = list_checkpoints(torn / "checkpoints")[0]
    seal(newest, content, **options)
    assert not load_run(torn).finished
    assert train(short, run_dir=torn).finished
    printed = capsys.readouterr().out
    assert printed.count(f"{newest} ") == printed.count("trying the one before") == 2
    assert "going on after step 4, from" in printed


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ((*WEIGHT, 0), NAN),
        (WEIGHT, torch.zeros(3, 3)),
        (("model",), {}),
        (("rng_state",), MISSING),
    ],
    ids=["nan", "shape", "empty", "missing"],
)
def test_a_reader_uses_the_one_before(torn, capsys, keys, value):
    newest, before = list_checkpoints(torn / "checkpoints")
    change(newest, ("state", "trainer", *keys), value)
    model = load_run(torn).model
    assert "trying the one before" in capsys.readouterr().out
    expected = load_checkpoint(before)["trainer"]["model"]
    assert all(torch.equal(w, expected[name]) for name, w in model.state_dict().items())
    change(before, ("state", "trainer", *keys), value)
    assert main(["generate", str(torn)]) == 2
    assert capsys.readouterr().err.startswith("slm: none of the 2 checkpoints in ")


@pytest.mark.parametrize("keys", [(*WEIGHT, 0), (*AVERAGE, 0)])
def test_the_last_good_checkpoint_has_finite_numbers(
    torn, short, monkeypatch, capsys, keys
):
    newest, before = list_checkpoints(torn / "checkpoints")
    original = Trainer.train_step

    def diverge(self, batches, stop=False):
        change(newest, ("state", "trainer", *keys), NAN)
        original(self, batches, stop)
        raise self.diverged("the loss became nan", self.step)

    monkeypatch.setattr(Trainer, "train_step", diverge)
    with pytest.raises(SlmError, match=f"last good checkpoint is {before};"):
        train(short, run_dir=torn, verbose=False)


def test_a_step_that_diverged_unseen_is_not_saved(tmp_path, config, monkeypatch):
    """Stopped right after it: no later loss shows it, and an older good one would be deleted."""
    original = Trainer.train_step

    def poisoned(self, batches, stop=False):
        original(self, batches, stop)
        if self.step == 5:
            self.stopping = True
            with torch.no_grad():
                self.model.norm.weight[0] = NAN

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    told = r"step 5 was not saved: .* not finite; the last good checkpoint is .*0004.pt"
    with pytest.raises(CheckpointError, match=told):
        train(config(keep_checkpoints=1), run_dir=tmp_path / "run", verbose=False)
    (left,) = (tmp_path / "run/checkpoints").iterdir()
    assert left.name == "step_00000004.pt"


def test_a_fault_of_the_device_is_not_one_of_the_file(torn, short, monkeypatch):
    """Nothing is passed over, and the launcher may try again on another machine."""

    def fault(self, state):
        raise torch.AcceleratorError("CUDA error: an illegal memory access")

    monkeypatch.setattr(Trainer, "load_state_dict", fault)
    with pytest.raises(torch.AcceleratorError):
        train(short, run_dir=torn, verbose=False)


def test_processes_that_read_different_checkpoints_do_not_go_on(
    torn, short, monkeypatch
):
    import slm.training.checkpoint as module

    monkeypatch.setattr(module, "gather_from_ranks", lambda value: [value, 4])
    with pytest.raises(CheckpointError, match="read checkpoints of steps 5, 4"):
        train(short, run_dir=torn, verbose=False)


@pytest.mark.parametrize("name", ["step_00000005.pt", "step_00000006.pt"])
def test_a_folder_named_like_a_checkpoint_is_told(torn, short, capsys, name):
    """It may stand where the next one is to be written."""
    place = torn / "checkpoints" / name
    place.unlink(missing_ok=True)
    place.mkdir()
    (place / "notes").touch()
    assert not load_run(torn).finished
    if name == "step_00000005.pt":
        assert train(short, run_dir=torn).finished
    else:
        with pytest.raises(CheckpointError, match="step 6 was not saved: .*directory"):
            train(short, run_dir=torn)
    told = f"{name} can't be read: Is a directory; trying the one before"
    assert capsys.readouterr().out.count(told) == 2
    assert (place / "notes").exists()
