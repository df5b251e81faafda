"""The check of the exercise on token files is itself checked: each planted bug is caught with its own message."""

import os
import tempfile
from pathlib import Path

import pytest

from course import check


def solution(path, data):
    part = path.with_name(path.name + ".tmp")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def with_path_methods(path, data):
    part = path.with_suffix(".new")
    part.write_bytes(data)
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)


def in_place(path, data):
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def deleting_first(path, data):
    path.unlink(missing_ok=True)
    solution(path, data)


def in_place_then_renamed(path, data):
    path.write_bytes(data)
    solution(path, data)


def to_another_name(path, data):
    solution(path.with_name("other"), data)


def in_another_folder(path, data):
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part"
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)


def without_fsync(path, data):
    part = path.with_name(path.name + ".tmp")
    part.write_bytes(data)
    os.replace(part, path)


def fsync_before_flush(path, data):
    part = path.with_name(path.name + ".tmp")
    with open(part, "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    os.replace(part, path)


def renamed_while_open(path, data):
    part = path.with_name(path.name + ".tmp")
    with open(part, "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
        os.replace(part, path)


def leaving_a_copy(path, data):
    solution(path, data)
    path.with_name(path.name + ".bak").write_bytes(data)


def cut_short(path, data):
    solution(path, data if len(data) > 100 else data[:5])


BUGS = {
    "It never renames a file": in_place,
    "delete nothing before": deleting_first,
    "you write to the file itself": in_place_then_renamed,
    "The rename goes to 'other'": to_another_name,
    "lies in another folder": in_another_folder,
    "never forced to the disk": without_fsync,
    "Flush first": fsync_before_flush,
    "Close or flush it before the rename": renamed_while_open,
    "behind": leaving_a_copy,
    "and the file holds 5": cut_short,
}


@pytest.mark.parametrize("message", BUGS)
def test_planted_bug_in_a_writer_is_named(message):
    verdict = check.write_whole(BUGS[message])
    assert not verdict.passed and message in verdict.message


def test_stub_is_told_apart():
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert "still the stub" in check.write_whole(stub).message


@pytest.mark.parametrize("right", [solution, with_path_methods])
def test_solutions_pass(right):
    assert check.write_whole(right).passed
