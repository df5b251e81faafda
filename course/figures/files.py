"""Experiments of files and errors: writers that are killed, and the calls that a function makes."""

import os
import random
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from IPython.display import HTML

OLD, NEW = "old " * 500, "new " * 1000
MOMENTS = ("opened", "half written", "written", "closed, renamed")
WAYS = ("written over", "written beside and renamed")

KILLED_AT = """
import os, signal, sys
path, way, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
def moment(number):
    if number == last:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
target = path if way == "written over" else path + ".tmp"
with open(target, "w") as file:
    moment(0)
    file.write("new " * 500)
    file.flush()
    moment(1)
    file.write("new " * 500)
    file.flush()
    moment(2)
os.replace(target, path)
moment(3)
"""


def killed_at_each_moment() -> HTML:
    """A table: what a reader finds when a writer was killed at that moment, for both ways."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            found = []
            for moment in range(len(MOMENTS)):
                path = Path(folder) / f"{WAYS.index(way)}{moment}.txt"
                path.write_text(OLD)
                arguments = [str(path), way, str(moment)]
                subprocess.run([sys.executable, "-c", KILLED_AT, *arguments])
                found.append(_word(path.read_text()))
            rows.append((way, found))
    head = "".join(f"<th>{moment}</th>" for moment in MOMENTS)
    body = "".join(
        f"<tr><th>{way}</th>{''.join(f'<td>{word}</td>' for word in found)}</tr>"
        for way, found in rows
    )
    return HTML(
        f"<table><tr><th>killed when the new text is …</th>{head}</tr>{body}</table>"
    )


def _word(text: str) -> str:
    known = {OLD: "old", NEW: "new", "": "<b>empty</b>", NEW[:2000]: "<b>half</b>"}
    return known.get(text, "<b>torn</b>")


WRITE_FOR_EVER = """
import itertools, sys
from pathlib import Path
from slm.files import write_text
path = Path(sys.argv[1])
write = write_text if sys.argv[2] == "written beside and renamed" else Path.write_text
for round in itertools.count():
    write(path, "ab"[round % 2] * 4_000_000)
    if round == 0:
        print("written once", flush=True)
"""


def killed_while_writing(way: str, times: int = 5) -> str:
    """Shoot processes that write 4 MB over and over, at random moments; how many files are torn."""
    chance, torn = random.Random(0), 0
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.txt" for number in range(times)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", WRITE_FOR_EVER, str(path), way],
                stdout=subprocess.PIPE,
            )
            for path in paths
        ]
        for path, process in zip(paths, processes, strict=True):
            assert process.stdout is not None
            assert process.stdout.readline().strip() == b"written once"
            time.sleep(chance.uniform(0.02, 0.2))
            process.kill()
            process.communicate()
            text = path.read_text()
            torn += len(text) != 4_000_000 or len(set(text)) != 1
    return f"{way}: {times} writers killed, {torn} files torn"


def calls_of(work: Callable[[], object]) -> list[str]:
    """The fsyncs and renames that some work makes, in order, in words."""
    calls = []
    fsync, replace = os.fsync, os.replace

    def forced(handle: int) -> None:
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        calls.append(f"fsync a {'folder' if folder else 'file'}")
        fsync(handle)

    def renamed(part: Path, path: Path) -> None:
        calls.append("rename")
        replace(part, path)

    with mock.patch("os.fsync", forced), mock.patch("os.replace", renamed):
        work()
    return calls
