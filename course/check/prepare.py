"""Check of the exercise on token files."""

from collections.abc import Callable
from pathlib import Path

from course.check.disk import replaces
from course.check.verdict import exercise

OLD, NEW = b"old contents", b"new contents, and more of them " * 100


@exercise
def write_whole(fn: Callable[[Path, bytes], None]) -> str:
    """Check a `write_whole(path, data)`."""
    replaces(fn, OLD, NEW, bytes, folder=False)
    return "Old or new, at any moment."
