"""Checks of the exercises on batches."""

import functools
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course.check.diagnose import Diagnosis, WrongKind, readable
from course.check.facts import Facts
from course.check.verdict import _a, call, exercise
from slm.model.config import IGNORE

CUT = "Drop them: R = (N - 1) // T, and cut R·T inputs and as many targets."
STRIP = {
    "copy": "Your targets are the inputs themselves. A model that copies would be perfect: move y by one.",
    "back": "Your targets are the tokens *before* the inputs: y is moved the wrong way, or x and y are returned in the wrong order.",
    "back, round": "Your targets are the tokens *before* the inputs: roll(1) turns a strip the other way. Cut y out of the strip, one token further on.",
    "two": "Your targets are two tokens ahead. Move y by one.",
    "next row": "Your targets are a whole row ahead. Move y by one token, not by T.",
    "row ahead": "Your targets are the rows behind the inputs' own. Move y by one token, not by T.",
    "in row": "You move y inside each row, so a row's last target is its own first token. It is the first token of the next row: cut y out of the strip, one token further on.",
    "round": "You turn the cut inputs round, so the very last target is the strip's first token. Cut y out of the strip, one token further on.",
    "shorter": "Your rows have T - 1 inputs and targets: x and y are cut out of one row of T. A row is T inputs, and takes T + 1 tokens.",
    "windows": "Your x and y are both the whole rows of T + 1 tokens. x is all but the last, y all but the first.",
    "-100 last": "Each row's last target is -100, as if the strip ended there. It is the first token of the next row: cut y out of the strip, one token further on.",
    "zero last": "Each row's last target is 0, as if the strip ended there. It is the first token of the next row: cut y out of the strip, one token further on.",
    "too many": "You make a row of every T tokens. The last one lacks a target where nothing is left over, and you take the strip's first token. R rows need R·T + 1 tokens.",
    "too many fails": "You count N // T rows. Where no token is left over, the last of them lacks its last target, and your code stops. R rows need R·T + 1 tokens: (N - 1) // T.",
    "floor less one": "You take N // T - 1 rows. Where tokens are left over that is one too few: (N - 1) // T fit.",
    "one short": "You lose a last row that just fits: 9 tokens and T = 4 give 2 rows, (N - 1) // T. Does your range end one too early?",
    "pairs short": "You take one row too few, however many tokens there are: (N - 1) // T fit.",
    "overlap": "Your rows overlap: one begins at each token, so every token is learned T times. Begin one every T tokens.",
    "gap": "Your rows begin T + 1 tokens apart, so the token between two rows is never an input. Begin one every T tokens: a row's last target is the next row's first input.",
    "T rows": "You cut T rows of R tokens, view(T, R). R rows of T tokens are asked for: view(R, T).",
    "down": "You fill the tokens down the columns. A row is T tokens that follow each other: view(R, T).",
    "turned": "Your result is (T, R), with the rows as columns. It should be (R, T).",
    "from the end": "You count rows from the strip's end, so the tokens that are left over are dropped at its beginning. Begin at token 0.",
    "zeros": "You fill up a last row that is not full, with 0 as targets. What fills no row is left out.",
    "padded": "You fill up the strip with zeros, so the last row has targets that are no tokens. What fills no row is left out.",
    "ignored": "You fill up a last row that is not full, with -100 as targets. What fills no row is left out.",
    "T = 8": "Your rows have 8 tokens, whatever T is. Use T.",
    "no rows": "You return the whole strip, x and y in one dimension each. Cut both into R rows of T: view(R, T).",
    "flat": "You join x and y into one tensor. Return the two as a pair: return x, y.",
    "stacked": "You stack x and y into one tensor. Return the two as a pair: return x, y.",
    "only x": "You return x alone. Return both: return x, y.",
    "per row": "You return a pair (x, y) for each row. Join them: one x and one y, both (R, T).",
    "lists": "You return lists. x and y should be tensors (R, T).",
    "arrays": "You return numpy arrays. x and y should be tensors (R, T): torch.from_numpy makes one of an array.",
    "floats": "Your x and y hold floating-point numbers. Tokens stay what they were, int64.",
    "int32": "Your x and y hold int32. Tokens stay what they were, int64.",
    "leftovers": f"Your view wants a strip that is full rows exactly, and stops where tokens are left over. {CUT}",
    "whole strip": f"You view the whole strip as rows, and that stops where tokens are left over. {CUT}",
    "uncut": f"You view all inputs as R rows, and that stops where tokens are left over. {CUT}",
    "ragged end": f"Your last slice is shorter than T where tokens are left over, and stack stops. What fills no row is left out. {CUT}",
    "ragged": f"Your last slice is shorter than T, and stack stops. What fills no row is left out. {CUT}",
}  # fmt: skip


def shifted(tokens: Tensor, T: int, wrong: frozenset[str] = frozenset()) -> Any:
    """The reference: (N,) → x and y, (R, T) each; with any of STRIP made."""
    T = 8 if "T = 8" in wrong else T
    N, whole = len(tokens), wrong & {"next row", "row ahead"}
    ahead = 2 if "two" in wrong else T if whole else 1
    if "no rows" in wrong:
        return tokens[:-1], tokens[1:]
    if "leftovers" in wrong:
        return tokens[:-1].view(-1, T), tokens[1:].view(-1, T)
    if "whole strip" in wrong:
        return tokens.view(-1, T), tokens.roll(-1).view(-1, T)
    if "uncut" in wrong:
        return tuple(part.view((N - 1) // T, T) for part in (tokens[:-1], tokens[1:]))
    if wrong & {"ragged", "ragged end"}:
        starts = range(0, N - ("ragged end" in wrong), T)
        x = torch.stack([tokens[i : i + T] for i in starts])
        return x, torch.stack([tokens[i + 1 : i + T + 1] for i in starts])
    if "too many fails" in wrong:
        R = N // T
        return tokens[: R * T].view(R, T), tokens[1 : R * T + 1].view(R, T)
    steps = {"overlap": 1, "gap": T + 1}
    step = next((size for key, size in steps.items() if key in wrong), T)
    R, filled = (N - ahead - T) // step + 1, tokens
    if wrong & {"zeros", "ignored", "padded"}:
        R, filled = -(-(N - 1) // step), torch.cat([tokens, tokens.new_zeros(2 * T)])
    if "too many" in wrong:
        R, filled = N // T, torch.cat([tokens, tokens])
    R = N // T - 1 if "floor less one" in wrong else R
    R -= "row ahead" in wrong and N % T == 0
    R -= "pairs short" in wrong or ("one short" in wrong and (N - 1) % T == 0)
    first = N - 1 - R * T if "from the end" in wrong else 0
    places = first + torch.arange(R)[:, None] * step + torch.arange(T)  # (R, T)
    x, y = filled[places], filled[(places + ahead) % len(filled)]
    if wrong & {"zeros", "ignored"}:
        x[places >= N - 1] = 0
        y[places >= N - 1] = IGNORE if "ignored" in wrong else 0
    y = tokens[places - 1] if "back, round" in wrong else y
    y = x if "copy" in wrong else x.roll(-1, dims=1) if "in row" in wrong else y
    y = x.flatten().roll(-1).view(R, T) if "round" in wrong else y
    if wrong & {"zero last", "-100 last"}:
        last = torch.full_like(y[:, :1], 0 if "zero last" in wrong else IGNORE)
        y = torch.cat([y[:, :-1], last], dim=1)
    if "shorter" in wrong:
        x, y = x[:, :-1], x[:, 1:]
    if "windows" in wrong:
        x = y = torch.cat([x, y[:, -1:]], dim=1)
    if "T rows" in wrong:
        x, y = x.reshape(T, R), y.reshape(T, R)
    if "down" in wrong:
        x, y = x.flatten().view(T, R).T, y.flatten().view(T, R).T
    x, y = (y, x) if "back" in wrong else (x, y)
    x, y = (x.T, y.T) if "turned" in wrong else (x, y)
    x, y = (x.float(), y.float()) if "floats" in wrong else (x, y)
    x, y = (x.int(), y.int()) if "int32" in wrong else (x, y)
    made = {
        "flat": lambda: torch.cat([x, y]),
        "stacked": lambda: torch.stack([x, y]),
        "only x": lambda: x,
        "per row": lambda: list(zip(x, y, strict=True)),
        "lists": lambda: (x.tolist(), y.tolist()),
        "arrays": lambda: (x.numpy(), y.numpy()),
    }
    return next((make() for key, make in made.items() if key in wrong), (x, y))


def _pair(value: Any) -> tuple[Tensor, Tensor]:
    """Two tensors, as a tuple or a list."""
    wanted = isinstance(value, tuple | list) and len(value) == 2
    if not wanted or not all(isinstance(part, Tensor) for part in value):
        raise WrongKind("a pair of tensors, x and y")
    return value[0], value[1]


def _strip(n: int) -> Tensor:
    """Tokens that differ, and do not follow each other as numbers."""
    return torch.arange(n) * 37 % 101


SHIFTED_ROWS = Diagnosis(
    shifted,
    STRIP,
    [(_strip(n), T) for n, T in ((9, 4), (15, 4), (12, 4), (11, 2), (13, 5), (4, 1), (31, 6))],
    lambda tokens, T: f"For the tokens {readable(tokens)} and T = {T}",
    read=_pair,
)  # fmt: skip


@exercise
def shifted_rows(fn: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> str:
    """Check a `shifted_rows(tokens (N,), T) -> x, y`, both `(R, T)`."""
    SHIFTED_ROWS.judge(fn)
    return "Every token is a target once, one ahead of its input."


BOTH = "Seed the generator with both, [seed, epoch]."
ORDER = {
    "plain": "You shuffle nothing: the rows come in the order of the file. Deal out a permutation.",
    "first only": "You shuffle the first epoch only. Each epoch has a permutation of its own.",
    "alike": "You give every epoch the same order. Let the permutation depend on the epoch, too.",
    "step by n": "You take step // n_rows for the epoch. It is (step · B + b) // n_rows: rows are counted, not steps.",
    "redrawn": "In an epoch some of your rows never come and some twice, as where each step is shuffled by itself. A step takes its place in the permutation of its epoch.",
    "replaced": "A row comes twice in one of your batches, as where rows are drawn with replacement. Deal out a permutation.",
    "inside": "You shuffle only inside a batch: each still holds the rows that lie there in the file. Deal out a permutation of all rows.",
    "short": "You end an epoch with a batch that is not full. Fill it from the start of the next permutation.",
    "ascending": "You sort the rows of a batch. Then none can tell where one epoch ends and the next begins: leave them in the order in which they are dealt.",
    "clipped": "You cut a batch off at the epoch's end and go on one whole batch later: the rows in between are lost. Fill it from the start of the next permutation.",
    "dropped": "You leave out the rows at an epoch's end that fill no batch. Take them, and go on at the start of the next permutation.",
    "first's epoch": "You give the batch that reaches over an epoch's end the order of its first row's epoch. What lies behind the end belongs to the next permutation.",
    "last's epoch": "You give the batch that reaches over an epoch's end the order of its last row's epoch. What lies before the end belongs to the old permutation.",
    "one end": "You let a batch reach over one epoch's end, but a large one (n_rows = 7, B = 20) reaches over several.",
    "sliding": "Your batch begins at row `step`, so batches overlap. Step `step` begins at row step · B.",
    "from step 1": "You count steps from 1. Step 0 deals out rows 0 to B - 1 of the first permutation.",
    "from row 1": "You number rows from 1. They are the numbers 0 to n_rows - 1.",
    "global": "You draw from a generator that everybody shares and that is not seeded here, so two calls with the same arguments differ. Make one of your own from the arguments.",
    "unsteady": "Two calls with the same arguments give different rows: you keep a generator (or a count) between calls, or make one without a seed. Let the rows depend on the arguments alone.",
    "sum": f"You seed with seed + epoch, so epoch 1 of seed 0 is epoch 0 of seed 1. {BOTH}",
    "product": f"You seed with seed * epoch, so seed 0 has one order for all epochs, and all seeds share epoch 0. {BOTH}",
    "xor": f"You seed with seed ^ epoch, so epoch 1 of seed 0 is epoch 0 of seed 1. {BOTH}",
    "two orders": "You have two orders only, for even and for odd epochs. Each epoch has an order of its own.",
    "no seed": "You do not use the seed: every seed has the same order.",
    "rolled": "You turn one permutation round by some places for each epoch, so a row always has the same neighbours. Shuffle anew for each epoch.",
    "reversed": "You deal out the first permutation backwards in the next epoch. Shuffle anew for each epoch.",
}  # fmt: skip
_counter = itertools.count(1 << 20)


@functools.lru_cache(1 << 14)
def _permutation(n: int, *key: int) -> np.ndarray:
    return np.random.RandomState([abs(part) for part in key]).permutation(n)


def dealt(n_rows: int, B: int, seed: int, step: int, wrong: frozenset[str] = frozenset()) -> np.ndarray:  # fmt: skip
    """The reference: the rows of a step, (B,); with any of ORDER made."""
    mixes: dict[str, Callable[[int], tuple[int, ...]]] = {
        "first only": lambda e: (seed, 0),
        "alike": lambda e: (seed, 0),
        "rolled": lambda e: (seed, 0),
        "reversed": lambda e: (seed, 0),
        "step by n": lambda e: (seed, step // n_rows),
        "sum": lambda e: (seed + e,),
        "product": lambda e: (seed * e,),
        "xor": lambda e: (seed ^ e,),
        "two orders": lambda e: (seed, e % 2),
        "no seed": lambda e: (e,),
        "global": lambda e: (np.random.randint(1 << 30), e),
        "unsteady": lambda e: (next(_counter), e),
    }
    mix = next((m for key, m in mixes.items() if key in wrong), lambda e: (seed, e))

    def order(e: int) -> np.ndarray:
        if wrong & {"plain", "inside"} or ("first only" in wrong and e):
            return np.arange(n_rows)
        rows = _permutation(n_rows, *mix(e))
        rows = np.roll(rows, e) if "rolled" in wrong else rows
        return rows[::-1] if "reversed" in wrong and e % 2 else rows

    step -= "from step 1" in wrong
    if wrong & {"redrawn", "replaced"}:
        drawn = np.random.RandomState([seed, step]).permutation(n_rows)
        again = drawn.repeat(2) if "replaced" in wrong else drawn
        return np.resize(again, B) + ("from row 1" in wrong)
    g = np.arange(B) + step * (1 if "sliding" in wrong else B)
    if wrong & {"short", "dropped"}:
        per = max(1, n_rows // B if "dropped" in wrong else -(-n_rows // B))
        g = step // per * n_rows + np.arange(step % per * B, step % per * B + B)
        g = g[g < (step // per + 1) * n_rows]
    if "clipped" in wrong:
        g = g[g < (g[0] // n_rows + 1) * n_rows]
    epoch, place = g // n_rows, g % n_rows
    if "first's epoch" in wrong:
        epoch = epoch * 0 + epoch[0]
    if "last's epoch" in wrong:
        epoch = epoch * 0 + epoch[-1]
    if "one end" in wrong:
        epoch, place = (part[g < (epoch[0] + 2) * n_rows] for part in (epoch, place))
    orders = {e: order(e) for e in set(epoch.tolist())}
    rows = np.array([orders[e][p] for e, p in zip(epoch.tolist(), place, strict=True)])
    rows = np.sort(rows) if "ascending" in wrong else rows
    if "inside" in wrong:
        np.random.RandomState([seed, abs(step)]).shuffle(rows)
    return rows + ("from row 1" in wrong)


def _classes(orders: list[np.ndarray]) -> tuple[int, ...]:
    """For each order the place of the first one that equals it."""
    seen = [order.tobytes() for order in orders]
    return tuple(map(seen.index, seen))


def _rows(fn: Any, n: int, B: int, seed: int, step: int) -> np.ndarray:
    rows = call(fn, n, B, seed, step)
    if not isinstance(rows, np.ndarray):
        raise WrongKind(f"the result is {_a(rows)}")
    if rows.ndim != 1:
        raise WrongKind(f"the result has the shape {rows.shape}")
    if rows.dtype.kind not in "iu":
        raise WrongKind(f"the result holds {rows.dtype}")
    return rows.astype(np.int64)


def _steady(fn: Any) -> bool:
    """Whether the rows of a step are the same whenever they are asked for."""
    rows = [_rows(fn, 50, 16, 0, step).tobytes() for step in (3, 0, 0, 3)]
    return rows == rows[::-1]


def _one(fn: Any) -> dict[str, Any]:
    """What a call gives, and whether it gives it again."""
    rows = _rows(fn, 50, 16, 0, 0)
    if len(rows) != 16:
        return {"length": len(rows)}
    if _steady(fn):
        return {}
    states = np.random.get_state(), random.getstate(), torch.get_rng_state()
    found = []
    for _ in range(2):
        np.random.seed(1)
        random.seed(1)
        torch.manual_seed(1)
        found.append(_rows(fn, 50, 16, 0, 0).tobytes())
    np.random.set_state(states[0])
    random.setstate(states[1])
    torch.set_rng_state(states[2])
    return {"unsteady": "global" if len(set(found)) == 1 else True}


def _epochs(fn: Any) -> dict[str, Any]:
    """Eight epochs of 50 rows in batches of 16; of a stream that is no row of permutations, what is seen in it."""
    if _one(fn):
        return {}
    early = _rows(fn, 50, 16, 0, 7)
    batches = [_rows(fn, 50, 16, 0, step) for step in range(25)]
    if not np.array_equal(early, batches[7]):
        return {"unsteady": True}
    lengths = tuple(map(len, batches))
    if set(lengths) != {16}:
        return {"lengths": lengths}
    S = np.concatenate(batches)
    if S.min() < 0 or S.max() > 49:
        return {"range": (int(S.min()), int(S.max()))}
    whole = [len(set(S[i : i + 50])) == 50 for i in range(0, 400, 50)]
    if all(whole):
        epochs = list(S.reshape(8, 50))
        turned = {np.roll(epochs[0], k).tobytes() for k in range(1, 50)}
        return {
            "sorted": tuple(np.array_equal(e, np.arange(50)) for e in epochs),
            "classes": _classes(epochs),
            "turned": epochs[1].tobytes() in turned,
            "reversed": np.array_equal(epochs[1], epochs[0][::-1]),
        }
    blocks = [set(np.arange(i, i + 16) % 50) for i in range(0, 400, 16)]
    if all((np.diff(batch) >= 0).all() for batch in batches):
        return {"ascending": True}
    seen = {
        "distinct": all(len(set(batch)) == 16 for batch in batches[:3]),
        "tail": np.array_equal(S[50:64], S[:14]),
        "head": whole[7] and not set(S[48:50]) & set(S[50:96]),
        "inside": [set(batch) for batch in batches] == blocks,
        "sliding": np.array_equal(batches[0][1:], batches[1][:-1]),
        "dropped": all(len(set(S[i : i + 48])) == 48 for i in (0, 48, 96)),
        "late": len(set(S[16:66])) == len(set(S[66:116])) == 50,
    }
    return {"whole": (whole[0], S[:50].tobytes() == S[50:100].tobytes()), **seen}


PLACES = [*itertools.product(range(4), range(4)), (0, 10), (0, 11), (1, 10), (0, 12), (0, 31), (0, 100), (0, 1000), (0, 10000), (10, 0), (31, 0), (100, 0), (1000, 0), (10000, 0)]  # fmt: skip


def _seeds(fn: Any) -> dict[str, Any]:
    """Whether two pairs (seed, epoch) share an order of 12 rows."""
    if "sorted" not in _epochs(fn):
        return {}
    return {"shared": _classes([_rows(fn, 12, 12, *pair) for pair in PLACES])}


def _large(fn: Any) -> dict[str, Any]:
    """Batches that are larger than an epoch."""
    if "sorted" not in _epochs(fn):
        return {}
    batches = [_rows(fn, 7, 20, 0, step) for step in range(7)]
    if any(len(batch) != 20 for batch in batches):
        return {"large": tuple(map(len, batches))}
    S = np.concatenate(batches).reshape(-1, 7)
    return {"large rows": bool((np.sort(S) == np.arange(7)).all())}


def _shares(classes: tuple[int, ...]) -> str:
    """Two pairs of seed and epoch that have one order."""
    later = next((i for i, first in enumerate(classes) if i != first), 0)
    (s, e), (seed, epoch) = PLACES[classes[later]], PLACES[later]
    return f"Epoch {epoch} of seed {seed} has the very order of epoch {e} of seed {s}. No two may share one. {BOTH}"


ROWS_OF_STEP = Facts(
    dealt,
    ORDER,
    [_one, _epochs, _seeds, _large],
    {
        "kind": lambda got: f"For n_rows = 50, B = 16, seed = 0, step = 0 {got}; it should be a numpy array (B,) of whole numbers.",
        "length": lambda got: f"For n_rows = 50, B = 16, seed = 0, step = 0 you return {got} rows; a step has B = 16.",
        "unsteady": lambda got: ORDER["global" if got == "global" else "unsteady"],
        "lengths": lambda got: f"Of n_rows = 50 in batches of B = 16, step {next(i for i, n in enumerate(got) if n != 16)} gives {next(n for n in got if n != 16)} rows; every step has 16.",
        "range": lambda got: f"With n_rows = 50 your rows go from {got[0]} to {got[1]}; they must lie between 0 and 49.",
        "ascending": lambda got: ORDER["ascending"],
        "whole": lambda got: "In n_rows = 50 rows of batches of 16, some rows never come in an epoch and others come twice. Deal out a permutation of all rows; at its end go on with the next one.",
        "sorted": lambda got: f"Epoch {got.index(True)} comes in the order of the file: nothing is shuffled there.",
        "classes": lambda got: f"Epochs {got[next(i for i in range(8) if got[i] != i)]} and {next(i for i in range(8) if got[i] != i)} of seed 0 have the same order. Each has one of its own.",
        "turned": lambda got: ORDER["rolled"],
        "reversed": lambda got: ORDER["reversed"],
        "shared": _shares,
        "large": lambda got: f"With a batch larger than an epoch (n_rows = 7, B = 20) the first steps give {got[0]}, {got[1]} and {got[2]} rows. Such a batch reaches over several ends.",
        "large rows": lambda got: "With a batch larger than an epoch (n_rows = 7, B = 20) rows are lost or doubled. Such a batch reaches over several ends.",
    },
    pairs=False,
)  # fmt: skip


@exercise
def rows_of_step(fn: Callable[[int, int, int, int], np.ndarray]) -> str:
    """Check a `rows_of_step(n_rows, B, seed, step) -> (B,)`."""
    ROWS_OF_STEP.judge(fn)
    return "Every row once per epoch, and any step at any time."
