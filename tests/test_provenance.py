"""The package is the chapters, both ways: exported from their text, and equal to what their notebooks execute."""

import functools
import json
from pathlib import Path

import pytest

from course import ROOT
from course.export import chapters, export, write
from course.provenance import definitions, mismatches
from course.run import BUILD, fingerprint, run

CHAPTERS = chapters()
exported = functools.cache(export)


def test_export_into_an_empty_folder_gives_the_package_byte_for_byte(tmp_path):
    write(exported(), tmp_path)
    fresh = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*.py")
    }
    package = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in (ROOT / "slm").rglob("*.py")
    }
    package["modal_app.py"] = (ROOT / "modal_app.py").read_bytes()
    assert fresh.keys() == package.keys()
    old = [path for path in fresh if fresh[path] != package[path]]
    assert old == [], "`python -m course export` writes them anew"


@pytest.fixture(scope="module")
def exported_once():
    """`run` exports all chapters before it executes one; their texts stay as they are meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("course.run.export", exported)
        yield


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_what_a_chapter_executes_is_what_the_package_holds(chapter):
    """`run` compares the live definitions with the package after the last cell, and raises if one differs."""
    run([chapter.stem[:2]])
    notebook = json.loads((BUILD / f"{chapter.stem}.ipynb").read_text(encoding="utf-8"))
    assert notebook["metadata"]["fingerprint"] == fingerprint(chapter)


PACKAGE = '''
LIMIT = 3


def double(x: int) -> int:
    # twice
    return 2 * x


class Adder:
    """Adds."""

    def add(self, x: int) -> int:
        return x + LIMIT

    def late(self) -> str:
        """Added.

        Later.
        """
        return "a"
'''

CELLS = [
    "LIMIT = 3",
    "def double(x: int) -> int:\n    # twice\n    return 2 * x",
    'class Adder:\n    """Adds."""\n\n    def add(self, x: int) -> int:\n        return x + LIMIT',
    '@add_to(Adder)\ndef late(self) -> str:\n    """Added.\n\n    Later.\n    """\n    return "a"',
]


def compare(folder: Path, *cells: str) -> list[str]:
    """Execute cells as a notebook would, each from a file of its own, and compare with PACKAGE."""
    namespace: dict = {"In": list(cells)}
    exec("from course import add_to", namespace)
    for number, cell in enumerate(cells):
        path = folder / f"cell_{number}.py"
        path.write_text(cell + "\n")
        exec(compile(cell + "\n", str(path), "exec"), namespace)
    live = definitions(namespace, ["LIMIT", "double", "Adder"])
    return mismatches(PACKAGE, live, {"Adder": ["late"]})


def test_equal_sources_agree(tmp_path):
    assert compare(tmp_path, *CELLS) == []


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("LIMIT = 4", "LIMIT differs from the package's"),
        (
            "def double(x: int) -> int:\n    # twice\n    return x * 2",
            "double differs from the package's",
        ),
        (
            "def double(x: int) -> int:\n    # two times\n    return 2 * x",
            "double differs from the package's",
        ),
        (
            "def late(self):\n    return 'b'\n\n\nAdder.late = late",
            "Adder.late differs from the package's",
        ),
        (
            "def add(self, x: int) -> int:\n    return x\n\n\nAdder.add = add",
            "Adder.add differs from the package's",
        ),
        (
            "del Adder.late",
            "Adder.late is in the package, but the notebook does not define it",
        ),
        ("del double", "double is in the package, but the notebook does not define it"),
        ("class Adder:\n    pass", "class Adder differs from the package's"),
    ],
)
def test_a_difference_is_named(tmp_path, cell, problem):
    assert problem in compare(tmp_path, *CELLS, cell)
