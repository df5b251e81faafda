"""The figure of the chapter on the meter: what is paid, what is written, and what a kill hides."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from course.plots import COLORS, INK, name_points


def ticks(tick: float, killed_at: float, until: float, rate: float = 3.60) -> Figure:
    """Dollars against seconds: a line that is paid, and the steps that the meter writes in two attempts."""
    figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    each = rate / 3600
    lost = (killed_at % tick) * each
    ax.plot([0, until], [0, until * each], color=INK)
    before, names = 0.0, [(until, until * each, "paid", INK)]
    attempts = ((0.0, killed_at, "first"), (killed_at, until, "second"))
    for (start, end, name), color in zip(attempts, COLORS, strict=False):
        moments = [start + tick * i for i in range(int((end - start) // tick) + 1)]
        written = [before + (moment - start) * each for moment in moments]
        corners = [*moments, end], [*written, written[-1]]
        ax.step(*corners, where="post", color=color)
        ax.plot(moments, written, "o", markersize=4, color=color)
        before = written[-1]
        told = f"written in the\n{name} attempt"
        names.append((moments[1] + tick / 2, written[1], told, color))
    ax.axvline(killed_at, color=COLORS[4], linestyle=":")
    ax.annotate(
        f"killed: \\${lost:.3f} of at most \\${tick * each:.3f} \nis never counted",
        (killed_at, killed_at * each),
        (-8, 20),
        textcoords="offset points",
        ha="right",
        multialignment="left",
        color=COLORS[4],
    )
    ticks = [tick * i for i in range(int(until // tick) + 1)]
    ax.set_xticks(ticks)
    ax.set_yticks([tick * each * i for i in range(int(until // tick) + 1)])
    ax.set(xlabel="seconds", ylabel="dollars", xlim=(0, until), ylim=(0, None))
    ax.yaxis.set_major_formatter("\\${x:.2f}")
    name_points(ax, names[:1])
    for x, y, name, color in names[1:]:
        points = "offset points"
        ax.annotate(name, (x, y), (0, -6), textcoords=points, va="top", color=color)
    plt.close(figure)
    return figure
