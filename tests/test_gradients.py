"""Gradient estimators against closed forms, exact models and enumeration.

Means and variances over R replicates are compared by z-scores; the standard error of a variance
comes from the fourth moment, and is itself tested. What must hold for every draw is compared to
rounding.
"""

import copy
import itertools
import math
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
    FullNormal,
    LinearGaussian,
    LowRankNormal,
    MixtureNormal,
    Normal,
    PlanarFlow,
    StandardNormal,
    TrainConfig,
    doubly_reparameterised,
    elbo,
    elbo_terms,
    fit,
    gradient_moments,
    iwae,
    kl,
    mlp,
    pathwise,
    score_function,
    sticking_the_landing,
)
from vaetutor.families import inverse_positive

VALIDATE = td.Distribution._validate_args
import zuko  # noqa: E402  (turns torch's own checks off; on again at once)

td.Distribution.set_default_validate_args(VALIDATE)

leave_one_out = partial(score_function, baseline="leave_one_out")
FUNCTION_ESTIMATORS = {
    "pathwise": (pathwise, 1),
    "score": (score_function, 1),
    "score, 3 draws": (score_function, 3),
    "leave-one-out": (leave_one_out, 3),
}
ESTIMATORS = {
    **FUNCTION_ESTIMATORS,
    "baseline of x": (partial(score_function, baseline=lambda x: x.sum(-1) - 2), 1),
    "sticking the landing": (sticking_the_landing, 1),
}


def each(estimators):
    return pytest.mark.parametrize(
        ("estimator", "n_samples"), list(estimators.values()), ids=list(estimators)
    )


def normal(lam):
    """A diagonal normal with λ = (μ, σ), no map in between, as in the closed forms."""
    mean, scale = lam.chunk(2, dim=-1)
    return td.Independent(td.Normal(mean, scale), 1)


def quadratic(k):
    return lambda z: (z - k).square().sum(-1)


def z_of(found, truth, error):
    """The largest deviation in standard errors; entries without spread must agree to rounding."""
    off = (found - truth).abs()
    exact = error < 1e-12
    assert (off[exact] < 1e-9).all()
    return (off / error)[~exact].max().item() if (~exact).any() else 0.0


def lam_of(posterior):
    """The parameters for which FullNormal gives this multivariate normal, one row each."""
    factor = posterior.scale_tril
    scale = factor.diagonal(dim1=-2, dim2=-1)
    below = (factor / scale.unsqueeze(-1))[..., *torch.tril_indices(*factor.shape[-2:], -1)]
    return torch.cat([posterior.mean, inverse_positive(scale), below], -1)


@pytest.fixture
def linear(float64):
    return LinearGaussian(torch.randn(6, 3), torch.randn(6), 0.8)


class Bare:
    """A model that checks nothing itself."""

    def __init__(self, log_joint):
        self.log_joint = log_joint


# --- variances with a closed form ------------------------------------------------------------

CASES = [(1.0, 1.0, -3.0), (0.5, 1.0, 0.5), (-2.0, 0.5, 1.0), (3.0, 2.0, 2.5)]


@pytest.mark.parametrize(("mu", "s", "k"), CASES)
def test_variances_for_a_quadratic(float64, mu, s, k):
    """f = (z - k)^2, Mohamed et al. (2020): 400,000 replicates each."""
    lam, d = torch.tensor([mu, s]), mu - k
    truth = torch.tensor([2 * d, 2 * s])
    expected = {
        pathwise: [4 * s**2, 4 * d**2 + 8 * s**2],
        score_function: [
            d**4 / s**2 + 14 * d**2 + 15 * s**2,
            2 * d**4 / s**2 + 60 * d**2 + 74 * s**2,
        ],
    }
    for estimator, variance in expected.items():
        found = gradient_moments(estimator, quadratic(k), normal, lam, replicates=400_000)
        assert z_of(found.mean, truth, found.standard_error) < Z_LIMIT
        error = found.variance_standard_error
        assert z_of(found.variance, torch.tensor(variance), error) < Z_LIMIT
    if (mu, s, k) == (1, 1, -3):
        assert expected == {pathwise: [4, 72], score_function: [495, 1546]}


@pytest.mark.parametrize("n_samples", [2, 5, 20])
@pytest.mark.parametrize(("mu", "s", "k"), CASES)
def test_leave_one_out_is_better_by_its_formula(float64, mu, s, k, n_samples):
    """Its variance is V / S + (Var f I + g^2) / (S (S - 1)): see the chapter for the derivation.

    V is the single-draw variance with the mean of f as baseline, I the Fisher information and g
    the gradient. For the quadratic they are polynomials in d = mu - k and s.
    """
    d = mu - k
    found = gradient_moments(
        leave_one_out, quadratic(k), normal, torch.tensor([mu, s]), None, n_samples, 100_000
    )
    assert z_of(found.mean, torch.tensor([2 * d, 2 * s]), found.standard_error) < Z_LIMIT
    best = torch.tensor([8 * d**2 + 10 * s**2, 40 * d**2 + 56 * s**2])
    price = torch.tensor([8 * d**2 + 2 * s**2, 8 * d**2 + 8 * s**2])
    expected = best / n_samples + price / (n_samples * (n_samples - 1))
    assert z_of(found.variance, expected, found.variance_standard_error) < Z_LIMIT


@each(FUNCTION_ESTIMATORS)
def test_variance_falls_as_one_over_the_number_of_draws(float64, estimator, n_samples):
    lam = torch.tensor([1.0, 1.0])
    few, many = (
        gradient_moments(estimator, quadratic(-3.0), normal, lam, None, n, 100_000)
        for n in (n_samples, 4 * n_samples)
    )
    ratio = few.variance / many.variance
    error = ratio * (few.variance_standard_error / few.variance).hypot(
        many.variance_standard_error / many.variance
    )
    if estimator is leave_one_out:  # and a little faster, for its baseline improves too
        assert (ratio > 4).all()
    else:
        assert z_of(ratio, torch.full((2,), 4.0), error) < Z_LIMIT


# --- unbiased --------------------------------------------------------------------------------


@each(FUNCTION_ESTIMATORS)
def test_gradients_of_a_linear_function(float64, estimator, n_samples):
    """E[a z + c] = a mu + c: pathwise has no variance here, in the mean."""
    a, c = torch.tensor([2.0, -1.0, 0.5]), 7.0
    lam = torch.tensor([0.3, -1.0, 2.0, 0.5, 1.0, 2.0])
    f = lambda z: (a * z).sum(-1) + c
    found = gradient_moments(estimator, f, normal, lam, None, n_samples, 200_000)
    truth = torch.cat([a, torch.zeros(3)])
    assert z_of(found.mean, truth, found.standard_error) < Z_LIMIT
    if estimator is pathwise:
        torch.testing.assert_close(found.variance[:3], torch.zeros(3), rtol=0, atol=1e-20)


@each(FUNCTION_ESTIMATORS)
def test_gradients_of_a_reward_that_depends_strongly_on_the_draw(float64, estimator, n_samples):
    """E[exp(2 z)] = exp(2 mu + 2 s^2): a baseline with its own draw in it would show."""
    mu, s = 0.2, 0.5
    f = lambda z: (2 * z).exp().sum(-1)
    lam = torch.tensor([mu, s])
    found = gradient_moments(estimator, f, normal, lam, None, n_samples, 400_000)
    truth = math.exp(2 * mu + 2 * s**2) * torch.tensor([2, 4 * s])
    assert z_of(found.mean, truth, found.standard_error) < Z_LIMIT


FAMILIES = [DiagonalNormal(3), FullNormal(3), LowRankNormal(3, 2)]


@each(ESTIMATORS)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_gradients_of_the_elbo_on_an_exact_model(linear, family, estimator, n_samples):
    """ELBO = log p(x) - KL(q || posterior), both in closed form."""
    x = linear.sample(1)
    lam = (0.3 * torch.randn(family.n_parameters)).requires_grad_()
    exact = linear.log_evidence(x) - kl(family(lam.unsqueeze(0)), linear.posterior(x))
    (truth,) = torch.autograd.grad(exact.sum(), lam)
    found = gradient_moments(estimator, linear, family, lam, x, n_samples, 100_000)
    assert z_of(found.mean, truth, found.standard_error) < Z_LIMIT


BITS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)


class TableModel(nn.Module):
    """Four binary latents with any joint density: log p(x, z) is a table over the 16 states."""

    def __init__(self):
        super().__init__()
        self.table = torch.randn(16).double() * 2

    def log_joint(self, x, z):
        states = (z * torch.tensor([8.0, 4.0, 2.0, 1.0])).sum(-1).long()
        return self.table[states] + x.sum(-1)


@pytest.mark.parametrize("as_model", [False, True], ids=["function", "model"])
def test_discrete_latents_against_enumeration(float64, as_model):
    """Score function, leave-one-out and the exact sum over all states agree."""
    model, x = TableModel(), torch.zeros(1, 1)
    lam = torch.randn(4, requires_grad=True)
    log_q = Bernoulli(4)(lam).log_prob(BITS)
    f = model.table - log_q if as_model else model.table
    (truth,) = torch.autograd.grad((log_q.exp() * f).sum(), lam)
    target = model if as_model else lambda z: model.log_joint(x, z)
    for estimator, n_samples in [(score_function, 1), (leave_one_out, 2), (leave_one_out, 6)]:
        found = gradient_moments(estimator, target, Bernoulli(4), lam, x, n_samples, 200_000)
        assert z_of(found.mean, truth, found.standard_error) < Z_LIMIT
        value = estimator(target, Bernoulli(4)(lam.expand(200_000, -1)), x.expand(200_000, 1), 2)
        error = value.std() / len(value) ** 0.5
        assert abs(value.mean() - (log_q.exp() * f).sum()) < Z_LIMIT * error
    with pytest.raises(ValueError, match="carry no gradient"):
        pathwise(target, Bernoulli(4)(lam.unsqueeze(0)), x, 1)


class Slope(nn.Module):
    """z ~ N(0, 1), x | z ~ N(w z, 1), with one w for each row, so that each row has its own
    gradient. E_q of it is (x m - w (m^2 + v))."""

    def __init__(self, w, n):
        super().__init__()
        self.w = nn.Parameter(torch.full((n,), w))

    def log_joint(self, x, z):
        z, x = z.squeeze(-1), x.squeeze(-1)
        return td.Normal(self.w * z, 1.0).log_prob(x) + td.Normal(0.0, 1.0).log_prob(z)


@each(ESTIMATORS)
def test_gradients_of_the_model_parameters(float64, estimator, n_samples):
    """They are those of log p(x, z), whatever is done to the gradient of q."""
    n, w, x, mean, variance = 100_000, 0.7, 1.5, 0.4, 0.3
    model = Slope(w, n)
    q = normal(torch.tensor([[mean, variance**0.5]]).repeat(n, 1).requires_grad_())
    estimator(model, q, torch.full((n, 1), x), n_samples).sum().backward()
    error = model.w.grad.std() / n**0.5
    assert abs(model.w.grad.mean() - (x * mean - w * (mean**2 + variance))) < Z_LIMIT * error


@each(ESTIMATORS)
def test_model_gradients_are_those_of_the_elbo_for_the_same_draws(float64, estimator, n_samples):
    found = []
    for objective in (elbo, estimator):
        model = Slope(0.7, 5)
        torch.manual_seed(3)
        q = normal(torch.tensor([[0.4, 0.5]]).repeat(5, 1).requires_grad_())
        objective(model, q, torch.ones(5, 1), n_samples).sum().backward()
        found.append(model.w.grad)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)


# --- the value -------------------------------------------------------------------------------


@each(ESTIMATORS)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_value_is_the_bound_for_the_same_draws(linear, family, estimator, n_samples):
    x = linear.sample(5)
    lam = torch.randn(5, family.n_parameters, requires_grad=True)
    values = []
    for objective in (elbo, estimator):
        torch.manual_seed(3)
        values.append(objective(linear, family(lam), x, n_samples))
    assert torch.equal(*values) and values[1].shape == (5,)


@each(FUNCTION_ESTIMATORS)
def test_the_value_of_a_function_is_its_mean(float64, estimator, n_samples):
    lam = torch.tensor([[0.3, 0.5]]).repeat(4, 1).requires_grad_()
    torch.manual_seed(3)
    z = normal(lam).rsample((n_samples,))
    torch.manual_seed(3)
    value = estimator(quadratic(1.0), normal(lam), None, n_samples)
    assert torch.equal(value, quadratic(1.0)(z).mean(0))


@each(ESTIMATORS)
def test_estimators_say_which_bound_they_estimate(estimator, n_samples):
    assert getattr(estimator, "func", estimator).bound == "elbo"


# --- at the exact posterior ------------------------------------------------------------------


def test_sticking_the_landing_is_zero_for_every_draw(linear):
    x = linear.sample(7)
    lam = lam_of(linear.posterior(x)).requires_grad_()
    (total,) = torch.autograd.grad(pathwise(linear, FullNormal(3)(lam), x, 1).sum(), lam)
    (stuck,) = torch.autograd.grad(
        sticking_the_landing(linear, FullNormal(3)(lam), x, 1).sum(), lam
    )
    assert stuck.abs().max() < 1e-10
    assert total.abs().min() > 1e-4


def test_the_total_derivative_at_the_posterior_has_the_variance_of_the_score(float64):
    """1/s^2 in the mean and 2/s^2 in the standard deviation; without the score term, none."""
    model, x = ConjugateNormal().double(), torch.tensor([[1.5]])
    s = 0.5**0.5
    lam = torch.tensor([0.75, s])
    total = gradient_moments(pathwise, model, normal, lam, x, replicates=400_000)
    assert z_of(total.mean, torch.zeros(2), total.standard_error) < Z_LIMIT
    expected = torch.tensor([1 / s**2, 2 / s**2])
    assert z_of(total.variance, expected, total.variance_standard_error) < Z_LIMIT
    stuck = gradient_moments(sticking_the_landing, model, normal, lam, x)
    torch.testing.assert_close(stuck.mean, torch.zeros(2), rtol=0, atol=1e-10)
    torch.testing.assert_close(stuck.variance, torch.zeros(2), rtol=0, atol=1e-20)


def test_the_score_gradient_at_the_posterior(float64):
    """(log p)^2 times the Fisher information, and nothing once log p is subtracted."""
    model, x = ConjugateNormal().double(), torch.tensor([[1.5]])
    s = 0.5**0.5
    lam, log_p = torch.tensor([0.75, s]), model.log_evidence(x)
    plain = gradient_moments(score_function, model, normal, lam, x, replicates=400_000)
    assert z_of(plain.mean, torch.zeros(2), plain.standard_error) < Z_LIMIT
    expected = log_p**2 * torch.tensor([1 / s**2, 2 / s**2])
    assert z_of(plain.variance, expected, plain.variance_standard_error) < Z_LIMIT
    for estimator, n_samples in [
        (partial(score_function, baseline=model.log_evidence), 1),
        (leave_one_out, 2),
    ]:
        quiet = gradient_moments(estimator, model, normal, lam, x, n_samples)
        torch.testing.assert_close(quiet.mean, torch.zeros(2), rtol=0, atol=1e-10)
        torch.testing.assert_close(quiet.variance, torch.zeros(2), rtol=0, atol=1e-20)


# --- the importance-weighted bound -------------------------------------------------------------

PATHS = [
    DiagonalNormal(3),
    FullNormal(3),
    LowRankNormal(3, 2),
    MixtureNormal(3, 2, "implicit"),
    PlanarFlow(3, 2),
]
each_path = pytest.mark.parametrize("family", PATHS, ids=str)


@each_path
@pytest.mark.parametrize("k", [1, 2, 7])
def test_the_value_of_the_double_path_is_the_bound(linear, family, k):
    x, lam = linear.sample(5), 0.5 * torch.randn(5, family.n_parameters, requires_grad=True)
    values = []
    for objective in (iwae, doubly_reparameterised):
        torch.manual_seed(3)
        values.append(objective(linear, family(lam), x, k))
    assert torch.equal(*values) and values[1].shape == (5,)
    assert doubly_reparameterised.bound == "iwae"


@each_path
def test_one_draw_of_the_double_path_sticks_the_landing(linear, family):
    x, lam = linear.sample(5), torch.randn(5, family.n_parameters, requires_grad=True)
    gradients = []
    for estimator in (sticking_the_landing, doubly_reparameterised):
        torch.manual_seed(3)
        value = estimator(linear, family(lam), x, 1).sum()
        gradients += torch.autograd.grad(value, lam)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)
    assert gradients[0].abs().max() > 1e-2


@pytest.mark.parametrize("k", [1, 5])
def test_the_double_path_by_hand(float64, k):
    """Sum of squared normalised weights times the path, with p and q written out."""
    model, x, m, s = ConjugateNormal().double(), torch.tensor([[1.5]]), 0.3, 0.6
    lam = torch.tensor([[m, s]], requires_grad=True)
    torch.manual_seed(3)
    (found,) = torch.autograd.grad(doubly_reparameterised(model, normal(lam), x, k).sum(), lam)
    torch.manual_seed(3)
    z = normal(lam).rsample((k,)).detach()[:, 0, 0]
    eps = (z - m) / s
    log_w = -0.5 * z**2 - 0.5 * (1.5 - z) ** 2 + 0.5 * eps**2
    weight = log_w.softmax(0)
    slope = -z + (1.5 - z) + (z - m) / s**2  # of log w in z
    expected = torch.stack([(weight**2 * slope).sum(), (weight**2 * slope * eps).sum()])
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-10)


@each_path
def test_the_double_path_has_the_mean_of_the_plain_gradient_and_less_variance(linear, family):
    x, lam = linear.sample(1), 0.3 * torch.randn(family.n_parameters)
    many = {"n_samples": 5, "replicates": 20_000}
    plain = gradient_moments(iwae, linear, family, lam, x, **many)
    double = gradient_moments(doubly_reparameterised, linear, family, lam, x, **many)
    error = torch.hypot(plain.standard_error, double.standard_error)
    assert z_of(plain.mean, double.mean, error) < Z_LIMIT
    assert (plain.mean.abs() > 5 * plain.standard_error).any()


def test_squares_are_needed(linear):
    """Weights that are not squared, as in sticking the landing for K > 1, give another mean."""
    family, x = DiagonalNormal(3), linear.sample(1)
    lam = lam_of(linear.posterior(x))[0, :6]

    def not_squared(model, q, x, k):
        z = q.rsample((k,))
        log_w = model.log_joint(x, z) - q.log_prob(z)
        stuck = log_w + q.log_prob(z.detach())
        return (log_w.detach().softmax(0) * stuck).sum(0)

    many = {"n_samples": 5, "replicates": 40_000}
    plain, double, wrong = (
        gradient_moments(estimator, linear, family, lam, x, **many)
        for estimator in (iwae, doubly_reparameterised, not_squared)
    )
    error = torch.hypot(plain.standard_error, wrong.standard_error)
    assert ((plain.mean - wrong.mean).abs() / error).max() > 10
    error = torch.hypot(plain.standard_error, double.standard_error)
    assert z_of(plain.mean, double.mean, error) < Z_LIMIT
    assert (double.variance < plain.variance / 2).all()


def test_the_double_path_is_zero_at_the_posterior(linear):
    x = linear.sample(7)
    lam = lam_of(linear.posterior(x)).requires_grad_()
    value = doubly_reparameterised(linear, FullNormal(3)(lam), x, 4)
    torch.testing.assert_close(value, linear.log_evidence(x), rtol=0, atol=1e-9)
    (stuck,) = torch.autograd.grad(value.sum(), lam)
    assert stuck.abs().max() < 1e-10


@pytest.mark.parametrize("k", [1, 6])
def test_the_double_path_leaves_the_model_its_plain_gradient(float64, k):
    """For the same draws: the weights are squared for q, not for θ."""
    found = []
    for objective in (iwae, doubly_reparameterised):
        model = Slope(0.7, 5)
        torch.manual_seed(3)
        q = normal(torch.tensor([[0.4, 0.5]]).repeat(5, 1).requires_grad_())
        objective(model, q, torch.ones(5, 1), k).sum().backward()
        found.append(model.w.grad)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)


def test_the_double_path_on_a_flow_of_another_library(linear):
    """The oracle: log q by a frozen copy, and the weights squared by hand."""
    flow = zuko.flows.MAF(3, 2, transforms=2, hidden_features=(8,)).double()
    x, context = linear.sample(5), torch.randn(5, 2)
    torch.manual_seed(3)
    doubly_reparameterised(linear, flow(context), x, 4).sum().backward()
    found = torch.cat([p.grad.flatten() for p in flow.parameters()])
    flow.zero_grad()
    frozen = copy.deepcopy(flow).requires_grad_(False)
    torch.manual_seed(3)
    z = flow(context).rsample((4,))
    log_w = linear.log_joint(x, z) - frozen(context).log_prob(z)
    (log_w.detach().softmax(0).square() * log_w).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in flow.parameters()])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_ascent_on_the_double_path_reaches_the_evidence(linear):
    """With a full normal the bound is tight for every K."""
    x = linear.sample(16)
    lam = (lam_of(linear.posterior(x)) + 0.5 * torch.randn(16, 9)).requires_grad_()
    optimizer = torch.optim.Adam([lam], 0.05)

    def gap():
        return linear.log_evidence(x) - elbo(linear, FullNormal(3)(lam), x, 50)

    before = gap()
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.05 if step < 250 else 0.01
        optimizer.zero_grad()
        (-doubly_reparameterised(linear, FullNormal(3)(lam), x, 4)).sum().backward()
        optimizer.step()
    assert gap().abs().max() < 1e-2 < 0.3 < before.mean()


def test_draws_that_weigh_nothing_leave_the_others_their_gradient(float64):
    bare = Bare(lambda x, z: torch.where(z[..., 0] > 0, -z[..., 0], -torch.inf))
    lam = torch.tensor([[0.0, 1.0]], requires_grad=True)
    torch.manual_seed(0)
    value = doubly_reparameterised(bare, normal(lam), torch.zeros(1, 1), 8)
    value.sum().backward()
    assert value.isfinite().all() and lam.grad.isfinite().all() and (lam.grad != 0).all()


def test_a_frozen_encoder_trains_the_model_alone(float64):
    model = Slope(0.7, 5)
    q = normal(torch.tensor([[0.4, 0.5]]).repeat(5, 1))
    doubly_reparameterised(model, q, torch.ones(5, 1), 3).sum().backward()
    assert (model.w.grad != 0).all()


def test_the_double_path_needs_a_model():
    with pytest.raises(ValueError, match="target must be a model"):
        doubly_reparameterised(lambda z: z.sum(-1), normal(torch.ones(1, 2)), None, 3)


# --- flows and cached transforms -------------------------------------------------------------


def test_sticking_the_landing_on_a_flow_is_the_gradient_with_a_frozen_copy(linear):
    """The oracle: log q by a copy of the flow whose parameters do not train."""
    flow = zuko.flows.MAF(3, 2, transforms=2, hidden_features=(8,)).double()
    x, context = linear.sample(5), torch.randn(5, 2)
    gradients = []
    for frozen in (False, True):
        flow.zero_grad()
        torch.manual_seed(3)
        if frozen:
            copied = copy.deepcopy(flow).requires_grad_(False)
            z = flow(context).rsample((4,))
            value = (linear.log_joint(x, z) - copied(context).log_prob(z)).mean(0)
        else:
            value = sticking_the_landing(linear, flow(context), x, 4)
        value.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in flow.parameters()]))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)
    assert (gradients[0] != 0).any()


def test_score_function_on_a_flow_is_the_gradient_of_its_density(linear):
    flow = zuko.flows.MAF(3, 2, transforms=2, hidden_features=(8,)).double()
    x, context = linear.sample(5), torch.randn(5, 2)
    torch.manual_seed(3)
    score_function(linear, flow(context), x, 4).sum().backward()
    found = torch.cat([p.grad.flatten() for p in flow.parameters()])
    flow.zero_grad()
    torch.manual_seed(3)
    z = flow(context).sample((4,))
    log_q = flow(context).log_prob(z)
    reward = (linear.log_joint(x, z) - log_q).detach()
    (reward * log_q).mean(0).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in flow.parameters()])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("estimator", [score_function, sticking_the_landing])
def test_a_distribution_that_caches_its_draw_has_the_same_gradient(float64, estimator):
    """A cached inverse is the noise of the draw: log q would lose its gradient to it, silently."""
    model, x = ConjugateNormal().double(), torch.tensor([[1.5]])
    gradients = []
    for cache in (0, 1):
        lam = torch.tensor([0.3, 0.6], requires_grad=True)
        shift = td.AffineTransform(lam[:1], lam[1:], cache_size=cache)
        q = td.TransformedDistribution(td.Normal(torch.zeros(1, 1), 1.0), shift)
        torch.manual_seed(3)
        estimator(model, td.Independent(q, 1), x, 3).sum().backward()
        gradients.append(lam.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


# --- learned baseline, training --------------------------------------------------------------


def test_a_learned_baseline_is_pulled_towards_the_mean_reward(linear):
    """Its gradient is the mean of f - b(x), and that of q is as with the same fixed baseline."""
    x, family = linear.sample(5), DiagonalNormal(3)
    lam = torch.randn(5, 6, requires_grad=True)
    network = mlp(6, 1).double()
    torch.manual_seed(3)
    score_function(linear, family(lam), x, 4, network).sum().backward()
    found = lam.grad.clone()
    torch.manual_seed(3)
    f = elbo(linear, family(lam), x, 4)
    advantage = (f - network(x).squeeze(-1)).detach()
    torch.testing.assert_close(network[0].bias.grad, advantage.sum().unsqueeze(0))
    torch.testing.assert_close(network[0].weight.grad, (advantage @ x).unsqueeze(0))
    lam.grad = None
    torch.manual_seed(3)
    fixed = lambda x: network(x).squeeze(-1).detach()
    score_function(linear, family(lam), x, 4, fixed).sum().backward()
    torch.testing.assert_close(found, lam.grad, rtol=0, atol=1e-12)


def linear_vae(seed=0):
    torch.manual_seed(seed)
    encoder = nn.Sequential(mlp(4, 2), DiagonalNormal(1))
    return VAE(encoder, nn.Sequential(mlp(1, 4), Normal(4)), StandardNormal(1))


def training_data():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(400, 1, generator=generator)
    noise = torch.randn(400, 4, generator=generator)
    return (z * torch.tensor([1.0, -1.0, 0.5, 2.0]) + 0.5 * noise).cpu()


@pytest.mark.parametrize("name", ["pathwise", "stuck", "score", "leave-one-out", "learned"])
def test_training_with_every_estimator_reaches_the_optimum(device, name):
    """The linear VAE has its maximum in closed form; noisier gradients end further off."""
    x = training_data().to(device)
    best = LinearGaussian.fit(x.double(), 1).log_evidence(x.double()).mean().item()
    vae = linear_vae()
    vae.baseline = mlp(4, 16, 1)
    objective = {
        "pathwise": pathwise,
        "stuck": sticking_the_landing,
        "score": score_function,
        "leave-one-out": leave_one_out,
        "learned": partial(score_function, baseline=vae.baseline),
    }[name]
    before = vae.baseline[0].weight.detach().clone()
    config = TrainConfig(
        epochs=60, batch_size=50, learning_rate=0.02, n_samples=4, objective=objective,
        device=device,
    )  # fmt: skip
    history = fit(vae, x, config)
    assert list(history.frame)[1] == "elbo"
    layer, likelihood = vae.decoder[0][0], vae.decoder[1]
    learnt = LinearGaussian(layer.weight, layer.bias, likelihood.scale.detach())
    bound = learnt.log_evidence(x) - kl(vae.encoder(x), learnt.posterior(x))
    assert best - 0.15 < bound.mean().item() < best + 1e-5
    moved = not torch.equal(before.to(device), vae.baseline[0].weight)
    assert moved == (name == "learned")
    if name == "learned":
        vae.to(device)
        off = vae.baseline(x).squeeze(-1) - elbo(vae, vae.encoder(x), x, 100)
        assert off.detach().abs().mean() < 0.5 * elbo(vae, vae.encoder(x), x, 1).std()


def test_training_with_binary_latents(device):
    """Eight states of three bits: the bound rises and stays below the enumerated evidence."""

    class Bits(nn.Module):
        def forward(self):
            return Bernoulli(3)(torch.zeros(3))

    torch.manual_seed(0)
    x = torch.randint(0, 2, (8, 6)).float().repeat(40, 1)
    encoder = nn.Sequential(mlp(6, 16, 3), Bernoulli(3))
    vae = VAE(encoder, nn.Sequential(mlp(3, 16, 6), Bernoulli(6)), Bits()).to(device)
    config = TrainConfig(
        epochs=40, batch_size=40, learning_rate=0.02, n_samples=5, objective=leave_one_out,
        device=device,
    )  # fmt: skip
    rows = fit(vae, x, config).rows
    assert rows[-1]["elbo"] > rows[0]["elbo"] + 1
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3))).unsqueeze(1)
    evidence = vae.log_joint(x, states).logsumexp(0).mean()
    assert rows[-1]["elbo"] < evidence


# --- moments ---------------------------------------------------------------------------------


def given(gradients):
    """An estimator whose gradients are known: it hands them out row by row."""
    sizes = []

    def estimator(target, q, x, n_samples):
        start = sum(sizes)
        sizes.append(len(q))
        return (q * gradients[start : start + len(q)]).sum(-1)

    return estimator, sizes


def test_moments_are_those_of_the_gradients(float64):
    gradients = torch.randn(7, 3).exp()
    estimator, sizes = given(gradients)
    found = gradient_moments(
        estimator, None, lambda lam: lam, torch.zeros(3), replicates=7, chunk=3
    )
    assert sizes == [3, 3, 1] and found.replicates == 7
    variance = gradients.var(0)
    torch.testing.assert_close(found.mean, gradients.mean(0))
    torch.testing.assert_close(found.variance, variance)
    torch.testing.assert_close(found.standard_error, (variance / 7).sqrt())
    fourth = (gradients - gradients.mean(0)).pow(4).mean(0)
    torch.testing.assert_close(
        found.variance_standard_error, ((fourth - variance**2 * 4 / 6) / 7).sqrt()
    )


@pytest.mark.parametrize("draw", [torch.randn, torch.rand, lambda *s: -torch.rand(*s).log()])
def test_the_standard_error_of_a_variance_is_its_spread(float64, draw):
    """The spread of 2000 variances is what 200 predictions say, within 10 %."""
    gradients = draw(2000, 500)
    found = gradients.var(1)
    predicted = torch.stack(
        [
            gradient_moments(
                given(g.unsqueeze(1))[0], None, lambda lam: lam, torch.zeros(1), replicates=500
            ).variance_standard_error
            for g in gradients[:200]
        ]
    )
    assert predicted.square().mean().sqrt().item() == pytest.approx(found.std().item(), rel=0.1)


def test_moments_leave_no_trace(linear):
    vae = linear_vae().double()
    lam = torch.zeros(2, requires_grad=True)
    with torch.no_grad():
        found = gradient_moments(pathwise, vae, DiagonalNormal(1), lam, torch.ones(1, 4))
    assert found.mean.abs().min() > 0
    assert lam.grad is None and all(p.grad is None for p in vae.parameters())


# --- bad input -------------------------------------------------------------------------------


def unit_normal(n=2, dim=1):
    return normal(torch.cat([torch.zeros(n, dim), torch.ones(n, dim)], -1).requires_grad_())


@pytest.mark.parametrize("estimator", [pathwise, score_function, leave_one_out])
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda z: z, r"f\(z\) must have shape \(2, 2\), found \(2, 2, 1\)"),
        (lambda z: z.sum(), r"f\(z\) must have shape \(2, 2\), found \(\)"),
        (lambda z: 3.0, r"f\(z\) must be a torch.Tensor, found float"),
        ("elbo", "target must be a model with .* found str"),
    ],
)
def test_bad_targets_are_refused(estimator, target, message):
    with pytest.raises(ValueError, match=message):
        estimator(target, unit_normal(), None, 2)


@each(ESTIMATORS)
def test_bad_observations_are_refused(estimator, n_samples):
    model = ConjugateNormal()
    with pytest.raises(ValueError, match="x must hold the observations|x must be given"):
        estimator(model, unit_normal(), None, n_samples)
    for x, message in [
        (torch.zeros(3, 1), "x has 3 rows but .* for 2"),
        (torch.zeros(2, 2), r"x must have shape \(B, 1\)"),
        (torch.full((2, 1), float("nan")), "x holds 2 values that are NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            estimator(model, unit_normal(), x, n_samples)
    with pytest.raises(ValueError, match="n_samples must be an integer of at least 1, found 0"):
        estimator(model, unit_normal(), torch.zeros(2, 1), 0)


def test_a_joint_density_of_another_shape_is_refused():
    class Wrong:
        def log_joint(self, x, z):
            return torch.zeros(2, 1)

    for estimator in (pathwise, score_function, sticking_the_landing):
        with pytest.raises(ValueError, match=r"log_joint\(x, z\) must have shape \(1, 2\)"):
            estimator(Wrong(), unit_normal(), torch.zeros(2, 1), 1)


@pytest.mark.parametrize(
    ("baseline", "x", "message"),
    [
        ("mean", None, 'baseline must be None, "leave_one_out" or a function of x, found .mean.'),
        (3.0, None, "baseline must be None"),
        ("leave_one_out", None, "n_samples must be at least 2 for the leave-one-out"),
        (lambda x: x.sum(-1), None, "x must be given for a baseline"),
        (lambda x: x, torch.zeros(2, 2), r"baseline\(x\) must have shape \(2,\), found \(2, 2\)"),
        (lambda x: x.sum(), torch.zeros(2, 2), r"baseline\(x\) must have shape \(2,\)"),
        (lambda x: 1.0, torch.zeros(2, 2), r"baseline\(x\) must be a torch.Tensor, found float"),
    ],
)
def test_bad_baselines_are_refused(baseline, x, message):
    with pytest.raises(ValueError, match=message):
        score_function(quadratic(0.0), unit_normal(), x, 1, baseline)


def test_sticking_the_landing_needs_a_model():
    with pytest.raises(ValueError, match="plain function has no log q in it, use pathwise"):
        sticking_the_landing(quadratic(0.0), unit_normal())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicates": 1}, "replicates must be an integer of at least 2, found 1"),
        ({"replicates": 10.0}, "replicates must be an integer"),
        ({"chunk": 0}, "chunk must be an integer of at least 1, found 0"),
        ({"lam": torch.zeros(1, 2)}, r"lam must be .* shape \(P,\), found \(1, 2\)"),
        ({"lam": torch.zeros(2, dtype=torch.int64)}, "lam must be a floating-point"),
        ({"lam": [0.0, 1.0]}, "lam must be .* found list"),
        ({"x": torch.zeros(2, 1)}, r"x must be one observation, .* found \(2, 1\)"),
        ({"x": torch.tensor(1.0)}, r"x must be one observation, .* found \(\)"),
    ],
)
def test_bad_options_of_the_moments_are_refused(options, message):
    arguments = {"lam": torch.tensor([0.0, 1.0]), "x": torch.zeros(1, 1), **options}
    with pytest.raises(ValueError, match=message):
        gradient_moments(pathwise, ConjugateNormal(), normal, **arguments)


@each(ESTIMATORS)
def test_a_draw_without_any_density_makes_the_bound_infinite(float64, estimator, n_samples):
    """An impossible z is reported as such: minus infinity, not NaN."""
    q = td.Independent(td.Normal(torch.zeros(2, 1, requires_grad=True), 1.0), 1)
    model = Bare(lambda x, z: torch.where(z > 0, -z, -torch.inf).sum(-1))
    torch.manual_seed(0)
    value = estimator(model, q, torch.zeros(2, 1), 20 * n_samples)
    assert (value == -torch.inf).all()


def test_a_huge_reward_does_not_overflow(device):
    q = td.Independent(td.Normal(torch.zeros(1, 1, requires_grad=True), 1.0), 1)
    assert score_function(lambda z: -1e20 * z.square().sum(-1), q).isfinite().all()


def test_a_baseline_of_one_row_keeps_its_axis(float64):
    q = DiagonalNormal(1)(torch.zeros(1, 2, requires_grad=True))
    value = score_function(lambda z: z.sum(-1), q, torch.ones(1, 3), 2, mlp(3, 1).double())
    assert value.shape == (1,)


@pytest.mark.parametrize("estimator", [pathwise, score_function, sticking_the_landing])
def test_rows_of_x_and_q_must_agree_whatever_the_model_checks(float64, estimator):
    q = DiagonalNormal(1)(torch.zeros(4, 2, requires_grad=True))
    model = Bare(lambda x, z: -z.square().sum(-1))
    with pytest.raises(ValueError, match="x has 3 rows"):
        estimator(model, q, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="NaN"):
        estimator(model, q, torch.full((4, 1), torch.nan))
    with pytest.raises(ValueError, match="zeros"):
        estimator(model, q)


def test_moments_need_one_value_a_row_with_a_gradient(float64):
    lam = torch.zeros(2)
    with pytest.raises(ValueError, match="the value must be a torch.Tensor, found ElboTerms"):
        x = torch.tensor([[1.5]])
        gradient_moments(elbo_terms, ConjugateNormal(), DiagonalNormal(1), lam, x)
    constant = lambda lam: td.Independent(td.Normal(torch.zeros(len(lam), 1), 1.0), 1)
    with pytest.raises(ValueError, match="depend on lam"):
        gradient_moments(pathwise, lambda z: z.sum(-1), constant, lam)
