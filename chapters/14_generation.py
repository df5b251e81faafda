# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all
#   slm:
#     exports:
#     - slm/generation.py
# ---

# %% [markdown]
# # Generation
#
# How a model that only ever predicts one token writes a story. You turn logits into
# choices, find out why the obvious loop wastes nearly all its work, and export
# `generate` and `stream`, which write many texts at once and compute each key and value
# only once.

# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()

# %% mystnb={"code_prompt_show": "Imports"} tags=["hide-input"]
#| export
"""Write text with a model: choosing tokens, the KV cache, many texts at once.

    print(generate(model, tokenizer, "Once upon a time", temperature=0.8))
"""

import codecs
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from slm.errors import SlmError, settings
from slm.hardware import room
from slm.model.gpt import GPT
from slm.data.tokenizer import Tokenizer

# %% [markdown]
# ## The idea
#
# You need a model that has learned something. This asks for the one that [the
# trainer](#trainer) trains; if you have trained it already, it is loaded at once.

# %%
from slm.training.config import load_config
from slm.training.run import train

run = train(load_config("configs/stories_cpu.yaml"), verbose=False)
model, tokenizer = run.model.eval(), run.tokenizer

# %% [markdown]
# Give it the beginning of a story. Its answer is not a word but a number for each token
# of the vocabulary: the logits at the last position. A softmax turns them into
# probabilities. Writing means: draw one token, append it, ask again. All the art is in
# how you draw.
#
# Mostly the model is sure: after "Once upon a" comes "time". The art matters where it
# is not, so cut a story where its next token is most open, where the entropy of its
# probabilities is largest:

# %%
from slm.data import stories

start_of_text = tokenizer.eot_token  # every story begins behind one in training
story = torch.tensor([start_of_text, *tokenizer.encode(stories.sample(seed=7))])  # (T,)
with torch.inference_mode():
    log_p = model(story[None])[0].log_softmax(-1)  # (T, V)
entropy = -(log_p.exp() * log_p).sum(-1)  # (T,), in nats
tokens = story[: int(entropy[:40].argmax()) + 1]
logits = log_p[len(tokens) - 1][None]  # (B, V), B = 1; a softmax of log p is p again
opening = tokenizer.decode(tokens[1:].tolist())
opening

# %% [markdown]
# {numref}`fig-next-token` shows what the model thinks may follow. Each panel holds the
# same logits, and says in its corner how many tokens can still be drawn and how likely
# those are that have no bar here.

# %% mystnb={"code_prompt_show": "Draw the next token's chances under six ways to choose", "figure": {"caption": "One model, one opening, six ways to choose. From left to right the temperature rises and the bars level out. In the lower row top-p has cut away the tail, and what is left has grown to fill the gap; the outlines are the bars of the upper row.", "name": "fig-next-token"}, "image": {"alt": "Six bar charts of the twelve likeliest next tokens. Upper row: all tokens, at temperatures 0.5, 1 and 2; the first bar shrinks and the others grow as the temperature rises. Lower row: the same with top-p 0.9; only the likeliest bars are left, each a little longer than above."}} tags=["hide-input"]
from course.figures.generation import next_token_bars

next_token_bars(logits[0], tokenizer)

# %% [markdown]
# The rest of this chapter builds these two controls, *temperature* and *top-p*, and
# then makes the loop around them fast.
#
# ## From logits to a choice
#
# Let $z \in \mathbb{R}^V$ be the logits of one position. With a temperature $\tau > 0$
# the probability of token $i$ is
#
# $$p_i = \frac{e^{z_i / \tau}}{\sum_{j=1}^{V} e^{z_j / \tau}}$$
#
# A difference of one between two logits makes one token $e^{1/\tau}$ times as likely as
# the other. A small $\tau$ exaggerates differences, a large one forgives them. Five
# logits, where you can follow every digit:

# %% tags=["nbval-check-output"]
from course.tables import Table

z = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]])  # (B, V)
rows = []
for tau in (2.0, 1.0, 0.5, 0.1):
    p = torch.softmax(z / tau, -1)[0]  # (V,)
    rows.append((str(tau), *(f"{value:.3f}" for value in p.tolist())))
header = ("temperature", *(f"logit {value:g}" for value in z[0].tolist()))
Table(header, rows, "The probabilities of five tokens")

# %% [markdown]
# **Greedy** is the limit $\tau \to 0$: all probability on the largest logit. The
# formula divides by zero there, so it needs a case of its own. Greedy looks like the
# obvious choice, and for a fact it is one. For a story it is not: the likeliest token
# each time need not make the likeliest story, and it makes the same one every time.
#
# At $\tau = 1$ you draw from what the model believes. Its mistake is the tail: a
# thousand tokens here, fifty thousand in GPT-2, each nearly impossible, but not all
# together. Two ways to cut it:
#
# - **top-k** (Fan et al. 2018) keeps the `k` largest. Simple, but blind: where only two
#   tokens make sense it keeps 40, where a hundred do, it keeps 40.
# - **top-p** (Holtzman et al. 2020) keeps the smallest set whose probabilities add up
#   to at least `p`. Where the model is sure, that is one token; where it is not, many.
#
# Top-p by hand: sort, add up from the top, and keep a token if what stands *before* it
# does not reach `p` yet. So the token that crosses the line stays, and there is always
# at least one.

# %% tags=["nbval-check-output"]
p = torch.softmax(z, -1)[0]  # (V,), already sorted
before = p.cumsum(0) - p  # (V,): what is larger than this token, together
for value, above in zip(p.tolist(), before.tolist(), strict=True):
    verdict = "kept" if above < 0.9 else "removed"
    print(f"p = {value:.3f}, before it {above:.3f}: {verdict}")

# %% [markdown]
# ## Temperature, top-k, top-p
#
# The three steps in the order of `transformers`: temperature, top-k, top-p. (Others,
# llama.cpp among them, divide by the temperature last, so the same numbers mean another
# set there.) A token is removed by the logit $-\infty$, *before* the softmax, so that
# the rest adds up to one again.
#
# Two details come from experience. The maximum is subtracted before the division, so
# that a small temperature cannot overflow. And top-p reaches its verdicts in sorted
# order, but they are needed in the order of the vocabulary: `scatter` puts them back.


# %%
#| export
def next_token_probabilities(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Probabilities from which the next token is drawn.

    Args:
        logits: `(B, V)`, of any floating type.
        temperature: Divides the logits. 0, or nearly, puts all probability on the
            largest (greedy).
        top_k: Keep only the `top_k` largest logits (and those equal to the last).
        top_p: Keep only the smallest set of tokens whose probabilities reach `top_p`
            (nucleus sampling, Holtzman et al. 2020).

    Returns:
        `(B, V)` float32; rows sum to one.
    """
    logits = logits.float()
    if temperature < torch.finfo(torch.float32).tiny:
        likeliest = logits.argmax(-1, keepdim=True)  # (B, 1)
        return torch.zeros_like(logits).scatter_(-1, likeliest, 1.0)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if top_k is not None:
        largest = logits.topk(min(top_k, logits.size(-1))).values  # (B, k), descending
        logits = logits.masked_fill(logits < largest[:, -1:], -torch.inf)
    if top_p is not None and top_p < 1:
        p, order = logits.softmax(-1).sort(descending=True)  # (B, V) each
        least = max(top_p, torch.finfo(torch.float32).tiny)  # the first token stays
        removed = p.cumsum(-1) - p >= least  # what stands before is already enough
        # back[order[i]] = removed[i], row by row
        back = torch.empty_like(removed).scatter_(-1, order, removed)  # (B, V)
        logits = logits.masked_fill(back, -torch.inf)
    return logits.softmax(-1)


# %% tags=["nbval-check-output"]
bold = {"temperature": 0.5, "top_p": 0.9}
for choice in ({"temperature": 0}, {"top_k": 3}, {"top_p": 0.9}, bold):
    p = next_token_probabilities(z.flip(-1), **choice)[0]  # (V,)
    print(choice, [round(value, 3) for value in p.tolist()])

# %% [markdown]
# ## The obvious loop
#
# Now write. Ask the model, choose, append, and ask again with everything that you have.


# %%
def write_naively(tokens: Tensor, steps: int) -> Tensor:
    """Greedy continuation of tokens (T,); returns (T + steps,)."""
    for _ in range(steps):
        logits = model(tokens[None])[:, -1]  # (1, V)
        tokens = torch.cat([tokens, logits.argmax(-1)])
    return tokens


with torch.inference_mode():
    greedy = write_naively(tokens, steps=30)
course.show(tokenizer.decode(greedy[1:].tolist()))

# %% [markdown]
# It works, and it is wasteful. To choose one token the model computes *all* positions
# again, although none of them has changed: a token sees only what comes before it, so
# its keys and values are the same whatever you append. Count positions. A prompt of $P$
# tokens and $N$ new ones cost
#
# $$\underbrace{\sum_{n=0}^{N-1} (P + n) = NP + \tfrac{N(N-1)}{2}}_{\text{all of them}}
# \qquad\text{against}\qquad \underbrace{P + N - 1}_{\text{each of them once}}$$
#
# (The sum ends at $N - 1$ because the first new token is chosen with none of them there
# yet. And the last new token is chosen and never read: so $P + N - 1$, not $P + N$.)

# %% tags=["nbval-check-output"]
P, N = 32, 128
every_time, once = sum(P + n for n in range(N)), P + N - 1
every_time, once, round(every_time / once)

# %% [markdown]
# ## Remember keys and values
#
# What does a new token need of the old ones? Only their keys and values, in every
# layer; never their queries, and nothing of the feed-forward. So keep those: this is
# the **KV cache**. [Attention](#attention/many-heads) has taken a `cache` from its
# first day, a callable that is handed the new keys and values and gives back all so
# far. Here is what it must do.
#
# The obvious way to append is `torch.cat`, which copies everything at every token.
# Instead, allocate the longest that can come, once, write each new key into its place,
# and hand out a *view* of the part that is filled.


# %%
#| export
class KVCache:
    """Keys and values of one layer, kept in buffers that are allocated once.

    Attention calls it with the keys and values of the new positions and gets those of
    all positions so far.

    Args:
        capacity: How many positions fit.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def __call__(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep k and v `(B, H, T, K)`; return views `(B, H, S, K)` of all S so far."""
        if self._keys is None or self._values is None:
            B, H, _, K = k.shape
            self._keys = k.new_empty(B, H, self.capacity, K)
            self._values = v.new_empty(B, H, self.capacity, K)
        start, end = self.length, self.length + k.size(2)
        if end > self.capacity:
            held = f"the cache holds {self.capacity} positions"
            raise ValueError(f"{held}, and {end} were put in.")
        self.length = end
        self._keys[:, :, start:end] = k
        self._values[:, :, start:end] = v
        return self._keys[:, :, :end], self._values[:, :, :end]

    def clear(self) -> None:
        """Forget all positions; the buffers stay."""
        self.length = 0


# %% [markdown]
# With one cache for each layer the model is handed only what is new: the whole prompt
# first, then one token at a time. `start` says which position the first of them has,
# because a single token cannot know. Forget it, and every new token believes that it is
# the first of the text.


# %%
def write_with_cache(tokens: Tensor, steps: int) -> Tensor:
    """The same (T + steps,), each position computed once."""
    caches = [KVCache(len(tokens) + steps) for _ in range(model.config.n_layers)]
    new = tokens
    for _ in range(steps):
        logits = model(new[None], caches, start=len(tokens) - len(new))[:, -1]  # (1, V)
        new = logits.argmax(-1)  # (1,)
        tokens = torch.cat([tokens, new])
    return tokens


# %% tags=["nbval-check-output"]
with torch.inference_mode():
    same = torch.equal(write_with_cache(tokens, steps=30), greedy)
    print(f"30 tokens, each the same as without a cache: {same}")
    expected = model(greedy[None])[0, -1]  # (V,), the whole text at once
    for name, start in (("with start", len(greedy) - 1), ("start forgotten", 0)):
        caches = [KVCache(len(greedy)) for _ in range(model.config.n_layers)]
        model(greedy[None, :-1], caches)
        cached = model(greedy[None, -1:], caches, start=start)[0, -1]  # (V,)
        apart = (cached - expected).abs().max().item()
        print(f"{name}: logits within 0.001: {apart < 0.001}")

# %% [markdown]
# Token for token the same. The logits differ in the last digits, because a matrix
# product of another shape adds in another order; the choice, short of a near-tie, does
# not.
#
# ## Many texts at once
#
# Writing one token reads every weight of the model, and does hardly any arithmetic with
# each. Writing eight texts at once reads them just as often. What it costs is measured
# here, for the next token of one text and of eight:

# %%
import time


def next_token_time(rows: int) -> float:
    """Milliseconds to write a token, the fastest of twenty, for so many texts."""
    text = tokens[None].repeat(rows, 1)  # (B, T)
    took = []
    with torch.inference_mode():
        caches = [KVCache(len(tokens) + 20) for _ in range(model.config.n_layers)]
        model(text, caches)
        for step in range(20):
            began = time.perf_counter()
            model(text[:, -1:], caches, start=len(tokens) + step)
            took.append(1000 * (time.perf_counter() - began))
    return min(took)


one, eight = next_token_time(1), next_token_time(8)
print(f"1 text {one:.2f} ms, 8 texts {eight:.2f} ms: {eight / one:.1f} times as long")

# %% [markdown]
# What stands in the way is prompts of unequal length. The usual answer is to pad on the
# left, mask the padding, and shift the positions, and each of the three is a place for
# a bug. There is a simpler one. Start all rows at position 0 and let them run side by
# side. At each position a row that still has a prompt token takes it; a row whose
# prompt has ended takes what it draws:
#
# | position | 0 | 1 | 2 | 3 | 4 | 5 |
# |---|---|---|---|---|---|---|
# | row 0 | Once | upon | *a* | *time* | *there* | *was* |
# | row 1 | One | sunny | day | a | *small* | *fox* |
#
# As a plain loop, greedy and without a cache:


# %%
def write_side_by_side(rows: list[list[int]], length: int) -> list[list[int]]:
    """Greedy continuations of all rows, to `length` tokens each."""
    texts = [list(row) for row in rows]
    for n in range(min(map(len, rows)), length):
        seen = torch.tensor([text[:n] for text in texts])  # (B, n)
        chosen = model(seen)[:, -1].argmax(-1).tolist()  # B tokens
        for text, token in zip(texts, chosen, strict=True):
            if len(text) == n:  # its prompt has ended
                text.append(token)
    return texts


# %% tags=["nbval-check-output"]
prompts = ["Once upon a time", "", "One sunny day a small"]
rows = [[start_of_text, *tokenizer.encode(prompt)] for prompt in prompts]
with torch.inference_mode():
    together = write_side_by_side(rows, length=20)
    alone = [write_side_by_side([row], length=20)[0] for row in rows]
print("prompts of", *map(len, rows), "tokens")
print("side by side the same as alone:", together == alone)

# %% [markdown]
# The price: beyond the end of the shortest prompt, prompts are read one position at a
# time. Put prompts of similar length together. Nothing is padded, so there is nothing
# to mask, and the rows cannot influence each other. The loop that is exported below is
# this one, with a cache, with a draw in place of the largest, with an end for each row,
# and with a full window. Each row has a random generator of its own there: row `r`
# draws with `seed + r`, exactly as if it had been written alone with that seed.
#
# ## When the window is full
#
# The model has `context_length` positions and not one more. Then `overflow="stop"` ends
# the text, and `overflow="slide"` keeps its last half and goes on. Why half, and not
# only the oldest token? Because positions are learned: when the window moves, *every*
# token gets another position, and every key and value in the cache is wrong. The cache
# must be filled again, so let it be rare. The rule is a function of the number of
# tokens alone, so it is the same with and without cache. With a window of 8, nine
# tokens do not fit, so the oldest five are dropped and four stay; four more fill the
# window, and one more makes it drop five again: 8 + 1 - 4 = 5 each time.


# %%
#| export
def _window_start(length: int, context_length: int) -> int:
    """First of `length` tokens that fits: 0, then in jumps that leave half a window."""
    jump = context_length + 1 - max(1, context_length // 2)
    return jump * max(0, math.ceil((length - context_length) / jump))


# %% tags=["nbval-check-output"]
[(n, _window_start(n, 8)) for n in (1, 8, 9, 13, 14, 18, 19)]  # a window of 8 tokens

# %% [markdown]
# ## All settings in one place
#
# Temperature, top-k and top-p are not the last of it. How many tokens, from which seed,
# ended by which token, and what happens at a full window: the loop needs nine answers,
# and two doors hand them on to it. Inside the package they travel as one object that
# checks itself; only the two functions for people, `stream` and `generate`, spell them
# out, because people write them so. It is frozen: nobody changes it on the way, and
# whoever holds one holds settings that can be meant. It is [checked as the sections of
# a config are](#files/settings-that-check-themselves): each field says its type and its
# range, and all that does not fit is told at once.


# %%
#| export
@settings
class Sampling:
    """How to continue a text.

    Args:
        max_tokens: New tokens a row.
        temperature, top_k, top_p: See `next_token_probabilities`.
        seed: Row r draws with a generator of its own, seeded with `seed + r`.
        overflow: With a full window "stop" ends the text, "slide" goes on with the last
            half of it.
        use_cache: Keep keys and values instead of computing them again.
        stop_token: A row ends with this token.
        vocab_size: Draw only from the first `vocab_size` tokens, since a model's
            vocabulary may be padded.

    Raises:
        SlmError: A setting is out of range.
    """

    max_tokens: int = Field(default=200, ge=0, le=10**18)
    temperature: float = Field(default=1.0, ge=0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    overflow: Literal["slide", "stop"] = "stop"
    use_cache: bool = True
    stop_token: int | None = None
    vocab_size: int | None = None


# %% [markdown]
# ## One position after another
#
# Reading is the expensive half of the loop, so it gets a place of its own. A reader is
# handed the text so far and answers with the logits of what comes next. It remembers
# how far it has read: with caches it computes only what is new, without them the whole
# window, and when the window moves it begins anew.
#
# Two things in it are easy to get wrong. Logits are made for the last position only:
# those of all other positions of a prompt would fill memory, and nobody reads them. And
# dropout is switched off while the model computes, and put back before a token is
# handed out: whoever reads a stream may train between two tokens, read two streams in
# turns, or never come back for the rest.


# %%
#| export
@contextmanager
def _evaluation(model: torch.nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards each in its own again."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _Reader:
    """Reads growing texts, each position once if it keeps a cache of `capacity`."""

    def __init__(self, model: GPT, capacity: int | None) -> None:
        layers = range(model.config.n_layers if capacity else 0)
        self.model = model
        self.caches = [KVCache(capacity) for _ in layers] if capacity else None
        self.start, self.read = 0, 0  # the caches hold positions start to read

    def __call__(self, text: Tensor, vocab_size: int | None) -> Tensor:
        """Logits `(B, V)` of the token that follows each of the texts `(B, T)`."""
        T = text.size(1)
        start = _window_start(T, self.model.config.context_length)
        if start > self.start:
            self.start = self.read = start
            for cache in self.caches or ():
                cache.clear()
        new, at = text[:, self.read :], self.read - start
        with _evaluation(self.model):
            x = self.model.hidden(new, self.caches, start=at)  # (B, T, D)
        self.read = T if self.caches else start
        return F.linear(x[:, -1], self.model.tables()[0][:vocab_size])  # (B, V)


# %% [markdown]
# The last line uses that GPT-2's output layer *is* its table of tokens, the first of
# `model.tables()`; the slice leaves out rows that belong to no token.
#
# With the reader, what is left of the loop fits a screen. Behind the prompts its table
# holds zeros. A row that has ended keeps them and is read on with the others, and its
# logits are thrown away. It yields after each position, so whoever calls it can print,
# stop, or throw away. `torch.inference_mode()` switches off all bookkeeping for
# gradients.
#
# How long the texts can get is known before the first token: with "stop" a text ends
# one token behind the window, with "slide" it gets all it asked for. So the memory for
# the texts and their caches is known, too; `room`, from [the
# trainer](#trainer/is-there-room), refuses what there is no memory for.


# %%
#| export
def generate_tokens(
    model: GPT, prompts: Sequence[Sequence[int]], sampling: Sampling | None = None
) -> Iterator[list[int | None]]:
    """Continue token sequences side by side, one position at a time.

    Row r draws with `seed + r`: it is the text that it would have been alone with that
    seed on the same device, and with or without a cache, up to rounding. (In 16 bits a
    near-tie between two tokens may fall differently.)

    Args:
        model: In any mode; it is in evaluation mode while it computes, and in its own
            between two tokens.
        prompts: Token ids, at least one a row; lengths may differ.
        sampling: How to continue them.

    Yields:
        For each position the new token of each row, None for a row that is in its
        prompt or has ended.

    Raises:
        ValueError: A prompt without a token; at the call, not at the first token.
        SlmError: The memory does not hold so many tokens.
    """
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            begin = "a text begins with at least one, such as end-of-text"
            raise ValueError(f"prompt {row} has no token; {begin}.")
    sampling = sampling or Sampling()
    if not prompts or not sampling.max_tokens:
        return iter(())
    shape, begun = model.config, max(map(len, prompts))
    longest = begun + sampling.max_tokens
    if sampling.overflow == "stop":
        longest = min(longest, max(begun, shape.context_length + 1))
    need = 8 * len(prompts) * longest  # bytes of the texts, then of keys and values
    if sampling.use_cache:
        kept = len(prompts) * min(longest, shape.context_length) * shape.n_layers
        need += 2 * kept * shape.d_model * model.tables()[0].element_size()
    cure = "ask for fewer texts, or a smaller max_tokens"
    enough = room(model.device, need, f"{len(prompts)} × {longest} tokens", cure)

    def steps() -> Iterator[list[int | None]]:
        with enough:
            yield from _positions(model, prompts, sampling, longest)

    return steps()


# %% [markdown]
# The loop itself. It lays out one table for all texts, with a generator of random
# numbers for each row. Then it goes from position to position, beginning behind the
# shortest prompt: read, turn the logits into probabilities, and draw for each row that
# is past its prompt and has not ended.


# %%
#| export
@torch.inference_mode()
def _positions(
    model: GPT, prompts: Sequence[Sequence[int]], sampling: Sampling, longest: int
) -> Iterator[list[int | None]]:
    """The loop of `generate_tokens`; no text gets longer than `longest`."""
    rows, context = range(len(prompts)), model.config.context_length
    how = sampling.temperature, sampling.top_k, sampling.top_p
    ends = [len(prompt) + sampling.max_tokens for prompt in prompts]
    # prompts, then zeros; a row that has ended keeps them, and its logits are not used
    text = torch.zeros(len(prompts), longest, dtype=torch.int64, device=model.device)
    for row in rows:
        text[row, : len(prompts[row])] = torch.tensor(prompts[row])
    seeds = [sampling.seed + row for row in rows]
    generators = [torch.Generator(model.device).manual_seed(seed) for seed in seeds]
    read = _Reader(model, min(context, longest) if sampling.use_cache else None)
    for n in range(min(map(len, prompts)), max(ends)):
        if n > context and not read.start:
            _tell_overflow(sampling.overflow, context)
            if sampling.overflow == "stop":
                return
        logits = read(text[:, :n], sampling.vocab_size)  # (B, V)
        if not logits.isfinite().all():
            wrong = "the model's scores are no finite numbers"
            raise SlmError(f"{wrong}: its weights are damaged, or far too large")
        p = next_token_probabilities(logits, *how)  # (B, V)
        new: list[int | None] = [None for _ in rows]
        for row in rows:
            if len(prompts[row]) <= n < ends[row]:
                token = int(torch.multinomial(p[row], 1, generator=generators[row]))
                text[row, n] = new[row] = token
                ends[row] = n + 1 if token == sampling.stop_token else ends[row]
        yield new
        if n + 1 >= max(ends):
            return


# %% [markdown]
# What is said of a full window:


# %%
#| export
def _tell_overflow(overflow: str, context: int) -> None:
    """Say that the window is full, and what happens now."""
    goes_on = "the model now sees only the last part of the text"
    happens = goes_on if overflow == "slide" else "the text ends here"
    full = f"the context of {context} tokens is full"
    warnings.warn(f"{full}: {happens} (overflow={overflow!r}).", stacklevel=3)


# %% [markdown]
# ## Text in, text out
#
# Around the loop stand two functions for people, who have text. In training every story
# begins behind an end-of-text token, so a prompt is put behind one here as well, and an
# empty prompt needs no rule of its own.
#
# Streaming has a trap. Tokens are pieces of *bytes*, and a character outside plain
# English is several bytes, which may fall into different tokens. Decode each token
# alone and you get this:

# %% tags=["nbval-check-output"]
ids = tokenizer.encode("a café in Zürich")
pieces = [tokenizer.decode_single_token_bytes(token) for token in ids]
"".join(piece.decode("utf-8", errors="replace") for piece in pieces)

# %% [markdown]
# An incremental decoder holds an unfinished character back until the rest of it
# arrives:

# %% tags=["nbval-check-output"]
decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
"".join(decoder.decode(piece) for piece in pieces)

# %% [markdown]
# Both doors take their settings flat, because that is how people write them, and make
# one `Sampling` of them. All arguments are checked before anything is computed; a wrong
# one is answered in one sentence. That the window is full is told by a warning (Python
# shows a repeated warning once).


# %%
#| export
def _encode_prompt(
    model: GPT, tokenizer: Tokenizer, prompt: str, overflow: str
) -> list[int]:
    """The prompt behind an end-of-text token, as every text stands in training."""
    tokens = [tokenizer.eot_token, *tokenizer.encode(prompt)]
    vocab_size, context = model.config.vocab_size, model.config.context_length
    if max(tokens) >= vocab_size:
        known = f"token {max(tokens)}, but the model knows only {vocab_size}"
        foreign = f"{tokenizer.name!r} is not the one that it was trained with"
        raise SlmError(f"the prompt holds {known}: tokenizer {foreign}.")
    if len(tokens) > context and overflow == "stop":
        size = f"{len(tokens)} tokens with its end-of-text token"
        holds = f"the prompt has {size}, but the model's context holds {context}"
        raise SlmError(f"{holds}: shorten it, or ask for overflow='slide'.")
    return tokens


# %% [markdown]
# `stream` makes the settings, starts the loop, and hands out each token as soon as it
# is a text. A token may end in the middle of a character, so an incremental decoder
# keeps the bytes that are not yet one. The arguments are checked outside `pieces`: a
# generator's own lines would not run before the first piece is asked for.


# %%
#| export
def stream(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: bool = True,
    overflow: Literal["slide", "stop"] = "stop",
    use_cache: bool = True,
) -> Iterator[str]:
    """Write one text and hand it out while it grows, whole characters only.

    Arguments as in `generate`.

    Yields:
        The prompt, then pieces; together they are what `generate` returns.

    Raises:
        SlmError: As `generate`, at the call and not at the first piece.
    """
    choice = (max_tokens, temperature, top_k, top_p, seed, overflow, use_cache)
    stop_token = tokenizer.eot_token if stop else None
    sampling = Sampling(*choice, stop_token, tokenizer.n_vocab)
    tokens = _encode_prompt(model, tokenizer, prompt, overflow)
    steps = generate_tokens(model, [tokens], sampling)

    def pieces() -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        yield prompt
        for (token,) in steps:
            if token is not None and token != stop_token:
                if piece := decoder.decode(tokenizer.decode_single_token_bytes(token)):
                    yield piece
        if rest := decoder.decode(b"", final=True):
            yield rest

    return pieces()


# %% [markdown]
# `generate` is the same for people who wait for the whole text, or for many texts. Most
# of its lines say what may be asked for. Then each text gets a list of its own, every
# step adds a token to those that go on, and at the end the lists are decoded.


# %%
#| export
def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str | Sequence[str],
    max_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: bool = True,
    overflow: Literal["slide", "stop"] = "stop",
    use_cache: bool = True,
) -> str | list[str]:
    """Continue one text, or many at once.

    Args:
        model: In any mode; while it computes, dropout is off.
        tokenizer: The one that the model was trained with.
        prompt: The beginning; "" begins a new text. Several prompts, of any lengths,
            are continued side by side.
        max_tokens: New tokens a text, at most.
        temperature: 0 is greedy, 1 draws from the model's own probabilities.
        top_k: Draw only from the `top_k` likeliest tokens.
        top_p: Draw only from the likeliest tokens that together reach this probability.
        seed: The same seed gives the same text on the same device; prompt number r
            draws with `seed + r`.
        stop: End at an end-of-text token.
        overflow: When the model's context is full, "stop" ends the text, "slide" goes
            on with the last half of the window; a warning says so.
        use_cache: Keep keys and values instead of computing them again; the text is the
            same (see `generate_tokens`).

    Returns:
        The prompt and what follows it; a list of them for several prompts.

    Raises:
        SlmError: A setting out of range, a prompt longer than the context (unless it
            slides), a foreign tokenizer.
    """
    choice = (max_tokens, temperature, top_k, top_p, seed, overflow, use_cache)
    stop_token = tokenizer.eot_token if stop else None
    sampling = Sampling(*choice, stop_token, tokenizer.n_vocab)
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    rows = [_encode_prompt(model, tokenizer, text, overflow) for text in texts]
    written: list[list[int]] = [[] for _ in rows]
    for new in generate_tokens(model, rows, sampling):
        for tokens, token in zip(written, new, strict=True):
            if token is not None and token != stop_token:
                tokens.append(token)
    ends = map(tokenizer.decode, written)
    texts = [text + end for text, end in zip(texts, ends, strict=True)]
    return texts[0] if isinstance(prompt, str) else texts


# %% [markdown]
# ## Use it
#
# A story, in the pieces in which `stream` hands it out. In a terminal you would print
# each as it comes; here a dot shows where one ends and the next begins.

# %%
course.show("·".join(stream(model, tokenizer, opening, seed=1)))

# %% [markdown]
# Here the corpus has an advantage that no real one has: its grammar can say whether a
# story is one of its own. So the effect of the settings can be *counted*. Forty stories
# each, all written at once:


# %%
from slm.data.floor import accepts


def accepted(**settings) -> float:
    """Share of forty generated stories that the grammar accepts."""
    longest = model.config.context_length - 1
    texts = generate(model, tokenizer, [""] * 40, max_tokens=longest, **settings)
    return sum(map(accepts, texts)) / len(texts)


for choice in ({"temperature": 0.5}, {}, {"top_p": 0.95}, {"temperature": 1.5}):
    print(f"{choice or 'as the model believes'}: {accepted(**choice):.0%}")
print(f"one standard error of a share of forty, at most: {(0.25 / 40) ** 0.5:.0%}")

# %% [markdown]
# A grammar is a strict judge: one wrong word among a hundred fails the story. At
# temperature 1.5 the tail has its say, and hardly a story survives. Cutting the tail
# removes slips of the tongue, words that the model itself thinks unlikely. It cannot
# remove errors of *memory*, a toy that turns into another two sentences later, because
# there the model puts its weight on the wrong word. Forty stories leave an uncertainty
# of about eight points (one standard error), so believe the collapse at high
# temperature before the order of the others. And boldness has a price that this count
# does not show: greedy writes one story for ever.
#
# And the time? {numref}`fig-time-per-token` measures each token of one text, with the
# cache and without, as the text grows:

# %% mystnb={"code_prompt_show": "Measure and draw the time per token, with and without the cache", "figure": {"caption": "Without a cache a token takes the longer, the more stand before it: the work grows with the text. With it the line stays flat.", "name": "fig-time-per-token"}, "image": {"alt": "Two lines over the number of tokens in the text, 1 to 128. Without a cache the milliseconds per token rise steadily; with a cache they stay flat, well below."}} tags=["hide-input"]
from course.figures.generation import time_per_token

figure, ratio = time_per_token(model, tokenizer.eot_token)
figure

# %% [markdown]
# For the whole text that makes

# %%
print(f"{ratio:.1f} times as fast with the cache")

# %% [markdown]
# That is far less than a count of positions would promise. Positions are not time: a
# pass over one position has to call every layer and fetch every weight just as a pass
# over a hundred does, and in a model of any size that is most of the work while the
# text is short. The gain grows with the *length* of the text, where the arithmetic of
# all those positions outweighs the fetching. This is also why batches pay: eight texts
# share one fetching.
#
# Weights of 16 bits would halve the fetching. But for one text on a CPU they gain
# nothing: a layer's product has a single row then, and PyTorch's routine for that is no
# faster in bfloat16 than in float32, for small models slower
# (`benchmarks/generation.py` measures both). So models are loaded in 32 bits, and write
# in them. Where many texts are written at once by a processor with 16-bit units, or on
# a GPU, `model.bfloat16()` before `generate` pays.
#
# ## Is it right?
#
# [The model's own sampler](#gpt/let-it-write) fits a dozen lines: it reads the whole
# text again for every token, one text at a time. Slow, but hard to get wrong.
# Everything that was built here must give the very tokens that it gives, since both
# draw the same random numbers:

# %% mystnb={"code_prompt_show": "Imports"} tags=["hide-input"]
from slm.model.gpt import sample_tokens

# %% tags=["nbval-check-output"]
prompt, n = tokens.tolist(), 60
plain = sample_tokens(model, prompt, n, seed=5, vocab_size=tokenizer.n_vocab)
sampling = Sampling(max_tokens=n, seed=5, vocab_size=tokenizer.n_vocab)
fast = [token for (token,) in generate_tokens(model, [prompt], sampling)]
print(
    f"the plain sampler, {len(plain)} tokens: {'equal' if fast == plain else 'OTHERS'}"
)

# %% [markdown]
# Then the properties that a broken loop would not have. A cache changes nothing, also
# when the window slides; a row of a batch is what it would have been alone; a stream in
# pieces is the text in one; and the same seed gives the same text.

# %% tags=["nbval-check-output"]
prompts = [opening, "", stories.sample(seed=3)[:60]]
chosen = {"max_tokens": 40, "temperature": 0.8, "top_p": 0.9}
together = generate(model, tokenizer, prompts, seed=5, **chosen)


def compare(claim: str, ours: list[str], expected: list[str]) -> None:
    verdict = "equal" if ours == expected else "NOT EQUAL"
    print(f"{claim}, {len(expected)} text(s): {verdict}")


uncached = generate(model, tokenizer, prompts, seed=5, use_cache=False, **chosen)
compare("with and without a cache", together, uncached)
slide = {"max_tokens": model.config.context_length + 20, "overflow": "slide"}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that the window is full
    slid, slid_uncached = (
        [generate(model, tokenizer, "", stop=False, use_cache=cache, **slide)]
        for cache in (True, False)
    )
compare("the same beyond the window", slid, slid_uncached)
alone = [
    generate(model, tokenizer, text, seed=5 + row, **chosen)
    for row, text in enumerate(prompts)
]
compare("a batch and its rows alone", together, alone)
pieces = stream(model, tokenizer, opening, seed=5, **chosen)
compare("a stream and the whole", ["".join(pieces)], together[:1])
again = generate(model, tokenizer, prompts, seed=5, **chosen)
compare("the same seed again", again, together)

# %% [markdown]
# ## Exercises
#
# Each check is handed your own function, and says what is wrong with it.
#
# ### 1. Min-p
#
# Top-p keeps tokens until a sum is reached. *Min-p* (Nguyen et al. 2025) asks something
# simpler: is this token at least `min_p` times as likely as the likeliest one? What
# fails is removed, and the rest is scaled up to sum to one again.

# %% tags=["exercise"]
from course import check


def min_p_filter(probabilities: Tensor, min_p: float) -> Tensor:
    """Probabilities (B, V) in, probabilities (B, V) out."""
    raise NotImplementedError("your turn")


check.min_p(min_p_filter)

# %% [markdown]
# What the check says to a typical wrong answer, here one that compares with `min_p`
# itself:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input"]
def compares_with_min_p(probabilities: Tensor, min_p: float) -> Tensor:
    left = probabilities * (probabilities >= min_p)
    return left / left.sum(-1, keepdim=True)


check.min_p(compares_with_min_p)

# %% [markdown]
# <details><summary>Solution: <code>min_p_filter</code></summary>
#
# The threshold is relative to each row's own largest probability, so it has to keep its
# axis to line up.
#
# ```python
# def min_p_filter(probabilities, min_p):
#     kept = probabilities >= min_p * probabilities.amax(-1, keepdim=True)  # (B, V)
#     left = probabilities * kept
#     return left / left.sum(-1, keepdim=True)
# ```
# </details>
#
# ### 2. How likely is this text?
#
# Generation draws from the model's probabilities; turned around, they say how much the
# model *expected* a given continuation: the sum of $\log p$ over its tokens. Write it,
# for a `model` that maps tokens `(B, T)` to logits `(B, T, V)`. One call of the model
# is enough. Mind which position predicts which token.


# %% tags=["exercise"]
def log_probability(model, prompt: list[int], continuation: list[int]) -> float:
    """Nats: log of the probability that `prompt` is continued by exactly this."""
    raise NotImplementedError("your turn")


check.log_probability(log_probability)

# %% [markdown]
# What the check says to one that looks a token up at its own position:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input"]
def reads_its_own_position(model, prompt: list[int], continuation: list[int]) -> float:
    log_p = model(torch.tensor([prompt + continuation]))[0].log_softmax(-1)  # (T, V)
    predicted = log_p[len(prompt) :]
    return float(predicted.gather(-1, torch.tensor(continuation)[:, None]).sum())


check.log_probability(reads_its_own_position)

# %% [markdown]
# <details><summary>Solution: <code>log_probability</code></summary>
#
# The logits at position $t$ predict the token at $t + 1$. The first token of the
# continuation is therefore predicted at the *last* position of the prompt, and the last
# token is never put in.
#
# ```python
# def log_probability(model, prompt, continuation):
#     tokens = torch.tensor([prompt + continuation])  # (1, T)
#     log_p = model(tokens[:, :-1])[0].log_softmax(-1)  # (T - 1, V)
#     predicted = log_p[len(prompt) - 1 :]  # one row for each token of the continuation
#     return float(predicted.gather(-1, tokens[0, len(prompt) :, None]).sum())
# ```
# </details>
#
# ### 3. Sliding one token at a time
#
# Our window jumps by half, because learned positions make a cache worthless once it
# slides. Models with *relative* positions can keep a cache that always holds the last
# `capacity` positions and forgets the oldest. Write it: called with new keys and values
# `(B, H, T, K)`, it returns the last `capacity` positions, or all if there are fewer.
# (With this course's attention it serves one new token at a time; a long prompt at once
# would need the window mask of [attention](#attention/one-more-exercise) as well.)


# %% tags=["exercise"]
class SlidingCache:
    """Keeps keys and values of the last `capacity` positions."""

    def __init__(self, capacity: int) -> None:
        raise NotImplementedError("your turn")

    def __call__(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("your turn")


check.sliding_cache(SlidingCache)

# %% [markdown]
# What the check says to one that keeps everything and cuts only what it returns:


# %% mystnb={"code_prompt_show": "The wrong answer"} tags=["hide-input"]
class KeepsEverything:
    def __init__(self, capacity: int) -> None:
        self.capacity, self.k, self.v = capacity, None, None

    def __call__(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.k = k if self.k is None else torch.cat([self.k, k], dim=2)
        self.v = v if self.v is None else torch.cat([self.v, v], dim=2)
        return self.k[:, :, -self.capacity :], self.v[:, :, -self.capacity :]


check.sliding_cache(KeepsEverything)

# %% [markdown]
# <details><summary>Solution: <code>SlidingCache</code></summary>
#
# Join along time, which is axis 2 of `(B, H, T, K)`, and keep the end. `cat` copies
# everything at every token; a ring buffer would not, at the price of positions out of
# order.
#
# ```python
# class SlidingCache:
#     def __init__(self, capacity):
#         self.capacity, self.k, self.v = capacity, None, None
#
#     def __call__(self, k, v):
#         self.k = k if self.k is None else torch.cat([self.k, k], dim=2)
#         self.v = v if self.v is None else torch.cat([self.v, v], dim=2)
#         end = slice(-self.capacity, None)
#         self.k, self.v = self.k[:, :, end], self.v[:, :, end]
#         return self.k, self.v
# ```
# </details>
#
# ## What you have now
#
# A model that writes: with any taste for risk, many texts at once, computing each
# position only once, and without a character cut in half. [The next chapter](#cost)
# asks what all this costs.

# %%
course.summary("slm/generation.py")
