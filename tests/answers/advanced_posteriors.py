"""Chapter 5, advanced posteriors."""

import math

import torch
import torch.distributions as td


def by_torch(z, logits, means, scales):
    each = td.MultivariateNormal(means, scale_tril=torch.diag_embed(scales))
    return td.MixtureSameFamily(td.Categorical(logits=logits), each).log_prob(z)


def looped(z, logits, means, scales):
    """Component by component, with a running sum of two exponentials."""
    total = None
    for c in range(logits.shape[1]):
        log_pi = logits[:, c] - torch.logsumexp(logits, dim=1)
        standard = (z - means[:, c]) / scales[:, c]
        term = log_pi - (standard**2 / 2 + (scales[:, c] * math.sqrt(2 * math.pi)).log()).sum(2)
        total = term if total is None else torch.logaddexp(total, term)
    return total


def largest_first(z, logits, means, scales):
    pi = logits.softmax(1)
    terms = td.Normal(means, scales).log_prob(z[:, :, None]).sum(-1)
    top = terms.max(-1, keepdim=True).values
    return top.squeeze(-1) + (pi * (terms - top).exp()).sum(-1).log()


def parts(z, means, scales):
    return td.Normal(means, scales).log_prob(z[:, :, None, :])


def per_dimension(z, logits, means, scales):
    pi = td.Categorical(logits=logits.unsqueeze(1).expand(-1, z.shape[-1], -1))
    each = td.Normal(means.transpose(1, 2), scales.transpose(1, 2))
    return td.MixtureSameFamily(pi, each).log_prob(z).sum(-1)


def no_constant(z, logits, means, scales):
    terms = -0.5 * ((z.unsqueeze(2) - means) / scales) ** 2 - scales.log()
    return torch.logsumexp(terms.sum(-1) + logits.log_softmax(1), -1)


def densities(z, logits, means, scales):
    return (logits.softmax(1) * parts(z, means, scales).exp().prod(-1)).sum(-1).log()


def as_variance(z, logits, means, scales):
    """The scales taken for variances."""
    each = td.MultivariateNormal(means, covariance_matrix=torch.diag_embed(scales))
    return td.MixtureSameFamily(td.Categorical(logits=logits), each).log_prob(z)


def no_log_scale(z, logits, means, scales):
    standard = (z.unsqueeze(2) - means) / scales
    terms = td.Normal(0.0, 1.0).log_prob(standard).sum(-1)
    return torch.logsumexp(terms + logits.log_softmax(1), -1)


def floored(keep):
    def answer(z, logits, means, scales):
        return keep((logits.softmax(1) * parts(z, means, scales).exp().prod(-1)).sum(-1)).log()

    return answer


def one_x(z, logits, means, scales):
    return looped(z, logits, means, scales).sum(0)


def by_hand(elbos):
    top = elbos.amax(1, keepdim=True)
    shares = (elbos - top).exp()
    return shares / shares.sum(1, keepdim=True), top[:, 0] + shares.sum(1).log()


def in_lists(elbos):
    weights, values = [], []
    for row in elbos.tolist():
        log_total = row[0]
        for value in row[1:]:
            low, high = sorted([log_total, value])
            log_total = high + math.log1p(math.exp(low - high))
        weights.append([math.exp(value - log_total) for value in row])
        values.append(log_total)
    return weights, values


def with_entropy(elbos):
    pi = td.Categorical(logits=elbos)
    return [pi.probs, (pi.probs * elbos).sum(1) + pi.entropy()]


def spread(weights):
    def answer(elbos):
        pi = weights(elbos)
        return pi, (pi * elbos).sum(1) + td.Categorical(pi).entropy()

    return answer


def sharpened(elbos):
    return by_hand(2 * elbos)[0], by_hand(elbos)[1]


def product_with_log(elbos):
    w = by_hand(elbos)[0]
    return w, (w * elbos).sum(1) - (w * torch.log(w)).sum(1)


def naive(elbos):
    weights = elbos.exp() / elbos.exp().sum(1, True)
    return weights, torch.log(elbos.exp().sum(1))


def kept(p, C):
    return p.sort(dim=1, descending=True).values[:, :C]


def in_numbers(p, C):
    return [-math.log(sum(sorted(row, reverse=True)[:C])) for row in p.tolist()]


def by_divergence(p, C):
    q = kept(p, C) / kept(p, C).sum(1, keepdim=True)
    return (q * (q / kept(p, C)).log()).sum(1)


def even_components(p, C):
    q = torch.full((len(p), C), 1 / C)
    return (
        td.kl_divergence(td.Categorical(q), td.Categorical(kept(p, C))) - kept(p, C).sum(1).log()
    )


def one_for_each(value):
    return lambda p, C: torch.full((len(p),), value(p.shape[1], C))


RIGHT = {
    "5.1": [by_torch, looped, largest_first],
    "5.2": [by_hand, in_lists, with_entropy],
    "5.3": [
        lambda p, C: kept(p, C).sum(1).log().neg(),
        in_numbers,
        by_divergence,
        lambda p, C: -p.log().sort(1).values[:, p.shape[1] - C :].logsumexp(1),
    ],
}

WRONG = {
    "5.1": [
        (per_dimension, "Each dimension is mixed by itself"),
        (
            lambda z, a, m, s: torch.logsumexp(parts(z, m, s).sum(-1) + a, -1),
            "used as if they were log-probabilities",
        ),
        (
            lambda z, a, m, s: torch.einsum("bc,sbcd->sb", a.softmax(1), parts(z, m, s)),
            "mean of the log-densities",
        ),
        (
            lambda z, a, m, s: (parts(z, m, s).sum(3) + a.log_softmax(1)).max(2).values,
            "Only the largest term",
        ),
        (no_constant, "constant ½ ln 2π is missing"),
        (densities, "zero in floating point"),
        (
            lambda z, a, m, s: (parts(z, m, s).sum(3) + a.log_softmax(0)).logsumexp(2),
            "The softmax runs over the batch",
        ),
        (lambda z, a, m, s: looped(z, 0 * a, m, s), "log-density, 4 components"),
        (lambda z, a, m, s: by_torch(z, a, m, s.square()), "The variance stands where"),
        (as_variance, "The scale stands where"),
        (no_log_scale, "The term - log σ is missing"),
        (floored(lambda density: density.clamp(min=1e-38)), "Far from all components log q(z)"),
        (floored(lambda density: density + 1e-30), "Far from all components log q(z)"),
        (floored(lambda density: density + 1e-300), "Far from all components log q(z)"),
        (lambda z, a, m, s: looped(z, a, m, s) / z.shape[2], "log-density, 4 components"),
        (one_x, "found the shape (3,), expected (5, 3)"),
        (lambda z, a, m, s: looped(z, a.detach(), m, s), "No gradient arrives at `logits`."),
        (lambda z, a, m, s: looped(z, a, m, s).detach(), "at `z` and `logits` and `means` and"),
        (
            lambda z, a, m, s: looped(z, a, 2 * m.detach() - m, s),
            "gradient of the log-density for `means`: found",
        ),
    ],
    "5.2": [
        (spread(lambda e: torch.full_like(e, 1 / e.shape[1])), "The weights are equal"),
        (
            lambda e: ((e == e.max(1, keepdim=True).values).double(), e.max(1).values),
            "All weight is on the best",
        ),
        (lambda e: (e.exp() / e.exp().sum(0), e.logsumexp(1)), "normalised over the batch"),
        (lambda e: (e.softmax(1), (e * by_hand(e)[0]).sum(1)), "without the entropy"),
        (
            lambda e: (by_hand(e)[0], (e * by_hand(e)[0]).sum(1) + math.log(e.shape[1])),
            "taken to be ln C",
        ),
        (lambda e: (by_hand(e)[0], e.exp().mean(1).log()), "lower by ln C"),
        (naive, "underflows to zero or overflows"),
        (lambda e: (by_hand(e)[0], e.mean(1)), "ELBO for 4 components"),
        (lambda e: (by_hand(e)[0], e.amax(1)), "ELBO for 4 components"),
        (
            lambda e: (by_hand(e)[0], (by_hand(e)[0] * (e + by_hand(e)[0].log())).sum(1)),
            "has the wrong sign",
        ),
        (product_with_log, "0 · log 0 is NaN"),
        (sharpened, "weights for 4 components"),
        (lambda e: (e / e.sum(1, keepdim=True), e.logsumexp(1)), "weights for 4 components"),
        (lambda e: e.logsumexp(1), "Two values are asked for"),
        (lambda e: (e.logsumexp(1), e.softmax(1)), "found the shape (3,)"),
    ],
    "5.3": [
        (lambda p, C: p.sort(1).values[:, : p.shape[1] - C].sum(1), "probability that is lost"),
        (one_for_each(lambda modes, C: math.log(modes) - math.log(C)), "equal probability only"),
        (one_for_each(lambda modes, C: math.log(2) * (modes - C)), "each mode that is dropped"),
        (lambda p, C: -torch.log(p[:, :C].sum(1)), "The first C modes"),
        (even_components, "equal weights"),
        (lambda p, C: -p.max(1).values.log(), "a single component loses"),
        (lambda p, C: (1 - kept(p, C).sum(1)).log().neg(), "the probability that is lost. On"),
        (lambda p, C: kept(p, C).sum(1).log(), "gap, 7 modes"),
        (lambda p, C: -kept(p, C).sum(1).log2(), "gap, 7 modes"),
        (lambda p, C: -p.sort(1).values[:, :C].sum(1).log(), "gap, 7 modes"),
        (lambda p, C: -kept(p, C).log().sum(1), "gap, 7 modes"),
        (lambda p, C: td.Categorical(p).entropy(), "gap, 7 modes"),
        (lambda p, C: -kept(p, C).sum().log(), "lost an axis"),
    ],
}
