"""Muon: what its Newton-Schulz steps do to singular values, and that a whole step is PyTorch's, within rounding."""

import pytest
import torch

import slm.hardware
from slm.model.config import GPTConfig
from slm.model.gpt import GPT
from slm.training.config import TrainingConfig
from slm.training.optim import Muon, learning_rate, make_optimizers, orthogonalize

SHAPES = [(3, 3), (8, 32), (96, 24), (128, 128), (1, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_steps_turn_the_singular_values_and_nothing_else(shape):
    torch.manual_seed(1)
    gradient = 7 * torch.randn(shape)
    u, s, vh = torch.linalg.svd(gradient.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(
        orthogonalize(gradient), (u * s @ vh).float(), atol=2e-5, rtol=1e-4
    )


def test_singular_values_come_near_one():
    gradient = torch.randn(64, 32)
    found = torch.linalg.svdvals(orthogonalize(gradient))
    assert found.min() > 0.6 and found.max() < 1.25
    assert (
        torch.linalg.svdvals(gradient / gradient.norm()).max() < 0.4
    )  # so it was the steps that brought them there


def test_a_gradient_of_zeros_stays_zero():
    assert torch.equal(orthogonalize(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float32, 0.06)]
)
def test_steps_are_those_of_pytorch(shape, dtype, tolerance):
    """PyTorch computes in bfloat16, with 8 bits; through five steps its rounding adds up to some percent."""
    torch.manual_seed(2)
    ours, theirs = (
        torch.nn.Parameter(torch.randn(shape)),
        torch.nn.Parameter(torch.empty(shape)),
    )
    theirs.data.copy_(ours.data)
    before = ours.detach().clone()
    optimizers = [
        Muon([ours], lr=0.1, weight_decay=0.1, dtype=dtype),
        torch.optim.Muon(
            [theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
        ),
    ]
    for _ in range(3):  # momentum and decay take part from the second on
        gradient = torch.randn(shape)
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - before).norm()
    assert (ours - theirs).norm() / moved < tolerance
    state = [
        optimizer.state[p]["momentum_buffer"]
        for p, optimizer in zip((ours, theirs), optimizers, strict=True)
    ]
    assert torch.equal(*state)


def test_a_matrix_without_a_gradient_is_left_alone():
    p = torch.nn.Parameter(torch.ones(2, 2))
    Muon([p], lr=0.1).step()
    assert torch.equal(p, torch.ones(2, 2))


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Writes down the types that matrix products are computed in."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (
            torch.ops.aten.mm,
            torch.ops.aten.addmm,
            torch.ops.aten.bmm,
        ):
            self.dtypes.add(args[-1].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, torch.float32),  # auto, without the units
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "bfloat16", "use_amp": False}, torch.float32),
        ({"dtype": "float32"}, torch.float32),
    ],
)
def test_muon_computes_in_the_type_of_the_run(options, expected, monkeypatch):
    monkeypatch.setattr(slm.hardware, "_cpu_multiplies_bfloat16", lambda: False)
    model = GPT(
        GPTConfig(
            vocab_size=32, context_length=8, n_layers=1, n_heads=2, d_model=8, d_ff=16
        )
    )
    model.loss(*torch.randint(32, (2, 2, 8))).backward()
    with Products() as products:
        for optimizer in make_optimizers(
            model, TrainingConfig(optimizer="muon", **options)
        ):
            optimizer.step()
    assert products.dtypes == {expected}


@pytest.mark.parametrize(
    ("warmup", "steps"), [(10, 100), (0, 7), (1, 2), (99, 100), (0, 1)]
)
def test_schedule_at_both_ends_and_between(warmup, steps):
    t = TrainingConfig(
        learning_rate=2.0, min_learning_rate=0.5, warmup_steps=warmup, max_steps=steps
    )
    rates = [learning_rate(step, t) for step in range(steps)]
    assert rates[0] > 0 and max(rates) == pytest.approx(2.0)
    if warmup:
        assert rates[warmup - 1] == pytest.approx(2.0) and rates[0] == pytest.approx(
            2.0 / warmup
        )
    assert rates[-1] == pytest.approx(0.5 if steps > 1 else 2.0)
    if steps > 1:
        assert rates[-1] == pytest.approx(0.5) and min(rates[warmup:]) == pytest.approx(
            0.5
        )
        assert all(
            a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False)
        )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_optimized_once_and_only_matrices_decay(optimizer, model_of):
    model = model_of()
    groups = [
        g
        for o in make_optimizers(model, TrainingConfig(optimizer=optimizer))
        for g in o.param_groups
    ]
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    for group in groups:
        assert all(
            (p.dim() == 2) == (group["weight_decay"] > 0) for p in group["params"]
        )
