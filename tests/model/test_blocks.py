"""slm.model.blocks against PyTorch's encoder layer and formulas by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slm.model import blocks
from slm.model.blocks import FeedForward, TransformerBlock


def test_feed_forward_is_the_formula():
    torch.manual_seed(0)
    part, x = FeedForward(8, 20), torch.randn(2, 3, 8)
    h = x @ part.up.weight.T + part.up.bias
    gelu = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    torch.testing.assert_close(
        part(x), gelu @ part.down.weight.T + part.down.bias, atol=1e-6, rtol=1e-5
    )


def test_feed_forward_treats_each_position_alone():
    part, x = FeedForward(8, 20), torch.randn(2, 5, 8)
    torch.testing.assert_close(part(x)[:, 2], part(x[:, 2:3])[:, 0])


@pytest.mark.parametrize(
    ("d_model", "n_heads", "d_ff", "T"),
    [(32, 4, 128, 10), (16, 2, 24, 1), (24, 3, 96, 33)],
)
def test_block_equals_torch_encoder_layer(d_model, n_heads, d_ff, T):
    torch.manual_seed(1)
    ours = TransformerBlock(d_model, n_heads, d_ff)
    theirs = nn.TransformerEncoderLayer(
        d_model,
        n_heads,
        d_ff,
        0.0,
        lambda x: F.gelu(x, approximate="tanh"),
        batch_first=True,
        norm_first=True,
    )
    for norm in (ours.norm_1, ours.norm_2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    pairs = [
        (ours.norm_1, theirs.norm1),
        (ours.norm_2, theirs.norm2),
        (ours.feed_forward.up, theirs.linear1),
    ]
    pairs += [
        (ours.feed_forward.down, theirs.linear2),
        (ours.attention.out, theirs.self_attn.out_proj),
    ]
    for mine, its in pairs:
        its.load_state_dict(mine.state_dict())
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(ours.attention.qkv.weight)
        theirs.self_attn.in_proj_bias.copy_(ours.attention.qkv.bias)
    x = torch.randn(2, T, d_model)
    mask = nn.Transformer.generate_square_subsequent_mask(T)
    torch.testing.assert_close(ours(x), theirs(x, mask), atol=1e-5, rtol=1e-5)


def test_block_is_causal_and_reaches_every_parameter():
    torch.manual_seed(2)
    block, x = TransformerBlock(16, 2, 64), torch.randn(1, 6, 16)
    changed = x.clone()
    changed[:, 3:] = 5.0
    assert torch.equal(block(x)[:, :3], block(changed)[:, :3])
    block(x).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters()
    )


def test_block_starts_near_the_identity_and_leaves_its_input_alone():
    block, x = TransformerBlock(64, 4, 256), torch.randn(1, 8, 64)
    kept = x.clone()
    moved = (block(x) - x).norm() / x.norm()
    assert torch.equal(x, kept)
    assert 0 < moved < 1


def test_dropout_is_off_in_evaluation():
    block, x = TransformerBlock(16, 2, 64, dropout=0.5), torch.randn(1, 6, 16)
    assert not torch.equal(block(x), block(x))
    assert torch.equal(block.eval()(x), block(x))


LARGE = 2**20 + 7  # not a multiple of any slice


def hidden(*shape, dtype=torch.float32):
    """What a layer hands on: no leaf, and nobody else's."""
    torch.manual_seed(0)
    return (3 * torch.randn(*shape)).to(dtype).requires_grad_() * 1


@pytest.fixture
def in_slices(monkeypatch):
    """The calls of the way in slices."""
    calls, original = [], blocks._GELU.apply
    monkeypatch.setattr(
        blocks._GELU, "apply", lambda x: calls.append(x.dtype) or original(x)
    )
    return calls


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.float64, 1e-13), (torch.bfloat16, 2**-8)],
)
def test_gelu_in_slices_has_the_values_and_slopes_of_the_definition(
    in_slices, dtype, tolerance, threads
):
    x = hidden(LARGE, dtype=dtype)
    z = x.detach().double().requires_grad_()
    exact = F.gelu(z, approximate="tanh")
    (exact_slope,) = torch.autograd.grad(exact.sum(), z)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = blocks._gelu(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
    finally:
        torch.set_num_threads(before)
    assert in_slices == [dtype]
    assert y.dtype == slope.dtype == dtype
    close = {"atol": tolerance, "rtol": tolerance}
    torch.testing.assert_close(y.double(), exact, **close)
    torch.testing.assert_close(slope.double(), exact_slope, **close)


def test_gelu_far_from_zero_is_the_line_or_nothing():
    x = hidden(2**20)
    with torch.no_grad():
        x[:4] = torch.tensor([1e4, -1e4, 3e18, -3e18])
    y = blocks._gelu(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert y[:4].tolist() == [1e4, 0, pytest.approx(3e18), 0]
    assert slope[:2].tolist() == [1, 0]


def test_a_tensor_that_is_not_contiguous_is_left_as_it_was(in_slices):
    x = hidden(1024, 1025).T
    kept = x.detach().clone()
    torch.testing.assert_close(blocks._gelu(x), F.gelu(kept, approximate="tanh"))
    assert in_slices and torch.equal(x, kept)


def test_gelu_goes_in_slices_only_where_that_pays(in_slices):
    part = FeedForward(256, 2048)
    large, small = torch.randn(512, 256), torch.randn(511, 256)
    part(small)
    with torch.no_grad():
        part(large)
    part.requires_grad_(False)(large)
    assert not in_slices
    part.requires_grad_(True)(large)
    assert in_slices == [torch.float32]
    with torch.autocast("cpu", torch.bfloat16):
        part(large)
    assert in_slices[1:] == [torch.bfloat16]


def test_a_large_feed_forward_network_trains_as_the_formula(in_slices):
    torch.manual_seed(0)
    part, x = FeedForward(256, 2048), torch.randn(2, 300, 256)
    other = nn.Sequential(part.up, nn.GELU("tanh"), part.down)
    weight = torch.randn(2, 300, 256)
    grads = [
        torch.autograd.grad((f(x) * weight).sum(), list(part.parameters()))
        for f in (part, other)
    ]
    assert in_slices
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_gradients_can_be_taken_twice_and_gradients_of_gradients_are_refused():
    x = hidden(2**20)
    y = blocks._gelu(x)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)
    again = torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert torch.equal(first[0], again[0])
    for loss in (y.sum(), y.square().sum()):
        with pytest.raises(RuntimeError, match="can be differentiated once"):
            torch.autograd.grad(loss, x, create_graph=True)


def test_whoever_needs_what_the_slope_overwrites_is_told():
    x = hidden(2**20)
    square = x * x  # keeps x for its own gradient
    blocks._gelu(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(square.sum(), x)


def test_a_compiled_network_has_one_graph_and_pytorchs_gelu(in_slices):
    part, x = FeedForward(256, 2048), torch.randn(512, 256)
    compiled = torch.compile(part, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), part(x), atol=1e-5, rtol=1e-5)
    assert len(in_slices) == 1  # the one that was not compiled
