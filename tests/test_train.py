"""Training against closed-form optima, and the promises that `fit` makes."""

import io
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from vaetutor import (
    VAE,
    Bernoulli,
    Cyclic,
    DiagonalNormal,
    FullNormal,
    LinearGaussian,
    Normal,
    StandardNormal,
    TrainConfig,
    Warmup,
    elbo,
    elbo_terms,
    fit,
    iwae,
    mlp,
    mnist,
    score_function,
    sticking_the_landing,
)
from vaetutor._run import seeded
from vaetutor.evaluate import mean_terms
from vaetutor.train import VALIDATION_SEED, pick_device


def some_vae(n_pixels=12, dim=2, observed=Bernoulli):
    torch.manual_seed(3)
    encoder = nn.Sequential(mlp(n_pixels, 8, 2 * dim), DiagonalNormal(dim))
    decoder = nn.Sequential(mlp(dim, 8, n_pixels), observed(n_pixels))
    return VAE(encoder, decoder, StandardNormal(dim))


def bits(n=50, n_pixels=12):
    generator = torch.Generator("cpu").manual_seed(1)
    return (torch.rand(n, n_pixels, generator=generator, device="cpu") < 0.3).float()


def config(device, **options):
    return TrainConfig(**{"epochs": 2, "batch_size": 16, "device": device, **options})


# --- does it find the optimum? --------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "encoder_steps"),
    [(elbo, 0), (elbo_terms, 0), (iwae, 0), (elbo_terms, 1)],
)
def test_linear_vae_reaches_the_maximum_likelihood(device, objective, encoder_steps):
    """The best ELBO of a linear VAE is the maximum log-likelihood of probabilistic PCA."""
    generator = torch.Generator("cpu").manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=generator, device="cpu")
    x = (make(500, 2) @ make(2, 5) + 0.3 * make(500, 5)).to(device)
    best = LinearGaussian.fit(x.double(), 2).log_evidence(x.double()).mean().item()
    torch.manual_seed(0)
    family = FullNormal(2)
    vae = VAE(
        nn.Sequential(nn.Linear(5, family.n_parameters), family),
        nn.Sequential(nn.Linear(2, 5), Normal(5)),
        StandardNormal(2),
    )
    schedule = ((3e-2, 400), (3e-3, 400))
    if encoder_steps:  # by turns of one step, 3e-2 keeps the parts swinging around each other
        schedule = ((1e-2, 600), (2e-3, 200))
    for learning_rate, epochs in schedule:
        options = {"epochs": epochs, "batch_size": 500, "learning_rate": learning_rate}
        options |= {"objective": objective, "encoder_steps": encoder_steps}
        fit(vae, x, config(device, n_samples=8, **options))
    reached = mean_terms(vae, x, n_samples=200)["elbo"]
    assert best - 0.02 < reached < best + 0.005


def test_digits_are_learnt(device):
    """Two latent numbers and ten epochs beat the best model without any, by 10 nats a digit."""
    train, test = mnist("train"), mnist("test")
    p = train.x.mean(0).clamp(1e-4, 1 - 1e-4)
    x = test.present(generator=torch.Generator("cpu").manual_seed(0)).cpu()
    independent = (x * p.cpu().log() + (1 - x) * (1 - p.cpu()).log()).sum(1).mean().item()
    torch.manual_seed(0)
    vae = VAE(
        nn.Sequential(mlp(784, 128, 4), DiagonalNormal(2)),
        nn.Sequential(mlp(2, 128, 784), Bernoulli(784)),
        StandardNormal(2),
    )
    history = fit(vae, train, TrainConfig(epochs=10, device=device), test)
    assert history.frame.validation_elbo.iloc[-1] > independent + 10
    assert history.frame.kl.iloc[-1] > 3


def test_per_sample_noise_is_drawn_anew_in_each_step(device):
    """With a learning rate of (almost) zero, epochs differ only by their draws."""
    vae = some_vae()
    frame = fit(vae, bits(), config(device, learning_rate=1e-30, epochs=3)).frame
    assert frame.reconstruction.nunique() == 3
    assert frame.kl.max() - frame.kl.min() < 1e-6  # in closed form: it does not see the draws


# --- turns and frozen parts -------------------------------------------------------------------


def parts(vae):
    encoder = list(vae.encoder.parameters())
    return encoder, [p for p in vae.parameters() if not any(p is q for q in encoder)]


@pytest.mark.parametrize("encoder_steps", [0, 1, 3])
def test_training_is_the_loop_one_would_write_by_hand(device, encoder_steps):
    """To the last bit: the same batches, draws and steps, whether together or by turns."""
    x, by_fit, by_hand = bits().to(device), some_vae(), some_vae().to(device)
    fit(by_fit, x, config(device, encoder_steps=encoder_steps, epochs=3, seed=7))
    encoder, rest = parts(by_hand)
    ours = torch.optim.Adam(encoder if encoder_steps else [*encoder, *rest], 1e-3, fused=True)
    theirs = torch.optim.Adam(rest, 1e-3, fused=True)
    with seeded(7, device):
        for _ in range(3):
            for rows in torch.randperm(50, device=device).split(16):
                for optimizer in [ours] * max(encoder_steps, 1) + [theirs] * bool(encoder_steps):
                    by_hand.zero_grad()
                    bound = elbo_terms(by_hand, by_hand.encoder(x[rows]), x[rows])
                    (-bound.elbo.mean()).backward()
                    optimizer.step()
    for a, b in zip(by_fit.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(a, b)


def test_in_turns_one_part_moves_and_the_other_rests(device):
    """The objective looks at the parameters whenever it is asked: twice three and one a batch."""
    vae = some_vae().to(device)
    seen = []

    def watch(model, q, x, n_samples):
        copies = [torch.cat([p.detach().flatten() for p in part]) for part in parts(model)]
        seen.append((copies, x.detach().clone(), n_samples))
        return elbo_terms(model, q, x, n_samples)

    options = {"objective": watch, "encoder_steps": 3, "epochs": 1, "batch_size": 25}
    fit(vae, bits(), config(device, **options))
    seen = seen[1:]  # the first call is a check
    assert len(seen) == 2 * (3 + 1)
    seen.append(
        ([torch.cat([p.detach().flatten() for p in part]) for part in parts(vae)], None, 1)
    )
    for step in range(8):
        (before, x, _), (after, _, _) = seen[step], seen[step + 1]
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert moved == ([False, True] if step % 4 == 3 else [True, False]), step
        assert torch.equal(x, seen[4 * (step // 4)][1])  # one batch until all have had their turn


def test_the_bar_counts_every_turn(device, monkeypatch):
    bars = []

    def counted(n_steps, *args):
        bars.append((n_steps, tqdm(total=n_steps, disable=False, file=io.StringIO())))
        return bars[-1][1]

    monkeypatch.setattr("vaetutor.train._progress_bar", counted)
    fit(some_vae(), bits(), config(device, encoder_steps=2, epochs=2, batch_size=25))
    assert [(n, bar.n) for n, bar in bars] == [(2 * 2 * 3, 2 * 2 * 3)]


def test_each_turn_has_its_own_draws(device):
    values = []

    def watch(model, q, x, n_samples):
        terms = elbo_terms(model, q, x, n_samples)
        values.append(terms.reconstruction.sum().item())
        return terms

    options = {"objective": watch, "encoder_steps": 2, "epochs": 1, "batch_size": 50}
    row = fit(some_vae(), bits(), config(device, learning_rate=1e-30, **options)).rows[0]
    assert len(set(values[1:])) == 3
    assert row["reconstruction"] == pytest.approx(values[-1] / 50, rel=1e-6)  # the last turn's


def test_clipping_counts_only_what_moves(device):
    norms = []
    original = torch.optim.Adam.step

    def step(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())
        return original(self, *args, **kwargs)

    torch.optim.Adam.step = step
    try:
        fit(some_vae(), bits(), config(device, clip=1e-3, encoder_steps=2))
    finally:
        torch.optim.Adam.step = original
    assert len(norms) == 2 * 4 * 3
    assert norms == pytest.approx([1e-3] * len(norms), rel=1e-3)


@pytest.mark.parametrize("frozen", ["encoder", "decoder"])
def test_frozen_parts_stay_and_the_rest_is_trained(device, frozen):
    vae = some_vae()
    getattr(vae, frozen).requires_grad_(False)
    before = {name: p.clone() for name, p in vae.named_parameters()}
    elbos = fit(vae, bits(), config(device, epochs=30, learning_rate=1e-2)).frame.elbo
    assert elbos.iloc[-1] > elbos.iloc[0] + 0.1
    for name, parameter in vae.named_parameters():
        same = torch.equal(parameter.cpu(), before[name].cpu())
        assert same is name.startswith(frozen), name
        assert parameter.requires_grad is not name.startswith(frozen)
        assert not (name.startswith(frozen) and parameter.grad is not None)


@pytest.mark.parametrize(
    ("frozen", "message"), [("encoder", "nothing in the encoder"), ("decoder", "nothing else")]
)
def test_turns_need_two_parts(device, frozen, message):
    vae = some_vae()
    getattr(vae, frozen).requires_grad_(False)
    with pytest.raises(ValueError, match=f"encoder_steps = 2 needs two parts .*{message}"):
        fit(vae, bits(), config(device, encoder_steps=2))


# --- reports --------------------------------------------------------------------------------


def test_means_are_over_examples_not_over_batches(device):
    """50 examples in batches of 16: the last two must not weigh as much as sixteen."""
    vae, x = some_vae(), bits()
    x[:3] = 1  # a few odd examples, so that wrong weights show
    row = fit(vae, x, config(device, learning_rate=1e-30, epochs=1)).rows[0]
    exact = mean_terms(vae, x)
    assert row["kl"] == pytest.approx(exact["kl"], rel=1e-5)
    assert mean_terms(vae, x, batch_size=7)["kl"] == pytest.approx(exact["kl"], rel=1e-6)
    assert row["elbo"] == pytest.approx(row["reconstruction"] - row["kl"], rel=1e-5)


def test_beta_changes_the_gradient_not_the_reported_elbo(device):
    frames = {}
    for beta in (1.0, 4.0):
        vae = some_vae()
        frames[beta] = fit(vae, bits(), config(device, beta=beta, learning_rate=1e-30)).frame
        assert (frames[beta].beta == beta).all()
    columns = ["elbo", "reconstruction", "kl"]
    assert (frames[1.0][columns] == frames[4.0][columns]).all().all()
    trained = {}
    for beta in (0.0, 1.0, 10.0):
        vae = some_vae()
        fit(vae, bits(), config(device, beta=beta, epochs=30, learning_rate=1e-2))
        trained[beta] = mean_terms(vae, bits())["kl"]
    assert trained[0.0] > trained[1.0] > trained[10.0]


def test_beta_scales_the_kl_gradient_exactly(device):
    """One plain gradient step: gradient(beta) = gradient(recon) - beta gradient(kl)."""
    gradients = {}
    for beta in (0.0, 1.0, 3.0):
        vae = some_vae()
        caught = []
        hook = vae.encoder[0][0].weight.register_hook(caught.append)
        fit(vae, bits(), config(device, beta=beta, epochs=1, batch_size=50, learning_rate=1e-30))
        hook.remove()
        gradients[beta] = caught[-1]
    kl_part = gradients[1.0] - gradients[0.0]
    assert kl_part.abs().max() > 1e-4
    torch.testing.assert_close(gradients[3.0] - gradients[0.0], 3 * kl_part, rtol=1e-3, atol=1e-6)


def test_beta_can_follow_a_schedule(device):
    seen = []

    def warm_up(epoch):
        seen.append(epoch)
        return min(1.0, epoch / 2)

    frame = fit(some_vae(), bits(), config(device, beta=warm_up, epochs=3)).frame
    steps = [e + b * 16 / 50 for e in range(3) for b in range(4)]
    assert seen[-12:] == pytest.approx(steps)  # before them it is asked once or twice as a check
    assert frame.beta.tolist() == pytest.approx([0.48, 0.98, 1.0])


def test_warmup_is_a_line_and_then_a_constant():
    beta = Warmup(8, start=0.2, end=0.6)
    assert [beta(t) for t in (0, 2, 4, 8, 100)] == pytest.approx([0.2, 0.3, 0.4, 0.6, 0.6])
    assert Warmup(5, start=4.0, end=1.0)(2.5) == pytest.approx(2.5)  # it may also fall


def test_cycles_are_those_of_the_paper():
    """The definition of Fu et al. (2019), on their grid of steps t = 1..T."""
    for total, cycles, ramp in [(40, 4, 0.5), (30, 3, 1.0), (12, 1, 0.25)]:
        beta = Cyclic(total, cycles, ramp, end=0.8)
        length = -(-total // cycles)
        for step in range(1, total + 1):
            tau = ((step - 1) % length) / length
            expected = tau / ramp if tau <= ramp else 1.0
            assert beta(step - 1) == pytest.approx(0.8 * expected, abs=1e-12)
        assert beta(total) == beta(total + 3) == 0.8


def test_a_schedule_may_not_be_longer_than_training():
    for schedule in (Warmup(4), Cyclic(4)):
        assert TrainConfig(epochs=4, beta=schedule).beta_at(4.0) == 1.0
        with pytest.raises(
            ValueError, match="beta must be a schedule of at most epochs = 3, foun"
        ):
            TrainConfig(epochs=3, beta=schedule)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Warmup(0), "epochs must be a finite number above 0"),
        (lambda: Warmup(2, start=-1.0), "start must be a finite number of at least 0"),
        (lambda: Warmup(2, end=math.inf), "end must be a finite number of at least 0"),
        (lambda: Cyclic(-1), "epochs must be a finite number above 0"),
        (lambda: Cyclic(4, cycles=0), "cycles must be an integer of at least 1"),
        (lambda: Cyclic(4, ramp=0.0), "ramp must be a finite number above 0"),
        (lambda: Cyclic(4, ramp=1.5), "ramp must be at most 1"),
        (lambda: Cyclic(4, end=math.nan), "end must be a finite number of at least 0"),
    ],
)
def test_schedules_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_schedules_set_the_weight_of_each_step(device):
    """The column has that of the last step of an epoch, here at 0.96 of it."""
    frame = fit(some_vae(), bits(), config(device, beta=Warmup(2, 0.5), epochs=3)).frame
    assert frame.beta.tolist() == pytest.approx([0.5 + 0.5 * 0.48, 0.5 + 0.5 * 0.98, 1.0])
    frame = fit(some_vae(), bits(), config(device, beta=Cyclic(2, 1), epochs=3)).frame
    assert frame.beta.tolist() == pytest.approx([0.96, 1.0, 1.0])


# --- free bits ------------------------------------------------------------------------------


def first_gradient(device, **options):
    """The gradient of the encoder's first weight in a single step over all data."""
    vae, caught = some_vae(), []
    hook = vae.encoder[0][0].weight.register_hook(caught.append)
    fit(vae, bits(), config(device, epochs=1, batch_size=50, learning_rate=1e-30, **options))
    hook.remove()
    return caught[-1]


def test_free_bits_are_a_maximum_for_each_dimension_over_the_batch(device):
    """The step is that of a loss written by hand, between, below and above all divergences."""
    x, vae = bits().to(device), some_vae().to(device)
    q = vae.encoder(x)
    mean, variance = q.mean, q.variance
    per_example = 0.5 * (mean.square() + variance - 1 - variance.log())
    low, high = per_example.mean(0).sort().values.tolist()
    assert high > 1.2 * low
    assert (per_example.amin(0) < (low + high) / 2).all()  # a maximum per example is another loss
    for bits_free in (low / 2, (low + high) / 2, 2 * high):
        free = torch.tensor(bits_free, device=device)
        by_hand = torch.autograd.grad(
            3.0 * torch.maximum(free, per_example.mean(0)).sum(),
            vae.encoder[0][0].weight,
            retain_graph=True,
        )[0]
        found = first_gradient(device, beta=3.0, free_bits=bits_free)
        found = found - first_gradient(device, beta=0.0)
        torch.testing.assert_close(found, by_hand, rtol=1e-3, atol=1e-6)
    assert by_hand.abs().max() == 0  # all free: the KL is no part of the gradient


def test_free_bits_that_nobody_needs_change_nothing(device):
    torch.testing.assert_close(
        first_gradient(device, free_bits=1e-9), first_gradient(device), rtol=1e-5, atol=1e-7
    )


def test_free_bits_change_the_gradient_not_the_reported_elbo(device):
    frames = [
        fit(some_vae(), bits(), config(device, learning_rate=1e-30, free_bits=free), bits(9)).frame
        for free in (0.0, 3.0)
    ]
    assert (frames[0] == frames[1]).all().all()
    rates = {}
    for free in (0.0, 0.5):
        vae = some_vae()
        fit(vae, bits(), config(device, free_bits=free, epochs=100, learning_rate=1e-2))
        rates[free] = mean_terms(vae, bits())["kl"]
    assert rates[0.5] > max(2 * 0.5 * 0.9, 2 * rates[0.0])


def test_free_bits_need_a_divergence_for_each_dimension(device):
    vae, family = some_vae(), FullNormal(2)
    vae.encoder = nn.Sequential(mlp(12, 8, family.n_parameters), family)
    before = [p.clone() for p in vae.parameters()]
    with pytest.raises(ValueError, match="free_bits = 0.5 needs a KL that splits into dimensions"):
        fit(vae, bits(), config(device, free_bits=0.5))
    for old, new in zip(before, vae.parameters(), strict=True):
        assert torch.equal(old.to(new.device), new)
    with pytest.raises(ValueError, match="free_bits = 0.5 needs objective=elbo_terms"):
        TrainConfig(objective=elbo, free_bits=0.5)


# --- which parameters are kept --------------------------------------------------------------


def validated(vae, x):
    with seeded(VALIDATION_SEED, next(vae.parameters()).device):
        return mean_terms(vae, x)["elbo"]


@pytest.mark.parametrize("beta", [1.0, Warmup(20)])
def test_the_best_parameters_come_back(device, beta):
    """Twelve examples are soon learnt by heart, and the validation ELBO then falls."""
    found = {}
    for keep in ("last", "best"):
        vae = some_vae()
        options = {"epochs": 60, "learning_rate": 3e-2, "beta": beta, "keep": keep}
        history = fit(vae, bits(12), config(device, **options), bits(62)[12:])
        found[keep] = validated(vae, bits(62)[12:])
    values = history.frame.validation_elbo
    best = int(values.argmax()) + 1
    assert 1 < best < 50 and history.best_epoch == best
    assert found["best"] == pytest.approx(values.max(), abs=1e-6)
    assert found["last"] == pytest.approx(values.iloc[-1], abs=1e-6)
    assert values.max() > values.iloc[-1] + 0.1


@pytest.mark.parametrize("mishap", [FloatingPointError, KeyboardInterrupt])
def test_the_best_comes_back_after_a_mishap(device, mishap):
    """Training that fails in its third epoch gives back the better of the first two."""
    steps = []

    def until_the_third_epoch(*args):
        steps.append(None)
        if len(steps) <= 1 + 2 * 4:  # the check, and four batches an epoch
            return elbo_terms(*args)
        if mishap is KeyboardInterrupt:
            raise KeyboardInterrupt
        return elbo_terms(*args)._replace(kl=torch.full((2,), math.nan).to(args[2]))

    x, options = bits(8), {"batch_size": 2, "learning_rate": 0.3, "keep": "best"}
    vae, twin = some_vae(), some_vae()
    history = fit(twin, x, config(device, epochs=2, **options), x)
    with pytest.raises(mishap):
        fit(vae, x, config(device, epochs=3, objective=until_the_third_epoch, **options), x)
    for found, expected in zip(vae.parameters(), twin.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert validated(vae, x) == pytest.approx(history.frame.validation_elbo.max(), abs=1e-6)


def test_the_best_is_judged_by_the_whole_elbo_whatever_the_weight(device):
    """Under a weight of 0 the objective rises with the rate, and the ELBO falls."""
    vae, x = some_vae(), bits()
    options = {"epochs": 40, "learning_rate": 1e-2, "beta": 0.0, "keep": "best"}
    history = fit(vae, x, config(device, **options), x)
    assert history.frame.reconstruction.iloc[-5:].mean() > history.frame.reconstruction.iloc[0]
    assert history.best_epoch < 20
    assert validated(vae, x) == pytest.approx(history.frame.validation_elbo.max(), abs=1e-6)


def test_the_best_of_parts_that_are_no_parameters_comes_back(device):
    """Running means belong to the model of that epoch too."""
    vae = some_vae()
    vae.encoder = nn.Sequential(mlp(12, 8, 4), nn.BatchNorm1d(4), DiagonalNormal(2))
    options = {"epochs": 60, "learning_rate": 3e-2, "keep": "best"}
    history = fit(vae, bits(12), config(device, batch_size=12, **options), bits(62)[12:])
    assert history.best_epoch < 50
    assert validated(vae, bits(62)[12:]) == pytest.approx(
        history.frame.validation_elbo.max(), abs=1e-6
    )


def test_the_best_needs_validation_data(device):
    with pytest.raises(ValueError, match='keep = "best" needs validation data'):
        fit(some_vae(), bits(), config(device, keep="best"))
    history = fit(some_vae(), bits(), config(device))
    with pytest.raises(ValueError, match="best_epoch needs validation data"):
        _ = history.best_epoch


@pytest.mark.parametrize("objective", [elbo, iwae])
def test_other_bounds_are_reported_by_their_name_and_refuse_beta(device, objective):
    frame = fit(some_vae(), bits(), config(device, objective=objective, n_samples=3)).frame
    assert list(frame.columns) == ["epoch", objective.__name__, "beta"]
    with pytest.raises(ValueError, match="needs objective=elbo_terms"):
        fit(some_vae(), bits(), config(device, objective=objective, beta=0.5))


def test_validation_is_the_elbo_at_the_end_of_each_epoch_with_fixed_draws(device):
    vae = some_vae()
    frame = fit(vae, bits(), config(device, learning_rate=1e-30), validation=bits(20)).frame
    assert frame.validation_elbo.nunique() == 1
    exact = mean_terms(vae, bits(20), n_samples=2000)["elbo"]
    assert frame.validation_elbo.iloc[0] == pytest.approx(exact, abs=1.0)


def test_validation_is_of_the_validation_data_after_the_epoch(device):
    vae, ones = some_vae(), torch.ones(20, 12)
    options = {"epochs": 1, "learning_rate": 1e-2, "seed": 5, "beta": 4.0}
    frame = fit(vae, bits(), config(device, **options), ones).frame
    with seeded(VALIDATION_SEED, device):
        expected = mean_terms(vae, ones)["elbo"]
    assert frame.validation_elbo.iloc[-1] == pytest.approx(expected, rel=1e-6)


def test_validation_does_not_change_training(device):
    plain = fit(some_vae(), bits(), config(device)).frame
    watched = fit(some_vae(), bits(), config(device), validation=mnist_like()).frame
    assert plain.equals(watched[plain.columns])


def mnist_like():
    from vaetutor import Images

    intensities = torch.rand(40, 12, device="cpu")
    return Images(
        intensities, torch.zeros(40, dtype=torch.int64, device="cpu"), "dynamic", "t", (3, 4)
    )


@pytest.mark.parametrize("objective", [elbo_terms, elbo, iwae])
def test_history_draws_its_curves(device, objective):
    options = config(device, objective=objective, n_samples=2)
    history = fit(some_vae(), bits(), options, validation=bits(20))
    ax = history.plot()
    assert ax.get_xlabel()
    assert "validation_elbo" in history._repr_html_()
    assert history.seconds > 0 and history.device == str(pick_device(device))


# --- randomness, modes, devices -------------------------------------------------------------


def test_same_seed_same_history(device):
    for data in (bits(), mnist_like()):
        models = [some_vae(), some_vae(), some_vae()]
        seeds = (5, 5, 6)
        frames = [
            fit(m, data, config(device, seed=s)).frame for m, s in zip(models, seeds, strict=True)
        ]
        assert frames[0].equals(frames[1])
        assert not frames[0].equals(frames[2])
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(a, b)


def test_the_global_random_state_is_left_as_it_was(device):
    vae = some_vae()
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    fit(vae, bits(), config(device), validation=bits(20))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_left_as_it_was(device, training):
    vae = some_vae().train(training)
    modes = []
    vae.encoder[0].register_forward_pre_hook(lambda module, _: modes.append(module.training))
    fit(vae, bits(), config(device, epochs=1), validation=bits(20))
    assert vae.training is training and vae.encoder[0].training is training
    # two checks, four training batches in training mode, one validation pass in eval mode
    assert modes[-5:] == [True] * 4 + [False]


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_left_even_after_an_error(device, training):
    vae = some_vae().train(training)
    vae.decoder[0].eval()
    with pytest.raises(FloatingPointError):
        fit(vae, bits(), config(device, objective=lambda *a: elbo(*a) * math.nan))
    assert vae.training is training and not vae.decoder[0].training


def test_the_checks_move_no_statistics(device):
    """Batch normalisation counts its batches: as many as there were steps, none for the checks."""
    vae = some_vae()
    vae.encoder.insert(0, nn.BatchNorm1d(12))
    fit(vae, bits(), config(device, epochs=1), validation=bits(20))
    assert vae.encoder[0].num_batches_tracked.item() == 4


def test_the_data_of_the_user_are_left_alone(device):
    x = bits().requires_grad_()
    before = x.detach().clone()
    fit(some_vae(), x, config(device))
    assert x.grad is None and torch.equal(x.detach(), before)
    images = mnist_like()
    stored = images.x.clone()
    images.present().zero_()
    assert torch.equal(images.x, stored)


def test_dynamic_binarisation_is_drawn_anew_in_each_batch(device):
    shown = []

    def watch(model, q, x, n_samples):
        shown.append(x.clone())
        return elbo_terms(model, q, x, n_samples)

    fit(some_vae(), mnist_like(), config(device, objective=watch, batch_size=40, epochs=2))
    first, second = shown[-2:]
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first.sum(0), second.sum(0))


@pytest.mark.parametrize("n", [1, 7])
def test_fewer_examples_than_a_batch(device, n):
    assert len(fit(some_vae(), bits(n), config(device, batch_size=16)).frame) == 2


def test_every_example_is_seen_once_an_epoch(device):
    shown = []

    def watch(model, q, x, n_samples):
        shown.append(x)
        return elbo_terms(model, q, x, n_samples)

    x = torch.arange(50.0).unsqueeze(1).expand(50, 12) / 50
    fit(some_vae(observed=Normal), x, config(device, objective=watch, epochs=2))
    seen = torch.cat(shown[1:])[:, 0].cpu() * 50
    for epoch in (seen[:50], seen[50:]):
        assert epoch.sort().values.round().tolist() == list(range(50))
    assert not torch.equal(seen[:50], seen[50:])


class CountReads(TorchDispatchMode):
    """Counts the reads of a device value by the host; on a GPU each one waits for the device."""

    reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.reads += 1
        return func(*args, **(kwargs or {}))


def test_no_read_from_the_device_inside_the_loop(device):
    counts = []
    for batch_size in (25, 5):
        with CountReads() as counter:
            fit(some_vae(), bits(), config(device, batch_size=batch_size, clip=1.0))
        counts.append(counter.reads)
    assert counts[0] == counts[1]


def test_float32_training_follows_float64(device):
    histories = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(3)
        vae = some_vae(observed=Normal).to(dtype)
        # KL weight only: no draws, so both precisions walk the same path.
        terms = lambda model, q, x, n: elbo_terms(model, q, x, n)._replace(
            reconstruction=-(q.mean - x[:, :2]).square().sum(-1)
        )
        x = bits().to(dtype)
        histories.append(fit(vae, x, config(device, objective=terms, batch_size=50)).frame)
    assert histories[0].elbo.tolist() == pytest.approx(histories[1].elbo.tolist(), rel=1e-4)


def test_gradients_are_clipped_to_the_norm(device):
    steps = []
    for clip in (None, 1e-3):
        vae = some_vae()
        norms = []
        original = torch.optim.Adam.step

        def step(self, *args, norms=norms, original=original, **kwargs):
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())
            return original(self, *args, **kwargs)

        torch.optim.Adam.step = step
        try:
            fit(vae, bits(), config(device, clip=clip))
        finally:
            torch.optim.Adam.step = original
        steps.append(norms)
    assert min(steps[0]) > 1e-2
    assert max(steps[1]) == pytest.approx(1e-3, rel=1e-3)


def test_device_none_takes_the_best_there_is():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    if not torch.backends.mps.is_available():
        assert pick_device(None).type == expected
    assert pick_device("cpu").type == "cpu"


def test_quiet_outside_terminals_and_one_line_in_the_end(device, capsys):
    fit(some_vae(), bits(), config(device))
    assert capsys.readouterr() == ("", "")
    fit(some_vae(), bits(), config(device, progress=True))
    text = capsys.readouterr().err
    last = text.rstrip("\n").split("\r")[-1].strip()
    assert text.count("\n") == 1
    assert last.startswith("fit on ") and "8/8 steps" in last and "nats" in last


# --- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 12), "x must hold at least one example"),
        (torch.zeros(5, 11), "x does not fit the model: .*shape"),
        (torch.full((5, 12), 0.3), "x does not fit the model: .*found 0.3.*binarise"),
        (torch.full((5, 12), float("nan")), "60 values that are NaN or infinite"),
        (torch.full((5, 12), float("inf")), "60 values that are NaN or infinite"),
        ([[0.0] * 12], "x must be a torch.Tensor"),
        (torch.zeros(5, 12, dtype=torch.int64), "x must hold floating-point values"),
        (torch.zeros(5, 12, dtype=torch.float64), "x must have the dtype of the model"),
    ],
)
@pytest.mark.parametrize("where", ["x", "validation"])
def test_bad_data_are_refused_before_the_first_step(device, x, message, where):
    vae = some_vae()
    before = [p.clone() for p in vae.parameters()]
    data = {"x": bits(), where: x}
    with pytest.raises(ValueError, match=message.replace("x ", f"{where} ", 1)):
        fit(vae, data["x"], config(device), data.get("validation"))
    for old, new in zip(before, vae.parameters(), strict=True):
        assert torch.equal(old.to(new.device), new)


def test_one_grey_pixel_anywhere_is_found(device):
    x = bits(3000)
    x[2500, 7] = 0.5
    with pytest.raises(ValueError, match="found 0.5"):
        fit(some_vae(), x, config(device))


def test_encoders_whose_draws_carry_no_gradient_are_refused(device):
    class BinaryLatents(nn.Module):
        def forward(self, lam):
            return torch.distributions.Independent(torch.distributions.Bernoulli(logits=lam), 1)

    vae = some_vae()
    vae.encoder = nn.Sequential(mlp(12, 8, 2), BinaryLatents())
    with pytest.raises(ValueError, match="carry no gradient"):
        fit(vae, bits(), config(device))


def test_a_bound_that_stops_being_finite_stops_training(device):
    poisoned = lambda *args: elbo(*args) * math.nan
    with pytest.raises(FloatingPointError, match="not finite in epoch 1"):
        fit(some_vae(), bits(), config(device, objective=poisoned))


def test_parameters_lost_in_the_last_step_are_noticed(device):
    options = {"epochs": 1, "batch_size": 50, "learning_rate": 1e39}
    with pytest.raises(FloatingPointError, match="not finite in epoch 1"):
        fit(some_vae(), bits(), config(device, **options))


@pytest.mark.parametrize(
    "objective",
    [
        lambda *a: elbo(*a).mean(),
        lambda model, q, x, n: torch.zeros(n, len(x)) + elbo(model, q, x, n),
        lambda *a: elbo_terms(*a)._replace(kl=elbo_terms(*a).kl.mean()),
    ],
)
def test_objectives_give_one_value_an_example(device, objective):
    with pytest.raises(ValueError, match=r"of the objective must have shape \(2,\)"):
        fit(some_vae(), bits(), config(device, objective=objective, n_samples=2))


def test_objectives_are_checked_with_their_number_of_draws(device):
    def leave_one_out(model, q, x, n_samples):
        assert n_samples == 4
        return elbo(model, q, x, n_samples)

    frame = fit(some_vae(), bits(), config(device, objective=leave_one_out, n_samples=4)).frame
    assert "leave_one_out" in frame


def test_names_of_objectives_do_not_hide_other_columns(device):
    def epoch(*arguments):
        return elbo(*arguments)

    for objective in (epoch, lambda *a: elbo(*a)):
        frame = fit(some_vae(), bits(), config(device, objective=objective)).frame
        assert list(frame.columns) == ["epoch", "bound", "beta"]
        assert frame.epoch.tolist() == [1, 2]


def test_estimators_are_reported_by_the_bound_they_estimate(device):
    for estimator in (
        sticking_the_landing,
        partial(score_function, baseline="leave_one_out"),
        partial(partial(elbo)),
    ):
        frame = fit(some_vae(), bits(), config(device, objective=estimator, n_samples=2)).frame
        assert list(frame.columns) == ["epoch", "elbo", "beta"]


def test_models_that_cannot_be_trained_are_refused(device):
    frozen = some_vae().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        fit(frozen, bits(), config(device))
    with pytest.raises(ValueError, match="LinearGaussian has not"):
        fit(LinearGaussian(torch.zeros(12, 2), torch.zeros(12), 1.0), bits(), config(device))
    with pytest.raises(ValueError, match="config must be a TrainConfig, found dict"):
        fit(some_vae(), bits(), {"epochs": 1})


def test_a_beta_that_cannot_act_is_found_before_the_first_step(device):
    late = lambda epoch: 1.0 if epoch < 1 else 0.5
    with pytest.raises(ValueError, match="needs objective=elbo_terms"):
        fit(some_vae(), bits(), config(device, objective=elbo, beta=late))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("free_bits", -0.1),
        ("free_bits", float("inf")),
        ("free_bits", None),
        ("keep", "first"),
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 0),
        ("n_samples", 0),
        ("encoder_steps", -1),
        ("encoder_steps", 1.5),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("clip", -1.0),
        ("seed", -1),
        ("beta", -0.1),
        ("beta", float("nan")),
        ("beta", lambda epoch: -1.0),
        ("objective", "elbo"),
    ],
)
def test_configuration_is_checked(option, value):
    with pytest.raises(ValueError, match=f"{option} must be"):
        TrainConfig(**{option: value})
