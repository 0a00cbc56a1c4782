r"""A normal distribution over sequences with the structure of a Markov chain (chapter: sequences).

The latent variable of a sequence is a sequence itself, :math:`z = (z_1, \dots, z_T)`. A diagonal
normal makes all its numbers independent. A full one has of the order of :math:`(TD)^2` parameters.
Between them lies a chain, in which each step leans on the one before,

.. math:: q(z_{1:T}) = \prod_{t=1}^{T} \mathcal{N}(z_t;\ m_t + a_t \odot z_{t-1},\
          \operatorname{diag}(s_t^2)), \qquad z_0 = 0.

Its covariance is dense, its precision has three diagonals of blocks, and a draw or a density costs
of the order of TD. With all gates a at zero it is the diagonal normal.

Everywhere else in the package an event is a vector, so here it is one too: the T steps of D
numbers one after the other, T D in all.
"""

from __future__ import annotations

import torch
import torch.distributions as td
from torch import Tensor, nn

from vaetutor import _checks
from vaetutor.families import _Family, positive


class NormalChain(td.Distribution):
    r"""The distribution :math:`\prod_t \mathcal{N}(z_t;\ m_t + a_t \odot z_{t-1},\ s_t^2)`.

    Sequences of different lengths share a batch: `observed` says which steps there are. A step of
    the padding has no latent variable. Its entries of a draw are zero, and it adds nothing to the
    density.

    Args:
        loc: m, shape (..., T, D).
        gate: a from the second step on, shape (..., T - 1, D).
        scale: s, shape (..., T, D), above zero.
        observed: boolean, shape (..., T): True at the steps of the sequence and False in the
            padding after it; None for sequences of full length.

    Raises:
        ValueError: for shapes that do not fit, a scale that is not positive, or observed steps
            with a gap.
    """

    has_rsample = True

    def __init__(
        self, loc: Tensor, gate: Tensor, scale: Tensor, observed: Tensor | None = None
    ) -> None:
        if loc.ndim < 2:
            raise ValueError(f"loc must have shape (..., T, D), found {tuple(loc.shape)}")
        *batch, steps, dim = loc.shape
        if gate.shape != (*batch, steps - 1, dim) or scale.shape != loc.shape:
            raise ValueError(
                "loc and scale must have shape (..., T, D) and gate (..., T - 1, D), found "
                f"{tuple(loc.shape)}, {tuple(scale.shape)} and {tuple(gate.shape)}"
            )
        if observed is not None and (observed.shape, observed.dtype) != (
            loc.shape[:-1],
            torch.bool,
        ):
            raise ValueError(
                f"observed must have shape {tuple(loc.shape[:-1])}, one boolean a step, found "
                f"{tuple(observed.shape)} and {observed.dtype}"
            )
        if _checks.enabled():
            _check_values(scale, observed)
        self.loc, self.gate, self.scale, self.observed = loc, gate, scale, observed
        super().__init__(torch.Size(batch), torch.Size((steps * dim,)), validate_args=False)

    def rsample(self, sample_shape: torch.types._size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw by the recursion, shape ``(*sample_shape, ..., T D)``."""
        shape = (*sample_shape, *self.loc.shape)
        eps = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self._run(self.gate, self.loc + self.scale * eps)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats, summed over the steps that are observed."""
        _checks.event("value", value, self.event_shape)
        _checks.finite("value", value)
        z = value.unflatten(-1, self.loc.shape[-2:])
        pulled = nn.functional.pad(self.gate * z[..., :-1, :], (0, 0, 1, 0))  # zero at the first
        log_q = td.Normal(self.loc + pulled, self.scale, validate_args=False).log_prob(z).sum(-1)
        return self._without_padding(log_q).sum(-1)

    @property
    def mean(self) -> Tensor:
        """The mean of every number, (..., T D)."""
        return self._run(self.gate, self.loc)

    @property
    def variance(self) -> Tensor:
        """The marginal variance of every number, (..., T D)."""
        return self._run(self.gate.square(), self.scale.square())

    def dense(self) -> td.MultivariateNormal:
        r"""The same distribution as a multivariate normal.

        From :math:`(I - A) z = m + S \varepsilon`, with the gates below the diagonal in A, its
        Cholesky factor is :math:`(I - A)^{-1} S`.

        Raises:
            ValueError: if there is padding, where the distribution has no density.
        """
        if self.observed is not None and not self.observed.all():
            raise ValueError(
                "observed must be True everywhere for a dense normal, found padding: take the "
                "sequences of one length at a time"
            )
        unit = torch.diag_embed(torch.ones_like(self.loc.flatten(-2)))
        unit = unit - torch.diag_embed(self.gate.flatten(-2), -self.loc.shape[-1])
        scale = torch.diag_embed(self.scale.flatten(-2))
        factor = torch.linalg.solve_triangular(unit, scale, upper=False, unitriangular=True)
        return td.MultivariateNormal(self.mean, scale_tril=factor, validate_args=False)

    def _without_padding(self, steps: Tensor) -> Tensor:
        return steps if self.observed is None else torch.where(self.observed, steps, 0.0)

    def _run(self, gate: Tensor, step: Tensor) -> Tensor:
        """The recursion y_t = gate_t y_{t-1} + step_t, flat, with zeros in the padding."""
        first, *others = step.unbind(-2)
        run = [first]
        for one_gate, one_step in zip(gate.unbind(-2), others, strict=True):
            run.append(torch.addcmul(one_step, one_gate, run[-1]))
        y = torch.stack(run, dim=-2)
        if self.observed is not None:
            y = torch.where(self.observed.unsqueeze(-1), y, 0.0)
        return y.flatten(-2)


@td.register_kl(NormalChain, td.MultivariateNormal)  # type: ignore[untyped-decorator]
def _kl_chain_dense(q: NormalChain, p: td.MultivariateNormal) -> Tensor:
    return td.kl_divergence(q.dense(), p)


def ends_once(marks: Tensor) -> bool:
    """Whether each row of marks (..., T) is at least a single one and then zeros."""
    whole = ((marks == 0) | (marks == 1)).all() and (marks[..., 0] == 1).all()
    return bool(whole and (marks[..., 1:] <= marks[..., :-1]).all())


def _check_values(scale: Tensor, observed: Tensor | None) -> None:
    if not (scale > 0).all():
        raise ValueError(
            f"scale must be above 0, found {int((~(scale > 0)).sum())} values that are not"
        )
    if observed is not None and not ends_once(observed):
        raise ValueError(
            "observed must be True at the steps of a sequence, at least one, and False after its "
            "end, found a gap or no step"
        )


class MarkovNormal(_Family):
    r"""Normal Markov chain over the steps of a sequence.

    .. math:: q_\lambda(z_{1:T}) = \prod_{t=1}^{T} \mathcal{N}(z_t;\ m_t + a_t \odot z_{t-1},\
              \operatorname{diag}(s_t^2)), \qquad \lambda = (m, r, a),\quad
              s = \operatorname{positive}(r),

    with :math:`z_0 = 0`, so that there are T - 1 gates. The family holds the normal distributions
    in which the D dimensions are independent chains, and with D = 1 the posterior of every linear
    Gaussian state space model.

    Args:
        steps: number of steps T.
        dim: latent dimensions of a step, D.

    Called with λ of shape (..., (3 T - 1) D), each of its three parts time-major, it returns a
    distribution with batch shape (...) and event shape (T D,). λ = 0 gives the standard normal,
    and with a = 0 the first 2 T D entries mean what they mean for ``DiagonalNormal(T D)``. It also
    takes the steps that are observed, boolean (..., T), where sequences have been padded.

    Raises:
        ValueError: for a λ of another width, or one that is not finite.

    Source: Krishnan et al. (2017), arXiv:1609.09869, for posteriors that factorise like the
    exact one; a gate that is a plain factor keeps q normal.

    >>> q = MarkovNormal(2, 1)(torch.tensor([1.0, 1.0, 0.0, 0.0, 0.5]))
    >>> q.mean, q.variance
    (tensor([1.0000, 1.5000]), tensor([1.0000, 1.2500]))
    """

    def __init__(self, steps: int, dim: int) -> None:
        super().__init__()
        self.steps = _checks.count("steps", steps)
        self.dim = _checks.count("dim", dim)
        self.n_parameters = (3 * steps - 1) * dim

    def forward(self, lam: Tensor, observed: Tensor | None = None) -> NormalChain:
        lam = self._parameters_of(lam)
        width = self.steps * self.dim
        parts = lam.split([width, width, lam.shape[-1] - 2 * width], dim=-1)
        loc, raw, gate = (part.unflatten(-1, (-1, self.dim)) for part in parts)
        return NormalChain(loc, gate, positive(raw), observed)

    def extra_repr(self) -> str:
        return f"{self.steps}, {self.dim}"
