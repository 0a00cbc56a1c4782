"""What all tests share: the device, float64, a fixed seed, a few distributions, the built book.

Statistical tests compare with a standard error and fail beyond Z_LIMIT standard errors. For one
comparison that is a false alarm in 1.7 million; the seed is fixed, so a test that passes keeps
passing until the code changes.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import torch.distributions as td
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import browser as browsers  # noqa: E402

Z_LIMIT = 5.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="run the tests on this device (cpu, cuda)")


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Make the wanted device the default, or skip with a reason."""
    chosen = torch.device(request.config.getoption("--device", "cpu"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    with chosen:
        yield chosen


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """Run the test with float64 as default; oracles are compared at 1e-8 or better."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class FixedNoise(td.Independent):
    """A diagonal normal that draws z = loc + scale * eps from noise given in advance.

    Shared noise makes bounds comparable to rounding: over batches and singles, over chunk sizes,
    over precisions and devices. The noise (S, B, D) is handed out from the front.
    """

    def __init__(self, loc: Tensor, scale: Tensor, eps: Tensor) -> None:
        super().__init__(td.Normal(loc, scale), 1)
        self.eps, self.used = eps, 0

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        (n,) = sample_shape
        eps = self.eps[self.used : self.used + n]
        assert len(eps) == n, "asked for more draws than there is noise"
        self.used += n
        return self.base_dist.loc + self.base_dist.scale * eps


def z_score(draws: Tensor, truth: Tensor | float) -> float:
    """The largest |mean - truth| in standard errors; draws along the first axis."""
    error = draws.std(0) / len(draws) ** 0.5
    return ((draws.mean(0) - truth).abs() / error).max().item()


class Page(HTMLParser):
    """What a page shows, names, links to and loads."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.images, self.anchors, self.links, self.loads = [], {""}, [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        if tag == "img":
            self.images.append(attrs)
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        if tag == "link" and {"stylesheet", "preload", "icon"} & {*attrs["rel"].split()}:
            self.loads.append(attrs["href"])
        if tag in {"script", "img", "iframe", "source", "video", "audio"} and "src" in attrs:
            self.loads.append(attrs["src"])


@pytest.fixture(scope="session")
def site():
    """The pages by their path, after they were brought up to date with the sources."""
    if importlib.util.find_spec("jupyter_book") is None:
        pytest.skip("the book is built with the extra `book`, which is not installed")
    made = subprocess.run(
        [sys.executable, "tools/book.py", "html"], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout[-5000:] + made.stderr[-5000:]
    paths = (ROOT / "_build" / "html").rglob("*.html")
    return {path.resolve(): Page(path) for path in paths if "_static" not in path.parts}


@pytest.fixture(scope="module")
def chromium():
    """A browser to look at pages with, where there is one."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed: it is in the extra `test`")
    if browsers.browser_path() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(browsers.MISSING)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = browsers.launch(playwright)
        yield opened
        opened.close()
