"""What the switches and the attempts do not prove: the references do what the package does."""

import pytest

from course import check
from course.check.floor import BITS, ENTROPY
from slm.data.floor import ReferenceLines, entropy
from slm.data.grammar import Grammar
from slm.data.stories import STORIES


@pytest.mark.parametrize("rules", [rules for rules, way in ENTROPY.probes if not way])
def test_entropy_is_the_floors(rules):
    grammar = Grammar(rules)
    assert ENTROPY.answer(grammar.start) == pytest.approx(entropy(grammar), abs=1e-12)


@pytest.mark.parametrize("loss, n_tokens, n_bytes", BITS.probes)
def test_bits_are_those_of_the_lines(loss, n_tokens, n_bytes):
    lines = ReferenceLines(0.0, 0.0, 0.0, 0.0, n_tokens, n_bytes)
    bits = BITS.answer(loss, n_tokens, n_bytes)
    assert bits == pytest.approx(lines.bits_per_byte(loss), rel=1e-12)


def test_a_number_that_is_always_the_same_is_told():
    assert "the same for every input" in check.entropy(lambda choice: 0.5623351446188083).message  # fmt: skip
    assert "the entropy of the course's stories" in check.entropy(lambda choice: entropy(STORIES)).message  # fmt: skip
