"""Where text comes from: the embedded stories, files of this machine, the hub.

    reading = find_source(DataConfig("texts/*.jsonl")).read("train")
    texts = [piece.text for piece in reading.pieces(print)]

Exported from chapters/07_corpora.py; edit it there.
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

# What is read: the section `data`


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


# Three sources, one form

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


# Your own text: files and folders


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

    def _note(self, how: str, named: dict[str, list[Path]]) -> None:
        """Note which files were taken for what."""
        for what, files in named.items():
            if files:
                few = ", ".join(file.name for file in files[:3])
                more = f" and {len(files) - 3:,} more" if len(files) > 3 else ""
                self.notes.append(f"{what} ({how}): {few}{more}")

    def _range(self, file: Path, side: str | None, held: set[Path]) -> tuple[int, int]:
        """The bytes of a text file that belong to a side; all of them if it is None."""
        size = file.stat().st_size
        if side is None:
            return 0, size
        if held:
            return (0, size) if (file in held) == (side == "validation") else (0, 0)
        cut = _tail_start(file, self.data.val_fraction)
        return (0, cut) if side == "train" else (cut, size)


def _validation_beside(train: Path) -> Iterator[Path]:
    """Files that are named as this one is, with validation in the place of train."""
    found = _SPLIT_NAME.fullmatch(train.stem)
    if not found:
        return
    for other in SPLITS["validation"]:
        name = train.stem[: found.start(1)] + other + train.name[found.end(1) :]
        if (beside := train.with_name(name)).is_file():
            yield beside


# A data set of the hub


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


# From a name to its source

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
