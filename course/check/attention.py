"""Checks of the exercises of attention."""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course.check.diagnose import Diagnosis, chosen, same
from course.check.verdict import exercise, ready_made, tried

NO_SELF = "Your mask hides the diagonal too, so a token cannot see itself, and the first token sees nobody and {}. Start one above the diagonal: triu(1)."
AXES = "Your code expects {} axes; q, k and v have two here, (T, K), without batch and heads."
WRITTEN = "You divide by the root of {}, a number written into your code. Take K from q, the size of its last axis."
ATTENTION = {
    "no scale": "You leave the scores unscaled. Divide them by the square root of K.",
    "by K": "Your scores end up divided by K. Their *variance* is K, so divide by its square root, once.",
    "times": "You multiply the scores by the square root of K, which makes them larger still. Divide by it.",
    "root T": "You divide by the square root of T, the number of tokens. It is the head size K that makes the scores large.",
    **{f"root {n}": WRITTEN.format(n) for n in (2, 8, 64)},
    "scale late": "You divide by the square root of K after the softmax, so a row of weights no longer sums to one. Divide the scores.",
    "no mask": "You hide nothing: every token sees the future. Is the result of masked_fill used?",
    "no self": NO_SELF.format("gets nan"),
    "no self, zeros": NO_SELF.format("gets zeros"),
    "no self, but the first": "Of all tokens only the first sees itself. Row t averages the values 0 to t, its own among them: range(t + 1), or triu(1) for what is hidden.",
    "first row": "Only the first row is filled: does a `return` stand inside your loop?",
    "one ahead": "Each token sees one position ahead: your mask leaves the first column above the diagonal open. Hide that one too: triu(1).",
    "hides past": "Your mask is the wrong way round: each token sees the future and not the past. Hide the columns *above* the diagonal: triu(1).",
    "inverted": "Your mask is inverted: it hides the past and the token itself, so the last token sees nobody, which gives nan. masked_fill hides where its mask is *true*: triu(1).",
    "zero score": "You make a hidden score (about) 0, and e⁰ = 1 is a weight like any other. Hide with -inf.",
    "adds one": "You add a mask of zeros and ones to the scores. That hides nothing; add 0 and -inf, or use masked_fill.",
    "times inf": "Every entry is nan. If you multiplied a mask of 0 and 1 by -inf: 0 * inf is nan. Use masked_fill, which writes -inf where the mask is true and leaves the rest alone.",
    "plus inf": "Every row but the last is nan. If you hid with +inf (or nan): inf/inf is nan. Hide with -inf.",
    "mask late": "You set weights to zero after the softmax, so the rows no longer sum to one. Mask the scores, before the softmax.",
    "inf late": "You write -inf into the weights, after the softmax. Write it into the scores; the softmax then makes it 0.",
    "columns": "Your softmax runs over the queries: columns sum to one. Each *row* must: softmax(-1).",
    "table": "Your weights sum to one over the whole table, not along each row. Divide each row by its own sum.",
    "no keepdim": "You divide column s by the sum of row s: without keepdim=True a sum of shape (T,) lines up with the columns.",
    "no sum": "You take exponentials and never divide a row by its sum.",
    "no softmax": "You use the scores as weights, -inf too: the softmax is missing.",
    "no softmax, zeros": "You use the scores themselves as weights: the softmax is missing.",
    "not halved": "Your scores end up divided by 2K: `** 1/2` is a power of 1, and then a half. Write ** 0.5, or math.sqrt.",
    "q and v": "You compare queries with values; the keys are never used. Row t holds q[t] with every key: q @ k.T.",
    "log": "You use log_softmax: your weights are logarithms.",
    "twice": "You take the softmax twice: weights go through it again.",
    "assigns": "Row t of your result is the last product only, w[t, t] * v[t]. Add the products up: +=.",
    "turned": "You transpose the weights before they meet the values. Row t holds t's own weights: weights @ v.",
    "k and q": "Queries and keys have changed places: row t should hold q[t] with every key, so q @ k.T.",
    "q and q": "You compare queries with queries; the keys are never used. Row t holds q[t] with every key: q @ k.T.",
    "mean of k": "You average the keys. They have done their work in the scores: the weights average v.",
    "weights": "You return the weights (T, T). Average the values with them: weights @ v.",
    "elementwise": "You multiply q and k entry by entry, so no token meets another. Scores are (T, T): q @ k.T.",
    "no transpose": "You multiply q @ k without turning k: (T, K) meets (T, K). Scores are q @ k.T, (T, T).",
    "three axes": AXES.format("three"),
    "four axes": AXES.format("four"),
    "torch.sqrt": "You hand an int to torch.sqrt, which takes tensors. Use math.sqrt, or ** 0.5.",
}


def _attention(
    q: Tensor, k: Tensor, v: Tensor, wrong: frozenset[str] = frozenset()
) -> Tensor:
    """The reference, (T, K) each, with any of ATTENTION made."""
    if "three axes" in wrong:
        _, _, _ = q.shape
    if "four axes" in wrong:
        _, _, _, _ = q.shape
    T, K = q.shape
    if "torch.sqrt" in wrong:
        torch.sqrt(K)  # type: ignore[arg-type]
    asks = k if "k and q" in wrong else q
    found = chosen(wrong, {"k and q": q, "q and q": q, "q and v": v}, k)
    roots = {"no scale": 1, "scale late": 1, "by K": K, "root T": T**0.5}
    roots |= {"times": K**-0.5, "not halved": K * 2}
    roots |= {f"root {n}": n**0.5 for n in (2, 8, 64)}
    z = (
        asks * found
        if "elementwise" in wrong
        else asks @ (found if "no transpose" in wrong else found.T)
    )
    z = z / chosen(wrong, roots, K**0.5)
    ones = torch.ones_like(z)
    triangles = {
        "one ahead": ones.triu(2),
        "no self": ones.triu(),
        "no self, zeros": ones.triu(),
    }
    triangles |= {"hides past": ones.tril(-1), "inverted": ones.tril()}
    hidden = chosen(wrong, triangles, ones.triu(1)).bool()
    masked = {name: z for name in ("no mask", "mask late", "inf late")}
    masked |= {
        name: z.masked_fill(hidden, 0) for name in ("zero score", "no softmax, zeros")
    }
    masked |= {
        "adds one": z + (~hidden).float(),
        "times inf": z + hidden.float() * -torch.inf,
    }
    masked |= {"plus inf": z.masked_fill(hidden, torch.inf)}
    z = chosen(wrong, masked, z.masked_fill(hidden, -torch.inf))
    e = z.exp()
    weighted = {"columns": z.softmax(0), "table": e / e.sum(), "no sum": e}
    weighted |= {"no softmax": z, "no softmax, zeros": z, "log": z.log_softmax(-1)}
    weighted |= {"no keepdim": e / e.sum(-1)} if "no keepdim" in wrong else {}
    weights = chosen(wrong, weighted, z.softmax(-1))
    weights = weights.softmax(-1) if "twice" in wrong else weights
    if wrong & {"mask late", "inf late"}:
        weights = weights.masked_fill(
            hidden, 0.0 if "mask late" in wrong else -torch.inf
        )
    weights = weights.nan_to_num() if "no self, zeros" in wrong else weights
    if "no self, but the first" in wrong:
        weights = z.masked_fill(ones.triu().bool(), -torch.inf).softmax(-1)
        weights[0] = ones[0].cumsum(0) == 1
    weights = weights / K**0.5 if "scale late" in wrong else weights
    if "weights" in wrong:
        return weights
    weights = weights.diag().diag() if "assigns" in wrong else weights
    weights = weights.T if "turned" in wrong else weights
    weights = weights * (ones.cumsum(0) == 1) if "first row" in wrong else weights
    v = k if "mean of k" in wrong else v
    return weights * v if "elementwise" in wrong else weights @ v


def _qkv(T: int, K: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(3, T, K, generator=torch.Generator().manual_seed(T)))


THREE = [[[1, 0], [0, 2], [2, 1]], [[1, 1], [0, 1], [2, 0]], [[1, 2], [3, 5], [8, 4]]]
CAUSAL = Diagnosis(
    _attention,
    ATTENTION,
    [tuple(torch.tensor(THREE).float()), _qkv(6, 16), _qkv(1, 4), _qkv(7, 3)],
)
OWN = {"_explicit_attention", "attention_loops", "attention_by_hand"}


@exercise
def causal_attention(fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str:
    """Check a causal `attention(q, k, v)` for `(T, K)` tensors."""
    CAUSAL.judge(fn)
    probe = CAUSAL.probes[1]
    kernels = {"scaled_dot_product_attention", "multi_head_attention_forward"}
    kernel = ready_made(fn, *probe, names=kernels)
    names = getattr(getattr(fn, "__code__", None), "co_names", ())
    kernel = kernel or min(OWN & {*names}, default="")
    assert not kernel, (
        f"The values are right, but {kernel} did the work. Write the steps yourself: scores, mask, softmax, weights @ v."
    )
    return "Mask, scale, softmax and values all hold."


def _laid_out(x: Tensor, sizes: dict[str, int], way: str) -> Tensor:
    """`x` read as the axes before `>` and brought to those behind it, brackets joined to one; `|` begins another step."""
    for step in way.split("|"):
        read, out = step.split(">")
        order = out.replace("(", "").replace(")", "")
        x = x.reshape([sizes[axis] for axis in read])
        x = x.permute([read.index(axis) for axis in order])
        groups = re.findall(r"\((\w+)\)|(\w)", out)
        x = x.reshape([math.prod(sizes[a] for a in "".join(g)) for g in groups])
    return x


def _sizes(B: int, T: int, H: int, K: int) -> dict[str, int]:
    return {"B": B, "T": T, "H": H, "K": K, "D": H * K}


VIEW_REFUSES = "`view` cannot read a transposed tensor. That refusal is a warning: "
FLOAT = "Your size `{}` is a float: `/` gives a float even where it divides. Use `//`."
SPLIT = {
    "BHTK>BHTK": "You go to (B, H, T, K) in one step, which cuts the *time* axis: head 0 holds all channels of the first tokens. View as (B, T, H, K), then swap T and H.",
    "BTHK>BTHK": "You stop at (B, T, H, K). The heads are split, but H must come before T: swap those two axes.",
    "BTKH>BKTH": "You cut the channels into K groups of H, as (B, T, K, H). Cut them into H groups of K: n_heads comes first, its size after it.",
    "BTKH>BHTK": "Your head h holds every H-th channel. It should hold K neighbours: view as (B, T, H, K), not (B, T, K, H).",
    "BTHK>BTKH": "You end at (B, T, K, H): H and K have changed places. Swap T and H instead: transpose(1, 2).",
    "BTHK>TBHK": "You end at (T, B, H, K): B and T have changed places. Swap T and H: transpose(1, 2).",
    "BTHK>HTBK": "You end at (H, T, B, K): B and H have changed places. Swap T and H: transpose(1, 2).",
    "BTHK>BKHT": "You end at (B, K, H, T): T and K have changed places. Swap T and H: transpose(1, 2).",
    "BTHK>BKTH": "You end at (B, K, T, H): K and H have changed places. Swap T and H only: transpose(1, 2).",
    "HBTK>BHTK": "You view as (H, B, T, K), which gives head 0 the first numbers in memory, and then swap. View as (B, T, H, K), then swap T and H.",
    "BTHK>HBTK": "You put the heads in front: (H, B, T, K). They are axis 1, after the batch.",
    "HBTK>HBTK": "You view as (H, B, T, K), which gives head 0 the first texts. View as (B, T, H, K), then swap T and H.",
    "BTHK>BHKT": "You end at (B, H, K, T): the last two axes are swapped.",
    "BTD>BDT|BHTK>BHTK": "You swap T and D before you cut, so the cut runs through the tokens. View as (B, T, H, K) first, then swap T and H.",
    "BHKT>BHTK": "You view as (B, H, K, T), which cuts through the tokens. In memory a token's channels stand together: view as (B, T, H, K), then swap T and H.",
    "BHTK>BTHK": "You view as (B, H, T, K) and then swap: that cuts the *time* axis. View as (B, T, H, K), then swap T and H.",
    "BTHK>(BH)TK": "You join batch and heads to one axis, (B*H, T, K). Keep both: (B, H, T, K).",
    "BTHK>H(BT)K": "You join batch and time, (H, B*T, K). Keep the batch axis: (B, H, T, K).",
    "BTHK>B(HT)K": "You put the heads one after another in time, (B, H*T, K). Stack them as axis 1: (B, H, T, K).",
    "BTHK>(HB)TK": "You put the heads one after another in the batch, (H*B, T, K). Stack them as axis 1: (B, H, T, K).",
    "one text": "You return the first text only, (H, T, K). Keep the batch axis.",
    "one head": "You return one head only, (B, T, K). Stack all of them as axis 1: (B, H, T, K).",
    "all channels": "You give every head all D channels. Each has its own K of them.",
    "overlap": "Your head h begins at channel h, so heads overlap. It begins at channel h*K.",
    "short": "Your heads are one channel short: a slice's end is not part of it, so h*K : (h + 1)*K.",
    "share of tokens": "You share out the tokens among the heads, not the channels. Cut the last axis.",
    "reversed": "Your heads are in reverse order: head 0 holds the last channels.",
    "a tuple": "You return a tuple of heads, not one tensor. Stack them as axis 1: (B, H, T, K).",
    "a list": "You return a list of heads, not one tensor. Stack them as axis 1: (B, H, T, K).",
    "view": VIEW_REFUSES + "cut first, view(B, T, H, K), and swap T and H after it.",
    "float in view": FLOAT.format("D / H"),
    "float in reshape": FLOAT.format("D / n_heads"),
}


def _split(x: Tensor, n_heads: int, wrong: frozenset[str] = frozenset()) -> Any:
    """The reference, with one of SPLIT made."""
    (B, T, D), H = x.shape, n_heads
    way, sizes = min(wrong, default="BTHK>BHTK"), _sizes(B, T, H, D // H)
    right = _laid_out(x, sizes, "BTHK>BHTK")
    if ">" in way:
        return _laid_out(x, sizes, way)
    if way == "view":
        return x.transpose(1, 2).view(B, H, T, D // H)
    if "float" in way:
        shape: Any = (B, T, H, D / H)
        return x.view(*shape) if way == "float in view" else x.reshape(*shape)
    if way == "share of tokens":
        return torch.stack(x.chunk(H, dim=1), dim=1)
    if way in ("a tuple", "a list"):
        heads = x.chunk(H, dim=-1)
        return heads if way == "a tuple" else list(heads)
    if way in ("overlap", "short"):
        first, K = (1, D // H) if way == "overlap" else (D // H, D // H - 1)
        return torch.stack([x[..., h * first :][..., :K] for h in range(H)], dim=1)
    others = {"one text": right[0], "one head": right[:, 0], "reversed": right.flip(1)}
    return others.get(way, x[:, None].repeat(1, H, 1, 1))


def _counted(*sizes: int) -> Tensor:
    return torch.arange(math.prod(sizes)).float().view(sizes)  # every number once


SIZES = [(1, 2, 2, 2), (2, 5, 3, 4), (3, 4, 4, 2), (2, 3, 2, 5), (1, 6, 4, 8)]
SPLIT_HEADS = Diagnosis(
    _split, SPLIT, [(_counted(B, T, H * K), H) for B, T, H, K in SIZES], pairs=False
)


@exercise
def split_heads(fn: Callable[[Tensor, int], Tensor]) -> str:
    """Check a `split_heads(x (B, T, D), n_heads) -> (B, H, T, K)`."""
    x = _counted(2, 4, 8)
    two, four = tried(fn, x, 2), tried(fn, x, 4)
    assert not isinstance(two, Tensor) or not same(two, four), (
        "Your result is the same for n_heads = 2 and for n_heads = 4: use n_heads where you cut the channels."
    )
    SPLIT_HEADS.judge(fn)
    return "Each head holds its own channels of every token."


SWAPPED = "Before you join, {} have changed places. The axes to swap are H and T, 1 and 2: transpose(1, 2) gives (B, T, H, K)."
JOIN = {
    "BTD>BTD": "You flatten without the swap, which mixes positions: a row of your result holds several tokens of one head. Swap H and T first: transpose(1, 2).",
    "BHTK>BHKT|BTD>BTD": SWAPPED.format("T and K (axes 2 and 3)"),
    "BHTK>BKTH|BTD>BTD": SWAPPED.format("H and K (axes 1 and 3)"),
    "BHTK>HBTK|BTD>BTD": SWAPPED.format("B and H (axes 0 and 1)"),
    "BHTK>THBK|BTD>BTD": SWAPPED.format("B and T (axes 0 and 2)"),
    "BHTK>BT(KH)": "You interleave the heads: one channel of each in turn. Bring the axes to (B, T, H, K), with K last, then join H and K.",
    "BHTK>B(HT)K": "You put the heads one after another in time, (B, H*T, K). They belong side by side in the channels: (B, T, H*K).",
    "BHTK>BH(TK)": "You join T and K, (B, H, T*K): axis 1 of what comes in is H, axis 2 is T. Swap them, then join H and K.",
    "BHTK>BTHK|BHTK>BH(TK)": "You read the axes as (B, T, H, K); what comes in is (B, H, T, K). So your sizes of T and H have changed places.",
    "BHTK>BTHK": "You stop at (B, T, H, K): H stands beside K, as it should. Now make one axis D of the two.",
    "BHTK>BTKH": "You stack the heads on an axis of their own, (B, T, K, H). Put them side by side in the last axis: cat, not stack.",
    "BHTK>(HB)TK": "You put the heads one after another in the batch, (H*B, T, K). They belong side by side in the channels.",
    "BHTK>HT(BK)": "You walk over the batch, not over the heads: the texts stand side by side, (H, T, B*K). The heads are axis 1.",
    "BHTK>BTHK|TBD>TBD": "You flatten to (T, B, D). The batch comes first: (B, T, D).",
    "BHTK>BTHK|BDT>BDT": "You flatten to (B, D, T). Channels come last: (B, T, D).",
    "BHTK>(BT)HK": "You join batch and time, (B*T, H, K). After the swap join the last two axes, H and K.",
    "BHTK>(BH)TK": "You join batch and heads, (B*H, T, K). Swap H and T, then join H and K.",
    "BHTK>H(BT)K": "You walk over the batch, not over the heads: the texts stand one after another, (H, B*T, K). The heads are axis 1.",
    "BHTK>TB(HK)": "You return (T, B, D). The batch comes first: (B, T, D).",
    "BHTK>B(HK)T": "You return (B, D, T). Channels come last: (B, T, D).",
    "BHTK>(BT)(HK)": "You join batch and time, (B*T, D). Keep both: (B, T, D).",
    "BHTK>B(TH)K": "You join T and H, (B, T*H, K). After the swap join the last two axes, H and K.",
    "BHTK>B(THK)": "You join everything after the batch, (B, T*H*K). Keep T: join H and K only.",
    "mean": "You average over the heads. All their channels stay, side by side: D = H * K.",
    "largest": "You take the largest number over the heads. All their channels stay, side by side: D = H * K.",
    "sum": "You add the heads up. All their channels stay, side by side: D = H * K.",
    "first": "You return head 0 only. All heads' channels stay, side by side: D = H * K.",
    "last": "You return the last head only. All heads' channels stay, side by side: D = H * K.",
    "one text": "You return the first text only, (T, D). Keep the batch axis.",
    "reversed": "You put the last head's channels first. Head h belongs in channels h*K to (h + 1)*K - 1.",
    "view": VIEW_REFUSES
    + "the numbers must move. Use reshape after the swap, or contiguous().",
    "float": FLOAT.format("D"),
}


def _join(heads: Tensor, wrong: frozenset[str] = frozenset()) -> Tensor:
    """The reference, with one of JOIN made."""
    B, H, T, K = heads.shape
    way = min(wrong, default="BHTK>BT(HK)")
    if ">" in way:
        return _laid_out(heads, _sizes(B, T, H, K), way)
    if way == "view":
        return heads.transpose(1, 2).view(B, T, H * K)
    if way == "float":
        shape: Any = (B, T, H * K / 1)
        return heads.transpose(1, 2).reshape(*shape)
    others = {"mean": heads.mean(1), "sum": heads.sum(1), "first": heads[:, 0]}
    others |= {
        "largest": heads.amax(1),
        "one text": heads[0].transpose(0, 1).flatten(1),
    }
    others["reversed"] = heads.flip(1).transpose(1, 2).flatten(2)
    return others.get(way, heads[:, -1])


JOIN_HEADS = Diagnosis(
    _join,
    JOIN,
    [(_counted(B, H, T, K) * (1 if B < 3 else -1),) for B, T, H, K in SIZES],
    pairs=False,
)


@exercise
def join_heads(fn: Callable[[Tensor], Tensor]) -> str:
    """Check a `join_heads(heads (B, H, T, K)) -> (B, T, D)`, which undoes `split_heads`."""
    JOIN_HEADS.judge(fn)
    return (
        "Every token has its heads side by side again: split and joined, x comes back."
    )


WINDOW = {
    "endless": "Your window never ends: row t sees everything before it. Demand t - s < W as well.",
    "wide": "Your window is one too wide: W + 1 positions. It includes t itself, so t - s < W.",
    "narrow": "Your window is one too narrow: W - 1 positions. It includes t itself, so t - s < W.",
    "no self": "You leave the token itself out: t - s = 0 belongs to the window.",
    "before": "Your window ends before the token: row t sees the W positions before t. It includes t itself: 0 <= t - s < W.",
    "future": "A token sees the whole future: demand t - s >= 0 as well.",
    "both ways": "Your window reaches as far ahead as back. No token may see the future: demand t - s >= 0, without abs.",
    "ahead": "Row t looks ahead and never back: t and s have changed places.",
    "past and ahead": "Row t sees all its past, and W - 1 positions ahead. The end is on the wrong side: 0 <= t - s < W.",
    "inverted": "Your mask is inverted: it should be true where a token *may* look.",
    "wraps": "Your slice begins at a negative number in the first rows, and Python counts that from the end: nothing, or the wrong columns, are set. Begin at max(0, t - W + 1).",
    "wraps, one by one": "Your columns begin at a negative number in the first rows, and Python counts that from the end: positions of the future are set. Begin at max(0, t - W + 1).",
    "centred": "You centre the window on t, so half of it lies in the future. Row t sees t - W + 1 to t.",
    "from W": "Your first W rows are empty: a token with fewer than W positions behind it sees all of them.",
    "from W - 1": "Your first W - 1 rows are empty: a token with fewer than W positions behind it sees all of them.",
    "columns": "Every row sees the first W columns. The window moves with t: the last W positions, t included.",
    "blocks": "You cut the text into blocks of W. The window moves with t: row t sees t - W + 1 to t.",
    "older": "You hide the window and show what is older. Show t - s from 0 to W - 1.",
    "diagonal": "Each token sees itself only, whatever W is.",
    "everything": "Your mask is True everywhere, so every token sees everything. Both conditions must hold at once: `&` (`|` asks for one of them).",
    "nothing": "Your mask is False everywhere: no token sees anything, not even itself.",
    **{
        f"W = {n}": f"Your window holds {n} positions, whatever W is. Use W."
        for n in (2, 3, 4)
    },
    "and": "You combine two masks as if they were single truths. Write `&` (not `and`), and brackets round each comparison: (d >= 0) & (d < W).",
    "minus": "You subtract booleans, which torch refuses. Use `&` and `~`, or `^`.",
}


def _window(T: int, W: int, wrong: frozenset[str] = frozenset()) -> Tensor:
    """The reference, with any of WINDOW made."""
    d = torch.arange(T)[:, None] - torch.arange(T)[None, :]  # t - s
    W = next((n for n in (2, 3, 4) if f"W = {n}" in wrong), W)
    if "and" in wrong:
        return (d >= 0) and (d < W)
    if "minus" in wrong:
        return (d >= 0) - (d >= W)
    d = -d if "ahead" in wrong else d
    low = 1 if wrong & {"no self", "before"} else 0
    high = W + len(wrong & {"wide", "before"}) - ("narrow" in wrong)
    high = 1 if "diagonal" in wrong else T if "endless" in wrong else high
    mask = (d >= low) & (d < high)
    if "future" in wrong:
        mask = d < high
    if "both ways" in wrong:
        mask = d.abs() < high
    if "past and ahead" in wrong:
        mask = d > -high
    if "centred" in wrong:
        mask = d.abs() <= high // 2
    if "older" in wrong:
        mask = d >= high
    if "columns" in wrong:
        mask = (d >= 0) & (torch.arange(T) < high)
    if "blocks" in wrong:
        mask = (torch.arange(T)[:, None] // W == torch.arange(T) // W) & (d >= 0)
    if wrong & {"nothing", "everything"}:
        mask = (d > T) if "nothing" in wrong else (d <= T)
    if rows := wrong & {"from W", "from W - 1"}:
        mask[: W - ("from W - 1" in rows)] = False
    if "wraps" in wrong:
        mask = torch.zeros(T, T, dtype=torch.bool)
        for t in range(T):
            mask[t, t - high + 1 : t - low + 1] = True
    if "wraps, one by one" in wrong:
        mask = torch.zeros(T, T, dtype=torch.bool)
        for t in range(T):
            for s in range(t - high + 1, t - low + 1):
                mask[t, s] = True
    return ~mask if "inverted" in wrong else mask


WINDOWS = Diagnosis(
    _window, WINDOW, [(4, 2), (7, 3), (1, 1), (5, 1), (4, 9), (9, 4), (6, 6)]
)


@exercise
def window_mask(fn: Callable[[int, int], Tensor]) -> str:
    """Check a `window_mask(T, W)` of shape `(T, T)`."""
    mask = tried(fn, 4, 2)
    if isinstance(mask, Tensor) and mask.shape == (4, 4):
        assert mask.dtype == torch.bool, (
            f"Your mask holds {mask.dtype}; return booleans, true where t may look at s."
        )
    WINDOWS.judge(fn)
    return "No future, the token itself, and exactly W positions."
