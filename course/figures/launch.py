"""Figures of the last chapter: from the command to the first step, and the loss of a run."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from course import ROOT
from course.plots import COLORS, INK, WIDTH, name_points
from slm.training.folder import read_metrics

LANES = ("your computer", "Modal", "container")

CLOCK = """
import json, time
begin, laps = time.perf_counter(), []
def lap(label):
    global begin
    laps.append((label, time.perf_counter() - begin))
    begin = time.perf_counter()
"""

CLIENT = """
import modal_app
lap("read modal_app.py")
from slm.training.config import load_config
config = load_config("configs/stories_cpu.yaml")
lap("check the config")
from slm.cloud.price import check
check(config)
lap("work out the cost")
print(json.dumps(laps))
"""

CONTAINER = """
import torch
torch.set_num_threads(1)
from slm.training import run
lap("import torch and slm")
from slm.training.config import load_config
from slm.data.dataset import create_dataloader
from slm.model.gpt import GPT
config = load_config("configs/stories_cpu.yaml")
data = config.data
loader = create_dataloader(data.dataset, None, data.train_split, config.training.batch_size,
    config.model.context_length, tokenizer=data.tokenizer, packing=data.packing, cache_dir=data.cache_dir)
x, y = loader.batch(0)
lap("open the tokens")
model = GPT(config.model)
optimizer = torch.optim.AdamW(model.parameters())
lap("build model, optimizer")
model.loss(x, y).backward()
optimizer.step()
lap("first step")
print(json.dumps(laps))
"""


def measure() -> dict[str, list[tuple[str, float]]]:
    """Seconds of each thing that happens on the reader's computer and in the container, each in a fresh process here."""
    laps = {}
    for lane, script in ((LANES[0], CLIENT), (LANES[2], CONTAINER)):
        done = subprocess.run(
            [sys.executable, "-c", CLOCK + script],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        laps[lane] = [
            (label, seconds)
            for label, seconds in json.loads(done.stdout.splitlines()[-1])
        ]
    return laps


def timeline(laps: dict[str, list[tuple[str, float]]]) -> Figure:
    """Who works when between the command and the first step; what was not measured is dotted and has no length."""
    described = (
        ("build the", "image, once"),
        ("upload", "slm"),
        ("find a", "free GPU"),
        ("start the", "container"),
    )
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4), layout="constrained")
    client, container = laps[LANES[0]], laps[LANES[2]]
    total = sum(seconds for _, seconds in client + container)
    box = 0.38 * total  # as wide as its label, whatever it takes
    at = _measured(axes, client, 2, 0.0, COLORS[0])
    axes.text(at + 0.03 * total, 2, _told(client), va="center", color=COLORS[0])
    for label in described:
        axes.broken_barh(
            [(at, box)], (0.65, 0.7), facecolor="none", edgecolor=INK, linestyle=":"
        )
        for line, y in zip(label, (1.12, 0.88), strict=True):
            axes.text(at + box / 2, y, line, ha="center", va="center")
        at += box
    paid, clock = COLORS[4], "the GPU's clock starts"
    axes.vlines(at - box, -0.5, 2.4, linestyle=":", linewidth=1.2, color=paid)
    axes.text(at - box, 2.45, clock, ha="center", va="bottom", color=paid)
    axes.text(
        at - box - 0.04 * total,
        0,
        _told(container),
        ha="right",
        va="center",
        multialignment="left",
        color=COLORS[2],
    )
    at = _measured(axes, container, 0, at, COLORS[2])
    axes.set(
        yticks=[2, 1, 0],
        yticklabels=LANES,
        xticks=[],
        xlim=(0, at * 1.02),
        ylim=(-0.6, 2.8),
    )
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("filled: measured here, to scale; dotted: described, not measured")
    plt.close(figure)
    return figure


def _measured(
    axes: plt.Axes, laps: list[tuple[str, float]], lane: int, at: float, color: str
) -> float:
    """Draw one lane's measured bars from `at` on; returns where they end."""
    for number, (_, seconds) in enumerate(laps):
        axes.broken_barh(
            [(at, seconds)], (lane - 0.3, 0.6), facecolor=color, alpha=1 - 0.2 * number
        )
        at += seconds
    return at


def _told(laps: list[tuple[str, float]]) -> str:
    return "\n".join(f"{label}: {1000 * seconds:,.0f} ms" for label, seconds in laps)


def loss_curve(folder: str | Path) -> Figure:
    """Training and validation loss of a run folder against its steps, as far as they are there."""
    rows = read_metrics(folder)
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.margins(y=0.12)
    ends = []
    for key, color in (("train/loss", COLORS[0]), ("val/loss", COLORS[1])):
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", markersize=3, color=color)
            ends.append((*points[-1], f"{key}: {points[-1][1]:.2f}", color))
    name_points(axes, ends)
    plt.close(figure)
    return figure
