r"""Bounds on the evidence: one place draws, and every bound is two lines.

Given a joint density :math:`p(x, z)` and any :math:`q(z)`, the log weight of a draw is

.. math:: \log w = \log p(x, z) - \log q(z), \qquad z \sim q.

Its mean is the ELBO, at most :math:`\log p(x)`, and the log of the mean of :math:`w` over several
draws is the importance-weighted bound, which lies between the two (chapter: the ELBO).

All values are in nats, one for each example, shape (B,), summed over the event, larger is better.
The distribution q is what the encoder returned, ``q = encoder(x)``, or any other distribution with
batch shape (B,). Nothing here knows which family q belongs to or which model p is.

No factor N/M appears in any of them: the latent variables are local, one z for each x, so the
bound of a data set is the sum of the bounds of its examples, and a batch mean estimates it as is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributions as td
from torch import Tensor

from vaetutor import _checks
from vaetutor.model import LatentVariableModel, SequenceModel, TwoTermModel


class Draws(NamedTuple):
    r"""Draws from q, their log-density, and what each of them counts for.

    Together they stand for an expectation under q. Independent draws count the same, 1/S each. A
    mixture draws from every component c and weights by its probability, :math:`\pi_c / S`.
    """

    z: Tensor
    """The draws, shape (S, B, D); (S C, B, D) where each of C components gives S draws."""
    log_q: Tensor
    """log q(z), shape (S, B) or (S C, B), in nats."""
    log_share: Tensor | None = None
    """Log of the share of each draw, (S C, B); the exponentials sum to 1 over the draws. None
    where all count the same."""

    def mean(self, f: Tensor) -> Tensor:
        """Estimate E_q[f], shape (B,), by the values f of all draws, in the shape of `log_q`."""
        _checks.shape("f", f, self.log_q.shape)
        if self.log_share is None:
            return f.mean(0)
        share = self.log_share.exp()
        return torch.where(share > 0, share * f, 0).sum(0)  # a draw that counts for nothing

    def log_mean(self, log_f: Tensor) -> Tensor:
        """Logarithm of the estimate of E_q[exp(log_f)], shape (B,)."""
        if self.log_share is None:
            return log_f.logsumexp(0) - math.log(len(log_f))
        return (self.log_share + log_f).logsumexp(0)


class ElboTerms(NamedTuple):
    """The two terms of the ELBO, in nats."""

    reconstruction: Tensor
    """E_q[log p(x|z)], estimated by the draws, shape (B,)."""
    kl: Tensor
    """KL(q || p(z)), shape (B,)."""
    kl_is_exact: bool
    """Whether the KL is in closed form; otherwise it is estimated by the same draws."""

    @property
    def elbo(self) -> Tensor:
        """reconstruction - kl, shape (B,), in nats."""
        return self.reconstruction - self.kl


def draw(q: td.Distribution, n_samples: int, independent: bool = False) -> Draws:
    r"""Draw :math:`z^{(s)} \sim q` and evaluate :math:`\log q(z^{(s)})`.

    Draws are reparameterised where q can do it, so that gradients reach its parameters. A mixture
    that can draw from every component does so, and the gradient reaches its weights by the shares
    (:class:`~vaetutor.families.MixtureNormal`). A flow gives a draw and its density in one pass.
    Draws come from torch's global random state, since distributions take no generator.

    Args:
        q: distribution with batch shape (B,) and event shape (D,).
        n_samples: number of draws S for each example, or for each component of one.
        independent: draw from q itself also where it could draw from every component. Such draws
            carry no gradient.

    Returns:
        ``Draws(z, log_q, log_share)`` with shapes (S, B, D), (S, B) and None, or (S C, B, D) and
        twice (S C, B) for a mixture of C components; log_q in nats.

    Raises:
        ValueError: for n_samples < 1, a q without exactly one batch and one event dimension, or a
            q with trainable parameters whose draws carry no gradient (call it under
            ``torch.no_grad()`` when only the value is wanted).

    Source: draws from every component: Roeder et al. (2017), arXiv:1703.09194;
    Morningstar et al. (2021), arXiv:2003.01687.
    """
    shape = _check_draw(q, n_samples)
    if not independent and hasattr(q, "rsample_each"):
        draws = Draws(*q.rsample_each(n_samples))
    elif hasattr(q, "rsample_and_log_prob"):
        draws = Draws(*q.rsample_and_log_prob(shape))
    else:
        z = _draw_z(q, n_samples)
        draws = Draws(z, q.log_prob(z))
    _require_gradient(q, draws.z, draws.log_q)
    return draws


def _draw_z(q: td.Distribution, n_samples: int) -> Tensor:
    """Independent draws (S, B, D)."""
    shape = _check_draw(q, n_samples)
    return q.rsample(shape) if q.has_rsample else q.sample(shape)


def _check_draw(q: td.Distribution, n_samples: int) -> torch.Size:
    _checks.count("n_samples", n_samples)
    if not isinstance(q, td.Distribution):
        raise ValueError(
            f"q must be a torch.distributions.Distribution, found {type(q).__name__}: call the "
            "encoder, q = encoder(x)"
        )
    if len(q.batch_shape) != 1 or len(q.event_shape) != 1:
        raise ValueError(
            "q must have batch shape (B,) and event shape (D,), found "
            f"{tuple(q.batch_shape)} and {tuple(q.event_shape)}: give x as a batch, and wrap a "
            "distribution over single numbers in torch.distributions.Independent"
        )
    return torch.Size((n_samples,))


def _require_gradient(q: td.Distribution, z: Tensor, other: Tensor) -> None:
    """Raise if `other`, a function of q's parameters, has a gradient and the draws have none."""
    if other.requires_grad and not z.requires_grad:
        raise ValueError(
            f"draws from {type(q).__name__} carry no gradient, so its parameters would be trained "
            "on half of theirs: use a reparameterised family or a score-function estimator"
        )


def log_weights(
    model: LatentVariableModel, q: td.Distribution, x: Tensor, n_samples: int = 1
) -> Tensor:
    r"""Log importance weights :math:`\log p(x, z^{(s)}) - \log q(z^{(s)})`.

    The draws are independent, so that the weights can be judged: by their spread, their effective
    sample size, their tail. For a mixture that trains, take :func:`elbo` or :func:`iwae`.

    Args:
        model: anything with ``log_joint(x, z)``.
        q: the proposal, batch shape (B,).
        x: observations (B, ...).
        n_samples: number of draws S.

    Returns:
        Tensor (S, B), nats.

    Raises:
        ValueError: as :func:`draw`, or if x is empty, not finite or does not have B rows.
    """
    return _log_weights(model, draw(q, n_samples, independent=True), x)


def _log_weights(model: LatentVariableModel, draws: Draws, x: Tensor) -> Tensor:
    if not hasattr(model, "log_joint"):
        raise ValueError(f"model must have log_joint(x, z), found {type(model).__name__}")
    _checks.batch("x", x)
    _checks.draws(x, draws.z)
    log_joint = model.log_joint(x, draws.z)
    _checks.shape("log_joint(x, z)", log_joint, draws.log_q.shape)  # or it broadcasts, silently
    return log_joint - draws.log_q


def elbo(model: LatentVariableModel, q: td.Distribution, x: Tensor, n_samples: int = 1) -> Tensor:
    r"""Evidence lower bound, by the draws alone.

    .. math:: \mathcal{L}(x) = \mathbb{E}_{q}[\log p(x, z) - \log q(z)]
              \approx \frac{1}{S}\sum_s \log w^{(s)} .

    Where q is the exact posterior every draw gives :math:`\log p(x)`, with no variance at all.

    Args:
        model, q, x, n_samples: as :func:`log_weights`.

    Returns:
        Tensor (B,), nats per example.

    Raises:
        ValueError: as :func:`draw` and :func:`log_weights`.

    Source: Jordan et al. (1999), section 6; Kingma and Welling (2014), arXiv:1312.6114, eq. 2.
    """
    draws = draw(q, n_samples)
    return draws.mean(_log_weights(model, draws, x))


def elbo_terms(
    model: TwoTermModel | SequenceModel, q: td.Distribution, x: Tensor, n_samples: int = 1
) -> ElboTerms:
    r"""The ELBO as reconstruction minus KL, the KL in closed form where there is one.

    .. math:: \mathcal{L}(x) = \mathbb{E}_{q}[\log p(x \mid z)]
              - \mathrm{KL}(q(z) \,\|\, p(z)).

    Args:
        model: anything with ``log_likelihood(x, z)`` and either ``prior()`` or, where p(z) depends
            on the length of x, ``log_prior(x, z)``; the KL then comes from the draws.
        q, x, n_samples: as :func:`log_weights`.

    Returns:
        ``ElboTerms``: ``.reconstruction``, ``.kl`` and ``.elbo``, each (B,), nats per example, and
        ``.kl_is_exact``: False where the KL came from the draws.

    Raises:
        ValueError: as :func:`elbo`, or if the model comes in one piece, ``log_joint``.

    Source: Kingma and Welling (2014), arXiv:1312.6114, equations 3 and 7.
    """
    priors = "log_prior" if hasattr(model, "log_prior") else "prior"
    missing = [name for name in ("log_likelihood", priors) if not hasattr(model, name)]
    if missing:
        raise ValueError(
            "model must have log_likelihood(x, z) and prior(), or log_prior(x, z), found "
            f"{type(model).__name__} without {' and '.join(missing)}: use elbo, which needs "
            "log_joint(x, z) only"
        )
    _check_draw(q, n_samples)
    _checks.batch("x", x)
    prior = None if hasattr(model, "log_prior") else model.prior()
    divergence = None if prior is None else _closed_form_kl(q, prior)
    exact = divergence is not None
    draws = _draws_alone(q, n_samples) if exact else draw(q, n_samples)
    _checks.draws(x, draws.z)
    if divergence is None:
        log_prior = _log_prior(model, prior, x, draws.z)
        divergence = draws.mean(draws.log_q - log_prior)
    log_likelihood = model.log_likelihood(x, draws.z)
    _checks.shape("log_likelihood(x, z)", log_likelihood, draws.z.shape[:2])
    return ElboTerms(draws.mean(log_likelihood), divergence, exact)


def _log_prior(
    model: TwoTermModel | SequenceModel, prior: td.Distribution | None, x: Tensor, z: Tensor
) -> Tensor:
    """log p(z), which may depend on the length of x, (S, B)."""
    if prior is not None:
        return prior.log_prob(z)
    assert hasattr(model, "log_prior")
    log_prior = model.log_prior(x, z)
    _checks.shape("log_prior(x, z)", log_prior, z.shape[:2])
    return log_prior


def _draws_alone(q: td.Distribution, n_samples: int) -> Draws:
    """Independent draws for a closed form, which needs no density: that is left out, at zero."""
    z = _draw_z(q, n_samples)
    if torch.is_grad_enabled() and not z.requires_grad:
        _require_gradient(q, z, q.log_prob(z))
    return Draws(z, z.new_zeros(z.shape[:2]))


def iwae(model: LatentVariableModel, q: td.Distribution, x: Tensor, n_samples: int = 1) -> Tensor:
    r"""Importance-weighted bound on the evidence.

    .. math:: \mathcal{L}_K(x) = \mathbb{E}\left[\log \frac{1}{K}\sum_{k=1}^{K} w^{(k)}\right],
              \qquad \mathcal{L}_1 = \mathcal{L} \le \mathcal{L}_K \le \log p(x).

    Args:
        model, q, x: as :func:`log_weights`.
        n_samples: the number of draws K inside the logarithm.

    Returns:
        Tensor (B,), one unbiased estimate of :math:`\mathcal{L}_K` for each example, nats. A
        mixture that draws from each of C components puts all K C draws, by their shares, into the
        logarithm; for K = 1 that lies above its ELBO already.

    Raises:
        ValueError: as :func:`elbo`.

    Source: Burda et al. (2016), arXiv:1509.00519, equation 8; by draws from every component:
    Morningstar et al. (2021), arXiv:2003.01687.
    """
    draws = draw(q, n_samples)
    return draws.log_mean(_log_weights(model, draws, x))


def kl(q: td.Distribution, p: td.Distribution, draws: Draws | None = None) -> Tensor:
    r"""Kullback-Leibler divergence :math:`\mathrm{KL}(q\,\|\,p) = \mathbb{E}_q[\log q - \log p]`.

    In closed form for the pairs that torch registers, for diagonal against full and low-rank
    normals, which it lacks, and for a chain against a full normal. Otherwise the mean over
    `draws`, if given.

    Args:
        q: distribution with batch shape (B,).
        p: distribution with batch shape (B,) or ().
        draws: ``draw(q, n_samples)``, used only where there is no closed form.

    Returns:
        Tensor (B,), nats. A closed form is at least 0; an estimate from draws can be negative.

    Raises:
        ValueError: if the event shapes differ, p has another batch than q, or there is neither a
            closed form nor draws.

    Source: Kingma and Welling (2014), arXiv:1312.6114, appendix B, for diagonal normals; Kullback
    and Leibler (1951).

    >>> q = td.Independent(td.Normal(torch.ones(1, 2), 1.0), 1)
    >>> p = td.Independent(td.Normal(torch.zeros(2), 1.0), 1)
    >>> kl(q, p)
    tensor([1.])
    """
    closed = _closed_form_kl(q, p)
    if closed is not None:
        return closed
    if draws is None:
        raise ValueError(
            f"KL({type(q).__name__} || {type(p).__name__}) has no closed form here: pass "
            "draws=draw(q, n_samples) for a Monte Carlo estimate"
        )
    _checks.shape("draws.log_q", draws.log_q, (len(draws.log_q), *q.batch_shape))
    return draws.mean(draws.log_q - p.log_prob(draws.z))


def kl_per_dimension(q: td.Distribution, p: td.Distribution) -> Tensor:
    r"""The divergence of each latent dimension, where both distributions are products over them.

    .. math:: \mathrm{KL}_d = \mathrm{KL}(q(z_d) \,\|\, p(z_d)), \qquad
              \sum_d \mathrm{KL}_d = \mathrm{KL}(q \,\|\, p).

    Args:
        q: ``Independent`` with batch shape (B,) and event shape (D,), a diagonal normal for
            instance.
        p: ``Independent`` with batch shape () or (B,) and event shape (D,).

    Returns:
        Tensor (B, D), nats, in closed form, at least 0.

    Raises:
        ValueError: if one of them does not factorise over its dimensions, or their shapes or
            types have no such divergence.

    Source: Burda et al. (2016), arXiv:1509.00519, section 5.2, where it tells active units.
    """
    each_q, each_p = _factors("q", q), _factors("p", p)
    if _closed_form_kl(q, p) is None:
        raise ValueError(
            f"KL({type(each_q).__name__} || {type(each_p).__name__}) has no closed form"
        )
    return td.kl_divergence(each_q, each_p)


def _factors(name: str, d: td.Distribution) -> td.Distribution:
    """The distributions over single numbers that an ``Independent`` is made of."""
    if not isinstance(d, td.Independent) or d.reinterpreted_batch_ndims != 1:
        raise ValueError(
            f"{name} must be a product over its dimensions, torch.distributions.Independent "
            f"with one axis, found {type(d).__name__}: a joint density has no KL per dimension"
        )
    return d.base_dist


_WITH_MATRIX = (td.MultivariateNormal, td.LowRankMultivariateNormal)


def _closed_form_kl(q: td.Distribution, p: td.Distribution) -> Tensor | None:
    for name, d in (("q", q), ("p", p)):
        if not isinstance(d, td.Distribution):
            raise ValueError(f"{name} must be a Distribution, found {type(d).__name__}")
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"q and p must have the same event shape, found {tuple(q.event_shape)} and "
            f"{tuple(p.event_shape)}: encoder and prior need the same latent dimensions"
        )
    if p.batch_shape not in ((), (1,), q.batch_shape):
        raise ValueError(
            f"p must have batch shape () or that of q, {tuple(q.batch_shape)}, found "
            f"{tuple(p.batch_shape)}"
        )
    q, p = _matched(q, p), _matched(p, q)
    if isinstance(q, _WITH_MATRIX) and isinstance(p, _WITH_MATRIX):
        with torch.autocast(q.loc.device.type, enabled=False):  # it multiplies matrices
            return td.kl_divergence(q, p)
    try:
        return td.kl_divergence(q, p)
    except NotImplementedError:
        return None


def _is_diagonal(d: td.Distribution) -> bool:
    return (
        isinstance(d, td.Independent)
        and isinstance(d.base_dist, td.Normal)
        and d.reinterpreted_batch_ndims == 1
    )


def _matched(d: td.Distribution, other: td.Distribution) -> td.Distribution:
    """A diagonal normal in the form of `other`, if torch lacks their divergence as they are."""
    if _is_diagonal(d) and isinstance(other, td.MultivariateNormal):
        factor = torch.diag_embed(d.stddev)
        return td.MultivariateNormal(d.mean, scale_tril=factor, validate_args=False)
    if _is_diagonal(d) and isinstance(other, td.LowRankMultivariateNormal):
        factor = torch.zeros_like(d.mean).unsqueeze(-1)
        with torch.autocast(d.mean.device.type, enabled=False):
            return td.LowRankMultivariateNormal(d.mean, factor, d.variance, validate_args=False)
    return d
