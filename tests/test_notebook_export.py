"""From a page of the book to plain Markdown: every construct the chapters use."""

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupyter_book", reason="needs the extra `book`")
# Sphinx and its extensions warn about one another.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

sys.path.insert(0, str(Path(__file__).parents[1] / "book" / "_ext"))

PAGE = r"""---
file_format: mystnb
kernelspec:
  name: python3
---

(top)=
# Title

Inline $q(z \mid x)$, *emphasis*, **strong**, `code`, a * star, [brackets], \$5 and snake_case.
See [](#eq-a), {ref}`top`, {prf:ref}`bound`, {ref}`shift`. A note[^1].

[^1]: The note.

$$
a &= b \\
&= c
$$ (eq-a)

:::{admonition} A titled box
Text.

$$
x
= y
$$
:::

```{warning}
Mind this.
```

```{list-table} Some rows
:name: rows
:header-rows: 1

* - left
  - right
* - $p(x|z)$
  - a | b
```

```{prf:theorem} The bound
:label: bound

It holds.
```

```{admonition} A model answer
:class: dropdown

Done, with $x$.
```

1. one
2. two

   more

- point
  - nested

Term
: Its meaning.

```python
x = 1
```

> A quotation.

\begin{align}
a &= b
\end{align}

![A dot](dot.png)

## Section

Try.

```{code-cell}
1
```

:::{container} book-only
Elsewhere only.
:::

```{code-cell}
:tags: [book-only]

3
```

The end.
"""

EXPECTED = {
    "number in a heading": r"^# 1\. Title$",
    "mathematics": r"Inline \$q\(z \\mid x\)\$",
    "emphasis": r"\*emphasis\*, \*\*strong\*\*, `code`",
    "plain characters": r"a \\\* star, \\\[brackets\\\], \\\$5 and snake_case\.",
    "equation reference": r"\[\(1\.1\)\]\(https://book\.test/page\.html#equation-eq-a\)",
    "section reference": r"\[Title\]\(https://book\.test/page\.html#top\)",
    "theorem reference": r"\[Theorem 1\.1\]\(",
    "footnote": r"A note<sup>1</sup>\.(.|\n)*^<sup>1</sup> The note\.$",
    "equation": r"^\$\$\n\\begin\{split\}a &= b \\\\\n&= c\\end\{split\} \\tag\{1\.1\}\n\$\$$",
    "box": r"^> \*\*A titled box\*\*\n>\n> Text\.\n>\n> \$\$x = y\$\$$",
    "warning": r"^> \*\*Warning\*\*\n>\n> Mind this\.$",
    "table": r"^\*\*Table 1\.1\*\* Some rows\n\n\| left \| right \|\n\| --- \| --- \|\n"
    r"\| \$p\(x\\vert z\)\$ \| a \\\| b \|$",
    "theorem": r"^> \*\*Theorem 1\.1 \(The bound\)\*\*\n>\n> It holds\.$",
    "folded box": r"^<details><summary><b>A model answer</b></summary>"
    r"\n\nDone, with \$x\$\.\n\n</details>$",
    "numbered list": r"^1\. one\n2\. two\n\n   more$",
    "nested list": r"^- point\n  - nested$",
    "definition": r"^- \*\*Term\*\*: Its meaning\.$",
    "code": r"^```python\nx = 1\n```$",
    "quotation": r"^> A quotation\.$",
    "environment": r"^\$\$\n\\begin\{aligned\}\na &= b\n\\end\{aligned\}(.*)\n\$\$$",
    "image": r"^!\[A dot\]\(https://book\.test/_images/dot\.png\)$",
    "code cell": r"^Try\.\n\n<cell>\n\nThe end\.$",
    "section": r"^## 1\.1\. Section$",
}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    from sphinx.application import Sphinx

    source = tmp_path_factory.mktemp("book")
    (source / "dot.png").write_bytes(b"a picture")
    (source / "page.md").write_text(PAGE)
    (source / "index.md").write_text("# Book\n\n```{toctree}\n:numbered:\npage\n```\n")
    settings = {
        "extensions": ["myst_nb", "sphinx_proof"],
        "myst_enable_extensions": ["amsmath", "colon_fence", "deflist", "dollarmath"],
        "nb_execution_mode": "off",
        "numfig": True,
        "html_baseurl": "https://book.test/",
    }
    app = Sphinx(source, None, source / "html", source / "doctrees", "html", settings, status=None)
    app.build()
    return app


@pytest.fixture(scope="module")
def markdown(app):
    from to_markdown import Markdown

    doctree = app.env.get_and_resolve_doctree("page", app.builder)
    flow = Markdown(app, "page", "https://book.test/page.html").flow(doctree)
    return "\n\n".join(item if isinstance(item, str) else "<cell>" for item in flow)


@pytest.mark.parametrize("construct", EXPECTED)
def test_construct(markdown, construct):
    assert re.search(EXPECTED[construct], markdown, re.MULTILINE), markdown


def test_outputs_are_cleaned():
    from nbformat.v4 import new_output
    from vaebook import clean_outputs

    outputs = [
        new_output("stream", name="stdout", text="before\n"),
        new_output("stream", name="stderr", text="a warning\n"),
        new_output("stream", name="stdout", text="\r 0%"),
        new_output("stream", name="stdout", text="\r 50%"),
        new_output("stream", name="stdout", text="\r100%\n"),
        new_output("error", ename="ValueError", evalue="meant", traceback=["File /a/b.py"]),
    ]
    cleaned = clean_outputs(outputs)
    assert [output.output_type for output in cleaned] == ["stream", "error"]
    assert cleaned[0].text == "before\n100%\n"
    assert cleaned[1].traceback == ["ValueError: meant"]
    assert len(outputs) == 6 and outputs[-1].traceback == ["File /a/b.py"]


def test_figure_takes_alternative_text_from_its_output():
    import vaebook
    from docutils import nodes
    from myst_nb.core.render import MimeData, NbElementRenderer

    assert NbElementRenderer.render_image is vaebook.render_image
    plain = vaebook._render_image
    vaebook._render_image = lambda self, data: [nodes.image(uri="a.png")]
    try:
        [image] = vaebook.render_image(
            None, MimeData("image/png", "", output_metadata={"image/png": {"alt": "A line"}})
        )
    finally:
        vaebook._render_image = plain
    assert image["alt"] == "A line"
