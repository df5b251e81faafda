"""Every figure can be read: in both themes, at its size, by who doesn't see it, and where a notebook isn't trusted."""

import itertools
import re
from pathlib import Path

import jupytext
import matplotlib.pyplot as plt
import nbformat
import pytest
from matplotlib.text import Text

from course import ROOT, pairs
from course.drawings import COLOR, drawing
from course.export import chapters
from course.pairs import FORMAT
from course.plots import COLORS, INK, PAPER, SMALL, TINT, WIDTH, name_points
from course.run import BUILD, is_fresh, run

CHAPTERS = chapters()
CSS = (ROOT / "chapters/_static/book.css").read_text(encoding="utf-8")
DARK_PAGE = "#121212"  # of the theme


def channels(color: str) -> list[float]:
    return [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def luminance(color: list[float]) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color
    ]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: list[float], other: list[float]) -> float:
    low, high = sorted(luminance(color) + 0.05 for color in (one, other))
    return high / low


def variables(css: str) -> dict[str, str]:
    return dict(re.findall(r"--figure-(\w+): (#[0-9a-f]{6});", css))


def test_contrast_is_that_of_the_standard():
    assert contrast([0, 0, 0], [1, 1, 1]) == pytest.approx(21)
    assert contrast(channels("#767676"), [1, 1, 1]) == pytest.approx(4.54, abs=0.01)


def test_the_pages_light_inks_are_those_of_the_notebooks():
    light = variables(CSS.partition("@media not print")[0])
    assert light == {str(n): color for n, color in enumerate(COLORS)} | {"ink": INK}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_inks_can_be_read(theme):
    """Text in each colour on the paper, which is also the paper's colour on each of them, and ink on each tint."""
    inks = variables(CSS.partition("@media not print")[theme == "dark" and 2 or 0])
    paper = channels(PAPER if theme == "light" else DARK_PAGE)
    assert len(inks) == 9
    for name, color in inks.items():
        assert contrast(channels(color), paper) >= 4.5, name
        if name == "ink":
            continue
        tinted = [
            TINT * c + (1 - TINT) * p
            for c, p in zip(channels(color), paper, strict=True)
        ]
        assert contrast(channels(inks["ink"]), tinted) >= 4.5, name


SVG = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">
<metadata>a</metadata><defs><style>*{stroke-linecap: butt}</style></defs>
<g id="unused"><clipPath id="p1"><rect/></clipPath><path id="m1" style="stroke: #2563eb"/></g>
<use xlink:href="#m1" clip-path="url(#p1)"/>
<text style="font-size: 10px; font-family: 'DejaVu Sans', sans-serif; fill: #1f2937">a</text>
<text style="font-family: 'DejaVu Sans Mono', monospace">b</text></svg>"""


def test_a_drawing_becomes_a_part_of_its_page():
    got = drawing(SVG, "Two <lines>.")
    assert 'role="img" aria-label="Two &lt;lines&gt;."' in got
    assert "<style" not in got and "metadata" not in got and "unused" not in got
    clip, marker = re.findall(r'id="(\w+-\w+)"', got)
    assert f'clip-path="url(#{clip})"' in got and f'href="#{marker}"' in got
    assert clip not in drawing(SVG.replace(">a<", ">c<"), "")
    assert "stroke: var(--figure-0)" in got and "fill: var(--figure-ink)" in got
    assert "DejaVu" not in got and "var(--pst-font-family-monospace)" in got


def test_names_of_points_do_not_lie_on_each_other():
    figure, axes = plt.subplots()
    axes.set(xlim=(0, 10), ylim=(1, 1000), yscale="log")
    heights = [500, 5, 5.1, 5, 4.9, 40]
    points = [(n % 3, y, f"name {n}", INK) for n, y in enumerate(heights)]
    name_points(axes, points)
    figure.draw_without_rendering()
    # the bodies only: what leads from a name to its point may pass others
    boxes = {t.get_text(): Text.get_window_extent(t) for t in axes.texts}
    for one, other in itertools.combinations(boxes.values(), 2):
        assert not one.overlaps(other)
    middle = {name: (box.y0 + box.y1) / 2 for name, box in boxes.items()}
    assert sorted(middle, key=middle.__getitem__)[-2:] == ["name 5", "name 0"]
    at = axes.transData.transform((0, 500))[1]
    assert abs(middle["name 0"] - at) < 2  # it has room, so it stays
    plt.close(figure)


def pictures(notebook: Path) -> list[tuple[nbformat.NotebookNode, dict]]:
    """The cells of a notebook that show a picture, each with what it shows."""
    cells = nbformat.read(notebook, as_version=4).cells
    outputs = [(c, o.data) for c in cells for o in c.get("outputs", []) if "data" in o]
    return [(c, d) for c, d in outputs if any(kind.startswith("image/") for kind in d)]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_figures_explain_themselves(chapter):
    """Each has a caption that says what to see, a name to refer to, which the text does, and a text in its place."""
    text = chapter.read_text(encoding="utf-8")
    for cell, _ in pictures(chapter.with_suffix(".ipynb")):
        told = cell.metadata.get("mystnb", {})
        name = told.get("figure", {}).get("name", "")
        assert name.startswith("fig-"), cell.source
        assert len(told["figure"].get("caption", "")) > 40, name
        assert len(told.get("image", {}).get("alt", "")) > 40, name
        assert f"{{numref}}`{name}`" in text, f"the text does not mention {name}"


NUMBER = re.compile(r"\d+(?:[,.]\d+)*")
WORD = re.compile(
    r"\b(dozens?|(thir|four|fif|six|seven|eigh|nine)teen|(twen|thir|for|fif|six|seven|eigh|nine)ty|hundreds?|thousands?)\b"
)


def uncomputed(told: str, known: list[str]) -> list[str]:
    """The numbers of a text that stand nowhere in these; one that is too large to be counted is told in digits."""
    there = {n.replace(",", "") for text in known for n in NUMBER.findall(text)}
    found = [n for n in NUMBER.findall(told) if n.replace(",", "") not in there]
    return found + [found[0] for found in WORD.finditer(told)]


def test_an_uncomputed_number_is_seen():
    assert uncomputed("1,024 rows, 0.5 and 7%, six of them", ["1024 0.5", "7"]) == []
    assert uncomputed("12 rows, 0.5", ["123", "5"]) == ["12", "0.5"]
    assert uncomputed("a dozen, or ninety", ["12 90"]) == ["dozen", "ninety"]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_numbers_told_of_a_figure_are_computed(chapter):
    """In caption and alternative text: each stands in the chapter's code, in what it prints, or in the drawing."""
    if not is_fresh(chapter):
        run([chapter.stem[:2]])
    cells = nbformat.read(BUILD / f"{chapter.stem}.ipynb", as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    known = [cell.source for cell in code]
    for output in (output for cell in code for output in cell.outputs):
        data = output.get("data", {})
        known += [output.get("text", ""), data.get("text/html", "")]
        known += [data.get("text/plain", "")]
        known += re.findall(r"<text[^>]*>([^<]*)", data.get("image/svg+xml", ""))
    for told in (cell.metadata.get("mystnb", {}) for cell in cells):
        text = f"{told.get('figure', {}).get('caption')} {told.get('image', {}).get('alt')}"
        assert uncomputed(text, known) == [], text


def test_captions_survive_a_save_as_text():
    """JupyterLab saves both files of a pair; a letter that it would write as an escape would change the text."""
    notebook = pairs.read(CHAPTERS[0])
    told = [cell.metadata.get("mystnb") for cell in notebook.cells]
    saved = jupytext.reads(jupytext.writes(notebook, fmt=FORMAT), fmt=FORMAT)
    assert any(told) and told == [c.metadata.get("mystnb") for c in saved.cells]
    lines = [line for path in CHAPTERS for line in path.read_text().splitlines()]
    assert all(line.isascii() for line in lines if line.startswith("# %% mystnb"))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_notebooks_show_figures_without_trust(chapter):
    """As PNG alone: an SVG would be shown in its place, and lose its styles on GitHub."""
    notebook = chapter.with_suffix(".ipynb")
    for cell, data in pictures(notebook):
        assert {"image/png", "text/plain"} == set(data), cell.source
    assert notebook.stat().st_size < 1.5e6


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_drawings_have_the_pages_inks_and_letters_of_a_size(chapter):
    if not is_fresh(chapter):
        run([chapter.stem[:2]])
    for cell, data in pictures(BUILD / f"{chapter.stem}.ipynb"):
        svg = data["image/svg+xml"]
        name = cell.metadata.mystnb.figure.name
        assert set(COLOR.findall(svg)) <= {*COLORS, INK, PAPER}, name
        assert "<text" in svg and "<image" not in svg, name
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)]
        assert min(sizes) >= SMALL, name
        width = re.search(r'<svg [^>]*width="([\d.]+)pt"', svg)
        assert width and float(width[1]) <= WIDTH * 72 + 1, f"{name}: {width}"
