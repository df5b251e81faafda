"""Checks of the exercises on the launch."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from course.check.verdict import exercise


@exercise
def choose_gpu(
    fn: Callable[[dict[str, tuple[float, float]], float, float], str],
) -> str:
    """Check a `choose_gpu(gpus: name -> (hours, dollars per hour), max_dollars, max_hours)`."""
    gpus = {
        "slow": (30.0, 0.6),
        "small": (10.0, 0.9),
        "large": (3.0, 2.5),
        "huge": (1.5, 6.4),
    }  # $18.0, $9.0, $7.5, $9.6
    got = fn(gpus, 20.0, 24.0)
    assert isinstance(got, str) and got in gpus, (
        f"It returned {got!r}; return one of the names {', '.join(gpus)}."
    )
    assert got != "slow", (
        "You chose the lowest price per hour. A slow GPU needs so many hours that it is the dearest of these: compare dollars for the whole run."
    )
    assert got != "huge", (
        "You chose the fastest. It is done first, but another one costs less."
    )
    assert got == "large", (
        f"With $20 and 24 hours, 'large' costs least: 3 hours at $2.5. You chose {got!r}."
    )
    hurried = fn(gpus, 20.0, 2.0)
    assert hurried == "huge", (
        f"Within 2 hours only 'huge' is done; you chose {hurried!r}. A GPU that does not make it in time is no choice."
    )
    just = _raised(fn, gpus, 20.0, 3.0)
    assert just == "large", (
        f"A run of 3 hours is done within 3 hours, so 'large' is in time and costs least; yours answered {just!r}."
    )
    exact = _raised(fn, gpus, 7.5, 24.0)
    assert exact == "large", (
        "A run that costs $7.50 keeps within a budget of $7.50; yours is refused."
    )
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
    both = _raised(fn, gpus, 8.0, 2.0)
    assert isinstance(both, ValueError), (
        f"Within 2 hours only 'huge' is done, for $9.6, so a budget of $8 must refuse; yours answered {both!r}. "
        "The $7.5 of 'large' are no choice: it comes too late."
    )
    assert "9.6" in str(both), (
        f"With $8 and 2 hours it refused with {str(both)!r}. Say what the cheapest of those that are in time costs, here $9.6."
    )
    return "Cheapest for the whole run, in time, and a budget that refuses."


def _raised(fn: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, or the ValueError that it raises."""
    try:
        return fn(*arguments)
    except ValueError as refusal:
        return refusal


class _Cloud:
    """A volume as a container sees it, and the work on it: what was not committed when it is killed is lost."""

    def __init__(self, folder: Path, lost: int) -> None:
        self.folder, self.safe, self.left = (
            folder / "data",
            folder / "safe",
            folder / "left",
        )
        self.lost, self.done, self.interrupts, self.commits = lost, list[int](), 0, 0
        self.secured, self.unsaved = (
            0,
            False,
        )  # when it was killed: commits so far, and whether one was missing
        self.folder.mkdir()
        self.safe.mkdir()

    def work(self, step: int) -> None:
        """Do a step; the first attempt is interrupted in step `lost`."""
        if step == self.lost and not self.left.exists():
            shutil.copytree(self.safe, self.left)
            self.secured, self.unsaved = (
                self.commits,
                _contents(self.folder) != _contents(self.safe),
            )
        if (
            step == self.lost and self.interrupts < 3
        ):  # whoever tries it again and again comes to an end
            self.interrupts += 1
            raise KeyboardInterrupt
        self.done.append(step)
        assert len(self.done) < 50, (
            "work was called 50 times for 6 steps. Does your loop end?"
        )

    def commit(self) -> None:
        self.commits += 1
        shutil.rmtree(self.safe)
        shutil.copytree(self.folder, self.safe)

    def restart(self) -> None:
        """Another container: it mounts what was committed at the moment of the kill, and is not interrupted."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.left, self.folder)
        self.interrupts, self.done = 3, []


def _contents(folder: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@exercise
def attempt(
    fn: Callable[[Path, int, Callable[[int], None], Callable[[], None]], int],
) -> str:
    """Check an `attempt(folder, steps, work, commit)` that is killed in some step and, called again, goes on."""
    for lost in (4, 5, 3, 2, 1):
        with tempfile.TemporaryDirectory() as name:
            _killed_and_started_again(fn, _Cloud(Path(name), lost))
    return "Nothing is lost, nothing is done twice, and an interruption shows."


def _killed_and_started_again(fn: Callable[..., int], cloud: _Cloud) -> None:
    lost = cloud.lost
    try:
        answer = fn(cloud.folder, 6, cloud.work, cloud.commit)
    except KeyboardInterrupt:
        answer = None
    assert cloud.done or cloud.interrupts, (
        "No step was done. Call work(0), work(1), … in order."
    )
    assert cloud.done[:1] == [0], (
        f"The first step was work({(cloud.done or [lost])[0]}); begin with work(0)."
    )
    assert cloud.interrupts == 1, (
        f"Interrupted in step {lost}, it called work({lost}) again and again. The container is being taken away: let the KeyboardInterrupt through."
    )
    assert answer is None, (
        f"Interrupted in step {lost}, it returned {answer!r} as if all were well. Let the KeyboardInterrupt through, or nobody starts the run again."
    )
    assert cloud.done == list(range(lost)), (
        f"Before the interruption the steps 0 to {lost - 1} should have been done once each; yours did {cloud.done}."
    )
    assert cloud.commits, (
        "commit() was never called, so what you saved was lost with the container."
    )
    assert cloud.secured, (
        "The first commit() came after the interruption, in a finally or an except. A container that is killed runs neither: commit after each step."
    )
    assert cloud.secured >= lost, (
        f"When step {lost} began, {cloud.secured} of {lost} steps had been committed. Commit after every step, or a kill undoes some."
    )
    cloud.restart()
    try:
        answer = fn(cloud.folder, 6, cloud.work, cloud.commit)
    except (TypeError, ValueError) as error:
        raise AssertionError(
            f"The second attempt stumbles over what the first one saved ({type(error).__name__}: {error}). A file holds text: write str(count), and read int(text)."
        ) from error
    again = cloud.done
    assert again, (
        f"After the interruption no step was done. The steps from {lost} to 5 are still to do."
    )
    assert again[0] != 0, (
        "The second attempt starts at step 0. Read what the first one saved, and go on from there."
    )
    assert again[0] <= lost, (
        f"The second attempt starts at step {again[0]}: step {lost} was counted before it was done. Save after the work."
    )
    assert again[0] == lost or cloud.unsaved, (
        f"The second attempt repeats step {again[0]}, which was done and secured. After work(i) the count is i + 1: that is the number to save, and the step to begin with."
    )
    assert again[0] == lost, (
        f"The second attempt repeats step {again[0]}, which was done. Save the count first, and commit after it: a commit secures only what is written."
    )
    assert again == list(range(lost, 6)), (
        f"The second attempt should do the steps from {lost} to 5, once each; yours did {again}."
    )
    assert answer == 6, (
        f"A finished run returns its number of steps, 6; yours returned {answer!r}."
    )
    count = len(again)
    fn(cloud.folder, 6, cloud.work, cloud.commit)
    assert len(cloud.done) == count, (
        "Called once more on a finished run, it works again. There is nothing left to do."
    )
