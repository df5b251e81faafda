"""Figures of chapter 4: where chance enters a story, how merges build words, what a vocabulary's size buys."""

import html
from collections.abc import Sequence

import matplotlib.pyplot as plt
import regex
from IPython.display import HTML
from matplotlib.figure import Figure

from course.plots import COLORS
from slm.tokenizer import PATTERN, STORIES_VOCAB_SIZE, Tokenizer, merge, train_bpe

TOKEN = "display:inline-block;padding:0 .15em;margin:1px;border:1px solid rgba(128,128,128,.5);border-radius:3px;white-space:pre"


def surprisal_strip(text: str, nats: Sequence[float], full: float = 2.5) -> HTML:
    """A text whose characters are coloured by their surprisal, with the value on hover; `full` nats get full colour."""
    spans = []
    for character, value in zip(text, nats, strict=True):
        shade = 0.85 * min(value, full) / full if value > 1e-9 else 0.0
        style = f"background:rgba(249,115,22,{shade:.2f})" if shade > 0.005 else ""
        name = html.escape(character, quote=True)
        spans.append(f'<span title="{name}: {abs(value):.2f} nats" style="{style}">{name}</span>')
    free = sum(value < 0.01 for value in nats) / max(len(text), 1)
    caption = f"{sum(nats):.1f} nats in {len(text)} characters; {free:.0%} of the characters cost nothing."
    return HTML(
        '<div style="font-family:monospace;line-height:1.9;max-width:46em;white-space:pre-wrap;color:currentColor">'
        f'{"".join(spans)}</div><div style="font-size:.85em;opacity:.75;margin-top:.6em">{caption}</div>'
    )


def merges_table(text: str, ranks: dict[bytes, int]) -> HTML:
    """One row per merge that changes the text's words: which token was made, and what the text looks like after it."""
    words = [[bytes([byte]) for byte in word.encode()] for word in regex.findall(PATTERN, text)]
    rows = [("bytes", words)]
    while True:
        pairs = {a + b: (a, b) for parts in words for a, b in zip(parts, parts[1:], strict=False) if a + b in ranks}
        if not pairs:
            break
        made = min(pairs, key=lambda token: ranks[token])
        words = [merge(parts, pairs[made]) for parts in words]
        rows.append((f"merge {ranks[made] - 255}", words))
    cells = []
    for label, parts_of in rows:
        tokens = "".join(
            f'<span style="{TOKEN}">{html.escape(part.decode("utf-8", "replace"))}</span>'
            for parts in parts_of
            for part in parts
        )
        count = sum(map(len, parts_of))
        cells.append(
            f'<tr style="background:none"><td style="text-align:right;opacity:.7;padding:.1em .8em">{label}</td>'
            f'<td style="text-align:left;font-family:monospace">{tokens}</td><td style="text-align:right;opacity:.7">{count}</td></tr>'
        )
    head = '<tr style="background:none"><th></th><th style="text-align:left">tokens</th><th>number</th></tr>'
    return HTML(
        f'<table style="border-collapse:collapse;font-size:.9em;color:currentColor">{head}{"".join(cells)}</table>'
    )


def vocabulary_figure(texts: Sequence[str]) -> Figure:
    """Bytes per token against vocabulary size, on half of the texts after training on the other half."""
    seen, unseen = texts[: len(texts) // 2], list(texts[len(texts) // 2 :])
    sizes = [257, 272, 288, 320, 384, 448, 512, 640, 768, 896, 1024, 1280]
    ranks = train_bpe(seen, max(sizes))
    ratios = []
    for size in sizes:
        tokenizer = Tokenizer("sized", {token: rank for token, rank in ranks.items() if rank < size - 1})
        n_tokens = sum(len(ids) for ids in tokenizer.encode_ordinary_batch(unseen, num_threads=1))
        ratios.append(sum(len(text.encode()) for text in unseen) / n_tokens)
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.plot(sizes, ratios, "o-", color=COLORS[0])
    axes.axvline(STORIES_VOCAB_SIZE, color=COLORS[1], linestyle=":", linewidth=1.2)
    axes.annotate("ours", (STORIES_VOCAB_SIZE, ratios[0]), textcoords="offset points", xytext=(5, 0), color=COLORS[1])
    axes.set(xlabel="vocabulary size V", ylabel="bytes per token", ylim=(0, None))
    plt.close(figure)
    return figure
