"""slm.errors: settings that are checked as a whole, and sentences instead of reports."""

import dataclasses
from typing import Literal

import pytest
from pydantic import Field

from slm.errors import SlmError, in_short, section, settings


@settings
class Oven:
    """An example with every kind of field."""

    minutes: int = Field(ge=1)
    degrees: float = Field(gt=0, lt=500)
    crust: Literal["soft", "hard"] = "hard"
    name: str = Field(default="oven", min_length=1)
    fan: float | None = None

    def __post_init__(self) -> None:
        if self.minutes * self.degrees > 50_000:
            raise ValueError("it burns")


GOOD = {"minutes": 40, "degrees": 220.0}
HERE = "kitchen.yaml: oven"
SENTENCES = [
    ({"minute": 40}, "oven.minute is not a key; did you mean 'minutes'?"),
    (
        {"zzz": 1},
        "oven.zzz is not a key; allowed here are minutes, degrees, crust, name, fan",
    ),
    ({"salt": 1}, "oven.salt is not a key; did you mean 'dough.salt'?"),
    ({"minutes": 0}, "oven.minutes = 0 is not allowed; it must be greater than or equal to 1"),
    ({"minutes": "40"}, "oven.minutes = '40' is not allowed; it must be a valid integer"),
    ({"minutes": True}, "oven.minutes = True is not allowed; it must be a valid integer"),
    ({"minutes": 40.0}, "oven.minutes = 40.0 is not allowed; it must be a valid integer"),
    ({"degrees": 500}, "oven.degrees = 500 is not allowed; it must be less than 500"),
    ({"degrees": float("inf")}, "oven.degrees = inf is not allowed; it must be a finite number"),
    ({"crust": "burnt"}, "oven.crust = 'burnt' is not allowed; it must be 'soft' or 'hard'"),
    ({"name": ""}, "oven.name = '' is not allowed; it must be a text that is not empty"),
    ({"fan": "fast"}, "oven.fan = 'fast' is not allowed; it must be a valid number"),
    ({"minutes": 400}, "oven: it burns"),
]  # fmt: skip


@pytest.mark.parametrize("given", ["1" + 5000 * "0", "a b " * 100_000, "x" * 10**6])
def test_what_a_message_repeats_is_cut(given):
    told = str(
        SlmError(f"override 'training.max_steps={given}' is not understood; why\nb")
    )
    assert len(told) < 1000 and "…" in told
    assert told.startswith("override 'training.max_steps=")
    assert told.endswith(" is not understood; why\nb")


def test_a_message_of_common_length_is_whole():
    path = "/".join(20 * ["folder-name"])
    lines = f"{path}: wrong\n{'many words ' * 60}"
    assert str(SlmError(lines)) == lines


@pytest.mark.parametrize(("change", "sentence"), SENTENCES)
def test_a_mistake_is_one_sentence(change, sentence):
    with pytest.raises(SlmError) as caught:
        section(Oven, GOOD | change, HERE, elsewhere={"salt": "dough.salt"})
    assert str(caught.value) == "kitchen.yaml: " + sentence
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize(("change", "sentence"), SENTENCES)
def test_called_directly_it_says_the_same(change, sentence):
    if "salt" in change:
        return  # it knows of no other sections
    with pytest.raises(SlmError) as caught:
        Oven(**GOOD | change)
    assert str(caught.value) == "O" + sentence[1:].replace("oven", "Oven", 0)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(SlmError) as caught:
        section(Oven, {"minute": 1, "degrees": -1.0, "crust": 3}, HERE)
    told = str(caught.value).splitlines()
    assert len(told) == 4 and all(line.startswith(HERE + ".") for line in told)
    assert f"{HERE}.minutes is missing; it has no default" in told


def test_too_many_values():
    with pytest.raises(SlmError, match="Oven takes at most 5 values: minutes, degrees"):
        Oven(40, 220.0, "hard", "oven", 1.0, 2.0)


@pytest.mark.parametrize("given", [None, 3, ["minutes"], "minutes"])
def test_what_is_no_section(given):
    with pytest.raises(SlmError, match="it must be a section with keys of its own"):
        section(Oven, given, HERE)


def test_values_that_are_not_at_fault_are_not_told():
    """Ten lines of aliases make a value of gigabytes, and pydantic hands on all values where one is missing."""

    class Huge:
        def __repr__(self) -> str:
            raise AssertionError("all of it was written out")

    for change in ({"salt": Huge()}, {"minutes": Huge()}):
        given = {"fan": 1.0, **change}  # without degrees
        with pytest.raises(SlmError, match="degrees is missing; it has no default"):
            section(Oven, given, HERE)


def test_nested_values_are_told_in_short():
    nested: object = "end"
    for _ in range(100):
        nested = {"left": nested, "right": nested, "more": [nested, nested]}
    assert len(in_short(nested)) < 300
    with pytest.raises(SlmError, match="minutes = {'left': {") as caught:
        section(Oven, GOOD | {"minutes": nested}, HERE)
    assert len(str(caught.value)) < 500


def test_keys_that_are_no_texts():
    with pytest.raises(SlmError, match="oven.3 is not a key; keys are texts"):
        section(Oven, GOOD | {3: 4}, HERE)


def test_a_section_is_a_frozen_dataclass():
    oven = section(Oven, GOOD | {"degrees": 220}, HERE)
    assert oven == Oven(40, 220.0) and isinstance(oven.degrees, float)
    assert dataclasses.asdict(oven) == GOOD | {
        "crust": "hard",
        "name": "oven",
        "fan": None,
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        oven.minutes = 3
    assert dataclasses.replace(oven, minutes=3).minutes == 3
    with pytest.raises(SlmError, match="Oven.minutes = -3"):
        dataclasses.replace(oven, minutes=-3)


def test_an_error_says_whether_another_attempt_may_succeed():
    assert SlmError("the disk is full", retry=True).retry
    assert not SlmError("there is no such key").retry
    assert (
        isinstance(SlmError("x"), ValueError) and str(SlmError("x", retry=True)) == "x"
    )
