"""The figure of the chapter on the meter: what is paid, what is written, and what a kill hides."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from course.plots import COLORS, INK


def ticks(tick: float, killed_at: float, until: float, rate: float = 3.60) -> Figure:
    """Dollars against seconds: a line that is paid, and the steps that the meter writes in two attempts."""
    figure, ax = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    each = rate / 3600
    lost = (killed_at % tick) * each
    ax.plot([0, until], [0, until * each], color=INK, label="paid")
    before, starts = 0.0, (0.0, killed_at)
    for number, (start, end) in enumerate(
        zip(starts, (killed_at, until), strict=True), 1
    ):
        moments = [start + tick * i for i in range(int((end - start) // tick) + 1)]
        written = [before + (moment - start) * each for moment in moments]
        ax.step(
            [*moments, end],
            [*written, written[-1]],
            where="post",
            color=COLORS[number - 1],
            label=f"written in attempt {number}",
        )
        ax.plot(moments, written, "o", markersize=4, color=COLORS[number - 1])
        before = written[-1]
    ax.axvline(killed_at, color=COLORS[4], linestyle=":")
    ax.annotate(
        f"killed: ${lost:.3f} of at most ${tick * each:.3f} is never counted",
        (killed_at, killed_at * each),
        (-8, 14),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    ax.set(xlabel="seconds", ylabel="dollars", xlim=(0, until), ylim=(0, None))
    ax.yaxis.set_major_formatter("${x:.2f}")
    ax.legend(loc="lower right", fontsize=9)
    plt.close(figure)
    return figure
