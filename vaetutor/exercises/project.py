"""The project that ends chapter 5: a variational family of one's own, judged like a paper."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor, nn

from vaetutor import objectives
from vaetutor.exercises._attempt import Attempt, Observation, Untouched, Wrong
from vaetutor.exercises._declare import Exercise, Mistake, register
from vaetutor.families import DiagonalNormal, FullNormal, MixtureNormal, positive
from vaetutor.model import Family
from vaetutor.priors import StandardNormal
from vaetutor.quadrature import grid_posterior

PAGE = "05g_project"
MARGIN = 0.1
"""By how much, in nats, the gap must be below that of the diagonal Gaussian."""


# The solution


class Pair(nn.Module):
    """A Gaussian in one of two places, mu + delta or mu - delta, as a coin falls."""

    n_parameters = 7  # mu (2), delta (2), and two scales and a correlation (3)

    def forward(self, lam: Tensor) -> td.Distribution:
        mu, delta, shape = lam.split([2, 2, 3], dim=-1)
        noise = FullNormal(2)(torch.cat([torch.zeros_like(mu), shape], dim=-1))
        return self.Density(mu, delta, noise)

    class Density(td.Distribution):
        has_rsample = True

        def __init__(self, mu: Tensor, delta: Tensor, noise: td.Distribution) -> None:
            super().__init__(noise.batch_shape, noise.event_shape, validate_args=False)
            self.mu, self.delta, self.noise = mu, delta, noise

        def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
            eps = self.noise.rsample(torch.Size(sample_shape))
            coin = torch.randint(2, (*eps.shape[:-1], 1), device=eps.device)  # no lam in it
            return self.mu + (2 * coin - 1) * self.delta + eps

        def log_prob(self, z: Tensor) -> Tensor:
            plus = self.noise.log_prob(z - self.mu - self.delta)
            minus = self.noise.log_prob(z - self.mu + self.delta)
            return torch.logaddexp(plus, minus) - math.log(2)


# The model that it is tried on


class _Microphones(nn.Module):
    """Distances from a place in the plane to two microphones; see the page on posteriors."""

    NOISE = 0.25

    def __init__(self) -> None:
        super().__init__()
        self.prior = StandardNormal(2)

    def distances(self, z: Tensor) -> Tensor:
        places = z.new_tensor([[-1.0, 0.0], [1.0, 0.0]])
        return torch.linalg.vector_norm(z.unsqueeze(-2) - places, dim=-1)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        log_likelihood = td.Normal(self.distances(z), self.NOISE, validate_args=False).log_prob(x)
        return log_likelihood.sum(-1) + self.prior().log_prob(z)


@cache
def _observed() -> tuple[_Microphones, Tensor, Tensor]:
    """The model, twelve observations that it made, and their log evidence."""
    model, generator = _Microphones().double(), torch.Generator().manual_seed(0)
    z, noise = torch.randn(2, 12, 2, generator=generator, dtype=torch.float64)
    x = model.distances(z) + model.NOISE * noise
    grid = grid_posterior(model, x, (-6, -6), (6, 6), n=301)
    assert grid.error.max() < 1e-3
    return model, x, grid.log_evidence


# The fit


@dataclass(frozen=True)
class _Fit:
    """The best λ found for each observation, and what it loses."""

    family: Any
    lam: Tensor
    gap: float
    error: float
    """Standard error of `gap`, that of the draws."""


STARTS, KEPT, STEPS = 24, 4, (150, 300)


def _fitted(family: Any) -> _Fit:  # noqa: ANN401
    """Search λ for each observation from many starts; weights of the family learn as well.

    All starts get a short search, and the best four of each observation a longer one.
    """
    model, x, log_evidence = _observed()
    family = copy.deepcopy(family)
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        lam = torch.randn(STARTS * len(x), family.n_parameters, dtype=torch.float64)
        lam = _climb(family, lam, STEPS[0], evaluations=8)
        lam = _climb(family, _best(family, lam, KEPT, 200), STEPS[1], evaluations=16)
        lam = _best(family, lam, 1, 1_000)
        with torch.no_grad():
            log_w = objectives.log_weights(model, family(lam), x, 2_000)
    gap = (log_evidence - log_w.mean(0)).mean().item()
    error = log_w.var(0).sum().sqrt().item() / (len(log_w) ** 0.5 * len(x))
    return _Fit(family, lam, gap, error)


def _climb(family: Any, lam: Tensor, steps: int, evaluations: int) -> Tensor:  # noqa: ANN401
    """Adam on the ELBO of each row, with about so many evaluations of the model a step."""
    model, x, _ = _observed()
    x, lam = x.repeat(len(lam) // len(x), 1), lam.clone().requires_grad_()
    n = max(1, evaluations // len(objectives.draw(family(lam), 1).z))  # mixtures draw from each
    weights = [p for p in family.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [lam], "lr": 0.05},
        *([{"params": weights}] if weights else []),
    ]
    optimizer = torch.optim.Adam(groups, lr=0.005, betas=(0.9, 0.99))
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / steps, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (-objectives.elbo(model, family(lam), x, n).sum()).backward()
        optimizer.step()
        falling.step()
    return lam.detach()


@torch.no_grad()
def _best(family: Any, lam: Tensor, keep: int, n_samples: int) -> Tensor:  # noqa: ANN401
    """Of all rows for each observation, the `keep` with the highest bounds."""
    model, x, _ = _observed()
    log_w = objectives.log_weights(model, family(lam), x.repeat(len(lam) // len(x), 1), n_samples)
    bound = log_w.mean(0).unflatten(0, (-1, len(x))).nan_to_num(-math.inf)
    best = bound.topk(keep, dim=0).indices
    return lam.unflatten(0, (-1, len(x)))[best, torch.arange(len(x))].flatten(0, 1)


@cache
def _ladder() -> dict[str, float]:
    """The gaps of families of the package, fitted in the same way."""
    rungs = {
        "diagonal": DiagonalNormal(2),
        "full": FullNormal(2),
        "mixture of 2": MixtureNormal(2, 2),
    }
    return {name: _fitted(family.double()).gap for name, family in rungs.items()}


# The grid


@dataclass(frozen=True)
class _Grid:
    """A grid over the whole plane for each row of λ, fine where the draws are."""

    z: Tensor
    """(G, B, 2)"""
    cells: Tensor
    """Their areas, (G, B)."""
    centre: Tensor
    spread: Tensor
    """Of the draws, (B, 2)."""


def _grid_around(z: Tensor, n: int = 201) -> _Grid:
    """z = centre + spread tan(v), v on an even grid, for draws z (S, B, 2)."""
    low, centre, high = z.detach().quantile(z.new_tensor([0.01, 0.5, 0.99]), dim=0)
    spread = (high - low).clamp(min=1e-6) / 2
    end = math.atan(40.0)
    v = torch.linspace(-end, end, n, dtype=z.dtype)
    axis, width = v.tan(), (v[1] - v[0]) / v.cos().square()
    places = torch.cartesian_prod(axis, axis).unsqueeze(1)
    areas = torch.cartesian_prod(width, width).prod(-1, keepdim=True)
    return _Grid(centre + spread * places, areas * spread.prod(-1), centre, spread)


def _mass(family: Any, lam: Tensor) -> Tensor:  # noqa: ANN401
    """The integral of each density, (B,)."""
    with torch.no_grad():
        rows = []
        for row in lam.split(1):
            grid = _grid_around(_independent(family(row), 2_000))
            rows.append((grid.cells * family(row).log_prob(grid.z).exp()).sum(0))
        return torch.cat(rows)


def _independent(q: td.Distribution, n: int) -> Tensor:
    return objectives._draw_z(q, n)


# The judge


@contextmanager
def _stage(attempt: Attempt, what: str) -> Iterator[None]:
    """One comparison in the verdict; whatever fails in it is taken for the same mistake."""
    begun = len(attempt.observations)
    try:
        yield
    except Wrong:
        del attempt.observations[begun:]
        attempt.observations.append(Observation(what, torch.tensor(1.0), right=False))
        raise
    del attempt.observations[begun:]
    attempt.observations.append(Observation(what, None))


def _family_of(attempt: Attempt) -> Any:  # noqa: ANN401
    """The family that was handed in, or one of the class that was; a copy, in float64."""
    answer = attempt.answer
    if getattr(answer, "n_parameters", None) is ...:
        raise Untouched
    family = answer() if isinstance(answer, type) else copy.deepcopy(answer)
    attempt.require(
        isinstance(family, nn.Module),
        "A family is asked for, an `nn.Module`, so that it can end an encoder; found "
        f"{type(family).__name__}. Hand in the class, or the object.",
    )
    size = getattr(family, "n_parameters", None)
    if size is ...:
        raise Untouched
    attempt.require(
        isinstance(family, Family) and isinstance(size, int) and size > 0,
        "`n_parameters` must say how many numbers one row of λ has, as an integer; found "
        f"{size!r}.",
    )
    for module in family.modules():  # a plain tensor among its attributes is no buffer
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(module, name, value.double())
    return family.double().eval()


def _judge_family(attempt: Attempt) -> None:
    family = attempt.answer = _family_of(attempt)
    attempt.names = ["lam"]
    _judge_form(attempt)
    _judge_rows(attempt)
    _judge_path(attempt)
    _judge_extremes(attempt)
    _judge_entries(attempt)
    lam = 0.6 * _normal(attempt, 3, family.n_parameters)
    with _stage(attempt, "the integral of its density"):
        for i, mass in enumerate(_mass(family, lam).tolist()):
            attempt.require(
                abs(mass - 1) < 0.01, f"For the λ of row {i} the integral is {mass:.4g}, not 1."
            )
    _judge_draws(attempt, lam)
    _judge_gradient(attempt, lam)
    told = _judge_gap(attempt)
    passed = (
        "shapes, rows and the use of every entry of λ",
        "finite values and gradients for entries of 0 and ±30",
        "the integral of its density",
        "draws that follow the density, and their gradient",
        told,
    )
    attempt.observations[:] = [Observation(what, None) for what in passed]


def _normal(attempt: Attempt, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=attempt.generator)


def _easy(attempt: Attempt, batch: int) -> Tensor:
    """Rows of λ with which even a scale without a floor is one."""
    size = attempt.answer.n_parameters
    return torch.rand(batch, size, generator=attempt.generator).add(0.1).requires_grad_()


def _judge_form(attempt: Attempt) -> None:
    for batch in (5, 1):
        q = attempt(_easy(attempt, batch))
        attempt.require(
            isinstance(q, td.Distribution),
            f"It must return a `torch.distributions.Distribution`, found {type(q).__name__}.",
        )
        with _stage(attempt, "batch and event shape"):
            found = (tuple(q.batch_shape), tuple(q.event_shape))
            detail = f"Batch and event shape are {found[0]} and {found[1]} for {batch} rows of λ"
            detail += f", where ({batch},) and (2,) are needed."
            if found[0] == (batch, 2):
                attempt.fail(detail)
        attempt.require(found == ((batch,), (2,)), detail)
        z = _independent(q, 3).detach()
        for name, value, shape in (
            ("a draw of 3", z, (3, batch, 2)),
            ("log_prob of 3 draws", q.log_prob(z), (3, batch)),
        ):
            attempt.require(
                tuple(value.shape) == shape,
                f"The shape of {name} is {tuple(value.shape)} for {batch} rows of λ, where {shape}"
                " is needed.",
            )


def _judge_path(attempt: Attempt) -> None:
    q = attempt(_easy(attempt, 5))
    with _stage(attempt, "draws that carry a gradient"):
        try:
            first, second = objectives.draw(q, 4), objectives.draw(q, 4)
        except ValueError as error:
            attempt.fail(f"`vt.draw` says: {error}.")
        attempt.require(first.z.requires_grad, "The draws do not depend on λ.")
    attempt.require(
        not torch.equal(first.z, second.z), "It gives the same draws each time: is a seed set?"
    )
    attempt.close(
        first.log_q, q.log_prob(first.z), "the density that its draws bring along", rtol=1e-5
    )


def _judge_extremes(attempt: Attempt) -> None:
    """Entries of λ of 0 and of ±30: value and gradient of the ELBO are finite."""
    model, x, _ = _observed()
    size = attempt.answer.n_parameters
    signs = torch.randint(2, (9, size), generator=attempt.generator) * 2.0 - 1
    rows = torch.cat([torch.zeros(1, size), torch.ones(1, size), -torch.ones(1, size), signs])
    lam = (30 * rows).requires_grad_()
    with _stage(attempt, "finite values and gradients for entries of 0 and ±30"):
        try:
            q = attempt.answer(lam)
            value = objectives.elbo(model, q, x, 4)
            (gradient,) = torch.autograd.grad(value.sum(), lam)
        except (ValueError, RuntimeError, ArithmeticError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            attempt.fail(f"There it raised {type(error).__name__}: {reason}")
        for name, found in (("ELBO", value.unsqueeze(1)), ("gradient of the ELBO", gradient)):
            bad = (~found.isfinite().all(1)).sum().item()
            attempt.require(not bad, f"In {bad} of {len(lam)} rows the {name} is not finite.")


def _judge_rows(attempt: Attempt) -> None:
    lam = _easy(attempt, 4).detach()
    z = _normal(attempt, 3, 1, 2)
    log_q = attempt(lam).log_prob(z.expand(3, 4, 2)).detach()
    with _stage(attempt, "a density for each row of λ"):
        attempt.require(
            not bool((log_q == log_q[:, :1]).all()), "Four rows of λ give the same density."
        )
    for i in range(4):
        attempt.close(
            attempt(lam[i : i + 1]).log_prob(z),
            log_q[:, i : i + 1],
            "one row of λ by itself, which must give what it gives in a batch",
        )


def _judge_entries(attempt: Attempt) -> None:
    model, x, _ = _observed()
    lam = _normal(attempt, len(x), attempt.answer.n_parameters).requires_grad_()
    with _stage(attempt, "a gradient for every entry of λ"):
        value = objectives.elbo(model, attempt(lam), x, 8)
        (gradient,) = attempt.gradient(value, [lam])
        idle = (gradient == 0).all(0).nonzero().flatten().tolist()
        attempt.require(not idle, f"Entries without a gradient: {idle} of {lam.shape[1]}.")


def _features(grid: _Grid, z: Tensor) -> dict[str, Tensor]:
    """Bounded functions of draws z (..., B, 2), by what they tell; the last axis is free."""
    u = ((z - grid.centre) / grid.spread * 2).tanh()
    both = u.prod(-1, keepdim=True)
    return {"place": u, "spread": u.square(), "the two coordinates together": both}


def _judge_draws(attempt: Attempt, lam: Tensor, n: int = 4_000) -> None:
    with torch.no_grad(), _stage(attempt, "draws that follow the density"):
        q = attempt(lam)
        z = _independent(q, n)
        grid = _grid_around(z)
        mass = (grid.cells * q.log_prob(grid.z).exp()).unsqueeze(-1)
        expected = {name: (mass * f).sum(0) for name, f in _features(grid, grid.z).items()}
        draws = objectives.draw(attempt(lam.repeat(n, 1)), 1)  # one for each component, perhaps
        rows = draws.z.unflatten(1, (n, -1))
        shared = {
            name: torch.stack([draws.mean(part.flatten(1)) for part in f.unbind(-1)], -1)
            for name, f in _features(grid, rows).items()
        }
        for name, found in _features(grid, z).items():
            attempt.same_mean(found, expected[name], f"a measure of {name} of its draws")
            found = shared[name].unflatten(0, (n, -1))
            attempt.same_mean(found, expected[name], f"a measure of {name}, by `vt.draw`")


def _judge_gradient(attempt: Attempt, lam: Tensor, n: int = 4_000) -> None:
    """The gradient of an expectation, by draws and on the grid."""
    grid = _grid_around(_independent(attempt(lam), n))
    weights = _normal(attempt, 5)

    def integrand(z: Tensor) -> Tensor:
        return torch.cat([*_features(grid, z).values()], -1) @ weights

    with _stage(attempt, "the gradient of an expectation by its draws"):
        free = lam.clone().requires_grad_()
        mass = grid.cells * attempt(free).log_prob(grid.z).exp()
        (expected,) = attempt.gradient((mass * integrand(grid.z)).sum(0), [free])
        many = lam.repeat(n, 1).requires_grad_()
        draws = objectives.draw(attempt(many), 1)
        value = draws.mean(integrand(draws.z.unflatten(1, (n, -1))).flatten(1))
        (found,) = attempt.gradient(value, [many])
        attempt.same_mean(found.unflatten(0, (n, -1)), expected, "a gradient by its draws")


def _judge_gap(attempt: Attempt) -> str:
    ladder, fit = _ladder(), _fitted(attempt.answer)
    attempt.require(
        math.isfinite(fit.gap), "The search for λ ended in a bound that is not finite."
    )
    for mass in _mass(fit.family, fit.lam).tolist():
        attempt.require(
            abs(mass - 1) < 0.03,
            "The search has found a λ where the density does not integrate to one, but to "
            f"{mass:.4g}. An optimiser finds such holes: there the bound promises too much.",
        )
    attempt.require(
        fit.gap > -5 * fit.error - 1e-3,
        f"The mean bound lies above the log evidence, by {-fit.gap:.3f} nats. No density can do "
        "that.",
    )
    others = ", ".join(f"{name} {gap:.2f}" for name, gap in ladder.items())
    told = f"gap, {fit.gap:.2f} nats, beside {others}"
    with _stage(attempt, "its gap on posteriors with two modes"):
        attempt.require(
            fit.gap < ladder["diagonal"] - MARGIN,
            f"Found a {told}. It must be {MARGIN} nats below the diagonal.",
        )
    return f"its {told}"


# Families with a mistake


class _Map(nn.Module):
    """A family from a plain function of λ."""

    def __init__(self, n_parameters: int, build: Callable[[Tensor], td.Distribution]) -> None:
        super().__init__()
        self.n_parameters, self.build = n_parameters, build

    def forward(self, lam: Tensor) -> td.Distribution:
        return self.build(lam)


def _normals(lam: Tensor, scale: Callable[[Tensor], Tensor] = positive) -> td.Normal:
    return td.Normal(lam[..., :2], scale(lam[..., 2:4]))


class _NoPath(td.Independent):
    has_rsample = False

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return super().rsample(torch.Size(sample_shape)).detach()


class _ShiftOfLog(td.Independent):
    def log_prob(self, value: Tensor) -> Tensor:
        base: Any = self.base_dist
        return super().log_prob(value) + base.scale.log().sum(-1)


class _TooWide(td.Independent):
    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        base: Any = self.base_dist
        return base.loc + base.scale * (super().rsample(torch.Size(sample_shape)) - base.loc)


class _Chosen(td.MixtureSameFamily):
    has_rsample = True

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        each = self.component_distribution.rsample(torch.Size(sample_shape))
        index = self.mixture_distribution.sample(torch.Size(sample_shape))[..., None, None]
        return each.gather(-2, index.expand(*index.shape[:-1], 2)).squeeze(-2)


def _chosen(lam: Tensor) -> td.Distribution:
    mixture = MixtureNormal(2, 2)(lam)
    return _Chosen(mixture.mixture_distribution, mixture.component_distribution)


register(
    Exercise(
        "5.10",
        title="A posterior of your own",
        page=PAGE,
        kind="function",
        difficulty="hard",
        minutes=180,
        solution=Pair,
        judge=_judge_family,
        mistakes=(
            Mistake(
                "The event dimension is not summed: the two coordinates count as two examples. "
                "One z is one event, and its log-density one number: wrap the distribution in "
                "`Independent(..., 1)`, or sum over the last axis yourself.",
                _Map(4, _normals),
            ),
            Mistake(
                "The draws carry no gradient to λ, so a search moves by log q alone and never "
                "hears of the model. Build z from noise and λ in `rsample`, without `sample`, "
                "`detach` or `no_grad`, and set `has_rsample = True`.",
                _Map(4, lambda lam: _NoPath(_normals(lam), 1)),
            ),
            Mistake(
                "It breaks where entries of λ are 0 or ±30. A network does give such numbers, "
                "early in training above all. A scale needs a map that stays above a floor and "
                "does not overflow, such as `vaetutor.families.positive`.",
                _Map(4, lambda lam: td.Independent(_normals(lam, torch.relu), 1)),
            ),
            Mistake(
                "The density is the same for every row of λ. Then q(z|x) cannot depend on x: "
                "there is nothing to fit, and nothing for an encoder to say.",
                _Map(4, lambda lam: td.Independent(_normals(torch.ones_like(lam)), 1)),
            ),
            Mistake(
                "Some entries of λ get no gradient on any observation: they are not used, or a "
                "`detach`, a rounding or a clamp cuts them off. The family is smaller than it "
                "looks, and an encoder carries outputs that never learn.",
                _Map(5, lambda lam: td.Independent(_normals(lam), 1)),
            ),
            Mistake(
                "The density does not integrate to one. After a map z = T(u) it is log q(u) "
                "minus log |det ∂T/∂u|, at the u that T sends to z: a log-determinant that is "
                "left out, or has the wrong sign, or a forgotten constant, does this. The bound "
                "would be wrong by a number that depends on λ, and a search would exploit it.",
                _Map(4, lambda lam: _ShiftOfLog(_normals(lam), 1)),
            ),
            Mistake(
                "The draws do not follow the density. Both `rsample` and `log_prob` are right for "
                "some density, and these are two: is a number σ in the one and σ² in the other, "
                "a map used in place of its inverse, a weight forgotten?",
                _Map(4, lambda lam: _TooWide(_normals(lam), 1)),
            ),
            Mistake(
                "The draws follow the density, but their gradient is not that of the "
                "expectation. Where a choice between parts has probabilities that depend on λ, "
                "a path through the chosen part misses how the choice would change: draw from "
                "every part and weight by the probabilities, in `rsample_each`. Or else a "
                "`detach` cuts the path of a part of λ.",
                _Map(10, _chosen),
            ),
            Mistake(
                "It is a sound family, but it gains too little here over a diagonal Gaussian. "
                "Most of what the diagonal loses on these posteriors is a mode, which costs up to "
                "ln 2 for each x: no ellipse gets that back.",
                FullNormal(2),
            ),
        ),
        hints=(
            "What does every Gaussian lose on a posterior with two modes, and which is the "
            "smallest change to a Gaussian that has two? A family needs draws with a path, and "
            "the density of these draws: choose a shape for which both are short to write.",
            "Two roads are short. Either bend the draws of a Gaussian by an invertible map, "
            "and subtract the log-determinant of the map; or let a choice decide between "
            "two places. A choice whose probabilities are fixed numbers is only noise: the path "
            "inside the chosen part is then the whole gradient.",
            "For the second road: noise from a Gaussian, and a fair coin that adds or subtracts "
            "a vector taken from λ. The density is half of the one part plus half of the other; "
            "in logarithms that is `torch.logaddexp`, less ln 2.",
        ),
        lesson="The published solution tosses a fair coin. Its chances do not depend on λ, so a "
        "path inside the chosen part is unbiased, where learned chances would need draws from "
        "every part. With both places in one it is a full Gaussian, so its best member is never "
        "worse; whether a search finds that member is another question.",
        draws=True,
        seconds=180,
    )
)
