"""Build the book (``html``), or execute and measure its pages and keep their notebooks
(``notebooks``). ``make`` calls this; so do the tests, which must never read a stale page."""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

BUILT = ROOT / "_build" / "html"
EXPORTED = ROOT / "_build" / "notebooks"
NOTEBOOKS = ROOT / "book" / "notebooks"
COSTS = ROOT / "book" / "costs.json"
STATE = ROOT / "_build" / "built-from.json"


def sources() -> dict[str, str]:
    """Everything a built page follows from, with its SHA-256."""
    patterns = [
        "_*.yml",
        "CHANGELOG.md",
        "CITATION.cff",
        "constraints.txt",
        "vaetutor/**/*.py",
        "vaetutor/live/live.js",
        "book/**/*",
    ]
    paths = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    skipped = {NOTEBOOKS, *ROOT.glob("book/**/__pycache__")}
    return {
        path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(paths)
        if not skipped & {*path.parents}
    }


def changed_sources() -> set[str] | None:
    """What differs from the sources of the built pages; None if there are none."""
    if not (STATE.exists() and (BUILT / "index.html").exists()):
        return None
    before, now = json.loads(STATE.read_text()), sources()
    return {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)}


def build() -> None:
    """Bring the built pages up to date with their sources; a warning is an error.

    Sphinx reports a warning only when it reads the page anew, so a failed build leaves no state
    behind, and anything but a change in the text of pages starts from nothing.
    """
    STATE.parent.mkdir(exist_ok=True)
    with FileLock(STATE.with_suffix(".lock")):
        _build()


def _build() -> None:
    changed = changed_sources()
    if changed is not None and not changed:
        return
    before = sources()
    STATE.unlink(missing_ok=True)
    only_text = changed is not None and all(re.fullmatch(r"book/.*\.md", p) for p in changed)
    jupyter_book = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command = [*jupyter_book, "build", ".", "-W", "-n", "--keep-going"]
    if not only_text:
        shutil.rmtree(BUILT, ignore_errors=True)
        command.append("--all")
    subprocess.run(command, check=True, cwd=ROOT)
    STATE.write_text(json.dumps(before, indent=1))


def settings() -> dict[str, Any]:
    """Those of the book."""
    import yaml

    return yaml.safe_load((ROOT / "_config.yml").read_text())


def pages() -> list[Path]:
    """The pages with code, in the order of the file names."""
    from myst_nb.core.read import is_myst_markdown_notebook

    found = sorted((ROOT / "book").glob("*.md"))
    return [path for path in found if is_myst_markdown_notebook(path.read_text())]


def read(page: Path) -> "NotebookNode":
    """`page` as a notebook that has not been run."""
    from myst_nb.core.read import read_myst_markdown_notebook
    from myst_parser.config.main import MdParserConfig

    extensions = set(settings()["parse"]["myst_enable_extensions"])
    return read_myst_markdown_notebook(
        page.read_text(),
        config=MdParserConfig(enable_extensions=extensions),
        add_source_map=True,
        path=str(page),
    )


def run(notebook: "NotebookNode", page: Path) -> None:
    """Run `notebook`, which is `page`, in a kernel of its own."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    client = NotebookClient(
        notebook,
        timeout=settings()["execute"]["timeout"],
        record_timing=False,
        resources={"metadata": {"path": str(page.parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        sys.exit(f"{page.name} failed.\n{error}")


def execute(page: Path) -> dict[str, int | str]:
    """Run `page`, put the result into the book's execution cache, and return what it cost:
    seconds from the start of the kernel, peak resident memory."""
    import psutil
    import torch
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn
    from vaebook import execution_cache

    notebook = read(page)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        kernels: dict[int, psutil.Process] = {}
        while not done.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                kernels.setdefault(process.pid, process)
            total = 0
            for process in kernels.values():
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    try:
        run(notebook, page)
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    bundle = CacheBundleIn(notebook, str(page), data={"execution_seconds": seconds})
    cache = get_cache(str(execution_cache()))
    cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "seconds": max(1, round(seconds)),
        "memory_mb": int(round(peak / 1e6, -1)),
        "cores": cores or 1,
        "python": ".".join(map(str, sys.version_info[:2])),
        "torch": torch.__version__.split("+")[0],
    }


def put_costs_into_readme(costs: dict[str, dict[str, int | str]]) -> None:
    """In the README's chapter table the row that links to a page holds its time and memory."""
    readme = ROOT / "README.md"
    lines = readme.read_text().splitlines(keepends=True)
    for page, cost in costs.items():
        for number, line in enumerate(lines):
            if line.startswith("|") and f"book/{page}.md" in line:
                line = re.sub(r"\b\w+ s(?= \|)", f"{cost['seconds']} s", line)
                lines[number] = re.sub(r"\b\w+ MB(?= \|)", f"{cost['memory_mb']} MB", line)
    readme.write_text("".join(lines))


def make_notebooks() -> None:
    """Execute and measure every page, build, and keep the exported notebooks."""
    costs = {}
    for page in pages():
        costs[page.stem] = execute(page)
        print(f"{page.name}: {costs[page.stem]['seconds']} s, {costs[page.stem]['memory_mb']} MB")
    COSTS.write_text(json.dumps(costs, indent=2) + "\n")
    put_costs_into_readme(costs)
    STATE.unlink(missing_ok=True)
    build()
    shutil.rmtree(NOTEBOOKS, ignore_errors=True)
    shutil.copytree(EXPORTED, NOTEBOOKS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["html", "notebooks"])
    what = parser.parse_args().what
    try:
        build() if what == "html" else make_notebooks()
    except subprocess.CalledProcessError:
        sys.exit("The book was not built: see the warnings above, which count as errors.")
    print(f"The book is built. Open {(BUILT / 'index.html').as_uri()}")


if __name__ == "__main__":
    main()
