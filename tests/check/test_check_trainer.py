"""The checks on the trainer are themselves checked: each planted bug is caught with its own message."""

import math

import pytest
import torch

from course import check


def up(s, w):
    return min(1.0, (s + 1) / w)


def down(s, f, n):
    return min(1.0, (n - 1 - s) / f)


def schedule_solution(s, peak, w, f, n):
    return peak * min(up(s, w), down(s, f, n))


def in_float32(s, peak, w, f, n):
    """The same, from a table in single precision."""
    parts = (
        torch.linspace(1 / w, 1, w),
        torch.ones(n - f - w),
        torch.linspace(1 - 1 / f, 0, f),
    )
    return peak * torch.cat(parts)[s]


SCHEDULE_BUGS = {
    "first step is wasted": lambda s, peak, w, f, n: (
        peak * min(s / w, 1, down(s, f, n))
    ),
    "never reaches the peak: multiply by it": lambda s, peak, w, f, n: (
        schedule_solution(s, 1.0, w, f, n)
    ),
    "In the warm-up, multiply": lambda s, peak, w, f, n: (
        up(s, w) if s < w else peak * down(s, f, n)
    ),
    "In the fall, multiply": lambda s, peak, w, f, n: (
        peak * up(s, w) if s < n - f else down(s, f, n)
    ),
    "Nothing falls": lambda s, peak, w, f, n: peak * up(s, w),
    "right after the warm-up": lambda s, peak, w, f, n: (
        peak * (up(s, w) if s < w else (n - 1 - s) / (n - w))
    ),
    "The fall is a cosine": lambda s, peak, w, f, n: (
        peak * min(up(s, w), 0.5 * (1 - math.cos(math.pi * down(s, f, n))))
    ),
    "The last step still has": lambda s, peak, w, f, n: (
        peak * min(up(s, w), (n - s) / f)
    ),
    "wrong way round": lambda s, peak, w, f, n: (
        peak * up(s, w) if s < n - 1 - f else peak * (1 - down(s, f, n))
    ),
    "Step 109 of 110 has": lambda s, peak, w, f, n: peak * s + 1 / w if s < n else 0.0,
    "Step 0 of 110 has": lambda s, peak, w, f, n: (
        peak * (n - 1 - s) / f if s < n - f else 0.0
    ),
    "becomes negative": lambda s, peak, w, f, n: peak * min(up(s, w), (n - 5 - s) / f),
    "The warm-up is a straight line that has the peak at step warmup - 1 = 9. Step 0 should have 0.2; yours has 0.1818": (
        lambda s, peak, w, f, n: peak * min((s + 1) / (w + 1), 1, down(s, f, n))
    ),
    "stays at the peak. Step 60": lambda s, peak, w, f, n: (
        peak * min(up(s, w), (n - 1 - s) / (f + 10))
    ),
    "in a straight line to 0 at step steps - 1 = 109. Step 70 should have 1.95; yours has 2": (
        lambda s, peak, w, f, n: peak * min(up(s, w), (n - 1 - s) / (f - 1))
    ),
    "return the rate, one number": lambda s, peak, w, f, n: None,
}


def adamw_step(p, g, m, v, t, lr, b1, b2, eps, decay):
    p.mul_(1 - lr * decay)
    m.mul_(b1).add_(g, alpha=1 - b1)
    v.mul_(b2).add_(g * g, alpha=1 - b2)
    p.sub_(lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps))


ADAMW = """
def step(p, g, m, v, t, lr, beta1, beta2, eps, decay):
    p.mul_(1 - lr * decay)
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).add_(g * g, alpha=1 - beta2)
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    p.sub_(lr * m_hat / (v_hat.sqrt() + eps))
"""


def planted(*changes):
    """The step with these texts replaced."""
    source = ADAMW
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    space = {}
    exec(source, space)
    return space["step"]


NO_SHARE_M, NO_SHARE_V = (
    ("add_(g, alpha=1 - beta1)", "add_(g)"),
    ("add_(g * g, alpha=1 - beta2)", "add_(g * g)"),
)
ADAMW_BUGS = {
    "corrected in place": planted(
        ("m_hat, v_hat = m /", "m_hat, v_hat = m.div_"),
        ("m.div_ (1 - beta1**t), v /", "m.div_(1 - beta1**t), v.div_"),
    ),
    "m and v grow without bound": planted(NO_SHARE_M, NO_SHARE_V),
    "m grows without bound": planted(NO_SHARE_M),
    "v grows without bound": planted(NO_SHARE_V),
    "changed places": planted(
        ("eps, decay):", "eps, decay):\n    beta1, beta2 = beta2, beta1")
    ),
    "*squared* gradient": planted(("g * g", "g")),
    "p is unchanged": planted(("    p.mul_", "    p = p.clone()\n    p.mul_")),
    "still zero": planted(
        ("    p.mul_", "    m, v = m.clone(), v.clone()\n    p.mul_")
    ),
    "uphill": planted(("p.sub_", "p.add_")),
    "too small at first": planted(("m / (1 - beta1**t), v / (1 - beta2**t)", "m, v")),
    "m is not corrected": planted(("m / (1 - beta1**t)", "m")),
    "v is not corrected": planted(("v / (1 - beta2**t)", "v")),
    "divide by its square root": planted(("v_hat.sqrt()", "v_hat")),
    "eps stands under the root": planted(
        ("v_hat.sqrt() + eps", "(v_hat + eps).sqrt()")
    ),
    "eps is missing": planted((" + eps", "")),
    "Adam with L2": planted(("    p.mul_(1 - lr * decay)", "    g = g + decay * p")),
    "should shrink by lr * decay": planted(("1 - lr * decay", "1 - decay")),
    "p grows by the decay": planted(("1 - lr * decay", "1 + lr * decay")),
    "The decay comes after the step": planted(
        ("    p.mul_(1 - lr * decay)\n", ""),
        ("+ eps))", "+ eps))\n    p.mul_(1 - lr * decay)"),
    ),
    "The decay does nothing": planted(("    p.mul_(1 - lr * decay)\n", "")),
    "After four steps m is off": planted(("alpha=1 - beta1", "alpha=beta1")),
    "After four steps v is off": planted(("alpha=1 - beta2", "alpha=beta2")),
    "no longer finite": planted(
        ("lr * m_hat / (v_hat.sqrt() + eps)", "lr * m_hat / (v_hat - v_hat)")
    ),
    "without decay p is off": planted(("p.sub_(lr", "p.sub_(2 * lr")),
    "With decay, p is off": planted(("1 - lr * decay", "1 - 0.5 * lr * decay")),
}


def accumulate_with(weight, *, parts=None, zero=False, clear=False):
    def run(model, x, y, rows):
        total = int((y != -100).sum())
        pairs = list(zip(x.split(rows), y.split(rows), strict=True))[:parts]
        for px, py in pairs:
            if zero:
                model.zero_grad()
            (model.loss(px, py) * weight(px, py, len(pairs), len(x), total)).backward()
        if clear:
            model.zero_grad()

    return run


def by_targets(px, py, parts, texts, total):
    return int((py != -100).sum()) / total


ACCUMULATE_BUGS = {
    "without weights": accumulate_with(lambda *_: 1.0),
    "Every part counts the same": accumulate_with(
        lambda px, py, parts, texts, total: 1 / parts
    ),
    "weight by texts": accumulate_with(
        lambda px, py, parts, texts, total: len(px) / texts
    ),
    "Only the last part is left: the": accumulate_with(by_targets, zero=True),
    "Only the last part is left, unweighted": accumulate_with(
        lambda *_: 1.0, zero=True
    ),
    "shorter part is missing": accumulate_with(by_targets, parts=2),
    "has no gradient": accumulate_with(by_targets, clear=True),
    "go back once at the end": lambda model, x, y, rows: sum(
        model.loss(px, py) * by_targets(px, py, 0, 0, int((y != -100).sum()))
        for px, py in zip(x.split(rows), y.split(rows), strict=True)
    ).backward(),
    "at once where": lambda model, x, y, rows: model.loss(x, y).backward(),
    "texts at once where rows = 2": lambda model, x, y, rows: (
        torch.nn.functional.cross_entropy(
            model(x).flatten(0, 1), y.flatten()
        ).backward()
    ),
    "off by": accumulate_with(lambda *a: 2 * by_targets(*a)),
}


CASES = [(check.schedule, m, b) for m, b in SCHEDULE_BUGS.items()]
CASES += [(check.adamw, m, b) for m, b in ADAMW_BUGS.items()]
CASES += [(check.accumulate, m, b) for m, b in ACCUMULATE_BUGS.items()]


@pytest.mark.parametrize(
    ("checked", "message", "bug"), CASES, ids=[message for _, message, _ in CASES]
)
def test_planted_bug_is_named(checked, message, bug):
    verdict = checked(bug)
    assert not verdict.passed
    assert message in verdict.message


SOLUTIONS = [
    (check.schedule, schedule_solution),
    (check.schedule, in_float32),
    (check.adamw, adamw_step),
    (check.accumulate, accumulate_with(by_targets)),
]


@pytest.mark.parametrize(("checked", "solution"), SOLUTIONS)
def test_solution_passes_and_stub_is_told_apart(checked, solution):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert checked(solution).passed, checked(solution).message
    assert "still the stub" in checked(stub).message


def test_adamw_agrees_with_pytorch():
    """The check's own reference is right: PyTorch's AdamW takes the same steps as the solution."""
    p = torch.nn.Parameter(torch.randn(8))
    ours, m, v = p.detach().clone(), torch.zeros(8), torch.zeros(8)
    optimizer = torch.optim.AdamW(
        [p], lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3
    )
    for t in range(1, 5):
        p.grad = torch.randn(8)
        adamw_step(ours, p.grad.clone(), m, v, t, 0.1, 0.8, 0.9, 1e-3, 0.3)
        optimizer.step()
    torch.testing.assert_close(ours, p.detach())
