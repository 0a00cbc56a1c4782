"""What leads a reader through the book: names, links to terms, references, neighbours."""

import json
import re
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs, urldefrag, urljoin, urlsplit

import pytest
import yaml

pytest.importorskip("jupyter_book", reason="needs the extra `book`")
# Sphinx and its extensions warn about one another.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

from bs4 import BeautifulSoup, NavigableString  # noqa: E402
from pybtex.database import parse_string  # noqa: E402

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "_build" / "html"
CHAPTERS = sorted((ROOT / "book").glob("[0-9]*.md"))
NAMES = yaml.safe_load((ROOT / "book" / "formulas.yml").read_text())
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
OWNER, REPOSITORY = CONFIG["repository"]["url"].split("/")[-2:]
BASE = f"https://{OWNER}.github.io/{REPOSITORY}/"

sys.path.insert(0, str(ROOT / "book" / "_ext"))


def contents():
    """The pages in the order of ``_toc.yml``."""

    def flat(entries):
        for entry in entries:
            yield entry["file"]
            yield from flat(entry.get("sections", []))

    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(page for part in toc["parts"] for page in flat(part["chapters"]))]


@pytest.fixture(scope="module")
def soups(site):
    return {page: soup(page) for page in contents()}


def soup(page):
    return BeautifulSoup((BUILT / f"{page}.html").read_text(), "html.parser")


def text(node):
    """What is read, without the mark that links to a heading."""
    return re.sub(r"\s+", " ", node.get_text()).strip().removesuffix("#")


# Formulas


def labels():
    """Of the formulas, by page, as the sources have them."""
    return {
        path.stem: re.findall(r"^\$\$ \(([\w-]+)\)$", path.read_text(), re.MULTILINE)
        for path in CHAPTERS
    }


def test_each_formula_has_names_of_its_own():
    assert sorted(NAMES) == sorted(label for found in labels().values() for label in found)
    names = [name for found in NAMES.values() for name in found]
    assert all(NAMES.values()) and len({name.lower() for name in names}) == len(names)


def test_formulas_are_listed_with_names_and_numbers(soups):
    page = soups["book/formulas"]
    listed = {}
    for term in page.select("dl.formulas dt"):
        listed[urldefrag(term.a["href"])] = text(term)
        assert term.find_next_sibling("dd").select_one("div.math")
    wanted = {}
    for stem, found in labels().items():
        for label in found:
            anchor = f"equation-{label}"
            place = soups[f"book/{stem}"].find(id=anchor)
            number = text(place.select_one(".eqno"))
            wanted[f"{stem}.html", anchor] = f"{'; '.join(NAMES[label])} {number}"
    assert {key: value.replace("’", "'") for key, value in listed.items()} == wanted


def test_search_knows_the_formulas(site):
    index = (BUILT / "searchindex.js").read_text()
    index = json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))
    kinds = {i for i, kind in index["objnames"].items() if kind[1] == "formula"}
    found = {
        (index["docnames"][entry[0]], entry[3], entry[4].replace("&#x27;", "'"))
        for entries in index["objects"].values()
        for entry in entries
        if str(entry[1]) in kinds
    }
    names = {
        (f"book/{stem}", f"equation-{label}", name)
        for stem, here in labels().items()
        for label in here
        for name in NAMES[label]
    }
    assert names <= found
    british = {(page, place, name.replace("iz", "is")) for page, place, name in found - names}
    assert british and british <= {(p, place, n.replace("iz", "is")) for p, place, n in names}


def test_a_formula_without_a_name_is_a_problem():
    from formulas import problems

    assert problems({"a": ["name"]}, {"a"}) == []
    [missing] = problems({"a": ["name"]}, {"a", "b"})
    [empty] = problems({"a": ["name"], "b": []}, {"a", "b"})
    [gone] = problems({"a": ["name"], "b": ["other"]}, {"a"})
    assert missing == empty == "the formula b has no name" and gone == "there is no formula b"


@pytest.mark.parametrize("how", ["keys", "address"])
@pytest.mark.parametrize(
    ("query", "label", "within"),
    [
        ("reparameterised draw", "eq-draw", 1),
        ("sticking the landing", "eq-rp-total", 3),
        ("reparameterized draw", "eq-draw", 1),
    ],
)
def test_search_in_a_browser_leads_to_the_formula(site, chromium, how, query, label, within):
    """From files, with no request to anywhere."""
    page = chromium.new_page()
    outside = []
    page.on(
        "request",
        lambda r: None if r.url.startswith(("file:", "data:")) else outside.append(r.url),
    )
    start = (BUILT / "search.html").as_uri()
    if how == "keys":
        page.goto(start)
        page.locator("main input[name=q]").fill(query)
        page.keyboard.press("Enter")
    else:
        page.goto(f"{start}?q={query.replace(' ', '+')}")
    page.wait_for_selector("text=Search finished")
    links = page.locator("ul.search > li > a").all()[:within]
    [link] = [a for a in links if a.get_attribute("href").endswith(f"#equation-{label}")]
    link.click()
    page.wait_for_load_state()
    assert page.url.endswith(f"#equation-{label}")
    assert page.locator(f"#equation-{label}").is_visible()
    page.close()
    assert not outside


# Terms

NO_PROSE = "h1, h2, h3, h4, h5, h6, pre, code, a, table, figcaption, script, style, summary"
NO_PROSE += ", .math, .cell, .caption-text, .admonition-title, .exercise-facts, .run-cost"


def occurrences(prose, terms):
    """The terms that occur in `prose`, each stretch of it counted for the longest."""
    for term in sorted(terms, key=len, reverse=True):
        first = f"[{term[0]}{term[0].upper()}]"
        rest = re.escape(term[1:].removesuffix("y")).replace("'", ".")
        ending = "(y|ies)" if term.endswith("y") else "(s|es)?"
        pattern = rf"(?<![\w-]){first}{rest}{ending}(?![\w-])"
        prose, count = re.subn(pattern, "\0", prose)
        if count:
            yield term


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_terms_are_linked_where_prose_first_uses_them(soups, path):
    from terms import NOT_THE_TERM

    entries = {f"#{term['id']}": text(term) for term in soups["book/glossary"].select("dl dt")}
    terms = {*entries.values(), *NOT_THE_TERM}
    linked = {*NOT_THE_TERM}
    article = soups[f"book/{path.stem}"].select_one("article")
    apart = {id(node) for node in article.select(NO_PROSE)}
    for node in article.descendants:
        if not isinstance(node, NavigableString):
            if node.name == "a" and node.get("href", "").startswith("glossary.html#term"):
                linked.add(entries[node["href"].removeprefix("glossary.html")])
        elif not any(id(parent) in apart for parent in node.parents):
            prose = re.sub(r"\s+", " ", node)
            assert not {*occurrences(prose, terms)} - linked, prose
    assert len(linked) > len(NOT_THE_TERM)


def test_which_words_are_a_term():
    from docutils import nodes
    from docutils.frontend import get_default_settings
    from docutils.utils import new_document
    from terms import link_terms

    document = new_document("page", get_default_settings())
    section = nodes.section("", nodes.title("", "The prior"))
    section += nodes.paragraph(
        "", "Prior-free: Priors, a posterior collapse, log-evidence, then the posterior"
    )
    section += nodes.paragraph(
        "", "and its evidence after posteriors. Variational Families, reinforced."
    )
    section += nodes.paragraph("", "", nodes.literal("", "baseline"), nodes.Text(" and baseline."))
    document += section
    terms = ["baseline", "evidence", "posterior", "posterior collapse", "prior", "REINFORCE"]
    link_terms(document, terms, "page")
    links = [n for n in document.findall() if n.tagname == "pending_xref"]
    assert [(n["reftarget"], n.astext()) for n in links] == [
        ("prior", "Priors"),
        ("posterior collapse", "posterior collapse"),
        ("posterior", "posterior"),
        ("evidence", "evidence"),
        ("baseline", "baseline"),
    ]
    assert links[-1].parent.children[0].tagname == "literal"
    before = document.astext()
    link_terms(document, terms, "page")
    assert len([n for n in document.findall() if n.tagname == "pending_xref"]) == len(links)
    assert document.astext() == before


# References and errata


def test_every_page_says_how_to_cite_it(soups):
    root = contents()[0]
    for page, content in soups.items():
        [tools] = content.select("footer .page-tools")
        bibtex = text(tools.select_one("pre"))
        [(_, entry)] = parse_string(bibtex, "bibtex").entries.items()
        fields, address = entry.fields, f"{BASE}{page}.html"
        title = CITATION["title"]
        if page != root:
            assert entry.type == "incollection" and fields["booktitle"] == title
            title = re.sub(r"^[\d.]+ ", "", text(content.select_one("article h1")))
        assert fields["title"].replace("\\", "") == title, page
        assert fields["year"] == CONFIG["copyright"] and fields["url"] == address
        assert CITATION["version"] in fields["note"]
        names = [person["name"] for person in CITATION["authors"]]
        assert [str(p).strip("{}") for p in entry.persons["author"]] == names
        plain = text(tools.select_one("p"))
        for part in (*names, title, CITATION["title"], CITATION["version"], address):
            assert part in plain, (page, part)


def test_every_page_leads_to_its_source_and_to_the_errata(soups):
    repository = CONFIG["repository"]["url"]
    for page, content in soups.items():
        report, edit, errata = content.select(".page-tools li a")
        assert report["href"].startswith(f"{repository}/issues/new?")
        query = parse_qs(urlsplit(report["href"]).query)
        heading = re.sub(r"^[\d.]+ ", "", text(content.select_one("article h1")))
        assert heading in query["title"][0], page
        assert f"{BASE}{page}.html" in query["body"][0] and CITATION["version"] in query["body"][0]
        assert edit["href"] == f"{repository}/edit/{CONFIG['repository']['branch']}/{page}.md"
        assert urljoin(f"{BASE}{page}.html", errata["href"]) == f"{BASE}book/errata.html"


def test_a_person_is_cited_by_both_names():
    from cite import references

    people = [{"given-names": "Ada", "family-names": "Byron"}, {"name": "A & B"}]
    citation = {"authors": people, "title": "Book", "version": "2.0"}
    made = references(citation, "2030", "book/api/x_y", "A_1", "https://a.test/x")
    assert made["plain"] == (
        "Ada Byron, A & B (2030). A_1. In: Book (version 2.0). https://a.test/x"
    )
    assert made["bibtex"].startswith("@incollection{vaetutor-api-x_y,\n")
    assert r"author = {Ada Byron and {A \& B}}" in made["bibtex"]
    assert r"title = {A\_1}" in made["bibtex"]


def test_newest_section_of_the_changelog_is_this_version(soups):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == project["version"]
    assert project["version"] in text(soups["book/changelog"].select_one("article h2"))
    errata = [text(h) for h in soups["book/errata"].select("article h3")]
    assert errata[0] == f"Version {project['version']}"


# From page to page


def test_neighbours_are_those_of_the_contents(soups):
    order = contents()
    for before, after in pairwise(order):
        for page, other, side in ((before, after, ".right-next"), (after, before, ".left-prev")):
            [link] = soups[page].select(f".prev-next-area {side}")
            assert (BUILT / page).parent.joinpath(link["href"]).resolve() == (
                BUILT / f"{other}.html"
            ), page
            heading = text(soups[other].select_one("article h1"))
            shown = text(link.select_one(".prev-next-title"))
            assert shown.split(". ")[-1] == heading.split(". ")[-1], page
    assert not soups[order[0]].select(".left-prev") and not soups[order[-1]].select(".right-next")


def test_every_page_lists_its_sections(soups):
    """In the reference of the package, what a module offers."""
    for page, content in soups.items():
        listed = content.select("nav.page-toc > ul > li > a")
        if page.startswith("book/api/") and page != "book/api/index":
            assert listed and all(content.find(id=link["href"][1:]) for link in listed), page
        else:
            headings = content.select("article > section > section > h2")
            assert list(map(text, listed)) == list(map(text, headings)), page


def test_search_page_is_labelled_and_local(site):
    content = soup("search")
    fields = content.select("input[name=q]")
    assert fields and all(field["aria-label"].strip() for field in fields)
    assert {form["action"] for form in content.select("form.bd-search")} <= {"#", "search.html"}
    assert not [s["src"] for s in content.select("script[src]") if urlsplit(s["src"]).netloc]
