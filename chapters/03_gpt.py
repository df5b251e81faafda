# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,kernelspec,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   slm:
#     exports:
#     - slm/gpt.py
#     - slm/gpt_config.py
# ---

# %% [markdown]
# # GPT
#
# From token ids to a probability for every possible next token. You put embeddings below the blocks and a prediction above them, start the whole so that it knows that
# it knows nothing, and export `GPTConfig` and `GPT`, which reads and writes GPT-2's published weights.
#
# *Runs in about 15 seconds on two cores.*

# %%
import course

course.start()

# %%
#| export
"""GPT-2: from token ids to a score for every possible next token."""

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

# %%
#| export gpt_config
"""The shape of a model, apart from the model, so that it can be read without loading PyTorch."""

from dataclasses import asdict, dataclass

# %% [markdown]
# ## The idea
#
# A language model answers one question at every position: given the tokens so far, how likely is each of the `V` tokens of the vocabulary to come next? The whole machine:

# %% tags=["hide-input"]
from course.figures.chapter_03 import model_diagram

model_diagram()

# %% [markdown]
# The blocks you have. This chapter adds what is left: two tables at the bottom, one product at the top, a loss, and numbers to start from.
#
# ## Tokens in
#
# A token id is a name, not a quantity: 300 is not twice 150. So each id gets its own row in a table of `V` rows and `D` columns, learned like any other weight. Looking a row
# up is the same as multiplying a one-hot vector by the table, without the multiplication:

# %% tags=["nbval-check-output"]
table = torch.randn(10, 4)  # (V, D)
tokens = torch.tensor([3, 1, 3])  # (T,)
torch.equal(table[tokens], F.one_hot(tokens, 10).float() @ table)

# %% [markdown]
# Is that enough? Attention takes a weighted mean over earlier tokens, and a mean has no order. To the last token of a block, "dog bites man" and "man bites dog" would be the same text:

# %% tags=["nbval-check-output"]
block = TransformerBlock(d_model=32, n_heads=4, d_ff=128)
dog, bites, man, stop = torch.randn(4, 32)
one = block(torch.stack([dog, bites, man, stop])[None])[0, -1]
other = block(torch.stack([man, bites, dog, stop])[None])[0, -1]
position = torch.randn(4, 32)
placed = block((torch.stack([dog, bites, man, stop]) + position)[None])[0, -1]
swapped = block((torch.stack([man, bites, dog, stop]) + position)[None])[0, -1]
{
    "same without positions": torch.allclose(one, other, atol=1e-5),
    "same with positions": torch.allclose(placed, swapped, atol=1e-5),
}

# %% [markdown]
# (Deeper blocks can infer something of the order from the mask, since every token has another past. A table of positions tells them outright.) So a second table, one row per position, is added to the
# first. It is why a GPT-2 has a longest text: after the last row of the table there is nothing to look up.
#
# ## Predictions out
#
# On top, the stream of `D` numbers per token must become `V` scores, called *logits*; a softmax makes probabilities of them. That is a product with a `(D, V)` matrix, and a good one is already there: the token table itself,
# transposed. A token scores high when the stream points in its direction. Sharing the matrix (*weight tying*, Press and Wolf 2017) saves a second table of that size, and
# what is learned about a word as input helps to predict it.
#
# First the shape of a model, checked when it is made and not when it fails an hour later. It gets a module of its own, without PyTorch, so that reading a config stays quick:


# %%
#| export gpt_config
@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT-2-class model; the field names are those of a config file's `model:` section.

    Args:
        vocab_size: Number of token ids V.
        context_length: Most positions T that the model can see at once.
        n_layers: Number of blocks.
        n_heads: Attention heads per block; divides `d_model`.
        d_model: Width D of the residual stream.
        d_ff: Width of each feed-forward network's hidden layer.
        dropout: Probability of dropping a weight or channel in training, at least 0 and below 1.

    Raises:
        ValueError: A size is not a positive integer, `n_heads` does not divide `d_model`, or `dropout` is out of range.
    """

    vocab_size: int
    context_length: int
    n_layers: int
    n_heads: int
    d_model: int
    d_ff: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "dropout" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} = {value!r} is not allowed; it must be an integer of at least 1")
        if self.d_model % self.n_heads:
            heads = f"n_heads = {self.n_heads} does not divide d_model = {self.d_model}"
            raise ValueError(f"{heads}; heads share the channels equally")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout!r} is not allowed; it must be at least 0 and below 1")


# %% [markdown]
# ## The model
#
# Twenty lines assemble it. Two of them decide how it starts. Every matrix begins with small normal numbers (standard deviation 0.02), and the two matrices per block that write to the
# stream begin smaller still, divided by $\sqrt{2 n_{layers}}$: that many additions of independent vectors then end with the same variance at any depth. (Further down this is measured.)


# %%
#| export
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


# %% [markdown]
# Here is GPT-2, the smallest of the four that OpenAI published, with the parameter count that everybody checks:

# %% tags=["nbval-check-output"]
shape = GPTConfig(vocab_size=50257, context_length=1024, n_layers=12, n_heads=12, d_model=768, d_ff=3072, dropout=0.1)
gpt2 = GPT(shape)
f"{gpt2.count_parameters():,}"

# %% tags=["hide-input"]
from course.figures.chapter_03 import parameter_map

parameter_map(gpt2)

# %% [markdown]
# Every area is a share of the parameters. Nearly a third is the vocabulary; in a block, the feed-forward network weighs twice the attention.
#
# ## The loss, and what it should be before training
#
# One pass through the model answers at *every* position at once. The answers it should give are the same text, one place further on:
#
# | position | 0 | 1 | 2 | 3 | 4 |
# |---|---|---|---|---|---|
# | reads, `x` | M | i | a | ␣ | l |
# | should answer, `y` | i | a | ␣ | l | o |
#
# `T` questions for one pass, and each is fair, because none can see its own answer: that is what the mask of chapter 1 is for. The loss is the mean over all positions of $-\ln p(\text{next token})$, in nats. A model that knows nothing should give each of `V` tokens the probability $1/V$, so its loss should be $\ln V$. Start from
# wider numbers, and it is far *worse* than ignorant. The output table is the input table, so large rows make it certain that each token will be repeated:

# %%
tokens = torch.randint(50257, (1, 65))
for std in (0.02, 0.2, 1.0):
    trial = GPT(GPTConfig(vocab_size=50257, context_length=64, n_layers=2, n_heads=4, d_model=256, d_ff=1024))
    nn.init.normal_(trial.token_embedding.weight, std=std)
    with torch.no_grad():
        loss = F.cross_entropy(trial(tokens[:, :-1])[0], tokens[0, 1:]).item()
    print(f"embedding std {std:4}: loss {loss:7.2f}   (ln V = {math.log(50257):.2f})")

# %% [markdown]
# The smaller start of the matrices that write to the stream does not show in this loss; forget it, and nothing looks wrong before training. It shows in the stream. How much do all blocks together add, with GPT-2's
# start, and with 0.02 everywhere?

# %%
for depth in (2, 8, 32):
    trial = GPT(GPTConfig(vocab_size=1000, context_length=64, n_layers=depth, n_heads=4, d_model=64, d_ff=256))
    sizes = []
    for std in (None, 0.02):
        for block in trial.blocks if std else ():
            nn.init.normal_(block.attention.out.weight, std=std)
            nn.init.normal_(block.feed_forward.down.weight, std=std)
        x = 0.02 * torch.randn(1, 64, 64)  # (B, T, D)
        with torch.no_grad():
            sizes.append((nn.Sequential(*trial.blocks)(x) - x).std().item())
    print(f"{depth:2} blocks add numbers of size {sizes[0]:.3f}; not scaled down, {sizes[1]:.3f}")

# %% [markdown]
# ## GPT-2's weights
#
# Hugging Face's files differ from ours in names, and in that four matrices per block are stored transposed: GPT-2's code computed `x @ W` where `nn.Linear` computes `x @ W.T`. With that written down, a
# published model can be loaded, and what you train can be opened by `transformers`. (Files are written under another name first and then renamed; chapter 6 says why.)

# %%
#| export
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


@course.add_to(GPT)
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


# %%
#| export
@course.add_to(GPT)
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
    if not Path(name_or_folder).is_dir() and str(name_or_folder) in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
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
    if len(dropouts := {theirs.get(key, 0.1) for key in _DROPOUTS}) > 1:  # 0.1 is what a config that is silent means
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
        raise ValueError(f"{files[1]} holds {unknown[0]}, for which a model of {config.n_layers} layers has no place")
    return model.eval()


# %% [markdown]
# ## The loss without the logits
#
# *You can skip this section at a first reading. It makes `model.loss(x, y)`, which equals `F.cross_entropy(model(x).flatten(0, 1), y.flatten())` and needs much less memory.*
#
# Every position of GPT-2 has 50,257 logits. For a batch of 8 texts that fill the context, in float32, that is

# %% tags=["nbval-check-output"]
f"{8 * 1024 * 50257 * 4 / 1e9:.1f} GB"

# %% [markdown]
# and autograd keeps copies. Yet the loss $\ell$ needs only two numbers of each row of logits $z$, its log-sum-exp and the logit of its target $y$, and the gradients have a closed form. With
# $p = \operatorname{softmax}(z)$, and $z = W h$ for the token table $W$ and a row $h$ of the stream:
#
# $$\ell = \ln \sum_j e^{z_j} - z_y, \qquad \frac{\partial \ell}{\partial z_j} = p_j - \mathbb{1}[j = y], \qquad \frac{\partial \ell}{\partial h} = W^\top \frac{\partial \ell}{\partial z}, \qquad \frac{\partial \ell}{\partial W} = \frac{\partial \ell}{\partial z}\, h^\top$$
#
# with $W$ `(V, D)`, $h$ `(D,)`, $z$ and $p$ `(V,)`, and $y$ a token id. So take the rows a few at a time: make their logits, use them for the loss *and at once* for the gradients of stream and table, and
# throw them away. What stays is as large as the stream and the table. First plainly, checked against autograd:


# %% tags=["nbval-check-output"]
def loss_in_chunks(h: Tensor, W: Tensor, y: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """h (N, D), W (V, D), y (N,): the mean loss, and its gradients for h and W."""
    loss, grad_h, grad_W = torch.zeros(()), torch.zeros_like(h), torch.zeros_like(W)
    for i in range(0, len(h), rows):
        z = h[i : i + rows] @ W.T  # (rows, V)
        loss += F.cross_entropy(z, y[i : i + rows], reduction="sum")
        dz = z.softmax(-1) - F.one_hot(y[i : i + rows], len(W))  # (rows, V)
        grad_h[i : i + rows] = dz @ W
        grad_W += dz.T @ h[i : i + rows]
    return loss / len(h), grad_h / len(h), grad_W / len(h)


h, W, y = torch.randn(10, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True), torch.randint(7, (10,))
plain = F.cross_entropy(h @ W.T, y)
with torch.no_grad():
    in_chunks = loss_in_chunks(h, W, y, rows=3)
[torch.allclose(a, b, atol=1e-6) for a, b in zip(in_chunks, (plain, *torch.autograd.grad(plain, (h, W))), strict=True)]

# %% [markdown]
# The real one adds care. Its blocks of rows are large enough for the matrix products to be efficient. Inside a block the softmax, which needs 32-bit numbers even where the products use 16 (*autocast*, chapter 6), takes so few rows at a time that they never
# leave the processor's cache: fetching memory, not arithmetic, is what costs here. A custom `autograd.Function` is PyTorch's way to say "I bring my own gradient": `forward` computes and puts aside, `backward` hands out. Targets of -100 mark
# positions that do not count.


# %%
#| export
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


# %% [markdown]
# The method `loss` belongs into the class; `@add_to(GPT)` puts it there, here in the notebook and in the exported module.


# %%
#| export
@course.add_to(GPT)
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
    return _ChunkedCrossEntropy.apply(hidden, self.token_embedding.weight, targets.flatten(), torch.is_grad_enabled())


# %% [markdown]
# The same value and the same gradients as the plain way, at a fraction of the memory. Measured here with PyTorch's profiler, which counts every allocation:

# %% tags=["nbval-check-output"]
from course.figures.chapter_03 import peak_megabytes

wide = GPT(GPTConfig(vocab_size=50257, context_length=128, n_layers=2, n_heads=4, d_model=128, d_ff=512))
x, y = torch.randint(50257, (2, 4, 128))  # (B, T) each


def plain_loss() -> Tensor:
    return F.cross_entropy(wide(x).flatten(0, 1), y.flatten())


gradients = [torch.autograd.grad(value, wide.parameters()) for value in (plain_loss(), wide.loss(x, y))]
print("same value:", bool(torch.allclose(plain_loss(), wide.loss(x, y), atol=1e-6)))
print("same gradients:", all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True)))
plain, chunked = peak_megabytes(plain_loss), peak_megabytes(lambda: wide.loss(x, y))
print("less than half the memory:", chunked < plain / 2)

# %%
print(f"at the peak of forward and backward: plain {plain:.0f} MB, chunked {chunked:.0f} MB")

# %% [markdown]
# ## Watch it decide
#
# Before training on real text, the quickest proof that model, loss and gradient fit together: give it one batch and let it learn that by heart. The loss must fall to nothing.

# %%
text = b"Mia lost her red kite. Leo found it near the old tree. Mia was glad and gave Leo a hug. "
ids = torch.tensor(list(text))[None]  # (B, T) = (1, 88), bytes as tokens
model = GPT(GPTConfig(vocab_size=128, context_length=96, n_layers=6, n_heads=4, d_model=64, d_ff=256))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(201):
    loss = model.loss(ids[:, :-1], ids[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step:3}: loss {loss.item():.4f}")

# %% [markdown]
# Where in the stack does it make up its mind? The stream has the same shape at every depth, so what comes at the end, the final norm and the output matrix, can read it anywhere: below the first block, above the second, and so on.
# Every column is a position, every row a depth, the letter is the best guess for the next character there, and the colour its probability.

# %% tags=["hide-input"]
from course.figures.chapter_03 import depth_table

depth_table(model, text[:24])

# %% [markdown]
# At the bottom the stream *is* the letter's own row, so the tied table reads the letter back. From block to block it turns towards what really follows.
#
# ## Is it right?

# %% tags=["nbval-check-output"]
import tempfile

fresh = GPT(GPTConfig(vocab_size=1000, context_length=32, n_layers=3, n_heads=4, d_model=64, d_ff=256)).eval()
ids = torch.randint(1000, (2, 32))
changed = ids.clone()
changed[:, -1] = (ids[:, -1] + 1) % 1000
fresh.loss(ids[:, :-1], ids[:, 1:]).backward()
with tempfile.TemporaryDirectory() as folder:
    fresh.save_pretrained(folder)
    loaded = GPT.from_pretrained(folder)

{
    "parameters of GPT-2": gpt2.count_parameters() == 124_439_808,
    "initial loss within 0.1 of ln V": abs(fresh.loss(ids[:, :-1], ids[:, 1:]).item() - math.log(1000)) < 0.1,
    "the past does not move": torch.equal(fresh(ids)[:, :-1], fresh(changed)[:, :-1]),
    "gradient reaches every parameter": all(bool(p.grad.abs().sum() > 0) for p in fresh.parameters()),
    "one batch learned by heart": loss.item() < 0.01,
    "saved and loaded, the logits are equal": torch.equal(fresh(ids), loaded(ids)),
}

# %% [markdown]
# The tests of the package go further: with the same random weights, logits agree with those of `transformers.GPT2LMHeadModel`.
#
# ## Exercises
#
# **1. Count without building.** Give the number of parameters of a `GPTConfig` by arithmetic, as you would before paying for one.

# %% tags=["exercise"]
from course import check


def my_count(config: GPTConfig) -> int:
    """The number of parameters of GPT(config), without making one."""
    raise NotImplementedError("your turn")


check.parameter_count(my_count)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_count(config):
#     V, T, L, D, F_ = config.vocab_size, config.context_length, config.n_layers, config.d_model, config.d_ff
#     attention = D * 3 * D + 3 * D + D * D + D
#     feed_forward = D * F_ + F_ + F_ * D + D
#     return V * D + T * D + L * (attention + feed_forward + 4 * D) + 2 * D
# ```
# </details>
#
# **2. The loss by hand.** Mean cross entropy in nats from logits `(N, V)` and targets `(N,)`, where a target of -100 does not count. It must survive logits of 1,000.


# %% tags=["exercise"]
def my_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """A scalar: mean of -ln p(target) over the targets that are not -100."""
    raise NotImplementedError("your turn")


check.cross_entropy(my_cross_entropy)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_cross_entropy(logits, targets):
#     counts = targets != -100
#     rows = logits[counts]
#     picked = rows.gather(1, targets[counts][:, None])[:, 0]
#     return (rows.logsumexp(-1) - picked).mean()
# ```
# </details>
#
# **3. Bits per byte.** Losses of models that cut text into different tokens (chapter 4) cannot be compared: a long token is harder to guess and says more. What a whole text costs can, divided by its length in bytes. A text of `n_tokens` tokens costs
# `loss * n_tokens` nats in all, and a bit is $\ln 2$ nats. Convert `loss` nats per token into bits per byte, for a text of `n_bytes` bytes.


# %% tags=["exercise"]
def my_bits_per_byte(loss: float, n_tokens: int, n_bytes: int) -> float:
    """Bits that the model needs per byte of text."""
    raise NotImplementedError("your turn")


check.bits_per_byte(my_bits_per_byte)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_bits_per_byte(loss, n_tokens, n_bytes):
#     return loss * n_tokens / n_bytes / math.log(2)
# ```
# </details>
#
# ## What you have now
#
# A complete GPT-2, untrained. It needs something to read: the next two chapters make tokens out of text and batches out of tokens.

# %%
course.summary("slm/gpt.py")
