"""Grid posteriors against exact models, and the eight schools against scipy and published values.

The closed-form ELBO of the eight schools below uses the moments of a log-normal and one
Gauss-Hermite rule; it shares nothing with the package but the data.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import torch
import torch.distributions as td
from conftest import Z_LIMIT, z_score

from vaetutor import (
    BayesianLinearRegression,
    ConjugateNormal,
    DiagonalNormal,
    EightSchools,
    FullNormal,
    LinearGaussian,
    draw,
    grid_posterior,
    kl,
    log_weights,
)
from vaetutor.evaluate import pareto_k
from vaetutor.model import LatentVariableModel, TwoTermModel
from vaetutor.quadrature import EFFECTS, STANDARD_ERRORS, mass_beyond

LOG_EVIDENCE = -31.311347352  # computed independently, by quadrature over tau
Y, SE = np.array(EFFECTS), np.array(STANDARD_ERRORS)


@pytest.fixture
def plane(float64):
    return LinearGaussian(torch.randn(5, 2), torch.randn(5), 0.7)


@pytest.fixture
def line(float64):
    return ConjugateNormal(1.3, 0.6).double()


def test_one_latent_number_is_exact(line):
    x = line.sample(6)
    grid = grid_posterior(line, x, -9.0, 9.0)
    p = line.posterior(x)
    torch.testing.assert_close(grid.log_evidence, line.log_evidence(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(grid.mean, p.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(grid.covariance[:, 0], p.variance, rtol=0, atol=1e-12)
    assert grid.error.max() < 1e-12 and grid.log_density.shape == (6, 201)
    log_p = p.log_prob(grid.z.unsqueeze(1)).T
    torch.testing.assert_close(grid.log_density, log_p, rtol=0, atol=1e-10)


def test_two_latent_numbers_are_exact(plane):
    x = plane.sample(4)
    grid = grid_posterior(plane, x, (-6.0, -7.0), (6.0, 7.0), 151)
    p = plane.posterior(x)
    torch.testing.assert_close(grid.log_evidence, plane.log_evidence(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(grid.mean, p.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(grid.covariance, p.covariance_matrix, rtol=0, atol=1e-12)
    assert grid.error.max() < 1e-10 and grid.log_density.shape == (4, 151, 151)
    torch.testing.assert_close(grid.weights.sum(1), torch.ones(4), rtol=0, atol=1e-12)
    here = torch.stack([grid.axes[0][40], grid.axes[1][90]])
    expected = p.log_prob(here)
    torch.testing.assert_close(grid.log_density[:, 40, 90], expected, rtol=0, atol=1e-9)


def test_divergences_in_both_directions_are_the_closed_forms(plane):
    x = plane.sample(3)
    grid = grid_posterior(plane, x, (-14.0, -14.0), (14.0, 14.0), 401)
    p = plane.posterior(x)
    q = FullNormal(2)(0.3 * torch.randn(3, 5))
    torch.testing.assert_close(grid.kl_from(q), kl(q, p), rtol=0, atol=1e-10)
    torch.testing.assert_close(grid.kl_to(q), kl(p, q), rtol=0, atol=1e-10)
    one = DiagonalNormal(2)(torch.zeros(4))
    many = DiagonalNormal(2)(torch.zeros(3, 4))
    torch.testing.assert_close(grid.kl_from(one), grid.kl_from(many), rtol=0, atol=0)
    assert torch.isfinite(grid.kl_to(one)).all()


@pytest.mark.parametrize("width", [0.8, 1.5, 2.5, 4.0])
def test_the_stated_error_covers_a_grid_that_is_too_small(line, width):
    x = torch.tensor([[0.5], [-1.0], [3.0]])
    grid = grid_posterior(line, x, -width, width)
    off = (grid.log_evidence - line.log_evidence(x)).abs()
    assert (off <= grid.error + 1e-12).all()
    assert (grid.error[-1] == torch.inf) == (width < 3 * 1.69 / 2.05)  # the mode lies outside


@pytest.mark.parametrize("n", [5, 7, 9, 13, 21])
def test_the_stated_error_covers_a_grid_that_is_too_coarse(plane, n):
    x = plane.sample(5)
    grid = grid_posterior(plane, x, (-7.0, -7.0), (7.0, 7.0), n)
    off = (grid.log_evidence - plane.log_evidence(x)).abs()
    assert (off <= grid.error + 1e-12).all()


class Density:
    """A model that is a density of z alone, given as a function of z (S, 1, D)."""

    def __init__(self, log_density):
        self.log_density = log_density

    def log_joint(self, x, z):
        return self.log_density(z).expand(len(z), len(x))


def unit_normal(rho):
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]])
    return Density(td.MultivariateNormal(torch.zeros(2), covariance).log_prob)


@pytest.mark.parametrize(("rho", "least", "most"), [(0.0, 0.8, 1.0), (0.99, 2.0, 2.6)])
def test_the_stated_error_misses_what_lies_beyond_two_ends_at_once(float64, rho, least, most):
    """The true error over the stated one for correlated normals, as the docstring says."""
    grid = grid_posterior(unit_normal(rho), torch.zeros(1, 1), (-3.0,) * 2, (3.0,) * 2, 801)
    ratio = -grid.log_evidence / grid.error
    assert least < ratio.item() < most
    wide = grid_posterior(unit_normal(rho), torch.zeros(1, 1), (-6.0,) * 2, (6.0,) * 2, 801)
    assert wide.error.item() < 1e-8 and wide.log_evidence.abs().item() < 1e-8


def test_the_mass_beyond_one_axis_does_not_depend_on_an_independent_one(float64):
    line = Density(lambda z: td.Normal(0.0, 1.0).log_prob(z).sum(-1))
    one = grid_posterior(line, torch.zeros(1, 1), -3.0, 3.0, 401)
    two = grid_posterior(unit_normal(0.0), torch.zeros(1, 1), (-3.0, -8.0), (3.0, 8.0), 401)
    expected = mass_beyond(one.log_density, one.axes, 0)
    torch.testing.assert_close(mass_beyond(two.log_density, two.axes, 0), expected)


def test_nothing_lies_beyond_the_end_of_a_support(float64):
    """Gamma(4), zero to the left of 0: only the right end counts, and the left does not alarm."""
    gamma = Density(lambda z: torch.where(z > 0, 3 * z.abs().log() - z, -torch.inf).sum(-1))
    grid = grid_posterior(gamma, torch.zeros(1, 1), -5.0, 60.0, 2001)
    off = (grid.log_evidence - math.log(6)).abs()
    assert off < grid.error < 1e-7


def test_the_ends_of_the_grid_are_not_rounded():
    x = torch.zeros(1, 1, dtype=torch.float64)  # while the default is float32
    (axis,) = grid_posterior(ConjugateNormal().double(), x, -6.1, 8.3).axes
    assert (axis[0].item(), axis[-1].item()) == (-6.1, 8.3)


def test_no_gradient_is_kept(float64):
    scale = torch.ones(1, requires_grad=True)
    grid = grid_posterior(
        Density(lambda z: -(z * scale).square().sum(-1)), torch.zeros(1, 1), -6, 6
    )
    assert not grid.log_density.requires_grad and not grid.error.requires_grad


def test_memory_is_bounded_by_chunk(float64):
    sizes = []
    model = ConjugateNormal().double()
    count = lambda x, z: (sizes.append(len(x) * len(z)), model.log_joint(x, z))[1]
    grid_posterior(SimpleNamespace(log_joint=count), torch.zeros(10, 1), -6.0, 6.0, chunk=100)
    assert max(sizes) == 100


def test_moments_stay_in_float32_under_autocast(plane, device):
    plane = plane.float()
    x = plane.sample(4)
    grid = grid_posterior(plane, x, (-5.0, -5.0), (5.0, 5.0), 51)
    with torch.autocast(device.type, torch.bfloat16):
        narrow = grid.mean, grid.covariance
    torch.testing.assert_close(narrow, (grid.mean, grid.covariance), rtol=0, atol=0)


def test_the_gradient_of_a_divergence_where_p_is_zero(float64):
    """d KL(N(m, s²) || N(0, 1/2)) / dm = 2 m; p is cut off where q has no mass to speak of."""
    cut = Density(lambda z: torch.where(z.abs() <= 5, -z.square(), -torch.inf).sum(-1))
    grid = grid_posterior(cut, torch.zeros(1, 1), -8.0, 8.0, 4001)
    mean = torch.tensor([[0.7]], requires_grad=True)
    grid.kl_from(td.Independent(td.Normal(mean, 0.05), 1)).sum().backward()
    assert mean.grad.item() == pytest.approx(1.4, abs=1e-6)


def test_the_stated_error_for_exponential_tails_is_the_tail(float64):
    """p(z) = e^-z / Z on z > 0 cut at 5: the mass beyond is known."""

    class Laplace:
        def log_joint(self, x, z):
            return -z.abs().sum(-1).expand(len(z), len(x))

    grid = grid_posterior(Laplace(), torch.zeros(1, 1), -5.0, 5.0, 4001)
    beyond = math.exp(-5) / (1 - math.exp(-5))
    assert grid.error.item() == pytest.approx(beyond, rel=1e-3)


def test_rows_and_chunks_do_not_matter(plane):
    x = plane.sample(3)
    whole = grid_posterior(plane, x, (-5.0, -5.0), (5.0, 5.0), 31)
    pieces = grid_posterior(plane, x, (-5.0, -5.0), (5.0, 5.0), 31, chunk=7)
    alone = grid_posterior(plane, x[1:2], (-5.0, -5.0), (5.0, 5.0), 31)
    torch.testing.assert_close(whole.log_density, pieces.log_density, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.log_density[1:2], alone.log_density, rtol=0, atol=1e-12)


def test_float32_is_close_and_stays_float32(device):
    model = ConjugateNormal()
    grid = grid_posterior(model, torch.tensor([[1.5]]), -6.0, 8.0)
    assert grid.log_evidence.dtype == torch.float32 and not grid.log_evidence.requires_grad
    assert (grid.log_evidence - model.log_evidence(torch.tensor([[1.5]]))).abs() < 1e-5


def test_no_mass_is_no_contribution(line):
    """Where p underflows, 0 times infinity is 0; where p is 0 and q is not, KL is infinite."""

    class Box:
        def log_joint(self, x, z):
            inside = (z.squeeze(-1).abs() <= 1).expand(len(z), len(x))
            return torch.where(inside, 0.0, -torch.inf)

    grid = grid_posterior(Box(), torch.zeros(1, 1), -20.0, 20.0, 4001)
    narrow = DiagonalNormal(1)(torch.tensor([[0.0, -4.0]]))
    standard = DiagonalNormal(1)(torch.zeros(1, 2))
    assert grid.kl_from(narrow).item() < 5 and torch.isinf(grid.kl_from(standard)).all()
    # KL(uniform on (-1, 1) || N(0, 1)) = -ln 2 + ln(2 pi) / 2 + 1 / 6, up to the jump of the box
    expected = -math.log(2) + 0.5 * math.log(2 * math.pi) + 1 / 6
    assert grid.kl_to(standard).item() == pytest.approx(expected, abs=0.01)


def test_a_q_off_the_grid_is_refused(line):
    grid = grid_posterior(line, torch.zeros(2, 1), -6.0, 6.0)
    family = DiagonalNormal(1)
    normal = lambda scale: td.Independent(td.Normal(torch.zeros(1, 1), scale), 1)
    assert torch.isfinite(grid.kl_from(normal(1.15))).all()  # 1.8e-7 of it lies beyond
    with pytest.raises(ValueError, match="q must have its mass on the grid, found 0.9999"):
        grid.kl_from(normal(1.5))  # 6.3e-5
    for lam in ([0.0, 1.0], [5.9, 0.0], [0.01, -5.0]):  # too wide, beyond, too narrow
        with pytest.raises(ValueError, match="q must have its mass on the grid"):
            grid.kl_from(family(torch.tensor([lam, [0.0, 0.0]])))
    for q in (family(torch.zeros(3, 2)), DiagonalNormal(2)(torch.zeros(2, 4))):
        with pytest.raises(ValueError, match="q must have batch shape"):
            grid.kl_from(q)
        with pytest.raises(ValueError, match="q must have batch shape"):
            grid.kl_to(q)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 200}, "n must be odd"),
        ({"n": 3}, "n must be an integer of at least 5"),
        ({"low": 6.0}, "low must be finite and below high"),
        ({"low": float("nan")}, "low must be finite"),
        ({"low": "a"}, "low must be numbers, found 'a'"),
        ({"high": [[1.0], 2.0]}, "high must be numbers"),
        ({"low": (-1.0, -1.0)}, "low and high must hold one number for each"),
        ({"low": (0.0,) * 3, "high": (1.0,) * 3}, "one or two latent dimensions"),
        ({"low": (-6.0, -6.0), "high": (6.0, 6.0)}, "z must have 1 latent dimensions"),
        ({"x": torch.full((1, 1), torch.nan)}, "x holds 1 values"),
        ({"x": torch.zeros(1, 1, dtype=torch.float64)[:0]}, "at least one example"),
        ({"low": 1e200, "high": 2e200}, "finite and positive somewhere on the grid"),
        ({"chunk": 0}, "chunk must be"),
    ],
)
def test_bad_grids_are_refused(float64, device, options, message):
    given = {"x": torch.zeros(1, 1), "low": -6.0, "high": 6.0, **options}
    with pytest.raises(ValueError, match=message):
        grid_posterior(ConjugateNormal().double(), **{**given, "x": given["x"].to(device)})


def test_a_function_is_not_a_model():
    with pytest.raises(ValueError, match=r"model must have log_joint\(x, z\), found function"):
        grid_posterior(lambda x, z: -z.square().sum(-1), torch.zeros(1, 1), -6.0, 6.0)


def test_a_joint_density_of_another_shape_is_refused(float64):
    class Wrong:
        def log_joint(self, x, z):
            return -z.square().sum(-1)

    with pytest.raises(ValueError, match=r"log_joint\(x, z\) must have shape"):
        grid_posterior(Wrong(), torch.zeros(3, 1), -6.0, 6.0)


def test_linear_regression_by_the_grid(float64):
    design = torch.stack([torch.ones(6), torch.linspace(1, 4, 6)], 1)
    model = BayesianLinearRegression(design, 0.8, 1.5)
    x = model.sample(2)
    grid = grid_posterior(model, x, (-9.0, -9.0), (9.0, 9.0), 301)
    torch.testing.assert_close(grid.log_evidence, model.log_evidence(x), rtol=0, atol=1e-10)
    covariance = model.posterior(x).covariance_matrix
    torch.testing.assert_close(grid.covariance, covariance, rtol=0, atol=1e-10)


# The eight schools


@pytest.fixture(params=[True, False], ids=["centred", "non-centred"])
def schools(request, float64):
    return EightSchools(centred=request.param).double()


def test_log_evidence_is_the_known_one(schools):
    assert schools.log_evidence(schools.observed).item() == pytest.approx(LOG_EVIDENCE, abs=5e-10)
    assert schools.log_tau_posterior(schools.observed).error.item() < 1e-12


def test_log_evidence_by_scipy(schools):
    x = np.array([1.0, -30.0, 12.0, 0.0, 5.0, 44.0, -7.0, 9.0])

    def integrand(tau):
        covariance = np.diag(SE**2 + tau**2) + 25.0
        density = scipy.stats.multivariate_normal(np.zeros(8), covariance).pdf(x)
        return density * scipy.stats.halfcauchy(scale=5).pdf(tau)

    parts = [scipy.integrate.quad(integrand, *p, epsabs=0)[0] for p in ((0, 30), (30, np.inf))]
    ours = schools.log_evidence(torch.tensor(x).unsqueeze(0)).item()
    assert ours == pytest.approx(math.log(sum(parts)), abs=1e-9)


def test_joint_density_by_scipy(schools):
    z = torch.randn(20, 1, 10) * torch.tensor([5.0, 1.5, *[4.0] * 8])
    for row in z[:, 0]:
        mu, log_tau, *rest = row.tolist()
        tau, rest = math.exp(log_tau), np.array(rest)
        theta = rest if schools.centred else mu + tau * rest
        expected = scipy.stats.norm(theta, SE).logpdf(Y).sum()
        expected += scipy.stats.norm(0, 5).logpdf(mu)
        expected += scipy.stats.halfcauchy(scale=5).logpdf(tau) + log_tau
        expected += (
            scipy.stats.norm(mu, tau).logpdf(rest) if schools.centred else
            scipy.stats.norm(0, 1).logpdf(rest)
        ).sum()  # fmt: skip
        ours = schools.log_joint(schools.observed, row.reshape(1, 1, 10)).item()
        assert ours == pytest.approx(expected, abs=1e-9)


def test_the_parametrisations_differ_by_the_jacobian(float64):
    centred, other = (EightSchools(c).double() for c in (True, False))
    z = torch.randn(30, 2, 10)
    mu, log_tau, eta = z[..., :1], z[..., 1:2], z[..., 2:]
    moved = torch.cat([mu, log_tau, mu + log_tau.exp() * eta], -1)
    x = torch.randn(2, 8) * 10
    torch.testing.assert_close(
        other.log_joint(x, z), centred.log_joint(x, moved) + 8 * log_tau.squeeze(-1)
    )
    shared = centred.log_joint(x, z[:, :1])
    expected = centred.log_joint(x, z[:, :1].expand(-1, 2, -1))
    torch.testing.assert_close(shared, expected, rtol=0, atol=0)


def exact_moments(schools):
    """First and second moments of mu and of the other eight, and E[mu rest], by quadrature.

    Given tau, mu is normal with mean m and variance v, and theta_j = c_j mu + (1 - c_j) y_j plus
    noise of variance tau² c_j, where c_j = SE_j² / (SE_j² + tau²).
    """
    grid = schools.log_tau_posterior(schools.observed)
    tau = np.exp(grid.z.cpu().numpy())
    total = SE**2 + tau**2
    v = 1 / ((1 / total).sum(1, keepdims=True) + 1 / 25)
    m = v * (Y / total).sum(1, keepdims=True)
    slope, noise = SE**2 / total, tau * SE / np.sqrt(total)
    level = (1 - slope) * Y
    if not schools.centred:  # eta = (theta - mu) / tau
        slope, noise, level = (slope - 1) / tau, noise / tau, level / tau
    rest = level + slope * m
    moments = m, m**2 + v, rest, rest**2 + slope**2 * v + noise**2, rest * m + slope * v
    return [torch.as_tensor(grid.weights[0].cpu().numpy() @ moment) for moment in moments]


def test_posterior_draws_give_the_evidence(schools):
    """E[q(z) / p(x, z)] over the exact posterior is 1 / p(x) for a density q with light tails.

    It ties the draws, the joint density and the evidence together. q is a fixed normal narrower
    than the posterior, so the ratio has a finite variance. 200,000 draws.
    """
    z = schools.sample_posterior(schools.observed, 200_000)
    assert z.shape == (200_000, 1, 10)
    mu, mu2, rest, rest2, _ = exact_moments(schools)
    log_tau = torch.tensor([1.5 if schools.centred else 1.0])  # not in the neck of the funnel
    centre = torch.cat([mu, log_tau, rest])
    variance = torch.cat([mu2 - mu**2, torch.ones(1), rest2 - rest**2])
    q = td.Independent(td.Normal(centre, 0.4 * variance.sqrt()), 1)
    ratio = q.log_prob(z[:, 0]) - schools.log_joint(schools.observed, z)[:, 0]
    assert z_score((ratio + LOG_EVIDENCE).exp(), 1.0) < Z_LIMIT


def test_posterior_draws_have_the_exact_moments(schools):
    """A million draws: enough to see log tau shifted by half a cell, 0.01."""
    z = schools.sample_posterior(schools.observed, 1_000_000)[:, 0]
    grid = schools.log_tau_posterior(schools.observed)
    assert z_score(z[:, 1], grid.mean.item()) < Z_LIMIT
    assert z_score((z[:, 1] - grid.mean.item()) ** 2, grid.covariance.item()) < Z_LIMIT
    mu, rest = z[:, :1], z[:, 2:]
    draws = mu, mu**2, rest, rest**2, rest * mu
    for found, expected in zip(draws, exact_moments(schools), strict=True):
        assert z_score(found, expected.to(found)) < Z_LIMIT


def test_draws_of_log_tau_are_spread_over_their_cells(schools):
    z = schools.sample_posterior(schools.observed, 100_000)[:, 0]
    (axis,) = schools.log_tau_posterior(schools.observed).axes
    cells = (z[:, 1] - axis[0]) / (axis[1] - axis[0])
    assert z_score((cells - cells.round()) ** 2, 1 / 12) < Z_LIMIT  # uniform on (-1/2, 1/2)


def test_draws_repeat_with_a_generator(schools, device):
    draws = lambda: schools.sample_posterior(
        schools.observed, 5, torch.Generator(device).manual_seed(3)
    )
    before = torch.get_rng_state()
    assert torch.equal(draws(), draws()) and torch.equal(before, torch.get_rng_state())


def closed_form_elbo(lam, centred):
    """ELBO of a diagonal normal, exact but for a Gauss-Hermite rule over log tau; mean first."""
    mean, sd = lam[:10], np.exp(lam[10:])
    (m, t), (m_sd, t_sd) = mean[:2], sd[:2]
    node, weight = np.polynomial.hermite_e.hermegauss(80)
    prior = scipy.stats.halfcauchy(scale=5).logpdf(np.exp(t + t_sd * node)) + t + t_sd * node
    value = weight @ prior / weight.sum()
    value += -0.5 * (m**2 + m_sd**2) / 25 - 0.5 * np.log(2 * np.pi * 25)
    rest, rest_sd = mean[2:], sd[2:]
    if centred:
        square = (rest - m) ** 2 + rest_sd**2 + m_sd**2
        value += (-0.5 * square * np.exp(-2 * t + 2 * t_sd**2) - t).sum()
        error = (Y - rest) ** 2 + rest_sd**2
    else:
        value += -0.5 * (rest**2 + rest_sd**2).sum()
        one, two = np.exp(t + t_sd**2 / 2), np.exp(2 * t + 2 * t_sd**2)
        error = (Y - m) ** 2 + m_sd**2 - 2 * (Y - m) * one * rest + two * (rest**2 + rest_sd**2)
    value += -4 * np.log(2 * np.pi)
    value += (-0.5 * error / SE**2 - np.log(SE) - 0.5 * np.log(2 * np.pi)).sum()
    return value + (0.5 * np.log(2 * np.pi * np.e) + np.log(sd)).sum()


@pytest.mark.parametrize(("centred", "divergence"), [(True, 2.093), (False, 0.287)])
def test_the_best_mean_field_normal(float64, device, centred, divergence):
    """Its KL is evidence - ELBO; draws of q agree with the closed form. 100,000 draws."""
    start = np.zeros(20)
    start[1] = 1.0
    best = scipy.optimize.minimize(
        lambda lam: -closed_form_elbo(lam, centred), start, method="BFGS", options={"gtol": 1e-6}
    )
    assert LOG_EVIDENCE + best.fun == pytest.approx(divergence, abs=2e-3)
    mean, sd = torch.as_tensor(best.x, device=device).split(10)
    q = td.Independent(td.Normal(mean.unsqueeze(0), sd.exp().unsqueeze(0)), 1)
    model = EightSchools(centred).double()
    log_w = log_weights(model, q, model.observed, 100_000)
    assert z_score(log_w, -best.fun) < Z_LIMIT
    assert pareto_k(log_w).item() == pytest.approx(0.91 if centred else 0.61, abs=0.25)


def test_eight_schools_offers_a_joint_density_only(schools):
    assert isinstance(schools, LatentVariableModel) and not isinstance(schools, TwoTermModel)


def test_bad_schools_are_refused(schools):
    x = schools.observed
    for bad in (x[:, :7], x[0], x.unsqueeze(0)):
        with pytest.raises(ValueError, match=r"x must have shape \(B, 8\)"):
            schools.log_evidence(bad)
        with pytest.raises(ValueError, match=r"x must have shape \(B, 8\)"):
            schools.log_joint(bad, torch.zeros(1, 1, 10))
    with pytest.raises(ValueError, match="z must have 10 latent dimensions"):
        schools.log_joint(x, torch.zeros(1, 1, 9))
    with pytest.raises(ValueError, match="z must have shape"):
        schools.log_joint(x, torch.zeros(1, 10))
    with pytest.raises(ValueError, match="x must be one observation"):
        schools.sample_posterior(x.expand(2, 8), 3)
    with pytest.raises(ValueError, match="n must be an integer"):
        schools.sample_posterior(x, 0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        schools.log_evidence(x * torch.nan)


def test_draw_and_model_agree_on_the_axes(schools):
    z, log_q, _ = draw(DiagonalNormal(10)(torch.zeros(1, 20)), 7)
    assert schools.log_joint(schools.observed, z).shape == log_q.shape == (7, 1)
