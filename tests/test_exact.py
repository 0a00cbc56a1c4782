"""The exact models against scipy, quadrature, scikit-learn and published formulas."""

import copy

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import Z_LIMIT, z_score
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from vaetutor import (
    BayesianLinearRegression,
    ConjugateNormal,
    LinearGaussian,
    digits,
    kl,
    mean_field,
    mean_field_gap,
)
from vaetutor.model import LatentVariableModel, TwoTermModel

# Computed independently: scikit-learn digits, raw values 0..16, nats per datum.
ANCHORS = [
    # q, sigma^2, maximum log-likelihood, mean KL = 1/2 sum ln(l_i / sigma^2)
    (1, 16.231292, -181.194141851, 1.199963),
    (2, 13.853948, -177.439971498, 2.513657),
    (10, 5.824351, -159.993731201, 12.796141),
    (20, 2.886195, -150.168378294, 25.438269),
]


@pytest.fixture
def small(float64):
    return LinearGaussian(torch.randn(5, 2), torch.randn(5), 0.7)


@pytest.fixture
def x(float64, device):
    return digits().x.double().to(device)


@pytest.mark.parametrize(("q", "variance", "log_likelihood", "mean_kl"), ANCHORS)
def test_maximum_likelihood_on_digits(x, q, variance, log_likelihood, mean_kl):
    model = LinearGaussian.fit(x, q)
    assert model.noise_scale.item() ** 2 == pytest.approx(variance, abs=5e-7)
    assert model.log_evidence(x).mean().item() == pytest.approx(log_likelihood, abs=5e-9)
    kls = kl(model.posterior(x), model.prior())
    assert kls.mean().item() == pytest.approx(mean_kl, abs=5e-7)


@pytest.mark.parametrize("q", [1, 2, 10, 20])
def test_maximum_likelihood_is_the_formula_of_tipping_and_bishop(x, q):
    values = np.linalg.eigvalsh(np.cov(x.cpu().numpy().T, bias=True))[::-1]
    d, variance = 64, values[q:].mean()
    logs = np.log(values[:q]).sum() + (d - q) * np.log(variance)
    expected = -0.5 * (d * np.log(2 * np.pi) + logs + d)
    assert LinearGaussian.fit(x, q).log_evidence(x).mean().item() == pytest.approx(
        expected, abs=1e-9
    )


def test_scikit_learn_agrees_up_to_its_normalisation(x):
    ours = LinearGaussian.fit(x, 10).log_evidence(x).mean().item()
    theirs = PCA(10, svd_solver="full").fit(x.cpu().numpy()).score(x.cpu().numpy())
    assert 0 < ours - theirs < 1e-5  # it divides by n - 1, so it is not the maximum


def test_no_direction_improves_the_fit(x):
    """The gradient of the mean log-likelihood is zero at the closed-form optimum."""
    fitted = LinearGaussian.fit(x, 3)
    weight = fitted.weight.clone().requires_grad_()
    mean = fitted.mean.clone().requires_grad_()
    scale = fitted.noise_scale.clone().requires_grad_()
    covariance = weight @ weight.T + scale**2 * torch.eye(64)
    torch.distributions.MultivariateNormal(mean, covariance).log_prob(x).mean().backward()
    for gradient in (weight.grad, mean.grad, scale.grad):
        assert gradient.abs().max() < 1e-9


def test_evidence_is_the_dense_normal(small):
    x = small.sample(20)
    w, mean, s = (t.cpu().numpy() for t in (small.weight, small.mean, small.noise_scale))
    dense = scipy.stats.multivariate_normal(mean, w @ w.T + s**2 * np.eye(5))
    np.testing.assert_allclose(
        small.log_evidence(x).cpu().numpy(), dense.logpdf(x.cpu().numpy()), rtol=1e-10
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: None,
        lambda: ConjugateNormal(2.0, 0.5).double(),
        lambda: BayesianLinearRegression(torch.randn(6, 3), 0.8, 1.7),
    ],
)
def test_bayes_rule_holds_for_every_z(small, make):
    """log p(x, z) - log p(z|x) is log p(x), whatever z."""
    model = make() or small
    x = model.sample(7)
    z = torch.randn(50, 7, *model.prior().event_shape) * 3
    difference = model.log_joint(x, z) - model.posterior(x).log_prob(z)
    torch.testing.assert_close(difference, model.log_evidence(x).expand(50, 7), rtol=0, atol=1e-10)


def test_one_z_serves_every_x(small):
    x, z = small.sample(7), torch.randn(50, 1, 2)
    joint = small.log_joint(x, z)
    torch.testing.assert_close(joint, small.log_joint(x, z.expand(50, 7, 2)), rtol=0, atol=0)
    with pytest.raises(ValueError, match="x has 7 rows but .* for 3"):
        small.log_joint(x, torch.randn(50, 3, 2))


def test_posterior_is_diagonal_only_for_orthogonal_columns(x):
    fitted = LinearGaussian.fit(x, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    rotated = LinearGaussian(fitted.weight @ rotation, fitted.mean, fitted.noise_scale)
    torch.testing.assert_close(rotated.log_evidence(x), fitted.log_evidence(x))
    off = lambda model: (c := model.posterior(x[:1]).covariance_matrix[0]) - c.diag().diag()
    assert off(fitted).abs().max() < 1e-12
    assert off(rotated).abs().max() > 1e-3


def test_conjugate_posterior_by_quadrature(float64):
    model = ConjugateNormal(prior_scale=1.3, noise_scale=0.6).double()
    x = torch.tensor([[1.5]])
    grid = torch.linspace(-10, 10, 20_001)
    joint = model.log_joint(x, grid.reshape(-1, 1, 1))[:, 0].exp()
    evidence = torch.trapezoid(joint, grid)
    mean = torch.trapezoid(grid * joint, grid) / evidence
    variance = torch.trapezoid((grid - mean) ** 2 * joint, grid) / evidence
    assert model.log_evidence(x).item() == pytest.approx(evidence.log().item(), abs=1e-10)
    assert model.posterior(x).mean.item() == pytest.approx(mean.item(), abs=1e-10)
    assert model.posterior(x).variance.item() == pytest.approx(variance.item(), abs=1e-10)


def test_the_standard_conjugate_example(float64):
    posterior = ConjugateNormal().double().posterior(torch.tensor([[1.5]]))
    assert (posterior.mean.item(), posterior.variance.item()) == pytest.approx((0.75, 0.5))


def test_draws_have_the_moments_of_the_evidence(small):
    x = small.sample(100_000) - small.mean
    assert z_score(x, 0.0) < Z_LIMIT
    covariance = small.weight @ small.weight.T + small.noise_scale**2 * torch.eye(5)
    assert z_score(x.unsqueeze(-1) * x.unsqueeze(-2), covariance) < Z_LIMIT
    x = ConjugateNormal(2.0, 0.5).double().sample(100_000)
    assert z_score(x**2, 4.25) < Z_LIMIT


def test_draws_repeat_with_a_generator(small, device):
    draw = lambda: small.sample(3, torch.Generator(device).manual_seed(1))
    assert torch.equal(draw(), draw())


def test_exact_values_stay_exact_under_autocast(device):
    model = LinearGaussian(torch.randn(6, 3), torch.randn(6), 0.8)
    x = model.sample(9)
    q = model.posterior(x)
    z = q.sample((4,))
    with torch.autocast(device.type, torch.bfloat16):
        narrow = model.log_evidence(x), model.log_likelihood(x, z), model.posterior(x).mean
    wide = model.log_evidence(x), model.log_likelihood(x, z), q.mean
    for a, b in zip(narrow, wide, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_model_does_not_share_memory_with_what_made_it():
    weight = torch.randn(5, 2)
    model = LinearGaussian(weight, torch.zeros(5), 1.0)
    before = model.weight.clone()
    weight.zero_()
    assert torch.equal(model.weight, before)


def test_draws_of_another_shape_are_refused(small):
    x = small.sample(4)
    for z in (torch.zeros(4, 2), torch.zeros(3, 4, 1), torch.zeros(3, 4, 3), torch.zeros(4)):
        with pytest.raises(ValueError, match="z must have"):
            small.log_joint(x, z)
    with pytest.raises(ValueError, match="z must have"):
        ConjugateNormal().double().log_joint(torch.zeros(5, 1), torch.zeros(5, 1))


def test_protocols(small):
    for model in (small, ConjugateNormal(), BayesianLinearRegression(torch.ones(3, 2), 1.0)):
        assert isinstance(model, LatentVariableModel) and isinstance(model, TwoTermModel)


def test_fit_keeps_the_dtype_of_the_data(x):
    fitted = LinearGaussian.fit(x.float(), 2)
    assert fitted.weight.dtype == torch.float32
    assert fitted.log_evidence(x.float()).mean().item() == pytest.approx(ANCHORS[1][2], abs=1e-3)


@pytest.mark.parametrize("latent_dim", [0, 64, 65, 1.0])
def test_fit_refuses_impossible_sizes(x, latent_dim):
    with pytest.raises(ValueError, match="latent_dim must be"):
        LinearGaussian.fit(x, latent_dim)


def test_fit_refuses_data_without_noise():
    flat = torch.randn(100, 2) @ torch.randn(2, 5)
    with pytest.raises(ValueError, match="no more than latent_dim = 2 directions"):
        LinearGaussian.fit(flat.double(), 2)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 4), "x must have shape"),
        (torch.zeros(0, 5), "at least one example"),
        (torch.full((3, 5), float("nan")), "15 values that are NaN or infinite"),
        ([[0.0]], "x must be a torch.Tensor"),
    ],
)
def test_bad_observations_are_refused(x, message):
    model = LinearGaussian(torch.randn(5, 2), torch.randn(5), 0.7)
    x = x.to(model.weight.device) if isinstance(x, torch.Tensor) else x
    with pytest.raises(ValueError, match=message):
        model.log_evidence(x)
    with pytest.raises(ValueError, match=message):
        model.posterior(x)


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="weight must have shape"):
        LinearGaussian(torch.zeros(5, 2), torch.zeros(4), 1.0)
    with pytest.raises(ValueError, match="floating-point dtype"):
        LinearGaussian(torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5), 1.0)
    with pytest.raises(ValueError, match="noise_scale must be"):
        LinearGaussian(torch.zeros(5, 2), torch.zeros(5), 0.0)
    with pytest.raises(ValueError, match="prior_scale must be"):
        ConjugateNormal(-1.0)


# Bayesian linear regression, and the best mean-field normal


@pytest.fixture
def regression(float64):
    design = torch.stack([torch.ones(7), torch.linspace(1.0, 5.0, 7)], dim=1)
    return BayesianLinearRegression(design, noise_scale=0.8, prior_scale=1.5)


def test_regression_evidence_is_the_dense_normal(regression):
    x = regression.sample(20)
    design = regression.design.cpu().numpy()
    dense = scipy.stats.multivariate_normal(
        np.zeros(7), 1.5**2 * design @ design.T + 0.8**2 * np.eye(7)
    )
    np.testing.assert_allclose(
        regression.log_evidence(x).cpu().numpy(), dense.logpdf(x.cpu().numpy()), rtol=1e-10
    )


def test_regression_posterior_is_ridge_regression(regression):
    """The posterior mean is scikit-learn's ridge estimate with penalty (noise / prior)²."""
    x = regression.sample(5)
    ridge = Ridge(alpha=(0.8 / 1.5) ** 2, fit_intercept=False, solver="cholesky")
    ridge.fit(regression.design.cpu().numpy(), x.T.cpu().numpy())
    np.testing.assert_allclose(
        regression.posterior(x).mean.cpu().numpy(), ridge.coef_, rtol=1e-9, atol=1e-10
    )


def test_regression_draws_have_the_moments_of_the_evidence(regression):
    x = regression.sample(100_000)
    design = regression.design
    covariance = 1.5**2 * design @ design.T + 0.8**2 * torch.eye(7)
    assert z_score(x.unsqueeze(-1) * x.unsqueeze(-2), covariance) < Z_LIMIT


def test_regression_weights_are_correlated_when_inputs_are_not_centred(regression):
    covariance = regression.posterior(regression.sample(2)).covariance_matrix
    assert (covariance[:, 0, 1] < -0.5 * (covariance[:, 0, 0] * covariance[:, 1, 1]).sqrt()).all()
    centred = regression.design - torch.tensor([0.0, 3.0])
    model = BayesianLinearRegression(centred, 0.8, 1.5)
    assert model.posterior(model.sample(1)).covariance_matrix[0, 0, 1].abs() < 1e-12


@pytest.mark.parametrize(
    ("inputs", "noise", "prior"),
    [((0.0, 1000.0, 50), 0.1, 1.0), ((2000.0, 2020.0, 20), 0.5, 10.0)],
)
def test_regression_is_right_in_float32_far_from_the_origin(inputs, noise, prior):
    """Its evidence is a difference of numbers up to 10^9 times as large."""
    design = torch.stack([torch.ones(inputs[2]), torch.linspace(*inputs)], dim=1)
    model = BayesianLinearRegression(design, noise, prior)
    x = model.sample(50)
    wide = copy.deepcopy(model).double()
    expected = wide.log_evidence(x.double())
    assert model.log_evidence(x).dtype == torch.float32
    torch.testing.assert_close(model.log_evidence(x), expected.float(), rtol=1e-6, atol=1e-6)
    p, exact = model.posterior(x), wide.posterior(x.double())
    assert p.mean.dtype == p.scale_tril.dtype == torch.float32
    torch.testing.assert_close(p.mean, exact.mean.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(p.scale_tril, exact.scale_tril.float(), rtol=1e-6, atol=0)
    precision = design.T.double() @ design.double() / wide.noise_scale**2
    precision = precision + torch.eye(2, dtype=torch.float64) / prior**2
    covariance = exact.covariance_matrix[0]
    torch.testing.assert_close(covariance @ precision, torch.eye(2).double(), rtol=0, atol=1e-5)


def test_linear_evidence_is_right_in_float32_with_little_noise():
    model = LinearGaussian(torch.randn(784, 20), torch.zeros(784), 0.01)
    x = model.sample(20)
    expected = copy.deepcopy(model).double().log_evidence(x.double())
    torch.testing.assert_close(model.log_evidence(x), expected.float(), rtol=1e-6, atol=0)


def test_regression_stays_exact_under_autocast(device):
    model = BayesianLinearRegression(torch.randn(20, 3), 0.3)
    x, z = model.sample(4), torch.randn(5, 4, 3)
    values = lambda: (
        model.log_evidence(x),
        model.log_likelihood(x, z),
        model.posterior(x).mean,
        model.posterior(x).scale_tril,
        mean_field(model.posterior(x)).variance,
        mean_field_gap(model.posterior(x)),
    )
    wide = values()
    with torch.autocast(device.type, torch.bfloat16):
        narrow = values()
    torch.testing.assert_close(narrow, wide, rtol=0, atol=0)


@pytest.mark.parametrize(
    "model",
    [
        ConjugateNormal(),
        LinearGaussian(torch.ones(3, 2), torch.zeros(3), 1.0),
        BayesianLinearRegression(torch.ones(3, 2), 1.0),
    ],
    ids=lambda model: type(model).__name__,
)
def test_data_of_another_dtype_are_refused(model, device):
    model = copy.deepcopy(model).to(device)
    x = model.sample(2).double()
    z = torch.zeros(1, 2, *model.prior().event_shape)
    for wrong in (model.log_evidence, model.posterior, lambda x: model.log_joint(x, z)):
        with pytest.raises(ValueError, match="x must have the dtype of the model, torch.float32"):
            wrong(x)
    assert model.double().log_evidence(x).dtype == torch.float64


def test_regression_refuses_bad_parameters(regression):
    for design, message in [
        (torch.zeros(5), "design must have shape"),
        (torch.zeros(5, 2, dtype=torch.int64), "design must hold floating-point"),
        (torch.full((5, 2), torch.nan), "design holds 10 values"),
        (torch.zeros(0, 2), "design must hold at least one"),
    ]:
        with pytest.raises(ValueError, match=message):
            BayesianLinearRegression(design, 1.0)
    for scales in ((0.0, 1.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match="_scale must be a finite number above 0"):
            BayesianLinearRegression(torch.ones(5, 2), *scales)
    with pytest.raises(ValueError, match="x must have shape"):
        regression.posterior(torch.zeros(3, 6))
    with pytest.raises(ValueError, match="x must have shape"):
        regression.log_evidence(torch.zeros(3, 6))
    with pytest.raises(ValueError, match="z must have 2 latent dimensions"):
        regression.log_joint(torch.zeros(3, 7), torch.zeros(4, 3, 7))
    with pytest.raises(ValueError, match="n must be"):
        regression.sample(0)


def random_normal(batch, dim):
    factor = torch.randn(batch, dim, dim).tril(-1) + torch.diag_embed(0.5 + torch.rand(batch, dim))
    return torch.distributions.MultivariateNormal(torch.randn(batch, dim), scale_tril=factor)


def test_mean_field_variances_are_inverse_precisions(float64):
    p = random_normal(6, 4)
    q = mean_field(p)
    precision = np.linalg.inv(p.covariance_matrix.cpu().numpy())
    expected = 1 / np.diagonal(precision, axis1=1, axis2=2)
    np.testing.assert_allclose(q.variance.cpu().numpy(), expected, rtol=1e-9)
    assert torch.equal(q.mean, p.mean)
    assert (q.variance <= p.variance + 1e-12).all()


def test_mean_field_gap_is_the_divergence_of_mean_field(float64):
    p = random_normal(6, 4)
    torch.testing.assert_close(mean_field_gap(p), kl(mean_field(p), p), rtol=0, atol=1e-10)
    signs, log_dets = np.linalg.slogdet(np.linalg.inv(p.covariance_matrix.cpu().numpy()))
    diagonal = np.linalg.inv(p.covariance_matrix.cpu().numpy()).diagonal(axis1=1, axis2=2)
    expected = 0.5 * (np.log(diagonal).sum(1) - log_dets)
    assert (signs == 1).all()
    np.testing.assert_allclose(mean_field_gap(p).cpu().numpy(), expected, rtol=1e-9, atol=1e-10)


def test_no_diagonal_normal_comes_closer_than_mean_field(float64):
    """The gradient of KL(q || p) over mean and log scale is zero at q, and nearby is farther."""
    p = random_normal(5, 3)
    mean = mean_field(p).mean.clone().requires_grad_()
    log_scale = mean_field(p).stddev.log().requires_grad_()
    normal = lambda m, s: torch.distributions.Independent(torch.distributions.Normal(m, s), 1)
    kl(normal(mean, log_scale.exp()), p).sum().backward()
    assert mean.grad.abs().max() < 1e-10 and log_scale.grad.abs().max() < 1e-10
    for _ in range(20):
        other = normal(mean.detach(), (log_scale.detach() + 0.1 * torch.randn(5, 3)).exp())
        assert (kl(other, p) > mean_field_gap(p)).all()


@pytest.mark.parametrize("rho", [0.0, 0.5, -0.9, 0.99])
def test_two_correlated_numbers_cost_the_known_gap(float64, rho):
    covariance = torch.tensor([[[1.0, rho], [rho, 1.0]]])
    p = torch.distributions.MultivariateNormal(torch.zeros(1, 2), covariance)
    assert mean_field_gap(p).item() == pytest.approx(-0.5 * np.log(1 - rho**2), abs=1e-10)
    assert mean_field(p).variance[0].tolist() == pytest.approx([1 - rho**2] * 2, abs=1e-12)


def test_mean_field_refuses_what_is_not_a_normal():
    q = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(1, 2), 1.0), 1)
    for function in (mean_field, mean_field_gap):
        with pytest.raises(ValueError, match="p must be a MultivariateNormal, found Independent"):
            function(q)
