"""The check on runs: what `test_diagnose.py` (every switch) and `attempts/runs.txt` do not prove."""

import pytest

from course import check


def again(steps, every, load, do, save):
    while True:
        do(1)


def asks(steps, every, load, do, save):
    while load() != steps:
        pass


def waits(steps, every, load, do, save):
    yield do(1)


def in_words(steps, every, load, do, save):
    do("first")


@pytest.mark.parametrize(
    "answer, words",
    [
        (again, "calls do again and again"),
        (asks, "asks load() again and again"),
        (waits, "There is a `yield` in your function"),
        (in_words, "it takes the number of a step"),
        (lambda steps: None, "cannot be called as the exercise says"),
    ],
)
def test_what_is_seen_while_it_runs_is_told(answer, words):
    assert words in check.job(answer).message


def test_the_stub_is_told_apart():
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert "still the stub" in check.job(stub).message
