"""A saved folder as others see it: transformers' tokenizer, model and pipeline give slm's own ids and text."""

import json
import logging
import random
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

from slm.data import stories
from slm.data.tokenizer import (
    END_OF_TEXT,
    Tokenizer,
    get_tokenizer,
    merge_pairs,
    train_bpe,
)
from slm.generation import generate
from slm.model.config import GPTConfig
from slm.model.gpt import GPT

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer.tiktoken",
    "tokenizer_config.json",
}
ODD = [
    *("", " ", "  ", "\n\n\n", "\t \r\n  x", "a" * 400, " " * 70 + "x", "don't we'll I'VE"),
    *("def f(x):\n    return  x**2  # 'q'\n\n\n\tpass", "0123456789 3.14 ١٢٣ ½ ², 2024-01-01"),
    *("🦊👩‍🚀🇩🇪e\u0301", "日本語のテスト。한국어 ไทย", "\0\x01\x7f\x85\u00a0\u200b\u2028\ufeff x", "�\U0010ffff"),
    *("<|endoftext", "|endoftext|>", "Ġa ĊÃ©", "naïve façade — “quotes”…", "\u00ad\u0378 \u180e x"),
]  # fmt: skip


def texts(n: int = 200) -> list[str]:
    """Odd ones, stories, and characters thrown together from all of Unicode but surrogates."""
    rng = random.Random(0)
    pieces = [*ODD, *"abc XY.,'\n", "'s", " the", "   "]
    mixed = ["".join(rng.choices(pieces, k=rng.randrange(9))) for _ in range(n // 4)]
    code_points = [*range(0xD800), *range(0xE000, 0x110000)]
    anything = ["".join(map(chr, rng.choices(code_points, k=30))) for _ in range(n // 4)]  # fmt: skip
    tales = [stories.sample(seed) for seed in range(n - len(ODD) - 2 * (n // 4))]
    return [*ODD, *mixed, *anything, *tales]


def small(vocab_size: int, context_length: int = 40) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size, context_length, 2, 2, 16, 64)).eval()
    with torch.no_grad():  # far from ties between the likeliest tokens
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def written(folder, prompt: str, **options) -> str:
    """What the pipeline writes, greedily."""
    write = transformers.pipeline("text-generation", str(folder))
    (answer,) = write(prompt, do_sample=False, **options)
    return answer["generated_text"]


@pytest.fixture(params=["stories", "gpt2"])
def tokenizer(request, gpt2_cache) -> Tokenizer:
    return get_tokenizer(request.param)


FOLDERS: dict[str, Path] = {}


@pytest.fixture
def saved(tokenizer, tmp_path_factory) -> Path:
    """The folder of a small model with its tokenizer and two ids of padding, written once."""
    if tokenizer.name not in FOLDERS:
        FOLDERS[tokenizer.name] = tmp_path_factory.mktemp(tokenizer.name)
        model = small(tokenizer.n_vocab + 2, 2048)
        model.save_pretrained(FOLDERS[tokenizer.name], tokenizer)
    return FOLDERS[tokenizer.name]


def test_the_tokenizer_gives_the_same_ids(tokenizer, saved):
    theirs = transformers.AutoTokenizer.from_pretrained(saved)
    assert len(texts()) == 200
    for text in texts():
        ids = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == ids == theirs.encode(text), text
        assert theirs.decode(ids) == text
    text = f"a{END_OF_TEXT} b{END_OF_TEXT}"
    assert theirs.encode(text) == tokenizer.encode(text, allowed_special="all")
    assert theirs.encode(text, split_special_tokens=True) == tokenizer.encode(text)
    end = tokenizer.eot_token
    assert [theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id] == [end] * 3
    assert (len(theirs), theirs.model_max_length) == (tokenizer.n_vocab, 2048)
    assert theirs.decode([end], skip_special_tokens=True) == ""


@pytest.mark.parametrize("tokenizer", ["gpt2"], indirect=True)
def test_gpt2s_pairs_are_the_published_ones(saved, gpt2_cache):
    """Its file of merges: a line of version, then a pair a line, in the alphabet of tokenizer.json."""
    (file,) = (f for f in gpt2_cache.iterdir() if f.read_bytes()[:8] == b"#version")
    published = file.read_text(encoding="utf-8").splitlines()[1:]
    ours = json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))
    pairs = [" ".join(pair) for pair in ours["model"]["merges"]]
    assert pairs == published and len(pairs) == 50_000


@pytest.mark.parametrize("seed", range(6))
def test_ranks_that_no_training_gives_are_told_exactly(tmp_path, seed):
    """Merges in another order and with gaps: tokens whose parts come later, and tokens that no merges lead to."""
    rng = random.Random(seed)
    letters = ["".join(rng.choices("aab bc", k=300)) for _ in range(5)]
    trained = list(train_bpe(letters if seed % 2 else [*ODD, *texts()[-40:]], 500))
    bytes_, merged = trained[:256], trained[256:]
    rng.shuffle(bytes_)
    merged = rng.sample(merged, k=len(merged) * 3 // 4)
    merged[-1] = END_OF_TEXT.encode()  # which has no place there, and no text needs
    odd = Tokenizer("odd", {t: i for i, t in enumerate([*bytes_, *merged])})
    odd.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert len(merge_pairs(odd.ranks)) < len(merged)
    for text in [*texts(), *letters, *["".join(rng.choices("abc ", k=12)) for _ in range(300)]]:  # fmt: skip
        assert theirs.encode(text).ids == odd.encode(text), text


def test_a_part_may_be_found_later_than_the_whole():
    ranks = {bytes([i]): i for i in range(256)}
    assert merge_pairs(ranks) == []
    ranks |= {b"abc": 256, b"bc": 257, b"xyz": 258}
    assert merge_pairs(ranks) == [(b"a", b"bc"), (b"b", b"c")]


def test_the_pipeline_writes_the_same_text(tokenizer, saved, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert {file.name for file in saved.iterdir()} == FILES
    model = GPT.from_pretrained(saved)
    for prompt in ("Once upon a time", "", "  def f(x):\n"):
        ours = generate(model, tokenizer, prompt, max_tokens=20, temperature=0)
        assert written(saved, prompt, max_new_tokens=20) == ours != prompt
    told = {record.getMessage().split(" (")[0] for record in caplog.records}
    assert told <= {"Both `max_new_tokens`"}  # the folder says where the context ends


def test_it_ends_where_the_context_does(tmp_path):
    """Without a limit of its own the pipeline would run out of positions."""
    tokenizer = get_tokenizer("stories")
    model = small(tokenizer.n_vocab, context_length=12)
    model.save_pretrained(tmp_path, tokenizer)
    with pytest.warns(match="the context of 12 tokens is full"):
        ours = generate(model, tokenizer, "A fox", temperature=0)
    assert written(tmp_path, "A fox") == ours
    assert len(tokenizer.encode(ours)) > len(tokenizer.encode("A fox"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.generate(do_sample=False).shape == (1, 12)


def test_a_text_ends_at_its_end(tmp_path):
    tokenizer = get_tokenizer("stories")
    model = small(tokenizer.n_vocab)
    table = model.token_embedding.weight.detach()
    free = generate(model, tokenizer, "A fox", max_tokens=20, temperature=0, stop=False)
    with torch.no_grad():  # the token that it likes best is the end of text now
        liked = tokenizer.encode(free)[-1]
        table[[liked, tokenizer.eot_token]] = table[[tokenizer.eot_token, liked]]
    model.save_pretrained(tmp_path, tokenizer)
    ours = generate(model, tokenizer, "A fox", max_tokens=30, temperature=0)
    assert written(tmp_path, "A fox", max_new_tokens=30) == ours
    assert END_OF_TEXT not in ours


def test_ids_without_a_token_are_never_written(tmp_path):
    """A padded vocabulary, whose padding the model likes best."""
    tokenizer = get_tokenizer("stories")
    model = small(1100)
    with torch.no_grad():
        model.token_embedding.weight[1024:] *= 5
    model.save_pretrained(tmp_path, tokenizer)
    ours = generate(model, tokenizer, "Once", max_tokens=25, temperature=0)
    assert written(tmp_path, "Once", max_new_tokens=25) == ours
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    start = torch.tensor([[tokenizer.eot_token, *tokenizer.encode("Once")]])
    free = theirs.generate(start, do_sample=False, max_new_tokens=25, suppress_tokens=None)  # fmt: skip
    padding = theirs.generate(start, do_sample=False, max_new_tokens=25)
    assert padding.max() < 1024
    assert tokenizer.decode(padding[0, 1:].tolist()) == ours
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).decode([1050]) == ""
    assert free.shape[1] >= 2


def test_several_prompts_side_by_side(tmp_path):
    tokenizer = get_tokenizer("stories")
    model = small(tokenizer.n_vocab)
    model.save_pretrained(tmp_path, tokenizer)
    prompts = ["One day", "There was a very thankful pony", "A"]
    write = transformers.pipeline("text-generation", str(tmp_path))
    answers = write(prompts, batch_size=3, do_sample=False, max_new_tokens=10)
    ours = generate(model, tokenizer, prompts, max_tokens=10, temperature=0)
    assert [answer["generated_text"] for (answer,) in answers] == ours


def test_without_a_tokenizer_the_ids_stay_open(tmp_path):
    """What is not known is not said; GPT-2's own id, which transformers would assume, is out of range here."""
    small(300).save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for said in (theirs.config, theirs.generation_config):
        assert said.bos_token_id is said.eos_token_id is said.pad_token_id is None


def test_the_ids_that_a_config_tells(tokenizer, saved):
    end = tokenizer.eot_token
    for name in ("config.json", "generation_config.json"):
        said = json.loads((saved / name).read_text())
        assert said["bos_token_id"] == said["eos_token_id"] == end
    assert said["pad_token_id"] == end
    assert said["suppress_tokens"] == [end + 1, end + 2]


def test_a_folder_without_the_new_files_still_opens(tmp_path):
    tokenizer = get_tokenizer("stories")
    model = small(tokenizer.n_vocab)
    model.save_pretrained(tmp_path, tokenizer)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).unlink()
    assert get_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    loaded = GPT.from_pretrained(tmp_path)
    assert torch.equal(loaded.token_embedding.weight, model.token_embedding.weight)
