"""The checks of attention are themselves checked: each planted bug is caught with its own message."""

import math

import pytest
import torch
import torch.nn.functional as F

from course import check


def scores(q, k):
    return q @ k.T / math.sqrt(q.size(-1))


def future(T, diagonal=1):
    return torch.ones(T, T, dtype=torch.bool).triu(diagonal)


def attention_solution(q, k, v):
    return scores(q, k).masked_fill(future(len(q)), -torch.inf).softmax(-1) @ v


def attention(q, k, v, *, scale=None, hidden=None, axis=-1):
    """The solution with its choices open, for bugs that come in pairs."""
    z = q @ k.T * (1 / math.sqrt(q.size(-1)) if scale is None else scale)
    return (
        z.masked_fill(future(len(q)) if hidden is None else hidden, -torch.inf).softmax(
            axis
        )
        @ v
    )


def own_assert(q, k, v):
    if q.dim() != 3:
        raise AssertionError  # what a bare assert raises outside pytest, which would give it a message
    return attention(q, k, v)


def past(T):
    return torch.ones(T, T).tril(-1).bool()


def attention_in_place(q, k, v):
    q /= math.sqrt(q.size(-1))
    return attention(q, k, v, scale=1)


def divided_again(q, k, v):
    return attention(q, k, v) / torch.arange(1, len(q) + 1)[:, None]


def short_memory(q, k, v):
    return attention(
        q, k, v, hidden=future(len(q)) | torch.ones(len(q), len(q)).tril(-3).bool()
    )


ATTENTION_BUGS = {
    "Every entry is nan": lambda q, k, v: (
        (scores(q, k) + torch.ones(len(q), len(q)).triu(1) * -torch.inf).softmax(-1) @ v
    ),
    "changed its input q in place": attention_in_place,
    "mask is inverted": lambda q, k, v: attention(q, k, v, hidden=~future(len(q))),
    "one position ahead": lambda q, k, v: attention(q, k, v, hidden=future(len(q), 2)),
    "softmax is missing": lambda q, k, v: scores(q, k).tril() @ v,
    "multiplied by the square root of K": lambda q, k, v: attention(
        q, k, v, scale=math.sqrt(q.size(-1))
    ),
    "lets the future in": lambda q, k, v: attention(
        q, k, v, scale=1, hidden=past(len(q))
    ),  # no scale, mask turned
    "Look at the mask first": lambda q, k, v: attention(
        q, k, v, axis=0, hidden=past(len(q))
    ),  # wrong axis, mask turned
    "weight is not one": lambda q, k, v: attention(
        q, k, v, scale=1, axis=0
    ),  # no scale, wrong axis
    "Row 0 is k[0]": lambda q, k, v: attention(q, k, k, scale=1),
    "Row 0 is q[0]": lambda q, k, v: attention(q, k, q),
    "Rows [0, 1, 2, 3, 4] are nan": lambda q, k, v: (
        scores(q, k).masked_fill(future(len(q)), torch.inf).softmax(-1) @ v
    ),
    "moves row 4": lambda q, k, v: attention(
        q,
        k,
        v,
        scale=1,
        hidden=future(len(q), 2) | future(len(q)) & (torch.arange(len(q)) < 5),
    ),
    "do not sum to one": divided_again,
    "Row t holds q[t]": lambda q, k, v: attention(
        k, q, v, scale=1
    ),  # no scale, queries and keys swapped
    "hides part of the past": short_memory,
    "q, k and v hold torch.float32": lambda q, k, v: attention(
        q.double(), k.double(), v.double()
    ),
    "a size is fixed": lambda q, k, v: attention(q, k, v, scale=1 / 4),
    "kernel did the work (scaled_dot_product_attention)": lambda q, k, v: (
        F.scaled_dot_product_attention(q, k, v, is_causal=True)
    ),
    "An assert of your own fails": own_assert,
    "without calling it": torch.zeros(6, 16),
    "wrong way round": lambda q, k, v: (
        scores(q, k)
        .masked_fill(torch.ones(len(q), len(q)).tril(-1).bool(), -torch.inf)
        .softmax(-1)
        @ v
    ),
    "cannot see itself": lambda q, k, v: (
        scores(q, k).masked_fill(future(len(q), 0), -torch.inf).softmax(-1) @ v
    ),
    "Mask with -inf": lambda q, k, v: (
        scores(q, k).masked_fill(future(len(q)), 0).softmax(-1) @ v
    ),
    "after the softmax": lambda q, k, v: (
        scores(q, k).softmax(-1).masked_fill(future(len(q)), 0) @ v
    ),
    "Nothing is masked": lambda q, k, v: scores(q, k).softmax(-1) @ v,
    "scale is missing": lambda q, k, v: (
        (q @ k.T).masked_fill(future(len(q)), -torch.inf).softmax(-1) @ v
    ),
    "divided by K": lambda q, k, v: (
        (q @ k.T / q.size(-1)).masked_fill(future(len(q)), -torch.inf).softmax(-1) @ v
    ),
    "softmax runs over the queries": lambda q, k, v: (
        scores(q, k).masked_fill(future(len(q)), -torch.inf).softmax(0) @ v
    ),
    "changed places": lambda q, k, v: (
        scores(k, q).masked_fill(future(len(q)), -torch.inf).softmax(-1) @ v
    ),
    "square root of T": lambda q, k, v: (
        (q @ k.T / math.sqrt(len(q)))
        .masked_fill(future(len(q)), -torch.inf)
        .softmax(-1)
        @ v
    ),
    "(T, K) = (6, 16) is expected": lambda q, k, v: (
        scores(q, k).masked_fill(future(len(q)), -torch.inf).softmax(-1)
    ),
    "values are off": lambda q, k, v: attention(q, k, v, scale=0.5),
    "return the tensor (T, K)": lambda q, k, v: None,
}


def split_heads_solution(x, n_heads):
    B, T, D = x.shape
    return x.view(B, T, n_heads, D // n_heads).transpose(1, 2)


def join_heads_solution(heads):
    B, H, T, K = heads.shape
    return heads.transpose(1, 2).reshape(B, T, H * K)


def joined_in_place(heads):
    heads.transpose_(1, 2)
    return heads.flatten(2)


JOIN_BUGS = {
    "mixes positions": lambda x: x.reshape(x.size(0), x.size(2), -1),
    "You swap T and K": lambda x: x.transpose(2, 3).reshape(x.size(0), x.size(2), -1),
    "You swap H and K": lambda x: x.transpose(1, 3).reshape(x.size(0), x.size(2), -1),
    "You swap B and H": lambda x: x.transpose(0, 1).reshape(x.size(0), x.size(2), -1),
    "You swap B and T": lambda x: x.transpose(0, 2).reshape(x.size(0), x.size(2), -1),
    "make one axis D of the two": lambda x: x.transpose(1, 2),
    "(B, T, D) = (2, 5, 12) is expected": lambda x: x.flatten(1, 2),
    "has shape (2, 5, 4); (B, T, D)": lambda x: x.sum(1),
    "interleaved": lambda x: x.permute(0, 2, 3, 1).flatten(2),
    "It returned NoneType; return the tensor (B, T, D)": lambda x: None,
    "but not in order": lambda x: join_heads_solution(x.flip(1)),
    "Row 3 of text 1": lambda x: join_heads_solution(x.flip(2)),
    "Use .reshape(...) instead": lambda x: x.transpose(1, 2).view(
        x.size(0), x.size(2), -1
    ),
    "changed its input heads in place": joined_in_place,
}


def split_in_place(x, H):
    x.resize_(x.size(0), x.size(1), H, x.size(2) // H)
    return x.transpose(1, 2)


SPLIT_BUGS = {
    "changed its input x in place": split_in_place,
    "cuts the *time* axis": lambda x, H: x.view(x.size(0), H, x.size(1), -1),
    "H must come before T": lambda x, H: x.view(x.size(0), x.size(1), H, -1),
    "last two axes are swapped": lambda x, H: split_heads_solution(x, H).transpose(
        -2, -1
    ),
    "every H-th channel": lambda x, H: x.view(x.size(0), x.size(1), -1, H).permute(
        0, 3, 1, 2
    ),
    "is expected": lambda x, H: x,
    "Head 2 of token 3": lambda x, H: split_heads_solution(x, H).flip(1),
    "lost or doubled": lambda x, H: torch.cat(
        [
            split_heads_solution(x, H)[:, 2:],
            split_heads_solution(x, H)[:, 2:],
            split_heads_solution(x, H)[:, 2:],
        ],
        1,
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
    "one too narrow": lambda T, W: (distance(T) >= 0) & (distance(T) < W - 1),
    "row 3 should see positions [1, 2, 3]; yours sees [3]": lambda T, W: (
        (distance(T) >= 0) & (torch.arange(T)[:, None] // W == torch.arange(T) // W)
    ),
    "With W = 1": lambda T, W: (distance(T) >= 0) & (distance(T) < max(W, 2)),
    "(T, T) = (7, 7) is expected": lambda T, W: torch.ones(T, W, dtype=torch.bool),
    "plain causal mask": lambda T, W: (distance(T) >= 0) & (distance(T) < min(W, 3)),
}


def window_mask_solution(T, W):
    return (distance(T) >= 0) & (distance(T) < W)


CASES = [(check.causal_attention, m, b) for m, b in ATTENTION_BUGS.items()]
CASES += [(check.split_heads, m, b) for m, b in SPLIT_BUGS.items()]
CASES += [(check.join_heads, m, b) for m, b in JOIN_BUGS.items()]
CASES += [(check.window_mask, m, b) for m, b in WINDOW_BUGS.items()]


@pytest.mark.parametrize(
    ("checked", "message", "bug"), CASES, ids=[message for _, message, _ in CASES]
)
def test_planted_bug_is_named(checked, message, bug):
    verdict = checked(bug)
    assert not verdict.passed
    assert message in verdict.message


SOLUTIONS = [
    (check.causal_attention, attention_solution),
    (check.split_heads, split_heads_solution),
    (check.join_heads, join_heads_solution),
    (check.window_mask, window_mask_solution),
]


@pytest.mark.parametrize(("checked", "solution"), SOLUTIONS)
def test_solution_passes_and_stub_is_told_apart(checked, solution):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert checked(solution).passed, checked(solution).message
    assert "still the stub" in checked(stub).message


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


def test_the_kernel_is_itself_again_after_the_check():
    before = F.scaled_dot_product_attention
    assert not check.causal_attention(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    ).passed
    assert F.scaled_dot_product_attention is before
