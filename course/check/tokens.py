"""Checks of the exercises on tokens: one merge, and the way back from ids to text."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from course.check.diagnose import CHANGED, Diagnosis, WrongKind
from course.check.steps import carried_out
from course.check.verdict import call, exercise
from slm.data.tokenizer import Pair, get_tokenizer, merge

Words = dict[tuple[bytes, ...], int]
Ranks = dict[bytes, int]

TIES = "Of pairs that are equally frequent"
MERGE_MISTAKES = {
    "words once": "Each word counts once with you. A pair counts as often as its word occurs: add the word's number, not 1.",
    "once in word": "A pair counts once in a word, even where it stands twice. In two words b·a·n·a·n·a the pair a·n stands four times.",
    "bytes.count": "You count in the joined word (`count`), which misses places that overlap, as in a·a·a, and finds parts that are joined already. Count neighbours among the parts.",
    "steps of two": "You count every second pair of a word only (steps of two). Each part and the one behind it are neighbours.",
    "not the last": "The last pair of each word is not counted.",
    "across": "You count pairs across the border between words. A pair stands inside one word.",
    "key = (-n, i)": f"{TIES} you join the one that was met first. Take the smaller pair, first part first, in byte order: min(counts, key=lambda pair: (-counts[pair], pair)).",
    "key = (-n, -i)": f"{TIES} you join the one that was met last. Take the smaller pair, first part first, in byte order: min(counts, key=lambda pair: (-counts[pair], pair)).",
    "key = (-n, turned)": f"{TIES} you join the largest. Take the smallest: max of (count, pair) prefers the larger pair, min of (-count, pair) the smaller.",
    "key = (-n, a + b, i)": f"{TIES} you compare the joined bytes. Compare the pairs, first part first: (a, z) comes before (ab, c), since a comes before ab.",
    "key = (-n, -len(a + b), i)": f"{TIES} you join the longest. Take the smaller pair, first part first, in byte order.",
    "key = (a, b)": "You join the smallest pair, however often it occurs. The most frequent is asked for; only of equals the smallest.",
    "key = (n, a, b)": "You join the least frequent pair. The most frequent is asked for.",
    "key = (n, i)": "You join the least frequent pair, and of equals the first met. Asked are the most frequent, and of equals the smallest.",
    "all equals": "You join all pairs that occur as often as the most frequent. One step joins one pair.",
    "first place": "Only the first place in each word is joined. Join the pair wherever it occurs.",
    "right to left": "You join from right to left: a·a·a becomes a·aa. An encoder that does otherwise than training finds other tokens: aa·a.",
    "twice": "a·a·a becomes aa·aa with you: a part that was joined is no half of the next pair. It should be aa·a.",
    "kept half": "After joining, the second half of the pair stands there once more: skip it.",
    "lost end": "The last part of a word is lost, unless it was joined: a loop over pairs ends one part early.",
    "drops others": "Words that do not hold the pair are missing from your result. They stay as they are.",
    "drops singles": "Words of one part are missing from your result. They stay as they are.",
    "undone": "Parts that earlier merges had joined fall apart into bytes again. They stay joined: go through the parts, not the bytes.",
    "by bytes": "You join wherever two parts spell the joined bytes, also where it is another pair. The pair is two parts: (parts[i], parts[i + 1]) == pair.",
    "until done": "You join until no pair is left. One step joins one pair.",
    "nothing": "Nothing is joined: the words come back as they were.",
    "lost times": "The words occur once each after your merge. How often a word occurs does not change.",
    "no words": "Where no word has two parts you return no words at all. They stay as they are.",
    "None": "Where no word has two parts you return None. The words stay as they are.",
    "min([])": "Where no word has two parts there is no pair, and min() of nothing raises ValueError. Return the words as they are.",
    "max([])": "Where no word has two parts there is no pair, and max() of nothing raises ValueError. Return the words as they are.",
    "[][0]": "Where no word has two parts there is no pair, and [0] of an empty list raises IndexError. Return the words as they are.",
}  # fmt: skip


def _counted(words: Words, wrong: frozenset[str]) -> Counter[Pair]:
    counts: Counter[Pair] = Counter()
    if "across" in wrong:
        words = {tuple(p for word, n in words.items() for p in word * n): 1}
    for word, times in words.items():
        pairs = list(itertools.pairwise(word))[:: 2 if "steps of two" in wrong else 1]
        pairs = pairs[:-1] if "not the last" in wrong else pairs
        if "bytes.count" in wrong:
            pairs = [p for p in dict.fromkeys(pairs) for _ in range(b"".join(word).count(p[0] + p[1]))]  # fmt: skip
        for pair in dict.fromkeys(pairs) if "once in word" in wrong else pairs:
            counts[pair] += 1 if "words once" in wrong else times
    return counts


def _best(counts: Counter[Pair], wrong: frozenset[str]) -> Pair:
    keys = {}
    for i, ((a, b), n) in enumerate(counts.items()):
        turned = [[*(-byte for byte in part), 1] for part in (a, b)]
        names = {"a": a, "b": b, "n": n, "i": i, "turned": turned}
        keys[a, b] = carried_out({"key": "(-n, a, b)"}, wrong, **names)["key"]
    return min(keys, key=lambda pair: keys[pair])


def _joined(word: tuple[bytes, ...], pair: Pair, wrong: frozenset[str]) -> list[bytes]:
    places = [i for i, found in enumerate(itertools.pairwise(word)) if found == pair]
    whole = pair[0] + pair[1]
    marked = [whole if i in places else part for i, part in enumerate(word)]
    out: list[bytes] = []
    if "nothing" in wrong:
        return list(word)
    if "first place" in wrong and places:
        return [*word[: places[0]], whole, *word[places[0] + 2 :]]
    if "right to left" in wrong:
        turned = merge([p[::-1] for p in word[::-1]], (pair[1][::-1], pair[0][::-1]))
        return [p[::-1] for p in turned[::-1]]
    if "kept half" in wrong:
        return marked
    if "twice" in wrong:
        gone = {i + 1 for i in places} - {*places}
        return [part for i, part in enumerate(marked) if i not in gone]
    if "undone" in wrong:
        return re.findall(re.escape(whole) + b"|.", b"".join(word), re.DOTALL)
    if "by bytes" in wrong:
        for part in word:
            fits = bool(out) and out[-1] + part == whole
            out[len(out) - fits :] = [whole if fits else part]
        return out
    out = merge(list(word), pair)
    return out[:-1] if "lost end" in wrong and out[-1] == word[-1] else out


def _merge_step(words: Words, wrong: frozenset[str] = frozenset()) -> Words | None:
    """The words after one merge, with any of MERGE_MISTAKES made."""
    counts = _counted(words, wrong)
    if not counts:
        for code in wrong & {"min([])", "max([])", "[][0]"}:
            eval(code)
        return None if "None" in wrong else {} if "no words" in wrong else words
    best = _best(counts, wrong)
    equals = [pair for pair, n in counts.items() if n == counts[best]]
    new: Words = {}
    for word, times in words.items():
        parts = _joined(word, best, wrong)
        for pair in equals if "all equals" in wrong else ():
            parts = merge(parts, pair)
        single = "drops singles" in wrong and len(word) == 1
        other = "drops others" in wrong and best not in itertools.pairwise(word)
        if not single and not other:
            new[tuple(parts)] = 1 if "lost times" in wrong else times
    again = "until done" in wrong and any(len(word) > 1 for word in new)
    return _merge_step(new, wrong) if again and new != words else new


def _words(text: str) -> Words:
    """Words from a text such as "hu·g 10 pug 5"; without a dot each letter is a part."""
    pieces = text.encode().split()
    split = [tuple(w.split("·".encode())) if b"\xc2" in w else tuple(w[i : i + 1] for i in range(len(w))) for w in pieces[::2]]  # fmt: skip
    return {word: int(n) for word, n in zip(split, pieces[1::2], strict=True)}


def _read(result: Any) -> dict[str, int]:
    """A result as a sentence can show it."""
    if not isinstance(result, Mapping):
        raise WrongKind("a dict from words to how often they occur")
    if not all(isinstance(w, tuple) and all(isinstance(p, bytes) for p in w) for w in result):  # fmt: skip
        raise WrongKind("a dict whose keys are words: tuples of bytes")
    return {"·".join(p.decode("latin-1") for p in w): n for w, n in result.items()}


PROBES = ("hug 10 pug 5 hugs 5", "zb 2 ab 1 ba 1 xb 2 b 9", "banana 2 xy 3", "ab·c 1 a·z 1 zz 1", "aaaa 2 aab 1 cd 6", "abcb 1 b 4 bc·a 1 c·ab 3 q·abc 1")  # fmt: skip
MORE = ("aaa 1", "za 3 ya 3 b 9 yb·c 2", "m·an·an 2 man 1 an·d 3 a·nd 1", "xyxyx 1 yx·yx 1 x·y 2", "ab 2 ac 2 abc·d 2 efe·f 2", "zy 1 é 1", "a·n·an 2 xy 3", "a 3")  # fmt: skip
MERGE = Diagnosis(
    _merge_step,
    MERGE_MISTAKES,
    [(_words(text),) for text in PROBES + MORE],
    lambda words: (
        "For the words "
        + ", ".join(f"{word} ({n} times)" for word, n in _read(words).items())
    ),
    read=_read,
)


@exercise
def merge_step(fn: Callable[[Words], Words]) -> str:
    """Check a `merge_step(words)` that joins the most frequent pair of neighbours everywhere."""
    MERGE.judge(fn)
    return "Counts, ties, overlaps and single bytes all hold."


ODD = "Bytes that are no UTF-8"
JOIN = "A character may be spread over several tokens: join the bytes of all tokens first, and decode once."
END = "The id after the last rank, len(ranks), is the end of text."
DECODE_STEPS = {
    "end": "len(ranks)",
    "text": "b'<|endoftext|>'",
    "token": "{rank: part for part, rank in ranks.items()} | {end: text}",
    "ids": "ids",
    "parts": "[token[i] for i in ids]",
    "data": "b''.join(parts)",
    "out": "data.decode(errors='replace')",
}
DECODE_MISTAKES = {
    "out = ''.join(part.decode(errors='replace') for part in parts)": f"You decode each token for itself. {JOIN}",
    "out = ''.join('�' if '�' in (t := part.decode(errors='replace')) else t for part in parts)": f"You decode each token for itself, and make a mark of each that is not whole. {JOIN}",
    "out = ''.join(part.decode() for part in parts)": f"You decode each token for itself, and half a character stops you. {JOIN}",
    "out = ''.join(part.decode(errors='ignore') for part in parts)": f"You decode each token for itself, and drop what is no character. {JOIN}",
    "out = ''.join(chr(i) if i < 256 else token[i].decode(errors='replace') for i in ids)": f"You turn each id below 256 into a character of its own; it is a byte. {JOIN}",
    "out = data.decode('latin-1')": "You decode as latin-1, one character for each byte. The bytes are UTF-8, in which most characters of the world take two to four.",
    "out = data.decode('ascii', 'replace')": "You decode as ASCII. The bytes are UTF-8, in which most characters of the world take two to four.",
    "out = data.decode()": 'Half a character stops your function, but a model may well write one. Show it as a mark: decode("utf-8", errors="replace").',
    "out = data.decode(errors='ignore')": f'{ODD} are left out of your text (errors="ignore"). They should show as "�": errors="replace".',
    "out = data.decode(errors='replace').replace('�', '?')": f'{ODD} become "?" with you. They should become "�", as errors="replace" writes it.',
    "out = data.decode(errors='backslashreplace')": f'{ODD} become an escape such as \\xf0 with you (errors="backslashreplace"). They should become "�": errors="replace".',
    "out = '�' if '�' in data.decode(errors='replace') else data.decode()": 'One odd byte turns your whole text into a mark. The rest can be read: errors="replace".',
    "out = stories(ids)": "You decode with the chapter's tokenizer. Other ranks make other texts: use the ranks that you are given.",
    "out = data": "You return bytes. Decode them: the result is a str.",
    "out = str(data)": "You return what Python prints for bytes (b'…'). Decode them instead of calling str on them.",
    "out = data.decode(errors='replace').strip()": "White space at the ends of your text is gone. A token brings its own space, and it belongs to the text.",
    "data = b' '.join(parts)": "There are spaces between the tokens. A token brings its own space: join with nothing between.",
    "token = {rank: part for part, rank in ranks.items()}": f"{END} Your table has nothing for it: KeyError. Give it the text <|endoftext|>.",
    "parts = [token[i] if i != end else [][0] for i in ids]": f"{END} Your list of tokens ends before it: IndexError. Give it the text <|endoftext|>.",
    "ids = [i for i in ids if i != end]": f"{END} You leave it out of the text. It is written <|endoftext|>.",
    "ids = ids[: [*ids, end].index(end)]": "Your text ends at the first end of text. It is written <|endoftext|>, and the text goes on behind it.",
    "text = b'\\n'": f"{END} It becomes a new line with you. It is written <|endoftext|>.",
    "end = len(ranks) - 1": "You take the last rank for the end of text. The id *after* the last rank is it: len(ranks).",
    "end = 1023": "You give the end of text the id 1023, whatever the ranks. It is the id after the last rank: len(ranks).",
    "ids = ids[::-1]": "Your tokens stand in reverse order.",
    "token = dict(enumerate([*ranks, text]))": "You number the tokens by their order in the dict. Their ids are its values: ranks[token] is the id.",
    "token = ranks": "You look up the id in ranks, which leads from bytes to ids. Turn it round first: {rank: text for text, rank in ranks.items()}.",
}  # fmt: skip


def _decode(ids: list[int], ranks: Ranks, wrong: frozenset[str] = frozenset()) -> Any:
    """The text of ids, with any of DECODE_MISTAKES made."""
    names = {"stories": lambda ids: get_tokenizer("stories").decode(ids)}
    return carried_out(DECODE_STEPS, wrong, ids=ids, ranks=ranks, **names)["out"]


_BYTES = {bytes([byte]): byte for byte in range(256)}
_TABLES = {  # by the number of ranks
    261: _BYTES | {b" k": 256, b"ite": 257, b" kite": 258, b" \xc3": 259, "é".encode(): 260},
    258: dict(reversed((_BYTES | {b"th": 256, b"the": 257}).items())),
    1023: _BYTES | {b"%d" % i: i for i in range(256, 1023)},
}  # fmt: skip


def _used(fn: Callable[..., Any], ids: list[int], n_ranks: int) -> tuple[Any, None]:
    ranks = dict(_TABLES[n_ranks])
    text = call(fn, ids, ranks)
    assert ranks == _TABLES[n_ranks], CHANGED.format("ranks")
    return text, None


def _text(result: Any) -> str:
    if not isinstance(result, str):
        raise WrongKind("a str")
    return result


def _shown(ids: list[int], n_ranks: int) -> str:
    long = [f", {i} is {t!r}" for t, i in _TABLES[n_ranks].items() if i in ids and i > 255]  # fmt: skip
    return f"For the ids {ids} and {n_ranks} ranks" + "".join(long)


DECODE = Diagnosis(
    _decode,
    DECODE_MISTAKES,
    [
        ([97, 258, 115, 258], 261),
        (list("🦊".encode()), 261),
        ([97, 0xF0, 0x9F], 261),
        ([97, 261, 98, 261], 261),
        ([259, 0xA9, 115, 0xA9, 260, 32], 261),
        ([257, 32, 256, 257, 258], 258),
        ([], 258),
        ([97, 32, 10, 32, 98], 258),
        ([97, 1023], 1023),
    ],
    _shown,
    observe=_used,
    read=_text,
)


@exercise
def decode(fn: Callable[[list[int], Ranks], str]) -> str:
    """Check a `decode(ids, ranks)`."""
    DECODE.judge(fn)
    return "Whole texts, split characters and the end of text all hold."
