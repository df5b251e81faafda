"""Checks of chapter 1's exercises."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from course.check.verdict import exercise


def _reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


@exercise
def attention(fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str:
    """Check a causal `attention(q, k, v)` for `(T, K)` tensors."""
    generator = torch.Generator().manual_seed(1)
    T, K = 6, 16
    q, k, v = torch.randn(3, T, K, generator=generator)
    out = fn(q, k, v)
    assert isinstance(out, Tensor), f"It returned {type(out).__name__}; return the tensor (T, K)."
    assert out.shape == (T, K), f"The result has shape {tuple(out.shape)}; (T, K) = {(T, K)} is expected."
    wrong_way = (q @ k.T / math.sqrt(K)).masked_fill(torch.ones(T, T).tril(-1).bool(), -torch.inf).softmax(-1) @ v
    assert not torch.allclose(out, wrong_way, atol=1e-5), (
        "The mask is the wrong way round: each token sees the future and not the past. Hide the columns *above* the diagonal: triu(1)."
    )
    strict = (q @ k.T / math.sqrt(K)).masked_fill(torch.ones(T, T).triu(0).bool(), -torch.inf).softmax(-1) @ v
    same_as_strict = torch.allclose(out[1:], strict[1:], atol=1e-5)
    assert not same_as_strict and not out.isnan().any(), (
        "A token cannot see itself: the mask hides the diagonal too, and the first token sees nobody, which gives nan. Start one above the diagonal: triu(1)."
    )
    zeroed_scores = (q @ k.T / math.sqrt(K)).tril().softmax(-1) @ v
    assert not torch.allclose(out, zeroed_scores, atol=1e-5), (
        "A masked score is 0, and e⁰ = 1 is a weight like any other. Mask with -inf."
    )
    zeroed_weights = (q @ k.T / math.sqrt(K)).softmax(-1).tril() @ v
    assert not torch.allclose(out, zeroed_weights, atol=1e-5), (
        "Weights are zeroed after the softmax, so the rows no longer sum to one. Mask the scores, before the softmax."
    )
    full = (q @ k.T / math.sqrt(K)).softmax(-1) @ v
    assert not torch.allclose(out, full, atol=1e-5), "Nothing is masked: every token sees the future."
    assert not torch.allclose(out, _reference(q, k, v, scale=1.0), atol=1e-5), (
        "The scale is missing: divide the scores by the square root of K."
    )
    assert not torch.allclose(out, _reference(q, k, v, scale=1 / K), atol=1e-5), (
        "The scores are divided by K. Their *variance* is K, so divide by its square root."
    )
    turned = (k @ q.T / math.sqrt(K)).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1) @ v
    assert not torch.allclose(out, turned, atol=1e-5), (
        "Queries and keys have changed places: row t should hold q[t] with every key, so q @ k.T."
    )
    assert not torch.allclose(out, _reference(q, k, v, scale=1 / math.sqrt(T)), atol=1e-5), (
        "The scores are divided by the square root of T, the number of tokens. It is the head size K that makes them large."
    )
    columns = (q @ k.T / math.sqrt(K)).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(0) @ v
    assert not torch.allclose(out, columns, atol=1e-5), (
        "The softmax runs over the queries. Each *row* must sum to one: softmax(-1)."
    )
    error = (out - _reference(q, k, v)).abs().max().item()
    assert error < 1e-5, (
        f"Shape and mask look plausible, but the values are off by up to {error:.3g}. Compare one row with the formula, by hand."
    )
    return "Mask, scale, softmax and values all hold."


@exercise
def split_heads(fn: Callable[[Tensor, int], Tensor]) -> str:
    """Check a `split_heads(x (B, T, D), n_heads) -> (B, H, T, K)`."""
    B, T, H, K = 2, 5, 3, 4
    x = torch.arange(B * T * H * K).view(B, T, H * K)  # (B, T, D), every number once
    out = fn(x, H)
    assert isinstance(out, Tensor), f"It returned {type(out).__name__}; return the tensor (B, H, T, K)."
    assert out.shape != (B, T, H, K), (
        f"The result has shape (B, T, H, K) = {tuple(out.shape)}. The heads are split, but H must come before T: swap those two axes."
    )
    assert out.shape != (B, H, K, T), "The result has shape (B, H, K, T): the last two axes are swapped."
    assert out.shape == (B, H, T, K), (
        f"The result has shape {tuple(out.shape)}; (B, H, T, K) = {(B, H, T, K)} is expected."
    )
    assert not torch.equal(out, x.view(B, H, T, K)), (
        "`view` alone cuts the *time* axis: head 0 holds all channels of the first tokens. View as (B, T, H, K), then transpose."
    )
    interleaved = x.view(B, T, K, H).permute(0, 3, 1, 2)
    assert not torch.equal(out, interleaved), (
        "Head h holds every H-th channel. It should hold K neighbours: view as (B, T, H, K), not (B, T, K, H)."
    )
    assert torch.equal(out[1, 2, 3], x[1, 3, 2 * K : 3 * K]), (
        f"Head 2 of token 3 should hold channels {2 * K} to {3 * K - 1} of that token; it holds {out[1, 2, 3].tolist()}."
    )
    assert torch.equal(out.transpose(1, 2).reshape(B, T, H * K), x), (
        "Some channels are lost or doubled: joining the heads again does not give x back."
    )
    return "Each head holds its own channels of every token."


@exercise
def window_mask(fn: Callable[[int, int], Tensor]) -> str:
    """Check a `window_mask(T, W)` of shape `(T, T)`."""
    T, W = 7, 3
    out = fn(T, W)
    assert isinstance(out, Tensor), f"It returned {type(out).__name__}; return a boolean tensor (T, T)."
    assert out.shape == (T, T), f"The mask has shape {tuple(out.shape)}; (T, T) = {(T, T)} is expected."
    assert out.dtype == torch.bool, f"The mask holds {out.dtype}; return booleans, true where t may look at s."
    assert not bool(out.triu(1).any()) or bool(out.tril(-1).any()), "Row t looks ahead and never back: swap t and s."
    inside = torch.tensor([[0 <= t - s < W for s in range(T)] for t in range(T)])
    assert not torch.equal(out, ~inside), "The mask is inverted: it should be true where a token *may* look."
    assert not bool(out.triu(1).any()), "A token sees the future: demand t - s >= 0 as well."
    assert bool(out.diagonal().all()), "A token should see itself: t - s = 0 belongs to the window."
    counts = out.sum(-1).tolist()
    assert counts != [min(t + 1, W + 1) for t in range(T)], (
        f"The window is one too wide: {W + 1} positions where W = {W} were asked. It includes t itself, so t - s < W."
    )
    assert counts != [t + 1 for t in range(T)], "The window never ends: row t sees everything before it."
    assert torch.equal(out, inside), (
        f"With W = {W} the rows should see {inside.sum(-1).tolist()} positions; yours see {counts}."
    )
    assert torch.equal(fn(4, 9), torch.ones(4, 4, dtype=torch.bool).tril()), (
        "A window longer than the text should be the plain causal mask."
    )
    return "No future, the token itself, and exactly W positions."
