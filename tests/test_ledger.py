"""The ledger of claims: what is recorded, how it is shown, and that nothing is left out."""

import io
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from vaetutor import ledger

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
CLAIMS = yaml.safe_load((BOOK / "claims.yml").read_text())

sys.path.insert(0, str(BOOK / "_ext"))


# Numbers


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (12.3456, 0.0234, "12.346 ± 0.023"),
        (12.3456, 0.0996, "12.35 ± 0.10"),  # two digits of the rounded error
        (0.5, 9.96, "0 ± 10"),
        (3.0, 1.0, "3.0 ± 1.0"),
        (12345.6, 337.0, "12350 ± 340"),
        (-0.001, 0.1, "0.00 ± 0.10"),  # no minus zero
        (-2.5, 0.25, "-2.50 ± 0.25"),
        (1.2341e-7, 2.34e-9, "(1.234 ± 0.023)e-07"),
        (1e-9, 2.5e-5, "(0.0 ± 2.5)e-05"),
        (2.5e8, 1e6, "(2.500 ± 0.010)e+08"),
        (0.0, None, "0"),
        (3.14159, None, "3.142"),
        (0.012346, None, "0.01235"),
        (12.5, None, "12.5"),
        (1234.56, None, "1235"),
        (12345.6, None, "12350"),
        (200704.0, None, "200704"),  # a count is shown whole
        (9.9999, None, "10"),
        (-0.25, None, "-0.25"),
        (2.2e-16, None, "2.2e-16"),
        (9.99999e-5, None, "1e-04"),
        (3.16881e7, None, "3.169e+07"),
    ],
)
def test_number(value, error, shown):
    assert ledger._measured(value, error, "") == shown
    assert ledger._measured(value, error, "nats") == f"{shown} nats"


def test_number_keeps_two_digits_of_the_error():
    generator = torch.Generator().manual_seed(0)
    exponents = 12 * torch.rand(200, 2, generator=generator) - 6
    for value, error in (10**exponents).tolist():
        text = ledger._measured(value, error, "")
        a, b, power = re.fullmatch(r"\(?([\d.]+) ± ([\d.]+)\)?(e[+-]\d+)?", text).groups()
        scale = float("1" + (power or ""))
        assert abs(float(b) * scale / error - 1) < 0.051, text
        assert abs(float(a) * scale - value) <= 0.51 * error, text
        assert len(a.partition(".")[2]) == len(b.partition(".")[2]), text


# Recording


@pytest.fixture
def shown(monkeypatch):
    """What is displayed while IPython runs."""
    display = pytest.importorskip("IPython.display")
    found = []
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: object())
    monkeypatch.setattr(display, "display", lambda data, raw: found.append(data))
    return found


def test_output_is_a_line_and_its_data(shown):
    assert ledger.record("7", "gap", 1.23, 0.04, "nats", verdict="holds") is None
    [data] = shown
    assert data.keys() == {"text/plain", ledger.MIME}
    assert data["text/plain"] == "Claim 7, gap: 1.230 ± 0.040 nats\nholds"
    assert data[ledger.MIME] == {
        "claim": "7",
        "what": "gap",
        "value": 1.23,
        "error": 0.04,
        "unit": "nats",
        "measured": "1.230 ± 0.040 nats",
        "verdict": "holds",
        "condition": "",
    }


def test_condition_is_shown_and_long_lines_break(shown):
    ledger.record("7", "gap", 2, verdict="holds with a condition", condition="x " * 60)
    first, second, *rest = shown[0]["text/plain"].splitlines()
    assert first == "Claim 7, gap: 2"
    assert second.startswith("holds with a condition: x x")
    assert rest and max(map(len, [second, *rest])) <= 78


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.int64(3), torch.tensor(3.0).item()])
def test_numbers_of_other_libraries(shown, value):
    ledger.record("7", "gap", value, verdict="holds")
    assert shown[0][ledger.MIME]["value"] == 3.0 and type(shown[0][ledger.MIME]["value"]) is float


def test_nothing_is_displayed_outside_ipython():
    code = """
import sys
from vaetutor import ledger
assert ledger.record("7", "gap", 1.0, verdict="holds") is None
assert "IPython" not in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claim": ""}, "claim must be a string that is not empty, found ''"),
        ({"claim": 7}, "claim must be a string that is not empty, found 7"),
        ({"what": "  "}, "what must be a string"),
        ({"value": math.nan}, "value must be a finite number, found nan"),
        ({"value": math.inf}, "value must be a finite number, found inf"),
        ({"value": True}, "value must be a finite number, found True"),
        ({"value": torch.tensor(1.0)}, r"value must be a finite number, found tensor\(1.\)"),
        ({"error": 0.0}, "error must be a finite number above 0, found 0.0"),
        ({"error": -1.0}, "error must be a finite number above 0, found -1.0"),
        ({"error": math.nan}, "error must be a finite number above 0, found nan"),
        ({"verdict": "true"}, "verdict must be one of holds, .*, fails here, found 'true'"),
        ({"verdict": "fails here"}, "condition must say .* 'fails here', found ''"),
        ({"verdict": "holds with a condition", "condition": " "}, "condition must say"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = {"claim": "7", "what": "gap", "value": 1.0, "verdict": "holds"}
    with pytest.raises(ValueError, match=message):
        ledger.record(**good | change)


# The table


PAGE = """---
file_format: mystnb
kernelspec:
  name: python3
---

(top)=
# Chapter

(part)=
## A part

```
(fenced)=
## No heading
```

### Not labelled

```{code-cell}
from vaetutor import ledger

ledger.record("1", "size", 1.5, 0.1, "nats", verdict="holds")
ledger.record("2", "$5 and *more*", 2, verdict="holds")
```

(last)=
## The last part

```{code-cell}
ledger.record("2", "slope", 3, verdict="fails here", condition="it is steep")
```
"""

ONE = {
    "id": "1",
    "section": "First",
    "claim": "It is large.",
    "can_fail": "Below $x^2$, {ref}`top`.",
}
TWO = {"id": "2", "section": "Second", "claim": "It is flat.", "can_fail": "On slopes."}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Build a small book with given claims: the warnings, and the page of the ledger."""
    pytest.importorskip("jupyter_book", reason="needs the extra `book`")
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    source, out = tmp_path_factory.mktemp("book"), tmp_path_factory.mktemp("out")
    # The page comes after the ledger in the order of names, and has to be read before it.
    (source / "zz_page.md").write_text(PAGE)
    (source / "claims.md").write_text("# Claims\n\n```{ledger}\n```\n\n## After\n\nText.\n")
    (source / "index.md").write_text("# Book\n\n```{toctree}\nclaims\nzz_page\n```\n")

    def run(claims, mode="cache", fresh=True):
        (source / "claims.yml").write_text(yaml.safe_dump(claims))
        settings = {
            "extensions": ["myst_nb", "ledger"],
            "myst_enable_extensions": ["dollarmath"],
            "nb_execution_mode": mode,
            "nb_execution_cache_path": str(out / mode),
        }
        warnings = io.StringIO()
        folders = (source, None, out / "html", out / "doctrees")
        with patch_docutils(), docutils_namespace():
            app = Sphinx(*folders, "html", settings, status=None, warning=warnings, freshenv=fresh)
            app.build()
        return warnings.getvalue(), (out / "html" / "claims.html").read_text()

    run.out = out
    return run


# Sphinx and its extensions warn about one another, and about the event loop of a kernel.
sphinx = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def text_of(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


@sphinx
def test_table_shows_claims_results_and_verdicts(build):
    warnings, html = build([ONE, TWO])
    assert warnings == ""
    text = text_of(html)
    assert "Holds Size: 1.50 ± 0.10 nats. A part" in text
    first = "Holds with a condition $5 and *more*: 2. Holds. A part"
    second = "Slope: 3. Fails here: it is steep. The last part"
    assert f"{first} {second}" in text
    assert "holds 1 1 holds with a condition 1 2 fails here 0" in text
    assert '<tr class="row-even" id="claim-1">' in html and 'href="#claim-1"' in html
    assert 'href="zz_page.html#part"' in html and 'href="zz_page.html#last"' in html
    assert 'href="zz_page.html#top"' in html and "x^2" in html  # the claim's text is MyST
    assert re.findall(r"<h2>([^<]+)<", html) == ["The verdicts", "First", "Second", "After"]


@sphinx
def test_result_links_to_its_claim(build):
    build([ONE, TWO])
    html = (build.out / "html" / "zz_page.html").read_text()
    assert "Claim 1 . Size: 1.50 ± 0.10 nats. Holds." in text_of(html)
    assert "Claim 2 . Slope: 3. Fails here: it is steep." in text_of(html)
    assert 'href="claims.html#claim-2"' in html and "<em>more</em>" not in html


@sphinx
@pytest.mark.parametrize(
    ("claims", "warning"),
    [
        ([ONE, TWO, TWO | {"id": "3"}], "claim 3 has no result"),
        ([ONE], "zz_page records a result for claim 2, which there is not"),
        ([ONE, TWO, ONE], "there are 2 claims with the id 1"),
        ([ONE, {k: v for k, v in TWO.items() if k != "can_fail"}], "claim 2 lacks can_fail"),
    ],
)
def test_gap_in_the_ledger_is_a_warning(build, claims, warning):
    assert warning in build(claims)[0]


@sphinx
def test_page_that_was_not_executed_is_a_warning(build):
    assert "zz_page has not been executed" in build([ONE, TWO], mode="off")[0]


@sphinx
def test_ledger_is_made_again_when_the_claims_change(build):
    build([ONE, TWO])
    warnings, html = build([ONE, TWO | {"claim": "It is level."}], fresh=False)
    assert warnings == "" and "It is level." in html
    assert "claim 3 has no result" in build([ONE, TWO, TWO | {"id": "3"}], fresh=False)[0]


def test_the_type_and_the_verdicts_are_those_of_the_package():
    pytest.importorskip("jupyter_book", reason="needs the extra `book`")
    import ledger as extension

    assert extension.MIME == ledger.MIME and extension.VERDICTS == ledger.VERDICTS


@pytest.mark.parametrize(
    ("verdict", "condition", "alone", "with_verdict"),
    [
        ("holds", "", "", " Holds."),
        ("holds", "always.", " Condition: always.", " Holds: always."),
        ("holds with a condition", "a", " Condition: a.", " Holds with a condition: a."),
        ("fails here", "a; b", " Because: a; b.", " Fails here: a; b."),
    ],
)
def test_words_for_a_result(verdict, condition, alone, with_verdict):
    pytest.importorskip("jupyter_book", reason="needs the extra `book`")
    from ledger import in_words

    result = {"what": "gap", "measured": "2 nats", "verdict": verdict, "condition": condition}
    assert in_words(result, verdict=False) == f"Gap: 2 nats.{alone}"
    assert in_words(result, verdict=True) == f"Gap: 2 nats.{with_verdict}"


def test_overall_verdict():
    pytest.importorskip("jupyter_book", reason="needs the extra `book`")
    from ledger import VERDICTS, overall

    for verdict in VERDICTS:
        assert overall([{"verdict": verdict}] * 2) == verdict
    assert overall([{"verdict": "holds"}, {"verdict": "fails here"}]) == "holds with a condition"


# The claims, and the pages that test them


def recorded(path):
    """The claims that a page records, as its source has them."""
    return re.findall(r"ledger\.record\(\s*\"([^\"]*)\"", path.read_text())


PAGES = {path.stem: recorded(path) for path in sorted(BOOK.glob("*.md"))}


def test_every_call_names_its_claim():
    for path in BOOK.glob("*.md"):
        assert len(PAGES[path.stem]) == path.read_text().count("ledger.record("), path


def test_claims_are_whole_and_numbered_in_order():
    ids = [claim["id"] for claim in CLAIMS]
    assert ids == [str(n + 1) for n in range(len(CLAIMS))]
    for claim in CLAIMS:
        assert claim.keys() - {"page"} == {"id", "section", "claim", "can_fail"}, claim
        assert all(isinstance(text, str) and text.strip() for text in claim.values()), claim
    sections = [claim["section"] for claim in CLAIMS]
    assert sections == sorted(sections, key=list(dict.fromkeys(sections)).index)


def test_the_three_advantages_and_drawbacks_are_there():
    kinds = [re.match(r"\((\w+)\)", claim["claim"]) for claim in CLAIMS]
    kinds = [kind[1] for kind in kinds if kind]
    assert kinds.count("Advantage") == kinds.count("Drawback") == 3


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["id"])
def test_claim_is_recorded(claim):
    assert claim["id"] in {i for ids in PAGES.values() for i in ids}
    if "page" in claim:
        assert claim["id"] in PAGES.get(claim["page"], []), f"{claim['page']} does not record it"


def test_no_claim_is_recorded_that_is_not_there():
    known = {claim["id"] for claim in CLAIMS}
    assert {page: {*ids} - known for page, ids in PAGES.items() if {*ids} - known} == {}


def test_the_page_names_the_rows_that_it_means():
    """The prose of the page gives rows by number: those of the notes that it speaks of."""
    text = (BOOK / "claims.md").read_text()
    of = {claim["id"]: claim["claim"] for claim in CLAIMS}
    assert "own, {ref}`claim-21` and {ref}`claim-22`, and each doubt" in text
    assert "too, {ref}`claim-15` and {ref}`claim-17`." in text
    assert "of their own: claims 21, 22, 29 and 30." in text
    assert "[10]" in of["21"] and "[14]" in of["22"] and "[10]" in of["15"] and "[14]" in of["17"]
    assert "[16]" in of["29"] and "[17" in of["30"]
