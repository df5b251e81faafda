"""Figures of the stories: where chance enters a story, and what it remembers."""

import html
import itertools
import re
from collections import Counter
from collections.abc import Mapping

from IPython.display import HTML

from slm.data.grammar import Grammar, Lines

# Marks in the text itself: what a line prints stands between two of them. The first stands behind the first letter,
# because a grammar may turn that into a capital. All lie where Unicode leaves room for private use.
BEGIN, END = 0xE000, "\uf8ff"
MARKED = re.compile(f"(.)([\ue000-\uf8fe])([^{END}]*){END}", re.DOTALL)
HUES = ((59, 130, 246), (249, 115, 22), (16, 185, 129), (168, 85, 247), (234, 179, 8))


def choices_marked(rules: Mapping[str, Lines], seed: int) -> HTML:
    """A story in which each piece that chance chose is marked: in grey what was chosen once, in colour what was remembered."""
    marked, sources = _with_marks(rules)
    text = Grammar(marked).sample(seed)
    times = Counter(ord(found[2]) - BEGIN for found in MARKED.finditer(text))
    hues = itertools.cycle(HUES)
    colour = {n: next(hues) for n, count in times.items() if count > 1}

    def span(found: re.Match[str]) -> str:
        n = ord(found[2]) - BEGIN
        rule, row = sources[n]
        shade = "{},{},{},.28".format(*colour[n]) if n in colour else "128,128,128,.22"
        return (
            f'<span title="{rule}: {html.escape(row, quote=True)}" style="background:rgba({shade});'
            f'border-radius:3px;padding:0 .1em">{found[1]}{found[3]}</span>'
        )

    story = MARKED.sub(span, html.escape(text, quote=False))
    caption = (
        f"{len(times)} lists gave something to it. Grey: chosen once. In colour: drawn once, remembered, and told again in"
        " the same colour. Hover to read the list and the line."
    )
    return HTML(
        '<div style="line-height:1.9;max-width:46em;color:currentColor">'
        f'{story}</div><div style="font-size:.85em;opacity:.85;margin-top:.6em">{caption}</div>'
    )


def _with_marks(
    rules: Mapping[str, Lines],
) -> tuple[dict[str, Lines], list[tuple[str, str]]]:
    """The rules with marks around all that plain lines print, and for each mark the rule and its line."""
    sources: list[tuple[str, str]] = []
    marked: dict[str, Lines] = {}
    for key, lines in rules.items():
        new: list[str | tuple[float, str]] = []
        for line in lines:
            weight, text = (1.0, line) if isinstance(line, str) else line
            if text and "{" not in text:
                mark = chr(BEGIN + len(sources))
                sources.append((key.split()[0], text.strip().replace("|", ", ")))
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
    return marked, sources
