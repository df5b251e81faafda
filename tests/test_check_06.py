"""Chapter 6's checks are themselves checked: each planted bug is caught with its own message."""

import copy
import math

import pytest
import torch

from course import check


def cosine(progress, peak):
    return 0.5 * peak * (1 + math.cos(math.pi * progress))


def schedule_solution(s, peak, w, n):
    return peak * (s + 1) / w if s < w else cosine((s - w) / (n - 1 - w), peak)


SCHEDULE_BUGS = {
    "first step is wasted": lambda s, peak, w, n: peak * s / w if s < w else cosine((s - w) / (n - 1 - w), peak),
    "multiply by it": lambda s, peak, w, n: schedule_solution(s, 1.0, w, n),
    "above the peak": lambda s, peak, w, n: peak * (s + 2) / w if s < w else cosine((s - w) / (n - 1 - w), peak),
    "should have the peak": lambda s, peak, w, n: (
        peak * (s + 1) / (w + 1) if s < w else cosine((s - w) / (n - 1 - w), peak)
    ),
    "not a straight line": lambda s, peak, w, n: (
        peak * ((s + 1) / w) ** 2 if s < w else cosine((s - w) / (n - 1 - w), peak)
    ),
    "Nothing decays": lambda s, peak, w, n: peak * min(1, (s + 1) / w),
    "becomes negative": lambda s, peak, w, n: (
        peak * (s + 1) / w if s < w else peak * math.cos(math.pi * (s - w) / (n - 1 - w))
    ),
    "decay is a straight line": lambda s, peak, w, n: (
        peak * (s + 1) / w if s < w else peak * (1 - (s - w) / (n - 1 - w))
    ),
    "still has": lambda s, peak, w, n: peak * (s + 1) / w if s < w else cosine(s / n, peak),
    "last step should have rate 0": lambda s, peak, w, n: (
        peak * (s + 1) / w if s < w else 0.1 * peak + 0.9 * cosine((s - w) / (n - 1 - w), peak)
    ),
    "count progress from the end": lambda s, peak, w, n: peak * (s + 1) / w if s < w else cosine(s / (n - 1), peak),
    "cosine starts at step warmup - 1": lambda s, peak, w, n: (
        peak * (s + 1) / w if s < w else cosine((s - w + 1) / (n - w), peak)
    ),
    "return the rate, one number": lambda s, peak, w, n: None,
    "Half-way down": lambda s, peak, w, n: peak * (s + 1) / w if s < w else cosine(((s - w) / (n - 1 - w)) ** 2, peak),
}


def adamw_step(
    p, g, m, v, t, lr, b1, b2, eps, decay, *, l2=False, shrink=None, bias=True, root=True, inside=False, sign=-1
):
    if l2:
        g = g + decay * p
    else:
        p.mul_(1 - (lr * decay if shrink is None else shrink * decay))
    m.mul_(b1).add_(g, alpha=1 - b1)
    v.mul_(b2).add_(g * g, alpha=1 - b2)
    mh, vh = (m / (1 - b1**t), v / (1 - b2**t)) if bias else (m, v)
    below = (vh + eps).sqrt() if inside else (vh.sqrt() if root else vh) + eps
    p.add_(sign * lr * mh / below)


def corrected_in_place(p, g, m, v, t, lr, b1, b2, eps, decay):
    p.mul_(1 - lr * decay)
    m.mul_(b1).add_(g, alpha=1 - b1).div_(1 - b1**t)
    v.mul_(b2).add_(g * g, alpha=1 - b2).div_(1 - b2**t)
    p.sub_(lr * m / (v.sqrt() + eps))


def planted(**changes):
    return lambda *arguments: adamw_step(*arguments, **changes)


def not_in_place(p, g, m, v, t, lr, *rest):
    p = p - lr * g.sign()
    return p


def forgets_averages(p, g, m, v, t, lr, b1, b2, eps, decay):
    adamw_step(p, g, m.clone(), v.clone(), t, lr, b1, b2, eps, decay)


def decay_after(p, g, m, v, t, lr, b1, b2, eps, decay):
    adamw_step(p, g, m, v, t, lr, b1, b2, eps, 0.0)
    p.mul_(1 - lr * decay)


ADAMW_BUGS = {
    "corrected in place": corrected_in_place,
    "p is unchanged": not_in_place,
    "still zero": forgets_averages,
    "uphill": planted(sign=1),
    "too small at first": planted(bias=False),
    "divide by its square root": planted(root=False),
    "eps stands under the root": planted(inside=True),
    "Without decay": planted(sign=-2),
    "decay does nothing": planted(shrink=0.0),
    "Adam with L2": planted(l2=True),
    "should shrink by lr * decay": planted(shrink=1.0),
    "comes before the step": decay_after,
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
    "Every part counts the same": accumulate_with(lambda px, py, parts, texts, total: 1 / parts),
    "weight by texts": accumulate_with(lambda px, py, parts, texts, total: len(px) / texts),
    "Only the last part is left: the": accumulate_with(by_targets, zero=True),
    "Only the last part is left, unweighted": accumulate_with(lambda *_: 1.0, zero=True),
    "shorter part is missing": accumulate_with(by_targets, parts=2),
    "has no gradient": accumulate_with(by_targets, clear=True),
    "go back once at the end": lambda model, x, y, rows: sum(
        model.loss(px, py) * by_targets(px, py, 0, 0, int((y != -100).sum()))
        for px, py in zip(x.split(rows), y.split(rows), strict=True)
    ).backward(),
    "at once where": lambda model, x, y, rows: model.loss(x, y).backward(),
    "off by": accumulate_with(lambda *a: 2 * by_targets(*a)),
}


def save_all(model, optimizer, step):
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    return copy.deepcopy(state | {"random": torch.get_rng_state(), "step": step})


def load_all(state, model, optimizer, *, parts=("model", "optimizer", "random")):
    if "model" in parts:
        model.load_state_dict(state["model"])
    if "optimizer" in parts:
        optimizer.load_state_dict(state["optimizer"])
    if "random" in parts:
        torch.set_rng_state(state["random"])
    return state["step"]


def load_without(part):
    parts = [kept for kept in ("model", "optimizer", "random") if kept != part]
    return lambda *arguments: load_all(*arguments, parts=parts)


def load_reseeded(state, model, optimizer):
    step = load_all(state, model, optimizer)
    torch.manual_seed(0)
    return step


RESUME_BUGS = {
    "copy of their state_dict()": (
        lambda model, optimizer, step: {"model": copy.deepcopy(model), "optimizer": copy.deepcopy(optimizer)},
        load_all,
    ),
    "should return a dictionary": (lambda model, optimizer, step: None, load_all),
    "saving changes the run": (lambda *a: (save_all(*a), torch.rand(1))[0], load_all),
    "live tensors": (
        lambda model, optimizer, step: {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "step": step,
        },
        load_all,
    ),
    "weights are not back": (save_all, load_without("model")),
    "running averages are not back": (save_all, load_without("optimizer")),
    "random numbers go on from another place": (save_all, load_without("random")),
    "a seed says where they began": (save_all, load_reseeded),
    "number of steps done": (save_all, lambda *a: load_all(*a) + 1),
    "in training mode": (
        save_all,
        lambda state, model, optimizer: (model.eval(), load_all(state, model, optimizer))[1],
    ),
}


@pytest.mark.parametrize(("message", "pair"), RESUME_BUGS.items())
def test_planted_bug_of_a_resume_is_named(message, pair):
    verdict = check.resume(*pair)
    assert not verdict.passed
    assert message in verdict.message


def test_a_resume_that_is_right_passes_and_leaves_the_random_numbers_alone():
    before = torch.get_rng_state()
    assert check.resume(save_all, load_all).passed
    assert torch.equal(torch.get_rng_state(), before)


CASES = [(check.schedule, m, b) for m, b in SCHEDULE_BUGS.items()]
CASES += [(check.adamw, m, b) for m, b in ADAMW_BUGS.items()]
CASES += [(check.accumulate, m, b) for m, b in ACCUMULATE_BUGS.items()]


@pytest.mark.parametrize(("checked", "message", "bug"), CASES, ids=[message for _, message, _ in CASES])
def test_planted_bug_is_named(checked, message, bug):
    verdict = checked(bug)
    assert not verdict.passed
    assert message in verdict.message


SOLUTIONS = [
    (check.schedule, schedule_solution),
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
    optimizer = torch.optim.AdamW([p], lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3)
    for t in range(1, 5):
        p.grad = torch.randn(8)
        adamw_step(ours, p.grad.clone(), m, v, t, 0.1, 0.8, 0.9, 1e-3, 0.3)
        optimizer.step()
    torch.testing.assert_close(ours, p.detach())
