"""The rate-distortion curve of linear models."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from vaetutor import _checks
from vaetutor._style import BLUE, INK, ORANGE
from vaetutor.live._base import Live, check, make, numbers


def rate_distortion(
    eigenvalues: Tensor,
    noise: float,
    latent_dim: int,
    points: Mapping[str, tuple[float, float]],
    beta: float = 1.0,
    limits: tuple[float, float] = (0.1, 40.0),
    *,
    alt: str,
    caption: str,
) -> Live:
    r"""The exact rate-distortion curve of linear models, walked along by :math:`\beta`.

    With the eigenvalues :math:`l_j` of the data covariance, a Gaussian decoder of fixed noise
    variance :math:`\sigma^2` and the level :math:`\tau = \beta\sigma^2`, the directions with
    :math:`l_j > \tau` are in use, and

    .. math:: \mathcal{R} = \tfrac12 \sum_{l_j > \tau} \ln \frac{l_j}{\tau}, \qquad
              \frac{d\mathcal{D}}{d\mathcal{R}} = -\beta .

    Args:
        eigenvalues: of the covariance of the data, (D_x,), decreasing, at least 0.
        noise: the variance :math:`\sigma^2` of each entry of x given z, above 0.
        latent_dim: number of latent dimensions, 1 to D_x.
        points: measured (rate, distortion), nats, of other models, by their names.
        beta: where the slider starts.
        limits: where it ends.
        alt: what a reader who does not see it needs to know.
        caption: the sentence below.

    Returns:
        The figure.

    Raises:
        ValueError: if the eigenvalues do not fall or are negative, a number is outside its range,
            or a text is empty.
    """
    values = torch.as_tensor(eigenvalues, dtype=torch.float64, device="cpu")
    if values.dim() != 1 or (values < 0).any() or (values.diff() > 0).any():
        raise ValueError("eigenvalues must be a decreasing list of numbers of at least 0")
    _checks.count("latent_dim", latent_dim)
    if latent_dim > len(values):
        raise ValueError(f"latent_dim must be at most {len(values)}, found {latent_dim}")
    if not 0 < limits[0] <= beta <= limits[1] or not noise > 0:
        raise ValueError(
            "noise must be above 0 and beta within its limits, found "
            f"noise = {noise}, beta = {beta}, limits = {limits}"
        )

    def terms(beta: float) -> dict[str, float]:
        # From the best decoder itself: principal directions are axes here, W is diagonal.
        level = beta * noise
        squares = (values[:latent_dim] - level).clamp(min=0)
        weight = torch.diag(squares.sqrt())
        precision = weight.T @ weight / level + torch.eye(latent_dim, dtype=values.dtype)
        covariance = torch.linalg.inv(precision)
        map_to_mean = covariance @ weight.T / level
        second = torch.diag(values[:latent_dim])
        spread = map_to_mean @ second @ map_to_mean.T
        prior = torch.eye(latent_dim, dtype=values.dtype)
        rate = 0.5 * (covariance + spread - prior).trace() - 0.5 * torch.logdet(covariance)
        residual = torch.eye(latent_dim, dtype=values.dtype) - weight @ map_to_mean
        error = (residual @ second @ residual.T + weight @ covariance @ weight.T).trace()
        error = error + values[latent_dim:].sum()
        distortion = 0.5 * (len(values) * math.log(2 * math.pi * noise) + error / noise)
        return {
            "rate": rate.item(),
            "distortion": distortion.item(),
            "elbo": -(rate + distortion).item(),
            "survivors": int((squares > 0).sum()),
        }

    betas = [beta, limits[0], math.sqrt(limits[0] * limits[1]), 4.0 * beta]
    data = {
        "eigenvalues": numbers("eigenvalues", values, 10),
        "noise": noise,
        "latent_dim": latent_dim,
        "points": [
            {"label": label, "rate": rate, "distortion": distortion}
            for label, (rate, distortion) in points.items()
        ],
        "beta": beta,
        "limits": list(limits),
        "checks": [check(terms(b), 1e-5, beta=b) for b in betas if b <= limits[1]],
    }

    def draw(ax: Axes) -> None:
        sweep = np.geomspace(*limits, 100)
        curve = [terms(b) for b in sweep]
        ax.plot([p["rate"] for p in curve], [p["distortion"] for p in curve], color=INK)
        here = terms(beta)
        ax.plot(here["rate"], here["distortion"], "o", color=BLUE)
        for label, point in points.items():
            ax.plot(*point, "s", color=ORANGE)
            ax.annotate(label, point, (-6, -12), textcoords="offset points", ha="right")
        ax.set(xlabel="rate, nats", ylabel="distortion, nats")

    return make("rate_distortion", data, draw, alt, caption, 3.2)
