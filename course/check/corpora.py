"""Checks of the exercises on corpora."""

import hashlib
import inspect
import json
import random
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

from course.check.verdict import exercise


@exercise
def last_safe_cut(fn: Callable[[str], int]) -> str:
    """Check a `last_safe_cut(text) -> characters before the cut`."""
    first = fn("one two three")
    assert isinstance(first, int), (
        f"Return a number of characters; you return {type(first).__name__}."
    )
    assert first != 8, (
        "You cut behind the space: 'three' without its space is another token. Cut before the space."
    )
    assert first == 7, (
        f"'one two three' can be cut last after 'one two', so 7 is expected; you return {first}."
    )
    cases = {
        "one\ntwo": (
            3,
            "A newline that a visible character follows is a safe place, too",
        ),
        "one two  ": (
            3,
            "White space at the end may go on in the next block: cut before a space that a visible character follows",
        ),
        "onetwo": (6, "Without a safe place return the length of the text"),
        " one": (4, "Before the first character there is nothing to cut off"),
        "one  two": (
            4,
            "Of two spaces only the last belongs to the word: cut between the two",
        ),
        "": (0, "An empty text has no characters before a cut"),
    }
    for text, (expected, why) in cases.items():
        try:
            got = fn(text)
        except (IndexError, ValueError) as error:
            raise AssertionError(
                f"For {text!r} it fails ({type(error).__name__}): {expected} is expected. {why}."
            ) from None
        assert got == expected, (
            f"For {text!r} you return {got}; {expected} is expected. {why}."
        )
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(
            draw.choices([" ", "\n", "  ", "a", "the", "."], k=draw.randrange(12))
        )
        places = range(len(text) - 2, 0, -1)
        safe = (i for i in places if text[i] in " \n" and not text[i + 1].isspace())
        expected, got = next(safe, len(text)), fn(text)
        assert got == expected, (
            f"For {text!r} you return {got}; {expected} is expected."
        )
    return "Each half gives the ids that it has in the whole."


def _split_elsewhere(fn: Callable[..., Any], texts: list[str]) -> list[str] | None:
    """The validation side as another Python process would make it, if the function can be sent there as source."""
    try:
        source = textwrap.dedent(inspect.getsource(fn))
    except (OSError, TypeError):
        return None
    if not source.startswith("def "):
        return None
    code = (
        "import hashlib, json, random, sys, zlib\nimport numpy as np\n"
        f"{source}\ntexts, fraction = json.load(sys.stdin)\n"
        f"json.dump({fn.__name__}(texts, fraction)[1], sys.stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([texts, 0.2]),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    return json.loads(done.stdout) if done.returncode == 0 else None


@exercise
def split_documents(
    fn: Callable[[list[str], float], tuple[list[str], list[str]]],
) -> str:
    """Check a `split_documents(texts, fraction) -> train, validation`."""
    texts = [f"Story {hashlib.md5(str(i).encode()).hexdigest()}" for i in range(2000)]
    result = fn(list(texts), 0.2)
    assert isinstance(result, tuple) and len(result) == 2, (
        "Return two lists: train and validation."
    )
    train, validation = list(result[0]), list(result[1])
    both = set(train) & set(validation)
    assert not both, f"{len(both)} documents are in train *and* in validation."
    assert Counter(train) + Counter(validation) == Counter(texts), (
        f"{len(texts)} documents went in, {len(train) + len(validation)} came out: each belongs to exactly one side."
    )
    share = len(validation) / len(texts)
    assert not abs(share - 0.8) < 0.05, (
        "The sides are swapped: train comes first, and validation gets `fraction`."
    )
    assert abs(share - 0.2) < 0.05, (
        f"With fraction = 0.2, validation got {share:.2f} of the documents."
    )
    copies = fn([*texts, *texts[:500]], 0.2)
    leaked = set(copies[0]) & set(copies[1])
    assert not leaked, (
        f"Of 500 documents that occur twice, {len(leaked)} have one copy in train and one in validation. Decide by the text, not by its place."
    )
    again = fn(list(texts), 0.2)
    assert set(again[1]) == set(validation), (
        "Two calls with the same documents gave two different splits: the decision must not draw from a random generator."
    )
    reverse = fn(texts[::-1], 0.2)
    moved = len(set(reverse[1]) ^ set(validation))
    assert not moved, (
        f"In reverse order {moved} documents change sides: decide by the text alone, not by its place."
    )
    grown = fn([*texts, *(f"New {i}" for i in range(500))], 0.2)
    moved = len((set(grown[1]) & set(texts)) ^ set(validation))
    assert not moved, (
        f"When 500 documents are added, {moved} old ones change sides. A rank among all documents depends on the others; a threshold on a hash does not."
    )
    hashed: list[type] = []
    real = hash

    def watched(value: object) -> int:
        hashed.append(type(value))
        return real(value)

    with mock.patch("builtins.hash", watched):
        fn(list(texts), 0.2)
    assert not {str, bytes} & set(hashed), (
        "Another Python process makes another split. `hash` of a text changes each time Python starts: take one from hashlib."
    )
    elsewhere = _split_elsewhere(fn, texts)
    assert elsewhere is None or set(elsewhere) == set(validation), (
        "Another Python process makes another split. `hash` of a text changes each time Python starts: take one from hashlib."
    )
    return "Nothing leaks, nothing moves."
