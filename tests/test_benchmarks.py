"""The benchmarks keep running, and their helpers count right. The figures themselves are not tests: machines are noisy."""

import importlib.util
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(
    path.name for path in (ROOT / "benchmarks").glob("*.py") if path.name != "timing.py"
)
sys.path.insert(0, str(ROOT / "benchmarks"))
timing = __import__("timing")

TINY = {
    "training_step.py": [
        "--rounds",
        "1",
        "--steps",
        "1",
        "--layers",
        "1",
        "--only",
        "float32",
    ],
    "generation.py": ["--rounds", "1", "--tokens", "2"],
    "trainer_overhead.py": ["--rounds", "1", "--steps", "2"],
    "shakespeare.py": ["README.md", "--seconds", "1", "--iterations", "2"],
    "checkpoint.py": ["--rounds", "1", "--layers", "1", "--width", "64"],
    "loader.py": ["--megabytes", "1", "--rounds", "1", "--batches", "10"],
    "prepare_tokens.py": ["--megabytes", "0.5", "--rounds", "1", "--kinds", "jsonl"],
    "train_bpe.py": ["--megabytes", "0.02", "--vocab", "300", "--rounds", "1"],
}
ROWS = {
    "loader.py": ["| 1 | list |", "| 1 | map, per row |", "| 1 | slm |"],
    "prepare_tokens.py": ["| encode_ordinary_batch |", "| .jsonl |"],
    "train_bpe.py": ["| recounting |"],
}


def test_contenders_take_turns_and_each_round_starts_with_another(monkeypatch):
    calls = []
    run = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = timing.interleave(run, rounds=3, warmup=1)
    assert [len(times) for times in seconds.values()] == [3, 3, 3]
    assert calls[3:] == list("abcbcacab")


def test_the_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_the_medians():
    assert (
        timing.ratio(
            {"slow": [2.0, 30.0, 9.0], "fast": [1.0, 10.0, 3.0]}, "slow", "fast"
        )
        == 3.0
    )


def test_seconds_are_those_of_the_call(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    assert timing.interleave({"one": lambda: next(clock)}, rounds=2, warmup=0) == {
        "one": [2.0, 2.0]
    }


@pytest.mark.parametrize(
    ("reached", "at_most", "word"),
    [
        (2, False, "met"),
        (0.5, False, "MISSED"),
        (0.5, True, "met"),
        (2, True, "MISSED"),
    ],
)
def test_a_bar_says_whether_it_was_met(reached, at_most, word):
    assert timing.bar("x", reached, 1.0, at_most).split()[0] == word


def test_processor_seconds_are_counted_where_they_are_asked_for(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(timing.time, "process_time", lambda: float(next(clock)))
    run = {"one": lambda: next(clock)}
    seconds = timing.interleave(run, rounds=1, warmup=0, of_processor=True)
    assert seconds == {"one": [2.0]}


@pytest.mark.parametrize("fast", ["float32", "bfloat16"])
def test_a_row_that_this_cpu_cannot_answer_is_neither_met_nor_missed(
    benchmark, monkeypatch, capsys, fast
):
    step = benchmark("training_step.py")
    monkeypatch.setattr(step, "choose_dtype", lambda device: step.DTYPES[fast])
    monkeypatch.setattr(step, "peaks", lambda names, *rest: dict.fromkeys(names, 1.0))
    monkeypatch.setattr(
        step, "interleave", lambda run, *_, **options: dict.fromkeys(run, [1.0])
    )
    monkeypatch.setattr(sys, "argv", ["training_step.py", "--only", "bfloat16"])
    step.main()
    lines = capsys.readouterr().out.splitlines()
    unmeasured = [line for line in lines if line.startswith("not measured")]
    judged = [line for line in lines if line.startswith(("met", "MISSED"))]
    assert (len(unmeasured), len(judged)) == ((2, 0) if fast == "float32" else (0, 5))


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_benchmark_says_what_it_measures_and_how_to_run_it(script):
    text = (ROOT / "benchmarks" / script).read_text(encoding="utf-8")
    assert f"python benchmarks/{script}" in text.split('"""')[1]
    assert text.endswith('\n\n\nif __name__ == "__main__":\n    main()\n')


@pytest.fixture
def benchmark(monkeypatch):
    """A benchmark as a module, and smaller where no option makes it so; in this process, which has loaded PyTorch.

    Of the fresh processes that it asks for only the first is started, and answers for the others.
    """
    started = []

    def once(command, **options):
        if not started:
            started.append(subprocess.run(command, **options))
        return started[0]

    def load(script):
        spec = importlib.util.spec_from_file_location(
            f"benchmark_{Path(script).stem}", ROOT / "benchmarks" / script
        )
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        if script == "shakespeare.py":
            small = {"width": 24, "batch": 2}
            monkeypatch.setattr(module, "SHORT", replace(module.SHORT, **small))
        if script == "training_step.py":
            monkeypatch.setattr(module, "D", 48)
            monkeypatch.setattr(module, "T", 16)
        monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=once), False)
        return module

    return load


@pytest.mark.parametrize("script", TINY)
def test_each_benchmark_runs(script, benchmark, monkeypatch, capsys, gpt2_cache):
    one = ["--threads", "1"] if script not in ROWS else []  # these know no other
    monkeypatch.setattr(sys, "argv", [script, *one, *TINY[script]])
    benchmark(script).main()
    printed = capsys.readouterr().out
    assert printed.count("|---|") >= 1
    assert all(row in printed for row in ROWS.get(script, []))
    if script != "shakespeare.py":  # its bars are for 30 and 240 seconds
        assert "met " in printed or "MISSED" in printed
