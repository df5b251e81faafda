"""slm.training.metrics: rows, histograms, Weights & Biases."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import slm.training.metrics
from slm.errors import SlmError
from slm.training.config import WandbConfig, make_config
from slm.training.folder import read_metrics
from slm.training.metrics import Dollars, MetricsFile, WandbLogger, gradient_histograms
from slm.training.run import train
from slm.training.trainer import Trainer


def test_histograms_of_the_gradients_every_hundred_steps(tmp_path, monkeypatch, config):
    original, norms = nn.utils.clip_grad_norm_, []

    def watched(parameters, limit):
        parameters = list(parameters)
        norms.append([parameter.grad.clone() for parameter in parameters])
        return original(parameters, limit)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", watched)
    c = config(max_steps=101, log_every=50, eval_every=101, checkpoint_every=101)
    run = train(c, run_dir=tmp_path / "run", verbose=False)
    rows = {
        row["step"]: row
        for row in run.metrics
        if any(key.startswith("gradients/") for key in row)
    }
    assert list(rows) == [0, 100]
    for step, row in rows.items():
        for (name, parameter), gradient in zip(
            run.model.named_parameters(), norms[step], strict=True
        ):
            found = row[f"gradients/{name}"]
            assert sum(found["counts"]) == parameter.numel()
            assert (
                found["low"] == gradient.min().item()
                and found["high"] == gradient.max().item()
            )
            expected = np.histogram(
                gradient.double().numpy(), 32, (found["low"], found["high"])
            )[0]
            assert (
                np.abs(np.array(found["counts"]) - expected).sum() <= 4
            )  # one at an edge may fall on either side
    assert read_metrics(tmp_path / "run") == run.metrics


def test_the_histogram_of_an_overflowing_gradient_is_of_its_finite_entries(
    tmp_path, monkeypatch, config, shape
):
    original = Trainer.train_step

    def overflowing(self, batches, stop=False):
        hook = self.model.norm.weight.register_hook(
            lambda gradient: (
                torch.cat([gradient[:-1], torch.full((1,), math.inf)])
                if self.step == 0
                else gradient
            )
        )
        try:
            return original(self, batches, stop)
        finally:
            hook.remove()

    monkeypatch.setattr(Trainer, "train_step", overflowing)
    run = train(config(dtype="float16"), run_dir=tmp_path / "run", verbose=False)
    row = next(row for row in run.metrics if "gradients/norm.weight" in row)
    assert sum(row["gradients/norm.weight"]["counts"]) == shape[
        "d_model"
    ] - 1 and math.isfinite(row["gradients/norm.weight"]["high"])


def test_histograms_ask_the_device_twice_for_all_gradients(monkeypatch):
    """Each question makes a GPU's queue run empty; of a gradient without a finite entry there is none."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    asked, tolist, item = [], torch.Tensor.tolist, torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: asked.append(1) or tolist(t))
    monkeypatch.setattr(torch.Tensor, "item", lambda t: asked.append(1) or item(t))
    assert len(gradient_histograms(model)) == 4 and len(asked) == 2
    for parameter in model.parameters():
        parameter.grad.fill_(math.nan)
    assert gradient_histograms(model) == {}


def test_the_histogram_of_a_large_gradient_counts_every_entry():
    """More entries than float32, in which histc counts, can tell apart."""
    large = torch.zeros(2**24 + 5)
    large[0] = 1.0
    model = nn.Module()
    model.extra = nn.Parameter(torch.zeros_like(large))
    model.extra.grad = large
    model.unused = nn.Parameter(torch.zeros(3))
    row = gradient_histograms(model)
    counts = row["gradients/extra"]["counts"]
    assert counts[0] == 2**24 + 4 and counts[-1] == 1 and sum(counts) == len(large)
    assert "gradients/unused" not in row


def test_rows_of_steps_that_are_done_again_are_cut_off(tmp_path, capsys):
    file = MetricsFile(tmp_path / "new/rows.jsonl")
    assert file.state_dict() == {"bytes": 0, "step": 0}
    for step in range(5):
        file.on_row({"step": step})
    state = file.state_dict()
    whole = file.path.read_text()
    file.on_row({"step": 5})
    with open(file.path, "a") as torn:
        torn.write('{"step": 6, "tr')
    file.load_state_dict(state)
    assert file.path.read_text() == whole
    file.path.write_text(whole[:-3])
    file.load_state_dict({**state, "step": 7})
    assert file.path.read_text() == whole[: whole.rindex("{")]
    assert "is shorter than it was; rows before step 7 are missing" in (
        capsys.readouterr().out
    )
    file.path.unlink()
    file.load_state_dict(state)
    assert not file.path.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a full file")
def test_a_row_that_the_disk_does_not_take_names_the_file(tmp_path):
    (tmp_path / "rows.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        MetricsFile(tmp_path / "rows.jsonl").on_row({"step": 1})
    assert caught.value.filename == str(tmp_path / "rows.jsonl")


def test_a_new_file_of_rows_is_forced_with_its_name(tmp_path, monkeypatch):
    """The checkpoint that counts on the rows must not be on disk before their name."""
    forced = []
    monkeypatch.setattr(slm.training.metrics, "force", forced.append)
    file = MetricsFile(tmp_path / "rows.jsonl")
    file.on_row({"step": 1})
    file.state_dict()
    assert forced == [file.path, tmp_path]


@pytest.mark.parametrize("price", [float("nan"), float("inf"), -1.0])
def test_what_is_no_price_is_refused(price):
    with pytest.raises(
        SlmError, match=f"{price} dollars per hour are no price; allowed"
    ):
        Dollars(price)


def test_dollars_follow_the_seconds():
    row = {"seconds": 1800}
    Dollars(4.0).on_row(row)
    assert row["cost/usd"] == 2.0


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
def test_wandb_is_used_when_asked_for_and_never_prompts(
    tmp_path, enabled, mode, outcome, shape
):
    """In a process with a terminal, where wandb would ask for a key, and without any login."""
    (tmp_path / "wandb.yaml").write_text(
        make_config(
            {
                "model": shape,
                "data": {"dataset": "stories"},
                "wandb": {"enabled": enabled},
            }
        ).to_yaml()
    )
    code = "from slm.training.config import load_config; from slm.training.metrics import wants_wandb; "
    code += f"print(wants_wandb(load_config({str(tmp_path / 'wandb.yaml')!r})))"
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("WANDB")
    }
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")} | (
        {"WANDB_MODE": mode} if mode else {}
    )
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=environment,
    )
    os.close(theirs)
    printed, _ = process.communicate(timeout=300)
    said = os.read(ours, 100_000).decode() if process.returncode else ""
    os.close(ours)
    if isinstance(outcome, str):
        assert process.returncode == 1 and outcome in said
    else:
        assert process.returncode == 0 and printed.strip() == str(outcome)


UNREACHABLE = """
import sys, wandb
from slm.training.config import load_config
from slm.training.run import train

init = wandb.init


def impatient(mode=None, **options):
    if mode is None:  # only where nobody answers; to begin offline may take its time
        options["settings"] = wandb.Settings(init_timeout=2)
    return init(mode=mode, **options)


wandb.init = impatient
print(train(load_config(sys.argv[1]), run_dir=sys.argv[2], verbose=False).finished)
"""


def test_wandb_that_cannot_be_reached_does_not_end_a_run(tmp_path, config, quick):
    """The real client, with a login and a server where nobody listens; it is asked to give up soon."""
    (tmp_path / "quick.yaml").write_text(config().to_yaml())
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            UNREACHABLE,
            str(tmp_path / "quick.yaml"),
            str(tmp_path / "run"),
        ],
        env={k: v for k, v in os.environ.items() if k != "WANDB_MODE"}
        | {
            "WANDB_API_KEY": "a" * 40,
            "WANDB_BASE_URL": "http://127.0.0.1:9",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "Weights & Biases did not take the run" in done.stdout
        and done.stdout.endswith("True\n")
    )
    (file,) = (tmp_path / "run/wandb").glob("offline-run-*/*.wandb")
    assert b"val/loss" in file.read_bytes()


def test_wandb_gets_the_rows_offline_and_resumes_under_the_same_id(
    tmp_path, monkeypatch, config, interrupted
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    seen, original = [], wandb.init
    monkeypatch.setattr(
        wandb, "init", lambda **options: seen.append(options) or original(**options)
    )
    c = config()
    interrupted(c, tmp_path / "run")
    train(c, run_dir=tmp_path / "run", dollars_per_hour=3.6, verbose=False)
    assert (
        len(seen) == 2
        and seen[0]["id"] == seen[1]["id"]
        and {o["resume"] for o in seen} == {"allow"}
    )
    files = [
        path.read_bytes()
        for path in (tmp_path / "run/wandb").glob("offline-run-*/*.wandb")
    ]
    assert len(files) == 2
    first = ["model/parameters", "gradients/blocks.0.attention.qkv.weight", "histogram"]
    assert all(key.encode() in files[0] or key.encode() in files[1] for key in first)
    rows = [
        "train/loss",
        "train/lr",
        "train/grad_norm",
        "train/tokens_seen",
        "perf/tokens_per_s",
        "perf/mfu",
    ]
    assert all(key.encode() in file for key in rows for file in files)
    assert any(b"val/loss" in file for file in files) and any(
        b"cost/usd" in file for file in files
    )


def test_a_run_that_was_deleted_at_the_server_goes_on_there_as_a_new_one(
    monkeypatch, config, capsys
):
    """The server answers 409 to its id, for days."""
    import wandb

    class Run:
        def define_metric(self, *_, **__):
            pass

    asked = []

    def init(id, mode=None, **options):
        asked.append(id)
        if id == "deleted1":
            raise wandb.errors.CommError("409: the run was deleted")
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    logger = WandbLogger(config())
    logger.load_state_dict({"id": "deleted1"})
    logger.on_start(None)
    assert asked[0] == "deleted1" and logger.state_dict() == {"id": asked[1]} != {
        "id": "deleted1"
    }
    said = capsys.readouterr().out
    assert "did not take deleted1 again (409: the run was deleted)" in said
    assert f"as a new one, {asked[1]}" in said


@pytest.mark.parametrize(
    "wrong",
    [
        {"project": "a/b"},
        {"project": ""},
        {"project": "x" * 129},
        {"name": "x" * 129},
        {"tags": ["x" * 65]},
        {"tags": ["good", ""]},
    ],
)
def test_what_the_server_would_refuse_is_refused_with_the_config(wrong):
    with pytest.raises(SlmError, match=r"WandbConfig\.\w+ = .*: allowed (is|are) "):
        WandbConfig(**wrong)
    WandbConfig(project="x" * 128, name="a run", tags=["x" * 64])
