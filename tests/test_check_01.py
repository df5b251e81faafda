"""Chapter 1's checks are themselves checked: each planted bug is caught with its own message."""

import math

import pytest
import torch

from course import check


def scores(q, k):
    return q @ k.T / math.sqrt(q.size(-1))


def future(T, diagonal=1):
    return torch.ones(T, T, dtype=torch.bool).triu(diagonal)


def attention_solution(q, k, v):
    return scores(q, k).masked_fill(future(len(q)), -torch.inf).softmax(-1) @ v


ATTENTION_BUGS = {
    "wrong way round": lambda q, k, v: (
        scores(q, k).masked_fill(torch.ones(len(q), len(q)).tril(-1).bool(), -torch.inf).softmax(-1) @ v
    ),
    "cannot see itself": lambda q, k, v: scores(q, k).masked_fill(future(len(q), 0), -torch.inf).softmax(-1) @ v,
    "Mask with -inf": lambda q, k, v: scores(q, k).masked_fill(future(len(q)), 0).softmax(-1) @ v,
    "after the softmax": lambda q, k, v: scores(q, k).softmax(-1).masked_fill(future(len(q)), 0) @ v,
    "Nothing is masked": lambda q, k, v: scores(q, k).softmax(-1) @ v,
    "scale is missing": lambda q, k, v: (q @ k.T).masked_fill(future(len(q)), -torch.inf).softmax(-1) @ v,
    "divided by K": lambda q, k, v: (q @ k.T / q.size(-1)).masked_fill(future(len(q)), -torch.inf).softmax(-1) @ v,
    "softmax runs over the queries": lambda q, k, v: (
        scores(q, k).masked_fill(future(len(q)), -torch.inf).softmax(0) @ v
    ),
    "changed places": lambda q, k, v: scores(k, q).masked_fill(future(len(q)), -torch.inf).softmax(-1) @ v,
    "square root of T": lambda q, k, v: (
        (q @ k.T / math.sqrt(len(q))).masked_fill(future(len(q)), -torch.inf).softmax(-1) @ v
    ),
    "(T, K) = (6, 16) is expected": lambda q, k, v: scores(q, k).masked_fill(future(len(q)), -torch.inf).softmax(-1),
    "values are off": lambda q, k, v: scores(q, k).masked_fill(future(len(q)), -torch.inf).softmax(-1) @ k,
    "return the tensor (T, K)": lambda q, k, v: None,
}


def split_heads_solution(x, n_heads):
    B, T, D = x.shape
    return x.view(B, T, n_heads, D // n_heads).transpose(1, 2)


SPLIT_BUGS = {
    "cuts the *time* axis": lambda x, H: x.view(x.size(0), H, x.size(1), -1),
    "H must come before T": lambda x, H: x.view(x.size(0), x.size(1), H, -1),
    "last two axes are swapped": lambda x, H: split_heads_solution(x, H).transpose(-2, -1),
    "every H-th channel": lambda x, H: x.view(x.size(0), x.size(1), -1, H).permute(0, 3, 1, 2),
    "is expected": lambda x, H: x,
    "Head 2 of token 3": lambda x, H: split_heads_solution(x, H).flip(1),
    "lost or doubled": lambda x, H: torch.cat(
        [split_heads_solution(x, H)[:, 2:], split_heads_solution(x, H)[:, 2:], split_heads_solution(x, H)[:, 2:]], 1
    ),
    "return the tensor (B, H, T, K)": lambda x, H: list(x),
}


def distance(T):
    return torch.arange(T)[:, None] - torch.arange(T)[None, :]


WINDOW_BUGS = {
    "one too wide": lambda T, W: (distance(T) >= 0) & (distance(T) <= W),
    "sees the future": lambda T, W: distance(T).abs() < W,
    "should see itself": lambda T, W: (distance(T) > 0) & (distance(T) <= W),
    "inverted": lambda T, W: ~((distance(T) >= 0) & (distance(T) < W)),
    "swap t and s": lambda T, W: (distance(T) <= 0) & (distance(T) > -W),
    "never ends": lambda T, W: distance(T) >= 0,
    "return booleans": lambda T, W: ((distance(T) >= 0) & (distance(T) < W)).float(),
    "positions; yours see": lambda T, W: (distance(T) >= 0) & (distance(T) < W - 1),
    "(T, T) = (7, 7) is expected": lambda T, W: torch.ones(T, W, dtype=torch.bool),
    "plain causal mask": lambda T, W: (distance(T) >= 0) & (distance(T) < min(W, 3)),
}


def window_mask_solution(T, W):
    return (distance(T) >= 0) & (distance(T) < W)


CASES = [(check.attention, m, b) for m, b in ATTENTION_BUGS.items()]
CASES += [(check.split_heads, m, b) for m, b in SPLIT_BUGS.items()]
CASES += [(check.window_mask, m, b) for m, b in WINDOW_BUGS.items()]


@pytest.mark.parametrize(("checked", "message", "bug"), CASES, ids=[message for _, message, _ in CASES])
def test_planted_bug_is_named(checked, message, bug):
    verdict = checked(bug)
    assert not verdict.passed
    assert message in verdict.message


SOLUTIONS = [
    (check.attention, attention_solution),
    (check.split_heads, split_heads_solution),
    (check.window_mask, window_mask_solution),
]


@pytest.mark.parametrize(("checked", "solution"), SOLUTIONS)
def test_solution_passes_and_stub_is_told_apart(checked, solution):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert checked(solution).passed, checked(solution).message
    assert "still the stub" in checked(stub).message
