"""Replicas go the way that each would go by itself."""

from dataclasses import replace

import pytest
import torch
from conftest import Z_LIMIT, FixedNoise
from test_capture import Tape
from test_checkpoint import Stopped, config, grey, same, stopping
from torch import nn

from vaetutor import (
    VAE,
    Bernoulli,
    DiagonalNormal,
    Divergence,
    ElboTerms,
    FlowPosterior,
    FullNormal,
    LowRankNormal,
    MixtureNormal,
    MixturePrior,
    StandardNormal,
    VampPrior,
    doubly_reparameterised,
    elbo,
    elbo_terms,
    fit,
    fit_replicas,
    iwae,
    kl,
    mlp,
    pathwise,
    score_function,
    sticking_the_landing,
)
from vaetutor.evaluate import mean_terms


def make(seed, family=DiagonalNormal, prior=StandardNormal):
    torch.manual_seed(seed)
    f = family(2)
    encoder = nn.Sequential(mlp(12, 8, f.n_parameters), f)
    decoder = nn.Sequential(mlp(2, 8, 12), Bernoulli(12))
    return VAE(encoder, decoder, prior(2))


def bits(n=50):
    return grey(n).present(generator=torch.Generator("cpu").manual_seed(4))


def without_draws(model, q, x, n_samples):
    """An objective that is the same whatever is drawn."""
    z = q.mean.unsqueeze(0)
    return ElboTerms(model.log_likelihood(x, z).mean(0), kl(q, model.prior()), True)


def close(models, others, atol=1e-6):
    for a, b in zip(models, others, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=atol)


# --- each its own way -----------------------------------------------------------------------


@pytest.mark.parametrize("family", [DiagonalNormal, FullNormal])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_without_draws_replicas_are_separate_runs(device, family, clip):
    """All data in a batch and no draws: order and noise do not matter, only the arithmetic."""
    plain = config(device, batch_size=50, objective=without_draws, learning_rate=1e-2, clip=clip)
    configs = [plain, replace(plain, beta=3.0), replace(plain, beta=lambda epoch: epoch / 5)]
    together, apart = ([make(seed, family).to(device) for seed in range(3)] for _ in range(2))
    x = bits().to(device)
    histories = fit_replicas(together, x, configs)
    expected = [fit(vae, x, own) for vae, own in zip(apart, configs, strict=True)]
    close(together, apart)
    for found, single in zip(histories, expected, strict=True):
        assert list(found.frame.columns) == list(single.frame.columns)
        torch.testing.assert_close(
            torch.tensor(found.frame.to_numpy()),
            torch.tensor(single.frame.to_numpy()),
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize(
    "estimator", [elbo, elbo_terms, iwae, pathwise, sticking_the_landing, score_function]
)
def test_with_the_same_noise_replicas_are_separate_runs(device, estimator):
    """Twenty-five copies of one example: the order does not matter, and the noise is given."""
    noise = torch.randn(4, 25, 2, device=device)

    def objective(model, q, x, n_samples):
        fixed = FixedNoise(q.base_dist.loc, q.base_dist.scale, noise[:, : len(x)])
        return estimator(model, fixed, x, n_samples)

    plain = config(device, batch_size=25, objective=objective, n_samples=4, learning_rate=1e-2)
    together, apart = ([make(seed).to(device) for seed in range(3)] for _ in range(2))
    x = bits(1).expand(25, 12).to(device)
    fit_replicas(together, x, [plain] * 3)
    for vae in apart:
        fit(vae, x, plain)
    close(together, apart)


@pytest.mark.parametrize("n_samples", [1, 5])
def test_each_replica_learns_what_it_is_told(device, n_samples):
    """Objectives and weights in one run: the pressure of the KL orders the rates."""
    plain = config(device, epochs=150, learning_rate=1e-2)
    configs = [
        replace(plain, beta=0.0),
        plain,
        replace(plain, beta=10.0),
        replace(plain, objective=iwae, n_samples=n_samples),
    ]
    models = [make(0).to(device) for _ in configs]
    histories = fit_replicas(models, grey(), configs)
    rates = [mean_terms(vae, bits())["kl"] for vae in models[:3]]
    assert rates[0] > rates[1] > rates[2]
    assert list(histories[3].frame.columns) == ["epoch", "iwae", "beta"]
    assert histories[2].frame.beta.unique().tolist() == [10.0]
    rows = histories[1].frame
    assert rows.elbo.iloc[-1] == pytest.approx(rows.reconstruction.iloc[-1] - rows.kl.iloc[-1])
    assert rows.elbo.iloc[-10:].mean() > rows.elbo.iloc[0]


def test_every_replica_has_draws_of_its_own_and_sees_every_example_once(device):
    """Equal starts part at once; their draws are uncorrelated; each epoch shows all examples."""
    x = torch.eye(12, device=device).repeat(5, 1)[:50]  # an example is one of twelve pixels
    plain = config(device, epochs=1, batch_size=16, learning_rate=1e-30)
    shown = []

    def watch(model, q, x, n_samples):
        return elbo_terms(model, q, x, n_samples)._replace(
            kl=(x * torch.arange(12.0).to(x)).sum(-1)
        )

    histories = fit_replicas([make(0), make(0)], x, [replace(plain, objective=watch)] * 2)
    total = (x.cpu() * torch.arange(12.0, device="cpu")).sum() / 50
    shown = [h.rows[0]["kl"] for h in histories]
    assert shown == pytest.approx([total.item()] * 2, rel=1e-6)

    n = 4000
    noise = []

    def draws(model, q, x, n_samples):
        z = q.rsample((1,))
        noise.append(None)
        return ElboTerms(z[0, :, 0], z[0, :, 1], True)

    big = torch.zeros(n, 12, device=device)
    pair = fit_replicas(
        [make(0), make(0)], big, [replace(plain, objective=draws, batch_size=n)] * 2
    )
    a, b = (torch.tensor([h.rows[0]["reconstruction"], h.rows[0]["kl"]]) for h in pair)
    assert not torch.equal(a, b)
    q = make(0).to(device).encoder(big[:1])
    for means in (a, b):  # each a mean of n draws of the same q
        z = (means.to(device) - q.mean[0]) / (q.stddev[0] / n**0.5)
        assert z.abs().max() < Z_LIMIT


@pytest.mark.parametrize(
    "family",
    [
        FullNormal,
        lambda dim: LowRankNormal(dim, 1),
        lambda dim: MixtureNormal(dim, 3),
        lambda dim: FlowPosterior(dim, 4),
    ],
)
def test_other_families_train(device, family):
    plain = config(device, epochs=60, learning_rate=1e-2)
    models = [make(seed, family).to(device) for seed in range(2)]
    for history in fit_replicas(models, grey(), [plain, plain]):
        assert history.frame.elbo.iloc[-10:].mean() > history.frame.elbo.iloc[0] + 0.02


@pytest.mark.parametrize("kind", ["mixture", "vamp"])
def test_learned_priors_train(device, kind):
    def build(seed):
        vae = make(seed)
        vae.prior = MixturePrior(2, 3) if kind == "mixture" else VampPrior(vae.encoder, bits(4))
        return vae.to(device)

    models = [build(0), build(1)]
    before = [[p.detach().clone() for p in vae.prior.parameters()] for vae in models]
    fit_replicas(models, grey(), [config(device)] * 2)
    for vae, old in zip(models, before, strict=True):
        assert all(not torch.equal(p, q) for p, q in zip(vae.prior.parameters(), old, strict=True))


def test_shared_weights_stay_shared(device):
    """Two layers with one weight: replicas are separate runs, and the weight moves as one."""

    def build(seed):
        vae = make(seed)
        vae.encoder.insert(1, nn.Linear(4, 4))
        vae.encoder.insert(2, nn.Linear(4, 4))
        vae.encoder[2].weight = vae.encoder[1].weight
        return vae.to(device)

    plain = config(device, batch_size=50, objective=without_draws, learning_rate=1e-2)
    together, apart = ([build(0), build(1)] for _ in range(2))
    fit_replicas(together, bits(), [plain, plain])
    for vae in apart:
        fit(vae, bits(), plain)
    close(together, apart)
    assert together[0].encoder[1].weight is together[0].encoder[2].weight


def test_frozen_parts_stay(device):
    models = [make(seed).to(device) for seed in range(2)]
    for vae in models:
        vae.decoder.requires_grad_(False)
    before = [vae.decoder[0][0].weight.clone() for vae in models]
    fit_replicas(models, grey(), [config(device)] * 2)
    assert all(torch.equal(v.decoder[0][0].weight, w) for v, w in zip(models, before, strict=True))
    assert not same(models[0], make(0).to(device))


@pytest.mark.parametrize("training", [True, False])
def test_modules_compute_in_training_mode_and_come_back(device, training):
    models, modes = [make(0).train(training), make(1).train(training)], []
    for vae in models:
        vae.encoder[0].register_forward_pre_hook(lambda module, _: modes.append(module.training))
    fit_replicas(models, grey(), [config(device, epochs=1, batch_size=25)] * 2)
    assert modes[-2:] == [True, True]  # two steps
    assert all(vae.training is training for vae in models)


# --- a run like any other -------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run(device):
    runs = []
    for seed in (1, 1, 2):
        models = [make(0), make(1)]
        runs.append((models, fit_replicas(models, grey(), [config(device, seed=seed)] * 2)))
    assert all(same(a, b) for a, b in zip(runs[0][0], runs[1][0], strict=True))
    assert runs[0][1][0].frame.equals(runs[1][1][0].frame)
    assert not runs[0][1][0].frame.equals(runs[2][1][0].frame)


def test_stopped_replicas_go_on_to_the_same_bits(device, tmp_path):
    path, whole = tmp_path / "a.pt", [make(0), make(1)]
    expected = fit_replicas(whole, grey(), [config(device, objective=stopping(10**9))] * 2)
    for start, stop in ((0, 9), (5, 14), (7, 10**9)):  # only the first start counts
        models = [make(start), make(start + 1)]
        configs = [config(device, objective=stopping(stop))] * 2
        try:
            found = fit_replicas(models, grey(), configs, checkpoint=path)
        except Stopped:
            assert path.exists()
    assert all(same(a, b) for a, b in zip(models, whole, strict=True))
    assert all(a.frame.equals(b.frame) for a, b in zip(found, expected, strict=True))


def test_replicas_are_captured(device, monkeypatch):
    """With two objectives, a schedule, and an uneven last batch."""
    if device.type != "cuda":
        monkeypatch.setattr("vaetutor.train.recorder_for", lambda device: Tape())
    found = []
    for captured in (False, True):
        plain = config(device, epochs=6, capture=captured, learning_rate=lambda e: 1e-2 / (1 + e))
        configs = [
            replace(plain, beta=lambda epoch: epoch / 6),
            plain,
            replace(plain, objective=iwae, n_samples=3),
        ]
        models = [make(seed).to(device) for seed in range(3)]
        found.append((models, fit_replicas(models, grey(), configs)))
    close(found[0][0], found[1][0])
    assert found[1][1][0].frame.beta.nunique() == 6


def test_one_that_diverges_stops_all_where_they_were(device):
    calls = []

    def poisoned(*args):
        calls.append(None)
        terms = elbo_terms(*args)
        return terms._replace(kl=terms.kl * torch.nan) if len(calls) == 4 + 4 + 2 else terms

    plain = config(device, objective=poisoned)
    models, twins = ([make(0), make(1)] for _ in range(2))
    fit_replicas(twins, grey(), [config(device, epochs=1)] * 2)
    with pytest.raises(Divergence, match="not finite in epoch 2, step 2"):
        fit_replicas(models, grey(), [plain, plain])
    assert all(same(a, b) for a, b in zip(models, twins, strict=True))


# --- bad input ------------------------------------------------------------------------------


def test_what_cannot_be_stacked_is_refused(device):
    plain = config(device)
    with pytest.raises(ValueError, match="models must have one architecture"):
        fit_replicas([make(0), make(0, FullNormal)], grey(), [plain] * 2)
    with pytest.raises(ValueError, match="configs must hold one TrainConfig for each"):
        fit_replicas([make(0)], grey(), [plain] * 2)
    with pytest.raises(ValueError, match="configs must hold one TrainConfig for each"):
        fit_replicas([], grey(), [])
    with pytest.raises(ValueError, match="one of them twice"):
        fit_replicas([make(0)] * 2, grey(), [plain] * 2)
    with pytest.raises(ValueError, match="configs must agree in learning_rate"):
        fit_replicas([make(0), make(1)], grey(), [plain, replace(plain, learning_rate=1.0)])
    for options in ({"encoder_steps": 1}, {"free_bits": 0.1}, {"keep": "best"}):
        name = next(iter(options))
        with pytest.raises(ValueError, match=f"{name} must be .* for replicas"):
            fit_replicas([make(0)], grey(), [replace(plain, **options)])
    shifted = [make(0), make(1)]
    for shift, vae in enumerate(shifted):
        vae.encoder.register_buffer("shift", torch.full((3,), float(shift)))
    with pytest.raises(ValueError, match="models must have equal buffers"):
        fit_replicas(shifted, grey(), [plain] * 2)
    batch_norm = [make(0), make(1)]
    for vae in batch_norm:
        vae.encoder.insert(0, nn.BatchNorm1d(12))
    with pytest.raises(ValueError, match="batch normalisation"):
        fit_replicas(batch_norm, grey(), [plain] * 2)


def test_an_objective_whose_gradient_would_be_lost_is_refused(device):
    """A hook on a draw, and a baseline that asks whether it is trained: both see no gradient."""
    plain = config(device, n_samples=3)
    with pytest.raises(ValueError, match="doubly_reparameterised has another gradient"):
        own = replace(plain, objective=doubly_reparameterised)
        fit_replicas([make(0), make(1)], grey(), [own] * 2)

    def with_baseline(model, q, x, n_samples):
        return score_function(model, q, x, n_samples, baseline=model.baseline)

    models = [make(0), make(1)]
    for vae in models:
        vae.baseline = mlp(12, 1)
    with pytest.raises(ValueError, match="has another gradient"):
        fit_replicas(models, grey(), [replace(plain, objective=with_baseline)] * 2)
