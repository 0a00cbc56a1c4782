"""Families against scipy, dense formulas and their behaviour far out."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import Z_LIMIT, z_score
from torch import nn

from vaetutor import Bernoulli, DiagonalNormal, FullNormal, LowRankNormal, Normal, elbo, kl, mlp
from vaetutor.families import SCALE_FLOOR, inverse_positive, positive
from vaetutor.model import VAE, Family
from vaetutor.priors import StandardNormal

LATENT = [DiagonalNormal(3), FullNormal(3), LowRankNormal(3, 2)]
OBSERVED = [Bernoulli(3), Normal(3), Bernoulli((2, 3)), Normal((2, 3))]


def numpy(t):
    return t.detach().cpu().numpy()


def test_positive_has_its_formula_and_inverse(float64):
    raw = torch.linspace(-50, 50, 1001)
    b = np.log(1e4)
    expected = np.exp(numpy(raw) / np.sqrt(1 + (numpy(raw) / b) ** 2))
    np.testing.assert_allclose(numpy(positive(raw)), expected, rtol=1e-12)
    assert (positive(raw).diff() > 0).all()
    torch.testing.assert_close(inverse_positive(positive(raw)), raw, rtol=1e-9, atol=1e-9)
    assert positive(torch.zeros(1)) == 1


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4, -1.0, float("nan")])
def test_inverse_positive_refuses_what_the_map_cannot_reach(scale):
    with pytest.raises(ValueError, match="scale must lie inside"):
        inverse_positive(torch.tensor([1.0, scale]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_scales_keep_value_and_gradient_at_extremes(dtype, size):
    raw = torch.tensor(size, dtype=dtype, requires_grad=True)
    scale = positive(raw)
    scale.backward()
    assert SCALE_FLOOR * 0.999 <= scale.item() <= 1.001 / SCALE_FLOOR
    assert torch.isfinite(raw.grad) and raw.grad > 0


@pytest.mark.parametrize("centre", [-1e4, -300.0, 0.0, 300.0, 1e4])
def test_the_gradient_of_a_scale_is_right_in_float32(centre):
    """Right, not only non-zero: written as a quotient it loses its sign to rounding far out."""
    raw = (centre + torch.linspace(-100, 100, 1001)).requires_grad_()
    positive(raw).log().sum().backward()
    u = raw.detach().double() / np.log(1e4)
    expected = (1 + u**2) ** -1.5
    torch.testing.assert_close(raw.grad.double(), expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("size", [-1e4, 1e4])
@pytest.mark.parametrize("family", [*LATENT, Bernoulli(3), Normal(3)], ids=str)
def test_densities_and_draws_keep_value_and_gradient_at_extremes(family, size):
    lam = torch.full((2, family.n_parameters), size)
    if isinstance(family, LowRankNormal):
        lam[:, 6:] = size / 100  # beyond 10^3 the density needs float64
    lam.requires_grad_()
    x = torch.ones(2, 3) * (1 if isinstance(family, Bernoulli) else 0.7)
    log_q = family(lam).log_prob(x)
    log_q.sum().backward()
    assert torch.isfinite(log_q).all()
    assert torch.isfinite(lam.grad).all()
    if family in LATENT:
        lam.grad = None
        z = family(lam).rsample()
        z.sum().backward()
        assert torch.isfinite(z).all()
        assert torch.isfinite(lam.grad).all() and (lam.grad[:, :6] != 0).all()


@pytest.mark.parametrize("size", [-1e4, 1e4])
@pytest.mark.parametrize("family", LATENT, ids=str)
def test_the_density_teaches_a_scale_that_has_run_away(family, size):
    lam = torch.zeros(2, family.n_parameters)
    lam[:, 3:6] = size
    lam.requires_grad_()
    family(lam).log_prob(torch.full((2, 3), 0.7)).sum().backward()
    assert torch.isfinite(lam.grad).all()
    assert (lam.grad[:, 3:6] * size < 0).all()  # back towards a scale of the size of z


def test_bernoulli_gradient_at_a_wrong_extreme_logit():
    lam = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    Bernoulli(2)(lam).log_prob(torch.tensor([[1.0, 0.0]])).backward()
    assert lam.grad.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("family", [*LATENT, *OBSERVED], ids=str)
def test_shapes_and_protocol(family):
    assert isinstance(family, Family)
    q = family(torch.zeros(5, 4, family.n_parameters))
    assert q.batch_shape == (5, 4)
    assert q.event_shape == ((3,) if family in LATENT else family.event_shape)
    assert q.log_prob(torch.zeros(q.event_shape)).shape == (5, 4)


@pytest.mark.parametrize("dim", [1, 7])
def test_diagonal_normal_is_the_product_of_scipy_normals(float64, dim):
    lam = torch.randn(4, 2 * dim)
    mean, scale = numpy(lam[:, :dim]), numpy(positive(lam[:, dim:]))
    z = torch.randn(4, dim)
    expected = scipy.stats.norm(mean, scale).logpdf(numpy(z)).sum(-1)
    np.testing.assert_allclose(numpy(DiagonalNormal(dim)(lam).log_prob(z)), expected, rtol=1e-12)


@pytest.mark.parametrize("dim", [1, 4])
def test_full_normal_is_the_dense_normal(float64, dim):
    family = FullNormal(dim)
    lam = torch.randn(3, family.n_parameters)
    q = family(lam)
    z = torch.randn(3, dim)
    for i in range(3):
        unit = np.eye(dim)
        unit[np.tril_indices(dim, -1)] = numpy(lam[i, 2 * dim :])
        factor = np.diag(numpy(positive(lam[i, dim : 2 * dim]))) @ unit
        dense = scipy.stats.multivariate_normal(numpy(lam[i, :dim]), factor @ factor.T)
        np.testing.assert_allclose(numpy(q.log_prob(z)[i]), dense.logpdf(numpy(z[i])), rtol=1e-9)
        np.testing.assert_allclose(numpy(q.covariance_matrix[i]), factor @ factor.T, rtol=1e-9)


@pytest.mark.parametrize(("dim", "rank"), [(1, 1), (4, 1), (4, 2), (3, 5)])
def test_low_rank_normal_is_the_dense_normal(float64, dim, rank):
    family = LowRankNormal(dim, rank)
    lam = torch.randn(3, family.n_parameters)
    q = family(lam)
    z = torch.randn(3, dim)
    for i in range(3):
        scale = np.diag(numpy(positive(lam[i, dim : 2 * dim])))
        v = numpy(lam[i, 2 * dim :]).reshape(dim, rank)
        covariance = scale @ (np.eye(dim) + v @ v.T) @ scale
        dense = scipy.stats.multivariate_normal(numpy(lam[i, :dim]), covariance)
        np.testing.assert_allclose(numpy(q.log_prob(z)[i]), dense.logpdf(numpy(z[i])), rtol=1e-9)
        np.testing.assert_allclose(numpy(q.covariance_matrix[i]), covariance, rtol=1e-9)
        entropy = dense.entropy()
        np.testing.assert_allclose(numpy(q.entropy()[i]), entropy, rtol=1e-9)


def test_low_rank_normal_without_its_factor_is_the_diagonal_normal(float64):
    lam = torch.randn(4, 6)
    padded = torch.cat([lam, torch.zeros(4, 6)], -1)
    z = torch.randn(4, 3)
    torch.testing.assert_close(
        LowRankNormal(3, 2)(padded).log_prob(z),
        DiagonalNormal(3)(lam).log_prob(z),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize(("size", "least", "most"), [(30, 0, 0.02), (100, 0, 0.2), (1e4, 50, 1e5)])
def test_low_rank_normal_loses_digits_in_float32_as_documented(size, least, most):
    lam = torch.randn(20, 50)
    lam[:, 20:] *= size
    family = LowRankNormal(10, 3)
    z = family(lam.double()).sample().float()
    exact = family(lam.double()).log_prob(z.double())
    assert least <= (family(lam).log_prob(z) - exact).abs().max() < most


def test_low_rank_normal_keeps_its_covariance_under_autocast(device):
    lam, z = torch.randn(64, 20), torch.randn(64, 5)
    wide = LowRankNormal(5, 2)(lam).log_prob(z)
    with torch.autocast(device.type, torch.bfloat16):
        narrow = LowRankNormal(5, 2)(lam)
    torch.testing.assert_close(narrow.log_prob(z), wide, rtol=0, atol=0)


@pytest.mark.parametrize("family", LATENT, ids=str)
def test_bad_draws_are_refused_whatever_torchs_switch_says(family):
    before = torch.distributions.Distribution._validate_args
    try:
        torch.distributions.Distribution.set_default_validate_args(False)
        with pytest.raises(ValueError, match="within the support"):
            family(torch.zeros(2, family.n_parameters)).log_prob(torch.full((2, 3), torch.nan))
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


def test_low_rank_normal_learns_its_factor_but_not_from_zero(float64):
    """The KL to a correlated normal: its gradient in V is zero at V = 0, and only there."""
    family = LowRankNormal(3, 2)
    p = FullNormal(3)(torch.randn(9))
    for start, moves in [(0.0, False), (0.1, True)]:
        lam = torch.zeros(family.n_parameters)
        lam[6:] = start * torch.tensor([1.0, 2.0, 3.0, -1.0, 0.5, 1.0])
        lam.requires_grad_()
        kl(family(lam), p).backward()
        assert (lam.grad[:6] != 0).all()
        assert (lam.grad[6:].abs() > 1e-6).all() == moves
        if not moves:
            torch.testing.assert_close(lam.grad[6:], torch.zeros(6), rtol=0, atol=1e-12)


def test_full_normal_learns_its_off_diagonal():
    family = FullNormal(3)
    lam = torch.zeros(2, family.n_parameters, requires_grad=True)
    z = family(lam).rsample((10,))
    (z[..., 0] * z[..., 1] * z[..., 2]).sum().backward()
    assert (lam.grad[:, 6:] != 0).all()


def test_full_normal_with_zero_factor_entries_is_the_diagonal_normal(float64):
    lam = torch.randn(4, 6)
    padded = torch.cat([lam, torch.zeros(4, 3)], -1)
    z = torch.randn(4, 3)
    torch.testing.assert_close(
        FullNormal(3)(padded).log_prob(z), DiagonalNormal(3)(lam).log_prob(z), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("family", LATENT, ids=str)
def test_density_by_draw_equals_density_by_noise(float64, family):
    """log q(mu + L eps) = log N(eps; 0, I) - log |L|."""
    q = family(torch.randn(2, family.n_parameters))
    z = q.rsample((5,))
    diagonal = isinstance(family, DiagonalNormal)
    factor = torch.diag_embed(q.stddev) if diagonal else q.scale_tril
    eps = torch.linalg.solve(factor, (z - q.mean).unsqueeze(-1)).squeeze(-1)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    expected = -0.5 * (eps.square() + np.log(2 * np.pi)).sum(-1) - log_det
    torch.testing.assert_close(q.log_prob(z), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", LATENT, ids=str)
def test_draws_have_the_moments_of_the_density(float64, family):
    q = family(torch.randn(1, family.n_parameters))
    z = q.rsample((200_000,))[:, 0]
    assert z_score(z, q.mean[0]) < Z_LIMIT
    centred = z - q.mean[0]
    covariance = torch.diag(q.variance[0])
    if not isinstance(family, DiagonalNormal):
        covariance = q.covariance_matrix[0]
    assert z_score(centred.unsqueeze(-1) * centred.unsqueeze(-2), covariance) < Z_LIMIT


def test_bernoulli_is_scipys(float64):
    logits = torch.randn(4, 6)
    x = torch.randint(0, 2, (4, 6)).double()
    p = 1 / (1 + np.exp(-numpy(logits)))
    expected = scipy.stats.bernoulli(p).logpmf(numpy(x)).sum(-1)
    np.testing.assert_allclose(numpy(Bernoulli(6)(logits).log_prob(x)), expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("logit", "x", "expected"), [(200, 0, -200), (-200, 1, -200), (200, 1, 0), (-200, 0, 0)]
)
def test_bernoulli_is_exact_at_large_logits(dtype, logit, x, expected):
    lam = torch.tensor([float(logit)], dtype=dtype)
    log_p = Bernoulli(1)(lam).log_prob(torch.tensor([float(x)], dtype=dtype)).item()
    assert log_p == pytest.approx(expected, rel=0, abs=1e-80)


def test_normal_is_scipys_with_all_constants(float64):
    family = Normal((2, 3), scale=0.3).double()
    assert family.scale.item() == pytest.approx(0.3, rel=1e-6)
    mean, x = torch.randn(4, 6), torch.randn(4, 2, 3)
    expected = scipy.stats.norm(numpy(mean).reshape(4, 2, 3), family.scale.item()).logpdf(numpy(x))
    np.testing.assert_allclose(numpy(family(mean).log_prob(x)), expected.sum((-1, -2)), rtol=1e-12)


def test_normal_learns_its_scale(float64):
    """At the maximum-likelihood scale the gradient is zero, and only there."""
    x = torch.randn(1000, 3) * 2
    family = Normal(3, scale=x.square().mean().sqrt().item()).double()
    family(torch.zeros(1000, 3)).log_prob(x).mean().backward()
    assert abs(family.raw_scale.grad.item()) < 1e-6
    wrong = Normal(3, scale=1.0).double()
    wrong(torch.zeros(1000, 3)).log_prob(x).mean().backward()
    assert wrong.raw_scale.grad.item() > 1


@pytest.mark.parametrize("family", [*LATENT, *OBSERVED], ids=str)
def test_wrong_width_is_refused(family):
    with pytest.raises(ValueError, match=f"lam must have shape .* {family.n_parameters}"):
        family(torch.zeros(2, family.n_parameters + 1))


@pytest.mark.parametrize(
    "lam", [torch.zeros(2, 6, dtype=torch.int64), np.zeros((2, 6)), [0.0] * 6]
)
def test_parameters_must_be_floating_point_tensors(lam):
    with pytest.raises(ValueError, match="lam must be a floating-point torch.Tensor, found"):
        DiagonalNormal(3)(lam)


def test_sizes_may_be_numpy_integers():
    assert DiagonalNormal(np.int64(3)).n_parameters == 6
    assert Normal(3, scale=np.float32(0.5)).scale.item() == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("family", [*LATENT, *OBSERVED], ids=str)
def test_parameters_that_are_not_finite_are_refused(family, bad):
    with pytest.raises(ValueError, match="lam holds"):
        family(torch.full((2, family.n_parameters), bad))


@pytest.mark.parametrize(
    "make",
    [
        DiagonalNormal,
        FullNormal,
        lambda size: LowRankNormal(size, 1),
        lambda size: LowRankNormal(1, size),
        Bernoulli,
        Normal,
    ],
)
@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_sizes_must_be_positive_integers(make, size):
    with pytest.raises((ValueError, TypeError)):
        make(size)


def test_normal_refuses_a_scale_that_is_not_positive():
    with pytest.raises(ValueError, match="scale must be a finite number above 0, found -1"):
        Normal(3, scale=-1)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, in compile
@pytest.mark.parametrize("x", [0.3, -1.0, 2.0, float("nan")])
def test_grey_pixels_are_refused_even_with_torch_checks_off(x):
    import zuko  # noqa: F401  (turns torch's own checks off)

    before = torch.distributions.Distribution._validate_args
    try:
        torch.compile(nn.Linear(1, 1))  # so does this
        torch.distributions.Distribution.set_default_validate_args(False)
        with pytest.raises(ValueError, match="x must hold only 0 and 1 for a Bernoulli"):
            Bernoulli(2)(torch.zeros(3, 2)).log_prob(torch.tensor([0.0, x]))
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


def test_importing_the_package_leaves_torchs_checks_on():
    code = (
        "import torch; before = torch.distributions.Distribution._validate_args\n"
        "import vaetutor; from vaetutor import fit, summary, mnist, VAE, elbo, LinearGaussian\n"
        "assert before and torch.distributions.Distribution._validate_args"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("family", [*LATENT, *OBSERVED], ids=str)
def test_half_precision_parameters_give_float32_densities(family):
    q = family(torch.zeros(2, family.n_parameters, dtype=torch.bfloat16))
    assert q.log_prob(torch.zeros(2, *q.event_shape)).dtype == torch.float32


@pytest.mark.parametrize("family", OBSERVED, ids=str)
def test_half_precision_data_give_float32_densities(family):
    q = family(torch.randn(2, family.n_parameters))
    x = torch.randint(0, 2, (2, *q.event_shape)).float()
    torch.testing.assert_close(q.log_prob(x.half()), q.log_prob(x))
    assert q.log_prob(x.half()).dtype == torch.float32


@pytest.mark.parametrize("family", [FullNormal(5), LowRankNormal(5, 2)], ids=str)
def test_normals_with_matrices_draw_in_float32_under_autocast(device, family):
    q = family(torch.randn(64, family.n_parameters))
    torch.manual_seed(1)
    wide = q.rsample((16,))
    torch.manual_seed(1)
    with torch.autocast(device.type, torch.bfloat16):
        narrow = q.rsample((16,))
    torch.testing.assert_close(narrow, wide, rtol=0, atol=0)


@pytest.mark.parametrize(
    "posterior", [DiagonalNormal(5), FullNormal(5), LowRankNormal(5, 2)], ids=str
)
def test_autocast_touches_the_networks_only(device, posterior):
    encoder = nn.Sequential(mlp(40, 32, posterior.n_parameters), posterior)
    decoder = nn.Sequential(mlp(5, 32, 40), Bernoulli(40))
    vae = VAE(encoder, decoder, StandardNormal(5)).to(device)
    x = torch.randint(0, 2, (64, 40)).float()
    torch.manual_seed(1)
    wide = elbo(vae, vae.encoder(x), x, 16)
    torch.manual_seed(1)
    with torch.autocast(device.type, torch.bfloat16):
        assert vae.encoder[0](x).dtype == torch.bfloat16
        narrow = elbo(vae, vae.encoder(x), x, 16)
    assert narrow.dtype == torch.float32
    assert ((narrow - wide).abs() / wide.abs()).max() < 0.01
    # Values of a few tens have a spacing of 0.25 in bfloat16; a density computed there shows it.
    assert ((narrow * 16) % 1 != 0).any()
