"""Chapter 1."""

import math

import numpy as np
import torch
import torch.distributions as td


def kl_looped(mean, scale):
    return [
        sum(
            (s**2).item() / 2 + m.item() ** 2 / 2 - 0.5 - s.log().item()
            for m, s in zip(mu, sd, strict=True)
        )
        for mu, sd in zip(mean, scale, strict=True)
    ]


def kl_by_torch(mean, scale, prior_scale=1.0):
    q = td.Independent(td.Normal(mean, scale), 1)
    p = td.Independent(td.Normal(torch.zeros_like(mean), prior_scale), 1)
    return td.kl_divergence(q, p)


def kl_by_matrices(mean, scale):
    q = td.MultivariateNormal(mean, torch.diag_embed(scale**2))
    unit = torch.eye(mean.shape[-1])
    return td.kl_divergence(q, td.MultivariateNormal(torch.zeros(mean.shape[-1]), unit))


def kl_as_list(mean, scale):
    found = []
    for m, s in zip(mean, scale, strict=True):
        total = 0.0
        for mu, sd in zip(m, s, strict=True):
            total = total + (mu * mu + sd * sd - 1) / 2 - torch.log(sd)
        found.append(total)
    return found


# 1.2


def elbo_as_list(log_joint, mean, scale, eps):
    return [sum(row) / len(row) for row in log_w(log_joint, mean, scale, eps).unbind(1)]


def elbo_by_loops(log_joint, mean, scale, eps):
    total = 0.0
    for noise in eps:
        z = mean + scale * noise
        constant = math.log(2 * math.pi)
        log_q = -0.5 * (noise**2 + constant) - scale.log()
        total = total + log_joint(z[None])[0] - log_q.sum(1)
    return total / len(eps)


def elbo_by_matrix(log_joint, mean, scale, eps, keepdim=False):
    q = td.MultivariateNormal(mean, scale_tril=torch.diag_embed(scale))
    z = torch.einsum("bij,sbj->sbi", q.scale_tril, eps) + mean
    return torch.mean(log_joint(z) - q.log_prob(z), 0, keepdim=keepdim)


def elbo_of_singles(log_joint, mean, scale, eps):
    q = td.Independent(td.Normal(mean, scale), 1)
    draws = [mean + scale * each for each in eps]
    return torch.stack([log_joint(z) - q.log_prob(z) for z in draws]).mean(0)


def elbo_in_single(log_joint, mean, scale, eps):
    return elbo_by_matrix(log_joint, mean.float(), scale.float(), eps.float())


def log_w(log_joint, mean, scale, eps):
    q = td.Independent(td.Normal(mean, scale), 1)
    return log_joint(mean + scale * eps) - q.log_prob(mean + scale * eps)


def elbo_variance_in_both(log_joint, mean, scale, eps):
    sd = scale**0.5
    return elbo_by_loops(log_joint, mean, sd, eps)


def elbo_variance_in_density(log_joint, mean, scale, eps):
    z = mean + scale * eps
    return (log_joint(z) - td.Normal(mean, scale.sqrt()).log_prob(z).sum(-1)).mean(0)


def elbo_noise_density(log_joint, mean, scale, eps):
    log_q = -0.5 * (eps**2 + math.log(2 * math.pi))
    return (log_joint(mean + scale * eps) - log_q.sum(-1)).mean(0)


def elbo_no_constant(log_joint, mean, scale, eps):
    log_q = (-0.5 * eps**2 - scale.log()).sum(-1)
    return (log_joint(mean + scale * eps) - log_q).mean(0)


def elbo_averaged_dims(log_joint, mean, scale, eps):
    z = mean + scale * eps
    log_q = -0.5 * (eps**2 + math.log(2 * math.pi)) - scale.log()
    return (log_joint(z) - log_q.sum(-1) / log_q.shape[-1]).mean(0)


def elbo_with_entropy(log_joint, mean, scale, eps):
    entropy = 0.5 * math.log(2 * math.pi * math.e) + scale.log()
    return log_joint(mean + scale * eps).mean(0) + entropy.sum(-1)


def elbo_path_only(log_joint, mean, scale, eps):
    z = mean + scale * eps
    log_q = td.Normal(mean.detach(), scale.detach()).log_prob(z).sum(-1)
    return (log_joint(z) - log_q).mean(0)


def elbo_own_noise(log_joint, mean, scale, eps):
    return log_w(log_joint, mean, scale, torch.randn_like(eps)).mean(0)


# 1.3


def mean_field_by_numpy(covariance):
    c = covariance.numpy()
    variances = 1 / np.stack([np.diag(each) for each in np.linalg.inv(c)])
    gap = (-np.log(variances).sum(-1) + np.linalg.slogdet(c)[1]) / 2
    return variances, gap


def mean_field_by_cholesky(covariance):
    factor = torch.linalg.cholesky(covariance)
    precision = torch.cholesky_inverse(factor)
    diagonal = torch.einsum("bii->bi", precision)
    half_log_det = torch.einsum("bii->bi", factor).log().sum(1)
    return [diagonal.reciprocal(), diagonal.sqrt().log().sum(1) + half_log_det]


def mean_field_by_torch(covariance):
    p = td.MultivariateNormal(torch.zeros(covariance.shape[:2]), covariance)
    scale = torch.diagonal(p.precision_matrix, dim1=1, dim2=2).rsqrt()
    q = td.MultivariateNormal(p.mean, scale_tril=torch.diag_embed(scale))
    return scale**2, td.kl_divergence(q, p)


def mean_field_in_single(covariance):
    return mean_field_by_cholesky(covariance.float())


def gap_by_det(covariance):
    precision = torch.linalg.inv(covariance)
    diagonal = torch.einsum("bii->bi", precision)
    return 1 / diagonal, 0.5 * (diagonal.log().sum(1) + covariance.det().log())


def gap_by_ratio(covariance):
    precision = torch.linalg.inv(covariance)
    diagonal = torch.einsum("bii->bi", precision)
    return 1 / diagonal, 0.5 * (diagonal.prod(1) / precision.det()).log()


def gap_by_product(covariance):
    variances = mean_field_by_torch(covariance)[0]
    return variances, 0.5 * (torch.logdet(covariance) - variances.prod(1).log())


def changed(first=lambda v, c: v, second=lambda g, c: g):
    def answer(covariance):
        variances, gap = mean_field_by_torch(covariance)
        return first(variances, covariance), second(gap, covariance)

    return answer


def total_correlation(gap, c):
    return torch.stack([(m.diag().log().sum() - m.logdet()) / 2 for m in c])


# 1.4


def moments_two_steps(probabilities, means, scales):
    mean = torch.linalg.vecdot(probabilities, means)
    second = torch.linalg.vecdot(probabilities, means**2 + scales**2)
    return torch.stack([mean, torch.sqrt(second - mean**2)])


def moments_by_torch(probabilities, means, scales):
    p = td.MixtureSameFamily(td.Categorical(probabilities), td.Normal(means, scales))
    return p.mean, p.variance.sqrt()


def moments_by_lists(probabilities, means, scales):
    found = []
    for row in zip(probabilities.tolist(), means.tolist(), scales.tolist(), strict=True):
        w, m, s = row
        mean = sum(a * b for a, b in zip(w, m, strict=True))
        square = sum(a * ((b - mean) ** 2 + c * c) for a, b, c in zip(w, m, s, strict=True))
        found.append((mean, math.sqrt(square)))
    return tuple(zip(*found, strict=True))


def moments_in_single(probabilities, means, scales):
    return moments_by_torch(probabilities.float(), means.float(), scales.float())


def spread(of):
    def answer(w, m, s):
        mean = (w * m).sum(1, keepdim=True)
        return mean[:, 0], of(w, m, s, mean)

    return answer


# 1.6


def log_tau_by_torch(log_tau):
    tau = torch.exp(log_tau)
    return td.HalfCauchy(torch.tensor(5.0)).log_prob(tau) + log_tau


def log_tau_symmetric(log_tau):
    """The hyperbolic secant about ln 5."""
    return -torch.log(math.pi * torch.cosh(log_tau - math.log(5)))


def log_tau_by_autograd(log_tau):
    with torch.enable_grad():
        u = log_tau.detach().requires_grad_()
        (slope,) = torch.autograd.grad(u.exp().sum(), u)
    return td.Cauchy(0.0, 5.0).log_prob(u.exp().detach()) + math.log(2) + slope.log()


def log_tau_by_numpy(log_tau):
    tau = np.exp(log_tau.numpy())
    return np.log(10 / np.pi / (25 + tau**2)) + np.log(tau)


def tau_density(log_tau):
    return math.log(2) - math.log(5 * math.pi) - (1 + (log_tau.exp() / 5) ** 2).log()


RIGHT = {
    "1.1": [
        kl_by_torch,
        lambda m, s: 0.5 * (m**2 + s**2 - 1).sum(1) - s.log().sum(1),
        kl_as_list,
        lambda m, s: tuple(kl_as_list(m, s)),
    ],
    "1.2": [elbo_by_loops, elbo_by_matrix, elbo_of_singles, elbo_in_single, elbo_as_list],
    "1.3": [
        mean_field_by_numpy,
        mean_field_by_cholesky,
        mean_field_by_torch,
        mean_field_in_single,
    ],
    "1.4": [moments_two_steps, moments_by_torch, moments_by_lists, moments_in_single],
    "1.5": [math.log(5), torch.tensor([0.2]).log().neg().squeeze(), 1.61, np.float32(1.6094), 1.6],
    "1.6": [log_tau_by_torch, log_tau_symmetric, log_tau_by_autograd, log_tau_by_numpy],
}

WRONG = {
    "1.1": [
        (lambda m, s: 0.5 * (m**2 + s**2 - 1 - 2 * s.log()).mean(-1), "dimensions are averaged"),
        (lambda m, s: 0.5 * (m**2 + s - 1 - s.log()).sum(-1), "variance belongs"),
        (
            lambda m, s: ((1 + m**2) / s**2 - 1 + 2 * s.log()).sum(-1) / 2,
            "other direction, KL(p ‖ q)",
        ),
        (lambda m, s: -0.5 * (m**2 + s**2 - 1 - 2 * s.log()).sum(-1), "at most zero"),
        (lambda m, s: 0.5 * (m**2 + s**2 - 1 - 2 * s.log()).sum(), "sum runs over the batch"),
        (lambda m, s: kl_by_torch(m, s).detach(), "no gradient reaches the mean and the scale:"),
        (kl_looped, "no gradient reaches the mean and the scale:"),
        (lambda m, s: kl_by_torch(m.detach(), s), "no gradient reaches the mean:"),
        (
            lambda m, s: kl_by_torch(m, s) + 0.1 * (m - m.detach()).sum(),
            "gradient for the mean: found",
        ),
        (lambda m, s: kl_by_torch(m, s) + 1, "The divergence, B = 3, D = 4: found"),
    ],
    "1.2": [
        (lambda f, m, s, e: f(m + s * e).mean(0), "- log q is forgotten"),
        (lambda *a: log_w(*a).exp().mean(0).log(), "logarithm of the mean weight"),
        (elbo_variance_in_both, "as if it were the variance"),
        (elbo_noise_density, "density of the noise"),
        (elbo_averaged_dims, "dimensions of log q are averaged"),
        (lambda *a: elbo_by_loops(*a) * len(a[3]), "draws are added up"),
        (elbo_with_entropy, "entropy of q stands in closed form"),
        (elbo_variance_in_density, "The ELBO, S = 5, B = 3, D = 2: found"),
        (elbo_no_constant, "constant of log q is missing"),
        (lambda *a: -elbo_by_loops(*a), "This is the loss"),
        (lambda *a: log_w(*a), "found the shape (5, 3), expected (3,)"),
        (lambda *a: log_w(*a).mean(), "lost an axis"),
        (lambda *a: 2 * a[0](a[1] + a[2] * a[3]).mean(0) - elbo_by_loops(*a), "log q is added"),
        (lambda *a: elbo_by_loops(*a).detach(), "no gradient reaches the mean and the scale:"),
        (
            lambda f, m, s, e: elbo_by_loops(f, m, s.detach(), e),
            "no gradient reaches the scale:",
        ),
        (elbo_path_only, "gradient for the mean: found"),
        (elbo_own_noise, "draws random numbers"),
    ],
    "1.3": [
        (changed(lambda v, c: torch.einsum("bii->bi", c)), "marginal variances, the diagonal"),
        (changed(lambda v, c: v**0.5), "are standard deviations"),
        (changed(lambda v, c: torch.linalg.inv(c).diagonal(0, 1, 2)), "entries of the precision"),
        (changed(second=lambda g, c: g * 2), "factor one half"),
        (changed(second=lambda g, c: -g), "wrong sign"),
        (changed(second=total_correlation), "other direction"),
        (gap_by_det, "determinant or a product is formed"),
        (gap_by_ratio, "or a product is formed before"),
        (gap_by_product, "or a product is formed before"),
        (changed(lambda v, c: 1 / torch.einsum("bii->bi", c)), "where the precision belongs"),
        (changed(lambda v, c: 1 / v.sqrt()), "The variances for B = 4, D = 3"),
        (changed(lambda v, c: torch.diag_embed(v)), "found the shape (4, 3, 3)"),
        (changed(second=lambda g, c: g.sum()), "lost an axis"),
        (changed(second=lambda g, c: g / math.log(2)), "gap for B = 4, D = 3"),
        (lambda c: mean_field_by_torch(c)[0], "Two values are asked for"),
        (lambda c: mean_field_by_torch(c)[::-1], "found the shape (4,), expected (4, 3)"),
    ],
    "1.4": [
        (spread(lambda w, m, s, mean: (w * s * s).sum(1).sqrt()), "spread of the means is"),
        (spread(lambda w, m, s, mean: (w * (m - mean).square()).sum(1).sqrt()), "Only the spread"),
        (spread(lambda w, m, s, mean: (w * ((m - mean) ** 2 + s**2)).sum(1)), "is the variance"),
        (spread(lambda w, m, s, mean: (w * (m**2 + s**2)).sum(1).sqrt()), "about zero"),
        (spread(lambda w, m, s, mean: (w * s).sum(1)), "scales themselves are averaged"),
        (
            lambda w, m, s: (m.mean(1), (s.square().mean(1) + m.var(1, correction=0)).sqrt()),
            "count equally",
        ),
        (
            spread(lambda w, m, s, mean: (w * ((m - mean) ** 2 + s)).sum(1).sqrt()),
            "The sd for B = 3, K = 4: found",
        ),
        (lambda w, m, s: moments_by_torch(w, m, s)[0], "Two values are asked for"),
        (lambda w, m, s: (w @ m.T, w @ s.T), "found the shape (3, 3), expected (3,)"),
    ],
    "1.5": [
        (0.69, "holds for two equal weights"),
        (math.log(2), "holds for two equal weights"),
        (math.log10(5), "logarithm to base ten"),
        (0.7, "logarithm to base ten"),
        (math.log(0.2), "is the ELBO of this fit"),
        (-1.61, "is the ELBO of this fit"),
        (0.2 * math.log(5), "multiplied in once more"),
        (0.32, "multiplied in once more"),
        (0.22, "other mode kept"),
        (math.log(1.25), "other mode kept"),
        (0.5004, "entropy of the weights"),
        (math.log(5) / math.log(2), "are bits"),
        (0, "from its own mode"),
        (math.log(4), "ratio of the weights"),
        (-math.log(4), "is too small"),
        (True, "a number is expected"),
        (math.nan, "found nan"),
        (5, "is too large"),
        (0.2, "is too small"),
        ("1.61", "a number is expected"),
        ([1.61, 1.0], "found the shape (2,)"),
        (lambda: math.log(5), "A number is asked for"),
    ],
    "1.6": [
        (tau_density, "Jacobian is missing"),
        (lambda u: tau_density(u) - u, "Jacobian has the wrong sign"),
        (lambda u: tau_density(u) + u.exp(), "not τ itself"),
        (lambda u: td.Cauchy(0.0, 5.0).log_prob(u.exp()) + u, "constant is that of the whole"),
        (lambda u: math.log(2 / math.pi) - (1 + u.exp() ** 2 / 25).log() + u, "scale of the"),
        (lambda u: tau_density(u) + u.sum(-1, keepdim=True), "summed over the batch"),
        (lambda u: log_tau_by_torch(u).exp(), "density, not its logarithm"),
        (lambda u: td.HalfCauchy(5.0).log_prob(u.abs()) + u, "density for B = 5: found"),
        (lambda u: log_tau_by_torch(u).sum(), "lost an axis"),
        (lambda u: log_tau_by_torch(u).clamp(min=-9), "from -40 to 40: found -9"),
    ],
}
