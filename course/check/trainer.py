"""The checks of the exercises of the chapter on the trainer."""

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from course.check.diagnose import Diagnosis, WrongKind, number, readable
from course.check.verdict import call, exercise
from slm.model.config import IGNORE, GPTConfig
from slm.model.gpt import GPT

LINES = "Three straight lines: up, level, down."
RATES = {
    "zero start": "Your warm-up begins at 0, so step 0 moves nothing, and the peak comes one step late: use (step + 1) / warmup.",
    "warmup - 1": "Your warm-up begins at 0, so step 0 moves nothing, though the peak comes in time: use (step + 1) / warmup.",
    "warmup + 1": "Your warm-up has warmup + 1 rises, so its last step is below the peak: use (step + 1) / warmup.",
    "late end": "Your fall comes one step late: the last step has peak / fall and not 0. Steps count from 0, so the last is steps - 1: use (steps - 1 - step) / fall.",
    "fall + 1": "Your fall goes over fall + 1 steps, so step steps - 1 - fall is below the peak. Divide by fall.",
    "fall - 1": "Your fall goes over fall - 1 steps, so the peak stays one step too long. Divide by fall.",
    "early end": "Your fall comes one step early: 0 is reached before the last step. Use (steps - 1 - step) / fall.",
    "cosine": "Your fall is a cosine. It should be a straight line.",
    "from warm-up": "Your rate falls from the warm-up on. It stays at the peak until step steps - 1 - fall.",
    "at fall": "Your fall begins at step `fall`. It goes over the *last* `fall` steps: after step steps - 1 - fall.",
    "no fall": "Nothing falls: over the last `fall` steps a straight line should take the rate to 0.",
    "to a tenth": "Your fall ends at a tenth of the peak. It should end at 0.",
    "turned": "Your fall is the wrong way round: it jumps down and rises to the peak.",
    "no warm-up": "Your warm-up is missing: a straight line up to the peak at step warmup - 1.",
    "inverse": "Your warm-up is peak / (step + 1), which begins at the peak. It rises: peak * (step + 1) / warmup.",
    "cosine up": "Your warm-up is a cosine. It should be a straight line.",
    "no peak": "You leave out the peak: all three parts are multiplied by it.",
    "no level": f"Nothing keeps your rate at the peak in the level part: it goes above it. {LINES} The smallest of 1, rise and fall counts.",
    "max": "You take the largest of the three parts. The smallest counts.",
    "product": "You multiply rise and fall without a 1 as the upper bound of each.",
    "whole up": "In the warm-up you divide whole numbers (//), so all is 0 before the last step. Use /.",
    "whole down": "In the fall you divide whole numbers (//), so it is 0 at once. Use /.",
    "whole": "You divide whole numbers (//), so the rate is 0 or the peak. Use /.",
    "from 1": "All your rates come one step late, as where steps are counted from 1: step 0 has 0, and the last one peak / fall. Steps count from 0: (step + 1) / warmup, (steps - 1 - step) / fall.",
    "swapped": "You have mixed up warmup and fall.",
    "none level": "In the level part your function ends without a return, and gives None.",
    "list": "You return the rates of all steps. The one of `step` is asked for.",
    "rounded": "You round the rate, to four decimals. A rate of 0.0003 does not survive that.",
}  # fmt: skip


def rate(step: int, peak: float, warmup: int, fall: int, steps: int, wrong: frozenset[str] = frozenset()) -> Any:  # fmt: skip
    """The reference: up, level, down; with any of RATES made."""
    if "list" in wrong:
        rest = wrong - {"list"}
        return [rate(s, peak, warmup, fall, steps, rest) for s in range(steps)]
    if "swapped" in wrong:
        warmup, fall = fall, warmup
    step -= "from 1" in wrong
    left = steps - 1 - step
    ups: dict[str, Callable[[], float]] = {
        "zero start": lambda: step / warmup,
        "warmup - 1": lambda: step / (warmup - 1),
        "warmup + 1": lambda: (step + 1) / (warmup + 1),
        "no warm-up": lambda: 1.0,
        "cosine up": lambda: (
            0.5 * (1 - math.cos(math.pi * min(1, (step + 1) / warmup)))
        ),
        "inverse": lambda: 1 / (step + 1),
        "whole up": lambda: (step + 1) // warmup,
        "whole": lambda: (step + 1) // warmup,
    }
    downs: dict[str, Callable[[], float]] = {
        "late end": lambda: (left + 1) / fall,
        "early end": lambda: max(0, left - 1) / fall,
        "fall - 1": lambda: left / (fall - 1),
        "fall + 1": lambda: left / (fall + 1),
        "cosine": lambda: 0.5 * (1 - math.cos(math.pi * min(1, left / fall))),
        "from warm-up": lambda: left / (steps - warmup),
        "at fall": lambda: left / (steps - 1 - fall) if step >= fall else 1.0,
        "no fall": lambda: 1.0,
        "to a tenth": lambda: 0.1 + 0.9 * left / fall,
        "turned": lambda: 1 - left / fall if left < fall else 1.0,
        "whole down": lambda: left // fall,
        "whole": lambda: left // fall,
    }
    up = next((ups[key] for key in ups if key in wrong), lambda: (step + 1) / warmup)
    down = next((downs[key] for key in downs if key in wrong), lambda: left / fall)
    rise = 1.0 if "inverse" in wrong and step >= warmup else up()
    if "no level" in wrong:
        return peak * min(rise, down())
    if "max" in wrong:
        return peak * max(0, rise, down())
    if "product" in wrong:
        return peak * rise * down()
    share = min(1.0, rise, 1.0 if step < warmup and "from warm-up" in wrong else down())
    if "none level" in wrong and share == 1 and warmup <= step < steps - 1 - fall:
        return None
    value = share if "no peak" in wrong else peak * share
    return round(value, 4) if "rounded" in wrong else value


class _Rates(list[Any]):
    """The rates of all steps."""


def _all_steps(fn: Any, peak: float, warmup: int, fall: int, steps: int) -> tuple[Any, None]:  # fmt: skip
    """The rates of all steps, with None where there is none; or the first result, if it is no number."""
    found = [call(fn, step, peak, warmup, fall, steps) for step in range(steps)]
    try:
        return _Rates(None if one is None and i else number(one) for i, one in enumerate(found)), None  # fmt: skip
    except WrongKind:
        return found[0], None


def _read(found: Any) -> list[Any]:
    if not isinstance(found, _Rates):
        raise WrongKind("the rate of one step, a number")
    return list(found)


SCHEDULE = Diagnosis(
    rate,
    RATES,
    [(2.0, 4, 3, 10), (3e-4, 2, 5, 14), (0.5, 10, 40, 110), (3.0, 5, 5, 10), (1.5, 3, 2, 7)],
    lambda peak, warmup, fall, steps: f"The rates of steps 0 to {steps - 1} for peak = {peak:g}, warmup = {warmup}, fall = {fall}",
    read=_read,
    observe=_all_steps,
    rtol=1e-5,
    atol=1e-9,
)  # fmt: skip


@exercise
def schedule(fn: Callable[[int, float, int, int, int], float]) -> str:
    """Check a `schedule(step, peak, warmup, fall, steps)`: up, level, and down to 0 over the last `fall` steps."""
    SCHEDULE.judge(fn)
    return "Up, level and down, and both ends hold."


SHRINK = "Shrink p itself, first: p.mul_(1 - lr * decay)."
ADAMW = {
    "m kept corrected": "You keep m corrected. It must go on uncorrected: divide into a new tensor, m / (1 - beta1**t).",
    "v kept corrected": "You keep v corrected. It must go on uncorrected: divide into a new tensor, v / (1 - beta2**t).",
    "both kept corrected": "You keep m and v corrected. They must go on uncorrected: divide into new tensors, m / (1 - beta1**t).",
    "m whole share": "m grows too fast: the gradient counts only (1 - beta1) in it.",
    "v whole share": "v grows too fast: the squared gradient counts only (1 - beta2) in it.",
    "whole shares": "m and v grow too fast: the new part counts only (1 - beta1) in m and (1 - beta2) in v.",
    "m shares swapped": "You have swapped the shares in m: the old average counts beta1, the gradient 1 - beta1.",
    "v shares swapped": "You have swapped the shares in v: the old average counts beta2, the squared gradient 1 - beta2.",
    "shares swapped": "You have swapped the shares: the old average counts beta, the new part 1 - beta.",
    "betas swapped": "You have swapped beta1 and beta2: beta1 belongs to m, beta2 to v.",
    "beta1 twice": "You average v with beta1, too. v belongs to beta2.",
    "corrections swapped": "You correct m with beta2 and v with beta1. m belongs to beta1, v to beta2.",
    "multiplied": "You multiply by 1 - beta**t. The averages are too small at first: divide.",
    "unsquared": "Your v averages the gradient. It should average its *square*.",
    "absolute": "Your v averages the gradient's absolute value. It should average its *square*.",
    "m squared": "Your v averages the square of m. It should average the square of the gradient.",
    "mean square": "You give all weights one v, of the mean of the squares. Each weight has its own.",
    "constants": "You average with betas of your own, 0.9 and 0.999. Use beta1 and beta2.",
    "uphill": "You go uphill: subtract the step.",
    "uncorrected": "You correct neither average. They start at zero and are too small at first: divide by 1 - beta**t.",
    "m uncorrected": "You do not correct m; it starts at zero, too: divide it by 1 - beta1**t.",
    "v uncorrected": "You do not correct v; it starts at zero, too: divide it by 1 - beta2**t.",
    "t + 1": "You correct with t + 1. t counts from 1 already.",
    "t - 1": "You correct with t - 1, which is 0 in the first step. t counts from 1 already.",
    "beta * t": "You correct with beta * t. It is a power: 1 - beta**t.",
    "once": "You correct with 1 - beta at every step. It is a power: 1 - beta**t.",
    "rootless": "You divide by v itself. Divide by its square root.",
    "undivided": "You do not divide by the root of v: all gradients' sizes count as they are.",
    "eps inside": "You add eps under the root. It is added after the root.",
    "eps early": "You add eps to the root of the uncorrected v. Correct first, take the root, then add eps.",
    "no eps": "You leave out eps: where all gradients are zero you divide 0 by 0.",
    "raw": "You step along the gradient. Step along its average m, corrected.",
    "before": "You step with the averages as they were. Update m and v first.",
    "no lr": "You leave out lr in the step.",
    "l2": f"You add the decay to the gradient, so it is divided by the root of v, too. That is Adam with L2, not AdamW. {SHRINK}",
    "decay alone": "You shrink p by decay. It should shrink by lr * decay, so that the schedule governs both.",
    "grows": "Your p grows by the decay. It should shrink: 1 - lr * decay.",
    "times": "You multiply p by lr * decay, so that hardly anything is left. Multiply by 1 - lr * decay.",
    "late": f"You shrink p after the step, so the step shrinks as well. {SHRINK}",
    "no decay": f"You leave out the decay. {SHRINK}",
    "rebinds": "Nothing that you were handed has changed: `p = …` only gives the name p to a new tensor. Change the tensors themselves: p.copy_(…), p.sub_(…), p[:] = ….",
    "no underscore": "m and v have not changed: m.mul(…) and .add(…) make new tensors. With an underscore, mul_ and add_, they change the tensor itself.",
    "p only": "m and v have not changed: `m = …` only gives the name m to a new tensor. Change them in place, too, or the next step starts from nothing.",
    "m and v only": "p has not changed: `p = …` only gives the name p to a new tensor. Change it in place, too.",
    "fresh": "m and v have not changed, and each step is a first one, as a new torch.optim.AdamW makes it. Update m and v in place.",
    "grad": "You change the gradient that you were handed, by squaring it in place. Use grad * grad.",
}  # fmt: skip


def adamw_step(p: Tensor, grad: Tensor, m: Tensor, v: Tensor, t: int, lr: float, beta1: float, beta2: float, eps: float, decay: float, wrong: frozenset[str] = frozenset()) -> None:  # fmt: skip
    """The reference: p, m and v in place; with any of ADAMW made."""
    if "rebinds" in wrong:
        return
    g, b1, b2 = grad, beta1, beta2
    if "constants" in wrong:
        b1, b2, eps = 0.9, 0.999, 1e-8
    if "betas swapped" in wrong:
        b1, b2 = b2, b1
    if "fresh" in wrong:
        p.mul_(1 - lr * decay).sub_(lr * g / (g.abs() + eps))
        return
    shrinks = {"l2": 1.0, "late": 1.0, "no decay": 1.0, "decay alone": 1 - decay, "grows": 1 + lr * decay, "times": lr * decay}  # fmt: skip
    start = p.clone() if "m and v only" in wrong else None
    kept = (m.clone(), v.clone()) if "p only" in wrong else None
    if "l2" in wrong:
        g = g + decay * p
    p.mul_(next((shrinks[key] for key in shrinks if key in wrong), 1 - lr * decay))
    if "no underscore" in wrong:
        return
    b2 = b1 if "beta1 twice" in wrong else b2
    old_m, old_v = m.clone(), v.clone()
    keep1, keep2, new1, new2 = b1, b2, 1 - b1, 1 - b2
    if wrong & {"shares swapped", "m shares swapped"}:
        keep1, new1 = new1, keep1
    if wrong & {"shares swapped", "v shares swapped"}:
        keep2, new2 = new2, keep2
    new1 = 1.0 if wrong & {"m whole share", "whole shares"} else new1
    new2 = 1.0 if wrong & {"v whole share", "whole shares"} else new2
    m.mul_(keep1).add_(g, alpha=new1)
    squares = {"unsquared": lambda: g, "absolute": lambda: g.abs(), "m squared": lambda: m * m, "mean square": lambda: (g * g).mean().expand_as(g)}  # fmt: skip
    v.mul_(keep2).add_(next((squares[key]() for key in squares if key in wrong), g * g), alpha=new2)  # fmt: skip
    power = t + ("t + 1" in wrong) - ("t - 1" in wrong)
    c1, c2 = 1 - b1**power, 1 - b2**power
    c1, c2 = (1 - b1 * t, 1 - b2 * t) if "beta * t" in wrong else (c1, c2)
    c1, c2 = (1 - b1, 1 - b2) if "once" in wrong else (c1, c2)
    c1, c2 = (c2, c1) if "corrections swapped" in wrong else (c1, c2)
    c1, c2 = (1 / c1, 1 / c2) if "multiplied" in wrong else (c1, c2)
    c1 = 1.0 if wrong & {"uncorrected", "m uncorrected"} else c1
    c2 = 1.0 if wrong & {"uncorrected", "v uncorrected"} else c2
    m_hat, v_hat = (old_m, old_v) if "before" in wrong else (m, v)
    m_hat, v_hat = m_hat / _nonzero(c1), v_hat / _nonzero(c2)
    if wrong & {"m kept corrected", "both kept corrected"}:
        m.copy_(m_hat)
    if wrong & {"v kept corrected", "both kept corrected"}:
        v.copy_(v_hat)
    below = v_hat if "rootless" in wrong else v_hat.sqrt()
    below = below + (0.0 if "no eps" in wrong else eps)
    if "eps inside" in wrong:
        below = (v_hat + eps).sqrt()
    if "eps early" in wrong:
        below = ((v_hat * c2).sqrt() + eps) / math.sqrt(c2)
    if "undivided" in wrong:
        below = torch.ones_like(below)
    step = (1.0 if "no lr" in wrong else lr) * (g if "raw" in wrong else m_hat) / below
    p.add_(step if "uphill" in wrong else -step)
    if "late" in wrong:
        p.mul_(1 - lr * decay)
    if "grad" in wrong:
        grad.pow_(2)
    if kept is not None:
        m.copy_(kept[0])
        v.copy_(kept[1])
    if start is not None:
        p.copy_(start)


def _nonzero(divisor: float) -> Tensor:
    return torch.tensor(divisor)  # divides by zero as tensors do, to inf


def _steps(fn: Any, p: Tensor, grads: Tensor, options: tuple[float, ...]) -> tuple[list[Tensor], bool]:  # fmt: skip
    """p, m and v after as many steps as there are gradients, and whether a gradient was changed."""
    m, v, changed = torch.zeros_like(p), torch.zeros_like(p), False
    p = p.clone()
    for t, g in enumerate(grads, start=1):
        given = g.clone()
        call(fn, p, given, m, v, t, *options)
        changed = changed or not torch.equal(given, g)
    return [p, m, v], changed


def _trial(steps: int, *shape: int, decay: float) -> tuple[Any, ...]:
    """A start, gradients of which one entry is always zero, and lr, betas, eps, decay."""
    generator = torch.Generator().manual_seed(steps)
    start, grads = torch.randn(shape, generator=generator), torch.randn(steps, *shape, generator=generator)  # fmt: skip
    grads.flatten(1)[:, -1] = 0.0
    return start, grads, (0.1, 0.8, 0.9, 1e-2, decay)


ADAMW_STEP = Diagnosis(
    adamw_step,
    ADAMW,
    [_trial(1, 2, decay=0.0), _trial(4, 2, decay=0.0), _trial(4, 3, decay=0.3), _trial(3, 2, 3, decay=0.7)],
    lambda p, grads, options: f"After {len(grads)} step{'s' if len(grads) > 1 else ''} from p = {readable(p)}, m = v = 0 with the gradients {readable(grads)} and lr, beta1, beta2, eps, decay = {options}, of [p, m, v]",
    observe=_steps,
    noted="what becomes of grad, which you change in place",
    pairs=True,
    atol=1e-5,
)  # fmt: skip


@exercise
def adamw(fn: Callable[..., None]) -> str:
    """Check one `adamw_step(p, grad, m, v, t, lr, beta1, beta2, eps, decay)`, in place, over several steps."""
    ADAMW_STEP.judge(fn)
    return "Averages, correction, root, eps and decay all hold."


SHARE = "Weight each part by its share of the targets that are not -100."
PARTS = {
    "alike": f"Every part counts the same in your sum, though they hold different numbers of targets. {SHARE}",
    "alike, some": f"You leave out the parts without targets, and every other part counts the same, though they hold different numbers of them. {SHARE}",
    "all targets": "You divide by the number of all targets, those that are -100 included. Divide by the number of those that count.",
    "inverted": "Your weights are upside down: the targets of the batch by those of the part. Divide the other way.",
    "floor": "Your shares are whole numbers (//): 0, where no part holds all the targets. Use /.",
    "stops early": "Your range ends one text early, so a last part that begins with the last text is missing: range(0, len(x), rows).",
    "unweighted": f"You add the parts' gradients without weights: three means make three times the gradient. {SHARE}",
    "by rows": "Targets that do not count have a say in your weights, as where texts, inputs or all targets are counted. Count the targets that are not -100.",
    "one by one": "You give every text the same weight, one by one. Texts hold different numbers of targets: count those that are not -100.",
    "own share": "You weight by the share of a part's own targets that count. Divide by the number in the whole batch.",
    "over rows": f"You divide every part by `rows`. {SHARE}",
    "counts": "You multiply by the number of a part's targets, and do not divide by that of the whole batch.",
    "largest": "You divide by the number of targets of the largest part. Divide by that of the whole batch.",
    "ignored": "You weight by the targets that are -100. Those are the ones that do not count.",
    "filled": "You put another target in the place of -100, so that those count, too. Leave y as it is.",
    "whole batch": "You compute the whole batch at once; the gradient is right, but `rows` texts were allowed: split x and y.",
    "one backward": "You add up the losses and go back once at the end, so all parts stay in memory until then. Call backward() for each part before the next.",
    "zeroed": "Only your last part is left: something clears the gradients between the parts, or replaces them. backward() adds to .grad by itself.",
    "zeroed, whole": "Only your last part is left, unweighted: something clears the gradients between the parts, or replaces them. backward() adds to .grad by itself.",
    "cleared": "Your gradients are cleared at the end. They are what is asked for.",
    "short missing": "Your last part is missing where it is shorter: 5 texts in parts of 2 are three parts.",
    "last missing": "Your last part is missing.",
    "first missing": "Your first part is missing.",
    "over time": "You split along time, the second axis. Split along the batch: x.split(rows).",
    "chunks": "You make `rows` parts. Each part should have `rows` texts: x.split(rows), not chunk.",
    "halves": "You cut the batch into two halves, whatever `rows` says.",
    "no backward": "Some parameter has no gradient: call backward() for each part, and let .grad be.",
    "twice": "Your gradient is twice as long as it should be, as where backward() is called twice for a part.",
    "steps": "The gradient is right, but you move the weights as well. Leave the step to the optimizer.",
}  # fmt: skip


def accumulated(model: GPT, x: Tensor, y: Tensor, rows: int, wrong: frozenset[str] = frozenset()) -> None:  # fmt: skip
    """The reference: the whole batch's gradient in `.grad`; with any of PARTS made."""
    if "no backward" in wrong:
        return
    if "filled" in wrong:
        y = torch.where(y == IGNORE, torch.zeros_like(y), y)
    size, dim = (1 if "one by one" in wrong else rows), int("over time" in wrong)
    parts = list(zip(x.split(size, dim), y.split(size, dim), strict=True))
    if "chunks" in wrong:
        parts = list(zip(x.chunk(rows), y.chunk(rows), strict=True))
    if "halves" in wrong:
        half = len(x) // 2
        parts = [(x[:half], y[:half]), (x[half:], y[half:])]
    parts = [(x, y)] if "whole batch" in wrong else parts
    if "short missing" in wrong:
        parts = [part for part in parts if len(part[0]) == rows]
    if "stops early" in wrong and (len(x) - 1) % rows == 0:
        parts = parts[:-1]
    parts = parts[1:] if "first missing" in wrong else parts
    parts = parts[:-1] if "last missing" in wrong else parts

    def count(targets: Tensor) -> float:
        counted = targets == IGNORE if "ignored" in wrong else targets != IGNORE
        return float(counted.sum())

    losses = []
    for part_x, part_y in parts:
        weights: dict[str, Callable[[], float]] = {
            "alike": lambda: 1 / len(parts),
            "alike, some": lambda y=part_y: float(count(y) > 0) / sum(count(other) > 0 for _, other in parts),  # type: ignore[misc]
            "all targets": lambda part=part_y: count(part) / y.numel(),  # type: ignore[misc]
            "inverted": lambda part=part_y: (count(y) or math.nan) / (count(part) or math.nan),  # type: ignore[misc]
            "floor": lambda part=part_y: count(part) // count(y),  # type: ignore[misc]
            "unweighted": lambda: 1.0,
            "zeroed, whole": lambda: 1.0,
            "by rows": lambda part=part_x: len(part) / len(x),  # type: ignore[misc]
            "one by one": lambda: 1 / len(x),
            "over rows": lambda: 1 / rows,
            "own share": lambda y=part_y: count(y) / y.numel(),  # type: ignore[misc]
            "counts": lambda y=part_y: count(y),  # type: ignore[misc]
            "largest": lambda y=part_y: count(y) / max(count(other) for _, other in parts),  # type: ignore[misc]
        }  # fmt: skip
        weight = next((weights[key]() for key in weights if key in wrong), count(part_y) / (count(y) or math.nan))  # fmt: skip
        if wrong & {"zeroed", "zeroed, whole"}:
            model.zero_grad()
        losses.append(model.loss(part_x, part_y) * weight)
        if "one backward" not in wrong:
            losses[-1].backward(retain_graph="twice" in wrong)
        if "twice" in wrong:
            losses[-1].backward()
    if "one backward" in wrong:
        functools.reduce(torch.add, losses).backward()
    if "cleared" in wrong:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
    if "steps" in wrong:
        torch.optim.SGD(model.parameters(), lr=0.1).step()


@functools.cache
def _tiny() -> GPT:
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return GPT(GPTConfig(20, 8, n_layers=1, n_heads=2, d_model=8, d_ff=16))


def _gradient(fn: Any, x: Tensor, y: Tensor, rows: int) -> tuple[Any, dict[str, Any]]:
    """All gradients in one vector; how many texts were computed at once, whether parts waited, and the weights moved."""
    model = copy.deepcopy(_tiny())
    made, gone_back, waiting, most = 0, 0, False, 0

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Called for each forward pass, however the loss is computed."""
        nonlocal made, gone_back, waiting, most

        def back(gradient: Tensor) -> None:
            nonlocal gone_back
            gone_back += 1

        waiting = waiting or made > gone_back  # an earlier part has not gone back yet
        made, most = made + 1, max(most, len(inputs[0]))
        if output.requires_grad:
            output.register_hook(back)
        else:
            gone_back += 1

    model.token_embedding.register_forward_hook(watch)
    call(fn, model, x, y, rows)
    moved = any(not torch.equal(p, q) for p, q in zip(model.parameters(), _tiny().parameters(), strict=True))  # fmt: skip
    notes = {"texts at once": max(most, rows), "losses waiting for backward()": waiting, "weights moved": moved}  # fmt: skip
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    if len(grads) < len(list(model.parameters())):
        return "no gradient", {}
    return torch.cat([grad.flatten() for grad in grads]), notes


def _batch(*lengths: int) -> tuple[Tensor, Tensor]:
    """Texts of these lengths: tokens, and targets behind which -100 stands."""
    generator = torch.Generator().manual_seed(len(lengths))
    x, y = torch.randint(20, (2, len(lengths), 8), generator=generator)  # (B, T) each
    for row, length in zip(y, lengths, strict=True):
        row[length:] = IGNORE
    return x, y


ACCUMULATE = Diagnosis(
    accumulated,
    PARTS,
    [(*_batch(2, 3, 8, 5, 8), 2), (*_batch(8, 1, 4, 2, 6, 7), 4), (*_batch(3, 8, 8), 1), (*_batch(0, 0, 7, 3), 2)],
    lambda x, y, rows: f"For {len(x)} texts with {(y != IGNORE).sum(1).tolist()} targets that count, and rows = {rows}, all gradients in one vector",
    observe=_gradient,
    noted="how it is computed",
    pairs=False,
    rtol=1e-3,
    atol=1e-6,
)  # fmt: skip


@exercise
def accumulate(fn: Callable[[GPT, Tensor, Tensor, int], None]) -> str:
    """Check an `accumulate(model, x, y, rows)` that leaves the whole batch's gradient in `.grad`."""
    ACCUMULATE.judge(fn)
    return "The parts add up to the whole batch's gradient."
