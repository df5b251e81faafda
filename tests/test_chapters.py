"""The chapters as they are committed: whole, executed, paired, and each built on earlier ones only."""

import functools
import json
import re
import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from traitlets.config.loader import PyFileConfigLoader

from course import ROOT, WIDTH, lab
from course.book import anchor
from course.elsewhere import address, first_cells
from course.export import Chapter, chapters
from course.modules import MODULES, imports, in_import_order

CHAPTERS = chapters()
PAIRING = {
    "formats": "ipynb,py:percent",
    "notebook_metadata_filter": "slm,jupytext.formats,jupytext.notebook_metadata_filter,jupytext.cell_metadata_filter,-all",
    "cell_metadata_filter": "tags,mystnb,-all",
}
ENGINE_ROOMS = "files corpora prepare settings checkpoints runs door meter".split()
LOOKS_AHEAD = {"trainer": {"slm/training/run.py"}}
"""The one chapter that uses a later one's module: it trains the model and shows how far it came."""

each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)


chapter_of = functools.cache(Chapter.read)  # parsed once in all


@functools.cache
def notebook_of(chapter: Path) -> nbformat.NotebookNode:
    return nbformat.read(chapter.with_suffix(".ipynb"), as_version=4)


def markdown_of(chapter: Path) -> str:
    cells = chapter_of(chapter).notebook.cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_each_chapter_stands_in_the_book_with_its_notebook():
    """In the order of their numbers; an appendix (9x) stands last, before what is looked up."""
    table = yaml.safe_load((ROOT / "chapters" / "_toc.yml").read_text())
    listed = [entry["file"] for part in table["parts"] for entry in part["chapters"]]
    names = [path.stem for path in CHAPTERS]
    assert listed == [*names, "glossary", "references"]
    notebooks = {path.stem for path in (ROOT / "chapters").glob("*.ipynb")}
    assert notebooks == set(names)


def test_engine_rooms_are_marked():
    marked = [anchor(path.stem) for path in CHAPTERS if chapter_of(path).engine_room]
    assert sorted(marked) == sorted(ENGINE_ROOMS)


@each_chapter
def test_header(chapter):
    """Pairing stands in the file itself, since a server started inside `chapters/` reads no other configuration."""
    metadata = jupytext.read(chapter, fmt="py:percent").metadata
    assert {name: metadata.jupytext.get(name) for name in PAIRING} == PAIRING
    assert set(metadata) == {"jupytext", "slm"} and metadata.slm.exports


@each_chapter
def test_nothing_is_too_wide(chapter):
    """88 columns; but for the header, a cell's metadata, and a line that is one address."""
    lines = chapter.read_text(encoding="utf-8").splitlines()
    end = lines.index("# ---", 1)
    wide = [
        f"{number}: {line}"
        for number, line in enumerate(lines, 1)
        if len(line) > 88 and number > end and not line.startswith("# %%")
        if not re.fullmatch(r"\W*https?://\S+", line)
    ]
    assert wide == []


NUMBERED = re.compile(
    r"\bchapters?[ \n](?:\d|one\b|two\b|three\b|four\b)", re.IGNORECASE
)


def test_no_chapter_is_named_by_its_number():
    """Numbers stand in file names only, so that a chapter can be put in."""
    places = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "modal_app.py"]
    for pattern in ("chapters/*.py", "chapters/*.md", "{}/**/*.py", "configs/*.yaml"):
        for folder in ("slm", "course", "benchmarks") if "{}" in pattern else ("",):
            places += sorted(ROOT.glob(pattern.format(folder)))
    found = [
        f"{path.relative_to(ROOT)}: {match[0]!r}"
        for path in places
        for match in NUMBERED.finditer(
            re.sub(r"\s+#?\s*", " ", path.read_text(encoding="utf-8"))
        )
    ]
    assert found == []


def test_numbers_of_chapters_are_found():
    assert NUMBERED.search("see Chapter 3") and NUMBERED.search("chapters 1 to 3")
    assert not NUMBERED.search("Exported from chapters/03_gpt.py, the first chapter")


@each_chapter
def test_notebook_is_what_its_text_says(chapter):
    """Saving the notebook without an edit writes the very text, so a pair cannot drift apart."""
    saved = jupytext.writes(notebook_of(chapter), fmt="py:percent")
    assert saved == chapter.read_text(encoding="utf-8")


@each_chapter
def test_notebook_says_the_same_of_its_kernel_everywhere(chapter):
    metadata = notebook_of(chapter).metadata
    assert {name: metadata.get(name) for name in lab.METADATA} == lab.METADATA
    assert "text_representation" not in metadata.jupytext  # a save would drop it


THEIRS = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python", "version": "3.99", "file_extension": ".py"},
}
"""What JupyterLab writes into a notebook that it has opened."""


@pytest.mark.parametrize("suffix", [".py", ".ipynb"])
def test_saving_without_an_edit_changes_nothing(tmp_path, suffix):
    """As JupyterLab saves a pair, with the settings of `make lab`, whichever of the two was opened."""
    files = [CHAPTERS[0], CHAPTERS[0].with_suffix(".ipynb")]
    for path in (*files, ROOT / "pyproject.toml"):
        shutil.copy(path, tmp_path)
    settings = PyFileConfigLoader("lab.py", str(ROOT / "course")).load_config()
    manager = jupytext.TextFileContentsManager(root_dir=str(tmp_path), config=settings)
    model = manager.get(f"{CHAPTERS[0].stem}{suffix}")
    model["content"]["metadata"] |= THEIRS
    manager.save(model, f"{CHAPTERS[0].stem}{suffix}")
    for path in files:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@each_chapter
def test_notebook_holds_one_whole_run(chapter):
    """nbval compares nothing where outputs were stripped, so the counts have to be there, from first to last."""
    cells = [cell for cell in notebook_of(chapter).cells if cell.cell_type == "code"]
    executed = [
        cell for cell in cells if "skip-execution" not in cell.metadata.get("tags", [])
    ]
    assert [cell.execution_count for cell in executed] == list(
        range(1, len(executed) + 1)
    )
    assert all(
        cell.execution_count is None and not cell.outputs
        for cell in cells
        if cell not in executed
    )
    errors = [
        output.ename
        for cell in cells
        for output in cell.outputs
        if output.output_type == "error"
    ]
    assert errors == []


@each_chapter
def test_deterministic_outputs_are_checked(chapter):
    """Each chapter has cells whose output nbval compares; a tagged cell without output would compare nothing."""
    tagged = [
        cell
        for cell in notebook_of(chapter).cells
        if "nbval-check-output" in cell.metadata.get("tags", [])
    ]
    assert tagged
    assert [cell.source for cell in tagged if not cell.outputs] == []


@each_chapter
def test_outputs_hold_no_path_of_a_machine(chapter):
    text = "".join(
        json.dumps(cell.get("outputs", [])) for cell in notebook_of(chapter).cells
    )
    found = [
        place
        for place in (str(ROOT), "/home/", "/Users/", "/root/", "site-packages")
        if place in text
    ]
    assert found == []


@each_chapter
def test_first_cells_start_the_course(chapter):
    """Whoever has set another address calls `python -m course elsewhere`."""
    text = chapter.read_text(encoding="utf-8")
    code = re.search(r"^# %%(?! \[markdown\]).*", text, re.MULTILINE | re.DOTALL)
    assert code and code[0].startswith(first_cells(address()))


@each_chapter
def test_imports_only_from_earlier_chapters(chapter):
    """A chapter may use what it exports itself, and what earlier ones export; an appendix counts as the first."""
    ordered = in_import_order(CHAPTERS)
    known = LOOKS_AHEAD.get(anchor(chapter.stem), set()).union(
        *(chapter_of(path).exports for path in ordered[: ordered.index(chapter) + 1])
    )
    used = {
        module
        for cell in chapter_of(chapter).cells
        for _, module in imports(cell.source)
    }
    assert used <= known, f"{chapter.name} imports from {sorted(used - known)}"


def test_an_appendix_is_last_in_the_book_and_first_in_import_order():
    paths = [Path(f"{name}.py") for name in ("01_attention", "21_launch", "90_files")]
    assert in_import_order(paths) == [paths[2], *paths[:2]]
    assert sorted(paths) == paths


LINK = re.compile(r"\]\(#([\w-]+)\)")


@each_chapter
def test_links_name_chapters_that_exist(chapter):
    """By the chapter's name without its number, or by a label of the page itself."""
    text = markdown_of(chapter)
    labels = set(re.findall(r"^\(([\w-]+)\)=", text, re.MULTILINE))
    known = {anchor(path.stem) for path in CHAPTERS} | labels
    assert set(LINK.findall(text)) <= known


@each_chapter
def test_ends_with_what_you_have_now(chapter):
    headings = [
        line
        for cell in notebook_of(chapter).cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("#")
    ]
    assert sum(line.startswith("# ") for line in headings) == 1
    assert "## What you have now" in headings and "## Is it right?" in headings
    cells = notebook_of(chapter).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert re.search(r"^(##+ |\*\*)Exercise", text, re.MULTILINE)


@each_chapter
def test_no_cell_is_a_wall(chapter):
    """At most 80 lines may be seen at once, and above 40 the text before them says what they do."""
    told = ""
    for cell in jupytext.read(chapter, fmt="py:percent").cells:
        lines = len(cell.source.splitlines())
        folded = "hide-input" in cell.metadata.get("tags", [])
        if cell.cell_type == "code" and not folded:
            assert lines <= 80, cell.source[:60]
            assert lines <= 40 or len(told.split()) >= 30, cell.source[:60]
        told = cell.source if cell.cell_type == "markdown" else ""


@each_chapter
def test_a_fold_counts_its_lines_rightly(chapter):
    for cell in jupytext.read(chapter, fmt="py:percent").cells:
        summary = cell.metadata.get("mystnb", {}).get("code_prompt_show", "")
        if found := re.search(r"(\d+) lines", summary):
            source = re.sub(r"^#\| export.*\n", "", cell.source)
            assert int(found[1]) == len(source.splitlines()), summary


@each_chapter
def test_a_folded_figure_says_what_it_draws(chapter):
    """Of a fold without a summary the book can tell only names, and a figure's code defines none."""
    for cell in jupytext.read(chapter, fmt="py:percent").cells:
        told = cell.metadata.get("mystnb", {})
        if "figure" in told and "hide-input" in cell.metadata.get("tags", []):
            summary = told.get("code_prompt_show", "")
            assert len(summary.split()) > 2, told["figure"]["name"]


@each_chapter
def test_what_is_printed_fits_the_page(chapter):
    for cell in notebook_of(chapter).cells:
        for output in cell.get("outputs", []):
            shown = output.get("text", "")
            if "data" in output and set(output.data) == {"text/plain"}:
                shown = output.data["text/plain"]
            wide = [line for line in shown.splitlines() if len(line) > WIDTH]
            assert wide == [], cell.source[:60]


@each_chapter
def test_the_measured_time_is_left_to_the_page(chapter):
    """`course book` writes what `course run` measured; a typed number would be another one."""
    assert not re.search(r"Runs\s+in\s+about", markdown_of(chapter))


@each_chapter
def test_it_sums_up_its_own_modules(chapter):
    """The last cell names what the header lists."""
    last = chapter_of(chapter).cells[-1].source
    assert re.findall(r'"([^"]+)"', last) == chapter_of(chapter).exports
    assert last.startswith("course.summary(")


@each_chapter
def test_modules_are_named_as_they_are(chapter):
    """No file of the package is mentioned that is not there."""
    named = re.findall(r"`(slm/[\w/]+\.py|modal_app\.py)`", markdown_of(chapter))
    assert set(named) <= {*MODULES}
