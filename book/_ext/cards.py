"""``{chapter-cards}``: one card for each page that opens with what a reader will be able to do.

A card is made of what the page itself says: its title, what it needs, its measured cost, its
exercises and its notebook. Nothing of it is written twice.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colab import colab_address, is_notebook
from docutils import nodes
from ledger import reference
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective
from vaebook import COSTS

from vaetutor.exercises._declare import ordered

GOALS = "What you will be able to do"


class ChapterCards(nodes.General, nodes.Element):
    """Where the cards go, until all pages have been read."""


class Directive(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        for path in [COSTS, *Path(self.env.srcdir, "book").glob("0*.md")]:
            self.env.note_dependency(str(path))
        return [ChapterCards()]


def in_order(env: BuildEnvironment, page: str) -> Iterator[str]:
    """`page` and all below it in the contents."""
    yield page
    for below in env.toctree_includes.get(page, []):
        yield from in_order(env, below)


def needs(doctree: nodes.document) -> list[nodes.paragraph]:
    """What a page asks of its reader, after the list of goals; empty for a page without goals."""
    for box in doctree.findall(nodes.Admonition):
        if box.children and box.children[0].astext() == GOALS:
            return [child.deepcopy() for child in box if isinstance(child, nodes.paragraph)]
    return []


class FillCards(SphinxPostTransform):
    """Before references are resolved, since a card has those of its page."""

    default_priority = 5

    def run(self, **kwargs: object) -> None:
        for place in list(self.document.findall(ChapterCards)):
            cards = nodes.bullet_list("", classes=["chapter-cards"])
            for page in in_order(self.env, self.config.root_doc):
                if wanted := needs(self.env.get_doctree(page)):
                    cards += nodes.list_item("", self.title(page), *wanted, self.facts(page))
            place.replace_self(cards)

    def title(self, page: str) -> nodes.paragraph:
        return nodes.paragraph("", "", nodes.strong("", "", reference("doc", f"/{page}", page)))

    def facts(self, page: str) -> nodes.paragraph:
        name = Path(page).name
        cost = json.loads(COSTS.read_text()).get(name)
        exercises = sum(exercise.page == name for exercise in ordered())
        said = [f"Runs in {cost['seconds']} s on {cost['cores']} CPU cores"] if cost else []
        if exercises:
            said.append("1 exercise" if exercises == 1 else f"{exercises} exercises")
        text = nodes.paragraph("", ", ".join(said) + ".", classes=["card-facts"])
        if is_notebook(self.app, page):
            address = colab_address(self.app, page)
            label = f"Open “{self.env.titles[page].astext()}” in Colab"
            text += [nodes.Text(" "), nodes.reference("", label, refuri=address)]
        return text


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_node(ChapterCards)
    app.add_directive("chapter-cards", Directive)
    app.add_post_transform(FillCards)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
