"""Rows of tokens with their targets, and batches in an order that can be resumed.

    rows = TextDataset(texts, get_tokenizer("stories"), context_length=64)
    x, y = next(iter(TokenLoader(rows, batch_size=8)))

Exported from chapters/06_batches.py; edit it there.
"""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from slm.data.tokenizer import Tokenizer
from slm.errors import SlmError
from slm.model.config import IGNORE

# Whole documents in a row


def document_rows(
    tokens: np.ndarray, context_length: int, eot_token: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pack whole documents into rows of at most `context_length` targets.

    A row ends where the last document that fits in it ends. A document longer than a
    row goes on in the next one.

    Args:
        tokens: `(N,)`, end-of-text first, last and between documents.
        context_length: T, in tokens.
        eot_token: The id of end-of-text.

    Returns:
        Where each row starts and the number of its targets, both `(rows,)` int64.
    """
    # a part at a time: the comparison never takes as much memory as the file
    T, step = context_length, 1 << 24
    parts = range(0, len(tokens), step)
    found = [np.flatnonzero(tokens[i : i + step] == eot_token) + i for i in parts]
    # (M + 1,) document m lies between eots[m] and eots[m + 1]
    eots = np.concatenate(found)
    # (M,) rows that document m fills before its last, and where that last one starts
    full = np.maximum(-(-np.diff(eots) // T) - 1, 0)
    last = eots[:-1] + full * T
    # (M,) the first document that is not in that row
    following = np.searchsorted(eots, last + T, side="right") - 1

    opening, m, next_of = [], 0, memoryview(following)
    while m < len(following):
        opening.append(m)
        m = next_of[m]
    first = np.array(opening, dtype=np.int64)  # the documents that open a row
    count = full[first] + 1  # the rows of each of them
    ends = np.cumsum(count)
    # 0, 1, … in the rows of each
    within = np.arange(count.sum()) - np.repeat(ends - count, count)
    starts = np.repeat(eots[first], count) + within * T
    lengths = np.full(len(starts), T, dtype=np.int64)
    lengths[ends - 1] = eots[following[first]] - last[first]
    return starts, lengths


# Rows to keep


class RowDataset(Dataset[tuple[Tensor, Tensor]]):
    """Tokens cut into rows `(x, y)`, where `y` is `x` shifted by one.

    Use `TextDataset` for texts, `TokenDataset` for a token file.

    Args:
        tokens: `(N,)`, end-of-text first, last and between documents.
        context_length: T, the length of a row in tokens.
        eot_token: The id of end-of-text.
        packing: "stream": row i begins at token i·T, wherever in a document that is;
            each token is a target once, but the first, and fewer than T at the end that
            fill no row. "documents": a row begins with end-of-text and holds as many
            whole documents as fit, filled up with end-of-text whose targets are -100;
            only a document longer than T goes on in the next row.
        name: What an error message calls the tokens.

    Raises:
        SlmError: There are fewer tokens than one row needs, or no document.
    """

    tokenizer: Tokenizer | None = None

    def __init__(
        self,
        tokens: np.ndarray,
        context_length: int,
        eot_token: int,
        packing: str,
        name: str,
    ) -> None:
        T = context_length
        if T < 1:
            raise SlmError(f"context_length is {T}; it must be at least 1.")
        if packing not in ("stream", "documents"):
            allowed = "it must be 'stream' or 'documents'"
            raise SlmError(f"packing is {packing!r}; {allowed}.")
        self.tokens, self.eot_token = tokens, eot_token
        self.context_length, self.packing = context_length, packing
        self.n_rows = (len(tokens) - 1) // T
        if packing == "documents":
            self.starts, self.lengths = document_rows(tokens, T, eot_token)
            self.n_rows = len(self.starts)
        if self.n_rows < 1 and packing == "documents":
            raise SlmError(f"{name} holds no document, so there is no row to fill.")
        if self.n_rows < 1:
            few = f"{name} has {len(tokens)} tokens, fewer than the {T + 1}"
            cure = "take more text, a smaller context_length, or a larger val_fraction"
            raise SlmError(f"{few} that one row of context_length={T} needs: {cure}.")

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
        whole = self.packing == "documents"
        starts = self.starts[indices] if whole else indices * T  # (B,)
        places = starts[:, None] + np.arange(T + 1)  # (B, T + 1)
        window = np.take(self.tokens, places, mode="clip")  # (B, T + 1)
        x, y = window[:, :-1].astype(np.int64), window[:, 1:].astype(np.int64)  # (B, T)
        if whole:
            unused = np.arange(T) >= self.lengths[indices][:, None]  # (B, T)
            x[unused], y[unused] = self.eot_token, IGNORE
        return torch.from_numpy(x), torch.from_numpy(y)


# Texts in hand


def encode(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """The ids of any text: `(N,)` uint32. Special tokens inside it are text."""
    try:
        return tokenizer.encode_to_numpy(text, disallowed_special=())
    except UnicodeEncodeError:  # half of a surrogate pair
        repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return encode(repaired, tokenizer)
    except ValueError:  # a "word" of about a million spaces
        half = len(text) // 2
        parts = [encode(text[:half], tokenizer), encode(text[half:], tokenizer)]
        return np.concatenate(parts)


class TextDataset(RowDataset):
    """Texts in hand as rows `(x, y)`, both `(T,)` int64, where y is x shifted by one.

    Args:
        texts: The documents, joined by end-of-text; empty ones are left out.
        tokenizer: What `get_tokenizer` gives. Special tokens inside a text are text.
        context_length: T, in tokens.
        packing: "stream" or "documents", see `RowDataset`.

    Raises:
        SlmError: There are fewer tokens than one row needs.
    """

    def __init__(
        self,
        texts: Iterable[str],
        tokenizer: Tokenizer,
        context_length: int,
        packing: str = "stream",
    ) -> None:
        self.tokenizer = tokenizer
        texts = list(filter(None, [texts] if isinstance(texts, str) else texts))
        eot = np.array([tokenizer.eot_token], dtype=np.uint32)
        parts = [ids for text in texts for ids in (eot, encode(text, tokenizer))]
        tokens = np.concatenate([*parts, eot])
        name = f"The text (number of documents: {len(texts)})"
        super().__init__(tokens, context_length, tokenizer.eot_token, packing, name)


# The order of an epoch


@functools.lru_cache(maxsize=2)  # a batch can reach into the next epoch
def epoch_order(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    """All rows in the order of one epoch, `(n_rows,)`: a function of the arguments.

    `RandomState` is numpy's frozen generator: a later numpy gives the same order, and
    can resume a run.
    """
    order = np.arange(n_rows, dtype=np.uint32 if n_rows < 1 << 32 else np.uint64)
    np.random.RandomState([seed, epoch]).shuffle(order)
    order.flags.writeable = False
    return order


# Batches ahead of time

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """`map(function, items)` in order, with up to `2 * workers` results ahead of time.

    Threads compute them; without workers nothing is computed ahead.
    """
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


# The loader


class TokenLoader:
    """Batches of rows, for ever, in an order that is a function of (seed, step).

    That holds as long as the rows of a step, over all processes, stay as many.
    Rows are dealt out in a new order each epoch, and a batch may hold the end of one
    epoch and the start of the next, so no row is left out. With `world_size` processes
    a global batch has `batch_size * world_size` rows, and rank r takes the r-th
    `batch_size` of them.

    Args:
        dataset: Rows of tokens.
        batch_size: B, the rows that this process gets per step.
        shuffle: False keeps the order of the rows.
        seed: Of the order of rows, 0 or more and below 2**32.
        rank, world_size: This process among all that train together.
        num_workers: Threads that prepare batches ahead.
        pin_memory: Put batches in page-locked memory, from which a GPU can fetch them
            while it works. Unless said, if there is a CUDA device.

    Raises:
        SlmError: A number is out of its range.
    """

    def __init__(
        self,
        dataset: RowDataset,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        least = {"batch_size": 1, "num_workers": 0, "seed": 0}
        given = {"batch_size": batch_size, "num_workers": num_workers, "seed": seed}
        for name, value in given.items():
            if value < least[name]:
                raise SlmError(f"{name} is {value}; it must be at least {least[name]}.")
        if seed >= 1 << 32:
            raise SlmError(f"seed is {seed}; it must be below 2**32 = {1 << 32}.")
        if not 0 <= rank < world_size:
            allowed = "it must be 0 or more and below world_size"
            raise SlmError(f"rank is {rank} with world_size {world_size}; {allowed}.")
        self.dataset, self.tokenizer = dataset, dataset.tokenizer
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.world_size, self.num_workers = rank, world_size, num_workers
        cuda = torch.cuda.is_available()
        self.pin_memory = cuda if pin_memory is None else pin_memory
        self.step = 0

    @property
    def steps_per_epoch(self) -> int:
        """The steps after which each row has been seen."""
        return -(-len(self.dataset) // (self.batch_size * self.world_size))

    def indices(self, step: int) -> np.ndarray:
        """The rows of a step: `(B,)`."""
        R, first = len(self.dataset), (step * self.world_size + self.rank)
        g = np.arange(first * self.batch_size, (first + 1) * self.batch_size)
        epoch, place = np.divmod(g, R)  # (B,) both
        if not self.shuffle:
            return place
        epochs = range(epoch[0], epoch[-1] + 1)
        orders = [epoch_order(R, self.seed, e)[place[epoch == e]] for e in epochs]
        return np.concatenate(orders)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of any step, past or future: x and y, both `(B, T)` int64."""
        return self._fetch(self.indices(step))

    def _fetch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        x, y = self.dataset.rows(indices)
        return (x.pin_memory(), y.pin_memory()) if self.pin_memory else (x, y)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches from the present step on, without end."""
        steps = itertools.count(self.step)
        for batch in map_ahead(self.batch, steps, self.num_workers):
            self.step += 1
            yield batch

    def epoch_batches(self, most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Each row once over all ranks, in order; the last batch may be shorter.

        Args:
            most: Only the first so many rows.
        """
        R, B = len(self.dataset), self.batch_size
        R = R if most is None else min(R, most)
        firsts = range(self.rank * B, R, B * self.world_size)
        groups = (np.arange(first, min(first + B, R)) for first in firsts)
        return map_ahead(self._fetch, groups, self.num_workers)

    def state_dict(self) -> dict[str, int]:
        """The seed of the order, and the next step to be handed out."""
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where another loader stood; the next iterator starts there."""
        self.seed, self.step = state["seed"], state["step"]


def fill_batch(x: Tensor, y: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Both, `(B, T)`, with as many rows as are asked for; the new hold no target."""
    missing = (0, 0, 0, rows - len(x))
    return F.pad(x, missing), F.pad(y, missing, value=IGNORE)


def share_rows(rows: int, processes: int, most: int) -> tuple[int, int] | None:
    """How each process does its share of a step: rows of a batch, number of batches.

    The largest batch of at most `most` rows that all are filled with; None if the
    processes cannot have equally many rows.
    """
    own, rest = divmod(rows, processes)
    if rest:
        return None
    size = next(size for size in range(min(most, own), 0, -1) if own % size == 0)
    return size, own // size
