"""The checks on generation: what `test_diagnose.py` (every switch) and `attempts/generation.txt` do not prove."""

import pytest
import torch

from course import check
from course.check.generation import tensors


class Cache:
    """The solution; its subclasses are the bugs that no switch has."""

    def __init__(self, capacity):
        self.capacity, self.k, self.v = capacity, None, None

    def __call__(self, k, v):
        self.k = k if self.k is None else torch.cat([self.k, k], dim=2)
        self.v = v if self.v is None else torch.cat([self.v, v], dim=2)
        self.k, self.v = self.k[:, :, -self.capacity :], self.v[:, :, -self.capacity :]
        return self.k, self.v


class WritesToItsInput(Cache):
    def __call__(self, k, v):
        k.mul_(2)
        return super().__call__(k, v)


class Shared(Cache):
    kept: dict = {}

    def __call__(self, k, v):
        self.k, self.v = self.kept.get("k"), self.kept.get("v")
        self.kept["k"], self.kept["v"] = super().__call__(k, v)
        return self.k, self.v


class NotCallable:
    def __init__(self, capacity):
        self.capacity = capacity


@pytest.mark.parametrize(
    "answer, words",
    [
        (WritesToItsInput, "input k"),
        (Shared, "begins with what another one holds"),
        (NotCallable, "Write a method __call__"),
        (Cache(5), "an instance of Cache"),
    ],
)
def test_what_is_seen_while_a_cache_is_used_is_told(answer, words):
    Shared.kept.clear()
    assert words in check.sliding_cache(answer).message


def test_tensors_are_found_wherever_they_are_held():
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)

    class Holder:
        def __init__(self):
            self.deep = {"list": [(one,)]}
            self.closure = lambda: two

    holder = Holder()
    holder.more = three
    assert {x.numel() for x in tensors(holder)} == {1, 2, 3}


def stub(*arguments):
    raise NotImplementedError("your turn")


@pytest.mark.parametrize("name", ["min_p", "log_probability", "sliding_cache"])
def test_stub_is_told_apart(name):
    assert "still the stub" in getattr(check, name)(stub).message
