"""slm.model.blocks against PyTorch's encoder layer and formulas by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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
