"""Figures and experiments of the chapter on runs: what a kill costs, and that it costs nothing else."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from course.plots import COLORS, INK, name_points
from slm.errors import SlmError
from slm.training.folder import RunFolder, list_checkpoints, read_metrics
from slm.training.run import only_process


def killed_twice() -> Figure:
    """Steps of a run against time: two kills, and what is done again after each."""
    every, kills, end = 20, (33, 71), 100
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    now, step, reached = 0, 0, 0
    for target in (*kills, end):
        again = now + reached - step  # when it is where it was before
        if reached:
            axes.plot([now, again], [step, reached], color=COLORS[1], linewidth=4)
        axes.plot([again, now + target - step], [reached, target], color=COLORS[0])
        kept = target - target % every
        for saved in range(step + every, kept + 1, every):
            axes.plot(now + saved - step, saved, "o", color=COLORS[0], markersize=6)
        now, reached = now + target - step, target
        if target != end:
            axes.plot(now, target, "x", color=COLORS[4], markersize=9, mew=2)
            axes.plot([now, now + 6], [kept, kept], ":", color=INK)
            now, step = now + 6, kept
    names = [
        (kills[0], kills[0], "killed", COLORS[4]),
        (kills[0] + 16, every + 10, "done again", COLORS[1]),
    ]
    name_points(axes, names, away=11)
    axes.annotate(
        "checkpoint",
        (every, every),
        (-8, 3),
        textcoords="offset points",
        ha="right",
        color=COLORS[0],
    )
    axes.set(xlabel="time", ylabel="step")
    axes.set_xticks([])
    plt.close(figure)
    return figure


def _python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    quiet = {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **quiet},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


HOLD = """
import sys, time
from pathlib import Path
from slm.training.run import only_process
with only_process(Path(sys.argv[1])):
    print("holds the lock", flush=True)
    time.sleep(600)
"""


def locked_by_another() -> None:
    """Print what a folder says while another process trains there, and after that was killed."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "run"
        other = _python(HOLD, str(folder))
        assert other.stdout is not None
        print("another process", other.stdout.readline().decode().strip())
        try:
            with only_process(folder):
                print("here too")
        except SlmError as error:
            print(str(error).replace(f"{home}/", ""))
        other.kill()
        other.communicate()
        with only_process(folder):
            print("it was killed; now the lock is held here")


TINY = """
model: {vocab_size: 1024, context_length: 64, n_layers: 2, n_heads: 2, d_model: 32, d_ff: 64, dropout: 0.1}
training: {batch_size: 2, gradient_accumulation_steps: 2, learning_rate: 3e-3, warmup_steps: 5, max_steps: 120, log_every: 5, eval_every: 40,
  eval_batches: 4, checkpoint_every: 10, sample_tokens: 8, threads: 1}
data: {dataset: stories, tokenizer: stories, packing: documents}
"""
TRAIN = """
import sys
from slm.training.config import load_config
from slm.training.run import train
train(load_config(sys.argv[1]), run_dir=sys.argv[2])
"""


def shot_and_resumed(shots: int = 2) -> None:
    """Print what happens to a small run that is killed at random moments and started again, and compare it.

    Beside it the same run goes in one go; at the end weights and metrics of both are held against each other.
    """
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as home:
        config = Path(home) / "tiny.yaml"
        whole, torn = Path(home) / "whole", Path(home) / "torn"
        config.write_text(TINY, encoding="utf-8")
        in_one_go = _python(TRAIN, str(config), str(whole))
        for _ in range(shots):
            process, before = _python(TRAIN, str(config), str(torn)), _saved(torn)
            while process.poll() is None and len(_saved(torn) - before) < 2:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
            printed, _ = process.communicate()
            _tell(printed)
            there = ", ".join(sorted(_saved(torn)))
            print(f"    killed: exit code {process.returncode}; on disk are {there}")
        last = _python(TRAIN, str(config), str(torn))
        for process in (last, in_one_go):
            printed, _ = process.communicate()
            assert process.returncode == 0, printed.decode()
            if process is last:
                _tell(printed)
        files = [RunFolder(run).model / "model.safetensors" for run in (whole, torn)]
        weights = [file.read_bytes() for file in files]
        curves = [_losses(run) for run in (whole, torn)]
    same = weights[0] == weights[1], curves[0] == curves[1]
    print(f"weights identical: {same[0]}; {len(curves[0])} losses identical: {same[1]}")


def _losses(run: Path) -> list[float]:
    keys = ("train/loss", "val/loss")
    return [row[key] for row in read_metrics(run) for key in keys if key in row]


def _tell(printed: bytes) -> None:
    """Print what a training process said about where it starts and how it ends."""
    beginnings = ("starting", "continuing", "going on")
    for line in printed.decode().splitlines():
        if line.startswith(beginnings) or line.endswith("is finished"):
            words = [Path(word).name if "/" in word else word for word in line.split()]
            print(" ".join(words))


def _saved(run: Path) -> set[str]:
    return {path.name for path in list_checkpoints(RunFolder(run).checkpoints)}
