"""Text becomes a file of token ids: whole or not there, and gone on with after a kill.

    path = prepare_tokens(DataConfig("my_texts/"), "train", get_tokenizer("gpt2"))

Exported from chapters/08_prepare.py; edit it there.
"""

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from slm.data import corpus
from slm.data.batches import encode, map_ahead
from slm.data.corpus import DataConfig, Part, Reading, find_source, split_name
from slm.data.readers import Piece
from slm.data.tokenizer import Tokenizer
from slm.errors import SlmError
from slm.files import force, has_kinds, json_object, publish, user_path, write_text

# The note

FORMAT = 2  # of token files and the rules of reading; another is never read
NOTE_SECONDS = 5.0  # about the most work that a killed preparation loses


def _first_documents(pieces: Iterable[Piece], n: int | None) -> Iterator[Piece]:
    """Pieces up to the end of document n."""
    count = 0
    for piece in pieces:
        count += piece.starts
        if n is not None and count > n:
            return
        yield piece


def _batch_pieces(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces in groups of so many characters that handing one to a thread is cheap."""
    batch, held = list[Piece](), 0
    for piece in pieces:
        batch.append(piece)
        held += len(piece.text)
        if held >= 1 << 19:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _digest_of_texts(before: str, batch: list[Piece]) -> str:
    """The digest of all texts up to a batch, from that of the texts before it."""
    joined = "\0".join([before, *(piece.text for piece in batch)])
    content = joined.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclass
class Progress:
    """How far a token file has got: the note that lies beside it while it is made."""

    batches: int = 0
    documents: int = 0
    tokens: int = 0
    texts: str = ""  # a digest of the texts that were read
    sha256: str = hashlib.sha256().hexdigest()  # of the tokens that were written

    def add(self, batch: list[Piece], tokens: np.ndarray) -> None:
        """Count one more batch of pieces, and the ids that it gave."""
        self.batches += 1
        self.documents += sum(piece.starts for piece in batch)
        self.tokens += len(tokens)
        self.texts = _digest_of_texts(self.texts, batch)


# The writer


class _Writer:
    """A token file that is being made, under a temporary name beside its own."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.dtype = path, dtype
        self.partial = path.with_name(f".{path.name}.partial")
        self.note = path.with_name(f".{path.name}.note")
        self.start_anew()

    def take_over(self) -> None:
        """Go on with what a killed process left, as far as it agrees with its note."""
        if not (self.note.is_file() and self.partial.is_file()):
            return
        note = json_object(self.note.read_bytes(), kinds := get_type_hints(Progress))
        if note is None or note.keys() != kinds.keys():  # of another version
            return
        noted = Progress(**note)
        digest = hashlib.sha256()
        for block in _blocks(self.partial, noted.tokens * self.dtype.itemsize):
            digest.update(block)
        if digest.hexdigest() == noted.sha256:
            self.progress, self.digest = noted, digest

    def start_anew(self) -> None:
        """Forget what was left behind."""
        self.progress, self.digest = Progress(), hashlib.sha256()

    def __enter__(self) -> "_Writer":
        self.file = open(self.partial, "ab")
        self.file.truncate(self.progress.tokens * self.dtype.itemsize)
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, tokens: np.ndarray | bytes) -> None:
        """Append ids."""
        data = tokens if isinstance(tokens, bytes) else tokens.data
        self.file.write(data)
        self.digest.update(data)

    def take_note(self) -> None:
        """Force the tokens to the disk, and then say how far they reach."""
        self.file.flush()
        force(self.partial)
        self.progress.sha256 = self.digest.hexdigest()
        write_text(self.note, json.dumps(asdict(self.progress)))

    def finish(self, eot_token: int, about: dict[str, Any]) -> None:
        """Write the last end-of-text and the sidecar, and publish the tokens."""
        self.write(np.array([eot_token], dtype=self.dtype))
        self.file.close()
        if self.progress.documents == 0 and "part" not in about:
            of = f"The split {about['split']!r} of {about['source']}"
            cure = "give it more, or another data.val_fraction"
            raise SlmError(f"{of} holds no text ({about['rule']}): {cure}.")
        counts = {"tokens": self.progress.tokens + 1, "dtype": self.dtype.name}
        counts |= {"format": FORMAT, "documents": self.progress.documents}
        about = {**about, **counts, "tokens_sha256": self.digest.hexdigest()}
        self.path.unlink(missing_ok=True)  # tokens that had lost their sidecar
        write_text(self.path.with_suffix(".json"), json.dumps(about, indent=2))
        publish(self.partial, self.path)

    def discard(self) -> None:
        """Remove all that an unfinished preparation leaves."""
        self.partial.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        for name in (f".{self.path.name}.*.tmp", f"{self.path.stem}.json.*.tmp"):
            for file in self.path.parent.glob(name):
                file.unlink(missing_ok=True)


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a file, a megabyte at a time."""
    with open(path, "rb") as file:
        while block := file.read(min(1 << 20, size)):
            size -= len(block)
            yield block


# The sidecar

SIDECAR = {"format": int, "dtype": str, "tokens": int, "documents": int}
SIDECAR |= {"split": str, "tokens_sha256": str, "tokenizer": dict}
OF_TOKENIZER = {"name": str, "fingerprint": str, "eot_token": int}


def read_sidecar(path: Path) -> dict[str, Any]:
    """The JSON beside a token file, once the file agrees with it in format and size.

    Raises:
        SlmError: One of the two is missing, damaged, or does not belong to the other.
    """
    sidecar = path.with_suffix(".json")
    for file in (path, sidecar):
        if not file.is_file():
            makes = "prepare_tokens makes a token file and its sidecar"
            raise SlmError(f"{file} does not exist; {makes}.")
    about = json_object(sidecar.read_bytes(), {"format": int})
    if about is not None and about["format"] != FORMAT:
        reads = f"this version of slm reads {FORMAT}: prepare the text again"
        raise SlmError(f"{path} has format {about['format']} and {reads}.")
    whole = has_kinds(about, SIDECAR) and has_kinds(about["tokenizer"], OF_TOKENIZER)
    if not whole or about["dtype"] not in ("uint16", "uint32"):
        cure = "delete it, and prepare the text again"
        raise SlmError(f"{sidecar} is damaged: {cure}.")
    expected = about["tokens"] * np.dtype(about["dtype"]).itemsize
    if path.stat().st_size != expected:
        wrong = f"it has {path.stat().st_size} bytes where its sidecar says {expected}"
        cure = "delete it, and prepare the text again"
        raise SlmError(f"{path} is damaged: {wrong}; {cure}.")
    return about


def remove_tokens(path: Path) -> None:
    """Delete a token file, its sidecar and its lock."""
    lock = path.with_name(f".{path.name}.lock")
    for file in (path.with_suffix(".json"), path, lock):
        file.unlink(missing_ok=True)


def _is_there(path: Path) -> bool:
    """Whether a token file and its sidecar are there; they must belong together."""
    if not (path.exists() and path.with_suffix(".json").exists()):
        return False
    read_sidecar(path)
    return True


# What decides the name

CHOOSING = ("text_column", "max_documents", "val_fraction")  # settings that choose text


def _plan(
    data: DataConfig, split: str, tokenizer: Tokenizer
) -> tuple[corpus.Source, Path, dict[str, Any]]:
    """Find a source, the name of its token file, and what the sidecar will say."""
    source, split = find_source(data), split_name(split)
    about: dict[str, Any] = {"source": source.name, "fingerprint": source.fingerprint}
    about |= {"split": split} | {key: getattr(data, key) for key in CHOOSING}
    made_of = json.dumps([FORMAT, about, tokenizer.fingerprint], sort_keys=True)
    key = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    stem = re.sub(r"[^\w.-]+", "-", f"{source.name}-{split}").strip(".-")
    path = user_path(data.cache_dir) / f"{stem}-{key}.tokens"
    kept = ("name", "fingerprint", "eot_token")
    about["tokenizer"] = {key: getattr(tokenizer, key) for key in kept}
    return source, path, about


def _part_file(path: Path, part: Part) -> Path:
    """The path of one part of a token file."""
    return path.with_name(f"{path.stem}.part-{part[0]}-of-{part[1]}.tokens")


# From pieces to ids


def _encode_pieces(pieces: list[Piece], tokenizer: Tokenizer) -> np.ndarray:
    """The ids of some pieces, with end-of-text before each document: `(N,)` uint32."""
    eot = np.array([tokenizer.eot_token], dtype=np.uint32)
    parts = []
    for text, starts in pieces:
        if starts:
            parts.append(eot)
        parts.append(encode(text, tokenizer))
    return np.concatenate(parts)


def _write_tokens(
    writer: _Writer, reading: Reading, tokenizer: Tokenizer, about: dict[str, Any]
) -> None:
    """Tokenize one split, from where a killed call stopped, and publish the file."""
    n, size, unit = about["max_documents"], reading.size, reading.unit
    name, threads = writer.path.stem, min(os.cpu_count() or 1, 8)

    def batches() -> Iterator[list[Piece]]:
        return _batch_pieces(_first_documents(reading.pieces(bar.update), n))

    def tokenize(batch: list[Piece]) -> tuple[list[Piece], np.ndarray]:
        return batch, _encode_pieces(batch, tokenizer).astype(writer.dtype)

    with tqdm(desc=name, total=size, unit=unit, unit_scale=True, disable=None) as bar:
        writer.take_over()
        todo, done = batches(), writer.progress
        skipped = itertools.islice(todo, done.batches)
        if functools.reduce(_digest_of_texts, skipped, "") != done.texts:
            writer.start_anew()  # it is another text
            todo, done = batches(), writer.progress
            bar.reset()
        before, began = done.tokens, time.monotonic()
        noted = began
        with writer:
            for batch, tokens in map_ahead(tokenize, todo, threads):
                writer.write(tokens)
                done.add(batch, tokens)
                now = time.monotonic()
                speed = (done.tokens - before) / max(now - began, 1e-9) / 1e6
                told = f"{done.tokens / 1e6:.1f} M tokens, {speed:.2f} M tokens/s"
                bar.set_postfix_str(told, refresh=False)
                if now - noted > NOTE_SECONDS:
                    noted = now
                    writer.take_note()
            writer.finish(tokenizer.eot_token, {**about, "rule": reading.rule})


# Company, and a full disk


@contextlib.contextmanager
def _making(path: Path, dtype: np.dtype[Any]) -> Iterator[_Writer]:
    """A writer whose leavings are removed, unless the process is killed.

    Raises:
        SlmError: The disk is full, or the text could not be read.
    """
    writer = _Writer(path, dtype)
    try:
        yield writer
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        writer.discard()
        cure = "make room or choose another cache_dir"
        wrong = f"{path} could not be written ({error.strerror}): {cure}."
        raise SlmError(wrong, retry=True) from error
    except SlmError:  # from where no call could go on
        writer.discard()
        raise
    writer.discard()


def _lock(path: Path) -> AbstractContextManager[object]:
    """Wait until no other process is making a token file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_name(f".{path.name}.lock")).acquire()
    except OSError as error:
        wrong = f"{path.parent} cannot be written to ({error.strerror})"
        raise SlmError(f"{wrong}: choose another cache_dir.") from error


# The door


def _tell(path: Path, reading: Reading) -> None:
    """Say what a corpus turned out to be, and what was decided about its files."""
    about = read_sidecar(path)
    found = f"{about['documents']:,} documents, {about['tokens']:,} tokens"
    for line in (*reading.notes, f"{about['split']}: {found} ({about['rule']})"):
        print(line, file=sys.stderr)


def prepare_tokens(
    data: DataConfig, split: str, tokenizer: Tokenizer, part: Part | None = None
) -> Path:
    """Tokenize one split of a corpus into a file of ids, unless that was done before.

    The file holds uint16 (uint32 for a vocabulary above 65,536), end-of-text first,
    last and between documents. The JSON file beside it says what it was made of;
    without one it is not finished. Documents are read as a stream and tokenized by
    threads, so the memory needed does not grow with the corpus. A call that was killed
    is gone on with by the next one. A second process that asks for the same file waits
    for the first.

    Args:
        data: The corpus, and the folder `cache_dir` of its token files.
        split: "train", "validation", or any split that the source has by name.
        tokenizer: What `get_tokenizer` gave.
        part: (k, n): only the k-th, from 0, of n runs of the source's files, for
            `join_tokens`. With more parts than files some are empty.

    Returns:
        The path of the token file, for `TokenDataset`; with `part`, that of the part,
        unless the whole is there.

    Raises:
        SlmError: The source cannot be found, read or divided, or has no text; the disk
            is full.
    """
    if part and not 0 <= part[0] < part[1]:
        raise SlmError(f"part is {part}; it must be (k, n) with k from 0 to n - 1.")
    if part and data.max_documents is not None:
        whole = "max_documents counts from the first document and cannot be divided"
        raise SlmError(f"{whole}: leave out one of the two.")
    source, path, about = _plan(data, split, tokenizer)
    if _is_there(path):
        return path
    if part:
        path, about = _part_file(path, part), {**about, "part": list(part)}
    with _lock(path):
        if not _is_there(path):  # another process may have made it in the meantime
            reading = source.read(about["split"], part)
            dtype = np.min_scalar_type(tokenizer.eot_token)  # uint16, or uint32
            with _making(path, dtype) as writer:
                _write_tokens(writer, reading, tokenizer, about)
            if not isinstance(source, corpus.StorySource):
                _tell(path, reading)
    return path


# A corpus for many machines


def count_shards(data: DataConfig, split: str, tokenizer: Tokenizer) -> int:
    """The most parts of a split that can have text: its number of files.

    1 if it is prepared, or cannot be divided.

    Raises:
        SlmError: The source cannot be found.
    """
    source, path, about = _plan(data, split, tokenizer)
    whole = data.max_documents is not None or _is_there(path)
    return 1 if whole else source.shards(about["split"])


def join_tokens(data: DataConfig, split: str, tokenizer: Tokenizer, n: int) -> Path:
    """Join n finished parts into the file of the whole, and remove them.

    Parts are runs of files in the order of the source, so the joined file is the
    undivided one, bit by bit, and lies where that would lie. A call that was killed is
    begun anew by the next one.

    Args:
        data, split, tokenizer: As for the parts, see `prepare_tokens`.
        n: How many parts there are.

    Raises:
        SlmError: A part is missing or damaged, or no part has text; the disk is full.
    """
    if n < 1:
        raise SlmError(f"n is {n}; it must be at least 1.")
    path = _plan(data, split, tokenizer)[1]
    parts = [_part_file(path, (k, n)) for k in range(n)]
    with _lock(path):
        if not _is_there(path):
            missing = [str(k) for k, part in enumerate(parts) if not _is_there(part)]
            if missing:
                cure = f"prepare the missing ones first ({', '.join(missing)})"
                raise SlmError(f"{path} cannot be joined of {n} parts: {cure}.")
            abouts = [read_sidecar(part) for part in parts]
            with _making(path, np.dtype(abouts[0]["dtype"])) as writer:
                _join(writer, parts, abouts)
        for part in parts:
            remove_tokens(part)
    return path


def _join(writer: _Writer, parts: list[Path], abouts: list[dict[str, Any]]) -> None:
    """Write parts one behind the other, without the end-of-text at their ends."""
    done, itemsize = writer.progress, writer.dtype.itemsize
    with writer:
        for part, about in zip(parts, abouts, strict=True):
            own, left = hashlib.sha256(), (about["tokens"] - 1) * itemsize
            for block in _blocks(part, about["tokens"] * itemsize):
                own.update(block)
                writer.write(block[:left])
                left -= len(block[:left])
            if own.hexdigest() != about["tokens_sha256"]:
                wrong = "its contents are not what was written; delete it"
                raise SlmError(f"{part} is damaged: {wrong}, and prepare it.")
            done.tokens += about["tokens"] - 1
            done.documents += about["documents"]
        about = {name: value for name, value in abouts[0].items() if name != "part"}
        writer.finish(about["tokenizer"]["eot_token"], about)
