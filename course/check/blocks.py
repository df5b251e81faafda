"""Checks of the exercises of blocks."""

import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from course.check.verdict import exercise, ready_made, untouched
from slm.model.blocks import TransformerBlock

Part = Callable[[Tensor], Tensor]


@exercise
def layer_norm(fn: Callable[..., Tensor]) -> str:
    """Check a `layer_norm(x (B, T, D), gamma (D,), beta (D,), eps)`."""
    generator = torch.Generator().manual_seed(2)
    B, T, D = 3, 4, 6
    x = torch.randn(B, T, D, generator=generator) * 3 + 1
    one, zero = torch.ones(D), torch.zeros(D)
    try:
        out = untouched(fn, x=x, gamma=one, beta=zero)
    except RuntimeError as raised:
        assert "must match the size" not in str(raised), (
            "Two shapes do not fit: the mean over the channels of (B, T, D) is (B, T), and only (B, T, 1) lines up with x. Keep the axis with keepdim=True."
        )
        raise
    assert isinstance(out, Tensor) and out.shape == x.shape, (
        "The result should be a tensor of x's shape (B, T, D); keep the axis of the mean with keepdim=True."
    )
    assert out.dtype == x.dtype, (
        f"The result holds {out.dtype}; x holds {x.dtype}, and so should it."
    )

    def standard(axis: int | tuple[int, ...], correction: int = 0) -> Tensor:
        return (x - x.mean(axis, keepdim=True)) / (
            x.var(axis, keepdim=True, correction=correction) + 1e-5
        ).sqrt()

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
    assert not close(standard(-1, 1)), (
        "The variance is divided by D - 1. Layer norm divides by D: correction=0."
    )
    assert not close(
        (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5)
    ), "You divide by the variance; divide by its square root."
    assert not close(x - x.mean(-1, keepdim=True)), (
        "The mean is removed but nothing is divided by the standard deviation."
    )
    assert not close(x / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()), (
        "The mean is not subtracted."
    )
    assert not close(x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()), (
        "That is RMS norm: it divides by the root of the mean square and subtracts no mean. Layer norm does."
    )

    # Two mistakes together are none of the above. What must hold for any correct answer finds the first of them.
    elsewhere = torch.cat(
        [x[:, :1], x.roll(1, 0)[:, 1:]], 1
    )  # token 0 of each text as it was, the others changed
    alone = torch.allclose(fn(elsewhere, one, zero)[:, 0], out[:, 0], atol=1e-4)
    alone &= torch.allclose(fn(x[:1], one, zero), out[:1], atol=1e-4)
    assert alone, (
        "A token's result changes when other tokens do. Mean and variance run over the channels of one token: dim -1."
    )
    means, variances = out.mean(-1), out.var(-1, correction=0)
    assert torch.allclose(means, torch.zeros(B, T), atol=1e-4), (
        f"With gamma = 1 and beta = 0 the channels of a token should have mean 0; those of token 0 have {means[0, 0]:.3g}. Subtract the token's mean."
    )
    assert torch.allclose(variances, torch.ones(B, T), atol=1e-3), (
        f"With gamma = 1 and beta = 0 the channels of a token should have variance 1; those of token 0 have {variances[0, 0]:.3g}. Divide by the square root of the mean of (x - mean)², over D."
    )
    assert not close(-standard(-1)), (
        "The sign is turned: subtract the mean from x, not x from the mean."
    )
    error = (out - standard(-1)).abs().max().item()
    assert error < 1e-4, (
        f"With gamma = 1 and beta = 0 the values are off by up to {error:.3g}. Compare one token with the formula, by hand."
    )

    gamma, beta = (
        torch.randn(D, generator=generator),
        torch.randn(D, generator=generator),
    )
    stretched = untouched(fn, x=x, gamma=gamma, beta=beta)
    assert not torch.allclose(stretched, out), (
        "gamma and beta change nothing: multiply by gamma and add beta at the end."
    )
    for kept, changed, result in (
        ("gamma", "beta", gamma * standard(-1)),
        ("beta", "gamma", standard(-1) + beta),
    ):
        assert not torch.allclose(stretched, result, atol=1e-4), (
            f"{changed} changes nothing, {kept} does: multiply by gamma, then add beta."
        )
    assert not torch.allclose(stretched, beta * standard(-1) + gamma, atol=1e-4), (
        "gamma and beta have changed places: multiply by gamma, add beta."
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

    try:
        inspect.signature(fn).bind(x, one, zero, 0.5)
    except TypeError:
        raise AssertionError(
            "Your function takes no eps. Keep it as the fourth argument, eps=1e-5."
        ) from None
    small = x * 1e-3
    centred = small - small.mean(-1, keepdim=True)
    variance = small.var(-1, keepdim=True, correction=0)
    with_eps = untouched(fn, x=small, gamma=one, beta=zero, eps=0.5)
    assert not torch.allclose(
        with_eps, centred / (variance.sqrt() + 0.5), rtol=1e-3, atol=1e-6
    ), (
        "eps is added to the standard deviation. It belongs under the square root, beside the variance: sqrt(variance + eps)."
    )
    assert not torch.allclose(with_eps, fn(small, one, zero), rtol=1e-3, atol=1e-6), (
        "The argument eps changes nothing: the function uses a number of its own. Add the eps that it is given."
    )
    right = F.layer_norm(small, (D,), eps=0.5)
    assert torch.allclose(with_eps, right, rtol=1e-3, atol=1e-6) and torch.allclose(
        fn(x, one, zero, 0.5), F.layer_norm(x, (D,), eps=0.5), atol=1e-4
    ), "Right for eps = 1e-5, wrong for eps = 0.5: divide by sqrt(variance + eps)."
    name = ready_made(fn, x, gamma, beta, names={"layer_norm", "native_layer_norm"})
    assert not name, (
        f"The values are right, but PyTorch did the work ({name}). Write it from means and variances."
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
        out = untouched(lambda x: fn(x, n1, a, n2, f), x=x)
        assert isinstance(out, Tensor) and out.shape == x.shape, (
            "The result should be the stream, a tensor of x's shape (B, T, D)."
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
        assert not close(mid + f(mid)), (
            "The feed-forward network reads the stream without its norm."
        )
        assert not close(x + a(x) + f(n2(x + a(x)))), (
            "Attention reads the stream without its norm."
        )
        assert not close(x + a(n1(x)) + f(n2(x))), (
            "Both parts read the same x. The feed-forward network should see what attention has added."
        )
        assert not close(x + f(n2(mid))), (
            "What attention added is lost: the second sum starts from the old x."
        )
        assert not close((y := x + f(n2(x))) + a(n1(y))), (
            "The order is reversed: gather first (attention), then think (feed-forward)."
        )
        assert not close(mid), (
            "The feed-forward network is missing: attention has added, and then the block ends."
        )
        assert not close(x + f(n2(x))), (
            "Attention is missing: the stream goes to the feed-forward network at once."
        )
        assert not close((y := x + a(x)) + f(y)), (
            "Neither norm is used: each part should read a normalised copy, part(norm(x))."
        )
        once = n1(x)
        second, first = n2(mid), once + a(once)
        assert not close(second + f(second)) and not close(first + f(n2(first))), (
            "One of the two sums starts from norm(x). Add to the stream itself, x + part(norm(x)), in both."
        )
        assert not close(mid + f(n1(mid))), "norm_1 is used twice and norm_2 never."
        assert not close(mid + a(n2(mid))), (
            "attention is used twice and the feed-forward network never."
        )
        assert not close(n2(mid + f(n2(mid)))) and not close(n1(mid + f(n2(mid)))), (
            "A norm is applied to the block's result. The stream leaves the block as the sum, without one."
        )
        swapped = x + a(n2(x))
        assert not close(swapped + f(n1(swapped))), "The two norms are swapped."
        read: dict[str, list[Tensor]] = {
            "attention": [],
            "feed_forward": [],
        }  # what each part was called with

        def watched(name: str, part: Part) -> Part:
            def noted(y: Tensor) -> Tensor:
                read[name].append(y.clone())
                return part(y)

            return noted

        fn(x, n1, watched("attention", a), n2, watched("feed_forward", f))
        for name, wanted, words in (
            ("attention", n1(x), "norm_1(x)"),
            ("feed_forward", n2(mid), "norm_2 of x + attention(norm_1(x))"),
        ):
            assert len(read[name]) == 1, (
                f"{name} is called {len(read[name])} times; once is expected."
            )
            assert torch.allclose(read[name][0], wanted, atol=1e-5), (
                f"{name} should read {words}; it reads something else. Two lines are enough: x = x + attention(norm_1(x)), then the same with the other pair."
            )
        error = (out - (mid + f(n2(mid)))).abs().max().item()
        assert error < 1e-5, (
            f"Both parts read what they should, but the output is off by up to {error:.3g}. It is a plain sum: x, plus what attention writes, plus what the feed-forward network writes."
        )
    return (
        "Both parts read a normalised copy and add to the stream, in the right order."
    )


@exercise
def affordable_depth(fn: Callable[[int, int], int]) -> str:
    """Check a `depth(budget, d_model)`."""
    D = 64
    one = sum(p.numel() for p in TransformerBlock(D, 4, 4 * D).parameters())
    answer = untouched(fn, budget=10 * one, d_model=D)
    assert isinstance(answer, int), (
        f"It returned {type(answer).__name__}; whole blocks are an int: use //."
    )
    wide = 100_000 * one
    for what, per_block in (
        ("biases and norms (13D in all)", 12 * D * D),
        ("norms (2 × 2D), or the biases of attention (3D + D)", 12 * D * D + 9 * D),
        ("biases of the feed-forward network (4D + D)", 12 * D * D + 8 * D),
        ("second norm (2D)", 12 * D * D + 11 * D),
        ("biases (9D)", 12 * D * D + 4 * D),
        ("output matrix of attention (D × D + D)", 11 * D * D + 12 * D),
    ):
        assert fn(wide, D) != wide // per_block, (
            f"You forgot the {what}: a block of width {D} has {one:,} parameters, you count {per_block:,}."
        )
    assert fn(wide, D) != wide // (8 * D * D + 5 * D + 4 * D), "You forgot attention."
    assert fn(wide, D) != wide // (4 * D * D + 4 * D + 4 * D), (
        "You forgot the feed-forward network."
    )
    counted = wide / max(1, fn(wide, D))
    assert abs(counted - one) < 1, (
        f"A block of width {D} has {one:,} parameters; you count about {counted:,.0f}. Go through its parts: four D × D "
        "matrices in attention, two D × 4D in the feed-forward network, a bias for each, two norms of 2D."
    )
    assert fn(one - 1, D) == 0, (
        f"A budget of {one - 1:,} does not pay for a block of {one:,}, but you return {fn(one - 1, D)}: round down."
    )
    assert answer == 10, (
        f"{10 * one:,} parameters pay for 10 blocks of {one:,}; you return {answer}."
    )
    assert fn(wide, D) == 100_000, (
        f"{wide:,} parameters pay for 100,000 blocks of width {D}; you return {fn(wide, D):,}."
    )
    wider = sum(p.numel() for p in TransformerBlock(128, 4, 512).parameters())
    assert fn(3 * wider, 128) == 3, (
        f"At width 128 a block has {wider:,} parameters; you return {fn(3 * wider, 128)} blocks for three times that."
    )
    return "Matrices, biases and norms are all counted."
