"""The book as one PDF: printed by a browser, with an outline, and without links to files of this machine."""

import shutil
from pathlib import Path

import pytest

from course import pdf
from course.run import RunError

PAGE = """
<h1>One</h1><p><a href="#two">on</a></p>
<div class="export-badge"><a href="modules/slm/a.html">slm/a.py</a></div>
<h2 id="two">Two</h2><details><summary>Solution</summary>deep inside</details>
"""

needs_browser = pytest.mark.skipif(
    not any(map(shutil.which, pdf.BROWSERS)), reason="no Chromium on this machine"
)


@pytest.fixture
def book(tmp_path, monkeypatch) -> Path:
    """A book of one small page, in place of the real one."""
    (tmp_path / "index.html").write_text(PAGE)
    monkeypatch.setattr(pdf, "build", lambda kind: tmp_path)
    monkeypatch.setattr(pdf, "PDF", tmp_path / "book.pdf")
    return tmp_path / "book.pdf"


@needs_browser
def test_the_book_is_printed(book):
    assert pdf.write() == book
    printed = book.read_bytes()
    assert printed.startswith(b"%PDF") and b"/Outlines" in printed
    assert b"modules/slm" not in printed


def test_without_a_browser_one_is_told_what_to_install(book, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "none"))
    with pytest.raises(RunError, match="apt-get install chromium"):
        pdf.write()
