"""Time of a training step: ``fit`` against a hand-written loop of the same arithmetic.

Run it with ``make bench``. It is a report, not a test: clocks on shared machines lie. Both loops
train the 784-400-2x20 Bernoulli VAE on the same batches of 128 digits, binarised dynamically, with
the KL in closed form and the same optimiser. They take turns, so that a slow moment of the machine
hits both, and the report is the median over the turns.
"""

from __future__ import annotations

import platform
import statistics
import time

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

BATCH, EPOCHS, TURNS = 128, 8, 9


def make_vae() -> VAE:
    torch.manual_seed(0)
    encoder = nn.Sequential(mlp(784, 400, 40), DiagonalNormal(20))
    return VAE(encoder, nn.Sequential(mlp(20, 400, 784), Bernoulli(784)), StandardNormal(20))


def by_hand(encoder: nn.Module, decoder: nn.Module, data: Tensor) -> None:
    """The loop that most people write, without a DataLoader."""
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-3, fused=True)
    for _ in range(EPOCHS):
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


def seconds(run: object, *arguments: object) -> float:
    started = time.perf_counter()
    run(*arguments)  # type: ignore[operator]
    return time.perf_counter() - started


def main() -> None:
    images: Images = mnist()
    steps = EPOCHS * -(-len(images) // BATCH)
    config = TrainConfig(epochs=EPOCHS, batch_size=BATCH, progress=False, device="cpu")
    times: dict[str, list[float]] = {"fit": [], "by hand": []}
    for turn in range(TURNS + 1):
        vae = make_vae()
        pair = {
            "fit": seconds(fit, vae, images, config),
            "by hand": seconds(by_hand, make_vae().encoder[0], make_vae().decoder[0], images.x),
        }
        if turn:  # the first turn warms up
            for name, value in pair.items():
                times[name].append(1e6 * value / steps)
    ratios = [f / h for f, h in zip(times["fit"], times["by hand"], strict=True)]
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {threads} threads")
    print(f"{steps} steps a turn, {TURNS} turns, batches of {BATCH}; microseconds a step\n")
    print("| loop | median | fastest | slowest |\n|---|---|---|---|")
    for name, values in times.items():
        low, high = min(values), max(values)
        print(f"| {name} | {statistics.median(values):.0f} | {low:.0f} | {high:.0f} |")
    print(f"\nfit / by hand: median {statistics.median(ratios):.2f}, "
          f"from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
