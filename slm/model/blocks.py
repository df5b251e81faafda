"""The transformer block: attention and a feed-forward network on a residual stream.

    x = TransformerBlock(d_model=768, n_heads=12, d_ff=3072)(x)  # (B, T, D), as before

Exported from chapters/02_blocks.py; edit it there.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.model.attention import Cache, MultiHeadAttention

# The same numbers, sooner


class _GELU(torch.autograd.Function):
    """GELU in its tanh form and its slope, in slices that stay in the cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """`x`, contiguous, of any shape; the slope overwrites it."""
        y, wide = torch.empty_like(x), torch.promote_types(x.dtype, torch.float32)
        a, size = 2 * math.sqrt(2 / math.pi), 2**16 * torch.get_num_threads()
        plus, minus = torch.tensor([a, -2 * a], dtype=wide)
        scratch = torch.empty(2, size, dtype=wide)
        slices = x.view(-1).split(size), y.view(-1).split(size)
        for x_part, y_part in zip(*slices, strict=True):
            p, s = scratch[:, : len(x_part)]
            z = x_part.to(wide)  # x_part itself, if it is as wide
            torch.addcmul(plus, z, z, value=0.044715 * a, out=p)
            torch.mul(p, z, out=s).sigmoid_()
            y_part.copy_(z.mul_(s))
            torch.add(minus, p, alpha=3, out=p)  # 3p - 2a
            z.addcmul_(z, s, value=-1)  # y (1 - s)
            x_part.copy_(torch.addcmul(s, z, p, out=z))
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # create_graph=True: the slope would be a constant
            only_once = "FeedForward in training on a CPU can be differentiated once"
            raise RuntimeError(f"{only_once}; create_graph=True is not allowed")
        (slope,) = ctx.saved_tensors
        return grad * slope


def _gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, in the faster way; `x` may be overwritten."""
    large_on_cpu = x.is_cpu and x.numel() >= 2**20
    if large_on_cpu and x.requires_grad and not torch.compiler.is_compiling():
        return _GELU.apply(x.contiguous())
    return F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, applied to each position for itself.

    Args:
        d_model: Width D of the input and the output.
        d_ff: Width of the hidden layer, usually `4 * d_model`.
        dropout: Probability of dropping an output channel in training.

    Source: Vaswani et al. 2017, section 3.3; GELU in its tanh form as in GPT-2
    (Hendrycks and Gimpel 2016).
    """

    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, D)` to `(B, T, D)`."""
        return self.dropout(self.down(_gelu(self.up(x))))


# The block


class TransformerBlock(nn.Module):
    """A pre-norm block: attention, then a feed-forward network, both added to x.

    Args:
        d_model: Width D of the residual stream.
        n_heads: Number of attention heads; divides `d_model`.
        d_ff: Width of the feed-forward network's hidden layer.
        dropout: Probability of dropping attention weights and the output channels of
            both parts, in training.

    Source: Radford et al. 2019 (GPT-2), section 2.3; Xiong et al. 2020 on where the
    norm belongs.
    """

    def __init__(
        self, d_model: int, n_heads: int, d_ff: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(d_model)
        self.attention = MultiHeadAttention(d_model, n_heads, dropout)
        self.norm_2 = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, d_ff, dropout)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """`(B, T, D)` to `(B, T, D)`; `cache` goes to the attention as it is."""
        x = x + self.attention(self.norm_1(x), cache)
        return x + self.feed_forward(self.norm_2(x))
