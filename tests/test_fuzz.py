"""Whatever comes in at a door of the package: a finite answer, or a ValueError with a name in it.

Each test states a property and runs it on many cases that hypothesis makes, the same ones every
time. Legal input gives finite values with finite gradients, and where an oracle is cheap the right
ones: a batch gives what its rows give, a layout in memory changes nothing, one draw makes the
importance-weighted bound the ELBO. Anything else raises a ValueError that names the argument. The
last test counts the cases.

"Legal" is what the docstrings promise: λ and z up to 10^6, logits and weights too, except for the
few entries of λ whose range a family restricts in float32 (``LIMIT``). Beyond that no NaN appears.
"""

import functools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.distributions as td
from fuzz_cases import (
    LIMIT,
    MAKE,
    NOT_A_TENSOR,
    PLANNED,
    RAN,
    SPOILED,
    accepts_or_refuses,
    anything,
    assert_finite,
    bad_counts,
    cases,
    dtypes,
    gradients_of,
    huge,
    latent,
    layouts,
    names,
    numbers,
    observed,
    observed_names,
    parameters,
    posteriors,
    prior,
    prior_names,
    refuses,
    rows,
    seen,
    spoiled,
    spread,
    vae,
)
from hypothesis import strategies as st
from torch import nn

import vaetutor as vt
from vaetutor import _checks, elbo, elbo_terms, iwae, kl, kl_per_dimension
from vaetutor.data import rotate
from vaetutor.objectives import draw

AT_LEAST = 10_000


# ---- families over z ----


@cases(1300, name=names, values=numbers, batch=rows, dtype=dtypes)
def test_draws_their_density_and_their_gradients_are_finite(name, values, batch, dtype):
    lam = parameters(name, values, batch, dtype).requires_grad_()
    q = latent(name, dtype)(lam)
    z, log_q, log_share = draw(q, 2)
    assert z.shape[1:] == (batch, 3) and log_q.shape == z.shape[:2] and z.dtype == dtype
    assert_finite(z, log_q, *gradients_of(z, lam), *gradients_of(log_q, lam))
    if log_share is not None:
        torch.testing.assert_close(log_share.exp().sum(0), torch.ones(batch, dtype=dtype))
    again = latent(name, dtype)(lam).log_prob(z.detach())
    assert_finite(again, *gradients_of(again, lam))


@cases(1000, name=names, values=numbers, at=numbers, batch=rows, dtype=dtypes)
def test_the_density_of_any_z_is_finite_with_its_gradients(name, values, at, batch, dtype):
    lam = parameters(name, values, batch, dtype).requires_grad_()
    z = spread(at, batch, 3, dtype=dtype).requires_grad_()
    log_q = latent(name, dtype)(lam).log_prob(z)
    assert log_q.shape == (batch,) and log_q.dtype == dtype
    assert_finite(log_q, *gradients_of(log_q, lam, z))


@cases(400, name=names, values=numbers, at=numbers, batch=rows)
def test_a_density_of_a_batch_is_that_of_its_rows(name, values, at, batch):
    family, z = latent(name, torch.float64), spread(at, 2, batch, 3, dtype=torch.float64)
    lam = parameters(name, values, batch, torch.float64)
    singles = [family(lam[[i]]).log_prob(z[:, [i]]) for i in range(batch)]
    torch.testing.assert_close(family(lam).log_prob(z), torch.cat(singles, 1), rtol=1e-9, atol=0)


@cases(400, name=names, values=numbers, at=numbers, batch=rows)
def test_a_layout_in_memory_changes_no_density(name, values, at, batch):
    family, z = latent(name, torch.float64), spread(at, batch, 3, dtype=torch.float64)
    lam = parameters(name, values, batch, torch.float64)
    expected = family(lam).log_prob(z)
    for lam_, z_ in zip(layouts(lam), layouts(z), strict=True):
        torch.testing.assert_close(family(lam_).log_prob(z), expected, rtol=1e-9, atol=0)
        torch.testing.assert_close(family(lam).log_prob(z_), expected, rtol=1e-9, atol=0)
    one = family(lam[:1].expand(4, -1)).log_prob(z[:1].expand(4, -1))
    torch.testing.assert_close(one, expected[:1].expand(4), rtol=1e-9, atol=0)


# In float32 the low-rank density squares z before it scales it, and overflows early.
beyond = st.sampled_from([name for name in MAKE if name != "LowRankNormal"])


@cases(600, name=beyond, values=huge, at=numbers, batch=rows)
def test_beyond_the_range_no_density_is_nan(name, values, at, batch):
    lam = parameters(name, values, batch)
    try:
        log_q = latent(name)(lam).log_prob(spread(at, batch, 3))
    except (ValueError, FloatingPointError):
        return
    assert not log_q.isnan().any()


@cases(300, name=names, how=st.sampled_from(SPOILED), batch=rows)
def test_a_family_refuses_other_parameters(name, how, batch):
    lam = torch.zeros(batch, latent(name).n_parameters)
    refuses("lam", latent(name), spoiled(lam)[how])


NO_EVENTS = ["NaN", "empty", "wide", "narrow", "scalar", "no tensor", "list", "array", "text"]


@cases(300, name=names, how=st.sampled_from(NO_EVENTS), batch=rows)
def test_a_density_refuses_other_values(name, how, batch):
    q = latent(name)(torch.zeros(batch, latent(name).n_parameters))
    z = spoiled(torch.zeros(batch, 3))[how]
    refuses("value", q.log_prob, z)


@cases(150, a=numbers, b=numbers, dtype=dtypes)
def test_kl_is_at_least_zero_and_finite_for_all_pairs(a, b, dtype):
    """Closed forms, in all nine pairs of normals, for scales and locations of ordinary size."""
    normals = ("DiagonalNormal", "FullNormal", "LowRankNormal")
    one, other = (
        {name: latent(name, dtype)(torch.tanh(parameters(name, v, 2, dtype))) for name in normals}
        for v in (a, b)
    )
    tolerance = 1e-3 if dtype == torch.float32 else 1e-11
    for q in one.values():
        for p in other.values():
            assert (kl(q, p) >= -tolerance).all() and kl(q, p).isfinite().all()
    each = kl_per_dimension(one["DiagonalNormal"], other["DiagonalNormal"])
    whole = kl(one["DiagonalNormal"], other["DiagonalNormal"])
    assert (each >= 0).all()
    torch.testing.assert_close(each.sum(-1), whole)


@cases(400, name=st.sampled_from(["DiagonalNormal", "FullNormal"]), values=numbers, batch=rows)
def test_kl_to_the_standard_normal_keeps_value_and_gradient(name, values, batch):
    lam = parameters(name, values, batch).requires_grad_()
    divergence = kl(latent(name)(lam), prior("StandardNormal")())
    assert (divergence >= 0).all()
    assert_finite(divergence, *gradients_of(divergence, lam))


# ---- families over x ----


@cases(600, name=observed_names, values=numbers, at=numbers, batch=rows, dtype=dtypes)
def test_likelihoods_and_their_gradients_are_finite(name, values, at, batch, dtype):
    family, x = observed(name), seen(name, at, batch)
    lam = spread(values, batch, 3, dtype=dtype).requires_grad_()
    log_p = family(lam).log_prob(x)
    assert log_p.shape == (batch,) and log_p.dtype == dtype
    assert_finite(log_p, *gradients_of(log_p, lam), *gradients_of(log_p, *family.parameters()))
    exact, value = lam.detach().double(), x.flatten(1).double()
    if "Bernoulli" in name:
        expected = (value * exact - nn.functional.softplus(exact)).sum(-1)
    else:
        expected = td.Normal(exact, family.scale.double()).log_prob(value).sum(-1)
    torch.testing.assert_close(log_p.double(), expected.detach(), rtol=1e-4, atol=1e-4)
    assert family(lam).sample().shape == x.shape and family(lam).mean.isfinite().all()


@cases(300, name=observed_names, values=numbers, at=numbers, batch=rows)
def test_a_layout_in_memory_changes_no_likelihood(name, values, at, batch):
    family, lam, x = observed(name), spread(values, batch, 3), seen(name, at, batch)
    expected = family(lam).log_prob(x)
    for lam_, x_ in zip(layouts(lam), layouts(x), strict=True):
        torch.testing.assert_close(family(lam_).log_prob(x_), expected, rtol=1e-6, atol=1e-6)


@cases(200, name=observed_names, values=huge, at=numbers, batch=rows)
def test_beyond_the_range_no_likelihood_is_nan(name, values, at, batch):
    log_p = observed(name)(spread(values, batch, 3)).log_prob(seen(name, at, batch))
    assert not log_p.isnan().any()


@cases(150, name=observed_names, how=st.sampled_from(SPOILED), batch=rows)
def test_an_observation_family_refuses_other_parameters(name, how, batch):
    refuses("lam", observed(name), spoiled(torch.zeros(batch, 3))[how])


@cases(100, values=numbers, batch=rows)
def test_a_bernoulli_refuses_whatever_is_not_binary(values, batch):
    x = spread(values, batch, 3)
    x[-1, -1] = 0.5
    refuses("x", observed("Bernoulli")(torch.zeros(batch, 3)).log_prob, x)


# ---- priors ----


@cases(700, name=prior_names, at=numbers, draws=rows, batch=rows)
def test_the_density_of_a_prior_is_finite_with_its_gradients(name, at, draws, batch):
    module, z = prior(name), spread(at, draws, batch, 3).requires_grad_()
    log_p = module().log_prob(z)
    assert log_p.shape == (draws, batch)
    assert_finite(log_p, *gradients_of(log_p, z, *module.parameters()))
    singles = [module().log_prob(z[:, [i]]) for i in range(batch)]
    torch.testing.assert_close(log_p, torch.cat(singles, 1), rtol=1e-5, atol=1e-5)
    own = module().sample((draws, batch))
    assert own.shape == z.shape
    assert_finite(own, module().log_prob(own))


@cases(150, name=prior_names, how=st.sampled_from(NO_EVENTS), batch=rows)
def test_a_prior_refuses_other_values(name, how, batch):
    refuses("value|z", prior(name)().log_prob, spoiled(torch.zeros(batch, 3))[how])


@cases(200, values=numbers, rows_=rows, low=anything, high=anything)
def test_a_support_is_an_interval_with_the_pseudo_inputs_inside(values, rows_, low, high):
    encoder = prior("VampPrior").encoder
    inputs = spread(values, rows_, 2)
    made = accepts_or_refuses(
        "support|pseudo_inputs", vt.VampPrior, encoder, inputs, support=(low, high)
    )
    if made is not None:
        assert_finite(made.pseudo_inputs, made().log_prob(torch.zeros(3)))


@cases(100, how=st.sampled_from(SPOILED), support=st.sampled_from([None, (-1.0, 1.0)]))
def test_a_vamp_prior_refuses_other_pseudo_inputs(how, support):
    encoder = prior("VampPrior").encoder
    refuses("pseudo_inputs", vt.VampPrior, encoder, spoiled(torch.zeros(3, 2))[how], support)


# ---- numbers of dimensions, components, layers ----

COUNTED = {
    "dim": [
        *(vt.DiagonalNormal, vt.FullNormal, vt.ProjectedNormal, vt.StandardNormal, vt.FlowPrior),
        *(lambda n: vt.LowRankNormal(n, 1), lambda n: vt.MixtureNormal(n, 2)),
        *(lambda n: vt.PlanarFlow(n, 1), lambda n: vt.FlowPosterior(n, 1)),
        *(lambda n: vt.MarkovNormal(2, n), lambda n: vt.MixturePrior(n, 2)),
    ],
    "rank": [lambda n: vt.LowRankNormal(2, n)],
    "components": [lambda n: vt.MixtureNormal(2, n), lambda n: vt.MixturePrior(2, n)],
    "transforms": [lambda n: vt.PlanarFlow(2, n), lambda n: vt.FlowPrior(2, n)],
    "context": [lambda n: vt.FlowPosterior(2, n)],
    "hidden": [lambda n: vt.FlowPrior(2, hidden=(n,))],
    "bins": [lambda n: vt.FlowPosterior(2, 1, bins=n)],
    "steps": [lambda n: vt.MarkovNormal(n, 2)],
    "limit": [lambda n: vt.VampPrior(nn.Identity(), torch.zeros(1, 1), limit=n)],
    "sizes": [lambda n: vt.mlp(3, n, 2), vt.mlp],
    "event_shape": [vt.Bernoulli, vt.Normal, lambda n: vt.Normal((2, n))],
    "n": [lambda n: vae("DiagonalNormal", "StandardNormal").sample(n)],
}


@cases(600, name=st.sampled_from(list(COUNTED)), pick=st.integers(0, 99), count=bad_counts)
def test_what_is_no_count_is_refused(name, pick, count):
    makers = COUNTED[name]
    if name == "event_shape" and isinstance(count, list):
        return  # (2,) in another form
    refuses(name, makers[pick % len(makers)], count)


# ---- a VAE, its bounds and their gradients ----

ESTIMATORS = {
    "elbo": elbo,
    "elbo_terms": lambda *args: elbo_terms(*args).elbo,
    "iwae": iwae,
    "pathwise": lambda model, q, x, n: vt.pathwise(model, q, x, n),
    "score_function": lambda model, q, x, n: vt.score_function(model, q, x, n),
    "leave_one_out": lambda model, q, x, n: vt.score_function(
        model, q, x, n + 1, baseline="leave_one_out"
    ),
    "sticking_the_landing": lambda model, q, x, n: vt.sticking_the_landing(model, q, x, n),
    "doubly_reparameterised": lambda model, q, x, n: vt.doubly_reparameterised(model, q, x, n),
}
estimators = st.sampled_from(list(ESTIMATORS))


def at_seed_1(f, *args):
    torch.manual_seed(1)
    return f(*args)


def asks_too_much(estimator, family):
    """Draws from every component are not independent, as this estimator needs them."""
    return estimator == "doubly_reparameterised" and family == "MixtureNormal"


@cases(
    1000,
    family=posteriors,
    prior_name=prior_names,
    estimator=estimators,
    values=numbers,
    batch=rows,
    n=st.integers(1, 3),
)
def test_bounds_and_their_gradients_are_finite(family, prior_name, estimator, values, batch, n):
    # To 10^4: the gradient of a weight has x in it, and log w the square of what x makes of z.
    model, x = vae(family, prior_name), spread(values, batch, 2).clamp(-1e4, 1e4)
    limit = LIMIT.get(family, math.inf)
    lam = model.encoder[0](x)
    q = model.encoder[1](torch.cat([lam[:, :6], lam[:, 6:].clamp(-limit, limit)], 1))
    if asks_too_much(estimator, family):
        return refuses("q", ESTIMATORS[estimator], model, q, x, n)
    bound = ESTIMATORS[estimator](model, q, x, n)
    assert bound.shape == (batch,)
    assert_finite(bound, *gradients_of(bound, *model.parameters()))


@cases(250, family=posteriors, prior_name=prior_names, values=numbers, batch=rows)
def test_with_one_draw_all_bounds_are_the_elbo(family, prior_name, values, batch):
    model, x = vae(family, prior_name), spread(values, batch, 2).tanh()
    q = model.encoder(x)
    found = {}
    for name, estimator in ESTIMATORS.items():
        if name not in ("elbo_terms", "leave_one_out") and not asks_too_much(name, family):
            found[name] = at_seed_1(estimator, model, q, x, 1)
    expected = found.pop("elbo")
    if family == "MixtureNormal":  # every component is drawn from, or q itself
        assert (found.pop("iwae") >= expected - 1e-5).all()
        del found["score_function"]
    for value in found.values():
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    if family != "MixtureNormal":
        log_w, bound, mean = (at_seed_1(f, model, q, x, 3) for f in (vt.log_weights, iwae, elbo))
        assert (bound >= mean - 1e-4).all() and (bound <= log_w.amax(0) + 1e-4).all()


@cases(400, family=posteriors, estimator=estimators, how=st.sampled_from(SPOILED), batch=rows)
def test_a_bound_refuses_other_observations(family, estimator, how, batch):
    model, x = vae(family, "StandardNormal"), torch.zeros(batch, 2)
    if asks_too_much(estimator, family):
        return
    refuses("x", ESTIMATORS[estimator], model, model.encoder(x), spoiled(x)[how], 1)
    refuses("x", ESTIMATORS[estimator], model, model.encoder(x), torch.zeros(batch + 1, 2), 1)


@cases(300, family=posteriors, f=st.sampled_from([elbo, elbo_terms, iwae]), count=bad_counts)
def test_a_bound_refuses_other_numbers_of_draws(family, f, count):
    model, x = vae(family, "StandardNormal"), torch.zeros(2, 2)
    refuses("n_samples", f, model, model.encoder(x), x, count)
    refuses("n_samples", vt.score_function, model, model.encoder(x), x, count)


@cases(200, estimator=estimators, q=st.sampled_from([*NOT_A_TENSOR, torch.zeros(2, 3)]))
def test_a_bound_refuses_what_is_no_distribution(estimator, q):
    model, x = vae("DiagonalNormal", "StandardNormal"), torch.zeros(2, 2)
    refuses("q", ESTIMATORS[estimator], model, q, x, 1)


@cases(100, estimator=st.sampled_from([elbo, iwae, vt.pathwise]), batch=rows, values=numbers)
def test_a_layout_in_memory_changes_no_bound(estimator, batch, values):
    model, x = vae("FullNormal", "MixturePrior"), spread(values, batch, 2).tanh()
    q = model.encoder(x)
    found = [at_seed_1(estimator, model, q, shown, 2) for shown in (x, *layouts(x))]
    for value in found[1:]:
        torch.testing.assert_close(value, found[0], rtol=1e-6, atol=1e-6)


@cases(200, f=anything, estimator=st.sampled_from([vt.pathwise, vt.score_function]))
def test_an_integrand_is_a_model_or_a_function_with_one_value_a_draw(f, estimator):
    q = latent("DiagonalNormal")(torch.zeros(2, 6))
    refuses("target", estimator, f, q)
    refuses(r"f\(z\)|must", estimator, lambda z: f, q)


@cases(150, q=anything, p=anything, f=st.sampled_from([kl, kl_per_dimension]))
def test_a_divergence_is_one_of_distributions(q, p, f):
    normal = latent("DiagonalNormal")(torch.zeros(2, 6))
    refuses("q", f, q, p)
    refuses("p", f, normal, p)
    refuses("model", elbo, p, normal, torch.zeros(2, 2))


@cases(100, values=numbers, n=st.integers(1, 3), replicates=st.integers(2, 5), chunk=rows)
def test_moments_of_gradients_are_finite(values, n, replicates, chunk):
    lam, x = spread(values, 6).tanh(), spread(values, 1, 2).tanh()
    found = vt.gradient_moments(
        vt.pathwise,
        vae("DiagonalNormal", "StandardNormal"),
        latent("DiagonalNormal"),
        lam,
        x,
        n,
        replicates,
        chunk,
    )
    assert found.mean.shape == (6,) and found.replicates == replicates
    assert_finite(found.mean, found.variance, found.standard_error)


@cases(100, lam=st.sampled_from(NOT_A_TENSOR), count=bad_counts)
def test_moments_of_gradients_refuse_other_arguments(lam, count):
    model, family = vae("DiagonalNormal", "StandardNormal"), latent("DiagonalNormal")
    good = (vt.pathwise, model, family, torch.zeros(6))
    refuses("lam", vt.gradient_moments, *good[:3], lam, torch.zeros(1, 2))
    refuses("replicates", vt.gradient_moments, *good, torch.zeros(1, 2), replicates=count)
    refuses("chunk", vt.gradient_moments, *good, torch.zeros(1, 2), replicates=2, chunk=count)
    refuses("x", vt.gradient_moments, *good, torch.zeros(2, 2), replicates=2)


# ---- chains ----


@cases(120, values=numbers, batch=rows, steps=st.integers(1, 4), lengths=st.integers(0, 9999))
def test_padding_adds_nothing_to_a_chain(values, batch, steps, lengths):
    lam = spread(values, batch, (3 * steps - 1) * 2).clamp(-100, 100).requires_grad_()
    length = torch.tensor([1 + lengths // 7**i % steps for i in range(batch)])
    observed = torch.arange(steps) < length.unsqueeze(1)
    q = vt.MarkovNormal(steps, 2)(lam, observed)
    z = q.rsample((2,))
    log_q = q.log_prob(z)
    assert (z.unflatten(-1, (steps, 2))[:, ~observed] == 0).all()
    assert_finite(z, log_q, *gradients_of(log_q, lam))
    if (length == 1).all() and steps > 1:
        short = vt.NormalChain(q.loc[:, :1], q.gate[:, :0], q.scale[:, :1])
        torch.testing.assert_close(short.log_prob(z[..., :2]), log_q)


@cases(200, shapes=st.tuples(*3 * [st.lists(st.integers(0, 3), max_size=3)]), steps=rows)
def test_a_chain_takes_what_fits_together_and_nothing_else(shapes, steps):
    loc, gate, scale = (torch.ones(shape) for shape in shapes)
    accepts_or_refuses("loc|scale|gate", vt.NormalChain, loc, gate, scale)
    good = torch.ones(2, steps, 1)
    refuses("scale", vt.NormalChain, good, good[:, 1:], 0 * good)
    refuses("observed", vt.NormalChain, good, good[:, 1:], good, torch.ones(2, steps))
    refuses("observed", vt.NormalChain, good, good[:, 1:], good, torch.zeros(2, steps).bool())


# ---- data ----


BINARIZE = ["dynamic", "static", "threshold", None]


def images(values, n, binarize, side=2):
    x = spread(values, n, side * side)
    if binarize is not None:
        x = x.clamp(0, 1) if binarize == "dynamic" else (x > 0).float()
    return vt.Images(x, torch.arange(n), binarize, "any", (side, side))


@cases(300, values=numbers, n=rows, binarize=st.sampled_from(BINARIZE), pick=st.integers(0, 99))
def test_images_are_shown_as_they_say(values, n, binarize, pick):
    data = images(values, n, binarize)
    rows_ = [None, slice(pick % n, None), [pick % n], torch.tensor([pick % n, 0]), [-1, 0]]
    index = rows_[pick % len(rows_)]
    shown, stored = data.present(index), data.x if index is None else data.x[index]
    assert shown.shape == stored.shape and shown.dtype == torch.float32
    if binarize != "dynamic":
        assert torch.equal(shown, stored) and shown.data_ptr() != data.x.data_ptr()
    else:
        assert ((shown == 0) | (shown == 1)).all()
        sure = (stored == 0) | (stored == 1)
        assert torch.equal(shown[sure], stored[sure])


@cases(400, field=st.sampled_from(["x", "y", "binarize", "image_shape", "angle"]), value=anything)
def test_images_refuse_any_other_thing(field, value):
    good = {
        "x": torch.zeros(2, 4),
        "y": torch.zeros(2, dtype=torch.int64),
        "binarize": "static",
        "name": "any",
        "image_shape": (2, 2),
        "angle": torch.zeros(2),
    }
    made = accepts_or_refuses(field, functools.partial(vt.RotatedImages, **good | {field: value}))
    if made is not None:
        assert field in ("binarize", "image_shape")
        assert made.binarize is None or math.prod(made.image_shape) == 4


@cases(200, how=st.sampled_from([s for s in SPOILED if s != "list"]), field=st.booleans())
def test_images_refuse_other_tensors(how, field):
    good = {"x": torch.zeros(2, 4), "angle": torch.zeros(2)}
    name = "x" if field else "angle"
    bad = {name: spoiled(good[name])[how]}
    good |= {"y": torch.zeros(2, dtype=torch.int64), "binarize": "dynamic", "name": ""}
    refuses(name, functools.partial(vt.RotatedImages, image_shape=(2, 2), **good | bad))


@cases(300, values=numbers, angles=numbers, n=rows, side=st.integers(1, 4), dtype=dtypes)
def test_turned_images_stay_in_range_and_a_quarter_turn_is_exact(values, angles, n, side, dtype):
    x, angle = spread(values, n, side, side, dtype=dtype), spread(angles, n)
    turned = rotate(x, angle)
    assert turned.shape == x.shape and turned.dtype == dtype
    largest = x.abs().max()
    assert (turned <= x.amax().clamp(min=0) + 1e-6 * largest).all()
    assert (turned >= x.amin().clamp(max=0) - 1e-6 * largest).all()
    singles = [rotate(x[[i]], angle[[i]]) for i in range(n)]
    torch.testing.assert_close(turned, torch.cat(singles), rtol=0, atol=0)
    for x_, angle_ in zip(layouts(x), layouts(angle), strict=True):
        torch.testing.assert_close(rotate(x_, angle_), turned, rtol=1e-6, atol=1e-6 * largest)
    quarter = rotate(x, torch.full((n,), math.pi / 2, dtype=torch.float64))
    torch.testing.assert_close(
        quarter, x.rot90(dims=(1, 2)), rtol=1e-5, atol=max(1e-6 * largest.item(), 1e-45)
    )


@cases(200, how=st.sampled_from(SPOILED), n=rows)
def test_images_and_angles_that_cannot_be_turned_are_refused(how, n):
    x, angle = torch.zeros(n, 2, 2), torch.zeros(n)
    refuses("images", rotate, spoiled(x)[how], angle)
    if how != "narrow" or n > 1:
        refuses("angle", rotate, x, spoiled(angle)[how])


@cases(200, split=anything, binarize=anything, seed_=anything)
def test_options_of_the_digits_are_checked_before_anything_is_read(split, binarize, seed_):
    refuses("split", vt.mnist, split)
    if binarize is not None:
        refuses("binarize", vt.mnist, "test", binarize)
        refuses("binarize", vt.rotated_digits, "test", binarize)
    if not isinstance(seed_, int) or isinstance(seed_, bool) or not 0 <= seed_ < 2**63:
        refuses("seed", vt.mnist, "test", seed=seed_)


@cases(200, values=numbers, lengths=st.lists(rows, min_size=1, max_size=4), dtype=dtypes)
def test_padded_sequences_come_out_as_they_went_in(values, lengths, dtype):
    sequences = [spread(values, n, 2, dtype=dtype) for n in lengths]
    x = vt.pad(sequences)
    assert x.shape == (len(lengths), max(lengths), 3) and x.dtype == dtype
    for row, sequence in zip(x, sequences, strict=True):
        assert torch.equal(row[: len(sequence), :2], sequence)
        assert row[:, 2].sum() == len(sequence) and (row[len(sequence) :] == 0).all()


@cases(150, how=st.sampled_from(SPOILED), first=st.booleans())
def test_sequences_that_cannot_be_padded_are_refused(how, first):
    good = torch.zeros(2, 2)
    bad = spoiled(good)[how]
    if first and how in ("wide", "narrow"):
        good = good[:, :0]
    refuses("sequences", vt.pad, [bad, good] if first else [good, bad])


# ---- configuration ----

SCHEDULES = {
    "epochs": lambda v: vt.Warmup(v),
    "start": lambda v: vt.Warmup(2, start=v),
    "end": lambda v: vt.Warmup(2, end=v),
    "cycles": lambda v: vt.Cyclic(2, cycles=v),
    "ramp": lambda v: vt.Cyclic(2, ramp=v),
}


@cases(500, name=st.sampled_from(list(SCHEDULES)), value=anything, t=st.floats(0, 1e6))
def test_schedules_are_refused_or_give_a_weight_at_any_time(name, value, t):
    schedule = accepts_or_refuses(name, SCHEDULES[name], value)
    if schedule is not None:
        assert 0 <= schedule(t) < math.inf


NUMERIC = ["epochs", "batch_size", "n_samples", "encoder_steps", "seed", "learning_rate", "clip"]


@cases(600, name=st.sampled_from([*NUMERIC, "beta", "free_bits", "objective"]), value=anything)
def test_a_configuration_is_refused_or_in_range(name, value):
    config = accepts_or_refuses(name, vt.TrainConfig, **{name: value})
    if config is None or (name == "clip" and value is None):
        return
    kept = getattr(config, name)
    assert isinstance(kept, int | float | Fraction | np.floating) and not isinstance(kept, bool)
    assert 0 <= kept < math.inf
    assert kept > 0 or name in ("encoder_steps", "seed", "beta", "free_bits")
    assert 0 <= config.beta_at(0.5) < math.inf


# ---- training ----


@cases(
    100,
    family=st.sampled_from(["DiagonalNormal", "FullNormal", "MixtureNormal", "ProjectedNormal"]),
    values=numbers,
    n=st.integers(1, 5),
    batch_size=st.integers(1, 7),
    objective=st.sampled_from([elbo_terms, elbo, iwae, vt.score_function]),
    n_samples=st.integers(1, 2),
)
def test_a_short_run_ends_with_finite_parameters_or_says_why_not(
    family, values, n, batch_size, objective, n_samples
):
    encoder = nn.Sequential(nn.Linear(2, latent(family).n_parameters), latent(family))
    decoder = nn.Sequential(nn.Linear(3, 2), vt.Normal(2))
    model = vt.VAE(encoder, decoder, vt.Standard(latent(family)))
    config = vt.TrainConfig(
        epochs=1,
        batch_size=batch_size,
        objective=objective,
        n_samples=n_samples,
        device=torch.get_default_device(),
    )
    x, before = spread(values, n, 2), torch.get_rng_state()
    try:
        history = vt.fit(model, x, config)
    except FloatingPointError as error:
        assert "finite" in str(error)
        return
    finally:
        assert torch.equal(before, torch.get_rng_state())
    assert all(map(math.isfinite, history.rows[0].values()))
    assert_finite(*model.parameters())


@cases(100, how=st.sampled_from([s for s in SPOILED if s != "meta"]), place=st.booleans())
def test_training_refuses_other_data_and_leaves_the_model_alone(how, place):
    model = vae("DiagonalNormal", "StandardNormal")
    before = [p.clone() for p in model.parameters()]
    good = torch.zeros(2, 2)
    bad = spoiled(good)[how]
    config = vt.TrainConfig(epochs=1, device=torch.get_default_device())
    if place:
        refuses("x", vt.fit, model, bad, config)
    elif bad is not None:
        refuses("validation", vt.fit, model, good, config, bad)
    assert all(map(torch.equal, before, model.parameters()))


# ---- evaluation ----


@cases(
    250,
    family=posteriors,
    prior_name=prior_names,
    values=numbers,
    n=rows,
    draws=st.integers(1, 30),
    chunk=st.integers(1, 40),
    batch_size=rows,
)
def test_evaluations_are_finite_and_in_range(
    family, prior_name, values, n, draws, chunk, batch_size
):
    model, x = vae(family, prior_name), spread(values, n, 2).tanh()
    found = vt.log_evidence(model, x, draws, chunk, batch_size=batch_size)
    assert found.value.shape == (n,)
    assert_finite(found.value, found.effective_sample_size)
    assert (found.effective_sample_size >= 1 - 1e-6).all()
    assert (found.effective_sample_size <= draws * (1 + 1e-6)).all()
    assert found.standard_error.isnan().all() if draws == 1 else (found.standard_error >= 0).all()
    assert found.pareto_k.isnan().all() == (draws < 25)
    parts = vt.rate_distortion(model, x, 2, batch_size=batch_size)
    assert_finite(parts.elbo)
    assert parts.rate.shape == parts.distortion.shape == (n,)


@cases(150, family=st.sampled_from(["DiagonalNormal", "FullNormal"]), values=numbers, n=rows)
def test_figures_of_a_code_are_finite_and_in_range(family, values, n):
    model, x = vae(family, "MixturePrior"), spread(values, n, 2).tanh()
    if n == 1:
        refuses("x", vt.active_units, model, x)
        refuses("x", vt.surgery, model, x)
        return
    moved = model.encoder(x).mean.var(0, correction=0)
    torch.testing.assert_close(vt.active_units(model, x).variance, moved)
    parts = vt.surgery(model, x, 2)
    assert parts.mutual_information <= math.log(n) + 1e-5
    assert parts.rate == pytest.approx(parts.mutual_information + parts.marginal_kl, abs=1e-4)
    z = torch.zeros(2, 3)
    log_q = torch.stack([model.encoder(x[[i]]).log_prob(z) for i in range(n)]).logsumexp(0)
    aggregate = vt.aggregate_posterior(model, x).log_prob(z)
    torch.testing.assert_close(aggregate, log_q - math.log(n), rtol=1e-5, atol=1e-5)


@cases(30, family=posteriors, values=numbers, n=rows, steps=st.integers(0, 2))
def test_a_search_never_ends_below_its_start(family, values, n, steps):
    model, x = vae(family, "StandardNormal"), spread(values, n, 2).tanh()
    found = vt.refine(model, latent(family), x, steps=steps, n_samples=4)
    assert found.lam.shape == (n, latent(family).n_parameters) and found.steps == steps
    assert_finite(found.lam, found.trace)
    again = vt.refine(model, latent(family), x, found.lam, steps=0, n_samples=4)
    assert (again.trace[-1] >= found.trace[0] - 1e-4).all()


EVALUATED = {
    "log_evidence": vt.log_evidence,
    "summary": vt.summary,
    "rate_distortion": vt.rate_distortion,
    "surgery": vt.surgery,
    "active_units": vt.active_units,
    "aggregate_posterior": vt.aggregate_posterior,
    "refine": lambda model, x: vt.refine(model, latent("DiagonalNormal"), x),
}


@cases(
    200,
    name=st.sampled_from(list(EVALUATED)),
    how=st.sampled_from([s for s in SPOILED if s != "meta"]),
)
def test_an_evaluation_refuses_other_data(name, how):
    model = vae("DiagonalNormal", "StandardNormal")
    refuses("x", EVALUATED[name], model, spoiled(torch.zeros(2, 2))[how])


COUNTS = {
    "n_samples": (vt.log_evidence, vt.rate_distortion, vt.surgery, vt.summary),
    "chunk": (vt.log_evidence, vt.summary),
    "batch_size": (vt.log_evidence, vt.rate_distortion, vt.active_units),
    "seed": (vt.summary, vt.surgery),
    "threshold": (vt.active_units,),
}


@cases(300, name=st.sampled_from(list(COUNTS)), pick=st.integers(0, 9), count=bad_counts)
def test_an_evaluation_refuses_other_counts(name, pick, count):
    model, x = vae("DiagonalNormal", "StandardNormal"), torch.zeros(2, 2)
    f = COUNTS[name][pick % len(COUNTS[name])]
    if name == "seed" and type(count) is int and count == 0:
        return
    if name == "threshold" and accepts_or_refuses(name, f, model, x, threshold=count) is not None:
        return
    refuses(name, f, model, x, **{name: count})


@cases(150, values=numbers, n=st.integers(25, 60), columns=rows, dtype=dtypes)
def test_the_shape_of_a_tail_is_a_number_or_infinite(values, n, columns, dtype):
    k = vt.pareto_k(spread(values, n, columns, dtype=dtype))
    assert k.shape == (columns,) and not k.isnan().any()


# ---- what such cases have found, kept by name ----


def test_large_logits_of_a_mixture_keep_its_weights():
    lam = torch.cat([torch.full((1, 2), 1e6), torch.zeros(1, 12)], dim=1)
    for q in (latent("MixtureNormal")(lam), latent("implicit")(lam)):
        torch.testing.assert_close(q.mixture_distribution.probs, torch.full((1, 2), 0.5))


def test_a_single_number_is_no_event_of_three():
    families = [latent("DiagonalNormal")(torch.zeros(2, 6)), observed("Normal")(torch.zeros(2, 3))]
    for d in (*families, prior("StandardNormal")(), latent("Product")(torch.zeros(2, 6))):
        refuses("value", d.log_prob, torch.zeros(2, 1))
        refuses("value", d.log_prob, torch.zeros(()))


def test_a_flow_says_which_precision_it_needs():
    lam = torch.zeros(2, latent("coupling").n_parameters)
    refuses("lam", latent("coupling"), lam.double())
    refuses("value", latent("coupling")(lam).log_prob, torch.zeros(2, 3).double())
    refuses("value", prior("FlowPrior")().log_prob, torch.zeros(2, 3).double())


def test_numbers_beyond_floats_and_arrays_are_refused_by_name():
    refuses("scale", vt.Normal, 3, scale=10**400)
    refuses("dim", vt.DiagonalNormal, np.array([3]))
    assert vt.Normal(np.int64(3)).event_shape == (3,)
    encoder = nn.Sequential(nn.Linear(2, 6), latent("DiagonalNormal"))
    inside = vt.VampPrior(encoder, torch.rand(2, 2), support=(Fraction(-1), Fraction(3, 2)))
    assert inside.support == (-1.0, 1.5)


def test_data_on_another_device_are_refused():
    model, x = vae("DiagonalNormal", "StandardNormal"), torch.zeros(2, 2)
    q = model.encoder(x)
    refuses("x", elbo, model, q, x.to("meta"))
    with _checks.disabled():
        refuses("x", elbo, model, q, x.to("meta"))


def test_a_chain_refuses_what_is_no_number():
    q = latent("MarkovNormal")(torch.zeros(2, 8))
    refuses("value", q.log_prob, torch.full((2, 3), math.nan))


def test_sets_of_images_refuse_arguments_that_are_not_theirs():
    x, y = torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)
    refuses("x", vt.Images, None, y, None, "blank", (2, 2))
    refuses("image_shape", vt.Images, x, y, None, "blank", 4)
    refuses("image_shape", vt.Images, x, y, None, "blank", (2.0, 2))
    refuses("binarize", vt.Images, x, y, np.array(["static", "dynamic"]), "blank", (2, 2))
    refuses("seed", vt.mnist, seed=10**30)


# ---- all of them ----


def test_at_least_ten_thousand_cases_ran():
    """When all tests of this file ran before it, in this process."""
    if set(RAN) == PLANNED:
        assert RAN.total() >= AT_LEAST
