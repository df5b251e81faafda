"""The checks of the exercises of the chapter on the trainer."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from course.check.verdict import exercise
from slm.model.config import IGNORE, GPTConfig
from slm.model.gpt import GPT


@exercise
def schedule(fn: Callable[[int, float, int, int, int], float]) -> str:
    """Check a `schedule(step, peak, warmup, fall, steps)`: up, level, and down to 0 over the last `fall` steps."""
    peak, warmup, fall, steps = 2.0, 10, 40, 110
    top = steps - 1 - fall  # the last step with the peak

    def shape(
        up: Callable[[int], float] = lambda step: min(1.0, (step + 1) / warmup),
        down: Callable[[float], float] = lambda left: min(
            1.0, left
        ),  # `left` is 1 at step `top` and 0 at the last
    ) -> list[float]:
        return [
            peak * min(up(step), down((steps - 1 - step) / fall))
            for step in range(steps)
        ]

    rates = []
    for step in range(steps):
        rate = fn(step, peak, warmup, fall, steps)
        try:
            rates.append(float(rate))
        except (TypeError, ValueError):
            raise AssertionError(
                f"It returned {type(rate).__name__}; return the rate, one number."
            ) from None

    def like(other: list[float], where: slice = slice(None)) -> bool:
        return all(
            math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6)
            for a, b in zip(rates[where], other, strict=True)
        )

    right, rising, falling = shape(), slice(0, warmup), slice(top + 1, steps)
    assert rates[0] != 0, (
        "Step 0 has rate 0, so the first step is wasted: use (step + 1) / warmup."
    )
    assert not like([rate / peak for rate in right]), (
        "The rate never reaches the peak: multiply by it."
    )
    for name, where in (("warm-up", rising), ("fall", falling)):
        assert not like([rate / peak for rate in right[where]], where), (
            f"In the {name}, multiply by the peak too."
        )
    assert not like(shape(down=lambda left: 1.0)), (
        "Nothing falls: over the last `fall` steps a straight line should take the rate to 0."
    )
    straight = [
        peak * (steps - 1 - step) / (steps - warmup) for step in range(warmup, steps)
    ]
    assert not like(straight, slice(warmup, steps)), (
        f"It falls right after the warm-up. It should stay at the peak until step {top}, and fall over the last {fall} steps."
    )
    wave = shape(down=lambda left: 0.5 * (1 - math.cos(math.pi * min(1.0, left))))
    assert not like(wave[falling], falling), (
        "The fall is a cosine; this schedule falls in a straight line."
    )
    late = [peak * min(1.0, (steps - step) / fall) for step in range(top + 1, steps)]
    assert not like(late, falling), (
        f"The last step still has {rates[-1]:.3g}. Steps count from 0, so the last is steps - 1: (steps - 1 - step) / fall."
    )
    risen = [peak * (1 - rate / peak) for rate in right[falling]]
    assert not like(risen, falling), (
        "The fall is the wrong way round: it jumps to 0 and rises to the peak."
    )
    highest = max(range(steps), key=lambda step: rates[step])
    assert rates[highest] <= peak * (1 + 1e-5), (
        f"Step {highest} of {steps} has {rates[highest]:.4g}, above the peak of {peak:g}. "
        "Parentheses, or one of the three parts used outside its steps, are the usual causes."
    )
    assert min(rates) > -1e-6, (
        f"The rate becomes negative ({min(rates):.3g} at step {rates.index(min(rates))})."
    )
    step = next(
        (
            step
            for step in range(steps)
            if not math.isclose(rates[step], right[step], rel_tol=1e-5, abs_tol=1e-6)
        ),
        -1,
    )
    part = (
        f"The warm-up is a straight line that has the peak at step warmup - 1 = {warmup - 1}"
        if step < warmup
        else f"From step warmup - 1 to step steps - 1 - fall = {top} the rate stays at the peak"
        if step <= top
        else f"After step steps - 1 - fall = {top} the rate falls in a straight line to 0 at step steps - 1 = {steps - 1}"
    )
    assert step == -1, (
        f"{part}. Step {step} should have {right[step]:.4g}; yours has {rates[step]:.4g}."
    )
    return "Up, level and down, and both ends hold."


ADAMW_MISTAKES = {  # what was done instead, and what to say of it
    "corrected in place": "m and v were corrected in place. They must go on uncorrected: divide into new tensors, m / (1 - beta1**t).",
    "no new share, both": "m and v grow without bound: the new part of each counts only (1 - beta1) and (1 - beta2).",
    "no new share, m": "m grows without bound: the gradient counts only (1 - beta1) in it.",
    "no new share, v": "v grows without bound: the squared gradient counts only (1 - beta2) in it.",
    "changed betas": "beta1 and beta2 have changed places: beta1 belongs to m, beta2 to v.",
    "unsquared": "v should be the average of the *squared* gradient.",
    "uphill": "The step goes uphill: subtract it.",
    "uncorrected": "The averages start at zero and are too small at first: divide them by 1 - beta**t.",
    "uncorrected m": "m is not corrected; it starts at zero too: divide it by 1 - beta1**t.",
    "uncorrected v": "v is not corrected; it starts at zero too: divide it by 1 - beta2**t.",
    "rootless": "You divide by v itself; divide by its square root.",
    "eps inside": "eps stands under the root. It is added after the root.",
    "no eps": "eps is missing: add it to the root, so that a weight without any gradient does not divide 0 by 0.",
    "l2": "The decay is added to the gradient, so it is divided by sqrt(v) too. That is Adam with L2, not AdamW: shrink p directly.",
    "unscaled": "p shrinks by decay; it should shrink by lr * decay, so that the schedule governs both.",
    "grows": "p grows by the decay; it should shrink: 1 - lr * decay.",
    "late": "The decay comes after the step, so it shrinks the step as well: p * (1 - lr * decay) comes first.",
    "undecayed": "The decay does nothing: shrink p by lr * decay of itself.",
}


@exercise
def adamw(fn: Callable[..., None]) -> str:
    """Check one `adamw_step(p, grad, m, v, t, lr, beta1, beta2, eps, decay)`, in place, over several steps."""
    generator = torch.Generator().manual_seed(5)
    start, grads = (
        torch.randn(8, generator=generator),
        torch.randn(4, 8, generator=generator),
    )
    lr, beta1, beta2, eps = 0.1, 0.8, 0.9, 1e-2

    def simulated(decay: float, wrong: str = "") -> list[Tensor]:
        """p, m and v after four steps, with one mistake."""
        p, m, v = start.clone(), torch.zeros(8), torch.zeros(8)
        b1, b2 = (beta2, beta1) if wrong == "changed betas" else (beta1, beta2)
        for t, g in enumerate(grads, start=1):
            if wrong == "l2":
                g = g + decay * p
            rate = {
                "l2": 0.0,
                "late": 0.0,
                "undecayed": 0.0,
                "unscaled": decay,
                "grows": -lr * decay,
            }.get(wrong, lr * decay)
            p = p * (1 - rate)
            m = (
                b1 * m
                + (
                    1.0
                    if wrong in ("no new share, both", "no new share, m")
                    else 1 - b1
                )
                * g
            )
            new = g if wrong == "unsquared" else g * g
            v = (
                b2 * v
                + (
                    1.0
                    if wrong in ("no new share, both", "no new share, v")
                    else 1 - b2
                )
                * new
            )
            m_hat = m if wrong in ("uncorrected", "uncorrected m") else m / (1 - b1**t)
            v_hat = v if wrong in ("uncorrected", "uncorrected v") else v / (1 - b2**t)
            if wrong == "corrected in place":
                m, v = m_hat, v_hat
            below = (
                (v_hat + eps).sqrt()
                if wrong == "eps inside"
                else (v_hat if wrong == "rootless" else v_hat.sqrt())
            )
            below = below + (0.0 if wrong in ("eps inside", "no eps") else eps)
            p = p + (lr if wrong == "uphill" else -lr) * m_hat / below
            p = p * (1 - lr * decay) if wrong == "late" else p
        return [p, m, v]

    def run(decay: float) -> list[Tensor]:
        p, m, v = start.clone(), torch.zeros(8), torch.zeros(8)
        for t, g in enumerate(grads, start=1):
            fn(p, g.clone(), m, v, t, lr, beta1, beta2, eps, decay)
        return [p, m, v]

    def same(found: list[Tensor], other: list[Tensor]) -> bool:
        return all(
            torch.allclose(a, b, atol=1e-5, equal_nan=True)
            for a, b in zip(found, other, strict=True)
        )

    plain, decayed = run(0.0), run(0.3)
    assert not torch.equal(plain[0], start), (
        "p is unchanged. Update it in place: p.sub_(…), p.mul_(…)."
    )
    assert bool(plain[1].any()) and bool(plain[2].any()), (
        "m or v is still zero: update the running averages in place too, or the next step starts from nothing."
    )
    for wrong, said in ADAMW_MISTAKES.items():
        assert not same(decayed, simulated(0.3, wrong)), said
    right = simulated(0.0)
    for name, found, expected in zip(("m", "v"), plain[1:], right[1:], strict=True):
        assert torch.allclose(found, expected, atol=1e-5), (
            f"After four steps {name} is off by up to {(found - expected).abs().max():.3g}. "
            "m averages the gradient with beta1, v its square with beta2; both stay uncorrected."
        )
    assert bool(plain[0].isfinite().all()), (
        "p is no longer finite: what do you divide by, or take the root of?"
    )
    assert torch.allclose(plain[0], right[0], atol=1e-5), (
        f"m and v are right, but without decay p is off by up to {(plain[0] - right[0]).abs().max():.3g}. "
        "Look at the two corrections, the root, eps and lr."
    )
    assert same(decayed, simulated(0.3)), (
        f"With decay, p is off by up to {(decayed[0] - simulated(0.3)[0]).abs().max():.3g}: "
        "p * (1 - lr * decay) comes before the step, and m and v know nothing of it."
    )
    return "Averages, correction, root, eps and decay all hold."


@exercise
def accumulate(fn: Callable[[GPT, Tensor, Tensor, int], None]) -> str:
    """Check an `accumulate(model, x, y, rows)` that leaves the whole batch's gradient in `.grad`."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = GPT(
            GPTConfig(
                vocab_size=20,
                context_length=8,
                n_layers=1,
                n_heads=2,
                d_model=8,
                d_ff=16,
            )
        )
        x, y = torch.randint(20, (2, 5, 8))  # (B, T) each
    y[:2, 2:] = IGNORE  # the first part has few targets
    made, gone_back, pending, largest = 0, 0, 0, 0

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Called for each forward pass, however the loss is computed."""
        nonlocal made, gone_back, pending, largest

        def back(gradient: Tensor) -> None:
            nonlocal gone_back
            gone_back += 1

        pending += made > gone_back  # an earlier part still waits for its backward pass
        made, largest = made + 1, max(largest, len(inputs[0]))
        if output.requires_grad:
            output.register_hook(back)
        else:
            gone_back += 1

    def gradient(parts: list[tuple[slice, float]]) -> Tensor:
        model.zero_grad()
        for rows, weight in parts:
            (model.loss(x[rows], y[rows]) * weight).backward()
        found = torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        )
        model.zero_grad()
        return found

    cuts = [slice(0, 2), slice(2, 4), slice(4, 5)]
    counts = [int((y[cut] != IGNORE).sum()) for cut in cuts]
    whole = gradient([(slice(0, 5), 1.0)])
    watching = model.token_embedding.register_forward_hook(watch)
    fn(model, x.clone(), y.clone(), 2)
    watching.remove()
    grads = [p.grad for p in model.parameters()]
    assert all(g is not None for g in grads), (
        "Some parameter has no gradient: call backward() for each part, and don't zero the gradients at the end."
    )
    found = torch.cat([g.flatten() for g in grads if g is not None])
    assert not pending, (
        "You add up the losses and go back once at the end, so all parts stay in memory until then. Call backward() for each part before the next."
    )
    assert largest <= 2, (
        f"You computed {largest} texts at once where rows = 2 were allowed: split x and y."
    )
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
    assert not close(
        gradient([cut_weight for cut_weight in [(cuts[-1], counts[-1] / sum(counts))]])
    ), "Only the last part is left: the gradients are zeroed between the parts."
    assert not close(gradient([(cut, 1.0) for cut in cuts[-1:]])), (
        "Only the last part is left, unweighted: the gradients are zeroed between the parts."
    )
    assert not close(
        gradient(
            [
                (cut, count / sum(counts))
                for cut, count in list(zip(cuts, counts, strict=True))[:2]
            ]
        )
    ), "The last, shorter part is missing: 5 texts in parts of 2 are three parts."
    assert close(whole), (
        f"The gradient is off by {(found - whole).norm() / whole.norm():.0%} of its length. Each part's mean should be weighted by its share of the counted targets."
    )
    return "The parts add up to the whole batch's gradient."
