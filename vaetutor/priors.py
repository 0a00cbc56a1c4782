r"""Priors p(z): a prior is a module that is called with nothing and returns a distribution.

A learned prior has parameters and a fixed one has buffers, so both move with the model. What a
prior is for can be read off the mean rate of an encoder over N examples,

.. math:: \frac{1}{N}\sum_n \mathrm{KL}(q(z \mid x_n)\,\|\,p(z))
          = I_q(n; z) + \mathrm{KL}(q(z)\,\|\,p(z)), \qquad
          q(z) = \frac{1}{N}\sum_n q(z \mid x_n) :

the best prior for a given encoder and these examples is the aggregate posterior q(z) (chapter: the
prior and what it does to q(z|x)). The flow prior is in :mod:`vaetutor.flows`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributions as td
from torch import Tensor, nn

from vaetutor import _checks
from vaetutor.families import DiagonalNormal, _Independent, inverse_positive
from vaetutor.model import Family

_AT_ONCE = 2**19  # numbers held while a density is evaluated: 2 MB in float32, fits a cache
_FORBIDDEN = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)


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
        return _Independent(td.Normal(self.loc, self.scale, validate_args=_checks.enabled()), 1)

    def extra_repr(self) -> str:
        return f"{self.dim}"


class Standard(nn.Module):
    r"""The member of a family at λ = 0, as a fixed prior.

    .. math:: p(z) = q_{\lambda = 0}(z).

    For a diagonal normal it is the standard normal, for angles the uniform distribution, and for
    a product the product of these.

    Args:
        family: a family without trainable parameters.

    Called with nothing, it returns a distribution with the event shape of the family.

    Raises:
        ValueError: for a family with trainable parameters, which would not stay fixed.

    >>> from vaetutor import ProjectedNormal
    >>> Standard(ProjectedNormal(1))().log_prob(torch.tensor([0.3])).exp() * 2 * math.pi
    tensor(1.0000)
    """

    lam: Tensor

    def __init__(self, family: Family) -> None:
        super().__init__()
        if isinstance(family, nn.Module) and next(family.parameters(), None) is not None:
            raise ValueError(f"family must have no trainable parameters, found {family}")
        self.family = family
        self.register_buffer("lam", torch.zeros(family.n_parameters), persistent=False)

    def forward(self) -> td.Distribution:
        return self.family(self.lam)


class Mixture(td.MixtureSameFamily):
    r"""A mixture of joint distributions, evaluated and drawn from for a block of z at a time.

    .. math:: p(z) = \sum_{c=1}^{C} \pi_c\, p_c(z), \qquad \pi = \operatorname{softmax}(a).

    All pairs of draws and components at once would not fit into memory where there are thousands
    of either. The density has a gradient, in z, in the weights and in the components.

    Args:
        logits: a, real numbers (C,); equal ones for equal weights.
        components: distribution with batch shape (C,) and event shape (D,).

    Raises:
        ValueError: for another number of logits than of components.

    >>> from vaetutor import FullNormal
    >>> mixture = Mixture(torch.zeros(4), FullNormal(2)(torch.zeros(4, 5)))
    >>> mixture.log_prob(torch.zeros(3, 7, 2)).shape
    torch.Size([3, 7])
    """

    def __init__(self, logits: Tensor, components: td.Distribution) -> None:
        weights = td.Categorical(logits=logits, validate_args=_checks.enabled())
        super().__init__(weights, components, validate_args=False)  # the parts look at values
        self._rows = max(1, _AT_ONCE // (self._num_component * self.event_shape.numel()))

    def log_prob(self, value: Tensor, without: Tensor | None = None) -> Tensor:
        """Log-density at `value`, shape (...), nats.

        Args:
            value: z, shape (..., D).
            without: a component to leave out at each z, integers (...); the weights of the others,
                at least one, are then scaled to sum to 1. None to use all.
        """
        _checks.event("z", value, self.event_shape)
        blocks = value.reshape(-1, *self.event_shape).split(self._rows)
        if without is None:
            parts = [super(Mixture, self).log_prob(block) for block in blocks]
        else:
            left_out = without.flatten().split(self._rows)
            parts = [self._of_others(*pair) for pair in zip(blocks, left_out, strict=True)]
        return torch.cat(parts).reshape(value.shape[:-1])

    def _of_others(self, z: Tensor, without: Tensor) -> Tensor:
        log_pi = self.mixture_distribution.logits
        joint = log_pi + self.component_distribution.log_prob(self._pad(z))
        others = joint.scatter_(-1, without.unsqueeze(-1), -math.inf).logsumexp(-1)
        return others - (-log_pi.exp()[without]).log1p()

    def sample(self, sample_shape: torch.types._size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw z, shape ``(*sample_shape, D)``."""
        n = math.prod(sample_shape)
        at_least = max(n, 1)  # torch refuses to draw none
        sizes = [min(self._rows, at_least - start) for start in range(0, at_least, self._rows)]
        draws = [super(Mixture, self).sample(torch.Size((size,))) for size in sizes]
        return torch.cat(draws)[:n].reshape(*sample_shape, *self.event_shape)


class MixturePrior(nn.Module):
    r"""Mixture of diagonal normals with learned weights, means and scales.

    .. math:: p(z) = \sum_{c=1}^{C} \pi_c \prod_{d=1}^{D} \mathcal{N}(z_d;\ m_{cd},\ s_{cd}^2),
              \qquad \pi = \operatorname{softmax}(a).

    A component is chosen once for all dimensions of z, not for each by itself. Weights start
    equal, means are drawn from N(0, I/2) and variances are 1/2: components that started equal
    would get equal gradients and stay one, and these have on average the second moments of a
    standard normal. Means come from torch's global random state, as those of any layer.

    Args:
        dim: number of latent dimensions :math:`D`.
        components: number of components :math:`C`.

    Called with nothing, it returns a distribution with event shape (D,). There is no closed form
    for a KL to it: :func:`~vaetutor.elbo_terms` takes the draws, and says so.

    Raises:
        ValueError: for a number below 1.

    Source: Dilokthanakul et al. (2016), arXiv:1611.02648, for mixtures as priors of a VAE; Tomczak
    and Welling (2018), arXiv:1705.07120, section 4, compare this one.

    >>> prior = MixturePrior(2, components=3)
    >>> prior().log_prob(torch.zeros(5, 7, 2)).shape
    torch.Size([5, 7])
    """

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        self.dim = _checks.count("dim", dim)
        self.components = _checks.count("components", components)
        self.family = DiagonalNormal(dim)
        scale = torch.full((components, dim), math.sqrt(0.5))
        self.logits = nn.Parameter(torch.zeros(components))
        self.lam = nn.Parameter(
            torch.cat([scale * torch.randn(components, dim), inverse_positive(scale)], dim=-1)
        )

    def forward(self) -> Mixture:
        return Mixture(self.logits, self.family(self.lam))

    def extra_repr(self) -> str:
        return f"{self.dim}, components={self.components}"


class VampPrior(nn.Module):
    r"""Equal mixture of the encoder's answers to learned pseudo-inputs.

    .. math:: p(z) = \frac{1}{C} \sum_{c=1}^{C} q_\phi(z \mid u_c).

    With the training examples as pseudo-inputs this is the aggregate posterior; with fewer, it
    is a learned summary of it. It has the encoder's parameters and :math:`u` for its own, so it
    moves whenever the encoder does. It is a normalised density for any real :math:`u`, even one
    that could not be an example. With `support` each value of u stays inside an interval, by a
    logistic map.

    Args:
        encoder: the encoder of the same VAE, from u (C, ...) to a distribution over z. It must
            treat examples separately and have no random parts: dropout would make the density
            random, and in batch normalisation pseudo-inputs would mix with the examples.
        pseudo_inputs: where u starts, (C, ...): as many rows as components, each shaped as an
            example. They are copied.
        support: (low, high), the open interval in which values of u stay; None for all real
            numbers.
        limit: the most pseudo-inputs allowed. Each step of training encodes all C of them and
            compares each draw with C densities, so think before raising it.

    Called with nothing, it returns a distribution with event shape (D,). There is no closed form
    for a KL to it.

    Raises:
        ValueError: for pseudo-inputs that are empty, not finite, more than `limit`, of a width or
            type that the encoder refuses, or not inside the support; for an empty support; for an
            encoder with dropout or batch normalisation, or one that does not return a distribution
            over z for each row.

    Source: Tomczak and Welling (2018), arXiv:1705.07120, equation 9. Cost: C encoder passes.

    >>> from vaetutor.networks import mlp
    >>> encoder = nn.Sequential(mlp(3, 4), DiagonalNormal(2))
    >>> VampPrior(encoder, torch.rand(5, 3))().event_shape
    torch.Size([2])
    """

    def __init__(
        self,
        encoder: nn.Module,
        pseudo_inputs: Tensor,
        support: tuple[float, float] | None = None,
        limit: int = 1000,
    ) -> None:
        super().__init__()
        _checks.batch("pseudo_inputs", pseudo_inputs)
        if len(pseudo_inputs) > _checks.count("limit", limit):
            raise ValueError(
                f"pseudo_inputs must be at most {limit}, found {len(pseudo_inputs)}: every step "
                "encodes all of them; take fewer, or raise limit"
            )
        self.encoder = encoder
        self.support = None if support is None else _interval("support", support)
        start = pseudo_inputs.detach().clone()
        self.raw = nn.Parameter(
            start if self.support is None else _unbounded(start, *self.support)
        )
        self._check_encoder()

    @property
    def pseudo_inputs(self) -> Tensor:
        """The pseudo-inputs u as the encoder sees them, (C, ...)."""
        if self.support is None:
            return self.raw
        low, high = self.support
        return low + (high - low) * torch.sigmoid(self.raw)

    def forward(self) -> Mixture:
        return Mixture(self.raw.new_zeros(len(self.raw)), self.encoder(self.pseudo_inputs))

    @torch.no_grad()
    def _check_encoder(self) -> None:
        for name, part in self.encoder.named_modules():
            if isinstance(part, _FORBIDDEN):
                raise ValueError(
                    f"encoder must treat pseudo-inputs separately and without chance, found "
                    f"{type(part).__name__} at {name or 'its top'!r}: take an encoder without it"
                )
        try:
            q = self.encoder(self.pseudo_inputs)
        except RuntimeError as error:
            raise ValueError(
                f"pseudo_inputs of shape {tuple(self.raw.shape)} and type {self.raw.dtype} do not "
                f"fit the encoder: {error}"
            ) from error
        _checks.one_for_each("encoder", q, len(self.raw))

    def extra_repr(self) -> str:
        return f"pseudo_inputs={tuple(self.raw.shape)}, support={self.support}"


def _interval(name: str, value: tuple[float, float]) -> tuple[float, float]:
    ends = tuple(value) if isinstance(value, Sequence) else ()
    low, high = ends if len(ends) == 2 else (math.nan, math.nan)
    low, high = _checks.real_number(low), _checks.real_number(high)
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"{name} must be (low, high), numbers with low < high, found {value!r}")
    return low, high


def _unbounded(value: Tensor, low: float, high: float) -> Tensor:
    """The logits of `value` inside (low, high)."""
    raw = torch.logit((value - low) / (high - low))
    if not ((value > low) & (value < high) & raw.isfinite()).all():
        raise ValueError(
            f"pseudo_inputs must lie strictly inside the support ({low:g}, {high:g}), found "
            f"values from {value.min().item():g} to {value.max().item():g}: at an end of it the "
            "gradient of the logistic map is zero; move them inwards, 0.9 * u + 0.05 for instance"
        )
    return raw
