"""Figures and experiments of chapter 6: what each part of the recipe does, and what a killed process leaves behind."""

import html
import itertools
import json
import os
import pickle
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
import torch
import torch.nn.functional as F
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from course.plots import COLORS
from slm import stories
from slm.gpt import GPT
from slm.stories import ReferenceLines
from slm.tokenizer import Tokenizer
from slm.trainer import read_metrics


def recipe_figure(runs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Losses of runs that differ in one part of the recipe, smoothed; at the end, and the largest gradient norm."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for (name, (losses, norms)), color in zip(runs.items(), COLORS, strict=False):
        axes.plot(_smooth(losses, 0.8), color=color, label=f"{name}: {sum(losses[-10:]) / 10:.2f} ({max(norms):.1f})")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.legend(title="mean of the last ten (largest norm)")
    plt.close(figure)
    return figure


def staircase_figure(
    stairs: Mapping[str, Sequence[tuple[float, float]]], metrics: Sequence[Mapping[str, Any]], lines: ReferenceLines
) -> Figure:
    """Loss against seconds: smaller models, the full one, its validation losses, and the grammar's computed lines."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    full = [(row["seconds"], row["train/loss"]) for row in metrics if "train/loss" in row]
    whole = f"one layer, {metrics[-1]['step']:,} steps"
    for (name, points), color in zip({**stairs, whole: full}.items(), COLORS, strict=False):
        seconds, losses = zip(*points, strict=True)
        end = sum(losses[-5:]) / 5  # of fifty steps
        axes.plot(seconds, _smooth(losses, 0.5), color=color, label=f"{name}: {end:.2f}")
    held_out = [(row["seconds"], row["val/loss"]) for row in metrics if "val/loss" in row]
    axes.plot(*zip(*held_out, strict=True), "o", color=COLORS[len(stairs)], markersize=4.5, label="on validation text")
    _reference_lines(axes, lines)
    axes.set(xscale="log", yscale="log", xlabel="seconds of training", ylabel="loss (nats per token)")
    axes.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    axes.set_yticks([0.3, 0.5, 1, 2, 5], ["0.3", "0.5", "1", "2", "5"])
    axes.minorticks_off()
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.62), title="loss at the end", fontsize=8.5)
    plt.close(figure)
    return figure


def _smooth(losses: Sequence[float], smoothing: float) -> list[float]:
    return list(itertools.accumulate(losses, lambda mean, loss: smoothing * mean + (1 - smoothing) * loss))


def _reference_lines(axes: Axes, lines: ReferenceLines) -> None:
    for name in ("unigram", "bigram", "floor"):
        value = getattr(lines, name)
        axes.axhline(value, color=COLORS[7], linestyle=":", linewidth=1.2)
        axes.annotate(
            f"{name} {value:.2f}",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, -11 if name == "floor" else 3),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
        )


SMALLER = """
import json, sys, time, torch
from torch import nn
from slm.config import load_config
from slm.data import create_dataloader
from slm.gpt import GPT
from slm.tokenizer import get_tokenizer
from slm.trainer import Trainer

class Nothing(nn.Module):
    def forward(self, x, cache=None):
        return torch.zeros_like(x)

def train(name, steps, of, layers, attention=True, positions=True):
    config = load_config("configs/stories_cpu.yaml", [f"training.max_steps={of}", f"model.n_layers={layers}"])
    loader = create_dataloader("stories", batch_size=config.training.batch_size, context_length=128, packing="documents",
                               tokenizer=get_tokenizer("stories"), seed=config.training.seed)
    torch.manual_seed(config.training.seed)
    model = GPT(config.model)
    for block in model.blocks:
        block.attention = block.attention if attention else Nothing()
    model.position_embedding.weight.data.mul_(positions)
    model.position_embedding.weight.requires_grad_(positions)
    trainer, batches, points = Trainer(model, loader, None, config, device="cpu", verbose=False), iter(loader), []
    start = time.perf_counter()
    while trainer.step < steps:
        trainer.update(batches)
        if trainer.step % 10 == 0:
            points.append((time.perf_counter() - start, torch.stack(trainer._pending)[:, 0].mean().item()))
            trainer._pending.clear()
    if name:
        print(json.dumps([name, points]), flush=True)
    return model

torch.set_num_threads(1)
full = load_config("configs/stories_cpu.yaml")
torch.save(train("", int(sys.argv[2]), full.training.max_steps, full.model.n_layers).state_dict(), sys.argv[1])
train("neither attention nor positions", 700, 700, 1, attention=False, positions=False)
train("no attention", 700, 700, 1, attention=False)
train("one layer, 800 steps", 800, 800, 1)
train("two layers, 800 steps", 800, 800, 2)
"""


class SmallerModels:
    """Models with less than the full one has, trained by a second process on a second core.

    Args:
        steps: Steps after which the full model's beginning is kept as `early`.
    """

    def __init__(self, steps: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._early = Path(self._folder.name) / "early.pt"
        self._process = _python(SMALLER, str(self._early), str(steps))

    def wait(self, like: GPT) -> tuple[dict[str, list[tuple[float, float]]], GPT]:
        """Each smaller model's (seconds, loss), and the full model, shaped `like` this one, after its first steps."""
        printed, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(printed.decode())
        early = GPT(like.config)
        early.load_state_dict(torch.load(self._early, weights_only=True))
        self._folder.cleanup()
        return dict(json.loads(line) for line in printed.decode().splitlines()), early.eval()


@torch.no_grad()
def token_surprisals(model: GPT, tokenizer: Tokenizer, text: str) -> tuple[list[str], list[float], list[float]]:
    """A story's tokens, and for each how surprised the model is and how surprised one has to be, in nats."""
    ids = [tokenizer.eot_token, *tokenizer.encode(text)]
    logits = model(torch.tensor([ids[:-1]]))[0]  # (T, V)
    found = F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").tolist()  # (T,)
    pieces = [tokenizer.decode([token]) for token in ids[1:]]
    characters = iter(stories.surprisal(text))
    true = [sum(itertools.islice(characters, len(piece))) for piece in pieces]
    return pieces, found, true


def excess_strip(models: Mapping[str, GPT], tokenizer: Tokenizer, text: str) -> HTML:
    """A story once per model, each token coloured by how far the model's surprisal is above the true one."""
    rows = []
    for name, model in models.items():
        pieces, found, true = token_surprisals(model, tokenizer, text)
        spans = "".join(
            f'<span title="model {f:.2f}, true {t:.2f} nats" '
            f'style="background:rgba(239,68,68,{min(0.85, max(0.0, f - t) / 4):.3f})">{html.escape(piece)}</span>'
            for piece, f, t in zip(pieces, found, true, strict=True)
        )
        excess = sum(found) - sum(true)
        rows.append(
            f'<p style="margin:.4em 0 1em"><b>{html.escape(name)}</b>: {sum(found):.0f} nats where {sum(true):.0f} are '
            f"needed, {excess / len(pieces):+.2f} per token<br>{spans}</p>"
        )
    return HTML(f'<div style="line-height:1.9">{"".join(rows)}</div>')


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
                torch.load(f"{folder}/{i}.pt", weights_only=True)
            except (RuntimeError, EOFError, pickle.UnpicklingError):
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


def shot_and_resumed(shots: int = 2) -> None:
    """Print what happens to a small run that is killed at random moments and started again, and compare it.

    Beside it the same run goes in one go; at the end weights and metrics of both are held against each other.
    """
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        config, whole, torn = Path(folder) / "tiny.yaml", Path(folder) / "whole", Path(folder) / "torn"
        config.write_text(TINY, encoding="utf-8")
        in_one_go = _python(TRAIN, str(config), str(whole))
        for _ in range(shots):
            process, before = _python(TRAIN, str(config), str(torn)), _checkpoints(torn)
            while process.poll() is None and len(_checkpoints(torn) - before) < 2:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
            printed, _ = process.communicate()
            _tell(printed)
            print(f"    killed: exit code {process.returncode}; on disk are {', '.join(sorted(_checkpoints(torn)))}")
        last = _python(TRAIN, str(config), str(torn))
        for process in (last, in_one_go):
            printed, _ = process.communicate()
            assert process.returncode == 0, printed.decode()
            if process is last:
                _tell(printed)
        weights = [(run / "model/model.safetensors").read_bytes() for run in (whole, torn)]
        curves = [
            [row[key] for row in read_metrics(run) for key in ("train/loss", "val/loss") if key in row]
            for run in (whole, torn)
        ]
    print(f"weights identical: {weights[0] == weights[1]}; {len(curves[0])} losses identical: {curves[0] == curves[1]}")


def _tell(printed: bytes) -> None:
    """Print what a training process said about where it starts and how it ends."""
    for line in printed.decode().splitlines():
        if line.startswith(("starting", "continuing", "going on")) or line.endswith("is finished"):
            words = [Path(word).name if "/" in word else word for word in line.split()]
            print(" ".join(words))


def _checkpoints(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").glob("step_*.pt")}
