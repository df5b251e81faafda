"""Causal attention: how a token gathers what it needs from the tokens before it.

    gathered = MultiHeadAttention(d_model=768, n_heads=12)(x)  # (B, T, D) to (B, T, D)

Exported from chapters/01_attention.py; edit it there.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# All tokens at once


def _explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0
) -> Tensor:
    """Causal attention as matrix products.

    The definition, and the faster way to train on short texts in bfloat16.
    """
    T, S = q.size(-2), k.size(-2)
    everywhere = torch.full((T, S), -torch.inf, dtype=q.dtype, device=q.device)
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, H, T, S)
    scores += everywhere.triu(S - T + 1)  # 0 for what may be seen
    weights = scores.softmax(-1)  # (B, H, T, S), rows sum to one
    return F.dropout(weights, dropout) @ v  # (B, H, T, K)


# The kernel that PyTorch brings


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention in which no position sees a later one.

    PyTorch's kernel, except in training on up to 256 tokens in bfloat16 on a CPU,
    where plain products are faster.

    Args:
        q: Queries `(B, H, T, K)`: the last `T` of the `S` positions.
        k: Keys `(B, H, S, K)` with `S >= T`.
        v: Values `(B, H, S, K)`.
        dropout: Probability with which each weight is dropped. Pass 0 in evaluation.

    Returns:
        `(B, H, T, K)`: for each query the mean of the values it may see, weighted by
        the softmax of the scaled scores.

    Raises:
        ValueError: There are more queries than keys.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1.
    """
    T, S = q.size(-2), k.size(-2)
    if T > S:
        allowed = f"at most {S} queries can stand at the keys' end"
        raise ValueError(f"causal_attention got {T} queries and {S} keys; {allowed}")
    if q.is_cpu and q.dtype == torch.bfloat16 and q.requires_grad and T <= 256:
        return _explicit_attention(q, k, v, dropout)
    fused = F.scaled_dot_product_attention
    if T == S or T == 1:  # a single query is the last position: it may see everything
        return fused(q, k, v, dropout_p=dropout, is_causal=T > 1)
    past = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return fused(q, k, v, attn_mask=past, dropout_p=dropout)


# Many heads

# takes a layer's new keys and values, (B, H, T, K) each,
# and returns all so far, (B, H, S, K) each
Cache = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class MultiHeadAttention(nn.Module):
    """Causal self-attention with `n_heads` heads, as in GPT-2.

    Args:
        d_model: Width D of the input and the output.
        n_heads: Number of heads H; each has size `K = D / H`.
        dropout: Probability of dropping an attention weight, and an output channel,
            in training.

    Raises:
        ValueError: `n_heads` does not divide `d_model`.

    Source: Vaswani et al. 2017, section 3.2.2; Radford et al. 2019 (GPT-2).
    """

    def __init__(self, d_model: int, n_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if d_model % n_heads:
            heads = f"n_heads = {n_heads} does not divide d_model = {d_model}"
            raise ValueError(f"{heads}; heads share the channels equally")
        self.n_heads = n_heads
        self.dropout = dropout
        self.qkv = nn.Linear(d_model, 3 * d_model)  # all three in one product
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Let every position gather from those before it.

        Args:
            x: `(B, T, D)`.
            cache: Keeps the keys and values of earlier calls.

        Returns:
            `(B, T, D)`.
        """
        B, T, D = x.shape
        H, K = self.n_heads, D // self.n_heads
        qkv = self.qkv(x).view(B, T, 3, H, K)  # which of q, k, v; which head
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, H, T, K) each
        if cache is not None:
            k, v = cache(k, v)  # (B, H, S, K) each
        dropout = self.dropout if self.training else 0.0
        heads = causal_attention(q, k, v, dropout)  # (B, H, T, K)
        return F.dropout(self.out(heads.transpose(1, 2).reshape(B, T, D)), dropout)
