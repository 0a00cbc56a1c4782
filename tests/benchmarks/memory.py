"""How much memory does a run add?

Each figure comes from a fresh process. First come imports, data and the same work at a small size,
because libraries import parts of themselves when they are first called. What that has freed is
given back (``malloc_trim``), and Linux is told to forget the peak so far
(``/proc/self/clear_refs``). The figure is the peak of the resident memory during the work
(``VmHWM``) less what was resident before. ``ru_maxrss`` would not do: a process inherits that of
the one which started it, and imports may peak above what they leave.

The data are random bits: memory does not depend on what they are.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from contenders import FIT, FIT_DYNAMIC, PYTHAE, SAME, TEXTBOOK
from model import PIXELS, make_networks, vae_of
from peers import pythae_vae
from report import Results, not_measured, table

from vaetutor import Images, log_evidence

TRAINERS = {c.name: c for c in (FIT, FIT_DYNAMIC, SAME, TEXTBOOK, PYTHAE)}
EVALUATORS = {"`log_evidence`": None, "pythae `get_nll`": "pythae"}
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def bits(n: int) -> torch.Tensor:
    return torch.empty(n, PIXELS).bernoulli_(0.13)


def training(name: str, n: int) -> Callable[[], object]:
    """Two epochs on n images, all that they need made already."""
    contender, networks, x = TRAINERS[name], make_networks(), bits(n)
    y = torch.zeros(n, dtype=torch.int64)
    data = Images(x, y, "dynamic", "bits", (28, 28)) if contender.dynamic else x
    return lambda: contender.train(networks, data, 2, "cpu")


def evaluation(name: str, n: int, draws: int) -> Callable[[], object]:
    networks, x = make_networks(), bits(n)
    if EVALUATORS[name] is None:
        vae = vae_of(networks, log_variance=True)
        return lambda: log_evidence(vae, x, draws)
    peer = pythae_vae(networks).eval()
    return torch.no_grad()(lambda: peer.get_nll(x, n_samples=draws))


def resident(key: str) -> float:
    """A line of the status, MB."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"{STATUS} must have a line {key}, found none")


def added_by(work: Callable[[], object]) -> float:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    FORGET.write_text("5")
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def in_fresh_process(*arguments: object) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure(quick: bool) -> Results:
    if not (FORGET.exists() and hasattr(ctypes.CDLL(None), "malloc_trim")):
        return {"missing": "it needs Linux with glibc"}
    turns, n, few = (1, 256, 2) if quick else (3, 4000, 4)
    draws = [100] if quick else [100, 1000, 10_000, 50_000]
    trainers = [name for name, c in TRAINERS.items() if c.available][: 2 if quick else None]
    evaluators = [e for e, needs in EVALUATORS.items() if needs is None or PYTHAE.available]
    return {
        "turns": turns,
        "images": n,
        "evaluated": few,
        "training": {
            name: [in_fresh_process("train", name, n) for _ in range(turns)] for name in trainers
        },
        "evaluation": {
            name: {
                str(s): [in_fresh_process("evaluate", name, few, s) for _ in range(turns)]
                for s in draws
            }
            for name in evaluators
        },
        "left_out": [] if PYTHAE.available else [PYTHAE.name],
    }


def render(found: Results) -> list[str]:
    if "missing" in found:
        return not_measured(found["missing"])
    middle = statistics.median
    draws = list(next(iter(found["evaluation"].values())))
    return [
        f"MB (of 10^6 bytes) above what libraries and data take, medians of "
        f"{found['turns']} fresh processes. Training: two epochs of {found['images']:,} images.",
        "",
        *table(
            ["training", "median", "least", "most"],
            [
                [name, *(f"{f(v):.1f}" for f in (middle, min, max))]
                for name, v in found["training"].items()
            ],
        ),
        "",
        f"Evaluation: the log-likelihood of {found['evaluated']} images by so many draws each. "
        "Pythae with its default of 100 draws at once, without gradients.",
        "",
        *table(
            ["evaluation", *(f"{int(s):,} draws" for s in draws)],
            [
                [name, *(f"{middle(by_draws[s]):.1f}" for s in draws)]
                for name, by_draws in found["evaluation"].items()
            ],
        ),
    ]


if __name__ == "__main__":
    kind, name, *numbers = sys.argv[1:]
    make = {"train": training, "evaluate": evaluation}[kind]
    n, *draws = map(int, numbers)
    work = make(name, n, *draws)
    make(name, 2, *(100 for _ in draws))()
    print(json.dumps(added_by(work)))
