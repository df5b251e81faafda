"""The checks on generation: each planted bug is caught with its own message, the stub is told apart, the solution passes."""

import math

import pytest
import torch

from course import check


def min_p(p, m):
    left = p * (p >= m * p.amax(-1, keepdim=True))
    return left / left.sum(-1, keepdim=True)


def normal(p):
    return p / p.sum(-1, keepdim=True)


def in_place(p, m):
    p[p < m * p.amax(-1, keepdim=True)] = 0
    return p / p.sum(-1, keepdim=True)


MIN_P_BUGS = {
    "The threshold is relative": lambda p, m: normal(p * (p >= m)),
    "wrong way round": lambda p, m: normal(p * (p < m * p.amax(-1, keepdim=True))),
    "runs over the batch": lambda p, m: normal(p * (p >= m * p.amax(0))),
    "one maximum for the whole batch": lambda p, m: normal(p * (p >= m * p.max())),
    "Divide by the sum": lambda p, m: p * (p >= m * p.amax(-1, keepdim=True)),
    "apply a softmax to probabilities": lambda p, m: torch.where(
        p >= m * p.amax(-1, keepdim=True), p, -torch.inf
    ).softmax(-1),
    "('at least')": lambda p, m: normal(p * (p > m * p.amax(-1, keepdim=True))),
    "changed its input probabilities in place": in_place,
    "You subtract min_p": lambda p, m: normal(p * (p >= p.amax(-1, keepdim=True) - m)),
    "not where to keep them": lambda p, m: p >= m * p.amax(-1, keepdim=True),
    "should stay so": lambda p, m: min_p(p.double(), m),
    "Nothing is removed": lambda p, m: normal(p + 0),
    "keeps its place in the vocabulary": lambda p, m: min_p(p.sort(-1).values, m),
    "sum of the whole batch": lambda p, m: (
        (left := p * (p >= m * p.amax(-1, keepdim=True))) / left.sum()
    ),
    "keep theirs": lambda p, m: min_p(p, m)[0],
    "should keep 4 tokens": lambda p, m: min_p(p, m / 2),
    "Each row should sum to one": lambda p, m: 2 * min_p(p, m),
    "same proportion": lambda p, m: normal((p >= m * p.amax(-1, keepdim=True)).float()),
}


def scored(
    model, prompt, continuation, *, shift=1, first=0, log_softmax=True, whole=False
):
    tokens = torch.tensor([prompt + continuation])
    logits = model(tokens)[0]
    log_p = logits.log_softmax(-1) if log_softmax else logits
    begin = 1 if whole else len(prompt) + first
    return sum(
        float(log_p[t - shift, tokens[0, t]]) for t in range(begin, tokens.size(1))
    )


def without_prompt(model, prompt, continuation):
    log_p = model(torch.tensor([continuation]))[0].log_softmax(-1)
    return sum(float(log_p[t - 1, token]) for t, token in enumerate(continuation) if t)


LOG_PROBABILITY_BUGS = {
    "shift by one": lambda *a: scored(*a, shift=0),
    "You score the prompt": lambda *a: scored(*a, whole=True),
    "first token of the continuation is missing": lambda *a: scored(*a, first=1),
    "You add up logits": lambda *a: scored(*a, log_softmax=False),
    "mean per token": lambda model, p, c: scored(model, p, c) / len(c),
    "The sign is turned": lambda *a: -scored(*a),
    "never sees the prompt": without_prompt,
    "Return its log": lambda *a: float(torch.tensor(scored(*a)).exp()),
    "put one axis in front": lambda model, p, c: float(
        model(torch.tensor(p + c)).sum()
    ),
    "sum should be": lambda *a: scored(*a) - 1,
}


def prompt_in_place(model, prompt, continuation):
    length = len(prompt)
    prompt += continuation
    return scored(model, prompt[:length], continuation)


def over_time(model, prompt, continuation):
    tokens = torch.tensor([prompt + continuation])
    log_p = model(tokens[:, :-1]).log_softmax(1)[0]
    return sum(
        float(log_p[t - 1, tokens[0, t]]) for t in range(len(prompt), tokens.size(1))
    )


def all_at_once(model, prompt, continuation):
    log_p = model(torch.tensor([prompt]))[0, -1].log_softmax(-1)
    return sum(float(log_p[token]) for token in continuation)


def probabilities_added(model, prompt, continuation):
    tokens = torch.tensor([prompt + continuation])
    p = model(tokens)[0].softmax(-1)
    return sum(
        float(p[t - 1, tokens[0, t]]) for t in range(len(prompt), tokens.size(1))
    )


LOG_PROBABILITY_BUGS |= {
    "changed its input prompt in place": prompt_in_place,
    "softmax runs over time": over_time,
    "looked up at the last position of the prompt": all_at_once,
    "You add up probabilities": probabilities_added,
    "Those are bits": lambda *a: scored(*a) / math.log(2),
    "It returned NoneType; return one number": lambda *a: None,
    "It returned a tensor (3, 7)": lambda model, p, c: model(torch.tensor([p + c]))[
        0, -len(c) - 1 : -1
    ].log_softmax(-1),
}


class Cache:
    """The solution; its subclasses are the bugs."""

    def __init__(self, capacity):
        self.capacity, self.k, self.v = capacity, None, None

    def __call__(self, k, v):
        self.k = self.keep(k if self.k is None else self.join(self.k, k))
        self.v = self.keep(v if self.v is None else self.join(self.v, v))
        return self.k, self.v

    def join(self, old, new):
        return torch.cat([old, new], dim=2)

    def keep(self, x):
        return x[:, :, -self.capacity :]


class NeverForgets(Cache):
    def keep(self, x):
        return x


class KeepsTheFirst(Cache):
    def keep(self, x):
        return x[:, :, : self.capacity]


class OnlyTheNew(Cache):
    def join(self, old, new):
        return new


class WrongAxis(Cache):
    def join(self, old, new):
        return torch.cat([old.flatten(1, 2), new.flatten(1, 2)], dim=1)[:, None]


class NewestFirst(Cache):
    def join(self, old, new):
        return torch.cat([new, old], dim=2)

    def keep(self, x):
        return x[:, :, : self.capacity]


class KeysTwice(Cache):
    def __call__(self, k, v):
        keys, _ = super().__call__(k, v)
        return keys, keys


class OneTooFew(Cache):
    def keep(self, x):
        return x[:, :, -self.capacity + 1 :]


class OnlyKeys(Cache):
    def __call__(self, k, v):
        return super().__call__(k, v)[0]


class StaleValues(Cache):
    def __call__(self, k, v):
        old = self.v
        keys, values = super().__call__(k, v)
        return keys, values if old is None or old.shape != values.shape else old


class Shared(Cache):
    kept: dict = {}

    def __call__(self, k, v):
        self.k, self.v = self.kept.get("k"), self.kept.get("v")
        self.kept["k"], self.kept["v"] = super().__call__(k, v)
        return self.k, self.v


class CutsOnlyLater(Cache):
    def __call__(self, k, v):
        if self.k is None:
            self.k, self.v = k, v
            return k, v
        return super().__call__(k, v)


class WritesToItsInput(Cache):
    def __call__(self, k, v):
        k.mul_(2)
        return super().__call__(k, v)


class KeepsAll(Cache):
    def __call__(self, k, v):
        self.k = k if self.k is None else self.join(self.k, k)
        self.v = v if self.v is None else self.join(self.v, v)
        return self.keep(self.k), self.keep(self.v)


class CutsOnlyTheKeys(Cache):
    def __call__(self, k, v):
        self.k = self.keep(k if self.k is None else self.join(self.k, k))
        self.v = v if self.v is None else self.join(self.v, v)
        return self.k, self.v


class ValuesFirst(Cache):
    def __call__(self, k, v):
        return super().__call__(k, v)[::-1]


class Lists(Cache):
    def __call__(self, k, v):
        keys, values = super().__call__(k, v)
        return list(keys), list(values)


class NotCallable:
    def __init__(self, capacity):
        self.capacity = capacity

    def update(self, k, v):
        return k, v


CACHE_BUGS = {
    "changed its input k in place": WritesToItsInput,
    "keeps all 12": KeepsAll,
    "Treat both alike": CutsOnlyTheKeys,
    "keys and values have changed places": ValuesFirst,
    "A call returned (list, list)": Lists,
    "Write a method __call__": NotCallable,
    "an instance of Cache": Cache(5),
    "cut there, too": CutsOnlyLater,
    "oldest must be forgotten": NeverForgets,
    "keeps the *first*": KeepsTheFirst,
    "only the 1 it was just given": OnlyTheNew,
    "Join along time": WrongAxis,
    "not in the order of time": NewestFirst,
    "the values are the keys": KeysTwice,
    "should return 5 positions; yours returns 4": OneTooFew,
    "return the pair": OnlyKeys,
    "the values are not those": StaleValues,
    "keep the tensors on the instance": Shared,
}


PLANTED = [
    pytest.param(name, bug, message, id=f"{name}: {message}")
    for name, bugs in (
        ("min_p", MIN_P_BUGS),
        ("log_probability", LOG_PROBABILITY_BUGS),
        ("sliding_cache", CACHE_BUGS),
    )
    for message, bug in bugs.items()
]


@pytest.mark.parametrize(("name", "bug", "message"), PLANTED)
def test_planted_bug_is_named(named, name, bug, message):
    Shared.kept.clear()
    named(getattr(check, name), bug, message)


def stub(*arguments):
    raise NotImplementedError("your turn")


@pytest.mark.parametrize("name", ["min_p", "log_probability", "sliding_cache"])
def test_stub_is_told_apart(name):
    assert "still the stub" in getattr(check, name)(stub).message


@pytest.mark.parametrize(
    "name, solution",
    [("min_p", min_p), ("log_probability", scored), ("sliding_cache", Cache)],
)
def test_solution_passes(name, solution):
    verdict = getattr(check, name)(solution)
    assert verdict.passed, verdict.message
