"""Chapter 5, importance-weighted bounds."""

import math

import numpy as np
import torch


def by_slices(log_w, k):
    if len(log_w) % k:
        raise ValueError("k must divide the number of draws")
    total = 0
    for start in range(0, len(log_w), k):
        part = log_w[start : start + k]
        top = part.max(0).values
        total = total + top + (part - top).exp().mean(0).log()
    return total / (len(log_w) // k)


def by_chunks(log_w, k):
    parts = log_w.reshape(-1, k, log_w.shape[1])
    return torch.stack([p.logsumexp(0) - np.log(k) for p in parts]).mean(dim=0)


def drops_the_rest(log_w, k):
    n = len(log_w) // k * k
    return by_slices(log_w[:n], k) if n else log_w.logsumexp(0) - math.log(len(log_w))


def uneven(log_w, k):
    parts = log_w.split(k)
    return torch.stack([p.logsumexp(0) - math.log(len(p)) for p in parts]).mean(0)


def sum_of_groups(log_w, k):
    return by_slices(log_w, k) * (len(log_w) // k)


def no_maximum(log_w, k):
    return log_w.exp().reshape(-1, k, log_w.shape[1]).mean(1).log().mean(0)


def one_maximum(log_w, k, top):
    shifted = torch.stack((log_w - top).exp().split(k))
    return (shifted.sum(1) / k).log().mean(0) + top


def none_if_uneven(log_w, k):
    if len(log_w) % k == 0:
        return by_slices(log_w, k)
    return None


def squares_by_hand(log_w):
    with torch.no_grad():
        w = (log_w - log_w.max(0).values).exp()
        return (w / w.sum(0)) ** 2


def squares_by_log(log_w):
    return (2 * (log_w - log_w.logsumexp(0, keepdim=True))).exp().detach()


def squares_in_numpy(log_w):
    values = log_w.detach().numpy()
    w = np.exp(values - values.max(axis=0))
    return np.square(w / w.sum(axis=0))


def columns(log_w):
    return torch.stack([squares_by_hand(column[:, None])[:, 0] for column in log_w.T], 1)


def normalised(log_w):
    w = (log_w - log_w.max(0).values).exp()
    return w / w.sum(0)


def over_the_batch(log_w):
    w = torch.exp(log_w - torch.max(log_w))
    return w.square() / w.sum(0).square()


RIGHT = {
    "5.5": [by_slices, by_chunks],
    "5.6": [squares_by_hand, squares_by_log, squares_in_numpy, columns],
}

WRONG = {
    "5.5": [
        (lambda a, k: a.reshape(-1, k, a.shape[1]).logsumexp(1).mean(0), "log k is missing"),
        (lambda a, k: a.reshape(-1, k, a.shape[1]).mean(1).mean(0), "the ELBO, whatever k"),
        (
            lambda a, k: (
                sum(by_slices(a[i :: len(a) // k], k) for i in range(len(a) // k)) / (len(a) // k)
            ),
            "dealt out",
        ),
        (lambda a, k: by_slices(a, len(a) // k), "k groups of S / k"),
        (lambda a, k: a.softmax(0).log().neg().add(a)[0] - math.log(len(a)), "one bound"),
        (
            lambda a, k: a.reshape(-1, k, a.shape[1]).logsumexp(1).mean(0) - math.log(len(a)),
            "log S is subtracted",
        ),
        (no_maximum, "range of floating point"),
        (lambda a, k: one_maximum(a, k, a.max(0).values), "that of all draws"),
        (lambda a, k: one_maximum(a, k, torch.max(a)), "of the whole batch"),
        # Further ones, without a sentence of their own
        (sum_of_groups, "expected"),
        (drops_the_rest, "With 6 draws and k = 4 it returned"),
        (uneven, "With 6 draws and k = 4 it returned"),
        (none_if_uneven, "With 6 draws and k = 4 it returned None. An error is asked for"),
        (lambda a, k: by_slices(a, k).mean(), "A single number has lost"),
        (lambda a, k: by_slices(a, k).detach(), "No gradient arrives at `log_w`"),
        (lambda a, k: by_slices(a.T, 2), "found the shape (12,)"),
        (lambda a, k: -by_slices(a, k), "expected"),
    ],
    "5.6": [
        (lambda a: normalised(a).detach(), "not squared"),
        (lambda a: normalised(a.T).T.detach() ** 2, "over the batch"),
        (lambda a: squares_by_hand(a) / squares_by_hand(a).sum(0), "the sum one"),
        (lambda a: normalised(a).detach() * (1 - normalised(a).detach()), "score term"),
        (lambda a: normalised(a) ** 2, "runs through the weights"),
        (lambda a: (a.exp() / a.exp().sum(0)).square().detach(), "range of floating point"),
        (lambda a: over_the_batch(a.detach()), "of the whole batch"),
        # Further ones, without a sentence of their own
        (lambda a: (a.exp() ** 2).detach(), "expected"),
        (lambda a: len(a) * squares_by_hand(a), "expected"),
        (lambda a: squares_by_hand(a).sum(0), "found the shape (3,)"),
        (lambda a: 2 * squares_by_hand(a).log(), "expected"),
        (lambda a: normalised(a).detach() * normalised(a), "The gradient for the mean"),
        (lambda a: squares_by_hand(a).mean(1, keepdim=True).expand_as(a), "expected"),
    ],
}
