"""slm.trainer: schedule, accumulation, precision, resume, refusal; against plain PyTorch where there is something to compare."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures import wait as wait_for

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import slm.trainer
from slm import stories
from slm.checkpoint import CheckpointError, copy_to_cpu, load_checkpoint, load_latest, save_checkpoint
from slm.config import ConfigError, TrainingConfig, make_config
from slm.cost import count_flops_per_token
from slm.data import TextDataset, TokenLoader
from slm.gpt import GPT, GPTConfig
from slm.tokenizer import get_tokenizer
from slm.trainer import (
    Trainer,
    TrainingDiverged,
    _changed_keys,
    choose_dtype,
    learning_rate,
    load_run,
    make_optimizers,
    peak_flops,
    read_metrics,
    train,
)

MODEL = {
    "vocab_size": 1024,
    "context_length": 32,
    "n_layers": 2,
    "n_heads": 2,
    "d_model": 16,
    "d_ff": 32,
    "dropout": 0.1,
}
QUICK = {"batch_size": 2, "max_steps": 12, "warmup_steps": 2, "learning_rate": 3e-3, "log_every": 1, "eval_every": 6}
QUICK |= {"checkpoint_every": 4, "eval_batches": 2, "sample_tokens": 4, "threads": 1, "dtype": "float32"}


def config(cache, model=None, data=None, **training):
    source = {
        "dataset": "stories",
        "tokenizer": "stories",
        "packing": "documents",
        "max_documents": 300,
        "cache_dir": str(cache),
    }
    return make_config(
        {"model": {**MODEL, **(model or {})}, "training": {**QUICK, **training}, "data": {**source, **(data or {})}},
        name="quick",
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def loader_of(cache):
    tokenizer = get_tokenizer("stories")
    rows = TextDataset([stories.sample(seed) for seed in range(60)], tokenizer, 32)

    def make(batch_size=2, **options):
        return TokenLoader(rows, batch_size=batch_size, **options)

    return make


def interrupted(c, run_dir, at=4):
    """Train, and be sent SIGINT right after step `at`: the run makes one step more, saves it and ends."""
    original = Trainer.update

    def update(self, batches, stop=False):
        asked = original(self, batches, stop)
        if self.step == at:
            os.kill(os.getpid(), signal.SIGINT)
        return asked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "update", update)
        run = train(c, run_dir=run_dir, verbose=False)
    assert not run.finished and (run_dir / f"checkpoints/step_{at + 1:08d}.pt").exists()
    return run


def losses(metrics, key="train/loss"):
    return [row[key] for row in metrics if key in row]


def model_of(seed=0, **changes):
    torch.manual_seed(seed)
    return GPT(GPTConfig(**{**MODEL, **changes}))


# ------------------------------------------------------------------ schedule, optimizers, precision


@pytest.mark.parametrize(("warmup", "steps"), [(10, 100), (0, 7), (1, 2), (99, 100), (0, 1)])
def test_schedule_at_both_ends_and_between(warmup, steps):
    t = TrainingConfig(learning_rate=2.0, min_learning_rate=0.5, warmup_steps=warmup, max_steps=steps)
    rates = [learning_rate(step, t) for step in range(steps)]
    assert rates[0] > 0 and max(rates) == pytest.approx(2.0)
    if warmup:
        assert rates[warmup - 1] == pytest.approx(2.0) and rates[0] == pytest.approx(2.0 / warmup)
    assert rates[-1] == pytest.approx(0.5 if steps > 1 else 2.0)
    if steps > 1:
        assert rates[-1] == pytest.approx(0.5) and min(rates[warmup:]) == pytest.approx(0.5)
        assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_optimized_once_and_only_matrices_decay(optimizer):
    model = model_of()
    groups = [g for o in make_optimizers(model, TrainingConfig(optimizer=optimizer)) for g in o.param_groups]
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    for group in groups:
        assert all((p.dim() == 2) == (group["weight_decay"] > 0) for p in group["params"])


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


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_on_cuda_asks_for_native_bfloat16(monkeypatch, has_bfloat16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
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


# ------------------------------------------------------------------ the step


def test_equals_a_plain_pytorch_loop(loader_of):
    t = {"training": {**QUICK, "weight_decay": 0.0, "grad_clip": 0.0}}
    ours, plain = model_of(dropout=0.0), model_of(dropout=0.0)
    metrics = Trainer(ours, loader_of(), None, t, device="cpu", verbose=False).train()
    optimizer = torch.optim.AdamW(plain.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    expected = []
    for step, (x, y) in zip(range(12), loader_of(), strict=False):
        rate = 3e-3 * (step + 1) / 2 if step < 2 else 0.5 * 3e-3 * (1 + math.cos(math.pi * (step - 2) / 9))
        optimizer.param_groups[0]["lr"] = rate
        loss = nn.functional.cross_entropy(plain(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses(metrics) == pytest.approx(expected, abs=1e-5)


def test_accumulation_equals_the_large_batch_with_unequal_targets(cache):
    """Rows hold different numbers of padded targets, so weighting every part alike would show."""
    results = []
    for batch_size, parts in ((8, 1), (2, 4)):
        c = config(
            cache, model={"dropout": 0.0}, batch_size=batch_size, gradient_accumulation_steps=parts, eval_every=12
        )
        run = train(c, run_dir=cache / f"accumulate_{parts}", verbose=False)
        results.append((losses(run.metrics), run.model))
    (large, model_large), (small, model_small) = results
    assert small == pytest.approx(large, abs=1e-5)
    for a, b in zip(model_large.parameters(), model_small.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_accumulated_gradient_is_the_whole_batch_s_to_a_millionth(loader_of):
    """Parts with 64, 3 and 30 targets; the gradient that the optimizer sees against autograd's of the whole batch."""
    x, y = next(iter(loader_of(batch_size=6)))
    y = y.clamp(min=0)  # (B, T): every position counts, but
    y[2:4, 2:], y[3, 1:], y[4:, 15:] = -100, -100, -100
    parts = list(zip(x.split(2), y.split(2), strict=True))
    options = {**QUICK, "gradient_accumulation_steps": 3, "grad_clip": 0.0, "warmup_steps": 0}
    trainer = Trainer(model_of(dropout=0.0), parts, None, {"training": options}, device="cpu", verbose=False)
    whole, seen = model_of(dropout=0.0), []
    nn.functional.cross_entropy(whole(x).flatten(0, 1), y.flatten()).backward()
    trainer.optimizers[0].register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    )
    trainer.update(iter(parts))
    expected = torch.cat([p.grad.flatten() for p in whole.parameters()])
    assert (seen[0] - expected).norm() <= 1e-6 * expected.norm()


def test_clipping_bounds_the_gradient(loader_of, monkeypatch):
    seen = []
    original = nn.utils.clip_grad_norm_

    def watched(parameters, limit):
        parameters = list(parameters)
        before = original(parameters, limit)
        seen.append((before, torch.cat([p.grad.flatten() for p in parameters]).norm()))
        return before

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", watched)
    options = {"training": {**QUICK, "grad_clip": 0.25}}
    Trainer(model_of(), loader_of(), None, options, device="cpu", verbose=False).train()
    assert len(seen) == 12 and any(before > 0.25 for before, _ in seen)
    assert all(after <= 0.2501 for _, after in seen)


def test_float16_on_the_cpu_skips_a_step_that_overflows(loader_of):
    trainer = Trainer(
        model_of(), loader_of(), None, {"training": {**QUICK, "dtype": "float16"}}, device="cpu", verbose=False
    )
    assert trainer.scaler.is_enabled()
    batches = iter(loader_of())
    trainer.update(batches)
    before, scale = [p.clone() for p in trainer.model.parameters()], trainer.scaler.get_scale()
    handle = trainer.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
    trainer.update(batches)
    handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert trainer.scaler.get_scale() < scale
    trainer.update(batches)
    assert not all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert trainer.skipped == 1


def test_skipped_steps_are_logged_and_counted_on_after_a_resume(cache, tmp_path, monkeypatch):
    original = Trainer.update

    def overflowing(self, batches, stop=False):
        hook = self.model.norm.weight.register_hook(lambda gradient: gradient * (math.inf if self.step % 3 == 1 else 1))
        try:
            return original(self, batches, stop)
        finally:
            hook.remove()

    monkeypatch.setattr(Trainer, "update", overflowing)
    c = config(cache, dtype="float16")
    interrupted(c, tmp_path / "run")
    run = train(c, run_dir=tmp_path / "run", verbose=False)
    assert run.finished
    equal_runs(run, train(c, run_dir=tmp_path / "whole", verbose=False))  # with the same loss scale in each row
    assert losses(run.metrics, "train/skipped_steps") == [(step + 1) // 3 for step in range(1, 13)]


def test_float16_that_overflows_at_every_scale_ends_the_run(cache, tmp_path, monkeypatch):
    """From 65,536 the scale is halved 17 times before it is below one; then it is not the scale that is at fault."""
    original = Trainer.update

    def overflowing(self, batches, stop=False):
        if self.step == 6:
            self.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
        return original(self, batches, stop)

    monkeypatch.setattr(Trainer, "update", overflowing)
    c = config(cache, dtype="float16", max_steps=60, log_every=20)
    overflow = r"the gradient overflows float16 whatever the loss scale at step 23 .* checkpoint is .*step_00000020.pt"
    with pytest.raises(TrainingDiverged, match=overflow):
        train(c, run_dir=tmp_path / "run", verbose=False)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_float16_skips_all_optimizers_or_none(loader_of, bad):
    """An overflow in the embedding's gradient, AdamW's, must not let Muon step on what clipping made of the rest."""
    options = {**QUICK, "dtype": "float16", "optimizer": "muon"}
    trainer = Trainer(model_of(), loader_of(), None, {"training": options}, device="cpu", verbose=False)
    batches = iter(loader_of())
    trainer.update(batches)
    before = [p.clone() for p in trainer.model.parameters()]
    handle = trainer.model.position_embedding.weight.register_hook(lambda gradient: gradient * bad)
    trainer.update(batches)
    handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    trainer._finite()  # a skipped step is no divergence


def test_a_gradient_that_is_not_finite_reaches_no_checkpoint(cache, tmp_path, monkeypatch):
    original = Trainer.update

    def poisoned(self, batches, stop=False):
        if self.step == 6:
            self.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
        return original(self, batches, stop)

    monkeypatch.setattr(Trainer, "update", poisoned)
    c = config(cache, log_every=4)
    with pytest.raises(
        TrainingDiverged, match=r"gradient's norm became nan at step 6 .* checkpoint is .*step_00000004.pt"
    ):
        train(c, run_dir=tmp_path / "run", verbose=False)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000004.pt"]


def test_a_loss_that_is_not_finite_stops_with_step_and_checkpoint(cache):
    c = config(cache, learning_rate=1e30, min_learning_rate=0.0, grad_clip=0.0)
    with pytest.raises(
        TrainingDiverged, match=r"the (loss|gradient's norm) became (nan|inf) at step \d+ \(learning rate"
    ):
        train(c, run_dir=cache / "diverged", verbose=False)
    assert not (cache / "diverged/model").exists()


# ------------------------------------------------------------------ what is logged and left


def test_evaluation_is_the_mean_over_all_targets_and_changes_nothing(loader_of):
    model = model_of()
    trainer = Trainer(
        model,
        loader_of(),
        loader_of(batch_size=7, shuffle=False),
        {"training": QUICK | {"eval_batches": None}},
        device="cpu",
        verbose=False,
    )
    state = torch.get_rng_state()
    loss = trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), state) and model.training
    model.eval()
    total = count = 0.0
    with torch.no_grad():
        for x, y in loader_of(batch_size=1, shuffle=False).epoch_batches():
            total += nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item()
            count += int((y != -100).sum())
    assert loss == pytest.approx(total / count, abs=1e-5)


def test_sampling_does_not_touch_the_run(loader_of):
    trainer = Trainer(model_of(), loader_of(), None, {"training": QUICK}, device="cpu", verbose=False)
    state = torch.get_rng_state()
    assert trainer.sample(5, seed=1) == trainer.sample(5, seed=1)
    assert torch.equal(torch.get_rng_state(), state) and trainer.model.training


def test_a_finished_run_folder_explains_itself(cache, capsys):
    c = config(cache)
    run = train(c, run_dir=cache / "finished", dollars_per_hour=3600.0)
    folder = cache / "finished"
    assert run.finished and run.val_loss == losses(run.metrics, "val/loss")[-1]
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "samples",
        "model",
    }
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == run.metrics
    named = {key for row in rows for key in row}
    assert named >= {"step", "seconds", "train/loss", "train/lr", "train/tokens_seen", "val/loss", "model/parameters"}
    assert named >= {"perf/tokens_per_s", "perf/mfu", "cost/usd"}
    assert rows[-1]["cost/usd"] == pytest.approx(rows[-1]["seconds"], abs=0.01)
    assert rows[-1]["train/tokens_seen"] == 12 * 2 * 32
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        f"step_{step:08d}.txt" for step in (4, 6, 8, 12)
    ]
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["torch"] == torch.__version__ and environment["dtype"] == "float32"

    again = train(c, run_dir=folder)
    assert "is finished; its model is used as it is" in capsys.readouterr().out
    for a, b, d in zip(
        run.model.parameters(), again.model.parameters(), load_run(folder).model.parameters(), strict=True
    ):
        assert torch.equal(a, b) and torch.equal(a, d)
    assert again.tokenizer.encode("Once upon a time") == run.tokenizer.encode("Once upon a time")


def test_histograms_of_the_gradients_every_hundred_steps(cache, tmp_path, monkeypatch):
    original, norms = nn.utils.clip_grad_norm_, []

    def watched(parameters, limit):
        parameters = list(parameters)
        norms.append([parameter.grad.clone() for parameter in parameters])
        return original(parameters, limit)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", watched)
    c = config(cache, max_steps=101, log_every=50, eval_every=101, checkpoint_every=101)
    run = train(c, run_dir=tmp_path / "run", verbose=False)
    rows = {row["step"]: row for row in run.metrics if any(key.startswith("gradients/") for key in row)}
    assert list(rows) == [0, 100]
    for step, row in rows.items():
        for (name, parameter), gradient in zip(run.model.named_parameters(), norms[step], strict=True):
            found = row[f"gradients/{name}"]
            assert sum(found["counts"]) == parameter.numel()
            assert found["low"] == gradient.min().item() and found["high"] == gradient.max().item()
            expected = np.histogram(gradient.double().numpy(), 32, (found["low"], found["high"]))[0]
            assert np.abs(np.array(found["counts"]) - expected).sum() <= 4  # one at an edge may fall on either side
    assert read_metrics(tmp_path / "run") == run.metrics


def test_mfu_counts_what_chapter_8_counts(cache, tmp_path):
    run = train(config(cache), run_dir=tmp_path / "run", verbose=False)
    trainer = Trainer(run.model, [], None, run.config, "cpu", verbose=False)
    trainer.peak_flops, trainer.step, trainer._pending = 1e9, 1, [torch.tensor([1.0, 1.0])]
    trainer._report(tqdm(disable=True), tokens_per_s=1000.0)
    assert trainer.metrics[-1]["perf/mfu"] == pytest.approx(1000 * count_flops_per_token(run.config.model) / 1e9)


def test_the_histogram_of_an_overflowing_gradient_is_of_its_finite_entries(cache, tmp_path, monkeypatch):
    original = Trainer.update

    def overflowing(self, batches, stop=False):
        hook = self.model.norm.weight.register_hook(
            lambda gradient: torch.cat([gradient[:-1], torch.full((1,), math.inf)]) if self.step == 0 else gradient
        )
        try:
            return original(self, batches, stop)
        finally:
            hook.remove()

    monkeypatch.setattr(Trainer, "update", overflowing)
    run = train(config(cache, dtype="float16"), run_dir=tmp_path / "run", verbose=False)
    row = next(row for row in run.metrics if "gradients/norm.weight" in row)
    assert sum(row["gradients/norm.weight"]["counts"]) == MODEL["d_model"] - 1 and math.isfinite(
        row["gradients/norm.weight"]["high"]
    )


def test_the_histogram_of_a_large_gradient_counts_every_entry(loader_of):
    """More entries than float32, in which histc counts, can tell apart."""
    trainer = Trainer(model_of(), loader_of(), None, {"training": QUICK}, "cpu", verbose=False)
    large = torch.zeros(2**24 + 5)
    large[0] = 1.0
    trainer.model.extra = nn.Parameter(torch.zeros_like(large))
    trainer.model.extra.grad = large
    trainer._log_gradients()
    counts = trainer.metrics[-1]["gradients/extra"]["counts"]
    assert counts[0] == 2**24 + 4 and counts[-1] == 1 and sum(counts) == len(large)


def test_dropout_is_on_in_training_whatever_mode_the_model_came_in(loader_of):
    metrics = [
        Trainer(model.train(mode), loader_of(), None, {"training": QUICK}, "cpu", verbose=False).train()
        for mode in (True, False)
        for model in [model_of()]
        if torch.manual_seed(0)
    ]
    assert losses(metrics[0]) == losses(metrics[1])


def test_a_single_step_outside_of_train_logs_too(loader_of, tmp_path):
    trainer = Trainer(
        model_of(), loader_of(), None, {"training": QUICK}, "cpu", run_dir=tmp_path / "new", verbose=False
    )
    trainer.update(iter(loader_of()))
    assert [row["step"] for row in read_metrics(tmp_path / "new")] == [0]


def test_only_the_newest_checkpoints_and_the_best_are_kept(cache):
    train(config(cache, keep_checkpoints=1, checkpoint_every=2, eval_every=2), run_dir=cache / "kept", verbose=False)
    rows = [json.loads(line) for line in (cache / "kept/metrics.jsonl").read_text().splitlines()]
    best = min((row["val/loss"], row["step"]) for row in rows if "val/loss" in row)[1]
    assert {path.name for path in (cache / "kept/checkpoints").iterdir()} == {
        f"step_{step:08d}.pt" for step in (best, 12)
    }


def test_the_best_is_the_best_of_those_that_were_saved(cache, tmp_path, monkeypatch):
    validation = {3: 1.0, 4: 2.0, 6: 1.5, 8: 3.0, 9: 0.5, 12: 4.0}
    monkeypatch.setattr(Trainer, "evaluate", lambda self: validation[self.step])
    train(config(cache, keep_checkpoints=1, checkpoint_every=4, eval_every=3), run_dir=tmp_path / "run", verbose=False)
    left = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert left == {"step_00000004.pt", "step_00000012.pt"}


def test_a_model_may_have_more_ids_than_its_tokenizer(loader_of):
    trainer = Trainer(model_of(vocab_size=4096), loader_of(), None, {"training": QUICK}, device="cpu", verbose=False)
    for seed in range(5):
        trainer.sample(10, seed=seed)


def test_evaluation_and_samples_leave_the_mode_as_it_was(loader_of):
    trainer = Trainer(
        model_of(), loader_of(), [next(iter(loader_of()))], {"training": QUICK}, device="cpu", verbose=False
    )
    for training in (True, False):
        trainer.model.train(training)
        trainer.evaluate()
        trainer.sample(2)
        assert trainer.model.training is training


def test_any_iterable_of_batches_will_do(cache):
    tokenizer = get_tokenizer("stories")
    rows = TextDataset([stories.sample(seed) for seed in range(20)], tokenizer, 32)
    metrics = Trainer(
        model_of(),
        DataLoader(rows, batch_size=4),
        DataLoader(rows, batch_size=4),
        {"training": {**QUICK, "max_steps": 30}},
        device="cpu",
        verbose=False,
    ).train()
    assert losses(metrics)[-1] < losses(metrics)[0] and losses(metrics, "val/loss")
    with pytest.raises(ValueError, match="train_loader is empty"):
        Trainer(model_of(), [], None, {"training": QUICK}, device="cpu", verbose=False).train()


def test_a_dictionary_is_checked_like_a_file(loader_of):
    with pytest.raises(ConfigError, match="did you mean 'max_steps'"):
        Trainer(model_of(), loader_of(), None, {"training": {"max_step": 3}})


# ------------------------------------------------------------------ stopping and going on


def equal_runs(a, b):
    rows = [
        [{k: v for k, v in row.items() if k not in ("seconds", "perf/tokens_per_s", "perf/mfu")} for row in run.metrics]
        for run in (a, b)
    ]
    assert rows[0] == rows[1]
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))


@pytest.mark.parametrize(
    "options", [{}, {"dtype": "bfloat16", "gradient_accumulation_steps": 2}, {"optimizer": "muon", "log_every": 5}]
)
def test_stopped_by_a_signal_and_continued_is_the_same_run(cache, options, tmp_path):
    c = config(cache, checkpoint_every=3, **options)
    whole = train(c, run_dir=tmp_path / "whole", verbose=False)
    saves = []

    def stop_soon():
        saves.append(1)
        if len(saves) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    first = train(c, run_dir=tmp_path / "torn", on_checkpoint=stop_soon, verbose=False)
    assert not first.finished and first.metrics[-1]["step"] < 12
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    equal_runs(train(c, run_dir=tmp_path / "torn", verbose=False), whole)


def test_continuing_from_an_older_checkpoint_repeats_the_lost_steps_exactly(cache, tmp_path, capsys):
    c = config(cache, data={"num_workers": 2})
    whole = train(c, run_dir=tmp_path / "whole", verbose=False)
    train(c, run_dir=tmp_path / "torn", verbose=False)
    checkpoints = sorted((tmp_path / "torn/checkpoints").iterdir())
    os.truncate(checkpoints[-1], 1000)
    for file in (tmp_path / "torn/model").iterdir():
        file.unlink()
    (tmp_path / "torn/model").rmdir()
    equal_runs(train(c, run_dir=tmp_path / "torn"), whole)
    printed = capsys.readouterr().out
    assert "step_00000012.pt is cut short" in printed and "continuing" in printed
    assert "going on after step 8, from" in printed


KILLER = """
import json, os, pathlib, random, signal, sys, time
from slm.config import load_config
from slm.trainer import train

config, folder, chance = load_config(sys.argv[1]), pathlib.Path(sys.argv[2]), random.Random(0)
rows = folder / "metrics.jsonl"


def checkpoints():
    return sorted(path.name for path in folder.glob("checkpoints/step_*.pt"))


for kill in range(int(sys.argv[3]) + 1):
    child = os.fork()  # everything is imported already, so a start takes no time
    if child == 0:
        train(config, run_dir=folder, verbose=False)
        os._exit(0)
    saved = checkpoints()
    if kill < int(sys.argv[3]):
        limit = time.monotonic() + 60
        while kill % 5 and checkpoints() == saved and time.monotonic() < limit:  # every fifth dies while it starts
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    reached = rows.read_text().count("train/loss") if rows.exists() else 0
    parts = [path.name for path in folder.glob("checkpoints/*.part")]
    print(json.dumps({"started from": saved[-1:], "ended": ended, "rows": reached, "half-written": parts}), flush=True)
"""


def equal(a, b):
    """Whether two checkpoints' contents are the same to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize(
    ("dtype", "optimizer", "workers", "kills"), [("float32", "adamw", 0, 20), ("bfloat16", "muon", 2, 4)]
)
def test_killed_many_times_it_ends_as_if_nothing_had_happened(cache, tmp_path, dtype, optimizer, workers, kills):
    """SIGKILL at random moments: before the first checkpoint, in a step, while saving. Weights, optimizers, metrics."""
    steps = {"max_steps": 300, "checkpoint_every": 2, "eval_every": 100, "log_every": 3, "warmup_steps": 20}
    steps |= {"gradient_accumulation_steps": 2, "dtype": dtype, "optimizer": optimizer}
    c = config(cache, data={"num_workers": workers}, **steps)
    train(config(cache), run_dir=tmp_path / "first", verbose=False)  # so that the tokens are there
    (tmp_path / "quick.yaml").write_text(c.to_yaml())
    command = [sys.executable, "-c", KILLER, str(tmp_path / "quick.yaml"), str(tmp_path / "torn"), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    log = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["ended"] for line in log] == [-signal.SIGKILL] * kills + [0]
    assert len({tuple(line["started from"]) for line in log}) > kills // 2
    whole = train(c, run_dir=tmp_path / "whole", verbose=False)
    assert whole.finished
    equal_runs(load_run(tmp_path / "torn"), whole)
    ends = [load_checkpoint(tmp_path / run / "checkpoints/step_00000300.pt") for run in ("torn", "whole")]
    for state in ends:
        for own in ("seconds", "wandb_id", "metrics_bytes"):  # seconds differ in length when printed
            del state[own]
    assert equal(*ends)


def validation_of(monkeypatch, values):
    """Validation losses by step, whatever the model."""
    monkeypatch.setattr(Trainer, "evaluate", lambda self: values[self.step])


def test_the_best_is_known_after_a_resume(cache, tmp_path, monkeypatch):
    validation_of(monkeypatch, {4: 1.0, 5: 4.0, 6: 4.0, 8: 2.0, 12: 3.0} | dict.fromkeys((7, 9, 10, 11), 4.0))
    c = config(cache, keep_checkpoints=1, eval_every=100)
    interrupted(c, tmp_path / "run")
    assert train(c, run_dir=tmp_path / "run", verbose=False).finished
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == [
        "step_00000004.pt",
        "step_00000012.pt",
    ]


def test_the_resumed_run_keeps_its_own_although_foreign_ones_are_newer(cache, tmp_path):
    c = config(cache, keep_checkpoints=2)
    interrupted(c, tmp_path / "run")
    for step in (24, 28):
        (tmp_path / f"run/checkpoints/step_{step:08d}.pt").write_bytes(b"damaged")
    train(c, run_dir=tmp_path / "run", verbose=False)
    names = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert {"step_00000008.pt", "step_00000012.pt", "step_00000024.pt", "step_00000028.pt"} <= names


def test_a_checkpoint_of_another_number_of_processes_is_refused(cache, tmp_path):
    interrupted(config(cache), tmp_path / "run")
    for path in (tmp_path / "run/checkpoints").iterdir():
        state = copy_to_cpu(load_checkpoint(path))
        save_checkpoint(path, {**state, "random": state["random"] * 2})
    with pytest.raises(CheckpointError, match="was written by 2 processes; it can't go on with 1"):
        train(config(cache), run_dir=tmp_path / "run", verbose=False)


def test_each_process_goes_on_with_its_own_random_numbers(cache, tmp_path):
    run = interrupted(config(cache), tmp_path / "run")
    other = {"cpu": torch.Generator().manual_seed(77).get_state(), "device": None}
    for path in (tmp_path / "run/checkpoints").iterdir():
        state = copy_to_cpu(load_checkpoint(path))
        save_checkpoint(path, {**state, "random": [state["random"][0], other], "data": None})
    for rank in (0, 1):
        trainer = Trainer(model_of(), [], None, run.config, "cpu", run_dir=tmp_path / "run", verbose=False)
        trainer.rank, trainer.world = rank, 2
        with torch.random.fork_rng():
            assert trainer.resume() is not None
            assert torch.equal(torch.get_rng_state(), other["cpu"]) == (rank == 1)


def test_the_metrics_are_on_disk_before_the_checkpoint_that_counts_on_them(cache, tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        done.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def named(source, target):
        done.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    train(config(cache), run_dir=tmp_path / "run", verbose=False)
    metrics = (tmp_path / "run/metrics.jsonl").stat().st_ino
    names = [name for name in done if name in (metrics, "step_00000004.pt", "step_00000008.pt", "step_00000012.pt")]
    assert names == [metrics, "step_00000004.pt", metrics, "step_00000008.pt", metrics, "step_00000012.pt"]


def test_every_setting_that_makes_another_run_is_compared():
    c = make_config({"model": MODEL, "data": {"dataset": "stories"}, "training": {"dtype": "float32"}}).as_dict()
    free = {"log_every", "eval_every", "eval_batches", "checkpoint_every", "keep_checkpoints", "sample_tokens"}
    free |= {"threads", "num_workers", "cache_dir"}
    for section in ("model", "training", "data"):
        for key in c[section]:
            changed = _changed_keys({**c, section: {**c[section], key: "another"}}, c)
            assert len(changed) == (key not in free), (section, key)
    automatic = {**c, "training": {**c["training"], "dtype": "auto"}}  # what that came to stands in the checkpoint
    assert _changed_keys(automatic, c) == _changed_keys(c, automatic) == []


def failing_save(monkeypatch, at):
    original = slm.trainer.save_checkpoint

    def save(path, state):
        if state["step"] == at:
            raise OSError(28, "No space left on device")
        original(path, state)

    monkeypatch.setattr(slm.trainer, "save_checkpoint", save)


def test_a_last_checkpoint_that_fails_is_told(cache, tmp_path, monkeypatch):
    failing_save(monkeypatch, at=12)
    with pytest.raises(CheckpointError, match="step 12 was not saved"):
        train(config(cache), run_dir=tmp_path / "run", verbose=False)
    assert not (tmp_path / "run/model").exists()


def test_a_checkpoint_that_fails_is_told_soon(cache, tmp_path, monkeypatch):
    """Not only when the next one is due."""
    failing_save(monkeypatch, at=4)
    original, reached = Trainer.update, []

    def patient(self, batches, stop=False):
        reached.append(self.step)
        wait_for([self._writing] if self._writing else [])
        return original(self, batches, stop)

    monkeypatch.setattr(Trainer, "update", patient)
    with pytest.raises(CheckpointError, match="step 4 was not saved"):
        train(config(cache), run_dir=tmp_path / "run", verbose=False)
    assert max(reached) == 4


def test_the_one_before_stays_until_the_new_one_is_whole(cache, tmp_path, loader_of, monkeypatch):
    failing_save(monkeypatch, at=8)
    training = {"training": {**QUICK, "keep_checkpoints": 1}}
    trainer = Trainer(model_of(), loader_of(), None, training, "cpu", run_dir=tmp_path / "run", verbose=False)
    with pytest.raises(CheckpointError, match="step 8 was not saved"):
        trainer.train()
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000004.pt"]


@pytest.fixture
def slow_disk(monkeypatch):
    """Checkpoints are written only when this event is set."""
    original, free = slm.trainer.save_checkpoint, threading.Event()

    def slowly(path, state):
        assert free.wait(timeout=60)
        original(path, state)

    monkeypatch.setattr(slm.trainer, "save_checkpoint", slowly)
    yield free
    free.set()


def test_training_goes_on_while_a_checkpoint_is_written(cache, tmp_path, monkeypatch, slow_disk):
    """Steps 5 to 8 are done before step 4 is on disk, and the file holds the state after step 4 all the same."""
    original, there = Trainer.update, []

    def watched(self, batches, stop=False):
        there.append((self.step, sorted(path.name for path in tmp_path.glob("run/checkpoints/*"))))
        if self.step == 7:
            slow_disk.set()
        return original(self, batches, stop)

    monkeypatch.setattr(Trainer, "update", watched)
    run = train(config(cache, keep_checkpoints=9), run_dir=tmp_path / "run", verbose=False)
    assert [names for step, names in there if step <= 7] == [[]] * 8 and run.finished
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 3
    monkeypatch.undo()
    train(config(cache, keep_checkpoints=9), run_dir=tmp_path / "plain", verbose=False)
    for step in (4, 8, 12):
        late, plain = (load_checkpoint(tmp_path / run / f"checkpoints/step_{step:08d}.pt") for run in ("run", "plain"))
        for own in ("seconds", "wandb_id", "metrics_bytes"):
            del late[own], plain[own]
        assert equal(late, plain)


def test_at_most_one_checkpoint_waits_to_be_written(cache, tmp_path, monkeypatch, slow_disk):
    original, reached = Trainer.update, []

    def watched(self, batches, stop=False):
        if not slow_disk.is_set():
            reached.append(self.step)
        if self.step == 7:
            threading.Timer(0.5, slow_disk.set).start()
        return original(self, batches, stop)

    monkeypatch.setattr(Trainer, "update", watched)
    assert train(config(cache), run_dir=tmp_path / "run", verbose=False).finished
    assert max(reached) == 7  # the checkpoint of step 8 waits for that of step 4


def test_a_better_one_that_is_not_yet_written_replaces_nothing(cache, tmp_path, monkeypatch, slow_disk):
    """At step 12 the best moves from 4 to 12, while 8 is still being written: 4 must stay until 12 is on disk."""
    seen, values = [], {4: 1.0, 8: 2.0, 12: 0.5}

    def evaluate(self):
        if self.step == 8:
            slow_disk.set()
            self._writing.result()
            slow_disk.clear()
        return values[self.step]

    original = Trainer._log

    def look(self, row):
        if "val/loss" in row and self.step == 12:  # self.best has moved
            slow_disk.set()
            wait_for([self._writing])
            seen.extend(sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()))
        original(self, row)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    monkeypatch.setattr(Trainer, "_log", look)
    train(config(cache, keep_checkpoints=1, eval_every=100), run_dir=tmp_path / "run", verbose=False)
    assert seen == ["step_00000004.pt", "step_00000008.pt"]


def test_a_run_that_diverges_names_the_checkpoint_that_was_being_written(cache, tmp_path, monkeypatch, slow_disk):
    original = Trainer.update

    def poisoned(self, batches, stop=False):
        if self.step == 6:
            self.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
            threading.Timer(0.5, slow_disk.set).start()
        return original(self, batches, stop)

    monkeypatch.setattr(Trainer, "update", poisoned)
    with pytest.raises(TrainingDiverged, match=r"at step 6 .* last good checkpoint is .*step_00000004.pt"):
        train(config(cache), run_dir=tmp_path / "run", verbose=False)


def test_an_interrupt_while_waiting_leaves_nobody_writing(cache, tmp_path, monkeypatch, slow_disk):
    """The second Ctrl-C: the run ends only when the thread is done, so that the folder is free for the next one."""
    original, waits = slm.trainer.wait_for, []

    def interrupted(futures):
        waits.append(1)
        if len(waits) == 1:
            threading.Timer(0.5, slow_disk.set).start()
            raise KeyboardInterrupt
        return original(futures)

    monkeypatch.setattr(slm.trainer, "wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config(cache), run_dir=tmp_path / "run", verbose=False)
    assert slow_disk.is_set() and [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [
        "step_00000004.pt"
    ]


def test_both_errors_are_told_when_training_and_writing_fail(cache, tmp_path, monkeypatch, slow_disk, capsys):
    failing_save(monkeypatch, at=4)
    original = Trainer.update

    def failing(self, batches, stop=False):
        if self.step == 6:
            raise RuntimeError("a fault of the GPU")
        return original(self, batches, stop)

    monkeypatch.setattr(Trainer, "update", failing)
    monkeypatch.setattr(Future, "done", lambda self: False)  # the writing ends only after the fault
    with pytest.raises(RuntimeError, match="a fault of the GPU"):
        train(config(cache), run_dir=tmp_path / "run", verbose=False)
    assert "step 4 was not saved" in capsys.readouterr().out


def test_an_old_checkpoint_that_can_t_be_deleted_is_told_and_does_not_end_the_run(cache, tmp_path, capsys):
    c = config(cache, keep_checkpoints=1)
    interrupted(c, tmp_path / "run")
    (tmp_path / "run/checkpoints/step_00000001.pt").mkdir()  # can be unlinked as little as a protected file
    assert train(c, run_dir=tmp_path / "run", verbose=False).finished
    printed = capsys.readouterr().out
    assert (
        "step 12 is saved, but an older checkpoint could not be deleted: " in printed and "step_00000001.pt" in printed
    )


def test_what_a_callback_raises_ends_the_run(cache, tmp_path):
    def refuse():
        raise ValueError("the budget is spent")

    with pytest.raises(ValueError, match="the budget is spent"):
        train(config(cache), run_dir=tmp_path / "run", on_checkpoint=refuse, verbose=False)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000004.pt"]


@pytest.mark.parametrize("how", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_fails_still_finishes_the_checkpoint_that_it_was_writing(
    cache, tmp_path, monkeypatch, slow_disk, how
):
    original = Trainer.update

    def failing(self, batches, stop=False):
        if self.step == 6:
            threading.Timer(0.3, slow_disk.set).start()
            raise how
        return original(self, batches, stop)

    monkeypatch.setattr(Trainer, "update", failing)
    with pytest.raises(how):
        train(config(cache), run_dir=tmp_path / "run", verbose=False)
    assert load_latest(tmp_path / "run/checkpoints")[1]["step"] == 4


def test_a_full_disk_is_told_in_one_sentence_with_the_last_good_checkpoint(cache, tmp_path, monkeypatch):
    original = os.fsync

    def full(descriptor):
        if (tmp_path / "run/checkpoints/step_00000008.pt.part").exists():
            raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    last = (
        r"step 8 was not saved: \[Errno 28\] No space left on device; the last good checkpoint is .*step_00000004.pt$"
    )
    with pytest.raises(CheckpointError, match=last):
        train(config(cache), run_dir=tmp_path / "run", verbose=False)
    monkeypatch.undo()
    equal_runs(
        train(config(cache), run_dir=tmp_path / "run", verbose=False),
        train(config(cache), run_dir=tmp_path / "whole", verbose=False),
    )


def test_an_unfinished_run_can_be_read(cache, tmp_path):
    interrupted(config(cache), tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert not run.finished and run.tokenizer.n_vocab == 1024
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_run(tmp_path)


def test_a_run_killed_before_its_first_checkpoint_starts_its_metrics_anew(cache, tmp_path):
    c, rows = config(cache), '{"step": 0}\n{"step": 1, "train/loss": 7.0}\n{"step": 2, "tra'
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(c.to_yaml())
    (tmp_path / "run/metrics.jsonl").write_text(rows)
    run = train(c, run_dir=tmp_path / "run", verbose=False)
    assert [row["step"] for row in run.metrics if "train/loss" in row] == list(range(1, 13))
    assert (tmp_path / "run/metrics.before.jsonl").read_text() == rows


def test_a_folder_with_files_of_such_names_that_is_no_run_is_left_alone(cache, tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text("mine")
    (tmp_path / "environment.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds metrics.jsonl, environment.json but no config.yaml, so no run"):
        train(config(cache), run_dir=tmp_path, verbose=False)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("metrics.jsonl", "environment.json"), "mine"
    )
    with pytest.raises(ConfigError, match="--run-dir is empty"):
        train(config(cache), run_dir="", verbose=False)


def test_a_refused_start_leaves_the_folder_as_it_was(cache, tmp_path):
    """The checkpoints say what run it is, although its config.yaml is gone."""
    c, run = config(cache), tmp_path / "run"
    interrupted(c, run)
    (run / "config.yaml").unlink()
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(CheckpointError, match=r"training.learning_rate was 0.003 and is now 0.1"):
        train(config(cache, learning_rate=0.1), run_dir=run, verbose=False)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    assert train(c, run_dir=run, verbose=False).finished and (run / "config.yaml").exists()


def test_a_copy_under_another_name_is_no_checkpoint(cache, tmp_path):
    c, folder = config(cache, keep_checkpoints=1), tmp_path / "run/checkpoints"
    interrupted(c, tmp_path / "run")
    kept = [folder / "step_best.pt", folder / "step_00000004_mine.pt"]
    for copy in kept:
        copy.write_bytes((folder / "step_00000004.pt").read_bytes())
    assert load_latest(folder)[0].name == "step_00000005.pt"
    assert train(c, run_dir=tmp_path / "run", verbose=False).finished
    assert all(copy.exists() for copy in kept)


def test_a_damaged_row_of_metrics_is_named_and_missing_rows_are_told(cache, tmp_path, capsys):
    c, metrics = config(cache), tmp_path / "run/metrics.jsonl"
    interrupted(c, tmp_path / "run")
    good = metrics.read_text()
    rows = good.splitlines(keepends=True)
    metrics.write_text("".join([*rows[:2], "garbage\n", *rows[3:]]))
    with pytest.raises(CheckpointError, match=r"metrics.jsonl, line 3 is not a row of metrics: mend or remove it"):
        train(c, run_dir=tmp_path / "run", verbose=False)
    metrics.write_text("".join(rows[:2]))
    assert train(c, run_dir=tmp_path / "run", verbose=False).finished
    assert "metrics.jsonl is shorter than it was; rows before step 5 are missing" in capsys.readouterr().out


def test_a_run_whose_type_was_found_by_itself_goes_on_in_it_when_told_so(cache, tmp_path, monkeypatch):
    """On another machine 'auto' may come to another type; the message says what to ask for."""
    original = slm.trainer.choose_dtype
    monkeypatch.setattr(slm.trainer, "choose_dtype", lambda *_: torch.bfloat16)
    interrupted(config(cache, dtype="auto"), tmp_path / "run")
    monkeypatch.setattr(slm.trainer, "choose_dtype", lambda *_: torch.float32)
    with pytest.raises(CheckpointError, match="training.dtype=bfloat16 goes on with it"):
        train(config(cache, dtype="auto"), run_dir=tmp_path / "run", verbose=False)
    monkeypatch.setattr(slm.trainer, "choose_dtype", original)
    assert train(config(cache, dtype="bfloat16"), run_dir=tmp_path / "run", verbose=False).finished


@pytest.mark.parametrize("loader", [[], iter([])])
def test_validation_without_a_target_is_not_taken_for_divergence(loader_of, loader):
    trainer = Trainer(model_of(), loader_of(), loader, {"training": QUICK}, "cpu", verbose=False)
    with pytest.raises(ValueError, match="the val_loader gave no targets"):
        trainer.train()


def second_signal(number, pause):
    with slm.trainer._stop_signals(verbose=False) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(pause)
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        return len(signals)


def test_a_second_signal_interrupts_if_it_is_meant(capfd):
    assert second_signal(signal.SIGINT, 0.05) == 2 and second_signal(signal.SIGTERM, 1.1) == 2
    with pytest.raises(KeyboardInterrupt):
        second_signal(signal.SIGINT, 1.1)
    assert capfd.readouterr().err == ""
    with slm.trainer._stop_signals(verbose=True):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err.count("stopping after this step, and saving it") == 1


def test_a_torn_last_line_of_metrics_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "tra')
    assert read_metrics(tmp_path) == [{"step": 1}]


def test_a_checkpoint_of_another_precision_or_text_is_refused(cache, tmp_path, monkeypatch):
    automatic = config(cache, dtype="auto")  # picks another type on another machine
    for dtype in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(slm.trainer, "choose_dtype", lambda *_, dtype=dtype: dtype)
        if dtype == torch.bfloat16:
            interrupted(automatic, tmp_path / "precision")
    with pytest.raises(CheckpointError, match=r"another precision \(torch.bfloat16, here torch.float32;"):
        train(automatic, run_dir=tmp_path / "precision", verbose=False)
    monkeypatch.undo()

    (tmp_path / "own.txt").write_text("\n\n".join(stories.sample(seed) for seed in range(300)))
    own = config(cache, data={"dataset": str(tmp_path / "own.txt"), "max_documents": None, "packing": "stream"})
    interrupted(own, tmp_path / "text")
    (tmp_path / "own.txt").write_text("\n\n".join(stories.sample(seed) for seed in range(400, 700)))
    with pytest.raises(CheckpointError, match="another text"):
        train(own, run_dir=tmp_path / "text", verbose=False)


def test_a_foreign_checkpoint_is_named_and_passed_over(cache, tmp_path, capsys):
    """A file of another config that lies among the run's own, and is newer: the run's newest good one is used."""
    c = config(cache)
    whole = train(c, run_dir=tmp_path / "whole", verbose=False)
    interrupted(c, tmp_path / "run")
    for name, other in {"rate": {"learning_rate": 0.1}, "shape": {"model": {"n_layers": 1}}}.items():
        train(config(cache, **other), run_dir=tmp_path / name, verbose=False)
    folder = tmp_path / "run/checkpoints"
    (tmp_path / "rate/checkpoints/step_00000012.pt").rename(folder / "step_00000012.pt")
    (tmp_path / "shape/checkpoints/step_00000012.pt").rename(folder / "step_00000011.pt")
    capsys.readouterr()
    equal_runs(train(c, run_dir=tmp_path / "run"), whole)
    printed = capsys.readouterr().out
    changed = "step_00000012.pt belongs to a run with another config: training.learning_rate was 0.1 and is now 0.003; "
    assert changed in printed and "model.n_layers was 1 and is now 2; trying the one before" in printed
    assert "going on after step" in printed


def test_a_foreign_checkpoint_is_not_read_as_a_run_s_own(cache, tmp_path, capsys):
    interrupted(config(cache), tmp_path / "run")
    own = load_run(tmp_path / "run").model
    train(config(cache, learning_rate=0.1), run_dir=tmp_path / "rate", verbose=False)
    folder = tmp_path / "run/checkpoints"
    (tmp_path / "rate/checkpoints/step_00000012.pt").rename(folder / "step_00000012.pt")
    save_checkpoint(folder / "step_00000099.pt", {"step": 99})
    found = load_run(tmp_path / "run").model
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), found.parameters(), strict=True))
    printed = capsys.readouterr().out
    assert "step_00000099.pt was not written by a trainer; trying the one before" in printed
    assert "step_00000012.pt belongs to a run with another config" in printed


def test_what_a_kill_left_behind_is_cleared_away(cache, tmp_path):
    """A half-written checkpoint of a step that is never saved again, and metrics that lost their end."""
    c = config(cache)
    whole = train(c, run_dir=tmp_path / "whole", verbose=False)
    interrupted(c, tmp_path / "run")
    (tmp_path / "run/checkpoints/step_00000099.pt.part").write_bytes(b"half")
    metrics = tmp_path / "run/metrics.jsonl"
    os.truncate(metrics, metrics.stat().st_size - 20)
    again = train(c, run_dir=tmp_path / "run", verbose=False)
    assert not list((tmp_path / "run/checkpoints").glob("*.part"))
    assert read_metrics(tmp_path / "run") == again.metrics and again.finished
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True))


def test_the_last_good_checkpoint_is_not_a_damaged_one(cache, tmp_path, monkeypatch):
    interrupted(config(cache), tmp_path / "run")
    (tmp_path / "run/checkpoints/step_00000099.pt").write_bytes(b"damaged")
    (tmp_path / "run/checkpoints/step_00000098.pt").symlink_to(tmp_path / "gone.pt")
    monkeypatch.setattr(Trainer, "_finite", lambda self: (_ for _ in ()).throw(self._diverged("it", self.step)))
    with pytest.raises(TrainingDiverged, match=r"the last good checkpoint is .*step_0000000\d\.pt"):
        train(config(cache), run_dir=tmp_path / "run", verbose=False)


def test_seconds_count_the_work_before_a_stop(cache, tmp_path):
    c = config(cache, log_every=12, eval_every=12, checkpoint_every=12)
    original = Trainer.update

    def slow_then_stop(self, batches, stop=False):
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM) if self.step == 2 else None
        return original(self, batches, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "update", slow_then_stop)
        train(c, run_dir=tmp_path / "run", verbose=False)
    saved = load_latest(tmp_path / "run/checkpoints")
    assert saved is not None and saved[1]["seconds"] > 0.3


def test_a_changed_config_is_refused_with_the_keys(cache, tmp_path):
    train(config(cache), run_dir=tmp_path, verbose=False)
    with pytest.raises(
        ConfigError, match=r"training.learning_rate was 0.003 and is now 0.1; training.seed was 0 and is now 1"
    ):
        train(config(cache, learning_rate=0.1, seed=1), run_dir=tmp_path, verbose=False)
    assert train(config(cache, log_every=3), run_dir=tmp_path, verbose=False).finished


def test_a_second_process_on_the_same_folder_is_refused(cache, tmp_path):
    c, refusals = config(cache), []

    def intrude():
        with pytest.raises(ConfigError, match="another process is training") as caught:
            train(c, run_dir=tmp_path / "run", verbose=False)
        refusals.append(caught.value)

    train(c, run_dir=tmp_path / "run", on_checkpoint=lambda: None if refusals else intrude(), verbose=False)
    assert refusals


def test_a_second_process_with_another_folder_for_temporary_files_is_refused_too(cache, tmp_path):
    c = config(cache)
    code = "import sys; from slm.trainer import only_process; from pathlib import Path\n"
    code += f"with only_process(Path({str(tmp_path / 'run')!r})): print('in', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(ConfigError, match="another process is training"):
            train(c, run_dir=tmp_path / "run", verbose=False)
        other.stdin.close()


def test_a_tokenizer_that_does_not_fit_is_refused(cache, tmp_path):
    with pytest.raises(ConfigError, match="vocab_size = 1000 is too small for tokenizer 'stories', which has 1024"):
        train(config(cache, model={"vocab_size": 1000}), run_dir=tmp_path / "run", verbose=False)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ several processes, Weights & Biases


JOB = """
import os, signal, sys
from slm.config import load_config
from slm.trainer import Trainer, train

plain, (config, folder, *last) = Trainer.update, sys.argv[1:]


def update(self, batches, stop=False):
    if last and self.step == int(last[0]) and self.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, batches, stop)


Trainer.update = update
train(load_config(config), run_dir=folder, verbose=False)
"""


def test_two_processes_give_the_losses_of_one_and_survive_a_killed_rank(cache, tmp_path):
    """Rank 1 is shot at step 9; the job ends and names it; the same command goes on from step 8 to the same losses."""
    c = config(cache, model={"dropout": 0.0}, batch_size=4, eval_batches=None)
    single = train(c, run_dir=tmp_path / "one", verbose=False)
    half = config(cache, model={"dropout": 0.0}, batch_size=2, eval_batches=None)
    (tmp_path / "quick.yaml").write_text(half.to_yaml())
    (tmp_path / "job.py").write_text(JOB)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(tmp_path / "job.py"), str(tmp_path / "quick.yaml"), str(tmp_path / "two")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    shot = subprocess.run([*command, "9"], capture_output=True, text=True, env=environment)
    assert shot.returncode != 0
    cause = shot.stderr.partition("Root Cause")[2]
    assert "rank      : 1" in cause and "SIGKILL" in cause, shot.stderr
    assert not (tmp_path / "two/model").exists() and (tmp_path / "two/checkpoints/step_00000008.pt").exists()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    double = load_run(tmp_path / "two")
    assert losses(double.metrics) == pytest.approx(losses(single.metrics), abs=1e-5)
    assert losses(double.metrics, "val/loss") == pytest.approx(losses(single.metrics, "val/loss"), abs=1e-5)
    assert double.metrics[-1]["train/tokens_seen"] == single.metrics[-1]["train/tokens_seen"]


@pytest.mark.parametrize(
    ("enabled", "mode", "outcome"),
    [
        (True, None, "wandb.enabled is true, but there is no login"),
        (True, "offline", True),
        (True, "disabled", False),
        (False, "offline", False),
        ("auto", None, False),
        ("auto", "offline", True),
        ("auto", "online", "WANDB_MODE is online, but there is no login"),
    ],
)
def test_wandb_is_used_when_asked_for_and_never_prompts(cache, tmp_path, enabled, mode, outcome):
    """In a process with a terminal, where wandb would ask for a key, and without any login."""
    (tmp_path / "wandb.yaml").write_text(
        make_config({"model": MODEL, "data": {"dataset": "stories"}, "wandb": {"enabled": enabled}}).to_yaml()
    )
    code = "from slm.config import load_config; from slm.trainer import _wants_wandb; "
    code += f"print(_wants_wandb(load_config({str(tmp_path / 'wandb.yaml')!r})))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")} | ({"WANDB_MODE": mode} if mode else {})
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment
    )
    os.close(theirs)
    printed, _ = process.communicate(timeout=60)
    said = os.read(ours, 100_000).decode() if process.returncode else ""
    os.close(ours)
    if isinstance(outcome, str):
        assert process.returncode == 1 and outcome in said
    else:
        assert process.returncode == 0 and printed.strip() == str(outcome)


UNREACHABLE = """
import sys, wandb
from slm.config import load_config
from slm.trainer import train

settings = wandb.Settings
wandb.Settings = lambda init_timeout: settings(init_timeout=min(init_timeout, 2))
print(train(load_config(sys.argv[1]), run_dir=sys.argv[2], verbose=False).finished)
"""


def test_wandb_that_cannot_be_reached_does_not_end_a_run(cache, tmp_path):
    """The real client, with a login and a server where nobody listens; it is asked to give up soon."""
    (tmp_path / "quick.yaml").write_text(config(cache).to_yaml())
    done = subprocess.run(
        [sys.executable, "-c", UNREACHABLE, str(tmp_path / "quick.yaml"), str(tmp_path / "run")],
        env={k: v for k, v in os.environ.items() if k != "WANDB_MODE"}
        | {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Weights & Biases cannot be reached" in done.stdout and done.stdout.endswith("True\n")
    (file,) = (tmp_path / "run/wandb").glob("offline-run-*/*.wandb")
    assert b"val/loss" in file.read_bytes()


def test_wandb_gets_the_rows_offline_and_resumes_under_the_same_id(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    seen, original = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: seen.append(options) or original(**options))
    c = config(cache)
    interrupted(c, tmp_path / "run")
    train(c, run_dir=tmp_path / "run", dollars_per_hour=3.6, verbose=False)
    assert len(seen) == 2 and seen[0]["id"] == seen[1]["id"] and {o["resume"] for o in seen} == {"allow"}
    files = [path.read_bytes() for path in (tmp_path / "run/wandb").glob("offline-run-*/*.wandb")]
    assert len(files) == 2
    first = ["model/parameters", "gradients/blocks.0.attention.qkv.weight", "histogram"]
    assert all(key.encode() in files[0] or key.encode() in files[1] for key in first)
    rows = ["train/loss", "train/lr", "train/grad_norm", "train/tokens_seen", "perf/tokens_per_s", "perf/mfu"]
    assert all(key.encode() in file for key in rows for file in files)
    assert any(b"val/loss" in file for file in files) and any(b"cost/usd" in file for file in files)
