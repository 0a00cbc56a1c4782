"""Variational inference, amortisation and the VAE: the package that the book imports.

A *family* turns a parameter vector λ into a distribution q. Per-datapoint inference looks λ up in
a table, amortised inference computes it with a network. Everything else follows from that.

Names are loaded when first used, so that ``import vaetutor`` stays light.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaetutor import circular as circular
    from vaetutor import data as data
    from vaetutor import exact as exact
    from vaetutor import exercises as exercises
    from vaetutor import inference as inference
    from vaetutor import ledger as ledger
    from vaetutor import live as live
    from vaetutor import plots as plots
    from vaetutor import targets as targets
    from vaetutor.checkpoint import Checkpoint as Checkpoint
    from vaetutor.checkpoint import load_checkpoint as load_checkpoint
    from vaetutor.checkpoint import save_checkpoint as save_checkpoint
    from vaetutor.circular import Product as Product
    from vaetutor.circular import ProjectedNormal as ProjectedNormal
    from vaetutor.data import Images as Images
    from vaetutor.data import RotatedImages as RotatedImages
    from vaetutor.data import digits as digits
    from vaetutor.data import mnist as mnist
    from vaetutor.data import rotated_digits as rotated_digits
    from vaetutor.evaluate import LogEvidence as LogEvidence
    from vaetutor.evaluate import log_evidence as log_evidence
    from vaetutor.evaluate import pareto_k as pareto_k
    from vaetutor.evaluate import summary as summary
    from vaetutor.exact import BayesianLinearRegression as BayesianLinearRegression
    from vaetutor.exact import ConjugateNormal as ConjugateNormal
    from vaetutor.exact import LinearGaussian as LinearGaussian
    from vaetutor.exact import LocalLevel as LocalLevel
    from vaetutor.exact import mean_field as mean_field
    from vaetutor.exact import mean_field_gap as mean_field_gap
    from vaetutor.families import Bernoulli as Bernoulli
    from vaetutor.families import DiagonalNormal as DiagonalNormal
    from vaetutor.families import FullNormal as FullNormal
    from vaetutor.families import LowRankNormal as LowRankNormal
    from vaetutor.families import MixtureNormal as MixtureNormal
    from vaetutor.families import Normal as Normal
    from vaetutor.flows import FlowPosterior as FlowPosterior
    from vaetutor.flows import FlowPrior as FlowPrior
    from vaetutor.flows import PlanarFlow as PlanarFlow
    from vaetutor.gradients import GradientMoments as GradientMoments
    from vaetutor.gradients import doubly_reparameterised as doubly_reparameterised
    from vaetutor.gradients import gradient_moments as gradient_moments
    from vaetutor.gradients import pathwise as pathwise
    from vaetutor.gradients import score_function as score_function
    from vaetutor.gradients import sticking_the_landing as sticking_the_landing
    from vaetutor.inference import InferenceGaps as InferenceGaps
    from vaetutor.inference import Refined as Refined
    from vaetutor.inference import inference_gaps as inference_gaps
    from vaetutor.inference import refine as refine
    from vaetutor.markov import MarkovNormal as MarkovNormal
    from vaetutor.markov import NormalChain as NormalChain
    from vaetutor.model import VAE as VAE
    from vaetutor.model import AmortizedModel as AmortizedModel
    from vaetutor.model import AmortizedSequenceModel as AmortizedSequenceModel
    from vaetutor.model import Family as Family
    from vaetutor.model import LatentVariableModel as LatentVariableModel
    from vaetutor.model import Posterior as Posterior
    from vaetutor.model import SequenceModel as SequenceModel
    from vaetutor.model import TwoTermModel as TwoTermModel
    from vaetutor.networks import mlp as mlp
    from vaetutor.objectives import Draws as Draws
    from vaetutor.objectives import ElboTerms as ElboTerms
    from vaetutor.objectives import draw as draw
    from vaetutor.objectives import elbo as elbo
    from vaetutor.objectives import elbo_terms as elbo_terms
    from vaetutor.objectives import iwae as iwae
    from vaetutor.objectives import kl as kl
    from vaetutor.objectives import kl_per_dimension as kl_per_dimension
    from vaetutor.objectives import log_weights as log_weights
    from vaetutor.priors import MixturePrior as MixturePrior
    from vaetutor.priors import Standard as Standard
    from vaetutor.priors import StandardNormal as StandardNormal
    from vaetutor.priors import VampPrior as VampPrior
    from vaetutor.quadrature import EightSchools as EightSchools
    from vaetutor.quadrature import GridPosterior as GridPosterior
    from vaetutor.quadrature import grid_posterior as grid_posterior
    from vaetutor.rates import ActiveUnits as ActiveUnits
    from vaetutor.rates import RateDistortion as RateDistortion
    from vaetutor.rates import Surgery as Surgery
    from vaetutor.rates import active_units as active_units
    from vaetutor.rates import aggregate_posterior as aggregate_posterior
    from vaetutor.rates import rate_distortion as rate_distortion
    from vaetutor.rates import surgery as surgery
    from vaetutor.replicas import fit_replicas as fit_replicas
    from vaetutor.schedules import Cyclic as Cyclic
    from vaetutor.schedules import Warmup as Warmup
    from vaetutor.sequences import RecurrentEncoder as RecurrentEncoder
    from vaetutor.sequences import SequenceVAE as SequenceVAE
    from vaetutor.sequences import pad as pad
    from vaetutor.targets import Target as Target
    from vaetutor.train import Divergence as Divergence
    from vaetutor.train import History as History
    from vaetutor.train import TrainConfig as TrainConfig
    from vaetutor.train import fit as fit
    from vaetutor.vowels import Utterances as Utterances
    from vaetutor.vowels import japanese_vowels as japanese_vowels

_HOME = {
    "checkpoint": ("Checkpoint", "load_checkpoint", "save_checkpoint"),
    "circular": ("Product", "ProjectedNormal"),
    "data": ("Images", "RotatedImages", "digits", "mnist", "rotated_digits"),
    "evaluate": ("LogEvidence", "log_evidence", "pareto_k", "summary"),
    "exact": (
        "BayesianLinearRegression",
        "ConjugateNormal",
        "LinearGaussian",
        "LocalLevel",
        "mean_field",
        "mean_field_gap",
    ),
    "exercises": (),
    "families": (
        "Bernoulli",
        "DiagonalNormal",
        "FullNormal",
        "LowRankNormal",
        "MixtureNormal",
        "Normal",
    ),
    "flows": ("FlowPosterior", "FlowPrior", "PlanarFlow"),
    "gradients": (
        "GradientMoments",
        "doubly_reparameterised",
        "gradient_moments",
        "pathwise",
        "score_function",
        "sticking_the_landing",
    ),
    "inference": ("InferenceGaps", "Refined", "inference_gaps", "refine"),
    "ledger": (),
    "live": (),
    "markov": ("MarkovNormal", "NormalChain"),
    "model": (
        "VAE",
        "AmortizedModel",
        "AmortizedSequenceModel",
        "Family",
        "LatentVariableModel",
        "Posterior",
        "SequenceModel",
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
        "kl_per_dimension",
        "log_weights",
    ),
    "plots": (),
    "priors": ("MixturePrior", "Standard", "StandardNormal", "VampPrior"),
    "quadrature": ("EightSchools", "GridPosterior", "grid_posterior"),
    "rates": (
        "ActiveUnits",
        "RateDistortion",
        "Surgery",
        "active_units",
        "aggregate_posterior",
        "rate_distortion",
        "surgery",
    ),
    "replicas": ("fit_replicas",),
    "schedules": ("Cyclic", "Warmup"),
    "sequences": ("RecurrentEncoder", "SequenceVAE", "pad"),
    "targets": ("Target",),
    "train": ("Divergence", "History", "TrainConfig", "fit"),
    "vowels": ("Utterances", "japanese_vowels"),
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
