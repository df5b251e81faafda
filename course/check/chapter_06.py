"""Checks of chapter 6's exercises."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from course.check.verdict import exercise
from slm.gpt import GPT, GPTConfig


@exercise
def schedule(fn: Callable[[int, float, int, int], float]) -> str:
    """Check a `schedule(step, peak, warmup, steps)`."""
    peak, warmup, steps = 2.0, 10, 110
    returned = [fn(step, peak, warmup, steps) for step in range(steps)]
    wrong = next((rate for rate in returned if not isinstance(rate, int | float | Tensor)), 0.0)
    assert wrong == 0.0, f"It returned {type(wrong).__name__}; return the rate, one number."
    rates = [float(rate) for rate in returned]
    assert rates[0] != 0, "Step 0 has rate 0, so the first step is wasted: use (step + 1) / warmup."
    assert not math.isclose(max(rates), 1.0) and not math.isclose(rates[0], 0.1 / peak), (
        "The rate never reaches the peak: multiply by it."
    )
    assert max(rates) <= peak * (1 + 1e-9), (
        f"The rate goes up to {max(rates):.3g}, above the peak of {peak:g}: the warm-up ends at step warmup - 1."
    )
    assert math.isclose(rates[warmup - 1], peak), (
        f"Step warmup - 1 should have the peak {peak:g}; yours has {rates[warmup - 1]:.4g}."
    )
    assert math.isclose(rates[4], peak / 2), (
        f"The warm-up is not a straight line: step 4 of 10 should have half the peak; yours has {rates[4]:.4g}."
    )
    assert not math.isclose(rates[-1], peak, rel_tol=1e-3), (
        "Nothing decays: after the warm-up a cosine should take the rate to 0."
    )
    assert min(rates) > -1e-9, f"The rate becomes negative ({min(rates):.3g}): use 1 + cos, and half of it."
    middle = rates[warmup + (steps - 1 - warmup) // 2]
    straight = peak * (1 - ((steps - 1 - warmup) // 2) / (steps - 1 - warmup))
    quarter = rates[warmup + (steps - 1 - warmup) // 4]
    assert not math.isclose(quarter, peak * 0.75, rel_tol=0.02), (
        "The decay is a straight line. A half cosine stays high at first: 0.5 * (1 + cos(pi * progress))."
    )
    whole = 0.5 * peak * (1 + math.cos(math.pi * (steps - 1) / steps))
    assert math.isclose(rates[-1], 0, abs_tol=1e-9) or not math.isclose(rates[-1], whole, rel_tol=0.5), (
        f"The last step still has {rates[-1]:.2g}: progress should be 1 at step steps - 1, so divide by steps - 1 - warmup."
    )
    assert math.isclose(rates[-1], 0, abs_tol=1e-9), (
        f"The last step should have rate 0; yours has {rates[-1]:.3g}. Progress runs from 0 at step warmup to 1 at step steps - 1."
    )
    early = 0.5 * peak * (1 + math.cos(math.pi / (steps - warmup)))
    assert not math.isclose(rates[warmup], early, rel_tol=1e-6), (
        "Your cosine starts at step warmup - 1. Step warmup should still have the peak: progress is (step - warmup) / (steps - 1 - warmup)."
    )
    assert math.isclose(rates[warmup], peak, rel_tol=1e-6), (
        f"Step warmup should still have the peak, where the cosine starts; yours has {rates[warmup]:.6f}: count progress from the end of the warm-up."
    )
    assert math.isclose(middle, straight, rel_tol=0.02), (
        f"Half-way down the rate should be half the peak; yours is {middle:.4g}."
    )
    return "Both ends and the middle hold."


@exercise
def adamw(fn: Callable[..., None]) -> str:
    """Check one `adamw_step(p, grad, m, v, t, lr, beta1, beta2, eps, decay)`, in place, over several steps."""
    generator = torch.Generator().manual_seed(5)
    start, grads = torch.randn(8, generator=generator), torch.randn(4, 8, generator=generator)
    lr, beta1, beta2, eps = 0.1, 0.8, 0.9, 1e-3

    def run(decay: float, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        p, m, v = start.clone(), torch.zeros(8), torch.zeros(8)
        for t in range(1, steps + 1):
            fn(p, grads[t - 1].clone(), m, v, t, lr, beta1, beta2, eps, decay)
        return p, m, v

    def right(decay: float, steps: int, **changes: bool) -> Tensor:
        p, m, v = start.clone(), torch.zeros(8), torch.zeros(8)
        for t in range(1, steps + 1):
            g = grads[t - 1]
            if changes.get("l2"):
                g = g + decay * p
            elif not changes.get("late"):
                p = p * (1 - (decay if changes.get("unscaled") else lr * decay))
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * (g if changes.get("unsquared") else g * g)
            bias1, bias2 = (1.0, 1.0) if changes.get("uncorrected") else (1 - beta1**t, 1 - beta2**t)
            root = v / bias2 if changes.get("rootless") else (v / bias2).sqrt()
            below = ((v / bias2) + eps).sqrt() if changes.get("eps inside") else root + eps
            p = p + lr * m / bias1 / below if changes.get("uphill") else p - lr * m / bias1 / below
        return p

    p, m, v = run(0.0, 1)
    assert not torch.equal(p, start), "p is unchanged. Update it in place: p.sub_(…), p.mul_(…)."
    assert bool(m.any()) and bool(v.any()), (
        "m or v is still zero: update the running averages in place too, or the next step starts from nothing."
    )
    close = lambda found, other: torch.allclose(found, other, atol=1e-5)  # noqa: E731
    _, m1, v1 = run(0.0, 1)
    assert not (close(m1, grads[0]) and close(v1, grads[0] ** 2)), (
        "m and v were corrected in place. They must go on uncorrected: divide into new tensors, m / (1 - beta1**t)."
    )
    assert not close(p, right(0, 1, uphill=True)), "The step goes uphill: subtract it."
    assert not close(p, right(0, 1, uncorrected=True)), (
        "The averages start at zero and are too small at first: divide them by 1 - beta**t."
    )
    p4, _, _ = run(0.0, 4)
    assert not close(p4, right(0, 4, rootless=True)), "You divide by v itself; divide by its square root."
    assert not close(p4, right(0, 4, **{"eps inside": True})), "eps stands under the root. It is added after the root."
    assert close(p4, right(0, 4)), (
        f"Without decay, four steps are off by up to {(p4 - right(0, 4)).abs().max():.3g}. Check m, v, their correction, and the root."
    )
    p4, _, _ = run(0.3, 4)
    assert not close(p4, right(0, 4)), "The decay does nothing: shrink p by lr * decay of itself."
    assert not close(p4, right(0.3, 4, l2=True)), (
        "The decay is added to the gradient, so it is divided by sqrt(v) too. That is Adam with L2, not AdamW: shrink p directly."
    )
    assert not close(p4, right(0.3, 4, unscaled=True)), (
        "p shrinks by decay; it should shrink by lr * decay, so that the schedule governs both."
    )
    assert close(p4, right(0.3, 4)), (
        f"With decay, four steps are off by up to {(p4 - right(0.3, 4)).abs().max():.3g}: p * (1 - lr * decay) comes before the step."
    )
    return "Averages, correction, root and decay all hold."


@exercise
def accumulate(fn: Callable[[GPT, Tensor, Tensor, int], None]) -> str:
    """Check an `accumulate(model, x, y, rows)` that leaves the whole batch's gradient in `.grad`."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = GPT(GPTConfig(vocab_size=20, context_length=8, n_layers=1, n_heads=2, d_model=8, d_ff=16))
        x, y = torch.randint(20, (2, 5, 8))  # (B, T) each
    y[:2, 2:] = -100  # the first part has few targets
    made, gone_back, pending, largest, plain = 0, 0, 0, 0, model.loss

    def counting(tokens: Tensor, targets: Tensor) -> Tensor:
        nonlocal made, pending, largest

        def back(gradient: Tensor) -> None:
            nonlocal gone_back
            gone_back += 1

        pending += made > gone_back  # an earlier part still waits for its backward pass
        made, largest = made + 1, max(largest, len(tokens))
        loss = plain(tokens, targets)
        loss.register_hook(back)
        return loss

    def gradient(parts: list[tuple[slice, float]]) -> Tensor:
        model.zero_grad()
        for rows, weight in parts:
            (plain(x[rows], y[rows]) * weight).backward()
        found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
        return found

    cuts = [slice(0, 2), slice(2, 4), slice(4, 5)]
    counts = [int((y[cut] != -100).sum()) for cut in cuts]
    whole = gradient([(slice(0, 5), 1.0)])
    object.__setattr__(model, "loss", counting)
    fn(model, x.clone(), y.clone(), 2)
    grads = [p.grad for p in model.parameters()]
    assert all(g is not None for g in grads), (
        "Some parameter has no gradient: call backward() for each part, and don't zero the gradients at the end."
    )
    found = torch.cat([g.flatten() for g in grads if g is not None])
    assert not pending, (
        "You add up the losses and go back once at the end, so all parts stay in memory until then. Call backward() for each part before the next."
    )
    assert largest <= 2, f"You computed {largest} texts at once where rows = 2 were allowed: split x and y."
    close = lambda other: torch.allclose(found, other, rtol=1e-3, atol=1e-6)  # noqa: E731
    assert not close(gradient([(cut, 1.0) for cut in cuts])), (
        "You add the parts' gradients without weights: three means make three times the gradient."
    )
    assert not close(gradient([(cut, 1 / 3) for cut in cuts])), (
        "Every part counts the same, though they hold different numbers of targets. Weight each by its share of the targets that are not -100."
    )
    assert not close(gradient([(cut, len(x[cut]) / 5) for cut in cuts])), (
        "You weight by texts. Padding does not count: weight by targets that are not -100."
    )
    assert not close(gradient([cut_weight for cut_weight in [(cuts[-1], counts[-1] / sum(counts))]])), (
        "Only the last part is left: the gradients are zeroed between the parts."
    )
    assert not close(gradient([(cut, 1.0) for cut in cuts[-1:]])), (
        "Only the last part is left, unweighted: the gradients are zeroed between the parts."
    )
    assert not close(
        gradient([(cut, count / sum(counts)) for cut, count in list(zip(cuts, counts, strict=True))[:2]])
    ), "The last, shorter part is missing: 5 texts in parts of 2 are three parts."
    assert close(whole), (
        f"The gradient is off by {(found - whole).norm() / whole.norm():.0%} of its length. Each part's mean should be weighted by its share of the counted targets."
    )
    return "The parts add up to the whole batch's gradient."


@exercise
def resume(
    save: Callable[[GPT, torch.optim.Optimizer, int], dict[str, Any]],
    load: Callable[[dict[str, Any], GPT, torch.optim.Optimizer], int],
) -> str:
    """Check a `save(model, optimizer, step)` and a `load(state, model, optimizer)` that continue a run exactly."""

    def fresh(seed: int) -> tuple[GPT, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = GPT(GPTConfig(vocab_size=20, context_length=8, n_layers=1, n_heads=2, d_model=8, d_ff=16, dropout=0.3))
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    def train(model: GPT, optimizer: torch.optim.Optimizer, steps: range) -> Tensor:
        for step in steps:
            x, y = torch.randint(20, (2, 3, 8), generator=torch.Generator().manual_seed(step))  # (B, T) each
            model.loss(x, y).backward()
            optimizer.step()
            optimizer.zero_grad()
        return weights_of(model)

    with torch.random.fork_rng():
        model, optimizer = fresh(1)
        train(model, optimizer, range(3))
        weights, random = weights_of(model), torch.get_rng_state()
        averages = copy.deepcopy(optimizer.state_dict()["state"])
        state = save(model, optimizer, 3)
        assert isinstance(state, dict), f"my_save should return a dictionary; yours returns {type(state).__name__}."
        assert torch.equal(torch.get_rng_state(), random), "my_save draws random numbers, so saving changes the run."
        whole_things = [key for key, value in state.items() if isinstance(value, nn.Module | torch.optim.Optimizer)]
        assert not whole_things, (
            f"{whole_things} are whole objects, which no file can hold safely. Put in what they know: a copy of their state_dict()."
        )
        taken = copy.deepcopy(state)
        whole = train(model, optimizer, range(3, 6))
        assert _equal(state, taken), (
            "The dictionary changed while the run went on: state_dict() hands out the live tensors. Copy them: copy.deepcopy(…)."
        )
        model, optimizer = fresh(2)
        done = load(taken, model, optimizer)
        after = torch.get_rng_state()
        assert torch.equal(weights_of(model), weights), "The weights are not back: model.load_state_dict(…)."
        assert _equal(optimizer.state_dict()["state"], averages), (
            "AdamW's running averages are not back, so the first steps go off in another direction: save optimizer.state_dict() and load it again."
        )
        assert torch.equal(after, random), (
            "The random numbers go on from another place, so dropout draws other masks. Save torch.get_rng_state(), and set it again; a seed says where they began, not where they are."
        )
        assert done == 3, f"my_load should return the number of steps done, 3; yours returns {done!r}."
        assert torch.equal(train(model, optimizer, range(3, 6)), whole), (
            "All parts are back, and yet the weights differ after three more steps. Does my_load leave the model in training mode?"
        )
    return "The run goes on to the last bit."


def weights_of(model: GPT) -> Tensor:
    """All weights of a model in one vector, copied."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)
