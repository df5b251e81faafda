"""The check of the exercise of the chapter on settings."""

import ast
import contextlib
import json
import operator
from collections.abc import Callable
from typing import Any

import yaml

from course.check.diagnose import Diagnosis
from course.check.verdict import exercise

Sections = dict[str, Any]

# an empty section is None: how learners treat it as a dictionary
EMPTY: dict[str, Callable[[Any], Any]] = {
    "None[key] = …": lambda section: operator.setitem(section, "", 0),
    "{**None}": lambda section: {**section},
    "dict(None)": lambda section: dict(section),
    "None | {…}": lambda section: section | {},
    "None.copy()": lambda section: section.copy(),
    "None.update(…)": lambda section: section.update({}),
    "None.items()": lambda section: section.items(),
}

MISTAKES = (
    {
        "shallow": "You copy the outer dictionary only: the inner one is still the same object, so whoever holds the old sections sees it change. Copy the section, too.",
        "in place": "You change the sections that you were handed; somebody still holds them. Make a new dictionary.",
        "flat": "You put the whole dotted key into the outer dictionary. What stands before the dot is the section.",
        "text": "You leave the value a text. Read it as YAML: yaml.safe_load(value).",
        "whole text": "You read the whole text as YAML, key and all. The value is what stands behind the first =.",
        "int": "You make an int of every value. It may be anything that YAML knows: yaml.safe_load(value).",
        "float": "You make a float of every value. It may be anything that YAML knows: yaml.safe_load(value).",
        "whole numbers": "You make an int of whole numbers and leave all else a text. It may be anything that YAML knows: yaml.safe_load(value).",
        "old type": "You turn the value into the type that stood there before. It has its own: yaml.safe_load(value).",
        "json": "You read the value as JSON, where a text needs quotes. Read it as YAML: yaml.safe_load(value).",
        "eval": "You evaluate the value as Python. It is YAML (null, no None; a text needs no quotes): yaml.safe_load(value).",
        "Python's literals": "You read the value as Python. It is YAML, where null is None and true is True: yaml.safe_load(value).",
        "missing": "You look a section up that need not be there. One that is missing is to be made.",
        "replaced": "You make the section anew, and its other keys are lost.",
        "only section": "You return nothing but the section that was changed; the others are lost.",
        "inner": "You return the inside of one section. All sections are asked for.",
        "two parts": "You split at every = and expect two parts. A value may hold an = of its own: partition, or split('=', 1).",
        "cut": "You split at every = and take the second part, so a value that holds an = is cut. Use partition, or split('=', 1).",
        "last equals": "You split at the last =. The first one separates; a value may hold others.",
        "all dots": "You split the whole text at its dots and expect two parts. The value may hold dots: split off the value first, at the =.",
        "cut dots": "You split the whole text at its dots, so a value that holds a dot is cut. Split off the value first, at the =.",
        "last dot": "You split the whole text at its last dot, which may stand in the value. Split off the value first, at the =.",
        "training": "You always change the section training; the text names the section.",
        "constant": "You always set training.max_steps to 200. That was an example; section, key and value stand in the text.",
        "swapped": "You took section and key the wrong way round: the section stands before the dot.",
        "only known": "You change a key only if it is there already. One that is not there is to be added.",
        "not put back": "You change a copy of the section and do not put it into what you return: the result is what it was.",
        "null deletes": "You take null for a wish to delete the key. It is a value: None.",
        "null skipped": "You do not set a value that is null. It is a value like any other: None.",
        "falsy skipped": "You do not set a value that counts as false, such as null, 0 or false. Each is a value like any other.",
        "others made": "You make empty dictionaries of other sections that are empty, too. Leave them as they are.",
        "key inside": "You put the whole dotted key into the section. Inside it the key is what stands behind the dot.",
        "rest": "You take everything behind the dot for the key, with = and value. The key ends at the =.",
    }
    | {
        how: f"A section without keys is None, and `{how}` does not work. Make it an empty dictionary first, sections.get(name) or {{}}."
        for how in EMPTY
    }
    | {
        f"look up, {how}": f"You look a section up that need not be there; and one without keys is None, where `{how}` does not work. Make either an empty dictionary first, sections.get(name) or {{}}."
        for how in EMPTY
    }
)


def answer(
    sections: Sections, text: str, wrong: frozenset[str] = frozenset()
) -> Sections:
    """The reference, with any of MISTAKES made."""
    if "constant" in wrong:
        text = "training.max_steps=200"
    key, _, value = text.partition("=")
    if "two parts" in wrong:
        key, value = text.split("=")
    if "cut" in wrong:
        key, value = text.split("=")[:2]
    if "last equals" in wrong:
        key, _, value = text.rpartition("=")
    name, _, field = key.partition(".")
    if wrong & {"all dots", "cut dots", "last dot"}:
        if "last dot" in wrong:
            name, _, rest = text.rpartition(".")
        elif "all dots" in wrong:
            name, rest = text.split(".")
        else:
            name, rest = text.split(".")[:2]
        field, _, value = rest.partition("=")
    if "rest" in wrong:
        field = text.partition(".")[2]
    if "swapped" in wrong:
        name, field = field, name
    if "training" in wrong:
        name = "training"
    readers: dict[str, Callable[[str], Any]] = {
        "text": str,
        "int": int,
        "float": float,
        "json": json.loads,
    }
    readers["eval"] = eval
    read = next((readers[m] for m in readers if m in wrong), yaml.safe_load)
    read_value = read(value)
    if "flat" in wrong:
        return {**sections, key: read_value}
    if "missing" in wrong or any(switch.startswith("look up") for switch in wrong):
        sections[name]
    for how in EMPTY:
        if wrong & {how, f"look up, {how}"}:
            EMPTY[how]({} if name not in sections or sections[name] else None)
    old = sections.get(name) or {}
    if "whole text" in wrong:
        read_value = text
    if "whole numbers" in wrong:
        read_value = int(value) if value.isdigit() else value
    if "old type" in wrong:
        read_value = type(old.get(field, ""))(value)
    if "Python's literals" in wrong:
        with contextlib.suppress(ValueError, SyntaxError):
            read_value = value
            read_value = ast.literal_eval(value)
    if "key inside" in wrong:
        field = key
    new = old if wrong & {"shallow", "in place"} else dict(old)
    if "replaced" in wrong:
        new = {}
    skipped = read_value is None and "null skipped" in wrong
    skipped |= not read_value and "falsy skipped" in wrong
    if "not put back" in wrong or ("only known" in wrong and field not in old):
        return dict(sections)
    if read_value is None and "null deletes" in wrong:
        new.pop(field, None)
    elif not skipped:
        new[field] = read_value
    if "inner" in wrong:
        return new
    if "only section" in wrong:
        return {name: new}
    if "in place" in wrong:
        sections[name] = new
        return sections
    if "others made" in wrong:
        sections = {k: v or {} for k, v in sections.items()}
    return {**sections, name: new}


GIVEN: Sections = {
    "training": {"max_steps": 1000, "seed": 7, "use_amp": True},
    "data": {"dataset": "stories"},
}
OVERRIDE = Diagnosis(
    answer,
    MISTAKES,
    [
        ({"training": {"max_steps": 1000}}, "training.max_steps=200"),
        (GIVEN, "training.seed=3"),
        (GIVEN, "training.learning_rate=0.5"),
        (GIVEN, "training.optimizer=muon"),
        (GIVEN, "data.dataset=../my.texts/a.txt"),
        (GIVEN, "data.dataset=a=b.txt"),
        (GIVEN, "modal.gpu=H100"),
        ({"data": {"dataset": "stories"}, "wandb": None}, "wandb.name=mine"),
        ({"data": {"dataset": "stories"}, "wandb": None}, "data.seed=1"),
        (GIVEN, "training.seed=null"),
        (GIVEN, "training.use_amp=false"),
        (GIVEN, "wandb.tags=[a, b]"),
    ],
    lambda sections, text: f"For sections = {sections} and {text!r}",
)


@exercise
def override(fn: Callable[[Sections, str], Sections]) -> str:
    """Check an `override(sections, text)` that returns sections with one key changed."""
    OVERRIDE.judge(fn)
    return "One key changes, and nothing else."
