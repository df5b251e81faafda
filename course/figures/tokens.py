"""Figures of tokens: how merges build words, and what the size of a vocabulary buys."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import regex
from matplotlib.figure import Figure

from course.figures.sheet import ADVANCE, cell, sheet
from course.plots import COLORS
from slm.data.tokenizer import (
    PATTERN,
    STORIES_VOCAB_SIZE,
    Tokenizer,
    encode_word,
    train_bpe,
)


def story_growing(text: str, ranks: dict[bytes, int], after: Sequence[int]) -> Figure:
    """A text as tokens after so many merges: one row for each, what is new since the row above in colour."""
    words = [word.encode() for word in regex.findall(PATTERN, text)]
    size, line, left, right = len(text.encode()), 19.0, 152.0, 530.0
    heads = {"merges": 40.0, "tokens": 88.0, "bytes per\ntoken": 142.0}
    boxes, rows, y, before = [], [], 34.0, 0
    for n in after:
        bytes_of = {rank: token for token, rank in ranks.items() if rank < 256 + n}
        known = {token: rank for rank, token in bytes_of.items()}
        ids = [i for word in words for i in encode_word(word, known)]
        rows.append((y, (f"{n}", f"{len(ids)}", f"{size / len(ids):.2f}")))
        x = left
        for i in ids:
            token = bytes_of[i].decode("utf-8", "replace").replace(" ", "␣")
            width = ADVANCE * 10 * len(token) + 3
            if x + width > right:
                x, y = left, y + line
            boxes.append((x, y, width, token, i >= 256 + before))
            x += width + 2
        before, y = n, y + line + 8
    figure, axes = sheet(right, y)
    for name, x in heads.items():
        axes.text(x, 12, name, ha="right", va="center")
    axes.text(left, 12, "the story in tokens", va="center")
    for y, numbers in rows:
        for number, x in zip(numbers, heads.values(), strict=True):
            axes.text(x, y + 7.5, number, ha="right", va="center")
    for x, y, width, token, new in boxes:
        of = COLORS[1], 0.8 * new
        cell(axes, (x, y, width, 15), token, of, family="monospace")
    return figure


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
