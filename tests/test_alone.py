"""The package where there is nothing else: built, installed, and used in an empty folder without the repository."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

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
            timeout=120,
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
