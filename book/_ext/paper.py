"""The book as one page for print: what the builder ``singlehtml`` makes of it.

The pages come one after another, below a title page and the contents. Names that several pages
give to different things are told apart, and every link leads to its place on the one page. What a
page folds is left out, but for hints, solutions and model answers: they come at the end. The
reference of the package stays online. ``tools/pdf.py`` prints the result.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from html import escape
from typing import Any
from urllib.parse import urljoin

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx import addnodes
from sphinx.application import Sphinx
from vaebook import repository

ONLINE = "book/api/"  # pages that start so are not printed
ANSWER = re.compile(r'exercises\.(?:hint|solution)\("')

FRONT = """\
<section class="paper-title">
<p class="paper-name">{title}</p>
<p class="paper-subtitle">{subtitle}</p>
<img src="_static/vaetutor.svg" alt="From an input through a network to a Gaussian density.">
<p>{author}</p>
<p>{copyright}. {licence}</p>
</section>
<section class="paper-about">
<p class="paper-head">About this PDF</p>
<p>It is printed from the pages of the book at <a href="{base}">{base}</a>,
and has their text, code and results.</p>
<p>Some things are not in it:</p>
<ul>
<li>Cells that the pages fold. They hold the assertions behind the text,
and code that only draws a figure.</li>
<li>The reference of the package. Links to it lead to the pages online.</li>
<li>What moves. A live figure shows one still picture.</li>
</ul>
<p>Hints, solutions and model answers of the exercises come
<a class="page-of" href="#solutions">at the end</a>, and each exercise links to its own.</p>
<p>The code runs in the notebooks, which are in the repository:
<a href="{repository}">{repository}</a>.</p>
</section>
"""


def section_of(node: nodes.Node) -> nodes.section:
    while not isinstance(node, nodes.section):
        node = node.parent
    return node


def top_sections(node: nodes.Element) -> list[nodes.section]:
    return [child for child in node.children if isinstance(child, nodes.section)]


def link(section: nodes.section, *content: nodes.Node) -> nodes.reference:
    """To `section`; the printer adds the number of its page."""
    attributes = {"refid": section["ids"][0], "internal": True, "classes": ["page-of"]}
    return nodes.reference("", "", *content, **attributes)


class Paper:
    """Rearranges the assembled tree of the book."""

    def __init__(self, app: Sphinx, book: nodes.document) -> None:
        assert app.env is not None
        self.app, self.env, self.book = app, app.env, book
        for element in book.findall(nodes.Element):
            for child in element.children:  # who assembled the tree did not always say so
                child.parent = element
        starts = list(book.findall(addnodes.start_of_file))
        for start in starts:  # they lie one inside the other
            start.parent.remove(start)
        self.pages: dict[str, nodes.Element] = {app.config.root_doc: book}
        for start in starts:
            if not start["docname"].startswith(ONLINE):
                self.pages[start["docname"]] = start

    def arrange(self) -> None:
        self.tell_names_apart()
        self.lead_links()
        self.leave_out()
        solutions = self.solutions()
        front = [nodes.raw("", self.front(), format="html"), self.contents(solutions)]
        self.book.extend(page for page in self.pages.values() if page is not self.book)
        if solutions:
            self.book.append(solutions)
        self.book.insert(0, front)
        for box in self.book.findall(nodes.Admonition):  # unfolds it
            box["classes"] = [name for name in box["classes"] if name != "dropdown"]

    # Names and links

    def elements(self) -> Iterator[tuple[str, nodes.Element]]:
        for docname, page in self.pages.items():
            for element in page.findall(nodes.Element):
                yield docname, element

    def tell_names_apart(self) -> None:
        count = Counter(name for _, e in self.elements() for name in e.get("ids", []))
        self.renamed: dict[tuple[str, str], str] = {}
        for docname, element in self.elements():
            for name in element.get("ids", []):
                if count[name] > 1:
                    self.renamed[docname, name] = f"{docname.replace('/', '-')}-{name}"
        for docname, element in self.elements():
            for key in ("ids", "backrefs"):
                if element.get(key):
                    element[key] = [self.name(docname, name) for name in element[key]]
            if element.get("refid"):
                element["refid"] = self.name(docname, element["refid"])
        for (docname, old), new in self.renamed.items():
            sections = self.env.toc_secnumbers.get(docname, {})
            for numbers, mark in [
                (sections, "#"),
                *((figures, "") for figures in self.env.toc_fignumbers.get(docname, {}).values()),
            ]:
                if mark + old in numbers:
                    numbers[mark + new] = numbers[mark + old]

    def name(self, docname: str, name: str) -> str:
        return self.renamed.get((docname, name), name)

    def address(self, docname: str, name: str) -> str:
        if docname not in self.pages:
            return urljoin(self.app.config.html_baseurl, f"{docname}.html#{name}".rstrip("#"))
        if name:
            return "#" + self.name(docname, name)
        return "#" + top_sections(self.pages[docname])[0]["ids"][0]

    def lead_links(self) -> None:
        for docname, element in self.elements():
            if found := re.match(r"#document-([^#]+)#?(.*)", element.get("refuri", "")):
                element["refuri"] = self.address(*found.groups())
            if isinstance(element, nodes.raw):
                self.lead_raw(docname, element)

    def lead_raw(self, docname: str, raw: nodes.raw) -> None:
        """Links between pages that a page writes in HTML, as the map of the concepts does."""

        def lead(found: re.Match[str]) -> str:
            page = posixpath.join(posixpath.dirname(docname), found[1])
            known = page in self.env.all_docs
            return f'href="{self.address(page, found[2])}"' if known else found[0]

        html = re.sub(r'href="([\w./-]+)\.html#?([\w-]*)"', lead, raw.astext())
        raw.children = [nodes.Text(html)]

    # What a page folds

    def leave_out(self) -> None:
        for _, element in list(self.elements()):
            if isinstance(element, HideCodeCellNode):
                element.parent.remove(element)

    def solutions(self) -> nodes.section | None:
        """The appendix, with what it needs taken out of the pages."""
        appendix = self.section("solutions", nodes.Text("Hints and solutions"))
        for docname, page in self.pages.items():
            answers: dict[nodes.section, list[nodes.Element]] = {}
            for cell in page.findall(nodes.container):
                if cell.get("nb_element") == "cell_code" and ANSWER.match(cell.astext()):
                    answers.setdefault(section_of(cell), []).append(cell)
            if not answers:
                continue
            title = self.numbered(docname, "", top_sections(page)[0])
            chapter = self.section(f"solutions-{docname.replace('/', '-')}", *title)
            chapter += [self.solution(*exercise) for exercise in answers.items()]
            appendix += chapter
        return appendix if len(appendix) > 1 else None

    def solution(self, exercise: nodes.section, cells: list[nodes.Element]) -> nodes.section:
        answers = [
            box for box in exercise.findall(nodes.admonition) if "dropdown" in box["classes"]
        ]
        made = self.section(f"solution-{exercise['ids'][0]}", *self.heading(exercise))
        back = link(exercise, nodes.Text("Back to the exercise"))
        made += nodes.paragraph("", "", back, classes=["paper-back"])
        there = nodes.paragraph("", "", link(made, nodes.Text("Hints and solution")))
        cells[0].parent.replace(cells[0], there)
        for moved in [*cells[1:], *answers]:
            moved.parent.remove(moved)
        made += [output for cell in cells for output in cell.children[1:]]  # without the call
        made += answers
        return made

    # The front

    def section(self, name: str, *title: nodes.Node) -> nodes.section:
        return nodes.section("", nodes.title("", "", *title), ids=[name])

    def heading(self, section: nodes.section) -> list[nodes.Node]:
        title = next(section.findall(nodes.title))
        return [child.deepcopy() for child in title.children]

    def numbered(self, docname: str, anchor: str, section: nodes.section) -> list[nodes.Node]:
        number = self.env.toc_secnumbers.get(docname, {}).get(anchor)
        start = [nodes.Text(".".join(map(str, number)) + ". ")] if number else []
        return [*start, *self.heading(section)]

    def front(self) -> str:
        config = self.app.config
        facts = {
            "title": config.html_title,
            "subtitle": config.paper_subtitle,
            "author": config.author,
            "copyright": config.copyright,
            "licence": config.html_theme_options.get("extra_footer", ""),
            "base": config.html_baseurl,
            "repository": repository(config)[0],
        }
        return FRONT.format(**{key: escape(value) for key, value in facts.items()})

    def contents(self, solutions: nodes.section | None) -> nodes.container:
        made = nodes.container(classes=["paper-contents"])
        made += nodes.paragraph("", "Contents", classes=["paper-head"])

        def line(level: int, section: nodes.section, title: list[nodes.Node]) -> None:
            paragraph = nodes.paragraph("", "", link(section, *title), classes=[f"level-{level}"])
            made.append(paragraph)

        for docname, page in self.pages.items():
            for top in top_sections(page):
                line(1, top, self.numbered(docname, "", top))
                for section in top_sections(top):
                    line(2, section, self.numbered(docname, "#" + section["ids"][0], section))
        if solutions:
            line(1, solutions, self.heading(solutions))
            for chapter in top_sections(solutions):
                line(2, chapter, self.heading(chapter))
        return made


def arrange(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    if app.builder.name == "singlehtml":
        Paper(app, doctree).arrange()


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("paper_subtitle", "", "html")
    app.connect("doctree-resolved", arrange)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
