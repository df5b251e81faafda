"""What the switches and the attempts do not prove: the die of the library, and each word about a plot."""

import bisect
import itertools
import random

import pytest

from course import check
from course.check.stories import PICK
from slm.data import floor
from slm.data.grammar import Grammar
from slm.data.stories import RULES

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


def changes_a_list(rules):
    rules["DAY"].append("One night")
    return with_plot(rules, BOAT)


PLOT_BUGS = {
    "changes the rules that it was handed": changes_a_list,
    "Give it a weight": lambda rules: with_plot(rules, BOAT, weight=0.0001),
    "Two sentences are glued": lambda rules: with_plot(rules, BOAT[1:]),
    "two spaces in a row": lambda rules: with_plot(rules, " " + BOAT),
    "can be told in 2 ways": lambda rules: with_plot(rules, BOAT, BOAT),
    "put them into a list": lambda rules: with_plot(rules, BOAT, GLAD="glad"),
    "A line is a text, or a weight": lambda rules: with_plot(rules, BOAT, weight=None),
    "You write the rule BOAT": lambda rules: {**rules, "BOAT": [BOAT]},
    "Rules are missing": lambda rules: {"PLOT": [*rules["PLOT"], BOAT]},
    "meets himself or herself": lambda rules: with_plot(
        rules, BOAT.replace("HERO-hero", "HERO")
    ),
    "does not name its hero": lambda rules: with_plot(
        rules, " The {goal=GOAL}{goal} was far for {friend=HERO-hero}{friend}."
    ),
}


@pytest.mark.parametrize("message", PLOT_BUGS)
def test_planted_plot_bug_is_named(message):
    before = repr(RULES)
    verdict = check.new_plot(PLOT_BUGS[message])
    assert not verdict.passed
    assert message in verdict.message
    assert repr(RULES) == before, "the check must leave the rules as they were"


def test_a_plot_behind_a_rule_of_its_own_is_a_larger_grammar():
    verdict = check.new_plot(lambda rules: with_plot(rules, BOAT))
    assert verdict.passed and "more can be told" in verdict.message
    larger = Grammar(with_plot(RULES, BOAT))
    assert floor.count(larger) > floor.count()
    assert floor.entropy(larger) != floor.entropy()


def test_the_standard_library_picks_alike():
    """`random.choices` walks the running sums, too, so it is a right answer."""

    def pick(weights, u):
        rng = random.Random()
        rng.random = lambda: u
        return rng.choices(range(len(weights)), weights)[0]

    assert check.pick(pick).passed
    assert all(PICK.answer(*probe) == pick(*probe) for probe in PICK.probes)


def test_bisect_is_told():
    def pick(weights, u):
        sums = list(itertools.accumulate(weights))
        return bisect.bisect(sums, u * sums[-1], hi=len(sums) - 1)

    assert "`bisect_right` did the search" in check.pick(pick).message
