"""Priors against quadrature, scipy and the aggregate posterior."""

import copy
import math

import pytest
import scipy.stats
import torch
import torch.distributions as td
from conftest import Z_LIMIT, z_score
from torch import nn

from vaetutor import (
    VAE,
    DiagonalNormal,
    FullNormal,
    MixturePrior,
    Normal,
    StandardNormal,
    TrainConfig,
    VampPrior,
    aggregate_posterior,
    draw,
    elbo_terms,
    fit,
    log_evidence,
    mlp,
    priors,
    summary,
    surgery,
)
from vaetutor._checks import disabled
from vaetutor.families import inverse_positive


def some_encoder(n_in=3, dim=2, family=DiagonalNormal):
    q = family(dim)
    return nn.Sequential(mlp(n_in, 8, q.n_parameters), q)


def some_mixture(dim, components=4):
    """A mixture with unequal weights, separate means and unequal scales."""
    prior = MixturePrior(dim, components)
    with torch.no_grad():
        prior.logits.copy_(torch.randn(components))
        prior.lam.copy_(torch.randn(components, 2 * dim))
        prior.lam[:, :dim] *= 2
        prior.lam[:, dim:] *= 0.3
    return prior


def some_vamp(dim, components=4, family=DiagonalNormal):
    return VampPrior(some_encoder(3, dim, family), torch.randn(components, 3))


MAKERS = {
    "standard": StandardNormal,
    "mixture": some_mixture,
    "vamp": some_vamp,
    "vamp, full covariance": lambda dim: some_vamp(dim, family=FullNormal),
}


def grid(dim, half_width=12.0, n=601):
    """Points (n^dim, dim) and the volume of a cell."""
    axis = torch.linspace(-half_width, half_width, n)
    points = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    return points, (axis[1] - axis[0]).item() ** dim


@torch.no_grad()
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dim", [1, 2])
def test_densities_integrate_to_one(float64, name, dim):
    points, cell = grid(dim)
    assert MAKERS[name](dim)().log_prob(points).exp().sum() * cell == pytest.approx(1, abs=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("name", MAKERS)
def test_draws_match_the_density(float64, name):
    """First and second moments and the share of each quadrant, by quadrature and by draws."""

    def features(z):
        outer = z.unsqueeze(-1) * z.unsqueeze(-2)
        quadrant = torch.stack([(z > 0).all(-1), (z < 0).all(-1), z[..., 0] > 0], dim=-1)
        return torch.cat([z, outer.flatten(-2), quadrant.to(z.dtype)], dim=-1)

    p = MAKERS[name](2)()
    points, cell = grid(2, n=600)  # no point on an axis
    mass = p.log_prob(points).exp() * cell
    exact = mass @ features(points)
    assert z_score(features(p.sample((1, 50_000))[0]), exact) < Z_LIMIT


def test_a_component_is_chosen_for_all_dimensions_at_once(float64):
    """By scipy, whose components are joint; mixing each dimension by itself gives another sum."""
    prior = some_mixture(3, components=2)
    mean, raw = prior.lam.detach().chunk(2, dim=-1)
    weight = prior.logits.detach().softmax(0)
    scale = priors.DiagonalNormal(3)(prior.lam.detach()).stddev
    assert torch.allclose(inverse_positive(scale), raw)
    z = torch.randn(5, 3)
    joint = sum(
        w.item() * scipy.stats.multivariate_normal(m, torch.diag(s**2)).pdf(z)
        for w, m, s in zip(weight, mean, scale, strict=True)
    )
    torch.testing.assert_close(prior().log_prob(z).exp(), torch.as_tensor(joint))
    one_by_one = td.MixtureSameFamily(
        td.Categorical(weight.expand(3, 2)), td.Normal(mean.T, scale.T)
    )
    assert (one_by_one.log_prob(z).sum(-1) - prior().log_prob(z)).abs().min() > 1e-3


def test_one_pseudo_input_for_each_example_is_the_aggregate_posterior(float64):
    x = torch.randn(7, 3)
    encoder = some_encoder()
    vae = VAE(encoder, nn.Sequential(mlp(2, 3), Normal(3)), VampPrior(encoder, x))
    z = torch.randn(4, 5, 2)
    q = encoder(x)
    by_hand = torch.stack(
        [td.Normal(m, s).log_prob(z).sum(-1) for m, s in zip(q.mean, q.stddev, strict=True)]
    ).logsumexp(0) - math.log(7)
    torch.testing.assert_close(vae.prior().log_prob(z), by_hand)
    torch.testing.assert_close(aggregate_posterior(vae, x).log_prob(z), by_hand)
    assert abs(surgery(vae, x).marginal_kl) < 1e-12


def test_a_mixture_is_at_most_ln_c_below_its_best_component(float64):
    """log p(z) >= log p_c(z) - ln C for every z and c, so for every bound on the same draws."""
    dim, components = 3, 5
    prior = MixturePrior(dim, components)
    with torch.no_grad():
        prior.lam[:, :dim] *= 5
    encoder, decoder = some_encoder(dim=dim), nn.Sequential(mlp(dim, 3), Normal(3))
    x = torch.randn(6, 3)

    def bound(prior):
        torch.manual_seed(1)
        return elbo_terms(VAE(encoder, decoder, prior), encoder(x), x, 20).elbo

    def alone(component):
        one = MixturePrior(dim, 1)
        one.lam.data = component.unsqueeze(0)
        return one

    singles = torch.stack([bound(alone(lam)) for lam in prior.lam.detach()])
    mixed = bound(prior)
    assert (mixed >= singles.amax(0) - math.log(components) - 1e-12).all()
    assert (mixed <= singles.amax(0) + 20).all() and singles.std(0).min() > 1
    prior.lam.data[:] = prior.lam.data[0].clone()  # one component, five times
    torch.testing.assert_close(bound(prior), bound(alone(prior.lam.detach()[0])))


def test_the_best_single_component_has_the_moments_of_the_aggregate_posterior(float64):
    """Minimising KL(q(z) || N(m, s^2)) over m and s matches mean and variance."""
    loc, scale = torch.randn(40, 2) * 2 + 1, torch.rand(40, 2) + 0.2
    prior = MixturePrior(2, 1)
    optimizer = torch.optim.LBFGS(
        prior.parameters(), max_iter=500, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    # Antithetic draws at distance one standard deviation have the exact first two moments.
    z = torch.stack([loc + scale, loc - scale])

    def closure():
        optimizer.zero_grad()
        loss = -prior().log_prob(z).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    p = prior()
    torch.testing.assert_close(p.mean, loc.mean(0), rtol=0, atol=1e-5)
    variance = scale.square().mean(0) + loc.var(0, correction=0)
    torch.testing.assert_close(p.variance, variance, rtol=1e-5, atol=0)


def test_components_start_apart_and_together_like_a_standard_normal():
    priors_ = [MixturePrior(2, 10) for _ in range(300)]
    means = torch.stack([prior.lam.detach()[:, :2] for prior in priors_])
    assert torch.cdist(means, means).add(torch.eye(10)).min() > 0
    second = torch.stack([(p().mean.square() + p().variance).detach() for p in priors_])
    assert z_score(second, 1.0) < Z_LIMIT


@pytest.mark.parametrize("support", [None, (-20.0, 20.0)])
def test_gradients_reach_every_parameter(support):
    encoder = some_encoder()
    decoder = nn.Sequential(mlp(2, 3), Normal(3))
    x = torch.randn(50, 3)
    for prior in (MixturePrior(2, 4), VampPrior(encoder, torch.randn(4, 3), support)):
        vae = VAE(encoder, decoder, prior)
        vae.zero_grad()
        terms = elbo_terms(vae, encoder(x), x)
        assert not terms.kl_is_exact
        terms.elbo.sum().backward()
        for name, parameter in vae.named_parameters():
            assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name
        for name, parameter in prior.named_parameters(recurse=False):
            assert (parameter.grad != 0).all(), name


def test_the_encoder_is_shared_and_copied_once():
    encoder = some_encoder()
    vae = VAE(encoder, nn.Sequential(mlp(2, 3), Normal(3)), VampPrior(encoder, torch.randn(4, 3)))
    n = sum(p.numel() for p in [*encoder.parameters(), *vae.decoder.parameters()]) + 12
    assert sum(p.numel() for p in vae.parameters()) == n
    twin = copy.deepcopy(vae)
    assert twin.prior.encoder is twin.encoder is not encoder


@pytest.mark.parametrize("encoder_steps", [0, 1])
def test_priors_are_trained_evaluated_and_drawn_from(encoder_steps):
    x = torch.cat([torch.randn(64, 3) + 4, torch.randn(64, 3) - 4])
    for make in (lambda e: MixturePrior(2, 4), lambda e: VampPrior(e, x[::32])):
        torch.manual_seed(0)
        encoder = some_encoder()
        vae = VAE(encoder, nn.Sequential(mlp(2, 3), Normal(3)), make(encoder))
        before = {k: v.detach().clone() for k, v in vae.prior.named_parameters(recurse=False)}
        config = TrainConfig(epochs=20, encoder_steps=encoder_steps, device=x.device)
        history = fit(vae, x, config, validation=x)
        assert history.rows[-1]["validation_elbo"] > history.rows[0]["validation_elbo"] + 1
        for name, parameter in vae.prior.named_parameters(recurse=False):
            assert (parameter != before[name]).all(), name
        row = summary(vae, x, 50).iloc[0]
        evidence = log_evidence(vae, x, 50)
        assert row.log_evidence > row.elbo
        assert abs(evidence.mean()[0] - row.log_evidence) < 5 * 2**0.5 * row.standard_error
        assert vae.sample(9).shape == (9, 3)


def test_the_kl_by_draws_has_the_right_mean(float64):
    """One component is a normal, so its KL has a closed form."""
    prior, q = MixturePrior(2, 1), DiagonalNormal(2)(torch.randn(1, 4))
    z, log_q, _ = draw(q, 50_000)
    closed = td.kl_divergence(q, prior().component_distribution)
    assert z_score((log_q - prior().log_prob(z)).detach(), closed.detach()) < Z_LIMIT


def test_blocks_change_nothing(float64, monkeypatch):
    """By scipy's joint components, and by hand where one is left out; no block is too large."""
    prior, z = some_mixture(2), torch.randn(7, 3, 2)
    without = torch.randint(4, (7, 3))
    q, log_pi = prior.family(prior.lam), prior.logits.log_softmax(0)
    each = q.log_prob(z.unsqueeze(-2)) + log_pi
    kept = torch.arange(4) != without.unsqueeze(-1)
    share = (kept * log_pi.exp()).sum(-1)
    others = ((kept * each.exp()).sum(-1) / share).log()
    evaluated, drawn = [], []
    for limit, rows in ((1, 1), (2 * 2 * 4, 2), (2**20, 21)):
        monkeypatch.setattr(priors, "_AT_ONCE", limit)
        p = prior()
        torch.testing.assert_close(p.log_prob(z), each.logsumexp(-1), rtol=0, atol=1e-12)
        torch.testing.assert_close(p.log_prob(z, without), others, rtol=0, atol=1e-12)
        assert p.log_prob(z[0, 0]).shape == p.log_prob(z[0, 0], without[0, 0]).shape == ()
        parts, density, draw = (lambda c: (c, c.log_prob, c.sample))(p.component_distribution)
        parts.log_prob = lambda v, f=density: (evaluated.append(len(v)), f(v))[1]
        parts.sample = lambda s, f=draw: (drawn.append(s.numel()), f(s))[1]
        p.log_prob(z), p.log_prob(z, without), p.sample((7, 3))
        assert max(evaluated) == max(drawn) == rows
        assert p.sample().shape == (2,) and p.sample((0,)).shape == (0, 2)


@pytest.mark.parametrize("shape", [(6, 1), (5, 4), (), (0, 2)])
def test_a_mixture_refuses_z_of_another_width_or_none(shape):
    with pytest.raises(ValueError, match=r"z must have shape \(\.\.\., 2\)"):
        some_mixture(2)().log_prob(torch.zeros(shape))


def test_the_logits_of_a_mixture_are_one_for_each_component():
    with pytest.raises(ValueError, match="mixture_distribution"):
        priors.Mixture(torch.zeros(3), DiagonalNormal(2)(torch.zeros(4, 4)))


def test_pseudo_inputs_pass_the_support_before_the_encoder(float64):
    encoder = some_encoder()
    prior = VampPrior(encoder, torch.rand(4, 3) * 0.8 + 0.1, support=(0, 1))
    z = torch.randn(7, 2)
    by_hand = encoder(prior.pseudo_inputs).log_prob(z.unsqueeze(1)).logsumexp(1) - math.log(4)
    torch.testing.assert_close(prior().log_prob(z), by_hand, rtol=0, atol=1e-12)


def test_a_fixed_prior_has_no_state():
    assert StandardNormal(3).state_dict() == {} and list(StandardNormal(3).parameters()) == []
    assert {t.dtype for t in StandardNormal(3).double().buffers()} == {torch.float64}


def test_the_support_holds_wherever_the_pseudo_inputs_go():
    start = torch.rand(4, 3) * 0.8 + 0.1
    prior = VampPrior(some_encoder(), start, support=(0, 1))
    torch.testing.assert_close(prior.pseudo_inputs.detach(), start)
    with torch.no_grad():
        prior.raw.mul_(1e4)
    u = prior.pseudo_inputs
    assert ((u >= 0) & (u <= 1)).all() and u.min() < 0.01 and u.max() > 0.99
    assert torch.isfinite(prior().log_prob(torch.zeros(2)))


def test_the_start_is_a_copy():
    x = torch.randn(4, 3)
    prior = VampPrior(some_encoder(), x)
    with torch.no_grad():
        prior.raw.zero_()
    assert (x != 0).all()


@pytest.mark.parametrize("checks", [True, False])
def test_values_are_checked_whatever_the_process_wide_switch_says(checks):
    prior = some_mixture(2)
    p = prior()
    with torch.no_grad():
        prior.logits[0] = torch.nan
    z = torch.full((2,), torch.nan)
    before = td.Distribution._validate_args
    td.Distribution.set_default_validate_args(checks)
    try:
        with pytest.raises(ValueError):
            prior()
        with pytest.raises(ValueError):
            p.log_prob(z)
        with disabled():
            assert some_mixture(2)().log_prob(z).isnan()
    finally:
        td.Distribution.set_default_validate_args(before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0, 3), "dim"), ((2, 0), "components"), ((2, 1.5), "components"), ((True, 3), "dim")],
)
def test_a_mixture_refuses_what_is_no_number(arguments, words):
    with pytest.raises(ValueError, match=words):
        MixturePrior(*arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pseudo_inputs": torch.zeros(0, 3)}, "at least one example"),
        ({"pseudo_inputs": torch.zeros(2, 3, dtype=torch.int64)}, "floating-point"),
        ({"pseudo_inputs": torch.full((2, 3), torch.nan)}, "NaN"),
        ({"pseudo_inputs": [[0.0] * 3]}, "torch.Tensor"),
        ({"pseudo_inputs": torch.zeros(6, 3), "limit": 5}, "at most 5, found 6"),
        ({"pseudo_inputs": torch.zeros(1001, 3)}, "at most 1000, found 1001"),
        ({"limit": 0}, "limit"),
        ({"pseudo_inputs": torch.zeros(2, 4)}, r"shape \(2, 4\)"),
        ({"pseudo_inputs": torch.zeros(2, 3).double()}, "float64"),
        ({"support": (0.0, 1.0)}, r"strictly inside the support \(0, 1\)"),
        ({"support": (1.0, -1.0)}, "low < high"),
        ({"support": (0.0, math.inf)}, "low < high"),
        ({"support": (math.nan, 1.0)}, "low < high"),
        ({"support": 1}, "support must be"),
        ({"support": (0, 1, 2)}, "support must be"),
        ({"support": ("a", "b")}, "support must be"),
        (
            {"pseudo_inputs": torch.full((2, 3), 1 - 2**-24), "support": (-1, 1)},
            r"strictly inside the support \(-1, 1\)",
        ),
        ({"encoder": nn.Sequential(some_encoder(), nn.Dropout())}, "Dropout at '1'"),
        ({"encoder": nn.Sequential(nn.BatchNorm1d(3), some_encoder())}, "BatchNorm1d at '0'"),
        ({"encoder": nn.Linear(3, 4)}, "encoder must give.*found Tensor"),
        ({"encoder": nn.Sequential(nn.Flatten(0), nn.Linear(6, 4), DiagonalNormal(2))}, "batch"),
    ],
)
def test_a_vampprior_refuses_what_cannot_be(device, change, words):
    good = {"encoder": some_encoder(), "pseudo_inputs": torch.zeros(2, 3)}
    VampPrior(**good, limit=2)
    wrong = good | change
    wrong["encoder"].to(device)
    if isinstance(wrong["pseudo_inputs"], torch.Tensor):
        wrong["pseudo_inputs"] = wrong["pseudo_inputs"].to(device)
    with pytest.raises(ValueError, match=words):
        VampPrior(**wrong)
