"""What a chapter needs around the code that it teaches; `slm` never imports it.

`python -m course export` writes `slm/` from the chapters, `python -m course run` executes them.
"""

import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 88  # columns of a chapter's code, and of what it prints

# What reads notebooks imports jsonschema, which where it finds this package builds a grammar of internet addresses: over
# a second, and no notebook's schema asks for one.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

BOOK = "SLM_BOOK"
"""Set in the environment of a kernel that runs a chapter for the book; figures are then drawn as SVG, too."""

Method = TypeVar("Method")


def start(seed: int = 0) -> None:
    """Prepare a notebook: work from the repository's root, on one thread, seeded, with the course's plotting style.

    One thread, because models as small as ours spend more time waking a second thread than it saves.
    """
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "6"
    )  # else PyTorch's profiler reports each start and stop of its own

    import torch

    from course import plots

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    plots.style()


def add_to(cls: type) -> Callable[[Method], Method]:
    """Give `cls` the decorated function as a method, so that a long class can be taught in several cells.

    In the exported module the method stands inside the class.
    """

    def register(method: Method) -> Method:
        function: Any = getattr(
            method, "fget", method
        )  # a property has no name of its own before Python 3.13
        setattr(cls, function.__name__, method)
        return method

    return register


def show(*values: object, hanging: str = "") -> None:
    """Print as `print` does, each line wrapped at the width of a chapter; `hanging` begins what runs over."""
    for line in " ".join(map(str, values)).splitlines() or [""]:
        print(
            textwrap.fill(
                line,
                WIDTH,
                subsequent_indent=hanging,
                break_long_words=False,
                break_on_hyphens=False,
                replace_whitespace=False,
            )
        )


def summary(*modules: str) -> None:
    """Print what a chapter leaves behind: each module with its size and public names."""
    from course.provenance import public_names

    for module in modules:
        path = ROOT / module
        if not path.exists():
            raise FileNotFoundError(
                f"{module} is not there; `python -m course export` writes it from this chapter."
            )
        source = path.read_text(encoding="utf-8")
        names = ", ".join(public_names(source))
        show(f"{module}: {len(source.splitlines())} lines, {names}", hanging="  ")
