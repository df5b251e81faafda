"""The check of the exercise of the chapter on runs."""

from collections.abc import Callable
from typing import Any

from course.check.verdict import call, exercise


class _Killed(BaseException):
    """The plug was pulled; no `except Exception` of a learner catches it."""


class _Job:
    """A job that is killed before it does the steps in `kills`, and keeps count of everything."""

    def __init__(self, kills: list[int]) -> None:
        self.kills, self.saved = list(kills), [0]
        self.done: list[int] = []  # in this attempt, after the newest checkpoint
        self.again: list[int] = []  # done although a checkpoint had seen them
        self.asked = False

    def load(self) -> int | None:
        self.asked = True
        return self.saved[-1] or None

    def do(self, step: int) -> None:
        if self.kills and step == self.kills[0]:
            self.kills.pop(0)
            raise _Killed
        if step <= self.saved[-1]:
            self.again.append(step)
        self.done.append(step)

    def save(self, step: int) -> None:
        reached = max([self.saved[-1], *self.done])
        assert step <= reached, (
            f"You save step {step} when only {reached} are done. A kill in between would lose the step for ever: do it first, then save."
        )
        expected = list(range(self.saved[-1] + 1, step + 1))
        missing = sorted(set(expected) - set(self.done))
        assert not missing, (
            f"Your checkpoint says that {step} steps are done, but step {missing[0]} was never done."
        )
        self.saved.append(step)


def _attempts(fn: Callable[..., Any], steps: int, every: int, kills: list[int]) -> _Job:
    """The job, called again after each kill, at most a few times."""
    job = _Job(kills)
    for _ in range(len(kills) + 1):
        job.done = []
        try:
            call(fn, steps, every, job.load, job.do, job.save)
            break
        except _Killed:
            continue
    return job


@exercise
def job(fn: Callable[..., Any]) -> str:
    """Check a `job(steps, every, load, do, save)` that goes on where a checkpoint says."""
    assert callable(fn), f"my_job should be a function; it is {type(fn).__name__}."
    for steps, every in ((10, 4), (6, 3), (1, 5)):
        plain = _attempts(fn, steps, every, [])
        due = [n for n in range(1, steps + 1) if n % every == 0 or n == steps]
        assert plain.done, "No step was done: call do(step) for each."
        assert plain.done[0] == 1, (
            f"The first step is 1; yours begins with {plain.done[0]}."
        )
        assert plain.done == list(range(1, steps + 1)), (
            f"With steps = {steps} and nothing to load, do is called with {plain.done}; it should be 1 to {steps}, once each."
        )
        saved = plain.saved[1:]
        assert saved, "Nothing was saved: call save(step)."
        assert saved[-1] == steps, (
            f"The end is not saved: with steps = {steps} and every = {every} the last checkpoint is {saved[-1]}."
        )
        assert saved == due, (
            f"With steps = {steps} and every = {every} you save {saved}; due are {due}."
        )
    for kills in ([7], [10], [4], [7, 9], [1, 5]):
        torn = _attempts(fn, 10, 4, kills)
        assert torn.asked, "You never ask load() how far the job is."
        story = f"Killed before step {' and before step '.join(map(str, kills))} of 10, with every = 4"
        assert not torn.again, (
            f"{story}, you do step {torn.again[0]} again, which a checkpoint had seen: begin after load()."
        )
        assert torn.saved[-1] == 10, (
            f"{story}, the job ends at {torn.saved[-1]} and not at 10."
        )
    finished = _Job([])
    finished.saved.append(10)
    call(fn, 10, 4, finished.load, finished.do, finished.save)
    assert not finished.done and len(finished.saved) == 2, (
        "A job whose checkpoint says that all is done should do nothing."
    )
    return "No step is lost, and none is done twice without need."
