"""Where text comes from: the embedded stories, files of this machine, the hub.

    reading = find_source(DataConfig("texts/*.jsonl")).read("train")
    texts = [piece.text for piece in reading.pieces(print)]

Exported from chapters/07_corpora.py; edit it there.
"""

import functools
import glob
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from slm.data import stories
from slm.data.readers import (
    READERS,
    SUFFIXES,
    Advance,
    Piece,
    Rows,
    as_pieces,
    read_utf8,
    split_pieces,
    take_texts,
)
from slm.errors import SlmError, settings
from slm.files import answers

# What is read: the section `data`


@settings
class DataConfig:
    """`data:`, what is read; `dataset` must be given."""

    dataset: str = Field(
        min_length=1, description="'stories', a Hugging Face hub name, or a path"
    )
    train_split: str = Field("train", description="name of the part to train on")
    val_split: str = Field(
        "validation", description="name of the part that is held out"
    )
    val_fraction: float = Field(
        0.1, gt=0, lt=1, description="held out where the source has no validation split"
    )
    text_column: str = Field(
        "text", description="column of the source that holds a document"
    )
    tokenizer: str = Field(
        "gpt2", description="'gpt2', 'stories', or the path of a saved one"
    )
    packing: Literal["stream", "documents"] = Field(
        "stream", description="'documents': each row starts with a document"
    )
    max_documents: int | None = Field(
        None, ge=1, description="per split; null takes all"
    )
    streaming: bool | None = Field(
        None,
        description="read a hub data set unstored; null: if max_documents is given",
    )
    cache_dir: str = Field("data", description="where token files are kept")
    num_workers: int = Field(
        0, ge=0, le=256, description="threads that prepare batches ahead"
    )


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
            raise SlmError(
                "The stories cannot be divided into parts; they are written in "
                "seconds: leave part out."
            )
        if split not in self.sizes:
            there = "there are 'train' and 'validation'"
            raise SlmError(f"The stories have no split {split!r}; {there}.")
        seeds = f"seeds from 0 for train, from {self.VALIDATION_SEED} for validation"
        pieces = functools.partial(self._pieces, split)
        return Reading(f"{seeds}, no story in both", pieces, self.sizes[split], "story")


# Files and folders


def _find_files(path: str) -> list[Path]:
    """The files with text that a path, folder or glob pattern stands for, sorted."""
    root = Path(path).expanduser()
    if root.is_dir():
        inside = (p for p in root.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        found = sorted(
            p for p in inside if "/." not in f"/{p.relative_to(root).as_posix()}"
        )
    else:
        matches = map(Path, glob.glob(str(root), recursive=True))
        found = [root] if root.exists() else sorted(p for p in matches if p.is_file())
    kinds = ", ".join(SUFFIXES)
    if not found and root.is_dir():
        raise SlmError(f"The folder {path} has no {kinds} file.")
    if not found:
        raise SlmError(f"{path} does not exist.")
    for file in found:
        if file.suffix not in SUFFIXES:
            raise SlmError(f"{file} is not a kind of file that is read: {kinds}.")
    if full := [file for file in found if file.stat().st_size]:
        return full
    raise SlmError(f"{path} is empty.")


def _split_of_file(path: Path) -> str | None:
    """The split that a file name carries as a word, as in `train-00001.parquet`."""
    words = set(re.split(r"[^a-z]+", path.stem.lower()))
    return next((name for name, others in SPLITS.items() if words & {*others}), None)


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


def fingerprint_file(file: Path) -> list[Any]:
    """What tells files of one name apart: size, time, hash of the two outer 64 KiB."""
    stat = file.stat()
    with open(file, "rb") as opened:
        head = opened.read(1 << 16)
        opened.seek(max(stat.st_size - (1 << 16), 0))
        ends = hashlib.sha256(head + opened.read()).hexdigest()[:16]
    return [file.name, stat.st_size, stat.st_mtime_ns, ends]


class FileSource:
    """Files on this machine.

    Files whose names carry a split ("train.txt", "validation-0.parquet") are that
    split; a single "…train…" file brings the validation file beside it. Where there is
    no validation file, part of train is held out:

    - of .jsonl and .parquet files the documents whose hash, as a number between 0 and
      1, is below `val_fraction`;
    - of .txt files, each of which is one document, that share of the files (those with
      the lowest hashes) if it makes at least one; else the last `val_fraction` of each,
      from a blank line or line end on.
    """

    def __init__(self, data: DataConfig) -> None:
        self.data, self.name = data, Path(data.dataset).name
        files = _find_files(data.dataset)
        if len(files) == 1 and _split_of_file(files[0]) == "train":
            first, others = files[0], SPLITS["validation"]
            names = (re.sub("train(ing)?", other, first.name) for other in others)
            beside = (first.with_name(name) for name in names)
            files += itertools.islice(filter(Path.is_file, beside), 1)
        self.fingerprint = [fingerprint_file(file) for file in files]
        of = {file: _split_of_file(file) for file in files}
        self.train = [file for file in files if of[file] in ("train", None)]
        self.others = {name: [f for f in files if of[f] == name] for name in SPLITS}
        if not self.train:  # all are named for another split: then names say nothing
            self.train, self.others = files, {}

    def shards(self, split: str) -> int:
        """The number of files that a split is read from."""
        return len((split != "train" and self.others.get(split)) or self.train)

    def read(self, split: str, part: Part | None = None) -> Reading:
        """The pieces of "train", "validation", or a split that files are named for."""
        files, side, rule = self.train, None, f"the files named {split}"
        if split != "train" and self.others.get(split):
            files = self.others[split]
        elif split == "train" and self.others.get("validation"):
            rule = "the files not named for another split"
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
                if file.suffix == ".txt":
                    of_side = self._range(file, side, held)
                    yield from split_pieces(read_utf8(file, *of_side, advance))
                    continue
                column = self.data.text_column
                rows = READERS[file.suffix](file, column, advance)
                texts = take_texts(rows, column)
                yield from as_pieces(texts, side, self.data.val_fraction)

        return Reading(rule, pieces, sum(file.stat().st_size for file in files), "B")

    def _held_out(self, files: list[Path]) -> set[Path]:
        """The text files that are held out whole; none if there are too few of them."""
        digests = {}
        texts = [file for file in files if file.suffix == ".txt"]
        n = int(len(texts) * self.data.val_fraction)
        for file in texts if n else ():
            with open(file, "rb") as opened:
                digests[file] = hashlib.file_digest(opened, "sha256").digest()
        lowest = sorted(digests.values())[:n]
        return {file for file, digest in digests.items() if digest in lowest}

    def _range(self, file: Path, side: str | None, held: set[Path]) -> tuple[int, int]:
        """The bytes of a text file that belong to a side; all of them if it is None."""
        size = file.stat().st_size
        if side is None:
            return 0, size
        if held:
            return (0, size) if (file in held) == (side == "validation") else (0, 0)
        cut = _tail_start(file, self.data.val_fraction)
        return (0, cut) if side == "train" else (cut, size)


# The hub


class HubSource:
    """A data set of the hub: "owner/name", "owner/name:config", "…@revision".

    Its token files are found again without a network. A validation split that it lacks
    is made by hash from train.
    """

    PATTERN = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w./-]+))?")

    def __init__(self, data: DataConfig) -> None:
        found = self.PATTERN.fullmatch(data.dataset)
        if not found:
            raise SlmError(
                f"{data.dataset!r} is no corpus: it must be 'stories', a "
                f"{', '.join(SUFFIXES)} file, a folder of such files, or a data set of "
                "the Hugging Face hub, 'owner/name' or 'owner/name:config'."
            )
        self.data, self.name = data, data.dataset
        self.fingerprint = self.name
        self.repository, self.config, self.revision = found.groups()
        few = data.max_documents is not None
        self.streaming = few if data.streaming is None else data.streaming

    def _load(self, streaming: bool) -> Any:
        """The data set's splits, as `datasets` gives them."""
        try:
            import datasets
            from huggingface_hub import constants
        except ImportError:
            needed = 'needs datasets: pip install "slm[data]"'
            raise SlmError(f"Reading {self.name!r} from the hub {needed}.") from None
        offline = datasets.config.HF_HUB_OFFLINE
        if not offline and not answers(constants.ENDPOINT, 4.0):
            raise SlmError(
                f"The Hugging Face hub does not answer, so {self.name!r} cannot be "
                "read: use 'stories' or a local file, or set HF_HUB_OFFLINE=1 if the "
                "data set is already in this machine's cache.",
                retry=True,
            )
        streaming = streaming and not offline
        name, config, revision = self.repository, self.config, self.revision
        try:
            return datasets.load_dataset(
                name, config, revision=revision, streaming=streaming
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            searched = "so only this machine's cache was searched"
            hint = f"; HF_HUB_OFFLINE is set, {searched}" if offline else ""
            failed = f"Cannot read {self.name!r} from the Hugging Face hub"
            raise SlmError(f"{failed}: {reason.rstrip('.')}{hint}.") from error

    def _rows(self, split: str, streaming: bool) -> tuple[Any, bool]:
        """The rows that a split is read from, and whether train's are to be split."""
        loaded = self._load(streaming)
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
            for number, row in enumerate(data, 1):
                advance(1)
                yield f"{self.name}, row {number}", row

        def pieces(advance: Advance) -> Iterator[Piece]:
            texts = take_texts(rows(advance), column)
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
    path = name.endswith(SUFFIXES) or name.startswith((".", "~", "/"))
    local = path or glob.has_magic(name) or os.path.exists(name)
    return FileSource(data) if local else HubSource(data)
