"""slm.model.pretrained against transformers' GPT-2 with random weights, and files that are none."""

import json
import math

import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from slm.errors import SlmError
from slm.model import pretrained
from slm.model.config import GPTConfig
from slm.model.gpt import GPT

SMALL = {
    "vocab_size": 101,
    "context_length": 24,
    "n_layers": 2,
    "n_heads": 4,
    "d_model": 32,
    "d_ff": 96,
}


def small(**changes):
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**SMALL, **changes}))


def random_twin(folder, **changes):
    """A transformers model with perturbed random weights, saved, and ours loaded from its folder."""
    c = GPTConfig(**{**SMALL, **changes})
    torch.manual_seed(1)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
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
        (
            {
                "vocab_size": 50257,
                "context_length": 64,
                "n_layers": 3,
                "d_model": 48,
                "d_ff": 192,
            },
            33,
        ),
    ],
)
def test_logits_equal_those_of_transformers(tmp_path, changes, T):
    theirs, ours = random_twin(tmp_path, **changes)
    tokens = torch.randint(ours.config.vocab_size, (2, T))
    with torch.no_grad():
        torch.testing.assert_close(
            ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-5
        )


def test_transformers_opens_what_we_save(tmp_path):
    ours = small().eval()
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.randint(101, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(
            ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5
        )


def test_weights_that_cannot_be_written_are_an_os_error(tmp_path, monkeypatch):
    """What safetensors raises when the disk is full; the files of before stay whole, and no others."""
    first = small()
    first.save_pretrained(tmp_path)

    def full(weights, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: No space left on device")

    monkeypatch.setattr(pretrained, "save_file", full)
    with pytest.raises(
        OSError, match="model.safetensors could not be written: .*No space"
    ):
        small(d_ff=64).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    assert GPT.from_pretrained(tmp_path).config == first.config


def test_saved_and_loaded_is_equal_and_in_evaluation_mode(tmp_path):
    model = small(dropout=0.1)
    model.save_pretrained(tmp_path)
    loaded = GPT.from_pretrained(tmp_path)
    assert loaded.config == model.config and not loaded.training
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.parameters(), loaded.parameters(), strict=True)
    )


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
    for given, changed in {
        "1e-05": "0.1",
        "true": "false",
        '"gelu_new"': '"gelu"',
    }.items():
        (tmp_path / "config.json").write_text(config.replace(given, changed))
        with pytest.raises(ValueError, match="can be loaded"):
            GPT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        config.replace('"n_embd": 32', '"n_embd": 64')
    )
    with pytest.raises(ValueError, match="its config asks for"):
        GPT.from_pretrained(tmp_path)


def published(folder):
    """Write a random model to a folder in the layout of the hub's GPT-2: no prefix, masks as buffers, no n_inner."""
    theirs, _ = random_twin(folder, d_ff=128)
    weights = {
        name.removeprefix("transformer."): weight
        for name, weight in load_file(folder / "model.safetensors").items()
    }
    weights |= {f"h.{i}.attn.bias": torch.ones(1, 1, 24, 24).tril() for i in range(2)}
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config = {
        key: value
        for key, value in config.items()
        if key not in ("n_inner", "resid_pdrop")
    }
    (folder / "config.json").write_text(json.dumps(config))
    return theirs, weights, config


def test_the_published_layout_is_read(tmp_path):
    theirs, _, _ = published(tmp_path)
    ours, tokens = GPT.from_pretrained(tmp_path), torch.randint(101, (2, 13))
    with torch.no_grad():
        torch.testing.assert_close(
            ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-5
        )
    assert ours.config.d_ff == 128 and ours.config.dropout == 0.1


@pytest.mark.parametrize(
    ("config", "weights", "message"),
    [
        ({"n_layer": 1}, {}, "holds h.1.* for which a model of 1 layers has no place"),
        ({}, {"lm_head.weight": torch.ones(101, 32)}, "output matrix of its own"),
        ({}, {"h.0.crossattention.q.weight": torch.ones(2)}, "has no place"),
        ({"add_cross_attention": True}, {}, "add_cross_attention = True"),
        (
            {"scale_attn_by_inverse_layer_idx": True},
            {},
            "scale_attn_by_inverse_layer_idx = True",
        ),
        ({"scale_attn_weights": False}, {}, "scale_attn_weights = False"),
        ({"vocab_size": None}, {}, "lacks vocab_size; a GPT-2 config has"),
        ({"attn_pdrop": 0.3}, {}, "different dropouts"),
        ({"resid_pdrop": [0.1]}, {}, "different dropouts"),
        ({}, {"wte.weight": torch.full((101, 32), math.nan)}, "numbers that are not"),
        ({}, {"ln_f.bias": torch.full((32,), -math.inf)}, "not finite in *ln_f.bias"),
        (
            {},
            {"wpe.weight": torch.ones(24, 32, dtype=torch.int32)},
            "holds torch.int32 in",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, config, weights, message):
    _, held, said = published(tmp_path)
    said = {key: value for key, value in (said | config).items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(said))
    save_file(held | weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message.replace("*", ".*")) as caught:
        GPT.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_repeated_tied_table_is_no_reason_to_refuse(tmp_path):
    theirs, held, _ = published(tmp_path)
    save_file(
        held | {"lm_head.weight": held["wte.weight"].clone()},
        tmp_path / "model.safetensors",
    )
    assert torch.equal(
        GPT.from_pretrained(tmp_path).token_embedding.weight,
        theirs.transformer.wte.weight,
    )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"<html>", "config.json is not a model's config"),
        (
            "config.json",
            b"[1, 2]",
            r"a model's config: it holds \[1, 2\], and an object",
        ),
        ("config.json", b"[" * 10**5, "a model's config: maximum recursion depth"),
        ("model.safetensors", b"\x08\0\0\0", "not a whole safetensors file"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, content, message):
    small().save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(tmp_path)


def test_every_reason_to_refuse_a_config_is_told_at_once(tmp_path):
    small().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    said = json.loads(file.read_text())
    del said["n_head"]
    file.write_text(
        json.dumps(said | {"model_type": "llama", "activation_function": "silu"})
    )
    with pytest.raises(SlmError) as caught:
        pretrained.read_shape(file)
    assert str(caught.value).splitlines() == [
        f"{file} says model_type = 'llama'; only 'gpt2' can be loaded",
        f"{file} says activation_function = 'silu'; only 'gelu_new' can be loaded",
        f"{file} lacks n_head; a GPT-2 config has n_embd, n_head, n_layer, n_positions, vocab_size",
    ]


ALL_NAN = dict.fromkeys(pretrained.DROPOUTS, float("nan"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n_head": 3}, ": model: n_heads = 3 does not divide d_model"),
        ({"n_layer": "two"}, ": model.n_layers = 'two' is not allowed"),
        ({"attn_pdrop": [1]}, " has different dropouts [[1], "),
        (ALL_NAN, ": model.dropout = nan is not allowed"),
    ],
)
def test_a_config_with_odd_values_is_a_sentence_with_the_file(tmp_path, change, told):
    small().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(SlmError) as caught:
        GPT.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{file}{told}")


def test_the_format_knows_no_model(tmp_path):
    """Plain dicts and tensors go out and come back; matrices of blocks are stored transposed."""
    weights = {name: p.detach() for name, p in small().named_parameters()}
    shape = SMALL | {"dropout": 0.25}
    pretrained.write_pretrained(tmp_path / "deep" / "model", shape, weights)
    config, file = pretrained.find_pretrained(tmp_path / "deep" / "model")
    assert pretrained.read_shape(config) == shape
    again = pretrained.read_weights(
        file, {name: w.shape for name, w in weights.items()}
    )
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    stored = load_file(file)
    assert len(stored) == len(weights)
    assert stored["transformer.h.1.mlp.c_fc.weight"].shape == (32, 96)
    assert stored["transformer.wte.weight"].shape == (101, 32)


def test_the_hub_is_asked_for_published_names_only(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    small().save_pretrained(tmp_path)

    def fetch(name, file):
        asked.append((name, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert GPT.from_pretrained("gpt2").config == small().config
    assert asked == [("gpt2", "config.json"), ("gpt2", "model.safetensors")]
    with pytest.raises(FileNotFoundError, match="or a name like 'gpt2'"):
        GPT.from_pretrained("gpt3")
    assert len(asked) == 2


@pytest.mark.parametrize("key", ["vocab_size", "n_positions", "n_layer", "n_embd"])
@pytest.mark.parametrize("value", [10**30, 10**9])
def test_a_config_that_asks_for_more_than_there_is_makes_no_model(key, value, tmp_path):
    """Before any memory is taken: of a thousand million layers not even the objects would fit."""
    GPT(GPTConfig(32, 8, 1, 2, 16, 32)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(
        SlmError, match="asks for .* weights, but|less than or equal to"
    ):
        GPT.from_pretrained(tmp_path)
