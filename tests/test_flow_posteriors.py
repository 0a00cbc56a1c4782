"""Flows as posteriors, against autograd Jacobians, quadrature and normals."""

import math

import pytest
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
    FlowPosterior,
    PlanarFlow,
    StandardNormal,
    TrainConfig,
    doubly_reparameterised,
    draw,
    elbo,
    fit,
    gradient_moments,
    iwae,
    log_evidence,
    mlp,
    pathwise,
    refine,
    score_function,
    sticking_the_landing,
)
from vaetutor.families import positive
from vaetutor.targets import U1

ORIENTATIONS = ["coupling", "masked", "inverse"]


def some_flow(dim, orientation="coupling", **options):
    """A flow far from its start, so that no map is near the identity."""
    flow = FlowPosterior(
        dim,
        3,
        orientation=orientation,
        **({"transforms": 2, "hidden": (16,), "bins": 5} | options),
    )
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return flow


def some_families(dim):
    return [
        PlanarFlow(dim, 4),
        *(some_flow(dim, orientation) for orientation in ORIENTATIONS),
    ]


def some_lam(family, n=4):
    return torch.randn(n, family.n_parameters)


each_family = pytest.mark.parametrize("which", range(4), ids=["planar", *ORIENTATIONS])


def map_of(family, lam):
    """ε to z of one λ as a function, by a draw whose noise is given."""

    def forward(eps):
        q = family(lam.unsqueeze(0))
        keep = torch.randn, td.Normal.rsample
        try:
            torch.randn = lambda *a, **k: eps.reshape(1, 1, -1)
            td.Normal.rsample = lambda self, shape=(): eps.reshape(1, 1, -1)
            return q.rsample((1,))[0, 0]
        finally:
            torch.randn, td.Normal.rsample = keep

    return forward


# --- density and draws ---------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_log_determinant_is_that_of_the_jacobian(float64, dim, which):
    family = some_families(dim)[which]
    for lam in some_lam(family, 3):
        eps = torch.randn(dim)
        forward = map_of(family, lam)
        jacobian = torch.autograd.functional.jacobian(forward, eps)
        log_normal = -0.5 * (eps.square() + math.log(2 * math.pi)).sum()
        by_hand = log_normal - torch.linalg.slogdet(jacobian).logabsdet
        z = forward(eps)
        found = family(lam.unsqueeze(0)).log_prob(z.unsqueeze(0))[0]
        torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-8)


@each_family
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_draw_comes_with_its_density(float64, dim, which):
    q = some_families(dim)[which](some_lam(some_families(dim)[which]))
    z, log_q, share = draw(q, 50)
    assert share is None and z.shape == (50, 4, dim)
    torch.testing.assert_close(log_q, q.log_prob(z), rtol=0, atol=1e-7)


@torch.no_grad()
@each_family
@pytest.mark.parametrize("dim", [1, 2])
def test_the_density_integrates_to_one(float64, dim, which):
    family = some_families(dim)[which]
    lam = 0.5 * some_lam(family, 1)
    axis = torch.linspace(-12, 12, 6001 if dim == 1 else 601)
    points = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    mass = family(lam).log_prob(points.unsqueeze(1)).exp().sum() * (axis[1] - axis[0]) ** dim
    assert mass.item() == pytest.approx(1, abs=2e-3)


@torch.no_grad()
@each_family
def test_draws_fall_where_the_density_says(float64, which):
    family = some_families(2)[which]
    q = family(0.5 * some_lam(family, 1))
    z = q.sample((40_000,))[:, 0]
    axis = torch.linspace(-12, 12, 800)
    points = torch.cartesian_prod(axis, axis)
    for inside in (lambda z: (z > 0).all(-1), lambda z: z.norm(dim=-1) < 1.5):
        held = q.log_prob(points[inside(points)].unsqueeze(1)).exp().sum()
        share = held * (axis[1] - axis[0]) ** 2
        error = (share * (1 - share) / 40_000).sqrt() + 2e-3 / Z_LIMIT
        assert abs(inside(z).double().mean() - share) < Z_LIMIT * error


def test_a_planar_map_is_the_formula_of_the_source(float64):
    """z + û tanh(w.z + b) with determinant 1 + (1 - tanh²) w.û, and w.û above -1."""
    family = PlanarFlow(3, 1)
    lam = 2 * torch.randn(200, family.n_parameters)
    mean, raw, u, w, b = lam.split([3, 3, 3, 3, 1], -1)
    eps = torch.randn(200, 3)
    slope = (u * w).sum(-1, keepdim=True)
    step = torch.where(slope >= 0, u, u / (1 - slope))
    assert ((step * w).sum(-1) > -1).all() and (slope < -1).any() and (slope > 0).any()
    bent = torch.tanh((w * eps).sum(-1, keepdim=True) + b)
    z = mean + positive(raw) * (eps + step * bent)
    determinant = 1 + (1 - bent**2)[:, 0] * (step * w).sum(-1)
    expected = (
        -0.5 * (eps**2 + math.log(2 * math.pi)).sum(-1)
        - determinant.log()
        - positive(raw).log().sum(-1)
    )
    torch.testing.assert_close(family(lam).log_prob(z), expected, rtol=0, atol=1e-8)


def test_every_allowed_step_comes_from_one_u(float64):
    """û = u / (1 + max(0, -w.u)) is undone by u = û / (1 + min(0, w.û))."""
    family = PlanarFlow(2, 1)
    lam = 3 * torch.randn(500, family.n_parameters)
    q = family(lam)
    u, w = q.u[:, 0], q.w[:, 0]
    step = q.step[:, 0]
    again = step / (1 + (w * step).sum(-1, keepdim=True).clamp(max=0))
    torch.testing.assert_close(again, u, rtol=1e-9, atol=1e-9)


@each_family
def test_without_its_maps_it_is_the_diagonal_normal(float64, which):
    if which == 0:
        family, lam = PlanarFlow(3, 2), torch.randn(4, 20)
        lam[:, 6:12] = 0  # u
    else:
        family = FlowPosterior(3, 2, orientation=ORIENTATIONS[which - 1])
        lam = torch.randn(4, 8)
        with torch.no_grad():
            for parameter in family.parameters():
                parameter.zero_()
    z = torch.randn(4, 3)
    expected = DiagonalNormal(3)(lam[:, :6]).log_prob(z)
    torch.testing.assert_close(family(lam).log_prob(z), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("orientation", "joint", "of_given"), [("coupling", 2, 1), ("masked", 6, 1), ("inverse", 1, 6)]
)
def test_passes_of_the_network(orientation, joint, of_given):
    """What each direction costs in 6 dimensions, counted in calls of the network of a map."""
    flow = some_flow(6, orientation, transforms=1)
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    [network] = [m for m in flow.modules() if type(m).__name__ == "MaskedMLP"]
    network.register_forward_hook(count)
    q = flow(torch.randn(3, flow.n_parameters))
    z = draw(q, 2).z
    assert calls <= joint + 1
    assert calls >= joint
    calls = 0
    q.log_prob(z.detach())
    assert of_given <= calls <= of_given + 1


# --- gradients -----------------------------------------------------------------------------------


@each_family
def test_gradients_of_a_density_at_given_points(float64, which):
    """A root search must not lose the gradient, in z or in λ."""
    torch.manual_seed(2)
    family = some_families(2)[which]
    lam, z = some_lam(family, 2).requires_grad_(), torch.randn(2, 2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda lam, z: family(lam).log_prob(z), (lam, z), atol=1e-4, rtol=1e-3, eps=1e-7
    )


@each_family
def test_gradients_agree_with_the_score_function(float64, which):
    family = some_families(2)[which]
    lam, x = 0.5 * some_lam(family, 1)[0], torch.zeros(1, 1)
    score = gradient_moments(score_function, U1, family, lam, x, 8, replicates=20_000)
    for estimator in (pathwise, sticking_the_landing):
        path = gradient_moments(estimator, U1, family, lam, x, 2, replicates=4_000)
        error = torch.hypot(score.standard_error, path.standard_error)
        assert ((score.mean - path.mean).abs() < Z_LIMIT * error).all()


@each_family
def test_a_flow_that_is_the_posterior_sticks_the_landing(float64, which):
    family = some_families(2)[which]
    rows = 0.5 * some_lam(family)
    fixed = family(rows)

    class Same:
        def log_joint(self, x, z):
            return fixed.log_prob(z) - 3

    lam = rows.clone().requires_grad_()
    for estimator in (sticking_the_landing, doubly_reparameterised):
        value = estimator(Same(), family(lam), torch.zeros(4, 1), 3)
        torch.testing.assert_close(value, torch.full((4,), -3.0), rtol=0, atol=1e-7)
        (stuck,) = torch.autograd.grad(value.sum(), lam)
        assert stuck.abs().max() < 1e-6
    (total,) = torch.autograd.grad(pathwise(Same(), family(lam), torch.zeros(4, 1)).sum(), lam)
    assert total.abs().max() > 1e-3


@each_family
def test_gradients_reach_every_parameter(which):
    """Of the flow and of the encoder before it."""
    family = some_families(3)[which]
    encoder = nn.Sequential(mlp(5, 8, family.n_parameters), family)
    z, log_q, _ = draw(encoder(torch.randn(64, 5)), 2)
    (z.square().sum() - log_q.sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@each_family
def test_rows_do_not_see_each_other(float64, which):
    family = some_families(2)[which]
    lam = some_lam(family).requires_grad_()
    (first, *_) = iwae(U1, family(lam), torch.zeros(4, 1), 3)
    (gradient,) = torch.autograd.grad(first, lam)
    assert (gradient[0] != 0).any() and (gradient[1:] == 0).all()


# --- learning ------------------------------------------------------------------------------------


def test_planar_flows_bend_where_a_normal_cannot(float64):
    """Best of six starts on two modes: below the best normal, whose KL is 0.9024."""
    family = PlanarFlow(2, 8)
    start = 0.5 * torch.randn(6, family.n_parameters)
    none = torch.zeros(6, 1)
    lam = start.requires_grad_()
    optimizer = torch.optim.Adam([lam], 0.03)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.03 if step < 400 else 0.005
        optimizer.zero_grad()
        (-elbo(U1, family(lam), none, 16)).sum().backward()
        optimizer.step()
    divergence = U1.log_z().value - elbo(U1, family(lam.detach()), none, 4_000)
    assert divergence.min() < 0.75 and divergence.min() > -0.05


def test_a_flow_is_refined_by_its_parameters(float64):
    model, x = ConjugateNormal().double(), torch.tensor([[1.5], [-0.5]])
    for family in (PlanarFlow(1, 2), some_flow(1)):
        family = family.double()
        before = [p.clone() for p in family.parameters()]
        found = refine(model, family, x, objective=elbo, steps=600, n_samples=32)
        with torch.no_grad():
            gap = model.log_evidence(x) - elbo(model, found.q, x, 20_000)
        assert (gap.abs() < 0.05).all()
        assert all(torch.equal(*pair) for pair in zip(before, family.parameters(), strict=True))


@each_family
def test_a_vae_is_trained_and_evaluated(which):
    x = (torch.rand(64, 12) < 0.3).float()
    family = some_families(2)[which]
    encoder = nn.Sequential(mlp(12, 16, family.n_parameters), family)
    vae = VAE(encoder, nn.Sequential(mlp(2, 16, 12), Bernoulli(12)), StandardNormal(2))
    config = TrainConfig(epochs=30, learning_rate=5e-3, device=x.device.type)
    history = fit(vae, x, config, x)
    assert history.rows[-1]["validation_elbo"] > history.rows[0]["validation_elbo"] + 0.5
    assert log_evidence(vae, x, 30).value.isfinite().all()


# --- far out and bad input -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_planar_extremes_keep_value_and_gradient(size):
    family = PlanarFlow(3, 2)
    lam = torch.full((2, family.n_parameters), size)
    lam[1, 6:12] *= -1  # u against w: squeezed as far as it goes
    lam.requires_grad_()
    z, log_q, _ = draw(family(lam), 3)
    (z.sum() * 1e-8 + log_q.sum() * 1e-8).backward()
    assert z.isfinite().all() and log_q.isfinite().all() and lam.grad.isfinite().all()


def test_precision_is_kept_under_autocast(device):
    for which in range(4):
        family = some_families(2)[which]
        lam, z = some_lam(family), torch.randn(4, 2)
        whole = family(lam).log_prob(z)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            mixed = family(lam).log_prob(z)
            torch.manual_seed(1)
            drawn, log_q, _ = draw(family(lam), 3)
        assert mixed.dtype == drawn.dtype == log_q.dtype == torch.float32
        torch.testing.assert_close(mixed, whole, rtol=0, atol=1e-5)
        torch.manual_seed(1)
        again = draw(family(lam), 3)
        torch.testing.assert_close(drawn, again.z, rtol=0, atol=1e-5)


@each_family
def test_protocol_and_refusals(which):
    family = some_families(3)[which]
    n = family.n_parameters
    assert isinstance(family, Family)
    q = family(torch.zeros(5, 4, n))
    assert q.batch_shape == (5, 4) and q.event_shape == (3,)
    assert q.log_prob(torch.zeros(3)).shape == (5, 4)
    with pytest.raises(ValueError, match=f"lam must have shape .* {n}"):
        family(torch.zeros(2, n + 1))
    with pytest.raises(ValueError, match="lam holds"):
        family(torch.full((2, n), torch.nan))
    with pytest.raises(ValueError, match="within the support"):
        family(torch.zeros(2, n)).log_prob(torch.full((2, 3), torch.nan))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 0}, "dim"),
        ({"context": 0}, "context"),
        ({"transforms": 0}, "transforms"),
        ({"bins": 1}, "bins"),
        ({"hidden": ()}, "hidden"),
        ({"orientation": "forward"}, 'orientation must be "coupling", "masked" or "inverse"'),
    ],
)
def test_bad_sizes_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        FlowPosterior(**({"dim": 2, "context": 3} | change))


@pytest.mark.parametrize("wrong", [(0, 1), (2, 0), (2, 1.5)])
def test_bad_sizes_of_planar_flows_are_refused(wrong):
    with pytest.raises(ValueError, match="dim|transforms"):
        PlanarFlow(*wrong)


@torch.no_grad()
def test_moments_of_a_located_flow(float64):
    """Noise recovered by scale and shift has the moments of the flow at the standard place."""
    flow = some_flow(2)
    lam = some_lam(flow, 1)
    at_zero = lam.clone()
    at_zero[:, :4] = 0
    z = flow(lam).sample((20_000,))[:, 0]
    y = (z - lam[0, :2]) / positive(lam[0, 2:4])
    reference = flow(at_zero).sample((200_000,))[:, 0]
    assert z_score(y, reference.mean(0)) < Z_LIMIT + 1
