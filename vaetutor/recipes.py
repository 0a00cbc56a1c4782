r"""Recipes: a VAE on images, from a configuration that fits on a command line.

.. math:: p_\theta(x, z) = p_\theta(x \mid z)\, p(z), \qquad q_\phi(z \mid x),

with fully connected networks on both sides. A :class:`ModelConfig` names the images, the family of
q and the prior; :func:`build` makes the model. Whatever it cannot say is a few lines of Python
with the parts themselves, which is what the chapters do (chapter: the VAE and its ELBO).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import nn

from vaetutor import _checks
from vaetutor._run import seeded
from vaetutor.data import Images, digits, mnist, rotated_digits
from vaetutor.families import Bernoulli, DiagonalNormal, FullNormal, LowRankNormal, MixtureNormal
from vaetutor.families import Normal as NormalObservation
from vaetutor.model import VAE
from vaetutor.networks import mlp
from vaetutor.priors import MixturePrior, StandardNormal, VampPrior

Data = Literal["mnist", "mnist-full", "digits", "rotated"]
Binarize = Literal["dynamic", "static", "threshold", "none"]
Posterior = Literal["diagonal", "full", "lowrank", "mixture", "flow", "planar"]
Prior = Literal["normal", "mixture", "vamp", "flow"]
Activation = Literal["relu", "tanh", "silu"]
Initialisation = Literal["torch", "glorot"]
Split = Literal["train", "validation", "test"]

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}
CONTEXT = 64  # numbers with which an encoder steers the networks of a flow posterior
TEST_EVERY = 5  # of the images that come without a split, every fifth is for testing

_CHOICES = {
    "data": get_args(Data),
    "binarize": (*get_args(Binarize), None),
    "posterior": get_args(Posterior),
    "prior": get_args(Prior),
    "activation": get_args(Activation),
    "init": get_args(Initialisation),
}
_USED_BY = {
    "components": ("posterior", ("mixture",)),
    "rank": ("posterior", ("lowrank",)),
    "transforms": ("posterior", ("flow", "planar")),
    "prior_components": ("prior", ("mixture", "vamp")),
    "prior_transforms": ("prior", ("flow",)),
}


class DataUnavailable(OSError):
    """The images are missing, damaged or out of reach."""


@dataclass(frozen=True)
class ModelConfig:
    """A VAE and the images that it is for.

    Raises:
        ValueError: for an unknown choice, a number out of its range, ``digits`` binarised, or a
            number that the chosen posterior or prior has no use for.
    """

    data: Data = "mnist"
    """The images: ``mnist``, 5,000 embedded digits; ``mnist-full``, the official files, which are
    downloaded once; ``digits``, 8 x 8 pixels from 0 to 16, every fifth of them for testing;
    ``rotated``, those of mnist, each turned by an angle of its own."""
    binarize: Binarize | None = None
    """What the model is shown of an intensity. The default is ``dynamic``, and ``none`` for
    digits, which has no other. Without it the decoder is a Normal with one learned scale, else a
    Bernoulli."""
    images: int | None = None
    """Take only so many training images, the first ones; the default is all."""
    validation: int = 0
    """Hold out so many of the training images, the last ones, to report the ELBO on them after
    each epoch."""
    posterior: Posterior = "diagonal"
    """The family of q(z|x). A flow is one of coupling splines."""
    prior: Prior = "normal"
    """The prior p(z)."""
    latent: int = 20
    """Latent dimensions."""
    hidden: tuple[int, ...] = (400,)
    """Widths of the hidden layers of the encoder, and backwards of the decoder; none at all makes
    both linear."""
    activation: Activation = "relu"
    """What stands between two layers."""
    init: Initialisation = "torch"
    """The first weights: those that torch gives its layers; or ``glorot``, uniform with variance
    2 / (inputs + outputs), biases zero, except that a Bernoulli decoder starts from the training
    mean of each pixel."""
    init_seed: int = 0
    """Seed of the first weights and of what is drawn once of the images, angles for instance."""
    components: int = 3
    """Components of the mixture posterior."""
    rank: int = 2
    """Rank of the lowrank posterior."""
    transforms: int = 3
    """Maps of the flow or planar posterior."""
    prior_components: int = 100
    """Components of the mixture prior, or pseudo-inputs of the vamp prior."""
    prior_transforms: int = 3
    """Maps of the flow prior."""

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                names = ", ".join(str(choice) for choice in known if choice)
                raise ValueError(f"{name} must be one of {names}, found {getattr(self, name)!r}")
        if not isinstance(self.hidden, tuple):
            raise ValueError(f"hidden must be a tuple of widths, found {self.hidden!r}")
        if self.images is not None:
            _checks.count("images", self.images)
        for name in ("validation", "init_seed"):
            _checks.count(name, getattr(self, name), least=0)
        for name, value in (("latent", self.latent), *(("hidden", h) for h in self.hidden)):
            _checks.count(name, value)
        for field in fields(self):
            if field.name in _USED_BY:
                self._check_used(field.name, field.default)
        if self.data == "digits" and self.binarization != "none":
            raise ValueError(f"binarize must be none for digits, found {self.binarize!r}")

    def _check_used(self, name: str, default: object) -> None:
        value = _checks.count(name, getattr(self, name))
        part, users = _USED_BY[name]
        if value != default and getattr(self, part) not in users:
            raise ValueError(
                f"{name} = {value} needs {part} {' or '.join(users)}, found "
                f"{getattr(self, part)!r}: leave it out, or change the {part}"
            )

    @property
    def binarization(self) -> Binarize:
        """The choice made, or the default of the images."""
        return self.binarize or ("none" if self.data == "digits" else "dynamic")


def load_images(config: ModelConfig, split: Split = "train") -> Images:
    """The images of a configuration.

    Args:
        config: which, and how they are binarised. ``images`` and ``validation`` say what is kept
            of the training images; test images are always all of them.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Returns:
        :class:`~vaetutor.data.Images`, on the CPU.

    Raises:
        ValueError: for a split that is empty, and for more images than there are.
        DataUnavailable: if a file of ``mnist-full`` is missing and not to be had, or damaged.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, found {split!r}")
    found = _all_images(config, "test" if split == "test" else "train")
    if split == "test":
        return found
    n = len(found) if config.images is None else config.images
    if not config.validation < n <= len(found):
        raise ValueError(
            f"images = {n} and validation = {config.validation} must leave something to train on "
            f"of the {len(found):,} training images"
        )
    if split == "validation" and config.validation == 0:
        raise ValueError("validation must be at least 1 to have a validation split, found 0")
    cut = n - config.validation
    return rows(found, slice(0, cut) if split == "train" else slice(cut, n))


def rows(images: Images, index: slice | torch.Tensor) -> Images:
    """Some of the images, with their labels and, if they have some, angles."""
    kept = {k: getattr(images, k)[index] for k in ("x", "y", "angle") if hasattr(images, k)}
    return replace(images, **kept)


def _all_images(config: ModelConfig, split: Literal["train", "test"]) -> Images:
    if config.data == "digits":
        images = digits()
        for_test = torch.arange(len(images), device="cpu") % TEST_EVERY == TEST_EVERY - 1
        return rows(images, for_test if split == "test" else ~for_test)
    choice = config.binarization
    binarize = None if choice == "none" else choice
    load = rotated_digits if config.data == "rotated" else mnist
    try:
        return load(split, binarize, config.data == "mnist-full", config.init_seed)
    except (OSError, ValueError) as error:  # the options have been checked: it is the files
        raise DataUnavailable(str(error)) from error


def build(config: ModelConfig, train: Images) -> VAE:
    r"""The VAE of a configuration, untrained, on the CPU.

    Args:
        config: see :class:`ModelConfig`.
        train: the training images. They give the width of the networks, the pseudo-inputs of a
            vamp prior, and with ``glorot`` the first biases of the decoder.

    Returns:
        A :class:`~vaetutor.VAE`, the same one each time; the global random state stays as it was.

    Raises:
        ValueError: for fewer images than pseudo-inputs.

    >>> config = ModelConfig(data="digits", posterior="full", latent=2, hidden=(32, 16))
    >>> build(config, load_images(config)).encoder[0][0]
    Linear(in_features=64, out_features=32, bias=True)
    """
    with seeded(config.init_seed, torch.device("cpu")), torch.device("cpu"):
        width, hidden, activation = train.x.shape[1], config.hidden, ACTIVATIONS[config.activation]
        family = _family(config)
        observed = Bernoulli(width) if train.binarize else NormalObservation(width)
        inwards = mlp(width, *hidden, family.n_parameters, activation=activation)
        outwards = mlp(config.latent, *reversed(hidden), width, activation=activation)
        if config.init == "glorot":
            _glorot(inwards)
            _glorot(outwards)
            if train.binarize:
                outwards[-1].bias.data = train.x.mean(0).clamp(0.001, 0.999).logit()
        encoder = nn.Sequential(inwards, family)
        return VAE(encoder, nn.Sequential(outwards, observed), _prior(config, encoder, train))


def _family(config: ModelConfig) -> Any:  # noqa: ANN401  (a module that is a Family)
    from vaetutor.flows import FlowPosterior, PlanarFlow

    dim = config.latent
    makers: dict[str, Callable[[], nn.Module]] = {
        "diagonal": lambda: DiagonalNormal(dim),
        "full": lambda: FullNormal(dim),
        "lowrank": lambda: LowRankNormal(dim, config.rank),
        "mixture": lambda: MixtureNormal(dim, config.components),
        "flow": lambda: FlowPosterior(dim, CONTEXT, config.transforms),
        "planar": lambda: PlanarFlow(dim, config.transforms),
    }
    return makers[config.posterior]()


def _prior(config: ModelConfig, encoder: nn.Module, train: Images) -> nn.Module:
    if config.prior == "normal":
        return StandardNormal(config.latent)
    if config.prior == "mixture":
        return MixturePrior(config.latent, config.prior_components)
    if config.prior == "flow":
        from vaetutor.flows import FlowPrior

        return FlowPrior(config.latent, config.prior_transforms)
    if config.prior_components > len(train):
        raise ValueError(
            f"prior_components must be at most the number of training images, {len(train)}, which "
            f"are the first pseudo-inputs, found {config.prior_components}"
        )
    u = train.x[: config.prior_components]
    if not train.binarize:
        return VampPrior(encoder, u)
    return VampPrior(encoder, 0.05 + 0.9 * u, support=(0.0, 1.0))  # off the ends of the support


def _glorot(network: nn.Module) -> None:
    """Source: Glorot and Bengio (2010), Understanding the difficulty of training, equation 16."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
