"""One kind of error for whatever a user can cause, and settings that are checked.

    raise SlmError("run.yaml: training.max_steps = 0 is not allowed; …")

Exported from chapters/90_files.py; edit it there.
"""

import dataclasses
import difflib
import functools
import re
import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar, dataclass_transform

import pydantic.dataclasses
from pydantic import ConfigDict, Field, ValidationError

# One kind of error


class SlmError(ValueError):
    """What a command line, config, file or server can cause, told in one sentence.

    Args:
        message: What was wrong, where, and what is allowed.
        retry: Whether the same attempt may succeed later, as after a full disk.
    """

    def __init__(self, message: str, retry: bool = False) -> None:
        super().__init__(shortened(message))
        self.retry = retry


def shortened(message: str) -> str:
    """A message without the middle of what it repeats at length: a word, or a line."""
    words = re.sub(r"(\S{60})\S{200,}(\S{60})", r"\1…\2", message)
    return re.sub(r"(.{600}).{200,}(.{300})", r"\1 … \2", words)


# Settings that check themselves

_SHORT = reprlib.Repr()  # what was given may be a megabyte, or refer to itself
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlevel, _SHORT.maxlist = 2, 4


def in_short(value: Any) -> str:
    """A value as Python writes it, without most of what is long or nested."""
    return _SHORT.repr(value)


Names = Mapping[str, str]  # keys of other sections with their whole names


def told(error: ValidationError, cls: Any, where: str, elsewhere: Names) -> list[str]:
    """What pydantic found wrong, a sentence each: where, what was given, what may be.

    Args:
        error: What pydantic raised.
        cls: The section's class.
        where: What stands before a key and its dot, such as "run.yaml: training".
        elsewhere: Keys of other sections with their whole names, to find the nearest.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    sentences = [_sentence(one, known, where, elsewhere) for one in error.errors()]
    return list(dict.fromkeys(sentences))


def _sentence(found: Any, known: list[str], where: str, elsewhere: Names) -> str:
    kind, path = found["type"], found["loc"]
    if kind == "value_error" and not path:  # fields that do not fit together
        return f"{where}: {found['ctx']['error']}"
    if kind == "unexpected_positional_argument":
        return f"{where} takes at most {len(known)} values: {', '.join(known)}"
    key = path[0] if isinstance(path[0], str) else known[path[0]]
    if kind == "unexpected_keyword_argument":
        return f"{where}.{key} is not a key; {nearest(key, known, elsewhere)}"
    if kind in ("missing", "missing_argument"):
        return f"{where}.{key} is missing; it has no default"
    given = in_short(found["input"])  # now a value of the file, not all of them
    if kind == "value_error":
        return f"{where}.{key} = {given}: {found['ctx']['error']}"
    allowed = found["msg"].removeprefix("Input should be ").removesuffix(" or null")
    some = "String should have at least 1 character"
    allowed = allowed.replace(some, "a text that is not empty")
    return f"{where}.{key} = {given} is not allowed; it must be {allowed}"


def nearest(key: str, known: list[str], elsewhere: Names) -> str:
    """A hint for a key that is none; a whole key of another section is found there."""
    near = [] if key in elsewhere else difflib.get_close_matches(key, known, 1)
    others = difflib.get_close_matches(key, elsewhere, 1)
    near = near or [elsewhere[other] for other in others]
    if near:
        return f"did you mean {near[0]!r}?"
    return f"allowed here are {', '.join(known)}"


Section = TypeVar("Section")
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass_transform(frozen_default=True, field_specifiers=(Field, dataclasses.field))
def settings(cls: type[Section]) -> type[Section]:
    """Make a class a frozen dataclass whose fields are checked, all of them at once.

    Raises (when the class is called):
        SlmError: With a line for each field that is unknown, missing or not allowed.
    """
    checked: Any = pydantic.dataclasses.dataclass(frozen=True, config=STRICT)(cls)
    unchecked = checked.__init__

    @functools.wraps(unchecked)
    def __init__(self: Any, *values: Any, **fields: Any) -> None:
        try:
            unchecked(self, *values, **fields)
        except ValidationError as error:
            raise SlmError("\n".join(told(error, checked, cls.__name__, {}))) from None

    checked.__init__ = __init__
    return checked


def section(
    cls: type[Section], values: Any, where: str, elsewhere: Names | None = None
) -> Section:
    """A section from its own mapping; `where` and `elsewhere` as in `told`.

    Raises:
        SlmError: With a line for each mistake.
    """
    if not isinstance(values, Mapping):
        allowed = "it must be a section with keys of its own"
        raise SlmError(f"{where} = {in_short(values)} is not allowed; {allowed}")
    if odd := [key for key in values if not isinstance(key, str)]:
        sentences = [f"{where}.{key} is not a key; keys are texts" for key in odd]
        raise SlmError("\n".join(sentences))
    unchecked: Any = cls.__init__
    made = cls.__new__(cls)
    try:
        unchecked.__wrapped__(made, **values)
        return made
    except ValidationError as error:
        raise SlmError("\n".join(told(error, cls, where, elsewhere or {}))) from None
