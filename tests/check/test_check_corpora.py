"""The checks of the exercises on corpora, where attempts and switches do not reach: chance, and other processes."""

import hashlib

import pytest

from course import check
from slm.data.readers import in_validation


@pytest.mark.parametrize("name", ["last_safe_cut", "split_documents"])
def test_stub_is_told_apart(name):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert "still the stub" in getattr(check, name)(stub).message


@pytest.mark.parametrize("salt", range(20))
def test_no_hash_is_refused_by_chance(salt):
    def held(text, fraction):
        digest = hashlib.sha256(f"{salt}{text}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64 < fraction

    split = lambda texts, f: (
        [t for t in texts if not held(t, f)],
        [t for t in texts if held(t, f)],
    )
    verdict = check.split_documents(split)
    assert verdict.passed, verdict


def test_the_package_s_own_rule_passes():
    assert check.split_documents(
        lambda texts, f: (
            [t for t in texts if not in_validation(t, f)],
            [t for t in texts if in_validation(t, f)],
        )
    ).passed


def by_the_order_of_a_set(texts, fraction):
    held = {t for t in texts if t.__hash__() % 1000 < 1000 * fraction}
    return [t for t in texts if t not in held], [t for t in texts if t in held]


def test_another_process_is_asked_where_hash_is_called_by_another_name():
    said = check.split_documents(by_the_order_of_a_set).message
    assert "Another Python process" in said
