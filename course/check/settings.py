"""The check of the exercise of the chapter on settings."""

import copy
from collections.abc import Callable
from typing import Any

from course.check.verdict import exercise


@exercise
def override(fn: Callable[[dict[str, Any], str], dict[str, Any]]) -> str:
    """Check an `override(sections, text)` that returns sections with one key changed."""
    assert callable(fn), f"my_override should be a function; it is {type(fn).__name__}."
    given: dict[str, Any] = {
        "training": {"max_steps": 1000, "seed": 7},
        "data": {"dataset": "stories"},
        "wandb": None,
    }

    def ask(text: str) -> dict[str, Any]:
        sections = copy.deepcopy(given)
        found = fn(sections, text)
        assert isinstance(found, dict), (
            f"It returned {type(found).__name__}; return the sections, a dictionary."
        )
        assert sections == given, (
            f"{text} changed the sections that it was given. Whoever holds them still needs them: copy first, the inner dictionaries too."
        )
        return found

    found = ask("training.max_steps=200")
    assert "training.max_steps" not in found, (
        "training.max_steps became a key of the outer dictionary: the name before the dot is the section."
    )
    section = found.get("training")
    assert isinstance(section, dict), "The section training is gone."
    assert section.get("max_steps") != "200", (
        "The value is the text '200'. Read it as YAML: yaml.safe_load(value)."
    )
    assert section.get("max_steps") == 200, (
        f"training.max_steps should be 200; it is {section.get('max_steps')!r}."
    )
    assert section.get("seed") == 7, (
        "The other keys of the section are lost: only max_steps should change."
    )
    assert found.get("data") == given["data"], "The other sections are lost."
    dots = ask("data.dataset=../my.texts/a.txt")
    assert dots.get("data", {}).get("dataset") == "../my.texts/a.txt", (
        "data.dataset=../my.texts/a.txt goes wrong: the dots of the value are no part of the key. Split at = first."
    )
    equals = ask("data.dataset=a=b.txt").get("data", {}).get("dataset")
    assert equals == "a=b.txt", (
        f"data.dataset=a=b.txt gives {equals!r}: only the first = separates, a value may hold others. Use partition."
    )
    for text, name in (("modal.gpu=H100", "modal"), ("wandb.name=mine", "wandb")):
        try:
            made = ask(text)
        except (KeyError, TypeError) as error:
            raise AssertionError(
                f"{text} raises {type(error).__name__}: a section that is missing or empty should be made."
            ) from None
        assert isinstance(made.get(name), dict), f"{text} should make the section."
    for text, value in (
        ("training.seed=null", None),
        ("wandb.tags=[a, b]", ["a", "b"]),
    ):
        name, _, key = text.partition("=")[0].partition(".")
        found = ask(text)[name].get(key, "nothing")
        assert found == value, f"{text} should give {value!r}; it gives {found!r}."
    return "One key changes, and nothing else."
