"""What the switches and the attempts do not prove: the references do what the package does."""

from collections import Counter

import pytest
import regex

from course.check.tokens import _TABLES, DECODE, MERGE
from slm.data.stories import sample
from slm.data.tokenizer import PATTERN, Tokenizer, train_bpe


def test_merges_one_after_the_other_are_a_training():
    texts = [sample(seed) for seed in range(40)]
    found = Counter(word for text in texts for word in regex.findall(PATTERN, text))
    words = {tuple(bytes([b]) for b in word.encode()): n for word, n in found.items()}
    ranks = {bytes([byte]): byte for byte in range(256)}
    for _ in range(60):
        words = MERGE.answer(words)
        for part in {part for word in words for part in word} - ranks.keys():
            ranks[part] = len(ranks)
    assert list(ranks) == list(train_bpe(texts, 60 + 257))


@pytest.mark.parametrize("ids, n_ranks", DECODE.probes)
def test_decode_is_that_of_the_tokenizer(ids, n_ranks):
    ranks = _TABLES[n_ranks]
    assert DECODE.answer(ids, ranks) == Tokenizer("ours", ranks).decode(ids)
