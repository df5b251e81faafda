"""Checks of the exercises on cost: three references with switches, and the sentence for each."""

import math
from collections.abc import Callable
from typing import Any

from course.check.diagnose import (
    RIGHT,
    Diagnosis,
    Wrong,
    WrongKind,
    listed,
    number,
    pick,
    whole,
)
from course.check.verdict import exercise


def _bill(*probe: float, wrong: Wrong = RIGHT) -> tuple[float, float]:
    flops, peak_tflops, mfu, gpu, cores, core, gibs, gib = probe
    tera = pick(wrong, {"no tera": 1.0, "giga": 1e9, "binary": 2.0**40}, 1e12)
    shares = {"no mfu": 1.0, "times mfu": 1 / mfu, "percent": mfu / 100}
    seconds = flops / (peak_tflops * tera * pick(wrong, shares, mfu))
    hours = seconds / 3600
    if wrong & {"whole hours", "whole hours, all"}:
        hours = math.ceil(hours)
    if "hours down" in wrong:
        hours //= 1
    if wrong & {"whole hours, all", "hours down"}:
        seconds = hours * 3600
    host = cores * core + gibs * gib
    bills = {
        "only gpu": seconds * gpu,
        "one each": seconds * (gpu + core + gib),
        "one core": seconds * (gpu + core + gibs * gib),
        "one gib": seconds * (gpu + cores * core + gib),
        "no memory": seconds * (gpu + cores * core),
        "no cores": seconds * (gpu + gibs * gib),
        "no gpu": seconds * host,
        "swapped": seconds * (gpu + cores * gib + gibs * core),
        "per core": seconds * (cores * (gpu + core) + gibs * gib),
        "all per core": seconds * cores * (gpu + core + gibs * gib),
        "host once": seconds * gpu + host,
        "host for an hour": seconds * gpu + 3600 * host,
        "host hourly": seconds * gpu + hours * host,
        "hourly": hours * (gpu + host),
        "seconds as hours": seconds * (gpu + host) * 3600,
        "twice": hours * (gpu + host),
    }
    dollars = pick(wrong, bills, seconds * (gpu + host))
    times = {"seconds": seconds, "minutes": seconds / 60, "twice": hours / 3600}
    hours = pick(wrong, times | {"seconds as hours": seconds}, hours)
    return (dollars, hours) if "turned" in wrong else (hours, dollars)


BILL = Diagnosis(
    _bill,
    {
        "seconds": "The time is in seconds; hours are asked for.",
        "minutes": "The time is in minutes; hours are asked for.",
        "seconds as hours": "FLOPs divided by FLOP/s are seconds. You take them for hours, in the time and in the dollars.",
        "twice": "You divide by 3600 once too often: seconds become hours only once.",
        "no mfu": "The MFU is missing: nobody reaches the peak, so divide by peak x mfu.",
        "times mfu": "You multiply the time by the MFU. A lower utilisation makes a run *longer*: divide by it.",
        "percent": "You take the MFU for a percentage; 0.5 is already half of the peak.",
        "no tera": "The peak is in TFLOP/s: 10¹² FLOPs per second each.",
        "giga": "A TFLOP is 10¹² FLOPs, not 10⁹.",
        "binary": "A TFLOP is 10¹² FLOPs, not 2⁴⁰: powers of two count memory.",
        "whole hours": "You round the time up to whole hours. Seconds are billed, and hours may have a fraction.",
        "whole hours, all": "You round the time up to whole hours, and bill these. Seconds are billed: no rounding.",
        "hours down": "You round the time down to whole hours, and bill these. Seconds are billed: no rounding.",
        "only gpu": "Only the GPU is paid for. The cores and the memory beside it are on the bill too.",
        "one each": "One core and one GiB are paid for; the container has several.",
        "one core": "One core is paid for; the container has `cores` of them.",
        "one gib": "One GiB is paid for; the container has `gibs` of them.",
        "no memory": "The memory is missing on the bill.",
        "no cores": "The cores are missing on the bill.",
        "no gpu": "The GPU is missing on the bill.",
        "swapped": "The prices of a core and of a GiB have changed places.",
        "per core": "You pay the GPU once for each core. There is one GPU.",
        "all per core": "You multiply the GPU and the memory by the cores too. Only `core` counts once for each core.",
        "host once": "The cores and the memory are paid for one second only. They are billed as long as the GPU is: mind the parentheses.",
        "host for an hour": "The cores and the memory are paid for one hour, however long the run is. They are billed as long as the GPU is.",
        "host hourly": "The prices of cores and memory are per second too, and you multiply them by hours.",
        "hourly": "Prices are per second, and you multiply them by hours.",
        "turned": "The pair is the wrong way round: first the hours, then the dollars.",
    },
    [
        (3.6e16, 10.0, 0.5, 0.001, 2.0, 0.0001, 8.0, 0.00001),  # two hours
        (3.7e17, 121.0, 0.35, 0.000222, 4.0, 0.0000131, 16.0, 0.00000222),
        (2e19, 989.0, 0.4, 0.001097, 1.0, 0.0000131, 1.0, 0.00000222),
    ],
    lambda flops, peak, mfu, gpu, cores, core, gibs, gib: (
        f"For {flops:.3g} FLOPs at {mfu:.0%} of {peak:g} TFLOP/s, with ${gpu:g} a second for the GPU, {cores:g} "
        f"core(s) at ${core:g} and {gibs:g} GiB at ${gib:.2g}"
    ),
    read=listed(number, 2, "the pair (hours, dollars)"),
)


@exercise
def bill(fn: Callable[..., Any]) -> str:
    """Check a `bill(flops, peak_tflops, mfu, gpu, cores, core, gibs, gib) -> (hours, dollars)`."""
    BILL.judge(fn)
    return "Peak, utilisation, units, and everything that the container reserves."


def _steps(*probe: float, wrong: Wrong = RIGHT) -> int:
    timeout, dollars, fast, slow, rate = probe
    lasts = {
        "hours": dollars / rate,
        "minutes": dollars / rate * 60,
        "whole hours": dollars // rate * 3600,
        "times": dollars * rate * 3600,
        "turned": rate / dollars * 3600,
        "per second": dollars / rate / 3600,
        "rate ignored": dollars * 3600,
        "both hours": dollars / rate,
    }
    money = pick(wrong, lasts, dollars / rate * 3600)
    if "both hours" in wrong:
        timeout /= 3600
    paces = {"fast": fast, "middle": (fast + slow) / 2, "half": fast + slow / 2}
    pace = pick(wrong, paces | {"sum": fast + slow, "multiplied": 1 / slow}, slow)
    by_time = timeout / pick(wrong, {"fast time": fast}, pace)
    by_money = money / pick(wrong, {"fast money": fast}, pace)
    which = {
        "only time": by_time,
        "only money": by_money,
        "larger": max(by_time, by_money),
        "added": by_time + by_money,
    }
    most = pick(wrong, which, min(by_time, by_money))
    ways = {
        "up": math.ceil(most),
        "nearest": round(most),
        "one more": int(most) + 1,
        "one less": int(most) - 1,
        "below": max(0, math.ceil(most) - 1),
    }
    return int(pick(wrong, ways, int(most)))


STEPS = Diagnosis(
    _steps,
    {
        "only time": "You look only at the time. Where the money runs out first, you promise too much.",
        "only money": "You look only at the money. Where the time runs out first, you promise too much.",
        "larger": "You take the *larger* of the two limits. Both must hold: the smaller.",
        "added": "You add the two limits. Both run at once: the smaller holds.",
        "fast": "You plan with the fast end. A promise must hold at the slow end.",
        "fast time": "You plan with the fast end where the time decides. A promise must hold at the slow end.",
        "fast money": "You plan with the fast end where the money decides. A promise must hold at the slow end.",
        "middle": "You plan with the middle. Half of all runs would break the promise.",
        "half": "fast + slow / 2 halves only slow. And the middle would be no promise either: plan with the slow end.",
        "sum": "You let each step take fast + slow seconds. A step takes slow seconds at most.",
        "multiplied": "You multiply the seconds by those of a step. How many steps fit in: divide.",
        "hours": "dollars / dollars_per_hour are *hours*, and you compare them with seconds.",
        "both hours": "Both limits are in hours, and you divide them by the seconds of a step.",
        "minutes": "You turn the hours that the money lasts into minutes. An hour has 3600 seconds.",
        "per second": "You divide the hours that the money lasts by 3600. To get seconds, multiply.",
        "whole hours": "You count only whole hours that the money lasts. Its last, broken hour pays for steps too.",
        "times": "You multiply the dollars by the price. How long money lasts: dollars divided by dollars per hour.",
        "turned": "You divide the price by the dollars. How long money lasts: dollars divided by dollars per hour.",
        "rate ignored": "You leave out the price: as if an hour cost one dollar.",
        "up": "You round up. The last of these steps does not fit: round down.",
        "nearest": "You round to the nearest. Where that is up, the last step does not fit: round down.",
        "one more": "You promise one step too many: the one that breaks the limit does not count.",
        "one less": "You promise one step too few.",
        "below": "A step that just fits is left out: a limit may be reached, only not passed.",
    },
    [
        (100.0, 5.0, 1.0, 2.0, 1.0),  # 50 steps, and not a second is left
        (7200.0, 1.0, 0.6, 1.7, 0.9),  # the money ends first
        (1000.0, 50.0, 0.6, 1.7, 0.9),  # the time does
        (3600.0, 450.0, 0.5, 2.0, 1800.0),  # 450 steps, and not a cent is left
        (9000.0, 0.25, 0.6, 1.9, 2.2),
        (36000.0, 6.0, 0.2, 0.7, 0.5),
        (1.0, 5.0, 0.5, 2.5, 1.0),  # none
    ],
    lambda timeout, dollars, fast, slow, rate: (
        f"With {timeout:g} s, ${dollars:g}, {fast:g} to {slow:g} s a step and ${rate:g} an hour"
    ),
    read=whole,
)


@exercise
def steps_within(fn: Callable[..., Any]) -> str:
    """Check a `steps(timeout, dollars, fast, slow, dollars_per_hour) -> int`."""
    STEPS.judge(fn)
    return "The smaller limit, at the slow end, rounded down."


Named = dict[str, tuple[float, float]]
Law = Callable[[float, float], float]


def _best_buy(
    models: Named, gpus: Named, dollars: float, law: Law, wrong: Wrong = RIGHT
) -> Any:
    def loss(pair: tuple[str, str]) -> float:
        n, flops = models[pair[0]][:: -1 if "model turned" in wrong else 1]
        speed, price = gpus[pair[1]][:: -1 if "gpu turned" in wrong else 1]
        money = 1.0 if "no dollars" in wrong else dollars
        lasts = {
            "hours": money / price,
            "per second": money / price / 3600,
            "no price": money * 3600,
            "times price": money * price * 3600,
        }
        done = pick(wrong, lasts, money / price * 3600) * speed
        if "tera" in wrong:
            done *= 1e12
        each = {
            "6N": 6 * n,
            "2N": 2 * n,
            "N": n,
            "no flops": 1,
            "times flops": 1 / flops,
        }
        tokens = done / pick(wrong, each, flops)
        n = pick(wrong, {"flops for n": flops}, n)
        return law(tokens, n) if "law turned" in wrong else law(n, tokens)

    worth = {name: speed / price for name, (speed, price) in gpus.items()}
    cheapest = min(gpus, key=lambda name: gpus[name][1])
    fastest = max(gpus, key=lambda name: gpus[name][0])
    chosen = {
        "cheapest gpu": [cheapest],
        "fastest gpu": [fastest],
        "first gpu": [*gpus][:1],
        "last gpu": [*gpus][-1:],
    }
    sized = {
        "largest": lambda: max(models, key=lambda name: models[name][0]),
        "smallest": lambda: min(models, key=lambda name: models[name][0]),
        "most tokens": lambda: min(models, key=lambda name: models[name][1]),
    }
    if model := pick(wrong, sized, None):
        pair = model(), pick(wrong, chosen, [max(gpus, key=worth.__getitem__)])[0]
    else:
        kept = list(models)[: 1 if "first model" in wrong else None]
        pairs = [(m, g) for m in kept for g in pick(wrong, chosen, gpus)]
        losses = {pair: loss(pair) for pair in pairs}
        pair = (max if "highest" in wrong else min)(losses, key=losses.__getitem__)
        pair = pick(wrong, {"last": pairs[-1]}, pair)
    apart = {"cheapest apart": cheapest, "fastest apart": fastest}
    pair = pair[0], pick(wrong, apart, pair[1])
    return pair[::-1] if "turned" in wrong else pair


def _watched(fn: Callable[..., Any], models: Named, gpus: Named, dollars: float) -> Any:
    """The answer, and for each size that `law` was asked for the most tokens: the same in every right order."""
    asked: list[tuple[float, float]] = []

    def law(parameters: float, tokens: float) -> float:
        asked.append((float(parameters), float(tokens)))
        return 1.5 + 400 / parameters**0.34 + 400 / tokens**0.28

    answer = fn(models, gpus, dollars, law)
    return answer, sorted(
        {n: max(t for m, t in asked if m == n) for n, _ in asked}.items()
    )


def _pair(value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or [*map(type, value)] != [str, str]:
        raise WrongKind("the pair (model, gpu), two of the names that were given")
    return list(value)


def _asked(got: Any, wanted: Any) -> str:
    if not got:
        return "you never ask `law`, and its loss decides."
    n, tokens = next(pair for pair in wanted if pair not in got)
    return (
        f"`law` is not asked for the right numbers: for {n:.3g} parameters the best GPU makes {tokens:.4g} tokens. "
        + f"Yours asks for {', '.join(f'({a:.4g}, {b:.4g})' for a, b in got[:3])}{', …' if got[3:] else ''}."
    )


BEST_BUY = Diagnosis(
    _best_buy,
    {
        "cheapest gpu": "You chose the GPU with the lowest price per hour. What counts is FLOPs for a dollar: FLOP/s divided by the price.",
        "fastest gpu": "You chose the fastest GPU. Another one does more work for a dollar, and nobody set a time limit.",
        "cheapest apart": "You choose the GPU apart from the model, by the lowest price per hour. What counts is FLOPs for a dollar.",
        "fastest apart": "You choose the GPU apart from the model, the fastest. What counts is FLOPs for a dollar.",
        "first gpu": "You try only the first GPU.",
        "last gpu": "You try only the last GPU.",
        "first model": "You try only the first model: is there a `return` inside the loop?",
        "last": "You return the last pair that was tried, not the one with the lowest loss.",
        "highest": "You chose the pair with the highest loss.",
        "largest": "You chose the largest model, without asking the law. It may see too few tokens.",
        "smallest": "You chose the smallest model, without asking the law. It may be too small to use its tokens.",
        "most tokens": "You chose the model that sees the most tokens, without asking the law. It may be too small to use them.",
        "6N": "You take 6 FLOPs per parameter and token. A model's second number gives its FLOPs per token.",
        "2N": "You take 2 FLOPs per parameter and token. A model's second number gives its FLOPs per token.",
        "N": "You divide by the parameters. Tokens are FLOPs divided by FLOPs per token, a model's second number.",
        "no flops": "You hand `law` the FLOPs that the money buys. Divide them by the FLOPs per token.",
        "times flops": "You multiply by the FLOPs per token. Tokens are FLOPs divided by FLOPs per token.",
        "flops for n": "You hand `law` the FLOPs per token where it asks for the parameters.",
        "model turned": "The two numbers of a model have changed places: parameters come first, then FLOPs per token.",
        "gpu turned": "The two numbers of a GPU have changed places: FLOP/s come first, then dollars per hour.",
        "law turned": "The arguments of `law` have changed places: parameters come first, then tokens.",
        "tera": "You take a GPU's speed for TFLOP/s. It is in FLOP/s: no 10¹².",
        "hours": "dollars / price are hours, and a GPU's speed is per second: times 3600.",
        "per second": "You divide the hours by 3600. To get seconds, multiply.",
        "no price": "You leave out what a GPU costs: as if a dollar bought an hour of any.",
        "times price": "You multiply by the price. A dearer GPU gives *fewer* seconds for the money: divide.",
        "no dollars": "You leave out the dollars: as if there were one to spend.",
        "turned": "The pair is the wrong way round: first the model, then the GPU.",
    },
    [
        ({"large": (1e9, 6e9), "small": (1e7, 9e7)}, {"dear": (3e14, 4.0), "slow": (2e13, 1.0)}, 2.0),
        (
            {"long": (2e7, 3e8), "small": (1.2e8, 8.5e8), "tiny": (4e7, 2e8), "large": (7e8, 5e9), "huge": (7e9, 5e10)},
            {"frugal": (1.6e13, 0.6), "fair": (4e13, 1.8), "best": (3e14, 4.0), "fast": (6e14, 9.5)},
            5.0,
        ),
        (
            {"huge": (7e9, 5e10), "small": (1.2e8, 8.5e8), "large": (7e8, 5e9)},
            {"fast": (6e14, 9.5), "best": (3e14, 4.0), "fair": (4e13, 1.8)},
            5000.0,
        ),
        ({"b": (2e8, 2e9), "a": (1e8, 4e9), "c": (3e9, 2e10)}, {"only": (1e14, 2.0)}, 60.0),
    ],
    lambda models, gpus, dollars: f"For ${dollars:g}, the models {', '.join(models)} and the GPUs {', '.join(gpus)}",
    read=_pair,
    observe=_watched,
    noted=_asked,
)  # fmt: skip


@exercise
def best_buy(fn: Callable[..., Any]) -> str:
    """Check a `best_buy(models, gpus, dollars, law) -> (model, gpu)`."""
    BEST_BUY.judge(fn)
    return "The most work for a dollar, and the model that makes the most of it: for more dollars a larger one."
