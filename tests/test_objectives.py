"""Bounds and divergences against exact models and Monte Carlo with stated errors."""

import math

import pytest
import torch
import torch.distributions as td
import zuko
from conftest import Z_LIMIT, FixedNoise, z_score
from torch import nn

from vaetutor import (
    VAE,
    Bernoulli,
    ConjugateNormal,
    DiagonalNormal,
    FullNormal,
    LinearGaussian,
    LowRankNormal,
    Normal,
    StandardNormal,
    draw,
    elbo,
    elbo_terms,
    iwae,
    kl,
    log_weights,
    mlp,
)
from vaetutor.targets import U1

BOUNDS = [elbo, iwae, lambda *args: elbo_terms(*args).elbo]


@pytest.fixture
def linear(float64):
    return LinearGaussian(torch.randn(6, 3), torch.randn(6), 0.8)


@pytest.fixture
def conjugate(float64):
    return ConjugateNormal().double()


def diagonal(mean, scale):
    return td.Independent(td.Normal(mean, scale), 1)


def some_vae(n_pixels=12, dim=3):
    encoder = nn.Sequential(mlp(n_pixels, 8, 2 * dim), DiagonalNormal(dim))
    decoder = nn.Sequential(mlp(dim, 8, n_pixels), Bernoulli(n_pixels))
    return VAE(encoder, decoder, StandardNormal(dim))


# --- exact values ---------------------------------------------------------------------------


def test_one_draw_from_the_exact_posterior_gives_the_evidence(linear):
    """The zero-variance identity: every single log weight equals log p(x)."""
    x = linear.sample(9)
    q = linear.posterior(x)
    exact = linear.log_evidence(x)
    torch.testing.assert_close(
        log_weights(linear, q, x, 50), exact.expand(50, 9), rtol=0, atol=1e-10
    )
    torch.testing.assert_close(elbo(linear, q, x, 1), exact, rtol=0, atol=1e-10)
    torch.testing.assert_close(iwae(linear, q, x, 7), exact, rtol=0, atol=1e-10)


def test_elbo_is_the_evidence_minus_the_kl_to_the_posterior(linear):
    x = linear.sample(4)
    q = diagonal(torch.randn(4, 3), torch.rand(4, 3) + 0.3)
    expected = linear.log_evidence(x) - kl(q, linear.posterior(x))
    assert z_score(log_weights(linear, q, x, 200_000), expected) < Z_LIMIT
    terms = torch.stack([elbo_terms(linear, q, x, 1).elbo for _ in range(4000)])
    assert z_score(terms, expected) < Z_LIMIT


@pytest.mark.parametrize(
    ("mean", "variance", "expected"),
    [(0.75, 2 / 3, 0.022826), (0.50, 0.70, 0.094264), (0.75, 0.40, 0.011572)],
)
def test_gap_on_the_conjugate_model(conjugate, mean, variance, expected):
    x = torch.tensor([[1.5]])
    q = diagonal(torch.full((1, 1), mean), torch.full((1, 1), variance**0.5))
    assert kl(q, conjugate.posterior(x)).item() == pytest.approx(expected, abs=5e-7)
    gap = conjugate.log_evidence(x) - log_weights(conjugate, q, x, 1_000_000)
    assert z_score(gap, expected) < Z_LIMIT


@pytest.mark.parametrize("dim", [1, 7])
def test_bounds_sum_over_the_event(float64, dim):
    """Nats per example, not per dimension: a D-fold product has D times the bound."""
    model = VAE(nn.Identity(), nn.Sequential(nn.Identity(), Normal(dim)), StandardNormal(dim))
    x = torch.randn(5, 1).expand(5, dim)
    q = diagonal(x / 2, torch.full((5, dim), 0.5**0.5))  # the exact posterior of z ~ N, x|z ~ N
    single = td.Normal(0.0, 2**0.5).log_prob(x[:, 0])
    for bound in (elbo, iwae):
        torch.testing.assert_close(bound(model.double(), q, x, 3), dim * single)
    terms = elbo_terms(model, q, x, 3)
    per_dimension = 0.5 * (0.5 + x[:, 0] ** 2 / 4 - 1 - math.log(0.5))
    torch.testing.assert_close(terms.kl, dim * per_dimension)
    assert terms.reconstruction.shape == terms.elbo.shape == (5,)


def test_importance_weighted_bound_rises_to_the_evidence(conjugate):
    x = torch.tensor([[1.5]])
    q = diagonal(torch.tensor([[0.5]]), torch.tensor([[0.7**0.5]]))
    log_w = log_weights(conjugate, q, x, 400_000).squeeze(1)
    exact = conjugate.log_evidence(x).item()
    previous = log_w
    for k in (2, 5, 20):
        draws = log_w.reshape(-1, k).logsumexp(1) - math.log(k)
        rise = draws.mean() - previous.mean()
        assert rise > 3 * (draws.std() / len(draws) ** 0.5)
        assert draws.mean() < exact
        previous = draws
    assert exact - previous.mean() < 0.01


def test_one_importance_weight_is_the_elbo(linear):
    x = linear.sample(4)
    eps = torch.randn(1, 4, 3)
    q = lambda: FixedNoise(torch.zeros(4, 3), torch.ones(4, 3), eps)
    torch.testing.assert_close(iwae(linear, q(), x, 1), elbo(linear, q(), x, 1), rtol=0, atol=0)


def test_importance_weights_are_unbiased(conjugate):
    """E[exp L_K] = p(x) for any K: it fails without the log K and for any other sign."""
    x = torch.tensor([[1.5]])
    q = diagonal(torch.tensor([[0.5]]), torch.tensor([[0.7**0.5]]))
    draws = torch.stack([iwae(conjugate, q, x, 5).exp() for _ in range(20_000)])
    assert z_score(draws, conjugate.log_evidence(x).exp()) < Z_LIMIT


# --- invariances ----------------------------------------------------------------------------


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_batch_is_its_singles(float64, bound):
    vae = some_vae().double()
    x = torch.randint(0, 2, (6, 12)).double()
    eps = torch.randn(4, 6, 3)
    loc, scale = torch.randn(6, 3), torch.rand(6, 3) + 0.1
    batch = bound(vae, FixedNoise(loc, scale, eps), x, 4)
    for i in range(6):
        row = slice(i, i + 1)
        single = bound(vae, FixedNoise(loc[row], scale[row], eps[:, row]), x[row], 4)
        torch.testing.assert_close(single, batch[row], rtol=0, atol=1e-12)


@pytest.mark.parametrize("bound", BOUNDS)
def test_duplicated_data_leave_the_bound_as_it_is(float64, bound):
    vae = some_vae().double()
    x = torch.randint(0, 2, (6, 12)).double()
    loc, scale, eps = torch.randn(6, 3), torch.rand(6, 3) + 0.1, torch.randn(2, 6, 3)
    once = bound(vae, FixedNoise(loc, scale, eps), x, 2).mean()
    twice = [torch.cat([t, t], dim) for t, dim in ((loc, 0), (scale, 0), (eps, 1), (x, 0))]
    doubled = bound(vae, FixedNoise(*twice[:3]), twice[3], 2).mean()
    torch.testing.assert_close(doubled, once, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bound", BOUNDS)
def test_float32_agrees_with_float64(bound):
    vae = some_vae()
    x = torch.randint(0, 2, (6, 12)).float()
    loc, scale, eps = torch.randn(6, 3), torch.rand(6, 3) + 0.1, torch.randn(4, 6, 3)
    narrow = bound(vae, FixedNoise(loc, scale, eps), x, 4)
    assert narrow.dtype == torch.float32
    wide = [t.double() for t in (loc, scale, eps)]
    expected = bound(vae.double(), FixedNoise(*wide), x.double(), 4)
    torch.testing.assert_close(narrow.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("family", [DiagonalNormal(3), FullNormal(3)], ids=str)
def test_gradients_reach_every_parameter(bound, family):
    vae = some_vae()
    vae.encoder = nn.Sequential(mlp(12, 8, family.n_parameters), family)
    vae.decoder = nn.Sequential(mlp(3, 8, 12), Normal(12))
    x = torch.randn(32, 12)
    bound(vae, vae.encoder(x), x, 3).mean().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_table_and_network_share_the_family(linear):
    """One family, two posteriors: both reach the same optimum on a linear model."""
    x = linear.sample(3)
    family = FullNormal(3)
    table = nn.Sequential(nn.Embedding(3, family.n_parameters), family).double()
    q = table(torch.arange(3))
    bound = elbo(linear, q, x, 5)
    bound.sum().backward()
    assert bound.shape == (3,)
    assert (table[0].weight.grad.abs().sum(1) > 0).all()


# --- draws ----------------------------------------------------------------------------------


def test_draw_returns_z_with_its_density(float64):
    q = diagonal(torch.zeros(4, 2), torch.ones(4, 2))
    z, log_q, log_share = draw(q, 7)
    assert log_share is None
    assert z.shape == (7, 4, 2) and log_q.shape == (7, 4)
    torch.testing.assert_close(log_q, q.log_prob(z))


def test_draws_without_gradient_are_refused():
    logits = torch.zeros(4, 2, requires_grad=True)
    q = td.Independent(td.Bernoulli(logits=logits), 1)
    with pytest.raises(ValueError, match="carry no gradient"):
        draw(q, 1)
    with torch.no_grad():
        assert draw(q, 3).z.shape == (3, 4, 2)


def test_a_flow_that_only_claims_to_be_reparameterised_is_refused():
    """zuko says has_rsample for any base; over a discrete one its draws carry no gradient."""
    base = td.Independent(td.Bernoulli(logits=torch.zeros(4, 2, requires_grad=True)), 1)
    shift = td.AffineTransform(torch.ones(2), 2.0)
    flow = zuko.distributions.NormalizingFlow(td.ComposeTransform([shift]), base)
    assert flow.has_rsample
    with pytest.raises(ValueError, match="carry no gradient"):
        draw(flow, 1)


@pytest.mark.parametrize("n_samples", [0, -1, 1.5, True, None])
def test_counts_of_draws_are_checked(conjugate, n_samples):
    x = torch.tensor([[1.5]])
    for bound in BOUNDS:
        with pytest.raises(ValueError, match="n_samples must be an integer of at least 1"):
            bound(conjugate, conjugate.posterior(x), x, n_samples)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 12), "x has 4 rows but .* for 6"),
        (torch.zeros(1, 12), "x has 1 rows but .* for 6"),
        (torch.zeros(0, 12), "at least one example"),
        (torch.zeros(6, 11), r"x must have shape \(B, 12\)"),
        (torch.zeros(6, 1), r"x must have shape \(B, 12\)"),
        (torch.full((6, 12), 0.3), "only 0 and 1 for a Bernoulli, found 0.3"),
        (torch.full((6, 12), float("nan")), "72 values that are NaN or infinite"),
        (torch.full((6, 12), float("inf")), "72 values that are NaN or infinite"),
    ],
)
def test_bad_observations_are_refused(device, bound, x, message):
    vae = some_vae()
    q = vae.encoder(torch.zeros(6, 12))
    with pytest.raises(ValueError, match=message):
        bound(vae, q, x.to(device), 2)


def test_a_proposal_of_the_wrong_shape_is_refused(conjugate):
    x = torch.tensor([[1.5]])
    for q in (td.Normal(torch.zeros(1), 1.0), diagonal(torch.zeros(2, 1, 1), torch.ones(1))):
        with pytest.raises(ValueError, match="q must have batch shape"):
            elbo(conjugate, q, x)


@pytest.mark.parametrize(("dim", "prior_dim"), [(3, 2), (3, 1), (1, 3)])
def test_encoder_and_prior_must_have_the_same_latent_dimension(dim, prior_dim):
    vae = some_vae(dim=dim)
    vae.prior = StandardNormal(prior_dim)
    x = torch.zeros(6, 12)
    for bound in BOUNDS:
        with pytest.raises(ValueError, match=r"latent dimension"):
            bound(vae, vae.encoder(x), x, 1)


@pytest.mark.parametrize("shape", [(6, 1), (6,), (1,), (1, 6, 1)])
def test_a_joint_density_of_another_shape_is_refused(shape):
    """(S, B, 1) and (B,) would broadcast against log q, silently."""

    class Wrong(nn.Module):
        def log_joint(self, x, z):
            return torch.zeros(shape)

        log_likelihood = log_joint

        def prior(self):
            return StandardNormal(2)()

    q = diagonal(torch.zeros(6, 2), torch.ones(6, 2))
    for bound in BOUNDS:
        with pytest.raises(ValueError, match=r"must have shape \(1, 6\)"):
            bound(Wrong(), q, torch.ones(6, 2), 1)


def test_a_prior_that_forgets_its_event_is_refused():
    vae = some_vae(dim=1)

    class Forgetful(nn.Module):
        def forward(self):
            return td.Normal(torch.zeros(1), 1.0)

    vae.prior = Forgetful()
    x = torch.zeros(6, 12)
    for bound in BOUNDS:
        with pytest.raises(ValueError, match="latent dimension"):
            bound(vae, vae.encoder(x), x, 1)


def test_an_encoder_that_was_not_called_is_refused():
    vae = some_vae()
    with pytest.raises(ValueError, match="call the encoder"):
        elbo(vae, vae.encoder, torch.zeros(6, 12))


def test_a_model_in_one_piece_has_no_two_terms(float64):
    q = diagonal(torch.zeros(2, 2), torch.ones(2, 2))
    with pytest.raises(
        ValueError, match=r"found Target without log_likelihood and prior: use elbo"
    ):
        elbo_terms(U1, q, torch.zeros(2, 1))
    assert elbo(U1, q, torch.zeros(2, 1), 3).shape == (2,)


def test_a_frozen_encoder_may_train_a_learned_prior():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(3))

        def forward(self):
            return diagonal(self.loc, torch.ones(3))

    vae = some_vae()
    vae.prior = Learned()
    vae.encoder.requires_grad_(False)
    x = torch.zeros(6, 12)
    for bound in BOUNDS:
        vae.prior.loc.grad = None
        bound(vae, vae.encoder(x), x, 1).sum().backward()
        assert (vae.prior.loc.grad != 0).all()


# --- divergences ----------------------------------------------------------------------------


def normals(batch):
    yield diagonal(torch.randn(batch, 3), torch.rand(batch, 3) + 0.5)
    yield FullNormal(3)(torch.randn(batch, 9) / 2)
    yield LowRankNormal(3, 2)(torch.randn(batch, 12) / 2)


@pytest.mark.parametrize("i", [0, 1, 2], ids=["diagonal q", "full q", "low-rank q"])
@pytest.mark.parametrize("j", [0, 1, 2], ids=["diagonal p", "full p", "low-rank p"])
@pytest.mark.parametrize("shared_p", [False, True])
def test_closed_forms_against_a_million_draws(float64, i, j, shared_p):
    q, p = list(normals(2))[i], list(normals(2))[j]
    if shared_p and j == 0:
        p = StandardNormal(3).double()()
    elif shared_p:
        p = [None, FullNormal(3), LowRankNormal(3, 2)][j](torch.randn(9 + 3 * (j - 1)) / 2)
    exact = kl(q, p)
    assert exact.shape == (2,) and (exact > 0).all()
    z = q.sample((1_000_000,))
    assert z_score(q.log_prob(z) - p.log_prob(z), exact) < Z_LIMIT


def test_kl_of_a_distribution_to_itself_is_zero(float64):
    for q in normals(4):
        torch.testing.assert_close(kl(q, q), torch.zeros(4), rtol=0, atol=1e-12)


def test_kl_of_unit_normals_is_half_the_squared_distance(float64):
    mean = torch.randn(5, 7)
    q = diagonal(mean, torch.ones(5, 7))
    torch.testing.assert_close(kl(q, StandardNormal(7).double()()), mean.square().sum(1) / 2)


def mixture(batch):
    components = diagonal(torch.tensor([[-1.0], [1.0]]).expand(batch, 2, 1), torch.ones(1))
    return td.MixtureSameFamily(td.Categorical(torch.ones(batch, 2)), components)


def test_pairs_without_closed_form_use_the_draws(float64):
    q, p = diagonal(torch.zeros(1, 1), torch.ones(1, 1)), mixture(1)
    with pytest.raises(ValueError, match="no closed form"):
        kl(q, p)
    grid = torch.linspace(-12, 12, 20_001).reshape(-1, 1, 1)
    integrand = (q.log_prob(grid).exp() * (q.log_prob(grid) - p.log_prob(grid)))[:, 0]
    exact = torch.trapezoid(integrand, grid[:, 0, 0])
    draws = torch.stack([kl(q, p, draw(q, 1)) for _ in range(5000)])
    assert z_score(draws, exact) < Z_LIMIT


def test_terms_say_how_the_kl_was_found(conjugate):
    x = torch.tensor([[1.5]])
    q = diagonal(torch.zeros(1, 1), torch.ones(1, 1))
    assert elbo_terms(conjugate, q, x, 4).kl_is_exact
    conjugate.prior = lambda: mixture(1)
    assert not elbo_terms(conjugate, q, x, 4).kl_is_exact


def test_terms_add_up_to_the_elbo_when_the_kl_is_estimated(conjugate):
    x = torch.tensor([[1.5]])
    conjugate.prior = lambda: mixture(1)
    eps = torch.randn(5, 1, 1)
    q = lambda: FixedNoise(torch.zeros(1, 1), torch.ones(1, 1), eps)
    terms = elbo_terms(conjugate, q(), x, 5)
    torch.testing.assert_close(terms.elbo, elbo(conjugate, q(), x, 5), rtol=0, atol=1e-12)


def test_divergences_between_different_spaces_are_refused():
    with pytest.raises(ValueError, match="same event shape"):
        kl(diagonal(torch.zeros(1, 2), torch.ones(1, 2)), StandardNormal(3)())


def test_divergences_of_other_batches_are_refused():
    four, three = diagonal(torch.zeros(4, 2), torch.ones(4, 2)), FullNormal(2)(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="p must have batch shape"):
        kl(four, three)
    with pytest.raises(ValueError, match="draws.log_q must have shape"):
        kl(diagonal(torch.zeros(1, 1), torch.ones(1, 1)), mixture(1), draw(mixture_free(4), 2))


def mixture_free(batch):
    return diagonal(torch.zeros(batch, 1), torch.ones(batch, 1))


@pytest.mark.parametrize(("i", "j"), [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2)])
def test_closed_form_kl_stays_in_float32_under_autocast(device, i, j):
    q, p = list(normals(3))[i], list(normals(3))[j]
    with torch.autocast(device.type, torch.bfloat16):
        narrow = kl(q, p)
    torch.testing.assert_close(narrow, kl(q, p), rtol=0, atol=0)
    assert narrow.dtype == torch.float32


@pytest.mark.parametrize("swapped", [False, True])
def test_the_divergence_of_a_low_rank_normal_is_that_of_its_dense_form(float64, swapped):
    diagonal_, _, low = normals(4)
    dense = td.MultivariateNormal(low.mean, low.covariance_matrix)
    pairs = [(low, diagonal_), (dense, diagonal_)]
    found, expected = (kl(*(pair[::-1] if swapped else pair)) for pair in pairs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
