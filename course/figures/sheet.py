"""What several figures are drawn with: a sheet measured in points, boxes with words, and text with colour behind it."""

import re
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from course.plots import INK, SMALL, TINT

ADVANCE = 0.602
"""How wide a letter of a font of one width is, for a size of 1."""

Field = tuple[str, float]
"""What lies behind a letter: a colour, and between 0 and 1 how much of it."""


def sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure whose axes count in points, from the upper left corner."""
    figure = plt.figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(-1, width + 1), ylim=(height + 1, -1))
    axes.axis("off")
    plt.close(figure)
    return figure, axes


def cell(
    axes: Axes,
    place: tuple[float, float, float, float],
    text: str = "",
    of: Field = (INK, 0.0),
    edge: str = "",
    **looks: Any,
) -> None:
    """A field with an edge and a text in its middle.

    Args:
        axes: A sheet.
        place: Left, top, width, height.
        text: What stands in the field.
        of: The field's colour, and how much of it.
        edge: The edge's colour; without one the edge is faint.
        looks: Whatever matplotlib's `text` takes.
    """
    x, y, width, height = place
    color, share = of
    area = Rectangle((x, y), width, height, facecolor=(color, TINT * share))
    area.set(edgecolor=edge or (INK, 0.3), linewidth=0.8)
    axes.add_patch(area)
    if text:
        middle = {"ha": "center", "va": "center"}
        axes.text(x + width / 2, y + height / 2, text, **(middle | looks))


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK
) -> None:
    """A straight arrow with its tip at the end."""
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=9, color=color, linewidth=1.2,
            shrinkA=0, shrinkB=0,
        )
    )  # fmt: skip


def scale(axes: Axes, x: float, y: float, color: str, ends: tuple[str, str]) -> None:
    """What pale and full stand for: five fields between two texts."""
    low = axes.text(x, y, ends[0], fontsize=SMALL, va="center")
    left = x + 5.2 * len(low.get_text()) + 4
    for n in range(5):
        cell(axes, (left + 18 * n, y - 6, 18, 12), of=(color, n / 4))
    axes.text(left + 96, y, ends[1], fontsize=SMALL, va="center")


def coloured_text(
    text: str,
    behind: Sequence[Field | None],
    note: str,
    key: tuple[str, tuple[str, str]] | None = None,
    columns: int = 74,
) -> Figure:
    """A text in lines, with a field behind each letter that has one, and a note below.

    Args:
        text: The text; its own line breaks stay.
        behind: For each letter its field, if it has one.
        note: What the figure says in numbers.
        key: The colour and the ends of a `scale` below.
        columns: Letters in a line at most.
    """
    size, line = 10.0, 19.0
    advance = ADVANCE * size
    places, at = [], (0, 0)  # of each letter: column and line
    for word in re.findall(r"\S+\s*|\s+", text):
        if at[0] + len(word.rstrip()) > columns:
            at = (0, at[1] + 1)
        for letter in word:
            places.append(at)
            at = (0, at[1] + 1) if letter == "\n" else (at[0] + 1, at[1])
    bottom = (at[1] + 1) * line
    figure, axes = sheet(columns * advance, bottom + (44 if key else 20))
    for start, end in _alike(behind, places):
        if of := behind[start]:
            x, y = places[start]
            letters = (
                len(text[start:end].rstrip()) if _ends(end, places) else end - start
            )
            place = (x * advance, y * line + 2), letters * advance, 15
            axes.add_patch(Rectangle(*place, color=of[0], alpha=TINT * of[1], lw=0))
    for found in re.finditer(r"\S+", text):
        x, y = places[found.start()]
        middle = (x + len(found[0]) / 2) * advance, y * line + 9.5
        looks: dict[str, Any] = {"ha": "center", "va": "center"}
        axes.text(*middle, found[0], family="monospace", **looks)
    axes.text(0, bottom + 10, note, fontsize=SMALL, va="center")
    if key:
        scale(axes, 0, bottom + 32, *key)
    return figure


def _ends(n: int, places: Sequence[tuple[int, int]]) -> bool:
    """Whether a line ends before a letter."""
    return n == len(places) or places[n][1] != places[n - 1][1]


def _alike(
    behind: Sequence[Field | None], places: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Where runs of letters with the same field begin and end, on one line."""
    runs: list[tuple[int, int]] = []
    for n in range(len(places)):
        if runs and behind[n] == behind[n - 1] and not _ends(n, places):
            runs[-1] = (runs[-1][0], n + 1)
        else:
            runs.append((n, n + 1))
    return runs
