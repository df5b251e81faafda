"""Print the whole book as one PDF, with a browser. Needs Chromium or Chrome, and a few minutes."""

import shutil
from pathlib import Path

from playwright.sync_api import Error, sync_playwright

from course import ROOT
from course.book import build
from course.run import RunError

PDF = ROOT / "_build" / "slm-from-scratch.pdf"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MINUTES = 10  # until a browser that does not answer is given up


def write() -> Path:
    """Render the executed chapters on one page and print it into `_build`.

    Raises:
        RunError: A chapter has not been executed yet, or there is no browser.
        subprocess.CalledProcessError: Sphinx found something wrong; a warning counts.
    """
    page = build("singlehtml") / "index.html"
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=found, args=["--no-sandbox"]
            )
        except Error as error:
            raise RunError(
                f"A PDF needs a browser. Install one of {', '.join(BROWSERS)}, for example with "
                "`apt-get install chromium`, or `python -m playwright install chromium`."
            ) from error
        tab = browser.new_page()
        tab.set_default_timeout(MINUTES * 60_000)
        tab.goto(page.as_uri())
        # The modules' own pages are not in it
        tab.eval_on_selector_all(
            ".export-badge a",
            "links => links.forEach(link => link.removeAttribute('href'))",
        )
        tab.pdf(
            path=PDF, format="A4", prefer_css_page_size=True, tagged=True, outline=True
        )
        browser.close()
    return PDF
