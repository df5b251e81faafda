"""The checks on stories are themselves checked: each planted bug is caught with its own message."""

import itertools
import random

import pytest

from course import check
from slm.data import floor
from slm.data.grammar import Grammar
from slm.data.stories import RULES


def pick_solution(weights, u):
    u *= sum(weights)
    for i, weight in enumerate(weights):
        u -= weight
        if u < 0:
            return i
    return len(weights) - 1


def running(weights):
    return list(itertools.accumulate(weights))


def heaviest_first(weights, u):
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    return order[pick_solution([weights[i] for i in order], u)]


def in_place(weights, u):
    index = pick_solution(weights, u)
    total = sum(weights)
    weights[:] = [weight / total for weight in weights]
    return index


PICK_BUGS = {
    "changes the weights that it was given": in_place,
    "return the line's index, an int": lambda weights, u: weights[
        pick_solution(weights, u)
    ],
    "It returned None": lambda weights, u: None,
    "compare u with the weights as they are": lambda weights, u: next(
        (i for i, total in enumerate(running(weights)) if u < total), len(weights) - 1
    ),
    "with each line's own share": lambda weights, u: next(
        (i for i, weight in enumerate(weights) if u * sum(weights) < weight),
        len(weights) - 1,
    ),
    "draw all lines equally often": lambda weights, u: int(u * len(weights)),
    "always take the heaviest": lambda weights, u: weights.index(max(weights)),
    "index before the right one": lambda weights, u: pick_solution(weights, u) - 1,
    "index after the right one": lambda weights, u: pick_solution(weights, u) + 1,
    "from the last to the first": lambda weights, u: (
        len(weights) - 1 - pick_solution(weights[::-1], u)
    ),
    "heaviest first": heaviest_first,
    "exactly on a border": lambda weights, u: next(
        i for i, total in enumerate(running(weights)) if u * sum(weights) <= total
    ),
    "is taken; yours gives": lambda weights, u: 0,
    "Your code raises StopIteration": lambda weights, u: next(
        i for i, total in enumerate(running(weights)) if u * 2 * sum(weights) < total
    ),
    "the last line is taken, index 9; yours gives 10": lambda weights, u: sum(
        u >= total for total in running([w / sum(weights) for w in weights])
    ),
}

BOAT = " {DAY}, {hero} built a boat and sailed to the {goal=GOAL}{goal} with {friend=HERO-hero}{friend}. At the {goal}, {friend} felt {GLAD}."


def with_plot(rules, *plots, weight=0.5, **more):
    names = [f"NEW{'ABC'[i]}" for i in range(len(plots))]
    named = {name: [plot] for name, plot in zip(names, plots, strict=True)}
    return {
        **rules,
        "PLOT": [*rules["PLOT"], *((weight, f"{{{name}}}") for name in names)],
        **named,
        **more,
    }


def changes_the_rules(rules):
    rules["PLOT"].append((0.5, "{BOAT}"))
    rules["BOAT"] = [BOAT]
    return rules


PLOT_BUGS = {
    "changes RULES itself": changes_the_rules,
    "It returned NoneType": lambda rules: None,
    "The grammar cannot be read": lambda rules: with_plot(
        rules, " {hero} saw a {MONSTER}."
    ),
    "names the rule MONSTER, but there is none": lambda rules: with_plot(
        rules, " {hero} saw a {MONSTER}."
    ),
    "printed in": lambda rules: with_plot(rules, " {hero} lost the {toy}."),
    "An old story can no longer be told": lambda rules: {
        **rules,
        "PLOT": ["{BOAT}"],
        "BOAT": [BOAT],
    },
    "There are as many stories as before": lambda rules: {**rules, "BOAT": [BOAT]},
    "Give your plot a weight": lambda rules: with_plot(rules, BOAT, weight=0.0001),
    "Two sentences are glued": lambda rules: with_plot(rules, BOAT[1:]),
    "two spaces in a row": lambda rules: with_plot(rules, " " + BOAT),
    "does not name its hero": lambda rules: with_plot(
        rules, " {DAY}, the sun shone and the birds sang."
    ),
    "can be told in 2 ways": lambda rules: with_plot(rules, BOAT, BOAT),
}


@pytest.mark.parametrize("message", PICK_BUGS)
def test_planted_pick_bug_is_named(message):
    verdict = check.pick(PICK_BUGS[message])
    assert not verdict.passed
    assert message in verdict.message


@pytest.mark.parametrize("message", PLOT_BUGS)
def test_planted_plot_bug_is_named(message):
    before = repr(RULES)
    verdict = check.new_plot(PLOT_BUGS[message])
    assert not verdict.passed
    assert message in verdict.message
    assert repr(RULES) == before, "the check must leave the rules as they were"


@pytest.mark.parametrize("name", ["pick", "new_plot"])
def test_stubs_are_told_apart(name):
    def stub(*_):
        raise NotImplementedError("your turn")

    verdict = getattr(check, name)(stub)
    assert not verdict.passed and "still the stub" in verdict.message


def test_solutions_pass():
    verdict = check.new_plot(lambda rules: with_plot(rules, BOAT))
    assert verdict.passed, verdict
    assert "more can be told" in verdict.message
    assert check.pick(pick_solution).passed


def test_the_standard_library_picks_alike():
    """`random.choices` walks the running sums, too, so it is a right answer."""

    def pick(weights, u):
        rng = random.Random()
        rng.random = lambda: u
        return rng.choices(range(len(weights)), weights)[0]

    assert check.pick(pick).passed


def test_the_solution_of_the_plot_is_a_larger_grammar():
    larger = Grammar(with_plot(RULES, BOAT))
    assert floor.count(larger) > floor.count()
    assert floor.entropy(larger) != floor.entropy()
