# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/model/config.py
#     - slm/model/gpt.py
# ---

# %% [markdown]
# # GPT
#
# From token ids to a probability for every possible next token. You put embeddings
# below the blocks and a prediction above them, start the whole so that it knows that it
# knows nothing, count what it costs to run, and export `GPTConfig` with its counts and
# `GPT`, which reads GPT-2's published weights and writes their format.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% tags=["hide-input"]
#| export model/gpt
"""GPT-2: from token ids to a score for every possible next token.

    logits = GPT(GPTConfig(50257, 1024, 12, 12, 768, 3072))(tokens)  # (B, T, V)
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.model.attention import Cache
from slm.model.blocks import TransformerBlock
from slm.errors import SlmError, section
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

# %% tags=["hide-input"]
#| export
"""The shape of a model and what it costs, known without loading PyTorch.

    count_parameters(GPTConfig(50257, 1024, 12, 12, 768, 3072))  # 124,439,808
"""

import importlib
import math
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from slm.errors import SlmError, settings

# %% [markdown]
# ## The idea
#
# A language model answers one question at every position: given the tokens so far, how
# likely is each of the `V` tokens of the vocabulary to come next? The whole machine is
# {numref}`fig-model`.

# %% mystnb={"code_prompt_show": "Draw the model, from ids to probabilities", "figure": {"caption": "GPT, from the ids at the bottom to the probabilities at the top, with the shape between any two steps. The two green steps use the same table of tokens.", "name": "fig-model"}, "image": {"alt": "Six boxes, one above the other, joined by arrows upwards. From below: token ids, shape (B, T); token row plus position row, (B, T, D); block 1 to block L, (B, T, D); norm, (B, T, D); times the token table, transposed, (B, T, V); softmax, which gives how likely each token comes next."}} tags=["hide-input"]
from course.figures.gpt import model_diagram

model_diagram()

# %% [markdown]
# The blocks you have. This chapter adds what is left: two tables at the bottom, one
# product at the top, a loss, and numbers to start from.

# %% [markdown]
# ## Tokens in
#
# A token id is a name, not a quantity: 300 is not twice 150. So each id gets its own
# row in a table of `V` rows and `D` columns, learned like any other weight. Looking a
# row up is the same as multiplying a one-hot vector (a 1 at the id's place, else zeros)
# by the table, without the multiplication:

# %% tags=["nbval-check-output"]
table = torch.randn(10, 4)  # (V, D)
tokens = torch.tensor([3, 1, 3])  # (T,)
looked_up, product = table[tokens], F.one_hot(tokens, 10).float() @ table
print("rows looked up and product, equal to the last bit:", looked_up.equal(product))

# %% [markdown]
# Is that enough? Attention takes a weighted mean over earlier tokens, and a mean has no
# order. To the last token of a block, "dog bites man" and "man bites dog" would be the
# same text:

# %% tags=["nbval-check-output"]
block = TransformerBlock(d_model=32, n_heads=4, d_ff=128)
dog, bites, man, stop = torch.randn(4, 32)
one = torch.stack([dog, bites, man, stop])  # (T, D)
other = torch.stack([man, bites, dog, stop])
position = torch.randn(4, 32)  # (T, D)
for name, added in {"without": 0 * position, "with": position}.items():
    ends = [block((text + added)[None])[0, -1] for text in (one, other)]
    same = torch.allclose(*ends, atol=1e-5)
    print(f"{name} positions, the last row is the same within 1e-5: {same}")

# %% [markdown]
# (Deeper blocks can infer something of the order from the mask, since every token has
# another past. A table of positions tells them outright.) So a second table, one row
# per position, is added to the first. It is why a GPT-2 has a longest text: after the
# last row of the table there is nothing to look up.

# %% [markdown]
# ## Predictions out
#
# On top, the stream of `D` numbers per token must become `V` scores, called *logits*; a
# softmax makes probabilities of them. That is a product with a `(D, V)` matrix, and a
# good one is already there: the token table itself, transposed. A token scores high
# when the stream points in its direction. Sharing the matrix (*weight tying*, Press and
# Wolf 2017) saves a second table of that size, and what is learned about a word as
# input helps to predict it.

# %% [markdown]
# ## The shape
#
# First the shape of a model, checked when it is made and not when it fails an hour
# later. It gets a module of its own, without PyTorch, so that reading a config stays
# quick. The line `@settings` (from [files and
# errors](#files/settings-that-check-themselves)) makes it a dataclass that nobody can
# change once it is made, and that says in one sentence what is wrong with it; the
# numbers in `Field` are what is allowed.


# %%
#| export
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


# %% tags=["nbval-check-output"]
for sizes in ((1000, 64, 2, 5, 32, 128), (1000, 64, 2, 4, 32, 0)):
    try:
        GPTConfig(*sizes)
    except SlmError as error:
        print(error)

# %% [markdown]
# ## The model
#
# Twenty lines assemble it. Two of them decide how it starts. Every matrix begins with
# small normal numbers (standard deviation 0.02), and the two matrices per block that
# write to the stream begin smaller still, divided by $\sqrt{2 n_\text{layers}}$: that
# many additions of independent vectors then end with the same variance at any depth.
# (Further down this is measured.) Behind the assembly stand three short answers that
# later chapters ask for: where the model is, how many numbers it trains, and which of
# its matrices are tables to look up.


# %%
#| export model/gpt
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


# %% [markdown]
# The way through the model is a method of its own up to the last norm, because the loss
# below needs the stream and not the logits. `@add_to(GPT)` puts a method into the
# class, here in the notebook and in the exported module. What the model cannot read is
# refused at the door, in a sentence: too many tokens, or an id without a row in the
# table. (Ids are looked at on a CPU only. To look at numbers on a GPU means to wait for
# it.)


# %%
#| export model/gpt
@course.add_to(GPT)
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


# %% [markdown]
# `hidden` is the way through the model: the row of each token plus the row of its
# place, then block after block, then the norm.


# %%
#| export model/gpt
@course.add_to(GPT)
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


# %% [markdown]
# `forward` asks for that stream and multiplies it with the table of tokens, the same
# numbers that the tokens came in by.


# %%
#| export model/gpt
@course.add_to(GPT)
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


# %% [markdown]
# Here is GPT-2, the smallest of the four that OpenAI published (Radford et al. 2019),
# with the parameter count that everybody checks. {numref}`fig-parameters` shows where
# the parameters are:

# %% tags=["nbval-check-output"]
sizes = {"vocab_size": 50257, "context_length": 1024, "n_layers": 12, "n_heads": 12}
shape = GPTConfig(**sizes, d_model=768, d_ff=3072, dropout=0.1)
gpt2 = GPT(shape)
f"{gpt2.count_parameters():,}"

# %% mystnb={"code_prompt_show": "Draw where GPT-2's parameters are", "figure": {"caption": "Where the parameters of GPT-2 are: each area is its share. The token embedding is nearly a third; in each block the feed-forward network has twice as many as the attention.", "name": "fig-parameters"}, "image": {"alt": "A rectangle cut into areas. At the left the token embedding, also the output, with 31.0% of the parameters; beside it a thin stripe, the positions, with 0.6%. The rest are twelve equal blocks, each with attention, 1.9%, above feed-forward, 3.8%."}} tags=["hide-input"]
from course.figures.gpt import parameter_map

parameter_map(gpt2)

# %% [markdown]
# ### Exercise 1: count without building
#
# The same number by arithmetic, as one needs it before a model is made. A block has
# four `D` by `D` matrices in its attention (queries, keys, values, output) and two of
# `D` by `d_ff` in its feed-forward network. To these come the biases, one number for
# each output: $3D + D$ and $d_\text{ff} + D$; and two norms, which stretch and shift
# each channel, $2D$ each. Around the blocks stand the two tables and the last norm.
#
# Write the whole sum down, as you would before paying for a model.

# %% tags=["exercise"]
from course import check


def my_count(config: GPTConfig) -> int:
    """The number of parameters of GPT(config), without making one."""
    raise NotImplementedError("your turn")


check.parameter_count(my_count)

# %% [markdown]
# What the check says to a typical wrong answer, which gives the output a matrix of its
# own:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def output_counted(config: GPTConfig) -> int:
    D, F_ = config.d_model, config.d_ff
    block = (3 * D * D + 3 * D) + (D * D + D) + (D * F_ + F_) + (F_ * D + D) + 4 * D
    tables = (2 * config.vocab_size + config.context_length) * D
    return tables + config.n_layers * block + 2 * D


check.parameter_count(output_counted)

# %% [markdown]
# <details><summary>Solution: <code>my_count</code></summary>
#
# ```python
# def my_count(config):
#     V, T, L = config.vocab_size, config.context_length, config.n_layers
#     D, F_ = config.d_model, config.d_ff
#     attention = D * 3 * D + 3 * D + D * D + D
#     feed_forward = D * F_ + F_ + F_ * D + D
#     return V * D + T * D + L * (attention + feed_forward + 4 * D) + 2 * D
# ```
# </details>
#
# The sum that the course uses from here on:


# %%
#| export
def count_parameters(config: GPTConfig) -> int:
    """Numbers that training finds; the tied output matrix counts once."""
    L, D, F = config.n_layers, config.d_model, config.d_ff
    block = 4 * D * D + 2 * D * F + 9 * D + F  # matrices; biases and the two norms
    return L * block + (config.vocab_size + config.context_length) * D + 2 * D


# %% tags=["nbval-check-output"]
counted, held = count_parameters(shape), gpt2.count_parameters()
print(f"{counted:,} counted by the formula, {held:,} held by the model")

# %% [markdown]
# ## The loss, and what it should be before training
#
# One pass through the model answers at *every* position at once. The answers it should
# give are the same text, one place further on:
#
# | position | 0 | 1 | 2 | 3 | 4 |
# |---|---|---|---|---|---|
# | reads, `x` | M | i | a | ␣ | l |
# | should answer, `y` | i | a | ␣ | l | o |
#
# `T` questions for one pass, and each is fair, because none can see its own answer:
# that is what the mask of [attention](#attention/all-tokens-at-once) is for. The loss
# is the mean over all positions of $-\ln p(\text{next token})$, in nats.
#
# ### Exercise 2: the loss by hand
#
# Without `F.cross_entropy`: mean cross entropy in nats from logits `(N, V)` and targets
# `(N,)`, where a target of -100 (`IGNORE`) does not count; at least one of them counts.
# It must survive logits of 1,000, and a gradient must flow back to the logits.


# %% tags=["exercise"]
def my_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """A scalar: mean of -ln p(target) over the targets that are not -100."""
    raise NotImplementedError("your turn")


check.cross_entropy(my_cross_entropy)

# %% [markdown]
# What the check says to a typical wrong answer, which lets the ignored targets into the
# mean:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def counts_the_ignored(logits: Tensor, targets: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1).gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return -(log_p * (targets != IGNORE)).mean()


check.cross_entropy(counts_the_ignored)

# %% [markdown]
# <details><summary>Solution: <code>my_cross_entropy</code></summary>
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
# PyTorch's own is `F.cross_entropy`, which we use from here on.
#
# ### What it should be
#
# Predict before you run the next cell: what is the loss of a model that knows nothing,
# and gives each of 50,257 tokens the same probability?
#
# That is $-\ln (1/V) = \ln V$. (Papers often tell the *perplexity*, $e$ to the power of
# the loss: how many tokens, all equally likely, would surprise as much. Here it is
# $V$.) Start from wider numbers, and a model is far *worse* than ignorant. The output
# table is the input table, so large rows make it certain that each token will be
# repeated:

# %%
tokens = torch.randint(50257, (1, 65))
for std in (0.02, 0.2, 1.0):
    trial = GPT(GPTConfig(50257, 64, n_layers=2, n_heads=4, d_model=256, d_ff=1024))
    nn.init.normal_(trial.token_embedding.weight, std=std)
    with torch.no_grad():
        loss = F.cross_entropy(trial(tokens[:, :-1])[0], tokens[0, 1:]).item()
    print(f"embedding std {std:4}: loss {loss:7.2f}   (ln V = {math.log(50257):.2f})")

# %% [markdown]
# The smaller start of the matrices that write to the stream does not show in this loss;
# forget it, and nothing looks wrong before training. It shows in the stream. How much
# do all blocks together add, and what is the loss, with GPT-2's start, and with 0.02
# everywhere?

# %%
from course.tables import Table

rows = []
for depth in (2, 8, 32):
    trial = GPT(GPTConfig(1000, 64, n_layers=depth, n_heads=4, d_model=64, d_ff=256))
    sizes, losses = [], []
    for std in (None, 0.02):  # first as it starts, then with 0.02 everywhere
        for block in trial.blocks if std else ():
            nn.init.normal_(block.attention.out.weight, std=std)
            nn.init.normal_(block.feed_forward.down.weight, std=std)
        x = 0.02 * torch.randn(1, 64, 64)  # (B, T, D)
        with torch.no_grad():
            sizes.append((nn.Sequential(*trial.blocks)(x) - x).std().item())
            logits = trial(tokens[:, :-1] % 1000)[0]  # (T, V)
            losses.append(F.cross_entropy(logits, tokens[0, 1:] % 1000).item())
    values = [f"{size:.3f}" for size in sizes] + [f"{loss:.2f}" for loss in losses]
    rows.append((str(depth), *values))
header = (
    "blocks",
    "added, scaled down",
    "not scaled",
    "loss, scaled down",
    "not scaled",
)
Table(header, rows, "The size of the numbers that all blocks add, and the loss")

# %% [markdown]
# Scaled down, the blocks together add the same at every depth. Not scaled down they add
# twice as much with each fourfold depth, and drown the token that the stream began
# with. The loss stays near $\ln 1000 = 6.91$ in all six cases: it does not tell.

# %% [markdown]
# ## One batch, learned by heart
#
# Before training on real text, the quickest proof that model, loss and gradient fit
# together: give it one batch and let it learn that by heart. Each step asks for the
# loss, then for its gradient at every parameter, and moves each parameter a little
# downhill. The loss must fall to nothing.

# %%
text = b"Mia lost her red kite. Leo found it near the old tree. "
text += b"Mia was glad and gave Leo a hug. "
ids = torch.tensor(list(text))[None]  # (B, T) = (1, 88), bytes as tokens
model = GPT(GPTConfig(128, 96, n_layers=6, n_heads=4, d_model=64, d_ff=256))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(201):
    loss = F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step:3}: loss {loss.item():.4f}")

# %% [markdown]
# ## Watch it decide
#
# Where in the stack does it make up its mind? The stream has the same shape at every
# depth, so what comes at the end, the final norm and the output matrix, can read it
# anywhere: below the first block, above the second, and so on. Every column of
# {numref}`fig-depth` is a position, every row a depth, the letter is the best guess for
# the next character there, and the colour its probability. (This view is known as the
# *logit lens*, Nostalgebraist 2020.)

# %% mystnb={"code_prompt_show": "Draw what the model would answer at each depth", "figure": {"caption": "What the model would answer if it stopped at each depth. The lowest row repeats what is read; the highest is one letter ahead of it.", "name": "fig-depth"}, "image": {"alt": "A table of letters, one column for each of 24 characters read and one row for each depth. After the embedding alone each cell shows the letter that was read; after the last block it shows the letter that comes next, in full colour nearly everywhere."}} tags=["hide-input"]
from course.figures.gpt import depth_table

depth_table(model, text[:24])

# %% [markdown]
# At the bottom the stream is nothing but the letter's own row plus that of its place,
# so the tied table reads the letter back. From block to block it turns towards what
# really follows.

# %% [markdown]
# ## Let it write
#
# A model that predicts can write: draw a token from what it predicts, append it, ask
# again. The loop is so short that it needs only two explanations. The text may grow
# longer than the model can see; then it sees the last `context_length` tokens.
# `vocab_size` is for models whose table has more rows than the tokenizer has tokens:
# the others are never drawn.


# %%
#| export model/gpt
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


# %%
print(bytes(sample_tokens(model, list(b"Mia lo"), max_tokens=60, seed=0)))

# %% [markdown]
# It has learned one text by heart and says it. Each step computes the whole text anew,
# keys and values of the past included. The fast way keeps them, and
# [generation](#generation/is-it-right) proves it equal to this one.

# %% [markdown]
# ## Is it right?
#
# Five claims of this chapter, each put to a test of its own.

# %% tags=["nbval-check-output"]
fresh = GPT(GPTConfig(1000, 32, n_layers=3, n_heads=4, d_model=64, d_ff=256)).eval()
ids = torch.randint(1000, (2, 32))
changed = ids.clone()
changed[:, -1] = (ids[:, -1] + 1) % 1000
start = F.cross_entropy(fresh(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
start.backward()
reached = all(bool(p.grad.abs().sum() > 0) for p in fresh.parameters())
still = torch.equal(fresh(ids)[:, :-1], fresh(changed)[:, :-1])

claims = {
    "GPT-2 has 124,439,808 parameters": gpt2.count_parameters() == 124_439_808,
    "the initial loss is ln V within 0.1": abs(start.item() - math.log(1000)) < 0.1,
    "the past does not move when the last token changes": still,
    "gradient reaches every parameter": reached,
    "one batch was learned by heart, to 0.01 nats": loss.item() < 0.01,
}
for claim, holds in claims.items():
    print("holds " if holds else "FAILS ", claim)

# %% [markdown]
# The tests of the package go further: with the same random weights, logits agree with
# those of `transformers.GPT2LMHeadModel`.

# %% [markdown]
# ## What a token costs
#
# A FLOP is one floating point multiplication or addition. Multiplying a vector of $m$
# numbers by an $m \times n$ matrix takes $mn$ multiplications and as many additions:
# *two FLOPs for each weight*. Nearly all work of a GPT is of this kind, so go through
# one block with width $D$, hidden width $F$, and $T$ positions, and count what *one
# token* costs:
#
# | product | shape | FLOPs per token |
# |---|---|---|
# | queries, keys, values | $D \to 3D$ | $6D^2$ |
# | scores $q \cdot k$ with $T$ keys | $D \to T$, all heads together | $2TD$ |
# | weighted sum of $T$ values | $T \to D$ | $2TD$ |
# | output of attention | $D \to D$ | $2D^2$ |
# | feed-forward, up and down | $D \to F \to D$ | $4DF$ |
#
# At the top, once: the logits, $D \to V$, $2DV$. Looking up an embedding multiplies
# nothing. Norms, GELU and softmax are left out: a few operations per number, against
# hundreds in the products.
#
# The scores are counted for all $T$ keys, although causal attention needs only half of
# them on average. That is the convention (Chowdhery et al. 2022, appendix B), and
# PyTorch's own counter follows it.
#
# Training costs *three times* that. For each product of the forward pass the backward
# pass makes two: with $y = Wx$ and the gradient $g$ that comes from above, the input
# gets $W^\top g$ and the weight gets $g x^\top$, each as large as $Wx$.


# %%
#| export
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


# %% [markdown]
# GPT-2 in numbers, and the rule of thumb "6 FLOPs per parameter and token" beside it.
# The rule forgets attention over the context, and counts position embeddings that
# multiply nothing. {numref}`fig-flops` has the shares of four sizes:

# %% tags=["nbval-check-output"]
mega = 1e6
print(f"forward  {count_flops_per_token(shape, training=False) / mega:6.1f} MFLOPs")
print(f"training {count_flops_per_token(shape) / mega:6.1f} MFLOPs")
print(f"the rule {6 * count_parameters(shape) / mega:6.1f} MFLOPs")

# %% mystnb={"code_prompt_show": "Count the work of four models part by part, and draw it", "figure": {"caption": "Where the work of a forward pass is, for four sizes of model. The larger the model, the more of it is feed-forward, and the less the product with the vocabulary.", "name": "fig-flops"}, "image": {"alt": "Four bars of equal length, each cut into five shares. In the model of one layer the logits take half and feed-forward a quarter; in the model of 36 layers feed-forward takes more than half and the logits 7%. Scores and weighted sums stay between 11 and 13%."}} tags=["hide-input"]
from course.figures.gpt import flops_by_part

flops_by_part(
    {
        "1 layer of 64": GPTConfig(1024, 128, 1, 2, 64, 256),
        "12 layers of 768": shape,
        "24 layers of 1,024": GPTConfig(50257, 1024, 24, 16, 1024, 4096),
        "36 layers of 1,280": GPTConfig(50257, 1024, 36, 20, 1280, 5120),
    }
)

# %% [markdown]
# PyTorch can watch every operation that really runs and add up its products. That is an
# independent witness: it knows nothing of our formula. (The fused kernel is a closed
# box to it, so attention is told to use plain products here.)

# %%
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def watched_flops(config: GPTConfig, training: bool) -> float:
    """FLOPs per token that PyTorch counts, forward or with the backward pass."""
    model = GPT(config)
    tokens = torch.randint(config.vocab_size, (2, config.context_length))  # (B, T)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = model(tokens)
        if training:
            F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    return counter.get_total_flops() / tokens.numel()


# %% tags=["nbval-check-output"]
for sizes in ((512, 64, 2, 2, 64, 256), (1000, 128, 3, 4, 96, 200)):
    config = GPTConfig(*sizes)
    for training in (False, True):
        ours = count_flops_per_token(config, training)
        print(f"{ours:,} counted, {watched_flops(config, training):,.0f} watched")

# %% [markdown]
# Equal, forward and training. From here on the formula is trusted.

# %% [markdown]
# ### Exercise 3: a gate
#
# Newer models use a feed-forward network with a gate (Shazeer 2020): *three* matrices,
# two from $D$ to $F$ and one back. Count the training FLOPs per token of such a model,
# everything else as above.


# %% tags=["exercise"]
def my_gated_flops(
    n_layers: int, d_model: int, d_ff: int, vocab_size: int, context_length: int
) -> int:
    """Training FLOPs per token, forward and backward."""
    raise NotImplementedError("your turn")


check.gated_flops(my_gated_flops)

# %% [markdown]
# What the check says to a typical wrong answer, six FLOPs for each weight:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def six_for_each_weight(
    n_layers: int, d_model: int, d_ff: int, vocab_size: int, context_length: int
) -> int:
    block = 4 * d_model**2 + 3 * d_model * d_ff
    return 6 * (n_layers * block + d_model * vocab_size)


check.gated_flops(six_for_each_weight)

# %% [markdown]
# <details><summary>Solution: <code>my_gated_flops</code></summary>
#
# ```python
# def my_gated_flops(n_layers, d_model, d_ff, vocab_size, context_length):
#     attention = 8 * d_model**2 + 4 * context_length * d_model
#     gated = 6 * d_model * d_ff  # three matrices, two FLOPs per weight
#     forward = n_layers * (attention + gated) + 2 * d_model * vocab_size
#     return 3 * forward  # backward makes two products for each of these
# ```
# </details>

# %% [markdown]
# ## The loss without the logits
#
# *You can skip this section at a first reading. It makes `model.loss(x, y)`, which
# equals `F.cross_entropy(model(x).flatten(0, 1), y.flatten())` and needs much less
# memory.*
#
# Every position of GPT-2 has 50,257 logits. For a batch of 8 texts that fill the
# context, in float32, that is

# %% tags=["nbval-check-output"]
f"{8 * 1024 * 50257 * 4 / 1e9:.1f} GB"

# %% [markdown]
# and autograd keeps copies. Yet the loss $\ell$ needs only two numbers of each row of
# logits $z$, its log-sum-exp and the logit of its target $y$, and the gradients have a
# closed form. With $p = \operatorname{softmax}(z)$, and $z = W h$ for the token table
# $W$ and a row $h$ of the stream:
#
# $$\ell = \ln \sum_j e^{z_j} - z_y, \qquad
# \frac{\partial \ell}{\partial z_j} = p_j - \mathbb{1}[j = y], \qquad
# \frac{\partial \ell}{\partial h} = W^\top \frac{\partial \ell}{\partial z}, \qquad
# \frac{\partial \ell}{\partial W} = \frac{\partial \ell}{\partial z}\, h^\top$$
#
# with $W$ `(V, D)`, $h$ `(D,)`, $z$ and $p$ `(V,)`, and $y$ a token id. So take the
# rows a few at a time: make their logits, use them for the loss *and at once* for the
# gradients of stream and table, and throw them away. What stays is as large as the
# stream and the table. First plainly, checked against autograd:


# %% tags=["nbval-check-output"]
def loss_in_chunks(
    h: Tensor, W: Tensor, y: Tensor, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """h (N, D), W (V, D), y (N,): the mean loss, and its gradients for h and W."""
    loss, grad_h, grad_W = torch.zeros(()), torch.zeros_like(h), torch.zeros_like(W)
    for i in range(0, len(h), rows):
        z = h[i : i + rows] @ W.T  # (rows, V)
        loss += F.cross_entropy(z, y[i : i + rows], reduction="sum")
        dz = z.softmax(-1) - F.one_hot(y[i : i + rows], len(W))  # (rows, V)
        grad_h[i : i + rows] = dz @ W
        grad_W += dz.T @ h[i : i + rows]
    return loss / len(h), grad_h / len(h), grad_W / len(h)


h, W = torch.randn(10, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
y = torch.randint(7, (10,))
plain = F.cross_entropy(h @ W.T, y)
expected = (plain, *torch.autograd.grad(plain, (h, W)))
with torch.no_grad():
    in_chunks = loss_in_chunks(h, W, y, rows=3)
for name, a, b in zip(("loss", "for h", "for W"), in_chunks, expected, strict=True):
    print(name, "equal within 1e-6:", torch.allclose(a, b, atol=1e-6))

# %% [markdown]
# The real one adds care. Its blocks of rows are large enough for the matrix products to
# be efficient. Inside a block the softmax, which needs 32-bit numbers even where the
# products use 16 (*autocast*, see [the trainer](#trainer/precision)), takes so few rows
# at a time that they never leave the processor's cache: fetching memory, not
# arithmetic, is what costs here. A GPU has no such cache for them; there a compiler
# writes kernels that keep the 32-bit numbers to themselves. But its matrix units are
# slow where the rows of a matrix begin anywhere, so the products get a few columns
# more, up to a multiple of 128. They are no tokens: their logits are $-\infty$, so that
# probability and gradient are 0, and nobody sees them. How many rows and columns that
# makes is a question of memory, so it is answered beside the shape:


# %%
#| export
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


# %% [markdown]
# Two helpers first. One turns a block of logits into its losses and, in the same
# memory, into the gradient that the formula gives. (The 1 of each row's target is
# subtracted where it stands; a compiler is given a comparison with all columns instead,
# which it does in passing.) The other adds a product to the gradient of the table, on a
# CPU in slices, so that no second table is made.


# %%
#| export model/gpt
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


# %% [markdown]
# A custom `autograd.Function` is PyTorch's way to say "I bring my own gradient":
# `forward` computes and puts aside, `backward` hands out. Targets of `IGNORE`, -100 as
# everywhere in PyTorch, mark positions that do not count.
#
# The loop takes `rows` rows at a time. It makes their logits `z`, in `width` columns of
# which the first `V` are tokens, has `few` rows at a time turned into losses and
# gradient, and uses the gradient at once: for the rows themselves, and for the table.
# Then `z` is let go. Dividing by the number of targets that count is left to the end.
# In `backward` there is nothing to compute but a product with the gradient that comes
# from above.
#
# A compiler puts operations into an order of its own, and would make the logits of all
# blocks first, since nothing forbids it. So a block begins with `_after`: which rows
# count cannot be known before the gradients of the block before it.


# %%
#| export model/gpt
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


# %% [markdown]
# What stands behind the last target of every row changes no loss, since nothing looks
# ahead: on a CPU it is not even computed. Nor are the logits of other positions without
# a target. (A GPU would rather have the same shape at every step.)


# %%
#| export model/gpt
@course.add_to(GPT)
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


# %% [markdown]
# The same value and the same gradients as the plain way, at a fraction of the memory.
# Measured here with PyTorch's profiler, which counts every allocation:

# %% tags=["nbval-check-output"]
from course.figures.gpt import peak_megabytes

wide = GPT(GPTConfig(50257, 128, n_layers=2, n_heads=4, d_model=128, d_ff=512))
x, y = torch.randint(50257, (2, 4, 128))  # (B, T) each


def plain_loss() -> Tensor:
    return F.cross_entropy(wide(x).flatten(0, 1), y.flatten())


values = plain_loss(), wide.loss(x, y)
gradients = [torch.autograd.grad(value, wide.parameters()) for value in values]
pairs = [values, *zip(*gradients, strict=True)]
equal = all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
print("value and gradients equal within 1e-6:", equal)
plain, chunked = peak_megabytes(plain_loss), peak_megabytes(lambda: wide.loss(x, y))
print("less than half the memory:", chunked < plain / 2)

# %%
print(f"at the peak: plain {plain:.0f} MB, chunked {chunked:.0f} MB")

# %% [markdown]
# ## What a training step holds in memory
#
# *You can skip this section, too, until you want to know whether a model fits.*
#
# A machine that is fast enough can still be too small. What lies in its memory during a
# step:
#
# | what | bytes | when |
# |---|---|---|
# | weights, float32 | $4$ per parameter | always |
# | 16-bit copies (autocast) | $2$ per weight of the blocks | forward to backward |
# | AdamW's two averages | $8$ per parameter | always |
# | gradients | $4$ per parameter | grow in the backward pass |
# | activations that backward needs | per token and block, below | grow, then shrink |
# | the loss's working memory | logits, two gradients | inside and right behind it |
#
# Which activations are kept follows from the block's code. Backward needs the input of
# every product and of every norm. With $b$ bytes per number ($b = 2$ under autocast),
# per token and block: two norms keep the float32 stream, $2 \cdot 4D$; their outputs go
# into products, $2bD$; queries, keys and values, $3bD$; the heads' result, $bD$; and
# GELU keeps its input and hands its output to the next product, $2bF$. To these come
# sums in float32: of each head's softmax one, $4H$, and mean and spread of the two
# norms, 16 bytes. Dropout adds a byte per mask entry, and on a CPU more: the kernel
# that needs no attention weights has no dropout there.
#
# The loss is counted at two points. Inside it, a block of logits stands beside the
# gradients of the stream and of the output matrix; right behind it, these gradients
# exist twice, as they are and multiplied by what comes from above. The larger counts.


# %%
#| export
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


# %% [markdown]
# A run that needs more than its device has will be refused by this count [before it
# starts](#trainer/is-there-room), and what fits must not be. So it counts what is
# surely there at the same time, and leaves out what comes and goes inside single
# operations.
#
# It first counts what a token leaves behind in a block, `per_block` bytes, with what a
# CPU keeps besides; then what it leaves in the embedding. Then come the two moments at
# which the loss holds most, while it is computed and when its gradients are handed on;
# the larger one counts. The rest is four bytes for each parameter, as often as weights,
# averages and gradients keep one.


# %%
#| export
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


# %% [markdown]
# The witness this time is the profiler again. Predicted against measured peak, for
# three models that stress different terms: many tokens, many weights, many words.

# %%
from course.figures.gpt import peak_of_training_step

for sizes, batch_size in (
    ((1000, 128, 4, 4, 128, 512), 16),
    ((1000, 64, 6, 6, 384, 1536), 1),
    ((20000, 64, 2, 4, 128, 512), 4),
):
    config = GPTConfig(*sizes)
    predicted = count_memory(config, batch_size, "float32", "cpu").peak / 1e6
    measured = peak_of_training_step(config, batch_size) / 1e6
    off = predicted / measured - 1
    print(f"predicted {predicted:5.1f} MB, measured {measured:5.1f} MB: {off:+.1%}")

# %% [markdown]
# A few percent apart. The formula adds up what is alive before and after the backward
# pass; in between, single operations need room for themselves and others have given
# theirs back. This is one more reason to leave a tenth of the memory free. Hours and
# dollars follow from these counts in [the cost](#cost).

# %% [markdown]
# ## GPT-2's weights
#
# A published model can be loaded, and what you train can be opened by every program
# that opens GPT-2. The files and their names are dealt with in [files and
# errors](#files/gpt-2-s-published-format); what is left for the model is to hand over
# its shape and its parameters, or to take them. Whoever opens a model needs its
# [tokenizer](#tokens/for-other-programs), too, so it may be saved along with it.


# %%
#| export model/gpt
@course.add_to(GPT)
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


# %% [markdown]
# And back. The files say what shape the model has, so it is built from them;
# `read_weights` gives the weights in our names, or says what does not fit.


# %%
#| export model/gpt
@course.add_to(GPT)
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


# %% [markdown]
# What was saved comes back, to the last bit:

# %% tags=["nbval-check-output"]
import tempfile

with tempfile.TemporaryDirectory() as folder:
    fresh.save_pretrained(folder)
    loaded = GPT.from_pretrained(folder)
same = torch.equal(fresh(ids), loaded(ids))
print("logits before saving and after loading, equal to the last bit:", same)

# %% [markdown]
# ## Other models
#
# A trainer, a sampler, a cost table need not know that this is GPT-2. They need a model
# that keeps a few promises:
#
# | a model has | which is |
# |---|---|
# | `config` | with `vocab_size`, `context_length`, `n_layers`, `d_model` and `d_ff` |
# | `device` | where its parameters are |
# | `count_parameters()` | their number |
# | `forward(tokens, caches, start)` | logits `(B, T, V)` for tokens `(B, T)`, caches* |
# | `hidden(tokens, caches, start)` | the stream below the logits `(B, T, D)`, caches* |
# | `loss(tokens, targets)` | mean nats per target that is not `IGNORE` |
# | `tables()` | the embeddings, which an optimizer treats apart from other matrices |
# | `save_pretrained(folder, tokenizer)` | writes its files, and the tokenizer's |
# | `from_pretrained(folder)` | a model from its files |
#
# (*) For each block a function that keeps keys and values, or `None`.
#
# Whatever keeps these promises is trained, sampled and saved by the same code. All that
# a run has to write down is the model's name. The names stand in one dictionary, and
# each leads to a class as a text: the class is imported when it is asked for, so that a
# config can be read without PyTorch.


# %%
#| export
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


# %% tags=["nbval-check-output"]
print(architecture("gpt2"))
print([tuple(table.shape) for table in gpt2.tables()])

# %% [markdown]
# ## What you have now
#
# A complete GPT-2, untrained, whose FLOPs you know exactly and whose memory to a few
# percent. It needs something to read: [the stories](#stories) come next, then
# [tokens](#tokens) and [batches](#batches) are made of them.

# %%
course.summary("slm/model/config.py", "slm/model/gpt.py")
