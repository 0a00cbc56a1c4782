"""Exercises of chapter 5, flows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaetutor.exercises._attempt import Attempt
from vaetutor.exercises._declare import Exercise, Mistake, register

PAGE = "05b_flows"


# 5.4


def planar_log_det(eps: Tensor, u: Tensor, w: Tensor, b: Tensor) -> Tensor:
    s = (eps * w).sum(-1) + b
    slope = 1 - torch.tanh(s) ** 2
    return torch.log1p(slope * (u * w).sum(-1))


def _jacobian(eps: Tensor, u: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """That of one planar map at each point by autograd, (S, B, D, D)."""

    def one(eps: Tensor, u: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return eps + u * torch.tanh(w @ eps + b)

    over_batch = torch.func.vmap(torch.func.jacrev(one))
    jacobian: Tensor = torch.func.vmap(over_batch, in_dims=(0, None, None, None))(eps, u, w, b)
    return jacobian


def _planar_map(attempt: Attempt, draws: int, batch: int, dim: int) -> list[Tensor]:
    """Points and parameters of maps that do not fold, half of them with w · u < 0."""
    eps, u, w, b = (
        torch.randn(shape, generator=attempt.generator)
        for shape in ((draws, batch, dim), (batch, dim), (batch, dim), (batch,))
    )
    w = w * (2 / w.norm(dim=-1, keepdim=True))
    a = 0.3 + 0.4 * torch.rand(batch, generator=attempt.generator)
    a = torch.where(torch.arange(batch) % 2 == 0, -a, 1 + a)
    u = u + (a - (u * w).sum(-1)).unsqueeze(-1) * w / 4
    return [eps, u, w, 0.5 + b.abs()]


def _judge_planar_log_det(attempt: Attempt) -> None:
    for draws, batch, dim in ((5, 4, 3), (1, 1, 2), (3, 2, 7)):
        args = [arg.requires_grad_() for arg in _planar_map(attempt, draws, batch, dim)]
        expected = torch.linalg.slogdet(_jacobian(*args))[1]
        found = attempt(*args)
        attempt.close(found, expected, f"points of shape {draws, batch, dim}")
        names = ["`eps`", "`u`", "`w`", "`b`"]
        gradients = attempt.gradient(found, args)
        attempt.arrives(gradients, names)
        right = attempt.gradient(expected, args)
        for name, one, other in zip(names, gradients, right, strict=True):
            attempt.close(one, other, f"the gradient of the log-determinant for {name}")
    eps, u, w, b = _planar_map(attempt, 6, 3, 4)
    far = attempt(eps, u, w, b + 1000.0)
    attempt.close(far, torch.zeros(6, 3), "points far from the plane, s near 1000")
    w = torch.tensor([[1.0, -2.0, 2.0]])
    eps = torch.tensor([[[2.0, 1.0, 0.5]]])  # on the plane w · eps + b = 0
    edge = attempt(eps, -0.999 * w / 9, w, torch.tensor([-1.0]))
    attempt.close(edge, torch.tensor([[math.log(1e-3)]]), "a map that nearly folds")


register(
    Exercise(
        "5.4",
        title="The determinant of a planar map",
        page=PAGE,
        kind="function",
        difficulty="easy",
        minutes=10,
        solution=planar_log_det,
        judge=_judge_planar_log_det,
        mistakes=(
            Mistake(
                "tanh itself stands where its slope belongs: the Jacobian holds the derivative "
                "of the bend, 1 - tanh² s.",
                lambda eps, u, w, b: (
                    1 + torch.tanh((eps * w).sum(-1) + b) * (u * w).sum(-1)
                ).log(),
            ),
            Mistake(
                "1 - tanh s stands where the slope belongs: the derivative of tanh is 1 - tanh² "
                "s, with the square.",
                lambda eps, u, w, b: (
                    1 + (1 - torch.tanh((eps * w).sum(-1) + b)) * (u * w).sum(-1)
                ).log(),
            ),
            Mistake(
                "This is the determinant. Its logarithm is asked for: that is what adds up along "
                "a stack of maps.",
                lambda eps, u, w, b: planar_log_det(eps, u, w, b).exp(),
            ),
            Mistake(
                "The sign is turned round: this is the log-determinant of the inverse map, or "
                "what is added to log q. Where the map stretches, log |det| is positive.",
                lambda eps, u, w, b: -planar_log_det(eps, u, w, b),
            ),
            Mistake(
                "The factor w · u is missing. How much the step changes along w depends on how "
                "much of u points that way: with u orthogonal to w no volume changes.",
                lambda eps, u, w, b: (
                    (2 - torch.tanh((eps * w).sum(-1) + b) ** 2).log() + 0 * u.sum()
                ),
            ),
            Mistake(
                "Only the diagonal of the Jacobian has been used. Its product is the determinant "
                "of a triangular matrix; here u wᵀ fills the corners on both sides.",
                lambda eps, u, w, b: (
                    (1 + (1 - torch.tanh((eps * w).sum(-1) + b) ** 2).unsqueeze(-1) * u * w)
                    .abs()
                    .log()
                    .sum(-1)
                ),
            ),
            Mistake(
                "The offset b is missing: the distance from the plane is wᵀε + b.",
                lambda eps, u, w, b: planar_log_det(eps, u, w, 0 * b),
            ),
            Mistake(
                "The sum runs over the batch as well. Each of the B maps has its own determinant, "
                "at each of its draws.",
                lambda eps, u, w, b: planar_log_det(eps, u, w, b).sum(-1),
            ),
        ),
        hints=(
            "The section on a planar map from scratch has the determinant for one map. Here every "
            "row of u and w is another map: which products of tensors give one number for each "
            "draw and row?",
            "Two numbers are needed: s = wᵀε + b, of shape (S, B), and w · u, of shape (B,). Both "
            "are sums over the last axis of an elementwise product.",
            "The slope of tanh at s, times w · u, plus one; then the logarithm. With w · u > -1 "
            "this is positive, so no absolute value is needed.",
        ),
        lesson="Where tanh has come to its ends the map only shifts the points, by u or by -u, "
        "and the log-determinant is zero. So one planar map changes volumes in a slab around its "
        "plane alone, and there by a factor between one and 1 + w · u.",
    )
)
