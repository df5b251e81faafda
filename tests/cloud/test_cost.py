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


EACH = (74.0 - 27.3) / (32 - 8)  # ms that one more row of 1,024 tokens takes an H200
FIXED = 27.3 - 8 * EACH  # ms that a step takes with no row at all
FLOPS = 6 * (12 * 12 * 768**2 + 768 * 50257) + 12 * 12 * 768 * 1024  # of a token


def test_hours_and_dollars_by_hand():
    """10,000 steps of 4 x 8 x 1,024 tokens on a T4, whose products reach 24 TFLOP/s."""
    found = cost.estimate(run_config())
    micro_batch = (FIXED + 8 * EACH * 794 / 24) / 1000  # seconds
    rate = 0.000164 + 2 * 0.0000131 + 8 * 0.00000222  # dollars per second
    for hours, dollars, speed, start_up in zip(
        found.hours, found.dollars, (1.45, 0.55), (60, 300), strict=True
    ):
        seconds = start_up + 1.1 * 10_000 * 4 * micro_batch / speed
        assert hours == pytest.approx(seconds / 3600)
        assert dollars == pytest.approx(seconds * rate)
    assert (found.dtype, found.evidence) == ("float16", "assumed")
    assert found.dollars_per_hour == pytest.approx(3600 * rate)
    assert found.tokens_per_second[1] == pytest.approx(0.55 * 8 * 1024 / micro_batch)
    assert found.mfu[1] == pytest.approx(0.55 * 8 * 1024 * FLOPS / micro_batch / 65e12)


def test_measured_steps_are_predicted_as_they_were_measured():
    """Tokens per second and MFU of our own steps on an H200, as they were read there."""
    for rows, tokens, mfu in ((8, 300_650, 0.26), (32, 443_000, 0.38)):
        change = {"batch_size": rows, "gradient_accumulation_steps": 1}
        found = cost.estimate(run_config(change, {"gpu": "H200"}))
        fast, slow = found.tokens_per_second
        assert found.evidence == "measured"
        assert slow / 0.9 == pytest.approx(tokens, rel=0.003)
        assert fast / 1.1 == pytest.approx(tokens, rel=0.003)
        assert found.mfu[1] < mfu < found.mfu[0]


def test_the_published_steps_lie_within_the_range():
    for step in cost.STEPS:
        if step.compiled:
            change = {"batch_size": step.rows, "gradient_accumulation_steps": 1}
            found = cost.estimate(run_config(change, {"gpu": step.gpu}))
            reached = 1024 * step.rows / (step.milliseconds / 1000)
            spread = cost.SPREAD["published"]  # another program than ours
            expected = found.tokens_per_second[0] / (1 + cost.SPREAD[found.evidence])
            assert abs(reached / expected - 1) <= spread + 0.08, step


@pytest.mark.parametrize(
    "gpu, training, evidence",
    [
        ("H200", {}, "measured"),
        ("H200", {"batch_size": 1000}, "measured"),
        ("H200", {"batch_size": 4}, "measured"),
        ("H200", {"batch_size": 3}, "assumed"),
        ("H200", {"compile": False}, "assumed"),
        ("H200", {"dtype": "float32"}, "assumed"),
        ("H200:8", {}, "measured"),
        ("A100", {}, "published"),
        ("A100-80GB", {}, "published"),
        ("H100", {"batch_size": 8}, "assumed"),
        ("H100", {"batch_size": 32}, "published"),
        ("B200", {}, "assumed"),
        ("T4", {}, "assumed"),
    ],
)
def test_a_speed_says_what_it_rests_on(gpu, training, evidence):
    config = run_config(training, {"gpu": gpu})
    found = cost.estimate(config)
    assert found.evidence == evidence
    fast, slow = found.tokens_per_second
    spread = cost.SPREAD[evidence]
    assert fast / slow == pytest.approx((1 + spread) / (1 - spread))


def test_the_fit_is_the_line_through_our_steps():
    launch, share = cost.fit_step()
    assert launch == pytest.approx(FIXED / 1000 / 12)
    assert share == pytest.approx(1024 * FLOPS / (EACH / 1000) / 794e12)
    slower = [step._replace(milliseconds=2 * step.milliseconds) for step in cost.STEPS]
    assert cost.fit_step(slower) == pytest.approx((2 * launch, share / 2))


@pytest.mark.parametrize("gpu, rows", [("H200", 32), ("A100-80GB", 32), ("L40S", 16)])
def test_one_large_micro_batch_is_cheaper_than_four_small_ones(gpu, rows):
    """As large as fits (18 rows do on an L40S) and divides the 32 of a step."""
    large = {"n_layers": 36, "n_heads": 20, "d_model": 1280, "d_ff": 5120}
    config = run_config(modal={"gpu": gpu}, model=large)
    best = cost.cheapest_batch(config)
    training = best.training
    assert (training.batch_size, training.gradient_accumulation_steps) == (
        rows,
        32 // rows,
    )
    assert cost.tokens_per_step(best) == cost.tokens_per_step(config)
    before, after = cost.estimate(config), cost.estimate(best)
    assert after.fits_memory and after.dollars[0] < before.dollars[0]


def test_a_whole_step_at_once_needs_no_memory_for_earlier_gradients():
    """32 rows of the medium size fit an A100 as one micro-batch, and as one of two they would not."""
    medium = {"n_layers": 24, "n_heads": 16, "d_model": 1024, "d_ff": 4096}
    config = run_config(modal={"gpu": "A100-40GB"}, model=medium)
    assert cost.estimate(config).largest_batch < 32
    best = cost.cheapest_batch(config)
    assert best.training.batch_size == 32 and cost.estimate(best).fits_memory


def test_a_batch_that_fits_nowhere_stays():
    config = run_config({"batch_size": 64})
    assert cost.cheapest_batch(config) is config


def test_the_larger_batch_is_told_with_what_it_saves():
    config = run_config(modal={"gpu": "H200"})
    told = cost.verdict(config)[1]
    before, after = (
        cost.estimate(found).dollars[1]
        for found in (config, cost.cheapest_batch(config))
    )
    assert f" {1 - after / before:.0%} less with training.batch_size=32 " in told
    assert "training.gradient_accumulation_steps=1, the same rows a step" in told
    assert "less with" not in cost.verdict(cost.cheapest_batch(config))[1]


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
        ({}, "L4", "bfloat16", 91),
        ({}, "T4", "float16", 24),
        ({"dtype": "float16"}, "L4", "float16", 91),
        ({"dtype": "bfloat16"}, "T4", "bfloat16", 8.1),  # not in hardware
        ({"dtype": "float32"}, "L4", "float32", 30.3),
        ({"use_amp": False}, "A100", "float32", 19.5),
    ],
)
def test_precision_decides_the_speed(training, gpu, dtype, tflops):
    config = run_config(training, {"gpu": gpu})
    assert cost.estimate(config).dtype == dtype
    took = cost.micro_batch_seconds(config, cost.MODAL.find(gpu))
    assert took == pytest.approx((FIXED + 8 * EACH * 794 / tflops) / 1000)


def test_without_compile_half_the_speed_beyond_the_fixed_part():
    h200 = cost.MODAL.find("H200")
    eager = cost.micro_batch_seconds(run_config({"compile": False}), h200)
    assert eager == pytest.approx((FIXED + 2 * 8 * EACH) / 1000)
    assert eager == pytest.approx(0.0435, rel=0.02)  # as measured


def test_a_small_model_is_bound_by_its_launches():
    small = {
        "vocab_size": 512,
        "context_length": 64,
        "n_layers": 4,
        "n_heads": 2,
        "d_model": 64,
        "d_ff": 256,
    }
    config = run_config(model=small)
    for gpu in ("A100", "B200"):
        took = cost.micro_batch_seconds(config, cost.MODAL.find(gpu))
        assert took == pytest.approx(4 * FIXED / 12 / 1000, rel=0.01)


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
    config = run_config({"max_steps": 50_000}, {"timeout": 9000, "max_dollars": 12.0})
    honest, sentence = cost.verdict(config)
    assert not honest
    fitting = [
        row
        for row in cost.estimate_all(config)
        if row.hours[1] <= 2.5 and row.dollars[1] <= 12
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
    wish = run_config({"batch_size": 64, "max_steps": 4000}, limits)
    assert f"Fits if batch_size ≤ {largest}, or on " in cost.verdict(wish)[1]
    training = {"batch_size": largest, "max_steps": 4000}
    assert cost.verdict(run_config(training, limits))[0]


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
    assert "RTX-PRO-6000:4 bf16 assumed" in four
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


def test_the_faster_gpu_is_the_cheaper_one_if_it_is_kept_busy():
    """At the fast end; with eight rows at a time a B200 waits, and an H100 is cheaper."""
    for rows, best in ((8, "H100"), (32, "B200")):
        training = {"batch_size": rows, "gradient_accumulation_steps": 32 // rows}
        found = cost.estimate_all(run_config(training))
        dollars = {row.gpu: row.dollars[0] for row in found}
        assert dollars["T4"] > dollars["A100-40GB"] > dollars["H100"]
        assert min(dollars["H100"], dollars["B200"]) == dollars[best]


@pytest.mark.parametrize("name", ["stories_cpu", "gpt_124m", "gpt_350m", "gpt_774m"])
def test_shipped_configs_keep_their_promises(name, request):
    config = load_config(request.config.rootpath / "configs" / f"{name}.yaml")
    honest, sentence = cost.verdict(config)
    assert honest, sentence
    assert cost.estimate(config).dollars[1] <= cost.MODAL.free_dollars_per_month
    assert config.modal.timeout <= 86_400


@pytest.mark.parametrize("name", ["gpt_124m", "gpt_350m", "gpt_774m"])
def test_shipped_configs_say_how_few_tokens_they_train_on(name, request):
    path = request.config.rootpath / "configs" / f"{name}.yaml"
    config = load_config(path)
    tokens = config.training.max_steps * cost.tokens_per_step(config)
    each = tokens / cost.count_parameters(config.model)
    assert f"# {each:.2f} tokens for each parameter" in path.read_text()


# ---------------------------------------------------------------- what is printed


def test_table_has_a_line_for_each_gpu_and_marks():
    config = run_config({"batch_size": 40})
    lines = cost.cost_table(config).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("*T4"))
    rows, title = lines[first : first + len(cost.MODAL.gpus)], lines[2:first]
    assert [row[1:].split()[0] for row in rows] == [g.name for g in cost.MODAL.gpus]
    assert [line for line in lines if line.startswith("*")] == [rows[0]]
    assert "! of  16" in rows[0] and " assumed    11-30 " in rows[0]
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
    assert found["prices"]["date"] == str(cost.MODAL.date)
