"""The checks behind the exercises: `check.attention(my_attention)` says what is wrong and where to look."""

import importlib
import pkgutil
from typing import Any

CHAPTERS = sorted(module.name for module in pkgutil.iter_modules(__path__))


def __getattr__(name: str) -> Any:
    """Find the check of that name in the chapters' modules, each loaded when it is first looked at."""
    if not name.startswith("_"):
        for chapter in CHAPTERS:
            module = importlib.import_module(f"{__name__}.{chapter}")
            if hasattr(vars(module).get(name), "__wrapped__"):  # made by @exercise, not merely imported there
                return vars(module)[name]
    raise AttributeError(f"There is no check named {name!r} in course.check.")
