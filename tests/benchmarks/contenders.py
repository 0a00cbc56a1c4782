"""One VAE, trained by several libraries, each used as its documentation shows.

The network is the same for all: 784-400-2x20, ReLU, Bernoulli pixels, one draw of z, float32,
batches of 128 in a new order each epoch, the last one smaller, and Adam with a step of 0.001. A
contender trains the two networks it is handed in place, so weights never need to be copied.

What differs is what the libraries leave open:

* Adam: ``fit`` uses torch's fused one. So do pythae and Pyro where the table says *tuned*, which
  makes them faster; as documented they have torch's default, like the textbook loop.
* Data: ``fit``, Pyro and the second loop by hand slice a tensor. The textbook loop has torch's
  DataLoader and pythae its own, which cannot be replaced.
* Scales: ``fit`` and the second loop map the network's output to a scale as ``DiagonalNormal``
  does, the others by an exponential of half a log-variance.
* Pythae copies the model after each epoch that was the best so far, which belongs to its trainer
  and is timed. Its bar and its log are switched off. The files that it writes at the end are
  written once a run, and no figure of a step includes them.
* Pyro's traced losses, such as ``JitTrace_ELBO``, are left out: they warn that what was traced
  with one batch size may be wrong for another, and the last batch is smaller.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from model import BATCH, HIDDEN, LATENT, LEARNING_RATE, PIXELS, Networks, parameters, to, vae_of
from peers import by_pyro, by_pythae
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from vaetutor import Images, TrainConfig, fit

LOG_RANGE = math.log(1e4)  # of the scales of DiagonalNormal

Train = Callable[[Networks, Any, int, str], None]


@dataclass(frozen=True)
class Contender:
    name: str
    train: Train
    """(networks, x, epochs, device) to nothing: the networks are trained in place."""
    log_variance: bool = True
    """Whether the encoder's second half is a log-variance; else that of ``DiagonalNormal``."""
    dynamic: bool = False
    """Whether x is to be `Images` that are binarised anew in each batch."""
    needs: str | None = None
    """A library that has to be installed."""

    @property
    def available(self) -> bool:
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


def by_fit(networks: Networks, x: Tensor | Images, epochs: int, device: str, **options) -> None:
    config = TrainConfig(
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        device=device,
        progress=False,
        **options,
    )
    fit(vae_of(networks, log_variance=False), x, config)


def by_textbook(networks: Networks, x: Tensor, epochs: int, device: str) -> None:
    """The shortest loop that people write, with torch's DataLoader and default Adam."""
    encoder, decoder = to(networks, device)
    optimizer = torch.optim.Adam(parameters(networks), LEARNING_RATE)
    loader = DataLoader(TensorDataset(x), batch_size=BATCH, shuffle=True)
    for _ in range(epochs):
        for (batch,) in loader:
            batch = batch.to(device)
            mean, log_variance = encoder(batch).chunk(2, dim=1)
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            loss = binary_cross_entropy_with_logits(decoder(z), batch, reduction="sum")
            kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
            optimizer.zero_grad()
            ((loss + kl) / len(batch)).backward()
            optimizer.step()


def by_same_arithmetic(networks: Networks, x: Tensor, epochs: int, device: str) -> None:
    """What ``fit`` computes, without the package: its scale, its reports, values by example."""
    encoder, decoder = to(networks, device)
    x = x.to(device)
    optimizer = torch.optim.Adam(parameters(networks), LEARNING_RATE, fused=True)
    for _ in range(epochs):
        sums = torch.zeros(2, device=device)
        for rows in torch.randperm(len(x), device=device).split(BATCH):
            batch = x[rows]
            mean, raw = encoder(batch).chunk(2, dim=1)
            scale = (LOG_RANGE * (raw / LOG_RANGE).atan().sin()).exp()
            z = mean + scale * torch.randn(1, *mean.shape, device=device)
            logits = decoder(z)
            cross_entropy = binary_cross_entropy_with_logits(
                logits, batch.expand_as(logits), reduction="none"
            )
            reconstruction = -cross_entropy.sum(-1).mean(0)
            kl = (0.5 * (mean**2 + scale**2 - 1) - scale.log()).sum(-1)
            optimizer.zero_grad()
            (-(reconstruction - kl).mean()).backward()
            optimizer.step()
            sums = sums + torch.stack([reconstruction.detach(), kl.detach()]).sum(1)
        sums.tolist()


def by_autoencoder(networks: Networks, x: Tensor, epochs: int, device: str) -> None:
    """The networks, a cross-entropy and the fused Adam: no scale, no draw, no KL, no report."""
    encoder, decoder = to(networks, device)
    x = x.to(device)
    optimizer = torch.optim.Adam(parameters(networks), LEARNING_RATE, fused=True)
    for _ in range(epochs):
        for batch in x.split(BATCH):
            logits = decoder(encoder(batch)[:, :LATENT])
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(logits, batch).backward()
            optimizer.step()


def products(networks: Networks, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(a, b, out) of each matrix product that a step on the batch x cannot do without."""
    w1, w2 = networks.encoder[0].weight.detach(), networks.encoder[2].weight.detach()
    w3, w4 = networks.decoder[0].weight.detach(), networks.decoder[2].weight.detach()
    h1, lam, z, h2, logits = (x.new_ones(len(x), n) for n in (HIDDEN, 40, LATENT, HIDDEN, PIXELS))
    forward = [(x, w1.T, h1), (h1, w2.T, lam), (z, w3.T, h2), (h2, w4.T, logits)]
    of_weights = [(logits.T, h2, w4), (h2.T, z, w3), (lam.T, h1, w2), (h1.T, x, w1)]
    of_inputs = [(logits, w4, h2), (h2, w3, z), (lam, w2, h1)]
    return [(a, b, torch.empty_like(out)) for a, b, out in forward + of_weights + of_inputs]


def by_products_alone(networks: Networks, x: Tensor, epochs: int, device: str) -> None:
    """The floor: eleven matrix products a step into buffers that exist, and nothing else."""
    to(networks, device)
    steps = {len(batch): products(networks, batch) for batch in x.to(device).split(BATCH)}
    sizes = [len(batch) for batch in x.split(BATCH)]
    for _ in range(epochs):
        for size in sizes:
            for a, b, out in steps[size]:
                torch.mm(a, b, out=out)


FIT = Contender("`fit`", by_fit, log_variance=False)
FIT_DYNAMIC = Contender("`fit`, binarised in each batch", by_fit, log_variance=False, dynamic=True)
SAME = Contender("by hand, the same arithmetic", by_same_arithmetic, log_variance=False)
TEXTBOOK = Contender("by hand, textbook with DataLoader", by_textbook)
PYTHAE = Contender("pythae, tuned", by_pythae, needs="pythae")
PYTHAE_DOCUMENTED = Contender(
    "pythae, as documented", partial(by_pythae, fused=False), needs="pythae"
)
PYRO = Contender("Pyro, tuned", by_pyro("Trace_ELBO"), needs="pyro")
PYRO_DOCUMENTED = Contender(
    "Pyro, as in its tutorial", by_pyro("Trace_ELBO", tuned=False), needs="pyro"
)
PYRO_MEAN_FIELD = Contender(
    "Pyro, tuned, TraceMeanField_ELBO", by_pyro("TraceMeanField_ELBO"), needs="pyro"
)
AUTOENCODER = Contender("no VAE: an autoencoder of the networks", by_autoencoder)
FLOOR = Contender("the matrix products alone", by_products_alone)
