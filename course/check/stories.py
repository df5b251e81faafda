"""Checks of the exercises on stories: the die, and a plot of one's own."""

import bisect
import copy
import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from course.check.diagnose import Diagnosis, whole
from course.check.steps import carried_out
from course.check.verdict import _a, call, exercise
from course.check.watched import used
from slm.data import floor
from slm.data.grammar import SLOT, Grammar, Items, Lines
from slm.data.stories import RULES, STORIES

Rules = Mapping[str, Lines]
ORDER = "Any order would give the same shares, but then the same seed tells other stories: keep theirs."
SORTED = "The index of the line in the list that you were given is asked for."
LEFT_OVER = "ten times 0.1, added up, is a little less than 1. Let what is left over fall to the last line."
STEPS = {
    "order": "list(range(n))",
    "w": "[weights[i] for i in order]",
    "by": "sum(w)",
    "sums": "accumulate(w)",
    "place": "next((i for i, s in enumerate(sums) if u * by < s), n - 1)",
    "end": "order[place] if place in order else place",
}
PICK_MISTAKES = {
    "by = 1": "You compare u with the weights as they are. They need not sum to 1: divide them by their sum, or multiply u by it.",
    "by = n": "You divide the weights by their number. They should sum to 1: divide by their sum.",
    "sums = w": "You compare u with each line's own share. It must be compared with the running sum of the shares up to that line.",
    "w = [exp(weights[i]) for i in order]": "You take the weights' exponentials, as a softmax does with logits. Weights are shares as they are: divide by their sum.",
    "end = int(u * n)": "You draw all lines equally often. A line of twice the weight must be taken twice as often.",
    "end = w.index(max(w))": "You always take the heaviest line. It is only taken the most often.",
    "end = order[place] - 1": "You return the index before the right one: the line that is taken is the first whose running sum exceeds u.",
    "end = order[place] + 1": "You return the index after the right one: indices begin at 0, and the line that is taken is the first whose running sum exceeds u.",
    "end = min(order[place] + 1, n - 1)": "You return the index after the right one, but never one behind the last: the line that is taken is the first whose running sum exceeds u.",
    "end = 0 if u == 0 else next((i + 1 for i, s in enumerate(sums) if u * by <= s), n)": "You count on before you look: once a line's weight lifts the running sum above u, that line is the one, not the next. Only u = 0 comes out right.",
    "end = 0 if u * by < w[0] else 1": "Your loop ends with the first line: an `else` returns there. Where u is not below the running sum, go on to the next line.",
    "end = weights[place]": "You return the line's weight. Its index is asked for.",
    "order = list(range(n))[::-1]": f"You go through the lines from the last to the first. {ORDER}",
    "order = sorted(range(n), key=lambda i: -weights[i])": f"You go through the lines by weight, heaviest first. {ORDER}",
    "order = sorted(range(n), key=lambda i: weights[i])": f"You go through the lines by weight, lightest first. {ORDER}",
    "w = sorted(weights, reverse=True)": f"You sort the weights, heaviest first, and return an index into the sorted list. {SORTED}",
    "w = sorted(weights)": f"You sort the weights, lightest first, and return an index into the sorted list. {SORTED}",
    "place = next((i for i, s in enumerate(sums) if (1 - u) * by < s), n - 1)": "You use 1 - u, or the sum that is left and not the one that is reached. The line is the first whose running sum exceeds u.",
    "place = next((i for i, s in enumerate(sums) if u * by <= s), n - 1)": "A u that lies exactly on a border goes to the line before it. It belongs to the one behind (with weights 1 and 3, u = 0.25 takes the second line): u < sum, not u <= sum.",
    "place = next((i for i, s in enumerate(sums) if u * by > s), n - 1)": "You compare the wrong way round: the line is the first whose running sum exceeds u, u < sum and not u > sum.",
    "place = next((i for i, s in enumerate(shares(w)) if u < s), -1)": f"For the largest u you return -1: {LEFT_OVER}",
    "end = dealt([int(x) for x in w])": "You make the weights whole numbers (int), and lines of a weight below 1 are never taken. Weights may be fractions: use running sums.",
    "end = dealt([round(100 * x / sum(w)) for x in w])": "You deal the lines a hundred tickets. Shares are not always whole hundredths: use running sums.",
    "end = None if place == n - 1 else place": "You return nothing (None) where the last line should be taken.",
    "place = next((i for i, s in enumerate(shares(w)) if u < s), None)": f"For the largest u you return None: {LEFT_OVER}",
    "place = next(i for i, s in enumerate(shares(w)) if u < s)": f"For the largest u your `next` finds nothing (StopIteration): {LEFT_OVER}",
    "place = next((i for i, s in enumerate(shares(w)) if u < s), n)": f"For the largest u you return the index behind the last line: {LEFT_OVER}",
}  # fmt: skip


def _pick(weights: list[float], u: float, wrong: frozenset[str] = frozenset()) -> Any:
    """The index of the line that u takes, with any of PICK_MISTAKES made."""

    def dealt(tickets: list[int]) -> int:
        lines = [i for i, n in enumerate(tickets) for _ in range(n)]
        return lines[int(u * len(lines))]

    tools: dict[str, Any] = {"accumulate": lambda w: list(itertools.accumulate(w)), "exp": math.exp, "dealt": dealt}  # fmt: skip
    tools["shares"] = lambda w: tools["accumulate"](x / sum(w) for x in w)
    names = {"weights": weights, "u": u, "n": len(weights), **tools}
    return carried_out(STEPS, wrong, **names)["end"]


PICK = Diagnosis(
    _pick,
    PICK_MISTAKES,
    [
        (weights, n / 16)
        for weights in ([3.0, 1.0], [2.0, 4.0, 1.0, 1.0], [0.25, 0.5, 0.25], [1.0])
        for n in (15, 13, 12, 11, 9, 8, 7, 5, 4, 3, 1, 0)
    ]
    + [([1.0, 2.0], 0.3325), ([10.0, 30.0, 24.0], 0.4), ([1.0] * 10, 1 - 2**-53)],
    lambda weights, u: f"For the weights {weights} and u = {u}",
    read=lambda value: value if value is None else whole(value),
)


@exercise
def pick(fn: Callable[[list[float], float], int]) -> str:
    """Check a `pick(weights, u)` that returns the index of the line which u takes."""
    PICK.judge(fn)
    searched = (bisect.bisect, bisect.bisect_left)
    name = used(fn, [3.0, 1.0, 2.0], 0.5, ready_made=searched)
    assert not name, f"Right, but `{name}` did the search. Write it with a loop."
    return "Each line is taken for its share of all u, in their order."


@exercise
def new_plot(fn: Callable[[Rules], Rules]) -> str:
    """Check a `new_plot(rules)` that adds a plot to the rules of the stories."""
    given = copy.deepcopy(RULES)
    rules = call(fn, given)
    assert given == RULES, (
        "Your function changes the rules that it was handed, so every other cell would tell other stories. Return a new dict with a new list: {**rules, 'PLOT': [*rules['PLOT'], ...]}."
    )
    assert rules is not None, "Your function returns nothing: return the dict of rules."
    assert isinstance(rules, Mapping), (
        f"The result is {_a(rules)}; return a dict of rules."
    )
    rules = copy.deepcopy(dict(rules))
    _form(rules)
    for key, lines in RULES.items():
        gone = [line for line in lines if line not in rules[key] and key != "PLOT"]
        assert not gone, (
            f"The line {gone[0]!r} of the rule {key} is gone. Take the other rules over as they are: {{**rules, ...}}."
        )
    try:
        grammar = Grammar(rules)
        floor.entropy(grammar)
    except ValueError as error:
        raise AssertionError(f"The grammar cannot be read: {error}.") from None
    added = _added(rules, grammar)
    _reads_well(rules, grammar, added)
    more = floor.entropy(grammar) - floor.entropy()
    can = f"{floor.count(grammar) - floor.count():.1e} more can be told"
    share = sum(w for w, row in grammar.rows["PLOT"] if row[0] in added)
    share /= sum(w for w, _ in grammar.rows["PLOT"])
    return f"{share:.0%} of the stories have your plot, and {can}. The entropy moved by {more:+.2f} nats a story."


def _form(rules: dict[str, Any]) -> None:
    """Assert that the rules have the form of rules, and that none is lost."""
    lost = [key for key in RULES if key not in rules]
    assert not lost, (
        f"Rules are missing from what you return: {', '.join(lost[:3])}{' …' if lost[3:] else ''}. Take them all over: {{**rules, ...}}."
    )
    for key, lines in rules.items():
        assert isinstance(lines, list | tuple), (
            f"The lines of {key} are {_a(lines)}; put them into a list."
            + " (`append` and `extend` return None: [*rules['PLOT'], line].)"
            * (lines is None)
        )
        letters = [line for line in lines if isinstance(line, str) and len(line) == 1]
        assert len(letters) < 4, (
            f"Each letter of a text became a line of {key}: list + list('text') takes a text apart. Add one line: [*rules['PLOT'], text]."
        )
        for line in lines:
            pair = isinstance(line, tuple | list) and len(line) == 2
            assert not (pair and isinstance(line[0], str) and isinstance(line[1], int | float)), (
                f"In {key} stands {line!r}: the weight comes first, then the text."
            )  # fmt: skip
            assert isinstance(line, str) or (pair and isinstance(line[0], int | float) and isinstance(line[1], str)), (
                f"In {key} stands {line!r}. A line is a text, or a weight and a text: (0.5, ' {{hero}} …')."
            )  # fmt: skip


def _added(rules: dict[str, Any], grammar: Grammar) -> set[str]:
    """The new lines of PLOT; asserts that there are some, and that the old ones are as they were."""
    now = {row[0]: weight for weight, row in grammar.rows["PLOT"]}
    old = {row[0]: weight for weight, row in STORIES.rows["PLOT"]}
    gone = [text for text in old if text not in now]
    assert not gone, (
        f"The old plots {', '.join(gone[:3])}{' …' if gone[3:] else ''} are gone. Keep them and add yours: [*rules['PLOT'], ...]."
    )
    added, new = now.keys() - old.keys(), rules.keys() - RULES.keys()
    twice = len(rules["PLOT"]) > len(old)
    assert added or not new or twice, (
        f"You write the rule {min(new)}, but no line of PLOT names it, so no story ever gets to it."
    )
    assert added or not twice, (
        "You add a plot that is there already. Write one of your own."
    )
    grown = [key for key in RULES if len(rules[key]) > len(RULES[key])]
    assert added, (
        "PLOT has the lines that it had: no plot was added."
        + f" The rule {grown and grown[0]} has a new line; plots are the lines of PLOT."
        * bool(grown)
    )
    ratios = [now[text] / weight for text, weight in old.items()]
    assert max(ratios) < 1.001 * min(ratios), (
        "The old plots have other weights than before, so old stories come more or less often. Take their lines over as they are, pairs of weight and text."
    )
    return added


def _templates(grammar: Grammar, line: str) -> list[str]:
    """A line, and all lines that can come of it by rules which the stories do not have."""
    found = [line]
    for name, *_ in SLOT.findall(line):
        for _, row in (
            grammar.rows[name] if name.isupper() and name not in RULES else ()
        ):
            found += _templates(grammar, row[0])
    return found


def _ends(grammar: Grammar, line: str) -> list[str]:
    """How a plot can end: its line or, where that ends with a rule of its own, that rule's."""
    last = re.search(r"\{(\w+)\}$", line)
    if last is None or last[1] in RULES or last[1] not in grammar.rows:
        return [line]
    return [text for _, row in grammar.rows[last[1]] for text in _ends(grammar, row[0])]


def _reads_well(rules: dict[str, Any], grammar: Grammar, added: set[str]) -> None:
    """Assert that stories with the new plot are told of their hero, as texts that can be told in one way."""
    slots = [slot for line in added for text in _templates(grammar, line) for slot in SLOT.findall(text)]  # fmt: skip
    assert ("hero", "HERO") not in [slot[:2] for slot in slots], (
        "Your plot draws a hero of its own ({hero=HERO}), and the story goes on with another one. Its hero is known: write {hero}."
    )
    speaks = any(slot[0] in ("hero", "Hero") and not slot[1] for slot in slots)
    other = "{HERO} draws any line of the rule. " * (
        "HERO" in [slot[0] for slot in slots]
    )
    assert speaks, (
        f"Your plot does not name its hero. {other}"
        "Write {hero}, and {hero.he}: what was drawn at the start is remembered. (In an f-string the braces are lost: write a plain text.)"
    )
    ends = [text for line in added for text in _ends(grammar, line)]
    run_on = next((text[-20:] for text in ends if text[-1:] not in '.!?"}'), None)
    assert run_on is None, (
        f"Your plot ends {run_on!r}, and the story's closing follows at once. End it with a full stop, without a space behind."
    )
    stories = [story for story in map(grammar.draw, range(800)) if any(("PLOT", "PLOT", (text,)) in story.drawn for text in added)]  # fmt: skip
    assert len(stories) >= 5, (
        f"Only {len(stories)} of 800 stories have your plot. Give it a weight like that of the others, 0.3 to 1."
    )
    for story in stories:
        heroes = [(variable, row[0]) for variable, rule, row in story.drawn if rule == "HERO"]  # fmt: skip
        double = next((pair for pair in itertools.combinations(heroes, 2) if pair[0][1] == pair[1][1]), None)  # fmt: skip
        assert double is None, (
            f"{story.text!r}: {double and double[0][1]} meets himself or herself, since {{{double and double[1][0]}}} may draw the same line. Leave the other out: {{friend=HERO-hero}}."
        )
        joints = [(a, b, story.text[: i + 1].count('"') % 2) for i, (a, b) in enumerate(itertools.pairwise(story.text))]  # fmt: skip
        assert not any(a in '.!?"' and b.isalpha() and not inside for a, b, inside in joints), (
            f"Two sentences are glued together in {story.text!r}. A plot begins with a space, or with a slot that does."
        )  # fmt: skip
        assert "  " not in story.text, (
            f"There are two spaces in a row in {story.text!r}."
        )
    for story in stories[:25]:
        ways = _derivations(grammar, story.text)
        assert ways == 1, (
            f"{story.text!r} can be told in {ways} ways, so its probability is not that of its choices, and the entropy is no longer exact. Make the lines differ."
        )


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
