"""Exercises of chapter 1, variational inference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributions as td
from torch import Tensor

from vaetutor.exact import LinearGaussian
from vaetutor.exercises._attempt import Attempt, stacked
from vaetutor.exercises._declare import Exercise, Mistake, register

PAGE = "01_variational_inference"

LogJoint = Callable[[Tensor], Tensor]


def _whole(found: Any) -> Any:  # noqa: ANN401
    """Values in a tuple as one tensor, as those in a list are already."""
    return stacked(list(found)) if isinstance(found, tuple) else found


def _reached(attempt: Attempt, gradients: Sequence[Tensor], names: Sequence[str]) -> None:
    """Whether each of `gradients` is there at all, before its values are compared."""
    cut = [name for name, each in zip(names, gradients, strict=True) if bool((each == 0).all())]
    attempt.require(
        not cut,
        f"The values are right, but no gradient reaches the {' and the '.join(cut)}: it has been "
        "cut off. Keep `detach`, `.item()`, `no_grad` and numpy out of it.",
    )


# 1.1


def gaussian_kl(mean: Tensor, scale: Tensor) -> Tensor:
    variance = scale**2
    return 0.5 * (mean**2 + variance - 1 - variance.log()).sum(-1)


def _judge_gaussian_kl(attempt: Attempt) -> None:
    for batch, dim in ((3, 4), (1, 1), (5, 20)):
        mean = torch.randn(batch, dim, generator=attempt.generator).requires_grad_()
        scale = torch.rand(batch, dim, generator=attempt.generator).add(0.2).requires_grad_()
        prior = td.Normal(0.0, 1.0)
        expected = td.kl_divergence(td.Normal(mean, scale), prior).sum(-1)
        found = _whole(attempt(mean, scale))
        attempt.close(found, expected, f"the divergence, B = {batch}, D = {dim}")
    gradients = attempt.gradient(found, [mean, scale])
    _reached(attempt, gradients, ["mean", "scale"])
    for name, one, other in zip(
        ("mean", "scale"),
        gradients,
        (mean, scale - 1 / scale),
        strict=True,
    ):
        attempt.close(one, other, f"its gradient for the {name}")
    tiny = attempt(torch.zeros(1, 1), torch.full((1, 1), 1e-12))
    attempt.close(tiny, torch.tensor([12 * math.log(10) - 0.5]), "a scale of 1e-12")


register(
    Exercise(
        "1.1",
        title="The divergence of two Gaussians",
        page=PAGE,
        kind="function",
        difficulty="easy",
        minutes=10,
        solution=gaussian_kl,
        judge=_judge_gaussian_kl,
        mistakes=(
            Mistake(
                "The dimensions are averaged. A divergence of a product of densities is the sum "
                "of theirs: with the mean, the price of a latent dimension falls as more are "
                "added.",
                lambda mean, scale: gaussian_kl(mean, scale) / mean.shape[-1],
            ),
            Mistake(
                "The scale stands where the variance belongs: q is N(μ, σ²), and the trace term "
                "and the logarithm hold σ².",
                lambda mean, scale: gaussian_kl(mean, scale.sqrt()),
            ),
            Mistake(
                "This is the other direction, KL(p ‖ q). The expectation is over q.",
                lambda mean, scale: td.kl_divergence(
                    td.Normal(0.0, 1.0), td.Normal(mean, scale)
                ).sum(-1),
            ),
            Mistake(
                "The sign is turned round: this is at most zero, and a divergence never is.",
                lambda mean, scale: -gaussian_kl(mean, scale),
            ),
            Mistake(
                "The sum runs over the batch as well. Each example keeps a value of its own.",
                lambda mean, scale: gaussian_kl(mean, scale).sum(),
            ),
        ),
        hints=(
            "Both densities are products over the dimensions. So the divergence is a sum of "
            "one-dimensional ones: find that of N(μ, σ²) from N(0, 1) first.",
            "log q(z) - log p(z) is a quadratic in z plus a constant, and under q the mean of z² "
            "is μ² + σ². What is left of the two normalising constants?",
            "Each dimension gives half of: the second moment of q, minus one, minus the logarithm "
            "of the variance of q.",
        ),
        lesson="The three parts pull apart: μ² draws the mean to the prior, σ² keeps q from being "
        "wider than it, and the logarithm from being narrower. Only the logarithm grows without "
        "bound when σ goes to zero, and slowly: twelve orders of magnitude cost 27 nats.",
    )
)


# 1.2


def elbo_from_draws(
    log_joint: Callable[[Tensor], Tensor],
    mean: Tensor,
    scale: Tensor,
    eps: Tensor,
) -> Tensor:
    q = td.Normal(mean, scale)
    z = mean + scale * eps  # (S, B, D)
    log_q = q.log_prob(z).sum(-1)
    return (log_joint(z) - log_q).mean(0)


def _judge_elbo_from_draws(attempt: Attempt) -> None:
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=attempt.generator)

    for draws, batch, dim in ((5, 3, 2), (4, 1, 3)):
        model = LinearGaussian(randn(6, dim), randn(6), 0.7)
        log_joint = _log_joint(model, model.sample(batch, attempt.generator))
        mean, eps = randn(batch, dim).requires_grad_(), randn(draws, batch, dim)
        scale = torch.rand(batch, dim, generator=attempt.generator).add(0.3).requires_grad_()
        q = td.MultivariateNormal(mean, torch.diag_embed(scale**2))
        terms = [log_joint(z)[0] - q.log_prob(z[0]) for z in (mean + scale * eps).split(1)]
        expected = torch.stack(terms).mean(0)
        found = _whole(attempt(log_joint, mean, scale, eps))
        attempt.close(found, expected, f"the ELBO, S = {draws}, B = {batch}, D = {dim}")
        gradients = attempt.gradient(found, [mean, scale])
        _reached(attempt, gradients, ["mean", "scale"])
        for name, one, other in zip(
            ("mean", "scale"),
            gradients,
            attempt.gradient(expected, [mean, scale]),
            strict=True,
        ):
            attempt.close(one, other, f"its gradient for the {name}")
    # Orthogonal columns: the posterior is diagonal.
    columns = torch.linalg.qr(randn(6, 2)).Q * torch.tensor([0.5, 2.0])
    model = LinearGaussian(columns, randn(6), 0.4)
    x = model.sample(4, attempt.generator)
    posterior = model.posterior(x)
    found = attempt(_log_joint(model, x), posterior.mean, posterior.stddev, randn(1, 4, 2))
    attempt.close(found, model.log_evidence(x), "log p(x), from one draw of the posterior")


def _log_joint(model: LinearGaussian, x: Tensor) -> LogJoint:
    """As a function of the draws, which may be one alone, (B, D), or in float32."""

    def log_joint(z: Tensor) -> Tensor:
        every = z if z.ndim == 3 else z.unsqueeze(0)
        return model.log_joint(x, every.to(x)).reshape(z.shape[:-1]).to(z.dtype)

    return log_joint


def _terms(log_joint: LogJoint, mean: Tensor, scale: Tensor, eps: Tensor) -> Tensor:
    z = mean + scale * eps
    return log_joint(z) - td.Normal(mean, scale).log_prob(z).sum(-1)


register(
    Exercise(
        "1.2",
        title="An ELBO from draws",
        page=PAGE,
        kind="function",
        difficulty="easy",
        minutes=15,
        solution=elbo_from_draws,
        judge=_judge_elbo_from_draws,
        mistakes=(
            Mistake(
                "The term - log q is forgotten. Without it the best q is a point at the top of "
                "the joint density: the term is what pays q for its width.",
                lambda log_joint, mean, scale, eps: log_joint(mean + scale * eps).mean(0),
            ),
            Mistake(
                "This is the logarithm of the mean weight, and the ELBO is the mean of the log "
                "weights. By Jensen's inequality the first is the larger, and it is another "
                "quantity.",
                lambda *args: _terms(*args).logsumexp(0) - math.log(len(args[-1])),
            ),
            Mistake(
                "The scale is used as if it were the variance: a draw of N(μ, σ²) is μ + σε, "
                "without a square root.",
                lambda log_joint, mean, scale, eps: elbo_from_draws(
                    log_joint, mean, scale.sqrt(), eps
                ),
            ),
            Mistake(
                "The density of the noise stands where that of z belongs. z is ε stretched by σ, "
                "so log q(z) is log N(ε; 0, 1) minus log σ, in each dimension.",
                lambda log_joint, mean, scale, eps: (
                    _terms(log_joint, mean, scale, eps).mean(0) - scale.log().sum(-1)
                ),
            ),
            Mistake(
                "The dimensions of log q are averaged. The density of independent entries is the "
                "product of theirs, so its logarithm is their sum.",
                lambda log_joint, mean, scale, eps: (
                    log_joint(mean + scale * eps)
                    - td.Normal(mean, scale).log_prob(mean + scale * eps).mean(-1)
                ).mean(0),
            ),
            Mistake(
                "The draws are added up, not averaged: the value grows with their number.",
                lambda *args: _terms(*args).sum(0),
            ),
            Mistake(
                "This is the loss. The ELBO itself is asked for.",
                lambda *args: -_terms(*args).mean(0),
            ),
            Mistake(
                "log q is added; it is subtracted. With the plus the narrowest q would be the "
                "best.",
                lambda log_joint, mean, scale, eps: (
                    log_joint(mean + scale * eps)
                    + td.Normal(mean, scale).log_prob(mean + scale * eps).sum(-1)
                ).mean(0),
            ),
            Mistake(
                "The constant of log q is missing, -D/2 ln 2π. It does not move the best q, but "
                "without it the value is too low by ½ ln 2π for each dimension, at the posterior "
                "too.",
                lambda log_joint, mean, scale, eps: (
                    _terms(log_joint, mean, scale, eps).mean(0)
                    - mean.shape[-1] / 2 * math.log(2 * math.pi)
                ),
            ),
            Mistake(
                "The entropy of q stands in closed form where the average of - log q(z) over the "
                "draws is asked for. Both have the same expectation, but this is another "
                "estimate: at the posterior it still has noise.",
                lambda log_joint, mean, scale, eps: (
                    log_joint(mean + scale * eps).mean(0)
                    + td.Normal(mean, scale).entropy().sum(-1)
                ),
            ),
        ),
        hints=(
            "The cell under “From scratch, then by the package” does it for the line. What "
            "changes is that the noise and the joint density are given.",
            "Three shapes follow each other: the draws z are (S, B, D), log q of them is (S, B) "
            "after a sum over the last axis, and the ELBO is (B,).",
            "Stretch the noise by the scale and shift it by the mean. Evaluate the joint density "
            "and the density of q at these draws, subtract, and average over the first axis.",
        ),
        lesson="The test at the posterior is the sharpest there is for such code: one draw, no "
        "noise, and any forgotten constant shows. And since the noise comes in as an argument, "
        "the estimate is a smooth function of μ and σ: two settings can be compared on the same "
        "noise, in which most of the noise of their difference cancels if they are close.",
    )
)


# 1.3


def best_mean_field(covariance: Tensor) -> tuple[Tensor, Tensor]:
    precision = torch.linalg.inv(covariance)
    diagonal = precision.diagonal(dim1=-2, dim2=-1)
    gap = 0.5 * (diagonal.log().sum(-1) + torch.logdet(covariance))
    return 1 / diagonal, gap


def _judge_best_mean_field(attempt: Attempt) -> None:
    for batch, dim, unit in ((4, 3, 1.0), (1, 1, 1.0), (3, 5, 1.0), (1, 60, 1e-4)):
        factor = torch.randn(batch, dim, dim, generator=attempt.generator)
        covariance = unit**2 * (factor @ factor.mT + 0.3 * torch.eye(dim))
        variances = _conditional_variances(covariance)
        zero = torch.zeros(batch, dim)
        q = td.MultivariateNormal(zero, torch.diag_embed(variances))
        gap = td.kl_divergence(q, td.MultivariateNormal(zero, covariance))
        found = attempt.parts(attempt(covariance), ("the variances", "the gap"))
        where = f"for B = {batch}, D = {dim}"
        attempt.close(found[0], variances, f"the variances {where}", atol=0.0)
        if dim == 60:
            finite = torch.as_tensor(found[1]).isfinite().double()
            attempt.close(finite, torch.ones(batch), f"whether the gap {where} is finite")
        attempt.close(found[1], gap, f"the gap {where}", atol=1e-7)
    diagonal = torch.rand(4, 2, generator=attempt.generator) + 0.1
    found = attempt.parts(attempt(torch.diag_embed(diagonal)), ("the variances", "the gap"))
    attempt.close(found[1], torch.zeros(4), "the gap of a diagonal covariance")


def _conditional_variances(covariance: Tensor) -> Tensor:
    """Of each entry given all others, by conditioning: what is left after the best prediction."""
    found = []
    for i in range(covariance.shape[-1]):
        rest = [j for j in range(covariance.shape[-1]) if j != i]
        across = covariance[:, rest, i].unsqueeze(-1)
        predicted = across.mT @ torch.linalg.solve(covariance[:, rest][:, :, rest], across)
        found.append(covariance[:, i, i] - predicted.flatten())
    return torch.stack(found, -1)


register(
    Exercise(
        "1.3",
        title="What mean-field does to a correlated Gaussian",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=15,
        solution=best_mean_field,
        judge=_judge_best_mean_field,
        mistakes=(
            Mistake(
                "These are the marginal variances, the diagonal of the covariance. Mean-field "
                "gets the means right and not these: its variances are those of each entry when "
                "all others are known.",
                lambda covariance: (
                    covariance.diagonal(dim1=-2, dim2=-1),
                    best_mean_field(covariance)[1],
                ),
            ),
            Mistake(
                "These are standard deviations. The variance itself is asked for, without a "
                "square root.",
                lambda covariance: (
                    best_mean_field(covariance)[0].sqrt(),
                    best_mean_field(covariance)[1],
                ),
            ),
            Mistake(
                "These are the diagonal entries of the precision, one over the variances.",
                lambda covariance: (
                    1 / best_mean_field(covariance)[0],
                    best_mean_field(covariance)[1],
                ),
            ),
            Mistake(
                "The covariance stands where the precision belongs: these are one over the "
                "diagonal of Σ, and the variances are one over that of its inverse Λ.",
                lambda covariance: (
                    1 / covariance.diagonal(dim1=-2, dim2=-1),
                    best_mean_field(covariance)[1],
                ),
            ),
            Mistake(
                "The factor one half of the gap is missing. It comes from the square root of the "
                "determinant in the density of a Gaussian.",
                lambda covariance: (
                    best_mean_field(covariance)[0],
                    2 * best_mean_field(covariance)[1],
                ),
            ),
            Mistake(
                "The gap has the wrong sign: a divergence is never negative.",
                lambda covariance: (
                    best_mean_field(covariance)[0],
                    -best_mean_field(covariance)[1],
                ),
            ),
            Mistake(
                "This gap belongs to the other direction, KL(p ‖ q) with the marginal variances. "
                "In two dimensions both gaps are -½ ln(1 - ρ²), in more they differ.",
                lambda covariance: (
                    best_mean_field(covariance)[0],
                    0.5
                    * (
                        covariance.diagonal(dim1=-2, dim2=-1).log().sum(-1)
                        - torch.logdet(covariance)
                    ),
                ),
            ),
            Mistake(
                "A determinant or a product is formed before its logarithm. In sixty dimensions "
                "it is too small or too large for a floating-point number: add up logarithms, as "
                "a routine for the log-determinant does.",
                lambda covariance: (
                    best_mean_field(covariance)[0],
                    best_mean_field(covariance)[1]
                    - torch.logdet(covariance) / 2
                    + torch.linalg.det(covariance).log() / 2,
                ),
            ),
        ),
        hints=(
            "Both follow from the precision matrix Λ, the inverse of the covariance, by the "
            "formula after “What should come out?”.",
            "The variances are one over the diagonal entries of Λ. With `.diagonal(dim1=-2, "
            "dim2=-1)` you get these for a whole batch.",
            "The gap is half of: the sum of ln Λᵢᵢ minus ln|Λ|. And ln|Λ| is minus ln|Σ|; "
            "`torch.logdet` stays finite where the determinant itself does not.",
        ),
        lesson="The gap depends on the correlations alone: measure each entry in another unit, "
        "and the variances change but the gap does not. And in more than two dimensions no pair "
        "needs to be strongly correlated: the gap is at least -½ ln(1 - R²), where R² is the "
        "share of the variance of any one entry that all the others explain together.",
    )
)


# 1.4


def match_moments(
    probabilities: Tensor,
    means: Tensor,
    scales: Tensor,
) -> tuple[Tensor, Tensor]:
    mean = (probabilities * means).sum(-1)
    within = (probabilities * scales**2).sum(-1)
    between = (probabilities * (means - mean.unsqueeze(-1)) ** 2).sum(-1)
    return mean, (within + between).sqrt()


def _judge_match_moments(attempt: Attempt) -> None:
    for batch, count in ((3, 4), (1, 2), (2, 1), (4, 7)):
        logits = torch.randn(batch, count, generator=attempt.generator)
        means = 3 * torch.randn(batch, count, generator=attempt.generator)
        scales = torch.rand(batch, count, generator=attempt.generator) * 2 + 0.2
        p = td.MixtureSameFamily(td.Categorical(logits=logits), td.Normal(means, scales))
        found = attempt.parts(attempt(logits.softmax(-1), means, scales), ("the mean", "the sd"))
        where = f"for B = {batch}, K = {count}"
        attempt.close(found[0], p.mean, f"the mean {where}")
        attempt.close(found[1], p.stddev, f"the sd {where}")
    x = torch.tensor([[3.0], [0.5]])  # the two modes of the chapter
    half = torch.full((2, 2), 0.5)
    found = attempt(half, torch.cat([-x, x], -1), torch.ones(2, 2))
    attempt.close(found[0], torch.zeros(2), "the mean of two equal modes at -x and x")
    attempt.close(found[1], (1 + x[:, 0] ** 2).sqrt(), "the sd of two equal modes at -x and x")


def _instead(
    sd: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The right mean, and another standard deviation."""

    def answer(p: Tensor, means: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        mean = (p * means).sum(-1)
        return mean, sd(p, means, scales, mean)

    return answer


register(
    Exercise(
        "1.4",
        title="The other direction",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=10,
        solution=match_moments,
        judge=_judge_match_moments,
        mistakes=(
            Mistake(
                "The spread of the means is forgotten: this is the root of the average variance "
                "within the components. It would be the same however far apart they lie.",
                _instead(lambda p, m, s, mean: (p * s**2).sum(-1).sqrt()),
            ),
            Mistake(
                "Only the spread of the means is there. Each component has a variance of its "
                "own, and their average is added.",
                _instead(lambda p, m, s, mean: (p * (m - mean[:, None]) ** 2).sum(-1).sqrt()),
            ),
            Mistake(
                "This is the variance. The standard deviation is asked for.",
                _instead(lambda p, m, s, mean: match_moments(p, m, s)[1] ** 2),
            ),
            Mistake(
                "This is the root of the second moment about zero. The square of the mean is "
                "still to be subtracted from it.",
                _instead(lambda p, m, s, mean: (p * (m**2 + s**2)).sum(-1).sqrt()),
            ),
            Mistake(
                "The scales themselves are averaged. Variances add up, standard deviations do "
                "not.",
                _instead(lambda p, m, s, mean: (p * s).sum(-1)),
            ),
            Mistake(
                "The components count equally here. Each counts with its probability.",
                lambda p, means, scales: match_moments(
                    torch.full_like(p, 1 / p.shape[-1]), means, scales
                ),
            ),
        ),
        hints=(
            "No optimisation is needed: the best q of the forward divergence has the mean and "
            "the variance of p. So what are the mean and the variance of a mixture?",
            "Draw from the mixture in two steps: first the component, then z from it. The "
            "variance of z has one part for each step.",
            "The variance is the average of the sₖ², plus the average of the squared distances "
            "of the mₖ from the overall mean; both averages are weighted by the wₖ.",
        ),
        lesson="The same rule holds in several dimensions, with the mean vector and the whole "
        "covariance of p, and beyond Gaussians: in an exponential family the forward divergence "
        "is smallest where q has the same expectations of the sufficient statistics as p. It "
        "needs these expectations under p, and that is the difficulty in practice.",
    )
)


# 1.5

_KEPT = 0.2


def dropped_mode_gap() -> float:
    kept = 0.2  # the weight of the mode that q sits on
    return -math.log(kept)


def _judge_dropped_mode_gap(attempt: Attempt) -> None:
    weights, places = torch.tensor([_KEPT, 1 - _KEPT]), torch.tensor([-10.0, 10.0])
    p = td.MixtureSameFamily(td.Categorical(weights), td.Normal(places, 1.0))
    q = td.Normal(places[0], 1.0)
    z = torch.linspace(-20.0, 0.0, 2001)
    density = q.log_prob(z).exp()
    divergence = torch.trapezoid(density * (q.log_prob(z) - p.log_prob(z)), z)
    # To two decimals, as asked: what a likely error gives is then known by the same two.
    answer = _rounded(attempt.answer)
    attempt.close(answer, divergence, "the divergence", rtol=0.01, reveal=False)


def _rounded(answer: Any) -> Any:  # noqa: ANN401
    """A single number to two decimals; anything else as it is."""
    number = isinstance(answer, int | float | np.floating) and not isinstance(answer, bool)
    if isinstance(answer, Tensor) and not answer.is_complex() and answer.dtype != torch.bool:
        number = answer.numel() == 1
    return round(float(answer), 2) if number else answer


register(
    Exercise(
        "1.5",
        title="Predict, then run: the gap of a dropped mode",
        page=PAGE,
        kind="number",
        difficulty="easy",
        minutes=5,
        solution=dropped_mode_gap,
        judge=_judge_dropped_mode_gap,
        mistakes=(
            Mistake(
                "ln 2 holds for two equal weights. These are not equal.",
                math.log(2),
            ),
            Mistake(
                "This is the price with the other mode kept. The weight that counts is that of "
                "the mode on which q sits.",
                -math.log(1 - _KEPT),
            ),
            Mistake(
                "This is the entropy of the weights, the price averaged over both modes. But q "
                "sits on one of them only.",
                -_KEPT * math.log(_KEPT) - (1 - _KEPT) * math.log(1 - _KEPT),
            ),
            Mistake(
                "These are bits, by the logarithm to base two. The unit of this book is the nat.",
                -math.log2(_KEPT),
            ),
            Mistake(
                "This is the logarithm to base ten. Nats are counted by the natural one.",
                -math.log10(_KEPT),
            ),
            Mistake(
                "The sign: a divergence is never negative. ln 0.2 is the ELBO of this fit less "
                "log p(x).",
                math.log(_KEPT),
            ),
            Mistake(
                "The weight is multiplied in once more: the expectation is over q, which has all "
                "its mass on this mode.",
                -_KEPT * math.log(_KEPT),
            ),
            Mistake(
                "Zero is the divergence of q from its own mode. But p has only a part of its mass "
                "there, and its density on the mode is smaller than that of q by that factor.",
                0.0,
            ),
            Mistake(
                "This is the logarithm of the ratio of the weights: by so much the two fits, each "
                "on one mode, differ. The divergence of one of them is asked for.",
                math.log((1 - _KEPT) / _KEPT),
            ),
        ),
        hints=(
            "See “The signature of a dropped mode”. Which weight is that of the mode on which q "
            "sits, and how well does q fit that mode?",
            "Where q has its mass the other mode adds nothing, so p(z) is a constant times q(z) "
            "there. The logarithm of q(z)/p(z) is then the same for every draw.",
        ),
        lesson="The ELBO of this fit is log p(x) + ln 0.2, that of the fit on the other mode "
        "log p(x) + ln 0.8. So two fits on two modes compare the weights without knowing the "
        "evidence: their ELBOs differ by ln 4. And if every mode, far from the others, had its "
        "perfect fit, the sum of exp(ELBO) over the modes would be the evidence.",
    )
)


# 1.6


def log_prior_of_log_tau(log_tau: Tensor) -> Tensor:
    tau = log_tau.exp()
    log_density = math.log(2 / (5 * math.pi)) - torch.log1p((tau / 5) ** 2)
    return log_density + log_tau  # |d tau / d ln tau| = tau


def _judge_log_prior_of_log_tau(attempt: Attempt) -> None:
    exact = td.TransformedDistribution(td.HalfCauchy(5.0), td.ExpTransform().inv)
    for batch in (5, 1, 3):
        log_tau = 6 * torch.rand(batch, generator=attempt.generator) - 2
        what = f"the log density for B = {batch}"
        attempt.close(attempt(log_tau), exact.log_prob(log_tau), what)
    grid = torch.linspace(-40.0, 40.0, 801)
    found = attempt(grid)
    attempt.close(found, exact.log_prob(grid), "the log density from -40 to 40")
    mass = torch.trapezoid(torch.as_tensor(found, dtype=grid.dtype).exp(), grid)
    attempt.close(mass, 1.0, "the integral of the density over ln τ")


def _without_jacobian(log_tau: Tensor) -> Tensor:
    return td.HalfCauchy(5.0).log_prob(log_tau.exp())


register(
    Exercise(
        "1.6",
        title="Find the bug: a change of variable",
        page=PAGE,
        kind="function",
        difficulty="easy",
        minutes=10,
        solution=log_prior_of_log_tau,
        judge=_judge_log_prior_of_log_tau,
        mistakes=(
            Mistake(
                "The Jacobian is missing, as in the cell: this is the log density of τ, looked up "
                "at τ. As a density of ln τ it does not integrate to one.",
                _without_jacobian,
            ),
            Mistake(
                "The Jacobian has the wrong sign. Equal steps of ln τ are steps of τ that grow "
                "like τ: the probability of such a step is the density of τ times τ.",
                lambda log_tau: _without_jacobian(log_tau) - log_tau,
            ),
            Mistake(
                "The factor τ multiplies the density, so its logarithm is added to the log "
                "density, not τ itself.",
                lambda log_tau: _without_jacobian(log_tau) + log_tau.exp(),
            ),
            Mistake(
                "The Jacobian is there, but the constant is that of the whole Cauchy density. "
                "τ is positive, so all the mass lies on one side: twice the density.",
                lambda log_tau: _without_jacobian(log_tau) + log_tau - math.log(2),
            ),
            Mistake(
                "The Jacobian is there, but the scale of the half-Cauchy is lost in the constant: "
                "a density stretched by 5 is lower by 5.",
                lambda log_tau: _without_jacobian(log_tau) + log_tau + math.log(5),
            ),
            Mistake(
                "The Jacobian is summed over the batch. Each example has one ln τ, and gets the "
                "logarithm of its own factor only.",
                lambda log_tau: _without_jacobian(log_tau) + log_tau.sum(),
            ),
            Mistake(
                "This is the density, not its logarithm.",
                lambda log_tau: (_without_jacobian(log_tau) + log_tau).exp(),
            ),
        ),
        hints=(
            "Compare what the function is called with what it computes: a density of which "
            "variable? The half-Cauchy itself is written correctly.",
            "Probability is what stays the same: p(ln τ) d(ln τ) = p(τ) dτ. What is dτ / d(ln τ)?",
            "The derivative of the exponential is the exponential, so the density gets the factor "
            "τ. What is the logarithm of that factor, in terms of the argument?",
        ),
        lesson="Without the factor this is not merely another prior: its density stays level "
        "as ln τ goes to minus infinity, so its integral is infinite. With the eight schools "
        "the likelihood stays level there too, the “evidence” is infinite, and an ELBO has no "
        "ceiling. The mended density falls on both sides, like τ and like 1/τ.",
    )
)
