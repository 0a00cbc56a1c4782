"""One q for each of N images: by a search for each, or by an encoder trained once?

A VAE is trained beforehand and its decoder held fixed. *Amortised* costs the training of a fresh
encoder on all training images, once, and a pass for each of the N. *Per datapoint* is ``refine``
on each, from the prior, until the mean ELBO is that of the encoder: among the settings tried on a
pilot of the training images it takes the fastest that gets there. Both families are
``DiagonalNormal``, and both ELBOs come from the same evaluator.

Rows do not share anything, so beyond the largest N that is searched the cost of a search is that
of whole chunks and is computed, which the table marks.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from model import BATCH, LATENT, make_networks, vae_of
from report import Results, table
from torch import Tensor, nn

from vaetutor import VAE, DiagonalNormal, TrainConfig, elbo_terms, fit, mnist, refine

STEPS = (25, 50, 100, 200, 400)
OPTIONS = [{"n_samples": n, "learning_rate": rate} for n in (1, 4, 16) for rate in (0.05, 0.2)]
CHUNK = 500  # rows searched at once


def measure(quick: bool) -> Results:
    sizes = [1, 3, 10] if quick else [1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 60_000]
    epochs, pilot, most, repeats = (1, 20, 10, 1) if quick else (10, 100, 1000, 3)
    x, source = training_images(full=not quick)
    sizes = [n for n in sizes if n <= len(x)]
    vae, training = prepared(x, epochs)
    target = elbo(vae, vae.encoder(x[:pilot]), x[:pilot])
    best = elbo(vae, refine(vae, DiagonalNormal(LATENT), x[:pilot]).q, x[:pilot])
    tried = try_settings(vae, x[:pilot], target, OPTIONS[: 1 if quick else None])
    good = [row for row in tried if row["elbo"] >= target] or [max(tried, key=itemgetter("elbo"))]
    chosen = min(good, key=itemgetter("seconds"))
    rows: list[dict[str, Any]] = []
    for n in sizes:
        amortised = amortised_at(vae, x, n, repeats, training)
        if n <= most:
            searched = searched_at(vae, x[:n], chosen["setting"], repeats)
        cost = searched["seconds"] * n / searched["n"]
        rows.append({"n": n, **amortised, "search_seconds": cost, "searched": searched})
    return {
        "images": source,
        "epochs": epochs,
        "pilot": {"rows": pilot, "encoder": target, "optimum": best, "tried": tried},
        "training_seconds": training,
        "setting": chosen["setting"],
        "reached": chosen["elbo"] >= target,
        "rows": rows,
        "crossing": crossing(rows),
    }


def training_images(full: bool) -> tuple[Tensor, str]:
    try:
        images = mnist("train", "static", full)
    except ConnectionError:
        images = mnist("train", "static")
    return images.x, images.name


def prepared(x: Tensor, epochs: int) -> tuple[VAE, float]:
    """A VAE with a decoder from one run and an encoder from the next, and that run's seconds."""
    config = TrainConfig(epochs=epochs, batch_size=BATCH, device="cpu", progress=False)
    vae = vae_of(make_networks(), log_variance=False)
    fit(vae, x, config)
    vae.decoder.requires_grad_(False)
    vae.encoder = nn.Sequential(make_networks(seed=1).encoder, DiagonalNormal(LATENT))
    return vae, fit(vae, x, config).seconds


@torch.no_grad()
def elbo(vae: VAE, q: Any, x: Tensor) -> float:
    """The mean over the rows, with more draws where there are few of them."""
    torch.manual_seed(0)
    return elbo_terms(vae, q, x, max(20, 1000 // len(x))).elbo.mean().item()


def search(vae: VAE, x: Tensor, setting: dict[str, Any]) -> Tensor:
    """The λ of each row, a chunk at a time."""
    family = DiagonalNormal(LATENT)
    return torch.cat([refine(vae, family, chunk, **setting).lam for chunk in x.split(CHUNK)])


@torch.no_grad()
def encode(vae: VAE, x: Tensor) -> Tensor:
    return torch.cat([vae.encoder[0](chunk) for chunk in x.split(CHUNK)])


def try_settings(
    vae: VAE, x: Tensor, target: float, options: Sequence[dict[str, float]]
) -> list[dict[str, Any]]:
    """With each option, more and more steps until the target is reached."""
    tried = []
    for option in options:
        for steps in STEPS:
            setting = {"steps": steps, **option}
            seconds, lam = timed(partial(search, vae, x, setting))
            value = elbo(vae, DiagonalNormal(LATENT)(lam), x)
            tried.append({"setting": setting, "seconds": seconds, "elbo": value})
            if value >= target:
                break
    return tried


def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def amortised_at(vae: VAE, x: Tensor, n: int, repeats: int, training: float) -> dict[str, Any]:
    passes = [timed(lambda: encode(vae, x[:n])) for _ in range(repeats)]
    seconds = [taken for taken, _ in passes]
    return {"pass_seconds": seconds, "amortised_seconds": training + statistics.median(seconds)}


def searched_at(vae: VAE, x: Tensor, setting: dict, repeats: int) -> dict[str, Any]:
    """The cost of a search for each of these rows, and the ELBO of both ways on them."""
    runs = [timed(partial(search, vae, x, setting)) for _ in range(repeats)]
    family = DiagonalNormal(LATENT)
    return {
        "n": len(x),
        "runs": [taken for taken, _ in runs],
        "seconds": statistics.median(taken for taken, _ in runs),
        "elbo": elbo(vae, family(runs[0][1]), x),
        "amortised_elbo": elbo(vae, family(encode(vae, x)), x),
    }


def crossing(rows: Sequence[dict[str, Any]]) -> float | None:
    """The N at which both cost the same, on a straight line between neighbours in log-log."""
    points = [
        (math.log(r["n"]), math.log(r["search_seconds"] / r["amortised_seconds"])) for r in rows
    ]
    for (n0, d0), (n1, d1) in itertools.pairwise(points):
        if d0 < 0 <= d1:
            return math.exp(n0 + (n1 - n0) * -d0 / (d1 - d0))
    return None


def render(found: Results) -> list[str]:
    pilot, setting = found["pilot"], found["setting"]
    reached = "reaches" if found["reached"] else "does not reach, with any setting tried,"
    rows = [
        [
            f"{r['n']:,}",
            f"{r['amortised_seconds']:.2f}",
            f"{r['search_seconds']:.2f}" + (" (computed)" if r["searched"]["n"] < r["n"] else ""),
            f"{r['searched']['amortised_elbo']:.2f}",
            f"{r['searched']['elbo']:.2f}",
        ]
        for r in found["rows"]
    ]
    crossed = found["crossing"]
    last = f"N = {crossed:,.0f}" if crossed else "no N of the table"
    return [
        f"{found['images']}. The encoder is trained for {found['epochs']} epochs, "
        f"{found['training_seconds']:.1f} s. Its ELBO on a pilot of {pilot['rows']} images is "
        f"{pilot['encoder']:.2f} nats, {pilot['optimum'] - pilot['encoder']:.2f} below the "
        f"optimum of its family. The search {reached} it by {setting['steps']} steps with "
        f"{setting['n_samples']} draws each and a learning rate of {setting['learning_rate']}.",
        "",
        *table(
            ["N", "amortised, s", "per datapoint, s", "ELBO, amortised", "ELBO, per datapoint"],
            rows,
        ),
        "",
        f"Both cost the same at {last}. ELBOs are means over the images that were searched.",
    ]


def draw(found: Results, path: Path) -> None:
    """The two costs against N, and where they cross."""
    import matplotlib

    from vaetutor import plots

    rows = found["rows"]
    n = [row["n"] for row in rows]
    done = [row["n"] == row["searched"]["n"] for row in rows]
    search = [row["search_seconds"] for row in rows]
    with plots.style(), matplotlib.rc_context({"svg.hashsalt": "growth"}):
        figure, ax = plots.figure(height=3.4)
        ax.loglog(n, search, "k-", lw=1.5)
        for measured, face in ((True, "black"), (False, "white")):
            chosen = [i for i, d in enumerate(done) if d is measured]
            points = [n[i] for i in chosen], [search[i] for i in chosen]
            ax.plot(*points, "o", color="black", markerfacecolor=face, markersize=5)
        ax.loglog(n, [row["amortised_seconds"] for row in rows], "k--", lw=1.5)
        ax.text(
            n[1],
            1.15 * rows[0]["amortised_seconds"],
            "encoder: training, then one pass",
            va="bottom",
        )
        ax.text(n[4], search[4] / 2, "search for each", va="top", ha="left")
        if found["crossing"]:
            ax.axvline(found["crossing"], color="0.5", lw=1, ls=":")
        ax.set(xlabel="number of datapoints", ylabel="seconds")
        figure.savefig(path, metadata={"Date": None})
