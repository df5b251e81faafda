"""Checks of the exercises of GPT."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from course.check.verdict import exercise, ready_made, untouched
from slm.model.config import GPTConfig
from slm.model.gpt import GPT


@exercise
def parameter_count(fn: Callable[[GPTConfig], int]) -> str:
    """Check a `count(config)` against models that are built."""
    small = GPTConfig(
        vocab_size=101, context_length=13, n_layers=3, n_heads=2, d_model=8, d_ff=20
    )
    with torch.device("meta"):  # shapes without memory
        right = GPT(small).count_parameters()
        gpt2_config = GPTConfig(
            vocab_size=50257,
            context_length=1024,
            n_layers=12,
            n_heads=12,
            d_model=768,
            d_ff=3072,
        )
        gpt2 = GPT(gpt2_config).count_parameters()
    answer = untouched(fn, config=small)
    assert isinstance(answer, int), (
        f"It returned {type(answer).__name__}; a count is an int."
    )
    V, T, L, D, W, H = 101, 13, 3, 8, 20, 2
    off = answer - right
    causes = {
        V
        * D: "You count the output matrix; it is the token embedding and counts once.",
        V * D
        + V: "You count an output matrix with a bias; it is the token embedding, without a bias, and counts once.",
        -V * D: "The token embedding is missing.",
        -T * D: "The position embedding is missing.",
        -2
        * D: "The final norm above the last block is missing: a stretch and a shift, D each.",
        -4
        * D
        * L: "4 * D per block are missing: the two norms (2D each), or the biases of attention (3D + D).",
        -2 * D * L: "One norm per block is missing: a block has two, 2 * D each.",
        -2 * D * L - D: "Each norm counts D; it has a stretch and a shift, D each.",
        -4 * D * L
        - 2 * D: "All norms are missing: 4 * D per block, and 2 * D above the last.",
        -(5 * D + W)
        * L: "The biases are missing: 3D + D in attention, d_ff + D in the feed-forward network.",
        -(D + W)
        * L: "The biases of the feed-forward network are missing: d_ff + D per block.",
        -3 * D * L: "The bias of queries, keys and values is missing: 3 * D per block.",
        -(9 * D + W) * L - 2 * D: "Biases and norms are missing.",
        -(4 * D * D + 4 * D) * L: "Attention is missing.",
        -(D * D + D)
        * L: "The output matrix of attention is missing, with its bias: D * D + D per block.",
        -(2 * D * W + W + D) * L: "The feed-forward network is missing.",
        -(D * W + D)
        * L: "The feed-forward network has two matrices: D × d_ff and back, d_ff × D.",
        (3 * D * D + 3 * D)
        * (H - 1)
        * L: "You multiply queries, keys and values by n_heads. The heads share D: each has K = D / H.",
        (2 * D * 4 * D - 2 * D * W + 4 * D - W)
        * L: "You use 4 * d_model for the hidden layer; take d_ff from the config.",
        -2
        * D
        * D
        * L: "One D × D matrix per block would be too few: attention has four, for queries, keys, values and the output.",
        -(right - V * D - T * D - 2 * D)
        * (L - 1)
        // L: "You count one block; there are n_layers of them.",
    }
    assert off not in causes or off == 0, causes.get(off, "")
    assert off == 0, (
        f"For V = {V}, T = {T}, L = {L}, D = {D}, d_ff = {W} the model has {right:,} parameters; you count {answer:,}, {abs(off):,} too {'many' if off > 0 else 'few'}."
    )
    assert fn(gpt2_config) == gpt2, (
        f"Right for a tiny model, but GPT-2 has {gpt2:,} parameters and you count {fn(gpt2_config):,}."
    )
    return f"GPT-2 has {gpt2:,} parameters by arithmetic too."


@exercise
def gated_flops(fn: Callable[[int, int, int, int, int], int]) -> str:
    """Check a `gated_flops(n_layers, d_model, d_ff, vocab_size, context_length)`: training FLOPs per token."""
    L, D, F, V, T = 5, 96, 250, 1009, 70
    got = fn(L, D, F, V, T)
    assert isinstance(got, int | float), (
        f"It returned {type(got).__name__}; return the number of FLOPs."
    )
    projections, attention, gated, logits = (
        L * 8 * D * D,
        L * 4 * T * D,
        L * 6 * D * F,
        2 * D * V,
    )
    forward = projections + attention + gated + logits
    findings = {
        forward: "This is the forward pass only. Backward makes two products for each of its products: three times as much in all.",
        2
        * forward: "You count backward once. It makes two products for each one of the forward pass, for the input's gradient and for the weight's: three times in all.",
        3
        * forward
        / 2: "A multiplication is counted, its addition is not: 2mn FLOPs for an m x n matrix.",
        3
        * (
            forward - L * 2 * D * F
        ): "The feed-forward network has only two matrices. With a gate there are three: 6DF.",
        3
        * (
            forward - attention
        ): "The attention itself is missing: scores with T keys and a sum over T values, 4TD in each layer.",
        3 * (forward - logits): "The logits are missing: 2DV, once.",
        3
        * (
            forward - logits + L * logits
        ): "The logits are counted in every layer. They are made once, at the top.",
        3
        * (
            forward + 2 * D * V
        ): "The embedding is counted as a product. It is a look-up: nothing is multiplied.",
        3 * (projections + attention + gated) / L
        + 3 * logits: "Only one layer is counted; there are n_layers.",
        3
        * (
            forward - attention + attention * T
        ): "This is attention's cost for the whole text. One token has T scores, not T x T.",
        3
        * (
            forward - attention / 2
        ): "You count half of the attention, because half is masked. True for the work, but the convention (and PyTorch's counter) counts all T keys.",
    }
    for wrong, message in findings.items():
        assert not math.isclose(got, wrong, rel_tol=1e-6), message
    right = 3 * forward
    assert math.isclose(got, right, rel_tol=1e-6), (
        f"For {L} layers with D = {D}, F = {F}, V = {V}, T = {T} it should be {right:,}; yours is {got:,.0f}."
    )
    return "Three matrices, attention, logits, and backward twice as dear as forward."


@exercise
def cross_entropy(fn: Callable[[Tensor, Tensor], Tensor]) -> str:
    """Check a `cross_entropy(logits (N, V), targets (N,))`."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(6, 5, generator=generator) * 2
    targets = torch.tensor([0, 4, 2, 2, 1, 3])
    right = F.cross_entropy(logits, targets).item()
    out = untouched(fn, logits=logits, targets=targets)
    assert isinstance(out, Tensor), (
        f"It returned {type(out).__name__}; return the loss as a scalar tensor, or no gradient can flow back from it."
    )
    assert out.numel() == 1, (
        "The loss is one number: a scalar tensor, the mean over the targets."
    )
    value = out.item()
    close = lambda other: math.isclose(value, other, rel_tol=1e-4)  # noqa: E731
    assert not close(-right), (
        "The sign is wrong: the loss is *minus* the mean log probability."
    )
    assert not close(right * 6), (
        "You return the sum. The mean does not depend on the size of the batch."
    )
    assert not close(right / math.log(2)), (
        "That is in bits (log2). The loss is in nats: natural logarithm."
    )
    assert not close(
        -F.softmax(logits, -1).gather(1, targets[:, None]).mean().item()
    ), "The logarithm is missing: you average probabilities."
    assert not close(
        -F.softmax(logits, -1).gather(1, targets[:, None]).mean().log().item()
    ), "You take the logarithm of the mean. Take the mean of the logarithms."
    assert not close(-logits.gather(1, targets[:, None]).mean().item()), (
        "You average the logits themselves; subtract the log-sum-exp of each row, or nothing keeps them from growing."
    )
    assert not close(F.nll_loss(logits.log_softmax(0), targets).item()), (
        "The softmax runs over the batch. It should run over the vocabulary: dim -1."
    )
    assert not close(F.cross_entropy(logits.softmax(-1), targets).item()), (
        "The softmax is taken twice: cross entropy of probabilities. It takes logits."
    )
    assert not close(logits.logsumexp(-1).mean().item()), (
        "The target's own logit is missing: the loss is logsumexp(logits) minus the logit of the target."
    )
    assert not close(math.exp(right)), (
        "That is the perplexity, the exponential of the loss."
    )
    assert not close(right / math.log(10)), (
        "That is log10. The loss is in nats: natural logarithm."
    )
    log_p = logits.log_softmax(-1)
    assert not close(-log_p[:, targets].mean().item()), (
        "log_p[:, targets] takes every target from every row, (N, N). Each row has one: gather(1, targets[:, None])."
    )
    assert not close(-log_p.mean().item()), (
        "You average over the whole vocabulary; only the target of each row counts."
    )
    assert close(right), f"The loss should be {right:.4f}; yours is {value:.4f}."

    some = torch.tensor([0, -100, 2, 2, -100, 3])
    try:
        masked = untouched(fn, logits=logits, targets=some).item()
    except (IndexError, RuntimeError):
        raise AssertionError(
            "A target of -100 is no index. Drop the rows that do not count first, then look up the rest."
        ) from None
    expected = F.cross_entropy(logits, some).item()
    assert not math.isclose(masked, expected * 4 / 6, rel_tol=1e-4), (
        "Ignored targets still count in the denominator: divide by the number of targets that are not -100."
    )
    assert math.isclose(masked, expected, rel_tol=1e-4), (
        f"With two of six targets at -100 the loss should be {expected:.4f}; yours is {masked:.4f}. Those rows should not count at all."
    )

    huge = fn(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.tensor([0, 0])).item()
    assert math.isfinite(huge), (
        f"Logits of 1,000 give {huge}: exp overflows, or log meets 0. Use logsumexp, which subtracts the maximum first."
    )
    assert math.isclose(huge, 500.0, rel_tol=1e-4), (
        f"For logits (1000, 0) and (0, 1000) with targets 0 and 0 the loss is 500; yours is {huge:.4g}. Clamping, or adding a small number inside the logarithm, hides the overflow and changes the loss. Use logsumexp."
    )
    level = fn(
        torch.tensor([[1000.0, 0.0], [-1000.0, -1000.0]]), torch.tensor([0, 0])
    ).item()
    assert math.isclose(level, math.log(2) / 2, rel_tol=1e-4), (
        f"For logits (1000, 0) and (-1000, -1000) with targets 0 and 0 the loss is ln(2)/2 = 0.3466; yours is {level:.4g}. Each row needs its own maximum: amax(-1, keepdim=True)."
    )
    name = ready_made(fn, logits, targets, names={"cross_entropy", "nll_loss"})
    assert not name, (
        f"The values are right, but PyTorch did the work ({name}). Write it with logsumexp and gather."
    )
    return "Value, ignored targets and large logits all hold."
