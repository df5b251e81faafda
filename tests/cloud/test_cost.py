"""slm.cloud.cost against arithmetic by hand: hours, dollars, verdicts, tables."""

import dataclasses
import subprocess
import sys

import pytest

from slm.cloud import cost
from slm.model.config import GPTConfig
from slm.training.config import load_config, make_config

GPT2 = {
    "vocab_size": 50257,
    "context_length": 1024,
    "n_layers": 12,
    "n_heads": 12,
    "d_model": 768,
    "d_ff": 3072,
}


def run_config(training=None, modal=None, model=None):
    """A valid config; sections as changed."""
    return make_config(
        {
            "model": GPT2 | (model or {}),
            "data": {"dataset": "stories"},
            "training": {
                "batch_size": 8,
                "gradient_accumulation_steps": 4,
                "max_steps": 10_000,
            }
            | (training or {}),
            "modal": {
                "gpu": "T4",
                "timeout": 36_000,
                "max_dollars": 8.0,
                "cpu": 2.0,
                "memory_mib": 8192,
            }
            | (modal or {}),
        }
    )


# ---------------------------------------------------------------- hours and dollars


def test_hours_and_dollars_by_hand():
    """10,000 steps of 8 x 4 x 1,024 tokens on a T4 at 35 and 25 % of 65 TFLOP/s."""
    found = cost.estimate(run_config())
    flops = (
        10_000
        * 8
        * 4
        * 1024
        * (6 * (12 * 12 * 768**2 + 768 * 50257) + 12 * 12 * 768 * 1024)
    )
    rate = 0.000164 + 2 * 0.0000131 + 8 * 0.00000222  # dollars per second
    for hours, dollars, mfu, start_up in zip(
        found.hours, found.dollars, (0.35, 0.25), (60, 300), strict=True
    ):
        seconds = start_up + 1.1 * flops / (65e12 * mfu)
        assert hours == pytest.approx(seconds / 3600)
        assert dollars == pytest.approx(seconds * rate)
    assert found.dtype == "float16"
    assert found.dollars_per_hour == pytest.approx(3600 * rate)
    assert found.tokens_per_second[1] == pytest.approx(
        65e12 * 0.25 / cost.count_flops_per_token(GPTConfig(**GPT2))
    )


def test_two_gpus_see_twice_the_tokens_in_the_same_time():
    one, two = (
        cost.estimate(run_config(modal={"gpu": "H100"})),
        cost.estimate(run_config(modal={"gpu": "H100:2"})),
    )
    assert two.tokens_per_second[0] == pytest.approx(2 * one.tokens_per_second[0])
    assert two.hours == one.hours
    assert two.memory_gb == one.memory_gb
    assert (one.name, two.name) == ("H100", "H100:2")
    assert two.dollars_per_hour - one.dollars_per_hour == pytest.approx(3600 * 0.001097)


def test_prices_of_ones_own_are_used():
    dearer = [
        gpu.model_copy(update={"dollars_per_second": 2 * gpu.dollars_per_second})
        for gpu in cost.MODAL.gpus
    ]
    prices = cost.MODAL.model_copy(update={"gpus": dearer})
    config = run_config()
    more = cost.dollars_per_hour(config, prices) - cost.dollars_per_hour(config)
    assert more == pytest.approx(3600 * 0.000164)
    found = cost.report(config, prices)["estimates"][0]
    assert found["dollars_per_hour"] == cost.dollars_per_hour(config, prices)


def test_only_what_can_be_rented_is_in_the_table():
    names = [
        found.gpu for found in cost.estimate_all(run_config(modal={"gpu": "H100:8"}))
    ]
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
    compiled, plain = (
        cost.estimate(run_config()),
        cost.estimate(run_config({"compile": False})),
    )
    assert plain.tokens_per_second[0] == pytest.approx(
        compiled.tokens_per_second[0] / 2
    )


def test_a_small_model_is_bound_by_launches_not_by_flops():
    small = {
        "vocab_size": 512,
        "context_length": 64,
        "n_layers": 4,
        "n_heads": 2,
        "d_model": 64,
        "d_ff": 256,
    }
    on = {
        gpu: cost.estimate(run_config(model=small, modal={"gpu": gpu}))
        for gpu in ("A100", "B200")
    }
    assert on["A100"].tokens_per_second == on["B200"].tokens_per_second
    assert on["B200"].tokens_per_second[1] == pytest.approx(8 * 64 / (4 * 5e-4))


def test_largest_batch_is_the_largest():
    for gpu in ("T4", "A100", "B200"):
        found = cost.estimate(run_config(modal={"gpu": gpu}))
        budget = 0.9 * found.capacity_gb * 1e9
        config = GPTConfig(**GPT2)
        assert (
            cost.count_memory(
                config, found.largest_batch, found.dtype, accumulate=True
            ).peak
            <= budget
        )
        assert (
            cost.count_memory(
                config, found.largest_batch + 1, found.dtype, accumulate=True
            ).peak
            > budget
        )


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


@pytest.mark.parametrize(
    "limits",
    [{"timeout": 1000, "max_dollars": 1000.0}, {"timeout": 80_000, "max_dollars": 0.5}],
)
def test_time_and_money_each_refuse_alone(limits):
    assert not cost.verdict(run_config(modal=limits))[0]
    steps = cost.max_steps_that_fit(run_config(modal=limits))
    assert cost.verdict(run_config({"max_steps": max(steps, 101)}, limits))[0] == (
        steps >= 101
    )


def test_the_promise_is_held_against_the_slow_end():
    fast, slow = cost.estimate(run_config()).hours
    between = int(3600 * (fast + slow) / 2)
    assert 3600 * fast < between < 3600 * slow
    assert not cost.verdict(
        run_config(modal={"timeout": between, "max_dollars": 1000.0})
    )[0]
    assert cost.verdict(
        run_config(modal={"timeout": int(3600 * slow) + 1, "max_dollars": 1000.0})
    )[0]


def test_another_gpu_is_named_and_is_the_cheapest_that_fits():
    config = run_config({"max_steps": 50_000}, {"timeout": 7200})
    honest, sentence = cost.verdict(config)
    assert not honest
    fitting = [
        row
        for row in cost.estimate_all(config)
        if row.hours[1] <= 2 and row.dollars[1] <= 8
    ]
    cheapest = min(fitting, key=lambda row: row.dollars[1])
    assert f"or on {cheapest.name} (" in sentence


def test_too_large_a_batch_is_told_the_largest():
    honest, sentence = cost.verdict(run_config({"batch_size": 64}))
    assert not honest
    largest = cost.estimate(run_config()).largest_batch
    assert "and T4 has 16 GB" in sentence
    assert (
        f"Fits if batch_size ≤ {largest} and max_steps ≤ " in sentence
    )  # the batch alone would take too long
    steps = int(
        sentence.partition("max_steps ≤ ")[2]
        .partition(", or")[0]
        .rstrip(".")
        .replace(",", "")
    )
    assert cost.verdict(run_config({"batch_size": largest, "max_steps": steps}))[0]
    assert not cost.verdict(run_config({"batch_size": largest}))[0]


def test_a_batch_that_fits_alone_is_told_alone():
    limits = {"timeout": 80_000, "max_dollars": 100.0}
    largest = cost.estimate(run_config()).largest_batch
    assert (
        f"Fits if batch_size ≤ {largest}, or on "
        in cost.verdict(run_config({"batch_size": 64}, limits))[1]
    )
    assert cost.verdict(run_config({"batch_size": largest}, limits))[0]


def test_a_batch_that_does_not_help_is_not_promised():
    sentence = cost.verdict(run_config({"batch_size": 64}, {"timeout": 200}))[1]
    assert "The memory holds batch_size ≤ " in sentence
    assert "Fits if" not in sentence


def test_the_cheapest_gpu_is_named_if_it_is_another():
    roomy = {"timeout": 80_000, "max_dollars": 100.0}
    best = min(
        cost.estimate_all(run_config(modal=roomy)), key=lambda row: row.dollars[1]
    )
    told = f" Cheapest: {best.name} ({best.hours[1]:.2f} h, ${best.dollars[1]:.2f})."
    assert cost.verdict(run_config(modal=roomy))[1].endswith(told)
    assert (
        "Cheapest" not in cost.verdict(run_config(modal=roomy | {"gpu": best.name}))[1]
    )


def test_columns_of_several_gpus_and_the_largest_batch_of_the_search():
    four = cost.cost_table(run_config(modal={"gpu": "RTX-PRO-6000:4"}))
    assert "RTX-PRO-6000:4 bfloat16" in four
    small = {
        "vocab_size": 64,
        "context_length": 8,
        "n_layers": 1,
        "n_heads": 1,
        "d_model": 8,
        "d_ff": 8,
    }
    assert f"≥{cost.LARGEST_BATCH:,}" in cost.cost_table(run_config(model=small))


def test_what_fits_nowhere_is_said():
    honest, sentence = cost.verdict(run_config({"max_steps": 10**9}, {"timeout": 400}))
    assert not honest
    assert (
        0
        < cost.max_steps_that_fit(run_config({"max_steps": 10**9}, {"timeout": 400}))
        < 100
    )
    assert sentence.endswith(
        "It fits on no other GPU either."
    )  # so few steps would all be warm-up
    short = cost.verdict(
        run_config({"max_steps": 10**9, "warmup_steps": 3}, {"timeout": 400})
    )[1]
    steps = int(short.partition("Fits if max_steps ≤ ")[2].rstrip("."))
    assert cost.verdict(
        run_config({"max_steps": steps, "warmup_steps": 3}, {"timeout": 400})
    )[0]
    impossible = run_config({"max_steps": 10**9}, {"timeout": 200})
    assert cost.max_steps_that_fit(impossible) == 0
    assert cost.verdict(impossible)[1].endswith("It fits on no other GPU either.")


def test_the_faster_gpu_is_the_cheaper_one():
    dollars = {
        row.gpu: row.dollars[1]
        for row in cost.estimate_all(run_config({"max_steps": 50_000}))
    }
    assert (
        dollars["T4"]
        > dollars["L4"]
        > dollars["A100-40GB"]
        > dollars["H100"]
        > dollars["B200"]
    )


@pytest.mark.parametrize("name", ["stories_cpu", "gpt_124m", "gpt_350m", "gpt_774m"])
def test_shipped_configs_keep_their_promises(name, request):
    config = load_config(request.config.rootpath / "configs" / f"{name}.yaml")
    honest, sentence = cost.verdict(config)
    assert honest, sentence
    assert cost.estimate(config).dollars[1] <= cost.MODAL.free_dollars_per_month
    assert config.modal.timeout <= 86_400


# ---------------------------------------------------------------- what is printed


def test_table_has_a_line_for_each_gpu_and_marks():
    config = run_config({"batch_size": 40})
    lines = cost.cost_table(config).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("*T4"))
    rows, title = lines[first : first + len(cost.MODAL.gpus)], lines[2:first]
    assert [row[1:].split()[0] for row in rows] == [g.name for g in cost.MODAL.gpus]
    assert [line for line in lines if line.startswith("*")] == [rows[0]]
    assert "! of  16" in rows[0] and " 25-35 " in rows[0]
    assert {len(line) for line in [lines[0], *rows]} == {88}  # columns line up
    assert " ".join(lines[first + len(rows) :]) == cost.verdict(config)[1]
    told = "run: 124,439,808 parameters, 10,000 steps of 163,840 tokens, 0.854 GFLOPs"
    assert " ".join(title).startswith(told)


@pytest.mark.parametrize("name", ["stories_cpu", "gpt_124m", "gpt_350m", "gpt_774m"])
def test_nothing_that_is_printed_is_wider_than_a_page(name):
    table = cost.cost_table(load_config(f"configs/{name}.yaml", ["modal.gpu=B200:8"]))
    assert max(map(len, f"{table}\n{cost.ASSUMPTIONS}".splitlines())) <= 88


def test_import_needs_no_torch():
    code = "import slm.cloud.cost as c, sys; from slm.training.config import load_config; c.cost_table(load_config('configs/gpt_124m.yaml')); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "False\n", found.stderr


def test_several_configs_are_one_table():
    one, other = run_config(), run_config({"max_steps": 5_000})
    text = cost.cost_table([one, other])
    assert text.count("hours") == 1
    assert text == cost.cost_table(one) + cost.cost_table(other).removeprefix(
        cost.cost_table([])
    )


def test_report_is_what_the_functions_say():
    config = run_config()
    found = cost.report(config)
    assert found["tokens"] == 10_000 * 8 * 4 * 1024
    assert found["fits"] is cost.verdict(config)[0]
    assert found["estimates"][0] == dataclasses.asdict(cost.estimate(config))
    assert found["parameters"] == 124_439_808 and found["free_dollars_per_month"] == 30
    peak = cost.Memory(**found["memory_bytes"]).peak
    assert peak / 1e9 == cost.estimate(config).memory_gb
    assert found["prices"]["date"] == cost.MODAL.date
