"""The checks of the exercises on batches are themselves checked: each planted bug is caught with its own message."""

import numpy as np
import pytest
import torch

from course import check


def rows_solution(tokens, T):
    R = (len(tokens) - 1) // T
    return tokens[: R * T].view(R, T), tokens[1 : R * T + 1].view(R, T)


def rows_of(tokens, T, starts, shift=1):
    x = torch.stack([tokens[i : i + T] for i in starts])
    return x, torch.stack([tokens[i + shift : i + shift + T] for i in starts])


def full(tokens, T, every):
    return range(0, len(tokens) - T, every)


def unfinished_rows(tokens, T):
    """Forgets that the last row needs one token more for its target."""
    R = len(tokens) // T
    return tokens[: R * T].view(R, T), tokens[1 : R * T + 1].view(R, T)


def repaired_last_target(tokens, T):
    """Where the last target is missing, takes the first token of the strip."""
    R = len(tokens) // T
    return tokens[: R * T].view(R, T), tokens.roll(-1)[: R * T].view(R, T)


ROWS_BUGS = {
    "inputs themselves": lambda t, T: (rows_solution(t, T)[0],) * 2,
    "*before* the inputs": lambda t, T: rows_solution(t, T)[::-1],
    "two ahead": lambda t, T: rows_of(t, T, range(0, len(t) - T - 1, T), 2),
    "first token of the next row": lambda t, T: (
        (x := rows_solution(t, T)[0]),
        x.roll(-1, 1),
    ),
    "rows overlap": lambda t, T: rows_of(t, T, full(t, T, 1)),
    "is never an input": lambda t, T: rows_of(t, T, full(t, T, T + 1)),
    "begins at token 1": lambda t, T: rows_solution(t[1:], T),
    "you made 2": lambda t, T: tuple(part[:-1] for part in rows_solution(t, T)),
    "third row lacks its last target": unfinished_rows,
    "since a third one lacks its last target": repaired_last_target,
    "(R, T) with T = 4 is expected": lambda t, T: tuple(
        part.flatten() for part in rows_solution(t, T)
    ),
    "each input needs one target": lambda t, T: (t, t[1:]),
    "Return two tensors": lambda t, T: rows_solution(t, T)[0],
    "should be tensors": lambda t, T: tuple(
        part.tolist() for part in rows_solution(t, T)
    ),
}


def order_solution(n_rows, B, seed, step):
    epoch, place = np.divmod(np.arange(step * B, (step + 1) * B), n_rows)
    orders = {
        e: np.random.RandomState([seed, e]).permutation(n_rows)
        for e in set(epoch.tolist())
    }
    return np.array([orders[e][p] for e, p in zip(epoch.tolist(), place, strict=True)])


def with_order(permutation):
    """A solution but for how an epoch's permutation is made."""

    def rows(n_rows, B, seed, step):
        epoch, place = np.divmod(np.arange(step * B, (step + 1) * B), n_rows)
        return np.array(
            [
                permutation(n_rows, seed, e)[p]
                for e, p in zip(epoch.tolist(), place, strict=True)
            ]
        )

    return rows


def global_generator():
    generator = np.random.RandomState(0)
    return lambda n_rows, B, seed, step: generator.permutation(n_rows)[:B]


def remembers():
    """Right when it is asked for steps 0, 1, 2, … in this order, and only then."""
    given = [0]

    def rows(n_rows, B, seed, step):
        given[0] = 0 if step == 0 else given[0] + 1
        return order_solution(n_rows, B, seed, given[0])

    return rows


def independent_batches(n_rows, B, seed, step):
    return np.random.RandomState([seed, step]).randint(0, n_rows, B)


def clipped(n_rows, B, seed, step):
    epoch, place = divmod(step * B, n_rows)
    return np.random.RandomState([seed, epoch]).permutation(n_rows)[place : place + B]


def wrapping(n_rows, B, seed, step):
    """The batch over the end of an epoch goes on in the same permutation."""
    epoch, place = divmod(step * B, n_rows)
    order = np.random.RandomState([seed, epoch]).permutation(n_rows)
    return order[np.arange(place, place + B) % n_rows]


def always_two_epochs(n_rows, B, seed, step):
    epoch, place = divmod(step * B, n_rows)
    orders = [
        np.random.RandomState([seed, epoch + e]).permutation(n_rows) for e in (0, 1)
    ]
    return np.concatenate([*orders, orders[0]])[place : place + B]


ORDER_BUGS = {
    "draws from a global generator": global_generator,
    "when steps 0 to 6 came before": remembers,
    "come more than once": lambda: independent_batches,
    "is not full": lambda: clipped,
    "go on at the start of the next permutation": lambda: wrapping,
    "nothing is shuffled": lambda: with_order(lambda n, seed, epoch: np.arange(n)),
    "All epochs have the same order": lambda: with_order(
        lambda n, seed, epoch: np.random.RandomState(seed).permutation(n)
    ),
    "the seed is not used": lambda: with_order(
        lambda n, seed, epoch: np.random.RandomState(epoch).permutation(n)
    ),
    "seed + epoch": lambda: with_order(
        lambda n, seed, epoch: np.random.RandomState(seed + epoch).permutation(n)
    ),
    "Rows must lie between": lambda: with_order(
        lambda n, seed, epoch: np.random.RandomState([seed, epoch]).permutation(n) + 1
    ),
    "larger than an epoch": lambda: always_two_epochs,
    "(B,) = (8,) is expected": lambda: (
        lambda n, B, seed, step: order_solution(n, B + 1, seed, step)
    ),
}


@pytest.mark.parametrize("message", ROWS_BUGS)
def test_planted_bug_in_rows_is_named(message):
    verdict = check.shifted_rows(ROWS_BUGS[message])
    assert not verdict.passed and message in verdict.message


@pytest.mark.parametrize("message", ORDER_BUGS)
def test_planted_bug_in_an_order_is_named(message):
    verdict = check.rows_of_step(ORDER_BUGS[message]())
    assert not verdict.passed and message in verdict.message


@pytest.mark.parametrize("name", ["shifted_rows", "rows_of_step"])
def test_stub_is_told_apart(name):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert "still the stub" in getattr(check, name)(stub).message


def test_solutions_pass():
    assert check.shifted_rows(rows_solution).passed
    assert check.rows_of_step(order_solution).passed
