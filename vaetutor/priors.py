"""Priors p(z): a prior is a module that is called with nothing and returns a distribution.

A learned prior has parameters and a fixed one has buffers, so both move with the model.
"""

from __future__ import annotations

import torch
import torch.distributions as td
from torch import Tensor, nn

from vaetutor import _checks


class StandardNormal(nn.Module):
    r"""The prior :math:`p(z) = \mathcal{N}(z;\ 0, I)`.

    Args:
        dim: number of latent dimensions :math:`D`.

    Called with nothing, it returns a distribution with event shape (D,).

    Raises:
        ValueError: for a dimension below 1.

    Source: Kingma and Welling (2014), arXiv:1312.6114, section 3.

    >>> StandardNormal(2)().log_prob(torch.zeros(2))
    tensor(-1.8379)
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = _checks.count("dim", dim)
        # Buffers follow the model to its device and precision; they are constants, not state.
        self.register_buffer("loc", torch.zeros(dim), persistent=False)
        self.register_buffer("scale", torch.ones(dim), persistent=False)

    def forward(self) -> td.Independent:
        return td.Independent(td.Normal(self.loc, self.scale, validate_args=_checks.enabled()), 1)

    def extra_repr(self) -> str:
        return f"{self.dim}"
