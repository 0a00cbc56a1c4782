"""Refinement against exact optima, and the two gaps of an encoder against closed forms."""

from functools import partial

import pytest
import torch
import torch.distributions as td
from conftest import Z_LIMIT
from torch import nn

from vaetutor import (
    VAE,
    Bernoulli,
    ConjugateNormal,
    DiagonalNormal,
    FlowPosterior,
    FullNormal,
    Images,
    LinearGaussian,
    LowRankNormal,
    MixtureNormal,
    PlanarFlow,
    StandardNormal,
    elbo,
    elbo_terms,
    evaluate,
    inference,
    inference_gaps,
    iwae,
    kl,
    log_evidence,
    log_weights,
    mean_field,
    mean_field_gap,
    mlp,
    refine,
    score_function,
    targets,
)
from vaetutor.families import inverse_positive

FAMILIES = [DiagonalNormal, FullNormal, partial(LowRankNormal, rank=2)]


@pytest.fixture
def linear(float64):
    """Four latents, correlated in the posterior: a diagonal q pays for it."""
    return LinearGaussian(torch.randn(8, 4), torch.randn(8), 0.8)


def full_lam(q):
    """λ of FullNormal for a multivariate normal."""
    factor = q.scale_tril
    scale = factor.diagonal(dim1=-2, dim2=-1)
    row, column = torch.tril_indices(len(scale[0]), len(scale[0]), -1)
    below = (factor / scale.unsqueeze(-1))[:, row, column]
    return torch.cat([q.loc, inverse_positive(scale), below], dim=1)


def diagonal_lam(q):
    return torch.cat([q.mean, inverse_positive(q.stddev)], dim=1)


def some_vae(n_pixels=12, dim=2, family=DiagonalNormal):
    torch.manual_seed(3)
    q = family(dim)
    encoder = nn.Sequential(mlp(n_pixels, 8, q.n_parameters), q)
    decoder = nn.Sequential(mlp(dim, 8, n_pixels), Bernoulli(n_pixels))
    return VAE(encoder, decoder, StandardNormal(dim))


def bits(n=6, n_pixels=12):
    return (torch.rand(n, n_pixels) < 0.3).float()


def linear_encoder(linear, family, lam_of):
    """The linear map from x to λ of `lam_of(posterior)`, and the family behind it."""
    d = len(linear.mean)
    lam = lam_of(linear.posterior(torch.cat([torch.zeros(1, d), torch.eye(d)])))
    network = nn.Linear(d, family.n_parameters)
    with torch.no_grad():
        network.bias.copy_(lam[0])
        network.weight.copy_((lam[1:] - lam[0]).T)
    return nn.Sequential(network, family)


# --- refine: does it find the optimum? --------------------------------------------------------


@pytest.mark.parametrize("objective", [elbo_terms, elbo])
def test_diagonal_family_reaches_the_mean_field_optimum(linear, objective):
    x = linear.sample(20)
    p, best = linear.posterior(x), mean_field(linear.posterior(x))
    found = refine(linear, DiagonalNormal(4), x, objective=objective)
    assert found.converged.all()
    excess = kl(found.q, p) - mean_field_gap(p)
    assert (excess > -1e-10).all()
    assert excess.max() < 0.02 and mean_field_gap(p).min() > 0.3
    # 0.02 nats leave 0.2 standard deviations for the mean and 15 % for a scale.
    assert ((found.q.mean - best.mean) / best.stddev).abs().max() < 0.2
    assert (found.q.stddev / best.stddev).log().abs().max() < 0.15


@pytest.mark.parametrize("objective", [elbo_terms, elbo])
def test_full_family_reaches_the_exact_posterior(linear, objective):
    x = linear.sample(20)
    found = refine(linear, FullNormal(4), x, objective=objective)
    assert found.converged.all()
    assert kl(found.q, linear.posterior(x)).max() < 0.02


def test_more_draws_and_a_smaller_tolerance_come_closer(linear):
    x = linear.sample(20)
    excess = []
    for n_samples, tolerance in ((4, 0.05), (64, 0.001)):
        found = refine(linear, FullNormal(4), x, n_samples=n_samples, tolerance=tolerance)
        excess.append(kl(found.q, linear.posterior(x)).mean())
    assert excess[1] < excess[0] / 4


def test_score_function_reaches_it_too(linear):
    x = linear.sample(10)
    p = linear.posterior(x)
    estimator = partial(score_function, baseline="leave_one_out")
    options = {"objective": estimator, "n_samples": 64, "steps": 2000}
    found = refine(linear, DiagonalNormal(4), x, **options)
    assert (kl(found.q, p) - mean_field_gap(p)).max() < 0.1


def test_densities_without_data_need_only_a_joint():
    x = torch.zeros(3, 1)
    with pytest.raises(ValueError, match="elbo_terms needs .* Target has not: use objective=elbo"):
        refine(targets.BANANA, DiagonalNormal(2), x)
    start = torch.tensor([[0.0] * 4, [1.0] * 4, [-1.0] * 4])
    found = refine(targets.BANANA, DiagonalNormal(2), x, start, objective=elbo)
    evidence = targets.BANANA.log_z().value
    bound = elbo(targets.BANANA, found.q, x, 20_000)
    assert found.converged.all() and (bound < evidence + 0.02).all()
    assert bound.max() - bound.min() < 0.05  # one optimum, from three starts


def test_importance_weighted_bounds_can_be_refined():
    """The trace is the bound with K draws, not with all the draws of the measurement."""
    model, x = ConjugateNormal(), torch.tensor([[1.5], [-0.3]])
    found = refine(model, DiagonalNormal(1), x, objective=iwae, n_samples=8, steps=50)
    q = DiagonalNormal(1)(torch.zeros(1, 2).expand(20_000, 2))
    for row in range(2):
        draws = iwae(model, q, x[row].expand(20_000, 1), 8)
        spread = draws.std() / inference.DRAWS**0.5 * 8**0.5
        assert (found.trace[0, row] - draws.mean()).abs() < Z_LIMIT * spread


# --- refine: the stopping rule ----------------------------------------------------------------


def test_it_stops_by_itself_and_says_so(linear):
    x = linear.sample(5)
    found = refine(linear, DiagonalNormal(4), x, steps=10_000)
    assert found.converged.all() and found.steps < 2000
    assert found.steps % inference.WINDOW == 0
    assert len(found.trace) == 1 + found.steps // inference.WINDOW


def test_it_stops_when_told_to_and_says_so(linear):
    x = linear.sample(5)
    for steps in (0, 1, 60, inference.WINDOW * (inference.STAGES - 1)):
        found = refine(linear, DiagonalNormal(4), x, steps=steps)
        assert found.steps == steps and not found.converged.any()
        assert len(found.trace) == 1 + -(-steps // inference.WINDOW)


def test_the_rule_is_the_documented_one(linear):
    """Rows converge at their fourth window with a gain below the tolerance, and not before."""
    x = linear.sample(6)
    found = refine(linear, DiagonalNormal(4), x, tolerance=0.03)
    small = (found.trace.diff(dim=0) < 0.03).cumsum(0)
    assert (small[-1] >= inference.STAGES).all()
    assert (small[-2] < inference.STAGES).any()
    unfinished = refine(linear, DiagonalNormal(4), x, tolerance=0.03, steps=found.steps - 50)
    assert torch.equal(unfinished.converged, small[-2] >= inference.STAGES)
    # A row that rests does not move any more.
    rested = unfinished.converged
    assert torch.equal(unfinished.lam[rested], found.lam[rested])


def test_smaller_steps_and_more_draws_find_a_narrow_posterior(float64):
    """As the documentation advises; with the defaults this search stops early."""
    model = LinearGaussian(torch.randn(8, 4), torch.randn(8), 0.03)
    x = model.sample(10)
    p, lost = model.posterior(x), []
    for options in ({}, {"learning_rate": 0.01, "n_samples": 64, "steps": 3000}):
        found = refine(model, DiagonalNormal(4), x, **options)
        lost.append((kl(found.q, p) - mean_field_gap(p)).mean())
    assert lost[0] > 1 and lost[1] < 0.1


def test_inference_mode_of_the_caller_is_no_obstacle(linear):
    x = linear.sample(3)
    expected = refine(linear, DiagonalNormal(4), x, steps=10).lam
    with torch.inference_mode():
        found = refine(linear, DiagonalNormal(4), x.clone(), steps=10).lam
    assert torch.equal(found, expected) and not found.is_inference()


def test_learning_rates_fall_by_four(linear):
    """With constant gradients Adam moves by its rate: 50 steps each of 1, 1/4, 1/16 and 1/64."""
    slope = torch.tensor([1e-9, 1.0])

    def straight(model, q, x, n_samples):
        return (slope * q.mean).sum(-1) + 0 * q.stddev.sum(-1)

    found = refine(
        ConjugateNormal(), DiagonalNormal(2), torch.zeros(1, 1), objective=straight, tolerance=1e3
    )
    travelled = 50 * 0.05 * (1 + 1 / 4 + 1 / 16 + 1 / 64)
    assert found.converged.all() and found.steps == 200
    assert found.q.mean[0, 1].item() == pytest.approx(travelled, rel=1e-4)


def test_at_the_optimum_it_stays_there(linear):
    x = linear.sample(20)
    p = linear.posterior(x)
    for family, start, floor in (
        (FullNormal(4), full_lam(p), torch.zeros(20)),
        (DiagonalNormal(4), diagonal_lam(mean_field(p)), mean_field_gap(p)),
    ):
        torch.testing.assert_close(kl(family(start), p), floor, rtol=0, atol=1e-10)
        found = refine(linear, family, x, start)
        assert found.converged.all()
        assert (kl(found.q, p) - floor).max() < 0.01


def test_it_never_ends_below_its_start(linear):
    """Far too large a step from a good start: rows that end lower keep what they had."""
    x = linear.sample(20)
    start = full_lam(linear.posterior(x))
    found = refine(linear, FullNormal(4), x, start, steps=3, learning_rate=5.0)
    assert torch.equal(found.lam, start)
    assert (found.trace[-1] < found.trace[0]).all()


def test_a_row_that_breaks_down_keeps_its_start_and_has_not_converged():
    def poisoned(model, q, x, n_samples):
        value = elbo(model, q, x, n_samples)
        return torch.where((q.mean.abs() > 0.2).any(-1) & (x[:, 0] > 0), torch.nan, value)

    x = torch.tensor([[1.5], [-1.5]])
    found = refine(ConjugateNormal(), DiagonalNormal(1), x, objective=poisoned)
    assert found.converged.tolist() == [False, True]
    assert torch.equal(found.lam[0], torch.zeros(2))
    assert found.q.mean[1].item() == pytest.approx(-0.75, abs=0.1)


# --- refine: rows, starts and what it leaves alone --------------------------------------------


def test_rows_do_not_see_each_other(linear):
    """Other rows may be anything, even hopeless: with the same noise a row walks the same path."""
    x = linear.sample(5)
    other = x.clone()
    other[1:] = 30 * torch.randn(4, 8)
    found, again = (refine(linear, FullNormal(4), rows) for rows in (x, other))
    assert again.steps > found.steps and found.converged[0]
    assert torch.equal(found.lam[0], again.lam[0])


def test_a_good_start_saves_steps(linear):
    x = linear.sample(20)
    start = full_lam(linear.posterior(x))
    near = refine(linear, FullNormal(4), x, start + 0.05, steps=50)
    far = refine(linear, FullNormal(4), x, steps=50)
    p = linear.posterior(x)
    assert kl(near.q, p).mean() < kl(far.q, p).mean() / 5


def test_no_steps_return_the_start():
    vae, x = some_vae(), bits()
    start = vae.encoder[0](x)
    found = refine(vae, vae.encoder[-1], x, start, steps=0)
    assert torch.equal(found.lam, start) and found.lam is not start
    assert torch.equal(found.q.mean, vae.encoder(x).mean)
    zeros = refine(vae, vae.encoder[-1], x, steps=0)
    assert torch.equal(zeros.lam, torch.zeros(6, 4))


def test_seeds_repeat_and_the_global_random_state_is_left(device):
    vae, x = some_vae(), bits()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = refine(vae, vae.encoder[-1], x, steps=60)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(refine(vae, vae.encoder[-1], x, steps=60).lam, first.lam)
    assert not torch.equal(refine(vae, vae.encoder[-1], x, steps=60, seed=1).lam, first.lam)


def test_the_model_is_left_alone():
    vae, x = some_vae().train(), bits()
    vae.decoder[0].eval()
    vae.encoder.requires_grad_(False)
    vae.decoder[0][0].weight.grad = torch.ones_like(vae.decoder[0][0].weight)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    start = vae.encoder[0](x).requires_grad_()
    modes = []
    vae.decoder.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    with torch.no_grad():  # a caller who wants no graph still gets his steps
        found = refine(vae, vae.encoder[-1], x, start, steps=60)
    assert (found.lam - start).abs().max() > 0.1 and start.grad is None
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name])
    for name, parameter in vae.named_parameters():
        assert parameter.requires_grad is name.startswith("decoder"), name
        if name == "decoder.0.0.weight":
            assert torch.equal(parameter.grad, torch.ones_like(parameter))
        else:
            assert parameter.grad is None
    assert vae.training and vae.decoder.training and not vae.decoder[0].training
    assert modes and not any(modes)
    assert not found.lam.requires_grad and not found.q.mean.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_of_parameters_reaches_what_refine_finds(linear, family):
    """Per-datapoint inference by `nn.Embedding`: the same family and objective, torch's Adam."""
    family, x = family(4), linear.sample(8)
    start = 0.1 * torch.randn(8, family.n_parameters)
    table = nn.Sequential(nn.Embedding.from_pretrained(start.clone(), freeze=False), family)
    rows = torch.arange(8)
    for learning_rate in (0.05, 0.01, 0.002):
        optimizer = torch.optim.Adam(table.parameters(), learning_rate)
        for _ in range(300):
            optimizer.zero_grad()
            (-elbo_terms(linear, table(rows), x, 16).elbo.sum()).backward()
            optimizer.step()
    found = refine(linear, family, x, start)
    p = linear.posterior(x)
    by_table, by_refine = kl(table(rows), p), kl(found.q, p)
    assert found.converged.all()
    assert (by_table - by_refine).abs().max() < 0.03
    assert by_refine.max() < kl(family(start), p).min() - 1


# --- refine: bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("steps", -1, "steps must be an integer of at least 0"),
        ("steps", 2.5, "steps must be an integer of at least 0"),
        ("n_samples", 0, "n_samples must be an integer of at least 1"),
        ("learning_rate", 0.0, "learning_rate must be a finite number above 0"),
        ("tolerance", -0.1, "tolerance must be a finite number above 0"),
        ("seed", -1, "seed must be an integer of at least 0"),
        ("objective", "elbo", "objective must be a function, found 'elbo'"),
        ("x", torch.zeros(0, 12), "at least one example"),
        ("x", torch.full((6, 12), 0.5), "x does not fit the model: .*found 0.5"),
        ("x", torch.zeros(6, 11), "x does not fit the model"),
        ("x", torch.zeros(6, 12).double(), "dtype of the model"),
        ("x", torch.full((6, 12), float("nan")), "NaN or infinite"),
        ("start", torch.zeros(5, 4), r"start must be .*\(6, 4\).*found shape \(5, 4\)"),
        ("start", torch.zeros(6, 4).double(), "float32, .*found shape .* torch.float64"),
        ("start", torch.full((6, 4), float("nan")), "start holds 24 values that are NaN"),
        ("start", 0, "found int"),
        (
            "objective",
            lambda *a: elbo(*a).mean(),
            r"value of the objective must have shape \(6,\)",
        ),
        ("objective", lambda *a: elbo(*a) / 0, "finite bound, found 6 rows"),
    ],
)
def test_bad_input_to_refine_is_refused(device, option, value, message):
    vae = some_vae()
    value = value.to(device) if isinstance(value, torch.Tensor) else value
    arguments = {"x": bits(), "steps": 3, option: value}
    with pytest.raises(ValueError, match=message):
        refine(vae, vae.encoder[-1], **arguments)


def test_images_are_presented_once_by_the_caller():
    labels = torch.zeros(6, dtype=torch.int64)
    images = Images(torch.rand(6, 12), labels, "dynamic", "noise", (3, 4))
    vae = some_vae()
    with pytest.raises(ValueError, match="x must be a tensor, found Images.*images.present"):
        refine(vae, vae.encoder[-1], images)


def test_families_whose_draws_carry_no_gradient_need_another_estimator():
    class BinaryLatents(nn.Module):
        n_parameters = 2

        def forward(self, lam):
            return td.Independent(td.Bernoulli(logits=lam), 1)

    with pytest.raises(ValueError, match="carry no gradient"):
        refine(some_vae(), BinaryLatents(), bits(), objective=elbo)


# --- the gaps ---------------------------------------------------------------------------------


def test_linear_encoder_has_no_amortisation_gap(linear):
    """Identity 9, full covariance: the encoder is exact, so both gaps vanish for every x."""
    x = 3 * linear.sample(30)
    encoder = linear_encoder(linear, FullNormal(4), full_lam)
    gaps = inference_gaps(linear, encoder, x, optimal=linear.posterior(x))
    assert gaps.amortization.abs().max() < 1e-10
    assert gaps.approximation.abs().max() < 1e-10


def test_diagonal_family_has_the_same_approximation_gap_for_every_x(linear):
    """Identity 9: 1/2 [sum ln Λ_ii - ln|Λ|], and a linear encoder attains the optimum."""
    x = 3 * linear.sample(30)
    precision = linear.posterior(x[:1]).precision_matrix[0]
    formula = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    encoder = linear_encoder(linear, DiagonalNormal(4), lambda p: diagonal_lam(mean_field(p)))
    optimal = diagonal_lam(mean_field(linear.posterior(x)))
    gaps = inference_gaps(linear, encoder, x, optimal=optimal)
    assert formula > 0.3
    torch.testing.assert_close(gaps.approximation, formula.expand(30), rtol=0, atol=1e-10)
    assert gaps.amortization.abs().max() < 1e-10
    assert all((error == 0).all() for error in gaps.standard_error.values())


def test_amortisation_gap_of_a_wrong_encoder_is_a_divergence(linear):
    x = linear.sample(10)
    encoder = nn.Sequential(nn.Linear(8, 14), FullNormal(4))
    gaps = inference_gaps(linear, encoder, x, optimal=full_lam(linear.posterior(x)))
    expected = kl(encoder(x), linear.posterior(x)).detach()
    torch.testing.assert_close(gaps.amortization, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(gaps.total, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(gaps.log_evidence, linear.log_evidence(x))


class WithoutPosterior(nn.Module):
    """The same joint density, but nothing is known about it."""

    def __init__(self, exact):
        super().__init__()
        self.exact = exact
        self.prior, self.log_likelihood = exact.prior, exact.log_likelihood
        self.log_joint = exact.log_joint


def test_draws_agree_with_the_exact_gaps_within_their_errors(linear):
    x = linear.sample(40)
    encoder = linear_encoder(linear, DiagonalNormal(4), lambda p: diagonal_lam(mean_field(p)))
    with torch.no_grad():
        encoder[0].bias += 0.05
    optimal = diagonal_lam(mean_field(linear.posterior(x)))
    exact = inference_gaps(linear, encoder, x, optimal=optimal)
    reference = linear.log_evidence(x)
    drawn = inference_gaps(WithoutPosterior(linear), encoder, x, reference, optimal=optimal)
    for name, error in drawn.standard_error.items():
        difference = (getattr(drawn, name) - getattr(exact, name)).abs()
        assert (difference <= Z_LIMIT * error).all(), name
        assert error.max() < 0.2, name
    # Shared noise: the difference of two close bounds is known better than either.
    apart = torch.hypot(drawn.standard_error["elbo"], drawn.standard_error["elbo_optimal"])
    assert (drawn.standard_error["amortization"] < apart / 2).all()


def test_standard_errors_are_the_spread_of_repetitions(linear):
    model, x = WithoutPosterior(linear), linear.sample(1)
    encoder = nn.Sequential(nn.Linear(8, 8), DiagonalNormal(4))
    with torch.no_grad():
        encoder[0].weight *= 0.3
    optimal = mean_field(linear.posterior(x))
    reference = linear.log_evidence(x)
    repeats = 2000
    rows = x.expand(repeats, 8)
    found = inference_gaps(
        model,
        encoder,
        rows,
        reference.expand(repeats),
        optimal=optimal.expand((repeats,)),
        n_samples=50,
    )
    for name in ("elbo", "elbo_optimal", "amortization", "approximation", "total"):
        # The spread of 2,000 repetitions is known to 1.6 %; 10 % is six standard errors.
        spread = getattr(found, name).std().item()
        stated = found.standard_error[name].square().mean().sqrt().item()
        assert stated == pytest.approx(spread, rel=0.1), name


def test_gaps_add_up_and_use_the_stated_reference():
    vae, x = some_vae(), bits()
    reference = log_evidence(vae, x, 2000)
    gaps = inference_gaps(vae, vae.encoder, x, reference)
    torch.testing.assert_close(gaps.approximation + gaps.amortization, gaps.total)
    torch.testing.assert_close(gaps.total, reference.value - gaps.elbo)
    assert (gaps.total > 0).all() and gaps.elbo.dtype == torch.float64
    for name, bound in (("approximation", "elbo_optimal"), ("total", "elbo")):
        together = torch.hypot(reference.standard_error, gaps.standard_error[bound])
        torch.testing.assert_close(gaps.standard_error[name], together)
    as_tensor = inference_gaps(vae, vae.encoder, x, reference.value)
    torch.testing.assert_close(as_tensor.total, gaps.total)
    assert torch.equal(as_tensor.standard_error["total"], gaps.standard_error["elbo"])


def test_bounds_are_means_of_log_weights():
    vae, x = some_vae(), bits()
    reference = torch.zeros(6)
    optimal = torch.zeros(6, 4)
    options = {"optimal": optimal, "n_samples": 7, "seed": 4}
    gaps = inference_gaps(vae, vae.encoder, x, reference, chunk=100, **options)
    for q, bound in ((vae.encoder[-1](optimal), gaps.elbo_optimal), (vae.encoder(x), gaps.elbo)):
        with evaluate.seeded(4, x.device), torch.no_grad():
            log_w = log_weights(vae, q, x, 7).double().cpu()
        torch.testing.assert_close(bound.cpu(), log_w.mean(0))
    in_chunks = inference_gaps(vae, vae.encoder, x, reference, chunk=3, **options)
    assert in_chunks.elbo.shape == (6,) and not torch.equal(in_chunks.elbo, gaps.elbo)


def test_the_best_member_is_found_from_the_encoder(linear):
    """Without `optimal` it is refined: close to the formula, and never below the encoder."""
    x = linear.sample(20)
    encoder = nn.Sequential(nn.Linear(8, 8), DiagonalNormal(4))
    gaps = inference_gaps(linear, encoder, x)
    formula = mean_field_gap(linear.posterior(x))
    excess = gaps.approximation - formula
    assert (excess > -1e-10).all() and excess.mean() < 0.01 and excess.max() < 0.04
    assert (gaps.amortization > 0.1).all()
    same = refine(linear, encoder[-1], x, encoder[0](x)).q
    assert torch.equal(
        inference_gaps(linear, encoder, x, optimal=same).elbo_optimal, gaps.elbo_optimal
    )


def test_table_has_both_errors(linear):
    x = linear.sample(9)
    encoder = nn.Sequential(nn.Linear(8, 8), DiagonalNormal(4))
    gaps = inference_gaps(WithoutPosterior(linear), encoder, x, linear.log_evidence(x))
    frame = gaps.frame
    assert list(frame.index) == [
        "log_evidence",
        "elbo_optimal",
        "elbo",
        "approximation",
        "amortization",
        "total",
    ]
    assert list(frame.columns) == ["mean", "error_draws", "error_examples"]
    row = frame.loc["amortization"]
    assert row["mean"] == pytest.approx(gaps.amortization.mean().item())
    error = gaps.standard_error["amortization"]
    assert row["error_draws"] == pytest.approx((error**2).sum().sqrt().item() / 9)
    assert row["error_examples"] == pytest.approx(gaps.amortization.std().item() / 3)
    assert frame.loc["total", "mean"] == pytest.approx(
        frame.loc["approximation", "mean"] + frame.loc["amortization", "mean"]
    )
    single = inference_gaps(linear, encoder, x[:1], optimal=linear.posterior(x[:1])).frame
    assert single.error_examples.isna().all()


def test_gaps_leave_everything_as_it_was():
    vae, x = some_vae().train(), bits()
    vae.decoder[0].eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = inference_gaps(vae, vae.encoder, x, torch.zeros(6), n_samples=20)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(
        inference_gaps(vae, vae.encoder, x, torch.zeros(6), n_samples=20).total, first.total
    )
    assert vae.training and vae.encoder.training and not vae.decoder[0].training
    assert all(p.grad is None and p.requires_grad for p in vae.parameters())
    assert not first.total.requires_grad


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("reference", None, "VAE has no log_evidence: pass reference="),
        ("reference", torch.zeros(5), r"reference must be .*\(6,\).*found \(5,\)"),
        ("reference", -3.0, "reference must be .*found float"),
        ("reference", torch.full((6,), float("nan")), "reference holds 6 values that are NaN"),
        ("optimal", torch.zeros(6, 3), r"optimal must be .*\(6, 4\) and .*found shape \(6, 3\)"),
        ("encoder", nn.Linear(12, 4), "nn.Sequential that ends in a family, found Linear"),
        ("encoder", nn.Sequential(nn.Linear(12, 4)), "nn.Sequential that ends in a family"),
        ("n_samples", 1, "n_samples must be an integer of at least 2"),
        ("chunk", 0, "chunk must be an integer of at least 1"),
        ("seed", -1, "seed must be an integer of at least 0"),
        ("x", torch.full((6, 12), 0.5), "found 0.5"),
    ],
)
def test_bad_input_to_the_gaps_is_refused(device, option, value, message):
    vae = some_vae()
    value = value.to(device) if isinstance(value, torch.Tensor) else value
    arguments = {"encoder": vae.encoder, "x": bits(), "reference": torch.zeros(6), option: value}
    with pytest.raises(ValueError, match=message):
        inference_gaps(vae, **arguments)


# --- every family ------------------------------------------------------------------------------

LADDER = {
    "diagonal": lambda: DiagonalNormal(2),
    "full": lambda: FullNormal(2),
    "mixture": lambda: MixtureNormal(2, 6),
    "implicit mixture": lambda: MixtureNormal(2, 6, "implicit"),
    "planar flow": lambda: PlanarFlow(2, 4),
    "spline flow": lambda: FlowPosterior(2, 4, transforms=2, hidden=(16,), bins=6),
}


@pytest.mark.parametrize("name", LADDER)
def test_gaps_of_every_family(linear, name):
    """Against the closed form where there is one, and adding up to the whole gap on a grid."""
    plane = LinearGaussian(linear.weight[:, :2], linear.mean, 0.8)
    x, family = plane.sample(3), LADDER[name]().double()
    encoder = nn.Sequential(nn.Linear(8, family.n_parameters), family).double()
    with torch.no_grad():  # at first near the posterior means, so that the search is short
        encoder[0].weight.mul_(0.1)
        encoder[0].bias.add_(0.1 * torch.randn(family.n_parameters))
    optimizer = torch.optim.Adam(encoder.parameters(), 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        (-elbo(plane, encoder(x), x, 8)).mean().backward()
        optimizer.step()
    gaps = inference_gaps(plane, encoder, x, n_samples=4000)
    exact = plane.log_evidence(x)
    torch.testing.assert_close(gaps.log_evidence, exact)
    with torch.no_grad():
        left = exact - elbo(plane, encoder(x), x, 4000)
    error = gaps.standard_error["total"].clamp(min=1e-9) * 2**0.5
    assert ((gaps.total - left).abs() < Z_LIMIT * error + 0.02).all()
    assert (gaps.amortization > -Z_LIMIT * gaps.standard_error["amortization"] - 1e-9).all()
    best = mean_field_gap(plane.posterior(x))
    approximation = gaps.approximation
    if name == "diagonal":
        assert ((approximation - best).abs() < 0.02).all()
    elif name == "full":
        assert (approximation < 0.02).all()
    else:
        noise = Z_LIMIT * gaps.standard_error["approximation"]
        assert (approximation > -noise).all() and (approximation < best + noise + 0.02).all()


def test_a_ladder_of_nested_families_on_two_modes():
    """Each rung holds the one before: the best KL cannot rise. Two modes need the last."""
    none, found = torch.zeros(8, 1), []
    for family in (DiagonalNormal(2), FullNormal(2), MixtureNormal(2, 2), MixtureNormal(2, 6)):
        start = 0.7 * torch.randn(8, family.n_parameters)
        q = refine(targets.U1, family, none, start, 800, objective=elbo).q
        with torch.no_grad():
            found.append((targets.U1.log_z().value - elbo(targets.U1, q, none, 20_000)).min())
    diagonal, full, two, six = found
    assert abs(full - 0.9024) < 0.03 and diagonal > full - 0.03
    assert two < full - 0.3 and six < two - 0.05
