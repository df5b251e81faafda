"""Checks of the exercises of GPT: its parameters, the FLOPs of a gate, and the loss."""

import math
from collections.abc import Callable, Set
from typing import Any

import torch
from torch import Tensor

from course.check.diagnose import Diagnosis, WrongKind, number, whole
from course.check.steps import carried_out
from course.check.verdict import call, exercise, ready_made
from course.check.watched import used
from slm.model.config import IGNORE, GPTConfig, count_parameters
from slm.model.gpt import GPT

# 1. Parameters. Each mistake by how much it counts too many, in the sizes; `R` is the right number.

COUNT_MISTAKES = {
    "V*D": "You count the output matrix; it is the token embedding and counts once.",
    "V*D + V": "You count an output matrix with a bias; it is the token embedding, without a bias, and counts once.",
    "V": "You count a bias of the output, one number for each token; GPT-2's output has none.",
    "-V*D": "The token embedding is missing.",
    "-T*D": "The position embedding is missing.",
    "-2*D": "The final norm above the last block is missing: a stretch and a shift, D each.",
    "-D - 2*D*L": "Each norm counts D; it has a stretch and a shift, D each.",
    "-2*D*L": "2D per block are missing: one of its two norms, or the shifts of both, or two thirds of the bias of queries, keys and values, which has 3D numbers.",
    "-4*D*L": "4D per block are missing: the two norms (2D each), or the biases of attention (3D + D).",
    "-4*D*L - 2*D": "All norms are missing: 4D per block, and 2D above the last.",
    "-(5*D + W)*L": "The biases are missing: 3D + D in attention, d_ff + D in the feed-forward network.",
    "-(D + W)*L": "The biases of the feed-forward network are missing: d_ff + D per block.",
    "-3*D*L": "The bias of queries, keys and values is missing: 3D per block.",
    "-D*L": "D per block is missing: the bias of attention's output, or that of the second matrix of the feed-forward network.",
    "-W*L": "The bias of the first matrix of the feed-forward network is missing: it has d_ff outputs, so d_ff numbers.",
    "(D - W)*L": "Both biases of the feed-forward network count D. A bias has a number for each output: d_ff, and then D.",
    "-(9*D + W)*L - 2*D": "Biases and norms are missing: in each block 9D + d_ff numbers, and 2D above the last.",
    "-(4*D*D + 4*D)*L": "Attention is missing: in each block four matrices of D x D, and their biases.",
    "-(D*D + D)*L": "One of attention's four D x D matrices per block is missing, with its bias: queries, keys, values, output.",
    "-D*D*L": "One D x D matrix per block is missing: attention has four, for queries, keys, values and the output.",
    "-2*D*D*L": "Two D x D matrices per block are missing: attention has four, for queries, keys, values and the output.",
    "-(2*D*D + 2*D)*L": "Two of attention's four D x D matrices per block are missing, with their biases: queries, keys, values, output.",
    "-(2*D*W + W + D)*L": "The feed-forward network is missing: D x d_ff, d_ff x D, and their biases.",
    "-(D*W + D)*L": "The feed-forward network has two matrices: D x d_ff and back, d_ff x D, with a bias of D; the second is missing.",
    "-D*W*L": "One of the two matrices of the feed-forward network is missing: D x d_ff and back, d_ff x D.",
    "(3*D*D + 3*D)*(H - 1)*L": "You multiply queries, keys and values by n_heads. The heads share D: each has K = D / H.",
    "(4*D*D + 4*D)*(H - 1)*L": "You multiply all of attention by n_heads. The heads share D: each has K = D / H.",
    "4*D*D*(H - 1)*L": "You multiply all of attention's matrices by n_heads. The heads share D: each has K = D / H.",
    "(2*D + 1)*(4*D - W)*L": "You use 4 * d_model for the hidden layer; take d_ff from the config.",
    "(R - V*D - T*D - 2*D)*(1/L - 1)": "You count one block; there are n_layers of them.",
    "(2*D*W + W + 5*D)*(1 - L)": "The feed-forward network and the norms of the blocks count once. Each block has its own: put brackets round the whole block.",
    "4*D*(1 - L)": "The norms of the blocks count once. Each block has its own two: n_layers times 4D.",
    "2*D*(L - 1)": "The final norm counts in each block. It stands once, above the last.",
    "(V + T)*(1 - D)": "A row of the two tables has D numbers: V x D and T x D, not V and T.",
    "12*L*D*D - R": "12 L D² is a rule of thumb: it knows neither d_ff, nor biases, nor norms, nor the tables.",
    "12*L*D*D + V*D - R": "12 L D² with the token embedding is a rule of thumb: it knows neither d_ff, nor biases, nor norms, nor positions.",
}  # fmt: skip


def _count(config: GPTConfig, wrong: frozenset[str] = frozenset()) -> int:
    """Parameters of a GPT, with any of COUNT_MISTAKES made."""
    c, R = config, count_parameters(config)
    sizes = {"V": c.vocab_size, "T": c.context_length, "L": c.n_layers, "R": R}
    sizes |= {"H": c.n_heads, "D": c.d_model, "W": c.d_ff}
    return round(R + sum(eval(mistake, sizes) for mistake in wrong))


COUNT = Diagnosis(
    _count,
    COUNT_MISTAKES,
    [(GPTConfig(11, 5, 1, 1, 2, 3),), (GPTConfig(101, 13, 3, 2, 8, 20),)]
    + [(GPTConfig(50, 9, 4, 3, 6, 24),), (GPTConfig(1009, 64, 2, 4, 32, 100),)],
    lambda c: f"For V = {c.vocab_size}, T = {c.context_length}, L = {c.n_layers}, H = {c.n_heads}, D = {c.d_model}, d_ff = {c.d_ff}",
    read=whole,
)  # fmt: skip


@exercise
def parameter_count(fn: Callable[[GPTConfig], int]) -> str:
    """Check a `count(config)` against the package's, which its tests hold against built models."""
    COUNT.judge(fn)
    name = used(fn, *COUNT.probes[1], ready_made=(GPT.__init__, count_parameters))
    assert "init" not in name, (
        "The number is right, but you made the model and asked it. Count it from the config: before one pays for a model there is none."
    )
    assert not name, (
        f"The number is right, but the chapter's `{name}` counted it. Write out the sum yourself."
    )
    gpt2 = call(fn, GPTConfig(50257, 1024, 12, 12, 768, 3072))
    return f"GPT-2 has {gpt2:,} parameters by arithmetic too."


# 2. FLOPs. Each mistake by how much it counts too many in a token's forward pass, or by a factor of the whole.

FLOPS_MISTAKES = {
    "-2*L*D*W": "The feed-forward network has only two matrices. With a gate there are three: 6DF.",
    "6*L*D*W": "The feed-forward network costs 12DF with you, which is six matrices. With a gate there are three: 6DF.",
    "2*L*D*W": "The feed-forward network has four matrices. With a gate there are three: 6DF.",
    "-3*L*D*W": "The feed-forward network costs 3DF with you: a FLOP for each weight of three matrices. Each takes a multiplication and an addition: 6DF.",
    "-L*D*W": "The feed-forward network costs 5DF with you: one of three matrices counts a FLOP for each weight. Each takes a multiplication and an addition: 6DF.",
    "2*L*(W*W - D*W)": "You take the gate's matrix as F x F. It leads from D to F, as the other one: 2DF.",
    "-6*L*D*W": "The feed-forward network is missing: three matrices, 6DF in each layer.",
    "-4/3*L*D*W": "The third matrix counts in the forward pass only. Backward makes two products for it, too.",
    "2*(1 - L)*D*W": "The third matrix counts once. Each of the n_layers has one.",
    "L*W": "You count the product of gate and values, number by number. As with GELU and the norms, only the products of matrices are counted.",
    "* 1/3": "This is the forward pass only. Backward makes two products for each of its products: three times as much in all.",
    "* 2/3": "This is two forward passes' worth. Backward alone makes two products for each one of the forward pass, for the input's gradient and for the weight's: three times in all.",
    "* 4/3": "This is four forward passes' worth. Backward makes two products for each one of the forward pass: three times in all.",
    "* 1/2": "A multiplication is counted, its addition is not: 2mn FLOPs for an m x n matrix.",
    "* T": "This is the cost of a whole row of T tokens. Asked is that of one token.",
    "-4*L*T*D": "The attention itself is missing: scores with T keys and a sum over T values, 4TD in each layer.",
    "-2*L*T*D": "Attention over the context counts 2TD in each layer. It costs 4TD: 2TD for the scores and 2TD for the weighted sum, over all T keys (that half of them are masked is not counted, by convention).",
    "4*L*T*D*(T - 1)": "This is attention's cost for the whole text. One token has T scores, not T x T.",
    "4*(1 - L)*T*D": "The scores and the weighted sum (4TD) count once. Each of the n_layers has them.",
    "-8*L*D*D": "The four D x D matrices of attention are missing: 8D² in each layer.",
    "-6*L*D*D": "The D x D matrices of attention cost 2D² with you, one of four. Queries, keys, values and output cost 8D² in each layer.",
    "-4*L*D*D": "The D x D matrices of attention cost 4D² with you: two of the four are missing, or the additions. They cost 8D² in each layer.",
    "-2*L*D*D": "The D x D matrices of attention cost 6D² with you, three of four. Queries, keys, values and output cost 8D² in each layer.",
    "-2*D*V": "The logits are missing: 2DV, once.",
    "-D*V": "The logits count a FLOP for each weight of D x V. Each takes a multiplication and an addition: 2DV.",
    "2*(L - 1)*D*V": "The logits are counted in every layer. They are made once, at the top.",
    "-4/3*D*V": "The logits count in the forward pass only. Backward makes two products for them, too.",
    "2*(T - 1)*D*V": "The logits count for all T positions. Asked is the cost of one token: 2DV.",
    "2*D*V": "2DV count twice. The logits cost that once, and the embedding is a look-up: nothing is multiplied.",
    "one layer": "Only one layer is counted; there are n_layers.",
}  # fmt: skip


def _flops(L: int, D: int, W: int, V: int, T: int, wrong: Set[str] = frozenset()) -> float:  # fmt: skip
    L = 1 if "one layer" in wrong else L
    sizes = {"L": L, "D": D, "W": W, "V": V, "T": T}
    flops = L * (8 * D * D + 4 * T * D + 6 * D * W) + 2.0 * D * V
    flops += sum(eval(m, sizes) for m in wrong if "*" in m[1:])
    return 3 * flops * math.prod(eval(m[1:], sizes) for m in wrong if m[0] == "*")


FLOPS = Diagnosis(
    _flops,
    FLOPS_MISTAKES,
    [(1, 2, 3, 5, 7), (5, 96, 250, 1009, 70), (3, 64, 256, 512, 128)],
    lambda L, D, W, V, T: f"For n_layers = {L}, d_model = {D}, d_ff = {W}, V = {V}, T = {T}",
    read=number,
    rtol=1e-9,
)  # fmt: skip


@exercise
def gated_flops(fn: Callable[[int, int, int, int, int], int]) -> str:
    """Check a `gated_flops(n_layers, d_model, d_ff, vocab_size, context_length)`: training FLOPs per token."""
    FLOPS.judge(fn)
    return "Three matrices, attention, logits, and backward twice as dear as forward."


# 3. The loss

LOSS_STEPS = {
    "x": "(logits, targets)",
    "keep": "x[1] != IGNORE",
    "z": "x[0][keep]",
    "y": "x[1][keep].clamp(min=0)",
    "m": "z.amax(-1, keepdim=True)",
    "log_p": "z.log_softmax(-1)",
    "losses": "-log_p.gather(1, y[:, None])[:, 0]",
    "loss": "losses.mean()",
    "end": "loss",
}
LOSS_MISTAKES = {
    "end = -loss": "The sign is wrong: the loss is *minus* the mean log probability.",
    "end = loss / log(2)": "That is in bits (log2). The loss is in nats: natural logarithm.",
    "end = loss / log(10)": "That is log10. The loss is in nats: natural logarithm.",
    "end = loss.exp()": "That is the perplexity, the exponential of the loss.",
    "loss = losses.sum()": "You return the sum. The mean does not depend on the size of the batch.",
    "loss = losses.sum() / len(targets)": "Ignored targets still count in the denominator: divide by the number of targets that are not -100.",
    "loss = losses.sum() / z.numel()": "You average over the whole table (N x V numbers, most of them 0). Divide by the number of targets that count.",
    "loss = losses[0]": "Only the first row's loss is returned. It should be the mean over all rows that count.",
    "loss = -(-losses).exp().mean().log()": "You take the logarithm of the mean. Take the mean of the logarithms.",
    "keep = x[1] == x[1]": "Targets of -100 count as token 0. Those rows should not count at all.",
    "keep = x[1] > 0": "Token 0 does not count with you. Only -100 is ignored: targets != -100.",
    "y = no_index(IndexError)": "A target of -100 is no index. Drop the rows that do not count first, then look up the rest.",
    "y = no_index(RuntimeError)": "gather cannot look up a target of -100. Drop the rows that do not count first, then look up the rest.",
    "x = (logits[:-1], targets[1:])": "You compare each row with the target of the next. The targets are shifted already: row i answers target i.",
    "losses = -log_p.gather(1, y[:, None])[:, 0].exp()": "The logarithm is missing: you average probabilities.",
    "losses = z.logsumexp(-1)": "The target's own logit is missing: the loss is logsumexp(logits) minus the logit of the target.",
    "losses = -log_p[:, y]": "log_p[:, targets] takes every target from every row, (N, N). Each row has one: gather(1, targets[:, None]).",
    "losses = -logits.log_softmax(-1)[: len(y)].gather(1, y[:, None])[:, 0]": "You leave ignored targets out, but not their rows of logits, so later targets meet the wrong rows. Filter both alike: logits[keep], targets[keep].",
    "losses = -(log_p.exp() * log_p).sum(-1)": "That is the entropy of the prediction, which knows no target. The loss is -ln p of each row's target.",
    "losses = -log_p": "You average over the whole vocabulary; only the target of each row counts.",
    "losses = -log_p.amax(-1)": "You take the log probability of each row's most likely token. The loss asks for that of its target.",
    "log_p = z": "You average the logits themselves; subtract the log-sum-exp of each row, or nothing keeps them from growing.",
    "log_p = z.softmax(-1).log_softmax(-1)": "The softmax is taken twice: cross entropy of probabilities. It takes logits.",
    "log_p = z.log_softmax(0)": "The softmax runs over the batch. It should run over the vocabulary: dim -1.",
    "log_p = logits.log_softmax(0)[keep]": "The softmax runs over the batch, ignored rows included. It should run over the vocabulary: dim -1.",
    "log_p = z - z.flatten().logsumexp(0)": "The softmax runs over all numbers at once. Each row is a distribution of its own: dim -1.",
    "log_p = z - m - (z - m).exp().sum().log()": "The exponentials of all rows are added up. Each row is a distribution of its own: sum(-1, keepdim=True).",
    "log_p = (z.exp() / z.exp().sum(-1, keepdim=True)).log()": "Logits of 1,000 are too large for your exponential: exp overflows, and inf / inf is nan. Use logsumexp, which subtracts the maximum first.",
    "log_p = z - z.exp().sum(-1, keepdim=True).log()": "Logits of 1,000 are too large for your exponential: it is inf, and so is your loss. Use logsumexp, which subtracts the maximum first.",
    "log_p = z.softmax(-1).log()": "A probability that is too small for its type becomes 0, and its logarithm infinite. Never take the softmax first: use logsumexp or log_softmax.",
    "log_p = z - z.max() - (z - z.max()).exp().sum(-1, keepdim=True).log()": "You subtract the largest of all logits: the exponentials of other rows become 0, and their logarithm -inf. Each row needs its own maximum: amax(-1, keepdim=True).",
    "log_p = z - (z - m).exp().sum(-1, keepdim=True).log()": "You subtract the maximum before the exponential, but not from the target's logit (or do not add it back): both must be shifted alike.",
}  # fmt: skip
NO_INDEX = f"index {IGNORE} is out of bounds"


def _loss(logits: Tensor, targets: Tensor, wrong: Set[str] = frozenset()) -> Tensor:
    """Mean cross entropy with any of LOSS_MISTAKES made."""

    def no_index(kind: type[Exception]) -> Tensor:
        if bool((targets == IGNORE).any()):
            raise kind(NO_INDEX)
        return targets

    names = {"IGNORE": IGNORE, "log": math.log, "no_index": no_index}
    return carried_out(LOSS_STEPS, wrong, logits=logits, targets=targets, **names)[
        "end"
    ]


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise WrongKind("a scalar tensor, or no gradient can flow back from it")
    if value.numel() != 1:
        raise WrongKind("one number, a scalar tensor: the mean over the targets")
    return value.detach().reshape(()).float()


def _seen(fn: Callable[..., Tensor], logits: Tensor, targets: Tensor) -> tuple[Any, None]:  # fmt: skip
    """The loss; that -100 was used as an index is told in one way, however PyTorch words it."""
    try:
        return call(fn, logits, targets), None
    except (IndexError, RuntimeError) as error:
        if str(IGNORE) in str(error):
            error.args = (NO_INDEX,)
        raise


_random = torch.randn(9, 5, generator=torch.Generator().manual_seed(4)) * 2
LARGE = [
    (torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.tensor([0, 0])),
    (torch.tensor([[1000.0, 0.0], [-1000.0, -1000.0]]), torch.tensor([0, 0])),
]
LOSS = Diagnosis(
    _loss,
    LOSS_MISTAKES,
    [
        (torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([1])),
        (_random[:6], torch.tensor([0, 4, 2, 2, 1, 3])),
        (_random[:6], torch.tensor([0, IGNORE, 2, 2, IGNORE, 3])),
        (_random[3:6, :4], torch.tensor([IGNORE, 3, 0])),
        (_random.T[:4], torch.tensor([8, 0, 5, IGNORE])),
        *LARGE,
    ],
    lambda logits, targets: f"For logits of the shape {tuple(logits.shape)} and targets {targets.tolist()}"
    if len(logits) > 2
    else f"For logits {logits.tolist()} and targets {targets.tolist()}",
    read=_scalar,
    observe=_seen,
)  # fmt: skip


@exercise
def cross_entropy(fn: Callable[[Tensor, Tensor], Tensor]) -> str:
    """Check a `cross_entropy(logits (N, V), targets (N,))`."""
    theirs = [LOSS.run(fn, probe) for probe in LOSS.probes]
    right = [LOSS.run(_loss, probe) for probe in LOSS.probes]
    small = [LOSS.alike(*pair) for pair in zip(theirs, right, strict=True)]
    value = theirs[-2].value
    if all(small[:-2]) and isinstance(value, Tensor) and bool(value.isfinite()):
        assert small[-2], (
            f"{LOSS.show(LARGE[0])} the loss is 500; yours is {value:.4g}. Clamping, or a small number inside the logarithm, hides the overflow and changes the loss. Use logsumexp."
        )
    LOSS.judge(fn)
    logits, targets = _random[:3].clone().requires_grad_(), torch.tensor([1, IGNORE, 0])
    loss = call(fn, logits, targets)
    assert loss.requires_grad, (
        "The value is right, but no gradient can flow back from it: .item(), .detach(), .tolist(), math.log or a new torch.tensor(…) cuts the way to the logits. Stay with tensors."
    )
    wanted = torch.autograd.grad(_loss(logits, targets), logits)[0]
    got = torch.autograd.grad(loss.sum(), logits)[0]
    assert torch.allclose(got, wanted, atol=1e-5), (
        "The value is right, but its gradient is not: a part of the way from the logits to the loss is cut (.item(), .detach(), torch.no_grad)."
    )
    name = ready_made(
        fn,
        _random,
        _random.new_tensor([0] * 9).long(),
        names={"cross_entropy", "nll_loss"},
    )
    assert not name, (
        f"The values are right, but PyTorch did the work ({name}). Write it with logsumexp and gather."
    )
    return "Value, ignored targets, large logits and the gradient all hold."
