"""What a chapter's first and last cell call, and how checks are found."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

import course
from course import check, plots
from course.check.verdict import exercise


def test_start_prepares_a_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(2)
    course.start()
    first = torch.rand(3)
    assert os.getcwd() == str(course.ROOT)
    assert torch.get_num_threads() == 1
    assert mpl.rcParams["figure.facecolor"] == plots.PAPER
    course.start()
    assert torch.equal(torch.rand(3), first)


def test_summary_counts_lines_and_names_what_is_public(capsys):
    course.start()
    course.summary("slm/model/attention.py")
    (module,) = capsys.readouterr().out.splitlines()
    lines = len((course.ROOT / "slm/model/attention.py").read_text().splitlines())
    assert (
        module
        == f"slm/model/attention.py: {lines} lines, causal_attention, MultiHeadAttention"
    )


def test_what_is_shown_is_wrapped_at_the_width_of_a_chapter(capsys):
    path = "/" + "x" * 100
    course.show("word " * 20, path, hanging="  ")
    course.show("one\n\n  two")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        ("word " * 17).strip(),
        "  word word word",
        f"  {path}",
        "one",
        "",
        "  two",
    ]


def test_summary_of_a_missing_module_says_how_to_get_it():
    with pytest.raises(
        FileNotFoundError,
        match="slm/none.py is not there; `python -m course export` writes it",
    ):
        course.summary("slm/none.py")


TWICE = """
from course.check.verdict import exercise


@exercise
def twice(fn):
    return ""
"""


def test_a_reader_that_has_enough_is_not_told_of_a_broken_pipe():
    """As `python -m course tree | head` is."""
    command = [sys.executable, "-m", "course", "tree"]
    tree = subprocess.Popen(
        command, cwd=course.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert tree.stdout and tree.stderr
    tree.stdout.close()
    assert tree.stderr.read() == b"" and tree.wait() == 1


def test_checks_are_found_by_name(tmp_path, monkeypatch):
    """Also where the file has the check's name, before and after it was loaded."""
    (tmp_path / "twice.py").write_text(TWICE)
    monkeypatch.setattr(check, "__path__", [*check.__path__, str(tmp_path)])
    monkeypatch.setattr(check, "CHAPTERS", [*check.CHAPTERS, "twice"])
    monkeypatch.setitem(sys.modules, "course.check.twice", None)  # is removed again
    del sys.modules["course.check.twice"]
    for _ in range(2):
        assert check.twice.__module__ == "course.check.twice"
        importlib.import_module("course.check.twice")
    assert check.entropy.__module__ == "course.check.floor"
    with pytest.raises(AttributeError, match="no check named 'nonsense'"):
        check.nonsense  # noqa: B018
    with pytest.raises(AttributeError):
        check.exercise  # noqa: B018 - imported there, but no check


def test_every_check_has_a_name_of_its_own():
    names = Counter(
        name
        for chapter in check.CHAPTERS
        for name, found in vars(
            importlib.import_module(f"course.check.{chapter}")
        ).items()
        if hasattr(found, "__wrapped__") and found.__module__.endswith(chapter)
    )
    assert names["entropy"] == 1 and set(names.values()) == {1}


def test_verdict_of_each_kind():
    @exercise
    def even(answer) -> str:
        assert answer() % 2 == 0, "It is odd."
        return "It is even."

    def stub():
        raise NotImplementedError

    assert repr(even(lambda: 2)) == "Right. It is even." and even(lambda: 2).passed
    assert (
        repr(even(lambda: 1)).startswith("Not yet. It is odd.")
        and not even(lambda: 1).passed
    )
    assert repr(even(stub)).startswith("Not yet. It is still the stub")
    raised = repr(even(lambda: 1 // 0))
    assert raised.startswith(
        "Not yet. Your code stops with ZeroDivisionError in your line"
    )
    assert raised.endswith(": integer division or modulo by zero.")


def test_package_imports_without_the_course_and_its_tools():
    """`import slm` needs neither the course nor what only some readers have installed."""
    unwanted = [
        "course",
        "torch",
        "modal",
        "wandb",
        "datasets",
        "jupytext",
        "IPython",
        "matplotlib",
        "transformers",
    ]
    script = (
        f"import sys, slm; print([name for name in {unwanted} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=course.ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def make(folder: Path, **options: str) -> subprocess.Popen[str]:
    """Set up an environment, with a command of our own in the place of pip."""
    # called by a make, another one says which folder it enters
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    plain = {"env": env, "cwd": folder, "text": True}
    rules = subprocess.run(["make", "-pnq"], capture_output=True, **plain).stdout
    stamp = re.findall(r"^(\.venv/\.set-up-.+?):", rules, re.MULTILINE)[0]
    given = [f"{name}={value}" for name, value in options.items()]
    command = ["make", stamp, f"PYTHON={os.path.realpath(sys.executable)}", *given]
    return subprocess.Popen(command, stdout=subprocess.PIPE, **plain)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_two_makes_set_up_once_and_a_moved_folder_is_set_up_anew(tmp_path):
    folder = tmp_path / "a course"
    (folder / "course").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "course/alone.py"):
        shutil.copy(course.ROOT / name, folder / name)
    (folder / "course" / "constraints.txt").write_text("")
    until = "until [ -e go ]; do sleep 0.1; done"
    both = [make(folder, INSTALL=f"{until}; echo installs") for _ in range(2)]
    said = [process.stdout.readline() for process in both]  # one installs, one waits
    (folder / "go").touch()
    said = [a + b.communicate(timeout=300)[0] for a, b in zip(said, both, strict=True)]
    assert [process.returncode for process in both] == [0, 0]
    first, second = sorted(said, key=lambda text: "Waiting" in text)
    assert first.count("\ninstalls --quiet") == 2
    assert re.search(r"^Waiting for another make here \(process \d+\)", second)
    assert "installs" not in second

    moved = folder.rename(tmp_path / "moved")
    assert (
        "installs" in make(moved, INSTALL="echo installs").communicate(timeout=300)[0]
    )
    assert str(moved / ".venv") in (moved / ".venv" / "bin" / "pip").read_text()
    assert "installs" not in make(moved, INSTALL="echo installs").communicate()[0]
