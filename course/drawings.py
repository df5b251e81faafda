"""Figures in the book: each SVG becomes a part of its page, in the colours and the letters of the page.

An image cannot know which theme a reader has chosen, its text is no text to a browser, and it shrinks with the page. So the
drawing is put into the page itself, its colours replaced by the style sheet's variables, with the alternative text as its name.
"""

import hashlib
import re
from pathlib import Path
from xml.etree import ElementTree

from docutils import nodes

from course.plots import COLORS, INK, PAPER

VARIABLES = {color: f"var(--figure-{n})" for n, color in enumerate(COLORS)} | {
    INK: "var(--figure-ink)",
    PAPER: "var(--figure-paper)",
}
SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}href"
FAMILY = re.compile(r"font-family: ([^;]*)")
COLOR = re.compile(r"#[0-9a-f]{6}\b")
REFERENCE = re.compile(r"url\(#([^)]+)\)")


def put_into_page(document: nodes.document, source: Path) -> None:
    """Replace each SVG image that a cell has drawn by the drawing itself.

    Args:
        document: A page that was read.
        source: The folder that the images' addresses start from.
    """
    for image in list(document.findall(nodes.image)):
        if _is_of_a_cell(image) and image["uri"].endswith(".svg"):
            path = source / image["uri"].lstrip("/")
            svg = drawing(path.read_text(encoding="utf-8"), image.get("alt", ""))
            # a class of the theme, whose script makes it a tab stop where it scrolls
            box = '<div class="drawing pst-scrollable-table-container">'
            image.replace_self(nodes.raw("", f"{box}{svg}</div>", format="html"))


def _is_of_a_cell(node: nodes.Node | None) -> bool:
    while node is not None and "mime_type" not in getattr(node, "attributes", {}):
        node = node.parent
    return node is not None


def drawing(text: str, alt: str) -> str:
    """matplotlib's SVG as a part of a page: names of its own, the page's colours and letters, and a text for who does not see it."""
    ElementTree.register_namespace("", SVG.strip("{}"))
    root = ElementTree.fromstring(text)
    for child in root.findall(f"{SVG}metadata"):
        root.remove(child)
    for definitions in root.findall(f"{SVG}defs"):
        for style in definitions.findall(f"{SVG}style"):
            definitions.remove(style)  # it would count for the whole page
    _rename(root, hashlib.sha256(text.encode()).hexdigest()[:8])
    for element in root.iter():
        if look := element.get("style"):
            look = COLOR.sub(_color, FAMILY.sub(_family, look))
            element.set("style", look)
    root.set("role", "img")
    root.set("aria-label", alt)
    return ElementTree.tostring(root, encoding="unicode").replace("\n", "")


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Keep the names that something refers to, and make them the page's only ones."""
    used = {
        name
        for element in root.iter()
        for value in element.attrib.values()
        for name in REFERENCE.findall(value)
    }
    used |= {e.get(XLINK, "").lstrip("#") for e in root.iter()}
    for element in root.iter():
        if (name := element.attrib.pop("id", None)) in used:
            element.set("id", f"{prefix}-{name}")
        if target := element.attrib.pop(XLINK, ""):
            element.set("href", f"#{prefix}-{target.lstrip('#')}")
        for key, value in element.attrib.items():
            element.set(key, REFERENCE.sub(rf"url(#{prefix}-\1)", value))


def _family(found: re.Match[str]) -> str:
    """The page's own letters; letters of one width stay so."""
    mono = "font-family: var(--pst-font-family-monospace)"
    return mono if "Mono" in found[1].partition(",")[0] else ""


def _color(found: re.Match[str]) -> str:
    return VARIABLES.get(found[0], found[0])
