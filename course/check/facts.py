"""A Diagnosis of what has many right results: facts about them are compared, in stages, instead of the results."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from course.check.diagnose import Diagnosis, Outcome, WrongKind
from course.check.verdict import told


class Facts(Diagnosis):
    """What is wrong with a learner's function, where a permutation or a hash may be any.

    Args:
        answer, mistakes: As of a `Diagnosis`.
        stages: Each uses the function and returns facts by name, the same for all right answers whatever chance does.
        says: For each fact, the sentence for one that is not as it should be. It says no more than the fact.
    """

    def __init__(
        self,
        answer: Callable[..., Any],
        mistakes: Mapping[str, str],
        stages: Sequence[Callable[[Any], dict[str, Any]]],
        says: Mapping[str, Callable[[Any], str]],
        **options: Any,
    ) -> None:
        of = {stage.__name__: stage for stage in stages}

        def observe(fn: Any, name: str) -> tuple[dict[str, Any], None]:
            try:
                return of[name](fn), None
            except WrongKind as found:  # a stage cannot read a result
                return {"kind": str(found)}, None

        probes = [(name,) for name in of]
        super().__init__(answer, mistakes, probes, observe=observe, **options)
        self.says = says

    def symptom(self, fn: Callable[..., Any], theirs: Sequence[Outcome]) -> str:
        """The first fact, in the order of `says`, that is not as it should be."""
        for i, got in enumerate(theirs):
            if got.error is not None:
                return told(got.error)
            right = self.simulated((), i).value
            for name, say in self.says.items():
                if name in got.value and got.value[name] != right.get(name):
                    return say(got.value[name])
        raise AssertionError("This answer is right, and was not told so.")
