"""Every page of the built book in a browser, as it meets a reader.

Each check is a function that returns what is wrong, so that it can be tried on a page that was
broken on purpose (at the end of the file).
"""

import io
import itertools
import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from conftest import ROOT

HTML = ROOT / "_build" / "html"
SOURCES = sorted(path.relative_to(ROOT) for path in (ROOT / "book").rglob("*.md"))
PAGES = [path.with_suffix("").as_posix() for path in SOURCES]
PAGES += ["search", "genindex", "py-modindex"]
FIGURE = "article :is(.cell_output, figure) img:not(.vt-still)"
WIDTHS = [360, 640, 1280]  # 640 is 1280 at 200 % zoom
MEGABYTES = 2.0
SECONDS = 1.0
SHADE = 24  # pixels, two to a CSS pixel


class Visit:
    """A page that is open, with what it asked for and complained about."""

    def __init__(self, browser, path, theme="light", width=1280, typeset=True, **context):
        self.path, self.requests, self.errors = path, set(), []
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **context)
        self.context.add_init_script(
            f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}');"
            "window.busy = []; new PerformanceObserver((list) => busy.push(...list.getEntries()))"
            ".observe({type: 'longtask', buffered: true});"
        )
        self.page = self.context.new_page()
        self.page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.add(request.url))
        self.page.route(re.compile("^(?!file:|data:|blob:)"), lambda route: route.abort())
        if not typeset:
            self.page.route("**/mathjax/**", lambda route: route.abort())
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state()
        if typeset:
            self.page.evaluate("window.MathJax?.startup?.promise.then(() => true)")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def run(self, script):
        return self.page.evaluate(script)


@pytest.fixture(scope="module", params=PAGES)
def path(request, site):
    return HTML / f"{request.param}.html"


@pytest.fixture(scope="module")
def visit(chromium, path):
    with Visit(chromium, path) as opened:
        yield opened


# The checks


def noises(visit):
    """Errors, and requests that leave the book."""
    away = [u for u in visit.requests if urlsplit(u).scheme not in {"file", "data", "blob"}]
    return visit.errors + away


def headings(visit):
    """One h1, and no level left out, among what is shown."""
    levels = visit.run(
        "[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')]"
        ".filter((h) => h.checkVisibility()).map((h) => Number(h.tagName[1]))"
    )
    wrong = [] if levels.count(1) == 1 else [f"{levels.count(1)} headings of level 1"]
    steps = itertools.pairwise(levels)
    return wrong + [f"h{a} is followed by h{b}" for a, b in steps if b > a + 1]


def pictures(visit):
    """Words that say what a picture shows, each once, and its size."""
    images = visit.run(
        "[...document.images].map((i) => [i.alt, i.getAttribute('src'), i.closest('article') &&"
        " i.hasAttribute('width') && i.hasAttribute('height') || !i.closest('article')])"
    )
    wrong = []
    for alt, source, sized in images:
        if not alt.strip() or Path(source).name in alt or re.search(r"\.(png|svg|jpe?g)\b", alt):
            wrong.append(f"{source} has no words: {alt!r}")
        if not sized:
            wrong.append(f"{source} has no size")
    sources = {(alt, source) for alt, source, _ in images}
    counts = Counter(alt for alt, _ in sources)
    return wrong + [f"twice: {alt}" for alt, n in counts.items() if n > 1]


CONTROLS = "a[href], button, input, select, textarea, summary, [tabindex]:not([tabindex='-1'])"


def controls(visit):
    """What can be operated and is not in the tab order at its place in the text, or is there
    though it is hidden from screen readers."""
    return visit.run(
        f"""[...document.querySelectorAll(`{CONTROLS}`)]
        .filter((c) => c.checkVisibility({{visibilityProperty: true}}) && !c.disabled)
        .filter((c) => (c.tabIndex !== 0) !== Boolean(c.closest('[aria-hidden=true]')))
        .map((c) => c.outerHTML.slice(0, 120))"""
    )


def skipping(visit):
    """The first stop leads past the navigation, into the text."""
    visit.page.keyboard.press("Tab")
    visit.page.wait_for_timeout(300)  # it slides in
    first = visit.run(
        "(({top, height}) => [document.activeElement.hash, top >= 0 && height > 0])"
        "(document.activeElement.getBoundingClientRect())"
    )
    visit.page.keyboard.press("Enter")
    visit.page.keyboard.press("Tab")
    inside = visit.run("!!document.activeElement.closest('main')")
    return [] if [*first, inside] == ["#main-content", True, True] else [(first, inside)]


def sideways(visit):
    """Widths at which the page itself has to be scrolled sideways."""
    wide = []
    for width in WIDTHS:
        visit.page.set_viewport_size({"width": width, "height": 900})
        needed = visit.run("document.documentElement.scrollWidth")
        if needed > width:
            wide.append(f"{needed} px wide at {width} px")
    visit.page.set_viewport_size({"width": 1280, "height": 900})
    return wide


def motions(visit):
    """What still moves when the reader asked for no motion."""
    return visit.run(
        """['', '::before', '::after'].flatMap((part) => [...document.querySelectorAll('*')]
        .filter((e) => {
          const style = getComputedStyle(e, part || undefined);
          return style.scrollBehavior === 'smooth'
            || /[1-9]/.test(style.transitionDuration)
            || (style.animationName !== 'none' && /[1-9]/.test(style.animationDuration));
        }).slice(0, 5).map((e) => e.tagName + '.' + e.className + part))"""
    )


def weights(visit):
    """Bytes of each file that the page is made of, unpacked, with every picture."""
    images = visit.run("[...document.images].map((i) => i.src)")
    addresses = {urlsplit(u) for u in {*visit.requests, *images}}
    files = {Path(unquote(a.path)) for a in addresses if a.scheme == "file"}
    return {file.relative_to(HTML): file.stat().st_size for file in files}


def seconds_until_it_answers(visit):
    """From the navigation to the end of the last task that kept a reader waiting (100 ms)."""
    visit.page.wait_for_timeout(200)
    return visit.run(
        "Math.max(performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd,"
        " ...busy.filter((task) => task.duration > 100)"
        ".map((task) => task.startTime + task.duration)) / 1000"
    )


def unfold(visit):
    """Open what is folded, without the time that it takes to appear."""
    visit.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    visit.run("document.getAnimations().forEach((animation) => animation.finish())")


def violations(visit):
    """What axe-core finds with all its rules, in what is folded too."""
    from axe_playwright_python.sync_playwright import Axe

    unfold(visit)
    # Its own way to load style sheets again does not work from files.
    options = {"resultTypes": ["violations"], "preload": False}
    # It reads no MathML, so a header that is a formula alone is empty to it.
    visit.run(
        "document.querySelectorAll('th:has(math)').forEach((th) => th.append(th.textContent))"
    )
    found = Axe().run(visit.page, options=options).response["violations"]
    return [
        f"{rule['id']}: {len(rule['nodes'])} times, as in {rule['nodes'][0]['html'][:200]}"
        f" {rule['nodes'][0]['failureSummary'][:200]}"
        for rule in found
    ]


# What is checked of every page


def test_pages_are_those_of_the_book(site):
    assert {HTML / f"{name}.html" for name in ["index", *PAGES]} == {*site}


def test_the_first_page_leads_on(chromium, site):
    page = chromium.new_page()
    page.goto((HTML / "index.html").as_uri())
    page.wait_for_url("**/book/intro.html")
    page.close()


def test_opens_without_error_and_asks_nobody_else(visit):
    assert noises(visit) == []


def test_has_one_title_and_no_gap_in_its_headings(visit):
    assert headings(visit) == []


def test_says_what_its_pictures_show(visit):
    assert pictures(visit) == []


def test_controls_are_in_the_tab_order(visit):
    assert controls(visit) == []


def test_skip_link_leads_into_the_text(chromium, path):
    with Visit(chromium, path, typeset=False) as opened:
        assert skipping(opened) == []


def test_never_scrolls_sideways(visit):
    assert sideways(visit) == []


def test_stands_still_when_asked_to(visit):
    visit.page.emulate_media(reduced_motion="reduce")
    found = motions(visit)
    visit.page.emulate_media(reduced_motion="no-preference")
    assert found == []


def test_weighs_at_most_two_megabytes(visit):
    found = weights(visit)
    heaviest = sorted(found.items(), key=lambda item: -item[1])[:8]
    assert sum(found.values()) <= MEGABYTES * 1e6, (sum(found.values()), heaviest)


def test_answers_within_a_second(chromium, path, visit):
    times = [seconds_until_it_answers(visit)]
    while min(times) > SECONDS and len(times) < 3:  # other work on the machine only adds
        with Visit(chromium, path) as again:
            times.append(seconds_until_it_answers(again))
    assert min(times) <= SECONDS, times
    before = visit.run("document.documentElement.dataset.mode")
    button = visit.page.locator(".theme-switch-button").first
    button.click()
    assert visit.run("document.documentElement.dataset.mode") != before
    while visit.run("document.documentElement.dataset.mode") != before:
        button.click()


def test_every_formula_is_there_for_screen_readers(visit):
    formulas, empty = visit.run(
        """[[...document.querySelectorAll('span.math, div.math')]
          .filter((formula) => !formula.querySelector('math')),
        [...document.querySelectorAll('math')].filter((formula) => !formula.textContent.trim())]
        .map((found) => found.map((formula) => formula.outerHTML.slice(0, 100)))"""
    )
    assert formulas == empty == []


def test_icons_are_drawn(visit):
    missing = visit.run(
        """[...document.querySelectorAll('.article-header-buttons i[class*=fa-]')]
        .filter((icon) => icon.checkVisibility())
        .filter((icon) => !document.fonts.check('900 16px "Font Awesome 6 Free"')
          || icon.getBoundingClientRect().width < 5
          || !getComputedStyle(icon).fontFamily.includes('Font Awesome'))
        .map((icon) => icon.className)"""
    )
    assert missing == []


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_breaks_no_rule_of_axe(chromium, path, theme, width):
    # It takes seconds a page: two visits see both themes and both layouts. Formulas have the
    # colour of the text and are looked at in one of them.
    with Visit(chromium, path, theme, width, typeset=theme == "light") as opened:
        assert violations(opened) == []


# Figures, by their pixels


def _luminance(colour):
    low = colour / 12.92
    linear = np.where(colour <= 0.04045, low, ((colour + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def contrast(colours, ground):
    """The ratio of WCAG, from 1 to 21; colours from 0 to 1."""
    a, b = _luminance(colours), _luminance(ground)
    return (np.maximum(a, b) + 0.05) / (np.minimum(a, b) + 0.05)


def pale_ink(pixels, ground):
    """What cannot be made out in a figure on a page of colour `ground`; pixels (H, W, 3), two to
    a CSS pixel, from 0 to 1.

    - The colour that most of the figure's border has is that of the page.
    - Ink is what differs from it by a ratio of 1.3: less is the ground of a picture. Squares of
      7 pixels that are all ink are areas, and the rest is text, lines and marks, of which only
      pixels count that have none of more contrast beside them, so no blend at an edge. A colour
      that makes up 3 per cent or more of these was meant: it has a contrast of 3 or more. In a
      picture of digits the strokes fade, so what is pale within 12 CSS pixels of darker ink is
      the shade of that; a line goes further.
    - Text is the darkest of it: a tenth or more has a contrast of 4.5.
    """
    from scipy import ndimage

    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colours, counts = np.unique(border.round(2), axis=0, return_counts=True)
    if np.abs(colours[counts.argmax()] - ground).max() > 0.02:
        return [f"stands on a panel of its own, {colours[counts.argmax()]}"]
    ratio = contrast(pixels, ground)
    ink = ratio >= 1.3
    areas = ndimage.binary_opening(ink, np.ones((7, 7)))
    thin = ink & ~ndimage.binary_dilation(areas, np.ones((5, 5)))
    thin &= ratio >= 0.98 * ndimage.maximum_filter(ratio, 3)
    thin &= (ratio >= 3) | (ndimage.maximum_filter(ratio, 2 * SHADE + 1) < 3)
    if not thin.any():
        return ["is empty"]
    levels = (pixels[thin] * 255).round().astype(int)
    colours, counts = np.unique(levels, axis=0, return_counts=True)
    shares, ratios = counts / len(levels), contrast(colours / 255, ground)
    wrong = [
        f"#{bytes(colour.tolist()).hex()} has {ratio:.2f} to 1, {share:.0%} of the ink"
        for colour, share, ratio in zip(colours, shares, ratios, strict=True)
        if share >= 0.03 and ratio < 3
    ]
    return wrong if shares[ratios >= 4.5].sum() >= 0.1 else [*wrong, "no text has 4.5 to 1"]


def pale_figures(visit):
    """The figures of a page with what cannot be made out in them."""
    from PIL import Image

    ground = visit.run("getComputedStyle(document.body).backgroundColor")
    ground = np.array([int(part) for part in re.findall(r"\d+", ground)[:3]]) / 255
    unfold(visit)
    wrong = []
    for figure in visit.page.locator(FIGURE).all():
        picture = Image.open(io.BytesIO(figure.screenshot(animations="disabled")))
        found = pale_ink(np.asarray(picture.convert("RGB")) / 255, ground)
        wrong += [f"{figure.get_attribute('alt')[:50]}: {problem}" for problem in found]
    return wrong


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_can_be_made_out(chromium, path, theme):
    with Visit(chromium, path, theme, device_scale_factor=2) as opened:
        assert pale_figures(opened) == []


# What the checks find in a page that was broken on purpose


@pytest.fixture(scope="module")
def broken(chromium, site):
    """Opens a page of the book after a change of its text, from a file beside it."""
    whole = HTML / "book" / "scale.html"
    copy = whole.with_name("broken.html")

    def opened(before, after, **how):
        text = whole.read_text()
        assert before in text
        copy.write_text(text.replace(before, after, 1))
        return Visit(chromium, copy, **how)

    yield opened
    copy.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("check", "before", "after"),
    [
        (noises, "</body>", "<script src='https://example.org/x.js'></script></body>"),
        (noises, "</body>", "<script>undefined.x</script></body>"),
        (headings, "<article", "<h1>Again</h1><article"),
        (headings, "</article>", "<h2>a</h2><h4>b</h4></article>"),
        (pictures, 'alt="', 'alt="" title="'),
        (pictures, 'alt="', 'alt="growth.svg" title="'),
        (pictures, "</article>", "<img src='a' alt='b' width=1 height=1><img src='c' alt='b'>"),
        (controls, "</article>", "<button tabindex='-1'>b</button></article>"),
        (controls, "</article>", "<a href='#' tabindex='3'>b</a></article>"),
        (skipping, 'id="main-content"', ""),
        (sideways, "</article>", "<p style='width: 700px'>a</p></article>"),
        (violations, "</article>", "<p style='color: #aaa'>Grey text.</p></article>"),
        (violations, "</article>", "<button></button></article>"),
        (pale_figures, "</head>", "<style>img { opacity: 0.2; }</style></head>"),
    ],
)
def test_a_broken_page_is_found_out(broken, check, before, after):
    with broken(before, after, device_scale_factor=2) as opened:
        assert check(opened)


def test_motion_is_found_out(broken):
    style = "<style>a { transition: color 1s !important; }</style></head>"
    with broken("</head>", style, reduced_motion="reduce") as opened:
        assert motions(opened)


def test_a_busy_page_is_found_out(broken):
    work = "<script>const end = Date.now() + 1200; while (Date.now() < end);</script></body>"
    with broken("</body>", work) as opened:
        assert seconds_until_it_answers(opened) > SECONDS


def test_a_figure_without_its_filter_is_found_out(broken):
    with broken(
        "</head>",
        "<style>img { filter: none !important; }</style></head>",
        theme="dark",
        device_scale_factor=2,
    ) as opened:
        assert pale_figures(opened)


def test_a_pale_line_is_found_out():
    pixels = np.ones((200, 200, 3))
    pixels[20:40:3, 20:180] = 0.1  # text
    assert pale_ink(pixels, np.ones(3)) == []
    pixels[100:103, 20:180] = 0xD9 / 255
    assert "#d9d9d9" in pale_ink(pixels, np.ones(3))[0]
