"""Byte-pair encoding: trained here or GPT-2's, behind one fast encoder.

    get_tokenizer("stories").encode("Once upon a time")

`get_tokenizer("gpt2")` and `get_tokenizer(path)` give others; `train_bpe` makes the
ranks of a new one.

Exported from chapters/05_tokens.py; edit it there.
"""

import base64
import functools
import hashlib
import heapq
import itertools
import json
import os
import reprlib
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import regex
import tiktoken

from slm.data import stories
from slm.data.stories import END_OF_TEXT
from slm.errors import SlmError
from slm.files import answers, user_path, within, write_text, writing

# First, words are cut

# GPT-2's words: a contraction's tail; letters, digits or other signs, each with a space
# before it; or white space
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
RANKS_FILE = "tokenizer.tiktoken"

# Three merges by hand

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


# Training, incrementally


def train_bpe(texts: Iterable[str], vocab_size: int) -> dict[bytes, int]:
    """Train a byte-pair encoding over the bytes of GPT-2's words.

    The method is that of Sennrich et al. 2016 on the bytes of Radford et al. 2019.

    Args:
        texts: Any number of texts, each read once; only the different words are kept.
        vocab_size: Number of tokens: 256 bytes, the merges, and the end of text, which
            has the last id.

    Returns:
        The rank of each token's bytes, without the end of text. Of equally frequent
        pairs the first in the order of bytes is merged first, so the same texts give
        the same ranks, in whatever order they come.

    Raises:
        ValueError: The size is below 257, or more than the texts' pairs can fill.
    """
    asked = f"vocab_size is {vocab_size}"
    if vocab_size < 257:
        least = "at least 257: the 256 bytes and the end of text"
        raise ValueError(f"{asked}; it must be {least}")
    times_of = Counter(word for text in texts for word in regex.findall(PATTERN, text))
    times = list(times_of.values())
    encoded = [word.encode("utf-8", "replace") for word in times_of]
    words = [[bytes([byte]) for byte in word] for word in encoded]
    counts: dict[Pair, int] = defaultdict(int)  # how often a pair stands in the texts
    holders: dict[Pair, set[int]] = defaultdict(set)  # words that hold it, or once did
    for index, parts in enumerate(words):
        for pair in itertools.pairwise(parts):
            counts[pair] += times[index]
            holders[pair].add(index)
    heap = [(-n, pair) for pair, n in counts.items()]
    heapq.heapify(heap)
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < vocab_size - 1:
        if not heap:
            most = f"these texts give {len(ranks) + 1} tokens at most"
            raise ValueError(f"{asked}, but {most}")
        n, best = heapq.heappop(heap)
        if -n != counts[best] or not n:
            continue  # outdated: its pair was pushed anew, or is gone
        # a pair that spells a known token adds none
        ranks.setdefault(best[0] + best[1], len(ranks))
        moved: set[Pair] = set()
        for index in holders.pop(best):
            before, words[index] = words[index], merge(words[index], best)
            for pair in itertools.pairwise(before):
                counts[pair] -= times[index]
            for pair in itertools.pairwise(words[index]):
                counts[pair] += times[index]
                holders[pair].add(index)
            moved.update(itertools.pairwise(before), itertools.pairwise(words[index]))
        for pair in moved:
            heapq.heappush(heap, (-counts[pair], pair))
    return ranks


# Encoding


def encode_word(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Token ids of one word, by replaying the merges: what `Tokenizer` does, slowly."""
    parts = [bytes([byte]) for byte in word]
    while len(parts) > 1:
        rank, i = min(
            (ranks.get(a + b, len(ranks)), i)
            for i, (a, b) in enumerate(itertools.pairwise(parts))
        )
        if rank == len(ranks):
            break  # no two neighbours form a token
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


# One fast encoder


class Tokenizer(tiktoken.Encoding):
    """A byte-pair encoding over GPT-2's words with one special token, the end of text.

    Args:
        name: What to call it.
        ranks: The rank of each token's bytes: all 256 bytes and the merges, numbered
            from 0. The end of text is next.

    `encode` takes special tokens in a text as text; tiktoken's other methods do so with
    `disallowed_special=()`.
    """

    def __init__(self, name: str, ranks: dict[bytes, int]) -> None:
        end = {END_OF_TEXT: len(ranks)}
        super().__init__(
            name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=end
        )
        self.ranks = ranks

    def __reduce__(self) -> tuple[type, tuple[str, dict[bytes, int]]]:
        return Tokenizer, (self.name, self.ranks)  # how another process gets its copy

    def encode(self, text: str, **special: Any) -> list[int]:
        """Token ids of a text, in which a special token that is not allowed is text.

        Args:
            special: tiktoken's `allowed_special` and `disallowed_special`.
        """
        return super().encode(text, **{"disallowed_special": (), **special})

    def decode_tokens_bytes(self, tokens: Iterable[int]) -> list[bytes]:
        """The bytes of each token.

        Raises:
            ValueError: An id is not of this tokenizer, or no whole number.
        """
        bytes_of = super().decode_single_token_bytes
        pieces = []
        for place, token in enumerate(tokens):
            try:
                pieces.append(bytes_of(token))
            except (KeyError, OverflowError, TypeError):
                allowed = f"ids from 0 to {self.max_token_value} are allowed"
                given = f"token {place} is {reprlib.repr(token)}"
                ours = f"tokenizer {self.name!r} has no such id"
                raise ValueError(f"{given}, but {ours}: {allowed}") from None
        return pieces

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of one token; raises as `decode_tokens_bytes`."""
        return self.decode_tokens_bytes([token])[0]

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes of a text; raises as `decode_tokens_bytes`."""
        return b"".join(self.decode_tokens_bytes(tokens))

    def decode(self, tokens: Iterable[int], errors: str = "replace") -> str:
        """The text of some tokens; raises as `decode_tokens_bytes`.

        Bytes that are no text are replaced, unless `errors` is "strict".
        """
        return self.decode_bytes(tokens).decode("utf-8", errors)

    def ranks_file(self) -> bytes:
        """The ranks in tiktoken's format: a line each, bytes in base64 and the rank."""
        ranks = self.ranks.items()
        return b"".join(b"%s %d\n" % (base64.b64encode(t), rank) for t, rank in ranks)

    @property
    def fingerprint(self) -> str:
        """A short hash of the ranks, whatever the name.

        Equal ranks have equal ones; others differ but for one chance in 2**64.
        """
        ordered = sorted(self.ranks.items(), key=lambda item: item[1])
        return hashlib.sha256(repr(ordered).encode()).hexdigest()[:16]

    def save(self, path: str | os.PathLike[str], length: int | None = None) -> Path:
        """Write a `.tiktoken` file, or one into a folder; returns the file's path.

        A folder gets `tokenizer.json` and `tokenizer_config.json` as well, for
        `transformers`; `length` is how many tokens the model behind it reads.
        """
        file = Path(path)
        if file.suffix != ".tiktoken":
            write_published(file, self.ranks, length)
            file = file / RANKS_FILE
        with writing(file) as part:
            part.write_bytes(self.ranks_file())
        return file


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read what `Tokenizer.save` wrote: a `.tiktoken` file, or a folder that holds one.

    The format does not say how many ranks there are, so a file that was cut between two
    lines, behind the bytes, is read as a smaller tokenizer. Its fingerprint differs.

    Raises:
        FileNotFoundError: There is no such file.
        SlmError: The file does not hold ranks, or not all of them.
    """
    file = user_path(path)
    file = file / RANKS_FILE if file.is_dir() else file
    if not file.is_file():
        allowed = "say 'gpt2', 'stories', or where one was saved"
        raise FileNotFoundError(f"there is no tokenizer at {file}: {allowed}")
    try:
        lines = [line.split() for line in file.read_bytes().rstrip().splitlines()]
        ranks = {base64.b64decode(t, validate=True): int(rank) for t, rank in lines}
        if any(rank != b"%d" % int(rank) for _, rank in lines):
            raise ValueError("a rank such as 1_0 or +5")
    except ValueError:
        why = "a line is not a token in base64 and its rank"
        raise SlmError(f"{file} is no tokenizer: {why}") from None
    counted = sorted(ranks.values()) == list(range(len(lines)))
    if not counted or not all(bytes([byte]) in ranks for byte in range(256)):
        why = "it must hold all 256 bytes, and every rank from 0 on once"
        raise SlmError(f"{file} is damaged: {why}")
    if (end := END_OF_TEXT.encode()) in ranks:
        why = f"rank {ranks[end]} spells {END_OF_TEXT}, which marks a document's end"
        raise SlmError(f"{file} is no tokenizer: {why}")
    return Tokenizer(file.parent.name if file.name == RANKS_FILE else file.stem, ranks)


# For other programs


def merge_pairs(ranks: dict[bytes, int]) -> list[Pair]:
    """The two parts that each token is joined from, in the order of the ranks.

    A byte has none, and neither has a token that no merges lead to.
    """
    token_of = {rank: token for token, rank in ranks.items()}
    known, pairs = dict(ranks), []
    for rank, token in sorted(token_of.items()):
        known[token] = len(ranks)  # the rank of what is no token
        ids = encode_word(token, known)
        known[token] = rank
        if len(ids) == 2:
            pairs.append((token_of[ids[0]], token_of[ids[1]]))
    return pairs


def byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: its own if it is visible, else one from 256 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    own = {byte: chr(byte) for byte in visible}
    return own | {byte: chr(256 + n) for n, byte in enumerate(others)}


def tokenizer_json(ranks: dict[bytes, int]) -> dict[str, Any]:
    """What `tokenizer.json` holds: all that encodes and decodes, for `tokenizers`."""
    letters, end = byte_letters(), len(ranks)
    name = {token: "".join(letters[byte] for byte in token) for token in ranks}
    by_rank = sorted(ranks, key=lambda token: ranks[token])
    how = ("single_word", "lstrip", "rstrip", "normalized")
    marker = {"id": end, "content": END_OF_TEXT, **dict.fromkeys(how, False)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    model = {
        "type": "BPE",
        "ignore_merges": True,
        "vocab": {name[token]: ranks[token] for token in by_rank} | {END_OF_TEXT: end},
        "merges": [[name[a], name[b]] for a, b in merge_pairs(ranks)],
    }
    return {
        "version": "1.0",
        "added_tokens": [marker | {"special": True}],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": model,
    }


def write_published(folder: Path, ranks: dict[bytes, int], length: int | None) -> None:
    """Write the two files that `transformers.AutoTokenizer` opens.

    `length` is how many tokens the model behind it reads, if that is known.

    A text's own `<|endoftext|>` is the special token there, unless it is asked with
    `split_special_tokens=True`.
    """
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT),
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    if length is not None:
        config["model_max_length"] = length
    files = {"tokenizer.json": tokenizer_json(ranks), "tokenizer_config.json": config}
    for name, said in files.items():
        text = json.dumps(said, ensure_ascii=False, indent=1)
        write_text(folder / name, text + "\n")


# Three tokenizers, one door

STORIES_VOCAB_SIZE = 1024
STORIES_SAMPLE = 2000  # how many stories it is trained on
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_FILES = ("vocab.bpe", "encoder.json")


def get_tokenizer(name: str | os.PathLike[str] = "gpt2") -> Tokenizer:
    """A tokenizer by name.

    Args:
        name: "gpt2" (50,257 tokens), "stories" (1,024), or the path of a saved one: its
            file, or the file's folder.

    Raises:
        FileNotFoundError: There is no tokenizer at the path.
        SlmError: "gpt2" is neither on this machine nor within reach (`retry` is true),
            or the file is no tokenizer.
    """
    known: dict[str | os.PathLike[str], Callable[[], Tokenizer]]
    known = {"gpt2": _gpt2, "stories": _stories}
    return known[name]() if name in known else load_tokenizer(name)


@functools.cache
def _stories() -> Tokenizer:
    texts = map(stories.sample, range(STORIES_SAMPLE))
    return Tokenizer("stories", train_bpe(texts, STORIES_VOCAB_SIZE))


@functools.cache
def _gpt2() -> Tokenizer:
    try:
        if not _gpt2_is_cached() and not answers(GPT2_URL + GPT2_FILES[0]):
            raise OSError("its server does not answer")
        published = within(120.0, lambda: tiktoken.get_encoding("gpt2"))
        return Tokenizer("gpt2", published._mergeable_ranks)
    except (OSError, ValueError) as error:
        missing = f"GPT-2's vocabulary is not here, and fetching it failed ({error})"
        cure = "set TIKTOKEN_CACHE_DIR to a folder with it, or use tokenizer: stories"
        raise SlmError(f"{missing}: {cure}", retry=True) from error


def _gpt2_is_cached() -> bool:
    """Whether both files lie where tiktoken looks, named by a hash of their address."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    default = os.environ.get("DATA_GYM_CACHE_DIR", default)
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR", default))
    addresses = [(GPT2_URL + file).encode() for file in GPT2_FILES]
    return all((folder / hashlib.sha1(a).hexdigest()).exists() for a in addresses)
