"""Checks of the exercises on the door."""

import builtins
import contextlib
import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from course.check.diagnose import Diagnosis
from course.check.verdict import call, exercise
from slm.errors import SlmError

Command = Callable[[list[str]], int]
Door = Callable[[Command, list[str], Callable[[str], None]], int]

# what is said of an error in place of its message
SAID: dict[str, Callable[[Exception], Any]] = {
    "error": lambda error: error,
    "repr": repr,
    "prefix": lambda error: f"slm: {error}",
    "typed": lambda error: f"{type(error).__name__}: {error}",
    "args": lambda error: error.args,
    "args[0]": lambda error: error.args[0],
    "strerror": lambda error: getattr(error, "strerror", str(error)),
}
DOOR = {
    "all": "You tell every error in a sentence. One that is neither an SlmError nor an OSError is a bug: without its traceback nobody can mend it, so let it through.",
    "rest is 130": "You answer whatever else comes with 130. A bug is no Ctrl-C: catch KeyboardInterrupt by its name, and let the rest through.",
    "finally": "A `return` behind whatever else comes (in a `finally`, or after a bare `except:`) swallows it: the traceback of a bug is lost. Let it through.",
    "swallowed": "You catch a bug and return a code for it: its traceback is lost. Let it through.",
    "ValueError": "You catch ValueError. An SlmError is one, but not the other way round: any other ValueError is a bug and should come through.",
    "wrapped": "You turn a bug into another error. Let it through as it came.",
    "pipe": "You answer a BrokenPipeError as any OSError: it has no clause of its own, or one that stands behind that for OSError, where it is never reached.",
    "OSError is 141": "You answer every OSError with 141. That is for a BrokenPipeError; any other is a mistake to say, and 2.",
    "both 130": "You answer a closed pipe with 130, as Ctrl-C. It is 141.",
    "exit caught": "You catch SystemExit, too. What is none of the errors that are named comes through.",
    "no interrupt": "You do not catch KeyboardInterrupt. It is no Exception: name it, and return 130.",
    "no OSError": "You let an OSError through. It is the user's to mend: say it, and return 2.",
    "one OSError": "You catch only one kind of OSError, such as FileNotFoundError. A full disk is another.",
    "no SlmError": "You let an SlmError through. It is the user's to mend: say it, and return 2.",
    "nothing": "You do not return what the command returned: its exit code is lost.",
    "zero": "You return 0 whatever the command returned. Hand its exit code on.",
    "bool": "You turn the command's exit code into 0 or 1. Hand it on as it is.",
    "no 2": "After a mistake of the user you return nothing; return 2.",
    "one": "You return 1 for a mistake of the user; it is 2.",
    "swapped": "You have swapped 130, which is for Ctrl-C, and 141, which is for a closed pipe.",
    "exits": "You end Python itself, with sys.exit. Return the code: whoever called decides.",
    "silent": "You tell nobody of the user's mistake. (print is not `say`: hand the message to say.)",
    "pipe told": "You say something when the pipe is closed. Whoever stopped reading wants to hear nothing.",
    "interrupt told": "You say something after Ctrl-C. Only a mistake of the user is to be told.",
    "raises": "You say the mistake and raise it once more, so it is told twice.",
    "talks": "You say something where all went well. Only a mistake of the user is to be told.",
    "outside": "You call the command outside of the `try`, or catch nothing: every error comes through.",
    "twice": "You call the command twice.",
    "unpacked": "You hand the command its words one by one. It takes the list as it came.",
    "no words": "You call the command without its words.",
    "error": "You hand the error itself to `say`; it takes its message, str(error).",
    "repr": "You say repr(error), which shows the class as well; the message is str(error).",
    "prefix": "You put 'slm: ' in front of the message; hand it to `say` as it is.",
    "typed": "You put the name of its class in front of the message; say str(error) and nothing else.",
    "args": "You say error.args, a tuple; the message is str(error).",
    "args[0]": "You say error.args[0], which for an OSError is a number; the message is str(error).",
    "strerror": "You say error.strerror, in which the file is missing; the message is str(error).",
}


def door(
    command: Any, words: list[str], say: Any, wrong: frozenset[str] = frozenset()
) -> Any:
    """The reference, with any of the mistakes in DOOR made."""
    if "outside" in wrong:
        return command(words)
    ours = ValueError if "ValueError" in wrong else SlmError
    files = FileNotFoundError if "one OSError" in wrong else OSError
    mistakes: tuple[type[Exception], ...] = (ours,) * ("no SlmError" not in wrong)
    mistakes += (files,) * ("no OSError" not in wrong)
    mistakes += (Exception,) * ("all" in wrong)
    quiet = (141, 130) if "swapped" in wrong else (130, 141)
    code: Any = None
    try:
        if "twice" in wrong:
            command(words)
        given = words if "unpacked" in wrong else [words]
        code = command(*([] if "no words" in wrong else given))
        if "talks" in wrong:
            say("done")
        if "nothing" in wrong:
            code = None
        if wrong & {"zero", "bool"}:
            code = int(bool(code)) if "bool" in wrong else 0
    except KeyboardInterrupt as error:
        if "no interrupt" in wrong:
            raise
        if "interrupt told" in wrong:
            say(str(error))
        code = quiet[0]
    except SystemExit:
        if not wrong & {"exit caught", "finally"}:
            raise
        code = 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and "pipe" not in wrong:
            if "pipe told" in wrong:
                say(str(error))
            code = 130 if "both 130" in wrong else quiet[1]
        elif isinstance(error, OSError) and "OSError is 141" in wrong:
            code = 141
        elif isinstance(error, mistakes):
            tell = next((SAID[m] for m in SAID if m in wrong), str)
            if "silent" not in wrong:
                say(tell(error))
            if "raises" in wrong:
                raise
            code = 1 if "one" in wrong else 2
            if "no 2" in wrong:
                code = None
        elif "wrapped" in wrong:
            raise RuntimeError("a bug") from error
        elif wrong & {"finally", "swallowed"}:
            code = 0
        elif "rest is 130" in wrong:
            code = 130
        else:
            raise
    if "exits" in wrong:
        raise SystemExit(code)
    return code


def through(fn: Door, words: list[str], ends: Any) -> tuple[Any, Any]:
    """What a door returns, and what it said and called, when the command ends so."""
    said: list[Any] = []
    called: list[Any] = []

    def command(*given: Any) -> int:
        called.append(given[0] if len(given) == 1 else given)
        if isinstance(ends, BaseException):
            raise ends
        return int(ends)

    try:
        code = call(fn, command, words, lambda *text: said.extend(text))
    except (KeyboardInterrupt, SlmError, OSError) as error:
        if error is not ends:
            raise
        code = f"a {type(error).__name__} that comes through"
    except Exception as error:
        bug = isinstance(ends, ValueError | KeyError) and error is not ends
        if not bug or error.__context__ is not ends:
            raise
        code = "another error"
    if isinstance(ends, SystemExit):
        code = 0  # whichever it is, Python goes on
    if (
        isinstance(ends, ValueError | KeyError)
        and code != "another error"
        and not isinstance(ends, SlmError)
    ):
        code, said = code if code == 130 else 2 if said else 0, said and ["something"]
    if isinstance(ends, int | KeyboardInterrupt | BrokenPipeError):
        said = ["something"] * len(said)  # nothing is right, whatever the words
    return code, {"called with": called, "said": said}


WORDS = ["train", "x.yaml"]
FULL = OSError(28, "No space left on device", "runs/x")
EXIT_CODES = Diagnosis(
    door,
    DOOR,
    [
        (WORDS, 0),
        (WORDS, 7),
        (["cost"], 130),
        (WORDS, SlmError("the text is empty")),
        (WORDS, SlmError("the connection was lost", retry=True)),
        (WORDS, FULL),
        (WORDS, FileNotFoundError(2, "No such file", "x.yaml")),
        (WORDS, KeyboardInterrupt()),
        (WORDS, BrokenPipeError(32, "Broken pipe")),
        (WORDS, ValueError("a bug")),
        (WORDS, KeyError("a bug")),
        (WORDS, SystemExit(3)),
    ],
    lambda words, ends: (
        "When the command "
        + (f"raises {ends!r}" if isinstance(ends, BaseException) else f"returns {ends}")
    ),
    observe=through,
    noted="what it called and said",
)


@exercise
def exit_codes(fn: Door) -> str:
    """Check a `door(command, words, say) -> exit code`."""
    EXIT_CODES.judge(fn)
    return "A mistake is one sentence, an interrupt is quiet, and a bug keeps its traceback."


@dataclass(frozen=True)
class Thing:
    """What stands under a name in a module."""

    name: str
    module: str


MODULES = {
    "_lazy_one": ("first", "shared"),
    "_lazy_two": ("second", "shared"),
    "_lazy_pack": (),
    "_lazy_pack.deep": ("third",),
}


class Modules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds MODULES, which lie in no file, and notes which are loaded."""

    def __init__(self) -> None:
        self.loads: list[str] = []

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name in MODULES:
            package = name == "_lazy_pack"
            return importlib.util.spec_from_loader(name, self, is_package=package)
        return None

    def exec_module(self, module: ModuleType) -> None:
        self.loads.append(module.__name__)
        for name in MODULES[module.__name__]:
            setattr(module, name, Thing(name, module.__name__))


@contextlib.contextmanager
def installed() -> Iterator[list[str]]:
    """While inside, MODULES can be imported; the list tells which were."""
    finder = Modules()
    sys.meta_path.insert(0, finder)
    try:
        yield finder.loads
    finally:
        sys.meta_path.remove(finder)
        for name in MODULES:
            sys.modules.pop(name, None)


UNKNOWN = {
    kind: f"A name that is not there raises {_a} in yours. Python expects an AttributeError: hasattr, for one, relies on it."
    for kind, _a in (
        ("KeyError", "a KeyError (the dictionary's own)"),
        ("NameError", "a NameError"),
        ("ImportError", "an ImportError"),
        ("ModuleNotFoundError", "a ModuleNotFoundError"),
        ("ValueError", "a ValueError"),
        ("AssertionError", "an AssertionError"),
        ("SystemExit", "a SystemExit, which ends Python itself,"),
    )
}
LAZY = {
    "eager": "You import modules before any of their names was asked for. Move the import into the function that is returned.",
    "all at first": "You import all modules when the first name is asked for: import the module of that name only.",
    "search": "You look for the name in one module after the other, and load those, too. The dictionary says where it is.",
    "in order": "You go through the dictionary and import each module on the way to the name. Look the name up first.",
    "last": "Whatever name is asked for, yours gives the last of the dictionary: a function that is made in a loop sees the loop's last values.",
    "one module": "You keep the first module that was loaded and take the other names from it as well. Each name has its own.",
    "reload": "You load a module anew each time (reload). importlib.import_module keeps what it has loaded.",
    "forgets": "You run a module again for a name that was asked for before. importlib.import_module keeps what it has loaded.",
    "module": "You return the module. The object of that name in it is asked for: getattr(module, name).",
    "address": "You return where the object is, the name of the module, and import nothing.",
    "name": "You return the name. The object of that name is asked for: getattr(module, name).",
    "no return": "You import the module and return nothing: getattr(module, name) is asked for.",
    "calls": "You call the object that you found; return it as it is.",
    "top": "__import__('a.b') gives the package a, not the module a.b. Use importlib.import_module.",
    "submodule": "You import the name as if it were a module. It stands *in* the module: getattr(module, name).",
    "swapped": "You have swapped the name and the module.",
    "only loaded": "You look in sys.modules, where only stands what was imported before: import it.",
    "pops": "You take the address out of the dictionary, so each name is found only once.",
    "None": "A name that is not there gives None; raise an AttributeError.",
    "returned": "You return the AttributeError; raise it.",
    "nameless": "Your AttributeError does not say which name there is not.",
} | UNKNOWN


def lazy_answer(
    addresses: dict[str, str], wrong: frozenset[str] = frozenset()
) -> Callable[[str], Any]:
    """The reference, with any of the mistakes in LAZY made."""
    kept: list[Any] = []

    def load_all() -> None:
        for address in addresses.values():
            importlib.import_module(address)

    def find(name: str) -> Any:
        if "all at first" in wrong:
            load_all()
        if name not in addresses:
            kind = next((k for k in UNKNOWN if k in wrong), "")
            if kind:
                raise getattr(builtins, kind)(name)
            if "None" in wrong:
                return None
            error = AttributeError("" if "nameless" in wrong else name)
            if "returned" in wrong:
                return error
            if wrong & {"search", "in order"}:
                load_all()
            raise error
        if "last" in wrong:
            name = [*addresses][-1]
        if "in order" in wrong:
            for each in [*addresses][: [*addresses].index(name)]:
                importlib.import_module(addresses[each])
        address = addresses[name]
        if "address" in wrong:
            return address
        if "pops" in wrong:
            addresses.pop(name)
        if "only loaded" in wrong:
            return getattr(sys.modules[address], name)
        if "swapped" in wrong:
            return getattr(importlib.import_module(name), address)
        if "submodule" in wrong:
            return importlib.import_module(f"{address}.{name}")
        if "search" in wrong:
            for each in addresses.values():
                if hasattr(importlib.import_module(each), name):
                    return getattr(importlib.import_module(each), name)
        if "forgets" in wrong:
            sys.modules.pop(address, None)
        importing = __import__ if "top" in wrong else importlib.import_module
        module = importing(address)
        if "reload" in wrong:
            importlib.reload(module)
        if "one module" in wrong:
            kept.append(module)
            module = kept[0]
        for what, given in (("module", module), ("name", name), ("no return", None)):
            if what in wrong:
                return given
        found = getattr(module, name)
        return found() if "calls" in wrong else found

    if "eager" in wrong:
        load_all()
    return find


def asked(
    fn: Callable[..., Any], addresses: dict[str, str], names: tuple[str, ...]
) -> tuple[Any, None]:
    """What a lazy package gives for each of the names, and what it has loaded before and after."""
    with installed() as loads:
        find = call(fn, addresses)
        assert callable(find), (
            f"my_lazy returns {type(find).__name__}; return a function that takes a name."
        )
        seen: dict[str, Any] = {"nothing asked yet": ("", f"loaded {loads}")}
        for name in names:
            try:
                came = call(find, name)
            except (Exception, SystemExit) as error:
                if name in addresses or isinstance(error, NotImplementedError):
                    raise
                named = " that tells it" if name in str(error) else " without the name"
                kind = type(error).__name__
                came = f"raises {kind}" + named * (kind == "AttributeError")
            if isinstance(came, BaseException):
                came = f"returns {type(came).__name__}"
            elif isinstance(came, ModuleType):
                came = f"the module {came.__name__}"
            seen[f"{len(seen)}. {name}"] = came, f"loaded {loads}"
    return seen, None


ADDRESSES = {"first": "_lazy_one", "second": "_lazy_two"}
MORE = ADDRESSES | {"third": "_lazy_pack.deep", "shared": "_lazy_two"}
LAZILY = Diagnosis(
    lazy_answer,
    LAZY,
    [
        (ADDRESSES, ("first",)),
        (ADDRESSES, ("second", "first", "first", "second")),
        (ADDRESSES, ("nonsense",)),
        (ADDRESSES, ("first", "nonsense", "second")),
        (MORE, ("shared", "first")),
        (MORE, ("third", "third", "second")),
    ],
    lambda addresses, names: f"For {addresses}, asked for {', '.join(names)} in turn",
    observe=asked,
)


@exercise
def lazy(fn: Callable[[dict[str, str]], Callable[[str], Any]]) -> str:
    """Check a `lazy(addresses: name -> module) -> find(name)`."""
    LAZILY.judge(fn)
    try:
        call(call(fn, {"first": "_lazy_missing"}), "first")
    except AttributeError:
        raise AssertionError(
            "A module that cannot be imported gives an AttributeError in yours, as if its name were unknown: you catch too much. Let the ImportError through, or nobody finds out what is broken."
        ) from None
    except ImportError:
        pass
    return "Nothing is loaded before it is asked for, and a wrong name is told."
