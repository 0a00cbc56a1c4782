r"""Several models of one architecture trained at the same time, as batched products.

.. math:: \max_{\theta_1, \dots, \theta_R}\ \sum_{r=1}^{R} \frac{1}{N} \sum_{i=1}^{N}
          \mathcal{L}_r(x_i;\ \theta_r).

The sum falls into R problems that share nothing, so each model goes the way that it would go by
itself: with another start, another order of the data, other draws, another objective or another
weight of the KL. What they share is time. A GPU that is told to multiply one small matrix spends
longer on being told than on multiplying; R of them in one batched product cost little more than
one. Together with ``capture`` this is how a table over seeds or objectives is made on one card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vaetutor import _checks
from vaetutor._loop import Loop
from vaetutor._processes import Processes
from vaetutor._run import evaluating, present, seeded
from vaetutor.checkpoint import spelled
from vaetutor.data import Images
from vaetutor.train import (
    History,
    TrainConfig,
    _captured,
    _check,
    _check_model,
    _device,
    _figures,
    _identity,
    _make_adam,
    _progress_bar,
    _report,
    _target_and_terms,
)

OWN = {"objective", "n_samples", "beta"}  # what may differ from replica to replica


def fit_replicas(
    models: Sequence[nn.Module],
    x: Tensor | Images,
    configs: Sequence[TrainConfig],
    *,
    checkpoint: str | Path | None = None,
) -> list[History]:
    r"""Train several models of one architecture, each as :func:`~vaetutor.fit` would by itself.

    Every replica has its own order of the data, its own binarisation and its own draws. They
    follow from the common seed, and differ from those of a run of :func:`~vaetutor.fit`.

    Args:
        models: R models of the same architecture, each with its own start. They are moved to the
            device and trained in place.
        x: data (N, ...) or an :class:`~vaetutor.data.Images`, the same for all.
        configs: R configurations. They may differ in ``objective``, ``n_samples`` and ``beta``,
            and agree in everything else. Replicas of the same objective and number of draws are
            computed in one batched product. There are no turns, free bits or best epoch here.
        checkpoint: a file in which the runs are kept together, as for :func:`~vaetutor.fit`.

    Returns:
        R histories. The seconds are those of all together.

    Raises:
        ValueError: as :func:`~vaetutor.fit`; for no model, another number of configurations,
            models that differ in architecture, or configurations that differ where they must not;
            for a model or an objective that cannot be computed for several at once, as
            :func:`~vaetutor.doubly_reparameterised` or a learned baseline.
        Divergence: as :func:`~vaetutor.fit`, if one of them diverges. All are put back.

    >>> from vaetutor import VAE, DiagonalNormal, Normal, StandardNormal, mlp
    >>> def make():
    ...     encoder = nn.Sequential(mlp(3, 2), DiagonalNormal(1))
    ...     return VAE(encoder, nn.Sequential(mlp(1, 3), Normal(3)), StandardNormal(1))
    >>> config = TrainConfig(epochs=2, device="cpu")
    >>> len(fit_replicas([make(), make()], torch.randn(64, 3), [config, config]))
    2
    """
    config = _common(models, configs)
    device = _device(config, None)
    two_terms = []
    for model, own in zip(models, configs, strict=True):
        _check_model(model, own, None)
        model.to(device)
        two_terms.append(_check(model, x, "x", own, device))
    data = x.to(device) if isinstance(x, Images) else x.detach().to(device)
    stacked = Stacked(models)
    groups = _groups(configs, device)
    for own, members in groups:
        _require_same_gradient(models[int(members[0])], own, x, device)
    optimizer = _make_adam([p for p in stacked.parameters() if p.requires_grad], config, device)
    n, replicas = len(data), len(models)

    def report(epoch: int, means: Tensor, _: float) -> list[dict[str, float]]:
        last = epoch - 1 + (n - 1) // config.batch_size * config.batch_size / n
        return [
            {"epoch": epoch, **_figures(own, two, mean), "beta": own.beta_at(last)}
            for own, two, mean in zip(configs, two_terms, means, strict=True)
        ]

    def step(rows: Tensor, beta: float | Tensor) -> Tensor:
        assert isinstance(beta, Tensor)
        return _step_of_all(stacked, data, config, groups, optimizer, rows, beta)

    last: list[tuple[list[float], Tensor]] = []

    def betas(epoch: float) -> Tensor:
        values = [own.beta_at(epoch) for own in configs]
        if not last or last[0][0] != values:  # a copy to the device waits for it
            dtype = next(stacked.parameters()).dtype
            last[:] = [(values, torch.tensor(values, dtype=dtype, device=device))]
        return last[0][1]

    loop = Loop(
        stacked,
        n,
        config,
        device,
        Processes(),
        [optimizer],
        step=_captured(step, config, device),
        order=lambda: torch.stack([torch.randperm(n, device=device) for _ in range(replicas)]),
        report=report,
        is_best=lambda rows: False,
        identity=_identities(models, configs, x, device) if checkpoint is not None else {},
        path=Path(checkpoint) if checkpoint is not None else None,
        beta=betas,
    )
    n_steps = config.epochs * -(-n // config.batch_size)
    with (
        seeded(config.seed, device),
        evaluating(models[0]),  # whose modules compute for all of them
        _checks.disabled(),
        _progress_bar(n_steps, device, config.progress) as bar,
    ):
        try:
            loop.run(bar, lambda bar, rows: _report(bar, rows[0]), 1)
        finally:
            stacked.give_back(models)
        bar.bar_format = "{desc}: {n_fmt}/{total_fmt} steps{postfix}"
    return [
        History(str(device), [rows[r] for rows in loop.rows], loop.seconds)
        for r in range(replicas)
    ]


class Stacked(nn.Module):
    """The parameters of R models in one tensor each, (R, ...), and how to call one of them."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.names = [name for name, _ in models[0].named_parameters()]
        self.buffer_names = [name for name, _ in models[0].named_buffers()]
        pattern, buffers = _pattern(models[0]), dict(models[0].named_buffers())
        for model in models[1:]:
            if _pattern(model) != pattern:
                raise ValueError(
                    "models must have one architecture, found parameters of other names, shapes "
                    "or trainability: make them by the same function"
                )
            if not _equal(dict(model.named_buffers()), buffers):
                raise ValueError(
                    "models must have equal buffers, found others: those of the first model would "
                    "count for all"
                )
        parts = [dict(model.named_parameters()) for model in models]
        self.values = nn.ParameterList(
            nn.Parameter(
                torch.stack([part[name].detach() for part in parts]), parts[0][name].requires_grad
            )
            for name in self.names
        )
        if any(name.startswith("running_") for name in _last_names(self.buffer_names)):
            raise ValueError(
                "models must have no batch normalisation: its running means cannot be stacked"
            )
        self.pattern = [models[0]]  # in a list: its own parameters are not ours

    def train(self, mode: bool = True) -> Stacked:
        """Put the modules that compute into training mode, or out of it."""
        self.pattern[0].train(mode)
        return super().train(mode)

    def of(self, members: Tensor) -> dict[str, Tensor]:
        """The parameters of some replicas, by name."""
        return {
            name: value if len(members) == len(value) else value[members]
            for name, value in zip(self.names, self.values, strict=True)
        }

    @torch.no_grad()
    def give_back(self, models: Sequence[nn.Module]) -> None:
        """Copy the parameters into the models that they came from."""
        for r, model in enumerate(models):
            own = dict(model.named_parameters())
            for name, value in zip(self.names, self.values, strict=True):
                own[name].copy_(value[r])


class _FreshDraws(TorchFunctionMode):
    """Fills a tensor with draws by making another one, which ``vmap`` can do for each replica.

    Torch's distributions draw into an empty tensor that belongs to no replica.
    """

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func is Tensor.normal_ and len(args) == 1 and not kwargs:
            return torch.randn_like(args[0])
        if func is Tensor.uniform_ and len(args) == 1 and not kwargs:
            return torch.rand_like(args[0])
        return func(*args, **(kwargs or {}))


class _Objective(nn.Module):
    """What one replica maximises, as a module, so that its parameters can be handed in."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        super().__init__()
        self.model: Any = model
        self.config = config

    def forward(self, batch: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        q = self.model.encoder(batch)
        bound = self.config.objective(self.model, q, batch, self.config.n_samples)
        target, terms = _target_and_terms(bound, beta, len(batch))
        return target.mean(), terms


def _require_same_gradient(
    model: nn.Module, config: TrainConfig, x: Tensor | Images, device: torch.device
) -> None:
    """Raise unless the batched product gives the gradient that autograd gives for one model.

    A hook, or code that asks whether a tensor has a gradient, would be passed over in silence.
    """
    few = torch.arange(min(2, len(x)), device=device if isinstance(x, Tensor) else x.x.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    found = []
    for batched in (False, True):
        with seeded(config.seed, device), evaluating(model), _checks.disabled():
            batch = present(x, few).detach().to(device)
            weight = torch.ones((), dtype=batch.dtype, device=device)
            try:
                mean = _mean_of_one(model, config, batch, weight, batched)
            except (RuntimeError, NotImplementedError) as error:
                raise ValueError(
                    f"{spelled(config.objective)} on this model cannot be computed for several "
                    f"replicas at once: use fit. {error}"
                ) from error
            gradients = torch.autograd.grad(mean, trained, allow_unused=True)
            found.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    plain, by_product = found
    if plain.shape != by_product.shape or (plain - by_product).norm() > 1e-3 * plain.norm():
        raise ValueError(
            f"{spelled(config.objective)} has another gradient when it is computed for several "
            "replicas at once: use fit"
        )


def _places(model: nn.Module) -> dict[str, str]:
    """Where parameters stand, each place once, and the first name of what stands there.

    A prior may hold the encoder, which is then reached by two names and is still one place; two
    layers may share a weight, which then stands in two.
    """
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(p), name)
        for prefix, module in model.named_modules(prefix="")
        for name, p in module.named_parameters(prefix, recurse=False, remove_duplicate=False)
    }


def _mean_of_one(
    model: nn.Module, config: TrainConfig, batch: Tensor, weight: Tensor, batched: bool
) -> Tensor:
    """The mean bound of one model, plainly or as a stack of one."""
    call = _Objective(model, config)
    if not batched:
        return call(batch, weight)[0]
    parameters = {name: p.unsqueeze(0) for name, p in model.named_parameters()}
    return _for_each(call, parameters, batch.unsqueeze(0), weight.unsqueeze(0))[0].sum()


def _for_each(
    call: _Objective, parameters: dict[str, Tensor], batches: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean bounds (R,) and sums of terms (R, 2) of R replicas, in batched products."""
    places = _places(call.model)

    def one(own: dict[str, Tensor], batch: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        named = {f"model.{name}": own[first] for name, first in places.items()}
        return torch.func.functional_call(call, named, (batch, weight), tie_weights=False)

    with _FreshDraws():
        return torch.func.vmap(one, randomness="different")(parameters, batches, weights)


def _step_of_all(
    stacked: Stacked,
    data: Tensor | Images,
    config: TrainConfig,
    groups: list[tuple[TrainConfig, Tensor]],
    optimizer: torch.optim.Optimizer,
    rows: Tensor,
    beta: Tensor,
) -> Tensor:
    """Take the steps of all replicas; the sums of the two terms of each, (R, 2)."""
    batch = present(data, rows.flatten()).unflatten(0, rows.shape)
    terms = batch.new_zeros(len(rows), 2)
    total = batch.new_zeros(())
    for own, members in groups:
        call = _Objective(stacked.pattern[0], own)
        means, sums = _for_each(call, stacked.of(members), batch[members], beta[members])
        total = total + means.sum()
        terms = terms.index_copy(0, members, sums)
    optimizer.zero_grad()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    (-total).backward(inputs=parameters)
    if config.clip is not None:
        _clip(parameters, config.clip)
    optimizer.step()
    return terms


def _clip(parameters: list[Tensor], clip: float) -> None:
    """Scale the gradient of each replica down to the norm, as ``clip_grad_norm_`` does for one."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    factor = (clip / (norms + 1e-6)).clamp(max=1.0)
    for g in gradients:
        g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))


def _common(models: Sequence[nn.Module], configs: Sequence[TrainConfig]) -> TrainConfig:
    """What all configurations agree in."""
    if not models or len(models) != len(configs):
        raise ValueError(
            "configs must hold one TrainConfig for each of at least one model, found "
            f"{len(models)} models and {len(configs)} configurations"
        )
    if len({id(model) for model in models}) != len(models):
        raise ValueError("models must be different objects, found one of them twice")
    for own in configs:
        if not isinstance(own, TrainConfig):
            raise ValueError(f"configs must hold TrainConfig, found {type(own).__name__}")
        for f in fields(TrainConfig):
            if f.name not in OWN and getattr(own, f.name) != getattr(configs[0], f.name):
                raise ValueError(
                    f"configs must agree in {f.name}, found {getattr(configs[0], f.name)} and "
                    f"{getattr(own, f.name)}"
                )
    for name, value in (("encoder_steps", 0), ("free_bits", 0.0), ("keep", "last")):
        if getattr(configs[0], name) != value:
            raise ValueError(
                f"{name} must be {value!r} for replicas, found {getattr(configs[0], name)!r}: "
                "use fit"
            )
    return configs[0]


def _groups(
    configs: Sequence[TrainConfig], device: torch.device
) -> list[tuple[TrainConfig, Tensor]]:
    """Replicas that are computed in one product: a configuration and their numbers."""
    members: dict[Any, list[int]] = {}
    for r, own in enumerate(configs):
        members.setdefault((own.objective, own.n_samples), []).append(r)
    return [(configs[found[0]], torch.tensor(found, device=device)) for found in members.values()]


def _pattern(model: nn.Module) -> list[tuple[str, torch.Size, torch.dtype, bool]]:
    return [(name, p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()]


def _equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(
        torch.equal(value.to(others[name].device), others[name]) for name, value in some.items()
    )


def _last_names(names: list[str]) -> list[str]:
    return [name.rpartition(".")[2] for name in names]


def _identities(
    models: Sequence[nn.Module],
    configs: Sequence[TrainConfig],
    x: Tensor | Images,
    device: torch.device,
) -> dict[str, str]:
    pairs = zip(models, configs, strict=True)
    each = [_identity(model, own, x, None, device, Processes()) for model, own in pairs]
    return {f"{name} of {r}": text for r, one in enumerate(each) for name, text in one.items()}
