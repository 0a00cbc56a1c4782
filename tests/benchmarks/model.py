"""The model that all train: its networks, and the package's VAE around them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributions as td
from torch import Tensor, nn

from vaetutor import VAE, Bernoulli, DiagonalNormal, StandardNormal, mlp

BATCH, LEARNING_RATE = 128, 1e-3
PIXELS, HIDDEN, LATENT = 784, 400, 20


@dataclass(frozen=True)
class Networks:
    encoder: nn.Module  # x (B, 784) to (B, 40)
    decoder: nn.Module  # z (B, 20) to logits (B, 784)


def make_networks(seed: int = 0) -> Networks:
    torch.manual_seed(seed)
    return Networks(mlp(PIXELS, HIDDEN, 2 * LATENT), mlp(LATENT, HIDDEN, PIXELS))


class LogVarianceNormal(nn.Module):
    """The encoding that pythae and the textbook use: a mean and a log-variance."""

    n_parameters = 2 * LATENT

    def forward(self, lam: Tensor) -> td.Independent:
        mean, log_variance = lam.chunk(2, dim=-1)
        return td.Independent(td.Normal(mean, (0.5 * log_variance).exp(), validate_args=False), 1)


def vae_of(networks: Networks, log_variance: bool) -> VAE:
    """The package's VAE around networks that anyone may have trained."""
    family = LogVarianceNormal() if log_variance else DiagonalNormal(LATENT)
    decoder = nn.Sequential(networks.decoder, Bernoulli(PIXELS))
    return VAE(nn.Sequential(networks.encoder, family), decoder, StandardNormal(LATENT))


def parameters(networks: Networks) -> list[nn.Parameter]:
    return [*networks.encoder.parameters(), *networks.decoder.parameters()]


def to(networks: Networks, device: str) -> tuple[nn.Module, nn.Module]:
    return networks.encoder.to(device), networks.decoder.to(device)
