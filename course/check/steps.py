"""A reference written as steps, `name: expression`, so that a mistake is a step written otherwise: its own name."""

import functools
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from types import CodeType
from typing import Any


@functools.cache
def _compiled(expression: str) -> CodeType:
    return compile(expression, "<step>", "eval")


def carried_out(
    steps: Mapping[str, str], wrong: AbstractSet[str], **names: Any
) -> dict[str, Any]:
    """The values of all steps, carried out in order; each may use the ones before, and the names given.

    A mistake "name = expression" in `wrong` takes the place of the step of that name; others mean nothing here.
    """
    instead = dict(mistake.split(" = ", 1) for mistake in sorted(wrong) if " = " in mistake)  # fmt: skip
    for name, expression in steps.items():
        names[name] = eval(_compiled(instead.get(name, expression)), names)
    return names
