"""Formulas as MathML, which a browser draws by itself: without a script, for a screen reader, in print.

As an extension (`course.formulas` in book.yml) it takes the place of Sphinx's MathJax, and puts into the book the part
of a font for formulas that they can need, since few systems have one.
"""

import functools
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from docutils import nodes
from fontTools import subset
from math_core import LatexError, LatexToMathML
from sphinx.util import logging

CHARACTERS = (
    (0x20, 0x7E),
    (0xA0, 0xF7),
    (0x2C6, 0x2DD),  # accents
    (0x391, 0x3F6),  # Greek
    (0x2010, 0x2064),  # dashes, primes, what is not seen
    (0x2102, 0x2135),  # letters with two strokes
    (0x2190, 0x22FF),  # arrows, operators
    (0x2308, 0x230B),  # floor, ceiling
    (0x23DC, 0x23E1),  # braces above and below
    (0x27E6, 0x27EB),  # brackets
    (0x1D434, 0x1D467),  # italic
    (0x1D538, 0x1D56B),  # letters with two strokes
    (0x1D6FC, 0x1D71B),  # italic Greek
    (0x1D7D8, 0x1D7E1),  # digits with two strokes
)
FONT = "formulas.woff"


def mathml(latex: str, display: bool = False) -> str:
    """A formula in LaTeX as a `<math>` element.

    Raises:
        LatexError: It is not LaTeX, or uses what MathML does not have.
    """
    made: str = _converter().convert_with_local_state(latex, displaystyle=display)
    # MathML takes `<mtext>` for space, and so sets an operator between two of them too tight
    return made.replace("<mtext>", '<mi mathvariant="normal">').replace(
        "</mtext>", "</mi>"
    )


@functools.cache
def _converter() -> LatexToMathML:
    return LatexToMathML(fancy_error=False)


def _write(writer: Any, node: nodes.Element, tag: str) -> None:
    """Write a formula's node as an element; one that cannot be read is a warning, and so fails the build."""
    try:
        formula = mathml(node.astext(), display=tag == "div")
    except LatexError as error:
        logging.getLogger(__name__).warning("formula: %s", error, location=node)
        formula = ""
    writer.body.append(writer.starttag(node, tag, "", CLASS="math"))
    writer.body.append(f"{formula}</{tag}>")
    raise nodes.SkipNode


def write_inline(writer: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    _write(writer, node, "span")


def write_block(writer: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own."""
    _write(writer, node, "div")


def write_font(folder: Path) -> None:
    """Write the part of STIX Two Math that formulas can need."""
    options = subset.Options(flavor="woff", layout_features=["ssty"])
    whole = "ziamath/fonts/STIXTwoMath-Regular.ttf"
    font = subset.load_font(distribution("ziamath").locate_file(whole), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(
        unicodes=[code for low, high in CHARACTERS for code in range(low, high + 1)]
    )
    subsetter.subset(font)
    subset.save_font(font, folder / FONT, options)


def finish(app: Any, failure: Exception | None) -> None:
    """Put the font beside the style sheet that names it."""
    if app.builder.format == "html" and not failure:
        write_font(Path(app.outdir) / "_static")


def setup(app: Any) -> dict[str, bool]:
    """Register it with Sphinx."""
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
