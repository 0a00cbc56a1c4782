"""The local-level model against dense Gaussians, statsmodels and the bounds of the package."""

import copy

import numpy as np
import pytest
import torch
import torch.distributions as td
from statsmodels.tsa.statespace.structural import UnobservedComponents

from vaetutor import aggregate_posterior, elbo, exact, kl, log_weights, refine
from vaetutor.exact import LocalLevel, mean_field, mean_field_gap
from vaetutor.markov import MarkovNormal

pytestmark = pytest.mark.usefixtures("float64")

SCALES = [(0.5, 0.8, 1.7), (3.0, 0.2, 0.4), (0.1, 2.0, 5.0)]


def covariances(steps, transition, noise, initial):
    """Of z and of x, from the definition: Cov(z_i, z_j) counts the shared innovations."""
    i = torch.arange(steps)
    of_z = initial**2 + transition**2 * torch.minimum(i[:, None], i[None])
    return of_z, of_z + noise**2 * torch.eye(steps)


def some(steps=7, scales=SCALES[0], n=5):
    model = LocalLevel(steps, *scales)
    return model, model.sample(n, torch.Generator(model.noise_scale.device).manual_seed(1))


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_kalman_equals_the_dense_normal_and_the_elbo_of_the_smoother(steps, scales):
    model, x = some(steps, scales)
    of_z, of_x = covariances(steps, *scales)
    dense = td.MultivariateNormal(torch.zeros(steps), of_x).log_prob(x)
    assert torch.allclose(model.log_evidence(x), dense, atol=1e-8, rtol=0)
    assert torch.allclose(elbo(model, model.smoother(x), x), dense, atol=1e-8, rtol=0)
    assert torch.allclose(super(LocalLevel, model).log_evidence(x), dense, atol=1e-8, rtol=0)
    assert torch.allclose(model.prior().covariance_matrix, of_z, atol=1e-12)


@pytest.mark.parametrize("scales", SCALES)
def test_posterior_is_the_conditional_normal(scales):
    model, x = some(6, scales)
    of_z, of_x = covariances(6, *scales)
    gain = torch.linalg.solve(of_x, of_z).T  # Cov(z, x) = Cov(z, z)
    p = model.posterior(x)
    assert torch.allclose(p.mean, x @ gain.T, atol=1e-10)
    assert torch.allclose(p.covariance_matrix, (of_z - gain @ of_z).expand(5, 6, 6), atol=1e-10)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_smoother_is_the_posterior_as_a_chain(steps, scales):
    model, x = some(steps, scales)
    of_z, of_x = covariances(steps, *scales)
    gain = torch.linalg.solve(of_x, of_z).T  # Cov(z, x) = Cov(z, z)
    q, p = model.smoother(x), td.MultivariateNormal(x @ gain.T, of_z - gain @ of_z)
    assert torch.allclose(q.mean, p.mean, atol=1e-10)
    assert torch.allclose(q.dense().covariance_matrix, p.covariance_matrix, atol=1e-10)
    assert (kl(q, p).abs() < 1e-9).all() and (kl(q, model.posterior(x)).abs() < 1e-10).all()
    z = p.sample((3,))
    assert torch.allclose(q.log_prob(z), p.log_prob(z), atol=1e-9)


def test_aggregate_posterior_of_chains_is_the_mean_of_their_densities():
    model, x = some(4)
    mixed = aggregate_posterior(model, x, posterior=model.smoother)
    z = mixed.sample((6,))
    each = model.posterior(x).log_prob(z.unsqueeze(1))
    assert torch.allclose(mixed.log_prob(z), each.logsumexp(1) - np.log(5), atol=1e-9)


def test_every_draw_of_the_smoother_gives_the_evidence():
    model, x = some()
    log_w = log_weights(model, model.smoother(x), x, 4)
    assert torch.allclose(log_w, model.log_evidence(x).expand(4, -1), atol=1e-9)


def test_steps_of_the_smoother_do_not_see_the_past():
    model, x = some(5, n=1)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model.smoother(x).loc[0, 2, 0], x)
    assert (gradient[0, :2] == 0).all() and (gradient[0, 2:] > 0).all()


@pytest.mark.parametrize("scales", SCALES)
def test_kalman_equals_statsmodels(scales):
    transition, noise, initial = scales
    model, x = some(12, scales, n=3)
    filtered = model.filter(x)
    for i, series in enumerate(x.cpu().numpy()):
        theirs = UnobservedComponents(series, "local level")
        theirs.ssm.initialize_known(np.zeros(1), np.array([[initial**2]]))
        theirs.ssm.loglikelihood_burn = 0
        found = theirs.smooth([noise**2, transition**2])
        values = {
            "evidence": (filtered.log_evidence[i], found.llf),
            "filtered mean": (filtered.mean[i], found.filtered_state[0]),
            "filtered variance": (filtered.variance, found.filtered_state_cov[0, 0]),
            "smoothed mean": (model.posterior(x).mean[i], found.smoothed_state[0]),
            "smoothed variance": (model.posterior(x).variance[i], found.smoothed_state_cov[0, 0]),
        }
        for name, (ours, their) in values.items():
            assert np.allclose(ours.cpu(), their, atol=1e-8, rtol=0), name


def test_filter_conditions_on_the_observations_so_far():
    model, x = some(5)
    for t in range(1, 6):
        shorter = LocalLevel(t, *SCALES[0]).posterior(x[:, :t])
        filtered = model.filter(x)
        assert torch.allclose(filtered.mean[:, t - 1], shorter.mean[:, -1], atol=1e-10)
        assert torch.allclose(filtered.variance[t - 1], shorter.variance[0, -1], atol=1e-10)


def test_best_mean_field_of_the_posterior():
    """Precision of z_t given all other steps, by hand: r^-2, and s^-2 for each neighbour."""
    transition, noise, initial = SCALES[0]
    model, x = some(4)
    p = model.posterior(x)
    first, inner = 1 / initial**2 + 1 / transition**2, 2 / transition**2
    precision = torch.tensor([first, inner, inner, 1 / transition**2]) + 1 / noise**2
    assert torch.allclose(mean_field(p).variance, (1 / precision).expand(5, -1))
    gap = 0.5 * (precision.log().sum() - torch.logdet(torch.linalg.inv(p.covariance_matrix)))
    assert torch.allclose(mean_field_gap(p), gap) and (gap > 0.1).all()
    assert torch.allclose(kl(mean_field(p), p), gap)


def test_gap_of_mean_field_per_step_for_long_sequences():
    """The posterior precision is Toeplitz away from the ends: Szego's theorem gives the limit."""
    transition, noise = 0.7, 1.1
    a = (noise / transition) ** 2
    limit = 0.5 * np.log((1 + 2 * a) / ((1 + 2 * a + np.sqrt(1 + 4 * a)) / 2))
    gaps = []
    for steps in (100, 200):
        model = LocalLevel(steps, transition, noise, 1.0)
        gaps.append(mean_field_gap(model.posterior(model.sample(1))).item())
    assert abs((gaps[1] - gaps[0]) / 100 - limit) < 1e-8


@pytest.mark.parametrize("scales", SCALES)
def test_filter_posterior_never_looks_ahead_and_has_a_positive_gap(scales):
    model, x = some(6, scales)
    p, q = model.posterior(x), model.filter_posterior(x)
    gap = kl(q, p)
    assert (gap > 1e-4).all()
    assert torch.allclose(q.dense().covariance_matrix, p.covariance_matrix, atol=1e-10)
    changed = x.clone()
    changed[:, 4:] += 10
    q_changed = model.filter_posterior(changed)
    assert torch.equal(q.loc[:, :4], q_changed.loc[:, :4])
    assert not torch.isclose(q.loc[:, 4], q_changed.loc[:, 4]).any()
    last = kl(
        LocalLevel(1, *scales).filter_posterior(x[:, :1]),
        LocalLevel(1, *scales).posterior(x[:, :1]),
    )
    assert (last.abs() < 1e-12).all()  # one step has no future


def test_filter_posterior_is_the_best_that_does_not_look_ahead():
    """Gradient of the mean gap over x ~ p(x), in all it may choose: zero. Elsewhere: not."""
    model, scales, steps = LocalLevel(5, *SCALES[0]), SCALES[0], 5
    _, of_x = covariances(steps, *scales)
    basis = torch.eye(steps)
    found = model.filter_posterior(basis)
    weight = found.loc[:, :, 0].T.clone().requires_grad_()  # m = weight x, lower triangular
    gate = found.gate[0, :, 0].clone().requires_grad_()
    log_scale = found.scale[0, :, 0].log().clone().requires_grad_()
    p = model.posterior(basis)
    to_posterior_mean = p.mean.T  # posterior mean = this times x

    def mean_gap(weight, gate, log_scale):
        unit = torch.eye(steps) - torch.diag_embed(gate, -1)
        factor = torch.linalg.inv(unit) @ torch.diag(log_scale.exp())
        q = td.MultivariateNormal(torch.zeros(steps), scale_tril=factor)
        centred = td.MultivariateNormal(torch.zeros(steps), p.covariance_matrix[0])
        off = torch.linalg.inv(unit) @ weight - to_posterior_mean
        divergence = td.kl_divergence(q, centred)
        return divergence + 0.5 * torch.trace(off.T @ centred.precision_matrix @ off @ of_x)

    assert torch.allclose(weight, weight.tril())
    gradients = torch.autograd.grad(mean_gap(weight, gate, log_scale), (weight, gate, log_scale))
    assert gradients[0].tril().abs().max() < 1e-12
    above = torch.ones(steps, steps).triu(1).bool()
    assert gradients[0][above].abs().min() > 0.1  # looking ahead would help
    assert gradients[1].abs().max() < 1e-12 and gradients[2].abs().max() < 1e-12

    x = model.sample(4000, torch.Generator(of_x.device).manual_seed(2))
    drawn = kl(model.filter_posterior(x), model.posterior(x))
    error = drawn.std() / len(drawn) ** 0.5
    assert (drawn.mean() - mean_gap(weight, gate, log_scale)).abs() < 5 * error


def test_per_datapoint_optimisation_of_a_chain_finds_the_smoother():
    model, x = some(4, (0.7, 0.9, 1.0), n=3)
    found = refine(model, MarkovNormal(4, 1), x)
    assert (kl(found.q, model.posterior(x)) < 0.01).all()
    assert (mean_field_gap(model.posterior(x)) > 0.1).all()


def test_sample_has_the_covariance_of_x():
    model, scales = LocalLevel(3, *SCALES[0]), SCALES[0]
    device = model.noise_scale.device
    x = model.sample(200_000, torch.Generator(device).manual_seed(3))
    state = torch.get_rng_state()
    again = model.sample(200_000, torch.Generator(device).manual_seed(3))
    assert torch.equal(x, again) and torch.equal(state, torch.get_rng_state())
    _, of_x = covariances(3, *scales)
    products = x.unsqueeze(1) * x.unsqueeze(2)
    error = products.std(0) / len(x) ** 0.5
    assert ((products.mean(0) - of_x).abs() / error).max() < 5
    with pytest.raises(ValueError, match="n must be"):
        model.sample(0)


def test_float32_loses_little():
    model, x = some(50, (0.05, 1.0, 1.0))
    narrow = LocalLevel(50, 0.05, 1.0, 1.0).float()
    assert torch.allclose(
        narrow.log_evidence(x.float()).double(), model.log_evidence(x), rtol=1e-5
    )
    q = narrow.smoother(x.float())
    assert q.loc.dtype == q.scale.dtype == torch.float32
    assert torch.allclose(q.mean.double(), model.smoother(x).mean, atol=1e-4)


def test_float32_in_gives_the_rounded_result_of_float64():
    """To the last bit: the recursions themselves run in float64."""
    narrow = LocalLevel(50, 0.05, 0.7, 1.3).float()
    x, wide = narrow.sample(4).float(), copy.deepcopy(narrow).double()

    def values(model, x):
        filtered, posterior = model.filter(x), model.posterior(x)
        chains = model.smoother(x), model.filter_posterior(x)
        parts = [part for q in chains for part in (q.loc, q.gate, q.scale)]
        return [*filtered, posterior.mean, posterior.scale_tril, *parts]

    for ours, theirs in zip(values(narrow, x), values(wide, x.double()), strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs.float())


@pytest.mark.parametrize(("transition", "noise"), [(1e-9, 1.0), (1e-12, 1e-6), (1e3, 1e-6)])
def test_posterior_of_a_walk_that_hardly_moves_or_is_seen_without_noise(transition, noise):
    """In the limits z is one number seen T times, or it is x."""
    model = LocalLevel(5, transition, noise, 1.0)
    x = model.sample(3)
    p = model.posterior(x)
    variance = 1 / (1 + 5 / noise**2)
    mean = (variance * x.sum(1, keepdim=True) / noise**2).expand(3, 5)
    covariance = torch.full((5, 5), variance)
    if transition > noise:
        mean, covariance = x, noise**2 * torch.eye(5)
    assert torch.allclose(p.mean, mean, rtol=1e-8, atol=1e-5 * noise)
    assert torch.allclose(p.covariance_matrix / noise**2, covariance / noise**2, atol=1e-8)


def test_one_z_for_every_x():
    model, x = some(4)
    z = torch.randn(3, 1, 4)
    assert torch.allclose(model.log_joint(x, z), model.log_joint(x, z.expand(3, 5, 4)))


def test_bad_input():
    model, x = some(4)
    for steps in (0, 1.5, True):
        with pytest.raises(ValueError, match="steps must be"):
            LocalLevel(steps)
    for name in ("transition_scale", "noise_scale", "initial_scale"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            LocalLevel(3, **{name: 0.0})
    for method in (model.filter, model.smoother, model.posterior, model.filter_posterior):
        with pytest.raises(ValueError, match=r"x must have shape \(B, 4\)"):
            method(x[:, :3])
        with pytest.raises(ValueError, match="dtype of the model"):
            method(x.float())
        with pytest.raises(ValueError, match="NaN"):
            method(x * torch.nan)
    with pytest.raises(ValueError, match="z must have 4 latent dimensions"):
        model.log_likelihood(x, torch.zeros(2, 5, 3))
    assert exact.LocalLevel is LocalLevel
