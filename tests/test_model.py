"""The VAE against the exact linear model that it contains."""

import pytest
import torch
from conftest import Z_LIMIT, z_score
from torch import nn

from vaetutor import (
    VAE,
    Bernoulli,
    DiagonalNormal,
    FullNormal,
    LinearGaussian,
    Normal,
    StandardNormal,
    elbo,
    elbo_terms,
    mlp,
)
from vaetutor.families import inverse_positive
from vaetutor.model import AmortizedModel, LatentVariableModel


def linear_vae(exact: LinearGaussian) -> VAE:
    """The VAE whose decoder is `exact` and whose encoder is its posterior."""
    d, q = exact.weight.shape
    posterior = exact.posterior(torch.zeros(1, d, dtype=exact.weight.dtype))
    factor = posterior.scale_tril[0]
    family = FullNormal(q)
    encoder = nn.Sequential(nn.Linear(d, family.n_parameters), family)
    decoder = nn.Sequential(nn.Linear(q, d), Normal(d, exact.noise_scale.item()))
    vae = VAE(encoder, decoder, StandardNormal(q)).to(exact.weight)
    gain = torch.linalg.solve(
        exact.weight.T @ exact.weight + exact.noise_scale**2 * torch.eye(q), exact.weight.T
    )
    with torch.no_grad():
        decoder[0].weight.copy_(exact.weight)
        decoder[0].bias.copy_(exact.mean)
        encoder[0].weight.zero_()[:q] = gain
        unit = factor / factor.diag().unsqueeze(-1)
        row, column = torch.tril_indices(q, q, -1)
        encoder[0].bias.copy_(
            torch.cat([-gain @ exact.mean, inverse_positive(factor.diag()), unit[row, column]])
        )
        decoder[1].raw_scale.copy_(inverse_positive(exact.noise_scale))
    return vae


@pytest.fixture
def exact(float64):
    return LinearGaussian(torch.randn(6, 3), torch.randn(6), 0.8)


def test_linear_vae_is_probabilistic_pca(exact):
    vae = linear_vae(exact)
    x = exact.sample(10)
    z = torch.randn(4, 10, 3)
    torch.testing.assert_close(vae.log_joint(x, z), exact.log_joint(x, z), rtol=0, atol=1e-10)
    bound = elbo(vae, vae.encoder(x), x, 1)
    torch.testing.assert_close(bound, exact.log_evidence(x), rtol=0, atol=1e-8)


def test_the_gradient_is_zero_at_the_optimum_of_the_linear_vae(float64):
    """At the maximum-likelihood weights and the exact posterior nothing moves.

    The draws are antithetic with unit second moments, so that they have the mean and covariance of
    the normal exactly and the mean gradient has no noise.
    """
    from conftest import FixedNoise

    x = torch.randn(200, 6) @ torch.randn(6, 6)
    fitted = LinearGaussian.fit(x, 3)
    vae = linear_vae(fitted)
    q = vae.encoder(x)
    # Columns of sqrt(3) I and their opposites: mean 0, covariance I, over 6 draws.
    eps = torch.cat([torch.eye(3), -torch.eye(3)]) * 3**0.5
    z = FixedNoise(q.mean, q.stddev, eps.unsqueeze(1).expand(6, 200, 3))
    elbo_terms(vae, z, x, 6).elbo.mean().backward()
    for name, parameter in vae.named_parameters():
        if name.startswith("encoder.0.bias"):
            continue  # its off-diagonal part is held at zero by the diagonal draws
        assert parameter.grad.abs().max() < 1e-9, name


def test_shapes():
    vae = VAE(
        nn.Sequential(mlp(12, 8, 4), DiagonalNormal(2)),
        nn.Sequential(mlp(2, 8, 12), Bernoulli((3, 4))),
        StandardNormal(2),
    )
    assert vae.sample(5).shape == (5, 3, 4)
    assert vae.log_joint(torch.zeros(7, 3, 4), torch.zeros(2, 7, 2)).shape == (2, 7)
    assert vae.encoder(torch.zeros(7, 12)).batch_shape == (7,)


def some_vae():
    encoder = nn.Sequential(mlp(12, 8, 4), DiagonalNormal(2))
    return VAE(encoder, nn.Sequential(mlp(2, 8, 12), Bernoulli(12)), StandardNormal(2))


def test_samples_are_of_x_and_means_are_asked_for():
    vae = some_vae()
    assert set(vae.sample(50).unique().tolist()) == {0.0, 1.0}
    grey = vae.sample(50, mean=True)
    assert ((grey > 0) & (grey < 1)).all() and not grey.requires_grad


def test_samples_have_the_moments_of_the_model(float64):
    exact = LinearGaussian(torch.randn(4, 2), torch.randn(4), 0.5)
    x = linear_vae(exact).sample(100_000) - exact.mean
    covariance = exact.weight @ exact.weight.T + 0.25 * torch.eye(4)
    assert z_score(x.unsqueeze(-1) * x.unsqueeze(-2), covariance) < Z_LIMIT


def test_reconstructions_draw_z():
    """The posterior mean flatters the model; two reconstructions differ."""
    vae = some_vae()
    x = torch.randint(0, 2, (6, 12)).float()
    first, second = vae.reconstruct(x), vae.reconstruct(x)
    assert first.shape == (6, 12) and not first.requires_grad
    assert (first != second).any()


def test_reconstructions_are_means():
    grey = some_vae().reconstruct(torch.ones(6, 12))
    assert ((grey > 0) & (grey < 1)).all()


def test_the_decoder_always_sees_three_axes():
    vae, seen = some_vae(), []
    vae.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    vae.sample(5)
    vae.reconstruct(torch.ones(6, 12))
    assert seen[0] == (1, 5, 2) and seen[-1] == (1, 6, 2)


@pytest.mark.parametrize("x", [torch.ones(6, 11), torch.full((6, 12), 0.3), torch.ones(12)])
def test_reconstruction_refuses_what_the_model_cannot_have_seen(device, x):
    with pytest.raises(ValueError, match="x must"):
        some_vae().reconstruct(x.to(device))


def test_reconstruction_of_a_sharp_linear_model_is_the_data(float64):
    weight = torch.linalg.qr(torch.randn(6, 3))[0] * 5
    exact = LinearGaussian(weight, torch.zeros(6), 0.01)
    x = torch.randn(8, 3) @ weight.T
    torch.testing.assert_close(linear_vae(exact).reconstruct(x), x, rtol=0, atol=0.1)


def test_protocols():
    assert isinstance(some_vae(), AmortizedModel)
    assert not isinstance(nn.Linear(1, 1), LatentVariableModel)


@pytest.mark.parametrize(
    ("x", "z", "message"),
    [
        (torch.zeros(6, 12), torch.zeros(6, 2), r"z must have shape \(S, B, D\)"),
        (torch.zeros(6, 12), torch.zeros(3, 5, 2), "x has 6 rows but .* for 5"),
        (torch.zeros(6, 13), torch.zeros(3, 6, 2), r"x must have shape \(B, 12\)"),
        (torch.full((6, 12), 0.5), torch.zeros(3, 6, 2), "only 0 and 1"),
    ],
)
def test_bad_input_is_refused(device, x, z, message):
    with pytest.raises(ValueError, match=message):
        some_vae().log_joint(x.to(device), z.to(device))


def test_counts_and_empty_batches_are_refused():
    with pytest.raises(ValueError, match="n must be an integer of at least 1, found 0"):
        some_vae().sample(0)
    with pytest.raises(ValueError, match="at least one example"):
        some_vae().reconstruct(torch.zeros(0, 12))


def test_prior_is_the_standard_normal_and_moves_with_the_model(float64):
    prior = StandardNormal(3)
    z = torch.randn(5, 3)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(prior.double()().log_prob(z), expected)
    assert prior.double()().sample((2,)).dtype == torch.float64
    assert not prior.state_dict()
    with pytest.raises(ValueError, match="dim must be"):
        StandardNormal(0)


def test_mlp_is_its_formula(float64):
    net = mlp(3, 5, 2, activation=nn.Tanh).double()
    x = torch.randn(4, 3)
    hidden = torch.tanh(x @ net[0].weight.T + net[0].bias)
    torch.testing.assert_close(net(x), hidden @ net[2].weight.T + net[2].bias)
    assert len(net) == 3


@pytest.mark.parametrize("sizes", [(), (3,), (3, 0), (3, 2.0)])
def test_mlp_refuses_impossible_sizes(sizes):
    with pytest.raises(ValueError, match="sizes must"):
        mlp(*sizes)
