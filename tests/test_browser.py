"""The book in a real browser: nothing is cut off, nothing leaves, everybody can read it, and the search finds what is asked for.

Each page is opened once, and all is measured there; the tests below look at what came. A failure names the page, the width
and the element.
"""

import contextlib
import functools
import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.base import AXE_SCRIPT

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no browser on this machine; `apt-get install chromium` brings one",
)

WIDTHS = (1280, 1920, 768, 390)  # as a page is opened, then by the least laying out
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
MOST_BYTES = 2_500_000
MOST_MILLISECONDS = 300_000  # that a busy machine may take to show something
QUERIES = Path(__file__).parent / "pages" / "queries.txt"

MEASURES = (Path(__file__).parent / "browser.js").read_text(encoding="utf-8")


class Server(http.server.ThreadingHTTPServer):
    """Serves the book on this machine and remembers what was not found."""

    def __init__(self, folder: Path) -> None:
        self.missing: list[str] = []
        handler = functools.partial(Handler, directory=str(folder))
        super().__init__(("127.0.0.1", 0), handler)


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        if int(code) >= 400:
            self.server.missing.append(self.path)

    def log_error(self, format: str, *arguments: object) -> None:
        """Errors are in `missing` already."""


@pytest.fixture(scope="module")
def server(html: Path) -> Iterator[Server]:
    server = Server(html)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def a_browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # no name resolves, so nothing leaves this machine; scroll bars are drawn as for a reader
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            timeout=MOST_MILLISECONDS,
            args=[
                "--no-sandbox",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            ],
            ignore_default_args=["--hide-scrollbars"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with a_browser() as browser:
        yield browser


class Visit:
    """A tab of the browser, what its page asked for, and what went wrong."""

    def __init__(self, browser: Any) -> None:
        self.tab = browser.new_page(viewport={"width": 1280, "height": 900})
        self.tab.set_default_timeout(MOST_MILLISECONDS)
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.looks: list[str] = []  # pairs of ink and paper that axe has been asked of
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("websocket", lambda socket: self.asked.append(socket.url))
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on(
            "console",
            lambda said: said.type == "error" and self.errors.append(said.text),
        )

    def forget(self) -> None:
        """Before the tab goes to another page."""
        self.asked, self.errors = [], []

    def leaving(self, host: str = "") -> list[str]:
        """The addresses outside the book: all but files, and those of one host."""
        parts = map(urlsplit, self.asked)
        inside = ("file", "data", "blob")
        return [
            part.geturl()
            for part in parts
            if part.scheme not in inside and part.netloc != (host or None)
        ]

    def weight(self) -> int:
        """Bytes of all files that the page has loaded."""
        paths = {
            unquote(urlsplit(url).path) for url in self.asked if url[:5] == "file:"
        }
        return sum(Path(path).stat().st_size for path in paths if Path(path).is_file())


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    visit = Visit(browser)
    yield visit
    visit.tab.close()


@pytest.fixture(scope="module")
def seen(html: Path) -> dict[str, dict[str, Any]]:
    """What each page shows, by its name; two browsers share the pages, so that both cores of a laptop work."""
    modules = sorted((html / "modules").rglob("*.html"))
    paths = [*sorted(html.glob("*.html")), *modules[:1]]
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(look_at, (paths[::2], paths[1::2]))
    return dict(sorted({**one, **other}.items()))


def look_at(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """What these pages show, at each width, in the light and in the dark.

    One tab goes through them. What axe is asked comes last, since the page is thinned for it: most of its time would go
    into thousands of words of code that look alike.
    """
    with a_browser() as browser:
        visit = Visit(browser)
        return {path.stem: look_at_page(visit, path) for path in paths}


def look_at_page(visit: Visit, path: Path) -> dict[str, Any]:
    tab = visit.tab
    visit.forget()
    tab.goto(path.as_uri())
    found: dict[str, Any] = {"weight": visit.weight(), "axe": []}
    found |= {"cut": {}, "sideways": {}, "labels": {}}
    tab.add_script_tag(content=AXE_SCRIPT)
    tab.add_script_tag(content=MEASURES)
    tab.evaluate(
        "for (const fold of document.querySelectorAll('details')) fold.open = true"
    )
    found["unexplained"] = tab.evaluate("unexplained()")
    for width in WIDTHS:
        tab.set_viewport_size({"width": width, "height": 900})
        found["cut"][width] = tab.evaluate("cutOff()")
        found["sideways"][width] = tab.evaluate("sideways()")
        found["labels"][width] = tab.evaluate("labels()")
    tab.evaluate("thin()")
    # the rules about shape in the light at one width, in the dark at the other; contrast in all four states
    for width, themes in ((390, ("light", "dark")), (1280, ("dark", "light"))):
        tab.set_viewport_size({"width": width, "height": 900})
        found["axe"] += violations(visit, "shape", f"{width}")
        for theme in themes:
            set_theme(tab, theme)
            found["axe"] += violations(visit, "inks", f"{width} {theme}")
    found["errors"], found["leaving"] = visit.errors, visit.leaving()
    return found


def set_theme(tab: Any, theme: str) -> None:
    """Change it, and be done with what fades from one to the other."""
    tab.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    tab.evaluate("document.getAnimations().forEach((fading) => fading.finish())")


def violations(
    visit: Visit, kind: str, state: str = "", within: str = "html"
) -> list[str]:
    """What axe finds in a part of a page as it is now: in its shape, or in the inks that this tab has not shown before."""
    asked = [RULES, kind, within, visit.looks]
    found = visit.tab.evaluate("asked => violations(...asked)", asked)
    visit.looks += found["asked"]
    return [f"{state}: {text}" for text in found["broken"]]


def told(found: list[str]) -> str:
    """A failure's message: how many, and each on a line."""
    return "\n".join([f"{len(found)}:", *found[:60]])


@pytest.mark.parametrize("width", WIDTHS)
def test_no_cell_is_cut_off(seen, width):
    """Below 1280 pixels a box may scroll, if it shows a scroll bar; from there on nothing is wider than its box."""
    cut = [
        f"{page} at {width}: {kind}, {element}"
        for page, found in seen.items()
        for kind, element in found["cut"][width]
        if kind == "cut" or width >= 1280
    ]
    assert not cut, told(cut)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_scrolls_sideways(seen, width):
    wide = [
        f"{page} at {width}: {text}"
        for page, found in seen.items()
        for text in found["sideways"][width]
    ]
    assert not wide, told(wide)


@pytest.mark.parametrize("kind", ["axe", "unexplained", "errors", "leaving"])
def test_every_page_is_free_of(seen, kind):
    """What axe finds (WCAG 2.2 AA), pictures without alternative text or caption, errors of scripts, requests that leave."""
    found = [f"{page}: {text}" for page in seen for text in seen[page][kind]]
    assert not found, told(found)


def test_pages_are_light(seen):
    heavy = [
        f"{page}: {found['weight'] / 1e6:.2f} MB"
        for page, found in seen.items()
        if found["weight"] >= MOST_BYTES
    ]
    assert not heavy, told(heavy)


@pytest.mark.parametrize(("width", "least"), [(1280, 11), (390, 10)])
def test_labels_can_be_read(seen, width, least):
    """In pixels as they are seen, in drawings and in SVG images; none is drawn as outlines."""
    small = []
    for page, found in seen.items():
        sizes = list(found["labels"][width]["drawn"])
        for source, shown in found["labels"][width]["images"]:
            if source.endswith(".svg"):
                name = source.rpartition("/")[2][:12]
                sizes += [
                    (f"image {name}", size) for size in image_labels(source, shown)
                ]
        least_of: dict[str, float] = {}
        for name, size in sizes:
            least_of[name] = min(size, least_of.get(name, size))
        small += [
            f"{page} at {width}: {name}, {size:.1f} px"
            for name, size in least_of.items()
            if size < least - 0.05
        ]
    assert not small, told(small)


def image_labels(address: str, shown: float) -> list[float]:
    """Sizes of an SVG image's labels where it is shown so wide; 0 for labels that are drawn as outlines."""
    text = Path(unquote(urlsplit(address).path)).read_text(encoding="utf-8")
    box = re.search(r'viewBox="[\d.]+ [\d.]+ ([\d.]+) [\d.]+"', text)
    assert box, f"{address} has no viewBox"
    sizes = re.findall(r"font(?:-size)?: ?(?:[a-z]+ )*([\d.]+)px", text)
    sizes += re.findall(r'font-size="([\d.]+)', text)
    outlines = 'id="text_' in text and "<text" not in text
    return [float(size) * shown / float(box[1]) for size in sizes] + [0.0] * outlines


def found_sections(tab: Any, query: str) -> list[str]:
    """What the search page finds: each section as in the list of queries."""
    tab.fill("article form.bd-search input", query)
    links = "links => links.map(link => link.getAttribute('href'))"
    addresses = tab.eval_on_selector_all("#search-results a", links)
    return [
        re.sub(r"^\./|\.html", "", address).partition("_")[2] for address in addresses
    ]


def test_the_search_finds_what_learners_look_for(visit, html):
    lines = QUERIES.read_text(encoding="utf-8").splitlines()
    queries = [line.partition("=") for line in lines if "=" in line]
    assert len(queries) == 36
    visit.tab.goto(f"{html.as_uri()}/search.html?q=attention")
    visit.tab.wait_for_selector("#search-results li")
    wrong = []
    for query, _, right in queries:
        found = found_sections(visit.tab, query.strip())
        if not found or found[0] not in re.split(r",\s*", right.strip()):
            wrong.append(f"{query.strip()}: {found[:3]} before {right.strip()}")
    assert len(wrong) <= 3, told(wrong)


def test_the_search_shows_prose_with_the_words_marked(visit, html):
    visit.tab.goto(f"{html.as_uri()}/search.html?q=KV cache")
    first = visit.tab.locator("#search-results li").first
    assert first.locator("mark").all_inner_texts()[:2] == ["KV", "cache"]
    assert not re.search("import|def |print", first.inner_text())
    assert found_sections(visit.tab, "zzzz") == []
    assert visit.tab.inner_text("article [role=status]") == "Nothing was found."
    assert visit.errors == [] and visit.leaving() == []


@pytest.mark.parametrize("place", ["file", "http"])
def test_the_search_by_keyboard(visit, html, server, place):
    """From a chapter to a section of another, without a mouse; from a file and from a server."""
    host = f"127.0.0.1:{server.server_port}" if place == "http" else ""
    base = f"http://{host}" if host else html.as_uri()
    visit.tab.goto(f"{base}/01_attention.html")
    visit.tab.keyboard.press("Control+k")
    visit.tab.keyboard.type("perplexity")
    visit.tab.wait_for_selector("dialog .search-found li")
    visit.tab.keyboard.press("ArrowDown")
    visit.tab.keyboard.press("Enter")
    visit.tab.wait_for_url("**/09_floor.html#four-lines-to-read-a-loss-against")
    assert visit.leaving(host) == [] and visit.errors == []
    assert [path for path in server.missing if path != "/favicon.ico"] == []


@pytest.mark.parametrize(
    ("width", "opener", "opened"),
    [
        (390, "button.primary-toggle", "#pst-primary-sidebar-modal"),
        (390, "button.secondary-toggle", "#pst-secondary-sidebar-modal"),
        (1280, ".dropdown-download-buttons > button", ".dropdown-menu.show"),
    ],
)
def test_menus_that_open_can_be_read(visit, html, width, opener, opened):
    visit.tab.set_viewport_size({"width": width, "height": 900})
    visit.tab.goto(f"{html.as_uri()}/01_attention.html")
    visit.tab.locator(opener).first.click()
    visit.tab.wait_for_selector(opened)
    assert both_themes(visit, opened) == []


@pytest.mark.parametrize("width", [390, 1280])
def test_what_the_search_finds_can_be_read(visit, html, width):
    """On its page, and in the box that a key opens on any other."""
    visit.tab.set_viewport_size({"width": width, "height": 900})
    visit.tab.goto(f"{html.as_uri()}/search.html?q=KV cache")
    visit.tab.wait_for_selector("#search-results li")
    assert both_themes(visit, "article") == []
    visit.tab.goto(f"{html.as_uri()}/glossary.html")
    visit.tab.keyboard.press("Control+k")
    visit.tab.keyboard.type("perplexity")
    visit.tab.wait_for_selector("dialog .search-found li")
    assert both_themes(visit, "dialog[open]") == []


def both_themes(visit: Visit, opened: str) -> list[str]:
    """What axe finds in what has been opened on a page, in the light and in the dark."""
    visit.tab.add_script_tag(content=AXE_SCRIPT)
    visit.tab.add_script_tag(content=MEASURES)
    visit.tab.evaluate("thin()")
    found = violations(visit, "shape", "", opened)
    for theme in ("light", "dark"):
        set_theme(visit.tab, theme)
        found += violations(visit, "inks", theme, opened)
    assert visit.looks, f"nothing is written in {opened}"
    return found


def test_the_detectors_see(visit, tmp_path):
    """A page with all faults at once: a request that leaves, a script's error, a cut cell, a bad picture."""
    page = tmp_path / "page.html"
    page.write_text(
        '<meta name="viewport" content="width=device-width"><article class="bd-article">'
        '<img src="http://outside.example/a.png" width="9" height="9">'
        '<div class="cell_output" style="width: 90px; overflow: hidden"><pre>'
        f'{"wide " * 30}</pre></div><div style="width: 2000px">wide</div>'
        '<pre><span class="k">if</span> <span class="k">if</span> '
        '<span class="c1" style="color: #ccc"># pale, too</span></pre>'
        '<p style="color: #aaa; background: #fff">pale</p>'
        "</article><script>nothing.here()</script>"
    )
    visit.tab.goto(page.as_uri())
    assert visit.leaving() == ["http://outside.example/a.png"]
    assert any("nothing is not defined" in error for error in visit.errors)
    visit.tab.add_script_tag(content=AXE_SCRIPT)
    visit.tab.add_script_tag(content=MEASURES)
    assert [kind for kind, _ in visit.tab.evaluate("cutOff()")] == ["cut"]
    assert len(visit.tab.evaluate("sideways()")) == 1
    assert "no caption" in visit.tab.evaluate("unexplained()")[0]
    assert "image-alt" in " ".join(violations(visit, "shape"))
    visit.tab.evaluate("thin()")
    assert visit.tab.locator("pre span").all_inner_texts() == ["if", "# pale, too"]
    pale = " ".join(violations(visit, "inks"))
    assert ">pale</p>" in pale and ">if" not in pale and "# pale, too" in pale
    assert violations(visit, "inks") == []  # each look is asked once
