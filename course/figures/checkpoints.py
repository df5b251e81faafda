"""Figures and experiments of the chapter on checkpoints: what a killed process leaves behind, who waits for whom."""

import multiprocessing
import pickle
import random
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from course.plots import COLORS, PAPER
from slm.training.checkpoint import save_checkpoint


def beside_training() -> Figure:
    """Two lines of work: steps that wait only for a copy, and a thread that writes it."""
    figure, axes = plt.subplots(figsize=(7, 2.2), layout="constrained")
    now = 0.0
    for step in range(12):
        axes.broken_barh([(now, 0.9)], (1.1, 0.6), color=COLORS[0])
        now += 1.0
        if step % 4 == 3:
            axes.broken_barh([(now, 0.35)], (1.1, 0.6), color=COLORS[3])
            axes.broken_barh([(now + 0.4, 2.6)], (0.2, 0.6), color=COLORS[1])
            above: dict[str, Any] = {"y": 1.8, "ha": "center", "va": "bottom"}
            axes.text(now - 2, s="four steps", color=COLORS[0], **above)
            axes.text(now + 0.2, s="copy", color=COLORS[3], **above)
            within: dict[str, Any] = {"y": 0.5, "ha": "center", "va": "center"}
            axes.text(now + 1.7, s="write", color=PAPER, **within)
            now += 0.45
    axes.set_yticks([0.5, 1.4], ["thread", "training"])
    axes.set_xticks([])
    axes.set(xlabel="time", ylim=(0, 2.2))
    axes.grid(False)
    plt.close(figure)
    return figure


def _save_for_ever(kind: str, path: str, told: Connection) -> None:
    """Save the same weights again and again; tell it once they are there."""
    state = {"weights": torch.zeros(8_000_000)}
    while True:
        if kind == "torch.save":
            torch.save(state, path)
        else:
            save_checkpoint(Path(path), state)
        told.send("saved") if not told.closed else None
        told.close()


def killed_while_saving(kind: str, times: int = 5) -> str:
    """Kill a process that saves over and over with SIGKILL, `times` times; how often the file was unreadable after."""
    chance, unreadable = random.Random(0), 0
    forks = multiprocessing.get_context("forkserver")  # PyTorch is imported once
    forks.set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory() as folder:
        for i in range(times):
            path, (told, tell) = f"{folder}/{i}.pt", forks.Pipe(duplex=False)
            process = forks.Process(target=_save_for_ever, args=(kind, path, tell))
            process.start()
            tell.close()
            told.recv()
            time.sleep(chance.uniform(0.02, 0.2))
            process.kill()
            process.join()
            try:
                torch.load(path, weights_only=True)
            except (RuntimeError, EOFError, pickle.UnpicklingError):
                unreadable += 1
    return f"{kind}: killed {times} times, {unreadable} files unreadable"
