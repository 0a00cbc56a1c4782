"""What the book needs beyond Jupyter Book: addresses, execution cache, costs, alternative text.

- The base address of the book is derived from ``repository.url`` of ``_config.yml``.
- The execution cache keys on the code of a page alone; its folder is therefore named after the
  source of the package and the pinned versions, so that a change there executes all pages again.
- ``{run-cost}`` says what a page costs to run, as measured by ``make notebooks``.
- Alternative text that a code cell gives to a figure, in the metadata of its output, reaches the
  page; a figure without it is a warning, hence a failed build.
- Outputs are cleaned before they are shown, and docstrings read as they were meant.
"""

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import myst_nb.core.render
from docutils import nodes
from live_figures import with_present_script
from myst_nb.core.render import MimeData, NbElementRenderer
from nbformat import NotebookNode
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.ext import intersphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
COSTS = ROOT / "book" / "costs.json"

# As the package's annotations write them, where a name cannot be evaluated outside type checking.
SHORT_NAMES = {
    "Axes": "matplotlib.axes.Axes",
    "Distribution": "torch.distributions.Distribution",
    "Figure": "matplotlib.figure.Figure",
    "Path": "pathlib.Path",
    "Tensor": "torch.Tensor",
    "nn.Module": "torch.nn.Module",
    "np.ndarray": "numpy.ndarray",
    "pd.DataFrame": "pandas.DataFrame",
}

# Of packages whose list of names is not kept here, or private.
NO_INVENTORY = {"Accelerator", "vaetutor.exercises._attempt.Observation"}

logger = logging.getLogger(__name__)


def repository(config: Config) -> tuple[str, str]:
    """The repository as (address, owner/name)."""
    address = str(config.html_theme_options["repository_url"]).rstrip("/")
    return address, "/".join(address.split("/")[-2:])


def base_address(repository: str) -> str:
    """Where the book of the repository at that address is published."""
    owner, name = repository.rstrip("/").split("/")[-2:]
    return f"https://{owner}.github.io/{name}/"


def execution_cache(root: Path = ROOT) -> Path:
    """The folder of executed pages that belongs to the package and the versions as they are."""
    digest = hashlib.sha256()
    for path in [*sorted(root.glob("vaetutor/**/*.py")), root / "constraints.txt"]:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return root / "_build" / ".jupyter_cache" / digest.hexdigest()[:16]


def derive_config(app: Sphinx, config: Config) -> None:
    """Set what follows from other settings, before any extension reads it."""
    config.html_baseurl = base_address(repository(config)[0])
    config.nb_execution_cache_path = str(execution_cache())


class RunCost(SphinxDirective):
    """``{run-cost}``: one sentence with the measured time and memory of this page.

    The content of the directive, if any, replaces "it downloads nothing".
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(COSTS))
        page = Path(self.env.docname).name
        costs = json.loads(COSTS.read_text()) if COSTS.exists() else {}
        if page not in costs:
            logger.warning(
                "%s has no measured cost: run `make notebooks`", page, location=self.get_location()
            )
            return []
        cost = costs[page]
        cores = "1 CPU core" if cost["cores"] == 1 else f"{cost['cores']} CPU cores"
        downloads = " ".join(self.content) or "It downloads nothing"
        sentence = (
            f"This page ran in {cost['seconds']} s on {cores}, "
            f"with at most {cost['memory_mb']} MB of memory. {downloads.rstrip('.')}."
        )
        return [nodes.paragraph("", sentence, classes=["run-cost"])]


def clean_outputs(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs of a cell as a reader should see them.

    A progress bar is left at its last state, without the blanks that wiped out a longer one
    before it, stderr is dropped, and an error that is meant keeps its message without the path
    through this machine's files.
    """
    cleaned: list[NotebookNode] = []
    for output in copy.deepcopy(outputs):
        if output.get("name") == "stderr":
            continue
        last = cleaned[-1] if cleaned else None
        if output.output_type == "error":
            output.traceback = [f"{output.ename}: {output.evalue}"]
        if output.output_type == "stream" and last and last.get("name") == output.name:
            last.text += output.text
        else:
            cleaned.append(output)
    for output in cleaned:
        if html := output.get("data", {}).get("text/html"):
            output.data["text/html"] = with_present_script(html)
        if output.output_type == "stream":
            last_state = r"^.*\r(?!$)([^\r\n]*?) *(?=\r?$)|\r"
            output.text = re.sub(last_state, r"\1", output.text, flags=re.MULTILINE)
    return cleaned


def render_image(self: NbElementRenderer, data: MimeData) -> list[nodes.Element]:
    """MyST-NB's method, which takes an output's width and height, and its ``alt`` too."""
    rendered = _render_image(self, data)
    if alt := data.output_metadata.get(data.mime_type, {}).get("alt"):
        for image in rendered:
            image["alt"] = alt
    return rendered


def attribute_docstring(self: GoogleDocstring) -> list[str]:
    """The docstring of an attribute as it stands; napoleon takes "text: more" for a type."""
    return self._consume_to_end()


# The libraries offer no setting for these three.
_render_image = NbElementRenderer.render_image
NbElementRenderer.render_image = render_image  # type: ignore[method-assign]
GoogleDocstring._parse_attribute_docstring = attribute_docstring  # type: ignore[method-assign]
myst_nb.core.render.coalesce_streams = clean_outputs


def name_public_bases(
    app: Sphinx, name: str, cls: type, options: dict[str, Any], bases: list[type]
) -> None:
    """In the reference, a private base class stands for its own bases."""
    bases[:] = [
        public
        for base in bases
        for public in (base.__bases__ if base.__name__.startswith("_") else [base])
    ]


def plain_signature(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: dict[str, Any],
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """A default that is no Python when written out would show the whole signature as raw text."""
    if signature:
        signature = signature.replace("<factory>", "...")
        signature = re.sub(r"<function (?:\w+\.)*(\w+)[^>]*>", r"\1", signature)
        signature = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", signature)
    return signature, returns


def demand_alternative_text(app: Sphinx, doctree: nodes.document) -> None:
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            logger.warning(
                "figure without alternative text: a code cell gives it by "
                "`vaetutor.plots.show(figure, alt=...)`, a Markdown image in its brackets",
                location=image,
                type="vaebook",
                subtype="alt",
            )


def resolve_short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """Find ``Tensor`` of an annotation, and ``vaetutor.fit`` where it stands in a submodule."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    if target in NO_INVENTORY:
        return content
    if target in SHORT_NAMES:
        node["reftarget"] = SHORT_NAMES[target]
        return intersphinx.missing_reference(app, env, node, content)
    python = env.get_domain("py")
    names = [name for name, *_ in python.get_objects() if name.count(".") == 2]
    found = [name for name in names if name.endswith("." + target.removeprefix("vaetutor."))]
    if len(found) != 1:
        return None
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, content)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("run-cost", RunCost)
    app.connect("config-inited", derive_config, priority=100)
    app.connect("doctree-read", demand_alternative_text)
    app.connect("autodoc-process-bases", name_public_bases)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("missing-reference", resolve_short_name)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
