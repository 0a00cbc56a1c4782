"""What all live figures share: the page they make of numbers and a still picture."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from vaetutor import plots

STILL_DPI = 110


@dataclass(frozen=True)
class Live:
    """One live figure; a notebook shows it."""

    kind: str
    """Which of the figures it is: the name of the function that made it."""
    data: Mapping[str, Any]
    """Its numbers, as they go into the page: only what JSON can hold."""
    alt: str
    """What a reader who does not see it needs to know."""
    caption: str
    """The sentence below it: what to do and what to see."""
    still: bytes = field(repr=False)
    """The still picture, WebP."""

    @property
    def html(self) -> str:
        """The figure with all it needs."""
        numbers = json.dumps(self.data, separators=(",", ":"), allow_nan=False)
        numbers = numbers.replace("<", r"\u003c")  # a label must not end the script
        picture = base64.b64encode(self.still).decode()
        width, height = (
            round(n * 96 / STILL_DPI) for n in Image.open(io.BytesIO(self.still)).size
        )
        script = files("vaetutor.live").joinpath("live.js").read_text(encoding="utf-8")
        return (
            f'<figure class="vt-live" data-kind="{self.kind}">\n'
            f'<img class="vt-still" alt="{html.escape(self.alt)}" '
            f'width="{width}" height="{height}" src="data:image/webp;base64,{picture}">\n'
            f"<figcaption>{html.escape(self.caption)}</figcaption>\n"
            f'<script type="application/json" class="vt-data">{numbers}</script>\n'
            f"<script>{script}</script>\n</figure>"
        )

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.alt


def make(
    kind: str,
    data: Mapping[str, Any],
    draw: Callable[[Axes], object],
    alt: str,
    caption: str,
    height: float,
) -> Live:
    for name, text in {"alt": alt, "caption": caption}.items():
        if not text.strip():
            raise ValueError(f"{name} must say something about the figure, found {text!r}")
    figure, ax = plots.figure(width=6.4, height=height)
    with plots.style():
        draw(ax)
    still = io.BytesIO()
    Image.open(io.BytesIO(plots.png(figure, STILL_DPI))).convert("RGB").save(
        still, "WEBP", quality=80
    )
    plt.close(figure)
    return Live(kind, data, alt, caption, still.getvalue())


def numbers(name: str, values: Tensor | np.ndarray | list[float], digits: int = 8) -> list[float]:
    """As JSON takes them, with so many significant digits."""
    array = torch.as_tensor(values, dtype=torch.float64, device="cpu").flatten()
    if len(array) == 0 or not array.isfinite().all():
        raise ValueError(f"{name} must hold finite numbers, and at least one")
    return [float(f"{value:.{digits}g}") for value in array.tolist()]


def check(expect: dict[str, float], tolerance: float = 1e-6, **controls: float) -> dict[str, Any]:
    return {"set": controls, "expect": expect, "tolerance": tolerance}
