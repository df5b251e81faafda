"""slm.cloud.price: what a launch will cost, the most that it can, what its own speed says, and what is refused."""

import dataclasses
import subprocess
import sys

import pytest

from slm.cloud.cost import estimate, tokens_per_step
from slm.cloud.price import (
    NEW,
    budget,
    check,
    measured,
    most_attempts,
    most_dollars,
    reconcile,
    refuse_other,
    remaining,
    terms,
)
from slm.errors import SlmError
from slm.training.config import load_config
from slm.training.folder import report

GPT = "configs/gpt_124m.yaml"
BEGUN = NEW | {"checkpoint": 600, "dollars": 0.5, "seconds": 300.0, "attempts": 2}


def config(*changes, path=GPT):
    return load_config(path, changes)


# --- what it will cost


@pytest.mark.parametrize("name", ["stories_cpu", "gpt_124m", "gpt_350m", "gpt_774m"])
def test_whole_new_run_costs_what_the_estimate_says(name):
    one = config(path=f"configs/{name}.yaml")
    whole, found = remaining(one), estimate(one)
    for field in ("hours", "dollars", "mfu", "tokens_per_second"):
        assert getattr(whole, field) == pytest.approx(getattr(found, field))
    assert dataclasses.replace(
        whole, hours=found.hours, dollars=found.dollars, mfu=found.mfu
    ) == dataclasses.replace(found, tokens_per_second=whole.tokens_per_second)


def test_part_of_a_run_costs_its_start_up_and_its_share():
    """By hand: 600 steps of 32,768 tokens, a tenth for evaluation, 60 to 300 s of start-up."""
    one = config()
    whole, part, rest = remaining(one), remaining(one, steps=600), remaining(one, BEGUN)
    for end, start_up in enumerate((60, 300)):
        seconds = start_up + 1.1 * 600 * 32_768 / whole.tokens_per_second[end]
        assert part.hours[end] * 3600 == pytest.approx(seconds)
        assert part.dollars[end] == pytest.approx(
            seconds / 3600 * whole.dollars_per_hour
        )
        together = part.hours[end] + rest.hours[end] - start_up / 3600
        assert together == pytest.approx(whole.hours[end])
    assert remaining(one, BEGUN, steps=1200).hours == pytest.approx(part.hours)


def test_speed_of_the_run_itself_replaces_the_expected_one():
    one = config()
    rest = remaining(one, BEGUN | {"tokens_per_s": (400_000.0, 500_000.0)})
    seconds = [
        start_up + 1.1 * 14_400 * 32_768 / speed
        for start_up, speed in ((60, 500_000), (300, 400_000))
    ]
    assert [hours * 3600 for hours in rest.hours] == pytest.approx(seconds)
    assert rest.evidence == "measured" and rest.tokens_per_second == (5e5, 4e5)
    peak = 989e12 / 854_438_400  # tokens a second of all of H200's FLOPs
    assert rest.mfu == pytest.approx((5e5 / peak, 4e5 / peak), rel=1e-3)


def test_measured_line_tells_speed_hours_and_dollars():
    one, so_far = config(), BEGUN | {"tokens_per_s": (431_234.5, 438_000.0)}
    rest = remaining(one, so_far)
    told = " ".join(measured(one, so_far).split())
    for words in (
        "measured 431,234 to 438,000 tokens/s on H200, so steps 601 to 15,000",
        f"take {rest.hours[0]:.2f} to {rest.hours[1]:.2f} h",
        f"and {rest.dollars[0]:.2f} to {rest.dollars[1]:.2f} dollars",
        "with the $0.50 spent",
        f"whole run {0.5 + rest.dollars[0]:.2f} to {0.5 + rest.dollars[1]:.2f} dollars",
    ):
        assert words in told
    assert measured(one, BEGUN) == ""


# --- the most that it can cost


def test_worst_case_by_hand():
    """One H200 for at most half an hour of a limit of two: 1 + 4 attempts."""
    one, expected = config(), check(config())
    rate = 3600 * (0.001261 + 2 * 0.0000131 + 8 * 0.00000222)  # dollars an hour
    assert most_attempts(one, expected) == 5
    parts = list(most_dollars(one, expected, 4.0).values())
    core_seconds = 3 * 4 * (2 * 3600 + 600) + 2 * 16 * 3 * 4 * (600 + 600)
    assert parts == pytest.approx(
        [
            4.0,
            (1 + 10 + 4) * 30 / 3600 * rate,  # noticed, waited for, four kills
            5 * 10 / 60 * rate,
            0.0,
            core_seconds * 0.0000131,
        ]
    )


def test_stories_need_no_preparation():
    one = config(path="configs/stories_cpu.yaml")
    parts = most_dollars(one, check(one), 1.0)
    assert not any("prepare" in name for name in parts)
    assert "prepare" not in terms(one, check(one), 1.0)
    assert sum(parts.values()) < 2


@pytest.mark.parametrize(
    ("timeout", "attempts"), [(86_400, 5), (7200, 5), (1000, 6), (170, 11), (60, 11)]
)
def test_attempts_are_those_that_the_time_limit_needs_and_four(timeout, attempts):
    one = config(f"modal.timeout={timeout}")
    assert 3600 * remaining(one).hours[1] == pytest.approx(1656.67, abs=0.1)
    assert most_attempts(one, remaining(one)) == attempts


def test_terms_are_two_lines_whose_parts_add_up():
    one = config()
    expected = check(one, before=BEGUN)
    told = terms(one, expected, 4.0, BEGUN)
    will, most = " ".join(told.split()).split(" at most ")
    low, high = expected.dollars
    assert will.startswith(f"expected ${low:.2f} to ${high:.2f} on H200, ")
    parts = most_dollars(one, expected, 3.5)  # what is left
    assert most.startswith(f"${sum(parts.values()):.2f}: $3.50 until the budget")
    again = expected.dollars_per_hour / 6  # ten minutes
    assert most.endswith(f"each time the machine is taken away, ${again:.2f} more")
    assert all(len(line) <= 88 for line in told.splitlines())
    fast = BEGUN | {"tokens_per_s": (431_000.0, 438_000.0)}
    assert terms(one, expected, 4.0, fast) == f"{measured(one, fast)}\n{told}"


# --- the budget


def test_budget_of_a_few_steps_is_the_slow_end_of_their_prediction():
    one = config()
    part = check(one, steps=600)
    assert budget(one, part, steps=600) == part.dollars[1] < 0.5
    more = check(one, before=BEGUN, steps=1200)
    assert budget(one, more, before=BEGUN, steps=1200) == 0.5 + more.dollars[1]
    assert budget(one, check(one)) == 4.0
    small = config("modal.max_dollars=0.3")
    assert budget(small, part, steps=600) == 0.3
    assert budget(small, part, True, steps=600) == part.dollars[1]
    assert budget(small, check(small, True), True) == check(one).dollars[1]


def test_first_steps_may_be_launched_though_the_whole_is_above_the_limit():
    small = config("modal.max_dollars=1")
    with pytest.raises(SlmError, match=r"Needs up to .* say --yes-spend"):
        check(small)
    assert check(small, steps=600).dollars[1] < 0.5


def test_what_was_spent_counts():
    one = config("modal.max_dollars=2.4")
    assert check(one).dollars[1] < 2.4
    with pytest.raises(SlmError, match=r"after \$0.50 spent; the config allows \$2.40"):
        check(one, before=BEGUN)
    assert check(one, True, before=BEGUN).dollars[1] < 2.4
    # and a run that is faster than was expected may go on
    fast = BEGUN | {"tokens_per_s": (600_000.0, 610_000.0)}
    assert check(one, before=fast).dollars[1] < 1.9


@pytest.mark.parametrize("steps", [0, -1, 600, 15_001])
def test_steps_that_are_none_of_those_left_are_refused(steps):
    with pytest.raises(SlmError, match=r"--steps is .* from 601 to 15,000"):
        check(config(), before=BEGUN, steps=steps)


# --- another run


def test_run_goes_on_with_another_gpu_of_the_same_precision():
    for change in ("modal.gpu=H100", "modal.max_dollars=9", "data.cache_dir=/data/x"):
        refuse_other("x", config(), config(change), 600)
    # nothing is computed yet
    refuse_other("x", config(), config("modal.gpu=T4"), 0)
    half = config("training.dtype=float16")
    refuse_other("x", half, config("training.dtype=float16", "modal.gpu=T4"), 600)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("modal.gpu=T4", "H200 computes in bfloat16 and T4 in float16"),
        ("training.max_steps=20000", "max_steps was 15000 and is now 20000"),
        ("training.dtype=float16", "H200 computes in bfloat16 and H200 in float16"),
    ],
)
def test_run_of_another_config_is_refused_in_a_sentence(change, told):
    with pytest.raises(SlmError) as refused:
        refuse_other("x", config(), config(change), 600)
    said = str(refused.value)
    assert told in said and "--run NAME" in said and "\n" not in said


# --- prediction and outcome


def test_reconciliation_takes_off_what_was_spent_before(tmp_path):
    whole = report(tmp_path / "none") | {"seconds": 3900.0, "dollars": 1.75}
    told = reconcile(remaining(config(), BEGUN), whole | {"attempts": 3}, BEGUN)
    assert told.splitlines()[-1].split() == "actual 1 1.25 in 1 attempt".split()
    # an attempt that could not even read the config leaves no count
    told = reconcile(remaining(config(), BEGUN), report(tmp_path / "none"), BEGUN)
    assert told.splitlines()[-1].split()[:3] == ["actual", "0", "0"]


def test_steps_have_the_tokens_that_the_prediction_counts():
    assert tokens_per_step(config()) == 32_768


def test_import_needs_neither_torch_nor_modal():
    code = "import slm.cloud.price, sys; print([name for name in ('torch', 'modal') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def test_reconciliation_names_prediction_cost_and_mfu(tiny, tmp_path):
    expected = check(load_config(tiny()))
    result = report(tmp_path / "none") | {
        "seconds": 7200.0,
        "dollars": 1.25,
        "attempts": 2,
        "mfu": 0.371,
    }
    first, _, predicted, actual = reconcile(expected, result).splitlines()
    assert "not finished at step 0" in first and predicted.endswith("on T4")
    assert actual.split() == [
        "actual",
        "2",
        "1.25",
        "in",
        "2",
        "attempts,",
        "37%",
        "MFU",
    ]
