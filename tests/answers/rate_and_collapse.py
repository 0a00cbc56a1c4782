"""Chapter 4, rate and collapse."""

import math

import numpy as np
import torch

# 4.4


def active_by_numpy(means, threshold=0.01, ddof=1):
    return np.var(means.numpy(), axis=0, ddof=ddof) > threshold


def active_listed(means, threshold=0.01):
    return [column.var(correction=0).item() > threshold for column in means.T]


def active_by_moments(means, threshold=0.01):
    return ((means**2).mean(0) - means.mean(0) ** 2 > threshold).int()


def active_by_covariance(means, threshold=0.01):
    return torch.cov(means.T).diagonal().sqrt() > math.sqrt(threshold)


# 4.5


def free_bits_looped(kl, floor, group):
    total = 0
    for start in range(0, kl.shape[1], group):
        rate = kl[:, start : start + group].sum(1).mean()
        total = total + torch.maximum(rate, torch.tensor(floor))
    return total


def free_bits_by_relu(kl, floor, group):
    rates = kl.reshape(len(kl), -1, group).sum(-1).mean(0)
    return (floor + torch.relu(rates - floor)).sum()


def free_bits_by_where(kl, floor, group):
    rates = torch.stack([part.sum() for part in kl.split(group, dim=1)]) / len(kl)
    return torch.where(rates > floor, rates, floor).sum()


def grouped(kl, group):
    return kl.view(len(kl), kl.shape[1] // group, group)


# 4.6


def surviving_by_clamp(eigenvalues, latent_dim, weight):
    ratio = 2 * eigenvalues[:latent_dim] / (weight * len(eigenvalues))
    return (ratio > 1).sum(), ratio.log().clamp(min=0).sum() / 2


def surviving_looped(eigenvalues, latent_dim, weight):
    level = weight * 0.5 * eigenvalues.numel()
    count, rate = 0, 0.0
    for value in eigenvalues.tolist()[:latent_dim]:
        if value > level:
            count += 1
            rate += math.log(value / level) / 2
    return [count, rate]


def surviving_in_numpy(eigenvalues, latent_dim, weight):
    level = np.array([weight * len(eigenvalues) / 2])
    top = np.sort(eigenvalues.numpy())[::-1][:latent_dim]
    alive = np.maximum(top, level) / level
    return np.sum(top > level), 0.5 * np.log(alive).sum(keepdims=True)


def at(level, top):
    alive = top[top > level]
    return len(alive), (alive.log() - math.log(level)).sum() / 2


RIGHT = {
    "4.4": [active_by_numpy, active_listed, active_by_moments, active_by_covariance],
    "4.5": [free_bits_looped, free_bits_by_relu, free_bits_by_where],
    "4.6": [surviving_by_clamp, surviving_looped, surviving_in_numpy],
}

WRONG = {
    "4.4": [
        (lambda m, t=0.01: m.var(0, correction=0).sqrt() > t, "standard deviation is held"),
        (lambda m, t=0.01: (m**2).sum(0) / len(m) > t, "not centred"),
        (lambda m, t=0.01: m.T.var(0) > t, "runs over the dimensions"),
        (lambda m, t=0.01: m.mean(0) ** 2 > t**2, "lie on average"),
        (lambda m, t=0.01: len([v for v in m.var(0) if v > t]), "how many units"),
        (lambda m, threshold=None: torch.var(m, 0) > 0.01, "only its default"),
        (lambda m, t=0.01: m.var(0) < t, "The active units for N, D = 60, 7"),
        (lambda m, t=0.01: m.var() > t, "found the shape ()"),
        (lambda m: m.var(0) > 0.01, "It is called with 2 arguments"),
        (lambda m, t=0.01: m.var(0), "The active units for N, D = 60, 7"),
    ],
    "4.5": [
        (
            lambda kl, c, g: torch.maximum(grouped(kl, g).sum(2), torch.tensor(c)).sum(1).mean(),
            "for each example, and then the mean",
        ),
        (lambda kl, c, g: max(kl.sum(1).mean(), torch.tensor(c)), "rate of the whole code"),
        (
            lambda kl, c, g: torch.relu(kl.mean(0) - c).sum() + c * kl.shape[1],
            "for each dimension, and the sum within",
        ),
        (
            lambda kl, c, g: grouped(kl, g).sum(2).mean(0).minimum(torch.tensor(c)).sum(),
            "minimum is taken",
        ),
        (
            lambda kl, c, g: grouped(kl, g).sum(2).mean(0).maximum(torch.tensor(c)).mean(),
            "groups are averaged",
        ),
        (
            lambda kl, c, g: torch.relu(grouped(kl, g).sum(2).mean(0) - c).sum(),
            "Only what exceeds the floor",
        ),
        (lambda kl, c, g: kl.mean(0).sum(), "rate of the whole code"),
        (lambda kl, c, g: free_bits_by_relu(kl, c, g).detach(), "Its gradient for B, D = 5, 8"),
        (
            lambda kl, c, g: grouped(kl, g).mean(2).mean(0).clamp(min=c).sum(),
            "The rate charged for B, D = 5, 8",
        ),
        (
            lambda kl, c, g: kl.view(len(kl), g, -1).sum(1).mean(0).clamp(min=c).sum(),
            "The rate charged for B, D = 5, 8",
        ),
        (
            lambda kl, c, g: grouped(kl, g).sum(2).mean(0).clamp(min=c),
            "found the shape (4,)",
        ),
    ],
    "4.6": [
        (lambda v, d, w: at(w * len(v), v[:d]), "factor of two is missing"),
        (lambda v, d, w: at(w / 2, v[:d]), "mean over pixels is left out"),
        (lambda v, d, w: at(w, v[:d]), "weight itself is taken"),
        (lambda v, d, w: at(w * len(v) / 2, v), "limit of D latent"),
        (
            lambda v, d, w: (
                (v[:d] > w * len(v) / 2).sum(),
                0.5 * (2 * v[:d] / (w * len(v))).log().sum(),
            ),
            "dead directions are in the rate",
        ),
        (
            lambda v, d, w: (
                (v[:d] > w * len(v) / 2).sum(),
                (2 * v[:d] / (w * len(v))).clamp(min=1).log().sum(),
            ),
            "twice too large",
        ),
        (
            lambda v, d, w: at((w * len(v) / 2) ** 0.5, v[:d]),
            "Count and rate for Dₓ, D = 9, 8",
        ),
        (
            lambda v, d, w: at(w * len(v) / 2, v[:d])[0],
            "found the shape ()",
        ),
        (lambda v, d, w: at(w * d / 2, v[:d]), "Count and rate for Dₓ, D = 9, 8"),
        (
            lambda v, d, w: at(w * len(v) / 2, v[:d])[::-1],
            "Count and rate for Dₓ, D = 9, 8",
        ),
    ],
}
