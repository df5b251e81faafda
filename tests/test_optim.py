"""Muon: what its Newton-Schulz steps do to singular values, and that a whole step is PyTorch's, within rounding."""

import pytest
import torch

import slm.trainer
from slm.config import TrainingConfig
from slm.gpt import GPT, GPTConfig
from slm.trainer import Muon, choose_dtype, make_optimizers, orthogonalize

CPU = torch.device("cpu")
SHAPES = [(3, 3), (8, 32), (96, 24), (128, 128), (1, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_steps_turn_the_singular_values_and_nothing_else(shape):
    torch.manual_seed(1)
    gradient = 7 * torch.randn(shape)
    u, s, vh = torch.linalg.svd(gradient.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalize(gradient), (u * s @ vh).float(), atol=2e-5, rtol=1e-4)


def test_singular_values_come_near_one():
    gradient = torch.randn(64, 32)
    found = torch.linalg.svdvals(orthogonalize(gradient))
    assert found.min() > 0.6 and found.max() < 1.25
    assert torch.linalg.svdvals(gradient / gradient.norm()).max() < 0.4  # so it was the steps that brought them there


def test_a_gradient_of_zeros_stays_zero():
    assert torch.equal(orthogonalize(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float32, 0.06)])
def test_steps_are_those_of_pytorch(shape, dtype, tolerance):
    """PyTorch computes in bfloat16, with 8 bits; through five steps its rounding adds up to some percent."""
    torch.manual_seed(2)
    ours, theirs = torch.nn.Parameter(torch.randn(shape)), torch.nn.Parameter(torch.empty(shape))
    theirs.data.copy_(ours.data)
    before = ours.detach().clone()
    optimizers = [
        Muon([ours], lr=0.1, weight_decay=0.1, dtype=dtype),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):  # momentum and decay take part from the second on
        gradient = torch.randn(shape)
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - before).norm()
    assert (ours - theirs).norm() / moved < tolerance
    state = [optimizer.state[p]["momentum_buffer"] for p, optimizer in zip((ours, theirs), optimizers, strict=True)]
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
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
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
    monkeypatch.setattr(slm.trainer, "_cpu_multiplies_bfloat16", lambda: False)
    model = GPT(GPTConfig(vocab_size=32, context_length=8, n_layers=1, n_heads=2, d_model=8, d_ff=16))
    model.loss(*torch.randint(32, (2, 2, 8))).backward()
    with Products() as products:
        for optimizer in make_optimizers(model, TrainingConfig(optimizer="muon", **options)):
            optimizer.step()
    assert products.dtypes == {expected}


@pytest.mark.parametrize(
    ("avx512", "onednn", "speed", "expected"),
    [
        (True, True, 4.0, torch.bfloat16),
        (True, True, 0.5, torch.float32),  # units that are slower than float32's
        (True, False, 4.0, torch.float32),  # ONEDNN_MAX_CPU_ISA forbids them
        (False, True, 4.0, torch.float32),  # emulated on AVX-512
        (False, False, 4.0, torch.float32),
    ],
)
def test_a_cpu_takes_bfloat16_only_where_it_pays(avx512, onednn, speed, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(slm.trainer, "_product_flops", lambda dtype: speed if dtype == torch.bfloat16 else 1.0)
    slm.trainer._cpu_multiplies_bfloat16.cache_clear()
    try:
        assert choose_dtype(CPU) == expected
        assert choose_dtype(CPU, "bfloat16") == torch.bfloat16  # who asks for it gets it
    finally:
        slm.trainer._cpu_multiplies_bfloat16.cache_clear()
