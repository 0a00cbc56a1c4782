"""Print the book: one PDF in A4 and one in US Letter, in ``_build/pdf``. ``make pdf`` calls this.

Jupyter Book puts all pages on one (``book/_ext/paper.py`` arranges them), and a browser prints it
by ``book/_static/print.css``. It is printed twice: the numbers in the contents are those of the
pages on which the first print put the headings.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from browser import MISSING, browser_path, launch

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "_build" / "paper"
PDF = ROOT / "_build" / "pdf"

# Format, and the width between the margins of print.css, in pixels of 1/96 inch.
PAPERS = {"a4": ("A4", (210 - 40) / 25.4 * 96), "letter": ("Letter", (215.9 - 40) / 25.4 * 96)}

# What is folded opens, what is wider than the paper becomes smaller, and an image is no link to
# its own file.
FIT = """() => {
  document.querySelectorAll("a.image-reference").forEach((link) => link.removeAttribute("href"));
  document.querySelectorAll("details").forEach((folded) => (folded.open = true));
  for (const wide of document.querySelectorAll("table, div.math mjx-container")) {
    const number = wide.parentElement.querySelector(":scope > .eqno")?.offsetWidth ?? 0;
    const room = wide.parentElement.clientWidth - (number && number + 8);
    const width = Math.max(wide.scrollWidth, wide.getBoundingClientRect().width);
    if (room && width > room + 1) wide.style.zoom = room / width;
  }
}"""

NUMBER = """(pages) => {
  for (const link of document.querySelectorAll("a.page-of"))
    link.dataset.page = pages[decodeURIComponent(link.hash.slice(1))] ?? "";
}"""


def single_page(book: Path, build: Path) -> Path:
    """Build the book in the folder `book` as one page; a warning is an error."""
    made = build / "_build" / "singlehtml"
    shutil.rmtree(made, ignore_errors=True)
    jupyter_book = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    options = ["--builder", "singlehtml", "--path-output", str(build), "--all"]
    command = [*jupyter_book, "build", str(book), *options, "-W", "-n", "--keep-going"]
    subprocess.run(command, check=True, cwd=book)
    [page] = [
        p for p in made.rglob("*.html") if p.name != "index.html" and "_static" not in p.parts
    ]
    # Sphinx writes its addresses as seen from the top.
    return Path(shutil.copy(page, made / "book.html"))


def page_numbers(pdf: Path) -> dict[str, int]:
    """The page on which each target of a link stands."""
    from pypdf import PdfReader

    reader = PdfReader(pdf)
    found = reader.named_destinations
    return {
        name.lstrip("/"): (reader.get_destination_page_number(place) or 0) + 1
        for name, place in found.items()
    }


def open_page(browser: "Browser", page: Path, width: float) -> "Page":
    """`page` as it is laid out for print, its mathematics set."""
    tab = browser.new_page(viewport={"width": int(width), "height": 1000})
    tab.set_default_timeout(300_000)
    tab.emulate_media(media="print", color_scheme="light")
    tab.goto(page.resolve().as_uri())
    tab.wait_for_function("window.MathJax?.startup?.promise")
    tab.evaluate("async () => { await MathJax.startup.promise; await document.fonts.ready; }")
    tab.evaluate(FIT)
    return tab


def print_page(browser: "Browser", page: Path, paper: str, pdf: Path) -> None:
    form, width = PAPERS[paper]
    tab = open_page(browser, page, width)
    options = {"format": form, "print_background": True, "outline": True, "tagged": True}
    tab.pdf(path=pdf, **options)
    tab.evaluate(NUMBER, page_numbers(pdf))
    tab.pdf(path=pdf, **options)
    tab.close()


def print_all(page: Path, folder: Path, name: str) -> list[Path]:
    """`page` on each paper, as ``<name>-<paper>.pdf`` in `folder`."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    made = {paper: folder / f"{name}-{paper}.pdf" for paper in PAPERS}
    with sync_playwright() as playwright:
        browser = launch(playwright)
        for paper, pdf in made.items():
            print_page(browser, page, paper, pdf)
        browser.close()
    return list(made.values())


def main() -> None:
    if browser_path() is None:
        sys.exit(MISSING)
    try:
        page = single_page(ROOT, BUILD)
    except subprocess.CalledProcessError:
        sys.exit("The book was not built: see the warnings above, which count as errors.")
    for pdf in print_all(page, PDF, "the-encoding-distribution"):
        print(f"Printed {pdf.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
