"""Chapter 4, the prior."""

import torch
import torch.distributions as td

from vaetutor import kl


def looped(mean, scale):
    """By the second moment, one dimension after the other, in plain numbers."""
    centres, widths, saved = [], [], 0.0
    for mu, sd in zip(mean.T.tolist(), scale.T.tolist(), strict=True):
        n = len(mu)
        centre = sum(mu) / n
        second = sum(m * m + s * s for m, s in zip(mu, sd, strict=True)) / n
        centres.append(centre)
        widths.append((second - centre**2) ** 0.5)
        before = sum(m * m + s * s for m, s in zip(mu, sd, strict=True)) / n / 2
        saved += before - 0.5 - torch.tensor(widths[-1]).log().item()
    return centres, widths, saved


def by_divergences(mean, scale, prior=None):
    q = td.Independent(td.Normal(mean, scale), 1)
    centre = mean.mean(0)
    width = (scale**2 + (mean - centre) ** 2).mean(0).sqrt()
    best = td.Independent(td.Normal(centre.expand_as(mean), width.expand_as(mean)), 1)
    unit = td.Independent(td.Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    return centre, width, (kl(q, unit) - kl(q, best)).mean()


def float32(mean, scale):
    return [each.float() for each in by_divergences(mean, scale)]


def finish(centre, variance):
    unit = td.Normal(torch.zeros_like(centre), 1.0)
    return (
        centre,
        variance.sqrt(),
        td.kl_divergence(td.Normal(centre, variance.sqrt()), unit).sum(),
    )


def saving(change):
    """The right prior, and something else for what it saves."""

    def answer(mean, scale):
        centre, width, saved = by_divergences(mean, scale)
        return centre, width, change(saved, mean, centre, width)

    return answer


def reverse(saved, mean, centre, width):
    return td.kl_divergence(
        td.Normal(torch.zeros_like(centre), 1.0), td.Normal(centre, width)
    ).sum()


def rate_left(mean, scale):
    centre, width, _ = by_divergences(mean, scale)
    inside = ((scale**2 + (mean - centre) ** 2) / width**2 - 1).sum(1) / 2
    return centre, width, (inside + width.log().sum() - scale.log().sum(1)).mean()


RIGHT = {"4.7": [looped, by_divergences, float32]}

WRONG = {
    "4.7": [
        (lambda m, s: finish(m.mean(0), m.var(0, unbiased=False)), "that of the means alone"),
        (lambda m, s: finish(m.mean(0), s.pow(2).mean(0)), "mean width of one"),
        (lambda m, s: (m.mean(0), s.mean(0), by_divergences(m, s)[2]), "mean width of one"),
        (lambda m, s: finish(m.mean(0), (m.square() + s.square()).mean(0)), "moment about zero"),
        (
            lambda m, s: finish(m.mean(0), s.mean(0).square() + m.std(0, correction=0).square()),
            "The scales are averaged",
        ),
        (lambda m, s: finish(m.mean(0), s.square().mean(0) + m.var(0)), "divided by N - 1"),
        (
            lambda m, s: (m.mean(0), m.square().mean(0) - m.mean(0).square() + (s**2).mean(0), 0),
            "This is the variance",
        ),
        (
            lambda m, s: finish((m / s**2).sum(0) / (1 / s**2).sum(0), len(m) / (1 / s**2).sum(0)),
            "the other direction",
        ),
        (saving(lambda saved, m, c, w: saved / m.shape[1]), "averaged over the dimensions"),
        (saving(lambda saved, m, c, w: saved * len(m)), "the prior saves of 7"),
        (saving(lambda saved, m, c, w: -saved), "The saving has the wrong sign"),
        (rate_left, "This is the rate under the best prior"),
        (saving(reverse), "the prior saves of 7"),
        (lambda m, s: finish(m.mean(0), s.mean(0) + m.var(0, correction=0)), "scale of 7"),
        (lambda m, s: finish(m.mean(), (s**2).mean() + m.var(correction=0)), "found the shape ()"),
        (lambda m, s: by_divergences(m, s)[:2], "Three values are asked for"),
        (lambda m, s: by_divergences(m, s)[2], "Three values are asked for"),
    ],
}
