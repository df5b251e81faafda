"""A figure of the token files: what loaders need as a corpus grows."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from course.plots import COLORS


def loaders_figure(recorded: Sequence[Mapping[str, str]]) -> Figure:
    """Anonymous memory and speed of each loader against the size of the corpus, from rows of benchmarks/loader.py."""
    figure, (memory, speed) = plt.subplots(
        1, 2, figsize=(7.5, 3.2), layout="constrained"
    )
    for name, color in zip(
        dict.fromkeys(row["loader"] for row in recorded), COLORS, strict=False
    ):
        rows = [row for row in recorded if row["loader"] == name]
        sizes = [float(row["megabytes"]) for row in rows]
        label = "this package" if name == "slm" else name
        memory.plot(
            sizes,
            [float(row["anonymous_mb"]) for row in rows],
            "o-",
            color=color,
            label=label,
            markersize=4,
        )
        speed.plot(
            sizes,
            [float(row["m_tokens_per_cpu_s"]) for row in rows],
            "o-",
            color=color,
            markersize=4,
        )
    most = max(float(row["anonymous_mb"]) for row in recorded)
    memory.set(
        xscale="log", yscale="symlog", ylim=(0, 2 * most), ylabel="anonymous memory, MB"
    )
    memory.yaxis.set_major_formatter("{x:g}")
    speed.set(xscale="log", ylim=(0, None), ylabel="M tokens per CPU second")
    for axes in (memory, speed):
        axes.set_xlabel("token file, MB")
        axes.xaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside upper center", ncols=3)
    plt.close(figure)
    return figure
