r"""The local-level model: a random walk seen through noise (chapter: sequences).

It is the smallest model of a sequence whose likelihood and posterior are known exactly, and it
shows what a posterior over sequences looks like: a Markov chain whose steps lean on the step
before and on all observations still to come.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributions as td
from torch import Tensor

from vaetutor import _checks
from vaetutor._exact import ExactModel, normal, standard_normal
from vaetutor.markov import NormalChain


class Filtered(NamedTuple):
    """What the Kalman filter knows at each step, from the observations up to it."""

    mean: Tensor
    """E[z_t | x_{1:t}], shape (B, T)."""
    variance: Tensor
    """Var[z_t | x_{1:t}], shape (T,), the same for every x."""
    log_evidence: Tensor
    """log p(x), shape (B,), nats."""


class LocalLevel(ExactModel):
    r"""Random walk plus noise, T steps long.

    .. math:: z_1 \sim \mathcal{N}(0, s_0^2), \qquad z_t \sim \mathcal{N}(z_{t-1}, s^2), \qquad
              x_t \sim \mathcal{N}(z_t, r^2).

    The posterior is normal with a precision of three diagonals, the same for every x, and its
    mean is linear in x. As a chain,

    .. math:: p(z_{1:T} \mid x) = \prod_{t=1}^{T} p(z_t \mid z_{t-1}, x_{t:T}).

    Args:
        steps: the number of steps T.
        transition_scale: the standard deviation s of a step of the walk.
        noise_scale: the standard deviation r of the noise.
        initial_scale: :math:`s_0`, the standard deviation of the first step.

    Raises:
        ValueError: for a number of steps below 1 or a scale that is not positive.

    Source: Durbin and Koopman (2012), Time series analysis by state space methods, chapter 2.

    >>> LocalLevel(2).filter(torch.zeros(1, 2)).variance
    tensor([0.5000, 0.6000])
    """

    transition_scale: Tensor
    noise_scale: Tensor
    initial_scale: Tensor

    def __init__(
        self,
        steps: int,
        transition_scale: float = 1.0,
        noise_scale: float = 1.0,
        initial_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self._width = _checks.count("steps", steps)
        for name, value in (
            ("transition_scale", transition_scale),
            ("noise_scale", noise_scale),
            ("initial_scale", initial_scale),
        ):
            _checks.positive_number(name, value)
            self.register_buffer(name, torch.tensor(float(value)))

    def prior(self) -> td.MultivariateNormal:
        r"""Return the random walk :math:`p(z_{1:T})`, event shape (T,)."""
        factor = self._innovations().expand(self._width, -1).tril()  # z = running sum of steps
        loc = torch.zeros_like(factor[0])
        return td.MultivariateNormal(loc, scale_tril=factor, validate_args=False)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        r"""Return :math:`\log p(x \mid z)`, (S, B), nats, for x (B, T) and z (S, B, T).

        Raises a ValueError as ``log_joint`` does.
        """
        self._check(x)
        self._check_draws(x, z)
        return td.Normal(z, self.noise_scale, validate_args=False).log_prob(x).sum(-1)

    def filter(self, x: Tensor) -> Filtered:
        r"""Run the Kalman filter: predict a step, see it, correct the prediction.

        With :math:`P_t` the variance of :math:`z_t` given :math:`x_{1:t-1}` and :math:`\mu_t` its
        mean, :math:`x_t` is normal with that mean and the variance :math:`P_t + r^2`, and

        .. math:: k_t = \frac{P_t}{P_t + r^2}, \qquad
                  \mu_{t+1} = \mu_t + k_t (x_t - \mu_t), \qquad P_{t+1} = (1 - k_t) P_t + s^2.

        Args:
            x: observations (B, T).

        Returns:
            :class:`Filtered` means, variances and evidence, in the dtype of x.

        Raises:
            ValueError: if x is empty, not finite, or of another width or dtype.

        Source: Kalman (1960), A new approach to linear filtering and prediction problems. It runs
        in float64 inside.
        """
        self._check(x)
        wide = self._in_float64()
        step, noise = wide.transition_scale.square(), wide.noise_scale.square()
        predicted, mean = wide.initial_scale.square(), torch.zeros_like(x[:, 0]).to(noise)
        means, variances, log_evidence = [], [], torch.zeros_like(mean)
        for x_t in x.to(noise).unbind(1):
            total = predicted + noise
            seen = td.Normal(mean, total.sqrt(), validate_args=False)
            log_evidence = log_evidence + seen.log_prob(x_t)
            gain = predicted / total
            mean = mean + gain * (x_t - mean)
            variance = (1 - gain) * predicted
            means.append(mean)
            variances.append(variance)
            predicted = variance + step
        found = torch.stack(means, dim=1), torch.stack(variances), log_evidence
        return Filtered(*(value.to(x) for value in found))

    def log_evidence(self, x: Tensor) -> Tensor:
        r"""Evidence by the Kalman filter, :math:`\sum_t \log p(x_t \mid x_{1:t-1})`.

        Args:
            x: observations (B, T).

        Returns:
            Tensor (B,), nats, in the dtype of x.

        Raises:
            ValueError: if x is empty, not finite, or of another width or dtype.
        """
        return self.filter(x).log_evidence

    def posterior(self, x: Tensor) -> td.MultivariateNormal:
        r"""Return :math:`p(z_{1:T} \mid x)`, batch shape (B,), event shape (T,), for x (B, T).

        It is :meth:`smoother` with its covariance written out, which stays accurate where the
        precision matrix is too ill-conditioned to be inverted, :math:`s \ll r`. Raises a
        ValueError if x is empty, not finite, or of another width or dtype.
        """
        self._check(x)
        wide = self._in_float64()
        chain = wide.smoother(x.to(wide.noise_scale))
        one = NormalChain(chain.loc[:1], chain.gate[:1], chain.scale[:1])
        return normal(chain.mean.to(x), one.dense().scale_tril[0].to(x))

    def smoother(self, x: Tensor) -> NormalChain:
        r"""The posterior as a chain, :math:`\prod_t p(z_t \mid z_{t-1}, x_{t:T})`.

        Seen from :math:`z_t`, the observations from t on are
        :math:`p(x_{t:T} \mid z_t) \propto \exp(h_t z_t - \frac12 J_t z_t^2)`. Backwards in time,
        from :math:`J_{T+1} = h_{T+1} = 0`,

        .. math:: J_t = \frac{1}{r^2} + c_t J_{t+1}, \qquad h_t = \frac{x_t}{r^2} + c_t h_{t+1},
                  \qquad c_t = \frac{1}{1 + s^2 J_{t+1}}.

        Together with :math:`p(z_t \mid z_{t-1})` that gives the precision
        :math:`s^{-2} + J_t` and the mean :math:`(s^{-2} z_{t-1} + h_t) / (s^{-2} + J_t)`; at the
        first step :math:`s_0` stands for s and 0 for :math:`z_0`.

        Args:
            x: observations (B, T).

        Returns:
            Distribution with batch shape (B,) and event shape (T,). It equals ``posterior(x)``.

        Raises:
            ValueError: if x is empty, not finite, or of another width or dtype.

        Source: Durbin and Koopman (2012), chapter 4, where the same posterior is found forwards
        and backwards.
        """
        self._check(x)
        wide = self._in_float64()
        x_wide = x.to(wide.noise_scale)
        return wide._chain(x_wide, wide._ahead(x_wide), x)

    def filter_posterior(self, x: Tensor) -> NormalChain:
        r"""The best q that never looks ahead, :math:`\prod_t q(z_t \mid z_{t-1}, x_{1:t})`.

        Of all such q it has the largest ELBO on average over x from this model. It is the smoother
        with each observation still to come replaced by its prediction,

        .. math:: h_t = \frac{x_t}{r^2} + \Big(J_t - \frac{1}{r^2}\Big)\, \mathbb{E}[z_t \mid
                  x_{1:t}].

        So its covariance is that of the posterior, as if all of x had been seen, and only its
        mean is wrong: minimising :math:`\mathrm{KL}(q\,\|\,p)` makes it too sure.

        Args:
            x: observations (B, T).

        Returns:
            Distribution with batch shape (B,) and event shape (T,).

        Raises:
            ValueError: if x is empty, not finite, or of another width or dtype.

        Source: Bayer et al. (2021), arXiv:2101.07046, for the best q of an encoder that is not
        shown all that the posterior depends on; worked out here for this model.
        """
        self._check(x)
        wide = self._in_float64()
        x_wide = x.to(wide.noise_scale)
        seen = 1 / wide.noise_scale.square()
        h = x_wide * seen + (wide._information() - seen) * wide.filter(x_wide).mean
        return wide._chain(x_wide, h, x)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n sequences of observations, shape (n, T). Raises a ValueError for n < 1."""
        shape = 2, _checks.count("n", n), self._width
        eps = standard_normal(shape, self.noise_scale, generator)
        return (self._innovations() * eps[0]).cumsum(-1) + self.noise_scale * eps[1]

    def _innovations(self) -> Tensor:
        """The scale of every step of the walk, the first one included, (T,)."""
        others = self.transition_scale.expand(self._width - 1)
        return torch.cat([self.initial_scale.unsqueeze(0), others])

    def _ahead(self, x: Tensor) -> Tensor:
        """h_t, (B, T): what x_{t:T} says of z_t."""
        step, seen = self.transition_scale.square(), 1 / self.noise_scale.square()
        j, h, found = torch.zeros_like(seen), torch.zeros_like(x[:, 0]), []
        for x_t in x.flip(1).unbind(1):
            c = 1 / (1 + step * j)
            j, h = seen + c * j, seen * x_t + c * h
            found.append(h)
        return torch.stack(found[::-1], dim=1)

    def _information(self) -> Tensor:
        """J_t, (T,): how sure x_{t:T} is of z_t. It is h_t for observations that are all 1."""
        return self._ahead(self.noise_scale.new_ones(1, self._width)).squeeze(0)

    def _chain(self, x: Tensor, h: Tensor, like: Tensor) -> NormalChain:
        """The chain with precision s^-2 + J_t and mean (s^-2 z_{t-1} + h_t) / (s^-2 + J_t)."""
        scale = self._innovations().square()  # of the walk: s_0, s, s, ...
        variance = scale / (1 + scale * self._information())
        gate = (variance / scale)[1:].expand(len(x), -1)
        parts = variance * h, gate, variance.sqrt().expand_as(x)
        loc, gate, scale = (part.unsqueeze(-1).to(like) for part in parts)
        return NormalChain(loc, gate, scale)
