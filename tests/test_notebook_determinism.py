"""The check that two runs of a page are the same, on a small page that is made not to be."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupyter_book", reason="needs the extra `book`")
# Sphinx and its extensions warn about one another.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))
HEADER = """---
file_format: mystnb
kernelspec:
  name: python3
---

# A page
"""
SAME = {
    "a seeded draw": "import torch\ntorch.manual_seed(0)\ntorch.randn(3)",
    "a figure": "from vaetutor import plots\nfigure, ax = plots.figure()\nax.plot([0, 1])\n"
    'plots.show(figure, alt="A line.")',
    "a claim": 'from vaetutor import ledger\nledger.record("1", "a number", 0.5, verdict="holds")',
    "training": "from torch import nn\nfrom vaetutor import *\n"
    "vae = VAE(nn.Sequential(mlp(784, 8, 4), DiagonalNormal(2)),\n"
    "          nn.Sequential(mlp(2, 8, 784), Bernoulli(784)), StandardNormal(2))\n"
    'history = fit(vae, mnist("test"), TrainConfig(epochs=2))\nhistory.frame',
    "stderr": "import sys, time\nprint(time.time(), file=sys.stderr)",
}
DIFFERENT = {
    "a clock": "import time\ntime.perf_counter()",
    "an address": "object()",
    "an order of strings": 'print({*"abcdefghijklmnop"})',
    "a draw": "import numpy\nnumpy.random.rand()",
    "a figure": "import matplotlib.pyplot as plt, os\nplt.plot(list(os.urandom(9)));",
}


def check(path: Path, cells: dict[str, str], tags: str = "") -> subprocess.CompletedProcess[str]:
    fences = [f"```{{code-cell}}\n{tags}\n# {name}\n{code}\n```" for name, code in cells.items()]
    path.write_text(HEADER + "\n\n".join(fences) + "\n")
    command = [sys.executable, "tools/determinism.py", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_page_that_runs_alike_passes(tmp_path):
    done = check(tmp_path / "page.md", SAME)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "page.md: twice the same, 0 cells of measured time left out\n"


def test_every_cell_that_differs_is_named_and_no_other(tmp_path):
    done = check(tmp_path / "page.md", {"a constant": "1"} | DIFFERENT)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.findall(r"^  \[\d\] # (.*)$", done.stdout, re.M) == list(DIFFERENT)


def test_measured_time_is_left_out(tmp_path):
    clock = {"a clock": DIFFERENT["a clock"]}
    done = check(tmp_path / "page.md", clock, ":tags: [measured-time]\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "page.md: twice the same, 1 cells of measured time left out\n"


@pytest.mark.parametrize(
    ("shown", "kept"),
    [
        ("\rfit: 5 %, 00:09 left\rfit: 9/9 steps            \n", "fit: 9/9 steps\n"),
        ("\rfit: 5 %\rfit: 9/9 steps ", "fit: 9/9 steps"),
        ("a\rb   \r\nnext  \n", "b\nnext  \n"),
        ("plain  \n  text  ", "plain  \n  text  "),
    ],
)
def test_no_blanks_are_left_of_a_longer_state_of_a_progress_bar(shown, kept):
    from nbformat.v4 import new_output
    from vaebook import clean_outputs

    (cleaned,) = clean_outputs([new_output("stream", name="stdout", text=shown)])
    assert cleaned.text == kept
