"""Exercises of chapter 4, sequences."""

from __future__ import annotations

import math

import torch
import torch.distributions as td
from torch import Tensor

from vaetutor.exact import mean_field_gap
from vaetutor.exercises._attempt import Attempt
from vaetutor.exercises._declare import Exercise, Mistake, register
from vaetutor.state_space import LocalLevel

PAGE = "04d_sequences"


# 4.8


def sequence_elbo(log_likelihood: Tensor, kl: Tensor, lengths: Tensor) -> Tensor:
    steps = torch.arange(kl.shape[1])
    exists = steps < lengths.unsqueeze(1)  # (B, T)
    terms = log_likelihood.mean(0) - kl
    return torch.where(exists, terms, 0.0).sum(1)


def _judge_sequence_elbo(attempt: Attempt) -> None:
    for what, draws, lengths, filling in (
        ("the ELBO of four sequences", 3, [6, 1, 4, 3], None),
        ("the ELBO with NaN in the padding", 2, [2, 5, 3], math.nan),
        ("the ELBO with infinity in the padding", 1, [3, 1, 2, 4, 2], math.inf),
        ("the ELBO of a single sequence, with padding", 4, [2], None),
    ):
        batch, most = len(lengths), max(lengths) + (len(lengths) == 1)
        log_p = 5 * torch.randn(draws, batch, most, generator=attempt.generator) - 8
        kl = 4 * torch.rand(batch, most, generator=attempt.generator) + 0.5
        expected = torch.stack(
            [log_p[:, b, :n].sum() / draws - kl[b, :n].sum() for b, n in enumerate(lengths)]
        )
        weight = torch.zeros(batch, most, dtype=torch.float64)
        for b, n in enumerate(lengths):
            weight[b, :n] = 1.0
            log_p[:, b, n:] = 70 * log_p[:, b, n:] if filling is None else filling
            kl[b, n:] = 30 * kl[b, n:] if filling is None else filling
        log_p.requires_grad_()
        kl.requires_grad_()
        found = attempt(log_p, kl, torch.tensor(lengths))
        attempt.close(found, expected, what)
        of_log_p, of_kl = attempt.gradient(found, [log_p, kl])
        attempt.arrives([of_log_p, of_kl], [f"`{name}`" for name in attempt.names[:2]])
        attempt.close(
            of_log_p,
            weight.expand(draws, -1, -1) / draws,
            f"the gradient of {what} for the log-likelihoods",
        )
        attempt.close(of_kl, -weight, f"the gradient of {what} for the divergences")


def _mask(kl: Tensor, lengths: Tensor, extra: int = 0) -> Tensor:
    return torch.arange(kl.shape[1]) < lengths.unsqueeze(1) + extra


def _off_by(extra: int, log_likelihood: Tensor, kl: Tensor, lengths: Tensor) -> Tensor:
    return torch.where(_mask(kl, lengths, extra), log_likelihood.mean(0) - kl, 0.0).sum(1)


register(
    Exercise(
        "4.8",
        title="An ELBO with padding",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=15,
        solution=sequence_elbo,
        judge=_judge_sequence_elbo,
        mistakes=(
            Mistake(
                "The padding is counted, as if every sequence had T steps. What a sequence gets "
                "then depends on the longest one in its batch.",
                lambda log_likelihood, kl, lengths: (log_likelihood.mean(0) - kl).sum(1),
            ),
            Mistake(
                "The likelihood is masked and the KL is not. Where there is no step there is no "
                "latent variable that could cost anything.",
                lambda log_likelihood, kl, lengths: (
                    torch.where(_mask(kl, lengths), log_likelihood.mean(0), 0.0).sum(1) - kl.sum(1)
                ),
            ),
            Mistake(
                "It is divided by the length. log p(x) of a sequence is a sum over its steps: "
                "with a mean this is no bound on it, and a long sequence counts like a short one.",
                lambda log_likelihood, kl, lengths: (
                    sequence_elbo(log_likelihood, kl, lengths) / lengths
                ),
            ),
            Mistake(
                "The KL is added. It is the price: the ELBO is the reconstruction less the KL.",
                lambda log_likelihood, kl, lengths: sequence_elbo(log_likelihood, -kl, lengths),
            ),
            Mistake(
                "The mask goes one step too far. The first step has index 0, so a sequence of "
                "length n ends at index n - 1.",
                lambda *args: _off_by(1, *args),
            ),
            Mistake(
                "The comparison is off by one the other way: the last step of each sequence is "
                "left out. A sequence of length n has n steps, with indices 0 to n - 1.",
                lambda *args: _off_by(-1, *args),
            ),
            Mistake(
                "It is divided by T, the length of the longest sequence. log p(x) of a sequence "
                "is a sum over its steps: with a mean this is no bound on it, and it changes with "
                "the batch.",
                lambda log_likelihood, kl, lengths: (
                    sequence_elbo(log_likelihood, kl, lengths) / kl.shape[1]
                ),
            ),
            Mistake(
                "The mask is multiplied, and zero times NaN is NaN. Choose between the value and "
                "zero instead.",
                lambda log_likelihood, kl, lengths: (
                    _mask(kl, lengths) * (log_likelihood.mean(0) - kl)
                ).sum(1),
            ),
        ),
        hints=(
            "Make a table of truth values first, (B, T): does sequence b have a step t? Compare "
            "the numbers of the steps with the lengths, by broadcasting.",
            "What does zero times NaN give? `torch.where` does not calculate with what it leaves "
            "out.",
            "Mean over the draws, less the KL, for each step; zero where there is no step; then "
            "the sum over the steps, and over nothing else.",
        ),
        lesson="Choosing at the end is enough here, because the rubbish comes in ready-made. "
        "Where it is computed, by a function that overflows in the padding, the backward pass "
        "through that function multiplies zero by infinity, and the parameters get NaN. Then its "
        "input has to be replaced, too, before the function. SequenceVAE does both.",
    )
)


# 4.9


def chain_gap(diagonal: Tensor, off_diagonal: Tensor) -> Tensor:
    precision = diagonal.diag() + off_diagonal.diag(1) + off_diagonal.diag(-1)
    return 0.5 * (diagonal.log().sum() - torch.logdet(precision))


def _chain(diagonal: Tensor, off_diagonal: Tensor) -> td.MultivariateNormal:
    steps = len(diagonal)
    precision = torch.zeros(steps, steps, dtype=torch.float64)
    for t in range(steps):
        precision[t, t] = diagonal[t]
    for t in range(steps - 1):
        precision[t, t + 1] = precision[t + 1, t] = off_diagonal[t]
    zero = torch.zeros(steps, dtype=torch.float64)
    return td.MultivariateNormal(zero, precision_matrix=precision)


def _judge_chain_gap(attempt: Attempt) -> None:
    for steps in (6, 3, 1, 20):
        signs = torch.where(torch.rand(steps - 1, generator=attempt.generator) < 0.5, -1.0, 1.0)
        off = signs * (0.5 + torch.rand(steps - 1, generator=attempt.generator))
        diagonal = 0.2 + torch.rand(steps, generator=attempt.generator)
        diagonal[1:] += off.abs()
        diagonal[:-1] += off.abs()
        expected = mean_field_gap(_chain(diagonal, off))
        attempt.close(
            attempt(diagonal, off), expected, f"the gap of {steps} step{'s' * (steps > 1)}"
        )
    level = LocalLevel(12, 0.5, 1.0).double()
    precision = level.posterior(torch.zeros(1, 12)).precision_matrix[0]
    found = attempt(precision.diagonal().clone(), precision.diagonal(1).clone())
    expected = mean_field_gap(level.posterior(torch.zeros(1, 12)))[0]
    attempt.close(found, expected, "the gap of the local level, 12 steps")
    # Λ = L Lᵀ with ones on the diagonal of L and c beside it, times 9: ln |Λ| = T ln 9.
    steps, c = 600, 0.8
    diagonal = torch.full((steps,), 9 * (1 + c**2))
    diagonal[0] = 9.0
    expected = torch.tensor((steps - 1) * math.log(1 + c**2) / 2)
    found = attempt(diagonal, torch.full((steps - 1,), 9 * c))
    attempt.close(found, expected, "the gap of 600 steps, whose determinant exceeds float64")


def _marginals(diagonal: Tensor, off_diagonal: Tensor) -> Tensor:
    p = _chain(diagonal, off_diagonal)
    q = td.MultivariateNormal(p.mean, p.variance.diag())
    return td.kl_divergence(q, p)


def _exchanged(diagonal: Tensor, off_diagonal: Tensor) -> Tensor:
    p = _chain(diagonal, off_diagonal)
    return td.kl_divergence(p, td.MultivariateNormal(p.mean, (1 / diagonal).diag()))


def _link_by_link(diagonal: Tensor, off_diagonal: Tensor) -> Tensor:
    squared = off_diagonal**2 / (diagonal[1:] * diagonal[:-1])
    return -0.5 * torch.log1p(-squared).sum()


def _reverse(diagonal: Tensor, off_diagonal: Tensor) -> Tensor:
    p = _chain(diagonal, off_diagonal)
    q = td.MultivariateNormal(p.mean, p.variance.diag())
    return td.kl_divergence(p, q)


register(
    Exercise(
        "4.9",
        title="What a chain costs without its links",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=20,
        solution=chain_gap,
        judge=_judge_chain_gap,
        mistakes=(
            Mistake(
                "It is twice the gap: the factor ½ of the Gaussian log-density is missing.",
                lambda diagonal, off_diagonal: 2 * chain_gap(diagonal, off_diagonal),
            ),
            Mistake(
                "This is what the product of the marginals costs. The best mean-field q is not "
                "that product: it is narrower, with variances 1 / Λ_tt.",
                _marginals,
            ),
            Mistake(
                "This is the other direction, KL(p ‖ q), with the marginals of the posterior as "
                "q. What the ELBO loses is KL(q ‖ p).",
                _reverse,
            ),
            Mistake(
                "The arguments are exchanged: this is KL(p ‖ q) of the right q. What the ELBO "
                "loses is KL(q ‖ p).",
                _exchanged,
            ),
            Mistake(
                "Each link has been counted as if it were alone. Eliminating one step changes the "
                "precision of the next.",
                _link_by_link,
            ),
            Mistake(
                "The sign is turned round. A gap is never negative: the diagonal of a precision "
                "has a product that is at least its determinant.",
                lambda diagonal, off_diagonal: -chain_gap(diagonal, off_diagonal),
            ),
            Mistake(
                "No links are left: the gap is always zero. The determinant of a triangular "
                "matrix is the product of its diagonal, so that a neighbour on one side alone "
                "does not count. A precision is symmetric, with the neighbours on both sides.",
                lambda diagonal, off_diagonal: torch.zeros((), dtype=diagonal.dtype),
            ),
            Mistake(
                "It is divided by the number of steps. Asked for is that of the whole sequence.",
                lambda diagonal, off_diagonal: chain_gap(diagonal, off_diagonal) / len(diagonal),
            ),
        ),
        hints=(
            "The best mean-field q keeps the means and has as variances the inverse diagonal of "
            "the precision matrix. Its gap stands in the section on what mean-field costs.",
            "A matrix with three diagonals is the sum of three that `torch.diag` can make, one "
            "of them shifted up and one shifted down.",
            "Half of: the sum of the logarithms of the diagonal, less the logarithm of the "
            "determinant. For long chains the determinant itself overflows; its logarithm does "
            "not.",
        ),
        lesson="Only the ratios Λ²_{t,t+1} / (Λ_tt Λ_{t+1,t+1}) matter, the squared partial "
        "correlations of neighbours. So the gap does not change with the units of z, nor with "
        "the signs of the links: steps that pull apart cost as much as steps that hold together.",
        origin="the VAE, question 2",
    )
)
