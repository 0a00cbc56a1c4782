"""Each page of the chapters links a term of the glossary where its prose first uses it.

A ``{term}`` set by hand counts: only a term that has no link so far gets one. Capitals at the
start and plurals are the same term, and where terms overlap the longest wins. Headings, code,
mathematics, links, captions and tables are left alone.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docutils import nodes
from ledger import reference
from sphinx import addnodes
from sphinx.application import Sphinx

# Words that hold a term, or are one, and are left alone; by what they mean instead.
NOT_THE_TERM = {
    "Markov chain Monte Carlo": "draws that depend on one another",
    "rate": "of learning or of growth as often as a divergence, which is linked by hand",
}

SKIPPED = (
    nodes.title,
    nodes.rubric,
    nodes.caption,
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.raw,
    nodes.reference,
    addnodes.pending_xref,
    nodes.table,
)
SKIPPED_CLASSES = {"cell", "exercise-facts", "run-cost"}


def glossary(path: Path) -> list[str]:
    """Its terms, from the source, because the pages before it are read before it."""
    [body] = re.findall(r"(?ms)^```\{glossary\}$(.*?)^```$", path.read_text(encoding="utf-8"))
    return re.findall(r"(?m)^[^\s:].*$", body)


def spellings(term: str) -> str:
    """A pattern for `term`, its plural, and either with a capital."""
    first = f"[{term[0]}{term[0].upper()}]"
    rest = re.escape(term[1:]).replace(r"\ ", r"\s+").replace("'", "['’]")
    return first + (rest[:-1] + "(?:y|ies)" if rest.endswith("y") else rest + "(?:s|es)?")


def uses(terms: Iterable[str]) -> re.Pattern[str]:
    """One named group for each term, the longest first."""
    groups = [f"(?P<t{n}>{spellings(term)})" for n, term in enumerate(terms)]
    groups.sort(key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(groups)})(?![\w-])")


def is_prose(node: nodes.Node) -> bool:
    while node := node.parent:
        if isinstance(node, SKIPPED) or SKIPPED_CLASSES & {*node.get("classes", [])}:
            return False
    return True


def link_terms(doctree: nodes.document, terms: list[str], docname: str) -> None:
    """Link the first use of each of `terms` in the prose of `doctree`."""
    phrases = [*terms, *NOT_THE_TERM]
    pattern = uses(phrases)
    done = {phrase.lower() for phrase in NOT_THE_TERM}
    for node in list(doctree.findall()):
        if isinstance(node, addnodes.pending_xref) and node["reftype"] == "term":
            done.add(node["reftarget"].lower())
        elif isinstance(node, nodes.Text) and is_prose(node):
            made: list[nodes.Node] = []
            end = 0
            for use in pattern.finditer(node):
                term = phrases[int(use.lastgroup[1:])]
                if term.lower() not in done:
                    done.add(term.lower())
                    made.append(nodes.Text(node[end : use.start()]))
                    made.append(reference("term", term, docname, text=use[0]))
                    end = use.end()
            if made:
                node.parent.replace(node, [*made, nodes.Text(node[end:])])


def link_page(app: Sphinx, doctree: nodes.document) -> None:
    docname = app.env.docname
    if re.fullmatch(r"book/\d\d\w+", docname):
        path = Path(app.env.doc2path("book/glossary"))
        app.env.note_dependency(str(path))
        link_terms(doctree, glossary(path), docname)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", link_page)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
