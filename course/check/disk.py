"""What a function that replaces a file does, seen from the disk while it works: of two exercises, in two chapters."""

import io
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from course.check.verdict import call, tried

_listening: list[Callable[[str, tuple[Any, ...]], None]] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    for listener in _listening:
        listener(event, arguments)


sys.addaudithook(_hear)  # Python tells it of each file that is opened or renamed


class _Killed(BaseException):
    """What stops the learner's function at a rename, as a kill would."""


class Watch:
    """What is done to `path` and beside it, in order, while it is listened to: (what, how much or which)."""

    def __init__(self, path: Path, kill: bool = False) -> None:
        self.path, self.kill = path, kill
        self.done: list[tuple[str, Any]] = []
        self.forced: dict[int, int] = {}  # inode → bytes on the disk when it was forced

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "shutil.copyfile"):
            return
        beside = self.path.parent if event == "os.rename" and arguments[2] >= 0 else ""
        named = [Path(beside, os.fsdecode(a)).absolute() if isinstance(a, str | bytes | os.PathLike) else None for a in arguments[:2]]  # fmt: skip
        if event == "open" and named[0] == self.path:
            mode, flags = str(arguments[1] or ""), arguments[2]
            if set(mode) & set("wax") or flags & os.O_TRUNC:
                self.done.append(("opened", mode))
        if event == "shutil.copyfile" and named[1] == self.path:
            self.done.append(("copied", named[0]))
        if event == "os.remove" and named[0] == self.path:
            self.done.append(("removed", None))
        if event == "os.rename" and named[0] == self.path:
            self.done.append(("moved away", named[1]))
        if event == "os.rename" and named[1] == self.path and named[0] is not None:
            found = named[0].stat() if named[0].exists() else None
            held = named[0].read_bytes() if found else b""
            before = self.forced.get(found.st_ino) if found else None
            self.done.append(("renamed", (named[0].parent, held, before)))
            if self.kill:
                raise _Killed

    def _fsync(self, handle: Any) -> None:
        found = os.fstat(handle if isinstance(handle, int) else handle.fileno())
        if stat.S_ISDIR(found.st_mode):
            self.done.append(("folder", found.st_ino))
        else:
            self.forced[found.st_ino] = found.st_size
            self.done.append(("forced", found.st_size))

    def _sync(self) -> None:
        for file in [*self.path.parent.iterdir(), self.path.parent]:
            handle = os.open(file, os.O_RDONLY)
            self._fsync(handle)
            os.close(handle)

    def _profile(self, frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and called.__name__ in ("write", "writelines", "print"):
            of = getattr(called, "__self__", None)
            if isinstance(of, io.IOBase) or called in (os.write, print):
                self.done.append(("wrote", None))

    def listen(self, work: Callable[[], object]) -> None:
        """Watch `work`, which a kill may end."""
        before = sys.getprofile()
        patches: dict[str, Any] = {"fsync": self._fsync, "fdatasync": self._fsync, "sync": self._sync}  # fmt: skip
        there = {name: to for name, to in patches.items() if hasattr(os, name)}
        _listening.append(self._event)
        try:
            with mock.patch.multiple(os, **there):
                sys.setprofile(self._profile)
                work()
        except _Killed:
            pass
        finally:
            sys.setprofile(before)
            _listening.remove(self._event)


def _in_place(done: list[tuple[str, Any]]) -> str | None:
    """Moments at which a reader finds half a file, or none."""
    what = [name for name, _ in done]
    first = what.index("renamed") if "renamed" in what else len(what)
    if "copied" in what:
        return "You copy the temporary file over `path`. A copy writes `path` itself, bit by bit, and a reader can find half of it. Rename: os.replace(part, path)."
    if "opened" in what:
        return "You open `path` itself to write. From that moment until the last byte is written a reader finds half a file. Write to another name beside it, and rename."
    if "moved away" in what[:first]:
        if first == len(what):
            return "You rename `path` to another name: the wrong way round. The temporary file gets the name `path`: os.replace(part, path)."
        return "You rename the old file away before the new one has its name: killed in between, there is none. os.replace takes its place in one step."
    if "removed" in what[:first]:
        return "You remove the old file before the new one has its name: killed in between, there is none. os.replace takes its place in one step."
    return None


def _contents(found: bytes, old: bytes, new: bytes) -> str:
    """What is wrong with the contents, `found` where `new` should be."""
    text = new.decode()
    others = [text.encode(kind) for kind in ("utf-16", "utf-8-sig")] + [text.encode("latin-1", "replace")]  # fmt: skip
    if found in others and not text.isascii():
        return "The text is there, in another encoding than UTF-8. Open the file with encoding='utf-8'."
    if found == old + new:
        return "The new contents stand behind the old ones, in one file. The new ones alone should be there."
    if found == new + b"\n":
        return "A line end too many stands behind the contents (print adds one). Write them as they are."
    return f"The file should hold the {len(new):,} bytes that were to be written and no others; it holds {len(found):,} bytes that begin with {found[:20]!r}."


def _power(done: list[tuple[str, Any]], new: bytes) -> str | None:
    """What a kill at the rename, or a power failure, leaves of the contents that are there in the end."""
    what = [name for name, _ in done]
    at = what.index("renamed")
    _, held, size = done[at][1]
    if held != new:
        return f"At the moment of the rename the temporary file holds {len(held):,} of {len(new):,} bytes; the rest is still in Python's buffer. Close it, or flush it, before."
    if size is None and "forced" in what[at:]:
        return "You force the file after the rename only. If the power fails in between, the new name leads to data that are not there. First os.fsync, then the rename."
    if size is None and "folder" in what:
        return "You force the folder, and not the file: after a power failure the new name may lead to no data. Call os.fsync(file.fileno()) before the rename, too."
    if size is None:
        return "Nothing forces the new contents to the disk: after a power failure the new name may lead to no data. Call os.fsync(file.fileno()) before the rename."
    if size != len(new):
        last = len(what[:at]) - 1 - what[:at][::-1].index("forced")
        if "wrote" in what[last:at]:
            return f"You force the file before all is written: {size:,} of {len(new):,} bytes were there, and what you write behind the fsync may be lost. Write, flush, then fsync."
        return f"When you call fsync, {len(new) - size:,} of {len(new):,} bytes are still in Python's own buffer, so they are not forced. Call file.flush() first."
    return None


def _folder(done: list[tuple[str, Any]], path: Path) -> str | None:
    """Whether the rename itself is forced."""
    what = [name for name, _ in done]
    at, own = what.index("renamed"), path.parent.stat().st_ino
    behind = [which for name, which in done[at:] if name == "folder"]
    if own in behind or os.name != "posix":
        return None
    if behind:
        return "You force another folder than the one in which `path` lies. The list of names to be forced is that of path.parent."
    if "folder" in what:
        return "You force the folder before the rename only, so the rename itself may still wait in memory when your function returns. Force it after the rename."
    return "The rename itself may still wait in memory when your function returns. Force the folder, too, after the rename: os.open(path.parent, os.O_RDONLY), os.fsync, os.close."


def replaces(fn: Callable[..., None], old: bytes, new: bytes, given: Callable[[bytes], Any], folder: bool) -> None:  # fmt: skip
    """Assert that `fn(path, given(data))` leaves a whole file, whenever it is killed or the power fails.

    With `folder`, the rename must be forced as well.
    """
    with tempfile.TemporaryDirectory() as name:
        path = Path(name).resolve() / "file"
        path.write_bytes(old)
        watch = Watch(path)
        watch.listen(lambda: call(fn, path, given(new)))
        what = [name for name, _ in watch.done]
        found = path.read_bytes() if path.is_file() else None
        wrong = _in_place(watch.done)
        assert wrong is None, wrong
        assert found is not None, "Afterwards there is no file at `path`."
        assert found != old, (
            "`path` still holds the old contents. Give your temporary file its name: os.replace(part, path)."
            if "wrote" in what
            else "`path` still holds the old contents: nothing was written. Also a file that is there already has to be replaced."
        )
        assert "renamed" in what, (
            "The new contents are at `path`, but not by a rename of a whole file: os.replace(part, path)."
        )
        assert watch.done[what.index("renamed")][1][0] == path.parent, (
            "Your temporary file lies in another folder. That can be another disk, which a rename cannot cross: it becomes a copy, and can be cut off. Put it beside `path`: path.with_name(…)."
        )
        wrong = _power(watch.done, found)
        assert wrong is None, wrong
        assert found == new, _contents(found, old, new)
        wrong = _folder(watch.done, path) if folder else None
        assert wrong is None, wrong
        left = sorted(other.name for other in path.parent.iterdir() if other != path)
        assert not left, (
            f"Beside the file you leave {left[0]!r}; nobody will remove it."
        )
    with tempfile.TemporaryDirectory() as name:
        path = Path(name).resolve() / "file"
        path.write_bytes(old)
        Watch(path, kill=True).listen(lambda: call(fn, path, given(old + new)))
        assert path.read_bytes() == old, (
            "Killed before the rename, your function leaves other contents than before."
        )
        after = tried(fn, path, given(new))
        assert not isinstance(after, BaseException), (
            f"A call that was killed leaves its temporary file, and with it there the next call stops ({type(after).__name__}). Open it with 'w', which begins anew."
        )
        assert path.read_bytes() != old + new, (
            "A call that was killed leaves its temporary file, and the next call gives that the name `path`, whatever is in it. Write it anew each time."
        )
        assert path.read_bytes() == new, (
            "A call that was killed leaves its temporary file, and the next call goes on behind what is in it (open with 'a'). Open it with 'w', which begins anew."
        )
        for other, data in (
            (path.with_name("another.txt"), 1000 * new),
            (path, new[:6]),
            (path, b""),
        ):
            call(fn, other, given(data))
            found = other.read_bytes() if other.exists() else None
            assert found is not None, "Where there is no file yet, none is written."
            assert found == data, _contents(found, b"", data)
