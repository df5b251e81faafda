"""Checks of the exercises of files and errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from course.check.diagnose import Diagnosis, WrongKind
from course.check.disk import replaces
from course.check.verdict import exercise

OLD, NEW = "old\n" * 50, "gr\u00f6\u00dfer und neu\n" * 50


@exercise
def whole_file(fn: Callable[[Path, str], None]) -> str:
    """Check a `write(path, text)` that a kill and a power failure leave whole or undone."""
    replaces(fn, OLD.encode(), NEW.encode(), bytes.decode, folder=True)
    return "Written beside, forced, renamed, and the rename forced: no moment without a whole file."


MISTAKES = {
    "unknown": "You do not look for keys that are not known, such as `layer`: allowed has no such key.",
    "missing": "You do not look for keys that are missing: each key of allowed must be given.",
    "True": "You take True for an integer. isinstance(True, int) says so; ask for type(value) is int.",
    "no kind": "You look at no kind, only at the range: 12.0 and True pass, and a text or None ends it with a TypeError. Ask for type(value) is int first.",
    "numbers": "You take 12.0 for an integer. It is a float: ask for type(value) is int.",
    "range first": "You compare before you have looked at the kind, so a text or None ends it with a TypeError. Ask for type(value) is int first.",
    "range first, outside": "You ask whether a value is below or above before you have looked at its kind, so a text or None ends it with a TypeError. Ask for type(value) is int first.",
    "int()": "You convert with int(), so that '3' and 12.0 pass. Nothing is to be converted: ask for type(value) is int.",
    "isdigit": "You take a text of digits for an integer. '3' is a text.",
    "both ends": "You leave out both ends of the range: 1 and 48 are allowed. Compare with <=.",
    "high end": "You leave out the highest value, as range(low, high) does: 48 is allowed. Compare with <=.",
    "low end": "You leave out the lowest value: 1 is allowed. Compare with <=.",
    "low only": "You look at the lowest value only. Above the highest is a mistake, too.",
    "high only": "You look at the highest value only. Below the lowest is a mistake, too.",
    "no range": "You look at no range: 0 layers pass, and 99.",
    "and": "You ask for a wrong kind *and* a wrong range at once. One of them is a mistake already: or.",
    "falsy": "You take 0 for missing (`not value`). Where the range allows it, 0 is a value: ask for `key in values`.",
    "None passes": "You let None pass. It is given, and no integer.",
    "first": "You stop at the first mistake, going through values. Collect them all.",
    "first by allowed": "You stop at the first mistake, going through allowed. Collect them all.",
    "keys first": "Where a key is not known or missing you return at once, without the keys whose values are wrong. Collect them all.",
    "right": "You return the keys with which nothing is wrong. The others are asked for.",
    "KeyError": "Your code looks up a key that is not known in allowed, and stops with a KeyError. Ask for `key in allowed` first.",
    "KeyError missing": "Your code looks up a missing key in values, and stops with a KeyError. Ask for `key in values` first.",
    "keys only": "You look at the keys only. A value of the wrong kind, or out of its range, is a mistake, too.",
    "list": "You return a list. A set of keys is asked for.",
    "dict": "You return a dictionary. A set of keys is asked for.",
    "bool": "You return whether something is wrong. The set of the keys is asked for.",
    "example": "You check the two keys of the example, whatever allowed holds.",
    "removes": "You take the keys that are not known out of the values that you were handed. Whoever holds them still needs them: work on a copy.",
}  # fmt: skip


def mistakes(values: dict[str, Any], allowed: dict[str, tuple[int, int]], wrong: frozenset[str] = frozenset()) -> Any:  # fmt: skip
    """The reference: the keys that have a mistake; with any of MISTAKES made."""
    if "example" in wrong:
        allowed = {"layers": (1, 48), "heads": (1, 32)}
    unknown, missing = values.keys() - allowed.keys(), allowed.keys() - values.keys()
    found: list[str] = []

    def odd(key: str) -> bool:
        low, high = allowed[key]
        value = values[key]
        if "None passes" in wrong and value is None:
            return False
        if "falsy" in wrong and not value:
            return True
        whole = type(value) is int or ("True" in wrong and isinstance(value, bool))
        whole |= "isdigit" in wrong and isinstance(value, str) and value.isdigit()
        if "int()" in wrong and not isinstance(value, bool):
            try:
                value = int(value)
            except (TypeError, ValueError):
                return True
            whole = True
        if wrong & {"numbers", "no kind"}:
            whole |= isinstance(value, float)
        if "isdigit" in wrong and whole:
            value = int(value)
        if "no range" in wrong:
            return not whole
        if "no kind" in wrong:
            return not low <= value <= high
        if "range first, outside" in wrong:
            return value < low or value > high or not whole
        if not whole and not wrong & {"range first", "and"}:
            return True
        inside = low <= value <= high
        inside = low < value < high if "both ends" in wrong else inside
        inside = low <= value < high if "high end" in wrong else inside
        inside = low < value <= high if "low end" in wrong else inside
        inside = low <= value if "low only" in wrong else inside
        inside = value <= high if "high only" in wrong else inside
        return not whole and not inside if "and" in wrong else not whole or not inside

    order = [*values, *(key for key in allowed if key not in values)]
    if "first by allowed" in wrong:
        order = [*(key for key in values if key in unknown), *allowed]
    if "keys first" in wrong and unknown | missing:
        return unknown | missing
    for key in order:
        if key in unknown:
            if "KeyError" in wrong:
                allowed[key]
            found += [] if "unknown" in wrong else [key]
        elif key in missing:
            if "KeyError missing" in wrong:
                values[key]
            found += [] if "missing" in wrong else [key]
        elif "keys only" not in wrong and odd(key):
            found.append(key)
    if "removes" in wrong:
        for key in unknown:
            values.pop(key)
    if "right" in wrong:
        found = [key for key in values if key in allowed and key not in found]
    keys = found[:1] if wrong & {"first", "first by allowed"} else found
    made = {"list": keys, "dict": dict.fromkeys(keys, "wrong"), "bool": bool(keys)}
    return next((made[kind] for kind in made if kind in wrong), set(keys))


def _keys(value: Any) -> set[Any]:
    """A set, of any kind."""
    if not isinstance(value, set | frozenset):
        raise WrongKind("a set of keys")
    return set(value)


ALLOWED = {"layers": (1, 48), "heads": (1, 32), "width": (8, 4096), "seed": (-5, 5)}
GOOD: dict[str, Any] = {"layers": 12, "heads": 12, "width": 768, "seed": 0}


def _values(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (GOOD | changes).items() if value is not ...}


CHANGES: list[dict[str, Any]] = [{}, {"layers": 0}, {"heads": 33}, {"layers": 48}, {"layers": 1}, {"seed": -5}, {"width": 4096}, {"layer": 12}, {"width": ...}, {"layers": 12.0}, {"heads": True}, {"seed": "3"}, {"seed": None}, {"heads": [1]}, {"seed": 6, "width": 9999, "heads": "x"}, {"layers": 0, "heads": "x", "width": ..., "depth": 3}]  # fmt: skip
ALL_MISTAKES = Diagnosis(
    mistakes,
    MISTAKES,
    [({"layers": 99}, {"layers": (1, 48)}), *((_values(**change), ALLOWED) for change in CHANGES)],
    lambda values, allowed: f"For {values} with the ranges {allowed}",
    read=_keys,
)  # fmt: skip


@exercise
def all_mistakes(
    fn: Callable[[dict[str, Any], dict[str, tuple[int, int]]], set[str]],
) -> str:
    """Check a `mistakes(values, allowed) -> set` of the keys with which something is wrong."""
    ALL_MISTAKES.judge(fn)
    return "Unknown, missing, of the wrong kind, out of range: all in one attempt."
