"""The targets against their published formulas, closed forms and scipy's quadrature."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch
import torch.distributions as td
from conftest import Z_LIMIT

from vaetutor import DiagonalNormal, Target, draw, grid_posterior, targets
from vaetutor.model import LatentVariableModel
from vaetutor.targets import BANANA, U1, U2, U3, U4

ALL = [BANANA, U1, U2, U3, U4]
ROOT = math.sqrt(2 * math.pi)
CLOSED = [  # the second axis integrates to a normal's constant at every z_1
    (BANANA, math.log(2 * 0.5 * ROOT**2)),
    (U2, math.log(8 * 0.4 * ROOT)),
    (U3, math.log(8 * (0.35 + 0.35) * ROOT)),
    (U4, math.log(8 * (0.4 + 0.35) * ROOT)),
]


def published(name, z1, z2):
    """-U(z) as printed in table 1 of Rezende and Mohamed (2015), in numpy."""
    w1 = np.sin(2 * np.pi * z1 / 4)
    w2 = 3 * np.exp(-0.5 * ((z1 - 1) / 0.6) ** 2)
    w3 = 3 / (1 + np.exp(-(z1 - 1) / 0.3))
    if name == "U1":
        modes = np.exp(-0.5 * ((z1 - 2) / 0.6) ** 2) + np.exp(-0.5 * ((z1 + 2) / 0.6) ** 2)
        return -0.5 * ((np.sqrt(z1**2 + z2**2) - 2) / 0.4) ** 2 + np.log(modes)
    if name == "U2":
        return -0.5 * ((z2 - w1) / 0.4) ** 2
    shift, width = (w2, 0.35) if name == "U3" else (w3, 0.4)
    lower = np.exp(-0.5 * ((z2 - w1 + shift) / 0.35) ** 2)
    return np.log(np.exp(-0.5 * ((z2 - w1) / width) ** 2) + lower)


@pytest.mark.parametrize("target", ALL[1:], ids=lambda t: t.name)
def test_energies_are_the_published_ones(float64, target):
    z = 6 * torch.rand(500, 2) - 3
    expected = published(target.name, *z.cpu().numpy().T)
    np.testing.assert_allclose(target(z).cpu().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_the_banana_is_a_normal_given_its_first_coordinate(float64):
    z = 3 * torch.randn(500, 2)
    first = td.Normal(0.0, 2.0).log_prob(z[:, 0])
    second = td.Normal(z[:, 0] ** 2 / 4, 0.5).log_prob(z[:, 1])
    torch.testing.assert_close(BANANA(z) - math.log(2 * math.pi), first + second)


@pytest.mark.parametrize(("target", "log_z"), CLOSED, ids=lambda v: getattr(v, "name", ""))
def test_log_z_in_closed_form(target, log_z):
    value, error = target.log_z()
    assert abs(value - log_z) < 1e-10 and error < 1e-10
    value, error = target.log_z(101)  # coarse: the stated error must cover the true one
    assert abs(value - log_z) <= error + 1e-12


def test_log_z_says_what_a_small_domain_misses():
    small = Target("small U1", U1.log_density, ((-3.0, -3.0), (3.0, 3.0)))
    value, error = small.log_z()
    assert 5e-4 < U1.log_z().value - value < error < 1


def test_log_z_of_u1_in_polar_coordinates():
    density = lambda r, a: r * np.exp(published("U1", r * np.cos(a), r * np.sin(a)))
    total, _ = scipy.integrate.dblquad(density, 0, 2 * np.pi, 0, 8, epsabs=1e-10, epsrel=1e-10)
    value, error = U1.log_z()
    assert abs(value - math.log(total)) < 1e-9 and error < 1e-9
    assert value == pytest.approx(1.877502, abs=1e-6)


def test_log_z_of_u2_is_the_known_one():
    assert U2.log_z().value == pytest.approx(2.082089, abs=1e-6)


@pytest.mark.parametrize("target", [U2, U3, U4], ids=lambda t: t.name)
def test_the_strip_is_a_convention_and_nothing_is_clipped(float64, target):
    """Doubling the strip doubles Z, since the density goes on outside it."""
    (low1, low2), (high1, high2) = target.domain
    assert target.is_strip and (low1, high1) == (-4, 4)
    assert torch.isfinite(target(torch.tensor([[50.0, 0.0], [-50.0, 0.0], [0.0, 90.0]]))).all()
    twice = grid_posterior(target, torch.zeros(1, 1), (2 * low1, low2), (2 * high1, high2), 801)
    assert twice.log_evidence.item() == pytest.approx(target.log_z().value + math.log(2), abs=1e-9)
    assert twice.error.item() > 1  # mass beyond the strip is seen where it counts


@pytest.mark.parametrize("target", [BANANA, U1], ids=lambda t: t.name)
def test_the_domain_holds_the_mass(float64, target):
    grid = grid_posterior(target, torch.zeros(1, 1), *target.domain, 801)
    assert grid.error.item() < 1e-9
    (low1, low2), (high1, high2) = target.domain
    wider = grid_posterior(
        target, torch.zeros(1, 1), (low1 - 5, low2 - 5), (high1 + 5, high2 + 5), 1201
    )
    assert abs(wider.log_evidence - grid.log_evidence).item() < 1e-9


@pytest.mark.parametrize("target", ALL, ids=lambda t: t.name)
def test_a_target_is_a_model_whose_evidence_is_z(float64, target):
    assert isinstance(target, LatentVariableModel)
    x, z = torch.randn(3, 7), torch.randn(50, 3, 2)
    torch.testing.assert_close(target.log_joint(x, z), target(z), rtol=0, atol=0)
    shared = target.log_joint(x, z[:, :1])
    assert shared.shape == (50, 3) and torch.equal(shared[:, 2], target(z[:, 0]))
    assert torch.equal(target.log_joint(x, z), target.log_joint(x * 0 + 5, z))


@pytest.mark.parametrize("target", [BANANA, U1], ids=lambda t: t.name)
def test_log_z_is_elbo_plus_kl(float64, target):
    """The ELBO from 100,000 draws against log Z - KL(q || p) by the grid."""
    q = DiagonalNormal(2)(torch.tensor([[0.5, 0.3, -0.2, 0.1]]))
    x = torch.zeros(1, 1)
    z, log_q, _ = draw(q, 100_000)
    terms = target.log_joint(x, z) - log_q
    grid = grid_posterior(target, x, *target.domain, 401)
    expected = target.log_z().value - grid.kl_from(q).item()
    assert abs(terms.mean().item() - expected) < Z_LIMIT * terms.std().item() / 100_000**0.5


def test_gradients_reach_every_coordinate_and_are_finite(float64):
    for target in ALL:
        z = torch.cat([torch.zeros(1, 2), 5 * torch.randn(200, 2)]).requires_grad_()
        target(z).sum().backward()
        assert torch.isfinite(z.grad).all()
        assert (z.grad[1:] != 0).any(0).all()


def test_the_module_names_its_targets():
    assert [getattr(targets, t.name.upper()) for t in ALL] == ALL
    assert all(isinstance(t, Target) for t in ALL)


def test_bad_points_are_refused():
    for bad in (torch.zeros(3, 3), torch.zeros(()), torch.zeros(2, dtype=torch.int64), [0.0, 0.0]):
        with pytest.raises(ValueError, match="z must be a floating-point tensor of shape"):
            U1(bad)
    with pytest.raises(ValueError, match="x has 3 rows but .* for 4"):
        U1.log_joint(torch.zeros(3, 1), torch.zeros(5, 4, 2))
    with pytest.raises(ValueError, match="n must be odd"):
        U1.log_z(200)
