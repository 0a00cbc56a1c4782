"""Exercises of chapter 5, importance-weighted bounds."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributions as td
from torch import Tensor

from vaetutor.exact import LinearGaussian
from vaetutor.exercises._attempt import Attempt, Untouched, Wrong
from vaetutor.exercises._declare import Exercise, Mistake, register
from vaetutor.gradients import doubly_reparameterised

PAGE = "05c_importance_weighting"


# 5.5


def grouped_iwae(log_w: Tensor, k: int) -> Tensor:
    groups = log_w.unflatten(0, (-1, k))  # (S / k, k, B), or an error
    bounds = groups.logsumexp(1) - math.log(k)  # one for each group
    return bounds.mean(0)


def _groups(log_w: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The value, and its gradient: in each group the normalised weights, over the groups."""
    each = log_w.detach().numpy().reshape(-1, k, log_w.shape[1])
    total = np.logaddexp.reduce(each, axis=1)
    weights = np.exp(each - total[:, None]) / len(each)
    value = (total - math.log(k)).sum(0) / len(each)
    return torch.from_numpy(value), torch.from_numpy(weights.reshape(log_w.shape))


def _judge_grouped_iwae(attempt: Attempt) -> None:
    for draws, batch, k in ((12, 4, 3), (12, 4, 1), (6, 3, 6), (4, 1, 2), (40, 2, 5)):
        log_w = 2 * torch.randn(draws, batch, generator=attempt.generator) - 3
        log_w.requires_grad_()
        expected, slope = _groups(log_w, k)
        found = attempt(log_w, k)
        attempt.close(found, expected, f"log-weights of shape {draws, batch}, k = {k}")
        gradients = attempt.gradient(found, [log_w])
        attempt.arrives(gradients, ["`log_w`"])
        attempt.close(gradients[0], slope, "the gradient of the bound for `log_w`")
    log_w = torch.randn(6, 2, generator=attempt.generator)
    for shift in (-1000.0, 1000.0):
        expected, _ = _groups(log_w + shift, 3)
        attempt.close(attempt(log_w + shift, 3), expected, f"log-weights near {shift:g}")
    level = torch.tensor([[-1000.0, -700], [1000, -700], [1000, -700]])  # of each group
    apart = level.repeat_interleave(2, 0) + log_w
    expected, _ = _groups(apart, 2)
    attempt.close(attempt(apart, 2), expected, "a group near -1000 beside others near 1000")
    for k in (4, 12):
        returned = "a value"
        try:
            attempt(log_w, k)
        except Wrong as wrong:
            if not str(wrong).startswith("It returns None"):
                raise
            returned = "None"
        except Untouched:
            raise
        except Exception:
            continue
        attempt.fail(
            f"With 6 draws and k = {k} it returned {returned}. An error is asked for there: the "
            "groups would be of unequal size, or some draws left out."
        )


def _less(log_w: Tensor, k: int, largest: Tensor) -> Tensor:
    """With the same `largest` taken out of every group."""
    return (log_w - largest).unflatten(0, (-1, k)).exp().mean(1).log().mean(0) + largest


register(
    Exercise(
        "5.5",
        title="One bound, many groups",
        page=PAGE,
        kind="function",
        difficulty="easy",
        minutes=10,
        solution=grouped_iwae,
        judge=_judge_grouped_iwae,
        mistakes=(
            Mistake(
                "log k is missing: the bound is the logarithm of a mean of k weights, and not of "
                "their sum. So it passes the evidence as k grows.",
                lambda log_w, k: grouped_iwae(log_w, k) + math.log(k),
            ),
            Mistake(
                "The logarithm is inside the mean over the draws of a group. The mean of log w "
                "is the ELBO, whatever k is.",
                lambda log_w, k: log_w.mean(0) + 0 * k,
            ),
            Mistake(
                "The draws are dealt out to the groups in turn. That bound has the same "
                "expectation, but the prompt asks for groups of consecutive draws.",
                lambda log_w, k: (log_w.unflatten(0, (k, -1)).logsumexp(0) - math.log(k)).mean(0),
            ),
            Mistake(
                "There are k groups of S / k draws here. It should be S / k groups of k draws.",
                lambda log_w, k: grouped_iwae(log_w, len(log_w) // k),
            ),
            Mistake(
                "All S draws have ended in one bound: the groups have been averaged inside the "
                "logarithm. Each group has a logarithm of its own, and the mean comes after it.",
                lambda log_w, k: log_w.logsumexp(0) - math.log(len(log_w)) + 0 * k,
            ),
            Mistake(
                "log S is subtracted where log k belongs: a group has k weights to average.",
                lambda log_w, k: grouped_iwae(log_w, k) + math.log(k / len(log_w)),
            ),
            Mistake(
                "The weights leave the range of floating point. Take the largest log-weight out "
                "before the exponential, as `logsumexp` does.",
                lambda log_w, k: log_w.exp().unflatten(0, (-1, k)).mean(1).log().mean(0),
            ),
            Mistake(
                "The largest log-weight is that of all draws: a group far below it underflows. "
                "Take out the largest of each group.",
                lambda log_w, k: _less(log_w, k, log_w.amax(0)),
            ),
            Mistake(
                "The largest log-weight is that of the whole batch: an example far below it "
                "underflows. Take out the largest of each group.",
                lambda log_w, k: _less(log_w, k, log_w.max()),
            ),
        ),
        hints=(
            "There are two means here, one inside the logarithm and one outside. Which one runs "
            "over the draws of a group, and which over the groups?",
            "Give the groups an axis of their own: from (S, B) to (S / k, k, B). `unflatten` does "
            "that, and refuses an S that does not fit.",
            "On the axis of length k, the log-sum-exp less log k; then the ordinary mean over the "
            "first axis.",
        ),
        lesson="If k divides k′, the value for k′ is never below the one for k, whatever the "
        "log-weights: Jensen's inequality holds on every set of draws, and not only on average. "
        "So a bound that rises with k on the same draws says nothing about q; by how much it "
        "rises does.",
    )
)


# 5.6


def dreg_weights(log_w: Tensor) -> Tensor:
    normalised = log_w.detach().softmax(0)  # over the draws
    return normalised**2


def _squares(log_w: Tensor) -> Tensor:
    values = log_w.detach().numpy()
    total = np.logaddexp.reduce(values, axis=0)
    return torch.from_numpy(np.exp(2 * (values - total)))


def _judge_dreg_weights(attempt: Attempt) -> None:
    for draws, batch in ((5, 3), (1, 4), (8, 1), (64, 2)):
        log_w = 1.5 * torch.randn(draws, batch, generator=attempt.generator) - 4
        what = f"log-weights of shape {draws, batch}"
        attempt.close(attempt(log_w), _squares(log_w), what)

    model = LinearGaussian(torch.ones(1, 2), torch.zeros(1), 0.5)
    x = torch.randn(3, 1, generator=attempt.generator)
    mean = torch.randn(3, 2, generator=attempt.generator).requires_grad_()
    scale = torch.rand(3, 2, generator=attempt.generator).add(0.3).requires_grad_()
    q = td.Independent(td.Normal(mean, scale), 1)
    frozen = td.Independent(td.Normal(mean.detach(), scale.detach()), 1)
    torch.manual_seed(attempt.seed + 10_007)
    bound = doubly_reparameterised(model, q, x, 6)
    expected = attempt.gradient(bound, [mean, scale])
    torch.manual_seed(attempt.seed + 10_007)  # the same noise
    z = q.rsample((6,))
    log_w = model.log_joint(x, z) - frozen.log_prob(z)
    weights = attempt(log_w)
    attempt.close(weights, _squares(log_w), "weights of a Gaussian example")
    if not isinstance(weights, Tensor):
        weights = _squares(log_w)
    found = attempt.gradient((weights * log_w).sum(0), [mean, scale])
    for name, one, right in zip(("mean", "scale"), found, expected, strict=True):
        attempt.close(one, right, f"the gradient for the {name} of a Gaussian q built from them")

    log_w = torch.randn(6, 2, generator=attempt.generator)
    for shift in (-1000.0, 1000.0):
        what = f"log-weights near {shift:g}"
        attempt.close(attempt(log_w + shift), _squares(log_w), what)
    apart = log_w + torch.tensor([-1000.0, 1000.0])
    what = "an example near -1000 beside one near 1000"
    attempt.close(attempt(apart), _squares(log_w), what)


register(
    Exercise(
        "5.6",
        title="Weights of the doubly reparameterised gradient",
        page=PAGE,
        kind="function",
        difficulty="easy",
        minutes=10,
        solution=dreg_weights,
        judge=_judge_dreg_weights,
        mistakes=(
            Mistake(
                "The weights are not squared. Without the score term, a path weighted by w̃ "
                "has the wrong mean, and the encoder settles elsewhere.",
                lambda log_w: log_w.detach().softmax(0),
            ),
            Mistake(
                "The weights are normalised over the batch. They compare the draws of one "
                "example, along the first axis.",
                lambda log_w: log_w.detach().softmax(1) ** 2,
            ),
            Mistake(
                "The squares have been scaled to have the sum one. Their sum is at most one, and "
                "falls as 1/K when the draws count alike: so does the gradient of the bound.",
                lambda log_w: (2 * log_w.detach()).softmax(0),
            ),
            Mistake(
                "These are the weights w̃ (1 - w̃) of the score term, written as a path. They are "
                "to be taken off from w̃.",
                lambda log_w: log_w.softmax(0) - log_w.softmax(0) ** 2,
            ),
            Mistake(
                "The gradient runs through the weights as well. They are factors of the path and "
                "no part of what is differentiated: cut them off with `detach`.",
                lambda log_w: log_w.softmax(0) ** 2,
            ),
            Mistake(
                "The weights leave the range of floating point. Take the largest log-weight out "
                "before the exponential, as `softmax` does.",
                lambda log_w: (log_w.detach().exp() / log_w.detach().exp().sum(0)) ** 2,
            ),
            Mistake(
                "The largest log-weight is that of the whole batch: an example far below it "
                "underflows. Take out the largest of each example.",
                lambda log_w: (
                    (
                        (log_w.detach() - log_w.max().item()).exp()
                        / (log_w.detach() - log_w.max().item()).exp().sum(0)
                    )
                    ** 2
                ),
            ),
        ),
        hints=(
            "The symbol w̃ₖ is defined at the start of the section on the two gradients. What is "
            "it, in terms of log w, for numbers too small to be exponentiated?",
            "A softmax along one of the two axes gives w̃. Which axis holds the draws that are "
            "compared?",
            "Square what the softmax gives. And autograd must take the result for a constant.",
        ),
        lesson="The sum of these weights is one over the effective number of draws, "
        "(Σ w)² / Σ w². So where all draws count alike the path enters with the factor 1/K, and "
        "where a single draw dominates with nearly one: that is sticking the landing, at that "
        "draw alone.",
    )
)
