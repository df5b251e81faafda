"""Token files as rows, and the way from a corpus to its batches.

    loader = create_dataloader("stories", tokenizer="stories", context_length=64)
    x, y = next(iter(loader))

Exported from chapters/08_prepare.py; edit it there.
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

# A file as rows

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

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets the path, not a copy of the tokens."""
        made_of = (self.path, self.context_length, self.packing, self.tokenizer)
        return TokenDataset, made_of

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


# From a corpus to its batches


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


# What lies in the cache


@dataclass(frozen=True)
class TokenFile:
    """One token file of a cache, and why it is stale; an empty text if it is not."""

    path: Path
    about: dict[str, Any]
    stale: str

    def remove(self) -> None:
        """Delete it, its sidecar and its lock."""
        remove_tokens(self.path)


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
