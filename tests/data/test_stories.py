"""The course's stories: the same everywhere, true to what they told, and of the size that the course counts on."""

import hashlib
import random
import re
import time

import pytest

from slm.data import floor, stories
from slm.data.stories import RULES, STORIES, zipf, zipf_rules


@pytest.fixture(scope="module")
def samples():
    return [stories.sample(seed) for seed in range(3000)]


def test_zipf():
    assert zipf(1.0, "a / b|x / c") == [(1.0, "a"), (1 / 2, "b|x"), (1 / 3, "c")]
    assert zipf_rules(0.5, {"A_ name kind": "a|b"}) == {"A_ name kind": [(1.0, "a|b")]}


def test_every_rule_can_be_reached():
    used = {choice.rule for choice in floor.visits()}
    assert used == set(STORIES.rows) == {key.split()[0] for key in RULES}


def test_stories_are_the_same_everywhere(samples):
    assert (
        hashlib.sha256("\n".join(samples[:100]).encode()).hexdigest()
        == "853fa4531afe4f15bf2a4a5342e42b70e144831379cf6c7723e66acd26b4b6c0"
    )
    assert samples[7] == stories.sample(7)
    assert len(set(samples)) == len(samples)


def test_facts_stay_as_they_were_told(samples):
    """The hero's name, pronoun and clothes at the end are those of the beginning."""
    heroes = {row[0]: row for _, row in STORIES.rows["HERO"]}
    clothes = [row[0] for _, row in STORIES.rows["WEAR"]]
    for text in samples:
        hero = heroes[min(heroes, key=lambda name: text.find(name) % len(text))]
        worn = {wear for wear in clothes if wear in text}
        assert len(worn) == 1 and text.count(worn.pop()) == 2
        assert (
            f"{hero[0]} the {hero[1]}" in text
            or f"{hero[1]} named {hero[0]}" in text
            or hero[1] in text.split(".")[0]
        )
    text = next(text for text in samples if "wished for a pony" in text)
    assert floor.accepts(text) and not floor.accepts(
        text.replace("forgot about the pony", "forgot about the ship")
    )


def test_shape(samples):
    assert len(STORIES.rows["PLOT"]) >= 12
    assert all(
        text.isascii() and "\n" not in text and text.endswith(".") and "  " not in text
        for text in samples
    )
    used = {word for text in samples for word in re.findall(r"[A-Za-z]+", text)}
    assert 400 < len(used) < 700


def test_it_is_quick():
    """A story takes at most ten times as long as 64 words that are just drawn and joined, on any machine."""
    words = [f"word{n}" for n in range(500)]

    def draws(seed):
        chance = random.Random(seed)
        return " ".join(chance.choice(words) for _ in range(64))

    def seconds(sample):
        start = time.process_time()
        for seed in range(1000):
            sample(seed)
        return time.process_time() - start

    assert min(seconds(stories.sample) for _ in range(3)) < 10 * seconds(draws)
