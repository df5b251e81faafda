"""Figures of the stories: where chance enters a story, and what it remembers."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping

from matplotlib.figure import Figure

from course.figures.sheet import Field, coloured_text
from course.plots import COLORS
from slm.data.grammar import Grammar, Lines

# Marks in the text itself: what a line prints stands between two of them. The first stands behind the first letter,
# because a grammar may turn that into a capital. All lie where Unicode leaves room for private use.
BEGIN, END = 0xE000, "\uf8ff"
MARKED = re.compile(f"(.)([\ue000-\uf8fe])([^{END}]*){END}", re.DOTALL)


def choices_marked(rules: Mapping[str, Lines], seed: int) -> Figure:
    """A story in which each piece that chance chose is marked: in grey what was chosen once, in colour what was remembered."""
    text = Grammar(_with_marks(rules)).sample(seed)
    times = Counter(ord(found[2]) - BEGIN for found in MARKED.finditer(text))
    hues = itertools.cycle(COLORS[:6])
    colour = {n: next(hues) for n, told in times.items() if told > 1}
    story, behind, end = "", list[Field | None](), 0
    for found in MARKED.finditer(text):
        plain, printed = text[end : found.start()], found[1] + found[3]
        n, end = ord(found[2]) - BEGIN, found.end()
        mark = (colour[n], 0.9) if n in colour else (COLORS[7], 0.5)
        story += plain + printed
        behind += [None] * len(plain) + [mark] * len(printed)
    story, behind = story + text[end:], behind + [None] * len(text[end:])
    note = f"{len(times)} rules gave something to it."
    return coloured_text(story, behind, note)


def _with_marks(rules: Mapping[str, Lines]) -> dict[str, Lines]:
    """The rules with marks around all that plain lines print, another one for each line."""
    numbers = itertools.count(BEGIN)
    marked: dict[str, Lines] = {}
    for key, lines in rules.items():
        new: list[str | tuple[float, str]] = []
        for line in lines:
            weight, text = (1.0, line) if isinstance(line, str) else line
            if text and "{" not in text:
                mark = chr(next(numbers))
                columns = [
                    column[: len(column) - len(column.lstrip()) + 1]
                    + mark
                    + column.lstrip()[1:]
                    + END
                    for column in text.split("|")
                ]
                text = "|".join(columns)
            new.append((weight, text))
        marked[key] = new
    return marked
