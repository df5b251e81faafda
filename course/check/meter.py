"""Checks of the exercises on the meter: two references with switches, and the sentence for each."""

import itertools
import math
from collections.abc import Callable
from typing import Any

from course.check.diagnose import RIGHT, Diagnosis, Wrong, flag, number, pick
from course.check.verdict import exercise


def _most_dollars(
    timeout: int, retries: int, rate: float, wrong: Wrong = RIGHT
) -> float:
    counts = {
        "one": 1,
        "no first": retries,
        "one at least": max(1, retries),
        "one more": retries + 2,
        "shared": 1 / (1 + retries),
        "doubles": 2**retries,
        "always four": 4,
    }
    attempts = pick(wrong, counts, 1 + retries)
    units = {
        "seconds": timeout,
        "minutes": timeout / 60,
        "twice": timeout / 3600**2,
        "times": timeout * 3600,
        "up": math.ceil(timeout / 3600),
        "down": timeout // 3600,
    }
    hours = pick(wrong, units, timeout / 3600)
    ways = {
        "added": (timeout + retries) / 3600 * rate,
        "precedence": 1 + retries * hours * rate,
        "divides": attempts * hours / rate,
        "hours": attempts * hours,
    }
    return float(pick(wrong, ways, attempts * hours * rate))


MOST = Diagnosis(
    _most_dollars,
    {
        "one": "That is one attempt. The time limit starts anew with each retry, so every attempt can cost as much.",
        "no first": "The first attempt is missing: retries come after it, so there are 1 + retries attempts.",
        "one at least": "You count the retries, or one attempt if there are none. The first attempt is not a retry: 1 + retries.",
        "one more": "You count one attempt too many: 1 + retries.",
        "shared": "You share one time limit out among the attempts. It starts anew with each.",
        "doubles": "You double with each retry. A retry adds one more attempt: 1 + retries.",
        "always four": "You count four attempts, whatever the retries are: 1 + retries.",
        "added": "You add the retries to the seconds. Each retry is another attempt of up to `timeout` seconds.",
        "precedence": "You add 1, a dollar, to what the retries cost. The parentheses are missing: (1 + retries) * ….",
        "seconds": "The timeout is in seconds and the price is for an hour.",
        "minutes": "An hour has 3600 seconds, not 60.",
        "twice": "You divide by 3600 twice: the timeout is in hours then, and the price is for an hour already.",
        "times": "You multiply the seconds by 3600. Divide: 7200 seconds are two hours.",
        "up": "You round up to whole hours. Seconds are billed: an hour and a half costs one and a half.",
        "down": "You round down to whole hours. Seconds are billed: an hour and a half costs one and a half.",
        "divides": "You divide by the price of an hour. Multiply.",
        "hours": "These are the hours. Multiply by the price of one.",
    },
    [
        (3600, 1, 2.0),  # two attempts of an hour: 4 dollars
        (7200, 3, 2.0),
        (5400, 2, 3.9492),
        (1800, 0, 0.59),
        (86400, 10, 0.8),
    ],
    lambda timeout, retries, rate: (
        f"For a timeout of {timeout} s, retries = {retries} and ${rate:g} an hour"
    ),
    read=number,
)


@exercise
def most_dollars(fn: Callable[..., Any]) -> str:
    """Check a `most_dollars(timeout in seconds, retries, dollars_per_hour)`."""
    MOST.judge(fn)
    return "Time limit, attempts and units are all in it."


Attempt = tuple[int, int, bool]


def _once_more(attempts: list[Attempt], wrong: Wrong = RIGHT) -> bool:
    last = attempts[-1] if attempts else (0, 1, False)
    simple = {
        "always": True,
        "at most three": len(attempts) < 3,
        "only the last": last[1] > last[0] or last[2],
    }
    if wrong & {*simple} or ("empty" in wrong and not attempts):
        return bool(pick(wrong, simple, False))
    row, before = [], 0
    for first, end, taken in attempts:
        came = {
            "any checkpoint": end > 0,
            "began later": first > before,
            "turned steps": first > end,
        }
        counts = {"turned taken": taken, "taken counts": True}
        if not (taken and "taken skipped" in wrong):
            new = pick(wrong, came, end > first)
            row.append((new, pick(wrong, counts, not taken), taken))
        before = first
    if wrong & {"no three", "first three", "any new", "all new"}:
        row = [x for x in row if x[0] or x[1]]
        part = pick(wrong, {"first three": row[:3], "any new": row}, row[-3:])
        if "all new" in wrong:
            return all(new for new, _, _ in part)
        few = len(row) < 3 and "no three" not in wrong
        return few or any(new or not counts for new, counts, _ in part)
    in_vain, most = 0, 0
    for new, counts, taken in row:
        if (new and "no reset" not in wrong) or (taken and "taken ends" in wrong):
            in_vain = 0
        elif counts and not new:
            in_vain += 1
        most = max(most, in_vain)
    in_vain = pick(wrong, {"for ever": most}, in_vain)
    if "exactly" in wrong:
        return in_vain != 3
    limit = pick(wrong, {"four": 4, "two": 2}, 3)
    return bool(in_vain >= limit if "turned" in wrong else in_vain < limit)


def _histories(longest: int) -> list[tuple[list[Attempt]]]:
    """All rows of attempts in vain or not, taken or not, the shortest first; a new checkpoint comes after 5 steps."""
    kinds = [(0, False), (5, False), (0, True), (5, True)]
    rows = []
    for length in range(longest + 1):
        for row in itertools.product(kinds, repeat=length):
            steps = itertools.accumulate((new for new, _ in row), initial=0)
            rows.append(
                ([(s, s + new, t) for s, (new, t) in zip(steps, row, strict=False)],)
            )
    later = [([(s + 5, e + 5, t) for s, e, t in row],) for (row,) in rows[1:85]]
    longer = [
        ([(5 * i, 5 * i, False) for i in range(6)],),
        ([(0, 5, False), *[(5, 5, False)] * 4],),
    ]
    return rows + later + longer


ONCE_MORE = Diagnosis(
    _once_more,
    {
        "no reset": "You count all attempts in vain. A new checkpoint ends the row: only those after it count.",
        "taken counts": "You count attempts whose machine was taken away. That is nobody's fault: they do not count.",
        "taken ends": "You let an attempt whose machine was taken away break the row of those in vain. It does not count, and does not end the row either: look at the last three that do count.",
        "taken skipped": "You skip every attempt whose machine was taken away. If it came to a new checkpoint, that ends the row.",
        "no three": "Fewer than three attempts count, and you already refuse: three must have been in vain.",
        "first three": "You look at the first three attempts. The last three decide.",
        "any new": "A new checkpoint long ago lets you begin for ever. Only the last three that count decide.",
        "all new": "You ask for a new checkpoint of each of the last three. One of them is enough.",
        "empty": "You refuse where no attempt has been made yet. Then one may begin.",
        "four": "You allow a fourth attempt in vain: three are enough.",
        "exactly": "You refuse after exactly three in vain, and begin again after four. Three or more: >=.",
        "two": "You refuse after two in vain: three are asked for.",
        "turned": "Your answer is the wrong way round: True means that a further attempt may begin.",
        "for ever": "Three in vain anywhere stop you for ever. A new checkpoint after them ends the row.",
        "began later": "You compare where attempts began. An attempt came forward if its own last step is behind its first.",
        "any checkpoint": "You take any last step above 0 for a new checkpoint. It is new if it is behind the first step of that attempt.",
        "at most three": "You count attempts, whatever they came to. Only those in vain count.",
        "only the last": "You look at the last attempt only. Three in vain end it.",
        "always": "You always say True.",
        "turned taken": "You count the attempts whose machine was taken away, and not the others. It is the other way round.",
        "turned steps": "You take an attempt for one that came forward if first > last. It did if last > first.",
    },
    _histories(4),
    read=flag,
)


@exercise
def once_more(fn: Callable[..., Any]) -> str:
    """Check a `once_more(attempts: (first step, last step, taken away)) -> bool`."""
    ONCE_MORE.judge(fn)
    return "Three in vain are enough, bad luck does not count, and a checkpoint does."
