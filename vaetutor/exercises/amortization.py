"""Exercises of chapter 2, amortisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor

from vaetutor.exact import mean_field, mean_field_gap
from vaetutor.exercises._attempt import Attempt, Wrong
from vaetutor.exercises._declare import Exercise, Mistake, register
from vaetutor.objectives import kl

PAGE = "02_amortization"
BOTH_GAPS = ("the approximation gap", "the amortisation gap")


# 2.1


def two_gaps(
    mean: Tensor, covariance: Tensor, q_mean: Tensor, q_scale: Tensor
) -> tuple[Tensor, Tensor]:
    precision = torch.linalg.inv(covariance)
    diagonal = precision.diagonal(dim1=-2, dim2=-1)  # 1 over the best variances
    approximation = 0.5 * (diagonal.log().sum(-1) - torch.logdet(precision))
    off = q_mean - mean
    miss = torch.einsum("bi,bij,bj->b", off, precision, off)
    ratio = diagonal * q_scale**2
    amortisation = 0.5 * (miss + (ratio - 1 - ratio.log()).sum(-1))
    return approximation, amortisation


def _covariances(attempt: Attempt, batch: int, dim: int) -> Tensor:
    factor = torch.randn(batch, dim, dim, generator=attempt.generator)
    return factor @ factor.mT / dim + 0.2 * torch.eye(dim)


def _judge_two_gaps(attempt: Attempt) -> None:
    for batch, dim in ((4, 3), (1, 2), (3, 1), (2, 12)):
        mean, q_mean = torch.randn(2, batch, dim, generator=attempt.generator)
        q_scale = torch.rand(batch, dim, generator=attempt.generator) + 0.3
        covariance = _covariances(attempt, batch, dim)
        p = td.MultivariateNormal(mean, covariance)
        q = td.Independent(td.Normal(q_mean, q_scale), 1)
        best = mean_field_gap(p)
        found = attempt.parts(
            attempt(mean, covariance, q_mean, q_scale),
            ("the approximation gap", "the amortisation gap"),
        )
        case = f"B = {batch}, D = {dim}"
        attempt.close(found[0], best, f"the approximation gap, {case}")
        attempt.close(found[1], kl(q, p) - best, f"the amortisation gap, {case}")
    correlation = torch.tensor([0.5, -0.9, 0.99])
    unit = torch.eye(2)
    covariance = unit + correlation.view(3, 1, 1) * (1 - unit)
    mean = torch.randn(3, 2, generator=attempt.generator)
    conditional = (1 - correlation**2).sqrt().unsqueeze(1).repeat(1, 2)
    found = attempt.parts(
        attempt(mean, covariance, mean.clone(), conditional),
        ("the approximation gap", "the amortisation gap"),
    )
    price = -(1 - correlation**2).log() / 2
    attempt.close(found[0], price, "the approximation gap for unit variances and a correlation")
    attempt.close(found[1], torch.zeros(3), "the amortisation gap of an encoder at the best q")


def _divergence(q_mean: Tensor, q_variance: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    q = td.MultivariateNormal(q_mean, torch.diag_embed(q_variance))
    return td.kl_divergence(q, td.MultivariateNormal(mean, covariance))


def _with_marginals(
    mean: Tensor, covariance: Tensor, q_mean: Tensor, q_scale: Tensor
) -> tuple[Tensor, Tensor]:
    marginal = covariance.diagonal(dim1=-2, dim2=-1)
    approximation = _divergence(mean, marginal, mean, covariance)
    return approximation, _divergence(q_mean, q_scale**2, mean, covariance) - approximation


def _from_the_best(
    mean: Tensor, covariance: Tensor, q_mean: Tensor, q_scale: Tensor
) -> tuple[Tensor, Tensor]:
    p = td.MultivariateNormal(mean, covariance)
    return mean_field_gap(p), kl(td.Independent(td.Normal(q_mean, q_scale), 1), mean_field(p))


def _turned_round(
    mean: Tensor, covariance: Tensor, q_mean: Tensor, q_scale: Tensor
) -> tuple[Tensor, Tensor]:
    p = td.MultivariateNormal(mean, covariance)
    best = 1 / p.precision_matrix.diagonal(dim1=-2, dim2=-1)
    q_best = td.MultivariateNormal(mean, torch.diag_embed(best))
    approximation = td.kl_divergence(p, q_best)
    q = td.MultivariateNormal(q_mean, torch.diag_embed(q_scale**2))
    return approximation, td.kl_divergence(p, q) - approximation


def _at_the_encoders_mean(
    mean: Tensor, covariance: Tensor, q_mean: Tensor, q_scale: Tensor
) -> tuple[Tensor, Tensor]:
    best = 1 / torch.linalg.inv(covariance).diagonal(dim1=-2, dim2=-1)
    approximation = _divergence(q_mean, best, mean, covariance)
    return approximation, _divergence(q_mean, q_scale**2, mean, covariance) - approximation


register(
    Exercise(
        "2.1",
        title="Two gaps of an encoder",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=20,
        solution=two_gaps,
        judge=_judge_two_gaps,
        mistakes=(
            Mistake(
                "The second value is the whole inference gap, from the encoder's answer to the "
                "posterior. The amortisation gap is what is left of it without the approximation "
                "gap.",
                lambda m, c, q_m, q_s: (
                    two_gaps(m, c, q_m, q_s)[0],
                    _divergence(q_m, q_s**2, m, c),
                ),
            ),
            Mistake(
                "The best member is given the marginal variances of the posterior. Those are best "
                "for the other divergence, KL(p ‖ q); the ELBO is highest at the conditional "
                "ones, 1/Λᵢᵢ.",
                _with_marginals,
            ),
            Mistake(
                "This is the divergence in the other direction, KL(p ‖ q). What separates "
                "log p(x) from an ELBO is KL(q ‖ p), with the expectation over q.",
                _turned_round,
            ),
            Mistake(
                "The best member has the mean of the posterior, not the encoder's. What the "
                "encoder's mean misses belongs to the amortisation gap.",
                _at_the_encoders_mean,
            ),
            Mistake(
                "The encoder's scale stands where its variance belongs: the scale is σ, and the "
                "divergence holds σ².",
                lambda m, c, q_m, q_s: two_gaps(m, c, q_m, q_s.sqrt()),
            ),
            Mistake(
                "The two gaps are in the wrong order: the approximation gap, which does not "
                "depend on the encoder, comes first.",
                lambda m, c, q_m, q_s: two_gaps(m, c, q_m, q_s)[::-1],
            ),
            Mistake(
                "The second value is the divergence of the encoder's answer from the best member. "
                "The amortisation gap is a difference of two ELBOs, so of two divergences from "
                "the posterior. That is the same without correlation, or if the mean is exact, "
                "and not in general.",
                _from_the_best,
            ),
        ),
        hints=(
            "One of the two does not depend on what the encoder says. Which is it, and where does "
            "the chapter give its formula?",
            "The two add up to KL(q ‖ p), from the encoder's answer to the posterior. For a "
            "diagonal q against a full p, `vt.kl` has the closed form.",
            "The best diagonal q has the mean of the posterior and the variances 1/Λᵢᵢ, with Λ "
            "the inverse of the covariance. Its divergence is the first value; the divergence of "
            "the encoder's answer less that is the second.",
        ),
        lesson="The amortisation gap splits once more: into what the mean misses, ½ dᵀΛd with d "
        "the encoder's mean less the posterior's, and what the scales miss, a sum of "
        "½ (r − 1 − ln r) with r = σ²Λᵢᵢ, the ratio of the encoder's variance to the best one. "
        "The first knows of correlations: the same miss is dear across a narrow posterior and "
        "cheap along it.",
    )
)


# 2.2


def break_even_point(training: float, encoder: float, search: float) -> float:
    if encoder >= search:
        return float("inf")
    return training / (search - encoder)


def _judge_break_even_point(attempt: Attempt) -> None:
    numbers = torch.rand(5, 3, generator=attempt.generator).tolist()
    for u, v, w in numbers[:3]:
        points, encoder = 3 + 400 * u, 0.2 + v
        search = encoder + 0.3 + 5 * w
        training = points * (search - encoder)
        found = attempt(training, encoder, search)
        attempt.close(found, points, "the crossing of the two costs")
    training, search, extra = numbers[3]
    for encoder, what in (
        (search + 0.1 + extra, "an encoder pass dearer than a search"),
        (search, "an encoder pass as dear as a search"),
    ):
        try:
            found = attempt(10 + training, encoder, search)
        except Wrong as wrong:
            attempt.fail(f"For {what}: {str(wrong)[:1].lower()}{str(wrong)[1:]}")
        attempt.close(found, math.inf, what, rtol=0)


register(
    Exercise(
        "2.2",
        title="When to amortise",
        page=PAGE,
        kind="function",
        difficulty="easy",
        minutes=10,
        solution=break_even_point,
        judge=_judge_break_even_point,
        mistakes=(
            Mistake(
                "The pass through the encoder is left out. It is cheap beside a search, but it is "
                "paid for every datapoint, so each of them saves less than a search.",
                lambda training, encoder, search: training / search,
            ),
            Mistake(
                "The ratio is upside down: this is the part of the training that one datapoint "
                "pays back, not the number of datapoints that pay all of it.",
                lambda training, encoder, search: (search - encoder) / training,
            ),
            Mistake(
                "The two costs for one datapoint are added. A datapoint that goes through the "
                "encoder saves a search and costs a pass: the difference counts.",
                lambda training, encoder, search: training / (search + encoder),
            ),
            Mistake(
                "Where the pass costs more than the search, every datapoint adds to the loss. The "
                "formula then gives a negative number, at which nothing happens; the encoder "
                "never pays, and the answer is infinity.",
                lambda training, encoder, search: training / (search - encoder),
            ),
            Mistake(
                "It is rounded to a whole number. Asked for is the crossing of the two lines, as "
                "it comes.",
                lambda training, encoder, search: (
                    math.ceil(training / (search - encoder)) if search > encoder else math.inf
                ),
            ),
        ),
        hints=(
            "Write down what N datapoints cost in either way, as two straight lines over N.",
            "One line starts at zero, the other at the cost of the training. They cross where N "
            "datapoints have saved what the training has cost.",
            "One datapoint saves the cost of a search less that of a pass. Divide the training by "
            "what it saves; but look first whether it saves anything.",
        ),
        lesson="The price of a search is a matter of choice. Halve its steps and it costs about "
        "half; while a pass is cheap beside it, the crossing moves out to about twice as many "
        "datapoints. So a break-even says little without the accuracy of the search.",
        origin="amortisation, question 2",
    )
)


# 2.3


def shared_scale_price(variance: Tensor) -> Tensor:
    best = 1 / (1 / variance).mean(0)  # the harmonic mean, for each dimension
    return 0.5 * (variance.log().mean(0) - best.log()).sum()


def _at_shared(variance: Tensor, shared: Tensor) -> Tensor:
    """Mean over the datapoints of KL(N(0, shared) || N(0, variance)), for each dimension."""
    q, p = td.Normal(0.0, shared.sqrt()), td.Normal(0.0, variance.sqrt())
    return td.kl_divergence(q, p).mean(0)


def _least_price(variance: Tensor) -> Tensor:
    """The least mean divergence of a shared variance, by a search of its logarithm.

    The mean divergence has one minimum, so a third of the interval can be dropped at each step.
    """
    low, high = variance.log().amin(0), variance.log().amax(0)
    for _ in range(100):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        lower = _at_shared(variance, left.exp()) < _at_shared(variance, right.exp())
        low, high = torch.where(lower, low, left), torch.where(lower, right, high)
    return _at_shared(variance, ((low + high) / 2).exp()).sum()


def _judge_shared_scale_price(attempt: Attempt) -> None:
    def compare(variance: Tensor, what: str) -> None:
        # An answer may search for the minimum, with the accuracy of a search.
        found, price = attempt(variance), _least_price(variance)
        attempt.close(found, price, f"the price for {what}", rtol=1e-4, atol=1e-4)

    for n, dim in ((6, 3), (50, 1), (2, 8)):
        variance = (1.2 * torch.randn(n, dim, generator=attempt.generator) - 1).exp()
        compare(variance, f"N = {n}, D = {dim}")
    single = torch.rand(1, 4, generator=attempt.generator) + 0.2
    compare(single, "a single datapoint")
    compare(single.repeat(5, 1), "five datapoints with equal variances")
    compare(torch.tensor([[0.01], [1.0], [100.0]]), "variances from 0.01 to 100")


register(
    Exercise(
        "2.3",
        title="The price of a shared scale",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=15,
        solution=shared_scale_price,
        judge=_judge_shared_scale_price,
        mistakes=(
            Mistake(
                "The shared variance is the arithmetic mean. That is too wide: being too wide "
                "for a narrow posterior costs more than being as much too narrow for a wide one.",
                lambda v: _at_shared(v, v.mean(0)).sum(),
            ),
            Mistake(
                "This is the least price in the other direction, KL(p ‖ q), for which the "
                "arithmetic mean of the variances is best. The ELBO loses KL(q ‖ p).",
                lambda v: 0.5 * (v.mean(0).log() - v.log().mean(0)).sum(),
            ),
            Mistake(
                "The shared variance is the geometric mean, the mean on a logarithmic axis. It "
                "would be best if a factor too wide cost as much as the same factor too narrow, "
                "and it costs more.",
                lambda v: _at_shared(v, v.log().mean(0).exp()).sum(),
            ),
            Mistake(
                "The shared scale is the mean of the standard deviations. It is too wide: the "
                "divergence holds the ratio s²/v, in which the narrow posteriors weigh the most.",
                lambda v: _at_shared(v, v.sqrt().mean(0).square()).sum(),
            ),
            Mistake(
                "The dimensions are averaged. The divergence of a product of densities is the sum "
                "of theirs.",
                lambda v: _least_price(v) / v.shape[1],
            ),
            Mistake(
                "The factor ½ of the Gaussian divergence is missing: the logarithms are those of "
                "variances, and the price is half of their difference.",
                lambda v: 2 * _least_price(v),
            ),
            Mistake(
                "The datapoints are summed. The price is per datapoint: the mean over them.",
                lambda v: _least_price(v) * v.shape[0],
            ),
            Mistake(
                "This is one scale for all dimensions; each has its own.",
                lambda v: _at_shared(v, (1 / v).mean().reciprocal()).sum(),
            ),
        ),
        hints=(
            "The means agree, so take one dimension and write down KL(q ‖ p) for two normals with "
            "the same mean and the variances s² and v. Then take its mean over the datapoints.",
            "Of the mean divergence s² meets only two terms: s² times the mean of 1/v, and "
            "minus ln s². Set the derivative for s² to zero.",
            "The best s² is the harmonic mean of the variances. With it the two terms without a "
            "logarithm cancel. What is left is half of a mean of logarithms less a logarithm, and "
            "the dimensions add up.",
        ),
        lesson="The harmonic mean is never above the arithmetic one: the best shared variance is "
        "at most what the posteriors' own are on average, so the codes look surer than they are. "
        "The price stays the same when all the variances are multiplied by one number: only their "
        "ratios count.",
        origin="parametrisation, question 1",
    )
)


# 2.4


def by_turns(
    elbo: Callable[[Tensor, Tensor], Tensor],
    phi: Tensor,
    theta: Tensor,
    rate: float,
    inner: int,
) -> tuple[Tensor, Tensor]:
    phi, theta = phi.detach().clone(), theta.detach().clone()
    for _ in range(inner):
        phi.requires_grad_()
        (slope,) = torch.autograd.grad(elbo(phi, theta), phi)
        phi = (phi + rate * slope).detach()
    theta.requires_grad_()
    (slope,) = torch.autograd.grad(elbo(phi, theta), theta)
    return phi, (theta + rate * slope).detach()


def _judge_by_turns(attempt: Attempt) -> None:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=attempt.generator)

    h, a, g, c = _covariances(attempt, 1, 3)[0], normal(3, 2), _covariances(attempt, 1, 2)[0], 2

    def quadratic(phi: Tensor, theta: Tensor) -> Tensor:
        off, away = phi - a @ theta, theta - c
        return -0.5 * (off @ h @ off) - 0.5 * (away @ g @ away)

    def slopes(phi: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        off = h @ (phi - a @ theta)
        return -off, a.T @ off - g @ (theta - c)

    def quartic(phi: Tensor, theta: Tensor) -> Tensor:
        return -((phi - theta) ** 4).sum() / 4 - theta.exp()

    def quartic_slopes(phi: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return -((phi - theta) ** 3), ((phi - theta) ** 3).sum() - theta.exp()

    for elbo, exact, phi, theta, rate, inner in (
        (quadratic, slopes, normal(3), normal(2), 0.2, 3),
        (quadratic, slopes, normal(3), normal(2), 0.3, 1),
        (quartic, quartic_slopes, normal(2, 4) / 2, normal() / 2, 0.05, 5),
    ):
        found = attempt(elbo, phi.clone(), theta.clone(), rate, inner)
        pair = isinstance(found, tuple | list) and len(found) == 2
        attempt.require(pair, "Two tensors are asked for, the new φ and the new θ.")
        for _ in range(inner):
            phi = phi + rate * exact(phi, theta)[0]
        theta = theta + rate * exact(phi, theta)[1]
        attempt.close(found[0], phi, f"the new φ, inner = {inner}")
        attempt.close(found[1], theta, f"the new θ, inner = {inner}")


def _theta_first(elbo: Any, phi: Tensor, theta: Tensor, rate: float, inner: int) -> Any:  # noqa: ANN401
    _, theta = by_turns(elbo, phi, theta, rate, 0)
    phi, _ = by_turns(elbo, phi, theta, rate, inner)
    return phi, theta


def _theta_each_time(elbo: Any, phi: Tensor, theta: Tensor, rate: float, inner: int) -> Any:  # noqa: ANN401
    for _ in range(inner):
        phi, theta = by_turns(elbo, phi, theta, rate, 1)
    return phi, theta


def _accumulated(elbo: Any, phi: Tensor, theta: Tensor, rate: float, inner: int) -> Any:  # noqa: ANN401
    slope = torch.zeros_like(phi)
    for _ in range(inner):
        slope = slope + by_turns(elbo, phi, theta, 1.0, 1)[0] - phi
        phi = phi + rate * slope
    return phi, theta


def _theta_accumulated(elbo: Any, phi: Tensor, theta: Tensor, rate: float, inner: int) -> Any:  # noqa: ANN401
    last, new = by_turns(elbo, phi, theta, rate, inner)
    for count in range(inner):
        new = new + by_turns(elbo, phi, theta, rate, count)[1] - theta
    return last, new


register(
    Exercise(
        "2.4",
        title="By turns",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=15,
        solution=by_turns,
        judge=_judge_by_turns,
        mistakes=(
            Mistake(
                "This goes downhill. The ELBO is to be made larger, so a step adds the gradient; "
                "the minus belongs to a loss.",
                lambda elbo, phi, theta, rate, inner: by_turns(elbo, phi, theta, -rate, inner),
            ),
            Mistake(
                "The gradient for θ is taken at the old φ. That is the joint update: by turns, θ "
                "moves when φ has moved, and its gradient is taken at the new φ.",
                lambda elbo, phi, theta, rate, inner: (
                    by_turns(elbo, phi, theta, rate, inner)[0],
                    by_turns(elbo, phi, theta, rate, 0)[1],
                ),
            ),
            Mistake(
                "θ moves first, so the steps of φ see another model. The round begins with φ: the "
                "encoder catches up with the model as it is.",
                _theta_first,
            ),
            Mistake(
                "θ moves after each step of φ. In one round it is held fixed until φ has taken "
                "all its steps, and then moves once.",
                _theta_each_time,
            ),
            Mistake(
                "The step size is missing: each step is `rate` times the gradient. Without it the "
                "ascent can diverge.",
                lambda elbo, phi, theta, rate, inner: by_turns(elbo, phi, theta, 1.0, inner),
            ),
            Mistake(
                "φ takes one step only. It takes as many as `inner` says, each with a gradient "
                "at the φ of that moment.",
                lambda elbo, phi, theta, rate, inner: by_turns(elbo, phi, theta, rate, 1),
            ),
            Mistake(
                "The gradients for φ accumulate over the inner passes: `backward` adds to "
                "`.grad`. Clear it before each pass, or use `torch.autograd.grad`.",
                _accumulated,
            ),
            Mistake(
                "The gradient for θ holds those of the passes for φ as well: `backward` adds to "
                "the `.grad` of both. Clear that of θ before its own pass.",
                _theta_accumulated,
            ),
            Mistake(
                "All inner steps use the gradient at the first φ. Each step has moved φ, so the "
                "next one needs the gradient anew.",
                lambda elbo, phi, theta, rate, inner: by_turns(elbo, phi, theta, inner * rate, 1),
            ),
        ),
        hints=(
            "A gradient is taken at a point. Write down for each step at which φ and which θ it "
            "is taken.",
            "`torch.autograd.grad(value, tensor)` gives the gradient and leaves the tensor as it "
            "is. The tensor has to have `requires_grad_()` set before the value is computed.",
            "A loop with `inner` rounds: gradient for φ, then a new φ, detached from the old one. "
            "After the loop the ELBO once more, at the last φ, and from it the gradient for θ.",
        ),
        lesson="Were φ at its best for this θ, the gradient for θ would be that of the best "
        "bound itself: φ moves with θ, but at its best a small move of φ changes nothing. The "
        "inner steps bring the gradient for θ nearer to that one; a joint step does without, and "
        "gets both gradients from one pass.",
    )
)


# 2.5


def steps_needed(gap: float, tolerance: float, rate: float, curvature: float) -> int:
    count = 0
    while gap > tolerance:
        gap = gap * (1 - rate * curvature) ** 2
        count = count + 1
    return count


def _judge_steps_needed(attempt: Attempt) -> None:
    def cases(
        steps: tuple[float, ...], least: float, span: float
    ) -> list[tuple[float, float, float, float]]:
        """Arguments for searches that arrive after so many steps, which need not be whole."""
        made = []
        for number in steps:
            u, v, w = torch.rand(3, generator=attempt.generator).tolist()
            product, tolerance, curvature = least + span * u, 0.01 + 0.05 * v, 0.5 + 4 * w
            gap = tolerance * abs(1 - product) ** (-2 * number)
            made.append((gap, tolerance, product / curvature, curvature))
        return made

    def compare(
        arguments: list[tuple[float, float, float, float]], right: list[int], what: str
    ) -> None:
        found = [attempt(*each) for each in arguments]
        attempt.close(found, torch.tensor(right, dtype=torch.float64), what)

    several = cases((6.4, 22.7, 3.3, 0.6), 0.2, 0.3)
    compare(several, [7, 23, 4, 1], "the steps from four gaps")
    inside = cases((-3.4, -0.3, -12.6), 0.2, 0.3)
    inside.append((0.5, 0.5, 0.1, 1.0))
    compare(inside, [0, 0, 0, 0], "the steps from four gaps that are within the tolerance")
    over = cases((2.4, 5.7, 1.6), 1.3, 0.5)
    compare(over, [3, 6, 2], "the steps of a search whose ηh is above 1")
    slow = cases((2500.5,), 0.001, 0.001)
    compare(slow, [2501], "the steps of a slow search")


def _logarithm(gap: float, tolerance: float, rate: float, curvature: float) -> float:
    """Steps as a number that need not be whole."""
    return math.log(gap / tolerance) / (-2 * math.log(abs(1 - rate * curvature)))


register(
    Exercise(
        "2.5",
        title="Learning to start",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=15,
        solution=steps_needed,
        judge=_judge_steps_needed,
        mistakes=(
            Mistake(
                "It is the distance to λ* that shrinks by 1 − ηh in a step. The gap is quadratic "
                "in the distance, so it shrinks by the square of that, and half the steps are "
                "enough.",
                lambda g, t, r, h: max(0, math.ceil(2 * _logarithm(g, t, r, h))),
            ),
            Mistake(
                "It is rounded down, and after that many steps the gap is still above the "
                "tolerance. A part of a step cannot be taken: round up.",
                lambda g, t, r, h: max(0, math.floor(_logarithm(g, t, r, h))),
            ),
            Mistake(
                "A gap that is within the tolerance already gives a negative number of steps. "
                "Nothing is left to do there: zero steps.",
                lambda g, t, r, h: math.ceil(_logarithm(g, t, r, h)),
            ),
            Mistake(
                "The two logarithms have different bases. Their ratio is the number of steps only "
                "if both have the same one, whichever it is.",
                lambda g, t, r, h: max(0, math.ceil(_logarithm(g, t, r, h) / math.log(10))),
            ),
            Mistake(
                "The gap is taken to fall by exp(−2ηh) in a step. That is the limit of small "
                "steps; a step of size η multiplies the gap by (1 − ηh)², which is less where "
                "ηh is below 1.",
                lambda g, t, r, h: max(0, math.ceil(math.log(g / t) / (2 * r * h))),
            ),
        ),
        hints=(
            "What does one step of gradient ascent do to the distance λ − λ*? The gradient of the "
            "ELBO is −h (λ − λ*).",
            "The distance is multiplied by 1 − ηh, and the gap is half of h times its square. So "
            "the gap is multiplied by one and the same number at each step.",
            "Multiply the gap by that number until it is at most the tolerance, and count; or "
            "solve for the count with logarithms and round up. Mind a gap that is small enough "
            "at the start, and a step with ηh above 1.",
        ),
        lesson="From the gap g₀ at a cold start and g₁ at the encoder's answer, both above the "
        "tolerance, the encoder saves ln(g₀/g₁) / (−2 ln |1 − ηh|) steps, up to rounding. The "
        "tolerance is not in that. A tighter one does not make the start worth more steps; the "
        "search that remains gets longer, and the saving is a smaller part of it all.",
        origin="amortisation, question 1",
    )
)
