r"""Evaluation: how good is the model, and how far below it lies its bound?

The ELBO is not the likelihood. The likelihood of one x is an integral,

.. math:: p(x) = \int p(x, z)\,dz = \mathbb{E}_{q(z|x)}\!\left[\frac{p(x, z)}{q(z|x)}\right],

which importance sampling estimates with the encoder as proposal (chapter: the ELBO is not the
likelihood).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributions as td
from torch import Tensor, nn

from vaetutor import _checks
from vaetutor.data import Images
from vaetutor.model import Posterior
from vaetutor.objectives import elbo_terms, log_weights

if TYPE_CHECKING:
    import pandas as pd

CHECK_ROWS = 1000


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

    Sums of w and w² are kept as logarithms and updated chunk by chunk. From them come the standard
    error :math:`\sqrt{(S \sum w^2 / (\sum w)^2 - 1) / (S - 1)}` and the effective sample size. By
    Jensen's inequality the estimate is low on average, by about half its squared standard error;
    with an effective sample size of a few draws, neither figure can be trusted. Draws come from
    torch's global random state.

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
    check_data(model, x)
    encoder = getattr(model, "encoder", None) if posterior is None else posterior
    if encoder is None:
        raise ValueError(
            f"{type(model).__name__} has no encoder to propose draws: pass posterior=, a function "
            "from x to a distribution"
        )
    shown = present(x).to(device_of(model))
    with evaluating(model), evaluating(encoder):
        rows = [_streamed(model, encoder(b), b, n_samples, chunk) for b in shown.split(batch_size)]
    log_sum, log_sum_of_squares = torch.cat(rows, dim=1)
    ess = (2 * log_sum - log_sum_of_squares).exp()
    relative = n_samples / ess - 1
    error = (relative.clamp(min=0) / (n_samples - 1)).sqrt() if n_samples > 1 else ess * torch.nan
    return LogEvidence(log_sum - math.log(n_samples), error, ess, n_samples)


def _streamed(
    model: Any,  # noqa: ANN401
    q: td.Distribution,
    x: Tensor,
    n_samples: int,
    chunk: int,
) -> Tensor:
    """Return log Σ w and log Σ w² as a (2, B) tensor."""
    total: Tensor | None = None
    for start in range(0, n_samples, chunk):
        log_w = log_weights(model, q, x, min(chunk, n_samples - start))
        log_w = (log_w.cpu() if log_w.device.type == "mps" else log_w).double()  # MPS lacks it
        part = torch.stack([log_w.logsumexp(0), (2 * log_w).logsumexp(0)])
        total = part if total is None else torch.logaddexp(total, part)
    assert total is not None
    return total


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
        sampling, Monte Carlo error), ``draws``, ``effective_draws`` (median effective sample
        size), ``examples`` and ``binarisation``.

    Raises:
        ValueError: as :func:`log_evidence`.
    """
    _checks.count("n_samples", n_samples)
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
                "examples": len(shown),
                "binarisation": binarisation,
            }
        ]
    )


@torch.no_grad()
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
    check_data(model, x)
    shown = present(x).to(device_of(model))
    with evaluating(model):
        parts = [
            elbo_terms(model, model.encoder(b), b, n_samples) for b in shown.split(batch_size)
        ]
    reconstruction = (
        torch.cat([part.reconstruction for part in parts]).cpu().double().mean().item()
    )
    kl = torch.cat([part.kl for part in parts]).cpu().double().mean().item()
    return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}


def present(x: Tensor | Images, rows: Tensor | None = None) -> Tensor:
    """All or some rows of a data set as a model sees them: `Images` may binarise them anew."""
    if isinstance(x, Images):
        return x.present(rows)
    return x if rows is None else x[rows]


def device_of(model: Any) -> torch.device:  # noqa: ANN401
    """The device of the model's first parameter or buffer; the CPU if it has neither."""
    tensors = _tensors(model)
    return tensors[0].device if tensors else torch.device("cpu")


def _tensors(model: Any) -> list[Tensor]:  # noqa: ANN401
    return [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []


@torch.no_grad()
def check_data(model: Any, x: Tensor | Images, name: str = "x") -> None:  # noqa: ANN401
    """Raise a ValueError that names what is wrong unless every row of `x` fits the model.

    A model that offers its two factors is asked for the likelihood of all of x at a single z, so
    that the check decodes one row, however many there are.
    """
    if not _checks.enabled():
        return
    data = x.x if isinstance(x, Images) else x
    with _checks.disabled():  # type and size; the values are looked at below
        _checks.batch(name, data)
    dtypes = {t.dtype for t in _tensors(model) if t.is_floating_point()}
    if dtypes and data.dtype not in dtypes:
        expected = min(map(str, dtypes))
        raise ValueError(
            f"{name} must have the dtype of the model, {expected}, found {data.dtype}: "
            "convert the one with .to(...) or the other"
        )
    if not (hasattr(model, "prior") and hasattr(model, "log_likelihood")):
        return
    prior = model.prior()
    origin = torch.zeros((1, 1, *prior.event_shape), dtype=data.dtype, device=device_of(model))
    for rows in data.split(CHECK_ROWS):
        shown = (rows > 0).to(rows.dtype) if _is_dynamic(x) else rows
        try:
            with evaluating(model):
                model.log_likelihood(shown.to(origin.device), origin)
        except ValueError as error:
            raise ValueError(f"{name} does not fit the model: {error}") from error


def _is_dynamic(x: Tensor | Images) -> bool:
    return isinstance(x, Images) and x.binarize == "dynamic"


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the CPU and `device` inside the block, and put their random states back after it.

    ``torch.manual_seed`` would also seed every other device, and leave those changed.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        before = torch.mps.get_rng_state() if device.type == "mps" else None
        if before is not None:
            torch.mps.manual_seed(seed)
        try:
            yield
        finally:
            if before is not None:
                torch.mps.set_rng_state(before)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:  # noqa: ANN401
    """Put a module in eval mode inside the block, and each part back as it was after it."""
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    before = [part.training for part in parts]
    if parts:
        model.eval()
    try:
        yield
    finally:
        for part, training in zip(parts, before, strict=True):
            part.training = training
