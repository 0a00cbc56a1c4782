r"""Training: maximise the mean bound over a data set by stochastic gradient ascent.

.. math:: \max_{\theta, \phi}\ \frac{1}{N}\sum_{i=1}^{N} \mathcal{L}(x_i;\ \theta, \phi).

This is the only place of the package that takes a mean over a batch and the only one with a minus
sign: torch's optimisers go down, a bound goes up (chapter: training on digits).

The data live on the device and a batch is a slice of a permutation drawn there. Sums stay on the
device too and are read once an epoch, so a GPU never waits for the loop to look at a number.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributions as td
from torch import Tensor, nn
from tqdm import tqdm

from vaetutor import _checks
from vaetutor._run import check_data, evaluating, present, seeded
from vaetutor.data import Images
from vaetutor.evaluate import mean_terms
from vaetutor.model import AmortizedModel, AmortizedSequenceModel, SequenceModel
from vaetutor.objectives import ElboTerms, elbo_terms, kl_per_dimension

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Objective = Callable[[Any, td.Distribution, Tensor, int], "Tensor | ElboTerms"]
"""``(model, q, x, n_samples)`` to a bound (B,), or to its two terms, in nats."""

VALIDATION_SEED = 0
RESERVED = {"epoch", "beta", "validation_elbo", "reconstruction", "kl"}


@dataclass(frozen=True)
class Warmup:
    r"""A weight of the KL that grows linearly over the first epochs and then stays.

    .. math:: \beta(t) = a + (b - a)\, \min(t / T,\ 1).

    Called with the number of epochs t done, a real number from 0 up; use it as
    ``TrainConfig(beta=Warmup(10))``.

    Raises:
        ValueError: for a length that is not above 0, or a weight below 0 or not finite.

    Source: the idea, with another curve: Bowman et al. (2016), arXiv:1511.06349; linear: Sønderby
    et al. (2016), arXiv:1602.02282.

    >>> [Warmup(10)(t) for t in (0, 2.5, 10, 12)]
    [0.0, 0.25, 1.0, 1.0]
    """

    epochs: float
    """Length T of the ramp."""
    start: float = 0.0
    """Weight a at the beginning."""
    end: float = 1.0
    """Weight b from T on."""

    def __post_init__(self) -> None:
        _checks.positive_number("epochs", self.epochs)
        _checks.weight("start", self.start)
        _checks.weight("end", self.end)

    def __call__(self, epoch: float) -> float:
        return self.start + (self.end - self.start) * min(epoch / self.epochs, 1.0)


@dataclass(frozen=True)
class Cyclic:
    r"""A weight of the KL that climbs from zero several times.

    .. math:: \beta(t) = b\, \min(\tau / r,\ 1), \qquad
              \tau = \operatorname{frac}(t\, C / T) \quad \text{for } t < T,

    and b from then on. Each of the C cycles spends the fraction r on its climb and the rest at b.

    Called with the number of epochs t done, a real number from 0 up; use it as
    ``TrainConfig(beta=Cyclic(20))``.

    Raises:
        ValueError: for a length that is not above 0, fewer than one cycle, a ramp outside (0, 1],
            or a weight below 0 or not finite.

    Source: Fu et al. (2019), arXiv:1903.10145.

    >>> [Cyclic(20)(t) for t in (0, 1.25, 2.5, 4, 5, 20)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 1.0]
    """

    epochs: float
    """Length T of all cycles together."""
    cycles: int = 4
    """Their number C."""
    ramp: float = 0.5
    """Fraction r of each cycle in which the weight climbs."""
    end: float = 1.0
    """Weight b at the top."""

    def __post_init__(self) -> None:
        _checks.positive_number("epochs", self.epochs)
        _checks.count("cycles", self.cycles)
        if _checks.positive_number("ramp", self.ramp) > 1:
            raise ValueError(f"ramp must be at most 1, a fraction of a cycle, found {self.ramp}")
        _checks.weight("end", self.end)

    def __call__(self, epoch: float) -> float:
        if epoch >= self.epochs:
            return self.end
        return self.end * min((epoch * self.cycles / self.epochs) % 1 / self.ramp, 1.0)


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Raises:
        ValueError: for a value outside its range.
    """

    epochs: int = 20
    """Passes over the data."""
    batch_size: int = 128
    """Examples in a step; the last batch of an epoch may be smaller and is not dropped."""
    learning_rate: float = 1e-3
    """Step size of Adam."""
    n_samples: int = 1
    """Draws of z for each example in a step."""
    encoder_steps: int = 0
    """0 trains all parts together. With k >= 1 they take turns: on each batch k steps of the
    encoder alone, then one step of everything else, each with draws of its own."""
    objective: Objective = elbo_terms
    """The bound to maximise: ``elbo_terms`` (KL in closed form), ``elbo``, ``iwae`` or yours."""
    beta: float | Callable[[float], float] = 1.0
    """Weight of the KL in the gradient: a number, a :class:`Warmup`, a :class:`Cyclic`, or any
    function of the epoch reached so far (a real number from 0 up). It needs ``elbo_terms``.
    Reported bounds always have weight 1."""
    free_bits: float = 0.0
    """Nats of KL that each latent dimension has for nothing: in the gradient, the KL is the sum
    over the dimensions d of max(free_bits, mean of KL_d over the batch). It needs ``elbo_terms``
    itself and a KL that splits into dimensions in closed form. Reported bounds have the whole KL.
    Source: Kingma et al. (2016), arXiv:1606.04934."""
    keep: Literal["last", "best"] = "last"
    """Which parameters the model has in the end: the last ones, or those of the epoch with the
    highest validation ELBO (weight 1 on the KL, whatever beta was)."""
    device: str | torch.device | None = None
    """Where to train; None takes CUDA if there is one, else MPS, else the CPU."""
    seed: int = 0
    """Seed of batches, binarisation and draws. The global random state is left as it was."""
    clip: float | None = None
    """Largest norm of the gradient of the mean bound, all parameters together; None: no limit."""
    progress: bool | None = None
    """Show a bar; None shows one in a terminal or notebook and stays quiet elsewhere."""

    def __post_init__(self) -> None:
        _checks.count("epochs", self.epochs)
        _checks.count("batch_size", self.batch_size)
        _checks.count("n_samples", self.n_samples)
        _checks.count("encoder_steps", self.encoder_steps, least=0)
        _checks.count("seed", self.seed, least=0)
        _checks.positive_number("learning_rate", self.learning_rate)
        if self.clip is not None:
            _checks.positive_number("clip", self.clip)
        if not callable(self.objective):
            raise ValueError(f"objective must be a function, found {self.objective!r}")
        self.beta_at(0.0)
        if isinstance(self.beta, Warmup | Cyclic) and self.beta.epochs > self.epochs:
            raise ValueError(
                f"beta must be a schedule of at most epochs = {self.epochs}, found {self.beta}: "
                "training would stop before its end"
            )
        if _checks.weight("free_bits", self.free_bits) and self.objective is not elbo_terms:
            raise ValueError(
                f"free_bits = {self.free_bits} needs objective=elbo_terms itself, since the KL is "
                f"computed anew for each dimension, found {self.objective!r}"
            )
        if self.keep not in ("last", "best"):
            raise ValueError(f'keep must be "last" or "best", found {self.keep!r}')

    def beta_at(self, epoch: float) -> float:
        """The KL weight when `epoch` epochs are done."""
        beta = self.beta(epoch) if callable(self.beta) else self.beta
        return _checks.weight("beta", beta)


@dataclass
class History:
    """What a training run reported: one row for each epoch, in nats per example.

    The columns are ``epoch``, ``elbo`` (with weight 1 on the KL; named after the objective when
    another bound was trained), ``reconstruction``, ``kl``, ``beta`` and, if there was validation
    data, ``validation_elbo``. Training figures are means over the epoch while the parameters
    moved; validation figures are taken at its end, always with the same draws.
    """

    device: str
    """The device that was used."""
    rows: list[dict[str, float]] = field(default_factory=list)
    """One dictionary for each epoch."""
    seconds: float = 0.0
    """Wall-clock time of the whole run."""

    @property
    def best_epoch(self) -> int:
        """The epoch with the highest validation ELBO, the first of equals.

        Raises:
            ValueError: if there was no validation data.
        """
        if not self.rows or "validation_elbo" not in self.rows[0]:
            raise ValueError("best_epoch needs validation data, found none: fit(..., validation=)")
        return int(max(self.rows, key=lambda row: row["validation_elbo"])["epoch"])

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as a table."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the curves into `ax`, or into a new figure, whatever the objective was."""
        from vaetutor import plots

        return plots.training_curves(plots.figure()[1] if ax is None else ax, self.frame)

    def _repr_html_(self) -> str:
        return self.frame.to_html(index=False)


def fit(
    model: nn.Module,
    x: Tensor | Images,
    config: TrainConfig | None = None,
    validation: Tensor | Images | None = None,
) -> History:
    r"""Train encoder, decoder and prior on the mean bound, together or by turns.

    Each step draws a batch, evaluates ``config.objective(model, model.encoder(x), x, n_samples)``
    and takes one Adam step on minus its mean. With ``elbo_terms`` the gradient is that of
    :math:`\mathbb{E}_q[\log p(x|z)] - \beta\, \mathrm{KL}`. Parameters with ``requires_grad`` off
    stay as they are: with a frozen decoder and prior, the encoder alone is trained. By turns
    (``config.encoder_steps``), figures are reported from the step of everything else.

    With ``config.keep = "best"`` the model is given back as it was at its best on the validation
    data, also when training ends in an error or is interrupted. That figure has been chosen as the
    highest of several: report another data set's.

    Args:
        model: a VAE or any module with ``encoder``, ``prior``, ``log_likelihood``, ``log_joint``,
            or a :class:`~vaetutor.sequences.SequenceVAE`, which has ``log_prior`` for ``prior``.
            It is moved to the device and trained in place.
        x: data (N, ...) or an :class:`~vaetutor.data.Images`, which is binarised anew in every
            batch if it says "dynamic".
        config: see :class:`TrainConfig`.
        validation: data on which the ELBO is reported after each epoch, by the same draws.

    Returns:
        The :class:`History`.

    Raises:
        ValueError: if the model is not an amortised one or has nothing to train; if the data are
            empty, not finite, of another width or dtype or outside the support of the decoder; if
            the draws carry no gradient, or the objective does not give one value an example; if
            free bits meet a KL that does not split into dimensions, or the best is to be kept
            without validation data. All of this is found before the first step. A beta of your
            own is looked at in every step, and may be refused in a later one.
        FloatingPointError: if a bound or a parameter stops being finite.

    Source: Kingma and Welling (2014), arXiv:1312.6114, algorithm 1; Adam: Kingma and Ba (2015),
    arXiv:1412.6980.

    >>> from vaetutor import VAE, DiagonalNormal, Normal, StandardNormal, mlp
    >>> encoder = nn.Sequential(mlp(3, 2), DiagonalNormal(1))
    >>> vae = VAE(encoder, nn.Sequential(mlp(1, 3), Normal(3)), StandardNormal(1))
    >>> history = fit(vae, torch.randn(64, 3), TrainConfig(epochs=2, device="cpu"))
    >>> list(history.frame.columns)
    ['epoch', 'elbo', 'reconstruction', 'kl', 'beta']
    """
    config = TrainConfig() if config is None else config
    if not isinstance(config, TrainConfig):
        raise ValueError(f"config must be a TrainConfig, found {type(config).__name__}")
    if not isinstance(model, AmortizedModel | AmortizedSequenceModel):
        raise ValueError(
            "model must have encoder, log_likelihood, log_joint and prior, or log_prior and check "
            f"for prior, which {type(model).__name__} has not: build a VAE(encoder, decoder, "
            "prior) or a SequenceVAE"
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model has no trainable parameter: unfreeze one with requires_grad_()")
    if config.keep == "best" and validation is None:
        raise ValueError('keep = "best" needs validation data, found None: give validation=')
    device = pick_device(config.device)
    started = time.perf_counter()
    model.to(device)
    _check(model, x, "x", config, device)
    if validation is not None:
        _check(model, validation, "validation", config, device)
        validation = validation.to(device)
    data = x.to(device) if isinstance(x, Images) else x.detach().to(device)
    history = History(str(device))
    n_batches = config.epochs * -(-len(data) // config.batch_size)
    n_steps = n_batches * (config.encoder_steps + 1)
    with (
        seeded(config.seed, device),
        evaluating(model),  # puts every part back in its mode in the end, also after an error
        _checks.disabled(),
        _progress_bar(n_steps, device, config.progress) as bar,
    ):
        turns, best = _turns(model, config, device), None
        try:
            for epoch in range(config.epochs):
                model.train()
                row = _train_epoch(model, data, config, turns, epoch, bar)
                if validation is not None:
                    with seeded(VALIDATION_SEED, device):
                        row["validation_elbo"] = mean_terms(model, validation)["elbo"]
                _require_finite(model, row, last=epoch + 1 == config.epochs)
                history.rows.append(row)
                if config.keep == "best" and history.best_epoch == epoch + 1:
                    best = copy.deepcopy(model.state_dict())
                _report(bar, row)
        finally:
            if best is not None:
                model.load_state_dict(best)
        bar.bar_format = "{desc}: {n_fmt}/{total_fmt} steps{postfix}"  # no clock in the last line
    history.seconds = time.perf_counter() - started
    return history


def _train_epoch(
    model: Any,  # noqa: ANN401  (an nn.Module that is also an AmortizedModel)
    data: Tensor | Images,
    config: TrainConfig,
    turns: list[torch.optim.Optimizer],
    epoch: int,
    bar: tqdm,
) -> dict[str, float]:
    n = len(data)
    device = next(model.parameters()).device
    order = torch.randperm(n, device=device)
    sums: Tensor | float = 0.0
    for start in range(0, n, config.batch_size):
        beta = config.beta_at(epoch + start / n)
        batch = present(data, order[start : start + config.batch_size])
        for optimizer in turns:
            q = model.encoder(batch)
            bound = config.objective(model, q, batch, config.n_samples)
            target, sums_of_batch = _target(bound, beta, len(batch))
            if config.free_bits:
                assert isinstance(bound, ElboTerms)  # TrainConfig has seen to it
                target = bound.reconstruction - beta * _kl_with_free_bits(model, q, config)
            _ascend(target.mean(), optimizer, config.clip)
            bar.update()
        sums = sums + sums_of_batch
    assert isinstance(sums, Tensor)
    values = (sums / n).tolist()  # the one read of the epoch
    if len(values) == 1:
        reported = {_name_of(config.objective): values[0]}
    else:
        reconstruction, kl = values
        reported = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
    return {"epoch": epoch + 1, **reported, "beta": beta}


def _turns(
    model: nn.Module, config: TrainConfig, device: torch.device
) -> list[torch.optim.Optimizer]:
    """The steps of a batch, in order: the optimiser of the parameters that each one moves."""

    def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        fused = device.type in ("cpu", "cuda")
        return torch.optim.Adam(parameters, config.learning_rate, fused=fused)

    if config.encoder_steps == 0:
        return [adam(_trainable(model))]
    ours = _trainable(model.encoder)
    rest = [p for p in _trainable(model) if not any(p is q for q in ours)]
    if not (ours and rest):
        frozen = "else" if ours else "in the encoder"
        raise ValueError(
            f"encoder_steps = {config.encoder_steps} needs two parts to take turns, but nothing "
            f"{frozen} is trainable: unfreeze it, or use encoder_steps=0"
        )
    return [adam(ours)] * config.encoder_steps + [adam(rest)]


def _trainable(module: Any) -> list[nn.Parameter]:  # noqa: ANN401
    return [p for p in module.parameters() if p.requires_grad]


def _ascend(mean: Tensor, optimizer: torch.optim.Optimizer, clip: float | None) -> None:
    """One step up, of the parameters of this optimiser and no others."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad()
    (-mean).backward(inputs=parameters)
    if clip is not None:
        nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


def _name_of(objective: Objective) -> str:
    """The column of the history: an estimator's bound, or else the name of the function."""
    while isinstance(objective, partial):
        objective = objective.func
    name = getattr(objective, "bound", getattr(objective, "__name__", "bound"))
    return name if str(name).isidentifier() and name not in RESERVED else "bound"


def _require_finite(model: nn.Module, row: dict[str, float], last: bool) -> None:
    healthy = all(map(math.isfinite, row.values()))
    if healthy and last:  # the last step comes after the last bound
        healthy = all(bool(p.isfinite().all()) for p in model.parameters())
    if not healthy:
        raise FloatingPointError(
            f"a bound or a parameter is not finite in epoch {row['epoch']}: {row}; try a smaller "
            "learning rate or a gradient clip"
        )


def _target(bound: Tensor | ElboTerms, beta: float, n: int) -> tuple[Tensor, Tensor]:
    """What to maximise (B,), and the sums over the batch to report, with weight 1 on the KL."""
    if isinstance(bound, ElboTerms):
        _checks.shape("the reconstruction of the objective", bound.reconstruction, (n,))
        _checks.shape("the KL of the objective", bound.kl, (n,))
        terms = torch.stack([bound.reconstruction.detach(), bound.kl.detach()])
        target = bound.elbo if beta == 1 else bound.reconstruction - beta * bound.kl
        return target, terms.sum(1)
    _checks.shape("the value of the objective", bound, (n,))
    return bound, bound.detach().sum().unsqueeze(0)


def _kl_with_free_bits(model: Any, q: td.Distribution, config: TrainConfig) -> Tensor:  # noqa: ANN401
    """The sum over dimensions of max(free bits, mean KL over the batch), a scalar."""
    if not hasattr(model, "prior"):
        raise ValueError(
            f"free_bits = {config.free_bits} needs a model with prior(), which "
            f"{type(model).__name__} has not"
        )
    try:
        divergences = kl_per_dimension(q, model.prior())
    except ValueError as error:
        raise ValueError(
            f"free_bits = {config.free_bits} needs a KL that splits into dimensions: {error}"
        ) from error
    return divergences.mean(0).clamp(min=config.free_bits).sum()


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Return `device`, or the best there is: CUDA, then MPS, then the CPU."""
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _check(
    model: Any,  # noqa: ANN401
    x: Tensor | Images,
    name: str,
    config: TrainConfig,
    device: torch.device,
) -> None:
    """Look at all data, and send two rows through the objective before the first step."""
    check_data(model, x, name)
    data = x.x if isinstance(x, Images) else x
    rows = torch.arange(len(data), device=data.device)
    if isinstance(model, SequenceModel):  # the shortest: their padding must not count
        rows = data[..., -1].sum(-1).argsort()
    with seeded(config.seed, device), evaluating(model):
        few = present(x, rows[:2]).detach().to(device)
        q = model.encoder(few)
        bound = config.objective(model, q, few, config.n_samples)
    if not isinstance(bound, ElboTerms) and (callable(config.beta) or config.beta != 1):
        raise ValueError(
            f"beta = {config.beta} needs objective=elbo_terms, whose KL is a term by itself"
        )
    _target(bound, config.beta_at(0.0), len(few))


def _progress_bar(n_steps: int, device: torch.device, wanted: bool | None) -> tqdm:
    in_notebook = _in_notebook()
    if wanted is None:
        wanted = in_notebook or sys.stderr.isatty()
    return tqdm(
        total=n_steps,
        desc=f"fit on {device}",
        disable=not wanted,
        # In a notebook the bar goes where print goes, so that a rendered page keeps its last line.
        file=sys.stdout if in_notebook else sys.stderr,
        bar_format="{desc}: {percentage:3.0f}% |{bar:30}| {remaining} left{postfix}",
        mininterval=0.5,
    )


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _report(bar: tqdm, row: dict[str, float]) -> None:
    name = "validation_elbo" if "validation_elbo" in row else list(row)[1]
    bar.set_postfix_str(f"{name.replace('_', ' ')} {row[name]:.2f} nats", refresh=False)
