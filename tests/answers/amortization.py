"""Chapter 2."""

import math
import statistics

import numpy as np
import torch
import torch.distributions as td

import vaetutor as vt

# 2.1


def gaps_by_package(mean, covariance, q_mean, q_scale):
    p = td.MultivariateNormal(mean, covariance)
    q = td.Independent(td.Normal(q_mean, q_scale), 1)
    approximation = vt.kl(vt.mean_field(p), p)
    return approximation, vt.kl(q, p) - approximation


def gaps_looped(mean, covariance, q_mean, q_scale):
    """In numpy, from the formula of chapter 1, one row at a time, as one tensor."""
    rows = []
    for m, c, a, s in zip(*(each.numpy() for each in (mean, covariance, q_mean, q_scale))):  # noqa: B905
        precision = np.linalg.inv(c)

        def divergence(mu, v, m=m, c=c, precision=precision):
            rest = np.diag(precision) @ v - np.log(v).sum() + np.linalg.slogdet(c)[1] - len(m)
            return ((mu - m) @ precision @ (mu - m) + rest) / 2

        best = divergence(m, 1 / np.diag(precision))
        rows.append([best, divergence(a, s**2) - best])
    return torch.tensor(rows).T


def gaps_in_float32(*args):
    return tuple(gap.float() for gap in gaps_by_package(*args))


def gaps_total(mean, covariance, q_mean, q_scale):
    p = td.MultivariateNormal(mean, covariance)
    return vt.mean_field_gap(p), vt.kl(td.Independent(td.Normal(q_mean, q_scale), 1), p)


def gaps_marginal(mean, covariance, q_mean, q_scale):
    p = td.MultivariateNormal(mean, covariance)
    best = vt.kl(td.Independent(td.Normal(mean, p.stddev), 1), p)
    return best, vt.kl(td.Independent(td.Normal(q_mean, q_scale), 1), p) - best


def gaps_forward(mean, covariance, q_mean, q_scale):
    p = td.MultivariateNormal(mean, covariance)
    best = vt.kl(p, vt.mean_field(p))
    return best, vt.kl(p, td.Independent(td.Normal(q_mean, q_scale), 1)) - best


def gaps_forward_throughout(mean, covariance, q_mean, q_scale):
    """With the best member in that direction too, which has the marginals."""
    p = td.MultivariateNormal(mean, covariance)
    best = vt.kl(p, td.Independent(td.Normal(mean, p.stddev), 1))
    return best, vt.kl(p, td.Independent(td.Normal(q_mean, q_scale), 1)) - best


def gaps_of_scale(mean, covariance, q_mean, q_scale):
    p = td.MultivariateNormal(mean, covariance)
    q = td.MultivariateNormal(q_mean, torch.diag_embed(q_scale))
    return vt.mean_field_gap(p), td.kl_divergence(q, p) - vt.mean_field_gap(p)


def gaps_at_the_encoders_mean(mean, covariance, q_mean, q_scale):
    """The best scales, but not the best mean."""
    p = td.MultivariateNormal(mean, covariance)
    best = vt.kl(td.Independent(td.Normal(q_mean, vt.mean_field(p).stddev), 1), p)
    return best, vt.kl(td.Independent(td.Normal(q_mean, q_scale), 1), p) - best


def gaps_from_the_best(mean, covariance, q_mean, q_scale):
    diagonal = torch.linalg.inv(covariance).diagonal(dim1=1, dim2=2)
    ratio, off = q_scale**2 * diagonal, (q_mean - mean) ** 2 * diagonal
    best = vt.mean_field_gap(td.MultivariateNormal(mean, covariance))
    return best, (ratio - 1 - ratio.log() + off).sum(1) / 2


# 2.2


def crossing_by_bisection(training, encoder, search):
    def ahead(n):
        return n * search - (training + n * encoder)

    high = 1.0
    while ahead(high) < 0:
        high *= 2
        if high > 1e12:
            return math.inf
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if ahead(middle) < 0 else (low, middle)
    return low


def crossing_by_tensors(training, encoder, search):
    saved = torch.tensor(search) - encoder
    return torch.where(saved > 0, training / saved.clamp(min=0), torch.inf)


def crossing_in_float32(training, encoder, search):
    """Negative where it never pays."""
    saved = torch.tensor(search - encoder, dtype=torch.float32)
    return training / saved if saved else math.inf


def never(value):
    return lambda t, e, s: t / (s - e) if s > e else value


# 2.3


def price_by_harmonic_mean(variance):
    total = 0.0
    for column in variance.T.tolist():
        mean_log = sum(math.log(v) for v in column) / len(column)
        total += (mean_log - math.log(statistics.harmonic_mean(column))) / 2
    return total


def price_by_precisions(variance):
    precision = 1 / variance
    return 0.5 * (precision.mean(0) / variance.log().neg().mean(0).exp()).log().sum()


def price_by_divergences(variance):
    shared = 1 / (1 / variance).mean(0)
    ratio = shared / variance
    return 0.5 * (ratio - 1 - ratio.log()).sum(1).mean()


def price_at(choose):
    def price(v):
        q = td.Independent(td.Normal(torch.zeros_like(v), choose(v).sqrt().expand_as(v)), 1)
        p = td.Independent(td.Normal(torch.zeros_like(v), v.sqrt()), 1)
        return td.kl_divergence(q, p).mean()

    return price


def price_by_grid(variance):
    low, high = variance.min().log(), variance.max().log() + 1e-3
    shared = torch.linspace(low, high, 5001).exp().view(-1, 1, 1)
    return (shared / variance - 1 - (shared / variance).log()).mean(1).amin(0).sum() / 2


# 2.4


def turns_by_func(elbo, phi, theta, rate, inner):
    for _ in range(inner):
        phi = phi + rate * torch.func.grad(elbo, 0)(phi, theta)
    return phi, theta + rate * torch.func.grad(elbo, 1)(phi, theta)


def turns_by_backward(elbo, phi, theta, rate, inner):
    phi, theta = phi.clone().requires_grad_(), theta.clone().requires_grad_()
    for part, times in ((phi, inner), (theta, 1)):
        for _ in range(times):
            part.grad = None
            elbo(phi, theta).backward()
            with torch.no_grad():
                part += rate * part.grad
    return [phi, theta]


def turns_by_optimizers(elbo, phi, theta, rate, inner):
    phi, theta = torch.nn.Parameter(phi), torch.nn.Parameter(theta.clone())
    phi = torch.nn.Parameter(phi.detach().clone())
    for part, times in ((phi, inner), (theta, 1)):
        optimizer = torch.optim.SGD([part], rate, maximize=True)
        for _ in range(times):
            optimizer.zero_grad()
            elbo(phi, theta).backward()
            optimizer.step()
    return phi, theta


def slopes(elbo, phi, theta):
    phi, theta = phi.detach().requires_grad_(), theta.detach().requires_grad_()
    return torch.autograd.grad(elbo(phi, theta), [phi, theta])


def turns_down(elbo, phi, theta, rate, inner):
    for _ in range(inner):
        phi = phi - rate * slopes(elbo, phi, theta)[0]
    return phi, theta - rate * slopes(elbo, phi, theta)[1]


def turns_jointly(elbo, phi, theta, rate, inner):
    new_theta = theta + rate * slopes(elbo, phi, theta)[1]
    for _ in range(inner):
        phi = phi + rate * slopes(elbo, phi, theta)[0]
    return phi, new_theta


def turns_theta_first(elbo, phi, theta, rate, inner):
    theta = theta + rate * slopes(elbo, phi, theta)[1]
    for _ in range(inner):
        phi = phi + rate * slopes(elbo, phi, theta)[0]
    return phi, theta


def turns_theta_each_time(elbo, phi, theta, rate, inner):
    for _ in range(inner):
        phi = phi + rate * slopes(elbo, phi, theta)[0]
        theta = theta + rate * slopes(elbo, phi, theta)[1]
    return phi, theta


def turns_without_rate(elbo, phi, theta, rate, inner):
    for _ in range(inner):
        phi = phi + slopes(elbo, phi, theta)[0]
    return phi, theta + slopes(elbo, phi, theta)[1]


def turns_once(elbo, phi, theta, rate, inner):
    phi = phi + rate * slopes(elbo, phi, theta)[0]
    return phi, theta + rate * slopes(elbo, phi, theta)[1]


def turns_with_one_slope(elbo, phi, theta, rate, inner):
    """The same gradient in all steps."""
    phi = phi + inner * rate * slopes(elbo, phi, theta)[0]
    return phi, theta + rate * slopes(elbo, phi, theta)[1]


def turns_accumulating(*names):
    """By `backward`, with the gradients of `names` never cleared."""

    def turns(elbo, phi, theta, rate, inner):
        parts = {"phi": phi.clone().requires_grad_(), "theta": theta.clone().requires_grad_()}
        for moved in ["phi"] * inner + ["theta"]:
            for name in parts.keys() - set(names):
                parts[name].grad = None
            elbo(*parts.values()).backward()
            parts[moved].data += rate * parts[moved].grad
        return tuple(parts.values())

    return turns


def turns_marking_the_arguments(elbo, phi, theta, rate, inner):
    """The arguments themselves get `requires_grad`, their values stay."""
    old = phi.requires_grad_(), theta.requires_grad_()
    phi = old[0]
    for _ in range(inner):
        phi = phi + rate * torch.autograd.grad(elbo(phi, old[1]), phi)[0]
    return phi, old[1] + rate * torch.autograd.grad(elbo(phi, old[1]), old[1])[0]


def turns_unrolled(elbo, phi, theta, rate, inner):
    """The gradient for theta runs through the steps of phi too."""
    phi, theta = phi.clone().requires_grad_(), theta.clone().requires_grad_()
    for _ in range(inner):
        phi = phi + rate * torch.autograd.grad(elbo(phi, theta), phi, create_graph=True)[0]
    return phi, theta + rate * torch.autograd.grad(elbo(phi, theta), theta)[0]


def turns_in_place(elbo, phi, theta, rate, inner):
    for _ in range(inner):
        phi += rate * slopes(elbo, phi, theta)[0]
    return phi, theta + rate * slopes(elbo, phi, theta)[1]


# 2.5


def steps_by_logarithm(gap, tolerance, rate, curvature):
    if gap <= tolerance:
        return 0
    per_step = 2 * math.log(abs(1 - rate * curvature))
    return math.ceil((math.log(tolerance) - math.log(gap)) / per_step)


def steps_by_ascent(gap, tolerance, rate, curvature):
    """The search itself, in lambda, with the optimum at zero."""
    lam, count = math.sqrt(2 * gap / curvature), 0
    while curvature * lam**2 / 2 > tolerance:
        lam, count = lam - rate * curvature * lam, count + 1
    return torch.tensor(count)


def steps_by_distance(gap, tolerance, rate, curvature):
    count = 0
    while gap > tolerance:
        gap, count = gap * abs(1 - rate * curvature), count + 1
    return count


def steps_before(gap, tolerance, rate, curvature):
    count, factor = 0, (1 - rate * curvature) ** 2
    while gap * factor > tolerance:
        gap, count = gap * factor, count + 1
    return count


def steps_with(per_step, log=math.log, up=math.ceil, least=0):
    def steps(gap, tolerance, rate, curvature):
        return max(least, up(log(gap / tolerance) / per_step(rate * curvature)))

    return steps


def squared(product):
    return -math.log((1 - product) ** 2)


RIGHT = {
    "2.1": [gaps_by_package, gaps_looped, gaps_in_float32],
    "2.2": [crossing_by_bisection, crossing_by_tensors],
    "2.3": [price_by_harmonic_mean, price_by_precisions, price_by_divergences, price_by_grid],
    "2.4": [
        turns_by_func,
        turns_by_backward,
        turns_by_optimizers,
        turns_marking_the_arguments,
    ],
    "2.5": [steps_by_logarithm, steps_by_ascent, steps_with(squared)],
}

WRONG = {
    "2.1": [
        (gaps_total, "second value is the whole inference gap"),
        (gaps_marginal, "marginal variances of the posterior"),
        (gaps_forward, "divergence in the other direction"),
        (gaps_of_scale, "scale is σ, and the"),
        (lambda *args: reversed_pair(gaps_by_package(*args)), "wrong order"),
        (lambda *args: [g.mean() for g in gaps_by_package(*args)], "found the shape ()"),
        (gaps_from_the_best, "the best member. The amortisation gap is a difference"),
        (gaps_forward_throughout, "approximation gap, B = 4, D = 3: found"),
        (gaps_at_the_encoders_mean, "has the mean of the posterior"),
        (
            lambda *args: [-g for g in gaps_by_package(*args)],
            "gap, B = 4, D = 3",
        ),
        (lambda *args: gaps_by_package(*args)[1], "Two values are asked for"),
        (lambda *args: sum(gaps_by_package(*args)).sum(), "Two values are asked for"),
        (lambda *args: torch.stack(gaps_by_package(*args), 1), "Two values are asked for"),
    ],
    "2.2": [
        (lambda t, e, s: t / s if s > e else math.inf, "pass through the encoder is left out"),
        (lambda t, e, s: (s - e) / t, "upside down"),
        (lambda t, e, s: t / (e + s), "added"),
        (lambda t, e, s: t / (s - e), "encoder never pays"),
        (lambda t, e, s: -(-t // (s - e)) if s > e else math.inf, "rounded to a whole number"),
        (lambda t, e, s: t / (e - s), "crossing of the two costs: found -"),
        (never(0.0), "n encoder pass dearer than a search: found 0, expected inf"),
        (never(-math.inf), "n encoder pass dearer than a search: found -inf, expected inf"),
        (crossing_in_float32, "encoder never pays"),
        (never(math.nan), "n encoder pass dearer than a search: found nan"),
        (never(None), "For an encoder pass dearer than a search: it returns None"),
        (lambda t, e, s: t / (s - e) if s >= e else math.inf, "ZeroDivisionError"),
    ],
    "2.3": [
        (price_at(lambda v: v.mean(0)), "arithmetic mean. That is too wide"),
        (lambda v: (v.mean(0).log() - v.log().mean(0)).sum() / 2, "least price in the other"),
        (price_at(lambda v: v.prod(0) ** (1 / len(v))), "geometric mean"),
        (price_at(lambda v: v.sqrt().mean(0) ** 2), "mean of the standard deviations"),
        (lambda v: price_by_divergences(v) / v.shape[-1], "dimensions are averaged"),
        (lambda v: v.log().mean(0).sum() + (1 / v).mean(0).log().sum(), "factor ½"),
        (lambda v: price_by_divergences(v) * len(v), "datapoints are summed"),
        (lambda v: price_by_divergences(v**2), "price for N = 6, D = 3"),
        (lambda v: -price_by_divergences(v), "price for N = 6, D = 3: found -"),
        (price_at(lambda v: 1 / (1 / v).mean()), "one scale for all dimensions"),
        (price_at(lambda v: v.amin(0)), "price for N = 6, D = 3"),
        (
            lambda v: (v.log().mean(0) + (1 / v).mean(0).log()) / 2,
            "found the shape (3,), expected",
        ),
    ],
    "2.4": [
        (turns_down, "goes downhill"),
        (turns_jointly, "taken at the old φ"),
        (turns_theta_first, "θ moves first"),
        (turns_theta_each_time, "θ moves after each step"),
        (turns_without_rate, "step size is missing"),
        (turns_once, "φ takes one step only"),
        (turns_with_one_slope, "gradient at the first φ"),
        (turns_accumulating("phi"), "φ accumulate over the inner passes"),
        (turns_accumulating("phi", "theta"), "φ accumulate over the inner passes"),
        (turns_accumulating("theta"), "θ holds those of the passes for φ"),
        (turns_unrolled, "new θ, inner = 3: found"),
        (turns_in_place, "changes its argument `phi` in place"),
        (lambda *args: turns_by_func(*args)[0], "Two tensors are asked for"),
    ],
    "2.5": [
        (steps_by_distance, "the square of that"),
        (steps_before, "rounded down"),
        (steps_with(squared, least=-math.inf), "negative number of steps"),
        (steps_with(squared, log=math.log10), "different bases"),
        (steps_with(lambda product: 2 * product), "exp(−2ηh)"),
        (steps_with(squared, up=round), "steps from four gaps: found"),
        (steps_with(squared, least=1), "within the tolerance: found 1"),
        (steps_with(squared, up=float), "steps from four gaps: found"),
        (steps_with(lambda product: -2 * math.log(1 - product)), "ValueError"),
    ],
}


def reversed_pair(pair):
    first, second = pair
    return second, first
