"""The tokenizer: training against a naive recount, encoding against tiktoken, and everything that can be missing."""

import collections
import itertools
import math
import pickle
import random
import subprocess
import sys
import threading
import time
import urllib.error
from email.message import Message

import numpy as np
import pytest
import regex
import tiktoken
import torch

from slm import files
from slm.data import stories, tokenizer
from slm.data.tokenizer import (
    END_OF_TEXT,
    PATTERN,
    Tokenizer,
    encode_word,
    get_tokenizer,
    merge,
    train_bpe,
)
from slm.errors import SlmError

PIECES = [
    *"ab cXY.,'\n\t\r\0\x1b",
    "é",
    "日本語",
    "🦊",
    "👩‍🚀",
    "\u200b",
    "\u0301",
    "１２",
    "2024",
    "'s",
    "'ll",
    "   ",
    "a" * 400,
    END_OF_TEXT,
    "<|",
    "|>",
]


def fuzz(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    texts = ["".join(rng.choices(PIECES, k=rng.randrange(20))) for _ in range(n)]
    texts += [
        "".join(
            chr(
                rng.choice(
                    [
                        rng.randrange(32),
                        rng.randrange(0x3000),
                        rng.randrange(0x1F300, 0x1F700),
                    ]
                )
            )
            for _ in range(40)
        )
        for _ in range(n)
    ]
    return [*texts, "", " ", "\n\n\n", END_OF_TEXT * 3]


def recount(texts, vocab_size):
    """The definition: at every merge count all pairs of all words anew. Written without looking at train_bpe."""
    corpus = [
        [word.encode()[i : i + 1] for i in range(len(word.encode()))]
        for text in texts
        for word in regex.findall(PATTERN, text)
    ]
    ranks = {bytes([i]): i for i in range(256)}
    while len(ranks) + 1 < vocab_size:
        tally = {}
        for word in corpus:
            for left, right in zip(word, word[1:], strict=False):
                tally[left, right] = tally.get((left, right), 0) + 1
        most = max(tally.values())
        left, right = sorted(pair for pair, n in tally.items() if n == most)[0]
        if left + right not in ranks:
            ranks[left + right] = len(ranks)
        for word in corpus:
            i = 0
            while i < len(word) - 1:
                if word[i] == left and word[i + 1] == right:
                    word[i : i + 2] = [left + right]
                i += 1
    return ranks


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return get_tokenizer("stories")


@pytest.mark.parametrize("seed", range(4))
def test_training_equals_a_naive_recount(seed):
    rng = random.Random(seed)
    texts = [
        "".join(rng.choices("aab b ", k=200)) for _ in range(10)
    ]  # few letters: many ties and overlaps
    assert train_bpe(texts, 290) == recount(texts, 290)
    texts = [stories.sample(seed * 50 + i) for i in range(25)] + fuzz(20, seed)
    assert list(train_bpe(texts, 420).items()) == list(recount(texts, 420).items())


def test_the_order_of_the_texts_does_not_matter():
    texts = [stories.sample(seed) for seed in range(80)]
    assert train_bpe(texts, 450) == train_bpe(iter(texts[::-1]), 450)


def test_merge_overlaps_from_left_to_right():
    assert merge([b"a"] * 5, (b"a", b"a")) == [b"aa", b"aa", b"a"]
    assert merge([b"a", b"b", b"a", b"b"], (b"a", b"b")) == [b"ab", b"ab"]
    assert merge([b"b", b"a"], (b"a", b"b")) == [b"b", b"a"]


@pytest.mark.parametrize("vocab_size", [256, 1, 0, -5])
def test_a_vocabulary_below_the_bytes_is_refused(vocab_size):
    with pytest.raises(
        ValueError, match=f"vocab_size is {vocab_size}; it must be at least 257"
    ):
        train_bpe(["abc"], vocab_size)


def test_too_little_text_is_refused():
    with pytest.raises(
        ValueError, match="vocab_size is 300, but these texts give 258 tokens at most"
    ):
        train_bpe(["ab ", "ab"], 300)
    with pytest.raises(ValueError, match="these texts give 257 tokens at most"):
        train_bpe([], 258)
    assert len(train_bpe([""], 257)) == 256


def test_no_merge_crosses_a_word():
    ranks = train_bpe(["to be or not to be " * 50], 266)
    assert all(b" " not in token[1:] for token in ranks)


def test_it_is_quick_because_it_is_incremental():
    text = [" ".join(f"{stories.sample(seed)}{seed * 7919}" for seed in range(700))]
    quick = math.inf
    for _ in range(3):  # so short that one interruption shows
        start = time.process_time()
        fast = train_bpe(text, 400)
        quick = min(quick, time.process_time() - start)
    start = time.process_time()
    words = collections.Counter(regex.findall(PATTERN, text[0]))
    parts = {word: [bytes([b]) for b in word.encode()] for word in words}
    ranks = {bytes([i]): i for i in range(256)}
    while len(ranks) < 399:
        counts = collections.Counter()
        for word, n in words.items():
            for pair in itertools.pairwise(parts[word]):
                counts[pair] += n
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        ranks.setdefault(best[0] + best[1], len(ranks))
        parts = {word: merge(part, best) for word, part in parts.items()}
    slow = time.process_time() - start
    assert ranks == fast
    assert slow > 2.5 * quick


def test_encoding_equals_the_slow_one_on_anything(ours):
    for text in fuzz(300):
        words = regex.findall(PATTERN, text)
        assert "".join(words) == text
        slow = [i for word in words for i in encode_word(word.encode(), ours.ranks)]
        assert ours.encode(text) == ours.encode_ordinary(text) == slow
        assert ours.decode(slow) == text
        assert ours.eot_token not in slow


def test_our_pattern_cuts_as_gpt2_does(gpt2_cache):
    theirs = tiktoken.get_encoding("gpt2")
    gpt2 = get_tokenizer("gpt2")
    for text in fuzz(300, seed=5):
        assert gpt2.encode(text) == theirs.encode_ordinary(text)


def test_special_tokens_are_text_unless_asked_for(ours):
    text = f"a{END_OF_TEXT}b"
    assert ours.eot_token not in ours.encode(text)
    assert ours.encode(text, allowed_special="all") == [97, ours.eot_token, 98]
    assert ours.encode(text, allowed_special={END_OF_TEXT}) == [97, ours.eot_token, 98]
    with pytest.raises(ValueError, match="disallowed special token"):
        ours.encode(text, disallowed_special="all")
    assert ours.decode([97, ours.eot_token]) == f"a{END_OF_TEXT}"


WAYS = {
    "decode": lambda t, ids: t.decode(ids),
    "decode_bytes": lambda t, ids: t.decode_bytes(ids),
    "decode_tokens_bytes": lambda t, ids: t.decode_tokens_bytes(ids),
    "decode_with_offsets": lambda t, ids: t.decode_with_offsets(ids),
    "decode_batch": lambda t, ids: t.decode_batch([[72], ids]),
    "decode_bytes_batch": lambda t, ids: t.decode_bytes_batch([[72], ids]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (1024, "1024"),
        (-1, "-1"),
        (-100, "-100"),
        (2**70, "1180591620717411303424"),
        (1.0, "1.0"),
        ("a", "'a'"),
        (None, "None"),
        ([72], "[72]"),
        (np.float64(72), "np.float64(72.0)"),
        (torch.tensor(5000), "tensor(5000)"),
        (torch.zeros(3000), None),  # is shortened
    ],
)
def test_an_id_that_it_does_not_have_is_named_with_its_place(ours, way, wrong, told):
    with pytest.raises(ValueError) as error:
        WAYS[way](ours, [72, 105, wrong])
    sentence = str(error.value)
    assert sentence.startswith("token 2 is " + (told or "tensor("))
    assert sentence.endswith(
        ", but tokenizer 'stories' has no such id: ids from 0 to 1023 are allowed"
    )
    assert len(sentence) < 150 and "\n" not in sentence


def test_one_token_and_gpt2_and_a_saved_one_refuse_alike(ours, tmp_path, gpt2_cache):
    said = (
        "token 0 is {}, but tokenizer '{}' has no such id: ids from 0 to {} are allowed"
    )
    saved = get_tokenizer(ours.save(tmp_path / "mine.tiktoken"))
    for kind, last in ((get_tokenizer("gpt2"), 50256), (saved, 1023)):
        for call in (kind.decode_single_token_bytes, lambda i, t=kind: t.decode([i])):
            assert call(last) in (END_OF_TEXT, END_OF_TEXT.encode())
            with pytest.raises(ValueError) as error:
                call(last + 1)
            assert str(error.value) == said.format(last + 1, kind.name, last)


@pytest.mark.parametrize("way", WAYS)
def test_all_that_holds_ids_is_decoded(ours, way):
    expected = WAYS[way](ours, [72, 105])
    for ids in ((72, 105), np.array([72, 105], np.uint16), torch.tensor([72, 105])):
        assert WAYS[way](ours, ids) == expected
    assert ours.decode(iter([72, 105])) == "Hi"


def test_lone_surrogates_do_not_stop_it(ours):
    assert ours.decode(ours.encode("a\ud83d b")) == "a\ufffd b"
    assert len(train_bpe(["ab\ud83d"], 258)) == 257


def test_the_stories_vocabulary(ours):
    assert (
        ours.n_vocab == tokenizer.STORIES_VOCAB_SIZE
        and ours.eot_token == ours.n_vocab - 1
    )
    assert ours.fingerprint == "45cbcd421a7fa1fe"
    assert get_tokenizer("stories") is ours
    lengths = [len(ours.encode(stories.sample(seed))) for seed in range(300)]
    assert 55 < sum(lengths) / len(lengths) < 95
    assert max(lengths) < 160


def test_gpt2_ids(gpt2_cache):
    gpt2 = get_tokenizer()
    assert gpt2.encode("hello world") == [31373, 995]
    assert (gpt2.n_vocab, gpt2.eot_token, gpt2.name) == (50257, 50256, "gpt2")


def without_gpt2(command: str, folder) -> subprocess.CompletedProcess:
    """Run Python where nothing is cached and no proxy answers."""
    environment = {
        "PATH": "",
        "TIKTOKEN_CACHE_DIR": str(folder),
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "PYTHONPATH": ".",
    }
    return subprocess.run(
        [sys.executable, "-c", command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_gpt2_out_of_reach_is_one_sentence_and_nothing_is_fetched(tmp_path):
    command = """
from slm.data import tokenizer
from slm.errors import SlmError
tokenizer.tiktoken.get_encoding = None
try:
    tokenizer.get_tokenizer("gpt2")
except SlmError as error:
    assert error.retry
    print(error)
"""
    done = without_gpt2(command, tmp_path)
    (sentence,) = done.stdout.splitlines()
    assert "TIKTOKEN_CACHE_DIR" in sentence and "tokenizer: stories" in sentence
    assert not list(tmp_path.iterdir())


def test_a_server_that_never_answers_is_waited_for_a_second(
    monkeypatch, tmp_path, waits_in
):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    waits, given_up = waits_in(files), threading.Event()

    def silent(*_, **__):
        given_up.wait(timeout=300)
        raise TimeoutError

    monkeypatch.setattr(files.urllib.request, "urlopen", silent)
    with pytest.raises(SlmError, match="its server does not answer"):
        tokenizer._gpt2.__wrapped__()
    given_up.set()
    assert waits == [1.0]


def test_a_server_that_refuses_has_answered(monkeypatch):
    def refuses(request, timeout):
        raise urllib.error.HTTPError(
            request.full_url, 403, "forbidden", Message(), None
        )

    monkeypatch.setattr(files.urllib.request, "urlopen", refuses)
    assert files.answers("https://example.org/")


def test_a_download_that_breaks_off_is_one_sentence(monkeypatch, tmp_path):
    def breaks_off(*_, **__):
        raise ConnectionError("connection reset")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tokenizer, "answers", lambda _: True)
    monkeypatch.setattr(tokenizer.tiktoken, "get_encoding", breaks_off)
    with pytest.raises(
        match=r"fetching it failed \(connection reset\): set TIKTOKEN_CACHE_DIR"
    ):
        tokenizer._gpt2.__wrapped__()


def test_save_and_load(ours, tmp_path):
    file = ours.save(tmp_path / "run" / "model")
    assert file == tmp_path / "run" / "model" / "tokenizer.tiktoken"
    other = ours.save(tmp_path / "mine.tiktoken")
    for path in (file, file.parent, str(file.parent), other):
        again = get_tokenizer(path)
        assert (
            again.ranks == ours.ranks
            and again.eot_token == ours.eot_token
            and again.fingerprint == ours.fingerprint
        )
    assert get_tokenizer(other).name == "mine"
    assert sorted(path.name for path in tmp_path.rglob("*.t*")) == [
        "mine.tiktoken",
        "tokenizer.tiktoken",
    ]
    assert (
        tiktoken.load.load_tiktoken_bpe(str(other)) == ours.ranks
    )  # the format is tiktoken's


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match="there is no tokenizer at nowhere: say 'gpt2', 'stories', or where one was saved",
    ):
        get_tokenizer("nowhere")
    with pytest.raises(FileNotFoundError, match="tokenizer.tiktoken"):
        get_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello\n", "is no tokenizer"),
        (b"!!!! 0\n", "is no tokenizer"),
        (b"YQ== one\n", "is no tokenizer"),
        (b"", "is damaged"),
        (b"YQ== 0\n", "is damaged"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    file = tmp_path / "bad.tiktoken"
    file.write_bytes(content)
    with pytest.raises(SlmError, match=message) as caught:
        get_tokenizer(file)
    assert not caught.value.retry


@pytest.mark.parametrize("end", [b"\n", b"\n \r\n\n", b""])
def test_blank_lines_at_the_end_are_no_tokens(ours, tmp_path, end):
    file = tmp_path / "own.tiktoken"
    file.write_bytes(ours.ranks_file().rstrip() + end)
    assert get_tokenizer(file).fingerprint == ours.fingerprint
    first, rest = ours.ranks_file().split(b"\n", 1)
    file.write_bytes(first + b"\n\n" + rest)
    with pytest.raises(SlmError, match="is no tokenizer: a line is not a token"):
        get_tokenizer(file)


@pytest.mark.parametrize("written", ["2_56", "+256", "0256", "٢٥٦"])
def test_a_rank_is_written_in_plain_digits(ours, tmp_path, written):
    file = tmp_path / "own.tiktoken"
    ranks = ours.ranks_file()
    assert ranks.count(b" 256\n") == 1
    file.write_bytes(ranks.replace(b" 256\n", f" {written}\n".encode()))
    with pytest.raises(SlmError, match="is no tokenizer: a line is not a token"):
        get_tokenizer(file)


def test_a_rank_that_spells_the_end_of_text_is_refused(ours, tmp_path):
    """Two ids would be decoded to the same text, and one of them ends a document."""
    ranks = dict(ours.ranks)
    del ranks[max(ranks, key=ranks.get)]
    ranks[b"<|endoftext|>"] = len(ranks)
    file = Tokenizer("odd", ranks).save(tmp_path / "odd.tiktoken")
    with pytest.raises(SlmError, match=r"rank 1022 spells <\|endoftext\|>"):
        get_tokenizer(file)


def test_a_truncated_file_is_not_taken_for_whole(ours, tmp_path):
    file = ours.save(tmp_path / "cut.tiktoken")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:100]))
    with pytest.raises(SlmError, match="is damaged"):
        get_tokenizer(file)
    file.write_bytes(b"".join(lines[:300] + lines[301:]))
    with pytest.raises(SlmError, match="is damaged"):
        get_tokenizer(file)


def test_another_process_gets_an_equal_copy(ours):
    copy = pickle.loads(pickle.dumps(ours))
    assert (
        isinstance(copy, Tokenizer)
        and copy.ranks == ours.ranks
        and copy.name == ours.name
    )
    assert copy.encode("Nell has a kite.") == ours.encode("Nell has a kite.")


def test_fingerprints_tell_tokenizers_apart(ours):
    assert Tokenizer("renamed", ours.ranks).fingerprint == ours.fingerprint
    assert (
        Tokenizer("stories", train_bpe(map(stories.sample, range(50)), 400)).fingerprint
        != ours.fingerprint
    )


def test_a_save_that_fails_leaves_the_old_file(ours, tmp_path, monkeypatch):
    file = ours.save(tmp_path / "mine.tiktoken")
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    other = Tokenizer("bytes", train_bpe([], 257))
    monkeypatch.setattr(Tokenizer, "ranks_file", full)
    with pytest.raises(OSError, match="No space left"):
        other.save(file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
