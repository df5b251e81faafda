"""Checks of chapter 2's exercises."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from course.check.verdict import exercise
from slm.blocks import TransformerBlock

Part = Callable[[Tensor], Tensor]


@exercise
def layer_norm(fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str:
    """Check a `layer_norm(x (B, T, D), gamma (D,), beta (D,))`."""
    generator = torch.Generator().manual_seed(2)
    B, T, D = 3, 4, 6
    x = torch.randn(B, T, D, generator=generator) * 3 + 1
    one, zero = torch.ones(D), torch.zeros(D)
    out = fn(x, one, zero)
    assert isinstance(out, Tensor) and out.shape == x.shape, (
        "The result should be a tensor of x's shape (B, T, D); keep the axis of the mean with keepdim=True."
    )

    def standard(axis: int | tuple[int, ...], correction: int = 0) -> Tensor:
        return (x - x.mean(axis, keepdim=True)) / (x.var(axis, keepdim=True, correction=correction) + 1e-5).sqrt()

    close = lambda other: torch.allclose(out, other, atol=1e-4)  # noqa: E731
    assert not close(standard(1)), (
        "Mean and variance run over the tokens. They should run over the channels of one token: dim -1."
    )
    assert not close(standard(0)), (
        "Mean and variance run over the batch, as in batch norm. They should run over the channels of one token: dim -1."
    )
    assert not close(standard((1, 2))), (
        "Mean and variance run over tokens and channels together. Each token has its own: dim -1 only."
    )
    assert not close(standard(-1, 1)), "The variance is divided by D - 1. Layer norm divides by D: correction=0."
    assert not close((x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5)), (
        "You divide by the variance; divide by its square root."
    )
    assert not close(x - x.mean(-1, keepdim=True)), (
        "The mean is removed but nothing is divided by the standard deviation."
    )
    assert not close(x / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()), "The mean is not subtracted."
    error = (out - standard(-1)).abs().max().item()
    assert error < 1e-4, (
        f"With gamma = 1 and beta = 0 the values are off by up to {error:.3g}. Compare one token with the formula, by hand."
    )

    gamma, beta = torch.randn(D, generator=generator), torch.randn(D, generator=generator)
    stretched = fn(x, gamma, beta)
    assert not torch.allclose(stretched, out), (
        "gamma and beta change nothing: multiply by gamma and add beta at the end."
    )
    assert not torch.allclose(stretched, gamma * (standard(-1) + beta), atol=1e-4), (
        "beta is multiplied by gamma as well: stretch first, then shift."
    )
    assert torch.allclose(stretched, F.layer_norm(x, (D,), gamma, beta), atol=1e-4), (
        "Right for gamma = 1 and beta = 0, wrong for others: gamma * normalised + beta."
    )
    assert not fn(torch.ones(1, 1, D), one, zero).isnan().any(), (
        "A token whose channels are all equal gives nan: 0/0. That is what eps is for, under the square root."
    )
    return "Axis, variance, eps, stretch and shift all hold."


@exercise
def block_wiring(fn: Callable[[Tensor, Part, Part, Part, Part], Tensor]) -> str:
    """Check a `block(x, norm_1, attention, norm_2, feed_forward)`."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        block = TransformerBlock(16, 2, 64).eval()
        n1, a, n2, f = block.norm_1, block.attention, block.norm_2, block.feed_forward
        for norm in (n1, n2):  # two norms that differ, so that a swap shows
            torch.nn.init.normal_(norm.weight)
            torch.nn.init.normal_(norm.bias)
        x = torch.randn(2, 5, 16)
    with torch.no_grad():
        kept = x.clone()
        out = fn(x, n1, a, n2, f)
        assert isinstance(out, Tensor) and out.shape == x.shape, (
            "The result should be the stream, a tensor of x's shape (B, T, D)."
        )
        assert torch.equal(x, kept), (
            "Your block changed its input in place (+=). Write x = x + …, so that whoever holds x still has it."
        )
        close = lambda other: torch.allclose(out, other, atol=1e-5)  # noqa: E731
        mid = x + a(n1(x))
        post = n1(x + a(x))
        assert not close(n2(post + f(post))), (
            "That is post-norm: the norm sits on the stream, after the addition. Normalise what each part *reads*."
        )
        assert not close(f(n2(a(n1(x))))), (
            "There is no residual connection: each part should add to the stream, x + part(norm(x))."
        )
        assert not close(a(n1(x)) + f(n2(a(n1(x))))), (
            "The first residual connection is missing: x + attention(norm_1(x))."
        )
        assert not close(f(n2(mid))), (
            "The second residual connection is missing: add the stream to the feed-forward network's output."
        )
        normed = n1(x) + a(n1(x))
        assert not close(n2(normed) + f(n2(normed))), (
            "The norm overwrites the stream (x = norm(x)). Normalise a copy for each part to read; x itself stays as it is."
        )
        after = x + n1(a(x))
        assert not close(after + n2(f(after))), (
            "The norm is applied to what each part writes. It belongs to what the part reads: part(norm(x))."
        )
        assert not close(mid + f(mid)), "The feed-forward network reads the stream without its norm."
        assert not close(x + a(x) + f(n2(x + a(x)))), "Attention reads the stream without its norm."
        assert not close(x + a(n1(x)) + f(n2(x))), (
            "Both parts read the same x. The feed-forward network should see what attention has added."
        )
        assert not close(x + f(n2(mid))), "What attention added is lost: the second sum starts from the old x."
        assert not close((y := x + f(n2(x))) + a(n1(y))), (
            "The order is reversed: gather first (attention), then think (feed-forward)."
        )
        swapped = x + a(n2(x))
        assert not close(swapped + f(n1(swapped))), "The two norms are swapped."
        error = (out - (mid + f(n2(mid)))).abs().max().item()
        assert error < 1e-5, (
            f"The output is off by up to {error:.3g}. There should be two lines: x = x + attention(norm_1(x)), then the same with the other pair."
        )
    return "Both parts read a normalised copy and add to the stream, in the right order."


@exercise
def affordable_depth(fn: Callable[[int, int], int]) -> str:
    """Check a `depth(budget, d_model)`."""
    D = 64
    one = sum(p.numel() for p in TransformerBlock(D, 4, 4 * D).parameters())
    answer = fn(10 * one, D)
    assert isinstance(answer, int), f"It returned {type(answer).__name__}; whole blocks are an int: use //."
    wide = 100_000 * one
    for what, per_block in (
        ("biases and norms", 12 * D * D),
        ("norms (2 × 2D)", 12 * D * D + 9 * D),
        ("biases (9D)", 12 * D * D + 4 * D),
    ):
        assert fn(wide, D) != wide // per_block, (
            f"You forgot the {what}: a block of width {D} has {one:,} parameters, you count {per_block:,}."
        )
    assert fn(wide, D) != wide // (8 * D * D + 5 * D + 4 * D), "You forgot attention."
    assert fn(wide, D) != wide // (4 * D * D + 4 * D + 4 * D), "You forgot the feed-forward network."
    counted = wide / max(1, fn(wide, D))
    assert abs(counted - one) < 1, (
        f"A block of width {D} has {one:,} parameters; you count about {counted:,.0f}. Go through its parts: four D × D "
        "matrices in attention, two D × 4D in the feed-forward network, a bias for each, two norms of 2D."
    )
    assert fn(one - 1, D) == 0, (
        f"A budget of {one - 1:,} does not pay for a block of {one:,}, but you return {fn(one - 1, D)}: round down."
    )
    assert answer == 10, f"{10 * one:,} parameters pay for 10 blocks of {one:,}; you return {answer}."
    assert fn(wide, D) == 100_000, (
        f"{wide:,} parameters pay for 100,000 blocks of width {D}; you return {fn(wide, D):,}."
    )
    wider = sum(p.numel() for p in TransformerBlock(128, 4, 512).parameters())
    assert fn(3 * wider, 128) == 3, (
        f"At width 128 a block has {wider:,} parameters; you return {fn(3 * wider, 128)} blocks for three times that."
    )
    return "Matrices, biases and norms are all counted."
