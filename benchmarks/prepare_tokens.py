"""Preparing a corpus with GPT-2's tokenizer against the tokenizer alone.

    python benchmarks/prepare_tokens.py [--megabytes 64] [--rounds 3] [--threads 2] [--kinds txt jsonl parquet]

Contenders, on the same text and the same number of threads:

- `prepare_tokens` from a file to a file: reads, cuts, tokenizes, hashes, writes and syncs; from one .txt, and from the
  same text as documents in .jsonl and .parquet;
- `tiktoken.Encoding.encode_ordinary_batch` on the documents in memory, and nothing else: the limit.

Times are wall-clock seconds, in turns. Memory is the peak growth of a fresh process over what it had after its imports,
for this size and for a quarter of it. Needs GPT-2's vocabulary (from the network once, or TIKTOKEN_CACHE_DIR).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tiktoken
from timing import bar, interleave, machine, ratio
from train_bpe import english

from slm.data.corpus import DataConfig
from slm.data.prepare import prepare_tokens
from slm.data.tokenizer import get_tokenizer

DOCUMENT = 4_000  # characters


def documents(text: str, megabytes: float) -> list[str]:
    """A text, repeated to some size, cut before spaces into documents."""
    texts, size = [], 0
    while size < megabytes * 1e6:
        start = 0
        while start < len(text) and size < megabytes * 1e6:
            end = text.find(" ", start + DOCUMENT)
            texts.append(text[start : end if end >= 0 else len(text)])
            size, start = size + len(texts[-1].encode()), start + len(texts[-1])
    return texts


def write(folder: Path, kind: str, texts: list[str]) -> Path:
    """The documents as a file of some kind, with a validation file beside it, so that all of them are train."""
    folder.mkdir(parents=True)
    file = folder / f"train.{kind}"
    (folder / f"val.{kind}").write_text("-")
    if kind == "txt":
        file.write_text("".join(texts), encoding="utf-8")
    elif kind == "jsonl":
        file.write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts),
            encoding="utf-8",
        )
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"text": texts}), file, row_group_size=1000)
    return file


def prepare(file: Path, threads: int) -> Path:
    """A token file that did not exist before."""
    os.cpu_count = lambda: threads  # what decides the number of threads
    for old in (file.parent / "cache").glob("*"):
        old.unlink()
    data = DataConfig(str(file), cache_dir=str(file.parent / "cache"))
    return prepare_tokens(data, "train", get_tokenizer("gpt2"))


def memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return (
        next(int(line.split()[1]) for line in lines if line.startswith(field))
        * 1024
        / 1e6
    )


def growth(file: Path, threads: int) -> float:
    """MB by which a fresh process grows over what it had with its tokenizer, at its peak."""
    command = [
        sys.executable,
        __file__,
        "--threads",
        str(threads),
        "--alone",
        str(file),
    ]
    return float(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--kinds", nargs="+", default=["txt", "jsonl", "parquet"], help="kinds of files"
    )
    parser.add_argument(
        "--text", type=Path, help="a text file instead of the default text"
    )
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    threads = arguments.threads
    tokenizer = get_tokenizer("gpt2")
    if arguments.alone:
        tokenizer.encode("A first text builds what a tokenizer builds once.")
        before = memory_mb("VmRSS")
        prepare(arguments.alone, threads)
        print(memory_mb("VmHWM") - before)
        return
    text = arguments.text.read_text("utf-8") if arguments.text else english(2_000_000)
    texts = documents(text, arguments.megabytes)
    size = sum(len(text.encode()) for text in texts)
    alone = tiktoken.get_encoding("gpt2")
    kinds = arguments.kinds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {kind: write(folder / kind, kind, texts) for kind in kinds}
        quarter = {
            kind: write(folder / f"{kind}-4", kind, texts[: len(texts) // 4])
            for kind in kinds
        }
        for kind in set(kinds) & {"jsonl", "parquet"}:  # one document each
            ids = np.fromfile(prepare(files[kind], threads), dtype=np.uint16)
            joined = [
                i
                for ids in alone.encode_ordinary_batch(texts[:100])
                for i in [alone.eot_token, *ids]
            ]
            assert ids[: len(joined)].tolist() == joined, f"other ids from .{kind}"
        seconds = interleave(
            {
                "encode_ordinary_batch": lambda: alone.encode_ordinary_batch(
                    texts, num_threads=threads
                ),
                **{
                    f".{kind}": lambda file=file: prepare(file, threads)
                    for kind, file in files.items()
                },
            },
            arguments.rounds,
        )
        memory = {
            f".{kind}": (growth(quarter[kind], threads), growth(files[kind], threads))
            for kind in kinds
        }
    print(machine())
    print(f"{size / 1e6:.0f} MB in {len(texts):,} documents, {threads} threads\n")
    print(
        "| contender | MB/s | speed against the tokenizer alone | peak MB at a quarter | peak MB |"
    )
    print("|---|---|---|---|---|")
    for name, times in seconds.items():
        peaks = (
            " | ".join(f"{peak:.0f}" for peak in memory[name])
            if name in memory
            else " | "
        )
        speed = ratio(seconds, "encode_ordinary_batch", name)
        print(
            f"| {name} | {size / 1e6 / statistics.median(times):.1f} | {speed:.2f} | {peaks} |"
        )
    print()
    for name, (small, large) in memory.items():
        print(
            bar(
                f"{name}: speed against the tokenizer alone",
                ratio(seconds, "encode_ordinary_batch", name),
                0.8,
            )
        )
        print(
            bar(
                f"{name}: peak memory of the whole less that of a quarter, MB",
                large - small,
                20,
                at_most=True,
            )
        )


if __name__ == "__main__":
    main()
