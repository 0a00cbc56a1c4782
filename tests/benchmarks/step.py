"""How long is a training step? `fit` against other libraries, loops by hand, and the floor.

The time of a step is the difference between a long and a short run over the difference of steps,
so that what happens once a run does not count. The contenders take turns in an order drawn anew
each turn: a slow moment of the machine hits all of them. Ratios are medians of the ratios within
the turns. Each contender lives in a process of its own and waits there for its turn, so that what
one library leaves behind, in the allocator or in torch's settings, is not felt by another.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import time
from dataclasses import replace
from multiprocessing.connection import Connection

import torch
from contenders import (
    AUTOENCODER,
    FIT,
    FIT_DYNAMIC,
    FLOOR,
    PYRO,
    PYRO_DOCUMENTED,
    PYRO_MEAN_FIELD,
    PYTHAE,
    PYTHAE_DOCUMENTED,
    SAME,
    TEXTBOOK,
    Contender,
)
from model import BATCH, make_networks
from report import Results, goal, median_ratio, table
from torch import Tensor

from vaetutor import Images, mnist

CONTENDERS = [
    FIT,
    FIT_DYNAMIC,
    SAME,
    TEXTBOOK,
    PYTHAE_DOCUMENTED,
    PYTHAE,
    PYRO_DOCUMENTED,
    PYRO,
    PYRO_MEAN_FIELD,
    AUTOENCODER,
    FLOOR,
]


def first(images: Images, n: int) -> Images:
    return replace(images, x=images.x[:n], y=images.y[:n])


def seconds(contender: Contender, x: Tensor | Images, epochs: int, device: str = "cpu") -> float:
    networks = make_networks()
    started = time.perf_counter()
    contender.train(networks, x, epochs, device)
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def seconds_a_step(
    contender: Contender, x: Tensor | Images, short: int, long: int, device: str = "cpu"
) -> float:
    difference = -seconds(contender, x, short, device) + seconds(contender, x, long, device)
    return difference / ((long - short) * -(-len(x) // BATCH))


class Turns:
    """The turns of one contender, which it takes in a process of its own."""

    def __init__(self, name: str, n: int, short: int, long: int) -> None:
        fresh = multiprocessing.get_context("spawn")
        self._ours, theirs = fresh.Pipe()
        given = (theirs, name, torch.get_num_threads(), n, short, long)
        self._process = fresh.Process(target=serve, args=given, daemon=True)
        self._process.start()

    def take(self) -> float:
        """Microseconds a step."""
        self._ours.send("go")
        return self._ours.recv()

    def end(self) -> None:
        self._ours.send("end")
        self._process.join()


def serve(pipe: Connection, name: str, threads: int, n: int, short: int, long: int) -> None:
    torch.set_num_threads(threads)
    contender = next(c for c in CONTENDERS if c.name == name)
    x = first(mnist("train"), n) if contender.dynamic else mnist("train", "static").x[:n]
    while pipe.recv() == "go":
        pipe.send(1e6 * seconds_a_step(contender, x, short, long))


def measure(quick: bool) -> Results:
    turns, short, long, n = (2, 1, 3, 512) if quick else (15, 1, 7, 4000)
    entered = [c for c in CONTENDERS if c.available]
    times: dict[str, list[float]] = {c.name: [] for c in entered}
    order, ask = random.Random(0), {c.name: Turns(c.name, n, short, long) for c in entered}
    for turn in range(turns + 1):
        for name in order.sample(list(times), len(times)):
            value = ask[name].take()
            if turn:  # the first turn warms up
                times[name].append(value)
    for turns_of_one in ask.values():
        turns_of_one.end()
    return {
        "turns": turns,
        "epochs": [short, long],
        "images": n,
        "batch": BATCH,
        "left_out": [c.name for c in CONTENDERS if not c.available],
        "microseconds": times,
    }


def render(found: Results) -> list[str]:
    times = found["microseconds"]
    lines = [
        f"Microseconds a step, {found['turns']} turns, batches of {found['batch']} of "
        f"{found['images']:,} digits, binarised once and the same for all but the second row.",
        "",
        *table(
            ["loop", "median", "fastest", "slowest", "loop / `fit`", "floor / loop"],
            [row(times, name) for name in times],
        ),
        "",
    ]
    wanted = [(PYTHAE_DOCUMENTED, 2.0), (PYTHAE, 2.0), (PYRO_DOCUMENTED, 3.0), (PYRO, 3.0)]
    goals = [
        goal(f"{c.name} / `fit`", least, ratio(times, c.name, FIT.name))
        for c, least in wanted
        if c.name in times
    ]
    goals.append(goal("floor / `fit`", 0.8, ratio(times, FLOOR.name, FIT.name)))
    return [*lines, *table(["goal", "at least", "measured", ""], goals)]


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    return median_ratio(times[above], times[below])


def row(times: dict[str, list[float]], name: str) -> list[str]:
    values = times[name]
    spread = (statistics.median(values), min(values), max(values))
    shares = (ratio(times, name, FIT.name), ratio(times, FLOOR.name, name))
    return [name, *(f"{v:,.0f}" for v in spread), *(f"{v:.2f}" for v in shares)]
