"""slm.generation: sampling against transformers' own, the cache against no cache, batches against single texts."""

import re
import warnings

import pytest
import torch
import transformers

from slm.data.tokenizer import get_tokenizer
from slm.errors import SlmError
from slm.generation import (
    KVCache,
    Sampling,
    _window_start,
    generate,
    generate_tokens,
    next_token_probabilities,
    stream,
)
from slm.model.config import GPTConfig
from slm.model.gpt import GPT, sample_tokens


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer("stories")


def make_model(vocab_size, context_length=24, seed=0, std=0.3, dropout=0.2):
    """A random model that is sure of some tokens and not of others (with the usual small weights all are alike)."""
    torch.manual_seed(seed)
    model = GPT(
        GPTConfig(
            vocab_size,
            context_length,
            n_layers=2,
            n_heads=2,
            d_model=16,
            d_ff=32,
            dropout=dropout,
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.eval()


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer.n_vocab)


def written(model, prompts, **settings):
    """The new tokens of each row."""
    rows = [[] for _ in prompts]
    for new in generate_tokens(model, prompts, Sampling(**settings)):
        for row, token in zip(rows, new, strict=True):
            if token is not None:
                row.append(token)
    return rows


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("use_cache", [True, False])
def test_scores_that_are_no_numbers_are_one_sentence(tokenizer, temperature, use_cache):
    """Weights may be finite and their products not."""
    model = make_model(tokenizer.n_vocab, std=1e30)
    settings = {"temperature": temperature, "use_cache": use_cache}
    with pytest.raises(SlmError, match="^the model's scores are no finite numbers"):
        generate(model, tokenizer, "Once", **settings)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 1, 7, 10_000])
@pytest.mark.parametrize("top_p", [None, 1e-320, 1e-50, 0.05, 0.5, 0.9, 0.999, 1.0])
def test_probabilities_equal_those_of_transformers(temperature, top_k, top_p):
    logits = 3 * torch.randn(
        5, 300, generator=torch.Generator().manual_seed(1)
    )  # (B, V)
    expected = transformers.TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        expected = transformers.TopKLogitsWarper(top_k)(None, expected)
    if top_p is not None:
        expected = transformers.TopPLogitsWarper(top_p)(None, expected)
    torch.testing.assert_close(
        next_token_probabilities(logits, temperature, top_k, top_p),
        expected.softmax(-1),
    )


def test_temperature_zero_is_greedy_and_its_limit():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(2))
    greedy = next_token_probabilities(logits, 0)
    assert torch.equal(greedy.argmax(-1), logits.argmax(-1))
    assert torch.equal(greedy.sum(-1), torch.ones(4))
    torch.testing.assert_close(next_token_probabilities(logits, 1e-30), greedy)


def test_huge_logits_and_half_precision_stay_finite():
    logits = torch.tensor([[3e4, -3e4, 0.0]], dtype=torch.bfloat16)
    p = next_token_probabilities(logits, 1e-8, top_p=0.9)
    assert p.dtype == torch.float32
    assert torch.equal(p, torch.tensor([[1.0, 0.0, 0.0]]))


def test_logits_are_not_changed():
    logits = torch.randn(2, 9)
    before = logits.clone()
    next_token_probabilities(logits, 0.5, 3, 0.5)
    assert torch.equal(logits, before)


def test_draws_follow_the_probabilities():
    model = make_model(12)
    with torch.no_grad():
        p = next_token_probabilities(model(torch.tensor([[3]]))[:, -1], 0.9, top_k=6)[0]
    draws = torch.tensor(
        written(model, [[3]] * 3000, max_tokens=1, temperature=0.9, top_k=6)
    ).flatten()
    frequency = torch.bincount(draws, minlength=12) / len(draws)
    assert (frequency[p == 0] == 0).all()
    assert (
        (frequency - p).abs() < 4.5 * (p * (1 - p) / len(draws)).sqrt() + 1e-6
    ).all()


# ---------------------------------------------------------------- the cache


def test_cache_returns_everything_in_order_without_new_buffers():
    k, v = torch.randn(2, 2, 3, 10, 4)  # (B, H, T, K) each
    cache = KVCache(10)
    addresses = set()
    for begin, end in ((0, 4), (4, 5), (5, 9), (9, 10)):
        keys, values = cache(k[:, :, begin:end], v[:, :, begin:end])
        assert torch.equal(keys, k[:, :, :end])
        assert torch.equal(values, v[:, :, :end])
        addresses.add((keys.data_ptr(), values.data_ptr()))
    assert len(addresses) == 1
    with pytest.raises(ValueError, match="holds 10 positions, and 11"):
        cache(k[:, :, :1], v[:, :, :1])
    cache.clear()
    assert cache(k[:, :, :2], v[:, :, :2])[0].shape == (2, 3, 2, 4)


def test_cache_keeps_the_type_of_the_keys():
    k = torch.ones(1, 1, 2, 4, dtype=torch.bfloat16)
    assert KVCache(4)(k, k)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("prompt_length", [1, 5, 24])
def test_cached_equals_uncached(model, temperature, prompt_length):
    prompt = list(range(3, 3 + prompt_length))
    settings = {"max_tokens": 60, "temperature": temperature, "overflow": "slide"}
    with pytest.warns(UserWarning, match="context of 24 tokens is full"):
        cached = written(model, [prompt], **settings)
    with pytest.warns(UserWarning, match="context of 24 tokens is full"):
        uncached = written(model, [prompt], use_cache=False, **settings)
    assert cached == uncached
    assert len(cached[0]) == 60


def test_each_position_is_computed_once_with_a_cache(model, monkeypatch):
    computed = []
    hidden = GPT.hidden
    monkeypatch.setattr(
        GPT,
        "hidden",
        lambda self, tokens, *a, **k: (
            computed.append(tokens.size(1)) or hidden(self, tokens, *a, **k)
        ),
    )
    written(model, [[1, 2, 3, 4]], max_tokens=10)
    assert computed == [4] + 9 * [1]
    computed.clear()
    written(model, [[1, 2, 3, 4]], max_tokens=10, use_cache=False)
    assert computed == list(range(4, 14))


@pytest.mark.parametrize("max_tokens, capacity", [(5, 8), (100, 24)])
def test_cache_is_no_larger_than_text_and_context(
    model, monkeypatch, max_tokens, capacity
):
    capacities = []
    monkeypatch.setattr(
        "slm.generation.KVCache", lambda size: capacities.append(size) or KVCache(size)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written(model, [[1, 2, 3]], max_tokens=max_tokens)
    assert capacities == [capacity] * model.config.n_layers


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_equals_transformers(tmp_path, use_cache):
    model = make_model(200, context_length=64, seed=4)
    model.save_pretrained(tmp_path)
    reference = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    prompt = [5, 9, 1, 77]
    expected = reference.generate(
        torch.tensor([prompt]),
        max_new_tokens=40,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert (
        written(model, [prompt], max_tokens=40, temperature=0, use_cache=use_cache)[0]
        == expected[0, 4:].tolist()
    )


# ---------------------------------------------------------------- batches, windows, ends


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_batch_equals_its_rows_alone(model, use_cache):
    prompts = [[1], [5, 6, 7, 8, 9, 10, 11], list(range(20)), [4, 4], list(range(40))]
    settings = {
        "max_tokens": 30,
        "top_p": 0.95,
        "overflow": "slide",
        "use_cache": use_cache,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = written(model, prompts, seed=10, **settings)
        alone = [
            written(model, [prompt], seed=10 + row, **settings)[0]
            for row, prompt in enumerate(prompts)
        ]
    assert together == alone
    assert [len(row) for row in together] == [30] * len(prompts)


def test_rows_of_one_prompt_differ_and_seeds_repeat(model):
    rows = written(model, [[1]] * 8, max_tokens=12)
    assert len({tuple(row) for row in rows}) == 8
    assert written(model, [[1]] * 8, max_tokens=12) == rows
    assert written(model, [[1]] * 8, max_tokens=12, seed=100) != rows


def test_drawing_leaves_the_global_generator_alone(model):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    written(model, [[1]], max_tokens=5)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("context", [1, 2, 3, 7, 8])
def test_window_holds_the_newest_tokens_and_is_never_too_long(context):
    starts = [_window_start(n, context) for n in range(1, 60)]
    for n, start in enumerate(starts, 1):
        assert 1 <= n - start <= context
        assert start >= 0 and (n > context or start == 0)
    assert starts == sorted(starts)
    kept = {
        n - start
        for n, start, before in zip(range(2, 60), starts[1:], starts, strict=False)
        if start > before
    }
    assert kept == {max(1, context // 2)}


def test_slide_sees_exactly_the_window(model):
    """Each token is greedy given the window that the rule names, computed here from scratch."""
    with pytest.warns(UserWarning, match="only the last part"):
        new = written(
            model, [[1, 2, 3]], max_tokens=50, temperature=0, overflow="slide"
        )[0]
    text = [1, 2, 3, *new]
    with torch.no_grad():
        for n in range(3, len(text)):
            window = torch.tensor([text[_window_start(n, 24) : n]])
            assert int(model(window)[0, -1].argmax()) == text[n]


def test_overflow_stop_ends_the_text_and_says_so(model):
    with pytest.warns(UserWarning, match="the text ends here"):
        new = written(model, [[1, 2, 3]], max_tokens=100, overflow="stop")[0]
    assert len(new) == 24 + 1 - 3  # a full window still predicts one token


def test_no_warning_while_all_fits(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(written(model, [[1, 2, 3]], max_tokens=22, overflow="stop")[0]) == 22


def test_a_row_ends_at_its_stop_token_and_the_others_go_on(model):
    free = written(model, [[1], [2]], max_tokens=20, seed=1)
    stop = free[0][5]
    ended = written(model, [[1], [2]], max_tokens=20, seed=1, stop_token=stop)
    assert ended[0] == free[0][: free[0].index(stop) + 1]
    assert ended[1] == (
        free[1][: free[1].index(stop) + 1] if stop in free[1] else free[1]
    )


def test_no_tokens_asked_none_written(model, tokenizer):
    assert written(model, [[1, 2]], max_tokens=0) == [[]]
    assert generate(model, tokenizer, "Hello", max_tokens=0) == "Hello"
    assert generate(model, tokenizer, []) == []


def test_padded_vocabulary_is_never_drawn(model):
    rows = written(model, [[1]] * 20, max_tokens=20, temperature=5.0, vocab_size=9)
    assert max(map(max, rows)) < 9


# ---------------------------------------------------------------- mode, gradients


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_put_back_and_dropout_is_off(tokenizer, training):
    model = make_model(
        tokenizer.n_vocab, dropout=0.8
    )  # so much that a single forgotten step changes the text
    expected = generate(model.eval(), tokenizer, "Once", max_tokens=15)
    assert generate(model.train(training), tokenizer, "Once", max_tokens=15) == expected
    assert model.training is training
    pieces = stream(model, tokenizer, "Once", max_tokens=15)
    next(pieces), next(pieces)
    pieces.close()
    assert model.training is training


def test_a_half_read_stream_does_not_switch_gradients_off(model, tokenizer):
    pieces = stream(model, tokenizer, "Once", max_tokens=15)
    next(pieces), next(pieces)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    modes = []
    hook = model.norm.register_forward_hook(
        lambda *_: modes.append(torch.is_inference_mode_enabled())
    )
    next(pieces)
    hook.remove()
    assert modes and all(modes)
    assert (2 * torch.ones(1, requires_grad=True)).requires_grad


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    "prompt", ["", "Once upon a time", "a café in Zürich, 猫 and 🐈"]
)
@pytest.mark.parametrize("stop", [True, False])
def test_stream_equals_generate(tokenizer, prompt, stop):
    model = make_model(
        tokenizer.n_vocab, context_length=80, seed=2, std=0.05
    )  # nearly uniform: many stray bytes
    settings = {"max_tokens": 30, "seed": 4, "stop": stop}
    whole = generate(model, tokenizer, prompt, **settings)
    assert "".join(stream(model, tokenizer, prompt, **settings)) == whole
    assert whole.startswith(prompt)


def test_stream_gives_whole_characters_only(tokenizer, model, monkeypatch):
    text = "Zürich 猫🐈!"
    tokens = tokenizer.encode(text)
    assert len(tokens) > len(text)  # some characters are several tokens
    monkeypatch.setattr(
        "slm.generation.generate_tokens", lambda *a, **k: ([token] for token in tokens)
    )
    pieces = list(stream(model, tokenizer, ""))
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces)
    assert {"ü", "猫", "🐈"} <= set(pieces)


def test_stream_shows_a_character_that_never_ends(tokenizer, model, monkeypatch):
    cut = tokenizer.encode("猫")[:-1]
    monkeypatch.setattr(
        "slm.generation.generate_tokens", lambda *a, **k: ([token] for token in cut)
    )
    assert "".join(stream(model, tokenizer, "")) == tokenizer.decode(cut)


def test_text_begins_behind_end_of_text(tokenizer, model, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "slm.generation.generate_tokens",
        lambda model, prompts, *a, **k: seen.extend(prompts) or iter(()),
    )
    generate(model, tokenizer, ["", "Once"])
    assert seen == [
        [tokenizer.eot_token],
        [tokenizer.eot_token, *tokenizer.encode("Once")],
    ]


def test_end_of_text_is_not_part_of_the_text(tokenizer):
    model = make_model(tokenizer.n_vocab)
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.copy_(
            10 * model.token_embedding.weight[tokenizer.eot_token]
        )  # always end-of-text
    assert generate(model, tokenizer, "Once", temperature=0) == "Once"
    assert list(stream(model, tokenizer, "Once", temperature=0)) == ["Once"]
    assert (
        generate(model, tokenizer, "Once", temperature=0, max_tokens=2, stop=False)
        == "Once" + 2 * "<|endoftext|>"
    )


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"temperature": -0.1}, "temperature = -0.1 is not allowed"),
        ({"temperature": float("nan")}, "temperature = nan is not allowed"),
        ({"temperature": float("inf")}, "temperature = inf is not allowed"),
        ({"top_k": 0}, "top_k = 0 is not allowed"),
        ({"top_p": 0.0}, "top_p = 0.0 is not allowed"),
        ({"top_p": 1.1}, "top_p = 1.1 is not allowed"),
        ({"max_tokens": -1}, "max_tokens = -1 is not allowed"),
        ({"overflow": "wrap"}, "overflow = 'wrap' is not allowed"),
        ({"prompt": "once upon a time " * 20}, "model's context holds 24"),
    ],
)
@pytest.mark.parametrize("write", [generate, stream])
def test_bad_arguments_get_one_sentence_at_once(
    model, tokenizer, write, settings, sentence
):
    with pytest.raises(SlmError, match=sentence.replace("(", r"\(")) as error:
        write(model, tokenizer, **{"prompt": "Once", **settings})
    assert "\n" not in str(error.value)


def test_foreign_tokenizer_is_named(tokenizer):
    with pytest.raises(SlmError, match="the model knows only 50"):
        generate(make_model(50), tokenizer, "Once")


def test_long_prompt_slides_when_asked(model, tokenizer):
    with pytest.warns(UserWarning, match="only the last part"):
        text = generate(
            model,
            tokenizer,
            "once upon a time " * 20,
            max_tokens=3,
            overflow="slide",
            stop=False,
        )
    assert text.startswith("once upon a time " * 20)
    assert len(text) > 340


def test_bfloat16_model_generates(tokenizer):
    model = make_model(tokenizer.n_vocab).bfloat16()
    settings = {"max_tokens": 15, "temperature": 0}
    assert generate(model, tokenizer, "Once", **settings) == generate(
        model, tokenizer, "Once", **settings
    )


def test_two_streams_in_turns_are_what_they_are_alone_and_dropout_stays_off(tokenizer):
    model = make_model(tokenizer.n_vocab, dropout=0.8)
    alone = [generate(model.eval(), tokenizer, "Once", max_tokens=n) for n in (4, 12)]
    model.train()
    model.blocks[0].eval()  # a mode of its own, which must survive
    modes = [module.training for module in model.modules()]
    texts, streams = (
        ["", ""],
        [stream(model, tokenizer, "Once", max_tokens=n) for n in (4, 12)],
    )
    while any(pieces := [next(s, "") for s in streams]):
        assert [module.training for module in model.modules()] == modes
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    assert texts == alone


def test_an_abandoned_stream_leaves_the_mode_alone(tokenizer):
    model = make_model(tokenizer.n_vocab)
    pieces = stream(model.train(), tokenizer, "Once", max_tokens=12)
    next(pieces), next(pieces)
    assert all(module.training for module in model.modules())


def test_a_padded_vocabulary_is_never_drawn_from(tokenizer):
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.n_vocab + 50, 24, 1, 2, 16, 32))
    with torch.no_grad():
        model.token_embedding.weight[tokenizer.n_vocab :] *= (
            100  # their logits are the largest and the smallest
        )
    text = generate(model, tokenizer, "Once", max_tokens=15, stop=False)
    assert "".join(stream(model, tokenizer, "Once", max_tokens=15, stop=False)) == text


def test_nothing_is_computed_once_all_texts_have_ended(model, tokenizer, monkeypatch):
    calls, hidden = [], model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda *a, **k: calls.append(1) or hidden(*a, **k)
    )
    assert (
        len(list(generate_tokens(model, [[1, 2], [3]], Sampling(max_tokens=3))))
        == 4
        == len(calls)
    )
    calls.clear()
    one = Sampling(max_tokens=1, temperature=0)
    ((first,),) = generate_tokens(model, [[3]], one)
    until_first = Sampling(max_tokens=9, temperature=0, stop_token=first)
    assert list(generate_tokens(model, [[3]], until_first)) == [[first]]
    assert len(calls) == 2  # one for each of the two
    calls.clear()
    nothing = Sampling(max_tokens=0)
    assert list(generate_tokens(model, [[1] * 9, [3]], nothing)) == [] == calls


def test_the_full_window_is_told_once(model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        written(model, [[1]], max_tokens=60, overflow="slide")
    assert len(caught) == 1 and "now sees only the last part" in str(caught[0].message)


def test_a_limit_that_can_never_be_reached_costs_no_memory(model):
    with pytest.warns(UserWarning, match="the text ends here"):
        context = model.config.context_length
        assert len(written(model, [[1]], max_tokens=10**12)[0]) == context


@pytest.mark.parametrize("temperature", [1e-3, 1e-38, 1e-46])
def test_a_tiny_temperature_is_greedy(temperature):
    p = next_token_probabilities(torch.tensor([[100.0, 300.0, -200.0]]), temperature)
    assert p.tolist() == [[0.0, 1.0, 0.0]]


def test_top_p_of_one_removes_nothing():
    logits = 3 * torch.randn(4, 50257)
    assert torch.equal(
        next_token_probabilities(logits, top_p=1.0), next_token_probabilities(logits)
    )


def test_a_refused_call_leaves_the_cache_as_it_was():
    cache = KVCache(3)
    k = torch.randn(1, 1, 2, 4)
    cache(k, k)
    with pytest.raises(ValueError, match="holds 3 positions, and 4 were put in"):
        cache(k, k)
    assert cache(k[:, :, :1], k[:, :, :1])[0].size(2) == 3


def test_a_prompt_without_a_token_is_refused_at_the_call(model):
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        generate_tokens(model, [[1], []])


def test_settings_are_frozen():
    with pytest.raises(AttributeError):
        Sampling(temperature=0, top_k=1, top_p=1, overflow="slide").seed = 1


@pytest.mark.parametrize("vocab_size", [None, 200])
def test_the_plain_sampler_writes_the_same_tokens(tokenizer, vocab_size):
    model = make_model(tokenizer.n_vocab, context_length=60)
    plain = sample_tokens(model, [3, 5], 50, seed=9, vocab_size=vocab_size)
    assert len(plain) == 50
    settings = {"max_tokens": 50, "seed": 9, "vocab_size": vocab_size}
    assert written(model, [[3, 5]], **settings) == [plain]
    stop = plain[30]
    ended = sample_tokens(model, [3, 5], 50, 9, stop, vocab_size)
    assert ended == plain[: plain.index(stop)]
    assert written(model, [[3, 5]], stop_token=stop, **settings) == [[*ended, stop]]


def test_no_prompts_give_nothing(model):
    assert list(generate_tokens(model, [])) == []


@pytest.mark.parametrize(
    ("wrong", "allowed"),
    [
        ({"temperature": "0.8"}, "a valid number"),
        ({"temperature": -1}, "greater than or equal to 0"),
        ({"top_k": 2.5}, "a valid integer"),
        ({"top_k": 0}, "greater than or equal to 1"),
        ({"top_p": "most"}, "a valid number"),
        ({"top_p": 0}, "greater than 0"),
        ({"max_tokens": 1.5}, "a valid integer"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"seed": 2**70}, "less than 9223372036854775808"),
        ({"overflow": "bogus"}, "'slide' or 'stop'"),
    ],
)
def test_a_setting_of_another_kind_is_told(wrong, allowed):
    ((name, given),) = wrong.items()
    told = f"{name} = {given!r} is not allowed; it must be {allowed}"
    with pytest.raises(SlmError, match=re.escape(told)):
        Sampling(**wrong)
