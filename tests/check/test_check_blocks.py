"""What the attempts and the switches of the checks of blocks do not prove."""

import pytest
import torch
import torch.nn.functional as F

from course import check
from course.check.blocks import LAYER_NORM, ONE, _norm
from slm.model.blocks import TransformerBlock


def layer_norm(x, g, b, eps=1e-5):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return g * (x - mean) / (variance + eps).sqrt() + b


def block(x, n1, a, n2, f):
    x = x + a(n1(x))
    return x + f(n2(x))


SOLUTIONS = [
    (check.layer_norm, layer_norm),
    (check.block_wiring, block),
    (check.affordable_depth, lambda budget, d: budget // (12 * d**2 + 13 * d)),
]


@pytest.mark.parametrize(("checked", "answer"), SOLUTIONS)
def test_solution_passes_and_stub_is_told_apart(checked, answer):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert checked(answer).passed, checked(answer).message
    assert "still the stub" in checked(stub).message


UNKNOWN = {
    "no fourth argument": (
        check.layer_norm,
        lambda x, gamma, beta: layer_norm(x, gamma, beta),
        "cannot be called as the exercise says",
    ),
    "gamma in place": (
        check.layer_norm,
        lambda x, g, b, eps=1e-5: g.mul_(1) * layer_norm(x, g.fill_(1), b, eps),
        "changed its input gamma in place",
    ),
    "twice the result": (
        check.layer_norm,
        lambda x, g, b, eps=1e-5: 2 * layer_norm(x, g, b, eps),
        "yours is [[[-2.138, -2.138, 2, 10.83]",
    ),
    "a wiring that nobody foresaw is told as a formula": (
        check.block_wiring,
        lambda x, n1, a, n2, f: x + 3 * a(n1(x)) - f(x),
        "Your block computes (x + attention(norm_1(x)) * 3) - feed_forward(x). It",
    ),
    "each norm twice": (
        check.block_wiring,
        lambda x, n1, a, n2, f: block(
            x, lambda y: n1(n1(y)), a, lambda y: n2(n2(y)), f
        ),
        "computes x + attention(norm_1(norm_1(x)))",
    ),
    "parts that are never called": (
        check.block_wiring,
        lambda x, n1, a, n2, f: torch.relu(a(n1(x))),
        "Your block never calls norm_2, feed_forward.",
    ),
    "the size of a block that the answers fit": (
        check.affordable_depth,
        lambda budget, d: budget // (17 * d * d),
        "fit a block of 1,088 to 1,089 parameters; it has 872",
    ),
    "the kind of the result": (
        check.affordable_depth,
        lambda budget, d: budget / (12 * d * d + 13 * d),
        "it should be a whole number, an int: use //",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_known_is_told_by_what_came(case):
    checked, answer, words = UNKNOWN[case]
    verdict = checked(answer)
    assert not verdict.passed
    assert words in verdict.message


def test_the_references_are_pytorchs_and_the_packages():
    for x, gamma, beta, *eps in LAYER_NORM.probes:
        theirs = F.layer_norm(x, gamma.shape, gamma, beta, *eps)
        torch.testing.assert_close(
            _norm(x, gamma, beta, *eps), theirs, rtol=1e-4, atol=1e-5
        )
    for width, size in ONE.items():
        built = TransformerBlock(width, 1, 4 * width)
        assert sum(p.numel() for p in built.parameters()) == size
