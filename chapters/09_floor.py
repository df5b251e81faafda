# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/data/floor.py
# ---

# %% [markdown]
# # The floor
#
# How low can the loss of a model of these stories go? Not to zero: a story holds
# chance, and nobody predicts dice. You work out the lowest possible mean loss to the
# last digit, and three lines above it, so that a trained model's loss can be read: how
# much of it is ignorance, and how much is dice.
#
# It exports `slm/data/floor.py`.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% [markdown]
# ## The idea
#
# A language model is paid in surprise. After every piece of text it says how likely
# each next piece is, and its loss there is $-\ln p$ of the one that came: nothing if it
# was sure and right, much if it held what came for unlikely, and without limit for
# impossible. The unit is the *nat*; a fair coin costs $\ln 2 \approx 0.69$ of it.
#
# {numref}`fig-surprisal` is a story. Each character is coloured by what it costs a
# reader who knows the grammar perfectly.

# %% mystnb={"code_prompt_show": "Draw the story with each character's surprise", "figure": {"caption": "A story, coloured by what each character costs. The cost lies on the first letter or two of what chance chose; the rest of the word follows.", "name": "fig-surprisal"}, "image": {"alt": "A story in which most letters have no background. The first letters of the name, of what the child is, of the garment, the moment and the deed are orange, most of them strongly; the letters after them, and every name that was told before, are plain."}} tags=["hide-input"]
import slm.data.floor
from course.figures.floor import surprisal_strip
from slm.data.stories import STORIES, sample

story = sample(11)
surprisal_strip(story, slm.data.floor.surprisal(story))

# %% [markdown]
# Most of the text is pale: once a word has begun, or a fact is known, there is nothing
# left to guess. Chance enters at a few places only. *Which* name, toy or garment a
# later sentence means costs nothing, if you remember it; where a name does cost
# something in the middle of a story, it gives away which way the story goes on.
#
# The mean cost of a story is its entropy; divided by the mean number of tokens it is
# the **floor** of a loss. For English nobody knows it. For these stories you will.
#
# ## Sixteen stories by hand
#
# Take [the grammar on the napkin](#stories/a-grammar-that-fits-on-a-napkin), with its
# two pets, two frequencies and two moods twice. All of its stories can be listed with
# their probabilities:

# %% tags=["nbval-check-output"]
import itertools
import math

napkin = {
    "STORY": ["{pet=PET}{pet} the {pet.kind}{VERY} {MOOD}. {pet.He} {MOOD}."],
    "PET name kind he": [(3, "Tim|cat|he"), (1, "Sue|dog|she")],
    "VERY": [(2, ""), (1, " often")],
    "MOOD": ["naps", "sings"],
}
by_hand = {
    f"{name} the {kind}{very} {first}. {he} {second}.": p_pet * p_very / 4
    for (p_pet, name, kind, he), (p_very, very), first, second in itertools.product(
        [(3 / 4, "Tim", "cat", "He"), (1 / 4, "Sue", "dog", "She")],
        [(2 / 3, ""), (1 / 3, " often")],
        ["naps", "sings"],
        ["naps", "sings"],
    )
}
mean_surprise = -sum(p * math.log(p) for p in by_hand.values())
print(f"{len(by_hand)} stories, mean surprise {mean_surprise:.4f} nats")

# %% [markdown]
# This mean is the **entropy** $H = -\sum_x p(x) \ln p(x)$. Why can nobody do better?
# Because a reader who believes other odds $q$ pays $-\sum_x p(x) \ln q(x)$, and that is
# never less (Gibbs' inequality). Two such readers, one who thinks all sixteen stories
# equally likely and one who gets only the pets wrong:


# %% tags=["nbval-check-output"]
def paid(beliefs: dict[str, float]) -> float:
    return -sum(p * math.log(beliefs[text]) for text, p in by_hand.items())


same = dict.fromkeys(by_hand, 1 / 16)
fair_pets = {text: p * (2 / 3 if "Tim" in text else 2) for text, p in by_hand.items()}
for name, beliefs in (("knows", by_hand), ("fair pets", fair_pets), ("same", same)):
    print(f"{name:10} {paid(beliefs):.4f} nats")

# %% [markdown]
# ## From stories to choices
#
# Sixteen stories can be listed. The course's grammar has more than anybody could read
# in many lives. But a story is a chain of choices, and the surprises of a chain add up.
# So instead of summing over stories, sum over choices $c$: how often a story passes
# through $c$ on average, times what that choice costs.
#
# $$H = \sum_c n(c)\, H(c), \qquad H(c) = -\sum_{o \in c} p(o) \ln p(o)$$
#
# Here $n(c)$ is the expected number of visits to $c$, and $p(o)$ the probability of its
# option $o$. The napkin has a pet, a frequency, and a mood that is visited twice:


# %% tags=["nbval-check-output"]
def nats(*p: float) -> float:
    return -sum(q * math.log(q) for q in p)


print(f"{nats(3 / 4, 1 / 4) + nats(2 / 3, 1 / 3) + 2 * nats(1 / 2, 1 / 2):.4f} nats")

# %% [markdown]
# The same number from three choices instead of sixteen stories. (It holds as long as no
# story can be told in two ways; else two derivations share a text, and its reader pays
# less than the choices say. You will check that.)
#
# ## A grammar without a memory
#
# There is a second way to the same number, shorter than counting visits. Forget for a
# moment that stories remember, and write the napkin with plain choices only. A choice
# holds options, an option a probability and items, and an item is a text or a choice:


# %%
class Plain:
    def __init__(self, *options: tuple[float, tuple]) -> None:
        self.options = options


mood = Plain((1 / 2, ("naps",)), (1 / 2, ("sings",)))
often = Plain((2 / 3, ("",)), (1 / 3, (" often",)))
tim = ("Tim the cat", often, " ", mood, ". He ", mood, ".")
sue = ("Sue the dog", often, " ", mood, ". She ", mood, ".")
plain_napkin = Plain((3 / 4, tim), (1 / 4, sue))

# %% [markdown]
# ### Exercise 1: entropy, from the top
#
# What is told from a choice on costs what the choice itself costs and, with the
# probability of each option, what the choices in that option cost:
#
# $$H(c) = \sum_{o \in c} p(o) \Bigl( -\ln p(o) + \sum_{c' \in o} H(c') \Bigr)$$
#
# Here $c'$ runs over the choices among the items of the option; a text costs nothing.
# Write it by recursion. `choice.options` holds pairs of a probability and items; an
# item that is a `str` is a text, any other is a choice.


# %% tags=["exercise"]
from course import check


def my_entropy(choice) -> float:
    """Entropy in nats of all that is told from a choice on."""
    raise NotImplementedError("your turn")


check.entropy(my_entropy)

# %% [markdown]
# What the check says to a typical wrong answer, which adds up what follows without
# asking how likely it is:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def forgets_how_likely(choice) -> float:
    below = [i for _, items in choice.options for i in items if not isinstance(i, str)]
    own = -sum(p * math.log(p) for p, _ in choice.options)
    return own + sum(map(forgets_how_likely, below))


check.entropy(forgets_how_likely)

# %% [markdown]
# <details><summary>Solution: <code>my_entropy</code></summary>
#
# ```python
# def my_entropy(choice):
#     total = 0.0
#     for p, items in choice.options:
#         below = sum(my_entropy(item) for item in items if not isinstance(item, str))
#         total += p * (below - math.log(p))
#     return total
# ```
# </details>
#
# Solved, it gives the napkin's entropy once more: `my_entropy(plain_napkin)` is
# `mean_surprise`. The check runs it on the real `Choice`, which remembers and has the
# same `options`. On the course's grammar it would come to the same choices again and
# again; counting visits comes to each once.
#
# ## Counting visits
#
# For the visits, start with one visit to the first choice and hand it on: an option of
# probability $p$ brings $n(c)\,p$ visits to each choice in it. That works in one pass
# if every choice is settled before it hands on, that is, if choices are put in order,
# each before those that follow it.

# %% mystnb={"code_prompt_show": "Imports"} tags=["hide-input"]
#| export
"""How predictable the stories are, exactly: entropy, surprise, and lines for a loss.

    reference_lines(get_tokenizer("stories")).floor

Each function takes a grammar; unless told, that of the course's stories.
"""

import itertools
import math
import os
import re
from collections import defaultdict
from dataclasses import dataclass

from slm.data.grammar import Choice, Grammar, Items
from slm.data.stories import STORIES
from slm.data.tokenizer import END_OF_TEXT, Tokenizer


# %% mystnb={"code_prompt_show": "Given: visits to each choice, in one pass (22 lines)"} tags=["hide-input"]
#| export
def visits(grammar: Grammar = STORIES) -> dict[Choice, float]:
    """How often a story passes through each choice, on average.

    Each choice stands before those that follow it.
    """
    order: dict[Choice, None] = {}

    def visit(choice: Choice) -> None:
        for item in itertools.chain.from_iterable(items for _, items in choice.options):
            if isinstance(item, Choice) and item not in order:
                visit(item)
        order[choice] = None  # after all that can follow it

    visit(grammar.start)
    times = dict.fromkeys(reversed(order), 0.0)
    times[grammar.start] = 1.0
    for choice, n in times.items():
        for p, items in choice.options:
            for item in items:
                if isinstance(item, Choice):
                    times[item] += n * p
    return times


# %%
#| export
def entropy(grammar: Grammar = STORIES) -> float:
    """Entropy of a story in nats: each choice's cost, times how often it is visited."""
    return math.fsum(
        -n * p * math.log(p)
        for choice, n in visits(grammar).items()
        for p, _ in choice.options
    )


# %% [markdown]
# Two more numbers go the same way. The mean length of a story is a sum over choices,
# too, of the bytes that each option prints. And for the number of stories, go
# backwards: what follows is counted before what leads to it; multiply along an option
# (its choices are made independently) and add over options.


# %%
#| export
def mean_bytes(grammar: Grammar = STORIES) -> float:
    """Bytes of a story, on average."""
    return math.fsum(
        n * p * sum(len(item.encode()) for item in items if isinstance(item, str))
        for choice, n in visits(grammar).items()
        for p, items in choice.options
    )


def count(grammar: Grammar = STORIES) -> int:
    """How many ways of telling a story there are: all derivations of the grammar.

    That is the number of different stories if no story can be told in two ways, and
    more than that number if one can.
    """
    counts: dict[Choice, int] = {}
    for choice in reversed(visits(grammar)):
        counts[choice] = sum(
            math.prod(counts[item] for item in items if isinstance(item, Choice))
            for _, items in choice.options
        )
    return counts[grammar.start]


# %% tags=["nbval-check-output"]
from slm.data.grammar import Grammar

for name, grammar in (("the napkin", Grammar(napkin)), ("the course", STORIES)):
    size = f"{count(grammar):,} stories from {len(visits(grammar)):,} choices"
    cost = f"{entropy(grammar):.4f} nats and {mean_bytes(grammar):.1f} bytes a story"
    print(f"{name}: {size},\n    {cost}")

# %% [markdown]
# The napkin agrees with the hand. (Its fourth choice is the rule STORY itself, which
# has one line and costs nothing.) The course's stories could not be listed in a
# lifetime; their choices are settled in milliseconds. And what does a story cost, in
# flips of a fair coin?

# %%
import time

began = time.perf_counter()
visits()
milliseconds = (time.perf_counter() - began) * 1e3
print(f"a story costs as much as {entropy() / math.log(2):.1f} flips of a coin")
print(f"all choices settled in {milliseconds:.0f} ms")

# %% [markdown]
# Less than forty flips, for some 350 characters.
#
# ## Reading a text
#
# Now the other direction: *given* a text, how likely is it, and what did each character
# cost? The plain way is to list all stories and to add up those that begin like the
# text. Let $P_i$ be the probability that a story begins with the first $i$ characters;
# then the surprise of character $i$ is $\ln (P_{i-1} / P_i)$, minus the logarithm of
# the share of the mass that it leaves.

# %% tags=["nbval-check-output"]
text = "Sue the dog often naps. She naps."
begins = [
    sum(p for other, p in by_hand.items() if other.startswith(text[:i]))
    for i in range(len(text) + 1)
]
for i, (before, after) in enumerate(itertools.pairwise(begins)):
    if before > after:
        print(f"{text[: i + 1]!r:30} {math.log(before / after):.4f} nats")

# %% [markdown]
# Four costs, at the four characters where something is decided, and nothing elsewhere.
#
# Where stories cannot be listed, follow all ways to derive the text at once. A way is a
# probability, a position in the text, and what is still to come. Texts must agree with
# what is there, or the way is dropped; a choice splits a way into its options. What is
# still to come is kept as a linked list, `(item, rest)`, so that thousands of ways can
# share their ends.


# %% mystnb={"code_prompt_show": "Given: all derivations that agree with a text (57 lines)"} tags=["hide-input"]
#| export
def prefix_probabilities(
    text: str, grammar: Grammar = STORIES
) -> tuple[list[float], float]:
    """Follow all derivations that agree with a text, up to where each fails.

    Returns:
        The probabilities that a story begins with `text[:i]`, for i from 0 to
        len(text), and that it is `text`.
    """
    begins, whole = [1.0] + [0.0] * len(text), 0.0
    # each way: probability, position, what is to come
    ways: list[tuple[float, int, tuple]] = [(1.0, 0, (grammar.start, ()))]
    while ways:
        p, start, todo = ways.pop()
        if not todo:
            whole += p if start == len(text) else 0.0
            continue
        item, todo = todo
        if isinstance(item, Choice):
            for q, items in item.options:
                first = items[0] if items else ""
                if isinstance(first, str) and not text.startswith(first[:1], start):
                    continue  # fails at once
                rest = todo
                for later in reversed(items):
                    rest = later, rest
                ways.append((p * q, start, rest))
            continue
        end = start + len(item)
        same = len(os.path.commonprefix([item, text[start:end]]))
        for reached in range(start + 1, start + same + 1):
            begins[reached] += p
        if same == len(item):
            ways.append((p, end, todo))
    return begins, whole


def logprob(text: str, grammar: Grammar = STORIES) -> float:
    """Log-probability of a whole story in nats, -inf for any other text."""
    whole = prefix_probabilities(text, grammar)[1]
    return math.log(whole) if whole else -math.inf


def accepts(text: str, grammar: Grammar = STORIES) -> bool:
    """Whether the text is a whole story of the grammar."""
    return prefix_probabilities(text, grammar)[1] > 0


def surprisal(text: str, grammar: Grammar = STORIES) -> list[float]:
    """-ln P(character | all before it) in nats, inf from the first impossible one on.

    They sum to `-logprob(text)` where no story is the beginning of another, as in the
    course's stories.
    """
    begins, _ = prefix_probabilities(text, grammar)
    pairs = itertools.pairwise(begins)
    return [math.log(before / after) if after else math.inf for before, after in pairs]


# %% tags=["nbval-check-output"]
grammar = Grammar(napkin)
errors = [abs(math.exp(logprob(text, grammar)) - p) for text, p in by_hand.items()]
print("probabilities as by hand, within 1e-12:", max(errors) < 1e-12)
errors = [
    abs(prefix_probabilities(text, grammar)[0][i] - begins[i])
    for i in range(len(text) + 1)
]
print("beginnings as by listing, within 1e-12:", max(errors) < 1e-12)
print("a story about a bird:", logprob("Bea the bird naps. She naps.", grammar))

# %% [markdown]
# `accepts` is the most useful of them. When a trained model writes a story, it says
# whether the grammar could have told it: not almost, but with the right name and the
# right hat at the end.
#
# ## Four lines to read a loss against
#
# A model predicts tokens, so its loss is in nats *per token*. Put the stories end to
# end, an end-of-text token before each, and ask what four ideal readers pay for a
# token.
#
# | line | what the reader knows | what a token costs |
# |---|---|---|
# | uniform | nothing but the vocabulary of $V$ tokens | $\ln V$ |
# | unigram | the share $f_a$ of each token $a$ | $-\sum_a f_a \ln f_a$ |
# | bigram | also each pair's $f_{ab}$ | $-\sum_{ab} f_{ab} \ln (f_{ab} / f_a)$ |
# | floor | the grammar | $H$ over the expected tokens of a story |
#
# A model that learns passes them in this order, and each says what it has understood:
# below the unigram line it looks at more than frequencies; below the bigram line it
# uses more than the last token: what came earlier, or its own place. (A loss is often
# told as *perplexity*, $e$ to its power: a model with a perplexity of 2 guesses as well
# as one that always hesitates between two equally likely tokens.) The first line is
# $\ln V$; on the napkin the other three follow from the list of stories:


# %%
def listed_lines(
    probabilities: dict[str, float], tokenizer: Tokenizer
) -> tuple[float, float, float]:
    """Unigram, bigram and floor from a list of all stories."""
    pairs: dict[tuple[int, int], float] = defaultdict(float)
    for text, p in probabilities.items():
        ids = [tokenizer.eot_token, *tokenizer.encode(text), tokenizer.eot_token]
        for pair in itertools.pairwise(ids):
            pairs[pair] += p
    singles: dict[int, float] = defaultdict(float)
    for (a, _), n in pairs.items():
        singles[a] += n
    total = sum(singles.values())
    unigram = -sum(n * math.log(n / total) for n in singles.values()) / total
    bigram = -sum(n * math.log(n / singles[a]) for (a, _), n in pairs.items()) / total
    floor = -sum(p * math.log(p) for p in probabilities.values()) / total
    return unigram, bigram, floor


# %% tags=["nbval-check-output"]
from slm.data.tokenizer import get_tokenizer, train_bpe

tokenizer = get_tokenizer("stories")
print([f"{line:.3f}" for line in listed_lines(by_hand, tokenizer)])

# %% [markdown]
# ## Counting tokens without listing stories
#
# The shares follow from *expected* counts, and expectations add up: the counts are sums
# over choices, too, and not estimates. Cut every text of the grammar before its spaces,
# and call the parts **pieces**: mostly words, each with its space. Pieces inside a text
# are counted where the text stands, weighted by its visits. Pairs of pieces that meet
# *between* two items of an option need one thing more: how likely each piece is to be
# the last of what came before, and the first of what comes then.
#
# For an item that is a text, first and last piece are certain. For a choice they are
# the mixture over its options, and since what follows is settled first, a table of both
# can be filled from the end of the order to its beginning. The one nuisance is an item
# that may print nothing, such as "" beside " very": then the first piece is that of the
# next item, and the last is that of the one before. That is all that `_or_else` does.

# %% mystnb={"code_prompt_show": "Given: expected numbers of pieces and of their pairs (51 lines)"} tags=["hide-input"]
#| export
Odds = dict[str, float]  # pieces, each with its probability; "" prints nothing
Pairs = dict[tuple[str, str], float]


def _or_else(odds: Odds, other: Odds) -> Odds:
    """What `odds` says, and where that prints nothing, `other`."""
    nothing = odds.get("", 0.0)
    mixed = {piece: p for piece, p in odds.items() if piece}
    for piece, p in other.items() if nothing else ():
        mixed[piece] = mixed.get(piece, 0.0) + nothing * p
    return mixed


def pieces(grammar: Grammar = STORIES) -> tuple[dict[str, float], Pairs]:
    """Expected number of each piece in a story, and of each pair of neighbours.

    Texts are cut into pieces before each space. The end of text is a piece, too, and
    stands before and after a story.
    """
    singles: dict[str, float] = defaultdict(float)
    pairs: Pairs = defaultdict(float)
    first: dict[str | Choice, Odds] = {}
    last: dict[str | Choice, Odds] = {}

    def tell(items: Items, times: float) -> tuple[Odds, Odds]:
        """Count what an option prints; its first and its last piece."""
        begin, end = {"": 1.0}, {"": 1.0}
        for item in items:
            if isinstance(item, str):
                cut = re.split("(?<!^)(?= )", item)  # before each space
                first[item], last[item] = {cut[0]: 1.0}, {cut[-1]: 1.0}
                for piece in cut:
                    singles[piece] += times
                for pair in itertools.pairwise(cut):
                    pairs[pair] += times
            for (a, p), (b, q) in itertools.product(end.items(), first[item].items()):
                if a and b:
                    pairs[a, b] += times * p * q
            begin, end = _or_else(begin, first[item]), _or_else(last[item], end)
        return begin, end

    expected = visits(grammar)
    for choice in reversed(expected):
        first[choice], last[choice] = defaultdict(float), defaultdict(float)
        for p, items in choice.options:
            ends = tell(items, expected[choice] * p)
            for table, odds in zip((first[choice], last[choice]), ends, strict=True):
                for piece, q in odds.items():
                    table[piece] += p * q
    tell((END_OF_TEXT, grammar.start, END_OF_TEXT), 1.0)
    return singles, pairs


# %% [markdown]
# From pieces to tokens it is one step, if a story's tokens are those of its pieces, one
# after the other. [Words are cut before their space](#tokens/first-words-are-cut), so
# no token of ours spans two pieces; but a grammar may glue things together ("sun" and
# "flower"), and then the step is wrong. `reference_lines` checks every pair that can
# meet, and refuses the grammar where that is so. {numref}`fig-lines` has the four lines
# of our stories.


# %% mystnb={"code_prompt_show": "Given: from pieces to tokens, and the four lines (61 lines)"} tags=["hide-input"]
#| export
@dataclass(frozen=True)
class ReferenceLines:
    """What ideal readers of the stories pay, in nats per token.

    The end of text after a story counts as a token of it.

    Attributes:
        uniform: Who knows nothing: every token is as likely as any other.
        unigram: Who knows how frequent each token is.
        bigram: Who also knows the token before.
        floor: Who knows the grammar. On average over all stories no model does better.
        tokens_per_story: Expected number of tokens of a story, its end included.
        bytes_per_story: Expected number of bytes of a story.
    """

    uniform: float
    unigram: float
    bigram: float
    floor: float
    tokens_per_story: float
    bytes_per_story: float

    def bits_per_byte(self, nats: float) -> float:
        """A loss in nats per token as bits per byte, to compare between tokenizers."""
        return nats * self.tokens_per_story / (self.bytes_per_story * math.log(2))


def reference_lines(tokenizer: Tokenizer, grammar: Grammar = STORIES) -> ReferenceLines:
    """What ideal readers of the stories pay for each token, exactly.

    Raises:
        ValueError: A token can span two pieces, so that the number of tokens does not
            follow from that of pieces.
    """
    singles, pairs = pieces(grammar)
    tokens = {piece: tokenizer.encode(piece) for piece in singles}
    tokens[END_OF_TEXT] = [tokenizer.eot_token]
    follows: dict[tuple[int, int], float] = defaultdict(float)  # pairs of tokens
    for piece, n in singles.items():
        for pair in itertools.pairwise(tokens[piece]):
            follows[pair] += n
    for (a, b), n in pairs.items():
        glued = END_OF_TEXT not in (a, b) and tokenizer.encode(a + b)
        if glued and glued != tokens[a] + tokens[b]:
            apart = f"{a + b!r} is not tokenised as {a!r} and {b!r} are"
            raise ValueError(f"{apart}, so there is no exact count of tokens")
        follows[tokens[a][-1], tokens[b][0]] += n
    times: dict[int, float] = defaultdict(float)  # expected number of each token
    for (before, _), n in follows.items():
        times[before] += n
    total = math.fsum(times.values())
    unigram = math.fsum(-n * math.log(n / total) for n in times.values())
    bigram = math.fsum(-n * math.log(n / times[a]) for (a, _), n in follows.items())
    return ReferenceLines(
        uniform=math.log(tokenizer.n_vocab),
        unigram=unigram / total,
        bigram=bigram / total,
        floor=entropy(grammar) / total,
        tokens_per_story=total,
        bytes_per_story=mean_bytes(grammar),
    )


# %% mystnb={"code_prompt_show": "Draw the four lines", "figure": {"caption": "The four lines for the course's stories and their 1,024 tokens. The first steps down are cheap: frequencies, and one token of memory. Between the bigram line and the floor lies what needs more: how a sentence goes on, and which name, toy or garment was told sentences ago.", "name": "fig-lines"}, "image": {"alt": "Four horizontal bars in nats per token, from uniform, the longest, over unigram and bigram to the floor, the shortest."}} tags=["hide-input"]
from course.figures.floor import lines_figure

lines = reference_lines(tokenizer)
lines_figure(lines)

# %% [markdown]
# ## Per token, or per byte?
#
# The longer a tokenizer's tokens, the more each of them has to say, and the more it
# costs. So a loss per token compares models of one tokenizer only.
#
# ### Exercise 2: two models
#
# Of two models one has a loss of 0.29 nats per token with its tokenizer, the other 0.21
# with another. The first makes 250 tokens of a text of 1,000 bytes, the second makes
# 400 of it. Which one predicts the text better? Write the function that decides it: a
# loss in nats per token as bits per byte of the text, given how many tokens and how
# many bytes the same text has.


# %% tags=["exercise"]
def my_bits_per_byte(loss: float, n_tokens: int, n_bytes: int) -> float:
    """Bits per byte of a model with this loss in nats per token."""
    raise NotImplementedError("your turn")


check.bits_per_byte(my_bits_per_byte)

# %% [markdown]
# What the check says to a typical wrong answer, which forgets what a bit is:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def nats_per_byte(loss: float, n_tokens: int, n_bytes: int) -> float:
    return loss * n_tokens / n_bytes


check.bits_per_byte(nats_per_byte)

# %% [markdown]
# <details><summary>Solution: <code>my_bits_per_byte</code></summary>
#
# ```python
# def my_bits_per_byte(loss, n_tokens, n_bytes):
#     return loss * n_tokens / (n_bytes * math.log(2))
# ```
# The first model: it pays $250 \cdot 0.29 = 72.5$ nats for the text, the second $400
# \cdot 0.21 = 84$.
# </details>
#
# ### One number for all vocabularies
#
# The same stories, cut by four vocabularies:

# %% tags=["nbval-check-output"]
from course.tables import Table

names = ("uniform", "unigram", "bigram", "floor")
texts, rows = [sample(seed) for seed in range(2000)], []
for vocab_size in (257, 400, 600, 1024):
    sized = reference_lines(Tokenizer("sized", train_bpe(texts, vocab_size)))
    values = [f"{getattr(sized, name):.3f}" for name in names]
    bits = f"{sized.bits_per_byte(sized.floor):.4f}"
    rows.append((str(vocab_size), f"{sized.tokens_per_story:.1f}", *values, bits))
header = ("vocabulary", "tokens a story", *names, "floor, bits a byte")
Table(header, rows, "The lines in nats per token, for four vocabularies")

# %% [markdown]
# Per token the floor rises with the vocabulary, since fewer tokens share the same
# surprise. In bits per byte it is one number, a property of the stories. So compare
# models with different tokenizers in bits per byte, and never in nats per token.
#
# ## What it hides
#
# An exact number invites more trust than it deserves. Three things to keep in mind when
# you read a loss against it.
#
# *It is a mean over all stories.* Single stories cost very different amounts, and a
# validation set of a thousand is a sample: its own cost, which `logprob` gives exactly,
# can lie a little to either side, mostly within two *standard errors* (the spread of a
# single story, over the root of their number). A validation loss slightly below the
# floor need not be an error.

# %% tags=["nbval-check-output"]
import statistics

costs = [-logprob(text) for text in texts[:1000]]
spread = statistics.stdev(costs)
mean, standard_error = statistics.mean(costs), spread / math.sqrt(len(costs))
print(f"a story costs {entropy():.2f} nats; a standard deviation is {spread:.2f}")
print(f"a thousand stories: {mean:.2f} on average, standard error {standard_error:.2f}")

# %% [markdown]
# *It knows the whole story so far.* A model whose row begins in the middle of a story
# has not read the name that it is asked for, and pays for it, however good it is. The
# floor is for a reader who always sees the beginning.
#
# *It is the floor of templates, not of language.* Shannon (1951) let people guess
# English letter by letter, and put its entropy between 0.6 and 1.3 bits per letter. The
# table above says what these stories have per byte: roughly a tenth of that. A model
# that stands on this floor has learned a set of sentences with holes, and to carry
# facts from one to another. For an attention layer that is a real achievement. It is no
# evidence that the model could write a postcard of its own.
#
# ## Is it right?
#
# The lines are the standard by which the trainer will be judged, so they had better be
# straight. First, the napkin's lines against the listed ones. Then the entropy of the
# real grammar against its reader: $-\ln p$ of sampled stories must average to it, which
# compares two programs that share only the options of each choice; one sums over
# choices, the other follows texts. Then what was owed above, and on which the floor's
# last digit rests, that no story can be told in two ways: none of 150 can (two ways
# that are frequent would show). And last, that a single wrong name is noticed: another
# hero's, where the story's own should stand.


# %% tags=["nbval-check-output"]
def ways(text: str) -> int:
    """In how many ways the grammar can tell a story."""
    found = 0
    todo: list[tuple[int, Items]] = [(0, (STORIES.start,))]  # position, what is to come
    while todo:
        at, items = todo.pop()
        if not items:
            found += at == len(text)
        elif isinstance(items[0], str):
            if text.startswith(items[0], at):
                todo.append((at + len(items[0]), items[1:]))
        else:
            todo += [(at, option + items[1:]) for _, option in items[0].options]
    return found


small = reference_lines(tokenizer, Grammar(napkin))
ours = (small.unigram, small.bigram, small.floor)
errors = [
    abs(a - b) for a, b in zip(ours, listed_lines(by_hand, tokenizer), strict=True)
]
print("lines of the napkin as listed, within 1e-12:", max(errors) < 1e-12)

off = (mean - entropy()) / standard_error
print("cost of a thousand stories within 3 standard errors of H:", abs(off) < 3)
print("told in one way only:", sum(ways(text) == 1 for text in texts[:150]), "of 150")
total = sum(surprisal(story))
close = math.isclose(total, -logprob(story), rel_tol=1e-9)
print("a story's characters cost what it costs, to nine digits:", close)

hero = next(row[0] for name, _, row in STORIES.draw(11).drawn if name == "hero")
another = next(row[0] for _, row in STORIES.rows["HERO"] if row[0] != hero)
other = another.join(story.rsplit(hero, 1))
print(
    f"accepted: {accepts(story)}; with another name at its last place: {accepts(other)}"
)


# %% [markdown]
# ## What you have now
#
# Four numbers that turn a loss into a statement, and a reader that accepts a story or
# does not. Now there is something to reach: [the trainer](#trainer) sends a model down
# these lines.

# %%
course.summary("slm/data/floor.py")
