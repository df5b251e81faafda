"""Link what the text names: sections, terms, papers, and what the package defines.

As an extension (`course.links` in book.yml) it gives each section of a page a label, `[…](#gpt/what-a-token-costs)`, and
links by itself: the first use on a page of each term of the glossary, each paper of the references wherever it is named,
and each name in backticks that one other chapter exports.
"""

import ast
import functools
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.util.nodes import clean_astext

from course import ROOT
from course.book import anchor
from course.export import MARK, Chapter, chapters, module_name
from course.modules import dotted
from course.provenance import defined_names

GLOSSARY, REFERENCES = "glossary", "references"
LINKS = (nodes.reference, addnodes.pending_xref)
NO_PROSE = (*LINKS, nodes.literal, nodes.math, nodes.raw, nodes.title)
NO_FIRST_USE = (*NO_PROSE, nodes.entry, nodes.caption, nodes.legend)
PAPER = re.compile(r"(?P<authors>.+) (?P<year>\d{4})")
PLAIN = (
    "a prompt on a machine",
    "activation function",
    "at a loss",
    "by rank",
    "in your head",
    "never prompts",
    "pays attention",
    "token that is no longer valid",
    "vocabulary of axes",
)
"""Phrases in which a word is not the term that is written like it."""
DOCSTRING = re.compile(r'(?<=<span class="sd">)[^<]+')


@dataclass(frozen=True)
class Entry:
    """A term or a paper: where it stands, and what is said of it there."""

    page: str
    place: str
    forms: tuple[str, ...]
    said: str

    @property
    def pattern(self) -> str:
        """How a text may write it: a term also in the plural, a paper with its year in brackets or without one."""
        return "|".join(map(_pattern, self.forms))


class Lookup(nodes.reference):
    """A link that shows what is said at its end."""


def label(app: Any, document: nodes.document) -> None:
    """Give a label to each section of a page, and to each name that is exported there."""
    page = app.env.docname
    std = app.env.domains["std"]
    labels = std.anonlabels
    for chapter in chapters(ROOT):  # whose name leads to the chapter, term or not
        std.objects.pop(("term", anchor(chapter.stem)), None)
    for section in document.findall(nodes.section):
        place = section["ids"][0]
        labels[f"{anchor(page)}/{place}"] = (page, place)
        title = clean_astext(section[0])
        std.labels[f"{anchor(page)}/{place}"] = (page, place, title)
    path = ROOT / "chapters" / f"{page}.py"
    exports = Chapter.read(path, ROOT).exports if path.exists() else []
    modules = {module_name(module): dotted(module) for module in exports}
    for block in _sources(document):
        first, _, source = block.astext().partition("\n")
        mark, section = MARK.fullmatch(first), _above(block, nodes.section)
        if mark and modules and section is not None:
            module = modules[mark["name"] or next(iter(modules))]
            for name in _defined(source):
                labels.setdefault(f"{module}.{name}", (page, section["ids"][0]))


def write_all(app: Any, env: Any, changed: list[str]) -> None:
    """Where one page has changed all are written anew, since each may name what is told there."""
    if changed:
        app.connect("env-updated", lambda app, env: sorted(env.found_docs))


def link(app: Any, document: nodes.document, page: str) -> None:
    """Link the names, the papers and the terms of a page to where they are told."""
    uri = functools.partial(app.builder.get_relative_uri, page)
    _link_names(document, page, _exported(app.env), uri)
    papers = [entry for entry in _entries(app.env) if entry.page == REFERENCES]
    terms = [entry for entry in _entries(app.env) if entry.page == GLOSSARY]
    if page != REFERENCES:
        _link_entries(document, nodes.TextElement, NO_PROSE, papers, uri, once=False)
        if page != GLOSSARY:
            _link_entries(
                document, nodes.paragraph, NO_FIRST_USE, terms, uri, once=True
            )


def link_docstrings(
    app: Any, page: str, template: str, context: dict[str, Any], document: Any
) -> None:
    """Link the papers that the code of a page names as its sources."""
    papers = [entry for entry in _entries(app.env) if entry.page == REFERENCES]
    if not papers or "body" not in context:
        return
    pattern = _any(papers)

    def linked(found: re.Match[str]) -> str:
        entry = _which(found, papers)
        if entry is None:
            return found[0]
        address = f"{app.builder.get_relative_uri(page, entry.page)}#{entry.place}"
        said = html.escape(entry.said)
        return f'<a class="paper" href="{address}" title="{said}">{found[0]}</a>'

    context["body"] = DOCSTRING.sub(
        lambda text: pattern.sub(linked, text[0]), context["body"]
    )


def _link_names(
    document: nodes.document, page: str, homes: dict[str, tuple[str, str]], uri: Any
) -> None:
    """Link a name that the page imports or gives with its module, or one in capitals that it does not bind itself."""
    bound, imported = _names(document)
    for code in list(document.findall(nodes.literal)):
        whole = code.astext().partition("(")[0]
        name = next((n for n in (whole, whole.rpartition(".")[0]) if n in homes), "")
        if not name or homes[name][0] == page or _above(code, *LINKS, nodes.title):
            continue
        own = name.islower() or name in bound
        if not own or name in imported or name.startswith(("slm.", "modal_app.")):
            home, place = homes[name]
            target = nodes.reference("", "", internal=True, classes=["name"])
            target["refuri"] = f"{uri(home)}#{place}"
            code.replace_self(target)
            target += code


def _link_entries(
    document: nodes.document,
    kind: type,
    apart: tuple[type, ...],
    entries: list[Entry],
    uri: Any,
    once: bool,
) -> None:
    """Link entries in all texts of a kind but those that stand apart."""
    if not entries:
        return
    pattern, seen = _any(entries), set()
    whole = {form: entry for entry in entries for form in entry.forms}
    _join_lines(document)
    for text in list(document.findall(nodes.Text)):
        within, parts, at = text.parent, [], 0
        if isinstance(within, nodes.literal) and within.astext() in whole:
            entry = whole[within.astext()]
            if entry not in seen and not _above(within, *apart) and _above(text, kind):
                seen.add(entry)
                lookup = _lookup(entry, uri, within.deepcopy())
                within.parent.replace(within, lookup)
            continue
        if not _above(text, kind) or _above(text, *apart) or _printed(text):
            continue
        for found in pattern.finditer(text):
            which = _which(found, entries)
            if which and not (once and which in seen):
                seen.add(which)
                parts += [nodes.Text(text[at : found.start()])]
                parts += [_lookup(which, uri, nodes.Text(found[0]))]
                at = found.end()
        if parts:
            within.replace(text, [*parts, nodes.Text(text[at:])])


def _lookup(entry: Entry, uri: Any, child: nodes.Node) -> Lookup:
    kind = "paper" if entry.page == REFERENCES else "term"
    lookup = Lookup("", "", child, internal=True, said=entry.said, classes=[kind])
    lookup["refuri"] = f"{uri(entry.page)}#{entry.place}"
    return lookup


@functools.lru_cache(maxsize=1)
def _entries(env: Any) -> list[Entry]:
    """The terms of the glossary and the papers of the references, longest first, where the book has such pages."""
    found = []
    for page in {GLOSSARY, REFERENCES} & set(env.found_docs):
        for item in env.get_doctree(page).findall(nodes.definition_list_item):
            terms = list(item.findall(nodes.term))
            said = next(item.findall(nodes.paragraph)).astext().replace("\n", " ")
            forms = tuple(term.astext() for term in terms)
            found.append(Entry(page, terms[0]["ids"][0], forms, said))
    return sorted(found, key=lambda entry: -max(map(len, entry.forms)))


@functools.lru_cache(maxsize=1)
def _exported(env: Any) -> dict[str, tuple[str, str]]:
    """Each name that the package defines once, and each with its module, with the section that exports it."""
    places: dict[str, set[tuple[str, str]]] = {}
    for name, place in env.domains["std"].anonlabels.items():
        if re.match(r"slm\.|modal_app\.", name):
            for form in (name, name.rpartition(".")[2]):
                places.setdefault(form, set()).add(tuple(place))
    return {
        form: found.pop()
        for form, found in places.items()
        if len(found) == 1 and len(form) > 1  # a letter is an axis, everywhere
    }


def _any(entries: list[Entry]) -> re.Pattern[str]:
    """Any of the entries; the group that matched has its number."""
    groups = [phrase.replace(" ", r"\s+") for phrase in PLAIN]
    groups += [f"(?P<e{k}>{entry.pattern})" for k, entry in enumerate(entries)]
    return re.compile(rf"(?<![\w-])(?:{'|'.join(groups)})(?!\w|-\w)")


def _which(found: re.Match[str], entries: list[Entry]) -> Entry | None:
    """The entry that was found, or none in a phrase that means something else."""
    return entries[int(found.lastgroup[1:])] if found.lastgroup else None


def _pattern(form: str) -> str:
    pattern = re.escape(form).replace(r"\ ", r"\s+")
    if paper := PAPER.fullmatch(form):
        year = paper["year"]
        authors = re.escape(paper["authors"]).replace(r"\ ", r"\s+")
        return rf"{authors}(?:\s+{year}|\s+\({year}\))"
    if form[0].islower():
        pattern = f"[{form[0]}{form[0].upper()}]{pattern[1:]}"
    return f"{pattern[:-1]}(?:y|ies)" if form.endswith("y") else f"{pattern}(?:e?s)?"


def _join_lines(document: nodes.document) -> None:
    """Make one text of those that only a line's end divides, since a term may stand on both sides of it."""
    for element in document.findall(nodes.TextElement):
        joined: list[nodes.Node] = []
        for child in element.children:
            if (
                joined
                and isinstance(child, nodes.Text)
                and isinstance(joined[-1], nodes.Text)
            ):
                joined[-1] = nodes.Text(joined[-1] + child)
            else:
                joined.append(child)
        element[:] = joined


def _sources(document: nodes.document) -> Iterator[nodes.literal_block]:
    """The code of a page's cells."""
    for cell in document.findall(nodes.container):
        if cell.get("nb_element") == "cell_code":
            yield next(cell.findall(nodes.literal_block))


def _names(document: nodes.document) -> tuple[set[str], set[str]]:
    """What the code of a page binds by itself, and what it imports from the package."""
    bound: set[str] = set()
    imported: set[str] = set()
    for block in _sources(document):
        try:
            tree = ast.parse(block.astext())
        except SyntaxError:  # a cell with a magic
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "slm"
            ):
                imported |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                bound.add(node.id)
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                bound.add(node.name)
    return bound, imported


def _defined(source: str) -> list[str]:
    """What a cell defines for others."""
    names = [name for node in ast.parse(source).body for name in defined_names(node)]
    return [name for name in names if not name.startswith("_")]


def _printed(node: nodes.Node) -> bool:
    """Whether it is what a cell printed."""
    cell = _above(node, nodes.container)
    return cell is not None and str(cell.get("nb_element")).startswith("cell")


def _above(node: nodes.Node, *kinds: type) -> Any:
    """The nearest node above one that is of one of these kinds."""
    while node.parent is not None and not isinstance(node.parent, kinds):
        node = node.parent
    return node.parent


def visit_lookup(writer: Any, node: Lookup) -> None:
    """A link with what it shows."""
    said = {"data-said": node["said"], "aria-description": node["said"]}
    writer.body.append(
        writer.starttag(node, "a", "", CLASS="lookup", href=node["refuri"], **said)
    )


def depart_lookup(writer: Any, node: Lookup) -> None:
    """Its end."""
    writer.body.append("</a>")


def setup(app: Any) -> dict[str, Any]:
    """Register all of it with Sphinx."""
    app.add_node(Lookup, html=(visit_lookup, depart_lookup))
    app.connect("doctree-read", label, priority=400)  # while the code has its marks
    app.connect("env-before-read-docs", write_all)
    app.connect("doctree-resolved", link)
    app.connect("html-page-context", link_docstrings)
    app.add_css_file("links.css")
    app.add_js_file("links.js", loading_method="defer")
    made = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    return {
        "env_version": made,  # what other machinery made of the pages is not kept
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
