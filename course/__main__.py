"""The commands export, run, keep, book, pdf, tree and elsewhere of `python -m course`."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from course import ROOT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m course", description=__doc__)
    commands = parser.add_subparsers(
        required=True, metavar="export | run | keep | book | pdf | tree | elsewhere"
    )
    export = commands.add_parser(
        "export", help="write slm/ and modal_app.py from the chapters' export cells"
    )
    export.add_argument(
        "--check",
        action="store_true",
        help="write nothing; show a diff and fail if something differs",
    )
    export.add_argument(
        "--to",
        type=Path,
        default=ROOT,
        metavar="FOLDER",
        help="write below this folder instead",
    )
    export.set_defaults(command=_export)
    run = commands.add_parser("run", help="execute chapters into _build/chapters")
    run.add_argument(
        "chapters",
        nargs="*",
        metavar="NN",
        help="chapter numbers; all chapters if none is given",
    )
    run.add_argument(
        "--write",
        action="store_true",
        help="also write the executed notebooks to chapters/",
    )
    run.set_defaults(command=_run)
    keep = commands.add_parser(
        "keep", help="take over what was edited in a chapter's notebook alone"
    )
    keep.add_argument("chapters", nargs="+", metavar="NN", help="chapter numbers")
    keep.set_defaults(command=_keep)
    book = commands.add_parser(
        "book", help="render the executed chapters into _build/html"
    )
    book.set_defaults(command=_book)
    pdf = commands.add_parser(
        "pdf", help="print the executed chapters into _build/slm-from-scratch.pdf"
    )
    pdf.set_defaults(command=_pdf)
    tree = commands.add_parser("tree", help="print what lies where, a line a file")
    tree.add_argument(
        "--write", action="store_true", help="also put it into the README"
    )
    tree.set_defaults(command=_tree)
    elsewhere = commands.add_parser(
        "elsewhere",
        help="let a chapter that is opened alone get the repository named in pyproject.toml",
    )
    elsewhere.set_defaults(command=_elsewhere)
    arguments = parser.parse_args(argv)
    try:
        code = int(arguments.command(arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who reads what is printed, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(
            "\nStopped. The same command goes on; what is finished stays.",
            file=sys.stderr,
        )
        return 130
    except OSError as error:
        why = error.strerror or error
        print(f"{error.filename or 'A file'} can't be used: {why}.", file=sys.stderr)
        return 1


def _export(arguments: argparse.Namespace) -> int:
    from course import pairs
    from course.export import ExportError, chapters, differences, export, orphans, write

    try:
        modules = export()
    except ExportError as error:
        print(error, file=sys.stderr)
        print("Nothing was written.", file=sys.stderr)
        return 1
    if arguments.check:
        difference = differences(modules, arguments.to)
        if difference:
            print(difference, end="")
            print(
                "The package differs from the chapters: `python -m course export` writes it anew.",
                file=sys.stderr,
            )
        return int(bool(difference))
    sources = {module.path: module.chapter for module in modules}
    for chapter in chapters():
        pairs.renew(chapter)
    for path in write(modules, arguments.to):
        print(f"{sources[path]} → {path}")
    for path in orphans(modules, arguments.to):
        print(f"{path}: no chapter exports it; delete it.")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from course.run import RunError, run

    try:
        run(arguments.chapters, write=arguments.write)
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _keep(arguments: argparse.Namespace) -> int:
    from course import pairs
    from course.run import RunError, select

    try:
        selected = select(arguments.chapters)
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    for chapter in selected:
        name = chapter.relative_to(ROOT).as_posix()
        if before := pairs.keep(chapter):
            print(
                f"{name} has its notebook's cells now; as it was: {before.relative_to(ROOT)}"
            )
        else:
            print(f"{name}: its notebook was not edited alone; nothing to take over.")
    return 0


def _book(arguments: argparse.Namespace) -> int:
    from course.book import build

    return _rendered(lambda: build() / "index.html")


def _pdf(arguments: argparse.Namespace) -> int:
    from course.pdf import write

    return _rendered(write)


def _rendered(render: Callable[[], Path]) -> int:
    from course.run import RunError

    try:
        made = render()
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError:
        print(
            "The book was not rendered: the lines above say what is wrong; a warning counts.",
            file=sys.stderr,
        )
        return 1
    print(f"\nThe book is ready. Open {made.as_uri()}")
    return 0


def _tree(arguments: argparse.Namespace) -> int:
    from course.modules import tree, write_tree

    if arguments.write:
        write_tree(ROOT / "README.md")
    print(tree())
    return 0


def _elsewhere(arguments: argparse.Namespace) -> int:
    from course.elsewhere import address, write_first_cells
    from course.export import chapters

    where = address()
    for chapter in chapters():
        if write_first_cells(chapter, where):
            print(f"{chapter.relative_to(ROOT)}: gets {where or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
