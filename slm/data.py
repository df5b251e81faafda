"""Data.

How a corpus becomes batches: rows of tokens with their targets, files that are mapped instead of loaded, splits
that do not leak, and an order that survives a crash. You export `TextDataset`, `prepare_tokens`, `TokenDataset` and
`create_dataloader`, which read anything from a list of texts to the Hugging Face hub.

Exported from chapters/05_data.py; edit it there.
"""

import codecs
import errno
import functools
import glob
import hashlib
import itertools
import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import requests
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from slm import stories
from slm.tokenizer import Tokenizer, get_tokenizer

IGNORE = -100  # a target with this value does not count in the loss


class DataError(ValueError):
    """What is wrong with a corpus or a token file, in one sentence."""


def document_rows(tokens: np.ndarray, context_length: int, eot_token: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack whole documents into rows of at most `context_length` targets.

    A row ends where the last document that fits in it ends. A document longer than a row goes on in the next one.

    Args:
        tokens: `(N,)`, end-of-text first, last and between documents.
        context_length: T, in tokens.
        eot_token: The id of end-of-text.

    Returns:
        The position at which each row starts and the number of its targets, both `(rows,)` int64.
    """
    step = 1 << 24  # a part at a time, so that the comparison never takes as much memory as the file
    found = [np.flatnonzero(tokens[i : i + step] == eot_token) + i for i in range(0, len(tokens), step)]
    eots = np.concatenate(found)  # (M + 1,) document m lies between eots[m] and eots[m + 1]
    full = np.maximum(-(-np.diff(eots) // context_length) - 1, 0)  # (M,) rows that document m fills before its last
    last = eots[:-1] + full * context_length  # (M,) where that last row starts
    following = np.searchsorted(eots, last + context_length, side="right") - 1  # (M,) first document not in that row

    opening, m, next_of = [], 0, memoryview(following)
    while m < len(following):
        opening.append(m)
        m = next_of[m]
    first = np.array(opening, dtype=np.int64)  # the documents that open a row
    count = full[first] + 1
    ends = np.cumsum(count)
    within = np.arange(count.sum()) - np.repeat(ends - count, count)  # 0, 1, … in the rows of each of them
    starts = np.repeat(eots[first], count) + within * context_length
    lengths = np.full(len(starts), context_length, dtype=np.int64)
    lengths[ends - 1] = eots[following[first]] - last[first]
    return starts, lengths


class RowDataset(Dataset[tuple[Tensor, Tensor]]):
    """Tokens cut into rows `(x, y)`, where `y` is `x` shifted by one. Use `TextDataset` or `TokenDataset`.

    Args:
        tokens: `(N,)`, end-of-text first, last and between documents.
        context_length: T, the length of a row in tokens.
        eot_token: The id of end-of-text.
        packing: "stream": row i begins at token i·T, wherever in a document that is; each token is a target once, but
            the first, and fewer than T at the end that fill no row. "documents": a row begins with end-of-text and
            holds as many whole documents as fit, filled up with end-of-text whose targets are -100; only a document
            longer than T goes on in the next row.
        name: What an error message calls the tokens.
    """

    def __init__(self, tokens: np.ndarray, context_length: int, eot_token: int, packing: str, name: str) -> None:
        if context_length < 1:
            raise DataError(f"context_length is {context_length}; it must be at least 1.")
        if packing not in ("stream", "documents"):
            raise DataError(f"packing is {packing!r}; it must be 'stream' or 'documents'.")
        self.tokens, self.context_length, self.packing, self.eot_token = tokens, context_length, packing, eot_token
        self.n_rows = (len(tokens) - 1) // context_length
        if packing == "documents":
            self.starts, self.lengths = document_rows(tokens, context_length, eot_token)
            self.n_rows = len(self.starts)
        if self.n_rows < 1:
            raise DataError(
                f"{name} has {len(tokens)} tokens, fewer than the {context_length + 1} that one row of "
                f"context_length={context_length} needs: take more text or a smaller context_length."
            )

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -self.n_rows <= index < self.n_rows:
            raise IndexError(f"row {index} of {self.n_rows}")
        x, y = self.rows(np.array([index % self.n_rows]))
        return x[0], y[0]

    def rows(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Many rows at once: indices `(B,)` → x and y, both `(B, T)` int64."""
        T, indices = self.context_length, np.asarray(indices, dtype=np.int64)
        starts = self.starts[indices] if self.packing == "documents" else indices * T  # (B,)
        window = np.take(self.tokens, starts[:, None] + np.arange(T + 1), mode="clip")  # (B, T + 1)
        x, y = window[:, :-1].astype(np.int64), window[:, 1:].astype(np.int64)  # (B, T)
        if self.packing == "documents":
            unused = np.arange(T) >= self.lengths[indices][:, None]  # (B, T)
            x[unused], y[unused] = self.eot_token, IGNORE
        return torch.from_numpy(x), torch.from_numpy(y)


class Piece(NamedTuple):
    """A stretch of text that can be tokenized alone, and whether a document starts with it."""

    text: str
    starts: bool


def encode(pieces: Iterable[Piece], tokenizer: Tokenizer) -> np.ndarray:
    """The ids of some pieces with end-of-text before each document: `(N,)` uint32."""
    parts = [np.empty(0, dtype=np.uint32)]
    eot = np.array([tokenizer.eot_token], dtype=np.uint32)

    def ids(text: str) -> np.ndarray:
        try:
            return tokenizer.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and UTF-8 cannot
            return ids(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        except ValueError:  # a "word" of about a million spaces, too much for tiktoken's pattern: in two halves
            half = len(text) // 2
            return np.concatenate([ids(text[:half]), ids(text[half:])])

    for text, starts in pieces:
        if starts:
            parts.append(eot)
        parts.append(ids(text))
    return np.concatenate(parts)


class TextDataset(RowDataset):
    """Texts in hand as rows of tokens: item i is `(x, y)`, both `(T,)` int64, `y` being `x` shifted by one.

    Args:
        texts: The documents, joined by end-of-text; empty ones are left out.
        tokenizer: What `get_tokenizer` gives. Special tokens inside a text are text.
        context_length: T, in tokens.
        packing: "stream" or "documents", see `RowDataset`.

    Raises:
        DataError: fewer tokens than one row needs.
    """

    def __init__(
        self, texts: Iterable[str], tokenizer: Tokenizer, context_length: int, packing: str = "stream"
    ) -> None:
        documents = [Piece(text, True) for text in ([texts] if isinstance(texts, str) else texts) if text]
        tokens = np.append(encode(documents, tokenizer), np.uint32(tokenizer.eot_token))
        self.tokenizer = tokenizer
        name = f"The text (number of documents: {len(documents)})"
        super().__init__(tokens, context_length, tokenizer.eot_token, packing, name)


def split_pieces(blocks: Iterable[str]) -> Iterator[Piece]:
    """Cut one long document into pieces that, tokenized one by one, give the ids of the whole.

    A word of GPT-2's pattern never reaches over the white space before it, except for one space in front. So the place
    before a space or newline that a visible character follows is a safe cut. Only a block without any (a megabyte
    without a space) is cut at its end, where a token may come out differently.
    """
    rest, starts = "", True
    for block in blocks:
        text = rest + block
        safe = (i for i in range(len(text) - 2, 0, -1) if text[i] in " \n" and not text[i + 1].isspace())
        cut = next(safe, len(text))
        if text[:cut]:
            yield Piece(text[:cut], starts)
            starts = False
        rest = text[cut:]
    if rest:
        yield Piece(rest, starts)


Item = TypeVar("Item")

Result = TypeVar("Result")


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`map(function, items)` in the same order, with up to `2 * workers` results computed ahead by threads."""
    if workers == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def in_validation(document: bytes, val_fraction: float) -> bool:
    """Whether a document is held out: decided by its content alone, so copies of it go the same way."""
    digest = hashlib.blake2b(document, digest_size=8).digest()
    return int.from_bytes(digest, "big") < val_fraction * 2**64


Advance = Callable[[float], object]  # told how far a reader has got


SUFFIXES = (".txt", ".jsonl", ".parquet")

SPLITS = {"train": ("train", "training"), "validation": ("validation", "valid", "val"), "test": ("test",)}


def _read_utf8(path: Path, start: int, stop: int, advance: Advance) -> Iterator[str]:
    """The text between two byte positions of a file, a megabyte at a time."""
    decoder = codecs.getincrementaldecoder("utf-8-sig" if start == 0 else "utf-8")()
    with open(path, "rb") as file:
        file.seek(start)
        while start < stop:
            block = file.read(min(1 << 20, stop - start))
            if not block:
                raise DataError(f"{path} became shorter while it was being read.")
            start += len(block)
            advance(len(block))
            try:
                yield decoder.decode(block, final=start == stop)
            except UnicodeDecodeError as error:
                at = start - len(error.object) + error.start
                raise DataError(f"{path} is not UTF-8 text: invalid byte at offset {at}; convert it first.") from None


def _read_jsonl(path: Path, advance: Advance) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with the words that name its place."""
    start = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                row = json.loads(line.decode("utf-8-sig")) if line.strip() else {}
            except UnicodeDecodeError as error:
                at = start + error.start
                raise DataError(f"{path} is not UTF-8 text: invalid byte at offset {at}; convert it first.") from None
            except json.JSONDecodeError as error:
                raise DataError(f"{where} is not JSON: {error.msg} at column {error.colno}.") from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
                raise DataError(f"{where} cannot be read as JSON: {error}.") from None
            if not isinstance(row, dict):
                raise DataError(f"{where} holds a {type(row).__name__}; an object with a text column is needed.")
            start += len(line)
            advance(len(line))
            if row:
                yield where, row


def _read_parquet(path: Path, column: str, advance: Advance) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a Parquet file, of which only the text column is read."""
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f'Reading {path} needs pyarrow: pip install "slm[data]".') from None
    try:
        # unless told otherwise, pyarrow reads the whole file ahead, and a column of a row group at once
        with ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            columns = [column] if column in file.schema_arrow.names else None  # None: all, for the message to list
            share = path.stat().st_size / max(file.metadata.num_rows, 1)
            batches = file.iter_batches(batch_size=1024, columns=columns)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, row in enumerate(rows, 1):
                advance(share)
                yield f"{path}, row {number}", row
    except (ArrowInvalid, OSError, UnicodeDecodeError) as error:  # no Parquet file at all; one with a damaged part
        raise DataError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0].rstrip('.')}.") from None


def _take_texts(rows: Iterable[tuple[str, dict[str, Any]]], column: str) -> Iterator[str]:
    """The text column of rows. Documents that are empty or null are left out."""
    for where, row in rows:
        if column not in row:
            raise DataError(f"{where} has no column {column!r}; the columns there are {', '.join(map(repr, row))}.")
        text = row[column]
        if not isinstance(text, str | None):
            raise DataError(f"{where}: {column!r} is a {type(text).__name__}, and text is needed.")
        if text:
            yield text


def _whole_documents(texts: Iterable[str]) -> Iterator[Piece]:
    """Each text as one piece."""
    return (Piece(text, True) for text in texts)


def _hold_out(texts: Iterable[str], split: str, val_fraction: float) -> Iterator[str]:
    """The documents of one side of a split by hash."""
    for text in texts:
        if in_validation(text.encode("utf-8", "surrogatepass"), val_fraction) == (split == "validation"):
            yield text


def _split_name(split: str) -> str:
    """The one name of a split that goes by several, such as "val"."""
    return next((name for name, others in SPLITS.items() if split in others), split)


Part = tuple[int, int]  # (k, n): the k-th, from 0, of n parts of a split


@dataclass(frozen=True)
class Reading:
    """One split of a source: the rule that made it, a function that gives its pieces, and its size in some unit."""

    rule: str
    pieces: Callable[[Advance], Iterator[Piece]]
    size: float | None
    unit: str


class StorySource:
    """The embedded stories: train and validation use different seeds, and train skips a story that validation holds."""

    TRAIN, VALIDATION, VALIDATION_SEED = 30_000, 1_000, 1_000_000_000

    def __init__(self, max_documents: int | None) -> None:
        self.name = "stories"
        self.sizes = {"train": max_documents or self.TRAIN, "validation": self.VALIDATION}
        self.sizes["validation"] = min(self.sizes.values())
        grammar = f"{stories.count()} {stories.entropy():.9f} " + "".join(map(stories.sample, range(10)))
        self.fingerprint = hashlib.sha256(grammar.encode()).hexdigest()

    def _texts(self, split: str, advance: Advance) -> Iterator[str]:
        held_out = [stories.sample(self.VALIDATION_SEED + i) for i in range(self.sizes["validation"])]
        excluded = set(held_out)
        train = (text for text in map(stories.sample, itertools.count()) if text not in excluded)
        for text in itertools.islice(train if split == "train" else held_out, self.sizes[split]):
            advance(1)
            yield text

    def shards(self, split: str) -> int:
        """They are written in seconds."""
        return 1

    def read(self, split: str, part: Part | None = None) -> Reading:
        """The pieces of "train" or "validation"."""
        if part:
            raise DataError("The stories cannot be divided into parts; they are written in seconds: leave part out.")
        if split not in self.sizes:
            raise DataError(f"The stories have no split {split!r}; there are 'train' and 'validation'.")
        rule = f"seeds from 0 for train, from {self.VALIDATION_SEED} for validation, no story in both"
        return Reading(rule, lambda advance: _whole_documents(self._texts(split, advance)), self.sizes[split], "story")


def _find_files(path: str | Path) -> list[Path]:
    """The text files that are not empty and that a path, folder or glob pattern stands for, sorted."""
    root = Path(path).expanduser()
    if root.is_dir():
        inside = (p for p in root.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        found = sorted(p for p in inside if not any(part.startswith(".") for part in p.relative_to(root).parts))
    else:
        matches = map(Path, glob.glob(str(root), recursive=True))
        found = [root] if root.exists() else sorted(p for p in matches if p.is_file())
    if not found and root.is_dir():
        raise DataError(f"The folder {path} has no {', '.join(SUFFIXES)} file.")
    if not found:
        raise DataError(f"{path} does not exist.")
    for file in found:
        if file.suffix not in SUFFIXES:
            raise DataError(f"{file} is not a kind of file that is read: {', '.join(SUFFIXES)}.")
    full = [file for file in found if file.stat().st_size]
    if not full:
        raise DataError(f"{path} is empty.")
    return full


def _split_of_file(path: Path) -> str | None:
    """The split that a file name carries as a word, such as "train" in `train-00001.parquet`."""
    words = re.split(r"[^a-z]+", path.name.removesuffix(path.suffix).lower())
    return next((split for split, names in SPLITS.items() if any(name in words for name in names)), None)


def _tail_start(file: Path, fraction: float) -> int:
    """Where the last `fraction` of a text file starts, moved on to the next blank line, else line, else character."""
    size = file.stat().st_size
    target = int(size * (1 - fraction))
    with open(file, "rb") as opened:
        opened.seek(target)
        window = opened.read(1 << 20)
    for boundary in (rb"\n\r?\n", rb"\n", rb"(?s:.)(?=[^\x80-\xbf])"):
        found = re.search(boundary, window)
        if found and target + found.end() < size:
            return target + found.end()
    with open(file, "rb") as opened:  # inside the last character: back to its first byte
        opened.seek(max(target - 3, 0))
        before = opened.read(target - opened.tell() + 1)
    while before and 0x80 <= before[-1] <= 0xBF:
        before, target = before[:-1], target - 1
    return target


def _glance(file: Path) -> str:
    """A hash of a file's first and last 64 KiB: with size and time, enough to tell files of one name apart."""
    with open(file, "rb") as opened:
        head = opened.read(1 << 16)
        opened.seek(max(file.stat().st_size - (1 << 16), 0))
        return hashlib.sha256(head + opened.read()).hexdigest()[:16]


class FileSource:
    """Files on this machine.

    Files whose names carry a split ("train.txt", "validation-0.parquet") are that split; a single "…train…" file brings
    the validation file beside it. Where there is no validation file, part of train is held out:

    - of .jsonl and .parquet files the documents whose hash, as a number between 0 and 1, is below `val_fraction`;
    - of .txt files, each of which is one document, that share of the files (those with the lowest hashes) if it makes
      at least one; else the last `val_fraction` of each, from a blank line or line end on.
    """

    def __init__(self, path: str | Path, text_column: str, val_fraction: float) -> None:
        self.path, self.name, self.column, self.val_fraction = path, Path(path).name, text_column, val_fraction
        files = _find_files(path)
        if len(files) == 1 and _split_of_file(files[0]) == "train":
            names = (re.sub("train(ing)?", other, files[0].name) for other in SPLITS["validation"])
            beside = (files[0].with_name(name) for name in names)
            files += itertools.islice((file for file in beside if file.is_file()), 1)
        self.fingerprint = [[file.name, file.stat().st_size, file.stat().st_mtime_ns, _glance(file)] for file in files]
        self.train = [file for file in files if _split_of_file(file) not in ("validation", "test")]
        self.others = {split: [file for file in files if _split_of_file(file) == split] for split in SPLITS}
        if not self.train:  # all are named for another split: then names say nothing
            self.train, self.others = files, {}

    def shards(self, split: str) -> int:
        """The number of files that a split is read from."""
        return len((split != "train" and self.others.get(split)) or self.train)

    def read(self, split: str, part: Part | None = None) -> Reading:
        """The pieces of "train", "validation", or a split that files are named for; part by part, whole files."""
        if split != "train" and self.others.get(split):
            return self._reading(f"the files named {split}", self.others[split], None, part)
        if split == "train" and self.others.get("validation"):
            return self._reading("the files not named for another split", self.train, None, part)
        if split in ("train", "validation"):
            return self._reading(f"{self.val_fraction:g} held out for validation", self.train, split, part)
        raise DataError(f"{self.path} has no split {split!r}; there are 'train' and 'validation'.")

    def _reading(self, rule: str, files: list[Path], split: str | None, part: Part | None) -> Reading:
        """Files read whole (split None), or the side of a split that has to be made."""
        held, text_files = set(), [file for file in files if file.suffix == ".txt"]
        n_held = int(len(text_files) * self.val_fraction)
        if split and n_held:
            digests = {}
            for file in text_files:
                with open(file, "rb") as opened:
                    digests[file] = hashlib.file_digest(opened, "sha256").digest()
            held = {file for file in text_files if digests[file] <= sorted(digests.values())[n_held - 1]}

        def ranges(file: Path) -> tuple[int, int]:  # the bytes of a text file that belong to the split
            size = file.stat().st_size
            if split and n_held:
                return (0, size) if (file in held) == (split == "validation") else (0, 0)
            cut = _tail_start(file, self.val_fraction) if split else 0
            return (0, cut) if split == "train" else (cut, size)

        k, n = part or (0, 1)  # divided only now: which files are held out depends on all of them
        files = files[k * len(files) // n : (k + 1) * len(files) // n]

        def pieces(advance: Advance) -> Iterator[Piece]:
            for file in files:
                if file.suffix == ".txt":
                    yield from split_pieces(_read_utf8(file, *ranges(file), advance))
                    continue
                jsonl = file.suffix == ".jsonl"
                rows = _read_jsonl(file, advance) if jsonl else _read_parquet(file, self.column, advance)
                texts = _take_texts(rows, self.column)
                yield from _whole_documents(_hold_out(texts, split, self.val_fraction) if split else texts)

        return Reading(rule, pieces, sum(file.stat().st_size for file in files), "B")


def _hub_answers(seconds: float = 4.0) -> bool:
    """Whether the Hugging Face hub can be reached. In a thread, since looking up its address knows no time limit."""
    from huggingface_hub import constants

    answered = threading.Event()

    def ask() -> None:
        try:
            requests.head(constants.ENDPOINT, timeout=seconds)
        except requests.RequestException:
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


class HubSource:
    """A data set of the Hugging Face hub: "owner/name" or "owner/name:config", with "@revision" behind it if need be.

    Its token files are found again without a network. A validation split that it lacks is made by hash from train.
    """

    PATTERN = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w./-]+))?")

    def __init__(self, name: str, text_column: str, val_fraction: float, streaming: bool) -> None:
        found = self.PATTERN.fullmatch(name)
        if not found:
            raise DataError(
                f"{name!r} is no corpus: it must be 'stories', a {', '.join(SUFFIXES)} file, a folder of such files, "
                f"or a data set of the Hugging Face hub, 'owner/name' or 'owner/name:config'."
            )
        self.name = self.fingerprint = name
        self.repository, self.config, self.revision = found.groups()
        self.column, self.val_fraction, self.streaming = text_column, val_fraction, streaming

    def _load(self, streaming: bool) -> Any:
        """The data set's splits, as `datasets` gives them."""
        try:
            import datasets
        except ImportError:
            raise DataError(f'Reading {self.name!r} from the hub needs datasets: pip install "slm[data]".') from None
        offline = datasets.config.HF_HUB_OFFLINE
        if not offline and not _hub_answers():
            raise DataError(
                f"The Hugging Face hub does not answer, so {self.name!r} cannot be read: use 'stories' or a local "
                f"file, or set HF_HUB_OFFLINE=1 if the data set is already in this machine's cache."
            )
        try:
            return datasets.load_dataset(
                self.repository, self.config, revision=self.revision, streaming=streaming and not offline
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            hint = "; HF_HUB_OFFLINE is set, so only this machine's cache was searched" if offline else ""
            raise DataError(f"Cannot read {self.name!r} from the Hugging Face hub: {reason}{hint}.") from error

    def _split(self, split: str, streaming: bool) -> tuple[Any, bool]:
        """The rows that a split is read from, and whether it has to be made from train."""
        loaded = self._load(streaming)
        splits = {_split_name(name): data for name, data in loaded.items()}
        made = split in ("train", "validation") and "train" in splits and "validation" not in splits
        if split not in splits and not made:
            raise DataError(f"{self.name!r} has no split {split!r}; it has {', '.join(map(repr, loaded))}.")
        return splits["train" if made else split], made

    def shards(self, split: str) -> int:
        """The number of files that a split is read from; 1 for a data set that only this machine's cache holds."""
        return getattr(self._split(split, streaming=True)[0], "num_shards", 1)

    def read(self, split: str, part: Part | None = None) -> Reading:
        """The pieces of any split that the data set has, and of "validation"; a part reads only its own files."""
        data, made = self._split(split, self.streaming or part is not None)
        if part:
            most = data.num_shards if hasattr(data, "num_shards") else len(data)  # files, or rows of what is stored
            k, n = part[0], min(part[1], most)
            data = data.shard(n, k) if k < n else data.take(0)
        if self.column in (data.column_names or ()):
            data = data.select_columns([self.column])

        def rows(advance: Advance) -> Iterator[tuple[str, dict[str, Any]]]:
            for number, row in enumerate(data, 1):
                advance(1)
                yield f"{self.name}, row {number}", row

        def pieces(advance: Advance) -> Iterator[Piece]:
            texts = _take_texts(rows(advance), self.column)
            return _whole_documents(_hold_out(texts, split, self.val_fraction) if made else texts)

        rule = f"{self.val_fraction:g} of train held out by hash" if made else f"the data set's own {split!r}"
        return Reading(rule, pieces, None if not hasattr(data, "__len__") else len(data), "document")


Source = StorySource | FileSource | HubSource


def find_source(
    source: str | Path, text_column: str, max_documents: int | None, val_fraction: float, streaming: bool | None
) -> Source:
    """What a name or path stands for: the stories, local files, or a data set of the hub."""
    text = str(source)
    if source == "stories":
        return StorySource(max_documents)
    local = text.endswith(SUFFIXES) or text.startswith((".", "~", "/")) or glob.has_magic(text) or os.path.exists(text)
    if isinstance(source, Path) or local:
        return FileSource(source, text_column, val_fraction)
    return HubSource(text, text_column, val_fraction, max_documents is not None if streaming is None else streaming)


FORMAT = 1  # of token files; one of another format is never read

NOTE_SECONDS = 5.0  # the most work that a killed preparation loses


@contextmanager
def _full_disk_in_words(path: Path) -> Iterator[None]:
    """Say in one sentence that there is no room for a file."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DataError(
            f"{path} could not be written ({error.strerror}): make room or choose another cache_dir."
        ) from error


def _remove_unfinished(path: Path) -> None:
    """Remove what an unfinished preparation of a token file leaves."""
    for name in (f".{path.name}.partial", f".{path.name}.note", f".{path.name}.note.tmp", f"{path.stem}.json.tmp"):
        path.with_name(name).unlink(missing_ok=True)


def _write_whole(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that takes its name once it is complete and on the disk."""
    unfinished = path.with_name(f"{path.name}.tmp")
    with open(unfinished, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def _first_documents(pieces: Iterable[Piece], n: int | None) -> Iterator[Piece]:
    """Pieces up to the end of document n."""
    count = 0
    for piece in pieces:
        count += piece.starts
        if n is not None and count > n:
            return
        yield piece


def _batch_pieces(pieces: Iterable[Piece], characters: int = 1 << 19) -> Iterator[list[Piece]]:
    """Pieces in groups so large that handing one to a thread costs nothing beside encoding it."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass
class Progress:
    """How far a token file has got: the note that lies beside it while it is being made."""

    batches: int = 0
    documents: int = 0
    tokens: int = 0
    texts: str = ""  # a digest of the texts that were read
    sha256: str = hashlib.sha256().hexdigest()  # of the tokens that were written


def _digest_of_texts(before: str, batch: list[Piece]) -> str:
    """The digest of all texts up to a batch, from that of the texts before it."""
    joined = "\0".join([before, *(piece.text for piece in batch)])
    return hashlib.blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _read_note(note: Path, partial: Path, itemsize: int) -> tuple[Progress, Any]:
    """What a killed process left, as far as it agrees with its note; and the running SHA-256 of those tokens."""
    digest = hashlib.sha256()
    if not (note.is_file() and partial.is_file()):
        return Progress(), digest
    try:
        progress = Progress(**json.loads(note.read_bytes()))
    except (ValueError, TypeError):  # by a version that noted something else
        return Progress(), digest
    left = progress.tokens * itemsize
    with open(partial, "rb") as file:
        while block := file.read(min(1 << 20, left)):
            digest.update(block)
            left -= len(block)
    return (progress, digest) if digest.hexdigest() == progress.sha256 else (Progress(), hashlib.sha256())


def _write_tokens(path: Path, reading: Reading, tokenizer: Tokenizer, about: dict[str, Any], n: int | None) -> None:
    """Tokenize one split into a file beside `path` and, when that is complete and has its sidecar, give it its name.

    Every few seconds the tokens so far are forced to the disk, and a note says how far they reach. A later call reads
    the same texts up to there without tokenizing them, and goes on; if they are not the same, it begins anew.
    """
    dtype = np.dtype(np.uint16 if tokenizer.n_vocab <= 1 << 16 else np.uint32)
    partial, note = (path.with_name(f".{path.name}.{end}") for end in ("partial", "note"))

    def batches() -> Iterator[list[Piece]]:
        return _batch_pieces(_first_documents(reading.pieces(bar.update), n))

    def tokenize(batch: list[Piece]) -> tuple[list[Piece], np.ndarray]:
        return batch, encode(batch, tokenizer).astype(dtype)

    with tqdm(desc=path.stem, total=reading.size, unit=reading.unit, unit_scale=True, disable=None) as bar:
        done, digest = _read_note(note, partial, dtype.itemsize)
        todo = batches()
        if functools.reduce(_digest_of_texts, itertools.islice(todo, done.batches), "") != done.texts:
            done, digest, todo = Progress(), hashlib.sha256(), batches()
            bar.reset()
        before, began = done.tokens, time.monotonic()
        noted = began
        with open(partial, "ab") as file:
            file.truncate(done.tokens * dtype.itemsize)
            for batch, tokens in map_ahead(tokenize, todo, min(os.cpu_count() or 1, 8)):
                file.write(tokens.data)
                digest.update(tokens.data)
                done.batches, done.tokens = done.batches + 1, done.tokens + len(tokens)
                done.documents += sum(piece.starts for piece in batch)
                done.texts, now = _digest_of_texts(done.texts, batch), time.monotonic()
                speed = (done.tokens - before) / max(now - began, 1e-9)
                bar.set_postfix_str(f"{done.tokens / 1e6:.1f} M tokens, {speed / 1e6:.2f} M tokens/s", refresh=False)
                if now - noted > NOTE_SECONDS:
                    file.flush()
                    os.fsync(file.fileno())
                    done.sha256, noted = digest.hexdigest(), now
                    _write_whole(note, asdict(done))
            end = np.array([tokenizer.eot_token], dtype=dtype)
            file.write(end.data)
            digest.update(end.data)
            file.flush()
            os.fsync(file.fileno())
    facts = {"format": FORMAT, "tokens": done.tokens + 1, "documents": done.documents, "dtype": dtype.name}
    _give_name(path, {**facts, "tokens_sha256": digest.hexdigest(), **about, "rule": reading.rule})


def _give_name(path: Path, sidecar: dict[str, Any]) -> None:
    """Write the sidecar of a token file that is complete under its temporary name, and then give it its own."""
    if sidecar["documents"] == 0 and "part" not in sidecar:
        raise DataError(f"The split {sidecar['split']!r} of {sidecar['source']} holds no text ({sidecar['rule']}).")
    path.unlink(missing_ok=True)  # tokens that had lost their sidecar
    _write_whole(path.with_suffix(".json"), sidecar)
    os.replace(path.with_name(f".{path.name}.partial"), path)


def _write_joined(path: Path, parts: list[Path]) -> None:
    """Write finished parts one behind the other, without the end-of-text at their ends but for the last."""
    abouts, digest = [_read_sidecar(part) for part in parts], hashlib.sha256()
    dtype = np.dtype(abouts[0]["dtype"])
    end = np.array([abouts[0]["tokenizer"]["eot_token"]], dtype=dtype).tobytes()
    with open(path.with_name(f".{path.name}.partial"), "wb") as file:
        for part, about in zip(parts, abouts, strict=True):
            own, left = hashlib.sha256(), (about["tokens"] - 1) * dtype.itemsize
            with open(part, "rb") as opened:
                while block := opened.read(min(1 << 20, left)):
                    for to in (own.update, digest.update, file.write):
                        to(block)
                    left -= len(block)
                own.update(opened.read())
            if own.hexdigest() != about["tokens_sha256"]:
                raise DataError(f"{part} is damaged: its contents are not what was written; delete it, and prepare it.")
        file.write(end)
        digest.update(end)
        file.flush()
        os.fsync(file.fileno())
    sidecar = {name: value for name, value in abouts[0].items() if name != "part"}
    sidecar["tokens"] = sum(about["tokens"] - 1 for about in abouts) + 1
    sidecar["documents"] = sum(about["documents"] for about in abouts)
    _give_name(path, {**sidecar, "tokens_sha256": digest.hexdigest()})


def _read_sidecar(path: Path) -> dict[str, Any]:
    """The JSON beside a token file, once the file agrees with it in format and size.

    Raises:
        DataError: one of the two files is missing, damaged, or does not belong to the other.
    """
    sidecar = path.with_suffix(".json")
    for file in (path, sidecar):
        if not file.is_file():
            raise DataError(f"{file} does not exist; prepare_tokens makes a token file and its sidecar.")
    try:
        about = json.loads(sidecar.read_bytes())
        version, expected = about["format"], about["tokens"] * np.dtype(about["dtype"]).itemsize
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{sidecar} is damaged: delete it, and prepare the text again.") from None
    if version != FORMAT:
        raise DataError(f"{path} has format {version} and this version of slm reads {FORMAT}: prepare the text again.")
    if path.stat().st_size != expected:
        raise DataError(
            f"{path} is damaged: it has {path.stat().st_size} bytes where its sidecar says {expected}; "
            f"delete it, and prepare the text again."
        )
    return about


def _is_there(path: Path) -> bool:
    """Whether a token file and its sidecar are there; they are refused if they do not belong together."""
    if not (path.exists() and path.with_suffix(".json").exists()):
        return False
    _read_sidecar(path)
    return True


def _lock(path: Path) -> AbstractContextManager[object]:
    """Wait until no other process is making a token file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_name(f".{path.name}.lock")).acquire()
    except OSError as error:
        raise DataError(f"{path.parent} cannot be written to ({error.strerror}): choose another cache_dir.") from error


def _part_file(path: Path, part: Part) -> Path:
    """The path of one part of a token file."""
    return path.with_name(f"{path.stem}.part-{part[0]}-of-{part[1]}.tokens")


@dataclass(frozen=True)
class Plan:
    """What a token file is made of, and where it lies: the same for the whole and for each of its parts."""

    found: Source
    tokenizer: Tokenizer
    path: Path
    about: dict[str, Any]


def _plan(
    source: str | Path,
    split: str,
    tokenizer: str | Tokenizer,
    cache_dir: str | Path,
    text_column: str,
    max_documents: int | None,
    val_fraction: float,
    streaming: bool | None = None,
) -> Plan:
    """Find a source, and the name of its token file."""
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction}; it must lie between 0 and 1.")
    if max_documents is not None and max_documents < 1:
        raise DataError(f"max_documents is {max_documents}; it must be at least 1.")
    tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else get_tokenizer(tokenizer)
    found = find_source(source, text_column, max_documents, val_fraction, streaming)
    about: dict[str, Any] = {"source": found.name, "fingerprint": found.fingerprint, "split": _split_name(split)}
    about |= {"text_column": text_column, "max_documents": max_documents, "val_fraction": val_fraction}
    key = hashlib.sha256(json.dumps([FORMAT, about, tokenizer.fingerprint], sort_keys=True).encode()).hexdigest()[:12]
    stem = re.sub(r"[^\w.-]+", "-", f"{found.name}-{about['split']}").strip(".-")
    about["tokenizer"] = {
        "name": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "eot_token": tokenizer.eot_token,
    }
    return Plan(found, tokenizer, Path(cache_dir).expanduser() / f"{stem}-{key}.tokens", about)


def prepare_tokens(
    source: str | Path,
    split: str = "train",
    tokenizer: str | Tokenizer = "gpt2",
    cache_dir: str | Path = "data",
    text_column: str = "text",
    max_documents: int | None = None,
    val_fraction: float = 0.1,
    streaming: bool | None = None,
    part: Part | None = None,
) -> Path:
    """Tokenize one split of a corpus into a file of ids, unless that was done before.

    The file holds uint16 (uint32 for a vocabulary above 65,536), end-of-text first, last and between documents. The
    JSON file beside it says what it was made of; without one it is not finished. Documents are read as a stream and
    tokenized by threads, so the memory needed does not grow with the corpus. A call that was killed is gone on with by
    the next one. A second process that asks for the same file waits for the first.

    Args:
        source: "stories"; a .txt, .jsonl or .parquet file, a folder of such files or a pattern like "texts/*.txt"; or
            "owner/name" or "owner/name:config" on the Hugging Face hub (needs `pip install "slm[data]"`).
        split: "train", "validation", or any split that the source has by name.
        tokenizer: A name or path for `get_tokenizer`, or what it gave.
        cache_dir: Folder of the token files; it is created.
        text_column: The column of .jsonl, .parquet and hub data that holds the text.
        max_documents: At most so many documents. Of the stories, 30,000 unless said; validation has 1,000 at most.
        val_fraction: The share of train that becomes validation where the source has none; see `FileSource`.
        streaming: Read a hub data set over the network instead of downloading it first. Unless said, only if
            `max_documents` or `part` is given; a part is always read so.
        part: (k, n): only the k-th, from 0, of n runs of the source's files, into a file for `join_tokens`. With more
            parts than files some are empty.

    Returns:
        The path of the token file, for `TokenDataset`; with `part`, that of the part, unless the whole is there.

    Raises:
        DataError: the source cannot be found, read or divided, or has no text; the disk is full.
    """
    if part and not 0 <= part[0] < part[1]:
        raise DataError(f"part is {part}; it must be (k, n) with k from 0 to n - 1.")
    if part and max_documents is not None:
        raise DataError(
            "max_documents counts from the first document on, so it cannot be divided: leave out one of the two."
        )
    plan = _plan(source, split, tokenizer, cache_dir, text_column, max_documents, val_fraction, streaming)
    if _is_there(plan.path):
        return plan.path
    path = _part_file(plan.path, part) if part else plan.path
    about = {**plan.about, "part": list(part)} if part else plan.about
    if _is_there(path):
        return path
    with _lock(path):
        if _is_there(path):  # another process made it in the meantime
            return path
        reading = plan.found.read(about["split"], part)
        try:
            with _full_disk_in_words(path):
                _write_tokens(path, reading, plan.tokenizer, about, max_documents)
        except DataError:  # from where no call could go on
            _remove_unfinished(path)
            raise
        _remove_unfinished(path)
    return path


def count_shards(
    source: str | Path,
    split: str = "train",
    tokenizer: str | Tokenizer = "gpt2",
    cache_dir: str | Path = "data",
    text_column: str = "text",
    max_documents: int | None = None,
    val_fraction: float = 0.1,
) -> int:
    """The most parts of a split that can have text: its number of files. 1 if it is prepared, or cannot be divided.

    Raises:
        DataError: the source cannot be found.
    """
    plan = _plan(source, split, tokenizer, cache_dir, text_column, max_documents, val_fraction)
    return 1 if max_documents is not None or _is_there(plan.path) else plan.found.shards(plan.about["split"])


def join_tokens(
    n: int,
    source: str | Path,
    split: str = "train",
    tokenizer: str | Tokenizer = "gpt2",
    cache_dir: str | Path = "data",
    text_column: str = "text",
    val_fraction: float = 0.1,
) -> Path:
    """Join n finished parts into the file that `prepare_tokens` would make of the whole, and remove them.

    Parts are runs of files in the order of the source, so the joined file is the undivided one, bit by bit, and lies
    where that would lie. A call that was killed is begun anew by the next one.

    Args:
        n: How many parts there are.
        source, split, tokenizer, cache_dir, text_column, val_fraction: As for the parts, see `prepare_tokens`.

    Raises:
        DataError: a part is missing or damaged, or no part has text; the disk is full.
    """
    if n < 1:
        raise DataError(f"n is {n}; it must be at least 1.")
    path = _plan(source, split, tokenizer, cache_dir, text_column, None, val_fraction).path
    parts = [_part_file(path, (k, n)) for k in range(n)]
    with _lock(path):
        if not _is_there(path):
            missing = ", ".join(str(k) for k, part in enumerate(parts) if not _is_there(part))
            if missing:
                raise DataError(f"{path} cannot be joined of {n} parts: prepare the missing ones first ({missing}).")
            try:
                with _full_disk_in_words(path):
                    _write_joined(path, parts)
            finally:
                _remove_unfinished(path)
        for part in parts:
            for file in (part, part.with_suffix(".json"), part.with_name(f".{part.name}.lock")):
                file.unlink(missing_ok=True)
    return path


class TokenDataset(RowDataset):
    """A token file, mapped into memory and read row by row. Nothing of it is loaded before it is asked for.

    Args:
        path: What `prepare_tokens` returned.
        context_length: T, in tokens.
        packing: "stream" or "documents", see `RowDataset`.
        tokenizer: If given, the file must have been made with it.

    Raises:
        DataError: the file is damaged, comes from another tokenizer, or has fewer tokens than one row needs.
    """

    def __init__(
        self, path: str | Path, context_length: int, packing: str = "stream", tokenizer: Tokenizer | None = None
    ) -> None:
        self.path, self.tokenizer, self.about = Path(path), tokenizer, _read_sidecar(Path(path))
        made_by = self.about["tokenizer"]
        if tokenizer is not None and made_by["fingerprint"] != tokenizer.fingerprint:
            raise DataError(
                f"{path} holds ids of the tokenizer {made_by['name']!r} ({made_by['fingerprint']}), "
                f"not of {tokenizer.name!r} ({tokenizer.fingerprint}): prepare the text again."
            )
        tokens = np.asarray(np.memmap(self.path, dtype=self.about["dtype"], mode="r"))
        eot = made_by["eot_token"]
        if tokens[0] != eot or tokens[-1] != eot:
            raise DataError(f"{path} is damaged: it does not begin and end with end-of-text; prepare the text again.")
        super().__init__(tokens, context_length, eot, packing, str(path))

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets the path, not a copy of the tokens."""
        return TokenDataset, (self.path, self.context_length, self.packing, self.tokenizer)

    def verify(self) -> None:
        """Read the whole file and compare its SHA-256 with the one noted when it was written.

        Raises:
            DataError: a bit has changed.
        """
        with open(self.path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.about["tokens_sha256"]:
            raise DataError(f"{self.path} is damaged: its contents are not what was written; delete it.")


@functools.lru_cache(maxsize=2)  # a batch can reach into the next epoch
def epoch_order(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    """All row indices in the order of one epoch: `(n_rows,)`, a function of the arguments alone.

    `RandomState` is numpy's frozen generator: a later numpy gives the same order, and can resume a run.
    """
    order = np.arange(n_rows, dtype=np.uint32 if n_rows < 1 << 32 else np.uint64)
    np.random.RandomState([seed, epoch]).shuffle(order)
    order.flags.writeable = False
    return order


class TokenLoader:
    """Batches of rows, for ever, in an order that depends on nothing but (seed, step).

    Rows are dealt out in a new order each epoch, and a batch may hold the end of one epoch and the start of the next,
    so no row is left out. With `world_size` processes a global batch has `batch_size * world_size` rows, and rank r
    takes the r-th `batch_size` of them: the ranks' batches, one below the other, are the batch of a single process.

    Args:
        dataset: Rows of tokens.
        batch_size: B, the rows that this process gets per step.
        shuffle: False keeps the order of the file.
        seed: Of the order of rows, 0 or more and below 2**32.
        rank, world_size: This process among all that train together.
        num_workers: Threads that prepare batches ahead. Copying out of a memory map lets other threads run, so threads
            are enough, and nothing has to be sent between processes.
        pin_memory: Put batches in page-locked memory, from which a GPU can fetch them while it works. Unless said, if
            there is a CUDA device.
    """

    def __init__(
        self,
        dataset: TextDataset | TokenDataset,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0)):
            if value < least:
                raise DataError(f"{name} is {value}; it must be at least {least}.")
        if seed >= 1 << 32:
            raise DataError(f"seed is {seed}; it must be below 2**32 = {1 << 32}.")
        if not 0 <= rank < world_size:
            raise DataError(f"rank is {rank} with world_size {world_size}; it must be 0 or more and below world_size.")
        self.dataset, self.batch_size, self.shuffle, self.seed = dataset, batch_size, shuffle, seed
        self.rank, self.world_size, self.num_workers = rank, world_size, num_workers
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.tokenizer = dataset.tokenizer
        self.tokens_per_batch = batch_size * dataset.context_length  # B·T, of this process
        self.steps_per_epoch = -(-len(dataset) // (batch_size * world_size))  # after so many, each row has been seen
        self.step = 0

    def indices(self, step: int) -> np.ndarray:
        """The rows of a step: `(B,)`."""
        n_rows = len(self.dataset)
        first = (step * self.world_size + self.rank) * self.batch_size
        epoch, place = np.divmod(np.arange(first, first + self.batch_size), n_rows)  # (B,) both
        if not self.shuffle:
            return place
        epochs = range(epoch[0], epoch[-1] + 1)
        return np.concatenate([epoch_order(n_rows, self.seed, e)[place[epoch == e]] for e in epochs])

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of any step, past or future: x and y, both `(B, T)` int64."""
        return self._fetch(self.indices(step))

    def _fetch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        x, y = self.dataset.rows(indices)
        return (x.pin_memory(), y.pin_memory()) if self.pin_memory else (x, y)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches from the present step on, without end."""
        for batch in map_ahead(self.batch, itertools.count(self.step), self.num_workers):
            self.step += 1
            yield batch

    def epoch_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each row exactly once over all ranks, in the order of the file; the last batch may be shorter."""
        n_rows = len(self.dataset)
        firsts = range(self.rank * self.batch_size, n_rows, self.batch_size * self.world_size)
        groups = (np.arange(first, min(first + self.batch_size, n_rows)) for first in firsts)
        return map_ahead(self._fetch, groups, self.num_workers)

    def state_dict(self) -> dict[str, int]:
        """The seed of the order, and the next step to be handed out."""
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where another loader stood; the next iterator starts there."""
        self.seed, self.step = state["seed"], state["step"]


def create_dataloader(
    dataset_name: str | None = None,
    dataset_path: str | Path | None = None,
    split: str = "train",
    batch_size: int = 16,
    context_length: int = 1024,
    num_workers: int = 0,
    tokenizer: str | Tokenizer = "gpt2",
    packing: str = "stream",
    seed: int = 0,
    shuffle: bool = True,
    rank: int = 0,
    world_size: int = 1,
    cache_dir: str | Path = "data",
    text_column: str = "text",
    max_documents: int | None = None,
    val_fraction: float = 0.1,
    streaming: bool | None = None,
    pin_memory: bool | None = None,
) -> TokenLoader:
    """Batches `(x, y)` of token ids from any corpus, tokenized on the first call.

    Args:
        dataset_name: "stories", a data set of the Hugging Face hub, or a path; or else
        dataset_path: a file, folder or pattern on this machine.
        split, tokenizer, cache_dir, text_column, max_documents, val_fraction, streaming: See `prepare_tokens`.
        context_length, packing: See `TokenDataset`.
        batch_size, num_workers, seed, shuffle, rank, world_size, pin_memory: See `TokenLoader`.

    Raises:
        DataError: What `prepare_tokens`, `TokenDataset` or `TokenLoader` finds wrong, in one sentence.
    """
    if (dataset_name is None) == (dataset_path is None):
        raise DataError("Give either dataset_name ('stories' or a hub data set) or dataset_path, one of the two.")
    source = dataset_name if dataset_name is not None else Path(str(dataset_path))
    tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else get_tokenizer(tokenizer)
    path = prepare_tokens(source, split, tokenizer, cache_dir, text_column, max_documents, val_fraction, streaming)
    dataset = TokenDataset(path, context_length, packing, tokenizer)
    return TokenLoader(dataset, batch_size, shuffle, seed, rank, world_size, num_workers, pin_memory)
