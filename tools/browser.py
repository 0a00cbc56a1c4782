"""A Chromium that this machine has, to print the book and to look at its pages as readers do."""

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
MISSING = (
    "No browser was found. Install Chromium or Google Chrome, or name one in the environment "
    "variable VAETUTOR_BROWSER."
)
# Nothing is fetched but the page, and no graphics card is needed.
LAUNCH = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def browser_path() -> str | None:
    """The browser that VAETUTOR_BROWSER names, or else the first of the usual ones."""
    chosen = os.environ.get("VAETUTOR_BROWSER")
    found = map(shutil.which, [chosen] if chosen else NAMES)
    return next(filter(None, found), None)


def launch(playwright: "Playwright") -> "Browser":
    """That browser, without a window."""
    path = browser_path()
    if path is None:
        raise FileNotFoundError(MISSING)
    return playwright.chromium.launch(executable_path=path, args=LAUNCH)
