"""``{exercise-facts}`` and ``{exercise-list}``: what the package's register knows of exercises.

``{exercise-facts} 3.2`` stands below the heading of a prompt and says how hard the exercise is,
how long it takes and where it comes from. ``{exercise-list}`` is the table of all of them. An
exercise whose heading is missing from its page, or differs from the register, is a warning, hence
a failed build; so is one without its check, hint and solution.
"""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from ledger import reference
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from vaetutor.exercises import Exercise
from vaetutor.exercises._declare import REGISTER, ordered

logger = logging.getLogger(__name__)


def label(exercise: Exercise) -> str:
    return "ex-" + exercise.id.replace(".", "-")


def problems(exercise: Exercise, text: str) -> list[str]:
    """What the source of its page lacks."""
    wanted = {
        f"({label(exercise)})=": "the label",
        f"### Exercise {exercise.id}: {exercise.title}": "the heading",
        f"```{{exercise-facts}} {exercise.id}": "the facts",
    }
    lines = text.splitlines()
    found = [what for line, what in wanted.items() if lines.count(line) != 1]
    for call in ("check", "hint", "solution"):
        if not re.search(rf'^exercises\.{call}\("{re.escape(exercise.id)}"', text, re.MULTILINE):
            found.append(f"the {call}")
    return found


def origin(exercise: Exercise) -> str:
    if not exercise.origin:
        return ""
    return f"It answers a question of the text that this book grew from: {exercise.origin}."


class Facts(SphinxDirective):
    """One paragraph below the heading of an exercise."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        exercise = REGISTER.get(self.arguments[0])
        if exercise is None:
            raise self.error(f"there is no exercise {self.arguments[0]}")
        unit = "minute" if exercise.minutes == 1 else "minutes"
        text = f"{exercise.difficulty.title()}, about {exercise.minutes} {unit}."
        text = " ".join([text, origin(exercise)]).strip()
        return [nodes.paragraph("", text, classes=["exercise-facts"])]


class List(SphinxDirective):
    """The table of all exercises; it also looks whether the pages hold them."""

    def run(self) -> list[nodes.Node]:
        rows = []
        for exercise in ordered():
            path = Path(self.env.srcdir, "book", f"{exercise.page}.md")
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            self.env.note_dependency(str(path))
            for problem in problems(exercise, text):
                logger.warning(
                    "exercise %s: %s is missing in %s",
                    exercise.id,
                    problem,
                    path.name,
                    location=self.get_location(),
                )
            link = reference("ref", label(exercise), self.env.docname)
            where = reference("doc", f"/book/{exercise.page}", self.env.docname)
            cells = [
                [nodes.paragraph("", "", link)],
                [nodes.paragraph("", "", where)],
                [nodes.paragraph("", exercise.difficulty)],
                [nodes.paragraph("", str(exercise.minutes))],
                [nodes.paragraph("", exercise.origin)],
            ]
            rows.append(nodes.row("", *(nodes.entry("", *cell) for cell in cells)))
        heads = ["exercise", "page", "difficulty", "minutes", "origin"]
        head = nodes.row("", *(nodes.entry("", nodes.paragraph("", text)) for text in heads))
        group = nodes.tgroup("", cols=5)
        group += [nodes.colspec(colwidth=width) for width in (36, 26, 10, 8, 20)]
        group += [nodes.thead("", head), nodes.tbody("", *rows)]
        return [nodes.table("", group, classes=["colwidths-given"])]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("exercise-facts", Facts)
    app.add_directive("exercise-list", List)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
