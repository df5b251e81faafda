"""Runs that are shot at random, alone and as one of two processes, end as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys

import pytest

from slm.training.checkpoint import load_checkpoint
from slm.training.run import load_run, train

KILLER = """
import json, os, pathlib, random, signal, sys, time
import torch._dynamo  # which the first optimizer imports
from slm.data.tokenizer import get_tokenizer
from slm.training.config import load_config
from slm.training.run import train
from slm.training.trainer import Trainer

config, folder, chance = load_config(sys.argv[1]), pathlib.Path(sys.argv[2]), random.Random(0)
kills, rows, train_step = int(sys.argv[3]), folder / "metrics.jsonl", Trainer.train_step
get_tokenizer("stories")  # is trained once


def no_further(self, batches, stop=False):  # else a fast machine would come to the end before all kills are over
    while kill < kills and self.step >= (kill + 1) * config.training.max_steps // (kills + 1):
        time.sleep(1)
    return train_step(self, batches, stop)


def checkpoints():
    return sorted(path.name for path in folder.glob("checkpoints/step_*.pt"))


Trainer.train_step = no_further
for kill in range(kills + 1):
    child = os.fork()  # what takes time at a start is done already
    if child == 0:
        train(config, run_dir=folder, verbose=False)
        os._exit(0)
    saved, gone = checkpoints(), 0
    if kill < kills:
        limit = time.monotonic() + 300
        while kill % 5 and checkpoints() == saved:  # every fifth dies while it starts
            time.sleep(0.002)
            gone, status = os.waitpid(child, os.WNOHANG)
            if gone or time.monotonic() > limit:
                break
        if not gone:
            time.sleep(chance.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
    if not gone:  # by itself, which it should not be
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    reached = rows.read_text().count("train/loss") if rows.exists() else 0
    parts = [path.name for path in folder.glob("checkpoints/*.tmp")]
    print(json.dumps({"started from": saved[-1:], "ended": code, "rows": reached, "half-written": parts}), flush=True)
"""


@pytest.mark.parametrize(
    ("dtype", "optimizer", "workers", "kills"),
    [("float32", "adamw", 0, 12), ("bfloat16", "muon", 2, 4)],
)
def test_killed_many_times_it_ends_as_if_nothing_had_happened(
    tmp_path, dtype, optimizer, workers, kills, config, equal_runs, quick, equal_states
):
    """SIGKILL at random moments: before the first checkpoint, in a step, while saving. Weights, optimizers, metrics."""
    last = 10 * (kills + 1)
    steps = {
        "max_steps": last,
        "checkpoint_every": 2,
        "eval_every": last // 3,
        "log_every": 3,
        "warmup_steps": 20,
    }
    steps |= {"gradient_accumulation_steps": 2, "dtype": dtype, "optimizer": optimizer}
    c = config(data={"num_workers": workers}, **steps)
    whole = train(c, run_dir=tmp_path / "whole", verbose=False)
    assert whole.finished
    (tmp_path / "quick.yaml").write_text(c.to_yaml())
    command = [
        sys.executable,
        "-c",
        KILLER,
        str(tmp_path / "quick.yaml"),
        str(tmp_path / "torn"),
        str(kills),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    log = [json.loads(line) for line in done.stdout.splitlines()]
    codes = [line["ended"] for line in log]
    assert codes == [-signal.SIGKILL] * kills + [0], done.stderr
    assert len({tuple(line["started from"]) for line in log}) > kills // 2
    equal_runs(load_run(tmp_path / "torn"), whole)
    ends = [
        load_checkpoint(tmp_path / run / f"checkpoints/step_{last:08d}.pt")
        for run in ("torn", "whole")
    ]
    assert equal_states(*ends)


JOB = """
import os, signal, sys
from slm.hardware import rank
from slm.training.config import load_config
from slm.training.run import train
from slm.training.trainer import Trainer

plain, (config, folder, *last) = Trainer.train_step, sys.argv[1:]
first = os.environ["RANK"] == "0"


def train_step(self, batches, stop=False):
    if last and self.step == int(last[0]) and rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, batches, stop)


Trainer.train_step = train_step
if last and first:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
try:
    train(load_config(config), run_dir=folder, verbose=False)
except RuntimeError:
    if last and first:  # of two that it finds dead at once torchrun would name this one, so it waits until it is told
        signal.sigwait([signal.SIGTERM])
    raise
"""


def test_two_processes_give_the_losses_of_one_and_survive_a_killed_rank(
    tmp_path, config, losses, quick
):
    """Rank 1 is shot at step 9; the job ends and names it; the same command goes on from step 8 to the same losses."""
    c = config(model={"dropout": 0.0}, batch_size=4, eval_batches=None)
    single = train(c, run_dir=tmp_path / "one", verbose=False)
    half = config(model={"dropout": 0.0}, batch_size=2, eval_batches=None)
    (tmp_path / "quick.yaml").write_text(half.to_yaml())
    (tmp_path / "job.py").write_text(JOB)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
    ]
    command += [
        str(tmp_path / "job.py"),
        str(tmp_path / "quick.yaml"),
        str(tmp_path / "two"),
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.getcwd()}
    shot = subprocess.run(
        [*command, "9"], capture_output=True, text=True, env=environment
    )
    assert shot.returncode != 0
    cause = shot.stderr.partition("Root Cause")[2]
    assert "rank      : 1" in cause and "SIGKILL" in cause, shot.stderr
    assert (
        not (tmp_path / "two/model").exists()
        and (tmp_path / "two/checkpoints/step_00000008.pt").exists()
    )
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    double = load_run(tmp_path / "two")
    assert losses(double.metrics) == pytest.approx(losses(single.metrics), abs=1e-5)
    assert losses(double.metrics, "val/loss") == pytest.approx(
        losses(single.metrics, "val/loss"), abs=1e-5
    )
    assert (
        double.metrics[-1]["train/tokens_seen"]
        == single.metrics[-1]["train/tokens_seen"]
    )
