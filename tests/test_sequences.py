"""Sequences: chains against dense normals, and padding that contributes exactly nothing."""

import copy

import pytest
import torch
import torch.distributions as td
from conftest import Z_LIMIT, z_score
from torch import nn

import vaetutor as vt
from vaetutor import (
    DiagonalNormal,
    LocalLevel,
    MarkovNormal,
    Normal,
    NormalChain,
    RecurrentEncoder,
    SequenceVAE,
    StandardNormal,
    TrainConfig,
    _checks,
    elbo,
    elbo_terms,
    fit,
    iwae,
    kl,
    log_evidence,
    mean_field_gap,
    mlp,
    pad,
    refine,
)
from vaetutor.families import positive
from vaetutor.model import AmortizedModel, AmortizedSequenceModel, SequenceModel, TwoTermModel
from vaetutor.sequences import observed_steps

pytestmark = pytest.mark.usefixtures("float64")

LENGTHS = (5, 2, 1, 4)
DIRECTIONS = ("backward", "forward", "both")


def ragged(lengths=LENGTHS, width=3):
    return [torch.randn(n, width) for n in lengths]


def some_model(direction="backward", gates=True, width=3, dim=2):
    encoder = RecurrentEncoder(width, 6, dim, direction, gates)
    decoder = nn.Sequential(mlp(dim, 8, width), Normal(width))
    transition = nn.Sequential(mlp(dim, 8, 2 * dim), DiagonalNormal(dim))
    return SequenceVAE(encoder, decoder, transition, StandardNormal(dim))


def longer(x, by=3, rubbish=0.0):
    """The same sequences with more padding, and any values in it."""
    more = torch.cat([x, torch.zeros_like(x[:, :1]).expand(-1, by, -1)], dim=1)
    in_padding = more[..., -1:] == 0
    values = torch.where(in_padding, rubbish, more[..., :-1])
    return torch.cat([values, more[..., -1:]], dim=-1)


# The chain and its family


def dense_chain(lam, steps, dim):
    """Mean and covariance of a chain, by the matrix (I - A)^-1 and loops over every number."""
    width = steps * dim
    m, r, a = lam[:width], lam[width : 2 * width], lam[2 * width :]
    unit = torch.eye(width)
    for i in range(dim, width):
        unit[i, i - dim] = -a[i - dim]
    inverse = torch.linalg.inv(unit)
    scale = positive(r)
    return inverse @ m, inverse @ torch.diag(scale.square()) @ inverse.T


@pytest.mark.parametrize(("steps", "dim"), [(1, 1), (1, 3), (4, 1), (3, 2)])
def test_chain_is_the_dense_normal(steps, dim):
    family = MarkovNormal(steps, dim)
    lam = torch.randn(5, family.n_parameters)
    q = family(lam)
    assert q.batch_shape == (5,) and q.event_shape == (steps * dim,)
    rows = [dense_chain(row, steps, dim) for row in lam]
    mean, covariance = map(torch.stack, zip(*rows, strict=True))
    p = td.MultivariateNormal(mean, covariance)
    z = torch.randn(7, 5, steps * dim)
    assert torch.allclose(q.log_prob(z), p.log_prob(z), atol=1e-8)
    assert torch.allclose(q.mean, mean) and torch.allclose(q.variance, p.variance)
    assert torch.allclose(q.dense().covariance_matrix, covariance, atol=1e-10)
    other = td.MultivariateNormal(torch.ones(steps * dim), 2 * torch.eye(steps * dim))
    assert torch.allclose(kl(q, other), td.kl_divergence(p, other), atol=1e-8)


def test_draws_of_a_chain_have_its_moments():
    family = MarkovNormal(3, 2)
    q = family(torch.randn(family.n_parameters))
    z = q.rsample((100_000,))
    assert z_score(z, q.mean) < Z_LIMIT
    centred = z - q.mean
    products = centred.unsqueeze(1) * centred.unsqueeze(2)
    assert z_score(products, q.dense().covariance_matrix) < Z_LIMIT


def test_gates_off_is_the_diagonal_normal():
    lam = torch.randn(4, 2 * 6)
    chain = MarkovNormal(3, 2)(torch.cat([lam, torch.zeros(4, 4)], dim=1))
    diagonal = DiagonalNormal(6)(lam)
    z = torch.randn(5, 4, 6)
    assert torch.allclose(chain.log_prob(z), diagonal.log_prob(z))
    assert torch.equal(chain.mean, diagonal.mean)
    assert torch.allclose(chain.variance, diagonal.variance)


def test_every_parameter_of_a_chain_gets_a_gradient_from_draws():
    family = MarkovNormal(3, 2)
    lam = torch.randn(1, family.n_parameters, requires_grad=True)
    q = family(lam)
    (gradient,) = torch.autograd.grad((q.rsample((8,)) ** 2).sum(), lam)
    assert (gradient != 0).all() and gradient.isfinite().all()


def test_batch_of_chains_equals_its_rows():
    family = MarkovNormal(4, 2)
    lam, z = torch.randn(3, family.n_parameters), torch.randn(5, 3, 8)
    rows = [family(lam[i : i + 1]).log_prob(z[:, i : i + 1]) for i in range(3)]
    assert torch.allclose(family(lam).log_prob(z), torch.cat(rows, dim=1))


def test_padded_steps_of_a_chain_have_no_latent_variable():
    family, short = MarkovNormal(4, 2), MarkovNormal(2, 2)
    lam = torch.randn(1, family.n_parameters, requires_grad=True)
    q = family(lam, torch.tensor([[True, True, False, False]]))
    m, r, a = lam.split([8, 8, 6], dim=1)
    expected = short(torch.cat([m[:, :4], r[:, :4], a[:, :2]], dim=1))
    z = q.rsample((6,))
    assert (z[..., 4:] == 0).all() and (z[..., :4] != 0).all()
    assert torch.allclose(q.log_prob(z), expected.log_prob(z[..., :4]))
    assert torch.equal(q.mean[:, :4], expected.mean) and (q.mean[:, 4:] == 0).all()
    assert (q.variance[:, 4:] == 0).all()
    (gradient,) = torch.autograd.grad(q.log_prob(z).sum() + z.sum(), lam)
    unused = torch.cat([torch.arange(4, 8), torch.arange(12, 16), torch.arange(18, 22)])
    used = torch.ones(22, dtype=torch.bool).index_fill(0, unused, False)
    assert (gradient[0, unused] == 0).all() and (gradient[0, used] != 0).all()
    with pytest.raises(ValueError, match="observed must be True"):
        q.dense()


def test_bad_chains():
    with pytest.raises(ValueError, match="steps must be"):
        MarkovNormal(0, 1)
    with pytest.raises(ValueError, match="dim must be"):
        MarkovNormal(1, 0)
    with pytest.raises(ValueError, match=r"lam must have shape \(\.\.\., 16\)"):
        MarkovNormal(3, 2)(torch.zeros(1, 18))
    with pytest.raises(ValueError, match="NaN"):
        MarkovNormal(1, 1)(torch.tensor([[torch.nan, 0.0]]))
    with pytest.raises(ValueError, match="observed must have shape"):
        MarkovNormal(2, 1)(torch.zeros(1, 5), torch.ones(1, 3).bool())
    with pytest.raises(ValueError, match="gate"):
        NormalChain(torch.zeros(2, 1), torch.zeros(2, 1), torch.ones(2, 1))
    with pytest.raises(ValueError, match="value must have shape"):
        MarkovNormal(2, 1)(torch.zeros(1, 5)).log_prob(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"loc must have shape \(\.\.\., T, D\)"):
        NormalChain(torch.zeros(2), torch.zeros(1), torch.ones(2))
    zeros, ones = torch.zeros(1, 3, 1), torch.ones(1, 3, 1)
    for scale in (-ones, 0 * ones, torch.nan * ones):
        with pytest.raises(ValueError, match="scale must be above 0, found 3"):
            NormalChain(zeros, zeros[:, 1:], scale)
    for observed in ([True, False, True], [False, True, True], [False, False, False]):
        with pytest.raises(ValueError, match="observed must be True at the steps"):
            NormalChain(zeros, zeros[:, 1:], ones, torch.tensor([observed]))
    with pytest.raises(ValueError, match="one boolean a step"):
        NormalChain(zeros, zeros[:, 1:], ones, ones[..., 0])


def test_log_density_of_the_same_z_under_every_chain():
    family = MarkovNormal(3, 2)
    q = family(torch.randn(4, family.n_parameters))
    z = torch.randn(7, 1, 6)
    assert torch.allclose(q.log_prob(z), q.dense().log_prob(z), atol=1e-10)
    assert torch.equal(q.log_prob(z), q.log_prob(z.expand(7, 4, 6)))
    one = family(torch.randn(family.n_parameters))
    assert torch.allclose(one.log_prob(z[:, 0]), one.dense().log_prob(z[:, 0]), atol=1e-10)


def test_a_chain_stays_in_float32_under_autocast(device):
    family = MarkovNormal(4, 2)
    lam, z = torch.randn(3, family.n_parameters).float(), torch.randn(5, 3, 8).float()
    p = td.MultivariateNormal(torch.zeros(8).float(), 2 * torch.eye(8).float())

    def values():
        q = family(lam)
        return q.log_prob(z), q.mean, q.variance, q.dense().scale_tril, kl(q, p)

    wide = values()
    with torch.autocast(device.type, torch.bfloat16):
        narrow = values()
    for ours, theirs in zip(narrow, wide, strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs)


# Padding


def test_pad_keeps_every_value_and_marks_the_steps():
    sequences = ragged()
    x = pad(sequences)
    assert x.shape == (4, 5, 4)
    for row, sequence in zip(x, sequences, strict=True):
        n = len(sequence)
        assert torch.equal(row[:n, :-1], sequence)
        assert (row[:n, -1] == 1).all() and (row[n:] == 0).all()
    assert torch.equal(observed_steps(x).sum(1), torch.tensor(LENGTHS))
    assert torch.equal(pad(iter(sequences)), x)


@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_batch_of_ragged_sequences_equals_each_by_itself(direction, gates):
    model, sequences = some_model(direction, gates), ragged()
    x = pad(sequences)
    q = model.encoder(x)
    z = q.rsample((3,))
    for i, sequence in enumerate(sequences):
        alone, width = pad([sequence]), 2 * len(sequence)
        mine = z[:, i : i + 1, :width]
        by_itself = model.encoder(alone)
        assert torch.allclose(q.log_prob(z)[:, i], by_itself.log_prob(mine)[:, 0], atol=1e-12)
        assert torch.allclose(q.mean[i, :width], by_itself.mean[0], atol=1e-12)
        for density in (model.log_likelihood, model.log_prior, model.log_joint):
            assert torch.allclose(density(x, z)[:, i], density(alone, mine)[:, 0], atol=1e-12)


@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_padding_changes_no_value_and_no_gradient(direction, gates):
    model, x = some_model(direction, gates), pad(ragged())
    wide = longer(x, by=3, rubbish=1e3)

    def parts(x, eps):
        q = model.encoder(x)
        steps = x.shape[1]
        chain = [q.loc[:, 0] + q.scale[:, 0] * eps[:, :, 0]]
        for t in range(1, steps):
            pulled = q.gate[:, t - 1] * chain[-1]
            chain.append(q.loc[:, t] + pulled + q.scale[:, t] * eps[:, :, t])
        z = torch.stack(chain, dim=2) * x[..., -1:]
        z = z.flatten(2)
        log_w = model.log_joint(x, z) - q.log_prob(z)
        gradients = torch.autograd.grad(log_w.mean(), list(model.parameters()))
        return [log_w, *gradients]

    eps = torch.randn(2, 4, 8, 2)
    for narrow, padded in zip(parts(x, eps[:, :, :5]), parts(wide, eps), strict=True):
        assert torch.allclose(narrow, padded, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("rubbish", [1e20, -3e38])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_finite_value_in_the_padding_harms_a_gradient(direction, rubbish):
    """In float32 its square is infinite, and infinity times a mask of zero is NaN."""
    model, x = some_model(direction).float(), pad(ragged()).float()
    eps = torch.randn(2, 4, 10).float()

    def gradients(x):
        q = model.encoder(x)
        z = (q.loc + q.scale * eps.unflatten(-1, (-1, 2))) * x[..., -1:]
        bound = model.log_joint(x, z.flatten(2)) - q.log_prob(z.flatten(2))
        return torch.autograd.grad(bound.mean(), list(model.parameters()))

    filled = longer(x, by=0, rubbish=rubbish)
    for clean, other in zip(gradients(x), gradients(filled), strict=True):
        assert clean.isfinite().all() and torch.equal(clean, other)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_each_step_of_the_encoder_has_seen(direction):
    encoder, x = some_model(direction).encoder, pad(ragged((5, 3)))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(encoder(x).loc[0, 2].sum(), x)
    seen = (gradient[0, :, :-1] != 0).any(-1).tolist()
    expected = {
        "backward": [False, False, True, True, True],
        "forward": [True, True, True, False, False],
        "both": [True] * 5,
    }
    assert seen == expected[direction]
    assert (gradient[1] == 0).all()  # another sequence


def test_z_in_the_padding_is_refused():
    """A q that does not know the lengths would count latent variables where there are none."""
    model, x = some_model(), pad(ragged())
    free = MarkovNormal(5, 2)(torch.zeros(4, 28))
    with pytest.raises(ValueError, match="z must be zero in the padding"):
        elbo(model, free, x)


@pytest.mark.parametrize("place", ["x", "validation"])
def test_an_encoder_that_does_not_know_the_lengths_is_refused_before_training(place):
    """Its first two rows are of full length: only the others tell."""
    lengths = (5, 5, 1, 2)
    model, x = some_model(), pad(ragged(lengths))
    model.encoder = nn.Sequential(nn.Flatten(), mlp(20, 20), DiagonalNormal(10))
    data = {"x": x[:2], "validation": x[:2]} | {place: x}
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="z must be zero in the padding"):
        fit(model, data["x"], TrainConfig(epochs=1, device=x.device), data["validation"])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bad_sequences():
    good = ragged()
    for bad in ([], torch.zeros(2, 3, 1)):
        with pytest.raises(ValueError, match="sequences must be a list"):
            pad(bad)
    with pytest.raises(ValueError, match=r"sequences\[1\] must hold at least one"):
        pad([good[0], torch.zeros(0, 3)])
    for other in (torch.zeros(2, 2), good[1].float(), torch.zeros(3)):
        with pytest.raises(ValueError, match="one d, one dtype and one device"):
            pad([good[0], other])
    with _checks.disabled(), pytest.raises(ValueError, match="one device"):
        pad([good[0], good[1].to("meta")])
    with pytest.raises(ValueError, match=r"sequences\[0\] holds 1 values that are NaN"):
        pad([torch.tensor([[torch.nan]])])
    model, x = some_model(), pad(good)
    for shape in (x[0], x[..., :1]):
        with pytest.raises(ValueError, match=r"x must have shape \(B, T, d \+ 1\)"):
            model.encoder(shape)
    gap = x.clone()
    gap[3, 2, -1] = 0  # neither among the first rows nor among the shortest
    none, half, unmarked = x.clone(), x.clone(), torch.randn(2, 4, 4)
    none[1, :, -1] = 0
    half[0, 0, -1] = 0.5
    for bad in (gap, none, half, unmarked):
        for call in (model.encoder, model.check, lambda b: fit(model, b, TrainConfig(epochs=1))):
            with pytest.raises(ValueError, match="last column of x must be 1"):
                call(bad)
    with pytest.raises(ValueError, match="for this encoder"):
        model.encoder(x[..., 1:])
    with pytest.raises(ValueError, match="for this decoder"):
        model.log_likelihood(x[..., 1:], torch.zeros(1, 4, 10))
    for z in (torch.zeros(1, 4, 9), torch.zeros(1, 4, 12)):
        with pytest.raises(ValueError, match=r"z must have shape \(S, B, 10\)"):
            model.log_joint(x, z)
    with pytest.raises(ValueError, match="for this decoder"):
        model.check(x[..., 1:])
    narrow = some_model()
    narrow.transition = nn.Sequential(mlp(2, 2), DiagonalNormal(1))  # broadcasts under z of 2
    for call in (lambda: narrow.log_prior(x, torch.zeros(1, 4, 10)), lambda: narrow.sample(2, 3)):
        with pytest.raises(ValueError, match=r"transition must give event shape \(2,\)"):
            call()
    with pytest.raises(ValueError, match="direction must be"):
        RecurrentEncoder(3, 4, 2, "up")
    with pytest.raises(ValueError, match="hidden must be"):
        RecurrentEncoder(3, 0, 2)
    with pytest.raises(ValueError, match="steps must be"):
        model.sample(2, 0)


# The model


class LinearStep(nn.Module):
    """z_t ~ N(z_{t-1}, s^2): the walk of the local level."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([scale]))

    def forward(self, z):
        return td.Independent(td.Normal(z, self.scale), 1)


class First(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([scale]))

    def forward(self):
        return td.Independent(td.Normal(torch.zeros(1), self.scale), 1)


def local_level_as_vae(transition=0.6, noise=0.9, initial=1.4):
    decoder = nn.Sequential(nn.Identity(), Normal(1, noise))
    encoder = RecurrentEncoder(1, 8, 1)
    return SequenceVAE(encoder, decoder, LinearStep(transition), First(initial)).double()


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_a_linear_sequence_vae_is_the_local_level(steps):
    vae, exact = local_level_as_vae(), LocalLevel(steps, 0.6, 0.9, 1.4)
    values, z = exact.sample(5), torch.randn(3, 5, steps)
    x = pad([row.unsqueeze(1) for row in values])
    assert torch.allclose(vae.log_joint(x, z), exact.log_joint(values, z), atol=1e-7)
    assert torch.allclose(vae.log_prior(x, z), exact.prior().log_prob(z), atol=1e-7)
    bound = elbo(vae, exact.smoother(values), x)
    assert torch.allclose(bound, exact.log_evidence(values), atol=1e-6)
    terms = elbo_terms(vae, exact.smoother(values), x)
    assert not terms.kl_is_exact
    assert torch.allclose(terms.elbo, exact.log_evidence(values), atol=1e-6)


def test_samples_of_the_model_have_the_moments_of_the_local_level():
    vae = local_level_as_vae()
    x = vae.sample(100_000, 3)
    assert x.shape == (100_000, 3, 2) and (x[..., -1] == 1).all()
    i = torch.arange(3)
    covariance = 1.4**2 + 0.6**2 * torch.minimum(i[:, None], i[None]) + 0.9**2 * torch.eye(3)
    values = x[..., 0]
    assert z_score(values, 0.0) < Z_LIMIT
    assert z_score(values.unsqueeze(1) * values.unsqueeze(2), covariance) < Z_LIMIT
    means = vae.sample(100_000, 3, mean=True)[..., 0]  # here E[x_t | z_t] = z_t: no noise on it
    of_z = covariance - 0.9**2 * torch.eye(3)
    assert z_score(means.unsqueeze(1) * means.unsqueeze(2), of_z) < Z_LIMIT


def test_terms_of_a_sequence_are_those_of_the_draws():
    model, x = some_model(), pad(ragged())
    q = model.encoder(x)
    torch.manual_seed(3)
    terms = elbo_terms(model, q, x, 5)
    torch.manual_seed(3)
    z = q.rsample((5,))
    assert torch.allclose(terms.reconstruction, model.log_likelihood(x, z).mean(0))
    assert torch.allclose(terms.kl, (q.log_prob(z) - model.log_prior(x, z)).mean(0))
    torch.manual_seed(3)
    assert torch.allclose(terms.elbo, elbo(model, q, x, 5))
    assert isinstance(model, SequenceModel) and isinstance(model, AmortizedSequenceModel)
    assert not isinstance(model, TwoTermModel) and not isinstance(model, AmortizedModel)


def test_bounds_and_evidence_take_sequences():
    """On the exact model: the bounds lie in order below the evidence, which 2,000 draws reach."""
    vae, exact = local_level_as_vae(), LocalLevel(4, 0.6, 0.9, 1.4)
    values = exact.sample(8)
    x = pad([row.unsqueeze(1) for row in values])
    with torch.no_grad():
        q = vae.encoder(x)
        lower = torch.stack([elbo(vae, q, x) for _ in range(300)])
        higher = torch.stack([iwae(vae, q, x, 10) for _ in range(300)])
    truth = exact.log_evidence(values)
    assert lower.mean() < higher.mean() < truth.mean()
    found = log_evidence(vae, x, 2000)
    assert ((found.value - truth).abs() < 5 * found.standard_error + 0.01).all()


def test_training_by_the_encoder_reaches_the_smoother(device):
    exact = LocalLevel(5, 0.6, 0.9, 1.4)
    vae = local_level_as_vae()
    for part in (vae.decoder, vae.transition, vae.initial):
        part.requires_grad_(False)
    values = exact.sample(1500, torch.Generator(device).manual_seed(1))
    x = pad([row.unsqueeze(1) for row in values])
    before = kl(vae.encoder(x), exact.posterior(values)).mean()
    history = fit(vae, x, TrainConfig(epochs=25, learning_rate=1e-2, device=device))
    after = kl(vae.encoder(x), exact.posterior(values)).mean()
    assert before > 1 and after < mean_field_gap(exact.posterior(values)).mean() / 2
    bound = exact.log_evidence(values).mean().item()
    assert abs(history.frame.elbo.iloc[-1] - bound) < 0.3


def test_every_part_of_a_sequence_vae_is_trained():
    model, x = some_model("both"), pad(ragged())
    before = copy.deepcopy(model)
    history = fit(model, x, TrainConfig(epochs=2, device=x.device), validation=x)
    assert {"elbo", "reconstruction", "kl", "validation_elbo"} <= set(history.frame.columns)
    for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert not torch.equal(new, old), name


def test_sequences_of_one_length_can_be_refined():
    exact = LocalLevel(3, 0.6, 0.9, 1.4)
    values = exact.sample(2)
    x = pad([row.unsqueeze(1) for row in values])
    found = refine(local_level_as_vae(), MarkovNormal(3, 1), x)
    assert (kl(found.q, exact.posterior(values)) < 0.01).all()


def test_a_model_without_any_prior_is_refused():
    class Bare(nn.Module):
        def log_likelihood(self, x, z):
            return z.sum(-1)

    q = DiagonalNormal(2)(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="without prior"):
        elbo_terms(Bare(), q, torch.zeros(4, 1))


def test_a_sequence_model_without_check_is_told_so():
    class Unchecked(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = RecurrentEncoder(3, 6, 2)

        def log_likelihood(self, x, z):
            return z.sum(-1)

        log_prior = log_joint = log_likelihood

    x = pad(ragged((2, 2)))
    with pytest.raises(ValueError, match="or log_prior and check for prior"):
        fit(Unchecked(), x, TrainConfig(epochs=1))
    with pytest.raises(ValueError, match="or log_prior and check for prior"):
        refine(Unchecked(), MarkovNormal(2, 2), x)


def test_a_prior_that_sums_over_the_batch_is_refused():
    model, x = some_model(), pad(ragged())
    broken = copy.deepcopy(model)
    broken.log_prior = lambda x, z: model.log_prior(x, z).sum(1)
    with pytest.raises(ValueError, match=r"log_prior\(x, z\) must have shape"):
        elbo_terms(broken, model.encoder(x), x)


# The vowels


def test_vowels_are_those_of_the_file():
    train, test = vt.japanese_vowels(), vt.japanese_vowels("test")
    assert len(train) == 270 and len(test) == 370
    assert train.x.dtype == torch.float32 and train.y.dtype == torch.int64
    assert torch.equal(train.y.bincount(), torch.full((9,), 30))
    assert test.y.bincount().tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert (train.lengths.min(), test.lengths.max()) == (7, 29)
    first = train.x[0]
    assert train.lengths[0] == 20 and (first[20:] == 0).all()
    assert torch.allclose(first[0, :2].double(), torch.tensor([1.860936, -0.207383]))
    assert torch.allclose(first[19, 0].double(), torch.tensor(1.261441))
    assert "270 sequences of 7 to 26 steps, 12 values" in repr(train)
    observed_steps(train.x), observed_steps(test.x)
    with pytest.raises(ValueError, match="split must be"):
        vt.japanese_vowels("validation")


def test_vowels_equal_those_of_the_library(recwarn):
    """sktime's own reader, where it can be imported."""
    from sktime.datasets import load_japanese_vowels

    theirs, labels = load_japanese_vowels("train", return_X_y=True)
    ours = vt.japanese_vowels()
    assert [int(label) - 1 for label in labels] == ours.y.tolist()
    for i in (0, 100, 269):
        values = torch.stack([torch.tensor(c.to_numpy()) for c in theirs.iloc[i]], dim=1)
        assert torch.allclose(ours.x[i, : len(values), :-1].double(), values, atol=1e-6)
