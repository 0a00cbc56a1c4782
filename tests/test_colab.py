"""The committed notebooks as Colab shows them, and the checks of ``make colab`` themselves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupyter_book", reason="needs the extra `book`")
# Sphinx and Jupyter warn about one another.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

import nbformat  # noqa: E402
import on_colab  # noqa: E402
from notebook_text import faults  # noqa: E402
from vaebook import base_address  # noqa: E402

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "book" / "notebooks").glob("*.ipynb"))
BASE = "https://example.github.io/book/"


def markdown(text, **more):
    return {"cells": [{"cell_type": "markdown", "source": text.splitlines(True), **more}]}


def shown(html):
    output = {"output_type": "display_data", "data": {"text/html": [html]}}
    return {"cells": [{"cell_type": "code", "source": "", "outputs": [output]}]}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_reader_on_colab_stumbles_over_nothing(path):
    notebook = json.loads(path.read_text())
    base = base_address(on_colab.book.settings()["repository"]["url"])
    assert f"]({base})" in "".join(notebook["cells"][0]["source"])
    assert faults(notebook, base) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    {
        "directive": ("```{note}\nText.\n```", "raw MyST: {note}"),
        "long fence": (
            "````{prf:theorem} A bound\n```\n```\n````",
            "raw MyST: {prf:theorem} A bound",
        ),
        "colon fence": ("Text.\n\n:::{note}\nText.\n:::", "raw MyST: :::{note}"),
        "role": ("See {eq}`bound`.", "raw MyST: {eq}"),
        "role with a dash": ("**See {doc-x:y}`bound`**", "raw MyST: {doc-x:y}"),
        "target": ("(a-target)=\n# Title", "raw MyST: (a-target)="),
        "image beside the page": ("![A line.](line.png)", "broken image: line.png"),
        "image in HTML": ('<img src="line.png" alt="A line.">', "broken image: line.png"),
        "image within a line": ('A <img alt="x" src="a.png"> b', "broken image: a.png"),
        "image from elsewhere": ("![](https://b.org/a.png)", "broken image: https://b.org/a.png"),
        "image that the book lacks": (
            f"![x]({BASE}_images/none.svg)",
            f"broken image: {BASE}_images/none.svg",
        ),
        "lost attachment": ("![x](attachment:a.png)", "broken image: attachment:a.png"),
        "page": ("[A page](02_amortization.md)", "relative link: 02_amortization.md"),
        "section": ("| a |\n| - |\n| [x](#here) |", "relative link: #here"),
        "link by reference": ("[x][y]\n\n[y]: ../a.html", "relative link: ../a.html"),
        "link in HTML": ('<a href="/a.html">x</a>', "relative link: /a.html"),
    }.values(),
)
def test_what_colab_cannot_show_is_found(text, fault):
    assert fault in faults(markdown(text), BASE)


def test_what_an_output_cannot_show_is_found():
    assert faults(shown('<a href="a.html"><img src="b.png"></a>'), BASE) == [
        "broken image: b.png",
        "relative link: a.html",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "`{eq}` and `:::`, $\\mathcal{N}$`x`, $f[z](x)$, and f(x)= 1",
        "```python\n:::\n[x](y)\n(a)=\n```",
        f"[x]({BASE}a.html#b), <https://a.org>, ![x](data:image/png;base64,aa)",
        f"![The mark]({BASE}_images/vaetutor.svg)",
    ],
)
def test_what_colab_can_show_is_left_alone(text):
    assert faults(markdown(text), BASE) == []


def test_an_attachment_is_an_image():
    data = {"a b.png": {"image/png": "aa"}}
    assert faults(markdown("![x](attachment:a%20b.png)", attachments=data), BASE) == []


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    on_colab.repository(folder)
    return folder


def git(*arguments, **more):
    return subprocess.run(["git", *arguments], capture_output=True, text=True, **more)


def test_git_takes_the_public_address_from_here(served, tmp_path):
    """With all that the package consists of, and in no other way."""
    [setup] = [
        line
        for line in NOTEBOOKS[0].read_text().splitlines()
        if "%pip install" in line and "git+" in line
    ]
    address, branch = setup.split("git+")[1].split("\\")[0].split("@")
    surroundings = on_colab.surroundings(served, str(tmp_path))
    clone = ["clone", "-q", "-b", branch, address, str(tmp_path / "clone")]
    assert (made := git(*clone, env=surroundings)).returncode == 0, made.stderr
    here = {
        path.relative_to(ROOT)
        for path in (ROOT / "vaetutor").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert Path("vaetutor/py.typed") in here
    for path in [*here, Path("pyproject.toml")]:
        assert (tmp_path / "clone" / path).read_bytes() == (ROOT / path).read_bytes()
    assert not (tmp_path / "clone" / "_build").exists()
    elsewhere = git("ls-remote", "https://example.org/other", env=surroundings)
    assert "not allowed" in elsewhere.stderr


def test_pip_cannot_reach_the_base_environment(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "module.py").write_text("as on Colab")
    with on_colab.fresh(base) as copy:
        assert (copy / "module.py").read_text() == "as on Colab"
        (copy / "module.py").unlink()  # as pip replaces a file
        (copy / "module.py").write_text("another version")
        (copy / "new.py").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["base", "module.py"]
    assert (base / "module.py").read_text() == "as on Colab"


def test_the_kernel_sees_an_empty_folder_and_nothing_of_the_project(served, monkeypatch):
    """And a cell that fails is a fault, and so is one that is meant to fail and does not."""
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("VAETUTOR_DATA", "elsewhere")

    def run(*cells):
        sources = [
            nbformat.v4.new_code_cell(text, metadata={"tags": tags}) for text, *tags in cells
        ]
        notebook = nbformat.v4.new_notebook(cells=sources)
        return on_colab.execute(notebook, Path(sys.prefix), served)

    alone = "import os\nassert os.listdir() == []\nassert 'elsewhere' not in os.environ.values()"
    assert run([alone], ["1 / 0", "raises-exception"], ["assert True"]) == []
    [fault] = run(["x = 1"], ["assert x == 2, 'two'"])
    assert "AssertionError" in fault
    assert run(["y = 1", "raises-exception"]) == ["meant to fail, and did not: y = 1"]


def test_a_replaced_package_and_a_missing_file_are_found(tmp_path, monkeypatch):
    held = {"base": {"numpy==2.0.2", "pip==1"}, "after": {"numpy==2.1", "pip==1", "zuko==1"}}
    monkeypatch.setattr(on_colab, "holds", lambda environment: held[environment.name])
    packages = tmp_path / "after" / "lib" / "python3.11" / "site-packages"
    for name in git("ls-files", "vaetutor", cwd=ROOT).stdout.splitlines():
        if name != "vaetutor/py.typed":
            (packages / name).parent.mkdir(parents=True, exist_ok=True)
            (packages / name).touch()
    assert on_colab.changes(tmp_path / "base", tmp_path / "after") == [
        "the set-up cell replaced numpy==2.0.2",
        "not installed: vaetutor/py.typed",
    ]
