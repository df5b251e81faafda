"""The launch against a stand-in for Modal's servers: the real client, real containers, no account and no network.

Runs where such a stand-in lies, in the folder that SLM_MODAL_LOOPBACK names or in `../shared/modal_loopback`: a script `run.py` that
serves Modal's protocol on this machine, runs a command against it, and writes down what it was asked.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = Path(
    os.environ.get("SLM_MODAL_LOOPBACK") or ROOT.parent / "shared" / "modal_loopback"
)

pytestmark = pytest.mark.skipif(
    not (LOOPBACK / "run.py").exists(),
    reason=f"no stand-in for Modal at {LOOPBACK}; set SLM_MODAL_LOOPBACK to the folder of one",
)

TINY = yaml.safe_load("""
model: {vocab_size: 1024, context_length: 32, n_layers: 1, n_heads: 2, d_model: 16, d_ff: 32}
training: {batch_size: 4, learning_rate: 0.01, warmup_steps: 5, max_steps: 60, threads: 1,
           checkpoint_every: 10, eval_every: 20, log_every: 5}
data: {dataset: stories, tokenizer: stories, max_documents: 100}
modal: {gpu: T4, timeout: 600, max_dollars: 1.0}
wandb: {enabled: false}
""")
# the module that defines `train`; each of the following is appended to it
TRAINING = "training/run.py"
TROUBLED = """
_train = train

def train(config, run_dir=None, on_checkpoint=None, **rest):
    import os, pathlib, signal, time

    def checkpoint():
        on_checkpoint()
        troubles = len(list(pathlib.Path(run_dir).glob("trouble*")))
        pathlib.Path(run_dir, f"trouble{troubles}").touch()
        if troubles == 0:
            raise RuntimeError("boom")
        if troubles == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if troubles == 2:
            time.sleep(30)

    return _train(config, run_dir=run_dir, on_checkpoint=checkpoint, **rest)
"""
SLOW = """
_train = train

def train(config, run_dir=None, on_checkpoint=None, **rest):
    import time

    def slowly():
        on_checkpoint()
        time.sleep(2)

    return _train(config, run_dir=run_dir, on_checkpoint=slowly, **rest)
"""
CRASH_ALWAYS = """
def train(*_, **__):
    raise RuntimeError("boom")
"""
NO_CHECKPOINT = """
def train(*_, **__):
    import signal, time

    stopped = []
    signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
    while not stopped:
        time.sleep(0.1)
"""


class Project:
    """A copy of what a user has, and a way to run commands in it."""

    def __init__(self, folder):
        self.folder = folder / "project"
        self.state = folder / "state"
        self.folder.mkdir()
        shutil.copy(ROOT / "modal_app.py", self.folder)
        for name in ("slm", "configs"):
            shutil.copytree(
                ROOT / name,
                self.folder / name,
                ignore=shutil.ignore_patterns("__pycache__"),
            )

    def config(self, name="tiny", **sections):
        merged = {
            key: {**TINY.get(key, {}), **sections.get(key, {})}
            for key in {**TINY, **sections}
        }
        # not under configs/: it lies on this computer only
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(merged))
        return path.name

    def look_every_second(self):
        """Let the meter tick each second."""
        path = self.folder / "slm" / "cloud" / "budget.py"
        code = path.read_text()
        assert code.count("TICK = 30.0") == 1
        path.write_text(code.replace("TICK = 30.0", "TICK = 1.0"))

    def attempts(self, run="tiny"):
        """What the meter noted."""
        path = self.state / "volumes" / "slm-data" / "runs" / run / "attempts.json"
        return json.loads(path.read_text())

    def append(self, module, code):
        with (self.folder / "slm" / module).open("a") as file:
            file.write(f"\n\n{code}")

    def run(self, command, *options):
        """Run a shell command against the stand-in; returns its report, with what was printed under "output"."""
        report = self.folder.parent / "report.json"
        fixed = ["--quiet", "--json", str(report), "--state", str(self.state)]
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        serve = [sys.executable, str(LOOPBACK / "run.py"), *fixed, *options]
        done = subprocess.run(
            [*serve, str(self.folder), "--", "bash", "-c", command],
            capture_output=True,
            text=True,
            cwd=self.folder.parent,
            env=environment,
            timeout=240,
        )
        found = json.loads(report.read_text())
        return {**found, "output": done.stdout + done.stderr}

    def metrics(self, run="tiny"):
        """Step, training loss and validation loss of a run on the volume."""
        path = self.state / "volumes" / "slm-data" / "runs" / run / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [
            (row["step"], row.get("train/loss"), row.get("val/loss")) for row in rows
        ]

    def checkpoints(self, run="tiny"):
        """Names of a run's checkpoints on the volume."""
        folder = self.state / "volumes" / "slm-data" / "runs" / run / "checkpoints"
        return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One launch in which nothing goes wrong, and everything that one does afterwards."""
    project = Project(tmp_path_factory.mktemp("plain"))
    run = f"modal run modal_app.py --config {project.config(wandb={'enabled': True})}"
    then = "modal run modal_app.py::{} --run tiny"
    commands = [
        run,
        then.format("status"),
        then.format("fetch"),
        then.format("generate") + " --prompt Once --max-tokens 5",
    ]
    return project, project.run(" && ".join(commands))


def attempts(report, call=-1):
    return [
        attempt["status"] for attempt in report["calls"][call]["inputs"][0]["attempts"]
    ]


def result(report, call=-1):
    return report["calls"][call]["inputs"][0]["result"]


def errors(report):
    """What the servers refused, but for the question whether a new run was launched before."""
    asked = ("VolumeGetFile2", "NOT_FOUND")
    return [
        error
        for error in report["rpc_errors"]
        if (error["rpc"], error["status"]) != asked
    ]


def variants(report):
    """The functions that a launch asked for, each with its config's machine."""
    return [function for function in report["functions"] if function.get("variant_of")]


def variant(report):
    (function,) = variants(report)
    return function


def test_plain_launch_trains_to_the_end(plain):
    project, report = plain
    assert report["exit_code"] == 0, report["output"]
    assert attempts(report, 0) == ["SUCCESS"]
    run = project.state / "volumes" / "slm-data" / "runs" / "tiny"
    assert list((run / "checkpoints").glob("step_*.pt")) and (run / "model").is_dir()
    assert project.metrics()[-1][0] == TINY["training"]["max_steps"]
    assert report["unimplemented_rpcs"] == {} and errors(report) == []


def test_function_asks_for_what_the_config_says(plain):
    _, report = plain
    train = variant(report)
    base = next(
        function
        for function in report["functions"]
        if function["id"] == train["variant_of"]
    )
    assert base["gpu"] is None
    assert (train["gpu"], train["timeout"], train["startup_timeout"]) == (
        "T4",
        600,
        1200,
    )
    assert train["retries"]["max_retries"] == 10 and train["single_use_containers"]
    assert (
        train["secrets"] == ["wandb"]
        and base["secrets"] == []
        and train["volumes"]["/data"]["name"] == "slm-data"
    )


def test_image_lacks_nothing_that_was_imported(plain):
    _, report = plain
    assert report["image_coverage"]
    for found in report["image_coverage"].values():
        assert (
            found["not_covered_by_image"] == {}
            and found["pins_differ_from_what_ran"] == {}
        ), found


def test_own_files_are_laid_over_the_image_and_not_built_in(plain):
    _, report = plain
    assert {"/root/slm/training/run.py", "/root/configs/gpt_124m.yaml"} <= set(
        variant(report)["mounted_files"]
    )
    assert not any(
        "COPY ./" in line for image in report["images"] for line in image["dockerfile"]
    )


def test_launch_prints_what_one_needs_next(plain):
    _, report = plain
    said = report["output"]
    call = (
        report["calls"][0]["id"]
        if "id" in report["calls"][0]
        else re.search(r"call +(fc-\S+)", said)[1]
    )
    assert call in said
    for words in (
        "modal app logs ap-",
        "modal app stop ap-",
        "::fetch --run tiny",
        "::stop --run tiny",
        "so far, about $",  # at each checkpoint
        "predicted",
        "actual",
        "finished at step 60",
    ):
        assert words in said, words


def test_status_fetch_and_generate(plain):
    project, report = plain
    said = report["output"]
    assert '"finished": true' in said and "tiny is in runs/modal/tiny" in said
    fetched = project.folder / "runs" / "modal" / "tiny"
    assert (fetched / "metrics.jsonl").exists() and list((fetched / "model").iterdir())
    assert not list(fetched.rglob("*.pt"))
    assert "Once" in result(report)["value"]


def test_shipped_configs_get_their_gpus_and_no_secret_without_need(project):
    names = ["gpt_124m", "gpt_350m", "gpt_774m"]
    configs = [*(f"configs/{name}.yaml" for name in names), project.config()]
    launches = [f"modal run modal_app.py --config {config}" for config in configs]
    report = project.run(" && ".join(launches), "--no-exec", "--no-default-secrets")
    assert report["exit_code"] == 0 and errors(report) == [], report["output"]
    assert len(variants(report)) == 4
    for name, found in zip(names, variants(report), strict=False):
        config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
        asked = config["modal"]
        gpu = {"A100": "A100-40GB"}.get(asked["gpu"], asked["gpu"])
        assert found["gpu"] in (gpu, asked["gpu"]) and found["secrets"] == []
        assert found["timeout"] == asked["timeout"]
    assert variants(report)[3]["secrets"] == []
    functions = {function["id"]: function for function in report["functions"]}
    called = [functions[call["function_id"]] for call in report["calls"]]
    tokens_first = [function for function in called if not function.get("variant_of")]
    assert [function["name"] for function in tokens_first] == ["prepare"] * 3
    assert [bool(function.get("variant_of")) for function in called] == [
        *[False, True] * 3,  # tokens first, on a CPU
        True,  # generated texts need no preparation
    ]


def test_refused_before_anything_is_built(project):
    """By the config, and by what the account lacks; each in one sentence."""
    costly = project.config("costly", training={"max_steps": 10**9})
    tracked = project.config("tracked", wandb={"enabled": True})
    launches = [
        f"modal run modal_app.py --config {config}; echo code $?"
        for config in (costly, tracked)
    ]
    report = project.run("; ".join(launches), "--no-default-secrets")
    said = report["output"]
    told = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(told) == 2 and said.count("code 2") == 2, said
    assert "--yes-spend" in told[0] and "modal secret create wandb" in told[1], said
    assert (
        report["images"] == [] and report["functions"] == [] and report["calls"] == []
    )
    assert "Traceback" not in said


def in_background(launch):
    """Shell text that launches, and goes on when the first checkpoint is told: `client.log` holds what the client said."""
    # job control, so that Ctrl-C reaches it
    begin = f"set -m; {launch} > client.log 2>&1 & job=$!"
    trains = "grep -qs 'so far, about' client.log || ! kill -0 $job"
    return f"{begin}; until {trains}; do sleep 0.1; done"


def test_closed_laptop_and_lost_machines_change_nothing(project, plain):
    """The client is killed, and its machine is taken away twice."""
    project.append(TRAINING, SLOW)
    launch = f"modal run modal_app.py --config {project.config()}"
    kill = "kill -KILL $job; wait $job; echo client $?; cat client.log"
    report = project.run(f"{in_background(launch)}; {kill}", "--preempt", "6,6")
    assert "client 137" in report["output"], report["output"]
    assert attempts(report) == ["PREEMPTED", "PREEMPTED", "SUCCESS"], report["output"]
    assert result(report)["status"] == "SUCCESS"
    assert project.metrics() == plain[0].metrics()


def test_failed_attempts_are_counted_and_the_run_ends_like_one_without(project, plain):
    """An exception, a kill, and the time limit, one after the other."""
    project.append(TRAINING, TROUBLED)
    project.look_every_second()
    launch = f"modal run --detach modal_app.py --config {project.config()}"
    report = project.run(launch, "--timeout-override", "30")
    *failed, last = attempts(report)
    assert {"FAILURE", "TIMEOUT"} <= set(failed) and last == "SUCCESS", report["output"]
    assert len(failed) >= 3 and "SUCCESS" not in failed, failed
    seconds = [attempt["seconds"] for attempt in project.attempts()]
    assert len(seconds) == len(attempts(report)) and min(seconds) > 0
    assert project.metrics() == plain[0].metrics()


def test_many_files_are_prepared_in_parallel_and_two_gpus_are_two_ranks(project):
    folder = project.folder / "own"
    folder.mkdir()
    for i in range(9):
        sentences = (
            f"Mia has {n} kites and a boat. Leo has {n + i}." for n in range(80)
        )
        (folder / f"{i}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in sentences)
        )
    config = project.config(
        data={"dataset": "/data/text/own", "max_documents": None},
        modal={"gpu": "H100:2"},
    )
    upload = "modal volume create slm-data; modal volume put slm-data own /text/own"
    launch = f"{upload} && modal run modal_app.py --config {config}"
    report = project.run(launch, "--max-containers", "2")  # each has to start
    assert report["exit_code"] == 0, report["output"]
    assert (
        result(report)["status"] == "SUCCESS"
        and project.metrics()[-1][0] == TINY["training"]["max_steps"]
    )
    assert variant(report)["gpu"] == "H100:2" and attempts(report) == ["SUCCESS"]
    assert "'finished': True" in result(report)["value"]
    run = project.state / "volumes" / "slm-data" / "runs" / "tiny"
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    functions = {function["id"]: function for function in report["functions"]}
    mapped = [
        call
        for call in report["calls"]
        if functions[call["function_id"]]["name"] == "prepare_part"
    ]
    assert [len(call["inputs"]) for call in mapped] == [9, 9]  # train and validation
    assert {each["result"]["status"] for call in mapped for each in call["inputs"]} == {
        "SUCCESS"
    }
    assert not any(functions[call["function_id"]]["gpu"] for call in mapped)
    tokens = project.state / "volumes" / "slm-data" / "tokens"
    assert (
        len(list(tokens.glob("*.tokens"))) == len(list(tokens.glob("*.json"))) == 2
    )  # joined, and made once


def test_spent_budget_stops_at_a_checkpoint_and_a_further_launch_too(project):
    text = f'"$(cat {project.config()})"'
    train = f"modal run modal_app.py::train --config-text {text} --run-dir /data/runs/tiny --budget 1e-6"
    metrics = project.state / "volumes" / "slm-data" / "runs" / "tiny" / "metrics.jsonl"
    report = project.run(f"{train} && cp {metrics} before.jsonl && {train}")
    assert report["exit_code"] == 0, report["output"]
    assert report["output"].count("a larger budget goes on from here") >= 2
    for call in (0, 1):
        assert attempts(report, call) == ["SUCCESS"]
        assert "'finished': False" in result(report, call)["value"]
    assert project.checkpoints() == ["step_00000010.pt"]
    before = (project.folder / "before.jsonl").read_text()
    assert metrics.read_text() == before  # the second did no step


def test_error_that_comes_again_is_not_paid_for_eleven_times(project):
    project.append(TRAINING, CRASH_ALWAYS)
    report = project.run(f"modal run modal_app.py --config {project.config()}")
    assert report["exit_code"] == 1 and "RuntimeError: boom" in report["output"], (
        report["output"]
    )
    assert attempts(report) == [
        "FAILURE",
        "SUCCESS",
    ]  # the second one says why there is no third
    assert "two attempts in a row" in result(report)["value"]


def test_time_limit_that_is_too_short_for_a_checkpoint_is_told(project):
    project.append(TRAINING, NO_CHECKPOINT)
    report = project.run(
        f"modal run modal_app.py --config {project.config(modal={'timeout': 5})}"
    )
    assert attempts(report) == ["TIMEOUT", "TIMEOUT", "TIMEOUT", "SUCCESS"], report[
        "output"
    ]
    assert report["exit_code"] == 1 and "modal.timeout" in result(report)["value"]


def test_run_that_comes_to_no_checkpoint_stops_at_its_budget(project):
    project.append(TRAINING, NO_CHECKPOINT)
    project.look_every_second()
    text = f'"$(cat {project.config()})"'
    report = project.run(
        f"modal run modal_app.py::train --config-text {text} --run-dir /data/runs/tiny --budget 3e-4"
    )
    assert (
        attempts(report) == ["SUCCESS"]
        and "a larger budget goes on from here" in report["output"]
    ), report["output"]
    assert 3e-4 <= project.attempts()[0]["dollars"] < 2e-3


def test_interrupt_stops_only_the_watching_and_a_second_launch_is_refused(project):
    """Ctrl-C; the same command again; what `status` says; and `stop`."""
    project.append(TRAINING, SLOW.replace("sleep(2)", "sleep(5)"))
    launch = f"modal run modal_app.py --config {project.config()}"
    interrupt = "kill -INT $job; wait $job; cat client.log"
    stop = "modal run modal_app.py::stop --run tiny"
    status = "modal run modal_app.py::status --run tiny"
    # a question that was not answered may be asked again, as it says itself
    stopped = f"({stop} || {stop})"
    report = project.run(
        f"{in_background(launch)}; {interrupt}; {launch}; echo second $?; {status}; {stopped}; sleep 6; {status}"
    )
    said = report["output"]
    assert "Only the watching has stopped" in said, said
    assert "tiny is being trained already" in said and "second 2" in said, said
    assert (
        "tiny is stopped" in said
        and '"running": true' in said
        and '"running": false' in said
    ), said
    assert len(report["calls"]) == 1 and result(report)["status"] != "SUCCESS"


def test_chapter_launches_where_there_is_a_token(project):
    shutil.copytree(
        ROOT / "course",
        project.folder / "course",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    chapter = (ROOT / "chapters" / "21_launch.py").read_text()
    chapter, rest = chapter.split("# %% [markdown]\n# ## Is it right?\n")
    assert "LAUNCH = False" in chapter and "reconcile(" in chapter and rest
    (project.folder / "chapter.py").write_text(
        chapter.replace("LAUNCH = False", "LAUNCH = True")
    )
    execute = "jupytext --to ipynb chapter.py && jupyter nbconvert --to notebook --execute --inplace chapter.ipynb"
    # the copy, wherever another `slm` may lie
    report = project.run(f"export PYTHONPATH=$PWD; {execute}")
    assert report["exit_code"] == 0, report["output"]
    assert [result(report, n)["status"] for n in range(len(report["calls"]))] == [
        "SUCCESS"
    ]
    assert (project.folder / "runs" / "modal" / "launch" / "model").is_dir()
    assert not (project.folder / "runs" / "launch").exists()
