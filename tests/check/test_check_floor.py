"""The checks on the floor are themselves checked: each planted bug is caught with its own message."""

import math

import pytest

from course import check


def solution(choice, log=math.log, weigh=True, deep=True, first=False, once=False):
    total = 0.0
    for p, items in choice.options:
        below = [item for item in items if not isinstance(item, str)]
        below = below[:1] if first else list(dict.fromkeys(below)) if once else below
        following = sum(solution(item, log, weigh, deep, first, once) for item in below)
        total += -p * log(p) + (p if weigh else 1) * (following if deep else 0)
    return total


def unweighted(choice):
    return sum(
        -math.log(p)
        + p * sum(unweighted(item) for item in items if not isinstance(item, str))
        for p, items in choice.options
    )


def only_below(choice):
    return sum(
        p * sum(only_below(item) for item in items if not isinstance(item, str))
        for p, items in choice.options
    )


ENTROPY_BUGS = {
    "base 2": lambda choice: solution(choice, log=math.log2),
    "without asking how likely it is": lambda choice: solution(choice, weigh=False),
    "the choice itself only": lambda choice: solution(choice, deep=False),
    "The sign is wrong": lambda choice: -solution(choice),
    "without weighing them": unweighted,
    "not what the choice itself costs": only_below,
    "first choice of an option only": lambda choice: solution(choice, first=True),
    "stands twice in an option once": lambda choice: solution(choice, once=True),
    "yours gives 1.0000": lambda choice: 1.0,
    "It returned NoneType": lambda choice: None,
    "Your code raises AttributeError": lambda choice: choice.entropy,
}

BITS_BUGS = {
    "nats per byte": lambda loss, t, b: loss * t / b,
    "You multiply by ln 2": lambda loss, t, b: loss * t / b * math.log(2),
    "multiply by the bytes": lambda loss, t, b: loss * b / t / math.log(2),
    "bits per token": lambda loss, t, b: loss / math.log(2),
    "bits of the whole text": lambda loss, t, b: loss * t / math.log(2),
    "You turn bytes of text into bits": lambda loss, t, b: (
        8 * loss * t / b / math.log(2)
    ),
    "divide by the bits of the text": lambda loss, t, b: (
        loss * t / (8 * b) / math.log(2)
    ),
    "cost of *one* token": lambda loss, t, b: loss / b / math.log(2),
    "decimal digits": lambda loss, t, b: loss * t / b / math.log(10),
    "logarithm of the loss": lambda loss, t, b: math.log2(loss) * t / b,
    "bits per byte; yours gives 0.0000": lambda loss, t, b: 0.0,
    "It returned str": lambda loss, t, b: "1.2",
}


@pytest.mark.parametrize("message", ENTROPY_BUGS)
def test_planted_entropy_bug_is_named(message):
    verdict = check.entropy(ENTROPY_BUGS[message])
    assert not verdict.passed
    assert message in verdict.message


@pytest.mark.parametrize("message", BITS_BUGS)
def test_planted_bits_bug_is_named(message):
    verdict = check.bits_per_byte(BITS_BUGS[message])
    assert not verdict.passed
    assert message in verdict.message


@pytest.mark.parametrize("name", ["entropy", "bits_per_byte"])
def test_stubs_are_told_apart(name):
    def stub(*_):
        raise NotImplementedError("your turn")

    verdict = getattr(check, name)(stub)
    assert not verdict.passed and "still the stub" in verdict.message


def test_solutions_pass():
    for verdict in (
        check.entropy(solution),
        check.bits_per_byte(lambda loss, t, b: loss * t / (b * math.log(2))),
    ):
        assert verdict.passed, verdict
