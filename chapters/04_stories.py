# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/data/grammar.py
#     - slm/data/stories.py
# ---

# %% [markdown]
# # Stories
#
# The text from which this course's models learn is told by a machine, and you write the
# machine: a grammar with holes, lines that can fill them, and a probability for each
# line. The same number gives the same story on every computer, and a story remembers
# what was drawn for it.
#
# It exports `slm/data/grammar.py` (the machine) and `slm/data/stories.py` (what it
# tells).

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% [markdown]
# ## The idea
#
# Why not simply download some English? You can, and [a later chapter](#corpora) reads
# any text that you have. But of English nobody knows how predictable it is. When a
# model's loss has come down to 1.2 and stays there, is it stupid, or is the rest
# chance? With text whose every choice we made ourselves, that question has an answer,
# and [the floor](#floor) works it out to the last digit.
#
# So the text has to come from a process that we know completely, and still hold what
# makes language hard: facts that are told once and needed again, sentences later. Here
# is a story from [the end](#stories/the-rules) of this chapter ({numref}`fig-choices`).

# %% mystnb={"code_prompt_show": "Draw the story with its choices marked", "figure": {"caption": "A story and what chance chose in it. Grey: chosen once. In colour: drawn once, remembered, and told again in the same colour.", "name": "fig-choices"}, "image": {"alt": "A story of a few sentences in which pieces of the text have a coloured background. The name of the child, \"She\" and \"her\" share one colour; a piece of clothing, the thing that broke, and its owner have one each and come back later in the same colour. Places, moods and times are grey."}} tags=["hide-input"]
from course.figures.stories import choices_marked
from slm.data.stories import RULES as finished_rules

choices_marked(finished_rules, seed=11)

# %% [markdown]
# What is not marked is the frame: how a story begins, one of fifteen plots, how it
# ends. What is grey was chosen at that very place and never mattered again. What is
# coloured was drawn once, *before* it was first needed, and then told in several forms:
# a name, what its bearer is, "she" and "her". Once its forms have been told, a reader
# who pays attention knows it.
#
# ## A grammar that fits on a napkin
#
# A story is grown from rules, beginning with STORY. `{MOOD}` stands for any line of the
# rule MOOD. `{pet=PET}` *draws* a line of PET: it prints nothing, but from there on
# `{pet}` prints its first column and `{pet.he}` the column `he` (`{pet.He}` begins it
# with a capital). `{b=SPOT-a}` draws any line of SPOT but a's. A line is a text, or a
# weight and a text; the columns of a line are separated by `|`, and the rule's key
# names them.

# %%
napkin = {
    "STORY": ["{pet=PET}{pet} the {pet.kind}{VERY} {MOOD}. {pet.He} {MOOD}."],
    "PET name kind he": [(3, "Tim|cat|he"), (1, "Sue|dog|she")],
    "VERY": [(2, ""), (1, " often")],
    "MOOD": ["naps", "sings"],
}

# %% [markdown]
# By hand: two pets, two frequencies, two moods, and two moods again make sixteen
# stories. A line's probability is its weight over the weights of all lines of its rule,
# and a story's is the product of four such numbers, because each choice is made without
# looking at the others.

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
for text in list(by_hand)[:3]:
    print(f"{by_hand[text]:.4f}  {text}")
print(f"{sum(by_hand.values()):.4f}  all {len(by_hand)} together")

# %% [markdown]
# ## Telling, naively
#
# To tell a story, find the first slot in the text, put something into its place, and go
# on until no slot is left. Where the slot is a rule, a line is drawn by weight; where
# it draws, the line goes into a table and nothing is printed; where it names something
# drawn before, the table knows what to print. Python's own `random` does the drawing,
# and a generator that starts from the same seed draws the same numbers everywhere.


# %%
import random
import re


def tell(rules: dict, seed: int) -> str:
    rng, drawn, text = random.Random(seed), {}, "{STORY}"
    rows = {key.split()[0]: (key.split()[1:] or ["name"], rules[key]) for key in rules}
    slots = re.compile(r"\{(\w+)(?:=(\w+)(?:-(\w+))?)?(?:\.(\w+))?\}")
    while slot := slots.search(text):
        name, source, other, column = slot.groups()
        if name.isupper() or source:  # a rule's line is drawn
            columns, lines = rows[source or name]
            lines = [(1, line) if isinstance(line, str) else line for line in lines]
            table = [dict(zip(columns, x.split("|"), strict=True)) for _, x in lines]
            same = [row == drawn.get(other) for row in table]  # as the other one
            weights = [0 if s else w for (w, _), s in zip(lines, same, strict=True)]
            [row] = rng.choices(table, weights)
            printed = "" if source else row[columns[0]]
            drawn |= {name: row} if source else {}
        else:  # what was drawn before is printed
            row, wanted = drawn[name.lower()], (column or "name")
            printed = row[wanted.lower()]
            if (column or name)[0].isupper():
                printed = printed[0].upper() + printed[1:]
        text = text[: slot.start()] + printed + text[slot.end() :]
    return text


for seed in range(3):
    print(tell(napkin, seed))

# %% [markdown]
# ### Exercise 1: the die
#
# `rng.choices` draws by weight. It is the one operation behind every story, and a
# trained model draws its words by weight, too. Write it yourself, without `bisect`:
# given the weights of the lines (positive, of any sum) and a number $0 \le u < 1$,
# return the index of the line that is taken. The line with weight $w_i$ must be taken
# for exactly the share $w_i / \sum w$ of all $u$, and the lines follow each other in
# their order: $u = 0$ takes the first, and a $u$ on the border of two the second of
# them.


# %% tags=["exercise"]
from course import check


def my_pick(weights: list[float], u: float) -> int:
    """The index of the line that the number u takes."""
    raise NotImplementedError("your turn")


check.pick(my_pick)

# %% [markdown]
# What the check says to a typical wrong answer, which takes the weights as they are:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def forgets_the_sum(weights: list[float], u: float) -> int:
    running = list(itertools.accumulate(weights))
    return next((i for i, total in enumerate(running) if u < total), len(weights) - 1)


check.pick(forgets_the_sum)

# %% [markdown]
# <details><summary>Solution: <code>my_pick</code></summary>
#
# ```python
# def my_pick(weights, u):
#     u *= sum(weights)
#     for i, weight in enumerate(weights):
#         u -= weight
#         if u < 0:
#             return i
#     return len(weights) - 1  # u was so near to 1 that rounding let it through
# ```
# </details>

# %% [markdown]
# ## What telling leaves out
#
# `tell` tells stories, and nothing else. It cannot say what *could* have come at some
# place, so no probability can be read off it. It finds a mistake in the rules only in
# the rare story that stumbles on it. And it starts from bare text every
# time. What we need is an object that holds the whole process, to walk around in.
#
# The next three sections build it. Its code is folded, as *given*: at a first reading
# take from each what the object holds, and go on with [A story, and what was drawn for
# it](#stories/a-story-and-what-was-drawn-for-it).
#
# ## Choices
#
# The object is made of one kind of part. A `Choice` is a place where chance enters. It
# holds the text from there on, `template`, whose first slot is what is chosen, and
# `drawn`, what the story remembers at that place. From the two follow the lines that
# can be drawn (`rows`) and, for each, a probability with the texts and further choices
# that come then (`options`). Options are worked out when somebody first asks.
#
# Two details. Where `{b=SPOT-a}` leaves out a's line, the weights of the others are
# divided by *their* sum. And drawing from a list of probabilities $p_1, p_2, \ldots$
# takes one random number $u$ between 0 and 1: the first line whose running sum $p_1 +
# \ldots + p_i$ exceeds $u$ is taken. The sums never change, so they are kept in
# `cumulative`, where `random` finds the place by a binary search.

# %% mystnb={"code_prompt_show": "Imports, and what a rule, a line and a slot look like"} tags=["hide-input"]
#| export
"""A probabilistic grammar that remembers: rules become choices, each with known odds.

    Grammar({"STORY": ["{PET} naps."], "PET": ["Tim", "Sue"]}).sample(seed=7)
"""

import itertools
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

Row = tuple[str, ...]  # one line of a rule: its columns
Drawn = tuple[tuple[str, str, Row], ...]  # what was drawn: variable, rule and row
Lines = Sequence[str | tuple[float, str]]
# {RULE}, {x=RULE}, {x=RULE-y}, {x} and {x.column}
SLOT = re.compile(r"\{(\w+)(?:=(\w+)((?:-\w+)*)|\.(\w+))?\}")


# %% mystnb={"code_prompt_show": "Given: a choice, its lines and their probabilities (41 lines)"} tags=["hide-input"]
#| export
class Choice:
    """A place in a story where chance enters: what can come next, and how likely.

    Args:
        grammar: The grammar that it belongs to.
        template: The text from here on. It begins with a slot, or a space and a slot.
        drawn: What is remembered here, as far as the template looks at it.
    """

    def __init__(self, grammar: "Grammar", template: str, drawn: Drawn) -> None:
        self.grammar, self.template, self.drawn = grammar, template, drawn
        self.slot = next(SLOT.finditer(template))
        self.name = self.slot[1]  # the rule, or the variable that is drawn
        self.rule = self.slot[2] or self.name

    @cached_property
    def rows(self) -> list[tuple[float, Row]]:
        """The lines that can come, with their weights."""
        others = set((self.slot[3] or "").split("-")[1:])
        if unknown := others - {variable for variable, _, _ in self.drawn}:
            place = f"{self.slot[0]} must differ from {min(unknown)}"
            raise ValueError(f"{place}, but nothing was drawn for that before")
        taken = {row for variable, _, row in self.drawn if variable in others}
        rows = [line for line in self.grammar.rows[self.rule] if line[1] not in taken]
        if not rows:
            raise ValueError(f"{self.slot[0]}: every line of rule {self.rule} is taken")
        return rows

    @cached_property
    def options(self) -> tuple[tuple[float, "Items"], ...]:
        """For each row its probability and what follows then: texts and choices."""
        follow, total = self.grammar.follow, math.fsum(w for w, _ in self.rows)
        return tuple((w / total, follow(self, row)) for w, row in self.rows)

    @cached_property
    def cumulative(self) -> list[float]:
        """Running sums of the probabilities, to draw from."""
        return list(itertools.accumulate(p for p, _ in self.options))


Items = tuple[str | Choice, ...]


# %% [markdown]
# ## Reading the rules
#
# A grammar reads its rules at once, and checks their form while it does: a line with
# too few columns, a weight of zero, a brace left open, a rule that nobody wrote, a rule
# that leads back to itself. Each is told in a sentence that names the rule, before the
# first story. (What depends on earlier draws shows only on the way there: a variable
# that was never drawn, a column that it lacks, no line left to draw.)
#
# While it looks through the rules it notes, for each template, which variables the
# template and all rules below it look at (`_needed`). The reason is thrift. Suppose
# Tim's story and Sue's both come to a slot that mentions neither: both meet the same
# choice there, and one `Choice` serves both. So everything that a template does not
# look at is forgotten before the choice is looked up. Without this, each choice would
# exist once for every combination of what was drawn before it.


# %% mystnb={"code_prompt_show": "Given: the rules are read, and their form is checked (53 lines)"} tags=["hide-input"]
#| export
class Grammar:
    """A probabilistic grammar that remembers what it drew.

    Args:
        rules: For each rule its lines, each a template or a weight and a template. A
            key "PET name kind" names the columns of that rule's lines, separated by
            "|". In a template `{RULE}` stands for a line of that rule, `{x=RULE}` draws
            a line and prints nothing, `{x=RULE-y}` draws one that is not y's, `{x}` and
            `{x.column}` print what was drawn (`{Xx}` and `{x.Column}` with a capital).
        start: The rule from which a story grows.

    Attributes:
        columns: For each rule the names of its columns.
        rows: For each rule its lines, cut into columns, with their weights.
        start: The first choice of every story.

    Raises:
        ValueError: A rule is malformed, names what is not there, or leads to itself.
    """

    def __init__(self, rules: Mapping[str, Lines], start: str = "STORY") -> None:
        self.columns: dict[str, list[str]] = {}
        self.rows: dict[str, list[tuple[float, Row]]] = {}
        for key, lines in rules.items():
            self._read(key, lines)
        self._known: dict[tuple[str, Drawn], Choice] = {}
        self._looks_at: dict[str, frozenset[str]] = {}
        for rule in self.rows:
            self._needed("{" + rule + "}")
        self.start = self._choice("{" + start + "}", ())

    def _read(self, key: str, lines: Lines) -> None:
        """Check a rule's form, and keep its lines cut into columns."""
        rule, *columns = key.split()
        where = f"rule {rule}"
        if isinstance(lines, str):
            raise ValueError(f"{where}: its lines are one text; put them into a list")
        if rule in self.rows or not rule.isupper():
            raise ValueError(f"{where} must be in capitals, and there only once")
        if not lines:
            raise ValueError(f"{where} has no lines")
        self.columns[rule], self.rows[rule] = columns or ["name"], []
        for line in lines:
            weight, text = (1.0, line) if isinstance(line, str) else line
            row, n = tuple(text.split("|")), len(self.columns[rule])
            where = f"rule {rule}: {text!r}"
            if len(row) != n:
                raise ValueError(f"{where} has {len(row)} columns, but {n} are named")
            if not 0 < weight < math.inf:
                raise ValueError(f"{where} has weight {weight}, not above 0 and finite")
            if set("{}") & set(SLOT.sub("", text)):
                raise ValueError(f"{where} has a brace that belongs to no slot")
            self.rows[rule].append((weight, row))


# %% mystnb={"code_prompt_show": "Given: what a template and the rules below it look at (25 lines)"} tags=["hide-input"]
#| export
@course.add_to(Grammar)
def _needed(self, template: str, path: tuple[str, ...] = ()) -> frozenset[str]:
    """The variables that a template and all rules below it look at."""
    if template in self._looks_at:
        return self._looks_at[template]
    found: set[str] = set()
    for name, source, others, _ in SLOT.findall(template):
        found.update(others.split("-")[1:])
        if not name.isupper():
            found.add(name[0].lower() + name[1:])
        if not (source or name.isupper()):
            continue
        rule = source or name
        if rule not in self.rows:
            raise ValueError(f"{template!r} names the rule {rule}; there is none")
        if rule in path:
            way = " > ".join((*path, rule))
            raise ValueError(f"rule {rule} leads back to itself: {way}")
        for line in (column for _, row in self.rows[rule] for column in row):
            if source and "{" in line:
                draws = f"{{{name}={rule}}} draws {line!r}"
                raise ValueError(f"{draws}, but what is drawn must be plain text")
            found |= self._needed(line, (*path, rule))
    self._looks_at[template] = frozenset(found)
    return self._looks_at[template]


# %% [markdown]
# ## From a template to choices
#
# Three steps remain. `_print` puts in what was drawn, as far as it is known; other
# slots stay. `_items` cuts the rest at its slots into texts and choices. A rule's slot
# is a choice of its own, and the text behind it goes on as before; but all that stands
# behind a *draw* depends on it, so it becomes part of that choice. `follow` is the
# moment after the die has fallen: for a rule, its line is cut up; for a draw, the row
# is remembered and what stands behind it is cut up. What a rule draws is known in its
# own line and in the rules that the line calls, and forgotten where the line ends. (The
# naive teller forgets nothing; our stories never ask for more.)
#
# One detail pays off when [the floor](#floor/counting-tokens-without-listing-stories)
# counts tokens. A space before a slot moves into the choice, to the word that it
# belongs to: " naps" and not "naps". [Tokens](#tokens/first-words-are-cut) begin with
# their space, too.


# %% mystnb={"code_prompt_show": "Given: print what was drawn, cut at the slots, follow a line (64 lines)"} tags=["hide-input"]
#| export
@course.add_to(Grammar)
def _choice(self, template: str, drawn: Drawn) -> Choice:
    """The choice that a template begins with. Equal ones are one object."""
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
        columns = self.columns[rule]
        wanted = column[0].lower() + column[1:] if column else columns[0]
        if wanted not in columns:
            has = f"rule {rule} has only the columns {', '.join(columns)}"
            raise ValueError(f"{slot[0]}: {has}")
        text = row[columns.index(wanted)]
        capital = (column or name)[0].isupper()
        return text[:1].upper() + text[1:] if capital else text

    return SLOT.sub(replace, template)


@course.add_to(Grammar)
def _items(self, template: str, drawn: Drawn) -> Items:
    """Cut a template into texts and choices."""
    items: list[str | Choice] = []
    rest = self._print(template, drawn)
    while slot := SLOT.search(rest):
        if not slot[2] and not slot[1].isupper():
            place = f"{slot[0]} is printed in {template!r}"
            raise ValueError(f"{place}, but nothing was drawn for it before")
        text, behind = rest[: slot.start()], rest[slot.end() :]
        space = " " if text.endswith(" ") else ""
        # what stands behind a draw depends on it
        dependent = behind if slot[2] else ""
        choice = self._choice(space + slot[0] + dependent, drawn)
        items += [text.removesuffix(" "), choice]
        rest = "" if slot[2] else behind
    return tuple(item for item in (*items, rest) if item)


@course.add_to(Grammar)
def follow(self, choice: Choice, row: Row) -> Items:
    """The texts and choices that come after this row was drawn at a choice."""
    slot = choice.slot
    space, behind = choice.template[: slot.start()], choice.template[slot.end() :]
    if choice.name == choice.rule:
        return self._items(space + row[0], choice.drawn)
    kept = [entry for entry in choice.drawn if entry[0] != choice.name]
    drawn = tuple(sorted([*kept, (choice.name, choice.rule, row)]))
    return self._items(space + behind, drawn)


# %% [markdown]
# What does the napkin offer first? The rule STORY has one line, and that line begins
# with a draw. Each of its two options goes on with its own texts, and with choices in
# between (shown by the rule that they draw from):

# %% tags=["nbval-check-output"]
grammar = Grammar(napkin)
pet = grammar.start.options[0][1][0]
for p, items in pet.options:
    print(p, [item if isinstance(item, str) else f"<{item.rule}>" for item in items])
tim, sue = (items for _, items in pet.options)
print("after Tim and after Sue the same choice of a mood:", tim[2] is sue[2])

# %% [markdown]
# The last line is the thrift at work: a mood does not depend on the pet, so Tim's story
# and Sue's go through one and the same object.
#
# ## A story, and what was drawn for it
#
# Telling is now a walk: from the start, keep what is still to come on a stack; print
# texts, roll the die at choices. The seed *is* the story.
#
# The walk also writes down what it draws, as a triple of variable, rule and row (for a
# plain `{RULE}` the variable is the rule). It costs nothing here; from the bare text it
# would have to be searched for, by following every derivation. Whoever wants to *ask*
# for a story, and to check whether the answer is what was asked for, starts from these
# triples.


# %%
#| export
@dataclass(frozen=True)
class Story:
    """A story, and what was drawn for it.

    Attributes:
        text: The story.
        drawn: In the order of telling, each choice as (variable, rule, row). For a slot
            `{RULE}` the variable is the rule.
    """

    text: str
    drawn: Drawn


@course.add_to(Grammar)
def draw(self, seed: int) -> "Story":
    """The story of this number: the same seed gives the same story everywhere."""
    rng = random.Random(seed)
    texts: list[str] = []
    drawn: list[tuple[str, str, Row]] = []
    todo: list[str | Choice] = [self.start]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            texts.append(item)
            continue
        [index] = rng.choices(range(len(item.rows)), cum_weights=item.cumulative)
        drawn.append((item.name, item.rule, item.rows[index][1]))
        todo.extend(reversed(item.options[index][1]))
    return Story("".join(texts), tuple(drawn))


@course.add_to(Grammar)
def sample(self, seed: int) -> str:
    """The text of the story of this number."""
    return self.draw(seed).text


# %% tags=["nbval-check-output"]
story = grammar.draw(seed=2)
print(story.text)
for variable, rule, row in story.drawn[1:]:
    print(f"  {variable:6} from {rule:6} {' | '.join(row)}")

# %% [markdown]
# ## The rules
#
# Now the course's own stories. Most rules are weighted as words in a language are: by
# rank. The second is $2^{-s}$ times as frequent as the first, the third $3^{-s}$ times,
# and so on (Zipf's law). In English $s$ is near 1; here it is 0.4 to 0.7, so that the
# last lines still occur often enough to be learned. With equal weights no line of a
# rule would be common and none rare, and there would be no way to see a model learn the
# first before the second.


# %%
#| export data/stories
"""The course's stories: children's stories from a grammar, in any number.

    sample(seed=7)

The rules are data, `RULES`; `STORIES` is their grammar, and `STORIES.draw(seed)` also
says what was drawn. How predictable the stories are is worked out in `slm.data.floor`.
"""

from collections.abc import Mapping

from slm.data.grammar import Grammar, Lines


def weighted(weights: str, text: str) -> list[tuple[float, str]]:
    """The lines of a rule, separated by " / ", with these weights."""
    return list(zip(map(float, weights.split()), text.split(" / "), strict=True))


def zipf(exponent: float, text: str) -> list[tuple[float, str]]:
    """The lines of a rule, separated by " / ", with weights 1 / rank**exponent."""
    lines = enumerate(text.split(" / "), 1)
    return [(1 / rank**exponent, line) for rank, line in lines]


def zipf_rules(exponent: float, texts: Mapping[str, str]) -> dict[str, Lines]:
    """Several rules of that kind: for each key its lines in one text."""
    return {key: zipf(exponent, text) for key, text in texts.items()}


# %% tags=["nbval-check-output"]
from slm.data.stories import zipf

[(round(weight, 3), line) for weight, line in zipf(0.5, "kite / ball / drum")]

# %% [markdown]
# The rules are folded below, 230 lines in five cells. Open the first: it shows how a
# story begins, that every story then gets one of fifteen plots, and how it ends. Open
# one plot and follow a variable through it; the rest are lists to leaf through.
# Extending them is an exercise.

# %% mystnb={"code_prompt_show": "Rules: how a story begins and ends (36 lines)"} tags=["hide-input"]
#| export data/stories
# what stands between two texts wherever one follows the other
END_OF_TEXT = "<|endoftext|>"

# How a story begins, goes on and ends
RULES: dict[str, Lines] = {
    "STORY": weighted(
        "6 3 2 2 1",
        "Once upon a time, there was a {ADJ} {hero=HERO}{hero.kind} named {hero}."
        " {hero.He} always wore a {wear=WEAR}{wear}.{MORE}{PLOT}{CLOSING} / "
        "{hero=HERO}{hero} was a {ADJ} {hero.kind} who lived {HOME}. {hero.He} had a"
        " {wear=WEAR}{wear}.{PLOT}{CLOSING} / "
        "There once was a {ADJ} {hero=HERO}{hero.kind} in a {wear=WEAR}{wear}."
        " {hero.His} name was {hero}.{MORE}{PLOT}{CLOSING} / "
        "Far away, {HOME}, lived {hero=HERO}{hero} the {hero.kind}, who loved"
        " {hero.his} {wear=WEAR}{wear}.{PLOT}{CLOSING} / "
        "Do you know {hero=HERO}{hero} the {hero.kind}? {hero.He} is {TWO_ADJS} and"
        " has a {wear=WEAR}{wear}.{MORE}{PLOT}{CLOSING}",
    ),
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
        "{LOST} / {BABY} / {GIFT} / {RACE} / {NOISE} / {SEED} / {BROKEN} / {STUCK} /"
        " {COOK} / {LEARN} / {TRADE} / {RAIN} / {SHY} / {PATH} / {WISH}",
    ),
}

# %% mystnb={"code_prompt_show": "Rules: seven plots (44 lines)"} tags=["hide-input"]
#| export data/stories
# Plots
PLOTS: dict[str, Lines] = {
    "LOST": " {DAY}, {hero.his} {toy=TOY}{toy} was gone. {hero} felt{VERY}"
    " {SAD}.{SEARCH} {hero} hugged the {toy} and {PROMISE}.{LESSON_LOST}",
    "SEARCH": weighted(
        "4 5",
        "{a=SPOT} {hero.He} looked {a}, and there it was! / "
        "{a=SPOT}{b=SPOT-a} {hero.He} looked {a}, but found only {DUST}. Then"
        " {hero.he} looked {b}, and there it was!",
    ),
    "BABY": ' {DAY}, {hero} met a baby {baby=CUB}{baby} by the {WATER}. "I cannot find'
    ' my mother," it cried. {hero} {COMFORT} and they searched until {DUSK}. The'
    ' mother {baby} was{VERY} {GLAD}. "Thank you, {hero}!" she said.{LESSON_HELP}',
    "GIFT": " It was the birthday of {friend=HERO-hero}{friend} the {friend.kind}, but"
    " {hero} had no money. So {hero.he} took some {gift=PRESENT}{gift.stuff} and made"
    ' a {gift}. {friend} opened the box and felt{VERY} {GLAD}. "I will {KEEP} this'
    ' {gift}," said {friend}.{LESSON_GIFT}',
    "RACE": " {DAY}, {friend=HERO-hero}{friend} the {friend.kind} wanted to race to"
    ' the {goal=GOAL}{goal}. "I am much faster than you," {friend.he} said. But'
    " halfway {friend} {MISHAP}. {RACED} the {goal}.{LESSON_RACE}",
    "RACED": [
        (3, "{hero} stopped and helped {friend.him} up, and together they reached"),
        (2, "{hero} just went on, step by step, and was first to touch"),
    ],
    "NOISE": ' {DARK}, {hero} heard a strange {noise=SOUND}{noise}. "Is it a'
    ' {fear=FEAR}{fear}?" {hero.he} whispered. {hero} {BRAVE} and went to look. There'
    " was no {fear}. The {noise} was only {noise.cause}, and {hero}"
    " {LAUGHED}.{LESSON_FEAR}",
    "SEED": "{helper=HELPER} {Helper} gave {hero} a {SIZE} seed. {hero} planted it"
    " {SPOT} and watered it every {EVERY}. For {LONG} nothing grew, and {hero} felt"
    ' {SAD}. "{WAIT}," said {helper}. One day there was a {PLANT}, and {hero} ran to'
    " tell {helper}.{LESSON_WAIT}",
    "BROKEN": " {DAY}, {hero} was {PLAYING} in the house and broke the {pot=POT}{pot}"
    ' of {helper=HELPER}{helper}. {TRUTH} "Thank you for being honest," said {helper}.'
    " They mended the {pot} with {GLUE}.{LESSON_TRUTH}",
    "TRUTH": weighted(
        "3 2",
        "{hero} told the truth at once. / "
        "{hero} hid the pieces {SPOT}, but {hero.he} felt{VERY} {SAD}. In the end"
        " {hero.he} told the truth.",
    ),
}
# a text alone is a rule's only line
RULES |= {key: [x] if isinstance(x, str) else x for key, x in PLOTS.items()}

# %% mystnb={"code_prompt_show": "Rules: eight more plots (35 lines)"} tags=["hide-input"]
#| export data/stories
# More plots
MORE_PLOTS: dict[str, Lines] = {
    "STUCK": " {DAY}, the wind blew {hero.his} {toy=TOY}{toy} {PERCH}. {hero} {TRIED},"
    " but it was too high. Then {friend=HERO-hero}{friend} the {friend.kind} came with"
    ' a {TOOL}. Down came the {toy}! "What would I do without you, {friend}?" said'
    " {hero}.{LESSON_HELP}",
    "COOK": " {hero} wanted to make {dish=DISH}{dish} for {friend=HERO-hero}{friend}"
    " the {friend.kind}. {hero.He} mixed {MIX}, but then {hero.he} {SPILLED}. {friend}"
    " tasted the {dish} and {FACE}. {friend.He} and {hero} {ATE} instead of"
    " {dish}.{LESSON_COOK}",
    "MIX": "{a=FOOD}{b=FOOD-a}{a} and {b}",
    "LEARN": " {hero} wanted to {skill=SKILL}{skill}, but {hero.he} always"
    ' {skill.fail}. {helper=HELPER}{Helper} said, "{ADVICE}." {hero} tried {TIMES}'
    " times. The next time, {hero.he} could {skill}! {Helper} was{VERY}"
    " {GLAD}.{LESSON_LEARN}",
    "TRADE": " {DAY}, a trader came by. {hero} gave away {hero.his} {toy=TOY}{toy} for"
    " a {other=TOY-toy}{other}. But at home {hero.he} missed the {toy} and felt{VERY}"
    " {SAD}. {hero.He} ran back with the {other}, and the trader"
    " {SWAPPED}.{LESSON_TRADE}",
    "RAIN": " {hero} and {friend=HERO-hero}{friend} the {friend.kind} wanted to"
    " {plan=PLAN}{plan}, but it {RAINED}. {hero} had an idea. They {INDOOR} until"
    ' {DUSK}. "Tomorrow we can {plan}," said {friend}, "but today was'
    ' {FUN}."{LESSON_RAIN}',
    "SHY": "{friend=HERO-hero} A new {friend.kind} named {friend} came to school and"
    ' sat alone {SPOT}. "Do you like {hobby=HOBBY}{hobby}?" asked {hero}. {friend}'
    " {NODDED}. Now {hero} and {friend} go {hobby} together every {EVERY}.{LESSON_SHY}",
    "PATH": " {DAY}, {hero} followed a {INSECT} into the forest and lost the way."
    " {hero} felt{VERY} {SAD}. Then {hero.he} remembered what {helper=HELPER}{helper}"
    ' had said: "Follow the {guide=GUIDE}{guide}." {hero} followed the {guide}, and'
    " soon {helper} {MET} {hero.him} at the door.{LESSON_LISTEN}",
    "WISH": " {DARK}, {hero} saw a falling star and wished for a {wish=DREAM}{wish}."
    " In the morning there was no {wish}, but {HELPER} {SURPRISE}. {hero} felt{VERY}"
    " {GLAD} and forgot about the {wish}.{LESSON_WISH}",
}
RULES |= {key: [x] if isinstance(x, str) else x for key, x in MORE_PLOTS.items()}

# %% mystnb={"code_prompt_show": "Rules: the cast, moods, things and places (56 lines)"} tags=["hide-input"]
#| export data/stories
# Who, and what is theirs
CAST = {
    "HERO name kind he him his": "Nell|girl|she|her|her / Otto|bear|he|him|his /"
    " Kai|boy|he|him|his / Willa|rabbit|she|her|her / Theo|boy|he|him|his /"
    " Zoe|girl|she|her|her / Milo|mouse|he|him|his / Suki|cat|she|her|her /"
    " Bruno|dog|he|him|his / Hetty|hen|she|her|her",
    "WEAR": "red hat / blue scarf / green coat / yellow cap / purple cape / white"
    " ribbon / brown belt / pink sweater",
    "TOY": "kite / ball / drum / doll / robot / puzzle / top",
}
RULES |= zipf_rules(0.6, CAST)
# Moods, and when it was
MOODS = {
    "ADJ": "little / kind / curious / brave / quiet / polite / clever / gentle / young"
    " / small / funny / lively",
    "SAD": "sad / worried / lonely / upset / gloomy / unhappy",
    "GLAD": "happy / proud / glad / thankful / excited / cheerful",
    "DAY": "One day / One morning / On a windy day / Early in spring / Last summer",
}
RULES |= zipf_rules(0.7, MOODS)
# Others and things, where and when
THINGS = {
    "HELPER": "grandma / dad / mom / grandpa / the baker / the teacher",
    "CUB": "lamb / duck / goat / seal / deer / owl",
    "FEAR": "ghost / dragon / wolf / giant / witch / troll",
    "PRESENT name stuff": "boat|paper / crown|leaves / necklace|shells / puppet|wool /"
    " flute|wood / lamp|wax",
    "POT": "vase / teapot / mirror / clock / bowl",
    "TOOL": "ladder and climbed up / long stick and poked it / rope and pulled hard /"
    " net and swung it once",
    "PLANT": "sunflower / pumpkin as big as a cart / tiny tree / tall bean / rose",
    "DISH": "soup / pancakes / bread / stew / cake",
    "FOOD": "honey / eggs / milk / carrots / berries / flour / beans",
    "DREAM": "pony / castle / ship / rocket / sled",
    "SOUND name cause": "tapping|a branch in the wind / scratching|a mouse with a nut"
    " / howling|the wind in the chimney / dripping|the rain in a bucket / snoring|the"
    " cat in a basket",
    "GUIDE": "river / stars / stone wall / church bells / smell of smoke",
    "INSECT": "butterfly / bee / beetle / firefly",
    "GLUE": "glue / string / gold paint",
    "DUST": "dust / an old shoe / a spider / three crumbs / a sock",
    "SPOT": "under the bed / behind the barn / near the fence / by the stairs / in the"
    " garden / next to the well",
    "HOME": "by the sea / near the forest / in a small village / on a hill / beside"
    " the mill / at the end of the road / in a tall house",
    "HOOK": "on a hook / over the bed / on the door / by the window / on a chair",
    "WATER": "pond / river / road / bridge",
    "GOAL": "old oak / bridge / lake / big rock / windmill",
    "PERCH": "into a tree / onto the roof / up a pole / over a high wall",
    "DARK": "Late at night / One dark night / At bedtime",
    "DUSK": "dinner / sunset / bedtime / it was dark / the moon rose",
    "EVERY": "day / morning / evening / week",
    "LONG": "two weeks / many days / a month / a long time",
    "TIMES": "three / ten / five / a hundred",
}
RULES |= zipf_rules(0.5, THINGS)

# %% mystnb={"code_prompt_show": "Rules: what one can do, and what one learns from it (62 lines)"} tags=["hide-input"]
#| export data/stories
# What one can do, and what is said
DEEDS = {
    "SKILL name fail": "swim|swallowed water / whistle|blew only air / skate|fell on"
    " the ice / juggle|dropped the balls / ride a bike|tipped over / tie a knot|made a"
    " mess",
    "HOBBY": "fishing / singing / dancing / sailing / hiking / climbing",
    "PLAN": "build a raft / fly kites / pick apples / swim in the lake / have a picnic",
    "INDOOR": "built a fort and hid inside / sang and danced / drew a map and looked"
    " for treasure / baked cookies / made a puppet show / told stories by the fire",
    "PLAYING": "dancing / jumping / throwing a ball / running",
    "TRIED": "jumped and jumped / threw a stick / shook the trunk / called for help",
    "SPILLED": "used salt for sugar / dropped the pepper / burned the bottom / forgot"
    " the spoon in it",
    "ATE": "laughed and ate toast / ate cheese / shared a plum / had nuts",
    "SURPRISE": "had made warm waffles / told a wonderful tale / had time to play all"
    " day / sang a new song",
    "MISHAP": "tripped over a root / fell into the mud / got a thorn in the foot /"
    " hurt a knee",
    "COMFORT": "took its hand / gave it some bread / dried its tears / made a plan",
    "BRAVE": "lit a candle / took a deep breath / counted to ten / held a pillow tight",
    "LAUGHED": "had to laugh / felt very brave / felt silly / smiled",
    "PROMISE": "did not let go all day / danced around the room / showed it to"
    " everyone / put it on the shelf",
    "KEEP": "treasure / always keep / never forget / love",
    "FACE": "coughed / made a funny face / drank a lot of water / turned red",
    "SWAPPED": "gave it back with a wink / was kind and swapped again / shook hands"
    " and agreed",
    "NODDED": "nodded / said yes in a low voice / looked up and smiled",
    "MET": "hugged / met / kissed / greeted",
    "LEFT": "ran off to play / said goodbye / skipped all the way home",
    "SLEPT": "well / like a log / until noon / with a smile / soundly",
    "RAINED": "rained all day / was too cold / snowed",
    "FUN": "fun / the best day / even better",
    "SIZE": "tiny / round / black / shiny",
    "WAIT": "Be patient / Good things take time / Give it one more week",
    "ADVICE": "Try it slowly / Do not give up / I could not do it at first / Watch me",
}
RULES |= zipf_rules(0.5, DEEDS)
# Combinations, and what one learns
RULES |= {
    "TWO_ADJS": ["{a=ADJ}{b=ADJ-a}{a} and {b}"],
    "TWO_HOBBIES": ["{a=HOBBY}{b=HOBBY-a}{a} and {b}"],
    "VERY": [(5, ""), (3, " very"), (2, " so")],
    "LESSON_HELP": [
        (2, ""),
        (1, " Helping others feels good."),
        (1, " A friend in need is never alone."),
    ],
    "LESSON_LOST": ["", " Those who keep looking will find."],
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

# %% [markdown]
# Put together they are one dictionary. `STORIES` is its grammar, and `sample` the door
# that all later chapters use.

# %%
#| export data/stories
STORIES = Grammar(RULES)


def sample(seed: int) -> str:
    """The story of this number: the same seed gives the same story on every machine."""
    return STORIES.sample(seed)


# %% tags=["nbval-check-output"]
import textwrap

for seed in range(3):
    print(textwrap.fill(sample(seed), 86), end="\n\n")
n_lines = sum(len(rows) for rows in STORIES.rows.values())
print(f"{len(RULES)} rules with {n_lines} lines")

# %% [markdown]
# Read the three again, and look for what a model will have to carry to the last
# sentence of each: whose name stands there, is it "his" or "her", and what did he or
# she wear? The words between are hardly a challenge. These are templates, not language,
# with a small vocabulary and without the endless tail of rare words that English has.
# But to get the last sentence right one must remember the first two, and that is what
# attention is for.
#
# What was drawn for the first of them, as far as it is remembered (variables are small
# letters):

# %% tags=["nbval-check-output"]
for variable, rule, row in STORIES.draw(seed=0).drawn:
    if variable.islower() or rule == "PLOT":
        print(f"{variable:8} {rule:8} {' | '.join(row)}")

# %% [markdown]
# ## Is it right?
#
# Three tests. The naive teller and the grammar draw from the same random numbers in the
# same order, so they must tell the same story for each seed, of both grammars, although
# one rewrites text and the other walks among objects. The sixteen stories of the napkin
# must come as often as their probabilities say: the sum of squared errors, each over
# its expected number ($\chi^2$), is about 15 for sixteen stories whatever the number of
# samples, if the odds are right, and grows with that number if not. And a hash of the
# first hundred stories pins them to every other machine.

# %% tags=["nbval-check-output"]
import hashlib
from collections import Counter

equal = sum(tell(RULES, seed) == sample(seed) for seed in range(500))
equal += sum(tell(napkin, seed) == grammar.sample(seed) for seed in range(500))
print(f"told alike by both programs: {equal} of 1000")

n = 20_000
seen = Counter(map(grammar.sample, range(n)))
chi2 = sum((seen[text] - n * p) ** 2 / (n * p) for text, p in by_hand.items())
print(f"chi-square of {n:,} samples of the napkin: {chi2:.1f}")
print("(15 expected; right odds exceed 31 once in a hundred times)")

first = "\n".join(sample(seed) for seed in range(100))
print("first hundred stories:", hashlib.sha256(first.encode()).hexdigest()[:16])

# %% [markdown]
# And what the grammar says to a mistake, before any story is told:

# %% tags=["nbval-check-output"]
for mistake in ({"MOOD": ["naps|sings"]}, {"VERY": [(0, "")]}, {"MOOD": ["{CAT}"]}):
    try:
        Grammar({**napkin, **mistake})
    except ValueError as error:
        print(error)

# %% [markdown]
# ## Exercise 2: a plot of your own
#
# Add one more to the stories, or several. Return new rules, and leave those that you
# get as they are: other cells tell stories from them. A plot begins with a space,
# speaks of `{hero}`, and may draw and call whatever the other rules offer:
# `{friend=HERO-hero}` (anyone but the hero), `{toy=TOY}`, `{DAY}`, `{SAD}`. The check
# also says what it did to the *entropy*, the surprise of a story to a reader who knows
# the odds. It may well fall although there are more stories: the new plot takes
# probability from the others, and if it leaves less to chance than they do, the mean
# surprise can go down ([the floor](#floor/counting-visits) computes it).


# %% tags=["exercise"]
def my_plot(rules: dict) -> dict:
    """New rules: those given, with a plot more."""
    raise NotImplementedError("your turn")


check.new_plot(my_plot)

# %% [markdown]
# What the check says to a typical wrong answer, whose friend is drawn from all heroes:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def may_meet_itself(rules: dict) -> dict:
    plot = " {DAY}, {hero} met {friend=HERO}{friend} and felt{VERY} {GLAD}."
    return {**rules, "PLOT": [*rules["PLOT"], (0.5, plot)]}


check.new_plot(may_meet_itself)

# %% [markdown]
# <details><summary>Solution: <code>my_plot</code></summary>
#
# ```python
# def my_plot(rules):
#     boat = (
#         " {DAY}, {hero} built a boat and sailed to the {goal=GOAL}{goal} with"
#         " {friend=HERO-hero}{friend}. At the {goal}, {friend} felt {GLAD}."
#     )
#     return {**rules, "PLOT": [*rules["PLOT"], (0.5, "{BOAT}")], "BOAT": [boat]}
# ```
# </details>
#
# ## What you have now
#
# A corpus that you cannot read to its end, the same on every machine, of which you know
# every probability, and stories that know what was drawn for them. A model cannot read
# letters, though. [Next](#tokens) the text becomes numbers.

# %%
course.summary("slm/data/grammar.py", "slm/data/stories.py")
