"""A page for each module with its source as it is imported; the badge of an exported cell leads there.

An extension of Sphinx (`course.sources` in book.yml).
"""

import ast
import html
from collections.abc import Iterator
from typing import Any

from course import ROOT
from course.export import Chapter, added_to, chapters
from course.provenance import defined_names


def address(module: str, cell: str) -> str:
    """Where the source that a cell exports stands, seen from a chapter's page."""
    place = next(iter(places(cell)), "")
    return f"{_page(module)}.html{'#' if place else ''}{place}"


def places(source: str) -> dict[str, int]:
    """What a source defines, a method as `Class.method`, each with the line where it begins."""
    found: dict[str, int] = {}
    for node in ast.parse(source).body:
        call = added_to(node)
        owner = f"{ast.unparse(call.args[0])}." if call else ""
        members = node.body if isinstance(node, ast.ClassDef) else []
        pairs = [(owner + name, node) for name in defined_names(node)]
        pairs += [
            (f"{pairs[0][0]}.{name}", member)
            for member in members
            for name in defined_names(member)
        ]
        for name, begin in pairs:
            decorators = getattr(begin, "decorator_list", [])
            line = min([begin.lineno, *(call.lineno for call in decorators)])
            found.setdefault(name, line)
    return found


def pages(app: Any) -> Iterator[tuple[str, dict[str, str], str]]:
    """The modules' pages, as Sphinx takes them."""
    for path in chapters(ROOT):
        chapter = Chapter.read(path, ROOT)
        for module in chapter.exports:
            source = (ROOT / module).read_text(encoding="utf-8")
            title = html.escape(chapter.title)
            page = app.builder.get_relative_uri(_page(module), path.stem)
            said = f'The package\'s source, exported by <a href="{page}">{title}</a>.'
            body = f"<h1>{module}</h1>\n<p>{said}</p>\n{_marked(app, source)}"
            yield _page(module), {"title": module, "body": body}, "page.html"


def _page(module: str) -> str:
    return f"modules/{module.removesuffix('.py')}"


def _marked(app: Any, source: str) -> str:
    """A source in colours; what it defines can be linked to by name."""
    block: str = app.builder.highlighter.highlight_block(
        source, "python", linespans="line"
    )
    for name, line in places(source).items():
        block = block.replace(
            f'<span id="line-{line}">', f'<span id="{name}" class="line">', 1
        )
    return block


def setup(app: Any) -> dict[str, bool]:
    """Register it with Sphinx."""
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
