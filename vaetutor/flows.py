r"""Normalising flows, as posteriors and as a prior; the only module that imports zuko.

A flow is a density and a way to draw from it, by an invertible map f with a tractable Jacobian,

.. math:: \log p(z) = \log \mathcal{N}(f(z);\ 0, I)
          + \log\left|\det \frac{\partial f}{\partial z}\right|, \qquad
          z = f^{-1}(\varepsilon),\quad \varepsilon \sim \mathcal{N}(0, I).

:class:`PlanarFlow` is written out here, map by map, and keeps all its numbers in λ. The others
take their maps from zuko, with networks whose weights all x share.

Importing zuko turns off torch's process-wide checks of distributions; here they are left as found
(chapters: flows; the prior and
what it does to q(z|x)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributions as td
from torch import Tensor, nn

from vaetutor import _checks
from vaetutor.families import DiagonalNormal, _Family, _FullPrecision
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

    def rsample_and_log_prob(
        self,
        shape: torch.types._size = torch.Size(),  # noqa: B008
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.loc.device.type, enabled=False):
            return super().rsample_and_log_prob(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        _checks.event("value", value, self.event_shape)  # before its type is looked at
        if value.dtype != self.loc.dtype:
            raise ValueError(f"value must have the dtype {self.loc.dtype}, found {value.dtype}")
        return super().log_prob(value)


class _DrawnWithDensity(td.Distribution):
    """What gives a draw and its density in one pass, and a draw alone by the same."""

    arg_constraints = {}  # noqa: RUF012
    support = td.constraints.real_vector
    has_rsample = True

    def rsample(self, sample_shape: torch.types._size = torch.Size()) -> Tensor:  # noqa: B008
        return self.rsample_and_log_prob(sample_shape)[0]

    def rsample_and_log_prob(
        self,
        sample_shape: torch.types._size = torch.Size(),  # noqa: B008
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class _Planar(_DrawnWithDensity):
    """Standard normal noise, moved by planar maps and then scaled and shifted."""

    def __init__(self, base: td.Independent, u: Tensor, w: Tensor, b: Tensor) -> None:
        self.base = base  # what it would be without maps
        self.u, self.w, self.b = u, w, b  # (..., T, D), (..., T, D), (..., T)
        self.slope = (u * w).sum(-1)  # a = w.u, which must stay above -1
        self.step = u / (1 + torch.relu(-self.slope)).unsqueeze(-1)
        super().__init__(base.batch_shape, base.event_shape, validate_args=_checks.enabled())

    def rsample_and_log_prob(
        self,
        sample_shape: torch.types._size = torch.Size(),  # noqa: B008
    ) -> tuple[Tensor, Tensor]:
        """Draws (..., D) and their log-density (...), in one pass through the maps."""
        mean, scale = self.base.mean, self.base.stddev
        eps = torch.randn((*sample_shape, *mean.shape), dtype=mean.dtype, device=mean.device)
        z, log_q = eps, _log_normal(eps)
        for t in range(self.u.shape[-2]):
            bent = torch.tanh((self.w[..., t, :] * z).sum(-1) + self.b[..., t])
            log_q = log_q - self._log_det(t, bent)
            z = z + self.step[..., t, :] * bent.unsqueeze(-1)
        return mean + scale * z, log_q - scale.log().sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        _checks.event("value", value, self.event_shape)
        if self._validate_args:
            self._validate_sample(value)
        scale = self.base.stddev
        z = (value - self.base.mean) / scale
        log_det = scale.log().sum(-1)
        for t in reversed(range(self.u.shape[-2])):
            bent = torch.tanh(self._argument(t, z))
            log_det = log_det + self._log_det(t, bent)
            z = z - self.step[..., t, :] * bent.unsqueeze(-1)
        return _log_normal(z) - log_det

    def _log_det(self, t: int, bent: Tensor) -> Tensor:
        r"""log(1 + h' w.û) with h' = 1 - tanh², without a difference of near-equal numbers."""
        slope = self.slope[..., t]
        up, down = torch.relu(slope), torch.relu(-slope)
        flat = bent.square()
        return torch.log1p((1 - flat) * up) + torch.log1p(flat * down) - torch.log1p(down)

    def _argument(self, t: int, z: Tensor) -> Tensor:
        """w.z + b before the map t, by z after it: the root of an increasing function."""
        w, b, slope = self.w[..., t, :], self.b[..., t], self.slope[..., t]
        m = slope / (1 + torch.relu(-slope))  # w.û
        target = (w * z).sum(-1) + b
        with torch.no_grad():
            low, high = target - m.abs(), target + m.abs()
            for _ in range(64):
                middle = (low + high) / 2
                above = middle + m * torch.tanh(middle) > target
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            root = (low + high) / 2
            bent = torch.tanh(root)
            derivative = self._log_det(t, bent).exp()
        # A step of Newton's method: nothing more in value, and the derivative of the root.
        return root - (root + m * torch.tanh(root) - target) / derivative


def _log_normal(eps: Tensor) -> Tensor:
    return -0.5 * (eps.square() + math.log(2 * math.pi)).sum(-1)


class PlanarFlow(_Family):
    r"""Normal with diagonal covariance, whose noise first goes through planar maps.

    .. math:: \varepsilon_t = \varepsilon_{t-1} + \hat u_t \tanh(w_t^\top \varepsilon_{t-1} + b_t),
              \qquad z = \mu + \sigma \odot \varepsilon_T, \qquad \lambda = (\mu, r, u, w, b),

    with :math:`\sigma = \operatorname{positive}(r)`. A map stretches or squeezes space along one
    direction, near the plane :math:`w^\top \varepsilon + b = 0`. Its determinant is
    :math:`1 + (1 - \tanh^2)\, w^\top \hat u`, and it is invertible where
    :math:`w^\top \hat u > -1`. So

    .. math:: \hat u = \frac{u}{1 + \max(0, -w^\top u)} :

    a u with :math:`w^\top u \ge 0` stays as it is, any other is shortened, and for given w and b
    every invertible map comes from exactly one u. (-u, -w, -b) is the same map as (u, w, b).

    Args:
        dim: number of latent dimensions :math:`D`.
        transforms: number of maps :math:`T`.

    Called with λ of shape (..., 2 D + T (2 D + 1)), it returns a distribution with batch shape
    (...) and event shape (D,). λ = 0 gives the standard normal; there u and w have no gradient,
    since each is multiplied by the other: start them off zero. A draw comes with its density in
    one pass; the density of any other z takes a root search for each map. In float32 that search
    loses digits where a map squeezes hard: by 0.04 nats at the worst for entries of u and w about
    5, and by 1 nat for entries about 30. Take float64 beyond. There is no closed form for a KL
    from it.

    Raises:
        ValueError: for a number below 1, a λ of another width, or one that is not finite.

    Source: Rezende and Mohamed (2015), arXiv:1505.05770, equations 10 to 13; their appendix A.1
    moves u along w instead, which has no limit at w = 0.

    >>> flow = PlanarFlow(2, transforms=3)
    >>> flow.n_parameters, flow(torch.zeros(5, 19)).rsample((7,)).shape
    (19, torch.Size([7, 5, 2]))
    """

    def __init__(self, dim: int, transforms: int) -> None:
        super().__init__()
        self.dim = _checks.count("dim", dim)
        self.transforms = _checks.count("transforms", transforms)
        self.n_parameters = 2 * dim + transforms * (2 * dim + 1)
        self.base = DiagonalNormal(dim)

    def forward(self, lam: Tensor) -> _Planar:
        lam = self._parameters_of(lam)
        n = self.transforms * self.dim
        normal, u, w, b = lam.split([2 * self.dim, n, n, self.transforms], dim=-1)
        size = (self.transforms, self.dim)
        return _Planar(self.base(normal), u.unflatten(-1, size), w.unflatten(-1, size), b)

    def extra_repr(self) -> str:
        return f"{self.dim}, transforms={self.transforms}"


class _Located(_DrawnWithDensity):
    """A flow, scaled and shifted."""

    def __init__(self, base: td.Independent, flow: _Flow) -> None:
        self.base, self.flow = base, flow
        super().__init__(base.batch_shape, base.event_shape, validate_args=_checks.enabled())

    def rsample_and_log_prob(
        self,
        sample_shape: torch.types._size = torch.Size(),  # noqa: B008
    ) -> tuple[Tensor, Tensor]:
        """Draws (..., D) and their log-density (...), in one pass through the flow."""
        y, log_q = self.flow.rsample_and_log_prob(sample_shape)
        scale = self.base.stddev
        return self.base.mean + scale * y, log_q - scale.log().sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        _checks.event("value", value, self.event_shape)
        if self._validate_args:
            self._validate_sample(value)
        scale = self.base.stddev
        return self.flow.log_prob((value - self.base.mean) / scale) - scale.log().sum(-1)


class FlowPosterior(_Family):
    r"""Flow of monotone splines that an encoder steers, scaled and shifted.

    .. math:: z = \mu + \sigma \odot T_\psi^{-1}(\varepsilon;\ c), \qquad
              \lambda = (\mu, r, c),

    with :math:`\sigma = \operatorname{positive}(r)`. T is a stack of maps like those of
    :class:`FlowPrior`, whose networks see the context c beside the dimensions. The weights ψ of
    these networks belong to the family and are shared by all x; they are trained with the encoder
    that the family ends. A search over λ, as :func:`vaetutor.refine` makes it, leaves them as they
    are: it finds the best of the densities that this flow can reach by its context.

    Three orientations differ in what is cheap, counted in passes of a map's network. Those of a
    *coupling* move half of the dimensions by the context alone and the other half by both: a
    density takes one pass, a draw with its density three. A *masked* map sees all earlier
    dimensions: a density takes one pass, a draw with its density D + 1. An *inverse* one is that
    map the other way round: a draw with its own density takes one pass, and the density of any
    other z takes D + 1.

    Args:
        dim: number of latent dimensions :math:`D`.
        context: size of c.
        transforms: number of maps.
        hidden: widths of the hidden layers of each network.
        bins: pieces of each spline.
        orientation: ``"coupling"``, ``"masked"`` or ``"inverse"``.

    Called with λ of shape (..., 2 D + context), it returns a distribution with batch shape (...)
    and event shape (D,), whose ``rsample_and_log_prob`` gives a draw with its density at once.
    There is no closed form for a KL from it.

    Raises:
        ValueError: for a number below 1 (2 for bins), no hidden layer, another orientation, a λ of
            another width, or one that is not finite.

    Source: splines: Durkan et al. (2019), arXiv:1906.04032; coupling: Dinh et al. (2017),
    arXiv:1605.08803; masked: Papamakarios et al. (2017), arXiv:1705.07057; inverse: Kingma et al.
    (2016), arXiv:1606.04934.

    >>> flow = FlowPosterior(2, context=8)
    >>> flow(torch.zeros(5, flow.n_parameters)).rsample((7,)).shape
    torch.Size([7, 5, 2])
    """

    def __init__(
        self,
        dim: int,
        context: int,
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
        orientation: Literal["coupling", "masked", "inverse"] = "coupling",
    ) -> None:
        super().__init__()
        self.dim = _checks.count("dim", dim)
        self.context = _checks.count("context", context)
        if orientation not in ("coupling", "masked", "inverse"):
            raise ValueError(
                f'orientation must be "coupling", "masked" or "inverse", found {orientation!r}'
            )
        self.orientation = orientation
        self.n_parameters = 2 * dim + context
        self.location = DiagonalNormal(dim)
        self.base = StandardNormal(dim)
        passes = 2 if orientation == "coupling" else None
        self.transform = _splines(dim, transforms, hidden, bins, context=context, passes=passes)

    def forward(self, lam: Tensor) -> _Located:
        lam = self._parameters_of(lam)
        dtype = self.base.loc.dtype
        if lam.dtype != dtype:
            raise ValueError(f"lam must have the dtype of the flow, {dtype}, found {lam.dtype}")
        located, context = lam.split([2 * self.dim, self.context], dim=-1)
        transform = self.transform(context)
        if self.orientation == "inverse":
            transform = transform.inv
        base = self.base().expand(lam.shape[:-1])
        return _Located(self.location(located), _Flow(transform, base))

    def extra_repr(self) -> str:
        return f"{self.dim}, context={self.context}, orientation={self.orientation!r}"


def _splines(
    dim: int,
    transforms: int,
    hidden: Sequence[int],
    bins: int,
    **options: int | None,
) -> zuko.lazy.LazyTransform:
    """A stack of zuko's autoregressive spline maps, its sizes checked."""
    _checks.count("transforms", transforms)
    _checks.count("bins", bins, least=2)
    widths = [_checks.count("hidden", width) for width in hidden]
    if not widths:
        raise ValueError(f"hidden must name at least one layer, found {hidden!r}")
    flow = zuko.flows.NSF(dim, transforms=transforms, bins=bins, hidden_features=widths, **options)
    return flow.transform


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
        self.base = StandardNormal(dim)
        self.transform = _splines(dim, transforms, hidden, bins)

    def forward(self) -> td.Distribution:
        return _Flow(self.transform(None), self.base())
