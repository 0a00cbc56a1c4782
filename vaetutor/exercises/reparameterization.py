"""Exercises of chapter 3, reparameterisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributions as td
from torch import Tensor

from vaetutor.exact import ConjugateNormal
from vaetutor.exercises._attempt import Attempt
from vaetutor.exercises._declare import Exercise, Mistake, register

PAGE = "03_reparameterization"


def _reached(attempt: Attempt, gradients: Sequence[Tensor], names: str) -> None:
    """Whether each of `gradients` is there at all: which ones are missing tells mistakes apart."""
    there = torch.tensor([float(bool((each != 0).any())) for each in gradients])
    attempt.close(there, torch.ones_like(there), f"whether a gradient reaches {names}")


# 3.1


def draw(mean: Tensor, log_var: Tensor, eps: Tensor) -> Tensor:
    scale = (0.5 * log_var).exp()
    return mean + scale * eps  # (B, D) meets (S, B, D) from the right


def _judge_draw(attempt: Attempt) -> None:
    standard = td.Normal(0.0, 1.0)
    for draws, batch, dim in ((3, 4, 2), (5, 1, 3), (1, 6, 1)):
        mean = torch.randn(batch, dim, generator=attempt.generator).requires_grad_()
        log_var = torch.randn(batch, dim, generator=attempt.generator).sub(1).requires_grad_()
        eps = torch.randn(draws, batch, dim, generator=attempt.generator)
        # The draw of a normal that lies where eps lies in the standard one.
        q = td.Normal(mean.detach(), log_var.detach().exp().sqrt())
        expected = q.icdf(standard.cdf(eps))
        found = attempt(mean, log_var, eps)
        attempt.close(found, expected, f"the draws, S = {draws}, B = {batch}, D = {dim}")
        of_mean, of_log_var = attempt.gradient(found, [mean, log_var])
        _reached(attempt, [of_mean, of_log_var], "the mean and the log-variance")
        attempt.close(of_mean, torch.full_like(mean, draws), "their gradient for the mean")
        slope = (expected - mean.detach()).sum(0) / 2
        attempt.close(of_log_var, slope, "their gradient for the log-variance")
    wide = attempt(torch.zeros(1, 2), torch.tensor([[-80.0, 80.0]]), torch.full((1, 1, 2), 1.5))
    attempt.close(
        wide,
        torch.tensor([[[1.5 * math.exp(-40), 1.5 * math.exp(40)]]]),
        "log-variances of -80 and 80",
        atol=1e-25,
    )


register(
    Exercise(
        "3.1",
        title="A draw that can be differentiated",
        page=PAGE,
        kind="function",
        difficulty="easy",
        minutes=10,
        origin="parametrisation, question 2",
        solution=draw,
        judge=_judge_draw,
        mistakes=(
            Mistake(
                "The log-variance is used as if it were σ: it can be negative, and where it is 0 "
                "the draw does not move at all, though σ is 1 there.",
                lambda mean, log_var, eps: mean + log_var * eps,
            ),
            Mistake(
                "The exponential of the log-variance is σ², and it is used as σ. The draws are "
                "too wide where σ is above 1 and too narrow where it is below.",
                lambda mean, log_var, eps: mean + log_var.exp() * eps,
            ),
            Mistake(
                "The mean is missing: every example is drawn around 0, and no gradient reaches "
                "the mean.",
                lambda mean, log_var, eps: (log_var / 2).exp() * eps + 0 * mean,
            ),
            Mistake(
                "All examples of the batch share the noise of the first one. Each needs its own: "
                "with shared noise the errors of the examples do not average out over the batch.",
                lambda mean, log_var, eps: mean + (log_var / 2).exp() * eps[:, :1],
            ),
            Mistake(
                "The values are right, but no gradient flows: the draw has been cut from its "
                "parameters, as `sample` cuts it. An encoder behind it learns nothing from the "
                "reconstruction.",
                lambda mean, log_var, eps: draw(mean, log_var, eps).detach(),
            ),
            Mistake(
                "The gradient reaches the log-variance, but not the mean: it has been cut off. "
                "The position of q then never follows the reconstruction.",
                lambda mean, log_var, eps: draw(mean.detach(), log_var, eps),
            ),
            Mistake(
                "The gradient reaches the mean, but not the log-variance: σ has been cut off. The "
                "width of q then never follows the reconstruction.",
                lambda mean, log_var, eps: mean + (log_var / 2).exp().detach() * eps,
            ),
        ),
        hints=(
            "Which power of the variance is σ? And what does that do to its logarithm?",
            "Shapes broadcast from the right, so (B, D) goes together with (S, B, D) as it is. "
            "Every draw of every example then meets noise of its own.",
            "Halve the logarithm before the exponential: that is σ. Scale the noise by it, shift "
            "by the mean, and keep `detach`, `no_grad` and `.data` out of it.",
        ),
        lesson="Halving the logarithm is better than taking the root of the exponential. Where "
        "that exponential rounds to zero, in float32 for a log-variance below about -104, the "
        "root has an infinite slope, and the gradient is NaN.",
    )
)


# 3.2


def draw_full(mean: Tensor, scale_tril: Tensor, eps: Tensor) -> Tensor:
    # For each draw s and example b, the product of the matrix L_b with the vector eps_sb.
    noise = (scale_tril @ eps.unsqueeze(-1)).squeeze(-1)
    return mean + noise


def _lower(batch: int, dim: int, generator: torch.Generator) -> Tensor:
    """Lower triangular factors with a positive diagonal, (B, D, D)."""
    below = torch.randn(batch, dim, dim, generator=generator).tril(-1)
    return below + torch.diag_embed(torch.rand(batch, dim, generator=generator) + 0.5)


def _judge_draw_full(attempt: Attempt) -> None:
    # In the first case a product that takes draws for examples fits, and can be told what it is.
    for draws, batch, dim in ((4, 4, 3), (5, 2, 3), (3, 1, 2), (1, 6, 4), (2, 3, 1)):
        mean = torch.randn(batch, dim, generator=attempt.generator).requires_grad_()
        scale_tril = _lower(batch, dim, attempt.generator).requires_grad_()
        eps = torch.randn(draws, batch, dim, generator=attempt.generator)
        m, lower, e = (each.detach().numpy() for each in (mean, scale_tril, eps))
        expected = [[m[b] + lower[b].dot(e[s, b]) for b in range(batch)] for s in range(draws)]
        found = attempt(mean, scale_tril, eps)
        attempt.close(
            found,
            torch.from_numpy(np.array(expected)),
            f"the draws, S = {draws}, B = {batch}, D = {dim}",
        )
        of_mean, of_scale = attempt.gradient(found, [mean, scale_tril])
        _reached(attempt, [of_mean, of_scale], "the mean and the factor")
        attempt.close(of_mean, torch.full_like(mean, draws), "their gradient for the mean")
        # Row i of L multiplies all of eps, and moves z_i alone.
        slope = eps.sum(0).unsqueeze(1).expand(batch, dim, dim).tril()
        attempt.close(of_scale.tril(), slope, "their gradient for the factor")


register(
    Exercise(
        "3.2",
        title="A draw with full covariance",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=10,
        solution=draw_full,
        judge=_judge_draw_full,
        mistakes=(
            Mistake(
                "This is Lᵀε. The covariance of such draws is LᵀL, which is another matrix than "
                "L Lᵀ. As row vectors, L ε is `eps @ L.T`, not `eps @ L`.",
                lambda mean, scale_tril, eps: draw_full(mean, scale_tril.mT, eps),
            ),
            Mistake(
                "The noise is multiplied with the covariance Σ = L Lᵀ itself. The draws then have "
                "the covariance Σ Σ: what is needed is a root of Σ, and L is one.",
                lambda mean, scale_tril, eps: draw_full(mean, scale_tril @ scale_tril.mT, eps),
            ),
            Mistake(
                "Only the diagonal of L is used. The draws have independent coordinates, whatever "
                "stands below the diagonal, and that part gets no gradient.",
                lambda mean, scale_tril, eps: mean + scale_tril.diagonal(dim1=-2, dim2=-1) * eps,
            ),
            Mistake(
                "The draws are taken for the examples: a product of an (S, B, D) with a (B, D, D) "
                "tensor pairs matrix b with draw b. It fits only where S = B, and here it mixes "
                "up whose L is whose.",
                lambda mean, scale_tril, eps: mean + eps @ scale_tril.mT,
            ),
            Mistake(
                "All examples are drawn with the factor of the first one. Each has its own L.",
                lambda mean, scale_tril, eps: draw_full(
                    mean, scale_tril[:1].expand_as(scale_tril), eps
                ),
            ),
            Mistake(
                "The noise is multiplied with the inverse of L. That is the way back, from z − μ "
                "to ε, and the covariance of such draws is not Σ.",
                lambda mean, scale_tril, eps: draw_full(mean, torch.linalg.inv(scale_tril), eps),
            ),
            Mistake(
                "Every ε_i is multiplied with the sum of row i of L. The sum has to run over the "
                "index of ε as well: Σ_j L_ij ε_j, so ε lies along the rows, as (S, B, 1, D).",
                lambda mean, scale_tril, eps: mean + scale_tril.sum(-1) * eps,
            ),
            Mistake(
                "The values are right, but no gradient flows to the mean and the factor.",
                lambda mean, scale_tril, eps: draw_full(mean, scale_tril, eps).detach(),
            ),
            Mistake(
                "The gradient reaches the means, but not the factors: L has been cut off. The "
                "covariance of q then never follows the reconstruction.",
                lambda mean, scale_tril, eps: draw_full(mean, scale_tril.detach(), eps),
            ),
        ),
        hints=(
            "Write it for one draw and one example first: a matrix (D, D) times a vector (D,). "
            "Which index of L is summed over?",
            "z_i = μ_i + Σ_j L_ij ε_j. Row i of L belongs to the coordinate i of the draw; the "
            "index of the example stands on all three, that of the draw on ε and z only.",
            "`einsum` takes exactly these indices. Or make ε a column, (S, B, D, 1): a product "
            "with (B, D, D) then runs for every draw, and the last axis can go again.",
        ),
        lesson="With this root the density of the draw is nearly free, since ε is still at hand: "
        "log q(z) = −½ ‖ε‖² − Σ_i log L_ii − ½ D log 2π. No system is solved and no determinant "
        "computed.",
    )
)


# 3.3


def kumaraswamy_draw(u: Tensor, a: Tensor, b: Tensor) -> Tensor:
    power = 1 - (1 - u) ** (1 / b)  # z^a, from u = 1 - (1 - z^a)^b
    return power ** (1 / a)


def _falls(found: object, u: Tensor) -> bool:
    """Whether an answer falls as u rises: it has put 1 - u for u, which is as good."""
    if not isinstance(found, Tensor | np.ndarray) or tuple(found.shape) != tuple(u.shape):
        return False
    value = torch.as_tensor(found).detach()
    return bool((value * (u - u.mean(0))).sum() < 0)


def _judge_kumaraswamy_draw(attempt: Attempt) -> None:
    for draws, batch in ((5, 3), (2, 6), (4, 1)):
        u = torch.rand(draws, batch, generator=attempt.generator) * 0.98 + 0.01
        a = (torch.rand(batch, generator=attempt.generator) * 2 + 1.2).requires_grad_()
        b = (torch.rand(batch, generator=attempt.generator) * 1.5 + 0.5).requires_grad_()
        with torch.no_grad():
            q = td.Kumaraswamy(a, b)
            z = q.icdf(u)
        found = attempt(u, a, b)
        if _falls(found, u):
            found = attempt(1 - u, a, b)
        attempt.close(found, z, f"the draws, S = {draws}, B = {batch}")
        # The gradient of any path: minus the derivative of F, over the density.
        below = -torch.expm1(b * torch.log1p(-(z**a)))
        density = q.log_prob(z).exp()
        slopes = attempt.gradient(found, [a, b])
        _reached(attempt, slopes, "a and b")
        for name, slope, parameter in zip(("a", "b"), slopes, (a, b), strict=True):
            (of_f,) = torch.autograd.grad(
                below, parameter, grad_outputs=1 / density, retain_graph=True
            )
            attempt.close(slope, -of_f, f"their gradient for {name}")


register(
    Exercise(
        "3.3",
        title="By the inverse distribution function",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=10,
        solution=kumaraswamy_draw,
        judge=_judge_kumaraswamy_draw,
        mistakes=(
            Mistake(
                "a and b are swapped. a is the power of z itself, inside; b that of the bracket, "
                "outside. Backwards the outer one is undone first.",
                lambda u, a, b: kumaraswamy_draw(u, b, a),
            ),
            Mistake(
                "This is the distribution function itself, F(u). It turns draws into uniform "
                "numbers; the draw is made by its inverse.",
                lambda u, a, b: 1 - (1 - u**a) ** b,
            ),
            Mistake(
                "The steps are undone in the right order, but the powers are not: the inverse of "
                "x ↦ xᵇ is x ↦ x^(1/b).",
                lambda u, a, b: (1 - (1 - u) ** b) ** a,
            ),
            Mistake(
                "The second `1 −` is missing: 1 − u = (1 − zᵃ)ᵇ, so the root of the left side is "
                "1 − zᵃ and not zᵃ.",
                lambda u, a, b: ((1 - u) ** (1 / b)) ** (1 / a),
            ),
            Mistake(
                "The values are right, but no gradient flows to a and b. As it stands it is a "
                "draw, not a reparameterisation.",
                lambda u, a, b: kumaraswamy_draw(u, a, b).detach(),
            ),
        ),
        hints=(
            "Set F(z) equal to u and solve for z, one layer after the other, from the outside in.",
            "First bring the bracket alone to one side: 1 − u = (1 − zᵃ)ᵇ. Then take the root "
            "that belongs to b.",
            "Now zᵃ is 1 minus that root, and z is the root of it that belongs to a. Plain torch "
            "operations carry the gradient by themselves.",
        ),
        lesson="With 1 − u for u the draws are others, but the derivative that belongs to a draw "
        "z is the same: −∂F(z)/∂a over the density depends on z alone. In one dimension it does "
        "not matter by which inverse a draw was made, which is why implicit gradients need none.",
    )
)


# 3.4


def loo_surrogate(f: Tensor, log_q: Tensor) -> Tensor:
    reward = f.detach()
    others = (reward.sum(0) - reward) / (len(reward) - 1)  # the mean without the own draw
    return ((reward - others) * log_q).mean(0)


def _judge_loo_surrogate(attempt: Attempt) -> None:
    for draws, batch, level in ((3, 4, 2.0), (2, 5, -1.0), (7, 1, 0.5), (5, 2, 30.0)):
        f = (torch.randn(draws, batch, generator=attempt.generator) + level).requires_grad_()
        log_q = torch.randn(draws, batch, generator=attempt.generator).sub(3).requires_grad_()
        rewards = f.detach().numpy()
        own = [rewards[i] - np.delete(rewards, i, axis=0).mean(0) for i in range(draws)]
        found = attempt(f, log_q)
        shape = tuple(getattr(found, "shape", ()))
        attempt.require(
            shape == (batch,),
            f"The shape: one value for each of the {batch} examples is asked for, {(batch,)}, "
            f"found {shape}.",
        )
        # Gradients have the precision of f and log q, whatever has been computed in between.
        attempt.rough |= isinstance(found, Tensor) and found.dtype == torch.float32
        of_f, of_log_q = attempt.gradient(found, [f, log_q])
        attempt.close(
            of_log_q,
            torch.from_numpy(np.array(own)) / draws,
            f"the gradient for log q, S = {draws}, B = {batch}",
        )
        attempt.close(of_f, torch.zeros_like(f), "the gradient that leaks into f")


register(
    Exercise(
        "3.4",
        title="Leave one out",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=20,
        solution=loo_surrogate,
        judge=_judge_loo_surrogate,
        mistakes=(
            Mistake(
                "The reward is not detached. Besides the score-function gradient, log q times the "
                "gradient of f comes out of the backward pass: parameters inside f get a wrong "
                "gradient, without any error.",
                lambda f, log_q: ((f - (f.sum(0) - f) / (len(f) - 1)) * log_q).mean(0),
            ),
            Mistake(
                "The baseline holds its own draw: the mean runs over all S. The gradient is "
                "shrunk by (S − 1) / S for every set of draws.",
                lambda f, log_q: ((f - f.mean(0)).detach() * log_q).mean(0),
            ),
            Mistake(
                "There is no baseline. The gradient is unbiased, but it is multiplied with the "
                "size of f, and its variance with the square of that.",
                lambda f, log_q: (f.detach() * log_q).mean(0),
            ),
            Mistake(
                "The sign is turned round. A step along this gradient makes the expectation of f "
                "smaller: a low reward is pulled up, a high one pushed down.",
                lambda f, log_q: -loo_surrogate(f, log_q),
            ),
            Mistake(
                "The draws are summed. An expectation is estimated by their mean: this gradient "
                "is S times too long.",
                lambda f, log_q: len(f) * loo_surrogate(f, log_q),
            ),
            Mistake(
                "The baseline is taken across the batch: each example is compared with other "
                "examples. It has to come from the other draws of the same example.",
                lambda f, log_q: (
                    (f - (f.sum(1, keepdim=True) - f) / (f.shape[1] - 1)).detach() * log_q
                ).mean(0),
            ),
        ),
        hints=(
            "What must the derivative of your value for log q of draw i be? Compare with the "
            "estimator of the page, in which ∇ log q is multiplied with a plain number.",
            "The sum over the other draws is the sum over all of them, less the own one. How many "
            "others are there?",
            "Cut f from its graph first. Then reward minus the mean of the others, times log q, "
            "and the mean over the first axis.",
        ),
        lesson="The value of this surrogate is a familiar number: the sample covariance of reward "
        "and log q, with S − 1 in the denominator. Leaving one out and that S − 1 are the same "
        "correction, which makes the covariance unbiased as well.",
    )
)


# 3.5


def score_variance(mean: Tensor, scale: float) -> Tensor:
    size = mean.sum() ** 2 / scale**2  # (E f)^2 times the Fisher information
    own = 3  # E eps_1^4
    others = len(mean) - 1  # E eps_1^2 E eps_j^2, for each j > 1
    return size + own + others - 1  # less the square of the true gradient, 1


def _by_quadrature(mean: Tensor, scale: float) -> float:
    """Over the own noise and the sum of all others; exact for this polynomial."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    own, others = nodes[:, None], math.sqrt(len(mean) - 1) * nodes
    gradient = (mean.sum().item() + scale * (own + others)) * own / scale
    first, second = ((weights * gradient**power).sum() for power in (1, 2))
    return float(second - first**2)


def _judge_score_variance(attempt: Attempt) -> None:
    for dim, scale in ((4, 0.7), (1, 1.3), (7, 0.2), (30, 2.5)):
        mean = torch.randn(dim, generator=attempt.generator) + 0.6
        attempt.close(
            attempt(mean, scale),
            _by_quadrature(mean, scale),
            f"the variance in {dim} dimension{'s' * (dim > 1)}, s = {scale}",
            reveal=False,
        )


register(
    Exercise(
        "3.5",
        title="Predict the variance of a gradient",
        page=PAGE,
        kind="function",
        difficulty="hard",
        minutes=20,
        solution=score_variance,
        judge=_judge_score_variance,
        mistakes=(
            Mistake(
                "The dimension is missing. The noise of every other coordinate is in f as well, "
                "and the score of the first one is multiplied with it.",
                lambda mean, scale: mean.sum() ** 2 / scale**2 + 2,
            ),
            Mistake(
                "This is the second moment. The variance is less than that by the square of the "
                "mean, which is the true derivative.",
                lambda mean, scale: score_variance(mean, scale) + 1,
            ),
            Mistake(
                "The fourth moment of a standard normal is taken for 1. It is 3, and it comes in "
                "where ε₁ of the score meets ε₁ in f.",
                lambda mean, scale: score_variance(mean, scale) - 2,
            ),
            Mistake(
                "This is the standard deviation. The variance is asked for.",
                lambda mean, scale: score_variance(mean, scale).sqrt(),
            ),
            Mistake(
                "f is held at its mean, as if only the score were random. But f moves with the "
                "draw, and together with the score.",
                lambda mean, scale: mean.sum() ** 2 / scale**2,
            ),
            Mistake(
                "Only the first mean is there. The score of m_1 meets all of f.",
                lambda mean, scale: mean[0] ** 2 / scale**2 + 2,
            ),
            Mistake(
                "This is the variance with f's mean as baseline. Without one the score is also "
                "multiplied with that mean, and the noise of this product comes on top.",
                lambda mean, scale: float(len(mean) + 1),
            ),
            Mistake(
                "The squares of the means are summed. What is squared is f, and so the sum of "
                "the means.",
                lambda mean, scale: mean.square().sum() / scale**2 + len(mean) + 1,
            ),
        ),
        hints=(
            "Write z_j = m_j + s ε_j. Then f is the sum of the means plus s times the sum of the "
            "noise, and the score for m_1 is ε_1 / s.",
            "Square the product of the two and take its mean, term by term. An odd power of any "
            "ε has mean zero; for even ones you need the second and the fourth moment.",
            "What is left are three parts: one with the squared sum of the means over s², one "
            "from ε_1⁴, and one from ε_1² ε_j² for each of the others. Subtract the square of "
            "the derivative, which you know: f rises with slope 1.",
        ),
        lesson="The pathwise gradient of this f is 1 for every draw, without any variance. And a "
        "baseline equal to the mean of f takes off the first term only: D + 1 is left, the price "
        "of not knowing the slope of f.",
    )
)


# 3.6


def stl_elbo(
    log_joint: Callable[[Tensor], Tensor], mean: Tensor, scale: Tensor, eps: Tensor
) -> Tensor:
    z = mean + scale * eps
    frozen = td.Normal(mean.detach(), scale.detach())  # its parameters, not the draw
    log_w = log_joint(z) - frozen.log_prob(z).sum(-1)
    return log_w.mean(0)


def _judge_stl_elbo(attempt: Attempt) -> None:
    for draws, batch, dim in ((3, 4, 2), (1, 5, 3), (6, 1, 1)):
        mean = torch.randn(batch, dim, generator=attempt.generator).requires_grad_()
        scale = (torch.rand(batch, dim, generator=attempt.generator) + 0.4).requires_grad_()
        eps = torch.randn(draws, batch, dim, generator=attempt.generator)
        shift = torch.randn(batch, dim, generator=attempt.generator).requires_grad_()

        def log_joint(z: Tensor, shift: Tensor = shift) -> Tensor:
            return -(z - shift).square().sum(-1) * (1 + 0.1 * z.sin().sum(-1))

        z = (mean + scale * eps).detach().requires_grad_()
        joint = log_joint(z)
        log_q = -(eps**2 / 2 + scale.log() + math.log(2 * math.pi) / 2).sum(-1)
        of_z, of_shift = torch.autograd.grad(joint.sum(), [z, shift])
        # d log q / d z = -eps / scale, with the parameters of q held fixed.
        along = of_z + eps / scale.detach()
        expected = torch.stack([along.mean(0), (along * eps).mean(0)])

        found = attempt(log_joint, mean, scale, eps)
        case = f"S = {draws}, B = {batch}, D = {dim}"
        attempt.close(found, (joint - log_q).mean(0), f"the ELBO, {case}")
        of_mean, of_scale, of_model = attempt.gradient(found, [mean, scale, shift])
        attempt.close(
            torch.stack([of_mean, of_scale]), expected, f"the gradient for mean and scale, {case}"
        )
        attempt.close(of_model, of_shift / draws, "the gradient for the model's parameter")
    model, x = ConjugateNormal(1.3, 0.6), torch.randn(6, 1, generator=attempt.generator)
    posterior = model.posterior(x)
    mean, scale = (each.clone().requires_grad_() for each in (posterior.mean, posterior.stddev))
    eps = torch.randn(1, 6, 1, generator=attempt.generator)
    found = attempt(lambda z: model.log_joint(x, z), mean, scale, eps)
    attempt.close(found, model.log_evidence(x), "one draw at the exact posterior")
    still = torch.cat(attempt.gradient(found, [mean, scale]))
    attempt.close(still, torch.zeros_like(still), "the gradient at the exact posterior", atol=1e-5)


register(
    Exercise(
        "3.6",
        title="Stick to the landing",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=15,
        solution=stl_elbo,
        judge=_judge_stl_elbo,
        mistakes=(
            Mistake(
                "This is the total derivative: nothing is held fixed in log q, and the score is "
                "still in the gradient. At the exact posterior it does not rest.",
                lambda log_joint, mean, scale, eps: (
                    log_joint(mean + scale * eps)
                    - td.Normal(mean, scale).log_prob(mean + scale * eps).sum(-1)
                ).mean(0),
            ),
            Mistake(
                "In log q the draw is held fixed in place of the parameters. That keeps the score "
                "and drops the path through log q: just the other way round.",
                lambda log_joint, mean, scale, eps: (
                    log_joint(mean + scale * eps)
                    - td.Normal(mean, scale).log_prob((mean + scale * eps).detach()).sum(-1)
                ).mean(0),
            ),
            Mistake(
                "All of log q is detached, the path through z included. The draws then follow "
                "log p(x, z) alone, and with no entropy q shrinks towards a point.",
                lambda log_joint, mean, scale, eps: (
                    log_joint(mean + scale * eps)
                    - td.Normal(mean, scale).log_prob(mean + scale * eps).detach().sum(-1)
                ).mean(0),
            ),
            Mistake(
                "log p(x, z) is detached. What is left pushes the draws to where q is low, and "
                "the data have no say.",
                lambda log_joint, mean, scale, eps: (
                    log_joint(mean + scale * eps).detach()
                    - td.Normal(mean.detach(), scale.detach()).log_prob(mean + scale * eps).sum(-1)
                ).mean(0),
            ),
            Mistake(
                "The draw is detached everywhere. Only the score is left, with a minus sign: its "
                "mean is zero, so this is noise and nothing else.",
                lambda log_joint, mean, scale, eps: (
                    log_joint((mean + scale * eps).detach())
                    - td.Normal(mean, scale).log_prob((mean + scale * eps).detach()).sum(-1)
                ).mean(0),
            ),
            Mistake(
                "The densities of the dimensions are averaged in log q. The density of a product "
                "is their product: log q is the sum.",
                lambda log_joint, mean, scale, eps: (
                    log_joint(mean + scale * eps)
                    - td.Normal(mean.detach(), scale.detach())
                    .log_prob(mean + scale * eps)
                    .mean(-1)
                ).mean(0),
            ),
        ),
        hints=(
            "λ comes into log w in two ways: through z, and through the parameters of log q. "
            "Which of the two is the path, and which one is the score?",
            "The value must not change, so all that you may do is `detach` something. It stands "
            "inside log q, and z there has to keep its gradient.",
            "Build the density of q a second time, from detached parameters, and evaluate it at "
            "the draw that is still attached.",
        ),
        lesson="With nothing detached, log q at its own draw is −½ ‖ε‖² − Σ log σ and a constant: "
        "it does not depend on μ. So in μ alone, detaching all of log q looks exactly like the "
        "total derivative, and only the gradient in σ tells them apart.",
    )
)


# 3.7


def payoff(z: Tensor) -> Tensor:
    """As the prompt has it: an effect with a threshold, less a cost."""
    return (z > 1).double() - z**2 / 4


def expected_payoff(mean: Tensor, eps: Tensor) -> Tensor:
    z = (mean + eps).detach()  # the jump has no slope: leave the path
    value = payoff(z)
    surrogate = value * td.Normal(mean, 1.0).log_prob(z)
    return (value + surrogate - surrogate.detach()).mean(0)


def _kinds(attempt: Attempt) -> list[float]:
    """What the gradient is made of: 1 where it is anything, not the cost's, not a slope of draws.

    A sum of slopes, one for each draw and from its z alone, is the gradient of another payoff:
    the normals are a complete family, and no function of z has the jump's derivative as its mean.
    (Estimators that see several draws at once may depend on z alone and be unbiased.)
    """
    first, second = torch.randn(2, 2, 6, generator=attempt.generator) * 0.8
    pairs = [first, second, torch.stack([first[0], second[1]]), torch.stack([second[0], first[1]])]
    z = torch.cat(pairs, 1) + 1
    one, other = torch.randn(2, z.shape[1], generator=attempt.generator)
    slopes = []
    for start in (one, other):  # the same draws, from different means
        mean = start.clone().requires_grad_()
        slopes += attempt.gradient(attempt(mean, z - start), [mean])
    a, b = slopes
    both, changed, left, right = a.reshape(4, -1)
    anything = bool((a.abs() > 1e-9).any())
    costs = torch.allclose(a, -z.mean(0) / 2, atol=1e-5)
    of_z = torch.allclose(a, b, atol=1e-5)
    summed = torch.allclose(both + changed, left + right, atol=1e-5)
    return [float(anything), float(anything and not costs), float(not (of_z and summed))]


def _judge_expected_payoff(attempt: Attempt) -> None:
    mean = torch.randn(4, generator=attempt.generator)
    eps = torch.randn(5, 4, generator=attempt.generator)
    z = (mean + eps).numpy()
    expected = torch.from_numpy(np.where(z > 1, 1 - z**2 / 4, -(z**2) / 4).mean(0))
    attempt.close(attempt(mean, eps), expected, "the value, 5 draws for 4 doses")
    kinds = torch.tensor(_kinds(attempt))
    attempt.close(kinds, torch.ones(3), "whether the gradient can be that of the jump as well")
    for doses, replicates in (((0.2, 1.0, -0.4, 1.7), 4_000), ((1.0, 2.0), 60_000)):
        means = torch.tensor(doses).repeat(replicates).requires_grad_()
        eps = torch.randn(16, len(means), generator=attempt.generator)
        (slope,) = attempt.gradient(attempt(means, eps), [means])
        # F(m) = P(z > 1) - (m^2 + 1) / 4
        at = torch.tensor(doses)
        density = (-((1 - at) ** 2) / 2).exp() / math.sqrt(2 * math.pi)
        names = ", ".join(map(str, doses))
        attempt.same_mean(
            slope.reshape(replicates, -1), density - at / 2, f"the gradient at m = {names}"
        )


register(
    Exercise(
        "3.7",
        title="Find the bug: the best dose",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=20,
        solution=expected_payoff,
        judge=_judge_expected_payoff,
        mistakes=(
            Mistake(
                "The gradient is still that of the cost alone. The effect is flat on both sides "
                "of its threshold, so no draw reports that others would cross it.",
                lambda mean, eps: payoff(mean + eps).mean(0),
            ),
            Mistake(
                "No gradient reaches the mean. Either the whole value is detached, or log q is "
                "taken at a draw that is still attached: there z − m is ε, whatever the mean is.",
                lambda mean, eps: payoff(mean + eps).mean(0).detach(),
            ),
            Mistake(
                "The step is replaced by a smooth one for the gradient (a straight-through "
                "estimator or a relaxation): that gradient is biased, it belongs to another "
                "payoff.",
                lambda mean, eps: (
                    payoff(mean + eps)
                    + torch.sigmoid(mean + eps - 1)
                    - torch.sigmoid(mean + eps - 1).detach()
                ).mean(0),
            ),
            Mistake(
                "The surrogate is returned as the value. It is there for its gradient only; the "
                "function should still return the mean of the payoff.",
                lambda mean, eps: (
                    payoff(mean + eps).detach()
                    * td.Normal(mean, 1.0).log_prob((mean + eps).detach())
                ).mean(0),
            ),
            Mistake(
                "The cost is counted twice: the score function gives the whole gradient, and the "
                "path through the payoff, still attached, adds that of the cost once more.",
                lambda mean, eps: (
                    expected_payoff(mean, eps)
                    + payoff(mean + eps).mean(0)
                    - payoff(mean + eps).mean(0).detach()
                ),
            ),
            Mistake(
                "The sign of the score is turned round: the gradient leads away from the best "
                "dose. The score for the mean is z − m, with a plus.",
                lambda mean, eps: (
                    2 * payoff(mean + eps).mean(0).detach() - expected_payoff(mean, eps)
                ),
            ),
        ),
        hints=(
            "Plot the payoff against z, or think of its slope: where is it not that of −z² / 4? "
            "Which condition of the pathwise gradient is broken?",
            "One of the two estimators of the page asks of f nothing but its values. It needs log "
            "q at a draw that does not carry a gradient.",
            "Hold z fixed, form payoff times log q for the gradient, and take its value away "
            "again, detached, so that the mean of the payoff stays the value.",
        ),
        lesson="Only the part that jumps needs the score function. The cost may stay on the path: "
        "an expectation is a sum over the parts of f, and so is its gradient, each part by the "
        "estimator that suits it.",
    )
)
