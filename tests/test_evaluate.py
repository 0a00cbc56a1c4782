"""Importance-sampled evidence against exact evidence, and the bookkeeping around it."""

import math

import pytest
import torch
import torch.distributions as td
from conftest import Z_LIMIT, FixedNoise
from torch import nn

from vaetutor import (
    VAE,
    Bernoulli,
    ConjugateNormal,
    DiagonalNormal,
    Images,
    LinearGaussian,
    LogEvidence,
    StandardNormal,
    log_evidence,
    log_weights,
    mlp,
    summary,
)
from vaetutor._run import seeded
from vaetutor.evaluate import mean_terms, pareto_k


@pytest.fixture
def linear(float64):
    return LinearGaussian(torch.randn(6, 2), torch.randn(6), 0.8)


def some_vae(n_pixels=12, dim=2):
    torch.manual_seed(3)
    encoder = nn.Sequential(mlp(n_pixels, 8, 2 * dim), DiagonalNormal(dim))
    decoder = nn.Sequential(mlp(dim, 8, n_pixels), Bernoulli(n_pixels))
    return VAE(encoder, decoder, StandardNormal(dim))


def bits(n=50, n_pixels=12):
    return (torch.rand(n, n_pixels) < 0.3).float()


def dynamic_images(n=50):
    x = torch.rand(n, 12, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    labels = torch.zeros(n, dtype=torch.int64, device="cpu")
    return Images(x, labels, "dynamic", "noise", (3, 4))


def test_the_exact_proposal_has_no_error(linear):
    x = linear.sample(9)
    found = log_evidence(linear, x, 30, posterior=linear.posterior)
    torch.testing.assert_close(found.value, linear.log_evidence(x), rtol=0, atol=1e-10)
    assert found.standard_error.max() < 1e-6
    torch.testing.assert_close(found.effective_sample_size, torch.full((9,), 30.0))
    assert found.n_samples == 30


def wide(linear):
    """A proposal with heavier tails than the posterior, so that the weights have a variance."""

    def proposal(x):
        p = linear.posterior(x)
        return td.Independent(td.Normal(p.mean + 0.1, 1.3 * p.stddev), 1)

    return proposal


def test_evidence_within_its_standard_error(linear):
    x = linear.sample(40)
    found = log_evidence(linear, x, 20_000, posterior=wide(linear))
    error = found.value - linear.log_evidence(x)
    assert (error.abs() / found.standard_error).max() < Z_LIMIT
    mean, mean_error = found.mean()
    assert mean == pytest.approx(found.value.mean().item())
    assert abs(mean - linear.log_evidence(x).mean().item()) < Z_LIMIT * mean_error
    assert found.standard_error.max() < 0.02


def test_the_standard_error_is_the_spread_of_repetitions(linear):
    x = linear.sample(1).expand(2000, 6)
    found = log_evidence(linear, x, 500, posterior=wide(linear), batch_size=500)
    spread = found.value.std().item()
    # The spread of 2,000 repetitions is known to 1.6 %; 10 % is six standard errors.
    assert found.standard_error.mean().item() == pytest.approx(spread, rel=0.1)


def test_error_and_effective_size_by_their_definitions(linear):
    x = linear.sample(5)
    q = wide(linear)(x)
    eps = torch.randn(40, 5, 2)
    q = lambda _: FixedNoise(wide(linear)(x).mean, wide(linear)(x).stddev, eps)
    found = log_evidence(linear, x, 40, posterior=q)
    w = log_weights(linear, q(x), x, 40).exp()
    torch.testing.assert_close(found.value, w.mean(0).log())
    torch.testing.assert_close(
        found.standard_error, w.std(0) / 40**0.5 / w.mean(0), rtol=1e-8, atol=1e-10
    )
    torch.testing.assert_close(found.effective_sample_size, w.sum(0) ** 2 / (w**2).sum(0))


@pytest.mark.parametrize("n_samples", [1, 7, 12])
@pytest.mark.parametrize("chunk", [1, 3, 5, 100])
def test_chunks_change_nothing(linear, n_samples, chunk):
    """Remainders included: 7 draws in chunks of 3 are 3 + 3 + 1, not 9 and not 6."""
    x = linear.sample(5)
    eps = torch.randn(n_samples, 5, 2)
    made = []

    def proposal(_):
        made.append(FixedNoise(torch.zeros(5, 2), torch.ones(5, 2), eps))
        return made[-1]

    found = log_evidence(linear, x, n_samples, chunk, posterior=proposal)
    assert made[-1].used == n_samples
    w = log_weights(linear, proposal(x), x, n_samples)
    torch.testing.assert_close(
        found.value, w.logsumexp(0) - math.log(n_samples), rtol=0, atol=1e-10
    )
    w = w.exp()
    torch.testing.assert_close(found.effective_sample_size, w.sum(0) ** 2 / (w**2).sum(0))
    if n_samples > 1:
        error = w.std(0) / n_samples**0.5 / w.mean(0)
        torch.testing.assert_close(found.standard_error, error, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("n_samples", [25, 300, 1000])
@pytest.mark.parametrize("chunk", [7, 100])
def test_the_tail_is_streamed(linear, n_samples, chunk):
    """k-hat from the largest weights kept over the chunks is that of all weights at once."""
    x = linear.sample(6)
    eps = torch.randn(n_samples, 6, 2)
    narrow = 0.6 * linear.posterior(x).stddev
    proposal = lambda _: FixedNoise(linear.posterior(x).mean, narrow, eps)
    found = log_evidence(linear, x, n_samples, chunk, posterior=proposal)
    expected = pareto_k(log_weights(linear, proposal(x), x, n_samples))
    torch.testing.assert_close(found.pareto_k, expected.to(found.value), rtol=0, atol=1e-12)
    assert found.pareto_k.isfinite().all()
    few = log_evidence(linear, x, 24, posterior=linear.posterior)
    assert few.pareto_k.isnan().all()


def test_batches_change_nothing(linear):
    x = linear.sample(11)
    whole = log_evidence(linear, x, 3, posterior=linear.posterior)
    parts = log_evidence(linear, x, 3, posterior=linear.posterior, batch_size=4)
    torch.testing.assert_close(parts.value, whole.value, rtol=0, atol=1e-10)


def test_log_of_the_number_of_draws_is_float64(device):
    q = td.Independent(td.Normal(torch.zeros(2, 1).double(), torch.ones(2, 1).double()), 1)

    class Same(nn.Module):
        def log_joint(self, x, z):
            return q.log_prob(z)

    found = log_evidence(Same(), torch.zeros(2, 1).double(), 1000, posterior=lambda x: q)
    assert found.value.abs().max() < 1e-12


def test_error_of_the_mean():
    found = LogEvidence(
        torch.zeros(4), torch.tensor([3.0, 4.0, 0.0, 0.0]), torch.ones(4), 10, torch.zeros(4)
    )
    assert found.mean() == pytest.approx((0, 1.25))


def test_summary_is_its_parts(device):
    vae, x = some_vae(), bits()
    row = summary(vae, x, 300).iloc[0]
    with seeded(0, device):
        terms = mean_terms(vae, x, 100, batch_size=100)
        evidence = log_evidence(vae, x, 300)
    assert row.elbo == pytest.approx(terms["elbo"])
    assert row.reconstruction == pytest.approx(terms["reconstruction"])
    assert row.log_evidence == pytest.approx(evidence.mean()[0])
    assert row.standard_error == pytest.approx(evidence.mean()[1])
    median = evidence.effective_sample_size.median().item()
    assert row.effective_draws == pytest.approx(median)
    tails = evidence.pareto_k
    assert abs(tails.median() - tails.mean()) > 0.01
    assert row.pareto_k == pytest.approx(tails.median().item())


def test_parts_keep_their_modes(device):
    vae = some_vae().train()
    vae.decoder[0].eval()
    summary(vae, bits(), 3)
    assert vae.training and vae.encoder.training and not vae.decoder[0].training


def test_seeding_touches_no_other_device(monkeypatch):
    def forbidden(seed):
        raise AssertionError("seeded every device")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", forbidden)
    with seeded(7, torch.device("cpu")):
        first = torch.rand(3, device="cpu")
    with seeded(7, torch.device("cpu")):
        assert torch.equal(torch.rand(3, device="cpu"), first)


def test_models_without_an_encoder_need_a_proposal(linear):
    with pytest.raises(ValueError, match="LinearGaussian has no encoder.*posterior="):
        log_evidence(linear, linear.sample(3))


def test_weights_that_are_all_zero(linear):
    """The estimate of p(x) is 0, and about a ratio 0 / 0 nothing can be said."""
    q = linear.posterior(linear.sample(3))

    class Impossible(nn.Module):
        def log_joint(self, x, z):
            return torch.full(z.shape[:2], -torch.inf)

    found = log_evidence(Impossible(), torch.zeros(3, 6), 50, posterior=lambda _: q)
    assert (found.value == -torch.inf).all()
    assert found.effective_sample_size.isnan().all() and found.standard_error.isnan().all()
    assert found.pareto_k.isnan().all()


def test_one_draw_has_no_error_to_report(linear):
    found = log_evidence(linear, linear.sample(4), 1, posterior=wide(linear))
    assert torch.isfinite(found.value).all()
    assert found.standard_error.isnan().all()


def test_many_float32_draws_keep_their_digits(linear):
    """Sums are kept in float64: adding 200,000 weights one chunk at a time loses nothing."""
    x = linear.sample(3)
    expected = linear.log_evidence(x)
    narrow = linear.float()
    found = log_evidence(narrow, x.float(), 200_000, 100, posterior=narrow.posterior)
    assert found.value.dtype == torch.float64
    torch.testing.assert_close(found.value, expected, rtol=0, atol=2e-6)


def test_huge_log_weights_do_not_overflow():
    model = ConjugateNormal(noise_scale=1e-3)
    x = torch.tensor([[3.0]])
    prior = lambda _: model.prior().expand((1,))
    found = log_evidence(model, x, 50, posterior=prior)  # log weights of about -1e6
    assert torch.isfinite(found.value).all() and found.value < -1e4


def test_it_needs_no_gradient_and_leaves_the_mode(device):
    for training in (True, False):
        vae = some_vae().train(training)
        seen = []
        vae.decoder[0].register_forward_pre_hook(lambda m, _, seen=seen: seen.append(m.training))
        found = log_evidence(vae, bits(), 3)
        summary(vae, bits(), 3)
        mean_terms(vae, bits())
        assert vae.training is training and vae.decoder[0].training is training
        assert seen and not any(seen)
        assert not found.value.requires_grad


def test_the_mode_is_left_even_after_an_error():
    vae = some_vae().train()
    with pytest.raises(ValueError, match="only 0 and 1"):
        summary(vae, torch.full((3, 12), 0.5))
    assert vae.training


def test_summary_is_one_table_with_its_protocol(device):
    vae = some_vae()
    table = summary(vae, dynamic_images(), 2000)
    assert list(table.columns) == [
        "elbo",
        "reconstruction",
        "kl",
        "log_evidence",
        "standard_error",
        "draws",
        "effective_draws",
        "pareto_k",
        "examples",
        "binarisation",
    ]
    row = table.iloc[0]
    assert row.elbo == pytest.approx(row.reconstruction - row.kl)
    assert row.elbo < row.log_evidence + 3 * row.standard_error
    assert (row.draws, row.examples, row.binarisation) == (2000, 50, "dynamic")
    assert summary(vae, bits(), 10).binarisation[0] == "as given"
    grey = dynamic_images()
    fixed = Images((grey.x > 0.5).float(), grey.y, "threshold", "noise", (3, 4))
    assert summary(vae, fixed, 10).binarisation[0] == "threshold"


def test_summary_repeats_and_leaves_the_global_random_state(device):
    vae, images = some_vae(), dynamic_images()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = summary(vae, images, 20)
    assert torch.equal(torch.rand(3), expected)
    assert summary(vae, images, 20).equals(first)
    assert not summary(vae, images, 20, seed=1).equals(first)


def test_evaluation_samples_z(device):
    """Evaluating at the posterior mean would report a better reconstruction."""
    vae = some_vae()
    x = bits()
    at_mean = vae.log_likelihood(x, vae.encoder(x).mean.unsqueeze(0)).mean().item()
    assert mean_terms(vae, x, 500)["reconstruction"] < at_mean - 1e-3


@pytest.mark.parametrize("name", ["n_samples", "chunk", "batch_size"])
@pytest.mark.parametrize("value", [0, -3, 2.5])
def test_counts_are_checked(linear, name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1"):
        log_evidence(linear, linear.sample(2), posterior=linear.posterior, **{name: value})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 12), "at least one example"),
        (torch.full((3, 12), 0.5), "found 0.5"),
        (torch.full((3, 12), float("nan")), "NaN or infinite"),
        (torch.zeros(3, 11), r"x does not fit the model: .*\(B, 12\)"),
        (torch.zeros(12), "x does not fit the model"),
        (torch.zeros(3, 12, dtype=torch.int64), "floating-point values, found torch.int64"),
        (torch.zeros(3, 12, dtype=torch.float64), "dtype of the model, torch.float32, found"),
    ],
)
def test_bad_data_are_refused(device, x, message):
    for judge in (summary, log_evidence):
        with pytest.raises(ValueError, match=message):
            judge(some_vae(), x.to(device), 5)
