"""Which ready-made function ran while a learner's did: it may give the right values and teach nothing."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from course.check.verdict import LIBRARIES, call


def used(fn: Callable[..., Any], *inputs: Any, ready_made: tuple[Any, ...]) -> str:
    """The name of the first of these functions that ran inside `fn`, or an empty string.

    One of Python is known by name and code, so that the notebook's own counts as the package's; one of C counts where
    it is called from code that is no library's.
    """
    known = [(f.__name__, getattr(f, "__code__", f)) for f in ready_made]
    codes = [(name, getattr(code, "co_code", code)) for name, code in known]
    found: list[str] = []

    def note(frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event == "call" and (code.co_name, code.co_code) in codes:
            found.append(code.co_name)
        if event == "c_call" and (arg.__name__, arg) in codes:
            if not code.co_filename.startswith(LIBRARIES):
                found.append(arg.__name__)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call(fn, *inputs)
    finally:
        sys.setprofile(before)
    return found[0] if found else ""
