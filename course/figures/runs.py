"""Figures and experiments of the chapter on runs: what a kill costs, and that it costs nothing else."""

import contextlib
import multiprocessing
import random
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from tqdm import tqdm

from course.plots import COLORS, INK, name_points
from slm.errors import SlmError
from slm.training.config import load_config
from slm.training.folder import RunFolder, list_checkpoints, read_metrics
from slm.training.run import only_process, train


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


def _start(work: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a process that does this; what all of them import is imported once."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([__name__, "torch._dynamo"])
    process = forks.Process(target=work, args=arguments)
    process.start()
    return process


def _hold(folder: Path, told: Connection) -> None:
    with only_process(folder):
        told.send("holds the lock")
        time.sleep(600)


def locked_by_another() -> None:
    """Print what a folder says while another process trains there, and after that was killed."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "run"
        told, tell = multiprocessing.Pipe(duplex=False)
        other = _start(_hold, folder, tell)
        print("another process", told.recv())
        try:
            with only_process(folder):
                print("here too")
        except SlmError as error:
            print(str(error).replace(f"{home}/", ""))
        other.kill()
        other.join()
        with only_process(folder):
            print("it was killed; now the lock is held here")


TINY = """
model: {vocab_size: 1024, context_length: 64, n_layers: 2, n_heads: 2, d_model: 32, d_ff: 64, dropout: 0.1}
training: {batch_size: 2, gradient_accumulation_steps: 2, learning_rate: 3e-3, warmup_steps: 5, max_steps: 120, log_every: 5, eval_every: 40,
  eval_batches: 4, checkpoint_every: 10, sample_tokens: 8, threads: 1}
data: {dataset: stories, tokenizer: stories, packing: documents}
"""


def _train(config: Path, run: Path, printed: Path) -> None:
    """Train; what is printed goes to a file."""
    tqdm.set_lock(threading.RLock())  # no semaphore is left when it is killed
    with printed.open("w", buffering=1, encoding="utf-8") as file:
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            train(load_config(config), run_dir=run)


def shot_and_resumed(shots: int = 2) -> None:
    """Print what happens to a small run that is killed at random moments and started again, and compare it.

    Beside it the same run goes in one go; at the end weights and metrics of both are held against each other.
    """
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as home:
        config = Path(home) / "tiny.yaml"
        whole, torn = Path(home) / "whole", Path(home) / "torn"
        config.write_text(TINY, encoding="utf-8")
        said = [Path(home) / f"printed_{i}.txt" for i in range(shots + 2)]
        in_one_go = _start(_train, config, whole, said[-1])
        for i in range(shots):
            before, process = _saved(torn), _start(_train, config, torn, said[i])
            while process.is_alive() and len(_saved(torn) - before) < 2:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.2))
            process.kill()
            process.join()
            _tell(said[i])
            there = ", ".join(sorted(_saved(torn)))
            print(f"    killed: exit code {process.exitcode}; on disk are {there}")
        last = _start(_train, config, torn, said[shots])
        for process in (last, in_one_go):
            process.join()
            assert process.exitcode == 0
        _tell(said[shots])
        files = [RunFolder(run).model / "model.safetensors" for run in (whole, torn)]
        weights = [file.read_bytes() for file in files]
        curves = [_losses(run) for run in (whole, torn)]
    same = weights[0] == weights[1], curves[0] == curves[1]
    print(f"{len(weights[0]):,} bytes of weights, all equal: {same[0]}")
    print(f"{len(curves[0])} losses, all equal to the last digit: {same[1]}")


def _losses(run: Path) -> list[float]:
    keys = ("train/loss", "val/loss")
    return [row[key] for row in read_metrics(run) for key in keys if key in row]


def _tell(printed: Path) -> None:
    """Print what a training process said about where it starts and how it ends."""
    beginnings = ("starting", "continuing", "going on")
    for line in printed.read_text(encoding="utf-8").splitlines():
        if line.startswith(beginnings) or line.endswith("is finished"):
            words = [Path(word).name if "/" in word else word for word in line.split()]
            print(" ".join(words))


def _saved(run: Path) -> set[str]:
    return {path.name for path in list_checkpoints(RunFolder(run).checkpoints)}
