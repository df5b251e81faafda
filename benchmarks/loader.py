"""Three ways to get batches out of a corpus, as it grows.

    python benchmarks/loader.py [--megabytes 10 30 100 300 1000 1500] [--rounds 9] [--batches 300]
    python benchmarks/loader.py --save      also writes benchmarks/results/loader.csv, which the chapter on token files shows

Contenders, each with B = 32 rows of T = 256 from files of uint16 ids:

- list: the ids as a Python list in a map-style `Dataset`, in a default `DataLoader`;
- map, per row: a memory map in a map-style `Dataset` that slices a row out of it, in a default `DataLoader`;
- this package's `TokenLoader`, which gathers a batch from the same memory map at once.

Each memory figure comes from a process of its own: by how much its anonymous resident memory (what a machine must
really have, since pages of a mapped file can be dropped) grows over what it was after the imports, at its highest.
Speeds are tokens per second of CPU time. The ratio is the median over rounds in one process, in turns.
"""

import argparse
import csv
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from timing import Seconds, bar, machine, ratio
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slm.data.batches import TokenLoader
from slm.data.dataset import TokenDataset
from slm.data.prepare import FORMAT
from slm.data.tokenizer import get_tokenizer

B, T = 32, 256
RESULTS = Path(__file__).parent / "results" / "loader.csv"
Batches = Iterator[tuple[Tensor, Tensor]]


class ListRows(Dataset[tuple[Tensor, Tensor]]):
    """Rows out of a Python list of ids."""

    def __init__(self, path: Path) -> None:
        self.tokens: list[int] = []
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                self.tokens += np.frombuffer(block, dtype=np.uint16).tolist()

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // T

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.tokens[row * T : row * T + T]), torch.tensor(
            self.tokens[row * T + 1 : row * T + T + 1]
        )


class MapRows(Dataset[tuple[Tensor, Tensor]]):
    """Rows out of a memory map, one slice each."""

    def __init__(self, path: Path) -> None:
        self.tokens = np.memmap(path, dtype=np.uint16, mode="r")

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // T

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        window = torch.from_numpy(
            self.tokens[row * T : row * T + T + 1].astype(np.int64)
        )
        return window[:-1], window[1:]


def forever(dataset: Dataset[tuple[Tensor, Tensor]]) -> Batches:
    loader = DataLoader(dataset, batch_size=B, shuffle=True)
    return itertools.chain.from_iterable(itertools.repeat(loader))


CONTENDERS: dict[str, Callable[[Path], Batches]] = {
    "list": lambda path: forever(ListRows(path)),
    "map, per row": lambda path: forever(MapRows(path)),
    "slm": lambda path: iter(TokenLoader(TokenDataset(path, T), B)),
}


def token_file(folder: Path, megabytes: int) -> Path:
    """A file of random ids, as `prepare_tokens` would leave it."""
    tokenizer = get_tokenizer("stories")
    path = folder / f"random-{megabytes}.tokens"
    block = np.random.default_rng(0).integers(
        0, tokenizer.eot_token, 500_000, dtype=np.uint16
    )
    end = np.array([tokenizer.eot_token], dtype=np.uint16)
    with open(path, "wb") as file:
        for part in (end, *itertools.repeat(block, megabytes), end):
            file.write(part.data)
    made_by = {
        "name": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "eot_token": tokenizer.eot_token,
    }
    about = {
        "format": FORMAT,
        "split": "train",
        "documents": 1,
        "tokens_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "tokens": len(block) * megabytes + 2,
        "dtype": "uint16",
        "tokenizer": made_by,
    }
    path.with_suffix(".json").write_text(json.dumps(about))
    return path


def anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return (
        next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
        * 1024
        / 1e6
    )


def take(batches: Batches, n: int) -> float:
    """CPU seconds per token over n batches."""
    began = time.process_time()
    tokens = sum(x.numel() for x, _ in itertools.islice(batches, n))
    return (time.process_time() - began) / tokens


def alone(name: str, path: Path, n: int) -> tuple[float, float]:
    """Highest growth of this process's anonymous memory in MB, and tokens per CPU second."""
    before = anonymous_mb()
    batches = CONTENDERS[name](path)
    next(batches)
    highest, seconds = anonymous_mb(), []
    for _ in range(10):
        seconds.append(take(batches, n // 10))
        highest = max(highest, anonymous_mb())
    return highest - before, 1 / statistics.median(seconds)


def in_turns(path: Path, names: list[str], rounds: int, n: int) -> Seconds:
    """CPU seconds per token of each loader in each round, the first of which only warms up."""
    sources = {name: CONTENDERS[name](path) for name in names}
    seconds: Seconds = {name: [] for name in names}
    for _ in range(rounds + 1):
        for name, batches in sources.items():
            seconds[name].append(take(batches, n))
    return {name: times[1:] for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--megabytes", type=int, nargs="+", default=[10, 30, 100, 300, 1000, 1500]
    )
    parser.add_argument(
        "--list-up-to",
        type=int,
        default=300,
        help="the largest file, in MB, that is read into a list",
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--batches", type=int, default=300, help="batches in each timing"
    )
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.alone:
        print(
            json.dumps(
                alone(arguments.alone[0], Path(arguments.alone[1]), arguments.batches)
            )
        )
        return
    print(machine(), "\n")
    rows, verdicts = [], []
    with tempfile.TemporaryDirectory() as folder:
        print(
            "| token file, MB | loader | anonymous memory, MB | M tokens per CPU second |\n|---|---|---|---|"
        )
        for megabytes in arguments.megabytes:
            path = token_file(Path(folder), megabytes)
            names = [
                name
                for name in CONTENDERS
                if name != "list" or megabytes <= arguments.list_up_to
            ]
            for name in names:
                command = [
                    sys.executable,
                    __file__,
                    "--batches",
                    str(arguments.batches),
                    "--alone",
                    name,
                    str(path),
                ]
                done = subprocess.run(
                    command, check=True, capture_output=True, text=True
                )
                memory, speed = json.loads(done.stdout)
                rows.append([megabytes, name, f"{memory:.1f}", f"{speed / 1e6:.1f}"])
                print(
                    f"| {megabytes} | {name} | {memory:.1f} | {speed / 1e6:.1f} |",
                    flush=True,
                )
            if megabytes in (arguments.megabytes[0], arguments.megabytes[-1]):
                seconds = in_turns(
                    path, ["map, per row", "slm"], arguments.rounds, arguments.batches
                )
                reached = ratio(seconds, "map, per row", "slm")
                verdicts.append(
                    bar(
                        f"{megabytes} MB: tokens per CPU second against a map-style Dataset",
                        reached,
                        3,
                    )
                )
            os.remove(path)
    if arguments.save:
        with open(RESULTS, "w", encoding="utf-8", newline="") as file:
            file.write(
                f"# python benchmarks/loader.py --save; {machine()}; {time.strftime('%B %Y')}\n"
            )
            csv.writer(file, lineterminator="\n").writerows(
                [["megabytes", "loader", "anonymous_mb", "m_tokens_per_cpu_s"], *rows]
            )
    growth = [float(memory) for _, name, memory, _ in rows if name == "slm"]
    sizes = f"{min(arguments.megabytes)} to {max(arguments.megabytes)} MB"
    verdicts.append(
        bar(
            f"anonymous memory from {sizes}, MB more",
            max(growth) - min(growth),
            20,
            at_most=True,
        )
    )
    print("\n" + "\n".join(verdicts))


if __name__ == "__main__":
    main()
