"""How long does a log-likelihood by 5,000 importance samples take, and is it the same number?

``log_evidence`` and pythae's ``get_nll`` with the same encoder and decoder, trained once by
``fit``. Both average importance weights p(x, z) / q(z|x) over 5,000 draws from the encoder.
Pythae takes the draws of one image in batches and evaluates the encoder once for each draw. It is
timed as it is called by default, with batches of 100 and gradients on, and at its best: at the
batch size that is fastest here, without gradients. The floor is the time of the decoder's matrix
products alone, in blocks of a size that is fast: nothing that decodes every draw is faster.
Pythae's decoder gives probabilities and its cross-entropy bounds their logarithms at -100, while
the package keeps logits. Pythae reports the mean alone, so that its Monte Carlo error comes from
the repeats.
"""

from __future__ import annotations

import random
import statistics
import time

import torch
from contenders import PYTHAE
from model import BATCH, Networks, make_networks, vae_of
from peers import pythae_vae
from report import Results, goal, median_ratio, not_measured, table
from torch import Tensor, nn

from vaetutor import VAE, TrainConfig, fit, log_evidence, mnist

PACKAGE, PEER = "`log_evidence`", "pythae `get_nll`"
AS_CALLED = "pythae `get_nll`, as called by default"
FLOOR = "floor: the matrix products of the decoder"


def trained(epochs: int) -> tuple[Networks, VAE]:
    networks = make_networks()
    vae = vae_of(networks, log_variance=True)
    config = TrainConfig(epochs=epochs, batch_size=BATCH, device="cpu", progress=False)
    fit(vae, mnist("train", "static").x, config)
    return networks, vae


def by_package(vae: VAE, x: Tensor, n_samples: int) -> tuple[float, float]:
    """Seconds, and the mean of log p(x)."""
    started = time.perf_counter()
    value, _ = log_evidence(vae, x, n_samples).mean()
    return time.perf_counter() - started, value


@torch.no_grad()
def by_pythae(model: nn.Module, x: Tensor, n_samples: int, batch: int) -> tuple[float, float]:
    started = time.perf_counter()
    value = float(model.get_nll(x, n_samples=n_samples, batch_size=batch))  # in fact log p(x)
    return time.perf_counter() - started, value


def by_default(model: nn.Module, x: Tensor, n_samples: int) -> tuple[float, float]:
    started = time.perf_counter()
    value = float(model.get_nll(x, n_samples=n_samples))
    return time.perf_counter() - started, value


@torch.no_grad()
def floor(networks: Networks, n: int, n_samples: int, block: int = 1000) -> tuple[float, float]:
    """Seconds of the products alone, the activations being whatever lies in the memory."""
    weights = [m.weight.t() for m in networks.decoder if isinstance(m, nn.Linear)]
    inputs = [torch.rand(block, len(w)) for w in weights]
    outputs = [torch.empty(block, w.shape[1]) for w in weights]
    started = time.perf_counter()
    for _ in range(-(-n * n_samples // block)):
        for a, w, out in zip(inputs, weights, outputs, strict=True):
            torch.mm(a, w, out=out)
    return time.perf_counter() - started, float("nan")


def measure(quick: bool) -> Results:
    if not PYTHAE.available:
        return {"missing": "pythae is not installed"}
    turns, epochs, n, draws = (2, 1, 2, 500) if quick else (11, 10, 20, 5000)
    networks, vae = trained(epochs)
    peer = pythae_vae(networks).eval()
    x = mnist("test", "static").x[:n]
    evidence = log_evidence(vae, x, draws)  # both are called here for the first time
    by_pythae(peer, x[:1], draws, 100)
    sizes = [size for size in (100, 250, 500, 1000, 5000) if draws % size == 0]
    batch = min(sizes, key=lambda size: by_pythae(peer, x[:4], draws, size)[0])
    found: Results = {"turns": turns, "epochs": epochs, "images": n, "draws": draws}
    found["pareto_k"] = evidence.pareto_k.tolist()
    runs = {
        PACKAGE: lambda: by_package(vae, x, draws),
        PEER: lambda: by_pythae(peer, x, draws, batch),
        AS_CALLED: lambda: by_default(peer, x, draws),
        FLOOR: lambda: floor(networks, n, draws),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    values: dict[str, list[float]] = {name: [] for name in runs}
    order = random.Random(0)
    for _ in range(turns):
        for name in order.sample(list(runs), len(runs)):
            taken, value = runs[name]()
            seconds[name].append(taken)
            values[name].append(value)
    return {
        **found,
        "batch": batch,
        "error": evidence.mean()[1],
        "seconds": seconds,
        "nats": values,
    }


def render(found: Results) -> list[str]:
    if "missing" in found:
        return not_measured(found["missing"])
    seconds, nats = found["seconds"], found["nats"]
    errors = {name: statistics.stdev(values) for name, values in nats.items() if name != FLOOR}
    difference = statistics.mean(nats[PACKAGE]) - statistics.mean(nats[PEER])
    error = ((errors[PACKAGE] ** 2 + errors[PEER] ** 2) / found["turns"]) ** 0.5
    rows = [
        [
            name,
            *(f"{f(seconds[name]):.2f}" for f in (statistics.median, min, max)),
            f"{median_ratio(seconds[name], seconds[PACKAGE]):.2f}",
            f"{statistics.mean(nats[name]):.3f}" if name in errors else "",
            f"{errors[name]:.3f}" if name in errors else "",
        ]
        for name in seconds
    ]
    header = ["", "seconds, median", "fastest", "slowest", "/ `log_evidence`"]
    header += ["mean log p(x), nats", "error of a run"]
    goals = {name: median_ratio(seconds[name], seconds[PACKAGE]) for name in (AS_CALLED, PEER)}
    return [
        f"{found['images']} test digits, {found['draws']:,} draws each, {found['turns']} turns, "
        f"the same weights after {found['epochs']} epochs. At its best, pythae takes batches of "
        f"{found['batch']:,} draws, without gradients. Errors are standard deviations over turns; "
        f"`log_evidence` gives its own as {found['error']:.3f}.",
        "",
        *table(header, rows),
        "",
        f"The means differ by {difference:+.4f} nats, with a standard error of {error:.4f}. "
        f"The median k-hat of the weights is {statistics.median(found['pareto_k']):.2f}; above "
        "0.7 neither estimate is to be trusted, nor its error, however well the two agree.",
        "",
        *table(
            ["goal", "at least", "measured", ""],
            [goal(f"{name} / `log_evidence`", 20.0, speed) for name, speed in goals.items()],
        ),
    ]
