"""Files that are whole or not there, names that are safe, servers that answer.

    write_text(Path("run/config.yaml"), text)

Exported from chapters/90_files.py; edit it there.
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

# Published, file or folder


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


# Names, paths, servers

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


def make_run_name(text: str) -> str:
    """A run's name from any text; the text itself, if it can be one."""
    if RUN_NAME.fullmatch(text):
        return text
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".-")[:64] or "run"


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
