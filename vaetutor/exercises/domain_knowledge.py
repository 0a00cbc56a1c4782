"""Exercises of chapter 5, domain knowledge."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.distributions as td
from torch import Tensor

from vaetutor.exercises._attempt import Attempt
from vaetutor.exercises._declare import Exercise, Mistake, register

PAGE = "05e_domain_knowledge"


# 5.8


def wrapped_normal_log_prob(angle: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    off = torch.remainder(angle - mean + math.pi, 2 * math.pi) - math.pi
    turns = 2 * math.pi * torch.arange(-3, 4).view(-1, 1, 1)
    each = td.Normal(0.0, scale).log_prob(off + turns)  # (7, S, B)
    return each.logsumexp(0)


def _by_fourier(angle: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """By the Fourier series of the density, for scales that are not small."""
    n = torch.arange(1, 60).view(-1, 1, 1)
    waves = (-0.5 * (n * scale) ** 2).exp() * (n * (angle - mean)).cos()
    return (1 + 2 * waves.sum(0)).log() - math.log(2 * math.pi)


def _by_turns(angle: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """By the sum over many turns."""
    turns = 2 * math.pi * np.arange(-40, 41)[:, None, None]
    z = ((angle - mean).numpy() + turns) / scale.numpy()
    each = -0.5 * z**2 - np.log(scale.numpy()) - 0.5 * math.log(2 * math.pi)
    return torch.from_numpy(np.logaddexp.reduce(each, axis=0))


def _circle(attempt: Attempt, draws: int, batch: int, low: float, high: float) -> list[Tensor]:
    angle, mean, scale = (
        torch.rand(shape, generator=attempt.generator) for shape in ((draws, batch), batch, batch)
    )
    angle, mean = (math.pi * (2 * value - 1) for value in (angle, mean))
    return [angle, mean, low * (high / low) ** scale]


def _judge_wrapped_normal(attempt: Attempt) -> None:
    atol = 1e-4
    for draws, batch, low, high in (
        (40, 3, 0.9, 1.7),
        (20, 2, 2.8, 3.0),
        (1, 1, 2.0, 3.0),
        (2, 7, 0.9, 3.0),
    ):
        angle, mean, scale = _circle(attempt, draws, batch, low, high)
        mean.requires_grad_()
        scale.requires_grad_()
        expected = _by_fourier(angle, mean, scale)
        found = attempt(angle, mean, scale)
        what = f"wide densities at angles of shape {draws, batch}"
        attempt.close(found, expected, what, rtol=0, atol=atol)
        names = ["the mean", "the scale"]
        gradients = attempt.gradient(found, [mean, scale])
        attempt.arrives(gradients, names)
        right = attempt.gradient(expected, [mean, scale])
        for name, one, two in zip(names, gradients, right, strict=True):
            what = f"the gradient of the log-density for {name}"
            attempt.close(one, two, what, rtol=1e-3, atol=1e-3)
    angle, mean, scale = _circle(attempt, 30, 4, 0.02, 0.1)
    scale[0] = 0.02
    angle[0], angle[1] = mean + math.pi - 0.3, mean + 0.04
    found, expected = attempt(angle, mean, scale), _by_turns(angle, mean, scale)
    attempt.close(found, expected, "narrow densities", rtol=1e-4, atol=atol)
    angle, mean, scale = _circle(attempt, 20, 3, 0.3, 3.0)
    expected = _by_turns(angle, mean, scale)
    for n in (-2, 20):
        found = attempt(angle + 2 * math.pi * n, mean, scale)
        what = f"angles moved by {n} turns"
        attempt.close(found, expected, what, rtol=1e-4, atol=atol)
    found = attempt(angle, mean + 20 * math.pi, scale)
    attempt.close(found, expected, "means moved by 10 turns", rtol=1e-4, atol=atol)


def _some_turns(angle: Tensor, mean: Tensor, scale: Tensor, first: int, last: int) -> Tensor:
    turns = 2 * math.pi * torch.arange(first, last + 1).view(-1, 1, 1)
    return td.Normal(mean, scale).log_prob(angle + turns).logsumexp(0)


def _in_plain_numbers(angle: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    off = torch.remainder(angle - mean + math.pi, 2 * math.pi) - math.pi
    turns = 2 * math.pi * torch.arange(-3, 4).view(-1, 1, 1)
    return td.Normal(0.0, scale).log_prob(off + turns).exp().sum(0).log()


register(
    Exercise(
        "5.8",
        title="A density on the circle",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=15,
        solution=wrapped_normal_log_prob,
        judge=_judge_wrapped_normal,
        mistakes=(
            Mistake(
                "This is the normal density on the line. A draw does not say on which turn it "
                "was made, so the densities of all turns add up.",
                lambda angle, mean, scale: td.Normal(mean, scale).log_prob(angle),
            ),
            Mistake(
                "Only the turn that is nearest to the mean is counted. That is good for small "
                "scales; for large ones the neighbours hold a good part of the mass.",
                lambda angle, mean, scale: td.Normal(0.0, scale).log_prob(
                    torch.remainder(angle - mean + math.pi, 2 * math.pi) - math.pi
                ),
            ),
            Mistake(
                "Too few turns are added: for a scale of 3 the second turn still counts in the "
                "third decimal.",
                lambda angle, mean, scale: _some_turns(
                    torch.remainder(angle - mean + math.pi, 2 * math.pi) - math.pi,
                    torch.zeros_like(mean),
                    scale,
                    -1,
                    1,
                ),
            ),
            Mistake(
                "The turns go in one direction only. A normal has two tails, and both come round "
                "the circle: count negative turns too.",
                lambda angle, mean, scale: _some_turns(angle, mean, scale, 0, 12),
            ),
            Mistake(
                "There is a factor 1 / 2π too many. The normal's own constant is all that is "
                "needed: its mass is one before it is wrapped, and wrapping loses none.",
                lambda angle, mean, scale: (
                    wrapped_normal_log_prob(angle, mean, scale) - math.log(2 * math.pi)
                ),
            ),
            Mistake(
                "The last axis has been summed away. It is the batch here: every entry of (S, B) "
                "is an angle with a density of its own.",
                lambda angle, mean, scale: wrapped_normal_log_prob(angle, mean, scale).sum(-1),
            ),
            Mistake(
                "The variance stands where the scale belongs: `torch.distributions.Normal` takes "
                "σ, and so does this function.",
                lambda angle, mean, scale: wrapped_normal_log_prob(angle, mean, scale**2),
            ),
            Mistake(
                "The densities leave the range of floating point where the scale is small. Add "
                "them up by `logsumexp`, which takes the largest out before the exponential.",
                _in_plain_numbers,
            ),
        ),
        hints=(
            "The section on three shapes for q says what the density is. Which turns can "
            "contribute at all, for a scale of three or less?",
            "First move the difference of angle and mean to within half a turn of zero, with "
            "`torch.remainder`. Then a few whole turns on either side are enough.",
            "Give the turns an axis in front, take the normal's log-density at each, and add the "
            "densities along that axis with a log-sum-exp.",
        ),
        lesson="For wide densities the check has used another form of the same function, its "
        "Fourier series (1 + 2 Σ exp(-n²σ²/2) cos n(θ - μ)) / 2π over n = 1, 2, ... It converges "
        "fast just where the sum over turns does not, and shows where a growing σ leads: to the "
        "uniform density, whose KL from a uniform prior is zero. On the line the density would "
        "go on falling, and the bound rising.",
    )
)


# 5.9

Pose = Callable[[Tensor], Tensor]


def equivariant(f: Pose, x: Tensor) -> Tensor:
    steps = x.shape[-1]
    total = torch.zeros(len(x), 2)
    for k in range(steps):
        a, b = f(torch.roll(x, k, -1)).unbind(-1)  # what f says after k steps
        c, s = math.cos(2 * math.pi * k / steps), math.sin(2 * math.pi * k / steps)
        total = total + torch.stack([c * a + s * b, c * b - s * a], -1)  # turned back
    return total / steps


def _rotated(m: Tensor, angle: float) -> Tensor:
    """Vectors (B, 2) turned anticlockwise."""
    c, s = math.cos(angle), math.sin(angle)
    return m @ torch.tensor([[c, s], [-s, c]])


def _harmonic(x: Tensor) -> Tensor:
    """A vector that turns with x: the first wave of its Fourier series, (B, G) to (B, 2)."""
    angle = 2 * math.pi / x.shape[-1] * torch.arange(x.shape[-1])
    return torch.stack([x @ angle.cos(), x @ angle.sin()], -1)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """The right answer for f(x) = x W, in closed form: of W only its first wave is left."""
    w = torch.complex(weight[:, 0], weight[:, 1])
    v = torch.view_as_complex(_harmonic(x)) * torch.fft.fft(w)[1 % len(w)] / len(w)
    return torch.view_as_real(v)


def _judge_equivariant(attempt: Attempt) -> None:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=attempt.generator)

    for batch, steps in ((3, 7), (1, 4), (4, 1), (2, 8)):
        x, weight = normal(batch, steps), normal(steps, 2).requires_grad_()
        expected = _linear(x, weight)
        found = attempt(lambda signal, w=weight: signal @ w, x)
        what = f"a linear f for signals of shape {batch, steps}"
        attempt.close(found, expected, what, rtol=1e-5, atol=1e-6)
        gradients = attempt.gradient(found, [weight])
        attempt.arrives(gradients, ["the weights of f"])
        (right,) = attempt.gradient(expected, [weight])
        what = "the gradient of the mean vectors for the weights of f"
        attempt.close(gradients[0], right, what, rtol=1e-5, atol=1e-6)

    first, bias, second, offset = normal(6, 16), normal(16), normal(16, 2), normal(2)

    def network(signal: Tensor) -> Tensor:
        return torch.tanh(signal @ first + bias) @ second + offset

    x = normal(4, 6)
    expected = torch.stack([_one_by_one(network, row) for row in x])
    attempt.close(attempt(network, x), expected, "a network for f", rtol=1e-5, atol=1e-6)
    turned = attempt(network, torch.roll(x, 1, -1))
    ahead = _rotated(expected, 2 * math.pi / 6)
    attempt.close(turned, ahead, "its answer for signals turned by one step", rtol=1e-5, atol=1e-6)

    def able(signal: Tensor) -> Tensor:
        m: Tensor = _harmonic(signal) * (1 + signal.square().sum(-1, keepdim=True))
        return m

    what = "an f that turns with its signal already"
    attempt.close(attempt(able, x), able(x), what, rtol=1e-5, atol=1e-6)


def _one_by_one(f: Pose, row: Tensor) -> Tensor:
    """By complex numbers and index arithmetic, for one signal (G,)."""
    steps = len(row)
    values = [
        torch.view_as_complex(f(row[(torch.arange(steps) - k) % steps].unsqueeze(0)).contiguous())
        * np.exp(-2j * math.pi * k / steps)
        for k in range(steps)
    ]
    return torch.view_as_real(torch.stack(values).mean(0))[0]


def _over_turns(f: Pose, x: Tensor, angle: float) -> Tensor:
    """The mean over all positions, with the answers turned by so much a step."""
    steps = x.shape[-1]
    views = [_rotated(f(torch.roll(x, k, -1)), k * angle) for k in range(steps)]
    return torch.stack(views).mean(0)


def _without_lengths(f: Pose, x: Tensor) -> Tensor:
    return equivariant(lambda view: torch.nn.functional.normalize(f(view), dim=-1), x)


def _plain_angles(f: Pose, x: Tensor) -> Tensor:
    steps = x.shape[-1]
    views = [f(torch.roll(x, k, -1)) for k in range(steps)]
    angles = [torch.atan2(m[:, 1], m[:, 0]) - 2 * math.pi * k / steps for k, m in enumerate(views)]
    mean = torch.stack(angles).mean(0)
    return torch.stack([mean.cos(), mean.sin()], -1)


def _rolled_through(f: Pose, x: Tensor) -> Tensor:
    steps = x.shape[-1]
    views = [
        _rotated(f(torch.roll(x, k)), -2 * math.pi * k / steps)  # all of x as one row
        for k in range(steps)
    ]
    return torch.stack(views).mean(0)


register(
    Exercise(
        "5.9",
        title="Knowledge that turns with the data",
        page=PAGE,
        kind="function",
        difficulty="medium",
        minutes=20,
        solution=equivariant,
        judge=_judge_equivariant,
        mistakes=(
            Mistake(
                "The answers have not been turned back before the mean. That makes a vector "
                "which is the same however x is turned: invariant, and no pose can be read from "
                "it.",
                lambda f, x: _over_turns(f, x, 0.0),
            ),
            Mistake(
                "The answers are turned in the same sense as the signal. If x has been turned "
                "by k steps, what f says about it must be turned by k steps the other way.",
                lambda f, x: _over_turns(f, x, 2 * math.pi / x.shape[-1]),
            ),
            Mistake(
                "This is the sum over the positions. It turns with x, but an f that is right "
                "already would become G times as long, and so far too sure.",
                lambda f, x: x.shape[-1] * equivariant(f, x),
            ),
            Mistake(
                "Each step is taken for a quarter turn. That holds for G = 4 alone: a step is "
                "2π / G.",
                lambda f, x: _over_turns(f, x, -math.pi / 2),
            ),
            Mistake(
                "The last position is a whole turn: `linspace` counts both ends. A step is "
                "2π / G, not 2π / (G - 1).",
                lambda f, x: _over_turns(f, x, -2 * math.pi / max(1, x.shape[-1] - 1)),
            ),
            Mistake(
                "`torch.roll` without its last argument turns all of x as one long row, so that "
                "numbers move from one signal into the next.",
                _rolled_through,
            ),
            Mistake(
                "Angles have been averaged as plain numbers. Near the cut the mean of two close "
                "angles is on the far side of the circle: average the vectors.",
                _plain_angles,
            ),
            Mistake(
                "The vectors have been brought to length one before the mean. Their lengths say "
                "how sure f is, and an f that is right already must be left as it is.",
                _without_lengths,
            ),
        ),
        hints=(
            "Take one k. x has been turned by k steps, and f has answered with a vector for the "
            "turned signal. Where would that vector point for x itself?",
            "Turning a vector by the angle α is (a, b) → (a cos α - b sin α, a sin α + b cos α). "
            "Which sign has α here, and how large is it for one step?",
            "Loop over k from 0 to G - 1: roll x along its last axis, ask f, turn the answer by "
            "minus k steps of 2π / G. Then take the mean over k, and of nothing else.",
        ),
        lesson="Take a signal that half a turn leaves as it is. Its vector must stay the same and "
        "must point the other way, so it is zero, whatever f is: the projected normal is then "
        "uniform. One vector that follows the symmetry exactly cannot choose between equal poses. "
        "To put mass on each of them, q needs several peaks, as the four poses of this page have.",
        origin="advanced, question 3",
    )
)
