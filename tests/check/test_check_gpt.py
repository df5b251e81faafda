"""The checks of GPT are themselves checked: each planted bug is caught with its own message."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from course import check


def count(
    c,
    *,
    tied=True,
    tokens=True,
    positions=True,
    last=2,
    norms=4,
    biases=1,
    attention=1,
    ff=1,
    d_ff=None,
    matrices=4,
):
    V, T, L, D, W = (
        c.vocab_size,
        c.context_length,
        c.n_layers,
        c.d_model,
        d_ff or c.d_ff,
    )
    a = attention * (matrices * D * D + biases * 4 * D)
    f = ff * (2 * D * W + biases * (W + D))
    return (
        (tokens + (not tied)) * V * D
        + positions * T * D
        + L * (a + f + norms * D)
        + last * D
    )


COUNT_BUGS = {
    "counts once": lambda c: count(c, tied=False),
    "token embedding is missing": lambda c: count(c, tokens=False),
    "position embedding is missing": lambda c: count(c, positions=False),
    "final norm": lambda c: count(c, last=0),
    "the two norms (2D each), or the biases of attention": lambda c: count(c, norms=0),
    "One norm per block": lambda c: count(c, norms=2),
    "Each norm counts D": lambda c: count(c, norms=2, last=1),
    "with a bias": lambda c: count(c, tied=False) + c.vocab_size,
    "biases of the feed-forward network are missing": lambda c: (
        count(c) - c.n_layers * (c.d_ff + c.d_model)
    ),
    "bias of queries, keys and values": lambda c: count(c) - c.n_layers * 3 * c.d_model,
    "output matrix of attention": lambda c: (
        count(c) - c.n_layers * (c.d_model**2 + c.d_model)
    ),
    "has two matrices": lambda c: (
        count(c) - c.n_layers * (c.d_model * c.d_ff + c.d_model)
    ),
    "by n_heads": lambda c: (
        count(c) + c.n_layers * (c.n_heads - 1) * 3 * (c.d_model**2 + c.d_model)
    ),
    "You count one block": lambda c: count(dataclasses.replace(c, n_layers=1)),
    "All norms are missing": lambda c: count(c, norms=0, last=0),
    "The biases are missing": lambda c: count(c, biases=0),
    "Biases and norms": lambda c: count(c, biases=0, norms=0, last=0),
    "Attention is missing": lambda c: count(c, attention=0),
    "feed-forward network is missing": lambda c: count(c, ff=0),
    "take d_ff from the config": lambda c: count(c, d_ff=4 * c.d_model),
    "attention has four": lambda c: count(c, matrices=2),
    "too many": lambda c: count(c) + 7,
    "a count is an int": lambda c: float(count(c)),
    "GPT-2 has": lambda c: count(c) if c.vocab_size == 101 else 124_000_000,
}


def flops(
    L, D, F, V, T, *, times=3, mac=2, matrices=3, attention=2, logits=1.0, layers=None
):
    layer = 4 * D * D + attention * T * D + matrices * D * F
    return int(
        times * mac * ((L if layers is None else layers) * layer + logits * D * V)
    )


GATED_BUGS = {
    "forward pass only": lambda *a: flops(*a, times=1),
    "count backward once": lambda *a: flops(*a, times=2),
    "its addition is not": lambda *a: flops(*a, mac=1),
    "only two matrices": lambda *a: flops(*a, matrices=2),
    "attention itself is missing": lambda *a: flops(*a, attention=0),
    "logits are missing": lambda *a: flops(*a, logits=0),
    "counted in every layer": lambda *a: flops(*a, logits=a[0]),
    "It is a look-up": lambda *a: flops(*a, logits=2),
    "Only one layer": lambda *a: flops(*a, layers=1),
    "not T x T": lambda *a: flops(*a, attention=2 * a[4]),
    "half of the attention": lambda *a: flops(*a, attention=1),
    "it should be": lambda *a: flops(*a, matrices=4),
    "return the number": lambda *a: str(flops(*a)),
}


def loss(logits, targets):
    return F.cross_entropy(logits, targets)


def picked(logits, targets):
    return logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]


def loss_in_place(z, y):
    z -= z.amax(-1, keepdim=True)
    return loss(z, y)


def targets_in_place(z, y):
    counts = y != -100
    y[~counts] = 0
    return (z.logsumexp(-1) - picked(z, y))[counts].mean()


def one_maximum(z, y):
    z = z - z.max()
    return (z.exp().sum(-1).log() - picked(z, y))[y != -100].mean()


LOSS_BUGS = {
    "changed its input logits in place": loss_in_place,
    "changed its input targets in place": targets_in_place,
    "Each row needs its own maximum": one_maximum,
    "adding a small number inside the logarithm": lambda z, y: (
        -((picked(z.softmax(-1), y) + 1e-9).log()[y != -100].mean())
    ),
    "PyTorch did the work (cross_entropy)": loss,
    "PyTorch did the work (nll_loss)": lambda z, y: F.nll_loss(z.log_softmax(-1), y),
    "the exponential of the loss": lambda z, y: loss(z, y).exp(),
    "That is log10": lambda z, y: loss(z, y) / math.log(10),
    "takes every target from every row": lambda z, y: -z.log_softmax(-1)[:, y].mean(),
    "only the target of each row counts": lambda z, y: -z.log_softmax(-1).mean(),
    "taken twice": lambda z, y: loss(z.softmax(-1), y),
    "target's own logit is missing": lambda z, y: z.logsumexp(-1).mean(),
    "no gradient can flow": lambda z, y: loss(z, y).item(),
    "sign is wrong": lambda z, y: -loss(z, y),
    "You return the sum": lambda z, y: F.cross_entropy(z, y, reduction="sum"),
    "in bits": lambda z, y: loss(z, y) / math.log(2),
    "logarithm is missing": lambda z, y: -picked(z.softmax(-1), y).mean(),
    "mean of the logarithms": lambda z, y: -picked(z.softmax(-1), y).mean().log(),
    "average the logits": lambda z, y: -picked(z, y).mean(),
    "runs over the batch": lambda z, y: F.nll_loss(z.log_softmax(0), y),
    "is no index": lambda z, y: (
        z.logsumexp(-1) - z.gather(1, y[:, None])[:, 0]
    ).mean(),
    "in the denominator": lambda z, y: F.cross_entropy(z, y, reduction="sum") / len(y),
    "should not count at all": lambda z, y: F.cross_entropy(z, y.clamp(min=0)),
    "subtracts the maximum": lambda z, y: (z.exp().sum(-1).log() - picked(z, y))[
        y != -100
    ].mean(),
    "the loss is 500": lambda z, y: loss(z.clamp(max=50), y),
    "one number": lambda z, y: F.cross_entropy(z, y, reduction="none"),
    "The loss should be": lambda z, y: loss(2 * z, y),
}
CASES = [(check.parameter_count, m, b) for m, b in COUNT_BUGS.items()]
CASES += [(check.gated_flops, m, b) for m, b in GATED_BUGS.items()]
CASES += [(check.cross_entropy, m, b) for m, b in LOSS_BUGS.items()]


@pytest.mark.parametrize(
    ("checked", "message", "bug"), CASES, ids=[message for _, message, _ in CASES]
)
def test_planted_bug_is_named(checked, message, bug):
    verdict = checked(bug)
    assert not verdict.passed
    assert message in verdict.message


def loss_solution(logits, targets):
    rows = logits[targets != -100]
    return (
        rows.logsumexp(-1) - rows.gather(1, targets[targets != -100][:, None])[:, 0]
    ).mean()


SOLUTIONS = [
    (check.parameter_count, count),
    (check.gated_flops, flops),
    (check.cross_entropy, loss_solution),
]


@pytest.mark.parametrize(("checked", "solution"), SOLUTIONS)
def test_solution_passes_and_stub_is_told_apart(checked, solution):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert checked(solution).passed, checked(solution).message
    assert "still the stub" in checked(stub).message


def test_check_leaves_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    check.cross_entropy(loss_solution)
    assert torch.equal(torch.randn(3), expected)
