"""A chapter's two files, text and notebook: which of them was edited, and what to do about it.

A notebook holds a checksum of its cells, written whenever both files are. Where the files differ and the checksum is right,
the text was edited: it counts, and the notebook is written anew from it. Where the checksum is wrong, a program that knows
nothing of the text has edited the notebook, and nothing may overwrite it.
"""

import difflib
import hashlib
import itertools
import json
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from course import ROOT

FORMAT = {"extension": ".py", "format_name": "percent", "comment_magics": False}
"""How a chapter's text is read: a comment stays a comment, also one that looks like a magic, as in `# why?`."""
CHECKSUM = "checksum"
METADATA = ("mystnb", "tags")  # of a cell
CHECKPOINTS = ".ipynb_checkpoints"


def read(chapter: Path) -> NotebookNode:
    """The notebook that a chapter's text describes."""
    notebook = jupytext.reads(chapter.read_text(encoding="utf-8"), fmt=FORMAT)
    notebook.metadata.jupytext.pop("text_representation", None)  # a save drops it
    return notebook


def identity(source: str) -> str:
    """The id of a cell that is written here: it depends on the source alone."""
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def checksum(notebook: NotebookNode) -> str:
    """A hash of all that the text holds of a notebook's cells."""
    return hashlib.sha256(json.dumps(_cells(notebook)).encode()).hexdigest()[:16]


def is_as_written(notebook: NotebookNode) -> bool:
    """Whether a notebook's cells are those with which it was written; without a checksum, the cells' ids tell."""
    if CHECKSUM in notebook.metadata:
        return bool(notebook.metadata[CHECKSUM] == checksum(notebook))
    return all(c.get("id", "").startswith(identity(c.source)) for c in notebook.cells)


def difference(chapter: Path, text: NotebookNode | None = None) -> str:
    """What keeps a chapter's notebook from being written anew from its text: cell, line, and the way out; else empty.

    Args:
        chapter: The path of the text.
        text: What `read` gives for it.
    """
    path = chapter.with_suffix(".ipynb")
    place = f"{path.parent.name}/{path.name}"
    if not path.exists() or not chapter.exists():
        return ""
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception:  # whatever nbformat finds: no JSON, a merge's marks, no notebook
        kept = f"delete it if {chapter.name} is what you want"
        return f"{place}: this is no notebook that can be read; {kept}."
    text = text or read(chapter)
    where = _first_difference(notebook, text)
    if not where:
        return ""
    if _cells(_as_text(notebook, text)) == _cells(text):
        return f"{place}: {where}\n  A text can't hold this line as it stands; change it, and save both files."
    if is_as_written(notebook):
        return ""
    return (
        f"{place}: edited, and {chapter.name} does not have it: {where}\n"
        f"  `{command(f'keep {chapter.name[:2]}')}` takes the notebook's cells over into the text; "
        "to do without them, delete the notebook."
    )


def keep(chapter: Path) -> Path | None:
    """Write a chapter's text from its edited notebook; returns where the text as it was is kept, None if nothing was edited."""
    path, text = chapter.with_suffix(".ipynb"), read(chapter)
    notebook = nbformat.read(path, as_version=4)
    if is_as_written(notebook) or _cells(notebook) == _cells(text):
        return None
    notebook.metadata |= text.metadata
    before = chapter.parent / CHECKPOINTS / f"{chapter.stem}-{time.time_ns()}.py"
    before.parent.mkdir(exist_ok=True)
    before.write_bytes(chapter.read_bytes())
    write(path, notebook)
    chapter.write_text(
        jupytext.writes(notebook, fmt=FORMAT), encoding="utf-8", newline="\n"
    )
    return before


def write(path: Path, notebook: NotebookNode) -> bool:
    """Write a notebook with the checksum of its cells, if the file differs; returns whether it does."""
    notebook.metadata[CHECKSUM] = checksum(notebook)
    text = nbformat.writes(notebook) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.write_text(text, encoding="utf-8", newline="\n")
    return True


def renew(chapter: Path) -> None:
    """Bring the checksum up to date where a program such as `jupytext --sync` has written both files."""
    path = chapter.with_suffix(".ipynb")
    if path.exists():
        notebook = nbformat.read(path, as_version=4)
        if not is_as_written(notebook) and _cells(notebook) == _cells(read(chapter)):
            write(path, notebook)


def command(words: str) -> str:
    """How a command of the course is called from the repository's folder."""
    python = Path(sys.executable)
    inside = python.is_relative_to(ROOT)
    return f"{python.relative_to(ROOT) if inside else 'python'} -m course {words}"


def _cells(notebook: NotebookNode) -> list[tuple[str, str, str]]:
    """What a text holds of each cell: type, source, and the metadata that the book needs; nothing of an empty cell."""
    kept = [{k: c.metadata.get(k) or None for k in METADATA} for c in notebook.cells]
    return [
        (cell.cell_type, cell.source.strip("\n"), json.dumps(metadata, sort_keys=True))
        for cell, metadata in zip(notebook.cells, kept, strict=True)
        if cell.source.strip()
    ]


def _as_text(notebook: NotebookNode, text: NotebookNode) -> NotebookNode:
    """A notebook as it is read back when it was saved as a text, under the other text's header."""
    paired = NotebookNode(notebook | {"metadata": text.metadata})
    return jupytext.reads(jupytext.writes(paired, fmt=FORMAT), fmt=FORMAT)


def _first_difference(notebook: NotebookNode, text: NotebookNode) -> str:
    """The first cell of a notebook that is not its text's, with the first line that differs; empty if there is none."""
    ours, theirs = _cells(notebook), _cells(text)
    steps = difflib.SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes()
    found = next((step for step in steps if step[0] != "equal"), None)
    if found is None:
        return ""
    change, i, _, j, _ = found
    there, here = [*theirs, None][i], [*ours, None][j]
    kind, source, metadata = here or there or ("", "", "")
    name = f"{kind} cell {1 + sum(cell[0] == kind for cell in ours[:j])}"
    opening = source.partition("\n")[0]
    if sorted(ours) == sorted(theirs):
        return f"{name}, which begins {opening!r}, stands at another place."
    if change == "insert":
        return f"{name}, which begins {opening!r}, is not in the text."
    assert there is not None
    if change == "delete":
        opening = there[1].partition("\n")[0]
        return (
            f"before {name}, the cell that begins {opening!r} in the text is missing."
        )
    if kind != there[0]:
        return f"{name} is a {there[0]} cell in the text."
    lines = itertools.zip_longest(source.split("\n"), there[1].split("\n"))
    for line, (mine, other) in enumerate(lines, 1):
        if mine != other:
            return (
                f"{name}, line {line}, is {_shown(mine)}, in the text {_shown(other)}."
            )
    return f"{name} has {metadata}, in the text {there[2]}."


def _shown(line: str | None) -> str:
    return "not there" if line is None else repr(line)
