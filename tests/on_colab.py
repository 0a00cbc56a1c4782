"""Run the committed notebooks as Colab would: ``python tests/on_colab.py [intro 05b_flows ...]``.

Each notebook alone goes into an empty folder, and its kernel into a fresh environment that holds
what Colab preinstalls (``on_colab.txt``) and not this package. The set-up cell runs as committed:
git is told to take the repository's address from a repository made here, of the files as they
are, so pip builds and installs what a reader would get. ``--python`` names other interpreters.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from notebook_text import faults

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import venvs  # noqa: E402

import book  # noqa: E402

HOLDS = Path(__file__).with_suffix(".txt")
PINS = ROOT / "constraints.txt"
VERSIONS = ("3.11", "3.12")  # of Python: what Colab holds has no builds for newer ones


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def base_environment(python: str) -> Path:
    """The folder with what Colab holds, for the version of `python`."""
    say = "import sys; print('{}.{}'.format(*sys.version_info))"
    try:
        version = output_of(python, "-c", say).strip()
    except (OSError, subprocess.CalledProcessError):
        sys.exit(f"{python} does not run: name others by PYTHONS='...'")
    if version not in VERSIONS:
        sys.exit(f"{python} is {version}, not one of {VERSIONS}: name others by PYTHONS='...'")
    folder = ROOT / f".venv-colab-{version}"
    [torch] = [line for line in PINS.read_text().splitlines() if line.startswith("torch==")]
    venvs.make(folder, python, [torch, "-r", HOLDS], [PINS, HOLDS])
    return folder


@contextmanager
def fresh(base: Path) -> Iterator[Path]:
    """A copy of the environment `base`, by hard links: pip replaces files, it never writes into
    them."""
    with tempfile.TemporaryDirectory(prefix=".venv-colab-", dir=base.parent) as scratch:
        copy = Path(scratch, "venv")
        shutil.copytree(base, copy, symlinks=True, copy_function=os.link)
        yield copy


def repository(folder: Path) -> None:
    """Make `folder` a git repository with this one's files as they are, those not added too."""
    branch = book.settings()["repository"]["branch"]
    names = output_of(
        "git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"
    )
    for name in {*names.split("\0")} - {""}:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    author = ["-c", "user.name=vaetutor", "-c", "user.email=", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q", "-b", branch], ["add", "-f", "."], ["commit", "-qm", "."]):
        output_of("git", "-C", folder, *author, *command)


def additions(base: Path) -> str:
    """The pins of what Colab does not hold, so that a release elsewhere cannot fail this check.

    The weekly workflow runs the notebooks with the newest versions.
    """

    def name(line: str) -> str:
        return re.split(r"[=@ ]", line)[0].lower().replace("_", "-")

    held = {name(line) for line in holds(base)}
    return "".join(f"{pin}\n" for pin in PINS.read_text().split() if name(pin) not in held)


def surroundings(served: Path, home: str) -> dict[str, str]:
    """The kernel's variables: nothing of this project's, and git reads `served` and no network."""
    ours = ("PYTHON", "VAETUTOR_", "VIRTUAL_ENV", "IPYTHON", "JUPYTER", "MPL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{served.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": book.settings()["repository"]["url"],
        "GIT_ALLOW_PROTOCOL": "file",
        "IPYTHONDIR": home,
    }


def execute(notebook: NotebookNode, environment: Path, served: Path) -> list[str]:
    """Run all cells of `notebook` in an empty folder and say which did not do as they should."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    python = str(venvs.interpreter(environment))
    manager = AsyncKernelManager()
    manager._kernel_spec = KernelSpec(
        argv=[python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    )
    timeout = book.settings()["execute"]["timeout"]
    client = NotebookClient(notebook, km=manager, timeout=timeout, record_timing=False)
    try:
        with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as home:
            pins = Path(home, "pins.txt")
            pins.write_text(additions(environment))
            env = surroundings(served, home) | {"PIP_CONSTRAINT": str(pins)}
            client.execute(cwd=empty, env=env, cleanup_kc=True)
    except (CellControlSignal, DeadKernelError) as error:
        return [str(error)]
    return [
        f"meant to fail, and did not: {cell.source}"
        for cell in notebook.cells
        if "raises-exception" in cell.metadata.get("tags", [])
        and all(output.output_type != "error" for output in cell.outputs)
    ]


def holds(environment: Path) -> set[str]:
    """The packages of `environment` with their versions."""
    python = venvs.interpreter(environment)
    return {*output_of(python, "-m", "pip", "freeze", "--all").splitlines()}


def changes(base: Path, environment: Path) -> list[str]:
    """What the set-up cell did to `environment` that it should not have.

    A package that Colab holds and the cell replaces makes Colab ask to start the session again.
    """
    before, after = holds(base), holds(environment)
    found = [f"the set-up cell replaced {name}" for name in sorted(before - after)]
    [installed] = environment.glob("lib/python*/site-packages")
    missing = [
        name
        for name in output_of("git", "-C", ROOT, "ls-files", "vaetutor").splitlines()
        if (ROOT / name).is_file() and not (installed / name).is_file()
    ]
    return found + [f"not installed: {name}" for name in missing]


def check(path: Path, base: Path, served: Path) -> list[str]:
    """What a reader of the notebook at `path` would stumble over."""
    import nbformat
    from vaebook import base_address

    notebook = nbformat.read(path, 4)
    found = faults(notebook, base_address(book.settings()["repository"]["url"]))
    with fresh(base) as environment:
        found += execute(notebook, environment, served)
        found += changes(base, environment)
    if found:
        [setup] = [c for c in notebook.cells if "colab-setup" in c.metadata.get("tags", [])]
        said = "".join(output.get("text", "") for output in setup.outputs)
        found.append(f"the set-up cell said: {said}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", help="an interpreter; may be repeated")
    parser.add_argument("notebook", nargs="*", help="all if none is named")
    arguments = parser.parse_args()
    names = arguments.notebook or sorted(path.stem for path in book.NOTEBOOKS.glob("*.ipynb"))
    failed = 0
    with tempfile.TemporaryDirectory() as served:
        repository(Path(served))
        for python in arguments.python or [sys.executable]:
            base = base_environment(python)
            for name in names:
                start = time.perf_counter()
                found = check(book.NOTEBOOKS / f"{name}.ipynb", base, Path(served))
                failed += bool(found)
                seconds = time.perf_counter() - start
                print(f"{base.name} {name}: {'FAILED' if found else 'runs'}, {seconds:.0f} s")
                print("".join(f"  {fault}\n" for fault in found), end="", flush=True)
    sys.exit(failed and f"{failed} of the runs failed")


if __name__ == "__main__":
    main()
