r"""Evaluation: how good is the model, and how far below it lies its bound?

The ELBO is not the likelihood. The likelihood of one x is an integral,

.. math:: p(x) = \int p(x, z)\,dz = \mathbb{E}_{q(z|x)}\!\left[\frac{p(x, z)}{q(z|x)}\right],

which importance sampling estimates with the encoder as proposal (chapter: the ELBO is not the
likelihood).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributions as td
from torch import Tensor

from vaetutor import _checks
from vaetutor._run import check_data, device_of, evaluating, present, ready, seeded
from vaetutor.data import Images
from vaetutor.inference import InferenceGaps as InferenceGaps
from vaetutor.inference import Refined as Refined
from vaetutor.inference import inference_gaps as inference_gaps
from vaetutor.inference import refine as refine
from vaetutor.model import Posterior
from vaetutor.objectives import log_weights
from vaetutor.rates import ActiveUnits as ActiveUnits
from vaetutor.rates import RateDistortion as RateDistortion
from vaetutor.rates import Surgery as Surgery
from vaetutor.rates import active_units as active_units
from vaetutor.rates import aggregate_posterior as aggregate_posterior
from vaetutor.rates import rate_distortion as rate_distortion
from vaetutor.rates import surgery as surgery

if TYPE_CHECKING:
    import pandas as pd

TIED = 1e-300  # weights closer than this, the largest being 1, would overflow the Pareto fit


@dataclass(frozen=True)
class LogEvidence:
    """Importance-sampled evidence: one row for each example."""

    value: Tensor
    """Estimates of log p(x), (N,), nats, float64. Each is low by about standard_error² / 2."""
    standard_error: Tensor
    """Monte Carlo standard errors of `value` by the delta method, (N,), nats; NaN for one draw."""
    effective_sample_size: Tensor
    """(Σ w)² / Σ w², (N,), from 1 to n_samples: how many draws carry the estimate."""
    n_samples: int
    """Number of draws for each example."""
    pareto_k: Tensor
    """Shape k-hat of the largest weights, (N,), by :func:`pareto_k`; NaN for fewer than 25 draws.
    Above 0.7 neither the value nor its standard error can be trusted."""

    def mean(self) -> tuple[float, float]:
        """Mean over the examples and its Monte Carlo standard error, in nats.

        The standard error is that of the draws, with the examples given. It does not cover the
        bias, nor how the mean would change with other examples.
        """
        n = len(self.value)
        return self.value.mean().item(), self.standard_error.square().sum().sqrt().item() / n


@torch.no_grad()
def log_evidence(
    model: Any,  # noqa: ANN401
    x: Tensor | Images,
    n_samples: int = 1000,
    chunk: int = 100,
    *,
    posterior: Posterior | None = None,
    batch_size: int = 100,
) -> LogEvidence:
    r"""Importance-sampled log-likelihood, in memory that does not grow with the number of draws.

    .. math:: \log \hat p(x) = \log \frac{1}{S} \sum_{s=1}^{S} w^{(s)}, \qquad
              w^{(s)} = \frac{p(x, z^{(s)})}{q(z^{(s)} \mid x)}.

    Sums of w and w² are kept as logarithms and updated chunk by chunk, and so are the largest
    weights. From the sums come the standard error
    :math:`\sqrt{(S \sum w^2 / (\sum w)^2 - 1) / (S - 1)}` and the effective sample size, from the
    largest weights k-hat. By Jensen's inequality the estimate is low on average, by about half its
    squared standard error; with an effective sample size of a few draws, or a k-hat above 0.7,
    neither figure can be trusted. Draws come from torch's global random state.

    Args:
        model: a VAE, or anything with ``log_joint`` together with `posterior`.
        x: examples (N, ...). An :class:`~vaetutor.data.Images` with dynamic binarisation is
            presented once, from torch's global random state.
        n_samples: number of draws S for each example.
        chunk: draws evaluated at once.
        posterior: the proposal; ``model.encoder`` if not given.
        batch_size: examples evaluated at once. Memory grows with chunk times batch_size.

    Returns:
        A :class:`LogEvidence`, on the device of the model.

    Raises:
        ValueError: for counts below 1, or an x that is empty, not finite or outside the support.

    Source: Burda et al. (2016), arXiv:1509.00519, section 5; Owen (2013), Monte Carlo theory,
    methods and examples, chapter 9 (effective sample size). Cost: S decoder passes per example.
    """
    for name, value in (("n_samples", n_samples), ("chunk", chunk), ("batch_size", batch_size)):
        _checks.count(name, value)
    encoder, shown = ready(model, x, posterior)
    with evaluating(model), evaluating(encoder):
        parts = [
            _streamed(model, encoder(b), b, n_samples, chunk) for b in shown.split(batch_size)
        ]
    log_sum, log_sum_of_squares = torch.cat([sums for sums, _ in parts], dim=1)
    ess = (2 * log_sum - log_sum_of_squares).exp()
    relative = n_samples / ess - 1
    error = (relative.clamp(min=0) / (n_samples - 1)).sqrt() if n_samples > 1 else ess * torch.nan
    k = torch.cat([_shape_of_tail(largest, n_samples) for _, largest in parts]).to(ess)
    return LogEvidence(log_sum - math.log(n_samples), error, ess, n_samples, k)


def _streamed(
    model: Any,  # noqa: ANN401
    q: td.Distribution,
    x: Tensor,
    n_samples: int,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Return log Σ w and log Σ w² as a (2, B) tensor, and the largest log w, ascending."""
    size = _tail_size(n_samples)
    total = largest = None
    for start in range(0, n_samples, chunk):
        log_w = log_weights(model, q, x, min(chunk, n_samples - start))
        log_w = log_w.cpu() if log_w.device.type == "mps" else log_w  # MPS lacks float64
        seen = log_w if largest is None else torch.cat([largest, log_w])
        largest = seen.sort(dim=0).values[-size - 1 :]
        wide = log_w.double()
        part = torch.stack([wide.logsumexp(0), (2 * wide).logsumexp(0)])
        total = part if total is None else torch.logaddexp(total, part)
    assert total is not None and largest is not None
    return total, largest


def summary(
    model: Any,  # noqa: ANN401
    x: Tensor | Images,
    n_samples: int = 1000,
    chunk: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """One row that says how good a model is on `x`, with the protocol beside the figures.

    Args:
        model: a VAE.
        x: examples (N, ...) or an :class:`~vaetutor.data.Images`. Dynamic binarisation is drawn
            once from `seed`.
        n_samples: draws of the importance-sampled estimate.
        chunk: draws evaluated at once.
        seed: seed of the draws. The global random state is left as it was.

    Returns:
        A table with the columns ``elbo``, ``reconstruction``, ``kl`` (means over x, nats per
        example, from up to 100 of the draws), ``log_evidence`` and ``standard_error`` (importance
        sampling, Monte Carlo error), ``draws``, ``effective_draws`` and ``pareto_k`` (medians of
        the effective sample size and of k-hat), ``examples`` and ``binarisation``.

    Raises:
        ValueError: as :func:`log_evidence`.
    """
    _checks.count("n_samples", n_samples)
    _checks.seed(seed)
    check_data(model, x)
    device = device_of(model)
    with seeded(seed, device):
        shown = present(x).to(device)
        terms = mean_terms(model, shown, min(n_samples, 100), batch_size=100)
        evidence = log_evidence(model, shown, n_samples, chunk)
    import pandas as pd

    value, error = evidence.mean()
    binarisation = x.binarize or "none" if isinstance(x, Images) else "as given"
    return pd.DataFrame(
        [
            {
                **terms,
                "log_evidence": value,
                "standard_error": error,
                "draws": n_samples,
                "effective_draws": evidence.effective_sample_size.median().item(),
                "pareto_k": evidence.pareto_k.median().item(),
                "examples": len(shown),
                "binarisation": binarisation,
            }
        ]
    )


def mean_terms(
    model: Any,  # noqa: ANN401
    x: Tensor | Images,
    n_samples: int = 1,
    batch_size: int = 1000,
) -> dict[str, float]:
    """Mean ELBO, reconstruction and KL of a data set, nats per example, KL weight 1.

    The means are over examples, not over batches, so a smaller last batch weighs what it should.

    Args:
        model: a VAE. It is evaluated in eval mode and left in the mode it had.
        x: examples (N, ...) or an :class:`~vaetutor.data.Images`.
        n_samples: draws of z for each example.
        batch_size: examples evaluated at once.

    Returns:
        ``{"elbo": ..., "reconstruction": ..., "kl": ...}``.

    Raises:
        ValueError: if x is empty, not finite or outside the support of the decoder.
    """
    found = rate_distortion(model, x, n_samples, batch_size=batch_size)
    reconstruction = -found.distortion.cpu().double().mean().item()
    kl = found.rate.cpu().double().mean().item()
    return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}


def pareto_k(log_w: Tensor) -> Tensor:
    r"""Pareto shape k-hat of importance weights: how heavy is their tail?

    The largest weights, :math:`3\sqrt{S}` of them, or S/5 up to S = 225, are fitted by a
    generalised Pareto distribution. Its shape k says which moments the weights have: those of
    order below 1/k. Below 0.5 their variance is finite. Up to :math:`1 - 1/\log_{10} S`, and 0.7
    at most (0.5 at S = 100), estimates smoothed by the fit are still useful in practice; above it
    q is too far from the posterior, or too narrow, for its draws to be corrected by weights. The
    estimate itself is noisy, and sees only the tail that was drawn.

    There is nothing to fit where the lower quarter of the tail ties with the weight below it. Then
    a few draws carry everything, beside which the others are all the same, zero perhaps, and
    k-hat is +inf, the worst there is; or else the tail stays within a factor of e, and k-hat is
    -inf. Weights of discrete latent variables tie too, and +inf may then be too harsh: look at
    the effective sample size.

    Args:
        log_w: log weights (S, B), as :func:`~vaetutor.log_weights` returns them; S at least 25. A
            weight may be zero, its logarithm -inf.

    Returns:
        Tensor (B,), float64, on the CPU; -inf where the weights of the tail are equal to rounding.

    Raises:
        ValueError: if log_w is not a floating-point (S, B) with S of at least 25, holds a NaN or
            +inf, or all weights of a column are zero.

    Source: Vehtari et al. (2024), arXiv:1507.02646; Yao et al. (2018), arXiv:1802.02538, for its
    use on variational inference. Computed by ``arviz_stats``.

    >>> log_w = -0.2 * torch.rand(10_000, 1).double().log()  # w = u^-0.2 has shape 0.2
    >>> bool((pareto_k(log_w) - 0.2).abs() < 0.3)
    True
    """
    with _checks.disabled():
        _checks.batch("log_w", log_w)  # but not its values
    if log_w.ndim != 2 or len(log_w) < 25:
        raise ValueError(
            f"log_w must have shape (S, B) with at least 25 draws S, found {tuple(log_w.shape)}"
        )
    highest = log_w.detach().amax(0)
    if not torch.isfinite(highest).all():
        raise ValueError(
            "log_w must be finite or -inf, and finite somewhere in each column, found columns "
            f"whose largest value is {highest[~torch.isfinite(highest)].unique().tolist()}"
        )
    largest = log_w.detach().sort(dim=0).values[-_tail_size(len(log_w)) - 1 :]
    return _shape_of_tail(largest, len(log_w))


def _tail_size(n: int) -> int:
    """How many of n weights the generalised Pareto distribution is fitted to."""
    return int(3 * n**0.5) if n > 225 else n // 5


def _shape_of_tail(largest: Tensor, n: int) -> Tensor:
    """Shape of the tail of n weights, from its logarithms (M + 1, B), ascending.

    The first row is the weight below the tail. NaN for fewer than 25 weights, and where the
    largest is not finite.
    """
    from arviz_stats.base.array import array_stats

    wide = largest.detach().cpu().double()
    if n < 25:
        return torch.full_like(wide[0], torch.nan)
    highest = wide[-1]
    tail = wide - highest
    spread = tail[-1] - tail[1]
    tied = tail[int((len(tail) - 1) / 4 + 0.5)].exp() - tail[0].exp() < TIED
    rounding = 10 * torch.finfo(largest.dtype).eps * highest.abs().clamp(min=1)
    k = torch.where(tied & (spread > 1), torch.inf, -torch.inf).double()
    k[~highest.isfinite()] = torch.nan
    fitted = ~tied & (spread > rounding)
    below = wide.new_full((n - len(tail), 1), -torch.inf)
    for column in fitted.nonzero().flatten().tolist():
        weights = torch.cat([below, tail[:, [column]]])
        k[column] = float(array_stats.psislw(-weights.numpy(), axis=0)[1].item())
    return k
