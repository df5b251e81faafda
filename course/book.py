"""Render the executed chapters as a book, and extend Sphinx for that.

As an extension (`course.book` in book.yml) it lets chapters link to each other by name, draws a badge on each exported
cell, says of each fold what it holds, and computes the welcome page's figure and table.
"""

import ast
import functools
import html
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx import addnodes

from course import ROOT, drawings, pairs, sources
from course.elsewhere import address, theme_options
from course.export import ENGINE_ROOM, MARK, Chapter, chapters, module_name
from course.modules import dotted
from course.pairs import CHECKPOINTS
from course.provenance import defined_names
from course.run import BUILD, TIMES, RunError, times

HTML = ROOT / "_build" / "html"
ENGINE_BADGE = ' <span class="engine-badge">engine room</span>'


def build(kind: str = "html") -> Path:
    """Render the book from the executed notebooks into `_build/html`, or on one page into `_build/singlehtml`.

    Raises:
        RunError: A chapter has not been executed yet.
        subprocess.CalledProcessError: Sphinx found something wrong; a warning counts.
    """
    missing = [path.stem for path in chapters() if path.stem not in times()]
    if missing:
        raise RunError(
            f"Not executed yet: {', '.join(missing)}. `python -m course run` executes them."
        )
    if not (ROOT / "runs" / "stories_cpu" / "model").is_dir():
        raise RunError(
            "The welcome page tells a story of the trained model, and there is none in runs/stories_cpu. "
            "`python -m course run 11` trains it."
        )
    remove_leftovers()
    for name in _copied():
        (BUILD / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / "chapters" / name, BUILD / name)  # as old as it is
    jupyter_book = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
    ]
    options = [
        "--config",
        "book.yml",
        "--path-output",
        ".",
        "-W",
        "-n",
        "--keep-going",
        "--quiet",
        "--builder",
        kind,
    ]
    subprocess.run(
        [*jupyter_book, "build", BUILD.relative_to(ROOT), *options],
        cwd=ROOT,
        check=True,
        start_new_session=True,  # Ctrl-C ends it without its last words
    )
    return ROOT / "_build" / kind


def remove_leftovers() -> None:
    """Remove what an earlier build made of chapters and files that are there no more; pages are then rendered anew."""
    kept = {*_copied(), TIMES, *(f"{path.stem}.ipynb" for path in chapters(ROOT))}
    there = [path for path in BUILD.rglob("*") if path.is_file()]
    old = [path for path in there if path.relative_to(BUILD).as_posix() not in kept]
    for path in old:
        path.unlink()
    sources = HTML / "_sources"
    pages = {path.relative_to(sources).as_posix() for path in sources.rglob("*.*")}
    if old or not pages <= kept:
        for folder in ("html", ".doctrees", "jupyter_execute"):
            shutil.rmtree(ROOT / "_build" / folder, ignore_errors=True)


def _copied() -> list[str]:
    """What the book needs besides the executed notebooks, as it lies in `chapters/`."""
    folder = ROOT / "chapters"
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix not in (".py", ".pyc", ".ipynb")
        and CHECKPOINTS not in path.parts
    ]


class ChapterTable(Directive):
    """The chapters with what each exports and how long it takes."""

    def run(self) -> list[nodes.Node]:
        """Write the table as Markdown, so that Sphinx links the chapters by their titles."""
        self.state.document.settings.env.note_dependency(str(BUILD / TIMES))
        seconds, found = times(), chapters(ROOT)
        rows = ["| chapter | exports | seconds |", "|---|---|--:|"]
        for path in found:
            chapter = Chapter.read(path, ROOT)
            exports = "<br>".join(f"`{module}`" for module in chapter.exports)
            mark = ENGINE_BADGE if chapter.engine_room else ""
            link = f"{{doc}}`{path.stem}`{mark}"
            rows.append(f"| {link} | {exports} | {seconds[path.stem]:.0f} |")
        total = sum(seconds[path.stem] for path in found)
        rows.append(f"| all of them | | {total:.0f} |")
        parent = nodes.container(classes=["chapter-table"])
        self.state.nested_parse(
            StringList(rows, "chapter-table"), self.content_offset, parent
        )
        return [parent]


class PackageFigure(Directive):
    """How the chapters' cells become the package's modules."""

    def run(self) -> list[nodes.Node]:
        """Draw it from the chapters themselves."""
        box = '<div class="package-figure drawing pst-scrollable-table-container">'
        drawn = nodes.raw("", f"{box}{package_figure()}</div>", format="html")
        told = (
            "Each chapter from its first cell to its last, and the modules that it "
            "exports. A cell goes to the module of its colour; the thin ones stay."
        )
        figure = nodes.figure("", drawn, nodes.caption(told, told))
        self.options["name"] = "fig-package"
        self.add_name(figure)
        return [figure]


def package_figure() -> str:
    """An SVG: each chapter a strip of its cells, the exported ones coloured, with lines to their modules."""
    strips = [(Chapter.read(path, ROOT), list(_cells(path))) for path in chapters(ROOT)]
    longest = max(sum(lines for lines, _ in cells) for _, cells in strips)
    scale, y, parts = 400 / longest, 34.0, []
    for chapter, cells in strips:
        title, x = html.escape(chapter.title), 150.0
        parts.append(f'<text x="0" y="{y + 12}" class="name">{title}</text>')
        for lines, module in cells:
            width = max(lines * scale - 1, 0.6)
            kind = f"export m{chapter.exports.index(module)}" if module else "cell"
            top, height = (y, 16) if module else (y + 5, 6)
            box = f'x="{x:.1f}" y="{top}" width="{width:.1f}" height="{height}"'
            parts.append(f'<rect {box} class="{kind}"/>')
            x += lines * scale
        for number, module in enumerate(chapter.exports):
            y_module = y + 12 + number * 15
            ends = f"560 {y_module - 4} 596 {y_module - 4}"
            curve = f"M{x + 4:.1f} {y + 8} C{x + 40:.1f} {y + 8} {ends}"
            parts.append(f'<path d="{curve}" class="link m{number}"/>')
            parts.append(f'<text x="602" y="{y_module}" class="module">{module}</text>')
        y += 17 + 15 * len(chapter.exports)
    modules = sum(len(chapter.exports) for chapter, _ in strips)
    label = (
        f"{len(strips)} chapters drawn as strips of cells; the exported cells of each join "
        f"into its modules, named at its right: {modules} modules in all."
    )
    return (
        f'<svg viewBox="0 0 800 {y:.0f}" role="img" aria-label="{label}">'
        '<text x="150" y="16" class="head">the chapters, cell by cell</text>'
        '<text x="602" y="16" class="head">the package</text>'
        f"{''.join(parts)}</svg>"
    )


def _cells(path: Path) -> Iterator[tuple[int, str | None]]:
    """The lines of each cell of a chapter, and the module that it is exported to, if any."""
    exports = Chapter.read(path, ROOT).exports
    for cell in pairs.read(path).cells:
        yield (
            len(cell.source.splitlines()) + 1,
            _module_of(cell.source, exports) if cell.cell_type == "code" else None,
        )


def _module_of(source: str, exports: list[str]) -> str | None:
    """The module that a cell is exported to: the first of the chapter's, or the one that the cell names."""
    mark = MARK.fullmatch(source.partition("\n")[0])
    if not mark or not exports:
        return None
    return next(
        module for module in exports if mark["name"] in (None, module_name(module))
    )


def dress(app: Any, document: nodes.document) -> None:
    """Finish a page: its name as a label, drawings, badges, what a fold holds, and links from modules to their chapters."""
    page = app.env.docname
    std = app.env.domains["std"]
    std.anonlabels[anchor(page)] = (page, "")
    std.labels[anchor(page)] = (page, "", app.env.titles[page].astext())
    drawings.put_into_page(document, Path(app.srcdir))
    path = ROOT / "chapters" / f"{page}.py"
    chapter = Chapter.read(path, ROOT) if path.exists() else None
    for cell in document.findall(nodes.container):
        if cell.get("nb_element") == "cell_code":
            _name_fold(cell)
            if chapter:
                _add_badge(cell, chapter.exports)
    if chapter:
        _tell_time(document, times().get(page))
    if chapter and chapter.engine_room:
        _mark_engine_room(document)
    _link_modules(document, page)


def anchor(page: str) -> str:
    """The name by which chapters link to a chapter: 07_corpora is `[…](#corpora)`."""
    return re.sub(r"^\d+_", "", page)


def fold_summary(source: str) -> str:
    """What a folded cell holds, told by its code; a chapter may say it better, as `code_prompt_show`."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a cell with a magic
        return "The code of this cell"
    imports = (ast.Import, ast.ImportFrom)
    if all(isinstance(node, imports) or is_text(node) for node in body):
        return "Imports"
    names = [name for node in body for name in defined_names(node)]
    if names:
        rest = " and more" if len(names) > 4 else ""
        return f"The code of {', '.join(names[:4])}{rest}"
    return "The code of this cell"


def is_text(node: ast.stmt) -> bool:
    """Whether a statement is only a text, such as a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _name_fold(cell: nodes.container) -> None:
    """Say the same of a fold whether it is open or closed: what is inside."""
    if not cell.get("hide_mode"):
        return
    if cell["prompt_show"].startswith("Show code cell"):
        cell["prompt_show"] = fold_summary(_source(cell).astext())
    cell["prompt_hide"] = cell["prompt_show"]


def _source(cell: nodes.container) -> nodes.literal_block:
    return next(cell.findall(nodes.literal_block))


def _add_badge(cell: nodes.container, exports: list[str]) -> None:
    """Replace the `#| export` line of a cell by a badge that names the module."""
    block = _source(cell)
    module = _module_of(block.astext(), exports)
    if module:
        source = block.astext().partition("\n")[2]
        block.rawsource, block.children = source, []
        block += nodes.Text(source)
        cell["classes"].append("exported")
        link = f'<a href="{sources.address(module, source)}">→ {module}</a>'
        badge = f'<div class="export-badge">{link}</div>'
        # behind the source, which has to stay first to be foldable; the style sheet draws it above
        cell.insert(1, nodes.raw("", badge, format="html"))


def _tell_time(document: nodes.document, seconds: float | None) -> None:
    """Say below a chapter's goal how long its execution took, the number of the welcome page."""
    goal = next(iter(document.findall(nodes.paragraph)), None)
    if goal is not None and seconds is not None:
        told = f"All of its code ran in {seconds:.0f} seconds for this page."
        line = nodes.paragraph("", "", nodes.emphasis("", told), classes=["ran-in"])
        goal.parent.insert(goal.parent.index(goal) + 1, line)


def _mark_engine_room(document: nodes.document) -> None:
    """Draw the line that says so as a badge."""
    for paragraph in document.findall(nodes.paragraph):
        if ENGINE_ROOM in paragraph.astext():
            paragraph["classes"].append("engine-room")
            return


@functools.cache
def _homes() -> dict[str, str]:
    """Each module, as a file and as Python names it, with the chapter that exports it."""
    homes: dict[str, str] = {}
    for path in chapters(ROOT):
        for module in Chapter.read(path, ROOT).exports:
            homes |= dict.fromkeys((module, dotted(module)), path.stem)
    return homes


def _link_modules(document: nodes.document, page: str) -> None:
    """Make each module that is named in the text a link to the chapter that exports it, on other pages."""
    for name in list(document.findall(nodes.literal)):
        home = _homes().get(name.astext(), page)
        if home != page and not isinstance(name.parent, nodes.reference):
            link = addnodes.pending_xref(refdoc=page, refdomain=None, refexplicit=True)
            link["reftype"], link["reftarget"] = "myst", anchor(home)
            link += nodes.inline("", "", name.deepcopy())
            name.parent.replace(name, link)


def link_repository(app: Any, config: Any) -> None:
    """Link each page to the repository and to Colab, if pyproject.toml says where it is."""
    config.html_theme_options |= theme_options(address())


def setup(app: Any) -> dict[str, bool]:
    """Register all of it with Sphinx."""
    app.connect("config-inited", link_repository)
    app.add_directive("chapter-table", ChapterTable)
    app.add_directive("package-figure", PackageFigure)
    app.connect("doctree-read", dress)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
