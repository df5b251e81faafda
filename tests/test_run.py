"""Running chapters: what is run again and when, what is written, and what a failure says."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import nbformat
import psutil
import pytest

from course import ROOT
from course.lab import METADATA
from course.run import set_aside_outdated_run

CHAPTER = """\
# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#     cell_metadata_filter: tags,mystnb,-all
#   slm:
#     exports: [slm/one.py, slm/__init__.py]
# ---

# %% [markdown]
# # One
#
# The number one.

# %%
import os

# %%
#| export __init__
\"\"\"A package of its own.\"\"\"

__version__ = "1"

# %%
#| export
\"\"\"The number one.\"\"\"


def one() -> int:
    return 1


# %% tags=["nbval-check-output"]
from slm.one import one as packaged

one() + packaged()

# %%
import sys

print("out")
print("threads", os.environ["OMP_NUM_THREADS"], os.environ["WANDB_MODE"], os.environ.get("MODAL_TOKEN_ID"))
print(os.path.samefile(sys.executable, EXECUTABLE))
"""


class Copy:
    """A copy of the course's tools with one small chapter, in a folder with a space in its name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for path in (ROOT / "course").glob("*.py"):
            (root / "course").mkdir(parents=True, exist_ok=True)
            (root / "course" / path.name).write_bytes(path.read_bytes())
        (root / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
        (root / "chapters").mkdir()
        self.chapter = root / "chapters" / "01_one.py"
        self.chapter.write_text(CHAPTER.replace("EXECUTABLE", repr(sys.executable)))
        assert self.course("export").returncode == 0

    def course(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "course", *arguments]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True)

    def built(self) -> nbformat.NotebookNode:
        return nbformat.read(
            self.root / "_build" / "chapters" / "01_one.ipynb", as_version=4
        )

    def outputs(self) -> list[str]:
        cells = [cell for cell in self.built().cells if cell.cell_type == "code"]
        return [
            output.get("text") or output.data["text/plain"]
            for cell in cells
            for output in cell.outputs
        ]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    monkeypatch.setenv("MODAL_TOKEN_ID", "a-token")
    return Copy(tmp_path / "a course")


def test_runs_once_and_again_when_something_changed(copy):
    first = copy.course("run")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("01_one ") and first.stdout.rstrip().endswith(" s")
    assert copy.outputs() == ["2", "out\nthreads 1 disabled None\nTrue\n"]
    assert (
        json.loads((copy.root / "_build" / "chapters" / "times.json").read_text())[
            "01_one"
        ]
        > 0
    )
    assert "up to date" in copy.course("run", "1").stdout

    (copy.root / "configs").mkdir()
    (copy.root / "configs" / "new.yaml").write_text("model: {}\n")
    assert "up to date" not in copy.course("run").stdout
    assert "up to date" in copy.course("run").stdout
    copy.chapter.write_text(copy.chapter.read_text().replace("return 1", "return 2"))
    assert copy.course("export").returncode == 0
    assert "up to date" not in copy.course("run", "01").stdout
    assert copy.outputs()[0] == "4"


def test_committed_notebook_is_the_same_after_every_run(copy):
    assert not copy.chapter.with_suffix(".ipynb").exists()
    assert copy.course("run", "--write").returncode == 0
    first = copy.chapter.with_suffix(".ipynb").read_bytes()
    (copy.root / "_build" / "chapters" / "01_one.ipynb").unlink()
    assert copy.course("run", "--write").returncode == 0
    assert copy.chapter.with_suffix(".ipynb").read_bytes() == first
    notebook = json.loads(first)
    assert set(notebook["metadata"]) == {
        "checksum",
        "jupytext",
        "kernelspec",
        "language_info",
        "slm",
    }
    assert METADATA.items() <= notebook["metadata"].items()
    assert "text_representation" not in notebook["metadata"]["jupytext"]
    assert first.endswith(b"}\n")
    text = jupytext.read(copy.chapter.with_suffix(".ipynb"))
    assert [cell.source for cell in text.cells] == [
        cell["source"] for cell in jupytext.read(copy.chapter).cells
    ]


def test_an_edit_of_the_notebook_alone_is_never_overwritten(copy):
    """Not by the export, which would ignore it, and not by a run; the command that is named brings it over."""
    assert copy.course("run", "--write").returncode == 0
    path = copy.chapter.with_suffix(".ipynb")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[3].source = notebook.cells[3].source.replace("return 1", "return 2")
    nbformat.write(notebook, path)
    before, text = path.read_bytes(), copy.chapter.read_text()
    for command in ("export", "export --check", "run", "run 01 --write"):
        refused = copy.course(*command.split())
        assert refused.returncode == 1
        assert (
            "chapters/01_one.ipynb: edited, and 01_one.py does not have it: code cell 3,"
            " line 6, is '    return 2', in the text '    return 1'." in refused.stderr
        )
    assert path.read_bytes() == before and copy.chapter.read_text() == text
    (called,) = re.findall(r"`python -m course (.+)`", refused.stderr)
    kept = copy.course(*called.split())
    edited = text.partition("# %%")[2].replace("return 1", "return 2")
    assert kept.returncode == 0
    assert copy.chapter.read_text().partition("# %%")[2] == edited
    (old,) = (copy.root / "chapters" / ".ipynb_checkpoints").iterdir()
    assert old.read_text() == text and old.name in kept.stdout
    assert copy.course("export").returncode == 0
    assert "return 2" in (copy.root / "slm" / "one.py").read_text()
    assert "nothing to take over" in copy.course("keep", "1").stdout


def test_a_notebook_that_is_edited_during_the_run_is_kept(copy):
    assert copy.course("run", "--write").returncode == 0
    with copy.chapter.open("a") as file:
        file.write(
            "\n# %%\nimport pathlib\n\npath = pathlib.Path('01_one.ipynb')\n"
            "written = path.write_text(path.read_text().replace('number one', 'digit'))\n"
        )
    refused = copy.course("run", "--write")
    assert refused.returncode == 1 and "digit" in refused.stderr
    assert "digit" in copy.chapter.with_suffix(".ipynb").read_text()


def test_a_path_of_this_machine_is_not_committed(copy):
    with copy.chapter.open("a") as file:
        file.write("\n# %%\nprint(os.getcwd())\n")
    refused = copy.course("run", "--write")
    assert refused.returncode == 1
    assert "holds a path of this machine" in refused.stderr
    assert not copy.chapter.with_suffix(".ipynb").exists()


def test_a_failing_cell_is_named(copy):
    with copy.chapter.open("a") as file:
        file.write("\n# %%\none() / 0\n")
    line = len(copy.chapter.read_text().splitlines())
    failed = copy.course("run")
    assert failed.returncode == 1
    assert (
        failed.stderr.strip()
        == f"chapters/01_one.py:{line}: cell 6: ZeroDivisionError: division by zero"
    )
    assert not (copy.root / "_build" / "chapters" / "01_one.ipynb").exists()


def test_a_definition_that_differs_from_the_package_fails(copy):
    """The package was edited by hand, or a later cell replaced what is exported: the run says which name."""
    path = copy.root / "slm" / "one.py"
    path.write_text(path.read_text().replace("return 1", "return 1 + 0"))
    failed = copy.course("run")
    assert failed.returncode == 1
    assert (
        "chapters/01_one.py: one differs from the package's (slm/one.py)"
        in failed.stderr
    )


def test_ctrl_c_ends_with_a_line(copy):
    """In a cell: the kernel is gone, too."""
    seen = copy.root / "kernel"
    with copy.chapter.open("a") as file:
        file.write(
            f"\n# %%\nimport time\n\nprint(os.getpid(), file=open({str(seen)!r}, 'w', 1))"
        )
        file.write("\ntime.sleep(600)\n")
    command = [sys.executable, "-m", "course", "run"]
    pipe = subprocess.PIPE
    run = subprocess.Popen(
        command,
        cwd=copy.root,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    )
    while not seen.exists() or not seen.read_text():
        assert run.poll() is None, run.communicate()
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)
    _, error = run.communicate(timeout=300)
    assert run.returncode == 130
    assert error.strip() == "Stopped. The same command goes on; what is finished stays."
    assert not psutil.pid_exists(int(seen.read_text()))


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(copy):
    (copy.root / "_build").write_text("")
    refused = copy.course("run")
    assert refused.returncode == 1
    place = copy.root / "_build"
    assert refused.stderr == f"{place} can't be used: File exists.\n"


def test_unknown_chapter(copy):
    refused = copy.course("run", "12")
    assert refused.returncode == 1
    assert refused.stderr.strip() == "There is no chapter 12; there are 01."


@pytest.fixture
def finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder as the present code and config write it."""
    from slm.training.config import load_config
    from slm.training.folder import code_fingerprint

    source = ROOT / "configs" / "stories_cpu.yaml"
    monkeypatch.setattr("course.run.ROOT", tmp_path)
    folder = tmp_path / "runs" / "stories_cpu"
    folder.mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / source.name).write_bytes(source.read_bytes())
    (folder / "config.yaml").write_text(load_config(source).to_yaml())
    (folder / "environment.json").write_text(json.dumps({"code": code_fingerprint()}))
    return folder


def test_a_current_run_stays(finished_run, capsys):
    set_aside_outdated_run()
    assert finished_run.exists() and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("environment.json", '{"code": "another version"}'),
        ("environment.json", None),
        ("config.yaml", "model: {n_layers: 1}\ndata: {dataset: stories}\n"),
        ("config.yaml", "nonsense: 1\n"),
    ],
)
def test_an_outdated_run_is_set_aside_and_kept(finished_run, capsys, file, text):
    (finished_run / "metrics.jsonl").write_text("mine\n")
    (finished_run / file).unlink()
    if text is not None:
        (finished_run / file).write_text(text)
    set_aside_outdated_run()
    assert not finished_run.exists()
    (kept,) = finished_run.parent.iterdir()
    assert (
        kept.name.startswith("stories_cpu.")
        and (kept / "metrics.jsonl").read_text() == "mine\n"
    )
    assert f"it is now runs/{kept.name}" in capsys.readouterr().out


def run_with_patience(
    copy: Copy, seconds: float, cell: str
) -> subprocess.CompletedProcess[str]:
    """Run the copy's chapter with one more cell, and with less patience than ten minutes."""
    with copy.chapter.open("a") as file:
        file.write(f"\n# %%\n{cell}\n")
    code = f"import course.run as run; run.PATIENCE = {seconds}; run.run()"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=copy.root,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_cell_without_progress_is_ended_with_a_sentence(copy):
    mark = f"# {copy.root}"  # another run of this test may have a child of its own
    child = f"import subprocess; subprocess.run([{sys.executable!r}, '-c', 'import time; time.sleep(1000)  {mark}'])"
    done = run_with_patience(copy, 6, child)
    assert done.returncode == 1
    assert (
        "cell 6: made no progress for 0.1 minutes (no output, no CPU time), so it was ended"
        in done.stderr
    )
    left = [
        process
        for process in psutil.process_iter(["cmdline"])
        if mark in " ".join(process.info["cmdline"] or ())
    ]
    assert not psutil.wait_procs(left, timeout=60)[1]  # all were killed


WORK = """
import time

while time.monotonic() < END:
    until = time.process_time() + 0.01  # as much on any machine
    while time.process_time() < until:
        pass
    time.sleep(0.1)
"""


@pytest.mark.parametrize(
    "work",
    [
        WORK.replace("END", "end"),
        "while time.monotonic() < end: time.sleep(1); print('still here')",
        f"import subprocess; subprocess.run([sys.executable, '-c', {WORK!r}.replace('END', str(end))])",
    ],
    ids=["computes", "prints", "has a child that computes"],
)
def test_a_cell_that_makes_progress_gets_all_the_time_it_needs(copy, work):
    done = run_with_patience(
        copy, 6, f"import sys, time\nend = time.monotonic() + 9\n{work}"
    )
    assert done.returncode == 0, done.stderr
