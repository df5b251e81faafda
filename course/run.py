"""Execute the chapters, each in a fresh kernel, and hold them against the package.

The executed notebooks lie in `_build/chapters/`, from where the book is rendered. A chapter is executed again only if
its source, the package, the course's tools, a config or an installed version has changed.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import nbformat
import psutil
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

from course import BOOK, ROOT, pairs
from course.export import Chapter, ExportError, Module, chapters, export
from course.lab import METADATA
from course.provenance import defined_names, mismatches

BUILD = ROOT / "_build" / "chapters"
LOG = BUILD.parent / "kernel.log"
TIMES = "times.json"  # chapter -> seconds, beside the executed notebooks
PATIENCE = 600.0  # seconds without progress after which a cell is ended; one that works on gets all the time it needs
IDLE = (
    0.01  # processors that an idle kernel keeps busy at most: less than this is no work
)
MACHINERY = (
    "__main__.py",
    "alone.py",
    "book.py",
    "drawings.py",
    "elsewhere.py",
    "export.py",
    "formulas.py",
    "lab.py",
    "links.py",
    "modules.py",
    "pairs.py",
    "pdf.py",
    "provenance.py",
    "run.py",
    "sources.py",
    "welcome.py",
)  # no chapter's result depends on them


class RunError(Exception):
    """A chapter failed, or what it executed is not what the package holds."""


def run(numbers: Sequence[str] = (), write: bool = False) -> None:
    """Execute the chapters with these numbers (all, if none is given) into `_build/chapters`, as far as they changed.

    Args:
        numbers: Two-digit chapter numbers such as "04".
        write: Also write the executed notebooks to `chapters/`, where they are committed.

    Raises:
        RunError: A cell failed, or a definition differs from the package's.
    """
    selected = select(numbers)
    BUILD.parent.mkdir(exist_ok=True)
    with filelock.FileLock(
        BUILD.parent / "run.lock"
    ):  # a second process finds the chapters up to date when its turn comes
        _run(selected, write)


def _run(selected: Sequence[Path], write: bool) -> None:
    try:
        modules = export()
    except ExportError as error:
        raise RunError(str(error)) from None
    stale = [chapter for chapter in selected if not is_fresh(chapter)]
    if stale:
        set_aside_outdated_run()
    for chapter in selected:
        if chapter not in stale:
            print(f"{chapter.stem:<16} up to date", flush=True)
        else:
            print(f"{chapter.stem:<16} ", end="", flush=True)
            own = [
                module
                for module in modules
                if module.chapter == f"chapters/{chapter.name}"
            ]
            try:
                print(f"{_execute_into_build(chapter, own):6.1f} s", flush=True)
            except RunError:
                print("failed", flush=True)
                raise
        if write:
            publish(chapter)


def select(numbers: Sequence[str]) -> list[Path]:
    """The chapters with these numbers, in order; all chapters if none is given."""
    known = {path.name[:2]: path for path in chapters()}
    unknown = [number for number in numbers if number.zfill(2) not in known]
    if unknown:
        raise RunError(
            f"There is no chapter {', '.join(unknown)}; there are {', '.join(known)}."
        )
    return [
        path
        for number, path in known.items()
        if not numbers or number in {n.zfill(2) for n in numbers}
    ]


def fingerprint(chapter: Path) -> str:
    """A hash of all that a chapter's outputs depend on."""
    digest = hashlib.sha256(platform.python_version().encode())
    versions = {
        f"{found.name}=={found.version}" for found in importlib.metadata.distributions()
    }
    digest.update("\n".join(sorted(versions)).encode())
    for path in [chapter, *_inputs()]:
        digest.update(
            f"\n{path.relative_to(ROOT).as_posix()}\n".encode() + path.read_bytes()
        )
    return digest.hexdigest()


def is_fresh(chapter: Path) -> bool:
    """Whether the executed notebook is there, and nothing that it depends on has changed since."""
    notebook = _built(chapter)
    if not notebook.exists() or chapter.stem not in times():
        return False
    return bool(
        nbformat.read(notebook, as_version=4).metadata.get("fingerprint")
        == fingerprint(chapter)
    )


def times() -> dict[str, float]:
    """Seconds that each chapter took when it was last executed."""
    path = BUILD / TIMES
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def publish(chapter: Path) -> None:
    """Copy an executed notebook to `chapters/`, without what would differ from run to run.

    Raises:
        RunError: The notebook there was edited meanwhile, or an output holds a path of this machine.
    """
    if edited := pairs.difference(chapter):
        raise RunError(edited)
    notebook = nbformat.read(_built(chapter), as_version=4)
    notebook.metadata.pop("fingerprint", None)
    leave_pngs(notebook)
    for place in (str(ROOT), str(Path.home())):
        for number, cell in enumerate(notebook.cells, 1):
            if len(place) > 1 and place in json.dumps(cell.get("outputs", [])):
                found = f"chapters/{chapter.name}: the output of cell {number}"
                raise RunError(f"{found} holds a path of this machine: {place}")
    target = chapter.with_suffix(".ipynb")
    if pairs.write(target, notebook):
        print(f"{'':16} → chapters/{target.name}")


def leave_pngs(notebook: NotebookNode) -> None:
    """Take the SVGs out of a notebook's outputs, where a PNG is beside: JupyterLab shows an SVG only of a trusted notebook.

    GitHub would prefer it, and show it without its styles.
    """
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data.pop("image/svg+xml", None)


def execute(
    chapter: Path, proof: Iterable[str] = ()
) -> tuple[NotebookNode, dict[str, str]]:
    """Execute a chapter in a fresh kernel of this Python.

    Args:
        chapter: The chapter's percent source.
        proof: Names whose live definitions are asked for after the last cell.

    Returns:
        The executed notebook, and `course.provenance.definitions` of those names.

    Raises:
        RunError: A cell failed; says which, and the last line of its traceback.
    """
    notebook = pairs.read(chapter)
    header = dict(notebook.metadata)
    question = f"import json, course.provenance as _p; print(json.dumps(_p.definitions(globals(), {sorted(proof)!r})))"
    notebook.cells.append(nbformat.v4.new_code_cell(question))
    manager = AsyncKernelManager(
        kernel_spec_manager=_ThisPython(), kernel_name="python3"
    )
    client = _Client(
        notebook,
        km=manager,
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(chapter.parent)}},
    )
    LOG.parent.mkdir(parents=True, exist_ok=True)
    try:
        # a notebook shows what its cells print; the log is the kernel's own
        with LOG.open("w", encoding="utf-8") as log, _ended_when_idle(client) as idle:
            client.execute(env=_environment(), cleanup_kc=True, stderr=log)
    except CellExecutionError as error:
        raise RunError(
            f"{_failed_cell(chapter, notebook, client.at)}: {error.ename}: {error.evalue}"
        ) from None
    except DeadKernelError:
        why = f"the kernel died; its last words are in {LOG.relative_to(ROOT)}"
        if idle:
            why = f"made no progress for {PATIENCE / 60:g} minutes (no output, no CPU time), so it was ended"
        raise RunError(f"{_failed_cell(chapter, notebook, client.at)}: {why}") from None
    finally:
        if client.stopped:
            raise KeyboardInterrupt
    answer = notebook.cells.pop()
    notebook.metadata = nbformat.from_dict({**header, **METADATA})
    _make_reproducible(notebook)
    return notebook, json.loads(answer.outputs[0].text)


class _Client(NotebookClient):
    """Knows which cell it is at, and counts the messages that the kernel sends meanwhile, outputs among them."""

    messages = 0
    at = 0

    @property
    def stopped(self) -> bool:
        """Whether Ctrl-C was pressed: nbclient then ends the kernel, and fails in one of several ways."""
        return hasattr(self, "_async_cleanup_kernel_future")

    async def async_execute_cell(
        self, cell: NotebookNode, cell_index: int, *arguments: Any, **options: Any
    ) -> Any:
        self.at = cell_index
        return await super().async_execute_cell(cell, cell_index, *arguments, **options)

    def process_message(self, *arguments: Any) -> Any:
        self.messages += 1
        return super().process_message(*arguments)


@contextlib.contextmanager
def _ended_when_idle(client: _Client) -> Iterator[list[str]]:
    """While inside, kill the client's kernel when it makes no progress for `PATIENCE` seconds; the list then says so."""
    idle: list[str] = []
    ended = threading.Event()

    def watch() -> None:
        seen, since = (0.0, 0), time.monotonic()
        while not ended.wait(min(5.0, PATIENCE / 10)):
            seconds, messages = _cpu_seconds(client), client.messages
            if seconds > seen[0] + IDLE * PATIENCE or messages > seen[1]:
                seen, since = (seconds, messages), time.monotonic()
            elif time.monotonic() > since + PATIENCE:
                idle.append("idle")
                for process in _processes(client):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield idle
    finally:
        ended.set()
        watching.join()


def _processes(client: _Client) -> list[psutil.Process]:
    """The client's kernel and what it has started; none before it has begun and after it has ended."""
    pid = getattr(getattr(client.km, "provisioner", None), "pid", None)
    if pid is None:
        return []
    try:
        kernel = psutil.Process(pid)
        return [kernel, *kernel.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _cpu_seconds(client: _Client) -> float:
    """What the kernel and the processes that it has started have computed so far."""
    total = 0.0
    for process in _processes(client):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(
                process.cpu_times()[:4]
            )  # its own, and that of its ended children
    return total


def set_aside_outdated_run() -> None:
    """Rename `runs/stories_cpu` if other code or another config trained it than the present one; nothing is deleted."""
    folder = ROOT / "runs" / "stories_cpu"
    if not folder.exists() or _is_current(folder):
        return
    from slm.errors import SlmError
    from slm.training.run import only_process

    target = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        with only_process(folder):
            folder.rename(target)
    except SlmError as error:
        raise RunError(str(error)) from None
    print(
        f"runs/{folder.name} was trained by another version of the code or the config; it is now runs/{target.name}."
    )


def _is_current(folder: Path) -> bool:
    """Whether a run folder is one that the present code and config would write."""
    from slm.errors import SlmError
    from slm.training.config import load_config
    from slm.training.folder import code_fingerprint

    environment, config = folder / "environment.json", folder / "config.yaml"
    if not environment.exists() or not config.exists():
        return False
    if (
        json.loads(environment.read_text(encoding="utf-8")).get("code")
        != code_fingerprint()
    ):
        return False
    try:
        trained = load_config(config)
    except SlmError:  # written when the config had other keys
        return False
    present = load_config(ROOT / "configs" / "stories_cpu.yaml")
    return trained.as_dict() == present.as_dict()


def _execute_into_build(chapter: Path, modules: list[Module]) -> float:
    """Execute one chapter, prove it against the package, and keep the notebook; returns the seconds."""
    before = fingerprint(chapter)
    began = time.perf_counter()
    names = [name for module in modules for name in _names(module)]
    notebook, live = execute(chapter, names)
    seconds = time.perf_counter() - began
    problems = [
        f"chapters/{chapter.name}: {problem} ({module.path})"
        for module in modules
        for problem in mismatches(
            (ROOT / module.path).read_text(encoding="utf-8"), live, module.added
        )
    ]
    if problems:
        raise RunError(
            "\n".join(
                [
                    *problems,
                    "`python -m course export` writes the package anew from the chapters.",
                ]
            )
        )
    notebook.metadata["fingerprint"] = before
    BUILD.mkdir(parents=True, exist_ok=True)
    _write(_built(chapter), nbformat.writes(notebook))
    _write(
        BUILD / TIMES,
        json.dumps(
            {**times(), chapter.stem: round(seconds, 1)}, indent=2, sort_keys=True
        )
        + "\n",
    )
    return seconds


def _names(module: Module) -> list[str]:
    return [
        name
        for piece in module.body
        if piece.node
        for name in defined_names(piece.node)
    ]


def _built(chapter: Path) -> Path:
    return BUILD / f"{chapter.stem}.ipynb"


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def _inputs() -> list[Path]:
    """All files besides the chapter itself on which its outputs may depend."""
    found = [
        *ROOT.glob("slm/**/*.py"),
        *ROOT.glob("configs/**/*.yaml"),
        *ROOT.glob("modal_app.py"),
    ]
    found += [
        path for path in ROOT.glob("course/**/*.py") if path.name not in MACHINERY
    ]
    return sorted(found)


def _environment() -> dict[str, str]:
    """The kernel's environment: one thread, no network, no accounts, this repository's code."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MODAL_TOKEN_")
    }
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return environment | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "MODAL_CONFIG_PATH": os.devnull,
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        BOOK: "1",
    }


def _failed_cell(chapter: Path, notebook: NotebookNode, at: int) -> str:
    """Where a run stopped: the cell with this index among all cells of the notebook."""
    number = sum(cell.cell_type == "code" for cell in notebook.cells[: at + 1])
    cells = Chapter.read(chapter).cells
    line = f":{cells[number - 1].line}" if number <= len(cells) else ""
    return f"chapters/{chapter.name}{line}: cell {number}"


def _make_reproducible(notebook: NotebookNode) -> None:
    """Give each cell an id that depends on its source alone, so that a run changes only what it computes anew."""
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        identity = pairs.identity(cell.source)
        seen[identity] = seen.get(identity, 0) + 1
        cell.id = identity if seen[identity] == 1 else f"{identity}-{seen[identity]}"
        cell.metadata.pop("execution", None)


class _ThisPython(KernelSpecManager):
    """Knows one kernel: the running Python, whatever kernels the user or the system has registered."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [
            sys.executable,
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
            "--log-level=40",
        ]
        return KernelSpec(
            argv=argv, display_name="Python 3", language="python", resource_dir=""
        )
