"""Angles against numerical integration and Bessel functions, products against their parts."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from conftest import Z_LIMIT, z_score
from torch import nn

from vaetutor import (
    VAE,
    DiagonalNormal,
    Family,
    MixtureNormal,
    Normal,
    Product,
    ProjectedNormal,
    Standard,
    StandardNormal,
    TrainConfig,
    draw,
    elbo,
    elbo_terms,
    fit,
    gradient_moments,
    log_evidence,
    mlp,
    pathwise,
    sticking_the_landing,
)
from vaetutor.circular import _log_integral_of_ndtr

MEANS = [(0.0, 0.0), (0.3, -0.2), (-1.5, 0.7), (0.0, 4.0), (-9.0, -3.0)]


def resultant(r):
    x = r**2 / 4
    return math.sqrt(math.pi / 8) * r * (scipy.special.ive(0, x) + scipy.special.ive(1, x))


# --- the projected normal ----------------------------------------------------------------------


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("angle", [-3.0, -0.4, 0.0, 1.0, 2.5])
def test_the_density_is_the_normal_integrated_along_a_ray(float64, mean, angle):
    direction = np.array([np.cos(angle), np.sin(angle)])
    normal = scipy.stats.multivariate_normal(mean, np.eye(2))
    peak = max(float(np.dot(direction, mean)), 0.1)
    expected, _ = scipy.integrate.quad(
        lambda r: r * normal.pdf(r * direction), 0, peak + 40, points=[peak], epsabs=1e-15
    )
    found = ProjectedNormal(1)(torch.tensor(mean)).log_prob(torch.tensor([angle])).exp()
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-13)


@pytest.mark.parametrize("mean", MEANS)
def test_the_density_integrates_to_one_over_a_turn_and_repeats(float64, mean):
    q = ProjectedNormal(1)(torch.tensor(mean))
    angles = torch.linspace(-math.pi, math.pi, 2001)[:-1].unsqueeze(-1)
    density = q.log_prob(angles).exp()
    assert density.mean().item() * 2 * math.pi == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(q.log_prob(angles + 2 * math.pi), q.log_prob(angles))


@pytest.mark.parametrize("mean", MEANS)
def test_draws_have_the_moments_of_the_density(float64, mean):
    q = ProjectedNormal(1)(torch.tensor(mean).unsqueeze(0))
    angle = q.rsample((200_000,))[:, 0]
    assert angle.shape == (200_000, 1) and angle.abs().max() <= math.pi
    r = math.hypot(*mean)
    assert q.resultant_length.item() == pytest.approx(resultant(r), rel=1e-10, abs=1e-15)
    peak = math.atan2(mean[1], mean[0])
    assert q.direction.item() == pytest.approx(peak)
    points = torch.cat([(angle - peak).cos(), (angle - peak).sin()], -1)
    assert z_score(points, torch.tensor([resultant(r), 0.0])) < Z_LIMIT
    grid = torch.linspace(-math.pi, math.pi, 4001)[:-1].unsqueeze(-1)
    second = (q.log_prob(grid).exp() * (2 * grid[:, 0]).cos()).mean() * 2 * math.pi
    assert z_score((2 * angle).cos(), second) < Z_LIMIT


def test_concentrated_angles_are_near_normal_with_one_over_r(float64):
    q = ProjectedNormal(1)(torch.tensor([200.0, 0.0]))
    angles = torch.linspace(-0.02, 0.02, 9)
    expected = scipy.stats.norm(0, 1 / 200).logpdf(angles.cpu().numpy())
    found = q.log_prob(angles.unsqueeze(-1)).cpu().numpy()
    np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.parametrize("mean", [(0.0, 0.0), (0.7, -0.4), (-2.0, 1.0)])
def test_gradients_of_an_expectation_are_those_of_its_closed_form(float64, mean):
    """E[cos θ] = ρ(r) m_1 / r, differentiated by finite differences."""

    def cosine(m):
        r = max(math.hypot(*m), 1e-9)
        return resultant(r) * m[0] / r

    found = gradient_moments(
        pathwise,
        lambda z: z[..., 0].cos(),
        ProjectedNormal(1),
        torch.tensor(mean),
        replicates=200_000,
    )
    step = 1e-5
    exact = [
        (cosine((mean[0] + step, mean[1])) - cosine((mean[0] - step, mean[1]))) / (2 * step),
        (cosine((mean[0], mean[1] + step)) - cosine((mean[0], mean[1] - step))) / (2 * step),
    ]
    assert ((found.mean - torch.tensor(exact)).abs() < Z_LIMIT * found.standard_error).all()


def test_the_path_is_averaged_over_the_length_of_the_vector(float64):
    """Against draws whose vectors are known, at the same angle; and without their heavy tail."""
    m = torch.tensor([0.4, -0.3])
    lam = m.expand(200_000, 2).clone().requires_grad_()
    torch.manual_seed(3)
    angle = ProjectedNormal(1)(lam).rsample()[:, 0]
    (averaged,) = torch.autograd.grad(angle.sum(), lam)
    torch.manual_seed(3)
    y = lam + torch.randn(200_000, 2)
    by_hand = torch.atan2(y[:, 1], y[:, 0])
    torch.testing.assert_close(by_hand, angle)
    (path,) = torch.autograd.grad(by_hand.sum(), lam)
    for f in (angle.cos(), (2 * angle).sin(), (3 * angle).cos()):  # any function of the angle
        off = f.detach().unsqueeze(-1) * (path - averaged)
        assert z_score(off, 0) < Z_LIMIT
    assert averaged.norm(dim=1).max() < 10 < 100 < path.norm(dim=1).max()


def test_gradients_of_the_density_are_right_by_finite_differences(float64):
    family = ProjectedNormal(2)
    for scale in (0.1, 1.0, 10.0, 60.0):
        lam = (scale * torch.randn(4)).requires_grad_()
        angle = 3 * torch.randn(2)
        assert torch.autograd.gradcheck(
            lambda lam, a: family(lam).log_prob(a),
            (lam, angle.requires_grad_()),
            atol=1e-4,
            rtol=1e-4,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_integral_of_the_normal_distribution_function(dtype):
    """Against 50 digits, over the borders between its three formulas."""
    import mpmath

    mpmath.mp.dps = 50
    t = torch.tensor(
        [-2000.0, -300.0, -30.01, -29.99, -12.0, -5.0, -1.01, -0.99, 0.0, 3.0, 500.0], dtype=dtype
    )
    expected = [
        float(mpmath.log(mpmath.npdf(v) + v * mpmath.ncdf(v))) for v in map(mpmath.mpf, t.tolist())
    ]
    found = _log_integral_of_ndtr(t).tolist()
    rtol = 1e-11 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=100 * rtol)


@pytest.mark.parametrize("size", [-1e4, 0.0, 1e4])
def test_extremes_keep_value_and_gradient(size):
    lam = torch.full((2, 4), size, requires_grad=True)
    q = ProjectedNormal(2)(lam)
    z = q.rsample((5,))
    log_q = q.log_prob(torch.tensor([[2.5, 0.7], [-1.0, 3.1]]))
    (z.sum() + log_q.sum()).backward()
    assert z.isfinite().all() and log_q.isfinite().all() and q.resultant_length.isfinite().all()
    assert lam.grad.isfinite().all() and (lam.grad != 0).all()


def test_zero_is_uniform_and_a_prior(float64):
    prior = Standard(ProjectedNormal(2))
    assert not list(prior.parameters()) and prior().event_shape == (2,)
    found = prior().log_prob(torch.randn(7, 2))
    torch.testing.assert_close(found, torch.full((7,), -2 * math.log(2 * math.pi)))
    normal, z = Standard(DiagonalNormal(3)), torch.randn(7, 3)
    torch.testing.assert_close(normal().log_prob(z), StandardNormal(3)().log_prob(z))


def test_an_encoder_follows_the_angle_all_the_way_round(device):
    """x is a point near the circle; no angle is worse than another, also not the one at π."""
    torch.manual_seed(0)
    angle = 2 * math.pi * torch.rand(512, 1)
    x = torch.cat([angle.cos(), angle.sin()], -1) + 0.1 * torch.randn(512, 2)
    family = ProjectedNormal(1)

    class OnCircle(nn.Module):
        def __init__(self):
            super().__init__()
            self.noise = Normal(2, 0.1)

        def forward(self, z):
            return self.noise(torch.cat([z.cos(), z.sin()], -1))

    encoder = nn.Sequential(mlp(2, 32, 2), family)
    vae = VAE(encoder, OnCircle(), Standard(family))
    fit(vae, x, TrainConfig(epochs=60, learning_rate=5e-3, device=device, objective=elbo))
    found = vae.encoder(x).direction
    off = torch.remainder(found - torch.atan2(x[:, 1:], x[:, :1]) + math.pi, 2 * math.pi) - math.pi
    assert off.abs().median() < 0.1 and off.abs().max() < 0.5
    assert vae.sample(5).shape == (5, 2)
    assert log_evidence(vae, x, 50).effective_sample_size.median() > 15


# --- products ----------------------------------------------------------------------------------


def some_product():
    return Product(ProjectedNormal(1), DiagonalNormal(2), MixtureNormal(2, 3, "implicit"))


def test_a_product_is_its_parts(float64):
    family = some_product()
    lam, z = torch.randn(4, family.n_parameters), torch.randn(6, 4, 5)
    q, (a, b, c) = family(lam), family.families
    expected = (
        a(lam[:, :2]).log_prob(z[..., :1])
        + b(lam[:, 2:6]).log_prob(z[..., 1:3])
        + c(lam[:, 6:]).log_prob(z[..., 3:])
    )
    torch.testing.assert_close(q.log_prob(z), expected, rtol=0, atol=1e-12)
    torch.manual_seed(3)
    drawn = q.rsample((7,))
    torch.manual_seed(3)
    by_parts = torch.cat([part.rsample((7,)) for part in q.parts], -1)
    assert torch.equal(drawn, by_parts) and q.sample((2,)).shape == (2, 4, 5)
    assert q.batch_shape == (4,) and q.event_shape == (5,) and q.has_rsample


def test_products_meet_the_objectives(float64):
    """An angle and a normal part with independent targets: the ELBO is the sum of two."""
    family, x = Product(ProjectedNormal(1), DiagonalNormal(2)), torch.zeros(3, 1)
    q = family(torch.randn(3, 6))

    class Same:
        def log_joint(self, x, z):
            return q.log_prob(z) + 1.5

    for bound in (elbo, sticking_the_landing):
        torch.testing.assert_close(bound(Same(), q, x, 4), torch.full((3,), 1.5))
    prior = Standard(family)
    z, _, share = draw(q, 5)
    assert share is None
    expected = -math.log(2 * math.pi) + StandardNormal(2)().log_prob(z[..., 1:])
    torch.testing.assert_close(prior().log_prob(z), expected)


def test_every_part_gets_its_gradient():
    family = some_product()
    lam = torch.randn(4, family.n_parameters, requires_grad=True)
    z, log_q, _ = draw(family(lam), 3)
    (z.sin().sum() - log_q.sum()).backward()
    assert lam.grad.isfinite().all() and (lam.grad != 0).all()


def test_terms_with_a_product_are_from_the_draws():
    family = Product(ProjectedNormal(1), DiagonalNormal(1))
    encoder = nn.Sequential(mlp(3, family.n_parameters), family)
    vae = VAE(encoder, nn.Sequential(mlp(2, 3), Normal(3)), Standard(family))
    assert not elbo_terms(vae, vae.encoder(torch.randn(4, 3)), torch.randn(4, 3)).kl_is_exact


def test_a_part_without_a_path_is_noticed():
    family = Product(ProjectedNormal(1), MixtureNormal(1, 2))
    with pytest.raises(ValueError, match="carry no gradient"):
        draw(family(torch.zeros(2, family.n_parameters, requires_grad=True)), 3)


@pytest.mark.parametrize("family", [ProjectedNormal(2), some_product()], ids=str)
def test_protocol_and_refusals(family):
    assert isinstance(family, Family)
    n = family.n_parameters
    q = family(torch.zeros(5, 4, n))
    assert q.batch_shape == (5, 4) and q.log_prob(torch.zeros(q.event_shape)).shape == (5, 4)
    with pytest.raises(ValueError, match=f"lam must have shape .* {n}"):
        family(torch.zeros(2, n + 1))
    with pytest.raises(ValueError, match="lam holds"):
        family(torch.full((2, n), torch.inf))
    with pytest.raises(ValueError, match="within the support"):
        family(torch.zeros(2, n)).log_prob(torch.full((2, *q.event_shape), torch.nan))
    half = family(torch.zeros(2, n, dtype=torch.bfloat16))
    assert half.log_prob(torch.zeros(q.event_shape)).dtype == torch.float32


@pytest.mark.parametrize(
    "wrong",
    [(), (DiagonalNormal(2),), (DiagonalNormal(2), nn.Linear(1, 1)), (DiagonalNormal(2), 3)],
)
def test_products_need_two_families(wrong):
    with pytest.raises(ValueError, match="families must be"):
        Product(*wrong)


@pytest.mark.parametrize("wrong", [0, -1, 1.5])
def test_sizes_must_be_positive_integers(wrong):
    with pytest.raises(ValueError, match="dim"):
        ProjectedNormal(wrong)


def test_a_standard_member_must_stay_fixed():
    from vaetutor import FlowPosterior

    with pytest.raises(ValueError, match="no trainable parameters"):
        Standard(FlowPosterior(2, 3))
