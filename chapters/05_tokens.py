# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/data/tokenizer.py
# ---

# %% [markdown]
# # Tokens
#
# A model reads integers. You write byte-pair encoding, which turns any text into a
# short list of them and back: the training that finds the pieces, the encoding that
# applies them, and one door to GPT-2's pieces and to your own.
#
# It exports `slm/data/tokenizer.py`.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% [markdown]
# ## The idea
#
# This is what the finished tokenizer makes of a sentence:

# %% tags=["nbval-check-output"]
import pprint

import slm.data.tokenizer

finished = slm.data.tokenizer.get_tokenizer("stories")
ids = finished.encode("Once upon a time, there was a thankful pony.")
print(ids)
pprint.pp([finished.decode([i]) for i in ids], width=88, compact=True)

# %% [markdown]
# A **token** is a piece of text with a number. Common words are one token, with the
# space before them; a rare word is spelled in pieces. Nothing is lost: the pieces, put
# together, are the text again, and any text can be written, because the 256 possible
# bytes are tokens, too.
#
# Where do the pieces come from? They grow. Begin with bytes, and join the pair of
# neighbours that occurs most often in the stories, wherever it occurs; do it again, now
# with the joined piece among the others; and so on. Each box of {numref}`fig-growing`
# is a token; coloured are those that the row above did not know.

# %% mystnb={"code_prompt_show": "Draw a story after 0, 1, 2, 4 and more merges", "figure": {"caption": "The first two sentences of a story as tokens, after more and more merges. First come pairs of letters, then words with the space before them; at the end a token has about four bytes.", "name": "fig-growing"}, "image": {"alt": "One row for each number of merges from 0 to 767, with the number of tokens and bytes per token. At 0 each letter has a box of its own; with more merges the boxes join, first two letters, then whole words with the space before them, and their number falls to about a quarter."}} tags=["hide-input"]
from course.figures.tokens import story_growing
from slm.data.stories import sample

story = sample(11)
merges = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, len(finished.ranks) - 256]
story_growing(story[: story.index(".", 60) + 1], finished.ranks, merges)

# %% [markdown]
# ## Why not characters, why not words?
#
# Two simpler ways come to mind, and the numbers speak against both. **Characters** make
# lists long, and a model pays for each position (attention compares every pair of
# them). **Words** make lists short, but there is no end to words: whatever vocabulary
# you fix, somebody writes a word that is not in it, and the model cannot even read it.
# Here both are measured on a thousand stories; "not known" are the words of an ordinary
# sentence that the list lacks.

# %% tags=["nbval-check-output"]
import regex

texts = [sample(seed) for seed in range(1000)]
n_words = sum(len(regex.findall(r"\w+|[^\w\s]", text)) for text in texts)
known = {word for text in texts for word in regex.findall(r"\w+|[^\w\s]", text)}
rows = {
    "characters": (len(set("".join(texts))), sum(map(len, texts))),
    "words": (len(known), n_words),
    "tokens": (finished.n_vocab, sum(len(finished.encode(text)) for text in texts)),
}
for name, (size, length) in rows.items():
    print(f"{name:10} vocabulary {size:5}, {length / len(texts):6.1f} a story")
sentence = "My neighbour bought a second-hand bicycle for her nephew."
words = regex.findall(r"\w+|[^\w\s]", sentence)
print("not known:", [word for word in words if word not in known])
print("in tokens:", [finished.decode([i]) for i in finished.encode(" nephew")])

# %% [markdown]
# A text has nearly as few tokens as words, and tokens are never at a loss. (They count
# the words' spaces in; a word list would have to store those somewhere, too.)
#
# ## First, words are cut
#
# If merges could cross from one word into the next, the vocabulary would fill up with
# accidents such as "the d" or ". H", a different one for each neighbour that a word may
# have. So GPT-2 first cuts the text, by a pattern, into words that no token ever
# crosses: a contraction's tail ('s, 'll), letters, digits, or other signs, each *with
# the space before it*, and white space. Keeping the space with its word saves a token
# per word and still tells where words begin.

# %% mystnb={"code_prompt_show": "Imports"} tags=["hide-input"]
#| export
"""Byte-pair encoding: trained here or GPT-2's, behind one fast encoder.

    get_tokenizer("stories").encode("Once upon a time")

`get_tokenizer("gpt2")` and `get_tokenizer(path)` give others; `train_bpe` makes the
ranks of a new one.
"""

import base64
import functools
import hashlib
import heapq
import itertools
import json
import os
import reprlib
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import regex
import tiktoken

from slm.data import stories
from slm.data.stories import END_OF_TEXT
from slm.errors import SlmError
from slm.files import answers, user_path, within, write_text, writing

# %%
#| export
# GPT-2's words: a contraction's tail; letters, digits or other signs, each with a space
# before it; or white space
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
RANKS_FILE = "tokenizer.tiktoken"

# %% tags=["nbval-check-output"]
print(regex.findall(PATTERN, "Nell's 12 kites  flew: up, up!"))

# %% [markdown]
# Of the two spaces before "flew" one stays alone and one goes with the word, so that "
# flew" is the same token after one space as after two.

# %% [markdown]
# ## Three merges by hand
#
# Take three words with how often they occur: hug 10 times, pug 5, hugs 5. Which
# neighbours meet most often? Each place where a pair stands counts as often as its word
# occurs. Count on paper before you run the cell: h·u stands in hug and hugs, 15 times.


# %% tags=["nbval-check-output"]
def count_pairs(words: dict[str, int]) -> list[tuple[str, int]]:
    pairs: Counter[str] = Counter()
    for word, times in words.items():
        for a, b in itertools.pairwise(word.split("·")):
            pairs[f"{a}·{b}"] += times
    return pairs.most_common()


print(count_pairs({"h·u·g": 10, "p·u·g": 5, "h·u·g·s": 5}))

# %% [markdown]
# So u and g are joined, and "ug" becomes token 256, the first after the bytes. The
# words are now h·ug, p·ug, h·ug·s. Count again:

# %% tags=["nbval-check-output"]
print(count_pairs({"h·ug": 10, "p·ug": 5, "h·ug·s": 5}))

# %% [markdown]
# Joined is h·ug, and "hug" becomes token 257: a whole word, after two merges. The words
# are hug, p·ug, hug·s. The third time there is no winner:

# %% tags=["nbval-check-output"]
print(count_pairs({"hug": 10, "p·ug": 5, "hug·s": 5}))

# %% [markdown]
# That is the whole of byte-pair encoding (Sennrich et al. 2016): count, join the most
# frequent pair, count again. Two rules make it the same on every machine. Of equally
# frequent pairs the first in the order of bytes is joined, their first parts compared
# first: here hug·s, since "hug" comes before "p". And a pair is joined from left to
# right, so that a·a·a becomes aa·a:

# %%
#| export
Pair = tuple[bytes, bytes]


def merge(parts: list[bytes], pair: Pair) -> list[bytes]:
    """Join a pair of neighbours wherever it occurs, from left to right."""
    joined: list[bytes] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


# %% [markdown]
# ### Exercise 1: one merge
#
# The step that, repeated, makes a vocabulary, is yours. `words` maps words, as tuples
# of parts, to how often they occur. Find the most frequent pair (of equals the smaller:
# pairs compare by first part, then by second, in byte order), join it everywhere, and
# return the new words; where no word has two parts, return them as they are.

# %% tags=["exercise"]
from course import check


def my_merge_step(words: dict[tuple[bytes, ...], int]) -> dict[tuple[bytes, ...], int]:
    """The words after the most frequent pair of neighbours was joined."""
    raise NotImplementedError("your turn")


check.merge_step(my_merge_step)

# %% [markdown]
# What the check says to a typical wrong answer. `max` returns the first of equals that
# it meets, and here the order of bytes should decide:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def takes_the_first_met(words: dict[tuple[bytes, ...], int]) -> dict:
    counts: Counter[Pair] = Counter()
    for parts, times in words.items():
        for pair in itertools.pairwise(parts):
            counts[pair] += times
    if not counts:
        return dict(words)
    best = max(counts, key=lambda pair: counts[pair])
    return {tuple(merge(list(parts), best)): times for parts, times in words.items()}


check.merge_step(takes_the_first_met)

# %% [markdown]
# <details><summary>Solution: <code>my_merge_step</code></summary>
#
# ```python
# def my_merge_step(words):
#     counts = Counter()
#     for parts, times in words.items():
#         for pair in itertools.pairwise(parts):
#             counts[pair] += times
#     if not counts:
#         return dict(words)
#     best = min(counts, key=lambda pair: (-counts[pair], pair))
#     return {tuple(merge(list(parts), best)): n for parts, n in words.items()}
# ```
# </details>

# %% [markdown]
# ## Training, as it is said
#
# Count, join, repeat, until the vocabulary has its size. What training leaves behind is
# a table from the bytes of a token to its **rank**: 0 to 255 are the bytes themselves,
# and then the merges in the order in which they were found. The rank is also the
# token's id.


# %%
def most_frequent_pair(words: list[list[bytes]], times: list[int]) -> Pair:
    counts: Counter[Pair] = Counter()
    for parts, n in zip(words, times, strict=True):
        for pair in itertools.pairwise(parts):
            counts[pair] += n
    return min(counts, key=lambda pair: (-counts[pair], pair))


def train_by_recounting(texts: Iterable[str], vocab_size: int) -> dict[bytes, int]:
    times_of = Counter(word for text in texts for word in regex.findall(PATTERN, text))
    words = [[bytes([byte]) for byte in word.encode()] for word in times_of]
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < vocab_size - 1:  # one id is kept for the end of text
        pair = most_frequent_pair(words, list(times_of.values()))
        ranks.setdefault(pair[0] + pair[1], len(ranks))
        words = [merge(parts, pair) for parts in words]
    return ranks


slow = train_by_recounting(texts[:300], 400)
pprint.pp([token.decode() for token in list(slow)[256:276]], width=88, compact=True)

# %% [markdown]
# The first tokens are endings and beginnings of common words, spaces included; whole
# words follow soon.
#
# ## Training, incrementally
#
# Recounting looks at every word for every merge, though a merge changes only the few
# words that hold the pair. How few? Joining a pair makes a word at least one part
# shorter, so a word of $n$ bytes can change $n - 1$ times at most, however many merges
# there are:

# %% tags=["nbval-check-output"]
words = {word.encode() for text in texts[:300] for word in regex.findall(PATTERN, text)}
n_merges = 700 - 257
print(f"{len(words):,} different words, {n_merges:,} merges")
print(f"recounting looks at a word {len(words) * n_merges:,} times")
print(f"a word can change {sum(len(word) - 1 for word in words):,} times in all")

# %% [markdown]
# So keep the counts from one merge to the next, remember which words hold which pair
# (`holders`), and after a merge correct only what moved. The most frequent pair comes
# from a *heap*, a list that always knows its smallest entry (hence the minus before the
# counts). A heap cannot change an entry, so a pair whose count moved is pushed anew,
# and an entry that no longer tells the truth is thrown away when it comes up.
#
# The function has three parts. The texts become words with their counts (`times`), each
# a list of bytes (`words`). Then counts and holders are filled, in one pass over the
# words, and the heap is made of them. The loop takes the best pair that is still true,
# gives it a rank, merges it in the words that hold it, takes the old pairs of those
# words out of the counts and puts the new ones in, and pushes all that moved.


# %%
#| export
def train_bpe(texts: Iterable[str], vocab_size: int) -> dict[bytes, int]:
    """Train a byte-pair encoding over the bytes of GPT-2's words.

    The method is that of Sennrich et al. 2016 on the bytes of Radford et al. 2019.

    Args:
        texts: Any number of texts, each read once; only the different words are kept.
        vocab_size: Number of tokens: 256 bytes, the merges, and the end of text, which
            has the last id.

    Returns:
        The rank of each token's bytes, without the end of text. Of equally frequent
        pairs the first in the order of bytes is merged first, so the same texts give
        the same ranks, in whatever order they come.

    Raises:
        ValueError: The size is below 257, or more than the texts' pairs can fill.
    """
    asked = f"vocab_size is {vocab_size}"
    if vocab_size < 257:
        least = "at least 257: the 256 bytes and the end of text"
        raise ValueError(f"{asked}; it must be {least}")
    times_of = Counter(word for text in texts for word in regex.findall(PATTERN, text))
    times = list(times_of.values())
    encoded = [word.encode("utf-8", "replace") for word in times_of]
    words = [[bytes([byte]) for byte in word] for word in encoded]
    counts: dict[Pair, int] = defaultdict(int)  # how often a pair stands in the texts
    holders: dict[Pair, set[int]] = defaultdict(set)  # words that hold it, or once did
    for index, parts in enumerate(words):
        for pair in itertools.pairwise(parts):
            counts[pair] += times[index]
            holders[pair].add(index)
    heap = [(-n, pair) for pair, n in counts.items()]
    heapq.heapify(heap)
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < vocab_size - 1:
        if not heap:
            most = f"these texts give {len(ranks) + 1} tokens at most"
            raise ValueError(f"{asked}, but {most}")
        n, best = heapq.heappop(heap)
        if -n != counts[best] or not n:
            continue  # outdated: its pair was pushed anew, or is gone
        # a pair that spells a known token adds none
        ranks.setdefault(best[0] + best[1], len(ranks))
        moved: set[Pair] = set()
        for index in holders.pop(best):
            before, words[index] = words[index], merge(words[index], best)
            for pair in itertools.pairwise(before):
                counts[pair] -= times[index]
            for pair in itertools.pairwise(words[index]):
                counts[pair] += times[index]
                holders[pair].add(index)
            moved.update(itertools.pairwise(before), itertools.pairwise(words[index]))
        for pair in moved:
            heapq.heappush(heap, (-counts[pair], pair))
    return ranks


# %% [markdown]
# The same ranks, and the difference in work. Both programs are plain Python:

# %%
import time


def seconds(train: Callable[[], object]) -> float:
    start = time.perf_counter()
    train()
    return time.perf_counter() - start


ranks = train_bpe(texts[:300], 400)
alike = sum(slow[token] == rank for token, rank in ranks.items())
print(f"recounting and incremental: {alike} of {len(slow)} ranks equal")
slow_time = seconds(lambda: train_by_recounting(texts[:300], 700))
fast_time = seconds(lambda: train_bpe(texts[:300], 700))
print(f"to vocabulary 700: recounting {slow_time:.2f} s, incremental {fast_time:.2f} s")

# %% [markdown]
# The gap widens with the number of merges and of different words:
# `benchmarks/train_bpe.py` times both on a megabyte of English.
#
# ## Encoding
#
# To encode a new text, replay history: of all neighbours that form a token, join those
# of the lowest rank first, because that is the order in which training joined them.


# %%
#| export
def encode_word(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Token ids of one word, by replaying the merges: what `Tokenizer` does, slowly."""
    parts = [bytes([byte]) for byte in word]
    while len(parts) > 1:
        rank, i = min(
            (ranks.get(a + b, len(ranks)), i)
            for i, (a, b) in enumerate(itertools.pairwise(parts))
        )
        if rank == len(ranks):
            break  # no two neighbours form a token
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


# %% [markdown]
# Why not take the longest token that fits, again and again? It sounds simpler, and over
# many stories it needs about as many tokens. But it is *another* encoding, and whoever
# trains a model on the one and asks it in the other asks in a spelling that it has
# never seen:


# %% tags=["nbval-check-output"]
def encode_greedily(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    ids = []
    while word:
        longest = next(n for n in range(len(word), 0, -1) if word[:n] in ranks)
        ids.append(ranks[word[:longest]])
        word = word[longest:]
    return ids


for word in (" pony", " thankfully"):
    for encode in (encode_word, encode_greedily):
        parts = [finished.decode([i]) for i in encode(word.encode(), finished.ranks)]
        print(f"{encode.__name__:16} {parts}")

some = [w.encode() for text in texts[:100] for w in regex.findall(PATTERN, text)]
for encode in (encode_word, encode_greedily):
    total = sum(len(encode(word, finished.ranks)) for word in some)
    print(f"{encode.__name__:16} {total:,} tokens for a hundred stories")
other = sum(
    encode_word(word, finished.ranks) != encode_greedily(word, finished.ranks)
    for word in some
)
print(f"{other:,} of {len(some):,} words are spelled differently")

# %% [markdown]
# ## One fast encoder
#
# How long does the replay take in Python, and how long in the finished tokenizer?

# %%
slow_time = seconds(lambda: [encode_word(word, finished.ranks) for word in some])
fast_time = seconds(lambda: [finished.encode(text) for text in texts[:100]])
print(f"a hundred stories: encode_word {slow_time:.3f} s, Tokenizer {fast_time:.3f} s")

# %% [markdown]
# For a corpus of many million words that decides. `tiktoken` does the same in Rust, for
# any ranks, so `Tokenizer` is a `tiktoken.Encoding` with four things of our own.
#
# *The end of text.* Documents must not run into each other, so one more token,
# `<|endoftext|>`, stands between them; its id is the one after the last rank. A
# document that merely *writes* these characters must not end itself, or whoever writes
# a text could cut it in two. So our `encode` takes special tokens in a text as text;
# tiktoken's own would raise an error.
#
# *Copies.* When text is tokenized on several processes, each needs the tokenizer.
# Python sends an object to another process as bytes (it *pickles* it) and asks its
# `__reduce__` how to build it again there: by calling `Tokenizer` with the name and the
# ranks.
#
# *A fingerprint.* Token files are worth nothing without the tokenizer that wrote them,
# and two tokenizers may share a name. A hash of the ranks tells them apart. And since
# the ranks are all that there is, a file of them is all that there is to save;
# `writing`, from [files and errors](#files/published-file-or-folder), gives it its name
# only when it is complete, so that nobody ever reads half of one.
#
# *A refusal that names the place.* A model may know more ids than its tokenizer, and
# -100, which marks a target that does not count, is none either. All ways from ids to
# text lead through `decode_tokens_bytes`, which says which id has no bytes, and where
# it stands. It takes anything that can be looped over, a row of a tensor too.


# %%
#| export
class Tokenizer(tiktoken.Encoding):
    """A byte-pair encoding over GPT-2's words with one special token, the end of text.

    Args:
        name: What to call it.
        ranks: The rank of each token's bytes: all 256 bytes and the merges, numbered
            from 0. The end of text is next.

    `encode` takes special tokens in a text as text; tiktoken's other methods do so with
    `disallowed_special=()`.
    """

    def __init__(self, name: str, ranks: dict[bytes, int]) -> None:
        end = {END_OF_TEXT: len(ranks)}
        super().__init__(
            name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=end
        )
        self.ranks = ranks

    def __reduce__(self) -> tuple[type, tuple[str, dict[bytes, int]]]:
        return Tokenizer, (self.name, self.ranks)  # how another process gets its copy

    def encode(self, text: str, **special: Any) -> list[int]:
        """Token ids of a text, in which a special token that is not allowed is text.

        Args:
            special: tiktoken's `allowed_special` and `disallowed_special`.
        """
        return super().encode(text, **{"disallowed_special": (), **special})

    def decode_tokens_bytes(self, tokens: Iterable[int]) -> list[bytes]:
        """The bytes of each token.

        Raises:
            ValueError: An id is not of this tokenizer, or no whole number.
        """
        bytes_of = super().decode_single_token_bytes
        pieces = []
        for place, token in enumerate(tokens):
            try:
                pieces.append(bytes_of(token))
            except (KeyError, OverflowError, TypeError):
                allowed = f"ids from 0 to {self.max_token_value} are allowed"
                given = f"token {place} is {reprlib.repr(token)}"
                ours = f"tokenizer {self.name!r} has no such id"
                raise ValueError(f"{given}, but {ours}: {allowed}") from None
        return pieces

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of one token; raises as `decode_tokens_bytes`."""
        return self.decode_tokens_bytes([token])[0]

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes of a text; raises as `decode_tokens_bytes`."""
        return b"".join(self.decode_tokens_bytes(tokens))

    def decode(self, tokens: Iterable[int], errors: str = "replace") -> str:
        """The text of some tokens; raises as `decode_tokens_bytes`.

        Bytes that are no text are replaced, unless `errors` is "strict".
        """
        return self.decode_bytes(tokens).decode("utf-8", errors)


# %% [markdown]
# The file is the ranks in `tiktoken`'s own format, so that other programs can read it;
# the fingerprint is a hash of the same ranks in their order, and knows no name. `save`
# writes the file, and beside it what the next section is about.


# %%
#| export
@course.add_to(Tokenizer)
def ranks_file(self) -> bytes:
    """The ranks in tiktoken's format: a line each, bytes in base64 and the rank."""
    ranks = self.ranks.items()
    return b"".join(b"%s %d\n" % (base64.b64encode(t), rank) for t, rank in ranks)


@course.add_to(Tokenizer)
@property
def fingerprint(self) -> str:
    """A short hash of the ranks, whatever the name.

    Equal ranks have equal ones; others differ but for one chance in 2**64.
    """
    ordered = sorted(self.ranks.items(), key=lambda item: item[1])
    return hashlib.sha256(repr(ordered).encode()).hexdigest()[:16]


@course.add_to(Tokenizer)
def save(self, path: str | os.PathLike[str], length: int | None = None) -> Path:
    """Write a `.tiktoken` file, or one into a folder; returns the file's path.

    A folder gets `tokenizer.json` and `tokenizer_config.json` as well, for
    `transformers`; `length` is how many tokens the model behind it reads.
    """
    file = Path(path)
    if file.suffix != ".tiktoken":
        write_published(file, self.ranks, length)
        file = file / RANKS_FILE
    with writing(file) as part:
        part.write_bytes(self.ranks_file())
    return file


# %% [markdown]
# Reading one back has to expect anything: a file that is something else, one that was
# cut off, one with a rank missing. A tokenizer with a hole would not fail at once; it
# would encode most texts as before, and some differently, and a model would be trained
# on that. So what is read must hold all 256 bytes and every rank from 0 on, without a
# gap. A file that lost its bytes or a rank in the middle is refused. One cut cleanly
# after a merge is a smaller, valid tokenizer; only the fingerprint tells.


# %%
#| export
def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read what `Tokenizer.save` wrote: a `.tiktoken` file, or a folder that holds one.

    The format does not say how many ranks there are, so a file that was cut between two
    lines, behind the bytes, is read as a smaller tokenizer. Its fingerprint differs.

    Raises:
        FileNotFoundError: There is no such file.
        SlmError: The file does not hold ranks, or not all of them.
    """
    file = user_path(path)
    file = file / RANKS_FILE if file.is_dir() else file
    if not file.is_file():
        allowed = "say 'gpt2', 'stories', or where one was saved"
        raise FileNotFoundError(f"there is no tokenizer at {file}: {allowed}")
    try:
        lines = [line.split() for line in file.read_bytes().rstrip().splitlines()]
        ranks = {base64.b64decode(t, validate=True): int(rank) for t, rank in lines}
        if any(rank != b"%d" % int(rank) for _, rank in lines):
            raise ValueError("a rank such as 1_0 or +5")
    except ValueError:
        why = "a line is not a token in base64 and its rank"
        raise SlmError(f"{file} is no tokenizer: {why}") from None
    counted = sorted(ranks.values()) == list(range(len(lines)))
    if not counted or not all(bytes([byte]) in ranks for byte in range(256)):
        why = "it must hold all 256 bytes, and every rank from 0 on once"
        raise SlmError(f"{file} is damaged: {why}")
    if (end := END_OF_TEXT.encode()) in ranks:
        why = f"rank {ranks[end]} spells {END_OF_TEXT}, which marks a document's end"
        raise SlmError(f"{file} is no tokenizer: {why}")
    return Tokenizer(file.parent.name if file.name == RANKS_FILE else file.stem, ranks)


# %% [markdown]
# ## For other programs
#
# Whoever trains a model wants to hand it on. The programs that open one, above all
# `transformers`, read a tokenizer from two files of their own, `tokenizer.json` and
# `tokenizer_config.json`. So `save` writes these into a folder, too. They must give the
# very same ids, for the same reason as before: another spelling is one that the model
# has never seen.
#
# One thing is told differently there. We join the pair whose *token* has the lowest
# rank. They keep a list of *pairs*, in the order in which training found them, and join
# the pair that stands first. Only ranks were saved: are the pairs lost? No. Encode the
# bytes of a token as if the token itself were not known. Two parts are left, and they
# are its pair.


# %%
#| export
def merge_pairs(ranks: dict[bytes, int]) -> list[Pair]:
    """The two parts that each token is joined from, in the order of the ranks.

    A byte has none, and neither has a token that no merges lead to.
    """
    token_of = {rank: token for token, rank in ranks.items()}
    known, pairs = dict(ranks), []
    for rank, token in sorted(token_of.items()):
        known[token] = len(ranks)  # the rank of what is no token
        ids = encode_word(token, known)
        known[token] = rank
        if len(ids) == 2:
            pairs.append((token_of[ids[0]], token_of[ids[1]]))
    return pairs


# %% tags=["nbval-check-output"]
pairs_of = {a + b: (a, b) for a, b in merge_pairs(finished.ranks)}
for token in (b" upon", b" pond"):
    print(token, "is joined from", *pairs_of[token])

# %% [markdown]
# Why can there be only one pair? Before a token is complete, none of its bytes has been
# joined with one outside, so within it the merges went as if it had stood alone. The
# pairs of GPT-2, which OpenAI published beside its vocabulary, come out of its ranks
# again, all 50,000 in their order; the tests of the package compare them.
#
# The second difference is the spelling. JSON holds text, and a token may be half a
# character. So each byte is written as a letter: a visible one as itself, the others as
# the characters from 256 on. A space becomes Ġ, which you meet wherever somebody prints
# GPT-2's tokens. `ByteLevel` names this alphabet, and with it GPT-2's pattern for
# words, which is our `PATTERN` written a little longer. `ignore_merges` lets a word
# that is a token be that token at once, as `tiktoken` does, even if no merges lead to
# it. With it any ranks can be told, but for one: a rank that spells `<|endoftext|>` has
# no place beside the special token of that name. No text needs it, since the pattern
# cuts these characters into three words.
#
# Our own `load_tokenizer` goes on reading the ranks. It takes no `tokenizer.json`,
# since that of another model may have any pattern, alphabet and rules.


# %%
#| export
def byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: its own if it is visible, else one from 256 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    own = {byte: chr(byte) for byte in visible}
    return own | {byte: chr(256 + n) for n, byte in enumerate(others)}


def tokenizer_json(ranks: dict[bytes, int]) -> dict[str, Any]:
    """What `tokenizer.json` holds: all that encodes and decodes, for `tokenizers`."""
    letters, end = byte_letters(), len(ranks)
    name = {token: "".join(letters[byte] for byte in token) for token in ranks}
    by_rank = sorted(ranks, key=lambda token: ranks[token])
    how = ("single_word", "lstrip", "rstrip", "normalized")
    marker = {"id": end, "content": END_OF_TEXT, **dict.fromkeys(how, False)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    model = {
        "type": "BPE",
        "ignore_merges": True,
        "vocab": {name[token]: ranks[token] for token in by_rank} | {END_OF_TEXT: end},
        "merges": [[name[a], name[b]] for a, b in merge_pairs(ranks)],
    }
    return {
        "version": "1.0",
        "added_tokens": [marker | {"special": True}],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": model,
    }


# %% [markdown]
# Two files go into the folder: this one, and `tokenizer_config.json`, which says what
# class opens it and that one and the same token stands for a text's beginning, its end
# and its padding.


# %%
#| export
def write_published(folder: Path, ranks: dict[bytes, int], length: int | None) -> None:
    """Write the two files that `transformers.AutoTokenizer` opens.

    `length` is how many tokens the model behind it reads, if that is known.

    A text's own `<|endoftext|>` is the special token there, unless it is asked with
    `split_special_tokens=True`.
    """
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT),
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    if length is not None:
        config["model_max_length"] = length
    files = {"tokenizer.json": tokenizer_json(ranks), "tokenizer_config.json": config}
    for name, said in files.items():
        text = json.dumps(said, ensure_ascii=False, indent=1)
        write_text(folder / name, text + "\n")


# %% tags=["nbval-check-output"]
said = tokenizer_json(finished.ranks)
print(said["model"]["merges"][:4])
print([token for token in said["model"]["vocab"] if "pon" in token])

# %% [markdown]
# ## Three tokenizers, one door
#
# `get_tokenizer("stories")` trains ours on the first 2,000 stories, when a program
# first asks for it: no file that could be lost or out of date. A path reads a saved
# one. `get_tokenizer("gpt2")` takes GPT-2's published ranks, 50,257 tokens with the end
# of text. `tiktoken` fetches them once and keeps them. Without a network it would try
# for minutes; you should learn that in a second. So if they are not kept on this
# machine yet, `_gpt2` first asks whether the server answers at all, and if not says
# what you can do instead. The error carries `retry=True`: the same attempt may succeed
# later, which is what a program that tries again wants to know.

# %%
#| export
STORIES_VOCAB_SIZE = 1024
STORIES_SAMPLE = 2000  # how many stories it is trained on
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_FILES = ("vocab.bpe", "encoder.json")


def get_tokenizer(name: str | os.PathLike[str] = "gpt2") -> Tokenizer:
    """A tokenizer by name.

    Args:
        name: "gpt2" (50,257 tokens), "stories" (1,024), or the path of a saved one: its
            file, or the file's folder.

    Raises:
        FileNotFoundError: There is no tokenizer at the path.
        SlmError: "gpt2" is neither on this machine nor within reach (`retry` is true),
            or the file is no tokenizer.
    """
    known: dict[str | os.PathLike[str], Callable[[], Tokenizer]]
    known = {"gpt2": _gpt2, "stories": _stories}
    return known[name]() if name in known else load_tokenizer(name)


# %% [markdown]
# Behind the door, one function for each name. `functools.cache` keeps what it made, so
# a program trains or reads a tokenizer once. Whether GPT-2's two files are kept here is
# a look into `tiktoken`'s own folder, where it names a file by a hash of its address.


# %%
#| export
@functools.cache
def _stories() -> Tokenizer:
    texts = map(stories.sample, range(STORIES_SAMPLE))
    return Tokenizer("stories", train_bpe(texts, STORIES_VOCAB_SIZE))


@functools.cache
def _gpt2() -> Tokenizer:
    try:
        if not _gpt2_is_cached() and not answers(GPT2_URL + GPT2_FILES[0]):
            raise OSError("its server does not answer")
        published = within(120.0, lambda: tiktoken.get_encoding("gpt2"))
        return Tokenizer("gpt2", published._mergeable_ranks)
    except (OSError, ValueError) as error:
        missing = f"GPT-2's vocabulary is not here, and fetching it failed ({error})"
        cure = "set TIKTOKEN_CACHE_DIR to a folder with it, or use tokenizer: stories"
        raise SlmError(f"{missing}: {cure}", retry=True) from error


def _gpt2_is_cached() -> bool:
    """Whether both files lie where tiktoken looks, named by a hash of their address."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    default = os.environ.get("DATA_GYM_CACHE_DIR", default)
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR", default))
    addresses = [(GPT2_URL + file).encode() for file in GPT2_FILES]
    return all((folder / hashlib.sha1(a).hexdigest()).exists() for a in addresses)


# %% tags=["nbval-check-output"]
tokenizer = get_tokenizer("stories")
print(tokenizer.n_vocab, "tokens, end of text is", tokenizer.eot_token)
parts = [tokenizer.decode([i]) for i in tokenizer.encode(sample(0))[:16]]
pprint.pp(parts, width=88, compact=True)

# %% [markdown]
# How large should a vocabulary be? Every token more shortens the texts, and costs a row
# of the model's embedding. On stories the curve flattens ({numref}`fig-vocabulary`),
# since most words are single tokens by 1,024, so we stop there. On text in general it
# goes on rising.

# %% mystnb={"code_prompt_show": "Draw bytes per token against the vocabulary's size", "figure": {"caption": "Bytes per token on stories that the training did not see, against the size of the vocabulary. The first doubling of a token's length takes few merges, the second many times as many. The dotted line is the size that the course uses.", "name": "fig-vocabulary"}, "image": {"alt": "A curve that rises steeply from 1 byte per token, where no two are merged, and flattens on its way to 4."}} tags=["hide-input"]
from course.figures.tokens import vocabulary_figure

vocabulary_figure([sample(seed) for seed in range(2000)])

# %% [markdown]
# ## Is it right?
#
# Both encoders must agree on whatever people type: emoji, control characters, words of
# a thousand letters, special tokens in the text. Four hundred texts are thrown together
# from such pieces; each must come back from its ids unchanged, and none may hold the
# special token.

# %% tags=["nbval-check-output"]
import random

odd = "é,日本,🦊,👩‍🚀,\u200b,1234,<|endoftext|>,'s,  ,\n,\t,\0,Nell, grandma".split(",")
alphabet = [*"abc deE tnz'", *odd, "x" * 1000]
rng = random.Random(0)
fuzz = ["".join(rng.choices(alphabet, k=rng.randrange(1, 30))) for _ in range(400)]


def encode_slowly(text: str) -> list[int]:
    words = regex.findall(PATTERN, text)
    return [i for word in words for i in encode_word(word.encode(), tokenizer.ranks)]


fast = [tokenizer.encode(text) for text in fuzz]
same = sum(encode_slowly(text) == ids for text, ids in zip(fuzz, fast, strict=True))
back = sum(tokenizer.decode(ids) == text for text, ids in zip(fuzz, fast, strict=True))
special = sum(tokenizer.eot_token in ids for ids in fast)
print(f"{same} of 400 encoded alike by both, {back} decoded to the text itself")
print(f"{special} of 400 hold the special token, though many write it")

# %% [markdown]
# What was saved comes back as it was. A file that lacks bytes or a rank in the middle
# is refused; one that ends early, but behind a whole merge, is read as the smaller
# tokenizer that it is, with another fingerprint:

# %% tags=["nbval-check-output"]
with tempfile.TemporaryDirectory() as folder:
    file = tokenizer.save(folder)
    same = get_tokenizer(folder).fingerprint == tokenizer.fingerprint
    print(
        f"{file.name} read again: {tokenizer.n_vocab} tokens, same fingerprint: {same}"
    )
    lines = file.read_bytes().splitlines(keepends=True)
    for what, kept in {
        "bytes are lost": lines[:200],
        "a rank is lost": lines[:500] + lines[501:],
        "the last merges are lost": lines[:900],
    }.items():
        file.write_bytes(b"".join(kept))
        try:
            cut = get_tokenizer(file)
            same = cut.fingerprint == tokenizer.fingerprint
            print(f"{what}: {cut.n_vocab} tokens, same fingerprint: {same}")
        except SlmError as error:
            course.show(f"{what}: {str(error).replace(folder + os.sep, '')}")

# %% [markdown]
# ## Exercise 2: the way back
#
# Write `decode`: ids to text, for our ranks. Mind the characters whose bytes are spread
# over several tokens, the halves of them that a model may write, and the id after the
# last rank. Bytes that are no UTF-8 become "�"; the id after the last rank is written
# `<|endoftext|>`.


# %% tags=["exercise"]
def my_decode(ids: list[int], ranks: dict[bytes, int]) -> str:
    """The text of token ids."""
    raise NotImplementedError("your turn")


check.decode(my_decode)

# %% [markdown]
# What the check says to a typical wrong answer, which decodes each token for itself:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def decodes_each_token(ids: list[int], ranks: dict[bytes, int]) -> str:
    token = {rank: text for text, rank in ranks.items()}
    token[len(ranks)] = b"<|endoftext|>"
    return "".join(token[i].decode("utf-8", errors="replace") for i in ids)


check.decode(decodes_each_token)

# %% [markdown]
# <details><summary>Solution: <code>my_decode</code></summary>
#
# ```python
# def my_decode(ids, ranks):
#     token = {rank: text for text, rank in ranks.items()}
#     token[len(ranks)] = b"<|endoftext|>"
#     return b"".join(token[i] for i in ids).decode("utf-8", errors="replace")
# ```
# </details>
#
# ## What you have now
#
# Any text as a short list of integers, and back, by pieces that you trained yourself or
# by GPT-2's. [Next](#batches) the lists of many documents become the rows that a model
# trains on.

# %%
course.summary("slm/data/tokenizer.py")
