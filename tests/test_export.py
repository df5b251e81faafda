"""The exporter: what it writes, what it refuses, and that it writes nothing when it refuses."""

import ast
import subprocess
import sys

import pytest

from course import ROOT, add_to
from course.export import differences, export, orphans, write


def test_module_reads_as_if_written_by_hand(repository):
    repository.chapter(
        "import course\ncourse.start()",
        "#| export\nimport torch\nfrom torch import nn  # noqa: F401",
        "#| export\n# why one\nONE = 1",
        "naive = 2",
        "#| export\nimport torch\nimport math\n\ndef softmax(z: torch.Tensor):"
        "\n    # safe\n    return math.exp( ONE )*z",
    )
    assert repository.module() == (
        '"""What it is for.\n\n'
        'Exported from chapters/01_softmax.py; edit it there.\n"""\n\n'
        "import math\n\nimport torch\nfrom torch import nn  # noqa: F401\n\n"
        "# why one\nONE = 1\n\n\n"
        "def softmax(z: torch.Tensor):\n    # safe\n    return math.exp(ONE) * z\n"
    )


def test_a_module_opens_with_its_own_docstring(repository):
    own = '"""Safe for logits of any size.\n\n    softmax(z)\n"""'
    repository.chapter(f"#| export\n{own}\n\nX = 1", docstrings=False)
    assert repository.module() == (
        f'{own[:-4]}\n\nExported from chapters/01_softmax.py; edit it there.\n"""\n\nX = 1\n'
    )


@pytest.mark.parametrize(
    "cell", ["X = 1", "import re\n\nX = re", 'X = 1\n"""One."""', "# only a comment"]
)
def test_a_module_without_a_docstring_is_refused(repository, cell):
    repository.chapter("Y = 1", f"#| export\n{cell}", docstrings=False)
    line = repository.line("#| export")
    assert (
        repository.error()
        == f"chapters/01_softmax.py:{line}: cell 2: slm/softmax.py opens without a docstring that says what it is for."
    )


def test_statements_of_a_cell_keep_their_spacing(repository):
    together = (
        "A = 1\nB = 2  # nats\n\n# a group of their own\nC = 3\n"
        '"""What C is."""\n# and\nD = 4'
    )
    repository.chapter(
        f"#| export\n{together}\n# the end",
        "#| export\nimport re\nE = re\nF = 6",
        "#| export\ndef f(): ...\nG = 7\nH = 8",
        '#| export\nI = 9\n"""What I is."""',
    )
    body = repository.module().partition("import re\n\n")[2]
    assert body == (
        f"{together}\n# the end\n\nE = re\nF = 6\n\n\ndef f(): ...\n\n\n"
        'G = 7\nH = 8\n\nI = 9\n"""What I is."""\n'
    )


def test_a_section_leaves_its_title_above_its_first_statement(repository):
    repository.chapter(
        "#| export\nimport re",
        "#| export b\nZERO = 0",
        "## The *idea*\n\nProse.",
        "#| export\nimport os\n\n# why one\nONE = os, re",
        "#| export\nTWO = 2",
        "## Nothing is exported here",
        "## Once [more](#more) with `T`\n\n### And deeper\n\n```\n## no title\n```",
        "#| export\nTHREE = 3",
        "#| export b\nFOUR = 4",
        "### And deeper",
        "#| export\nclass A:\n    x = 1",
        "## Methods",
        "#| export\n@add_to(A)\ndef f(self): ...",
        "## The end of it",
        "#| export\ndef last(): ...",
        exports="slm/a.py, slm/b.py",
    )
    assert repository.module("slm/a.py").partition("import re\n\n")[2] == (
        "# The idea\n\n# why one\nONE = os, re\n\nTWO = 2\n\n"
        "# And deeper\n\nTHREE = 3\n\n\n"
        "class A:\n    x = 1\n\n    def f(self): ...\n\n\n"
        "# The end of it\n\n\ndef last(): ...\n"
    )
    assert repository.module("slm/b.py").endswith(
        '"""\n\nZERO = 0\n\n# And deeper\n\nFOUR = 4\n'
    )


def test_a_module_may_lie_in_folders(repository):
    """Each folder is a package of its own, with an empty `__init__.py` unless a chapter exports one."""
    repository.chapter(
        "#| export\nA = 1",
        "#| export model/deep/two\nfrom slm.model.gpt import A\n\nB = A",
        "#| export data/__init__\nC = 3",
        exports="slm/model/gpt.py, slm/model/deep/two.py, slm/data/__init__.py",
    )
    modules = export(repository.root)
    assert write(modules, repository.root) == [
        "slm/model/gpt.py",
        "slm/model/deep/two.py",
        "slm/data/__init__.py",
        "slm/model/__init__.py",
        "slm/model/deep/__init__.py",
    ]
    assert (repository.root / "slm/model/__init__.py").read_text() == ""
    assert "C = 3" in (repository.root / "slm/data/__init__.py").read_text()
    assert differences(modules, repository.root) == ""
    (repository.root / "slm/model/old.py").write_text("")
    assert orphans(modules, repository.root) == ["slm/model/old.py"]


def test_cells_go_to_the_module_that_they_name(repository):
    repository.chapter(
        "#| export b\nB = 1",
        "#| export\nA = 1",
        "#| export a\nC = 2",
        exports="slm/a.py, slm/b.py",
    )
    assert "A = 1\n\nC = 2" in repository.module(
        "slm/a.py"
    ) and "B = 1" not in repository.module("slm/a.py")
    assert "B = 1" in repository.module("slm/b.py")


def test_init_keeps_its_imports(repository):
    repository.chapter(
        '#| export __init__\nfrom slm.softmax import A\n\n__all__ = ["A"]',
        "#| export\nA = 1",
        exports="slm/softmax.py, slm/__init__.py",
    )
    assert "from slm.softmax import A" in repository.module("slm/__init__.py")


ADDED = """\
#| export
# what a batch costs
@add_to(Trainer)
def step(self) -> str:
    \"\"\"Do one step.

    Twice indented in the class.
    \"\"\"
    text = \"\"\"kept
as it is\"\"\"
    return text + f\"\"\"{1}
end\"\"\"  # said at the end
"""


def test_added_methods_stand_in_the_class(repository):
    repository.chapter(
        "#| export\nfrom course import add_to",
        '#| export\nclass Trainer:\n    """Trains."""\n\n    rate = 1',
        "#| export\nAFTER = 1",
        ADDED,
        "#| export\n@add_to(Trainer)\n@property\ndef done(self) -> bool:\n    return bool(AFTER)",
    )
    source = repository.module()
    assert "add_to" not in source and "course" not in source
    trainer, after = ast.parse(source).body[1:]
    assert isinstance(trainer, ast.ClassDef) and isinstance(after, ast.Assign)
    assert [
        node.name for node in trainer.body if isinstance(node, ast.FunctionDef)
    ] == ["step", "done"]
    assert (
        "    # what a batch costs\n    def step" in source
        and "# said at the end" in source
    )
    namespace: dict = {}
    exec(source, namespace)
    assert namespace["Trainer"]().step() == "kept\nas it is1\nend"
    assert namespace["Trainer"]().done is True
    assert namespace["Trainer"].step.__doc__.startswith("Do one step.")


def test_add_to_does_the_same_in_a_notebook():
    class Trainer:
        pass

    @add_to(Trainer)
    def step(self) -> int:
        return 7

    @add_to(Trainer)
    @property
    def rate(self) -> int:
        return 8

    assert Trainer().step() == 7 and Trainer().rate == 8


@pytest.mark.parametrize(
    ("cells", "where", "message"),
    [
        (
            ["#| export\nA = 1", "#| export\ndef f(:\n    pass"],
            "def f(:",
            "cell 2: does not parse",
        ),
        (
            ["#| export\nA = 1", "#| export\n\ndef A():\n    pass"],
            "def A()",
            "cell 2: 'A' is exported to slm/softmax.py a",
        ),
        (
            ["helper = 1", "#| export\ndef f():\n    return helper"],
            "return helper",
            "cell 2: undefined name 'helper'",
        ),
        (
            ["import torch", "#| export\nX = 1\nY = torch.ones(1)"],
            "Y = torch",
            "cell 2: undefined name 'torch'",
        ),
        (
            ["#| export\nA = 1", "#| export other\nB = 1"],
            "#| export other",
            "cell 2: exported to 'other'; the front matter",
        ),
        (
            ["#| export\nimport re as A", "#| export\nA = 1"],
            "A = 1",
            "cell 2: 'A' is exported to slm/softmax.py a",
        ),
        (
            [
                "#| export\nfrom math import pi  # noqa: F401",
                "#| export\nfrom cmath import pi  # noqa: F401",
            ],
            "from cmath",
            "cell 2: 'pi' would be cmath.pi and also math.pi",
        ),
        (
            ["#| export\nA = 1", "#| exports\nB = 1"],
            "#| exports",
            "cell 2: '#| exports' is not understood",
        ),
        (
            ["#| export\nA = 1", "B = 1\n#| export"],
            "#| export",
            "counts only as the first line",
        ),
        (
            ["#| export\nA = 1", "#| export\nB = 1\nC = await A"],
            "await A",
            "cell 2: does not compile: 'await' outside function",
        ),
        (
            ["#| export\nA = 1", "#| export\nreturn A"],
            "return A",
            "cell 2: does not compile: 'return' outside function",
        ),
        (
            ["#| export\nA = 1", "#| export\nimport readline\nB = 1"],
            "import readline",
            "cell 2: 'readline' is imported, but not used in slm/softmax.py",
        ),
        (
            ["#| export\ndef f():\n    from math import e\n    return 1"],
            "from math",
            "cell 1: 'math.e' is imported, but not used in slm/softmax.py",
        ),
        (
            ["#| export\nA = 1", "#| export\nB = A\nB"],
            "B = A",
            "cell 2: an export cell ends with a value",
        ),
        (
            ["#| export\nA = 1", "#| export\n@add_to(B)\ndef f(self):\n    pass"],
            "@add_to(B)",
            "cell 2: @add_to(B): no class 'B' is exported",
        ),
        (
            [
                "#| export\nclass B:\n    def f(self):\n        pass",
                "#| export\n@add_to(B)\ndef f(self): ...",
            ],
            "def f(self): ...",
            "cell 2: 'f' is exported to class B a second time",
        ),
    ],
)
def test_an_error_names_chapter_line_and_cell(repository, cells, where, message):
    repository.chapter(*cells)
    error = repository.error()
    assert message in error
    lines = [int(part.split(":")[1]) for part in error.splitlines()]
    offset = 1 if where == "B = A" else 0  # the value stands on the line below
    expected = repository.line(where) + offset
    if where == "#| export":
        expected = repository.line("B = 1") + 1
    assert lines == [expected]
    assert error.startswith(f"chapters/01_softmax.py:{expected}: ")


def test_a_marked_import_is_kept(repository):
    marked = "import readline  # noqa: F401\nfrom math import pi as pi  # noqa: F401"
    repository.chapter(f"#| export\n{marked}\n\nA = 1")
    assert "import readline  # noqa: F401\n" in repository.module()
    assert "from math import pi as pi  # noqa: F401\n" in repository.module()


@pytest.mark.parametrize(
    ("exports", "message"),
    [
        ("slm/a.py, modal_app.py, slm/sub-a.py", "exports 'slm/sub-a.py'"),
        ("slm/a.py, slm/a.py", "lists 'a' twice"),
        ("slm/a.py, slm/b.py", "lists slm/b.py, but no cell is exported to it"),
        ("", "lists no module under slm.exports"),
    ],
)
def test_front_matter_is_checked(repository, exports, message):
    repository.chapter("#| export\nA = 1", exports=exports)
    assert message in repository.error()


def test_two_chapters_cannot_export_one_module(repository):
    repository.chapter("#| export\nA = 1")
    repository.chapter("#| export\nB = 1", name="02_again")
    assert (
        repository.error()
        == "chapters/02_again.py:1: slm/softmax.py is already exported by chapters/01_softmax.py."
    )


def test_package_may_not_depend_on_the_course(repository):
    repository.chapter("#| export\nfrom course import plots\n\nstyle = plots.style")
    assert "may not depend on it" in repository.error()


def test_all_errors_are_reported_at_once(repository):
    repository.chapter("#| export\nA = missing", "#| export x\nB = 1")
    repository.chapter("#| export\ndef f(:", exports="slm/other.py", name="02_other")
    assert len(repository.error().splitlines()) == 3


def test_check_shows_a_diff_and_orphans(repository):
    repository.chapter("#| export\nA = 1")
    modules = export(repository.root)
    assert write(modules, repository.root) == ["slm/softmax.py"]
    assert differences(modules, repository.root) == ""
    assert write(modules, repository.root) == []
    path = repository.root / "slm" / "softmax.py"
    path.write_text(path.read_text().replace("A = 1", "A = 2"))
    (repository.root / "slm" / "old.py").write_text("")
    difference = differences(modules, repository.root)
    assert "-A = 2\n+A = 1\n" in difference
    assert "slm/old.py: no chapter exports it" in difference
    assert orphans(modules, repository.root) == ["slm/old.py"]


def test_command_writes_nothing_on_error(repository, tmp_path):
    """One bad chapter, and not even the good ones are written; the exit code says so."""
    for folder in ("course", "chapters"):
        (tmp_path / folder).mkdir()
    for path in (ROOT / "course").glob("*.py"):
        (tmp_path / "course" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    repository.chapter("#| export\nA = 1")
    repository.chapter(
        "#| export\nB = missing", exports="slm/other.py", name="02_other"
    )

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "course", "export", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    refused = command()
    assert (
        refused.returncode == 1
        and "Nothing was written" in refused.stderr
        and "Traceback" not in refused.stderr
    )
    assert not (tmp_path / "slm").exists()
    repository.chapter("#| export\nB = 1", exports="slm/other.py", name="02_other")
    assert command("--check").returncode == 1
    assert not (tmp_path / "slm").exists()
    assert command().returncode == 0
    assert command("--check").returncode == 0
    assert sorted(path.name for path in (tmp_path / "slm").iterdir()) == [
        "other.py",
        "softmax.py",
    ]
