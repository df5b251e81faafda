"""A chapter that is opened where its repository is not, as in Colab: what its first cells say and do there.

The repository's address stands in one place, `Repository` under `[project.urls]` in pyproject.toml. Where there is none,
no cell gets the repository and no page of the book links to it.
"""

import tomllib
from pathlib import Path

from course import ROOT

FIRST = """\
# %%
import course  # No module named 'course'? Get the whole repository, then `make lab`

course.start()
"""
"""What every chapter begins with; Python shows the line with its comment when the import fails."""

BEGIN = """\
# %% tags=["remove-cell"]
# Opened alone, as in Colab? This gets the course and what it needs, in a few minutes.
"""
SET_UP = """\
def get_course(address: str) -> None:
    import importlib.util
    import subprocess
    import sys
    from pathlib import Path

    if importlib.util.find_spec("course") is None:
        folder = Path("slm-from-scratch").resolve()
        if not folder.exists():
            print("Getting the course and what it needs: a few minutes, once.")
            clone = ["git", "clone", "--quiet", "--depth=1", address, str(folder)]
            subprocess.run(clone, check=True)
        needed = [f"{folder}[data,cloud]", "jupytext", "matplotlib", "psutil"]
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *needed], check=True)
        sys.path.insert(0, str(folder))


"""


def address(root: Path = ROOT) -> str | None:
    """Where the repository can be had, without a slash at the end; None if nobody has said it."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    found = tomllib.loads(text)["project"].get("urls", {}).get("Repository", "")
    return str(found).rstrip("/") or None


def first_cells(where: str | None) -> str:
    """The first code cells of a chapter: with an address also the one that gets the repository."""
    got = f'{BEGIN}{SET_UP}get_course("{where}")\n\n' if where else ""
    return got + FIRST


def write_first_cells(chapter: Path, where: str | None) -> bool:
    """Give a chapter the first cells for an address; returns whether that changed it."""
    text = chapter.read_text(encoding="utf-8")
    before, first, after = text.partition(FIRST)
    assert first, f"{chapter.name} does not begin with:\n{FIRST}"
    new = before.partition(BEGIN)[0] + first_cells(where) + after
    chapter.write_text(new, encoding="utf-8", newline="\n")
    return new != text


def theme_options(where: str | None) -> dict[str, object]:
    """What the book's theme is told, so that each page links to its repository, and to Colab if it can open it."""
    if not where:
        return {}
    colab = {"colab_url": "https://colab.research.google.com"}
    return {
        "repository_url": where,
        "repository_branch": "main",
        "path_to_docs": "chapters",
        "use_repository_button": True,
        "launch_buttons": colab if where.startswith("https://github.com/") else {},
    }
