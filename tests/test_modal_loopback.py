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

# the module that defines `train`; to it one of the following is appended
TRAINING = "training/run.py"
# lets the thread that has written a checkpoint wait until its container is told to end, whenever that is
TOLD = """
_train, _stop_signals, _told = train, stop_signals, []

@contextlib.contextmanager
def stop_signals(*values, **options):
    with _stop_signals(*values, **options) as signals:
        _told.append(signals)
        yield signals

def until_told():
    limit = time.monotonic() + 600
    while not any(_told) and time.monotonic() < limit:
        time.sleep(0.05)
"""
TROUBLED = f"""{TOLD}
def train(config, run_dir=None, on_checkpoint=None, **rest):
    def checkpoint():
        on_checkpoint()
        troubles = len(list(Path(run_dir).glob("trouble*")))
        Path(run_dir, f"trouble{{troubles}}").touch()
        if troubles == 0:
            raise RuntimeError("boom")
        if troubles == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if troubles == 2:
            until_told()  # by the time limit

    return _train(config, run_dir=run_dir, on_checkpoint=checkpoint, **rest)
"""
# the first two machines of a run go no further than its next checkpoint until they are taken away
LOST = f"""{TOLD}
def train(config, run_dir=None, on_checkpoint=None, **rest):
    def waiting():
        on_checkpoint()
        if len(json.loads(Path(run_dir, "attempts.json").read_bytes())) < 3:
            until_told()

    return _train(config, run_dir=run_dir, on_checkpoint=waiting, **rest)
"""
# goes no further than the first checkpoint until it is cancelled
SLOW = """
_train, _step = train, Trainer.train_step

def train(config, run_dir=None, on_checkpoint=None, **rest):
    saved = threading.Event()

    def step(*values, **options):
        if saved.is_set():
            time.sleep(600)
        return _step(*values, **options)

    def checkpoint():
        on_checkpoint()
        saved.set()

    Trainer.train_step = step
    return _train(config, run_dir=run_dir, on_checkpoint=checkpoint, **rest)
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


def duration(plain):
    """How long this machine trains from the first step to the last."""
    _, report = plain
    return report["calls"][0]["inputs"][0]["attempts"][0]["seconds"]


def result(report, call=-1):
    return report["calls"][call]["inputs"][0]["result"]


def errors(report):
    """What the servers refused, but for the questions whether a new run was launched before, and what there is of it."""
    asked = ("VolumeGetFile2", "VolumeListFiles2", "VolumeListFiles")
    return [
        error
        for error in report["rpc_errors"]
        if error["rpc"] not in asked or error["status"] != "NOT_FOUND"
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
        600,
    )
    # as many attempts as the time limit needs, one, and four more
    assert train["retries"]["max_retries"] == 4 and train["single_use_containers"]
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
    report = project.run("; ".join(launches), "--no-exec", "--no-default-secrets")
    # nothing was run, so nothing came back, as when the watching ends
    assert report["exit_code"] == 130 and errors(report) == [], report["output"]
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


def until(question, answer):
    """Shell text that asks until the answer comes, or for ten minutes, and prints what was said last."""
    came = f"{question} > last.txt 2>&1; grep -q '{answer}' last.txt"
    ask = f"until {came} || [ $SECONDS -gt $end ]; do sleep 1; done"
    return f"end=$((SECONDS + 600)); {ask}; cat last.txt"


def lost_twice(plain):
    """Options that take two machines away, each when it waits for that."""
    return "--preempt", f"{duration(plain)},{duration(plain)}"


def test_closed_laptop_and_lost_machines_change_nothing(project, plain):
    """The client is killed, and its machine is taken away twice."""
    project.append(TRAINING, LOST)
    launch = f"modal run modal_app.py --config {project.config()}"
    kill = "kill -KILL $job; wait $job; echo client $?; cat client.log"
    report = project.run(f"{in_background(launch)}; {kill}", *lost_twice(plain))
    assert "client 137" in report["output"], report["output"]
    assert attempts(report) == ["PREEMPTED", "PREEMPTED", "SUCCESS"], report["output"]
    assert result(report)["status"] == "SUCCESS"
    assert project.metrics() == plain[0].metrics()


def test_first_steps_tell_the_price_and_the_rest_goes_on_from_them(project, plain):
    """Two launches of one run; what lies between them and after them is refused before anything is rented."""
    launch, tiny = "modal run modal_app.py --config", project.config()
    other = project.config("other", training={"batch_size": 8})
    half = project.config("half", modal={"gpu": "H100"})
    commands = {
        "first": f"{tiny} --steps 45",
        "again": f"{tiny} --steps 45",
        "other": f"{other} --run tiny",
        "half": f"{half} --run tiny",
        "whole": tiny,
        "after": tiny,
    }
    report = project.run(
        "; ".join(
            f"{launch} {options} > {name}.txt 2>&1; echo {name} $?"
            for name, options in commands.items()
        )
    )
    codes = dict(line.split() for line in report["output"].splitlines())
    refused = dict.fromkeys(("again", "other", "half", "after"), "2")
    assert codes == {"first": "0", "whole": "0"} | refused, report["output"]
    said = {name: (project.folder / f"{name}.txt").read_text() for name in commands}
    told = {name: said[name].count("error: ") for name in refused}
    assert told == dict.fromkeys(refused, 1)
    before, _, after = said["first"].partition("call    fc-")
    assert "expected  $" in before and "at most   $" in before
    assert "measured  " not in before and "so steps 46 to 60 take" in after
    before, _, after = said["whole"].partition("call    fc-")
    assert "so steps 46 to 60 take" in before and "spent, the whole run" in before
    assert "--steps is 45: allowed is a number from 46 to 60" in said["again"]
    assert "training.batch_size was 4 and is now 8" in said["other"]
    assert "T4 computes in float16 and H100 in bfloat16" in said["half"]
    assert "tiny is finished" in said["after"]
    for name in ("other", "half", "after"):
        assert "--run NAME" in said[name]
    assert len(report["calls"]) == 2 and project.metrics() == plain[0].metrics()
    attempt, last = project.attempts()
    assert attempt["to"] == last["from"] == ["step_00000045.pt"]


def test_first_steps_survive_a_closed_laptop_and_lost_machines(project, plain):
    """Detached; the client is killed, and the machine is taken away twice. Then the rest."""
    project.append(TRAINING, LOST)
    launch = f"modal run --detach modal_app.py --config {project.config()}"
    kill = "kill -KILL $job; wait $job; echo client $?; cat client.log"
    status = "modal run modal_app.py::status --run tiny"
    ended = until(status, "running.: false")
    first = f"{in_background(launch + ' --steps 35')}; {kill}; {ended}"
    report = project.run(f"{first}; {launch}", *lost_twice(plain))
    said = report["output"]
    assert "client 137" in said and '"checkpoint": 35' in said, said
    assert attempts(report, 0) == ["PREEMPTED", "PREEMPTED", "SUCCESS"], said
    assert "'finished': False" in result(report, 0)["value"]
    assert report["exit_code"] == 0 and attempts(report, 1) == ["SUCCESS"], said
    assert project.attempts()[-1]["from"] == ["step_00000035.pt"]
    assert project.metrics() == plain[0].metrics()


def test_failed_attempts_are_counted_and_the_run_ends_like_one_without(project, plain):
    """An exception, a kill, and the time limit, one after the other."""
    project.append(TRAINING, TROUBLED)
    launch = f"modal run --detach modal_app.py --config {project.config()}"
    limit = 5 + 3 * duration(plain)
    report = project.run(launch, "--timeout-override", f"{limit}")
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
    assert result(report)["status"] == "SUCCESS" and project.metrics()[-1][0] == STEPS
    assert variant(report)["gpu"] == "H100:2" and attempts(report) == ["SUCCESS"]
    assert "'finished': True" in result(report)["value"]
    run = project.state / "volumes" / "slm-data" / "runs" / "tiny"
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    costs = [row["cost/usd"] for row in rows]
    assert costs == sorted(costs) and costs[-1] > 0
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
    project.look_every(3000)  # it is the first checkpoint that finds it spent
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


def test_time_limit_that_is_too_short_for_a_checkpoint_is_told(project, plain):
    project.append(TRAINING, NO_CHECKPOINT)
    short = project.config(modal={"timeout": max(5, round(duration(plain) / 2))})
    report = project.run(f"modal run modal_app.py --config {short}")
    assert attempts(report) == ["TIMEOUT", "TIMEOUT", "TIMEOUT", "SUCCESS"], report[
        "output"
    ]
    assert report["exit_code"] == 1 and "modal.timeout" in result(report)["value"]


def test_run_that_comes_to_no_checkpoint_stops_at_its_budget(project):
    project.append(TRAINING, NO_CHECKPOINT)
    project.look_every(1)
    text = f'"$(cat {project.config()})"'
    report = project.run(
        f"modal run modal_app.py::train --config-text {text} --run-dir /data/runs/tiny --budget 3e-4"
    )
    assert (
        attempts(report) == ["SUCCESS"]
        and "a larger budget goes on from here" in report["output"]
    ), report["output"]
    # two seconds; how long a busy machine takes to end it is its own affair, but it was not the time limit
    assert 3e-4 <= project.attempts()[0]["dollars"] < 0.05


def test_interrupt_stops_only_the_watching_and_a_second_launch_is_refused(project):
    """Ctrl-C; the same command again; what `status` says; and `stop`."""
    project.append(TRAINING, SLOW)
    launch = f"modal run modal_app.py --config {project.config()}"
    interrupt = "kill -INT $job; wait $job; echo first $?; cat client.log"
    stop = "modal run modal_app.py::stop --run tiny"
    status = "modal run modal_app.py::status --run tiny"
    # a question that was not answered may be asked again, as it says itself
    stopped = f"({stop} || {stop})"
    # a container hears of the cancelling with its next heartbeat, every 15 seconds
    ended = until(status, "running.: false")
    report = project.run(
        f"{in_background(launch)}; {interrupt}; {launch}; echo second $?; {status}; {stopped}; {ended}"
    )
    said = report["output"]
    assert "Only the watching has stopped" in said and "first 130" in said, said
    assert "::stop --run tiny" in said.partition("Only the watching")[2], said
    assert "tiny is being trained already" in said and "second 2" in said, said
    assert (
        "tiny is stopped" in said
        and '"running": true' in said
        and '"running": false' in said
    ), said
    assert len(report["calls"]) == 1 and result(report)["status"] != "SUCCESS"


# nothing lies on the volume until the app is stopped, as when a launch waits for its GPU
WAITS = """
_meter = Meter.__init__

def waiting(self, *values, **options):
    time.sleep(600)
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
    called = "grep -qs '^call ' first.txt || ! kill -0 $!"
    second = f"cd ../elsewhere; {launch}; echo second $?; {status}; {stop}"
    report = project.run(
        f"{ELSEWHERE}; {first} & until {called}; do sleep 0.1; done; {second}; wait; cat ../project/first.txt"
    )
    said = report["output"]
    assert "tiny is being trained already" in said and "second 2" in said, said
    assert '"running": true' in said and "tiny is stopped" in said, said
    assert "first 2" in said and "tiny was stopped, or ended without" in said, said
    assert len(report["calls"]) == 1 and result(report)["status"] != "SUCCESS"


# a run does not begin, and so not end, before one of two launches has ended
HELD = """
_train = train

def train(*values, **options):
    limit = time.monotonic() + 600
    while not Path("/data/one-ended").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    return _train(*values, **options)
"""


def test_of_two_launches_at_the_same_moment_one_at_most_rents(project):
    project.append(TRAINING, HELD)
    launch = f"modal run modal_app.py --config {project.config()}"
    volume = project.state / "volumes" / "slm-data"
    ended = f"echo one ended with $?; mkdir -p {volume}; touch {volume}/one-ended"
    here = f"({launch}; {ended}) > here.txt 2>&1"
    there = f"(cd ../elsewhere; {launch}; {ended}) > there.txt 2>&1"
    said_by_both = "cat here.txt there.txt"  # one behind the other
    report = project.run(f"{ELSEWHERE}; {here} & {there}; wait; {said_by_both}")
    said = report["output"]
    assert len(report["calls"]) <= 1, said
    assert "tiny is being trained already" in said
    assert said.count("one ended with 2") == 2 - len(report["calls"]), said
    assert said.count("one ended with 0") == len(report["calls"]), said


def test_what_no_attempt_can_mend_is_paid_for_once(project):
    """A config that is none, and a folder that is no run's."""
    config = project.config()
    wrong = [("model: {}", "tiny"), (f"$(cat {config})", ".")]
    train = "modal run modal_app.py::train --config-text"
    calls = [f'{train} "{text}" --run-dir /data/runs/{run}' for text, run in wrong]
    report = project.run("; ".join(calls))
    for call, told in enumerate(["data is missing", "is not /data/runs/runs"]):
        assert attempts(report, call) == ["SUCCESS"]
        assert told in result(report, call)["value"]


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
