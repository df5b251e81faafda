"""Check of the exercise on token files."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from course.check.verdict import exercise

OLD, NEW = b"old contents", b"new contents, and more of them " * 100


class _Killed(BaseException):
    """What stops the learner's function at a rename, as a kill would."""


@contextmanager
def _watched(
    kill: bool,
) -> Iterator[tuple[dict[int, int], list[tuple[Path, Path, bytes, int]]]]:
    """See each fsync (file → size on the disk) and each rename (from, to, contents, size that was forced before)."""
    forced: dict[int, int] = {}
    renames: list[tuple[Path, Path, bytes, int]] = []
    fsync, replace = os.fsync, os.replace

    def see_fsync(handle: int) -> None:
        found = os.fstat(handle)
        forced[found.st_ino] = found.st_size
        fsync(handle)

    def see_replace(source: Path, target: Path, **options: object) -> None:
        source, target = Path(source), Path(target)
        held = forced.get(source.stat().st_ino, -1)
        renames.append((source, target, source.read_bytes(), held))
        if kill:
            raise _Killed
        replace(source, target)

    with (
        mock.patch("os.fsync", see_fsync),
        mock.patch("os.replace", see_replace),
        mock.patch("os.rename", see_replace),
    ):
        yield forced, renames


@exercise
def write_whole(fn: Callable[[Path, bytes], None]) -> str:
    """Check a `write_whole(path, data)`."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "file"
        path.write_bytes(OLD)
        try:
            with _watched(kill=True) as (_, renames):
                fn(path, NEW)
        except _Killed:
            pass
        assert renames, (
            "It never renames a file, so for a moment the file is there with a part of its contents: write to a temporary name, then os.replace."
        )
        source, target, held, size = renames[0]
        assert path.exists(), (
            "Killed before the rename, neither the old contents nor the new ones are there. os.replace takes the old file's place by itself: delete nothing before."
        )
        assert path.read_bytes() == OLD, (
            "Killed before the rename, the file holds other contents than before: you write to the file itself."
        )
        assert target == path, (
            f"The rename goes to {target.name!r}, not to {path.name!r}."
        )
        assert source.parent == path.parent, (
            "The temporary file lies in another folder. Between two file systems a rename is a copy, and a copy can be cut off: take a name beside the file."
        )
        assert held == NEW, (
            f"When it is renamed, the temporary file holds {len(held)} of {len(NEW)} bytes: the rest is still in Python's buffer. Close or flush it before the rename."
        )
        assert size != -1, (
            "The contents were never forced to the disk. After a power failure the new name may stand on an empty file: os.fsync before the rename."
        )
        assert size == len(NEW), (
            f"At the fsync the file held {size} of {len(NEW)} bytes: the rest was still in Python's buffer, and fsync does not know of it. Flush first."
        )
    with tempfile.TemporaryDirectory() as name:
        for path in (Path(name) / "file", Path(name) / "another"):
            for data in (OLD, NEW, b""):
                with _watched(kill=False):
                    fn(path, data)
                assert path.exists(), f"After writing there is no {path.name!r}."
                assert path.read_bytes() == data, (
                    f"{len(data)} bytes were to be written, and the file holds {len(path.read_bytes())}."
                )
        left = {file.name for file in Path(name).iterdir()} - {"file", "another"}
        assert not left, f"It leaves {min(left)!r} behind."
    return "Old or new, at any moment."
