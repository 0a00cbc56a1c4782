r"""Densities on the plane that are known up to their constant: what a posterior may look like.

A posterior comes as :math:`p(x, z)`, unnormalised. These five shapes come as
:math:`\tilde p(z)`, unnormalised too, and are simple enough to see on a grid: one bent ridge, two
modes, and three wavy bands (chapters: variational inference; advanced posteriors).

A target is a latent variable model whose observation says nothing: ``log_joint(x, z)`` ignores the
values of x, and the evidence of every x is the constant
:math:`Z = \int \tilde p(z)\,dz`. So every bound of the package runs on it, and
:math:`\mathrm{KL}(q \,\|\, p) = \log Z - \mathrm{ELBO}`.

U1 to U4 are the energies of Rezende and Mohamed (2015), arXiv:1505.05770, table 1, with
:math:`\tilde p(z) = e^{-U(z)}`. U2 to U4 have bands that never end along the first axis, so Z is
infinite over the plane. By convention their Z is that of the restriction to
:math:`|z_1| \le 4`; the density is left as it is outside, and nothing holds q back there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vaetutor import _checks
from vaetutor.quadrature import grid_posterior, halving_error, mass_beyond


class LogZ(NamedTuple):
    """A log normalising constant and what it may be wrong by, in nats."""

    value: float
    """log Z."""
    error: float
    """Error to expect of the quadrature: see :func:`vaetutor.grid_posterior`."""


@dataclass(frozen=True)
class Target:
    """An unnormalised log-density on the plane, with the rectangle that it is integrated over.

    Called with z (..., 2) it returns the unnormalised log-density (...), everywhere on the plane.
    """

    name: str
    """What to call it."""
    log_density: Callable[[Tensor], Tensor]
    """z (..., 2) to the unnormalised log-density (...), nats."""
    domain: tuple[tuple[float, float], tuple[float, float]]
    """(low, high), the corners of a rectangle: ``grid_posterior(target, x, *target.domain)``. It
    holds all the mass but for less than 1e-9 of it; where `is_strip`, all mass with
    z_1 from low[0] to high[0], and Z is the mass there."""
    is_strip: bool = False
    """Whether the target is restricted along the first axis, having infinite mass without it."""

    def __call__(self, z: Tensor) -> Tensor:
        """Unnormalised log-density, (...), nats, of z (..., 2).

        Raises a ValueError if z is not a floating-point tensor of shape (..., 2).
        """
        if not isinstance(z, Tensor) or not z.is_floating_point() or z.shape[-1:] != (2,):
            found = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"z must be a floating-point tensor of shape (..., 2), found {found}")
        return self.log_density(z)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """The same as a joint density: of x (B, ...) only the number of rows matters.

        Args:
            x: any batch of B rows.
            z: draws (S, B, 2), or (S, 1, 2) for the same z with every x.

        Returns:
            Tensor (S, B), nats.

        Raises:
            ValueError: if x is empty, or z holds draws for another number of rows.
        """
        _checks.batch("x", x)
        _checks.draws(x, z, shared=True)
        return self(z).expand(len(z), len(x))

    def log_z(self, n: int = 801) -> LogZ:
        r"""Log normalising constant :math:`\ln \int e^{\log \tilde p(z)}\,dz` over the domain.

        Args:
            n: points on each axis of the quadrature, odd.

        Returns:
            ``LogZ(value, error)``, nats; the error as :func:`vaetutor.grid_posterior` estimates
            it, but without what lies beyond a strip.

        Raises:
            ValueError: if n is even or too small.

        >>> value, error = U2.log_z()
        >>> abs(value - math.log(8 * 0.4 * math.sqrt(2 * math.pi))) < 1e-10, error < 1e-8
        (True, True)
        """
        grid = grid_posterior(self, torch.zeros(1, 1, dtype=torch.float64), *self.domain, n)
        error = halving_error(grid.log_density, grid.axes)
        for axis in range(self.is_strip, 2):
            error = error + mass_beyond(grid.log_density, grid.axes, axis)
        return LogZ(grid.log_evidence.item(), error.item())


def _wave(z1: Tensor) -> Tensor:
    """w_1 of the source."""
    return torch.sin(0.5 * math.pi * z1)


def _gauss(value: Tensor, width: float) -> Tensor:
    return -0.5 * (value / width) ** 2


def _banana(z: Tensor) -> Tensor:
    z1, z2 = z.unbind(-1)
    return _gauss(z1, 2.0) + _gauss(z2 - z1**2 / 4, 0.5)


def _ring(z: Tensor) -> Tensor:
    z1 = z[..., 0]
    two_sides = torch.logaddexp(_gauss(z1 - 2, 0.6), _gauss(z1 + 2, 0.6))
    return _gauss(torch.linalg.vector_norm(z, dim=-1) - 2, 0.4) + two_sides


def _band(z: Tensor) -> Tensor:
    z1, z2 = z.unbind(-1)
    return _gauss(z2 - _wave(z1), 0.4)


def _forked(z: Tensor) -> Tensor:
    z1, z2 = z.unbind(-1)
    bump = 3 * torch.exp(_gauss(z1 - 1, 0.6))
    upper = z2 - _wave(z1)
    return torch.logaddexp(_gauss(upper, 0.35), _gauss(upper + bump, 0.35))


def _stepped(z: Tensor) -> Tensor:
    z1, z2 = z.unbind(-1)
    step = 3 * torch.sigmoid((z1 - 1) / 0.3)
    upper = z2 - _wave(z1)
    return torch.logaddexp(_gauss(upper, 0.4), _gauss(upper + step, 0.35))


BANANA = Target("banana", _banana, ((-14.0, -6.0), (14.0, 56.0)))
r"""A bent ridge: :math:`z_1 \sim \mathcal{N}(0, 2^2)`,
:math:`z_2 \mid z_1 \sim \mathcal{N}(z_1^2 / 4,\ 0.5^2)`, so :math:`Z = 2\pi`. After the twisted
normal of Haario, Saksman and Tamminen (1999)."""

U1 = Target("U1", _ring, ((-6.0, -6.0), (6.0, 6.0)))
"""Two modes, opposite parts of a ring of radius 2."""

_STRIP = ((-4.0, -8.0), (4.0, 6.0))
U2 = Target("U2", _band, _STRIP, is_strip=True)
"""A sine wave of one width."""

U3 = Target("U3", _forked, _STRIP, is_strip=True)
"""A sine wave that forks and joins again."""

U4 = Target("U4", _stepped, _STRIP, is_strip=True)
"""A sine wave that forks and stays apart."""
