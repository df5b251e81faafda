"""What the tests of the cloud share: a tiny config, and an app that is a folder and a list."""

import contextlib
from types import SimpleNamespace

import modal
import pytest
import yaml

from slm.cloud.launch import Cloud

TINY = {
    "model": {
        "vocab_size": 1024,
        "context_length": 32,
        "n_layers": 1,
        "n_heads": 2,
        "d_model": 16,
        "d_ff": 32,
    },
    "training": {"batch_size": 4, "warmup_steps": 2, "max_steps": 12},
    "data": {"dataset": "stories", "tokenizer": "stories", "max_documents": 200},
    "modal": {"gpu": "T4", "timeout": 600, "max_dollars": 1.0},
    "wandb": {"enabled": False},
}


@pytest.fixture
def tiny(tmp_path):
    """Writes a config file with some keys of its sections replaced."""

    def write(**sections):
        merged = {
            name: {**section, **sections.get(name, {})}
            for name, section in TINY.items()
        }
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(merged))
        return path

    return write


class Volume:
    """A folder that answers like a Modal volume."""

    def __init__(self, folder):
        self.folder = folder

    def listdir(self, path):
        if not (self.folder / path).is_dir():
            raise modal.exception.NotFoundError(path)
        kinds = modal.volume.FileEntryType
        return [
            SimpleNamespace(
                path=found.relative_to(self.folder).as_posix(),
                type=kinds.DIRECTORY if found.is_dir() else kinds.FILE,
            )
            for found in sorted((self.folder / path).iterdir())
        ]

    def read_file(self, path):
        yield (self.folder / path).read_bytes()  # FileNotFoundError, as Modal's


class Recorder:
    """Stands in for a Modal function: remembers what it was asked."""

    def __init__(self, log, name):
        self.log, self.name, self.object_id = log, name, f"fc-{name}"
        self.problem = None
        self.result = None

    def with_options(self, **options):
        self.log.append((f"{self.name} with", options))
        return self

    def spawn(self, *arguments):
        self.log.append((self.name, arguments))
        return self

    def get(self):
        return self.problem if self.name == "prepare" else self.result


@pytest.fixture
def asked():
    """Everything that `launch` asks Modal for, in order."""
    return []


@pytest.fixture
def cloud(asked, alive, monkeypatch, tmp_path):
    """An app whose volume is a folder and whose functions only remember; the working directory is empty."""

    def run(name, detach):
        asked.append(("run", detach))
        return contextlib.nullcontext()

    monkeypatch.setattr(modal.Secret, "hydrate", lambda self: self)
    monkeypatch.chdir(tmp_path)
    app = SimpleNamespace(name="slm-training", app_id="ap-1", run=run)
    functions = Recorder(asked, "train"), Recorder(asked, "prepare")
    return Cloud(app, Volume(tmp_path / "volume"), *functions, lambda: alive)


@pytest.fixture
def alive():
    """The apps that Modal says have not ended."""
    return []


@pytest.fixture
def a_run(tmp_path):
    """A run on the volume; returns its folder there."""
    run = tmp_path / "volume" / "runs" / "x"
    for name in (
        "checkpoints/step_00000004.pt",
        "model/model.safetensors",
        "samples/step_4.txt",
        "wandb/debug.log",
    ):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    (run / "metrics.jsonl").write_text('{"step": 2, "val/loss": 3.5}\n{"step": 4}\n')
    (run / "attempts.json").write_text('[{"seconds": 10.0, "dollars": 0.5}]')
    (run / ".lock").touch()
    return run
