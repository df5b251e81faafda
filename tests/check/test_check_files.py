"""The checks of files and errors are themselves checked: each planted bug is caught with its own message."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from course import check


def write(
    path,
    text,
    *,
    beside=True,
    flush=True,
    force="before",
    folder=True,
    encoding="utf-8",
    remove=False,
    close=True,
    rename=True,
    keep=False,
):
    """The solution with its steps open."""
    place = path.parent if beside else Path(tempfile.mkdtemp())
    part = place / (path.name + ".tmp")
    file = open(part, "w", encoding=encoding)
    file.write(text)
    if flush:
        file.flush()
    if force == "before":
        os.fsync(file.fileno())
    if close:
        file.close()
    if keep:
        shutil.copy(part, part.with_suffix(".keep"))
    if remove:
        path.unlink(missing_ok=True)
    if rename:
        os.replace(part, path)
    file.close()
    if force == "after":
        with open(path) as again:
            os.fsync(again.fileno())
    if folder:
        handle = os.open(path.parent, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def with_steps(**steps):
    return lambda path, text: write(path, text, **steps)


def copied(path, text):
    part = path.with_name("part")
    part.write_text(text, encoding="utf-8")
    shutil.copyfile(part, path)
    part.unlink()


def only_if_there(path, text):
    if path.exists():
        write(path, text)


def short(path, text):
    write(path, text[:5000])


def half(path, text):
    write(path, text[: len(text) // 2])


FILE_BUGS = {
    "You open path itself to write": lambda path, text: path.write_text(text, encoding="utf-8"),
    "a reader finds half a file": copied,
    "You remove the old file": with_steps(remove=True),
    "lies in another folder": with_steps(beside=False),
    "some of the text is still in Python's buffer": with_steps(flush=False, force="", close=False),
    "Call file.flush() first": with_steps(flush=False),
    "Nothing forces the new file": with_steps(force=""),
    "You force the file after the rename": with_steps(force="after"),
    "Force the folder, too": with_steps(folder=False),
    "Beside the file you leave": with_steps(keep=True),
    "still holds the old text": with_steps(rename=False),
    "in another encoding than UTF-8": with_steps(encoding="latin-1"),
    "it holds 425 bytes that begin with": half,
    "a long one is not written whole": short,
    "where there is none yet": only_if_there,
    "It is still the stub": lambda path, text: (_ for _ in ()).throw(NotImplementedError),
}  # fmt: skip


def mistakes(values, allowed):
    wrong = values.keys() ^ allowed.keys()
    for key in values.keys() & allowed.keys():
        low, high = allowed[key]
        if type(values[key]) is not int or not low <= values[key] <= high:
            wrong.add(key)
    return wrong


def stops_at_the_first(values, allowed):
    return set(sorted(mistakes(values, allowed))[:1])


def in_place(values, allowed):
    found = mistakes(values, allowed)
    values.clear()
    return found


def as_isinstance(values, allowed):
    return {
        key
        for key in values.keys() | allowed.keys()
        if key not in values
        or key not in allowed
        or not isinstance(values[key], int)
        or not allowed[key][0] <= values[key] <= allowed[key][1]
    }


def in_range(values, allowed):
    """Asks only for the range, and of the keys only for those that are known."""
    outside = {k for k, (low, high) in allowed.items() if not low <= values[k] <= high}
    return outside | (values.keys() - allowed.keys())


def without(**wrong):
    """The solution that never reports what these changes would make it report."""

    def fn(values, allowed):
        hidden = {
            key
            for key in mistakes(values, allowed)
            if wrong["hides"](key, values.get(key), allowed.get(key))
        }
        return mistakes(values, allowed) - hidden

    return fn


MISTAKE_BUGS = {
    "you stop at the first": stops_at_the_first,
    "It returned list": lambda v, a: sorted(mistakes(v, a)),
    "changed its input values in place": in_place,
    "Compare with <=": lambda v, a: mistakes(v, a) | {k for k in a if v.get(k) in a[k]},
    "Nothing is wrong": lambda v, a: set(a),
    "below its range": without(hides=lambda k, v, a: type(v) is int and a and v < a[0]),
    "above its range": without(hides=lambda k, v, a: type(v) is int and a and v > a[1]),
    "It is not known": without(hides=lambda k, v, a: a is None),
    "It is missing": without(hides=lambda k, v, a: v is None),
    "A text is no integer": without(hides=lambda k, v, a: isinstance(v, str)),
    "12.0 is a float": without(hides=lambda k, v, a: isinstance(v, float)),
    "True is no integer": as_isinstance,
    "it raises KeyError": in_range,
    "you find ['layers', 'width']": lambda v, a: (
        mistakes(v, a) if len(mistakes(v, a)) < 4 else {"layers", "width"}
    ),
}
CASES = [(check.whole_file, m, b) for m, b in FILE_BUGS.items()]
CASES += [(check.all_mistakes, m, b) for m, b in MISTAKE_BUGS.items()]


@pytest.mark.parametrize(
    ("checked", "message", "bug"), CASES, ids=[message for _, message, _ in CASES]
)
def test_planted_bug_is_named(checked, message, bug):
    verdict = checked(bug)
    assert not verdict.passed
    assert message in verdict.message, verdict.message


def renamed_by_pathlib(path, text):
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    handle = os.open(path.parent, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def test_solutions_pass():
    from slm.files import write_text

    for solution in (write, renamed_by_pathlib, write_text):
        assert check.whole_file(solution).passed, check.whole_file(solution).message
    assert check.all_mistakes(mistakes).passed, check.all_mistakes(mistakes).message
