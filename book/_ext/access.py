"""What the theme leaves undone for readers who cannot see, point or wait.

The theme and the extensions write much of a page by templates of their own, so the pages are
mended after they are written:

- controls get names, icons and header cells without words are kept from screen readers;
- images say how large they are, so that nothing moves while they arrive;
- scripts that no page uses are left out. The largest one drew the icons, which the style sheet
  can draw as well; that sheet and its fonts are cut down to what the pages need.

Code is highlighted without tags around what has the colour of plain text.
"""

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, NavigableString
from fontTools import subset
from PIL import Image
from pygments.formatters import HtmlFormatter
from pygments.styles import get_style_by_name
from pygments.token import Token
from sphinx.application import Sphinx
from sphinx.highlighting import PygmentsBridge

UNUSED_FILES = re.compile(r"/sphinx-thebe\.|/fontawesome\.js")
WORD = re.compile(r"[\w-]+")
UNUSED_SCRIPT = re.compile(r"const THEBE_JS_URL|kernelName = ")
REDIRECT = """<!DOCTYPE html>
<html lang="{language}">
<head>
<meta charset="utf-8" />
<meta http-equiv="refresh" content="0; url={address}" />
<title>{title}</title>
</head>
<body><main><h1><a href="{address}">{title}</a></h1></main></body>
</html>
"""

STYLES = ("a11y-high-contrast-light", "a11y-high-contrast-dark")  # the theme's own choice


class PlainNames(HtmlFormatter):
    """No tags around what neither style sets apart from a name; it is half of the code."""

    def _get_css_classes(self, ttype: object) -> str:
        styles = [get_style_by_name(name) for name in STYLES]
        plain = all(
            style.style_for_token(ttype) == style.style_for_token(Token.Name) for style in styles
        )
        return "" if plain else super()._get_css_classes(ttype)


def load_less_of_mathjax(app: Sphinx) -> None:
    """The parts that the pages need in place of one file with its menu, which is a third of it.

    ``access.js`` has the formulas typeset.
    """
    app.config.mathjax_path = "mathjax/startup.js"
    parts = ["input/tex", "output/chtml", "a11y/assistive-mml"]
    app.config.mathjax3_config = {"loader": {"load": parts}}


def drop_unused(soup: BeautifulSoup) -> None:
    for tag in soup.find_all(["script", "link"]):
        address = tag.get("src") or tag.get("href") or ""
        unused = UNUSED_SCRIPT.match(tag.get_text()) or tag.get("type") == "text/x-thebe-config"
        if "/sphinx-design" in address and not soup.select_one("[class*=sd-]"):
            unused = True
        if unused or UNUSED_FILES.search(address):
            tag.decompose()


def name_controls(soup: BeautifulSoup) -> None:
    for summary in soup.select("li > details > summary"):
        link = summary.parent.parent.find("a")
        summary["aria-label"] = link.get_text(" ", strip=True)
    if sidebar := soup.find(id="pst-primary-sidebar"):
        sidebar["role"] = "complementary"
        sidebar["aria-label"] = soup.select_one(".logo__title").get_text(strip=True)
    for icon in soup.select("i[class*=fa-], span.fa-solid"):
        icon["aria-hidden"] = "true"


def free_citations(soup: BeautifulSoup) -> None:
    """Their roles do not fit what is in them: one is deprecated, the other allows no links."""
    for tag in soup.select(".citation-list, .citation"):
        del tag["role"]


def free_empty_headers(soup: BeautifulSoup) -> None:
    """A table of pandas has them above its index: cells that head nothing are no headers."""
    for header in soup.find_all("th"):
        if not header.get_text(strip=True):
            header.name = "td"


def name_the_index(soup: BeautifulSoup) -> None:
    """A table of pandas gives the name of its index a row of its own: it goes into the corner."""
    for table in soup.select("table.dataframe"):
        rows = table.select("thead > tr")
        if len(rows) < 2:
            continue
        above, last = ([cell for cell in row.find_all(["th", "td"])] for row in rows[-2:])
        name, *empty = last
        if any(cell.get_text(strip=True) for cell in [above[0], *empty]) or name.get("colspan"):
            continue
        above[0].string = name.get_text(strip=True)
        above[0].name = "th"
        rows[-1].decompose()


def keep_marks(soup: BeautifulSoup) -> None:
    """A line must not begin with the mark of punctuation that follows a formula."""
    for formula in soup.select("article span.math"):
        after = formula.next_sibling
        if isinstance(after, NavigableString) and (mark := re.match(r"[.,;:)?!’”]+", after)):
            together = soup.new_tag("span", attrs={"class": "with-mark"})
            formula.wrap(together)
            together.append(mark[0])
            after.replace_with(after[mark.end() :])


def size_images(soup: BeautifulSoup, path: Path) -> None:
    for image in soup.find_all("img"):
        file = path.parent / unquote(urlsplit(image["src"]).path)
        if image.get("height") or file.suffix not in {".png", ".svg"} or not file.exists():
            continue
        width, height = _size(file)
        shown = float(image.get("width") or width)
        image["width"], image["height"] = round(shown), round(shown * height / width)


def _size(file: Path) -> tuple[float, float]:
    if file.suffix == ".png":
        return Image.open(file).size
    box = re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', file.read_text(encoding="utf-8"))
    return float(box[1]), float(box[2])


def needed_rules(sheet: str, words: set[str]) -> str:
    """A style sheet, without comments, less the rules for classes that are none of `words`."""
    made, end = [], 0
    while (start := sheet.find("{", end)) >= 0:
        head, depth, begin = sheet[end:start], 1, start + 1
        end = begin
        while depth:
            depth += {"{": 1, "}": -1}.get(sheet[end], 0)
            end += 1
        body = sheet[begin : end - 1]
        if head.startswith(("@media", "@supports")):
            body = needed_rules(body, words)
        elif not head.startswith("@"):
            heads = re.split(r",(?![^(\[]*[)\]])", head)
            head = ",".join(h for h in heads if _is_needed(h, words))
        if head and body:
            made.append(f"{head}{{{body}}}")
    return "".join(made)


def _is_needed(selector: str, words: set[str]) -> bool:
    names = re.findall(
        r"\.(-?[A-Za-z_](?:[\w-]|\\.)*)", re.sub(r":(not|is|where)\(.*", "", selector)
    )
    # Bootstrap makes names such as bs-tooltip-auto while it runs.
    return all(name in words or name.startswith("bs-") for name in names)


def shrink_theme(static: Path, words: set[str]) -> None:
    """Leave in the theme's style sheet what has to do with `words`, and in its fonts the icons
    that then still have a rule."""
    sheet = static / "styles" / "pydata-sphinx-theme.css"
    text = sheet.read_text(encoding="utf-8")
    licences = re.findall(r"/\*!.*?\*/", text, re.DOTALL)
    text = needed_rules(re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL), words)
    text += "".join(licences)
    icons = {int(code, 16) for code in re.findall(r'\{content:"\\([0-9a-f]+)"\}', text)}
    for font in (static / "vendor" / "fontawesome" / "webfonts").glob("*.ttf"):
        options = subset.Options(flavor="woff")
        loaded = subset.load_font(font, options)
        worker = subset.Subsetter(options)
        worker.populate(unicodes=icons)
        worker.subset(loaded)
        subset.save_font(loaded, font.with_suffix(".woff"), options)
        name = f"url(../vendor/fontawesome/webfonts/{font.stem}"
        text = text.replace(
            f'{name}.woff2) format("woff2"),{name}.ttf) format("truetype")',
            f'{name}.woff) format("woff")',
        )
    sheet.write_text(text, encoding="utf-8")


def mend(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.format != "html":
        return
    folder = Path(app.outdir)
    scripts = [*folder.glob("_static/*.js"), *folder.glob("_static/scripts/*.js")]
    scripts = [path for path in scripts if not UNUSED_FILES.search(path.as_posix())]
    words = {word for path in scripts for word in WORD.findall(path.read_text(encoding="utf-8"))}
    for path in folder.rglob("*.html"):
        if "_static" in path.parts:
            continue
        soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        if soup.head is None:
            continue
        drop_unused(soup)
        name_controls(soup)
        free_citations(soup)
        name_the_index(soup)
        free_empty_headers(soup)
        keep_marks(soup)
        size_images(soup, path)
        path.write_text(str(soup), encoding="utf-8")
        words |= {*WORD.findall(str(soup))}
    shrink_theme(folder / "_static", words)
    address = app.builder.get_target_uri(app.config.root_doc)
    redirect = REDIRECT.format(
        language=app.config.language, address=address, title=app.config.html_title
    )
    (folder / "index.html").write_text(redirect, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    PygmentsBridge.html_formatter = PlainNames
    app.connect("builder-inited", load_less_of_mathjax, priority=100)
    app.connect("build-finished", mend, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
