"""slm.cloud.plan: a law by hand, and for each budget a config that holds and that no other choice beats."""

import math
import re
import shlex
import subprocess
import sys

import pytest

from slm import cli
from slm.cloud import cost, plan
from slm.errors import SlmError
from slm.gpus import MODAL
from slm.model.config import count_parameters
from slm.training.config import load_config

BUDGETS = [0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
KINDS = [gpu.name for gpu in MODAL.gpus]


# ---------------------------------------------------------------- the law


def test_the_law_by_hand():
    """1.8172 + 482.01 / 10^(9 x 0.3478) + 2085.43 / 10^(10 x 0.3658)."""
    loss, error = plan.predicted_loss(1e9, 1e10)
    assert loss == pytest.approx(1.8172 + 482.01 / 1349.0 + 2085.43 / 4549.9, rel=1e-4)
    bent = 2085.43 / 4549.9 * 0.02 * math.log(2)  # half the tokens of the middle
    assert error == pytest.approx(2 * math.sqrt(0.03**2 + bent**2), rel=1e-3)
    assert plan.predicted_loss(1e9, 2e10)[1] == pytest.approx(0.06)


def test_the_error_is_that_of_exponents_turned_around_the_middle():
    for parameters, tokens in ((1.2e8, 5e8), (7e9, 3e11)):
        loss, error = plan.predicted_loss(parameters, tokens)
        size = 482.01 / 1e9**0.3478 * (1e9 / parameters) ** (0.3478 + 1e-6)
        text = 2085.43 / 2e10**0.3658 * (2e10 / tokens) ** (0.3658 + 1e-6)
        terms = 482.01 / parameters**0.3478, 2085.43 / tokens**0.3658
        slopes = (size - terms[0]) / 1e-6, (text - terms[1]) / 1e-6
        by_hand = 2 * math.hypot(0.03, 0.02 * slopes[0], 0.02 * slopes[1])
        assert error == pytest.approx(by_hand, rel=1e-4)
        assert loss == pytest.approx(1.8172 + sum(terms))


# ---------------------------------------------------------------- any budget


@pytest.mark.parametrize("gpu", [None, "H100:8", *KINDS])
def test_a_plan_fits_its_budget_and_more_dollars_never_predict_more_loss(gpu, tmp_path):
    losses, spent = [], []
    for dollars in BUDGETS:
        try:
            found = plan.plan(dollars, gpu)
        except SlmError as error:
            assert "is too little" in str(error) and not losses
            continue
        path = tmp_path / f"{dollars}.yaml"
        found.write(path)
        config = load_config(path)
        assert config.as_dict() == found.config.as_dict()
        fits, told = cost.verdict(config)
        assert fits and told.startswith("Fits: ")
        estimate = cost.estimate(config)
        assert estimate == found.estimate
        assert estimate.dollars[1] <= config.modal.max_dollars <= dollars
        assert estimate.largest_batch >= config.training.batch_size
        assert gpu is None or config.modal.gpu.split(":")[0] == gpu.split(":")[0]
        step = cost.tokens_per_step(config)
        assert found.tokens == config.training.max_steps * step
        loss = plan.predicted_loss(count_parameters(config.model), found.tokens)
        assert loss == (found.loss, found.error)
        losses.append(found.loss)
        spent.append(estimate.dollars[1] / dollars)
    for before, after, share in zip(losses, losses[1:], spent[1:], strict=False):
        assert after < before or (after == before and share < 1)
    assert len(losses) >= 5


def test_dollars_are_spent_where_a_day_is_long_enough():
    for dollars in BUDGETS:
        assert plan.plan(dollars).estimate.dollars[1] > 0.99 * dollars


@pytest.mark.parametrize("dollars, gpu", [(3, "T4"), (40, "H200"), (80, "A100-40GB:2")])
def test_no_other_shape_would_do_better(dollars, gpu):
    """Each shape on that GPU with as many steps as the money buys, from the estimate of the cost alone."""
    best = plan.plan(dollars, gpu)
    config = best.config
    for shape in plan.SHAPES:
        sections = config.as_dict()
        width = shape.d_model
        sections["model"] |= {"n_layers": shape.n_layers, "d_model": width}
        sections["model"] |= {"n_heads": width // 64, "d_ff": 4 * width}
        count = config.modal.gpu_count
        for rows in (1, 2, 4, 8, 16, 32):
            sections["training"] |= {
                "batch_size": rows,
                "gradient_accumulation_steps": max(1, shape.rows // count // rows),
            }
            other = plan.make_config(sections)
            found = cost.estimate(other)
            if rows * count <= shape.rows and found.fits_memory:
                tokens = cost.max_steps_that_fit(other) * cost.tokens_per_step(other)
                parameters = count_parameters(other.model)
                loss = plan.predicted_loss(parameters, max(tokens, 1))[0]
                assert best.loss <= loss * (1 + 1e-4)


def test_the_text_is_the_smallest_that_is_seen_four_times_at_most():
    sizes = list(plan.CORPORA.values())
    for dollars in BUDGETS:
        found = plan.plan(dollars)
        n = sizes.index(plan.CORPORA[found.config.data.dataset])
        assert found.tokens <= plan.PASSES * sizes[n]
        assert n == 0 or found.tokens > plan.PASSES * sizes[n - 1]


def test_shapes_are_sane_and_grow():
    parameters = []
    for shape in plan.SHAPES:
        model = plan._draft(shape, "T4", 1.0).model
        assert model.d_model == 64 * model.n_heads and model.d_ff == 4 * model.d_model
        assert shape.rows % 8 == 0  # eight GPUs share them
        parameters.append(count_parameters(model))
    assert parameters == sorted(parameters)
    rates = [shape.learning_rate for shape in plan.SHAPES]
    assert rates == sorted(rates, reverse=True)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("gpu", [None, "T4", "H200", "H100:8"])
def test_too_little_says_the_least_and_the_least_is_enough(gpu):
    with pytest.raises(SlmError, match="is too little") as caught:
        plan.plan(0.01, gpu)
    words = str(caught.value).split(" cost up to $")[1]
    least = float(words.split(" ")[0])
    assert plan.plan(least, gpu).config.training.max_steps >= plan.LEAST_STEPS
    with pytest.raises(SlmError, match="is too little"):
        plan.plan(least - 0.02, gpu)


@pytest.mark.parametrize(
    "words, said",
    [
        (["0"], "0 dollars cannot be planned for"),
        (["-3"], "-3 dollars cannot"),
        (["nan"], "nan dollars cannot"),
        (["inf"], "inf dollars cannot"),
        (["1e12"], "above 0 and up to 100,000"),
        (["100000.01"], "100000.01 dollars cannot"),
        (["5", "--gpu", ""], "no price for GPU ''"),
        (["5", "--prices", ""], "Is a directory"),
        (["5", "--out", ""], "is there already"),
        (["5", "--out", "$NOT_SET_HERE/x.yaml"], "$NOT_SET_HERE stands for nothing"),
        (["5", "--gpu", "T5"], "no price for GPU 'T5'"),
        (["5", "--gpu", "H100:9"], "of H100, 1 to 8 can be had"),
        (["5", "--gpu", "H100:"], "of H100, 1 to 8 can be had"),
        (["5", "--out", "nowhere/run.yaml"], "No such file or directory"),
    ],
)
def test_a_mistake_is_one_sentence(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", *words]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and told.startswith("slm: ")


def test_gpus_too_small_for_any_model_are_one_sentence():
    small = [gpu.model_copy(update={"memory_gb": 0.1}) for gpu in MODAL.gpus]
    prices = MODAL.model_copy(update={"gpus": tuple(small)})
    for gpu, said in ((None, "these GPUs"), ("T4", "T4")):
        with pytest.raises(SlmError, match=f"No model is small enough for {said}"):
            plan.plan(5.0, gpu, prices)


@pytest.mark.parametrize("words", ["plenty", "1_0", "٢"])
def test_words_are_no_dollars(capsys, words):
    with pytest.raises(SystemExit) as caught:
        cli.main(["plan", words])
    assert caught.value.code == 2
    assert (
        f"argument DOLLARS: invalid number value: '{words}'" in capsys.readouterr().err
    )


# ---------------------------------------------------------------- the command


def test_the_command_writes_what_cost_accepts_and_overwrites_nothing(capsys, tmp_path):
    path = tmp_path / "my run.yaml"
    assert cli.main(["plan", "5", "--gpu", "H200", "--out", str(path)]) == 0
    told = capsys.readouterr().out
    found = plan.plan(5.0, "H200")
    assert (
        found.report() in told
        and str(MODAL.date) in told
        and f"{path} is written" in told
    )
    command = re.search("`(slm cost .*)`", told)[1]  # as a shell reads it
    assert shlex.split(command) == ["slm", "cost", str(path)]
    assert max(map(len, found.report().splitlines())) <= 88
    text = path.read_text()
    assert cli.main(["cost", str(path)]) == 0
    assert "Fits: at most" in capsys.readouterr().out
    assert cli.main(["plan", "7", "--out", str(path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert path.read_text() == text


def test_nothing_is_written_unasked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", "5"]) == 0
    assert not list(tmp_path.iterdir())


def test_money_that_a_day_cannot_spend_is_told():
    report = plan.plan(1000, "T4").report()
    assert "of 1000.00; no attempt may be longer" in report
    assert "no attempt" not in plan.plan(5, "T4").report()
    assert max(map(len, report.splitlines())) <= 88


def test_other_prices_make_another_plan():
    dearer = MODAL.model_copy(
        update={
            "gpus": tuple(
                gpu.model_copy(
                    update={"dollars_per_second": 4 * gpu.dollars_per_second}
                )
                for gpu in MODAL.gpus
            )
        }
    )
    assert plan.plan(20, prices=dearer).loss > plan.plan(20).loss


def test_import_needs_no_torch():
    code = "import slm.cloud.plan as p, sys; p.plan(5); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "False\n", found.stderr
