"""Checks of the exercises on the floor: the entropy of a choice, and a loss in bits per byte."""

import functools
import math
from collections.abc import Callable, Set
from typing import Any

from course.check.diagnose import Diagnosis, number
from course.check.steps import carried_out
from course.check.verdict import call, exercise
from slm.data import floor
from slm.data.grammar import Choice, Grammar, Lines

STEPS = {
    "odds": "[p for p, _ in choice.options]",
    "below": "[[i for i in items if not isinstance(i, str)] for _, items in choice.options]",
    "rest": "[sum(map(again, some)) for some in below]",
    "own": "[-p * log(p) for p in odds]",
    "weights": "odds",
    "end": "sum(own) + sum(w * r for w, r in zip(weights, rest))",
}
ENTROPY_MISTAKES = {
    "own = [-p * log(p, 2) for p in odds]": "You count in bits: the logarithm has base 2. Nats are counted with math.log.",
    "own = [-p * log(p, 10) for p in odds]": "You count in decimal digits: the logarithm has base 10. Nats are counted with math.log.",
    "own = [p * log(p) for p in odds]": "The sign is wrong: ln p is negative, and a cost is -ln p.",
    "own = [-log(p) for p in odds]": "You add -ln p of the options without weighing them. Each occurs with its probability p: p * -ln p.",
    "own = [0.0]": "You count only what follows, and not what the choice itself costs: -p ln p of each option.",
    "weights = [1.0] * n": "You add what follows without asking how likely it is. Multiply it by the probability of its option.",
    "weights = [p * p for p in odds]": "What follows is weighed twice by its option's probability. Once is enough: p * (what follows - ln p).",
    "weights = [1 / n] * n": "You take the plain mean of what follows over the options. Each option counts with its own probability.",
    "weights = [-p for p in odds]": "You subtract what follows. It is surprise, too: add it.",
    "weights = [0.0] * (n - 1) + odds[-1:]": "You go on with the choices of the last option only: that part stands behind the loop, not in it.",
    "end = sum(own) + max(rest)": "You go on with the option behind which most is left open. Each option counts, with its probability.",
    "end = own[0] + odds[0] * rest[0]": "You stop after the first option: the `return` stands in the loop over the options.",
    "end = own[-1] + odds[-1] * rest[-1]": "Only the last option is left in your sum: add each one up, += and not =.",
    "end = sum(p * (r - len(b) * log(p)) for p, r, b in zip(odds, rest, below))": "You count -ln p of an option once for each choice in it, and never where it holds texts only. It costs that once, whatever it holds.",
    "end = max((p, r - log(p)) for p, r in zip(odds, rest))[1]": "You follow the likeliest option only: that is the surprise of one story, not the mean over all.",
    "end = sum(r - log(p) for p, r in zip(odds, rest)) / n": "You take the plain mean of what the options cost. Each occurs with its own probability.",
    "end = entropy(choice.grammar)": "You return the entropy of the choice's whole grammar. Asked is that from this choice on.",
    "end = course()": "You return the entropy of the course's stories, whatever choice you are given.",
    "odds = [1 / n] * n": "You treat all options as equally likely. Their probabilities are in choice.options.",
    "rest = [0.0] * n": "You count the choice itself only. Its options hold further choices, all items that are no `str`, of whatever class: add their entropies.",
    "rest = [sum(map(alone, some)) for some in below]": "You look one level down only. The choices below hold choices, too: call your function on them.",
    "rest = [sum(map(unseen, some)) for some in below]": "You count a choice once, however often one comes to it. Each time that it is made it costs again.",
    "rest = [prod(map(again, some)) for some in below]": "You multiply the entropies of an option's choices. Surprises add up.",
    "rest = [sum(1 if isinstance(i, str) else again(i) for i in items) for _, items in choice.options]": "A text of an option adds 1 with you. Nothing is chosen there: a `str` costs nothing.",
    "below = [items for _, items in choice.options]": "Items that are a `str` are no choices, and have no options: leave them out.",
    "below = [[i for i in items if not isinstance(i, str)][:1] for _, items in choice.options]": "You go on with the first choice of an option only. All of its choices are made: add them up.",
    "below = [[i for i in items if not isinstance(i, str)][-1:] for _, items in choice.options]": "You go on with the last choice of an option only. All of its choices are made: add them up.",
    "below = [{i for i in items if not isinstance(i, str)} for _, items in choice.options]": "You count a choice that stands twice in an option once. It is made twice: add it twice.",
}  # fmt: skip
_of_the_course = functools.cache(floor.entropy)


def _entropy(choice: Choice, wrong: Set[str] = frozenset(), seen: set[Choice] | None = None) -> float:  # fmt: skip
    """Entropy in nats from a choice on, with any of ENTROPY_MISTAKES made."""
    met = set() if seen is None else seen
    met.add(choice)

    def again(below: Choice) -> float:
        return _entropy(below, wrong, met)

    names = {
        "again": again,
        "unseen": lambda below: 0.0 if below in met else again(below),
        "alone": lambda below: _entropy(
            below, {m for m in wrong if m[:4] != "rest"} | {"rest = [0.0] * n"}, met
        ),
        "choice": choice,
        "n": len(choice.options),
        "entropy": floor.entropy,
        "course": _of_the_course,
        "log": math.log,
        "prod": math.prod,
    }
    return carried_out(STEPS, wrong, **names)["end"]


# from the start: which option, and which of its items
Way = tuple[tuple[int, int], ...]


def _from(fn: Callable[..., float], rules: dict[str, Lines], way: Way) -> tuple[Any, None]:  # fmt: skip
    choice = Grammar(rules).start
    for option, item in way:
        choice = choice.options[option][1][item]  # type: ignore[assignment]
    return call(fn, choice), None


_TWO: dict[str, Lines] = {
    "STORY": ["{pet=PET}{pet} {VERY} {PLACE}"],
    "PET": [(2, "Tim"), (1, "Sue")],
    "VERY": [(4, "naps"), (1, "sings {HOW}")],
    "HOW": ["well", (2, "loudly")],
    "PLACE": [(5, "here"), (1, "there")],
}
ENTROPY = Diagnosis(
    _entropy,
    ENTROPY_MISTAKES,
    [
        ({"STORY": [(3, "yes"), (1, "no")]}, ()),
        ({"STORY": [*"abcdefghij"]}, ()),
        ({"STORY": ["{A_}{A_}"], "A_": [(3, "x"), (1, "y")]}, ()),
        ({"STORY": [(3, "stop"), (1, "go {A_}")], "A_": [*"lro"]}, ()),
        ({"STORY": [(1, "{A_}"), (2, "or {A_}")], "A_": ["x", (4, "y")]}, ()),
        ({"STORY": [(1, "{A_}b"), (2, "a")], "A_": ["x", (4, "y")]}, ()),
        (_TWO, ()),
        (_TWO, ((0, 0),)),
        (_TWO, ((0, 0), (1, 1))),
    ],
    lambda rules, way: f"For {'a choice on the way in ' if way else ''}the rules {rules}",
    observe=_from,
    read=number,
    atol=1e-9,
)  # fmt: skip


@exercise
def entropy(fn: Callable[[Choice], float]) -> str:
    """Check an `entropy(choice)` in nats."""
    ENTROPY.judge(fn)
    return "Six grammars, each as by counting visits."


BITS_MISTAKES = {  # by what is computed
    "loss * n / b": "These are nats per byte. A bit is ln 2 nats: divide by math.log(2).",
    "loss * n / b * ln2": "You multiply by ln 2. A bit is the smaller coin of the two, 0.69 nats, so the number of bits is larger: divide.",
    "loss * b / n / ln2": "You divide by the tokens and multiply by the bytes. The text costs loss * n_tokens nats in all, and that is spread over its bytes.",
    "loss * b / n": "You divide by the tokens and multiply by the bytes, and stay with nats. The text costs loss * n_tokens nats in all, its bytes share them, and a bit is ln 2 nats.",
    "loss * b / n * ln2": "Both are upside down: the text costs loss * n_tokens nats in all, its bytes share them, and a bit is ln 2 nats: divide by math.log(2).",
    "loss / ln2": "These are bits per token. The text costs loss * n_tokens nats in all; spread that over its bytes.",
    "loss * n / ln2": "These are the bits of the whole text. Divide by the number of its bytes.",
    "loss / b / ln2": "That is the cost of *one* token. There are n_tokens: multiply by them before dividing by the bytes.",
    "loss / n / ln2": "You divide by the tokens. The loss is per token already: multiply by them for the whole text, and divide by the bytes.",
    "loss / (n * b) / ln2": "You divide by the tokens. The loss is per token already: multiply by them, and divide by the bytes only.",
    "loss": "You return the loss as it is: nats per token.",
    "loss * ln2": "You multiply the loss by ln 2 and leave tokens and bytes out. A bit is ln 2 nats: divide, and spread the whole text's bits over its bytes.",
    "loss * n": "These are the nats of the whole text. A bit is ln 2 nats; and divide by the number of bytes.",
    "8 * loss * n / b / ln2": "You turn bytes of text into bits. The text is counted in bytes, the model's surprise in bits: leave the 8 out.",
    "loss * n / b / ln2 / 8": "You divide by the bits of the text. It is counted in bytes, the model's surprise in bits: leave the 8 out.",
    "loss * n / b / log(10)": "These are decimal digits. A bit is ln 2 nats: divide by math.log(2).",
    "loss * n / b / log(2, 10)": "You divide by log10(2). The loss is in nats, so the natural logarithm of 2 is needed: math.log(2).",
    "loss * n / b / 2": "You divide by 2. A bit is ln 2 nats: divide by math.log(2).",
    "log(loss, 2) * n / b": "You take the logarithm of the loss. It is a logarithm already, in nats: divide by math.log(2).",
    "loss * n / b / 8": "You divide by 8, the bits of a byte. The text is counted in bytes, and the model's surprise in nats: a bit of it is ln 2 nats, so divide by math.log(2) instead.",
    "exp(loss) * n / b": "You take the exponential of the loss first. The loss itself is what a token costs, in nats: divide by math.log(2).",
    "exp(loss) * n / b / ln2": "You take the exponential of the loss first. The loss itself is what a token costs, in nats.",
    "2 ** loss * n / b": "You raise 2 to the loss. The loss itself is what a token costs, in nats: divide by math.log(2).",
    "loss * (n // b) / ln2": "The tokens for a byte are made a whole number (// or int). Leave them as they are: /.",
    "loss / (b // n) / ln2": "The bytes for a token are made a whole number (// or int). Leave them as they are: /.",
    "loss * n // (b * ln2)": "The bits are made a whole number (// or int). Return the number as it is.",
    "loss / 4 / ln2": "You take four bytes for a token, whatever the text. Its numbers are n_tokens and n_bytes.",
    "loss * n / 1000 / ln2": "You divide by 1,000 bytes, whatever the text. Its number is n_bytes.",
    "loss * (n + 1) / b / ln2": "You count a token more than the text has.",
    "loss * n / b / 0.7": "You take 0.7 for ln 2. That is too rough to compare models by: math.log(2).",
    "loss * n / b / 0.69": "You take 0.69 for ln 2. That is too rough to compare models by: math.log(2).",
    "loss * n / b / 0.693": "You take 0.693 for ln 2. That is too rough to compare models by: math.log(2).",
}  # fmt: skip
_NAMES: dict[str, Any] = {"ln2": math.log(2), "log": math.log, "exp": math.exp}


def _bits(loss: float, n_tokens: int, n_bytes: int, wrong: frozenset[str] = frozenset()) -> float:  # fmt: skip
    names = {"loss": loss, "n": n_tokens, "b": n_bytes, **_NAMES}
    return eval(next(iter(wrong), "loss * n / (b * ln2)"), names)


BITS = Diagnosis(
    _bits,
    BITS_MISTAKES,
    [(math.log(2), 100, 100), (1.0, 50, 200), (0.29, 92, 349), (2.5, 3, 40), (5.0, 7, 3)],
    lambda loss, n, b: f"For a loss of {loss:.4f} nats per token, {n} tokens and {b} bytes",
    read=number,
    pairs=False,
    rtol=1e-7,
)  # fmt: skip


@exercise
def bits_per_byte(fn: Callable[[float, int, int], float]) -> str:
    """Check a `bits_per_byte(loss, n_tokens, n_bytes)`."""
    BITS.judge(fn)
    models = call(fn, 0.29, 92, 349), call(fn, 0.21, 150, 349)
    return f"Per byte, tokens of any size can be compared. If the stories have 92 tokens a story with the one and 150 with the other, 0.29 and 0.21 are {models[0]:.3f} and {models[1]:.3f} bits per byte."
