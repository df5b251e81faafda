"""Checks of the exercises on tokens: one merge, and the way back from ids to text."""

from collections.abc import Callable, Mapping

from course.check.verdict import exercise

Words = dict[tuple[bytes, ...], int]


def _words(**times: int) -> Words:
    """Words cut into bytes, each with how often it occurs."""
    return {
        tuple(bytes([byte]) for byte in word.encode()): n for word, n in times.items()
    }


def _show(words: object) -> str:
    if not isinstance(words, Mapping):
        return repr(words)
    return ", ".join(
        "·".join(part.decode("utf-8", "replace") for part in word) for word in words
    )


@exercise
def merge_step(fn: Callable[[Words], Words]) -> str:
    """Check a `merge_step(words)` that joins the most frequent pair of neighbours everywhere."""
    given = _words(hug=10, pug=5, hugs=5)  # ug 20, hu 15, pu 5, gs 5
    before = dict(given)
    out = fn(given)
    assert given == before, (
        "Your function changes the words that it was given. Build new ones: the caller may need the old."
    )
    assert isinstance(out, Mapping), (
        f"It returned {type(out).__name__}; return a dict from words to how often they occur."
    )
    assert out != before, "Nothing is joined: the words come back as they were."
    assert all(isinstance(word, tuple) for word in out), (
        "The words of the result are no tuples of bytes. A dict needs keys that never change: tuple(parts)."
    )
    assert sorted(out.values()) == [5, 5, 10], (
        f"The words occur {sorted(out.values())} times after the merge; that must stay as it was: [5, 5, 10]."
    )
    assert [b"".join(word) for word in out] == [b"".join(word) for word in before], (
        f"The words spell something else now: {_show(out)}. A merge joins neighbours; it adds and drops no byte."
    )
    assert out == {(b"h", b"ug"): 10, (b"p", b"ug"): 5, (b"h", b"ug", b"s"): 5}, (
        f"u·g occurs 20 times and is the most frequent pair, but your words are {_show(out)}."
    )

    often = fn(
        {
            **_words(xy=7),
            **{
                word: 1
                for n in range(3)
                for word in _words(**{"abcd"[: n + 2] + "z" * n: 1})
            },
        }
    )
    assert (b"xy",) in often, (
        "A pair counts as often as its word occurs: x·y stands in one word only, but that occurs 7 times. Add the word's count, not 1."
    )
    inside = fn(_words(banana=2, xy=3))  # an 4, na 4, xy 3
    assert (b"xy",) not in inside, (
        "In b·a·n·a·n·a the pair a·n stands twice, so two such words count 4. Count every occurrence, not every word."
    )
    assert inside != {(b"b", b"an", b"a", b"n", b"a"): 2, (b"x", b"y"): 3}, (
        "Only the first a·n of b·a·n·a·n·a is joined. Join the pair wherever it occurs."
    )
    assert (b"b", b"a", b"na", b"na") not in inside, (
        "a·n and n·a are equally frequent. Of equals take the first in the order of bytes, a·n: then training gives the same result every time."
    )
    assert (b"b", b"an", b"an", b"a") in inside, (
        f"The most frequent pair of b·a·n·a·n·a is a·n, but your words are {_show(inside)}."
    )
    overlap = fn(_words(aaa=1))
    assert (b"a", b"aa") not in overlap, (
        "In a·a·a both pairs overlap. Join from left to right: aa·a. An encoder that does otherwise finds other tokens."
    )
    assert list(overlap) == [(b"aa", b"a")], (
        f"a·a·a must become aa·a; yours is {_show(overlap)}. A byte that was joined is no half of the next pair."
    )
    pairs = fn({(b"ab", b"c"): 1, (b"a", b"z"): 1})
    assert (b"ab", b"c") in pairs, (
        "ab·c and a·z are equally frequent. Of equals take the smaller *pair*, first parts first: a·z, since a comes before ab. You compare the joined bytes."
    )
    try:
        single = fn(_words(a=3))
    except (IndexError, ValueError) as error:
        raise AssertionError(
            f"A word of one byte has no pair, so there is nothing to join; yours raises {type(error).__name__}. Return the words as they are."
        ) from None
    assert single == _words(a=3), (
        f"A word of one byte has no pair and should come back as it is; yours is {_show(single)}."
    )
    return "Counts, ties, overlaps and single bytes all hold."


@exercise
def decode(fn: Callable[[list[int], dict[bytes, int]], str]) -> str:
    """Check a `decode(ids, ranks)`."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {
        b" k": 256,
        b"ite": 257,
        b" kite": 258,
        "é".encode(): 259,
    }
    plain = fn([97, 258, 115], ranks)
    assert isinstance(plain, str), (
        f"It returned {type(plain).__name__}; join the bytes, then decode them to a str."
    )
    assert plain != "a  kite s", (
        "There are spaces between the tokens. A token brings its own space: join with nothing between."
    )
    assert plain == "a kites", (
        f"The ids 97, 258, 115 are a, ' kite' and s, so the text is 'a kites'; yours is {plain!r}."
    )
    fox = fn(list("🦊".encode()), ranks)
    assert fox != "", (
        "Bytes that are no character by themselves are dropped. Do not ignore errors: join all bytes first, then decode."
    )
    assert "\ufffd" not in fox and "ð" not in fox, (
        f"A fox is four bytes, and each became a character of its own: {fox!r}. Join the bytes of all tokens first, and decode once."
    )
    assert fox == "🦊", (
        f"The four bytes of 🦊 should give it back; yours gives {fox!r}."
    )
    try:
        half = fn([97, 0xF0, 0x9F], ranks)
    except UnicodeDecodeError:
        raise AssertionError(
            'Half a character stops your function, but a model may well write one. Show it as a mark: decode("utf-8", errors="replace").'
        ) from None
    assert half.startswith("a"), (
        f"Half a character should not hide what came before it; yours gives {half!r}."
    )
    try:
        end = fn([97, len(ranks)], ranks)
    except (KeyError, IndexError):
        raise AssertionError(
            f"The id {len(ranks)}, one after the last rank, is the end of text and stands in no table. Give it the text <|endoftext|>."
        ) from None
    assert end == "a<|endoftext|>", (
        f"The id after the last rank is <|endoftext|>; yours gives {end!r}."
    )
    return "Whole texts, split characters and the end of text all hold."
