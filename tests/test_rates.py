"""Rate, distortion, active units and the aggregate posterior against closed forms."""

import math
from typing import ClassVar

import pytest
import torch
import torch.distributions as td
from conftest import Z_LIMIT, z_score
from torch import nn

from vaetutor import (
    VAE,
    DiagonalNormal,
    FullNormal,
    Images,
    LinearGaussian,
    MixturePrior,
    Normal,
    RecurrentEncoder,
    SequenceVAE,
    StandardNormal,
    active_units,
    aggregate_posterior,
    kl,
    kl_per_dimension,
    mlp,
    pad,
    priors,
    rate_distortion,
    rates,
    surgery,
)
from vaetutor.evaluate import mean_terms


@pytest.fixture
def linear(float64):
    """A linear model whose exact posterior is diagonal."""
    axes = torch.linalg.qr(torch.randn(5, 2))[0]
    return LinearGaussian(axes * torch.tensor([1.5, 0.7]), torch.randn(5), 0.8)


def some_vae(dim=3):
    torch.manual_seed(3)
    encoder = nn.Sequential(mlp(6, 8, 2 * dim), DiagonalNormal(dim))
    return VAE(encoder, nn.Sequential(mlp(dim, 6), Normal(6)), StandardNormal(dim))


def normals(mean, scale):
    return td.Independent(td.Normal(mean, scale), 1)


def as_encoder(q):
    return lambda x: q


class Prior:
    """A model that is nothing but a prior: what the surgery asks for."""

    def __init__(self, dim):
        self.dim = dim

    def prior(self):
        return normals(torch.zeros(self.dim), torch.ones(self.dim))


def test_rate_and_distortion_of_the_linear_model(linear):
    """D = d/2 ln 2πσ² + (|x - Wm - μ|² + tr W V Wᵀ) / 2σ², R in closed form, each x by itself."""
    x = linear.sample(7)
    p = linear.posterior(x)
    found = rate_distortion(linear, x, 20_000, posterior=linear.posterior)
    trace = linear.weight @ p.covariance_matrix[0] @ linear.weight.T
    residual = x - p.mean @ linear.weight.T - linear.mean
    square = residual.square().sum(1) + trace.trace()
    variance = linear.noise_scale.square()
    exact = 2.5 * (2 * math.pi * variance).log() + square / (2 * variance)
    assert found.rate_is_exact
    torch.testing.assert_close(found.rate, kl(p, linear.prior()), rtol=0, atol=1e-10)
    # One draw of the distortion has a standard deviation below 3, so the mean one below 0.0212.
    assert (found.distortion - exact).abs().max() < Z_LIMIT * 0.0212
    torch.testing.assert_close(found.elbo, -found.distortion - found.rate, rtol=0, atol=0)
    gap = found.elbo - linear.log_evidence(x)
    assert gap.abs().max() < Z_LIMIT * 0.0212


def test_mean_terms_are_the_means(float64):
    vae, x = some_vae(), torch.randn(30, 6)
    torch.manual_seed(1)
    found = rate_distortion(vae, x, 3, batch_size=7)
    torch.manual_seed(1)
    terms = mean_terms(vae, x, 3, batch_size=7)
    assert terms["kl"] == pytest.approx(found.rate.mean().item())
    assert terms["reconstruction"] == pytest.approx(-found.distortion.mean().item())
    assert terms["elbo"] == pytest.approx(found.elbo.mean().item())


def test_rate_from_draws_says_so(float64):
    class Mixed(StandardNormal):
        def forward(self):
            return td.MixtureSameFamily(
                td.Categorical(torch.ones(2)), normals(torch.zeros(2, 3), torch.ones(2, 3))
            )

    vae = some_vae()
    exact = rate_distortion(vae, torch.randn(4, 6))
    vae.prior = Mixed(3)
    assert exact.rate_is_exact and not rate_distortion(vae, torch.randn(4, 6)).rate_is_exact


def test_kl_per_dimension_adds_up(float64):
    q = normals(torch.randn(4, 3), torch.rand(4, 3) + 0.1)
    p = StandardNormal(3)()
    by_hand = 0.5 * (q.mean**2 + q.variance - 1 - q.variance.log())
    torch.testing.assert_close(kl_per_dimension(q, p), by_hand, rtol=0, atol=1e-12)
    torch.testing.assert_close(kl_per_dimension(q, p).sum(1), kl(q, p), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("q", "p", "message"),
    [
        (FullNormal(2)(torch.zeros(3, 5)), StandardNormal(2)(), "q must be a product"),
        (DiagonalNormal(2)(torch.zeros(3, 4)), FullNormal(2)(torch.zeros(5)), "p must be a pro"),
        (DiagonalNormal(2)(torch.zeros(3, 4)), StandardNormal(3)(), "same event shape"),
        (
            td.Independent(td.Laplace(torch.zeros(3, 2), torch.ones(3, 2)), 1),
            td.Independent(td.StudentT(torch.ones(2)), 1),
            r"KL\(Laplace \|\| StudentT\) has no closed form",
        ),
    ],
)
def test_no_kl_per_dimension(q, p, message, device):
    if device.type != "cpu":
        pytest.skip("the distributions were made on the CPU")
    with pytest.raises(ValueError, match=message):
        kl_per_dimension(q, p)


def test_active_units_of_the_linear_model(linear):
    """Var_x E[z|x] = M⁻¹ Wᵀ C W M⁻¹ with C the data covariance (1/N): by hand, to rounding."""
    x = linear.sample(50)
    found = active_units(linear, x, posterior=linear.posterior)
    precision = linear.weight.T @ linear.weight + linear.noise_scale.square() * torch.eye(2)
    encoder = torch.linalg.solve(precision, linear.weight.T)
    covariance = encoder @ torch.cov(x.T, correction=0) @ encoder.T
    torch.testing.assert_close(found.variance, covariance.diagonal(), rtol=0, atol=1e-12)
    assert found.count == 2 and found.active.all()
    between = found.variance.mean().item()
    assert active_units(linear, x, between, posterior=linear.posterior).count == 1


def test_a_collapsed_dimension_is_not_active(float64):
    """Its mean is the same for every x, wherever that is; an active one may be narrow or wide."""
    vae, x = some_vae(), torch.randn(40, 6)
    with torch.no_grad():
        last = vae.encoder[0][-1]
        last.weight[1], last.bias[1] = 0.0, 5.0
        last.weight[0], last.weight[2] = 10 * last.weight[0], 10 * last.weight[2]
    assert active_units(vae, x).active.tolist() == [True, False, True]
    assert vae.training
    torch.testing.assert_close(active_units(vae, x, batch_size=7).variance[1], torch.zeros(()))


def test_the_aggregate_is_the_mean_of_the_densities(float64, monkeypatch):
    q = normals(torch.randn(6, 2), torch.rand(6, 2) + 0.2)
    z = torch.randn(3, 4, 2)
    expected = q.log_prob(z.unsqueeze(-2)).exp().mean(-1).log()
    for limit in (1, 7, 2**20):  # chunks of one draw, some, all
        monkeypatch.setattr(priors, "_AT_ONCE", limit)
        found = aggregate_posterior(Prior(2), torch.zeros(6, 1), posterior=as_encoder(q))
        torch.testing.assert_close(found.log_prob(z), expected, rtol=0, atol=1e-12)
        assert found.sample((2, 3)).shape == (2, 3, 2)
    assert found.log_prob(z[0, 0]).shape == ()


def test_draws_of_the_aggregate(float64, monkeypatch):
    monkeypatch.setattr(priors, "_AT_ONCE", 1000)
    q = normals(torch.tensor([[-3.0], [1.0], [5.0]]), torch.tensor([[0.5], [1.0], [0.1]]))
    aggregate = aggregate_posterior(Prior(1), torch.zeros(3, 1), posterior=as_encoder(q))
    z = aggregate.sample((20_000,))
    for value, truth in ((z, q.mean.mean()), (z**2, (q.variance + q.mean**2).mean())):
        assert z_score(value, truth) < Z_LIMIT


def by_quadrature(q):
    """Information and marginal KL of normals over one number, on a fine grid."""
    z = torch.linspace(-12, 12, 20_001)
    each = q.log_prob(z.view(-1, 1, 1))  # (grid, N)
    aggregate = each.exp().mean(1)
    step = z[1] - z[0]
    information = (each.exp() * (each - aggregate.log().unsqueeze(1))).nan_to_num().sum(0) * step
    prior = td.Normal(0.0, 1.0).log_prob(z)
    divergence = (aggregate * (aggregate.log() - prior)).nan_to_num().sum() * step
    return information.mean().item(), divergence.item()


def test_surgery_against_quadrature(float64):
    q = normals(
        torch.tensor([[-1.5], [0.0], [0.3], [2.0]]), torch.tensor([[0.5], [1.0], [0.2], [0.7]])
    )
    information, divergence = by_quadrature(q)
    found = surgery(Prior(1), torch.zeros(4, 1), 20_000, posterior=as_encoder(q))
    for name, truth in (("mutual_information", information), ("marginal_kl", divergence)):
        assert abs(getattr(found, name) - truth) < Z_LIMIT * found.standard_error[name]
        assert 0 < found.standard_error[name] < 0.01
    assert found.rate == pytest.approx(information + divergence, abs=1e-7)
    assert found.standard_error["rate"] == 0.0
    names = ["rate", "mutual_information", "information_upper", "marginal_kl"]
    assert list(found.frame.index) == names


def test_surgery_without_a_closed_form(float64, monkeypatch):
    """The rate under a mixture, by quadrature; and the split adds up draw by draw."""
    prior = MixturePrior(1, 3)
    q = normals(torch.tensor([[-1.5], [0.3], [2.0]]), torch.tensor([[0.5], [0.2], [0.7]]))
    z = torch.linspace(-15, 15, 20_001)
    each = q.log_prob(z.view(-1, 1, 1))
    terms = each.exp() * (each - prior().log_prob(z.unsqueeze(-1)).unsqueeze(1))
    exact = terms.sum().item() * (z[1] - z[0]).item() / 3
    model = Prior(1)
    model.prior = prior
    monkeypatch.setattr(rates, "AT_ONCE", 700)  # the densities of the prior in several parts
    found = surgery(model, torch.zeros(3, 1), 20_000, posterior=as_encoder(q))
    assert found.rate == pytest.approx(found.mutual_information + found.marginal_kl, abs=1e-12)
    assert 0 < found.standard_error["rate"] < 0.02
    assert abs(found.rate - exact) < Z_LIMIT * found.standard_error["rate"]


def test_the_upper_information_leaves_the_own_example_out(float64):
    """By hand, with the draws that the seed gives."""
    q = normals(torch.randn(6, 2), torch.rand(6, 2) + 0.3)
    found = surgery(Prior(2), torch.zeros(6, 1), 5, posterior=as_encoder(q), seed=1)
    torch.manual_seed(1)
    z = q.rsample((5,))
    each = q.log_prob(z.unsqueeze(-2)).exp()  # (5, 6, 6): the density of every example
    own = torch.eye(6).bool()
    others = each.masked_fill(own, 0).sum(-1) / 5
    terms = each.diagonal(dim1=1, dim2=2).log() - others.log()
    assert found.information_upper == pytest.approx(terms.mean().item(), abs=1e-12)
    lower = each.diagonal(dim1=1, dim2=2).log() - each.mean(-1).log()
    assert found.mutual_information == pytest.approx(lower.mean().item(), abs=1e-12)


def test_two_estimates_bracket_the_information_of_the_population():
    """x ~ N(0, I), q = N(x, s²): I = D/2 ln(1 + 1/s²). Low and high on average, 300 data sets."""
    narrow = torch.full((20, 2), 0.5)
    model, exact = Prior(2), math.log(1 + 1 / 0.5**2)
    runs = [
        surgery(model, x, 2, posterior=lambda x: normals(x, narrow), seed=i)
        for i, x in enumerate(torch.randn(300, 20, 2))
    ]
    low = torch.tensor([run.mutual_information for run in runs])
    high = torch.tensor([run.information_upper for run in runs])
    for excess in (exact - low, high - exact):
        assert excess.mean() > Z_LIMIT * excess.std() / 300**0.5
    assert exact - low.mean() < 1 and high.mean() - exact < 2


def test_the_standard_error_of_the_surgery(float64):
    """It is the spread over seeds: 300 repetitions know that to 4 %."""
    q = normals(torch.randn(5, 1), torch.rand(5, 1) + 0.3)
    runs = [
        surgery(Prior(1), torch.zeros(5, 1), 20, posterior=as_encoder(q), seed=i)
        for i in range(300)
    ]
    for name in ("mutual_information", "marginal_kl"):
        values = torch.tensor([getattr(run, name) for run in runs])
        claimed = torch.tensor([run.standard_error[name] for run in runs])
        assert claimed.mean().item() == pytest.approx(values.std().item(), rel=0.2)


def test_information_has_its_ends(float64):
    """Nothing where all posteriors are one, log N where they are far apart; nothing is clamped."""
    same = normals(torch.ones(8, 2), torch.full((8, 2), 0.5))
    found = surgery(Prior(2), torch.zeros(8, 1), posterior=as_encoder(same))
    assert abs(found.mutual_information) < 1e-12
    apart = normals(100.0 * torch.arange(8.0).unsqueeze(1), torch.ones(8, 1))
    found = surgery(Prior(1), torch.zeros(8, 1), posterior=as_encoder(apart))
    assert found.mutual_information == pytest.approx(math.log(8), abs=1e-9)
    close = normals(1e-3 * torch.randn(8, 1), torch.ones(8, 1))
    signs = [
        surgery(Prior(1), torch.zeros(8, 1), 2, posterior=as_encoder(close), seed=i)
        for i in range(20)
    ]
    assert min(run.mutual_information for run in signs) < 0


def test_surgery_of_a_linear_encoder_on_gaussian_data(linear):
    """x ~ N(μ, C), q = N(A(x - μ) + b, V): the aggregate is N(b, A C Aᵀ + V), all in closed form.

    The examples are 3,000 of a population, so their spread is added to the noise of the draws. Own
    components lower the information by about χ²(q(z|x) || q(z)) / 2N, below 0.005 here.
    """
    shift = torch.tensor([0.5, -0.2])
    scale = torch.tensor([0.6, 0.9])

    def encoder(x):
        return normals(0.8 * linear.posterior(x).mean + shift, scale.expand(len(x), 2))

    covariance = linear.weight @ linear.weight.T + linear.noise_scale.square() * torch.eye(5)
    axes = torch.eye(5)
    matrix = encoder(linear.mean + axes).mean - encoder(linear.mean.unsqueeze(0)).mean
    aggregate = td.MultivariateNormal(
        shift, matrix.T @ covariance @ matrix + scale.square().diag()
    )
    noise = scale.square().log().sum()
    information = 0.5 * (torch.logdet(aggregate.covariance_matrix) - noise).item()
    divergence = td.kl_divergence(aggregate, linear.prior()).item()

    x = linear.sample(3_000)
    found = surgery(linear, x, 2, posterior=encoder)
    q = encoder(x)
    spread = kl(q, linear.prior()).std().item() / 3_000**0.5
    assert abs(found.rate - information - divergence) < Z_LIMIT * spread
    for name, truth in (("mutual_information", information), ("marginal_kl", divergence)):
        error = math.hypot(found.standard_error[name], spread)
        assert abs(getattr(found, name) - truth) < Z_LIMIT * error + 0.005
    closed = found.mutual_information + found.marginal_kl - found.rate
    assert abs(closed) < Z_LIMIT * sum(found.standard_error.values())


def test_a_few_examples_cap_the_information(linear):
    """What a minibatch of B makes of it: at most log B, and less than the whole data set gives."""
    x = linear.sample(1_000)
    narrow = lambda x: normals(linear.posterior(x).mean, torch.full((len(x), 2), 0.01))
    whole = surgery(linear, x, 2, posterior=narrow)
    few = surgery(linear, x[:10], 20, posterior=narrow)
    assert few.mutual_information <= math.log(10) < whole.mutual_information - 1
    assert few.n_examples == 10


def test_the_random_state_is_left_alone(float64):
    vae, x = some_vae(), torch.randn(5, 6)
    before = torch.get_rng_state()
    first, second = surgery(vae, x, seed=3), surgery(vae, x, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert first == second and first != surgery(vae, x, seed=4)
    grey = Images(torch.rand(5, 6).float(), torch.zeros(5).long(), "dynamic", "grey", (2, 3))
    vae = some_vae().float()
    before = torch.get_rng_state()
    first = surgery(vae, grey, seed=3)
    torch.rand(1)
    assert first == surgery(vae, grey, seed=3)
    torch.set_rng_state(before)
    surgery(vae, grey, seed=3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("measure", [rate_distortion, active_units, surgery, aggregate_posterior])
def test_everything_runs_in_eval_mode_and_without_gradient(measure, given):
    """The model's own encoder, or one that is no part of it; modes are put back."""
    vae, x, seen = some_vae(), torch.randn(5, 6), []
    encoder = some_vae().encoder if given else vae.encoder
    parts = (encoder, vae.decoder)
    for part in parts:
        part.register_forward_hook(
            lambda m, *_: seen.append((m.training, torch.is_grad_enabled()))
        )
    vae.decoder.eval()
    found = measure(vae, x, posterior=encoder if given else None)
    assert len(seen) >= 1 and set(seen) == {(False, False)}
    assert [part.training for part in parts] == [True, False]
    if isinstance(found, td.Distribution):
        assert not found.log_prob(torch.zeros(3)).requires_grad


def test_bad_input(linear, float64):
    x = linear.sample(4)
    vae = some_vae()
    with pytest.raises(ValueError, match="LinearGaussian has no encoder: pass posterior="):
        rate_distortion(linear, x)
    with pytest.raises(ValueError, match="n_samples must be an integer of at least 2, found 1"):
        surgery(linear, x, 1, posterior=linear.posterior)
    with pytest.raises(ValueError, match="at least two examples"):
        active_units(linear, x[:1], posterior=linear.posterior)
    with pytest.raises(ValueError, match="threshold must be a finite number above 0"):
        active_units(linear, x, 0.0, posterior=linear.posterior)
    with pytest.raises(ValueError, match="x holds 1 values that are NaN"):
        rate_distortion(vae, torch.tensor([[torch.nan, 0, 0, 0, 0, 0]]))
    with pytest.raises(ValueError, match="must have prior"):
        surgery(nn.Linear(1, 1), torch.randn(3, 1), posterior=linear.posterior)
    with pytest.raises(ValueError, match="at least two examples to be told apart, found 1"):
        surgery(linear, x[:1], posterior=linear.posterior)
    for measure in (rate_distortion, active_units, surgery, aggregate_posterior):
        for wrong in (lambda x: vae.encoder(x[:3]), as_encoder(StandardNormal(3)()), torch.sin):
            with pytest.raises(ValueError, match=r"posterior must give .* batch shape \(4,\)"):
                measure(vae, torch.randn(4, 6), posterior=wrong)
    for measure in (rate_distortion, active_units):
        with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
            measure(vae, torch.randn(4, 6), batch_size=0)

    class NoMean(td.Distribution):
        arg_constraints: ClassVar = {}

    with pytest.raises(ValueError, match="q must have a mean in closed form, found NoMean"):
        no_mean = NoMean(torch.Size([2]), validate_args=False)
        active_units(vae, torch.randn(2, 6), posterior=as_encoder(no_mean))


@pytest.mark.parametrize("measure", [active_units, aggregate_posterior])
def test_padding_is_no_latent_variable(measure, float64):
    encoder = RecurrentEncoder(2, 4, 1)
    decoder = nn.Sequential(mlp(1, 2), Normal(2))
    transition = nn.Sequential(mlp(1, 2), DiagonalNormal(1))
    model = SequenceVAE(encoder, decoder, transition, StandardNormal(1))
    measure(model, pad([torch.randn(3, 2), torch.randn(3, 2)]))
    with pytest.raises(ValueError, match="sequences of one length, found padding"):
        measure(model, pad([torch.randn(3, 2), torch.randn(2, 2)]))
