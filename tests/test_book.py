"""The built book and its notebooks: nothing missing, nothing stale, nothing from elsewhere."""

import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
NOTEBOOKS = sorted((BOOK / "notebooks").glob("*.ipynb"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())


def cells(path):
    return json.loads(path.read_text())["cells"]


def source(cell):
    return "".join(cell["source"])


def test_every_page_is_in_the_contents(site):
    built = {path.relative_to(ROOT / "_build/html").with_suffix("").as_posix() for path in site}
    pages = {p.relative_to(ROOT).with_suffix("").as_posix() for p in BOOK.rglob("*.md")}
    assert pages <= built


def test_every_image_has_alternative_text(site):
    for page in site.values():
        for image in page.images:
            alt = image.get("alt") or ""
            # Without one, docutils puts the address of the image.
            assert alt.strip() and alt != image["src"] and "/_images/" not in alt, (
                page.path,
                image,
            )


def test_every_figure_of_a_notebook_has_alternative_text():
    for path in NOTEBOOKS:
        for cell in cells(path):
            for output in cell.get("outputs", []):
                for kind in output.get("data", {}):
                    if kind.startswith("image/"):
                        assert output["metadata"][kind]["alt"].strip(), (path, source(cell))


def test_no_link_leads_nowhere(site):
    bad = []
    for page in site.values():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = page.path.resolve()
            if parts.path:
                target = (page.path.parent / unquote(parts.path)).resolve()
            if not target.exists():
                bad.append((page.path.name, link))
            elif target in site and unquote(parts.fragment) not in site[target].anchors:
                bad.append((page.path.name, link))
    assert not bad


def test_links_into_the_book_exist_in_notebooks(site):
    owner, name = CONFIG["repository"]["url"].split("/")[-2:]
    base = f"https://{owner}.github.io/{name}/"
    for path in NOTEBOOKS:
        for link in re.findall(re.escape(base) + r"([^)\s]*)", path.read_text()):
            page, _, anchor = link.partition("#")
            target = (ROOT / "_build/html" / (page or "index.html")).resolve()
            assert target.exists(), (path.name, link)
            assert target not in site or unquote(anchor) in site[target].anchors, (path.name, link)


def test_pages_load_nothing_from_elsewhere(site):
    for page in site.values():
        assert not [load for load in page.loads if urlsplit(load).netloc], page.path
    for sheet in (ROOT / "_build/html/_static").rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_colab_links_name_committed_notebooks(site):
    repository = "/".join(CONFIG["repository"]["url"].split("/")[-2:])
    start = f"https://colab.research.google.com/github/{repository}/blob/"
    start += CONFIG["repository"]["branch"] + "/"
    texts = [path.read_text() for path in [ROOT / "README.md", *BOOK.rglob("*.md")]]
    links = [link for page in site.values() for link in page.links if "colab." in link]
    links += re.findall(r"https://colab\.[^\s)\"'>]+", "\n".join(texts))
    named = {link.removeprefix(start) for link in links}
    assert named == {path.relative_to(ROOT).as_posix() for path in NOTEBOOKS}


def test_notebooks_are_fresh(site):
    """Code and text as the pages have them now; outputs may differ in numbers and in bytes."""

    def content(path):
        return [(c["cell_type"], source(c), c["metadata"]) for c in cells(path)]

    exported = {path.name: path for path in (ROOT / "_build/notebooks").glob("*.ipynb")}
    assert {path.name for path in NOTEBOOKS} == exported.keys(), "run `make notebooks`"
    for path in NOTEBOOKS:
        for ours, theirs in zip(content(path), content(exported[path.name]), strict=False):
            assert ours == theirs, f"{path.name} is stale: run `make notebooks`"
        assert len(content(path)) == len(content(exported[path.name]))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_reads_without_the_book(path):
    """Executed to the end and set up by one cell; tests/test_colab.py looks at its text."""
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    setup = [cell for cell in code if "colab-setup" in cell["metadata"].get("tags", [])]
    assert setup == code[:1] and "find_spec" in source(setup[0])
    for cell in code[1:]:
        assert cell["execution_count"]
        failed = any(output["output_type"] == "error" for output in cell["outputs"])
        assert failed == ("raises-exception" in cell["metadata"].get("tags", []))
        assert all(output.get("name") != "stderr" for output in cell["outputs"])
        assert "\r" not in json.dumps(cell["outputs"]).replace("\\\\", "")


def test_no_measured_number_is_glued_into_prose():
    for path in BOOK.rglob("*.md"):
        assert not re.search(r"\{(nb-)?glue|\bglue\(", path.read_text()), path


def test_costs_on_the_pages_are_the_measured_ones():
    costs = json.loads((BOOK / "costs.json").read_text())
    assert costs.keys() == {path.stem for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        cost = costs[path.stem]
        text = "\n".join(source(cell) for cell in cells(path))
        if (BOOK / f"{path.stem}.md").read_text().count("{run-cost}"):
            assert f"This page ran in {cost['seconds']} s on {cost['cores']} CPU core" in text
            assert f"{cost['memory_mb']} MB" in text


def test_cells_are_short():
    for page in sorted((ROOT / "book").glob("*.md")):
        for cell in re.findall(r"```\{code-cell\}\n(.*?)```", page.read_text(), re.S):
            code = re.sub(r"\A(---\n.*?\n---\n|(:\w+:.*\n)+\n?)", "", cell, flags=re.S)
            assert len(code.strip().splitlines()) <= 25, f"{page.name}: {code[:60]}"
