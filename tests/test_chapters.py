"""The chapters as they are committed: whole, executed, paired, and each built on earlier ones only."""

import ast
import json
from pathlib import Path

import jupytext
import nbformat
import pytest
from jupytext.compare import compare_notebooks

from course import ROOT
from course.export import Chapter, chapters

CHAPTERS = chapters()
PAIRING = {
    "formats": "ipynb,py:percent",
    "notebook_metadata_filter": "slm,kernelspec,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all",
    "cell_metadata_filter": "tags,-all",
}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}

each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)


def notebook_of(chapter: Path) -> nbformat.NotebookNode:
    return nbformat.read(chapter.with_suffix(".ipynb"), as_version=4)


def test_there_are_nine():
    assert [path.stem[:2] for path in CHAPTERS] == [f"{number:02}" for number in range(1, 10)]
    notebooks = {path.stem for path in (ROOT / "chapters").glob("*.ipynb")}
    assert notebooks == {path.stem for path in CHAPTERS}


@each_chapter
def test_header(chapter):
    """Pairing stands in the file itself, since a server started inside `chapters/` reads no other configuration."""
    metadata = jupytext.read(chapter, fmt="py:percent").metadata
    assert {name: metadata.jupytext.get(name) for name in PAIRING} == PAIRING
    assert metadata.kernelspec == KERNEL
    assert metadata.slm.exports


@each_chapter
def test_length(chapter):
    """A chapter is read in one sitting; what it exports is read where it stands, and counts for itself."""
    exported = [cell for cell in Chapter.read(chapter).cells if cell.source.startswith("#| export")]
    lines = len(chapter.read_text(encoding="utf-8").splitlines())
    assert lines - sum(len(cell.source.splitlines()) + 2 for cell in exported) <= 540


@each_chapter
def test_notebook_is_paired_with_its_text(chapter):
    compare_notebooks(
        jupytext.read(chapter.with_suffix(".ipynb")),
        jupytext.read(chapter, fmt="py:percent"),
        fmt="py:percent",
        allow_expected_differences=True,
        raise_on_first_difference=True,
    )


@each_chapter
def test_notebook_holds_one_whole_run(chapter):
    """nbval compares nothing where outputs were stripped, so the counts have to be there, from first to last."""
    cells = [cell for cell in notebook_of(chapter).cells if cell.cell_type == "code"]
    executed = [cell for cell in cells if "skip-execution" not in cell.metadata.get("tags", [])]
    assert [cell.execution_count for cell in executed] == list(range(1, len(executed) + 1))
    assert all(cell.execution_count is None and not cell.outputs for cell in cells if cell not in executed)
    errors = [output.ename for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert errors == []


@each_chapter
def test_deterministic_outputs_are_checked(chapter):
    """Each chapter has cells whose output nbval compares; a tagged cell without output would compare nothing."""
    tagged = [cell for cell in notebook_of(chapter).cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert tagged
    assert [cell.source for cell in tagged if not cell.outputs] == []


@each_chapter
def test_outputs_hold_no_path_of_a_machine(chapter):
    text = "".join(json.dumps(cell.get("outputs", [])) for cell in notebook_of(chapter).cells)
    found = [place for place in (str(ROOT), "/home/", "/Users/", "/root/", "site-packages") if place in text]
    assert found == []


@each_chapter
def test_first_cell_starts_the_course(chapter):
    assert Chapter.read(chapter).cells[0].source.split() == ["import", "course", "course.start()"]


@each_chapter
def test_imports_only_from_earlier_chapters(chapter):
    """A chapter may use what it exports itself, and what earlier ones export."""
    known = {module for path in CHAPTERS[: CHAPTERS.index(chapter) + 1] for module in Chapter.read(path).exports}
    used = {module for cell in Chapter.read(chapter).cells for module in slm_modules(cell.source)}
    assert used <= known, f"{chapter.name} imports from {sorted(used - known)}"


def slm_modules(source: str) -> set[str]:
    """The files of the package that a cell imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "slm":
            modules = {path.stem for path in (ROOT / "slm").glob("*.py")}
            names = [f"slm.{alias.name}" if alias.name in modules else "slm" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            package, _, module = name.partition(".")
            if package == "slm":
                found.add(f"slm/{module.replace('.', '/') or '__init__'}.py")
            elif package == "modal_app":
                found.add("modal_app.py")
    return found


def test_slm_modules_are_found():
    source = "import slm\nfrom slm.gpt import GPT\nfrom slm import stories\ndef f():\n    import slm.data\n    from modal_app import app\nimport slmx"
    assert slm_modules(source) == {"slm/__init__.py", "slm/gpt.py", "slm/stories.py", "slm/data.py", "modal_app.py"}


@each_chapter
def test_ends_with_what_you_have_now(chapter):
    headings = [
        line
        for cell in notebook_of(chapter).cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("#")
    ]
    assert sum(line.startswith("# ") for line in headings) == 1
    assert "## What you have now" in headings and "## Is it right?" in headings
    assert any(line.startswith("## Exercise") for line in headings)


@each_chapter
def test_measured_time_is_stated(chapter):
    text = chapter.read_text(encoding="utf-8")
    assert "Runs in about " in text and "about NN seconds" not in text
