"""Make the environment of the benchmarks, ``.venv-bench``, once, and run ``run.py`` in it.

    python tests/benchmarks/environment.py [arguments of run.py]

It holds the package of this repository, torch as pinned in ``constraints.txt`` and the libraries
of ``requirements.txt``. The project's own ``.venv`` and its pins stay as they are. ``TORCH_INDEX``
names another package index to take torch from.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PINS, WANTED = ROOT / "constraints.txt", HERE / "requirements.txt"


def main() -> int:
    sys.path.insert(0, str(ROOT / "tools"))
    import venvs

    python = venvs.make(
        ROOT / ".venv-bench",
        sys.executable,
        ["-c", PINS, "-e", ROOT, "-r", WANTED],
        [ROOT / "pyproject.toml", PINS, WANTED],
    )
    return subprocess.run([python, HERE / "run.py", *sys.argv[1:]]).returncode


if __name__ == "__main__":
    sys.exit(main())
