"""How predictable the stories are, exactly: entropy, surprise, and lines for a loss.

    reference_lines(get_tokenizer("stories")).floor

Each function takes a grammar; unless told, that of the course's stories.

Exported from chapters/09_floor.py; edit it there.
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

# Counting visits


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


def entropy(grammar: Grammar = STORIES) -> float:
    """Entropy of a story in nats: each choice's cost, times how often it is visited."""
    return math.fsum(
        -n * p * math.log(p)
        for choice, n in visits(grammar).items()
        for p, _ in choice.options
    )


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


# Reading a text


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


# Counting tokens without listing stories

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
