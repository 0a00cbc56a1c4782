"""A resolved Sphinx page as plain Markdown, for places that know no directive.

``Markdown(...).flow(doctree)`` gives blocks of Markdown and, in their place among them, the code
cells of the page. Numbers, citations and cross-references are the book's own; links are absolute.
A node that has no method here is a warning, so that nothing is lost silently.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urljoin

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.locale import admonitionlabels
from sphinx.util import logging

# What a notebook leaves out: a container of that class, a code cell with that tag.
BOOK_ONLY = {"book-only", "tag_book-only"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """A code cell, by its index in the page's notebook."""

    index: int


Flow = Iterator[str | Cell]


def quote(text: str) -> str:
    return re.sub(r"(?m)^", "> ", text).replace("> \n", ">\n")


def indent(text: str, width: int) -> str:
    return re.sub(r"\n(?!\n)", "\n" + " " * width, text)


def escape(text: str) -> str:
    """Plain text whose characters Markdown must not read as markup."""
    text = re.sub(r"([\\`*\[\]<$])", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


class Markdown:
    """Translates one page. Methods are named after node classes: ``block_*`` and ``inline_*``."""

    def __init__(self, app: Sphinx, docname: str, address: str) -> None:
        assert app.env is not None
        self.app, self.address = app, address
        self.sections = app.env.toc_secnumbers.get(docname, {})
        self.images = app.env.images
        self.figures = app.env.toc_fignumbers.get(docname, {})
        self.level = 0
        self.nested = 0  # inside a quote or a list, where mathematics has to stay on one line

    # Dispatch

    def _method(self, kind: str, node: nodes.Node) -> Callable:
        for cls in type(node).__mro__:
            if method := getattr(self, f"{kind}_{cls.__name__}", None):
                return method
        logger.warning(
            "no Markdown for a %s node: add it to book/_ext/to_markdown.py",
            type(node).__name__,
            location=node,
        )
        return lambda node: iter(())

    def flow(self, node: nodes.Element) -> Flow:
        """The block-level children of `node`, one after the other."""
        for child in node.children:
            if isinstance(child, nodes.Element) and BOOK_ONLY & {*child.get("classes", [])}:
                continue
            if isinstance(child, nodes.Inline | nodes.Text):
                if text := self.inline(child).strip():
                    yield text
            else:
                yield from self._method("block", child)(child)

    def text(self, node: nodes.Element) -> str:
        """The inline children of `node`."""
        return "".join(self.inline(child) for child in node.children)

    def inline(self, node: nodes.Node) -> str:
        return "".join(self._method("inline", node)(node))

    def number(self, kind: str, node: nodes.Element) -> str:
        found = self.figures.get(kind, {})
        return next((".".join(map(str, found[i])) for i in node["ids"] if i in found), "")

    # Blocks

    def block_section(self, node: nodes.section) -> Flow:
        self.level += 1
        yield from self.flow(node)
        self.level -= 1

    def block_title(self, node: nodes.title) -> Flow:
        section = node.parent["ids"][0] if node.parent.get("ids") else ""
        number = self.sections.get("#" + section) or (
            self.sections.get("") if self.level == 1 else None
        )
        prefix = ".".join(map(str, number)) + ". " if number else ""
        yield f"{'#' * self.level} {prefix}{self.text(node)}"

    def block_paragraph(self, node: nodes.paragraph) -> Flow:
        text = re.sub(r"(?m)^(\s*)([#>+-])(?=\s)", r"\1\\\2", self.text(node).strip())
        yield re.sub(r"(?m)^(\s*\d+)([.)])(?=\s)", r"\1\\\2", text)

    def block_rubric(self, node: nodes.rubric) -> Flow:
        yield f"**{self.text(node)}**"

    def block_container(self, node: nodes.container) -> Flow:
        if node.get("nb_element") != "cell_code":
            yield from self.flow(node)
            return
        yield Cell(node["cell_index"])
        for caption in node.findall(nodes.caption):
            yield from self.block_caption(caption)

    def block_figure(self, node: nodes.figure) -> Flow:
        yield from self.flow(node)

    def block_caption(self, node: nodes.caption) -> Flow:
        number = self.number("figure", node.parent)
        label = self.app.config.numfig_format["figure"] % number if number else ""
        yield f"**{label}** {self.text(node)}" if label else self.text(node)

    def block_legend(self, node: nodes.legend) -> Flow:
        yield from self.flow(node)

    block_compound = block_proof_node = block_legend

    def block_image(self, node: nodes.image) -> Flow:
        yield self.inline(node)

    def block_math_block(self, node: nodes.math_block) -> Flow:
        text = node.astext().strip()
        if node.get("nowrap"):  # an environment that Jupyter wants inside the dollars
            text = re.sub(r"\\(begin|end)\{(align|gather)\*?\}", r"\\\1{\2ed}", text)
            text = re.sub(r"\\(begin|end)\{equation\*?\}", "", text).strip()
        else:  # as Sphinx wraps it for the page
            parts = [part.strip() for part in text.split("\n\n") if part.strip()]
            parts = [rf"\begin{{split}}{p}\end{{split}}" if r"\\" in p else p for p in parts]
            text = "\n".join(parts)
            if len(parts) > 1:
                text = r"\begin{aligned}" + " \\\\\n".join(parts) + r"\end{aligned}"
        number = self.number("displaymath", node) or node.get("number") or ""
        tag = rf" \tag{{{number}}}" if number else ""
        if self.nested:
            line = re.sub(r"\s*\n\s*", " ", text)
            yield f"$${line}{tag}$$"
        else:
            yield f"$$\n{text}{tag}\n$$"

    def block_literal_block(self, node: nodes.literal_block) -> Flow:
        code = node.astext().rstrip("\n")
        fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`{3,}", code))])
        language = node.get("language", "")
        yield f"{fence}{'' if language in ('default', 'none') else language}\n{code}\n{fence}"

    def block_doctest_block(self, node: nodes.doctest_block) -> Flow:
        yield f"```python\n{node.astext()}\n```"

    def block_block_quote(self, node: nodes.block_quote) -> Flow:
        yield quote(self._joined(node))

    def block_attribution(self, node: nodes.attribution) -> Flow:
        yield "— " + self.text(node)

    def block_transition(self, node: nodes.transition) -> Flow:
        yield "---"

    def _nothing(self, node: nodes.Node) -> Flow:
        yield from ()

    block_comment = block_target = block_index = block_pending = _nothing
    block_substitution_definition = block_system_message = _nothing

    def _joined(self, node: nodes.Element, separator: str = "\n\n") -> str:
        """All of `node` in one string; only for what can hold no code cell."""
        self.nested += 1
        text = separator.join(block for block in self.flow(node) if isinstance(block, str))
        self.nested -= 1
        return text

    def _item(self, node: nodes.Element) -> str:
        """An item of a list, which stays tight before a list inside it."""
        return re.sub(r"\A(.+)\n\n(?=- |\d+\. )", r"\1\n", self._joined(node))

    def block_bullet_list(self, node: nodes.bullet_list) -> Flow:
        yield "\n".join("- " + indent(self._item(item), 2) for item in node.children)

    def block_enumerated_list(self, node: nodes.enumerated_list) -> Flow:
        start = node.get("start", 1)
        marks = [f"{start + i}. " for i in range(len(node.children))]
        yield "\n".join(
            mark + indent(self._item(item), len(mark))
            for mark, item in zip(marks, node.children, strict=True)
        )

    def block_definition_list(self, node: nodes.definition_list) -> Flow:
        lines = []
        for item in node.findall(nodes.definition_list_item):
            terms = ", ".join(self.text(t) for t in item.children if isinstance(t, nodes.term))
            body = [self._joined(d) for d in item.children if isinstance(d, nodes.definition)]
            lines.append(f"- **{terms}**: " + indent("\n\n".join(body), 2))
        yield "\n".join(lines)

    def block_glossary(self, node: nodes.Element) -> Flow:
        yield from self.flow(node)

    def block_table(self, node: nodes.table) -> Flow:
        rows = [[self._entry(entry) for entry in row.children] for row in node.findall(nodes.row)]
        has_head = next(node.findall(nodes.thead), None) is not None
        head, *body = rows if has_head else [[""] * len(rows[0]), *rows]
        if title := next(node.findall(nodes.title), None):
            number = self.number("table", node)
            label = f"**{self.app.config.numfig_format['table'] % number}** " if number else ""
            yield label + self.text(title)
        sides = {"text-left": ":---", "text-center": ":---:", "text-right": "---:"}
        entries = next(node.findall(nodes.row)).children
        rule = [next((sides[c] for c in e["classes"] if c in sides), "---") for e in entries]
        lines = [head, rule, *body]
        yield "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def _entry(self, node: nodes.Element) -> str:
        """One cell of a table: on one line, with no bar that would end it."""
        text = re.sub(
            r"\$[^$]+\$",
            lambda m: m[0].replace(r"\|", r"\Vert ").replace("|", r"\vert "),
            self._joined(node, "<br>").replace("\n", " "),
        )
        return re.sub(r"(?<!\\)\|", r"\\|", text)

    def block_footnote(self, node: nodes.footnote) -> Flow:
        label = next(node.findall(nodes.label)).astext()
        node = node.deepcopy()
        node.remove(next(node.findall(nodes.label)))
        yield f"<sup>{label}</sup> {self._joined(node)}"

    block_citation = block_footnote

    # Boxes

    def block_Admonition(self, node: nodes.Element) -> Flow:
        """A quote with a bold title; folded where the page folds it."""
        children = list(node.children)
        title = admonitionlabels.get(node.tagname, "")
        if children and isinstance(children[0], nodes.title):
            title = self._box_title(node, children.pop(0))
        folded = bool({"dropdown", "toggle"} & set(node["classes"]))
        body = nodes.container("", *[child.deepcopy() for child in children])
        if folded:
            yield self._details(title, self._joined(body))
        else:
            head = f"**{title}**\n\n" if title else ""
            yield quote(head + self._joined(body))

    @staticmethod
    def _details(title: str, text: str) -> str:
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)  # Markdown is not read in it
        return f"<details><summary><b>{title}</b></summary>\n\n{text}\n\n</details>"

    def block_dropdown_main(self, node: nodes.Element) -> Flow:
        head, *rest = node.children
        body = nodes.container("", *[child.deepcopy() for child in rest])
        yield self._details(self.text(head).strip(), self._joined(body))

    def _box_title(self, node: nodes.Element, title: nodes.title) -> str:
        text = re.sub(r"\[ ", " [", self.text(title)).strip()
        number = self.number(node.get("countertype", ""), node)
        name = node.get("realtype", "").title()
        return " ".join(part for part in (name, number, text) if part)

    def block_topic(self, node: nodes.topic) -> Flow:
        yield from self.block_Admonition(node)

    block_sidebar = block_topic

    # Inline

    def inline_Text(self, node: nodes.Text) -> str:
        return escape(str(node))

    def inline_inline(self, node: nodes.Element) -> str:
        return self.text(node)

    inline_target = inline_abbreviation = inline_problematic = inline_generated = inline_inline

    def inline_emphasis(self, node: nodes.emphasis) -> str:
        return f"*{self.text(node)}*"

    inline_title_reference = inline_emphasis

    def inline_strong(self, node: nodes.strong) -> str:
        return f"**{self.text(node)}**"

    def inline_superscript(self, node: nodes.superscript) -> str:
        return f"<sup>{self.text(node)}</sup>"

    def inline_subscript(self, node: nodes.subscript) -> str:
        return f"<sub>{self.text(node)}</sub>"

    def inline_literal(self, node: nodes.literal) -> str:
        text = node.astext()
        return f"`` {text} ``" if "`" in text else f"`{text}`"

    def inline_math(self, node: nodes.math) -> str:
        return f"${node.astext().strip()}$"

    def inline_reference(self, node: nodes.reference) -> str:
        uri = node.get("refuri") or "#" + node.get("refid", "")
        return f"[{self.text(node)}]({urljoin(self.address, uri)})"

    inline_download_reference = inline_reference

    def inline_footnote_reference(self, node: nodes.footnote_reference) -> str:
        return f"<sup>{node.astext()}</sup>"

    def inline_image(self, node: nodes.image) -> str:
        _, name = self.images[node["uri"]]
        address = urljoin(self.app.config.html_baseurl, f"_images/{name}")
        return f"![{escape(node.get('alt', ''))}]({address})"

    def inline_raw(self, node: nodes.raw) -> str:
        """HTML passes, but for the scripts that extensions put on every page."""
        html, text = "html" in node.get("format", "").split(), node.astext()
        return text if html and not text.lstrip().startswith("<script") else ""
