"""slm.hardware: the type that pays, the peak, ranks, and the memory that can be had."""

import contextlib
import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

import slm.hardware
from slm.errors import SlmError
from slm.hardware import (
    choose_dtype,
    free_memory,
    gather_from_ranks,
    in_words,
    peak_flops,
    process_group,
    rank,
    rng_state,
    room,
    room_for_run,
    run_memory,
    set_rng_state,
    sum_over_ranks,
    world_size,
)
from slm.model.config import count_memory
from slm.training.config import make_config

CPU = torch.device("cpu")
GB = 10**9


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


def test_what_lies_on_the_cpu_is_added_up_there_also_beside_gpus(monkeypatch):
    """A count that went over the GPUs would wait in each step for what they have queued."""
    asked = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(
        dist, "init_process_group", lambda name, **_: asked.append(name)
    )
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with process_group():
        pass
    backends = dist.distributed_c10d.BackendConfig(dist.Backend(asked[0]))
    assert backends.get_device_backend_map() == {"cpu": "gloo", "cuda": "nccl"}


def test_random_numbers_go_on_from_where_they_were_seen():
    state = rng_state(CPU)
    first = torch.rand(5)
    set_rng_state(CPU, state)
    assert torch.equal(torch.rand(5), first)


# ------------------------------------------------------------------ memory


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 64 GB whose process holds 3 GB of addresses and 1 GB of memory; files are added to it."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    sizes = {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 64 * 10**6}
    unlimited = SimpleNamespace(RLIMIT_AS=9, RLIM_INFINITY=-1)
    unlimited.getrlimit = lambda kind: (-1, -1)
    monkeypatch.setattr(slm.hardware.os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(slm.hardware, "PROC", proc)
    monkeypatch.setattr(slm.hardware, "CGROUPS", groups)
    monkeypatch.setattr(slm.hardware, "resource", unlimited)

    def write(path, text):
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("proc/statm", "3000000 1000000 5 5 0 5 0\n")
    return SimpleNamespace(write=write, limits=unlimited)


def test_without_limits_it_is_the_machines_memory(machine):
    assert free_memory(CPU) == 63 * GB


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/a/b", {"a/b/memory.max": 8 * GB}, 7),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": 4 * GB}, 3),  # above it
        ("0::/a/b", {"memory.max": 5 * GB}, 4),  # seen from inside a container
        ("0::/", {"memory.max": "max"}, 63),
        ("4:memory:/a", {"memory/a/memory.limit_in_bytes": 8 * GB}, 7),
        ("4:cpu,memory:/a", {"memory/memory.limit_in_bytes": 2 * GB}, 1),
        ("4:memory:/a", {"memory/a/memory.limit_in_bytes": 2**63 - 4096}, 63),
        ("4:cpu:/a", {"memory/a/memory.limit_in_bytes": 8 * GB}, 63),
        ("0::/a\n4:memory:/a", {"memory/a/memory.limit_in_bytes": 3 * GB}, 2),
        ("0::/a", {"a/memory.max": GB // 2}, 0),  # it holds more than that already
    ],
)
def test_a_control_group_counts_what_is_resident(machine, groups, limits, expected):
    machine.write("proc/cgroup", groups + "\n")
    for path, limit in limits.items():
        machine.write(f"cgroup/{path}", f"{limit}\n")
    assert free_memory(CPU) == expected * GB


def test_a_limit_on_addresses_counts_addresses(machine):
    machine.limits.getrlimit = lambda kind: (10 * GB if kind == 9 else 1, -1)
    assert free_memory(CPU) == 7 * GB


def test_where_nothing_is_known_nothing_is_said(machine, monkeypatch, tmp_path):
    (tmp_path / "proc/statm").unlink()
    assert free_memory(CPU) == 64 * GB  # macOS
    monkeypatch.delattr(slm.hardware.os, "sysconf")
    monkeypatch.setattr(slm.hardware, "resource", None)
    assert free_memory(CPU) is None
    with room(CPU, 10**30, "it", "do not"):
        pass


def test_on_cuda_reserved_memory_can_be_had(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10 * GB)
    assert free_memory(torch.device("cuda", 0)) == 25 * GB


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 MB"),
        (12_345_678, "12 MB"),
        (3_400_000_000, "3.40 GB"),
        (12_345 * GB, "12,345.00 GB"),
        (2 * 10**19, "2e+10 GB"),
        (10**300, "1e+291 GB"),
    ],
)
def test_bytes_in_words(size, words):
    assert in_words(size) == words


class Special(RuntimeError):
    """As torch.distributed and the compiler have them."""


@pytest.mark.parametrize(
    ("error", "need", "told"),
    [
        (MemoryError(), 1, True),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127]"), 2**62, True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, False),
        (RuntimeError("whatever"), 10**30, True),  # more than can be asked for
        (Special("of its own"), 2**62, False),
        (ValueError("no"), 2**62, False),
    ],
)
def test_full_memory_is_told_by_class_and_by_asking_again(
    monkeypatch, error, need, told
):
    monkeypatch.setattr(slm.hardware, "free_memory", lambda device: None)
    with pytest.raises(SlmError if told else type(error)) as raised:
        with room(CPU, need, "it", "make it smaller"):
            raise error
    if told:
        assert "the memory is full; it needs at least" in str(raised.value)
        assert raised.value.__cause__ is error


def test_what_was_given_back_on_the_way_is_allowed_for(monkeypatch):
    monkeypatch.setattr(slm.hardware, "free_memory", lambda device: None)
    monkeypatch.setattr(slm.hardware, "_refuses", lambda device, size: size > 15)
    with pytest.raises(SlmError, match="the memory is full"), room(CPU, 10, "it", ""):
        raise RuntimeError
    with pytest.raises(RuntimeError), room(CPU, 5, "it", ""):
        raise RuntimeError


def test_room_is_refused_at_the_call(monkeypatch):
    monkeypatch.setattr(slm.hardware, "free_memory", lambda device: 2 * GB)
    told = "it needs at least 3.00 GB, and 2.00 GB of memory can be had on cpu: do not"
    with pytest.raises(SlmError, match=re.escape(told)):
        room(CPU, 3 * GB, "it", "do not")
    assert isinstance(room(CPU, 2 * GB, "it", ""), contextlib.AbstractContextManager)


MODEL = {"vocab_size": 1024, "context_length": 512, "n_layers": 8}
MODEL |= {"n_heads": 8, "d_model": 256, "d_ff": 1024}


def run_of(batch_size, parts=1, **training):
    rest = {"gradient_accumulation_steps": parts, "dtype": "float32", **training}
    data = {"dataset": "stories", "tokenizer": "stories"}
    training = {"batch_size": batch_size, **rest}
    return make_config({"model": MODEL, "training": training, "data": data})


@pytest.mark.parametrize(("batch", "parts"), [(96, 1), (97, 1), (90, 4), (300_000, 2)])
def test_the_batch_that_is_named_fits_and_is_the_largest(monkeypatch, batch, parts):
    have, config = 4 * GB, run_of(batch, parts)
    monkeypatch.setattr(slm.hardware, "free_memory", lambda device: have)
    monkeypatch.setattr(slm.hardware, "choose_device", lambda: CPU)
    with pytest.raises(SlmError) as raised:
        room_for_run(config)
    told = re.search(r"batch_size that fits is (\d+)", str(raised.value))
    fits, limit = int(told[1]), 0.9 * have  # a tenth is left for what is not counted
    assert run_memory(config, CPU, fits, parts > 1) <= limit
    assert run_memory(config, CPU, fits + 1, parts > 1) > limit
    room_for_run(run_of(fits, parts))
    same = re.search(r"; (\d+) with .*steps = (\d+) makes the same", str(raised.value))
    rows, parts = int(same[1]), int(same[2])
    assert rows * parts == batch * config.training.gradient_accumulation_steps
    assert rows <= fits and run_memory(config, CPU, rows, parts > 1) <= limit
    room_for_run(run_of(rows, parts))


def test_the_same_step_has_gradients_of_earlier_parts(monkeypatch):
    """96 rows would fit alone; as one half of the step, with the other half's gradients, they do not."""
    config = run_of(192)
    limit = run_memory(config, CPU, 96, True) - 10
    assert run_memory(config, CPU, 96, False) < limit
    monkeypatch.setattr(slm.hardware, "free_memory", lambda device: limit * 10 // 9)
    monkeypatch.setattr(slm.hardware, "choose_device", lambda: CPU)
    told = r"fits is 96; 64 with .*steps = 3 makes the same step"
    with pytest.raises(SlmError, match=told):
        room_for_run(config)


def test_where_no_row_fits_a_smaller_model_is_the_cure(monkeypatch):
    monkeypatch.setattr(slm.hardware, "choose_device", lambda: CPU)
    for batch in (1, 64):
        config = run_of(batch)
        least = run_memory(config, CPU, 1, False)
        monkeypatch.setattr(slm.hardware, "free_memory", lambda device, n=least: n - 1)
        with pytest.raises(SlmError, match="not even one row .* 512 tokens fits"):
            room_for_run(config)
    monkeypatch.setattr(slm.hardware, "free_memory", lambda device: least)
    with pytest.raises(SlmError, match="batch_size that fits is 1"):
        room_for_run(run_of(64))
    room_for_run(run_of(1))


def test_what_a_run_needs_besides_its_steps(monkeypatch):
    """The copy for the last checkpoint on a CPU, by the first process; less for one step, and for a compiler."""
    config, cuda = run_of(1), torch.device("cuda", 0)
    counted = count_memory(config.model, 1, "float32", "cpu")
    copied = 2 * (counted.weights + counted.optimizer)
    assert run_memory(config, CPU, 1, False) == copied > counted.peak
    monkeypatch.setenv("RANK", "1")
    assert run_memory(config, CPU, 1, False) == counted.peak
    one = run_of(1, max_steps=1, warmup_steps=0)
    assert run_memory(one, CPU, 1, False) == counted.peak - counted.optimizer
    on_gpu = count_memory(config.model, 64, "float32", "cuda")
    compiled = dataclasses.replace(on_gpu, activations=on_gpu.activations // 2).peak
    assert run_memory(config, cuda, 64, False) == compiled
    assert run_memory(run_of(1, compile=False), cuda, 64, False) == on_gpu.peak
