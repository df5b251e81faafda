"""What the welcome page shows of the finished run: a story that the model wrote, and its loss against the floor.

An extension of Sphinx. Both are computed from the run of `configs/stories_cpu.yaml` that the chapter about the trainer leaves.
"""

import functools
import html
import math
from typing import Any

import numpy as np
from docutils import nodes
from docutils.parsers.rst import Directive

from course import ROOT

CONFIG = ROOT / "configs" / "stories_cpu.yaml"


@functools.cache
def finished() -> tuple[str, list[tuple[int, float]], float]:
    """The first story of the model that the grammar accepts, its validation losses by step, and the floor.

    Raises:
        SlmError: There is no finished run.
    """
    from slm.data import floor
    from slm.model.gpt import sample_tokens
    from slm.training.folder import read_metrics
    from slm.training.run import load_run

    folder = ROOT / "runs" / CONFIG.stem
    run = load_run(folder)
    end = run.tokenizer.eot_token
    stories = (
        run.tokenizer.decode(sample_tokens(run.model, [end], 160, seed, end))
        for seed in range(1000)
    )
    losses = [
        (row["step"], row["val/loss"])
        for row in read_metrics(folder)
        if "val/loss" in row
    ]
    return (
        next(filter(floor.accepts, stories)),
        losses,
        floor.reference_lines(run.tokenizer).floor,
    )


def loss_figure(losses: list[tuple[int, float]], floor: float) -> str:
    """An SVG: the validation loss, step by step, above the line that no model can go below."""
    steps, first = losses[-1][0], losses[0][1]
    top = first + 0.15 * (first - floor)

    def place(step: int, loss: float) -> tuple[float, float]:
        return 40 + 360 * step / steps, 24 + 150 * (top - loss) / (top - floor)

    points = [place(*point) for point in losses]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
    bottom = place(0, floor)[1]
    # the last label begins at 280; the line may not run through it
    across, down = zip(*points, strict=True)
    start = float(np.interp(280, across, down))
    above = min(start, *(y for x, y in points if x > 280)) - 10
    last = f"the model: {losses[-1][1]:.3f}"
    label = (
        f"The validation loss falls from {first:.3f} after {losses[0][0]:,} steps to "
        f"{losses[-1][1]:.3f} after {steps:,}; the floor lies at {floor:.3f}."
    )
    return (
        f'<svg viewBox="0 0 420 200" role="img" aria-label="{label}">'
        f'<line x1="40" x2="410" y1="{bottom:.1f}" y2="{bottom:.1f}" class="floor"/>'
        f'<polyline points="{line}"/>{dots}'
        f'<text x="40" y="{bottom + 18:.1f}">the floor: {floor:.3f}</text>'
        f'<text x="404" y="{above:.1f}" text-anchor="end">{last}</text>'
        f'<text x="{points[0][0] + 10:.1f}" y="{points[0][1] - 2:.1f}">{first:.3f} nats per token</text>'
        f'<text x="404" y="{bottom + 18:.1f}" text-anchor="end">{steps:,} steps</text>'
        "</svg>"
    )


class Finished(Directive):
    """The story and the loss, side by side where there is room."""

    def run(self) -> list[nodes.Node]:
        """Write both as figures, each with its caption."""
        from slm.training.folder import RunFolder

        rows = RunFolder(ROOT / "runs" / CONFIG.stem).metrics
        self.state.document.settings.env.note_dependency(str(rows))
        story, losses, floor = finished()
        nats = math.ceil(1000 * (losses[-1][1] - floor)) / 1000
        made = (
            '<div class="finished-run"><figure>'
            f"<blockquote>{html.escape(story)}</blockquote>"
            "<figcaption>Written by the model that you train, on two CPU cores, from nothing: the first "
            "of its stories that the grammar accepts.</figcaption></figure><figure>"
            f"{loss_figure(losses, floor)}"
            "<figcaption>Its loss on stories that it has not seen, while it learns. No model can go below the floor, "
            f"which is computed exactly; at the end at most {nats:.3f} nats are missing.</figcaption></figure></div>"
        )
        return [nodes.raw("", made, format="html")]


def setup(app: Any) -> dict[str, bool]:
    """Register it with Sphinx."""
    app.add_directive("finished-run", Finished)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
