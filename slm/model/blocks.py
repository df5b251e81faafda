"""The transformer block: attention and a feed-forward network on a residual stream.

    x = TransformerBlock(d_model=768, n_heads=12, d_ff=3072)(x)  # (B, T, D), as before

Exported from chapters/02_blocks.py; edit it there.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from slm.model.attention import Cache, MultiHeadAttention

# The feed-forward network


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
        return self.dropout(self.down(F.gelu(self.up(x), approximate="tanh")))


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
