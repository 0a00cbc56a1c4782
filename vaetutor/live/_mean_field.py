"""A correlated Gaussian and a diagonal q."""

from __future__ import annotations

import torch
import torch.distributions as td
from matplotlib.axes import Axes

from vaetutor import plots
from vaetutor._style import INK
from vaetutor.exact import mean_field_gap
from vaetutor.live._base import Live, check, make
from vaetutor.objectives import kl


def mean_field(
    correlation: float = 0.9, sd: tuple[float, float] = (0.6, 0.6), *, alt: str, caption: str
) -> Live:
    r"""A correlated Gaussian, a q that cannot tilt, and both directions of the divergence.

    p has unit variances and correlation :math:`\rho`, q is diagonal with the same mean. Sliders
    move :math:`\rho` and the two scales of q.

    Args:
        correlation: where :math:`\rho` starts, between -0.99 and 0.99.
        sd: where the scales of q start, between 0.05 and 1.6.
        alt: what a reader who does not see it needs to know.
        caption: the sentence below.

    Returns:
        The figure.

    Raises:
        ValueError: if a number is outside its range or a text is empty.
    """
    if not -0.99 <= correlation <= 0.99:
        raise ValueError(f"correlation must be between -0.99 and 0.99, found {correlation}")
    if not all(0.05 <= scale <= 1.6 for scale in sd):
        raise ValueError(f"sd must be two scales between 0.05 and 1.6, found {sd}")

    def gaussian(rho: float) -> td.MultivariateNormal:
        covariance = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64, device="cpu")
        return td.MultivariateNormal(covariance.new_zeros(2), covariance)

    def terms(rho: float, sd1: float, sd2: float) -> dict[str, float]:
        p = gaussian(rho)
        scales = p.mean.new_tensor([sd1, sd2])
        q = td.MultivariateNormal(p.mean, scale_tril=scales.diag())
        both = {"reverse": kl(q, p), "forward": kl(p, q), "price": mean_field_gap(p)}
        return {name: value.item() for name, value in both.items()}

    places = [(correlation, *sd), (-0.5, 0.3, 1.2), (0.0, 1.0, 1.0), (0.99, 0.1, 0.2)]
    data = {
        "correlation": correlation,
        "sd": list(sd),
        "checks": [
            check(terms(r, a, b), rho=r, sd1=a, sd2=b) for r, a, b in places
        ],
    }  # fmt: skip

    def draw(ax: Axes) -> None:
        axis = torch.linspace(-3.5, 3.5, 201, dtype=torch.float64, device="cpu")
        grid = torch.cartesian_prod(axis, axis)
        p = gaussian(correlation).log_prob(grid).exp().reshape(201, 201)
        scales = grid.new_tensor(sd)
        q = td.Normal(grid.new_zeros(2), scales).log_prob(grid).sum(-1).exp().reshape(201, 201)
        plots.contours(ax, axis, axis, p, label="p", colour=INK)
        plots.contours(ax, axis, axis, q, label="q", style="--")
        ax.set(aspect="equal", xlabel="$z_1$", ylabel="$z_2$")
        ax.legend(frameon=False)

    return make("mean_field", data, draw, alt, caption, 3.6)
