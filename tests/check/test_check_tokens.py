"""The checks on tokens are themselves checked: each planted bug is caught with its own message."""

import collections
import itertools

import pytest

from course import check
from slm.data.tokenizer import merge


def count(words, weigh=True, once=False):
    counts = collections.Counter()
    for parts, times in words.items():
        pairs = itertools.pairwise(parts)
        for pair in set(pairs) if once else pairs:
            counts[pair] += times if weigh else 1
    return counts


def step(words, best=None, join=merge, **how):
    """The solution, with room for a bug in each part."""
    counts = count(words, **how)
    if not counts:
        return dict(words)
    pair = best(counts) if best else min(counts, key=lambda pair: (-counts[pair], pair))
    return {tuple(join(list(parts), pair)): times for parts, times in words.items()}


def first_only(parts, pair):
    for i, found in enumerate(itertools.pairwise(parts)):
        if found == pair:
            return [*parts[:i], pair[0] + pair[1], *parts[i + 2 :]]
    return parts


def from_the_right(parts, pair):
    joined = merge([part[::-1] for part in parts[::-1]], (pair[1][::-1], pair[0][::-1]))
    return [part[::-1] for part in joined[::-1]]


def drops_bytes(parts, pair):
    return [
        pair[0] + pair[1] if (a, b) == pair else a for a, b in itertools.pairwise(parts)
    ]


def keeps_the_half(parts, pair):
    out = []
    for i, part in enumerate(parts):
        out.append(
            part + parts[i + 1]
            if i + 1 < len(parts) and (part, parts[i + 1]) == pair
            else part
        )
    return out


def in_place(words):
    new = step(words)
    words.clear()
    words.update(new)
    return words


def no_pair(words):
    if all(len(word) == 1 for word in words):
        return [][0]
    return step(words)


MERGE_BUGS = {
    "changes the words that it was given": in_place,
    "It returned NoneType": lambda words: None,
    "Nothing is joined": dict,
    "no tuples of bytes": lambda words: {
        b"".join(word): n for word, n in step(words).items()
    },
    "that must stay as it was": lambda words: dict.fromkeys(step(words), 1),
    "You compare the joined bytes": lambda words: step(
        words, best=lambda c: min(c, key=lambda p: (-c[p], p[0] + p[1]))
    ),
    "nothing to join; yours raises IndexError": no_pair,
    "spell something else now": lambda words: step(words, join=keeps_the_half),
    "is the most frequent pair, but": lambda words: step(
        words, best=lambda counts: min(counts, key=lambda p: (counts[p], p))
    ),
    "Add the word's count, not 1": lambda words: step(words, weigh=False),
    "Count every occurrence, not every word": lambda words: step(words, once=True),
    "Only the first a·n": lambda words: step(words, join=first_only),
    "first in the order of bytes": lambda words: step(
        words, best=lambda counts: max(counts, key=lambda p: (counts[p], p))
    ),
    "Join from left to right": lambda words: step(words, join=from_the_right),
    "A word of one byte has no pair": lambda words: {
        word: n for word, n in step(words).items() if len(word) > 1 or b"xy" in word
    },
    "raises ValueError": lambda words: (
        step(words) if max(map(len, words)) > 1 else min([])
    ),
}


def decode_solution(ids, ranks):
    token = {rank: text for text, rank in ranks.items()} | {
        len(ranks): b"<|endoftext|>"
    }
    return b"".join(token[i] for i in ids).decode("utf-8", errors="replace")


def token_of(ranks, end=True):
    return {rank: text for text, rank in ranks.items()} | (
        {len(ranks): b"<|endoftext|>"} if end else {}
    )


DECODE_BUGS = {
    "It returned bytes": lambda ids, ranks: b"".join(token_of(ranks)[i] for i in ids),
    "A token brings its own space": lambda ids, ranks: b" ".join(
        token_of(ranks)[i] for i in ids
    ).decode("utf-8", "replace"),
    "the text is 'a kites'; yours": lambda ids, ranks: b"".join(
        token_of(ranks)[i] for i in reversed(ids)
    ).decode("utf-8", "replace"),
    "Do not ignore errors": lambda ids, ranks: "".join(
        token_of(ranks)[i].decode("utf-8", "ignore") for i in ids
    ),
    "each became a character of its own": lambda ids, ranks: "".join(
        token_of(ranks)[i].decode("utf-8", "replace") for i in ids
    ),
    "became a character of its own: 'ð": lambda ids, ranks: b"".join(
        token_of(ranks)[i] for i in ids
    ).decode("latin-1"),
    "Show it as a mark": lambda ids, ranks: b"".join(
        token_of(ranks)[i] for i in ids
    ).decode(),
    "stands in no table": lambda ids, ranks: b"".join(
        token_of(ranks, end=False)[i] for i in ids
    ).decode("utf-8", "replace"),
    "is <|endoftext|>; yours": lambda ids, ranks: b"".join(
        token_of(ranks, end=False).get(i, b"") for i in ids
    ).decode("utf-8", "replace"),
}


@pytest.mark.parametrize("message", MERGE_BUGS)
def test_planted_merge_bug_is_named(message):
    verdict = check.merge_step(MERGE_BUGS[message])
    assert not verdict.passed
    assert message in verdict.message


@pytest.mark.parametrize("message", DECODE_BUGS)
def test_planted_decode_bug_is_named(message):
    verdict = check.decode(DECODE_BUGS[message])
    assert not verdict.passed
    assert message in verdict.message


@pytest.mark.parametrize("name", ["merge_step", "decode"])
def test_stubs_are_told_apart(name):
    def stub(*_):
        raise NotImplementedError("your turn")

    verdict = getattr(check, name)(stub)
    assert not verdict.passed and "still the stub" in verdict.message


def test_solutions_pass():
    for verdict in (check.merge_step(step), check.decode(decode_solution)):
        assert verdict.passed, verdict
