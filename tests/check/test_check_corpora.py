"""The checks of the exercises on corpora are themselves checked: each planted bug is caught with its own message."""

import hashlib
import random
import re

import pytest

from course import check


def cut_solution(text):
    for i in range(len(text) - 2, 0, -1):
        if text[i] in " \n" and not text[i + 1].isspace():
            return i
    return len(text)


def cut_before(text, safe, first=1, none=None):
    """The last place that is safe, else `none`."""
    found = [i for i in range(first, len(text) - 1) if safe(text[i], text[i + 1])]
    return found[-1] if found else len(text) if none is None else none


def behind(text):
    place = text.rfind(" ")
    return place + 1 if place > 0 else len(text)


CUT_BUGS = {
    "You cut behind the space": behind,
    "so 7 is expected; you return 3": lambda text: text.find(" "),
    "Return a number of characters": lambda text: text[: cut_solution(text)],
    "A newline that a visible character": lambda text: cut_before(
        text, lambda a, b: a == " " and not b.isspace()
    ),
    "White space at the end": lambda text: max(
        (i for i in range(1, len(text)) if text[i] in " \n"), default=len(text)
    ),
    "cut between the two": lambda text: max(
        (found.start() for found in re.finditer(r"(?<=\S)[ \n]+(?=\S)", text)),
        default=len(text),
    ),
    "return the length of the text": lambda text: cut_before(
        text, lambda a, b: a in " \n" and not b.isspace(), none=-1
    ),
    "there is nothing to cut off": lambda text: cut_before(
        text, lambda a, b: a in " \n" and not b.isspace(), first=0
    ),
    "An empty text has no": lambda text: cut_solution(text) if text else 1,
    "For '' it fails (IndexError)": lambda text: cut_solution(text) if text[0] else 0,
}


def split_solution(texts, fraction):
    def held_out(text):
        return (
            int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
            < fraction
        )

    return [t for t in texts if not held_out(t)], [t for t in texts if held_out(t)]


def overlapping(texts, fraction):
    return texts, split_solution(texts, fraction)[1]


def forgetting(texts, fraction):
    train, validation = split_solution(texts, fraction)
    return train[1:], validation


def by_position(texts, fraction):
    n = int(len(texts) * (1 - fraction))
    return texts[:n], texts[n:]


def last_unique(texts, fraction):
    unique = list(dict.fromkeys(texts))
    held = set(unique[int(len(unique) * (1 - fraction)) :])
    return [t for t in texts if t not in held], [t for t in texts if t in held]


def drawing(texts, fraction):
    held = set(random.sample(sorted(set(texts)), int(fraction * len(set(texts)))))
    return [t for t in texts if t not in held], [t for t in texts if t in held]


def by_rank(texts, fraction):
    unique = sorted(set(texts), key=lambda t: hashlib.sha256(t.encode()).digest())
    held = set(unique[: int(len(unique) * fraction)])
    return [t for t in texts if t not in held], [t for t in texts if t in held]


def by_pythons_hash(texts, fraction):
    held = [hash(t) % 1000 < fraction * 1000 for t in texts]
    return [t for t, h in zip(texts, held, strict=True) if not h], [
        t for t, h in zip(texts, held, strict=True) if h
    ]


def helper_with_pythons_hash(texts, fraction):
    return by_pythons_hash(texts, fraction)


SPLIT_BUGS = {
    "in train *and* in validation": overlapping,
    "each belongs to exactly one side": forgetting,
    "sides are swapped": lambda texts, fraction: split_solution(texts, fraction)[::-1],
    "validation got 0.04": lambda texts, fraction: split_solution(texts, fraction**2),
    "one copy in train and one in validation": by_position,
    "In reverse order": last_unique,
    "two different splits": drawing,
    "A rank among all documents": by_rank,
    "Another Python process": by_pythons_hash,
    "`hash` of a text changes": helper_with_pythons_hash,
    "Return two lists": lambda texts, fraction: texts,
}


@pytest.mark.parametrize("message", CUT_BUGS)
def test_planted_bug_in_a_cut_is_named(message):
    verdict = check.last_safe_cut(CUT_BUGS[message])
    assert not verdict.passed and message in verdict.message


@pytest.mark.parametrize("message", SPLIT_BUGS)
def test_planted_bug_in_a_split_is_named(message):
    verdict = check.split_documents(SPLIT_BUGS[message])
    assert not verdict.passed and message in verdict.message


@pytest.mark.parametrize("name", ["last_safe_cut", "split_documents"])
def test_stub_is_told_apart(name):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert "still the stub" in getattr(check, name)(stub).message


def test_solutions_pass():
    assert check.last_safe_cut(cut_solution).passed
    assert check.split_documents(split_solution).passed
