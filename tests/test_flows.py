"""The flow prior against autograd Jacobians, quadrature and a density it has to learn."""

import itertools
import math
import subprocess
import sys

import pytest
import torch
import torch.distributions as td
from conftest import Z_LIMIT, z_score
from torch import nn

from vaetutor import (
    VAE,
    Bernoulli,
    DiagonalNormal,
    FlowPrior,
    Normal,
    StandardNormal,
    TrainConfig,
    elbo_terms,
    fit,
    log_evidence,
    mlp,
    summary,
)


def some_flow(dim):
    """A flow far from its start, so that no map is near the identity."""
    flow = FlowPrior(dim, transforms=2, hidden=(16,), bins=5)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return flow


def grid(dim, half_width=8.0, n=641):
    axis = torch.linspace(-half_width, half_width, n)
    points = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    return points, (axis[1] - axis[0]).item() ** dim


@torch.no_grad()
@pytest.mark.parametrize("dim", [1, 2])
def test_the_density_integrates_to_one(float64, dim):
    """The density has kinks at the knots, so the sum is exact to the square of the step only."""
    points, cell = grid(dim, n=10_001 if dim == 1 else 641)
    mass = sum(some.exp().sum() for some in some_flow(dim)().log_prob(points).split(100_000))
    assert mass * cell == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_log_determinant_is_that_of_the_jacobian(float64, dim):
    p = some_flow(dim)()
    for z in 2 * torch.randn(10, dim):
        jacobian = torch.autograd.functional.jacobian(p.transform, z)
        eps = p.transform(z)
        log_normal = -0.5 * (eps.square() + math.log(2 * math.pi)).sum()
        by_hand = log_normal + torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(p.log_prob(z), by_hand, rtol=0, atol=1e-9)


@torch.no_grad()
def test_draws_match_the_density(float64):
    """The flow takes its draws back to standard normal noise, and they fall where it says."""
    p = some_flow(2)()
    z = p.sample((1, 20_000))[0]
    eps = p.transform(z)
    assert z_score(torch.cat([eps, eps.square() - 1, eps.prod(-1, keepdim=True)], -1), 0) < Z_LIMIT
    points, cell = grid(2, n=640)
    right = (points > 0).all(-1)
    share = p.log_prob(points[right]).exp().sum() * cell
    assert 0.02 < share < 0.98
    assert z_score((z > 0).all(-1, keepdim=True).double(), share) < Z_LIMIT


def test_it_learns_two_separate_modes(float64):
    """KL in nats on a grid; the best normal has 0.79, one that holds one mode alone ln 2."""
    target = td.MixtureSameFamily(
        td.Categorical(torch.ones(2)), td.Normal(torch.tensor([-2.0, 2.0]), 0.5)
    )
    points, cell = grid(1, half_width=6.0, n=601)
    mass = target.log_prob(points[:, 0]).exp() * cell

    def divergence(p):
        return mass @ (target.log_prob(points[:, 0]) - p.log_prob(points))

    best_normal = td.Independent(td.Normal(torch.zeros(1), (target.variance**0.5).reshape(1)), 1)
    prior = FlowPrior(1, transforms=2)
    optimizer = torch.optim.Adam(prior.parameters(), 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        divergence(prior()).backward()
        optimizer.step()
    assert divergence(prior()) < 0.02 < 0.5 < divergence(best_normal)


def test_the_size_is_as_asked():
    """Each map has masked layers from D to each width in turn and to 3 bins - 1 numbers a knot."""
    prior = FlowPrior(3, transforms=2, hidden=(16, 8), bins=5)
    widths = [3, 16, 8, 3 * (3 * 5 - 1)]
    n = 2 * sum((a + 1) * b for a, b in itertools.pairwise(widths))
    assert sum(p.numel() for p in prior.parameters()) == n


@torch.no_grad()
def test_mass_moves_inside_the_splines_only():
    """Where every coordinate is beyond 5 the density is the standard normal's, to every digit."""
    z = torch.tensor([[6.0, 6.0], [8.0, -7.0], [1.0, 2.0]])
    found, normal = some_flow(2)().log_prob(z), StandardNormal(2)().log_prob(z)
    assert torch.equal(found[:2], normal[:2]) and abs(found[2] - normal[2]) > 1e-2


def test_gradients_reach_every_parameter():
    prior = some_flow(3)
    prior().log_prob(torch.randn(64, 3)).sum().backward()
    for name, parameter in prior.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_it_is_trained_evaluated_and_drawn_from():
    x = torch.cat([torch.randn(64, 3) + 4, torch.randn(64, 3) - 4])
    encoder = nn.Sequential(mlp(3, 8, 4), DiagonalNormal(2))
    vae = VAE(encoder, nn.Sequential(mlp(2, 3), Normal(3)), FlowPrior(2, transforms=1))
    history = fit(vae, x, TrainConfig(epochs=20, device=x.device), validation=x)
    assert history.rows[-1]["validation_elbo"] > history.rows[0]["validation_elbo"] + 1
    assert not elbo_terms(vae, encoder(x), x).kl_is_exact
    row = summary(vae, x, 50).iloc[0]
    assert row.log_evidence > row.elbo
    evidence = log_evidence(vae, x, 50).mean()[0]
    assert abs(evidence - row.log_evidence) < 5 * 2**0.5 * row.standard_error
    assert vae.sample(9).shape == (9, 3)


def test_precision_is_kept_under_autocast(device):
    flow = some_flow(2)
    z = torch.randn(10, 2)
    whole = flow().log_prob(z)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        mixed = flow().log_prob(z)
        drawn = flow().sample((3,))
    assert mixed.dtype == drawn.dtype == torch.float32
    torch.testing.assert_close(mixed, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("before", [True, False])
def test_torchs_checks_are_left_as_found(before):
    code = f"""
import torch, torch.distributions as td
td.Distribution.set_default_validate_args({before})
from vaetutor import FlowPrior
flags = [td.Distribution._validate_args]
prior = FlowPrior(2)
flags.append(td.Distribution._validate_args)
prior().log_prob(prior().sample((3,)))
flags.append(td.Distribution._validate_args)
assert flags == [{before}] * 3, flags
"""
    options = ["-W", "error"]
    ran = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_values_are_checked_after_the_import():
    FlowPrior(2)
    with pytest.raises(ValueError, match="0 and 1"):
        Bernoulli(2)(torch.zeros(2)).log_prob(torch.tensor([0.3, 1.0]))
    with pytest.raises(ValueError):
        td.Normal(0.0, -1.0)
    with pytest.raises(ValueError):
        FlowPrior(2)().log_prob(torch.full((2,), torch.nan))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 0}, "dim"),
        ({"transforms": 0}, "transforms"),
        ({"bins": 1}, "bins"),
        ({"hidden": (8, 0)}, "hidden"),
        ({"hidden": ()}, "hidden"),
    ],
)
def test_bad_sizes_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        FlowPrior(**({"dim": 2} | change))
