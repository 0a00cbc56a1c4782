"""Notebooks of the pages, as Colab and the download button hand them out.

After each html build every notebook page is written, executed and in plain Markdown, to
``_build/notebooks/``; ``make notebooks`` copies these files to ``book/notebooks/``, which is what
the Colab button opens and what the tests run and compare. The same input gives the same bytes.
"""

import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import nbformat
from docutils import nodes
from jupyter_cache import get_cache
from myst_nb.core.read import create_nb_reader
from nbformat import NotebookNode, v4
from sphinx.application import Sphinx
from to_markdown import Cell, Markdown
from vaebook import clean_outputs, repository

SETUP = """\
# Installs the package where it is missing, as on Colab.
import importlib.util

if importlib.util.find_spec("vaetutor") is None:
    %pip install -q "vaetutor[sequences] @ git+{repository}@{branch}\""""


def is_notebook(app: Sphinx, docname: str) -> bool:
    return app.env is not None and "kernelspec" in app.env.metadata.get(docname, {})


def file_name(docname: str) -> str:
    return Path(docname).name + ".ipynb"


def branch(app: Sphinx) -> str:
    return app.config.html_theme_options.get("repository_branch") or "main"


def executed(app: Sphinx, docname: str) -> NotebookNode:
    """The page as a notebook, with outputs from the execution cache."""
    assert app.env is not None
    path = app.env.doc2path(docname)
    text = Path(path).read_text(encoding="utf-8")
    config = app.env.mystnb_config
    reader = create_nb_reader(path, app.env.myst_config, config, text)
    cache = get_cache(config.execution_cache_path)
    return cache.merge_match_into_notebook(reader.read(text))[1]


def code_cell(cell: NotebookNode, count: int) -> NotebookNode:
    """`cell` as it goes into the notebook: what the page hides is folded here."""
    tags = list(cell.metadata.get("tags", []))
    metadata: dict[str, Any] = {"tags": tags} if tags else {}
    if {"hide-input", "hide-cell", "remove-input"} & set(tags):
        metadata |= {"cellView": "form", "jupyter": {"source_hidden": True}}
    if {"hide-output", "hide-cell", "remove-output"} & set(tags):
        metadata["jupyter"] = metadata.get("jupyter", {}) | {"outputs_hidden": True}
    outputs = clean_outputs(cell.outputs)
    for output in outputs:
        if output.output_type == "execute_result":
            output.execution_count = count
    return v4.new_code_cell(cell.source, execution_count=count, outputs=outputs, metadata=metadata)


def cells(app: Sphinx, docname: str, doctree: nodes.document) -> list[NotebookNode]:
    base = app.config.html_baseurl
    address = urljoin(base, app.builder.get_target_uri(docname))
    title = app.env.titles[docname].astext() if app.env else docname
    source = executed(app, docname)
    setup = SETUP.format(repository=repository(app.config)[0], branch=branch(app))
    tags = {"tags": ["colab-setup", "nbval-skip"]}
    book = app.config.html_title
    made = [
        v4.new_markdown_cell(f"*This is the page [{title}]({address}) of [{book}]({base}).*"),
        v4.new_code_cell(setup, metadata=tags),
    ]
    prose: list[str] = []
    count = 0

    def close() -> None:
        if prose:
            made.append(v4.new_markdown_cell("\n\n".join(prose)))
            prose.clear()

    for item in Markdown(app, docname, address).flow(doctree):
        if isinstance(item, Cell):
            close()
            count += 1
            made.append(code_cell(source.cells[item.index], count))
        else:
            prose.append(item)
    close()
    return made


def notebook(app: Sphinx, docname: str, doctree: nodes.document) -> str:
    """The page as the text of an ``.ipynb`` file."""
    made = cells(app, docname, doctree)
    seen: dict[str, int] = {}
    for cell in made:  # names that stay when a cell is put in before
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = v4.new_notebook(cells=made, metadata=metadata)
    nbformat.validate(whole)
    return nbformat.writes(whole) + "\n"


def export(app: Sphinx, exception: Exception | None) -> None:
    """Write the notebook of every page, for the tests and for the download button."""
    if exception or app.env is None or app.builder.name != "html":
        return
    folder = Path(app.outdir).parent / "notebooks"
    folder.mkdir(exist_ok=True)
    pages = [name for name in sorted(app.env.found_docs) if is_notebook(app, name)]
    for stale in {p.name for p in folder.glob("*.ipynb")} - {file_name(p) for p in pages}:
        (folder / stale).unlink()
    for page in pages:
        # The builder still holds the numbers of the page that it wrote last.
        app.builder.fignumbers = app.env.toc_fignumbers.get(page, {})
        app.builder.secnumbers = app.env.toc_secnumbers.get(page, {})
        doctree = app.env.get_and_resolve_doctree(page, app.builder)
        text = notebook(app, page, doctree)
        download = Path(app.outdir, "_sources", page).with_suffix(".ipynb")
        download.parent.mkdir(parents=True, exist_ok=True)
        for path in (folder / file_name(page), download):
            path.write_text(text, encoding="utf-8")


def offer_download(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    if is_notebook(app, page):
        context["ipynb_source"] = f"{page}.ipynb"


def colab_address(app: Sphinx, docname: str) -> str:
    target = f"{repository(app.config)[1]}/blob/{branch(app)}/book/notebooks/{file_name(docname)}"
    return f"https://colab.research.google.com/github/{target}"


def offer_colab(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    if is_notebook(app, page):
        context["header_buttons"].insert(
            0,
            {
                "type": "link",
                "url": colab_address(app, page),
                "text": "Colab",
                "tooltip": "Open in Colab",
                "icon": "_static/images/logo_colab.png",
                "label": "colab-button",
            },
        )


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", export)
    # The theme starts its list of buttons at 500 and fills it at 501.
    app.connect("html-page-context", offer_download, priority=500)
    app.connect("html-page-context", offer_colab, priority=502)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
