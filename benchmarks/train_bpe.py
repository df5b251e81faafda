"""Training a byte-pair encoding: keeping counts against recounting.

    python benchmarks/train_bpe.py [--megabytes 1] [--vocab 1024] [--rounds 3] [--text FILE]

Both are plain Python, both count each different word once and weigh it, both must give the same ranks:

- this package's `train_bpe`, which corrects its counts where a merge changed something;
- the same algorithm as it is usually written down, which counts all pairs of all different words at every merge.

Times are CPU seconds of one process, in turns. The default text is English and in every Python: the language's manual
and the docstrings and comments of its library. `--text` takes any other.
"""

import argparse
import itertools
import statistics
import sysconfig
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import regex
from timing import Seconds, bar, machine, ratio

from slm.data.tokenizer import PATTERN, Pair, merge, train_bpe


def english(size: int) -> str:
    """About `size` bytes of text that lie in any installed Python."""
    library = Path(sysconfig.get_path("stdlib"))
    texts = itertools.chain(
        topics.values(),
        (path.read_text("utf-8") for path in sorted(library.glob("*.py"))),
    )
    found, length = [], 0
    for text in texts:
        found.append(text)
        length += len(text)
        if length >= size:
            break
    return "\n".join(found)[:size]


def recount(text: str, vocab_size: int) -> dict[bytes, int]:
    """Count the pairs of all different words at every merge."""
    times_of = Counter(regex.findall(PATTERN, text))
    words = [
        ([bytes([byte]) for byte in word.encode()], times)
        for word, times in times_of.items()
    ]
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < vocab_size - 1:
        counts: Counter[Pair] = Counter()
        for parts, times in words:
            for pair in itertools.pairwise(parts):
                counts[pair] += times
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        ranks.setdefault(best[0] + best[1], len(ranks))
        words = [(merge(parts, best), times) for parts, times in words]
    return ranks


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--text", type=Path, help="a text file instead of the default text"
    )
    arguments = parser.parse_args()
    size = int(arguments.megabytes * 1e6)
    text = arguments.text.read_text("utf-8")[:size] if arguments.text else english(size)
    contenders: dict[str, Callable[[], dict[bytes, int]]] = {
        "recounting": lambda: recount(text, arguments.vocab),
        "slm": lambda: train_bpe([text], arguments.vocab),
    }
    seconds: Seconds = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        ranks = []
        for name, train in contenders.items():
            began = time.process_time()
            ranks.append(list(train().items()))
            seconds[name].append(time.process_time() - began)
        assert ranks[0] == ranks[1], "the two give different tokens"
    words = len(set(regex.findall(PATTERN, text)))
    print(machine())
    print(
        f"{len(text.encode()) / 1e6:.2f} MB, {words:,} different words, to a vocabulary of {arguments.vocab:,}\n"
    )
    print("| contender | CPU seconds | time against slm |\n|---|---|---|")
    for name, times in seconds.items():
        print(
            f"| {name} | {statistics.median(times):.2f} | {ratio(seconds, name, 'slm'):.1f} |"
        )
    print(
        "\n"
        + bar("CPU time against recounting", ratio(seconds, "recounting", "slm"), 8)
    )


if __name__ == "__main__":
    main()
