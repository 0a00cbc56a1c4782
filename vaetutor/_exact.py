"""What the exactly solvable models share: joint density, evidence by Bayes' rule, and checks."""

from __future__ import annotations

import copy
from typing import Self

import torch
import torch.distributions as td
from torch import Tensor, nn

from vaetutor import _checks


class ExactModel(nn.Module):
    """The joint density and the evidence of a model made of a prior and a likelihood."""

    _width: int  # of x

    def prior(self) -> td.Distribution:
        raise NotImplementedError

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        raise NotImplementedError

    def posterior(self, x: Tensor) -> td.Distribution:
        raise NotImplementedError

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        r"""Joint log-density :math:`\log p(x \mid z) + \log p(z)`.

        Args:
            x: observations (B, d).
            z: latent draws (S, B, D), or (S, 1, D) for the same z with every x.

        Returns:
            Tensor (S, B), nats.

        Raises:
            ValueError: if x is empty, not finite, of another width or dtype, or z holds draws for
                another number of rows.
        """
        return self.log_likelihood(x, z) + self.prior().log_prob(z)

    def log_evidence(self, x: Tensor) -> Tensor:
        r"""Evidence, by Bayes' rule at the posterior mean.

        .. math:: \log p(x) = \log p(x, z) - \log p(z \mid x) \quad \text{for every } z.

        There the residuals are small. The density of x with its own covariance takes a difference
        of large numbers instead, of which little is left in float32. It runs in float64 inside.

        Args:
            x: observations (B, d).

        Returns:
            Tensor (B,), nats, in the dtype of x.

        Raises:
            ValueError: if x is empty, not finite, or of another width or dtype.
        """
        self._check(x)
        wide = self._in_float64()
        x_wide = x.to(next(wide.buffers()))
        p = wide.posterior(x_wide)
        z = p.mean.unsqueeze(0)
        return (wide.log_joint(x_wide, z) - p.log_prob(z)).squeeze(0).to(x)

    def _in_float64(self) -> Self:
        """A copy in float64, on the CPU if the device has none."""
        on_mps = next(self.buffers()).device.type == "mps"
        return copy.deepcopy(self).to("cpu" if on_mps else None, torch.float64)

    def _check(self, x: Tensor) -> None:
        _checks.batch("x", x)
        if x.ndim != 2 or x.shape[1] != self._width:
            raise ValueError(
                f"x must have shape (B, {self._width}) for this model, found {tuple(x.shape)}"
            )
        dtype = next(self.buffers()).dtype
        if x.dtype != dtype:
            raise ValueError(
                f"x must have the dtype of the model, {dtype}, found {x.dtype}: convert one of "
                "them, for instance by model.double()"
            )

    def _check_draws(self, x: Tensor, z: Tensor) -> None:
        _checks.draws(x, z, shared=True)
        if z.shape[-1:] != self.prior().event_shape:
            raise ValueError(
                f"z must have {self.prior().event_shape[0]} latent dimensions for this model, "
                f"found shape {tuple(z.shape)}"
            )


def standard_normal(
    shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def normal(mean: Tensor, factor: Tensor) -> td.MultivariateNormal:
    """Normals with means (B, D) and one Cholesky factor (D, D) for all of them."""
    factor = factor.expand(len(mean), *factor.shape)
    return td.MultivariateNormal(mean, scale_tril=factor, validate_args=False)
