"""Generation.

How a model that only ever predicts one token writes a story. You turn logits into choices, find out why the obvious
loop wastes nearly all its work, and export `generate` and `stream`, which write many texts at once and compute each
key and value only once.

Exported from chapters/07_generation.py; edit it there.
"""

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


def _window_start(length: int, context_length: int) -> int:
    """First token that the model sees of `length` tokens: 0 while all fit, then in jumps that leave half a window."""
    jump = context_length + 1 - max(1, context_length // 2)
    return jump * max(0, math.ceil((length - context_length) / jump))


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
