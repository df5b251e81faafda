"""What the tests of training share: a small run's config, its text, and how two runs are compared."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch

import slm.training.checkpoint
from slm.data import stories
from slm.data.batches import TextDataset, TokenLoader
from slm.data.tokenizer import get_tokenizer
from slm.model.config import GPTConfig
from slm.model.gpt import GPT
from slm.training.config import make_config
from slm.training.run import train
from slm.training.trainer import Trainer

SHAPE = {
    "vocab_size": 1024,
    "context_length": 32,
    "n_layers": 2,
    "n_heads": 2,
    "d_model": 16,
    "d_ff": 32,
    "dropout": 0.1,
}
QUICK = {
    "batch_size": 2,
    "max_steps": 12,
    "warmup_steps": 2,
    "learning_rate": 3e-3,
    "log_every": 1,
    "eval_every": 6,
    "checkpoint_every": 4,
    "eval_batches": 2,
    "sample_tokens": 4,
    "threads": 1,
    "dtype": "float32",
}


@pytest.fixture
def shape():
    return dict(SHAPE)


@pytest.fixture
def quick():
    return dict(QUICK)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="session")
def config(cache):
    """The config of a run of a second; keywords change its training section."""

    def make(model=None, data=None, **training):
        source = {
            "dataset": "stories",
            "tokenizer": "stories",
            "packing": "documents",
            "max_documents": 300,
            "cache_dir": str(cache),
        }
        sections = {
            "model": {**SHAPE, **(model or {})},
            "training": {**QUICK, **training},
            "data": {**source, **(data or {})},
        }
        return make_config(sections, name="quick")

    return make


@pytest.fixture(scope="session")
def loader_of():
    tokenizer = get_tokenizer("stories")
    rows = TextDataset([stories.sample(seed) for seed in range(60)], tokenizer, 32)

    def make(batch_size=2, **options):
        return TokenLoader(rows, batch_size=batch_size, **options)

    return make


@pytest.fixture
def model_of():
    def make(seed=0, **changes):
        torch.manual_seed(seed)
        return GPT(GPTConfig(**{**SHAPE, **changes}))

    return make


@pytest.fixture
def trainer_of(model_of, loader_of):
    """A trainer of a small model on texts in hand; keywords change its training section."""

    def make(model=None, loader=None, val=None, observers=(), **training):
        return Trainer(
            model or model_of(),
            loader_of() if loader is None else loader,
            val,
            {"training": {**QUICK, **training}},
            device="cpu",
            observers=observers,
            verbose=False,
        )

    return make


@pytest.fixture
def interrupted():
    """Train, and be sent SIGINT right after step `at`: the run makes one step more, saves it and ends."""

    def run_until(c, run_dir, at=4):
        original = Trainer.train_step

        def train_step(self, batches, stop=False):
            original(self, batches, stop)
            if self.step == at:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "train_step", train_step)
            run = train(c, run_dir=run_dir, verbose=False)
        assert not run.finished
        assert (Path(run_dir) / f"checkpoints/step_{at + 1:08d}.pt").exists()
        return run

    return run_until


@pytest.fixture
def losses():
    return lambda metrics, key="train/loss": [row[key] for row in metrics if key in row]


@pytest.fixture
def equal_runs():
    """Assert that two runs have the same weights and the same rows but for the time."""
    own = ("seconds", "perf/tokens_per_s", "perf/mfu")

    def compare(a, b):
        rows = [
            [{k: v for k, v in row.items() if k not in own} for row in run.metrics]
            for run in (a, b)
        ]
        assert rows[0] == rows[1]
        pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)

    return compare


@pytest.fixture
def equal_states():
    """Whether two checkpoints hold the same to the last bit, but for time and the length of what tells it."""

    def equal(a, b):
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b) and a.dtype == b.dtype
        if isinstance(a, dict):
            own = ("seconds", "MetricsFile")
            return a.keys() == b.keys() and all(
                key in own or equal(a[key], b[key]) for key in a
            )
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(equal, a, b))
        return a == b

    return equal


@pytest.fixture
def failing_save(monkeypatch):
    """Let the checkpoint of one step fail as on a full disk."""
    original = slm.training.checkpoint.save_checkpoint

    def fail(at):
        def save(path, state):
            if state["trainer"]["step"] == at:
                raise OSError(28, "No space left on device")
            original(path, state)

        monkeypatch.setattr(slm.training.checkpoint, "save_checkpoint", save)

    return fail


@pytest.fixture
def slow_disk(monkeypatch):
    """Checkpoints are written only when this event is set."""
    original, free = slm.training.checkpoint.save_checkpoint, threading.Event()

    def slowly(path, state):
        assert free.wait(timeout=300)
        original(path, state)

    monkeypatch.setattr(slm.training.checkpoint, "save_checkpoint", slowly)
    yield free
    free.set()
