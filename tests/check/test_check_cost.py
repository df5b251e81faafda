"""The checks on cost: each planted bug is caught with its own message, the stub is told apart, the solution passes."""

import math

import pytest

from course import check


def bill(flops, peak, mfu, gpu, cores, core, gibs, gib):
    seconds = flops / (peak * 1e12 * mfu)
    return seconds / 3600, seconds * (gpu + cores * core + gibs * gib)


def scaled(hours, dollars):
    return lambda *a: (bill(*a)[0] * hours(a), bill(*a)[1] * dollars(a))


def priced(price):
    return lambda *a: (bill(*a)[0], 3600 * bill(*a)[0] * price(*a[3:]))


BILL_BUGS = {
    "in seconds; hours": scaled(lambda a: 3600, lambda a: 1),
    "in minutes": scaled(lambda a: 60, lambda a: 1),
    "The MFU is missing": scaled(lambda a: a[2], lambda a: a[2]),
    "multiply the time by the MFU": scaled(lambda a: a[2] ** 2, lambda a: a[2] ** 2),
    "peak is in TFLOP/s": scaled(lambda a: 1e12, lambda a: 1e12),
    "not 10⁹": scaled(lambda a: 1e3, lambda a: 1e3),
    "should take": scaled(lambda a: 1.5, lambda a: 1),
    "Only the GPU is paid for": priced(lambda gpu, *rest: gpu),
    "One core and one GiB": priced(
        lambda gpu, cores, core, gibs, gib: gpu + core + gib
    ),
    "memory is missing": priced(lambda gpu, cores, core, gibs, gib: gpu + cores * core),
    "cores are missing": priced(lambda gpu, cores, core, gibs, gib: gpu + gibs * gib),
    "multiply them by hours": scaled(lambda a: 1, lambda a: 1 / 3600),
    "the dollars should be": scaled(lambda a: 1, lambda a: 2),
    "return the pair": lambda *a: bill(*a)[1],
}


def steps(timeout, dollars, fast, slow, rate):
    return int(min(timeout, dollars / rate * 3600) / slow)


STEPS_BUGS = {
    "you plan with the fast end": lambda t, d, fast, slow, r: steps(
        t, d, fast, fast, r
    ),
    "you plan with the middle": lambda t, d, fast, slow, r: steps(
        t, d, fast, (fast + slow) / 2, r
    ),
    "the *larger* of the two": lambda t, d, fast, slow, r: int(
        max(t, d / r * 3600) / slow
    ),
    "look only at the time": lambda t, d, fast, slow, r: int(t / slow),
    "look only at the money": lambda t, d, fast, slow, r: int(d / r * 3600 / slow),
    "compare that with seconds": lambda t, d, fast, slow, r: int(min(t, d / r) / slow),
    "round down": lambda t, d, fast, slow, r: math.ceil(min(t, d / r * 3600) / slow),
    "steps are whole": lambda t, d, fast, slow, r: min(t, d / r * 3600) / slow,
    "it should be": lambda *a: steps(*a) - 7,
}


def best_buy(
    models, gpus, dollars, law, *, key=min, hour=3600, pick=lambda model, gpu: True
):
    def loss(pair):
        (parameters, flops_per_token), (speed, price) = models[pair[0]], gpus[pair[1]]
        return law(parameters, dollars / price * hour * speed / flops_per_token)

    return key(((m, g) for m in models for g in gpus if pick(m, g)), key=loss)


BEST_BUY_BUGS = {
    "lowest price per hour": lambda m, g, d, law: (
        best_buy(m, g, d, law)[0],
        min(g, key=lambda gpu: g[gpu][1]),
    ),
    "chose the fastest GPU": lambda m, g, d, law: (
        best_buy(m, g, d, law)[0],
        max(g, key=lambda gpu: g[gpu][0]),
    ),
    "for a dollar; 'best' does more": lambda m, g, d, law: (
        best_buy(m, g, d, law)[0],
        "fair",
    ),
    "chose the largest model": lambda m, g, d, law: (
        max(m, key=lambda name: m[name][0]),
        "best",
    ),
    "sees the most tokens": lambda m, g, d, law: (
        min(m, key=lambda name: m[name][1]),
        "best",
    ),
    "Are the seconds seconds": lambda m, g, d, law: ("large", "best"),
    "as for $5": lambda m, g, d, law: best_buy(m, g, 5.0, law),
    "wrong way round": lambda *a: best_buy(*a)[::-1],
    "return the pair": lambda *a: best_buy(*a)[0] and 3.2,
    "two of the names": lambda *a: ("small", "H100"),
}


@pytest.mark.parametrize("message", BEST_BUY_BUGS)
def test_best_buy_bug_is_named(message):
    verdict = check.best_buy(BEST_BUY_BUGS[message])
    assert not verdict.passed
    assert message in verdict.message


@pytest.mark.parametrize("message", BILL_BUGS)
def test_bill_bug_is_named(message):
    verdict = check.bill(BILL_BUGS[message])
    assert not verdict.passed
    assert message in verdict.message


@pytest.mark.parametrize("message", STEPS_BUGS)
def test_steps_bug_is_named(message):
    verdict = check.steps_within(STEPS_BUGS[message])
    assert not verdict.passed
    assert message in verdict.message


def stub(*arguments):
    raise NotImplementedError("your turn")


@pytest.mark.parametrize("name", ["bill", "steps_within", "best_buy"])
def test_stub_is_told_apart(name):
    assert "still the stub" in getattr(check, name)(stub).message


@pytest.mark.parametrize(
    "name, solution", [("bill", bill), ("steps_within", steps), ("best_buy", best_buy)]
)
def test_solution_passes(name, solution):
    verdict = getattr(check, name)(solution)
    assert verdict.passed, verdict.message
