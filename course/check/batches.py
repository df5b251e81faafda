"""Checks of the exercises on batches."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from course.check.verdict import exercise


@exercise
def shifted_rows(fn: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> str:
    """Check a `shifted_rows(tokens (N,), T) -> x, y`, both `(R, T)`."""
    T, tokens = (
        4,
        torch.arange(100, 115),
    )  # (15,): three rows, and two tokens that are left over
    result = fn(tokens.clone(), T)
    assert isinstance(result, tuple) and len(result) == 2, (
        "Return two tensors: x and y."
    )
    x, y = result
    assert isinstance(x, Tensor) and isinstance(y, Tensor), (
        "x and y should be tensors (R, T)."
    )
    assert x.shape == y.shape, (
        f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: each input needs one target."
    )
    assert x.ndim == 2 and x.size(1) == T, (
        f"x has shape {tuple(x.shape)}; (R, T) with T = {T} is expected."
    )
    assert not torch.equal(x, y), (
        "The targets are the inputs themselves. A model that copies would be perfect: move y by one."
    )
    assert not torch.equal(y, x - 1), (
        "The targets are the tokens *before* the inputs: you moved y the wrong way."
    )
    assert not torch.equal(y, x + 2), "The targets are two ahead. Move y by one."
    wrapped = x.roll(-1, dims=1)
    assert not torch.equal(y, wrapped), (
        "The last target of each row is the row's own first token. It should be the first token of the next row."
    )
    assert torch.equal(y, x + 1), (
        f"Each target should be the token behind its input. Your first row has x = {x[0].tolist()}, y = {y[0].tolist()}."
    )
    starts = x[:, 0] - 100
    assert not (len(starts) > 1 and starts[1] - starts[0] == 1), (
        "The rows overlap: each begins one token after the last, so every token is learned T times per epoch. Begin one every T tokens."
    )
    assert not (len(starts) > 1 and starts[1] - starts[0] == T + 1), (
        f"A token between two rows is never an input: rows begin at {starts.tolist()}. Begin one every T = {T} tokens."
    )
    assert starts[0] == 0, (
        f"The first row begins at token {int(starts[0])}, not at token 0."
    )
    assert len(x) == 3, (
        f"{len(tokens)} tokens give 3 full rows of {T} with their targets; you made {len(x)}."
    )
    assert torch.equal(x, tokens[:12].view(3, T)), (
        f"The rows begin at {starts.tolist()}; 0, 4 and 8 are expected."
    )
    exact = torch.arange(
        12
    )  # a multiple of T: the third row would lack its last target
    try:
        short = fn(exact.clone(), T)
    except (RuntimeError, IndexError, ValueError) as error:
        raise AssertionError(
            f"With {len(exact)} tokens and T = {T} it fails ({type(error).__name__}): the third row lacks its last target, so only two are full."
        ) from None
    assert len(short[0]) == 2, (
        f"{len(exact)} tokens and T = {T} give 2 full rows, since a third one lacks its last target; you made {len(short[0])}."
    )
    return "Every token is a target once, one ahead of its input."


@exercise
def rows_of_step(fn: Callable[[int, int, int, int], np.ndarray]) -> str:
    """Check a `rows_of_step(n_rows, B, seed, step) -> (B,)`."""
    n_rows, B, steps = (
        50,
        8,
        25,
    )  # 25 batches of 8 are four epochs of 50, and batches reach over their ends
    first = np.asarray(fn(n_rows, B, 0, 0))
    assert first.shape == (B,), (
        f"The result has shape {first.shape}; (B,) = ({B},) is expected."
    )
    ahead = np.asarray(fn(n_rows, B, 0, 7))
    assert np.array_equal(fn(n_rows, B, 0, 0), first), (
        "Two calls with the same arguments gave different rows: something remembers, or draws from a global generator."
    )
    batches = [np.asarray(fn(n_rows, B, 0, step)) for step in range(steps)]
    short = [step for step, batch in enumerate(batches) if batch.shape != (B,)]
    assert not short, (
        f"Step {short[0]} gives {batches[short[0]].size} rows instead of {B}: the batch at the end of an epoch is not full."
    )
    assert np.array_equal(ahead, batches[7]), (
        "Step 7 gives other rows when steps 0 to 6 came before it: something remembers. A resumed run would see another order."
    )
    dealt = np.concatenate(batches)
    assert dealt.min() >= 0 and dealt.max() < n_rows, (
        f"Rows must lie between 0 and {n_rows - 1}; yours go from {dealt.min()} to {dealt.max()}."
    )
    epochs = dealt.reshape(-1, n_rows)
    assert not np.array_equal(epochs[0], np.arange(n_rows)), (
        "The rows come in the order of the file: nothing is shuffled."
    )
    counts = np.bincount(epochs[0], minlength=n_rows)
    assert (counts == 1).all(), (
        f"In the first epoch {(counts == 0).sum()} rows never come and {(counts > 1).sum()} come more than once. Deal out a permutation; at its end go on with the next one."
    )
    for number, epoch in enumerate(epochs):
        counts = np.bincount(epoch, minlength=n_rows)
        assert (counts == 1).all(), (
            f"In epoch {number} {(counts == 0).sum()} rows never come: the batch that reaches over an epoch's end must go on at the start of the next permutation."
        )
    assert not np.array_equal(epochs[0], epochs[1]), (
        "All epochs have the same order. Let the permutation depend on the epoch too."
    )
    other = np.concatenate(
        [np.asarray(fn(n_rows, B, 1, step)) for step in range(steps)]
    )
    assert not np.array_equal(other, dealt), (
        "Another seed gives the same order: the seed is not used."
    )
    assert not np.array_equal(other[:n_rows], epochs[1]), (
        "Seed 1 begins with seed 0's second epoch: seed + epoch mixes the two. Seed the generator with both, [seed, epoch]."
    )
    try:
        large = [np.asarray(fn(n_rows, 130, 0, step)) for step in range(5)]  # 13 epochs
    except (IndexError, ValueError) as error:
        raise AssertionError(
            f"With a batch larger than an epoch ({n_rows} rows, B = 130) it fails ({type(error).__name__}): such a batch reaches over more than one end."
        ) from None
    whole = all(batch.shape == (130,) for batch in large)
    assert (
        whole
        and (
            np.sort(np.concatenate(large).reshape(-1, n_rows)) == np.arange(n_rows)
        ).all()
    ), (
        f"With a batch larger than an epoch ({n_rows} rows, B = 130), rows are lost or doubled: it reaches over more than one end."
    )
    return "Every row once per epoch, and any step at any time."
