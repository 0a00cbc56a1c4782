r"""Figures: axes in, axes out, and nothing is computed here.

What a figure shows is worked out where it can be read and tested, and arrives as arrays. Every
function draws on the axes it is given and returns them, so figures compose::

    fig, (left, right) = plots.figure(1, 2)
    plots.reconstructions(left, x, x_hat)
    plots.latent_scatter(right, z, y)
    plots.show(fig, alt="Eight test digits over their reconstructions; the latent plane ...")

:func:`show` is the one way a figure reaches a page, and it asks for alternative text. The style
applies inside these functions and leaves matplotlib's settings as they were. Colours come from a
colour-blind safe palette, and no figure relies on them: digits are drawn as digits, and lines
differ by dash and marker. The two diagrams show what chapters 2 and 4 describe in words.
"""

from __future__ import annotations

import base64
import html
import io
import sys
from typing import Any

import matplotlib.patheffects as pe
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from vaetutor._diagrams import architecture_diagram, encoder_diagram
from vaetutor._style import BLUE, COLOURS, GREEN, GREY, INK, ORANGE, style, styled

__all__ = [
    "COLOURS",
    "architecture_diagram",
    "contours",
    "encoder_diagram",
    "figure",
    "image_grid",
    "latent_manifold",
    "latent_scatter",
    "png",
    "reconstructions",
    "show",
    "style",
    "training_curves",
]

WIDTH = 7.0  # inches: the text column of the book at 96 CSS pixels an inch


@styled
def figure(
    rows: int = 1, cols: int = 1, width: float = WIDTH, height: float | None = None
) -> tuple[Figure, Any]:
    """A styled figure and its axes, as :func:`matplotlib.pyplot.subplots` returns them.

    Args:
        rows: rows of axes.
        cols: columns of axes.
        width: in inches; the default fills the text column of the book.
        height: in inches, by default three fifths of the width of one column for each row.

    Returns:
        The figure and one Axes, or an array of Axes if there are several.

    Raises:
        ValueError: if a number is not above zero.
    """
    for name, size in {"rows": rows, "cols": cols, "width": width, "height": height}.items():
        if size is not None and not size > 0:
            raise ValueError(f"{name} must be above zero, found {size}.")
    height = 0.6 * width / cols * rows if height is None else height
    return plt.subplots(rows, cols, figsize=(width, height), layout="constrained")


@styled
def show(fig: Figure, alt: str, vector: bool = False) -> None:
    """Display a figure with its alternative text, and close it.

    In a notebook the output is one image, PNG at two pixels a CSS pixel or SVG, with ``alt`` in
    its metadata and as its plain text. Outside IPython nothing is displayed.

    Args:
        fig: the figure.
        alt: what a reader who does not see it needs to know. Required.
        vector: SVG instead of PNG, for diagrams. The same figure always gives the same bytes.

    Raises:
        ValueError: if `alt` is empty.
    """
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(
            f"alt must say in words what the figure shows, found {alt!r}: write a sentence for a "
            "reader who cannot see it."
        )
    # Whoever runs inside IPython has it loaded; nobody else needs it installed.
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        from IPython.display import display

        mime = "image/svg+xml" if vector else "image/png"
        image = _svg(fig, alt) if vector else base64.b64encode(png(fig)).decode()
        metadata = {"alt": alt, "width": round(fig.get_figwidth() * 96)}
        display({"text/plain": alt, mime: image}, metadata={mime: metadata}, raw=True)
    plt.close(fig)


def png(fig: Figure, dpi: int = 192) -> bytes:
    """A figure as a small PNG: no more than 256 colours, chosen so that none is far off.

    Figures have few colours and much antialiasing, so that two thirds of the bytes can go. One
    without any colour, for instance of digits, has 32 levels of grey.

    Args:
        fig: the figure.
        dpi: pixels an inch; the default is two for each pixel of a page.

    Returns:
        The bytes of the file. The same figure always gives the same.
    """
    drawn, small = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=dpi)
    palette = Image.Quantize.MAXCOVERAGE
    image = Image.open(drawn).convert("RGB")
    red, green, blue = image.split()
    colours = 32 if red == green == blue else 256
    palette = Image.Quantize.MAXCOVERAGE
    image = image.quantize(colours, palette, kmeans=2, dither=Image.Dither.NONE)
    image.save(small, "PNG", optimize=True)
    return small.getvalue()


def _svg(fig: Figure, alt: str) -> str:
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    label = f'<svg role="img" aria-label="{html.escape(alt)}" '
    return svg[svg.index("<svg") :].replace("<svg ", label, 1)


# Images


@styled
def image_grid(
    ax: Axes,
    images: Tensor | np.ndarray,
    image_shape: tuple[int, int] = (28, 28),
    columns: int | None = None,
) -> Axes:
    """Images in reading order, dark on white, the last row filled up with blanks.

    Args:
        ax: where to draw.
        images: shape (N, D) or (N, height, width). Zero and below is white; black is one, or the
            largest value if that is above one.
        image_shape: (height, width) in pixels.
        columns: images a row, by default the nearest to a square.

    Returns:
        `ax`.

    Raises:
        ValueError: if shapes disagree, values are not finite or `columns` is below one.
    """
    tiles = _tiles("images", images, image_shape)
    columns = round(len(tiles) ** 0.5) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, found {columns}.")
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    blanks = np.full((rows * columns - len(tiles), *image_shape), np.nan)
    height, width = image_shape
    _draw_mosaic(ax, _mosaic(np.concatenate([tiles, blanks]), rows), (0, columns, rows, 0))
    ax.set_aspect(height / width)
    lines: dict[str, Any] = {"color": "white", "linewidth": 3.0, "clip_on": False}
    ax.hlines(np.arange(rows + 1), 0, columns, **lines)
    ax.vlines(np.arange(columns + 1), 0, rows, **lines)
    _bare(ax)
    return ax


@styled
def reconstructions(
    ax: Axes,
    x: Tensor | np.ndarray,
    x_hat: Tensor | np.ndarray,
    image_shape: tuple[int, int] = (28, 28),
) -> Axes:
    """Originals over their reconstructions, one pair a column.

    Args:
        ax: where to draw.
        x: the originals, shape (N, D) or (N, height, width).
        x_hat: the reconstructions, in the same shape and on the same scale.
        image_shape: (height, width) in pixels.

    Returns:
        `ax`.

    Raises:
        ValueError: if shapes disagree or values are not finite.
    """
    above, below = _tiles("x", x, image_shape), _tiles("x_hat", x_hat, image_shape)
    if len(above) != len(below):
        raise ValueError(
            f"x and x_hat must hold the same number of images, found {len(above)} and "
            f"{len(below)}: index both the same way."
        )
    image_grid(ax, np.concatenate([above, below]), image_shape, columns=len(above))
    ax.set_yticks([0.5, 1.5], ["original", "reconstruction"])
    ax.tick_params(axis="y", length=0, labelsize=10)
    return ax


@styled
def latent_manifold(
    ax: Axes,
    images: Tensor | np.ndarray,
    z1: Tensor | np.ndarray,
    z2: Tensor | np.ndarray,
    image_shape: tuple[int, int] = (28, 28),
) -> Axes:
    r"""Decoded images laid out over the latent plane, each centred on its own :math:`z`.

    Args:
        ax: where to draw.
        images: the decoder's output on the grid, shape (len(z2), len(z1), D), or its rows one
            after the other, (len(z2) * len(z1), D): entry (i, j) belongs to ``(z1[j], z2[i])``.
        z1: the horizontal coordinates, evenly spaced and increasing, at least two.
        z2: the vertical coordinates, likewise; they increase upwards on the page.
        image_shape: (height, width) in pixels.

    Returns:
        `ax`.

    Raises:
        ValueError: if shapes disagree, values are not finite or a grid is uneven.
    """
    (first1, last1, step1, n1), (first2, last2, step2, n2) = _grid("z1", z1), _grid("z2", z2)
    array = _array("images", images)
    if array.shape[:2] == (n2, n1):
        array = array.reshape(n2 * n1, *array.shape[2:])
    tiles = _tiles("images", array, image_shape)
    if len(tiles) != n1 * n2:
        raise ValueError(
            f"images must hold len(z2) * len(z1) = {n2 * n1} images, found {len(tiles)}."
        )
    upwards = tiles.reshape(n2, n1, *image_shape)[::-1].reshape(tiles.shape)
    left, right = first1 - step1 / 2, last1 + step1 / 2
    bottom, top = first2 - step2 / 2, last2 + step2 / 2
    _draw_mosaic(ax, _mosaic(upwards, n2), (left, right, bottom, top))
    height, width = image_shape
    ax.set_aspect((step1 / width) / (step2 / height))  # square pixels
    _name_plane(ax)
    return ax


def _array(name: str, values: Tensor | np.ndarray | list[float]) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values, dtype=float)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must hold finite numbers and at least one, found shape {array.shape} with "
            f"{int((~np.isfinite(array)).sum())} NaN or infinite."
        )
    return array


def _tiles(name: str, images: Tensor | np.ndarray, image_shape: tuple[int, int]) -> np.ndarray:
    array = _array(name, images)
    height, width = image_shape
    if array.shape[1:] not in ((height * width,), (height, width)):
        raise ValueError(
            f"{name} must have shape (N, {height * width}) or (N, {height}, {width}) for "
            f"image_shape {tuple(image_shape)}, found {array.shape}."
        )
    return array.reshape(-1, height, width)


def _grid(name: str, values: Tensor | np.ndarray) -> tuple[float, float, float, int]:
    z = _array(name, values)
    steps = np.diff(z) if z.ndim == 1 else np.zeros(0)
    if len(steps) < 1 or steps[0] <= 0 or not np.allclose(steps, steps[0], rtol=1e-3):
        raise ValueError(
            f"{name} must be evenly spaced, increasing and of length 2 or more, found {z}: "
            "use torch.linspace."
        )
    return z[0], z[-1], (z[-1] - z[0]) / len(steps), len(z)


def _mosaic(tiles: np.ndarray, rows: int) -> np.ndarray:
    """(rows * columns, h, w) to (rows * h, columns * w), in reading order."""
    _, height, width = tiles.shape
    grid = tiles.reshape(rows, -1, height, width)
    return grid.swapaxes(1, 2).reshape(rows * height, -1)


def _draw_mosaic(ax: Axes, mosaic: np.ndarray, extent: tuple[float, float, float, float]) -> None:
    black = max(1.0, np.nanmax(mosaic))
    ax.imshow(mosaic, cmap="gray_r", vmin=0, vmax=black, extent=extent, origin="upper")


def _name_plane(ax: Axes) -> None:
    ax.set_xlabel("$z_1$", size=13)
    ax.set_ylabel("$z_2$", size=13)


def _bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


# Points and lines


@styled
def latent_scatter(ax: Axes, z: Tensor | np.ndarray, y: Tensor | np.ndarray) -> Axes:
    r"""Points of the latent plane, each drawn as its digit, and each class named near its mean.

    Args:
        ax: where to draw.
        z: the points, shape (N, 2), for instance means of :math:`q(z \mid x)`.
        y: their labels, integers of shape (N,); ten colours, then they repeat.

    Returns:
        `ax`, with the same unit along both axes.

    Raises:
        ValueError: if `z` is not a finite (N, 2), or there is not one integer label for each.
    """
    points, labels = _array("z", z), _array("y", y)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(
            f"z must have shape (N, 2), found {points.shape}: choose two coordinates to draw."
        )
    if labels.shape != points.shape[:1] or (labels != labels.round()).any():
        raise ValueError(
            f"y must be {len(points)} integer labels, one a point, found shape {labels.shape}."
        )
    classes = np.unique(labels).astype(int)
    centres = np.stack([points[labels == label].mean(0) for label in classes])
    for label, (left, height) in zip(classes, _apart(centres, 0.07 * np.ptp(points)), strict=True):
        mine = points[labels == label]
        colour = COLOURS[label % len(COLOURS)]
        glyph = rf"$\mathsf{{{label}}}$"
        ax.scatter(mine[:, 0], mine[:, 1], s=30, marker=glyph, color=colour, linewidths=0)
        name = ax.text(left, height, str(label), size=17, weight="bold", color=colour)
        name.set(ha="center", va="center", zorder=3)
        name.set_path_effects([pe.withStroke(linewidth=4, foreground="white")])
    _name_plane(ax)
    ax.set_aspect("equal", adjustable="datalim")
    return ax


def _apart(centres: np.ndarray, gap: float) -> np.ndarray:
    """The centres, those closer than `gap` pushed away from each other a little at a time."""
    centres = centres.copy()
    for _ in range(200):
        apart = centres[:, None] - centres[None]
        distance = np.maximum(np.linalg.norm(apart, axis=-1, keepdims=True), 1e-9)
        push = np.where((distance < gap) & (distance > 1e-9), apart / distance, 0.0).sum(1)
        centres += 0.02 * gap * push
    return centres


@styled
def contours(
    ax: Axes,
    z1: Tensor | np.ndarray,
    z2: Tensor | np.ndarray,
    density: Tensor | np.ndarray,
    *,
    mass: tuple[float, ...] = (0.5, 0.9),
    label: str | None = None,
    colour: str = BLUE,
    style: str = "-",
    filled: bool = False,
) -> Axes:
    r"""Curves of equal density that enclose given shares of the mass on a grid.

    For a share m the curve lies at the largest height t for which the points with density of at
    least t hold m of the sum. For a Gaussian in the plane it is the ellipse of Mahalanobis radius
    :math:`\sqrt{-2\ln(1 - m)}`.

    Args:
        ax: where to draw.
        z1: the first coordinate, evenly spaced and increasing.
        z2: the second coordinate, evenly spaced and increasing.
        density: values of at least 0 on the grid, shape (len(z1), len(z2)); entry (i, j) belongs
            to ``(z1[i], z2[j])``. They need not be normalised.
        mass: the shares, each inside (0, 1).
        label: name in the legend.
        colour: of the curves, or of the areas.
        style: dash of the curves, as in ``ax.plot``.
        filled: shade the areas inside the curves, darker further in, and draw no curves.

    Returns:
        `ax`.

    Raises:
        ValueError: if the grid is not even, the density has another shape, is not finite, is
            negative or zero everywhere, or a share lies outside (0, 1).
    """
    first, second = (_grid(name, z) for name, z in (("z1", z1), ("z2", z2)))
    heights = _array("density", density)
    if heights.shape != (first[3], second[3]) or (heights < 0).any() or not heights.any():
        raise ValueError(
            f"density must have shape {(first[3], second[3])} with values of at least 0 and not "
            f"all 0, found shape {heights.shape} with values from {heights.min():g} to "
            f"{heights.max():g}"
        )
    if not mass or not all(0 < share < 1 for share in mass):
        raise ValueError(f"mass must hold shares between 0 and 1, found {mass}")
    ordered = np.sort(heights, axis=None)[::-1]
    held = ordered.cumsum() / ordered.sum()
    levels = sorted({ordered[np.searchsorted(held, share)] for share in mass})
    grid = np.linspace(*first[:2], first[3]), np.linspace(*second[:2], second[3])
    if filled:
        for level in levels:
            ax.contourf(*grid, heights.T, levels=[level, np.inf], colors=[colour], alpha=0.25)
        ax.fill([], [], color=colour, alpha=0.4, lw=0, label=label)
    else:
        ax.contour(*grid, heights.T, levels=levels, colors=[colour], linestyles=[style])
        ax.plot([], [], color=colour, ls=style, label=label)
    return ax


CURVES = {
    "reconstruction": ("reconstruction", GREEN, (0, (5, 1.5)), "^"),
    "elbo": ("ELBO, training", BLUE, "solid", "o"),
    "validation_elbo": ("ELBO, validation", ORANGE, (0, (1.5, 1)), "s"),
    "kl": ("KL", INK, (0, (5, 1.5, 1, 1.5)), "D"),
}


@styled
def training_curves(ax: Axes, frame: pd.DataFrame) -> Axes:
    """The ELBO and its two terms against the epoch, each line named where it ends.

    Args:
        ax: where to draw.
        frame: one row an epoch, with ``epoch`` and one or more of ``elbo``, ``reconstruction``,
            ``kl``, ``validation_elbo`` or another bound under its own name, in nats for each
            datapoint. ``beta`` is not drawn. Missing values are skipped.

    Returns:
        `ax`.

    Raises:
        ValueError: if there is no epoch or no curve, or a curve holds no finite number.
    """
    others = {
        c: (str(c), BLUE, "solid", "o") for c in frame if c not in {"epoch", "beta", *CURVES}
    }
    looks: dict[Any, Any] = {**CURVES, **others}
    curves = {column: look for column, look in looks.items() if column in frame}
    if "epoch" not in frame or not curves:
        raise ValueError(
            "frame must have the column epoch and at least one curve such as elbo, found "
            f"{', '.join(map(str, frame.columns)) or 'none'}."
        )
    ends = {}
    for column, (name, colour, dash, marker) in curves.items():
        rows = frame[["epoch", column]].replace([np.inf, -np.inf], np.nan).dropna()
        if rows.empty:
            raise ValueError(f"frame must hold a finite number in {column}, found none.")
        every = np.linspace(0, len(rows) - 1, min(len(rows), 9)).round().astype(int).tolist()
        epoch, values = rows["epoch"].to_numpy(), rows[column].to_numpy()
        (line,) = ax.plot(epoch, values, color=colour, ls=dash, marker=marker, markevery=every)
        line.set(markersize=4.5)
        if column == "validation_elbo":  # often upon the training ELBO: let that show through
            line.set(markersize=8, markerfacecolor="none")
        ends[name] = (epoch[-1], values[-1])
    ax.margins(y=0.08)
    _label_ends(ax, ends)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    ax.set(xlabel="epoch", ylabel="nats per datapoint")
    return ax


def _label_ends(ax: Axes, ends: dict[str, tuple[float, float]], gap: float = 14.0) -> None:
    """Name every line at its end, with the names at least `gap` points apart."""
    bottom, top = ax.get_ylim()
    unit = (top - bottom) / (ax.get_window_extent().height / ax.figure.dpi * 72)  # a point
    names = sorted(ends, key=lambda name: ends[name][1])
    heights = np.array([ends[name][1] for name in names])
    for _ in range(200):  # push neighbours apart, half of what is missing each
        lack = np.clip(gap * unit * 1.001 - np.diff(heights), 0, None) / 2
        heights = heights - np.append(lack, 0) + np.insert(lack, 0, 0)
    for name, height in zip(names, heights, strict=True):
        ax.annotate(
            name,
            xy=ends[name],
            xytext=(1.04, height),
            textcoords=("axes fraction", "data"),
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.7, "shrinkA": 2, "shrinkB": 4},
        )
