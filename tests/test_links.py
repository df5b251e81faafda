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


def sections_of(path: Path) -> set[str]:
    """The labels of a page's sections: trainer/one-step."""
    outside = re.sub(r"^```.*?^```", "", prose(path), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.+)$", outside, re.MULTILINE)
    return {f"{anchor(path.stem)}/{make_id(title)}" for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_to_sections_that_exist(path):
    known = set().union(*map(sections_of, PAGES))
    assert set(re.findall(r"\]\(#([\w-]+/[^)]+)\)", PROSE[path])) <= known


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
