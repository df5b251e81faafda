"""Checks of the exercises on generation."""

import inspect
import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from course.check.verdict import exercise, untouched


class Cache(Protocol):
    """What attention expects of a cache."""

    def __call__(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]: ...


def _rounded(x: Tensor) -> list[float]:
    return [round(value, 3) for value in x.flatten().tolist()]


@exercise
def min_p(fn: Callable[[Tensor, float], Tensor]) -> str:
    """Check a `min_p_filter(probabilities (B, V), min_p) -> (B, V)`."""
    p = torch.tensor(
        [[0.4, 0.2, 0.19, 0.12, 0.09], [0.04, 0.06, 0.1, 0.2, 0.6]]
    )  # (B, V)
    out = untouched(fn, probabilities=p, min_p=0.25)
    assert isinstance(out, Tensor), (
        f"It returned {type(out).__name__}; return the tensor (B, V)."
    )
    assert out.shape == p.shape, (
        f"The result has shape {tuple(out.shape)}; probabilities (B, V) = {tuple(p.shape)} keep theirs."
    )
    assert out.dtype == p.dtype, (
        f"The result holds {out.dtype}; return probabilities, {p.dtype} as they came, not where to keep them."
        if out.dtype == torch.bool
        else f"The result holds {out.dtype}; probabilities are {p.dtype} and should stay so."
    )
    kept = (out > 0).tolist()
    right = (p >= 0.25 * p.amax(-1, keepdim=True)).tolist()
    assert kept != (p >= 0.25).tolist(), (
        "You compare with min_p itself. The threshold is relative: min_p times the row's largest probability."
    )
    assert kept != (p < 0.25 * p.amax(-1, keepdim=True)).tolist(), (
        "You keep what should be removed, and remove the rest: the comparison is the wrong way round."
    )
    assert kept != (p >= 0.25 * p.amax(0)).tolist(), (
        "The maximum runs over the batch, so the rows influence each other. Take it over the vocabulary: dim=-1, keepdim=True."
    )
    assert kept != (p >= 0.25 * p.max()).tolist(), (
        "There is one maximum for the whole batch; each row has its own: amax(-1, keepdim=True)."
    )
    assert kept != (p >= p.amax(-1, keepdim=True) - 0.25).tolist(), (
        "You subtract min_p from the largest probability. It is a share of it: min_p *times* the largest."
    )
    assert kept != [[True] * 5] * 2, (
        "Nothing is removed: every token keeps some probability."
    )
    positions = [[token for token, on in enumerate(row) if on] for row in right]
    assert sum(map(sum, kept)) != sum(map(sum, right)) or kept == right, (
        f"As many tokens are kept as should be, but not those: tokens {positions[0]} of the first row and {positions[1]} of the second. A token keeps its place in the vocabulary."
    )
    assert kept == right, (
        f"With min_p = 0.25 the first row {_rounded(p[0])} should keep {sum(right[0])} tokens, the second {sum(right[1])}; yours keeps {sum(kept[0])} and {sum(kept[1])}."
    )
    sums = out.sum(-1)
    left = torch.where(torch.tensor(right), p, 0.0)
    assert not torch.allclose(out, left), (
        f"What is left sums to {_rounded(sums)}. Divide by the sum, so that each row is a probability again."
    )
    softmaxed = torch.where(torch.tensor(right), p, -torch.inf).softmax(-1)
    assert not torch.allclose(out, softmaxed), (
        "You apply a softmax to probabilities, which levels them out. They are probabilities already: divide by their sum."
    )
    assert not torch.allclose(out, left / left.sum()), (
        f"You divide by the sum of the whole batch, so the rows sum to {_rounded(sums)}. Each row has its own: sum(-1, keepdim=True)."
    )
    assert torch.allclose(sums, torch.ones(2)), (
        f"Each row should sum to one; yours sum to {_rounded(sums)}. Divide by the row's own sum: sum(-1, keepdim=True)."
    )
    for row, wanted, got in zip(
        ("first", "second"), left / left.sum(-1, keepdim=True), out, strict=True
    ):
        assert torch.allclose(got, wanted), (
            f"The {row} row should be {_rounded(wanted)}, what is kept in the same proportion as before; yours is {_rounded(got)}."
        )
    edge = fn(torch.tensor([[0.5, 0.25, 0.25]]), 0.5)
    assert bool((edge > 0).all()), (
        "A token that is *exactly* min_p times as likely as the best is to be kept ('at least'); yours is removed."
    )
    return "The threshold is relative, row by row, and what is left sums to one."


@exercise
def log_probability(
    fn: Callable[[Callable[[Tensor], Tensor], list[int], list[int]], float],
) -> str:
    """Check a `log_probability(model, prompt, continuation) -> nats`."""
    V = 7
    table = torch.randn(
        V, V, generator=torch.Generator().manual_seed(3)
    )  # logits of the next token after each token

    def model(tokens: Tensor) -> Tensor:
        assert tokens.dim() == 2, (
            f"The model was given tokens of shape {tuple(tokens.shape)}; it expects (B, T), so put one axis in front."
        )
        return (
            table[tokens]
            + 0.01 * torch.arange(tokens.size(1))[None, :, None] * table[0]
        )  # (B, T, V), depends on the position

    prompt, continuation = [1, 4, 2], [5, 0, 3]
    tokens = torch.tensor([prompt + continuation])
    logits = model(tokens)[0]  # (T, V)
    log_p = logits.log_softmax(-1)
    P, T = len(prompt), tokens.size(1)
    right = sum(float(log_p[t - 1, tokens[0, t]]) for t in range(P, T))
    answer = untouched(
        lambda prompt, continuation: fn(model, prompt, continuation),
        prompt=prompt,
        continuation=continuation,
    )
    assert (
        isinstance(answer, float | int)
        or isinstance(answer, Tensor)
        and answer.numel() == 1
    ), (
        f"It returned {f'a tensor {tuple(answer.shape)}' if isinstance(answer, Tensor) else type(answer).__name__}; return one number, the sum."
    )
    got = float(answer)
    unshifted = sum(float(log_p[t, tokens[0, t]]) for t in range(P, T))
    with_prompt = sum(float(log_p[t - 1, tokens[0, t]]) for t in range(1, T))
    without_first = sum(float(log_p[t - 1, tokens[0, t]]) for t in range(P + 1, T))
    raw = sum(float(logits[t - 1, tokens[0, t]]) for t in range(P, T))
    alone = model(torch.tensor([continuation]))[0].log_softmax(-1)
    p = log_p.exp()
    added = sum(float(p[t - 1, tokens[0, t]]) for t in range(P, T))
    over_time = logits[:-1].log_softmax(0)
    wrong_axis = sum(float(over_time[t - 1, tokens[0, t]]) for t in range(P, T))
    over_all_time = sum(
        float(logits.log_softmax(0)[t - 1, tokens[0, t]]) for t in range(P, T)
    )
    at_once = sum(float(log_p[P - 1, token]) for token in continuation)
    forgot_prompt = sum(
        float(alone[t - 1, continuation[t]]) for t in range(1, len(continuation))
    )
    findings = {
        unshifted: "You read the probability of each token at its own position. The logits at position t predict the token at t + 1: shift by one.",
        with_prompt: "You score the prompt as well. It is given: only the tokens of the continuation count.",
        without_first: "The first token of the continuation is missing. It is predicted at the last position of the prompt.",
        raw: "You add up logits. Only after a log-softmax over the vocabulary are they logs of probabilities.",
        right
        / len(
            continuation
        ): "This is the mean per token. The probability of a text is the product over its tokens, so its log is the *sum*.",
        right
        / math.log(
            2
        ): "Those are bits. Return nats, which the natural logarithm gives.",
        added: "You add up probabilities. They are multiplied, so it is their logs that add up: log_softmax.",
        wrong_axis: "The softmax runs over time. Each position has its own, over the vocabulary: dim -1.",
        over_all_time: "The softmax runs over time. Each position has its own, over the vocabulary: dim -1.",
        at_once: "Every token is looked up at the last position of the prompt. Each is predicted at the position before its own.",
        -right: "The sign is turned: that is a loss. The log of a probability is negative.",
        forgot_prompt: "The model never sees the prompt. Hand it prompt and continuation together.",
    }
    for wrong, message in findings.items():
        assert abs(got - wrong) > 1e-4, message
    probability = float(torch.tensor(right).exp())
    assert abs(got - probability) > 1e-4, (
        "This is the probability itself, which underflows for any real text. Return its log."
    )
    assert abs(got - right) < 1e-4, (
        f"For a continuation of {len(continuation)} tokens the sum should be {right:.4f} nats; yours is {got:.4f}."
    )
    return "Shifted by one, summed over the continuation only, in nats."


@exercise
def sliding_cache(cls: Callable[[int], Cache]) -> str:
    """Check a class whose instances keep the last `capacity` positions."""
    B, H, K, capacity = 2, 3, 4, 5
    assert isinstance(cls, type) or inspect.isroutine(cls), (
        f"The check was given an instance of {type(cls).__name__}. Hand it the class itself: its name, without calling it."
    )
    cache = cls(capacity)
    assert callable(cache), (
        "An instance cannot be called. Write a method __call__(self, k, v)."
    )
    k, v = torch.randn(
        2, B, H, 12, K, generator=torch.Generator().manual_seed(5)
    )  # (B, H, T, K) each
    done = 0
    for T in (3, 1, 1, 1, 4, 2):
        result = untouched(
            cache, k=k[:, :, done : done + T], v=v[:, :, done : done + T]
        )
        assert isinstance(result, tuple) and len(result) == 2, (
            f"A call returned {type(result).__name__}; return the pair (keys, values)."
        )
        got_k, got_v = result
        assert isinstance(got_k, Tensor) and isinstance(got_v, Tensor), (
            f"A call returned ({type(got_k).__name__}, {type(got_v).__name__}); return two tensors (B, H, T, K)."
        )
        done += T
        expected = slice(max(0, done - capacity), done)
        size = expected.stop - expected.start
        where = f"After {done} positions with a capacity of {capacity}"
        assert got_k.shape != (B, H, T, K) or T == size, (
            f"{where} it returns only the {T} it was just given. Keep what came before."
        )
        assert got_k.dim() == 4 and got_k.shape[:2] == (B, H) and got_k.size(3) == K, (
            f"{where} the keys have shape {tuple(got_k.shape)}. Join along time, axis 2 of (B, H, T, K)."
        )
        assert got_k.size(2) <= capacity, (
            f"{where} it returns {got_k.size(2)} positions: the oldest must be forgotten."
        )
        assert got_k.size(2) == size, (
            f"{where} it should return {size} positions; yours returns {got_k.size(2)}."
        )
        assert not torch.equal(got_k, k[:, :, :size]) or expected.start == 0, (
            f"{where} it keeps the *first* {size}. The newest are the ones that matter: keep the end."
        )
        assert got_v.shape == got_k.shape, (
            f"{where} the keys have shape {tuple(got_k.shape)}, but the values {tuple(got_v.shape)}. Treat both alike."
        )
        assert not (
            torch.equal(got_k, v[:, :, expected])
            and torch.equal(got_v, k[:, :, expected])
        ), f"{where} keys and values have changed places."
        assert not torch.equal(got_v, k[:, :, expected]), (
            f"{where} the values are the keys."
        )
        same_set = torch.equal(got_k.sort(2).values, k[:, :, expected].sort(2).values)
        assert torch.equal(got_k, k[:, :, expected]) or not same_set, (
            f"{where} the right positions are there, but not in the order of time, and the causal mask counts from the end."
        )
        assert torch.equal(got_k, k[:, :, expected]), (
            f"{where} the keys are not those of positions {expected.start} to {expected.stop - 1}."
        )
        assert torch.equal(got_v, v[:, :, expected]), (
            f"{where} the values are not those of positions {expected.start} to {expected.stop - 1}."
        )
    held = [
        x.size(2)
        for x in vars(cache).values()
        if isinstance(x, Tensor) and x.dim() == 4
    ]
    assert max(held, default=0) < done, (
        f"It returns the last {capacity} positions but keeps all {done}, so memory grows with the text. Store what you cut, not what you joined."
    )
    other_k, _ = cls(capacity)(k[:, :, :1], v[:, :, :1])
    assert other_k.size(2) == 1, (
        "A new cache begins with what another one holds: keep the tensors on the instance (self), not on the class."
    )
    long_k, long_v = cls(capacity)(k, v)
    assert torch.equal(long_k, k[:, :, -capacity:]) and torch.equal(
        long_v, v[:, :, -capacity:]
    ), (
        f"A first call with {k.size(2)} positions and a capacity of {capacity} returns {long_k.size(2)}: cut there, too."
    )
    return "The last positions, in order, keys and values, each cache for itself."
