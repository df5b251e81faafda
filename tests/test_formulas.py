"""Formulas: every one of the chapters becomes MathML, in characters that the book's font has."""

import re
import unicodedata
from html import unescape

import pytest
from fontTools.ttLib import TTFont
from math_core import LatexError

from course import pairs
from course.export import chapters
from course.formulas import FONT, mathml, write_font

FORMULA = re.compile(r"(?<![\\$`])(\$\$?)(?![\s$])(.+?)(?<!\s)\1(?![\d$])", re.DOTALL)


def formulas() -> list[tuple[str, bool]]:
    """The chapters' formulas, each with whether it stands on a line of its own; code in the text left out."""
    found = []
    for path in chapters():
        for cell in pairs.read(path).cells:
            if cell.cell_type == "markdown":
                text = re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.DOTALL)
                found += [
                    (latex, sign == "$$") for sign, latex in FORMULA.findall(text)
                ]
    return found


def drawn(formula: str) -> set[str]:
    """The characters that a browser draws: a letter that stands alone in `<mi>` becomes an italic one."""
    characters = set()
    for tag, attributes, text in re.findall(r"<(\w+)([^>]*)>([^<]*)", formula):
        text = unescape(text)
        alone = tag == "mi" and len(text) == 1 and "mathvariant" not in attributes
        characters |= set(italic(text) if alone else text)
    return characters


def italic(letter: str) -> str:
    """The italic form of a Latin or Greek letter; another character as it is."""
    if letter == "h":
        return "\N{PLANCK CONSTANT}"
    name = re.sub(r"^(LATIN|GREEK) | LETTER", "", unicodedata.name(letter, ""))
    try:
        return unicodedata.lookup(f"MATHEMATICAL ITALIC {name}")
    except KeyError:
        return letter


def test_the_font_has_what_the_formulas_of_the_chapters_draw(tmp_path):
    write_font(tmp_path)
    has = set(map(chr, TTFont(tmp_path / FONT).getBestCmap()))
    found = formulas()
    assert len(found) > 200
    used = set().union(*(drawn(mathml(latex, block)) for latex, block in found))
    assert {
        "\N{MATHEMATICAL ITALIC SMALL X}",
        "\N{MATHEMATICAL ITALIC SMALL BETA}",
    } <= used
    assert used - has - set("\u2061\u2062\u2063 ") == set()
    assert (tmp_path / FONT).stat().st_size < 250_000


def test_a_formula_is_mathml():
    assert mathml("x_1") == "<math><msub><mi>x</mi><mn>1</mn></msub></math>"
    assert mathml(r"\mathbb{1}", display=True).startswith('<math display="block">')
    assert "\N{MATHEMATICAL DOUBLE-STRUCK DIGIT ONE}" in mathml(r"\mathbb{1}")


def test_words_are_no_space_to_an_operator():
    formula = mathml(r"\text{tokens} \times \text{price per hour}")
    assert '<mi mathvariant="normal">price\xa0per\xa0hour</mi>' in formula
    assert "mtext" not in formula


def test_what_is_no_formula_is_refused():
    with pytest.raises(LatexError, match="nosuch"):
        mathml(r"\nosuch{x}")
