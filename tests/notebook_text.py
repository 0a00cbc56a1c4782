"""What of a notebook's text a reader cannot use where the book is not beside it."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin

BOOK = Path(__file__).parents[1] / "book"
MARKDOWN = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin)

Cell = dict[str, Any]


class Addresses(HTMLParser):
    """The images and links of a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {"img": (self.images, "src"), "a": (self.links, "href")}.get(tag)
        if found:
            addresses, name = found
            addresses += [value or "" for key, value in attrs if key == name]


def source(cell: Cell) -> str:
    return "".join(cell["source"])


def tokens(text: str) -> Iterator[Token]:
    for token in MARKDOWN.parse(text):
        yield token
        yield from token.children or []


def raw_myst(text: str) -> Iterator[str]:
    """Directives, roles and targets: outside code and mathematics, where braces are harmless."""
    before = ""
    for token in tokens(text):
        if token.type == "fence" and token.info.startswith("{"):
            yield token.info
        if token.type == "code_inline" and (role := re.search(r"\{[^{}\s]+\}$", before)):
            yield role[0]
        before = token.content if token.type == "text" else ""
        yield from re.findall(r"^\s*:::+.*|^\([^()\s]+\)=$", before)


def html(cell: Cell) -> str:
    """All HTML that the cell holds or has put out."""
    outputs = (output.get("data", {}) for output in cell.get("outputs", []))
    shown = ["".join(data.get("text/html", "")) for data in outputs]
    if cell["cell_type"] == "markdown":
        shown += [t.content for t in tokens(source(cell)) if t.type.startswith("html_")]
    return "\n".join(shown)


def addresses(cell: Cell) -> tuple[list[str], list[str]]:
    """The images and the links that the cell shows."""
    found = Addresses(html(cell))
    if cell["cell_type"] == "markdown":
        for token in tokens(source(cell)):
            if token.type == "image":
                found.images.append(str(token.attrs["src"]))
            if token.type == "link_open":
                found.links.append(str(token.attrs["href"]))
    return found.images, found.links


def is_there(image: str, cell: Cell, base: str) -> bool:
    """Whether the image is in the notebook, or made from a file of the book."""
    if image.startswith("attachment:"):
        return unquote(image.removeprefix("attachment:")) in cell.get("attachments", {})
    if image.startswith(base):
        name = Path(unquote(urlsplit(image).path)).name
        return bool(name) and any(path.name == name for path in BOOK.rglob("*.*"))
    return image.startswith("data:image/")


def faults(notebook: dict[str, Any], base: str) -> list[str]:
    """What is wrong with the text of `notebook`, of a book that is published at `base`."""
    found: list[str] = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            found += [f"raw MyST: {text}" for text in raw_myst(source(cell))]
        images, links = addresses(cell)
        found += [f"broken image: {i[:80]}" for i in images if not is_there(i, cell, base)]
        absolute = {"http", "https", "mailto"}
        found += [f"relative link: {x}" for x in links if urlsplit(x).scheme not in absolute]
    return found
