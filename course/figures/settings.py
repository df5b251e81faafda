"""The figure of the chapter on settings: at which moments of a run its observers are told."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from course.plots import COLORS


def moments() -> Figure:
    """A short run: what is due after each step, and who is told."""
    steps, rows, validations = 12, 2, 4
    told: dict[str, list[float]] = {
        "on_start": [0.5],
        "on_row": [n for n in range(1, steps + 1) if n % rows == 0],
        "on_validation": [n for n in range(1, steps + 1) if n % validations == 0],
        "on_step": list(range(1, steps + 1)),
        "on_end": [steps + 0.5],
    }
    figure, axes = plt.subplots(figsize=(7, 2.4), layout="constrained")
    for height, when in enumerate(reversed(told.values())):
        axes.plot(when, [height] * len(when), "o", color=COLORS[0], markersize=8)
    axes.set_yticks(range(len(told)), list(reversed(told)))
    axes.set_xticks(range(1, steps + 1))
    axes.set(xlabel="step", xlim=(0, steps + 1), ylim=(-0.6, len(told) - 0.4))
    axes.grid(axis="x", alpha=0.3)
    plt.close(figure)
    return figure
