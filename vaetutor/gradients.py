r"""Gradients of expectations, when the distribution depends on the parameter.

The problem is

.. math:: \nabla_\lambda\, \mathbb{E}_{q_\lambda(z)}[f(z)],

where the draws of z themselves move with :math:`\lambda`. Two identities turn it into an
expectation that draws can estimate (chapter: reparameterisation):

.. math:: \underbrace{\mathbb{E}_{q_\lambda}[f(z)\, \nabla_\lambda \log q_\lambda(z)]}_{\text{score
          function}} \qquad\text{and, with } z = g(\lambda, \varepsilon),\qquad
          \underbrace{\mathbb{E}_{\varepsilon}[\nabla_\lambda f(g(\lambda,
          \varepsilon))]}_{\text{pathwise}} .

Every estimator here has one signature, ``estimator(target, q, x, n_samples)``, and returns values
(B,). The `target` is a latent variable model, whose integrand is
:math:`f = \log w = \log p(x, z) - \log q(z)` and whose expectation is the ELBO, or a plain
function f of z, (S, B, D) to (S, B), that needs no x. **The value is always the mean of f over the
draws, each by its share; an estimator changes only the gradient** that autograd finds behind it.
So each of them is an ``objective`` for :func:`vaetutor.fit`, with :func:`functools.partial` for
its options.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor

from vaetutor import _checks
from vaetutor.model import LatentVariableModel
from vaetutor.objectives import _draw_z, draw

Integrand = LatentVariableModel | Callable[[Tensor], Tensor]
"""A model with ``log_joint(x, z)``, or a function of z, (S, B, D) to (S, B)."""

Baseline = Callable[[Tensor], Tensor] | str | None
"""None, ``"leave_one_out"``, or a function of x, (B, ...) to (B,) or (B, 1)."""


def pathwise(
    target: Integrand, q: td.Distribution, x: Tensor | None = None, n_samples: int = 1
) -> Tensor:
    r"""Reparameterised gradient: differentiate through the draw.

    .. math:: \nabla_\lambda \mathbb{E}_{q_\lambda}[f(z)] \approx \frac{1}{S} \sum_s
              \nabla_\lambda f\!\left(g(\lambda, \varepsilon^{(s)})\right), \qquad
              z = g(\lambda, \varepsilon) \sim q_\lambda .

    It is unbiased where f is continuous and piecewise differentiable in z, with a derivative that
    may be taken inside the integral. At a jump of f it is wrong, silently. On a model it is
    :func:`vaetutor.elbo`, the total derivative with the score of q in it.

    Args:
        target: a model with ``log_joint(x, z)``, or a function of z, (S, B, D) to (S, B).
        q: distribution with batch shape (B,) and reparameterised draws, or a mixture with draws
            from every component.
        x: observations (B, ...); not used by a function.
        n_samples: number of draws S.

    Returns:
        Tensor (B,), the mean of log w or f over the draws; nats for a model.

    Raises:
        ValueError: if the draws carry no gradient, as :func:`vaetutor.log_weights`, or if a
            function does not give one value for each draw and row.

    Source: Kingma and Welling (2014), arXiv:1312.6114, section 2.4; Rezende et al. (2014),
    arXiv:1401.4082. Cost: one pass of the target.

    >>> mean = torch.tensor([[0.3]], requires_grad=True)
    >>> q = td.Independent(td.Normal(mean, 1.0), 1)
    >>> pathwise(lambda z: 5 * z.sum(-1), q).backward()
    >>> mean.grad
    tensor([[5.]])
    """
    draws = draw(q, n_samples)
    return draws.mean(_integrand(target, x, draws.z, draws.log_q))


def score_function(
    target: Integrand,
    q: td.Distribution,
    x: Tensor | None = None,
    n_samples: int = 1,
    baseline: Baseline = None,
) -> Tensor:
    r"""Score-function gradient (REINFORCE): differentiate the density, not the draw.

    .. math:: \nabla_\lambda \mathbb{E}_{q_\lambda}[f(z)] \approx \frac{1}{S} \sum_s
              \left(f(z^{(s)}) - b_s\right) \nabla_\lambda \log q_\lambda(z^{(s)}), \qquad
              z^{(s)} \sim q_\lambda .

    It asks nothing of f and works for discrete z; the support of q must not move with λ. A
    baseline b that does not depend on its own draw leaves the mean as it is, because the score has
    mean zero. On a model, f = log w is held fixed in this product, and its own derivative
    :math:`-\nabla_\lambda \log q_\lambda`, also of mean zero, is left out; the parameters of the
    model get the gradient of :math:`\log p_\theta(x, z)`.

    Args:
        target, x, n_samples: as :func:`pathwise`.
        q: any distribution with batch shape (B,); draws need no gradient.
        baseline: None for 0; ``"leave_one_out"`` for the mean of f over the other draws of the
            same row, which needs two draws or more; or a function of x, (B, ...) to (B,) or
            (B, 1). A function with parameters is trained by the same backward pass, towards the
            mean of f, on :math:`-\frac{1}{2}(f - b(x))^2`; for :func:`vaetutor.fit` to move them,
            it must be part of the model, for instance ``vae.baseline = mlp(784, 50, 1)``.

    Returns:
        Tensor (B,), the mean of log w or f over the draws, whatever the baseline.

    Raises:
        ValueError: as :func:`pathwise`, except that draws without gradient are what it is for;
            for an unknown baseline, one of another shape, or leave-one-out with a single draw.

    Source: Williams (1992); Ranganath et al. (2014), arXiv:1401.0118, equation 2;
    leave-one-out: Mnih and Rezende (2016), arXiv:1602.06725; Kool et al. (2019); learned:
    Mnih and Gregor (2014), arXiv:1402.0030. Cost: one pass of the target, none through it for q.

    >>> logits = torch.zeros(1, 3, requires_grad=True)
    >>> q = td.Independent(td.Bernoulli(logits=logits), 1)
    >>> value = score_function(lambda z: z.sum(-1), q, n_samples=4, baseline="leave_one_out")
    >>> value.backward()
    >>> logits.grad.shape
    torch.Size([1, 3])
    """
    with torch.no_grad():
        z = _draw_z(q, n_samples).detach()  # a new tensor: no transform has its inverse cached
    log_q = q.log_prob(z)
    f = _integrand(target, x, z, log_q.detach())
    b = _baseline(baseline, f.detach(), x)
    surrogate = f + (f - b).detach() * log_q
    if b.requires_grad:
        surrogate = surrogate - 0.5 * (f.detach() - b).square()
    return _with_gradient(f, surrogate).mean(0)


def sticking_the_landing(
    target: LatentVariableModel, q: td.Distribution, x: Tensor | None = None, n_samples: int = 1
) -> Tensor:
    r"""Pathwise gradient of the ELBO without its score term.

    .. math:: \nabla_\lambda \mathrm{ELBO} \approx \frac{1}{S} \sum_s
              \frac{\partial \log w}{\partial z}\Big|_{z^{(s)}}
              \frac{\partial g(\lambda, \varepsilon^{(s)})}{\partial \lambda} .

    The total derivative that :func:`pathwise` takes holds one term more, minus the score
    :math:`\nabla_\lambda \log q_\lambda(z)` with z held fixed. Its mean is zero; its variance is
    not, even where q is the exact posterior. Without it the gradient there is zero for every
    draw. Far from the optimum it can have the larger variance of the two.

    Args:
        target: a model with ``log_joint(x, z)``.
        q, x, n_samples: as :func:`pathwise`.

    Returns:
        Tensor (B,), the same ELBO estimates as :func:`pathwise`, nats.

    Raises:
        ValueError: as :func:`pathwise`, or for a function: it has no log q to differentiate.

    Source: Roeder et al. (2017), arXiv:1703.09194. Cost: one pass of the model, and
    the density of q twice.
    """
    _require_model(target)
    draws = draw(q, n_samples)
    log_w = _integrand(target, x, draws.z, draws.log_q)
    return draws.mean(_with_gradient(log_w, log_w + q.log_prob(draws.z.detach())))


def doubly_reparameterised(
    target: LatentVariableModel, q: td.Distribution, x: Tensor | None = None, n_samples: int = 1
) -> Tensor:
    r"""Pathwise gradient of the importance-weighted bound, reparameterised twice (DReG).

    .. math:: \nabla_\lambda \mathcal{L}_K \approx \sum_{k=1}^{K} \tilde w_k^2\,
              \frac{\partial \log w}{\partial z}\Big|_{z^{(k)}}
              \frac{\partial g(\lambda, \varepsilon^{(k)})}{\partial \lambda}, \qquad
              \tilde w_k = \frac{w^{(k)}}{\sum_j w^{(j)}} .

    The total derivative of :func:`vaetutor.iwae` holds the scores of q, with weights that depend
    on their own draws, so that their mean is not zero. Reparameterised once more that mean is a
    path as well, and the weights appear squared. The parameters of the model get the plain
    gradient, :math:`\sum_k \tilde w_k \nabla_\theta \log p_\theta(x, z^{(k)})`. For K = 1 this
    is :func:`sticking_the_landing`; with :math:`\tilde w_k` in place of its square, what would be
    sticking the landing for K > 1, it is biased.

    Args:
        target: a model with ``log_joint(x, z)``.
        q: distribution with batch shape (B,) and independent reparameterised draws; a mixture
            must draw by implicit gradients.
        x: as :func:`pathwise`.
        n_samples: number of draws K inside the logarithm.

    Returns:
        Tensor (B,), the same estimates as :func:`vaetutor.iwae`, nats.

    Raises:
        ValueError: as :func:`sticking_the_landing`, or for draws from every component of a
            mixture: the identity holds for draws from the density that stands in the weight.

    Source: Tucker et al. (2019), arXiv:1810.04152, equation 8. Cost: one pass of the model, and
    the density of q twice.

    >>> from vaetutor import ConjugateNormal
    >>> _ = torch.manual_seed(0)
    >>> model, x = ConjugateNormal(), torch.tensor([[1.5]])
    >>> mean = torch.tensor([[0.7]], requires_grad=True)
    >>> q = td.Independent(td.Normal(mean, 0.8), 1)
    >>> bound = doubly_reparameterised(model, q, x, n_samples=100)
    >>> bound.backward()
    >>> bool(bound > model.log_evidence(x) - 0.1), mean.grad.shape
    (True, torch.Size([1, 1]))
    """
    _require_model(target)
    draws = draw(q, n_samples)
    if draws.log_share is not None:
        raise ValueError(
            "q must give independent draws, found draws from every component of a mixture: take "
            'MixtureNormal(dim, components, gradient="implicit")'
        )
    z = draws.z.view_as(draws.z)  # a node of its own, which leads to log p alone
    log_joint = _log_joint(target, x, z)
    log_w = (log_joint - draws.log_q).detach()
    weight = log_w.softmax(0)
    if z.requires_grad:
        z.register_hook(lambda gradient: weight.unsqueeze(-1) * gradient)
    path = q.log_prob(draws.z.detach()) - draws.log_q
    surrogate = weight * log_joint + weight.square() * path
    return draws.log_mean(log_w) + _gradient_alone(surrogate).sum(0)


for _estimator in (pathwise, score_function, sticking_the_landing):
    _estimator.bound = "elbo"  # type: ignore[attr-defined]  # what a training history calls it
doubly_reparameterised.bound = "iwae"  # type: ignore[attr-defined]


def _require_model(target: LatentVariableModel) -> None:
    if not isinstance(target, LatentVariableModel):
        raise ValueError(
            f"target must be a model with log_joint(x, z), found {type(target).__name__}: a plain "
            "function has no log q in it, use pathwise"
        )


def _integrand(target: Integrand, x: Tensor | None, z: Tensor, log_q: Tensor) -> Tensor:
    """log p(x, z) - log q(z) of a model, or f(z), shape (S, B)."""
    if not isinstance(target, LatentVariableModel):
        if not callable(target):
            raise ValueError(
                "target must be a model with log_joint(x, z) or a function of z, found "
                f"{type(target).__name__}"
            )
        return _tensor("f(z)", target(z), z.shape[:2])
    return _log_joint(target, x, z) - log_q


def _log_joint(target: LatentVariableModel, x: Tensor | None, z: Tensor) -> Tensor:
    """log p(x, z), shape (S, B)."""
    if x is None:
        raise ValueError(
            "x must hold the observations of the model, found None: a density without any, such "
            "as those in vaetutor.targets, takes torch.zeros(B, 1)"
        )
    _checks.batch("x", x)
    _checks.draws(x, z)
    return _tensor("log_joint(x, z)", target.log_joint(x, z), z.shape[:2])


def _baseline(baseline: Baseline, f: Tensor, x: Tensor | None) -> Tensor:
    """What to subtract from f (S, B): 0, the mean of the other draws, or b(x)."""
    if baseline is None:
        return torch.zeros_like(f)
    if baseline == "leave_one_out":
        if len(f) < 2:
            raise ValueError(
                "n_samples must be at least 2 for the leave-one-out baseline, found 1: it is the "
                "mean over the other draws"
            )
        return (f.sum(0) - f) / (len(f) - 1)
    if isinstance(baseline, str) or not callable(baseline):
        raise ValueError(
            f'baseline must be None, "leave_one_out" or a function of x, found {baseline!r}'
        )
    if x is None:
        raise ValueError("x must be given for a baseline that is a function of x, found None")
    b = baseline(x)
    if isinstance(b, Tensor) and b.ndim == 2:
        b = b.squeeze(-1)
    return _tensor("baseline(x)", b, f.shape[1:])


def _tensor(name: str, value: Any, shape: tuple[int, ...]) -> Tensor:  # noqa: ANN401
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, found {type(value).__name__}")
    _checks.shape(name, value, shape)
    return value


def _with_gradient(value: Tensor, surrogate: Tensor) -> Tensor:
    """The `value`, also where it is infinite, with the gradient of the finite `surrogate`."""
    return value.detach() + _gradient_alone(surrogate)


def _gradient_alone(surrogate: Tensor) -> Tensor:
    """Zeros with the gradient of the `surrogate`, where that is finite."""
    finite = torch.isfinite(surrogate.detach())
    return torch.where(finite, surrogate - surrogate.detach(), 0.0)


@dataclass(frozen=True)
class GradientMoments:
    """Mean and variance of a gradient estimator, one entry for each of the P parameters."""

    mean: Tensor
    """Mean over the replicates, (P,)."""
    variance: Tensor
    """Variance of a single replicate, (P,), with R - 1 in the denominator."""
    standard_error: Tensor
    """Standard error of `mean`, (P,)."""
    variance_standard_error: Tensor
    """Standard error of `variance`, (P,), from the fourth central moment."""
    replicates: int
    """Number of independent gradients R."""


def gradient_moments(
    estimator: Callable[..., Tensor],
    target: Any,  # noqa: ANN401  (whatever the estimator takes)
    family: Callable[[Tensor], td.Distribution],
    lam: Tensor,
    x: Tensor | None = None,
    n_samples: int = 1,
    replicates: int = 10_000,
    chunk: int = 10_000,
) -> GradientMoments:
    r"""Mean and variance of the gradient in λ, over many independent estimates of it.

    The replicates are rows of a batch: λ is repeated R times and every row gets its own draws, so
    that one backward pass returns R gradients. With m₄ the fourth central moment, the standard
    error of the variance v is :math:`\sqrt{(m_4 - v^2 (R - 3) / (R - 1)) / R}`. Draws come from
    torch's global random state; no ``.grad`` is touched.

    Args:
        estimator: ``(target, q, x, n_samples)`` to values (B,). Neither it nor the family may mix
            rows, as batch normalisation does: rows would not be replicates any more.
        target: a model or a function, as the estimator takes it.
        family: maps λ (R, P) to a distribution with batch shape (R,).
        lam: λ, shape (P,).
        x: one observation, shape (1, ...), for a model.
        n_samples: draws S in each replicate.
        replicates: number of gradients R, at least 2.
        chunk: replicates evaluated at once; memory grows with it.

    Returns:
        A :class:`GradientMoments`, in the dtype and on the device of λ.

    Raises:
        ValueError: for a λ that is not a vector, an x that is not one row, counts too small, or
            an estimator that does not give one value a row with a gradient in λ.

    Source of the standard error: Cramér (1946), Mathematical methods of statistics, chapter 27.

    >>> _ = torch.manual_seed(0)
    >>> family = lambda lam: td.Independent(td.Normal(lam, 1.0), 1)
    >>> found = gradient_moments(pathwise, lambda z: 5 * z.sum(-1), family, torch.zeros(1))
    >>> found.mean, found.variance
    (tensor([5.]), tensor([0.]))
    """
    _checks.count("replicates", replicates, least=2)
    _checks.count("chunk", chunk)
    if not isinstance(lam, Tensor) or lam.ndim != 1 or not lam.is_floating_point():
        found = tuple(lam.shape) if isinstance(lam, Tensor) else type(lam).__name__
        raise ValueError(f"lam must be a floating-point tensor of shape (P,), found {found}")
    if x is not None and not (isinstance(x, Tensor) and x.ndim >= 1 and len(x) == 1):
        found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be one observation, shape (1, ...), found {found}")
    parts: list[Tensor] = []
    for start in range(0, replicates, chunk):
        n = min(chunk, replicates - start)
        rows = lam.detach().expand(n, -1).clone().requires_grad_()
        with torch.enable_grad():
            shown = None if x is None else x.expand(n, *x.shape[1:])
            value = _tensor("the value", estimator(target, family(rows), shown, n_samples), (n,))
            if not value.requires_grad:
                raise ValueError("the value must depend on lam, found no gradient in it")
            parts += torch.autograd.grad(value.sum(), rows)
    return _moments(torch.cat(parts))


def _moments(gradients: Tensor) -> GradientMoments:
    n = len(gradients)
    variance = gradients.var(0)
    fourth = (gradients - gradients.mean(0)).pow(4).mean(0)
    spread = (fourth - variance.square() * (n - 3) / (n - 1)).clamp(min=0)  # rounding, at 0
    return GradientMoments(
        gradients.mean(0), variance, (variance / n).sqrt(), (spread / n).sqrt(), n
    )
