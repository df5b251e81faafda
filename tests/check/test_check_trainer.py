"""The checks of the trainer's exercises, where attempts and switches do not reach: PyTorch and the package."""

import pytest
import torch

from course import check
from course.check.trainer import adamw_step, rate
from slm.training.config import TrainingConfig
from slm.training.optim import learning_rate


@pytest.mark.parametrize("name", ["schedule", "adamw", "accumulate"])
def test_stub_is_told_apart(name):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert "still the stub" in getattr(check, name)(stub).message


def test_adamw_agrees_with_pytorch():
    """The check's own reference is right: PyTorch's AdamW takes the same steps."""
    p = torch.nn.Parameter(torch.randn(8))
    ours, m, v = p.detach().clone(), torch.zeros(8), torch.zeros(8)
    optimizer = torch.optim.AdamW(
        [p], lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3
    )
    for t in range(1, 5):
        p.grad = torch.randn(8)
        adamw_step(ours, p.grad.clone(), m, v, t, 0.1, 0.8, 0.9, 1e-3, 0.3)
        optimizer.step()
    torch.testing.assert_close(ours, p.detach())


def test_the_schedule_rises_as_the_package_s_own():
    ten = TrainingConfig(learning_rate=2.0, warmup_steps=4, max_steps=10)
    rises = [rate(step, 2.0, 4, 3, 10) for step in range(4)]
    assert rises == [learning_rate(step, ten) for step in range(4)]


def test_a_model_s_own_loss_may_be_computed_otherwise():
    def by_logits(model, x, y, rows):
        total = (y != -100).sum()
        for px, py in zip(x.split(rows), y.split(rows), strict=True):
            logits, targets = model(px).flatten(0, 1), py.flatten()
            summed = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            (summed / total).backward()

    assert check.accumulate(by_logits).passed
