"""GPT-2: from token ids to a score for every possible next token.

    logits = GPT(GPTConfig(50257, 1024, 12, 12, 768, 3072))(tokens)  # (B, T, V)

Exported from chapters/03_gpt.py; edit it there.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.errors import SlmError, section
from slm.model.attention import Cache
from slm.model.blocks import TransformerBlock
from slm.model.config import (
    IGNORE,
    GPTConfig,
    count_parameters,
    logit_columns,
    logit_rows,
)
from slm.model.pretrained import (
    find_pretrained,
    read_shape,
    read_weights,
    write_pretrained,
)

# The model


class GPT(nn.Module):
    """A decoder-only language model with GPT-2's architecture.

    Learned positions, pre-norm blocks with biases, GELU in its tanh form, output tied
    to the token embedding.

    Args:
        config: The model's shape.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners",
    section 2.3, which scales the initial weights of residual layers by 1 / sqrt(their
    number). The 0.02 is GPT-1's (Radford et al. 2018) and that of `transformers`;
    OpenAI's own code starts the positions with 0.01.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        c = self.config = config
        self.token_embedding = nn.Embedding(c.vocab_size, c.d_model)
        self.position_embedding = nn.Embedding(c.context_length, c.d_model)
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(c.d_model, c.n_heads, c.d_ff, c.dropout)
            for _ in range(c.n_layers)
        )
        self.norm = nn.LayerNorm(c.d_model)
        into_stream = ("attention.out.weight", "feed_forward.down.weight")
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                depth = 2 * c.n_layers if name.endswith(into_stream) else 1
                nn.init.normal_(parameter, std=0.02 / math.sqrt(depth))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.token_embedding.weight.device

    def count_parameters(self) -> int:
        """Number of trained numbers; the tied output matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def tables(self) -> list[Tensor]:
        """The embeddings: matrices of rows to look up, not of a product."""
        return [self.token_embedding.weight, self.position_embedding.weight]

    def _check(self, tokens: Tensor, start: int = 0) -> None:
        """Refuse tokens that do not fit: the errors of `forward`."""
        end, limit = start + tokens.size(-1), self.config.context_length
        if end > limit:
            fit = f"{end} tokens do not fit into the model's context_length = {limit}"
            raise ValueError(f"{fit}; shorten the text")
        if not tokens.is_cpu or torch.compiler.is_compiling():
            return
        low, high = (int(bound) for bound in tokens.aminmax())
        wrong, last = low if low < 0 else high, self.config.vocab_size - 1
        if not 0 <= wrong <= last:
            outside = f"token id {wrong} is outside the vocabulary"
            raise ValueError(f"{outside}; ids from 0 to {last} are allowed")

    def hidden(
        self, tokens: Tensor, caches: Sequence[Cache] | None = None, start: int = 0
    ) -> Tensor:
        """The normalised residual stream above the last block, `(B, T, D)`.

        Arguments and errors as in `forward`.
        """
        self._check(tokens, start)
        T = tokens.size(-1)
        places = torch.arange(start, start + T, device=tokens.device)  # (T,)
        x = self.token_embedding(tokens) + self.position_embedding(places)
        x = self.dropout(x)  # (B, T, D)
        for i, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[i])
        return self.norm(x)

    def forward(
        self, tokens: Tensor, caches: Sequence[Cache] | None = None, start: int = 0
    ) -> Tensor:
        """Scores for the next token at every position.

        Args:
            tokens: `(B, T)` int64 token ids.
            caches: One per block; each keeps the keys and values of the
                positions before `start`.
            start: Position of the first token, when earlier ones are in the caches.

        Returns:
            Logits `(B, T, V)`.

        Raises:
            ValueError: `start + T` exceeds `context_length`, or (checked on the CPU) an
                id is not in the vocabulary.
        """
        stream = self.hidden(tokens, caches, start)
        return F.linear(stream, self.token_embedding.weight)  # (B, T, D) @ (D, V)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of the next token, with few logits at once (`logit_rows`).

        Args:
            tokens: `(B, T)` int64 token ids.
            targets: `(B, T)` int64: the token that follows each position, or `IGNORE`
                where none counts.

        Returns:
            A scalar in nats per counted target; 0 if none counts.

        Raises:
            ValueError: As `forward`; or `targets` has another shape than `tokens`.
        """
        V = self.config.vocab_size
        eager_cpu = targets.is_cpu and not torch.compiler.is_compiling()
        if eager_cpu:
            outside = (targets >= V) | (targets < 0) & (targets != IGNORE)
            if bool(outside.any()):
                allowed = f"ids from 0 to {V - 1} are allowed, and {IGNORE} for none"
                raise ValueError(f"targets hold ids outside the vocabulary; {allowed}")
        if targets.shape != tokens.shape:
            shapes = f"{tuple(targets.shape)} and tokens {tuple(tokens.shape)}"
            raise ValueError(f"targets have shape {shapes}; they must be the same")
        if eager_cpu:
            self._check(tokens)  # all of them, before some are left out
            counted = (targets != IGNORE).any(0).nonzero()  # positions with a target
            end = 1 + int(counted.max()) if len(counted) else 1
            tokens, targets = tokens[:, :end], targets[:, :end]
        stream = self.hidden(tokens).flatten(0, 1)  # (B·T, D)
        table, y = self.token_embedding.weight, targets.flatten()  # (V, D), (B·T,)
        if eager_cpu:
            kept = (y != IGNORE).nonzero()[:, 0]
            stream, y = stream.index_select(0, kept), y[kept]
        return _ChunkedCrossEntropy.apply(stream, table, y, torch.is_grad_enabled())

    def save_pretrained(self, folder: str | Path, tokenizer: Any = None) -> None:
        """Write a folder that `transformers` opens.

        Existing files of the same names are replaced, each in one step.

        Args:
            folder: Where to; it is made.
            tokenizer: The `Tokenizer` that the model was trained with. It completes the
                folder, by its own files and by the id that ends a text.

        Raises:
            OSError: The disk is full or not writable.
        """
        weights = {name: weight.detach() for name, weight in self.named_parameters()}
        shape = dataclasses.asdict(self.config)
        write_pretrained(Path(folder), shape, weights, tokenizer)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path) -> "GPT":
        """A model in evaluation mode with the weights of a folder or a published GPT-2.

        Args:
            name_or_folder: A folder with `config.json` and `model.safetensors`, as
                `save_pretrained` or `transformers` writes them, or a hub name: "gpt2",
                "gpt2-medium", "gpt2-large", "gpt2-xl" (needs a network once, and
                `pip install huggingface_hub`).

        Raises:
            FileNotFoundError: There is no such folder, or it lacks a file; or the hub
                cannot be reached.
            SlmError: The folder holds another architecture than GPT-2, its weights do
                not fit its config, or a file is damaged.
        """
        config_file, weights_file = find_pretrained(name_or_folder)
        shape = read_shape(config_file)
        config = section(GPTConfig, shape, f"{config_file}: model")
        wanted, size = count_parameters(config), weights_file.stat().st_size
        # before a large model is made; a weight has a byte at least
        if wanted > max(size, 10**7):
            holds = f"{weights_file} has {size:,} bytes"
            raise SlmError(f"{config_file} asks for {wanted:,} weights, but {holds}")
        model = cls(config)
        shapes = {name: weight.shape for name, weight in model.named_parameters()}
        model.load_state_dict(read_weights(weights_file, shapes))
        return model.eval()


# Let it write


@torch.no_grad()
def sample_tokens(
    model: GPT,
    prompt: list[int],
    max_tokens: int,
    seed: int,
    stop_token: int | None = None,
    vocab_size: int | None = None,
) -> list[int]:
    """Tokens that the model writes after a prompt, each drawn from its predictions.

    Args:
        model: Any model with `config`, `device` and `forward`; its mode is kept.
        prompt: At least one token.
        max_tokens: How many to write at most.
        seed: The same seed gives the same tokens.
        stop_token: Ends the text, and is left out.
        vocab_size: Only ids below it are drawn; the model's own if not given.

    Returns:
        The new tokens, without the prompt.
    """
    training, tokens = model.training, list(prompt)
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(max_tokens):
        window = torch.tensor([tokens[-model.config.context_length :]])  # (1, T)
        logits = model(window.to(model.device))[0, -1, :vocab_size]  # (V,)
        probabilities = logits.float().softmax(-1).cpu()
        token = int(torch.multinomial(probabilities, 1, generator=generator))
        if token == stop_token:
            break
        tokens.append(token)
    model.train(training)
    return tokens[len(prompt) :]


# The loss without the logits


def _to_gradient_(logits: Tensor, targets: Tensor) -> Tensor:
    """Turn logits `(N, V)` into `softmax(logits) - one_hot(targets)`, in place.

    Args:
        logits: `(N, V)`, overwritten.
        targets: `(N, 1)`.

    Returns:
        The losses `(N, 1)`.
    """
    z = logits.float()  # (N, V): sums of thousands of exponentials need 32 bits
    z = z.sub_(z.amax(-1, keepdim=True))  # so that no exponential overflows
    picked = z.gather(1, targets)  # (N, 1)
    total = z.exp_().sum(-1, keepdim=True)  # (N, 1)
    z = z.div_(total)
    if torch.compiler.is_compiling():  # would write and read all of z for a scatter
        z = z - (torch.arange(z.size(1), device=z.device) == targets).float()
    else:
        z.scatter_add_(1, targets, -torch.ones_like(total))
    logits.copy_(z)
    return total.log() - picked


def _add_product_(total: Tensor, dz: Tensor, h: Tensor) -> None:
    """Add `dz.T @ h` to `total` `(V, D)`, on a CPU without a second table."""
    size = 2**13 if total.is_cpu else len(total)
    for rows, columns in zip(total.split(size), dz.split(size, 1), strict=True):
        rows += columns.T @ h


def _after(counts: Tensor, values: Iterable[Tensor]) -> Tensor:
    """The same `counts`, which a compiler can't know before these single numbers."""
    for value in values:
        counts = counts & (value.isnan() | ~value.isnan())
    return counts


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of `hidden @ weight.T`, some rows at a time.

    The gradients are made in the forward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, with_gradient: bool
    ) -> Tensor:
        device, N, V = hidden.device.type, len(targets), weight.size(0)
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        width, compiling = logit_columns(V, device), torch.compiler.is_compiling()
        rows, few = logit_rows(N, width, dtype.itemsize, device)
        few = max(1, rows) if compiling else few  # a compiled kernel makes no copies
        count = targets.ne(IGNORE).sum().clamp(min=1)
        loss = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if with_gradient else None
        grad_weight = torch.zeros_like(weight) if with_gradient else None
        known: list[Tensor] = []  # numbers of the last block
        matrix = weight.to(dtype)  # (V, D)
        if width > V:
            matrix = F.pad(matrix, (0, 0, 0, width - V))  # (width, D)
        with torch.autocast(device, enabled=False):
            for first in range(0, N, max(1, rows)):
                part = slice(first, first + rows)
                counts = targets[part, None] != IGNORE  # (rows, 1)
                if compiling:
                    counts = _after(counts, known)
                y = targets[part, None].clamp(min=0)  # (rows, 1)
                # (rows, D); what does not count is 0, even nan
                h = hidden[part].to(dtype).masked_fill(~counts, 0)
                z = h @ matrix.T  # (rows, width), the logits and then their gradient
                if width > V:
                    z[:, V:] = -torch.inf
                for i in range(0, len(z), few):
                    some = slice(i, i + few)
                    loss += (_to_gradient_(z[some], y[some]) * counts[some]).sum()
                known = [loss]
                if grad_hidden is not None and grad_weight is not None:
                    grad_hidden[part] = z @ matrix * counts
                    _add_product_(grad_weight, z[:, :V], h)
                    known = [grad_hidden[first, 0], grad_weight[0, 0]]
                del z  # before the next block is made
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden.div_(count), grad_weight.div_(count))
        return loss / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_loss, grad_weight * grad_loss, None, None
