r"""Latent variables that live on a circle, and latent spaces made of several parts.

Some causes of an observation are angles: how far a picture is turned, the phase of a wave, the
time of day. An interval has two ends, and an encoder that has to jump from one to the other
cannot be continuous. A circle has none (chapter: domain knowledge in q(z|x)).

Both classes are families like those of :mod:`vaetutor.families`, and meet the same objectives.
"""

from __future__ import annotations

import math

import torch
import torch.distributions as td
from torch import Tensor, nn

from vaetutor import _checks
from vaetutor.families import _Family
from vaetutor.model import Family


def _log_integral_of_ndtr(t: Tensor) -> Tensor:
    r"""Logarithm of :math:`\varphi(t) + t\,\Phi(t) = \int_{-\infty}^{t} \Phi(u)\,du`."""
    # Each formula sees a harmless number where it does not apply, or its gradient would be NaN.
    right = t.clamp(min=-1.0)
    direct = (
        torch.exp(-0.5 * right.square()) / math.sqrt(2 * math.pi)
        + right * torch.special.ndtr(right)
    ).log()
    left = t.clamp(-30.0, -1.0)  # factor out the density; what is left is 1 - (1 - small)
    scaled = torch.log1p(left * math.sqrt(math.pi / 2) * torch.special.erfcx(-left / math.sqrt(2)))
    far = t.clamp(max=-30.0).reciprocal().square()  # 1 / t^2, of an asymptotic series
    series = far.log() + torch.log1p(-far * (3 - far * (15 - far * (105 - 945 * far))))
    tail = torch.where(t > -30.0, scaled, series) - 0.5 * (t.square() + math.log(2 * math.pi))
    return torch.where(t > -1.0, direct, tail)


class _ProjectedNormal(td.Distribution):
    """Angles of normal vectors with unit covariance, one for each dimension."""

    arg_constraints = {"loc": td.constraints.real}  # noqa: RUF012
    support = td.constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, validate_args: bool | None = None) -> None:
        self.loc = loc  # (..., D, 2)
        super().__init__(loc.shape[:-2], loc.shape[-2:-1], validate_args=validate_args)

    @property
    def direction(self) -> Tensor:
        """The mean direction in (-π, π], (..., D), radians; the density has its peak there."""
        return torch.atan2(self.loc[..., 1], self.loc[..., 0])

    @property
    def resultant_length(self) -> Tensor:
        r"""|E[exp(iθ)]|, (..., D): 0 where uniform, near 1 where concentrated.

        With r = |m| it is :math:`\sqrt{\pi/8}\, r e^{-r^2/4} (I_0(r^2/4) + I_1(r^2/4))`.
        """
        r = torch.linalg.vector_norm(self.loc, dim=-1)
        bessel = torch.special.i0e(r.square() / 4) + torch.special.i1e(r.square() / 4)
        return math.sqrt(math.pi / 8) * r * bessel

    def rsample(self, sample_shape: torch.types._size = torch.Size()) -> Tensor:  # noqa: B008
        shape = torch.Size((*sample_shape, *self.loc.shape))
        with torch.no_grad():
            y = self.loc + torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
            angle = torch.atan2(y[..., 1], y[..., 0])
            cosine, sine = angle.cos(), angle.sin()
            along = self.loc[..., 0] * cosine + self.loc[..., 1] * sine
            # E[1 / |y|] given the angle; 1 / |y| itself has an infinite variance.
            log_ndtr = torch.special.log_ndtr(along)
            inverse = torch.exp(log_ndtr - _log_integral_of_ndtr(along))
        moved = self.loc - self.loc.detach()  # zero, with the gradient of m
        return angle + inverse * (moved[..., 1] * cosine - moved[..., 0] * sine)

    def log_prob(self, value: Tensor) -> Tensor:
        _checks.event("value", value, self.event_shape)
        if self._validate_args:
            self._validate_sample(value)
        cosine, sine = value.cos(), value.sin()
        along = self.loc[..., 0] * cosine + self.loc[..., 1] * sine
        across = self.loc[..., 1] * cosine - self.loc[..., 0] * sine
        log_p = -0.5 * (across.square() + math.log(2 * math.pi)) + _log_integral_of_ndtr(along)
        return log_p.sum(-1)


class ProjectedNormal(_Family):
    r"""Angles, for latent variables that live on a circle.

    .. math:: \theta_d = \operatorname{angle}(m_d + \varepsilon_d), \quad \varepsilon_d \sim
              \mathcal{N}(0, I_2), \qquad q_\lambda(\theta) = \prod_{d=1}^{D} \varphi(s_d)
              \left[\varphi(t_d) + t_d\, \Phi(t_d)\right], \qquad \lambda = (m_1, \dots, m_D),

    where :math:`m_d \in \mathbb{R}^2`, t is its component along the direction θ and s the one
    across it, and φ and Φ are the density and distribution function of a standard normal. Its
    direction is the peak and its length r the concentration: at 0 the angle is uniform, and for
    large r it is near normal with standard deviation 1/r. No point of the circle is special, so
    an encoder can follow an angle all the way round.

    Args:
        dim: number of angles :math:`D`.

    Called with λ of shape (..., 2 D), it returns a distribution with batch shape (...) and event
    shape (D,), in radians. Draws lie in [-π, π]; the density takes any number as an angle, and
    integrates to 1 over one turn. λ = 0 gives the uniform distribution. Besides draws and density
    it has ``direction`` and ``resultant_length``.

    Raises:
        ValueError: for a λ of another width, or one that is not finite.

    A draw moves with m by :math:`d\theta = (\cos\theta\, dm_2 - \sin\theta\, dm_1) / \rho`, ρ
    being the length of :math:`m + \varepsilon`. Its gradient takes the mean of 1/ρ for this θ,
    :math:`\Phi(t) / (\varphi(t) + t\, \Phi(t))`: the integrand does not see ρ, and the variance
    of 1/ρ is infinite. First derivatives only.

    Source: Mardia and Jupp (2000), Directional statistics, section 3.5.6. The draw is continuous
    in λ except where it meets π, which a function of the angle as an angle does not notice.

    >>> ProjectedNormal(1)(torch.zeros(2)).log_prob(torch.tensor([1.0])).exp() * 2 * math.pi
    tensor(1.0000)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = _checks.count("dim", dim)
        self.n_parameters = 2 * dim

    def forward(self, lam: Tensor) -> _ProjectedNormal:
        loc = self._parameters_of(lam).unflatten(-1, (self.dim, 2))
        return _ProjectedNormal(loc, validate_args=_checks.enabled())

    def extra_repr(self) -> str:
        return f"{self.dim}"


class _Product(td.Distribution):
    """Independent parts side by side in one event."""

    arg_constraints = {}  # noqa: RUF012
    support = td.constraints.real_vector

    def __init__(self, parts: list[td.Distribution]) -> None:
        self.parts = parts
        self._sizes = [part.event_shape.numel() for part in parts]
        event_shape = torch.Size((sum(self._sizes),))
        super().__init__(parts[0].batch_shape, event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return all(part.has_rsample for part in self.parts)

    def rsample(self, sample_shape: torch.types._size = torch.Size()) -> Tensor:  # noqa: B008
        return torch.cat([part.rsample(sample_shape) for part in self.parts], -1)

    def sample(self, sample_shape: torch.types._size = torch.Size()) -> Tensor:  # noqa: B008
        return torch.cat([part.sample(sample_shape) for part in self.parts], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        _checks.event("value", value, self.event_shape)
        values = value.split(self._sizes, -1)
        return torch.stack(
            [part.log_prob(z) for part, z in zip(self.parts, values, strict=True)]
        ).sum(0)


class Product(_Family):
    r"""Independent families side by side, an angle and a normal vector for instance.

    .. math:: q_\lambda(z) = \prod_j q^{(j)}_{\lambda_j}(z_j), \qquad z = (z_1, z_2, \dots), \quad
              \lambda = (\lambda_1, \lambda_2, \dots).

    Args:
        families: two or more, each over vectors.

    Called with λ of the widths of all parts together, it returns a distribution over the parts in
    their order, one after the other; its list ``parts`` holds their distributions. A mixture
    among them must draw by implicit gradients.

    Raises:
        ValueError: for fewer than two families, something that is none, or a λ of another width.

    >>> from vaetutor import DiagonalNormal
    >>> family = Product(ProjectedNormal(1), DiagonalNormal(3))
    >>> family.n_parameters, family(torch.zeros(5, 8)).event_shape
    (8, torch.Size([4]))
    """

    def __init__(self, *families: Family) -> None:
        super().__init__()
        for family in families:
            if not isinstance(family, nn.Module) or not isinstance(family, Family):
                raise ValueError(
                    f"families must be modules with n_parameters, found {type(family).__name__}"
                )
        if len(families) < 2:
            raise ValueError(f"families must be two or more, found {len(families)}")
        self.families = nn.ModuleList(f for f in families if isinstance(f, nn.Module))
        self._widths = [family.n_parameters for family in families]
        self.n_parameters = sum(self._widths)

    def forward(self, lam: Tensor) -> _Product:
        rows = self._parameters_of(lam).split(self._widths, dim=-1)
        return _Product([f(part) for f, part in zip(self.families, rows, strict=True)])
