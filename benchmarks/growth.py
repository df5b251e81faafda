"""How costs grow with the work: a line through three sizes, and what it says of a size that is not tried here.

    python benchmarks/growth.py [--tiny] [--only WHAT]

- `metrics.jsonl` with the steps of a run, and how much of it are histograms;
- preparing a folder with the files in it, and one file with the documents in it: seconds and memory;
- the index of rows that hold whole documents, with the documents: memory;
- the copy of a checkpoint on a CPU, with the parameters: memory;
- the time of a written token, and the memory of keys and values, with the tokens before it.

Each size is measured in a process of its own, on one thread. Seconds are CPU seconds of that process. Memory is its peak
over what it had before. A cost is straight if no size lies further from the line than a tenth of the largest.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from timing import machine

from slm.data import stories
from slm.data.batches import document_rows
from slm.data.corpus import DataConfig
from slm.data.prepare import prepare_tokens
from slm.data.tokenizer import get_tokenizer
from slm.generation import Sampling, generate_tokens
from slm.model.config import GPTConfig, count_parameters
from slm.model.gpt import GPT
from slm.training.checkpoint import Checkpointer
from slm.training.metrics import MetricsFile
from slm.training.trainer import Trainer

Costs = dict[str, float]


def resident(field: str) -> float:
    """MB of this process: `VmRSS` now, or `VmHWM`, the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next(line for line in lines if line.startswith(field))
    return int(found.split()[1]) * 1024 / 1e6


def measured(work: Callable[[], object]) -> Costs:
    """CPU seconds of some work, and by how much the process grew at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, started = resident("VmRSS"), time.process_time()
    work()
    seconds = time.process_time() - started
    return {"seconds": seconds, "MB": resident("VmHWM") - before}


def trainer_of(
    model: GPT, steps: int, folder: Path, observers: list[MetricsFile]
) -> Trainer:
    settings = {"max_steps": steps, "warmup_steps": 1, "dtype": "float32", "threads": 1}
    T = min(16, model.config.context_length)
    x, y = torch.randint(model.config.vocab_size, (2, 2, T))
    config = {"training": settings}
    return Trainer(
        model, [(x, y)], None, config, "cpu", False, observers, verbose=False
    )


def metrics(steps: int) -> Costs:
    model = GPT(GPTConfig(1024, 128, n_layers=1, n_heads=4, d_model=128, d_ff=512))
    with tempfile.TemporaryDirectory() as folder:
        file = MetricsFile(Path(folder, "metrics.jsonl"))
        trainer_of(model, steps, Path(folder), [file]).train()
        lines = file.path.read_text(encoding="utf-8").splitlines(keepends=True)
    histograms = [line for line in lines if '"gradients/' in line]
    whole, of_them = (sum(map(len, each)) for each in (lines, histograms))
    return {"kB": whole / 1e3, "kB of histograms": of_them / 1e3}


def files(number: int) -> Costs:
    """A folder in which every story is a file."""
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder, "texts")
        texts.mkdir()
        for seed in range(number):
            (texts / f"{seed:06d}.txt").write_text(stories.sample(seed))
        return prepared(str(texts), Path(folder, "cache"))


def documents(number: int) -> Costs:
    """One file in which every story is a line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "texts.jsonl")
        with open(path, "w") as file:
            told = itertools.cycle([stories.sample(seed) for seed in range(1000)])
            for text in itertools.islice(told, number):
                file.write(json.dumps({"text": text}) + "\n")
        return prepared(str(path), Path(folder, "cache"))


def prepared(source: str, cache: Path) -> Costs:
    tokenizer = get_tokenizer("stories")
    tokenizer.encode("A first text builds what a tokenizer builds once.")
    data = DataConfig(source, tokenizer="stories", cache_dir=str(cache))
    return measured(lambda: prepare_tokens(data, "train", tokenizer))


def rows(number: int) -> Costs:
    """Stories of 90 tokens in rows of 128."""
    tokens = np.ones(90 * number + 1, dtype=np.uint16)
    tokens[::90] = 0  # end-of-text
    found = measured(lambda: document_rows(tokens, 128, 0))
    return {"MB": found["MB"], "seconds": found["seconds"]}


def checkpoint(width: int) -> Costs:
    model = GPT(
        GPTConfig(8192, 32, n_layers=4, n_heads=2, d_model=width, d_ff=4 * width)
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(model, 10, Path(folder), [])
        trainer.train_step(trainer.batches())
        with Checkpointer(Path(folder), trainer.config) as checkpointer:

            def save() -> None:
                checkpointer.save(trainer)
                checkpointer.finish()

            return {"MB": measured(save)["MB"]}


def writing(context: int) -> Costs:
    """Tokens at the end of a context that is full but for sixteen."""
    new = 16
    model = GPT(GPTConfig(1024, context, n_layers=4, n_heads=4, d_model=256, d_ff=1024))
    steps = generate_tokens(
        model.eval(), [[1] * (context - new)], Sampling(new, temperature=0)
    )
    before = resident("VmRSS")
    next(steps)  # reads the prompt
    times = []
    for _ in range(new - 1):
        started = time.process_time()
        next(steps)
        times.append(time.process_time() - started)
    return {
        "ms a token": 1e3 * statistics.median(times),
        "MB with the reading": resident("VmHWM") - before,
    }


@dataclass(frozen=True)
class Kind:
    """One kind of work at three sizes, and what its costs are for."""

    what: str
    unit: str
    measure: Callable[[int], Costs]
    sizes: tuple[int, int, int]
    tiny: tuple[int, int, int]
    far: int  # a size that is not tried
    why: str

    def units(self, size: int) -> int:
        """The work, in its unit: for checkpoints the parameters, not the width."""
        if self.what != "checkpoint":
            return size
        shape = GPTConfig(8192, 32, n_layers=4, n_heads=2, d_model=size, d_ff=4 * size)
        return count_parameters(shape)


KINDS = {
    kind.what: kind
    for kind in (
        Kind(
            "metrics",
            "steps",
            metrics,
            (600, 1200, 2400),
            (10, 20, 30),
            6000,
            "a row in ten steps; in a hundred one with 32 counts for each tensor",
        ),
        Kind(
            "files",
            "files",
            files,
            (1000, 3000, 10_000),
            (20, 40, 60),
            100_000,
            "each is looked at, opened and hashed, and its name and size are kept",
        ),
        Kind(
            "documents",
            "documents",
            documents,
            (20_000, 60_000, 180_000),
            (50, 100, 200),
            100_000_000,
            "text is read, tokenized and written a part at a time",
        ),
        Kind(
            "rows",
            "documents",
            rows,
            (200_000, 600_000, 1_800_000),
            (50, 100, 200),
            100_000_000,
            "of `packing: documents`: where each document and each row begins; `stream` holds none of it",
        ),
        Kind(
            "checkpoint",
            "parameters",
            checkpoint,
            (256, 512, 768),
            (8, 16, 24),
            774_030_080,
            "weights and AdamW's two averages are copied, 12 bytes each; some of it lies where gradients were",
        ),
        Kind(
            "writing",
            "tokens before it",
            writing,
            (512, 1024, 2048),
            (24, 32, 48),
            8192,
            "all weights are read for a token, and all keys and values; the text is read at once",
        ),
    )
}


def line(work: Iterable[float], costs: Iterable[float]) -> tuple[float, float, float]:
    """The fixed part, the cost of one unit, and how far the furthest size lies from the line.

    The last as a share of the largest cost.
    """
    work, costs = list(work), list(costs)
    fit = statistics.linear_regression(work, costs)
    pairs = zip(work, costs, strict=True)
    furthest = max(abs(cost - fit.intercept - fit.slope * size) for size, cost in pairs)
    off = furthest / (max(costs) or 1.0)
    return fit.intercept, fit.slope, off


def alone(what: str, size: int) -> Costs:
    """What one size costs, in a process of its own."""
    command = [sys.executable, __file__, "--alone", json.dumps([what, size])]
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=threads
    )
    found: Costs = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing")
    parser.add_argument("--only", choices=KINDS, help="one kind of work")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.alone:
        what, size = json.loads(arguments.alone)
        print(json.dumps(KINDS[what].measure(size)))
        return
    print(machine() + "\n")
    print(
        "| work | cost | at three sizes | fixed | each 1,000 | furthest from the line | straight | there, by the line |"
    )
    print("|---|---|---|---|---|---|---|---|")
    notes = []
    for kind in KINDS.values():
        if arguments.only not in (None, kind.what):
            continue
        sizes = kind.tiny if arguments.tiny else kind.sizes
        work = [kind.units(size) for size in sizes]
        found = [alone(kind.what, size) for size in sizes]
        for cost in found[0]:
            fixed, each, off = line(work, [costs[cost] for costs in found])
            at = ", ".join(
                f"{n:,}: {costs[cost]:,.3g}"
                for n, costs in zip(work, found, strict=True)
            )
            there = f"{kind.far:,} {kind.unit}: {fixed + each * kind.far:,.4g} {cost}"
            straight = "yes" if off <= 0.1 else "no"
            told = (
                f"{fixed:,.3g} | {1e3 * each:,.3g} | {off:.0%} | {straight} | {there}"
            )
            print(f"| {kind.what}, {kind.unit} | {cost} | {at} | {told} |", flush=True)
        notes.append(f"- {kind.what}: {kind.why}.")
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
