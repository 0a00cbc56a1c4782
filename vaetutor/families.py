r"""Families of distributions: a parameter vector in, a distribution out (chapter: the encoder).

A variational family is a set of distributions :math:`\{q_\lambda\}`. Here it is a module that maps
:math:`\lambda \in \mathbb{R}^P` to a :class:`torch.distributions.Distribution`, and nothing else.
It owns no encoder: per-datapoint inference looks :math:`\lambda_i` up in a table, amortised
inference computes :math:`\lambda = f_\phi(x)` with a network, and both are a plain
:class:`torch.nn.Sequential` that ends in the same family::

    per_datapoint = nn.Sequential(nn.Embedding(n, family.n_parameters), family)  # called with i
    amortised = nn.Sequential(mlp(784, 400, family.n_parameters), family)        # called with x

A decoder is the same thing the other way round: a network followed by an observation family.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributions as td
from torch import Tensor, nn

from vaetutor import _checks

SCALE_FLOOR = 1e-4
_LOG_RANGE = -math.log(SCALE_FLOOR)


def positive(raw: Tensor) -> Tensor:
    r"""Map any real number to a scale in :math:`(10^{-4}, 10^{4})`.

    .. math:: \sigma(r) = \exp\!\left(\frac{r}{\sqrt{1 + (r/b)^2}}\right), \qquad b = \ln 10^4.

    Near zero this is :math:`e^r`, so :math:`\sigma(0) = 1`. Far out, :math:`\log\sigma` levels off
    at :math:`\pm b` with a gradient that falls as :math:`|r|^{-3}` and is not zero: an encoder
    that has run away can come back. (In float32 that holds to beyond :math:`|r| = 10^6`.) An
    exponential overflows; a softplus far to the left, and a clamp on both sides, have no gradient.

    Args:
        raw: unbounded values :math:`r`, any shape.

    Returns:
        Scales of the same shape, in the unit of the variable they scale.

    >>> positive(torch.tensor([-1e4, 0.0, 1e4])).log10().round(decimals=4).tolist()
    [-4.0, 0.0, 4.0]
    """
    # sin(atan(u)) = u / sqrt(1 + u^2), but its derivative is a product: the derivative of the
    # quotient is a difference of near-equal terms far out, and rounding can turn its sign.
    return torch.exp(_LOG_RANGE * torch.sin(torch.atan(raw / _LOG_RANGE)))


def inverse_positive(scale: Tensor) -> Tensor:
    r"""Return the `raw` for which :func:`positive` gives `scale`.

    .. math:: r = \frac{\ln\sigma}{\sqrt{1 - (\ln\sigma / b)^2}}.

    Args:
        scale: values inside :math:`(10^{-4}, 10^{4})`, any shape.

    Returns:
        Unbounded values of the same shape.

    Raises:
        ValueError: if a scale lies outside the open interval.

    >>> positive(inverse_positive(torch.tensor([0.01, 2.0])))
    tensor([0.0100, 2.0000])
    """
    log_scale = scale.log()
    if not (log_scale.abs() < _LOG_RANGE).all():
        raise ValueError(
            f"scale must lie inside ({SCALE_FLOOR}, {1 / SCALE_FLOOR}), found values from "
            f"{scale.min().item():g} to {scale.max().item():g}"
        )
    return log_scale * torch.rsqrt(1 - (log_scale / _LOG_RANGE) ** 2)


def _event_shape(name: str, value: int | tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(value) if isinstance(value, Sequence) else (value,)
    if not shape:
        raise ValueError(f"{name} must have at least one dimension, found {value!r}")
    return tuple(_checks.count(name, size) for size in shape)


class _Family(nn.Module):
    """What all families share: the width of λ, and its check."""

    n_parameters: int

    def _parameters_of(self, lam: Tensor) -> Tensor:
        if not isinstance(lam, Tensor) or not lam.is_floating_point():
            found = lam.dtype if isinstance(lam, Tensor) else type(lam).__name__
            raise ValueError(f"lam must be a floating-point torch.Tensor, found {found}")
        if lam.ndim < 1 or lam.shape[-1] != self.n_parameters or lam.numel() == 0:
            raise ValueError(
                f"lam must have shape (..., {self.n_parameters}) for {self} and at least one row, "
                f"found {tuple(lam.shape)}: end the network with family.n_parameters outputs"
            )
        _checks.finite("lam", lam)
        # Under autocast a network hands over bfloat16, which cannot hold a log-density.
        return lam if torch.finfo(lam.dtype).bits >= 32 else lam.float()


class _Independent(td.Independent):
    """Refuses a value of another event shape, which torch would broadcast."""

    def log_prob(self, value: Tensor) -> Tensor:
        _checks.event("value", value, self.event_shape)
        return super().log_prob(value)


class DiagonalNormal(_Family):
    r"""Normal with diagonal covariance, the mean-field Gaussian.

    .. math:: q_\lambda(z) = \prod_{d=1}^{D} \mathcal{N}(z_d;\ \mu_d,\ \sigma_d^2), \qquad
              \lambda = (\mu, r),\quad \sigma = \operatorname{positive}(r).

    Args:
        dim: number of latent dimensions :math:`D`.

    Called with λ of shape (..., 2 D), it returns a distribution with batch shape (...) and event
    shape (D,). λ = 0 gives the standard normal.

    Raises:
        ValueError: for a λ of another width, or one that is not finite.

    Source: Kingma and Welling (2014), arXiv:1312.6114, equation 9.

    >>> q = DiagonalNormal(2)(torch.zeros(3, 4))
    >>> q.batch_shape, q.event_shape
    (torch.Size([3]), torch.Size([2]))
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = _checks.count("dim", dim)
        self.n_parameters = 2 * dim

    def forward(self, lam: Tensor) -> td.Independent:
        mean, raw = self._parameters_of(lam).chunk(2, dim=-1)
        return _Independent(td.Normal(mean, positive(raw), validate_args=_checks.enabled()), 1)

    def extra_repr(self) -> str:
        return f"{self.dim}"


class _FullPrecision(td.Distribution):
    """Keeps the matrix products of a distribution in full precision under autocast."""

    loc: Tensor

    def rsample(self, sample_shape: torch.types._size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.autocast(self.loc.device.type, enabled=False):
            return super().rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        _checks.event("value", value, self.event_shape)
        with torch.autocast(self.loc.device.type, enabled=False):
            return super().log_prob(value)


class _MultivariateNormal(_FullPrecision, td.MultivariateNormal):
    pass


class FullNormal(_Family):
    r"""Normal with full covariance, through its Cholesky factor.

    .. math:: q_\lambda(z) = \mathcal{N}(z;\ \mu,\ L L^\top), \qquad
              L = \operatorname{diag}(\sigma)\,(I + U), \qquad \lambda = (\mu, r, u),

    with :math:`\sigma = \operatorname{positive}(r)` and U strictly lower triangular, filled with
    u row by row. Every covariance matrix with standard deviations in the range of the map has
    exactly one such factor. U has no unit: rescaling z changes σ and leaves U as it is.

    Args:
        dim: number of latent dimensions :math:`D`.

    Called with λ of shape (..., 2 D + D (D - 1) / 2), it returns a distribution with batch shape
    (...) and event shape (D,). λ = 0 gives the standard normal. Its first 2 D entries mean what
    they mean for :class:`DiagonalNormal`.

    Raises:
        ValueError: for a λ of another width, or one that is not finite.

    Source: Kingma and Welling (2019), arXiv:1906.02691, section 2.5.1.

    >>> FullNormal(2)(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5])).covariance_matrix
    tensor([[1.0000, 0.5000],
            [0.5000, 1.2500]])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = _checks.count("dim", dim)
        self.n_parameters = 2 * dim + dim * (dim - 1) // 2

    def forward(self, lam: Tensor) -> td.MultivariateNormal:
        lam = self._parameters_of(lam)
        mean, raw, below = lam.split([self.dim, self.dim, lam.shape[-1] - 2 * self.dim], dim=-1)
        unit = torch.diag_embed(torch.ones_like(raw))
        row, column = torch.tril_indices(self.dim, self.dim, -1, device=lam.device)
        unit[..., row, column] = below
        factor = positive(raw).unsqueeze(-1) * unit
        return _MultivariateNormal(mean, scale_tril=factor, validate_args=_checks.enabled())

    def extra_repr(self) -> str:
        return f"{self.dim}"


class _LowRankMultivariateNormal(_FullPrecision, td.LowRankMultivariateNormal):
    pass


class LowRankNormal(_Family):
    r"""Normal with covariance diagonal plus low rank.

    .. math:: q_\lambda(z) = \mathcal{N}(z;\ \mu,\ \Sigma), \qquad
              \Sigma = \operatorname{diag}(\sigma)\,(I + V V^\top)\,\operatorname{diag}(\sigma),
              \qquad \lambda = (\mu, r, V),

    with :math:`\sigma = \operatorname{positive}(r)` and V, shape (D, R), filled row by row. Draws
    are :math:`z = \mu + \sigma \odot (V\varepsilon_1 + \varepsilon_2)`. A density costs of the
    order of D R², where that of a full covariance costs D². V has no unit, and V and -V give the
    same Σ. At V = 0 the gradient in V has mean zero whatever the target, because Σ is even in V:
    start V off zero. In float32 the density loses digits with the square of V, and seldom says so:
    for D = 10 and R = 3 it may be wrong by 0.1 nats when the entries of V are about 100, by a few
    nats at 500 and by a thousand at 10,000, where torch also raises for some V. Take float64 when
    they pass 30.

    Args:
        dim: number of latent dimensions :math:`D`.
        rank: number of columns of V, :math:`R`.

    Called with λ of shape (..., D (2 + R)), it returns a distribution with batch shape (...) and
    event shape (D,). λ = 0 gives the standard normal. Its first 2 D entries mean what they mean
    for :class:`DiagonalNormal`, except that the standard deviations are
    :math:`\sigma_d \sqrt{1 + \lVert V_d \rVert^2}`, never below σ.

    Raises:
        ValueError: for a λ of another width, or one that is not finite.

    Source: Ong et al. (2018), arXiv:1701.03208, with the diagonal factored out here.

    >>> LowRankNormal(2, 1)(torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 2.0])).covariance_matrix
    tensor([[2., 2.],
            [2., 5.]])
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.dim = _checks.count("dim", dim)
        self.rank = _checks.count("rank", rank)
        self.n_parameters = dim * (2 + rank)

    def forward(self, lam: Tensor) -> td.LowRankMultivariateNormal:
        lam = self._parameters_of(lam)
        mean, raw, entries = lam.split([self.dim, self.dim, self.dim * self.rank], dim=-1)
        scale = positive(raw)
        factor = scale.unsqueeze(-1) * entries.unflatten(-1, (self.dim, self.rank))
        with torch.autocast(lam.device.type, enabled=False):  # it factorises a small matrix
            return _LowRankMultivariateNormal(
                mean, factor, scale.square(), validate_args=_checks.enabled()
            )

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.rank}"


class _MixtureNormal(td.MixtureSameFamily):
    """A mixture of diagonal normals; its independent draws carry no gradient."""

    def log_prob(self, value: Tensor) -> Tensor:
        _checks.event("value", value, self.event_shape)
        return super().log_prob(value)


class _EachComponent(_MixtureNormal):
    """The same, where an expectation may be taken with draws from every component."""

    def rsample_each(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws z (n C, B, D) from all C components, their log q and the log of their shares."""
        each = self.component_distribution.rsample(torch.Size((n,)))  # (n, B, C, D)
        z = each.movedim(-2, 1).flatten(0, 1)  # (n C, B, D)
        log_share = self.mixture_distribution.logits.movedim(-1, 0) - math.log(n)  # (C, B)
        return z, self.log_prob(z), log_share.repeat(n, *(1,) * (log_share.ndim - 1))


class _ImplicitGradient(_MixtureNormal):
    """The same, whose independent draws carry a gradient, by implicit differentiation."""

    has_rsample = True

    def rsample(self, sample_shape: torch.types._size = torch.Size()) -> Tensor:  # noqa: B008
        z = self.sample(sample_shape)
        u = self._noise_of(z)
        if not u.requires_grad:
            return z
        at = z.clone().requires_grad_()
        u_at = self._noise_of(at)
        rows = [
            torch.autograd.grad(u_d.sum(), at, retain_graph=True)[0] for u_d in u_at.unbind(-1)
        ]
        slope = torch.stack(rows, -2)  # lower triangular, its diagonal the conditional densities
        change = (u - u.detach()).unsqueeze(-1)  # zero, with the gradient of u
        moved = torch.linalg.solve_triangular(slope, change, upper=False).squeeze(-1)
        return z - moved

    def _noise_of(self, z: Tensor) -> Tensor:
        """Uniform noise u_d = F(z_d | z_1, ..., z_{d-1}), (..., D), that z could come from."""
        normal = self.component_distribution.base_dist  # type: ignore[attr-defined]
        value = z.unsqueeze(-2)  # (..., 1, D), beside C components
        log_q = normal.log_prob(value)
        log_before = self.mixture_distribution.logits.unsqueeze(-1) + log_q.cumsum(-1) - log_q
        return (log_before.softmax(-2) * normal.cdf(value)).sum(-2)


class MixtureNormal(_Family):
    r"""Mixture of diagonal normals.

    .. math:: q_\lambda(z) = \sum_{c=1}^{C} \pi_c \prod_{d=1}^{D} \mathcal{N}(z_d;\ m_{cd} +
              \mu_{cd},\ \sigma_{cd}^2), \qquad \pi = \operatorname{softmax}(a), \qquad
              \lambda = (a, \mu, r),

    with :math:`\sigma = \operatorname{positive}(r)`, and μ and r filled component by component. A
    component is chosen once for all dimensions. The offsets m are constants, normal quantiles of a
    Sobol sequence times `spread`, the first of them zero: components that start equal have equal
    gradients on average, and only the noise of their draws would part them.

    The choice of a component has no reparameterisation. Two ways around it give unbiased
    gradients. By default an expectation is taken with draws from every component, weighted by π,

    .. math:: \mathbb{E}_q[f(z)] = \sum_c \pi_c\, \mathbb{E}_{\varepsilon}[f(m_c + \mu_c +
              \sigma_c \odot \varepsilon)],

    so that n draws mean n C values of z. With ``gradient="implicit"`` draws are independent, and
    :math:`\partial z / \partial\lambda = -(\partial F / \partial z)^{-1}\, \partial F /
    \partial\lambda`, F being the distribution functions of each dimension given those before it,
    which map z to uniform noise.

    Args:
        dim: number of latent dimensions :math:`D`.
        components: number of components :math:`C`.
        gradient: ``"each"`` for draws from each component, ``"implicit"`` for implicit gradients.
        spread: scale of the offsets m; with 0, λ = 0 gives the standard normal.

    Called with λ of shape (..., C (1 + 2 D)), it returns a distribution with batch shape (...) and
    event shape (D,). There is no closed form for a KL from it.

    Raises:
        ValueError: for a number out of range, another gradient, a λ of another width, or one that
            is not finite.

    Source: Jaakkola and Jordan (1998), for mixtures as variational families; draws from every
    component: Morningstar et al. (2021), arXiv:2003.01687; implicit gradients: Graves (2016),
    arXiv:1607.05690, and Figurnov et al. (2018), arXiv:1805.08498, equation 5. Cost of an implicit
    draw: D backward passes through F. First derivatives only. Where
    modes are far apart their variance is large and carried by few draws, since ∂F/∂z is the
    density, next to nothing between the modes; further apart no draw falls there, and the gradient
    of the weights is missing without a sign.

    >>> q = MixtureNormal(2, components=3)(torch.zeros(5, 15))
    >>> q.batch_shape, q.event_shape, q.mixture_distribution.probs[0]
    (torch.Size([5]), torch.Size([2]), tensor([0.3333, 0.3333, 0.3333]))
    """

    offset: Tensor

    def __init__(
        self,
        dim: int,
        components: int,
        gradient: Literal["each", "implicit"] = "each",
        spread: float = 1.0,
    ) -> None:
        super().__init__()
        self.dim = _checks.count("dim", dim)
        if dim > torch.quasirandom.SobolEngine.MAXDIM:
            raise ValueError(f"dim must be at most 21201, for its Sobol sequence, found {dim}")
        self.components = _checks.count("components", components)
        if gradient not in ("each", "implicit"):
            raise ValueError(f'gradient must be "each" or "implicit", found {gradient!r}')
        self.gradient = gradient
        self.spread = _checks.weight("spread", spread)
        self.n_parameters = components * (1 + 2 * dim)
        self.register_buffer("offset", spread * _quantiles(components, dim), persistent=False)

    def forward(self, lam: Tensor) -> td.MixtureSameFamily:
        lam = self._parameters_of(lam)
        n = self.components * self.dim
        logits, mean, raw = lam.split([self.components, n, n], dim=-1)
        size = (self.components, self.dim)
        mean, raw = mean.unflatten(-1, size), raw.unflatten(-1, size)
        checked = _checks.enabled()
        # Normalised once more by torch, which alone would lose digits where all logits are large.
        weights = td.Categorical(logits=logits.log_softmax(-1), validate_args=checked)
        normal = td.Normal(self.offset.to(lam) + mean, positive(raw), validate_args=checked)
        mixture = _EachComponent if self.gradient == "each" else _ImplicitGradient
        return mixture(weights, td.Independent(normal, 1), validate_args=checked)

    def extra_repr(self) -> str:
        return f'{self.dim}, {self.components}, gradient="{self.gradient}", spread={self.spread:g}'


def _quantiles(n: int, dim: int) -> Tensor:
    """Points spread like a standard normal, the same ones every time, (n, dim); the first is 0."""
    points = torch.quasirandom.SobolEngine(dim).draw(n + 1, dtype=torch.float64)[1:]
    return torch.special.ndtri(points).to(torch.get_default_dtype())


class _Bernoulli(td.Bernoulli):
    """A Bernoulli that refuses grey pixels, whatever torch's process-wide switch says."""

    def _validate_sample(self, value: Tensor) -> None:
        binary = (value == 0) | (value == 1)
        if not binary.all():
            found = value[~binary].flatten()[0].item()
            raise ValueError(
                f"x must hold only 0 and 1 for a Bernoulli, found {found:g}: a grey value has no "
                'likelihood there; binarise the data, for instance mnist(binarize="dynamic")'
            )
        super()._validate_sample(value)

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value.to(self.logits.dtype))  # 0 and 1 are exact in every dtype


class Bernoulli(_Family):
    r"""Independent binary observations, parameterised by logits.

    .. math:: \log p_\lambda(x) = \sum_j \left[ x_j \lambda_j - \log(1 + e^{\lambda_j}) \right].

    Args:
        event_shape: shape of one observation, an integer or a tuple.

    Called with logits λ of shape (..., n), n the number of entries of one observation, it returns
    a distribution with batch shape (...) and that event shape. Logits keep the full range: with
    probabilities, log(1 - p) is wrong from a logit of about 16 on in float32.

    Raises:
        ValueError: for a λ of another width or not finite; and, from ``log_prob``, for an x with
            values other than 0 and 1.

    Source: Kingma and Welling (2014), arXiv:1312.6114, appendix C.1.

    >>> Bernoulli(2)(torch.tensor([200.0, -200.0])).log_prob(torch.tensor([0.0, 0.0]))
    tensor(-200.)
    """

    def __init__(self, event_shape: int | tuple[int, ...]) -> None:
        super().__init__()
        self.event_shape = _event_shape("event_shape", event_shape)
        self.n_parameters = math.prod(self.event_shape)

    def forward(self, lam: Tensor) -> td.Independent:
        logits = self._parameters_of(lam).unflatten(-1, self.event_shape)
        base = _Bernoulli(logits=logits, validate_args=_checks.enabled())
        return _Independent(base, len(self.event_shape))

    def extra_repr(self) -> str:
        return f"{self.event_shape}"


class Normal(_Family):
    r"""Independent real observations with one learned scale, shared by all of them.

    .. math:: \log p_\lambda(x) = -\frac{1}{2}\sum_j\left[\frac{(x_j - \lambda_j)^2}{\sigma^2}
              + \ln 2\pi\sigma^2\right].

    The scale is a parameter of the family, not an output of the network. Fixing it at 1 would turn
    the unit of x into a hidden weight between reconstruction and KL.

    Args:
        event_shape: shape of one observation, an integer or a tuple.
        scale: the value at which :math:`\sigma` starts, in the unit of x, inside
            :math:`(10^{-4}, 10^{4})`.

    Called with means λ of shape (..., n), n the number of entries of one observation, it returns a
    distribution with batch shape (...) and that event shape.

    Raises:
        ValueError: for a λ of another width or not finite, or a scale outside that range.

    Source: Kingma and Welling (2014), arXiv:1312.6114, appendix C.2.

    >>> Normal(3)(torch.zeros(5, 3)).event_shape
    torch.Size([3])
    """

    def __init__(self, event_shape: int | tuple[int, ...], scale: float = 1.0) -> None:
        super().__init__()
        self.event_shape = _event_shape("event_shape", event_shape)
        self.n_parameters = math.prod(self.event_shape)
        start = torch.tensor(_checks.positive_number("scale", scale))
        self.raw_scale = nn.Parameter(inverse_positive(start))

    @property
    def scale(self) -> Tensor:
        """The shared scale σ, a scalar tensor."""
        return positive(self.raw_scale)

    def forward(self, lam: Tensor) -> td.Independent:
        mean = self._parameters_of(lam).unflatten(-1, self.event_shape)
        base = td.Normal(mean, self.scale.to(mean.dtype), validate_args=_checks.enabled())
        return _Independent(base, len(self.event_shape))

    def extra_repr(self) -> str:
        return f"{self.event_shape}"
