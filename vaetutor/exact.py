r"""Models whose evidence and posterior are known exactly.

For most latent variable models :math:`p(x) = \int p(x, z)\,dz` has no closed form. For the ones
here it has, so every bound, estimator and gradient of the package can be compared with the truth:
they are the oracles of the tests, and the first example of every chapter (chapter: variational
inference; the ELBO, the linear VAE). Models whose last one or two integrals are done on a grid are
in :mod:`vaetutor.quadrature`.
"""

from __future__ import annotations

import torch
import torch.distributions as td
from torch import Tensor

from vaetutor import _checks
from vaetutor._exact import ExactModel as _ExactModel
from vaetutor._exact import normal as _normal
from vaetutor._exact import standard_normal as _standard_normal
from vaetutor.quadrature import EightSchools as EightSchools  # exact up to a stated error
from vaetutor.quadrature import grid_posterior as grid_posterior
from vaetutor.state_space import LocalLevel as LocalLevel


def _check_noise(scale: float, dtype: torch.dtype) -> None:
    """Raise unless the variance of the noise is a number above 0, not lost to rounding."""
    _checks.positive_number("noise_scale", scale)
    if not 0 < torch.tensor(scale, dtype=dtype).square() < torch.inf:
        raise ValueError(
            f"noise_scale must have a square above 0 and finite in {dtype}, found {scale!r}: use "
            "another unit for x"
        )


class LinearGaussian(_ExactModel):
    r"""Probabilistic PCA, which is the linear VAE.

    .. math:: z \sim \mathcal{N}(0, I_q), \qquad
              x \mid z \sim \mathcal{N}(W z + \mu,\ \sigma^2 I_d).

    The evidence is :math:`\mathcal{N}(x;\ \mu,\ W W^\top + \sigma^2 I)` and the posterior
    :math:`\mathcal{N}(z;\ M^{-1} W^\top (x - \mu),\ \sigma^2 M^{-1})` with
    :math:`M = W^\top W + \sigma^2 I`. The posterior mean is linear in x and the covariance is the
    same for every x: a linear encoder is enough.

    Args:
        weight: W, shape (d, q).
        mean: :math:`\mu`, shape (d,).
        noise_scale: :math:`\sigma`, a number or a scalar tensor, in the unit of x.

    Raises:
        ValueError: for shapes that do not fit or a scale that is not positive.

    Source: Tipping and Bishop (1999), equations 1 to 9; Lucas et al. (2019), arXiv:1911.02469.
    """

    weight: Tensor
    mean: Tensor
    noise_scale: Tensor

    def __init__(self, weight: Tensor, mean: Tensor, noise_scale: float | Tensor) -> None:
        super().__init__()
        if weight.ndim != 2 or mean.shape != weight.shape[:1]:
            raise ValueError(
                "weight must have shape (d, q) and mean (d,), found "
                f"{tuple(weight.shape)} and {tuple(mean.shape)}"
            )
        if not weight.is_floating_point() or mean.dtype != weight.dtype:
            raise ValueError(
                "weight and mean must have the same floating-point dtype, found "
                f"{weight.dtype} and {mean.dtype}"
            )
        _check_noise(float(noise_scale), weight.dtype)
        self._width = len(mean)
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("noise_scale", torch.as_tensor(noise_scale).to(weight))

    @classmethod
    def fit(
        cls, x: Tensor, latent_dim: int, noise_scale: float | None = None, beta: float = 1.0
    ) -> LinearGaussian:
        r"""The best model in closed form: by maximum likelihood, or with the noise held fixed.

        With :math:`l_1 \ge l_2 \ge \dots` the eigenvalues of the covariance of x (normalised by
        the number of rows) and U its eigenvectors, the maximum of the mean likelihood is at

        .. math:: \sigma^2 = \frac{1}{d - q}\sum_{i > q} l_i, \qquad
                  W = U_q (\Lambda_q - \sigma^2 I)^{1/2}.

        With :math:`\sigma` given, the maximum over W, :math:`\mu` and q of the mean of
        :math:`\mathbb{E}_q[\log p(x \mid z)] - \beta\, \mathrm{KL}(q \,\|\, p(z))` is at

        .. math:: W = U_q \max(\Lambda_q - \beta\sigma^2 I,\ 0)^{1/2},

        with q = ``posterior(x, beta)``. A direction survives if and only if
        :math:`l_i > \beta\sigma^2`; the column of any other is zero, and its latent dimension has
        collapsed onto the prior. The columns of W are orthogonal, so the best q is diagonal.

        Args:
            x: data (N, d). The decomposition runs in float64 on the CPU; the result has the
                dtype and device of x.
            latent_dim: q, from 1 to d - 1.
            noise_scale: :math:`\sigma`, in the unit of x; None takes the maximum-likelihood one.
                Its square must be a number above 0 in the dtype of x.
            beta: weight of the KL, above 0. Other than 1 it needs a `noise_scale`.

        Returns:
            The fitted model.

        Raises:
            ValueError: if x is empty, not finite, not (N, d), or has so few directions that the
                noise would be zero; for a noise_scale or beta that is not above 0, or a beta
                without a noise_scale.

        Source: Tipping and Bishop (1999), equations 7 and 8; Lucas et al. (2019),
        arXiv:1911.02469, for fixed noise.
        """
        _checks.positive_number("beta", beta)
        if noise_scale is None and beta != 1:
            raise ValueError(
                f"beta = {beta} needs a noise_scale, found None: hold the noise fixed"
            )
        _checks.batch("x", x)
        if noise_scale is not None:
            _check_noise(noise_scale, x.dtype)
        if x.ndim != 2:
            raise ValueError(f"x must have shape (N, d), found {tuple(x.shape)}")
        n, d = x.shape
        if not 1 <= _checks.count("latent_dim", latent_dim) < d:
            raise ValueError(f"latent_dim must be from 1 to {d - 1}, found {latent_dim}")
        wide = x.detach().cpu().double()
        mean = wide.mean(0)
        values, vectors = torch.linalg.eigh((wide - mean).T @ (wide - mean) / n)
        values, vectors = values.flip(0), vectors.flip(1)
        variance = values[latent_dim:].mean()
        if noise_scale is not None:
            variance = torch.full_like(variance, noise_scale).square()
        elif not variance > 1e-12 * values[0]:
            raise ValueError(
                f"x varies in no more than latent_dim = {latent_dim} directions, so the noise "
                "would be zero: use a smaller latent_dim or more data, or give a noise_scale"
            )
        scale = (values[:latent_dim] - beta * variance).clamp(min=0).sqrt()
        model = cls(vectors[:, :latent_dim] * scale, mean, variance.sqrt())
        return model.to(x)

    def prior(self) -> td.MultivariateNormal:
        r"""Return :math:`\mathcal{N}(0, I_q)`, event shape (q,)."""
        eye = torch.eye(self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device)
        return td.MultivariateNormal(torch.zeros_like(eye[0]), scale_tril=eye, validate_args=False)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        r"""Return :math:`\log p(x \mid z)`, (S, B), nats, for x (B, d) and z (S, B, q).

        Raises a ValueError as ``log_joint`` does.
        """
        self._check(x)
        self._check_draws(x, z)
        with torch.autocast(x.device.type, enabled=False):
            mean = z @ self.weight.T + self.mean
        return td.Normal(mean, self.noise_scale, validate_args=False).log_prob(x).sum(-1)

    def posterior(self, x: Tensor, beta: float = 1.0) -> td.MultivariateNormal:
        r"""The best encoding distribution of x under a KL of weight beta: the posterior at 1.

        .. math:: q(z) \propto p(z)\, p(x \mid z)^{1/\beta}
                  \ \text{ maximises }\
                  \mathbb{E}_q[\log p(x \mid z)] - \beta\, \mathrm{KL}(q \,\|\, p(z)).

        It is the posterior of the model with noise variance :math:`\beta\sigma^2`.

        Args:
            x: observations (N, d).
            beta: weight of the KL, above 0.

        Returns:
            Normal with batch shape (N,) and event shape (q,).

        Raises:
            ValueError: if x is empty, not finite, or of another width or dtype; for a beta that
                is not above 0.
        """
        self._check(x)
        wide = self._in_float64()
        variance = _checks.positive_number("beta", beta) * wide.noise_scale.square()
        m = wide.weight.T @ wide.weight + variance * torch.ones_like(wide.weight[0]).diag()
        mean = torch.linalg.solve(m, wide.weight.T @ (x.to(wide.mean) - wide.mean).T).T
        factor = torch.linalg.cholesky(variance * torch.linalg.inv(m))
        return _normal(mean.to(x), factor.to(x))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n observations, shape (n, d). Raises a ValueError for n < 1."""
        d, q = self.weight.shape
        z = _standard_normal((_checks.count("n", n), q), self.weight, generator)
        eps = _standard_normal((n, d), self.weight, generator)
        return z @ self.weight.T + self.mean + self.noise_scale * eps


class ConjugateNormal(_ExactModel):
    r"""One latent number seen through noise: the smallest model with a posterior.

    .. math:: z \sim \mathcal{N}(0, s^2), \qquad x \mid z \sim \mathcal{N}(z, t^2).

    The evidence is :math:`\mathcal{N}(x;\ 0,\ s^2 + t^2)` and the posterior
    :math:`\mathcal{N}\!\left(z;\ \frac{s^2}{s^2 + t^2} x,\ \frac{s^2 t^2}{s^2 + t^2}\right)`.

    Args:
        prior_scale: the standard deviation s of z.
        noise_scale: the standard deviation t of x given z.

    Raises:
        ValueError: for a scale that is not positive.

    Source: Bishop (2006), Pattern recognition and machine learning, section 2.3.3.

    >>> ConjugateNormal().posterior(torch.tensor([[1.5]])).mean
    tensor([[0.7500]])
    """

    prior_scale: Tensor
    noise_scale: Tensor

    def __init__(self, prior_scale: float = 1.0, noise_scale: float = 1.0) -> None:
        super().__init__()
        self._width = 1
        _checks.positive_number("prior_scale", prior_scale)
        _checks.positive_number("noise_scale", noise_scale)
        self.register_buffer("prior_scale", torch.tensor([float(prior_scale)]))
        self.register_buffer("noise_scale", torch.tensor([float(noise_scale)]))

    def prior(self) -> td.Independent:
        r"""Return :math:`\mathcal{N}(0, s^2)`, event shape (1,)."""
        loc = torch.zeros_like(self.prior_scale)
        return td.Independent(td.Normal(loc, self.prior_scale, validate_args=False), 1)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        r"""Return :math:`\log p(x \mid z)`, (S, B), nats, for x (B, 1) and z (S, B, 1).

        Raises a ValueError as ``log_joint`` does.
        """
        self._check(x)
        self._check_draws(x, z)
        return td.Normal(z, self.noise_scale, validate_args=False).log_prob(x).sum(-1)

    def posterior(self, x: Tensor) -> td.Independent:
        r"""Return :math:`p(z \mid x)`, batch shape (N,), event shape (1,), for x (N, 1).

        Raises a ValueError if x is empty, not finite, or of another width or dtype.
        """
        self._check(x)
        total = self.prior_scale.square() + self.noise_scale.square()
        mean = x * self.prior_scale.square() / total
        scale = (self.prior_scale * self.noise_scale / total.sqrt()).expand_as(mean)
        return td.Independent(td.Normal(mean, scale, validate_args=False), 1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n observations, shape (n, 1). Raises a ValueError for n < 1."""
        eps = _standard_normal((2, _checks.count("n", n), 1), self.prior_scale, generator)
        return self.prior_scale * eps[0] + self.noise_scale * eps[1]


class BayesianLinearRegression(_ExactModel):
    r"""Linear regression with a normal prior on the weights; the weights are the latent variable.

    .. math:: z \sim \mathcal{N}(0, s^2 I_D), \qquad x \mid z \sim \mathcal{N}(X z,\ \sigma^2 I_n).

    One observation x is the whole vector of the n responses at the n rows of the design X. The
    evidence is :math:`\mathcal{N}(x;\ 0,\ s^2 X X^\top + \sigma^2 I)` and the posterior
    :math:`\mathcal{N}(z;\ \sigma^{-2} \Lambda^{-1} X^\top x,\ \Lambda^{-1})` with the precision
    :math:`\Lambda = \sigma^{-2} X^\top X + s^{-2} I`, the same for every x.

    Args:
        design: X, shape (n, D). A column of ones makes an intercept.
        noise_scale: :math:`\sigma`, in the unit of x.
        prior_scale: s, in the unit of the weights.

    Raises:
        ValueError: for a design that is not a finite floating-point matrix, or a scale that is not
            positive.

    Source: Bishop (2006), Pattern recognition and machine learning, section 3.3.
    """

    design: Tensor
    noise_scale: Tensor
    prior_scale: Tensor

    def __init__(self, design: Tensor, noise_scale: float, prior_scale: float = 1.0) -> None:
        super().__init__()
        _checks.batch("design", design)
        if design.ndim != 2:
            raise ValueError(f"design must have shape (n, D), found {tuple(design.shape)}")
        _checks.positive_number("noise_scale", noise_scale)
        _checks.positive_number("prior_scale", prior_scale)
        self._width = len(design)
        self.register_buffer("design", design.detach().clone())
        self.register_buffer("noise_scale", design.new_tensor(noise_scale))
        self.register_buffer("prior_scale", design.new_tensor(prior_scale))

    def prior(self) -> td.Independent:
        r"""Return :math:`\mathcal{N}(0, s^2 I)`, event shape (D,)."""
        scale = self.prior_scale.expand(self.design.shape[1])
        return td.Independent(td.Normal(torch.zeros_like(scale), scale, validate_args=False), 1)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        r"""Return :math:`\log p(x \mid z)`, (S, B), nats, for x (B, n) and z (S, B, D).

        Raises a ValueError as ``log_joint`` does.
        """
        self._check(x)
        self._check_draws(x, z)
        with torch.autocast(x.device.type, enabled=False):
            mean = z @ self.design.T
        normal = td.Normal(mean, self.noise_scale, validate_args=False)
        return normal.log_prob(x).sum(-1)

    def posterior(self, x: Tensor) -> td.MultivariateNormal:
        r"""Return :math:`p(z \mid x)`, batch shape (B,), event shape (D,), for x (B, n).

        Raises a ValueError if x is empty, not finite, or of another width or dtype.
        """
        self._check(x)
        wide = self._in_float64()
        scaled = wide.design / wide.noise_scale
        unit = torch.ones_like(scaled[0]).diag()
        precision = scaled.T @ scaled + unit / wide.prior_scale.square()
        mean = torch.linalg.solve(precision, scaled.T @ (x.to(scaled) / wide.noise_scale).T).T
        one = td.MultivariateNormal(mean[0], precision_matrix=precision, validate_args=False)
        return _normal(mean.to(x), one.scale_tril.to(x))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n response vectors, each with weights of its own, shape (n, rows of the design).

        Raises a ValueError for n < 1.
        """
        rows, dim = self.design.shape
        z = _standard_normal((_checks.count("n", n), dim), self.design, generator)
        eps = _standard_normal((n, rows), self.design, generator)
        return self.prior_scale * z @ self.design.T + self.noise_scale * eps


def mean_field(p: td.MultivariateNormal) -> td.Independent:
    r"""The diagonal normal q with the smallest :math:`\mathrm{KL}(q \,\|\, p)` to a normal p.

    .. math:: q(z) = \prod_i \mathcal{N}(z_i;\ \mu_i,\ 1 / \Lambda_{ii}),

    with :math:`\mu` the mean of p and :math:`\Lambda` its precision. The means are exact. The
    variance of :math:`z_i` is its conditional one, given all the others: at most its marginal one.

    Args:
        p: multivariate normal with batch shape (B,) and event shape (D,).

    Returns:
        Distribution with batch shape (B,) and event shape (D,).

    Raises:
        ValueError: if p is not a multivariate normal.

    Source: Bishop (2006), Pattern recognition and machine learning, section 10.1.2.

    >>> p = td.MultivariateNormal(torch.zeros(1, 2), torch.tensor([[[1.0, 0.8], [0.8, 1.0]]]))
    >>> mean_field(p).variance
    tensor([[0.3600, 0.3600]])
    """
    scale = _precision_diagonal(p).rsqrt()
    return td.Independent(td.Normal(p.mean, scale, validate_args=False), 1)


def mean_field_gap(p: td.MultivariateNormal) -> Tensor:
    r"""The divergence that the best diagonal normal keeps from a normal p.

    .. math:: \min_q \mathrm{KL}(q \,\|\, p)
              = \frac{1}{2}\Big[\sum_i \ln \Lambda_{ii} - \ln |\Lambda|\Big].

    Args:
        p: multivariate normal with batch shape (B,).

    Returns:
        Tensor (B,), nats. Zero exactly when the covariance of p is diagonal; rounding in float32
        may then leave some 1e-6 on either side.

    Raises:
        ValueError: if p is not a multivariate normal.
    """
    half_sum = 0.5 * _precision_diagonal(p).log().sum(-1)
    return half_sum + p.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _precision_diagonal(p: td.MultivariateNormal) -> Tensor:
    if not isinstance(p, td.MultivariateNormal):
        raise ValueError(f"p must be a MultivariateNormal, found {type(p).__name__}")
    return p.precision_matrix.diagonal(dim1=-2, dim2=-1)
