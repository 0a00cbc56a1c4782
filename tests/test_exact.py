"""The exact models against scipy, quadrature, scikit-learn and published formulas."""

import copy
import re

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


# Fixed noise and a weight on the KL: which directions survive, and what they cost


def eigenvalues(x):
    return np.linalg.eigvalsh(np.cov(x.cpu().numpy().T, bias=True))[::-1]


def weighted_elbo(model, x, beta):
    """E_q[log p(x|z)] - beta KL(q || p(z)) at the best q, from the moments of q alone."""
    q = model.posterior(x, beta)
    residual = x - model.mean - q.mean @ model.weight.T
    spread = torch.trace(model.weight @ q.covariance_matrix[0] @ model.weight.T)
    variance = model.noise_scale**2
    square = residual.square().sum(1) + spread
    fit = -0.5 * (square / variance + x.shape[1] * torch.log(2 * torch.pi * variance))
    return fit, kl(q, model.prior())


@pytest.mark.parametrize(("variance", "survivors"), [(1, 20), (5, 20), (20, 14), (50, 7)])
def test_survivors_of_fixed_noise_on_digits(x, variance, survivors):
    """Counts computed independently, and squared lengths l_i - sigma^2 of the columns."""
    model = LinearGaussian.fit(x, 20, noise_scale=variance**0.5)
    lengths = model.weight.square().sum(0).cpu().numpy()
    assert (lengths > 0).sum() == survivors
    np.testing.assert_allclose(
        lengths, np.maximum(eigenvalues(x)[:20] - variance, 0), rtol=1e-9, atol=1e-9
    )
    assert model.noise_scale.item() == pytest.approx(variance**0.5, rel=1e-12)


@pytest.mark.parametrize(("variance", "beta"), [(1.0, 20.0), (5.0, 4.0), (40.0, 0.5)])
def test_a_direction_survives_iff_it_exceeds_beta_times_the_noise(x, variance, beta):
    model = LinearGaussian.fit(x, 20, variance**0.5, beta)
    lengths = model.weight.square().sum(0)
    assert int((lengths > 0).sum()) == (eigenvalues(x) > 20).sum() == 14
    assert model.noise_scale.item() == pytest.approx(variance**0.5)  # not that of the weight


def test_noise_at_its_optimum_gives_the_maximum_likelihood_back(x):
    free = LinearGaussian.fit(x, 10)
    fixed = LinearGaussian.fit(x, 10, free.noise_scale.item())
    torch.testing.assert_close(fixed.weight, free.weight, rtol=0, atol=1e-10)


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_weighted_posterior_is_the_best_q_for_every_x(small, beta):
    """The gradient over mean and factor of q is zero there, for each x, and nearby is worse."""
    x = small.sample(6)
    q = small.posterior(x, beta)
    mean = q.mean.clone().requires_grad_()
    factor = q.scale_tril.clone().requires_grad_()

    def value(mean, factor):
        normal = torch.distributions.MultivariateNormal(mean, scale_tril=factor)
        residual = x - small.mean - mean @ small.weight.T
        square = residual.square().sum(1) + (small.weight @ factor).square().sum((1, 2))
        return -0.5 * square / small.noise_scale**2 - beta * kl(normal, small.prior())

    best = value(mean, factor)
    best.sum().backward()
    assert mean.grad.abs().max() < 1e-10 and factor.grad.tril().abs().max() < 1e-10
    for _ in range(20):
        step = 0.02 * torch.randn_like(factor).tril()
        other = value(mean.detach() + 0.1 * torch.randn_like(mean), factor.detach() + step)
        assert (other < best).all()


def test_the_weight_one_gives_the_posterior(small):
    x = small.sample(4)
    a, b = small.posterior(x), small.posterior(x, 1.0)
    assert torch.equal(a.mean, b.mean) and torch.equal(a.scale_tril, b.scale_tril)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_no_direction_improves_the_weighted_elbo(x, beta):
    """With the noise fixed, the gradient over W and the mean is zero, the best q going along."""
    fitted = LinearGaussian.fit(x, 20, 5**0.5, beta)
    weight = fitted.weight.clone().requires_grad_()
    mean = fitted.mean.clone().requires_grad_()
    _weighted_objective(weight, mean, x, 5.0, beta).backward()
    assert weight.grad.abs().max() < 1e-9 and mean.grad.abs().max() < 1e-9
    reached = sum(_terms(fitted, x, beta))
    assert reached == pytest.approx(
        _weighted_objective(weight, mean, x, 5.0, beta).item(), abs=1e-8
    )


def _terms(model, x, beta):
    fit, kls = weighted_elbo(model, x, beta)
    return fit.mean().item(), -beta * kls.mean().item()


def _weighted_objective(weight, mean, x, variance, beta):
    """max_q E_q[log p(x|z)] - beta KL = beta log of the integral of p(z) p(x|z)^(1/beta)."""
    d = x.shape[1]
    noise = beta * variance
    covariance = weight @ weight.T + noise * torch.eye(d)
    log_p = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x).mean()
    log_scale = np.log(2 * np.pi * noise) - np.log(2 * np.pi * variance) / beta
    return beta * (log_p + 0.5 * d * log_scale)


@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_all_other_stationary_points_are_saddles(float64, beta):
    """Other directions, or fewer, make the gradient zero too, but some way leads up, some down."""
    scales = torch.tensor([3.0, 2.5, 2.0, 1.5, 0.5])
    rotation = torch.linalg.qr(torch.randn(5, 5))[0]
    x = (torch.randn(400, 5) * scales) @ rotation
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    values, vectors = values.flip(0), vectors.flip(1)
    assert (values > beta).sum() >= 3
    objective = lambda flat: _weighted_objective(flat.view(5, 2), x.mean(0), x, 1.0, beta)
    for kept in [(0, 1), (0, 2), (1, 2), (0, None), (2, None)]:
        columns = [
            torch.zeros(5) if i is None else vectors[:, i] * (values[i] - beta).sqrt()
            for i in kept
        ]
        point = torch.stack(columns, dim=1).flatten()
        assert torch.autograd.functional.jacobian(objective, point).abs().max() < 1e-10
        curvature = torch.linalg.eigvalsh(torch.autograd.functional.hessian(objective, point))
        assert curvature[0] < -1e-3, kept
        if kept == (0, 1):  # level along rotations of z, down everywhere else
            assert curvature[-1] < 1e-9
            best = LinearGaussian.fit(x, 2, 1.0, beta).weight
            torch.testing.assert_close(best @ best.T, point.view(5, 2) @ point.view(5, 2).T)
        else:
            assert curvature[-1] > 1e-2, kept


def test_slope_of_the_rate_distortion_curve_is_minus_beta(x):
    """dD/dR = -beta by central differences; rate and distortion as by reverse water-filling."""
    values, variance = eigenvalues(x), 5.0

    def rate_and_distortion(beta):
        fit, kls = weighted_elbo(LinearGaussian.fit(x, 20, variance**0.5, beta), x, beta)
        return kls.mean().item(), -fit.mean().item()

    for beta in (0.5, 1.0, 3.0, 10.0):
        rate, distortion = rate_and_distortion(beta)
        level = beta * variance
        kept = values[:20][values[:20] > level]
        left = np.r_[np.full(len(kept), level), values[len(kept) :]].sum()
        assert rate == pytest.approx(0.5 * np.log(kept / level).sum(), abs=1e-9)
        assert distortion == pytest.approx(
            32 * np.log(2 * np.pi * variance) + 0.5 * left / variance, abs=1e-8
        )
        (r1, d1), (r2, d2) = (rate_and_distortion(beta * (1 + h)) for h in (-1e-4, 1e-4))
        assert (d2 - d1) / (r2 - r1) == pytest.approx(-beta, rel=1e-6)


def test_a_rotated_weight_costs_a_diagonal_encoder_the_known_price(x):
    """The evidence is the same; the best diagonal q loses 1/2 [sum ln P_ii - ln |P|]."""
    fitted = LinearGaussian.fit(x, 6, 20**0.5)
    rotation = torch.linalg.qr(torch.randn(6, 6))[0]
    rotated = LinearGaussian(fitted.weight @ rotation, fitted.mean, fitted.noise_scale)
    m = rotated.weight.T @ rotated.weight / 20 + torch.eye(6)
    price = 0.5 * (m.diagonal().log().sum() - torch.logdet(m))
    assert price > 0.1
    for model, loss in ((fitted, 0.0), (rotated, price.item())):
        q = mean_field(model.posterior(x))
        residual = x - model.mean - q.mean @ model.weight.T
        spread = q.variance @ model.weight.square().sum(0)
        fit = -0.5 * (residual.square().sum(1) + spread) / 20 - 32 * np.log(2 * np.pi * 20)
        elbo = fit - kl(q, model.prior())
        gap = fitted.log_evidence(x) - elbo
        torch.testing.assert_close(gap, torch.full_like(gap, loss), rtol=0, atol=1e-8)


def test_one_column_of_zeros_for_every_direction_that_is_lost(x):
    """Collapsed exactly: the encoding distribution of such a dimension is the prior."""
    model = LinearGaussian.fit(x, 20, 50**0.5)
    q = model.posterior(x)
    assert (model.weight[:, 7:] == 0).all()
    assert q.mean[:, 7:].abs().max() < 1e-12
    assert (q.variance[:, 7:] - 1).abs().max() < 1e-12


def test_fit_with_fixed_noise_refuses_bad_numbers(x):
    for noise in (0.0, -1.0, float("nan"), "1"):
        with pytest.raises(ValueError, match="noise_scale must be a finite number above 0"):
            LinearGaussian.fit(x, 2, noise)
    for beta in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="beta must be a finite number above 0"):
            LinearGaussian.fit(x, 2, 1.0, beta)
    with pytest.raises(ValueError, match="beta = 2.0 needs a noise_scale"):
        LinearGaussian.fit(x, 2, beta=2.0)
    with pytest.raises(ValueError, match="beta must be a finite number above 0"):
        LinearGaussian.fit(x, 2).posterior(x, 0.0)


@pytest.mark.parametrize(
    ("noise", "dtype"),
    [
        (1e-50, torch.float32),
        (1e-30, torch.float32),
        (1e30, torch.float32),
        (1e-200, torch.float64),
        (1e200, torch.float64),
    ],
)
def test_noise_that_rounding_would_lose_is_refused(x, noise, dtype):
    message = f"square above 0 and finite in {dtype}, found {noise!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        LinearGaussian.fit(x.to(dtype), 2, noise)
    with pytest.raises(ValueError, match=re.escape(message)):
        LinearGaussian(torch.zeros(5, 2, dtype=dtype), torch.zeros(5, dtype=dtype), noise)


def test_fixed_noise_allows_data_with_few_directions():
    flat = (torch.randn(100, 2) @ torch.randn(2, 5)).double()
    model = LinearGaussian.fit(flat, 3, noise_scale=0.1)
    assert model.weight[:, 2].abs().max() == 0
    assert model.weight[:, :2].norm(dim=0).min() > 0


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
