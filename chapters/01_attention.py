# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/model/attention.py
# ---

# %% [markdown]
# # Attention
#
# How a token (a piece of text; in this chapter, a word) gathers what it needs from the
# tokens before it. You build causal attention from two loops, prove it equal to
# PyTorch's own kernel, and export `causal_attention` and `MultiHeadAttention`, the only
# part of a GPT in which tokens exchange information.
#
# Six letters stand for the sizes of tensors, here and in every chapter:
#
# | letter | stands for | letter | stands for |
# |---|---|---|---|
# | `B` | batch: how many texts at once | `H` | heads in an attention layer |
# | `T` | time: positions in a text | `K` | size of one head, `D / H` |
# | `D` | width of a token's vector | `V` | vocabulary: how many tokens there are |
#
# Cells whose first line is `#| export` (in the book they carry a badge instead) become
# the package, here `slm/model/attention.py`. Everything else stays in the chapter.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% tags=["hide-input"]
#| export
"""Causal attention: how a token gathers what it needs from the tokens before it.

    gathered = MultiHeadAttention(d_model=768, n_heads=12)(x)  # (B, T, D) to (B, T, D)
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# %% [markdown]
# ## The idea
#
# Read "Mia has a kite. Leo has a boat. Mia lost the ...". To guess the next word you go
# back to *Mia* and take what stood beside it. Attention (Vaswani et al. 2017) does this
# with three vectors for every token:
#
# - a **query**: what am I looking for?
# - a **key**: what could I be found by?
# - a **value**: what do I hand over when I am found?
#
# A token compares its query with the key of every token up to itself, turns the
# comparisons into weights that sum to one, and takes the weighted mean of the values.
# Here are six tokens whose queries and keys both say whose token they are, so each
# finds the tokens of the same child. Each row of {numref}`fig-attention` is one token's
# look back.

# %% mystnb={"code_prompt_show": "Draw who looks at whom, and how much", "figure": {"caption": "How much each token looks at itself and at each one before it: a row sums to one. Every token of Mia's looks at Mia's tokens and not at Leo's.", "name": "fig-attention"}, "image": {"alt": "A table of weights, six tokens by six, its upper right half empty. Mia looks at Mia with 1.00; kite at Mia and kite with 0.50 each; Leo at Leo with 1.00; boat at Leo and boat with 0.50 each; the second Mia at Mia, kite and Mia with 0.33 each; lost at these and itself with 0.25 each."}} tags=["hide-input"]
from course.figures.attention import attention_table

tokens = ["Mia", "kite", "Leo", "boat", "Mia", "lost"]
whose = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1], [1, 0], [1, 0]])
key = 4.0 * whose  # (T, K); 4.0 makes the choice sharp
later = torch.ones(6, 6).triu(1).bool()
scores = (key @ key.T / math.sqrt(2)).masked_fill(later, -torch.inf)
attention_table(tokens, scores.softmax(-1))

# %% [markdown]
# Nobody looks ahead: the upper right half is empty. A model that learns to predict the
# next token must not see it.
#
# Who belongs to whom was written in by hand here. A model has to find it out: one layer
# carries *Mia* over to *kite*, and a later one can then look for what is Mia's. This is
# a reason why layers are stacked.
#
# ## By hand
#
# Three tokens, with vectors of two numbers each (`K = 2`). Take the last one. It
# compares its query with each key by a dot product: multiply number by number, and add.
# That is large where both point the same way.

# %% tags=["nbval-check-output"]
query = [2.0, 1.0]  # of the third token
keys = [[1.0, 1.0], [0.0, 1.0], [2.0, 0.0]]  # of all three
values = [[1.0, 2.0], [3.0, 5.0], [8.0, 4.0]]
scores = [query[0] * key[0] + query[1] * key[1] for key in keys]
scores

# %% [markdown]
# The third key fits best, the second least. Weights must be positive and sum to one:
# divide the scores by $\sqrt{K}$ (why is told below), take exponentials, which are
# positive, and divide each by their sum. This is a *softmax*. Before you run the cell:
# which of the three values will the weighted mean lie nearest to?

# %% tags=["nbval-check-output"]
exponentials = [math.exp(score / math.sqrt(2)) for score in scores]
weights = [e / sum(exponentials) for e in exponentials]
pairs = list(zip(weights, values, strict=True))
output = [sum(weight * value[i] for weight, value in pairs) for i in (0, 1)]
print("weights:", [round(weight, 3) for weight in weights])
print("output: ", [round(number, 3) for number in output])

# %% [markdown]
# And the first token? It may see only itself, so its one weight is 1, and it gets its
# own value, (1, 2), whatever its query is.
#
# Now with letters. Take one head and `T` tokens. Query, key and value are the rows of
# $Q, K, V$, each `(T, K)` with head size `K`. Token $t$ compares itself with each $s
# \le t$:
#
# $$a_{ts} = \frac{q_t \cdot k_s}{\sqrt{K}}, \qquad
# w_{ts} = \frac{e^{a_{ts}}}{\sum_{r \le t} e^{a_{tr}}}, \qquad
# o_t = \sum_{s \le t} w_{ts}\, v_s$$
#
# The vectors come from the token's own row of numbers $x_t$, `(D,)` (where it comes
# from is told in [GPT](#gpt/tokens-in)), by three matrices of shape `(K, D)`: $q_t =
# W_Q x_t$, $k_t = W_K x_t$, $v_t = W_V x_t$. Those matrices, with a bias each, are what
# attention learns; the rest is fixed. As code, one loop runs over $t$ and one over $s$;
# the sums over channels and over $r$ hide in `@` and `sum`:


# %%
def attention_loops(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head, (T, K) each, exactly as the formula reads."""
    output = torch.zeros_like(v)
    for t in range(len(q)):
        seen = range(t + 1)  # the past and itself
        scores = torch.tensor([q[t] @ k[s] / math.sqrt(q.size(-1)) for s in seen])
        weights = scores.exp() / scores.exp().sum()  # (t + 1,), sums to one
        for s in seen:
            output[t] += weights[s] * v[s]
    return output


q = torch.tensor([[1.0, 0.0], [0.0, 2.0], query])  # (T, K) = (3, 2)
k, v = torch.tensor(keys), torch.tensor(values)  # (T, K) each
attention_loops(q, k, v)

# %% [markdown]
# The last row is what we had by hand, and the first is the first token's own value.
#
# ## All tokens at once
#
# Loops over tokens leave the processor idle. All scores together are one matrix
# product, $QK^\top$, `(T, T)`: row $t$ holds what token $t$ thinks of everyone. Which
# of these nine may not count?

# %% tags=["nbval-check-output"]
(q @ k.T / math.sqrt(2)).round(decimals=2)  # (T, T)

# %% [markdown]
# The three above the diagonal: there a token looks ahead. They become $-\infty$
# *before* the softmax, because $e^{-\infty} = 0$ and the rest of the row still sums to
# one.
#
# **Exercise 1. Attention without a loop.** For one head, `(T, K)` in, `(T, K)` out, and
# not with a ready-made kernel. You need a transpose, `triu` for the upper triangle,
# `masked_fill` and `softmax`.

# %% tags=["exercise"]
from course import check


def my_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention for q, k, v of shape (T, K)."""
    raise NotImplementedError("your turn")


check.causal_attention(my_attention)

# %% [markdown]
# What the check says to a typical wrong answer, which hides the future a step too late:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def masked_too_late(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).softmax(-1)
    return weights.tril() @ v  # zero above the diagonal


check.causal_attention(masked_too_late)

# %% [markdown]
# <details><summary>Solution: <code>my_attention</code></summary>
#
# ```python
# def my_attention(q, k, v):
#     scores = q @ k.T / math.sqrt(q.size(-1))  # (T, T)
#     future = torch.ones_like(scores, dtype=torch.bool).triu(1)
#     return scores.masked_fill(future, -torch.inf).softmax(-1) @ v
# ```
# </details>
#
# Compare yours with the package's. Nothing depends on the axes in front, so the same
# lines serve `(T, K)` and `(B, H, T, K)`. Two things are added. *Dropout* (Srivastava
# et al. 2014) sets each weight to zero with a given probability in training, and
# enlarges those that stay, so that a model cannot lean on one token alone; at 0 it does
# nothing. And there may be `S` keys for `T` queries, more keys than queries, when the
# first keys were computed earlier ([generation](#generation/remember-keys-and-values)
# lives on it). Then the queries are the *last* `T` of `S` positions, and the diagonal
# moves right by `S - T`; here that is 0.
#
# One thing is written differently: the mask is *added*, 0 for what may be seen and
# $-\infty$ for the rest. `masked_fill` copies all the scores before it fills some of
# them, while `+=` changes them where they are. For long texts the scores are the
# largest tensor here, so a pass over them costs time.


# %%
#| export
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


# %% tags=["nbval-check-output"]
loops = attention_loops(q, k, v)
equal = torch.allclose(_explicit_attention(q, k, v), loops, atol=1e-6)
print("matrices and loops, equal within 1e-6:", equal)

# %% [markdown]
# ## Why divide by $\sqrt{K}$
#
# If the entries of $q$ and $k$ are independent with variance 1, then $q \cdot k$ is a
# sum of `K` products and has variance `K`. Wide heads would have large scores, a
# softmax that puts everything on one token, and almost no *gradient*: a score that
# moves a little would change nothing, so there is nothing to learn from. Measure it:
# random queries and keys, 64 tokens, a random gradient coming in from the result,
# growing head size ({numref}`fig-scale`).

# %% mystnb={"code_prompt_show": "Draw both against the head size", "figure": {"caption": "Left, the largest weight of a row: unscaled, attention becomes a hard choice made by chance. Right, what that does to learning: in a typical row of wide heads the gradient that reaches the scores dies away. Divided by the root of K, both stay where they are.", "name": "fig-scale"}, "image": {"alt": "Two panels over the head size, logarithmic. Left: the largest weight of a row stays low when scaled and rises towards 1 when not. Right: the gradient of a row stays level when scaled and falls steeply when not."}} tags=["hide-input"]
from course.figures.attention import scale_figure

scale_figure()

# %% [markdown]
# What dies away for the scores dies away for queries and keys, which make them. (In
# narrow heads the unscaled softmax gets a little more, being just sharp enough.)
#
# ## Does anyone see the future?
#
# The causal mask is the one line that, if wrong, makes a model look brilliant in
# training and useless afterwards. So test causality itself, not the mask: change the
# last token in everything that it has, and demand that no earlier output moves,
# *exactly*. Three suspects: the mask turned round, no mask, and a softmax that runs
# over the queries instead of the keys, so that each earlier weight depends on what
# later tokens ask.


# %% tags=["nbval-check-output"]
def sees_the_future(attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> bool:
    """Whether changing the last position changes any output before it."""
    qkv = torch.randn(3, 1, 2, 6, 8)  # queries, keys, values (B, H, T, K)
    before = attention(*qkv)[..., :-1, :]
    qkv[..., -1, :] = torch.tensor([3.0, 5.0, -5.0]).view(3, 1, 1, 1)
    return not torch.equal(before, attention(*qkv)[..., :-1, :])


def hide(scores: Tensor, hidden: Tensor) -> Tensor:
    """Scores (B, H, T, T) with those at `hidden` (T, T) made impossible."""
    return scores.masked_fill(hidden.bool(), -torch.inf)


def masked_the_wrong_way(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    past = torch.ones_like(scores).tril(-1)  # hidden instead of the future
    return hide(scores, past).softmax(-1) @ v


def not_masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).softmax(-1) @ v


def wrong_axis(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    future = torch.ones_like(scores).triu(1)
    return hide(scores, future).softmax(-2) @ v  # columns sum to one, not rows


for attention in (_explicit_attention, masked_the_wrong_way, not_masked, wrong_axis):
    print(f"{attention.__name__:20} sees the future: {sees_the_future(attention)}")

# %% [markdown]
# ## The kernel that PyTorch brings
#
# A *kernel* is one compiled routine. `F.scaled_dot_product_attention` computes all of
# the above in a single one (*fused*; Flash Attention, Dao et al. 2022, is one) that
# never stores the `(T, S)` weights, where there is one for the case; elsewhere (on a
# CPU: with dropout) it falls back to the plain products. Two traps come with it. It
# applies dropout whenever you ask, and knows nothing of `eval()`: passing 0 there is
# the caller's job, and who forgets it gets another answer every time. And its
# `is_causal=True` aligns the diagonal to the *top left*, so it is right only when
# `T == S`. With 2 queries at the end of 4 keys, let every value name its position, and
# see how far each query looks:

# %% tags=["nbval-check-output"]
same = torch.zeros(1, 1, 4, 8)  # equal scores
places = torch.eye(4)[None, None]  # value s is the s-th unit vector
trap = F.scaled_dot_product_attention(same[:, :, :2], same, places, is_causal=True)
q, k, v = torch.randn(3, 16, 8)  # (T, K) each
noisy = [
    F.scaled_dot_product_attention(q, k, v, dropout_p=0.5, is_causal=True)
    for _ in range(2)
]
print("with dropout_p=0.5, twice the same:", torch.equal(*noisy))
seen = (trap[0, 0] > 0).sum(-1).tolist()
print("is_causal=True sees", seen, "keys; it should see [3, 4]")

# %% [markdown]
# One case remains where plain products win: *training* on texts of up to 256 tokens in
# 16-bit numbers (`bfloat16`; [the trainer](#trainer/precision) chooses them) on a CPU,
# where the backward pass of the fused kernel is slow. The function that the package
# uses chooses between the two; at first reading skip how, and take it as "the formula,
# fast".

# %% mystnb={"code_prompt_show": "Measure on your machine which of the two is faster"} tags=["hide-cell"]
from course.figures.attention import kernel_ratio

for dtype in (torch.float32, torch.bfloat16):
    for T in (64, 256, 1024):  # above 1: plain products are faster
        training = kernel_ratio(_explicit_attention, dtype, T, backward=True)
        reading = kernel_ratio(_explicit_attention, dtype, T, backward=False)
        ratios = f"training {training:4.2f}, reading {reading:4.2f}"
        print(f"{str(dtype):14}  T = {T:4}   fused time / explicit time: {ratios}")


# %%
#| export
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


# %% [markdown]
# ## Many heads
#
# One weighted mean can answer one question. A token has several: who is this about,
# which verb is open, what comes after a quote. So split the `D` channels into `H` heads
# of size `K = D / H`, let each head attend for itself, and mix the results with one
# more matrix. The work stays the same.
#
# With $o^h$, `(T, K)`, the output of head $h$, side by side they are `(T, D)` again,
# and one learned matrix $W_O$, `(D, D)`, mixes them:
#
# $$\operatorname{MultiHead}(x) = [\,o^1\; o^2 \cdots o^H\,]\, W_O^\top + b$$
#
# As a loop over heads, each with its own `K` of the `D` channels:


# %%
def heads_in_a_loop(q: Tensor, k: Tensor, v: Tensor, n_heads: int) -> Tensor:
    """Queries, keys, values (T, D) each; the heads' outputs side by side, (T, D)."""
    K = q.size(-1) // n_heads
    heads = zip(*[part.split(K, dim=-1) for part in (q, k, v)], strict=True)
    return torch.cat([_explicit_attention(*head) for head in heads], dim=-1)


# %% [markdown]
# Without the loop, `H` becomes an axis, `(B, H, T, K)`, and this is where shapes go
# wrong. Take `x` of shape `(1, 3, 2)` with the numbers 0 to 5, so that token $t$ holds
# the channels $2t$ and $2t + 1$, and two heads of size 1. What should head 0 hold? Not
# 0, 1, 2, but the first channel of *every* token: 0, 2, 4.
#
# **Exercise 2. Split the heads.** Bring `(B, T, D)` into `(B, H, T, K)` so that head
# `h` holds channels `h*K` to `(h + 1)*K - 1` of every token.


# %% tags=["exercise"]
def my_split_heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, T, D) to (B, H, T, K)."""
    raise NotImplementedError("your turn")


check.split_heads(my_split_heads)

# %% [markdown]
# What the check says to a typical wrong answer, which goes there in one step:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def view_alone(x: Tensor, n_heads: int) -> Tensor:
    return x.view(x.size(0), n_heads, x.size(1), -1)


check.split_heads(view_alone)

# %% [markdown]
# <details><summary>Solution: <code>my_split_heads</code></summary>
#
# ```python
# def my_split_heads(x, n_heads):
#     B, T, D = x.shape
#     return x.view(B, T, n_heads, D // n_heads).transpose(1, 2)
# ```
# </details>
#
# A row of `D` numbers is `H` groups of `K`, so `view` reads it as `(B, T, H, K)`, and
# only then `T` and `H` are swapped. `view` alone never moves a number, so head 0 gets
# the first numbers in memory, whole tokens:

# %% tags=["nbval-check-output"]
x = torch.arange(6).view(1, 3, 2)  # (B, T, D)
swapped = x.view(1, 3, 2, 1).transpose(1, 2)  # (B, H, T, K): two heads of size 1
print("head 0, split and swapped:", swapped[0, 0, :, 0].tolist())
print("head 0 by view alone:     ", view_alone(x, 2)[0, 0, :, 0].tolist())

# %% [markdown]
# The way back is the same road: swap, then flatten. A transposed tensor leaves its
# numbers where they were in memory, so `view` refuses it; `reshape` copies.
#
# **Exercise 3. And join them again.** From `(B, H, T, K)` back to `(B, T, D)`, head 0's
# channels first.


# %% tags=["exercise"]
def my_join_heads(heads: Tensor) -> Tensor:
    """(B, H, T, K) to (B, T, D)."""
    raise NotImplementedError("your turn")


check.join_heads(my_join_heads)

# %% [markdown]
# What the check says to a typical wrong answer, which forgets the swap:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def flattened_alone(heads: Tensor) -> Tensor:
    B, H, T, K = heads.shape
    return heads.reshape(B, T, H * K)


check.join_heads(flattened_alone)

# %% [markdown]
# <details><summary>Solution: <code>my_join_heads</code></summary>
#
# ```python
# def my_join_heads(heads):
#     B, H, T, K = heads.shape
#     return heads.transpose(1, 2).reshape(B, T, H * K)
# ```
# </details>
#
# How bad is a forgotten swap? It runs without a word, and mixes positions, so that the
# past moves when the last token changes:


# %% tags=["nbval-check-output"]
def through_heads(x: Tensor, swap: bool) -> Tensor:
    """x (B, T, D) as queries, keys and values of four heads; back to (B, T, D)."""
    heads = x.view(1, 6, 4, 8).transpose(1, 2)  # (B, H, T, K)
    out = _explicit_attention(heads, heads, heads)  # (B, H, T, K)
    return (out.transpose(1, 2) if swap else out).reshape(1, 6, 32)


x = torch.randn(1, 6, 32)  # (B, T, D)
changed = x.clone()
changed[:, -1] = 1.0
loop = heads_in_a_loop(x[0], x[0], x[0], n_heads=4)
equal = torch.allclose(through_heads(x, True)[0], loop, atol=1e-6)
print("swapped back and the loop over heads, equal within 1e-6:", equal)
for swap in (True, False):
    before, after = through_heads(x, swap), through_heads(changed, swap)
    moved = not torch.equal(before[:, :-1], after[:, :-1])
    print(f"swapped back: {swap}, the past moves with the last token: {moved}")


# %% [markdown]
# The module makes queries, keys and values with one matrix of `3D` rows, one product
# instead of three; so its `view` has one more axis, for which of the three. One
# argument looks ahead. When a text grows token by token, keys and values of the past
# can be kept, so there are `S` keys for `T` queries, `S >= T`; a `Cache` keeps them
# ([generation](#generation/remember-keys-and-values) makes one).
#
# `forward` reads from top to bottom as you did it by hand: one product, cut into
# queries, keys and values of each head; attention; the heads side by side again; the
# product that mixes them. Dropout acts twice, on the attention weights and on the
# output, and only in training.

# %%
#| export
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


# %% [markdown]
# ## A head learns to look something up
#
# Does it find out by itself where to look? Give it the story from the start as a game:
# five tokens, each a name with an object, then a name alone. The task is to say that
# name's object, one of eight: chance gets one in eight. Nothing tells the head that
# names matter; it gets only right and wrong.

# %% mystnb={"code_prompt_show": "The game: names, objects and the right answer (11 lines)"} tags=["hide-input"]
names, objects, width = 6, 8, 32


def episode(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Names (B, 6), objects (B, 6) of which the last is 'none', and answers (B,)."""
    name = torch.rand(batch, names).argsort(-1)[:, :5]  # five different names
    object_ = torch.randint(objects, (batch, 5))
    asked = torch.randint(5, (batch, 1))
    who = torch.cat([name, name.gather(1, asked)], 1)  # (B, T)
    what = torch.cat([object_, torch.full((batch, 1), objects)], 1)  # (B, T)
    return who, what, object_.gather(1, asked)[:, 0]


# %% [markdown]
# The model: an `nn.Embedding` is a table with one row of learned numbers for each name,
# or object; their sum is the token. The last token's result is read out by a matrix.

# %%
embed_name, embed_object = nn.Embedding(names, width), nn.Embedding(objects + 1, width)
head, read_out = MultiHeadAttention(width, 1), nn.Linear(width, objects)
parts = nn.ModuleList([embed_name, embed_object, head, read_out])


def answers(who: Tensor, what: Tensor) -> Tensor:
    """Logits (B, objects): what the last token found."""
    return read_out(head(embed_name(who) + embed_object(what))[:, -1])


# %% [markdown]
# > **The loss and the training loop, in six lines.** `answers` gives one number for
# > each object, its *logit*; a softmax would make probabilities of them.
# > `F.cross_entropy` does so and returns the *loss*, the mean of $-\ln p$ over the
# > right answers: near 0 for a model that is sure and right, $\ln 8$ for one that
# > guesses among eight, more for one that is sure and wrong. `backward` finds the
# > *gradient* of each parameter: how the loss would change if that number grew a
# > little. `step` moves each parameter a little against its gradient, so that the loss
# > falls (how far is AdamW's choice, told in [the trainer](#trainer/optimizers));
# > `zero_grad` forgets the old gradients, to which `backward` would add. Draw, answer,
# > loss, clear, backward, step: every training loop is these six lines.

# %%
optimizer = torch.optim.AdamW(parts.parameters(), lr=1e-2)
for _ in range(400):
    who, what, answer = episode(128)
    logits = answers(who, what)
    loss = F.cross_entropy(logits, answer)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

who, what, answer = episode(2000)
right = answers(who, what).argmax(-1) == answer
accuracy = right.float().mean().item()
print(f"loss {loss.item():.4f}, {accuracy:.1%} of 2,000 new episodes right")

# %% [markdown]
# And {numref}`fig-episode` is what the head looks at in one of them. Only the last row
# was trained to answer; look where it goes.

# %% mystnb={"code_prompt_show": "Draw the weights of one episode", "figure": {"caption": "What the trained head looks at in one episode. The last row asks for a child's thing, and nearly all of its weight goes to the place where that child was named with it.", "name": "fig-episode"}, "image": {"alt": "A table of weights, six places by six, each with a child and a thing; its upper right half is empty. In the last row, a child with a question mark, one cell is dark with a weight near 1: that of the same child's earlier place."}} tags=["hide-input"]
NAMES = ["Mia", "Leo", "Pip", "Ada", "Sam", "Ivy"]
OBJECTS = ["kite", "boat", "drum", "ball", "hat", "bell", "cup", "top", "?"]
stream = embed_name(who[0]) + embed_object(what[0])  # (T, D)
q, k, _ = head.qkv(stream).split(width, -1)  # (T, K) each
future = torch.ones(6, 6, dtype=torch.bool).triu(1)
weights = (q @ k.T / math.sqrt(width)).masked_fill(future, -torch.inf).softmax(-1)
pairs = zip(who[0].tolist(), what[0].tolist(), strict=True)
attention_table([f"{NAMES[n]}: {OBJECTS[o]}" for n, o in pairs], weights)

# %% [markdown]
# ## Is it right?
#
# Do rows of weights sum to one? (The mean of ones is one only if they do.) Is the
# future invisible, do both kernels agree, and does the module equal
# `nn.MultiheadAttention` when it is given the same matrices?

# %% tags=["nbval-check-output"]
q, k, v = torch.randn(3, 2, 4, 16, 8)  # (B, H, T, K) each
ours, theirs = MultiHeadAttention(32, 4), nn.MultiheadAttention(32, 4, batch_first=True)
with torch.no_grad():
    theirs.in_proj_weight.copy_(ours.qkv.weight)
    theirs.in_proj_bias.copy_(ours.qkv.bias)
    theirs.out_proj.load_state_dict(ours.out.state_dict())
x, mask = torch.randn(2, 16, 32), torch.ones(16, 16, dtype=torch.bool).triu(1)
ours(x).sum().backward()
fused, ones = causal_attention(q, k, v), torch.ones_like(v)
last_three = causal_attention(q[:, :, -3:], k, v)

proofs = {
    "rows sum to one": (causal_attention(q, k, ones), ones),
    "fused equals explicit": (fused, _explicit_attention(q, k, v)),
    "the last 3 queries alone give the last 3 rows": (last_three, fused[:, :, -3:]),
    "equals nn.MultiheadAttention": (ours(x), theirs(x, x, x, attn_mask=mask)[0]),
}
for claim, (result, expected) in proofs.items():
    holds = torch.allclose(result, expected, atol=1e-5)
    print(f"{'holds' if holds else 'FAILS'}  {claim} (within 1e-5)")
print("sees the future:", sees_the_future(causal_attention))
reached = all(bool(p.grad.abs().sum() > 0) for p in ours.parameters())
print("gradient reaches every parameter:", reached)

# %% [markdown]
# Every parameter *tensor*, to be exact. The bias of the keys, the middle third of
# `qkv.bias`, gets none: it adds the same number $q_t \cdot b_K$ to all scores of a row,
# and a softmax does not notice. GPT-2 has it all the same, and so have we.

# %% [markdown]
# ## Break it on purpose
#
# Mistakes that are easily made. Each runs without an error, returns the right
# shape, and would train to something. Before you run the cell: which of them can the
# test of causality above not see? The check of exercise 1 tells them all apart, because
# it runs your function beside each known mistake and compares what comes out:

# %% tags=["nbval-check-output"]
import textwrap


def scale_forgotten(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1)
    return hide(scores, torch.ones_like(scores).triu(1)).softmax(-1) @ v


broken = (
    masked_the_wrong_way,
    not_masked,
    masked_too_late,
    scale_forgotten,
    wrong_axis,
)
for wrong in broken:
    sees = "sees" if sees_the_future(wrong) else "does not see"
    text = f"{wrong.__name__} ({sees} the future): {check.causal_attention(wrong)}"
    print(textwrap.fill(text, 88, subsequent_indent="    "))

# %% [markdown]
# ## One more exercise
#
# **Exercise 4. A window.** Long texts make the `(T, T)` table expensive, so some models
# let a token see only the last `W` positions, itself included. Write that mask: a
# boolean `(T, T)` that is true where row $t$ may look at column $s$.


# %% tags=["exercise"]
def my_window_mask(T: int, W: int) -> Tensor:
    """Boolean (T, T): true where t may see s, the last W positions including t."""
    raise NotImplementedError("your turn")


check.window_mask(my_window_mask)

# %% [markdown]
# What the check says to a typical wrong answer, which counts `W` positions beside the
# token itself:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input", "nbval-check-output"]
def one_too_many(T: int, W: int) -> Tensor:
    return torch.ones(T, T, dtype=torch.bool).tril().triu(-W)


check.window_mask(one_too_many)

# %% [markdown]
# <details><summary>Solution: <code>my_window_mask</code></summary>
#
# ```python
# def my_window_mask(T, W):
#     distance = torch.arange(T)[:, None] - torch.arange(T)[None, :]  # (T, T): t - s
#     return (distance >= 0) & (distance < W)
# ```
# </details>
#
# ## What you have now
#
# The exchange of information between tokens, in one function and one module. What a
# token *does* with what it gathered is told in [the blocks](#blocks).

# %%
course.summary("slm/model/attention.py")
