"""What a check answers, and how a check is written: it asserts its way through to one closing sentence."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a check found, as the notebook shows it. A check never stops the notebook."""

    passed: bool
    message: str

    def __repr__(self) -> str:
        return ("Right. " if self.passed else "Not yet. ") + self.message


def exercise(check: Callable[..., str]) -> Callable[..., Verdict]:
    """Turn a function that asserts its way through into one that returns a `Verdict`.

    The learner's own code may raise anything; what it raised is the verdict then.
    """

    @functools.wraps(check)
    def verdict(*answers: Any) -> Verdict:
        try:
            return Verdict(True, check(*answers))
        except NotImplementedError:
            return Verdict(False, "It is still the stub: replace the line that raises NotImplementedError.")
        except AssertionError as found:
            return Verdict(False, str(found))
        except Exception as error:  # whatever the learner's code raises is the finding
            return Verdict(False, f"Your code raises {type(error).__name__}: {error}")

    return verdict
