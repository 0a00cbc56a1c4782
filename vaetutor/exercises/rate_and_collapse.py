"""Exercises of chapter 4 on rate, distortion and collapse."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaetutor.exact import LinearGaussian
from vaetutor.exercises._attempt import Attempt
from vaetutor.exercises._declare import Exercise, Mistake, register
from vaetutor.objectives import kl

PAGE = "04b_rate_and_collapse"


# 4.4


def active_units(means: Tensor, threshold: float = 0.01) -> Tensor:
    centred = means - means.mean(0)
    variance = (centred**2).mean(0)  # over the data, one for each dimension
    return variance > threshold


def _judge_active_units(attempt: Attempt) -> None:
    # Every dimension: where its means lie, and the variance of them, none near a threshold.
    cases = (
        (
            60,
            [0.0, 0.3, 2.0, -1.0, 0.05, -0.02, 0.0],
            [0.5, 0.004, 0.04, 0.001, 0.0002, 0.09, 0.0],
        ),
        (3, [0.1, -3.0, 0.0], [1.5, 0.0001, 0.2]),
        (200, [0.0, 5.0, 0.0, 0.2, 0.0], [0.02, 0.005, 0.9, 0.3, 0.002]),
    )
    for n, centre, variance in cases:
        noise = torch.randn(n, len(centre), generator=attempt.generator)
        noise = (noise - noise.mean(0)) / noise.std(0, correction=0)
        means = torch.tensor(centre) + torch.tensor(variance).sqrt() * noise
        size = f"N, D = {n}, {len(centre)}"
        known = torch.tensor([v > 0.01 for v in variance]).double()
        attempt.close(_mask(attempt(means)), known, f"the active units for {size}")
        known = torch.tensor([v > 0.1 for v in variance]).double()
        found = _mask(attempt(means, 0.1))
        attempt.close(found, known, f"the active units for {size}, with the threshold 0.1")


def _mask(found: Any) -> Any:  # noqa: ANN401
    """A list of Python's booleans as numbers."""
    if isinstance(found, list | tuple) and all(isinstance(each, bool) for each in found):
        return [float(each) for each in found]
    return found


register(
    Exercise(
        "4.4",
        title="Active units",
        page=PAGE,
        kind="function",
        difficulty="easy",
        minutes=10,
        solution=active_units,
        judge=_judge_active_units,
        mistakes=(
            Mistake(
                "The standard deviation is held against the threshold, which is one for the "
                "variance: 0.01 is the square of a standard deviation of 0.1.",
                lambda means, threshold=0.01: means.std(0) > threshold,
            ),
            Mistake(
                "The means are not centred. A dimension whose posterior mean stands still "
                "somewhere off zero says nothing about x: what counts is how it moves.",
                lambda means, threshold=0.01: means.square().mean(0) > threshold,
            ),
            Mistake(
                "The variance runs over the dimensions. That gives a verdict on each example; "
                "take it over the examples, the first axis.",
                lambda means, threshold=0.01: means.var(1) > threshold,
            ),
            Mistake(
                "This looks at where the posterior means lie on average, and not at how they vary "
                "with the data.",
                lambda means, threshold=0.01: means.mean(0).abs() > threshold,
            ),
            Mistake(
                "This is how many units are active. The exercise asks which they are: a mask with "
                "one entry for each dimension.",
                lambda means, threshold=0.01: active_units(means, threshold).sum(),
            ),
            Mistake(
                "The argument for the threshold is not used: 0.01 is only its default.",
                lambda means, threshold=0.01: active_units(means),
            ),
        ),
        hints=(
            "A dimension says something about x if its posterior mean is another for other x. "
            "Over which axis of (N, D) does x change?",
            "The threshold is one for a variance. Whether it is divided by N or by N - 1 does not "
            "matter here.",
            "Tensors have a method `var` that takes the axis. Compare its result with the "
            "threshold, and return the booleans.",
        ),
        lesson="Being active is a low bar: at the optimum of a linear VAE, a dimension whose "
        "posterior mean has variance v costs -½ ln(1 - v) nats, which is 0.005 at the usual "
        "threshold. The count also depends on the axes: a rotation of z leaves the likelihood "
        "alone and can change it.",
    )
)


# 4.5


def free_bits_rate(kl: Tensor, floor: float, group: int) -> Tensor:
    per_dimension = kl.mean(0)  # over the batch
    per_group = per_dimension.unflatten(0, (-1, group)).sum(1)
    return per_group.clamp(min=floor).sum()


def _judge_free_bits(attempt: Attempt) -> None:
    for batch, group, scales in (
        (5, 2, [0.1, 0.2, 1.0, 0.4, 0.02, 0.9, 0.05, 0.1]),
        (7, 1, [0.05, 1.0, 0.1, 0.8]),
        (4, 3, [0.5, 0.2, 0.4]),
        (1, 2, [1.0, 2.0, 0.1, 0.05]),
        (3, 2, [0.01, 0.02, 0.05, 0.01]),
    ):
        dim = len(scales)
        # Each row has the mean of its dimension, but for a factor from 0 to 2.
        factor = torch.rand(batch, dim, generator=attempt.generator) + 0.01
        value = (torch.tensor(scales) * factor / factor.mean(0)).requires_grad_()
        floor = 0.5
        charged, gradient = 0.0, torch.zeros(batch, dim)
        for start in range(0, dim, group):
            rate = sum(scales[start : start + group])
            charged += max(floor, rate)
            gradient[:, start : start + group] = float(rate > floor) / batch
        size = f"B, D = {batch}, {dim} and groups of {group}"
        found = attempt(value, floor, group)
        attempt.close(found, charged, f"the rate charged for {size}")
        (found,) = attempt.gradient(found, [value])
        attempt.close(found, gradient, f"its gradient for {size}")


register(
    Exercise(
        "4.5",
        title="Free bits in groups",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=15,
        solution=free_bits_rate,
        judge=_judge_free_bits,
        mistakes=(
            Mistake(
                "The floor is taken for each example, and then the mean. The allowance is one for "
                "the mean over the batch: so a group may spend much on a few examples and nothing "
                "on the rest.",
                lambda kl, floor, group: (
                    kl.unflatten(1, (-1, group)).sum(2).clamp(min=floor).mean(0).sum()
                ),
            ),
            Mistake(
                "No group is raised to the floor: this is the rate of the whole code. A floor "
                "under that sum is not enough either, because one group can use it up while the "
                "others fall silent: each has an allowance of its own.",
                lambda kl, floor, group: kl.mean(0).sum().clamp(min=floor),
            ),
            Mistake(
                "The floor is taken for each dimension, and the sum within the group comes after "
                "it. The dimensions of a group share one allowance.",
                lambda kl, floor, group: free_bits_rate(kl, floor, 1),
            ),
            Mistake(
                "The minimum is taken. That puts a ceiling on the charge: a group above it would "
                "be free to cost any amount, and those below would still be pushed to zero.",
                lambda kl, floor, group: (
                    kl.mean(0).unflatten(0, (-1, group)).sum(1).clamp(max=floor).sum()
                ),
            ),
            Mistake(
                "The groups are averaged. Rates of different latent dimensions add.",
                lambda kl, floor, group: free_bits_rate(kl, floor, group) * group / kl.shape[1],
            ),
            Mistake(
                "Only what exceeds the floor is charged. The gradient is the same, but the value "
                "is lower by one floor for each group, and no longer comparable with a rate: the "
                "charge of a group is max(floor, rate).",
                lambda kl, floor, group: (
                    free_bits_rate(kl, floor, group) - floor * (kl.shape[1] // group)
                ),
            ),
        ),
        hints=(
            "Three things happen: a mean over the batch, sums, and a maximum. Their order is the "
            "exercise. What is it that the allowance is for?",
            "The allowance is for the mean over the batch of the rate of a whole group. So the "
            "maximum comes after the mean and the sum within the group, and before the sum over "
            "the groups.",
            "First (B, D) to (D,), then to (D / group, group) and (D / group,). There, raise what "
            "is below the floor to it, by a function that passes the gradient of all the rest.",
        ),
        lesson="The size of a group says who may be silent. With groups of one, every dimension "
        "is charged for its allowance, also one that has nothing to say. With one group of all, "
        "only the whole code is kept from collapse, and which dimensions carry it is left to the "
        "search.",
    )
)


# 4.6


def surviving(eigenvalues: Tensor, latent_dim: int, weight: float) -> tuple[int, Tensor]:
    # ‖x - f‖² / Dₓ is ‖x - f‖² / 2σ² for σ² = Dₓ / 2, and the weight is β: the level is βσ².
    level = weight * len(eigenvalues) / 2
    kept = eigenvalues[:latent_dim]
    kept = kept[kept > level]
    return len(kept), 0.5 * (kept / level).log().sum()


def _judge_surviving(attempt: Attempt) -> None:
    # Pixels, latent dimensions, survivors without the limit of latent dimensions.
    for pixels, latent_dim, above in ((9, 8, 4), (12, 3, 6), (6, 5, 0), (30, 10, 10)):
        scale = torch.linspace(4.0, 0.3, pixels)
        x = torch.randn(20 * pixels, pixels, generator=attempt.generator) * scale
        values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
        # The level lies between two eigenvalues, or above them all.
        upper = values[above - 1] if above else 4 * values[0]
        level = (upper * values[above]).sqrt().item()
        weight = 2 * level / pixels
        best = LinearGaussian.fit(x, latent_dim, 1.0, level)
        rate = kl(best.posterior(x, level), best.prior()).mean()
        count = (best.weight.norm(dim=0) > 0).sum()
        found = attempt(values, latent_dim, weight)
        what = f"count and rate for Dₓ, D = {pixels}, {latent_dim}"
        attempt.close(_pair(found), torch.stack([count, rate]), what)


def _pair(found: Any) -> Any:  # noqa: ANN401
    """Count and rate as they come: on their own, or with an axis of one entry."""
    if isinstance(found, list | tuple) and len(found) == 2:
        return [each.reshape(()) if _is_single(each) else each for each in found]
    return found


def _is_single(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, Tensor | np.ndarray) and np.prod(value.shape) == 1


def _at_level(eigenvalues: Tensor, latent_dim: int, level: Tensor | float) -> tuple[int, Tensor]:
    return surviving(eigenvalues, latent_dim, float(level) * 2 / len(eigenvalues))


def _with_the_dead(eigenvalues: Tensor, latent_dim: int, weight: float) -> tuple[int, Tensor]:
    count, _ = surviving(eigenvalues, latent_dim, weight)
    level = weight * len(eigenvalues) / 2
    return count, 0.5 * (eigenvalues[:latent_dim] / level).log().sum()


register(
    Exercise(
        "4.6",
        title="Which directions survive",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=20,
        solution=surviving,
        judge=_judge_surviving,
        mistakes=(
            Mistake(
                "A factor of two is missing in the level: the Gaussian term is the squared error "
                "over 2σ², so a factor of 1 / Dₓ before it stands for σ² = Dₓ / 2.",
                lambda values, dim, weight: _at_level(values, dim, weight * len(values)),
            ),
            Mistake(
                "The mean over pixels is left out. It divides the squared error by Dₓ, and so "
                "raises the level by that factor.",
                lambda values, dim, weight: _at_level(values, dim, weight / 2),
            ),
            Mistake(
                "The weight itself is taken for the level. It would be the level if half the "
                "squared error were summed over the pixels.",
                lambda values, dim, weight: _at_level(values, dim, weight),
            ),
            Mistake(
                "The limit of D latent dimensions is left out: no more directions can be kept, "
                "however large their eigenvalues are.",
                lambda values, dim, weight: surviving(values, len(values), weight),
            ),
            Mistake(
                "The dead directions are in the rate, with negative terms. They cost nothing and "
                "earn nothing: the sum is over the survivors.",
                _with_the_dead,
            ),
            Mistake(
                "The rate is twice too large: a half stands before the sum of the logarithms.",
                lambda values, dim, weight: (
                    surviving(values, dim, weight)[0],
                    2 * surviving(values, dim, weight)[1],
                ),
            ),
        ),
        hints=(
            "The page has the answer for a Gaussian decoder with noise variance σ² and a weight β "
            "on the KL. Which σ² and β give this loss, up to a constant?",
            "The Gaussian term is ‖x - f(z)‖² / 2σ², summed over pixels; here it is "
            "‖x - f(z)‖² / Dₓ. Only the product of σ² and β matters, so set one of them to what "
            "is most convenient.",
            "With σ² = Dₓ / 2 the two squared errors are equal, and then the weight in the loss "
            "is β. Now use the rule for survivors and the formula for their rate, for at most D "
            "of the eigenvalues.",
        ),
        lesson="The mean over pixels is a decision about the noise: before any weight it gives "
        "every pixel the variance Dₓ / 2, which grows with the picture. The unit of the data is "
        "another such decision: with pixels divided by 16, all eigenvalues are divided by 256, "
        "and the level stays.",
    )
)
