"""Live figures in the book: one script for all of them, where a notebook needs one in each.

The HTML of a :class:`vaetutor.live.Live` carries the whole of ``live.js``. On a page of the book
that copy is taken out, and the page loads the file once. An executed page may be older than the
script; whatever shows its figures shows them with the script as it is now.
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

SCRIPT = files("vaetutor.live").joinpath("live.js")
INLINE = re.compile(r'(class="vt-data">[^<]*</script>\n)<script>.*?</script>\n(?=</figure>)', re.S)


def with_present_script(html: str) -> str:
    """The HTML of an output, with the script as it is now in each of its live figures."""
    script = SCRIPT.read_text(encoding="utf-8")
    return INLINE.sub(lambda found: f"{found[1]}<script>{script}</script>\n", html)


def share_script(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    context["body"], count = INLINE.subn(r"\1", context.get("body", ""))
    if count:
        app.add_js_file("live.js", loading_method="defer")


def copy_script(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        text = SCRIPT.read_text(encoding="utf-8")
        Path(app.outdir, "_static", "live.js").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", share_script)
    app.connect("build-finished", copy_script)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
