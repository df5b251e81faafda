"""The shipped run on the stories: how near it comes to the computed floor, in what time, and what it writes.

    python benchmarks/stories.py [--threads 1] [--run-dir DIR] [--stories 100] [section.key=value …]

Trains `configs/stories_cpu.yaml` (or goes on with, or uses, the run in DIR), scores the whole validation text, and has
the model write stories at temperature 1, which the grammar then accepts or not. A story counts if it is accepted and is
not one of the training stories. The seconds are those of the trainer's own clock; CPU seconds stand beside them where
the run was made here, since on a busy machine only they say what the run needs.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from timing import bar, machine

from slm.data import floor
from slm.data.batches import TokenLoader
from slm.data.dataset import create_dataloader
from slm.generation import generate
from slm.training.config import load_config
from slm.training.run import Run, train


def texts(loader: TokenLoader, run: Run) -> Iterator[str]:
    """The documents of a loader's tokens."""
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--run-dir", default="runs/stories_cpu")
    parser.add_argument("--stories", type=int, default=100)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine())
    config = load_config(
        "configs/stories_cpu.yaml",
        [f"training.threads={arguments.threads}", *arguments.overrides],
    )
    started = time.process_time()
    run = train(config, run_dir=arguments.run_dir)
    cpu = time.process_time() - started

    d, T = config.data, config.model.context_length
    loader = create_dataloader(
        d.dataset,
        context_length=T,
        tokenizer=run.tokenizer,
        cache_dir=d.cache_dir,
        max_documents=d.max_documents,
    )
    known, told = set(texts(loader, run)), written(run, arguments.stories)
    accepted = [text for text in told if floor.accepts(text)]
    new = [text for text in accepted if text not in known]
    lines, loss, seconds = (
        floor.reference_lines(run.tokenizer),
        run.val_loss,
        run.metrics[-1]["seconds"],
    )
    if loss is None:
        raise SystemExit(f"{arguments.run_dir} has no validation loss")
    print("\n| figure | model | floor or limit |\n|---|---|---|")
    print(f"| nats per token | {loss:.4f} | {lines.floor:.4f} |")
    print(
        f"| bits per byte | {lines.bits_per_byte(loss):.4f} | {lines.bits_per_byte(lines.floor):.4f} |"
    )
    print(
        f"| seconds (CPU seconds of this process) | {seconds:.0f} ({cpu:.0f}) | 180 |"
    )
    print(
        f"| accepted of {len(told)} | {len(accepted)}, {len(set(accepted))} different | |"
    )
    print(
        f"| accepted and not among the {len(known):,} training stories | {len(new)} | |\n"
    )
    print(
        bar(
            "thousandths of a nat per token above the floor",
            (loss - lines.floor) * 1e3,
            20,
            at_most=True,
        )
    )
    print(bar("seconds of training", seconds, 180, at_most=True))
    print(bar("new stories of a hundred", 100 * len(new) / len(told), 50))


if __name__ == "__main__":
    main()
