"""Byte-pair encoding: trained here or GPT-2's, behind one fast encoder.

`get_tokenizer("gpt2")`, `get_tokenizer("stories")` or `get_tokenizer(path)` gives a `Tokenizer`; `train_bpe` makes the
ranks of a new one.

Exported from chapters/04_tokens.py; edit it there.
"""

import base64
import contextlib
import functools
import hashlib
import heapq
import itertools
import os
import tempfile
import threading
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Set
from pathlib import Path
from typing import Literal

import regex
import tiktoken

from slm import stories

# GPT-2's words: a contraction's tail; letters, digits or other signs, each with a space before it; or white space
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

END_OF_TEXT = "<|endoftext|>"

RANKS_FILE = "tokenizer.tiktoken"

Pair = tuple[bytes, bytes]


def merge(parts: list[bytes], pair: Pair) -> list[bytes]:
    """Join a pair of neighbours wherever it occurs, from left to right."""
    joined: list[bytes] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def train_bpe(texts: Iterable[str], vocab_size: int) -> dict[bytes, int]:
    """Train a byte-pair encoding over the bytes of GPT-2's words (Sennrich et al. 2016; Radford et al. 2019).

    Args:
        texts: Any number of texts. Each is read once; only the different words are kept.
        vocab_size: Number of tokens: 256 bytes, the merges, and the end of text, which has the last id.

    Returns:
        The rank of each token's bytes, without the end of text. Of equally frequent pairs the first in the order of
        bytes is merged first, so the same texts give the same ranks, in whatever order they come.

    Raises:
        ValueError: The size is below 257, or the texts have too few different pairs to reach it.
    """
    if vocab_size < 257:
        raise ValueError(f"vocab_size is {vocab_size}; it must be at least 257: the 256 bytes and the end of text")
    times_of = Counter(word for text in texts for word in regex.findall(PATTERN, text))
    times = list(times_of.values())
    words = [[bytes([byte]) for byte in word.encode("utf-8", "replace")] for word in times_of]
    counts: dict[Pair, int] = defaultdict(int)  # how often a pair stands in the texts
    holders: dict[Pair, set[int]] = defaultdict(set)  # the words that hold it, or once did
    for index, parts in enumerate(words):
        for pair in itertools.pairwise(parts):
            counts[pair] += times[index]
            holders[pair].add(index)
    heap = [(-n, pair) for pair, n in counts.items()]
    heapq.heapify(heap)

    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < vocab_size - 1:
        if not heap:
            raise ValueError(f"vocab_size is {vocab_size}, but these texts give {len(ranks) + 1} tokens at most")
        n, best = heapq.heappop(heap)
        if -n != counts[best] or not n:
            continue  # outdated: its pair was pushed anew, or is gone
        ranks.setdefault(best[0] + best[1], len(ranks))  # a pair that spells a known token would add none
        moved: set[Pair] = set()
        for index in holders.pop(best):
            before, words[index] = words[index], merge(words[index], best)
            for pair in itertools.pairwise(before):
                counts[pair] -= times[index]
                moved.add(pair)
            for pair in itertools.pairwise(words[index]):
                counts[pair] += times[index]
                holders[pair].add(index)
                moved.add(pair)
        for pair in moved:
            heapq.heappush(heap, (-counts[pair], pair))
    return ranks


def encode_word(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Token ids of one word, by replaying the merges: what `Tokenizer` does, slowly."""
    parts = [bytes([byte]) for byte in word]
    while len(parts) > 1:
        rank, i = min((ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(itertools.pairwise(parts)))
        if rank == len(ranks):
            break  # no two neighbours form a token
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


class Tokenizer(tiktoken.Encoding):
    """A byte-pair encoding over GPT-2's words with one special token, the end of text.

    Args:
        name: What to call it.
        ranks: The rank of each token's bytes: all 256 bytes and the merges, numbered from 0. The end of text is next.

    `encode` takes special tokens in a text as text; tiktoken's other methods do with `disallowed_special=()`.
    """

    def __init__(self, name: str, ranks: dict[bytes, int]) -> None:
        super().__init__(name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)})
        self.ranks = ranks

    def __reduce__(self) -> tuple[type, tuple[str, dict[bytes, int]]]:
        return Tokenizer, (self.name, self.ranks)  # how another process gets its copy

    def encode(
        self,
        text: str,
        *,
        allowed_special: Literal["all"] | Set[str] = frozenset(),
        disallowed_special: Literal["all"] | Collection[str] = (),
    ) -> list[int]:
        """Token ids of a text. What looks like a special token is text, unless `allowed_special` names it."""
        return super().encode(text, allowed_special=allowed_special, disallowed_special=disallowed_special)

    def ranks_file(self) -> bytes:
        """The ranks in tiktoken's format: for each token a line with its bytes in base64 and its rank."""
        return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in self.ranks.items())

    @property
    def fingerprint(self) -> str:
        """A short hash of the ranks: tokenizers are equal if and only if theirs are, whatever their names."""
        ordered = sorted(self.ranks.items(), key=lambda item: item[1])
        return hashlib.sha256(repr(ordered).encode()).hexdigest()[:16]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a `.tiktoken` file, or `tokenizer.tiktoken` into a folder; returns the file's path."""
        file = Path(path)
        file = file if file.suffix == ".tiktoken" else file / RANKS_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        unfinished.write_bytes(self.ranks_file())
        unfinished.replace(file)
        return file


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read what `Tokenizer.save` wrote: a `.tiktoken` file, or a folder that holds one.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file does not hold ranks, or not all of them.
    """
    file = Path(path)
    file = file / RANKS_FILE if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"there is no tokenizer at {file}: say 'gpt2', 'stories', or where one was saved")
    try:
        lines = [line.split() for line in file.read_bytes().splitlines()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except ValueError:
        raise ValueError(f"{file} is no tokenizer: a line is not a token in base64 and its rank") from None
    whole = sorted(ranks.values()) == list(range(len(lines))) and all(bytes([byte]) in ranks for byte in range(256))
    if not whole:
        raise ValueError(f"{file} is damaged: it must hold all 256 bytes, and every rank from 0 on once")
    return Tokenizer(file.parent.name if file.name == RANKS_FILE else file.stem, ranks)


STORIES_VOCAB_SIZE = 1024

STORIES_SAMPLE = 2000  # how many stories it is trained on

GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"

GPT2_FILES = ("vocab.bpe", "encoder.json")

KNOCK_SECONDS = 1.0


class TokenizerUnavailable(RuntimeError):
    """GPT-2's vocabulary is not on this machine and cannot be fetched."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"GPT-2's vocabulary is not on this machine, and {reason}: set TIKTOKEN_CACHE_DIR to a folder that has it,"
            " or use the vocabulary of the stories (tokenizer: stories)"
        )


def _gpt2_is_cached() -> bool:
    """Whether both files lie where tiktoken looks for them, each named by the SHA-1 of its address."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    names = [hashlib.sha1((GPT2_URL + file).encode()).hexdigest() for file in GPT2_FILES]
    return all(os.path.exists(os.path.join(folder, name)) for name in names)


def _answers(url: str) -> bool:
    """Whether a server answers soon. Asked in a thread, since looking up an address knows no time limit."""
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError):  # no network, no such server, too late
            try:
                urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=KNOCK_SECONDS).close()
            except urllib.error.HTTPError:
                pass  # a refusal is an answer, too
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(KNOCK_SECONDS)
    return answered.is_set()


@functools.cache
def _gpt2() -> Tokenizer:
    if not _gpt2_is_cached() and not _answers(GPT2_URL + GPT2_FILES[0]):
        raise TokenizerUnavailable("its server does not answer")
    try:
        return Tokenizer("gpt2", tiktoken.get_encoding("gpt2")._mergeable_ranks)
    except (OSError, ValueError) as error:
        raise TokenizerUnavailable(f"fetching it failed ({error})") from error


@functools.cache
def _stories() -> Tokenizer:
    return Tokenizer("stories", train_bpe(map(stories.sample, range(STORIES_SAMPLE)), STORIES_VOCAB_SIZE))


def get_tokenizer(name: str | os.PathLike[str] = "gpt2") -> Tokenizer:
    """A tokenizer by name.

    Args:
        name: "gpt2" (50,257 tokens), "stories" (1,024), or the path of a saved one: its file, or the file's folder.

    Raises:
        TokenizerUnavailable: "gpt2" is neither cached nor within reach.
        FileNotFoundError: There is no tokenizer at the path.
        ValueError: The file there is none.
    """
    known: dict[str | os.PathLike[str], Callable[[], Tokenizer]] = {"gpt2": _gpt2, "stories": _stories}
    return known[name]() if name in known else load_tokenizer(name)
