# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/data/readers.py
#     - slm/data/hub.py
#     - slm/data/corpus.py
# ---

# %% [markdown]
# # Corpora
#
# *An engine room: it can be skipped at first reading.* Where text comes from: the
# embedded stories, files on your machine, data sets of the Hugging Face hub; split into
# train and validation so that nothing leaks, and cut into pieces that can be tokenized
# in any order. You export `DataConfig`, which says what is read, and `find_source`,
# which opens it.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% tags=["hide-input"]
#| export
"""Files as texts, in constant memory: pieces of them, and what can be wrong in them.

    rows = READERS[".jsonl"](Path("texts.jsonl"), "text", print)
    texts = list(take_texts(rows, "text"))
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

# %% tags=["hide-input"]
from course import add_to
from slm.data import stories
from slm.data.tokenizer import get_tokenizer

# %% [markdown]
# ## Pieces
#
# A corpus may be one file of many gigabytes. It must be read in blocks, in constant
# memory, and tokenized block by block, and the blocks must give the ids of the whole.
# You cannot cut anywhere:

# %% tags=["nbval-check-output"]
tokenizer = get_tokenizer("stories")
text = "Once upon a time, there was a cat."
whole = tokenizer.encode(text)
for cut in (17, 18, 20, 23, 24):
    same = tokenizer.encode(text[:cut]) + tokenizer.encode(text[cut:]) == whole
    print(f"{text[:cut]}|{text[cut:]}  {'the same ids' if same else 'other ids'}")

# %% [markdown]
# Cuts inside a word change it, and so does a cut *behind* a space, since the tokenizer
# keeps a space with the word that follows. *Before* a space is safe: no token reaches
# from a visible character into the white space behind it. Of two spaces in a row, only
# the last belongs to the word, so the safe place is before a space or newline that a
# visible character follows.
#
# ## Exercise 1: a safe cut
#
# A block of text ends anywhere, and what is behind its last safe place has to wait for
# the next block. Return the number of characters before that place; if there is no safe
# place, all of them. The texts hold visible characters, spaces and newlines.


# %% tags=["exercise"]
def last_safe_cut(text: str) -> int:
    """Characters before the last safe cut."""
    raise NotImplementedError("your turn")


# %%
from course import check

check.last_safe_cut(last_safe_cut)

# %% [markdown]
# The first idea is often the last space:

# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
check.last_safe_cut(lambda text: text.rfind(" ") if " " in text else len(text))

# %% [markdown]
# <details><summary>Solution: <code>last_safe_cut</code></summary>
#
# Before a space or newline that a visible character follows. The first character is no
# place to cut: nothing would be before it.
#
# ```python
# def last_safe_cut(text):
#     for i in range(len(text) - 2, 0, -1):
#         if text[i] in " \n" and not text[i + 1].isspace():
#             return i
#     return len(text)
# ```
# </details>
#
# ## A document in pieces
#
# The real code does this at the end of each block, and carries the rest over to the
# next one. A piece of a document needs one thing besides its text: whether a document
# starts with it, for that is where end-of-text goes.


# %%
#| export
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


# %% [markdown]
# Fifty stories as one book, in blocks of a hundred characters that end anywhere:

# %% tags=["nbval-check-output"]
book = "\n\n".join(map(stories.sample, range(50)))
blocks = [book[i : i + 100] for i in range(0, len(book), 100)]
pieces = list(split_pieces(blocks))
ids = [i for piece in pieces for i in tokenizer.encode(piece.text)]
naive = [i for block in blocks for i in tokenizer.encode(block)]
whole = tokenizer.encode(book)
equal = "equal to" if ids == whole else "DIFFERENT from"
print(f"{len(pieces)} pieces of {len(blocks)} blocks: {len(ids)} ids, {equal}", end=" ")
print(f"the {len(whole)} of the whole")
print(f"blocks as they come: {len(naive) - len(whole)} tokens too many")

# %% [markdown]
# ## Held out, but how?
#
# A validation loss means something only if the model has never seen the text. Real
# corpora are full of copies, and they grow. Before you read on: by what rule would you
# hold out a tenth, so that a copy goes where its original goes, today and next year?
#
# ## Exercise 2: a split
#
# Split a list of documents into train and validation. About `fraction` of them go to
# validation; copies stay together; and a document keeps its side when others are added
# or the order changes, also in another process (Python's own `hash` of a text is
# another one each time Python starts).


# %% tags=["exercise"]
def split_documents(texts: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """Train and validation documents."""
    raise NotImplementedError("your turn")


# %%
check.split_documents(split_documents)

# %% [markdown]
# Shuffling the *different* texts and holding out the first of them keeps copies
# together. It is still wrong:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def by_rank(texts: list[str], fraction: float) -> tuple[list[str], list[str]]:
    different = sorted(set(texts), key=lambda text: hashlib.md5(text.encode()).digest())
    held = set(different[: int(fraction * len(different))])
    return [t for t in texts if t not in held], [t for t in texts if t in held]


check.split_documents(by_rank)

# %% [markdown]
# <details><summary>Solution: <code>split_documents</code></summary>
#
# Any good hash will do, as long as it is a function of the text and nothing else. Read
# as a number between 0 and 1, it falls below `fraction` with just that probability.
#
# ```python
# def split_documents(texts, fraction):
#     def held_out(text):
#         digest = hashlib.sha256(text.encode()).digest()
#         return int.from_bytes(digest[:8], "big") / 2**64 < fraction
#
#     return [t for t in texts if not held_out(t)], [t for t in texts if held_out(t)]
# ```
# </details>
#
# ## A split that does not leak
#
# Three rules, measured. Take 1,000 stories, 200 of which occur twice, and hold out a
# tenth in three ways: a tenth of the *rows* of 64 tokens, the last tenth of the
# shuffled *documents*, and the documents whose *hash*, read as a number between 0 and
# 1, is below 0.1.


# %%
#| export
def in_validation(document: str, val_fraction: float) -> bool:
    """Whether a document is held out: its content decides, so copies go together."""
    content = document.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "big") < val_fraction * 2**64


# %% tags=["nbval-check-output"]
import numpy as np

corpus = [stories.sample(seed) for seed in [*range(1000), *range(200)]]
chance = np.random.RandomState(0)
chance.shuffle(corpus)
lengths = [len(tokenizer.encode(text)) + 1 for text in corpus]
document_of = np.repeat(np.arange(len(corpus)), lengths)  # (N,) of each token
row_of = np.arange(len(document_of)) // 64  # (N,)
in_held_row = (chance.rand(row_of[-1] + 1) < 0.1)[row_of]  # (N,)
by_hash = {i for i, text in enumerate(corpus) if in_validation(text, 0.1)}
held = {
    "rows": (set(document_of[in_held_row]), set(document_of[~in_held_row])),
    "documents": (set(range(1080, 1200)), set(range(1080))),
    "hashes": (by_hash, set(range(1200)) - by_hash),
}
leaks = {}
for unit, (validation, train) in held.items():
    texts = {corpus[i] for i in validation}
    leaks[unit] = (len(texts & {corpus[i] for i in train}), len(texts))
    print(f"held out by {unit}: {leaks[unit][0]} of {leaks[unit][1]} are also in train")

# %% mystnb={"code_prompt_show": "Draw what of the validation side stands in train, too", "figure": {"caption": "Stories of the validation side, held out in three ways; the orange part is in train, too. A row is part of a story, so nearly all of them leak; whole documents leak by their copies; a hash keeps copies together.", "name": "fig-leaks"}, "image": {"alt": "Three horizontal bars for rows, documents and hashes. Nearly all of the first is orange, the smaller part of the second, nothing of the third."}} tags=["hide-input"]
from course.figures.corpora import leaks_figure

leaks_figure(leaks)

# %% [markdown]
# By rows nearly every story is on both sides, copy or not, because a row is only part
# of one ({numref}`fig-leaks`). By documents only the copies leak. Both happen without a
# word, and the validation loss then rewards memory. A hash cannot: equal texts have
# equal hashes, so a copy follows its original, on any machine, in any order, and when
# documents are added later. (A near copy, with a word changed, has another hash and may
# still fall on the other side: near copies have to be removed before.)
#
# That is the rule here for the rows of `.jsonl`, `.parquet` and hub data without a
# validation split of its own. A folder of `.txt` files, each of which is one document,
# holds out an exact share of the files, those with the lowest hashes; there, adding
# files can move one. Where that makes less than one file, the last part of *each* is
# held out, from a blank line on. The embedded stories have a split by seeds, and train
# skips any story that validation holds too.
#
# ## Files, told in sentences
#
# A reader gives texts, one at a time, and tells how far it has got, for a progress bar.
# Most of its lines deal with what can be wrong in a file that somebody else wrote.
# There, a traceback helps nobody; the sentence must say which file, which line or byte,
# and what would be right. Text first. UTF-8 has characters of up to four bytes, and a
# block may end inside one, so the decoder is one that keeps the bytes of an unfinished
# character for the next block:

# %%
#| export
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


# %% [markdown]
# Some text files are many documents, one behind the other, with a line between them
# that is end-of-text and nothing else; TinyStories itself (Eldan and Li 2023) is
# published so. Read as one document, such a file would put the marker into the text, in
# pieces, and a model trained on it would write it. So a line that is the marker alone
# ends a document; inside a sentence it is text like any other. Whether a file has such
# a line is known once it is found, or the file has been searched to its end, which
# takes a small part of the time that its tokens will take.


# %%
#| export
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


# %% tags=["nbval-check-output"]
marked = "One cat.\n<|endoftext|>\nTwo cats say <|endoftext|> aloud.\n<|endoftext|>\n"
for size in (5, 100):
    blocks = [marked[i : i + size] for i in range(0, len(marked), size)]
    print([text for text in split_at_markers(blocks) if text])

# %% [markdown]
# JSON Lines hold a row with a text column on each line; Parquet holds the same in
# columns, and only the text column is read. pyarrow reads a whole file ahead unless
# told otherwise, which a corpus of hundreds of gigabytes does not forgive.


# %% mystnb={"code_prompt_show": "Read .jsonl and .parquet, row by row (48 lines)"} tags=["hide-input"]
#| export
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


# %% [markdown]
# Of each row only its text is taken. End-of-text at its end goes, since each document
# gets one anyway. A text file that is one document comes in pieces; any other file
# gives its documents, whatever its form:


# %% mystnb={"code_prompt_show": "From rows to texts, and from texts to pieces (40 lines)"} tags=["hide-input"]
#| export
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


# %% [markdown]
# Tokens are made once and found again as long as the text is the same. A hash of a
# whole corpus would tell its text exactly, and reading hundreds of gigabytes at each
# start would take minutes. Size, time of the last change, and both ends are enough to
# tell files of one name apart.


# %% mystnb={"code_prompt_show": "A fingerprint without reading the whole file (11 lines)"} tags=["hide-input"]
#| export
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


# %% [markdown]
# Here are four ways in which a file disappoints, and what its reader says. Each
# sentence begins with the place, so the way from it to the mistake is short:

# %% tags=["nbval-check-output"]
import tempfile

scratch = Path(tempfile.mkdtemp())
wrong = {
    "latin-1.txt": "caf\xe9 ole".encode("latin-1"),
    "half.jsonl": b'{"text": "one"}\n{"text": ',
    "column.jsonl": b'{"content": "one", "id": 1}\n',
    "number.jsonl": b'{"text": 5}\n',
}
for name, content in wrong.items():
    path = scratch / name
    path.write_bytes(content)
    try:
        if reader := READERS.get(path.suffix):
            list(take_texts(reader(path, "text", lambda n: None), "text"))
        else:
            list(read_utf8(path, 0, len(content), lambda n: None))
    except SlmError as error:
        print(str(error).replace(f"{scratch}/", ""))

# %% [markdown]
# ## The hub, asked before it is trusted
#
# `datasets` reads what lies on the Hugging Face hub, over the network row by row or
# stored first. It asks again when a connection breaks, and goes on with half a
# download. What it says when something is wrong fills a screen, and a hub that is down
# is told as a file that cannot be found. A module of its own, `slm/data/hub.py`, turns
# this into sentences. Four things go wrong. Nobody answers, or too slowly. The hub
# answers that it has no such data set. It answers that it is in trouble; or something
# else answers in its place, such as the login page of a hotel. Or a data set of several
# parts was asked for without saying which. The first three are asked for before
# `datasets` begins, since it would try for minutes, and `retry` tells a caller whether
# asking again may help.


# %% tags=["hide-input"]
#| export data/hub
"""Data sets of the Hugging Face hub: what cannot be had is told in a sentence.

    splits = load_hub("roneneldan/TinyStories", None, None, streaming=True)
"""

import difflib
import errno
import functools
from typing import Any

from yaml import YAMLError

from slm.errors import SlmError
from slm.files import answers, within

PATIENCE = 120.0  # seconds for all that is asked before the data


# %% mystnb={"code_prompt_show": "The full name, and what to say when the hub does not answer (57 lines)"} tags=["hide-input"]
#| export data/hub
def hub_error(name: str, error: BaseException) -> SlmError:
    """What a library says about the hub, in one sentence."""
    from datasets import config

    failed = f"Cannot read {name!r} from the Hugging Face hub"
    first: BaseException | None = error
    while first is not None:  # the first word, not the last
        if isinstance(first, OSError) and first.filename:  # this machine's disk
            why = f"{first.strerror}: {first.filename}"
            cure = "HF_HOME names the folder where it is stored"
            full = first.errno == errno.ENOSPC
            return SlmError(f"{failed}: {why}; {cure}.", retry=full)
        error, first = error.__cause__ or error, first.__cause__ or first.__context__
    status = getattr(getattr(error, "response", None), "status_code", 0)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    no_data = isinstance(error, StopIteration | YAMLError)  # no rows; the card is wrong
    ours = no_data or isinstance(error, ValueError | RuntimeError | FileNotFoundError)
    retry = status in (408, 429) or status >= 500 if status else not ours
    if status == 429:
        reason = "too many requests were made (429)"
    elif status in (401, 403):
        cure = "log in with `hf auth login`, or ask its owner"
        reason = f"it is not open to everybody ({status}); {cure}"
    elif no_data:
        reason = f"what it holds is empty, or no data set ({reason})"
    later = ": try again in some minutes" if retry else ""
    if config.HF_HUB_OFFLINE:
        later = "; HF_HUB_OFFLINE is set, so only this machine's cache was searched"
    return SlmError(f"{failed}: {reason}{later}.", retry=retry)


def _ask(name: str, repository: str, revision: str | None) -> None:
    """Ask the hub whether it has a data set; a sentence within seconds if not."""
    from huggingface_hub import HfApi, constants, errors

    if not answers(constants.ENDPOINT, 4.0):
        silent = f"The Hugging Face hub does not answer, so {name!r} cannot be read"
        cure = "use 'stories' or a local file, or HF_HUB_OFFLINE=1 if it is stored"
        raise SlmError(f"{silent}: {cure}.", retry=True)
    try:
        HfApi().dataset_info(repository, revision=revision, timeout=10.0)
    except errors.RevisionNotFoundError:
        raise SlmError(f"{repository!r} has no revision {revision!r} there.") from None
    except errors.RepositoryNotFoundError:
        cure = "check the name, or log in with `hf auth login`"
        absent = f"The Hugging Face hub has no data set {repository!r}"
        raise SlmError(f"{absent}, or it is private: {cure}.") from None
    except errors.HFValidationError:
        rule = "letters without accents, digits, '-', '_', '.', no two of them together"
        wrong = f"{repository!r} is no name of the hub: allowed are {rule}"
        raise SlmError(f"{wrong}, and at most 96 signs.") from None
    except (ValueError, TypeError) as error:  # no JSON, or JSON of another kind
        other = "what answered is not the hub, but a login page or a proxy"
        wrong = f"Cannot read {name!r} from {constants.ENDPOINT}: {other}."
        raise SlmError(wrong, retry=True) from error
    except Exception as error:  # of whatever library it speaks through
        raise hub_error(name, error) from error


# %% [markdown]
# `_ask` costs two small requests, and is asked once for a split. The library's own
# errors come from three packages and change with their versions, so a status is read
# where there is one, and everything else that goes wrong on the way is told with the
# library's first line. Errors that a retry cannot cure are those where the hub *did*
# answer: a wrong name, a format that nobody can read. Then the door of this module:


# %% mystnb={"code_prompt_show": "Which part of a data set, and the call that opens it (52 lines)"} tags=["hide-input"]
#| export data/hub
def _check_config(repository: str, config: str | None, revision: str | None) -> None:
    """Refuse if a part of the data set must be named, or is named wrongly."""
    import datasets

    names = datasets.get_dataset_config_names(repository, revision=revision)
    if config in names or (config is None and len(names) < 2):
        return
    near = difflib.get_close_matches(config or "", names) or names[:12]
    more = f", … ({len(names)} in all)" if len(names) > len(near) else ""
    has = f"it has {', '.join(map(repr, near))}{more}"
    what = f"no part {config!r}" if config else "several parts"
    say = f"say which: {f'{repository}:{near[0]}'!r}"
    raise SlmError(f"{repository!r} has {what}; {has}: {say}.") from None


def load_hub(
    repository: str, config: str | None, revision: str | None, streaming: bool
) -> Any:
    """The splits of a data set by name, as `datasets` gives them.

    Args:
        repository: "owner/name".
        config: Which of its parts, if it has several.
        revision: A branch, tag or commit; else the newest.
        streaming: Read it over the network row by row; else store it first. Without a
            network (HF_HUB_OFFLINE=1) it is read from this machine's cache.

    Raises:
        SlmError: What is wrong with the name, the network or the hub; `retry` is true
            where a later call may succeed.
    """
    part, at = f":{config}" if config else "", f"@{revision}" if revision else ""
    name = f"{repository}{part}{at}"
    try:
        import datasets
    except ImportError:
        raise SlmError(f"{name!r} needs datasets: pip install datasets.") from None
    offline = datasets.config.HF_HUB_OFFLINE

    how = dict(revision=revision, streaming=streaming and not offline)
    load = functools.partial(datasets.load_dataset, repository, config, **how)
    try:
        if not offline:
            within(PATIENCE, lambda: _ask(name, repository, revision))
        # a stream asks for the files only; what is stored may take as long as it takes
        return within(PATIENCE, load) if how["streaming"] else load()
    except SlmError:
        raise
    except Exception as error:  # the library lets through those of five others
        if isinstance(error, ValueError) and not offline:
            _check_config(repository, config, revision)
        raise hub_error(name, error) from error


# %% [markdown]
# ## What is read: the section `data`
#
# Everything that decides which text is read, and how, stands in one object, which is
# the section `data:` of a config file. It is handed on whole: what reads text takes a
# `DataConfig` and never eight loose values. It is frozen, so nobody changes it on the
# way, and it checks itself. A second module begins here, `slm/data/corpus.py`. After
# its imports comes the class, a line or two for each key.


# %% tags=["hide-input"]
#| export data/corpus
"""Where text comes from: the embedded stories, files of this machine, the hub.

    reading = find_source(DataConfig("texts/*.jsonl")).read("train")
    texts = [piece.text for piece in reading.pieces(print)]
"""

import difflib
import functools
import glob
import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from slm.data import readers, stories
from slm.data.hub import hub_error, load_hub
from slm.data.readers import SUFFIXES, Advance, Piece, Rows, as_pieces, read_utf8
from slm.errors import SlmError, settings
from slm.files import user_path


# %% mystnb={"code_prompt_show": "The section data: its settings, each with what it means (25 lines)"} tags=["hide-input"]
#| export data/corpus
@settings
class DataConfig:
    """`data:`, what is read; `dataset` must be given."""

    dataset: str = Field(min_length=1, description="'stories', a hub name, or a path")
    train_split: str = Field("train", description="name of the part to train on")
    val_split: str = Field("validation", description="name of the held-out part")
    val_fraction: float = Field(
        0.1, gt=0, lt=1, description="held out where the source has no validation split"
    )
    text_column: str = Field("text", description="column that holds the documents")
    tokenizer: str = Field("gpt2", description="'gpt2', 'stories', or a path")
    packing: Literal["stream", "documents"] = Field(
        "stream", description="'documents': each row starts with a document"
    )
    max_documents: int | None = Field(None, ge=1, le=10**12, description="per split")
    streaming: bool | None = Field(
        None, description="read the hub unstored; null: if max_documents is given"
    )
    cache_dir: str = Field("data", description="where token files are kept")
    num_workers: int = Field(0, ge=0, le=256, description="threads that work ahead")

    def __post_init__(self) -> None:
        if split_name(self.train_split) == split_name(self.val_split):
            raise ValueError(f"val_split = {self.val_split!r} is trained on already")


# %% tags=["nbval-check-output"]
try:
    DataConfig("stories", packing="tight", val_fraction=1.5, num_worker=2)
except SlmError as error:
    print(error)

# %% [markdown]
# Paths in it are those of [files](#files/names-paths-servers): `~` and `$HOME` stand
# for what they stand for in a shell. All mistakes are told at once, with what is
# allowed and the nearest key. Some of the keys belong to later steps: `tokenizer`,
# `packing` and `num_workers` are read by [what prepares and deals out
# tokens](#prepare). They stand here because a run names its data in one place, and what
# is handed on whole cannot be mixed up with its neighbour.
#
# ## Three sources, one form
#
# A source has a `name`; a `fingerprint` that changes when its text may have changed;
# `shards(split)`, the number of parts that it can be divided into; and `read(split,
# part)`, which gives a `Reading`. To add a source, write a class with these four, and
# name it in `find_source`. `split_name` makes one name of several ("val" is
# "validation"); a source is asked by that one. A source that has no validation split
# makes one, and the `Reading` says by which rule.

# %%
#| export data/corpus
Part = tuple[int, int]  # (k, n): the k-th, from 0, of n parts of a split

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}


def split_name(split: str) -> str:
    """The one name of a split that goes by several, such as "val"."""
    return next((name for name, others in SPLITS.items() if split in others), split)


@dataclass(frozen=True)
class Reading:
    """One split of a source: how it was made, its pieces, its size in some unit."""

    rule: str
    pieces: Callable[[Advance], Iterator[Piece]]
    size: float | None
    unit: str
    notes: tuple[str, ...] = ()  # what somebody who reads it should be told


# %% [markdown]
# The shortest source is the one without files. Its stories are numbered by seeds;
# validation has seeds of its own, far away, and a story that stands there is left out
# of training. Its fingerprint is made of the rules, and of ten stories, in case the
# same rules are read in another way.


# %%
#| export data/corpus
class StorySource:
    """The embedded stories, split by seeds; train skips what validation holds."""

    TRAIN, VALIDATION, VALIDATION_SEED = 30_000, 1_000, 1_000_000_000
    name = "stories"

    def __init__(self, data: DataConfig) -> None:
        train = data.max_documents or self.TRAIN
        self.sizes = {"train": train, "validation": min(train, self.VALIDATION)}
        # what the rules say (weights to nine digits), and what is made of them
        rules = [
            line if isinstance(line, str) else f"{line[0]:.9g} {line[1]}"
            for name, lines in stories.RULES.items()
            for line in (name, *lines)
        ]
        known = "\n".join([*rules, *map(stories.sample, range(10))])
        self.fingerprint = hashlib.sha256(known.encode()).hexdigest()

    def _pieces(self, split: str, advance: Advance) -> Iterator[Piece]:
        seeds = range(self.sizes["validation"])
        held_out = [stories.sample(self.VALIDATION_SEED + seed) for seed in seeds]
        excluded = set(held_out)
        every = map(stories.sample, itertools.count())
        train = (text for text in every if text not in excluded)
        texts = train if split == "train" else held_out
        for text in itertools.islice(texts, self.sizes[split]):
            advance(1)
            yield Piece(text, True)

    def shards(self, split: str) -> int:
        """They are written in seconds."""
        return 1

    def read(self, split: str, part: Part | None = None) -> Reading:
        """The pieces of "train" or "validation"."""
        if part:
            why = "they are written in seconds: leave part out"
            raise SlmError(f"The stories cannot be divided into parts; {why}.")
        if split not in self.sizes:
            raise SlmError(f"Stories have no split {split!r}: only train, validation.")
        seeds = f"seeds from 0 for train, from {self.VALIDATION_SEED} for validation"
        pieces = functools.partial(self._pieces, split)
        return Reading(f"{seeds}, no story in both", pieces, self.sizes[split], "story")


# %% [markdown]
# The fingerprint of the stories is a hash of the grammar's rules and of the first ten
# stories. Change one word of one rule, and every token file made from the old rules is
# another corpus's.
#
# ## Your own text: files and folders
#
# To train on your own text, give a path: a file, a folder or a pattern like
# `texts/*.jsonl`. Names can carry a split, as those of data sets do: `train.txt`,
# `x_val.jsonl`, `train-00001-of-00010.parquet`, a folder `validation/`. A single
# `train.txt` brings the `val.txt` beside it. But in a folder of books
# `A_Test_of_Wills.txt` is a novel, so a word inside a name says nothing. The end of a
# name counts only where some file is named for train and another for something else; a
# whole name, as in `validation.txt`, speaks for itself. Nothing happens silently:
# `notes` say what was left out, and which names were taken for a split.
#
# What is one document is settled by the kind of file, and with it how a split is made.
# A long text is cut where `val_fraction` of it is left, then at the next blank line,
# else line, else character:


# %% mystnb={"code_prompt_show": "Which files a path means, and to which split each belongs (64 lines)"} tags=["hide-input"]
#| export data/corpus
def _find_files(path: str) -> tuple[list[Path], str]:
    """The files that a path, folder or pattern stands for, and what was left out."""
    root, kinds = user_path(path), ", ".join(SUFFIXES)
    found, left = [], Counter[str]()
    if root.is_dir():
        for entry in sorted(root.rglob("*")):
            hidden = any(n.startswith(".") for n in entry.relative_to(root).parts)
            if entry.is_symlink() and entry.is_dir():
                left["a link to a folder"] += 1
            elif entry.is_file() and not hidden:
                if (kind := entry.suffix.lower()) in SUFFIXES:
                    found.append(entry)
                else:
                    left[kind or "without a suffix"] += 1
    else:
        matches = map(Path, glob.glob(str(root), recursive=True))
        found = [root] if root.exists() else sorted(p for p in matches if p.is_file())
    if not found:
        folder = f"The folder {path} has no {kinds} file."
        raise SlmError(folder if root.is_dir() else f"{path} does not exist.")
    for file in found:
        if file.suffix.lower() not in SUFFIXES:
            raise SlmError(f"{file} is not a kind of file that is read: {kinds}.")
    full = [file for file in found if file.stat().st_size]
    left["empty"] += len(found) - len(full)
    if not full:
        raise SlmError(f"{path} is empty.")
    return full, ", ".join(f"{n} {what}" for what, n in sorted((+left).items()))


_WORDS = "|".join(other for others in SPLITS.values() for other in others)
_SPLIT_NAME = re.compile(rf"(?:.*[-_.])?({_WORDS})(?:[-_.]?\d+(?:[-_]of[-_]\d+)?)?")


def _split_of_file(file: Path, root: Path, suffixes: bool) -> str | None:
    """The split that a file is named for, or a folder between it and `root`.

    The name may be the split's; with `suffixes` it may also end in it.
    """
    folders = file.relative_to(root).parts[:-1] if file.is_relative_to(root) else ()
    words = [name.lower() for name in (file.stem, *folders)]
    if suffixes and (found := _SPLIT_NAME.fullmatch(file.stem)):
        words.insert(0, found[1])
    names = map(split_name, words)
    return next((name for name in names if name in SPLITS), None)


def _tail_start(file: Path, fraction: float) -> int:
    """Where a text's last `fraction` starts, at a blank line, else line, else sign."""
    size = file.stat().st_size
    target = int(size * (1 - fraction))
    with open(file, "rb") as opened:
        opened.seek(max(target - 3, 0))
        before = opened.read(target - opened.tell() + 1)
        opened.seek(target)
        window = opened.read(1 << 20)
    for boundary in (rb"\n\r?\n", rb"\n", rb"(?s:.)(?=[^\x80-\xbf])"):
        found = re.search(boundary, window)
        if found and target + found.end() < size:
            return target + found.end()
    # inside the last character: back to its first byte
    while before and 0x80 <= before[-1] <= 0xBF:
        before, target = before[:-1], target - 1
    return target


# %% tags=["nbval-check-output"]
novel = scratch / "novel.txt"
novel.write_text("\n\n".join(map(stories.sample, range(200))))
start, size = _tail_start(novel, 0.1), novel.stat().st_size
before, after = novel.read_text()[:start], novel.read_text()[start:]
print(f"cut at {start / size:.3f} of the text")
print(repr(before[-40:]), repr(after[:40]), sep="\n")

# %% [markdown]
# Parts are *runs* of files: part $k$ of $n$ holds the files from $\lfloor k F / n
# \rfloor$ to $\lfloor (k+1) F / n \rfloor$ of `F`. Written one behind the other, the
# parts are the whole. Which files are held out is decided before they are dealt out,
# since it depends on all of them.


# %% mystnb={"code_prompt_show": "FileSource: files of a split, by name or held out (44 lines)"} tags=["hide-input"]
#| export data/corpus
class FileSource:
    """Files on this machine.

    Files that are named for a split are that split: by a whole name ("validation.txt",
    a folder "validation"), or by its end ("x_val.jsonl", "train-0.parquet") if some
    file is named for train and another for something else. A single file named for
    train brings the validation file beside it. Where there is no validation file, part
    of train is held out:

    - of documents in one file (.jsonl, .parquet, .txt with end-of-text lines) those
      whose hash, as a number between 0 and 1, is below `val_fraction`;
    - of .txt files that are one document each, that share of the files (those with the
      lowest hashes) if it makes at least one; else the last `val_fraction` of each,
      from a blank line or line end on.

    `notes` are sentences on what was left out and which names were taken for a split.
    """

    def __init__(self, data: DataConfig) -> None:
        self.data, self.name = data, Path(data.dataset).name
        files, left_out = _find_files(data.dataset)
        root = user_path(data.dataset)
        if len(files) == 1 and _split_of_file(files[0], root, True) == "train":
            files += itertools.islice(_validation_beside(files[0]), 1)
        self.fingerprint = list(map(readers.fingerprint_file, files))
        of = {file: _split_of_file(file, root, True) for file in files}
        odd = []
        if "train" not in of.values() or len({*of.values()} - {None}) < 2:
            whole = {file: _split_of_file(file, root, False) for file in files}
            odd = [f for f in files if of[f] not in (whole[f], "train")]
            of = whole
        named = {name: [f for f in files if of[f] == name] for name in SPLITS}
        rest = [f for f in files if of[f] is None]
        self.notes = [f"left out of {data.dataset}: {left_out}"] if left_out else []
        self.train, self.others = files, dict[str, list[Path]]()
        if (named["train"] or rest) and (named["validation"] or named["test"]):
            self.train, self.others = named["train"] or rest, named
            unused = {"no split": rest} if named["train"] else {}
            self._note("by name", {**named, "train": self.train, **unused})
        self._note("no other file is named for train", {"read with all": odd})

    def shards(self, split: str) -> int:
        """The number of files that a split is read from."""
        return len((split != "train" and self.others.get(split)) or self.train)


# %% [markdown]
# Reading goes file by file. A side of the split is a set of whole files, or a range of
# bytes in each, or a question put to each document:


# %% mystnb={"code_prompt_show": "FileSource.read: by name, by whole files, or by a cut (29 lines)"} tags=["hide-input"]
#| export data/corpus
@add_to(FileSource)
def read(self, split: str, part: Part | None = None) -> Reading:
    """The pieces of "train", "validation", or a split that files are named for."""
    files, side, rule = self.train, None, f"the files named {split}"
    if split != "train" and self.others.get(split):
        files = self.others[split]
    elif split == "train" and self.others.get("validation"):
        rule = "the files that no name holds out"
    elif split in ("train", "validation"):
        side = split
        rule = f"{self.data.val_fraction:g} held out for validation"
    else:
        there = "there are 'train' and 'validation'"
        raise SlmError(f"{self.data.dataset} has no split {split!r}; {there}.")
    held = self._held_out(files) if side else set()
    k, n = part or (0, 1)
    files = files[k * len(files) // n : (k + 1) * len(files) // n]

    def pieces(advance: Advance) -> Iterator[Piece]:
        for file in files:
            if readers.is_one_document(file):
                of_side = self._range(file, side, held)
                yield from readers.split_pieces(read_utf8(file, *of_side, advance))
            else:
                texts = readers.read_documents(file, self.data.text_column, advance)
                yield from as_pieces(texts, side, self.data.val_fraction)

    size = sum(file.stat().st_size for file in files)
    return Reading(rule, pieces, size, "B", tuple(self.notes))


# %% [markdown]
# Which text files are held out, and which bytes of one:


# %% mystnb={"code_prompt_show": "FileSource: what is held out, and what is said of it (44 lines)"} tags=["hide-input"]
#| export data/corpus
@add_to(FileSource)
def _held_out(self, files: list[Path]) -> set[Path]:
    """The text files that are held out whole; none if there are too few of them."""
    digests = {}
    texts = list(filter(readers.is_one_document, files))
    n = int(len(texts) * self.data.val_fraction)
    for file in texts if n else ():
        with open(file, "rb") as opened:
            digests[file] = hashlib.file_digest(opened, "sha256").digest()
    lowest = sorted(digests.values())[:n]
    return {file for file, digest in digests.items() if digest in lowest}


@add_to(FileSource)
def _note(self, how: str, named: dict[str, list[Path]]) -> None:
    """Note which files were taken for what."""
    for what, files in named.items():
        if files:
            few = ", ".join(file.name for file in files[:3])
            more = f" and {len(files) - 3:,} more" if len(files) > 3 else ""
            self.notes.append(f"{what} ({how}): {few}{more}")


def _validation_beside(train: Path) -> Iterator[Path]:
    """Files that are named as this one is, with validation in the place of train."""
    found = _SPLIT_NAME.fullmatch(train.stem)
    if not found:
        return
    for other in SPLITS["validation"]:
        name = train.stem[: found.start(1)] + other + train.name[found.end(1) :]
        if (beside := train.with_name(name)).is_file():
            yield beside


@add_to(FileSource)
def _range(self, file: Path, side: str | None, held: set[Path]) -> tuple[int, int]:
    """The bytes of a text file that belong to a side; all of them if it is None."""
    size = file.stat().st_size
    if side is None:
        return 0, size
    if held:
        return (0, size) if (file in held) == (side == "validation") else (0, 0)
    cut = _tail_start(file, self.data.val_fraction)
    return (0, cut) if side == "train" else (cut, size)


# %% [markdown]
# ## A data set of the hub
#
# Only a hub data set's name and revision are known without a network, so they are its
# fingerprint: say `owner/name@revision` to pin its text.
#
# Stored or streamed? Streaming reads only the rows that are asked for: right for a
# first look at a thousand documents of a corpus of terabytes. Storing first is right
# when all of it will be read, since a broken connection then costs nothing that has
# arrived. Unless `streaming` says otherwise, `max_documents` decides.


# %% mystnb={"code_prompt_show": "HubSource: name, fingerprint and shards (38 lines)"} tags=["hide-input"]
#| export data/corpus
class HubSource:
    """A data set of the hub: "owner/name", "owner/name:config", "…@revision".

    Its token files are found again without a network. A validation split that it lacks
    is made by hash from train.
    """

    PATTERN = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w./-]+))?")

    def __init__(self, data: DataConfig) -> None:
        found = self.PATTERN.fullmatch(data.dataset)
        if not found:
            near = difflib.get_close_matches(data.dataset.lower(), ["stories"])
            meant = f"; did you mean {near[0]!r}?" if near else "."
            local = f"'stories', a {', '.join(SUFFIXES)} file, a folder of such files"
            hub = "a data set of the hub, 'owner/name' or 'owner/name:config'"
            wrong = f"{data.dataset!r} is no corpus: it must be {local}, or {hub}"
            raise SlmError(f"{wrong}{meant}")
        self.data, self.name = data, data.dataset
        self.fingerprint = self.name
        self.repository, self.config, self.revision = found.groups()
        few = data.max_documents is not None
        self.streaming = few if data.streaming is None else data.streaming

    def _rows(self, split: str, streaming: bool) -> tuple[Any, bool]:
        """The rows that a split is read from, and whether train's are to be split."""
        loaded = load_hub(self.repository, self.config, self.revision, streaming)
        splits = {split_name(name): data for name, data in loaded.items()}
        made = split in ("train", "validation") and "validation" not in splits
        source = "train" if made else split
        if source not in splits:
            there = ", ".join(map(repr, loaded))
            raise SlmError(f"{self.name!r} has no split {split!r}; it has {there}.")
        return splits[source], made

    def shards(self, split: str) -> int:
        """The number of files of a split; 1 if only this machine's cache holds it."""
        return getattr(self._rows(split, streaming=True)[0], "num_shards", 1)


# %% [markdown]
# A part of a stored data set is a run of its files, too. What only this machine's cache
# holds has no files to deal out; its rows are dealt out in runs, and the parts make up
# the whole all the same.


# %% mystnb={"code_prompt_show": "HubSource.read: a split that is there, or one that is made (28 lines)"} tags=["hide-input"]
#| export data/corpus
@add_to(HubSource)
def read(self, split: str, part: Part | None = None) -> Reading:
    """The pieces of any split that there is, and of "validation"."""
    data, made = self._rows(split, self.streaming or part is not None)
    fraction, column = self.data.val_fraction, self.data.text_column
    if part:  # runs of files, or of rows of what is stored
        most = data.num_shards if hasattr(data, "num_shards") else len(data)
        k, n = part[0], min(part[1], most)
        data = data.shard(n, k) if k < n else data.take(0)
    if column in (data.column_names or ()):
        data = data.select_columns([column])

    def rows(advance: Advance) -> Rows:
        try:
            for number, row in enumerate(data, 1):
                advance(1)
                yield f"{self.name}, row {number}", row
        except Exception as error:  # the library's, on its way to the next row
            raise hub_error(self.name, error) from error

    def pieces(advance: Advance) -> Iterator[Piece]:
        texts = readers.take_texts(rows(advance), column)
        return as_pieces(texts, split if made else None, fraction)

    by_hash = f"{fraction:g} of train held out by hash"
    rule = by_hash if made else f"the data set's own {split!r}"
    size = len(data) if hasattr(data, "__len__") else None
    return Reading(rule, pieces, size, "document")


# %% [markdown]
# ## From a name to its source
#
# "stories" is ours. Else, what looks like a path, or exists as one, is a path (write
# `./stories` for a folder of that name). The rest must have the form of a hub name.

# %%
#| export data/corpus
Source = StorySource | FileSource | HubSource


def find_source(data: DataConfig) -> Source:
    """What `data.dataset` stands for: the stories, local files, a data set of the hub.

    Raises:
        SlmError: There is no such file, or the name is none of the three.
    """
    name = data.dataset
    if name == "stories":
        return StorySource(data)
    path = name.lower().endswith(SUFFIXES) or name.startswith((".", "~", "/", "$"))
    local = path or glob.has_magic(name) or os.path.exists(name)
    return FileSource(data) if local else HubSource(data)


# %% [markdown]
# What is none of the three is told so, with the nearest name if one is near:

# %% tags=["nbval-check-output"]
for name in ("storys", "owner/name/more"):
    try:
        find_source(DataConfig(name))
    except SlmError as error:
        course.show(error)

# %% [markdown]
# ## Names that decide, and names that do not
#
# Two folders of the same texts. In the first, names say which file is held out. In the
# second they are titles of books, one of them with the word "test" in it. What was
# decided stands in the `notes`, which are printed when the tokens are made:

# %% tags=["nbval-check-output"]
named = {
    "data": ("train.txt", "x_val.txt", "notes.md"),
    "books": ("A_Test.txt", "B.TXT"),
}
for name, files in named.items():
    (scratch / name).mkdir()
    for file in files:
        (scratch / name / file).write_text("One sentence.\n\n" * 50)
    source = find_source(DataConfig(f"{scratch}/{name}"))
    print(name, "is trained on", [file.name for file in source.train])
    for note in source.notes:
        print("  " + note.replace(f"{scratch}/", ""))

# %% [markdown]
# A rule that guessed more would be wrong more often, and silently: a corpus that lost
# one of its books, or a validation loss that is the loss of one author. A rule that
# guessed nothing would train on files that somebody had put aside as a test. So a name
# counts if it is of the kind that data sets have, and the folder makes sense with it.
#
# ## Use it
#
# A folder with two kinds of files and no validation split. Both sides are read, and
# each text is in exactly one of them:

# %% tags=["nbval-check-output"]
folder = scratch / "texts"
folder.mkdir()
rows = [json.dumps({"text": stories.sample(seed)}) for seed in range(200)]
(folder / "rows.jsonl").write_text("\n".join(rows))
(folder / "novel.txt").write_bytes(novel.read_bytes())
source = find_source(DataConfig(str(folder)))
print(type(source).__name__, source.name, f"{source.shards('train')} files")
for split in ("train", "validation"):
    reading = source.read(split)
    read = list(reading.pieces(lambda n: None))
    characters = sum(len(piece.text) for piece in read)
    documents = sum(piece.starts for piece in read)
    print(f"{split}: {documents} documents, {characters:,} characters")
print("rule:", reading.rule)

# %% [markdown]
# ## Is it right?
#
# Divided or not, a source gives the same pieces in the same order, and the two sides
# together are everything:


# %% tags=["nbval-check-output"]
def texts_of(split: str, part: Part | None = None) -> list[str]:
    return [piece.text for piece in source.read(split, part).pieces(lambda n: None)]


for split in ("train", "validation"):
    for n in (1, 2, 3):
        parts = [text for k in range(n) for text in texts_of(split, (k, n))]
        equal = sum(a == b for a, b in zip(parts, texts_of(split), strict=True))
        print(f"{split} in {n} parts: {equal} of {len(parts)} texts equal to the whole")
everything = sorted([*texts_of("train"), *texts_of("validation")])
characters = sum(map(len, everything))
expected = sum(len(json.loads(row)["text"]) for row in rows) + len(novel.read_text())
print(f"characters of both sides {characters:,}, of the folder {expected:,}")

# %% [markdown]
# ## What you have now
#
# A name or a path becomes documents, cut into pieces, on the right side of a split that
# does not leak. Real corpora are one name away: `DataConfig("roneneldan/TinyStories")`,
# `DataConfig("wikimedia/wikipedia:20231101.en")`, or `DataConfig("my_texts/")`. The
# [next engine room](#prepare) writes their tokens to disk, once.

# %%
course.summary("slm/data/readers.py", "slm/data/hub.py", "slm/data/corpus.py")
