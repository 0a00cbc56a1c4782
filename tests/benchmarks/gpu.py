"""A training step on a CUDA device: eager, captured in a graph, captured with several replicas.

At this size a step is bound by the launches of its kernels, not by arithmetic. Two floors say by
how much: the eleven matrix products of a step in one graph, and a graph of kernels that do next
to nothing, for the price of a launch. What a version of the package or a machine lacks is left
out, with the reason.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from contenders import FIT, PYTHAE, SAME, Contender, by_fit, products
from model import BATCH, LEARNING_RATE, make_networks, to, vae_of
from report import Results, median_ratio, not_measured, table
from step import seconds_a_step
from torch import Tensor

import vaetutor

REPLICAS, KERNELS, REPLAYS = 8, 50, 200
PRODUCTS, EMPTY = "the matrix products alone, one graph", f"a graph of {KERNELS} empty kernels"
Timer = Callable[[], float]


def by_replicas(networks: object, x: Tensor, epochs: int, device: str) -> None:
    """Eight models, each with its own start; the networks handed in are not used."""
    models = [vae_of(make_networks(seed), log_variance=False) for seed in range(REPLICAS)]
    config = vaetutor.TrainConfig(
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        device=device,
        progress=False,
        capture=True,
    )
    vaetutor.fit_replicas(models, x, [config] * REPLICAS)


def replay_seconds(work: Callable[[], object]) -> float:
    """Seconds of one replay of a graph that holds the work."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a warm-up on another stream, as capturing demands
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(REPLAYS):
        graph.replay()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / REPLAYS


def products_seconds() -> float:
    networks = make_networks()
    to(networks, "cuda")
    triples = products(networks, torch.ones(BATCH, 784, device="cuda"))
    return replay_seconds(lambda: [torch.mm(a, b, out=out) for a, b, out in triples])


def empty_seconds() -> float:
    one = torch.zeros(1, device="cuda")
    return replay_seconds(lambda: [one.add_(0) for _ in range(KERNELS)])


def timers(x: Tensor, short: int, long: int) -> dict[str, Timer]:
    captured = Contender("`fit`, captured", partial(by_fit, capture=True))
    replicas = Contender(f"`fit_replicas`, {REPLICAS} models, a step and model", by_replicas)
    found: dict[str, Timer] = {
        c.name: partial(seconds_a_step, c, x, short, long, "cuda")
        for c in (FIT, captured, SAME, PYTHAE)
    }
    several = partial(seconds_a_step, replicas, x, short, long, "cuda")
    found[replicas.name] = lambda: several() / REPLICAS
    return {**found, PRODUCTS: products_seconds, EMPTY: empty_seconds}


def measure(quick: bool) -> Results:
    if not torch.cuda.is_available():
        return {"missing": "no CUDA device here"}
    turns, short, long = (2, 1, 2) if quick else (11, 1, 11)
    x = vaetutor.mnist("train", "static").x
    entered = timers(x, short, long)
    left_out: dict[str, str] = {}
    for name, timer in list(entered.items()):
        try:
            timer()  # warms up, and shows what is missing
        except Exception as error:  # whatever it is, the others are still worth measuring
            left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            del entered[name]
    times: dict[str, list[float]] = {name: [] for name in entered}
    order = random.Random(0)
    for _ in range(turns):
        for name in order.sample(list(entered), len(entered)):
            times[name].append(1e6 * entered[name]())
    return {
        "turns": turns,
        "epochs": [short, long],
        "images": len(x),
        "left_out": left_out,
        "microseconds": times,
    }


def render(found: Results) -> list[str]:
    if "missing" in found:
        return not_measured(found["missing"])
    times = found["microseconds"]
    fit = times.get(FIT.name)
    rows = [
        [
            name,
            *(f"{f(v):,.1f}" for f in (statistics.median, min, max)),
            f"{median_ratio(v, fit):.3f}" if fit else "not measured",
        ]
        for name, v in times.items()
    ]
    rows += [[name, "not measured", "", "", reason] for name, reason in found["left_out"].items()]
    return [
        f"Microseconds a step, {found['turns']} turns, batches of {BATCH} of "
        f"{found['images']:,} digits, binarised once.",
        "",
        *table(["loop", "median", "fastest", "slowest", "loop / `fit`"], rows),
    ]
