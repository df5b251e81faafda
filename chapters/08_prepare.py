# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/data/prepare.py
#     - slm/data/dataset.py
# ---

# %% [markdown]
# # Token files
#
# *An engine room: it can be skipped at first reading.* A corpus is tokenized once, into
# a file that is whole or not there, and read from there without being loaded. You
# export `prepare_tokens`, which survives kills and company; `TokenDataset`, a file as
# rows; and `create_dataloader`, from the name of a corpus to its batches in one call.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% tags=["hide-input"]
#| export
"""Text becomes a file of token ids: whole or not there, and gone on with after a kill.

    path = prepare_tokens(DataConfig("my_texts/"), "train", get_tokenizer("gpt2"))
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

from slm.data.batches import encode, map_ahead
from slm.data import corpus
from slm.data.corpus import DataConfig, Part, Reading, find_source, split_name
from slm.data.readers import Piece
from slm.errors import SlmError
from slm.files import force, has_kinds, json_object, publish, user_path, write_text
from slm.data.tokenizer import Tokenizer

# %% [markdown]
# ## Why a file
#
# A large corpus has billions of tokens. A Python list of them would not fit into most
# machines, and tokenizing them at every start would take long. So it is done once: the
# ids go into a file, two bytes each (four if the vocabulary has more than 65,536
# tokens), with nothing between them. To train, the file is *mapped*: the operating
# system lends the file as if it were an array, fetches the pages that are touched and
# drops them when memory gets scarce. The rows of a [batch](#batches/rows-to-keep) are
# gathered from it as from any array.

# %% tags=["nbval-check-output"]
import tempfile

from slm.data.tokenizer import get_tokenizer

tokenizer = get_tokenizer("stories")
scratch = Path(tempfile.mkdtemp())
ids = np.array(tokenizer.encode("Once upon a time, there was a cat."), dtype=np.uint16)
ids.tofile(scratch / "few.tokens")
mapped = np.memmap(scratch / "few.tokens", dtype=np.uint16, mode="r")
print((scratch / "few.tokens").stat().st_size, "bytes for", len(mapped), "tokens")
print(tokenizer.decode(mapped[3:7].tolist()))

# %% [markdown]
# ## Four rules
#
# Preparing a large corpus takes long, and meanwhile anything can happen: a full disk, a
# closed laptop, a second process that wants the same file. Four rules make a kill or
# company harmless; a full disk costs the work, and nothing else.
#
# - Tokens are written under a **temporary name**, forced to the disk (`fsync`), and
#   only then [published](#files/published-file-or-folder), that is renamed. A rename
#   happens entirely or not at all. Without the `fsync` before it, a power failure can
#   leave the new name on an empty file: the disk may have written the folder's entry
#   before the contents.
# - A **sidecar**, a small JSON file, says what the file was made of and how long it is.
#   It is there before the tokens get their name; tokens without one do not count.
# - Every few seconds a **note** beside the unfinished file says how far it has got. A
#   call after a crash reads the text up to there, makes sure that it is still the same,
#   and goes on tokenizing behind it.
# - The file's name holds a **hash of everything that decides its contents**: the
#   source's fingerprint, the tokenizer's, the split. Change one, and another file is
#   made.
#
# | killed while | what lies there | the next call |
# |---|---|---|
# | tokens are written | `.partial`, and a note, seconds old | goes on behind the note |
# | the note is written | `.partial`, and the note before | goes on behind that one |
# | the sidecar is written | `.partial` with all tokens | goes on behind the last note |
# | the tokens get their name | the same, and the sidecar | goes on behind that one |
# | anything, after that | the file and its sidecar | returns at once |
#
# Where there is no note yet, the next call starts from the beginning.
#
# ## The note
#
# What must a note say, so that one can trust it? How many batches of text were read,
# and a digest of these texts: a data set of the hub can change under the same name, and
# then what is there belongs to another text. How many tokens they gave, and a digest of
# these: after a power failure the file's end may be missing or wrong. If anything does
# not agree, the work begins anew. Going on wrongly would cost more than starting again.

# %% mystnb={"code_prompt_show": "Documents counted, pieces in batches, and what a note holds (50 lines)"} tags=["hide-input"]
#| export
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


# %% [markdown]
# ## The writer
#
# It owns the two hidden files, knows what was left behind, and ends in one of two ways:
# `finish`, which publishes, or `discard`, after an error from which no call could go
# on. A note is only written after the tokens that it counts are on the disk. The other
# way round, it would promise what a power failure can still take.


# %%
#| export
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


# %% [markdown]
# While it is open, whatever lies behind the noted tokens is cut off, and each write
# goes into the file and into the hash. `take_note` is where the order counts: first the
# tokens, then the note.


# %%
#| export
@course.add_to(_Writer)
def __enter__(self) -> "_Writer":
    self.file = open(self.partial, "ab")
    self.file.truncate(self.progress.tokens * self.dtype.itemsize)
    return self


@course.add_to(_Writer)
def __exit__(self, *_: object) -> None:
    self.file.close()


@course.add_to(_Writer)
def write(self, tokens: np.ndarray | bytes) -> None:
    """Append ids."""
    data = tokens if isinstance(tokens, bytes) else tokens.data
    self.file.write(data)
    self.digest.update(data)


@course.add_to(_Writer)
def take_note(self) -> None:
    """Force the tokens to the disk, and then say how far they reach."""
    self.file.flush()
    force(self.partial)
    self.progress.sha256 = self.digest.hexdigest()
    write_text(self.note, json.dumps(asdict(self.progress)))


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a file, a megabyte at a time."""
    with open(path, "rb") as file:
        while block := file.read(min(1 << 20, size)):
            size -= len(block)
            yield block


# %% [markdown]
# The end has an order, too. The sidecar is written before the tokens get their name,
# and tokens of that name that had lost their sidecar are removed before: else a kill in
# between would leave old tokens with the new sidecar.


# %% tags=["hide-input"]
from course import add_to


# %%
#| export
@add_to(_Writer)
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


@add_to(_Writer)
def discard(self) -> None:
    """Remove all that an unfinished preparation leaves."""
    self.partial.unlink(missing_ok=True)
    self.note.unlink(missing_ok=True)
    for name in (f".{self.path.name}.*.tmp", f"{self.path.stem}.json.*.tmp"):
        for file in self.path.parent.glob(name):
            file.unlink(missing_ok=True)


# %% [markdown]
# ## The sidecar
#
# A file of numbers says nothing about itself. Its sidecar tells how many there are, of
# which type, from which text and tokenizer. It is also the witness that the file is
# complete: both must be there and agree.


# %%
#| export
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


# %% [markdown]
# ## What decides the name
#
# `_plan` finds all that is known before a text is read: the source, where the file
# lies, and what its sidecar will say. The hash in the name is taken from the source,
# the split and the settings that choose text, and from the tokenizer's fingerprint.
# Whoever asks for the same text with the same tokenizer comes to the same name, as long
# as the source's fingerprint is the same: for files, name, size, time and both ends.


# %%
#| export
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


# %% [markdown]
# ## From pieces to ids
#
# Pieces are encoded by threads. tiktoken lets go of Python's lock while it works, so
# threads share one tokenizer and use all cores, without the start-up time and copying
# that processes would cost. One after the other, what they return is written, counted
# and, every few seconds, noted. When a preparation goes on, the texts up to the note
# are read again, without tokenizing them, which proves that the text is still the same.


# %%
#| export
def _encode_pieces(pieces: list[Piece], tokenizer: Tokenizer) -> np.ndarray:
    """The ids of some pieces, with end-of-text before each document: `(N,)` uint32."""
    eot = np.array([tokenizer.eot_token], dtype=np.uint32)
    parts = []
    for text, starts in pieces:
        if starts:
            parts.append(eot)
        parts.append(encode(text, tokenizer))
    return np.concatenate(parts)


# %% [markdown]
# The reading is skipped up to the note, with a hash of the texts that go by. If that
# hash is another one, the text has changed, and everything begins anew. From there on
# threads tokenize ahead, and this loop writes, counts and notes, in order; `done` is
# the progress that stands in the note.


# %%
#| export
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


# %% [markdown]
# ## Company, and a full disk
#
# Two processes that want the same file must not both write it. A lock beside the file
# makes the second wait; when its turn comes, the file is there and it returns. The
# operating system releases the lock of a process that dies, however it dies.
#
# A full disk is an `OSError` like many others. It becomes a sentence that says what to
# do, marked with `retry`, since room may be made. What was written is removed: it is
# what fills the disk.


# %%
#| export
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


# %% [markdown]
# ## The door
#
# All of that stands behind one function. It looks whether the file is there, waits for
# the lock, looks again, and writes. With `part=(k, n)` it makes the k-th of n parts, on
# this machine or another.


# %%
#| export
def _tell(path: Path, reading: Reading) -> None:
    """Say what a corpus turned out to be, and what was decided about its files."""
    about = read_sidecar(path)
    found = f"{about['documents']:,} documents, {about['tokens']:,} tokens"
    for line in (*reading.notes, f"{about['split']}: {found} ({about['rule']})"):
        print(line, file=sys.stderr)


# %% [markdown]
# First what cannot be done is refused, then comes the look, the lock, and the second
# look. Only then the source is asked for its pieces: whoever finds the file there pays
# for nothing.


# %%
#| export
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


# %% [markdown]
# Here are 2,000 stories as a file, and what its sidecar says. The second call finds the
# file and returns at once.

# %%
two_thousand = DataConfig("stories", max_documents=2000, cache_dir=str(scratch))
seconds = []
for _ in range(2):
    began = time.perf_counter()
    path = prepare_tokens(two_thousand, "train", tokenizer)
    seconds.append(time.perf_counter() - began)
print(f"first call {seconds[0]:.2f} s, second call {seconds[1]:.3f} s")
print(path.with_suffix(".json").read_text())

# %% [markdown]
# ### What a kill leaves
#
# Now kill it. A process of its own prepares 2,000 stories, ten times over, and notes
# its progress after every batch. As soon as it has noted enough, it gets `kill -9`,
# against which no program can do anything:

# %% mystnb={"code_prompt_show": "Start a preparation and kill it (26 lines)"} tags=["hide-input"]
import signal
import subprocess
import sys

from slm.data import stories

some = [stories.sample(seed) for seed in range(2000)]
book = scratch / "train.txt"
book.write_text("\n\n".join(some * 10))
(scratch / "val.txt").write_text("Something else.")
own = DataConfig(str(book), cache_dir=str(scratch / "killed"))
program = """
import sys
from slm.data import prepare
from slm.data.corpus import DataConfig
from slm.data.tokenizer import get_tokenizer

prepare.NOTE_SECONDS = -1.0
data = DataConfig(sys.argv[1], cache_dir=sys.argv[2])
prepare.prepare_tokens(data, "train", get_tokenizer("stories"))
"""


def noted() -> int:
    notes = (scratch / "killed").glob(".*.note")
    return max((json.loads(note.read_text())["batches"] for note in notes), default=0)


# %%
print(f"the text has {book.stat().st_size / 1e6:.1f} MB")
command = [sys.executable, "-c", program, own.dataset, own.cache_dir]
process = subprocess.Popen(command)
while process.poll() is None and noted() < 4:
    time.sleep(0.01)
process.send_signal(signal.SIGKILL)
process.wait()
for file in sorted((scratch / "killed").iterdir()):
    kind = file.suffix.removeprefix(".")
    print(f"{kind:8} {'empty' if not file.stat().st_size else 'with contents'}")

# %% [markdown]
# No file with a name of its own, so nobody can mistake the beginning for the whole. The
# lock file is still there, and locks nothing: its holder is dead. The next call goes
# on. How many batches does it tokenize?

# %% tags=["nbval-check-output"]
from unittest import mock

before = noted()
with mock.patch("__main__._encode_pieces", wraps=_encode_pieces) as after:
    resumed = prepare_tokens(own, "train", tokenizer)
with mock.patch("__main__._encode_pieces", wraps=_encode_pieces) as undisturbed:
    calm = DataConfig(own.dataset, cache_dir=str(scratch / "calm"))
    calm = prepare_tokens(calm, "train", tokenizer)
more = undisturbed.call_count - before - after.call_count
print(f"batches that were tokenized although a note had counted them: {-more}")
size, equal = calm.stat().st_size, resumed.read_bytes() == calm.read_bytes()
print(f"killed and not killed, {size:,} bytes, all equal: {equal}")

# %% [markdown]
# ## A corpus for many machines
#
# The same rules carry a corpus that is too large for one machine. Each part is a *run*
# of the source's files and not every n-th of them, so the parts, one behind the other,
# are bit by bit the file that a single process would have written. It therefore gets
# the same name, and whoever looks for the whole finds it. What has no files to deal
# out, such as the first thousand documents, is refused. While a part is copied, its
# hash is compared with the one in its sidecar: a damaged part is named, not joined.


# %%
#| export
def count_shards(data: DataConfig, split: str, tokenizer: Tokenizer) -> int:
    """The most parts of a split that can have text: its number of files.

    1 if it is prepared, or cannot be divided.

    Raises:
        SlmError: The source cannot be found.
    """
    source, path, about = _plan(data, split, tokenizer)
    whole = data.max_documents is not None or _is_there(path)
    return 1 if whole else source.shards(about["split"])


# %% [markdown]
# Joining is a token file like any other: it is made under the same lock, with the same
# writer, and published when it is whole. Only then the parts are removed, with their
# sidecars and locks.


# %%
#| export
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


# %% [markdown]
# Each part ends with an end-of-text, and the next begins with one. So the last token of
# each is left out (`left` counts the bytes that are still to be written), and the
# writer ends the whole with one.


# %%
#| export
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


# %% [markdown]
# Six files in three parts, as three machines would make them, in an order of their own:

# %% tags=["nbval-check-output"]
folder = scratch / "six"
folder.mkdir()
for i in range(6):
    rows = [json.dumps({"text": text}) for text in some[300 * i : 300 * i + 300]]
    (folder / f"{i}.jsonl").write_text("\n".join(rows))
divided = DataConfig(str(folder), cache_dir=str(scratch / "parts"))
print("shards:", count_shards(divided, "train", tokenizer))
for k in (2, 0, 1):
    prepare_tokens(divided, "train", tokenizer, part=(k, 3))
joined = join_tokens(divided, "train", tokenizer, 3)
single = DataConfig(str(folder), cache_dir=str(scratch / "single"))
alone = prepare_tokens(single, "train", tokenizer)
size, equal = alone.stat().st_size, joined.read_bytes() == alone.read_bytes()
print("joined and undivided, the same name:", joined.name == alone.name)
print(f"joined and undivided, {size:,} bytes, all equal: {equal}")

# %% [markdown]
# ## A file as rows
#
# The rows of a token file are cut as from any array of tokens ([batches](#batches));
# the class below adds where they come from. It checks that the file belongs to its
# sidecar and to the tokenizer, and when it goes to another process, the path goes and
# not the tokens.

# %% tags=["hide-input"]
#| export data/dataset
"""Token files as rows, and the way from a corpus to its batches.

    loader = create_dataloader("stories", tokenizer="stories", context_length=64)
    x, y = next(iter(loader))
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm.data.batches import RowDataset, TokenLoader
from slm.data.batches import TextDataset as TextDataset
from slm.data.corpus import DataConfig
from slm.data.prepare import CHOOSING, prepare_tokens, read_sidecar, remove_tokens
from slm.data.tokenizer import Tokenizer, get_tokenizer
from slm.errors import SlmError
from slm.files import user_path


# %% [markdown]
# The class takes rows from a file instead of an array, and the rest from `RowDataset`.
# It looks into the sidecar first: the ids must be those of the tokenizer that is used,
# and the file must begin and end as its writer left it.


# %%
#| export data/dataset
LARGE = 20 * 10**9  # bytes, which a start reads in about 20 seconds
_verified: set[tuple[str, int, int]] = set()  # files with their sizes and times


class TokenDataset(RowDataset):
    """A token file, mapped into memory and read row by row: nothing of it is loaded.

    Args:
        path: What `prepare_tokens` returned.
        context_length: T, in tokens.
        packing: "stream" or "documents", see `RowDataset`.
        tokenizer: If given, the file must have been made with it.

    Raises:
        SlmError: The file is damaged, comes from another tokenizer, or has fewer tokens
            than one row needs.
    """

    def __init__(
        self,
        path: str | Path,
        context_length: int,
        packing: str = "stream",
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.path, self.tokenizer = Path(path), tokenizer
        self.about = read_sidecar(self.path)
        made_by = self.about["tokenizer"]
        if tokenizer is not None and made_by["fingerprint"] != tokenizer.fingerprint:
            theirs = f"{made_by['name']!r} ({made_by['fingerprint']})"
            ours = f"{tokenizer.name!r} ({tokenizer.fingerprint})"
            holds = f"{path} holds ids of the tokenizer {theirs}, not of {ours}"
            raise SlmError(f"{holds}: prepare the text again.")
        tokens = np.asarray(np.memmap(self.path, dtype=self.about["dtype"], mode="r"))
        eot = made_by["eot_token"]
        if tokens[0] != eot or tokens[-1] != eot:
            wrong = "is damaged: it does not begin and end with end-of-text"
            raise SlmError(f"{path} {wrong}; prepare the text again.")
        super().__init__(tokens, context_length, eot, packing, str(path))


# %% [markdown]
# Two things about files. A worker that gets the data set gets its path, and maps the
# file for itself. And a checksum over the whole file is worth one reading for each
# process, so `verify_once` remembers which files it has seen, by size and time.


# %%
#| export data/dataset
@course.add_to(TokenDataset)
def __reduce__(self) -> tuple[Any, ...]:
    """Another process gets the path, not a copy of the tokens."""
    made_of = (self.path, self.context_length, self.packing, self.tokenizer)
    return TokenDataset, made_of


@course.add_to(TokenDataset)
def verify(self) -> None:
    """Read the whole file and compare its SHA-256 with the one in its sidecar.

    Raises:
        SlmError: A bit has changed.
    """
    with open(self.path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != self.about["tokens_sha256"]:
        wrong = "its contents are not what was written; delete it"
        raise SlmError(f"{self.path} is damaged: {wrong}, and it is made anew.")


@course.add_to(TokenDataset)
def verify_once(self) -> None:
    """`verify`, unless this process has, since the file was last written.

    A file above `LARGE` is not read whole; that is printed.
    """
    status = self.path.stat()
    known = (str(self.path.absolute()), status.st_size, status.st_mtime_ns)
    if known not in _verified and status.st_size > LARGE:
        size = f"{status.st_size / 1e9:.0f} GB"
        told = "its checksum is not compared; TokenDataset(…).verify() does that"
        print(f"{self.path} is large ({size}): {told}", file=sys.stderr)
    elif known not in _verified:
        self.verify()
    _verified.add(known)


# %% [markdown]
# ### What goes wrong: ids of another tokenizer
#
# Ids are only numbers, so a file made with one vocabulary is readable with any other.
# Nothing would fail. The model would learn from this:

# %% tags=["nbval-check-output"]
from slm.data.tokenizer import train_bpe

other = Tokenizer("other", train_bpe(some[:300], 1024))
ids = np.fromfile(path, dtype=np.uint16)
course.show("right:", tokenizer.decode(ids[1:30].tolist()))
course.show("wrong:", other.decode(ids[1:30].tolist()))
try:
    TokenDataset(path, 64, tokenizer=other)
except SlmError as error:
    course.show("error:", str(error).replace(f"{path}", "the file"))

# %% [markdown]
# ### What goes wrong: one bit
#
# Disks and cables change bits, rarely. The size stays, so only the hash can tell. It is
# not checked at every start, since that would read the whole file:

# %% tags=["nbval-check-output"]
damaged = bytearray(path.read_bytes())
damaged[1000] ^= 1
sound = TokenDataset(path, 64, tokenizer=tokenizer)
sound.verify()
copy = scratch / "copy.tokens"
copy.write_bytes(damaged)
copy.with_suffix(".json").write_bytes(path.with_suffix(".json").read_bytes())
try:
    TokenDataset(copy, 64).verify()
except SlmError as error:
    course.show(str(error).replace(f"{copy}", "the copy"))

# %% [markdown]
# ## From a corpus to its batches
#
# A training run needs two loaders from one `DataConfig`: the training rows in random
# order, for ever, and the validation text in the order of its file. `make_loaders`
# gives both. And most callers who are no training run need one function, flat keywords
# and all: that is `create_dataloader`.
#
# A bit that has changed on the disk is trained on without a sign of it: no shape is
# wrong, and the loss hardly moves. So both verify the file first, once in a process.
# That reads the whole file once, some seconds before hours of training.


# %%
#| export data/dataset
def _rows(
    data: DataConfig, split: str, tokenizer: Tokenizer, context_length: int, rank: int
) -> TokenDataset:
    """One split as rows; of several processes the first verifies it."""
    path = prepare_tokens(data, split, tokenizer)
    rows = TokenDataset(path, context_length, data.packing, tokenizer)
    if rank == 0:
        rows.verify_once()
    return rows


def make_loaders(
    data: DataConfig,
    tokenizer: Tokenizer,
    context_length: int,
    batch_size: int,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[TokenLoader, TokenLoader]:
    """The loaders of a run: `data.train_split`, shuffled, and `data.val_split`.

    Args:
        data: The corpus; it is tokenized unless that was done before.
        tokenizer: What `get_tokenizer` gave for `data.tokenizer`.
        context_length: T, in tokens.
        batch_size, seed, rank, world_size: See `TokenLoader`.

    Raises:
        SlmError: What `prepare_tokens` or `TokenDataset` finds wrong.
    """
    train = _rows(data, data.train_split, tokenizer, context_length, rank)
    held_out = _rows(data, data.val_split, tokenizer, context_length, rank)
    order = (seed, rank, world_size, data.num_workers)
    loader = TokenLoader(train, batch_size, True, *order)
    return loader, TokenLoader(held_out, batch_size, False, *order)


# %% [markdown]
# Its settings are those of the section `data:` and of the two constructors. A path
# given as `dataset_path` is a path whatever its name, even "stories". Most of the lines
# name the settings and say whose they are; then the two ways to name a corpus become
# one, and the settings go to `DataConfig`, to the rows and to the loader.


# %%
#| export data/dataset
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
        dataset_path: a .txt, .jsonl or .parquet file, a folder of such files, or a
            pattern like "texts/*.txt" on this machine.
        split: "train", "validation", or any split that the source has by name.
        tokenizer: A name or path for `get_tokenizer`, or what it gave.
        cache_dir, text_column, max_documents, val_fraction, streaming: See
            `DataConfig`.
        context_length, packing: See `TokenDataset`.
        batch_size, num_workers, seed, shuffle, rank, world_size, pin_memory: See
            `TokenLoader`.

    Raises:
        SlmError: What is wrong with a setting, the source, its text or its token file.
    """
    if (dataset_name is None) == (dataset_path is None):
        either = "dataset_name ('stories' or a hub data set) or dataset_path"
        raise SlmError(f"Give either {either}, one of the two.")
    if dataset_path is not None:
        if not os.fspath(dataset_path):
            raise SlmError("dataset_path is empty: say which file or folder is read.")
        # "./stories" is a folder, whatever its name
        dataset_name = os.path.join(os.curdir, user_path(dataset_path))
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = get_tokenizer(tokenizer)
    kept: Any = dict(cache_dir=str(cache_dir), num_workers=num_workers)
    read: Any = dict(text_column=text_column, streaming=streaming, packing=packing)
    shares: Any = dict(max_documents=max_documents, val_fraction=val_fraction)
    data = DataConfig(str(dataset_name), **kept, **read, **shares)
    rows = _rows(data, split, tokenizer, context_length, rank)
    order = (shuffle, seed, rank, world_size, num_workers, pin_memory)
    return TokenLoader(rows, batch_size, *order)


# %% [markdown]
# ## What lies in the cache
#
# Nothing is ever deleted behind your back, so token files pile up: whenever a source
# file is touched, its text may be another, and gets a file of its own. `token_files`
# tells them apart. A file is *stale* if a later one was made of the same source with
# the same settings, or if no version of slm that is here would read it. `slm data`
# prints the list, and removes the stale ones when it is told to.


# %%
#| export data/dataset
@dataclass(frozen=True)
class TokenFile:
    """One token file of a cache, and why it is stale; an empty text if it is not."""

    path: Path
    about: dict[str, Any]
    stale: str

    def remove(self) -> None:
        """Delete it, its sidecar and its lock."""
        remove_tokens(self.path)


# %% [markdown]
# The list goes from the latest file to the oldest. What a file was made of, as its
# sidecar says, is its key; a key that was seen before belongs to a later file, so this
# one is stale.


# %%
#| export data/dataset
def token_files(cache_dir: str | os.PathLike[str]) -> list[TokenFile]:
    """The finished token files of a folder, the latest first.

    Raises:
        SlmError: There is no such folder.
    """
    folder = user_path(cache_dir)
    if not folder.is_dir():
        raise SlmError(f"{cache_dir} is no folder, so no token files lie there.")
    paths = sorted(folder.glob("*.tokens"), key=lambda path: -path.stat().st_mtime_ns)
    found, latest = [], set()
    for path in paths:
        try:
            about, stale = read_sidecar(path), ""
        except SlmError as error:
            found.append(TokenFile(path, {}, str(error)))
            continue
        made_of = {key: about.get(key) for key in _MADE_OF}
        key = json.dumps([made_of, about["tokenizer"]["fingerprint"]], sort_keys=True)
        if key in latest:
            stale = "its source has changed since, and there is a later one"
        latest.add(key)
        found.append(TokenFile(path, about, stale))
    return found


_MADE_OF = ("source", "split", "part", *CHOOSING)


# %%
own = Path(tempfile.mkdtemp())
(own / "own.txt").write_text("Once upon a time.\n\n" * 200)
data = DataConfig(str(own / "own.txt"), cache_dir=str(own / "cache"))
for _ in range(2):
    (own / "own.txt").touch()
    prepare_tokens(data, "train", tokenizer)
for file in token_files(own / "cache"):
    print(f"{file.about['tokens']} tokens", file.stale or "in use", sep=": ")

# %% [markdown]
# ## Use it
#
# From a name to a batch in one call:

# %%
loader = create_dataloader(
    "stories",
    tokenizer="stories",
    batch_size=4,
    context_length=24,
    cache_dir=scratch,
    max_documents=2000,
)
x, y = next(iter(loader))
for row in x:
    course.show(repr(tokenizer.decode(row.tolist())), hanging="  ")

# %% [markdown]
# How does it grow? `benchmarks/loader.py` writes ever larger files and measures three
# loaders on each: ids in a Python list, a memory map of which each row is sliced, and
# this one. That takes minutes and gigabytes, so {numref}`fig-loaders` shows its record.
# *Anonymous* memory is what a machine must really have; pages of a mapped file can be
# dropped whenever something else needs the room.

# %%
import csv

from course import ROOT

record = ROOT / "benchmarks" / "results" / "loader.csv"
made_by, *table = record.read_text(encoding="utf-8").splitlines()
recorded = list(csv.DictReader(table))
course.show(made_by.removeprefix("# "))
lists = [row for row in recorded if row["loader"] == "list"]
largest = max(lists, key=lambda row: float(row["megabytes"]))
per_token = float(largest["anonymous_mb"]) / float(largest["megabytes"]) * 2
print(f"an id in a list takes {per_token:.0f} bytes instead of 2")

# %% mystnb={"code_prompt_show": "Draw memory and speed of a list and of a mapped file", "figure": {"caption": "Left: a list takes many times the file's size in memory, a mapped file a small part of it. Right: tokens per second of CPU time; this package's loader gathers a batch at once and stays well above row by row.", "name": "fig-loaders"}, "image": {"alt": "Two panels over the size of the token file. Left, memory, both scales logarithmic: the list lies far above the others and rises with the file; a map read row by row rises, too; this package stays lowest. Right, speed: this package is highest at every size, though it falls as the file grows; the others stay level far below."}} tags=["hide-input"]
from course.figures.prepare import loaders_figure

loaders_figure(recorded)

# %% [markdown]
# A list costs an object and a pointer for each id (40 bytes for an id above 256), and
# ends where memory ends. Of a map, only the order of its rows takes memory:
# `DataLoader` shuffles a Python list of numbers, this loader an array of four bytes
# each. Both slow down as the file outgrows the processor's caches, and each page must
# be mapped when it is first touched.
#
# ## Is it right?
#
# The file against the tokenizer, the rows against the file, the two sides against each
# other, and both doors against each other:

# %% tags=["nbval-check-output"]
expected = [i for text in some for i in [tokenizer.eot_token, *tokenizer.encode(text)]]
expected.append(tokenizer.eot_token)
stored = np.fromfile(path, dtype=np.uint16).tolist()
print(f"{len(expected):,} ids of 2,000 stories and of the file, all equal:", end=" ")
print(stored == expected)

common = dict(tokenizer=tokenizer, cache_dir=scratch, max_documents=2000)
one = create_dataloader("stories", batch_size=8, context_length=32, **common)
two, held_out = make_loaders(two_thousand, tokenizer, 32, 8)
equal = all((one.batch(step)[0] == two.batch(step)[0]).all() for step in range(100))
print(f"batches of both doors equal, 100 steps: {equal}")


def stories_of(loader: TokenLoader) -> set[str]:
    text = tokenizer.decode(loader.dataset.tokens[1:-1].tolist())
    return set(text.split("<|endoftext|>"))


both = stories_of(two) & stories_of(held_out)
print(f"stories in train and in validation: {len(both)}")

# %% [markdown]
# ## Exercise
#
# **Whole or not there.** Write `data` to `path`, so that whoever reads `path`, at any
# moment, finds either what was there before or all of the new. That must hold when your
# function is killed at any line, and when the power fails after it has returned or in
# the middle of it; and after a kill, the next call must work.


# %% tags=["exercise"]
def write_whole(path: Path, data: bytes) -> None:
    """Replace a file's contents, entirely or not at all."""
    raise NotImplementedError("your turn")


# %%
from course import check

check.write_whole(write_whole)

# %% [markdown]
# Nearly right, and what most programs do:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def without_fsync(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".tmp")
    part.write_bytes(data)
    os.replace(part, path)


check.write_whole(without_fsync)

# %% [markdown]
# <details><summary>Solution: <code>write_whole</code></summary>
#
# A temporary name beside the file (a rename only works inside one file system), its
# contents forced to the disk, then the rename. `flush` empties Python's own buffer;
# `fsync` can force only what it has seen. To force the folder's entry too, as
# `slm.files.publish` does, makes sure that the *new* contents are found after a power
# failure; without it the old ones may be, which is allowed here.
#
# ```python
# def write_whole(path, data):
#     part = path.with_name(path.name + ".tmp")
#     with open(part, "wb") as file:
#         file.write(data)
#         file.flush()
#         os.fsync(file.fileno())
#     os.replace(part, path)
# ```
# </details>
#
# ## What you have now
#
# A corpus of any size becomes a file, once, whatever happens meanwhile, and batches
# without being loaded: `create_dataloader("roneneldan/TinyStories")` is all it takes.
# What a model can reach on the stories at best, the [next chapter](#floor) computes;
# then it is [trained](#trainer).

# %%
course.summary("slm/data/prepare.py", "slm/data/dataset.py")
