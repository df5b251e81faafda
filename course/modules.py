"""The package's modules in the order of their imports.

An import only ever points to an earlier module of the list. `tests/test_modules.py` holds the package and the chapters
to it, `python -m course tree` prints it.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from course import ROOT

MODULES = (
    "slm/errors.py",
    "slm/files.py",
    "slm/model/pretrained.py",
    "slm/model/attention.py",
    "slm/model/blocks.py",
    "slm/model/config.py",
    "slm/model/gpt.py",
    "slm/data/grammar.py",
    "slm/data/stories.py",
    "slm/data/tokenizer.py",
    "slm/data/batches.py",
    "slm/data/readers.py",
    "slm/data/hub.py",
    "slm/data/corpus.py",
    "slm/data/prepare.py",
    "slm/data/dataset.py",
    "slm/data/floor.py",
    "slm/gpus.py",
    "slm/training/config.py",
    "slm/training/metrics.py",
    "slm/hardware.py",
    "slm/training/optim.py",
    "slm/training/trainer.py",
    "slm/training/folder.py",
    "slm/training/checkpoint.py",
    "slm/training/run.py",
    "slm/generation.py",
    "slm/cloud/cost.py",
    "slm/cloud/plan.py",
    "slm/cli.py",
    "slm/__main__.py",
    "slm/__init__.py",
    "slm/cloud/budget.py",
    "slm/cloud/price.py",
    "slm/cloud/launch.py",
    "modal_app.py",
)
"""Each module, with what it may import above it."""

TORCH_FREE = (
    "slm/errors.py",
    "slm/files.py",
    "slm/model/config.py",
    "slm/data/readers.py",
    "slm/data/hub.py",
    "slm/data/corpus.py",
    "slm/gpus.py",
    "slm/training/config.py",
    "slm/training/folder.py",
    "slm/cloud/cost.py",
    "slm/cloud/plan.py",
    "slm/cloud/budget.py",
    "slm/cloud/price.py",
    "slm/cloud/launch.py",
)
"""Modules that load without PyTorch, together with all that they import."""

NAMES_OTHERS = ("slm/__init__.py", "slm/cli.py")
"""The door: it names modules as strings, and imports each when it is asked for."""

REGISTRY = ("slm/model/config.py", "ARCHITECTURES")
"""The one other place that names modules as strings: the models by their names."""

FOLDERS = {
    "  check/": "what tells a learner the mistake in an exercise, one file a chapter",
    "  figures/": "figures too long for a cell, one file a chapter",
    "  search/": "the book's search: its index, what a reader types into, and what ranks",
    "configs/": "runs to start from: the course's own on a CPU, three sizes of GPT-2",
    "tests/": "the same folders as slm/, one file a module; check/ for the exercises",
    "benchmarks/": "one script for each promise about speed or memory, and what it printed",
}
"""Folders of which the tree tells only what they are for."""

NAME = re.compile(r"slm(?:\.\w+)+(?=:|\Z)")


def in_import_order(chapters: Iterable[Path]) -> list[Path]:
    """Chapters in the order of what they export: an appendix (9x) comes first, though it stands last in the book."""
    return sorted(chapters, key=lambda path: (path.name[0] != "9", path.name))


def dotted(path: str) -> str:
    """How Python names a module: slm/data/tokenizer.py is slm.data.tokenizer, slm/__init__.py is slm."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(source: str, modules: Iterable[str] = MODULES) -> list[tuple[int, str]]:
    """Lines and modules of the package that a source imports, also inside functions and for type checkers only.

    Of `from slm.data import stories` it is slm/data/stories.py; a name that is no module stands for the package itself,
    slm/data/__init__.py. A relative import is told as it stands, since the list has no such module.
    """
    known = {dotted(path): path for path in modules}
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = ["." * node.level + (node.module or "")]
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in members]
        line = getattr(node, "lineno", 0)
        for name in dict.fromkeys(names):
            if name in known:
                found.append((line, known[name]))
            elif name.split(".")[0] == "slm":
                found.append((line, f"{name.replace('.', '/')}/__init__.py"))
            elif name.startswith("."):
                found.append((line, name))
    return sorted(found)


def wrong_arrows(sources: Mapping[str, str]) -> list[str]:
    """Imports that do not point to an earlier module; `sources` are modules in order, each with its text."""
    rows = {path: row for row, path in enumerate(sources)}
    return [
        f"{path}:{line}: imports {other}, which is not above it"
        for path, source in sources.items()
        for line, other in imports(source, rows)
        if rows.get(other, len(rows)) >= rows[path]
    ]


def named_as_strings(
    sources: Mapping[str, str],
    door: Iterable[str] = NAMES_OTHERS,
    registry: tuple[str, str] = REGISTRY,
) -> list[str]:
    """Modules of the package that are named in a string or imported by one, outside the door and the registry."""
    known = {dotted(path) for path in sources} - {"slm"}
    problems = []
    for path, source in sources.items():
        if path in door:
            continue
        for node in _nodes(source, registry[1] if path == registry[0] else ""):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                name = NAME.match(node.value)
                if name and name[0] in known:
                    problems.append(
                        f"{path}:{node.lineno}: names {name[0]} in a string"
                    )
    return problems


def _nodes(source: str, spared: str) -> Iterator[ast.AST]:
    """All nodes of a module, but those of the assignment to `spared`."""
    for statement in ast.parse(source).body:
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        if not spared or [getattr(x, "id", "") for x in targets] != [spared]:
            yield from ast.walk(statement)


def tree(root: Path = ROOT) -> str:
    """What lies where, a line a file: for Python the first line of its docstring."""
    lines = [
        "chapters/            the course: each NN_name.py and its notebook, in order"
    ]
    lines += _folder(root, "slm", [root / path for path in MODULES])
    lines += _line(root / "modal_app.py", "")
    lines += _folder(root, "course", sorted((root / "course").glob("*.py")))
    lines += [f"{name:<21}{said}" for name, said in FOLDERS.items()]
    return "\n".join(lines)


def write_tree(readme: Path) -> None:
    """Put the tree into the README's one block of plain text."""
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition("```text\n")
    _, _, after = rest.partition("\n```\n")
    text = f"{before}```text\n{tree()}\n```\n{after}"
    readme.write_text(text, encoding="utf-8", newline="\n")


def _folder(root: Path, name: str, files: list[Path]) -> list[str]:
    """A folder's own files and then its folders, each in the order in which `files` has them."""
    lines = [f"{name}/"]
    inner: dict[str, list[str]] = {}
    for path in files:
        parts = path.relative_to(root).parts
        if parts[0] != name or not path.exists():
            continue
        if len(parts) == 2:
            lines += _line(path, "  ")
        else:
            inner.setdefault(parts[1], [f"  {parts[1]}/"]).extend(_line(path, "    "))
    return lines + [line for folder in inner.values() for line in folder]


def _line(path: Path, indent: str) -> list[str]:
    said = purpose(path.read_text(encoding="utf-8")) if path.exists() else ""
    return [f"{indent + path.name:<21}{said}"] if said else []


def purpose(source: str) -> str:
    """The first line of a module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(source)) or ""
    return docstring.partition("\n")[0].removesuffix(".")
