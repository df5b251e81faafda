"""The checks on the meter: each planted bug is caught with its own message."""

import pytest

from course import check


def most_dollars_solution(timeout, retries, dollars_per_hour):
    return (1 + retries) * timeout / 3600 * dollars_per_hour


MOST_DOLLARS_BUGS = {
    "That is one attempt": lambda t, r, d: t / 3600 * d,
    "after a first attempt": lambda t, r, d: r * t / 3600 * d,
    "the price is for an hour": lambda t, r, d: (1 + r) * t * d,
    "not 60": lambda t, r, d: (1 + r) * t / 60 * d,
    "is $16; yours is": lambda t, r, d: (2 + r) * t / 3600 * d,
    "With no retries": lambda t, r, d: max(1 + r, 2) * t / 3600 * d,
    "return a number": lambda t, r, d: None,
}


def once_more_solution(attempts):
    in_vain = 0
    for first, last, taken in attempts:
        if last > first:
            in_vain = 0
        elif not taken:
            in_vain += 1
    return in_vain < 3


def without_taken(attempts):
    return once_more_solution([each for each in attempts if not each[2]])


def taken_ends_the_row(attempts):
    return once_more_solution([(a, b + taken, taken) for a, b, taken in attempts])


def changes_the_list(attempts):
    answer = once_more_solution(attempts)
    attempts.append((0, 0, False))
    return answer


ONCE_MORE_BUGS = {
    "No attempt has been made yet": lambda a: bool(a) and once_more_solution(a),
    "Two in vain are not three": lambda a: len(a) < 2 or a[-1][1] > a[-1][0],
    "Three attempts ended where they began": lambda a: True,
    "Each attempt came to a new checkpoint": lambda a: len(a) < 3,
    "Only the last three count": lambda a: any(e[1] > e[0] for e in a) or len(a) < 3,
    "A new checkpoint ends the row": lambda a: sum(e[1] == e[0] for e in a) < 3,
    "A machine that was taken away is nobody": lambda a: once_more_solution(
        [(f, t, False) for f, t, _ in a]
    ),
    "and does not end the row either": taken_ends_the_row,
    "had come to a new checkpoint": without_taken,
    "return True or False": lambda a: None,
    "changed the list": changes_the_list,
}

GALLERY = [
    *((check.most_dollars, message, bug) for message, bug in MOST_DOLLARS_BUGS.items()),
    *((check.once_more, message, bug) for message, bug in ONCE_MORE_BUGS.items()),
]


@pytest.mark.parametrize(
    ("exercise", "message", "bug"), GALLERY, ids=[message for _, message, _ in GALLERY]
)
def test_planted_bug_is_named(exercise, message, bug):
    verdict = exercise(bug)
    assert not verdict.passed
    assert message in verdict.message


@pytest.mark.parametrize("exercise", [check.most_dollars, check.once_more])
def test_stub_is_told_apart(exercise):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert "still the stub" in exercise(stub).message


@pytest.mark.parametrize(
    ("exercise", "solution"),
    [
        (check.most_dollars, most_dollars_solution),
        (check.once_more, once_more_solution),
    ],
)
def test_solution_passes(exercise, solution):
    assert exercise(solution).passed, exercise(solution).message
