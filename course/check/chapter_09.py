"""Checks of chapter 9's exercises."""

import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from course.check.verdict import exercise


def _number(value: Any) -> float:
    assert isinstance(value, int | float), f"It returned {value!r}; return a number of dollars."
    return float(value)


@exercise
def most_dollars(fn: Callable[[int, int, float], float]) -> str:
    """Check a `most_dollars(timeout in seconds, retries, dollars_per_hour)`."""
    got = _number(fn(7200, 3, 2.0))  # four attempts of two hours at two dollars an hour
    assert not math.isclose(got, 4.0), (
        "That is one attempt. The time limit starts anew with each retry, so every attempt can cost as much."
    )
    assert not math.isclose(got, 12.0), "Three retries come after a first attempt: four attempts in all."
    assert not math.isclose(got, 16.0 * 3600), "The timeout is in seconds and the price is for an hour."
    assert not math.isclose(got, 16.0 * 60), "An hour has 3600 seconds, not 60."
    assert math.isclose(got, 16.0), (
        f"Two hours at most, three retries, $2 an hour: the most it can cost is $16; yours is ${got:.2f}."
    )
    once = _number(fn(3600, 0, 0.59))
    assert math.isclose(once, 0.59), (
        f"With no retries an hour at $0.59 an hour costs $0.59 at most; yours is ${once:.2f}."
    )
    return "Time limit, attempts and units are all in it."


@exercise
def choose_gpu(fn: Callable[[dict[str, tuple[float, float]], float, float], str]) -> str:
    """Check a `choose_gpu(gpus: name -> (hours, dollars per hour), max_dollars, max_hours)`."""
    gpus = {
        "slow": (30.0, 0.6),
        "small": (10.0, 0.9),
        "large": (3.0, 2.5),
        "huge": (1.5, 6.0),
    }  # $18.0, $9.0, $7.5, $9.0
    got = fn(gpus, 20.0, 24.0)
    assert isinstance(got, str) and got in gpus, f"It returned {got!r}; return one of the names {', '.join(gpus)}."
    assert got != "slow", (
        "You chose the lowest price per hour. A slow GPU needs so many hours that it is the dearest of these: compare dollars for the whole run."
    )
    assert got != "huge", "You chose the fastest. It is done first, but another one costs less."
    assert got == "large", f"With $20 and 24 hours, 'large' costs least: 3 hours at $2.5. You chose {got!r}."
    hurried = fn(gpus, 20.0, 2.0)
    assert hurried == "huge", (
        f"Within 2 hours only 'huge' is done; you chose {hurried!r}. A GPU that does not make it in time is no choice."
    )
    exact = _raised(fn, gpus, 7.5, 24.0)
    assert exact == "large", "A run that costs $7.50 keeps within a budget of $7.50; yours is refused."
    refused = _raised(fn, gpus, 5.0, 24.0)
    assert isinstance(refused, ValueError), (
        f"Nothing here can be had for $5, so the budget must refuse with a ValueError; yours answered {refused!r}."
    )
    late = _raised(fn, gpus, 20.0, 1.0)
    assert isinstance(late, ValueError), (
        f"Nothing here is done within an hour, so it must refuse with a ValueError; yours answered {late!r}."
    )
    assert "7.5" in str(refused), (
        f"Refused, but with {str(refused)!r}. Say what the cheapest choice costs, here $7.5, so that the reader knows what to change."
    )
    return "Cheapest for the whole run, in time, and a budget that refuses."


def _raised(fn: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, or the ValueError that it raises."""
    try:
        return fn(*arguments)
    except ValueError as refusal:
        return refusal


class _Cloud:
    """A volume as a container sees it: what was not committed when the container disappears is lost."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.safe, self.commits = folder / "data", folder / "safe", 0
        self.folder.mkdir()
        self.safe.mkdir()

    def commit(self) -> None:
        self.commits += 1
        shutil.rmtree(self.safe)
        shutil.copytree(self.folder, self.safe)

    def preempt(self) -> None:
        """Throw the container away: the next one mounts what was committed."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.safe, self.folder)


@exercise
def attempt(fn: Callable[[Path, int, Callable[[int], None], Callable[[], None]], int]) -> str:
    """Check an `attempt(folder, steps, work, commit)` that is interrupted in step 4 and, called again, goes on."""
    with tempfile.TemporaryDirectory() as name:
        cloud, done, interrupted = _Cloud(Path(name)), [], False

        def work(step: int) -> None:
            if step == 4 and not interrupted:
                raise KeyboardInterrupt
            done.append(step)

        try:
            answer = fn(cloud.folder, 6, work, cloud.commit)
        except KeyboardInterrupt:
            answer = None
        assert done, "No step was done. Call work(0), work(1), … in order."
        assert done[0] == 0, f"The first step was work({done[0]}); begin with work(0)."
        assert answer is None, (
            f"Interrupted in step 4, it returned {answer!r} as if all were well. Let the KeyboardInterrupt through, or nobody starts the run again."
        )
        assert done == [0, 1, 2, 3], (
            f"Before the interruption the steps 0 to 3 should have been done once each; yours did {done}."
        )
        assert cloud.commits, "commit() was never called, so what you saved was lost with the container."
        cloud.preempt()
        interrupted, first = True, len(done)
        answer = fn(cloud.folder, 6, work, cloud.commit)
        again = done[first:]
        assert again, "After the interruption no step was done. Step 4 and step 5 are still to do."
        assert again[0] != 0, (
            "The second attempt starts at step 0. Read what the first one saved, and go on from there."
        )
        assert again[0] <= 4, (
            f"The second attempt starts at step {again[0]}: step 4 was counted before it was done. Save after the work."
        )
        assert again[0] == 4, (
            f"The second attempt repeats step {again[0]}, which was done. Save the count first, and commit after it: a commit secures only what is written."
        )
        assert again == [4, 5], f"The second attempt should do steps 4 and 5; yours did {again}."
        assert answer == 6, f"A finished run returns its number of steps, 6; yours returned {answer!r}."
        count = len(done)
        fn(cloud.folder, 6, work, cloud.commit)
        assert len(done) == count, "Called once more on a finished run, it works again. There is nothing left to do."
    return "Nothing is lost, nothing is done twice, and an interruption shows."
