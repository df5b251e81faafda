"""Checks of the exercises on stories: the die, and a plot of one's own."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping

from course.check.verdict import exercise
from slm.data import floor
from slm.data.grammar import Grammar, Items, Lines
from slm.data.stories import RULES

Rules = Mapping[str, Lines]


def _lines(weights: list[float], u: float) -> int:
    """The index of the first line whose running sum exceeds u times the sum."""
    running = list(itertools.accumulate(weights))
    found = (i for i, total in enumerate(running) if u * running[-1] < total)
    return next(found, len(weights) - 1)


# What learners do instead, each with the sentence that it gets if it gives exactly what their code gave.
_INSTEAD: dict[str, Callable[[list[float], float], int]] = {
    "You compare u with the weights as they are. They need not sum to 1: divide them by their sum, or multiply u by it.": lambda weights, u: (
        next(
            (i for i, total in enumerate(itertools.accumulate(weights)) if u < total),
            len(weights) - 1,
        )
    ),
    "You compare u with each line's own share. It must be compared with the running sum of the shares up to that line.": lambda weights, u: (
        next(
            (i for i, weight in enumerate(weights) if u * sum(weights) < weight),
            len(weights) - 1,
        )
    ),
    "You draw all lines equally often. A line of twice the weight must be taken twice as often.": lambda weights, u: (
        int(u * len(weights))
    ),
    "You always take the heaviest line. It is only taken the most often.": lambda weights, u: (
        weights.index(max(weights))
    ),
    "You return the index before the right one.": lambda weights, u: (
        _lines(weights, u) - 1
    ),
    "You return the index after the right one: the line that is taken is the first whose running sum exceeds u.": lambda weights, u: (
        _lines(weights, u) + 1
    ),
    "You go through the lines from the last to the first. Any order would give the same shares, but then the same seed tells other stories: keep theirs.": lambda weights, u: (
        len(weights) - 1 - _lines(weights[::-1], u)
    ),
    "You go through the lines by weight, heaviest first. Any order would give the same shares, but then the same seed tells other stories: keep theirs.": lambda weights, u: (
        (order := sorted(range(len(weights)), key=lambda i: -weights[i]))[
            _lines([weights[i] for i in order], u)
        ]
    ),
    "A u that lies exactly on a border goes to the line before it. With u = 0 and a share of [0, p) for the first line, it belongs to the one behind.": lambda weights, u: (
        next(
            i
            for i, total in enumerate(itertools.accumulate(weights))
            if u * sum(weights) <= total
        )
    ),
}
_PROBES = [
    (weights, n / 16)
    for weights in ([3.0, 1.0], [0.25, 0.5, 0.25], [1.0], [2.0, 4.0, 1.0, 1.0])
    for n in range(16)
]


@exercise
def pick(fn: Callable[[list[float], float], int]) -> str:
    """Check a `pick(weights, u)` that returns the index of the line which u takes."""
    given = [3.0, 1.0]
    out = fn(given, 0.9)
    assert given == [3.0, 1.0], (
        "Your function changes the weights that it was given; the next draw needs them."
    )
    assert isinstance(out, int) and not isinstance(out, bool), (
        f"It returned {out!r}, of type {type(out).__name__}; return the line's index, an int."
    )
    yours = [fn(list(weights), u) for weights, u in _PROBES]
    right = [_lines(weights, u) for weights, u in _PROBES]
    if yours != right:
        for sentence, instead in _INSTEAD.items():
            if yours == [instead(weights, u) for weights, u in _PROBES]:
                raise AssertionError(sentence)
        (weights, u), came, should = next(
            found
            for found in zip(_PROBES, yours, right, strict=True)
            if found[1] != found[2]
        )
        raise AssertionError(
            f"For the weights {weights} and u = {u} the line of index {should} is taken; yours gives {came}."
        )
    last = fn([1.0] * 10, 1 - 2**-53)  # ten times 0.1 sum to less than 1
    assert last == 9, (
        f"For ten equal weights and the largest u below 1 the last line is taken, index 9; yours gives {last}. Ten times 0.1, added up, is a little less than 1: let what is left over fall to the last line."
    )
    return "Each line is taken for its share of all u, in their order."


@exercise
def new_plot(fn: Callable[[Rules], Rules]) -> str:
    """Check a `new_plot(rules)` that adds a plot to the rules of the stories."""
    before = {key: list(lines) for key, lines in RULES.items()}
    rules = fn(RULES)
    changed = any(
        list(RULES.get(key, [])) != lines for key, lines in before.items()
    ) or len(RULES) != len(before)
    for key in [*RULES]:
        if key not in before:
            del RULES[key]
    RULES.update(before)
    assert not changed, (
        "Your function changes RULES itself, so every other cell would tell other stories. Return a new dict: {**rules, ...}."
    )
    assert isinstance(rules, Mapping), (
        f"It returned {type(rules).__name__}; return a dict of rules."
    )
    try:
        grammar = Grammar(rules)
        floor.entropy(grammar)
    except ValueError as error:
        raise AssertionError(f"The grammar cannot be read: {error}.") from None
    old = Grammar(before)
    texts = [old.sample(seed) for seed in range(60)]
    lost = next((text for text in texts if not floor.accepts(text, grammar)), None)
    assert lost is None, (
        f"An old story can no longer be told: {lost!r}. Keep the old plots and add yours: [*rules['PLOT'], '{{YOURS}}']."
    )
    assert floor.count(grammar) > floor.count(old), (
        "There are as many stories as before. PLOT must name your rule, or no story ever gets to it."
    )
    fresh = [
        text for text in map(grammar.sample, range(800)) if not floor.accepts(text, old)
    ]
    assert len(fresh) >= 5, (
        f"Only {len(fresh)} of 800 stories are new. Give your plot a weight like that of the others, 0.3 to 1."
    )
    glued = next(
        (
            text
            for text in fresh
            if any(
                a in '.!?"' and b.isalpha() and quotes_closed
                for a, b, quotes_closed in _joints(text)
            )
        ),
        None,
    )
    assert glued is None, (
        f"Two sentences are glued together in {glued!r}. A plot begins with a space, or with a slot that does."
    )
    assert not any("  " in text for text in fresh), (
        f"There are two spaces in a row in {next((t for t in fresh if '  ' in t), '')!r}."
    )
    names = [row[0] for _, row in grammar.rows["HERO"]]
    plots = [(text, _hero(text, names)) for text in fresh]
    heroless = sum(text.count(name) <= 2 for text, name in plots)
    assert heroless < len(fresh) / 2, (
        "Your plot does not name its hero. Write {hero}, and {hero.he}: what was drawn at the start is remembered."
    )
    for text in fresh[:25]:
        by_reader, walked = floor.logprob(text, grammar), _derivations(grammar, text)
        assert walked == 1, (
            f"{text!r} can be told in {walked} ways, so its probability ({by_reader:.1f} nats) is not that of its choices, and the entropy is no longer exact. Make the lines differ."
        )
    more = floor.entropy(grammar) - floor.entropy(old)
    can = f"{floor.count(grammar) - floor.count(old):.1e} more can be told"
    return f"{len(fresh)} of 800 stories are new, and {can}. The entropy moved by {more:+.2f} nats a story."


def _joints(text: str) -> list[tuple[str, str, bool]]:
    """Neighbouring characters, and whether the quotation marks up to there are closed."""
    closed = [
        count % 2 == 0
        for count in itertools.accumulate(character == '"' for character in text)
    ]
    return [(a, b, closed[i]) for i, (a, b) in enumerate(itertools.pairwise(text))]


def _hero(text: str, names: list[str]) -> str:
    """The hero: the name that comes first."""
    found = Counter(
        {name: -position for name in names if (position := text.find(name)) >= 0}
    )
    return found.most_common(1)[0][0] if found else names[0]


def _derivations(grammar: Grammar, text: str) -> int:
    """In how many ways a story can be told."""
    ways = 0
    todo: list[tuple[int, Items]] = [(0, (grammar.start,))]
    while todo:
        at, items = todo.pop()
        if not items:
            ways += at == len(text)
        elif not isinstance(items[0], str):
            todo += [(at, option + items[1:]) for _, option in items[0].options]
        elif text.startswith(items[0], at):
            todo.append((at + len(items[0]), items[1:]))
    return ways
