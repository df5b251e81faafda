"""Bits per byte on a small text after 30 and 240 CPU-seconds, beside nanoGPT's recipe for a CPU.

    python benchmarks/shakespeare.py PATH [--threads 1] [--seconds 30 240] [--iterations 2000]

PATH is a text file; tinyshakespeare (1,115,394 bytes) is the usual one. Its last tenth is for validation. Every token
of it is scored exactly once, in windows that overlap by half, so all but the first have half a context before them.

Ours is this package as it stands: a byte-pair encoding trained on the first nine tenths (`train_bpe`), `GPT`, and
`Trainer` with Muon, dropout, and bfloat16 where the processor multiplies it; the learning rate ends at zero. A
rehearsal of 90 steps says how many steps fit into the given CPU-seconds; what the run took then stands in the table.
nanoGPT's recipe: 4 layers, 4 heads, width 128, context 64, batch 12, characters, no dropout, AdamW from 1e-3 to 1e-4
over 2,000 iterations with 100 of warm-up, betas 0.9 and 0.99, decay 0.1, clipping at 1; as a plain loop in float32.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import bar, machine
from torch import Tensor, nn

from slm.data.tokenizer import Tokenizer, train_bpe
from slm.model.config import GPTConfig
from slm.model.gpt import GPT
from slm.training.trainer import Trainer

WANTED = {30: 2.42, 240: 2.12}


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained for a number of CPU-seconds."""

    vocabulary: int
    context: int
    batch: int
    layers: int
    width: int
    heads: int
    rate: float
    dropout: float
    decay: float

    def config(self) -> GPTConfig:
        shape = (
            self.vocabulary,
            self.context,
            self.layers,
            self.heads,
            self.width,
            4 * self.width,
        )
        return GPTConfig(*shape, dropout=self.dropout)


# a small corpus is seen a dozen times in the long run: it needs a strong decay, and little of the slower dropout
SHORT = Recipe(
    1024, 64, 16, layers=1, width=192, heads=3, rate=1e-2, dropout=0.0, decay=0.1
)
LONG = Recipe(
    1024, 64, 32, layers=2, width=192, heads=3, rate=1e-2, dropout=0.05, decay=0.6
)


def window(tokens: Tensor, context: int, batch: int) -> tuple[Tensor, Tensor]:
    """A batch at random places, (B, T) each."""
    starts = torch.randint(len(tokens) - context, (batch, 1))
    rows = tokens[starts + torch.arange(context + 1)]  # (B, T + 1)
    return rows[:, :-1], rows[:, 1:]


def windows(
    tokens: Tensor, context: int, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield window(tokens, context, batch)


@torch.no_grad()
def nats(model: GPT, tokens: Tensor) -> float:
    """The summed surprise at all tokens but the first, each scored once."""
    model.eval()
    T, total, scored = model.config.context_length, 0.0, 1
    while scored < len(tokens):
        start = (
            max(0, min(scored - 1 - T // 2, len(tokens) - 1 - T)) if scored > 1 else 0
        )
        x, y = tokens[start : start + T], tokens[start + 1 : start + T + 1]
        losses = F.cross_entropy(
            model(x[None, : len(y)])[0], y, reduction="none"
        )  # (T,)
        total += losses[scored - start - 1 :].sum().item()
        scored = start + 1 + len(y)
    return total


def ours(recipe: Recipe, train: Tensor, seconds: float) -> tuple[GPT, int, float]:
    """A trained model, its steps, and the CPU-seconds that they took."""

    def run(steps: int) -> tuple[GPT, float]:
        torch.manual_seed(0)
        settings = {
            "optimizer": "muon",
            "learning_rate": recipe.rate,
            "weight_decay": recipe.decay,
            "max_steps": steps,
        }
        settings |= {
            "warmup_steps": min(50, steps - 1),
            "log_every": 100,
            "checkpoint_every": steps,
        }
        batches = windows(train, recipe.context, recipe.batch)
        trainer = Trainer(
            GPT(recipe.config()),
            batches,
            None,
            {"training": settings},
            "cpu",
            verbose=False,
        )
        started = time.process_time()
        trainer.train()
        if trainer.step < steps:
            raise SystemExit(f"stopped after {trainer.step} of {steps} steps")
        return trainer.model, time.process_time() - started

    each = (
        run(90)[1] - run(30)[1]
    ) / 60  # the first steps, which ask for memory, do not count
    steps = max(2, int(0.98 * seconds / each))
    model, took = run(steps)
    return model, steps, took


def nanogpt(train: Tensor, characters: int, iterations: int) -> tuple[GPT, float]:
    torch.manual_seed(0)
    model = GPT(GPTConfig(characters, 64, 4, 4, 128, 512))
    matrices, vectors = (
        [p for p in model.parameters() if p.dim() > 1],
        [p for p in model.parameters() if p.dim() < 2],
    )
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer, started = (
        torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99)),
        time.process_time(),
    )
    for step in range(iterations):
        share = max(0, step - 100) / max(1, iterations - 100)
        rate = (
            1e-3 * (step + 1) / 101
            if step < 100
            else 1e-4 + 0.5 * 9e-4 * (1 + math.cos(math.pi * share))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        x, y = window(train, 64, 12)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", metavar="PATH", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--seconds",
        type=float,
        nargs="*",
        default=[30, 240],
        help="CPU-seconds of our runs",
    )
    parser.add_argument(
        "--iterations",
        type=int,
        default=2000,
        help="of nanoGPT's recipe; 0 leaves it out",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine())
    text = arguments.path.read_text(encoding="utf-8")
    cut = int(0.9 * len(text))
    first, held_out = text[:cut], text[cut:]
    size = len(held_out.encode())
    print(
        "\n| recipe | CPU-seconds | steps | parameters | validation tokens | bits per byte |\n|---|---|---|---|---|---|"
    )

    def report(
        name: str, model: GPT, seconds: float, steps: int, tokens: Tensor
    ) -> float:
        bits = nats(model, tokens) / math.log(2) / size
        cells = [
            name,
            f"{seconds:.0f}",
            f"{steps:,}",
            f"{model.count_parameters():,}",
            f"{len(tokens):,}",
        ]
        print(f"| {' | '.join(cells)} | {bits:.3f} |", flush=True)
        return bits

    verdicts = []
    for seconds in arguments.seconds:
        recipe = SHORT if seconds <= 60 else LONG
        tokenizer = Tokenizer("own", train_bpe([first], recipe.vocabulary))
        # end-of-text stands before the validation text, so that its first token is scored too
        train, held = (
            torch.tensor([tokenizer.eot_token, *tokenizer.encode(part)])
            for part in (first, held_out)
        )
        model, steps, took = ours(recipe, train, seconds)
        bits = report(
            f"ours, layers of {recipe.width}: {recipe.layers}", model, took, steps, held
        )
        if seconds in WANTED:
            text_of = f"bits per byte after {took:.1f} CPU-seconds"
            verdicts.append(bar(text_of, bits, WANTED[int(seconds)], at_most=True))
    if arguments.iterations:
        characters = sorted(set(text))
        ids = {character: i for i, character in enumerate(characters)}
        # the last character of the first part stands before the validation text for the same reason
        train, held = (
            torch.tensor([ids[c] for c in part])
            for part in (first, first[-1] + held_out)
        )
        model, seconds = nanogpt(train, len(characters), arguments.iterations)
        report("nanoGPT's for a CPU", model, seconds, arguments.iterations, held)
    print("\n" + "\n".join(verdicts))


if __name__ == "__main__":
    main()
