"""``{ledger}``: the table of claims, from what the pages recorded when they were executed.

The claims stand in a file beside the page, ``claims.yml`` for ``claims.md``. The results are the
outputs of ``vaetutor.ledger.record`` in the executed pages, taken from the execution cache; so the
page with the table is read after all others, and again whenever one of them changes. A claim
without a result is a warning, hence a failed build, and so is a result without a claim. On its own
page a result is a sentence that links to the row of its claim, which has the label ``claim-1``.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from colab import executed, is_notebook
from docutils import nodes
from docutils.statemachine import StringList
from myst_nb.core.render import MimeData, NbElementRenderer
from nbformat import NotebookNode
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

MIME = "application/vnd.vaetutor.claim+json"  # as in vaetutor.ledger
VERDICTS = ("holds", "holds with a condition", "fails here")
KEYS = {"id", "section", "claim", "can_fail"}

Claim = dict[str, str]
Result = dict[str, Any]

logger = logging.getLogger(__name__)


def results_of(notebook: NotebookNode, docname: str) -> Iterator[Result]:
    """What a page recorded, in order, each with the label of the section that it stands in."""
    label = None
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"(?ms)^(```+|:::+).*?^\1$", "", cell.source)
            labels = re.findall(r"(?m)^\(([\w-]+)\)=\s*\n+#+ ", prose)
            label = labels[-1] if labels else label
        for output in cell.get("outputs", []):
            if data := output.get("data", {}).get(MIME):
                yield {**data, "page": docname, "label": label}


def problems(claims: list[Claim], results: list[Result]) -> list[str]:
    """What is wrong with the ledger, in words; nothing if it is complete."""
    found = [
        f"claim {claim.get('id', '?')} lacks {', '.join(sorted(KEYS - claim.keys()))}"
        for claim in claims
        if KEYS - claim.keys()
    ]
    count = Counter(claim.get("id", "?") for claim in claims)
    found += [f"there are {n} claims with the id {i}" for i, n in count.items() if n > 1]
    tested = {result["claim"] for result in results}
    found += [
        f"claim {i} has no result: no page records one by vaetutor.ledger.record"
        for i in count
        if i not in tested
    ]
    found += [
        f"{result['page']} records a result for claim {result['claim']}, which there is not"
        for result in results
        if result["claim"] not in count
    ]
    return found


def overall(results: Iterable[Result]) -> str:
    """The verdict that all results share; if they differ, there is a condition."""
    verdicts = {result["verdict"] for result in results}
    return verdicts.pop() if len(verdicts) == 1 else "holds with a condition"


def reference(
    kind: str, target: str, docname: str, domain: str = "std", text: str = ""
) -> addnodes.pending_xref:
    """What a role such as ``{ref}`` or ``{doc}`` makes."""
    return addnodes.pending_xref(
        "",
        nodes.inline("", text or target, classes=["xref", domain, f"{domain}-{kind}"]),
        refdomain=domain,
        reftype=kind,
        reftarget=target,
        refexplicit=False,
        refwarn=True,
        refdoc=docname,
    )


def in_words(result: Result, verdict: bool) -> str:
    """What was measured, and its condition, after the verdict if that is wanted."""
    start = "because" if result["verdict"] == "fails here" else "condition"
    start = result["verdict"] if verdict else start
    parts = [f"{result['what']}: {result['measured']}"]
    if result["condition"]:
        parts.append(f"{start}: {result['condition']}")
    elif verdict:
        parts.append(start)
    return " ".join(f"{part[0].upper()}{part[1:].rstrip('.')}." for part in parts)


def render_unhandled(self: NbElementRenderer, data: MimeData) -> list[nodes.Element]:
    """MyST-NB's method for types that it does not know; on a page, a result is a sentence."""
    if data.mime_type != MIME:
        return _render_unhandled(self, data)
    docname = self.renderer.document.settings.env.docname
    link = reference("ref", f"claim-{data.content['claim']}", docname)
    text = in_words(data.content, verdict=True)
    return [nodes.paragraph("", "", link, nodes.Text(f". {text}"), classes=["output"])]


# The library's own way needs an entry point of an installed package.
_render_unhandled = NbElementRenderer.render_unhandled
NbElementRenderer.render_unhandled = render_unhandled  # type: ignore[method-assign]


class Ledger(SphinxDirective):
    """``{ledger}``: a section with the verdicts, and one with the claims for each of theirs."""

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.doc2path(self.env.docname)).with_suffix(".yml")
        self.env.note_dependency(str(path))
        claims = yaml.safe_load(path.read_text(encoding="utf-8"))
        results = self.results()
        for problem in problems(claims, results):
            self.warn(problem)
        claims = [claim for claim in claims if KEYS <= claim.keys()]
        self.of: dict[str, list[Result]] = {claim["id"]: [] for claim in claims}
        for result in results:
            self.of.get(result["claim"], []).append(result)
        made: list[nodes.Node] = [self.section("The verdicts", self.verdicts())]
        for title in dict.fromkeys(claim["section"] for claim in claims):
            mine = [claim for claim in claims if claim["section"] == title]
            made.append(self.section(title, self.claims(mine)))
        return made

    def section(self, title: str, table: nodes.table) -> nodes.section:
        section = nodes.section("", nodes.title("", title), table, names=[title.lower()])
        self.state.document.note_implicit_target(section, section)
        return section

    def warn(self, problem: str) -> None:
        logger.warning(problem, location=self.get_location(), type="ledger")

    def results(self) -> list[Result]:
        """What all pages recorded, in the order of their names."""
        found: list[Result] = []
        for page in sorted(self.env.found_docs):
            if not is_notebook(self.env.app, page):
                continue
            try:
                found += results_of(executed(self.env.app, page), page)
            except KeyError:
                self.warn(f"{page} has not been executed, so its results are missing")
        return found

    def verdicts(self) -> nodes.table:
        """Which claims got which verdict."""
        rows = []
        for verdict in VERDICTS:
            mine = [i for i, found in self.of.items() if found and overall(found) == verdict]
            links = nodes.paragraph()
            for i in mine:
                links += [
                    nodes.reference("", i, refid=f"claim-{i}", internal=True),
                    nodes.Text(" "),
                ]
            row = self.row([self.text(verdict)], [self.text(str(len(mine)))], [links])
            rows.append(row)
        return self.table(["verdict", "number", "claims"], [25, 10, 65], rows)

    def claims(self, claims: list[Claim]) -> nodes.table:
        rows = []
        for claim in claims:
            row = self.row(
                [self.text(claim["id"])],
                self.myst(f"{claim['claim']}\n\n*Where it can fail:* {claim['can_fail']}"),
                self.measured(self.of[claim["id"]]),
            )
            label = f"claim-{claim['id']}"
            row["ids"].append(label)
            std = self.env.get_domain("std")
            std.note_hyperlink_target(label, self.env.docname, label, f"Claim {claim['id']}")
            rows.append(row)
        return self.table(["no.", "what is claimed", "what we measured"], [6, 47, 47], rows)

    def measured(self, results: list[Result]) -> list[nodes.Node]:
        if not results:
            return [self.text("not tested")]
        verdict = overall(results)
        made: list[nodes.Node] = [nodes.paragraph("", "", nodes.strong("", verdict.capitalize()))]
        several = len({result["verdict"] for result in results}) > 1
        for result in results:
            text = nodes.Text(in_words(result, verdict=several) + " ")
            made.append(nodes.paragraph("", "", text, self.link(result)))
        return made

    def link(self, result: Result) -> nodes.Node:
        """To the section in which the result was computed, or to its page."""
        if result["label"]:
            return reference("ref", result["label"], self.env.docname)
        return reference("doc", f"/{result['page']}", self.env.docname)

    def text(self, text: str) -> nodes.paragraph:
        return nodes.paragraph("", text)

    def myst(self, text: str) -> list[nodes.Node]:
        parent = nodes.container()
        self.state.nested_parse(StringList(text.splitlines(), self.env.docname), 0, parent)
        return parent.children

    def row(self, *cells: list[nodes.Node]) -> nodes.row:
        return nodes.row("", *(nodes.entry("", *cell) for cell in cells))

    def table(self, heads: list[str], widths: list[int], rows: list[nodes.row]) -> nodes.table:
        columns = [nodes.colspec(colwidth=width) for width in widths]
        group = nodes.tgroup("", *columns, cols=len(widths))
        group += nodes.thead("", self.row(*([self.text(head)] for head in heads)))
        group += nodes.tbody("", *rows)
        return nodes.table("", group, classes=["colwidths-given", "ledger"])


def gathering(env: BuildEnvironment, docnames: Iterable[str]) -> list[str]:
    """The pages whose directive gathers something from all others: claims, formulas."""
    fence = re.compile(r"^```\{(ledger|formulas)\}", re.MULTILINE)
    return [d for d in docnames if fence.search(Path(env.doc2path(d)).read_text("utf-8"))]


def read_last(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """A page is executed when it is read; by the time these are, all have to be."""
    for page in gathering(env, docnames):
        docnames.remove(page)
        docnames.append(page)


def read_again(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    return gathering(env, env.found_docs) if added | changed | removed else []


def prefer_data(app: Sphinx, config: Config) -> None:
    config.nb_mime_priority_overrides = [*config.nb_mime_priority_overrides, ("*", MIME, 1)]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("ledger", Ledger)
    app.connect("config-inited", prefer_data)
    app.connect("env-before-read-docs", read_last)
    app.connect("env-get-outdated", read_again)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
