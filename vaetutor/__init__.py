"""Variational inference, amortisation and the VAE: the package that the book imports.

A *family* turns a parameter vector λ into a distribution q. Per-datapoint inference looks λ up in
a table, amortised inference computes it with a network. Everything else follows from that.

Names are loaded when first used, so that ``import vaetutor`` stays light.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaetutor import data as data
    from vaetutor import exact as exact
    from vaetutor import plots as plots
    from vaetutor.data import Images as Images
    from vaetutor.data import digits as digits
    from vaetutor.data import mnist as mnist
    from vaetutor.evaluate import LogEvidence as LogEvidence
    from vaetutor.evaluate import log_evidence as log_evidence
    from vaetutor.evaluate import summary as summary
    from vaetutor.exact import ConjugateNormal as ConjugateNormal
    from vaetutor.exact import LinearGaussian as LinearGaussian
    from vaetutor.families import Bernoulli as Bernoulli
    from vaetutor.families import DiagonalNormal as DiagonalNormal
    from vaetutor.families import FullNormal as FullNormal
    from vaetutor.families import Normal as Normal
    from vaetutor.model import VAE as VAE
    from vaetutor.model import AmortizedModel as AmortizedModel
    from vaetutor.model import Family as Family
    from vaetutor.model import LatentVariableModel as LatentVariableModel
    from vaetutor.model import Posterior as Posterior
    from vaetutor.model import TwoTermModel as TwoTermModel
    from vaetutor.networks import mlp as mlp
    from vaetutor.objectives import Draws as Draws
    from vaetutor.objectives import ElboTerms as ElboTerms
    from vaetutor.objectives import draw as draw
    from vaetutor.objectives import elbo as elbo
    from vaetutor.objectives import elbo_terms as elbo_terms
    from vaetutor.objectives import iwae as iwae
    from vaetutor.objectives import kl as kl
    from vaetutor.objectives import log_weights as log_weights
    from vaetutor.priors import StandardNormal as StandardNormal
    from vaetutor.train import History as History
    from vaetutor.train import TrainConfig as TrainConfig
    from vaetutor.train import fit as fit

_HOME = {
    "data": ("Images", "digits", "mnist"),
    "evaluate": ("LogEvidence", "log_evidence", "summary"),
    "exact": ("ConjugateNormal", "LinearGaussian"),
    "families": ("Bernoulli", "DiagonalNormal", "FullNormal", "Normal"),
    "model": (
        "VAE",
        "AmortizedModel",
        "Family",
        "LatentVariableModel",
        "Posterior",
        "TwoTermModel",
    ),
    "networks": ("mlp",),
    "objectives": (
        "Draws",
        "ElboTerms",
        "draw",
        "elbo",
        "elbo_terms",
        "iwae",
        "kl",
        "log_weights",
    ),
    "plots": (),
    "priors": ("StandardNormal",),
    "train": ("History", "TrainConfig", "fit"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]
__version__ = version("vaetutor")


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _HOME:
        return import_module(f"vaetutor.{name}")
    if name in _MODULE_OF:
        return getattr(import_module(f"vaetutor.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'vaetutor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_HOME])
