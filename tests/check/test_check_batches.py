"""The checks of the exercises on batches, where attempts and switches do not reach: chance, and what is kept."""

import numpy as np
import pytest

from course import check
from course.check.batches import dealt


@pytest.mark.parametrize("name", ["shifted_rows", "rows_of_step"])
def test_stub_is_told_apart(name):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert "still the stub" in getattr(check, name)(stub).message


@pytest.mark.parametrize("salt", range(20))
def test_no_permutation_is_refused_by_chance(salt):
    def rows(n_rows, B, seed, step):
        g = np.arange(step * B, (step + 1) * B)
        orders = {
            e: np.random.default_rng([salt, seed, e]).permutation(n_rows)
            for e in set((g // n_rows).tolist())
        }
        return np.array(
            [orders[e][p] for e, p in zip(g // n_rows, g % n_rows, strict=True)]
        )

    assert check.rows_of_step(rows).passed


def test_what_is_right_only_in_the_order_0_1_2_is_caught():
    given = [0]

    def rows(n_rows, B, seed, step):
        given[0] = 0 if step == 0 else given[0] + 1
        return dealt(n_rows, B, seed, given[0])

    assert "keep a generator (or a count)" in check.rows_of_step(rows).message
