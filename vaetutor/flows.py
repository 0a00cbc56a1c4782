r"""Normalising flows, by zuko: the only module that imports it.

A flow is a density and a way to draw from it, by an invertible map f with a tractable Jacobian,

.. math:: \log p(z) = \log \mathcal{N}(f(z);\ 0, I)
          + \log\left|\det \frac{\partial f}{\partial z}\right|, \qquad
          z = f^{-1}(\varepsilon),\quad \varepsilon \sim \mathcal{N}(0, I).

Importing zuko turns off torch's process-wide checks of distributions; here they are left as found
(chapter: the prior and what it does to q(z|x)).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributions as td
from torch import Tensor, nn

from vaetutor import _checks
from vaetutor.families import _FullPrecision
from vaetutor.priors import StandardNormal

_before = td.Distribution._validate_args
import zuko.distributions  # noqa: E402
import zuko.flows  # noqa: E402

td.Distribution.set_default_validate_args(_before)


class _Flow(_FullPrecision, zuko.distributions.NormalizingFlow):
    """A flow in full precision: its network is part of the density."""

    @property
    def loc(self) -> Tensor:  # type: ignore[override]
        return self.base.mean


class FlowPrior(nn.Module):
    r"""Autoregressive flow of monotone splines, from the latent variable to standard normal noise.

    Each of the T maps in turn transforms dimension d by a monotone rational-quadratic spline on
    [-5, 5], and leaves it as it is outside; a masked network computes its knots from the
    dimensions before d, in an order that alternates. So the flow moves mass inside [-5, 5] only:
    each dimension keeps the tails of a standard normal, and the scale of z is not free. Its
    density takes one pass of the network, and a draw takes D passes: as prior, the density is
    what training needs.

    Args:
        dim: number of latent dimensions :math:`D`.
        transforms: number of maps :math:`T`.
        hidden: widths of the hidden layers of each network.
        bins: pieces of each spline.

    Called with nothing, it returns a distribution with event shape (D,), a zuko
    ``NormalizingFlow``. There is no closed form for a KL to it.

    Raises:
        ValueError: for a number below 1 (2 for bins), or no hidden layer.

    Source: Durkan et al. (2019), arXiv:1906.04032 (neural spline flows); Papamakarios et al.
    (2017), arXiv:1705.07057 (masked autoregressive flows); Papamakarios et al. (2021),
    arXiv:1912.02762 (review). As prior of a VAE: Chen et al. (2017), arXiv:1611.02731.

    >>> import torch
    >>> FlowPrior(2)().log_prob(torch.zeros(5, 7, 2)).shape
    torch.Size([5, 7])
    """

    def __init__(
        self, dim: int, transforms: int = 3, hidden: Sequence[int] = (64, 64), bins: int = 8
    ) -> None:
        super().__init__()
        self.dim = _checks.count("dim", dim)
        _checks.count("transforms", transforms)
        _checks.count("bins", bins, least=2)
        widths = [_checks.count("hidden", width) for width in hidden]
        if not widths:
            raise ValueError(f"hidden must name at least one layer, found {hidden!r}")
        self.base = StandardNormal(dim)
        flow = zuko.flows.NSF(dim, transforms=transforms, bins=bins, hidden_features=widths)
        self.transform = flow.transform

    def forward(self) -> td.Distribution:
        return _Flow(self.transform(None), self.base())
