"""The two diagrams: from x to a Gaussian in latent space, and the whole VAE.

Coordinates are inches, so that positions, lengths and letters can be judged together.
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Ellipse, FancyArrowPatch, FancyBboxPatch, Rectangle

from vaetutor._style import BLUE, GREEN, GREY, INK, ORANGE, styled

_GAUSSIAN = r"$q_\phi(z \mid x) = \mathcal{N}\left(z;\, \mu, \, \mathrm{diag}(\sigma^2)\right)$"

Point = tuple[float, float]

_DIAGONAL = 2 * np.eye(4)  # 2: positive; 1: any number; 0: zero
_FULL = np.tril(np.ones((4, 4))) + np.eye(4)


@styled
def encoder_diagram(ax: Axes) -> Axes:
    r"""A network that maps :math:`x` to the parameters of a Gaussian in latent space.

    Args:
        ax: axes of about 7 by 3.4 inches: ``plots.figure(height=3.4)``.

    Returns:
        `ax`, without ticks.
    """
    _canvas(ax, 7.0, 3.4)
    x_layer = [(0.35, y) for y in (2.52, 2.0, 0.96)]
    h_layer = [(1.65, y) for y in (2.64, 2.17, 1.70, 1.23, 0.76)]
    outputs = [(2.95, y) for y in (2.61, 2.15, 1.25, 0.79)]
    for sources, targets in ((x_layer, h_layer), (h_layer, outputs)):
        for start in sources:
            for end in targets:
                _arrow(ax, start, end, colour="#8c8c8c", width=0.6, head=5, shrink=12.5)
    for centre, name in zip(x_layer, ("x_1", "x_2", "x_{D_x}"), strict=True):
        _node(ax, centre, f"${name}$", GREY)
    ax.text(0.35, 1.50, r"$\vdots$", size=14, ha="center", va="center")
    for centre in h_layer:
        _node(ax, centre, "", GREY)
    for centre, name in zip(outputs, (r"\mu_1", r"\mu_2", r"\sigma_1", r"\sigma_2"), strict=True):
        _node(ax, centre, f"${name}$", BLUE if "mu" in name else ORANGE)

    for left, title, formula in (
        (0.35, "input", "$x$"),
        (1.65, "hidden layer", r"$h = a(W x + b)$"),
        (2.95, "parameters", r"$(\mu, \sigma) = f_\phi(x)$"),
        (5.60, "a density in latent space", _GAUSSIAN),
    ):
        ax.text(left, 3.24, title, ha="center", va="center")
        ax.text(left, 0.16, formula, size=12, ha="center", va="center")
    ax.plot([3.20, 3.27, 3.27, 3.20], [2.78, 2.78, 0.62, 0.62], color=INK, lw=1.0)
    _arrow(ax, (3.27, 1.70), (4.00, 1.70))
    _density(ax, origin=(4.40, 0.72), corner=(6.95, 2.95), mean=(5.55, 1.86), sigma=(0.44, 0.29))
    return ax


def _density(ax: Axes, origin: Point, corner: Point, mean: Point, sigma: Point) -> None:
    """Contours of an axis-aligned Gaussian in the plane, with its mean and scales marked."""
    (left, bottom), (right, top) = origin, corner
    _arrow(ax, origin, (right, bottom), width=1.0)
    _arrow(ax, origin, (left, top), width=1.0)
    for k in (2, 1.5, 1, 0.5):
        size = {"width": 2 * k * sigma[0], "height": 2 * k * sigma[1]}
        ax.add_patch(Ellipse(mean, **size, fc=BLUE, alpha=0.13, lw=0))
        ax.add_patch(Ellipse(mean, **size, fill=False, ec=BLUE, lw=1.0))
    foot: dict[str, Any] = {"color": BLUE, "lw": 1.0, "ls": (0, (3, 2))}
    ax.plot([mean[0], mean[0], left], [bottom, mean[1], mean[1]], **foot)
    ax.plot(*mean, "o", color=BLUE, ms=4)

    east, north = mean[0] + sigma[0], mean[1] + sigma[1]
    beyond, above = mean[0] + 2.3 * sigma[0], mean[1] + 2.4 * sigma[1]
    guide: dict[str, Any] = {"color": ORANGE, "lw": 0.7}
    for x in (mean[0], east):
        ax.plot([x, x], [mean[1], above + 0.06], **guide)
    for y in (mean[1], north):
        ax.plot([mean[0], beyond + 0.06], [y, y], **guide)
    measure: dict[str, Any] = {
        "arrowstyle": "<|-|>", "color": ORANGE, "mutation_scale": 7, "shrinkA": 0, "shrinkB": 0
    }  # fmt: skip
    ax.add_patch(FancyArrowPatch((mean[0], above), (east, above), **measure))
    ax.add_patch(FancyArrowPatch((beyond, mean[1]), (beyond, north), **measure))

    for x, y, name, colour in (
        (right - 0.08, bottom - 0.20, "z_1", INK),
        (left - 0.20, top - 0.10, "z_2", INK),
        (mean[0], bottom - 0.20, r"\mu_1", BLUE),
        (left - 0.20, mean[1], r"\mu_2", BLUE),
        ((mean[0] + east) / 2, above + 0.19, r"\sigma_1", ORANGE),
        (beyond + 0.22, (mean[1] + north) / 2, r"\sigma_2", ORANGE),
    ):
        ax.text(x, y, f"${name}$", size=13, ha="center", va="center", color=colour)


@styled
def architecture_diagram(ax: Axes) -> Axes:
    r"""The whole VAE: how :math:`x` gives μ and Σ, how a draw is made, and the two ELBO terms.

    Args:
        ax: axes of about 7 by 5.4 inches: ``plots.figure(height=5.4)``.

    Returns:
        `ax`, without ticks.
    """
    _canvas(ax, 7.0, 5.4)
    top, low, middle = 4.40, 3.30, 3.85

    # Encoder: x to the mean and the factor of the covariance.
    _cells(ax, (0.30, middle), np.ones((7, 1)), GREY)
    _layers(ax, 1.05, middle)
    _flow(ax, (0.42, middle), (0.80, middle))
    _flow(ax, (1.46, middle), (1.72, middle), (1.72, top), (2.26, top))
    _flow(ax, (1.72, middle), (1.72, low), (2.04, low))
    _cells(ax, (2.40, top), np.ones((4, 1)), BLUE)
    _cells(ax, (2.40, low), _FULL, ORANGE)
    _frame(ax, (2.40, middle), 0.96, 2.46, dash=True)

    # The draw, and the decoder.
    _operator(ax, (3.40, low), r"$\times$")
    _operator(ax, (3.40, top), r"$+$")
    _node(ax, (4.20, low), r"$\varepsilon$", GREEN)
    _node(ax, (4.20, top), "$z$", INK)
    _flow(ax, (2.52, top), (3.26, top))
    _flow(ax, (2.76, low), (3.26, low))
    _flow(ax, (4.02, low), (3.54, low))
    _flow(ax, (3.40, low + 0.14), (3.40, top - 0.14))
    _flow(ax, (3.54, top), (4.02, top))
    _flow(ax, (4.38, top), (4.88, top))
    _layers(ax, 5.13, top)
    _flow(ax, (5.54, top), (6.13, top))
    _cells(ax, (6.25, top), np.ones((7, 1)), GREY)

    # The two terms.
    kl, reconstruction, y = 4.20, 6.02, 1.55
    _frame(ax, (kl, y), 1.40, 0.62)
    _frame(ax, (reconstruction, y), 1.80, 0.62)
    _frame(ax, (5.11, 0.36), 1.20, 0.40)
    _flow(ax, (2.72, 2.62), (2.72, y), (kl - 0.70, y))
    _flow(ax, (kl, 2.12), (kl, y + 0.31))
    _flow(ax, (5.55, 2.12), (5.55, y + 0.31))
    _flow(ax, (6.25, 3.74), (6.25, y + 0.31))
    _flow(ax, (kl, y - 0.31), (kl, 0.36), (4.51, 0.36))
    _flow(ax, (reconstruction, y - 0.31), (reconstruction, 0.36), (5.71, 0.36))

    # The two factors, and the covariance each gives.
    for centre, factor in ((1.62, _DIAGONAL), (0.54, _FULL)):
        covariance = np.where(factor @ factor.T > 0, 1, 0) + np.eye(4)
        for x, pattern in ((0.36, factor), (1.18, factor.T), (2.00, covariance)):
            _cells(ax, (x, centre), pattern, INK if x == 2.00 else ORANGE, size=0.14)

    for x, height, text, size in (
        (0.30, 4.62, "$x$", 14),
        (1.13, 4.85, r"encoder, $\phi$", 10),
        (2.40, 5.25, r"$q_\phi(z \mid x) = \mathcal{N}(\mu, \Sigma)$", 12),
        (2.40, 4.89, r"$\mu$", 13),
        (2.40, 2.81, "$L$", 13),
        (3.85, 4.84, r"$z = \mu + L\,\varepsilon$", 12),
        (4.20, 2.93, r"$\varepsilon \sim \mathcal{N}(0, I)$", 12),
        (5.21, 5.25, r"decoder, $\theta$", 10),
        (6.25, 5.25, r"$p_\theta(x \mid z)$", 12),
        (kl, 2.28, r"prior $p(z)$", 10),
        (5.55, 2.28, "observed $x$", 10),
        (kl, y + 0.14, "divergence", 10),
        (kl, y - 0.13, r"$\mathrm{KL}(q_\phi(z \mid x) \,\Vert\, p(z))$", 11),
        (reconstruction, y + 0.14, "reconstruction", 10),
        (reconstruction, y - 0.13, r"$\mathbb{E}_{q}[\,\log p_\theta(x \mid z)\,]$", 11),
        (5.11, 0.36, "ELBO", 11),
        (4.37, 0.50, "$-$", 13),
        (5.85, 0.50, "$+$", 13),
        (1.18, 2.08, "diagonal, $P = 2D$", 10),
        (1.18, 1.00, "full, $P = 2D + D(D-1)/2$", 10),
        (0.36, 0.10, "$L$", 12),
        (1.18, 0.10, r"$L^{\!\top}$", 12),
        (2.00, 0.10, r"$\Sigma$", 12),
        *((x, h, s, 13) for h in (1.62, 0.54) for x, s in ((0.77, r"$\times$"), (1.59, "$=$"))),
    ):
        ax.text(x, height, text, size=size, ha="center", va="center")
    return ax


def _canvas(ax: Axes, width: float, height: float) -> None:
    """Bare axes whose unit is an inch, if they have the size that the diagram is made for."""
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.set_axis_off()


def _node(ax: Axes, centre: Point, name: str, colour: str) -> None:
    ax.add_patch(Circle(centre, 0.17, fc="white", ec=colour, lw=1.4, zorder=3))
    ax.text(*centre, name, size=12, ha="center", va="center_baseline", zorder=4)


def _arrow(
    ax: Axes,
    start: Point,
    end: Point,
    colour: str = INK,
    width: float = 1.2,
    head: float = 10,
    shrink: float = 0,
) -> None:
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=head,
            color=colour,
            lw=width,
            shrinkA=shrink,
            shrinkB=shrink,
            joinstyle="miter",
        )
    )


def _flow(ax: Axes, *points: Point) -> None:
    """An arrow along straight pieces."""
    ax.plot(*zip(*points[:-1], strict=True), color=INK, lw=1.2, solid_capstyle="butt")
    _arrow(ax, points[-2], points[-1])


def _cells(ax: Axes, centre: Point, pattern: np.ndarray, colour: str, size: float = 0.17) -> None:
    """A vector or matrix as a table of cells; the larger the entry, the fuller the cell."""
    rows, columns = pattern.shape
    left, top = centre[0] - columns * size / 2, centre[1] + rows * size / 2
    for (i, j), entry in np.ndenumerate(pattern):
        corner = (left + j * size, top - (i + 1) * size)
        fill = mpl.colors.to_rgba(colour, (0, 0.25, 0.75)[int(entry)])
        ax.add_patch(Rectangle(corner, size, size, fc=fill, ec=colour, lw=0.8, zorder=3))


def _layers(ax: Axes, x: float, y: float) -> None:
    """Two layers of a network, the first centred a little left of the second."""
    for left, height in ((x - 0.25, 1.30), (x + 0.21, 1.05)):
        _block(ax, (left, y - height / 2), 0.20, height, fc="#ececec", ec=GREY)
    _flow(ax, (x - 0.05, y), (x + 0.21, y))


def _frame(ax: Axes, centre: Point, width: float, height: float, dash: bool = False) -> None:
    corner = (centre[0] - width / 2, centre[1] - height / 2)
    _block(ax, corner, width, height, fill=False, ec=INK, ls=(0, (4, 2)) if dash else "solid")


def _block(ax: Axes, corner: Point, width: float, height: float, **look: Any) -> None:  # noqa: ANN401
    rounded = "round,pad=0,rounding_size=0.06"
    ax.add_patch(FancyBboxPatch(corner, width, height, boxstyle=rounded, lw=1.1, **look))


def _operator(ax: Axes, centre: Point, sign: str) -> None:
    ax.add_patch(Circle(centre, 0.14, fc="white", ec=INK, lw=1.2, zorder=3))
    ax.text(*centre, sign, size=13, ha="center", va="center_baseline", zorder=4)
