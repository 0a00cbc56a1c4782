"""The mixture family against scipy, quadrature, closed forms and the score function.

Its gradients are compared with exact ones: E[f] has a closed form for products and squares, and
autograd differentiates that.
"""

import math
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
import torch.distributions as td
from conftest import Z_LIMIT, z_score
from torch import nn

from vaetutor import (
    VAE,
    Bernoulli,
    ConjugateNormal,
    DiagonalNormal,
    Family,
    LinearGaussian,
    MixtureNormal,
    StandardNormal,
    TrainConfig,
    active_units,
    doubly_reparameterised,
    draw,
    elbo,
    elbo_terms,
    fit,
    gradient_moments,
    grid_posterior,
    iwae,
    kl,
    log_evidence,
    log_weights,
    mlp,
    pathwise,
    score_function,
    sticking_the_landing,
    surgery,
)
from vaetutor.families import positive
from vaetutor.targets import U1

GRADIENTS = ["each", "implicit"]
leave_one_out = partial(score_function, baseline="leave_one_out")


def numpy(t):
    return t.detach().cpu().numpy()


def parts(family, lam):
    """Weights (C,), means and scales (C, D) of one λ, by the documented layout."""
    c, d = family.components, family.dim
    mean = lam[c : c + c * d].reshape(c, d) + family.offset.to(lam)
    return lam[:c].softmax(0), mean, positive(lam[c + c * d :].reshape(c, d))


def some_lam(family):
    lam = torch.randn(family.n_parameters)
    lam[family.components * (1 + family.dim) :] *= 0.3
    return lam


def means_only(family, lam):
    """The exact E[f] for f = z_1 z_2 ... z_D + |z|^2, as a function of λ."""
    weight, mean, scale = parts(family, lam)
    return (weight * (mean.prod(-1) + (mean.square() + scale.square()).sum(-1))).sum()


def products(z):
    return z.prod(-1) + z.square().sum(-1)


class MixtureModel:
    """A model whose posterior is a given mixture, and whose evidence is exp(-3)."""

    def __init__(self, q):
        self.q = q

    def log_joint(self, x, z):
        return self.q.log_prob(z) - 3


# --- density and draws -----------------------------------------------------------------------


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(("dim", "components"), [(1, 1), (1, 3), (4, 2), (2, 5)])
def test_the_density_is_the_sum_of_scipy_normals(float64, dim, components, gradient):
    family = MixtureNormal(dim, components, gradient)
    lam, z = torch.stack([some_lam(family) for _ in range(3)]), 2 * torch.randn(5, 3, dim)
    found = numpy(family(lam).log_prob(z))
    for i in range(3):
        weight, mean, scale = (numpy(part) for part in parts(family, lam[i]))
        each = [
            w * scipy.stats.norm(m, s).pdf(numpy(z[:, i])).prod(-1)
            for w, m, s in zip(weight, mean, scale, strict=True)
        ]
        np.testing.assert_allclose(found[:, i], np.log(sum(each)), rtol=1e-10)


@pytest.mark.parametrize("dim", [1, 2])
def test_the_density_integrates_to_one(float64, dim):
    family = MixtureNormal(dim, 4)
    axis = torch.linspace(-12, 12, 1201)
    points = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    mass = family(some_lam(family)).log_prob(points).exp().sum() * (axis[1] - axis[0]) ** dim
    assert mass.item() == pytest.approx(1, abs=1e-9)


def test_one_component_is_the_diagonal_normal(float64):
    lam, z = torch.randn(4, 6), torch.randn(4, 3)
    padded = torch.cat([torch.randn(4, 1), lam], -1)
    torch.testing.assert_close(
        MixtureNormal(3, 1)(padded).log_prob(z),
        DiagonalNormal(3)(lam).log_prob(z),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_independent_draws_fall_where_the_density_says(float64, gradient):
    family = MixtureNormal(2, 3, gradient)
    q = family(some_lam(family).unsqueeze(0))
    z = draw(q, 50_000, independent=True).z[:, 0]
    axis = torch.linspace(-12, 12, 1200)
    points = torch.cartesian_prod(axis, axis)
    for inside in (lambda z: z[:, 0] > 0, lambda z: z.sum(-1) > 0.5, lambda z: z.norm(dim=-1) < 1):
        held = q.log_prob(points[inside(points)].unsqueeze(1)).exp().sum()
        share = held * (axis[1] - axis[0]) ** 2  # off by the cells on the border
        assert abs(inside(z).double().mean() - share) < Z_LIMIT * 0.5 / 50_000**0.5 + 2e-3


def test_draws_from_every_component_stand_for_an_expectation(float64):
    family = MixtureNormal(2, 3)
    lam = torch.stack([some_lam(family) for _ in range(4)])
    z, log_q, log_share = draw(family(lam), 5)
    assert z.shape == (15, 4, 2) and log_q.shape == log_share.shape == (15, 4)
    torch.testing.assert_close(log_share.exp().sum(0), torch.ones(4), rtol=0, atol=1e-12)
    torch.testing.assert_close(log_q, family(lam).log_prob(z), rtol=0, atol=1e-12)
    draws = draw(family(lam[:1]), 100_000)
    weight, mean, scale = parts(family, lam[0])
    of_each = draws.z[:, 0].reshape(-1, 3, 2)
    assert z_score(of_each, mean) < Z_LIMIT
    assert z_score((of_each - mean).square(), scale.square()) < Z_LIMIT
    torch.testing.assert_close(draws.log_share[:3, 0].exp() * 100_000, weight, rtol=0, atol=1e-9)
    error = ((weight.square().unsqueeze(-1) * scale.square()).sum(0) / 100_000).sqrt()
    found = torch.stack([draws.mean(draws.z[..., d]) for d in range(2)], -1)[0]
    assert ((found - (weight @ mean)).abs() < Z_LIMIT * error).all()
    assert draws.log_mean(torch.full_like(draws.log_q, 2.0)).item() == pytest.approx(2)


def test_components_start_apart_and_the_first_in_the_middle():
    family = MixtureNormal(3, 8)
    assert (family.offset[0] == 0).all()
    assert (torch.pdist(family.offset) > 0.1).all()
    assert torch.equal(family.offset, MixtureNormal(3, 8).offset)
    assert torch.equal(MixtureNormal(3, 8, spread=2.0).offset, 2 * family.offset)
    z = torch.randn(5, 3)
    together = MixtureNormal(3, 8, spread=0)(torch.zeros(5, 56)).log_prob(z)
    torch.testing.assert_close(together, StandardNormal(3)().log_prob(z))


def test_from_zero_it_finds_two_modes(float64):
    """The best single normal has a KL of 0.9024 there."""
    lam = torch.zeros(1, MixtureNormal(2, 4).n_parameters, requires_grad=True)
    family, optimizer = MixtureNormal(2, 4), torch.optim.Adam([lam], 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (-elbo(U1, family(lam), torch.zeros(1, 1), 8)).sum().backward()
        optimizer.step()
    grid = grid_posterior(U1, torch.zeros(1, 1), *U1.domain, 401)
    assert grid.kl_from(family(lam.detach())).item() < 0.35


# --- gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gradient", "estimator"),
    [
        ("each", pathwise),
        ("implicit", pathwise),
        ("each", leave_one_out),
    ],
)
@pytest.mark.parametrize("dim", [1, 3])
def test_gradients_are_those_of_the_closed_form(float64, dim, gradient, estimator):
    """In the weights, the means and the scales, with all dimensions in one product."""
    family = MixtureNormal(dim, 3, gradient)
    lam = some_lam(family).requires_grad_()
    (exact,) = torch.autograd.grad(means_only(family, lam), lam)
    found = gradient_moments(
        estimator, products, family, lam.detach(), n_samples=2, replicates=40_000
    )
    assert ((found.mean - exact).abs() < Z_LIMIT * found.standard_error).all()
    assert (found.standard_error < 0.2).all()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_of_the_elbo_are_those_of_the_score_function(float64, gradient):
    family, x = MixtureNormal(2, 3, gradient), torch.zeros(1, 1)
    lam = some_lam(family)
    score = gradient_moments(leave_one_out, U1, family, lam, x, 4, replicates=100_000)
    for estimator in (pathwise, sticking_the_landing):
        path = gradient_moments(estimator, U1, family, lam, x, 1, replicates=20_000)
        error = torch.hypot(score.standard_error, path.standard_error)
        assert ((score.mean - path.mean).abs() < Z_LIMIT * error).all()
        assert (path.standard_error < 0.1).all()


def test_an_implicit_gradient_is_that_of_the_inverse_distribution_function(float64):
    """In one dimension dz/dλ = -(dF/dλ) / q(z), for every draw."""
    family = MixtureNormal(1, 3, "implicit")
    lam = some_lam(family).requires_grad_()
    z = family(lam.unsqueeze(0)).rsample((6,))
    for i in range(6):
        (found,) = torch.autograd.grad(z[i].sum(), lam, retain_graph=True)
        weight, mean, scale = parts(family, lam)
        value = z[i].detach().squeeze()
        below = (weight * td.Normal(mean[:, 0], scale[:, 0]).cdf(value)).sum()
        density = family(lam).log_prob(value.reshape(1)).exp()
        (slope,) = torch.autograd.grad(below, lam)
        torch.testing.assert_close(found, -slope / density.detach(), rtol=0, atol=1e-10)


def test_an_implicit_gradient_of_one_component_is_the_path(float64):
    family = MixtureNormal(3, 1, "implicit")
    lam = torch.randn(1, 7, requires_grad=True)
    z = family(lam).rsample((4,))
    mean, raw = lam[:, 1:4], lam[:, 4:]
    eps = ((z - mean) / positive(raw)).detach()
    by_hand = mean + positive(raw) * eps
    f = lambda z: (z.prod(-1) + z.sin().sum(-1)).sum()
    (found,) = torch.autograd.grad(f(z), lam)
    (expected,) = torch.autograd.grad(f(by_hand), lam)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_draws_of_a_fixed_mixture_are_plain_numbers():
    z = MixtureNormal(2, 3, "implicit")(torch.zeros(4, 15)).rsample((3,))
    assert not z.requires_grad


def test_a_draw_that_counts_for_nothing_adds_nothing(float64):
    """A component with no weight, drawn where f is -inf; independent draws would not see it."""
    lam = torch.tensor([[800.0, -800.0, 1.0, -1.0, 0.0, 0.0]])
    draws = draw(MixtureNormal(1, 2, spread=0)(lam), 5)
    f = torch.where(draws.z[..., 0] > 0, 2.0, -torch.inf)
    f[0] = 2.0
    f[2::2] = 2.0
    assert (f == -torch.inf).any() and draws.mean(f).item() == 2
    with pytest.raises(ValueError, match="f must have shape"):
        draws.mean(draws.z)


def test_naive_draws_carry_no_gradient():
    """Choosing a component and moving with it would lose the gradient of the weights."""
    q = MixtureNormal(2, 3)(torch.zeros(4, 15, requires_grad=True))
    with pytest.raises(ValueError, match="carry no gradient"):
        draw(q, 3, independent=True)
    with pytest.raises(ValueError, match="carry no gradient"):
        log_weights(U1, q, torch.zeros(4, 1), 3)


# --- bounds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_at_the_posterior_the_bound_is_the_evidence_and_sticks_the_landing(float64, gradient):
    family = MixtureNormal(2, 3, gradient)
    rows = torch.stack([some_lam(family) for _ in range(4)])
    model, x = MixtureModel(family(rows)), torch.zeros(4, 1)
    for bound in (elbo, iwae, pathwise, sticking_the_landing):
        value = bound(model, family(rows), x, 3)
        torch.testing.assert_close(value, torch.full((4,), -3.0), rtol=0, atol=1e-10)
    lam = rows.clone().requires_grad_()
    (stuck,) = torch.autograd.grad(sticking_the_landing(model, family(lam), x, 2).sum(), lam)
    (total,) = torch.autograd.grad(pathwise(model, family(lam), x, 2).sum(), lam)
    assert stuck.abs().max() < 1e-9 < 1e-3 < total.abs().max()


def test_importance_weighting_with_every_component(float64):
    """An unbiased mean of weights inside the logarithm: rising in K, below the evidence."""
    model, x = ConjugateNormal().double(), torch.full((20_000, 1), 1.5)
    family = MixtureNormal(1, 2)
    q = family(torch.tensor([0.3, -0.4, -0.2, 0.9, 0.1, -0.5]).expand(20_000, -1))
    evidence = model.log_evidence(x)[0]
    bounds = [elbo(model, q, x, 4), *(iwae(model, q, x, k) for k in (1, 2, 8, 64))]
    means = torch.stack([bound.mean() for bound in bounds])
    errors = torch.stack([bound.std() for bound in bounds]) / 20_000**0.5
    assert (means.diff() > 3 * errors[1:]).all()
    assert (means < evidence + Z_LIMIT * errors).all() and evidence - means[-1] < 0.01
    weights = iwae(model, q, x, 2).exp()
    assert z_score(weights, evidence.exp()) < Z_LIMIT


def test_the_elbo_is_the_evidence_minus_the_kl_on_a_grid(float64):
    model, x = ConjugateNormal().double(), torch.tensor([[1.5]])
    family = MixtureNormal(1, 3)
    q = family(some_lam(family).unsqueeze(0))
    divergence = grid_posterior(model, x, -15.0, 15.0, 4001).kl_from(q)
    many = x.expand(50_000, 1)
    bound = elbo(model, _expanded(q), many, 1)
    assert z_score(bound, model.log_evidence(x) - divergence) < Z_LIMIT


def _expanded(q, n=50_000):
    normal = q.component_distribution.base_dist
    components = td.Independent(td.Normal(normal.loc.expand(n, -1, -1), normal.scale[0]), 1)
    logits = q.mixture_distribution.logits.expand(n, -1)
    return type(q)(td.Categorical(logits=logits), components)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_rows_do_not_see_each_other(float64, gradient):
    family = MixtureNormal(2, 3, gradient)
    lam = torch.stack([some_lam(family) for _ in range(3)]).requires_grad_()
    for bound in (elbo, iwae):
        (first, *_) = bound(U1, family(lam), torch.zeros(3, 1), 4)
        (gradient_of_first,) = torch.autograd.grad(first, lam)
        assert (gradient_of_first[0] != 0).all() and (gradient_of_first[1:] == 0).all()


def test_terms_add_up_and_the_kl_is_from_the_draws(float64):
    model = LinearGaussian(torch.randn(6, 3), torch.randn(6), 0.8)
    family, x = MixtureNormal(3, 4), model.sample(5)
    lam = torch.stack([some_lam(family) for _ in range(5)])
    torch.manual_seed(3)
    terms = elbo_terms(model, family(lam), x, 7)
    torch.manual_seed(3)
    torch.testing.assert_close(terms.elbo, elbo(model, family(lam), x, 7), rtol=0, atol=1e-10)
    assert not terms.kl_is_exact
    torch.manual_seed(3)
    by_kl = kl(family(lam), model.prior(), draw(family(lam), 7))
    torch.testing.assert_close(by_kl, terms.kl, rtol=0, atol=1e-10)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_vae_with_mixtures_is_trained_and_evaluated(gradient):
    torch.manual_seed(1)
    x = (torch.rand(64, 12) < 0.3).float()
    family = MixtureNormal(2, 3, gradient)
    encoder = nn.Sequential(mlp(12, 16, family.n_parameters), family)
    vae = VAE(encoder, nn.Sequential(mlp(2, 16, 12), Bernoulli(12)), StandardNormal(2))
    objective = elbo_terms if gradient == "each" else doubly_reparameterised
    config = TrainConfig(
        epochs=30, learning_rate=1e-2, n_samples=2, device=x.device.type, objective=objective
    )
    history = fit(vae, x, config, x)
    assert history.rows[-1]["validation_elbo"] > history.rows[0]["validation_elbo"] + 0.5
    found = log_evidence(vae, x, 100)
    assert found.effective_sample_size.shape == (64,) and found.n_samples == 100
    assert found.value.mean() > history.rows[-1]["validation_elbo"] - 0.2
    cut = surgery(vae, x, 16)
    assert abs(cut.rate - cut.mutual_information - cut.marginal_kl) < 1e-6
    assert active_units(vae, x).variance.shape == (2,)


# --- far out and bad input ---------------------------------------------------------------------


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_extremes_keep_value_and_gradient(gradient, size):
    family = MixtureNormal(3, 2, gradient)
    lam = torch.full((2, family.n_parameters), size)
    lam[:, 0] = -size
    lam.requires_grad_()
    z, log_q, _ = draw(family(lam), 3)
    (z.sum() * 1e-6 + log_q.sum()).backward()
    assert z.isfinite().all() and log_q.isfinite().all() and lam.grad.isfinite().all()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_protocol_and_refusals(gradient):
    family = MixtureNormal(3, 2, gradient)
    assert isinstance(family, Family) and family.n_parameters == 14
    q = family(torch.zeros(5, 4, 14))
    assert q.batch_shape == (5, 4) and q.event_shape == (3,)
    with pytest.raises(ValueError, match=r"lam must have shape .* 14"):
        family(torch.zeros(2, 13))
    with pytest.raises(ValueError, match="lam holds"):
        family(torch.full((2, 14), torch.nan))
    with pytest.raises(ValueError, match="within the support"):
        family(torch.zeros(2, 14)).log_prob(torch.full((2, 3), torch.nan))
    with torch.no_grad():
        half = family(torch.zeros(2, 14, dtype=torch.bfloat16))
    assert half.log_prob(torch.zeros(3)).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 0}, "dim"),
        ({"dim": 30_000}, "dim must be at most 21201"),
        ({"components": 0}, "components"),
        ({"components": 2.0}, "components"),
        ({"gradient": "naive"}, 'gradient must be "each" or "implicit", found \'naive\''),
        ({"spread": -1.0}, "spread"),
        ({"spread": math.inf}, "spread"),
    ],
)
def test_bad_options_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        MixtureNormal(**({"dim": 2, "components": 3} | change))


def test_the_default_refuses_the_double_path():
    q = MixtureNormal(2, 3)(torch.zeros(4, 15, requires_grad=True))
    with pytest.raises(ValueError, match=r'gradient="implicit"'):
        doubly_reparameterised(U1, q, torch.zeros(4, 1), 3)
