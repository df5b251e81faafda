"""The benchmarks keep running, and their helpers count right. The figures themselves are not tests: machines are noisy."""

import importlib.util
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

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
    "cost_prediction.py": ["--tiny"],
    "trainer_overhead.py": ["--rounds", "1", "--steps", "2"],
    "shakespeare.py": ["README.md", "--seconds", "1", "--iterations", "2"],
    "checkpoint.py": ["--rounds", "1", "--layers", "1", "--width", "64"],
    "loader.py": ["--megabytes", "1", "--rounds", "1", "--batches", "10"],
    "prepare_tokens.py": ["--megabytes", "0.5", "--rounds", "1", "--kinds", "jsonl"],
    "train_bpe.py": ["--megabytes", "0.02", "--vocab", "300", "--rounds", "1"],
    "gpu.py": ["--tiny"],
    "growth.py": ["--tiny"],
}
ROWS = {
    "cost_prediction.py": ["| H200 | slm | 8 |", "| 64 | 173,824 |"],
    "loader.py": ["| 1 | list |", "| 1 | map, per row |", "| 1 | slm |"],
    "prepare_tokens.py": ["| encode_ordinary_batch |", "| .jsonl |"],
    "train_bpe.py": ["| recounting |"],
    "growth.py": ["| metrics, steps | kB |", "| yes |", "- writing: all weights"],
    "gpu.py": [
        "| graphs of ours and of the plain GPT together | 3 |",
        "| weights after the kill are the same bytes | 1 |",
        "| and all losses | 1 |",
        "NCCL is not used between them",
    ],
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
        if script != "gpu.py":  # whose processes end in different ways
            fresh = SimpleNamespace(run=once)
            monkeypatch.setattr(module, "subprocess", fresh, False)
        return module

    return load


@pytest.mark.parametrize("script", TINY)
def test_each_benchmark_runs(script, benchmark, monkeypatch, capsys, gpt2_cache):
    known = script not in ROWS or script == "cost_prediction.py"
    one = ["--threads", "1"] if known else []  # the others know no other
    monkeypatch.setattr(sys, "argv", [script, *one, *TINY[script]])
    benchmark(script).main()
    printed = capsys.readouterr().out
    assert printed.count("|---|") >= 1
    for row in ROWS.get(script, []):
        assert row in printed, row
    # the bars of the first are for 30 and 240 seconds, and of the second for a GPU
    if script not in ("shakespeare.py", "gpu.py", "growth.py"):
        assert "met " in printed or "MISSED" in printed


def test_a_held_out_card_is_not_asked(benchmark):
    """Steps of the held-out card change nothing of its fit; those of any other card that counts do."""
    script = benchmark("cost_prediction.py")

    def slower(gpu):
        return [
            step._replace(milliseconds=2 * step.milliseconds)
            if script.chip(step) == gpu
            else step
            for step in script.STEPS
        ]

    for card in ("H200", "A100", "H100"):
        fit = script.without(card, script.STEPS)
        assert script.without(card, slower(card)) == fit
    assert script.without("H100", slower("H200")) != script.without(
        "H100", script.STEPS
    )
    assert script.without("H200", slower("A100")) != script.without(
        "H200", script.STEPS
    )


def test_on_a_gpu_a_part_that_fails_costs_no_other(benchmark, monkeypatch, tmp_path):
    """And what the minutes do not hold is told; the table is there after each part."""
    gpu = benchmark("gpu.py")

    def fails(report):
        report.bar("speed", 0.5, 1.0)
        raise RuntimeError("no kernel")

    def works(report):
        report.bar("speed", 2.0, 1.0)

    scale = replace(gpu.TINY, device=torch.device("cuda"))
    parts = {"long": (1000, works), "broken": (1, fails), "sound": (1, works)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    clock = SimpleNamespace(perf_counter=lambda: 0.0)
    monkeypatch.setattr(gpu, "time", clock)
    monkeypatch.setattr(gpu, "FULL", scale)
    monkeypatch.setattr(gpu, "empty", lambda scale: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        gpu.main()
    written = Path(tmp_path, "gpu-H200.md").read_text()
    for row in (
        "| long | all of it |  |  | not measured: 420 s left of 1000 |",
        "| broken | speed | 0.50 | at least 1.00 | MISSED |",
        "| broken | the rest | RuntimeError: no kernel |  | FAILED |",
        "| sound | speed | 2.00 | at least 1.00 | met |",
    ):
        assert row in written, written


def test_a_line_tells_its_parts_and_how_far_the_costs_lie_from_it(benchmark):
    line = benchmark("growth.py").line
    assert line([1, 2, 3], [5.0, 7.0, 9.0]) == pytest.approx((3.0, 2.0, 0.0))
    assert line([1, 2, 4], [1.0, 4.0, 16.0])[2] > 0.05
    assert line([1, 2, 3], [0.0, 0.0, 0.0]) == (0.0, 0.0, 0.0)
