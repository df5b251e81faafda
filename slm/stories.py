"""Children's stories from a probabilistic grammar, and all that can be known about them exactly.

`sample(seed)` gives a story; `entropy()`, `logprob(text)`, `surprisal(text)` and `reference_lines(tokenizer)` say how
predictable it is. The grammar is data, `RULES`, and `Grammar(rules)` makes the same of rules of your own.

Exported from chapters/04_tokens.py; edit it there.
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

    def _choice(self, template: str, drawn: Drawn) -> Choice:
        """The choice with which a template begins. Equal ones are one object, so each is worked out once."""
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
            wanted = column[0].lower() + column[1:] if column else self.columns[rule][0]
            if wanted not in self.columns[rule]:
                raise ValueError(f"{slot[0]}: rule {rule} has only the columns {', '.join(self.columns[rule])}")
            index = self.columns[rule].index(wanted)
            return row[index][:1].upper() + row[index][1:] if (column or name)[0].isupper() else row[index]

        return SLOT.sub(replace, template)

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

    def entropy(self) -> float:
        """Entropy of a story in nats: what each choice costs, times how often a story passes through it."""
        return math.fsum(-n * p * math.log(p) for choice, n in self.visits().items() for p, _ in choice.options)

    def mean_bytes(self) -> float:
        """Bytes of a story, on average."""
        return math.fsum(
            n * p * sum(len(item.encode()) for item in items if isinstance(item, str))
            for choice, n in self.visits().items()
            for p, items in choice.options
        )

    def count(self) -> int:
        """How many different stories there are."""
        counts: dict[Choice, int] = {}
        for choice in reversed(self.visits()):
            counts[choice] = sum(
                math.prod(counts[i] for i in items if isinstance(i, Choice)) for _, items in choice.options
            )
        return counts[self.start]

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

    def logprob(self, text: str) -> float:
        """Log-probability of a whole story in nats, summed over its derivations; -inf for any other text."""
        whole = self.alive(text)[1]
        return math.log(whole) if whole else -math.inf

    def accepts(self, text: str) -> bool:
        """Whether the text is a whole story."""
        return self.alive(text)[1] > 0

    def surprisal(self, text: str) -> list[float]:
        """-ln P(character | all before it) in nats for each character, inf from the first impossible one on.

        They sum to `-logprob(text)` where no story is the beginning of another, as in `RULES`.
        """
        return [math.log(a / b) if b else math.inf for a, b in itertools.pairwise(self.alive(text)[0])]

    def pieces(self) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
        """Expected number of each piece (a word with the space before it) in a story, and of each pair of neighbours.

        The piece "" is the end of text, which stands before and after a story.
        """
        texts: dict[str, float] = defaultdict(float)
        pairs: dict[tuple[str, str], float] = defaultdict(float)
        firsts: dict[
            str | Choice, dict[str, float]
        ] = {}  # probability of an item's first piece; "" if it prints nothing
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
                raise ValueError(
                    f"{a + b!r} is not tokenised as {a!r} and {b!r} are, so there is no exact count of tokens"
                )
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


def _pieces(text: str) -> list[str]:
    """Cut a text before each space."""
    return re.split("(?<!^)(?= )", text)


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
