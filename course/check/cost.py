"""Checks of the exercises on cost: three references with switches, and the sentence for each."""

import math
from collections.abc import Callable
from typing import Any

from course.check.diagnose import Diagnosis, WrongKind, listed, number, whole
from course.check.verdict import exercise

No = frozenset[str]()


def _bill(
    flops: float,
    peak_tflops: float,
    mfu: float,
    gpu: float,
    cores: float,
    core: float,
    gibs: float,
    gib: float,
    wrong: frozenset[str] = No,
) -> tuple[float, float]:
    tera = {"no tera": 1.0, "giga": 1e9, "binary": 2.0**40}
    rate = peak_tflops * next((tera[w] for w in wrong if w in tera), 1e12)
    used = {"no mfu": 1.0, "times mfu": 1 / mfu, "percent": mfu / 100}
    seconds = flops / rate / next((used[w] for w in wrong if w in used), mfu)
    hours = seconds / 3600
    if "whole hours" in wrong:
        hours = math.ceil(hours)
    if "whole hours, all" in wrong:
        hours = math.ceil(hours)
        seconds = hours * 3600
    price = {
        "only gpu": gpu,
        "one each": gpu + core + gib,
        "no memory": gpu + cores * core,
        "no cores": gpu + gibs * gib,
        "no gpu": cores * core + gibs * gib,
        "swapped": gpu + cores * gib + gibs * core,
        "per core": cores * (gpu + core) + gibs * gib,
        "all per core": cores * (gpu + core + gibs * gib),
    }
    host = cores * core + gibs * gib
    dollars = seconds * next((price[w] for w in wrong if w in price), gpu + host)
    if "host once" in wrong:
        dollars = seconds * gpu + host
    if "host hourly" in wrong:
        dollars = seconds * gpu + hours * host
    if "hourly" in wrong:
        dollars = hours * (gpu + host)
    if "per minute" in wrong:
        dollars /= 60
    if "seconds as hours" in wrong:
        hours, dollars = seconds, dollars * 3600
    if "twice" in wrong:
        hours, dollars = hours / 3600, dollars / 3600
    if "seconds" in wrong or "minutes" in wrong:
        hours = seconds / (1 if "seconds" in wrong else 60)
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
        "only gpu": "Only the GPU is paid for. The cores and the memory beside it are on the bill too.",
        "one each": "One core and one GiB are paid for; the container has several.",
        "no memory": "The memory is missing on the bill.",
        "no cores": "The cores are missing on the bill.",
        "no gpu": "The GPU is missing on the bill.",
        "swapped": "The prices of a core and of a GiB have changed places.",
        "per core": "You pay the GPU once for each core. There is one GPU.",
        "all per core": "You multiply the GPU and the memory by the cores too. Only `core` counts once for each core.",
        "host once": "The cores and the memory are paid for one second only. They are billed as long as the GPU is: mind the parentheses.",
        "host hourly": "The prices of cores and memory are per second too, and you multiply them by hours.",
        "hourly": "Prices are per second, and you multiply them by hours.",
        "per minute": "Prices are per second, and you multiply them by minutes.",
        "turned": "The pair is the wrong way round: first the hours, then the dollars.",
    },
    [
        (3.6e16, 10.0, 0.5, 0.001, 2.0, 0.0001, 8.0, 0.00001),  # two hours
        (3.7e17, 121.0, 0.35, 0.000222, 4.0, 0.0000131, 16.0, 0.00000222),
        (4e18, 989.0, 0.4, 0.001097, 1.0, 0.0000131, 1.0, 0.00000222),
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


def _steps(
    timeout: float,
    dollars: float,
    fast: float,
    slow: float,
    dollars_per_hour: float,
    wrong: frozenset[str] = No,
) -> int:
    affordable = {
        "hours": dollars / dollars_per_hour,
        "minutes": dollars / dollars_per_hour * 60,
        "whole hours": dollars // dollars_per_hour * 3600,
        "times": dollars * dollars_per_hour * 3600,
        "turned": dollars_per_hour / dollars * 3600,
        "per second": dollars / dollars_per_hour / 3600,
        "rate ignored": dollars * 3600,
    }
    money = next(
        (affordable[w] for w in wrong if w in affordable),
        dollars / dollars_per_hour * 3600,
    )
    if "both hours" in wrong:
        timeout, money = timeout / 3600, money / 3600
    paces = {
        "fast": fast,
        "middle": (fast + slow) / 2,
        "half": fast + slow / 2,
        "sum": fast + slow,
    }
    pace = next((paces[w] for w in wrong if w in paces), slow)
    by_time = timeout / (fast if "fast time" in wrong else pace)
    by_money = money / (fast if "fast money" in wrong else pace)
    if "only time" in wrong:
        most = by_time
    elif "only money" in wrong:
        most = by_money
    elif "larger" in wrong:
        most = max(by_time, by_money)
    elif "added" in wrong:
        most = by_time + by_money
    else:
        most = min(by_time, by_money)
    ways: dict[str, Callable[[float], int]] = {
        "up": math.ceil,
        "nearest": round,
        "one more": lambda x: int(x) + 1,
        "one less": lambda x: int(x) - 1,
        "below": lambda x: max(0, math.ceil(x) - 1),
    }
    return next((ways[w] for w in wrong if w in ways), int)(most)


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
    models: Named, gpus: Named, dollars: float, law: Law, wrong: frozenset[str] = No
) -> Any:
    def loss(pair: tuple[str, str]) -> float:
        n, flops = models[pair[0]]
        speed, price = gpus[pair[1]]
        if "model turned" in wrong:
            n, flops = flops, n
        if "gpu turned" in wrong:
            speed, price = price, speed
        money = 1.0 if "no dollars" in wrong else dollars
        lasts = {
            "hours": money / price,
            "per second": money / price / 3600,
            "no price": money * 3600,
            "times price": money * price * 3600,
        }
        seconds = next((lasts[w] for w in wrong if w in lasts), money / price * 3600)
        cost = {
            "6N": 6 * n,
            "2N": 2 * n,
            "N": n,
            "no flops": 1.0,
            "times flops": 1 / flops,
        }
        tokens = seconds * speed / next((cost[w] for w in wrong if w in cost), flops)
        if "flops for n" in wrong:
            n = flops
        return law(tokens, n) if "law turned" in wrong else law(n, tokens)

    choice = {
        "cheapest gpu": lambda: min(gpus, key=lambda g: gpus[g][1]),
        "fastest gpu": lambda: max(gpus, key=lambda g: gpus[g][0]),
        "worst ratio": lambda: min(gpus, key=lambda g: gpus[g][0] / gpus[g][1]),
        "first gpu": lambda: next(iter(gpus)),
        "last gpu": lambda: list(gpus)[-1],
    }
    chosen = [choice[w]() for w in wrong if w in choice]
    best = max(gpus, key=lambda g: gpus[g][0] / gpus[g][1])
    if "largest" in wrong:
        pair = max(models, key=lambda m: models[m][0]), (chosen or [best])[0]
    elif "smallest" in wrong:
        pair = min(models, key=lambda m: models[m][0]), (chosen or [best])[0]
    elif "most tokens" in wrong:
        pair = min(models, key=lambda m: models[m][1]), (chosen or [best])[0]
    else:
        kept = [next(iter(models))] if "first model" in wrong else list(models)
        pairs = [(m, g) for m in kept for g in chosen or gpus]
        losses = {pair: loss(pair) for pair in pairs}
        pair = (max if "highest" in wrong else min)(losses, key=losses.__getitem__)
        if "last" in wrong:
            pair = pairs[-1]
        if "cheapest apart" in wrong:
            pair = pair[0], choice["cheapest gpu"]()
        if "fastest apart" in wrong:
            pair = pair[0], choice["fastest gpu"]()
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
        "worst ratio": "You chose the GPU that does the least for a dollar.",
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
