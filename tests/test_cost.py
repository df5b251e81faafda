"""slm.cost against PyTorch's own counters, and against arithmetic by hand."""

import dataclasses

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from slm import cost
from slm.config import GPU_LIMITS, load_config, make_config
from slm.gpt import GPT, GPTConfig

GPT2 = {"vocab_size": 50257, "context_length": 1024, "n_layers": 12, "n_heads": 12, "d_model": 768, "d_ff": 3072}


def run_config(training=None, modal=None, model=None):
    """A valid config; sections as changed."""
    return make_config(
        {
            "model": GPT2 | (model or {}),
            "data": {"dataset": "stories"},
            "training": {"batch_size": 8, "gradient_accumulation_steps": 4, "max_steps": 10_000} | (training or {}),
            "modal": {"gpu": "T4", "timeout": 36_000, "max_dollars": 8.0, "cpu": 2.0, "memory_mib": 8192}
            | (modal or {}),
        }
    )


# ---------------------------------------------------------------- FLOPs


@pytest.mark.parametrize("shape", [(300, 32, 1, 1, 32, 128), (512, 64, 2, 4, 64, 200), (1000, 128, 5, 2, 48, 192)])
def test_flops_equal_pytorchs_count(shape):
    config = GPTConfig(*shape)
    model = GPT(config)
    tokens = torch.randint(config.vocab_size, (3, config.context_length))
    with sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad(), FlopCounterMode(display=False) as forward:
            model(tokens)
        with FlopCounterMode(display=False) as training:
            model.loss(tokens, tokens).backward()
    assert cost.count_flops_per_token(config, training=False) * tokens.numel() == pytest.approx(
        forward.get_total_flops(), rel=0.01
    )
    assert cost.count_flops_per_token(config) * tokens.numel() == pytest.approx(training.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("shape, gflops", [((12, 12, 768), 0.854), ((24, 16, 1024), 2.42), ((36, 20, 1280), 5.20)])
def test_flops_of_the_gpt_sizes(shape, gflops):
    layers, heads, width = shape
    config = GPTConfig(50257, 1024, layers, heads, width, 4 * width)
    matrices = 12 * layers * width**2 + width * 50257
    assert cost.count_flops_per_token(config) == 6 * matrices + 12 * layers * width * 1024
    assert cost.count_flops_per_token(config) / 1e9 == pytest.approx(gflops, rel=0.005)


def test_parts_add_up():
    parts = cost.count_forward_flops(GPTConfig(**GPT2))
    assert 3 * sum(parts.values()) == cost.count_flops_per_token(GPTConfig(**GPT2))
    assert all(flops > 0 for flops in parts.values())


# ---------------------------------------------------------------- memory


def saved_bytes(model, tokens, half):
    """Bytes that autograd keeps for the backward pass, parameters left out, each storage once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model.loss(tokens, tokens)
    kept = sum(storages.values())
    del loss
    return kept


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape, batch", [((500, 64, 4, 4, 128, 512), 16), ((500, 128, 3, 2, 64, 300), 8)])
def test_activations_equal_what_autograd_keeps(shape, batch, dtype):
    config = GPTConfig(*shape)
    tokens = torch.randint(config.vocab_size, (batch, config.context_length))
    kept = saved_bytes(GPT(config), tokens, dtype != "float32")
    counted = cost.count_memory(config, batch, dtype, "cpu")
    N, D, V = tokens.numel(), config.d_model, config.vocab_size
    gradients_of_the_loss = 4 * N * D + 4 * V * D  # made in the forward pass, of stream and output matrix
    copies = counted.weights - 4 * GPT(config).count_parameters()  # 16-bit weights that autocast made
    assert counted.activations + gradients_of_the_loss + copies == pytest.approx(kept, rel=0.03)


def peak_bytes(config, batch):
    """Peak of a training step by PyTorch's profiler, with weights and optimizer."""
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(config.vocab_size, (batch, config.context_length))

    def step():
        model.loss(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    held = peak = 12 * model.count_parameters()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize(
    "shape, batch",
    [
        ((1000, 128, 4, 4, 128, 512), 16),
        ((1000, 64, 6, 6, 384, 1536), 1),
        ((20000, 64, 2, 4, 128, 512), 4),
        ((500, 64, 2, 2, 64, 256), 64),
        ((50257, 64, 2, 2, 64, 256), 8),
    ],
)
def test_peak_is_within_15_percent_of_the_measured_one(shape, batch):
    config = GPTConfig(*shape)
    assert cost.count_memory(config, batch, "float32", "cpu").peak == pytest.approx(peak_bytes(config, batch), rel=0.15)


@pytest.mark.parametrize("shape", [(500, 64, 4, 4, 128, 512), (50257, 1024, 2, 12, 768, 3000)])
def test_weights_and_optimizer_are_the_parameters(shape):
    config = GPTConfig(*shape)
    with torch.device("meta"):
        model = GPT(config)
    memory = cost.count_memory(config, 1, "float32")
    assert cost.count_parameters(config) == model.count_parameters()
    assert memory.weights == 4 * model.count_parameters()
    assert memory.optimizer == 8 * model.count_parameters()
    matrices = sum(p.numel() for name, p in model.blocks.named_parameters() if p.dim() == 2)
    assert cost.count_memory(config, 1, optimizer="muon").optimizer == 8 * model.count_parameters() - 4 * matrices
    assert cost.count_memory(config, 1, "bfloat16").weights == 4 * model.count_parameters() + 2 * matrices


def test_memory_grows_with_what_it_should_grow_with():
    config = GPTConfig(**GPT2)
    plain = cost.count_memory(config, 8).peak
    assert cost.count_memory(config, 9).peak > plain
    assert cost.count_memory(config, 8, "float32").peak > plain
    assert cost.count_memory(config, 8, accumulate=True).peak - plain == 4 * 124_439_808
    masks = 8 * 1024 * 768 * (2 * 12 + 1)  # a byte each: two in a layer, one behind the embeddings
    assert cost.count_memory(dataclasses.replace(config, dropout=0.1), 8).peak - plain == masks


# ---------------------------------------------------------------- prices


def test_every_gpu_that_modal_rents_has_a_price():
    for name in GPU_LIMITS:
        assert cost.MODAL.find(name).dollars_per_second > 0
    assert cost.MODAL.find("A100").name == "A100-40GB"
    assert cost.MODAL.find("H100!").name == "H100"
    assert cost.MODAL.find("B200+").name == "B200"
    assert [gpu.name for gpu in cost.MODAL.gpus if not gpu.bfloat16] == ["T4"]


def test_unknown_gpu_is_one_sentence():
    with pytest.raises(ValueError, match="no price for GPU 'V100'.* has T4, L4"):
        cost.MODAL.find("V100")


def test_prices_from_a_file(tmp_path):
    path = tmp_path / "prices.yaml"
    table = cost.MODAL.model_dump(mode="json") | {"date": "2030-01-01"}
    table["gpus"] = [gpu | {"dollars_per_second": 2 * gpu["dollars_per_second"]} for gpu in table["gpus"]]
    path.write_text(yaml.safe_dump(table))
    prices = cost.load_prices(path)
    assert prices.date == "2030-01-01"
    config = run_config()
    more = cost.dollars_per_hour(config, prices) - cost.dollars_per_hour(config)
    assert more == pytest.approx(3600 * 0.000164)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"gpus": []}, "gpus"),
        ({"date": None}, "date"),
        ({"colour": "red"}, "colour"),
        ({"dollars_per_core_second": -1}, "dollars_per_core_second"),
    ],
)
def test_a_bad_price_file_is_named(tmp_path, change, sentence):
    path = tmp_path / "prices.yaml"
    path.write_text(yaml.safe_dump(cost.MODAL.model_dump(mode="json") | change))
    with pytest.raises(ValueError, match=f"prices.yaml: {sentence}") as error:
        cost.load_prices(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["gpus: [", "just words", ""])
def test_a_file_that_is_no_table_is_named(tmp_path, text):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="prices.yaml"):
        cost.load_prices(path)


# ---------------------------------------------------------------- hours and dollars


def test_hours_and_dollars_by_hand():
    """10,000 steps of 8 x 4 x 1,024 tokens on a T4 at 35 and 25 % of 65 TFLOP/s."""
    found = cost.estimate(run_config())
    flops = 10_000 * 8 * 4 * 1024 * (6 * (12 * 12 * 768**2 + 768 * 50257) + 12 * 12 * 768 * 1024)
    rate = 0.000164 + 2 * 0.0000131 + 8 * 0.00000222  # dollars per second
    for hours, dollars, mfu, start_up in zip(found.hours, found.dollars, (0.35, 0.25), (60, 300), strict=True):
        seconds = start_up + 1.1 * flops / (65e12 * mfu)
        assert hours == pytest.approx(seconds / 3600)
        assert dollars == pytest.approx(seconds * rate)
    assert found.dtype == "float16"
    assert found.dollars_per_hour == pytest.approx(3600 * rate)
    assert found.tokens_per_second[1] == pytest.approx(65e12 * 0.25 / cost.count_flops_per_token(GPTConfig(**GPT2)))


def test_two_gpus_see_twice_the_tokens_in_the_same_time():
    one, two = cost.estimate(run_config(modal={"gpu": "H100"})), cost.estimate(run_config(modal={"gpu": "H100:2"}))
    assert two.tokens_per_second[0] == pytest.approx(2 * one.tokens_per_second[0])
    assert two.hours == one.hours
    assert two.memory_gb == one.memory_gb
    assert (one.name, two.name) == ("H100", "H100:2")
    assert two.dollars_per_hour - one.dollars_per_hour == pytest.approx(3600 * 0.001097)


def test_only_what_can_be_rented_is_in_the_table():
    names = [found.gpu for found in cost.estimate_all(run_config(modal={"gpu": "H100:8"}))]
    assert "A10" not in names  # at most four of them
    assert len(names) == len(cost.MODAL.gpus) - 1


@pytest.mark.parametrize(
    "training, gpu, dtype, tflops",
    [
        ({}, "L4", "bfloat16", 121),
        ({}, "T4", "float16", 65),
        ({"dtype": "float16"}, "L4", "float16", 121),
        ({"dtype": "bfloat16"}, "T4", "bfloat16", 8.1),  # not in hardware
        ({"dtype": "float32"}, "L4", "float32", 30.3),
        ({"use_amp": False}, "A100", "float32", 19.5),
    ],
)
def test_precision_decides_the_peak(training, gpu, dtype, tflops):
    found = cost.estimate(run_config(training, {"gpu": gpu}))
    low = cost.MODAL.find(gpu).mfu[0]
    assert found.dtype == dtype
    assert found.tokens_per_second[1] == pytest.approx(
        tflops * 1e12 * low / cost.count_flops_per_token(GPTConfig(**GPT2))
    )


def test_without_compile_half_the_speed():
    compiled, plain = cost.estimate(run_config()), cost.estimate(run_config({"compile": False}))
    assert plain.tokens_per_second[0] == pytest.approx(compiled.tokens_per_second[0] / 2)


def test_a_small_model_is_bound_by_launches_not_by_flops():
    small = {"vocab_size": 512, "context_length": 64, "n_layers": 4, "n_heads": 2, "d_model": 64, "d_ff": 256}
    on = {gpu: cost.estimate(run_config(model=small, modal={"gpu": gpu})) for gpu in ("A100", "B200")}
    assert on["A100"].tokens_per_second == on["B200"].tokens_per_second
    assert on["B200"].tokens_per_second[1] == pytest.approx(8 * 64 / (4 * 5e-4))


def test_largest_batch_is_the_largest():
    for gpu in ("T4", "A100", "B200"):
        found = cost.estimate(run_config(modal={"gpu": gpu}))
        budget = 0.9 * found.capacity_gb * 1e9
        config = GPTConfig(**GPT2)
        assert cost.count_memory(config, found.largest_batch, found.dtype, accumulate=True).peak <= budget
        assert cost.count_memory(config, found.largest_batch + 1, found.dtype, accumulate=True).peak > budget


# ---------------------------------------------------------------- verdicts


def test_the_wish_is_refused_with_what_would_fit():
    wish = run_config({"max_steps": 50_000}, {"timeout": 7200, "max_dollars": 1.0})
    honest, sentence = cost.verdict(wish)
    assert not honest
    assert "on T4; the config allows 2.0 h and $1.00. Fits if max_steps ≤ " in sentence
    steps = cost.max_steps_that_fit(wish)
    assert f"max_steps ≤ {steps:,}" in sentence
    limits = {"timeout": 7200, "max_dollars": 1.0}
    assert cost.verdict(run_config({"max_steps": steps}, limits))[0]
    assert not cost.verdict(run_config({"max_steps": steps + 1}, limits))[0]


@pytest.mark.parametrize("limits", [{"timeout": 1000, "max_dollars": 1000.0}, {"timeout": 80_000, "max_dollars": 0.5}])
def test_time_and_money_each_refuse_alone(limits):
    assert not cost.verdict(run_config(modal=limits))[0]
    steps = cost.max_steps_that_fit(run_config(modal=limits))
    assert cost.verdict(run_config({"max_steps": max(steps, 101)}, limits))[0] == (steps >= 101)


def test_the_promise_is_held_against_the_slow_end():
    fast, slow = cost.estimate(run_config()).hours
    between = int(3600 * (fast + slow) / 2)
    assert 3600 * fast < between < 3600 * slow
    assert not cost.verdict(run_config(modal={"timeout": between, "max_dollars": 1000.0}))[0]
    assert cost.verdict(run_config(modal={"timeout": int(3600 * slow) + 1, "max_dollars": 1000.0}))[0]


def test_another_gpu_is_named_and_is_the_cheapest_that_fits():
    config = run_config({"max_steps": 50_000}, {"timeout": 7200})
    honest, sentence = cost.verdict(config)
    assert not honest
    fitting = [row for row in cost.estimate_all(config) if row.hours[1] <= 2 and row.dollars[1] <= 8]
    cheapest = min(fitting, key=lambda row: row.dollars[1])
    assert f"or on {cheapest.name} (" in sentence


def test_too_large_a_batch_is_told_the_largest():
    honest, sentence = cost.verdict(run_config({"batch_size": 64}))
    assert not honest
    largest = cost.estimate(run_config()).largest_batch
    assert "and T4 has 16 GB" in sentence
    assert f"Fits if batch_size ≤ {largest} and max_steps ≤ " in sentence  # the batch alone would take too long
    steps = int(sentence.partition("max_steps ≤ ")[2].partition(", or")[0].rstrip(".").replace(",", ""))
    assert cost.verdict(run_config({"batch_size": largest, "max_steps": steps}))[0]
    assert not cost.verdict(run_config({"batch_size": largest}))[0]


def test_a_batch_that_fits_alone_is_told_alone():
    limits = {"timeout": 80_000, "max_dollars": 100.0}
    largest = cost.estimate(run_config()).largest_batch
    assert f"Fits if batch_size ≤ {largest}, or on " in cost.verdict(run_config({"batch_size": 64}, limits))[1]
    assert cost.verdict(run_config({"batch_size": largest}, limits))[0]


def test_a_batch_that_does_not_help_is_not_promised():
    sentence = cost.verdict(run_config({"batch_size": 64}, {"timeout": 200}))[1]
    assert "The memory holds batch_size ≤ " in sentence
    assert "Fits if" not in sentence


def test_the_cheapest_gpu_is_named_if_it_is_another():
    roomy = {"timeout": 80_000, "max_dollars": 100.0}
    best = min(cost.estimate_all(run_config(modal=roomy)), key=lambda row: row.dollars[1])
    told = f" Cheapest: {best.name} ({best.hours[1]:.2f} h, ${best.dollars[1]:.2f})."
    assert cost.verdict(run_config(modal=roomy))[1].endswith(told)
    assert "Cheapest" not in cost.verdict(run_config(modal=roomy | {"gpu": best.name}))[1]


def test_columns_of_several_gpus_and_the_largest_batch_of_the_search():
    four = cost.cost_table(run_config(modal={"gpu": "RTX-PRO-6000:4"}))
    assert "RTX-PRO-6000:4  bfloat16" in four
    small = {"vocab_size": 64, "context_length": 8, "n_layers": 1, "n_heads": 1, "d_model": 8, "d_ff": 8}
    assert f"≥ {cost.LARGEST_BATCH:,}" in cost.cost_table(run_config(model=small))


def test_what_fits_nowhere_is_said():
    honest, sentence = cost.verdict(run_config({"max_steps": 10**9}, {"timeout": 400}))
    assert not honest
    assert 0 < cost.max_steps_that_fit(run_config({"max_steps": 10**9}, {"timeout": 400})) < 100
    assert sentence.endswith("It fits on no other GPU either.")  # so few steps would all be warm-up
    short = cost.verdict(run_config({"max_steps": 10**9, "warmup_steps": 3}, {"timeout": 400}))[1]
    steps = int(short.partition("Fits if max_steps ≤ ")[2].rstrip("."))
    assert cost.verdict(run_config({"max_steps": steps, "warmup_steps": 3}, {"timeout": 400}))[0]
    impossible = run_config({"max_steps": 10**9}, {"timeout": 200})
    assert cost.max_steps_that_fit(impossible) == 0
    assert cost.verdict(impossible)[1].endswith("It fits on no other GPU either.")


def test_the_faster_gpu_is_the_cheaper_one():
    dollars = {row.gpu: row.dollars[1] for row in cost.estimate_all(run_config({"max_steps": 50_000}))}
    assert dollars["T4"] > dollars["L4"] > dollars["A100-40GB"] > dollars["H100"] > dollars["B200"]


@pytest.mark.parametrize("name", ["stories_cpu", "gpt_124m", "gpt_350m", "gpt_774m"])
def test_shipped_configs_keep_their_promises(name, request):
    config = load_config(request.config.rootpath / "configs" / f"{name}.yaml")
    honest, sentence = cost.verdict(config)
    assert honest, sentence
    assert cost.estimate(config).dollars[1] <= cost.MODAL.free_dollars_per_month
    assert config.modal.timeout <= 86_400


# ---------------------------------------------------------------- what is printed


def test_table_has_a_line_for_each_gpu_and_marks():
    text = cost.cost_table(run_config({"batch_size": 40}))
    lines = text.splitlines()
    assert len(lines) == 4 + len(cost.MODAL.gpus)
    assert [line for line in lines if line.startswith("*")] == [lines[3]]
    assert "! of  16" in lines[3] and " 25-35 " in lines[3]
    assert len({len(line) for line in [lines[0], *lines[3:-1]]}) == 1  # columns line up
    assert lines[-1] == cost.verdict(run_config({"batch_size": 40}))[1]
    assert lines[2].startswith("run: 124,439,808 parameters, 10,000 steps of 163,840 tokens, 0.854 GFLOPs")


def test_several_configs_are_one_table():
    one, other = run_config(), run_config({"max_steps": 5_000})
    text = cost.cost_table([one, other])
    assert text.count("hours") == 1
    assert text == cost.cost_table(one) + cost.cost_table(other).removeprefix(cost.cost_table([]))


def test_report_is_what_the_functions_say():
    config = run_config()
    found = cost.report(config)
    assert found["tokens"] == 10_000 * 8 * 4 * 1024
    assert found["fits"] is cost.verdict(config)[0]
    assert found["estimates"][0] == cost.estimate(config).model_dump()
    assert found["parameters"] == 124_439_808 and found["free_dollars_per_month"] == 30
    peak = cost.Memory(**found["memory_bytes"]).peak
    assert peak / 1e9 == cost.estimate(config).memory_gb
    assert found["prices"]["date"] == cost.MODAL.date
