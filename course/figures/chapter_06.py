"""Figures and experiments of chapter 6: what each part of the recipe does, and what a killed process leaves behind."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from course.plots import COLORS
from slm.checkpoint import CheckpointError, load_checkpoint
from slm.stories import ReferenceLines

SMOOTHING = 0.8


def recipe_figure(runs: Mapping[str, Sequence[float]]) -> Figure:
    """Losses of runs that differ in one part of the recipe, smoothed, with the last value beside each."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for (name, losses), color in zip(runs.items(), COLORS, strict=False):
        smooth = [losses[0]]
        for loss in losses[1:]:
            smooth.append(SMOOTHING * smooth[-1] + (1 - SMOOTHING) * loss)
        axes.plot(smooth, color=color, label=f"{name}: {sum(losses[-10:]) / 10:.2f}")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.legend(title="mean of the last ten")
    plt.close(figure)
    return figure


def loss_figure(metrics: Sequence[Mapping[str, Any]], lines: ReferenceLines) -> Figure:
    """Training and validation loss against tokens seen, with the lines that the grammar's entropies draw."""
    figure, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
    for key, color, style, label in (
        ("train/loss", COLORS[0], "-", "training"),
        ("val/loss", COLORS[1], "o", "validation"),
    ):
        rows = [row for row in metrics if key in row]
        axes.plot(
            [row["train/tokens_seen"] for row in rows],
            [row[key] for row in rows],
            style,
            color=color,
            label=label,
            markersize=5,
        )
    for name in ("uniform", "unigram", "bigram", "floor"):
        value = getattr(lines, name)
        axes.axhline(value, color=COLORS[7], linestyle=":", linewidth=1.2)
        axes.annotate(
            f"{name} {value:.2f}",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
        )
    axes.set(yscale="log", xlabel="tokens processed", ylabel="loss (nats per token)")
    axes.set_yticks([0.3, 0.5, 1, 2, 5], ["0.3", "0.5", "1", "2", "5"])
    axes.minorticks_off()
    axes.legend(loc="upper center")
    plt.close(figure)
    return figure


def _python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


SAVE_FOR_EVER = """
import sys, torch
from slm.checkpoint import save_checkpoint
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
        processes = [_python(SAVE_FOR_EVER, kind, f"{folder}/{i}.pt") for i in range(times)]
        for i, process in enumerate(processes):
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first == b"saved once\n", first.decode()
            time.sleep(chance.uniform(0.02, 0.2))
            process.kill()
            process.communicate()
            try:
                load_checkpoint(f"{folder}/{i}.pt")
            except CheckpointError:
                unreadable += 1
    return f"{kind}: killed {times} times, {unreadable} files unreadable"


TINY = """
model: {vocab_size: 1024, context_length: 64, n_layers: 2, n_heads: 2, d_model: 32, d_ff: 64, dropout: 0.1}
training: {batch_size: 2, gradient_accumulation_steps: 2, learning_rate: 3e-3, warmup_steps: 5, max_steps: 120, log_every: 5, eval_every: 40,
  eval_batches: 4, checkpoint_every: 10, sample_tokens: 8, threads: 1}
data: {dataset: stories, tokenizer: stories, packing: documents}
"""
TRAIN = """
import sys
from slm.config import load_config
from slm.trainer import train
train(load_config(sys.argv[1]), run_dir=sys.argv[2])
"""


def shot_and_resumed(shots: int = 2) -> str:
    """A small run killed at random moments and restarted, against the same run in one go."""
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        config, whole, torn = Path(folder) / "tiny.yaml", Path(folder) / "whole", Path(folder) / "torn"
        config.write_text(TINY, encoding="utf-8")
        in_one_go = _python(TRAIN, str(config), str(whole))
        steps = []
        for _ in range(shots):
            process, before = _python(TRAIN, str(config), str(torn)), _checkpoints(torn)
            while process.poll() is None and len(_checkpoints(torn) - before) < 2:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            steps.append(max(_checkpoints(torn)))
        for process in (in_one_go, _python(TRAIN, str(config), str(torn))):
            printed, _ = process.communicate()
            assert process.returncode == 0, printed.decode()
        same_weights = (whole / "model/model.safetensors").read_bytes() == (
            torn / "model/model.safetensors"
        ).read_bytes()
        curves = [
            [row.get("train/loss", row.get("val/loss")) for row in map(json.loads, (run / "metrics.jsonl").open())]
            for run in (whole, torn)
        ]
    resumed = " and ".join(step.removeprefix("step_").removesuffix(".pt").lstrip("0") for step in steps)
    return f"shot twice, resumed from steps {resumed}: weights identical {same_weights}, {len(curves[0])} rows of metrics identical {curves[0] == curves[1]}"


def _checkpoints(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").glob("step_*.pt")}
