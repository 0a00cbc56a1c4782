r"""Training: maximise the mean bound over a data set by stochastic gradient ascent.

.. math:: \max_{\theta, \phi}\ \frac{1}{N}\sum_{i=1}^{N} \mathcal{L}(x_i;\ \theta, \phi).

This is the only place of the package that takes a mean over a batch and the only one with a minus
sign: torch's optimisers go down, a bound goes up (chapter: training on digits).

The data live on the device and a batch is a slice of a permutation drawn there. Sums stay on the
device too and are read once an epoch, so a GPU never waits for the loop to look at a number.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributions as td
from torch import Tensor, nn
from tqdm import tqdm

from vaetutor import _checks
from vaetutor._capture import Captured, Step, recorder_for
from vaetutor._loop import Divergence as Divergence
from vaetutor._loop import Loop
from vaetutor._processes import Processes, gradients
from vaetutor._run import check_data, evaluating, present, seeded
from vaetutor.checkpoint import fingerprint, spelled
from vaetutor.data import Images
from vaetutor.evaluate import mean_terms
from vaetutor.model import AmortizedModel, AmortizedSequenceModel, SequenceModel
from vaetutor.objectives import ElboTerms, elbo_terms, kl_per_dimension
from vaetutor.schedules import Cyclic as Cyclic
from vaetutor.schedules import Schedule
from vaetutor.schedules import Warmup as Warmup

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import Accelerator
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
    learning_rate: float | Schedule = 1e-3
    """Step size of Adam: a number, or a function of the epoch reached so far."""
    adam_eps: float = 1e-8
    """What Adam adds to the root of its second moment before it divides by it."""
    n_samples: int = 1
    """Draws of z for each example in a step."""
    encoder_steps: int = 0
    """0 trains all parts together. With k >= 1 they take turns: on each batch k steps of the
    encoder alone, then one step of everything else, each with draws of its own."""
    objective: Objective = elbo_terms
    """The bound to maximise: ``elbo_terms`` (KL in closed form), ``elbo``, ``iwae`` or yours."""
    beta: float | Schedule = 1.0
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
    capture: bool = False
    """Record the whole step as a CUDA graph and replay it: batch, binarisation, forward, backward
    and optimiser, with the same results. A small network gains most, since starting its kernels
    takes longer than running them. Neither the objective nor a family may read values from the
    device, which a low-rank normal and a mixture with implicit gradients do."""
    checkpoint_every: int = 1
    """Epochs from one checkpoint to the next, where ``fit`` is given a file for them."""

    def __post_init__(self) -> None:
        _checks.count("epochs", self.epochs)
        _checks.count("batch_size", self.batch_size)
        _checks.count("n_samples", self.n_samples)
        _checks.count("encoder_steps", self.encoder_steps, least=0)
        _checks.seed(self.seed)
        _checks.count("checkpoint_every", self.checkpoint_every)
        _checks.positive_number("adam_eps", self.adam_eps)
        self.learning_rate_at(0.0)
        for name in ("capture", "progress"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == "progress" and value is None):
                raise ValueError(f"{name} must be True or False, found {value!r}")
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
        if not isinstance(self.keep, str) or self.keep not in ("last", "best"):
            raise ValueError(f'keep must be "last" or "best", found {self.keep!r}')

    def beta_at(self, epoch: float) -> float:
        """The KL weight when `epoch` epochs are done."""
        beta = self.beta(epoch) if callable(self.beta) else self.beta
        return _checks.weight("beta", beta)

    def learning_rate_at(self, epoch: float) -> float:
        """The step size when `epoch` epochs are done."""
        rate = self.learning_rate(epoch) if callable(self.learning_rate) else self.learning_rate
        return _checks.positive_number("learning_rate", rate)


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
        return _best(self.rows)

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
    *,
    checkpoint: str | Path | None = None,
    accelerator: Accelerator | None = None,
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

    With a `checkpoint`, the same call goes on from where it was stopped, by whatever it was
    stopped, and ends with the same parameters: to the last bit on one machine, to rounding where
    the step is captured.

    With an `accelerator` of several processes, each of them calls ``fit`` with the same arguments.
    ``config.batch_size`` is that of the joint batch, of which each takes its share, and the step
    is that of one process with the joint batch. All hold the whole data. Draws differ from those
    of one process. Batch normalisation sees the share, not the joint batch.

    Args:
        model: a VAE or any module with ``encoder``, ``prior``, ``log_likelihood``, ``log_joint``,
            or a :class:`~vaetutor.sequences.SequenceVAE`, which has ``log_prior`` for ``prior``.
            It is moved to the device and trained in place.
        x: data (N, ...) or an :class:`~vaetutor.data.Images`, which is binarised anew in every
            batch if it says "dynamic".
        config: see :class:`TrainConfig`.
        validation: data on which the ELBO is reported after each epoch, by the same draws.
        checkpoint: a file in which the run is kept, see :mod:`vaetutor.checkpoint`. If it is
            there, training goes on from it; ``config.epochs`` may have grown meanwhile. A
            function in the configuration is recognised by its name only.
        accelerator: a Hugging Face ``accelerate.Accelerator``, which then chooses the device.

    Returns:
        The :class:`History`.

    Raises:
        ValueError: if the model is not an amortised one or has nothing to train; if the data are
            empty, not finite, of another width or dtype or outside the support of the decoder; if
            the draws carry no gradient, or the objective does not give one value an example; if
            free bits meet a KL that does not split into dimensions, or the best is to be kept
            without validation data; if the checkpoint is damaged or of another run. All of this is
            found before the first step. A schedule of your own is looked at in every step, and may
            be refused in a later one.
        Divergence: a FloatingPointError, if a bound or a parameter stops being finite. The model
            is then as it was before that epoch, or at its best where that is kept.
        OSError: if a checkpoint cannot be written.

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
    _check_model(model, config, validation)
    processes = Processes(accelerator)
    device = _device(config, accelerator)
    model.to(device)
    processes.agree([*model.parameters(), *model.buffers()])
    two_terms = _check(model, x, "x", config, device)
    if validation is not None:
        _check(model, validation, "validation", config, device)
        if len(validation) < processes.count:
            raise ValueError(
                f"validation must have an example for each process, {processes.count}, found "
                f"{len(validation)}"
            )
        validation = validation.to(device)
    data = x.to(device) if isinstance(x, Images) else x.detach().to(device)
    history = History(str(device))
    turns = _turns(model, config, device)

    def report(epoch: int, means: Tensor, beta: float) -> dict[str, float]:
        row = {"epoch": epoch, **_figures(config, two_terms, means), "beta": beta}
        if validation is not None:
            row["validation_elbo"] = _validate(model, validation, processes, device)
        return row

    loop = Loop(
        model,
        len(data),
        config,
        device,
        processes,
        list(dict.fromkeys(turns)),
        step=_captured(partial(_step, model, data, config, turns, processes), config, device),
        order=lambda: torch.randperm(len(data), device=device),
        report=report,
        is_best=lambda rows: config.keep == "best" and _best(rows) == len(rows),
        identity={}
        if checkpoint is None
        else _identity(model, config, x, validation, device, processes),
        path=Path(checkpoint) if checkpoint is not None else None,
        rows=history.rows,
    )
    n_steps = config.epochs * -(-len(data) // config.batch_size) * len(turns)
    quiet = config.progress if processes.is_main else False
    with (
        seeded(processes.seed(config.seed), device),
        evaluating(model),  # puts every part back in its mode in the end, also after an error
        _checks.disabled(),
        _progress_bar(n_steps, device, quiet) as bar,
    ):
        loop.run(bar, _report, len(turns))
        bar.bar_format = "{desc}: {n_fmt}/{total_fmt} steps{postfix}"  # no clock in the last line
    history.rows, history.seconds = loop.rows, loop.seconds
    return history


def _step(
    model: Any,  # noqa: ANN401  (an nn.Module that is also an AmortizedModel)
    data: Tensor | Images,
    config: TrainConfig,
    turns: list[torch.optim.Optimizer],
    processes: Processes,
    rows: Tensor,
    beta: float | Tensor,
) -> Tensor:
    """Take the steps of one batch; the sums of the two terms of its bound, (2,)."""
    mine, weight = processes.share(rows)
    batch = present(data, mine)
    for optimizer in turns:
        with processes.autocast():
            q = model.encoder(batch)
            bound = config.objective(model, q, batch, config.n_samples)
        target, terms = _target_and_terms(bound, beta, len(batch))
        if config.free_bits:
            assert isinstance(bound, ElboTerms)  # TrainConfig has seen to it
            free = _kl_with_free_bits(model, q, config, processes, weight, len(rows))
            target = bound.reconstruction - beta * free
        mean = target.sum() / len(rows)  # of the joint batch
        alone = len(turns) == 1  # then nothing else gets a gradient
        _ascend(mean if weight == 1 else weight * mean, optimizer, config.clip, processes, alone)
    return terms if weight == 1 else terms * weight


def _ascend(
    mean: Tensor,
    optimizer: torch.optim.Optimizer,
    clip: float | None,
    processes: Processes,
    alone: bool,
) -> None:
    """One step up, of the parameters of this optimiser and no others."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p in parameters:
        p.grad = None  # as optimizer.zero_grad() does, which takes longer for its hooks
    (-mean).backward(inputs=None if alone else parameters)
    if processes.count > 1:
        processes.sum(gradients(parameters))
    if clip is not None:
        nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


def _figures(config: TrainConfig, two_terms: bool, means: Tensor) -> dict[str, float]:
    """The figures of an epoch by name, nats per example, with weight 1 on the KL."""
    first, second = means.tolist()
    if two_terms:
        return {"elbo": first - second, "reconstruction": first, "kl": second}
    return {_name_of(config.objective): first}


def _validate(
    model: Any,  # noqa: ANN401
    validation: Tensor | Images,
    processes: Processes,
    device: torch.device,
) -> float:
    """The mean ELBO of the validation data, by the same draws at every call."""
    with seeded(processes.seed(VALIDATION_SEED), device):
        if processes.count == 1:
            return mean_terms(model, validation)["elbo"]
        share = present(validation)[processes.index :: processes.count]
        total = torch.tensor([mean_terms(model, share)["elbo"] * len(share)], device=device)
    processes.sum([total])
    return total.item() / len(validation)


def _best(rows: list[dict[str, float]]) -> int:
    """The epoch with the highest validation ELBO, the first of equals."""
    return int(max(rows, key=lambda row: row["validation_elbo"])["epoch"])


def _identity(
    model: nn.Module,
    config: TrainConfig,
    x: Tensor | Images,
    validation: Tensor | Images | None,
    device: torch.device,
    processes: Processes,
) -> dict[str, str]:
    """What two runs have to have in common, for one to go on where the other was stopped."""
    free = {"epochs", "device", "progress", "capture", "checkpoint_every"}
    options = {f.name: spelled(getattr(config, f.name)) for f in fields(config)}
    named = {name: text for name, text in options.items() if name not in free}
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    return {
        **named,
        "frozen parameters": ", ".join(frozen) or "none",
        "data": _data(x),
        "validation": "none" if validation is None else _data(validation),
        "device type": device.type,
        "processes": str(processes.count),
    }


def _data(x: Tensor | Images) -> str:
    shown = f", binarize={x.binarize!r}" if isinstance(x, Images) else ""
    return fingerprint(x.x if isinstance(x, Images) else x) + shown


def _captured(step: Step, config: TrainConfig, device: torch.device) -> Step:
    return Captured(step, recorder_for(device)) if config.capture else step


def _turns(
    model: nn.Module, config: TrainConfig, device: torch.device
) -> list[torch.optim.Optimizer]:
    """The steps of a batch, in order: the optimiser of the parameters that each one moves."""

    adam = partial(_make_adam, config=config, device=device)
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


def _make_adam(
    parameters: list[nn.Parameter], config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser of some parameters, fused where the device has it."""
    rate: float | Tensor = config.learning_rate_at(0.0)
    return torch.optim.Adam(
        parameters,
        torch.tensor(rate, dtype=torch.float32, device=device) if config.capture else rate,
        eps=config.adam_eps,
        fused=device.type in ("cpu", "cuda"),
        capturable=config.capture,
    )


def _trainable(module: Any) -> list[nn.Parameter]:  # noqa: ANN401
    return [p for p in module.parameters() if p.requires_grad]


def _name_of(objective: Objective) -> str:
    """The column of the history: an estimator's bound, or else the name of the function."""
    while isinstance(objective, partial):
        objective = objective.func
    name = getattr(objective, "bound", getattr(objective, "__name__", "bound"))
    return name if str(name).isidentifier() and name not in RESERVED else "bound"


def _target_and_terms(
    bound: Tensor | ElboTerms, beta: float | Tensor, n: int
) -> tuple[Tensor, Tensor]:
    """What to maximise (B,), and sums over the batch to report, with weight 1 on the KL, (2,).

    A bound that comes in one piece is reported as the first of the two, with a zero beside it.
    """
    if isinstance(bound, ElboTerms):
        _checks.shape("the reconstruction of the objective", bound.reconstruction, (n,))
        _checks.shape("the KL of the objective", bound.kl, (n,))
        terms = torch.stack([bound.reconstruction.detach(), bound.kl.detach()])
        return bound.reconstruction - beta * bound.kl, terms.sum(1)
    _checks.shape("the value of the objective", bound, (n,))
    value = bound.detach().sum()
    return bound, torch.stack([value, torch.zeros_like(value)])


def _kl_with_free_bits(
    model: Any,  # noqa: ANN401
    q: td.Distribution,
    config: TrainConfig,
    processes: Processes,
    weight: float,
    n: int,
) -> Tensor:
    """What has the gradient of the free-bits KL, (B,): dimensions below their free bits drop out.

    The sum over dimensions of max(free bits, mean KL over the joint batch of n) is a constant in
    those, and elsewhere the mean of the KL.
    """
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
    sums = weight * divergences.detach().sum(0)
    processes.sum([sums])
    return divergences @ (sums / n >= config.free_bits).to(divergences.dtype)


def _check_model(
    model: nn.Module, config: TrainConfig, validation: Tensor | Images | None
) -> None:
    if not isinstance(config, TrainConfig):
        raise ValueError(f"config must be a TrainConfig, found {type(config).__name__}")
    if not isinstance(model, AmortizedModel | AmortizedSequenceModel):
        raise ValueError(
            "model must have encoder, log_likelihood, log_joint and prior, or log_prior and check "
            f"for prior, which {type(model).__name__} has not: build a VAE(encoder, decoder, "
            "prior) or a SequenceVAE"
        )
    if not _trainable(model):
        raise ValueError("model has no trainable parameter: unfreeze one with requires_grad_()")
    if config.keep == "best" and validation is None:
        raise ValueError('keep = "best" needs validation data, found None: give validation=')


def _device(config: TrainConfig, accelerator: Accelerator | None) -> torch.device:
    """Where to train: what the configuration says, or the accelerator."""
    chosen = pick_device(config.device)
    device = chosen if accelerator is None else accelerator.device
    if config.device is not None and device.type != chosen.type:
        raise ValueError(
            f"device must be None with an accelerator, which chose {device}, found {config.device}"
        )
    if config.capture and accelerator is not None and accelerator.num_processes > 1:
        raise ValueError("capture = True records one process, found several: use capture=False")
    return device


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
) -> bool:
    """Look at all data, and send two rows through the objective before the first step.

    Returns whether the bound comes in two terms.
    """
    check_data(model, x, name)
    data = x.x if isinstance(x, Images) else x
    rows = torch.arange(len(data), device=data.device)
    if isinstance(model, SequenceModel):  # the shortest: their padding must not count
        rows = data[..., -1].sum(-1).argsort()
    with seeded(config.seed, device), evaluating(model):
        few = present(x, rows[:2]).detach().to(device)
        q = model.encoder(few)
        bound = config.objective(model, q, few, config.n_samples)
        if config.free_bits:
            _kl_with_free_bits(model, q, config, Processes(), 1.0, len(few))
    if not isinstance(bound, ElboTerms) and (callable(config.beta) or config.beta != 1):
        raise ValueError(
            f"beta = {config.beta} needs objective=elbo_terms, whose KL is a term by itself"
        )
    _target_and_terms(bound, config.beta_at(0.0), len(few))
    return isinstance(bound, ElboTerms)


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
