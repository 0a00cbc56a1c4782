"""Chapter 4."""

import math

import numpy as np
import torch
import torch.distributions as td
from torch.nn import functional

# 4.1


def normal_kl(mean, log_var):
    return (mean.square() + log_var.exp() - log_var - 1).sum(1) / 2


def elbo_by_cross_entropy(x, logits, mean, log_var, prior_scale=1.0):
    losses = functional.binary_cross_entropy_with_logits(
        logits, x[None].repeat(len(logits), 1, 1), reduction="none"
    )
    q = td.Normal(mean, torch.exp(log_var / 2))
    kl = td.kl_divergence(q, td.Normal(0.0, prior_scale))
    return -losses.sum(dim=2).mean(dim=0) - kl.sum(dim=1)


def elbo_looped(x, logits, mean, log_var):
    values = []
    for b in range(len(x)):
        terms = []
        for s in range(len(logits)):
            signs = 2 * x[b] - 1
            terms.append(functional.logsigmoid(signs * logits[s, b]).sum())
        values.append(sum(terms) / len(terms) - normal_kl(mean, log_var)[b])
    return torch.stack(values)


def elbo_by_softplus(x, logits, mean, log_var):
    each = torch.einsum("bp,sbp->sb", x, logits) - functional.softplus(logits).sum(-1)
    return (each - normal_kl(mean, log_var)).mean(0)


def elbo_in_float32(x, logits, mean, log_var):
    return elbo_by_softplus(x.float(), logits.float(), mean.float(), log_var.float())


def log_lik(x, logits):
    return (x * logits - functional.softplus(logits)).sum(-1).mean(0)


def elbo_by_clipping(x, logits, mean, log_var):
    p = logits.sigmoid().clamp(1e-7, 1 - 1e-7)
    pixels = x * p.log() + (1 - x) * (1 - p).log()
    return pixels.sum(-1).mean(0) - normal_kl(mean, log_var)


def elbo_by_bce(x, logits, mean, log_var):
    p = logits.sigmoid()
    pixels = functional.binary_cross_entropy(p, x.expand_as(p), reduction="none")
    return -pixels.sum(-1).mean(0) - normal_kl(mean, log_var)


def elbo_by_probs(x, logits, mean, log_var):
    pixels = td.Bernoulli(probs=logits.sigmoid()).log_prob(x)
    return pixels.sum(-1).mean(0) - normal_kl(mean, log_var)


def elbo_unclipped(x, logits, mean, log_var):
    p = torch.sigmoid(logits)
    pixels = x * torch.log(p) + (1 - x) * torch.log(1 - p)
    return pixels.sum(2).mean(0) - normal_kl(mean, log_var)


def elbo_overflowing(x, logits, mean, log_var):
    pixels = x * logits - (1 + logits.exp()).log()
    return pixels.sum(2).mean(0) - normal_kl(mean, log_var)


# 4.2


def by_running_maximum(draw, n, chunk):
    """The sum of weights in units of the largest one so far."""
    top = total = None
    left = n
    while left:
        log_w = draw(min(left, chunk)).numpy()
        left -= len(log_w)
        new = log_w.max(0) if top is None else np.maximum(top, log_w.max(0))
        old = 0 if top is None else total * np.exp(top - new)
        top, total = new, old + np.exp(log_w - new).sum(0)
    return top + np.log(total) - np.log(n)


def by_parts(draw, n, chunk):
    """The log of each chunk's sum is kept, and the remainder comes first."""
    parts = []
    if n % chunk:
        parts.append(draw(n % chunk).logsumexp(0))
    for _ in range(n // chunk):
        parts.append(draw(chunk).logsumexp(0))
    return torch.stack(parts).logsumexp(0) - math.log(n)


def one_by_one(draw, n, chunk, start=-math.inf):
    total = start
    for _ in range(n):
        total = np.logaddexp(total, draw(1)[0])
    return total - math.log(n)


def by_running_mean(draw, n, chunk):
    mean, seen = 0, 0
    while seen < n:
        k = min(chunk, n - seen)
        new = draw(k).logsumexp(0) - math.log(k)
        seen += k
        if seen == k:
            mean = new
        else:
            before = math.log((seen - k) / seen)
            mean = torch.logaddexp(mean + before, new + math.log(k / seen))
    return mean


def all_at_once(draw, n, chunk):
    return draw(n).logsumexp(0) - math.log(n)


def all_kept(draw, n, chunk):
    parts = [draw(min(chunk, n - i)) for i in range(0, n, chunk)]
    return torch.cat(parts).logsumexp(0) - math.log(n)


def only_full_chunks(draw, n, chunk):
    total = sum(draw(chunk).exp().sum(0) for _ in range(n // chunk))
    return (total / n).log()


def only_equal_chunks(draw, n, chunk):
    parts = [draw(chunk).logsumexp(0) for _ in range(-(-n // chunk))]
    return torch.stack(parts).logsumexp(0) - math.log(n)


def sums(draw, n, chunk):
    sizes = [chunk] * (n // chunk) + [n % chunk] * (n % chunk > 0)
    return [(k, draw(k).logsumexp(0)) for k in sizes]


def no_count(draw, n, chunk):
    return torch.stack([total for _, total in sums(draw, n, chunk)]).logsumexp(0)


def mean_of_logs(draw, n, chunk):
    found = sums(draw, n, chunk)
    return sum(total - math.log(k) for k, total in found) / len(found)


def chunks_alike(draw, n, chunk):
    found = sums(draw, n, chunk)
    return (sum((total - math.log(k)).exp() for k, total in found) / len(found)).log()


def by_chunk_count(draw, n, chunk):
    return no_count(draw, n, chunk) - math.log(math.ceil(n / chunk))


def elbo_estimate(draw, n, chunk):
    return sum(draw(min(chunk, n - i)).sum(0) for i in range(0, n, chunk)) / n


def underflowing(draw, n, chunk):
    return (sum(draw(min(chunk, n - i)).exp().sum(0) for i in range(0, n, chunk)) / n).log()


def endless(draw, n, chunk):
    while True:
        draw(chunk)


def one_number(draw, n, chunk):
    return by_parts(draw, n, chunk).mean()


RIGHT = {
    "4.1": [elbo_by_cross_entropy, elbo_looped, elbo_by_softplus, elbo_in_float32],
    "4.2": [by_running_maximum, by_parts, one_by_one, by_running_mean],
    "4.3": [
        lambda b, p, d: torch.tensor([p / d, 1 / d, 1 / b]),
        lambda b, p, d: [(b * p) / (b * d), b / (b * d), 1 / b],
        lambda b, p, d: np.array([p / d, d**-1.0, b**-1.0]),
    ],
}

WRONG = {
    "4.1": [
        (
            lambda x, o, m, v: log_lik(x, o) / x.shape[1] - normal_kl(m, v),
            "pixels are averaged",
        ),
        (lambda x, o, m, v: log_lik(x, o) + normal_kl(m, v), "KL is added"),
        (
            lambda x, o, m, v: log_lik(x, o) - 0.5 * (m**2 + v.exp() ** 2 - 1 - 2 * v).sum(-1),
            "as if it were ln σ",
        ),
        (
            lambda x, o, m, v: len(o) * log_lik(x, o) - normal_kl(m, v),
            "draws are summed",
        ),
        (lambda x, o, m, v: (log_lik(x, o) - normal_kl(m, v)).mean(), "over the batch as well"),
        (elbo_unclipped, "Probabilities are used on the way"),
        (elbo_by_clipping, "probabilities clipped on the way"),
        (elbo_by_bce, "probabilities clipped on the way"),
        (elbo_by_probs, "probabilities clipped on the way"),
        (elbo_overflowing, "logits of ±10,000: found -inf"),
        (lambda x, o, m, v: (log_lik(x, o) - normal_kl(m, v)).detach(), "gradient for the logits"),
        (
            lambda x, o, m, v: log_lik(x, o) - normal_kl(m, v).mean(),
            "The ELBO for S, B, Dₓ, D = 3, 4",
        ),
        (lambda x, o, m, v: normal_kl(m, v) - log_lik(x, o), "The ELBO for S, B, Dₓ, D = 3, 4"),
        (lambda x, o, m, v: log_lik(x, o) - normal_kl(m, v).detach(), "gradient for the mean"),
    ],
    "4.2": [
        (only_full_chunks, "the rest is dropped"),
        (only_equal_chunks, "number of draws, with 7 draws in chunks of 3: found 9"),
        (no_count, "number of draws is missing"),
        (mean_of_logs, "averaged as logarithms"),
        (chunks_alike, "Every chunk counts alike"),
        (by_chunk_count, "log evidence by 7 draws in chunks of 3"),
        (elbo_estimate, "an estimate of the ELBO"),
        (underflowing, "weights underflow"),
        (all_at_once, "asks for 7 draws at once"),
        (all_kept, "still holds"),
        (endless, "goes on drawing"),
        (one_number, "found the shape ()"),
    ],
    "4.3": [
        (lambda b, p, d: torch.tensor([d / p, d, b]), "Turned round"),
        (lambda b, p, d: [1.0, 1.0 / d, 1.0 / b], "do not cancel"),
        (lambda b, p, d: (p, d**-1, b**-1), "one over latent dimensions not"),
        (lambda b, p, d: (p / d, 1 / d, 1.0), "so are the pictures"),
        (lambda b, p, d: np.array([p / d, 1 / d, b]), "B times too large"),
        (lambda b, p, d: (p / d, float(d), 1 / b), "its weight is below one"),
        (lambda b, p, d: [39.2, 0.05, 1 / 128], "for B, Dₓ, D = 6, 35, 4"),
        (lambda b, p, d: p / d, "found the shape ()"),
        (lambda b, p, d: (p * d, 1 / d, 1 / b), "The three weights for B, Dₓ, D = 128"),
    ],
}
