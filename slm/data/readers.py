"""Files as texts, in constant memory: pieces of them, and what can be wrong in them.

    rows = READERS[".jsonl"](Path("texts.jsonl"), "text", print)
    texts = list(take_texts(rows, "text"))

Exported from chapters/07_corpora.py; edit it there.
"""

import codecs
import hashlib
import itertools
import json
import mmap
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from slm.data.stories import END_OF_TEXT
from slm.errors import SlmError

# A document in pieces


class Piece(NamedTuple):
    """A text that can be tokenized alone, and whether a document starts with it."""

    text: str
    starts: bool


def split_pieces(blocks: Iterable[str]) -> Iterator[Piece]:
    """Cut one long document into pieces that, tokenized one by one, give its ids.

    A word of GPT-2's pattern never reaches over the white space before it, except for
    one space in front. So the place before a space or newline that a visible character
    follows is a safe cut. Only a block without any (a megabyte without a space) is cut
    at its end, where a token may come out differently.
    """
    rest, starts = "", True
    for block in blocks:
        text = rest + block
        inside = range(len(text) - 2, 0, -1)
        safe = (i for i in inside if text[i] in " \n" and not text[i + 1].isspace())
        cut = next(safe, len(text))
        if text[:cut]:
            yield Piece(text[:cut], starts)
            starts = False
        rest = text[cut:]
    if rest:
        yield Piece(rest, starts)


# A split that does not leak


def in_validation(document: str, val_fraction: float) -> bool:
    """Whether a document is held out: its content decides, so copies go together."""
    content = document.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "big") < val_fraction * 2**64


# Files, told in sentences

Advance = Callable[[float], object]  # told how far a reader has got
Rows = Iterator[tuple[str, dict[str, Any]]]  # each with the words that name its place


def _not_utf8(path: Path, offset: int) -> SlmError:
    wrong = f"invalid byte at offset {offset}; convert it first"
    return SlmError(f"{path} is not UTF-8 text: {wrong}.")


def read_utf8(path: Path, start: int, stop: int, advance: Advance) -> Iterator[str]:
    """The text between two byte positions of a file, a megabyte at a time."""
    decoder = codecs.getincrementaldecoder("utf-8-sig" if start == 0 else "utf-8")()
    with open(path, "rb") as file:
        file.seek(start)
        while start < stop:
            block = file.read(min(1 << 20, stop - start))
            if not block:
                raise SlmError(f"{path} became shorter while it was being read.")
            start += len(block)
            advance(len(block))
            try:
                yield decoder.decode(block, final=start == stop)
            except UnicodeDecodeError as error:
                at = start - len(error.object) + error.start
                raise _not_utf8(path, at) from None


_MARKER_LINE = re.compile(rf"(?m)^[ \t]*{re.escape(END_OF_TEXT)}[ \t]*\r?$\n?")


def holds_documents(path: Path) -> bool:
    """Whether one of a text file's lines is end-of-text alone."""
    marker = END_OF_TEXT.encode()
    with open(path, "rb") as file:
        text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with text:
        for found in re.finditer(re.escape(marker) + rb"\s*?(?:\n|\Z)", text):
            before = text[text.rfind(b"\n", 0, found.start()) + 1 : found.start()]
            if not before.removeprefix(codecs.BOM_UTF8).strip():
                return True
    return False


def split_at_markers(blocks: Iterable[str]) -> Iterator[str]:
    """The documents between the lines that are end-of-text alone, the empty left out.

    The line ends around a marker belong to neither document.
    """
    document, line = [], ""
    for block in itertools.chain(blocks, ["\n"]):
        text = line + block
        cut = text.rfind("\n") + 1  # behind it, a line that goes on
        whole, line = text[:cut], text[cut:]
        before, *others = _MARKER_LINE.split(whole) if END_OF_TEXT in whole else [whole]
        document.append(before)
        for other in others:
            yield "".join(document).strip("\r\n")
            document = [other]
    yield "".join(document).strip("\r\n")


def _read_jsonl(path: Path, column: str, advance: Advance) -> Rows:
    """The objects of a JSON Lines file."""
    start = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                row = json.loads(line.decode("utf-8-sig")) if line.strip() else {}
            except UnicodeDecodeError as error:
                mark = len(codecs.BOM_UTF8) if line.startswith(codecs.BOM_UTF8) else 0
                raise _not_utf8(path, start + mark + error.start) from None
            except json.JSONDecodeError as error:
                wrong = f"{error.msg} at column {error.colno}"
                raise SlmError(f"{where} is not JSON: {wrong}.") from None
            except (ValueError, RecursionError, MemoryError) as error:
                # a number of thousands of digits, thousands of brackets, a huge line
                why = str(error) or "the memory does not hold it"
                raise SlmError(f"{where} cannot be read as JSON: {why}.") from None
            if not isinstance(row, dict):
                raise SlmError(f"{where} holds a {type(row).__name__}, not an object.")
            start += len(line)
            advance(len(line))
            if row:
                yield where, row


def _read_parquet(path: Path, column: str, advance: Advance) -> Rows:
    """The rows of a Parquet file, of which only the text column is read."""
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise SlmError(f"Reading {path} needs pyarrow: pip install pyarrow.") from None
    try:
        # else pyarrow reads the whole file ahead, and a row group's column at once
        with ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            # None: all columns, for the message to list
            columns = [column] if column in file.schema_arrow.names else None
            share = path.stat().st_size / max(file.metadata.num_rows, 1)
            batches = file.iter_batches(batch_size=1024, columns=columns)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, row in enumerate(rows, 1):
                advance(share)
                yield f"{path}, row {number}", row
    except (ArrowInvalid, OSError, UnicodeDecodeError) as error:
        # no Parquet file at all, or one with a damaged part
        reason = str(error).splitlines()[0].rstrip(".")
        raise SlmError(f"{path} cannot be read as Parquet: {reason}.") from None


READERS = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
SUFFIXES = (".txt", *READERS)


def take_texts(rows: Rows, column: str) -> Iterator[str]:
    """The text column of rows. Documents that are empty or null are left out.

    End-of-text at a document's end is left out, too: each document gets one anyway.
    """
    for where, row in rows:
        if column not in row:
            there = f"the columns there are {', '.join(map(repr, row))}"
            raise SlmError(f"{where} has no column {column!r}; {there}.")
        text = row[column]
        if not isinstance(text, str | None):
            raise SlmError(f"{where}: {column!r} is a {type(text).__name__}, no text.")
        while text and text.rstrip().endswith(END_OF_TEXT):
            text = text.rstrip().removesuffix(END_OF_TEXT).rstrip("\r\n")
        if text:
            yield text


def is_one_document(file: Path) -> bool:
    """Whether a file is plain text, and no line of it is end-of-text alone."""
    return file.suffix.lower() == ".txt" and not holds_documents(file)


def read_documents(file: Path, column: str, advance: Advance) -> Iterator[str]:
    """The documents of a file that holds many."""
    if reader := READERS.get(file.suffix.lower()):
        return take_texts(reader(file, column, advance), column)
    whole = read_utf8(file, 0, file.stat().st_size, advance)
    return filter(None, split_at_markers(whole))


def as_pieces(texts: Iterable[str], side: str | None, share: float) -> Iterator[Piece]:
    """Each text as a piece: all of them, or one side of the split by hash."""
    for text in texts:
        if side is None or in_validation(text, share) == (side == "validation"):
            yield Piece(text, True)


def fingerprint_file(file: Path) -> list[Any]:
    """What tells files of one name apart: size, time, hash of the two outer 64 KiB.

    A change between those that keeps size and time is not seen: `touch` such a file.
    """
    stat = file.stat()
    with open(file, "rb") as opened:
        head = opened.read(1 << 16)
        opened.seek(max(stat.st_size - (1 << 16), 0))
        ends = hashlib.sha256(head + opened.read()).hexdigest()[:16]
    return [file.name, stat.st_size, stat.st_mtime_ns, ends]
