r"""Published figures, measured again: the one-layer rows of Burda et al. (2016), Table 1.

.. math:: \mathcal{L}_K(x) = \mathbb{E}\left[\log \frac{1}{K} \sum_{k=1}^{K}
          \frac{p_\theta(x, z^{(k)})}{q_\phi(z^{(k)} \mid x)}\right]

is what the importance-weighted autoencoder maximises; the VAE with K draws has the mean of the
logarithms in its place, without a KL in closed form, as in the program of the authors. Reported is
the negative log-likelihood of the test images in nats, by importance sampling with 5000 draws
(chapter: importance-weighted bounds).

The protocol is that of the paper: 784-200-200-50 units, tanh, weights after Glorot; batches of 20;
3280 epochs with the rate of :func:`burda_rate`, Adam with an epsilon of 1e-4; the first 59,600
training images, binarised anew at every presentation; all 10,000 test images, binarised once from
a seed. Known differences from the authors' program: scales of q go through this package's bounded
map instead of an exponential, means and scales come from one linear layer, batches are shuffled,
and gradients are means over the batch, where theirs are sums, which makes their epsilon 20 times
smaller in effect.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from vaetutor import _checks
from vaetutor._folder import Run, write_json
from vaetutor.checkpoint import load_checkpoint
from vaetutor.data import Images
from vaetutor.evaluate import summary
from vaetutor.objectives import elbo, iwae
from vaetutor.recipes import ModelConfig, build, load_images
from vaetutor.replicas import fit_replicas
from vaetutor.train import TrainConfig, fit, pick_device

EPOCHS, DRAWS = 3280, 5000
FIGURES = "figures.json"


@dataclass(frozen=True)
class Cell:
    """One figure of the table."""

    objective: Callable[..., Any]
    """The bound that is maximised."""
    n_samples: int
    """Draws K for each image in a step."""
    published: float
    """Negative log-likelihood, nats."""


CELLS = {
    "vae-1": Cell(elbo, 1, 86.76),  # with one draw the two bounds are one: IWAE, k = 1, too
    "vae-5": Cell(elbo, 5, 86.47),
    "vae-50": Cell(elbo, 50, 86.35),
    "iwae-5": Cell(iwae, 5, 85.54),
    "iwae-50": Cell(iwae, 50, 84.78),
}
"""The cells by name: the bound and its number of draws."""


def burda_rate(epoch: float) -> float:
    r"""The learning rate of Burda et al., which falls in eight steps over 3280 epochs.

    .. math:: \alpha(t) = 10^{-3 - i/7} \quad \text{for} \quad
              \tfrac{3^i - 1}{2} \le t < \tfrac{3^{i+1} - 1}{2}, \qquad i = 0, \dots, 7,

    so that the i-th rate holds for :math:`3^i` epochs, and the last one from then on.

    Args:
        epoch: the number of epochs t done, a real number from 0 up.

    Source: Burda et al. (2016), arXiv:1509.00519, section 5.

    >>> [round(burda_rate(t), 7) for t in (0, 1, 3.99, 4, 3279)]
    [0.001, 0.0007197, 0.0007197, 0.0005179, 0.0001]
    """
    i = next((i for i in range(7) if epoch < (3 ** (i + 1) - 1) // 2), 7)
    return float(10 ** (-3 - i / 7))


MODEL = ModelConfig(
    data="mnist-full",
    validation=400,
    latent=50,
    hidden=(200, 200),
    activation="tanh",
    init="glorot",
)


def burda_config(cell: str, epochs: int = EPOCHS, seed: int = 0, **options: Any) -> TrainConfig:  # noqa: ANN401
    """How a cell is trained; `options` are further fields of a TrainConfig, the device for one."""
    if cell not in CELLS:
        raise ValueError(f"cells must be some of {', '.join(CELLS)}, found {cell!r}")
    return TrainConfig(
        epochs=epochs,
        batch_size=20,
        learning_rate=burda_rate,
        adam_eps=1e-4,
        n_samples=CELLS[cell].n_samples,
        objective=CELLS[cell].objective,
        seed=seed,
        checkpoint_every=10,
        capture=pick_device(options.get("device")).type == "cuda",
        **options,
    )


def burda(
    output: str | Path,
    cells: Sequence[str] = tuple(CELLS),
    epochs: int = EPOCHS,
    minutes: float | None = None,
    replicas: bool = False,
    n_samples: int = DRAWS,
    seed: int = 0,
    **options: Any,  # noqa: ANN401
) -> list[dict[str, Any]]:
    """Train cells of the table, as far as time allows, and measure those that are trained.

    Called again it goes on, and ends with the same parameters as without an interruption.

    Args:
        output: a folder. Each cell has a run folder in it, which the other commands can read;
            with `replicas` there is one checkpoint for all.
        cells: which of :data:`CELLS`.
        epochs: stop after so many; a figure then comes with that number.
        minutes: how long to train, shared by the cells that are left; at least one epoch is done.
            None: to the end. Figures are measured when time is left after training.
        replicas: train the cells together, see :func:`~vaetutor.fit_replicas`.
        n_samples: draws of the importance-sampled log-likelihood.
        seed: seed of everything but the first weights.
        options: further fields of a TrainConfig.

    Returns:
        Rows, one for each cell, with ``cell``, ``published``, ``measured`` and
        ``standard_error`` (nats; None where nothing was measured), ``difference`` (only after the
        whole protocol), ``measured_after`` and ``epochs`` (done) ``of`` 3280, and ``draws``.

    Raises:
        ValueError: for an unknown cell or a number out of range, or another run in the folder.
        OSError: if the images are not to be had, or the folder cannot be written.
        FloatingPointError: if training diverges.
    """
    for name, value in (("epochs", epochs), ("n_samples", n_samples)):
        _checks.count(name, value)
    if minutes is not None:
        _checks.positive_number("minutes", minutes)
    configs = {cell: burda_config(cell, epochs, seed, **options) for cell in cells}
    if not configs:
        raise ValueError(f"cells must name at least one of {', '.join(CELLS)}, found none")
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    images = {split: load_images(MODEL, split) for split in ("train", "validation", "test")}
    folder, rows = Path(output), []
    groups = [configs] if replicas else [{cell: config} for cell, config in configs.items()]
    for n_left, group in zip(range(len(groups), 0, -1), groups, strict=True):
        training = _Training(group, images, folder, replicas)
        training.advance(epochs, (end - time.monotonic()) / n_left)
        for cell, model in zip(group, training.models, strict=True):
            if training.epoch == epochs and time.monotonic() < end:
                _measure(cell, model, images["test"], folder, epochs, n_samples, seed)
            rows.append(_row(cell, folder, training.epoch))
    return rows


class _Training:
    """Cells that are trained together, and the checkpoint that they share."""

    def __init__(
        self,
        configs: dict[str, TrainConfig],
        images: dict[str, Images],
        folder: Path,
        replicas: bool,
    ) -> None:
        self.configs, self.images, self.replicas = configs, images, replicas
        self.models = [build(MODEL, images["train"]) for _ in configs]
        self.run = Run(folder if replicas else folder / next(iter(configs)))

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return load_checkpoint(self.run.checkpoint).epoch if self.run.started else 0

    def advance(self, epochs: int, seconds: float) -> None:
        """Train up to an epoch, or until the time is used: at first for one epoch, and then for as
        many as fit at the pace of the last ones."""
        end, pace = time.monotonic() + seconds, 0.0
        while True:
            done, left = self.epoch, end - time.monotonic()
            if done < epochs and pace and left < pace:
                return
            n = int(left / pace) if pace else 1
            until = epochs if seconds == math.inf or done >= epochs else min(done + n, epochs)
            started = time.monotonic()
            self.train(until)
            if until == epochs:
                return
            pace = (time.monotonic() - started) / (until - done)

    def train(self, epochs: int) -> None:
        """Train up to an epoch, from wherever the checkpoint is."""
        x, path = self.images["train"], self.run.checkpoint
        configs = [replace(config, epochs=epochs) for config in self.configs.values()]
        if not self.replicas:
            self.run.require(MODEL, configs[0])
            self.run.write_config(MODEL, configs[0])
        with self.run.going_on():
            if self.replicas:
                fit_replicas(self.models, x, configs, checkpoint=path)
                return
            fit(self.models[0], x, configs[0], self.images["validation"], checkpoint=path)
        self.run.write_history()


def _measure(
    cell: str, model: nn.Module, test: Images, folder: Path, epochs: int, draws: int, seed: int
) -> None:
    """Estimate the log-likelihood of the test images, unless it has been done, and keep it."""
    protocol = {"epochs": epochs, "draws": draws, "seed": seed}
    figures = _figures(folder)
    if protocol.items() <= figures.get(cell, {}).items():
        return
    found = summary(model, test, draws, seed=seed).iloc[0]
    nll, error = -float(found["log_evidence"]), float(found["standard_error"])
    figures[cell] = {"negative_log_likelihood": nll, "standard_error": error, **protocol}
    write_json(folder / FIGURES, figures)


def _figures(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / FIGURES
    return json.loads(path.read_text()) if path.exists() else {}


def _row(cell: str, folder: Path, epoch: int) -> dict[str, Any]:
    found, published = _figures(folder).get(cell, {}), CELLS[cell].published
    measured: Any = found.get("negative_log_likelihood")
    whole = found.get("epochs") == EPOCHS and found.get("draws") == DRAWS
    return {
        "cell": cell,
        "published": published,
        "measured": measured,
        "standard_error": found.get("standard_error"),
        "difference": measured - published if whole else None,
        "measured_after": found.get("epochs"),
        "draws": found.get("draws"),
        "epochs": epoch,
        "of": EPOCHS,
    }
