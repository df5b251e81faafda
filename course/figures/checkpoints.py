"""Figures and experiments of the chapter on checkpoints: what a killed process leaves behind, who waits for whom."""

import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from course.plots import COLORS, PAPER


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


def _python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


SAVE_FOR_EVER = """
import sys, torch
from slm.training.checkpoint import save_checkpoint
state = {"weights": torch.zeros(8_000_000)}
save = (lambda path: torch.save(state, path)) if sys.argv[1] == "torch.save" else (lambda path: save_checkpoint(path, state))
save(sys.argv[2])
print("saved once", flush=True)
while True:
    save(sys.argv[2])
"""


def killed_while_saving(kind: str, times: int = 5) -> str:
    """Kill a process that saves over and over with SIGKILL, `times` times; how often the file was unreadable after."""
    chance, unreadable = random.Random(0), 0
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            _python(SAVE_FOR_EVER, kind, f"{folder}/{i}.pt") for i in range(times)
        ]
        for i, process in enumerate(processes):
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first == b"saved once\n", first.decode()
            time.sleep(chance.uniform(0.02, 0.2))
            process.kill()
            process.communicate()
            try:
                torch.load(f"{folder}/{i}.pt", weights_only=True)
            except (RuntimeError, EOFError, pickle.UnpicklingError):
                unreadable += 1
    return f"{kind}: killed {times} times, {unreadable} files unreadable"
