"""The engine of the checks, rule by rule; and every switch of every Diagnosis: told alone, in its own sentence."""

import dataclasses
import functools
import importlib
import linecache
import sys

import numpy as np
import pytest
import torch

from course import check
from course.check import diagnose
from course.check.diagnose import Diagnosis, difference, listed, number, same, whole
from course.check.verdict import call, exercise, ready_made, tried, untouched

# Every Diagnosis of the checks


def diagnoses():
    found = []
    for chapter in check.CHAPTERS:
        module = importlib.import_module(f"course.check.{chapter}")
        for name, value in vars(module).items():
            if isinstance(value, Diagnosis):
                found.append(pytest.param(value, id=f"{chapter}.{name}"))
    return found


def switches():
    return [
        pytest.param(case.values[0], switch, id=f"{case.id}-{switch}")
        for case in diagnoses()
        for switch in case.values[0].mistakes
    ]


@pytest.mark.parametrize("diagnosis", diagnoses())
def test_the_reference_is_right(diagnosis):
    assert diagnosis.explain(diagnosis.answer) is None


@pytest.mark.parametrize("diagnosis, switch", switches())
def test_each_switch_is_named_alone_or_with_its_twins(diagnosis, switch):
    said = diagnosis.explain(
        functools.partial(diagnosis.answer, wrong=frozenset([switch]))
    )
    group = {switch}.union(*(twins for twins in diagnosis.twins if switch in twins))
    assert len(group) <= 3, "Who is told four things at once is told nothing."
    named = [(m,) for m in diagnosis.mistakes if m in group]
    assert said == diagnosis.named(named)


@pytest.mark.parametrize("diagnosis", diagnoses())
def test_no_sentence_is_said_of_two_switches(diagnosis):
    assert len({*diagnosis.mistakes.values()}) == len(diagnosis.mistakes)


# The engine: a small exercise, the mean of a list, times a factor


def mean(values, factor, wrong=frozenset()):
    if "empties" in wrong:
        values.clear()
        return 0.0
    total = sum(values[1:] if "first" in wrong else values)
    count = len(values) + ("count" in wrong)
    if "integers" in wrong:
        return float(total // count * factor)
    return total / count if "factor" in wrong else factor * total / count


MEAN = Diagnosis(
    mean,
    {
        "first": "You leave out the first value.",
        "count": "You divide by one too many.",
        "factor": "You forget the factor.",
        "integers": "You divide integers.",
        "empties": "You empty the list.",
    },
    [([1.0], 2.0), ([1.0, 4.0], 2.0), ([3.0, 4.5, 9.0], 0.5)],
    read=number,
)


@exercise
def mean_check(fn):
    """Check."""
    MEAN.judge(fn)
    return "Every value counts once."


def learner(source, name="f", file="", **names):
    """A function as a notebook holds it, or in another file: its lines are known to tracebacks."""
    file = file or f"<cell {hash(source)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    space = {"torch": torch, "np": np, "sys": sys, **names}
    exec(compile(source, file, "exec"), space)
    return space[name]


def says(source, **names):
    return mean_check(learner(source, **names)).message


def test_right_answers_of_other_kinds_pass():
    assert mean_check(lambda v, k: np.float64(k * np.mean(v))).passed
    assert mean_check(lambda v, k: torch.tensor(v).mean() * k).passed


def test_one_mistake_and_two_at_once():
    assert mean_check(lambda v, k: sum(v) / len(v)).message == "You forget the factor."
    both = mean_check(lambda v, k: sum(v[1:]) / len(v)).message
    assert both == "You leave out the first value. And: You forget the factor."


def test_without_pairs_two_at_once_are_told_by_the_symptom():
    alone = Diagnosis(MEAN.answer, MEAN.mistakes, MEAN.probes, read=number, pairs=False)
    said = alone.explain(lambda v, k: sum(v[1:]) / len(v))
    assert said == "For values = [1], factor = 2: the result should be 2; yours is 0."


def test_what_cannot_be_told_apart_is_told_together():
    short = Diagnosis(mean, MEAN.mistakes, [([2.0], 1.0)])
    said = short.explain(lambda v, k: 0.0)
    assert said == "You leave out the first value."  # the list is not empty
    said = short.explain(lambda v, k: 1.0)
    assert said == "You divide by one too many."
    twins = Diagnosis(mean, {"first": "A.", "integers": "B."}, [([0.5], 1.0)])
    assert twins.explain(lambda v, k: 0.0) == "One of these: A. Or: B."


def test_of_pairs_that_share_a_mistake_it_is_named_once():
    said = MEAN.named([("first", "count"), ("first", "factor")])
    assert said == (
        "You leave out the first value. And one of these: You divide by one too many. "
        "Or: You forget the factor."
    )


def test_an_unknown_mistake_is_told_by_its_smallest_case():
    said = mean_check(lambda v, k: k * max(v) + 1).message
    assert "For values = [1], factor = 2: the result should be 2; yours is 3." in said


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda v, k: 2.0, "the same for every input"),
        (lambda v, k: 3 * k * sum(v) / len(v), "3 times the right one"),
        (lambda v, k: -k * sum(v) / len(v), "with the other sign"),
        (lambda v, k: k * sum(v) / len(v) + 7, "7 too large"),
    ],
)
def test_what_holds_everywhere_is_said(answer, words):
    assert words in mean_check(answer).message


def test_only_what_holds_everywhere_is_said():
    said = mean_check(lambda v, k: 3.0 * k * sum(v) / len(v) if len(v) < 3 else 0.0)
    assert "times" not in said.message and "every" not in said.message


@pytest.mark.parametrize(
    "source, words",
    [
        ("def f(v, k):\n    k * sum(v)", "the result is None"),
        ("def f(v, k):\n    yield 1.0", "a generator"),
        ("def f(v, k):\n    return ValueError('no')", "`raise`, not `return`"),
        ("def f(v, k):\n    return 'two'", "a str ('two'); it should be a number"),
        ("def f(v, k):\n    return v if len(v) > 1 else 0.1", "a list"),
    ],
)
def test_a_wrong_kind_is_told_first(source, words):
    assert words.lower() in says(source).lower()


def test_a_wrong_kind_in_a_later_probe_comes_before_a_value():
    said = says("def f(v, k):\n    return 7.0 if len(v) < 3 else None")
    assert says("def f(v, k):\n    k").startswith("The result is None")
    assert said.startswith("For values = [3, 4.5, 9]") and "is None" in said


@pytest.mark.parametrize(
    "body, words",
    [
        ("assert k < 0", "An assert of your own fails in your line `assert k < 0`."),
        ("assert k < 0, f'{k}!'", "fails in your line `assert k < 0, f'{k}!'`: 2.0!."),
        ("sys.exit(1)", "Your code ends Python itself in your line `sys.exit(1)`"),
        ("v.add(1)", "AttributeError in your line `v.add(1)`"),
        ("torch.ones(2) @ torch.ones(3)", "RuntimeError in your line `torch.ones(2) @"),
        ("return helper(v)", "IndexError in your line `return v[9]`"),
        ("return f(v, k)", "calls itself without an end"),
        ("raise NotImplementedError", "It is still the stub"),
    ],
)
def test_what_the_learners_code_raises_is_told_as_theirs(body, words):
    source = f"def helper(v):\n    return v[9]\ndef f(v, k):\n    {body}\n"
    assert words.lower() in says(source).lower()


def test_a_call_that_does_not_fit_and_no_function_at_all():
    assert "cannot be called" in says("def f(v):\n    return 1.0")
    assert "Hand it your function itself" in mean_check(3.0).message


def test_an_error_counts_as_a_mistakes_only_if_its_text_is_the_same():
    def root(x, wrong=frozenset()):
        return [x] if "x" in wrong and x > 1 else [x][0 if "y" not in wrong else 3]

    asked = Diagnosis(root, {"y": "You count from 3."}, [(1,), (2,)])
    assert asked.explain(lambda x: [x][4]) == "You count from 3."
    said = asked.explain(learner("def f(x):\n    return {}[x] if x else ()[1]"))
    assert "stops with KeyError" in said
    assert "tuple index" in asked.explain(learner("def f(x):\n    return ()[3]"))


def test_of_an_error_that_is_asked_for_only_the_kind_counts():
    def positive(x, wrong=frozenset()):
        if x < 0 and "silent" not in wrong:
            raise ValueError("x must be positive")
        return x

    asked = Diagnosis(positive, {"silent": "You let it pass."}, [(1,), (-1,)])

    def refuse(x):
        if x < 0:
            raise ValueError("other words")
        return x

    assert asked.explain(refuse) is None
    assert asked.explain(lambda x: x) == "You let it pass."
    said = asked.explain(learner("def f(x):\n    return x if x > 0 else {}[x]"))
    assert (
        "should stop with a ValueError; instead your code stops with KeyError" in said
    )
    assert "yours returns 0" in asked.explain(lambda x: x if x > 0 else 0)


def test_what_an_error_says_can_count_too():
    def positive(x, wrong=frozenset()):
        if x < 0:
            raise ValueError("no" if "mute" in wrong else f"{x} is below 0")
        return x

    says_x = lambda error, x: str(x) in str(error)
    asked = Diagnosis(positive, {"mute": "Say it."}, [(1,), (-7,)], refusal=says_x)
    refuse = "def f(x):\n    if x < 0:\n        raise ValueError({})\n    return x"
    assert asked.explain(learner(refuse.format("f'-7! {x}'"))) is None
    assert asked.explain(learner(refuse.format("'oh'"))) == "Say it."
    said = Diagnosis(positive, {}, [(-7,)], refusal=says_x).explain(
        learner(refuse.format("'oh'"))
    )
    assert "stops with a ValueError, as it should, but it says 'oh'" in said
    said = asked.explain(lambda x: ValueError("oh") if x < 0 else x)
    assert "An error is raised: `raise`, not `return`" in said


def test_a_changed_argument_is_told_alone_and_beside_a_mistake():
    said = says("def f(v, k):\n    v.append(0)\n    return k * sum(v) / (len(v) - 1)")
    assert said == diagnose.CHANGED.format("values")
    said = says("def f(v, k):\n    v.append(0)\n    return sum(v) / (len(v) - 1)")
    assert said == "You forget the factor. " + diagnose.CHANGED.format("values")
    said = says("def f(v, k):\n    n = len(v)\n    v.append(9)\n    return sum(v) / n")
    assert "should be 2; yours is 10" in said and "`" not in said
    assert diagnose.CHANGED.format("values") in said
    assert says("def f(v, k):\n    v.clear()\n    return 0.0") == "You empty the list."


def test_arguments_are_copies_for_ever():
    says("def f(v, k):\n    v.clear()\n    return 1.0")
    assert MEAN.probes[0] == ([1.0], 2.0) and mean_check(mean).passed


def test_pairs_and_simulations_run_only_when_needed_and_once():
    ran = []

    def counted(x, wrong=frozenset()):
        ran.append(wrong)
        return x + len(wrong)

    lazy = Diagnosis(counted, {"a": "A", "b": "B"}, [(1,), (2,)])
    assert lazy.explain(lambda x: x) is None
    assert {*ran} == {frozenset()} and len(ran) == 2
    for _ in range(2):
        lazy.explain(lambda x: 9)
    assert len(ran) == 2 + 3  # one probe was enough for each mistake and the pair


def test_notes_of_a_watched_function():
    def twice(work, wrong=frozenset()):
        for _ in range(1 if "once" in wrong else 2):
            work(3)
        return "done"

    def observe(fn, start):
        calls = []
        return fn(lambda x: calls.append(x + start)), calls

    asked = Diagnosis(
        twice, {"once": "You call it once."}, [(0,)], observe=observe, noted="the calls"
    )
    assert asked.explain(twice) is None
    assert asked.explain(lambda work: work(3) or "done") == "You call it once."
    said = asked.explain(lambda work: "done")
    assert said.endswith("not the calls: it should be [3, 3]; yours is [].")
    said = asked.explain(learner("def f(work):\n    work()"))
    assert "TypeError in your line `work()`" in said


# Whose word it is


def test_a_fault_of_the_check_is_told_as_that():
    source = "def f(fn):\n    return call(fn).size(0)"
    broken = exercise(learner(source, file=diagnose.__file__ + ".planted", call=call))
    said = broken(lambda: 3).message
    assert "the check itself stumbles (AttributeError" in said


def test_an_assert_of_a_watched_function_is_the_checks_word():
    source = "def f(fn):\n    def work():\n        assert 0, 'Too often.'\n    call(fn, work)"
    limited = exercise(learner(source, file=diagnose.__file__ + ".planted", call=call))
    assert limited(lambda work: work()).message == "Too often."
    said = limited(learner("def f(work):\n    work(1)")).message
    assert "TypeError in your line `work(1)`" in said


def test_an_interrupt_goes_through():
    def interrupted(v, k):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mean_check(interrupted)


def test_tried_returns_errors_of_the_learner_only():
    assert isinstance(tried(lambda x: {}[x], 1), KeyError)
    assert isinstance(tried(learner("def f():\n    assert 0")), AssertionError)
    with pytest.raises(NotImplementedError):
        tried(learner("def f():\n    raise NotImplementedError"))
    given = [1]
    tried(list.append, given, 2)
    assert given == [1]


def test_untouched_and_ready_made():
    with pytest.raises(AssertionError, match="changed its input x in place"):
        untouched(lambda x: x.add_(1), x=torch.ones(2))
    assert ready_made(torch.softmax, torch.ones(2), 0, names={"softmax"}) == "softmax"


# Equal, and how not


@dataclasses.dataclass
class Point:
    x: float
    y: object = None


@pytest.mark.parametrize(
    "a, b",
    [
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.000001, torch.nan])),
        (np.array([1.0, np.nan]), np.array([1.000001, np.nan])),
        (np.int64(3), 3),
        (0.1 + 0.2, 0.3),
        (float("nan"), float("nan")),
        ([1, (2, {"a": 3.0})], [1, (2, {"a": 3.0})]),
        ({1, 2}, frozenset({1, 2})),
        (b"a", b"a"),
        (Point(0.1 + 0.2), Point(0.3)),
        (ValueError("a"), ValueError("a")),
        (torch.nn.Identity(), torch.nn.Identity()),
        (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
    ],
)
def test_same(a, b):
    assert same(a, b) and difference(a, b) == ""


@pytest.mark.parametrize(
    "got, wanted, words",
    [
        (torch.ones(2, 3), torch.ones(3, 2), "shape (2, 3); it should be (3, 2). It is turned"),
        (torch.ones(2), torch.ones(2).double(), "holds torch.float32; it should hold torch.float64"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "should be [1, 3]; yours is [1, 2]"),
        (torch.eye(9), torch.eye(9).roll(1, 0), "at [0, 0] the result should be 0; yours there is 1"),
        (np.ones(2), [1.0, 1.0], "a ndarray; it should be a list"),
        (True, 1, "a bool (True); it should be an int"),
        (1, 1.0, "an int (1); it should be a float"),
        (1.00001, 1.0, "should be 1; yours is 1.00001"),
        ((1,), [1], "a tuple ((1,)); it should be a list"),
        ([1, 2], [1, 3], "should be [1, 3]; yours is [1, 2]"),
        ([*range(99)], [*range(98)], "has 99 elements; it should have 98"),
        ([*range(99)], [*range(98), 0], "at [98] the result should be 0; yours is 98"),
        ({"a": 1}, {"a": 2, "b": 1}, "misses the key 'b'"),
        ({"a": 1}, {"a": 2}, "for 'a' the result should be 2; yours is 1"),
        ({1, 3}, {1, 2}, "misses the element 2 and has the superfluous element 3"),
        ("a" * 70, "a" * 69 + "b", "from position 69 on"),
        (b"a", "a", "a bytes (b'a'); it should be a str"),
        (Point(1.0), Point(2.0), "should be Point(x=2.0"),
        (ValueError("a"), ValueError("b"), "should be ValueError('b')"),
    ],
)  # fmt: skip
def test_difference(got, wanted, words):
    assert not same(got, wanted) and words in difference(got, wanted)


def test_tolerance_is_the_diagnosis_own():
    rough = Diagnosis(mean, {}, [([1.0], 2.0)], rtol=0.1)
    assert rough.explain(lambda v, k: 2.1) is None
    assert rough.explain(lambda v, k: 2.5) is not None


def test_readers():
    assert whole(np.int64(2)) == 2 and number(torch.tensor(2.0)) == 2.0
    assert listed(whole, 2)(torch.tensor([1, 2])) == [1, 2]
    for reader, value in ((whole, 2.0), (number, True), (listed(whole, 2), [1])):
        with pytest.raises(diagnose.WrongKind):
            reader(value)
