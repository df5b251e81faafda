"""The checks on the door: each planted bug is caught with its own message."""

import importlib
import runpy

import pytest

from course import check
from slm.errors import SlmError


def door(command, words, say):
    try:
        return command(words)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except (SlmError, OSError) as error:
        say(str(error))
        return 2


def catching(*clauses, code=None, words=None):
    """A door with other clauses: pairs of a class and an exit code, in order."""

    def answer(command, given, say):
        try:
            found = command(given if words is None else words)
            return found if code is None else code
        except BaseException as error:
            for kind, answered in clauses:
                if isinstance(error, kind):
                    if answered == 2:
                        say(str(error))
                    return answered
            raise

    return answer


QUIET, PIPE = (KeyboardInterrupt, 130), (BrokenPipeError, 141)
MISTAKE = ((SlmError, OSError), 2)


def silent(command, words, say):
    return door(command, words, lambda text: None)


def says_the_class(command, words, say):
    return door(command, words, lambda text: say(f"error: {text}"))


def talks_on_success(command, words, say):
    code = command(words)
    say("done")
    return code


def pipe_is_told(command, words, say):
    try:
        return command(words)
    except BrokenPipeError:
        say("broken pipe")
        return 141
    except KeyboardInterrupt:
        return 130
    except (SlmError, OSError) as error:
        say(str(error))
        return 2


DOOR_BUGS = {
    "hand its exit code on": catching(QUIET, PIPE, MISTAKE, code=0),
    "there is nothing to say": talks_on_success,
    "hand it the words as they came": catching(QUIET, PIPE, MISTAKE, words=[]),
    "A SlmError came through": catching(QUIET, PIPE, (OSError, 2)),
    "A OSError came through": catching(QUIET, PIPE, (SlmError, 2)),
    "the exit code should be 2": catching(QUIET, PIPE, ((SlmError, OSError), 1)),
    "it should say 'the text is empty', once": silent,
    "yours said ['error: the text is empty']": says_the_class,
    "A KeyboardInterrupt came through": catching(PIPE, MISTAKE),
    "After Ctrl-C the exit code should be 130": catching(
        (KeyboardInterrupt, 1), PIPE, MISTAKE
    ),
    "must stand before the one for OSError": catching(QUIET, MISTAKE, PIPE),
    "wants to hear nothing more": pipe_is_told,
    "not the other way round": catching(QUIET, PIPE, ((ValueError, OSError), 2)),
    "A RuntimeError was answered with 2": catching(
        QUIET, PIPE, ((SlmError, OSError, RuntimeError), 2)
    ),
}


def lazy(addresses):
    def find(name):
        if name not in addresses:
            raise AttributeError(f"there is no name {name!r}")
        return getattr(importlib.import_module(addresses[name]), name)

    return find


def eager(addresses):
    found = {
        name: getattr(importlib.import_module(a), name) for name, a in addresses.items()
    }
    return found.__getitem__


def loads_all(addresses):
    def find(name):
        modules = {n: importlib.import_module(a) for n, a in addresses.items()}
        return getattr(modules[name], name)

    return find


def runs_again(addresses):
    def find(name):
        module = importlib.import_module(addresses[name])
        if hasattr(module, "seen"):
            runpy.run_module(addresses[name])
        module.seen = True
        return getattr(module, name)

    return find


def answers_none(addresses):
    return lambda name: lazy(addresses)(name) if name in addresses else None


def says_nothing(addresses):
    def find(name):
        if name not in addresses:
            raise AttributeError("no")
        return lazy(addresses)(name)

    return find


LAZY_BUGS = {
    "before any of its names was asked for": eager,
    "import the module of that name only": loads_all,
    "return the object of that name": lambda a: lambda n: importlib.import_module(a[n]),
    "ran the module twice": runs_again,
    "Python expects an AttributeError": lambda a: lambda n: lazy({n: a[n]})(n),
    "raise an AttributeError": answers_none,
    "say which name there is not": says_nothing,
    "return a function that takes a name": lambda a: 3,
}

GALLERY = [
    *((check.exit_codes, message, bug) for message, bug in DOOR_BUGS.items()),
    *((check.lazy, message, bug) for message, bug in LAZY_BUGS.items()),
]


@pytest.mark.parametrize(
    ("exercise", "message", "bug"), GALLERY, ids=[message for _, message, _ in GALLERY]
)
def test_planted_bug_is_named(exercise, message, bug):
    verdict = exercise(bug)
    assert not verdict.passed
    assert message in verdict.message


@pytest.mark.parametrize("exercise", [check.exit_codes, check.lazy])
def test_stub_is_told_apart(exercise):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert "still the stub" in exercise(stub).message


@pytest.mark.parametrize(
    ("exercise", "solution"), [(check.exit_codes, door), (check.lazy, lazy)]
)
def test_solution_passes(exercise, solution):
    assert exercise(solution).passed, exercise(solution).message
