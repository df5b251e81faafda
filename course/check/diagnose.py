"""Diagnosis by simulation: "you do X" is said only where doing X, and nothing else known, gives what the learner's gave.

A check owns one reference with switches, `answer(*probe, wrong=frozenset())`: each switch is a mistake that learners
make, with the sentence that names it. The learner's function and every simulated mistake (and every two at once) run on
copies of the same probes and are compared by what came out. So no sentence is guessed from a symptom, and the gallery
of planted mistakes that proves the check is the same list (`tests/check/test_diagnose.py` runs it).
"""

import copy
import dataclasses
import functools
import inspect
import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from course.check.verdict import _a, call, function, is_theirs, told

Probe = tuple[Any, ...]
CHANGED = (
    "Your code changed its input {0} in place (+=, an assignment to {0}[…], or a method that ends in _, or append, pop, "
    "sort, …). Whoever holds {0} still needs it as it was: work on a copy, or make a new one."
)
ORDINALS = ("first", "second", "third", "fourth")
NUMPY = (np.random.Generator, np.random.RandomState)
GENERATORS = (torch.Generator, random.Random, *NUMPY)


class WrongKind(Exception):
    """Raised by a `read`: a result cannot be what was asked for. Its text says what was."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one call gave: a value or an error, the names of the arguments that it changed, what an `observe` noted."""

    value: Any = None
    error: BaseException | None = None
    changed: tuple[str, ...] = ()
    notes: Any = None
    kind: str = ""  # what `read` asked for and did not get


# Equal or not


def same(a: Any, b: Any, rtol: float | None = None, atol: float | None = None) -> bool:
    """Equal in kind, in shape and, within rounding, in value. nan equals nan; a bool is no number.

    Without `rtol` and `atol`: 1e-4 and 1e-5 for tensors and arrays, 1e-6 and 0 for a float of Python.
    """
    alike = functools.partial(same, rtol=rtol, atol=atol)
    a, b = (x.item() if isinstance(x, np.generic) else x for x in (a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if not (a.is_floating_point() or a.is_complex()):
            return torch.equal(a, b)
        near = {"rtol": _or(rtol, 1e-4), "atol": _or(atol, 1e-5)}
        return torch.allclose(a, b, equal_nan=True, **near)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.dtype.kind not in "fc":
            return bool(np.array_equal(a, b))
        return np.allclose(a, b, _or(rtol, 1e-4), _or(atol, 1e-5), equal_nan=True)
    if isinstance(a, float) and isinstance(b, float):
        near = {"rel_tol": _or(rtol, 1e-6), "abs_tol": _or(atol, 0.0)}
        return math.isclose(a, b, **near) or (a != a and b != b)
    for kind in (list, tuple):
        if isinstance(a, kind) and isinstance(b, kind):
            return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, Set) and isinstance(b, Set):
        return a == b
    if type(a) is not type(b):
        return False
    if isinstance(a, GENERATORS) or inspect.isroutine(a):
        return True  # drawing from a generator changes it, as it should
    if isinstance(a, nn.Module):
        return alike(dict(a.state_dict()), dict(b.state_dict()))
    if isinstance(a, BaseException):
        return str(a) == str(b)
    if dataclasses.is_dataclass(a) or type(a).__eq__ is object.__eq__:
        return a is b or alike(getattr(a, "__dict__", {}), getattr(b, "__dict__", {}))
    return bool(a == b)


def _or(given: float | None, default: float) -> float:
    return default if given is None else given


# What to say


def readable(value: Any, digits: int = 4) -> str:
    """A value as a sentence shows it: numbers rounded, a long one cut."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, Tensor | np.ndarray):
        large = math.prod(value.shape) > 16
        shape = f"{type(value).__name__} of shape {tuple(value.shape)}"
        return shape if large else readable(value.tolist(), digits)
    each = functools.partial(readable, digits=digits)
    if isinstance(value, Mapping):
        items = [f"{each(key)}: {each(value[key])}" for key in value]
        return "{" + _cut(items) + "}"
    if isinstance(value, list):
        return "[" + _cut(map(each, value)) + "]"
    if isinstance(value, tuple):
        return "(" + _cut(map(each, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, set | frozenset) and value:
        return "{" + _cut(sorted(map(each, value))) + "}"
    if isinstance(value, Mapping | list | tuple | set):
        return repr(value)
    if inspect.isroutine(value) or inspect.isclass(value):
        return value.__name__
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]} … {text[-10:]}"


def _cut(items: Iterable[str], most: int = 12) -> str:
    texts = list(items)
    if len(texts) > most:
        texts = [*texts[: most - 1], f"… ({len(texts)} in all)"]
    return ", ".join(texts)


def _both(got: Any, wanted: Any) -> tuple[str, str]:
    """Both, with as many digits as it takes to see a difference."""
    pairs = [(readable(got, n), readable(wanted, n)) for n in (4, 6, 9, 17)]
    return next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])


def kind_of(got: Any, wanted: Any) -> str:
    """What is wrong with a result's kind, shape or dtype, or an empty string."""
    if got is None and wanted is not None:
        return "the result is None. Return it: does every path through your function end in `return`?"
    if isinstance(got, BaseException) and not isinstance(wanted, BaseException):
        return f"it returns an error ({_a(got)}). An error is raised: `raise`, not `return`."
    if inspect.isgenerator(got) and not inspect.isgenerator(wanted):
        return "the result is a generator, since there is a `yield` in your function. Return the whole result."
    if isinstance(got, Tensor | np.ndarray) and isinstance(got, type(wanted)):
        if got.shape != wanted.shape:
            said = f"the result has the shape {tuple(got.shape)}; it should be {tuple(wanted.shape)}."
            if got.ndim == 2 and got.shape == wanted.shape[::-1]:
                said += " It is turned: rows and columns have changed places."
            return said
        if got.dtype != wanted.dtype:
            return f"the result holds {got.dtype}; it should hold {wanted.dtype}."
        return ""
    for kind in (list, tuple, Mapping, Set, Tensor, np.ndarray):
        if isinstance(wanted, kind) and isinstance(got, kind):
            return ""
    if type(got) is not type(wanted):
        shown = "" if isinstance(got, Tensor | np.ndarray) else f" ({readable(got)})"
        return f"the result is {_a(got)}{shown}; it should be {_a(wanted)}."
    return ""


def difference(
    got: Any, wanted: Any, rtol: float | None = None, atol: float | None = None
) -> str:
    """How a result differs from the right one: what came and what should have come, or an empty string.

    Small results are shown whole, of large ones the first element that differs.
    """
    alike = functools.partial(same, rtol=rtol, atol=atol)
    if alike(got, wanted):
        return ""
    if wrong := kind_of(got, wanted):
        return wrong
    whole = "the result should be {1}; yours is {0}."
    if isinstance(wanted, Tensor | np.ndarray):
        if math.prod(wanted.shape) > 8:
            spots = np.ndindex(*wanted.shape)
            index = next(
                i for i in spots if not alike(got[(*i, None)], wanted[(*i, None)])
            )
            got, wanted = got[index], wanted[index]
            whole = f"at [{', '.join(map(str, index))}] {whole.replace('yours', 'yours there')}"
        return whole.format(*_both(got, wanted))
    if isinstance(wanted, Mapping):
        missing, extra = wanted.keys() - got.keys(), got.keys() - wanted.keys()
        if missing or extra:
            return _set_difference(missing, extra, "key")
        key = next(key for key in wanted if not alike(got[key], wanted[key]))
        return f"for {readable(key)} " + difference(got[key], wanted[key], rtol, atol)
    if isinstance(wanted, Set):
        return _set_difference(wanted - got, got - wanted, "element")
    if isinstance(wanted, str | bytes) and max(len(got), len(wanted)) > 60:
        at = next(
            (i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b),
            min(len(got), len(wanted)),
        )
        cut = slice(max(0, at - 10), at + 30)
        return f"from position {at} on it should go on {wanted[cut]!r}; yours goes on {got[cut]!r}."
    if isinstance(wanted, list | tuple):
        short = len(readable(got)) + len(readable(wanted)) <= 240
        if (short and max(len(got), len(wanted)) <= 12) or not wanted:
            return whole.format(*_both(got, wanted))
        if len(got) != len(wanted):
            return f"the result has {len(got)} elements; it should have {len(wanted)}: {readable(wanted)}; yours is {readable(got)}."
        at = next(i for i in range(len(wanted)) if not alike(got[i], wanted[i]))
        return f"at [{at}] " + difference(got[at], wanted[at], rtol, atol)
    return whole.format(*_both(got, wanted))


def _set_difference(missing: Iterable[Any], extra: Iterable[Any], what: str) -> str:
    parts = [
        f"{verb} {what} {_cut(sorted(map(readable, some)), 5)}"
        for verb, some in (("misses the", missing), ("has the superfluous", extra))
        if some
    ]
    return f"the result {' and '.join(parts)}."


def regularity(got: Sequence[Any], wanted: Sequence[Any]) -> str:
    """What holds for all results together, such as one factor everywhere. Only what is seen; an empty string else."""
    if len(wanted) > 2 and all(same(one, got[0]) for one in got):
        some = ", right here and wrong there" if any(map(same, got, wanted)) else ""
        if not all(same(one, wanted[0]) for one in wanted):
            return f" Yours is the same for every input that was tried{some}."
    lengths = {len(x) if isinstance(x, list | tuple) else 0 for x in (*got, *wanted)}
    if 0 not in lengths:
        if all(same([*a], [*b][::-1]) for a, b in zip(got, wanted, strict=True)):
            return " Yours is always the right one in reverse."
        if len(lengths) > 1 or lengths > {4}:
            return ""
        said: dict[str, list[str]] = {}
        columns = zip(zip(*got, strict=True), zip(*wanted, strict=True), strict=True)
        for ordinal, (a, b) in zip(ORDINALS, columns, strict=False):
            said.setdefault("" if same(a, b) else regularity(a, b), []).append(ordinal)
        said.pop("", None)
        return "".join(
            f"{text} (The {', '.join(of)} element.)" for text, of in said.items()
        )
    if any(isinstance(x, bool | str) for x in (*got, *wanted)):
        return ""
    try:
        theirs, ours = (
            np.concatenate([np.asarray(x, dtype=float).ravel() for x in results])
            for results in (got, wanted)
        )
    except (TypeError, ValueError, RuntimeError):
        return ""
    if theirs.shape != ours.shape or len(set(ours)) < 2:
        return ""
    if not np.isfinite([ours, theirs]).all():
        return ""
    for digits in range(5):
        if theirs.tolist() == [round(x, digits) for x in ours.tolist()]:
            return " In every case that was tried yours is the right one, rounded: leave rounding to whoever shows it."
    with np.errstate(all="ignore"):
        ratio, offset = theirs / ours, theirs - ours
    if np.allclose(ratio, ratio[0], rtol=1e-5, atol=0) and abs(ratio[0]) > 1e-12:
        return (
            " In every case that was tried yours is the right one with the other sign."
            if math.isclose(ratio[0], -1.0, rel_tol=1e-5)
            else f" In every case that was tried yours is {ratio[0]:.4g} times the right one."
        )
    if np.allclose(offset, offset[0], rtol=1e-5, atol=1e-9 * abs(ours).max()):
        return f" In every case that was tried yours is {abs(offset[0]):.4g} too {'large' if offset[0] > 0 else 'small'}."
    return ""


# For references

Wrong = frozenset[str]
RIGHT: Wrong = frozenset()


def pick(wrong: Wrong, instead: Mapping[str, Any], right: Any) -> Any:
    """What the switch that is on puts instead of the right one."""
    return next((instead[name] for name in instead if name in wrong), right)


# Readers: the looser kinds that are accepted


def _item(value: Any) -> Any:
    """A tensor or an array with one element as the number in it."""
    array = isinstance(value, Tensor | np.ndarray | np.generic)
    return value.item() if array and math.prod(value.shape) == 1 else value


def number(value: Any) -> float:
    """Any real number, of Python, numpy or a tensor with one element."""
    value = _item(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongKind("a number")
    return float(value)


def whole(value: Any) -> int:
    """An int, of Python, numpy or a tensor with one element; no float."""
    value = _item(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise WrongKind("a whole number, an int")
    return value


def flag(value: Any) -> bool:
    """True or False, of Python, numpy or a tensor with one element."""
    value = _item(value)
    if not isinstance(value, bool):
        raise WrongKind("True or False")
    return value


def listed(
    each: Callable[[Any], Any] = lambda value: value,
    length: int | None = None,
    what: str = "",
) -> Callable[[Any], list[Any]]:
    """A reader of lists, tuples, arrays and tensors, each element read by `each`, as a list."""

    def read(value: Any) -> list[Any]:
        if isinstance(value, Tensor | np.ndarray):
            value = value.tolist()
        if not isinstance(value, list | tuple) or length not in (None, len(value)):
            raise WrongKind(
                what or "a list" + (f" of {length} elements" if length else "")
            )
        try:
            return [each(element) for element in value]
        except WrongKind as inner:
            raise WrongKind(what or f"a list, each element {inner}") from None

    return read


# The diagnosis


def chosen(wrong: Set[str], options: Mapping[str, Any], default: Any) -> Any:
    """The first of the options whose switch is on."""
    return next((options[name] for name in options if name in wrong), default)


class Diagnosis:
    """What is wrong with a learner's function, in a sentence.

    Args:
        answer: The reference; takes a probe and `wrong`, a frozenset of keys of `mistakes`. It, too, gets copies.
        mistakes: What each switch does, said to the one who did it, in one or two sentences: "You … . Do … ."
        probes: Arguments, the smallest first (it is the one shown); the others tell mistakes apart. Several sizes, so
            that nothing can be hard-coded. Where results carry little (a bool), many probes or `pairs=False`.
        show: How a probe is named at the beginning of a sentence; without it, by the names of the arguments.
        read: Turns a result, the learner's or a simulated one, into what is compared, so that looser kinds pass (`number`,
            `whole`, `flag`, `listed(…)`, or your own, which raises `WrongKind("a pair (hours, dollars)")`). Whatever it
            raises means: a wrong kind of result.
        observe: How the function is used, where that is more than `fn(*probe)`: `observe(fn, *probe) -> (value, notes)`.
            It may hand in watched functions and return as notes what they were called with, in a form in which every
            right order is equal; it may keep calling (use `call` for what the first call gave). A function that is
            meant to change its arguments returns them as the value here, made in here.
        noted: What the notes are, for the sentence: "the arguments of law"; or what to say of the learner's notes and the
            right ones where they differ, an empty string if nothing.
        refusal: What counts of an error that is asked for, `refusal(error, *probe)`; without it only its kind does.
        twins: Groups of switches that no probe can tell apart; they are named together.
        pairs: Whether two mistakes at once are tried (never where the learner's code stops with an error of its own).
        rtol, atol: Tolerances for numbers in a result, see `same`.
    """

    def __init__(
        self,
        answer: Callable[..., Any],
        mistakes: Mapping[str, str],
        probes: Sequence[Probe],
        show: Callable[..., str] | None = None,
        *,
        read: Callable[[Any], Any] | None = None,
        observe: Callable[..., tuple[Any, Any]] | None = None,
        noted: str | Callable[[Any, Any], str] = "what your function called",
        refusal: Callable[..., Any] | None = None,
        twins: Iterable[Iterable[str]] = (),
        pairs: bool = True,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> None:
        self.answer, self.mistakes, self.probes = answer, mistakes, list(probes)
        self.read, self.observe, self.noted, self.pairs = read, observe, noted, pairs
        self.refusal = refusal
        self.twins = [set(group) for group in twins]
        self.same = functools.partial(same, rtol=rtol, atol=atol)
        self.difference = functools.partial(difference, rtol=rtol, atol=atol)
        parameters = list(inspect.signature(observe or answer).parameters)
        self.names = parameters[1:] if observe else parameters
        self._show = show
        self._kept: dict[tuple[frozenset[str], int], Outcome] = {}

    def show(self, probe: Probe) -> str:
        """A probe at the beginning of a sentence."""
        if self._show is not None:
            return self._show(*probe)
        named = zip(self.names, probe, strict=False)
        return "For " + ", ".join(
            f"{name} = {readable(value)}" for name, value in named
        )

    def run(self, fn: Callable[..., Any], probe: Probe, theirs: bool = True) -> Outcome:
        """One use of a function, on copies of a probe."""
        args = copy.deepcopy(probe)
        value, notes, error, kind = None, None, None, ""
        try:
            value, notes = (
                self.observe(fn, *args) if self.observe else (call(fn, *args), None)
            )
        except (Exception, SystemExit) as raised:
            if theirs and (
                isinstance(raised, NotImplementedError) or not is_theirs(raised)
            ):
                raise  # the stub, and the check's own word or fault: told by `exercise`
            error = raised
            notes = self.refusal(error, *probe) if self.refusal else None
        changed = tuple(
            name
            for name, left, given in zip(self.names, args, probe, strict=False)
            if not same(left, given, 0.0, 0.0)
        )
        if error is None and self.read is not None:
            try:
                value = self.read(value)
            except Exception as unread:  # a result that cannot be read is a wrong kind
                kind = (
                    str(unread) if isinstance(unread, WrongKind) else "something else"
                )
        return Outcome(value, error, changed, notes, kind)

    def simulated(self, wrong: Iterable[str], index: int) -> Outcome:
        """What the reference gives for a probe with these mistakes made; computed once."""
        key = frozenset(wrong), index
        if key not in self._kept:
            fn = functools.partial(self.answer, wrong=key[0])
            self._kept[key] = self.run(fn, self.probes[index], theirs=False)
        return self._kept[key]

    @functools.cached_property
    def asked(self) -> tuple[type[BaseException], ...]:
        """The kinds of errors that the exercise asks for."""
        right = [self.simulated((), i).error for i in range(len(self.probes))]
        return tuple({type(error) for error in right if error is not None})

    def alike(self, got: Outcome, wanted: Outcome, changes: bool = True) -> bool:
        """Whether two outcomes cannot be told apart; of a kind of error that is asked for, only what `refusal` reads counts."""
        if changes and got.changed != wanted.changed:
            return False
        if got.error is not None or wanted.error is not None:
            if wanted.error is not None and isinstance(wanted.error, self.asked):
                kind = isinstance(got.error, type(wanted.error))
                return kind and self.same(got.notes, wanted.notes)
            return type(got.error) is type(wanted.error) and str(got.error) == str(
                wanted.error
            )
        if got.kind or wanted.kind:
            return bool(got.kind and wanted.kind) and self.same(got.value, wanted.value)
        return self.same(got.value, wanted.value) and self.same(got.notes, wanted.notes)

    def fits(
        self, theirs: Sequence[Outcome], wrong: Iterable[str], changes: bool = True
    ) -> bool:
        """Whether these mistakes give what the learner's function gave, on every probe."""
        wrong = frozenset(wrong)
        return all(
            self.alike(got, self.simulated(wrong, i), changes)
            for i, got in enumerate(theirs)
        )

    def explain(self, fn: Callable[..., Any]) -> str | None:
        """None if `fn` does what the reference does on every probe, else the sentence for the learner."""
        function(fn)
        theirs = [self.run(fn, probe) for probe in self.probes]
        if self.fits(theirs, ()):
            return None
        for changes in (True, False):
            found: list[tuple[str, ...]] = [
                (m,) for m in self.mistakes if self.fits(theirs, (m,), changes)
            ]
            if not changes and self.fits(theirs, (), changes):
                found = [()]
            if found:
                said = self.named(found) + ("" if changes else self.changes(theirs))
                return said.strip()
        stopped = (o.error for o in theirs if o.error is not None)
        if self.pairs and all(isinstance(error, self.asked) for error in stopped):
            two = itertools.combinations(self.mistakes, 2)
            found = [pair for pair in two if self.fits(theirs, pair, changes=False)]
            if 0 < len(found) <= 2:
                wanted = [self.simulated(found[0], i) for i in range(len(theirs))]
                known = [o.changed for o in wanted] == [o.changed for o in theirs]
                return self.named(found) + ("" if known else self.changes(theirs))
        return self.symptom(fn, theirs)

    def judge(self, fn: Callable[..., Any]) -> None:
        """Assert that `fn` does what the reference does."""
        wrong = self.explain(fn)
        assert wrong is None, wrong

    def named(self, found: Sequence[tuple[str, ...]]) -> str:
        """The sentence for what was done; for several that give the same, all of them."""
        both = set.intersection(*map(set, found)) if len(found) > 1 else set()
        said = [
            " And: ".join(self.mistakes[m] for m in wrong if m not in both)
            for wrong in found
        ]
        before = [self.mistakes[m] for m in both]
        several = ("one" if both else "One") + " of these: " + " Or: ".join(said)
        return " And ".join([*before, said[0] if len(said) == 1 else several])

    def changes(self, theirs: Sequence[Outcome]) -> str:
        """What to say of arguments that were changed."""
        names = {name: None for outcome in theirs for name in outcome.changed}
        return "".join(" " + CHANGED.format(name) for name in names)

    def unsteady(self, fn: Callable[..., Any], theirs: Sequence[Outcome]) -> str:
        """What to say where a second call with the same arguments gives another result."""
        for probe, got in zip(self.probes, theirs, strict=True):
            again = self.run(fn, probe)
            steady = self.same(got.value, again.value)
            told = (got.error, again.error, got.notes) != (None, None, None)
            if not steady and not told:
                return f"{self.show(probe)}: two calls with the same arguments give different results. Something random is in your function (a draw of its own, dropout, a new layer), or it keeps something from one call to the next (a global, a list as a default)."
        return ""

    def symptom(self, fn: Callable[..., Any], theirs: Sequence[Outcome]) -> str:
        """A mistake that is not known: a wrong kind first, then the first probe where the outcome differs."""
        if said := self.unsteady(fn, theirs):
            return said
        right = [self.simulated((), i) for i in range(len(theirs))]
        wrong = [
            i
            for i, (got, wanted) in enumerate(zip(theirs, right, strict=True))
            if not self.alike(got, wanted, False)
        ]
        first = min(wrong, key=lambda i: (not self._wrong_kind(theirs[i], right[i]), i))
        got, wanted = theirs[first], right[first]
        kind = self._wrong_kind(got, wanted)
        always = all(map(self._wrong_kind, theirs, right)) and kind
        said = (
            always
            or f"{self.show(self.probes[first])}: {kind or self._told(got, wanted)}"
        )
        more = "" if kind else self._everywhere(theirs, right)
        return said[0].upper() + said[1:] + more + self.changes(theirs)

    def _everywhere(self, theirs: Sequence[Outcome], right: Sequence[Outcome]) -> str:
        if any(o.error is not None or o.kind for o in (*theirs, *right)):
            return ""
        return regularity([o.value for o in theirs], [o.value for o in right])

    def _wrong_kind(self, got: Outcome, wanted: Outcome) -> str:
        value = got.value
        if got.error is not None or wanted.error is not None:
            return kind_of(value, None) if isinstance(value, BaseException) else ""
        if not got.kind or got.kind == "something else" or _plain(value):
            return kind_of(value, wanted.value)
        array = isinstance(value, Tensor | np.ndarray)
        shown = (
            f"of the shape {tuple(value.shape)}" if array else f"({readable(value)})"
        )
        if isinstance(value, float):
            shown = f"({value!r})"  # 3.0 is no 3
        return f"the result is {_a(value)} {shown}; it should be {got.kind}."

    def _told(self, got: Outcome, wanted: Outcome) -> str:
        if got.error is not None:
            if wanted.error is not None and isinstance(got.error, type(wanted.error)):
                return f"it stops with {_a(wanted.error)}, as it should, but it says {str(got.error)!r}; it could say {str(wanted.error)!r}."
            said = told(got.error)
            said = said[0].lower() + said[1:]
            if wanted.error is not None:
                return f"it should stop with {_a(wanted.error)}; instead {said}"
            return said
        if wanted.error is not None:
            return f"it should stop with {_a(wanted.error)} ({wanted.error}); yours returns {readable(got.value)}."
        notes = "" if self.same(got.notes, wanted.notes) else self.noted
        if callable(notes):
            notes = notes(got.notes, wanted.notes)
        elif notes:
            differ = self.difference(got.notes, wanted.notes)
            notes = f"not {notes}: {differ.replace('the result', 'it')}"
        if not self.same(got.value, wanted.value):
            said = self.difference(got.value, wanted.value)
            more = notes if callable(self.noted) else ""
            return f"{said} {more[:1].upper()}{more[1:]}".rstrip()
        return f"the result is right, but {notes}"


def _plain(value: Any) -> bool:
    """Whether a wrong kind has a sentence of its own: None, an error, a generator."""
    return (
        value is None or isinstance(value, BaseException) or inspect.isgenerator(value)
    )
