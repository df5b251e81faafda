"""slm.hardware: the type that pays, the peak, and ranks."""

import pytest
import torch

import slm.hardware
from slm.hardware import (
    choose_dtype,
    gather_from_ranks,
    peak_flops,
    rank,
    rng_state,
    set_rng_state,
    sum_over_ranks,
    world_size,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("wanted", "amp", "expected"),
    [
        ("float32", True, torch.float32),
        ("bfloat16", True, torch.bfloat16),
        ("float16", True, torch.float16),
        ("bfloat16", False, torch.float32),
    ],
)
def test_dtype_is_what_was_asked_for(wanted, amp, expected):
    assert choose_dtype(torch.device("cpu"), wanted, amp) == expected


@pytest.mark.parametrize(
    ("has_bfloat16", "expected"), [(True, torch.bfloat16), (False, torch.float16)]
)
def test_auto_on_cuda_asks_for_native_bfloat16(monkeypatch, has_bfloat16, expected):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16
    )
    assert choose_dtype(torch.device("cuda"), "auto") == expected


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("Tesla T4", 65e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("GeForce", None),
    ],
)
def test_peak_of_known_gpus(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), torch.float16) == peak
    assert peak_flops(torch.device("cuda"), torch.float32) is None


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
def test_a_cpu_takes_bfloat16_only_where_it_pays(
    avx512, onednn, speed, expected, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(
        slm.hardware,
        "_product_flops",
        lambda dtype: speed if dtype == torch.bfloat16 else 1.0,
    )
    slm.hardware._cpu_multiplies_bfloat16.cache_clear()
    try:
        assert choose_dtype(CPU) == expected
        assert (
            choose_dtype(CPU, "bfloat16") == torch.bfloat16
        )  # who asks for it gets it
    finally:
        slm.hardware._cpu_multiplies_bfloat16.cache_clear()


def test_without_torchrun_a_process_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (rank(), world_size()) == (0, 1)
    assert gather_from_ranks("mine") == ["mine"]
    assert sum_over_ranks(torch.tensor([2.0])).item() == 2.0


def test_torchrun_says_which_process_this_is(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (rank(), world_size()) == (3, 4)


def test_random_numbers_go_on_from_where_they_were_seen():
    state = rng_state(CPU)
    first = torch.rand(5)
    set_rng_state(CPU, state)
    assert torch.equal(torch.rand(5), first)
