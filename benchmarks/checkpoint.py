"""What saving and resuming cost with GPT-2's 124 million parameters and AdamW's averages.

    python benchmarks/checkpoint.py [--threads 1] [--rounds 3] [--layers 12] [--width 768] [--folder DIR]

Saving: how long training stands still in `Checkpointer.save`, which copies the state and leaves the writing to a thread,
against copying the same tensors in memory, the least that any method has to do; how long a step takes while the thread
writes; and `save_checkpoint`, which writes at once, against `torch.save` (no sync, no checksum) and against writing as
many plain bytes and forcing them to disk (the disk's own limit).

Resuming: the time from nothing to the first finished step, of a trainer that starts and of one that finds a checkpoint.
The step is short (one row of 128 tokens), so the figure is nearly all start; imports are in neither.
"""

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from timing import Seconds, bar, interleave, machine, ratio

from slm.model.config import GPTConfig
from slm.model.gpt import GPT
from slm.training.checkpoint import Checkpointer, save_checkpoint
from slm.training.config import make_config
from slm.training.folder import list_checkpoints
from slm.training.run import empty_model
from slm.training.trainer import Trainer

TRAINING = {"max_steps": 1000, "warmup_steps": 0, "dtype": "float32"}


def batches(config: GPTConfig) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = torch.randint(
        config.vocab_size, (2, 1, 128), generator=torch.Generator().manual_seed(0)
    )
    return [(x, y)]


def trainer(model: GPT, folder: Path) -> tuple[Trainer, Checkpointer]:
    sections = {"model": dataclasses.asdict(model.config), "training": TRAINING}
    config = make_config({**sections, "data": {"dataset": "random"}})
    checkpointer = Checkpointer(folder, config)
    one, observers = batches(model.config), [checkpointer]
    made = Trainer(model, one, None, config, "cpu", False, observers, verbose=False)
    return made, checkpointer


def write_plainly(path: Path, size: int) -> Callable[[], None]:
    block = os.urandom(1 << 22)

    def run() -> None:
        with open(path, "wb") as file:
            for _ in range(size >> 22):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())

    return run


def tensors(state: object) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    parts = (
        state.values()
        if isinstance(state, dict)
        else state
        if isinstance(state, list | tuple)
        else ()
    )
    return [tensor for part in parts for tensor in tensors(part)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument(
        "--folder", help="where to write (a temporary folder if not given)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine())
    width = arguments.width
    config = GPTConfig(50257, 1024, arguments.layers, width // 64, width, 4 * width)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        saved = Path(folder) / "checkpoints"
        first, checkpointer = trainer(GPT(config), saved)
        first.train_step(iter(batches(config)))
        checkpointer.save(first)
        checkpointer.finish()
        size = list_checkpoints(saved)[0].stat().st_size
        print(
            f"{config.n_layers} layers of width {width}: a checkpoint of {size / 1e9:.2f} GB\n"
        )
        state = {
            "model": first.model.state_dict(),
            "optimizers": [one.state_dict() for one in first.optimizers],
        }
        batch, steps = (
            batches(config),
            {"alone": [], "while a checkpoint is written": []},
        )
        scratch = Path(folder) / "scratch.pt"

        stall: Seconds = {"Checkpointer.save": [], "copy in memory": []}
        for round_ in range(
            arguments.rounds + 1
        ):  # the first, in which memory is asked for, does not count
            for name in sorted(stall, reverse=bool(round_ % 2)):
                started = time.perf_counter()
                copies = (
                    checkpointer.save(first)
                    if name == "Checkpointer.save"
                    else [tensor.clone() for tensor in tensors(state)]
                )
                stall[name].append(time.perf_counter() - started)
                del copies
                started = time.perf_counter()
                first.train_step(iter(batch))
                steps[
                    "while a checkpoint is written"
                    if name == "Checkpointer.save"
                    else "alone"
                ].append(time.perf_counter() - started)
                checkpointer.finish()
        stall, steps = (
            {name: times[1:] for name, times in seconds.items()}
            for seconds in (stall, steps)
        )
        del first
        saving = interleave(
            {
                "save_checkpoint": lambda: save_checkpoint(scratch, state),
                "torch.save": lambda: torch.save(state, scratch),
                "plain bytes, synced": write_plainly(scratch, size),
            },
            arguments.rounds,
        )
        scratch.unlink()
        print("| what | seconds | GB/s |\n|---|---|---|")
        for name, times in {**stall, **saving}.items():
            seconds = statistics.median(times)
            print(f"| {name} | {seconds:.2f} | {size / seconds / 1e9:.2f} |")
        for name, times in steps.items():
            print(f"| a step {name} | {statistics.median(times):.2f} | |")

        def start() -> None:
            fresh, _ = trainer(GPT(config), Path(folder) / "empty")
            fresh.train_step(iter(batches(config)))

        def resume() -> None:
            again, found = trainer(empty_model(config), saved)  # as `train` does
            if found.resume(again) is None:
                raise SystemExit(f"{saved} lost its checkpoint")
            again.train_step(iter(batches(config)))

        starts = interleave({"fresh start": start, "resumed": resume}, arguments.rounds)
    print("\n| to the first finished step | seconds |\n|---|---|")
    for name, times in starts.items():
        print(f"| {name} | {statistics.median(times):.2f} |")
    copy = ratio(stall, "Checkpointer.save", "copy in memory")
    print(
        "\n"
        + bar(
            "stall against the copy, give or take the clock's tenth",
            copy,
            1.1,
            at_most=True,
        )
    )
    print(
        bar(
            "resumed against a fresh start",
            ratio(starts, "resumed", "fresh start"),
            1.3,
            at_most=True,
        )
    )


if __name__ == "__main__":
    main()
