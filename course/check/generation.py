"""Checks of the exercises on generation."""

import functools
import gc
import inspect
import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from course.check.diagnose import CHANGED, Diagnosis, number, readable
from course.check.verdict import call, exercise

# what a token is compared with, from all probabilities and min_p
LIMITS: dict[str, Callable[[Any, float], Any]] = {
    "right": lambda p, m: m * p.amax(-1, keepdim=True),
    "itself": lambda p, m: m,
    "batch": lambda p, m: m * p.max(),
    "column": lambda p, m: m * p.amax(0),
    "first row": lambda p, m: m * p[0].max(),
    "minus": lambda p, m: p.amax(-1, keepdim=True) - m,
    "divided": lambda p, m: p.amax(-1, keepdim=True) / m,
    "rest": lambda p, m: (1 - m) * p.amax(-1, keepdim=True),
    "mean": lambda p, m: m * p.mean(-1, keepdim=True),
    "constant": lambda p, m: 0.1 * p.amax(-1, keepdim=True),
    "no axis": lambda p, m: m * p.amax(-1),
    "pair": lambda p, m: m * p.max(-1),
}


def normal(p: Tensor) -> Tensor:
    return p / p.sum(-1, keepdim=True)


# how what is left (all probabilities, left, kept) becomes probabilities again
SCALES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "scaled": lambda p, left, kept: normal(left),
    "not scaled": lambda p, left, kept: left,
    "sum of all": lambda p, left, kept: left / left.sum(),
    "sum of columns": lambda p, left, kept: left / left.sum(0, keepdim=True),
    "largest": lambda p, left, kept: left / left.amax(-1, keepdim=True),
    "count": lambda p, left, kept: left / kept.sum(-1, keepdim=True),
    "no axis of the sum": lambda p, left, kept: left / left.sum(-1),
    "softmax": lambda p, left, kept: left.softmax(-1),
    "softmax of the rest": lambda p, left, kept: p.masked_fill(
        ~kept, -torch.inf
    ).softmax(-1),
    "-inf": lambda p, left, kept: normal(p.masked_fill(~kept, -torch.inf)),
    "only kept": lambda p, left, kept: normal(p[kept]),
    "equal": lambda p, left, kept: normal(kept),
    "mask": lambda p, left, kept: kept,
    "zeros and ones": lambda p, left, kept: kept.float(),
}
MIN_P = {
    "itself": "You compare with min_p itself. The threshold is relative: min_p times the row's largest probability.",
    "batch": "There is one maximum for the whole batch in yours; each row has its own: amax(-1, keepdim=True).",
    "column": "Your maximum runs over the batch, so the rows influence each other. Take it over the vocabulary: dim=-1, keepdim=True.",
    "first row": "You compare every row with the largest of the first. Each row has its own: amax(-1, keepdim=True).",
    "minus": "You subtract min_p from the largest probability. It is a share of it: min_p *times* the largest.",
    "divided": "You divide the largest probability by min_p. It is a share of it: min_p *times* the largest.",
    "rest": "You take 1 - min_p of the largest probability; it is min_p of it.",
    "mean": "You compare with the row's mean. It is the largest that counts.",
    "constant": "Your threshold is 0.1 of the largest, whatever min_p is.",
    "no axis": "You drop the axis of the maximum, (B,) against (B, V), so the numbers do not belong to their rows: amax(-1, keepdim=True).",
    "pair": "max(-1) gives a pair, values and indices. Take amax(-1, keepdim=True), or max(…).values.",
    "strict": "You remove a token that is *exactly* min_p times as likely as the best; 'at least' keeps it: >=.",
    "inverted": "You keep what should be removed, and remove the rest: the comparison is the wrong way round.",
    "inverted, equal": "You keep what is at most as likely as the threshold, and remove the rest. It is the other way round: >=.",
    "top-p": "You add probabilities up, which is top-p. Min-p compares each token with the likeliest.",
    "only one": "You keep only the likeliest token.",
    "all": "You remove nothing.",
    "not scaled": "You do not scale what is left. Divide by its sum, so that each row is a probability again.",
    "sum of all": "You divide by the sum of the whole batch. Each row has its own: sum(-1, keepdim=True).",
    "sum of columns": "You divide by the sums of the columns. Each row has its own: sum(-1, keepdim=True).",
    "largest": "You divide by the largest. Divide by the sum, so that each row is a probability again.",
    "count": "You divide by the number of tokens that are left. Divide by the sum of their probabilities.",
    "no axis of the sum": "You drop the axis of the sum, (B,) against (B, V), so the sums do not belong to their rows: sum(-1, keepdim=True).",
    "softmax": "You apply a softmax to what is left, zeros included: exp(0) is 1, so what was removed comes back. Divide by the sum.",
    "softmax of the rest": "You apply a softmax to probabilities, which levels them out. They are probabilities already: divide by their sum.",
    "-inf": "You remove tokens by -inf, which is for logits. A probability that is removed is 0.",
    "only kept": "You return only the probabilities that are kept, so nobody knows whose they are. What is removed stays in its place, as 0.",
    "clamped": "You raise what is below the threshold to it (clamp). It is to be removed: 0.",
    "equal": "You make all that is left equally likely. It keeps its proportions: divide *them* by their sum.",
    "mask": "You return which tokens are kept, not their probabilities.",
    "zeros and ones": "You return 1 for each token that is kept, not its probability.",
    "logits": "You apply a softmax to the probabilities first, as if they were logits.",
    "sorted": "You return the probabilities sorted. A token keeps its place in the vocabulary.",
    "row": "You return the first row only. All rows are asked for, (B, V).",
    "zeroed": "You change the probabilities that you were handed, in place. Whoever holds them still needs them.",
}


def min_p_answer(p: Tensor, min_p: float, wrong: frozenset[str] = frozenset()) -> Any:
    """The reference, with any of the mistakes in MIN_P made."""
    given = p
    if "logits" in wrong:
        p = p.softmax(-1)
    if "sorted" in wrong:
        p = p.sort(-1, descending=True).values
    limit = LIMITS[next((m for m in LIMITS if m in wrong), "right")](p, min_p)
    kept = p > limit if "strict" in wrong else p >= limit
    if wrong & {"inverted", "inverted, equal"}:
        kept = p < limit if "inverted" in wrong else p <= limit
    if "top-p" in wrong:
        ordered, order = p.sort(-1, descending=True)
        kept = torch.empty_like(kept).scatter(
            -1, order, ordered.cumsum(-1) - ordered < min_p
        )
    if "only one" in wrong:
        kept = p == p.amax(-1, keepdim=True)
    if "all" in wrong:
        kept = torch.ones_like(kept)
    scale = SCALES[next((m for m in SCALES if m in wrong), "scaled")]
    left = torch.where(kept, p, limit if "clamped" in wrong else 0.0)
    result = scale(p, left, kept)
    if "zeroed" in wrong:
        given[~kept] = 0.0
    return result[0] if "row" in wrong else result


MIN_P_CHECK = Diagnosis(
    min_p_answer,
    MIN_P,
    [
        (torch.tensor([[0.5, 0.3, 0.2]]), 0.5),
        (torch.tensor([[0.4, 0.2, 0.19, 0.12, 0.09], [0.04, 0.06, 0.1, 0.2, 0.6]]), 0.25),
        (torch.tensor([[0.5, 0.25, 0.25]]), 0.5),
        (torch.tensor([[0.3, 0.6, 0.1], [0.25, 0.25, 0.5], [0.05, 0.05, 0.9]]), 0.3),
        (torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.7, 0.2]]), 0.05),
        (torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.7, 0.2]]), 1.0),
        (torch.tensor([[0.25, 0.2, 0.15, 0.12, 0.1, 0.08, 0.06, 0.04]]), 0.7),
        (torch.tensor([[1.0]]), 0.1),
    ],
    lambda probabilities, min_p: f"For min_p = {min_p} and the rows {readable(probabilities)}",
)  # fmt: skip


@exercise
def min_p(fn: Callable[[Tensor, float], Tensor]) -> str:
    """Check a `min_p_filter(probabilities (B, V), min_p) -> (B, V)`."""
    MIN_P_CHECK.judge(fn)
    return "The threshold is relative, row by row, and what is left sums to one."


LOG_PROBABILITY = {
    "own position": "You read the probability of each token at its own position. The logits at position t predict the token at t + 1: shift by one.",
    "early": "You read each token one position too early. The logits at position t predict the token at t + 1, and no later one.",
    "logits": "You add up logits. Only after a log-softmax over the vocabulary are they logs of probabilities.",
    "added": "You add up probabilities. They are multiplied, so it is their logs that add up: log_softmax.",
    "log of the sum": "You take the log of a sum of probabilities. They are multiplied, so it is the logs that add up.",
    "short memory": "You show the model one token at a time. It reads all that stands before: hand it prompt and continuation together.",
    "probability": "You return the probability itself, which is 0 for any real text. Return its log.",
    "product": "You multiply the probabilities and take the log then: the product of many is 0 in a computer. Add up their logs.",
    "product, math": "You multiply the probabilities and take math.log then, which fails: the product of many is 0. Add up their logs.",
    "mean": "You take the mean. The probability of a text is the product over its tokens, so its log is the *sum*.",
    "mean of all": "You divide by the length of the whole text. The log of a product is the *sum* of the logs.",
    "sign": "You have turned the sign: that is a loss. The log of a probability is negative.",
    "perplexity": "You return the perplexity, exp of the mean loss. The sum of the logs is asked for.",
    "prompt, too": "You score the prompt as well. It is given: only the tokens of the continuation count.",
    "prompt only": "You score the prompt. It is given: the tokens of the continuation count.",
    "no first": "You leave out the first token of the continuation. It is predicted at the last position of the prompt.",
    "no last": "You leave out the last token of the continuation.",
    "only last": "You score only the last token. All of the continuation count.",
    "only first": "You score only the first token of the continuation (does a `return` stand inside your loop?). All of them count.",
    "one of the prompt": "You score the prompt's last token, too. It is given: only the tokens of the continuation count.",
    "table": "You add up whole rows, every token of the vocabulary. At each position only one token stands: gather.",
    "at the end": "You look every token up at the last position of the text. Each is predicted at the position before its own.",
    "at once": "You look every token up at the last position of the prompt. Each is predicted at the position before its own.",
    "no prompt": "You never show the model the prompt. Hand it prompt and continuation together.",
    "over time": "Your softmax runs over time. Each position has its own, over the vocabulary: dim=-1.",
    "over time, all": "Your softmax runs over time, the last position included. Each position has its own, over the vocabulary: dim=-1.",
    "twice": "You apply a softmax, and then another: probabilities are no logits. One log_softmax is enough.",
    "bits": "Those are bits. Return nats, which the natural logarithm gives.",
    "base 10": "You take the logarithm to base 10. Return nats, which the natural logarithm gives.",
    "likeliest": "You score the likeliest token at each position, not the one that stands there.",
    "block": "You add up a whole table, every token at every position. Take one number for each position: gather.",
    "reversed": "You score the continuation from its end: the first position predicts its first token.",
    "extended": "You change the prompt that you were handed: += and extend do. Write prompt + continuation, a new list.",
}  # fmt: skip


def log_probability_answer(
    model: Any,
    prompt: list[int],
    continuation: list[int],
    wrong: frozenset[str] = frozenset(),
) -> Any:
    """The reference, with any of the mistakes in LOG_PROBABILITY made."""
    P, text = len(prompt), prompt + continuation
    if "extended" in wrong:
        prompt.extend(continuation)
    if "no prompt" in wrong:
        P, text = 1, continuation
    logits = model(torch.tensor([text]))[0].double()  # (T, V)
    if "short memory" in wrong:
        logits = torch.cat([model(torch.tensor([[t]]))[0] for t in text]).double()
    log_p = logits.log_softmax(-1)
    if "over time" in wrong:
        log_p = logits[:-1].log_softmax(0)
    if "over time, all" in wrong:
        log_p = logits.log_softmax(0)
    if "logits" in wrong:
        log_p = logits
    if "twice" in wrong:
        log_p = logits.softmax(-1).log_softmax(-1)
    ends = {"prompt, too": (1, len(text)), "prompt only": (1, P)}
    first, last = next((ends[m] for m in ends if m in wrong), (P, len(text)))
    first += ("no first" in wrong) - ("one of the prompt" in wrong and P > 1)
    last -= "no last" in wrong
    at = range(first, last)
    if "only last" in wrong:
        at = at[-1:]
    if "only first" in wrong:
        at = at[:1]
    shift = 1 - ("own position" in wrong) + ("early" in wrong)
    if "table" in wrong:
        return float(log_p[[t - 1 for t in at]].sum())
    if "block" in wrong:
        return float(log_p[[t - 1 for t in at]][:, [text[t] for t in at]].sum())
    rows = [P - 1 if "at once" in wrong else t - shift for t in at]
    if "at the end" in wrong:
        rows = [-1 for _ in at]
    asked = [text[t] for t in (at[::-1] if "reversed" in wrong else at)]
    each = log_p[rows].max(-1).values if "likeliest" in wrong else log_p[rows, asked]
    total = float(each.sum())
    if "added" in wrong:
        total = float(each.exp().sum())
    if "log of the sum" in wrong:
        total = float(each.exp().sum().log())
    if wrong & {"product", "product, math", "probability"}:
        p = each.exp().float().prod()
        if "product, math" in wrong:
            return math.log(p)
        total = float(p.log() if "product" in wrong else p)
    if "mean" in wrong:
        total /= len(each)
    if "mean of all" in wrong:
        total /= len(text)
    total /= (
        math.log(2) if "bits" in wrong else math.log(10) if "base 10" in wrong else 1
    )
    if "perplexity" in wrong:
        return math.exp(-total / len(each))
    return -total if "sign" in wrong else total


V = 7
TABLE = torch.randn(2, V, V, generator=torch.Generator().manual_seed(3))


def language_model(tokens: Any) -> Tensor:
    """Logits (B, T, V) that depend on each token, on the position and on all that stands before."""
    assert isinstance(tokens, Tensor), (
        f"You hand the model {type(tokens).__name__}; it takes a tensor of tokens (B, T)."
    )
    assert tokens.dim() == 2, (
        f"You hand the model tokens of shape {tuple(tokens.shape)}; it expects (B, T), so put one axis in front."
    )
    assert not tokens.is_floating_point(), (
        f"You hand the model {tokens.dtype}; tokens are whole numbers."
    )
    before = (
        TABLE[1][tokens].cumsum(1) / (1 + torch.arange(tokens.size(1)))[None, :, None]
    )
    return (
        1.5 * TABLE[0][tokens]
        + 2 * before
        + 0.01 * torch.arange(V) * (tokens.size(1) > 0)
    )


def scored(
    fn: Callable[..., Any], prompt: list[int], continuation: list[int]
) -> tuple[Any, None]:
    return call(fn, language_model, prompt, continuation), None


LONG = torch.randint(V, (400,), generator=torch.Generator().manual_seed(5)).tolist()
SCORES = Diagnosis(
    log_probability_answer,
    LOG_PROBABILITY,
    [
        ([1, 4, 2], [5, 0, 3]),
        ([4, 6], [2]),
        ([2, 2, 5, 1, 0], [6, 1]),
        ([3, 0, 5], [4, 4, 1, 6]),
        ([1, 4], LONG),
    ],
    observe=scored,
    read=number,
    rtol=1e-4,
    atol=1e-5,
)


@exercise
def log_probability(
    fn: Callable[[Callable[[Tensor], Tensor], list[int], list[int]], float],
) -> str:
    """Check a `log_probability(model, prompt, continuation) -> nats`."""
    SCORES.judge(fn)
    return "Shifted by one, summed over the continuation only, in nats."


CACHE = {
    "first": "You keep the *first* positions, and nothing new once it is full. The newest are the ones that matter: keep the end.",
    "never": "You never forget: all positions are kept. Cut to the last `capacity`.",
    "axis 0 cut": "You cut along the batch. Time is axis 2 of (B, H, T, K).",
    "axis 1 cut": "You cut along the heads. Time is axis 2 of (B, H, T, K).",
    "axis 3 cut": "You cut along the channels. Time is axis 2 of (B, H, T, K).",
    "axis 0": "You join along the batch. Time is axis 2 of (B, H, T, K).",
    "axis 1": "You join along the heads. Time is axis 2 of (B, H, T, K).",
    "axis 3": "You join along the channels. Time is axis 2 of (B, H, T, K).",
    "one out": "You drop one position when it is full and then join, however many are new. Join first, then cut to the last `capacity`.",
    "one out once": "You drop one position when there are exactly `capacity`, and then join, however many are new. Join first, then cut to the last `capacity`.",
    "turned": "You turn the order of time around. The oldest stands first.",
    "cut before": "You cut what was there before and join then, so there are too many. Join first, then cut.",
    "one more": "You keep one position too many.",
    "one less": "You keep capacity - 1 positions once it is full (all of them where that is 0: [-0:] cuts nothing).",
    "one a call": "You drop one position a call, however many are new. Cut to the last `capacity`.",
    "always one": "You drop the oldest position at every call, full or not.",
    "wrong end": "You cut with [capacity:], which drops the first `capacity` positions instead of keeping the last: [-capacity:].",
    "all new": "You drop as many as are new, also before the cache is full.",
    "values uncut": "You cut the keys and not the values. Treat both alike.",
    "keys uncut": "You cut the values and not the keys. Treat both alike.",
    "keys twice": "You keep the keys as values, too.",
    "values twice": "You keep the values as keys, too.",
    "swapped": "You return values and keys; keys come first.",
    "front": "You put the new positions in front. Time runs on: they belong behind the old ones.",
    "front, the end": "You put the new positions in front, and keep the end, the oldest. Time runs on: they belong behind the old ones.",
    "ring": "You write the new positions over the oldest and hand them out as they lie, so they are not in the order of time.",
    "zeros": "You begin with a buffer of zeros and hand out places that nothing was written to.",
    "only new": "You return only what was just given. What came before belongs in front of it.",
    "before": "You return what was there before this call. The new positions belong to it.",
    "clears": "You forget everything when the cache is full. Only the oldest positions go.",
    "clears and cuts": "You begin anew when the cache is full, with nothing but what just came. Only the oldest positions go.",
    "halves": "You keep half a window when the cache is full. Only what is too much goes.",
    "first call": "You do not cut what the first call gives. It may bring more than `capacity`.",
    "calls": "You count calls. It is positions that count, and a call may bring several.",
    "constant": "Your capacity is always 4.",
    "float32": "You turn everything into float32. What comes in another type stays so.",
    "stack": "stack makes a new axis. cat joins along one that is there: time, axis 2.",
    "None": "On the first call there is nothing to join with: None is no tensor.",
    "raises": "KVCache refuses what does not fit. This one is to forget the oldest.",
}  # fmt: skip


def cache_answer(
    capacity: int, wrong: frozenset[str] = frozenset()
) -> Callable[[Tensor, Tensor], Any]:
    """The reference, with any of the mistakes in CACHE made."""
    size = 4 if "constant" in wrong else capacity
    kept: list[Tensor | None] = [None, None]
    calls: list[int] = []
    joined = next((int(m[-1]) for m in ("axis 0", "axis 1", "axis 3") if m in wrong), 2)
    cut_at = next(
        (int(m[5]) for m in ("axis 0 cut", "axis 1 cut", "axis 3 cut") if m in wrong), 2
    )
    join = torch.stack if "stack" in wrong else torch.cat

    def cut(x: Tensor, new: int, started: bool) -> Tensor:
        T, n = x.size(cut_at), size + ("one more" in wrong)
        if "wrong end" in wrong:
            return x[:, :, size:]
        if "always one" in wrong:
            return x[:, :, 1:] if started else x
        if "one less" in wrong:
            return x[:, :, -size + 1 :]
        if wrong & {"never", "clears"} or "first call" in wrong and not started:
            return x
        if "halves" in wrong and T > size:
            return x[:, :, -(size // 2) :]
        if "one a call" in wrong:
            n = T - 1 if T > size else T
        if "all new" in wrong and started:
            n = T - new
        if "calls" in wrong:
            n = sum(calls[-size:])
        n = max(0, min(n, T))
        front = wrong & {"first", "front"}
        return x.narrow(cut_at, 0 if front else T - n, n)

    def one(index: int, new: Tensor) -> Tensor:
        old, started = kept[index], kept[index] is not None
        full = wrong & {"clears", "clears and cuts"}
        if "float32" in wrong:
            new = new.float()
        if "zeros" in wrong and not started:
            old = torch.zeros_like(new[:, :, :1]).repeat(1, 1, size, 1)
        if full and old is not None and old.size(2) >= size:
            old = None
        if "cut before" in wrong and old is not None:
            old = old[:, :, -size:]
        if wrong & {"one out", "one out once"} and old is not None:
            full_now = (
                old.size(2) >= size if "one out" in wrong else old.size(2) == size
            )
            old = old[:, :, 1:] if full_now else old
        if "None" in wrong:
            whole = torch.cat([old, new], dim=2)  # type: ignore[list-item]
        else:
            pair = [new, old] if wrong & {"front", "front, the end"} else [old, new]
            whole = new if old is None else join(pair, dim=joined)  # type: ignore[arg-type]
        uncut = (
            wrong & {"cut before", "one out", "one out once"}
            or ("keys uncut", "values uncut")[index] in wrong
        )
        result = whole if uncut else cut(whole, new.size(2), started)
        kept[index] = result
        if "ring" in wrong:
            turned = sum(calls) % size if sum(calls) > size else 0
            result = result.roll(turned, 2)
        if "turned" in wrong:
            result = result.flip(2)
        if "only new" in wrong:
            return new
        return old if "before" in wrong and old is not None else result

    def cache(k: Tensor, v: Tensor) -> Any:
        if "raises" in wrong and sum(calls) + k.size(2) > size:
            end = sum(calls) + k.size(2)
            raise ValueError(
                f"the cache holds {size} positions, and {end} were put in."
            )
        calls.append(k.size(2))
        given = (
            (v if "values twice" in wrong else k),
            (k if "keys twice" in wrong else v),
        )
        pair = one(0, given[0]), one(1, given[1])
        return pair[::-1] if "swapped" in wrong else pair

    return cache


def each(x: Tensor) -> list[bytes]:
    """The positions of x (B, H, T, K), as keys of a dictionary."""
    return [one.numpy().tobytes() for one in x.detach().double().unbind(2)]


def positions(x: Any, k: Tensor, names: dict[bytes, str]) -> str:
    """Which positions of the keys and values stand in x, as "k0 k1"; its shape if it cannot be such."""
    assert isinstance(x, Tensor), (
        f"A call returns {type(x).__name__} for the keys or values; return two tensors (B, H, T, K)."
    )
    if x.dim() != 4 or x.shape[:2] != k.shape[:2] or x.size(3) != k.size(3):
        return f"a tensor of shape {tuple(x.shape)}"
    said = [names.get(one, "?" if any(one) else "0") for one in each(x.to(k.dtype))]
    kind = "" if x.dtype == k.dtype else f" in {x.dtype}"
    return (" ".join(said) or "nothing") + kind


def used(
    cls: Any,
    capacity: int,
    sizes: tuple[int, ...],
    shape: tuple[int, int, int],
    dtype: torch.dtype,
) -> tuple[Any, None]:
    """What a cache returns, call after call, of that many new positions each."""
    B, H, K = shape
    k, v = torch.randn(
        2, B, H, sum(sizes), K, generator=torch.Generator().manual_seed(5)
    ).to(dtype)
    names = {one: f"k{t}" for t, one in enumerate(each(k))}
    names |= {one: f"v{t}" for t, one in enumerate(each(v))}
    seen: dict[str, str] = {}
    cache, done = call(cls, capacity), 0
    assert callable(cache), (
        "An instance cannot be called. Write a method __call__(self, k, v)."
    )
    stranger = torch.full((B, H, 1, K), 99.0, dtype=dtype)
    names |= {one: "another's" for one in each(stranger)}
    call(call(cls, capacity), stranger, stranger.clone())
    for T in sizes:
        given = [x[:, :, done : done + T].clone() for x in (k, v)]
        pair = call(cache, *given)
        assert isinstance(pair, tuple | list) and len(pair) == 2, (
            f"A call returns {type(pair).__name__}; return the pair (keys, values)."
        )
        for name, left, x in zip("kv", given, (k, v), strict=True):
            assert torch.equal(left, x[:, :, done : done + T]), CHANGED.format(name)
        said = seen[f"call {len(seen) + 1}"] = " | ".join(
            positions(x, k, names) for x in pair
        )
        assert "another's" not in said, (
            "A new cache begins with what another one holds: keep the tensors on the instance (self), not on the class."
        )
        done += T
    return seen, None


def tensors(root: Any) -> Iterator[Tensor]:
    """The tensors that an object holds, wherever: in attributes, containers, the variables of a closure."""
    pending, met = [root], set()
    while pending:
        one = pending.pop()
        if id(one) in met or isinstance(one, type | types.ModuleType):
            continue
        met.add(id(one))
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, types.FunctionType):
            pending += one.__closure__ or ()
        else:
            pending += gc.get_referents(one)


SLIDING = Diagnosis(
    cache_answer,
    CACHE,
    [
        (3, (1, 1, 1, 1, 1, 1), (1, 1, 2), torch.float32),
        (5, (3, 1, 1, 1, 4, 2), (2, 3, 4), torch.float32),
        (1, (1, 1, 2, 1), (3, 2, 5), torch.float32),
        (2, (5, 1, 2, 1), (1, 4, 3), torch.float32),
        (4, (2, 2, 2, 2, 2), (5, 6, 7), torch.float64),
        (6, (2, 3, 2, 3, 1), (1, 2, 2), torch.bfloat16),
    ],
    lambda capacity, sizes, shape, dtype: (
        f"With a capacity of {capacity}, given {', '.join(map(str, sizes))} new positions in turn (k0 is the key of position 0, v0 its value)"
    ),
    observe=used,
)  # fmt: skip


@exercise
def sliding_cache(cls: Callable[[int], Any]) -> str:
    """Check a class whose instances keep the last `capacity` positions."""
    assert (
        isinstance(cls, type)
        or inspect.isroutine(cls)
        or isinstance(cls, functools.partial)
    ), (
        f"The check was given an instance of {type(cls).__name__}. Hand it the class itself: its name, without calling it."
    )
    SLIDING.judge(cls)
    k, v = torch.ones(2, 1, 2, 40, 3)
    cache = cls(3)
    for t in range(40):
        cache(k[:, :, t : t + 1], v[:, :, t : t + 1])
    held = sum(x.numel() for x in tensors(cache)) / (k.numel() + v.numel()) * 40
    assert held < 20, (
        f"It returns the last positions, but after 40 with a capacity of 3 it still holds {held:.0f}, so memory grows with the text. Store what you cut, not what you joined."
    )
    return "The last positions, in order, keys and values, each cache for itself."
