"""A figure of the corpora: what leaks when text is held out in three ways."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from course.plots import COLORS


def leaks_figure(leaks: Mapping[str, tuple[int, int]]) -> Figure:
    """For each unit that is held out: how many validation stories are in train, and how many there are."""
    figure, axes = plt.subplots(figsize=(7, 1.9), layout="constrained")
    for place, (unit, (leaked, all_of_them)) in enumerate(leaks.items()):
        own = all_of_them - leaked
        names = ("in train, too", "held out only") if place == 0 else (None, None)
        axes.barh(unit, leaked, color=COLORS[1], label=names[0])
        axes.barh(unit, own, left=leaked, color=COLORS[0], label=names[1])
    axes.invert_yaxis()
    axes.set(xlabel="different stories on the validation side", ylabel="held out by")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=2)
    plt.close(figure)
    return figure
