"""The grammar: what is drawn, how often, what a story keeps of it, and what a mistake in the rules is told."""

import collections
import itertools
import math
import re

import pytest

from slm.data import floor
from slm.data.grammar import Grammar, Story
from slm.data.stories import RULES, STORIES, zipf

NAPKIN = {
    "STORY": ["{pet=PET}{pet} the {pet.kind}{VERY} {MOOD}. {pet.He} {MOOD}."],
    "PET name kind he": [(3, "Tim|cat|he"), (1, "Sue|dog|she")],
    "VERY": [(2, ""), (1, " often")],
    "MOOD": ["naps", "sings"],
}


def test_samples_come_as_often_as_they_should():
    by_hand = {
        f"{name} the {kind}{very} {first}. {he} {second}.": p * q / 4
        for (p, name, kind, he), (q, very), first, second in itertools.product(
            [(3 / 4, "Tim", "cat", "He"), (1 / 4, "Sue", "dog", "She")],
            [(2 / 3, ""), (1 / 3, " often")],
            ["naps", "sings"],
            ["naps", "sings"],
        )
    }
    grammar, n = Grammar(NAPKIN), 20_000
    seen = collections.Counter(grammar.sample(seed) for seed in range(n))
    assert set(seen) == set(by_hand)
    chi = sum((seen[text] - n * p) ** 2 / (n * p) for text, p in by_hand.items())
    assert abs(chi - 15) < 5 * math.sqrt(30)


def test_options_are_probabilities_in_the_order_of_the_lines():
    choice = Grammar(NAPKIN).start.options[0][1][0]
    assert (choice.name, choice.rule) == ("pet", "PET")
    assert [p for p, _ in choice.options] == [3 / 4, 1 / 4]
    assert choice.cumulative == [3 / 4, 1]
    assert [row for _, row in choice.rows] == [
        ("Tim", "cat", "he"),
        ("Sue", "dog", "she"),
    ]


def test_equal_choices_are_one_object():
    """The mood does not look at the pet, so both stories go through the same choice of it."""
    tim, sue = (items for _, items in Grammar(NAPKIN).start.options[0][1][0].options)
    assert tim[1] is sue[1] and tim[2] is sue[2] is sue[4]


def test_a_story_keeps_what_was_drawn_for_it():
    story = Grammar(NAPKIN).draw(2)
    assert story.text == "Sue the dog naps. She sings."
    assert story.drawn == (
        ("STORY", "STORY", (NAPKIN["STORY"][0],)),
        ("pet", "PET", ("Sue", "dog", "she")),
        ("VERY", "VERY", ("",)),
        ("MOOD", "MOOD", ("naps",)),
        ("MOOD", "MOOD", ("sings",)),
    )


def test_what_was_drawn_tells_the_story_again():
    """The record is whole: from it alone, and the rules, the text follows, and so does its probability."""
    for seed in range(200):
        story = STORIES.draw(seed)
        assert isinstance(story, Story) and story.text == STORIES.sample(seed)
        texts, cost, record = [], 0.0, iter(story.drawn)
        todo = [STORIES.start]
        while todo:
            item = todo.pop()
            if isinstance(item, str):
                texts.append(item)
                continue
            variable, rule, row = next(record)
            assert (variable, rule) == (item.name, item.rule)
            index = [known for _, known in item.rows].index(row)
            p, items = item.options[index]
            cost -= math.log(p)
            todo += reversed(items)
        assert "".join(texts) == story.text and next(record, None) is None
        assert cost == pytest.approx(-floor.logprob(story.text))


def test_the_hero_is_named_in_the_text():
    for seed in range(100):
        story = STORIES.draw(seed)
        drawn = {variable: row for variable, _, row in story.drawn}
        assert drawn["hero"][0] in story.text and drawn["wear"][0] in story.text
        [plot] = [row for _, rule, row in story.drawn if rule == "PLOT"]
        assert plot in [row for _, row in STORIES.rows["PLOT"]]


def test_a_line_that_must_differ_is_drawn_from_the_others():
    grammar = Grammar({"STORY": ["{a=A_}{b=A_-a}{a}{b}"], "A_": zipf(1.0, "x / y / z")})
    first = grammar.start.options[0][1][0]
    second = first.options[1][1][0]  # after y
    assert [row for _, row in second.rows] == [("x",), ("z",)]
    assert [p for p, _ in second.options] == pytest.approx([3 / 4, 1 / 4])


def test_reading_a_grammar_leaves_the_rules_alone():
    before = repr(RULES)
    Grammar(RULES).sample(0)
    assert repr(RULES) == before


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"STORY": ["{CAT}"]}, "names the rule CAT; there is none"),
        (
            {"STORY": ["a {B_}"], "B_": ["b {STORY}"]},
            "rule STORY leads back to itself: STORY > B_ > STORY",
        ),
        ({"STORY": [(0, "a")]}, "'a' has weight 0, not above 0 and finite"),
        (
            {"STORY": ["{x=PET}{x}"], "PET name kind": ["Tim"]},
            "'Tim' has 1 columns, but 2 are named",
        ),
        ({"STORY": ["a {b c} d"]}, "brace that belongs to no slot"),
        ({"STORY": []}, "rule STORY has no lines"),
        ({"STORY": "abc"}, "rule STORY: its lines are one text; put them into a list"),
        ({"STORY": ["{x=foo}{x}"]}, "names the rule foo; there is none"),
        ({"TALE": ["a"]}, "names the rule STORY; there is none"),
        ({"story": ["a"]}, "must be in capitals"),
        ({"STORY": ["a"], "STORY name kind": ["b|c"]}, "there only once"),
        (
            {"STORY": ["{x=PET}{x}"], "PET": ["{TOY}"], "TOY": ["a"]},
            "what is drawn must be plain text",
        ),
    ],
)
def test_malformed_rules_are_refused_at_once(rules, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Grammar(rules)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"STORY": ["{x} and {x=PET}"], "PET": ["a"]},
            "{x} is printed in '{x} and {x=PET}', but nothing was drawn",
        ),
        (
            {"STORY": ["{x=PET}{x.age}"], "PET name kind": ["a|b"]},
            "rule PET has only the columns name, kind",
        ),
        (
            {"STORY": ["{x=PET}{y=PET-x}{y}"], "PET": ["a"]},
            "every line of rule PET is taken",
        ),
        (
            {"STORY": ["{x=PET-y}{x}"], "PET": ["a"]},
            "{x=PET-y} must differ from y, but nothing was drawn for that",
        ),
    ],
)
def test_malformed_slots_are_named_when_they_are_reached(rules, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        floor.entropy(Grammar(rules))


def test_a_variable_drawn_again_means_the_new_line():
    grammar = Grammar(
        {
            "STORY": ["{x=A_}{x}{x=B_} {x}{C_}"],
            "A_": ["a"],
            "B_": ["b"],
            "C_": ["{x=D_} {x}"],
            "D_": ["d"],
        }
    )
    assert grammar.sample(0) == "a b d"
