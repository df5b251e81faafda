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
#     - slm/generation.py
# ---

# %% [markdown]
# # Generation
#
# How a model that only ever predicts one token writes a story. You turn logits into choices, find out why the obvious loop wastes nearly all its work,
# and export `generate` and `stream`, which write many texts at once and compute each key and value only once.
#
# *Runs in about 10 seconds on two cores, after the model of chapter 6 has been trained.*

# %%
import course

course.start()

# %%
#| export
import codecs
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.gpt import GPT
from slm.tokenizer import Tokenizer

# %% [markdown]
# ## The idea
#
# You need a model that has learned something. This asks for the one that chapter 6 trains; if you have trained it already, it is loaded at once.

# %%
from slm.config import load_config
from slm.trainer import train

run = train(load_config("configs/stories_cpu.yaml"), verbose=False)
model, tokenizer = run.model.eval(), run.tokenizer

# %% [markdown]
# Give it the beginning of a story. Its answer is not a word but a number for each token of the vocabulary: the logits at the last position. A softmax turns them into
# probabilities. Writing means: draw one token, append it, ask again. All the art is in how you draw.
#
# Mostly the model is sure: after "Once upon a" comes "time". The art matters where it is not, so cut a story where its next token is most open, where the entropy of its probabilities is largest:

# %%
from slm import stories

start_of_text = tokenizer.eot_token  # the end of the text before it: so every story begins in training
story = torch.tensor([start_of_text, *tokenizer.encode(stories.sample(seed=7))])  # (T,)
with torch.inference_mode():
    log_p = model(story[None])[0].log_softmax(-1)  # (T, V)
entropy = -(log_p.exp() * log_p).sum(-1)  # (T,), in nats
tokens = story[: int(entropy[:40].argmax()) + 1]
logits = log_p[len(tokens) - 1][None]  # (B, V) with B = 1; the softmax of log p is p again
opening = tokenizer.decode(tokens[1:].tolist())
opening

# %% tags=["hide-input"]
from course.figures.chapter_07 import next_token_bars

next_token_bars(logits[0], tokenizer)

# %% [markdown]
# Each panel holds the same logits, and says in its corner how many tokens can still be drawn and how likely those are that have no bar here. From left to right the *temperature* rises and the bars level out. In the lower row *top-p* has cut away the tail (grey) and what is
# left has grown to fill the gap. The rest of this chapter builds these two controls, and then makes the loop around them fast.
#
# ## From logits to a choice
#
# Let $z \in \mathbb{R}^V$ be the logits of one position. With a temperature $\tau > 0$ the probability of token $i$ is
#
# $$p_i = \frac{e^{z_i / \tau}}{\sum_{j=1}^{V} e^{z_j / \tau}}$$
#
# A difference of one between two logits makes one token $e^{1/\tau}$ times as likely as the other. A small $\tau$ exaggerates differences, a large one forgives them. Five logits, where
# you can follow every digit:

# %% tags=["nbval-check-output"]
z = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]])  # (B, V)
for tau in (2.0, 1.0, 0.5, 0.1):
    print(f"temperature {tau}:", " ".join(f"{p:.3f}" for p in torch.softmax(z / tau, -1)[0].tolist()))

# %% [markdown]
# **Greedy** is the limit $\tau \to 0$: all probability on the largest logit. The formula divides by zero there, so it needs a case of its own. Greedy looks like the obvious
# choice, and for a fact it is one. For a story it is not: the likeliest token each time does not make a likely story, and it makes the same one every time.
#
# At $\tau = 1$ you draw from what the model believes. Its mistake is the tail: a thousand tokens here, fifty thousand in GPT-2, each nearly impossible, but not all together. Two ways to cut it:
#
# - **top-k** keeps the `k` largest. Simple, but blind: where only two tokens make sense it keeps 40, where a hundred do, it keeps 40.
# - **top-p** keeps the smallest set whose probabilities add up to at least `p`. Where the model is sure, that is one token; where it is not, many.
#
# Top-p by hand: sort, add up from the top, and keep a token if what stands *before* it does not reach `p` yet. So the token that crosses the line stays, and there is always at least one.

# %% tags=["nbval-check-output"]
p = torch.softmax(z, -1)[0]  # already sorted
before = p.cumsum(0) - p  # what is larger than this token, together
[(round(q, 3), round(b, 3), b < 0.9) for q, b in zip(p.tolist(), before.tolist(), strict=True)]

# %% [markdown]
# ## The real one
#
# The three steps in the order of `transformers`: temperature, top-k, top-p. (Others, llama.cpp among them, divide by the temperature last, so the same numbers mean another set there.) A token is removed by the logit $-\infty$, *before* the softmax, so that the rest adds up to one again.
# Two details come from experience. The maximum is subtracted before the division, so that a small temperature cannot overflow. And top-p needs to put the verdicts, which it reached in
# sorted order, back into the order of the vocabulary: `scatter` does that.


# %%
#| export
def next_token_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Probabilities from which the next token is drawn.

    Args:
        logits: `(B, V)`, of any floating type.
        temperature: Divides the logits. 0, or nearly, puts all probability on the largest (greedy).
        top_k: Keep only the `top_k` largest logits (and those equal to the last of them).
        top_p: Keep only the smallest set of tokens whose probabilities reach `top_p` (nucleus sampling, Holtzman et
            al. 2020).

    Returns:
        `(B, V)` float32; rows sum to one.
    """
    logits = logits.float()
    if temperature < torch.finfo(torch.float32).tiny:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if top_k is not None:
        smallest_kept = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    if top_p is not None and top_p < 1:
        probabilities, order = logits.softmax(-1).sort(descending=True)  # (B, V) each
        removed = probabilities.cumsum(-1) - probabilities >= top_p  # what stands before a token is already enough
        back = torch.empty_like(removed).scatter_(-1, order, removed)  # (B, V): back[order[i]] = removed[i]
        logits = logits.masked_fill(back, -torch.inf)
    return logits.softmax(-1)


# %% tags=["nbval-check-output"]
for settings in ({"temperature": 0}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}):
    print(settings, [round(p, 3) for p in next_token_probabilities(z.flip(-1), **settings)[0].tolist()])

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
tokenizer.decode(greedy[1:].tolist())

# %% [markdown]
# It works, and it is wasteful. To choose one token the model computes *all* positions again, although none of them has changed: a token sees only what comes before it, so its keys
# and values are the same whatever you append. Count positions. A prompt of $P$ tokens and $N$ new ones cost
#
# $$\underbrace{\sum_{n=0}^{N-1} (P + n) = NP + \tfrac{N(N-1)}{2}}_{\text{all of them each time}} \qquad\text{against}\qquad \underbrace{P + N - 1}_{\text{each of them once}}$$

# %% tags=["nbval-check-output"]
P, N = 32, 128
every_time, once = sum(P + n for n in range(N)), P + N - 1
every_time, once, round(every_time / once)

# %% [markdown]
# ## Remember keys and values
#
# What does a new token need of the old ones? Only their keys and values, in every layer; never their queries, and nothing of the feed-forward. So keep those: this is the **KV cache**. Since
# chapter 1 attention takes a `cache`, a callable that is handed the new keys and values and gives back all so far. Here is what it must do.
#
# The obvious way to append is `torch.cat`, which copies everything at every token. Instead, allocate the longest that can come, once, write each new key into its place, and hand out a *view* of the part
# that is filled.


# %%
#| export
class KVCache:
    """Keys and values of one layer, kept in buffers that are allocated once.

    Attention calls it with the keys and values of the new positions and gets those of all positions so far.

    Args:
        capacity: How many positions fit.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def __call__(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep k and v `(B, H, T, K)`; return views `(B, H, S, K)` of all S positions kept so far."""
        if self._keys is None or self._values is None:
            B, H, _, K = k.shape
            self._keys, self._values = k.new_empty(B, H, self.capacity, K), v.new_empty(B, H, self.capacity, K)
        start, end = self.length, self.length + k.size(2)
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, and {end} were put in.")
        self.length = end
        self._keys[:, :, start : self.length] = k
        self._values[:, :, start : self.length] = v
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def clear(self) -> None:
        """Forget all positions; the buffers stay."""
        self.length = 0


# %% [markdown]
# With one cache for each layer the model is handed only what is new: the whole prompt first, then one token at a time. `start` says which position the first of them has, because a single token
# cannot know. Forget it, and every new token believes that it is the first of the text.


# %%
def write_with_cache(tokens: Tensor, steps: int) -> Tensor:
    """Greedy continuation of tokens (T,), each position computed once; returns (T + steps,)."""
    caches = [KVCache(len(tokens) + steps) for _ in model.blocks]
    new = tokens
    for _ in range(steps):
        logits = model(new[None], caches, start=len(tokens) - len(new))[:, -1]  # (1, V)
        new = logits.argmax(-1)  # (1,)
        tokens = torch.cat([tokens, new])
    return tokens


# %% tags=["nbval-check-output"]
with torch.inference_mode():
    same = torch.equal(write_with_cache(tokens, steps=30), greedy)
    expected = model(greedy[None])[0, -1]  # (V,), the whole text at once
    for name, start in (("with start", len(greedy) - 1), ("start forgotten", 0)):
        caches = [KVCache(len(greedy)) for _ in model.blocks]
        model(greedy[None, :-1], caches)
        error = (model(greedy[None, -1:], caches, start=start)[0, -1] - expected).abs().max().item()
        print(f"{name}: logits off by less than 0.001: {error < 0.001}")
same

# %% [markdown]
# Token for token the same. The logits differ in the last digits, because a matrix product of another shape adds in another order; the choice, short of a near-tie, does not.
#
# ## Many texts at once
#
# Writing one token reads every weight of the model, and does hardly any arithmetic with each. Writing eight texts at once reads them just as often. So batches are nearly free, if it were not for prompts of
# unequal length. The usual answer is to pad on the left, mask the padding, and shift the positions, and each of the three is a place for a bug. There is a simpler one. Start all rows at position 0
# and let them run side by side. At each position a row that still has a prompt token takes it; a row whose prompt has ended takes what it draws:
#
# | position | 0 | 1 | 2 | 3 | 4 | 5 |
# |---|---|---|---|---|---|---|
# | row 0 | Once | upon | *a* | *time* | *there* | *was* |
# | row 1 | One | sunny | day | a | *small* | *fox* |
#
# The price: beyond the end of the shortest prompt, prompts are read one position at a time. Put prompts of similar length together. Nothing is padded, so there is nothing to mask, and the rows cannot influence each other. Each row has a random generator of its own: row `r` draws with `seed + r`, exactly as if it had been written alone with that seed.
#
# ## When the window is full
#
# The model has `context_length` positions and not one more. Then `overflow="stop"` ends the text, and `overflow="slide"` keeps its last half and goes on. Why half, and not only the oldest token? Because
# positions are learned: when the window moves, *every* token gets another position, and every key and value in the cache is wrong. The cache must be filled again, so let it be rare. The rule is a
# function of the number of tokens alone, so it is the same with and without cache. With a window of 8, nine tokens do not fit, so the oldest
# five are dropped and four stay; four more fill the window, and one more makes it drop five again: 8 + 1 - 4 = 5 each time.


# %%
#| export
def _window_start(length: int, context_length: int) -> int:
    """First token that the model sees of `length` tokens: 0 while all fit, then in jumps that leave half a window."""
    jump = context_length + 1 - max(1, context_length // 2)
    return jump * max(0, math.ceil((length - context_length) / jump))


# %% tags=["nbval-check-output"]
[(n, _window_start(n, 8)) for n in (1, 8, 9, 13, 14, 18, 19)]  # a window of 8 tokens

# %% [markdown]
# ## The real loop
#
# It yields after each position, so whoever calls it can print, stop, or throw away. Logits are made for the last position only: at GPT-2's size a prompt of 1,000 tokens would otherwise cost 200 MB of
# logits that nobody reads. `torch.inference_mode()` switches off all bookkeeping for gradients. Dropout is switched off too, and put back before each token is handed out: whoever reads a stream may train between two tokens,
# read two streams in turns, or never come back for the rest.


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


def generate_tokens(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_token: int | None = None,
    overflow: str = "stop",
    use_cache: bool = True,
    vocab_size: int | None = None,
) -> Iterator[list[int | None]]:
    """Continue token sequences side by side, one position at a time.

    Row r draws with `seed + r`: it is the text that it would have been alone with that seed on the same device, and
    with or without a cache, up to rounding. (In 16 bits a near-tie between two tokens may fall differently.)

    Args:
        model: In any mode; it is in evaluation mode while it computes, and in its own between two tokens.
        prompts: Token ids, at least one a row; lengths may differ.
        max_tokens: New tokens a row.
        temperature, top_k, top_p: See `next_token_probabilities`.
        seed: Of the random generators.
        stop_token: A row ends with this token.
        overflow: With a full window "stop" ends the text; "slide" goes on with the last half of it.
        use_cache: Keep keys and values instead of computing them again.
        vocab_size: Draw only from the first `vocab_size` tokens (a model's vocabulary may be padded).

    Yields:
        For each position the new token of each row, None for a row that is in its prompt or has ended.

    Raises:
        ValueError: A setting out of range, or a prompt without a token; at the call, not at the first token.
    """
    _check_settings(max_tokens, temperature, top_k, top_p, overflow)
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {row} has no token; a text begins with at least one, such as end-of-text.")
    context = model.config.context_length
    ends = [len(prompt) + max_tokens for prompt in prompts]

    @torch.inference_mode()
    def steps() -> Iterator[list[int | None]]:
        longest = max(ends) if overflow == "slide" else min(max(ends), max(context + 1, *map(len, prompts)))
        text = torch.zeros(len(prompts), longest, dtype=torch.int64, device=model.device)  # (B, T): prompts, then zeros
        for row, prompt in enumerate(prompts):
            text[row, : len(prompt)] = torch.tensor(prompt)
        generators = [torch.Generator(model.device).manual_seed(seed + row) for row in range(len(prompts))]
        caches = [KVCache(min(context, longest)) for _ in model.blocks] if use_cache else None
        start, cached = 0, 0  # the model sees text[:, start:n], of which the cache holds text[:, start:cached]
        for n in range(min(map(len, prompts)), max(ends)):
            if _window_start(n, context) > start:
                _tell_overflow(overflow, context, first_time=start == 0)
                if overflow == "stop":
                    return
                start = cached = _window_start(n, context)
                for cache in caches or ():
                    cache.clear()
            with _evaluation(model):
                newest = model.hidden(text[:, cached:n], caches, start=cached - start)[:, -1]  # (B, D)
            logits = F.linear(newest, model.token_embedding.weight[:vocab_size])  # (B, V), of the last position only
            cached = n if use_cache else start
            probabilities = next_token_probabilities(logits, temperature, top_k, top_p)
            new: list[int | None] = [None] * len(prompts)
            for row, prompt in enumerate(prompts):
                if len(prompt) <= n < ends[row]:  # else it keeps what stands there: its prompt, or zeros nobody reads
                    text[row, n] = torch.multinomial(probabilities[row], 1, generator=generators[row])
                    new[row] = token = int(text[row, n])
                    if token == stop_token:
                        ends[row] = n + 1
            yield new
            if n + 1 >= max(ends):
                return

    return steps() if prompts and max_tokens else iter(())


def _tell_overflow(overflow: str, context: int, first_time: bool) -> None:
    """Say once that the window is full, and what happens then."""
    if first_time:
        then = "the text ends here" if overflow == "stop" else "the model now sees only the last part of the text"
        warnings.warn(f"the context of {context} tokens is full: {then} (overflow={overflow!r}).", stacklevel=3)


def _check_settings(max_tokens: int, temperature: float, top_k: int | None, top_p: float | None, overflow: str) -> None:
    """Refuse what cannot be meant, in one sentence."""
    if max_tokens < 0:
        raise ValueError(f"max_tokens is {max_tokens}; it must be 0 or more.")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or a positive number.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be 1 or more, or None to keep all tokens.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1, or None to keep all tokens.")
    if overflow not in ("slide", "stop"):
        raise ValueError(f"overflow is {overflow!r}; it must be 'slide' or 'stop'.")


# %% [markdown]
# ## Text in, text out
#
# Around the loop stand two functions for people, who have text. In training every story begins behind an end-of-text token, so a prompt is put behind one here as well, and an empty prompt needs no rule of its own.
#
# Streaming has a trap. Tokens are pieces of *bytes*, and a character outside plain English is several bytes, which may fall into different tokens. Decode each token alone and you get this:

# %% tags=["nbval-check-output"]
pieces = [tokenizer.decode_single_token_bytes(token) for token in tokenizer.encode("a café in Zürich")]
"".join(piece.decode("utf-8", errors="replace") for piece in pieces)

# %% [markdown]
# An incremental decoder holds an unfinished character back until the rest of it arrives:

# %% tags=["nbval-check-output"]
decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
"".join(decoder.decode(piece) for piece in pieces)

# %% [markdown]
# All arguments are checked before anything is computed; a wrong one is answered in one sentence.


# %%
#| export
def _encode_prompt(model: GPT, tokenizer: Tokenizer, prompt: str, overflow: str) -> list[int]:
    """The prompt behind an end-of-text token, as every text stands in training."""
    tokens = [tokenizer.eot_token, *tokenizer.encode(prompt)]
    vocab_size, context = model.config.vocab_size, model.config.context_length
    if max(tokens) >= vocab_size:
        raise ValueError(
            f"the prompt holds token {max(tokens)}, but the model knows only {vocab_size}: "
            f"tokenizer {tokenizer.name!r} is not the one that it was trained with."
        )
    if len(tokens) > context and overflow == "stop":
        raise ValueError(
            f"the prompt has {len(tokens)} tokens with its end-of-text token, but the model's context holds {context}: "
            "shorten it, or ask for overflow='slide'."
        )
    return tokens


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
    overflow: str = "stop",
    use_cache: bool = True,
) -> Iterator[str]:
    """Write one text and hand it out while it grows, whole characters only; arguments as in `generate`.

    Yields:
        The prompt, then pieces; together they are what `generate` returns.

    Raises:
        ValueError: As `generate`, at the call and not at the first piece.
    """
    tokens = _encode_prompt(model, tokenizer, prompt, overflow)
    vocab_size = min(tokenizer.n_vocab, model.config.vocab_size)
    stop_token = tokenizer.eot_token if stop else None
    steps = generate_tokens(
        model, [tokens], max_tokens, temperature, top_k, top_p, seed, stop_token, overflow, use_cache, vocab_size
    )

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
    overflow: str = "stop",
    use_cache: bool = True,
) -> str | list[str]:
    """Continue one text, or many at once.

    Args:
        model: In any mode; while it computes, dropout is off.
        tokenizer: The one that the model was trained with.
        prompt: The beginning; "" begins a new text. Several prompts, of any lengths, are continued side by side.
        max_tokens: New tokens a text, at most.
        temperature: 0 is greedy, 1 draws from the model's own probabilities.
        top_k: Draw only from the `top_k` likeliest tokens.
        top_p: Draw only from the likeliest tokens that together reach this probability.
        seed: The same seed gives the same text on the same device; prompt number r draws with `seed + r`.
        stop: End at an end-of-text token.
        overflow: When the model's context is full, "stop" ends the text, "slide" goes on with the last half of the
            window; a warning says so.
        use_cache: Keep keys and values instead of computing them again; the text is the same (`generate_tokens`).

    Returns:
        The prompt and what follows it; a list of them for several prompts.

    Raises:
        ValueError: A setting out of range, a prompt longer than the context (unless it slides), a foreign tokenizer.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        return []
    rows = [_encode_prompt(model, tokenizer, text, overflow) for text in prompts]
    vocab_size = min(tokenizer.n_vocab, model.config.vocab_size)
    stop_token = tokenizer.eot_token if stop else None
    written: list[list[int]] = [[] for _ in rows]
    for new in generate_tokens(
        model, rows, max_tokens, temperature, top_k, top_p, seed, stop_token, overflow, use_cache, vocab_size
    ):
        for tokens, token in zip(written, new, strict=True):
            if token is not None and token != stop_token:
                tokens.append(token)
    texts = [text + tokenizer.decode(tokens) for text, tokens in zip(prompts, written, strict=True)]
    return texts[0] if isinstance(prompt, str) else texts


# %% [markdown]
# ## Use it
#
# A story, in the pieces in which `stream` hands it out. In a terminal you would print each as it comes; here a dot shows where one ends and the next begins.

# %%
"·".join(stream(model, tokenizer, opening, seed=1))

# %% [markdown]
# Here the corpus has an advantage that no real one has: its grammar can say whether a story is one of its own. So the effect of the settings can be *counted*. Forty stories each, all written at once:


# %%
def accepted(**settings) -> float:
    """Share of forty generated stories that the grammar accepts."""
    texts = generate(model, tokenizer, [""] * 40, max_tokens=model.config.context_length - 1, **settings)
    return sum(map(stories.accepts, texts)) / len(texts)


for settings in ({"temperature": 0.5}, {}, {"top_p": 0.95}, {"temperature": 1.5}):
    print(f"{settings or 'as the model believes'}: {accepted(**settings):.0%}")

# %% [markdown]
# A grammar is a strict judge: one wrong word among a hundred fails the story. At temperature 1.5 the tail has its say, and hardly a story survives. Cutting the tail removes slips of the tongue, words that the model itself thinks unlikely. It cannot
# remove errors of *memory*, a toy that turns into another two sentences later, because there the model puts its weight on the wrong word. Forty stories leave an uncertainty of about eight points
# (one standard error), so believe the collapse at high temperature before the order of the others. And boldness has a price that this count does not show: greedy writes one story for ever.
#
# And the time? Each token of one text, with the cache and without, as the text grows:

# %% tags=["hide-input"]
from course.figures.chapter_07 import time_per_token

figure, ratio = time_per_token(generate_tokens, model, tokenizer.eot_token)
figure

# %% [markdown]
# Without a cache each token is slower than the one before: the work grows with the text. With it the line stays flat. For the whole text that makes

# %%
print(f"{ratio:.1f} times as fast with the cache")

# %% [markdown]
# That is far less than a count of positions would promise. Positions are not time: a pass over one position has to call every layer and fetch every weight just as a pass over a hundred does, and in a model of any size
# that is most of the work while the text is short. The gain grows with the *length* of the text, where the arithmetic of all those positions outweighs the fetching. This is also why batches pay: eight texts share one fetching.
#
# ## Is it right?
#
# Each line is a property that a broken loop would not have.

# %% tags=["nbval-check-output"]
prompts = [opening, "", stories.sample(seed=3)[:60]]
settings = {"max_tokens": 40, "temperature": 0.8, "top_p": 0.9}
together = generate(model, tokenizer, prompts, seed=5, **settings)
alone = [generate(model, tokenizer, prompt, seed=5 + row, **settings) for row, prompt in enumerate(prompts)]
window = model.config.context_length
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    slid = [
        generate(model, tokenizer, "", max_tokens=window + 20, stop=False, overflow="slide", use_cache=use_cache)
        for use_cache in (True, False)
    ]
{
    "rows sum to one": bool(torch.allclose(next_token_probabilities(logits, 0.7, 50, 0.9).sum(-1), torch.ones(1))),
    "cached == uncached": generate(model, tokenizer, prompts, seed=5, use_cache=False, **settings) == together,
    "cached == uncached beyond the window": slid[0] == slid[1],
    "a batch == its rows alone": alone == together,
    "stream == generate": "".join(stream(model, tokenizer, opening, seed=5, **settings)) == together[0],
    "same seed, same text": generate(model, tokenizer, prompts, seed=5, **settings) == together,
}

# %% [markdown]
# ## Exercises
#
# Each check is handed your own function, and says what is wrong with it.
#
# ### 1. Min-p
#
# Top-p keeps tokens until a sum is reached. *Min-p* asks something simpler: is this token at least `min_p` times as likely as the likeliest one? What fails is removed, and the rest is scaled up to sum to one again.

# %% tags=["exercise"]
from course import check


def min_p_filter(probabilities: Tensor, min_p: float) -> Tensor:
    """Probabilities (B, V) in, probabilities (B, V) out."""
    raise NotImplementedError("your turn")


check.min_p(min_p_filter)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The threshold is relative to each row's own largest probability, so it has to keep its axis to line up.
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
# Generation draws from the model's probabilities; turned around, they say how much the model *expected* a given continuation: the sum of $\log p$ over its tokens. Write it, for a `model` that maps tokens `(B, T)` to logits `(B, T, V)`. One call of the
# model is enough. Mind which position predicts which token.


# %% tags=["exercise"]
def log_probability(model, prompt: list[int], continuation: list[int]) -> float:
    """Nats: log of the probability that the model continues `prompt` by exactly `continuation`."""
    raise NotImplementedError("your turn")


check.log_probability(log_probability)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The logits at position $t$ predict the token at $t + 1$. The first token of the continuation is therefore predicted at the *last* position of the prompt, and the last token is never put in.
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
# Our window jumps by half, because learned positions make a cache worthless once it slides. Models with *relative* positions can keep a cache that always holds the last `capacity` positions and forgets the oldest. Write it: called with new keys and values
# `(B, H, T, K)`, it returns the last `capacity` positions, or all if there are fewer. (With this course's attention it serves one new token at a time; a long prompt at once would need chapter 1's window mask as well.)


# %% tags=["exercise"]
class SlidingCache:
    """Keeps keys and values of the last `capacity` positions."""

    def __init__(self, capacity: int) -> None:
        raise NotImplementedError("your turn")

    def __call__(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("your turn")


check.sliding_cache(SlidingCache)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Join along time, which is axis 2 of `(B, H, T, K)`, and keep the end. `cat` copies everything at every token; a ring buffer would not, at the price of positions out of order.
#
# ```python
# class SlidingCache:
#     def __init__(self, capacity):
#         self.capacity, self.k, self.v = capacity, None, None
#
#     def __call__(self, k, v):
#         self.k = k if self.k is None else torch.cat([self.k, k], dim=2)
#         self.v = v if self.v is None else torch.cat([self.v, v], dim=2)
#         self.k, self.v = self.k[:, :, -self.capacity :], self.v[:, :, -self.capacity :]
#         return self.k, self.v
# ```
# </details>
#
# ## What you have now
#
# A model that writes: with any taste for risk, many texts at once, computing each position only once, and without a word cut in half. The next chapter asks what all this costs.

# %%
course.summary("slm/generation.py")
