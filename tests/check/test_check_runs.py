"""The check on runs is itself checked: each planted bug is caught with its own message."""

import pytest

from course import check


def job(steps, every, load, do, save, first=1, last=0, end=True, early=False, due=None):
    for step in range((load() or 0) + first, steps + 1 + last):
        if early and step % every == 0:
            save(step)
        do(step)
        due_now = step % every == 0 if due is None else due(step)
        if (due_now and not early) or (end and step == steps):
            save(step)


def forgets(steps, every, load, do, save):
    job(steps, every, lambda: None, do, save)


def asks_and_forgets(steps, every, load, do, save):
    load()
    job(steps, every, lambda: None, do, save)


def does_nothing(steps, every, load, do, save):
    load()


def never_saves(steps, every, load, do, save):
    job(steps, every, load, do, lambda step: None)


def twice(steps, every, load, do, save):
    job(steps, every, load, lambda step: (do(step), do(step)), save)


def repeats_the_last(steps, every, load, do, save):
    job(steps, every, lambda: max(0, (load() or 0) - 1), do, save)


def skips_one_after_loading(steps, every, load, do, save):
    found = load()
    job(steps, every, lambda: found + 1 if found else 0, do, save)


def redoes_a_finished_job(steps, every, load, do, save):
    found = load()
    job(steps, every, lambda: None if found == steps else found, do, save)


BUGS = {
    "should be a function": None,
    "No step was done": does_nothing,
    "The first step is 1": lambda *a: job(*a, first=0),
    "it should be 1 to 10": lambda *a: job(*a, last=1),
    "once each": twice,
    "Nothing was saved": never_saves,
    "The end is not saved": lambda *a: job(*a, end=False),
    "do it first, then save": lambda *a: job(*a, early=True),
    "due are [4, 8, 10]": lambda *a: job(*a, due=lambda step: True),
    "You never ask load()": forgets,
    "which a checkpoint had seen": asks_and_forgets,
    "you do step 4 again": repeats_the_last,
    "was never done": skips_one_after_loading,
    "should do nothing": redoes_a_finished_job,
    "cannot be called as the exercise says": lambda steps: None,
}


@pytest.mark.parametrize(("message", "bug"), BUGS.items(), ids=list(BUGS))
def test_planted_bug_is_named(message, bug):
    verdict = check.job(bug)
    assert not verdict.passed and message in verdict.message, verdict


def test_the_solution_passes_and_the_stub_is_told_apart():
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert check.job(job).passed, check.job(job)
    assert "still the stub" in check.job(stub).message
