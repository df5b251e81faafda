"""Checks of the exercises of blocks."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course.check.diagnose import Diagnosis, Outcome, WrongKind, chosen
from course.check.verdict import exercise, ready_made
from slm.model.blocks import TransformerBlock

Part = Callable[[Tensor], Tensor]
OVER = "Your mean and variance run over {}. They should run over the channels of one token: dim -1."
SQUARES = "You divide by the root of the *sum* of squares. The variance is their mean: divide the sum by D."
NORM = {
    "time": OVER.format("the tokens"),
    "batch": OVER.format("the batch"),
    "text": OVER.format("tokens and channels of a text together"),
    "batch and time": OVER.format("batch and tokens, as in batch norm"),
    "all": OVER.format("the whole tensor"),
    "one variance": "You take one variance for the whole tensor, and a mean for each token. Take the mean of the squares over the channels too: dim -1.",
    "one mean": "You subtract the mean of the whole tensor. Each token has its own: dim -1.",
    "D - 1": "You divide the variance by D - 1. Layer norm divides by D: correction=0.",
    "sum": SQUARES,
    "length": "You divide by the token's length (as F.normalize does), the root of the *sum* of squares. Divide by the root of their mean, the variance.",
    "no root": "You divide by the variance; divide by its square root.",
    "times": "You multiply by the standard deviation. Divide by it.",
    "mean not squared": "You subtract the mean from the mean of x². Its square is to be subtracted: mean(x²) - mean².",
    "as it is": "You stretch and shift x as it comes: nothing is normalised.",
    "only centred": "You subtract the mean and divide by nothing. Divide by sqrt(variance + eps).",
    "no mean": "You divide x by its standard deviation without subtracting the mean.",
    "rms": "That is RMS norm: you divide by the root of the mean square and subtract no mean. Layer norm does.",
    "about zero": "You take the variance about zero: the mean of x². Subtract the mean before you square.",
    "brackets": "You divide only the mean: x - mean / sqrt(…). Put brackets round x - mean.",
    "absolute": "You divide by the mean distance from the mean, without squares. Divide by the root of the mean *square*.",
    "range": "You scale each token to run from 0 to 1. Mean 0 and variance 1 are asked for: (x - mean) / sqrt(variance + eps).",
    "softmax": "You take a softmax. Mean 0 and variance 1 are asked for: (x - mean) / sqrt(variance + eps).",
    "sign": "Your sign is turned: subtract the mean from x, not x from the mean.",
    "keepdim": "Your mean or your variance has lost an axis: over the channels of (B, T, D) it is (B, T), and only (B, T, 1) lines up with x. Keep the axis with keepdim=True.",
    "math.sqrt": "You hand a tensor to math.sqrt (or to float), which takes one number. Use torch.sqrt.",
    "eps outside": "You add eps to the standard deviation. It belongs under the square root, beside the variance: sqrt(variance + eps).",
    "no eps": "You leave out eps. A token whose channels are all equal gives 0/0: add eps to the variance, under the square root.",
    "own eps": "The argument eps changes nothing: you add a small number of your own. Add the eps that you are given.",
    "no gamma, no beta": "You use neither gamma nor beta: multiply by gamma and add beta at the end.",
    "no gamma": "You never use gamma: multiply by it before you add beta.",
    "no beta": "You never use beta: add it at the end.",
    "swapped": "gamma and beta have changed places: multiply by gamma, add beta.",
    "gamma on both": "You multiply beta by gamma as well: stretch first, then shift.",
    "minus beta": "You subtract beta. Add it.",
    "adds both": "You add gamma. Multiply by it: gamma stretches, beta shifts.",
    "before": "You stretch and shift x before it is normalised. Normalise first.",
}
AXES = {
    "time": 1,
    "batch": 0,
    "text": (1, 2),
    "batch and time": (0, 1),
    "all": (0, 1, 2),
}


def _norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float = 1e-5,
    wrong: frozenset[str] = frozenset(),
) -> Tensor:
    """The reference, with any of NORM made."""
    axis: Any = chosen(wrong, AXES, -1)
    x = gamma * x + beta if "before" in wrong else x
    mean = x.mean(axis, keepdim="keepdim" not in wrong)
    mean = x.mean() if "one mean" in wrong else mean
    centred = mean - x if "sign" in wrong else x - mean
    about = x if wrong & {"rms", "about zero"} else centred
    square = about.square().mean(axis, keepdim=True)
    if "one mean" in wrong:  # the variance has its own mean, and that is right
        square = x.var(axis, keepdim=True, correction=0)
    if "mean not squared" in wrong:
        square = x.square().mean(axis, keepdim=True) - mean
    square = square.mean() if "one variance" in wrong else square
    n = centred.numel() / square.numel()
    less = n / (n - 1) if n > 1 else math.nan
    square = square * chosen(wrong, {"D - 1": less, "sum": n}, 1)
    eps = chosen(wrong, {"no eps": 0.0, "own eps": 1e-5}, eps)
    power = 1 if "no root" in wrong else 0.5
    apart = centred.abs().mean(axis, keepdim=True) + eps
    roots = {"eps outside": square**power + eps, "absolute": apart}
    root = chosen(wrong, roots, (square + eps) ** power)
    if "math.sqrt" in wrong:
        math.sqrt(square + eps)
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    results = {"no mean": x / root, "rms": x / root, "times": centred * root}
    results |= {
        "as it is": x,
        "only centred": centred,
        "length": F.normalize(centred, dim=-1),
    }
    results |= {"brackets": x - mean / root, "softmax": x.softmax(-1)}
    results |= {"range": (x - low) / (high - low + eps)}
    out = chosen(wrong, results, centred / root)
    if wrong & {"no gamma, no beta", "before"}:
        return out
    if "swapped" in wrong:
        gamma, beta = beta, gamma
    if "gamma on both" in wrong:
        return gamma * (out + beta)
    stretched = {"no gamma": out, "adds both": out + gamma}
    out = chosen(wrong, stretched, gamma * out)
    return chosen(wrong, {"no beta": out, "minus beta": out - beta}, out + beta)


def _rows(B: int, T: int, D: int, eps: float, size: float = 1.0) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(D)
    x = torch.randn(B, T, D, generator=g) * 3 + 1
    return (x * size, *torch.randn(2, D, generator=g), eps)


FIRST = torch.tensor([[[1.0, 2.0, 3.0, 6.0], [0.0, 4.0, 0.0, 4.0]]])
STRETCH, SHIFT = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 0.0, 1.0, -1.0])
LAYER_NORM = Diagnosis(
    _norm,
    NORM,
    [
        (FIRST, STRETCH, SHIFT),
        _rows(3, 4, 6, 1e-5),
        _rows(2, 5, 7, 0.5, 0.3),
        (torch.full((2, 1, 5), 3.0), torch.ones(5), torch.zeros(5), 1e-5),
        _rows(1, 1, 8, 0.1, 0.2),
    ],
    atol=1e-4,
)


@exercise
def layer_norm(fn: Callable[..., Tensor]) -> str:
    """Check a `layer_norm(x (B, T, D), gamma (D,), beta (D,), eps)`."""
    LAYER_NORM.judge(fn)
    names = {"layer_norm", "native_layer_norm"}
    name = ready_made(fn, *LAYER_NORM.probes[0], names=names)
    assert not name, (
        f"The values are right, but PyTorch did the work ({name}). Write it from means and variances."
    )
    return "Axis, variance, eps, stretch and shift all hold."


PLUS = "You leave out the {} residual connection: x + {}."
WIRING = {
    "no residual": "There is no residual connection in yours: each part should add to the stream, x + part(norm(x)).",
    "no residual 1": PLUS.format("first", "attention(norm_1(x))"),
    "no residual 2": PLUS.format("second", "feed_forward(norm_2(x))"),
    "post": "That is post-norm: your norm sits on the stream, after the addition. Normalise what each part *reads*.",
    "post 1": "After attention your norm sits on the stream: norm_1(x + attention(x)). Normalise what attention *reads*.",
    "post 2": "After the feed-forward network your norm sits on the stream: norm_2(x + feed_forward(x)). Normalise what it *reads*.",
    "overwrites": "Your norm overwrites the stream (x = norm(x)). Normalise a copy for each part to read; x itself stays as it is.",
    "overwrites 1": "Your first sum starts from norm_1(x). Add to the stream itself: x + attention(norm_1(x)).",
    "overwrites 2": "Your second sum starts from norm_2(x). Add to the stream itself: x + feed_forward(norm_2(x)).",
    "out": "You apply the norm to what each part writes. It belongs to what the part reads: part(norm(x)).",
    "out 1": "You apply norm_1 to what attention writes. It belongs to what attention reads.",
    "out 2": "You apply norm_2 to what the feed-forward network writes. It belongs to what it reads.",
    "no norms": "You use neither norm: each part should read a normalised copy, part(norm(x)).",
    "no norm 1": "Attention reads the stream without its norm.",
    "no norm 2": "The feed-forward network reads the stream without its norm.",
    "swapped norms": "You swap the two norms: norm_1 is attention's, norm_2 the feed-forward network's.",
    "norm_1 twice": "You use norm_1 twice and norm_2 never.",
    "norm_2 twice": "You use norm_2 twice and norm_1 never.",
    "swapped parts": "You swap attention and the feed-forward network, and leave the norms. Gather first (attention), then think (feed-forward).",
    "order": "You reverse the order: gather first (attention), then think (feed-forward).",
    "attention twice": "You use attention twice and the feed-forward network never.",
    "feed_forward twice": "You use the feed-forward network twice and attention never.",
    "no attention": "Attention is missing: your stream goes to the feed-forward network at once.",
    "no feed_forward": "The feed-forward network is missing: attention has added, and then your block ends, or what the network writes is not used.",
    "parallel": "Both parts read the same x in yours. The feed-forward network should see what attention has added.",
    "old x": "What attention added is lost: your second sum starts from the old x.",
    "chain": "Your feed-forward network reads what attention wrote, without the stream. It should read norm_2 of the sum x + attention(norm_1(x)).",
    "chain, old x": "Your feed-forward network reads what attention wrote, without the stream, and is added to the old x. Add attention to x first, and go on from that sum.",
    "x again": "You add the old x a second time, at the end. Each part is added once, to the stream.",
    "last norm 1": "You apply norm_1 to the block's result. The stream leaves the block as the sum, without a norm.",
    "last norm 2": "You apply norm_2 to the block's result. The stream leaves the block as the sum, without a norm.",
    "product": "You multiply the stream by what a part writes. Add it.",
    "minus": "You subtract what a part writes from the stream. Add it.",
    "mean": "You halve each sum. Add only: x + part(norm(x)).",
    "again": "You run attention twice before the feed-forward network. Once is enough.",
    "nothing": "You return x as it came: neither part has written anything to it.",
    "called": "You hand the part more than one argument. It takes one tensor: part(norm(x)).",
}
READ = {"no norm", "post", "out"}  # the part itself reads the stream as it is


def _step(x: Tensor, norm: Part, part: Part, wrong: set[str]) -> Tensor:
    x = norm(x) if "overwrites" in wrong else x
    reads = x if wrong & (READ | {"overwrites"}) else norm(x)
    writes = part(reads, reads, reads) if "called" in wrong else part(reads)  # type: ignore[call-arg]
    writes = norm(writes) if "out" in wrong else writes
    if "no residual" in wrong:
        return norm(writes) if "post" in wrong else writes
    total = x * writes if "product" in wrong else x + writes
    total = x - writes if "minus" in wrong else total
    total = total / 2 if "mean" in wrong else total
    return norm(total) if "post" in wrong else total


def _wired(
    x: Any,
    norm_1: Part,
    attention: Part,
    norm_2: Part,
    feed_forward: Part,
    wrong: frozenset[str] = frozenset(),
) -> Any:
    """The reference, with any of WIRING made."""
    n1, a, n2, f = norm_1, attention, norm_2, feed_forward
    norms = {"swapped norms": (n2, n1), "order": (n2, n1)}
    norms |= {"norm_1 twice": (n1, n1), "norm_2 twice": (n2, n2)}
    parts = {"swapped parts": (f, a), "order": (f, a)}
    parts |= {"attention twice": (a, a), "feed_forward twice": (f, f)}
    n1, n2 = chosen(wrong, norms, (n1, n2))
    a, f = chosen(wrong, parts, (a, f))
    both = {"no norms": "no norm"}
    one, two = (
        {both.get(name, name.removesuffix(f" {n}")) for name in wrong} for n in (1, 2)
    )
    if "nothing" in wrong:
        return x
    y = x if "no attention" in wrong else _step(x, n1, a, one)
    y = _step(y, n1, a, one) if "again" in wrong else y
    if wrong & {"chain", "chain, old x"}:
        return (x if "chain, old x" in wrong else y) + f(n2(a(n1(x))))
    others = {"no feed_forward": lambda: y, "parallel": lambda: y + f(n2(x))}
    others |= {"old x": lambda: x + f(n2(y))}
    out = chosen(wrong, others, lambda: _step(y, n2, f, two))()
    out = out + x if "x again" in wrong else out
    last = {"last norm 1": n1, "last norm 2": n2}
    return chosen(wrong, last, lambda out: out)(out)


class _Written:
    """A stand-in for a tensor that writes down what is computed with it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _and(self, other: Any, sign: str) -> "_Written":
        if not isinstance(other, _Written | int | float):
            raise TypeError(other)
        pair = [self.text, getattr(other, "text", str(other))]
        if sign != "+":
            pair = [f"({side})" if " + " in side else side for side in pair]
        return _Written(f" {sign} ".join(pair))

    __add__ = __radd__ = functools.partialmethod(_and, sign="+")
    __mul__ = __rmul__ = functools.partialmethod(_and, sign="*")
    __sub__ = functools.partialmethod(_and, sign="-")
    __truediv__ = functools.partialmethod(_and, sign="/")


class _Part(nn.Module):
    """Without a state, so that a copy of it is itself."""

    def __deepcopy__(self, memo: Any) -> "_Part":
        return self


class _Norm(_Part):
    def __init__(self, stretch: float, shift: float) -> None:
        super().__init__()
        self.stretch, self.shift = stretch, shift

    def forward(self, x: Tensor) -> Tensor:
        uneven = torch.arange(1, x.size(-1) + 1) * self.stretch  # twice is not once
        return uneven * F.layer_norm(x, x.shape[-1:]) + self.shift


class _Attention(_Part):
    def forward(self, x: Tensor) -> Tensor:  # the mean of the past
        past = torch.arange(1, x.size(1) + 1, dtype=x.dtype)[:, None]
        return x.cumsum(1) / past


class _FeedForward(_Part):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x + 0.5 * x.roll(1, -1))


NAMES = ("norm_1", "attention", "norm_2", "feed_forward")
PARTS = (_Norm(1.5, 0.3), _Attention(), _Norm(0.6, -0.4), _FeedForward())


class _Wiring(Diagnosis):
    """What is not known is told as the formula that the learner's block computes, or by the parts that it never calls."""

    def symptom(self, fn: Callable[..., Any], theirs: Sequence[Outcome]) -> str:
        writers = [lambda y, n=name: _Written(f"{n}({y.text})") for name in NAMES]
        with contextlib.suppress(Exception):  # something else than sums of parts
            formula = fn(_Written("x"), *writers).text
            return f"Your block computes {formula}. It should be y + feed_forward(norm_2(y)) with y = x + attention(norm_1(x))."
        said, called = super().symptom(fn, theirs), set()

        def watched(name: str, part: Part) -> Part:
            def noted(y: Tensor) -> Tensor:
                called.add(name)
                return part(y)

            return noted

        with contextlib.suppress(Exception):
            fn(_stream(3, 4), *map(watched, NAMES, PARTS))
            if never := [name for name in NAMES if name not in called]:
                said = f"Your block never calls {', '.join(never)}. {said}"
        return said


def _stream(T: int, D: int) -> Tensor:
    return torch.randn(2, T, D, generator=torch.Generator().manual_seed(D))


BLOCK_WIRING = _Wiring(
    _wired,
    WIRING,
    [(_stream(3, 4), *PARTS), (_stream(5, 6), *PARTS)],
    lambda x, *parts: f"For x of shape (B, T, D) = {tuple(x.shape)}",
)


@exercise
def block_wiring(fn: Callable[[Tensor, Part, Part, Part, Part], Tensor]) -> str:
    """Check a `block(x, norm_1, attention, norm_2, feed_forward)`."""
    BLOCK_WIRING.judge(fn)
    return (
        "Both parts read a normalised copy and add to the stream, in the right order."
    )


DEPTH = {  # what is too much in a block, of D² and of D
    "0 -13": "You count the weight matrices only: biases (9D) and norms (4D) are missing.",
    "0 -9": "You miss 9D: all biases, or the norms (4D) and the biases of the feed-forward network (5D).",
    "0 -8": "You miss 8D: the norms and the biases of attention (4D each), or all biases but one D.",
    "0 -5": "You miss 5D: the biases of the feed-forward network (4D + D), or the norms (4D) and one bias of D.",
    "0 -4": "You miss 4D: the norms (2 × 2D), or the biases of attention (3D + D), or the hidden layer's bias (4D).",
    "0 -3": "You miss 3D: the bias of queries, keys and values, or three quarters of the hidden layer's (it has 4D).",
    "0 -2": "You miss 2D: one of the two norms, or gamma or beta of both, or two thirds of the bias of queries, keys and values (it has 3D).",
    "0 -1": "You miss one D: the bias of attention's output, or that of the feed-forward network's.",
    "0 2": "You count 2D too much: a third norm? A block has two; the one after the last block belongs to the model.",
    "0 3": "You count 3D too much: the feed-forward network's second bias has D numbers, not 4D.",
    "-1 -1": "You leave out the output matrix of attention, with its bias (D² + D).",
    "-1 0": "You leave out the output matrix of attention (D²), and count its bias.",
    "-2 -2": "You count one matrix where attention has three, for queries, keys and values (3D² + 3D).",
    "-4 -4": "You miss 4D² + 4D: attention, or the first matrix of the feed-forward network.",
    "-8 -5": "You leave out the feed-forward network (8D² + 5D).",
    "-4 -1": "You leave out the second matrix of the feed-forward network (4D² + D).",
    "-6 -3": "You count a feed-forward network of width D; it is d_ff = 4D wide.",
    "times": "You multiply what should be added: 12D² + 13D.",
}
ROUNDING = {
    "round": "You round to the nearest. Only whole blocks that are paid in full count: round down.",
    "ceil": "You round up. Only whole blocks that are paid in full count: round down.",
    "strict": "A budget that pays for a block exactly pays for it: at most `budget` is asked for, so <=, not <.",
    "too many": "You return one block too many, in every case: the last one is not paid for.",
    "at least one": "You return 1 where the budget does not pay for any block. Then it is 0.",
    "remainder": "You return what is left of the budget. How many blocks it pays for is asked: //.",
    "size": "You return the size of a block. How many of them the budget pays for is asked: budget // size.",
    "turned": "You divide the size of a block by the budget. Turn it round: budget // size.",
    "^": "In Python ^ is no power. Write **.",
    "brackets": "Division comes before the sum: budget // 12 * D² + 13 * D divides by 12 only. Put brackets round the size.",
    "bytes": "You count four bytes a parameter. The budget is in parameters.",
    "final norm": "You pay for one more norm (2D) first. The budget is for blocks only.",
    "D = 64": "You count a block of width 64, whatever d_model is.",
    "D = 768": "You count a block of width 768, whatever d_model is.",
    "12 heads": "You build a block of 12 heads, and 12 does not divide every width. The number of heads does not change the count: take 1.",
    "tensors": "You count tensors (12 in a block), not the numbers in them: p.numel().",
}


def _depth(budget: int, d_model: int, wrong: frozenset[str] = frozenset()) -> Any:
    """The reference, with any of DEPTH and ROUNDING made."""
    D = 64 if "D = 64" in wrong else 768 if "D = 768" in wrong else d_model
    if "12 heads" in wrong:
        TransformerBlock(D, 12, 4 * D)
    off = [map(int, name.split()) for name in wrong & DEPTH.keys() - {"times"}]
    size = 12 * D * D + 13 * D + sum(a * D * D + b * D for a, b in off)
    size = 12 * D * D * 13 * D if "times" in wrong else size
    size = 12 if "tensors" in wrong else size * (4 if "bytes" in wrong else 1)
    budget -= 2 * D if "final norm" in wrong else 0
    depth = budget // size
    others = {"size": size, "remainder": budget % size, "too many": depth + 1}
    others |= {"brackets": budget // 12 * D**2 + 13 * D, "ceil": -(-budget // size)}
    others |= {"round": round(budget / size), "strict": (budget - 1) // size}
    others |= {"turned": size // max(1, budget), "^": budget // (12 * D ^ 2 + 13 * D)}
    others |= {"at least one": max(1, depth)}
    return chosen(wrong, others, depth)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise WrongKind("a whole number, an int: use //")
    return int(value)


class _Depth(Diagnosis):
    """What is not known is told with the size of a block that the answers fit."""

    def symptom(self, fn: Callable[..., Any], theirs: Sequence[Outcome]) -> str:
        D = self.probes[0][1]
        told = [
            (budget, got.value)
            for (budget, width), got in zip(self.probes, theirs, strict=True)
            if width == D
            and not got.kind
            and got.error is None
            and not isinstance(got.value, float)
        ]
        fits = [n for n in range(1, 4000) if all(b // n == d for b, d in told)]
        size = 12 * D * D + 13 * D
        if len(told) < 3 or not fits or size in fits:
            return super().symptom(fn, theirs)
        some = f"{fits[0]:,}" + (f" to {fits[-1]:,}" if len(fits) > 1 else "")
        return f"Your answers for width {D} fit a block of {some} parameters; it has {size:,}. Go through its parts: four D × D matrices in attention, two D × 4D in the feed-forward network, a bias for each, two norms of 2D."


ONE = {D: 12 * D * D + 13 * D for D in (8, 16, 64, 768)}
BUDGETS = [
    (3 * ONE[8] + 100, 8),
    (2 * ONE[8] + 8, 8),
    *[(n * ONE[8], 8) for n in (1, 2, 109, 150)],
    *[(n * ONE[8] - 1, 8) for n in (1, 2, 60, 131)],
    *[(n * ONE[16] - k, 16) for n, k in ((1, 1), (40, 0), (77, 900), (150, 1600))],
    *[(n * ONE[64] - k, 64) for n, k in ((3, 1), (10, 0), (150, 0), (150, 30_000))],
    *[(12 * ONE[768], 768), (ONE[768] // 3, 768)],
]
AFFORDABLE = _Depth(
    _depth,
    DEPTH | ROUNDING,
    BUDGETS,
    lambda budget, D: (
        f"A block of width {D} has {ONE[D]:,} parameters. For budget = {budget:,}, d_model = {D}"
    ),
    read=_whole,
)


@exercise
def affordable_depth(fn: Callable[[int, int], int]) -> str:
    """Check a `depth(budget, d_model)`."""
    AFFORDABLE.judge(fn)
    return "Matrices, biases and norms are all counted."
