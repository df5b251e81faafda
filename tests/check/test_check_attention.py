"""What the attempts and the switches of the checks of attention do not prove."""

import math

import pytest
import torch
import torch.nn.functional as F

from course import check
from course.check.attention import ATTENTION, CAUSAL, _attention


def scores(q, k):
    return q @ k.T / math.sqrt(q.size(-1))


def future(T):
    return torch.ones(T, T, dtype=torch.bool).triu(1)


def solution(q, k, v):
    return scores(q, k).masked_fill(future(len(q)), -torch.inf).softmax(-1) @ v


def split_heads(x, n_heads):
    B, T, D = x.shape
    return x.view(B, T, n_heads, D // n_heads).transpose(1, 2)


def join_heads(heads):
    B, H, T, K = heads.shape
    return heads.transpose(1, 2).reshape(B, T, H * K)


def window_mask(T, W):
    distance = torch.arange(T)[:, None] - torch.arange(T)[None, :]
    return (distance >= 0) & (distance < W)


SOLUTIONS = [
    (check.causal_attention, solution),
    (check.split_heads, split_heads),
    (check.join_heads, join_heads),
    (check.window_mask, window_mask),
]


@pytest.mark.parametrize(("checked", "answer"), SOLUTIONS)
def test_solution_passes_and_stub_is_told_apart(checked, answer):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert checked(answer).passed, checked(answer).message
    assert "still the stub" in checked(stub).message
    assert "without calling it" in checked(torch.zeros(6, 16)).message


@pytest.mark.parametrize(
    "hide", [lambda z, f: z - 1e9 * f, lambda z, f: torch.where(f, -torch.inf, z)]
)
def test_other_ways_to_mask_are_right_too(hide):
    """A check compares results, not the way to them."""

    def answer(q, k, v):
        return hide(scores(q, k), future(len(q))).softmax(-1) @ v

    assert check.causal_attention(answer).passed, check.causal_attention(answer).message


def test_loops_are_recognised_as_right():
    def answer(q, k, v):
        rows = [
            (q[t] @ k[: t + 1].T / math.sqrt(q.size(1))).softmax(0) @ v[: t + 1]
            for t in range(len(q))
        ]
        return torch.stack(rows)

    assert check.causal_attention(answer).passed, check.causal_attention(answer).message


def test_two_mistakes_at_once_are_both_named():
    both = frozenset(["by K", "one ahead"])
    said = check.causal_attention(lambda q, k, v: _attention(q, k, v, both)).message
    assert ATTENTION["by K"] in said and ATTENTION["one ahead"] in said


UNKNOWN = {
    "an unknown scale is told by the smallest example": (
        check.causal_attention,
        lambda q, k, v: solution(q / 3, k, v),
        "For q = [[1, 0], [0, 2], [2, 1]]",
    ),
    "the type of the result": (
        check.causal_attention,
        lambda q, k, v: solution(q, k, v).double(),
        "holds torch.float64; it should hold torch.float32",
    ),
    "heads in place": (
        check.join_heads,
        lambda heads: heads.transpose_(1, 2).flatten(2),
        "changed its input heads in place",
    ),
    "a number of heads for all": (
        check.split_heads,
        lambda x, n_heads: split_heads(x, 2),
        "the same for n_heads = 2 and for n_heads = 4",
    ),
    "a mask of one row too many": (
        check.window_mask,
        lambda T, W: window_mask(T + 1, W),
        "result has the shape (5, 5)",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_known_is_told_by_what_came(case):
    checked, answer, words = UNKNOWN[case]
    verdict = checked(answer)
    assert not verdict.passed
    assert words in verdict.message


def test_the_kernel_is_itself_again_after_the_check():
    before = F.scaled_dot_product_attention
    assert not check.causal_attention(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    ).passed
    assert F.scaled_dot_product_attention is before


def test_the_reference_is_pytorchs():
    for q, k, v in CAUSAL.probes:
        fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.testing.assert_close(_attention(q, k, v), fused)
