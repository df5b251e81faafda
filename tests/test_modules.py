"""The house: modules in the order of their imports, what loads without PyTorch, and which chapter exports what."""

import ast
import re
import subprocess
import sys

import pytest

from course import ROOT
from course.export import Chapter, chapters
from course.modules import (
    MODULES,
    TORCH_FREE,
    in_import_order,
    named_as_strings,
    tree,
    wrong_arrows,
)
from course.provenance import Definition


@pytest.fixture(scope="module")
def package() -> dict[str, str]:
    """The modules of the list, in its order, each with its text."""
    return {path: (ROOT / path).read_text(encoding="utf-8") for path in MODULES}


def test_the_chapters_export_the_modules_in_this_order():
    ordered = in_import_order(chapters())
    exported = [module for path in ordered for module in Chapter.read(path).exports]
    assert exported == list(MODULES)


def test_the_package_holds_these_modules_and_no_other():
    present = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "slm").rglob("*.py")
        if path.read_text(encoding="utf-8")
    }
    assert present | {"modal_app.py"} == set(MODULES)


def test_every_import_points_to_an_earlier_module(package):
    assert wrong_arrows(package) == []


def test_only_the_door_and_the_models_are_named_as_strings(package):
    assert named_as_strings(package) == []


def loaded(statement: str, names: tuple[str, ...]) -> list[str]:
    """Which of these packages a fresh Python has loaded after a statement."""
    script = (
        f"import sys\n{statement}\nprint(*[n for n in {names} if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("path", TORCH_FREE)
def test_module_loads_without_torch(path):
    name = path.removesuffix(".py").replace("/", ".")
    besides = ("torch", "modal") if path == "slm/cloud/budget.py" else ("torch",)
    assert loaded(f"import {name}", besides) == []


@pytest.mark.parametrize("path", MODULES)
def test_docstring_shows_how_the_module_is_used(package, path):
    """A line of what it is for, then an indented example that is Python, or a command."""
    first, *rest = (ast.get_docstring(ast.parse(package[path])) or "").splitlines()
    assert first.endswith(".")
    usage = "\n".join(line[4:] for line in rest if line.startswith("    "))
    assert usage, "no indented usage line"
    if usage.split()[0] not in ("slm", "python", "modal", "torchrun", ".venv/bin/slm"):
        ast.parse(usage)


def code_of(source: str) -> str:
    """A module without its docstrings and comments."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | Definition) and ast.get_docstring(node):
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


@pytest.mark.parametrize(
    ("what", "home"),
    [
        (r"metrics\.jsonl", "slm/training/folder.py"),
        (r"launched\.json", "slm/training/folder.py"),
        (r"\bos\.replace\b", "slm/files.py"),
        (r"\bos\.fsync\b", "slm/files.py"),
        (r"\bWORLD_SIZE\b", "slm/hardware.py"),
        (r"(?<![\w.])-100\b", "slm/model/config.py"),
        (r"\b(import|from) requests\b", None),
        (r"\bwalk_tb\b", None),
    ],
)
def test_one_truth_has_one_home(package, what, home):
    homes = [path for path, text in package.items() if re.search(what, code_of(text))]
    assert homes == ([home] if home else [])


def test_readme_holds_the_tree():
    assert f"```text\n{tree()}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------- the checks themselves

SMALL = {
    "slm/errors.py": "import re\n",
    "slm/model/config.py": 'ARCHITECTURES = {"gpt2": "slm.model.gpt:GPT"}\n',
    "slm/model/gpt.py": "from slm.errors import SlmError\nfrom slm.model import config\n",
    "slm/cli.py": 'import slm.errors\n\nDOORS = {"GPT": "slm.model.gpt"}\n',
    "slm/__init__.py": "",
}


def changed(path: str, text: str) -> dict[str, str]:
    return SMALL | {path: SMALL[path] + text}


def test_a_package_in_order_passes():
    assert wrong_arrows(SMALL) == [] and named_as_strings(SMALL) == []


@pytest.mark.parametrize(
    ("text", "line", "other"),
    [
        ("from slm.model.gpt import GPT\n", 2, "slm/model/gpt.py"),
        ("import slm.model.gpt as gpt\n", 2, "slm/model/gpt.py"),
        ("from slm.model import gpt\n", 2, "slm/model/gpt.py"),
        ("def f():\n    from slm.model.gpt import GPT\n", 3, "slm/model/gpt.py"),
        ("if TYPE_CHECKING:\n    import slm.cli\n", 3, "slm/cli.py"),
        ("from slm.model.config import GPTConfig\n", 2, "slm/model/config.py"),
        ("import slm\n", 2, "slm/__init__.py"),
        ("from slm import GPT\n", 2, "slm/__init__.py"),
        ("from slm.model import GPT\n", 2, "slm/model/__init__.py"),
        ("from slm.old import GPT\n", 2, "slm/old/__init__.py"),
        ("from .gpt import GPT\n", 2, ".gpt"),
    ],
)
def test_an_import_of_a_later_module_is_named(text, line, other):
    path = "slm/model/config.py"
    assert wrong_arrows(changed(path, text)) == [
        f"{path}:{line}: imports {other}, which is not above it"
    ]


@pytest.mark.parametrize(
    "text", ['x = "slm.model.gpt"\n', 'f("slm.model.gpt:GPT")\n', 'g("slm.cli")\n']
)
@pytest.mark.parametrize("path", ["slm/errors.py", "slm/model/config.py"])
def test_a_module_named_in_a_string_is_found(path, text):
    (problem,) = named_as_strings(changed(path, text))
    assert problem.startswith(f"{path}:2: names slm.")


@pytest.mark.parametrize(
    "text",
    ['x = "slm"\n', '"""Made by slm.model.gpt as it stands."""\n', 'x = "slm.x"\n'],
)
def test_other_strings_are_left_alone(text):
    assert named_as_strings(changed("slm/errors.py", text)) == []


def test_code_is_told_from_what_is_said_about_it():
    said = '"""a.x"""\nclass A:\n    """a.x"""\n    def f(self):  # a.x\n        """a.x"""\n'
    assert "a.x" not in code_of(said + "if 1:\n    lambda: 2\n")
    assert "a.x" in code_of(said + "        return a.x\n")


def test_the_tree_lists_files_by_folder(tmp_path):
    for path in ("slm/model/gpt.py", "slm/errors.py", "modal_app.py", "course/run.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f'"""What {path} does.\n\nMore.\n"""\n')
    (tmp_path / "slm/data").mkdir()
    (tmp_path / "slm/data/__init__.py").write_text("")
    lines = tree(tmp_path).splitlines()
    assert lines[1:7] == [
        "slm/",
        "  errors.py          What slm/errors.py does",
        "  model/",
        "    gpt.py           What slm/model/gpt.py does",
        "modal_app.py         What modal_app.py does",
        "course/",
    ]
