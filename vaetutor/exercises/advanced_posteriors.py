"""Exercises of chapter 5, advanced posteriors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.distributions as td
from torch import Tensor

from vaetutor.exercises._attempt import Attempt
from vaetutor.exercises._declare import Exercise, Mistake, register

PAGE = "05_advanced_posteriors"


# 5.1


def mixture_log_prob(z: Tensor, logits: Tensor, means: Tensor, scales: Tensor) -> Tensor:
    standard = (z.unsqueeze(-2) - means) / scales  # (S, B, C, D)
    log_normal = -0.5 * standard**2 - scales.log() - 0.5 * math.log(2 * math.pi)
    log_components = log_normal.sum(-1)  # (S, B, C)
    return (logits.log_softmax(-1) + log_components).logsumexp(-1)


def _judge_mixture_log_prob(attempt: Attempt) -> None:
    for draws, batch, components, dim in ((5, 3, 4, 2), (1, 1, 1, 6), (2, 4, 3, 1)):
        z, lam = _mixture(attempt, draws, batch, components, dim)
        what = f"the log-density, {components} component{'s' * (components > 1)}, D = {dim}"
        attempt.close(attempt(z, *lam), _oracle(z, *lam), what)
        if draws == 5:
            _finite_by_a_floor(attempt, lam)
    z, lam = _mixture(attempt, 3, 2, 3, 2)
    inputs = [each.requires_grad_() for each in (z, *lam)]
    right = attempt.gradient(_oracle(*inputs), inputs)
    found = attempt.gradient(attempt(*inputs), inputs)
    attempt.arrives(found, [f"`{name}`" for name in attempt.names])
    for name, one, other in zip(attempt.names, found, right, strict=True):
        attempt.close(one, other, f"the gradient of the log-density for `{name}`")
    far = torch.full((1, 2, 2), 1e3, dtype=torch.float64).requires_grad_()
    value = attempt(far, *lam)
    attempt.close(value, _oracle(far, *lam), "the log-density far away, z = 1000")
    found, right = (attempt.gradient(each, [far]) for each in (value, _oracle(far, *lam)))
    attempt.close(found[0], right[0], "the gradient of the log-density for `z` far away")


def _finite_by_a_floor(attempt: Attempt, lam: Sequence[Tensor]) -> None:
    """Whether the value stops falling far away."""
    places = [torch.full((1, 3, 2), at, dtype=torch.float64) for at in (1e3, 1.1e3)]
    one, other = (attempt(z, *lam) for z in places)
    tensors = isinstance(one, Tensor) and isinstance(other, Tensor)
    attempt.require(
        not (tensors and bool(one.isfinite().all()) and torch.equal(one, other)),
        "Far from all components log q(z) is the same for every z. A constant added or clamped "
        "inside the logarithm keeps it finite, but it is a floor: it is not log q(z), and no "
        "gradient leads back from there. Stay with logarithms all the way.",
    )


def _mixture(
    attempt: Attempt, draws: int, batch: int, components: int, dim: int
) -> tuple[Tensor, list[Tensor]]:
    z = 2 * torch.randn(draws, batch, dim, generator=attempt.generator)
    logits = 1 + torch.randn(batch, components, generator=attempt.generator)
    means = 2 * torch.randn(batch, components, dim, generator=attempt.generator)
    scales = 0.5 + torch.rand(batch, components, dim, generator=attempt.generator)
    return z, [logits, means, scales]


def _oracle(z: Tensor, logits: Tensor, means: Tensor, scales: Tensor) -> Tensor:
    each = td.Independent(td.Normal(means, scales), 1)
    return td.MixtureSameFamily(td.Categorical(logits=logits), each).log_prob(z)


def _parts(z: Tensor, means: Tensor, scales: Tensor) -> Tensor:
    """Log-density of each component in each dimension, (S, B, C, D)."""
    return td.Normal(means, scales).log_prob(z.unsqueeze(-2))


register(
    Exercise(
        "5.1",
        title="The density of a mixture",
        page=PAGE,
        kind="function",
        difficulty="easy",
        minutes=15,
        solution=mixture_log_prob,
        judge=_judge_mixture_log_prob,
        mistakes=(
            Mistake(
                "Each dimension is mixed by itself, and the sum over the dimensions comes after. "
                "That is the density of another q, with one choice of a component for every "
                "dimension. Here one component is chosen for all of z: sum over D first.",
                lambda z, logits, means, scales: (
                    (logits.log_softmax(-1).unsqueeze(-1) + _parts(z, means, scales))
                    .logsumexp(-2)
                    .sum(-1)
                ),
            ),
            Mistake(
                "The logits are used as if they were log-probabilities. The exponentials of "
                "logits need not add up to one, and then this is no density.",
                lambda z, logits, means, scales: (
                    logits + _parts(z, means, scales).sum(-1)
                ).logsumexp(-1),
            ),
            Mistake(
                "This is the mean of the log-densities of the components. The logarithm stands "
                "outside the sum: q is the mean of the densities.",
                lambda z, logits, means, scales: (
                    logits.softmax(-1) * _parts(z, means, scales).sum(-1)
                ).sum(-1),
            ),
            Mistake(
                "Only the largest term is kept. That is close where components are far apart, "
                "and up to ln C too low where they overlap.",
                lambda z, logits, means, scales: (
                    logits.log_softmax(-1) + _parts(z, means, scales).sum(-1)
                ).amax(-1),
            ),
            Mistake(
                "The constant ½ ln 2π is missing, once for each dimension. Without it q does not "
                "integrate to one, and the ELBO is no bound.",
                lambda z, logits, means, scales: (
                    mixture_log_prob(z, logits, means, scales)
                    + 0.5 * z.shape[-1] * math.log(2 * math.pi)
                ),
            ),
            Mistake(
                "The softmax runs over the batch. It is the C probabilities of one example that "
                "add up to one.",
                lambda z, logits, means, scales: (
                    logits.log_softmax(0) + _parts(z, means, scales).sum(-1)
                ).logsumexp(-1),
            ),
            Mistake(
                "The variance stands where the scale belongs: z - μ is divided by σ, and log σ is "
                "subtracted. (Only under the square, outside of it, does σ² divide.)",
                lambda z, logits, means, scales: mixture_log_prob(z, logits, means, scales**2),
            ),
            Mistake(
                "The scale stands where the variance belongs: the square of z - μ is divided by "
                "σ², not by σ, and log σ is subtracted, not half of it.",
                lambda z, logits, means, scales: mixture_log_prob(z, logits, means, scales.sqrt()),
            ),
            Mistake(
                "The term - log σ is missing, once for each dimension. A narrow normal has to be "
                "the higher one, or it does not integrate to one.",
                lambda z, logits, means, scales: (
                    logits.log_softmax(-1) + (_parts(z, means, scales) + scales.log()).sum(-1)
                ).logsumexp(-1),
            ),
            Mistake(
                "Far from all components every density is zero in floating point, and the "
                "logarithm of their sum minus infinity. Stay with logarithms all the way.",
                lambda z, logits, means, scales: (
                    (logits.softmax(-1) * _parts(z, means, scales).sum(-1).exp()).sum(-1).log()
                ),
            ),
        ),
        hints=(
            "Write q(z) = Σ_c π_c Π_d N(z_d; μ_cd, σ²_cd) with both indices, and work from the "
            "inside to the outside: which of the two axes goes first?",
            "z needs an axis for the components, between those of B and D. Logits become "
            "log-probabilities by `log_softmax`.",
            "For each component: the log-probability plus the sum of the log-densities over D. "
            "What is left is the logarithm of a sum of exponentials over C, and torch has one "
            "that does not underflow.",
        ),
        lesson="The gradient for z is a weighted mean of what the components would give alone, "
        "with the responsibilities as weights, π_c q_c(z) / q(z). They are the softmax of what "
        "stands in the logsumexp; for a z at which one component has nearly all of it, the "
        "others get next to no gradient.",
    )
)


# 5.2


def best_mixture(elbos: Tensor) -> tuple[Tensor, Tensor]:
    weights = elbos.softmax(-1)
    elbo = elbos.logsumexp(-1)
    return weights, elbo


def _judge_best_mixture(attempt: Attempt) -> None:
    for batch, components in ((3, 4), (1, 2), (5, 1)):
        elbos = torch.randn(batch, components, generator=attempt.generator) - 20
        what = f"for {components} component{'s' * (components > 1)}"
        _compare(attempt, elbos, what)
    far = torch.tensor([[-1000.0, -1001.5, -1000.7], [-3.0, -900.0, -4.0]], dtype=torch.float64)
    _compare(attempt, far, "for ELBOs far below zero or far apart")
    _compare(attempt, far + 1900, "for ELBOs far above zero, as densities can have")


def _compare(attempt: Attempt, elbos: Tensor, what: str) -> None:
    pi = td.Categorical(logits=elbos).probs
    best = (pi * elbos).sum(-1) + td.Categorical(probs=pi).entropy()
    weights, elbo = attempt.parts(attempt(elbos), ("the weights", "the ELBO"))
    attempt.close(weights, pi, f"the weights {what}")
    attempt.close(elbo, best, f"the ELBO {what}")


def _with_weights(weights: Tensor, elbos: Tensor) -> tuple[Tensor, Tensor]:
    """Any weights, and the ELBO that they have."""
    return weights, (weights * elbos - torch.xlogy(weights, weights)).sum(-1)


def _of_exponentials(elbos: Tensor) -> tuple[Tensor, Tensor]:
    total = elbos.exp().sum(-1)
    return elbos.exp() / total.unsqueeze(-1), total.log()


register(
    Exercise(
        "5.2",
        title="What a mixture can gain",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=20,
        solution=best_mixture,
        judge=_judge_best_mixture,
        mistakes=(
            Mistake(
                "The weights are equal. A component that fits a heavy mode well deserves more "
                "than one on a light mode.",
                lambda elbos: _with_weights(torch.ones_like(elbos) / elbos.shape[-1], elbos),
            ),
            Mistake(
                "All weight is on the best component, as if the ELBO were linear in the weights. "
                "It also holds their entropy, which rewards spreading out.",
                lambda elbos: _with_weights(
                    torch.nn.functional.one_hot(elbos.argmax(-1), elbos.shape[-1]).to(elbos), elbos
                ),
            ),
            Mistake(
                "The weights are normalised over the batch. Those of one x have to add up to one.",
                lambda elbos: _with_weights(elbos.softmax(0), elbos),
            ),
            Mistake(
                "The ELBO is the weighted mean of those of the components, without the entropy "
                "of the weights: log q(z) contains log π_c as well.",
                lambda elbos: (elbos.softmax(-1), (elbos.softmax(-1) * elbos).sum(-1)),
            ),
            Mistake(
                "The entropy of the weights has the wrong sign. The ELBO subtracts log q(z), and "
                "log π_c with it: so the mean of log π_c is subtracted, too.",
                lambda elbos: (
                    elbos.softmax(-1),
                    2 * (elbos.softmax(-1) * elbos).sum(-1) - elbos.logsumexp(-1),
                ),
            ),
            Mistake(
                "A weight has underflowed to zero, and 0 · log 0 is NaN. Work with log-weights, "
                "or find what the sum comes to.",
                lambda elbos: (
                    elbos.softmax(-1),
                    (elbos.softmax(-1) * (elbos - elbos.softmax(-1).log())).sum(-1),
                ),
            ),
            Mistake(
                "The entropy of the weights is taken to be ln C. That is its largest value, which "
                "only equal weights have.",
                lambda elbos: (
                    elbos.softmax(-1),
                    (elbos.softmax(-1) * elbos).sum(-1) + math.log(elbos.shape[-1]),
                ),
            ),
            Mistake(
                "It is lower by ln C, as if the components were draws to be averaged. Nothing is "
                "averaged here: each component adds the mode that it has found.",
                lambda elbos: (
                    elbos.softmax(-1),
                    elbos.logsumexp(-1) - math.log(elbos.shape[-1]),
                ),
            ),
            Mistake(
                "The exponential of an ELBO far from zero underflows to zero or overflows. "
                "Subtract the largest first, or use what torch has for it.",
                _of_exponentials,
            ),
        ),
        hints=(
            "On the ground of component c the others are zero, so log q(z) = log π_c + log q_c(z) "
            "there. Put that into the expectation of log p(x, z) - log q(z), component by "
            "component.",
            "You get Σ π_c (ELBO_c - ln π_c), a concave function of the weights. Maximise it with "
            "a Lagrange multiplier for Σ π_c = 1.",
            "The derivative says that ELBO_c - ln π_c must be the same for all c. So π_c is "
            "proportional to the exponential of ELBO_c; and what is that common value?",
        ),
        lesson="For any components, overlapping or not, the ELBO of the mixture is Σ π_c ELBO_c "
        "plus the mutual information between the component and z. That is at most the entropy of "
        "the weights, and so at most ln C: no mixture of C is more than ln C nats above the best "
        "of its components, nor above the best single member of their family.",
        origin="advanced, question 2",
    )
)


# 5.3


def best_gap(probabilities: Tensor, C: int) -> Tensor:
    kept = probabilities.topk(C, dim=-1).values.sum(-1)
    return -kept.log()


def _judge_best_gap(attempt: Attempt) -> None:
    for batch, modes, components in ((3, 7, 3), (1, 4, 1), (4, 5, 4), (2, 3, 3)):
        p = torch.rand(batch, modes, generator=attempt.generator).add(0.1)
        p = p / p.sum(-1, keepdim=True)
        subsets = list(itertools.combinations(range(modes), components))
        # The best q on some modes has weights in proportion to them: its divergence, for each set.
        gaps = []
        for subset in subsets:
            mine = p[:, list(subset)]
            q = mine / mine.sum(-1, keepdim=True)
            gaps.append((q * (q.log() - mine.log())).sum(-1))
        expected = torch.stack(gaps).amin(0)
        what = f"the gap, {modes} modes and {components} component{'s' * (components > 1)}"
        attempt.close(attempt(p, components), expected, what)
    p = torch.full((1, 2**10), 2.0**-10, dtype=torch.float64)
    expected = torch.tensor([10 * math.log(2) - math.log(24)], dtype=torch.float64)
    attempt.close(attempt(p, 24), expected, "the gap, 1024 equal modes and 24 components")


def _equal_weights(probabilities: Tensor, C: int) -> Tensor:
    return -math.log(C) - probabilities.topk(C, dim=-1).values.log().mean(-1)


register(
    Exercise(
        "5.3",
        title="How many components for many modes?",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=20,
        solution=best_gap,
        judge=_judge_best_gap,
        mistakes=(
            Mistake(
                "This is the probability that is lost. The gap is a divergence, in nats: minus "
                "the logarithm of the probability that is kept.",
                lambda probabilities, C: 1 - probabilities.topk(C, dim=-1).values.sum(-1),
            ),
            Mistake(
                "This is minus the logarithm of the probability that is lost. On the modes that "
                "it keeps, q is p divided by the probability that is kept.",
                lambda probabilities, C: (
                    -torch.log1p(-probabilities.topk(C, dim=-1).values.sum(-1))
                ),
            ),
            Mistake(
                "This is ln(M / C), right for modes of equal probability only.",
                lambda probabilities, C: (
                    probabilities.sum(-1) * math.log(probabilities.shape[-1] / C)
                ),
            ),
            Mistake(
                "A loss of ln 2 is counted for each mode that is dropped. Losing one of two equal "
                "modes costs ln 2; losing a mode of many costs far less.",
                lambda probabilities, C: (
                    probabilities.sum(-1) * (probabilities.shape[-1] - C) * math.log(2)
                ),
            ),
            Mistake(
                "The first C modes are kept, in the order in which they stand. The best q keeps "
                "the most probable ones.",
                lambda probabilities, C: -probabilities[..., :C].sum(-1).log(),
            ),
            Mistake(
                "The components have equal weights. The best weights are in proportion to the "
                "probabilities of their modes; with others the gap is larger.",
                _equal_weights,
            ),
            Mistake(
                "This is what a single component loses. All C modes are kept together: their "
                "probabilities add up.",
                lambda probabilities, C: -probabilities.amax(-1).log(),
            ),
        ),
        hints=(
            "Look at the derivation of ln 2 for two halves. What stands in the place of one half "
            "when q covers a set of modes with total probability P, and covers it perfectly?",
            "On the modes that q keeps, the posterior is P times the posterior given that z is in "
            "one of them. If q is that conditional posterior, the logarithm of the ratio is the "
            "same everywhere.",
            "The gap depends on P alone, and falls as P grows. `topk` finds the largest.",
        ),
        lesson="With M equal modes the gap is ln M - ln C, which is ln 128 for the 1024 modes and "
        "eight components of the prediction. Each doubling of C buys ln 2 nats, and each costs "
        "twice the last. If the modes come from D independent coordinates with two "
        "modes each, M is 2^D, and a product of D mixtures of two has no gap at all, with 2D "
        "components: structure beats number.",
        origin="advanced, question 1",
    )
)
