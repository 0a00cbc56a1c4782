"""The latent plane of a VAE, with a decoder small enough for a page."""

from __future__ import annotations

import base64
import math

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from vaetutor import plots
from vaetutor.live._base import Live, check, make


def latent_plane(
    decoder: nn.Sequential,
    z: Tensor,
    labels: Tensor,
    start: tuple[float, float] = (0.0, 0.0),
    limit: float = 3.5,
    image_shape: tuple[int, int] = (28, 28),
    rank: int = 24,
    *,
    alt: str,
    caption: str,
) -> Live:
    r"""The latent plane of a VAE: point at a place and see what the decoder makes of it.

    The decoder has one hidden layer of rectified units, :math:`\ell(z) = W h(z) + b`, and its
    weights would be too many bytes for a page. Over a square of the plane the logits lie near few
    directions: with their mean :math:`\bar\ell = W \bar h + b` and the leading principal
    directions V on a fine grid,

    .. math:: \ell(z) \approx \bar\ell + V\, (V^\top W)\, (h(z) - \bar h),

    and V and :math:`V^\top W` are rounded to 16 bits. The largest error of a pixel's mean on the
    grid is measured and stands in ``data["error"]``.

    Args:
        decoder: a :func:`vaetutor.mlp` from 2 over one hidden width to the pixels, and then
            :class:`vaetutor.Bernoulli`.
        z: where the encoder puts some test images, (N, 2); those outside the square are left out.
        labels: their labels, integers (N,).
        start: where the pointer starts.
        limit: the square goes from -limit to limit.
        image_shape: (height, width) in pixels.
        rank: how many directions are kept.
        alt: what a reader who does not see it needs to know.
        caption: the sentence below.

    Returns:
        The figure.

    Raises:
        ValueError: if the decoder is of another form, shapes disagree, or a text is empty.
    """
    layers = list(decoder[0]) if isinstance(decoder[0], nn.Sequential) else []
    if [type(layer) for layer in layers] != [nn.Linear, nn.ReLU, nn.Linear]:
        raise ValueError("decoder must be mlp(2, hidden, pixels) and then a Bernoulli")
    w1, b1, w2, b2 = (p.detach().double().cpu() for p in decoder[0].parameters())
    if w1.shape[1] != 2 or len(b2) != math.prod(image_shape):
        raise ValueError(
            f"decoder must map 2 numbers to {math.prod(image_shape)} pixels, found "
            f"{w1.shape[1]} and {len(b2)}"
        )
    if z.shape != (len(labels), 2):
        raise ValueError(f"z must be ({len(labels)}, 2), found {tuple(z.shape)}")

    def decode(places: Tensor) -> Tensor:
        with torch.no_grad():
            return decoder(places.to(next(decoder.parameters()))).mean.double().cpu()

    axis = torch.linspace(-limit, limit, 61, dtype=w1.dtype, device="cpu")
    grid = torch.cartesian_prod(axis, axis)
    hidden = (grid @ w1.T + b1).relu()
    centre = hidden.mean(0)
    wide = torch.linalg.svd((hidden - centre) @ w2.T, full_matrices=False).Vh[:rank].T
    narrow = wide.T @ w2  # (rank, hidden), as wide is (pixels, rank)
    bias = w2 @ centre + b2 - wide @ (narrow @ centre)
    packed = {
        "w1": _pack(w1, "f4"),
        "b1": _pack(b1, "f4"),
        "narrow": _pack(narrow, "i2"),
        "wide": _pack(wide, "i2"),
        "bias": _pack(bias, "f4"),
    }
    code = hidden @ _unpack(packed["narrow"], narrow.shape).T
    off = torch.sigmoid(code @ _unpack(packed["wide"], wide.shape).T + bias) - decode(grid)
    places = [(*start,), (1.5, -1.0), (-2.0, 0.75), (0.25, 2.5)]
    ink = decode(torch.tensor(places, device="cpu")).sum(1).tolist()
    inside = (z.abs() <= limit).all(1)
    points = [
        [round(z1, 2), round(z2, 2), int(label)]
        for (z1, z2), label in zip(z[inside].tolist(), labels[inside].tolist(), strict=True)
    ]
    data = {
        "decoder": packed,
        "points": points,
        "limit": limit,
        "z": list(start),
        "image_shape": list(image_shape),
        "error": off.abs().max().item(),
        # The places lie between the points of the grid, where the error was measured.
        "checks": [
            check({"ink": value}, 1.5 * off.sum(1).abs().max().item(), z1=a, z2=b)
            for (a, b), value in zip(places, ink, strict=True)
        ],
    }

    def draw(ax: Axes) -> None:
        coarse = torch.linspace(-limit, limit, 9, dtype=w1.dtype, device="cpu")
        mesh = torch.stack(torch.meshgrid(coarse, coarse, indexing="xy"), dim=-1)
        plots.latent_manifold(ax, decode(mesh.flatten(0, 1)), coarse, coarse, image_shape)

    return make("latent_plane", data, draw, alt, caption, 3.7)


def _pack(values: Tensor, kind: str) -> tuple[str, float, str]:
    """Numbers in units of one step, as (type, step, base64 of the little-endian numbers)."""
    array = values.numpy()
    unit = float(np.abs(array).max()) / 32767 if kind == "i2" else 1.0
    whole = np.round(array / unit) if kind == "i2" else array
    return kind, unit, base64.b64encode(whole.astype("<" + kind).tobytes()).decode()


def _unpack(packed: tuple[str, float, str], shape: tuple[int, ...]) -> Tensor:
    kind, unit, text = packed
    whole = np.frombuffer(base64.b64decode(text), "<" + kind)
    return torch.from_numpy(whole * unit).reshape(shape)
