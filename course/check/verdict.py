"""What a check answers, and how a check is written: it asserts its way through to one closing sentence."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


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
            return Verdict(
                False,
                "It is still the stub: replace the line that raises NotImplementedError.",
            )
        except AssertionError as found:
            return Verdict(False, str(found) or "An assert of your own fails.")
        except Exception as error:  # whatever the learner's code raises is the finding
            return Verdict(False, f"Your code raises {type(error).__name__}: {error}")

    return verdict


def untouched(fn: Callable[..., Any], **inputs: Any) -> Any:
    """What `fn` returns for copies of these tensors and numbers, in this order; it must leave the copies as they are."""
    assert callable(fn), (
        f"The check was given {type(fn).__name__}. Hand it your function itself: its name, without calling it."
    )
    copies = copy.deepcopy(inputs)
    result = fn(*copies.values())
    for name, given in inputs.items():
        left = copies[name]
        assert (
            torch.equal(left, given) if isinstance(given, Tensor) else left == given
        ), (
            f"Your code changed its input {name} in place (+=, an assignment to {name}[…], or a method such as add_ or append). "
            f"Write {name} = {name} + …, so that whoever holds {name} still has it."
        )
    return result


class _Recorder(TorchFunctionMode):
    """While it is on, it writes down the name of each function of torch that is called, however it was imported."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def ready_made(fn: Callable[..., Any], *inputs: Any, names: set[str]) -> str:
    """The first of `names`, functions of torch, that `fn` calls for these inputs, or an empty string."""
    with _Recorder() as recorder:
        fn(*inputs)
    return min(names & recorder.names, default="")
