r"""Inference for one x at a time, and how far an encoder falls short of it.

For each x the best member of a variational family solves its own optimisation problem,

.. math:: \lambda^*(x) = \arg\max_\lambda\ \mathcal{L}(x;\ \lambda), \qquad
          \mathcal{L}(x;\ \lambda) = \mathbb{E}_{q_\lambda}[\log p(x, z) - \log q_\lambda(z)].

An encoder replaces the search by a function, :math:`\lambda = f_\phi(x)`. What is lost has two
parts: the family does not hold the posterior, and the encoder does not hit the best member
(chapter: amortisation).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributions as td
from torch import Tensor, nn

from vaetutor import _checks
from vaetutor._run import check_data, device_of, evaluating, seeded
from vaetutor.data import Images
from vaetutor.model import Family, SequenceModel, TwoTermModel
from vaetutor.objectives import ElboTerms, _closed_form_kl, elbo, elbo_terms, log_weights

if TYPE_CHECKING:
    import pandas as pd

    from vaetutor.evaluate import LogEvidence

Objective = Callable[[Any, td.Distribution, Tensor, int], "Tensor | ElboTerms"]
"""``(model, q, x, n_samples)`` to a bound (B,), or to its two terms, in nats."""

WINDOW = 50
DRAWS = 128
STAGES = 4
DECAY = 4
BETA_1, BETA_2, EPSILON = 0.9, 0.99, 1e-8


@dataclass(frozen=True)
class Refined:
    """What :func:`refine` found: one row for each example."""

    lam: Tensor
    """Parameters λ, (B, P)."""
    q: td.Distribution
    """The distribution with these parameters, batch shape (B,)."""
    steps: int
    """Gradient steps taken, at most the number allowed."""
    converged: Tensor
    """Whether the stopping rule was met, (B,), boolean: the bound had levelled off, which need not
    be at the optimum, see :func:`refine`."""
    trace: Tensor
    """Bounds after 0, 50, 100, ... and `steps` steps, (n, B), nats, all by the same draws."""


def refine(
    model: Any,  # noqa: ANN401
    family: Family,
    x: Tensor,
    start: Tensor | None = None,
    steps: int = 1000,
    *,
    n_samples: int = 16,
    learning_rate: float = 0.05,
    objective: Objective = elbo_terms,
    tolerance: float = 0.005,
    seed: int = 0,
) -> Refined:
    r"""Maximise the bound over λ for each x by itself, the model held fixed.

    .. math:: \lambda_i \leftarrow \lambda_i + \eta_i\,
              \operatorname{Adam}(\nabla_{\lambda_i} \mathcal{L}(x_i;\ \lambda_i)).

    Every 50 steps, and at the end, the bound is measured with about 128 draws, the same ones each
    time, so that a small change shows. A row whose bound gained less than `tolerance` over 50
    steps has levelled off, and its learning rate is divided by 4. After the fourth time, at
    :math:`\eta / 64`, it has converged and rests; when all rows rest the search ends. A row that
    ends below its start, by these draws, keeps its start. Rows share the noise and nothing else.

    The defaults suit posteriors whose scales are not far below 1, the scale of the start. Where
    they are as small as the steps η or smaller, noise looks like a level bound and the search
    stops early: lower the learning rate and raise n_samples, and see whether the bound rises.

    The search climbs to the optimum that its start leads to. Where the posterior may have several
    modes, refine from several starts and keep the best.

    Args:
        model: anything the objective accepts; it is used in eval mode, and neither its parameters
            nor their gradients change.
        family: maps λ (B, P) to a distribution with batch shape (B,).
        x: observations (B, ...), as the model sees them.
        start: λ at the start, (B, P): the output of an encoder's network, or None for zeros.
        steps: the most steps to take; 0 returns the start.
        n_samples: draws of z for each example in a step.
        learning_rate: step size η of Adam at the start, the same for all rows.
        objective: the bound to maximise, with the estimator of its gradient.
        tolerance: improvement that counts, nats.
        seed: seed of the draws. The global random state is left as it was.

    Returns:
        The :class:`Refined` rows.

    Raises:
        ValueError: for a number out of range, an x that is empty, not finite or outside the
            support, a start of another shape or dtype, an objective that does not give one value
            an example, or a start with a bound that is not finite.

    Source: Kim et al. (2018), arXiv:1802.02550, and Cremer et al. (2018), arXiv:1801.03558, refine
    an encoder's output like this. Cost: each step is a pass through the decoder and back for
    n_samples draws of all rows; 50 steps are followed by 128 draws without gradient.

    >>> from vaetutor import ConjugateNormal, DiagonalNormal
    >>> found = refine(ConjugateNormal(), DiagonalNormal(1), torch.tensor([[1.0]]))
    >>> found.q.mean.round(decimals=1), found.converged
    (tensor([[0.5000]]), tensor([True]))
    """
    _check_options(steps, n_samples, learning_rate, tolerance, seed)
    _check_objective(model, objective)
    x = _check_rows(model, x)
    lam = _check_start(family, x, start)
    with (
        torch.inference_mode(False),  # gradients are needed, whatever the caller is doing
        seeded(seed, x.device),
        evaluating(model),
        evaluating(family),
    ):
        x, lam = x.clone(), lam.clone()
        bound = _Bound(model, family, x, objective, n_samples, seed)
        bound.gradient(lam)  # values are checked here, not in every step
        with _checks.disabled():
            lam, taken, converged, trace = _search(bound, lam, steps, learning_rate, tolerance)
        return Refined(lam, family(lam), taken, converged, trace)


@dataclass(frozen=True)
class _Bound:
    """The bound as a function of λ alone."""

    model: Any
    family: Family
    x: Tensor
    objective: Objective
    n_samples: int
    seed: int

    def __call__(self, lam: Tensor) -> Tensor:
        value = self.objective(self.model, self.family(lam), self.x, self.n_samples)
        value = value.elbo if isinstance(value, ElboTerms) else value
        _checks.shape("the value of the objective", value, (len(self.x),))
        return value

    def gradient(self, lam: Tensor) -> Tensor:
        with torch.enable_grad():
            free = lam.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self(free).sum(), free)
        return gradient

    @torch.no_grad()
    def measured(self, lam: Tensor) -> Tensor:
        """The mean of about 128 draws: the same ones for every λ, but not those of the steps."""
        repeats = -(-DRAWS // self.n_samples)
        with seeded(self.seed + 1, self.x.device):
            return torch.stack([self(lam) for _ in range(repeats)]).mean(0)


def _search(
    bound: _Bound, start: Tensor, steps: int, learning_rate: float, tolerance: float
) -> tuple[Tensor, int, Tensor, Tensor]:
    """Return λ, the steps taken, whether each row has converged, and the trace."""
    trace = [bound.measured(start)]
    if not trace[0].isfinite().all():
        bad = int((~trace[0].isfinite()).sum())
        raise ValueError(f"start must have a finite bound, found {bad} rows where it has not")
    lam, taken, adam = start, 0, _Adam(start)
    stage = torch.zeros_like(trace[0], dtype=torch.int64)  # how often each row has levelled off
    while taken < steps and bool((stage < STAGES).any()):
        rate = torch.where(stage < STAGES, learning_rate / DECAY**stage, 0).unsqueeze(-1)
        window = min(WINDOW, steps - taken)
        for _ in range(window):
            lam = adam.step(lam, bound.gradient(lam), rate)
        taken += window
        trace.append(bound.measured(lam))
        if window == WINDOW:
            stage = stage + ((trace[-1] - trace[-2] < tolerance) & (stage < STAGES))
    lam = torch.where((trace[-1] > trace[0]).unsqueeze(-1), lam, start)
    return lam, taken, stage == STAGES, torch.stack(trace)


class _Adam:
    """Adam's ascent with a learning rate for each row; torch's has one for all of a tensor."""

    def __init__(self, lam: Tensor) -> None:
        self.mean, self.square, self.time = torch.zeros_like(lam), torch.zeros_like(lam), 0

    def step(self, lam: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
        self.time += 1
        self.mean = torch.lerp(gradient, self.mean, BETA_1)
        self.square = torch.lerp(gradient.square(), self.square, BETA_2)
        mean = self.mean / (1 - BETA_1**self.time)
        square = self.square / (1 - BETA_2**self.time)
        moved = lam + rate * mean / (square.sqrt() + EPSILON)
        return torch.where(rate > 0, moved, lam)


def _check_options(
    steps: int, n_samples: int, learning_rate: float, tolerance: float, seed: int
) -> None:
    _checks.count("steps", steps, least=0)
    _checks.count("n_samples", n_samples)
    _checks.seed(seed)
    _checks.positive_number("learning_rate", learning_rate)
    _checks.positive_number("tolerance", tolerance)


def _check_objective(model: Any, objective: Objective) -> None:  # noqa: ANN401
    if not callable(objective):
        raise ValueError(f"objective must be a function, found {objective!r}")
    if objective is elbo_terms and not isinstance(model, TwoTermModel | SequenceModel):
        raise ValueError(
            "objective=elbo_terms needs a model with log_likelihood and prior, or log_prior and "
            f"check for prior, which {type(model).__name__} has not: use objective=elbo"
        )


def _check_rows(model: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    """Return x on the device of the model."""
    if isinstance(x, Images):
        raise ValueError(
            "x must be a tensor, found Images, which may be binarised anew whenever they are "
            "presented: present them once, x = images.present()"
        )
    check_data(model, x)
    return x.detach().to(device_of(model))


def _check_start(family: Family, x: Tensor, start: Tensor | None, name: str = "start") -> Tensor:
    """Return a copy of the start, or zeros, (B, P), beside x."""
    shape = (len(x), family.n_parameters)
    if start is None:
        return x.new_zeros(shape)
    if not isinstance(start, Tensor) or tuple(start.shape) != shape or start.dtype != x.dtype:
        found = (
            f"shape {tuple(start.shape)} and {start.dtype}"
            if isinstance(start, Tensor)
            else type(start).__name__
        )
        raise ValueError(
            f"{name} must be a tensor of shape {shape} and {x.dtype}, one row of parameters for "
            f"each row of x, found {found}"
        )
    _checks.finite(name, start)
    return start.detach().to(x.device, copy=True)


@dataclass(frozen=True)
class InferenceGaps:
    """Where the bound of an encoder is lost: one row for each example, nats, float64."""

    log_evidence: Tensor
    """log p(x), the reference, (B,)."""
    elbo_optimal: Tensor
    """ELBO of the best member of the family, (B,)."""
    elbo: Tensor
    """ELBO of the encoder, (B,)."""
    standard_error: dict[str, Tensor]
    """Monte Carlo standard errors (B,) of each of the columns of `frame`, by name; zeros where a
    figure is exact."""

    @property
    def approximation(self) -> Tensor:
        """Approximation gap log p(x) - ELBO(q*), (B,): what the family costs."""
        return self.log_evidence - self.elbo_optimal

    @property
    def amortization(self) -> Tensor:
        """Amortisation gap ELBO(q*) - ELBO(q_φ), (B,): what the encoder costs on top."""
        return self.elbo_optimal - self.elbo

    @property
    def total(self) -> Tensor:
        """Their sum log p(x) - ELBO(q_φ), (B,), which is KL(q_φ || p(z|x))."""
        return self.log_evidence - self.elbo

    @property
    def frame(self) -> pd.DataFrame:
        """Means over the examples, nats, with two standard errors.

        ``error_draws`` is that of the draws with the examples given, ``error_examples`` the one
        with which the mean of these examples speaks for others (NaN for a single one).
        """
        import pandas as pd

        n = len(self.elbo)
        rows = {
            name: {
                "mean": getattr(self, name).mean().item(),
                "error_draws": error.square().sum().sqrt().item() / n,
                "error_examples": getattr(self, name).std().item() / n**0.5 if n > 1 else math.nan,
            }
            for name, error in self.standard_error.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index")


@torch.no_grad()
def inference_gaps(
    model: Any,  # noqa: ANN401
    encoder: nn.Module,
    x: Tensor,
    reference: Tensor | LogEvidence | None = None,
    *,
    optimal: Tensor | td.Distribution | None = None,
    n_samples: int = 1000,
    chunk: int = 100,
    seed: int = 0,
) -> InferenceGaps:
    r"""Split what an encoder loses into an approximation gap and an amortisation gap.

    .. math:: \log p(x) - \mathcal{L}(q_\phi) =
              \underbrace{\log p(x) - \mathcal{L}(q_{\lambda^*})}_\text{approximation} +
              \underbrace{\mathcal{L}(q_{\lambda^*}) - \mathcal{L}(q_\phi)}_\text{amortisation}.

    Both bounds are means of log weights, drawn with the same noise, so that the difference of two
    close ones is known better than either. Where the model has ``posterior`` and ``log_evidence``
    and the divergence is in closed form, no draws are needed: a bound is the evidence less the
    divergence; a `reference` would then only get in their way.

    A :math:`\lambda^*` that is not quite optimal moves the two gaps by the same amount, the
    approximation gap up and the amortisation gap down. The default, a search from the encoder's
    answer, finds the optimum that this answer leads to. Where the family is rich, a mixture for
    instance whose encoder uses a single component, that may be far from the best: search from
    several starts and pass the result as `optimal`.

    Args:
        model: anything with ``log_joint``.
        encoder: x to q; the amortised posterior.
        x: observations (B, ...), as the model sees them.
        reference: log p(x), (B,), or a :class:`~vaetutor.evaluate.LogEvidence`; None asks the
            model for ``log_evidence(x)``.
        optimal: the best λ (B, P) of the encoder's family, or the best distribution; None finds it
            with :func:`refine` from the output of the encoder's network.
        n_samples: draws for each example and bound, at least 2.
        chunk: draws evaluated at once.
        seed: seed of the draws. The global random state is left as it was.

    Returns:
        The :class:`InferenceGaps`.

    Raises:
        ValueError: as :func:`refine`; or if there is no reference, it does not hold one finite
            value an example, or the family is needed and `encoder` is not an ``nn.Sequential``
            that ends in one.

    Source: Cremer et al. (2018), arXiv:1801.03558, equations 4 to 6.

    >>> from vaetutor import ConjugateNormal, DiagonalNormal
    >>> encoder = nn.Sequential(nn.Linear(1, 2), DiagonalNormal(1))
    >>> x = torch.tensor([[1.5], [0.0]])
    >>> optimal = ConjugateNormal().posterior(x)
    >>> gaps = inference_gaps(ConjugateNormal(), encoder, x, optimal=optimal)
    >>> gaps.approximation, bool((gaps.amortization > 0).all())
    (tensor([0., 0.], dtype=torch.float64), True)
    """
    for name, value, least in (
        ("n_samples", n_samples, 2),
        ("chunk", chunk, 1),
    ):
        _checks.count(name, value, least)
    _checks.seed(seed)
    x = _check_rows(model, x)
    evidence, evidence_error = _evidence(model, x, reference)
    with evaluating(model), evaluating(encoder):
        best = _optimal(model, encoder, x, optimal, seed)
        log_w, exact = _bounds(model, (best, encoder(x)), x, n_samples, chunk, seed)
    error = torch.zeros_like(evidence).expand(3, -1)
    if not exact:  # of the two bounds and of their difference
        error = torch.stack([*log_w, log_w[0] - log_w[1]]).std(1) / n_samples**0.5
    errors = {
        "log_evidence": evidence_error,
        "elbo_optimal": error[0],
        "elbo": error[1],
        "approximation": torch.hypot(evidence_error, error[0]),
        "amortization": error[2],
        "total": torch.hypot(evidence_error, error[1]),
    }
    return InferenceGaps(evidence, log_w[0].mean(0), log_w[1].mean(0), errors)


def _evidence(
    model: Any,  # noqa: ANN401
    x: Tensor,
    reference: Tensor | LogEvidence | None,
) -> tuple[Tensor, Tensor]:
    """Return log p(x) and its standard error, (B,) each, in float64."""
    if reference is None:
        if not hasattr(model, "log_evidence"):
            raise ValueError(
                f"{type(model).__name__} has no log_evidence: pass reference=, for instance "
                "evaluate.log_evidence(model, x)"
            )
        reference = model.log_evidence(x)
    value = getattr(reference, "value", reference)
    if not isinstance(value, Tensor) or tuple(value.shape) != (len(x),):
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"reference must be a tensor of shape ({len(x)},), one log p(x) for each row of x, or "
            f"a LogEvidence of these rows, found {found}"
        )
    _checks.finite("reference", value)
    error = getattr(reference, "standard_error", torch.zeros_like(value))
    return _wide(value), _wide(error)


def _optimal(
    model: Any,  # noqa: ANN401
    encoder: nn.Module,
    x: Tensor,
    optimal: Tensor | td.Distribution | None,
    seed: int,
) -> td.Distribution:
    if isinstance(optimal, td.Distribution):
        return optimal
    if not (isinstance(encoder, nn.Sequential) and isinstance(encoder[-1], Family)):
        raise ValueError(
            "encoder must be an nn.Sequential that ends in a family, found "
            f"{type(encoder).__name__}: build one, or pass optimal= as a distribution"
        )
    if optimal is not None:
        return encoder[-1](_check_start(encoder[-1], x, optimal, "optimal"))
    objective = elbo_terms if isinstance(model, TwoTermModel | SequenceModel) else elbo
    return refine(model, encoder[-1], x, encoder[:-1](x), objective=objective, seed=seed).q


def _bounds(
    model: Any,  # noqa: ANN401
    pair: tuple[td.Distribution, td.Distribution],
    x: Tensor,
    n_samples: int,
    chunk: int,
    seed: int,
) -> tuple[Tensor, bool]:
    """Return both ELBOs exactly as (2, 1, B) and True, or their draws (2, S, B) and False."""
    if hasattr(model, "posterior") and hasattr(model, "log_evidence"):
        divergences = [_closed_form_kl(q, model.posterior(x)) for q in pair]
        exact = [_wide(model.log_evidence(x) - d) for d in divergences if d is not None]
        if len(exact) == 2:
            return torch.stack(exact).unsqueeze(1), True
    sizes = [min(chunk, n_samples - start) for start in range(0, n_samples, chunk)]
    rows = []
    for q in pair:
        with seeded(seed, x.device):  # the same noise for both
            rows.append(torch.cat([_wide(log_weights(model, q, x, size)) for size in sizes]))
    return torch.stack(rows), False


def _wide(value: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return (value.cpu() if value.device.type == "mps" else value).double()
