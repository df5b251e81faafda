"""Checks of the exercises on the floor: the entropy of a choice, and a loss in bits per byte."""

import math
from collections.abc import Callable

from course.check.verdict import exercise
from slm.data import floor
from slm.data.grammar import Choice, Grammar, Lines

_GRAMMARS: dict[str, dict[str, Lines]] = {
    "one rule with the weights 3 and 1": {"STORY": [(3, "yes"), (1, "no")]},
    "a rule that is told twice": {"STORY": ["{A_}{A_}"], "A_": [(3, "x"), (1, "y")]},
    "a choice behind one option only": {
        "STORY": [(3, "stop"), (1, "go {A_}")],
        "A_": ["left", "right", "on"],
    },
    "two choices in one option": {
        "STORY": ["{pet=PET}{pet} {VERY} {PLACE}"],
        "PET": [(2, "Tim"), (1, "Sue")],
        "VERY": [(4, "naps"), (1, "sings {HOW}")],
        "HOW": ["well", (2, "loudly")],
        "PLACE": [(5, "here"), (1, "there")],
    },
}


def _mutant(
    log: Callable[[float], float] = math.log,
    own: Callable[[float, float], float] = lambda p, cost: p * cost,
    weigh: bool = True,
    deep: bool = True,
    keep: Callable[[list], list] = lambda below: below,
) -> Callable[[Choice], float]:
    """The entropy of a choice, with a switch for each mistake that learners make."""

    def entropy(choice: Choice) -> float:
        total = 0.0
        for p, items in choice.options:
            below = keep([item for item in items if not isinstance(item, str)])
            following = math.fsum(map(entropy, below)) if deep else 0.0
            total += own(p, -log(p)) + (p if weigh else 1.0) * following
        return total

    return entropy


# Each mistake with the sentence that it gets if it gives exactly what the learner's code gave.
_INSTEAD = {
    "You count in bits: the logarithm has base 2. Nats are counted with math.log.": _mutant(
        log=math.log2
    ),
    "You add what follows without asking how likely it is. Multiply it by the probability of its option.": _mutant(
        weigh=False
    ),
    "You count the choice itself only. Its options hold further choices: add their entropies.": _mutant(
        deep=False
    ),
    "The sign is wrong: ln p is negative, and a cost is -ln p.": _mutant(
        log=lambda p: -math.log(p)
    ),
    "You add -ln p of the options without weighing them. Each occurs with its probability p: p * -ln p.": _mutant(
        own=lambda p, cost: cost
    ),
    "You count only what follows, and not what the choice itself costs: -p ln p of each option.": _mutant(
        own=lambda p, cost: 0.0
    ),
    "You go on with the first choice of an option only. All of its choices are made: add them up.": _mutant(
        keep=lambda below: below[:1]
    ),
    "You count a choice that stands twice in an option once. It is made twice: add it twice.": _mutant(
        keep=lambda below: list(dict.fromkeys(below))
    ),
}


@exercise
def entropy(fn: Callable[[Choice], float]) -> str:
    """Check an `entropy(choice)` in nats."""
    grammars = {name: Grammar(rules) for name, rules in _GRAMMARS.items()}
    yours = {name: fn(grammar.start) for name, grammar in grammars.items()}
    for value in yours.values():
        assert isinstance(value, int | float), (
            f"It returned {type(value).__name__}; return a number of nats."
        )
    right = {name: floor.entropy(grammar) for name, grammar in grammars.items()}
    if not _equal(yours, right):
        for sentence, instead in _INSTEAD.items():
            if _equal(yours, {name: instead(g.start) for name, g in grammars.items()}):
                raise AssertionError(sentence)
        name = next(name for name in right if not _close(yours[name], right[name]))
        raise AssertionError(
            f"For {name} the entropy is {right[name]:.4f} nats; yours gives {yours[name]:.4f}. The rules are {_GRAMMARS[name]}."
        )
    return "Four grammars, each as by counting visits."


@exercise
def bits_per_byte(fn: Callable[[float, int, int], float]) -> str:
    """Check a `bits_per_byte(loss, n_tokens, n_bytes)`."""
    probes = [(math.log(2), 100, 100), (1.0, 50, 200), (0.29, 92, 349)]
    yours = [fn(*probe) for probe in probes]
    for value in yours:
        assert isinstance(value, int | float), (
            f"It returned {type(value).__name__}; return a number."
        )
    mistakes: dict[str, Callable[[float, int, int], float]] = {
        "These are nats per byte. A bit is ln 2 nats: divide by math.log(2).": lambda loss, t, b: (
            loss * t / b
        ),
        "You multiply by ln 2. A bit is the smaller coin of the two, 0.69 nats, so the number of bits is larger: divide.": lambda loss, t, b: (
            loss * t / b * math.log(2)
        ),
        "You divide by the tokens and multiply by the bytes. The text costs loss * n_tokens nats in all, and that is spread over its bytes.": lambda loss, t, b: (
            loss * b / t / math.log(2)
        ),
        "These are bits per token. The text costs loss * n_tokens nats in all; spread that over its bytes.": lambda loss, t, b: (
            loss / math.log(2)
        ),
        "These are the bits of the whole text. Divide by the number of its bytes.": lambda loss, t, b: (
            loss * t / math.log(2)
        ),
        "You turn bytes of text into bits. The text is counted in bytes, the model's surprise in bits: leave the 8 out.": lambda loss, t, b: (
            8 * loss * t / b / math.log(2)
        ),
        "You divide by the bits of the text. It is counted in bytes, the model's surprise in bits: leave the 8 out.": lambda loss, t, b: (
            loss * t / (8 * b) / math.log(2)
        ),
        "That is the cost of *one* token. There are n_tokens: multiply by them before dividing by the bytes.": lambda loss, t, b: (
            loss / b / math.log(2)
        ),
        "These are decimal digits. A bit is ln 2 nats: divide by math.log(2).": lambda loss, t, b: (
            loss * t / b / math.log(10)
        ),
        "You take the logarithm of the loss. It is a logarithm already, in nats: divide by math.log(2).": lambda loss, t, b: (
            math.log2(loss) * t / b
        ),
    }
    right = [loss * t / (b * math.log(2)) for loss, t, b in probes]
    if not all(map(_close, yours, right)):
        for sentence, instead in mistakes.items():
            if all(map(_close, yours, [instead(*probe) for probe in probes])):
                raise AssertionError(sentence)
        i = next(i for i in range(len(probes)) if not _close(yours[i], right[i]))
        loss, t, b = probes[i]
        raise AssertionError(
            f"A loss of {loss:.4f} nats per token over {t} tokens and {b} bytes is {right[i]:.4f} bits per byte; yours gives {yours[i]:.4f}."
        )
    return f"Per byte, tokens of any size can be compared. If the stories have 92 tokens a story with the one and 150 with the other, 0.29 and 0.21 are {fn(0.29, 92, 349):.3f} and {fn(0.21, 150, 349):.3f} bits per byte."


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def _equal(a: dict[str, float], b: dict[str, float]) -> bool:
    return all(_close(a[name], b[name]) for name in b)
