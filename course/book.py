"""The book: gathers the executed chapters in `_build/chapters`, renders them, and extends Sphinx for that.

As an extension (`course.book` in book.yml) it draws a badge on each exported cell, takes MathJax from an installed
package instead of the network, and computes the welcome page's figure and table.
"""

import html
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

from course import ROOT
from course.export import MARK, Chapter, chapters, module_name
from course.run import BUILD, RunError, times

HTML = ROOT / "_build" / "html"


def build() -> None:
    """Render the book from the executed notebooks into `_build/html`.

    Raises:
        RunError: A chapter has not been executed yet.
        subprocess.CalledProcessError: Sphinx found something wrong; a warning counts.
    """
    missing = [path.stem for path in chapters() if path.stem not in times()]
    if missing:
        raise RunError(f"Not executed yet: {', '.join(missing)}. `python -m course run` executes them.")
    for path in sorted((ROOT / "chapters").rglob("*")):
        target = BUILD / path.relative_to(ROOT / "chapters")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".ipynb") and ".ipynb_checkpoints" not in path.parts:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    jupyter_book = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    options = ["--config", "book.yml", "--path-output", ".", "-W", "-n", "--keep-going", "--quiet"]
    subprocess.run([*jupyter_book, "build", BUILD.relative_to(ROOT), *options], cwd=ROOT, check=True)


class ChapterTable(Directive):
    """The chapters with what each exports and how long it takes."""

    def run(self) -> list[nodes.Node]:
        """Write the table as Markdown, so that Sphinx links the chapters by their titles."""
        seconds = times()
        rows = ["| chapter | exports | seconds |", "|---|---|--:|"]
        for path in chapters():
            exports = ", ".join(f"`{module}`" for module in Chapter.read(path).exports)
            rows.append(f"| {int(path.stem[:2])}. {{doc}}`{path.stem}` | {exports} | {seconds[path.stem]:.0f} |")
        rows.append(f"| all of them | | {sum(seconds[path.stem] for path in chapters()):.0f} |")
        parent = nodes.container(classes=["chapter-table"])
        self.state.nested_parse(StringList(rows, "chapter-table"), self.content_offset, parent)
        return [parent]


class PackageFigure(Directive):
    """How the chapters' cells become the package's modules."""

    def run(self) -> list[nodes.Node]:
        """Draw it from the chapters themselves."""
        return [nodes.raw("", f'<div class="package-figure">{package_figure()}</div>', format="html")]


def package_figure() -> str:
    """An SVG: each chapter a strip of its cells, the exported ones coloured, with lines to their modules."""
    strips = [(Chapter.read(path), list(_cells(path))) for path in chapters()]
    longest = max(sum(lines for lines, _ in cells) for _, cells in strips)
    scale, top, height = 400 / longest, 34, 44
    parts = []
    for row, (chapter, cells) in enumerate(strips):
        y = top + row * height
        parts.append(f'<text x="0" y="{y + 12}" class="name">{row + 1}  {html.escape(chapter.title)}</text>')
        x = 150.0
        for lines, module in cells:
            width = lines * scale
            kind = f"export m{chapter.exports.index(module)}" if module else "cell"
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{max(width - 1, 0.6):.1f}" height="16" class="{kind}"/>')
            x += width
        for number, module in enumerate(chapter.exports):
            y_module = y + 12 + number * 13 - (len(chapter.exports) - 1) * 6.5
            curve = f"M{x + 4:.1f} {y + 8} C{x + 40:.1f} {y + 8} 560 {y_module - 4} 596 {y_module - 4}"
            parts.append(f'<path d="{curve}" class="link m{number}"/>')
            parts.append(f'<text x="602" y="{y_module}" class="module">{module}</text>')
    bottom = top + len(strips) * height
    label = (
        "Nine chapters drawn as strips of cells; the exported cells of each join into the modules named at its right."
    )
    return (
        f'<svg viewBox="0 0 760 {bottom}" role="img" aria-label="{label}">'
        '<text x="150" y="16" class="head">the chapters, cell by cell</text>'
        '<text x="602" y="16" class="head">the package</text>'
        f"{''.join(parts)}</svg>"
    )


def _cells(path: Path) -> Iterator[tuple[int, str | None]]:
    """The lines of each cell of a chapter, and the module that it is exported to, if any."""
    exports = Chapter.read(path).exports
    for cell in jupytext.read(path, fmt="py:percent").cells:
        yield len(cell.source.splitlines()) + 1, _module_of(cell.source, exports) if cell.cell_type == "code" else None


def _module_of(source: str, exports: list[str]) -> str | None:
    """The module that a cell is exported to: the first of the chapter's, or the one that the cell names."""
    mark = MARK.fullmatch(source.partition("\n")[0])
    if not mark or not exports:
        return None
    return next(module for module in exports if mark["name"] in (None, module_name(module)))


def add_badges(app: Any, document: nodes.document) -> None:
    """Replace the `#| export` line of a cell by a badge that names the module."""
    path = ROOT / "chapters" / f"{app.env.docname}.py"
    if not path.exists():
        return
    exports = Chapter.read(path).exports
    for cell in document.findall(lambda node: isinstance(node, nodes.container) and "cell" in node["classes"]):
        for block in cell.findall(nodes.literal_block):
            module = _module_of(block.astext(), exports)
            if module:
                source = block.astext().partition("\n")[2]
                block.rawsource, block.children = source, []
                block += nodes.Text(source)
                cell["classes"].append("exported")
                # behind the source, which has to stay first to be foldable; the style sheet draws it above
                cell.insert(1, nodes.raw("", f'<div class="export-badge">→ {module}</div>', format="html"))
                break


def use_installed_mathjax(app: Any, config: Any) -> None:
    """Serve MathJax from the page's own folder."""
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("sphinx-mathjax-offline is not installed; `make book` installs it.")
    config.html_static_path.append(str(Path(package.origin).parent / "static" / "mathjax" / "tex-svg.js"))
    config.mathjax_path = "tex-svg.js"


def setup(app: Any) -> dict[str, bool]:
    """Register all of it with Sphinx."""
    app.add_directive("chapter-table", ChapterTable)
    app.add_directive("package-figure", PackageFigure)
    app.connect("config-inited", use_installed_mathjax)
    app.connect("doctree-read", add_badges)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
