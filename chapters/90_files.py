# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/errors.py
#     - slm/files.py
#     - slm/model/pretrained.py
# ---

# %% [markdown]
# # Files and errors
#
# *An engine room: it can be skipped at first reading.* What every other chapter stands
# on: files that are whole or not there, mistakes that are told in a sentence, and
# GPT-2's published format. It exports `publish`, `writing` and `write_text`,
# `json_object` and `has_kinds`, `SlmError`, `settings` and `section`, `check_run_name`,
# `within` and `answers`, and `find_pretrained`, `read_shape`, `read_weights`,
# `told_of_generation`, `write_pretrained` and `known_tokenizer`.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% tags=["hide-input"]
#| export
"""One kind of error for whatever a user can cause, and settings that are checked.

    raise SlmError("run.yaml: training.max_steps = 0 is not allowed; …")
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

# %% tags=["hide-input"]
#| export files
"""Files that are whole or not there, names that are safe, servers that answer.

    write_text(Path("run/config.yaml"), text)
"""

import contextlib
import functools
import http.client
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from slm.errors import SlmError

Result = TypeVar("Result")

# %% tags=["hide-input"]
#| export model/pretrained
"""GPT-2's published format, which `transformers` opens, read and written.

    shape = read_shape(Path("runs/mine/model/config.json"))
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from slm.errors import SlmError, in_short
from slm.files import json_object, write_text, writing

# %% tags=["hide-input"]
import tempfile
from typing import Literal

from course import check
from course.figures.files import killed_at_each_moment, killed_while_writing

# %% [markdown]
# ## The idea
#
# Training is long, and something always ends it early: a full disk, a lost connection,
# a machine that is needed elsewhere. Then the next process reads what this one left.
# Two habits decide whether that goes well. *Write so that nobody can ever read half a
# file.* And *when something is wrong, say all of it, once, where it can be mended.*
#
# Begin with the file. The obvious way to replace one is to open it and write. What does
# a reader find if the writer dies in between? Ask a process that kills itself at a
# chosen moment; the file held the word *old* many times, and was to hold *new* twice as
# often. {numref}`fig-killed-at-each-moment` is what its reader finds:

# %% mystnb={"figure": {"caption": "What a reader finds when the writer was killed at that moment. Written over, the file is for a while empty, then half there; written beside and renamed, it is at every moment the old one or the new one.", "name": "fig-killed-at-each-moment"}} tags=["nbval-check-output"]
killed_at_each_moment()

# %% [markdown]
# The remedy is a second name. Write everything to a temporary file beside the real one;
# when it is complete, rename it. A rename within one folder is a single act of the
# operating system: it has happened or it has not, and it replaces what was there. There
# is no moment without a whole file under the real name.
#
# It must be *beside*, because a rename cannot cross from one disk to another, and the
# usual place for temporary files often is another disk.
#
# The moments above were chosen. Let chance choose: processes that write the same large
# file over and over are shot at random moments, and each file is then read. A torn file
# is one that is not whole.

# %%
for way in ("written over", "written beside and renamed"):
    print(killed_while_writing(way))

# %% [markdown]
# ## Why a rename needs an fsync
#
# A process that is killed takes nothing with it that it had handed to the operating
# system. A power failure is worse. `write` returns when the bytes lie in the system's
# memory, and they go to the disk some seconds later; so do changes of names, and *in
# any order*. `fsync` waits until a file's bytes are on the disk. For a folder it waits
# until its list of names is.
#
# No chapter can pull the plug of your computer. But the rule is short enough to be
# followed by hand: after each step, what *may* be on the disk of the new data, and
# which file may the name lead to?


# %%
def may_find(steps: list[str]) -> list[str]:
    """What a reader may find if the power fails right after these steps."""
    data, names = {"nothing"}, {"old"}
    for step in steps:
        if step == "write":
            data = {"nothing", "half", "new"}  # any part of it may have been written
        if step == "fsync the file":
            data = {"new"}
        if step == "rename":
            names = {"old", "new"}  # the change of name may wait, too
        if step == "fsync the folder":
            names = {"new"}
    return sorted(({"old"} & names) | (data if "new" in names else set()))


# %% tags=["nbval-check-output"]
from course.tables import Table

recipes = {
    "rename only": ["write", "rename"],
    "fsync too late": ["write", "rename", "fsync the folder"],
    "fsync, rename": ["write", "fsync the file", "rename"],
    "and the folder": ["write", "fsync the file", "rename", "fsync the folder"],
}
rows = []
for name, steps in recipes.items():
    found = set().union(*(may_find(steps[:n]) for n in range(1, len(steps))))
    rows.append((name, ", ".join(sorted(found)), ", ".join(may_find(steps))))
header = ("recipe", "meanwhile", "afterwards")
Table(header, rows, "What a reader may find if the power fails")

# %% [markdown]
# Without the first `fsync` the rename may reach the disk before the data, and the good
# old file has been replaced by nothing. With it, a reader finds the old file or the new
# one, whatever happens. The second `fsync` adds a promise: when the function returns,
# it is the new one. A trainer that deletes older checkpoints needs that promise, or the
# power could take the new checkpoint after the old one is gone.
#
# ## Exercise 1: whole or not there
#
# Write `text` to `path` so that a reader finds the old file or the new one, whenever
# the process is killed or the power fails; and once your function has returned, the new
# one. After a kill, the next call must work. Use `os` and `open` only.


# %% tags=["exercise"]
def my_write(path: Path, text: str) -> None:
    """Replace the file at `path` by one that holds `text`, in UTF-8."""
    raise NotImplementedError("your turn")


# %%
check.whole_file(my_write)

# %% [markdown]
# What the check says to a typical wrong answer, which forces nothing:


# %% tags=["nbval-check-output"]
def renames_only(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".tmp")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


check.whole_file(renames_only)

# %% [markdown]
# <details><summary>Solution: <code>my_write</code></summary>
#
# ```python
# def my_write(path, text):
#     part = path.with_name(path.name + ".tmp")
#     with open(part, "w", encoding="utf-8") as file:
#         file.write(text)
#         file.flush()  # from Python's buffer to the system
#         os.fsync(file.fileno())  # from the system to the disk
#     os.replace(part, path)
#     folder = os.open(path.parent, os.O_RDONLY)
#     os.fsync(folder)
#     os.close(folder)
# ```
# </details>
#
# ## Published, file or folder
#
# A finished *folder* gets its name in the same way, once everything in it is on the
# disk. So there is one function for both, and whatever must survive a power failure is
# renamed by it. What it stands on, `force`, serves on its own where a file keeps its
# name and grows:


# %%
#| export files
def publish(part: Path, path: Path) -> None:
    """Give a finished file or folder its name, in one step that a power failure keeps.

    A reader of `path` sees what was there before or all of the new. What is in `part`
    is forced to disk first, then it is renamed, then the change of name is forced.

    Args:
        part: The finished file or folder, beside `path`.
        path: Its name from now on. A file there is replaced, a folder only if empty.

    Raises:
        OSError: The disk is full or not writable; `path` is as it was, or whole and new
            if only the last step failed.
    """
    for entry in [*part.rglob("*"), part]:
        force(entry)
    os.replace(part, path)
    force(path.parent)


def force(path: Path) -> None:
    """Force a file's contents, or a folder's entries, to disk."""
    if path.is_dir() and os.name != "posix":  # there a folder can't be opened
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# %% [markdown]
# Most files are small and written in one go. For them the temporary name comes and goes
# by itself: `writing` hands it out and publishes it at the end, or removes it if
# anything failed on the way. Only a kill leaves it behind, under a name that nobody
# reads. The process's number is part of the name, so that two processes of one machine
# never write into the same file; threads must take turns. Where the folder itself is
# new, its name has to be forced, too, and so do those of its parents. (A file that
# takes minutes, such as a corpus of tokens, keeps its unfinished part on purpose, to go
# on after a kill; it calls `publish` itself.)


# %%
#| export files
def make_folder(path: Path) -> None:
    """Make a folder and what it lies in, where missing; the names are forced to disk.

    Raises:
        OSError: It cannot be made, or there is a file of this name.
    """
    new = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in reversed(new):
        force(each.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError inside name the file; Python's own does if it cannot be opened."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`: published at the end, deleted after an error.

    The folder is made. The name is this process's own, so that two writers do not mix.
    """
    make_folder(path.parent)
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield part
            publish(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole, in UTF-8 with plain line ends."""
    with writing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


# %% [markdown]
# An error inside leaves what was there, and no litter:

# %% tags=["nbval-check-output"]
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "config.yaml"
    write_text(path, "steps: 100\n")
    try:
        with writing(path) as part:
            part.write_text("steps: 2")
            raise KeyboardInterrupt("someone pressed Ctrl-C")
    except KeyboardInterrupt:
        print(os.listdir(folder), path.read_text().strip())

# %% [markdown]
# That a file is whole does not say that it is what was written: people edit files. So
# what is read from JSON is asked first whether each key is there with a value of its
# kind. Python counts `True` as the number one; here it is none.


# %%
#| export files
def has_kinds(values: Any, kinds: Mapping[Any, Any]) -> bool:
    """Whether these keys are there, with a value of their kind; True is no number."""
    if not isinstance(values, Mapping) or not kinds.keys() <= values.keys():
        return False
    found = ((values[key], kind) for key, kind in kinds.items())
    return all(isinstance(v, kind) and not isinstance(v, bool) for v, kind in found)


def json_object(content: bytes | str, kinds: Mapping[str, Any]) -> Any:
    """The object that some JSON holds, if it `has_kinds`; else None."""
    with contextlib.suppress(ValueError, RecursionError):
        if has_kinds(found := json.loads(content), kinds):
            return found
    return None


# %% [markdown]
# What does the waiting cost? Measure it on your disk, since disks differ more than
# processors do. The answer is why this is done for a file and not for a line: a log
# that forces each line would spend its time waiting.

# %%
import time

with tempfile.TemporaryDirectory() as folder:
    path, text = Path(folder) / "file.txt", "x" * 1000
    for name, write in {"written over": Path.write_text, "whole": write_text}.items():
        began = time.perf_counter()
        for _ in range(20):
            write(path, text)
        print(f"{name:12} {(time.perf_counter() - began) / 20 * 1000:6.2f} ms a file")

# %% [markdown]
# ## One kind of error
#
# Two kinds of people meet an error. Whoever wrote a wrong key into a config needs a
# sentence; forty lines of traceback through somebody else's program hide it. Whoever
# works on the program needs exactly those forty lines. So the class of an error says
# for whom it is: what a command line, a config, a file or a server can cause is an
# `SlmError`, or Python's own `OSError` where the system says it (a full disk, a missing
# file). The command line prints the sentence of either. Any other error is a mistake of
# the program and shows itself in full.
#
# One more thing has to be known by whoever starts the program again, a script in the
# cloud for example, where each attempt costs money: may the very same attempt succeed
# later? A full disk can be cleared, a server can come back: `retry`. A wrong key stays
# wrong. Never is this read from the words of a message, or a better wording would buy
# another attempt.


# %%
#| export
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


# %% [markdown]
# What a message repeats may be a megabyte, so the middle of it is left out. It is a
# subclass of `ValueError`, so a caller can catch it without importing it.
#
# ## All mistakes at once
#
# A config has dozens of settings. Check them one after the other, stop at the first
# mistake, and a config with three mistakes costs three attempts. On your own computer
# that is a nuisance. Where a machine is rented and started for each attempt, it is time
# and money. Here is the usual way, on a config for baking bread:

# %% tags=["nbval-check-output"]
bread = {"minute": 40, "degrees": -1.0, "crust": "burnt"}


def first_mistake(values: dict) -> None:
    assert "minutes" in values, "minutes is missing"
    assert values["degrees"] > 0, "degrees must be greater than 0"
    assert values["crust"] in ("soft", "hard"), "crust must be 'soft' or 'hard'"


for attempt in range(1, 5):
    try:
        first_mistake(bread)
        print(f"attempt {attempt}: it bakes")
    except AssertionError as mistake:
        print(f"attempt {attempt}: {mistake}")
        bread |= {
            "minutes is missing": {"minutes": 40},
            "degrees must be greater than 0": {"degrees": 220.0},
        }.get(str(mistake), {"crust": "hard"})

# %% [markdown]
# ## Exercise 2: all at once
#
# Settings are integers, each with a lowest and a highest allowed value: `allowed =
# {"layers": (1, 48), "heads": (1, 32)}`. Return the keys with which something is wrong:
# not known, missing, not an integer (`True` is none), out of range.


# %% tags=["exercise"]
def my_mistakes(values: dict, allowed: dict[str, tuple[int, int]]) -> set[str]:
    """The keys of `values` and `allowed` that have a mistake."""
    raise NotImplementedError("your turn")


# %%
check.all_mistakes(my_mistakes)

# %% [markdown]
# Nearly right, and easily overlooked:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def with_isinstance(values: dict, allowed: dict[str, tuple[int, int]]) -> set[str]:
    wrong = values.keys() ^ allowed.keys()
    for key in values.keys() & allowed.keys():
        low, high = allowed[key]
        if not isinstance(values[key], int) or not low <= values[key] <= high:
            wrong.add(key)
    return wrong


check.all_mistakes(with_isinstance)

# %% [markdown]
# <details><summary>Solution: <code>my_mistakes</code></summary>
#
# ```python
# def my_mistakes(values, allowed):
#     wrong = values.keys() ^ allowed.keys()  # unknown, and missing
#     for key in values.keys() & allowed.keys():
#         low, high = allowed[key]
#         if type(values[key]) is not int or not low <= values[key] <= high:
#             wrong.add(key)
#     return wrong
# ```
# </details>
#
# ## Settings that check themselves
#
# The library `pydantic` checks the fields of a dataclass against their types and
# bounds, and collects. Three things are added here. It is *strict*: `"4"` is no number,
# and `True` is no 1. Its report, several lines for each mistake and addressed to
# programmers, becomes one sentence: where, what was given, what is allowed, and the
# nearest key if there is no such key. And nothing can be changed afterwards: a setting
# that everybody reads must not be altered by one of them.
#
# The sentences first. `where` is what stands before a key, such as "run.yaml: model". A
# file of a few lines can hold a value of gigabytes: each of ten lines repeats the one
# before ten times. So what was given is only ever told `in_short`.


# %%
#| export
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


# %% [markdown]
# One mistake of pydantic's is one sentence. Its kind says what to write: two fields
# that do not fit together, a value too many, a key that is none, one that is missing,
# or a value that is not allowed. In the last case pydantic's own words say what is.


# %%
#| export
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


# %% [markdown]
# `settings` above a class makes it such a dataclass. Called directly, it raises an
# `SlmError` with a line for each mistake; `section` makes one from a mapping that was
# read from a file, and names the file.


# %%
#| export
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


# %% [markdown]
# A section from a file is made in the same way, but told with the file's name, and the
# nearest key may stand in another section. What is no mapping, or has keys that are no
# texts, is told before pydantic sees it.


# %%
#| export
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


# %% tags=["nbval-check-output"]
@settings
class Bread:
    """What an oven has to know."""

    minutes: int = Field(ge=1)
    degrees: float = Field(gt=0)
    crust: Literal["soft", "hard"] = "hard"


for values in ({"minute": 40, "degrees": -1.0, "crust": "burnt"}, {"minutes": "40"}):
    try:
        section(Bread, values, "kitchen.yaml: bread")
    except SlmError as error:
        print(error, end="\n\n")
print(section(Bread, {"minutes": 40, "degrees": 220.0}, "kitchen.yaml: bread"))

# %% [markdown]
# The whole list in the first attempt. Models, data and training have their settings in
# this form, and [the settings](#settings/the-sections) put them together into the
# config of a run.
#
# ## Names, paths, servers
#
# Three small questions are asked before work begins, because their answers come too
# late otherwise. *Can this be a folder's name?* A run is a folder here and in the
# cloud, so its name must be safe for both, and must not lead out of the folder of runs:
# no slash, and no dot in front, since `..` is a name, too. A name that somebody types
# is refused if it is none. The name of a config file was not typed for this, so one is
# made of it, and whoever uses it says which.


# %%
#| export files
RUN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


def check_run_name(name: str) -> str:
    """The name, if it can name a run's folder here and in the cloud.

    Raises:
        SlmError: It holds other signs than letters, digits, `.`, `_`, `-`, begins with
            a dot, or is longer than 64.
    """
    if not RUN_NAME.fullmatch(name):
        allowed = "letters, digits, '.', '_' and '-', at most 64, the first no dot"
        raise SlmError(f"{name!r} cannot name a run; allowed are {allowed}")
    return name


# %% [markdown]
# *Where is this?* A shell replaces `~` and `$HOME`, a YAML file and a quoted argument
# do not, and a folder that is really called `~` helps nobody. `user_path` treats all
# paths that a user writes alike. A variable that is not set is refused; a shell would
# take it for nothing, and `$DATA/text` for `/text`.


# %%
#| export files
def user_path(path: str | os.PathLike[str]) -> Path:
    """A path that a user wrote, with what `~`, `~name` and `$NAME` stand for.

    What exists under the very name that was written is meant literally.

    Raises:
        SlmError: No variable or user of that name is there, or it can be no path.
    """
    written = os.fspath(path)
    if "\0" in written:
        raise SlmError(f"{written!r} can be no path: it holds a zero byte.")
    if os.path.lexists(written):
        return Path(written)
    known = os.path.expanduser(os.path.expandvars(written))
    unknown = re.match(r"~[^/]*|.*?(\$(?:\w+|\{\w+\}))", known)
    if unknown:
        missing = unknown[1] or unknown[0]
        raise SlmError(f"In the path {written!r}, {missing} stands for nothing here.")
    return Path(known)


# %% [markdown]
# A name made of any text keeps the signs that are allowed, and has a dash for each run
# of others.


# %%
#| export files
def make_run_name(text: str) -> str:
    """A run's name from any text; the text itself, if it can be one."""
    if RUN_NAME.fullmatch(text):
        return text
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".-")[:64] or "run"


# %% [markdown]
# *Is there a network?* Libraries that download try again for minutes before they give
# up, and wait for ever on a server that sends a byte now and then. So what asks is done
# by `within`, in a thread of its own, and waited for no longer than it was told;
# `answers` knows after a second.


# %%
#| export files
def within(seconds: float, work: Callable[[], Result]) -> Result:
    """What some work gives, or raises, if it has ended in this time.

    Raises:
        TimeoutError: It has not; its thread ends with the program.
    """
    ended: Future[Result] = Future()

    def do() -> None:
        try:
            ended.set_result(work())
        except BaseException as error:
            ended.set_exception(error)

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(seconds)
    if not ended.done():
        raise TimeoutError(f"no whole answer came in {seconds:g} seconds")
    return ended.result()


def answers(url: str, seconds: float = 1.0) -> bool:
    """Whether a server answers over HTTP in this time; an error's status is an answer.

    What is no URL of a server gets none.
    """
    ask = functools.partial(urllib.request.urlopen, timeout=seconds)
    try:
        within(seconds, lambda: ask(urllib.request.Request(url, method="HEAD")).close())
    except urllib.error.HTTPError:
        return True
    except (ValueError, OSError, http.client.HTTPException):
        return False  # no URL, no network, no such server, too late, not HTTP
    return True


# %% [markdown]
# Here is the worst case, a server that accepts the connection and then says nothing:

# %%
import socket

with socket.socket() as silent:
    silent.bind(("127.0.0.1", 0))
    silent.listen()
    began = time.perf_counter()
    answered = answers(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.3)
    print("answered:", answered, "after", round(time.perf_counter() - began, 1), "s")

# %% [markdown]
# ## GPT-2's published format
#
# A model is two files: `config.json` says which shape it has, `model.safetensors` holds
# its weights by name. Whoever keeps to the names that OpenAI's and Hugging Face's GPT-2
# have can be opened by every program that opens GPT-2. This section translates, both
# ways. It works on plain dictionaries and knows no model; [GPT](#gpt/gpt-2-s-weights)
# hands it its shape and its weights.
#
# The names first. Most are a matter of taste. One thing is not: four matrices in each
# block are stored *transposed*, because GPT-2's code computed `x @ W` where `nn.Linear`
# computes `x @ W.T`.


# %%
#| export model/pretrained
CONFIG, WEIGHTS = "config.json", "model.safetensors"
FINGERPRINT = "tokenizer_fingerprint"  # a key of the config, ours alone
GENERATION = "generation_config.json"
HUB = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")

TABLES = {"token_embedding": "wte", "position_embedding": "wpe", "norm": "ln_f"}
PARTS = {
    "norm_1": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "norm_2": "ln_2",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}
SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "d_model": "n_embd",
    "d_ff": "n_inner",  # may be left out, and is 4 * n_embd then
}
DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop")


def published_name(name: str) -> tuple[str, bool]:
    """Hugging Face's name of one of our parameters; whether it is stored transposed."""
    module, kind = name.rsplit(".", 1)
    if module in TABLES:
        return f"transformer.{TABLES[module]}.{kind}", False
    _, layer, part = module.split(".", 2)
    transposed = kind == "weight" and "norm" not in part
    return f"transformer.h.{layer}.{PARTS[part]}.{kind}", transposed


# %% tags=["nbval-check-output"]
for name in (
    "token_embedding.weight",
    "blocks.0.attention.qkv.weight",
    "blocks.0.attention.qkv.bias",
    "blocks.11.norm_2.weight",
):
    print(f"{name:31}", *published_name(name))

# %% [markdown]
# Writing is then a translation. A third file, `generation_config.json`, says how other
# programs are to write with the model. They know nothing of what our own
# [generation](#generation) takes care of, so it is told to them: which id ends a text;
# that the context ends somewhere; that ids which the tokenizer does not have, in a
# vocabulary that was padded, are never drawn (they would be decoded to nothing); and,
# as the `prefix` of a prompt, the end-of-text token behind which every text of the
# training began. All of that needs the tokenizer. Without one the ids stay open, since
# a wrong id would be worse than none.


# %%
#| export model/pretrained
def told_of_generation(
    shape: Mapping[str, Any], tokenizer: Any = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `config.json` and `generation_config.json` say of how texts are written.

    Args:
        shape: The model's sizes by our names.
        tokenizer: What has `eot_token`, `n_vocab` and `decode`; None if it is unknown.
    """
    end = None if tokenizer is None else tokenizer.eot_token
    config: dict[str, Any] = {"bos_token_id": end, "eos_token_id": end}
    generation = {**config, "pad_token_id": end, "max_length": shape["context_length"]}
    if tokenizer is not None:
        config["prefix"] = tokenizer.decode([end])
        if padding := list(range(tokenizer.n_vocab, shape["vocab_size"])):
            generation["suppress_tokens"] = padding
    return config, generation


# %% [markdown]
# For a vocabulary that was padded to 1,026 ids, two more than the tokenizer has:

# %% tags=["nbval-check-output"]
from types import SimpleNamespace

a_tokenizer = SimpleNamespace(
    eot_token=1023, n_vocab=1024, decode=lambda ids: "<|endoftext|>"
)
sizes = {"vocab_size": 1026, "context_length": 128}
for said in told_of_generation(sizes, a_tokenizer):
    course.show(", ".join(f"{key}: {value}" for key, value in said.items()))

# %% [markdown]
# Then the files. What is told to other programs comes first: the shape by their names,
# and the choices that the format could make otherwise and ours does not. The weights
# follow, under their published names, and turned where theirs lie the other way. A full
# disk is an `OSError` whoever notices it, so the library's own error becomes one. One
# key of the config is ours alone: the fingerprint of the tokenizer whose ids the
# weights know, so that another one cannot take its place.


# %%
#| export model/pretrained
def write_pretrained(
    folder: Path,
    shape: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    tokenizer: Any = None,
) -> None:
    """Write a model's files, and its tokenizer's, each replaced in one step.

    Args:
        folder: Where to; it is made.
        shape: The model's sizes, and its dropout, by our names.
        weights: Its parameters by our names.
        tokenizer: As for `told_of_generation`; it is saved into the folder as well.

    Raises:
        OSError: The disk is full or not writable.
    """
    config, generation = told_of_generation(shape, tokenizer)
    published: dict[str, Any] = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        **{theirs: shape[ours] for ours, theirs in SIZES.items()},
        "n_ctx": shape["context_length"],  # the older name, which converters read
        "layer_norm_epsilon": 1e-5,
        **dict.fromkeys(DROPOUTS, shape["dropout"]),
        "tie_word_embeddings": True,
        **config,
    }
    if tokenizer is not None:
        published[FINGERPRINT] = tokenizer.fingerprint
    stored = {}
    for name, weight in weights.items():
        theirs, transposed = published_name(name)
        stored[theirs] = (weight.T if transposed else weight).cpu().contiguous()
    try:
        with writing(folder / WEIGHTS) as part:
            save_file(stored, part, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{folder / WEIGHTS} could not be written: {error}") from error
    if tokenizer is not None:
        tokenizer.save(folder, shape["context_length"])
    for name, said in {GENERATION: generation, CONFIG: published}.items():
        write_text(folder / name, json.dumps(said, indent=2) + "\n")


# %% [markdown]
# Reading needs more care, because a file may be anything. Three questions, in the order
# in which they can be answered. *Are the files there?* A folder is looked at, and one
# of the four published names is fetched from the hub, unless it is in the cache:


# %%
#| export model/pretrained
def known_tokenizer(folder: Path) -> str | None:
    """The fingerprint of the tokenizer whose ids the model knows, if it is told."""
    with contextlib.suppress(OSError):  # told when it is read
        told = json_object((folder / CONFIG).read_bytes(), {FINGERPRINT: str})
        return told and told[FINGERPRINT]
    return None


def find_pretrained(name_or_folder: str | Path) -> tuple[Path, Path]:
    """The config and the weights of a folder, or of a GPT-2 on the Hugging Face hub.

    Raises:
        FileNotFoundError: There is no such folder, or it lacks a file; or the hub
            cannot be reached.
    """
    folder, name = Path(name_or_folder), str(name_or_folder)
    files = folder / CONFIG, folder / WEIGHTS
    if name in HUB and not folder.is_dir():
        from huggingface_hub import hf_hub_download

        try:
            config, weights = (hf_hub_download(name, file.name) for file in files)
            files = Path(config), Path(weights)
        except OSError as error:  # what the hub answers, and that it does not, too
            why = "is not in the local cache and the Hugging Face hub cannot be reached"
            message = f"{name!r} {why}; connect once, or give a folder"
            raise FileNotFoundError(message) from error
    for file in files:
        if not file.is_file():
            takes = f"a folder with {CONFIG} and {WEIGHTS}, or a name like 'gpt2'"
            raise FileNotFoundError(f"{file} is not there; give {takes}")
    return files


# %% [markdown]
# *Is it our architecture?* Many models call themselves nearly GPT-2, and differ in the
# activation function, in the scaling of the scores, or in having an output matrix of
# their own. Weights of such a model would fit in, and compute nonsense without a word.
# So all that must hold is written down, and a config that says otherwise is refused,
# with all its reasons.


# %%
#| export model/pretrained
# what a config must say, or leave out, to be that of our architecture
ONLY = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def read_shape(path: Path) -> dict[str, Any]:
    """The sizes and the dropout, by our names, that a `config.json` gives.

    Raises:
        SlmError: It is damaged, or of another architecture than GPT-2's; a line each.
    """
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SlmError(f"{path} is not a model's config: {error}") from None
    if not isinstance(theirs, dict):
        held = f"it holds {in_short(theirs)}, and an object is needed"
        raise SlmError(f"{path} is not a model's config: {held}")
    wrong = []
    for key, only in ONLY.items():
        said = theirs.get(key, None if key == "model_type" else only)
        if said != only:
            wrong.append(f"says {key} = {said!r}; only {only!r} can be loaded")
    needed = sorted(set(SIZES.values()) - {"n_inner"})
    if missing := [key for key in needed if theirs.get(key) is None]:
        lacks = f"lacks {', '.join(missing)}"
        wrong.append(f"{lacks}; a GPT-2 config has {', '.join(needed)}")
    # 0.1 is what a config that is silent means
    dropouts = [theirs.get(key, 0.1) for key in DROPOUTS]
    if dropouts.count(dropouts[0]) < len(dropouts):
        wrong.append(f"has different dropouts {dropouts}; one for all can be loaded")
    if wrong:
        raise SlmError("\n".join(f"{path} {sentence}" for sentence in wrong))
    theirs["n_inner"] = theirs.get("n_inner") or 4 * theirs["n_embd"]
    sizes = {ours: theirs[name] for ours, name in SIZES.items()}
    return sizes | {"dropout": dropouts[0]}


# %% [markdown]
# *Do the weights fit the config, and is nothing left over?* Here the first mistake is
# enough: where a size is wrong, it is wrong in every block, and a hundred lines would
# say the same. What may be left over are masks, which some files store, and the output
# matrix, if it is the token table once more.


# %%
#| export model/pretrained
def read_weights(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The weights in a `model.safetensors`, by our names.

    Args:
        path: The file.
        shapes: For each parameter of the model, by our names, the shape that it has.

    Raises:
        SlmError: The file is damaged, or does not hold exactly these parameters, each
            of finite numbers.
    """
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise SlmError(f"{path} is not a whole safetensors file: {error}") from error
    stored = {name.removeprefix("transformer."): stored[name] for name in stored}
    weights = {}
    for name, shape in shapes.items():
        theirs, transposed = published_name(name)
        weight = stored.pop(theirs.removeprefix("transformer."), None)
        wanted = tuple(reversed(shape) if transposed else shape)
        if weight is None or tuple(weight.shape) != wanted:
            found = "nothing" if weight is None else f"shape {tuple(weight.shape)}"
            holds = f"{path} holds {found} for {theirs}"
            raise SlmError(f"{holds}; its config asks for {wanted}")
        real = weight.is_floating_point()
        if not real or not bool(weight.isfinite().all()):
            kind = "numbers that are not finite" if real else str(weight.dtype)
            raise SlmError(f"{path} holds {kind} in {theirs}: no model can use that")
        weights[name] = weight.T if transposed else weight
    table = weights["token_embedding.weight"]
    output = stored.pop("lm_head.weight", table)
    if not torch.equal(output.float(), table.float()):
        own = "has an output matrix of its own; GPT-2's is the token table"
        raise SlmError(f"{path} {own}")
    masks = (".attn.bias", ".attn.masked_bias")
    if unknown := [name for name in stored if not name.endswith(masks)]:
        layers = len({name.split(".")[1] for name in shapes if "blocks." in name})
        place = f"for which a model of {layers} layers has no place"
        raise SlmError(f"{path} holds {unknown[0]}, {place}")
    return weights


# %% [markdown]
# ## Use it
#
# A model of one block, made of random numbers, goes out and comes back. On the way it
# is looked at with the eyes of another program: the file's own names and shapes.

# %% tags=["nbval-check-output"]
V, T, D, F_ = 11, 6, 4, 8
shape = {"vocab_size": V, "context_length": T, "n_layers": 1, "n_heads": 2}
shape |= {"d_model": D, "d_ff": F_, "dropout": 0.0}
shapes = {"token_embedding.weight": (V, D), "position_embedding.weight": (T, D)}
linears = {"attention.qkv": (3 * D, D), "attention.out": (D, D)}
linears |= {"feed_forward.up": (F_, D), "feed_forward.down": (D, F_)}
for part, (rows, columns) in linears.items():
    shapes[f"blocks.0.{part}.weight"] = (rows, columns)
    shapes[f"blocks.0.{part}.bias"] = (rows,)
for norm in ("blocks.0.norm_1", "blocks.0.norm_2", "norm"):
    shapes |= {f"{norm}.weight": (D,), f"{norm}.bias": (D,)}
weights = {name: torch.randn(size) for name, size in shapes.items()}

with tempfile.TemporaryDirectory() as folder:
    write_pretrained(Path(folder), shape, weights)
    config_file, weights_file = find_pretrained(folder)
    for name, stored in list(load_file(weights_file).items())[:4]:
        print(f"{name:34}", tuple(stored.shape))
    same_shape = read_shape(config_file) == shape
    again = read_weights(weights_file, shapes)
    same = sum(torch.equal(again[name], weights[name]) for name in weights)
    print("the shape comes back:", same_shape)
    print(f"{same} of {len(weights)} weights come back, equal to the last bit")
    write_text(config_file, config_file.read_text().replace("gelu_new", "relu"))
    try:
        read_shape(config_file)
    except SlmError as error:
        print(str(error).replace(folder, "folder"))

# %% [markdown]
# ## Is it right?
#
# `publish` is right if its steps come in the order that `may_find` asks for. Its calls
# to the operating system are written down while it works, for a file and for a folder:

# %% tags=["nbval-check-output"]
from course.figures.files import calls_of

with tempfile.TemporaryDirectory() as folder:
    file, run = Path(folder) / "file.tmp", Path(folder) / "run.tmp"
    file.write_text("whole")
    (run / "inner").mkdir(parents=True)
    (run / "inner" / "weights").write_text("whole")
    for part in (file, run):
        print(
            *calls_of(lambda part=part: publish(part, part.with_suffix(""))), sep=", "
        )

# %% [markdown]
# ## What you have now
#
# One way to write a file, one way to say what is wrong, and a format that others read.
# Every later chapter uses them without another word.

# %%
course.summary("slm/errors.py", "slm/files.py", "slm/model/pretrained.py")
