"""Checks of the exercises on the door."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from course.check.verdict import exercise
from slm.errors import SlmError

Command = Callable[[list[str]], int]
Door = Callable[[Command, list[str], Callable[[str], None]], int]


def _through(fn: Door, error: BaseException | None) -> tuple[Any, list[str]]:
    """What a door returns, or the error that comes through it, and what it says."""
    said: list[str] = []

    def command(words: list[str]) -> int:
        assert words == ["train", "x.yaml"], (
            f"The command was called with {words!r}; hand it the words as they came."
        )
        if error is not None:
            raise error
        return 7

    try:
        return fn(command, ["train", "x.yaml"], said.append), said
    except (AssertionError, NotImplementedError):
        raise
    except BaseException as passed:
        if passed is not error:
            raise
        return passed, said


@exercise
def exit_codes(fn: Door) -> str:
    """Check a `door(command, words, say) -> exit code`."""
    got, said = _through(fn, None)
    assert got == 7, (
        f"The command returned 7 and the door {got!r}: hand its exit code on."
    )
    assert not said, f"All went well, and it said {said[0]!r}; there is nothing to say."
    for error in (SlmError("the text is empty"), OSError("the disk is full")):
        got, said = _through(fn, error)
        name = type(error).__name__
        assert not isinstance(got, BaseException), (
            f"A {name} came through. It is the user's to mend: say it, and return 2."
        )
        assert got == 2, f"After a {name} the exit code should be 2; yours is {got!r}."
        assert said == [str(error)], (
            f"After a {name} it should say {str(error)!r}, once; yours said {said!r}."
        )
    got, said = _through(fn, KeyboardInterrupt())
    assert not isinstance(got, BaseException), (
        "A KeyboardInterrupt came through. Note that it is no Exception: catch it by its own name, and return 130."
    )
    assert got == 130, f"After Ctrl-C the exit code should be 130; yours is {got!r}."
    got, said = _through(fn, BrokenPipeError("broken pipe"))
    assert got == 141, (
        f"A BrokenPipeError gave {got!r} and not 141. It is an OSError, so the clause that catches it must stand before the one for OSError."
    )
    assert not said, (
        f"A reader that stops reading wants to hear nothing more; yours said {said[0]!r}."
    )
    for bug in (ValueError("a bug"), KeyError("a bug"), RuntimeError("a bug")):
        got, said = _through(fn, bug)
        assert got is bug, (
            f"A {type(bug).__name__} was answered with {got!r}. It is a bug: without its traceback nobody can mend it, so let it through."
            + (
                " An SlmError is a ValueError, but not the other way round."
                * isinstance(bug, ValueError)
            )
        )
    return "A mistake is one sentence, an interrupt is quiet, and a bug keeps its traceback."


@exercise
def lazy(fn: Callable[[dict[str, str]], Callable[[str], Any]]) -> str:
    """Check a `lazy(addresses: name -> module) -> find(name)`."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("one", "two"):
            source = (
                f"import sys\nsys._loads.append('{name}')\nthing_{name} = object()\n"
            )
            Path(folder, f"_lazy_{name}.py").write_text(source)
        loads: list[str] = []
        sys._loads = loads  # type: ignore[attr-defined]
        sys.path.insert(0, folder)
        try:
            return _lazy(fn, loads)
        finally:
            sys.path.remove(folder)
            del sys._loads  # type: ignore[attr-defined]
            for name in ("one", "two"):
                sys.modules.pop(f"_lazy_{name}", None)


def _lazy(
    fn: Callable[[dict[str, str]], Callable[[str], Any]], loads: list[str]
) -> str:
    find = fn({"thing_one": "_lazy_one", "thing_two": "_lazy_two"})
    assert callable(find), (
        f"lazy returned {type(find).__name__}; return a function that takes a name."
    )
    assert not loads, (
        "A module was imported before any of its names was asked for. Move the import into the function that is returned."
    )
    found = find("thing_one")
    assert loads == ["one"], (
        f"One name was asked for, and {loads or 'nothing'} was imported: import the module of that name only."
    )
    assert found is sys.modules["_lazy_one"].thing_one, (
        f"It returned {found!r}; return the object of that name, getattr(module, name)."
    )
    again = find("thing_one")
    assert again is found and loads == ["one"], (
        "Asked twice for a name, it ran the module twice. importlib.import_module keeps what it has loaded."
    )
    try:
        nothing = find("nonsense")
    except AttributeError as error:
        assert "nonsense" in str(error), (
            f"The AttributeError says {str(error)!r}; say which name there is not."
        )
    except Exception as error:
        raise AssertionError(
            f"A name that is not there raised {type(error).__name__}. Python expects an AttributeError: hasattr, for one, relies on it."
        ) from None
    else:
        raise AssertionError(
            f"A name that is not there gave {nothing!r}; raise an AttributeError."
        )
    return "Nothing is loaded before it is asked for, and a wrong name is told."
