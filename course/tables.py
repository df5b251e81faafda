"""A table of results, as HTML for a page and as text for everywhere else."""

import html
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from course import WIDTH

NUMBER = re.compile(r"[~≥≤<>*+-]?\s*[$−+-]?\d.*|-?inf")


@dataclass(frozen=True, repr=False)
class Table:
    """Rows with a header and a caption; columns of numbers stand at the right.

    The last expression of a cell shows it: a page gets a table, a terminal and nbval the same as aligned text.

    Args:
        header: The names of the columns.
        rows: Texts, a row each; the first names what the row is about.
        caption: What the table shows; it stands above it.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str

    def _numbers(self) -> list[bool]:
        """For each column but the first, whether all its entries are numbers."""
        columns = list(zip(*self.rows, strict=True))[1:]
        return [False, *(all(map(NUMBER.match, column)) for column in columns)]

    def __repr__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        how = list(zip(widths, self._numbers(), strict=True))
        aligned = [
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for cell, (width, number) in zip(line, how, strict=True)
            ).rstrip()
            for line in lines
        ]
        caption = textwrap.wrap(self.caption, WIDTH, break_long_words=False)
        return "\n".join([*caption, *aligned])

    def _repr_html_(self) -> str:
        styles = [
            f' style="text-align:{"right" if number else "left"}"'
            for number in self._numbers()
        ]
        head = [
            f'<th scope="col"{style}>{html.escape(name)}</th>'
            for name, style in zip(self.header, styles, strict=True)
        ]
        body = []
        for first, *others in self.rows:
            cells = [f'<th scope="row"{styles[0]}>{html.escape(first)}</th>']
            cells += [
                f"<td{style}>{html.escape(cell)}</td>"
                for cell, style in zip(others, styles[1:], strict=True)
            ]
            body.append(f"<tr>{''.join(cells)}</tr>")
        return (
            f'<table class="results"><caption>{html.escape(self.caption)}</caption>'
            f"<thead><tr>{''.join(head)}</tr></thead>"
            f"<tbody>{''.join(body)}</tbody></table>"
        )
