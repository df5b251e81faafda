# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/model/blocks.py
# ---

# %% [markdown]
# # Blocks
#
# The unit that a GPT repeats: gather, then think, each time adding to what is there.
# You build the layer norm, the feed-forward network and the residual connection that
# let dozens of layers train at all, and export `FeedForward` and `TransformerBlock`.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% tags=["hide-input"]
#| export
"""The transformer block: attention and a feed-forward network on a residual stream.

    x = TransformerBlock(d_model=768, n_heads=12, d_ff=3072)(x)  # (B, T, D), as before
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.model.attention import Cache, MultiHeadAttention

# %% tags=["hide-input"]
import textwrap
from collections.abc import Callable

# %% [markdown]
# ## The idea
#
# Attention moves information between tokens, but it only takes weighted means. What a
# token makes of what it gathered is the work of a small network applied to each token
# for itself. A block is one of each. Around both runs the **residual stream**: a row of
# `D` numbers per token that every part reads from and adds to, and that nothing ever
# overwrites ({numref}`fig-block`).

# %% mystnb={"code_prompt_show": "Draw one block, with its stream and its two parts", "figure": {"caption": "One block. The stream runs straight through; each part reads a normed copy of it and adds what it made. Nothing on the line itself is ever replaced.", "name": "fig-block"}, "image": {"alt": "A horizontal arrow, the residual stream of shape (B, T, D). A first branch leaves it, passes norm and attention, gathers from earlier tokens, and comes back at a plus sign on the stream. A second branch passes norm and feed-forward, works on each token alone, and comes back at a second plus sign."}} tags=["hide-input"]
from course.figures.blocks import block_diagram

block_diagram()

# %% [markdown]
# In symbols, for the stream $x$ of shape `(B, T, D)`:
#
# $$x \leftarrow x + \operatorname{Attention}(\operatorname{Norm}_1(x)), \qquad
# x \leftarrow x + \operatorname{FeedForward}(\operatorname{Norm}_2(x))$$
#
# Three pieces are new: the norm, the feed-forward network, and the plus sign, which
# turns out to matter most.
#
# ## Layer norm
#
# Every part adds to the stream, so its numbers grow with depth. A part that must work
# with inputs of any size learns badly; so give each a copy of the stream in which every
# token's `D` numbers have mean 0 and variance 1, then let it stretch ($\gamma$) and
# shift ($\beta$) each channel as it likes, `(D,)` both (Ba et al. 2016):
#
# $$\operatorname{Norm}(x)
# = \gamma \odot \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta$$
#
# Mean $\mu$ and variance $\sigma^2$ are over the channels of *one* token. Nothing here
# looks at other tokens or other texts, so causality survives and the batch size does
# not matter. The small $\varepsilon$ keeps a token whose numbers are all equal from
# dividing zero by zero. One token by hand, with the variance as the plain mean of the
# squares, divided by `D` and not by `D - 1`:

# %% tags=["nbval-check-output"]
token = [1.0, 2.0, 3.0, 4.0]  # (D,)
mean = sum(token) / 4
variance = sum((number - mean) ** 2 for number in token) / 4
mean, variance, [round((number - mean) / math.sqrt(variance), 2) for number in token]

# %% [markdown]
# **Exercise 1. Layer norm.** Write it for `(B, T, D)`, with stretch and shift, from
# means and variances. Before you do: what becomes of a token whose numbers are all a
# hundred times as large?

# %% tags=["exercise"]
from course import check


def my_layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalise x (B, T, D) over its channels; gamma and beta are (D,)."""
    raise NotImplementedError("your turn")


check.layer_norm(my_layer_norm)

# %% [markdown]
# What the check says to a typical wrong answer, which takes `torch.std` as it comes:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def plain_std(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)  # (B, T, 1) each
    return gamma * (x - mean) / (std + eps) + beta


print(textwrap.fill(str(check.layer_norm(plain_std)), 88))

# %% [markdown]
# <details><summary>Solution: <code>my_layer_norm</code></summary>
#
# ```python
# def my_layer_norm(x, gamma, beta, eps=1e-5):
#     mean = x.mean(-1, keepdim=True)
#     variance = x.var(-1, keepdim=True, correction=0)
#     return gamma * (x - mean) / torch.sqrt(variance + eps) + beta
# ```
# </details>
#
# Compare: two tokens, one a hundred times the other.


# %% tags=["nbval-check-output"]
def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    mean = x.mean(-1, keepdim=True)  # (B, T, 1)
    variance = x.var(-1, keepdim=True, correction=0)  # (B, T, 1)
    return gamma * (x - mean) / torch.sqrt(variance + eps) + beta  # (B, T, D)


small = torch.tensor(token)
x = torch.stack([small, 100 * small])[None]  # (B, T, D) = (1, 2, 4)
for row in layer_norm(x, torch.ones(4), torch.zeros(4))[0].tolist():
    print([round(number, 2) for number in row])

# %% [markdown]
# Offset and size are gone; the pattern is left, and it is the same for both. PyTorch's
# kernel does this in one pass.

# %% tags=["nbval-check-output"]
x, gamma, beta = torch.randn(2, 3, 8), torch.randn(8), torch.randn(8)
theirs = F.layer_norm(x, (8,), gamma, beta)
equal = torch.allclose(layer_norm(x, gamma, beta), theirs, atol=1e-6)
print("our layer norm and PyTorch's, equal within 1e-6:", equal)

# %% [markdown]
# ## The feed-forward network
#
# Per token: widen from `D` to `d_ff` (usually `4 * D`), bend, narrow again.
#
# $$\operatorname{FeedForward}(x) = W_2\, \operatorname{GELU}(W_1 x + b_1) + b_2,
# \qquad W_1: D \to d_\text{ff}, \quad W_2: d_\text{ff} \to D$$
#
# Without the bend, $W_2 W_1$ would be a single matrix and depth would buy nothing. The
# simplest bend is the ReLU, which replaces what is negative by 0. Its slope there is 0,
# too, so a channel that is below zero for every token learns nothing any more. The GELU
# (Hendrycks and Gimpel 2016) is a rounded ReLU: $x$ times the probability that a
# standard normal number is smaller than $x$ ({numref}`fig-gelu`).

# %% mystnb={"code_prompt_show": "Draw the GELU", "figure": {"caption": "The bend of GPT-2 beside the simpler one. Far from zero they agree. Near zero the GELU is smooth, and just left of it its slope is not zero: something is still passed on, and learned.", "name": "fig-gelu"}, "image": {"alt": "Two panels over inputs from -4 to 4. Left: the ReLU is 0 up to zero and then the diagonal; the GELU follows it in a smooth curve that dips slightly below zero between -3 and 0. Right: the ReLU's slope jumps from 0 to 1; the GELU's passes from 0 through a small dip below zero and rises smoothly to a little above 1."}} tags=["hide-input"]
from course.figures.blocks import gelu_figure

gelu_figure()

# %% [markdown]
# GPT-2 used an approximation with a tanh, from a time when the exact form was slow. We
# keep it, because loading GPT-2's weights into a model with the exact form would give
# slightly different logits.


# %% tags=["nbval-check-output"]
def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


z = torch.linspace(-6, 6, 2001)
exact = z * torch.distributions.Normal(0, 1).cdf(z)
theirs, distance = F.gelu(z, approximate="tanh"), (gelu_tanh(z) - exact).abs().max()
equal = torch.allclose(gelu_tanh(z), theirs, atol=1e-6)
print("our tanh form and PyTorch's, equal within 1e-6:", equal)
print("largest distance from the exact form:", round(distance.item(), 4))

# %% [markdown]
# ### The same numbers, sooner
#
# Today it is the other way round: on a CPU PyTorch's kernel for the tanh form is the
# slower one, and the bend works on `d_ff` numbers per token, more than anything else
# in a block but the products. Two identities help. Since $\tanh z = 2\sigma(2z) - 1$,
# with the sigmoid $\sigma(z) = 1 / (1 + e^{-z})$,
#
# $$\operatorname{GELU}(x) = x\, \sigma(p\,x), \qquad p = a\,(1 + 0.044715\, x^2),
# \qquad a = 2\sqrt{2 / \pi}$$
#
# And its slope, which the backward pass asks for, is made of what is there by then.
# With $y = x\, \sigma(p\,x)$ and $(p\,x)' = 3p - 2a$, the rules for products and for
# the sigmoid give
#
# $$y' = \sigma + y\,(1 - \sigma)(3p - 2a)$$


# %% tags=["nbval-check-output"]
def gelu_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    a = 2 * math.sqrt(2 / math.pi)
    p = a * (1 + 0.044715 * x**2)
    s = torch.sigmoid(p * x)
    y = x * s
    return y, s + y * (1 - s) * (3 * p - 2 * a)


def kernel_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = F.gelu(x, approximate="tanh")
    return y, torch.autograd.grad(y.sum(), x)[0]


(y, slope), (their_y, their_slope) = gelu_and_slope(z), kernel_and_slope(z)
equal = torch.allclose(y, their_y, atol=1e-6)
print("sigmoid form and PyTorch's tanh form, equal within 1e-6:", equal)
equal = torch.allclose(slope, their_slope, atol=5e-6)
print("our slope and autograd's, equal within 5e-6:", equal)

# %% [markdown]
# Written like this it is no faster. Each operation fetches a whole tensor from memory
# and writes another one back, and that, not the arithmetic, takes the time. So do all
# operations for a slice that fits into the processor's cache, then take the next slice:
# between two operations the numbers stay near.
#
# `torch.autograd.Function` is how PyTorch is told a gradient instead of finding it:
# `forward` keeps what `backward` will need. Here that is the slope, made in the same
# pass; `backward` only multiplies by it. The slope overwrites `x`, which nobody reads
# again, so training keeps no more numbers than before. In `forward` that is done step
# by step: `p` and `s` are those of the formula and lie in scratch memory; `z` is `x`,
# then `y`, then $y\,(1 - \sigma)$, then the slope. Numbers in 16 bits are widened to
# 32 for the slice and rounded at its end. Each thread of the processor gets 2**16
# numbers of a slice at a time. What this way cannot do is gradients of gradients, for
# which the slope would have to be a function of `x` again; so it refuses them.
#
# Small tensors are in the cache anyway; without gradients there is no slope to make; a
# GPU has a kernel that is not slow; and `torch.compile` joins operations by itself. All
# these go PyTorch's way. At first reading take both ways as "the formula".


# %%
#| export
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


# %% tags=["nbval-check-output"]
x = torch.randn(2**20 + 1)
y, slope = kernel_and_slope(x)
hidden = x.clone().requires_grad_() * 1  # as a layer's output: made, then given away
found = _gelu(hidden)
(found_slope,) = torch.autograd.grad(found.sum(), hidden)
equal = torch.allclose(found, y, atol=1e-6)
print("in slices and PyTorch's, equal within 1e-6:", equal)
equal = torch.allclose(found_slope, slope, atol=5e-6)
print("slopes, equal within 5e-6:", equal)

# %% mystnb={"code_prompt_show": "Measure on your machine how long the three take"} tags=["hide-cell"]
from course.figures.blocks import bend_milliseconds

bends = {
    "tanh form, PyTorch's": lambda x: F.gelu(x, approximate="tanh"),
    "tanh form, in slices": _gelu,
    "exact form, PyTorch's": F.gelu,
}
for dtype in (torch.float32, torch.bfloat16):
    for name, milliseconds in bend_milliseconds(bends, dtype).items():
        print(
            f"{str(dtype):14}  {name:22}  {milliseconds:5.1f} ms forward and backward"
        )


# %%
#| export
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


# %% [markdown]
# ## Where the norm goes, and what the plus sign does
#
# The original Transformer (Vaswani et al. 2017) normalised *after* adding: $x
# \leftarrow \operatorname{Norm}(x + f(x))$, called post-norm. GPT-2 (Radford et al.
# 2019) normalises what each part *reads*, $x \leftarrow x + f(\operatorname{Norm}(x))$,
# called pre-norm, and leaves the stream itself alone. And one could do without the
# plus: $x \leftarrow f(\operatorname{Norm}(x))$.
#
# **Exercise 2. Wire a block.** You get four callables, each from `(B, T, D)` to `(B, T,
# D)`. Connect them as a pre-norm block.

# %% tags=["exercise"]
Part = Callable[[Tensor], Tensor]


def my_block(
    x: Tensor, norm_1: Part, attention: Part, norm_2: Part, feed_forward: Part
) -> Tensor:
    """One pre-norm block."""
    raise NotImplementedError("your turn")


check.block_wiring(my_block)

# %% [markdown]
# What the check says to a typical wrong answer, which normalises the stream itself:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def norm_overwrites(
    x: Tensor, norm_1: Part, attention: Part, norm_2: Part, feed_forward: Part
) -> Tensor:
    x = norm_1(x)
    x = x + attention(x)
    x = norm_2(x)
    return x + feed_forward(x)


check.block_wiring(norm_overwrites)

# %% [markdown]
# <details><summary>Solution: <code>my_block</code></summary>
#
# ```python
# def my_block(x, norm_1, attention, norm_2, feed_forward):
#     x = x + attention(norm_1(x))
#     return x + feed_forward(norm_2(x))
# ```
# </details>
#
# Now break it on purpose. Here is a block that can be wired in all three ways:


# %%
class AnyBlock(nn.Module):
    """A block whose wiring can be chosen, to compare."""

    def __init__(self, d_model: int, wiring: str) -> None:
        super().__init__()
        self.wiring = wiring
        feed_forward = FeedForward(d_model, 4 * d_model)
        self.parts = nn.ModuleList([MultiHeadAttention(d_model, 4), feed_forward])
        self.norms = nn.ModuleList([nn.LayerNorm(d_model), nn.LayerNorm(d_model)])

    def forward(self, x: Tensor) -> Tensor:
        for norm, part in zip(self.norms, self.parts, strict=True):
            if self.wiring == "pre-norm":
                x = x + part(norm(x))
            elif self.wiring == "post-norm":
                x = norm(x + part(x))
            else:
                x = part(norm(x))
        return x


# %% [markdown]
# Stack 32 of them, and give each stack the same short text to learn by heart, letter by
# letter: the model reads `text[:-1]` and at each position must name the letter that
# follows, `text[1:]`. The loop is the six lines of
# [attention](#attention/a-head-learns-to-look-something-up), with two things ahead of
# their chapters: a table `places` tells a token where it stands, see
# [GPT](#gpt/tokens-in); and a *warm-up* lets the learning rate grow from zero during
# the first steps, see [the trainer](#trainer/the-learning-rate-and-clipping). Besides
# the losses it notes what each block does before any training. Which of the three will
# learn the text?

# %%
story = b"Mia lost her red kite. Leo found it near the old tree. "
story += b"Mia was glad and gave Leo a hug. "
text = torch.tensor(list(story))  # (T,)


# %% mystnb={"code_prompt_show": "The experiment: a stack of 32 blocks learns the text (31 lines)"} tags=["hide-input"]
def learn(wiring: str, rate: float = 3e-3, warmup: int = 1) -> dict[str, list[float]]:
    """By block, before training: how alike the tokens are, gradients. Then losses."""
    n_layers, d_model, steps = 32, 32, 100
    torch.manual_seed(0)
    letters, places = nn.Embedding(128, d_model), nn.Embedding(len(text), d_model)
    blocks = nn.Sequential(*[AnyBlock(d_model, wiring) for _ in range(n_layers)])
    read_out = nn.Sequential(nn.LayerNorm(d_model), nn.Linear(d_model, 128))
    model = nn.ModuleList([letters, places, blocks, read_out])
    optimizer = torch.optim.AdamW(model.parameters())
    found = {"similarity": [], "feed-forward": [], "queries and keys": [], "loss": []}
    with torch.no_grad():
        x = (letters(text) + places.weight)[None]  # (1, T, D)
        for block in blocks:
            x = block(x)
            direction = F.normalize(x[0], dim=-1)  # (T, D), unit length
            found["similarity"].append((direction @ direction.T).mean().item())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / warmup)
        x = (letters(text[:-1]) + places.weight[:-1])[None]  # (1, T - 1, D)
        logits = read_out(blocks(x))[0]  # (T - 1, 128)
        loss = F.cross_entropy(logits, text[1:])
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for attention, feed_forward in (block.parts for block in blocks):
                found["feed-forward"].append(feed_forward.up.weight.grad.norm().item())
                gradient = attention.qkv.weight.grad[: 2 * d_model]
                found["queries and keys"].append(gradient.norm().item())
        optimizer.step()
        found["loss"].append(loss.item())
    return found


# %%
results = {wiring: learn(wiring) for wiring in ("pre-norm", "post-norm", "no residual")}
results["post-norm, gently"] = learn("post-norm", rate=1e-3, warmup=50)

# %% [markdown]
# First, before any training: how alike have the tokens become? In
# {numref}`fig-similarity`, 1 means that all point the same way.

# %% mystnb={"code_prompt_show": "Draw the similarity of the tokens", "figure": {"caption": "Without the plus sign attention's averaging wins: after a few blocks every position holds the same vector, and nothing above can tell the tokens apart. Post-norm lets them become rather alike, but not the same.", "name": "fig-similarity"}, "image": {"alt": "Three curves over 32 blocks. Without residual the similarity jumps to 1 within a few blocks and stays. Post-norm rises more slowly and stays below 1. Pre-norm stays lowest."}} tags=["hide-input"]
from course.figures.blocks import similarity_figure

similarity_figure(results)

# %% [markdown]
# Second, also before training: the norm (here the length, all its numbers taken as one
# vector) of the gradient that reaches each block's weights.

# %% mystnb={"code_prompt_show": "Draw the gradients", "figure": {"caption": "Solid: the feed-forward weights; dotted: those of queries and keys. In pre-norm every block gets its share. Without the plus sign the feed-forward weights get less the nearer they lie to the input, and queries and keys nothing worth the name.", "name": "fig-gradients"}, "image": {"alt": "Gradient norms over 32 blocks on a logarithmic scale, a solid and a dotted curve for each wiring. Pre-norm's are level. Post-norm's lie higher and vary more. Without residual the solid curve falls towards the first block and the dotted one lies many powers of ten below all others."}} tags=["hide-input"]
from course.figures.blocks import gradient_figure

gradient_figure(results)

# %% [markdown]
# Why so? The derivative of $x + f(x)$ is $1 + f'(x)$: the plus sign hands each block
# the gradient from above untouched (He et al. 2016). Without it the gradient has to
# pass through every block on its way down, and shrinks on it: a *vanishing gradient*.
# And where all tokens are alike, it makes no difference who looks at whom, so queries
# and keys have nothing to learn from.
#
# Third, what that costs ({numref}`fig-losses`): the loss, the mean of $-\ln p$ of the
# right letter, in *nats*.

# %% mystnb={"code_prompt_show": "Draw the losses", "figure": {"caption": "Pre-norm learns the text by heart. Without the plus sign the loss stops at the dotted line, that of a model that knows how often each letter occurs and nothing else. So does post-norm at the rate that suits pre-norm; treated gently it learns, and slowly.", "name": "fig-losses"}, "image": {"alt": "Losses over 100 steps. Pre-norm falls to nearly 0. No residual and post-norm both end on the dotted line of the letter frequencies. Post-norm, gently, is on its way down below it."}} tags=["hide-input"]
from course.figures.blocks import loss_figure

share = text[1:].bincount() / (len(text) - 1)
# -Σ p ln p, with 0 ln 0 = 0
letter_entropy = -torch.special.xlogy(share, share).sum().item()
loss_figure(results, letter_entropy)

# %% [markdown]
# The dotted line is $-\sum_c p_c \ln p_c$ over the letters' frequencies $p_c$: without
# the plus sign the model has lost the text.
#
# Post-norm treated gently has a third of the rate and a warm-up. The usual explanation
# is that its gradients are large and badly balanced at the start (Xiong et al. 2020);
# in {numref}`fig-gradients` they are larger than pre-norm's and vary more from block to
# block. Pre-norm needs no such care. GPT-2 and nearly everything since is wired this
# way.

# %% tags=["nbval-check-output"]
final = {wiring: found["loss"][-1] for wiring, found in results.items()}
pre_norm, without = results["pre-norm"], results["no residual"]
off = {wiring: abs(loss - letter_entropy) for wiring, loss in final.items()}
even = pre_norm["feed-forward"][0] / pre_norm["feed-forward"][-1]
first_block = without["feed-forward"][0] / without["feed-forward"][-1]
look = without["queries and keys"][0] / pre_norm["queries and keys"][0]
claims = {
    "pre-norm has learned the text": final["pre-norm"] < 0.1,
    "without residual, only the letter frequencies": off["no residual"] < 0.1,
    "post-norm at that rate, the same": off["post-norm"] < 0.1,
    "post-norm, gently, is on its way": final["post-norm, gently"] < letter_entropy / 2,
    "without residual, all tokens are alike": without["similarity"][-1] > 0.99,
    "pre-norm: block 1 gets as much gradient as the last": 0.5 < even < 2,
    "without residual it gets less than a 50th": first_block < 1 / 50,
    "and its queries and keys less than a millionth of pre-norm's": look < 1e-6,
}
for claim, holds in claims.items():
    print("holds " if holds else "FAILS ", claim)

# %% [markdown]
# ## The block


# %%
#| export
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


# %% [markdown]
# ## Look at it
#
# Where do a block's parameters sit? Mostly not in attention:

# %% tags=["nbval-check-output"]
block = TransformerBlock(d_model=768, n_heads=12, d_ff=3072)
for name, part in block.named_children():
    print(f"{name:12} {sum(p.numel() for p in part.parameters()):>9,}")

# %% [markdown]
# One attention layer takes about $4D^2$ weights and one feed-forward network $8D^2$.
# And how much does an untrained block change a stream of numbers of size 1? By a part
# of its length: a block begins as a correction to what is there. (PyTorch chose the
# first weights here; [GPT](#gpt/the-model) starts those that write to the stream from
# smaller ones.)

# %%
x = torch.randn(1, 16, 768)  # (B, T, D)
with torch.no_grad():
    moved = ((block(x) - x).norm() / x.norm()).item()
print(f"the block moves the stream by {moved:.1%} of its length")

# %% [markdown]
# A switch that beginners leave on: **dropout**. It makes a training step robust by
# deleting channels at random, and an evaluation wrong by the same means. `block.eval()`
# turns it off on every path; forgetting it costs nothing visible, just a worse loss.

# %% tags=["nbval-check-output"]
wobbly = TransformerBlock(64, 4, 256, dropout=0.5)
x = torch.randn(1, 8, 64)
print("training, twice the same:", torch.equal(wobbly(x), wobbly(x)))
print("eval, twice the same:", torch.equal(wobbly.eval()(x), wobbly(x)))

# %% [markdown]
# ## Is it right?
#
# The reference is PyTorch's own encoder layer, which can be wired the same way. It must
# be given the same matrices and a causal mask.

# %% tags=["nbval-check-output"]
ours = TransformerBlock(32, 4, 128)
wiring = {"dropout": 0.0, "batch_first": True, "norm_first": True}
theirs = nn.TransformerEncoderLayer(32, 4, 128, activation=gelu_tanh, **wiring)
pairs = [
    (ours.norm_1, theirs.norm1),
    (ours.norm_2, theirs.norm2),
    (ours.feed_forward.up, theirs.linear1),
    (ours.feed_forward.down, theirs.linear2),
]
for mine, its in [*pairs, (ours.attention.out, theirs.self_attn.out_proj)]:
    its.load_state_dict(mine.state_dict())
with torch.no_grad():
    theirs.self_attn.in_proj_weight.copy_(ours.attention.qkv.weight)
    theirs.self_attn.in_proj_bias.copy_(ours.attention.qkv.bias)

x, mask = torch.randn(2, 10, 32), nn.Transformer.generate_square_subsequent_mask(10)
changed = x.clone()
changed[:, -1] = 7.0
ours(x).square().sum().backward()
equal = torch.allclose(ours(x), theirs(x, mask), atol=1e-5)
print("equals nn.TransformerEncoderLayer, within 1e-5:", equal)
still = torch.equal(ours(x)[:, :-1], ours(changed)[:, :-1])
print("the past does not move when the last token changes:", still)
reached = all(bool(p.grad.abs().sum() > 0) for p in ours.parameters())
print("gradient reaches every parameter:", reached)

# %% [markdown]
# ## One more exercise
#
# **Exercise 3. How deep is a budget?** You may spend `budget` parameters on blocks of
# width `D` with `d_ff = 4 * D`. Count everything in a block, biases and norms too, and
# return how many whole blocks you can afford.


# %% tags=["exercise"]
def my_depth(budget: int, d_model: int) -> int:
    """The most blocks of width d_model with at most `budget` parameters in all."""
    raise NotImplementedError("your turn")


check.affordable_depth(my_depth)

# %% [markdown]
# What the check says to a typical wrong answer, which counts the weights alone:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def weights_alone(budget: int, d_model: int) -> int:
    return budget // (12 * d_model**2)


check.affordable_depth(weights_alone)

# %% [markdown]
# <details><summary>Solution: <code>my_depth</code></summary>
#
# Attention has $D \cdot 3D + 3D$ and $D \cdot D + D$, the network $D \cdot 4D + 4D$ and
# $4D \cdot D + D$, the two norms $2D$ each: $12D^2 + 13D$.
# ```python
# def my_depth(budget, d_model):
#     return budget // (12 * d_model**2 + 13 * d_model)
# ```
# </details>
#
# ## What you have now
#
# A unit that can be stacked as deep as you can pay for. [GPT](#gpt) puts tokens in at
# the bottom and takes predictions out at the top.

# %%
course.summary("slm/model/blocks.py")
