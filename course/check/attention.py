"""Checks of the exercises of attention."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from course.check.verdict import exercise, ready_made, untouched


def _reference(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None
) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scale
    )


@exercise
def causal_attention(fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str:
    """Check a causal `attention(q, k, v)` for `(T, K)` tensors."""
    generator = torch.Generator().manual_seed(1)
    T, K = 6, 16
    q, k, v = torch.randn(3, T, K, generator=generator)
    out = untouched(fn, q=q, k=k, v=v)
    assert isinstance(out, Tensor), (
        f"It returned {type(out).__name__}; return the tensor (T, K)."
    )
    assert out.shape == (T, K), (
        f"The result has shape {tuple(out.shape)}; (T, K) = {(T, K)} is expected."
    )
    assert out.dtype == q.dtype, (
        f"The result holds {out.dtype}; q, k and v hold {q.dtype}, and so should it."
    )
    assert not out.isnan().all(), (
        "Every entry is nan. If you multiplied a mask of 0 and 1 by -inf: 0 * inf is nan. Use masked_fill, which writes -inf where the mask is true and leaves the rest alone."
    )
    close = lambda other: torch.allclose(out, other, atol=1e-5)  # noqa: E731
    scores = q @ k.T / math.sqrt(K)
    ones = torch.ones(T, T)
    wrong_way = scores.masked_fill(ones.tril(-1).bool(), -torch.inf).softmax(-1) @ v
    assert not close(wrong_way), (
        "The mask is the wrong way round: each token sees the future and not the past. Hide the columns *above* the diagonal: triu(1)."
    )
    assert not out[-1].isnan().all() or out[0].isnan().any(), (
        "The mask is inverted: it hides the past and the token itself, so the last token sees nobody, which gives nan. masked_fill hides where its mask is *true*: triu(1)."
    )
    rows = out.isnan().any(-1).nonzero().flatten().tolist()
    assert rows in ([], [0]), (
        f"Rows {rows} are nan: an infinite score met something else than the softmax. Hide with -inf (not +inf), take the softmax next, and only then multiply by v."
    )
    strict = scores.masked_fill(ones.triu(0).bool(), -torch.inf).softmax(-1) @ v
    same_as_strict = torch.allclose(out[1:], strict[1:], atol=1e-5)
    assert not same_as_strict and not out.isnan().any(), (
        "A token cannot see itself: the mask hides the diagonal too, and the first token sees nobody, which gives nan. Start one above the diagonal: triu(1)."
    )
    assert not close(
        scores.masked_fill(ones.triu(2).bool(), -torch.inf).softmax(-1) @ v
    ), (
        "Each token sees one position ahead: triu(2) leaves the first column above the diagonal open. Hide that one too: triu(1)."
    )
    assert not close(scores.tril().softmax(-1) @ v), (
        "A masked score is 0, and e⁰ = 1 is a weight like any other. Mask with -inf."
    )
    assert not close(scores.softmax(-1).tril() @ v), (
        "Weights are zeroed after the softmax, so the rows no longer sum to one. Mask the scores, before the softmax."
    )
    assert not close(scores.softmax(-1) @ v), (
        "Nothing is masked: every token sees the future."
    )
    assert not close(scores.masked_fill(ones.triu(1).bool(), 0) @ v), (
        "The softmax is missing: the scores themselves are used as weights."
    )
    assert not close(_reference(q, k, v, scale=1.0)), (
        "The scale is missing: divide the scores by the square root of K."
    )
    assert not close(_reference(q, k, v, scale=1 / K)), (
        "The scores are divided by K. Their *variance* is K, so divide by its square root."
    )
    assert not close(_reference(q, k, v, scale=math.sqrt(K))), (
        "The scores are multiplied by the square root of K, which makes them larger still. Divide by it."
    )
    turned = (k @ q.T / math.sqrt(K)).masked_fill(
        ones.triu(1).bool(), -torch.inf
    ).softmax(-1) @ v
    assert not close(turned), (
        "Queries and keys have changed places: row t should hold q[t] with every key, so q @ k.T."
    )
    assert not close(_reference(q, k, v, scale=1 / math.sqrt(T))), (
        "The scores are divided by the square root of T, the number of tokens. It is the head size K that makes them large."
    )
    columns = scores.masked_fill(ones.triu(1).bool(), -torch.inf).softmax(0) @ v
    assert not close(columns), (
        "The softmax runs over the queries. Each *row* must sum to one: softmax(-1)."
    )

    # Two mistakes together are none of the above. What must hold for any correct answer finds the first of them.
    others = torch.randn(3, T, K, generator=generator)
    last = [
        torch.cat([x[:-1], other[-1:]])
        for x, other in zip((q, k, v), others, strict=True)
    ]  # only the last
    assert torch.allclose(
        fn(q, k, torch.cat([v[:1], others[2][1:]]))[0], out[0], atol=1e-5
    ), (
        "Row 0 should be v[0], since the first token sees only itself; yours moves when later values change. Look at the mask first: it lets the future in."
    )
    for name, wrong in (("k", k), ("q", q)):
        assert not torch.allclose(out[0], wrong[0], atol=1e-5), (
            f"Row 0 is {name}[0]; it should be v[0]. {name} has done its work in the scores: the weights average v."
        )
    assert torch.allclose(out[0], v[0], atol=1e-5), (
        "Row 0 should be v[0], since the first token sees only itself; yours has no later value in it, but its own weight is not one. Mask before the softmax, and let it run along each row."
    )
    moved = (fn(*last)[:-1] - out[:-1]).abs().amax(-1) > 1e-5
    assert not moved.any(), (
        f"Changing the last token moves row {int(moved.int().argmax())} as well, so the future counts there, in a weight or in what the weights are divided by. Hide all columns above the diagonal with -inf, before the softmax."
    )
    assert torch.allclose(
        fn(q, k, torch.ones_like(v)), torch.ones_like(v), atol=1e-5
    ), (
        "The weights of a row do not sum to one: with every value 1 the result should be 1. The softmax comes last, along each row, after the mask."
    )
    assert torch.allclose(
        fn(torch.cat([others[0][:-1], q[-1:]]), k, v)[-1], out[-1], atol=1e-5
    ), (
        "The last row moves when other tokens' queries change. Row t holds q[t] with every key and nothing else: q @ k.T, and a softmax along the row."
    )
    forgotten = torch.cat([others[2][:1], v[1:]])
    assert not torch.allclose(fn(q, k, forgotten)[-1], out[-1], atol=1e-6), (
        "The last row does not move when v[0] changes. The mask hides part of the past; only the future is to be hidden."
    )
    error = (out - _reference(q, k, v)).abs().max().item()
    assert error < 1e-5, (
        f"Each row sees its past, sums to one and uses its own query, but the values are off by up to {error:.3g}. Compare the scores of one row with the formula, by hand."
    )

    T, K = 4, 8
    q, k, v = torch.randn(3, T, K, generator=generator)
    try:
        same = torch.allclose(fn(q, k, v), _reference(q, k, v), atol=1e-5)
    except (IndexError, RuntimeError, ValueError):
        same = False
    assert same, (
        f"Right for (T, K) = (6, 16), wrong for {(T, K)}: a size is fixed in your function, or comes from outside it. Take both from q.shape."
    )
    kernel = ready_made(
        fn,
        q,
        k,
        v,
        names={"scaled_dot_product_attention", "multi_head_attention_forward"},
    )
    assert not kernel, (
        f"The values are right, but PyTorch's kernel did the work ({kernel}). Write the steps yourself: scores, mask, softmax, weights @ v."
    )
    return "Mask, scale, softmax and values all hold."


@exercise
def split_heads(fn: Callable[[Tensor, int], Tensor]) -> str:
    """Check a `split_heads(x (B, T, D), n_heads) -> (B, H, T, K)`."""
    B, T, H, K = 2, 5, 3, 4
    x = torch.arange(B * T * H * K).view(B, T, H * K)  # (B, T, D), every number once
    out = untouched(fn, x=x, n_heads=H)
    assert isinstance(out, Tensor), (
        f"It returned {type(out).__name__}; return the tensor (B, H, T, K)."
    )
    assert out.shape != (B, T, H, K), (
        f"The result has shape (B, T, H, K) = {tuple(out.shape)}. The heads are split, but H must come before T: swap those two axes."
    )
    assert out.shape != (B, H, K, T), (
        "The result has shape (B, H, K, T): the last two axes are swapped."
    )
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
def join_heads(fn: Callable[[Tensor], Tensor]) -> str:
    """Check a `join_heads(heads (B, H, T, K)) -> (B, T, D)`, which undoes `split_heads`."""
    B, T, H, K = 2, 5, 3, 4
    D = H * K
    x = torch.arange(B * T * D).view(B, T, D)  # every number once
    heads = (
        x.view(B, T, H, K).transpose(1, 2).contiguous()
    )  # (B, H, T, K), in memory as attention leaves it
    out = untouched(fn, heads=heads)
    assert isinstance(out, Tensor), (
        f"It returned {type(out).__name__}; return the tensor (B, T, D)."
    )
    assert out.shape != (B, T, H, K), (
        f"The result has shape (B, T, H, K) = {tuple(out.shape)}: H stands beside K, as it should; now make one axis D of the two."
    )
    assert out.shape == (B, T, D), (
        f"The result has shape {tuple(out.shape)}; (B, T, D) = {(B, T, D)} is expected."
    )
    assert not torch.equal(out, heads.reshape(B, T, D)), (
        "`reshape` alone mixes positions: a row of the result holds several tokens of one head, so the past would move when the last token changes. Swap H and T first: transpose(1, 2)."
    )
    for a, b, names in (
        (2, 3, "T and K"),
        (1, 3, "H and K"),
        (0, 1, "B and H"),
        (0, 2, "B and T"),
    ):
        assert not torch.equal(out, heads.transpose(a, b).reshape(B, T, D)), (
            f"You swap {names}, axes {a} and {b}. The axes to swap are H and T: transpose(1, 2) gives (B, T, H, K)."
        )
    assert not torch.equal(out, heads.permute(0, 2, 3, 1).reshape(B, T, D)), (
        "The channels of the heads are interleaved: one of each head in turn. Bring the axes to (B, T, H, K), with K last, then join H and K."
    )
    assert torch.equal(out.sort(-1).values, x), (
        f"Row 3 of text 1 should hold the {D} channels of that token, {x[1, 3, 0]} to {x[1, 3, -1]} here; it holds {out[1, 3].tolist()}."
    )
    assert torch.equal(out, x), (
        f"Each row holds its own token, but not in order: head h belongs in channels h*K to (h + 1)*K - 1. Row 0 should be {x[0, 0].tolist()}; it is {out[0, 0].tolist()}."
    )
    return (
        "Every token has its heads side by side again: split and joined, x comes back."
    )


@exercise
def window_mask(fn: Callable[[int, int], Tensor]) -> str:
    """Check a `window_mask(T, W)` of shape `(T, T)`."""
    T, W = 7, 3
    out = untouched(fn, T=T, W=W)
    assert isinstance(out, Tensor), (
        f"It returned {type(out).__name__}; return a boolean tensor (T, T)."
    )
    assert out.shape == (T, T), (
        f"The mask has shape {tuple(out.shape)}; (T, T) = {(T, T)} is expected."
    )
    assert out.dtype == torch.bool, (
        f"The mask holds {out.dtype}; return booleans, true where t may look at s."
    )
    assert not bool(out.triu(1).any()) or bool(out.tril(-1).any()), (
        "Row t looks ahead and never back: swap t and s."
    )
    inside = torch.tensor([[0 <= t - s < W for s in range(T)] for t in range(T)])
    assert not torch.equal(out, ~inside), (
        "The mask is inverted: it should be true where a token *may* look."
    )
    assert not bool(out.triu(1).any()), (
        "A token sees the future: demand t - s >= 0 as well."
    )
    assert bool(out.diagonal().all()), (
        "A token should see itself: t - s = 0 belongs to the window."
    )
    counts = out.sum(-1).tolist()
    assert counts != [min(t + 1, W + 1) for t in range(T)], (
        f"The window is one too wide: {W + 1} positions where W = {W} were asked. It includes t itself, so t - s < W."
    )
    assert counts != [t + 1 for t in range(T)], (
        "The window never ends: row t sees everything before it."
    )
    assert counts != [min(t + 1, W - 1) for t in range(T)], (
        f"The window is one too narrow: {W - 1} positions where W = {W} were asked. It includes t itself, so t - s < W."
    )
    wrong = (out != inside).any(-1).int().argmax()
    assert torch.equal(out, inside), (
        f"With W = {W} row {wrong} should see positions {inside[wrong].nonzero().flatten().tolist()}; yours sees {out[wrong].nonzero().flatten().tolist()}."
    )
    assert torch.equal(fn(5, 1), torch.eye(5, dtype=torch.bool)), (
        "With W = 1 each token should see itself and nothing else."
    )
    assert torch.equal(fn(4, 9), torch.ones(4, 4, dtype=torch.bool).tril()), (
        "A window longer than the text should be the plain causal mask."
    )
    return "No future, the token itself, and exactly W positions."
