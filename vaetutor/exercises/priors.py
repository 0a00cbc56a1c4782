"""Exercises of chapter 4, the prior."""

from __future__ import annotations

import torch
import torch.distributions as td
from torch import Tensor

from vaetutor.exercises._attempt import Attempt
from vaetutor.exercises._declare import Exercise, Mistake, register

PAGE = "04c_priors"


# 4.7


def best_normal(mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    best_mean = mean.mean(0)
    variance = (scale**2).mean(0) + mean.var(0, correction=0)
    saved = 0.5 * (best_mean**2 + variance - 1 - variance.log()).sum()
    return best_mean, variance.sqrt(), saved


def _judge_best_normal(attempt: Attempt) -> None:
    for n, dim in ((7, 3), (1, 2), (40, 1)):
        mean = 1.5 * torch.randn(n, dim, generator=attempt.generator) + 0.5
        scale = 0.2 + torch.rand(n, dim, generator=attempt.generator)
        of = f"of {n} encoding distribution{'s' * (n > 1)} in {dim} dimension{'s' * (dim > 1)}"
        _compare(attempt, mean, scale, of)
    mean = 0.9 * torch.rand(1, 4, generator=attempt.generator)
    mean = torch.cat([mean, -mean])
    _compare(attempt, mean, (1 - mean**2).sqrt(), "where the aggregate has the moments of N(0, I)")


def _compare(attempt: Attempt, mean: Tensor, scale: Tensor, of: str) -> None:
    q = td.Normal(mean, scale)
    n, dim = mean.shape
    each = td.Normal(mean.T, scale.T)  # the aggregate posterior, dimension by dimension
    aggregate = td.MixtureSameFamily(td.Categorical(torch.ones(dim, n, dtype=mean.dtype)), each)
    best = td.Normal(aggregate.mean, aggregate.variance.sqrt())
    saved = td.kl_divergence(q, td.Normal(0.0, 1.0)) - td.kl_divergence(q, best)
    found = attempt.parts(attempt(mean, scale), ("the mean", "the scale", "what it saves"))
    attempt.close(found[0], best.mean, f"the mean {of}", rtol=1e-4, atol=1e-6)
    attempt.close(found[1], best.stddev, f"the scale {of}", rtol=1e-4, atol=1e-6)
    price = saved.sum(-1).mean()
    attempt.close(found[2], price, f"what the prior saves {of}", rtol=1e-4, atol=1e-6)


def _with_variance(variance: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    saved = 0.5 * (mean.mean(0) ** 2 + variance - 1 - variance.log()).sum()
    return mean.mean(0), variance.sqrt(), saved


def _as_variance(mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    best_mean, best_scale, saved = best_normal(mean, scale)
    return best_mean, best_scale**2, saved


def _other_direction(mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    precision = scale**-2
    best_mean = (precision * mean).mean(0) / precision.mean(0)
    saved = torch.zeros((), dtype=mean.dtype)
    return best_mean, precision.mean(0) ** -0.5, saved


def _saving(mean: Tensor, scale: Tensor, saved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The right prior, and something else for what it saves."""
    return (*best_normal(mean, scale)[:2], saved)


def _rate(mean: Tensor, scale: Tensor) -> Tensor:
    """Average rate under the best prior."""
    best_mean, best_scale, _ = best_normal(mean, scale)
    best = td.Normal(best_mean, best_scale)
    return td.kl_divergence(td.Normal(mean, scale), best).sum(-1).mean()


def _averaged(mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    best_mean, best_scale, saved = best_normal(mean, scale)
    return best_mean, best_scale, saved / mean.shape[1]


register(
    Exercise(
        "4.7",
        title="The best Gaussian prior",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=20,
        solution=best_normal,
        judge=_judge_best_normal,
        mistakes=(
            Mistake(
                "The scale is that of the means alone. A draw of z scatters around its mean, too: "
                "the prior must also cover the width of each encoding distribution.",
                lambda mean, scale: _with_variance(mean.var(0, correction=0), mean),
            ),
            Mistake(
                "The scale is the mean width of one encoding distribution. Their means lie at "
                "different places, and the prior has to reach all of them.",
                lambda mean, scale: _with_variance((scale**2).mean(0), mean),
            ),
            Mistake(
                "The scale is the mean width of one encoding distribution, the mean of σ. Their "
                "means lie at different places, and the prior has to reach all of them; and it is "
                "the variances that average.",
                lambda mean, scale: _with_variance(scale.mean(0) ** 2, mean),
            ),
            Mistake(
                "This is the second moment about zero. The prior has a mean of its own, and only "
                "what scatters around it makes it wide: subtract the square of that mean.",
                lambda mean, scale: _with_variance((scale**2 + mean**2).mean(0), mean),
            ),
            Mistake(
                "The scales are averaged, and the mean is squared. It is the variances that "
                "average: the mean of σ² is larger than the square of the mean of σ.",
                lambda mean, scale: _with_variance(
                    scale.mean(0) ** 2 + mean.var(0, correction=0), mean
                ),
            ),
            Mistake(
                "The variance of the means is divided by N - 1, which is what torch does unless "
                "told otherwise. Here they are no sample from something larger: the average is "
                "over these N, so it is divided by N.",
                lambda mean, scale: _with_variance((scale**2).mean(0) + mean.var(0), mean),
            ),
            Mistake(
                "This is the variance. Asked for is the scale, its square root.",
                _as_variance,
            ),
            Mistake(
                "This is the prior for the other direction, the mean of KL(p ‖ q): it averages "
                "precisions, so that the narrowest q draws it to itself. The rate is KL(q ‖ p).",
                _other_direction,
            ),
            Mistake(
                "What is saved is averaged over the dimensions. The divergence of a product of "
                "densities is the sum of theirs.",
                _averaged,
            ),
            Mistake(
                "This is the rate under the best prior, not what it saves. The saving is the rate "
                "under N(0, I) less this one.",
                lambda mean, scale: _saving(mean, scale, _rate(mean, scale)),
            ),
            Mistake(
                "The saving has the wrong sign. The rate under N(0, I) is the larger of the two, "
                "and the smaller one is subtracted from it.",
                lambda mean, scale: _saving(mean, scale, -best_normal(mean, scale)[2]),
            ),
        ),
        hints=(
            "Only one part of the divergence contains the prior: the mean of -log p(z) over n "
            "and over the draws of q. Those draws come from the aggregate posterior, so it is "
            "-log p under q(z) that has to be small. Which normal does that?",
            "The moments of a mixture: its mean is the mean of the means. For the variance, write "
            "z = μ_n + σ_n ε. Both the choice of n and the noise ε make z vary.",
            "The saving is a divergence that you know, too: with the right moments the quadratic "
            "terms of the best prior cancel, and what is left over is KL(best prior ‖ N(0, I)).",
        ),
        lesson="The saving is the divergence of the best normal from N(0, I): minimising over the "
        "normals projects q(z) on them, and the marginal KL of N(0, I) is the sum of two parts, "
        "from q(z) to its projection and from there to N(0, I). Only the first is left for a "
        "prior of another shape, such as a mixture or a flow.",
        origin="the VAE, question 1",
    )
)
