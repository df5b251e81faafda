"""Checks of the exercises on the launch: two references with switches, and the sentence for each."""

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from course.check.diagnose import RIGHT, Diagnosis, Wrong, WrongKind, pick
from course.check.verdict import call, exercise

Gpus = dict[str, tuple[float, float]]


def _choose_gpu(
    gpus: Gpus, max_dollars: float, max_hours: float, wrong: Wrong = RIGHT
) -> str | None:
    if "limits turned" in wrong:
        max_dollars, max_hours = max_hours, max_dollars
    if "numbers turned" in wrong:
        gpus = {name: numbers[::-1] for name, numbers in gpus.items()}
    if wrong & {"only hourly", "only fastest"}:
        return min(gpus, key=lambda name: gpus[name]["only hourly" in wrong])
    all_costs = {name: hours * price for name, (hours, price) in gpus.items()}
    prices = {name: price for name, (_, price) in gpus.items()}
    costs = pick(wrong, {"cost of an hour": prices}, all_costs)
    in_time = [
        name
        for name, (hours, _) in gpus.items()
        if hours < max_hours or (hours == max_hours and "below hours" not in wrong)
    ]
    if wrong & {"no time", "late check"}:
        in_time = list(gpus)
    if not in_time:
        if "none if late" in wrong:
            return None
        raise ValueError("no GPU is in time")
    fits = in_time
    if wrong & {"dearest", "fastest that fits", "first that fits", "last that fits"}:
        fits = [name for name in in_time if costs[name] <= max_dollars]
    hours_of = {name: hours for name, (hours, _) in gpus.items()}
    ways = {
        "hourly": prices,
        "fastest": hours_of,
        "fastest that fits": hours_of,
        "divided": {name: hours / price for name, (hours, price) in gpus.items()},
        "dearest": {name: -cost for name, cost in costs.items()},
        "first that fits": {name: 0 for name in gpus},
        "last that fits": {name: -place for place, name in enumerate(gpus)},
    }
    way = pick(wrong, ways, costs) if fits else costs
    best = min(fits or in_time, key=way.__getitem__)
    if "second" in wrong and len(in_time) > 1:
        best = sorted(in_time, key=way.__getitem__)[1]
    if "late check" in wrong and gpus[best][0] > max_hours:
        raise ValueError("too late")
    dear = [costs[name] for name in in_time if costs[name] > max_dollars]
    if "any dear" in wrong and dear:
        raise ValueError(f"costs ${dear[0]:g}")
    above = costs[best] > max_dollars
    if "below dollars" in wrong:
        above = costs[best] >= max_dollars
    if above and "no budget" not in wrong:
        if "none if dear" in wrong:
            return None
        told = {
            "mute": max_dollars,
            "tells hourly": prices[best],
            "tells missing": all_costs[best] - max_dollars,
            "tells cheapest": min(all_costs.values()),
        }
        raise ValueError(f"costs ${pick(wrong, told, all_costs[best]):g}")
    return best


def _told(
    error: BaseException, gpus: Gpus, max_dollars: float, max_hours: float
) -> str:
    """Which of the numbers that matter an error tells."""
    found = [float(text) for text in re.findall(r"\d+(?:\.\d+)?", str(error))]
    says = lambda number: any(abs(number - x) < 0.006 for x in found)  # noqa: E731
    costs = {name: hours * price for name, (hours, price) in gpus.items()}
    in_time = [name for name in gpus if gpus[name][0] <= max_hours]
    if not in_time:
        return ""
    best = min(in_time, key=costs.__getitem__)
    numbers = {
        "the cost": costs[best],
        "the price of an hour": gpus[best][1],
        "what is missing": costs[best] - max_dollars,
        "the cheapest of all": min(costs.values()),
    }
    return next((name for name, number in numbers.items() if says(number)), "nothing")


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise WrongKind("a name, a str")
    return value


TWO = {"small": (10.0, 0.9), "large": (3.0, 2.5)}  # $9.0 and $7.5
GPUS = {
    "slow": (30.0, 0.6),
    "small": (10.0, 0.9),
    "huge": (1.5, 6.4),
    "large": (3.0, 2.5),
}
CHOOSE = Diagnosis(
    _choose_gpu,
    {
        "only hourly": "You only look for the lowest price per hour. Compare dollars for the whole run, and mind both limits.",
        "only fastest": "You only look for the fastest. Compare dollars for the whole run, and mind both limits.",
        "hourly": "You chose the lowest price per hour. A slow GPU needs many hours: compare dollars for the whole run.",
        "cost of an hour": "You take the price of an hour for what the run costs: multiply it by the hours.",
        "fastest": "You chose the fastest. It is done first, but another one in time may cost less.",
        "fastest that fits": "You chose the fastest that the budget allows. The one that costs least is asked for.",
        "first that fits": "You take the first GPU that is in time and within the budget. Compare all of them.",
        "last that fits": "You take the last GPU that is in time and within the budget. Compare all of them.",
        "second": "You chose the second cheapest of those in time.",
        "dearest": "You chose the dearest that the budget allows. The one that costs least is asked for.",
        "divided": "You divide the hours by the price. What a run costs: hours times price.",
        "numbers turned": "The two numbers of a GPU have changed places: hours come first, then dollars per hour.",
        "limits turned": "max_dollars and max_hours have changed places in your function.",
        "no time": "You do not look at the time. A GPU that does not make it within max_hours is no choice.",
        "late check": "You choose first, and look at the time then. If the cheapest is too late, another one may be in time.",
        "no budget": "You do not look at the budget: what costs more than max_dollars must be refused.",
        "any dear": "You refuse as soon as any GPU that is in time is above the budget. Another one may be below it: compare first, then look at the budget.",
        "below hours": "A run that takes exactly max_hours is in time: <=.",
        "below dollars": "A run that costs exactly max_dollars is within the budget: refuse only what costs more.",
        "none if late": "If no GPU is in time, you return None. Raise a ValueError.",
        "none if dear": "Above the budget you return None. Raise a ValueError.",
        "mute": "Your error does not say what the run costs on the best choice, so nobody knows what to change.",
        "tells hourly": "Your error tells the price of an hour. Say what the run costs.",
        "tells missing": "Your error tells how many dollars are missing. Say what the run costs.",
        "tells cheapest": "Your error tells what the cheapest of all GPUs costs, in time or not. Say what the best one that is in time costs.",
    },
    [
        (TWO, 20.0, 24.0),
        (TWO, 5.0, 24.0),
        (TWO, 20.0, 2.0),
        (TWO, 20.0, 3.0),
        (TWO, 7.5, 24.0),
        (GPUS, 20.0, 24.0),  # $18.0, $9.0, $9.6 and $7.5
        (GPUS, 20.0, 2.0),
        (GPUS, 9.2, 24.0),
        (GPUS, 8.0, 2.0),
        ({"a": (5.0, 3.0), "b": (4.0, 2.25), "c": (9.0, 1.5)}, 10.0, 5.0),
        ({"only": (12.0, 0.5)}, 4.0, 24.0),
        # $9.0, $6.0 and $8.0
        ({"x": (3.0, 3.0), "y": (6.0, 1.0), "z": (2.0, 4.0)}, 20.0, 24.0),
    ],
    lambda gpus, dollars, hours: (
        "For " + ", ".join(f"{name}: {h:g} h at ${p:g}" for name, (h, p) in gpus.items()) + f", with ${dollars:g} and {hours:g} hours"
    ),
    read=_name,
    refusal=_told,
)  # fmt: skip


@exercise
def choose_gpu(fn: Callable[..., Any]) -> str:
    """Check a `choose_gpu(gpus: name -> (hours, dollars per hour), max_dollars, max_hours)`."""
    CHOOSE.judge(fn)
    return "Cheapest for the whole run, in time, and a budget that refuses."


class _Cloud:
    """A volume as a container sees it, and the work on it: what was not committed when it is killed is lost."""

    def __init__(self, folder: Path, lost: int) -> None:
        self.folder, self.lost = folder, lost
        self.safe: dict[str, bytes] = {}
        self.left: dict[str, bytes] | None = None  # what was safe when `lost` began
        self.done: list[int] = []
        self.interrupts = self.commits = self.commits_then = 0
        folder.mkdir(parents=True)

    def work(self, step: int) -> None:
        """Do a step; the first attempt is interrupted in step `lost`, whoever tries it again and again, three times."""
        if step == self.lost and self.left is None:
            self.left, self.commits_then = self.safe, self.commits
        if step == self.lost and self.interrupts < 3:
            self.interrupts += 1
            raise KeyboardInterrupt
        self.done.append(step)
        assert len(self.done) < 50, (
            "work was called 50 times for a few steps. Does your loop end, and does it go on to the next step?"
        )

    def commit(self) -> None:
        self.commits += 1
        files = (path for path in self.folder.rglob("*") if path.is_file())
        self.safe = {
            str(path.relative_to(self.folder)): path.read_bytes() for path in files
        }

    def restart(self, folder: Path, files: dict[str, bytes]) -> None:
        """Another container: it mounts what was committed, and is not interrupted."""
        self.folder, self.safe, self.interrupts, self.done = folder, files, 3, []
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    def attempt(self, fn: Callable[..., Any], steps: int) -> str:
        """One call, and how it ended."""
        before = self.interrupts
        try:
            answer = call(fn, self.folder, steps, self.work, self.commit)
        except KeyboardInterrupt:
            if self.interrupts == before:
                raise  # of the one who sits at the keyboard
            return "with the KeyboardInterrupt"
        return f"with the result {answer!r}"


# many small files: in memory, where there is such a folder
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
ATTEMPTS = (
    "the first attempt",
    "the second attempt",
    "an attempt when all is done",
    "an attempt in a new container when all is done",
)


def _survives(
    fn: Callable[..., Any], steps: int, lost: int, killed: bool
) -> tuple[dict[str, Any], None]:
    """What four attempts did: interrupted in step `lost`, started again, and twice more when all was done."""
    seen: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        # what lies beside the folder is not on the volume
        cloud = _Cloud(Path(name) / "0" / "data", lost)
        for which in ATTEMPTS:
            end = cloud.attempt(fn, steps)
            seen[f"the steps of {which}"] = cloud.done
            seen[f"the end of {which}"] = end
            if which == ATTEMPTS[0]:
                seen["the times that this step was tried"] = cloud.interrupts
                seen["whether all steps before it were committed"] = (
                    cloud.commits_then >= lost
                )
                files = cloud.left if killed else cloud.safe
                cloud.restart(Path(name) / "1" / "data", files or {})
            elif which == ATTEMPTS[1]:
                cloud.done = []  # the next begins where this one ended
            elif which == ATTEMPTS[2]:
                cloud.restart(Path(name) / "2" / "data", cloud.safe)
    return seen, None


KEPT: dict[str, int] = {}  # for the mistake of a count that lies in memory


def _attempt(
    folder: Path,
    steps: int,
    work: Callable[[int], None],
    commit: Callable[[], None],
    wrong: Wrong = RIGHT,
) -> Any:
    saved = folder / "step.json"

    def save(count: Any) -> None:
        if wrong & {"no save", "in memory"}:
            return
        if "writes a number" in wrong:
            saved.write_text(count)
        saved.write_text(json.dumps(count))

    start = json.loads(saved.read_text()) if saved.exists() else 0
    if "in memory" in wrong:
        start = KEPT.get(str(folder), 0)
    if "reads text" in wrong and saved.exists():
        range(saved.read_text(), steps)  # type: ignore[call-overload]
    if "one late" in wrong and saved.exists():
        start += 1
    if "from 1" in wrong:
        start = max(start, 1)
    last = steps + ("one more" in wrong) - ("one less" in wrong)
    step, did = start, 0
    try:
        while step < last:
            if wrong & {"early count", "early step"}:
                save(step + ("early count" in wrong))
                commit()
            try:
                work(step)
            except KeyboardInterrupt:
                if "saves if interrupted" in wrong:
                    save(step)
                    commit()
                if "again" in wrong:
                    continue
                if wrong & {"returns", "returns steps", "returns None"}:
                    return pick(
                        wrong, {"returns steps": steps, "returns None": None}, step
                    )
                if "goes on" not in wrong:
                    raise
            finally:
                if "finally count" in wrong:
                    save(step + 1)
                    commit()
            if "commit first" in wrong:
                commit()
            if not wrong & {"early count", "early step", "saves if interrupted"}:
                save(step if "step for count" in wrong else step + 1)
            KEPT[str(folder)] = step + 1
            often = "every second" not in wrong or step % 2
            never = wrong & {
                "no commit",
                "late commit",
                "finally commit",
                "commit first",
                "saves if interrupted",
                "early step",
            }
            if often and not never:
                commit()
            step, did = step + 1, did + 1
            if "return inside" in wrong:
                return steps
    finally:
        if "finally commit" in wrong:
            commit()
    if "late commit" in wrong:
        commit()
    if "deletes" in wrong:
        saved.unlink(missing_ok=True)
        commit()
    if "no result" in wrong:
        return None
    return did if "returns did" in wrong else steps


ATTEMPT = Diagnosis(
    _attempt,
    {
        "no save": "Every attempt starts at step 0 again: keep the count in a file in `folder`, and begin with it.",
        "in memory": "The count is not in `folder`, so another container does not find it. Keep it in a file in `folder`.",
        "step for count": "You save the number of the step that was done, and begin with it again. After work(i) the count is i + 1: save that.",
        "early count": "You count a step before it is done, so the one that was lost is left out. Save after the work.",
        "early step": "You save before the work only, so the last step is never counted, and a finished run works again. Save after the work.",
        "finally count": "Your `finally` counts the interrupted step as done. Save only after the work came back.",
        "saves if interrupted": "You save only when the interruption shows. A container that is killed does not come to it: save and commit after each step.",
        "no commit": "commit() is never called (are its parentheses there?), so what you saved is lost with the container.",
        "late commit": "commit() comes after the loop, so all steps are lost when the container is killed before. Commit after each step.",
        "finally commit": "commit() stands in a `finally` only. A container that is killed does not come to it: commit after each step.",
        "commit first": "You commit first and save then. A commit secures only what is written: save the count first.",
        "every second": "You commit after every second step only. Commit after each, or a kill undoes some.",
        "again": "You catch the KeyboardInterrupt and try the step again. The container is being taken away: let it through.",
        "returns": "You catch the KeyboardInterrupt and return, as if all were well. Let it through, or nobody starts the run again.",
        "returns steps": "You catch the KeyboardInterrupt and return `steps`, as if all were done. Let it through, or nobody starts the run again.",
        "returns None": "You catch the KeyboardInterrupt and return None. Let it through, or nobody starts the run again.",
        "goes on": "You catch the KeyboardInterrupt and go on with the next step: the interrupted one is lost. Let it through.",
        "one late": "The next attempt begins one step too late: with a count of i, step i is the next.",
        "from 1": "You begin with work(1); the first step is work(0).",
        "one more": "You do one step too many: work(steps - 1) is the last.",
        "one less": "The last step, work(steps - 1), is left out.",
        "return inside": "The `return` stands inside the loop, so an attempt does one step.",
        "deletes": "You delete the count when all is done, so a finished run begins anew. Leave it.",
        "returns did": "You return how many steps this attempt did. Return `steps`, all of them.",
        "no result": "You return None. Return `steps`.",
        "writes a number": "A file holds text: write str(count).",
        "reads text": "A file holds text, and you use it as a number: int(text).",
    },
    [
        (6, 4, True),
        (6, 4, False),
        (6, 5, True),
        (5, 3, False),
        (3, 1, True),
        (4, 2, False),
        (3, 0, True),
    ],
    lambda steps, lost, killed: (
        f"Of {steps} steps, {'killed' if killed else 'interrupted'} in step {lost}"
    ),
    observe=_survives,
)


@exercise
def attempt(fn: Callable[..., Any]) -> str:
    """Check an `attempt(folder, steps, work, commit)` that is killed in some step and, called again, goes on."""
    ATTEMPT.judge(fn)
    return "Nothing is lost, nothing is done twice, and an interruption shows."
