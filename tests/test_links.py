"""What the text names is a link: chapters, sections, terms, papers; the glossary and the references hold what is named."""

import re
from pathlib import Path

import jupytext
import pytest
from docutils.nodes import make_id

from course import ROOT
from course.book import anchor
from course.export import Chapter, chapters
from course.links import PLAIN, Entry, _any

FOLDER = ROOT / "chapters"
PAGES = [
    *chapters(),
    *(FOLDER / f"{n}.md" for n in ("index", "glossary", "references")),
]


def prose(path: Path) -> str:
    """The text of a page: for a chapter, its Markdown cells."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = jupytext.read(path, fmt="py:percent").cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def entries(name: str) -> list[Entry]:
    """What `glossary.md` or `references.md` explains, with all that stands there."""
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    listed = text.partition(":sorted:\n\n")[2].removesuffix("\n```\n")
    found = []
    for entry in re.split(r"\n\n(?=\S)", listed):
        lines = entry.split("\n")
        forms = tuple(line.strip("`") for line in lines if line[:1].strip())
        said = "\n".join(line for line in lines if not line[:1].strip())
        found.append(Entry(name, "", forms, said))
    return found


TERMS, PAPERS = entries("glossary"), entries("references")
PROSE = {path: prose(path) for path in PAGES}
SOURCES = {path: path.read_text(encoding="utf-8") for path in chapters()}


def named_in(entry: Entry, texts: list[str]) -> bool:
    pattern = _any([entry])
    return any(found.lastgroup for text in texts for found in pattern.finditer(text))


def test_each_term_is_used_in_a_chapter_and_told_in_a_few_words():
    used = [PROSE[path] for path in chapters()]
    assert [entry.forms for entry in TERMS if not named_in(entry, used)] == []
    assert 60 <= len(TERMS) <= 100
    definitions = [entry.said.partition("\n\n")[0] for entry in TERMS]
    assert [text for text in definitions if not 3 <= len(text.split()) <= 45] == []
    forms = [form.lower() for entry in TERMS for form in entry.forms]
    assert len(forms) == len({*forms})


def test_phrases_that_are_no_terms_are_still_written():
    text = " ".join(" ".join(PROSE.values()).split())
    assert [phrase for phrase in PLAIN if phrase not in text] == []


PAPER = re.compile(
    r"[A-Z][a-z]+(?: et al\.| and [A-Z][a-z]+)? (?:\((?:19|20)\d\d\)|(?:19|20)\d\d\b)"
)
MONTHS = "January February March April May June July August September October November December"


def papers_of(source: str) -> set[str]:
    """The papers that a chapter names, in its text and in its code, as the references call them."""
    text = re.sub(r"\s+(?:# )?(?:> )?", " ", source)
    found = {re.sub(r"[()]", "", match) for match in PAPER.findall(text)}
    return {name for name in found if name.split()[0] not in MONTHS.split()}


def test_each_paper_has_an_entry_and_each_entry_is_cited():
    cited = set().union(*map(papers_of, SOURCES.values()))
    assert cited == {form for entry in PAPERS for form in entry.forms}


def test_each_paper_has_authors_a_title_a_year_and_an_address():
    for entry in PAPERS:
        (name,) = entry.forms
        said = " ".join(entry.said.split())
        assert name.split()[0] in said.partition("*")[0], name
        assert re.search(
            r", \*[^*]+\*, .*\b(19|20)\d\d\b.* \[.+\]\(https://\S+\)$", said
        ), name


def test_papers_are_found_as_chapters_write_them():
    text = "# Attention (Vaswani et al.\n# 2017), Shannon (1951), Press and\n# Wolf 2017; May 2026"
    assert papers_of(text) == {
        "Vaswani et al. 2017",
        "Shannon 1951",
        "Press and Wolf 2017",
    }


def sections(page: str, text: str) -> set[str]:
    """The labels of a page's sections: trainer/one-step."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.+)$", outside, re.MULTILINE)
    return {f"{anchor(page)}/{make_id(title)}" for title in titles}


def test_links_lead_to_sections_that_exist():
    known = set().union(*(sections(path.stem, text) for path, text in PROSE.items()))
    linked = re.findall(r"\]\(#([\w-]+/[^)]+)\)", " ".join(PROSE.values()))
    assert len(linked) > 100 and set(linked) <= known


TITLES = "|".join(
    re.escape(re.sub("^The ", "", Chapter.read(path).title)) for path in chapters()
)
BARE = re.compile(
    r"chapters? (?:on|about|of) (?!LINK)"
    rf"|\b(?:the )?(?:{TITLES})(?:'s)? chapter\b"
    r"|\b(?:the|a) (?:next|last|previous|later) (?:chapter|engine room)\b(?!, LINK)"
    r"|\bchapters further on\b(?!, in LINK)|\bnext chapters\b(?!, LINK)",
    re.IGNORECASE,
)


def bare_mentions(text: str) -> list[str]:
    """Chapters that a text names without a link."""
    linked = re.sub(r"\[[^\]]*\]\(#[^)]*\)", "LINK", text)
    return BARE.findall(" ".join(linked.split()))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_chapters_are_named_by_links(path):
    assert bare_mentions(PROSE[path]) == []


def test_a_mention_without_a_link_is_found():
    assert bare_mentions("The chapter about the trainer says so.")
    assert bare_mentions("It is the trainer chapter's.") and bare_mentions(
        "The next\nchapter asks"
    )
    assert not bare_mentions(
        "The chapter on [cost](#cost), the next chapter, [runs](#runs)"
    )


CHAPTER = """\
# ---
# jupyter:
#   kernelspec: {{display_name: Python 3, language: python, name: python3}}
#   slm:
#     exports: [slm/{name}.py]
# ---

# %% [markdown]
# # {title}
#
# {text}
#
# ## At work

# %%
{code}
"""

FIRST = """A *token* of tokens in a KV
# cache (Press and
# Wolf 2017), as Press and Wolf (2017) have it, by `torchrun` and `Loader(rows)`; not a
# [mask](#second) at a loss; `Other`, `other`; `slm.second.other`; `B` is batch.
#
# | table |
# |---|
# | a logit |
#
# No loss yet, and no `token`. See [](#second/at-work)."""

FIRST_CODE = """\
#| export
def first():
    \'\'\'Source: Press and Wolf 2017.\'\'\'

Other = 1"""

SECOND_CODE = """\
#| export
class Loader: ...

def other(): ...

Other = _hidden = B = 2"""

GLOSSARY_PAGE = """\
# Glossary

```{glossary}
token
  A piece of text.

  [Second](#second/at-work)

KV cache
mask
  Kept, or hidden.

logit
  A score.

loss
  What falls.

`torchrun`
  A launcher.
```
"""

REFERENCES_PAGE = """\
# References

```{glossary}
Press and Wolf 2017
  Ofir Press and Lior Wolf, *Title*, 2017.
```
"""

CONF = """
from pathlib import Path
import course.book, course.links
course.book.ROOT = course.links.ROOT = Path({root!r})
extensions = ["myst_nb", "course.book", "course.links"]
nb_execution_mode = "off"
html_static_path = []
"""


@pytest.fixture(scope="module")
def book(rendered, tmp_path_factory) -> dict[str, str]:
    """Two chapters with a glossary and references as HTML, by name; any warning fails."""
    root: Path = tmp_path_factory.mktemp("book")
    source = root / "source"
    for folder in (source, root / "chapters"):
        folder.mkdir()
    for name, text, code in (
        ("first", FIRST, FIRST_CODE),
        ("second", "A token, and `Loader`.", SECOND_CODE),
    ):
        chapter = CHAPTER.format(name=name, title=name.title(), text=text, code=code)
        path = root / "chapters" / f"01_{name}.py"
        path.write_text(chapter)
        jupytext.write(jupytext.read(path), source / f"01_{name}.ipynb")
    pages = "glossary\nreferences\n01_first\n01_second"
    (source / "index.md").write_text(f"# All\n\n```{{toctree}}\n{pages}\n```\n")
    (source / "glossary.md").write_text(GLOSSARY_PAGE)
    (source / "references.md").write_text(REFERENCES_PAGE)
    (source / "conf.py").write_text(CONF.format(root=str(root)))
    return rendered(source)


def linked(page: str, kind: str) -> list[tuple[str, str]]:
    """The links of a kind on a page: where each leads, and its text."""
    found = []
    for attributes, text in re.findall(r"<a ([^>]*)>(.*?)</a>", page, re.DOTALL):
        values = dict(re.findall(r'([\w-]+)="([^"]*)"', attributes))
        if kind in values.get("class", "").split():
            text = " ".join(re.sub("<.*?>", "", text).split())
            found.append((values["href"], text))
    return found


def test_the_first_use_of_a_term_on_a_page_is_a_link_that_shows_what_it_is(book):
    assert linked(book["01_first"], "term") == [
        ("glossary.html#term-token", "token"),
        ("glossary.html#term-KV-cache", "KV cache"),
        ("glossary.html#term-torchrun", "torchrun"),
        ("glossary.html#term-loss", "loss"),
    ]
    assert linked(book["01_second"], "term") == [("glossary.html#term-token", "token")]
    assert 'data-said="A piece of text."' in book["01_first"]
    assert linked(book["glossary"], "term") == []


def test_papers_are_links_wherever_they_are_named_also_in_code(book):
    entry = "references.html#term-Press-and-Wolf-2017"
    texts = ["Press and Wolf 2017", "Press and Wolf (2017)", "Press and Wolf 2017"]
    assert linked(book["01_first"], "paper") == [(entry, text) for text in texts]


def test_a_name_that_one_other_chapter_exports_leads_to_its_section(book):
    """Not one that two of them export, nor a plain word that this page does not import, nor a letter: that is an axis."""
    names = ["Loader(rows)", "slm.second.other"]
    there = [("01_second.html#at-work", name) for name in names]
    assert linked(book["01_first"], "name") == there
    assert linked(book["01_second"], "name") == []


def test_sections_have_labels(book):
    assert 'href="01_second.html#at-work"' in book["01_first"]
    assert 'href="01_second.html#at-work"' in book["glossary"]
