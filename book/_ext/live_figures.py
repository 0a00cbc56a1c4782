"""Live figures in the book: one script for all of them, where a notebook needs one in each.

The HTML of a :class:`vaetutor.live.Live` carries the whole of ``live.js``. On a page of the book
that copy is taken out, and the page loads the file once.
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

SCRIPT = files("vaetutor.live").joinpath("live.js")


def share_script(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    inline = f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>\n"
    body = context.get("body", "")
    if inline in body:
        context["body"] = body.replace(inline, "")
        app.add_js_file("live.js", loading_method="defer")
    elif re.search(r'<figure class="vt-live"', body):
        raise RuntimeError(f"{page} was executed with another live.js than the package has now")


def copy_script(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        text = SCRIPT.read_text(encoding="utf-8")
        Path(app.outdir, "_static", "live.js").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", share_script)
    app.connect("build-finished", copy_script)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
