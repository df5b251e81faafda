"""The check on settings is itself checked: each planted bug is caught with its own message."""

import copy

import pytest
import yaml

from course import check


def solution(sections, text, deep=True, read=yaml.safe_load, keep=True):
    key, _, value = text.partition("=")
    name, _, field = key.partition(".")
    sections = copy.deepcopy(sections) if deep else dict(sections)
    section = (sections.get(name) or {}) if keep else {}
    section[field] = read(value)
    sections[name] = section
    return sections


def in_place(sections, text):
    changed = solution(sections, text)
    sections.clear()
    sections.update(changed)
    return sections


def flat(sections, text):
    key, _, value = text.partition("=")
    return {**sections, key: yaml.safe_load(value)}


def only_the_section(sections, text):
    name = text.partition(".")[0]
    return {name: solution(sections, text)[name]}


def splits_at_every_equals(sections, text):
    parts = text.split("=")
    return solution(sections, f"{parts[0]}={parts[1]}")


def splits_at_the_last_dot(sections, text):
    name, _, rest = text.rpartition(".")
    field, _, value = rest.partition("=")
    return {
        **sections,
        name: {**(sections.get(name) or {}), field: yaml.safe_load(value)},
    }


def needs_the_section(sections, text):
    key, _, value = text.partition("=")
    name, _, field = key.partition(".")
    sections = copy.deepcopy(sections)
    sections[name][field] = yaml.safe_load(value)
    return sections


def only_numbers(text):
    return int(text) if text.isdigit() else text


BUGS = {
    "return the sections, a dictionary": lambda sections, text: None,
    "copy first": in_place,
    "the inner dictionaries too": lambda *a: solution(*a, deep=False),
    "a key of the outer dictionary": flat,
    "the text '200'": lambda *a: solution(*a, read=str),
    "should be 200; it is 201": lambda *a: solution(
        *a, read=lambda v: 201 if v == "200" else yaml.safe_load(v)
    ),
    "The other keys of the section": lambda *a: solution(*a, keep=False),
    "The other sections are lost": only_the_section,
    "only the first = separates": splits_at_every_equals,
    "the dots of the value": splits_at_the_last_dot,
    "missing or empty should be made": needs_the_section,
    "should give None": lambda *a: solution(*a, read=only_numbers),
    "should be a function": 3,
}


@pytest.mark.parametrize(("message", "bug"), BUGS.items(), ids=list(BUGS))
def test_planted_bug_is_named(message, bug):
    verdict = check.override(bug)
    assert not verdict.passed and message in verdict.message, verdict


def test_the_solution_passes_and_the_stub_is_told_apart():
    def stub(sections, text):
        raise NotImplementedError("your turn")

    assert check.override(solution).passed, check.override(solution)
    assert "still the stub" in check.override(stub).message
