"""Chapter 2's checks are themselves checked: each planted bug is caught with its own message."""

import math

import pytest

from course import check


def standard(x, axis=-1, correction=0, eps=1e-5):
    return (x - x.mean(axis, keepdim=True)) / (x.var(axis, keepdim=True, correction=correction) + eps).sqrt()


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


LAYER_NORM_BUGS = {
    "run over the tokens": lambda x, g, b: g * standard(x, 1) + b,
    "run over the batch": lambda x, g, b: g * standard(x, 0) + b,
    "tokens and channels together": lambda x, g, b: g * standard(x, (1, 2)) + b,
    "divided by D - 1": lambda x, g, b: g * standard(x, correction=1) + b,
    "divide by the variance": lambda x, g, b: (
        g * (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5) + b
    ),
    "nothing is divided": lambda x, g, b: g * (x - x.mean(-1, keepdim=True)) + b,
    "mean is not subtracted": lambda x, g, b: g * x / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() + b,
    "change nothing": lambda x, g, b: standard(x),
    "stretch first, then shift": lambda x, g, b: g * (standard(x) + b),
    "wrong for others": lambda x, g, b: (1 + g) * standard(x) / 2 + b,
    "gives nan": lambda x, g, b: g * standard(x, eps=0.0) + b,
    "of x's shape": lambda x, g, b: x.mean(-1),
    "off by up to": lambda x, g, b: g * standard(x) * 2 + b,
}
WIRING_BUGS = {
    "post-norm": post_norm,
    "no residual connection": lambda x, n1, a, n2, f: f(n2(a(n1(x)))),
    "first residual connection is missing": lambda x, n1, a, n2, f: (y := a(n1(x))) + f(n2(y)),
    "second residual connection is missing": lambda x, n1, a, n2, f: f(n2(x + a(n1(x)))),
    "feed-forward network reads the stream without": lambda x, n1, a, n2, f: (y := x + a(n1(x))) + f(y),
    "Attention reads the stream without": lambda x, n1, a, n2, f: (y := x + a(x)) + f(n2(y)),
    "Both parts read the same": lambda x, n1, a, n2, f: x + a(n1(x)) + f(n2(x)),
    "What attention added is lost": lambda x, n1, a, n2, f: x + f(n2(x + a(n1(x)))),
    "norm overwrites the stream": overwrites,
    "what each part writes": lambda x, n1, a, n2, f: (y := x + n1(a(x))) + n2(f(y)),
    "order is reversed": reversed_order,
    "norms are swapped": lambda x, n1, a, n2, f: (y := x + a(n2(x))) + f(n1(y)),
    "in place": in_place,
    "of x's shape": lambda x, n1, a, n2, f: None,
    "off by up to": lambda x, n1, a, n2, f: 2 * solution_block(x, n1, a, n2, f),
}
DEPTH_BUGS = {
    "biases and norms": lambda budget, d: budget // (12 * d * d),
    "forgot the norms": lambda budget, d: budget // (12 * d * d + 9 * d),
    "forgot the biases": lambda budget, d: budget // (12 * d * d + 4 * d),
    "forgot attention": lambda budget, d: budget // (8 * d * d + 9 * d),
    "forgot the feed-forward": lambda budget, d: budget // (4 * d * d + 8 * d),
    "round down": lambda budget, d: math.ceil(budget / (12 * d * d + 13 * d)),
    "use //": lambda budget, d: budget / (12 * d * d + 13 * d),
    "you count about": lambda budget, d: budget // (24 * d * d + 13 * d),
    "pay for 10 blocks": lambda budget, d: budget // (12 * d * d + 13 * d) - (10**5 < budget < 10**6),
    "At width 128": lambda budget, d: budget // (12 * 64 * 64 + 13 * 64),
    "pay for 100,000": lambda budget, d: budget // (12 * d * d + 13 * d) + (budget > 10**9),
}
CASES = [(check.layer_norm, m, b) for m, b in LAYER_NORM_BUGS.items()]
CASES += [(check.block_wiring, m, b) for m, b in WIRING_BUGS.items()]
CASES += [(check.affordable_depth, m, b) for m, b in DEPTH_BUGS.items()]


@pytest.mark.parametrize(("checked", "message", "bug"), CASES, ids=[message for _, message, _ in CASES])
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
