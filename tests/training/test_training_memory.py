"""What a run is told of memory: refused below what it needs, never above, and a sentence where memory ends all the same."""

import json
import os
import subprocess
import sys

import pytest
import torch

import slm.hardware
from slm import cli
from slm.errors import SlmError
from slm.hardware import SMALLER_BATCH, run_memory
from slm.training.run import load_run, train
from slm.training.trainer import Trainer

LINUX = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc and limits its addresses"
)
SIZES = {
    "activations": {
        "model": {"n_layers": 12, "d_model": 16, "d_ff": 64, "n_heads": 1},
        "training": {"batch_size": 300},
    },
    "checkpoint": {
        "model": {"n_layers": 4, "d_model": 512, "d_ff": 2048, "n_heads": 8},
        "training": {"batch_size": 2},
    },
}

# Whole runs in one process: a small one, after which all is imported, then each size without a limit and with two.
RUNS = """
import json, resource, sys
from slm.errors import SlmError
from slm.training import run
from slm.training.config import make_config

folder, small, *configs = sys.argv[1], *map(json.loads, sys.argv[2:])

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) * 1024

def whole(sections, name):
    try:
        return run.train(make_config(sections), f"{folder}/{name}", verbose=False).finished
    except SlmError as error:
        return str(error)

whole(small, "small")
for number, sections in enumerate(configs):
    before = {"addresses": status("VmSize"), "resident": status("VmRSS")}
    told = {"whole": whole(sections, f"{number} whole")}
    told["addresses"] = status("VmPeak") - before["addresses"]
    told["resident"] = status("VmHWM") - before["resident"]
    for part in (0.9, 1.1):
        limit = status("VmSize") + int(part * told["addresses"])
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        told[part] = whole(sections, f"{number} {part}")
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    print(json.dumps(told))
"""


@LINUX
def test_what_fits_is_never_refused_and_what_does_not_is(tmp_path, cache, config):
    """At 1.1 of the memory that a run was seen to take it runs, at 0.9 it is refused before its folder is made."""
    plain = {"max_steps": 2, "warmup_steps": 1, "eval_batches": 1, "sample_tokens": 0}
    chosen = [
        config(size["model"], **{**plain, **size["training"]})
        for size in SIZES.values()
    ]
    # one heap for all threads, and what is freed is given back: else more is reserved than used
    heap = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
    env = {**os.environ, **heap, "OMP_NUM_THREADS": "1"}
    texts = [json.dumps(c.as_dict()) for c in (config(**plain), *chosen)]
    words = [sys.executable, "-c", RUNS, str(tmp_path), *texts]
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    for i, (c, line) in enumerate(zip(chosen, done.stdout.splitlines(), strict=True)):
        found = json.loads(line)
        need = run_memory(c, torch.device("cpu"), c.training.batch_size, False)
        assert need <= found["resident"]  # which a machine and a container count
        assert found["whole"] is True and found["1.1"] is True
        refusal = str(found["0.9"])
        assert "this run needs at least" in refusal and "can be had on cpu" in refusal
        assert not (tmp_path / f"{i} 0.9").exists()


def free(monkeypatch, size):
    monkeypatch.setattr(slm.hardware, "free_memory", lambda device: size)


def test_a_run_is_refused_before_anything_is_built(tmp_path, monkeypatch, config):
    """Before the tokenizer is fetched, too: it may need a network."""
    c = config(data={"tokenizer": "gpt2"})
    free(monkeypatch, 10**5)
    with pytest.raises(SlmError, match="0 MB of memory can be had on cpu: not even"):
        train(c, run_dir=tmp_path / "run", verbose=False)
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_finished_needs_no_room_for_a_step(tmp_path, monkeypatch, config):
    c = config(max_steps=3)
    train(c, run_dir=tmp_path / "run", verbose=False)
    need = run_memory(c, torch.device("cpu"), c.training.batch_size, False)
    free(monkeypatch, need - 1)
    with pytest.raises(SlmError, match="this run needs"):
        train(c, run_dir=tmp_path / "other", verbose=False)
    assert train(c, run_dir=tmp_path / "run", verbose=False).finished


def test_a_run_goes_on_where_it_could_start(tmp_path, monkeypatch, config, interrupted):
    c = config()
    interrupted(c, tmp_path / "run")
    need = run_memory(c, torch.device("cpu"), c.training.batch_size, False)
    free(monkeypatch, need)
    assert train(c, run_dir=tmp_path / "run", verbose=False).finished


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("allocator")]
)
def test_memory_that_ends_all_the_same_is_a_sentence(
    tmp_path, monkeypatch, config, error
):
    """Also for the launcher, which need not try again."""
    path = tmp_path / "failure.json"
    monkeypatch.setenv("SLM_FAILURE_FILE", str(path))
    monkeypatch.setattr(slm.hardware, "_refuses", lambda device, size: True)

    def full(self, stop):
        raise error

    monkeypatch.setattr(Trainer, "train", full)
    with pytest.raises(SlmError, match="the memory is full; this run needs") as raised:
        train(config(), run_dir=tmp_path / "run", verbose=False)
    assert SMALLER_BATCH in str(raised.value)
    told = json.loads(path.read_text())
    assert told == {"error": str(raised.value), "retry": False}


def test_another_error_of_training_stays_what_it_is(tmp_path, monkeypatch, config):
    def odd(self, stop):
        raise RuntimeError("a bug, with plenty of memory left")

    monkeypatch.setattr(Trainer, "train", odd)
    with pytest.raises(RuntimeError, match="a bug"):
        train(config(), run_dir=tmp_path / "run", verbose=False)


@LINUX
def test_an_allocation_that_fails_in_a_step_is_a_sentence(
    tmp_path, monkeypatch, config
):
    """The real allocator, which refuses more than any machine has; nothing else is told of it than its class."""
    ask = torch.empty

    def step(self, batches, stop=False):
        ask(2**60, dtype=torch.uint8)

    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(slm.hardware, "run_memory", lambda *rest, **more: 2**60)
    free(monkeypatch, None)
    with pytest.raises(SlmError, match="the memory is full; this run needs") as raised:
        train(config(), run_dir=tmp_path / "run", verbose=False)
    assert type(raised.value.__cause__) is RuntimeError


def test_a_model_that_does_not_fit_is_not_read(tmp_path, monkeypatch, config, capsys):
    train(config(max_steps=3), run_dir=tmp_path / "run", verbose=False)
    run = load_run(tmp_path / "run")
    weights = 4 * run.model.count_parameters()
    free(monkeypatch, weights)
    load_run(tmp_path / "run")
    free(monkeypatch, weights - 1)
    told = f"the model in {tmp_path / 'run'} needs at least 0 MB"
    assert cli.main(["generate", str(tmp_path / "run"), ""]) == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith(f"slm: {told}") and sentence.count("\n") == 1


@pytest.mark.parametrize(
    "key", ["vocab_size", "context_length", "n_layers", "n_heads", "d_model", "d_ff"]
)
@pytest.mark.parametrize("size", [10**9, 10**12, 10**400])
def test_absurd_shapes_are_sentences(tmp_path, config, key, size):
    """Refused as a setting, or for the memory; at once, and without a folder."""
    with pytest.raises(SlmError) as raised:
        c = config(
            {"n_heads": 1, key: size, **({"d_model": size} if key == "n_heads" else {})}
        )
        train(c, run_dir=tmp_path / "run", verbose=False)
    counted = size == 10**9 and key != "n_layers"
    told = "this run needs" if counted else f"{key} = 1000"
    assert told in str(raised.value) and len(str(raised.value)) < 500
    assert not (tmp_path / "run").exists()
