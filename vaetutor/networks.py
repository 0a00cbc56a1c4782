"""Networks: the map from x to the parameters of a family, and from z to those of a decoder.

Nothing here knows about distributions. A posterior is ``nn.Sequential(mlp(...), family)``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import nn

from vaetutor import _checks


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    r"""A fully connected network: linear layers with an activation between them.

    .. math:: h_0 = x, \qquad h_{l} = a(W_l h_{l-1} + b_l), \qquad f(x) = W_K h_{K-1} + b_K.

    Args:
        sizes: widths from input to output, at least two.
        activation: makes the module between two layers.

    Returns:
        A module that maps (..., sizes[0]) to (..., sizes[-1]).

    Raises:
        ValueError: for fewer than two sizes or one below 1.

    >>> mlp(784, 400, 40)
    Sequential(
      (0): Linear(in_features=784, out_features=400, bias=True)
      (1): ReLU()
      (2): Linear(in_features=400, out_features=40, bias=True)
    )
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes must name an input and an output width, found {sizes}")
    for size in sizes:
        _checks.count("sizes", size)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])
