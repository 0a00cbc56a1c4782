"""What the property tests share: how cases are counted, what comes in, and what must hold."""

import functools
import math
import re
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import vaetutor as vt

RAN, PLANNED = Counter(), set()


def cases(number, **strategies):
    """Run a test on so many cases, each with a seed of its own, and count those that pass."""

    def decorate(body):
        def counted(seed, **values):
            torch.manual_seed(seed)
            body(**values)
            RAN[body.__name__] += 1

        counted.__name__, counted.__qualname__ = body.__name__, body.__qualname__
        counted.__module__, counted.__doc__ = body.__module__, body.__doc__
        PLANNED.add(body.__name__)
        given_cases = given(seed=st.integers(0, 9999), **strategies)(counted)
        options = settings(max_examples=number, deadline=None, derandomize=True, database=None)
        return options(given_cases)

    return decorate


def made_once(make):
    """Keep what `make` returns, made from one seed whatever has been drawn before."""

    @functools.cache
    def kept(*args):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make(*args)

    return kept


# ---- what comes in ----

EXTREME = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 1e4, -1e4, 1e6, -1e6]
numbers = st.lists(
    st.sampled_from(EXTREME) | st.floats(-1e6, 1e6, width=32), min_size=1, max_size=6
)
huge = st.lists(st.sampled_from([0.0, 1.0, 1e6, -1e12, 1e20, -1e30, 1e30]), min_size=1)
rows = st.sampled_from([1, 1, 2, 3, 5])
dtypes = st.sampled_from([torch.float32, torch.float64])

NOT_A_COUNT = [0, -1, -(10**30), True, False, 1.0, 2.5, math.nan, math.inf, None, "2", [2], (), {}]
NOT_A_COUNT += [1j, Fraction(3, 1), np.float64(2), np.array([2]), np.array(2.0), torch.tensor(2)]
bad_counts = st.sampled_from(NOT_A_COUNT)
NOT_A_TENSOR = [None, 1.0, "x", [[0.0, 1.0, 0.0]], np.zeros((2, 3)), object()]

anything = st.one_of(
    st.sampled_from([*NOT_A_COUNT, *NOT_A_TENSOR, 10**400, -(10**400), 1e-320, 1e308, -1e-9]),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.fractions(),
    st.decimals(),
    st.complex_numbers(),
)


def spread(values, *shape, dtype=torch.float32):
    """A tensor of this shape whose entries are some of the values."""
    return torch.tensor(values, dtype=dtype)[torch.randint(len(values), shape)]


def layouts(t):
    """The same numbers, laid out in memory in other ways."""
    yield t.mT.contiguous().mT if t.ndim > 1 else t.repeat_interleave(2)[::2]
    yield torch.stack([t, torch.full_like(t, math.nan)], dim=-1)[..., 0]
    yield nn.functional.pad(t, (1, 2), value=math.nan)[..., 1:-2]


def spoiled(t):
    """What is no such tensor: pairs of a description and a thing."""
    half = t.clone()
    half[(0,) * t.ndim] = math.nan
    infinite = t.clone()
    infinite[(-1,) * t.ndim] = math.inf
    return {
        "NaN": half,
        "infinite": infinite,
        "empty": t[:0],
        "meta": t.to("meta"),
        "integer": t.to(torch.int64),
        "boolean": t.to(torch.bool),
        "complex": t.to(torch.complex64),
        "wide": torch.cat([t, t], dim=-1),
        "narrow": t[..., :-1],
        "scalar": t.flatten()[0],
        "no tensor": None,
        "list": t.tolist(),
        "array": t.numpy(force=True),
        "text": "x",
    }


SPOILED = list(spoiled(torch.zeros(2, 2)))


def assert_finite(*tensors):
    for t in tensors:
        assert t.isfinite().all()


def gradients_of(value, *tensors):
    """Gradients of the sum, zeros where there is none."""
    if not tensors:
        return []
    found = torch.autograd.grad(value.sum(), tensors, retain_graph=True, allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


def refuses(name, f, *args, **options):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        f(*args, **options)


def accepts_or_refuses(name, f, *args, **options):
    """What f returns, or None where it refuses the argument of this name."""
    try:
        return f(*args, **options)
    except ValueError as error:
        assert re.search(rf"\b{name}\b", str(error)), error
        return None


# ---- families over z, with D = 3, over x, priors, and models made of them ----

MAKE = {
    "DiagonalNormal": lambda: vt.DiagonalNormal(3),
    "FullNormal": lambda: vt.FullNormal(3),
    "LowRankNormal": lambda: vt.LowRankNormal(3, 2),
    "MixtureNormal": lambda: vt.MixtureNormal(3, 2),
    "implicit": lambda: vt.MixtureNormal(3, 2, gradient="implicit"),
    "ProjectedNormal": lambda: vt.ProjectedNormal(3),
    "Product": lambda: vt.Product(vt.ProjectedNormal(1), vt.DiagonalNormal(2)),
    "PlanarFlow": lambda: vt.PlanarFlow(3, transforms=2),
    "coupling": lambda: vt.FlowPosterior(3, 2, 1, (4,), 3),
    "masked": lambda: vt.FlowPosterior(3, 2, 1, (4,), 3, orientation="masked"),
    "inverse": lambda: vt.FlowPosterior(3, 2, 1, (4,), 3, orientation="inverse"),
    "MarkovNormal": lambda: vt.MarkovNormal(3, 1),
}
# The largest entry of λ after the first 2 D, where squares of it would leave the float range
# (triangular factors, gates) or digits run out as the docstring says (low rank, planar).
LIMIT = {"FullNormal": 100, "LowRankNormal": 30, "PlanarFlow": 5, "MarkovNormal": 100}
FLOWS = ["coupling", "masked", "inverse"]
names = st.sampled_from([*(3 * [name for name in MAKE if name not in FLOWS]), *FLOWS])  # slow ones


@made_once
def latent(name, dtype=torch.float32):
    return MAKE[name]().to(dtype)


def parameters(name, values, batch, dtype=torch.float32):
    lam = spread(values, batch, latent(name).n_parameters, dtype=dtype)
    limit = LIMIT.get(name, math.inf)
    return torch.cat([lam[:, :6], lam[:, 6:].clamp(-limit, limit)], dim=1)


OBSERVED = {
    "Bernoulli": lambda: vt.Bernoulli(3),
    "Bernoulli of pictures": lambda: vt.Bernoulli((1, 3)),
    "Normal": lambda: vt.Normal(3, scale=0.1),
    "Normal of pictures": lambda: vt.Normal((3, 1)),
}
observed_names = st.sampled_from(list(OBSERVED))


@made_once
def observed(name):
    return OBSERVED[name]()


def seen(name, values, *shape):
    """Observations in the support of the family."""
    x = spread(values, *shape, *observed(name).event_shape)
    return (x > 0).to(x.dtype) if "Bernoulli" in name else x


PRIORS = {
    "StandardNormal": lambda: vt.StandardNormal(3),
    "Standard": lambda: vt.Standard(MAKE["Product"]()),
    "Standard mixture": lambda: vt.Standard(MAKE["MixtureNormal"]()),
    "MixturePrior": lambda: vt.MixturePrior(3, components=2),
    "VampPrior": lambda: vt.VampPrior(
        nn.Sequential(vt.mlp(2, 6), vt.DiagonalNormal(3)), torch.rand(4, 2), support=(-1, 2)
    ),
    "FlowPrior": lambda: vt.FlowPrior(3, 1, (4,), 3),
}
prior_names = st.sampled_from(list(PRIORS))


@made_once
def prior(name):
    return PRIORS[name]()


POSTERIORS = [name for name in MAKE if name not in ("masked", "inverse")]


@made_once
def vae(family, prior_name):
    """Observations are two real numbers; the prior's own encoder is not that of the model."""
    encoder = nn.Sequential(vt.mlp(2, 4, latent(family).n_parameters), latent(family))
    decoder = nn.Sequential(vt.mlp(3, 4, 2), vt.Normal(2))
    return vt.VAE(encoder, decoder, prior(prior_name))


posteriors = st.sampled_from([*(2 * [n for n in POSTERIORS if n != "coupling"]), "coupling"])
