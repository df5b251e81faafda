"""Write the package from the cells that the chapters mark with `#| export`.

A chapter's front matter lists the modules that it exports. A cell whose first line is `#| export` goes to the first of
them, `#| export data/tokenizer` to `slm/data/tokenizer.py`; each folder below `slm/` gets an empty `__init__.py`.

A module opens with a docstring of its own, in its first cell. Cells are joined in order, and the statements of one cell
keep their own spacing. Imports go to the top, and a function marked `@add_to(Class)` moves into its class. Where the
chapter begins a new section, the section's title stands as a comment.
"""

import ast
import difflib
import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from nbformat import NotebookNode

from course import ROOT, pairs
from course.provenance import Definition, defined_names

ENGINE_ROOM = "can be skipped at first reading"
ALMOST = re.compile(r"\s*#\s*\|\s*export")  # as some formatters write it
BEGIN = r"[ \t]*#[ \t]*(?:%%.*|<codecell>|In\[[0-9 ]*\]:?|---)[ \t]*"  # for jupytext
BRANCHES = (ast.If, ast.Match, ast.ExceptHandler)
ABSTRACT = r"\b(ABC|ABCMeta|Protocol)\b"
OPENING = re.compile(rf"^({BEGIN})\n(\n*)", re.MULTILINE)
ENDING = re.compile(rf"\n*(?={BEGIN}|\Z)", re.MULTILINE)
PLAIN = ("# %%", "# ---")
MARK = re.compile(r"#\|[ \t]*export(?:[ \t]+(?P<name>\w+(?:/\w+)*))?[ \t]*")


class ExportError(Exception):
    """What keeps the chapters from being exported: one line per problem, each with chapter, line and cell."""


@dataclass(frozen=True)
class Cell:
    """A code cell: its number among the chapter's code cells, the line where its source starts, and the source."""

    chapter: str  # chapters/01_attention.py
    number: int
    line: int
    source: str
    section: str = ""  # the nearest heading above it, below the chapter's title

    def error(self, line: int, message: str) -> str:
        """The message, placed at a line of this cell (the cell's own first line is 1)."""
        return f"{self.chapter}:{self.line + line - 1}: cell {self.number}: {message}"


@dataclass
class Piece:
    """A top-level statement with the comments above it, line by line; each line remembers where it comes from."""

    node: ast.stmt | None  # None: only comments
    lines: list[tuple[str, Cell, int]]

    @property
    def names(self) -> list[str]:
        """What the statement defines."""
        return defined_names(self.node) if self.node else []


@dataclass
class Module:
    """One file of the package, gathered from the cells of one chapter."""

    path: str  # slm/model/attention.py
    chapter: str
    docstring: str = ""
    section: str = ""  # the last one whose title stands as a comment
    imports: list[Piece] = field(default_factory=list)
    body: list[Piece] = field(default_factory=list)
    added: dict[str, list[str]] = field(
        default_factory=dict
    )  # class -> methods that @add_to put there
    source: str = ""  # the text, at last formatted
    origin: list[tuple[Cell, int]] = field(
        default_factory=list
    )  # of each line, before it is formatted


@dataclass
class Chapter:
    """A chapter's text with what its front matter and its first cell say of it."""

    name: str  # chapters/01_attention.py
    cells: list[Cell]
    problems: list[str]  # what would leave an export cell out unseen
    exports: list[str]
    title: str
    engine_room: bool  # its subject is the hardening, and no idea needs it
    notebook: NotebookNode  # all of it

    @classmethod
    def read(cls, path: Path, root: Path = ROOT) -> "Chapter":
        """Read a chapter's percent source."""
        name, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        notebook = pairs.read(path)
        cells, problems = _locate(name, notebook, text)
        exports = notebook.metadata.get("slm", {}).get("exports", [])
        if not isinstance(exports, list) or not all(
            isinstance(module, str) for module in exports
        ):
            raise ExportError(
                f"{name}:1: slm.exports in the front matter is {exports!r}; a list of paths is expected."
            )
        first = next(
            (c.source for c in notebook.cells if c.cell_type == "markdown"), ""
        )
        title = first.strip().partition("\n")[0].lstrip("#").strip()
        engine_room = ENGINE_ROOM in " ".join(first.split())
        return cls(name, cells, problems, exports, title, engine_room, notebook)


def chapters(root: Path = ROOT) -> list[Path]:
    """The chapters' sources, in order."""
    return sorted((root / "chapters").glob("[0-9][0-9]_*.py"))


def export(root: Path = ROOT) -> list[Module]:
    """Build all modules of the repository at `root`, and write nothing.

    Raises:
        ExportError: with every problem that was found, one a line.
    """
    modules: list[Module] = []
    errors: list[str] = []
    for path in chapters(root):
        try:
            chapter = Chapter.read(path, root)
        except ExportError as error:
            errors.append(str(error))
            continue
        built, problems = _gather(chapter)
        problems += filter(None, [pairs.difference(path, chapter.notebook)])
        for module in built:
            if other := next(
                (known for known in modules if known.path == module.path), None
            ):
                problems.append(
                    f"{chapter.name}:1: {module.path} is already exported by {other.chapter}."
                )
            else:
                modules.append(module)
        errors += problems
    errors += _finish(modules)
    folders = {
        path.as_posix(): module
        for module in modules
        for path in PurePosixPath(module.path).parents
    }
    for folder, module in folders.items():
        if folder.startswith("slm/") and all(
            known.path != f"{folder}/__init__.py" for known in modules
        ):
            modules.append(
                Module(f"{folder}/__init__.py", module.chapter)
            )  # empty, as Python asks for it
    if errors:
        raise ExportError("\n".join(dict.fromkeys(errors)))
    return modules


def write(modules: Iterable[Module], folder: Path = ROOT) -> list[str]:
    """Write the modules that differ from what lies in `folder`; returns their paths."""
    written = []
    for module in modules:
        path = folder / module.path
        if not path.exists() or path.read_text(encoding="utf-8") != module.source:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(module.source, encoding="utf-8", newline="\n")
            written.append(module.path)
    return written


def differences(modules: list[Module], root: Path = ROOT) -> str:
    """A unified diff from the package as it lies there to the package as the chapters have it; empty if equal."""
    parts: list[str] = []
    for module in modules:
        path = root / module.path
        present = path.read_text(encoding="utf-8") if path.exists() else ""
        parts += difflib.unified_diff(
            present.splitlines(True),
            module.source.splitlines(True),
            module.path,
            f"{module.path} from {module.chapter}",
        )
    parts += [
        f"{path}: no chapter exports it; delete it.\n"
        for path in orphans(modules, root)
    ]
    return "".join(parts)


def orphans(modules: Iterable[Module], root: Path = ROOT) -> list[str]:
    """Files of the package that no chapter exports."""
    exported = {module.path for module in modules}
    present = [
        path.relative_to(root).as_posix()
        for path in sorted((root / "slm").rglob("*.py"))
    ]
    if (root / "modal_app.py").exists():
        present.append("modal_app.py")
    return [path for path in present if path not in exported]


def added_to(node: ast.stmt | None) -> ast.Call | None:
    """The `@add_to(…)` call above a function, or None."""
    for call in getattr(node, "decorator_list", []):
        if (
            isinstance(call, ast.Call)
            and ast.unparse(call.func).split(".")[-1] == "add_to"
        ):
            return call
    return None


def module_name(path: str) -> str:
    """How a cell names a module: slm/data/tokenizer.py is data/tokenizer."""
    return path.removeprefix("slm/").removesuffix(".py")


def _locate(
    chapter: str, notebook: NotebookNode, text: str
) -> tuple[list[Cell], list[str]]:
    """A chapter's code cells with their places in its text, and what would leave an export cell out unseen."""
    cells: list[Cell] = []
    problems: list[str] = []
    at, section = 0, ""
    for part in notebook.cells:
        kind, lines = part.cell_type, part.source.split("\n")
        if kind == "markdown":
            section = ([section] + _headings(part.source))[-1]
        if kind != "code" and not ALMOST.match(part.source):
            continue
        begin, start, end = _find(part.source, text, at)
        line = text.count("\n", 0, start) + 1
        cell = Cell(chapter, len(cells) + 1, line, part.source, section)
        if kind != "code":
            problems.append(cell.error(1, f"a {kind} cell can't be exported."))
            continue
        cells.append(cell)
        at = end
        if begin and ("title" in part.metadata or not begin.startswith(PLAIN)):
            begins = f"{begin!r} begins a cell; `# %%` and its metadata should."
            problems.append(cell.error(0, begins))
        elif not begin:
            pairs_of_lines = enumerate(
                zip(text[start:].split("\n"), lines, strict=False)
            )
            wrong = next((k for k, (a, b) in pairs_of_lines if a != b), 0)
            read = f"jupytext reads this line as {lines[wrong]!r}"
            problems.append(cell.error(wrong + 1, f"{read}; write it in another way."))
    return cells, problems


def _find(source: str, text: str, at: int) -> tuple[str, int, int]:
    """Where a cell lies in a chapter's text, from `at` on: the line that begins it, and the source's two ends.

    If it does not stand there as it was read, the line is empty, and the ends are those of what looks like its first line.
    """
    words = source.lstrip("\n")
    for opening in OPENING.finditer(text, at):
        start = opening.end() - (len(source) - len(words))
        end = opening.end() + len(words)
        if start < opening.start(2) or not text.startswith(words, opening.end()):
            continue
        if ENDING.match(text, end):
            return opening[1], start, end
    first = re.escape(source.split("\n")[0])
    found = re.compile(rf"^[# ]*({first})$", re.MULTILINE).search(text, at)
    return "", *(found.span(1) if found else (at, at))


def _headings(markdown: str) -> list[str]:
    """The titles of the sections that a Markdown cell begins, without links and emphasis."""
    outside = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^###?[ \t]+(.+?)[ \t]*$", outside, flags=re.MULTILINE)
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return [re.sub(r"\*\*?|(?<!\w)_|_(?!\w)", "", title) for title in titles]


def _gather(chapter: Chapter) -> tuple[list[Module], list[str]]:
    """Sort a chapter's export cells into its modules; returns the modules and what is wrong."""
    errors = list(chapter.problems)
    modules: dict[str, Module] = {}
    for path in chapter.exports:
        name = module_name(path)
        if not re.fullmatch(r"slm/(\w+/)*\w+\.py|modal_app\.py", path):
            errors.append(
                f"{chapter.name}:1: the front matter exports {path!r}; slm/NAME.py, slm/FOLDER/NAME.py or modal_app.py "
                "is allowed."
            )
        elif name in modules:
            errors.append(f"{chapter.name}:1: the front matter lists {name!r} twice.")
        else:
            modules[name] = Module(path, chapter.name)
    for cell in chapter.cells:
        errors += _place(cell, modules)
    for module in modules.values():
        if not errors and not module.imports and not module.body:
            errors.append(
                f"{chapter.name}:1: the front matter lists {module.path}, but no cell is exported to it."
            )
    return list(modules.values()), errors


def _place(cell: Cell, modules: dict[str, Module]) -> list[str]:
    """Put a cell's statements where they belong, if the cell is exported; returns what is wrong."""
    first, *rest = cell.source.split("\n")
    for number, line in enumerate(rest, 2):
        if line.startswith("#|") or ALMOST.match(line):
            late = "a `#|` line counts only as the first line of its cell."
            return [cell.error(number, late)]
    if not first.startswith("#|") and not ALMOST.match(first):
        return []
    mark, listed = MARK.fullmatch(first), ", ".join(map(repr, modules))
    name = (mark and mark["name"]) or next(iter(modules), "")
    problem = ""
    if not mark:
        allowed = "`#| export` or `#| export NAME` is allowed"
        problem = f"{first!r} is not understood; {allowed}."
    elif not modules:
        header = "the chapter's front matter lists no module under slm.exports"
        problem = f"exported, but {header}."
    elif name not in modules:
        problem = f"exported to {name!r}; the front matter lists {listed}."
    if problem:
        return [cell.error(1, problem)]
    try:
        pieces = list(_pieces(cell))
    except SyntaxError as error:
        return [cell.error(error.lineno or 1, f"does not parse: {error.msg}.")]
    return _add(modules[name], cell, pieces)


def _pieces(cell: Cell) -> Iterator[Piece]:
    """A cell's top-level statements, each with the comments above it; the `#| export` line is left out."""
    lines = cell.source.split("\n")
    numbered = [(line, cell, number) for number, line in enumerate(lines, 1)]
    done = 1
    for node in ast.parse(cell.source).body:
        end = node.end_lineno or node.lineno
        if end <= done:
            continue  # a second statement on the same line went with the first
        yield Piece(node, numbered[done:end])
        done = end
    if any(line.strip() for line in lines[done:]):
        yield Piece(None, numbered[done:])


def _add(module: Module, cell: Cell, pieces: list[Piece]) -> list[str]:
    """Append statements to a module; returns what is wrong."""
    errors = []
    if pieces and not module.docstring and not module.imports and not module.body:
        if _is_docstring(pieces[0].node):
            module.docstring = _text_of(pieces.pop(0).node)
        else:
            missing = (
                f"{module.path} opens without a docstring that says what it is for."
            )
            errors.append(cell.error(1, missing))
    if len(pieces) > 1 and _is_value(pieces):
        line = pieces[-1].lines[-1][2]
        shown = "an export cell ends with a value; show it in the next cell."
        errors.append(cell.error(line, shown))
    for piece in pieces:
        node = piece.node
        if isinstance(node, ast.Import | ast.ImportFrom):
            errors += _clashes(module, cell, node)
            module.imports.append(piece)
        elif call := added_to(node):
            errors += _move_into_class(module, cell, piece, call)
        else:
            known = {name for other in module.body for name in other.names}
            known |= {
                name for other in module.imports for name in _imported(other.node)
            }
            if not _is_overload(node):
                errors += [
                    cell.error(
                        node.lineno if node else 1,
                        f"{name!r} is exported to {module.path} a second time.",
                    )
                    for name in piece.names
                    if name in known
                ]
            if not module.body or module.body[-1].lines[-1][1] != cell:
                while not piece.lines[0][0].strip():  # blank lines below imports
                    piece.lines.pop(0)
            if cell.section not in ("", module.section):
                module.section = cell.section
                piece.lines[:0] = [(f"# {cell.section}", cell, 1), ("", cell, 1)]
            module.body.append(piece)
    return errors


def _is_value(pieces: list[Piece]) -> bool:
    """Whether a cell ends with an expression, other than the text that describes a constant above it."""
    last, before = pieces[-1].node, pieces[-2].node
    constant = isinstance(before, ast.Assign | ast.AnnAssign)
    return isinstance(last, ast.Expr) and not (constant and _is_docstring(last))


def _clashes(
    module: Module, cell: Cell, node: ast.Import | ast.ImportFrom
) -> list[str]:
    """What is wrong with an import whose name already means something else in the module."""
    defined = {name: "a definition" for piece in module.body for name in piece.names}
    for piece in module.imports:
        defined |= _imported(piece.node)
    return [
        cell.error(
            node.lineno,
            f"{name!r} would be {origin} and also {defined[name]} in {module.path}.",
        )
        for name, origin in _imported(node).items()
        if defined.get(name, origin) != origin
    ]


def _imported(node: ast.stmt | None) -> dict[str, str]:
    """The names that an import binds, each with what it is."""
    if isinstance(node, ast.ImportFrom):
        return {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for alias in node.names
        }
    if isinstance(node, ast.Import):
        return {alias.asname or alias.name: alias.name for alias in node.names}
    return {}


def _is_docstring(node: ast.stmt | None) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _text_of(node: ast.stmt | None) -> str:
    assert isinstance(node, ast.Expr)
    return str(ast.literal_eval(node.value)).strip()


def _is_overload(node: ast.stmt | None) -> bool:
    """Whether a definition is one of several of its name: what follows `@overload`, or a registered variant named _."""
    return getattr(node, "name", None) == "_" or any(
        ast.unparse(mark).split(".")[-1] == "overload"
        for mark in getattr(node, "decorator_list", [])
    )


def _move_into_class(
    module: Module, cell: Cell, piece: Piece, call: ast.Call
) -> list[str]:
    """Append a function marked `@add_to(Class)` to that class; returns what is wrong."""
    method = piece.node
    assert isinstance(method, Definition)
    owner = ast.unparse(call.args[0]) if len(call.args) == 1 else ""
    target = next(
        (
            p
            for p in module.body
            if isinstance(p.node, ast.ClassDef) and p.node.name == owner
        ),
        None,
    )
    if target is None:
        return [
            cell.error(
                call.lineno,
                f"@add_to({owner}): no class {owner!r} is exported to {module.path} before.",
            )
        ]
    assert isinstance(target.node, ast.ClassDef)
    accessor = any(
        isinstance(mark, ast.Attribute) and mark.attr in ("setter", "deleter")
        for mark in method.decorator_list
    )
    taken = {
        name for statement in target.node.body for name in Piece(statement, []).names
    }
    if not accessor and (
        method.name in taken or method.name in module.added.get(owner, [])
    ):
        return [
            cell.error(
                method.lineno,
                f"{method.name!r} is exported to class {owner} a second time.",
            )
        ]
    module.added.setdefault(owner, []).append(method.name)
    keep = _lines_inside_strings(method)
    mark = range(call.lineno, (call.end_lineno or call.lineno) + 1)
    target.lines.append(("", cell, piece.lines[0][2]))
    for text, _, number in piece.lines:
        if number not in mark:
            target.lines.append(
                (
                    text if number in keep or not text.strip() else f"    {text}",
                    cell,
                    number,
                )
            )
    return []


def _lines_inside_strings(method: Definition) -> set[int]:
    """Lines that continue a string which is no docstring: to indent them would change its value."""
    docstrings = set()
    for node in ast.walk(method):
        if isinstance(node, Definition) and _is_docstring(node.body[0]):
            docstrings.add(node.body[0].value)  # type: ignore[attr-defined]
    inside: set[int] = set()
    for node in ast.walk(method):
        text = isinstance(node, ast.JoinedStr) or isinstance(
            getattr(node, "value", None), str | bytes
        )
        if text and isinstance(node, ast.expr) and node not in docstrings:
            inside.update(range(node.lineno + 1, (node.end_lineno or node.lineno) + 1))
    return inside


def _finish(modules: list[Module]) -> list[str]:
    """Join, check and format the modules; returns what is wrong, in their order."""
    errors = {module.path: _join(module) for module in modules}
    joined = [module for module in modules if not errors[module.path]]
    for module in joined:
        errors[module.path] += _not_written(module)
    rules = ["--select", "F821,F822,F401", "--output-format", "json"]
    found = json.loads(_ruff(joined, "check", *rules) or "[]")
    for module in joined:
        problems = [p for p in found if p["filename"].endswith(f"/{module.path}")]
        errors[module.path] += filter(None, (_meaning(module, p) for p in problems))
    right = [module for module in joined if not errors[module.path]]
    _ruff(right, "check", "--select", "I,F401", "--fix-only", "--unsafe-fixes")
    _ruff(right, "format")
    for module in right:
        if any(
            "course" in _packages(node) for node in ast.walk(ast.parse(module.source))
        ):
            errors[module.path].append(
                f"{module.chapter}:1: {module.path} would import `course`; the package may not depend on it."
            )
    return [error for module in modules for error in errors[module.path]]


def _join(module: Module) -> list[str]:
    """Write a module's source, as yet unformatted, from its pieces; returns why it does not compile."""
    docstring = (
        f'"""{module.docstring}\n\nExported from {module.chapter}; edit it there.\n"""'
    )
    if "\\" in module.docstring:
        docstring = "r" + docstring
    head = Cell(module.chapter, 0, 1, "")
    lines = [(line, head, 1) for line in docstring.splitlines()] + [("", head, 1)]
    for piece in [*_unique(module.imports), *module.body]:
        _, cell, number = piece.lines[0]
        if lines[-1][1] != cell:
            lines.append(("", cell, number))
        lines += piece.lines
    module.source = "\n".join(text for text, _, _ in lines) + "\n"
    module.origin = [(cell, number) for _, cell, number in lines]
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(module.source, module.path, "exec", dont_inherit=True)
    except SyntaxError as error:
        return [_error(module, error.lineno or 1, f"does not compile: {error.msg}.")]
    return []


def _error(module: Module, row: int, message: str) -> str:
    """The message, placed where a line of the joined module comes from."""
    cell, line = module.origin[row - 1]
    return cell.error(line, message)


def _not_written(module: Module) -> list[str]:
    """What is wrong with the functions that a module leaves unfinished."""
    if "NotImplementedError" not in module.source:
        return []
    with warnings.catch_warnings(action="ignore"):
        tree = ast.parse(module.source)
    why = "is unfinished, it raises NotImplementedError; write it, or"
    return [
        _error(module, row, f"{name} {why} {way}.")
        for name, row, way in _unfinished(tree)
    ]


def _meaning(module: Module, problem: dict[str, Any]) -> str:
    """What ruff has found in a joined module, in the words of a chapter; empty if it goes without saying."""
    meaning = problem["message"].replace("`", "'").rstrip(".")
    if problem["code"] == "F821":
        meaning += f", neither in {module.path} nor among its imports; export it, or import it in an export cell"
    elif problem["code"] == "F401":
        if meaning.startswith("'course"):
            return ""  # what a notebook needs
        name = meaning.partition("' ")[0]
        meaning = f"{name}' is imported, but not used in {module.path}; import it in another cell, or mark it `# noqa: F401`"
    row = problem["location"]["row"]
    return _error(module, row, f"{meaning[0].lower()}{meaning[1:]}.")


def _unfinished(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    """The functions in which something is still to be written, each with the line and what may be done instead.

    A NotImplementedError says so where nothing but a loop stands before it, whatever its message; in a branch only if it
    has none, since one with a message tells what is not supported. What subclasses write is not unfinished.
    """
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {ast.unparse(base) for node in classes for base in node.bases}
    abstract = {
        part
        for node in classes
        if node.name in bases
        or re.search(ABSTRACT, ast.unparse(node).partition(":")[0])
        for part in node.body
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        marks = map(ast.unparse, node.decorator_list)
        if node in abstract or any("abstractmethod" in mark for mark in marks):
            continue
        branches = [each for each in ast.walk(node) if isinstance(each, BRANCHES)]
        chosen = {part for branch in branches for part in ast.walk(branch)}
        for part in ast.walk(node):
            if isinstance(part, ast.Raise) and part.exc:
                call = part.exc if isinstance(part.exc, ast.Call) else None
                error = ast.unparse(call.func if call else part.exc)
                said = call and call.args and part in chosen
                if error == "NotImplementedError" and not said:
                    told = "say in the error what is not supported"
                    way = told if part in chosen else "leave it out"
                    yield node.name, part.lineno, way
                    break


def _unique(imports: list[Piece]) -> list[Piece]:
    """Each import once, with the comments of its first place."""
    seen: dict[str, Piece] = {}
    for piece in imports:
        assert piece.node is not None
        seen.setdefault(ast.unparse(piece.node), piece)
    return list(seen.values())


def _packages(node: ast.AST) -> set[str]:
    """The top-level packages that a node imports."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        return {node.module.split(".")[0]}
    return set()


def _ruff(modules: list[Module], *command: str) -> str:
    """Let ruff check or change the modules' sources, all at once and under this repository's settings; returns what it says."""
    if not modules:
        return ""
    settings = ["--config", str(ROOT / "pyproject.toml"), "--quiet", "--no-cache"]
    with tempfile.TemporaryDirectory() as folder:
        write(modules, Path(folder))
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *settings]
            + [module.path for module in modules],
            capture_output=True,
            encoding="utf-8",
            cwd=folder,
        )
        if done.returncode not in (0, 1) or done.stderr.strip():
            raise RuntimeError(f"ruff failed: {done.stderr.strip()}")
        for module in modules:
            path = Path(folder, module.path)
            module.source = path.read_text(encoding="utf-8")
    return done.stdout
