"""The book's search, as an extension of Sphinx: an index over sections and their prose, and the page that shows what is found.

A page that was opened as a file cannot read another file, but it can load a script. So the index is one. It holds what a
reader reads: headings, paragraphs, captions and terms, and apart from them what a section introduces: the terms for which
the glossary sends a reader there, the words that it emphasises, the names that its exported cells define. No code, no
outputs, no menus. `search.js` loads it when a reader
turns to a search field, and with it `ranking.js`, the field's own formulas: no Python package brings a library for that.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes

from course.provenance import defined_names

HERE = Path(__file__).parent
PAGE = """\
<h1>Search</h1>
<form class="bd-search" action="search.html" method="get" role="search">
<input type="search" class="form-control" name="q" aria-label="Search this book"
autocomplete="off" autocapitalize="off" spellcheck="false">
</form>
<noscript><p>The search needs JavaScript.</p></noscript>
"""


def records(document: nodes.document, page: str) -> list[dict[str, str]]:
    """What the index holds of a page: for each section, and each term of a glossary, its address, titles, prose, names."""
    found: dict[int, dict[str, str]] = {}
    sections = list(document.findall(nodes.section))
    titles = [_plain(section.next_node(nodes.title)) for section in sections]
    for section, title in zip(sections, titles, strict=True):
        anchor = "" if section.parent is document else f"#{section['ids'][0]}"
        found[id(section)] = _record(f"{page}.html{anchor}", title, titles[0])
    for item in document.findall(nodes.definition_list_item):
        terms = [term for term in item.findall(nodes.term) if term["ids"]]
        if terms:
            address = f"{page}.html#{terms[0]['ids'][0]}"
            title = ", ".join(map(_plain, terms))
            found[id(item)] = _record(address, title, titles[0])
    for node in document.findall():
        home = next((found[id(a)] for a in _ancestors(node) if id(a) in found), None)
        if home is None:
            continue
        if "exported" in getattr(node, "attributes", {}).get("classes", []):
            home["names"] += " ".join(_names(node)) + " "
        if isinstance(node, nodes.caption) or (
            isinstance(node, nodes.paragraph)
            and not any(map(_is_cell, _ancestors(node)))
        ):
            marked = node.findall(
                lambda n: isinstance(n, nodes.emphasis | nodes.strong)
            )
            home["terms"] += " ".join(map(_plain, marked)) + " "
            home["text"] += re.sub(r"\s+", " ", _plain(node)).strip() + "\n"
    return list(found.values())


def lessons(document: nodes.document) -> Iterator[tuple[str, str]]:
    """What a glossary says is taught where: the address of a section, and a term."""
    for item in document.findall(nodes.definition_list_item):
        for place in item.findall(nodes.reference):
            if "#term-" not in place.get("refuri", "#term-"):
                yield from (
                    (place["refuri"], _plain(term)) for term in item.findall(nodes.term)
                )


def _record(url: str, title: str, chapter: str) -> dict[str, str]:
    record = {"url": url, "title": title, "chapter": chapter}
    return record | {"taught": "", "names": "", "terms": "", "text": ""}


def _ancestors(node: nodes.Node) -> Iterator[nodes.Node]:
    while node.parent is not None:
        node = node.parent
        yield node


def _is_cell(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"


def _names(cell: nodes.container) -> list[str]:
    """What an exported cell defines."""
    body = ast.parse(cell.next_node(nodes.literal_block).astext()).body
    return [name for statement in body for name in defined_names(statement)]


def _plain(node: nodes.Node) -> str:
    """The text of a node, its formulas in letters."""
    if isinstance(node, nodes.math):
        return letters(node.astext())
    if isinstance(node, nodes.Text):
        return node.astext()
    return "".join(map(_plain, node.children))


def letters(formula: str) -> str:
    r"""A formula as one would type it: `\sqrt{K}` is sqrt(K)."""
    formula = re.sub(r"\\(?:mathbb|mathrm|text|operatorname|hat|bar)\b", "", formula)
    formula = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", formula)
    formula = re.sub(r"(\\[a-z]+)\{([^{}]*)\}", r"\1(\2)", formula)
    return re.sub(r"\\[,;! ]?|[{}]", "", formula)


def write_index(app: Any, error: Exception | None) -> None:
    """Write what all pages hold, also those that were rendered before."""
    if error or app.builder.name != "html":
        return
    index: list[dict[str, str]] = []
    taught: list[tuple[str, str]] = []
    for page in sorted(app.env.found_docs):
        document = app.env.get_and_resolve_doctree(page, app.builder)
        index += records(document, page)
        taught += lessons(document)
    home = {record["url"]: record for record in index}
    for url, term in taught:
        if url in home:  # not an address elsewhere
            home[url]["taught"] += f"{term}\n"
    target = Path(app.outdir) / "_static" / "search_index.js"
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in index)
    target.write_text(f"const SEARCH_INDEX = [\n{lines}\n];\n", encoding="utf-8")


def prepare(app: Any) -> None:
    """Put the book's own search in the place of Sphinx's."""
    app.builder.search = False
    app.add_js_file("search.js", loading_method="defer")
    app.add_css_file("search.css")


def search_page(app: Any) -> Iterator[tuple[str, dict[str, str], str]]:
    """The page that the theme's search fields lead to."""
    yield "search", {"title": "Search", "body": PAGE}, "page.html"


def setup(app: Any) -> dict[str, bool]:
    """Register all of it with Sphinx."""
    for name in ("search.js", "search.css", "ranking.js"):
        app.config.html_static_path.append(str(HERE / name))
    app.connect("builder-inited", prepare)
    app.connect("html-collect-pages", search_page)
    app.connect("build-finished", write_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
