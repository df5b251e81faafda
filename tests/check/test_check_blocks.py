"""The checks of blocks are themselves checked: each planted bug is caught with its own message."""

import math

import pytest
import torch.nn.functional as F

from course import check


def standard(x, axis=-1, correction=0, eps=1e-5):
    return (x - x.mean(axis, keepdim=True)) / (
        x.var(axis, keepdim=True, correction=correction) + eps
    ).sqrt()


def in_place(x, n1, a, n2, f):
    x += a(n1(x))
    return x + f(n2(x))


def post_norm(x, n1, a, n2, f):
    x = n1(x + a(x))
    return n2(x + f(x))


def reversed_order(x, n1, a, n2, f):
    x = x + f(n2(x))
    return x + a(n1(x))


def overwrites(x, n1, a, n2, f):
    x = n1(x)
    x = x + a(x)
    x = n2(x)
    return x + f(x)


def solution_block(x, n1, a, n2, f):
    x = x + a(n1(x))
    return x + f(n2(x))


def norm_in_place(x, g, b, eps=1e-5):
    x -= x.mean(-1, keepdim=True)
    return g * standard(x, eps=eps) + b


def stretch_in_place(x, g, b, eps=1e-5):
    g *= standard(x, eps=eps)[0, 0]
    return g


LAYER_NORM_BUGS = {
    "changed its input x in place": norm_in_place,
    "changed its input gamma in place": stretch_in_place,
    "added to the standard deviation": lambda x, g, b, eps=1e-5: (
        g
        * (x - x.mean(-1, keepdim=True))
        / (x.std(-1, keepdim=True, correction=0) + eps)
        + b
    ),
    "argument eps changes nothing": lambda x, g, b, eps=1e-5: g * standard(x) + b,
    "takes no eps": lambda x, g, b: g * standard(x) + b,
    "wrong for eps = 0.5": lambda x, g, b, eps=1e-5: (
        g
        * (x - x.mean(-1, keepdim=True))
        / x.var(-1, keepdim=True, correction=0).clamp(min=eps).sqrt()
        + b
    ),
    "Keep the axis with keepdim=True": lambda x, g, b: g * (x - x.mean(-1)) + b,
    "RMS norm": lambda x, g, b: (
        g * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() + b
    ),
    "changes when other tokens do": lambda x, g, b: (
        g * standard(x, 1, correction=1) + b
    ),  # wrong axis, D - 1
    "should have mean 0": lambda x, g, b: (
        g * x / x.std(-1, keepdim=True) + b
    ),  # no mean, D - 1
    "should have variance 1": lambda x, g, b: g * standard(x) * 2 + b,
    "sign is turned": lambda x, g, b: -g * standard(x) + b,
    "beta changes nothing, gamma does": lambda x, g, b: g * standard(x),
    "gamma changes nothing, beta does": lambda x, g, b: standard(x) + b,
    "gamma and beta have changed places": lambda x, g, b: (
        b * standard(x) + g if b.any() else standard(x)
    ),
    "x holds torch.float32": lambda x, g, b: g * standard(x.double()) + b,
    "PyTorch did the work (layer_norm)": lambda x, g, b, eps=1e-5: F.layer_norm(
        x, g.shape, g, b, eps
    ),
    "run over the tokens": lambda x, g, b: g * standard(x, 1) + b,
    "run over the batch": lambda x, g, b: g * standard(x, 0) + b,
    "tokens and channels together": lambda x, g, b: g * standard(x, (1, 2)) + b,
    "divided by D - 1": lambda x, g, b: g * standard(x, correction=1) + b,
    "divide by the variance": lambda x, g, b: (
        g
        * (x - x.mean(-1, keepdim=True))
        / (x.var(-1, keepdim=True, correction=0) + 1e-5)
        + b
    ),
    "nothing is divided": lambda x, g, b: g * (x - x.mean(-1, keepdim=True)) + b,
    "mean is not subtracted": lambda x, g, b: (
        g * x / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() + b
    ),
    "change nothing": lambda x, g, b: standard(x),
    "stretch first, then shift": lambda x, g, b: g * (standard(x) + b),
    "wrong for others": lambda x, g, b: (1 + g) * standard(x) / 2 + b,
    "gives nan": lambda x, g, b: g * standard(x, eps=0.0) + b,
    "of x's shape": lambda x, g, b: x.mean(-1),
    "off by up to": lambda x, g, b: g * standard(x).flip(-1) + b,
}
WIRING_BUGS = {
    "feed-forward network is missing": lambda x, n1, a, n2, f: x + a(n1(x)),
    "Attention is missing": lambda x, n1, a, n2, f: x + f(n2(x)),
    "Neither norm is used": lambda x, n1, a, n2, f: (y := x + a(x)) + f(y),
    "two sums starts from norm(x)": lambda x, n1, a, n2, f: (
        (y := n2(x + a(n1(x)))) + f(y)
    ),
    "norm_1 is used twice": lambda x, n1, a, n2, f: (y := x + a(n1(x))) + f(n1(y)),
    "attention is used twice": lambda x, n1, a, n2, f: (y := x + a(n1(x))) + a(n2(y)),
    "attention is called 0 times": lambda x, n1, a, n2, f: x,
    "attention should read norm_1(x)": lambda x, n1, a, n2, f: (
        (y := x + n1(a(x))) + f(n2(y))
    ),  # norm after and before
    "feed_forward should read": lambda x, n1, a, n2, f: x + f(n2(a(n1(x)))),
    "It is a plain sum": lambda x, n1, a, n2, f: x + (y := x + a(n1(x))) + f(n2(y)),
    "applied to the block's result": lambda x, n1, a, n2, f: n2(
        solution_block(x, n1, a, n2, f)
    ),
    "post-norm": post_norm,
    "no residual connection": lambda x, n1, a, n2, f: f(n2(a(n1(x)))),
    "first residual connection is missing": lambda x, n1, a, n2, f: (
        (y := a(n1(x))) + f(n2(y))
    ),
    "second residual connection is missing": lambda x, n1, a, n2, f: f(
        n2(x + a(n1(x)))
    ),
    "feed-forward network reads the stream without": lambda x, n1, a, n2, f: (
        (y := x + a(n1(x))) + f(y)
    ),
    "Attention reads the stream without": lambda x, n1, a, n2, f: (
        (y := x + a(x)) + f(n2(y))
    ),
    "Both parts read the same": lambda x, n1, a, n2, f: x + a(n1(x)) + f(n2(x)),
    "What attention added is lost": lambda x, n1, a, n2, f: x + f(n2(x + a(n1(x)))),
    "norm overwrites the stream": overwrites,
    "what each part writes": lambda x, n1, a, n2, f: (y := x + n1(a(x))) + n2(f(y)),
    "order is reversed": reversed_order,
    "norms are swapped": lambda x, n1, a, n2, f: (y := x + a(n2(x))) + f(n1(y)),
    "changed its input x in place": in_place,
    "of x's shape": lambda x, n1, a, n2, f: None,
    "off by up to": lambda x, n1, a, n2, f: 2 * solution_block(x, n1, a, n2, f),
}
DEPTH_BUGS = {
    "biases and norms": lambda budget, d: budget // (12 * d * d),
    "or the biases of attention": lambda budget, d: budget // (12 * d * d + 9 * d),
    "biases of the feed-forward network": lambda budget, d: (
        budget // (12 * d * d + 8 * d)
    ),
    "second norm": lambda budget, d: budget // (12 * d * d + 11 * d),
    "output matrix of attention": lambda budget, d: budget // (11 * d * d + 12 * d),
    "forgot the norms": lambda budget, d: budget // (12 * d * d + 9 * d),
    "forgot the biases": lambda budget, d: budget // (12 * d * d + 4 * d),
    "forgot attention": lambda budget, d: budget // (8 * d * d + 9 * d),
    "forgot the feed-forward": lambda budget, d: budget // (4 * d * d + 8 * d),
    "round down": lambda budget, d: math.ceil(budget / (12 * d * d + 13 * d)),
    "use //": lambda budget, d: budget / (12 * d * d + 13 * d),
    "you count about": lambda budget, d: budget // (24 * d * d + 13 * d),
    "pay for 10 blocks": lambda budget, d: (
        budget // (12 * d * d + 13 * d) - (10**5 < budget < 10**6)
    ),
    "At width 128": lambda budget, d: budget // (12 * 64 * 64 + 13 * 64),
    "pay for 100,000": lambda budget, d: (
        budget // (12 * d * d + 13 * d) + (budget > 10**9)
    ),
}
CASES = [(check.layer_norm, m, b) for m, b in LAYER_NORM_BUGS.items()]
CASES += [(check.block_wiring, m, b) for m, b in WIRING_BUGS.items()]
CASES += [(check.affordable_depth, m, b) for m, b in DEPTH_BUGS.items()]


@pytest.mark.parametrize(
    ("checked", "message", "bug"), CASES, ids=[message for _, message, _ in CASES]
)
def test_planted_bug_is_named(checked, message, bug):
    verdict = checked(bug)
    assert not verdict.passed
    assert message in verdict.message


SOLUTIONS = [
    (check.layer_norm, lambda x, g, b, eps=1e-5: g * standard(x, eps=eps) + b),
    (check.block_wiring, solution_block),
    (check.affordable_depth, lambda budget, d: budget // (12 * d**2 + 13 * d)),
]


@pytest.mark.parametrize(("checked", "solution"), SOLUTIONS)
def test_solution_passes_and_stub_is_told_apart(checked, solution):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert checked(solution).passed, checked(solution).message
    assert "still the stub" in checked(stub).message
