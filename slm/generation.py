"""Write text with a model: choosing tokens, the KV cache, many texts at once.

    print(generate(model, tokenizer, "Once upon a time", temperature=0.8))

Exported from chapters/14_generation.py; edit it there.
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

from slm.data.tokenizer import Tokenizer
from slm.errors import SlmError, settings
from slm.hardware import room
from slm.model.gpt import GPT

# Temperature, top-k, top-p


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


# Remember keys and values


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


# When the window is full


def _window_start(length: int, context_length: int) -> int:
    """First of `length` tokens that fits: 0, then in jumps that leave half a window."""
    jump = context_length + 1 - max(1, context_length // 2)
    return jump * max(0, math.ceil((length - context_length) / jump))


# All settings in one place


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


# One position after another


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


def _tell_overflow(overflow: str, context: int) -> None:
    """Say that the window is full, and what happens now."""
    goes_on = "the model now sees only the last part of the text"
    happens = goes_on if overflow == "slide" else "the text ends here"
    full = f"the context of {context} tokens is full"
    warnings.warn(f"{full}: {happens} (overflow={overflow!r}).", stacklevel=3)


# Text in, text out


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
