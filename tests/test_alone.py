"""The package and a chapter where there is nothing else: in an empty folder without the repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from course.elsewhere import (
    FIRST,
    SET_UP,
    address,
    first_cells,
    theme_options,
    write_first_cells,
)

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
SHORT = "training.max_steps=2 training.warmup_steps=1 training.sample_tokens=2 data.max_documents=100".split()


def build(source, target, kind):
    """A wheel or an sdist of the sources in a folder; pip would ask the network for what builds it."""
    code = f"import sys, hatchling.build as b; b.build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, target], check=True, cwd=source)
    return next(target.glob("slm_from_scratch-*"))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheel of the repository, and that of what the sdist holds."""
    folder = tmp_path_factory.mktemp("built")
    with tarfile.open(build(ROOT, folder / "sdist", "sdist")) as archive:
        archive.extractall(folder, filter="data")
    unpacked = next(folder.glob("slm_from_scratch-*"))
    first = build(ROOT, folder / "first", "wheel")
    return first, build(unpacked, folder / "second", "wheel")


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory):
    """Runs an installed command in an empty folder."""
    folder, wheel = tmp_path_factory.mktemp("alone"), wheels[1]
    python = folder / "environment" / "bin" / "python"
    make = [sys.executable, "-m", "venv", "--without-pip", python.parents[1]]
    subprocess.run(make, check=True)
    pip = [sys.executable, "-m", "pip", "--python", python, "--isolated", "install"]
    subprocess.run([*pip, "--quiet", "--no-index", "--no-deps", wheel], check=True)
    # the dependencies, without what an editable install of this repository adds to them
    [site] = (python.parents[1] / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    empty = folder / "empty"
    empty.mkdir()
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(command, *words):
        return subprocess.run(
            [python.with_name(command), *words],
            capture_output=True,
            text=True,
            cwd=empty,
            env=clean,
            timeout=600,
        )

    return run


def test_the_sdist_gives_the_same_wheel(wheels):
    assert wheels[0].read_bytes() == wheels[1].read_bytes()


def test_the_repository_is_not_beside_it(installed):
    found = installed("python", "-c", "import slm; print(slm.__file__)")
    assert "environment" in found.stdout, found
    assert (
        "No module named 'course'" in installed("python", "-c", "import course").stderr
    )


def test_configs_come_with_it(installed):
    listed = installed("slm", "configs").stdout.splitlines()
    assert [line.split()[0] for line in listed] == CONFIGS
    assert all(len(line.split()) > 5 and len(line) <= 88 for line in listed)
    priced = json.loads(installed("slm", "cost", "gpt_124m", "--json").stdout)
    assert "T4" in json.dumps(priced)


def test_it_trains_and_writes(installed):
    trained = installed("slm", "train", "stories_cpu", *SHORT)
    assert trained.returncode == 0, trained
    written = installed("slm", "generate", "runs/stories_cpu", "--max-tokens", "5")
    assert written.returncode == 0 and written.stdout.strip(), written


def test_a_path_of_the_repository_is_answered_with_the_name(installed):
    refused = installed("slm", "train", "configs/stories_cpu.yaml")
    assert refused.returncode == 2
    assert "did you mean stories_cpu?" in refused.stderr


def test_an_editable_install_has_no_second_copy(tmp_path):
    with zipfile.ZipFile(build(ROOT, tmp_path, "editable")) as wheel:
        assert not [name for name in wheel.namelist() if name.startswith("slm/")]


# ---------------------------------------------------------------- a chapter alone

OPENED = """
import jupytext, nbclient, sys
try:
    nbclient.NotebookClient(jupytext.read(sys.argv[1])).execute()
except nbclient.exceptions.CellExecutionError as error:
    print(error)
"""


def test_a_chapter_opened_alone_says_what_to_do(installed):
    said = installed("python", "-c", OPENED, ROOT / "chapters/02_blocks.py").stdout
    assert said.count("Get the whole repository, then `make lab`") == 2, said
    assert said.strip().endswith(": No module named 'course'")


def test_its_set_up_cell_gets_the_repository(installed, tmp_path):
    """From a folder of this machine instead of an address, with packages that are there instead of downloaded ones."""
    there = tmp_path / "there"
    for name in ("slm", "course", "configs"):
        shutil.copytree(ROOT / name, there / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, there)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], cwd=there, check=True)
    cell = f"{SET_UP}get_course('file://{there}')\n"
    pip = "import os; os.environ.update(PIP_NO_INDEX='1', PIP_NO_BUILD_ISOLATION='0')"
    done = installed("python", "-c", f"{pip}\n{cell}import course; print(course.ROOT)")
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[0].endswith("a few minutes, once.")
    assert done.stdout.splitlines()[-1].endswith("/slm-from-scratch")


def test_the_first_cells_follow_the_address(tmp_path):
    chapter = tmp_path / "01_one.py"
    text = f"# ---\n# ---\n\n# %% [markdown]\n# # One\n\n{FIRST}\n# %%\n1\n"
    chapter.write_text(text)
    for where in ("https://github.com/a/b", "https://example.org/c"):
        assert write_first_cells(chapter, where)
        assert not write_first_cells(chapter, where)
        written = chapter.read_text()
        assert written == text.replace(FIRST, first_cells(where))
        assert written.count(f'get_course("{where}")') == 1
        compile(written, "01_one.py", "exec")
        assert max(map(len, first_cells(where).splitlines())) <= 88
    assert write_first_cells(chapter, None) and chapter.read_text() == text


def test_pages_link_to_where_the_repository_is(tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text("[project]\nname = 'x'\n")
    assert address(tmp_path) is None and theme_options(None) == {}
    project.write_text("[project.urls]\nRepository = 'https://github.com/a/b/'\n")
    assert address(tmp_path) == "https://github.com/a/b"
    assert theme_options("https://github.com/a/b")["launch_buttons"]
    assert not theme_options("https://example.org/a/b")["launch_buttons"]
