"""Chapter 4, sequences."""

import math

import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import vaetutor as vt


def sliced(log_likelihood, kl, lengths):
    """One sequence after the other, cut to its length."""
    bounds = []
    for b, n in enumerate(lengths.tolist()):
        bounds.append(log_likelihood[:, b, :n].sum(-1).mean() - kl[b, :n].sum())
    return torch.stack(bounds)


def filled(log_likelihood, kl, lengths):
    past = torch.arange(kl.shape[1]).expand_as(kl) >= lengths[:, None]
    per_draw = log_likelihood.masked_fill(past, 0.0).sum(-1) - kl.masked_fill(past, 0.0).sum(-1)
    return per_draw.mean(0)


def cleaned(log_likelihood, kl, lengths):
    """Numbers in the place of NaN first; then a product will do."""
    mask = torch.ones_like(kl).cumsum(1) <= lengths.unsqueeze(-1)
    return ((torch.nan_to_num(log_likelihood).mean(0) - torch.nan_to_num(kl)) * mask).sum(-1)


def in_float32(log_likelihood, kl, lengths):
    return filled(log_likelihood.float(), kl.float(), lengths)


def shifted(by):
    return lambda log_p, kl, lengths: filled(log_p, kl, (lengths + by).clamp(max=kl.shape[1]))


def product(log_likelihood, kl, lengths):
    mask = (torch.arange(kl.shape[1])[None] < lengths[:, None]).double()
    return (log_likelihood * mask).sum(-1).mean(0) - (kl * mask).sum(-1)


def matrix(diagonal, off):
    return torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1)


def by_package(diagonal, off):
    p = MultivariateNormal(torch.zeros_like(diagonal), precision_matrix=matrix(diagonal, off))
    return vt.mean_field_gap(p)


def by_recursion(diagonal, off):
    """Pivots of the determinant, in plain numbers."""
    a, b = diagonal.tolist(), off.tolist()
    pivot, gap = a[0], 0.0
    for t in range(1, len(a)):
        pivot = a[t] - b[t - 1] ** 2 / pivot
        gap += 0.5 * math.log(a[t] / pivot)
    return gap


def by_correlations(diagonal, off):
    scale = diagonal.rsqrt()
    corr = matrix(torch.ones_like(diagonal), off * scale[1:] * scale[:-1])
    return -torch.linalg.eigvalsh(corr).log().sum() / 2


def by_divergence(diagonal, off):
    p = MultivariateNormal(torch.zeros_like(diagonal), precision_matrix=matrix(diagonal, off))
    q = MultivariateNormal(torch.zeros_like(diagonal), precision_matrix=torch.diag(diagonal))
    return kl_divergence(q, p)


def of_marginals(diagonal, off):
    precision = matrix(diagonal, off)
    spread = torch.linalg.inv(precision).diagonal()
    inside = (diagonal * spread).sum() - len(diagonal) - spread.log().sum()
    return 0.5 * (inside - torch.logdet(precision))


def total_correlation(diagonal, off):
    covariance = torch.linalg.inv(matrix(diagonal, off))
    entropies = Normal(0.0, covariance.diagonal().sqrt()).entropy().sum()
    return entropies - MultivariateNormal(torch.zeros_like(diagonal), covariance).entropy()


def exchanged(diagonal, off):
    precision = matrix(diagonal, off)
    spread = torch.linalg.inv(precision).diagonal()
    inside = (diagonal * spread).sum() - len(diagonal) - diagonal.log().sum()
    return 0.5 * (inside + torch.logdet(precision))


def alone(diagonal, off):
    gap = 0.0
    for t, b in enumerate(off.tolist()):
        rho = -b / math.sqrt(diagonal[t].item() * diagonal[t + 1].item())
        gap -= math.log(1 - rho**2) / 2
    return gap


def one_sided(diagonal, off):
    upper = torch.diag(diagonal) + torch.diag(off, 1)
    return 0.5 * (diagonal.log().sum() - upper.logdet())


def not_squared(diagonal, off):
    pivots = [diagonal[0]]
    for a, b in zip(diagonal[1:], off, strict=True):
        pivots.append(a - b.abs() / pivots[-1])
    return 0.5 * (diagonal.log().sum() - torch.stack(pivots).log().sum())


RIGHT = {
    "4.8": [sliced, filled, cleaned, in_float32],
    "4.9": [by_package, by_recursion, by_correlations, by_divergence],
}

WRONG = {
    "4.8": [
        (lambda p, kl, n: p.sum(-1).mean(0) - kl.sum(-1), "The padding is counted"),
        (lambda p, kl, n: filled(p, 0 * kl, n) - kl.sum(-1), "and the KL is not"),
        (lambda p, kl, n: sliced(p, kl, n) / n, "divided by the length"),
        (
            lambda p, kl, n: filled(p, torch.zeros_like(kl), n) + filled(kl[None], 0 * kl, n),
            "added",
        ),
        (shifted(1), "one step too far"),
        (shifted(-1), "off by one the other way"),
        (product, "zero times NaN is NaN"),
        (lambda p, kl, n: sliced(p, kl, n).mean(), "lost an axis"),
        (lambda p, kl, n: len(p) * sliced(p, kl, n), "ELBO of four sequences"),
        (lambda p, kl, n: sliced(p, kl, n) / kl.shape[1], "It is divided by T"),
        (
            lambda p, kl, n: filled(p, kl, n).detach(),
            "at `log_likelihood` and `kl`.",
        ),
        (lambda p, kl, n: filled(p, kl.detach(), n), "No gradient arrives at `kl`."),
        (
            lambda p, kl, n: filled(p.detach() * 2 - p, kl, n),
            "gradient of the ELBO of four sequences for the log-likelihoods: found",
        ),
        (lambda p, kl, n: (p.nansum(-1)).mean(0) - kl.nansum(-1), "The padding is counted"),
    ],
    "4.9": [
        (lambda d, o: d.log().sum() - torch.logdet(matrix(d, o)), "twice the gap"),
        (of_marginals, "product of the marginals costs"),
        (total_correlation, "the other direction, KL(p ‖ q)"),
        (exchanged, "The arguments are exchanged"),
        (alone, "as if it were alone"),
        (lambda d, o: 0.5 * (matrix(d, o).logdet() - d.log().sum()), "sign is turned round"),
        (one_sided, "No links are left"),
        (lambda d, o: by_recursion(d, o) / len(d), "divided by the number of steps"),
        (lambda d, o: by_recursion(d, o) / max(1, len(d) - 1), "gap of 6 steps"),
        (not_squared, "gap of 6 steps"),
        (lambda d, o: 0.5 * (d.prod() / matrix(d, o).det()).log(), "determinant exceeds float64"),
        (lambda d, o: 0.5 * (d.log().sum() - matrix(d, o).det().log()), "exceeds float64"),
        (lambda d, o: by_recursion(d, o) / math.log(2), "gap of 6 steps"),
    ],
}
