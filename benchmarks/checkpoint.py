"""What saving and resuming cost with GPT-2's 124 million parameters and AdamW's averages.

    python benchmarks/checkpoint.py [--threads 1] [--rounds 3] [--layers 12] [--width 768] [--folder DIR]

Saving: `save_checkpoint` against copying the same tensors in memory (the least that any method has to do), against
`torch.save` (no sync, no checksum) and against writing as many plain bytes and forcing them to disk (the disk's own
limit). Training waits while a checkpoint is written, so the first column is how long it stands still.

Resuming: the time from nothing to the first finished step, of a trainer that starts and of one that finds a checkpoint.
The step is short (one row of 128 tokens), so the figure is nearly all start; imports are in neither.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from timing import bar, interleave, machine, ratio

from slm import GPT, GPTConfig, Trainer
from slm.checkpoint import load_checkpoint, save_checkpoint

TRAINING = {"max_steps": 2, "warmup_steps": 0, "checkpoint_every": 1, "eval_every": 2, "dtype": "float32"}


def batches(config: GPTConfig) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = torch.randint(config.vocab_size, (2, 1, 128), generator=torch.Generator().manual_seed(0))
    return [(x, y)]


def trainer(config: GPTConfig, run_dir: Path, **training: object) -> Trainer:
    settings = {"training": {**TRAINING, **training}}
    return Trainer(GPT(config), batches(config), None, settings, "cpu", run_dir=run_dir, verbose=False)


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
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--folder", help="where to write (a temporary folder if not given)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine())
    width = arguments.width
    config = GPTConfig(50257, 1024, arguments.layers, width // 64, width, 4 * width)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run_dir = Path(folder) / "run"
        trainer(config, run_dir, max_steps=1).train()
        path = run_dir / "checkpoints" / "step_00000001.pt"
        size, state = path.stat().st_size, load_checkpoint(path)
        print(f"{config.n_layers} layers of width {width}: a checkpoint of {size / 1e9:.2f} GB\n")
        scratch = Path(folder) / "scratch.pt"
        saving = interleave(
            {
                "save_checkpoint": lambda: save_checkpoint(scratch, state),
                "torch.save": lambda: torch.save(state, scratch),
                "plain bytes, synced": write_plainly(scratch, size),
                "copy in memory": lambda: [tensor.clone() for tensor in tensors(state)],
                "load_checkpoint": lambda: load_checkpoint(path),
            },
            arguments.rounds,
        )
        scratch.unlink()
        print("| what | seconds | GB/s | against the copy |\n|---|---|---|---|")
        for name, times in saving.items():
            seconds = statistics.median(times)
            print(
                f"| {name} | {seconds:.2f} | {size / seconds / 1e9:.2f} | {ratio(saving, name, 'copy in memory'):.1f} |"
            )

        def start() -> None:
            trainer(config, Path(folder) / "empty").update(iter(batches(config)))

        def resume() -> None:
            again = trainer(config, run_dir)
            if again.resume() is None:
                raise SystemExit(f"{run_dir} lost its checkpoint")
            again.update(iter(batches(config)))

        starts = interleave({"fresh start": start, "resumed": resume}, arguments.rounds)
    print("\n| to the first finished step | seconds |\n|---|---|")
    for name, times in starts.items():
        print(f"| {name} | {statistics.median(times):.2f} |")
    print("\n" + bar("stall against the copy", ratio(saving, "save_checkpoint", "copy in memory"), 1.0, at_most=True))
    disk = ratio(saving, "save_checkpoint", "plain bytes, synced")
    print(bar("stall against plain bytes on the same disk", disk, 2.0, at_most=True))
    print(bar("resumed against a fresh start", ratio(starts, "resumed", "fresh start"), 1.3, at_most=True))


if __name__ == "__main__":
    main()
