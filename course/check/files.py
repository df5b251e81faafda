"""Checks of the exercises of files and errors."""

import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from course.check.verdict import exercise, untouched

OLD, NEW = "old\n" * 50, "größer und neu\n" * 50

_listening: list[Callable[[str, tuple[Any, ...]], None]] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    for listener in _listening:
        listener(event, arguments)


sys.addaudithook(_hear)  # Python tells it of each file that is opened or renamed


class _Watch:
    """What a function does to `path`, in words and in order, while it is listened to."""

    def __init__(self, path: Path, whole: bytes) -> None:
        self.path, self.whole = path, whole
        self.done: list[str] = []
        self._fsync = os.fsync

    def _is(self, other: object) -> bool:
        return isinstance(other, str | os.PathLike) and Path(other) == self.path

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self._is(arguments[0]):
            mode, flags = arguments[1], arguments[2]
            if any(sign in (mode or "") for sign in "wax+") or flags & (
                os.O_WRONLY | os.O_RDWR
            ):
                self.done.append("opened")
        if event == "os.remove" and self._is(arguments[0]):
            self.done.append("removed")
        if event == "os.rename" and self._is(arguments[1]):
            part = Path(arguments[0])
            beside = part.absolute().parent == self.path.parent
            self.done.append("renamed" if beside else "renamed from elsewhere")
            if part.exists() and part.read_bytes() != self.whole:
                self.done.append("unfinished")

    def _forced(self, handle: int) -> None:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            self.done.append("folder forced")
        else:
            whole = found.st_size >= len(self.whole)
            self.done.append("forced" if whole else "forced too early")
        self._fsync(handle)

    def listen(self, work: Callable[[], object]) -> list[str]:
        _listening.append(self._event)
        try:
            with mock.patch("os.fsync", self._forced):
                work()
        finally:
            _listening.remove(self._event)
        return self.done


@exercise
def whole_file(fn: Callable[[Path, str], None]) -> str:
    """Check a `write(path, text)` that a kill and a power failure leave whole or undone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder).resolve() / "file.txt"
        path.write_text(OLD, encoding="utf-8")
        done = _Watch(path, NEW.encode()).listen(
            lambda: untouched(fn, path=path, text=NEW)
        )
        assert path.exists() and path.read_bytes() != OLD.encode(), (
            "The file at path still holds the old text. Give your temporary file its name with os.replace."
            if path.exists()
            else "There is no file at path afterwards."
        )
        left = sorted(other.name for other in path.parent.iterdir() if other != path)
        found = path.read_bytes()
    assert "opened" not in done, (
        "You open path itself to write. From that moment until the last byte is written a reader finds half a file. Write to another name beside it, and rename."
    )
    assert "removed" not in done, (
        "You remove the old file before the new one has its name: killed in between, there is none. os.replace replaces it in one step."
    )
    assert "renamed from elsewhere" not in done, (
        "Your temporary file lies in another folder. That can be another disk, and a rename cannot cross it. Put it beside path: path.with_name(…)."
    )
    others = [NEW.encode(encoding) for encoding in ("latin-1", "utf-16", "utf-8-sig")]
    assert found not in others, (
        "The text is there, in another encoding than UTF-8. Open the file with encoding='utf-8'."
    )
    assert found == NEW.encode(), (
        f"The file should hold the text's {len(NEW.encode()):,} bytes and no others; it holds {len(found):,} bytes that begin with {found[:20]!r}."
    )
    assert "unfinished" not in done, (
        "At the moment of the rename the temporary file is not complete: some of the text is still in Python's buffer. Close it, or flush it, before."
    )
    assert "forced too early" not in done, (
        "When you call fsync, some of the text is still in Python's own buffer, so it is not what is forced. Call file.flush() first."
    )
    rename = done.index("renamed")
    assert "forced" in done, (
        "Nothing forces the new file to the disk: after a power failure the new name may lead to no data. Call os.fsync(file.fileno()) before the rename."
    )
    assert done.index("forced") < rename, (
        "You force the file after the rename. If the power fails in between, the name leads to data that are not there. First fsync, then rename."
    )
    assert "folder forced" in done[rename:] or os.name != "posix", (
        "The rename itself may still wait in memory when your function returns. Force the folder, too, after the rename: os.open(path.parent, os.O_RDONLY), os.fsync, os.close."
    )
    assert not left, f"Beside the file you leave {left[0]}; nobody will remove it."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new.txt"
        fn(path, 1000 * NEW)
        assert path.exists(), (
            "Right for a file that is replaced, but where there is none yet, none is written."
        )
        assert path.read_bytes() == 1000 * NEW.encode(), (
            "Right for a small text, but a long one is not written whole."
        )
    return "Written beside, forced, renamed, and the rename forced: no moment without a whole file."


@exercise
def all_mistakes(
    fn: Callable[[dict[str, Any], dict[str, tuple[int, int]]], set[str]],
) -> str:
    """Check a `mistakes(values, allowed) -> set` of the keys with which something is wrong."""
    allowed = {"layers": (1, 48), "heads": (1, 32), "width": (8, 4096), "seed": (-5, 5)}
    good: dict[str, Any] = {"layers": 12, "heads": 12, "width": 768, "seed": 0}

    def of(**changes: Any) -> set[str]:
        values = {k: v for k, v in (good | changes).items() if v is not None}
        found = untouched(fn, values=values, allowed=allowed)
        assert isinstance(found, set | frozenset), (
            f"It returned {type(found).__name__}; return a set of keys."
        )
        return set(found)

    assert of() == set(), f"Nothing is wrong with {good}, and you find {sorted(of())}."
    for key, edge in (("layers", 48), ("layers", 1), ("seed", -5), ("width", 4096)):
        assert of(**{key: edge}) == set(), (
            f"{key} = {edge} is allowed: both ends of {allowed[key]} are. Compare with <=."
        )
    cases: list[tuple[dict[str, Any], str]] = [
        ({"layers": 0}, "It is below its range."),
        ({"heads": 33}, "It is above its range."),
        ({"layer": 12}, "It is not known: allowed has no such key."),
        ({"width": None}, "It is missing: each key of allowed must be given."),
        ({"seed": "3"}, "A text is no integer."),
        ({"layers": 12.0}, "12.0 is a float and no integer."),
        ({"heads": True}, "True is no integer here, although isinstance(True, int) says so: ask for type(value) is int."),
    ]  # fmt: skip
    for change, why in cases:
        (key,) = change
        try:
            found = of(**change)
        except (TypeError, KeyError) as error:
            given = "left out" if change[key] is None else f"= {change[key]!r}"
            raise AssertionError(
                f"With {key} {given} it raises {type(error).__name__}: {error}. {why}"
            ) from None
        given = "left out" if change[key] is None else f"= {change[key]!r}"
        assert found == {key}, (
            f"With {key} {given} it should find {{{key!r}}}; yours is {found or '{}'}. {why}"
        )
    several = of(layers=0, heads="x", width=None, depth=3)
    wanted = {"layers", "heads", "width", "depth"}
    assert len(several) != 1, (
        f"With four mistakes at once you find {several}: you stop at the first. Collect them all."
    )
    assert several == wanted, (
        f"With four mistakes at once, {sorted(wanted)}, you find {sorted(several)}."
    )
    return "Unknown, missing, of the wrong kind, out of range: all in one attempt."
