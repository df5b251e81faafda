"""slm.gpt against transformers' GPT-2 with random weights, and PyTorch's cross entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from slm.gpt import GPT, GPTConfig

SMALL = {"vocab_size": 101, "context_length": 24, "n_layers": 2, "n_heads": 4, "d_model": 32, "d_ff": 96}


def small(**changes):
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**SMALL, **changes}))


def random_twin(folder, **changes):
    """A transformers model with perturbed random weights, saved, and ours loaded from its folder."""
    c = GPTConfig(**{**SMALL, **changes})
    torch.manual_seed(1)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=c.vocab_size, n_positions=c.context_length, n_layer=c.n_layers, n_head=c.n_heads, n_embd=c.d_model,
            n_inner=c.d_ff, bos_token_id=0, eos_token_id=0,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(folder)
    return theirs, GPT.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "T"),
    [
        ({}, 24),
        ({}, 1),
        ({"n_layers": 1, "n_heads": 1, "d_model": 8, "d_ff": 10}, 7),
        ({"vocab_size": 50257, "context_length": 64, "n_layers": 3, "d_model": 48, "d_ff": 192}, 33),
    ],
)
def test_logits_equal_those_of_transformers(tmp_path, changes, T):
    theirs, ours = random_twin(tmp_path, **changes)
    tokens = torch.randint(ours.config.vocab_size, (2, T))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-5)


def test_transformers_opens_what_we_save(tmp_path):
    ours = small().eval()
    ours.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.randint(101, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def test_saved_and_loaded_is_equal_and_in_evaluation_mode(tmp_path):
    model = small(dropout=0.1)
    model.save_pretrained(tmp_path)
    loaded = GPT.from_pretrained(tmp_path)
    assert loaded.config == model.config and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize(
    ("size", "count"),
    [((12, 12, 768, 3072), 124_439_808), ((24, 16, 1024, 4096), 354_823_168), ((36, 20, 1280, 5120), 774_030_080)],
)
def test_parameter_counts_of_the_published_models(size, count):
    n_layers, n_heads, d_model, d_ff = size
    with torch.device("meta"):
        model = GPT(GPTConfig(50257, 1024, n_layers, n_heads, d_model, d_ff, dropout=0.1))
    assert model.count_parameters() == count


def test_initial_weights_have_gpt2s_spread():
    model = small(n_layers=8, d_model=64, d_ff=256)
    assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.blocks[3].attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for part in (model.blocks[3].attention.out, model.blocks[5].feed_forward.down):
        assert part.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.1)
        assert not part.bias.any()


def test_a_model_that_knows_nothing_has_the_loss_of_a_uniform_guess():
    model, tokens = small().eval(), torch.randint(101, (8, 24))
    assert model.loss(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(math.log(101), abs=0.05)


def test_a_later_token_changes_no_earlier_logit():
    model, tokens = small().eval(), torch.randint(101, (2, 24))
    changed = tokens.clone()
    changed[:, 10:] = (tokens[:, 10:] + 1) % 101
    assert torch.equal(model(tokens)[:, :10], model(changed)[:, :10])


@pytest.mark.parametrize("vocab_size", [101, 300_000])  # one chunk of rows, and several
@pytest.mark.parametrize("ignored", [False, True])
def test_loss_and_gradients_equal_the_plain_way(vocab_size, ignored):
    model = small(vocab_size=vocab_size, d_model=8, n_heads=2)
    x, y = torch.randint(vocab_size, (2, 3, 17))
    if ignored:
        y[0], y[2, 5:] = -100, -100
    plain = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    ours = model.loss(x, y)
    assert ours.item() == pytest.approx(plain.item(), abs=1e-6, rel=2e-7)  # float32 has seven digits
    expected = torch.autograd.grad(plain, model.parameters())
    for mine, reference in zip(torch.autograd.grad(ours, model.parameters()), expected, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-6, rtol=1e-4)


def test_a_second_backward_says_why_it_is_refused():
    model, (x, y) = small(), torch.randint(101, (2, 2, 9))
    loss = model.loss(x, y)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed out already; compute the loss anew"):
        loss.backward()


def test_loss_scales_with_what_comes_after_it():
    model, (x, y) = small(), torch.randint(101, (2, 2, 9))
    single = torch.autograd.grad(model.loss(x, y), model.parameters())
    triple = torch.autograd.grad(3 * model.loss(x, y), model.parameters())
    for one, three in zip(single, triple, strict=True):
        torch.testing.assert_close(3 * one, three)


def test_loss_under_autocast_is_close_and_gradients_are_float32():
    model, (x, y) = small(), torch.randint(101, (2, 2, 24))
    exact = model.loss(x, y).item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(x, y)
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=0.01)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_loss_without_any_target_is_zero_and_harmless():
    model, x = small(), torch.randint(101, (1, 5))
    loss = model.loss(x, torch.full_like(x, -100))
    loss.backward()
    assert loss.item() == 0 and not any(p.grad.any() for p in model.parameters())


def test_loss_in_evaluation_keeps_no_graph():
    model, (x, y) = small(), torch.randint(101, (2, 2, 9))
    with torch.no_grad():
        assert not model.loss(x, y).requires_grad


def test_one_batch_is_learned_by_heart():
    model, tokens = small(), torch.randint(101, (1, 25), generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m(torch.zeros(1, 25, dtype=torch.long)),
            "25 tokens do not fit into the model's context_length = 24",
        ),
        (lambda m: m(torch.zeros(1, 5, dtype=torch.long), start=20), "25 tokens do not fit"),
        (lambda m: m(torch.tensor([[3, 101]])), "token id 101 is outside the vocabulary; ids from 0 to 100"),
        (lambda m: m(torch.tensor([[3, -1]])), "token id -1"),
        (lambda m: m.loss(torch.zeros(1, 4).long(), torch.zeros(1, 5).long()), r"shape \(1, 5\) and tokens \(1, 4\)"),
        (lambda m: m.loss(torch.zeros(1, 2).long(), torch.tensor([[3, -1]])), "from 0 to 100 are allowed, and -100"),
        (lambda m: m.loss(torch.zeros(1, 2).long(), torch.tensor([[101, 3]])), "from 0 to 100 are allowed, and -100"),
        (lambda m: GPTConfig(**{**SMALL, "n_heads": 5}), "n_heads = 5 does not divide d_model = 32"),
        (lambda m: GPTConfig(**{**SMALL, "n_layers": 0}), "n_layers = 0"),
        (lambda m: GPTConfig(**{**SMALL, "d_ff": 9.5}), "d_ff = 9.5"),
        (lambda m: GPTConfig(**{**SMALL, "dropout": 1.0}), "dropout = 1.0"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(small())
    assert "\n" not in str(caught.value)


def test_loading_says_what_is_missing_or_foreign(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json is not there"):
        GPT.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="hub cannot be reached"):
        GPT.from_pretrained("gpt2-xl")
    small().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"gpt2"', '"llama"'))
    with pytest.raises(ValueError, match="says model_type = 'llama'; only 'gpt2'"):
        GPT.from_pretrained(tmp_path)
    for given, changed in {"1e-05": "0.1", "true": "false", '"gelu_new"': '"gelu"'}.items():
        (tmp_path / "config.json").write_text(config.replace(given, changed))
        with pytest.raises(ValueError, match="can be loaded"):
            GPT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config.replace('"n_embd": 32', '"n_embd": 64'))
    with pytest.raises(ValueError, match="its config asks for"):
        GPT.from_pretrained(tmp_path)
