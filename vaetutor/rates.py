r"""Rates: what the code z costs, what it says about x, and which of its dimensions are used.

The mean of the KL over a data set is the *rate* of the code. It splits in two,

.. math:: \frac{1}{N}\sum_n \mathrm{KL}(q(z \mid x_n) \,\|\, p(z))
          = \underbrace{I_q(n;\ z)}_{\text{information}} + \mathrm{KL}(q(z) \,\|\, p(z)), \qquad
          q(z) = \frac{1}{N}\sum_n q(z \mid x_n),

into what a draw tells about the example that it came from, and how far the aggregate posterior
q(z) is from the prior (chapter: rate, distortion and collapse; the prior).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributions as td
from torch import Tensor

from vaetutor import _checks
from vaetutor._run import device_of, evaluating, ready, seeded
from vaetutor.data import Images
from vaetutor.model import Posterior
from vaetutor.objectives import _closed_form_kl, draw, elbo_terms
from vaetutor.priors import Mixture

if TYPE_CHECKING:
    import pandas as pd

AT_ONCE = 1000  # draws whose prior density is evaluated at once


@dataclass(frozen=True)
class RateDistortion:
    """The two terms of the ELBO, one value for each example, with weight 1 on the rate."""

    rate: Tensor
    """KL(q(z|x) || p(z)), (N,), nats."""
    distortion: Tensor
    """-E_q[log p(x|z)], (N,), nats. Of a density it may be negative."""
    rate_is_exact: bool
    """Whether the rate is in closed form; otherwise it is estimated by the same draws."""

    @property
    def elbo(self) -> Tensor:
        """-distortion - rate, (N,), nats."""
        return -self.distortion - self.rate


@torch.no_grad()
def rate_distortion(
    model: Any,  # noqa: ANN401
    x: Tensor | Images,
    n_samples: int = 1,
    *,
    posterior: Posterior | None = None,
    batch_size: int = 1000,
) -> RateDistortion:
    r"""Rate and distortion of every example of a data set.

    .. math:: R(x) = \mathrm{KL}(q(z \mid x) \,\|\, p(z)), \qquad
              D(x) = -\mathbb{E}_{q(z|x)}[\log p(x \mid z)], \qquad
              \mathrm{ELBO}(x) = -D(x) - R(x).

    The draws come from torch's global random state.

    Args:
        model: a VAE, or any model in two factors together with `posterior`. It is evaluated in
            eval mode and left in the mode it had.
        x: examples (N, ...) or an :class:`~vaetutor.data.Images`, presented once.
        n_samples: draws of z for each example.
        posterior: q(z|x); ``model.encoder`` if not given.
        batch_size: examples evaluated at once.

    Returns:
        A :class:`RateDistortion`, on the device of the model.

    Raises:
        ValueError: if x is empty, not finite or outside the support of the decoder, the model has
            no encoder and no posterior is given, q has another number of rows than x, or a count
            is below 1.

    Source: Alemi et al. (2018), arXiv:1711.00464, section 2.
    """
    _checks.count("batch_size", batch_size)
    encoder, shown = ready(model, x, posterior)
    with evaluating(model), evaluating(encoder):
        parts = [elbo_terms(model, _q(encoder, b), b, n_samples) for b in shown.split(batch_size)]
    rate = torch.cat([part.kl for part in parts])
    distortion = -torch.cat([part.reconstruction for part in parts])
    return RateDistortion(rate, distortion, all(part.kl_is_exact for part in parts))


def _q(encoder: Posterior, x: Tensor) -> td.Distribution:
    """q(z|x), one row for each example."""
    q = encoder(x)
    _checks.one_for_each("posterior", q, len(x))
    return q


def _of_one_length(q: td.Distribution) -> td.Distribution:
    """Return q unless it has padding, whose zeros are no latent variable to compare."""
    observed = getattr(q, "observed", None)
    if observed is not None and not observed.all():
        raise ValueError(
            "x must hold sequences of one length, found padding: a latent variable for every step "
            "of the longest is not there in the others; take one length at a time"
        )
    return q


@dataclass(frozen=True)
class ActiveUnits:
    """Which latent dimensions say something about x."""

    variance: Tensor
    """Variance over the data of each posterior mean, (D,), in the square of the unit of z."""
    threshold: float
    """A dimension is active if its variance is above this."""

    @property
    def active(self) -> Tensor:
        """Whether each dimension is active, (D,), boolean."""
        return self.variance > self.threshold

    @property
    def count(self) -> int:
        """How many dimensions are active."""
        return int(self.active.sum())


@torch.no_grad()
def active_units(
    model: Any,  # noqa: ANN401
    x: Tensor | Images,
    threshold: float = 0.01,
    *,
    posterior: Posterior | None = None,
    batch_size: int = 1000,
) -> ActiveUnits:
    r"""Latent dimensions whose posterior mean moves with x.

    .. math:: A_d = \operatorname{Var}_{x}\big(\mathbb{E}_{q(z|x)}[z_d]\big) > \text{threshold}.

    The count depends on the coordinates: rotating z changes it, and so does the scale of z if the
    prior is not of unit scale. Draws may also depend on x through their spread alone, with a mean
    that stands still; such a dimension counts as inactive here.

    Args:
        model: a VAE, or any model together with `posterior`.
        x: at least two examples (N, ...) or an :class:`~vaetutor.data.Images`, presented once.
        threshold: variance above which a dimension is active.
        posterior: q(z|x); ``model.encoder`` if not given. Its mean must be known.
        batch_size: examples evaluated at once.

    Returns:
        An :class:`ActiveUnits`.

    Raises:
        ValueError: as :func:`rate_distortion`, for fewer than two examples, a q without a mean, or
            sequences of different lengths.

    Source: Burda et al. (2016), arXiv:1509.00519, section 5.2.
    """
    _checks.positive_number("threshold", threshold)
    _checks.count("batch_size", batch_size)
    encoder, shown = ready(model, x, posterior)
    if len(shown) < 2:
        raise ValueError("x must hold at least two examples for a variance over them, found 1")
    with evaluating(model), evaluating(encoder):
        mean = torch.cat([_mean_of(_q(encoder, b)) for b in shown.split(batch_size)])
    return ActiveUnits(mean.var(0, correction=0), threshold)


def _mean_of(q: td.Distribution) -> Tensor:
    try:
        return _of_one_length(q).mean
    except NotImplementedError:
        raise ValueError(
            f"q must have a mean in closed form, found {type(q).__name__} without one: pass "
            "posterior=, a function whose distributions have one"
        ) from None


def aggregate_posterior(
    model: Any,  # noqa: ANN401
    x: Tensor | Images,
    *,
    posterior: Posterior | None = None,
) -> Mixture:
    r"""The aggregate posterior of a data set, :math:`q(z) = \frac{1}{N}\sum_n q(z \mid x_n)`.

    Of all priors it is the one with the largest mean ELBO on x for a given encoder and decoder,
    because it makes the second term of the split above zero.

    Args:
        model: a VAE, or any model together with `posterior`.
        x: examples (N, ...) or an :class:`~vaetutor.data.Images`, presented once.
        posterior: q(z|x); ``model.encoder`` if not given.

    Returns:
        A :class:`~vaetutor.priors.Mixture` with equal weights and event shape (D,), whose
        parameters carry no gradient. A density costs N densities of q.

    Raises:
        ValueError: as :func:`rate_distortion`, or for sequences of different lengths.

    Source: Hoffman and Johnson (2016), ELBO surgery; Makhzani et al. (2016), arXiv:1511.05644.
    """
    encoder, shown = ready(model, x, posterior)
    with torch.no_grad(), evaluating(model), evaluating(encoder):
        return Mixture(shown.new_zeros(len(shown)), _of_one_length(_q(encoder, shown)))


@dataclass(frozen=True)
class Surgery:
    """The mean KL of a data set, cut in two; means over the examples, nats."""

    rate: float
    """Mean KL to the prior, in closed form where there is one."""
    mutual_information: float
    """What a draw of z tells about the example it came from: from 0 to log N. As an estimate for
    the population it is low on average."""
    information_upper: float
    """The same with each draw's own example left out of q(z). As an estimate for the population
    it is high on average: far above `mutual_information`, and the examples are too few."""
    marginal_kl: float
    """KL(q(z) || p(z)) of the aggregate posterior."""
    standard_error: dict[str, float]
    """Monte Carlo standard error of each of the four, by name, with the examples given; zero
    where a figure is exact."""
    n_examples: int
    """N: the information cannot exceed its logarithm."""

    @property
    def frame(self) -> pd.DataFrame:
        """The four figures with their standard errors."""
        import pandas as pd

        rows = {
            name: {"mean": getattr(self, name), "standard_error": error}
            for name, error in self.standard_error.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index")


@torch.no_grad()
def surgery(
    model: Any,  # noqa: ANN401
    x: Tensor | Images,
    n_samples: int = 10,
    *,
    posterior: Posterior | None = None,
    seed: int = 0,
) -> Surgery:
    r"""Split the mean KL of a data set into information and the KL of the aggregate posterior.

    With draws :math:`z \sim q(z \mid x_n)` of every example,

    .. math:: I_q(n; z) = \mathbb{E}\left[\log \frac{q(z \mid x_n)}{q(z)}\right], \qquad
              \mathrm{KL}(q(z) \,\|\, p(z)) = \mathbb{E}\left[\log \frac{q(z)}{p(z)}\right], \qquad
              q(z) = \frac{1}{N}\sum_m q(z \mid x_m).

    Both are right for the data set given: the aggregate is that of these N examples and the index
    n can carry at most log N nats. As estimates for the population that x comes from they are
    biased: the information is low on average and never above log N, and the KL is high by as much,
    because each draw meets its own component among only N. Leaving that component out,

    .. math:: I^{+} = \mathbb{E}\left[\log q(z \mid x_n)
              - \log \frac{1}{N - 1}\sum_{m \ne n} q(z \mid x_m)\right],

    gives an estimate that is high on average. For independent examples, on which the encoder was
    not trained, the information of the population lies between the two means, and the gap says
    how much of it N examples can tell. A nat below log N is no guarantee: use as many examples as
    can be had, never a minibatch, and read no difference that is smaller than the gap into a
    single bound. Estimates are never clamped at zero.

    Args:
        model: a VAE, or any model in two factors together with `posterior`.
        x: at least two examples (N, ...) or an :class:`~vaetutor.data.Images`, presented once.
        n_samples: draws of z for each example, at least 2, for the standard errors.
        posterior: q(z|x); ``model.encoder`` if not given.
        seed: seed of the draws. The global random state is left as it was.

    Returns:
        A :class:`Surgery`.

    Raises:
        ValueError: as :func:`rate_distortion`, or for fewer than two draws or examples.

    Source: Hoffman and Johnson (2016), ELBO surgery; the two bounds: Poole et al. (2019),
    arXiv:1905.06922, section 2. Cost: n_samples N² densities of q.
    """
    _checks.count("n_samples", n_samples, least=2)
    _checks.seed(seed)
    if not hasattr(model, "prior"):
        raise ValueError(
            f"model must have prior(), one distribution for all x, which {type(model).__name__} "
            "has not"
        )
    with seeded(seed, device_of(model)):
        encoder, shown = ready(model, x, posterior)
        n = len(shown)
        if n < 2:
            raise ValueError("x must hold at least two examples to be told apart, found 1")
        with evaluating(model), evaluating(encoder):
            q = _q(encoder, shown)
            z, log_q, _ = draw(q, n_samples, independent=True)
            prior = model.prior()
            divergence = _closed_form_kl(q, prior)
            log_p = torch.cat([prior.log_prob(b) for b in z.flatten(0, 1).split(AT_ONCE)])
    log_p = log_p.reshape(log_q.shape)
    own = torch.arange(n, device=z.device).expand(n_samples, n)
    log_others = Mixture(shown.new_zeros(n), q).log_prob(z, without=own)
    log_aggregate = torch.logaddexp(log_others + math.log(n - 1), log_q) - math.log(n)
    terms = {
        "rate": log_q - log_p,
        "mutual_information": log_q - log_aggregate,
        "information_upper": log_q - log_others,
        "marginal_kl": log_aggregate - log_p,
    }
    mean = {name: term.double().mean().item() for name, term in terms.items()}
    error = {name: _error_of_mean(term) for name, term in terms.items()}
    if divergence is not None:
        mean["rate"], error["rate"] = divergence.double().mean().item(), 0.0
    return Surgery(**mean, standard_error=error, n_examples=n)


def _error_of_mean(terms: Tensor) -> float:
    """Standard error of the mean of (S, N) terms, the examples given and the draws random."""
    variance = terms.double().var(0) / len(terms)
    return variance.sum().sqrt().item() / len(variance)
