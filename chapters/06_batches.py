# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/data/batches.py
# ---

# %% [markdown]
# # Batches
#
# How texts become batches: one strip of tokens, cut into rows with their targets, and
# dealt out in an order that survives a crash. You export `TextDataset`, which turns
# texts in hand into rows, and `TokenLoader`, which turns rows into batches; and what
# they stand on: `encode` for any text, `document_rows` to pack whole documents,
# `RowDataset`, `epoch_order` to shuffle, `map_ahead` to work ahead.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% tags=["hide-input"]
#| export
"""Rows of tokens with their targets, and batches in an order that can be resumed.

    rows = TextDataset(texts, get_tokenizer("stories"), context_length=64)
    x, y = next(iter(TokenLoader(rows, batch_size=8)))
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

from slm.errors import SlmError
from slm.model.config import IGNORE
from slm.data.tokenizer import Tokenizer

# %% [markdown]
# ## One long strip
#
# A model reads `T` tokens and guesses, at each of them, the one that follows. So a
# training example needs no labels: text is its own answer, moved by one. Join all
# documents into one strip, with the end-of-text token before, between and after them,
# and cut it into rows of `T`. {numref}`fig-strip` has three short documents, one colour
# each, in rows of eight. Each cell shows a token $x$ and, under it, its target $y$.

# %% tags=["hide-input"]
from course.figures.batches import strip
from slm.data.tokenizer import get_tokenizer

# %%
tokenizer = get_tokenizer("stories")
eot = tokenizer.eot_token
texts = ["Zoe had a red hat.", "Kai was sad. He lost his blue cap.", "Nell said yes."]
tokens = np.array([t for text in texts for t in [eot, *tokenizer.encode(text)]] + [eot])
T = 8

# %% mystnb={"code_prompt_show": "Cut the strip into rows, and draw them", "figure": {"caption": "Three documents as one strip, cut into rows of eight: under each token its target, the token after it. The last target of a row opens the next one.", "name": "fig-strip"}, "image": {"alt": "Three pairs of lines with eight tokens each, inputs x above targets y. The targets are the inputs moved by one: x begins end-of-text, Zoe, had, a, red, hat; y begins Zoe, had, a, red, hat. The colour changes where a document ends, in the middle of a row."}} tags=["hide-input"]
starts = range(0, len(tokens) - T, T)
rows = [(tokens[i : i + T], tokens[i + 1 : i + T + 1]) for i in starts]
strip(rows, tokenizer)

# %% [markdown]
# Look at the row ends: the last target of a row is the first token of the next one. No
# token falls between two rows, and none is asked for twice; only what fills no row at
# the very end is dropped. A row may start in the middle of a sentence, and a document
# may begin in the middle of a row; end-of-text marks where a new one begins. Attention
# still reaches across it, and the model has to learn to ignore what stands before.
#
# ## In symbols
#
# Call the strip $t \in \{0, \dots, V-1\}^N$, `N` tokens of a vocabulary of `V`. Row $i$
# holds `T` inputs and `T` targets,
#
# $$
# x_i = (t_{iT}, \dots, t_{iT+T-1}), \qquad y_i = (t_{iT+1}, \dots, t_{iT+T}), \qquad
# i = 0, \dots, \left\lfloor \frac{N-1}{T} \right\rfloor - 1 .
# $$
#
# One token less than $N$ counts, because the last input needs a token behind it as its
# target; the last $-1$ only says that rows are numbered from 0. How many rows does our
# strip give, and how many tokens are left over?

# %% tags=["nbval-check-output"]
N = len(tokens)
print(f"{N} tokens: {(N - 1) // T} rows of {T}, {(N - 1) % T} targets left over")

# %% [markdown]
# ## Exercise 1: rows
#
# Cut `(N,)` tokens into all full rows of `T`, with targets. Return `x` and `y`, both
# `(R, T)`. (The folded cell above the picture cuts rows too, as a list; try it first
# without looking there.)


# %% tags=["exercise"]
def shifted_rows(tokens: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, both (R, T), of a strip of tokens (N,)."""
    raise NotImplementedError("your turn")


# %%
from course import check

check.shifted_rows(shifted_rows)

# %% [markdown]
# A typical wrong answer takes as many rows as there are inputs for, and what the check
# says to it:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def too_many(tokens: Tensor, T: int) -> tuple[Tensor, Tensor]:
    R = len(tokens) // T
    return tokens[: R * T].view(R, T), tokens.roll(-1)[: R * T].view(R, T)


check.shifted_rows(too_many)

# %% [markdown]
# <details><summary>Solution: <code>shifted_rows</code></summary>
#
# `R` rows need `R·T + 1` tokens, one more than they have inputs. What is left over at
# the end is dropped.
#
# ```python
# def shifted_rows(tokens, T):
#     R = (len(tokens) - 1) // T
#     return tokens[: R * T].view(R, T), tokens[1 : R * T + 1].view(R, T)
# ```
# </details>
#
# ## All rows at once
#
# A batch is `B` such rows: `x` and `y`, both `(B, T)`. The picture's rows came from a
# list of slices. That is right, and slow for a batch: a slice, a conversion and an
# object for each row. numpy can gather any rows with a table of positions:


# %%
def gather(tokens: np.ndarray, rows: np.ndarray, T: int) -> tuple:
    places = rows[:, None] * T + np.arange(T + 1)  # (B, 1) + (T + 1,) → (B, T + 1)
    window = tokens[places]  # (B, T + 1)
    return window[:, :-1], window[:, 1:]  # (B, T) both


# %% tags=["nbval-check-output"]
x, y = gather(tokens, np.arange(len(rows)), T)
for name, found, slices in zip("xy", (x, y), zip(*rows, strict=True), strict=True):
    print(f"{name}: {np.sum(found == slices)} of {found.size} ids equal to the slices")

# %% [markdown]
# ### What goes wrong: targets that are not shifted
#
# Forget the shift, `y = x`, and training looks wonderful: the loss falls to zero, since
# each answer is the question. No error is ever raised. Here is a "model" that only
# copies its input, scored with both kinds of targets:

# %% tags=["nbval-check-output"]
copied = x
print(f"right with y = x:              {(copied == x).mean():.2f}")
print(f"right with y shifted by one:   {(copied == y).mean():.2f}")

# %% [markdown]
# If your loss is too good, look here first. The stories have a [floor](#floor), below
# which no honest model can get by more than the luck of the sample.
#
# ## Whole documents in a row
#
# Cutting the strip anywhere wastes nothing, but most rows then start in the middle of a
# text. Short texts like our stories are better seen from their beginning, which is how
# they will be generated. So there is a second way to cut: each row begins with a
# document and holds as many whole ones as fit. What is left over is filled up with
# end-of-text, whose target $-100$ tells the loss to look away. Only a document longer
# than `T` goes on in the next row. The price is the filling, which is measured below.
#
# By the definition, row after row: from where the last row ended, take the farthest
# end-of-text that `T` targets reach; if they reach none, take `T`.


# %%
def pack(tokens: np.ndarray, T: int, eot: int) -> list[tuple[int, int]]:
    """Where each row starts, and how many targets it has."""
    rows, start = [], 0
    while start < len(tokens) - 1:
        reached = tokens[start + 1 : start + T + 1]
        ends = np.flatnonzero(reached == eot)
        length = int(ends[-1]) + 1 if len(ends) else T
        rows.append((start, length))
        start += length
    return rows


pack(tokens, 16, eot)

# %% [markdown]
# Each pair is a row: where it starts, and how many targets it has. Filled up to sixteen
# they are {numref}`fig-packed`; grey is filling.


# %% mystnb={"figure": {"caption": "The same documents in longer rows that hold whole documents only. What is left at the end of a row is filled with end-of-text, and has no target.", "name": "fig-packed"}, "image": {"alt": "Three pairs of lines, twice as long as before, inputs above targets, one colour for each document. Each row begins with end-of-text; after its last document the cells are grey, the inputs end-of-text, the targets a dash."}}
def filled(start: int, length: int, T: int = 16) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.full(T, eot), np.full(T, IGNORE)  # (T,) both
    x[:length] = tokens[start : start + length]
    y[:length] = tokens[start + 1 : start + length + 1]
    return x, y


strip([filled(*row) for row in pack(tokens, 16, eot)], tokenizer)

# %% [markdown]
# The first row holds the first document and ends at its end-of-text: the second
# document would not have fitted behind it. A corpus has millions of rows, and this loop
# slices and searches for each of them. Most of the work can be done for all documents
# at once. Document $m$ lies between two ends, $e_m$ and $e_{m+1}$. If it opens a row,
# it fills some rows alone, and in its last one there is room for the documents up to
# the farthest end within `T`: one binary search for each document finds it. What
# remains is to hop from opening to opening, one step for each opening. (`-(-a // b)` is
# $a / b$ rounded *up*: `//` rounds down, and the two signs turn that round.)


# %%
#| export
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


# %% [markdown]
# Both must agree for any strip. Try a thousand random ones, with documents from no
# token to several rows long:

# %% tags=["nbval-check-output"]
chance = np.random.RandomState(0)
equal = 0
for _ in range(1000):
    size = chance.randint(1, 13)
    inner = chance.choice([0, 1, 2], chance.randint(0, 80), p=[0.15, 0.5, 0.35])
    some = np.array([0, *inner, 0])
    equal += pack(some, size, 0) == list(
        zip(*document_rows(some, size, 0), strict=True)
    )
print(f"{equal} of 1000 strips packed as by the definition")

# %% [markdown]
# ## Rows to keep
#
# The class does what `gather` does, for both ways of cutting. It does not care where
# the tokens lie: an array in memory will do, and later so will a file. Filling is put
# in at the last moment, so nothing of it is stored. The constructor counts the rows, by
# one rule or the other, and refuses tokens of which not a single row can be made.


# %%
#| export
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


# %% [markdown]
# What PyTorch asks of a data set is its length and one row; what our loader asks is
# many rows at once. `rows` looks up where each begins, takes `T + 1` tokens from there,
# and cuts them into `x` and `y`. A window that would run beyond the last token is
# clipped; then the places that belong to no document are filled.


# %%
#| export
@course.add_to(RowDataset)
def __len__(self) -> int:
    return self.n_rows


@course.add_to(RowDataset)
def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
    if not -self.n_rows <= index < self.n_rows:
        raise IndexError(f"row {index} of {self.n_rows}")
    x, y = self.rows(np.array([index % self.n_rows]))
    return x[0], y[0]


@course.add_to(RowDataset)
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


# %% [markdown]
# ## Texts in hand
#
# For texts in hand, all that remains is to encode them. Three things can go wrong
# there, and all come from the text. A document that contains the characters
# `<|endoftext|>` must not be able to forge the token, or it would split itself in two;
# so special tokens inside a text are encoded as the text they are. And two kinds of
# text the encoder refuses: half of a surrogate pair, which JSON can spell and UTF-8
# cannot, and a run of about a million spaces, too much for the pattern that finds
# words. The first is replaced, the second is cut in halves, which are encoded one by
# one.


# %%
#| export
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


# %% [markdown]
# The data set puts end-of-text before each text and behind the last, joins them all,
# and leaves the rest to `RowDataset`.


# %%
#| export
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


# %% [markdown]
# All three at work. The forged token comes out as ordinary ones, none of them
# end-of-text; the half pair as the sign for what cannot be read; and the spaces, all of
# them:

# %% tags=["nbval-check-output"]
for text in ("a<|endoftext|>b", "\ud83d", " " * 1_000_000):
    ids = encode(text, tokenizer).tolist()
    back = tokenizer.decode(ids)
    told = f"{len(back):,} spaces" if not back.strip() else repr(back)
    print(f"{len(ids):,} tokens, end-of-text among them: {eot in ids}; read: {told}")

# %% [markdown]
# Are the rows of the class those of the picture above?

# %% tags=["nbval-check-output"]
by_hand = [filled(*row) for row in pack(tokens, 16, eot)]
made = TextDataset(texts, tokenizer, 16, packing="documents")
same = [
    np.array_equal(np.stack(a), np.stack(b)) for a, b in zip(by_hand, made, strict=True)
]
print(f"{sum(same)} of {len(by_hand)} rows equal")

# %% [markdown]
# How much is filling? The share of targets that are $-100$, in two thousand of our
# stories, in rows of 128 as the course's models read them:

# %% tags=["nbval-check-output"]
from slm.data import stories

two_thousand = [stories.sample(seed) for seed in range(2000)]
packed = TextDataset(two_thousand, tokenizer, 128, packing="documents")
_, y = packed.rows(np.arange(len(packed)))  # (R, T)
print(f"{len(packed)} rows, {(y == IGNORE).float().mean():.1%} of the targets are -100")

# %% [markdown]
# ## An order that survives a crash
#
# Rows are shuffled anew each epoch. The usual way is a random generator that draws as
# it goes, and that is where resumed runs go wrong: unless its state is saved too, the
# restarted loader begins a *new* shuffle. With another seed it finds some of the
# missing rows by luck; with the same seed it repeats the first ones, and the rest of
# the epoch is never seen. Crash a run with 1,024 rows after 40 of its 64 batches, and
# let it go on for the other 24:


# %% tags=["nbval-check-output"]
def drawn(seed: int, n_rows: int = 1024, B: int = 16) -> Iterator[np.ndarray]:
    generator = np.random.RandomState(seed)
    while True:
        yield from generator.permutation(n_rows).reshape(-1, B)


def seen(before: Iterator[np.ndarray], after: Iterator[np.ndarray]) -> str:
    batches = [*itertools.islice(before, 40), *itertools.islice(after, 24)]
    never, once, twice = np.bincount(
        np.bincount(np.concatenate(batches), minlength=1024)
    )
    return f"rows seen never {never}, once {once}, twice {twice}"


print("restarted with another seed:", seen(drawn(0), drawn(1)))
print("restarted with the same one:", seen(drawn(0), drawn(0)))

# %% [markdown]
# The cure is to have no state: make the rows of a step a *function* of the seed and the
# number of the step. Then any batch can be computed at any time, and a checkpoint needs
# two integers, as long as the rows, the batch size and the number of processes stay
# what they were.
#
# Let $b = 0, \dots, B - 1$ be the place in the batch. Global row number $g =
# \text{step} \cdot B + b$ belongs to epoch $\lfloor g / R \rfloor$, with `R` rows in
# all, and is the row at place $g \bmod R$ of that epoch's permutation. The permutation
# is a function of (seed, epoch). By hand, for `R` = 5 rows in batches of `B` = 2: step
# 2 holds the global rows 4 and 5, so the last row of epoch 0 and the first of epoch 1.
# A batch may hold the end of one epoch and the start of the next, and no row is left
# out.
#
# ## Exercise 2: an order without state
#
# Return the rows of one step, `B` numbers below `n_rows`. Steps 0, 1, 2, … together
# must deal out every row once per epoch, in another order in each; a batch may reach
# into the next epoch, and one that is larger than an epoch into several. Two seeds, or
# two epochs, may have the same order by luck only, as when there are few rows. The
# result depends on the arguments alone.


# %% tags=["exercise"]
def rows_of_step(n_rows: int, B: int, seed: int, step: int) -> np.ndarray:
    """The rows of a step, (B,)."""
    raise NotImplementedError("your turn")


# %%
check.rows_of_step(rows_of_step)

# %% [markdown]
# Seeding the generator with `seed + epoch` looks right, and is what PyTorch's own
# `DistributedSampler` does. But then epoch 1 of seed 0 is epoch 0 of seed 1: two runs
# that should differ see the same order, one epoch apart.


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def sum_of_both(n_rows: int, B: int, seed: int, step: int) -> np.ndarray:
    epoch, place = np.divmod(np.arange(step * B, (step + 1) * B), n_rows)
    orders = {
        e: np.random.RandomState(seed + e).permutation(n_rows) for e in set(epoch)
    }
    return np.array([orders[e][p] for e, p in zip(epoch, place, strict=True)])


check.rows_of_step(sum_of_both)

# %% [markdown]
# <details><summary>Solution: <code>rows_of_step</code></summary>
#
# Number all rows that are ever dealt out, and ask of each number which epoch it falls
# in and which place it has there.
#
# ```python
# def rows_of_step(n_rows, B, seed, step):
#     epoch, place = np.divmod(np.arange(step * B, (step + 1) * B), n_rows)
#     orders = {
#         e: np.random.RandomState([seed, e]).permutation(n_rows)
#         for e in set(epoch.tolist())
#     }
#     return np.array([orders[e][p] for e, p in zip(epoch.tolist(), place)])
# ```
# </details>
#
# ## The order of an epoch
#
# A permutation takes four bytes a row, and a row of the strip at least $2T$: one part
# in 512 at `T` = 1024. Cheap enough to be simply computed.


# %%
#| export
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


# %% tags=["nbval-check-output"]
R, B = 5, 2
for step in range(5):
    dealt = [divmod(g, R) for g in range(step * B, step * B + B)]
    row = [int(epoch_order(R, 0, epoch)[place]) for epoch, place in dealt]
    print(f"step {step}: rows {row} of epochs {[epoch for epoch, _ in dealt]}")

# %% [markdown]
# ## Batches ahead of time
#
# A GPU that waits for its next batch earns nothing. Threads can prepare a few batches
# while it computes: copying out of an array or a file lets go of Python's lock, so
# threads are enough, and nothing has to be sent between processes. The results are
# needed in order, and not too many at once, or a fast reader would fill the memory. A
# few lines do that, and they will serve the [tokenizing of
# files](#prepare/from-pieces-to-ids) too:

# %%
#| export
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


# %% [markdown]
# ## The loader
#
# Now the pieces meet. `indices(step)` is the formula above, `batch(step)` fetches those
# rows, and iterating counts the steps up. With `W` processes that train together, a
# global batch has $W \cdot B$ rows, and each process takes its own `B` of them. Each
# process's number is its *rank* $r = 0, \dots, W - 1$, and the formula becomes $g =
# (\text{step} \cdot W + r)\, B + b$: the ranks' batches, one below the other, are the
# batch of a single process with batch size $W \cdot B$. For validation `epoch_batches`
# goes through the rows once, in the order of the strip.


# %%
#| export
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


# %% [markdown]
# Its length in steps, and the formula. The places of a step are
# dealt out with `divmod`: which epoch, and which place in it. A batch that lies on the
# border of two epochs takes from both orders.


# %%
#| export
@course.add_to(TokenLoader)
@property
def steps_per_epoch(self) -> int:
    """The steps after which each row has been seen."""
    return -(-len(self.dataset) // (self.batch_size * self.world_size))


@course.add_to(TokenLoader)
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


@course.add_to(TokenLoader)
def batch(self, step: int) -> tuple[Tensor, Tensor]:
    """The batch of any step, past or future: x and y, both `(B, T)` int64."""
    return self._fetch(self.indices(step))


@course.add_to(TokenLoader)
def _fetch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    x, y = self.dataset.rows(indices)
    return (x.pin_memory(), y.pin_memory()) if self.pin_memory else (x, y)


# %% [markdown]
# Three more of its abilities: going on for ever, one pass over everything, and where it
# stands. The position is the whole state. A loader that gets it goes on where the other
# one stopped, with other threads or on another machine.

# %%
from course import add_to


# %%
#| export
@add_to(TokenLoader)
def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches from the present step on, without end."""
    steps = itertools.count(self.step)
    for batch in map_ahead(self.batch, steps, self.num_workers):
        self.step += 1
        yield batch


# %% [markdown]
# Validation has an end: each row once, dealt out to the ranks batch by batch.


# %%
#| export
@add_to(TokenLoader)
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


# %% [markdown]
# That shorter batch is a nuisance where kernels were compiled for one shape. A row
# whose targets are all `IGNORE` changes no mean, so a batch can be filled up.


# %%
#| export
def fill_batch(x: Tensor, y: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Both, `(B, T)`, with as many rows as are asked for; the new hold no target."""
    missing = (0, 0, 0, rows - len(x))
    return F.pad(x, missing), F.pad(y, missing, value=IGNORE)


# %% [markdown]
# When a run goes on with another number of processes, its steps must keep their rows.
# These follow one another in the order, so what counts is how many there are:
# `share_rows` finds how each process does its share, in batches as large as before or
# smaller.
# And since the order is a function of the seed and the step, these two numbers are all
# that a loader has to remember.


# %%
#| export
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


@add_to(TokenLoader)
def state_dict(self) -> dict[str, int]:
    """The seed of the order, and the next step to be handed out."""
    return {"seed": self.seed, "step": self.step}


@add_to(TokenLoader)
def load_state_dict(self, state: dict[str, int]) -> None:
    """Go to where another loader stood; the next iterator starts there."""
    self.seed, self.step = state["seed"], state["step"]


# %% [markdown]
# ## Look at it
#
# A batch, as a model will get it, each row read as text again:

# %%
loader = TokenLoader(TextDataset(two_thousand, tokenizer, 32), batch_size=4)
x, y = next(iter(loader))
for row in x:
    course.show(repr(tokenizer.decode(row.tolist())), hanging="  ")

# %% [markdown]
# How do batches tile the corpus? Each column of {numref}`fig-tiles` is a row of a small
# corpus, each line an epoch; a cell's colour is the batch in which that row is dealt
# out.

# %% mystnb={"code_prompt_show": "Draw the order of three epochs", "figure": {"caption": "Three epochs over the rows of 50 stories, a colour for each batch of eight. Outlined: one batch of each epoch, the fourth; its rows lie elsewhere each time. Every cell is filled exactly once.", "name": "fig-tiles"}, "image": {"alt": "Three stripes of coloured cells, one cell a row of the corpus; in each stripe the eight cells of one batch are outlined, scattered differently each time."}} tags=["hide-input"]
from course.figures.batches import tiles

tiny = TokenLoader(TextDataset(two_thousand[:50], tokenizer, 64), batch_size=8)
tiles(tiny, epochs=3, marked=3)

# %% [markdown]
# Is it fast? Take `torch.utils.data.DataLoader` with its defaults, which asks for one
# row at a time and stacks them, on the simplest data set there is: a slice of the same
# tokens for each row. Tokens per second of CPU time:

# %%
import time


class Slices(Dataset):
    def __init__(self, tokens: np.ndarray, T: int) -> None:
        self.tokens, self.T = tokens, T

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.T

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        window = self.tokens[i * self.T : i * self.T + self.T + 1]  # (T + 1,)
        row = torch.from_numpy(window.astype(np.int64))
        return row[:-1], row[1:]


def tokens_per_second(batches: Iterator[tuple[Tensor, Tensor]], n: int = 300) -> float:
    next(batches)  # the first one sets things up
    began = time.process_time()
    total = sum(x.numel() for x, _ in itertools.islice(batches, n))
    return total / (time.process_time() - began)


fast = TokenLoader(TextDataset(two_thousand, tokenizer, 256), batch_size=32)
slices = Slices(fast.dataset.tokens, 256)
plain = torch.utils.data.DataLoader(slices, batch_size=32, shuffle=True)
forever = itertools.chain.from_iterable(itertools.repeat(plain))
ours = max(tokens_per_second(iter(fast)) for _ in range(3))
theirs = max(tokens_per_second(forever) for _ in range(3))
print(f"this loader {ours / 1e6:.0f} M tokens/s, DataLoader {theirs / 1e6:.0f} M")
print(f"ratio {ours / theirs:.1f}")

# %% [markdown]
# Even the slower one would feed most models. What counts is that data never makes a GPU
# wait, on a machine whose cores have other work.
#
# ## Is it right?
#
# Each line states a property and what came out: what an epoch covers, what a resumed
# run sees, what ranks and threads change (nothing).


# %% tags=["nbval-check-output"]
def some(loader: TokenLoader, n: int) -> Tensor:
    return torch.stack([x for x, _ in itertools.islice(loader, n)])  # (n, B, T)


rows_of_32 = TextDataset(two_thousand, tokenizer, 32)
single = TokenLoader(rows_of_32, batch_size=8)
R = len(rows_of_32)
steps = range(single.steps_per_epoch)
epoch = np.concatenate([single.indices(step) for step in steps])[:R]
targets = torch.cat([y.flatten() for _, y in single.epoch_batches()])
expected = torch.from_numpy(rows_of_32.tokens[1 : R * 32 + 1].astype(np.int64))
reference = some(TokenLoader(rows_of_32, batch_size=8), 100)

interrupted = TokenLoader(rows_of_32, batch_size=8)
some(interrupted, 60)
resumed = TokenLoader(rows_of_32, batch_size=8, seed=99, num_workers=2)
resumed.load_state_dict(interrupted.state_dict())
ranks = [TokenLoader(rows_of_32, 4, rank=rank, world_size=2) for rank in (0, 1)]
together = torch.cat([rank.batch(7)[0] for rank in ranks])

print(f"rows dealt out in an epoch: {len(epoch)}, different ones: {len(set(epoch))}")
differ = int((targets != expected).sum())
print(f"targets of one pass that differ from the strip: {differ} of {len(targets)}")
differ = int((some(resumed, 40) != reference[60:]).sum())
print(f"tokens that differ after a resume: {differ} of {reference[60:].numel()}")
differ = int((together != single.batch(7)[0]).sum())
print(f"tokens of two ranks that differ from one: {differ} of {together.numel()}")

# %% [markdown]
# ## What you have now
#
# Texts become batches whose order two integers describe. That is all a small corpus
# needs. The next two chapters are engine rooms for the large ones: [where text comes
# from](#corpora), and [how it becomes a file](#prepare) that need not fit into memory.
# Whoever wants to see the model learn can go on to the [floor](#floor) of the stories
# and to the [trainer](#trainer).

# %%
course.summary("slm/data/batches.py")
