"""slm.model.config against PyTorch's own counters, and its own promises."""

import copy
import dataclasses
import inspect
import pickle
import re
import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from course import ROOT
from slm.errors import SlmError, section
from slm.model.config import (
    ARCHITECTURES,
    GPTConfig,
    architecture,
    count_flops_per_token,
    count_forward_flops,
    count_memory,
    count_parameters,
    logit_columns,
    logit_rows,
)
from slm.model.gpt import GPT

GPT2 = {
    "vocab_size": 50257,
    "context_length": 1024,
    "n_layers": 12,
    "n_heads": 12,
    "d_model": 768,
    "d_ff": 3072,
}


# ---------------------------------------------------------------- the shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"n_heads": 5},
            "GPTConfig: n_heads = 5 does not divide d_model = 768; heads share the channels equally",
        ),
        (
            {"n_layers": 0},
            "GPTConfig.n_layers = 0 is not allowed; it must be greater than or equal to 1",
        ),
        (
            {"d_ff": 9.5},
            "GPTConfig.d_ff = 9.5 is not allowed; it must be a valid integer",
        ),
        (
            {"d_ff": True},
            "GPTConfig.d_ff = True is not allowed; it must be a valid integer",
        ),
        (
            {"dropout": 1.0},
            "GPTConfig.dropout = 1.0 is not allowed; it must be less than 1",
        ),
        ({"dropout": float("nan")}, "GPTConfig.dropout = nan is not allowed"),
        ({"n_layer": 3}, "GPTConfig.n_layer is not a key; did you mean 'n_layers'?"),
    ],
)
def test_a_wrong_shape_is_one_sentence(changes, message):
    for make in (
        lambda: GPTConfig(**{**GPT2, **changes}),
        lambda: section(GPTConfig, {**GPT2, **changes}, "GPTConfig"),
    ):
        with pytest.raises(SlmError) as caught:
            make()
        assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_all_mistakes_of_a_shape_at_once():
    with pytest.raises(SlmError) as caught:
        GPTConfig(**{**GPT2, "n_layers": 0, "d_model": "wide", "dropout": -1.0})
    assert len(str(caught.value).splitlines()) == 3


def test_a_shape_is_positional_frozen_and_can_be_copied():
    shape = GPTConfig(50257, 1024, 12, 12, 768, 3072)
    assert shape == GPTConfig(**GPT2) and hash(shape) == hash(GPTConfig(**GPT2))
    assert dataclasses.asdict(shape) == GPT2 | {"dropout": 0.0}
    assert copy.deepcopy(shape) == pickle.loads(pickle.dumps(shape)) == shape
    with pytest.raises(dataclasses.FrozenInstanceError):
        shape.n_layers = 3
    assert dataclasses.replace(shape, n_layers=3).n_layers == 3
    with pytest.raises(SlmError, match="does not divide"):
        dataclasses.replace(shape, n_heads=7)


def test_every_key_says_what_it_is():
    said = re.findall(r'\n    (\w+): .*\n    """', inspect.getsource(GPTConfig))
    assert said == [*GPT2, "dropout"]


# ---------------------------------------------------------------- architectures


def test_architectures_keep_the_models_protocol():
    assert architecture("gpt2") is GPT
    for name in ARCHITECTURES:
        model = architecture(name)
        wanted = ("forward", "hidden", "loss", "tables", "device")
        for part in (*wanted, "save_pretrained", "from_pretrained"):
            assert hasattr(model, part), (name, part)
    with pytest.raises(SlmError, match="'gpt3' is not an architecture; there is gpt2"):
        architecture("gpt3")


def test_the_shape_is_known_without_pytorch():
    script = "import sys, slm.model.config; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr


# ---------------------------------------------------------------- rows of logits


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("rows", "V", "size"),
    [(1024, 50257, 2), (8192, 50257, 4), (3, 101, 4), (0, 101, 4)],
)
def test_blocks_of_logits_stay_within_their_memory(rows, V, size, device):
    block, few = logit_rows(rows, V, size, device)
    assert block * V * size <= {"cpu": 2**25, "cuda": 2**30}[device]
    assert few * V * 4 <= {"cpu": 2**22, "cuda": 2**28}[device] and few >= 1
    assert block == rows or block * V * size > {"cpu": 2**24, "cuda": 2**29}[device], (
        "blocks are needlessly small"
    )


@pytest.mark.parametrize("V", [1, 127, 128, 129, 50257])
def test_columns_of_a_gpus_products_are_a_multiple_of_128(V):
    wide = logit_columns(V, "cuda")
    assert wide % 128 == 0 and V <= wide < V + 128
    assert logit_columns(V, "cpu") == V, "on a CPU nothing is added"


# ---------------------------------------------------------------- FLOPs


@pytest.mark.parametrize(
    "shape",
    [(300, 32, 1, 1, 32, 128), (512, 64, 2, 4, 64, 200), (1000, 128, 5, 2, 48, 192)],
)
def test_flops_equal_pytorchs_count(shape):
    config = GPTConfig(*shape)
    model = GPT(config)
    tokens = torch.randint(config.vocab_size, (3, config.context_length))
    with sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad(), FlopCounterMode(display=False) as forward:
            model(tokens)
        with FlopCounterMode(display=False) as training:
            model.loss(tokens, tokens).backward()
    assert count_flops_per_token(
        config, training=False
    ) * tokens.numel() == pytest.approx(forward.get_total_flops(), rel=0.01)
    assert count_flops_per_token(config) * tokens.numel() == pytest.approx(
        training.get_total_flops(), rel=0.01
    )


@pytest.mark.parametrize(
    "shape, gflops",
    [((12, 12, 768), 0.854), ((24, 16, 1024), 2.42), ((36, 20, 1280), 5.20)],
)
def test_flops_of_the_gpt_sizes(shape, gflops):
    layers, heads, width = shape
    config = GPTConfig(50257, 1024, layers, heads, width, 4 * width)
    matrices = 12 * layers * width**2 + width * 50257
    assert count_flops_per_token(config) == 6 * matrices + 12 * layers * width * 1024
    assert count_flops_per_token(config) / 1e9 == pytest.approx(gflops, rel=0.005)


def test_parts_add_up():
    parts = count_forward_flops(GPTConfig(**GPT2))
    assert 3 * sum(parts.values()) == count_flops_per_token(GPTConfig(**GPT2))
    assert all(flops > 0 for flops in parts.values())


# ---------------------------------------------------------------- memory


def saved_bytes(model, tokens, half):
    """Bytes that autograd keeps for the backward pass, parameters left out, each storage once."""
    parameters = {
        parameter.untyped_storage().data_ptr() for parameter in model.parameters()
    }
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model.loss(tokens, tokens)
    kept = sum(storages.values())
    del loss
    return kept


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape, batch",
    [
        ((500, 64, 4, 4, 128, 512), 16),
        ((500, 128, 3, 2, 64, 300), 8),
        ((500, 256, 2, 4, 64, 256), 2),  # the last that attention does explicitly
        ((500, 257, 2, 4, 64, 256), 2),
    ],
)
def test_activations_equal_what_autograd_keeps(shape, batch, dtype, dropout):
    config = GPTConfig(*shape, dropout)
    tokens = torch.randint(config.vocab_size, (batch, config.context_length))
    kept = saved_bytes(GPT(config), tokens, dtype != "float32")
    counted = count_memory(config, batch, dtype, "cpu")
    N, D, V = tokens.numel(), config.d_model, config.vocab_size
    gradients_of_the_loss = (
        4 * N * D + 4 * V * D
    )  # made in the forward pass, of stream and output matrix
    # and the 16-bit weights that autocast made
    assert (
        counted.activations + gradients_of_the_loss + counted.copies
        == pytest.approx(kept, rel=0.03)
    )


def peak_bytes(config, batch):
    """Peak of a training step by PyTorch's profiler, with weights and optimizer."""
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(config.vocab_size, (batch, config.context_length))

    def step():
        model.loss(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    held = peak = 12 * model.count_parameters()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = [
        event
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize(
    "shape, batch",
    [
        ((1000, 128, 4, 4, 128, 512), 16),
        ((1000, 64, 6, 6, 384, 1536), 1),
        ((20000, 64, 2, 4, 128, 512), 4),
        ((500, 64, 2, 2, 64, 256), 64),
        ((50257, 64, 2, 2, 64, 256), 8),
    ],
)
def test_peak_is_within_15_percent_of_the_measured_one(shape, batch):
    config = GPTConfig(*shape)
    assert count_memory(config, batch, "float32", "cpu").peak == pytest.approx(
        peak_bytes(config, batch), rel=0.15
    )


@pytest.mark.parametrize(
    "shape", [(500, 64, 4, 4, 128, 512), (50257, 1024, 2, 12, 768, 3000)]
)
def test_weights_and_optimizer_are_the_parameters(shape):
    config = GPTConfig(*shape)
    with torch.device("meta"):
        model = GPT(config)
    memory = count_memory(config, 1, "float32")
    assert count_parameters(config) == model.count_parameters()
    assert memory.weights == 4 * model.count_parameters()
    assert memory.optimizer == 8 * model.count_parameters()
    matrices = sum(
        p.numel() for name, p in model.blocks.named_parameters() if p.dim() == 2
    )
    assert (
        count_memory(config, 1, optimizer="muon").optimizer
        == 8 * model.count_parameters() - 4 * matrices
    )
    half = count_memory(config, 1, "bfloat16")
    assert half.weights == memory.weights and half.copies == 2 * matrices


def test_memory_grows_with_what_it_should_grow_with():
    config = GPTConfig(**GPT2)
    plain = count_memory(config, 8).peak
    assert count_memory(config, 9).peak > plain
    assert count_memory(config, 8, "float32").peak > plain
    assert count_memory(config, 8, accumulate=True).peak - plain == 4 * 124_439_808
    masks = (
        8 * 1024 * 768 * (2 * 12 + 1)
    )  # a byte each: two in a layer, one behind the embeddings
    assert (
        count_memory(dataclasses.replace(config, dropout=0.1), 8).peak - plain == masks
    )
