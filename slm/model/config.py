"""The shape of a model and what it costs, known without loading PyTorch.

    count_parameters(GPTConfig(50257, 1024, 12, 12, 768, 3072))  # 124,439,808

Exported from chapters/03_gpt.py; edit it there.
"""

import importlib
import math
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from slm.errors import SlmError, settings

# The shape

IGNORE = -100  # a target that does not count
MOST = 10**9  # of anything in a model's shape; more is a slip of the keyboard
MOST_LAYERS = 10_000  # each costs a millisecond and 100 kB, however narrow it is


@settings
class GPTConfig:
    """The shape of a GPT-2-class model, and the section `model:` of a config file.

    Raises:
        SlmError: A size is not a positive integer, `n_heads` does not divide `d_model`,
            or `dropout` is out of range.
    """

    vocab_size: int = Field(ge=1, le=MOST)
    """Ids that the tables hold (V); at least the tokenizer's."""
    context_length: int = Field(ge=1, le=MOST)
    """Tokens that the model can look back on (T)."""
    n_layers: int = Field(ge=1, le=MOST_LAYERS)
    """Blocks."""
    n_heads: int = Field(ge=1, le=MOST)
    """Attention heads of each block (H); divides d_model."""
    d_model: int = Field(ge=1, le=MOST)
    """Channels of the residual stream (D)."""
    d_ff: int = Field(ge=1, le=MOST)
    """Channels inside the feed-forward network."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of channels and weights dropped."""

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads:
            heads = f"n_heads = {self.n_heads} does not divide d_model = {self.d_model}"
            raise ValueError(f"{heads}; heads share the channels equally")


# Exercise 1: count without building


def count_parameters(config: GPTConfig) -> int:
    """Numbers that training finds; the tied output matrix counts once."""
    L, D, F = config.n_layers, config.d_model, config.d_ff
    block = 4 * D * D + 2 * D * F + 9 * D + F  # matrices; biases and the two norms
    return L * block + (config.vocab_size + config.context_length) * D + 2 * D


# What a token costs


def count_forward_flops(config: GPTConfig) -> dict[str, int]:
    """FLOPs of one token's forward pass at full context, by part.

    Counts the matrix products, two FLOPs per multiply-add, and attention over all
    `context_length` keys as if nothing were masked: the convention of
    Chowdhery et al. 2022, appendix B. Look-ups, norms, GELU and softmax do not count.
    """
    L, D, F = config.n_layers, config.d_model, config.d_ff
    T, V = config.context_length, config.vocab_size
    return {
        "queries, keys, values": L * 6 * D * D,
        "scores and weighted sums": L * 4 * T * D,
        "attention output": L * 2 * D * D,
        "feed-forward": L * 4 * D * F,
        "logits": 2 * D * V,
    }


def count_flops_per_token(config: GPTConfig, training: bool = True) -> int:
    """FLOPs per token: the forward pass, or with `training` three times that."""
    return (3 if training else 1) * sum(count_forward_flops(config).values())


# The loss without the logits


def _loss_bytes(device: str) -> tuple[int, int]:
    """Bytes of logits that the loss holds at once, and of their 32-bit copies.

    32 MB and 4 MB on a CPU, whose cache the copies should fit; 1 GB and 256 MB
    elsewhere, where each block costs a pass over the gradient of the table.
    """
    return (2**25, 2**22) if device == "cpu" else (2**30, 2**28)


def logit_columns(vocab_size: int, device: str) -> int:
    """Columns of the loss's products: a multiple of 128, for the units of a GPU."""
    return vocab_size if device == "cpu" else 128 * math.ceil(vocab_size / 128)


def logit_rows(
    n_rows: int, columns: int, bytes_per_number: int, device: str
) -> tuple[int, int]:
    """How many rows of logits the loss holds at once, and how many 32-bit copies."""
    block, copies = _loss_bytes(device)
    blocks = max(1, math.ceil(n_rows * columns * bytes_per_number / block))
    return math.ceil(n_rows / blocks), max(1, copies // (4 * columns))


# What a training step holds in memory


@dataclass(frozen=True)
class Memory:
    """Bytes on one device during a training step, by what they are for.

    Attributes:
        weights: The parameters in float32.
        copies: Of the blocks' matrices in 16 bits, which autocast keeps from forward to
            backward.
        optimizer: AdamW's two averages of each parameter; with Muon one, for the
            matrices of the blocks.
        gradients: All at the end of the backward pass, that of the tied table twice.
        earlier_gradients: Of micro-batches before this one; 0 if there are none.
        activations: What the forward pass keeps for the backward pass.
        loss: Working memory of the loss: a block of logits, and the gradients of stream
            and output matrix.
    """

    weights: int
    copies: int
    optimizer: int
    gradients: int
    earlier_gradients: int
    activations: int
    loss: int

    @property
    def peak(self) -> int:
        """The larger of two moments: after the loss, or after the backward pass.

        At the first all activations are alive, at the second all gradients.
        """
        kept = self.copies + self.activations
        after_loss = self.earlier_gradients + kept + self.loss
        return self.weights + self.optimizer + max(after_loss, self.gradients)


def count_memory(
    config: GPTConfig,
    batch_size: int,
    dtype: str = "bfloat16",
    device: str = "cuda",
    accumulate: bool = False,
    optimizer: str = "adamw",
) -> Memory:
    """What a training step holds in memory, counted from the structure of `GPT`.

    Args:
        config: The model.
        batch_size: Rows of `context_length` tokens in one pass (the micro-batch).
        dtype: "float32", or "bfloat16"/"float16" for autocast with float32 weights.
        device: "cuda", or "cpu", where attention keeps `(T, T)` weights (with dropout,
            and of short texts in bfloat16) and the loss takes smaller chunks.
        accumulate: Gradients of earlier micro-batches are alive with the activations.
        optimizer: "adamw", two averages per parameter, or "muon", one for the matrices
            of the blocks.

    Not counted: the device's own context, kernels' workspaces, fragmentation. Plan with
    a tenth of the memory for them.
    """
    L, H, D, F = config.n_layers, config.n_heads, config.d_model, config.d_ff
    T, V = config.context_length, config.vocab_size
    half = dtype != "float32"
    b, tokens = 2 if half else 4, batch_size * T
    matrices, parameters = L * (4 * D * D + 2 * D * F), count_parameters(config)
    # bytes per token and block; the last two terms are sums of attention and norms
    per_block = 8 * D + 6 * b * D + 2 * b * F + 4 * H + 16
    on_cpu, dropped = device == "cpu", bool(config.dropout)
    if on_cpu and dtype == "bfloat16" and T <= 256:  # the rule of `causal_attention`
        per_block += (3 if dropped else 1) * b * H * T
    elif on_cpu and dropped:  # weights, mask and their product, in 32 bits
        per_block += 12 * H * T
    per_block += 2 * (b if on_cpu else 1) * D if dropped else 0
    embedding = 4 + (4 if on_cpu else 1) * dropped  # bytes per channel
    output = V * D  # numbers in the output matrix, of which the loss makes the gradient
    logits = b * V * logit_rows(tokens, V, b, device)[0]
    logits += min(_loss_bytes(device)[1], 4 * tokens * V) * half  # 32-bit copies
    in_the_loss = 8 * tokens * D + (4 + b * half) * output + logits
    behind_it = 12 * tokens * D + 8 * output
    gradients = 4 * parameters
    return Memory(
        weights=gradients,
        copies=2 * matrices * half,
        optimizer=8 * parameters - (4 * matrices if optimizer == "muon" else 0),
        # for a moment the embedding's gradient exists twice: as input and as output
        gradients=gradients + 4 * output,
        earlier_gradients=gradients if accumulate else 0,
        activations=tokens * (L * per_block + embedding * D),
        loss=max(in_the_loss, behind_it),
    )


# Other models

ARCHITECTURES = {"gpt2": "slm.model.gpt:GPT"}


def architecture(name: str) -> Any:
    """The class of the models of that name; it is imported now, and PyTorch with it.

    Raises:
        SlmError: There is no such architecture.
    """
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise SlmError(f"{name!r} is not an architecture; there is {known}")
    module, _, cls = ARCHITECTURES[name].partition(":")
    return getattr(importlib.import_module(module), cls)
