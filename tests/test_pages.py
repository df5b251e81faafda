"""What the course's extension makes of pages: links by name, folds, badges, captions; a book of two small chapters."""

import base64
import re
from pathlib import Path

import jupytext
import nbformat
import pytest

from course.book import anchor, fold_summary

HEADER = """\
# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   slm:
#     exports: [slm/model/{name}.py]
# ---

# %% [markdown]
"""

FIRST = """\
# # Attention
#
# The next is [the *trainer*](#trainer), see also [](#trainer), `slm/model/trainer.py` and
# `slm.model.trainer`; this one is `slm/model/attention.py`, and [here](#attention).
# {numref}`fig-one` shows it.

# %% tags=["hide-input"]
import os
import re

# %% mystnb={"figure": {"name": "fig-one", "caption": "What to see."}, "image": {"alt": "A dot."}} tags=["hide-input"]
picture = draw()

# %% mystnb={"code_prompt_show": "The rules, 2 lines"} tags=["hide-input"]
#| export
\"\"\"What it is for.\"\"\"

A = 1

# %% tags=["hide-input"]
def f(): ...
"""

SECOND = """\
# # The trainer
#
# *An engine room: it can be skipped at first reading.*
#
# Back to [attention](#attention).

# %%
#| export
B = 2
"""

CONF = """
from pathlib import Path
import course.book
course.book.ROOT = Path({root!r})
course.book.times = lambda: {{"01_attention": 12.3, "11_trainer": 99.9}}
extensions = ["myst_nb", "course.book"]
nb_execution_mode = "off"
numfig = True
html_static_path = []
"""

DOT = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
        "1f15c4890000000a49444154789c63000100000500010d0a2db40000000049454e44ae426082"
    )
).decode()

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="9pt" height="9pt">'
    '<path d="M 0 0 L 9 9" style="fill: #2563eb"/></svg>'
)


@pytest.fixture(scope="module")
def pages(rendered, tmp_path_factory) -> dict[str, str]:
    """The two chapters as HTML, by name; any warning of Sphinx fails."""
    root: Path = tmp_path_factory.mktemp("book")
    source = root / "source"
    for folder in (source, root / "chapters"):
        folder.mkdir()
    texts = {"01_attention": FIRST, "11_trainer": SECOND}
    for stem, text in texts.items():
        path = root / "chapters" / f"{stem}.py"
        path.write_text(HEADER.format(name=anchor(stem)) + text)
        notebook = jupytext.read(path)
        for cell in notebook.cells:
            if cell.source.startswith("picture"):
                data = {"image/png": DOT, "image/svg+xml": SVG, "text/plain": "<F>"}
                cell.outputs = [nbformat.v4.new_output("display_data", data)]
        nbformat.write(notebook, source / f"{stem}.ipynb")
    (source / "index.md").write_text(
        "# All\n\nFrom [attention](#attention) on.\n\n"
        "```{package-figure}\n```\n\n```{chapter-table}\n```\n\n"
        "```{toctree}\n:numbered:\n\n01_attention\n11_trainer\n```\n"
    )
    (source / "conf.py").write_text(CONF.format(root=str(root)))
    return rendered(source)


def links(page: str, target: str) -> list[str]:
    """The texts of a page's own links to another page, tags left out."""
    body = page[page.index('class="body"') :]
    found = re.findall(
        rf'<a class="reference internal" href="{target}">(.*?)</a>', body
    )
    return [re.sub(r"<[^>]+>", "", text) for text in found]


def test_chapters_link_to_each_other_by_name(pages):
    first = links(pages["01_attention"], "11_trainer.html")
    assert first[:2] == ["the trainer", "The trainer"]
    assert links(pages["11_trainer"], "01_attention.html")[:1] == ["attention"]
    assert "attention" in links(pages["index"], "01_attention.html")
    assert "here" in links(pages["01_attention"], "#")


def test_modules_link_to_the_chapter_that_exports_them(pages):
    first = pages["01_attention"]
    modules = links(first, "11_trainer.html")[2:4]
    assert modules == ["slm/model/trainer.py", "slm.model.trainer"]
    assert "slm/model/attention.py" in first
    assert "slm/model/attention.py" not in links(first, "#")


def test_a_fold_says_what_it_holds_open_and_closed(pages):
    titles = re.findall(r'admonition-title">(.*?)</p>', pages["01_attention"])
    assert titles == [
        text
        for text in (
            "Imports",
            "The code of picture",
            "The rules, 2 lines",
            "The code of f",
        )
        for _ in ("open", "closed")
    ]


def test_a_figure_has_caption_number_and_alternative_text(pages):
    first = pages["01_attention"]
    svg = re.search(r'<svg [^>]*role="img" aria-label="A dot.">.*?</svg>', first)
    assert svg and "fill: var(--figure-0)" in svg[0] and "What to see." in first
    assert "<img" not in first[first.index('class="body"') :]
    assert re.search(r'href="#fig-one"><span class="std std-numref">Fig. 1.1<', first)


def test_badges_name_the_module_and_the_engine_room(pages):
    assert '">→ slm/model/attention.py</a></div>' in (pages["01_attention"])
    assert "#| export" not in re.sub(r"<[^>]+>", "", pages["01_attention"])
    assert '<p class="engine-room"' in pages["11_trainer"]
    assert '<p class="engine-room"' not in pages["01_attention"]


def test_a_chapter_says_how_long_it_took_as_the_welcome_page_does(pages):
    told = r"All of its code ran in (\d+) seconds for this page"
    assert re.findall(told, pages["01_attention"]) == ["12"]
    assert re.findall(told, pages["11_trainer"]) == ["100"]
    assert re.findall(told, pages["index"]) == []


def test_the_welcome_page_draws_any_number_of_chapters(pages):
    index = pages["index"]
    assert (
        "2 chapters drawn as strips of cells" in index and "2 modules in all" in index
    )
    assert re.search(r'<figure[^>]* id="fig-package">', index)
    assert "A cell goes to the module of its colour" in index
    assert index.count('class="module"') == 2 == index.count('class="link m0"')
    rows = re.findall(r"<tr.*?</tr>", index, re.DOTALL)
    texts = [re.sub(r"<[^>]+>|\s+", " ", row).split() for row in rows]
    assert texts[1:] == [
        ["Attention", "slm/model/attention.py", "12"],
        ["The", "trainer", "engine", "room", "slm/model/trainer.py", "100"],
        ["all", "of", "them", "112"],
    ]
    assert index.count('class="engine-badge"') == 1
    assert "slm/model/trainer.py" in links(index, "11_trainer.html")


@pytest.mark.parametrize(
    ("source", "summary"),
    [
        ("import os\nfrom re import sub", "Imports"),
        ('#| export\n"""Text."""\n\nimport os', "Imports"),
        ("def f(): ...\n\nA = B = 1", "The code of f, A, B"),
        ("a = b = c = d = e = 1", "The code of a, b, c, d and more"),
        ("print(1)", "The code of this cell"),
        ("%timeit f()", "The code of this cell"),
    ],
)
def test_what_a_fold_holds(source, summary):
    assert fold_summary(source) == summary
