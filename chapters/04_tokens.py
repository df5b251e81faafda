# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,kernelspec,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   slm:
#     exports:
#     - slm/stories.py
#     - slm/tokenizer.py
# ---

# %% [markdown]
# # Tokens
#
# What a model reads, and how well it could possibly read it. You write a grammar of children's stories whose entropy you know exactly, train the
# byte-pair encoding that turns a story into tokens, and work out, to the last digit, the loss that, on average, no model of these stories can beat.
#
# It exports `slm/stories.py` and `slm/tokenizer.py`.
#
# *Runs in about 10 seconds on two cores.*

# %%
import course

course.start()

# %% [markdown]
# ## The idea
#
# A language model is paid in surprise: after every piece of text it says how likely each next piece is, and its loss is $-\ln p$ of what came. Below is a story from
# the grammar that you are about to build. Each character is coloured by what it costs a reader who knows the grammar perfectly; hover to read the number, in nats.

# %% tags=["hide-input"]
import slm.stories
from course.figures.chapter_04 import surprisal_strip

story = slm.stories.sample(11)
surprisal_strip(story, slm.stories.surprisal(story))

# %% [markdown]
# Most of the text is pale: once a word has begun, or a fact is known, there is nothing left to guess. Chance enters at a few places only. *Which* name, toy or
# garment a later sentence means costs nothing, if you remember it; where a name does cost something in the middle of a story, it gives away which way the story goes on. For English nobody knows these numbers. For these stories you will, so when a
# model's validation loss comes out you can say how much of it is ignorance and how much is chance.
#
# ## A grammar that fits on a napkin
#
# A story is grown from rules. `{MOOD}` stands for any line of the rule MOOD. `{pet=PET}` *draws* a line of PET, prints nothing, and remembers it, so that `{pet}` and
# `{pet.he}` agree ever after (a capital prints a capital). A line is a text, or a weight and a text; columns are separated by `|`.

# %%
napkin = {
    "STORY": ["{pet=PET}{pet} the {pet.kind}{VERY} {MOOD}. {pet.He} {MOOD}."],
    "PET name kind he": [(3, "Tim|cat|he"), (1, "Sue|dog|she")],
    "VERY": [(2, ""), (1, " often")],
    "MOOD": ["naps", "sings"],
}

# %% [markdown]
# By hand: two pets, two frequencies, two moods, twice. Sixteen stories, each with a probability that is a product of four.

# %% tags=["nbval-check-output"]
import itertools
import math

by_hand = {
    f"{name} the {kind}{very} {first}. {he} {second}.": p_pet * p_very / 4
    for (p_pet, name, kind, he), (p_very, very), first, second in itertools.product(
        [(3 / 4, "Tim", "cat", "He"), (1 / 4, "Sue", "dog", "She")],
        [(2 / 3, ""), (1 / 3, " often")],
        ["naps", "sings"],
        ["naps", "sings"],
    )
}
print(len(by_hand), "stories, probabilities sum to", round(sum(by_hand.values()), 9))
print(f"entropy {-sum(p * math.log(p) for p in by_hand.values()):.4f} nats")

# %% [markdown]
# The **entropy** $H = -\sum_x p(x) \ln p(x)$ is the mean surprise of a reader who knows the odds. Nobody predicts better on average than with the true
# probabilities (Gibbs' inequality), so $H$ is the floor under every model's loss, averaged over all stories. (The average over a thousand of them is itself a matter of luck; chapter 6 says how much.)
#
# Sixteen stories can be listed. This chapter's grammar has more than you could read in all your lives. But a story is a chain of *choices*, and surprises of a chain add up (as long as no story can be told in two ways; you
# will check that). So instead of summing over stories, sum over choices $c$: how often a story passes through $c$, times what that choice costs.
#
# $$H = \sum_c n(c)\, H(c), \qquad H(c) = -\sum_{o \in c} p(o) \ln p(o), \qquad n(c) = \text{expected number of visits to } c$$
#
# The napkin has four: a pet, a frequency, and two moods. That is all the theory.


# %% tags=["nbval-check-output"]
def nats(*p: float) -> float:
    return -sum(q * math.log(q) for q in p)


print(f"entropy {nats(3 / 4, 1 / 4) + nats(2 / 3, 1 / 3) + 2 * nats(1 / 2, 1 / 2):.4f} nats")

# %% [markdown]
# ## Rules become choices
#
# Now the machine. It is made of one kind of object: a `Choice` knows its options, each a probability with the texts and further choices that follow. Options
# are worked out when somebody first asks.

# %%
#| export
"""Children's stories from a probabilistic grammar, and all that can be known about them exactly.

`sample(seed)` gives a story; `entropy()`, `logprob(text)`, `surprisal(text)` and `reference_lines(tokenizer)` say how
predictable it is. The grammar is data, `RULES`, and `Grammar(rules)` makes the same of rules of your own.
"""

import bisect
import itertools
import math
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

Row = tuple[str, ...]  # one line of a rule: its columns
Drawn = tuple[tuple[str, str, Row], ...]  # what is remembered: (variable, rule, row), sorted
Lines = Sequence[str | tuple[float, str]]
SLOT = re.compile(r"\{(\w+)(?:=(\w+)((?:-\w+)*)|\.(\w+))?\}")  # {RULE}, {x=RULE}, {x=RULE-y}, {x} and {x.column}


class Choice:
    """A place in a story where chance enters: what can come next, and how likely each is."""

    def __init__(self, grammar: "Grammar", template: str, drawn: Drawn) -> None:
        self.grammar, self.template, self.drawn = grammar, template, drawn

    @cached_property
    def options(self) -> tuple[tuple[float, "Items"], ...]:
        """Pairs of a probability and what follows then: texts and further choices."""
        return self.grammar.options(self.template, self.drawn)

    @cached_property
    def cumulative(self) -> list[float]:
        """Running sums of the probabilities, to draw from."""
        return list(itertools.accumulate(p for p, _ in self.options))


Items = tuple[str | Choice, ...]


# %% [markdown]
# A grammar reads the rules and checks their form at once; what depends on what was drawn before, it checks on the way there, and says a sentence then, too. `_needed` finds the variables that a template
# and all rules below it look at. Everything else may be forgotten, so stories that differ only in what no longer matters meet in *the same* choice. That is what keeps
# choices few where stories are many.


# %%
#| export
class Grammar:
    """A probabilistic grammar that remembers, and what follows from it exactly.

    Args:
        rules: For each rule its lines, each a template or a weight and a template. A key "PET name kind" names the
            columns of that rule's lines, which are separated by "|". In a template `{RULE}` stands for a line of that
            rule, `{x=RULE}` draws a line and prints nothing, `{x=RULE-y}` draws one that is not y's, `{x}` and
            `{x.column}` print what was drawn (`{Xx}` and `{x.Column}` with a capital letter).
        start: The rule from which a story grows.

    Raises:
        ValueError: A rule is malformed, names what is not there, or leads back to itself.
    """

    def __init__(self, rules: Mapping[str, Lines], start: str = "STORY") -> None:
        self.columns: dict[str, list[str]] = {}
        self.rows: dict[str, list[tuple[float, Row]]] = {}
        for key, lines in rules.items():
            rule, *columns = key.split()
            if isinstance(lines, str):
                raise ValueError(f"rule {rule}: its lines are one text; put them into a list")
            if rule in self.rows or not rule.isupper():
                raise ValueError(f"rule {rule}: a rule's name must be in capitals, and there only once")
            if not lines:
                raise ValueError(f"rule {rule} has no lines")
            self.columns[rule] = columns or ["name"]
            self.rows[rule] = [self._row(rule, line) for line in lines]
        self._known: dict[tuple[str, Drawn], Choice] = {}
        self._looks_at: dict[str, frozenset[str]] = {}
        for rule in self.rows:
            self._needed("{" + rule + "}")
        self.start = self._choice("{" + start + "}", ())

    def _row(self, rule: str, line: str | tuple[float, str]) -> tuple[float, Row]:
        weight, text = (1.0, line) if isinstance(line, str) else line
        row = tuple(text.split("|"))
        if len(row) != len(self.columns[rule]):
            raise ValueError(f"rule {rule}: {text!r} has {len(row)} columns, but {len(self.columns[rule])} are named")
        if not 0 < weight < math.inf:
            raise ValueError(f"rule {rule}: the weight of {text!r} is {weight}, but it must be positive and finite")
        if set("{}") & set(SLOT.sub("", text)):
            raise ValueError(f"rule {rule}: {text!r} has a brace that belongs to no slot")
        return weight, row

    def _needed(self, template: str, path: tuple[str, ...] = ()) -> frozenset[str]:
        """The variables that a template and all rules below it look at."""
        if template not in self._looks_at:
            found: set[str] = set()
            for name, source, others, _ in SLOT.findall(template):
                rule = source or name
                found.update(others.split("-")[1:])
                if not name.isupper():
                    found.add(name[0].lower() + name[1:])
                if not rule.isupper() and not source:
                    continue
                if rule not in self.rows:
                    raise ValueError(f"{template!r} names the rule {rule}, but there is none of that name")
                if rule in path:
                    raise ValueError(f"rule {rule} leads back to itself: {' > '.join((*path, rule))}")
                for line in (column for _, row in self.rows[rule] for column in row):
                    if source and "{" in line:
                        raise ValueError(f"{{{name}={rule}}} draws {line!r}, but what is drawn must be plain text")
                    found |= self._needed(line, (*path, rule))
            self._looks_at[template] = frozenset(found)
        return self._looks_at[template]


# %% [markdown]
# Then the three steps from a template to choices. `_print` puts in what was drawn. `_items` cuts the rest at its slots, and everything behind a draw depends on it, so that becomes
# part of the choice. `options` draws. One detail pays off later: a space before a slot moves into the choice, to the word that it belongs to. GPT-2's tokenizer thinks of spaces
# as the beginnings of words, too.


# %%
#| export
@course.add_to(Grammar)
def _choice(self, template: str, drawn: Drawn) -> Choice:
    """The choice with which a template begins. Equal ones are one object, so each is worked out once."""
    needed = self._needed(template)
    key = template, tuple(entry for entry in drawn if entry[0] in needed)
    if key not in self._known:
        self._known[key] = Choice(self, *key)
    return self._known[key]


@course.add_to(Grammar)
def _print(self, template: str, drawn: Drawn) -> str:
    """Put what was drawn in the place of the variables; other slots stay."""
    known = {variable: (rule, row) for variable, rule, row in drawn}

    def replace(slot: re.Match[str]) -> str:
        name, source, _, column = slot.groups()
        variable = name[0].lower() + name[1:]
        if source:
            known.pop(name, None)  # drawn anew: from here on it means the new row
        if source or name.isupper() or variable not in known:
            return slot[0]
        rule, row = known[variable]
        wanted = column[0].lower() + column[1:] if column else self.columns[rule][0]
        if wanted not in self.columns[rule]:
            raise ValueError(f"{slot[0]}: rule {rule} has only the columns {', '.join(self.columns[rule])}")
        index = self.columns[rule].index(wanted)
        return row[index][:1].upper() + row[index][1:] if (column or name)[0].isupper() else row[index]

    return SLOT.sub(replace, template)


@course.add_to(Grammar)
def _items(self, template: str, drawn: Drawn) -> Items:
    """Cut a template into texts and choices."""
    items: list[str | Choice] = []
    rest = self._print(template, drawn)
    while slot := SLOT.search(rest):
        name, source, _, _ = slot.groups()
        if not source and not name.isupper():
            raise ValueError(f"{slot[0]} is printed in {template!r}, but nothing was drawn for it before")
        text = rest[: slot.start()]
        space = " " if text.endswith(" ") else ""
        items.append(text.removesuffix(" "))
        items.append(self._choice(space + (rest[slot.start() :] if source else slot[0]), drawn))
        rest = "" if source else rest[slot.end() :]
    return tuple(item for item in (*items, rest) if item)


@course.add_to(Grammar)
def options(self, template: str, drawn: Drawn) -> tuple[tuple[float, Items], ...]:
    """What can come at the slot with which a template begins, each with its probability."""
    slot = SLOT.search(template)
    assert slot is not None
    name, source, others, _ = slot.groups()
    space, rest = template[: slot.start()], template[slot.end() :]
    different = set(others.split("-")[1:]) if others else set()
    taken = {row for variable, _, row in drawn if variable in different}
    if unknown := different - {variable for variable, _, _ in drawn}:
        raise ValueError(f"{slot[0]} must differ from {min(unknown)}, but nothing was drawn for that before")
    rows = [(weight, row) for weight, row in self.rows[source or name] if row not in taken]
    if not rows:
        raise ValueError(f"{slot[0]}: every line of rule {source} is taken")
    total = math.fsum(weight for weight, _ in rows)
    if not source:
        return tuple((weight / total, self._items(space + row[0], drawn)) for weight, row in rows)
    others_drawn = [entry for entry in drawn if entry[0] != name]
    return tuple(
        (weight / total, self._items(space + rest, tuple(sorted([*others_drawn, (name, source, row)]))))
        for weight, row in rows
    )


# %% [markdown]
# What does the napkin offer first? The rule STORY has one line, and that begins with a draw:

# %%
for p, items in Grammar(napkin).start.options[0][1][0].options:
    print(p, [item if isinstance(item, str) else f"<{item.template.strip()}>" for item in items])

# %% [markdown]
# ## Three things to do with choices
#
# **Sample**: walk, and roll the die at each choice. The seed *is* the story: story 7 is the same on every machine.


# %%
#| export
@course.add_to(Grammar)
def sample(self, seed: int) -> str:
    """The story of this number: the same seed gives the same story everywhere."""
    rng = random.Random(seed)
    texts: list[str] = []
    todo: list[str | Choice] = [self.start]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            texts.append(item)
        else:
            index = bisect.bisect(item.cumulative, rng.random(), hi=len(item.options) - 1)
            todo.extend(reversed(item.options[index][1]))
    return "".join(texts)


# %% [markdown]
# **Entropy**: count the expected visits from the start downwards, then sum. The mean length goes the same way. For the number of stories multiply along an option, and add over options.


# %%
#| export
@course.add_to(Grammar)
def visits(self) -> dict[Choice, float]:
    """How often a story passes through each choice, on average. Each choice stands before those that follow it."""
    order: dict[Choice, None] = {}

    def visit(choice: Choice) -> None:
        for item in itertools.chain.from_iterable(items for _, items in choice.options):
            if isinstance(item, Choice) and item not in order:
                visit(item)
        order[choice] = None  # after all that can follow it

    visit(self.start)
    visits = dict.fromkeys(reversed(order), 0.0)
    visits[self.start] = 1.0
    for choice, times in visits.items():
        for p, items in choice.options:
            for item in items:
                if isinstance(item, Choice):
                    visits[item] += times * p
    return visits


@course.add_to(Grammar)
def entropy(self) -> float:
    """Entropy of a story in nats: what each choice costs, times how often a story passes through it."""
    return math.fsum(-n * p * math.log(p) for choice, n in self.visits().items() for p, _ in choice.options)


@course.add_to(Grammar)
def mean_bytes(self) -> float:
    """Bytes of a story, on average."""
    return math.fsum(
        n * p * sum(len(item.encode()) for item in items if isinstance(item, str))
        for choice, n in self.visits().items()
        for p, items in choice.options
    )


@course.add_to(Grammar)
def count(self) -> int:
    """How many different stories there are."""
    counts: dict[Choice, int] = {}
    for choice in reversed(self.visits()):
        counts[choice] = sum(
            math.prod(counts[i] for i in items if isinstance(i, Choice)) for _, items in choice.options
        )
    return counts[self.start]


# %% [markdown]
# **Read**: how likely is a given text, and how surprising each of its characters? Follow every way to derive the text at once. A way that contradicts the next character is dropped.
# The probability of the ways still alive after $i$ characters is $P(\text{story begins with } x_{1 \ldots i})$, so the surprisal of a character is the logarithm of the
# mass before it over the mass after it.


# %%
#| export
@course.add_to(Grammar)
def alive(self, text: str) -> tuple[list[float], float]:
    """Follow all derivations that agree with a text, up to where each fails.

    Returns:
        The probabilities that a story begins with `text[:i]`, for i from 0 to len(text), and that it is `text`.
    """
    begins, whole = [1.0] + [0.0] * len(text), 0.0
    walks: list[tuple[float, int, tuple]] = [(1.0, 0, (self.start, ()))]  # probability, position, what is to come
    while walks:
        p, start, todo = walks.pop()
        if not todo:
            whole += p if start == len(text) else 0.0
            continue
        item, todo = todo
        if isinstance(item, Choice):
            for q, items in item.options:
                if items and isinstance(items[0], str) and not text.startswith(items[0][0], start):
                    continue  # fails at once
                rest = todo
                for later in reversed(items):
                    rest = later, rest
                walks.append((p * q, start, rest))
            continue
        if text.startswith(item, start):
            end = start + len(item)
            walks.append((p, end, todo))
        else:
            end = start
            while end < len(text) and text[end] == item[end - start]:
                end += 1
        for i in range(start, end):
            begins[i + 1] += p
    return begins, whole


@course.add_to(Grammar)
def logprob(self, text: str) -> float:
    """Log-probability of a whole story in nats, summed over its derivations; -inf for any other text."""
    whole = self.alive(text)[1]
    return math.log(whole) if whole else -math.inf


@course.add_to(Grammar)
def accepts(self, text: str) -> bool:
    """Whether the text is a whole story."""
    return self.alive(text)[1] > 0


@course.add_to(Grammar)
def surprisal(self, text: str) -> list[float]:
    """-ln P(character | all before it) in nats for each character, inf from the first impossible one on.

    They sum to `-logprob(text)` where no story is the beginning of another, as in `RULES`.
    """
    return [math.log(a / b) if b else math.inf for a, b in itertools.pairwise(self.alive(text)[0])]


# %% [markdown]
# Does the machine agree with the sixteen stories by hand?

# %% tags=["nbval-check-output"]
grammar = Grammar(napkin)
print(f"entropy {grammar.entropy():.4f} nats, {grammar.count()} stories")
print("all probabilities equal:", all(math.isclose(math.exp(grammar.logprob(text)), p) for text, p in by_hand.items()))
print("a story about a bird has log-probability", grammar.logprob("Bea the bird naps. She naps."))

# %% [markdown]
# ## The stories
#
# The rules of the course's own corpus: plots with holes, and what can fill them. Unfold the cell and read a few; extending them is an exercise below. The lines of a list are
# weighted as words in a language are, by rank: `zipf(0.5, "kite / ball / drum")` gives weights $1, 2^{-1/2}, 3^{-1/2}$.


# %% tags=["hide-input"]
#| export
def zipf(exponent: float, text: str) -> list[tuple[float, str]]:
    """The lines of a rule, separated by " / ", with weights that fall as 1 / rank**exponent (Zipf's law)."""
    return [(1 / rank**exponent, line) for rank, line in enumerate(text.split(" / "), 1)]


RULES: dict[str, Sequence[str | tuple[float, str]]] = {
    "STORY": [
        (
            6,
            "Once upon a time, there was a {ADJ} {hero=HERO}{hero.kind} named {hero}. {hero.He} always wore a"
            " {wear=WEAR}{wear}.{MORE}{PLOT}{CLOSING}",
        ),
        (
            3,
            "{hero=HERO}{hero} was a {ADJ} {hero.kind} who lived {HOME}. {hero.He} had a"
            " {wear=WEAR}{wear}.{PLOT}{CLOSING}",
        ),
        (
            2,
            "There once was a {ADJ} {hero=HERO}{hero.kind} in a {wear=WEAR}{wear}. {hero.His} name was {hero}."
            "{MORE}{PLOT}{CLOSING}",
        ),
        (
            2,
            "Far away, {HOME}, lived {hero=HERO}{hero} the {hero.kind}, who loved {hero.his} {wear=WEAR}{wear}."
            "{PLOT}{CLOSING}",
        ),
        (
            1,
            "Do you know {hero=HERO}{hero} the {hero.kind}? {hero.He} is {TWO_ADJS} and has a {wear=WEAR}{wear}."
            "{MORE}{PLOT}{CLOSING}",
        ),
    ],
    "MORE": [
        (6, ""),
        (2, " {hero.He} lived {HOME}."),
        (1, " Everyone thought {hero.he} was {ADJ}."),
        (1, " {hero.He} lived {HOME} and liked {FOOD}, {TWO_HOBBIES}."),
    ],
    "CLOSING": [
        (4, " That night {hero} hung {hero.his} {wear} {HOOK} and slept {SLEPT}."),
        (3, " {hero} went home in {hero.his} {wear}, {GLAD} and tired."),
        (2, " {hero.He} waved {hero.his} {wear} and {LEFT}."),
        (2, " And the {wear}? {hero} wears it to this day."),
    ],
    "PLOT": zipf(
        0.4,
        "{LOST} / {BABY} / {GIFT} / {RACE} / {NOISE} / {SEED} / {BROKEN} / {STUCK} / {COOK} / {LEARN} / {TRADE} /"
        " {RAIN} / {SHY} / {PATH} / {WISH}",
    ),
    # One plot each
    "LOST": [
        " {DAY}, {hero.his} {toy=TOY}{toy} was gone. {hero} felt{VERY} {SAD}.{SEARCH} {hero} hugged the {toy} and"
        " {PROMISE}.{LESSON_LOST}"
    ],
    "SEARCH": [
        (4, "{a=SPOT} {hero.He} looked {a}, and there it was!"),
        (
            5,
            "{a=SPOT}{b=SPOT-a} {hero.He} looked {a}, but found only {DUST}. Then {hero.he} looked {b}, and there it"
            " was!",
        ),
    ],
    "BABY": [
        ' {DAY}, {hero} met a baby {baby=CUB}{baby} by the {WATER}. "I cannot find my mother," it cried. {hero}'
        ' {COMFORT} and they searched until {DUSK}. The mother {baby} was{VERY} {GLAD}. "Thank you, {hero}!" she'
        " said.{LESSON_HELP}"
    ],
    "GIFT": [
        " It was the birthday of {friend=HERO-hero}{friend} the {friend.kind}, but {hero} had no money. So {hero.he}"
        ' took some {gift=PRESENT}{gift.stuff} and made a {gift}. {friend} opened the box and felt{VERY} {GLAD}. "I'
        ' will {KEEP} this {gift}," said {friend}.{LESSON_GIFT}'
    ],
    "RACE": [
        ' {DAY}, {friend=HERO-hero}{friend} the {friend.kind} wanted to race to the {goal=GOAL}{goal}. "I am much'
        ' faster than you," {friend.he} said. But halfway {friend} {MISHAP}. {RACED} the {goal}.{LESSON_RACE}'
    ],
    "RACED": [
        (3, "{hero} stopped and helped {friend.him} up, and together they reached"),
        (2, "{hero} just went on, step by step, and was first to touch"),
    ],
    "NOISE": [
        ' {DARK}, {hero} heard a strange {noise=SOUND}{noise}. "Is it a {fear=FEAR}{fear}?" {hero.he} whispered. {hero}'
        " {BRAVE} and went to look. There was no {fear}. The {noise} was only {noise.cause}, and {hero} {LAUGHED}."
        "{LESSON_FEAR}"
    ],
    "SEED": [
        "{helper=HELPER} {Helper} gave {hero} a {SIZE} seed. {hero} planted it {SPOT} and watered it every {EVERY}. For"
        ' {LONG} nothing grew, and {hero} felt {SAD}. "{WAIT}," said {helper}. One day there was a {PLANT}, and'
        " {hero} ran to tell {helper}.{LESSON_WAIT}"
    ],
    "BROKEN": [
        " {DAY}, {hero} was {PLAYING} in the house and broke the {pot=POT}{pot} of {helper=HELPER}{helper}. {TRUTH}"
        ' "Thank you for being honest," said {helper}. They mended the {pot} with {GLUE}.{LESSON_TRUTH}'
    ],
    "TRUTH": [
        (3, "{hero} told the truth at once."),
        (2, "{hero} hid the pieces {SPOT}, but {hero.he} felt{VERY} {SAD}. In the end {hero.he} told the truth."),
    ],
    "STUCK": [
        " {DAY}, the wind blew {hero.his} {toy=TOY}{toy} {PERCH}. {hero} {TRIED}, but it was too high. Then"
        ' {friend=HERO-hero}{friend} the {friend.kind} came with a {TOOL}. Down came the {toy}! "What would I do'
        ' without you, {friend}?" said {hero}.{LESSON_HELP}'
    ],
    "COOK": [
        " {hero} wanted to make {dish=DISH}{dish} for {friend=HERO-hero}{friend} the {friend.kind}. {hero.He} mixed"
        " {MIX}, but then {hero.he} {SPILLED}. {friend} tasted the {dish} and {FACE}. {friend.He} and {hero} {ATE}"
        " instead of {dish}.{LESSON_COOK}"
    ],
    "MIX": ["{a=FOOD}{b=FOOD-a}{a} and {b}"],
    "LEARN": [
        " {hero} wanted to {skill=SKILL}{skill}, but {hero.he} always {skill.fail}. {helper=HELPER}{Helper} said,"
        ' "{ADVICE}." {hero} tried {TIMES} times. The next time, {hero.he} could {skill}! {Helper} was{VERY} {GLAD}.'
        "{LESSON_LEARN}"
    ],
    "TRADE": [
        " {DAY}, a trader came by. {hero} gave away {hero.his} {toy=TOY}{toy} for a {other=TOY-toy}{other}. But at"
        " home {hero.he} missed the {toy} and felt{VERY} {SAD}. {hero.He} ran back with the {other}, and the trader"
        " {SWAPPED}.{LESSON_TRADE}"
    ],
    "RAIN": [
        " {hero} and {friend=HERO-hero}{friend} the {friend.kind} wanted to {plan=PLAN}{plan}, but it {RAINED}. {hero}"
        ' had an idea. They {INDOOR} until {DUSK}. "Tomorrow we can {plan}," said {friend}, "but today was'
        ' {FUN}."{LESSON_RAIN}'
    ],
    "SHY": [
        '{friend=HERO-hero} A new {friend.kind} named {friend} came to school and sat alone {SPOT}. "Do you like'
        ' {hobby=HOBBY}{hobby}?" asked {hero}. {friend} {NODDED}. Now {hero} and {friend} go {hobby} together every'
        " {EVERY}.{LESSON_SHY}"
    ],
    "PATH": [
        " {DAY}, {hero} followed a {INSECT} into the forest and lost the way. {hero} felt{VERY} {SAD}. Then {hero.he}"
        ' remembered what {helper=HELPER}{helper} had said: "Follow the {guide=GUIDE}{guide}." {hero} followed the'
        " {guide}, and soon {helper} {MET} {hero.him} at the door.{LESSON_LISTEN}"
    ],
    "WISH": [
        " {DARK}, {hero} saw a falling star and wished for a {wish=DREAM}{wish}. In the morning there was no {wish},"
        " but {HELPER} {SURPRISE}. {hero} felt{VERY} {GLAD} and forgot about the {wish}.{LESSON_WISH}"
    ],
    # Who
    "HERO name kind he him his": zipf(
        0.6,
        "Nell|girl|she|her|her / Otto|bear|he|him|his / Kai|boy|he|him|his / Willa|rabbit|she|her|her"
        " / Theo|boy|he|him|his / Zoe|girl|she|her|her / Milo|mouse|he|him|his / Suki|cat|she|her|her"
        " / Bruno|dog|he|him|his / Hetty|hen|she|her|her",
    ),
    "HELPER": zipf(0.5, "grandma / dad / mom / grandpa / the baker / the teacher"),
    "CUB": zipf(0.5, "lamb / duck / goat / seal / deer / owl"),
    "FEAR": zipf(0.5, "ghost / dragon / wolf / giant / witch / troll"),
    # Things
    "WEAR": zipf(
        0.6, "red hat / blue scarf / green coat / yellow cap / purple cape / white ribbon / brown belt / pink sweater"
    ),
    "TOY": zipf(0.6, "kite / ball / drum / doll / robot / puzzle / top"),
    "PRESENT name stuff": zipf(
        0.5, "boat|paper / crown|leaves / necklace|shells / puppet|wool / flute|wood / lamp|wax"
    ),
    "POT": zipf(0.5, "vase / teapot / mirror / clock / bowl"),
    "TOOL": zipf(0.5, "ladder and climbed up / long stick and poked it / rope and pulled hard / net and swung it once"),
    "PLANT": zipf(0.5, "sunflower / pumpkin as big as a cart / tiny tree / tall bean / rose"),
    "DISH": zipf(0.5, "soup / pancakes / bread / stew / cake"),
    "FOOD": zipf(0.5, "honey / eggs / milk / carrots / berries / flour / beans"),
    "DREAM": zipf(0.5, "pony / castle / ship / rocket / sled"),
    "SOUND name cause": zipf(
        0.5,
        "tapping|a branch in the wind / scratching|a mouse with a nut / howling|the wind in the chimney"
        " / dripping|the rain in a bucket / snoring|the cat in a basket",
    ),
    "GUIDE": zipf(0.5, "river / stars / stone wall / church bells / smell of smoke"),
    "INSECT": zipf(0.5, "butterfly / bee / beetle / firefly"),
    "GLUE": zipf(0.5, "glue / string / gold paint"),
    "DUST": zipf(0.5, "dust / an old shoe / a spider / three crumbs / a sock"),
    # What one can do
    "SKILL name fail": zipf(
        0.5,
        "swim|swallowed water / whistle|blew only air / skate|fell on the ice / juggle|dropped the balls"
        " / ride a bike|tipped over / tie a knot|made a mess",
    ),
    "HOBBY": zipf(0.5, "fishing / singing / dancing / sailing / hiking / climbing"),
    "TWO_HOBBIES": ["{a=HOBBY}{b=HOBBY-a}{a} and {b}"],
    "PLAN": zipf(0.5, "build a raft / fly kites / pick apples / swim in the lake / have a picnic"),
    "INDOOR": zipf(
        0.5,
        "built a fort and hid inside / sang and danced / drew a map and looked for treasure / baked cookies"
        " / made a puppet show / told stories by the fire",
    ),
    "PLAYING": zipf(0.5, "dancing / jumping / throwing a ball / running"),
    "TRIED": zipf(0.5, "jumped and jumped / threw a stick / shook the trunk / called for help"),
    "SPILLED": zipf(0.5, "used salt for sugar / dropped the pepper / burned the bottom / forgot the spoon in it"),
    "ATE": zipf(0.5, "laughed and ate toast / ate cheese / shared a plum / had nuts"),
    "SURPRISE": zipf(0.5, "had made warm waffles / told a wonderful tale / had time to play all day / sang a new song"),
    "MISHAP": zipf(0.5, "tripped over a root / fell into the mud / got a thorn in the foot / hurt a knee"),
    "COMFORT": zipf(0.5, "took its hand / gave it some bread / dried its tears / made a plan"),
    "BRAVE": zipf(0.5, "lit a candle / took a deep breath / counted to ten / held a pillow tight"),
    "LAUGHED": zipf(0.5, "had to laugh / felt very brave / felt silly / smiled"),
    "PROMISE": zipf(
        0.5, "did not let go all day / danced around the room / showed it to everyone / put it on the shelf"
    ),
    "KEEP": zipf(0.5, "treasure / always keep / never forget / love"),
    "FACE": zipf(0.5, "coughed / made a funny face / drank a lot of water / turned red"),
    "SWAPPED": zipf(0.5, "gave it back with a wink / was kind and swapped again / shook hands and agreed"),
    "NODDED": zipf(0.5, "nodded / said yes in a low voice / looked up and smiled"),
    "MET": zipf(0.5, "hugged / met / kissed / greeted"),
    "LEFT": zipf(0.5, "ran off to play / said goodbye / skipped all the way home"),
    "SLEPT": zipf(0.5, "well / like a log / until noon / with a smile / soundly"),
    # How, when and where
    "ADJ": zipf(
        0.7, "little / kind / curious / brave / quiet / polite / clever / gentle / young / small / funny / lively"
    ),
    "TWO_ADJS": ["{a=ADJ}{b=ADJ-a}{a} and {b}"],
    "SAD": zipf(0.7, "sad / worried / lonely / upset / gloomy / unhappy"),
    "GLAD": zipf(0.7, "happy / proud / glad / thankful / excited / cheerful"),
    "VERY": [(5, ""), (3, " very"), (2, " so")],
    "FUN": zipf(0.5, "fun / the best day / even better"),
    "SIZE": zipf(0.5, "tiny / round / black / shiny"),
    "DAY": zipf(0.7, "One day / One morning / On a windy day / Early in spring / Last summer"),
    "DARK": zipf(0.5, "Late at night / One dark night / At bedtime"),
    "DUSK": zipf(0.5, "dinner / sunset / bedtime / it was dark / the moon rose"),
    "EVERY": zipf(0.5, "day / morning / evening / week"),
    "LONG": zipf(0.5, "two weeks / many days / a month / a long time"),
    "TIMES": zipf(0.5, "three / ten / five / a hundred"),
    "RAINED": zipf(0.5, "rained all day / was too cold / snowed"),
    "SPOT": zipf(
        0.5, "under the bed / behind the barn / near the fence / by the stairs / in the garden / next to the well"
    ),
    "HOME": zipf(
        0.5,
        "by the sea / near the forest / in a small village / on a hill / beside the mill / at the end of the road"
        " / in a tall house",
    ),
    "HOOK": zipf(0.5, "on a hook / over the bed / on the door / by the window / on a chair"),
    "WATER": zipf(0.5, "pond / river / road / bridge"),
    "GOAL": zipf(0.5, "old oak / bridge / lake / big rock / windmill"),
    "PERCH": zipf(0.5, "into a tree / onto the roof / up a pole / over a high wall"),
    # What is said
    "WAIT": zipf(0.5, "Be patient / Good things take time / Give it one more week"),
    "ADVICE": zipf(0.5, "Try it slowly / Do not give up / I could not do it at first / Watch me"),
    "LESSON_LOST": ["", " Those who keep looking will find."],
    "LESSON_HELP": [(2, ""), (1, " Helping others feels good."), (1, " A friend in need is never alone.")],
    "LESSON_GIFT": ["", " The best gifts are made by hand."],
    "LESSON_RACE": ["", " It is not good to boast."],
    "LESSON_FEAR": ["", " Most fears are small in the light."],
    "LESSON_WAIT": ["", " Patience makes things grow."],
    "LESSON_TRUTH": ["", " The truth is lighter to carry."],
    "LESSON_COOK": ["", " Even a mistake can be fun."],
    "LESSON_LEARN": ["", " Every master was once a beginner."],
    "LESSON_TRADE": ["", " What you love has no price."],
    "LESSON_RAIN": ["", " A rainy day can be a gift."],
    "LESSON_SHY": ["", " One kind question can start a friendship."],
    "LESSON_LISTEN": ["", " Good advice lights the way."],
    "LESSON_WISH": ["", " Some wishes come true in another way."],
}
STORIES = Grammar(RULES)

# %% tags=["nbval-check-output"]
for seed in range(3):
    print(STORIES.sample(seed), end="\n\n")
print(f"{STORIES.count():.2e} different stories from {len(STORIES.visits())} choices")
print(f"{STORIES.entropy():.3f} nats and {STORIES.mean_bytes():.1f} bytes a story")

# %% [markdown]
# The entropy is exact, but is it true? Ask the reader: $-\ln p$ of sampled stories must average to it. This compares two programs that share only the options of each choice: one sums over choices, the other
# follows a given text. One thing more is owed: that no story can be told in two ways. `logprob` adds up *all* derivations, so
# walk through each story's text and count them.

# %% tags=["nbval-check-output"]
import statistics

costs = [-STORIES.logprob(STORIES.sample(seed)) for seed in range(1500)]
error = statistics.stdev(costs) / math.sqrt(len(costs))
off = (statistics.mean(costs) - STORIES.entropy()) / error
print(f"mean cost of 1,500 stories is within 3 standard errors of the entropy: {abs(off) < 3}")


def ways(text: str) -> int:
    """In how many ways the grammar can tell a story."""
    found, todo = 0, [(0, (STORIES.start,))]  # position in the text, and what is still to come
    while todo:
        at, items = todo.pop()
        if not items:
            found += at == len(text)
        elif not isinstance(items[0], str):
            todo += [(at, option + items[1:]) for _, option in items[0].options]
        elif text.startswith(items[0], at):
            todo.append((at + len(items[0]), items[1:]))
    return found


print(f"each of 150 stories can be told in one way only: {all(ways(STORIES.sample(seed)) == 1 for seed in range(150))}")

# %% [markdown]
# These stories are templates, not language: about ten times easier to predict than English, and without its endless tail of rare words. What they do have is what makes language modelling hard
# to cheat at: facts that must be carried from the first sentence to the last.
#
# ## Words before tokens
#
# To a model, text is a list of integers. Which? **Characters** make lists too long; **words** cannot spell what they have never seen. GPT-2's answer lies between. Start from the 256 bytes, so
# that any text can be written, and add the pieces that occur most often. First the text is cut, so that no token ever crosses from one word into the next:

# %%
#| export tokenizer
"""Byte-pair encoding: trained here or GPT-2's, behind one fast encoder.

`get_tokenizer("gpt2")`, `get_tokenizer("stories")` or `get_tokenizer(path)` gives a `Tokenizer`; `train_bpe` makes the
ranks of a new one.
"""

import base64
import contextlib
import functools
import hashlib
import heapq
import itertools
import os
import tempfile
import threading
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Set
from pathlib import Path
from typing import Literal

import regex
import tiktoken

from slm import stories

# GPT-2's words: a contraction's tail; letters, digits or other signs, each with a space before it; or white space
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
END_OF_TEXT = "<|endoftext|>"
RANKS_FILE = "tokenizer.tiktoken"

# %% tags=["nbval-check-output"]
print(regex.findall(PATTERN, "Nell's 12 kites  flew: up, up!"))

# %% [markdown]
# ## Merges
#
# Then merge. Count all pairs of neighbours inside words, join the most frequent pair everywhere, and repeat: that is the whole of byte-pair encoding (Sennrich et al. 2016). Each
# merge adds one token to the vocabulary (unless its bytes are one already). Written down as it is said:

# %%
#| export tokenizer
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


# %%
def most_frequent_pair(words: list[list[bytes]], times: list[int]) -> Pair:
    counts: Counter[Pair] = Counter()
    for parts, n in zip(words, times, strict=True):
        for pair in itertools.pairwise(parts):
            counts[pair] += n
    return min(counts, key=lambda pair: (-counts[pair], pair))  # of equally frequent pairs the first in byte order


def train_by_recounting(texts: Iterable[str], vocab_size: int) -> dict[bytes, int]:
    times_of = Counter(word for text in texts for word in regex.findall(PATTERN, text))
    words = [[bytes([byte]) for byte in word.encode()] for word in times_of]
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < vocab_size - 1:  # one id is kept for the end of text
        pair = most_frequent_pair(words, list(times_of.values()))
        ranks.setdefault(pair[0] + pair[1], len(ranks))
        words = [merge(parts, pair) for parts in words]
    return ranks


texts = [STORIES.sample(seed) for seed in range(300)]
slow = train_by_recounting(texts, 400)
print([token.decode() for token in list(slow)[256:276]])

# %% [markdown]
# ## Why incremental
#
# Recounting looks at every word for every merge, though a merge changes only the words that hold the pair, a small part of them. So keep the counts, remember which words hold
# which pair, and after a merge correct only what moved. The most frequent pair comes from a heap; a heap can't change an entry, so a pair whose count moved is pushed anew, and an
# entry that no longer tells the truth is thrown away when it comes up.


# %%
#| export tokenizer
def train_bpe(texts: Iterable[str], vocab_size: int) -> dict[bytes, int]:
    """Train a byte-pair encoding over the bytes of GPT-2's words (Sennrich et al. 2016; Radford et al. 2019).

    Args:
        texts: Any number of texts. Each is read once; only the different words are kept.
        vocab_size: Number of tokens: 256 bytes, the merges, and the end of text, which has the last id.

    Returns:
        The rank of each token's bytes, without the end of text. Of equally frequent pairs the first in the order of
        bytes is merged first, so the same texts give the same ranks, in whatever order they come.

    Raises:
        ValueError: The size is below 257, or the texts have too few different pairs to reach it.
    """
    if vocab_size < 257:
        raise ValueError(f"vocab_size is {vocab_size}; it must be at least 257: the 256 bytes and the end of text")
    times_of = Counter(word for text in texts for word in regex.findall(PATTERN, text))
    times = list(times_of.values())
    words = [[bytes([byte]) for byte in word.encode("utf-8", "replace")] for word in times_of]
    counts: dict[Pair, int] = defaultdict(int)  # how often a pair stands in the texts
    holders: dict[Pair, set[int]] = defaultdict(set)  # the words that hold it, or once did
    for index, parts in enumerate(words):
        for pair in itertools.pairwise(parts):
            counts[pair] += times[index]
            holders[pair].add(index)
    heap = [(-n, pair) for pair, n in counts.items()]
    heapq.heapify(heap)

    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < vocab_size - 1:
        if not heap:
            raise ValueError(f"vocab_size is {vocab_size}, but these texts give {len(ranks) + 1} tokens at most")
        n, best = heapq.heappop(heap)
        if -n != counts[best] or not n:
            continue  # outdated: its pair was pushed anew, or is gone
        ranks.setdefault(best[0] + best[1], len(ranks))  # a pair that spells a known token would add none
        moved: set[Pair] = set()
        for index in holders.pop(best):
            before, words[index] = words[index], merge(words[index], best)
            for pair in itertools.pairwise(before):
                counts[pair] -= times[index]
                moved.add(pair)
            for pair in itertools.pairwise(words[index]):
                counts[pair] += times[index]
                holders[pair].add(index)
                moved.add(pair)
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


print("same ranks:", train_bpe(texts, 400) == slow)
slow_time = seconds(lambda: train_by_recounting(texts, 700))
fast_time = seconds(lambda: train_bpe(texts, 700))
print(
    f"to vocabulary 700: recounting {slow_time:.2f} s, incremental {fast_time:.2f} s, {slow_time / fast_time:.0f} times as fast"
)

# %% [markdown]
# Why does it pay so much? Joining a pair makes a word one part shorter, so a word of $n$ bytes can change $n - 1$ times at most, however many merges there are. Recounting looks at every word at every
# merge, and nearly always finds it as it was:

# %% tags=["nbval-check-output"]
words = {word.encode() for text in texts for word in regex.findall(PATTERN, text)}
print(
    f"{len(words):,} different words, {700 - 257:,} merges: recounting looks at a word {len(words) * (700 - 257):,} times"
)
print(f"a word can change at most {sum(len(word) - 1 for word in words):,} times in all")

# %% [markdown]
# The gap widens with the number of merges and of different words: `benchmarks/train_bpe.py` times both on a megabyte of English. Now watch merges build a story. A box is a token; coloured are those that the
# row above did not know.

# %% tags=["hide-input"]
from course.figures.chapter_04 import story_growing

ranks = train_bpe((STORIES.sample(seed) for seed in range(2000)), 1024)
story_growing(story[: story.index(".", 90) + 1], ranks, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, len(ranks) - 256])

# %% [markdown]
# ## Encoding
#
# To encode, replay history: of all neighbours that form a token, join those of the lowest rank first, because that is the order in which training joined them. Greedily taking the longest
# token would be another encoding, one that the model never saw.


# %%
#| export tokenizer
def encode_word(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Token ids of one word, by replaying the merges: what `Tokenizer` does, slowly."""
    parts = [bytes([byte]) for byte in word]
    while len(parts) > 1:
        rank, i = min((ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(itertools.pairwise(parts)))
        if rank == len(ranks):
            break  # no two neighbours form a token
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


# %% [markdown]
# In Python that is too slow for a corpus. `tiktoken` does the same in Rust and takes any ranks: ours, or GPT-2's. We change one
# habit of it. `<|endoftext|>` is a single token that ends a document, and a document that merely *writes* it must not end itself, so our `encode` takes special tokens in a text as
# text. And since the special token always has the id after the last rank, a file of ranks is all that there is to save.


# %%
#| export tokenizer
class Tokenizer(tiktoken.Encoding):
    """A byte-pair encoding over GPT-2's words with one special token, the end of text.

    Args:
        name: What to call it.
        ranks: The rank of each token's bytes: all 256 bytes and the merges, numbered from 0. The end of text is next.

    `encode` takes special tokens in a text as text; tiktoken's other methods do with `disallowed_special=()`.
    """

    def __init__(self, name: str, ranks: dict[bytes, int]) -> None:
        super().__init__(name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)})
        self.ranks = ranks

    def __reduce__(self) -> tuple[type, tuple[str, dict[bytes, int]]]:
        return Tokenizer, (self.name, self.ranks)  # how another process gets its copy

    def encode(
        self,
        text: str,
        *,
        allowed_special: Literal["all"] | Set[str] = frozenset(),
        disallowed_special: Literal["all"] | Collection[str] = (),
    ) -> list[int]:
        """Token ids of a text. What looks like a special token is text, unless `allowed_special` names it."""
        return super().encode(text, allowed_special=allowed_special, disallowed_special=disallowed_special)

    def ranks_file(self) -> bytes:
        """The ranks in tiktoken's format: for each token a line with its bytes in base64 and its rank."""
        return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in self.ranks.items())

    @property
    def fingerprint(self) -> str:
        """A short hash of the ranks: tokenizers are equal if and only if theirs are, whatever their names."""
        ordered = sorted(self.ranks.items(), key=lambda item: item[1])
        return hashlib.sha256(repr(ordered).encode()).hexdigest()[:16]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a `.tiktoken` file, or `tokenizer.tiktoken` into a folder; returns the file's path."""
        file = Path(path)
        file = file if file.suffix == ".tiktoken" else file / RANKS_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        unfinished.write_bytes(self.ranks_file())
        unfinished.replace(file)
        return file


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read what `Tokenizer.save` wrote: a `.tiktoken` file, or a folder that holds one.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file does not hold ranks, or not all of them.
    """
    file = Path(path)
    file = file / RANKS_FILE if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"there is no tokenizer at {file}: say 'gpt2', 'stories', or where one was saved")
    try:
        lines = [line.split() for line in file.read_bytes().splitlines()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except ValueError:
        raise ValueError(f"{file} is no tokenizer: a line is not a token in base64 and its rank") from None
    whole = sorted(ranks.values()) == list(range(len(lines))) and all(bytes([byte]) in ranks for byte in range(256))
    if not whole:
        raise ValueError(f"{file} is damaged: it must hold all 256 bytes, and every rank from 0 on once")
    return Tokenizer(file.parent.name if file.name == RANKS_FILE else file.stem, ranks)


# %% [markdown]
# Both encoders must agree on whatever people type: emoji, control characters, words of a thousand letters, special tokens in the text.

# %% tags=["nbval-check-output"]
tokenizer = Tokenizer("stories", ranks)
alphabet = [
    *"abc deE tnz'",
    "Nell",
    " grandma",
    "\n",
    "\t",
    "\0",
    "é",
    "日本",
    "🦊",
    "👩‍🚀",
    "\u200b",
    "1234",
    "<|endoftext|>",
    "x" * 1000,
    "'s",
    "  ",
]
rng = random.Random(0)
fuzz = ["".join(rng.choices(alphabet, k=rng.randrange(1, 30))) for _ in range(400)]
slowly = [[i for word in regex.findall(PATTERN, text) for i in encode_word(word.encode(), ranks)] for text in fuzz]
{
    "equal to tiktoken": slowly == [tokenizer.encode(text) for text in fuzz],
    "decoding gives the text back": all(tokenizer.decode(tokenizer.encode(text)) == text for text in fuzz),
    "no text becomes the special token": all(tokenizer.eot_token not in tokenizer.encode(text) for text in fuzz),
}

# %% [markdown]
# ## Three tokenizers, one door
#
# `get_tokenizer("stories")` trains ours on the first stories in less than a second, so there is no file that could be lost or out of date. `get_tokenizer("gpt2")` reads GPT-2's
# published ranks. They are fetched once and cached; without a network you should learn that in a second rather than after minutes of retries, so it knocks at the door first. A path
# reads a saved one.

# %%
#| export tokenizer
STORIES_VOCAB_SIZE = 1024
STORIES_SAMPLE = 2000  # how many stories it is trained on
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_FILES = ("vocab.bpe", "encoder.json")
KNOCK_SECONDS = 1.0


class TokenizerUnavailable(RuntimeError):
    """GPT-2's vocabulary is not on this machine and cannot be fetched."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"GPT-2's vocabulary is not on this machine, and {reason}: set TIKTOKEN_CACHE_DIR to a folder that has it,"
            " or use the vocabulary of the stories (tokenizer: stories)"
        )


def _gpt2_is_cached() -> bool:
    """Whether both files lie where tiktoken looks for them, each named by the SHA-1 of its address."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    names = [hashlib.sha1((GPT2_URL + file).encode()).hexdigest() for file in GPT2_FILES]
    return all(os.path.exists(os.path.join(folder, name)) for name in names)


def _answers(url: str) -> bool:
    """Whether a server answers soon. Asked in a thread, since looking up an address knows no time limit."""
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError):  # no network, no such server, too late
            try:
                urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=KNOCK_SECONDS).close()
            except urllib.error.HTTPError:
                pass  # a refusal is an answer, too
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(KNOCK_SECONDS)
    return answered.is_set()


@functools.cache
def _gpt2() -> Tokenizer:
    if not _gpt2_is_cached() and not _answers(GPT2_URL + GPT2_FILES[0]):
        raise TokenizerUnavailable("its server does not answer")
    try:
        return Tokenizer("gpt2", tiktoken.get_encoding("gpt2")._mergeable_ranks)
    except (OSError, ValueError) as error:
        raise TokenizerUnavailable(f"fetching it failed ({error})") from error


@functools.cache
def _stories() -> Tokenizer:
    return Tokenizer("stories", train_bpe(map(stories.sample, range(STORIES_SAMPLE)), STORIES_VOCAB_SIZE))


def get_tokenizer(name: str | os.PathLike[str] = "gpt2") -> Tokenizer:
    """A tokenizer by name.

    Args:
        name: "gpt2" (50,257 tokens), "stories" (1,024), or the path of a saved one: its file, or the file's folder.

    Raises:
        TokenizerUnavailable: "gpt2" is neither cached nor within reach.
        FileNotFoundError: There is no tokenizer at the path.
        ValueError: The file there is none.
    """
    known: dict[str | os.PathLike[str], Callable[[], Tokenizer]] = {"gpt2": _gpt2, "stories": _stories}
    return known[name]() if name in known else load_tokenizer(name)


# %% tags=["nbval-check-output"]
tokenizer = get_tokenizer("stories")
print(tokenizer.n_vocab, "tokens, end of text is", tokenizer.eot_token)
print([tokenizer.decode([i]) for i in tokenizer.encode(STORIES.sample(0))[:16]])

# %% [markdown]
# How large should a vocabulary be? Every token more shortens the texts, and costs a row of the embedding. On stories the curve flattens steadily, as ever rarer words have
# become single tokens; on text in general it never quite does.

# %% tags=["hide-input"]
from course.figures.chapter_04 import vocabulary_figure

vocabulary_figure([STORIES.sample(seed) for seed in range(2000)])

# %% [markdown]
# ## Four lines to read a loss against
#
# A model predicts tokens, so its loss is in nats *per token*. Put the stories end to end, an end-of-text token before each, and ask what four ideal readers pay for a token. One knows nothing:
# $\ln V$. One knows the share $f_a$ of each token $a$: $-\sum_a f_a \ln f_a$. One also knows the token before, by the share $f_{ab}$ of each pair of neighbours: $-\sum_{ab} f_{ab} \ln (f_{ab} / f_a)$. And one
# knows the grammar: $H$ over the expected number of tokens.
#
# The frequencies are *expected* counts, and expectations add up, so they too are sums over choices, not estimates. One thing must hold: a story's tokens must be those of its
# pieces, one after the other. Pieces begin at spaces, which no token of ours spans, and `reference_lines` makes sure of it for every pair that can meet.


# %%
#| export
class Encoder(Protocol):
    """What `reference_lines` needs of a tokenizer."""

    @property
    def n_vocab(self) -> int: ...

    @property
    def eot_token(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class ReferenceLines:
    """What ideal readers of the stories pay, in nats per token; the end of text after a story counts as a token.

    Attributes:
        uniform: Who knows nothing: every token is as likely as any other.
        unigram: Who knows how frequent each token is.
        bigram: Who also knows the token before.
        floor: Who knows the grammar. On average over all stories no model can do better.
        tokens_per_story: Expected number of tokens of a story, its end included.
        bytes_per_story: Expected number of bytes of a story.
    """

    uniform: float
    unigram: float
    bigram: float
    floor: float
    tokens_per_story: float
    bytes_per_story: float

    def bits_per_byte(self, loss: float) -> float:
        """A loss in nats per token as bits per byte, which can be compared between tokenizers."""
        return loss * self.tokens_per_story / (self.bytes_per_story * math.log(2))


@course.add_to(Grammar)
def pieces(self) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """Expected number of each piece (a word with the space before it) in a story, and of each pair of neighbours.

    The piece "" is the end of text, which stands before and after a story.
    """
    texts: dict[str, float] = defaultdict(float)
    pairs: dict[tuple[str, str], float] = defaultdict(float)
    firsts: dict[str | Choice, dict[str, float]] = {}  # probability of an item's first piece; "" if it prints nothing
    lasts: dict[str | Choice, dict[str, float]] = {}
    visits = self.visits()
    for choice in reversed(visits):
        firsts[choice], lasts[choice] = defaultdict(float), defaultdict(float)
        for p, items in choice.options:
            last = {"": 1.0}  # of all items so far
            for item in items:
                if isinstance(item, str):
                    texts[item] += visits[choice] * p
                    firsts[item], lasts[item] = {_pieces(item)[0]: 1.0}, {_pieces(item)[-1]: 1.0}
                for (a, q), (b, r) in itertools.product(last.items(), firsts[item].items()):
                    if a and b:
                        pairs[a, b] += visits[choice] * p * q * r
                    elif b:
                        firsts[choice][b] += p * q * r
                nothing = firsts[item].get("", 0.0)
                last = {a: q * nothing for a, q in last.items()} if nothing else {}
                for b, r in lasts[item].items():
                    if b:
                        last[b] = last.get(b, 0.0) + r
            for a, q in last.items():
                lasts[choice][a] += p * q
            if "" in last:
                firsts[choice][""] += p * last[""]
    count: dict[str, float] = defaultdict(float, {"": 1.0})
    for text, times in texts.items():
        for piece in _pieces(text):
            count[piece] += times
        for pair in itertools.pairwise(_pieces(text)):
            pairs[pair] += times
    for b, r in firsts[self.start].items():
        pairs["", b] += r
    for a, q in lasts[self.start].items():
        if a:
            pairs[a, ""] += q
    return count, pairs


def _pieces(text: str) -> list[str]:
    """Cut a text before each space."""
    return re.split("(?<!^)(?= )", text)


@course.add_to(Grammar)
def reference_lines(self, tokenizer: "Encoder") -> "ReferenceLines":
    """What ideal readers pay for each token of a tokenizer, exactly.

    Raises:
        ValueError: A token can span two pieces, so that token counts do not follow from those of pieces.
    """
    count, pairs = self.pieces()
    tokens = {piece: tokenizer.encode(piece) if piece else [tokenizer.eot_token] for piece in count}
    follows: dict[tuple[int, int], float] = defaultdict(float)  # expected number of each pair of tokens
    for piece, times in count.items():
        for pair in itertools.pairwise(tokens[piece]):
            follows[pair] += times
    for (a, b), times in pairs.items():
        if a and b and tokenizer.encode(a + b) != tokens[a] + tokens[b]:
            raise ValueError(f"{a + b!r} is not tokenised as {a!r} and {b!r} are, so there is no exact count of tokens")
        follows[tokens[a][-1], tokens[b][0]] += times
    times_of: dict[int, float] = defaultdict(float)  # expected number of each token
    for (a_id, _), times in follows.items():
        times_of[a_id] += times
    total = math.fsum(times_of.values())
    return ReferenceLines(
        uniform=math.log(tokenizer.n_vocab),
        unigram=-math.fsum(n * math.log(n / total) for n in times_of.values()) / total,
        bigram=-math.fsum(n * math.log(n / times_of[a_id]) for (a_id, _), n in follows.items()) / total,
        floor=self.entropy() / total,
        tokens_per_story=total,
        bytes_per_story=self.mean_bytes(),
    )


# %% [markdown]
# The package offers all of this for the course's stories as plain functions.


# %% tags=["hide-input"]
#| export
def sample(seed: int) -> str:
    """The story of this number: the same seed gives the same story on every machine."""
    return STORIES.sample(seed)


def entropy() -> float:
    """Entropy of a story in nats, exact."""
    return STORIES.entropy()


def count() -> int:
    """How many different stories there are."""
    return STORIES.count()


def mean_bytes() -> float:
    """Bytes of a story on average, exact."""
    return STORIES.mean_bytes()


def logprob(text: str) -> float:
    """Log-probability of a whole story in nats, -inf for any other text."""
    return STORIES.logprob(text)


def accepts(text: str) -> bool:
    """Whether the text is a whole story of the grammar."""
    return STORIES.accepts(text)


def surprisal(text: str) -> list[float]:
    """-ln P(character | all before it) in nats for each character, inf from the first impossible one on."""
    return STORIES.surprisal(text)


def reference_lines(tokenizer: Encoder) -> ReferenceLines:
    """What ideal readers of the stories pay for each token of a tokenizer, in nats, exactly."""
    return STORIES.reference_lines(tokenizer)


# %% [markdown]
# Four vocabularies, and the same floor. Per token it rises with the vocabulary, since fewer tokens share the surprise; in bits per byte it is one number, a property of the stories. Compare models
# with different tokenizers in bits per byte, never in nats per token.

# %% tags=["nbval-check-output"]
print(
    f"{'vocabulary':>10} {'tokens':>8} {'uniform':>8} {'unigram':>8} {'bigram':>8} {'floor':>8}   floor in bits per byte"
)
texts = [STORIES.sample(seed) for seed in range(2000)]
for vocab_size in (257, 400, 600, 1024):
    lines = reference_lines(Tokenizer("sized", train_bpe(texts, vocab_size)))
    print(
        f"{vocab_size:10} {lines.tokens_per_story:8.2f} {lines.uniform:8.3f} {lines.unigram:8.3f} {lines.bigram:8.3f} {lines.floor:8.3f}   {lines.bits_per_byte(lines.floor):.4f}"
    )

# %% [markdown]
# ## Is it right?
#
# The lines are the standard by which the trainer will be judged, so they had better be straight. On the napkin everything can be listed: write down all sixteen stories, weigh them, count tokens and pairs.


# %% tags=["nbval-check-output"]
def listed_lines(probabilities: dict[str, float], tokenizer: Tokenizer) -> tuple[float, float, float]:
    """Unigram, bigram and floor from a list of all stories."""
    pairs: Counter[tuple[int, int]] = Counter()
    for text, p in probabilities.items():
        ids = [tokenizer.eot_token, *tokenizer.encode(text), tokenizer.eot_token]
        for pair in itertools.pairwise(ids):
            pairs[pair] += p
    singles: Counter[int] = Counter()
    for (a, _), n in pairs.items():
        singles[a] += n
    total = sum(singles.values())
    unigram = -sum(n * math.log(n / total) for n in singles.values()) / total
    bigram = -sum(n * math.log(n / singles[a]) for (a, _), n in pairs.items()) / total
    return unigram, bigram, -sum(p * math.log(p) for p in probabilities.values()) / total


lines = Grammar(napkin).reference_lines(tokenizer)
hero = " " + next(row[0] for _, row in STORIES.rows["HERO"] if row[0] in story)
{
    "lines of the napkin equal the listed ones": all(
        math.isclose(a, b)
        for a, b in zip((lines.unigram, lines.bigram, lines.floor), listed_lines(by_hand, tokenizer), strict=True)
    ),
    "character surprisals sum to the story's": math.isclose(
        sum(slm.stories.surprisal(story)), -slm.stories.logprob(story)
    ),
    "a story is accepted, and no longer with another hero at its end": slm.stories.accepts(story)
    and not slm.stories.accepts(" Ada".join(story.rsplit(hero, 1))),
    "uniform > unigram > bigram > floor": (line := reference_lines(tokenizer)).uniform
    > line.unigram
    > line.bigram
    > line.floor,
}

# %% [markdown]
# ## Exercises
#
# Each check runs your own code; nothing is compared with a hidden answer.
#
# **1. One merge.** The step that, repeated, makes a vocabulary. `words` maps words, as tuples of parts, to how often they occur. Find the most frequent pair (of equals the smaller pair: first parts first, in byte
# order), join it everywhere, and return the new words.

# %% tags=["exercise"]
from course import check


def my_merge_step(words: dict[tuple[bytes, ...], int]) -> dict[tuple[bytes, ...], int]:
    """The words after the most frequent pair of neighbours was joined."""
    raise NotImplementedError("your turn")


check.merge_step(my_merge_step)

# %% [markdown]
# <details><summary>Solution</summary>
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
#     return {tuple(merge(list(parts), best)): times for parts, times in words.items()}
# ```
# </details>
#
# **2. The way back.** Write `decode`: ids to text, for our ranks. Mind the characters whose bytes are spread over several tokens, the halves of them that a model may write, and the id
# after the last rank.


# %% tags=["exercise"]
def my_decode(ids: list[int], ranks: dict[bytes, int]) -> str:
    """The text of token ids."""
    raise NotImplementedError("your turn")


check.decode(my_decode)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_decode(ids, ranks):
#     token = {rank: text for text, rank in ranks.items()} | {len(ranks): b"<|endoftext|>"}
#     return b"".join(token[i] for i in ids).decode("utf-8", errors="replace")
# ```
# </details>
#
# **3. A plot of your own.** Add one more. It begins with a space, speaks of `{hero}`, and may draw and call whatever the other rules offer: `{friend=HERO-hero}` (anyone but the hero),
# `{toy=TOY}`, `{DAY}`, `{SAD}`. The check tells you what it did to the entropy, which may well *fall* although there are more stories: a plot with few choices takes its probability from plots with many.


# %% tags=["exercise"]
def my_plot(rules: dict) -> dict:
    """The rules with one plot more."""
    raise NotImplementedError("your turn")


check.new_plot(my_plot)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_plot(rules):
#     boat = " {DAY}, {hero} built a boat and sailed to the {goal=GOAL}{goal} with {friend=HERO-hero}{friend}. At the {goal}, {friend} felt {GLAD}."
#     return {**rules, "PLOT": [*rules["PLOT"], (0.5, "{BOAT}")], "BOAT": [boat]}
# ```
# </details>
#
# ## What you have now
#
# A corpus whose every probability you know, a tokenizer trained on it, and the lines against which all later losses will be read.

# %%
course.summary("slm/stories.py", "slm/tokenizer.py")
