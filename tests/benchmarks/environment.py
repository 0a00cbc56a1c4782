"""Make the environment of the benchmarks, ``.venv-bench``, once, and run ``run.py`` in it.

    python tests/benchmarks/environment.py [arguments of run.py]

It holds the package of this repository, torch as pinned in ``constraints.txt`` and the libraries
of ``requirements.txt``. The project's own ``.venv`` and its pins stay as they are. ``TORCH_INDEX``
names another package index to take torch from.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / ".venv-bench"
PYTHON = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
SOURCES = [ROOT / "pyproject.toml", ROOT / "constraints.txt", HERE / "requirements.txt"]


def install() -> None:
    """Nothing to do while the stamp is younger than all that says what to install."""
    stamp = FOLDER / ".installed"
    if stamp.exists() and all(s.stat().st_mtime <= stamp.stat().st_mtime for s in SOURCES):
        return
    if not PYTHON.exists():
        venv.create(FOLDER, with_pip=True)
    index = os.environ.get("TORCH_INDEX")
    subprocess.run(
        [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        + (["--extra-index-url", index] if index else [])
        + ["-c", ROOT / "constraints.txt", "-e", ROOT, "-r", HERE / "requirements.txt"],
        check=True,
    )
    stamp.touch()


if __name__ == "__main__":
    install()
    sys.exit(subprocess.run([PYTHON, HERE / "run.py", *sys.argv[1:]]).returncode)
