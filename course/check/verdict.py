"""What a check answers, and whose word it is: the check's own, or that of the learner's code."""

import copy
import functools
import re
import sysconfig
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.overrides import TorchFunctionMode

STUB = "It is still the stub: replace the line that raises NotImplementedError."
COURSE = str(Path(__file__).parents[1])
LIBRARIES = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), "<frozen")


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a check found, as the notebook shows it. A check never stops the notebook."""

    passed: bool
    message: str

    def __repr__(self) -> str:
        text = ("Right. " if self.passed else "Not yet. ") + self.message
        wrap = functools.partial(textwrap.fill, width=80, break_long_words=False)
        return "\n".join(map(wrap, text.splitlines()))


def exercise(check: Callable[..., str]) -> Callable[..., Verdict]:
    """Turn a function that asserts its way through to a closing sentence into one that returns a `Verdict`.

    An assert of the check is its word. What the learner's code raises, an assert or `sys.exit` of its own included, is
    told as that code's, with its line. Anything else that the check raises is a fault of the check, and told as that.
    """

    @functools.wraps(check)
    def verdict(*answers: Any) -> Verdict:
        try:
            return Verdict(True, check(*answers))
        except (Exception, SystemExit) as error:
            if is_theirs(error, check):
                return Verdict(False, told(error))
            if isinstance(error, AssertionError):
                return Verdict(False, str(error))
            return Verdict(
                False,
                f"This check cannot judge your answer: the check itself stumbles ({type(error).__name__}: {error}). "
                "Does your result have the kind and the shape that the exercise asks for? If it has, compare it with the solution.",
            )

    return verdict


def function(fn: Any) -> None:
    """Assert that the learner handed in something that can be called."""
    assert callable(fn), (
        f"The check was given {_a(fn)}. Hand it your function itself: its name, without calling it."
    )


def call(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `fn` returns. What it raises is marked as the learner's, and goes on as it is.

    An assert that fails in something that the check handed in (a `work` that was called too often) stays the check's.
    """
    function(fn)
    try:
        return fn(*args, **kwargs)
    except (Exception, SystemExit) as error:
        own = _frames(error)
        if not (isinstance(error, AssertionError) and own and own[-1] is None):
            error._of_learner = True  # type: ignore[union-attr]
        raise


def tried(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `fn` returns for copies of these, or the error that it raises; the stub goes through."""
    try:
        return call(fn, *copy.deepcopy(args), **copy.deepcopy(kwargs))
    except NotImplementedError:
        raise
    except (Exception, SystemExit) as error:
        if not is_theirs(error):
            raise
        return error


def _frames(
    error: BaseException, check: Callable[..., Any] | None = None
) -> list[traceback.FrameSummary | None]:
    """The lines that an error passed, libraries left out: the learner's own, and None for one of the checks."""
    code = getattr(check, "__code__", None)
    itself = code and (code.co_filename, code.co_name)
    lines = [
        None
        if line.filename.startswith(COURSE) or (line.filename, line.name) == itself
        else line
        for line in traceback.extract_tb(error.__traceback__)
        if not line.filename.startswith(LIBRARIES)
        and not {"site-packages", "dist-packages"} & {*Path(line.filename).parts}
    ]
    return lines[1:]  # the first is the call that caught it


def is_theirs(error: BaseException, check: Callable[..., Any] | None = None) -> bool:
    """Whether the learner's code raised this, and not the check."""
    if getattr(error, "_of_learner", False):
        return True
    own = _frames(error, check)
    return any(own) and not (isinstance(error, AssertionError) and own[-1] is None)


def told(error: BaseException) -> str:
    """What the learner's code did to raise this, in a sentence with the last line of that code."""
    if isinstance(error, NotImplementedError):
        return STUB
    own = [line for line in _frames(error) if line is not None]
    chapters = [line for line in own if f"{Path(COURSE).parent / 'slm'}" not in line[0]]
    line = (chapters or own)[-1] if own else None
    where = f" in your line `{line.line}`" if line is not None and line.line else ""
    text = re.sub(r"[\w.]*<locals>\.", "", str(error)).rstrip(".")
    said = "" if line is not None and text in str(line.line) else f": {text}"
    if isinstance(error, AssertionError):
        return f"An assert of your own fails{where}{said}."
    if isinstance(error, SystemExit):
        return f"Your code ends Python itself{where}; a function should return."
    if isinstance(error, RecursionError):
        return f"Your function calls itself without an end{where}."
    if line is None and isinstance(error, TypeError):
        return f"Your function cannot be called as the exercise says{said}."
    return f"Your code stops with {type(error).__name__}{where}{said}."


def untouched(fn: Callable[..., Any], **inputs: Any) -> Any:
    """What `fn` returns for copies of these tensors and numbers, in this order; it must leave the copies as they are."""
    from course.check.diagnose import CHANGED, same

    copies = copy.deepcopy(inputs)
    result = call(fn, *copies.values())
    for name, given in inputs.items():
        assert same(copies[name], given), CHANGED.format(name)
    return result


class _Recorder(TorchFunctionMode):
    """While it is on, it writes down the name of each function of torch that is called, however it was imported."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def ready_made(fn: Callable[..., Any], *inputs: Any, names: set[str]) -> str:
    """The first of `names`, functions of torch, that `fn` calls for these inputs, or an empty string."""
    with _Recorder() as recorder:
        call(fn, *copy.deepcopy(inputs))
    return min(names & recorder.names, default="")


def _a(thing: Any) -> str:
    """A thing's kind, with its article."""
    if thing is None:
        return "None"
    name = type(thing).__name__
    return f"a{'n' if name[0] in 'aeiouAEIO' else ''} {name}"
