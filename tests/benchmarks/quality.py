"""How good is the model that each trains in the same time?

The full MNIST training set, binarised once and the same for all (but for the row that says
otherwise), and as many whole epochs as come nearest to the time, by the speed of each contender
just before. Then one evaluator for all: ``log_evidence`` with 1,000 draws on the first test
images, binarised once, around the networks as they were left. One seed each: differences of a few
tenths of a nat say nothing.
"""

from __future__ import annotations

import random
import time

import torch
from contenders import FIT, FIT_DYNAMIC, PYRO, PYTHAE, TEXTBOOK, Contender
from model import BATCH, make_networks, vae_of
from report import Results, not_measured, table
from step import first, seconds_a_step

from vaetutor import Images, log_evidence, mnist

CONTENDERS = [FIT, FIT_DYNAMIC, TEXTBOOK, PYTHAE, PYRO]


def measure(quick: bool) -> Results:
    limit, n_test, draws = (1.0, 20, 50) if quick else (60.0, 500, 1000)
    full = not quick
    try:
        fixed, grey = mnist("train", "static", full), mnist("train", full=full)
        test = mnist("test", "static", full).x[:n_test]
    except ConnectionError as error:
        return {"missing": str(error)}
    entered = [c for c in CONTENDERS if c.available]
    rows = {}
    for contender in random.Random(0).sample(entered, len(entered)):
        x = grey if contender.dynamic else fixed.x
        rows[contender.name] = train_and_judge(contender, x, test, limit, draws)
    return {
        "seconds": limit,
        "images": len(fixed),
        "test": n_test,
        "draws": draws,
        "left_out": [c.name for c in CONTENDERS if not c.available],
        "rows": {c.name: rows[c.name] for c in entered},
    }


def train_and_judge(
    contender: Contender, x: torch.Tensor | Images, test: torch.Tensor, limit: float, draws: int
) -> dict[str, float]:
    epochs = max(1, round(limit / seconds_an_epoch(contender, x)))
    networks = make_networks()
    started = time.perf_counter()
    contender.train(networks, x, epochs, "cpu")
    seconds = time.perf_counter() - started
    torch.manual_seed(0)
    evidence = log_evidence(vae_of(networks, contender.log_variance), test, draws)
    value, error = evidence.mean()
    return {
        "epochs": epochs,
        "seconds": seconds,
        "nats": value,
        "error": error,
        "pareto_k": evidence.pareto_k.median().item(),
    }


def seconds_an_epoch(contender: Contender, x: torch.Tensor | Images) -> float:
    """From a hundred steps or so; the first call warms up."""
    n = min(len(x), 50 * BATCH)
    few = first(x, n) if isinstance(x, Images) else x[:n]
    seconds_a_step(contender, few, 1, 2)
    return seconds_a_step(contender, few, 1, 4) * -(-len(x) // BATCH)


def render(found: Results) -> list[str]:
    if "missing" in found:
        return not_measured(found["missing"])
    best = found["rows"][FIT.name]["nats"]
    rows = [
        [
            name,
            row["epochs"],
            f"{row['seconds']:.1f}",
            f"{row['nats']:.2f}",
            f"{row['error']:.2f}",
            f"{row['nats'] - best:+.2f}",
        ]
        for name, row in found["rows"].items()
    ]
    header = ["loop", "epochs", "seconds", "log p(x), nats", "error of the draws", "less `fit`"]
    return [
        f"Whole epochs nearest to {found['seconds']:.0f} s on {found['images']:,} images, "
        f"{found['test']} test images, {found['draws']:,} draws each.",
        "",
        *table(header, rows),
    ]
