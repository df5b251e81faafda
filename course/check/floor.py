"""Checks of the exercises on the floor: the entropy of a choice, and a loss in bits per byte."""

import functools
import math
from collections.abc import Callable
from typing import Any

from course.check.diagnose import Diagnosis, number
from course.check.verdict import call, exercise
from slm.data import floor
from slm.data.grammar import Choice, Grammar, Lines

ENTROPY_MISTAKES = {
    "bits": "You count in bits: the logarithm has base 2. Nats are counted with math.log.",
    "digits": "You count in decimal digits: the logarithm has base 10. Nats are counted with math.log.",
    "no odds below": "You add what follows without asking how likely it is. Multiply it by the probability of its option.",
    "squared": "What follows is weighed twice by its option's probability. Once is enough: p * (what follows - ln p).",
    "mean below": "You take the plain mean of what follows over the options. Each option counts with its own probability.",
    "largest below": "You go on with the option behind which most is left open. Each option counts, with its probability.",
    "no own": "You count only what follows, and not what the choice itself costs: -p ln p of each option.",
    "own not weighed": "You add -ln p of the options without weighing them. Each occurs with its probability p: p * -ln p.",
    "no below": "You count the choice itself only. Its options hold further choices: add their entropies.",
    "one level": "You look one level down only. The choices below hold choices, too: call your function on them.",
    "sign": "The sign is wrong: ln p is negative, and a cost is -ln p.",
    "sign below": "You subtract what follows. It is surprise, too: add it.",
    "first item": "You go on with the first choice of an option only. All of its choices are made: add them up.",
    "last item": "You go on with the last choice of an option only. All of its choices are made: add them up.",
    "once in option": "You count a choice that stands twice in an option once. It is made twice: add it twice.",
    "once in all": "You count a choice once, however often one comes to it. Each time that it is made it costs again.",
    "last option": "You go on with the choices of the last option only: that part stands behind the loop, not in it.",
    "first option": "You stop after the first option: the `return` stands in the loop over the options.",
    "likeliest": "You follow the likeliest option only: that is the surprise of one story, not the mean over all.",
    "equal odds": "You treat all options as equally likely. Their probabilities are in choice.options.",
    "product": "You multiply the entropies of an option's choices. Surprises add up.",
    "texts": "A text of an option adds 1 with you. Nothing is chosen there: a `str` costs nothing.",
    "into texts": "Items that are a `str` are no choices, and have no options: leave them out.",
    "grammar": "You return the entropy of the choice's whole grammar. Asked is that from this choice on.",
    "course": "You return the entropy of the course's stories, whatever choice you are given.",
}  # fmt: skip

_of_the_course = functools.cache(floor.entropy)


def _entropy(choice: Choice, wrong: frozenset[str] = frozenset(), seen: set[Choice] | None = None) -> float:  # fmt: skip
    """Entropy in nats from a choice on, with any of ENTROPY_MISTAKES made."""
    if "grammar" in wrong or "course" in wrong:
        return floor.entropy(choice.grammar) if "grammar" in wrong else _of_the_course()
    seen = set() if seen is None else seen
    if "once in all" in wrong and choice in seen:
        return 0.0
    seen.add(choice)
    base = 2 if "bits" in wrong else 10 if "digits" in wrong else math.e
    inner = wrong | {"no below"} if "one level" in wrong else wrong
    rest = []  # of each option what follows
    for _, items in choice.options:
        if "into texts" in wrong:
            _ = [item.options for item in items]  # type: ignore[union-attr]
        below = [item for item in items if not isinstance(item, str)]
        below = list(dict.fromkeys(below)) if "once in option" in wrong else below
        below = below[:1] if "first item" in wrong else below
        below = below[-1:] if "last item" in wrong else below
        costs = [_entropy(item, inner - {"one level"}, seen) for item in below]
        add = math.prod if "product" in wrong else math.fsum
        texts = len(items) - len(below) if "texts" in wrong else 0
        rest.append(0.0 if "no below" in wrong else add(costs) + texts)
    total = max(rest) if "largest below" in wrong else 0.0
    options = [(p, after) for (p, _), after in zip(choice.options, rest, strict=True)]
    likeliest = max(range(len(rest)), key=lambda i: options[i][0])
    for i, (p, after) in enumerate(options):
        p = 1 / len(rest) if "equal odds" in wrong else p
        weight = (
            p * p
            if "squared" in wrong
            else 1 / len(rest)
            if "mean below" in wrong
            else p
        )
        weight = 1.0 if "no odds below" in wrong else weight
        if "last option" in wrong and i < len(rest) - 1 or "largest below" in wrong:
            weight = 0.0
        own = -math.log(p) / math.log(base) * (1 if "own not weighed" in wrong else p)
        if "likeliest" in wrong:
            own, weight = (own / p, 1.0) if i == likeliest else (0.0, 0.0)
        own = 0.0 if "no own" in wrong else -own if "sign" in wrong else own
        total += own + (-weight if "sign below" in wrong else weight) * after
        if "first option" in wrong:
            break
    return total


Way = tuple[
    tuple[int, int], ...
]  # from the start: which option, and which of its items


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
    "exp(loss) * n / b / ln2": "You take the exponential of the loss first. The loss itself is what a token costs, in nats.",
    "2 ** loss * n / b": "You raise 2 to the loss. The loss itself is what a token costs, in nats: divide by math.log(2).",
    "loss * (n // b) / ln2": "You divide with //, which leaves only whole tokens for a byte. Use /.",
    "loss / (b // n) / ln2": "You divide with //, which leaves only whole bytes for a token. Use /.",
    "loss * n // (b * ln2)": "You divide with //, which leaves only whole bits. Use /.",
    "loss / 4 / ln2": "You take four bytes for a token, whatever the text. Its numbers are n_tokens and n_bytes.",
    "loss * n / 1000 / ln2": "You divide by 1,000 bytes, whatever the text. Its number is n_bytes.",
    "loss * (n + 1) / b / ln2": "You count a token more than the text has.",
    "loss * n / b / 0.7": "You take 0.7 for ln 2. That is too rough to compare models by: math.log(2).",
    "loss * n / b / 0.69": "You take 0.69 for ln 2. That is too rough to compare models by: math.log(2).",
    "loss * n / b / 0.693": "You take 0.693 for ln 2. That is too rough to compare models by: math.log(2).",
    "round(loss * n / b / ln2, 2)": "You round to two places. Return the number as it is.",
    "round(loss * n / b / ln2, 3)": "You round to three places. Return the number as it is.",
    "round(loss * n / b / ln2, 4)": "You round to four places. Return the number as it is.",
}  # fmt: skip
_NAMES: dict[str, Any] = {
    "ln2": math.log(2),
    "log": math.log,
    "exp": math.exp,
    "round": round,
}


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
