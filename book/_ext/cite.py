"""At the end of each page: how to cite it, and where to report or correct an error on it.

Authors, title and version of the book come from ``CITATION.cff``, the year from the copyright of
``_config.yml``, and the addresses from the repository's. ``_templates/cite.html`` shows them.
"""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from vaebook import ROOT, repository


def full_name(author: dict[str, str]) -> str:
    """Of a person or, with only a `name`, of a group."""
    return author.get("name") or f"{author['given-names']} {author['family-names']}"


def tex(text: str) -> str:
    return re.sub(r"([&%#_])", r"\\\1", text)


def bibtex(key: str, kind: str, fields: dict[str, str]) -> str:
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}}}"


def references(
    citation: dict[str, Any], year: str, page: str, title: str | None, address: str
) -> dict[str, str]:
    """A page as a line of text and in BibTeX; without a `title`, the book as a whole."""
    authors = citation["authors"]
    names = ", ".join(map(full_name, authors))
    book = f"{citation['title']} (version {citation['version']})"
    within = f"{title}. In: {book}" if title else book
    grouped = [f"{{{full_name(a)}}}" if "name" in a else full_name(a) for a in authors]
    fields = {"author": tex(" and ".join(grouped))}
    if title:
        fields |= {"title": tex(title), "booktitle": tex(citation["title"])}
    else:
        fields |= {"title": tex(citation["title"])}
    fields |= {"year": year, "note": f"Version {citation['version']}", "url": address}
    key = f"vaetutor-{page.removeprefix('book/').replace('/', '-')}"
    return {
        "plain": f"{names} ({year}). {within}. {address}",
        "bibtex": bibtex(key, "incollection" if title else "book", fields),
    }


def offer_citation(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    # The search page and the index have no text to cite, and paper has no foot.
    if doctree is None or app.env is None or app.builder.name == "singlehtml":
        return
    citation = yaml.safe_load(Path(ROOT, "CITATION.cff").read_text(encoding="utf-8"))
    title = app.env.titles[page].astext()
    part = None if page == app.config.root_doc else title
    address = context["pageurl"]
    context["citation"] = references(citation, app.config.copyright, page, part, address)
    body = f"Page: {address}\nVersion: {citation['version']}\n\nWhat is wrong, and where:\n"
    query = urlencode({"title": f"Error on the page “{title}”", "body": body})
    context["report_url"] = f"{repository(app.config)[0]}/issues/new?{query}"


def show_below_the_text(app: Sphinx, config: Config) -> None:
    config.html_theme_options["article_footer_items"] = ["cite.html"]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", show_below_the_text)
    app.connect("html-page-context", offer_citation)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
