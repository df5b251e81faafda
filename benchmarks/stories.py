"""The shipped run on the stories beside two other recipes: how near the computed floor, and what limits it.

    python benchmarks/stories.py [--seeds 0 1] [--only RECIPE] [--run-dir DIR] [--stories 100] [section.key=value …]

Trains each recipe with each seed in a folder of its own in DIR (or goes on with, or uses, the run that is there), scores
the whole validation text, and has the model write stories at temperature 1, which the grammar then accepts or not. A
story counts if it is accepted and is not one of the training stories. The CPU seconds are those of the training with its
validations, on one thread: on a busy machine only they say what a run needs, and only a run that was made here has them.
The floor of the validation text is what a perfect model needs for these thousand stories. The second table says where
the missing nats are: at tokens that are certain, given what stands before them, or at those that are chosen. The others
are one layer with a wider feed-forward network, and two layers in smaller batches whose weights are decayed.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from timing import bar, machine

from course.figures.trainer import excess_by_kind
from slm.data import floor
from slm.data.dataset import create_dataloader
from slm.generation import generate
from slm.training.config import load_config
from slm.training.run import Run, train

# what each recipe changes in configs/stories_cpu.yaml
RECIPES: dict[str, list[str]] = {
    "one layer": [
        "model.n_layers=1",
        "model.n_heads=4",
        "model.d_ff=512",
        "training.batch_size=8",
        "training.weight_decay=0.1",
        "training.learning_rate=1.5e-2",
        "training.max_steps=6000",
        "training.eval_every=600",
        "training.checkpoint_every=600",
    ],
    "two, decayed": [
        "model.n_heads=4",
        "training.batch_size=8",
        "training.weight_decay=0.1",
        "training.learning_rate=5e-3",
        "training.max_steps=5000",
        "training.eval_every=1000",
        "training.checkpoint_every=1000",
    ],
    "shipped": [],
}


def texts(run: Run, split: str) -> Iterator[str]:
    """The documents of the run's text."""
    loader = create_dataloader(
        run.config.data.dataset,
        split=split,
        context_length=run.config.model.context_length,
        tokenizer=run.tokenizer,
        cache_dir=run.config.data.cache_dir,
        max_documents=run.config.data.max_documents,
    )
    tokens = np.asarray(loader.dataset.tokens)
    ends = np.flatnonzero(tokens == run.tokenizer.eot_token)
    for start, end in zip(ends[:-1], ends[1:], strict=True):
        yield run.tokenizer.decode(tokens[start + 1 : end].tolist())


def written(run: Run, n: int) -> list[str]:
    """Stories that the model writes from nothing, each with a seed of its own."""
    told: list[str] = []
    for first in range(0, n, 50):
        prompts = [""] * min(50, n - first)
        most = run.config.model.context_length - 1
        told += generate(run.model, run.tokenizer, prompts, most, seed=first)
    return told


def measured(
    recipe: str, seed: int, arguments: argparse.Namespace
) -> tuple[float, float, str, tuple[float, float]]:
    """A recipe with one seed: thousandths above the floor, new stories of a hundred, its row, its excess by kind of token."""
    changed = [*RECIPES[recipe], f"training.seed={seed}", *arguments.overrides]
    config = load_config("configs/stories_cpu.yaml", changed)
    folder = arguments.run_dir / f"{recipe.replace(' ', '-')}-{seed}"
    there, started = (folder / "model").is_dir(), time.process_time()
    run = train(config, run_dir=folder, verbose=False)
    cpu = "" if there else f"{time.process_time() - started:.0f}"
    if run.val_loss is None:
        raise SystemExit(f"{folder} has no validation loss")

    held_out = list(texts(run, "validation"))
    tokens = sum(len(run.tokenizer.encode(text)) + 1 for text in held_out)
    own = -sum(map(floor.logprob, held_out)) / tokens
    lowest = floor.reference_lines(run.tokenizer).floor
    above, above_own = (1e3 * (run.val_loss - line) for line in (lowest, own))

    told, known = written(run, arguments.stories), set(texts(run, "train"))
    accepted = [text for text in told if floor.accepts(text)]
    new = 100 * sum(text not in known for text in accepted) / len(told)
    share = 100 * len(accepted) / len(told)
    figures = (
        f"{run.val_loss:.4f} | {above:.1f} | {above_own:.1f} | {share:.0f} | {new:.0f}"
    )
    row = f"| {recipe} | {seed} | {cpu} | {figures} |"
    return above, new, row, excess_by_kind(run.model, run.tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", choices=RECIPES)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/stories"))
    parser.add_argument("--stories", type=int, default=100)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    print(
        "\n| recipe | seed | CPU seconds | nats per token | thousandths above the floor "
        "| above that of the text | accepted of 100 | and new |\n" + "|---" * 8 + "|"
    )
    kinds = []
    for recipe in RECIPES if arguments.only is None else [arguments.only]:
        above, new, rows, by_kind = zip(
            *(measured(recipe, seed, arguments) for seed in arguments.seeds),
            strict=True,
        )
        print("\n".join(rows), flush=True)
        means = map(statistics.mean, zip(*by_kind, strict=True))
        kinds.append(f"| {recipe} | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    print("\n| thousandths above the true surprise | certain tokens | chosen tokens |")
    print("|---|---|---|", *kinds, sep="\n")
    print()
    mean = statistics.mean
    print(bar(f"{recipe}: thousandths of a nat per token", mean(above), 4, True))
    print(bar(f"{recipe}: new stories of a hundred", mean(new), 85))


if __name__ == "__main__":
    main()
