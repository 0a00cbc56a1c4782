r"""Evidence and posterior by quadrature, for models with one or two numbers left to integrate.

Where :math:`p(x) = \int p(x, z)\,dz` has no closed form, a sum over a grid of z replaces it. With
n points an axis it costs :math:`n^D` evaluations of the joint density for D latent numbers, so it
ends at two; there it is as good as exact, and says by how much (chapter: variational inference).

The trapezoidal rule is enough: for a smooth integrand that has died out at both ends its error
falls faster than any power of the spacing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributions as td
from torch import Tensor, nn

from vaetutor import _checks
from vaetutor.model import LatentVariableModel

MASS_TOLERANCE = 1e-6


@dataclass(frozen=True)
class GridPosterior:
    """A posterior with one or two latent numbers on a grid: one density for each example."""

    axes: tuple[Tensor, ...]
    """The D axes of the grid, each (n,), evenly spaced and increasing."""
    log_density: Tensor
    """Normalised log p(z|x) at the grid points, (B, n) or (B, n, n), entry (b, i, j) at
    (axes[0][i], axes[1][j]), in nats."""
    log_evidence: Tensor
    """log p(x), (B,), nats."""
    error: Tensor
    """Error to expect of `log_evidence`, (B,), nats: see :func:`grid_posterior`."""

    @property
    def z(self) -> Tensor:
        """The grid points, (n^D, D), the last axis running fastest."""
        return torch.cartesian_prod(*self.axes).reshape(-1, len(self.axes))

    @property
    def weights(self) -> Tensor:
        """Probability of each grid point, (B, n^D), in the order of :attr:`z`; rows sum to 1."""
        return (self.log_density + _log_cells(self.axes)).flatten(1).exp()

    @property
    def mean(self) -> Tensor:
        """E[z|x], (B, D), in the unit of z."""
        with torch.autocast(self.log_density.device.type, enabled=False):
            return self.weights @ self.z

    @property
    def covariance(self) -> Tensor:
        """Cov[z|x], (B, D, D)."""
        centred = self.z - self.mean.unsqueeze(1)
        with torch.autocast(self.log_density.device.type, enabled=False):
            return torch.einsum("bg,bgi,bgj->bij", self.weights, centred, centred)

    def kl_from(self, q: td.Distribution) -> Tensor:
        r"""Reverse divergence :math:`\mathrm{KL}(q \,\|\, p(z \mid x))`, by the same grid.

        The check of its mass keeps gross mistakes out; it does not bound the error. Where the log
        ratio is of ordinary size, a normal q that just passes, 0.87 spacings wide or cut 4.9
        standard deviations from its mean, costs about 1e-5; from 1.2 spacings and 7 standard
        deviations on the error is below 1e-9. A narrower q may be placed so that its sum happens
        to be 1. For a q with heavy tails the little mass beyond the grid may carry much of the
        divergence, and the result is too small.

        Args:
            q: distribution with batch shape (B,), or () for one that serves every x, and event
                shape (D,).

        Returns:
            Tensor (B,), nats.

        Raises:
            ValueError: if q does not fit the grid, or its sum over the grid is not 1 to 1e-6: the
                grid is then too small or too coarse for it.
        """
        log_q = self._log_prob(q)
        mass = (log_q + _log_cells(self.axes)).flatten(1).exp()
        worst = mass.sum(1)[(mass.sum(1) - 1).abs().argmax()].item()
        if not abs(worst - 1) < MASS_TOLERANCE:
            raise ValueError(
                f"q must have its mass on the grid, found {worst:.8f} of it there, expected 1: "
                "take a wider grid, or a finer one for a narrow q"
            )
        return _expected(mass, (log_q - self.log_density).flatten(1))

    def kl_to(self, q: td.Distribution) -> Tensor:
        r"""Forward divergence :math:`\mathrm{KL}(p(z \mid x) \,\|\, q)`, by the same grid.

        Args, returns and errors as :meth:`kl_from`; q may have mass outside the grid.
        """
        return _expected(self.weights, (self.log_density - self._log_prob(q)).flatten(1))

    def _log_prob(self, q: td.Distribution) -> Tensor:
        batch, dim = len(self.log_evidence), len(self.axes)
        if q.batch_shape not in ((), (1,), (batch,)) or q.event_shape != (dim,):
            raise ValueError(
                f"q must have batch shape ({batch},) or () and event shape ({dim},), found "
                f"{tuple(q.batch_shape)} and {tuple(q.event_shape)}"
            )
        log_q = q.log_prob(self.z.unsqueeze(1) if q.batch_shape else self.z)
        return log_q.reshape(len(self.z), -1).T.reshape(-1, *self.log_density.shape[1:])


def grid_posterior(
    model: LatentVariableModel,
    x: Tensor,
    low: float | Sequence[float],
    high: float | Sequence[float],
    n: int = 201,
    chunk: int = 20_000,
) -> GridPosterior:
    r"""Evidence and posterior of a model with one or two latent numbers, on a grid.

    .. math:: \log p(x) \approx \log \sum_g c_g\, p(x, z_g), \qquad
              p(z_g \mid x) = p(x, z_g) / p(x),

    with the cells :math:`c_g` of the trapezoidal rule. The stated error of the log evidence is the
    sum of two estimates: how much it changes when every second point of an axis is left out, which
    for a smooth posterior is far more than the error that remains, and the mass beyond each end of
    the grid, found by continuing the marginal there as an exponential. That is an upper bound for
    log-concave tails of one latent number. Heavier tails hold more: for a Cauchy density on
    :math:`\pm 20` the true error is twice the stated one. So do two latent numbers that correlate,
    since each marginal is taken over the other axis as far as the grid goes, and what lies beyond
    both at once is not counted: 2.3 times for unit normals with correlation 0.99 on
    :math:`\pm 3`, and more for a stronger one. Widen the grid until the stated error is far below
    what matters. It is infinite where a marginal does not fall towards an end, and a marginal of
    zero at an end has nothing beyond. A peak that no grid point meets leaves no trace in it.

    Args:
        model: anything with ``log_joint(x, z)`` that takes z (S, 1, D), D = 1 or 2.
        x: observations (B, ...). The grid has their dtype: with float64 rounding does not matter,
            with float32 it adds about 1e-5.
        low: where each axis begins, D numbers or, for D = 1, a number.
        high: where each axis ends, likewise.
        n: points on each axis, an odd number of at least 5.
        chunk: pairs of an x and a grid point that are evaluated at once.

    Returns:
        A :class:`GridPosterior`, without gradient.

    Raises:
        ValueError: if the model has no ``log_joint``, x is empty or not finite, low and high do
            not fit, n is even or too small, or the model gives a NaN, or no mass at all on the
            grid.

    Cost: n^D evaluations of the joint density for each x.

    >>> from vaetutor import ConjugateNormal
    >>> model, x = ConjugateNormal().double(), torch.tensor([[1.5]]).double()
    >>> grid = grid_posterior(model, x, -6.0, 8.0)
    >>> (grid.log_evidence - model.log_evidence(x)).abs() < 1e-12
    tensor([True])
    """
    if not isinstance(model, LatentVariableModel):
        raise ValueError(f"model must have log_joint(x, z), found {type(model).__name__}")
    _checks.batch("x", x)
    axes = _axes(x, low, high, n)
    log_joint = _evaluate(model, x, axes, _checks.count("chunk", chunk))
    log_evidence = _log_integral(log_joint, axes)
    if not torch.isfinite(log_evidence).all():
        raise ValueError(
            "the model must give a joint density that is finite and positive somewhere on the "
            f"grid from {low} to {high}, found log evidence {log_evidence.tolist()}"
        )
    log_density = log_joint - log_evidence.reshape(-1, *(1,) * len(axes))
    error = halving_error(log_joint, axes)
    for axis in range(len(axes)):
        error = error + mass_beyond(log_density, axes, axis)
    return GridPosterior(axes, log_density, log_evidence, error)


def _axes(
    x: Tensor, low: float | Sequence[float], high: float | Sequence[float], n: int
) -> tuple[Tensor, ...]:
    if _checks.count("n", n, least=5) % 2 == 0:
        raise ValueError(f"n must be odd, so that every second point makes a grid, found {n}")
    ends = _ends("low", low), _ends("high", high)
    if ends[0].shape != ends[1].shape or ends[0].ndim != 1 or len(ends[0]) not in (1, 2):
        raise ValueError(
            "low and high must hold one number for each of one or two latent dimensions, found "
            f"{low} and {high}"
        )
    if not (torch.isfinite(ends[1] - ends[0]).all() and (ends[0] < ends[1]).all()):
        raise ValueError(f"low must be finite and below high, found {low} and {high}")
    pairs = zip(ends[0].tolist(), ends[1].tolist(), strict=True)
    return tuple(torch.linspace(a, b, n, dtype=x.dtype, device=x.device) for a, b in pairs)


def _ends(name: str, value: float | Sequence[float]) -> Tensor:
    try:
        return torch.atleast_1d(torch.as_tensor(value, dtype=torch.float64, device="cpu"))
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers, found {value!r}") from None


@torch.no_grad()
def _evaluate(
    model: LatentVariableModel, x: Tensor, axes: tuple[Tensor, ...], chunk: int
) -> Tensor:
    """log p(x, z) at all grid points, shape (B, n) or (B, n, n)."""
    z = torch.cartesian_prod(*axes).reshape(-1, 1, len(axes))
    parts = []
    for part in z.split(max(1, chunk // len(x))):
        log_joint = model.log_joint(x, part)
        _checks.shape("log_joint(x, z)", log_joint, (len(part), len(x)))
        parts.append(log_joint)
    return torch.cat(parts).T.reshape(len(x), *(len(axis) for axis in axes))


def _log_cells(axes: tuple[Tensor, ...]) -> Tensor:
    """Logarithm of the trapezoidal weights, shape (n,) or (n, n)."""
    total = axes[0].new_zeros(())
    for axis in axes:
        cells = torch.full_like(axis, ((axis[-1] - axis[0]) / (len(axis) - 1)).item())
        cells[0] = cells[-1] = cells[0] / 2
        total = total.unsqueeze(-1) + cells.log()
    return total


def _log_integral(log_f: Tensor, axes: tuple[Tensor, ...]) -> Tensor:
    """Log of the integral of exp(log_f) over the grid, (B,)."""
    return (log_f + _log_cells(axes)).flatten(1).logsumexp(1)


def _expected(mass: Tensor, value: Tensor) -> Tensor:
    """Sum of mass times value, (B,), where no mass counts as nothing: 0 times infinity is 0."""
    return (mass * torch.where(mass > 0, value, 0.0)).sum(1)  # so is 0 times its gradient


def halving_error(log_f: Tensor, axes: tuple[Tensor, ...]) -> Tensor:
    """How far the log integrals over half the points an axis are from that over all, (B,).

    The grid is made of 2^D grids of twice the spacing, and the worst of them is taken: a peak that
    a single point meets is missing in the others.
    """
    terms = log_f + _log_cells(axes)
    starts = itertools.product((0, 1), repeat=len(axes))
    parts = [terms[(slice(None), *(slice(i, None, 2) for i in start))] for start in starts]
    sums = torch.stack([part.flatten(1).logsumexp(1) for part in parts])
    return (sums + math.log(len(parts)) - terms.flatten(1).logsumexp(1)).abs().amax(0)


def mass_beyond(log_density: Tensor, axes: tuple[Tensor, ...], axis: int) -> Tensor:
    """Mass beyond both ends of one axis, (B,), the marginal there continued as an
    exponential through its last two points; none where it is zero at the end.

    Args:
        log_density: normalised log-density on the grid, (B, n) or (B, n, n).
        axes: the axes of the grid.
        axis: which of them to judge.
    """
    log_marginal = log_density
    if len(axes) == 2:
        cells = _log_cells((axes[1 - axis],))
        log_marginal = (log_density.movedim(axis + 1, 1) + cells).logsumexp(2)
    step = axes[axis][1] - axes[axis][0]
    log_end, log_inner = log_marginal[:, [0, -1]], log_marginal[:, [1, -2]]
    tail = log_end.exp() * step / (log_inner - log_end)
    tail = torch.where(log_end < log_inner, tail, torch.inf)
    return torch.where(log_end == -torch.inf, 0.0, tail).sum(1)


EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
"""Estimated effects of coaching in eight schools, in points of the test; Rubin (1981)."""
STANDARD_ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
"""Their standard errors, taken as known."""
MU_SCALE, TAU_SCALE = 5.0, 5.0


class EightSchools(nn.Module):
    r"""The eight schools: one hierarchical model in two parametrisations, its evidence known.

    .. math:: \mu \sim \mathcal{N}(0, 5^2), \quad \tau \sim \mathrm{C}^{+}(0, 5), \quad
              \theta_j \sim \mathcal{N}(\mu, \tau^2), \quad
              x_j \mid \theta_j \sim \mathcal{N}(\theta_j, \sigma_j^2), \quad j = 1, \dots, 8,

    with known :math:`\sigma_j` and a half-Cauchy prior on :math:`\tau`. One observation x is the
    vector of eight effects. The latent variable has ten entries: centred
    :math:`z = (\mu, \ln\tau, \theta_1, \dots, \theta_8)`, or non-centred
    :math:`z = (\mu, \ln\tau, \eta_1, \dots, \eta_8)` with
    :math:`\theta_j = \mu + \tau \eta_j`. The evidence is the same for both: a change of variables
    does not change an integral.

    Given :math:`\tau` everything is normal, so :math:`\mu` and :math:`\theta` are integrated in
    closed form and only :math:`\ln\tau` is left, which :meth:`log_tau_posterior` does on a grid.

    Args:
        centred: whether z holds :math:`\theta_j` rather than :math:`\eta_j`.

    Raises:
        ValueError: from its methods, for an x that is not a finite (B, 8) or a z that is not
            (S, B, 10).

    Source: Rubin (1981), Journal of Educational Statistics 6(4), for the data; Gelman et al.
    (2013), Bayesian data analysis, section 5.5; Yao et al. (2018), arXiv:1802.02538, for the
    priors and for what variational inference makes of them.
    """

    observed: Tensor
    """The published effects as one observation, shape (1, 8)."""
    standard_errors: Tensor

    def __init__(self, centred: bool) -> None:
        super().__init__()
        self.centred = centred
        self.register_buffer("observed", torch.tensor([EFFECTS]))
        self.register_buffer("standard_errors", torch.tensor(STANDARD_ERRORS))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        r"""Joint log-density :math:`\log p(x, z)`, in the coordinates of z.

        Args:
            x: effects (B, 8).
            z: latent draws (S, B, 10), or (S, 1, 10) for the same z with every x.

        Returns:
            Tensor (S, B), nats.

        Raises:
            ValueError: for an x that is not a finite (B, 8), or a z of another shape.
        """
        self._check(x)
        _checks.draws(x, z, shared=True)
        if z.shape[-1] != 10:
            raise ValueError(f"z must have 10 latent dimensions, found shape {tuple(z.shape)}")
        mu, log_tau, rest = z[..., :1], z[..., 1], z[..., 2:]
        tau = log_tau.unsqueeze(-1).exp()
        theta = rest if self.centred else mu + tau * rest
        if self.centred:
            log_schools = _log_normal(rest, mu, tau)
        else:
            log_schools = _log_normal(rest, torch.zeros_like(mu), torch.ones_like(tau))
        log_hyper = _log_normal(mu, torch.zeros_like(mu), mu.new_tensor(MU_SCALE)).sum(-1)
        log_hyper = log_hyper + _log_prior_of_log_tau(log_tau)
        log_likelihood = _log_normal(x, theta, self.standard_errors).sum(-1)
        return log_likelihood + log_schools.sum(-1) + log_hyper

    def log_tau_posterior(self, x: Tensor, n: int = 4001) -> GridPosterior:
        r"""Posterior of :math:`\ln\tau` alone, with the log evidence and its error.

        Args:
            x: effects (B, 8).
            n: points of the quadrature on :math:`-40 \le \ln\tau \le 40`, odd.

        Returns:
            A :class:`GridPosterior` with one latent number.

        Raises:
            ValueError: for an x that is not a finite (B, 8).
        """
        self._check(x)
        return grid_posterior(_LogTau(self.standard_errors), x, -40.0, 40.0, n)

    def log_evidence(self, x: Tensor) -> Tensor:
        r"""Return :math:`\log p(x)`, (B,), nats, for x (B, 8), by quadrature over log tau.

        Its error is ``log_tau_posterior(x).error``. Raises a ValueError for a bad x.
        """
        return self.log_tau_posterior(x).log_evidence

    def sample_posterior(
        self, x: Tensor, n: int, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Independent draws from the exact posterior, exact up to the quadrature.

        :math:`\ln\tau` is drawn from its grid and spread evenly over the cell of width 0.02; then
        :math:`\mu` given :math:`\tau`, and :math:`\eta` given both, from their normal posteriors.

        Args:
            x: one observation (1, 8).
            n: number of draws.
            generator: source of randomness, by default torch's global one.

        Returns:
            Tensor (n, 1, 10), z as :meth:`log_joint` takes it, in the coordinates of the model.

        Raises:
            ValueError: for an x that is not a finite (1, 8), or n < 1.
        """
        self._check(x)
        if len(x) != 1:
            raise ValueError(f"x must be one observation, shape (1, 8), found {tuple(x.shape)}")
        grid = self.log_tau_posterior(x)
        (axis,) = grid.axes
        count = _checks.count("n", n)
        cell = torch.multinomial(grid.weights[0], count, replacement=True, generator=generator)
        within = torch.rand((n, 1), generator=generator, dtype=x.dtype, device=x.device) - 0.5
        log_tau = axis[cell].unsqueeze(1) + within * (axis[1] - axis[0])
        tau = log_tau.exp()
        eps = torch.randn((n, 9), generator=generator, dtype=x.dtype, device=x.device)
        mean, variance = _mu_given_tau(x, tau, self.standard_errors)
        mu = mean + variance.sqrt() * eps[:, :1]
        total = self.standard_errors.square() + tau.square()
        eta = tau * (x - mu) / total + self.standard_errors / total.sqrt() * eps[:, 1:]
        rest = mu + tau * eta if self.centred else eta
        return torch.cat([mu, log_tau, rest], dim=1).unsqueeze(1)

    @staticmethod
    def _check(x: Tensor) -> None:
        _checks.batch("x", x)
        if x.ndim != 2 or x.shape[1] != 8:
            raise ValueError(f"x must have shape (B, 8) for eight schools, found {tuple(x.shape)}")


class _LogTau:
    """The eight schools with all but log tau integrated out."""

    def __init__(self, standard_errors: Tensor) -> None:
        self.standard_errors = standard_errors

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | tau) + log p(log tau), (S, B), for x (B, 8) and z (S, 1, 1) = log tau."""
        tau = z.exp()
        scale = (self.standard_errors.square() + tau.square()).sqrt()
        # p(x | tau) = p(x | tau, mu) p(mu) / p(mu | x, tau), for any mu: take its mean
        mean, variance = _mu_given_tau(x, tau, self.standard_errors)
        log_p = _log_normal(x, mean, scale).sum(-1, keepdim=True)
        log_p = log_p + _log_normal(mean, torch.zeros_like(mean), mean.new_tensor(MU_SCALE))
        log_p = log_p - _log_normal(mean, mean, variance.sqrt())
        return log_p.squeeze(-1) + _log_prior_of_log_tau(z.squeeze(-1))


def _mu_given_tau(x: Tensor, tau: Tensor, standard_errors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of p(mu | x, tau), tau (..., 1)."""
    precisions = 1 / (standard_errors.square() + tau.square())
    variance = 1 / (precisions.sum(-1, keepdim=True) + MU_SCALE**-2)
    return variance * (precisions * x).sum(-1, keepdim=True), variance


def _log_normal(value: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return td.Normal(mean, scale, validate_args=False).log_prob(value)


def _log_prior_of_log_tau(log_tau: Tensor) -> Tensor:
    """Half-Cauchy density of tau times the Jacobian tau, in logarithms that do not overflow."""
    u = log_tau - math.log(TAU_SCALE)
    return math.log(2 / math.pi) + u - nn.functional.softplus(2 * u)
