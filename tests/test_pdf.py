"""The printed book: a small one, of two pages, goes the way of the real one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

NEEDED = "needs the extras `book` and `test`"
pytest.importorskip("jupyter_book", reason=NEEDED)
pytest.importorskip("playwright", reason=NEEDED)
pypdf = pytest.importorskip("pypdf", reason=NEEDED)
nbformat = pytest.importorskip("nbformat", reason=NEEDED)
browser, pdf = pytest.importorskip("browser"), pytest.importorskip("pdf")
if browser.browser_path() is None:
    pytest.skip(browser.MISSING, allow_module_level=True)

v4 = nbformat.v4

CONFIG = f"""
title: A small book
author: Its author
copyright: "2026"
only_build_toc_files: true
exclude_patterns: [".*", "out"]
repository:
  url: https://github.com/someone/small
execute:
  execute_notebooks: "off"
parse:
  myst_enable_extensions: [dollarmath]
html:
  extra_footer: A licence.
bibtex_bibfiles: [small.bib]
sphinx:
  extra_extensions: [sphinx-mathjax-offline, sphinx.ext.autodoc]
  local_extensions:
    vaebook: {ROOT / "book" / "_ext"}
    paper: {ROOT / "book" / "_ext"}
  config:
    html_static_path: [{ROOT / "book" / "_static"}]
    html_css_files: [custom.css, [print.css, {{media: print}}]]
    paper_subtitle: With a subtitle
"""

CONTENTS = """
format: jb-book
root: book/start
parts:
  - numbered: true
    chapters:
      - file: book/one
        sections:
          - file: book/two
  - chapters:
      - file: book/api/reference
      - file: book/references
"""

START = """# The start

The chapters are {doc}`one` and [](two.md), and {ref}`a section <sec-two>` has its own name.
The package is described in [](api/reference.md).

```{raw} html
<p><a href="two.html#sec-two">a link in HTML</a></p>
```
"""

TWO = """# The second chapter

## Summary

The same name as in the first chapter, and a note[^note].

[^note]: The note of the second chapter.

(sec-two)=
## A section with a name

It follows from {eq}`eq-one` and is seen in {numref}`fig-one`, as {cite:t}`a` wrote.
"""

ONE = r"""# The first chapter

See [Somewhere else](https://example.org/elsewhere) and a note[^note].

[^note]: The note of the first chapter.

$$
\frac{x}{y} = 1
$$ (eq-one)

```{figure} picture.svg
:name: fig-one
:alt: A square.

A square, as wide as it is high.
```

## Summary

The first of two sections with this name.

### Exercise 1.1: Add

Write a sum."""

MODEL = """```{admonition} A model answer
:class: dropdown

The model answer.
```"""


def folded(head, text):
    return f"<details><summary><strong>{head}</strong></summary><p>{text}</p></details>"


def code(source, html="", tags=()):
    outputs = [v4.new_output("display_data", {"text/html": html})] if html else []
    return v4.new_code_cell(
        source, outputs=outputs, execution_count=1, metadata={"tags": list(tags)}
    )


def first_chapter():
    cells = [
        v4.new_markdown_cell(ONE),
        code("answer = ...", "<p>not attempted yet</p>"),
        code("assert 'folded away'", tags=["hide-cell"]),
        code('exercises.hint("1.1")', folded("Hint", "The hint.")),
        code('exercises.solution("1.1")', folded("Solution", "The solution.")),
        v4.new_markdown_cell(MODEL),
        code(
            "wide",
            "<table><tr>" + 40 * "<td>a_wide_cell</td>" + "<td>last_cell</td>" + "</tr></table>",
        ),
        code("long = " + " + ".join(f"number_{i}" for i in range(30)) + "  # its_end"),
    ]
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    return v4.new_notebook(cells=cells, metadata=metadata)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The readers of the two PDFs, by their paper."""
    book = tmp_path_factory.mktemp("small")
    (book / "book" / "api").mkdir(parents=True)
    square = '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="90">'
    square += '<rect width="90" height="90"/></svg>'
    texts = {
        "_config.yml": CONFIG,
        "_toc.yml": CONTENTS,
        "book/start.md": START,
        "book/two.md": TWO,
        "book/api/reference.md": "# The reference\n\nNot for paper.\n",
        "book/references.md": "# References\n\n```{bibliography}\n```\n",
        "book/picture.svg": square,
        "small.bib": "@book{a, title={A title}, author={Writer, Anna}, publisher={P}, year=1999}",
    }
    for name, text in texts.items():
        (book / name).write_text(text)
    nbformat.write(first_chapter(), book / "book" / "one.ipynb")
    page = pdf.single_page(book, book / "out")
    made = pdf.print_all(page, book / "pdf", "small")
    return {paper: pypdf.PdfReader(path) for paper, path in zip(pdf.PAPERS, made, strict=True)}


papers = pytest.mark.parametrize("paper", ["a4", "letter"])


def texts(reader):
    return [re.sub(r"\s+", " ", page.extract_text()) for page in reader.pages]


def page_with(reader, text):
    """The only page, counted from one, that has `text`."""
    [page] = [number for number, found in enumerate(texts(reader), 1) if text in found]
    return page


def links(reader):
    """Each link as (page it is on, page it leads to or address)."""
    destinations = reader.named_destinations
    for number, page in enumerate(reader.pages, 1):
        for annotation in (a.get_object() for a in page.get("/Annots", [])):
            if "/Dest" in annotation:
                place = destinations[annotation["/Dest"]]
                yield number, reader.get_destination_page_number(place) + 1
            else:
                yield number, annotation["/A"]["/URI"]


def outline(entries, reader, level=0):
    for entry in entries:
        if isinstance(entry, list):
            yield from outline(entry, reader, level + 1)
        else:
            yield level, entry.title, reader.get_destination_page_number(entry) + 1


@pytest.mark.parametrize(
    ("paper", "millimetres"), [("a4", (210, 297)), ("letter", (215.9, 279.4))]
)
def test_the_paper_has_its_size(printed, paper, millimetres):
    for page in printed[paper].pages:
        size = [float(side) * 25.4 / 72 for side in (page.mediabox.width, page.mediabox.height)]
        assert size == pytest.approx(millimetres, abs=0.5)


@papers
def test_it_has_title_language_and_tags(printed, paper):
    reader = printed[paper]
    assert reader.metadata.title == "A small book"
    assert reader.root_object["/Lang"].startswith("en")
    assert reader.root_object["/MarkInfo"]["/Marked"]
    first = texts(reader)[0]
    for wanted in ("A small book", "With a subtitle", "Its author", "2026. A licence."):
        assert wanted in first


@papers
def test_no_page_is_empty_and_all_but_the_first_have_their_number(printed, paper):
    for number, page in enumerate(texts(printed[paper]), 1):
        assert len(page) > 20
        assert page.startswith(f"{number} ") == (number > 1)


@papers
def test_every_chapter_begins_a_page(printed, paper):
    reader = printed[paper]
    chapters = [entry for entry in reader.outline if not isinstance(entry, list)]
    assert [chapter.title for chapter in chapters] == [
        "The start",
        "1. The first chapter",
        "1.2. The second chapter",
        "References",
        "Hints and solutions",
    ]
    pages = [reader.get_destination_page_number(chapter) for chapter in chapters]
    assert pages == sorted({*pages})
    for chapter, page in zip(chapters, pages, strict=True):
        margin = float(reader.pages[page].mediabox.height - chapter.top) / 72 * 25.4
        assert margin < 30, chapter.title


@papers
def test_the_contents_have_the_numbers_of_the_pages(printed, paper):
    reader = printed[paper]
    contents = texts(reader)[page_with(reader, "Contents") - 1]
    for level, title, page in outline(reader.outline, reader):
        if level < 2:
            assert contents.count(f"{title} {page}") == 1, title


@papers
def test_every_link_leads_somewhere(printed, paper):
    reader = printed[paper]
    found = {*links(reader)}
    one, two = (page_with(reader, text) for text in ("Somewhere else", "It follows from"))
    start = page_with(reader, "The chapters are")
    assert {(start, one), (start, two), (two, one)} <= found
    assert (two, page_with(reader, "Anna Writer")) in found
    addresses = {target for _, target in found if isinstance(target, str)}
    assert "https://example.org/elsewhere" in addresses
    assert "https://someone.github.io/small/book/api/reference.html" in addresses
    assert all(address.startswith("https://") for address in addresses)


@papers
def test_one_name_on_two_pages_is_two_places(printed, paper):
    reader = printed[paper]
    one, two = (page_with(reader, text) for text in ("Somewhere else", "It follows from"))
    assert (one, one) in links(reader) and (two, two) in links(reader)


@papers
def test_solutions_come_after_the_chapters_and_are_linked_both_ways(printed, paper):
    reader = printed[paper]
    exercise = page_with(reader, "Write a sum.")
    for text in ("The hint.", "The solution.", "The model answer."):
        answer = page_with(reader, text)
        assert answer > page_with(reader, "It follows from")
    assert {(exercise, answer), (answer, exercise)} <= {*links(reader)}
    assert f"Hints and solution (page {answer})" in texts(reader)[exercise - 1]
    assert f"Back to the exercise (page {exercise})" in texts(reader)[answer - 1]


@papers
def test_numbers_are_there_and_what_is_folded_is_not(printed, paper):
    reader = printed[paper]
    whole = " ".join(texts(reader))
    assert "(1.1)" in whole and "Fig. 1.1" in whole
    for unwanted in (
        "folded away",
        "Not for paper",
        "exercises.solution",
        r"\frac",
        "Traceback",
        "{eq}",
    ):
        assert unwanted not in whole


@papers
def test_nothing_is_cut_at_the_margin(printed, paper):
    """A wide table becomes smaller, and a long line of code breaks."""
    seen = {}

    def see(text, page_matrix, text_matrix, font, size):
        x, y = text_matrix[4:]
        for word in ("last_cell", "its_end"):
            if word in text:
                seen[word] = page_matrix[0] * x + page_matrix[2] * y + page_matrix[4]

    for page in printed[paper].pages:
        page.extract_text(visitor_text=see)
    width = float(page.mediabox.width)
    assert seen.keys() == {"last_cell", "its_end"}
    assert all(0 < left < width - 56 for left in seen.values()), seen  # with the margin


@papers
def test_fonts_are_embedded(printed, paper):
    for page in printed[paper].pages:
        for font in page["/Resources"].get("/Font", {}).values():
            font = font.get_object()
            if font["/Subtype"] == "/Type3":
                assert font["/CharProcs"]  # its glyphs are drawings in the file
                continue
            [font] = font.get("/DescendantFonts", [font])
            held = font.get_object()["/FontDescriptor"].get_object().keys()
            assert held & {"/FontFile", "/FontFile2", "/FontFile3"}, font


def test_without_a_browser_it_says_so(tmp_path):
    environment = {**os.environ, "VAETUTOR_BROWSER": str(tmp_path / "none")}
    ran = subprocess.run(
        [sys.executable, "tools/pdf.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1 and "VAETUTOR_BROWSER" in ran.stderr
