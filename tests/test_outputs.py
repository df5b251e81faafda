"""The outputs that are committed with the chapters are those of a fresh run: nbval judges, and nothing runs twice.

The chapters were executed by `course run`, in a fresh kernel each. Here nbval's own test of a notebook gets, in place of a
kernel, one that answers with what was executed there. `pytest --nbval-lax …` as in CONTRIBUTING.md executes them itself;
that both come to the same verdict is the last test.
"""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import nbval.plugin
import pytest

from course import ROOT
from course.export import chapters
from course.run import BUILD, is_fresh, leave_pngs, run

CHAPTERS = chapters()
SANITIZE = str(ROOT / "tests" / "sanitize.cfg")


class Replay:
    """Answers nbval as a kernel does, with the outputs of a notebook that was executed before."""

    def __init__(self, executed: nbformat.NotebookNode) -> None:
        self.cells = iter(c for c in executed.cells if c.cell_type == "code")
        self.messages: list[dict] = []

    def execute_cell_input(self, source: str, allow_stdin: bool) -> str:
        cell = next(self.cells)
        assert cell.source == source, "another cell was executed"
        outputs = [(output.output_type, output) for output in cell.outputs]
        idle = ("status", {"execution_state": "idle"})
        self.messages = [
            {"msg_type": kind, "content": content, "parent_header": {"msg_id": "cell"}}
            for kind, content in [*outputs, idle]
        ]
        return "cell"

    def get_message(self, stream: str, timeout: float) -> dict:
        return self.messages.pop(0)

    def await_reply(self, message: str, timeout: float) -> None:
        """It is there already."""

    await_idle = await_reply

    def is_alive(self) -> bool:
        return True


@pytest.fixture
def refused(request, monkeypatch):
    """The cells of a notebook, by their numbers, whose outputs nbval does not find in an executed one, and why."""

    def judge(notebook: Path, executed: nbformat.NotebookNode) -> dict[int, str]:
        options = request.config.option
        monkeypatch.setattr(options, "nbval_lax", True)
        monkeypatch.setattr(options, "nbval_sanitize_with", SANITIZE)
        monkeypatch.setattr(
            nbval.plugin, "RunningKernel", lambda *_, **__: Replay(executed)
        )
        file = nbval.plugin.IPyNbFile.from_parent(request.session, path=notebook)
        cells = list(file.collect())
        file.setup()
        found = {}
        for cell in cells:
            try:
                cell.runtest()
            except nbval.plugin.NbCellError as error:
                found[cell.cell_num] = f"{error}\n{error.inner_traceback}"
        assert next(file.kernel.cells, None) is None, "more cells were executed"
        return found

    return judge


def executed(chapter: Path) -> nbformat.NotebookNode:
    if not is_fresh(chapter):
        run([chapter.stem[:2]])
    notebook = nbformat.read(BUILD / f"{chapter.stem}.ipynb", as_version=4)
    leave_pngs(notebook)
    return notebook


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_outputs_are_those_of_a_fresh_run(refused, chapter):
    found = refused(chapter.with_suffix(".ipynb"), executed(chapter))
    assert found == {}, "\n".join(f"Cell {n}: {why}" for n, why in found.items())


def test_nbval_that_executes_comes_to_the_same_verdict(refused, tmp_path):
    """On a chapter with planted differences: some that it has to find, and some that it overlooks."""
    chapter = next(path for path in CHAPTERS if path.stem.endswith("_stories"))
    planted = nbformat.read(chapter.with_suffix(".ipynb"), as_version=4)
    code = [cell for cell in planted.cells if cell.cell_type == "code"]
    checked, others = [], []
    for number, cell in enumerate(code):
        if any(output.output_type == "stream" for output in cell.outputs):
            tagged = "nbval-check-output" in cell.metadata.get("tags", [])
            (checked if tagged else others).append(number)
    changed, emptied, address = checked[:3]
    code[changed].outputs[0].text += "one line more\n"
    code[emptied].outputs = []
    code[address].outputs[0].text += "took 3.5 seconds\n"
    code[address].source += "\nprint('took 0.1 seconds')"
    code[others[0]].outputs[0].text += "not compared\n"
    notebook = tmp_path / chapter.with_suffix(".ipynb").name
    nbformat.write(planted, notebook)

    fresh = executed(chapter)
    ours = [cell for cell in fresh.cells if cell.cell_type == "code"][address]
    ours.source = code[address].source
    ours.outputs[0].text += "took 0.1 seconds\n"
    assert sorted(refused(notebook, fresh)) == [changed, emptied]

    command = "-m pytest --nbval-lax --nbval-current-env --nbval-sanitize-with".split()
    command += [str(SANITIZE), notebook.name]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True
    )
    told = re.findall(r"^FAILED .*::Cell (\d+) -", done.stdout, re.MULTILINE)
    assert sorted(map(int, told)) == [changed, emptied], done.stdout
