"""Checks of the exercises on cost."""

import math
from collections.abc import Callable
from typing import Any

from course.check.verdict import exercise


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6)


@exercise
def bill(
    fn: Callable[
        [float, float, float, float, float, float, float, float], tuple[float, float]
    ],
) -> str:
    """Check a `bill(flops, peak_tflops, mfu, gpu, cores, core, gibs, gib) -> (hours, dollars)`."""
    flops, peak, mfu, gpu, cores, core, gibs, gib = (
        3.7e17,
        121.0,
        0.35,
        0.000222,
        4.0,
        0.0000131,
        16.0,
        0.00000222,
    )
    answer = fn(flops, peak, mfu, gpu, cores, core, gibs, gib)
    assert isinstance(answer, tuple | list) and len(answer) == 2, (
        f"It returned {type(answer).__name__}; return the pair (hours, dollars)."
    )
    hours, dollars = map(float, answer)
    seconds = flops / (peak * 1e12 * mfu)
    assert not _close(hours, seconds), "The time is in seconds; hours are asked for."
    assert not _close(hours, seconds / 60), (
        "The time is in minutes; hours are asked for."
    )
    assert not _close(hours, seconds * mfu / 3600), (
        "The MFU is missing: nobody reaches the peak, so divide by peak x mfu."
    )
    assert not _close(hours, seconds * mfu * mfu / 3600), (
        "You multiply the time by the MFU. A lower utilisation makes a run *longer*: divide by it."
    )
    assert not _close(hours, seconds * 1e12 / 3600), (
        "The peak is in TFLOP/s: 10¹² FLOPs per second each."
    )
    assert not _close(hours, seconds * 1e3 / 3600), "A TFLOP is 10¹² FLOPs, not 10⁹."
    assert _close(hours, seconds / 3600), (
        f"{flops:.2g} FLOPs at {mfu:.0%} of {peak:g} TFLOP/s should take {seconds / 3600:.3f} hours; yours is {hours:.3f}."
    )
    host = cores * core + gibs * gib
    assert not _close(dollars, seconds * gpu), (
        "Only the GPU is paid for. The cores and the memory beside it are on the bill too."
    )
    assert not _close(dollars, seconds * (gpu + core + gib)), (
        "One core and one GiB are paid for; the container has several."
    )
    assert not _close(dollars, seconds * (gpu + cores * core)), (
        "The memory is missing on the bill."
    )
    assert not _close(dollars, seconds * (gpu + gibs * gib)), (
        "The cores are missing on the bill."
    )
    assert not _close(dollars, seconds / 3600 * (gpu + host)), (
        "Prices are per second, and you multiply them by hours."
    )
    right = seconds * (gpu + host)
    assert _close(dollars, right), (
        f"The hours are right; the dollars should be {right:.2f}, yours are {dollars:.2f}."
    )
    return "Peak, utilisation, units, and everything that the container reserves."


@exercise
def steps_within(fn: Callable[[float, float, float, float, float], int]) -> str:
    """Check a `steps(timeout, dollars, fast, slow, dollars_per_hour) -> int`."""
    cases = (
        (7200.0, 1.0, 0.6, 1.7, 0.9),
        (1000.0, 50.0, 0.6, 1.7, 0.9),
    )  # the money ends first; the time does
    answers = [fn(*case) for case in cases]
    for got in answers:
        assert isinstance(got, int), (
            f"It returned {type(got).__name__} ({got}); steps are whole: return an int."
        )
    by_time = [int(timeout / slow) for timeout, _, _, slow, _ in cases]
    by_money = [
        int(dollars / rate * 3600 / slow) for _, dollars, _, slow, rate in cases
    ]
    assert answers != by_time, (
        f"You look only at the time. For ${cases[0][1]:g} at ${cases[0][4]:g} an hour the money runs out before the {cases[0][0]:g} s do."
    )
    assert answers != by_money, (
        f"You look only at the money. With ${cases[1][1]:g} to spend, the {cases[1][0]:g} s run out first."
    )
    assert answers != [max(pair) for pair in zip(by_time, by_money, strict=True)], (
        "You take the *larger* of the two limits. Both must hold: the smaller."
    )
    for (timeout, dollars, fast, slow, rate), got in zip(cases, answers, strict=True):
        seconds = min(timeout, dollars / rate * 3600)
        limits = f"With {timeout:g} s, ${dollars:g}, {fast} to {slow} s a step and ${rate:g} an hour"
        assert got != int(seconds / fast), (
            f"{limits} you plan with the fast end. A promise must hold at the slow end."
        )
        assert got != int(2 * seconds / (fast + slow)), (
            f"{limits} you plan with the middle. Half of all runs would break the promise."
        )
        assert got != int(min(timeout, dollars / rate) / slow), (
            f"{limits} the money lasts for {dollars / rate:.2f} *hours*, and you compare that with seconds."
        )
        assert got != math.ceil(seconds / slow), (
            f"{limits} {got} steps are one too many: round down, the last one does not fit."
        )
        assert got == int(seconds / slow), (
            f"{limits} it should be {int(seconds / slow)} steps; yours is {got}."
        )
    return "The smaller limit, at the slow end, rounded down."


def _law(parameters: float, tokens: float) -> float:
    return 1.5 + 400 / parameters**0.34 + 400 / tokens**0.28


MODELS = {
    "tiny": (1e7, 7e7),
    "small": (1.2e8, 8.5e8),
    "large": (7e8, 5e9),
    "huge": (7e9, 5e10),
}
GPUS = {
    "frugal": (1.6e13, 0.6),
    "fair": (4e13, 0.8),
    "best": (3e14, 4.0),
    "fast": (6e14, 9.5),
}
Buyer = Callable[
    [
        dict[str, tuple[float, float]],
        dict[str, tuple[float, float]],
        float,
        Callable[..., float],
    ],
    Any,
]


@exercise
def best_buy(fn: Buyer) -> str:
    """Check a `best_buy(models, gpus, dollars, law) -> (model, gpu)`."""
    answer = fn(MODELS, GPUS, 5.0, _law)
    assert isinstance(answer, tuple | list) and len(answer) == 2, (
        f"It returned {answer!r}; return the pair (model, gpu)."
    )
    model, gpu = answer
    assert (gpu, model) not in [(m, g) for m in MODELS for g in GPUS], (
        "The pair is the wrong way round: first the model, then the GPU."
    )
    assert model in MODELS and gpu in GPUS, (
        f"It returned {answer!r}; return two of the names that it was given."
    )
    assert gpu != "frugal", (
        "You chose the GPU with the lowest price per hour. What counts is FLOPs for a dollar: FLOP/s divided by the price."
    )
    assert gpu != "fast", (
        "You chose the fastest GPU. Another one does more work for a dollar, and nobody set a time limit."
    )
    assert gpu == "best", (
        f"The GPU {gpu!r} does {GPUS[gpu][0] / GPUS[gpu][1] * 3600:.2g} FLOPs for a dollar; 'best' does more."
    )
    assert model != "huge", (
        "You chose the largest model. For $5 it sees so few tokens that the law's second term outweighs the first."
    )
    assert model != "tiny", (
        "You chose the model that sees the most tokens. It is too small to use them: the law's first term stays large."
    )
    seconds = 5.0 / GPUS["best"][1] * 3600
    losses = {
        name: _law(n, seconds * GPUS["best"][0] / flops)
        for name, (n, flops) in MODELS.items()
    }
    right = min(losses, key=losses.__getitem__)
    assert model == right, (
        f"For $5 on 'best' the law gives {losses[model]:.2f} for {model!r} and {losses[right]:.2f} for {right!r}. Are the seconds seconds, and the tokens FLOPs divided by FLOPs per token?"
    )
    rich = fn(MODELS, GPUS, 5000.0, _law)[0]
    assert rich != model, (
        f"For $5000 you choose {rich!r} as for $5. More dollars are more tokens, and these want a larger model."
    )
    return f"For $5 {model!r} on {gpu!r}; for a thousand times as much {rich!r}."
