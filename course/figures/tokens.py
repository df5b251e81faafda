"""Figures of tokens: how merges build words, and what the size of a vocabulary buys."""

import html
from collections.abc import Sequence

import matplotlib.pyplot as plt
import regex
from IPython.display import HTML
from matplotlib.figure import Figure

from course.plots import COLORS
from slm.data.tokenizer import (
    PATTERN,
    STORIES_VOCAB_SIZE,
    Tokenizer,
    encode_word,
    train_bpe,
)

STYLE = (
    "<style>.grown span{display:inline-block;padding:0 .15em;margin:1px;border:1px solid rgba(128,128,128,.5);"
    "border-radius:3px;white-space:pre}.grown span.new{background:rgba(249,115,22,.3)}"
    ".grown td.n{text-align:right;vertical-align:top;opacity:.85;padding:.2em .6em}</style>"
)


def story_growing(text: str, ranks: dict[bytes, int], after: Sequence[int]) -> HTML:
    """A text as tokens after so many merges: one row for each, what is new since the row above in colour."""
    words = [word.encode() for word in regex.findall(PATTERN, text)]
    size = len(text.encode())
    rows, before = [], 0
    for n in after:
        known = {token: rank for token, rank in ranks.items() if rank < 256 + n}
        bytes_of = {rank: token for token, rank in known.items()}
        ids = [i for word in words for i in encode_word(word, known)]
        boxes = "".join(
            f"<span{' class=new' if i >= 256 + before else ''}>"
            f"{html.escape(bytes_of[i].decode('utf-8', 'replace'))}</span>"
            for i in ids
        )
        count, before = len(ids), n
        number = "<td class=n>"
        rows.append(
            f'<tr style="background:none">{number}{n}</td><td style="text-align:left;font-family:monospace">{boxes}</td>'
            f"{number}{count}</td>{number}{size / count:.2f}</td></tr>"
        )
    head = "".join(
        f"<th>{name}</th>"
        for name in ("merges", "the story in tokens", "tokens", "bytes per token")
    )
    return HTML(
        f'{STYLE}<div class="grown" style="overflow-x:auto"><table style="border-collapse:collapse;font-size:.85em;color:currentColor">'
        f'<tr style="background:none">{head}</tr>{"".join(rows)}</table></div>'
    )


def vocabulary_figure(texts: Sequence[str]) -> Figure:
    """Bytes per token against vocabulary size, on half of the texts after training on the other half."""
    seen, unseen = texts[: len(texts) // 2], list(texts[len(texts) // 2 :])
    sizes = [257, 272, 288, 320, 384, 448, 512, 640, 768, 896, 1024, 1280]
    ranks = train_bpe(seen, max(sizes))
    ratios = []
    for size in sizes:
        tokenizer = Tokenizer(
            "sized", {token: rank for token, rank in ranks.items() if rank < size - 1}
        )
        n_tokens = sum(
            len(ids) for ids in tokenizer.encode_ordinary_batch(unseen, num_threads=1)
        )
        ratios.append(sum(len(text.encode()) for text in unseen) / n_tokens)
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.plot(sizes, ratios, "o-", color=COLORS[0])
    axes.axvline(STORIES_VOCAB_SIZE, color=COLORS[1], linestyle=":", linewidth=1.2)
    axes.annotate(
        "ours",
        (STORIES_VOCAB_SIZE, ratios[0]),
        textcoords="offset points",
        xytext=(5, 0),
        color=COLORS[1],
    )
    axes.set(xlabel="vocabulary size V", ylabel="bytes per token", ylim=(0, None))
    plt.close(figure)
    return figure
