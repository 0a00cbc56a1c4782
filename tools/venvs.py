"""Virtual environments beside ``.venv``, each made once: for the benchmarks, and as on Colab."""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path


def interpreter(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make(
    folder: Path, python: str, arguments: Iterable[str | Path], sources: Iterable[Path]
) -> Path:
    """The interpreter of `folder`, an environment of `python` that holds what ``pip install``
    makes of `arguments`. ``TORCH_INDEX`` names another package index to take torch from.

    Nothing to do while its stamp is younger than all `sources`, which say what to install.
    """
    stamp = folder / ".installed"
    ours = interpreter(folder)
    if stamp.exists() and all(s.stat().st_mtime <= stamp.stat().st_mtime for s in sources):
        return ours
    if not ours.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    index = os.environ.get("TORCH_INDEX")
    subprocess.run(
        [ours, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        + (["--extra-index-url", index] if index else [])
        + [*arguments],
        check=True,
    )
    stamp.touch()
    return ours
