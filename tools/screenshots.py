"""Write every page of the built book as pictures, to look at: three widths, two themes."""

import sys
from pathlib import Path

from browser import launch
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "_build" / "html"
TARGET = ROOT / "_build" / "screenshots"
TALLEST = 16_000  # pixels: what the browser can draw at once


def shoot(names: list[str]) -> None:
    pages = [path for path in BUILT.rglob("*.html") if "_static" not in path.parts]
    with sync_playwright() as playwright:
        browser = launch(playwright)
        for theme in ("light", "dark"):
            for width in (390, 768, 1280):
                page = browser.new_page(viewport={"width": width, "height": 900})
                page.add_init_script(
                    f"localStorage.setItem('mode', '{theme}');"
                    f"localStorage.setItem('theme', '{theme}');"
                )
                for path in pages:
                    name = path.relative_to(BUILT).with_suffix("").as_posix().replace("/", "-")
                    if name == "index" or (names and not any(part in name for part in names)):
                        continue
                    page.goto(path.as_uri())
                    page.evaluate("window.MathJax?.startup?.promise.then(() => true)")
                    height = page.evaluate("document.documentElement.scrollHeight")
                    for part, top in enumerate(range(0, height, TALLEST)):
                        file = TARGET / f"{name}-{width}-{theme}-{part}.jpg"
                        rest = min(height - top, TALLEST)
                        page.set_viewport_size({"width": width, "height": rest})
                        page.evaluate(f"scrollTo(0, {top})")
                        page.screenshot(path=file, quality=60, type="jpeg")
                    page.set_viewport_size({"width": width, "height": 900})
                page.close()


if __name__ == "__main__":
    shoot(sys.argv[1:])
