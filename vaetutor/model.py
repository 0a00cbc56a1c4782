r"""Latent variable models: what a bound needs of one, and the variational autoencoder.

A model offers :math:`\log p(x, z)`. That is all the bounds in :mod:`vaetutor.objectives` ask for,
so they run unchanged on a VAE and on the exactly solvable models of :mod:`vaetutor.exact`, and the
exact models prove the rest (chapter: from latent variable model to VAE).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.distributions as td
from torch import Tensor, nn

from vaetutor import _checks

Posterior = Callable[[Tensor], td.Distribution]
"""An encoder q(z|x): called with x (B, ...) or row numbers (B,), it returns a Distribution."""


@runtime_checkable
class Family(Protocol):
    """Maps parameters λ (..., n_parameters) to a distribution with batch shape (...)."""

    n_parameters: int

    def __call__(self, lam: Tensor) -> td.Distribution: ...


@runtime_checkable
class LatentVariableModel(Protocol):
    """Anything with a joint density: x (B, ...) and z (S, B, D) in, (S, B) nats out.

    z may have one row for all of x, shape (S, 1, D): the same z with every x.
    """

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor: ...


@runtime_checkable
class TwoTermModel(LatentVariableModel, Protocol):
    """A model whose joint density comes in two factors, p(x|z) and p(z)."""

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor: ...

    def prior(self) -> td.Distribution: ...


@runtime_checkable
class SequenceModel(LatentVariableModel, Protocol):
    """A two-term model whose p(z) depends on x, by the length of a sequence.

    ``log_prior(x, z)`` gives (S, B) nats, and ``check(x)`` raises where x does not fit. The last
    column of x marks the steps, as in :func:`vaetutor.pad`.
    """

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor: ...

    def log_prior(self, x: Tensor, z: Tensor) -> Tensor: ...

    def check(self, x: Tensor) -> None: ...


@runtime_checkable
class AmortizedModel(TwoTermModel, Protocol):
    """A two-term model with an encoder; what :func:`vaetutor.fit` trains."""

    encoder: Posterior


@runtime_checkable
class AmortizedSequenceModel(SequenceModel, Protocol):
    """A sequence model with an encoder; :func:`vaetutor.fit` trains it, too."""

    encoder: Posterior


class VAE(nn.Module):
    r"""Variational autoencoder: an encoder, a decoder and a prior.

    .. math:: p_\theta(x, z) = p_\theta(x \mid z)\, p(z), \qquad
              q_\phi(z \mid x) \approx p_\theta(z \mid x).

    Args:
        encoder: module, x (B, ...) to a distribution over z with batch shape (B,).
        decoder: module, z (S, B, D) to a distribution over x with batch shape (S, B).
        prior: module, called with nothing, to a distribution over z.

    Source: Kingma and Welling (2014), arXiv:1312.6114; Rezende et al. (2014), arXiv:1401.4082.

    >>> from vaetutor import Bernoulli, DiagonalNormal, StandardNormal, mlp
    >>> encoder = nn.Sequential(mlp(784, 400, 40), DiagonalNormal(20))
    >>> decoder = nn.Sequential(mlp(20, 400, 784), Bernoulli(784))
    >>> vae = VAE(encoder, decoder, StandardNormal(20))
    >>> vae.log_joint(torch.zeros(5, 784), torch.zeros(3, 5, 20)).shape
    torch.Size([3, 5])
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, prior: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        r"""Decoder log-density :math:`\log p_\theta(x \mid z)`.

        Args:
            x: observations (B, ...).
            z: latent draws (S, B, D), or (S, 1, D) for the same z with every x.

        Returns:
            Tensor (S, B), nats, summed over the event.

        Raises:
            ValueError: if x is empty, not finite, outside the support of the decoder, of another
                width, or z does not hold draws for its B rows.
        """
        _checks.batch("x", x)
        _checks.draws(x, z, shared=True)
        p = self.decoder(z)
        if x.shape[1:] != p.event_shape:
            raise ValueError(
                f"x must have shape (B, {', '.join(map(str, p.event_shape))}) for this decoder, "
                f"found {tuple(x.shape)}: reshape x, or change the decoder's family"
            )
        return p.log_prob(x)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        r"""Joint log-density :math:`\log p_\theta(x \mid z) + \log p(z)`.

        Args:
            x, z: as :meth:`log_likelihood`.

        Returns:
            Tensor (S, B), nats.

        Raises:
            ValueError: as :meth:`log_likelihood`.
        """
        prior = self.prior()
        if z.shape[-1:] != prior.event_shape:
            raise ValueError(
                f"z has {z.shape[-1]} latent dimensions but the prior has event shape "
                f"{tuple(prior.event_shape)}: give encoder and prior the same number"
            )
        return self.log_likelihood(x, z) + prior.log_prob(z)

    @torch.no_grad()
    def sample(self, n: int, mean: bool = False) -> Tensor:
        r"""Draw from the model: :math:`z \sim p(z)`, then :math:`x \sim p_\theta(x \mid z)`.

        Args:
            n: number of observations.
            mean: return :math:`\mathbb{E}[x \mid z]` instead of a draw of x. For a Bernoulli
                these are the grey pictures that most papers show; they are not samples.

        Returns:
            Tensor (n, ...).

        Raises:
            ValueError: for n < 1.
        """
        p = self.decoder(self.prior().sample((1, _checks.count("n", n))))
        return (p.mean if mean else p.sample())[0]

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        r"""Encode, draw, decode: :math:`\mathbb{E}[x' \mid z]` with :math:`z \sim q_\phi(z|x)`.

        z is drawn, not set to the posterior mean: the mean flatters the model.

        Args:
            x: observations (B, ...).

        Returns:
            Tensor (B, ...), decoder means.

        Raises:
            ValueError: as :meth:`log_likelihood`.
        """
        self.check(x)
        return self.decoder(self.encoder(x).sample().unsqueeze(0)).mean[0]

    @torch.no_grad()
    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless x has a likelihood under the decoder; decodes a single z."""
        origin = torch.zeros_like(self.prior().sample((1, 1)))
        self.log_likelihood(x, origin)
