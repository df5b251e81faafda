"""Checks of the exercises on corpora."""

import builtins
import functools
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

import numpy as np

from course.check.diagnose import Diagnosis, WrongKind, whole
from course.check.facts import Facts
from course.check.verdict import call, exercise

CUT = {
    "last space": "You take the last space, whatever stands behind it, and no newline. A safe place is before a space or newline that a visible character follows.",
    "behind last space": "You cut behind the last space. The tokenizer keeps a space with the word that follows: cut before it.",
    "end counts": "You take the last white space, at the very end of the text, too. There it may go on in the next block: a visible character must follow.",
    "behind": "You cut behind the space. The tokenizer keeps it with the word that follows: cut before it.",
    "spaces only": "You look for spaces only. A newline that a visible character follows is a safe place, too.",
    "newlines only": "You look for newlines only. A space that a visible character follows is a safe place, too.",
    "first place": "You return the first safe place. The last one is asked for.",
    "at 0": "You take the first character for a place to cut: nothing would be before it.",
    "not at 1": "You never cut behind the first character. That is a safe place, too, if the second one is the space.",
    "zero": "Where there is no safe place you return 0. Return the length of the text.",
    "minus": "Where there is no safe place you return -1. Return the length of the text.",
    "none": "Where there is no safe place you return None. Return the length of the text.",
    "stripped": "Where there is no safe place you return the length without the white space at the end. Return the length of the whole text.",
    "text": "You return the text before the cut. The number of its characters is asked for.",
    "remainder": "You return the number of characters behind the cut. Return that before it.",
    "visible before": "You ask for a visible character *before* the white space. One must follow it.",
    "both sides": "You ask for visible characters on both sides of the space. Of two spaces the second is a safe place: only what follows counts.",
    "run start": "You cut at the beginning of the white space. Of two spaces only the last belongs to the word: cut between them.",
    "gives up": "You look at the last white space only, and give up if no visible character follows it. Look further to the left.",
    "one look": "You return in the first turn of the loop, whatever it found. Return the length only when the loop is over.",
    "one look, none": "You return in the first turn of the loop, whatever it found, and a text without a turn gets None. Return the length when the loop is over.",
    "last word": "You count what stands before the last word and the white space in front of it. Cut before the last of these spaces, and return the whole length where there is no safe place.",
    "index": "Your loop begins at the last character, behind which there is none, so white space there is an IndexError. Begin one before it.",
    "late": "Your loop begins one character too far left, so a safe place before a last word of one letter is not found.",
    "letters": "You take only letters for visible. A digit, a full stop or a quotation mark is visible, too: anything that is no white space.",
    "alnum": "You take only letters and digits for visible. A full stop or a quotation mark is visible, too: anything that is no white space.",
    "bytes": "You count bytes of UTF-8. Characters are asked for.",
    "sentence": "You cut at the end of a sentence. A safe place is before any space or newline that a visible character follows.",
}  # fmt: skip


def cut(text: str, wrong: frozenset[str] = frozenset()) -> Any:
    """The reference: characters before the last safe cut; with any of CUT made."""
    N, blank = len(text), " " if "spaces only" in wrong else "\n" if "newlines only" in wrong else " \n"  # fmt: skip
    if "last space" in wrong:
        return text.rfind(" ") if " " in text else N
    if "behind last space" in wrong:
        return text.rfind(" ") + 1 if " " in text else N
    if "sentence" in wrong:
        return text.rfind(". ") + 1 if ". " in text else N
    if "last word" in wrong:
        return len(text.rsplit(None, 1)[0])
    if "gives up" in wrong:
        i = max(text.rfind(" "), text.rfind("\n"))
        return i if 0 < i < N - 1 and not text[i + 1].isspace() else N
    if "visible before" in wrong:
        return next((i for i in range(N - 1, 0, -1) if text[i] in blank and not text[i - 1].isspace()), N)  # fmt: skip

    def visible(i: int) -> bool:
        if i == N and "end counts" in wrong:
            return True
        if "letters" in wrong:
            return text[i].isalpha()
        return text[i].isalnum() if "alnum" in wrong else not text[i].isspace()

    first = N - 1 if wrong & {"index", "end counts"} else N - 3 if "late" in wrong else N - 2  # fmt: skip
    last = -1 if "at 0" in wrong else 1 if "not at 1" in wrong else 0
    places = range(first, last, -1)
    if wrong & {"one look", "one look, none"}:
        if not places and "one look, none" in wrong:
            return None
        places = places[:1]
    found = [i for i in places if text[i] in blank and visible(i + 1)]
    if "both sides" in wrong:
        found = [i for i in found if not text[i - 1].isspace()]
    if not found:
        values = {"zero": 0, "minus": -1, "none": None, "stripped": len(text.rstrip())}
        at = next((values[key] for key in values if key in wrong), N)
    else:
        at = found[-1 if "first place" in wrong else 0]
        if "run start" in wrong:
            at = len(text[: at + 1].rstrip()) or N
        at = at + 1 if "behind" in wrong else at
        at = N - at if "remainder" in wrong else at
    if "bytes" in wrong:
        return len(text[:at].encode())
    return text[:at] if "text" in wrong else at


TEXTS = ["onetwo", "one two three", "one\ntwo", "one two  ", "one  two", " one", "a 1 ", "one two. ", "a b", "one .", "one tw\u00f6\nthree", "\u00e9t\u00e9 \u00fc", "a  b\n\nc \n", "Yes. No. Then 3\nor 4 of them! ", "the  ", "a characteristically", " \nx", "  x", "", "b"]  # fmt: skip
LAST_SAFE_CUT = Diagnosis(cut, CUT, [(text,) for text in TEXTS], lambda text: f"For {text!r}", read=whole)  # fmt: skip


@exercise
def last_safe_cut(fn: Callable[[str], int]) -> str:
    """Check a `last_safe_cut(text) -> characters before the cut`."""
    LAST_SAFE_CUT.judge(fn)
    return "Each half gives the ids that it has in the whole."


TEXT_ALONE = "Let the text alone decide: a number between 0 and 1 made of its hash, below `fraction` or not."
SPLIT = {
    "last part": f"You hold out the last part of the list, so a document's place decides: in another order it changes sides. {TEXT_ALONE}",
    "first part": f"You hold out the first part of the list, so a document's place decides: in another order it changes sides. {TEXT_ALONE}",
    "every": f"You hold out every so-manyth document, so its place decides: in another order it changes sides. {TEXT_ALONE}",
    "shuffled": f"You shuffle with a fixed seed and cut, so a document's place in the list decides: in another order it changes sides. {TEXT_ALONE}",
    "place coin": f"Places in the list decide in your code, as by a coin with a fixed seed for each, and in another order documents change sides. {TEXT_ALONE}",
    "coin": f"The same list is split another way each time: you draw from a generator without a seed, or keep something between calls. {TEXT_ALONE}",
    "hash": "You use Python's own `hash`: for a text it is another one each time Python starts. Take one from hashlib.",
    "id": "You use `id`, the address of an object: equal texts can lie at two addresses. Take a hash of the text, from hashlib.",
    "rank": "You hold out an exact share of the different texts, by rank or by shuffling them. When texts are added, old ones change sides. A threshold on a hash depends on no other text.",
    "modulo": "The other documents have a say in your code, as by % len(texts): when texts are added, old ones change sides. Divide the hash by the largest that there can be.",
    "place and text": f"More than the text has a say in your code, as where its place is hashed with it: in reverse order documents change sides. {TEXT_ALONE}",
    "copies lost": "You throw copies away: a text that came twice comes out once. Both stay, on one side.",
    "train all": "Your train holds validation's documents as well. Each document belongs to one side.",
    "swapped": "Your sides are swapped: train comes first, and validation gets `fraction`.",
    "tenths": "You round `fraction` to tenths: 0.35 becomes 0.4, and 0.05 nothing. Read the hash as a number between 0 and 1.",
    "tenths down": "You round `fraction` down to tenths: 0.35 becomes 0.3, and 0.05 nothing. Read the hash as a number between 0 and 1.",
    "percent": "You round `fraction` to hundredths: of 0.004 nothing is left. Read the hash as a number between 0 and 1.",
    "undivided": "You hold out nothing. Is your hash a large whole number, never below `fraction`? Divide it by the largest that there can be.",
    "length": f"You let the length of a text decide: texts of one length all go to one side. {TEXT_ALONE}",
    "beginning": "Only the beginning of a text decides in your code: texts that begin alike all go to one side. Hash all of it.",
    "first letter": f"You let the first character decide: texts that begin alike all go to one side. {TEXT_ALONE}",
    "end": "Only the end of a text decides in your code: texts that end alike all go to one side. Hash all of it.",
    "empties": "You take the documents out of the list that you were handed. Whoever holds it still needs it: work on a copy.",
    "sorts": "You sort or shuffle the list that you were handed. Whoever holds it still needs its order: work on a copy, sorted(…).",
    "sets": "You return sets, in which copies are lost. Return two lists.",
    "indices": "You return the documents' numbers. Return the documents.",
    "flat": "You return one list. Return two: train, validation.",
    "validation only": "You return validation alone. Return two lists: train, validation.",
    "dict": "You return a dictionary. Return two lists: train, validation.",
    "bytes": "Your code hashes a text as it is, and stops: hashlib wants bytes. Encode it first, text.encode().",
}  # fmt: skip


@functools.lru_cache(1 << 16)
def _u(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64  # fmt: skip


def split(texts: list[str], fraction: float, wrong: frozenset[str] = frozenset()) -> Any:  # fmt: skip
    """The reference: train and validation; with any of SPLIT made."""
    N = len(texts)
    given = texts
    if "sorts" in wrong:
        texts.sort(key=_u)
    if "empties" in wrong:
        given = [texts.pop(0) for _ in range(N)]
    if "copies lost" in wrong:
        given = list(dict.fromkeys(given))
    chance = np.random.RandomState(0)
    tenths = {"tenths": round(10 * fraction) / 10, "tenths down": int(10 * fraction) / 10, "percent": round(100 * fraction) / 100}  # fmt: skip
    limit = next((tenths[key] for key in tenths if key in wrong), fraction)
    by_place: dict[str, Callable[[int], bool]] = {
        "last part": lambda i: i >= N - int(N * limit),
        "first part": lambda i: i < int(N * limit),
        "every": lambda i: i % max(1, round(1 / limit)) == 0,
        "place coin": lambda i: chance.rand() < limit,
    }
    if "shuffled" in wrong:
        first = set(chance.permutation(N)[: int(N * limit)].tolist())
        by_place["shuffled"] = lambda i: i in first
    by_text: dict[str, Callable[[str], float]] = {
        "coin": lambda t: random.random(),
        "hash": lambda t: hash(t) % 10007 / 10007,
        "id": lambda t: id(t) % 10007 / 10007,
        "length": lambda t: _u(str(len(t))),
        "beginning": lambda t: _u(t[:20]),
        "first letter": lambda t: ord((t or "a")[0]) % 10 / 10,
        "end": lambda t: _u(t[-8:]),
        "undivided": lambda t: 2.0,
        "bytes": lambda t: hashlib.sha256(t),  # type: ignore[dict-item, arg-type, return-value]
        "modulo": lambda t: int(_u(t) * 2**53) % N / N,
    }
    u = next((by_text[key] for key in by_text if key in wrong), _u)
    held = [u(t) < limit for t in given]
    if "place and text" in wrong:
        held = [_u(f"{i} {t}") < limit for i, t in enumerate(given)]
    if "rank" in wrong:
        different = sorted(set(given), key=_u)
        first_ones = set(different[: int(limit * len(different))])
        held = [t in first_ones for t in given]
    if place := next((by_place[key] for key in by_place if key in wrong), None):
        held = [place(i) for i in range(len(given))]
    items: list[Any] = list(range(N)) if "indices" in wrong else given
    train = [x for x, out in zip(items, held, strict=True) if not out or "train all" in wrong]  # fmt: skip
    validation = [x for x, out in zip(items, held, strict=True) if out]
    train, validation = (validation, train) if "swapped" in wrong else (train, validation)  # fmt: skip
    made: dict[str, Any] = {"sets": (set(train), set(validation)), "flat": train + validation, "validation only": validation, "dict": {"train": train, "validation": validation}}  # fmt: skip
    return next((made[key] for key in made if key in wrong), (train, validation))


@functools.lru_cache(1)
def _kept() -> list[str]:
    return [f"{chr(65 + i * 7 % 26)}{hashlib.md5(str(i).encode()).hexdigest()} {'and so on ' * (i % 5)}{i}" for i in range(8000)]  # fmt: skip


def _documents(first: int, n: int, fresh: bool = False) -> list[str]:
    """Different texts; `fresh`: equal ones, at other addresses."""
    made = _kept()[first : first + n]
    return ["".join([text[:1], text[1:]]) for text in made] if fresh else made


def _sides(fn: Any, texts: list[str], fraction: float = 0.2) -> tuple[list[str], list[str]]:  # fmt: skip
    found = call(fn, texts, fraction)
    if not isinstance(found, tuple | list):
        raise WrongKind(f"the result is {'None' if found is None else 'a ' + type(found).__name__}")  # fmt: skip
    if len(found) != 2 or any(isinstance(side, str) for side in found):
        raise WrongKind(f"the result is a {type(found).__name__} of {len(found)} elements")  # fmt: skip
    for side, name in zip(found, ("train", "validation"), strict=True):
        if not isinstance(side, tuple | list):
            raise WrongKind(f"{name} is a {type(side).__name__}")
        if odd := [type(x).__name__ for x in side if not isinstance(x, str)]:
            raise WrongKind(f"{name} holds elements of the kind {odd[0]}")
    return list(found[0]), list(found[1])


def _whole(fn: Any) -> dict[str, Any]:
    """Whether each document comes out once, and the list stays as it was."""
    texts = _documents(0, 400)
    kept = list(texts)
    train, validation = _sides(fn, texts)
    facts: dict[str, Any] = {"changed": len(texts) if texts != kept else None}
    if set(train) & set(validation):
        return {**facts, "both": True}
    if Counter(train + validation) != Counter(kept):
        return {**facts, "came out": len(train + validation)}
    doubled = _documents(0, 400) + _documents(0, 200, fresh=True)
    train, validation = _sides(fn, list(doubled))
    facts["copies"] = set(train + validation) == set(doubled) and len(train + validation)  # fmt: skip
    return facts


def _moves(fn: Any) -> dict[str, Any]:
    """What the side of a document depends on, besides its text."""
    if _whole(fn) != _whole(split):
        return {}
    texts, others = _documents(0, 500), _documents(5000, 500)
    held = set(_sides(fn, list(texts))[1])
    if held != set(_sides(fn, list(texts))[1]):
        return {"unsteady": True}
    places = [i for i, text in enumerate(texts) if text in held]
    theirs = set(_sides(fn, list(others))[1])
    if 0 < len(held) < 500 and places == [i for i, text in enumerate(others) if text in theirs]:  # fmt: skip
        steps = {b - a for a, b in zip(places, places[1:], strict=False)}
        block = "last" if places[-1] == 499 else "first"
        return {"place": ("every" if len(steps) == 1 and steps != {1} else block if steps == {1} else "scattered", [len(_sides(fn, list(texts), f)[1]) for f in (0.2, 0.37)] == [100, 185])}  # fmt: skip
    if held != set(_sides(fn, _documents(0, 500, fresh=True))[1]):
        return {"object": True}
    real = builtins.hash
    salted = lambda thing: real(("another process", thing))  # noqa: E731
    with mock.patch("builtins.hash", salted):
        elsewhere = set(_sides(fn, list(texts))[1])
    if held != elsewhere:
        return {"process": True}
    more = texts + ["A" + text for text in others[:300]]
    grown = set(_sides(fn, more)[1]) & set(texts)
    return {
        "turned": held == set(_sides(fn, texts[::-1])[1]),
        "grown": True if grown == held else "exact" if len(held) == 100 else "moved",
    }


def _shares(fn: Any) -> dict[str, Any]:
    """How many documents are held out, and whether all of a text decides."""
    if _moves(fn) != {"turned": True, "grown": True}:
        return {}
    noise = [hashlib.md5(str(i).encode()).hexdigest() for i in range(400)]
    begin, end = "Once upon a time, there was a cat. " * 3, ", and all was well. The end."  # fmt: skip
    spaced = ["".join(" " if j % (2 + i % 6) == 1 else c for j, c in enumerate(text)) for i, text in enumerate(noise)]  # fmt: skip
    alike = {
        "length": spaced,
        "beginning": [begin + text + "x" * i for i, text in enumerate(noise)],
        "end": [text + "x" * i + end for i, text in enumerate(noise)],
    }
    sizes = {0.2: 2000, 0.5: 2000, 0.35: 8000, 0.05: 2000, 0.004: 4000}
    got = {f: len(_sides(fn, _documents(0, n), f)[1]) / n for f, n in sizes.items()}
    if all(abs(share - 1 + f) < 0.05 for f, share in got.items()):
        return {"swapped": True}
    for name, group in alike.items():
        if len(set(group)) > 1 and 0 in map(len, _sides(fn, list(group), 0.5)) and 0 < got[0.5] < 1:  # fmt: skip
            return {"alike": name, "letter": name == "beginning" and 0 in map(len, _sides(fn, ["A" + text for text in noise], 0.5))}  # fmt: skip
    off = {f: round(got[f] * 20) / 20 for f in got if not got[f] or abs(got[f] - f) > (0.03 if f == 0.35 else 0.05)}  # fmt: skip
    return {"share": off or None}


SPLIT_DOCUMENTS = Facts(
    split,
    SPLIT,
    [_whole, _moves, _shares],
    {
        "kind": lambda got: f"Return two lists of texts, train and validation: {got}.",
        "both": lambda got: "Some documents are in train *and* in validation, though no two are equal. Each belongs to one side.",
        "came out": lambda got: f"400 different documents went in, {got} came out, or others than went in. Each belongs to one side.",
        "changed": lambda got: "You change the list that you were handed. Whoever holds it still needs it: work on a copy.",
        "copies": lambda got: f"Of 600 documents, 200 of them copies, {got or 'some'} came out. Copies stay.",
        "unsteady": lambda got: f"Two calls with the same documents give two different splits. {TEXT_ALONE}",
        "place": lambda got: f"Of two lists that share no document you hold out the same places, so the place decides. {TEXT_ALONE}",
        "object": lambda got: "Texts that are equal, but lie elsewhere in memory, get other sides. Let the text's contents decide: take a hash of it from hashlib.",
        "process": lambda got: SPLIT["hash"],
        "turned": lambda got: f"In reverse order some documents change sides. {TEXT_ALONE}",
        "grown": lambda got: f"When documents are added, some old ones change sides. {TEXT_ALONE}",
        "swapped": lambda got: SPLIT["swapped"],
        "alike": lambda got: f"400 different texts {'of one length' if got == 'length' else 'with the same ' + got} all go to one side. Let all of the text decide.",
        "share": lambda got: f"You hold out about {max(got.values()):.0%} of the documents, whatever `fraction` says." if len(got) > 2 and len({*got.values()}) == 1 else f"With fraction = {max(got)}, validation gets about {got[max(got)]:.2f} of the documents.",
    },
    pairs=False,
)  # fmt: skip


def _elsewhere(fn: Callable[..., Any], texts: list[str]) -> list[str] | None:
    """The validation side as another Python process would make it, if the function can be sent there as source."""
    try:
        source = textwrap.dedent(inspect.getsource(fn))
    except (OSError, TypeError):
        return None
    code = f"import hashlib, json, random, sys, zlib\nimport numpy as np\n{source}\ntexts, fraction = json.load(sys.stdin)\njson.dump({fn.__name__}(texts, fraction)[1], sys.stdout)"
    given = json.dumps([texts, 0.2])
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, encoding="utf-8", timeout=60)  # fmt: skip
    return json.loads(done.stdout) if done.returncode == 0 else None


@exercise
def split_documents(
    fn: Callable[[list[str], float], tuple[list[str], list[str]]],
) -> str:
    """Check a `split_documents(texts, fraction) -> train, validation`."""
    SPLIT_DOCUMENTS.judge(fn)
    texts = _documents(0, 1000)
    elsewhere = _elsewhere(fn, texts)
    assert elsewhere is None or set(elsewhere) == set(_sides(fn, texts)[1]), (
        "Another Python process makes another split. `hash` of a text, and with it the order of a set, changes each time Python starts: take one from hashlib."
    )
    return "Nothing leaks, nothing moves."
