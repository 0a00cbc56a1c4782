"""The Pareto shape of importance weights against weights whose tail is known."""

import numpy as np
import pytest
import torch
import torch.distributions as td
from conftest import Z_LIMIT, z_score

from vaetutor import LinearGaussian, log_weights, mean_field
from vaetutor.evaluate import pareto_k


@pytest.mark.parametrize("k", [0.2, 0.5, 0.7, 1.0])
def test_pareto_weights_have_their_shape(float64, k):
    """w = u^-k, u uniform, is exactly Pareto; the estimator's prior pulls k towards 1/2.

    400 sets of 20,000 weights: the tail has n = 424 draws, and k-hat = (n k + 10 / 2) / (n + 10)
    on average, up to a bias of the fit that is below 0.01.
    """
    found = pareto_k(-k * torch.rand(20_000, 400).log())
    expected = (424 * k + 5) / 434
    assert (found.cpu().mean() - expected).abs() < 0.01 + Z_LIMIT * found.std() / 20


def test_a_normal_that_is_too_narrow(float64):
    """p = N(0, 1), q = N(0, s²): w = exp((1 - s²) eps² / 2) / s, so the shape tends to 1 - s².

    Its tail is Pareto only up to a factor 1/sqrt(log w), which lowers k-hat a little.
    """
    for variance in (0.3, 0.5, 0.8):
        q = td.Normal(0.0, variance**0.5)
        z = q.sample((200_000, 20))
        found = pareto_k(td.Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).mean().item()
        assert 1 - variance - 0.15 < found < 1 - variance + 0.02


def test_a_normal_that_is_wide_enough_has_no_tail(float64):
    """With s² > 1 the weights are bounded: the shape is at most 0, up to noise and prior."""
    q = td.Normal(0.0, 1.5**0.5)
    z = q.sample((200_000, 20))
    found = pareto_k(td.Normal(0.0, 1.0).log_prob(z) - q.log_prob(z))
    assert found.max() < 0.05


def test_each_column_is_judged_alone(float64):
    log_w = -torch.tensor([0.2, 0.9, 0.0]) * torch.rand(1_000, 3).log()
    together = pareto_k(log_w)
    alone = torch.cat([pareto_k(log_w[:, [i]]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_the_scale_of_the_weights_does_not_matter(float64):
    log_w = -0.6 * torch.rand(1_000, 4).log()
    torch.testing.assert_close(pareto_k(log_w), pareto_k(log_w - 700.0), rtol=0, atol=1e-9)


def outliers(*above):
    """Weights of which a few lie so many nats above 1,000 equal ones."""
    return torch.cat([torch.zeros(1_000), torch.tensor(above)]).unsqueeze(1)


def test_the_worst_proposals_have_the_worst_shape(float64):
    """Beside the largest weight the others are all the same, most often zero: nothing to fit."""
    model = LinearGaussian(torch.randn(784, 20) / 2, torch.zeros(784), 0.1)
    x = model.sample(3)
    prior = td.Independent(td.Normal(torch.zeros(3, 20), 1.0), 1)
    for log_w in (
        log_weights(model, prior, x, 1_000),
        1_000 * torch.randn(1_000, 3),
        outliers(30.0),
        outliers(*(10.0 * torch.arange(30))),
    ):
        assert (pareto_k(log_w) == torch.inf).all()


def test_tails_of_equal_weights(float64):
    """One tied column does not spoil the others, and a bounded tail that ties is no alarm."""
    heavy = -0.9 * torch.rand(1_000, 1).log()
    discrete = (torch.arange(1_000) % 5).unsqueeze(1).double()  # the tail is 94 equal weights
    both = pareto_k(torch.cat([heavy, discrete, outliers(0.5)[1:]], 1))
    assert both[0] == pareto_k(heavy) and (both[1:] == -torch.inf).all()


def test_a_weight_of_zero_is_a_weight(float64):
    log_w = -0.6 * torch.rand(1_000, 2).log()
    log_w[:500] = -torch.inf
    tiny = torch.where(log_w == -torch.inf, -1e4, log_w)
    torch.testing.assert_close(pareto_k(log_w), pareto_k(tiny), rtol=0, atol=0)
    log_w[:990] = -torch.inf
    assert (pareto_k(log_w) == torch.inf).all()


def test_a_tail_in_float32_is_seen_far_from_zero():
    """At |log w| = 1e5 float32 has steps of 0.008 nats; this tail spans half a nat."""
    log_w = -0.1 * torch.rand(4_000, 1).log()
    near, far = pareto_k(log_w), pareto_k(log_w - 1e5)
    assert 0.1 < near < 0.25 and abs(near - far) < 0.05


def test_noise_of_the_last_digit_is_no_tail(float64):
    for size in (0.0, 5.0, 500.0):
        log_w = size + 2e-16 * max(size, 1.0) * torch.randn(1_000, 2)
        assert (pareto_k(log_w) == -torch.inf).all()
    ramp = -2e-14 * torch.linspace(0, 1, 1_000).unsqueeze(1)  # 2e-15 in the tail
    assert pareto_k(ramp) == -torch.inf


def test_the_exact_posterior_has_no_tail(float64):
    model = LinearGaussian(torch.randn(5, 2), torch.randn(5), 0.7)
    x = model.sample(3)
    log_w = log_weights(model, model.posterior(x), x, 1_000)
    assert (pareto_k(log_w) == -np.inf).all()
    assert (pareto_k(log_w.float()) == -np.inf).all()


def test_gradients_and_random_state_are_left_alone(float64):
    log_w = torch.randn(100, 2, requires_grad=True)
    before = torch.get_rng_state()
    assert not pareto_k(log_w).requires_grad
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("log_w", "message"),
    [
        (torch.zeros(24, 2), "at least 25 draws S, found \\(24, 2\\)"),
        (torch.zeros(100), "must have shape \\(S, B\\)"),
        (torch.zeros(100, 2, 1), "must have shape \\(S, B\\)"),
        (torch.full((100, 2), -torch.inf), "finite somewhere in each column"),
        (torch.tensor([torch.nan] + [0.0] * 99).unsqueeze(1), r"largest value is \[nan\]"),
        (torch.tensor([torch.inf] + [0.0] * 99).unsqueeze(1), r"largest value is \[inf\]"),
        (torch.zeros(100, 2, dtype=torch.int64), "floating-point"),
        (np.zeros((100, 2)), "torch.Tensor"),
    ],
)
def test_bad_weights_are_refused(log_w, message):
    with pytest.raises(ValueError, match=message):
        pareto_k(log_w)


@pytest.mark.parametrize("rho", [0.2, 0.5, -0.8])
def test_the_shape_of_mean_field_is_the_correlation(float64, rho):
    """log w = rho (u² - v²) / 2 with u, v standard normal, so its tail has shape |rho|."""
    p = td.MultivariateNormal(torch.zeros(20, 2), torch.tensor([[1.0, rho], [rho, 1.0]]))
    q = mean_field(p)
    z = q.sample((200_000,))
    found = pareto_k(p.log_prob(z) - q.log_prob(z)).mean().item()
    assert abs(rho) - 0.15 < found < abs(rho) + 0.05


def test_a_finite_variance_gives_an_honest_standard_error(float64):
    """The mean weight of a proposal with shape below 1/2 is 1 within its standard error."""
    q = td.Normal(0.0, 0.7**0.5)
    z = q.sample((100_000, 1))
    log_w = td.Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)
    assert pareto_k(log_w) < 0.5 and z_score(log_w.exp(), 1.0) < Z_LIMIT
