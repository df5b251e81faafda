"""The checks on the door: what `test_diagnose.py` (every switch) and `attempts/door.txt` do not prove."""

import sys

import pytest

from course import check
from course.check.door import MODULES


@pytest.mark.parametrize("exercise", [check.exit_codes, check.lazy])
def test_stub_is_told_apart(exercise):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert "still the stub" in exercise(stub).message


def test_an_interrupt_that_is_not_caught_does_not_end_the_notebook():
    verdict = check.exit_codes(lambda command, words, say: command(words))
    assert not verdict.passed


def test_the_modules_of_the_check_are_gone_afterwards():
    before = list(sys.meta_path)
    check.lazy(lambda addresses: lambda name: __import__(addresses[name]))
    assert sys.meta_path == before and not MODULES.keys() & sys.modules.keys()
