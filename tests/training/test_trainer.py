"""slm.training.trainer: the step, validation, rows, state; against plain PyTorch where there is something to compare."""

import copy
import math
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from slm.data import stories
from slm.data.batches import TextDataset
from slm.data.tokenizer import get_tokenizer
from slm.errors import SlmError
from slm.model.config import count_flops_per_token
from slm.training.metrics import Dollars, Observer
from slm.training.run import train
from slm.training.trainer import Trainer, evaluating


def test_equals_a_plain_pytorch_loop(loader_of, losses, model_of, quick):
    t = {"training": {**quick, "weight_decay": 0.0, "grad_clip": 0.0}}
    ours, plain = model_of(dropout=0.0), model_of(dropout=0.0)
    metrics = Trainer(ours, loader_of(), None, t, device="cpu", verbose=False).train()
    optimizer = torch.optim.AdamW(
        plain.parameters(), betas=(0.9, 0.95), weight_decay=0.0
    )
    expected = []
    for step, (x, y) in zip(range(12), loader_of(), strict=False):
        rate = (
            3e-3 * (step + 1) / 2
            if step < 2
            else 0.5 * 3e-3 * (1 + math.cos(math.pi * (step - 2) / 9))
        )
        optimizer.param_groups[0]["lr"] = rate
        loss = nn.functional.cross_entropy(plain(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses(metrics) == pytest.approx(expected, abs=1e-5)


def test_accumulation_equals_the_large_batch_with_unequal_targets(
    cache, config, losses
):
    """Rows hold different numbers of padded targets, so weighting every part alike would show."""
    results = []
    for batch_size, parts in ((8, 1), (2, 4)):
        c = config(
            model={"dropout": 0.0},
            batch_size=batch_size,
            gradient_accumulation_steps=parts,
            eval_every=12,
        )
        run = train(c, run_dir=cache / f"accumulate_{parts}", verbose=False)
        results.append((losses(run.metrics), run.model))
    (large, model_large), (small, model_small) = results
    assert small == pytest.approx(large, abs=1e-5)
    for a, b in zip(model_large.parameters(), model_small.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_accumulated_gradient_is_the_whole_batch_s_to_a_millionth(
    loader_of, model_of, quick
):
    """Parts with 64, 3 and 30 targets; the gradient that the optimizer sees against autograd's of the whole batch."""
    x, y = next(iter(loader_of(batch_size=6)))
    y = y.clamp(min=0)  # (B, T): every position counts, but
    y[2:4, 2:], y[3, 1:], y[4:, 15:] = -100, -100, -100
    parts = list(zip(x.split(2), y.split(2), strict=True))
    options = {
        **quick,
        "gradient_accumulation_steps": 3,
        "grad_clip": 0.0,
        "warmup_steps": 0,
    }
    trainer = Trainer(
        model_of(dropout=0.0),
        parts,
        None,
        {"training": options},
        device="cpu",
        verbose=False,
    )
    whole, seen = model_of(dropout=0.0), []
    nn.functional.cross_entropy(whole(x).flatten(0, 1), y.flatten()).backward()
    trainer.optimizers[0].register_step_pre_hook(
        lambda *_: seen.append(
            torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        )
    )
    trainer.train_step(iter(parts))
    expected = torch.cat([p.grad.flatten() for p in whole.parameters()])
    assert (seen[0] - expected).norm() <= 1e-6 * expected.norm()


def test_clipping_bounds_the_gradient(loader_of, monkeypatch, model_of, quick):
    seen = []
    original = nn.utils.clip_grad_norm_

    def watched(parameters, limit):
        parameters = list(parameters)
        before = original(parameters, limit)
        seen.append((before, torch.cat([p.grad.flatten() for p in parameters]).norm()))
        return before

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", watched)
    options = {"training": {**quick, "grad_clip": 0.25}}
    Trainer(model_of(), loader_of(), None, options, device="cpu", verbose=False).train()
    assert len(seen) == 12 and any(before > 0.25 for before, _ in seen)
    assert all(after <= 0.2501 for _, after in seen)


def test_float16_on_the_cpu_skips_a_step_that_overflows(loader_of, model_of, quick):
    trainer = Trainer(
        model_of(),
        loader_of(),
        None,
        {"training": {**quick, "dtype": "float16"}},
        device="cpu",
        verbose=False,
    )
    assert trainer.scaler.is_enabled()
    batches = iter(loader_of())
    trainer.train_step(batches)
    before, scale = (
        [p.clone() for p in trainer.model.parameters()],
        trainer.scaler.get_scale(),
    )
    handle = trainer.model.norm.weight.register_hook(
        lambda gradient: gradient * math.inf
    )
    trainer.train_step(batches)
    handle.remove()
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, trainer.model.parameters(), strict=True)
    )
    assert trainer.scaler.get_scale() < scale
    trainer.train_step(batches)
    assert not all(
        torch.equal(a, b)
        for a, b in zip(before, trainer.model.parameters(), strict=True)
    )
    assert trainer.skipped_steps == 1


def test_skipped_steps_are_logged_and_counted_on_after_a_resume(
    tmp_path, monkeypatch, config, interrupted, losses, equal_runs
):
    original = Trainer.train_step

    def overflowing(self, batches, stop=False):
        hook = self.model.norm.weight.register_hook(
            lambda gradient: gradient * (math.inf if self.step % 3 == 1 else 1)
        )
        try:
            return original(self, batches, stop)
        finally:
            hook.remove()

    monkeypatch.setattr(Trainer, "train_step", overflowing)
    c = config(dtype="float16")
    interrupted(c, tmp_path / "run")
    run = train(c, run_dir=tmp_path / "run", verbose=False)
    assert run.finished
    equal_runs(
        run, train(c, run_dir=tmp_path / "whole", verbose=False)
    )  # with the same loss scale in each row
    assert losses(run.metrics, "train/skipped_steps") == [
        (step + 1) // 3 for step in range(1, 13)
    ]


def test_float16_that_overflows_at_every_scale_ends_the_run(
    tmp_path, monkeypatch, config
):
    """From 65,536 the scale is halved 17 times before it is below one; then it is not the scale that is at fault."""
    original = Trainer.train_step

    def overflowing(self, batches, stop=False):
        if self.step == 6:
            self.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
        return original(self, batches, stop)

    monkeypatch.setattr(Trainer, "train_step", overflowing)
    c = config(dtype="float16", max_steps=60, log_every=20)
    overflow = r"the gradient overflows float16 whatever the loss scale at step 23 .* checkpoint is .*step_00000020.pt"
    with pytest.raises(SlmError, match=overflow):
        train(c, run_dir=tmp_path / "run", verbose=False)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_float16_skips_all_optimizers_or_none(loader_of, bad, model_of, quick):
    """An overflow in the embedding's gradient, AdamW's, must not let Muon step on what clipping made of the rest."""
    options = {**quick, "dtype": "float16", "optimizer": "muon"}
    trainer = Trainer(
        model_of(),
        loader_of(),
        None,
        {"training": options},
        device="cpu",
        verbose=False,
    )
    batches = iter(loader_of())
    trainer.train_step(batches)
    before = [p.clone() for p in trainer.model.parameters()]
    handle = trainer.model.position_embedding.weight.register_hook(
        lambda gradient: gradient * bad
    )
    trainer.train_step(batches)
    handle.remove()
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, trainer.model.parameters(), strict=True)
    )
    trainer.finite_losses()  # a skipped step is no divergence


def test_a_gradient_that_is_not_finite_reaches_no_checkpoint(
    tmp_path, monkeypatch, config
):
    original = Trainer.train_step

    def poisoned(self, batches, stop=False):
        if self.step == 6:
            self.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
        return original(self, batches, stop)

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    c = config(log_every=4)
    with pytest.raises(
        SlmError,
        match=r"gradient's norm became nan at step 6 .* checkpoint is .*step_00000004.pt",
    ):
        train(c, run_dir=tmp_path / "run", verbose=False)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [
        "step_00000004.pt"
    ]


def test_a_loss_that_is_not_finite_stops_with_step_and_checkpoint(cache, config):
    c = config(learning_rate=1e30, min_learning_rate=0.0, grad_clip=0.0)
    with pytest.raises(
        SlmError,
        match=r"the (loss|gradient's norm) became (nan|inf) at step \d+ \(learning rate",
    ):
        train(c, run_dir=cache / "diverged", verbose=False)
    assert not (cache / "diverged/model").exists()


def test_validation_is_the_mean_over_all_targets_and_changes_nothing(
    loader_of, model_of, quick
):
    model = model_of()
    trainer = Trainer(
        model,
        loader_of(),
        loader_of(batch_size=7, shuffle=False),
        {"training": quick | {"eval_batches": None}},
        device="cpu",
        verbose=False,
    )
    state = torch.get_rng_state()
    loss = trainer.validate()
    assert torch.equal(torch.get_rng_state(), state) and model.training
    model.eval()
    total = count = 0.0
    with torch.no_grad():
        for x, y in loader_of(batch_size=1, shuffle=False).epoch_batches():
            total += nn.functional.cross_entropy(
                model(x).flatten(0, 1), y.flatten(), reduction="sum"
            ).item()
            count += int((y != -100).sum())
    assert loss == pytest.approx(total / count, abs=1e-5)


def test_training_and_validation_are_compiled_once_each(loader_of, model_of, quick):
    """In one graph each, and not anew for the last batch of a validation, which is shorter."""
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    held_out = loader_of(batch_size=7, shuffle=False)
    assert len(held_out.dataset) % 7
    settings = {"training": quick | {"eval_batches": None}}
    trainer = Trainer(model_of(), loader_of(), held_out, settings, "cpu", verbose=False)
    loss = trainer.validate()
    trainer.loss.compile(backend=counting, fullgraph=True)
    trainer.compiled = True
    assert trainer.validate() == pytest.approx(loss, abs=1e-6)
    batches = trainer.batches()
    for _ in range(2):
        trainer.train_step(batches)
        trainer.validate()
    assert len(graphs) == 2


def test_mfu_counts_every_multiplication(trainer_of):
    trainer = trainer_of()
    trainer.train_step(iter(trainer.train_loader))
    trainer.peak_flops = 1e9
    trainer.log_training(tqdm(disable=True), since=0.0, seen=0)
    row = trainer.metrics[-1]
    flops = count_flops_per_token(trainer.model.config)
    assert row["perf/mfu"] == pytest.approx(row["perf/tokens_per_s"] * flops / 1e9)


def test_dropout_is_on_in_training_whatever_mode_the_model_came_in(
    loader_of, losses, model_of, quick
):
    metrics = [
        Trainer(
            model.train(mode),
            loader_of(),
            None,
            {"training": quick},
            "cpu",
            verbose=False,
        ).train()
        for mode in (True, False)
        for model in [model_of()]
        if torch.manual_seed(0)
    ]
    assert losses(metrics[0]) == losses(metrics[1])


def test_a_single_step_outside_of_train_tells_its_observers(trainer_of):
    rows = []

    class Watching(Observer):
        def on_row(self, row):
            rows.append(row)

    trainer = trainer_of(observers=[Watching()])
    trainer.train_step(iter(trainer.train_loader))
    assert [row["step"] for row in rows] == [0] and rows == trainer.metrics


def test_validation_leaves_the_mode_as_it_was(trainer_of, loader_of):
    trainer = trainer_of(val=[next(iter(loader_of()))])
    for training in (True, False):
        trainer.model.train(training)
        trainer.validate()
        with evaluating(trainer.model):
            assert not trainer.model.training and not torch.is_grad_enabled()
        assert trainer.model.training is training


def test_any_iterable_of_batches_will_do(losses, model_of, quick):
    tokenizer = get_tokenizer("stories")
    rows = TextDataset([stories.sample(seed) for seed in range(20)], tokenizer, 32)
    metrics = Trainer(
        model_of(),
        DataLoader(rows, batch_size=4),
        DataLoader(rows, batch_size=4),
        {"training": {**quick, "max_steps": 30}},
        device="cpu",
        verbose=False,
    ).train()
    assert losses(metrics)[-1] < losses(metrics)[0] and losses(metrics, "val/loss")
    with pytest.raises(ValueError, match="train_loader is empty"):
        Trainer(
            model_of(), [], None, {"training": quick}, device="cpu", verbose=False
        ).train()


def test_a_dictionary_is_checked_like_a_file(loader_of, model_of):
    with pytest.raises(SlmError, match="did you mean 'max_steps'"):
        Trainer(model_of(), loader_of(), None, {"training": {"max_step": 3}})


def test_each_process_goes_on_with_its_own_random_numbers(trainer_of, monkeypatch):
    trainer = trainer_of()
    trainer.train_step(iter(trainer.train_loader))
    state = trainer.state_dict()
    other = {"cpu": torch.Generator().manual_seed(77).get_state(), "device": None}
    state["rng_state"] = [state["rng_state"][0], other]
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        with torch.random.fork_rng():
            trainer_of().load_state_dict(state)
            assert torch.equal(torch.get_rng_state(), other["cpu"]) == (rank == 1)


def test_a_state_handed_to_another_trainer_gives_the_same_run(trainer_of):
    """Without any file: weights, optimizers, random numbers and pending losses go on as if nothing had happened."""
    whole = trainer_of(optimizer="muon", log_every=5)
    expected = whole.train()
    torn = trainer_of(optimizer="muon", log_every=5)
    stops = iter([False] * 6 + [True] * 9)
    torn.train(stop=lambda: next(stops))
    assert torn.step == 7 and torn.stopping
    state = copy.deepcopy(torn.state_dict())
    again = trainer_of(optimizer="muon", log_every=5)  # draws random numbers
    again.load_state_dict(state)
    rows = torn.metrics + again.train()
    loss = [row["train/loss"] for row in rows if "train/loss" in row]
    assert loss == [row["train/loss"] for row in expected if "train/loss" in row]
    pairs = zip(whole.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_observers_are_told_in_order_and_on_every_moment(trainer_of, loader_of):
    moments = []

    class Watching(Observer):
        def on_start(self, trainer):
            moments.append("start")

        def on_row(self, row):
            moments.append("row")

        def on_validation(self, trainer):
            assert trainer.val_loss == trainer.metrics[-1]["val/loss"]
            moments.append("validation")

        def on_step(self, trainer):
            moments.append(trainer.step)

        def on_end(self):
            moments.append("end")

    val = [next(iter(loader_of()))]
    options = {"max_steps": 3, "warmup_steps": 1, "log_every": 2, "eval_every": 100}
    trainer = trainer_of(val=val, observers=[Watching()], **options)
    trainer.train()
    assert moments == ["start", "row", "row", 1, "row", 2] + (
        ["row", "row", "validation", 3, "end"]
    )


def test_what_an_observer_adds_to_a_row_is_seen_by_the_next(trainer_of):
    trainer = trainer_of(observers=[Dollars(3600.0)], max_steps=3)
    rows = trainer.train()
    assert [row["cost/usd"] for row in rows] == pytest.approx(
        [r["seconds"] for r in rows]
    )


def test_a_run_that_diverges_says_what_observers_know(trainer_of):
    class Knowing(Observer):
        def recovery(self):
            return "all is kept"

    trainer = trainer_of(observers=[Observer(), Knowing()])
    told = str(trainer.diverged("the loss became nan", 3))
    assert told.startswith("the loss became nan at step 3 (learning rate ")
    assert "); all is kept; another run with a lower training.learning_rate" in told


def test_the_time_of_a_step_counts_until_the_device_is_done(trainer_of, monkeypatch):
    """Losses are read before the clock is: a queue that still runs would make any speed look high."""
    asked = []
    trainer = trainer_of(max_steps=3)
    original = trainer.finite_losses
    monkeypatch.setattr(
        trainer, "finite_losses", lambda: asked.append("losses") or original()
    )
    clock = time.perf_counter
    monkeypatch.setattr(
        "slm.training.trainer.time.perf_counter",
        lambda: asked.append("clock") or clock(),
    )
    trainer.train_step(iter(trainer.train_loader))
    asked.clear()
    trainer.log_training(tqdm(disable=True), since=0.0, seen=0)
    assert asked[:2] == ["losses", "clock"]


@pytest.mark.parametrize("loader", [[], iter([])])
def test_validation_without_a_target_is_not_taken_for_divergence(
    loader_of, loader, model_of, quick
):
    trainer = Trainer(
        model_of(), loader_of(), loader, {"training": quick}, "cpu", verbose=False
    )
    with pytest.raises(ValueError, match="the val_loader gave no targets"):
        trainer.train()


def test_a_trainer_that_was_stopped_goes_on_when_asked_again(trainer_of, losses):
    whole = losses(trainer_of().train())
    trainer = trainer_of()
    stops = iter([False] * 3 + [True])
    trainer.train(stop=lambda: next(stops))
    assert trainer.step == 4 and losses(trainer.metrics) == whole[:4]
    assert losses(trainer.train()) == whole and not trainer.stopping
