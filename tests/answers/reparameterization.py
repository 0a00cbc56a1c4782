"""Chapter 3."""

import math

import numpy as np
import torch
import torch.distributions as td

# 3.1


def draw_looped(mean, log_var, eps):
    draws = []
    for each in eps:
        rows = [m + v.exp().sqrt() * e for m, v, e in zip(mean, log_var, each, strict=True)]
        draws.append(torch.stack(rows))
    return torch.stack(draws)


def draw_listed(mean, log_var, eps):
    scale = log_var.exp().sqrt()
    return [[m + s * e for m, s, e in zip(mean, scale, each, strict=True)] for each in eps]


def draw_by_transform(mean, log_var, eps):
    return td.transforms.AffineTransform(mean, log_var.exp() ** 0.5)(eps)


def draw_in_float32(mean, log_var, eps):
    return torch.addcmul(mean.float(), torch.exp(log_var.float() / 2), eps.float())


def draw_numpy(mean, log_var, eps):
    return mean.detach().numpy() + np.exp(log_var.detach().numpy() / 2) * eps.numpy()


def draw_without_grad(mean, log_var, eps):
    with torch.no_grad():
        return draw_by_transform(mean, log_var, eps)


# 3.2


def full_by_sums(mean, scale_tril, eps):
    S, _, D = eps.shape
    z = mean.repeat(S, 1, 1)
    columns = []
    for i in range(D):
        total = z[:, :, i]
        for j in range(i + 1):
            total = total + scale_tril[:, i, j] * eps[:, :, j]
        columns.append(total)
    return torch.stack(columns, -1)


def full_by_batches(mean, scale_tril, eps):
    moved = torch.bmm(eps.transpose(0, 1), scale_tril.transpose(1, 2))
    return mean + moved.transpose(0, 1)


def full_by_covariance(mean, scale_tril, eps):
    return mean + torch.einsum("bik,bjk,sbj->sbi", scale_tril, scale_tril, eps)


# 3.3


def kumaraswamy_by_logs(u, a, b):
    return torch.exp(torch.log(-torch.expm1(torch.log1p(-u) / b)) / a)


def kumaraswamy_by_torch(u, a, b):
    return td.Kumaraswamy(a, b).icdf(u)


# 3.4


def loo_looped(f, log_q):
    S = len(f)
    total = torch.zeros_like(f[0])
    for i in range(S):
        others = sum(f[j].detach() for j in range(S) if j != i) / (S - 1)
        total = total + (f[i].detach() - others) * log_q[i]
    return total / S


def loo_as_covariance(f, log_q):
    reward = f.detach() - f.detach().mean(0)
    return (reward * (log_q - log_q.mean(0))).sum(0) / (len(f) - 1)


def loo_with_value(f, log_q):
    """The reward as the value, the estimator as the gradient."""
    S = f.shape[0]
    with torch.no_grad():
        weight = S / (S - 1) * (f - f.mean(0))
    term = weight * log_q
    return (f.detach() + term - term.detach()).mean(0)


# 3.5


def variance_by_moments(mean, scale):
    m, D = mean.numpy(), mean.numel()
    # (M / s) eps_1 has variance M^2 / s^2; eps_1 (eps_1 + rest) has 2 + (D - 1); no covariance.
    return float((m.sum() / scale) ** 2 + 2 + (D - 1))


# 3.6


def stl_with_score_added(log_joint, mean, scale, eps):
    z = mean + scale * eps
    q = td.Independent(td.Normal(mean, scale), 1)
    score = q.log_prob(z.detach())
    return (log_joint(z) - q.log_prob(z) + score - score.detach()).mean(0)


def stl_by_hand(log_joint, mean, scale, eps):
    z = mean + eps * scale
    m, s = mean.data, scale.data
    log_q = -0.5 * ((z - m) / s) ** 2 - torch.log(s) - 0.5 * math.log(2 * math.pi)
    draws = [log_joint(z[i : i + 1])[0] - log_q[i].sum(1) for i in range(len(eps))]
    return sum(draws) / len(draws)


def stl_half_in_float32(log_joint, mean, scale, eps):
    """The joint in float64, log q in float32: the value says float64."""
    z = mean + scale * eps
    q = td.Normal(mean.detach().float(), scale.detach().float())
    return (log_joint(z) - q.log_prob(z.float()).sum(-1)).mean(0)


def stl_in_float32(log_joint, mean, scale, eps):
    return stl_by_hand(log_joint, mean.float(), scale.float(), eps.float())


def elbo_of(keep_z_joint, keep_z, keep_parameters):
    def estimate(log_joint, mean, scale, eps):
        z = mean + scale * eps
        m, s = (mean, scale) if keep_parameters else (mean.detach(), scale.detach())
        log_q = td.Normal(m, s).log_prob(z if keep_z else z.detach()).sum(-1)
        joint = log_joint(z if keep_z_joint else z.detach())
        return (joint - log_q).mean(0)

    return estimate


def joint_without_grad(log_joint, mean, scale, eps):
    z = mean + scale * eps
    with torch.no_grad():
        joint = log_joint(z)
    log_q = td.Normal(mean.detach(), scale.detach()).log_prob(z)
    return joint.mean(0) - log_q.sum(2).mean(0)


def mean_over_dimensions(log_joint, mean, scale, eps):
    z = mean + scale * eps
    m, s = mean.detach(), scale.detach()
    return (log_joint(z) - td.Normal(m, s).log_prob(z).mean(2)).mean(0)


# 3.7


def payoff(z):
    return torch.where(z > 1, 1.0, 0.0) - z.square() / 4


def payoff_in_parts(mean, eps):
    """The cost along the path, the effect by its score, with the other draws as a baseline."""
    z = mean + eps
    effect = (z > 1).to(mean.dtype)
    others = (effect.sum(0) - effect) / (len(effect) - 1)
    score = (effect - others) * -0.5 * (z.detach() - mean) ** 2
    return (effect - z**2 / 4 + score - score.detach()).mean(0)


def payoff_summed_up(mean, eps):
    """The effect's derivative is known: the density at the threshold."""
    value = payoff(mean + eps).mean(0).detach()
    exact = td.Normal(0.0, 1.0).cdf(mean - 1) - mean**2 / 4
    return value + exact - exact.detach()


def payoff_by_score(mean, eps):
    z = mean.detach() + eps
    weight = payoff(z) * eps  # the score for the mean is eps
    return (payoff(z) + weight * (mean - mean.detach())).mean(0)


def payoff_attached_score(mean, eps):
    z = mean + eps
    term = payoff(z).detach() * td.Normal(mean, 1.0).log_prob(z)
    return (payoff(z).detach() + term - term.detach()).mean(0)


def payoff_bare_surrogate(mean, eps):
    z = (mean + eps).detach()
    return (payoff(z) * td.Normal(mean, 1.0).log_prob(z)).mean(0)


def payoff_both(mean, eps):
    z = mean + eps
    log_q = td.Normal(mean, 1.0).log_prob(z.detach())
    term = payoff(z).detach() * log_q
    return (payoff(z) + term - term.detach()).mean(0)


def payoff_wrong_sign(mean, eps):
    z = (mean + eps).detach()
    term = -payoff(z) * td.Normal(mean, 1.0).log_prob(z)
    return (payoff(z) + term - term.detach()).mean(0)


def payoff_reward_attached(mean, eps):
    z = mean + eps
    term = payoff(z) * td.Normal(mean, 1.0).log_prob(z.detach())
    return (payoff(z).detach() + term - term.detach()).mean(0)


def payoff_smooth(mean, eps):
    z = mean + eps
    return (torch.sigmoid(5 * (z - 1)) - z**2 / 4).mean(0)


def straight_through(temperature, cost_as_a_whole=False):
    def estimate(mean, eps):
        z = mean + eps
        soft = torch.sigmoid((z - 1) / temperature)
        if cost_as_a_whole:
            soft = soft - z**2 / 4
            return (payoff(z).detach() + soft - soft.detach()).mean(0)
        return ((z > 1).double() + soft - soft.detach() - z**2 / 4).mean(0)

    return estimate


def payoff_shrunk(mean, eps):
    z = (mean + eps).detach()
    term = 0.98 * payoff(z) * -0.5 * (z - mean) ** 2
    return (payoff(z) + term - term.detach()).mean(0)


def payoff_covariance(mean, eps):
    """Leave one out, written as a covariance: it depends on the draws alone, not on the mean."""
    z = (mean + eps).detach()
    value = payoff(z)
    slope = ((value - value.mean(0)) * (z - z.mean(0))).sum(0) / (len(z) - 1)
    return value.mean(0) + slope * (mean - mean.detach())


def payoff_rao_blackwell(mean, eps):
    """The density at the threshold, by its best unbiased estimate from the mean draw."""
    z = (mean + eps).detach()
    centre = z.mean(0)
    density = td.Normal(centre, math.sqrt(1 - 1 / len(z))).log_prob(torch.ones_like(centre)).exp()
    return payoff(z).mean(0) + (density - centre / 2) * (mean - mean.detach())


RIGHT = {
    "3.1": [draw_looped, draw_listed, draw_by_transform, draw_in_float32],
    "3.2": [
        full_by_sums,
        full_by_batches,
        lambda m, L, eps: m + torch.einsum("bij,sbj->sbi", L, eps),
        lambda m, L, eps: m + (L.tril() * eps[..., None, :]).sum(-1),
    ],
    "3.3": [
        kumaraswamy_by_logs,
        kumaraswamy_by_torch,
        lambda u, a, b: [(1 - (1 - row).pow(1 / b)).pow(1 / a) for row in u],
        lambda u, a, b: (1 - u ** (1 / b)) ** (1 / a),
        lambda u, a, b: td.Kumaraswamy(a, b).icdf(1 - u),
    ],
    "3.4": [loo_looped, loo_as_covariance, loo_with_value],
    "3.5": [
        variance_by_moments,
        lambda m, s: (sum(m) / s) ** 2 + m.shape[0] + 1,
    ],
    "3.6": [stl_with_score_added, stl_by_hand, stl_in_float32, stl_half_in_float32],
    "3.7": [
        payoff_in_parts,
        payoff_summed_up,
        payoff_by_score,
        payoff_covariance,
        payoff_rao_blackwell,
        lambda m, e: payoff_by_score(m.float(), e.float()),
    ],
}

WRONG = {
    "3.1": [
        (lambda m, v, e: m + v * e, "log-variance is used as if it were σ"),
        (lambda m, v, e: td.transforms.AffineTransform(m, torch.exp(v))(e), "is σ², and it"),
        (lambda m, v, e: v.exp().sqrt() * e, "mean is missing"),
        (lambda m, v, e: m + v.exp().sqrt() * e[:, 0].unsqueeze(1), "share the noise"),
        (draw_numpy, "as `sample` cuts it"),
        (draw_without_grad, "as `sample` cuts it"),
        (lambda m, v, e: m + v.data.exp().sqrt() * e, "but not the log-variance"),
        (lambda m, v, e: m.detach() + v.exp().sqrt() * e, "but not the mean"),
        (lambda m, v, e: m + v.exp().sqrt() * e[..., :1], "The draws, S = 3, B = 4, D = 2: found"),
        (
            lambda m, v, e: m + v.exp().sqrt() * e[:1].expand_as(e),
            "The draws, S = 3, B = 4, D = 2: found",
        ),
        (lambda m, v, e: m + v.exp().sqrt() * torch.randn_like(e), "draws random numbers"),
        (lambda m, v, e: (m + v.exp().sqrt() * e).mean(0), "found the shape (4, 2)"),
        (lambda m, v, e: m + v.clamp(-30, 20).div(2).exp() * e, "variances of -80 and 80"),
    ],
    "3.2": [
        (lambda m, L, e: m + torch.einsum("bji,sbj->sbi", L, e), "This is Lᵀε"),
        (full_by_covariance, "covariance Σ Σ"),
        (lambda m, L, e: m + torch.stack([each.diag() for each in L]) * e, "Only the diagonal"),
        (lambda m, L, e: m + torch.bmm(e, L.transpose(1, 2)), "draws are taken for the examples"),
        (lambda m, L, e: m + e @ L[0].T, "factor of the first one"),
        (
            lambda m, L, e: (
                m + torch.linalg.solve_triangular(L, e[..., None], upper=False).squeeze(-1)
            ),
            "inverse of L",
        ),
        (lambda m, L, e: full_by_batches(m.detach(), L.detach(), e), "no gradient flows"),
        (
            lambda m, L, e: full_by_batches(m, L.detach(), e),
            "but not the factors",
        ),
        (
            lambda m, L, e: full_by_batches(m.detach(), L, e),
            "reaches the mean and the factor: found 0 in entry [0]",
        ),
        (lambda m, L, e: m + (L * e.unsqueeze(-1)).sum(-1), "sum of row i"),
        (lambda m, L, e: m + e @ L, "The draws, S = 4, B = 4, D = 3: found"),
        (lambda m, L, e: full_by_batches(0 * m, L, e), "The draws, S = 4, B = 4, D = 3: found"),
    ],
    "3.3": [
        (lambda u, a, b: (1 - (1 - u) ** (1 / a)) ** (1 / b), "swapped"),
        (lambda u, a, b: (1 - u ** (1 / a)) ** (1 / b), "swapped"),
        (lambda u, a, b: td.Kumaraswamy(a, b).cdf(1 - u), "distribution function itself"),
        (lambda u, a, b: td.Kumaraswamy(a, b).cdf(u), "distribution function itself"),
        (lambda u, a, b: torch.pow(1 - torch.pow(1 - u, b), a), "but the powers are not"),
        (lambda u, a, b: (1 - u) ** (1 / (a * b)), "second `1 −` is missing"),
        (lambda u, a, b: kumaraswamy_by_logs(u, a, b).detach(), "no gradient flows"),
        (lambda u, a, b: kumaraswamy_by_logs(1 - u, a, b).detach().numpy(), "no gradient flows"),
        (
            lambda u, a, b: kumaraswamy_by_logs(u, a, b.detach()),
            "reaches a and b: found 0 in entry [1]",
        ),
        (lambda u, a, b: u, "The draws, S = 5, B = 3: found"),
        (lambda u, a, b: td.Kumaraswamy(a, b).rsample(u.shape[:1]), "draws random numbers"),
    ],
    "3.4": [
        (
            lambda f, lq: ((f - (f.sum(0) - f).detach() / (len(f) - 1)) * lq).mean(0),
            "gradient that leaks into f",
        ),
        (lambda f, lq: (len(f) / (len(f) - 1) * (f - f.mean(0)) * lq).mean(0), "not detached"),
        (lambda f, lq: ((f.data - f.data.mean(0)) * lq).mean(0), "holds its own draw"),
        (lambda f, lq: torch.mean(f.data * lq, 0), "no baseline"),
        (lambda f, lq: -loo_looped(f, lq), "sign is turned round"),
        (lambda f, lq: loo_looped(f, lq) * len(f), "draws are summed"),
        (
            lambda f, lq: (
                (f.data - (f.data.sum(1)[:, None] - f.data) / (f.shape[1] - 1)) * lq
            ).mean(0),
            "across the batch",
        ),
        (lambda f, lq: loo_looped(f, lq).sum(), "found ()"),
        (lambda f, lq: float(loo_looped(f, lq).sum()), "found ()"),
        (
            lambda f, lq: (f.data - f.data.mean(0)) * lq / (len(f) - 1),
            "The shape: one value for each of the 4 examples is asked for, (4,), found (3, 4).",
        ),
        (
            lambda f, lq: ((f.data - f.data.median(0).values) * lq).mean(0),
            "gradient for log q, S = 3, B = 4",
        ),
        (lambda f, lq: loo_looped(f, lq).detach(), "gradient for log q, S = 3, B = 4"),
    ],
    "3.5": [
        (lambda m, s: m.sum() ** 2 / s**2 + 1 + 1, "dimension is missing"),
        (lambda m, s: variance_by_moments(m, s) + 1.0, "second moment"),
        (lambda m, s: (m.sum() / s) ** 2 + len(m) - 1, "fourth moment"),
        (lambda m, s: math.sqrt(variance_by_moments(m, s)), "standard deviation"),
        (lambda m, s: (m.sum() / s).square(), "held at its mean"),
        (lambda m, s: (m[0] / s).square() + 2, "Only the first mean"),
        (lambda m, s: 2.0 + len(m[1:]), "f's mean as baseline"),
        (lambda m, s: m @ m / s**2 + len(m) + 1, "squares of the means are summed"),
        (lambda m, s: 0.0 * s, "4 dimensions, s = 0.7: 0 is too small"),
        (lambda m, s: m.sum() ** 2 / s + len(m) + 1, "is too small"),
        (
            lambda m, s: ((m + s * torch.randn(10, len(m))).sum(-1)).var(),
            "draws random numbers",
        ),
    ],
    "3.6": [
        (elbo_of(True, True, True), "total derivative"),
        (elbo_of(True, False, True), "other way round"),
        (elbo_of(True, False, False), "All of log q is detached"),
        (joint_without_grad, "log p(x, z) is detached"),
        (elbo_of(False, False, True), "Only the score is left"),
        (mean_over_dimensions, "averaged in log q"),
        (elbo_of(False, False, False), "gradient for mean and scale"),
        (lambda lj, m, s, e: lj(m + s * e).mean(0), "ELBO, S = 3"),
        (lambda lj, m, s, e: elbo_of(True, True, False)(lj, m, s, e) * len(e), "ELBO, S = 3"),
        (lambda lj, m, s, e: elbo_of(True, True, False)(lj, m, s, e).sum(), "lost an axis"),
    ],
    "3.7": [
        (lambda m, e: payoff(m + e).mean(0), "still that of the cost alone"),
        (payoff_attached_score, "No gradient reaches the mean"),
        (payoff_bare_surrogate, "surrogate is returned"),
        (payoff_both, "counted twice"),
        (payoff_wrong_sign, "sign of the score"),
        (payoff_reward_attached, "gradient at m = 0.2"),
        (payoff_smooth, "value, 5 draws for 4"),
        (straight_through(1), "step is replaced by a smooth one"),
        (straight_through(0.25, cost_as_a_whole=True), "step is replaced by a smooth one"),
        (straight_through(0.1), "step is replaced by a smooth one"),
        (straight_through(0.01), "step is replaced by a smooth one"),
        (payoff_shrunk, "gradient at m = 1.0, 2.0: found"),
    ],
}
