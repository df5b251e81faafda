"""The book: rendered without a warning, complete, and of files alone that are its own. How it looks: test_browser.py."""

import functools
import re
from html import escape
from html.parser import HTMLParser
from urllib.parse import urlsplit

import numpy as np
import pytest

from course import book, welcome
from course.export import Chapter, chapters
from course.run import times
from course.search import letters

chapter_of = functools.cache(Chapter.read)  # parsed once in all
PAGES = ["index", *(path.stem for path in chapters()), "glossary", "references"]


class Resources(HTMLParser):
    """What a page loads by itself: scripts, styles, fonts, images, frames; not what a reader may click on."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(
        self, tag: str, attributes: list[tuple[str, str | None]]
    ) -> None:
        values = dict(attributes)
        if tag in (
            "script",
            "img",
            "iframe",
            "source",
            "video",
            "audio",
            "embed",
            "object",
        ):
            self.loaded += [
                values[name] or ""
                for name in ("src", "srcset", "data")
                if name in values
            ]
        if tag == "link" and values.get("rel") in (
            "stylesheet",
            "preload",
            "icon",
            "preconnect",
            "dns-prefetch",
            "prefetch",
        ):
            self.loaded.append(values.get("href") or "")


def test_every_page_is_there(html):
    missing = [
        page
        for page in [*PAGES, "search", "genindex"]
        if not (html / f"{page}.html").exists()
    ]
    assert missing == []


def test_pages_load_only_files_of_the_book(html):
    for page in html.glob("*.html"):
        resources = Resources()
        resources.feed(page.read_text(encoding="utf-8"))
        assert resources.loaded
        for address in resources.loaded:
            parts = urlsplit(address)
            assert (parts.scheme, parts.netloc) in (("", ""), ("data", "")), (
                f"{page.name} loads {address}"
            )
            assert parts.scheme == "data" or (page.parent / parts.path).exists(), (
                f"{page.name} misses {address}"
            )


def test_styles_load_only_files_of_the_book(html):
    styles = list(html.rglob("*.css"))
    assert styles
    for style in styles:
        text = style.read_text(encoding="utf-8")
        addresses = re.findall(r"url\(\s*['\"]?([^)'\"]+)", text) + re.findall(
            r"@import\s+['\"]([^'\"]+)", text
        )
        outside = [
            address for address in addresses if re.match(r"(?:https?:)?//", address)
        ]
        assert outside == [], style.name


def test_welcome_page_shows_what_each_chapter_exports_and_takes(html):
    page = (html / "index.html").read_text(encoding="utf-8")
    for path in chapters():
        chapter = chapter_of(path)
        assert f'href="{path.stem}.html"' in page
        assert all(module in page for module in chapter.exports)
        seconds = f"{times()[path.stem]:.0f}"
        assert f"<p>{seconds}</p>" in page
        own = (html / f"{path.stem}.html").read_text(encoding="utf-8")
        assert own.count(f"code ran in {seconds} seconds") == 1
    assert page.count('class="module"') == sum(
        len(chapter_of(path).exports) for path in chapters()
    )


def test_welcome_page_begins_with_what_one_gets(html):
    """A story of the finished run, its loss and the floor, and three doors, before the first section."""
    story, losses, floor = welcome.finished()
    page = (html / "index.html").read_text(encoding="utf-8")
    first = page[page.index('class="finished-run"') : page.index('id="for-whom"')]
    assert escape(story) in first
    assert f"{losses[-1][1]:.3f}" in first and f"{floor:.3f}" in first
    for door in ("01_attention.html", "#how-to-start", "21_launch.html"):
        assert f'href="{door}"' in first


@pytest.mark.parametrize(
    ("formula", "text"),
    [(r"\sqrt{K}", "sqrt(K)"), (r"\mathbb{R}^V", "R^V"), (r"\frac{a}{b}", "a/b")],
)
def test_the_search_spells_formulas(formula, text):
    assert letters(formula) == text


@pytest.mark.parametrize("chapter", chapters(), ids=lambda path: path.stem)
def test_exported_cells_carry_their_badge(html, chapter):
    page = (html / f"{chapter.stem}.html").read_text(encoding="utf-8")
    cells = chapter_of(chapter).cells
    assert page.count('class="export-badge"') == sum(
        cell.source.startswith("#| export") for cell in cells
    )
    sources = re.findall(r"<pre>.*?</pre>", page, re.DOTALL)
    assert sources and "#| export" not in re.sub(r"<[^>]+>", "", "".join(sources))
    for module in chapter_of(chapter).exports:
        assert f">→ {module}</a></div>" in page
    for address, place in re.findall(
        r'"export-badge"><a href="(.*?)(?:#(.*?))?"', page
    ):
        source = (html / address).read_text(encoding="utf-8")
        assert not place or f'<span id="{place}" class="line">' in source


@pytest.mark.parametrize("chapter", chapters(), ids=lambda path: path.stem)
def test_long_sources_are_folded_exported_or_not(html, chapter):
    page = (html / f"{chapter.stem}.html").read_text(encoding="utf-8")
    cells = chapter_of(chapter).notebook.cells
    folding = {"hide-input", "hide-cell"}
    folded = sum(not folding.isdisjoint(c.metadata.get("tags", [])) for c in cells)
    assert page.count('<details class="admonition hide above-input">') == folded


@pytest.mark.parametrize("chapter", chapters(), ids=lambda path: path.stem)
def test_folds_say_what_they_hold(html, chapter):
    page = (html / f"{chapter.stem}.html").read_text(encoding="utf-8")
    assert "Show code cell" not in page and "Hide code cell" not in page


def test_no_line_runs_through_the_last_label_of_the_loss():
    """It stands at the right, from 280 on, above all of the line there."""
    losses = [(1000, 0.393), (2000, 0.33), (3000, 0.31), (4000, 0.295), (5000, 0.288)]
    drawing = welcome.loss_figure(losses, 0.282)
    baseline = float(re.search(r'y="([\d.]+)" text-anchor="end">the model', drawing)[1])
    points = re.search(r'<polyline points="([^"]+)"', drawing)[1].split()
    x, y = zip(*(map(float, point.split(",")) for point in points), strict=True)
    assert baseline < np.interp(280, x, y) - 5


@pytest.mark.parametrize("chapter", chapters(), ids=lambda path: path.stem)
def test_engine_rooms_are_marked_on_their_page_and_on_the_welcome_page(html, chapter):
    page = (html / f"{chapter.stem}.html").read_text(encoding="utf-8")
    assert ('class="engine-room"' in page) == chapter_of(chapter).engine_room
    rooms = sum(chapter_of(path).engine_room for path in chapters())
    welcome = (html / "index.html").read_text(encoding="utf-8")
    assert welcome.count('class="engine-badge"') == rooms


@pytest.mark.parametrize(
    "old",
    ["chapters/03_gone.ipynb", "chapters/_static/old.css", "html/_sources/old.md"],
)
def test_what_has_no_chapter_leaves_the_book(tmp_path, monkeypatch, old):
    """Its page, too; the other executed notebooks stay, and so does a book in which nothing is left over."""
    build = tmp_path / "_build"
    monkeypatch.setattr(book, "ROOT", tmp_path)
    monkeypatch.setattr(book, "BUILD", build / "chapters")
    monkeypatch.setattr(book, "HTML", build / "html")
    source = ["01_one.py", "01_one.ipynb", "index.md", "_static/a.css"]
    files = [
        *(f"chapters/{name}" for name in source),
        "chapters/.ipynb_checkpoints/a.md",
    ]
    made = ["01_one.ipynb", "index.md", "_static/a.css", "times.json"]
    files += [f"_build/chapters/{name}" for name in made]
    files += ["_build/html/01_one.html", "_build/html/_sources/01_one.ipynb"]
    for file in [*files, "_build/html/_sources/index.md", "_build/.doctrees/a"]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    book.remove_leftovers()
    assert all((tmp_path / file).exists() for file in files)
    (build / old).write_text("")
    book.remove_leftovers()
    assert not (build / old).exists() and not (build / "html").exists()
    assert all((build / "chapters" / name).exists() for name in made)
    assert (tmp_path / "chapters/.ipynb_checkpoints/a.md").exists()
