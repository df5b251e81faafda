"""The launch against a stand-in for Modal's servers: the real client, real containers, no account and no network.

Runs where such a stand-in lies (see conftest.py).
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
STEPS = 60  # of the run that is launched

# the module that defines `train`; each of the following is appended to it
TRAINING = "training/run.py"
CRASH_ONCE = """
_train = train

def train(config, run_dir=None, on_checkpoint=None, **rest):
    import os, pathlib, signal

    def crash():
        on_checkpoint()
        crashed = pathlib.Path(run_dir, "crashed")
        if not crashed.exists():
            crashed.touch()
            raise RuntimeError("boom")

    return _train(config, run_dir=run_dir, on_checkpoint=crash, **rest)
"""
FULL = """
def full(self, stop):
    raise torch.OutOfMemoryError("CUDA out of memory")

Trainer.train = full
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
KILLED_ONCE = CRASH_ONCE.replace(
    'raise RuntimeError("boom")', "os.kill(os.getpid(), signal.SIGKILL)"
)
NO_CHECKPOINT = """
def train(*_, **__):
    import signal, time

    stopped = []
    signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
    while not stopped:
        time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory, new_project):
    """One launch in which nothing goes wrong, and everything that one does afterwards."""
    project = new_project(tmp_path_factory.mktemp("plain"))
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


def variant(report):
    (function,) = [
        function for function in report["functions"] if function.get("variant_of")
    ]
    return function


def test_plain_launch_trains_to_the_end(plain):
    project, report = plain
    assert report["exit_code"] == 0, report["output"]
    assert attempts(report, 0) == ["SUCCESS"]
    run = project.state / "volumes" / "slm-data" / "runs" / "tiny"
    assert list((run / "checkpoints").glob("step_*.pt")) and (run / "model").is_dir()
    assert project.metrics()[-1][0] == STEPS
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


@pytest.mark.parametrize("name", ["gpt_124m", "gpt_350m", "gpt_774m"])
def test_shipped_config_gets_its_gpu(project, name):
    report = project.run(
        f"modal run modal_app.py --config configs/{name}.yaml", "--no-exec"
    )
    asked = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())["modal"]
    # nothing was run, so nothing came back, as when the watching ends
    assert report["exit_code"] == 130, report["output"]
    gpu = {"A100": "A100-40GB"}.get(asked["gpu"], asked["gpu"])
    assert variant(report)["gpu"] in (gpu, asked["gpu"])
    assert variant(report)["timeout"] == asked["timeout"]
    names = [call["function_id"] for call in report["calls"]]
    prepare = next(
        function["id"]
        for function in report["functions"]
        if function["name"] == "prepare"
    )
    assert names == [prepare, variant(report)["id"]]  # tokens first, on a CPU


REFUSED = {
    "unknown GPU": ({"modal": {"gpu": "H1000"}}, "modal.gpu"),
    "more than a day": ({"modal": {"timeout": 90000}}, "modal.timeout"),
    "over budget": ({"training": {"max_steps": 10**9}}, "--yes-spend"),
    "no secret": ({"wandb": {"enabled": True}}, "modal secret create wandb"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_built(project, case):
    sections, words = REFUSED[case]
    report = project.run(
        f"modal run modal_app.py --config {project.config(**sections)}",
        "--no-default-secrets",
    )
    errors = [
        line for line in report["output"].splitlines() if line.startswith("error: ")
    ]
    assert report["exit_code"] == 2
    assert len(errors) == 1 and words in errors[0], report["output"]
    assert (
        report["images"] == [] and report["functions"] == [] and report["calls"] == []
    )
    assert "Traceback" not in report["output"]


def test_secret_is_not_asked_for_without_need(project):
    report = project.run(
        f"modal run modal_app.py --config {project.config()}",
        "--no-exec",
        "--no-default-secrets",
    )
    assert variant(report)["secrets"] == [] and errors(report) == []


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (["--preempt", "6,6"], SLOW, ["PREEMPTED", "PREEMPTED", "SUCCESS"]),
        (
            ["--timeout-override", "20"],
            SLOW.replace("sleep(2)", "sleep(5)"),
            ["TIMEOUT"],
        ),
        ([], CRASH_ONCE, ["FAILURE", "SUCCESS"]),
    ],
    ids=["preempted twice", "timeout", "exception"],
)
def test_interrupted_run_ends_like_one_that_was_not(
    project, plain, options, code, expected
):
    project.append(TRAINING, code)
    report = project.run(
        f"modal run modal_app.py --config {project.config()}", *options
    )
    statuses = attempts(report)
    assert statuses[: len(expected)] == expected and statuses[-1] == "SUCCESS", report[
        "output"
    ]
    undisturbed, _ = plain
    assert project.metrics() == undisturbed.metrics()


@pytest.mark.parametrize("detach", ["--detach", ""])
def test_closed_laptop_stops_nothing(project, plain, detach):
    project.append(TRAINING, SLOW)
    command = f"exec modal run {detach} modal_app.py --config {project.config()}"
    report = project.run(command, "--kill-client-after", "12")
    assert report["ended_by"] == "SIGKILL", report["output"]
    assert result(report)["status"] == "SUCCESS"
    assert project.metrics() == plain[0].metrics()


def test_interrupt_stops_the_watching_and_says_so(project):
    project.append(
        TRAINING, SLOW.replace("sleep(2)", "sleep(5)")
    )  # launched by then, and not done, on any machine
    command = f"exec modal run modal_app.py --config {project.config()}"
    report = project.run(command, "--interrupt-client-after", "18")
    assert "Only the watching has stopped" in report["output"], report["output"]
    assert report["exit_code"] == 130
    assert "::stop --run tiny" in report["output"].partition("Only the watching")[2]
    assert result(report)["status"] == "SUCCESS" and project.metrics()[-1][0] == STEPS


def test_two_gpus_are_two_ranks(project):
    report = project.run(
        f"modal run modal_app.py --config {project.config(modal={'gpu': 'H100:2'})}"
    )
    assert report["exit_code"] == 0, report["output"]
    assert variant(report)["gpu"] == "H100:2"
    assert (
        attempts(report) == ["SUCCESS"]
        and "'finished': True" in result(report)["value"]
    )
    ranks = [
        process
        for container in report["containers"]
        for process in container["imports"]["third_party"]
    ]
    assert "torch" in ranks
    path = project.state / "volumes" / "slm-data" / "runs" / "tiny" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    costs = [row["cost/usd"] for row in rows]
    assert costs == sorted(costs) and costs[-1] > 0


def test_own_text_on_the_volume_is_prepared_on_a_cpu(project):
    text = project.folder / "own.txt"
    text.write_text(
        "\n\n".join(
            f"Mia has {n} kites and a boat. Leo has {n + 1}." for n in range(400)
        )
    )
    config = project.config(
        data={"dataset": "/data/text/own.txt", "max_documents": None}
    )
    upload = (
        "modal volume create slm-data; modal volume put slm-data own.txt /text/own.txt"
    )
    report = project.run(f"{upload} && modal run modal_app.py --config {config}")
    assert report["exit_code"] == 0, report["output"]
    assert result(report, 0)["status"] == result(report, 1)["status"] == "SUCCESS"
    assert list((project.state / "volumes" / "slm-data" / "tokens").glob("*.tokens"))


def test_many_files_on_the_volume_are_prepared_in_parallel(project):
    folder = project.folder / "own"
    folder.mkdir()
    for i in range(9):
        sentences = (
            f"Mia has {n} kites and a boat. Leo has {n + i}." for n in range(80)
        )
        (folder / f"{i}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in sentences)
        )
    config = project.config(data={"dataset": "/data/text/own", "max_documents": None})
    upload = "modal volume create slm-data; modal volume put slm-data own /text/own"
    report = project.run(f"{upload} && modal run modal_app.py --config {config}")
    assert report["exit_code"] == 0, report["output"]
    assert result(report)["status"] == "SUCCESS" and project.metrics()[-1][0] == STEPS
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


def test_spent_budget_stops_at_a_checkpoint(project):
    text = f'"$(cat {project.config()})"'
    report = project.run(
        f"modal run modal_app.py::train --config-text {text} --run-dir /data/runs/tiny --budget 1e-6"
    )
    assert (
        report["exit_code"] == 0
        and "a larger budget goes on from here" in report["output"]
    ), report["output"]
    assert attempts(report) == ["SUCCESS"]
    assert "'finished': False" in result(report)["value"]
    assert project.checkpoints() == ["step_00000010.pt"]


def test_spent_budget_is_not_exceeded_by_a_further_launch(project):
    text = f'"$(cat {project.config()})"'
    train = f"modal run modal_app.py::train --config-text {text} --run-dir /data/runs/tiny --budget 1e-6"
    report = project.run(f"{train} && {train}")
    assert report["exit_code"] == 0, report["output"]
    assert [attempts(report, call) for call in (0, 1)] == [["SUCCESS"], ["SUCCESS"]]
    first, second = (
        re.search(r"'step': (\d+)", result(report, call)["value"])[1] for call in (0, 1)
    )
    assert first == second and project.checkpoints() == [
        "step_00000010.pt"
    ]  # the second call did no step


def test_full_memory_is_not_tried_again(project):
    project.append(TRAINING, FULL)
    report = project.run(f"modal run modal_app.py --config {project.config()}")
    assert (
        report["exit_code"] == 1 and "lower training.batch_size" in report["output"]
    ), report["output"]
    assert attempts(report) == ["SUCCESS"]


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


def test_seconds_of_a_killed_attempt_are_counted(project, plain):
    project.append(TRAINING, KILLED_ONCE)
    project.look_every_second()
    report = project.run(f"modal run modal_app.py --config {project.config()}")
    assert attempts(report)[-1] == "SUCCESS" and len(attempts(report)) == 2, report[
        "output"
    ]
    assert [attempt["seconds"] > 0 for attempt in project.attempts()] == [True, True]
    assert project.metrics() == plain[0].metrics()


def test_second_launch_of_a_running_run_is_refused_and_stop_stops_it(project):
    project.append(TRAINING, SLOW)
    launch = f"modal run modal_app.py --config {project.config()}"
    killed = f"timeout --signal KILL 9 {launch}"  # the laptop is closed
    stop = "modal run modal_app.py::stop --run tiny"
    status = "modal run modal_app.py::status --run tiny"
    # a question that was not answered may be asked again, as it says itself
    stopped = f"({stop} || {stop})"
    report = project.run(
        f"{killed}; {launch}; echo second $?; {status}; {stopped}; sleep 6; {status}"
    )
    said = report["output"]
    assert "tiny is being trained already" in said and "second 2" in said, said
    assert (
        "tiny is stopped" in said
        and '"running": true' in said
        and '"running": false' in said
    ), said
    assert len(report["calls"]) == 1 and result(report)["status"] != "SUCCESS"


# nothing lies on the volume for a while, as when a launch waits for its GPU
WAITS = """
_meter = Meter.__init__

def waiting(self, *values, **options):
    time.sleep(25)
    _meter(self, *values, **options)

Meter.__init__ = waiting
"""
ELSEWHERE = "mkdir ../elsewhere; cp -r modal_app.py slm configs tiny.yaml ../elsewhere"


def test_launch_from_another_computer_is_refused_while_the_first_waits(project):
    project.append("cloud/budget.py", WAITS)
    launch = f"modal run modal_app.py --config {project.config()}"
    status, stop = (
        f"modal run modal_app.py::{name} --run tiny" for name in ("status", "stop")
    )
    first = f"({launch} > first.txt 2>&1; echo first $? >> first.txt)"
    until = "until grep -q '^call ' first.txt; do sleep 0.1; done"
    second = f"cd ../elsewhere; {launch}; echo second $?; {status}; {stop}"
    report = project.run(
        f"{ELSEWHERE}; {first} & {until}; {second}; wait; cat ../project/first.txt"
    )
    said = report["output"]
    assert "tiny is being trained already" in said and "second 2" in said, said
    assert '"running": true' in said and "tiny is stopped" in said, said
    assert "first 2" in said and "tiny was stopped, or ended without" in said, said
    assert len(report["calls"]) == 1 and result(report)["status"] != "SUCCESS"


def test_of_two_launches_at_the_same_moment_one_at_most_rents(project):
    launch = f"modal run modal_app.py --config {project.config()}"
    both = f"({launch}; echo here $?) & (cd ../elsewhere; {launch}; echo there $?)"
    report = project.run(f"{ELSEWHERE}; {both}; wait")
    said = report["output"]
    assert len(report["calls"]) <= 1, said
    assert "tiny is being trained already" in said
    assert ("here 2" in said) + ("there 2" in said) == 2 - len(report["calls"])


@pytest.mark.parametrize(
    ("text", "run_dir", "told"),
    [
        ("model: {}", "/data/runs/tiny", "data is missing"),
        ("$(cat tiny.yaml)", "/data/runs/.", "is not /data/runs/runs"),
    ],
    ids=["config", "folder"],
)
def test_what_no_attempt_can_mend_is_paid_for_once(project, text, run_dir, told):
    project.config()
    report = project.run(
        f'modal run modal_app.py::train --config-text "{text}" --run-dir {run_dir}'
    )
    assert attempts(report) == ["SUCCESS"] and told in result(report)["value"]


def test_full_volume_is_paid_for_once_and_named(project):
    full = "raise OSError(28, 'No space left on device')"
    project.append("cloud/budget.py", f"def write_text(path, text):\n    {full}\n")
    report = project.run(f"modal run modal_app.py --config {project.config()}")
    assert report["exit_code"] == 1 and attempts(report) == ["SUCCESS"]
    assert "No space left on device" in result(report)["value"]
    assert "modal.timeout" not in report["output"]


def test_config_of_any_name_is_launched_under_one_that_can_be_pasted(project):
    config = project.config("a&b")
    report = project.run(f"modal run modal_app.py --config '{config}'", "--no-exec")
    assert "'a&b' cannot name a run, so it is called a-b" in report["output"]
    assert "modal run modal_app.py::stop --run a-b " in report["output"]


def test_chapter_launches_where_there_is_a_token(project):
    shutil.copytree(
        ROOT / "course",
        project.folder / "course",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    chapter = (ROOT / "chapters" / "21_launch.py").read_text()
    assert "LAUNCH = False" in chapter
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
