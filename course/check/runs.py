"""The check of the exercise of the chapter on runs."""

import inspect
from collections.abc import Callable
from typing import Any

from course.check.diagnose import Diagnosis
from course.check.verdict import call, exercise

# what learners do with the None of a first start, and what Python answers
NONE: dict[str, Callable[[Any], Any]] = {
    "load() + 1": lambda done: done + 1,
    "range(load(), …)": lambda done: range(done, 9),
    "load() < steps": lambda done: done < 9,
    "step <= load()": lambda done: done <= done,
    "step > load()": lambda done: done > 0,
    "int(load())": lambda done: int(done),
}

MISTAKES = {
    "forgets": "You begin at step 1 whatever load() says. It gives the step of the newest checkpoint; go on behind it.",
    "again": "You begin with the step that the checkpoint has seen. It is done; the next one is load() + 1.",
    "skips": "You leave out the step behind the checkpoint: when 4 are done, the next one is 5.",
    "left": "You do as many steps as are left, and count them from 1 again. They go on behind the checkpoint: load() + 1 to steps.",
    "short": "You stop before the last step: range(…, steps) ends at steps - 1.",
    "long": "You do one step too many: steps is the last one.",
    "zero": "You count the steps from 0. They are 1 to steps.",
    "zero, saves the next": "You do steps from 0 and save as if they were counted from 1. They are 1 to steps: do the same number that you save.",
    "saves one less": "You save the number of the step before, so a checkpoint says less than is done.",
    "saves one more": "You save the number of the next step, so a checkpoint says more than is done. It says how many steps are done.",
    "save first": "You save before the step is done. A kill in between would lose the step for ever: do it first, then save.",
    "no last": "You do not save after the last step, unless it is a multiple of every.",
    "each": "You save after every step. It is due after every `every` steps, and after the last.",
    "only last": "You save only once, at the end, so a kill loses everything.",
    "never": "You never save: after every `every` steps, and after the last, save(step).",
    "numbers": "You save the number of the checkpoint. It says how many steps are done: save(step).",
    "and": "You save only where both hold, a multiple of every *and* the last step. Either is enough: or.",
    "not multiples": "You save where step % every is *not* 0. A remainder of 0 is what a multiple has: step % every == 0.",
    "early": "You save one step too early, where step + 1 is a multiple of every.",
    "late": "You save one step too late, behind the multiples of every: 5, not 4.",
    "floor": "You divide with //, which is 0 for the first few steps. The remainder % tells a multiple.",
    "twice": "You save twice after the last step where it is a multiple of every.",
    "finished": "You save although a checkpoint says that all is done. Then there is nothing to do.",
    "saves on the way in": "You save what you have just loaded, or 0: nothing new is done then.",
    "blocks, rest": "You work in whole blocks of every steps, and what is left at the end is not done.",
    "blocks, over": "You work in whole blocks of every steps, and go on beyond the last step. End at min(…, steps).",
    "finally": "You save in a `finally`, which runs when a step was stopped, too: that step is not done then.",
    "finally, done": "You save in a `finally`, which runs when a step was stopped, too, when no checkpoint is due.",
    "finally, too": "You save in a `finally` besides: twice at the end, and, when a step was stopped, a step that is not done.",
    "finally, once": "You save the last step in a `finally`, which runs when a step was stopped, too: that one is not done then.",
    "except": "You save when a step was stopped: that step is not done then.",
    "except, done": "You save when a step was stopped, and no checkpoint is due then.",
    "swallows": "You catch the error of a step that failed and go on with the next, so a step is missing.",
    "swallows, saves": "You catch the error of a step that failed and go on as if it were done.",
    "swallows all": "You catch whatever ends the process and return as if all were done. Let it through.",
    "tries again": "You try a step that failed again and again. Let the error through; the job is called again.",
    "one block": "You end after the first checkpoint. Go on until all steps are done.",
    "one step": "You end after one step (does a `return` stand inside your loop?). Go on until all are done.",
    "strides": "You do only every `every`-th step: range(…, …, every) leaves the others out.",
    "last but one": "You save after step steps - 1 instead of the last.",
    "saves the loaded": "You save the step that you have just loaded: a checkpoint of it is there.",
    "gives up": "You return if there is a checkpoint. It says how far the job is, not that it is finished.",
    "does nothing": "You never call do(step).",
} | {
    how: f"On the first start there is no checkpoint: load() is None, and `{how}` does not work with it."
    for how in NONE
}


FINALLY = {"finally", "finally, done", "finally, too", "finally, once", "except", "except, done"}  # fmt: skip


class Killed(BaseException):
    """The plug was pulled; no `except Exception` of a learner catches it."""


class World:
    """Where jobs run: it notes each call, and kills before the n-th `do` or `save` of the names in `kills`."""

    def __init__(self, kills: tuple[str, ...], saved: int | None) -> None:
        self.kills, self.saved, self.said, self.asked = list(kills), saved, [""], 0

    def load(self) -> int | None:
        self.asked += 1
        assert self.asked < 500, "Your loop asks load() again and again without an end."
        return self.saved

    def note(self, name: str, args: tuple[Any, ...]) -> None:
        assert len(args) == 1, (
            f"You call {name} with {len(args)} arguments: {name}(step)."
        )
        assert type(args[0]) is int, (
            f"You call {name}({args[0]!r}); it takes the number of a step."
        )
        assert len(self.said) < 500, (
            f"Your loop calls {name} again and again without an end."
        )
        said = f"{name}({args[0]})"
        if self.kills and self.kills[0].removesuffix("!") == said:
            fails = self.kills.pop(0).endswith("!")
            self.said.append(f"{said} {'FAILS' if fails else 'KILLED'}")
            raise OSError("the disk is full") if fails else Killed
        self.said.append(said)

    def do(self, *args: Any) -> None:
        self.note("do", args)

    def save(self, *args: Any) -> None:
        self.note("save", args)
        self.saved = args[0]


def attempts(
    fn: Callable[..., Any],
    steps: int,
    every: int,
    kills: tuple[str, ...],
    saved: int | None,
) -> tuple[str, None]:
    """What a job does, called again after each kill."""
    world = World(kills, saved)
    for _ in range(len(kills) + 1):
        try:
            result = call(fn, steps, every, world.load, world.do, world.save)
            assert not inspect.isgenerator(result), (
                "There is a `yield` in your function, so a call of it does nothing: it gives a generator."
            )
            world.said.append("END")
            break
        except Killed:
            world.said.append("AGAIN")
        except OSError as error:
            if str(error) != "the disk is full":
                raise
            world.said.append("AGAIN")
    return " ".join(world.said).strip() or "nothing", None


def answer(
    steps: int,
    every: int,
    load: Any,
    do: Any,
    save: Any,
    wrong: frozenset[str] = frozenset(),
) -> None:
    """The reference, with any of MISTAKES made."""
    found = load()
    for how in NONE:
        if how in wrong:
            NONE[how](found)
    if "gives up" in wrong and found is not None:
        return
    done = 0 if "forgets" in wrong else found or 0
    first = done + 1 + ("skips" in wrong and done > 0) - ("again" in wrong and done > 0)
    last = steps - ("short" in wrong) + ("long" in wrong)
    if "left" in wrong:
        first, last = 1, steps - done
    if "blocks, rest" in wrong:
        last = done + (steps - done) // every * every
    if "blocks, over" in wrong:
        last = done - (done - steps) // every * every
    stride = every if "strides" in wrong else 1
    zero = bool(wrong & {"zero", "zero, saves the next"})
    if "saves on the way in" in wrong or ("saves the loaded" in wrong and found):
        save(done)
    step = done

    def due(step: int) -> bool:
        if "and" in wrong:
            return step % every == 0 and step == steps
        shift = ("early" in wrong) - ("late" in wrong)
        multiple = (step + shift) % every == 0
        if "not multiples" in wrong:
            multiple = step % every != 0
        if "floor" in wrong:
            multiple = step // every == 0
        if wrong & {"only last", "never"}:
            multiple = False
        if "finally, once" in wrong:
            return multiple and step < steps
        if "last but one" in wrong:
            return multiple or step == steps - 1
        end = step == (last if wrong & {"blocks, over", "left"} else steps)
        return (
            multiple
            or "each" in wrong
            or (end and not wrong & {"no last", "never", "finally", "finally, done"})
        )

    def keep(step: int) -> None:
        number = -(-step // every) if "numbers" in wrong else step
        save(number + ("saves one more" in wrong) - ("saves one less" in wrong))

    ended = False
    try:
        for step in range(first - zero, last + 1 - zero, stride):
            named = step + ("zero, saves the next" in wrong)
            if "save first" in wrong and due(named):
                keep(named)
            try:
                if "does nothing" not in wrong:
                    do(step)
            except Exception:
                if "tries again" in wrong:
                    do(step)
                elif not wrong & {"swallows", "swallows, saves"}:
                    raise
                if "swallows" in wrong:
                    continue
            done = step
            if "one step" in wrong:
                return
            if "save first" not in wrong and due(named):
                keep(named)
                if "one block" in wrong:
                    return
                if "twice" in wrong and named == steps and named % every == 0:
                    save(named)
        if "finished" in wrong and done >= steps and first > steps:
            save(steps)
        ended = True
    except BaseException:
        if "swallows all" not in wrong:
            raise
    finally:
        if wrong & FINALLY and not (ended and wrong & {"except", "except, done"}):
            save(done if wrong & {"finally, done", "except, done"} else step)


def show(steps: int, every: int, kills: tuple[str, ...], saved: int | None) -> str:
    """A probe at the beginning of a sentence."""
    names = " and then in ".join(kill.removesuffix("!") for kill in kills)
    ended = f", {'stopped by an error' if '!' in ''.join(kills) else 'killed'} in {names} and called again"
    begun = "" if saved is None else f", with a checkpoint of step {saved}"
    return f"With steps = {steps}, every = {every}{begun}{ended if kills else ''}, what your job calls, in order"


JOB = Diagnosis(
    answer,
    MISTAKES,
    [
        (3, 2, (), None),
        (4, 2, (), None),
        (10, 4, (), None),
        (1, 5, (), None),
        (12, 3, (), None),
        (5, 1, (), None),
        (4, 2, ("do(4)",), None),
        (10, 4, ("do(7)", "do(9)"), None),
        (10, 4, ("save(4)",), None),
        (10, 4, ("do(3)", "do(10)"), None),
        (7, 3, ("do(1)", "do(5)", "save(7)"), None),
        (10, 4, ("do(6)!",), None),
        (6, 3, ("do(3)!",), None),
        (10, 4, (), 10),
        (6, 3, (), 6),
        (9, 3, (), 6),
    ],
    show,
    observe=attempts,
)


@exercise
def job(fn: Callable[..., Any]) -> str:
    """Check a `job(steps, every, load, do, save)` that goes on where a checkpoint says."""
    JOB.judge(fn)
    return "No step is lost, and none is done twice without need."
