"""Chapter 5, domain knowledge."""

import math

import numpy as np
import torch
from torch.distributions import Normal
from torch.nn.functional import normalize

TURN = 2 * math.pi


def around(angle, mean):
    """The difference, within half a turn of zero."""
    off = angle - mean
    return off - TURN * torch.round(off / TURN).detach()


def five_turns(angle, mean, scale):
    """As the page's family does it."""
    off = torch.remainder(angle - mean + math.pi, TURN) - math.pi
    turns = [off + TURN * k + mean for k in range(-2, 3)]
    return Normal(mean, scale).log_prob(torch.stack(turns)).logsumexp(0)


def by_rounding(angle, mean, scale):
    off = around(angle, mean)
    log_q = None
    for k in range(-6, 7):
        each = -0.5 * ((off + TURN * k) / scale) ** 2
        log_q = each if log_q is None else torch.logaddexp(log_q, each)
    return log_q - scale.log() - 0.5 * math.log(TURN)


def columns(angle, mean, scale):
    k = TURN * torch.arange(-4, 5)[:, None]
    out = []
    for b in range(len(mean)):
        off = around(angle[:, b], mean[b])
        out.append(torch.logsumexp(Normal(0, scale[b]).log_prob(off + k), 0))
    return torch.stack(out, dim=1)


def without_moving(angle, mean, scale):
    values = torch.stack([angle + TURN * k for k in range(-9, 10)])
    return Normal(mean, scale).log_prob(values).logsumexp(0)


def three_turns(angle, mean, scale):
    off = around(angle, mean)
    density = [Normal(0.0, scale).log_prob(off + TURN * k) for k in (-1, 0, 1)]
    return torch.logsumexp(torch.stack(density), dim=0)


def positive_turns(angle, mean, scale):
    values = torch.stack([angle + TURN * k for k in range(8)])
    return Normal(mean, scale).log_prob(values).logsumexp(0)


def without_maximum(angle, mean, scale):
    off = around(angle, mean)
    values = torch.stack([off + TURN * k for k in range(-4, 5)])
    return Normal(0.0, scale).log_prob(values).exp().sum(0).log()


def logs_added(angle, mean, scale):
    off = around(angle, mean)
    return sum(Normal(0.0, scale).log_prob(off + TURN * k) for k in range(-2, 3))


def no_gradient_for_the_mean(angle, mean, scale):
    return five_turns(angle, mean.detach(), scale)


def mean_of_turns(angle, mean, scale):
    return five_turns(angle, mean, scale) - math.log(5)


def complex_mean(f, x):
    steps = x.shape[-1]
    total = 0
    for k in range(steps):
        m = f(x.roll(-k, dims=1))  # turned the other way, and the answer ahead
        total = total + torch.complex(m[..., 0], m[..., 1]) * np.exp(1j * TURN * k / steps)
    return torch.view_as_real(total / steps)


def in_one_call(f, x):
    steps = x.shape[-1]
    views = torch.stack([torch.roll(x, k, dims=-1) for k in range(steps)], dim=1)
    angle = -TURN / steps * torch.arange(steps)
    c, s = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)  # (G, 2, 2)
    return (turn @ f(views).unsqueeze(-1)).squeeze(-1).mean(1)


def one_long_batch(f, x):
    batch, steps = x.shape
    flat = f(torch.cat([torch.roll(x, k, 1) for k in range(steps)]))
    a, b = flat.view(steps, batch, 2).unbind(-1)
    t = (TURN / steps * torch.arange(steps)).unsqueeze(1)
    return torch.stack(
        [(a * t.cos() + b * t.sin()).mean(0), (b * t.cos() - a * t.sin()).mean(0)]
    ).T


def turned(m, angle):
    c, s = math.cos(angle), math.sin(angle)
    return torch.stack([c * m[:, 0] - s * m[:, 1], s * m[:, 0] + c * m[:, 1]], 1)


def over(f, x, step, roll=lambda x, k: torch.roll(x, k, 1), each=lambda m: m):
    total = 0
    for k in range(x.shape[1]):
        total = total + turned(each(f(roll(x, k))), step * k)
    return total / x.shape[1]


def angles_as_numbers(f, x):
    total = 0
    for k in range(x.shape[1]):
        m = f(torch.roll(x, k, 1))
        total = total + torch.angle(torch.complex(m[:, 0], m[:, 1])) - TURN * k / x.shape[1]
    mean = total / x.shape[1]
    return torch.stack([torch.cos(mean), torch.sin(mean)], 1)


def first_wave(f, x):
    """It turns with x, and has forgotten f."""
    angle = TURN / x.shape[1] * torch.arange(x.shape[1])
    return torch.stack([x @ angle.cos(), x @ angle.sin()], 1)


def one_step_short(f, x):
    n = x.shape[1]
    views = [turned(f(torch.roll(x, k, 1)), -TURN * k / n) for k in range(max(1, n - 1))]
    return torch.stack(views).mean(0)


def both_ends(f, x):
    angles = torch.linspace(0, TURN, x.shape[1])
    views = [turned(f(x.roll(k, 1)), -angle.item()) for k, angle in enumerate(angles)]
    return sum(views) / len(views)


RIGHT = {
    "5.8": [five_turns, by_rounding, columns],
    "5.9": [complex_mean, in_one_call, one_long_batch],
}

WRONG = {
    "5.8": [
        (lambda a, m, s: Normal(m, s).log_prob(a), "on the line"),
        (lambda a, m, s: Normal(0.0, s).log_prob(around(a, m)), "nearest to the mean"),
        (three_turns, "Too few turns"),
        (positive_turns, "one direction only"),
        (lambda a, m, s: by_rounding(a, m, s) - math.log(TURN), "1 / 2π too many"),
        (lambda a, m, s: columns(a, m, s).sum(1), "last axis has been summed"),
        (lambda a, m, s: by_rounding(a, m, s * s), "where the scale belongs"),
        (without_maximum, "range of floating point"),
        # Further ones, without a sentence of their own
        (logs_added, "expected"),
        (mean_of_turns, "expected"),
        (without_moving, "Angles moved by 20 turns"),
        (no_gradient_for_the_mean, "No gradient arrives at the mean"),
        (lambda a, m, s: by_rounding(a, m, s.detach()), "No gradient arrives at the scale"),
        (lambda a, m, s: by_rounding(a, m, s).exp(), "expected"),
        (lambda a, m, s: by_rounding(a, m, s).mean(0), "found the shape"),
        (lambda a, m, s: by_rounding(a, m, s).clamp(min=-700), "Narrow densities"),
    ],
    "5.9": [
        (lambda f, x: over(f, x, 0.0), "not been turned back"),
        (lambda f, x: over(f, x, TURN / x.shape[1]), "in the same sense"),
        (lambda f, x: over(f, x, -TURN / x.shape[1]) * x.shape[1], "sum over the positions"),
        (lambda f, x: over(f, x, -TURN / 4), "a quarter turn"),
        (both_ends, "counts both ends"),
        (
            lambda f, x: over(f, x, -TURN / x.shape[1], roll=torch.roll),
            "as one long row",
        ),
        (angles_as_numbers, "as plain numbers"),
        (
            lambda f, x: over(f, x, -TURN / x.shape[1], each=lambda m: normalize(m, dim=1)),
            "length one before the mean",
        ),
        # Further ones, without a sentence of their own
        (lambda f, x: f(x), "expected"),
        (first_wave, "expected"),
        (one_step_short, "expected"),
        (lambda f, x: normalize(complex_mean(f, x), dim=1), "expected"),
        (lambda f, x: complex_mean(f, x).detach(), "No gradient arrives at the weights of f"),
        (lambda f, x: complex_mean(f, x).mean(0), "found the shape (2,)"),
        (lambda f, x: complex_mean(f, x).T, "found the shape (2, 3)"),
        (lambda f: lambda x: complex_mean(f, x), "called with 2 arguments"),
    ],
}
