"""slm.model.attention against PyTorch's kernels and modules, and its own promises."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slm.model.attention import (
    MultiHeadAttention,
    _explicit_attention,
    causal_attention,
)


def qkv(T=7, S=7, dtype=torch.float32):
    torch.manual_seed(0)
    return (
        torch.randn(2, 3, T, 8).to(dtype),
        torch.randn(2, 3, S, 8).to(dtype),
        torch.randn(2, 3, S, 8).to(dtype),
    )


@pytest.mark.parametrize("attention", [causal_attention, _explicit_attention])
@pytest.mark.parametrize(("T", "S"), [(1, 1), (7, 7), (1, 7), (3, 7), (33, 65)])
def test_equals_the_definition_in_float64(attention, T, S):
    q, k, v = qkv(T, S)
    scores = (q.double() @ k.double().transpose(-2, -1)) / 8**0.5
    hidden = torch.arange(S)[None] > torch.arange(S - T, S)[:, None]
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    torch.testing.assert_close(
        attention(q, k, v), (weights @ v.double()).float(), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_later_position_changes_no_earlier_output(dtype, training):
    q, k, v = qkv(dtype=dtype)
    q.requires_grad_(training)
    before = causal_attention(q, k, v)
    with torch.no_grad():
        k[:, :, 4:], v[:, :, 4:], q[:, :, 4:] = 9.0, -9.0, 3.0
    after = causal_attention(q, k, v)
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert not torch.equal(before[:, :, 4:], after[:, :, 4:])


def test_bfloat16_is_close_to_float32():
    q, k, v = qkv(64, 64)
    low = causal_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(
        low.float(), causal_attention(q, k, v), atol=0.05, rtol=0.05
    )


def test_more_queries_than_keys_is_refused():
    q, k, v = qkv(5, 3)
    with pytest.raises(ValueError, match="5 queries and 3 keys"):
        causal_attention(q, k, v)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="n_heads = 3 does not divide d_model = 32"):
        MultiHeadAttention(32, 3)


def torch_twin(ours):
    theirs = nn.MultiheadAttention(ours.out.in_features, ours.n_heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    return theirs


@pytest.mark.parametrize(
    ("d_model", "n_heads", "T"), [(32, 4, 9), (48, 1, 1), (24, 24, 17)]
)
def test_equals_torch_multihead_attention_with_gradients(d_model, n_heads, T):
    torch.manual_seed(1)
    ours = MultiHeadAttention(d_model, n_heads)
    theirs, x = torch_twin(ours), torch.randn(3, T, d_model)
    mask = torch.ones(T, T, dtype=torch.bool).triu(1)
    expected = theirs(x, x, x, attn_mask=mask, need_weights=False)[0]
    torch.testing.assert_close(ours(x), expected, atol=1e-6, rtol=1e-5)
    ours(x).square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(
        ours.qkv.weight.grad, theirs.in_proj_weight.grad, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        ours.out.weight.grad, theirs.out_proj.weight.grad, atol=1e-4, rtol=1e-4
    )


def test_a_cache_of_the_past_gives_the_same_as_the_whole_text():
    torch.manual_seed(2)
    attention, x = MultiHeadAttention(32, 4).eval(), torch.randn(2, 9, 32)
    kept = []

    def cache(k, v):
        kept.append((k, v))
        return torch.cat([k for k, _ in kept], 2), torch.cat([v for _, v in kept], 2)

    steps = [
        attention(x[:, :5], cache),
        attention(x[:, 5:6], cache),
        attention(x[:, 6:], cache),
    ]
    torch.testing.assert_close(torch.cat(steps, 1), attention(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_is_on_in_training_and_off_in_evaluation(dtype):
    attention, x = (
        MultiHeadAttention(32, 4, dropout=0.5).to(dtype),
        torch.randn(1, 6, 32).to(dtype),
    )
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


@pytest.mark.parametrize(
    ("T", "dtype", "training"),
    [
        (7, torch.float32, True),
        (3, torch.float32, False),
        (1, torch.float32, False),
        (7, torch.bfloat16, True),
        (7, torch.bfloat16, False),
    ],
)
def test_dropout_drops_on_every_path(T, dtype, training):
    q, k, v = qkv(T, 7, dtype)
    q.requires_grad_(training)
    assert not torch.equal(
        causal_attention(q, k, v, dropout=0.5), causal_attention(q, k, v, dropout=0.5)
    )
    assert torch.equal(causal_attention(q, k, v), causal_attention(q, k, v))


def test_dropout_keeps_the_mean():
    q, k, v = qkv()
    ones = torch.ones_like(v)
    torch.manual_seed(3)
    mean = torch.stack(
        [causal_attention(q, k, ones, dropout=0.3) for _ in range(2000)]
    ).mean(0)
    torch.testing.assert_close(mean, ones, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "T", "training", "fused"),
    [
        (torch.float32, 7, True, True),
        (
            torch.bfloat16,
            256,
            True,
            False,
        ),  # the one case in which plain products were measured to be faster
        (torch.bfloat16, 257, True, True),
        (torch.bfloat16, 7, False, True),
    ],
)
def test_the_kernel_is_the_one_that_was_measured_to_be_faster(
    monkeypatch, dtype, T, training, fused
):
    called = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *a, **k: called.append(1) or original(*a, **k),
    )
    q, k, v = qkv(T, T, dtype)
    causal_attention(q.requires_grad_(training), k, v)
    assert bool(called) == fused
