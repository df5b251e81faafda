"""`import slm`: its names, where they come from, and that none is loaded before it is used."""

import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import slm

ROOT = Path(__file__).resolve().parents[1]
NAMES = """
    GPT GPTConfig MultiHeadAttention causal_attention FeedForward TransformerBlock
    TextDataset TokenDataset create_dataloader get_tokenizer load_config
    Trainer load_run train generate stream
""".split()


def python(code):
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_names_of_the_package():
    assert sorted(slm.__all__) == sorted(NAMES)
    for name, address in slm._ADDRESSES.items():
        found = getattr(slm, name)
        assert found is getattr(importlib.import_module(address), name)
        assert found.__module__.startswith("slm.") and found.__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        slm.nonsense  # noqa: B018


def test_type_checkers_see_the_same_names():
    source = Path(slm.__file__).read_text()
    for name, address in slm._ADDRESSES.items():
        assert f"    from {address} import {name} as {name}\n" in source


def test_import_of_the_package_loads_nothing_heavy():
    heavy = "torch modal wandb datasets jupyter IPython matplotlib transformers".split()
    loaded = f"print([m for m in {heavy} if m in sys.modules])"
    assert python(f"import slm, sys; {loaded}") == "[]"
    assert python(f"from slm import GPTConfig; import sys; {loaded}") == "[]"
    loaded = loaded.replace("'torch', ", "")
    assert python(f"from slm import *; import sys; {loaded}") == "[]"


def test_version_stands_once_and_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = importlib.metadata.version(project["name"])
    assert slm.__version__ == project["version"] == installed


def test_nobody_is_told_to_install_a_stranger():
    """On the public index the name `slm` is another project's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] != "slm"
    texts = [ROOT / "modal_app.py", ROOT / "README.md", ROOT / "pyproject.toml"]
    for folder in ("slm", "course", "chapters", "benchmarks"):
        texts += sorted((ROOT / folder).rglob("*.py"))
    told = re.compile(r"(install [^\n]*|[\"'])slm(\[|[\"' ]*$)", re.MULTILINE)
    found = [
        f"{path.name}: {match[0]}"
        for path in texts
        for match in told.finditer(path.read_text(encoding="utf-8"))
        if "install" in match[0] or "[" in match[0]
    ]
    assert not found
