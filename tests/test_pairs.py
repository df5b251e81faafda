"""A chapter's text and its notebook: an edit in either is kept, and the one that would be lost is named."""

import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import jupytext
import nbformat
import pytest
from jupytext.cli import jupytext as jupytext_command
from tornado.web import HTTPError
from traitlets.config.loader import PyFileConfigLoader

from course import ROOT, pairs
from course.export import ExportError, export
from course.lab import METADATA, NEWS

TEXT = """\
# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/one.py
# ---

# %% [markdown]
# # One

# %%
#| export
\"\"\"The number one.\"\"\"

# %% tags=["hide-input"]
#| export
def one() -> int:
    return 1


# %%
one()
"""


@pytest.fixture(params=["checksum", "ids"])
def chapter(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A chapter with its notebook, both as they were written; older notebooks have no checksum, but telling ids."""
    text = tmp_path / "chapters" / "01_one.py"
    text.parent.mkdir()
    text.write_text(TEXT)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    notebook = pairs.read(text)
    for cell in notebook.cells:
        cell.id = pairs.identity(cell.source)
    notebook.metadata |= METADATA
    pairs.write(text.with_suffix(".ipynb"), notebook)
    if request.param == "ids":
        del notebook.metadata[pairs.CHECKSUM]
        nbformat.write(notebook, text.with_suffix(".ipynb"))
    return text


def edit(chapter: Path, change: Callable[[nbformat.NotebookNode], object]) -> None:
    """Change a notebook as a program does that knows nothing of the text."""
    path = chapter.with_suffix(".ipynb")
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)


def error(chapter: Path) -> str:
    with pytest.raises(ExportError) as refused:
        export(chapter.parent.parent)
    return str(refused.value)


def returns_two(notebook: nbformat.NotebookNode) -> None:
    notebook.cells[2].source = notebook.cells[2].source.replace("return 1", "return 2")


def new_cell(source: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(source)


EDITS = {
    "code cell 2, line 3, is '    return 2', in the text '    return 1'": returns_two,
    "code cell 2, line 4, is '    # more', in the text not there": lambda n: n.cells[
        2
    ].update(source=n.cells[2].source + "\n    # more"),
    "markdown cell 1, line 1, is '# Two', in the text '# One'": lambda n: n.cells[
        0
    ].update(source="# Two"),
    "code cell 4, which begins 'two()', is not in the text": lambda n: n.cells.append(
        new_cell("two()")
    ),
    "code cell 1, which begins 'one()', is not in the text": lambda n: n.cells.insert(
        0, new_cell("one()")
    ),
    'code cell 3 has {"mystnb": null, "tags": ["mine"]}, in the text': lambda n: (
        n.cells[3].metadata.update(tags=["mine"])
    ),
}
ORDER = {
    "code cell 2, which begins 'one()', stands at another place": lambda n: (
        n.cells.insert(2, n.cells.pop())
    ),
    "before code cell 2, the cell that begins '#| export' in the text is missing": lambda n: (
        n.cells.pop(2)
    ),
}


@pytest.mark.parametrize(("message", "change"), [*EDITS.items(), *ORDER.items()])
def test_an_edit_of_the_notebook_alone_is_named_and_can_be_kept(
    chapter, message, change
):
    path = chapter.with_suffix(".ipynb")
    edit(chapter, change)
    if pairs.CHECKSUM not in nbformat.read(path, as_version=4).metadata and (
        message in ORDER or "mine" in message
    ):
        return  # ids know nothing of order and tags
    before = path.read_bytes()
    found = error(chapter)
    assert found.startswith("chapters/01_one.ipynb: edited, and 01_one.py does not")
    assert message in found and "course keep 01`" in found
    assert path.read_bytes() == before
    kept = pairs.keep(chapter)
    assert kept and kept.read_text() == TEXT
    assert pairs.difference(chapter) == ""
    change(expected := jupytext.reads(TEXT, pairs.FORMAT))
    assert [(c.source, c.metadata.get("tags")) for c in pairs.read(chapter).cells] == [
        (c.source, c.metadata.get("tags")) for c in expected.cells
    ]
    assert pairs.is_as_written(nbformat.read(path, as_version=4))


def test_an_edit_of_the_text_alone_counts(chapter):
    """As after `git pull`: the notebook is the older one, and is written anew when the chapter runs."""
    before = chapter.with_suffix(".ipynb").read_bytes()
    chapter.write_text(TEXT.replace("return 1", "return 2").replace("# # One", "# # 1"))
    (module,) = export(chapter.parent.parent)
    assert "return 2" in module.source
    assert pairs.keep(chapter) is None and "return 2" in chapter.read_text()
    assert chapter.with_suffix(".ipynb").read_bytes() == before


def test_where_both_were_edited_nothing_is_lost(chapter):
    edit(chapter, returns_two)
    chapter.write_text(mine := TEXT.replace("# # One", "# # My own"))
    assert "edited, and 01_one.py does not have it" in error(chapter)
    kept = pairs.keep(chapter)
    assert kept and kept.read_text() == mine
    assert chapter.read_text() == TEXT.replace("return 1", "return 2")


def test_outputs_and_empty_cells_are_no_edit(chapter):
    def change(notebook):
        notebook.cells[3].outputs = [nbformat.v4.new_output("stream", text="1\n")]
        notebook.cells[3].execution_count = 7
        notebook.cells.append(new_cell(""))
        notebook.metadata["kernelspec"] = {"name": "other", "display_name": "Other"}

    edit(chapter, change)
    export(chapter.parent.parent)


def test_a_notebook_without_checksum_and_with_other_ids_counts_as_edited(chapter):
    """Some programs write ids of their own and drop what they do not know; better asked once too often."""

    def anew(notebook):
        notebook.metadata = {}
        for cell in notebook.cells:
            cell.id = nbformat.v4.new_code_cell().id

    edit(chapter, anew)
    export(chapter.parent.parent)
    chapter.write_text(TEXT.replace("return 1", "return 2"))
    assert "line 3, is '    return 1', in the text '    return 2'" in error(chapter)
    assert pairs.keep(chapter) and chapter.read_text() == TEXT


def test_a_notebook_that_cannot_be_read_is_not_overwritten(chapter):
    chapter.with_suffix(".ipynb").write_text("<<<<<<< HEAD\n{}")
    assert "01_one.ipynb: this is no notebook that can be read; delete it" in error(
        chapter
    )


@pytest.mark.parametrize("line", ["# %% of it", "# In[3]:", "a = '\u2028'", "# # + 1"])
def test_a_line_that_the_text_cannot_hold_is_named(chapter, line):
    """Saved by JupyterLab in both files, and read otherwise from the text."""
    source = f"#| export\nX = 1\n{line}\nY = 2"
    manager = contents_manager(chapter.parent.parent)
    model = manager.get("chapters/01_one.ipynb")
    model["content"]["cells"].append(new_cell(source))
    manager.save(model, "chapters/01_one.ipynb")
    assert f"code cell 4, line 3, is {line!r}, in the text" in error(chapter)
    manager.save(model, "chapters/01_one.ipynb")  # is not refused


def contents_manager(root: Path) -> jupytext.TextFileContentsManager:
    """What serves the chapters under `make lab`."""
    settings = PyFileConfigLoader("lab.py", str(ROOT / "course")).load_config()
    return jupytext.TextFileContentsManager(root_dir=str(root), config=settings)


def test_jupyterlab_asks_nobody_about_news():
    """Its part that does so is left out, by the name that it has there."""
    settings = PyFileConfigLoader("lab.py", str(ROOT / "course")).load_config()
    hook = settings.ServerApp.tornado_settings["page_config_hook"]
    page = {"disabledExtensions": ["a"], "mode": "multiple-document"}
    told = hook(None, page)
    assert told == page | {"disabledExtensions": ["a", NEWS]}
    static = Path(sysconfig.get_path("data"), "share/jupyter/lab/static")
    assert any(f'"{NEWS}"' in path.read_text() for path in static.glob("*.js"))


@pytest.mark.parametrize("opened", [".py", ".ipynb"])
def test_jupyterlab_saves_both_and_overwrites_no_edit_of_others(chapter, opened):
    manager = contents_manager(chapter.parent.parent)
    model = manager.get(f"chapters/01_one{opened}")
    returns_two(model["content"])
    manager.save(model, f"chapters/01_one{opened}")
    assert chapter.read_text() == TEXT.replace("return 1", "return 2")
    chapter.write_text(TEXT)  # the text alone
    export(chapter.parent.parent)

    edit(chapter, lambda notebook: notebook.cells.append(new_cell("solved()")))
    chapter.touch()
    files = [chapter, chapter.with_suffix(".ipynb")]
    before = [file.read_bytes() for file in files]
    with pytest.raises(HTTPError, match="course keep 01"):
        manager.save(model, f"chapters/01_one{opened}")
    assert [file.read_bytes() for file in files] == before
    pairs.keep(chapter)
    model = manager.get(f"chapters/01_one{opened}")
    assert model["content"]["cells"][-1]["source"] == "solved()"
    manager.save(model, f"chapters/01_one{opened}")


def test_a_save_keeps_every_comment(chapter):
    comments = "# why?\n# copy the weights\n# %matplotlib inline\n# !ls\n# x = !ls\n# ?"
    cell = f"#| export\n{comments}\nX = 1"
    chapter.write_text(f"{TEXT}\n# %%\n{cell}\n")
    manager = contents_manager(chapter.parent.parent)
    before = chapter.read_text()
    for opened in ("chapters/01_one.py", "chapters/01_one.ipynb"):
        model = manager.get(opened)
        assert model["content"]["cells"][-1]["source"] == cell
        manager.save(model, opened)
        assert chapter.read_text() == before
    saved = nbformat.read(chapter.with_suffix(".ipynb"), as_version=4)
    assert saved.cells[-1].source == cell


@pytest.mark.parametrize("newer", [".py", ".ipynb"])
def test_without_an_edit_nothing_is_rewritten(chapter, newer):
    """Neither by a save in JupyterLab nor by jupytext, whichever file is the newer one."""
    files = [chapter, chapter.with_suffix(".ipynb")]
    before = [file.read_bytes() for file in files]
    manager = contents_manager(chapter.parent.parent)
    for file in files:
        manager.save(manager.get(f"chapters/{file.name}"), f"chapters/{file.name}")
        assert [file.read_bytes() for file in files] == before
    time = chapter.stat().st_mtime + 10
    os.utime(chapter.with_suffix(newer), (time, time))
    jupytext_command(["--sync", str(chapter)])
    pairs.renew(chapter)
    assert [file.read_bytes() for file in files] == before


def test_jupytext_itself_may_write_both(chapter):
    """`jupytext --sync` knows no checksum; the next export brings it up to date."""
    chapter.write_text(TEXT.replace("return 1", "return 2"))
    jupytext_command(["--sync", str(chapter)])
    notebook = nbformat.read(chapter.with_suffix(".ipynb"), as_version=4)
    assert "return 2" in notebook.cells[2].source
    pairs.renew(chapter)
    chapter.write_text(TEXT.replace("return 1", "return 3"))
    export(chapter.parent.parent)
