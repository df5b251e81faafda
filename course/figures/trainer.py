"""Figures and experiments of the chapter on the trainer: what each part of the recipe does, and what it learns."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course.figures.sheet import ADVANCE, sheet
from course.plots import COLORS, INK, PAPER, SMALL, TINT, WIDTH, name_points
from slm.data import floor
from slm.data.corpus import StorySource
from slm.data.floor import ReferenceLines
from slm.data.stories import STORIES
from slm.data.tokenizer import Tokenizer
from slm.model.gpt import GPT


def step_figure() -> Figure:
    """One step as a chain of boxes: parts that add up, then one move."""
    upper = ["batch", "parts", "loss ×\nshare", "backward"]
    lower = ["clip", "optimizer", "clear"]
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    places = {name: (2.0 * n, 1.5) for n, name in enumerate(upper)}
    places |= {name: (6.0 - 2.0 * n, 0.0) for n, name in enumerate(lower)}
    places["schedule"] = (4.0, -1.3)
    boxes = {}
    for n, (name, (x, y)) in enumerate(places.items()):
        edge = COLORS[0] if n < len(upper) else COLORS[1]
        style = {"boxstyle": "round,pad=0.45", "facecolor": PAPER, "edgecolor": edge}
        text = axes.text(x, y, name, ha="center", va="center", fontsize=11, bbox=style)
        boxes[name] = text.get_bbox_patch()

    def arrow(start: str, end: str, bend: float = 0) -> None:
        line = {"arrowstyle": "->", "color": INK, "shrinkA": 3, "shrinkB": 3}
        line |= {"connectionstyle": f"arc3,rad={bend}"}
        line |= {"patchA": boxes[start], "patchB": boxes[end]}
        axes.annotate("", places[end], places[start], arrowprops=line)

    for start, end in (*itertools.pairwise(upper), *itertools.pairwise(lower)):
        arrow(start, end)
    arrow("backward", "clip")
    arrow("schedule", "optimizer")
    arrow("backward", "parts", bend=0.45)
    axes.text(4, 3.35, "once for each part", ha="center", va="bottom", color=COLORS[0])
    axes.text(4.9, -1.3, "once for each batch", va="center", color=COLORS[1])
    axes.set(xlim=(-0.9, 7), ylim=(-1.8, 4))
    axes.axis("off")
    plt.close(figure)
    return figure


def recipe_figure(
    runs: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> Figure:
    """Runs that differ in one part of the recipe: their losses, smoothed, and the norms of their gradients."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(WIDTH, 3.4), layout="constrained"
    )
    ends, peaks = [], []
    for (name, (losses, norms)), color in zip(runs.items(), COLORS, strict=False):
        left.plot(_smooth(losses, 0.8), color=color)
        end = sum(losses[-10:]) / 10
        ends.append((len(losses), end, f"{name}: {end:.2f}", color))
        right.plot(norms, color=color, linewidth=1)
        highest = max(norms)
        peaks.append((norms.index(highest), highest, f"up to {highest:.1f}", color))
    left.set(xlabel="step", ylabel="loss (nats per token)")
    right.set(xlabel="step", ylabel="norm of the gradient", yscale="log")
    right.yaxis.set_major_formatter("{x:g}")
    right.minorticks_off()
    name_points(left, ends)
    name_points(right, sorted(peaks, key=lambda peak: -peak[1])[:2])
    plt.close(figure)
    return figure


def staircase_figure(
    stairs: Mapping[str, Sequence[tuple[float, float]]],
    metrics: Sequence[Mapping[str, Any]],
    lines: ReferenceLines,
) -> Figure:
    """Loss against seconds: smaller models, the full one, its validation losses, and the grammar's computed lines."""
    figure, axes = plt.subplots(figsize=(WIDTH, 4.4), layout="constrained")
    full = [
        (row["seconds"], row["train/loss"]) for row in metrics if "train/loss" in row
    ]
    whole = f"two layers, {metrics[-1]['step']:,} steps"
    ends = []
    for (name, points), color in zip(
        {**stairs, whole: full}.items(), COLORS, strict=False
    ):
        seconds, losses = zip(*points, strict=True)
        end = sum(losses[-5:]) / 5  # of fifty steps
        axes.plot(seconds, _smooth(losses, 0.5), color=color)
        ends.append((seconds[-1], end, f"{name}: {end:.2f}", color))
    held_out = [
        (row["seconds"], row["val/loss"]) for row in metrics if "val/loss" in row
    ]
    axes.plot(*zip(*held_out, strict=True), "o", color=ends[-1][3], markersize=4)
    _reference_lines(axes, lines)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="seconds of training",
        ylabel="loss (nats per token)",
    )
    axes.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    axes.set_yticks([0.3, 0.5, 1, 2, 5], ["0.3", "0.5", "1", "2", "5"])
    axes.minorticks_off()
    for x, y, name, color in ends[:2]:
        axes.annotate(name, (x, y), (-4, 6), textcoords="offset points", color=color)
    low = 0.9 * lines.floor  # names stand below it, where no curve can be
    for x, y, name, color in sorted(ends[2:]):
        line = {"arrowstyle": "-", "color": color, "linewidth": 0.7, "shrinkA": 0}
        axes.annotate(
            name,
            (x, y),
            (x, low),
            ha="right",
            va="top",
            color=color,
            arrowprops=line | {"relpos": (1, 0.5)},
        )
        low *= 0.8
    axes.set_ylim(bottom=low)
    plt.close(figure)
    return figure


def _smooth(losses: Sequence[float], smoothing: float) -> list[float]:
    return list(
        itertools.accumulate(
            losses, lambda mean, loss: smoothing * mean + (1 - smoothing) * loss
        )
    )


def _reference_lines(axes: Axes, lines: ReferenceLines) -> None:
    for name in ("unigram", "bigram", "floor"):
        value = getattr(lines, name)
        axes.axhline(value, color=INK, linestyle=":", linewidth=1.2)
        right = name == "unigram"  # at the left the curves come down through it
        axes.annotate(
            f"{name} {value:.2f}",
            (right, value),
            xycoords=("axes fraction", "data"),
            xytext=(0 if right else 4, 3),
            textcoords="offset points",
            ha="right" if right else "left",
        )


SMALLER = """
import json, sys, time, torch
from torch import nn
from slm.training.config import load_config
from slm.data.dataset import create_dataloader
from slm.model.gpt import GPT
from slm.data.tokenizer import get_tokenizer
from slm.training.trainer import Trainer

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
        trainer.train_step(batches)
        if trainer.step % 10 == 0:
            points.append((time.perf_counter() - start, torch.stack(trainer.pending)[:, 0].mean().item()))
            trainer.pending.clear()
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
        return dict(
            json.loads(line) for line in printed.decode().splitlines()
        ), early.eval()


@torch.no_grad()
def token_surprisals(
    model: GPT, tokenizer: Tokenizer, text: str
) -> tuple[list[str], list[float], list[float]]:
    """A story's tokens, and for each how surprised the model is and how surprised one has to be, in nats."""
    ids = [tokenizer.eot_token, *tokenizer.encode(text)]
    logits = model(torch.tensor([ids[:-1]]))[0]  # (T, V)
    found = F.cross_entropy(
        logits, torch.tensor(ids[1:]), reduction="none"
    ).tolist()  # (T,)
    pieces = [tokenizer.decode([token]) for token in ids[1:]]
    characters = iter(floor.surprisal(text))
    true = [sum(itertools.islice(characters, len(piece))) for piece in pieces]
    return pieces, found, true


def excess_strip(
    models: Mapping[str, GPT], tokenizer: Tokenizer, text: str, told: float = 1.0
) -> Figure:
    """A story once per model, each token tinted by how far the model's surprisal is above the true one.

    Below a token stands by how many nats, if they are more than `told`.
    """
    told_of = [
        (name, *token_surprisals(model, tokenizer, text))
        for name, model in models.items()
    ]
    places = _set_in_lines(told_of[0][1])
    line, gap = 27.0, 22.0
    block = gap + line * (places[-1][1] + 1)
    figure, axes = sheet(WIDTH * 72 - 8, len(told_of) * (block + gap) - gap)
    top = 0.0
    for name, pieces, found, true in told_of:
        excess = [f - t for f, t in zip(found, true, strict=True)]
        needed = f"{sum(found):.0f} nats where {sum(true):.0f} are needed"
        mean = f"{sum(excess) / len(pieces):+.2f} per token"
        axes.text(0, top + 7, f"{name}: {needed}, {mean}", va="center", weight="bold")
        for (column, row, shown), over in zip(places, excess, strict=True):
            x, y = 10 * ADVANCE * column, top + gap + line * row
            width, share = 10 * ADVANCE * len(shown), min(1, max(0, over) / 3)
            field = Rectangle((x, y), width, 14, color=COLORS[4], alpha=TINT * share)
            axes.add_patch(field)
            axes.text(x + width / 2, y + 10.5, shown, ha="center", family="monospace")
            if over > told:
                looks: dict[str, Any] = {"color": COLORS[4], "fontsize": SMALL}
                axes.text(x + width / 2, y + 23, f"{over:.1f}", ha="center", **looks)
        top += block + gap
    return figure


@torch.no_grad()
def excess_by_kind(
    model: GPT, tokenizer: Tokenizer, stories: int = StorySource.VALIDATION
) -> tuple[float, float]:
    """Thousandths of a nat per token above the true surprise in the first held-out stories.

    Returns two addends: of the tokens that are certain, given what stands before them, and of those that are chosen.
    """
    kinds = torch.zeros(2, dtype=torch.float64)
    tokens, end = 0, tokenizer.eot_token
    for i in range(stories):
        text = STORIES.sample(StorySource.VALIDATION_SEED + i)
        pieces = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
        ids = torch.tensor([end, *tokenizer.encode(text), end])
        logits = model(ids[None, :-1])[0]  # (T, V)
        nats = F.cross_entropy(logits, ids[1:], reduction="none")  # (T,)
        # the end of the story is certain, too
        letters = [*floor.surprisal(text), 0.0]
        ends = itertools.accumulate([*map(len, pieces), 1], initial=0)
        true = torch.tensor([sum(letters[a:b]) for a, b in itertools.pairwise(ends)])
        chosen = (true > 1e-6).long()
        kinds.index_add_(0, chosen, (nats - true).double())
        tokens += len(nats)
    certain, chosen_ones = (1e3 * kinds / tokens).tolist()
    return certain, chosen_ones


def kinds_figure(excess: Mapping[str, tuple[float, float]]) -> Figure:
    """For each model what its certain and its chosen tokens cost above the floor: a bar in two parts."""
    figure, axes = plt.subplots(figsize=(WIDTH, 2.6), layout="constrained")
    for row, (certain, chosen) in enumerate(excess.values()):
        for left, width, color in ((0, certain, 0), (certain, chosen, 1)):
            axes.barh(row, width, left=left, color=COLORS[color], height=0.62)
        axes.text(certain + chosen, row, f" {certain + chosen:.1f}", va="center")
    axes.set_yticks(range(len(excess)), list(excess))
    axes.invert_yaxis()
    axes.set(xlabel="thousandths of a nat per token above the true surprise")
    axes.margins(x=0.1)
    axes.legend(
        axes.containers[:2], ["certain tokens", "chosen tokens"], loc="lower right"
    )
    plt.close(figure)
    return figure


def _set_in_lines(
    pieces: Sequence[str], columns: int = 88
) -> list[tuple[int, int, str]]:
    """Where each piece of a text stands if it is set in lines: column, line, and its letters without blanks around."""
    words: list[list[str]] = []
    for piece in pieces:
        if piece.startswith(" ") or not words:
            words.append([])
        words[-1].append(piece)
    places, column, line = [], 0, 0
    for word in words:
        if column + len("".join(word)) > columns:
            column, line = -1, line + 1  # the blank before it stands outside
        for piece in word:
            blanks = len(piece) - len(piece.lstrip())
            places.append((column + blanks, line, piece.strip()))
            column += len(piece)
    return places


def _python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    quiet = {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **quiet},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
