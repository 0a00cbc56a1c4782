"""Time of a training step: ``fit`` against a hand-written loop of the same arithmetic.

Run it with ``make bench``. It is a report, not a test: clocks on shared machines lie. All loops
train the 784-400-2x20 Bernoulli VAE on batches of 128 digits, binarised dynamically, with the KL
in closed form. The time of a step is the difference between a long and a short run over the
difference in steps, so that what happens once a run does not count. The loops take turns in a
random order, so that a slow moment of the machine hits all of them, and the report is the median
over the turns.

Three loops are written by hand: one that computes just what ``fit`` does (the same map to a scale,
one value for each example, the sums that the history reports), and the shortest textbook loop
(an exponential for the scale, everything summed at once, nothing reported) with the fused
optimiser that ``fit`` uses and with torch's default.
"""

from __future__ import annotations

import math
import platform
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from vaetutor import (
    VAE,
    Bernoulli,
    DiagonalNormal,
    Images,
    StandardNormal,
    TrainConfig,
    fit,
    mlp,
    mnist,
)

BATCH, TURNS = 128, 15
SHORT, LONG = 1, 9  # epochs

Loop = Callable[[VAE, int], None]


def make_vae() -> VAE:
    torch.manual_seed(0)
    encoder = nn.Sequential(mlp(784, 400, 40), DiagonalNormal(20))
    return VAE(encoder, nn.Sequential(mlp(20, 400, 784), Bernoulli(784)), StandardNormal(20))


def by_fit(images: Images) -> Loop:
    options = {"batch_size": BATCH, "progress": False, "device": "cpu"}

    def loop(vae: VAE, epochs: int) -> None:
        fit(vae, images, TrainConfig(epochs=epochs, **options))

    return loop


def by_hand(data: Tensor, fused: bool | None) -> Loop:
    """The loop that most people write, without a DataLoader."""

    def loop(vae: VAE, epochs: int) -> None:
        encoder, decoder = vae.encoder[0], vae.decoder[0]
        optimizer = torch.optim.Adam(vae.parameters(), 1e-3, fused=fused)
        for _ in range(epochs):
            for rows in torch.randperm(len(data)).split(BATCH):
                grey = data[rows]
                x = (torch.rand_like(grey) < grey).float()
                mean, log_variance = encoder(x).chunk(2, dim=1)
                z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
                loss = binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
                kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
                optimizer.zero_grad()
                ((loss + kl) / len(x)).backward()
                optimizer.step()

    return loop


def same_arithmetic(data: Tensor) -> Loop:
    """What ``fit`` computes, without the package."""
    b = math.log(1e4)

    def loop(vae: VAE, epochs: int) -> None:
        encoder, decoder = vae.encoder[0], vae.decoder[0]
        optimizer = torch.optim.Adam(vae.parameters(), 1e-3, fused=True)
        for _ in range(epochs):
            sums = torch.zeros(2)
            for rows in torch.randperm(len(data)).split(BATCH):
                grey = data[rows]
                x = (torch.rand_like(grey) < grey).float()
                mean, raw = encoder(x).chunk(2, dim=1)
                scale = (b * (raw / b).atan().sin()).exp()
                z = mean + scale * torch.randn(1, *mean.shape)
                logits = decoder(z)
                cross_entropy = binary_cross_entropy_with_logits(
                    logits, x.expand_as(logits), reduction="none"
                )
                reconstruction = -cross_entropy.sum(-1).mean(0)
                kl = (0.5 * (mean**2 + scale**2 - 1) - scale.log()).sum(-1)
                optimizer.zero_grad()
                (-(reconstruction - kl).mean()).backward()
                optimizer.step()
                sums = sums + torch.stack([reconstruction.detach(), kl.detach()]).sum(1)

    return loop


def microseconds_a_step(loop: Loop, n: int) -> float:
    clock = []
    for epochs in (SHORT, LONG):
        vae = make_vae()
        started = time.perf_counter()
        loop(vae, epochs)
        clock.append(time.perf_counter() - started)
    return 1e6 * (clock[1] - clock[0]) / ((LONG - SHORT) * -(-n // BATCH))


def main() -> None:
    images = mnist()
    loops = {
        "`fit`": by_fit(images),
        "by hand, the same arithmetic": same_arithmetic(images.x),
        "by hand, shortest": by_hand(images.x, fused=True),
        "by hand, shortest, default Adam": by_hand(images.x, fused=None),
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(TURNS + 1):
        for name in random.sample(sorted(loops), len(loops)):
            value = microseconds_a_step(loops[name], len(images))
            if turn:  # the first turn warms up
                times[name].append(value)
    threads = torch.get_num_threads()
    print(f"# A training step, {TURNS} turns, batches of {BATCH}, microseconds\n")
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {threads} CPU threads\n"
    )
    print("| loop | median | fastest | slowest | `fit` / loop |\n|---|---|---|---|---|")
    for name, values in times.items():
        ratio = statistics.median(f / v for f, v in zip(times["`fit`"], values, strict=True))
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"| {name} | {middle:.0f} | {low:.0f} | {high:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
