"""GPT-2: from token ids to a score for every possible next token.

Exported from chapters/03_gpt.py; edit it there.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from slm.attention import Cache
from slm.blocks import TransformerBlock
from slm.gpt_config import GPTConfig


class GPT(nn.Module):
    """A decoder-only language model with GPT-2's architecture.

    Learned positions, pre-norm blocks with biases, GELU in its tanh form, output tied to the token embedding.

    Args:
        config: The model's shape.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3, which scales the
    initial weights of residual layers by 1 / sqrt(their number). The 0.02 is GPT-1's (Radford et al. 2018) and that of
    `transformers`; OpenAI's own code starts the positions with 0.01.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.context_length, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.d_model, config.n_heads, config.d_ff, config.dropout)
            for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(config.d_model)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_stream = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layers) if into_stream else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.token_embedding.weight.device

    def count_parameters(self) -> int:
        """Number of trained numbers; the output matrix is the token embedding and counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def hidden(self, tokens: Tensor, caches: Sequence[Cache] | None = None, start: int = 0) -> Tensor:
        """The normalised residual stream above the last block, `(B, T, D)`; arguments and errors as in `forward`."""
        T = tokens.size(-1)
        if start + T > self.config.context_length:
            limit = f"the model's context_length = {self.config.context_length}"
            raise ValueError(f"{start + T} tokens do not fit into {limit}; shorten the text")
        if tokens.is_cpu and not torch.compiler.is_compiling():  # elsewhere, looking would stall the device
            low, high = (int(bound) for bound in tokens.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                allowed = f"ids from 0 to {self.config.vocab_size - 1} are allowed"
                raise ValueError(f"token id {low if low < 0 else high} is outside the vocabulary; {allowed}")
        positions = torch.arange(start, start + T, device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))  # (B, T, D)
        for i, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[i])
        return self.norm(x)

    def forward(self, tokens: Tensor, caches: Sequence[Cache] | None = None, start: int = 0) -> Tensor:
        """Scores for the next token at every position.

        Args:
            tokens: `(B, T)` int64 token ids.
            caches: One per block; each keeps the keys and values of the positions before `start` (chapter 7).
            start: Position of the first token, when earlier ones are in the caches.

        Returns:
            Logits `(B, T, V)`.

        Raises:
            ValueError: `start + T` exceeds `context_length`, or (checked on the CPU) an id is not in the vocabulary.
        """
        return F.linear(self.hidden(tokens, caches, start), self.token_embedding.weight)  # (B, T, D) @ (D, V)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` in GPT-2's format, which `transformers` opens.

        Existing files of these names are replaced, each in one step: a reader sees the old file or the new one.

        Raises:
            OSError: The disk is full or not writable.
        """
        folder, c = Path(folder), self.config
        published: dict[str, Any]
        folder.mkdir(parents=True, exist_ok=True)
        published = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new"}
        published |= {"vocab_size": c.vocab_size, "n_positions": c.context_length, "n_layer": c.n_layers}
        published |= {"n_head": c.n_heads, "n_embd": c.d_model, "n_inner": c.d_ff, "layer_norm_epsilon": 1e-5}
        published |= {"attn_pdrop": c.dropout, "embd_pdrop": c.dropout, "resid_pdrop": c.dropout}
        published |= {"tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None}
        weights = {}
        for name, parameter in self.named_parameters():
            theirs, transposed = _published_name(name)
            weights[theirs] = (parameter.detach().T if transposed else parameter.detach()).cpu().contiguous()
        try:
            save_file(weights, folder / "model.safetensors.part", metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{folder / 'model.safetensors'} could not be written: {error}") from error
        os.replace(folder / "model.safetensors.part", folder / "model.safetensors")
        (folder / "config.json.part").write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")
        os.replace(folder / "config.json.part", folder / "config.json")

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path) -> "GPT":
        """A model in evaluation mode with the weights of a folder, or of a GPT-2 on the Hugging Face hub.

        Args:
            name_or_folder: A folder with `config.json` and `model.safetensors`, as `save_pretrained` or `transformers`
                writes them, or a hub name: "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl" (needs a network once, and
                `pip install "slm[data]"`).

        Raises:
            FileNotFoundError: There is no such folder, or it lacks a file; or the hub cannot be reached.
            ValueError: The folder holds another architecture than GPT-2, its weights do not fit its config, or a
                file is damaged.
        """
        files = [Path(name_or_folder) / name for name in ("config.json", "model.safetensors")]
        if not Path(name_or_folder).is_dir() and str(name_or_folder) in (
            "gpt2",
            "gpt2-medium",
            "gpt2-large",
            "gpt2-xl",
        ):
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

            try:
                files = [Path(hf_hub_download(str(name_or_folder), file.name)) for file in files]
            except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
                reason = "is not in the local cache and the Hugging Face hub cannot be reached"
                raise FileNotFoundError(f"{name_or_folder!r} {reason}; connect once, or give a folder") from error
        for file in files:
            if not file.is_file():
                wanted = "a folder with config.json and model.safetensors, or a name like 'gpt2'"
                raise FileNotFoundError(f"{file} is not there; from_pretrained takes {wanted}")
        try:
            theirs = dict(json.loads(files[0].read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{files[0]} is not a model's config: {error}") from error
        for key, only in _ONLY.items():
            if theirs.get(key, None if key == "model_type" else only) != only:
                raise ValueError(f"{files[0]} says {key} = {theirs.get(key)!r}; only {only!r} can be loaded")
        if missing := sorted(_SIZES - theirs.keys()):
            raise ValueError(f"{files[0]} lacks {', '.join(missing)}; a GPT-2 config has {', '.join(sorted(_SIZES))}")
        if (
            len(dropouts := {theirs.get(key, 0.1) for key in _DROPOUTS}) > 1
        ):  # 0.1 is what a config that is silent means
            raise ValueError(f"{files[0]} has different dropouts {sorted(dropouts)}; one for all can be loaded")
        config = GPTConfig(
            vocab_size=theirs["vocab_size"],
            context_length=theirs["n_positions"],
            n_layers=theirs["n_layer"],
            n_heads=theirs["n_head"],
            d_model=theirs["n_embd"],
            d_ff=theirs.get("n_inner") or 4 * theirs["n_embd"],
            dropout=dropouts.pop(),
        )
        model = cls(config)
        try:
            weights = {name.removeprefix("transformer."): weight for name, weight in load_file(files[1]).items()}
        except SafetensorError as error:
            raise ValueError(f"{files[1]} is not a whole safetensors file: {error}") from error
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                key, transposed = _published_name(name)
                weight = weights.pop(key.removeprefix("transformer."), None)
                shape = tuple(reversed(parameter.shape) if transposed else parameter.shape)
                if weight is None or tuple(weight.shape) != shape:
                    found = "nothing" if weight is None else f"shape {tuple(weight.shape)}"
                    raise ValueError(f"{files[1]} holds {found} for {key}; its config asks for {shape}")
                parameter.copy_(weight.T if transposed else weight)
        output = weights.pop("lm_head.weight", None)  # some files repeat the tied table
        if output is not None and not torch.equal(output.to(parameter.dtype), model.token_embedding.weight):
            raise ValueError(f"{files[1]} has an output matrix of its own; GPT-2's is the token table")
        if unknown := [name for name in weights if not name.endswith((".attn.bias", ".attn.masked_bias"))]:  # masks
            raise ValueError(
                f"{files[1]} holds {unknown[0]}, for which a model of {config.n_layers} layers has no place"
            )
        return model.eval()

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of the next token, holding no more than a block of logits at once (`logit_rows`).

        Args:
            tokens: `(B, T)` int64 token ids.
            targets: `(B, T)` int64: the token that follows each position, or -100 where none counts.

        Returns:
            A scalar in nats per counted target; 0 if none counts.

        Raises:
            ValueError: As `forward`; or `targets` has another shape than `tokens`.
        """
        V = self.config.vocab_size
        if (
            targets.is_cpu
            and not torch.compiler.is_compiling()
            and bool(((targets >= V) | (targets < 0) & (targets != -100)).any())
        ):
            raise ValueError(
                f"targets hold ids outside the vocabulary; ids from 0 to {V - 1} are allowed, and -100 for none"
            )
        if targets.shape != tokens.shape:
            shapes = f"{tuple(targets.shape)} and tokens {tuple(tokens.shape)}"
            raise ValueError(f"targets have shape {shapes}; they must be the same")
        hidden = self.hidden(tokens).flatten(0, 1)  # (B·T, D)
        return _ChunkedCrossEntropy.apply(
            hidden, self.token_embedding.weight, targets.flatten(), torch.is_grad_enabled()
        )


_NAMES = {
    "norm_1": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "norm_2": "ln_2",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}


# what a published config must say, or leave out, for our architecture to be its architecture
_ONLY = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}

_SIZES = {"vocab_size", "n_positions", "n_layer", "n_head", "n_embd"}

_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def _published_name(name: str) -> tuple[str, bool]:
    """Hugging Face's name of one of our parameters, and whether its matrix is stored transposed."""
    tables = {"token_embedding": "wte", "position_embedding": "wpe", "norm": "ln_f"}
    module, kind = name.rsplit(".", 1)
    if module in tables:
        return f"transformer.{tables[module]}.{kind}", False
    _, layer, part = module.split(".", 2)
    return f"transformer.h.{layer}.{_NAMES[part]}.{kind}", kind == "weight" and "norm" not in part


def _to_gradient_(logits: Tensor, targets: Tensor) -> Tensor:
    """Replace logits `(N, V)` by `softmax(logits) - one_hot(targets)`, targets `(N, 1)`; return the losses `(N, 1)`."""
    z = logits.float()  # (N, V): sums of thousands of exponentials need 32 bits
    z = z.sub_(z.amax(-1, keepdim=True))  # so that no exponential overflows
    picked = z.gather(1, targets)  # (N, 1)
    total = z.exp_().sum(-1, keepdim=True)  # (N, 1)
    logits.copy_(z.div_(total).scatter_add_(1, targets, -torch.ones_like(total)))
    return total.log() - picked


def logit_rows(n_rows: int, vocab_size: int, bytes_per_number: int, device: str) -> tuple[int, int]:
    """How many rows of logits the loss holds at once, and of how many it makes 32-bit copies at once.

    Blocks of at most 32 MB with copies of 4 MB on a CPU, whose cache they should fit; of 512 MB with 256 MB elsewhere.
    """
    block, copies = (2**25, 2**22) if device == "cpu" else (2**29, 2**28)
    blocks = max(1, math.ceil(n_rows * vocab_size * bytes_per_number / block))
    return math.ceil(n_rows / blocks), max(1, copies // (4 * vocab_size))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of `hidden @ weight.T`, some rows at a time; gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, with_gradient: bool) -> Tensor:
        device, N, V = hidden.device.type, len(targets), weight.size(0)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        rows, few = logit_rows(N, V, dtype.itemsize, device)
        count = targets.ne(-100).sum().clamp(min=1)
        loss = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if with_gradient else None
        grad_weight = torch.zeros_like(weight) if with_gradient else None
        matrix = weight.to(dtype)  # (V, D)
        with torch.autocast(device, enabled=False):
            for first in range(0, N, max(1, rows)):
                part = slice(first, first + rows)
                counts, y = targets[part, None] != -100, targets[part, None].clamp(min=0)  # (rows, 1) each
                h = hidden[part].to(dtype).masked_fill(~counts, 0)  # (rows, D); what does not count is 0, even nan
                z = h @ matrix.T  # (rows, V), the logits and then their gradient
                for i in range(0, len(z), few):
                    loss += (_to_gradient_(z[i : i + few], y[i : i + few]) * counts[i : i + few]).sum()
                if grad_hidden is not None and grad_weight is not None:
                    grad_hidden[part] = z @ matrix * counts
                    for table, dz in zip(grad_weight.split(2**13), z.split(2**13, 1), strict=True):
                        table += dz.T @ h  # a slice of the vocabulary: no second table in memory
                        del dz
                del z  # before the next block is made
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden.div_(count), grad_weight.div_(count))
        return loss / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_loss, grad_weight * grad_loss, None, None
