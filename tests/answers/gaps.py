"""Chapter 5, the gaps of a trained VAE."""

import math
import statistics

import numpy as np
import pandas as pd
import torch


def by_statistics(log_p, best, encoder):
    table = []
    for high, low in ((log_p, best), (best, encoder), (log_p, encoder)):
        gaps = [(a - b).item() for a, b in zip(high, low, strict=True)]
        table.append((statistics.fmean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps))))
    return table


def by_covariance(log_p, best, encoder):
    """The error of a difference, with the covariance that pairing brings."""
    n = len(log_p)
    c = torch.cov(torch.stack([log_p, best, encoder]))
    means = [v.mean() for v in (log_p, best, encoder)]
    rows = [
        torch.stack([means[i] - means[j], ((c[i, i] + c[j, j] - 2 * c[i, j]) / n).sqrt()])
        for i, j in ((0, 1), (1, 2), (0, 2))
    ]
    return torch.stack(rows)


def in_numpy(log_p, best, encoder):
    gaps = np.array([log_p - best, best - encoder, log_p - encoder])
    return np.column_stack([gaps.mean(1), gaps.std(1, ddof=1) / np.sqrt(gaps.shape[1])])


def table(log_p, best, encoder, ddof=1, scale=1.0):
    rows = in_numpy(log_p, best, encoder)
    gaps = np.array([log_p - best, best - encoder, log_p - encoder])
    rows[:, 1] = gaps.std(1, ddof=ddof) / np.sqrt(gaps.shape[1]) * scale
    return rows


def unpaired(log_p, best, encoder):
    def error(a, b):
        return math.hypot(np.std(a.numpy(), ddof=1), np.std(b.numpy(), ddof=1)) / len(a) ** 0.5

    pairs = (log_p, best), (best, encoder), (log_p, encoder)
    return [[(a.mean() - b.mean()).item(), error(a, b)] for a, b in pairs]


def quadrature(log_p, best, encoder):
    first, second, (mean, _) = by_statistics(log_p, best, encoder)
    return [first, second, (mean, math.hypot(first[1], second[1]))]


def errors_added(log_p, best, encoder):
    first, second, (mean, _) = by_statistics(log_p, best, encoder)
    return [first, second, (mean, first[1] + second[1])]


def in_pandas(log_p, best, encoder):
    frame = pd.DataFrame({"approximation": log_p - best, "amortisation": best - encoder})
    frame["total"] = frame.sum(axis=1)
    return frame.agg(["mean", "sem"]).T


def cut_off(log_p, best, encoder):
    gaps = np.maximum(0, np.array([log_p - best, best - encoder, log_p - encoder]))
    return np.column_stack([gaps.mean(1), gaps.std(1, ddof=1) / np.sqrt(len(log_p))])


RIGHT = {"5.7": [by_statistics, by_covariance, in_numpy, in_pandas]}

WRONG = {
    "5.7": [
        (unpaired, "unpaired values"),
        (lambda p, b, e: table(p, b, e, scale=len(p) ** 0.5), "standard deviations"),
        (lambda p, b, e: table(p, b, e, scale=len(p) ** -0.5), "divided by N. The error"),
        (cut_off, "have been cut off"),
        (lambda p, b, e: table(-p, -b, -e), "sign is turned round"),
        (quadrature, "in quadrature"),
        (lambda p, b, e: table(p, b, e)[np.array([1, 0, 2])], "changed places"),
        (lambda p, b, e: table(p, b, e, ddof=0), "variance has been divided by N"),
        # Further ones, without a sentence of their own
        (errors_added, "in entry [2, 1], expected"),
        (lambda p, b, e: table(p, b, e).T, "found the shape (2, 3)"),
        (lambda p, b, e: table(p, b, e)[:, 0], "found the shape (3,)"),
        (lambda p, b, e: table(p, b, e) ** np.array([1, 2]), "expected"),
        (lambda p, b, e: table(p, b, e)[:2], "found the shape (2, 2)"),
    ]
}
