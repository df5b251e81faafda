"""A probabilistic grammar that remembers: rules become choices, each with known odds.

    Grammar({"STORY": ["{PET} naps."], "PET": ["Tim", "Sue"]}).sample(seed=7)

Exported from chapters/04_stories.py; edit it there.
"""

import itertools
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

# Choices

Row = tuple[str, ...]  # one line of a rule: its columns
Drawn = tuple[tuple[str, str, Row], ...]  # what was drawn: variable, rule and row
Lines = Sequence[str | tuple[float, str]]
# {RULE}, {x=RULE}, {x=RULE-y}, {x} and {x.column}
SLOT = re.compile(r"\{(\w+)(?:=(\w+)((?:-\w+)*)|\.(\w+))?\}")


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

# Reading the rules


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

    def _choice(self, template: str, drawn: Drawn) -> Choice:
        """The choice that a template begins with. Equal ones are one object."""
        needed = self._needed(template)
        key = template, tuple(entry for entry in drawn if entry[0] in needed)
        if key not in self._known:
            self._known[key] = Choice(self, *key)
        return self._known[key]

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

    def follow(self, choice: Choice, row: Row) -> Items:
        """The texts and choices that come after this row was drawn at a choice."""
        slot = choice.slot
        space, behind = choice.template[: slot.start()], choice.template[slot.end() :]
        if choice.name == choice.rule:
            return self._items(space + row[0], choice.drawn)
        kept = [entry for entry in choice.drawn if entry[0] != choice.name]
        drawn = tuple(sorted([*kept, (choice.name, choice.rule, row)]))
        return self._items(space + behind, drawn)

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

    def sample(self, seed: int) -> str:
        """The text of the story of this number."""
        return self.draw(seed).text


# A story, and what was drawn for it


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
