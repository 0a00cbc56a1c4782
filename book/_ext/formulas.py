"""``{formulas}``: every labelled formula of the chapters by its names, which the search knows.

The names stand in ``formulas.yml``. The search shows one as an object of the book, as it does a
term of the glossary, with a link to the formula. The page with the directive lists the formulas by
chapter; it is read after all others. A formula without a name is a warning, hence a failed build,
and so is a name without a formula, or a name that stands for two.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from ledger import reference
from sphinx.application import Sphinx
from sphinx.domains import ObjType
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)


def names_file(env: BuildEnvironment) -> Path:
    return Path(env.srcdir, "book", "formulas.yml")


def names(env: BuildEnvironment) -> dict[str, list[str]]:
    """The names of each formula by its label."""
    return yaml.safe_load(names_file(env).read_text(encoding="utf-8"))


def labelled(doctree: nodes.document) -> Iterator[nodes.math_block]:
    """Numbered environments of LaTeX have a label too, a random one."""
    found = doctree.findall(nodes.math_block)
    return (node for node in found if node.get("label") and not node.get("nowrap"))


def problems(names: dict[str, list[str]], labels: set[str]) -> list[str]:
    """What `names` lacks or has too much, in words."""
    unnamed = {label for label in labels if not names.get(label)}
    found = [f"the formula {label} has no name" for label in sorted(unnamed)]
    return found + [f"there is no formula {label}" for label in sorted(names.keys() - labels)]


def note_names(app: Sphinx, doctree: nodes.document) -> None:
    """Make the names of a page's formulas known to the search."""
    nodes_here = list(labelled(doctree))
    if not nodes_here:
        return
    app.env.note_dependency(str(names_file(app.env)))
    named = names(app.env)
    for node in nodes_here:
        for name in named.get(node["label"], []):
            place = nodes.make_id(f"equation-{node['label']}")
            app.env.get_domain("std").note_object("formula", name, place, location=node)


def american(text: str) -> str:
    """As the literature writes it more often."""
    stems = "amorti|binari|factori|generali|marginali|normali|optimi|reparameteri|regulari|summari"
    return re.sub(rf"(?i)({stems})s", r"\1z", text)


def spell_both_ways(app: Sphinx, env: BuildEnvironment) -> None:
    """Let the search find a formula and a term of the glossary by its American spelling too."""
    objects = env.get_domain("std").objects
    for (kind, name), place in list(objects.items()):
        if kind in {"formula", "term"}:
            objects.setdefault((kind, american(name)), place)


class Formulas(SphinxDirective):
    """A section for each chapter, and in it the names, the place and the text of each formula."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(names_file(self.env)))
        self.names = names(self.env)
        pages = sorted({page for page, _ in self.env.get_domain("math").equations.values()})
        formulas = {page: [*labelled(self.env.get_doctree(page))] for page in pages}
        labels = {node["label"] for found in formulas.values() for node in found}
        for problem in problems(self.names, labels):
            logger.warning("book/formulas.yml: %s", problem, location=self.get_location())
        return [self.chapter(page, found) for page, found in formulas.items() if found]

    def chapter(self, page: str, formulas: list[nodes.math_block]) -> nodes.section:
        title = self.env.titles[page].astext()
        section = nodes.section("", nodes.title("", title), names=[title.lower()])
        section += nodes.definition_list("", *map(self.row, formulas), classes=["formulas"])
        self.state.document.note_implicit_target(section, section)
        return section

    def row(self, node: nodes.math_block) -> nodes.definition_list_item:
        link = reference("eq", node["label"], self.env.docname, domain="math")
        term = nodes.term("", "; ".join(self.names.get(node["label"], [])) + " ", link)
        formula = nodes.math_block("", node.astext(), nowrap=False, number=None)
        return nodes.definition_list_item("", term, nodes.definition("", formula))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("formulas", Formulas)
    # In front of what only mentions the words.
    app.registry.domain_object_types.setdefault("std", {})["formula"] = ObjType(
        "formula", "formula", searchprio=0
    )
    app.connect("doctree-read", note_names)
    app.connect("env-updated", spell_both_ways)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
