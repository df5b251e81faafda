"""Prove that what a notebook has executed is what it exports.

`definitions` runs in a chapter's own kernel after the last cell; `mismatches` compares its answer with the package.
"""

import ast
import functools
import inspect
import io
import tokenize
from collections.abc import Iterable, Mapping
from typing import Any

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def definitions(namespace: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """The source of each name as it stands in a live notebook, and of every method as `Class.method`.

    Functions answer for themselves, through `inspect.getsource`, so a definition that was replaced later is noticed. A
    class or a constant can't; for those it is the last statement that was executed for the name.
    """
    executed = _last_statements(namespace["In"])
    sources = {}
    for name in names:
        if name not in namespace:
            continue
        value = namespace[name]
        source = _function_source(value) or executed.get(name)
        if source:
            sources[name] = source
        if inspect.isclass(value):
            methods = {
                f"{name}.{attribute}": _function_source(member)
                for attribute, member in vars(value).items()
            }
            sources |= {method: source for method, source in methods.items() if source}
    return sources


def mismatches(
    package: str, live: Mapping[str, str], added: Mapping[str, Iterable[str]]
) -> list[str]:
    """Names of a module of the package whose source differs from the live one, each with what is wrong.

    Args:
        package: The module's source.
        live: The answer of `definitions`.
        added: For each class, the methods that `@add_to` gave it.
    """
    problems = []
    for node in ast.parse(package).body:
        for name in defined_names(node):
            if name not in live:
                problems.append(
                    f"{name} is in the package, but the notebook does not define it"
                )
            elif isinstance(node, ast.ClassDef):
                problems += _class_mismatches(
                    node, package, live, set(added.get(name, ()))
                )
            elif _meaning(_lines(node, package)) != _meaning(live[name]):
                problems.append(f"{name} differs from the package's")
    return problems


def defined_names(node: ast.stmt) -> list[str]:
    """What a top-level statement defines: a function, a class, or the targets of an assignment."""
    if isinstance(node, Definition):
        return [node.name]
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    parts = [part for target in targets for part in ast.walk(target)]
    return [
        part.id
        for part in parts
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
    ]


def public_names(source: str) -> list[str]:
    """The functions and classes that a module defines, without those that begin with an underscore."""
    tree = ast.parse(source)
    return [
        node.name
        for node in tree.body
        if isinstance(node, Definition) and not node.name.startswith("_")
    ]


def _class_mismatches(
    node: ast.ClassDef, package: str, live: Mapping[str, str], added: set[str]
) -> list[str]:
    """What differs in one class: the class statement itself, then method by method."""
    problems = []
    kept = ast.parse(_lines(node, package)).body[0]
    assert isinstance(kept, ast.ClassDef)
    kept.body = [
        part
        for part in kept.body
        if not (isinstance(part, Definition) and part.name in added)
    ]
    if _shape(kept) != _shape(ast.parse(live[node.name]).body[0]):
        problems.append(f"class {node.name} differs from the package's")
    methods = {
        part.name: part
        for part in reversed(node.body)
        if isinstance(part, ast.FunctionDef)
    }
    for name, method in methods.items():
        source = live.get(f"{node.name}.{name}")
        if source is None and name in added:
            problems.append(
                f"{node.name}.{name} is in the package, but the notebook does not define it"
            )
        elif source is not None and _meaning(_lines(method, package)) != _meaning(
            source
        ):
            problems.append(f"{node.name}.{name} differs from the package's")
    return problems


def _function_source(value: Any) -> str | None:
    """The source of a function, or of the function behind a property or a decorator; None for anything else."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    elif isinstance(value, functools.cached_property):
        value = value.func
    if not callable(value) or inspect.isclass(value):
        return None
    function = inspect.unwrap(value)
    if not inspect.isfunction(function):
        return None
    try:
        return inspect.getsource(function)
    except OSError:  # written by a decorator such as @dataclass, not by a cell
        return None


def _last_statements(cells: Iterable[str]) -> dict[str, str]:
    """For each name, the last statement among the executed cells that defines it."""
    found: dict[str, str] = {}
    for cell in cells:
        try:
            tree = ast.parse(cell)
        except SyntaxError:  # a cell with a magic; such a cell can't be exported
            continue
        for node in tree.body:
            found |= dict.fromkeys(defined_names(node), _lines(node, cell))
    return found


def _lines(node: ast.stmt, source: str) -> str:
    """The source lines of a statement, its decorators among them."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(mark.lineno for mark in decorators)])
    return "\n".join(source.splitlines()[first - 1 : node.end_lineno]) + "\n"


def _meaning(source: str) -> tuple[str, list[str]]:
    """What must agree: the syntax tree and the comments. Line breaks and indentation may differ."""
    if source[:1].isspace():
        source = f"if True:\n{source}"
    node = ast.parse(source).body[0]
    node = node.body[0] if isinstance(node, ast.If) else node
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return _shape(node), [
        token.string for token in tokens if token.type == tokenize.COMMENT
    ]


def _shape(node: ast.stmt) -> str:
    """A statement's syntax tree as text, without `@add_to` and without the indentation of docstrings."""
    for part in ast.walk(node):
        if not isinstance(part, Definition):
            continue
        part.decorator_list = [
            mark for mark in part.decorator_list if "add_to(" not in ast.unparse(mark)
        ]
        docstring = ast.get_docstring(part, clean=True)
        if docstring is not None:
            part.body[0] = ast.Expr(ast.Constant(docstring))
    return ast.dump(node)
