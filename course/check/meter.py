"""Checks of the exercises on the meter."""

import math
from collections.abc import Callable
from typing import Any

from course.check.verdict import exercise


def _number(value: Any) -> float:
    assert isinstance(value, int | float), (
        f"It returned {value!r}; return a number of dollars."
    )
    return float(value)


@exercise
def most_dollars(fn: Callable[[int, int, float], float]) -> str:
    """Check a `most_dollars(timeout in seconds, retries, dollars_per_hour)`."""
    got = _number(fn(7200, 3, 2.0))  # four attempts of two hours at two dollars an hour
    assert not math.isclose(got, 4.0), (
        "That is one attempt. The time limit starts anew with each retry, so every attempt can cost as much."
    )
    assert not math.isclose(got, 12.0), (
        "Three retries come after a first attempt: four attempts in all."
    )
    assert not math.isclose(got, 16.0 * 3600), (
        "The timeout is in seconds and the price is for an hour."
    )
    assert not math.isclose(got, 16.0 * 60), "An hour has 3600 seconds, not 60."
    assert math.isclose(got, 16.0), (
        f"Two hours at most, three retries, $2 an hour: the most it can cost is $16; yours is ${got:.2f}."
    )
    once = _number(fn(3600, 0, 0.59))
    assert math.isclose(once, 0.59), (
        f"With no retries an hour at $0.59 an hour costs $0.59 at most; yours is ${once:.2f}."
    )
    return "Time limit, attempts and units are all in it."


def _right(attempts: list[tuple[int, int, bool]]) -> bool:
    in_vain = 0
    for first, last, taken in attempts:
        in_vain = 0 if last > first else in_vain + (not taken)
    return in_vain < 3


VAIN, NEW = (4, 4, False), (0, 4, False)
TAKEN, TAKEN_LATE = (4, 4, True), (0, 4, True)
# what to say where the answer is wrong
HISTORIES: list[tuple[list[tuple[int, int, bool]], str]] = [
    ([], "No attempt has been made yet, so one may begin"),
    ([VAIN, VAIN], "Two in vain are not three: one more may begin"),
    ([VAIN, VAIN, VAIN], "Three attempts ended where they began: no further one"),
    ([NEW, NEW, NEW, NEW], "Each attempt came to a new checkpoint: one more may begin"),
    (
        [NEW, VAIN, VAIN, VAIN],
        "Only the last three count; that an earlier one came forward does not help",
    ),
    (
        [VAIN, VAIN, NEW, VAIN],
        "A new checkpoint ends the row: behind it only one attempt was in vain",
    ),
    ([TAKEN, TAKEN, TAKEN], "A machine that was taken away is nobody's fault"),
    (
        [VAIN, VAIN, TAKEN, VAIN],
        "The attempt whose machine was taken away does not count, and does not end the row either: three others were in vain",
    ),
    (
        [VAIN, VAIN, TAKEN_LATE, VAIN],
        "The attempt whose machine was taken away had come to a new checkpoint: that ends the row",
    ),
]


@exercise
def once_more(fn: Callable[[list[tuple[int, int, bool]]], bool]) -> str:
    """Check a `once_more(attempts: (first step, last step, taken away)) -> bool`."""
    for attempts, why in HISTORIES:
        given = list(attempts)
        got = fn(given)
        assert isinstance(got, bool), f"It returned {got!r}; return True or False."
        assert given == attempts, (
            "Your code changed the list of attempts; whoever holds it still needs it."
        )
        assert got == _right(attempts), (
            f"{why}. For {attempts} it should be {not got}; yours is {got}."
        )
    return "Three in vain are enough, bad luck does not count, and a checkpoint does."
