"""The exporter names what it cannot write: unfinished functions, and cells that jupytext reads otherwise than they stand."""

import re
from random import Random

import pytest

from course.export import ExportError, export

UNFINISHED = [
    "def f(x):\n    raise NotImplementedError",
    'def f(x):\n    """Text."""\n    y = x\n    raise NotImplementedError("write me")',
    "def f(x):\n    for y in x:\n        raise NotImplementedError()",
    'def f(x):\n    for y in x:\n        raise NotImplementedError("your turn")',
    'def f(x):\n    with x:\n        raise NotImplementedError("your turn")',
    "async def f(x):\n    raise NotImplementedError",
    "class C:\n    @property\n    def f(self):\n        raise NotImplementedError",
]
FINISHED = [
    "def f(x):\n    match x:\n        case 1:\n            raise NotImplementedError('no 1')\n    return 1",
    "def f(x):\n    if x:\n        raise NotImplementedError('no negative x')\n    return 1",
    "def f(x):\n    try:\n        return x()\n    except NotImplementedError:\n        raise",
    "class A(Protocol):\n    def f(self):\n        raise NotImplementedError",
    "class A(Protocol[int]):\n    def f(self):\n        raise NotImplementedError",
    "class A(abc.ABC):\n    def f(self):\n        raise NotImplementedError",
    "class A(metaclass=abc.ABCMeta):\n    def f(self):\n        raise NotImplementedError",
    "class A:\n    @abc.abstractmethod\n    def f(self):\n        raise NotImplementedError",
    "class A:\n    def f(self):\n        raise NotImplementedError\n\nclass B(A):\n    f = print",
]


@pytest.mark.parametrize("code", UNFINISHED)
def test_an_unfinished_function_is_named(repository, code):
    repository.chapter("#| export\nA = 1", f"#| export\n{code}")
    line = repository.line("raise NotImplementedError")
    assert repository.error() == (
        f"chapters/01_softmax.py:{line}: cell 2: f is unfinished, it raises "
        "NotImplementedError; write it, or leave it out."
    )


def test_a_branch_that_says_nothing_is_told_what_would_do(repository):
    code = "def f(x):\n    if x:\n        raise NotImplementedError\n    return 1"
    repository.chapter("#| export\nA = 1", f"#| export\n{code}")
    assert repository.error().endswith(
        "f is unfinished, it raises NotImplementedError; write it, or say in the error "
        "what is not supported."
    )


@pytest.mark.parametrize("code", FINISHED)
def test_what_subclasses_write_is_not_unfinished(repository, code):
    imports = "import abc\nfrom typing import Protocol"
    repository.chapter(
        f"#| export\n{imports}\nUSED = abc, Protocol", f"#| export\n{code}"
    )
    assert "NotImplementedError" in repository.module()


def test_an_unfinished_method_that_is_added_is_named_where_it_stands(repository):
    method = "@add_to(A)\ndef f(self):\n    return 1\n\n\n@add_to(A)\ndef g(self):\n    raise NotImplementedError"
    repository.chapter(
        "#| export\nclass A:\n    x = 1", "#| export\nB = A", f"#| export\n{method}"
    )
    line = repository.line("raise NotImplementedError")
    assert f"py:{line}: cell 3: g is unfinished" in repository.error()


FRAGMENTS = (
    "why?|copy the weights|%matplotlib inline|%%time|!ls|?x|x = !ls|x = %pwd|cd there|+ more|# + more|-|region|"
    "endregion|In[3]:|<codecell>|%% of it|%|| a | b |#| no|%time x # escape|{}|\\|a\x0cb|a\u2028b|a\x85b"
)


def bare(text: str) -> str:
    """Without what the formatter may change."""
    return re.sub(r"[# ]", "", text).replace("'", '"')


def test_an_export_cell_arrives_or_is_named(repository):
    """Random comments and statements: each cell with its mark is in the module as it stands, or an error names it."""
    random = Random(0)
    pieces = [
        f"{sign}{f}" for f in FRAGMENTS.split("|") for sign in ("# ", "#", "  # ")
    ]
    pieces += [
        "",
        "def f{0}(x):\n    # why?\n    return x",
        "S{0} = 'a?'",
        "T{0} = 2  # !",
    ]
    pieces += [
        "U{0} = '''\n# why?\n# %% x\n# In[3]:\n'''",
        "V{0} = 'a\u2028b'",
        "W{0} = 'a\x0cb'",
    ]
    arrived = named = 0
    for _ in range(12):
        cells = [
            "\n".join(
                [
                    "#| export",
                    *random.choices(pieces, k=random.randint(0, 4)),
                    "LAST{0} = 1",
                ]
            ).replace("{0}", str(number))
            for number in range(12)
        ]
        repository.chapter("x = 1", *cells)
        text = (repository.root / "chapters" / "01_softmax.py").read_text()
        try:
            export(repository.root)
        except ExportError as error:
            lines = [int(part.split(":")[1]) for part in str(error).splitlines()]
            marks = [
                m.start() for m in re.finditer(r"^#\| export$", text, re.MULTILINE)
            ]
            starts = [text.count("\n", 0, mark) + 1 for mark in marks]
            bad = {sum(start - 1 <= line for start in starts) - 1 for line in lines}
            cells = [cell for k, cell in enumerate(cells) if k not in bad]
            named += len(bad)
            repository.chapter("x = 1", *cells)
        source = bare(repository.module())
        arrived += len(cells)
        for cell in cells:
            assert all(bare(line) in source for line in cell.splitlines()[1:]), cell
    assert arrived > 40 and named > 40


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("# why?\ndef double(x):\n    # copy the weights\n    return 2 * x", ""),
        ("# %matplotlib inline\nB = 1", ""),
        ("B = 1\n# # + 1", "jupytext reads this line as '# + 1'"),
        ("B = 'a\u2028b'", 'jupytext reads this line as "B = \'a"; write it in'),
        ("B = 1\n# a\x0cb", "jupytext reads this line as '# a'"),
        ("B = 1\n# In[3]:\nC = 1", "'# In[3]:' begins a cell; `# %%` and"),
        ("B = 1\n# %% of all\nC = 1", "'# %% of all' begins a cell; `# %%` and"),
        ("if 1:\n    B = 1\n    # %%\nC = 1", "'    # %%' begins a cell; `# %%` and"),
    ],
)
def test_what_jupytext_would_rewrite_is_exported_or_named(repository, cell, message):
    repository.chapter("#| export\nA = 1", f"#| export\n{cell}")
    if not message:
        assert cell in repository.module()
    else:
        at = (
            cell.split("\n").index("C = 1") - 1
            if "C = 1" in cell
            else len(cell.split("\n")) - 1
        )
        line = repository.line("A = 1") + 4 + at
        number = 3 if "C = 1" in cell else 2
        assert f"01_softmax.py:{line}: cell {number}: {message}" in repository.error()


@pytest.mark.parametrize(
    ("begin", "problem"),
    [
        ('# %% tags=["active-py"]\n#| export\nB = 1', "a raw cell can't be exported"),
        ("# %% [markdown]\n# #| export\n# B = 1", "a markdown cell can't be exported"),
        (
            '# %% tags=["active-ipynb"]\n# #| export\n# B = 1',
            "reads this line as 'B = 1'",
        ),
        ("# %%\n# | export\nB = 1", "'# | export' is not understood"),
        ("# %%\n\n#| export\nB = 1", "counts only as the first line"),
    ],
)
def test_a_cell_with_a_mark_that_cannot_be_exported_is_named(
    repository, begin, problem
):
    repository.chapter("#| export\nA = 1")
    with (repository.root / "chapters" / "01_softmax.py").open("a") as file:
        file.write(f"\n{begin}\n")
    error = repository.error()
    assert problem in error and re.match(r"chapters/01_softmax.py:\d+: cell 2: ", error)
