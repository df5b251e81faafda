"""Optimizers and the learning rate's way through a run.

    optimizers = make_optimizers(model, TrainingConfig(optimizer="muon"))

Exported from chapters/11_trainer.py; edit it there.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from slm.hardware import choose_dtype
from slm.training.config import TrainingConfig

# The learning rate, and clipping


def learning_rate(step: int, training: TrainingConfig) -> float:
    """The rate of step 0, 1, …, max_steps - 1.

    A line up to the peak at the last warm-up step, then a cosine down.

    Source: Loshchilov and Hutter 2017 (SGDR), without restarts.
    """
    peak, least = training.learning_rate, training.min_learning_rate
    warmup, steps = training.warmup_steps, training.max_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if steps == 1:
        return peak
    way = steps - 1 - warmup  # steps from the peak to the minimum
    progress = min(1.0, (step - warmup) / way) if way else 1.0
    return least + 0.5 * (peak - least) * (1 + math.cos(math.pi * progress))


# Optimizers


def orthogonalize(gradient: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix with all its singular values brought near one, computed in `dtype`.

    Five Newton-Schulz steps. Source: Jordan et al. 2024, with their coefficients, which
    leave values between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = gradient.size(0) <= gradient.size(1)
    x = gradient if wide else gradient.T  # (m, n), m <= n: products below are (m, m)
    # no singular value exceeds the norm, so all are now at most one
    x = (x / x.norm().clamp(min=1e-7)).to(dtype)
    for _ in range(5):
        square = x @ x.T  # (m, m)
        # b square + c square², rounded once
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        # a x + factor x: a singular value s becomes a s + b s³ + c s⁵
        x = torch.addmm(x, factor, x, beta=a)
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalized: every direction moves equally far.

    Args:
        params: Matrices, parameters with two axes.
        lr: Learning rate; a step has the size of one of AdamW, so AdamW's rates fit.
        weight_decay: Share of the weights, times `lr`, that each step takes away.
        momentum: Memory of the mean gradient; the step looks ahead by one more of it
            (Nesterov).
        dtype: In which the products are computed; PyTorch's own Muon always takes
            bfloat16, which is slow where the device has no units for it.

    Source: Jordan et al. 2024; the size of the step as in Liu et al. 2025.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, defaults)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            momentum, lr = group["momentum"], group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
                mean = self.state[p]["momentum_buffer"]
                mean.lerp_(p.grad, 1 - momentum)
                update = orthogonalize(p.grad.lerp(mean, momentum), self.dtype)
                # entries of about 0.2, as AdamW's steps have
                size = 0.2 * math.sqrt(max(p.shape))
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * size)


def make_optimizers(
    model: nn.Module, training: TrainingConfig
) -> list[torch.optim.Optimizer]:
    """The optimizers of a run: AdamW alone, or Muon for matrices beside it.

    Matrices and embeddings are decayed, biases and norms are not. The rates are set at
    every step by the trainer.

    Args:
        model: One whose `tables()` names its embeddings.
        training: Which optimizer, and its settings.

    Source: Loshchilov and Hutter 2019 (AdamW); Jordan et al. 2024 (Muon), with the
    update scaled to the size of AdamW's as in Liu et al. 2025, so that one rate governs
    both groups.
    """
    tables: list[Tensor] = model.tables()  # type: ignore[operator]
    known = {id(table) for table in tables}
    others = [p for p in model.parameters() if id(p) not in known]
    matrices = [p for p in others if p.dim() == 2]
    vectors = [p for p in others if p.dim() < 2]
    muon, decay = training.optimizer == "muon", training.weight_decay
    device = vectors[0].device
    adamw = torch.optim.AdamW(
        [
            {"params": tables if muon else tables + matrices, "weight_decay": decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_eps,
        fused=device.type in ("cpu", "cuda"),
    )
    if not muon:
        return [adamw]
    dtype = choose_dtype(device, training.dtype, training.use_amp)
    return [adamw, Muon(matrices, training.learning_rate, decay, dtype=dtype)]
