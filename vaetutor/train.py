r"""Training: maximise the mean bound over a data set by stochastic gradient ascent.

.. math:: \max_{\theta, \phi}\ \frac{1}{N}\sum_{i=1}^{N} \mathcal{L}(x_i;\ \theta, \phi).

This is the only place of the package that takes a mean over a batch and the only one with a minus
sign: torch's optimisers go down, a bound goes up (chapter: training on digits).

The data live on the device and a batch is a slice of a permutation drawn there. Sums stay on the
device too and are read once an epoch, so a GPU never waits for the loop to look at a number.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributions as td
from torch import Tensor, nn
from tqdm import tqdm

from vaetutor import _checks
from vaetutor._run import check_data, evaluating, present, seeded
from vaetutor.data import Images
from vaetutor.evaluate import mean_terms
from vaetutor.model import AmortizedModel
from vaetutor.objectives import ElboTerms, elbo_terms

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Objective = Callable[[Any, td.Distribution, Tensor, int], "Tensor | ElboTerms"]
"""``(model, q, x, n_samples)`` to a bound (B,), or to its two terms, in nats."""

VALIDATION_SEED = 0
RESERVED = {"epoch", "beta", "validation_elbo", "reconstruction", "kl"}


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
    """Weight of the KL in the gradient, a number or a function of the epoch reached so far (a real
    number from 0 up). It needs ``elbo_terms``. Reported bounds always have weight 1."""
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

    def beta_at(self, epoch: float) -> float:
        """The KL weight when `epoch` epochs are done."""
        beta = self.beta(epoch) if callable(self.beta) else self.beta
        if not isinstance(beta, int | float) or not 0 <= beta < torch.inf:
            raise ValueError(f"beta must be a finite number of at least 0, found {beta!r}")
        return float(beta)


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

    Args:
        model: a VAE or any module with ``encoder``, ``prior``, ``log_likelihood``, ``log_joint``.
            It is moved to the device and trained in place.
        x: data (N, ...) or an :class:`~vaetutor.data.Images`, which is binarised anew in every
            batch if it says "dynamic".
        config: see :class:`TrainConfig`.
        validation: data on which the ELBO is reported after each epoch.

    Returns:
        The :class:`History`.

    Raises:
        ValueError: if the model is not an amortised one or has nothing to train; if the data are
            empty, not finite, of another width or dtype or outside the support of the decoder; if
            the draws carry no gradient, or the objective does not give one value an example. All
            of this is found before the first step.
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
    if not isinstance(model, AmortizedModel):
        raise ValueError(
            "model must have encoder, prior, log_likelihood and log_joint, which "
            f"{type(model).__name__} has not: build a VAE(encoder, decoder, prior)"
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model has no trainable parameter: unfreeze one with requires_grad_()")
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
        turns = _turns(model, config, device)
        for epoch in range(config.epochs):
            model.train()
            row = _train_epoch(model, data, config, turns, epoch, bar)
            if validation is not None:
                with seeded(VALIDATION_SEED, device):
                    row["validation_elbo"] = mean_terms(model, validation)["elbo"]
            _require_finite(model, row, last=epoch + 1 == config.epochs)
            history.rows.append(row)
            _report(bar, row)
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
            bound = config.objective(model, model.encoder(batch), batch, config.n_samples)
            target, sums_of_batch = _target(bound, beta, len(batch))
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
    rows = torch.arange(min(2, len(x)), device=x.x.device if isinstance(x, Images) else x.device)
    with seeded(config.seed, device), evaluating(model):
        few = present(x, rows).detach().to(device)
        bound = config.objective(model, model.encoder(few), few, config.n_samples)
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
